//! Changes single files inside a root: each whole or not at all, with the owner, mode and attributes that they had.

#![forbid(unsafe_code)]

use super::error::{Error, Result, at, io_at, shown};
use super::root::{Root, kind, os, split};
use super::{sys, walk};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, symlinkat, unlinkat};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// The path that the links at the end of `path` lead to, inside the root.
///
/// # Errors
/// More than ten links in a row, or one that is not text.
pub fn resolved(root: &Root, path: &[u8]) -> Result<Vec<u8>> {
    let mut path = path.to_vec();
    for _ in 0..10 {
        match root.read_link(&path) {
            Ok(target) if target.starts_with(b"/") => path = target,
            Ok(target) => {
                let above = split(&path).map_or(&b""[..], |(above, _)| above).to_vec();
                path = [above, target].concat();
            }
            Err(_) => return Ok(path),
        }
    }
    Err(Error::data(format!("{}: too many symbolic links", shown(&path))))
}

/// Writes `content` as the file at `path`, links followed inside the root. A new file belongs to the container's root,
/// mode 644; one that is replaced keeps its owner, mode and attributes. Directories that are missing are made.
///
/// # Errors
/// A system call failed, or the path leads to something that is no regular file.
pub fn replace(root: &Root, path: &[u8], content: &[u8]) -> Result<()> {
    let path = resolved(root, path)?;
    let object = || shown(&path);
    let (above, name) = split(&path).map_err(at("resolve", object()))?;
    let directory = root.make_directory(above).map_err(at("make the directory of", object()))?;
    let name = super::root::c_name(name).map_err(at("name", object()))?;
    let old = match fstatat(&directory, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) if kind(&stat) == SFlag::S_IFREG => Some(stat),
        Ok(_) => return Err(Error::data(format!("{} is no regular file", object()))),
        Err(Errno::ENOENT) => None,
        Err(errno) => return Err(Error::system("stat", object(), errno)),
    };
    let temporary =
        super::root::c_name(&[b".", name.to_bytes(), b".userns-helpers"].concat()).map_err(at("name", object()))?;
    let _ = unlinkat(&directory, temporary.as_c_str(), UnlinkatFlags::NoRemoveDir);
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(&directory, temporary.as_c_str(), flags, Mode::from_bits_truncate(0o600))
        .map_err(at("create", object()))?;
    let mut file = File::from(fd);
    let result = (|| {
        file.write_all(content).map_err(io_at("write", object()))?;
        let mut mode = Mode::from_bits_truncate(0o644);
        if let Some(stat) = old {
            mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
            fchown(&file, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
                .map_err(at("chown", object()))?;
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            let before = openat(&directory, name.as_c_str(), flags, Mode::empty()).map_err(at("open", object()))?;
            for name in sys::list_xattrs(&before).unwrap_or_default() {
                if name.starts_with(b"user.")
                    && let Ok(c) = super::root::c_name(&name)
                    && let Ok(Some(value)) = sys::get_xattr(&before, &c)
                {
                    let _ = sys::set_xattr(&file, &c, &value);
                }
            }
        }
        fchmod(&file, mode).map_err(at("chmod", object()))?;
        file.sync_all().map_err(io_at("sync", object()))?;
        renameat(&directory, temporary.as_c_str(), &directory, name.as_c_str()).map_err(at("rename to", object()))
    })();
    if result.is_err() {
        let _ = unlinkat(&directory, temporary.as_c_str(), UnlinkatFlags::NoRemoveDir);
    }
    result
}

/// Makes a symbolic link at `path`.
///
/// # Errors
/// The name is taken, or a system call failed.
pub fn link(root: &Root, path: &[u8], target: &[u8]) -> Result<()> {
    let object = || shown(path);
    let (above, name) = split(path).map_err(at("resolve", object()))?;
    let directory = root.make_directory(above).map_err(at("make the directory of", object()))?;
    symlinkat(Path::new(os(target)), &directory, Path::new(os(name))).map_err(at("make the link", object()))
}

/// Makes a directory, mode 755, with those above it.
///
/// # Errors
/// A system call failed.
pub fn directory(root: &Root, path: &[u8]) -> Result<()> {
    root.make_directory(path).map(drop).map_err(at("make the directory", shown(path)))
}

/// Removes a file or link, or a directory when it is empty. One that is not there is no error.
///
/// # Errors
/// A system call failed.
pub fn remove(root: &Root, path: &[u8], is_directory: bool) -> Result<()> {
    let (directory, name) = match root.parent(path) {
        Ok(found) => found,
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(Error::system("look up", shown(path), errno)),
    };
    let flag = if is_directory { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
    match unlinkat(&directory, name.as_c_str(), flag) {
        Ok(()) | Err(Errno::ENOENT | Errno::ENOTEMPTY) => Ok(()),
        Err(errno) => Err(Error::system("remove", shown(path), errno)),
    }
}

/// The names in a directory inside the root; none when it is not there.
#[must_use]
pub fn list(root: &Root, path: &[u8]) -> Vec<Vec<u8>> {
    let Ok(start) = root.directory(path) else { return Vec::new() };
    let Ok(open) = openat(&start, c".", walk::READ_DIRECTORY, Mode::empty()) else { return Vec::new() };
    walk::names(&open).map(|all| all.iter().map(|name| name.to_bytes().to_vec()).collect()).unwrap_or_default()
}
