//! Guests in the shape of CentOS 6 and 7, every byte our own: recognised, adapted, adapted again, and brought back.

use std::fs;
use std::path::Path;

use tests::{Trial, World};

use crate::fixture::{BASE, CONTAINERS, good, mode_of, refused, run, same, snapshot, tree, write};
use crate::tar::{Member, archive, dir, file, link};

/// An ELF header for this machine, with words behind it.
pub fn elf(words: &str) -> Vec<u8> {
    let mut bytes = vec![0_u8; 64];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18] = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    bytes.extend(words.as_bytes());
    bytes
}

const LOGIN: &str = "#%PAM-1.0\nauth       include      system-auth\nsession    required     pam_loginuid.so\nsession    optional     pam_keyinit.so\n";

/// CentOS 6 in shape.
pub fn el6() -> Vec<Member> {
    let rc = "#!/bin/bash\n# in the shape of the real one\n/sbin/start_udev\necho banner\n";
    vec![
        dir("./"),
        dir("etc"),
        dir("etc/init"),
        dir("etc/pam.d"),
        dir("etc/rc.d"),
        dir("etc/sysconfig"),
        dir("sbin"),
        dir("lib64"),
        dir("var/run"),
        dir("proc"),
        dir("bin"),
        file("etc/redhat-release", "CentOS release 6.8 (Final)\n"),
        file("etc/rc.d/rc.sysinit", rc).mode(0o755),
        link("etc/rc.sysinit", "rc.d/rc.sysinit"),
        file("etc/init/rcS.conf", "start on startup\nexec /etc/rc.d/rc.sysinit\n"),
        file("etc/init/tty.conf", "respawn\ninstance $TTY\nexec /sbin/mingetty $TTY\n"),
        file("etc/init/serial.conf", "start on fedora.serial-console-available\n"),
        file("etc/init/prefdm.conf", "start on stopped rc RUNLEVEL=5\n"),
        file("etc/init/quit-plymouth.conf", "start on starting prefdm\n"),
        file("etc/init/splash-manager.conf", "start on runlevel 6\n"),
        file("etc/init/kexec-disable.conf", "start on stopped rcS\n"),
        file("etc/init/plymouth-shutdown.conf", "start on runlevel 0\n"),
        file("etc/sysconfig/init", "BOOTUP=color\nACTIVE_CONSOLES=/dev/tty[1-6]\nPROMPT=yes"),
        file("etc/sysconfig/udev", "# options of udevd\nUDEV_X=1\n").owner(0, 7).mode(0o600),
        file("etc/inittab", "id:3:initdefault:\n"),
        file(
            "etc/fstab",
            "UUID=0b2c3d4e-0000-4000-8000-000000000000 / ext4 defaults 1 1\nUUID=1b2c3d4e-0000-4000-8000-000000000000 swap swap defaults 0 0\n",
        ),
        file("etc/pam.d/login", LOGIN),
        file("etc/pam.d/sshd", LOGIN),
        file(
            "etc/pam.d/remote",
            LOGIN.replace("session    required     pam_loginuid", "-session\trequired\tpam_loginuid"),
        ),
        file("etc/pam.d/other", "auth required pam_deny.so\n"),
        link("etc/pam.d/system-auth", "system-auth-ac"),
        link("etc/pam.d/out", "/etc/passwd"),
        file("sbin/init", elf("upstart 0.6.5 .conf .override")).mode(0o755),
        file("sbin/start_udev", "#!/bin/bash\n. /etc/sysconfig/udev\nwhile :; do sleep 1; done\n").mode(0o755),
        file("sbin/mingetty", elf("mingetty")).mode(0o755),
        file("bin/bash", elf("bash")).mode(0o755),
        file("lib64/libc-2.12.so", ""),
    ]
}

