//! Every kind of source, digests, owners and attributes, whiteouts, interruption.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use tests::{ALICE, Trial, World};

use crate::fixture::{
    BASE, CONTAINERS, good, mode_of, nothing_left, refused, rootfs, run, same, snapshot, tree, write,
};
use crate::tar::{Member, archive, dir, file, hard, link, other};

/// The standard output of a tool of the host's that is given `input`.
fn filter(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut to = child.stdin.take().expect("pipe");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || to.write_all(&input).expect("write"));
    let output = child.wait_with_output().expect("wait");
    writer.join().expect("writer");
    assert!(output.status.success(), "{program}");
    output.stdout
}

fn sha256(bytes: &[u8]) -> String {
    String::from_utf8(filter("sha256sum", &[], bytes)).expect("text")[..64].to_owned()
}

/// A small tree with everything in it that a rootfs has.
fn system() -> Vec<Member> {
    let capability: Vec<u8> = [0x0200_0001_u32, 0x2000, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    vec![
        dir("./").mode(0o755),
        dir("bin"),
        file("bin/su", "su").mode(0o4755),
        file("bin/wall", "wall").mode(0o2755).owner(0, 5),
        file("bin/ping", "ping").mode(0o755).pax("SCHILY.xattr.security.capability", &capability),
        hard("bin/hard", "bin/su"),
        link("sbin", "bin").owner(7, 8),
        dir("home/user").mode(0o700).owner(1000, 1000),
        file("home/user/file", "x").owner(1000, 1000).mode(0o640),
        dir("closed").mode(0),
        file("closed/inside", "deep").mode(0),
        dir("tmp").mode(0o1777),
        dir("shared").mode(0o2775).owner(0, 50),
        file("shared/file", "x").owner(0, 0),
        other("fifo", b'6').mode(0o620),
        other("dev/null", b'3'),
        file("attr", "x").pax("SCHILY.xattr.user.note", "hello"),
        file("last", "x").owner(65535, 65535),
    ]
}

fn check_system(name: &str) {
    let top = tree(name);
    let owner = |path: &str| {
        let found = fs::symlink_metadata(top.join(path)).expect(path);
        (found.uid().wrapping_sub(BASE), found.gid().wrapping_sub(BASE))
    };
    assert_eq!(mode_of(&top.join("bin/su")), 0o4755);
    assert_eq!((mode_of(&top.join("bin/wall")), owner("bin/wall")), (0o2755, (0, 5)));
    assert_eq!(owner("sbin"), (7, 8));
    assert_eq!((mode_of(&top.join("home/user")), owner("home/user")), (0o700, (1000, 1000)));
    assert_eq!(owner("home"), (0, 0), "a parent that was not in the archive");
    assert_eq!((mode_of(&top.join("closed")), mode_of(&top.join("closed/inside"))), (0, 0));
    assert_eq!((mode_of(&top.join("tmp")), mode_of(&top.join("fifo"))), (0o1777, 0o620));
    assert_eq!(mode_of(&top.join("shared")), 0o2775);
    assert_eq!(owner("shared/file"), (0, 0), "a set-group-ID directory does not change the owner");
    assert_eq!(owner("last"), (65535, 65535));
    let meta = |path: &str| fs::metadata(top.join(path)).expect(path);
    assert_eq!(meta("bin/su").ino(), meta("bin/hard").ino());
    assert_eq!(
        (meta("bin/su").mtime(), meta("bin").mtime(), meta("closed").mtime()),
        (1_000_000_000, 1_000_000_000, 1_000_000_000)
    );
    assert!(!top.join("dev/null").exists());
    let attribute = |path: &str, name: &str| {
        let out = Command::new("/usr/bin/getfattr").args(["--only-values", "-n", name]).arg(top.join(path)).output();
        out.expect("getfattr").stdout
    };
    assert_eq!(attribute("attr", "user.note"), b"hello");
    let capability = attribute("bin/ping", "security.capability");
    assert_eq!(capability.len(), 24, "a capability of version 3");
    assert_eq!(capability[20..], BASE.to_le_bytes(), "that belongs to the container's root");
}

fn every_compression(world: &mut World) {
    world.needs_tool("/usr/bin/getfattr");
    let plain = archive(&system());
    for (program, args) in
        [("cat", &[][..]), ("gzip", &["-c"]), ("xz", &["-0", "-c"]), ("zstd", &["-q", "-c"]), ("bzip2", &["-c"])]
    {
        // Found by content: the names say nothing.
        let path = write("/home/alice/image", filter(program, args, &plain));
        let outcome = good(world, &["import", &path.to_string_lossy(), "c"]);
        assert!(outcome.text().contains("1 device nodes left out"), "{}", outcome.text());
        check_system("c");
        good(world, &["rm", "c"]);
    }
    nothing_left("after rm");
}

fn from_a_pipe(world: &mut World) {
    world.needs_tool("/usr/bin/getfattr");
    let bytes = filter("gzip", &["-c"], &archive(&system()));
    let outcome = rootfs(world, &["import", "-q", "-", "c"]).stdin(bytes).run(world);
    outcome.assert_silent("a pipe");
    check_system("c");
}

/// One layer, or several, in the three forms of an image.
struct Image {
    layers: Vec<Vec<u8>>,
    /// The same, as stored.
    stored: Vec<Vec<u8>>,
    compression: &'static str,
}

impl Image {
    fn new(layers: &[Vec<Member>], program: &'static str) -> Self {
        let layers: Vec<Vec<u8>> = layers.iter().map(|members| archive(members)).collect();
        let pack = |layer: &Vec<u8>| filter(program, if program == "cat" { &[] } else { &["-c"] }, layer);
        let stored = layers.iter().map(pack).collect();
        let compression = match program {
            "gzip" => "+gzip",
            "zstd" => "+zstd",
            _ => "",
        };
        Self { layers, stored, compression }
    }

    fn config(&self) -> String {
        let ids: Vec<String> = self.layers.iter().map(|layer| format!("\"sha256:{}\"", sha256(layer))).collect();
        let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        format!(
            "{{\"architecture\":\"{architecture}\",\"os\":\"linux\",\"config\":{{\"Env\":[\"A=b c\"],\"Cmd\":[\"/bin/x\",\"a b\"],\"Entrypoint\":null}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[{}]}}}}",
            ids.join(",")
        )
    }

    /// Files of an OCI layout; with `nested`, the index names another index that has this platform and an attestation.
    fn layout(&self, nested: bool) -> Vec<(String, Vec<u8>)> {
        let mut files = vec![("oci-layout".to_owned(), b"{\"imageLayoutVersion\":\"1.0.0\"}".to_vec())];
        let mut blob = |bytes: &[u8]| {
            let digest = sha256(bytes);
            files.push((format!("blobs/sha256/{digest}"), bytes.to_vec()));
            format!("\"digest\":\"sha256:{digest}\",\"size\":{}", bytes.len())
        };
        let config = blob(self.config().as_bytes());
        let layers: Vec<String> = self
            .stored
            .iter()
            .map(|layer| {
                format!(
                    "{{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar{}\",{}}}",
                    self.compression,
                    blob(layer)
                )
            })
            .collect();
        let manifest = format!(
            "{{\"schemaVersion\":2,\"config\":{{\"mediaType\":\"x\",{config}}},\"layers\":[{}]}}",
            layers.join(",")
        );
        let mut entry = blob(manifest.as_bytes());
        if nested {
            let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
            let platform =
                |os: &str, arch: &str| format!("\"platform\":{{\"os\":\"{os}\",\"architecture\":\"{arch}\"}}");
            let gone = format!("\"digest\":\"sha256:{}\",\"size\":1", "0".repeat(64));
            let inner = format!(
                "{{\"schemaVersion\":2,\"manifests\":[{{{gone},{}}},{{{entry},{}}},{{{gone},{}}}]}}",
                platform("linux", "s390x"),
                platform("linux", architecture),
                platform("unknown", "unknown")
            );
            entry = blob(inner.as_bytes());
        }
        let annotations = "\"annotations\":{\"org.opencontainers.image.ref.name\":\"latest\"}";
        files.push((
            "index.json".to_owned(),
            format!("{{\"schemaVersion\":2,\"manifests\":[{{{entry},{annotations}}}]}}").into_bytes(),
        ));
        files
    }

    /// Docker 24 and before, and skopeo: `layer.tar` may be a link.
    fn docker_a(&self) -> Vec<Member> {
        let config = self.config();
        let name = format!("{}.json", sha256(config.as_bytes()));
        let mut members = vec![file(&name, &config)];
        let mut layers = Vec::new();
        for layer in &self.layers {
            let digest = sha256(layer);
            members.push(file(format!("{digest}.tar"), layer));
            members.push(dir(format!("id{digest}")));
            members.push(link(format!("id{digest}/layer.tar"), format!("../{digest}.tar")));
            layers.push(format!("\"id{digest}/layer.tar\""));
        }
        let manifest =
            format!("[{{\"Config\":\"{name}\",\"RepoTags\":[\"x:latest\"],\"Layers\":[{}]}}]", layers.join(","));
        members.push(file("manifest.json", manifest));
        members.push(file("repositories", "{}"));
        members
    }

    /// Docker 25 and newer: an OCI layout and a manifest.json beside it.
    fn docker_b(&self, nested: bool) -> Vec<Member> {
        let layout = self.layout(nested);
        let config = format!("blobs/sha256/{}", sha256(self.config().as_bytes()));
        let layers: Vec<String> =
            self.stored.iter().map(|layer| format!("\"blobs/sha256/{}\"", sha256(layer))).collect();
        let manifest =
            format!("[{{\"Config\":\"{config}\",\"RepoTags\":[\"x:latest\"],\"Layers\":[{}]}}]", layers.join(","));
        let mut members = vec![dir("blobs"), dir("blobs/sha256")];
        members.extend(layout.into_iter().map(|(name, bytes)| file(name, bytes)));
        members.push(file("manifest.json", manifest));
        members
    }
}

fn layered() -> [Vec<Member>; 3] {
    [
        vec![
            dir("./"),
            dir("etc"),
            file("etc/keep", "1"),
            file("etc/gone", "1"),
            file("etc/changed", "1"),
            dir("opaque"),
            file("opaque/lower", "1"),
            dir("opaque/sub"),
            file("opaque/sub/lower", "1"),
            dir("whole"),
            file("whole/a", "1"),
            dir("both"),
            file("both/lower", "1"),
            link("usrlink", "etc"),
            dir("totype"),
            file("totype/x", "1"),
            file("todir", "1"),
        ],
        vec![
            file("etc/.wh.gone", ""),
            file("etc/changed", "2"),
            file("opaque/upper", "2"),
            file("opaque/.wh..wh..opq", ""),
            file("opaque/later", "2"),
            dir("opaque/sub"),
            file("opaque/sub/upper", "2"),
            file(".wh.whole", ""),
            file("both/upper", "2"),
            file(".wh.both", ""),
            file("usrlink/.wh.keep2", ""),
            file("etc/.wh..wh.aufs", ""),
            file("totype", "2"),
            dir("todir"),
            file("todir/x", "2"),
        ],
        vec![file("usrlink/third", "3"), file("etc/.wh.third", ""), file("etc/.wh.nothere", "")],
    ]
}

fn check_layered(name: &str) {
    let top = tree(name);
    let found: Vec<String> = snapshot(&top, &[]).keys().map(|path| path.to_string_lossy().into_owned()).collect();
    let wanted = [
        "",
        "both",
        "both/upper",
        "etc",
        "etc/changed",
        "etc/keep",
        "etc/third",
        "opaque",
        "opaque/later",
        "opaque/sub",
        "opaque/sub/upper",
        "opaque/upper",
        "todir",
        "todir/x",
        "totype",
        "usrlink",
    ];
    assert_eq!(found, wanted);
    let text = |path: &str| fs::read_to_string(top.join(path)).expect(path);
    assert_eq!((text("etc/changed"), text("etc/third"), text("totype")), ("2".into(), "3".into(), "2".into()));
}

fn images_of_every_kind(world: &mut World) {
    for program in ["cat", "gzip", "zstd"] {
        let image = Image::new(&layered(), program);
        for nested in [false, true] {
            let layout = format!("/home/alice/layout-{program}-{nested}");
            for (name, bytes) in image.layout(nested) {
                write(Path::new(&layout).join(name), bytes);
            }
            good(world, &["import", "-q", &layout, "layout"]);
            check_layered("layout");
            good(world, &["rm", "layout"]);
            let saved = write("/home/alice/saved.tar", archive(&image.docker_b(nested)));
            good(world, &["import", "-q", &saved.to_string_lossy(), "b"]);
            check_layered("b");
            good(world, &["rm", "b"]);
        }
        let saved = write("/home/alice/saved.tar", archive(&image.docker_a()));
        good(world, &["import", "-q", &saved.to_string_lossy(), "a"]);
        check_layered("a");
        let config = fs::read_to_string(Path::new(CONTAINERS).join("a/config")).expect("config");
        for line in ["lxc.environment = A=b c", "lxc.init.cmd = /bin/x 'a b'", "lxc.idmap = u 0 100000 65536"] {
            assert!(config.contains(line), "{line}: {config}");
        }
        good(world, &["rm", "a"]);
        // An archive of an image that cannot be read out of order: compressed, through a pipe.
        let pressed = filter("gzip", &["-c"], &archive(&image.docker_a()));
        rootfs(world, &["import", "-q", "-", "p"]).stdin(pressed).run(world).assert_silent("a pipe");
        check_layered("p");
        good(world, &["rm", "p"]);
    }
    nothing_left("all removed");
}

fn wrong_digests(world: &mut World) {
    let image = Image::new(&layered(), "gzip");
    let files = image.layout(false);
    for at in 0..files.len() {
        let (name, bytes) = &files[at];
        if !name.starts_with("blobs/") {
            continue;
        }
        let layout = format!("/home/alice/bad{at}");
        for (other, content) in &files {
            write(Path::new(&layout).join(other), content);
        }
        // One byte of the blob, size unchanged; of a gzip stream the last byte, which decompression does not look at.
        let mut damaged = bytes.clone();
        *damaged.last_mut().expect("a blob") ^= 1;
        write(Path::new(&layout).join(name), damaged);
        let outcome = run(world, &["import", "-q", &layout, "c"]);
        outcome.assert_code(65, name);
        nothing_left("a wrong digest");
    }
    // A layer that is what its digest says, but not what the configuration says.
    let mut other = Image::new(&layered(), "gzip");
    other.layers[0] = archive(&[dir("./"), file("f", "other")]);
    for (name, content) in other.layout(false) {
        write(Path::new("/home/alice/diff").join(name), content);
    }
    refused(&run(world, &["import", "-q", "/home/alice/diff", "c"]), 65, &["unpacks to digest"]);
    nothing_left("a wrong diff_id");
    let plain = archive(&system());
    let path = write("/home/alice/image.tar", &plain);
    let path = path.to_string_lossy().into_owned();
    let right = format!("sha256:{}", sha256(&plain));
    let wrong = format!("sha256:{}", sha256(b"other"));
    refused(&run(world, &["import", "-q", &path, "c", "--digest", &wrong]), 65, &["not sha256:", "tampered"]);
    nothing_left("a wrong --digest");
    good(world, &["import", "-q", &path, "c", "--digest", &right]);
    good(world, &["rm", "c"]);
    // A SHA256SUMS beside the file is taken by itself.
    write("/home/alice/SHA256SUMS", format!("{}  image.tar\n", sha256(b"other")));
    refused(&run(world, &["import", "-q", &path, "c"]), 65, &["tampered"]);
    write("/home/alice/SHA256SUMS", format!("{}  image.tar\n", sha256(&plain)));
    good(world, &["import", "-q", &path, "c"]);
}

fn lxc_pair(world: &mut World) {
    let rootfs = archive(&[
        dir("./"),
        dir("./etc"),
        file("./etc/hostname", "LXC_NAME\n"),
        link("./etc/out", "/etc/passwd"),
        dir("./sbin"),
    ]);
    let meta = archive(&[
        file("config", "lxc.arch = i386\nlxc.tty.max = 1\n"),
        file("config-user.3", "lxc.include = LXC_TEMPLATE_CONFIG/nowhere.conf\nlxc.tty.max = 4\nlxc.idmap = u 0 5 5\n"),
        file("templates", "/etc/hostname\n/etc/out\n"),
        file("create-message", "root has no password\x1b[0m\n"),
        file("expiry", "1000\n"),
    ]);
    write("/home/alice/pair/rootfs.tar.xz", filter("xz", &["-0", "-c"], &rootfs));
    write("/home/alice/pair/meta.tar.xz", filter("xz", &["-0", "-c"], &meta));
    let before = fs::read("/etc/passwd").expect("passwd");
    let outcome = good(world, &["import", "/home/alice/pair", "c"]);
    assert_eq!(fs::read_to_string(tree("c").join("etc/hostname")).expect("hostname"), "c\n");
    assert_eq!(fs::read("/etc/passwd").expect("passwd"), before);
    let text = outcome.text();
    assert!(text.contains("root has no password") && text.contains("expiry") && !text.contains('\x1b'), "{text}");
    let config = fs::read_to_string(Path::new(CONTAINERS).join("c/config")).expect("config");
    assert!(config.contains("lxc.tty.max = 4") && config.contains("# not on this host: lxc.include"), "{config}");
    assert!(!config.contains("u 0 5 5") && config.contains("u 0 100000 65536"), "{config}");
}

/// LXD's and Incus's unified tar: metadata.yaml, templates/, rootfs/.
fn unified(world: &mut World) {
    use crate::tar::hard;
    for (prefix, top) in [("", false), ("./", true)] {
        let name = |text: &str| format!("{prefix}{text}");
        let mut members = if top { vec![dir("./")] } else { Vec::new() };
        members.extend([
            file(name("metadata.yaml"), "architecture: x86_64\ntemplates: {}\n"),
            dir(name("templates")),
            file(name("templates/hostname.tpl"), "{{ container.name }}\n"),
            dir(name("rootfs")).mode(0o751),
            dir(name("rootfs/etc")),
            file(name("rootfs/etc/hostname"), "image\n"),
            file(name("rootfs/bin/sh"), "sh").mode(0o4755),
            hard(name("rootfs/bin/bash"), name("rootfs/bin/sh")),
        ]);
        let image = write("/home/alice/lxd.tar.xz", filter("xz", &["-0", "-c"], &archive(&members)));
        let outcome = good(world, &["import", &image.to_string_lossy(), "c"]);
        assert!(outcome.text().contains("LXD or Incus"), "{}", outcome.text());
        let found = snapshot(&tree("c"), &[]);
        let names: Vec<_> = found.keys().map(|path| path.to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["", "bin", "bin/bash", "bin/sh", "etc", "etc/hostname"]);
        assert_eq!(found[Path::new("")].mode & 0o7777, 0o751);
        let shell = &found[Path::new("bin/bash")];
        assert_eq!((shell.mode & 0o7777, shell.links, shell.owner), (0o4755, 2, (BASE, BASE)));
        good(world, &["rm", "c"]);
    }
}

fn a_tree_and_back(world: &mut World) {
    world.needs_tool("/usr/bin/getfattr");
    let image = write("/home/alice/image.tar", archive(&system()));
    good(world, &["import", "-q", &image.to_string_lossy(), "c"]);
    let first = snapshot(&tree("c"), &[]);
    good(world, &["export", "c", "/home/alice/out.tar"]);
    good(world, &["import", "-q", "/home/alice/out.tar", "d"]);
    check_system("d");
    same(&first, &snapshot(&tree("d"), &[]), "tar");
    for compression in ["none", "gzip", "zstd"] {
        let layout = format!("/home/alice/oci-{compression}");
        good(world, &["export", "c", &layout, "--format", "oci", "--compress", compression]);
        good(world, &["import", "-q", &layout, "e"]);
        check_system("e");
        same(&first, &snapshot(&tree("e"), &[]), "OCI");
        good(world, &["rm", "e"]);
    }
    good(world, &["import", "-q", &format!("{CONTAINERS}/c"), "f"]);
    check_system("f");
    same(&first, &snapshot(&tree("f"), &[]), "a container directory");
    // A tree of real root, which alice may read: its ids are the container's.
    let top = Path::new("/home/tree");
    fs::create_dir_all(top.join("etc")).expect("tree");
    fs::write(top.join("etc/file"), "x").expect("file");
    std::os::unix::fs::chown(top.join("etc/file"), Some(7), Some(8)).expect("chown");
    good(world, &["import", "-q", "/home/tree", "g"]);
    let found = fs::metadata(tree("g").join("etc/file")).expect("file");
    assert_eq!((found.uid(), found.gid()), (BASE + 7, BASE + 8));
    // What she may not read stops the import.
    fs::write(top.join("etc/shadow"), "x").expect("file");
    fs::set_permissions(top.join("etc/shadow"), std::os::unix::fs::PermissionsExt::from_mode(0o000)).expect("chmod");
    refused(&run(world, &["import", "-q", "/home/tree", "h"]), 71, &["etc/shadow", "Permission denied"]);
    assert!(!Path::new(CONTAINERS).join("h").exists() && !Path::new(CONTAINERS).join(".h.partial").exists());
}

fn killed(world: &mut World) {
    let members: Vec<Member> = std::iter::once(dir("./"))
        .chain((0..3000).map(|at| file(format!("d{}/f{at}", at % 50), vec![b'x'; 3000]).owner(at % 100, 0)))
        .collect();
    let image = write("/home/alice/big.tar", archive(&members));
    let image = image.to_string_lossy().into_owned();
    let mut half_made = 0;
    for round in 0..12_u64 {
        let call = rootfs(world, &["import", "-q", &image, "c"]).start();
        std::thread::sleep(std::time::Duration::from_millis(5 + round * 12));
        let _ = kill(call.pid(), Signal::SIGKILL);
        drop(call);
        let left: Vec<String> = fs::read_dir(CONTAINERS)
            .map(|list| list.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        assert!(left.len() <= 1, "at most one thing: {left:?}");
        half_made += left.iter().filter(|name| *name == ".c.partial").count();
        if left == ["c"] {
            good(world, &["rm", "c"]);
        }
    }
    assert!(half_made >= 2, "some were killed half way ({half_made})");
    // The next import removes what is left, waiting for nobody: the children die with their parent.
    let settle = std::time::Instant::now();
    loop {
        let outcome = run(world, &["import", "-q", &image, "c"]);
        if outcome.code() == Some(75) && settle.elapsed().as_secs() < 10 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            continue;
        }
        outcome.assert_silent("the import after");
        break;
    }
    assert_eq!(snapshot(&tree("c"), &[]).len(), 3051);
    good(world, &["rm", "c"]);
    let call = rootfs(world, &["import", "-q", &image, "c"]).start();
    std::thread::sleep(std::time::Duration::from_millis(60));
    let _ = kill(call.pid(), Signal::SIGKILL);
    drop(call);
    std::thread::sleep(std::time::Duration::from_millis(300));
    good(world, &["prune"]);
    if Path::new(CONTAINERS).join("c").exists() {
        good(world, &["rm", "c"]);
    }
    nothing_left("prune");
}

fn interrupted(world: &mut World) {
    let members: Vec<Member> =
        std::iter::once(dir("./")).chain((0..4000).map(|at| file(format!("f{at}"), vec![b'x'; 3000]))).collect();
    let image = write("/home/alice/big.tar", archive(&members));
    let call = rootfs(world, &["import", "-q", &image.to_string_lossy(), "c"]).start();
    while !tree(".c.partial").join("f10").exists() && !tree("c").exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    kill(call.pid(), Signal::SIGTERM).expect("kill");
    let outcome = call.finish(world);
    if outcome.code() == Some(0) {
        world.ignore("the import was faster than the signal");
    }
    outcome.assert_code(143, "SIGTERM");
    nothing_left("an interrupted import");
}

fn locked(world: &mut World) {
    let bytes = archive(&system());
    let fifo = Path::new("/home/alice/fifo");
    nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::from_bits_truncate(0o666)).expect("mkfifo");
    std::os::unix::fs::chown(fifo, Some(ALICE.uid), Some(ALICE.gid)).expect("chown");
    // Open for both, so that neither end waits for the other.
    let write_end = File::options().read(true).write(true).open(fifo).expect("fifo");
    let running = rootfs(world, &["import", "-q", "/home/alice/fifo", "c"]).start();
    while !Path::new(CONTAINERS).join(".c.partial").exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let image = write("/home/alice/image.tar", &bytes);
    refused(&run(world, &["import", "-q", &image.to_string_lossy(), "c"]), 75, &["another import"]);
    let pruned = good(world, &["prune"]);
    assert_eq!(pruned.out(), "", "prune leaves what is being made");
    drop(write_end);
    running.finish(world).assert_code(65, "an empty pipe");
    nothing_left("an empty pipe");
}

