//! Every `unsafe` block of the privileged programs: system calls that nix and caps do not wrap.

#![allow(unsafe_code)]

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Removes every variable from the environment (clearenv(3)).
///
/// # Errors
/// ENOMEM, when the C library says that it failed.
pub fn clear_environment() -> Result<(), Errno> {
    // SAFETY: called before any other thread exists, and no reference into the environment is held.
    if unsafe { libc::clearenv() } == 0 { Ok(()) } else { Err(Errno::ENOMEM) }
}

/// The capability sets of a process, as bits: bit N is capability number N.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    /// In force now.
    pub effective: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What an exec may pass on; the ambient set is never more.
    pub inheritable: u64,
}

/// The three sets of this process, in one call (capget(2)).
///
/// # Errors
/// The kernel's.
pub fn capabilities() -> Result<CapabilitySets, Errno> {
    let mut data = [[0_u32; 3]; 2];
    // SAFETY: the header is one of version 3, for which the kernel fills in two structures of three 32-bit numbers.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, CAPABILITY_HEADER.as_ptr(), data.as_mut_ptr()) })?;
    let set = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    let [[e0, p0, i0], [e1, p1, i1]] = data;
    Ok(CapabilitySets { effective: set(e0, e1), permitted: set(p0, p1), inheritable: set(i0, i1) })
}

/// Sets all three at once (capset(2)). An ambient capability that is not inheritable any more goes as well.
///
/// # Errors
/// EPERM: more than was permitted before, or effective than permitted now.
pub fn set_capabilities(sets: CapabilitySets) -> Result<(), Errno> {
    let half = |shift: u32| [sets.effective, sets.permitted, sets.inheritable].map(|set| (set >> shift) as u32);
    let data = [half(0), half(32)];
    // SAFETY: as for capget; the kernel reads the two structures.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, CAPABILITY_HEADER.as_ptr(), data.as_ptr()) }).map(drop)
}

/// _LINUX_CAPABILITY_VERSION_3, and 0 for this process (capget(2)).
const CAPABILITY_HEADER: [u32; 2] = [0x2008_0522, 0];

/// setresgid(2) and setresuid(2) of the process's only thread, each real, effective, saved. Not by the C library, which
/// stops all threads for it: eight system calls of musl's.
///
/// # Errors
/// The kernel's.
pub fn set_ids(gids: [u32; 3], uids: [u32; 3]) -> Result<(), Errno> {
    #[cfg(target_pointer_width = "32")]
    let (group, user) = (libc::SYS_setresgid32, libc::SYS_setresuid32);
    #[cfg(not(target_pointer_width = "32"))]
    let (group, user) = (libc::SYS_setresgid, libc::SYS_setresuid);
    for (call, [real, effective, saved]) in [(group, gids), (user, uids)] {
        // SAFETY: the arguments are numbers, and there is no other thread whose ids would stay.
        Errno::result(unsafe { libc::syscall(call, real, effective, saved) })?;
    }
    Ok(())
}

/// Stops the three interval timers, which survive an exec (setitimer(2)).
///
/// # Errors
/// The kernel's, which has none for these arguments.
pub fn stop_timers() -> Result<(), Errno> {
    let zero = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let never = libc::itimerval { it_interval: zero, it_value: zero };
    for timer in [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
        // SAFETY: `never` outlives the call, and a null pointer means that the old value is not wanted.
        Errno::result(unsafe { libc::setitimer(timer, &never, core::ptr::null_mut()) })?;
    }
    Ok(())
}

