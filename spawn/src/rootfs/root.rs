//! A directory below which paths are resolved as chroot(2) would, without ever leaving it.
//!
//! With openat2(2) (Linux 5.6) the kernel does it (RESOLVE_IN_ROOT); without, a walk component by component with
//! `O_PATH | O_NOFOLLOW` that expands symbolic links by hand. Both give the same answers.

#![forbid(unsafe_code)]

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// As many links as the kernel expands in one path (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Opens a directory for use as the start of further calls, without following a link.
const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// How paths are resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Openat2,
    Walk,
}

/// The directory.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    identity: Identity,
    how: How,
}

/// Device and inode number: what identifies a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// st_dev.
    pub device: u64,
    /// st_ino.
    pub inode: u64,
}

impl From<&FileStat> for Identity {
    fn from(stat: &FileStat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// The type bits of a mode.
#[must_use]
pub fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// A name for the kernel.
///
/// # Errors
/// EINVAL when it holds a NUL byte.
pub fn c_name(name: &[u8]) -> Result<CString, Errno> {
    CString::new(name).map_err(|_| Errno::EINVAL)
}

impl Root {
    /// Takes a directory, opened in any way.
    ///
    /// # Errors
    /// fstat(2) failed.
    pub fn new(fd: OwnedFd) -> Result<Self, Errno> {
        let identity = Identity::from(&fstat(&fd)?);
        let mut root = Self { fd, identity, how: How::Openat2 };
        // ENOSYS before 5.6; EPERM under a seccomp filter that does not know the call.
        if root.open2(c".", DIRECTORY).is_err() {
            root.how = How::Walk;
        }
        Ok(root)
    }

    /// The same directory, paths resolved without openat2(2).
    ///
    /// # Errors
    /// As [`Root::new`].
    pub fn walking(fd: OwnedFd) -> Result<Self, Errno> {
        Ok(Self { how: How::Walk, ..Self::new(fd)? })
    }

    /// The directory itself.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Which file the directory is.
    #[must_use]
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    fn open2(&self, path: &CStr, flags: OFlag) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
        loop {
            match openat2(&self.fd, path, how) {
                // A rename somewhere on the machine while `..` was resolved (openat2(2)).
                Err(Errno::EAGAIN) => {}
                other => return other,
            }
        }
    }

    /// Opens the directory at `path`, links followed, as a start for further calls (O_PATH).
    ///
    /// # Errors
    /// openat2(2)'s: ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG and so on.
    pub fn directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        match self.how {
            How::Openat2 => {
                let path = if path.iter().all(|byte| *byte == b'/') { b"." } else { path };
                self.open2(&c_name(path)?, DIRECTORY.difference(OFlag::O_NOFOLLOW))
            }
            How::Walk => self.walk(path, false, Last::Directory).map(|(directory, _)| directory),
        }
    }

