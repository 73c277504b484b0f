//! The calls of [`crate::confine`] that need `unsafe`; see the crate's other `sys.rs`.
#![allow(unsafe_code)]

use core::ffi::{c_long, c_ulong};

use seccompiler::sock_filter;

use crate::sys::{Call, check};

/// seccomp(SECCOMP_SET_MODE_FILTER).
///
/// # Errors
/// Its errno; EACCES without CAP_SYS_ADMIN and no_new_privs.
pub fn install_filter(program: &[sock_filter]) -> Call<()> {
    let length = u16::try_from(program.len()).map_err(|_| nix::errno::Errno::EINVAL)?;
    // struct sock_filter has the layout of seccompiler's, which is repr(C) with the same members.
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel reads `length` instructions and writes nothing.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) }).map(drop)
}

/// prctl(PR_CAPBSET_DROP).
///
/// # Errors
/// Its errno; EINVAL for a capability that the kernel has not.
pub fn drop_from_bounding_set(capability: u32) -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_CAPBSET_DROP, c_ulong::from(capability), 0, 0, 0) })
        .map(drop)
}

/// prctl(PR_SET_NO_NEW_PRIVS).
///
/// # Errors
/// Its errno.
pub fn set_no_new_privs() -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// prlimit(2) of this process.
///
/// # Errors
/// Its errno; EPERM when the hard limit would rise.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> Call<()> {
    let limit = [soft, hard];
    let null = core::ptr::null::<u64>();
    // SAFETY: `limit` has the layout of struct rlimit64; the old one is not asked for.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, limit.as_ptr(), null) }).map(drop)
}

/// personality(2).
///
/// # Errors
/// Its errno.
pub fn set_personality(personality: i32) -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_personality, c_long::from(personality)) }).map(drop)
}

/// keyctl(KEYCTL_JOIN_SESSION_KEYRING) with no name: a session keyring of its own, empty.
///
/// # Errors
/// Its errno; ENOSYS on kernels without keys.
pub fn new_session_keyring() -> Call<()> {
    let null = core::ptr::null::<u8>();
    // SAFETY: NULL stands for an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, null) }).map(drop)
}

/// prctl(PR_SET_DUMPABLE): whether the files of this process in /proc belong to it, and not to the host's root.
///
/// # Errors
/// Its errno.
pub fn set_dumpable(dumpable: bool) -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, c_ulong::from(dumpable), 0, 0, 0) }).map(drop)
}