/// Sets a signal to its default action, or to being ignored (signal(2)).
///
/// # Errors
/// EINVAL for SIGKILL, SIGSTOP and numbers that are no signal.
pub fn set_signal(signal: nix::sys::signal::Signal, ignore: bool) -> Result<(), Errno> {
    let action = if ignore { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: neither action is a handler, so no code runs in signal context.
    if unsafe { libc::signal(signal as libc::c_int, action) } == libc::SIG_ERR { Err(Errno::last()) } else { Ok(()) }
}

/// A duplicate of the descriptor that the caller left open under the number `number`; close-on-exec, 3 or higher.
///
/// # Errors
/// EBADF when nothing is open there; EMFILE.
pub fn duplicate(number: RawFd) -> Result<OwnedFd, Errno> {
    if number < 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: `number` is not -1, the borrow ends with this call, and the kernel checks whether it is open.
    let inherited = unsafe { BorrowedFd::borrow_raw(number) };
    let copy = nix::fcntl::fcntl(inherited, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(copy) })
}

/// Whether the process of a pidfd still lives: signal 0 to it finds it (pidfd_send_signal(2)).
///
/// # Errors
/// ESRCH when it is gone; EBADF when `pidfd` is none; ENOSYS before Linux 5.1. EPERM is no error: the process is there.
pub fn pidfd_lives(pidfd: &OwnedFd) -> Result<(), Errno> {
    let no_info = core::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open for as long as `pidfd` is borrowed, and a null siginfo is allowed.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), 0, no_info, 0) };
    match Errno::result(sent) {
        Ok(_) | Err(Errno::EPERM) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Opens the user namespace that owns the namespace of `namespace` (NS_GET_USERNS of ioctl_ns(2), Linux 4.9).
///
/// # Errors
/// EPERM when it is outside the caller's own user namespace; ENOTTY when `namespace` is none, or before Linux 4.9.
pub fn owning_user_namespace(namespace: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    namespace_ioctl(namespace, libc::NS_GET_USERNS)
}

/// Opens the parent of a user namespace (NS_GET_PARENT of ioctl_ns(2), Linux 4.9).
///
/// # Errors
/// EPERM when there is none, or it is outside the caller's own user namespace.
pub fn parent_namespace(namespace: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    namespace_ioctl(namespace, libc::NS_GET_PARENT)
}

fn namespace_ioctl(namespace: BorrowedFd<'_>, request: libc::Ioctl) -> Result<OwnedFd, Errno> {
    // SAFETY: both requests take no argument and return a descriptor, which is close-on-exec.
    let made = Errno::result(unsafe { libc::ioctl(namespace.as_raw_fd(), request) })?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(made) })
}

/// The uid of the owner of a user namespace (NS_GET_OWNER_UID of ioctl_ns(2), Linux 4.11).
///
/// # Errors
/// EINVAL when it is no user namespace; ENOTTY on older kernels.
pub fn namespace_owner(namespace: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut uid: libc::uid_t = u32::MAX;
    // SAFETY: the request writes one uid_t through the pointer, which outlives the call.
    Errno::result(unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_OWNER_UID, &raw mut uid) })?;
    Ok(uid)
}

/// Marks every descriptor from 3 on close-on-exec (close_range(2), from Linux 5.11 on).
///
/// # Errors
/// ENOSYS or EINVAL on older kernels.
pub fn close_on_exec_from_3() -> Result<(), Errno> {
    // SAFETY: only a flag of descriptors is changed, none is closed.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(done).map(drop)
}

/// Marks one descriptor close-on-exec, for kernels on which [`close_on_exec_from_3`] fails. One that is closed is let
/// be.
pub fn close_on_exec(number: RawFd) {
    // SAFETY: only a flag of the descriptor is changed; the kernel checks whether it is open.
    unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// Lets a command end when this program ends, however that happens (prctl(2), PR_SET_PDEATHSIG).
pub fn end_with_parent(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt as _;
    let set = || {
        let signal = nix::sys::signal::Signal::SIGKILL;
        nix::sys::prctl::set_pdeathsig(signal).map_err(std::io::Error::from)
    };
    // SAFETY: between fork and exec the closure makes one system call; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(set) };
}

/// Ends the process at once: no destructor, no atexit handler, no flush (_exit(2)).
pub fn exit_now(code: u8) -> ! {
    // SAFETY: always sound; what is not flushed or destroyed is meant not to be.
    unsafe { libc::_exit(libc::c_int::from(code)) }
}
