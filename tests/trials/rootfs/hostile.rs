//! Hostile archives, each once with openat2(2) and once without: they end in the rootfs or in a refusal, and nothing
//! outside is created, changed or touched.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tests::{Trial, World, sys};

use crate::fixture::{CONTAINERS, Entry, nothing_left, rootfs, same, snapshot, tree, write};
use crate::tar::{Member, archive, dir, file, hard, link, other};

enum End {
    /// Refused, with these words in the message; nothing is left behind.
    Refused(&'static [&'static str]),
    /// Unpacked, and this is true of the tree.
    Confined(fn(&Path)),
}

use End::{Confined, Refused};

struct Case {
    name: &'static str,
    bytes: fn() -> Vec<u8>,
    end: End,
}

fn of(members: &[Member]) -> Vec<u8> {
    archive(&[&[dir("./")], members].concat())
}

const SECRET: &str = "/home/alice/victim/secret";

fn is(path: &Path, content: &str) {
    assert!(fs::symlink_metadata(path).expect("there").is_file(), "{}", path.display());
    assert_eq!(fs::read_to_string(path).expect("there"), content, "{}", path.display());
}

fn cases() -> Vec<Case> {
    let case = |name, bytes, end| Case { name, bytes, end };
    vec![
        case("a name with ..", || of(&[file("../evil", "x")]), Refused(&["\"..\"", "../evil"])),
        case("a name with .. in the middle", || of(&[dir("a"), file("a/../../evil", "x")]), Refused(&["\"..\""])),
        case(
            "an absolute name",
            || of(&[file("/home/alice/victim/new", "x")]),
            Confined(|tree| {
                is(&tree.join("home/alice/victim/new"), "x");
            }),
        ),
        case(
            "an absolute directory",
            || of(&[dir("/home/alice/victim").mode(0o777)]),
            Confined(|tree| {
                assert!(tree.join("home/alice/victim").is_dir());
            }),
        ),
        case(
            "a file below an absolute link",
            || of(&[link("out", "/home/alice/victim"), file("out/new", "x")]),
            Confined(|tree| {
                is(&tree.join("home/alice/victim/new"), "x");
            }),
        ),
        case(
            "a file below a relative link",
            || of(&[link("out", "../../../../../../victim"), file("out/new", "x")]),
            Confined(|tree| {
                is(&tree.join("victim/new"), "x");
            }),
        ),
        case(
            "a file below a chain of links",
            || of(&[link("a", "b"), link("b", "c/../.."), link("c", "/"), dir("d"), file("a/new", "x")]),
            Confined(|tree| {
                is(&tree.join("new"), "x");
            }),
        ),
        case(
            "a link to a file, then a file of that name",
            || of(&[link("f", SECRET), file("f", "mine")]),
            Confined(|tree| {
                is(&tree.join("f"), "mine");
            }),
        ),
        case(
            "a link to a directory, then a directory of that name",
            || of(&[link("d", "/home/alice/victim"), dir("d").mode(0o777), file("d/new", "x")]),
            Confined(|tree| {
                assert!(fs::symlink_metadata(tree.join("d")).expect("d").is_dir());
                is(&tree.join("d/new"), "x");
            }),
        ),
        case(
            "a change of mode and owner through a link",
            || of(&[link("f", SECRET), link("f", SECRET).mode(0o4777).owner(5, 5)]),
            Confined(|tree| {
                let found = fs::symlink_metadata(tree.join("f")).expect("f");
                assert!(found.is_symlink() && found.uid() == 100_005);
            }),
        ),
        case(
            "a hard link to an absolute path",
            || of(&[hard("h", SECRET)]),
            Refused(&["is a hard link to", "not in the archive"]),
        ),
        case("a hard link with ..", || of(&[hard("h", "../../../../home/alice/victim/secret")]), Refused(&["\"..\""])),
        case(
            "a hard link through a link",
            || of(&[link("out", "/home/alice/victim"), hard("h", "out/secret")]),
            Refused(&["not in the archive"]),
        ),
        case(
            "a hard link to a link, then an overwrite",
            || of(&[link("l", SECRET), hard("h", "l"), file("h", "mine")]),
            Confined(|tree| {
                is(&tree.join("h"), "mine");
                assert!(fs::symlink_metadata(tree.join("l")).expect("l").is_symlink());
            }),
        ),
        case(
            "a hard link, then an overwrite of one name",
            || of(&[file("a", "one"), hard("b", "a"), file("b", "two")]),
            Confined(|tree| {
                is(&tree.join("a"), "one");
                is(&tree.join("b"), "two");
            }),
        ),
        case("a hard link to a directory", || of(&[dir("d"), hard("h", "d")]), Refused(&["which is a directory"])),
        case("a hard link to itself", || of(&[hard("h", "h")]), Refused(&["not in the archive"])),
        case(
            "a hard link over the directory of its target",
            || of(&[dir("d"), file("d/f", "x"), hard("d", "d/f")]),
            Refused(&["its own target"]),
        ),
        case("a hard link to the root", || of(&[hard("h", "./")]), Refused(&["root directory"])),
        case(
            "a target that comes later",
            || of(&[hard("h", "f"), file("f", "x")]),
            Confined(|tree| {
                let inode = |name| fs::metadata(tree.join(name)).expect("there").ino();
                assert_eq!(inode("h"), inode("f"));
            }),
        ),
        case("a loop of links", || of(&[link("a", "b"), link("b", "a"), file("a/x", "x")]), Refused(&["loop"])),
        case(
            "forty-one links in a row",
            || {
                let mut members: Vec<Member> =
                    (0..41).map(|at| link(format!("l{at}"), format!("l{}", at + 1))).collect();
                members.extend([dir("l41"), file("l0/x", "x")]);
                of(&members)
            },
            Refused(&["loop"]),
        ),
        case(
            "a device over a name",
            || of(&[file("dev", "x"), other("dev", b'3')]),
            Confined(|tree| {
                assert!(!tree.join("dev").exists());
            }),
        ),
        case(
            "a FIFO where a file is written",
            || of(&[other("p", b'6'), file("p", "mine")]),
            Confined(|tree| {
                is(&tree.join("p"), "mine");
            }),
        ),
        case("a file below a FIFO", || of(&[other("p", b'6'), file("p/x", "x")]), Refused(&["no directory"])),
        case("a file below a file", || of(&[file("f", "x"), file("f/x", "x")]), Refused(&["no directory"])),
        case(
            "a file over a directory with content",
            || of(&[dir("d"), file("d/a", "x"), file("d", "mine")]),
            Confined(|tree| {
                is(&tree.join("d"), "mine");
            }),
        ),
        case(
            "a directory swapped for a link between its files",
            || of(&[dir("d"), file("d/a", "x"), link("d", "/home/alice/victim"), file("d/b", "y")]),
            Confined(|tree| {
                is(&tree.join("home/alice/victim/b"), "y");
            }),
        ),
        case(
            "a link swapped for a directory between its files",
            || of(&[link("d", "e"), file("d/a", "x"), dir("d"), file("d/b", "y")]),
            Confined(|tree| {
                is(&tree.join("e/a"), "x");
                is(&tree.join("d/b"), "y");
            }),
        ),
        case(
            "a size of one tebibyte",
            || archive(&[dir("./"), file("bomb", "x").size(1 << 40)]),
            Refused(&["ends within"]),
        ),
        case(
            "a size of eight exbibytes",
            || archive(&[dir("./"), file("bomb", "x").size(u64::MAX >> 1)]),
            Refused(&["ends within"]),
        ),
        case(
            "a pax size that hides a member",
            || of(&[file("f", "").pax("size", "512").data(file("../evil", "").bytes())]),
            Confined(|tree| {
                assert_eq!(fs::metadata(tree.join("f")).expect("f").len(), 512);
                assert!(!tree.join("evil").exists());
            }),
        ),
        case(
            "an extended header of one tebibyte",
            || archive(&[other("x", b'x').size(1 << 40)]),
            Refused(&["make sense"]),
        ),
        case(
            "a name of 64 KiB in pax",
            || of(&[file("x", "").pax("path", vec![b'n'; 65536])]),
            Refused(&["65536 bytes"]),
        ),
        case(
            "a name of 64 KiB as GNU writes it",
            || of(&[other("././@LongLink", b'L').data(vec![b'n'; 65536]), file("x", "")]),
            Refused(&["65536 bytes"]),
        ),
        case("a component of 300 bytes", || of(&[file(vec![b'n'; 300], "")]), Refused(&["300 bytes"])),
        case("a path of two thousand directories", || of(&[file("d/".repeat(2000) + "f", "x")]), Confined(|_| ())),
        case("a NUL in a pax name", || of(&[file("x", "").pax("path", b"a\0b")]), Refused(&["NUL"])),
        case(
            "control characters in a name",
            || of(&[file("a\n\x1b[31mrootfs: done", "x")]),
            Confined(|tree| {
                is(&tree.join("a\n\x1b[31mrootfs: done"), "x");
            }),
        ),
        case(
            "control characters in a refused name",
            || of(&[file("../a\nrootfs: all is well\x1b[0m", "x")]),
            Refused(&["\\n"]),
        ),
        case(
            "an id that means no id",
            || of(&[file("f", "x").owner(u64::from(u32::MAX), 0)]),
            Refused(&["4294967295", "no id"]),
        ),
        case(
            "an id outside the map",
            || of(&[file("etc/f", "x").owner(0, 65536)]),
            Refused(&["etc/f", "gid 65536", "outside the map"]),
        ),
        case("an id of 64 bits", || of(&[file("f", "x").owner(1 << 33, 0)]), Refused(&["outside the map"])),
        case(
            "her own id on the host",
            || of(&[file("f", "x").owner(1001, 1101)]),
            Confined(|tree| {
                assert_eq!(fs::metadata(tree.join("f")).expect("f").uid(), 101_001);
            }),
        ),
        case(
            "a wrong checksum",
            || {
                let mut bytes = of(&[file("f", "x")]);
                bytes[512 + 3] ^= 1;
                bytes
            },
            Refused(&["byte 512", "checksum"]),
        ),
        case(
            "an archive cut off in a member",
            || of(&[file("f", vec![b'x'; 5000])])[..2048].to_vec(),
            Refused(&["byte 2048", "ends within"]),
        ),
        case(
            "the root as a link",
            || archive(&[link("./", "/home/alice/victim"), file("new", "x")]),
            Refused(&["root directory"]),
        ),
        case("an empty name", || of(&[file("", "x")]), Refused(&["without a name"])),
        case("a type of another world", || of(&[other("f", b'Z')]), Refused(&["'Z'"])),
        case(
            "a capability that is none",
            || of(&[file("f", "x").pax("SCHILY.xattr.security.capability", "x")]),
            Refused(&["security.capability"]),
        ),
        case(
            "sparse extents beyond the file",
            || of(&[file("s", "12345678").pax("GNU.sparse.size", "4").pax("GNU.sparse.map", "0,8")]),
            Refused(&["sparse"]),
        ),
        case(
            "sparse extents backwards",
            || of(&[file("s", "12345678").pax("GNU.sparse.size", "99").pax("GNU.sparse.map", "50,4,0,4")]),
            Refused(&["sparse"]),
        ),
        case(
            "attributes that are not an image's business",
            || {
                of(&[file("f", "x")
                    .pax("SCHILY.xattr.trusted.overlay.opaque", "y")
                    .pax("SCHILY.xattr.security.selinux", "u:r:t")
                    .pax("SCHILY.xattr.system.posix_acl_access", "x")])
            },
            Confined(|tree| is(&tree.join("f"), "x")),
        ),
    ]
}