    /// The same; directories that are missing are made, mode 755, also where a dangling link points.
    ///
    /// # Errors
    /// As [`Root::directory`], and mkdir(2)'s.
    pub fn make_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        match self.directory(path) {
            Err(Errno::ENOENT) => self.walk(path, true, Last::Directory).map(|(directory, _)| directory),
            other => other,
        }
    }

    /// The directory that holds the last component of `path`, and that component. Nothing is said about the file.
    ///
    /// # Errors
    /// As [`Root::directory`]; EINVAL when the last component is missing, `.` or `..`.
    pub fn parent(&self, path: &[u8]) -> Result<(OwnedFd, CString), Errno> {
        let (directory, name) = split(path)?;
        Ok((self.directory(directory)?, c_name(name)?))
    }

    /// stat of the file at `path`, a link at its end not followed.
    ///
    /// # Errors
    /// As [`Root::directory`].
    pub fn lstat(&self, path: &[u8]) -> Result<FileStat, Errno> {
        if path.iter().all(|byte| matches!(byte, b'/' | b'.')) {
            return fstat(&self.fd);
        }
        let (directory, name) = self.parent(path)?;
        fstatat(&directory, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// Opens the file at `path`, links followed inside the root, never waiting for the other end of a FIFO.
    ///
    /// # Errors
    /// As [`Root::directory`].
    pub fn open(&self, path: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        match self.how {
            How::Openat2 => self.open2(&c_name(path)?, flags),
            How::Walk => match self.walk(path, false, Last::File)? {
                (directory, Some(name)) => {
                    openat(&directory, name.as_c_str(), flags | OFlag::O_NOFOLLOW, Mode::empty())
                }
                (directory, None) => openat(&directory, c".", flags, Mode::empty()),
            },
        }
    }

    /// What stands in the regular file at `path`, links followed inside the root.
    ///
    /// # Errors
    /// As [`Root::open`]; EINVAL when it is no regular file; EFBIG when it is longer than `limit` bytes.
    pub fn read(&self, path: &[u8], limit: u64) -> Result<Vec<u8>, Errno> {
        let file = self.open(path, OFlag::O_RDONLY)?;
        let stat = fstat(&file)?;
        if kind(&stat) != SFlag::S_IFREG {
            return Err(Errno::EINVAL);
        }
        let mut content = Vec::new();
        let read = File::from(file).take(limit.saturating_add(1)).read_to_end(&mut content);
        read.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        if content.len() as u64 > limit { Err(Errno::EFBIG) } else { Ok(content) }
    }

    /// What a symbolic link says.
    ///
    /// # Errors
    /// As [`Root::directory`]; EINVAL when it is no link.
    pub fn read_link(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        let (directory, name) = self.parent(path)?;
        Ok(readlinkat(&directory, name.as_c_str())?.into_vec())
    }

    /// Walks `path` from the root on. Gives the directory reached, or the directory of the last component and its name
    /// when that is no directory.
    fn walk(&self, path: &[u8], make: bool, last: Last) -> Result<(OwnedFd, Option<CString>), Errno> {
        if path.len() >= usize::try_from(libc::PATH_MAX).unwrap_or(4096) {
            return Err(Errno::ENAMETOOLONG);
        }
        let mut here = self.fd.try_clone().map_err(|_| Errno::EMFILE)?;
        let mut here_is = self.identity;
        let mut left: Vec<Vec<u8>> = components(path);
        let mut links = 0_usize;
        while let Some(name) = left.pop() {
            if name == b".." {
                // `..` of the root is the root.
                if here_is != self.identity {
                    here = openat(&here, c"..", DIRECTORY, Mode::empty())?;
                    here_is = Identity::from(&fstat(&here)?);
                }
                continue;
            }
            let c = c_name(&name)?;
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let file = match openat(&here, c.as_c_str(), flags, Mode::empty()) {
                Err(Errno::ENOENT) if make => {
                    mkdirat(&here, c.as_c_str(), Mode::from_bits_truncate(0o755))?;
                    openat(&here, c.as_c_str(), DIRECTORY, Mode::empty())?
                }
                other => other?,
            };
            let stat = fstat(&file)?;
            match kind(&stat) {
                SFlag::S_IFDIR => {
                    here = file;
                    here_is = Identity::from(&stat);
                }
                SFlag::S_IFLNK => {
                    links = links.saturating_add(1);
                    if links > MAX_LINKS {
                        return Err(Errno::ELOOP);
                    }
                    let target = readlinkat(&here, c.as_c_str())?.into_vec();
                    if target.first() == Some(&b'/') {
                        here = self.fd.try_clone().map_err(|_| Errno::EMFILE)?;
                        here_is = self.identity;
                    }
                    left.extend(components(&target));
                }
                _ if left.is_empty() && matches!(last, Last::File) => return Ok((here, Some(c))),
                _ => return Err(Errno::ENOTDIR),
            }
        }
        Ok((here, None))
    }
}

#[derive(Clone, Copy)]
enum Last {
    Directory,
    File,
}

/// The components of a path, last first, so that the next one is popped; without empty ones and `.`.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let mut list: Vec<Vec<u8>> = parts.map(<[u8]>::to_vec).collect();
    list.reverse();
    list
}

/// A path as its directory and its last component.
///
/// # Errors
/// EINVAL when there is no last component, or it is `.` or `..`.
pub fn split(path: &[u8]) -> Result<(&[u8], &[u8]), Errno> {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at.saturating_add(1));
    let path = path.get(..end).unwrap_or_default();
    let slash = path.iter().rposition(|byte| *byte == b'/');
    let start = slash.map_or(0, |at| at.saturating_add(1));
    let name = path.get(start..).unwrap_or_default();
    if matches!(name, b"" | b"." | b"..") {
        return Err(Errno::EINVAL);
    }
    Ok((path.get(..start).unwrap_or_default(), name))
}

