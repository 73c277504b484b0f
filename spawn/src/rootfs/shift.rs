//! `rootfs shift`: changes the owners of a tree from one map to another, once for each file, however often it is
//! interrupted.
//!
//! chown(2) of owner and group is one step, so a file is either shifted or not, and its ids tell which: the two maps may
//! not share a host id. chown clears set-ID bits and the capability, and ACLs name ids of their own: what such a file
//! had is written to a record, and synced, before it is touched, so that the next run can finish it.

#![forbid(unsafe_code)]

use super::container::{Container, User};
use super::error::{Error, Result, TRY_AGAIN, USAGE, at, io_at, shown};
use super::map::{Map, PlainMap};
use super::namespace::{self, Ids};
use super::progress::Progress;
use super::root::{Identity, c_name, kind};
use super::unpack::{acl_with, capability_for};
use super::{sys, walk};
use helper::range::{Extent, IdKind};
use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Longest record in bytes.
const LONGEST_RECORD: u64 = 1 << 20;

/// What was done, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shifted {
    /// Files whose owner or group was changed.
    pub changed: u64,
    /// Files that had the new ids already.
    pub already: u64,
}

/// The record of a shift that is under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    from: PlainMap,
    to: PlainMap,
    /// The file that is being changed and cannot be told by its ids alone.
    pending: Option<Pending>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pending {
    path: Vec<u8>,
    inode: u64,
    mode: u32,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Which map a tree has now, told by the owner of its root directory.
///
/// # Errors
/// The tree has the new map already and needs nothing (not an error, `None`), or its owner tells nothing (65).
pub fn guess(rootfs: &Path, to: &Map, user: &User) -> Result<Option<Map>> {
    let found = std::fs::symlink_metadata(rootfs).map_err(io_at("stat", rootfs.display()))?;
    let (uid, gid) = (found.uid(), found.gid());
    if to.to_container(IdKind::Uid, uid) == Some(0) && to.to_container(IdKind::Gid, gid) == Some(0) {
        return Ok(None);
    }
    if uid == user.owner.uid() && uid != 0 {
        return Ok(Some(Map::single(uid, gid)));
    }
    // Of real root's tree the first 65536 ids; of another container's as many from its root on. Ids that belong to the
    // new map as well are no ids of the old one.
    Ok(Some(without(&Map::run(uid, gid, 65536), to)))
}

/// `map` without host ids of `other`.
fn without(map: &Map, other: &Map) -> Map {
    let cut = |kind: IdKind| -> Vec<Extent> {
        let mut pieces = Vec::new();
        for extent in map.of(kind) {
            let mut left: Vec<_> = extent.outside().into_iter().collect();
            for taken in other.host_ranges(kind) {
                left = left.into_iter().flat_map(|r| <[Option<_>; 2]>::from(r.minus(taken))).flatten().collect();
            }
            pieces.extend(left.into_iter().map(|range| Extent {
                inside: extent.inside.saturating_add(range.start().saturating_sub(extent.outside)),
                outside: range.start(),
                count: range.count(),
            }));
        }
        pieces
    };
    Map { uids: cut(IdKind::Uid), gids: cut(IdKind::Gid) }
}

/// The id that a file with the host id `id` has after the shift; `None` when neither map has it, or the new map lacks
/// its place.
fn moved(from: &Map, to: &Map, id_kind: IdKind, id: u32) -> Option<u32> {
    if to.to_container(id_kind, id).is_some() {
        return Some(id);
    }
    to.to_host(id_kind, from.to_container(id_kind, id)?)
}

fn overlap(from: &Map, to: &Map) -> bool {
    [IdKind::Uid, IdKind::Gid]
        .into_iter()
        .any(|kind| from.host_ranges(kind).iter().any(|a| to.host_ranges(kind).iter().any(|b| a.overlaps(*b))))
}

/// Shifts the tree of a container from one map to another.
///
/// # Errors
/// A file has an id that neither map knows, or hard links outside of the tree: nothing is changed then. The maps
/// overlap (64). Somebody is at work on the same tree (75). Root is needed (77).
pub fn shift(
    user: &User,
    container: &Container,
    from: Option<Map>,
    to: Option<Map>,
    dry_run: bool,
    quiet: bool,
) -> Result<Shifted> {
    let to = match to {
        Some(to) => to,
        None => container.settings()?.map()?.map_or_else(|| Map::whole(&user.owner), Ok)?,
    };
    let path = container.record("shifting");
    let record = read_record(&path)?;
    let from = match (&record, from) {
        (Some(record), given) => {
            let before = of_plain(&record.from)?;
            if given.as_ref().is_some_and(|given| *given != before) || of_plain(&record.to)? != to {
                let text = format!(
                    "a shift from {before} was interrupted here: finish it first (without --from, with the same map)"
                );
                return Err(Error::new(USAGE, text));
            }
            before
        }
        (None, Some(given)) => given,
        (None, None) => match guess(&container.rootfs, &to, user)? {
            Some(from) => from,
            None => Map { uids: Vec::new(), gids: Vec::new() },
        },
    };
    if overlap(&from, &to) {
        let text = format!(
            "the maps {from} and {to} share host ids, so a file would not tell whether it is shifted: go by a third range"
        );
        return Err(Error::new(USAGE, text));
    }
    let mut ids = Ids::of(&to)?;
    ids.add(&from);
    if !Uid::current().is_root() {
        may_touch(user, &from, &container.rootfs)?;
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let tree =
        nix::fcntl::open(&container.rootfs, flags, Mode::empty()).map_err(at("open", container.rootfs.display()))?;
    let lock = tree.try_clone().map_err(io_at("duplicate", "a descriptor"))?;
    let _lock = Flock::lock(File::from(lock), FlockArg::LockExclusiveNonblock)
        .map_err(|_| Error::new(TRY_AGAIN, format!("{} is being worked on by another process", container.name)))?;
    let out = if dry_run {
        None
    } else {
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        Some(file.map_err(io_at("create", path.display()))?)
    };
    let pending = record.and_then(|record| record.pending);
    let work = Work { from: &from, to: &to, tree: &tree, record: out, quiet };
    let result = namespace::run(&ids, || work.run(pending));
    if !dry_run && result.is_ok() {
        std::fs::remove_file(&path).map_err(io_at("remove", path.display()))?;
    }
    result
}

fn of_plain(plain: &PlainMap) -> Result<Map> {
    let mut map = Map::default();
    for (letter, list) in [('u', &plain.uids), ('g', &plain.gids)] {
        for [inside, outside, count] in list {
            map.add(&format!("{letter} {inside} {outside} {count}"))?;
        }
    }
    Ok(map)
}

fn read_record(path: &Path) -> Result<Option<Record>> {
    let text = match std::fs::metadata(path) {
        Err(_) => return Ok(None),
        Ok(found) if found.len() > LONGEST_RECORD => return Err(Error::data(format!("{}: too long", path.display()))),
        Ok(_) => std::fs::read(path).map_err(io_at("read", path.display()))?,
    };
    if text.iter().all(|byte| byte.is_ascii_whitespace() || *byte == 0) {
        return Ok(None);
    }
    // The last whole line counts: one that was cut off by a crash was not acted upon.
    let lines = text.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).next_back())
}