fn places(world: &mut World) {
    use nix::mount::{MsFlags, mount};
    let image = write("/home/alice/image.tar", archive(&system()));
    let image = image.to_string_lossy().into_owned();
    for (flag, word) in [(MsFlags::MS_NOSUID, "nosuid"), (MsFlags::MS_NOEXEC, "noexec")] {
        let place = format!("/home/alice/{word}");
        write(Path::new(&place).join("x"), "");
        mount(Some("tmpfs"), place.as_str(), Some("tmpfs"), flag, Some("mode=777")).expect("tmpfs");
        refused(&run(world, &["import", "-q", &image, &format!("{place}/c")]), 69, &[word]);
        assert_eq!(fs::read_dir(&place).expect("place").count(), 0);
    }
    good(world, &["import", "-q", &image, "c"]);
    refused(&run(world, &["import", "-q", &image, "c"]), 65, &["exists already", "--replace"]);
    let other = write("/home/alice/other.tar", archive(&[dir("./"), file("only", "x")]));
    good(world, &["import", "-q", &other.to_string_lossy(), "c", "--replace"]);
    assert_eq!(snapshot(&tree("c"), &[]).len(), 2);
    assert_eq!(fs::read_dir(CONTAINERS).expect("containers").count(), 1, "the old one is gone");
    refused(&run(world, &["import", "-q", &image, "big", "--max-size", "3"]), 65, &["3 bytes allowed"]);
    refused(&run(world, &["import", "-q", "/etc/passwd", "x"]), 65, &["no tar archive"]);
    refused(&run(world, &["import", "-q", "/etc", "x"]), 65, &["no root file system"]);
    refused(&run(world, &["import", "-q", &image, "/run/x"]), 71, &["Permission denied"]);
    refused(&run(world, &["import", "-q", &image, ".."]), 64, &["container name"]);
    let list = good(world, &["ls"]);
    assert!(list.out().lines().nth(1).is_some_and(|line| line.starts_with("c  ")), "{}", list.out());
}

