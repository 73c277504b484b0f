//! Visits every file of a tree, however deep, without following links and with few descriptors.

#![forbid(unsafe_code)]

use super::error::{Error, Result, at, shown};
use super::root::{Identity, kind};
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

/// Descriptors held open at most; directories above are opened again by `..`.
const MOST_OPEN: usize = 64;

/// Opens a directory for reading without following a link.
pub const READ_DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK);

/// What the visitor is shown.
#[derive(Debug)]
pub struct Visit<'a> {
    /// The directory that holds the file.
    pub directory: &'a OwnedFd,
    /// The file's name in it; `.` for the root of the tree.
    pub name: &'a CStr,
    /// The path from the root of the tree on, without a leading slash; empty for the root.
    pub path: &'a [u8],
    /// What the file is; a link is not followed.
    pub stat: FileStat,
    /// Whether this is a directory whose content has been visited.
    pub after: bool,
}

/// What to do with a directory that is shown before its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Visit its content.
    Enter,
    /// Leave it out.
    Skip,
}

struct Frame {
    fd: Option<OwnedFd>,
    identity: Identity,
    stat: FileStat,
    names: VecDeque<CString>,
    path_length: usize,
    name: CString,
}

/// Names in a directory, `.` and `..` left out, sorted: so that the same tree always gives the same order.
///
/// # Errors
/// The directory cannot be read.
pub fn names(directory: &OwnedFd) -> core::result::Result<VecDeque<CString>, Errno> {
    // A description of its own, so that the position is nobody else's.
    let copy = openat(directory, c".", READ_DIRECTORY, Mode::empty())?;
    let mut names: Vec<CString> = Vec::new();
    for entry in Dir::from_fd(copy)?.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names.into())
}