fn outside() -> BTreeMap<PathBuf, Entry> {
    let mut all = snapshot(Path::new("/home"), &["alice/.local", "alice/hostile.tar"]);
    all.extend(snapshot(Path::new("/etc"), &[]));
    // The times of her home change with her own files.
    all.get_mut(Path::new("alice")).expect("home").mtime = (0, 0);
    all
}

/// Runs one case; `walking`: without openat2.
fn run(world: &mut World, case: &Case, walking: bool) {
    write(SECRET, "outside");
    let image = write("/home/alice/hostile.tar", (case.bytes)());
    let before = outside();
    let mut call = rootfs(world, &["import", "-q", &image.to_string_lossy(), "c"]);
    if walking {
        call = call.as_root(|| {
            sys::without_system_call(libc::SYS_openat2, libc::ENOSYS).expect("seccomp");
        });
    }
    let outcome = call.run(world);
    match &case.end {
        Refused(words) => {
            crate::fixture::refused(&outcome, 65, words);
            nothing_left(case.name);
        }
        Confined(test) => {
            outcome.assert_code(0, case.name);
            test(&tree("c"));
        }
    }
    same(&before, &outside(), case.name);
    // What any archive has left, rm removes.
    if matches!(case.end, Confined(_)) {
        let outcome = rootfs(world, &["rm", "c"]).run(world);
        outcome.assert_code(0, "rm");
        nothing_left(case.name);
    }
    assert!(fs::symlink_metadata(CONTAINERS).is_ok());
}

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for index in 0..cases().len() {
        for walking in [false, true] {
            let name = cases()[index].name;
            let way = if walking { "without openat2" } else { "openat2" };
            trials.push(Trial::once(format!("hostile archive, {way}: {name}"), move |world| {
                run(world, &cases()[index], walking);
            }));
        }
    }
    trials
}