fn without_ids(world: &mut World) {
    let image = write("/home/alice/image.tar", archive(&system()));
    let image = image.to_string_lossy().into_owned();
    world.write("/etc/subgid", "");
    refused(
        &run(world, &["import", "-q", &image, "c"]),
        77,
        &["/etc/subgid grants alice nothing", "alice:START:65536"],
    );
    nothing_left("no ids");
    // Her own id alone, when she says so: no helper, and a file of anybody else refused.
    refused(&run(world, &["import", "-q", &image, "c", "--map", "self"]), 65, &["outside the map uids 0:1001:1"]);
    let small = write("/home/alice/small.tar", archive(&[dir("./"), file("f", "x").mode(0o4755)]));
    good(world, &["import", "-q", &small.to_string_lossy(), "c", "--map", "self"]);
    let found = fs::metadata(tree("c").join("f")).expect("f");
    assert_eq!((found.uid(), found.gid()), (ALICE.uid, ALICE.gid));
}

fn sparse(world: &mut World) {
    let mut content = vec![0_u8; 8 << 20];
    content[4 << 20] = 1;
    let image = write(
        "/home/alice/image.tar",
        archive(&[
            dir("./"),
            file("zeros", &content),
            file("map", "12345678").pax("GNU.sparse.size", (1_u64 << 30).to_string()).pax("GNU.sparse.map", "4096,8"),
        ]),
    );
    good(world, &["import", "-q", &image.to_string_lossy(), "c"]);
    let meta = |name: &str| fs::metadata(tree("c").join(name)).expect("there");
    assert_eq!((meta("zeros").len(), meta("map").len()), (8 << 20, 1 << 30));
    assert!(meta("zeros").blocks() * 512 <= 65536 && meta("map").blocks() * 512 <= 65536);
    good(world, &["export", "c", "/home/alice/out.tar"]);
    assert!(File::open("/home/alice/out.tar").and_then(|file| file.metadata()).expect("out").len() < 1 << 20);
    good(world, &["import", "-q", "/home/alice/out.tar", "d"]);
    assert_eq!(fs::read(tree("d").join("zeros")).expect("zeros"), content);
}

