//! The mount calls that need `unsafe`; see the crate's other `sys.rs`.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int, c_long, c_ulong};
use std::os::fd::RawFd;

use crate::sys::{Call, check, check_fd};

pub const AT_RECURSIVE: c_int = 0x8000;
pub const MOUNT_ATTR_RDONLY: u32 = 0x01;
pub const MOUNT_ATTR_NOSUID: u32 = 0x02;
pub const MOUNT_ATTR_NODEV: u32 = 0x04;
pub const MOUNT_ATTR_NOEXEC: u32 = 0x08;
pub const MOUNT_ATTR_NOATIME: u32 = 0x10;
pub const MOUNT_ATTR_STRICTATIME: u32 = 0x20;
pub const MOUNT_ATTR_NODIRATIME: u32 = 0x80;

const OPEN_TREE_CLONE: c_int = 1;
const MOVE_MOUNT_F_EMPTY_PATH: c_int = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: c_int = 0x40;
const FSOPEN_CLOEXEC: c_int = 1;
const FSMOUNT_CLOEXEC: c_int = 1;
const FSCONFIG_SET_FLAG: c_int = 0;
const FSCONFIG_SET_STRING: c_int = 1;
const FSCONFIG_CMD_CREATE: c_int = 6;

/// mount(2).
///
/// # Errors
/// Its errno.
pub fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: c_ulong,
    data: Option<&CStr>,
) -> Call<()> {
    let pointer = |text: Option<&CStr>| text.map_or(core::ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is NULL or a string that ends in NUL.
    check(unsafe {
        libc::syscall(libc::SYS_mount, pointer(source), target.as_ptr(), pointer(kind), flags, pointer(data))
    })
    .map(drop)
}

/// umount2(path, MNT_DETACH).
///
/// # Errors
/// Its errno.
pub fn detach(path: &CStr) -> Call<()> {
    // SAFETY: the string ends in NUL.
    check(unsafe { libc::syscall(libc::SYS_umount2, path.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// pivot_root(".", "."): the working directory becomes the root, and the old root lies over it.
///
/// # Errors
/// Its errno.
pub fn pivot_root_here() -> Call<()> {
    // SAFETY: both strings end in NUL.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) }).map(drop)
}

/// The magic number of the file system that a descriptor lies on.
///
/// # Errors
/// The errno of fstatfs(2).
pub fn file_system(fd: RawFd) -> Call<i64> {
    // SAFETY: statfs is plain data for which zero is valid.
    let mut stat: libc::statfs = unsafe { core::mem::zeroed() };
    // SAFETY: the pointer is to a whole struct statfs.
    check(c_long::from(unsafe { libc::fstatfs(fd, &raw mut stat) }))?;
    #[allow(clippy::unnecessary_cast, clippy::cast_possible_wrap, reason = "the field's type differs between libcs")]
    Ok(stat.f_type as i64)
}

/// The mount flags (ST_ bits of statvfs(3)) of the mount that a descriptor lies on.
///
/// # Errors
/// The errno of fstatvfs.
pub fn mount_flags(fd: RawFd) -> Call<c_ulong> {
    // SAFETY: statvfs is plain data for which zero is valid.
    let mut stat: libc::statvfs = unsafe { core::mem::zeroed() };
    // SAFETY: the pointer is to a whole struct statvfs.
    check(c_long::from(unsafe { libc::fstatvfs(fd, &raw mut stat) }))?;
    Ok(stat.f_flag)
}

/// open_tree(2) with OPEN_TREE_CLONE and AT_RECURSIVE: a detached copy of the mounts at `path`.
///
/// # Errors
/// Its errno; EINVAL when `directory` was opened in another mount namespace.
pub fn clone_tree(directory: RawFd, path: &CStr) -> Call<RawFd> {
    clone_mounts(directory, path, true)
}

/// open_tree(2) with OPEN_TREE_CLONE: a detached copy of the mount at `path`, with those below it if `recursive`.
///
/// # Errors
/// Its errno; EINVAL when `directory` was opened in another mount namespace, or when not all is copied and something
/// below is mounted there that a more privileged namespace has mounted.
pub fn clone_mounts(directory: RawFd, path: &CStr, recursive: bool) -> Call<RawFd> {
    let mut flags = OPEN_TREE_CLONE | libc::O_CLOEXEC;
    if recursive {
        flags |= AT_RECURSIVE;
    }
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH;
    }
    // SAFETY: the string ends in NUL.
    check_fd(unsafe { libc::syscall(libc::SYS_open_tree, directory, path.as_ptr(), flags) })
}

/// move_mount(2): attaches the mount of `tree` on the directory or file `target`.
///
/// # Errors
/// Its errno.
pub fn attach(tree: RawFd, target: RawFd) -> Call<()> {
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both strings end in NUL.
    check(unsafe { libc::syscall(libc::SYS_move_mount, tree, c"".as_ptr(), target, c"".as_ptr(), flags) }).map(drop)
}

/// move_mount(2): attaches the mount of `tree` on `path` below `directory`; a link at its end is not followed.
///
/// # Errors
/// Its errno.
pub fn attach_at(tree: RawFd, directory: RawFd, path: &CStr) -> Call<()> {
    let flags = MOVE_MOUNT_F_EMPTY_PATH;
    // SAFETY: both strings end in NUL.
    check(unsafe { libc::syscall(libc::SYS_move_mount, tree, c"".as_ptr(), directory, path.as_ptr(), flags) }).map(drop)
}

/// mount_setattr(2) on the mount of `tree` and, if `recursive`, on those below it: sets the MOUNT_ATTR_ bits `set`.
///
/// # Errors
/// Its errno; ENOSYS on kernels before 5.12.
pub fn set_mount_attributes(tree: RawFd, set: u32, recursive: bool) -> Call<()> {
    let attributes = [u64::from(set), 0, 0, 0];
    let flags = libc::AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: `attributes` has the layout of struct mount_attr: set, clear, propagation, user namespace, 64 bits each.
    check(unsafe {
        libc::syscall(libc::SYS_mount_setattr, tree, c"".as_ptr(), flags, attributes.as_ptr(), size_of_val(&attributes))
    })
    .map(drop)
}

/// A new file system of `kind` with `options` (key and value), as a detached mount with the MOUNT_ATTR_ bits
/// `attributes`: fsopen(2), fsconfig(2), fsmount(2).
///
/// # Errors
/// The errno of the call that failed; ENOSYS on kernels before 5.2.
pub fn new_file_system(kind: &CStr, options: &[(&CStr, &CStr)], attributes: u32) -> Call<RawFd> {
    new_file_system_of(kind, options.iter().map(|(key, value)| (*key, Some(*value))), attributes)
}

/// [`new_file_system`] with options of which some have no value.
///
/// # Errors
/// As there.
pub fn new_file_system_of<'a>(
    kind: &CStr,
    options: impl Iterator<Item = (&'a CStr, Option<&'a CStr>)>,
    attributes: u32,
) -> Call<RawFd> {
    let null = core::ptr::null::<c_char>();
    // SAFETY: the string ends in NUL.
    let context = check_fd(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    for (key, value) in options {
        let (command, value) = value.map_or((FSCONFIG_SET_FLAG, null), |value| (FSCONFIG_SET_STRING, value.as_ptr()));
        // SAFETY: both strings end in NUL; the command for a flag takes NULL.
        check(unsafe { libc::syscall(libc::SYS_fsconfig, context, command, key.as_ptr(), value, 0) })?;
    }
    // SAFETY: this command takes no strings.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context, FSCONFIG_CMD_CREATE, null, null, 0) })?;
    // SAFETY: no pointer.
    check_fd(unsafe { libc::syscall(libc::SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes) })
}
