//! Round trips: what podman, buildah, skopeo and umoci make of a root is imported as the tree that `podman unshare tar`
//! reads of the same image: owners, modes, times, links, content, attributes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use tests::{ALICE, Call, Kind, Trial, World};

use crate::fixture::{BASE, Entry, good, same, snapshot, tree};

const HOME: &str = "/home/alice/peers";

/// Set for each of the steps.
const TOOLS: &str = r#"
set -e
P="podman --root $PWD/st --runroot $PWD/run --storage-driver vfs --log-level error --cgroup-manager cgroupfs --events-backend none"
B="buildah --root $PWD/st --runroot $PWD/run --storage-driver vfs --log-level error"
S="skopeo copy -q"
"#;

/// The images, made as alice out of `root.tar`, and the reference; step by step, because a call has a time limit.
const MAKE: [&str; 6] = [
    "$P import -q root.tar localhost/x:latest
    $P save -q --format docker-archive -o podman-docker.tar localhost/x:latest",
    "$P save -q --format oci-archive -o podman-oci.tar localhost/x:latest
    $P save -q --format oci-dir -o podman-oci localhost/x:latest",
    "c=$($B from scratch)
    $B add -q $c root.tar /
    $B commit -q $c oci:buildah-oci:latest
    $B commit -q $c docker-archive:buildah-docker.tar:x:latest
    $B rm $c",
    "$S oci-archive:podman-oci.tar oci:skopeo-oci:latest
    $S --dest-compress-format zstd oci-archive:podman-oci.tar oci:skopeo-zstd:latest
    $S oci-archive:podman-oci.tar oci-archive:skopeo-oci.tar
    tar -C skopeo-zstd -cf tar-oci.tar .
    $S oci-archive:podman-oci.tar docker-archive:skopeo-docker.tar:x:latest
    $S oci-archive:podman-oci.tar dir:skopeo-dir",
    "umoci init --layout umoci-layer
    umoci new --image umoci-layer:latest
    umoci raw add-layer --image umoci-layer:latest root.tar",
    "top=$($P unshare $P image mount localhost/x:latest)
    $P unshare tar --numeric-owner --xattrs --xattrs-include=user.* --xattrs-include=security.capability -C $top -cf - . >reference.tar",
];

/// As root, whose umoci keeps owners: unpacked, filled, packed again.
const REPACK: &str = r"
set -e
umoci init --layout umoci-repack
umoci new --image umoci-repack:latest
umoci unpack --image umoci-repack:latest bundle
tar --numeric-owner --xattrs --xattrs-include='*' -C bundle/rootfs -xpf root.tar
umoci repack --image umoci-repack:latest bundle
rm -rf bundle
chmod -R a+rX umoci-repack
mkdir reference
tar --numeric-owner --xattrs --xattrs-include='*' -C reference -xpf reference.tar
";

const SOURCES: [&str; 14] = [
    "root.tar",
    "reference.tar",
    "podman-docker.tar",
    "podman-oci.tar",
    "podman-oci",
    "buildah-oci",
    "buildah-docker.tar",
    "skopeo-oci",
    "skopeo-zstd",
    "skopeo-oci.tar",
    "tar-oci.tar",
    "skopeo-docker.tar",
    "skopeo-dir",
    "umoci-layer",
];

fn shell(script: &str, directory: &Path) {
    let output = Command::new("/bin/sh")
        .args(["-c", script])
        .current_dir(directory)
        .env_clear()
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
        .env("HOME", "/root")
        .output()
        .expect("start");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Entries with their attributes; times in seconds, and not the top's, which every tool makes anew.
fn whole(top: &Path, offset: u32) -> (std::collections::BTreeMap<PathBuf, Entry>, Vec<String>) {
    let mut entries = snapshot(top, &[]);
    for (path, entry) in &mut entries {
        entry.owner = (entry.owner.0 + offset, entry.owner.1 + offset);
        entry.mtime = if path.as_os_str().is_empty() { (0, 0) } else { (entry.mtime.0, 0) };
    }
    let output = Command::new("/usr/bin/getfattr")
        .args(["-R", "-h", "-d", "-e", "hex", "-m", "^(user\\.|security\\.capability)", "."])
        .current_dir(top)
        .output()
        .expect("getfattr");
    let mut list = Vec::new();
    let mut file = String::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some(name) = line.strip_prefix("# file: ") {
            name.clone_into(&mut file);
        } else if let Some(value) = line.strip_prefix("security.capability=0x") {
            // Revisions 2 and 3 (with the root's id) of struct vfs_cap_data: the same sets.
            assert!(value.starts_with("01000002") || value.starts_with("01000003"), "{file}: {line}");
            list.push(format!("{file}: capability {}", &value[8..40]));
        } else if !line.is_empty() {
            list.push(format!("{file}: {line}"));
        }
    }
    list.sort();
    (entries, list)
}