/// CentOS 7 in shape.
pub fn el7() -> Vec<Member> {
    vec![
        dir("./"),
        dir("etc/systemd/system"),
        dir("etc/pam.d"),
        dir("usr/lib/systemd"),
        dir("usr/share/doc/systemd-219"),
        dir("usr/sbin"),
        link("sbin", "usr/sbin"),
        link("lib", "usr/lib"),
        file("etc/redhat-release", "CentOS Linux release 7.7.1908 (Core)\n"),
        file("etc/os-release", "ID=\"centos\"\nVERSION_ID=\"7\"\n"),
        file("etc/fstab", "/dev/mapper/centos-root / xfs defaults 0 0\n"),
        file("etc/pam.d/login", LOGIN),
        file("usr/lib/systemd/systemd", elf("systemd")).mode(0o755),
        link("usr/sbin/init", "../lib/systemd/systemd"),
    ]
}

/// Imports a guest.
pub fn import(world: &mut World, name: &str, members: &[Member]) {
    let image = write("/home/alice/guest.tar", archive(members));
    good(world, &["import", "-q", &image.to_string_lossy(), name]);
}

fn read(name: &str, path: &str) -> String {
    fs::read_to_string(tree(name).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Times of directories change when files are made in them, and come not back.
fn without_times(name: &str) -> std::collections::BTreeMap<std::path::PathBuf, crate::fixture::Entry> {
    let mut all = snapshot(&tree(name), &[]);
    all.values_mut().for_each(|entry| entry.mtime = (0, 0));
    all
}

fn centos_6(world: &mut World) {
    import(world, "c6", &el6());
    let before = without_times("c6");
    let dry = good(world, &["adapt", "c6", "--dry-run"]);
    assert!(without_times("c6") == before && dry.out().contains("+ACTIVE_CONSOLES=/dev/console"), "{}", dry.out());
    let done = good(world, &["adapt", "c6"]);
    assert_eq!(dry.out(), done.out(), "a dry run shows what is done");
    // 1
    assert!(
        read("c6", "etc/sysconfig/udev")
            .starts_with("# options of udevd\nUDEV_X=1\n# userns-helpers begin: the spawner")
    );
    assert_eq!(mode_of(&tree("c6").join("etc/sysconfig/udev")), 0o600);
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(tree("c6").join("etc/sysconfig/udev")).expect("udev").gid(), BASE + 7);
    // 2
    assert!(read("c6", "etc/init/tty.override").ends_with("exec /sbin/mingetty --nohangup $TTY\n"));
    // 3
    let init = read("c6", "etc/sysconfig/init");
    assert!(
        init.contains("PROMPT=yes\n# userns")
            && init.ends_with("ACTIVE_CONSOLES=/dev/console\nPROMPT=no\n# userns-helpers end\n")
    );
    // 4
    assert!(read("c6", "etc/init/power-status-changed.conf").contains("exec /sbin/shutdown -h now"));
    // 5
    assert_eq!(read("c6", "etc/pam.d/login"), LOGIN.replace("required     pam_loginuid", "optional     pam_loginuid"));
    assert!(read("c6", "etc/pam.d/remote").contains("-session\toptional\tpam_loginuid.so"));
    assert_eq!(read("c6", "etc/pam.d/other"), "auth required pam_deny.so\n");
    // 6
    assert_eq!(read("c6", "etc/fstab"), "/dev/root / rootfs defaults 0 0\n");
    // 7
    assert_eq!(read("c6", "etc/sysconfig/network"), "NETWORKING=yes\nHOSTNAME=c6\n");
    assert!(tree("c6").join("var/run/netreport").is_dir());
    for job in ["plymouth-shutdown", "quit-plymouth", "splash-manager", "prefdm", "serial", "kexec-disable"] {
        assert!(read("c6", &format!("etc/init/{job}.override")).contains("never-in-a-container"));
        assert!(!read("c6", &format!("etc/init/{job}.override")).contains("manual"));
    }
    // rc.sysinit and the services are left alone.
    assert!(read("c6", "etc/rc.d/rc.sysinit").contains("start_udev"));
    let adapted = without_times("c6");
    let again = good(world, &["adapt", "c6"]);
    assert!(again.out().is_empty() && without_times("c6") == adapted, "idempotent");
    good(world, &["adapt", "c6", "--undo"]);
    same(&before, &without_times("c6"), "undo");
    assert!(!Path::new(CONTAINERS).join("c6/adapted.json").exists());
    refused(&run(world, &["adapt", "c6", "--undo"]), 65, &["has not been adapted"]);
}

fn edited_since(world: &mut World) {
    import(world, "c6", &el6());
    let before = without_times("c6");
    good(world, &["adapt", "c6"]);
    let edit = |path: &str, text: &str| {
        let path = tree("c6").join(path);
        fs::write(&path, text).expect("edit");
    };
    // A file that has grown keeps what is not ours; one that is ours and was edited stays.
    edit("etc/sysconfig/init", &(read("c6", "etc/sysconfig/init") + "MORE=1\n"));
    edit("etc/fstab", "none /mnt tmpfs defaults 0 0\n");
    // A package update brings its own file back.
    edit("etc/pam.d/sshd", LOGIN);
    let outcome = run(world, &["adapt", "c6", "--undo"]);
    outcome.assert_code(65, "one was refused");
    assert!(outcome.text().contains("/etc/fstab was edited since"), "{}", outcome.text());
    assert_eq!(read("c6", "etc/fstab"), "none /mnt tmpfs defaults 0 0\n");
    assert!(read("c6", "etc/sysconfig/init").ends_with("PROMPT=yes\nMORE=1\n"));
    assert_eq!(read("c6", "etc/pam.d/sshd"), LOGIN);
    let now = without_times("c6");
    for (path, entry) in &before {
        if !["etc/fstab", "etc/sysconfig/init"].iter().any(|edited| path == Path::new(edited)) {
            assert_eq!(now.get(path), Some(entry), "{}", path.display());
        }
    }
}

fn old_upstart_and_template(world: &mut World) {
    let mut members = el6();
    for member in &mut members {
        if member.name == b"sbin/init" {
            member.data = elf("upstart 0.6.5 .conf");
        }
    }
    members.push(file("etc/init/lxc-sysinit.conf", "start on startup\n"));
    import(world, "c6", &members);
    good(world, &["adapt", "c6"]);
    assert!(read("c6", "etc/init/tty.conf").contains("exec /sbin/mingetty --nohangup $TTY"));
    assert!(!tree("c6").join("etc/init/tty.override").exists());
    assert!(tree("c6").join("etc/init/lxc-sysinit.override").exists());
    good(world, &["adapt", "c6", "--undo"]);
    assert!(read("c6", "etc/init/tty.conf").contains("exec /sbin/mingetty $TTY"));
}

fn centos_7(world: &mut World) {
    import(world, "c7", &el7());
    let before = without_times("c7");
    good(world, &["adapt", "c7"]);
    for unit in ["dev-hugepages.mount", "sys-fs-fuse-connections.mount"] {
        assert_eq!(
            fs::read_link(tree("c7").join("etc/systemd/system").join(unit)).expect("link"),
            Path::new("/dev/null")
        );
    }
    assert!(read("c7", "etc/pam.d/login").contains("optional     pam_loginuid.so"));
    assert!(!tree("c7").join("etc/fstab").exists());
    assert!(good(world, &["adapt", "c7"]).out().is_empty(), "idempotent");
    good(world, &["adapt", "c7", "--undo"]);
    same(&before, &without_times("c7"), "undo");
}

/// EL 8 and newer in shape.
fn el8(release: &str, id: &str, version: &str, systemd: u32) -> Vec<Member> {
    vec![
        dir("./"),
        dir("etc/systemd/system"),
        dir("etc/pam.d"),
        dir("usr/lib/systemd/system"),
        dir("usr/sbin"),
        link("sbin", "usr/sbin"),
        link("lib", "usr/lib"),
        file("etc/redhat-release", format!("{release}\n")),
        file("etc/os-release", format!("ID=\"{id}\"\nVERSION_ID=\"{version}\"\n")),
        file("etc/fstab", "UUID=0b2c3d4e-0000-4000-8000-000000000000 / xfs defaults 0 0\n"),
        file("etc/pam.d/login", LOGIN),
        file("usr/lib/systemd/systemd", elf("systemd")).mode(0o755),
        file(format!("usr/lib/systemd/libsystemd-shared-{systemd}.so"), ""),
        file("usr/lib/systemd/system/auditd.service", "[Unit]\n"),
        file("usr/lib/systemd/system/kdump.service", "[Unit]\n"),
        file("usr/lib/systemd/system/sshd.service", "[Unit]\n"),
        link("usr/sbin/init", "../lib/systemd/systemd"),
    ]
}

fn el_8_to_10(world: &mut World) {
    for (name, release, id, version, systemd) in [
        ("e8", "Rocky Linux release 8.9 (Green Obsidian)", "rocky", "8.9", 239),
        ("e9", "Red Hat Enterprise Linux release 9.4 (Plow)", "rhel", "9.4", 252),
        ("e10", "CentOS Stream release 10 (Coughlan)", "centos", "10", 257),
    ] {
        import(world, name, &el8(release, id, version, systemd));
        let row = good(world, &["ls"]).out();
        assert!(row.lines().any(|line| line.starts_with(name) && line.contains(release)), "{row}");
        let outcome = run(world, &["check", name]);
        let line = |words: &[&str]| outcome.out().lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(line(&[": fstab: ", "UUID=0b2c3d4e"]), "{}", outcome.out());
        // What is for older systems alone.
        assert!(!line(&[": loginuid: "]) && !line(&["name=systemd", "needs a delegated node"]), "{}", outcome.out());
        let before = without_times(name);
        good(world, &["adapt", name]);
        let units = tree(name).join("etc/systemd/system");
        for unit in ["auditd.service", "kdump.service"] {
            assert_eq!(fs::read_link(units.join(unit)).expect(unit), Path::new("/dev/null"));
        }
        // rngd is not installed; nothing else is switched off.
        assert_eq!(fs::read_dir(&units).expect("units").count(), 2);
        assert!(!tree(name).join("etc/fstab").exists());
        assert_eq!(read(name, "etc/pam.d/login"), LOGIN, "newer pam_loginuid knows containers itself");
        assert!(good(world, &["adapt", name]).out().is_empty(), "idempotent");
        good(world, &["adapt", name, "--undo"]);
        same(&before, &without_times(name), "undo");
    }
}

fn hostile_guest(world: &mut World) {
    // Every path that is written leads out, as the guest's links have it.
    let victim = write("/home/alice/victim/file", "outside");
    let mut members = el6();
    members.retain(|member| {
        !member.name.starts_with(b"etc/sysconfig")
            && !member.name.starts_with(b"etc/init")
            && member.name != b"etc/fstab"
    });
    members.extend([
        link("etc/sysconfig", "/home/alice/victim"),
        link("etc/fstab", "/home/alice/victim/file"),
        dir("etc/init"),
        file("etc/init/rcS.conf", "start on startup\n"),
        link("etc/init/tty.conf", "../../../../../../home/alice/victim/file"),
        link("etc/init/power-status-changed.conf", "/home/alice/victim/made"),
    ]);
    import(world, "h", &members);
    let before = snapshot(Path::new("/home/alice/victim"), &[]);
    let outcome = run(world, &["adapt", "h"]);
    assert!(outcome.code().is_some());
    same(&before, &snapshot(Path::new("/home/alice/victim"), &[]), "nothing outside was changed");
    assert_eq!(fs::read_to_string(victim).expect("victim"), "outside");
}

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once("CentOS 6 gets its seven points, once, and is brought back byte for byte", centos_6),
        Trial::once("what was edited since an adaptation is not overwritten by undo", edited_since),
        Trial::once("an upstart without override files, and LXC's template, are adapted too", old_upstart_and_template),
        Trial::once("CentOS 7 gets what brings systemd to running, and is brought back", centos_7),
        Trial::once("EL 8 to 10 get the little that they need, and are brought back", el_8_to_10),
        Trial::once("a guest whose files are links leads an adaptation nowhere", hostile_guest),
    ]
}
