//! A directory of a cgroup file system, held by a descriptor. Every path here is one component, so nobody who renames or
//! replaces a directory can lead a privileged write elsewhere.

#![forbid(unsafe_code)]

use helper::handover::sys;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat, fstat, fstatat, mkdirat};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, unlinkat};
use std::ffi::CStr;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// CGROUP_SUPER_MAGIC of linux/magic.h.
const V1: FsType = FsType(0x0027_e0eb);

/// CGROUP2_SUPER_MAGIC of linux/magic.h.
const V2: FsType = FsType(0x6367_7270);

/// Most bytes that are read of a file with process ids.
const MAX_PROCESSES: u64 = 1 << 16;

/// An open directory of cgroup v1 or v2.
#[derive(Debug)]
pub struct Directory(OwnedFd);

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Directory {
    /// The directory of a descriptor, when it is one of a cgroup file system: v2, or else v1.
    ///
    /// # Errors
    /// ENODEV when it is not.
    pub fn new(descriptor: OwnedFd, unified: bool) -> Result<Self, Errno> {
        let magic = if unified { V2 } else { V1 };
        if fstatfs(&descriptor)?.filesystem_type() == magic { Ok(Self(descriptor)) } else { Err(Errno::ENODEV) }
    }

    /// Whether a descriptor is of a cgroup file system, of either version; then whether it is v2.
    #[must_use]
    pub fn version(descriptor: &OwnedFd) -> Option<bool> {
        match fstatfs(descriptor).ok()?.filesystem_type() {
            V1 => Some(false),
            V2 => Some(true),
            _ => None,
        }
    }

    /// Opens a child directory.
    ///
    /// # Errors
    /// ENOENT when there is none; EXDEV when something is mounted over it; ENOTDIR, ELOOP for what is no directory.
    pub fn open(&self, name: &str) -> Result<Self, Errno> {
        self.open_component(name, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map(Self)
    }

    /// The parent directory.
    ///
    /// # Errors
    /// The kernel's.
    pub fn parent(&self) -> Result<Self, Errno> {
        openat(&self.0, "..", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map(Self)
    }

    /// Another descriptor of the same directory.
    ///
    /// # Errors
    /// EMFILE.
    pub fn again(&self) -> Result<Self, Errno> {
        self.0.try_clone().map(Self).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))
    }

    /// openat2 with every door shut, and before Linux 5.6 what amounts to the same for one component.
    fn open_component(&self, name: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
        if name.is_empty() || name == "." || name == ".." || name.contains('/') {
            return Err(Errno::EINVAL);
        }
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let beneath = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV;
        match openat2(&self.0, name, OpenHow::new().flags(flags).resolve(beneath)) {
            Err(Errno::ENOSYS) => {
                let opened = openat(&self.0, name, flags, Mode::empty())?;
                if fstat(&opened)?.st_dev == fstat(&self.0)?.st_dev { Ok(opened) } else { Err(Errno::EXDEV) }
            }
            other => other,
        }
    }

    /// Makes a child directory that root alone can use for now.
    ///
    /// # Errors
    /// EEXIST; EAGAIN beyond cgroup.max.descendants or cgroup.max.depth; ENOENT when this directory has been removed.
    pub fn make(&self, name: &str) -> Result<(), Errno> {
        mkdirat(&self.0, name, Mode::S_IRWXU)
    }

    /// Lets everybody look into this directory, and its group change it if `group_writes`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn publish(&self, group_writes: bool) -> Result<(), Errno> {
        fchmod(&self.0, Mode::from_bits_truncate(if group_writes { 0o775 } else { 0o755 }))
    }

    /// Removes a child directory.
    ///
    /// # Errors
    /// EBUSY or ENOTEMPTY while it holds a process or a child; ENOENT.
    pub fn remove(&self, name: &str) -> Result<(), Errno> {
        unlinkat(&self.0, name, UnlinkatFlags::RemoveDir)
    }

    /// What a file says, at most `limit` bytes.
    ///
    /// # Errors
    /// ENOENT when there is no such file; ENODEV when this directory has been removed.
    pub fn read(&self, file: &str, limit: u64) -> Result<String, Errno> {
        let bytes = read_all(&self.open_component(file, OFlag::O_RDONLY)?, limit)?;
        String::from_utf8(bytes).map_err(|_| Errno::EIO)
    }

    /// As [`Directory::read`], for a file that tells one thing: the kernel gives all of it to one read that has room.
    ///
    /// # Errors
    /// As [`Directory::read`]; EFBIG for a file of more than 4095 bytes.
    pub fn read_value(&self, file: &str) -> Result<String, Errno> {
        let opened = self.open_component(file, OFlag::O_RDONLY)?;
        let mut buffer = [0_u8; 4096];
        let length = nix::unistd::read(&opened, &mut buffer)?;
        let read = buffer.get(..length).filter(|read| read.len() < buffer.len()).ok_or(Errno::EFBIG)?;
        core::str::from_utf8(read).map(str::to_owned).map_err(|_| Errno::EIO)
    }

    /// Opens a file for writing: the kernel will judge a write by the ids of this moment (CVE-2021-4197).
    ///
    /// # Errors
    /// ENOENT, EACCES; ENODEV when this directory has been removed.
    pub fn open_for_writing(&self, file: &str) -> Result<File, Errno> {
        self.open_component(file, OFlag::O_WRONLY).map(File::from)
    }

    /// Writes a file, in one write.
    ///
    /// # Errors
    /// The kernel's refusal of the value; ENOENT, ENODEV as above.
    pub fn write(&self, file: &str, value: &str) -> Result<(), Errno> {
        write_once(&mut self.open_for_writing(file)?, value)
    }

    /// Gives this directory to an owner.
    ///
    /// # Errors
    /// EPERM without CAP_CHOWN.
    pub fn give(&self, uid: u32, gid: u32) -> Result<(), Errno> {
        fchown(&self.0, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
    }

    /// Gives a file of this directory to an owner; the group may write it if `group_writes`. A file that is not there is
    /// let go.
    ///
    /// # Errors
    /// EPERM without CAP_CHOWN.
    pub fn give_file(&self, file: &str, uid: u32, gid: u32, group_writes: bool) -> Result<(), Errno> {
        let opened = match self.open_component(file, OFlag::O_PATH) {
            Err(Errno::ENOENT) => return Ok(()),
            other => other?,
        };
        let give = |uid, gid| {
            let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            fchownat(&opened, "", owner, group, AtFlags::AT_EMPTY_PATH)
        };
        if group_writes {
            // Before it is given away, while root may change its mode. Nobody can put another file in the place of one of
            // the kernel's.
            let meta = fstat(&opened)?;
            let mode = meta.st_mode & 0o7777 & 0o664;
            if mode & 0o020 == 0 {
                if meta.st_uid != 0 {
                    give(0, 0)?;
                }
                fchmodat(&self.0, file, Mode::from_bits_truncate(mode | 0o020), FchmodatFlags::FollowSymlink)?;
            }
        }
        give(uid, gid)
    }

    /// [`Directory::give_file`] for a directory that this program has made and that only root has been in, so that nothing
    /// can have been mounted on its files: these are named, not opened.
    ///
    /// # Errors
    /// EPERM without CAP_CHOWN.
    pub fn give_fresh_file(&self, file: &str, uid: u32, gid: u32, group_writes: bool) -> Result<(), Errno> {
        let meta = match fstatat(&self.0, file, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Ok(()),
            other => other?,
        };
        if group_writes {
            let mode = meta.st_mode & 0o664 | 0o020;
            fchmodat(&self.0, file, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)?;
        }
        fchownat(&self.0, file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// Whether root owns this directory and nobody else can write it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_roots(&self) -> Result<bool, Errno> {
        let meta = fstat(&self.0)?;
        Ok(meta.st_uid == 0 && meta.st_mode & 0o022 == 0)
    }

    /// Lets everybody look into this directory, whose only owner root is.
    ///
    /// # Errors
    /// EPERM when it is not root's alone; the kernel's.
    pub fn open_to_all(&self) -> Result<(), Errno> {
        let meta = fstat(&self.0)?;
        if meta.st_uid != 0 || meta.st_mode & 0o022 != 0 {
            return Err(Errno::EPERM);
        }
        if meta.st_mode & 0o7777 == 0o755 { Ok(()) } else { self.publish(false) }
    }

    /// The uid that owns this directory.
    ///
    /// # Errors
    /// The kernel's.
    pub fn owner(&self) -> Result<u32, Errno> {
        fstat(&self.0).map(|meta| meta.st_uid)
    }

    /// Device and inode.
    ///
    /// # Errors
    /// The kernel's.
    pub fn identity(&self) -> Result<(u64, u64), Errno> {
        fstat(&self.0).map(|meta| (meta.st_dev, meta.st_ino))
    }

    /// The names of the child directories. One that is not UTF-8 is shown with U+FFFD and cannot be opened by it; users
    /// can make such below their own cgroups, see [`Directory::children_raw`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn children(&self) -> Result<Vec<String>, Errno> {
        Ok(self.children_raw()?.iter().map(|name| name.to_string_lossy().into_owned()).collect())
    }

    /// The names of the child directories.
    ///
    /// # Errors
    /// The kernel's.
    pub fn children_raw(&self) -> Result<Vec<std::ffi::CString>, Errno> {
        sys::directories_in(&self.0)
    }

    /// Whether it holds no directory, by its count of links (kernfs_refresh_inode() of fs/kernfs/inode.c; before Linux
    /// 3.15 cgroup_mkdir() of kernel/cgroup.c).
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_leaf(&self) -> Result<bool, Errno> {
        fstat(&self.0).map(|meta| meta.st_nlink == 2)
    }

    /// As [`Directory::open`], for any name.
    ///
    /// # Errors
    /// As [`Directory::open`].
    pub fn open_raw(&self, name: &CStr) -> Result<Self, Errno> {
        if name.is_empty() || name == c"." || name == c".." || name.to_bytes().contains(&b'/') {
            return Err(Errno::EINVAL);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = openat(&self.0, name, flags, Mode::empty())?;
        if fstat(&opened)?.st_dev == fstat(&self.0)?.st_dev { Ok(Self(opened)) } else { Err(Errno::EXDEV) }
    }

    /// As [`Directory::remove`], for any name.
    ///
    /// # Errors
    /// As [`Directory::remove`].
    pub fn remove_raw(&self, name: &CStr) -> Result<(), Errno> {
        unlinkat(&self.0, name, UnlinkatFlags::RemoveDir)
    }

    /// An extended attribute; `None` when it is not there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn attribute(&self, name: &CStr, limit: usize) -> Result<Option<Vec<u8>>, Errno> {
        match sys::attribute(&self.0, name, limit) {
            Ok(value) => Ok(Some(value)),
            Err(Errno::ENODATA | Errno::ERANGE) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_attribute(&self, name: &CStr, value: &[u8]) -> Result<(), Errno> {
        sys::set_attribute(&self.0, name, value)
    }

    /// The processes in this one cgroup, by the numbers that they have here; those that are in no sight are 0.
    ///
    /// # Errors
    /// The kernel's. A threaded cgroup (EOPNOTSUPP) is asked for its threads.
    pub fn processes(&self) -> Result<Vec<i32>, Errno> {
        // Mostly there is none, and then one read tells.
        let text = match self.read("cgroup.procs", MAX_PROCESSES) {
            Err(Errno::EOPNOTSUPP) => self.read("cgroup.threads", MAX_PROCESSES)?,
            other => other?,
        };
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }
}

/// Opens a file or directory by its whole path. By openat(2), because the open(3) of musl asks the kernel a second time for
/// close-on-exec.
///
/// # Errors
/// The kernel's.
pub fn open_path(path: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    openat(AT_FDCWD, path, flags | OFlag::O_CLOEXEC, Mode::empty())
}

/// What a file of /proc or /sys says. What is not UTF-8 in it becomes U+FFFD: anybody's mount point can be there.
///
/// # Errors
/// The kernel's.
pub fn read_path(path: &str) -> Result<String, Errno> {
    let bytes = read_all(&open_path(path, OFlag::O_RDONLY)?, u64::MAX)?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

fn read_all(file: &OwnedFd, limit: u64) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::with_capacity(8192);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut buffer = [0_u8; 8192];
    loop {
        let room = buffer.len().min(limit.saturating_sub(bytes.len()));
        let read = nix::unistd::read(file, buffer.get_mut(..room).unwrap_or_default())?;
        if read == 0 {
            return Ok(bytes);
        }
        bytes.extend_from_slice(buffer.get(..read).unwrap_or_default());
    }
}

/// Writes all of `value` in one write, because a cgroup file takes a value as a whole.
///
/// # Errors
/// The kernel's refusal.
pub fn write_once(file: &mut File, value: &str) -> Result<(), Errno> {
    match file.write(value.as_bytes()) {
        Ok(written) if written == value.len() => Ok(()),
        Ok(_) => Err(Errno::EIO),
        Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32))),
    }
}