fn round_trips(world: &mut World, make_root: &str, least: usize) {
    for tool in ["podman", "buildah", "skopeo", "umoci", "getfattr", "setfattr"] {
        world.needs_tool(&format!("/usr/bin/{tool}"));
    }
    for kind in Kind::BOTH {
        let _ = world.program(kind.program());
    }
    // podman's locks.
    fs::create_dir_all("/dev/shm").expect("shm");
    mount(Some("shm"), "/dev/shm", Some("tmpfs"), MsFlags::empty(), Some("mode=1777")).expect("tmpfs");
    fs::create_dir_all("/etc/containers").expect("directory");
    world.write("/etc/containers/policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
    let home = Path::new(HOME);
    let runtime = home.join("xdg");
    for directory in [home, &runtime] {
        fs::create_dir(directory).expect("directory");
        chown(directory, Some(ALICE.uid), Some(ALICE.gid)).expect("chown");
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).expect("chmod");
    shell(make_root, home);
    for step in MAKE {
        let outcome = Call::new("/bin/sh")
            .user(ALICE)
            .as_user(|| std::env::set_current_dir(HOME).expect("chdir"))
            .env("HOME", HOME)
            .env("PATH", "/run/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("TMPDIR", HOME)
            .env("XDG_RUNTIME_DIR", &runtime)
            .args(["-c", &[TOOLS, step].concat()])
            .run(world);
        outcome.assert_code(0, &outcome.text());
    }
    shell(REPACK, home);
    let reference = whole(&home.join("reference"), BASE);
    assert!(reference.0.len() >= least, "{} files", reference.0.len());
    assert!(reference.0.values().any(|entry| entry.mode & 0o4000 != 0), "a set-user-ID file");
    assert!(reference.0.values().any(|entry| entry.owner.1 != BASE), "a file of another group");
    assert!(reference.0.values().any(|entry| entry.links > 1), "a hard link");
    assert!(reference.1.iter().any(|line| line.contains(": capability ")), "{:?}", reference.1);
    for source in SOURCES.into_iter().chain(["umoci-repack"]) {
        good(world, &["import", "-q", &format!("{HOME}/{source}"), "back"]);
        let back = whole(&tree("back"), 0);
        same(&reference.0, &back.0, source);
        assert_eq!(reference.1, back.1, "{source}");
        good(world, &["rm", "back"]);
    }
}

/// A root of busybox with whatever a tree can hold.
const BUSYBOX: &str = r"
set -e
mkdir root && cd root
mkdir -p bin etc tmp home/u closed dev proc
cp /bin/busybox bin/busybox
for name in sh ls su; do ln bin/busybox bin/$name; done
ln -s busybox bin/cat
chmod 4755 bin/busybox; chmod 1777 tmp; chmod 2755 home
cp bin/busybox bin/capable && chmod 755 bin/capable && setcap cap_net_raw+ep bin/capable
echo x >etc/passwd; setfattr -n user.note -v hi etc/passwd
printf 'a name with\nodd \\ bytes' >'etc/odd \ name'
chown 1000:100 home/u; chmod 700 home/u
echo secret >closed/file; chmod 0 closed/file closed
mkfifo fifo; chown 12:34 fifo
truncate -s 1M sparse
# Whole seconds: umoci rounds them.
find . -depth -exec touch -h -d 2020-02-22T12:00:00Z {} +
touch -d 1999-12-31T23:59:58Z etc/passwd
cd ..
tar --numeric-owner --xattrs --xattrs-include='*' -C root -cf root.tar .
chmod 644 root.tar
";

/// Some of the host's own packages as Debian has installed them, with one capability beside their set-user-ID files.
const DEBIAN: &str = r#"
set -e
dpkg -L base-files bash coreutils dash dpkg grep login mount passwd sed tar util-linux 2>/dev/null |
  grep '^/' | grep -v -e ^/usr/share/doc -e ^/usr/share/locale | sed -E 's#^/(bin|sbin|lib|lib32|lib64|libx32)/#/usr/\1/#' |
  sort -u | while read -r file; do
    if [ -L "$file" ] || [ -f "$file" ]; then echo ".$file"; fi
  done >files
mkdir root
tar -C / --no-recursion -T files -cf - | tar -C root -xpf -
for name in bin sbin lib lib64; do ln -s usr/$name root/$name; done
ln root/usr/bin/env root/usr/bin/linked
setcap cap_net_raw+ep root/usr/bin/dpkg
find root -depth -exec touch -h -d 2020-02-22T12:00:00Z {} +
tar --numeric-owner --xattrs --xattrs-include='*' -C root -cf root.tar .
chmod 644 root.tar
"#;

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once(
            "podman, buildah, skopeo and umoci: a busybox root imports as podman unshare tar has it",
            |world| {
                round_trips(world, BUSYBOX, 15);
            },
        ),
        Trial::once("podman, buildah, skopeo and umoci: a Debian root imports as podman unshare tar has it", |world| {
            if !Path::new("/usr/bin/dpkg-query").exists() {
                tests::world::ignore("needs a Debian host, of whose packages the root is made");
            }
            round_trips(world, DEBIAN, 500);
        }),
    ]
}