/// An ordinary user may only shift from ids that are granted to him.
fn may_touch(user: &User, from: &Map, rootfs: &Path) -> Result<()> {
    let own = [(IdKind::Uid, user.owner.uid()), (IdKind::Gid, user.gid)];
    let granted = Map::whole(&user.owner).unwrap_or_default();
    for (id_kind, self_id) in own {
        for range in from.host_ranges(id_kind) {
            let allowed = (range.count() == 1 && range.start() == self_id)
                || granted.host_ranges(id_kind).iter().any(|g| g.start() <= range.start() && range.end() <= g.end());
            if !allowed {
                let (word, name) = (id_kind.word(), user.owner.shown());
                let path = rootfs.display();
                let text = format!(
                    "the tree belongs to {word}s {range}, which are not yours to change: as root: rootfs shift --user {name} {path}"
                );
                return Err(Error::new(super::error::NOT_PERMITTED, text));
            }
        }
    }
    Ok(())
}

struct Work<'a> {
    from: &'a Map,
    to: &'a Map,
    tree: &'a OwnedFd,
    record: Option<File>,
    quiet: bool,
}

impl Work<'_> {
    fn run(&self, pending: Option<Pending>) -> Result<Shifted> {
        let mut done = self.look()?;
        let Some(record) = &self.record else { return Ok(done) };
        let total = done.changed;
        done.changed = 0;
        self.note(record, pending.as_ref())?;
        if let Some(pending) = pending {
            self.finish_interrupted(&pending)?;
        }
        let mut progress = Progress::new(self.quiet, None, Arc::new(AtomicU64::new(0)));
        walk::walk(self.tree, |visit| {
            // The root directory last: its owner is what tells at a glance.
            if visit.after == visit.path.is_empty() && self.one(record, visit)? {
                done.changed = done.changed.saturating_add(1);
                progress.tick(done.changed);
            }
            Ok(walk::Next::Enter)
        })?;
        progress.done();
        done.already = done.already.saturating_add(total.saturating_sub(done.changed));
        Ok(done)
    }

    fn target(&self, stat: &FileStat, path: &[u8]) -> Result<(u32, u32)> {
        let find = |id_kind: IdKind, id: u32| {
            moved(self.from, self.to, id_kind, id).ok_or_else(|| {
                let object = if path.is_empty() { "the root directory".to_owned() } else { shown(path) };
                let word = id_kind.word();
                let text = format!(
                    "{object} belongs to {word} {id}, which is neither in {} nor in {}: see --from",
                    self.from, self.to
                );
                Error::data(text)
            })
        };
        Ok((find(IdKind::Uid, stat.st_uid)?, find(IdKind::Gid, stat.st_gid)?))
    }

    /// Looks at every file before one is changed.
    fn look(&self) -> Result<Shifted> {
        let mut done = Shifted::default();
        let mut links: HashMap<Identity, (u64, u64, Vec<u8>)> = HashMap::new();
        walk::walk(self.tree, |visit| {
            if visit.after {
                return Ok(walk::Next::Enter);
            }
            let stat = &visit.stat;
            let changes = self.target(stat, visit.path)? != (stat.st_uid, stat.st_gid);
            let is_directory = kind(stat) == SFlag::S_IFDIR;
            let mut first = true;
            if !is_directory && stat.st_nlink > 1 && changes {
                #[expect(clippy::useless_conversion, reason = "nlink_t differs between architectures")]
                let wanted = u64::from(stat.st_nlink);
                let seen = links.entry(Identity::from(stat)).or_insert_with(|| (0, wanted, visit.path.to_vec()));
                seen.0 = seen.0.saturating_add(1);
                first = seen.0 == 1;
            }
            if first {
                let count = if changes { &mut done.changed } else { &mut done.already };
                *count = count.saturating_add(1);
            }
            Ok(walk::Next::Enter)
        })?;
        if let Some((seen, wanted, path)) = links.values().find(|(seen, wanted, _)| seen < wanted) {
            let text = format!(
                "{} has {wanted} names, but only {seen} in this tree: the others would change hands as well; copy the file first",
                shown(path)
            );
            return Err(Error::data(text));
        }
        Ok(done)
    }

    fn note(&self, record: &File, pending: Option<&Pending>) -> Result<()> {
        let line = Record { from: self.from.to_plain(), to: self.to.to_plain(), pending: pending.cloned() };
        let mut text = serde_json::to_vec(&line).map_err(|error| Error::new(70, error.to_string()))?;
        text.push(b'\n');
        let failed = || io_at("write", "the record of the shift");
        // The new line goes behind the old one, which is cut off only after it is safe.
        let end = record.metadata().map_err(failed())?.len();
        let end = if end > (64 << 10) { 0 } else { end };
        record.write_all_at(&text, end).map_err(failed())?;
        record.set_len(end.saturating_add(text.len() as u64)).map_err(failed())?;
        record.sync_data().map_err(failed())
    }

    /// Shifts one file; whether anything was to be done.
    fn one(&self, record: &File, visit: &walk::Visit<'_>) -> Result<bool> {
        // Of a hard link the other name may have been shifted since the directory was read, so it is looked at anew.
        let object = || shown(visit.path);
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(visit.directory, visit.name, flags, Mode::empty()).map_err(at("open", object()))?;
        let stat = fstat(&file).map_err(at("stat", object()))?;
        if Identity::from(&stat) != Identity::from(&visit.stat) {
            return Err(Error::new(TRY_AGAIN, format!("{} was replaced meanwhile", object())));
        }
        let (uid, gid) = self.target(&stat, visit.path)?;
        if (uid, gid) == (stat.st_uid, stat.st_gid) {
            return Ok(false);
        }
        let is_file = kind(&stat) == SFlag::S_IFREG;
        let mut attributes = Vec::new();
        let mut open = None;
        if is_file || kind(&stat) == SFlag::S_IFDIR {
            let file = reopen(visit.directory, visit.name, &stat, &object)?;
            for name in [&b"security.capability"[..], b"system.posix_acl_access", b"system.posix_acl_default"] {
                let c = c_name(name).map_err(at("read the attributes of", object()))?;
                if let Some(value) = sys::get_xattr(&file, &c).map_err(at("read the attributes of", object()))? {
                    attributes.push((name.to_vec(), value));
                }
            }
            open = Some(file);
        }
        let set_id = is_file && stat.st_mode & 0o6000 != 0;
        if let (Some(open), true) = (open, set_id || !attributes.is_empty()) {
            let mode = stat.st_mode & 0o7777;
            let pending = Pending { path: visit.path.to_vec(), inode: stat.st_ino, mode, attributes };
            self.note(record, Some(&pending))?;
            sys::chown_open(&file, uid, gid).map_err(at("chown", object()))?;
            self.restore(&open, &pending)?;
            self.note(record, None)?;
        } else {
            sys::chown_open(&file, uid, gid).map_err(at("chown", object()))?;
        }
        Ok(true)
    }

    /// Gives a file what chown(2) has taken, with the new ids.
    fn restore(&self, file: &OwnedFd, pending: &Pending) -> Result<()> {
        let object = || shown(&pending.path);
        fchmod(file, Mode::from_bits_truncate(pending.mode)).map_err(at("chmod", object()))?;
        let root = self.to.root()?.0;
        for (name, value) in &pending.attributes {
            let value = if name == b"security.capability" {
                capability_for(value, root)
            } else {
                acl_with(value, |kind, id| moved(self.from, self.to, kind, id))
            };
            let value =
                value.ok_or_else(|| Error::data(format!("{}: the attribute {} is damaged", object(), shown(name))))?;
            let c = c_name(name).map_err(at("set the attributes of", object()))?;
            sys::set_xattr(file, &c, &value).map_err(at("set the attributes of", object()))?;
        }
        Ok(())
    }

    /// The file in the record may have been changed or not; either way it is finished.
    fn finish_interrupted(&self, pending: &Pending) -> Result<()> {
        let copy = self.tree.try_clone().map_err(io_at("duplicate", "a descriptor"))?;
        let root = super::root::Root::new(copy).map_err(at("stat", "the tree"))?;
        if pending.path.is_empty() {
            let top = openat(self.tree, c".", walk::READ_DIRECTORY, Mode::empty())
                .map_err(at("open", "the root directory"))?;
            return self.restore_if_shifted(&top, pending);
        }
        let Ok((directory, name)) = root.parent(&pending.path) else { return Ok(()) };
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let Ok(file) = openat(&directory, name.as_c_str(), flags, Mode::empty()) else { return Ok(()) };
        self.restore_if_shifted(&file, pending)
    }

    fn restore_if_shifted(&self, file: &OwnedFd, pending: &Pending) -> Result<()> {
        let stat = fstat(file).map_err(at("stat", shown(&pending.path)))?;
        let shifted = self.target(&stat, &pending.path)? == (stat.st_uid, stat.st_gid);
        if stat.st_ino == pending.inode && shifted { self.restore(file, pending) } else { Ok(()) }
    }
}

