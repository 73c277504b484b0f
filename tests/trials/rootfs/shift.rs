//! Changing the owners of a tree: once for each file, whatever interrupts it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use tests::{ALICE, Call, Trial, World, sys};

use crate::fixture::{BASE, as_root, good, mode_of, refused, run, snapshot};

/// A container directory of alice's with a tree that belongs to `base` and up, as `files` files.
fn made(base: u32, files: u32) -> PathBuf {
    let top = PathBuf::from("/home/alice/c");
    let rootfs = top.join("rootfs");
    fs::create_dir_all(rootfs.join("etc")).expect("tree");
    for at in 0..files {
        let path = rootfs.join(format!("etc/f{at}"));
        fs::write(&path, "x").expect("file");
        chown(&path, Some(base + at % 50), Some(base + at % 7)).expect("chown");
    }
    let su = rootfs.join("su");
    fs::write(&su, "su").expect("file");
    fs::hard_link(&su, rootfs.join("su2")).expect("link");
    chown(&su, Some(base), Some(base + 5)).expect("chown");
    fs::set_permissions(&su, fs::Permissions::from_mode(0o6755)).expect("chmod");
    let ping = rootfs.join("ping");
    fs::write(&ping, "ping").expect("file");
    chown(&ping, Some(base), Some(base)).expect("chown");
    sys::set_file_capabilities(&ping, &[13]).expect("capability");
    symlink("/etc/passwd", rootfs.join("link")).expect("link");
    lchown(rootfs.join("link"), Some(base + 3), Some(base + 4)).expect("chown");
    for directory in [rootfs.join("etc"), rootfs] {
        chown(directory, Some(base), Some(base)).expect("chown");
    }
    chown(&top, Some(ALICE.uid), Some(ALICE.gid)).expect("chown");
    top
}

fn check_shifted(top: &Path, files: u32) {
    let rootfs = top.join("rootfs");
    let owner = |path: &str| {
        let found = fs::symlink_metadata(rootfs.join(path)).expect(path);
        (found.uid(), found.gid())
    };
    assert_eq!(owner("."), (BASE, BASE));
    assert_eq!((owner("su"), mode_of(&rootfs.join("su2"))), ((BASE, BASE + 5), 0o6755));
    assert_eq!(owner("link"), (BASE + 3, BASE + 4));
    for at in 0..files {
        assert_eq!(owner(&format!("etc/f{at}")), (BASE + at % 50, BASE + at % 7), "etc/f{at}");
    }
    let out = std::process::Command::new("/usr/bin/getfattr")
        .args(["--only-values", "-n", "security.capability"])
        .arg(rootfs.join("ping"))
        .output()
        .expect("getfattr");
    assert_eq!(out.stdout.get(20..24), Some(&BASE.to_le_bytes()[..]), "the capability belongs to the new root");
    assert!(!top.join("shifting.json").exists());
}

fn by_root(world: &mut World) {
    world.needs_tool("/usr/bin/getfattr");
    let top = made(0, 100);
    let passwd = fs::metadata("/etc/passwd").expect("passwd").uid();
    refused(&run(world, &["shift", &top.to_string_lossy()]), 77, &["not yours", "rootfs shift --user alice"]);
    let words = ["shift", "-q", "--user", "alice", &top.to_string_lossy()];
    let before = snapshot(&top.join("rootfs"), &[]);
    as_root(world, &[&words[..], &["--dry-run"]].concat()).assert_silent("dry run");
    assert!(before == snapshot(&top.join("rootfs"), &[]), "a dry run changes nothing");
    as_root(world, &words).assert_silent("shift");
    check_shifted(&top, 100);
    let shifted = snapshot(&top.join("rootfs"), &[]);
    as_root(world, &words).assert_silent("again");
    assert!(shifted == snapshot(&top.join("rootfs"), &[]), "nothing is shifted twice");
    assert_eq!(fs::metadata("/etc/passwd").expect("passwd").uid(), passwd, "a link is not followed");
    // Back to the host's own ids.
    as_root(world, &["shift", "-q", "--user", "alice", "--to", "identity", &top.to_string_lossy()])
        .assert_silent("back");
    assert_eq!(fs::metadata(top.join("rootfs/etc/f3")).expect("f3").uid(), 3);
}

fn by_herself(world: &mut World) {
    world.needs_tool("/usr/bin/getfattr");
    world.write("/etc/subuid", "alice:100000:65536\nalice:400000:65536\n");
    world.write("/etc/subgid", "alice:100000:65536\nalice:400000:65536\n");
    let top = made(400_000, 40);
    fs::write(top.join("config"), "lxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 100000 65536\n").expect("config");
    good(world, &["shift", "-q", &top.to_string_lossy()]);
    check_shifted(&top, 40);
}

fn mixed(world: &mut World) {
    let top = made(0, 20);
    chown(top.join("rootfs/etc/f7"), Some(300_000), Some(0)).expect("chown");
    let words = ["shift", "-q", "--user", "alice", &top.to_string_lossy()];
    // Of an id that is in neither map root's namespace has no name: it shows as 65534, which is in the old one. The
    // kernel refuses to change it.
    let outcome = as_root(world, &words);
    assert_ne!(outcome.code(), Some(0));
    assert_eq!(fs::metadata(top.join("rootfs/etc/f7")).expect("f7").uid(), 300_000);
    chown(top.join("rootfs/etc/f7"), Some(7), Some(0)).expect("chown");
    as_root(world, &words).assert_silent("after the cure");
}

fn outside_link(world: &mut World) {
    let top = made(0, 20);
    fs::hard_link(top.join("rootfs/etc/f3"), "/home/kept").expect("link");
    let outcome = as_root(world, &["shift", "-q", "--user", "alice", &top.to_string_lossy()]);
    refused(&outcome, 65, &["2 names", "only 1 in this tree"]);
    assert_eq!(fs::metadata("/home/kept").expect("kept").uid(), 3);
    assert_eq!(fs::metadata(top.join("rootfs/etc/f4")).expect("f4").uid(), 4, "nothing was changed");
}

fn interrupted(world: &mut World) {
    world.needs_tool("/usr/bin/getfattr");
    let program = world.program("rootfs");
    let top = made(0, 3000);
    // Many files whose set-ID bits chown takes away.
    for at in 0..400 {
        fs::set_permissions(top.join(format!("rootfs/etc/f{at}")), fs::Permissions::from_mode(0o4711)).expect("chmod");
    }
    let words = ["shift", "-q", "--user", "alice", "/home/alice/c"];
    let mut partial = 0;
    for round in 0..15_u64 {
        let call = Call::new(&program).env("HOME", "/root").args(words).start();
        std::thread::sleep(Duration::from_millis(3 + round * 4));
        let _ = kill(call.pid(), Signal::SIGKILL);
        drop(call);
        partial += u32::from(top.join("shifting.json").exists());
    }
    assert!(partial >= 2, "some runs were killed half way ({partial})");
    std::thread::sleep(Duration::from_millis(100));
    as_root(world, &words).assert_code(0, "the run that finishes");
    check_shifted(&top, 3000);
    for at in 0..400 {
        assert_eq!(mode_of(&top.join(format!("rootfs/etc/f{at}"))), 0o4711, "f{at}");
    }
}

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once("root shifts a root-owned tree to a user's ids, once", by_root),
        Trial::once("a user shifts between ranges of his own", by_herself),
        Trial::once("a file of foreign ids stops a shift and stays what it is", mixed),
        Trial::once("a hard link to a file outside stops a shift", outside_link),
        Trial::once("a shift that is killed goes on where it was, and loses no set-ID bit", interrupted),
    ]
}