/// Visits `root` (as `.`) and everything below, directories before their content and again after it. Other file systems
/// mounted below are shown but not entered.
///
/// # Errors
/// What `visit` says, or a directory cannot be read. A file that vanishes meanwhile is left out.
pub fn walk(root: &OwnedFd, mut visit: impl FnMut(&Visit<'_>) -> Result<Next>) -> Result<()> {
    let stat = fstat(root).map_err(at("stat", "the root of the tree"))?;
    let device = stat.st_dev;
    let whole = Visit { directory: root, name: c".", path: b"", stat, after: false };
    if visit(&whole)? == Next::Skip {
        return Ok(());
    }
    let mut path: Vec<u8> = Vec::new();
    let top = openat(root, c".", READ_DIRECTORY, Mode::empty()).map_err(at("open", "the root of the tree"))?;
    let first = names(&top).map_err(at("read", "the root of the tree"))?;
    let mut stack = vec![Frame {
        fd: Some(top),
        identity: Identity::from(&stat),
        stat,
        names: first,
        path_length: 0,
        name: c".".to_owned(),
    }];
    while let Some(frame) = stack.last_mut() {
        path.truncate(frame.path_length);
        let Some(name) = frame.names.pop_front() else {
            let Some(done) = stack.pop() else { break };
            let Some(above) = stack.last_mut() else {
                visit(&Visit { directory: root, name: c".", path: b"", stat: done.stat, after: true })?;
                break;
            };
            if above.fd.is_none() {
                let child = done.fd.as_ref().ok_or_else(|| Error::new(70, "walk: descriptor lost"))?;
                above.fd = Some(reopen(child, above.identity, &path)?);
            }
            if let Some(directory) = &above.fd {
                visit(&Visit { directory, name: &done.name, path: &path, stat: done.stat, after: true })?;
            }
            continue;
        };
        let Some(directory) = &frame.fd else { return Err(Error::new(70, "walk: descriptor lost")) };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        let stat = match fstatat(directory, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => continue,
            other => other.map_err(at("stat", shown(&path)))?,
        };
        let next = visit(&Visit { directory, name: &name, path: &path, stat, after: false })?;
        if kind(&stat) != SFlag::S_IFDIR || next == Next::Skip || stat.st_dev != device {
            continue;
        }
        let fd = openat(directory, name.as_c_str(), READ_DIRECTORY, Mode::empty()).map_err(at("open", shown(&path)))?;
        let opened = fstat(&fd).map_err(at("stat", shown(&path)))?;
        if Identity::from(&opened) != Identity::from(&stat) {
            return Err(Error::new(75, format!("{} was replaced while it was being read", shown(&path))));
        }
        let names = names(&fd).map_err(at("read", shown(&path)))?;
        let identity = Identity::from(&stat);
        stack.push(Frame { fd: Some(fd), identity, stat, names, path_length: path.len(), name });
        let depth = stack.len();
        if depth > MOST_OPEN
            && let Some(old) = stack.get_mut(depth.saturating_sub(MOST_OPEN).saturating_sub(1))
        {
            old.fd = None;
        }
    }
    Ok(())
}

fn reopen(child: &OwnedFd, wanted: Identity, path: &[u8]) -> Result<OwnedFd> {
    let flags = READ_DIRECTORY.difference(OFlag::O_NOFOLLOW);
    let fd = openat(child, c"..", flags, Mode::empty()).map_err(at("open the directory above", shown(path)))?;
    let is = Identity::from(&fstat(&fd).map_err(at("stat the directory above", shown(path)))?);
    if is == wanted {
        Ok(fd)
    } else {
        Err(Error::new(75, format!("{} was moved while it was being read", shown(path))))
    }
}

/// Removes everything in `top`, which stays. Deep trees are flattened on the way: a directory that is not empty has its
/// directories moved up into `top`, so that depth costs neither descriptors nor stack.
///
/// # Errors
/// Something cannot be removed. Mount points are never entered.
pub fn empty(top: &OwnedFd) -> Result<()> {
    let device = fstat(top).map_err(at("stat", "the tree to remove"))?.st_dev;
    let mut serial = 0_u64;
    loop {
        let mut left = false;
        let copy = openat(top, c".", READ_DIRECTORY, Mode::empty()).map_err(at("open", "the tree to remove"))?;
        let mut list = Dir::from_fd(copy).map_err(at("read", "the tree to remove"))?;
        let entries: Vec<(CString, Option<Type>)> = list
            .iter()
            .filter_map(core::result::Result::ok)
            .map(|entry| (entry.file_name().to_owned(), entry.file_type()))
            .filter(|(name, _)| name.as_c_str() != c"." && name.as_c_str() != c"..")
            .collect();
        for (name, _) in entries {
            left = true;
            remove_or_flatten(top, top, &name, device, &mut serial)?;
        }
        if !left {
            return Ok(());
        }
    }
}

fn remove_or_flatten(top: &OwnedFd, directory: &OwnedFd, name: &CStr, device: u64, serial: &mut u64) -> Result<()> {
    let failed = |errno| Error::system("remove", shown(name.to_bytes()), Errno::from_raw(errno as i32));
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        // EPERM is POSIX's answer for a directory; Linux says EISDIR.
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(errno) => return Err(failed(errno)),
    }
    match unlinkat(directory, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let inner = openat(directory, name, READ_DIRECTORY, Mode::empty()).map_err(failed)?;
    if fstat(&inner).map_err(failed)?.st_dev != device {
        return Err(Error::new(
            71,
            format!("remove {}: another file system is mounted there: unmount it first", shown(name.to_bytes())),
        ));
    }
    for child in names(&inner).map_err(failed)? {
        match unlinkat(&inner, child.as_c_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => continue,
            Err(Errno::EISDIR | Errno::EPERM) => {}
            Err(errno) => return Err(failed(errno)),
        }
        match unlinkat(&inner, child.as_c_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => continue,
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
            Err(errno) => return Err(failed(errno)),
        }
        loop {
            *serial = serial.saturating_add(1);
            let aside = CString::new(format!(".removing.{serial}")).unwrap_or_default();
            match super::sys::rename((&inner, &child), (top.as_fd(), &aside), libc::RENAME_NOREPLACE) {
                Ok(true) => break,
                Ok(false) => {
                    // A file system without the flag: the name is ours but for a file of the tree itself, which a plain
                    // rename could only replace when it is an empty directory, to be removed anyway.
                    nix::fcntl::renameat(&inner, child.as_c_str(), top, aside.as_c_str()).map_err(failed)?;
                    break;
                }
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
    match unlinkat(directory, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(failed(errno)),
    }
}

/// Removes the file or tree `name` in `directory`.
///
/// # Errors
/// As [`empty`].
pub fn remove(directory: &OwnedFd, name: &CStr) -> Result<()> {
    let failed = |errno: Errno| Error::system("remove", shown(name.to_bytes()), errno);
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(errno) => return Err(failed(errno)),
    }
    match unlinkat(directory, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let inner = openat(directory, name, READ_DIRECTORY, Mode::empty()).map_err(failed)?;
    empty(&inner)?;
    unlinkat(directory, name, UnlinkatFlags::RemoveDir).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn deep(top: &std::path::Path, depth: usize) {
        let mut here = OwnedFd::from(File::open(top).unwrap());
        for _ in 0..depth {
            nix::sys::stat::mkdirat(&here, c"d", Mode::from_bits_truncate(0o755)).unwrap();
            here = openat(&here, c"d", READ_DIRECTORY, Mode::empty()).unwrap();
            nix::unistd::symlinkat(c"/", &here, c"link").unwrap();
        }
    }

    #[test]
    fn a_tree_of_five_thousand_levels_is_visited_and_removed() {
        let scratch = tempfile::tempdir().unwrap();
        deep(scratch.path(), 5000);
        let top = OwnedFd::from(File::open(scratch.path()).unwrap());
        let (mut before, mut after, mut longest) = (0, 0, 0);
        walk(&top, |visit| {
            *(if visit.after { &mut after } else { &mut before }) += 1;
            longest = longest.max(visit.path.len());
            Ok(Next::Enter)
        })
        .unwrap();
        assert_eq!((before, after), (10001, 5001));
        assert_eq!(longest, 5000 * 2 - 1 + 5);
        empty(&top).unwrap();
        assert!(names(&top).unwrap().is_empty());
    }

    #[test]
    fn links_are_removed_and_what_they_point_at_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let (kept, gone) = (scratch.path().join("kept"), scratch.path().join("gone"));
        std::fs::create_dir_all(&kept).unwrap();
        std::fs::write(kept.join("file"), "x").unwrap();
        std::fs::create_dir_all(gone.join("a/b")).unwrap();
        std::os::unix::fs::symlink(&kept, gone.join("a/link")).unwrap();
        std::fs::write(gone.join(".removing.1"), "a name as ours").unwrap();
        remove(&OwnedFd::from(File::open(scratch.path()).unwrap()), c"gone").unwrap();
        assert!(kept.join("file").exists() && !gone.exists());
    }
}