fn reopen(directory: &OwnedFd, name: &CStr, stat: &FileStat, object: &impl Fn() -> String) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = openat(directory, name, flags, Mode::empty()).map_err(at("open", object()))?;
    let opened = fstat(&file).map_err(at("stat", object()))?;
    if Identity::from(&opened) == Identity::from(stat) {
        Ok(file)
    } else {
        Err(Error::new(TRY_AGAIN, format!("{} was replaced meanwhile", object())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_moved_once_and_never_twice() {
        let (from, to) = (Map::run(0, 0, 65536), Map::run(100_000, 200_000, 65536));
        assert_eq!(moved(&from, &to, IdKind::Uid, 27), Some(100_027));
        assert_eq!(moved(&from, &to, IdKind::Uid, 100_027), Some(100_027));
        assert_eq!(moved(&from, &to, IdKind::Gid, 27), Some(200_027));
        assert_eq!(moved(&from, &to, IdKind::Uid, 70_000), None);
        assert!(!overlap(&from, &to) && overlap(&from, &Map::run(5, 5, 1)));
    }

    #[test]
    fn ids_of_the_new_map_are_cut_out_of_the_guessed_old_one() {
        let cut = without(&Map::run(0, 0, 65536), &Map::run(1000, 1000, 10));
        assert_eq!(cut.to_container(IdKind::Uid, 999), Some(999));
        assert_eq!(cut.to_container(IdKind::Uid, 1005), None);
        assert_eq!(cut.to_container(IdKind::Uid, 1010), Some(1010));
    }

    #[test]
    fn the_last_whole_line_of_a_record_counts() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("r");
        assert!(read_record(&path).unwrap().is_none());
        let map = Map::run(0, 0, 1).to_plain();
        let line = |inode| {
            let pending = Some(Pending { path: b"x".to_vec(), inode, mode: 0o4755, attributes: Vec::new() });
            serde_json::to_string(&Record { from: map.clone(), to: map.clone(), pending }).unwrap()
        };
        std::fs::write(&path, format!("{}\n{}\n{}", line(1), line(2), &line(3)[..20])).unwrap();
        assert_eq!(read_record(&path).unwrap().unwrap().pending.unwrap().inode, 2);
    }
}
