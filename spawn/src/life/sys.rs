//! Joining another process's namespaces, and descriptors that survive an exec: the calls of this module that need
//! `unsafe`; see the crate's other `sys.rs`.
#![allow(unsafe_code)]

use core::ffi::{c_int, c_long};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;

use crate::sys::{Call, check, check_fd, own};

/// pidfd_open(2).
///
/// # Errors
/// Its errno; ESRCH when there is no such process, ENOSYS on kernels before 5.3.
pub fn open_process(pid: i32) -> Call<OwnedFd> {
    // SAFETY: no pointer.
    let fd = check_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    own(fd).ok_or(Errno::EBADF)
}

/// setns(2): joins the namespaces of `flags` of the process behind a pidfd (5.8), or the one that `fd` refers to.
///
/// # Errors
/// Its errno; EINVAL for a pidfd on kernels before 5.8.
pub fn join(fd: BorrowedFd<'_>, flags: c_int) -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), flags) }).map(drop)
}

/// Major and minor number of the device that a descriptor refers to.
///
/// # Errors
/// The errno of fstat(2).
pub fn device(fd: RawFd) -> Call<(u32, u32)> {
    // SAFETY: stat is plain data for which zero is valid.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: the pointer is to a whole struct stat.
    check(c_long::from(unsafe { libc::fstat(fd, &raw mut stat) }))?;
    Ok((libc::major(stat.st_rdev), libc::minor(stat.st_rdev)))
}

/// Clears close-on-exec.
///
/// # Errors
/// The errno of fcntl(2).
pub fn keep_on_exec(fd: RawFd) -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_SETFD, 0) }).map(drop)
}

/// prctl(PR_SET_DUMPABLE, 0): until its exec, only CAP_SYS_PTRACE in the user namespace that this process's program was
/// executed in gives access to it by ptrace(2) and /proc/PID.
///
/// # Errors
/// Its errno.
pub fn forbid_tracing() -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// prctl(PR_CAPBSET_DROP): no exec of this process gives it the capability `number` again.
///
/// # Errors
/// Its errno; EINVAL for a number that the kernel does not know.
pub fn drop_from_bounding_set(number: u32) -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_CAPBSET_DROP, number, 0, 0, 0) }).map(drop)
}

/// prctl(PR_SET_NO_NEW_PRIVS).
///
/// # Errors
/// Its errno.
pub fn set_no_new_privs() -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}
