//! Calls of rootfs as alice, and snapshots of trees.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use tests::{ALICE, Call, Kind, Outcome, World};

/// Where her containers are.
pub const CONTAINERS: &str = "/home/alice/.local/share/spawn";

/// First subordinate id of hers.
pub const BASE: u32 = 100_000;

/// Installs rootfs and the map writers, and gives a call of it.
pub fn rootfs(world: &mut World, words: &[&str]) -> Call {
    for kind in Kind::BOTH {
        let _ = world.program(kind.program());
    }
    let program = world.program("rootfs");
    Call::new(program).user(ALICE).env("HOME", "/home/alice").args(words)
}

/// Runs it.
pub fn run(world: &mut World, words: &[&str]) -> Outcome {
    rootfs(world, words).run(world)
}

/// Runs it and expects success.
#[track_caller]
pub fn good(world: &mut World, words: &[&str]) -> Outcome {
    let outcome = run(world, words);
    outcome.assert_code(0, &words.join(" "));
    outcome
}

/// Runs it as root.
pub fn as_root(world: &mut World, words: &[&str]) -> Outcome {
    let program = world.program("rootfs");
    Call::new(program).env("HOME", "/root").args(words).run(world)
}

/// It failed with `code` and one line that holds each of `words`.
#[track_caller]
pub fn refused(outcome: &Outcome, code: i32, words: &[&str]) {
    outcome.assert_code(code, "refused");
    let text = outcome.text();
    assert!(text.starts_with("rootfs: ") && text.matches('\n').count() == 1, "one line: {}", text.escape_debug());
    assert!(!text.trim_end().contains(|c: char| c.is_control()), "{}", text.escape_debug());
    for word in words {
        assert!(text.contains(word), "\"{word}\" is not in: {text}");
    }
}

/// A file of alice's.
pub fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
    let path = path.as_ref();
    if let Some(above) = path.parent() {
        let mut missing: Vec<&Path> = above.ancestors().take_while(|above| !above.exists()).collect();
        missing.reverse();
        for directory in missing {
            fs::create_dir(directory).expect("directory");
            chown(directory, Some(ALICE.uid), Some(ALICE.gid)).expect("chown");
        }
    }
    fs::write(path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    chown(path, Some(ALICE.uid), Some(ALICE.gid)).expect("chown");
    path.to_owned()
}

/// The rootfs of a container of hers.
pub fn tree(name: &str) -> PathBuf {
    Path::new(CONTAINERS).join(name).join("rootfs")
}

/// One file: type and mode, owner, group, size, times, link text or content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub mode: u32,
    pub owner: (u32, u32),
    pub links: u64,
    pub mtime: (i64, i64),
    pub content: Vec<u8>,
}

/// Everything below a directory but what `skip` names (paths from there on). Directories' sizes and link counts left out.
pub fn snapshot(top: &Path, skip: &[&str]) -> BTreeMap<PathBuf, Entry> {
    let mut all = BTreeMap::new();
    let mut queue = vec![top.to_owned()];
    while let Some(path) = queue.pop() {
        let relative = path.strip_prefix(top).expect("below").to_owned();
        if skip.iter().any(|skipped| relative == Path::new(skipped)) {
            continue;
        }
        let found = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let kind = found.file_type();
        let content = if kind.is_symlink() {
            fs::read_link(&path).expect("link").into_os_string().into_encoded_bytes()
        } else if kind.is_file() {
            fs::read(&path).expect("file")
        } else {
            Vec::new()
        };
        if kind.is_dir() {
            queue.extend(fs::read_dir(&path).expect("directory").map(|entry| entry.expect("entry").path()));
        }
        let links = if kind.is_dir() { 1 } else { found.nlink() };
        let entry = Entry {
            mode: found.mode(),
            owner: (found.uid(), found.gid()),
            links,
            mtime: (found.mtime(), found.mtime_nsec()),
            content,
        };
        all.insert(relative, entry);
    }
    all
}

/// Two snapshots are equal; else the first differences are shown.
#[track_caller]
pub fn same(a: &BTreeMap<PathBuf, Entry>, b: &BTreeMap<PathBuf, Entry>, why: &str) {
    let mut differences = Vec::new();
    for path in a.keys().chain(b.keys()) {
        let (one, other) = (a.get(path), b.get(path));
        if one != other {
            let short = |entry: Option<&Entry>| {
                entry.map(|e| {
                    format!(
                        "{:o} {:?} links {} mtime {:?} {} bytes",
                        e.mode,
                        e.owner,
                        e.links,
                        e.mtime,
                        e.content.len()
                    )
                })
            };
            differences.push(format!("{}: {:?} / {:?}", path.display(), short(one), short(other)));
        }
    }
    differences.dedup();
    assert!(differences.is_empty(), "{why}: {}", differences[..differences.len().min(8)].join("\n"));
}

/// Nothing half made is left in her directory.
#[track_caller]
pub fn nothing_left(why: &str) {
    let left: Vec<PathBuf> = fs::read_dir(CONTAINERS)
        .map(|list| list.map(|entry| entry.expect("entry").path()).collect())
        .unwrap_or_default();
    assert!(left.is_empty(), "{why}: {left:?}");
}

/// Mode bits of a file.
pub fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode()
        & 0o7777
}