/// Bytes as a path.
#[must_use]
pub fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn tree() -> tempfile::TempDir {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "outside").unwrap();
        let root = outside.path().join("root");
        std::fs::create_dir_all(root.join("usr/bin")).unwrap();
        std::fs::write(root.join("usr/bin/tool"), "tool").unwrap();
        std::fs::write(root.join("secret"), "inside").unwrap();
        let link = |target: &str, name: &str| symlink(Path::new(target), root.join(name)).unwrap();
        link("/usr/bin", "bin");
        link("usr/bin", "rbin");
        link("../../../../../../../usr/bin", "upbin");
        link("../secret", "up");
        link("/secret", "abs");
        link("loop2", "loop1");
        link("loop1", "loop2");
        link("nowhere/else", "dangling");
        link("usr/bin/tool", "file");
        outside
    }

    fn roots(outside: &tempfile::TempDir) -> [Root; 2] {
        let open = || OwnedFd::from(File::open(outside.path().join("root")).unwrap());
        let fast = Root::new(open()).unwrap();
        assert_eq!(fast.how, How::Openat2, "this kernel has openat2");
        [fast, Root::walking(open()).unwrap()]
    }

    #[test]
    fn both_ways_of_walking_stay_inside_and_agree() {
        let outside = tree();
        let [fast, slow] = roots(&outside);
        for path in [
            "secret",
            "/secret",
            "../secret",
            "../../secret",
            "usr/../../secret",
            "bin/tool",
            "rbin/tool",
            "upbin/tool",
            "up",
            "abs",
            "loop1",
            "loop1/x",
            "dangling",
            "dangling/x",
            "file",
            "file/x",
            "file/../x",
            "usr/bin",
            "",
            "/",
            ".",
            "..",
            "usr/./bin/../bin//tool",
            "nothing",
            "secret/x",
            "bin/../../secret",
            "secret/",
            "bin/..",
        ] {
            let of = |root: &Root| root.read(path.as_bytes(), 100);
            let (a, b) = (of(&fast), of(&slow));
            if path == "secret/" || path == "file/../x" {
                // The kernel asks that what comes before a slash is a directory; the walk may be laxer, never outside.
                assert!(a.is_err());
                assert_ne!(b.as_deref(), Ok(&b"outside"[..]));
                continue;
            }
            if path.is_empty() {
                continue;
            }
            assert_eq!(a, b, "{path}");
            assert_ne!(a.as_deref(), Ok(&b"outside"[..]), "{path}");
            let directory = |root: &Root| root.directory(path.as_bytes()).map(|fd| Identity::from(&fstat(fd).unwrap()));
            assert_eq!(directory(&fast), directory(&slow), "{path}");
        }
    }

    #[test]
    fn missing_directories_are_made_inside() {
        for which in [0, 1] {
            let outside = tree();
            let root = &roots(&outside)[which];
            root.make_directory(b"a/b/c").unwrap();
            root.make_directory(b"dangling/deep").unwrap();
            root.make_directory(b"../../up2").unwrap();
            let inside = outside.path().join("root");
            assert!(inside.join("a/b/c").is_dir() && inside.join("nowhere/else/deep").is_dir());
            assert!(inside.join("up2").is_dir());
            assert_eq!(root.make_directory(b"secret/x").unwrap_err(), Errno::ENOTDIR);
            assert_eq!(root.make_directory(b"loop1/x").unwrap_err(), Errno::ELOOP);
        }
    }

    #[test]
    fn paths_are_split() {
        assert_eq!(split(b"a/b").unwrap(), (&b"a/"[..], &b"b"[..]));
        assert_eq!(split(b"/b//").unwrap(), (&b"/"[..], &b"b"[..]));
        assert_eq!(split(b"b").unwrap(), (&b""[..], &b"b"[..]));
        for bad in [&b""[..], b"/", b".", b"a/..", b"a/."] {
            assert!(split(bad).is_err());
        }
    }
}