fn as_root_for_alice(world: &mut World) {
    world.needs_tool("/usr/bin/getfattr");
    let image = write("/home/alice/image.tar", archive(&system()));
    let outcome = crate::fixture::as_root(world, &["import", "-q", "--user", "alice", &image.to_string_lossy(), "c"]);
    outcome.assert_silent("root for alice, without any helper");
    check_system("c");
    for path in [CONTAINERS.to_owned(), format!("{CONTAINERS}/c"), format!("{CONTAINERS}/c/config")] {
        assert_eq!(fs::metadata(&path).expect("made").uid(), ALICE.uid, "{path}");
    }
    refused(&run(world, &["import", "-q", "--user", "bob", "x", "y"]), 77, &["only root"]);
    good(world, &["rm", "c"]);
}

/// skopeo turns what `rootfs export` wrote into each of its formats; every one of them imports as the same tree. umoci
/// unpacks it as root, and what it then has is the same as well.
fn by_skopeo_and_umoci(world: &mut World) {
    world.needs_tool("/usr/bin/skopeo");
    world.needs_tool("/usr/bin/umoci");
    let image = write("/home/alice/image.tar", archive(&system()));
    good(world, &["import", "-q", &image.to_string_lossy(), "c"]);
    let first = snapshot(&tree("c"), &[]);
    good(world, &["export", "c", "/home/alice/oci", "--format", "oci"]);
    world.write("/etc/policy.json", "{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}");
    let tool = |program: &str, args: &[&str]| {
        let output = Command::new(program)
            .args(args)
            .current_dir("/home/alice")
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", "/root")
            .env("TMPDIR", "/tmp")
            .output()
            .expect("start");
        assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let sources = ["oci-archive:a.tar", "docker-archive:b.tar:x:latest", "dir:d", "oci:e:latest"];
    for (to, file) in sources.into_iter().zip(["a.tar", "b.tar", "d", "e"]) {
        let mut words = vec!["--policy", "/etc/policy.json", "copy", "-q", "oci:oci:latest", to];
        if file == "e" {
            words.extend(["--dest-compress-format", "zstd"]);
        }
        tool("/usr/bin/skopeo", &words);
        tool("/bin/chmod", &["-R", "a+rX", file]);
        good(world, &["import", "-q", &format!("/home/alice/{file}"), "back"]);
        same(&first, &snapshot(&tree("back"), &[]), to);
        good(world, &["rm", "back"]);
    }
    tool("/usr/bin/umoci", &["unpack", "--image", "oci:latest", "/home/bundle"]);
    let mut theirs = snapshot(Path::new("/home/bundle/rootfs"), &[]);
    for entry in theirs.values_mut() {
        entry.owner = (entry.owner.0 + BASE, entry.owner.1 + BASE);
    }
    same(&first, &theirs, "umoci");
}

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once(
            "skopeo's formats import as the same tree, and umoci unpacks what was exported",
            by_skopeo_and_umoci,
        ),
        Trial::once(
            "every compression is found by content, and owners, modes and attributes are right",
            every_compression,
        ),
        Trial::once("an archive may come through a pipe", from_a_pipe),
        Trial::once(
            "OCI layouts and the three docker archives give the same tree, whiteouts obeyed",
            images_of_every_kind,
        ),
        Trial::once("a wrong digest is refused and leaves nothing behind", wrong_digests),
        Trial::once("an LXC image brings its configuration and templates", lxc_pair),
        Trial::once("an image of LXD or Incus gives the tree in it", unified),
        Trial::once("import after export gives the same tree", a_tree_and_back),
        Trial::once("an import that is killed leaves at most one partial directory, which goes away", killed),
        Trial::once("an import that is interrupted cleans up", interrupted),
        Trial::once("two imports of one name do not meet", locked),
        Trial::once("places and names that cannot hold a container are refused", places),
        Trial::once(
            "without subordinate ids the missing line is told, and one id is taken only on demand",
            without_ids,
        ),
        Trial::once("zeros become holes, and holes stay holes", sparse),
        Trial::once("root imports for a user without any helper", as_root_for_alice),
    ]
}
