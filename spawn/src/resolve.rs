//! Paths below a root descriptor that no symbolic link leads out of.

#![forbid(unsafe_code)]

use core::ffi::CStr;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use crate::sys::{self, Call};

/// proc's f_type (statfs(2)).
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// Links followed at most in one path: the kernel's own limit (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// Opens `path` with O_PATH below `root` as if `root` were `/`: absolute links start there again and `..` ends there.
/// `flags` may hold O_DIRECTORY and O_NOFOLLOW. On kernels without openat2(2) the path is walked by hand.
///
/// # Errors
/// The errno of openat2; ELOOP for more than 40 links or for a link of procfs that leads elsewhere.
pub fn open_in_root(root: RawFd, path: &CStr, flags: i32) -> Call<RawFd> {
    let resolve = sys::RESOLVE_IN_ROOT | sys::RESOLVE_NO_MAGICLINKS;
    let mut tries = 0_u8;
    loop {
        match sys::open_at2(root, path, flags | libc::O_PATH, resolve) {
            Err(Errno::ENOSYS) => return walk(root, path, flags),
            // A rename somewhere raced with a `..` (openat2(2)); bounded, for it can be provoked.
            Err(Errno::EAGAIN) if tries < 100 => tries = tries.saturating_add(1),
            result => return result,
        }
    }
}

/// [`open_in_root`] without openat2: one component at a time, never following a link in the kernel. The descriptors
/// of the directories walked through are kept, so that `..` is a step back and not a lookup that a rename could turn.
///
/// It allocates, which is sound between clone3 and exec because this program has one thread.
///
/// # Errors
/// As [`open_in_root`].
pub fn walk(root: RawFd, path: &CStr, flags: i32) -> Call<RawFd> {
    let open = |directory: RawFd, name: &CStr| {
        sys::open_at(directory, name, libc::O_PATH | libc::O_NOFOLLOW).map(|fd| sys::own(fd).ok_or(Errno::EBADF))?
    };
    let split = |path: &[u8]| path.split(|b| *b == b'/').rev().map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut rest = split(path.to_bytes());
    let mut walked: Vec<OwnedFd> = Vec::new();
    let mut links = 0_u32;
    while let Some(part) = rest.pop() {
        if part.is_empty() || part == b"." {
            continue;
        }
        if part == b".." {
            walked.pop();
            continue;
        }
        let name = CString::new(part).map_err(|_| Errno::EINVAL)?;
        let here = walked.last().map_or(root, AsRawFd::as_raw_fd);
        let next = open(here, &name)?;
        let last = rest.iter().all(Vec::is_empty);
        if sys::file_type(next.as_raw_fd())? != libc::S_IFLNK || (last && flags & libc::O_NOFOLLOW != 0) {
            walked.push(next);
            continue;
        }
        links = links.saturating_add(1);
        if links > MAX_LINKS || sys::file_system(next.as_raw_fd())? == PROC_SUPER_MAGIC {
            return Err(Errno::ELOOP);
        }
        let mut buffer = [0_u8; libc::PATH_MAX as usize];
        let length = sys::read_link(next.as_raw_fd(), c"", &mut buffer)?;
        let content = buffer.get(..length).unwrap_or_default();
        if content.starts_with(b"/") {
            walked.clear();
        }
        rest.extend(split(content));
    }
    let end = match walked.pop() {
        Some(end) => end,
        None => open(root, c".")?,
    };
    if flags & libc::O_DIRECTORY != 0 && sys::file_type(end.as_raw_fd())? != libc::S_IFDIR {
        return Err(Errno::ENOTDIR);
    }
    Ok(std::os::fd::IntoRawFd::into_raw_fd(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::Path;

    type Case = (&'static str, Result<&'static str, Errno>);

    /// A tree with every kind of way out of it, and what each path must lead to: a path below the tree, or an errno.
    fn tree() -> (tempfile::TempDir, Vec<Case>) {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::create_dir(top.path().join("outside")).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        symlink("/a", root.join("absolute")).unwrap();
        symlink("../../../../a/b", root.join("a/up")).unwrap();
        symlink("../outside", root.join("escape")).unwrap();
        symlink("/outside", root.join("host")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("/", root.join("slash")).unwrap();
        symlink("absolute/b", root.join("chain")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        let cases = vec![
            ("a/b", Ok("a/b")),
            ("/a//./b/", Ok("a/b")),
            (".", Ok(".")),
            ("/", Ok(".")),
            ("../../..", Ok(".")),
            ("a/../../a", Ok("a")),
            ("absolute", Ok("a")),
            ("absolute/b", Ok("a/b")),
            ("a/up", Ok("a/b")),
            ("chain", Ok("a/b")),
            ("slash/a", Ok("a")),
            ("escape", Err(Errno::ENOENT)),
            ("host", Err(Errno::ENOENT)),
            ("magic", Err(Errno::ENOENT)),
            ("loop", Err(Errno::ELOOP)),
            ("file", Err(Errno::ENOTDIR)),
            ("file/x", Err(Errno::ENOTDIR)),
            ("nothing", Err(Errno::ENOENT)),
        ];
        (top, cases)
    }

    fn check(open: impl Fn(RawFd, &CStr, i32) -> Call<RawFd>) {
        let (top, cases) = tree();
        let root = top.path().join("root");
        let root_fd = std::fs::File::open(&root).unwrap();
        for (path, want) in cases {
            let name = CString::new(path).unwrap();
            let got = open(root_fd.as_raw_fd(), &name, libc::O_DIRECTORY).map(|fd| {
                let end = std::fs::metadata(format!("/proc/self/fd/{fd}")).unwrap();
                sys::close(fd);
                end.ino()
            });
            let want = want.map(|path| std::fs::metadata(root.join(Path::new(path))).unwrap().ino());
            assert_eq!(got, want, "{path}");
        }
        let link = open(root_fd.as_raw_fd(), c"host", libc::O_NOFOLLOW).unwrap();
        assert_eq!(sys::file_type(link), Ok(libc::S_IFLNK));
        sys::close(link);
    }

    #[test]
    fn openat2_keeps_every_path_below_the_root() {
        check(open_in_root);
    }

    #[test]
    fn the_walk_by_hand_gives_the_same_answers() {
        check(walk);
    }

    #[test]
    fn the_walk_by_hand_refuses_links_of_procfs() {
        let root = std::fs::File::open("/").unwrap();
        assert_eq!(walk(root.as_raw_fd(), c"proc/self/root", 0), Err(Errno::ELOOP));
    }
}
