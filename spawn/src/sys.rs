//! Every system call of this crate that needs `unsafe`; those for mounts and sockets stand in files of their own.
//!
//! The functions that the child calls between clone3 and exec make raw system calls: they take no lock, allocate
//! nothing and use no standard I/O. Descriptors are plain numbers there, because everything that the child opens is
//! close-on-exec and dies with the exec.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

pub use crate::confinement::sys::*;
pub use crate::mounts::sys::*;
pub use crate::sockets::sys::*;

/// Result of one system call.
pub type Call<T> = Result<T, Errno>;

/// Follow nothing out of the directory that the path starts from: `/` and `..` end at it (openat2(2)).
pub const RESOLVE_IN_ROOT: u64 = 0x10;
/// Refuse links like /proc/self/fd/N.
pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
pub fn check(result: c_long) -> Call<c_long> {
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

pub fn check_fd(result: c_long) -> Call<RawFd> {
    check(result).and_then(|fd| RawFd::try_from(fd).map_err(|_| Errno::EOVERFLOW))
}

/// Which side of [`clone_child`] returned.
pub enum Clone {
    /// The new process.
    Child,
    /// The caller, with the child's pid and pidfd.
    Parent(i32, OwnedFd),
}

/// clone3(2) with `flags`, CLONE_PIDFD and SIGCHLD; both sides go on with a copy of the memory, as after fork(2).
///
/// # Errors
/// The errno of clone3; ENOSYS on kernels before 5.3.
pub fn clone_child(flags: c_int) -> Call<Clone> {
    let mut pidfd: c_int = -1;
    // SAFETY: clone_args is plain data for which zero is valid.
    let mut args: libc::clone_args = unsafe { core::mem::zeroed() };
    args.flags = u64::try_from(flags | libc::CLONE_PIDFD).unwrap_or(0);
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = u64::try_from(libc::SIGCHLD).unwrap_or(0);
    // SAFETY: no CLONE_VM and no new stack: the child runs on a copy of this stack like after fork. This program has
    // one thread, so no lock can be held by a thread that is missing in the child.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match check(result)? {
        0 => Ok(Clone::Child),
        pid => {
            let pid = i32::try_from(pid).map_err(|_| Errno::EOVERFLOW)?;
            // SAFETY: the kernel has just made this descriptor for us.
            Ok(Clone::Parent(pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
        }
    }
}

/// fork(2): a process with a copy of the memory.
///
/// # Errors
/// The errno of fork.
pub fn fork() -> Call<Option<i32>> {
    // SAFETY: this program has one thread, so the child may do everything that the parent may.
    match unsafe { libc::fork() } {
        -1 => Err(Errno::last()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// What [`exec_tool`]'s child needs; it lives in the memory that both share until the exec.
struct ToolStart {
    path: *const c_char,
    argv: *const *const c_char,
    output: RawFd,
    errno: c_int,
}

extern "C" fn tool_main(start: *mut c_void) -> c_int {
    let start = start.cast::<ToolStart>();
    // SAFETY: `start` points to the ToolStart of exec_tool, whose thread is suspended until we exec or exit, and its
    // strings end in NUL, its vector in NULL. Only system calls are made here.
    unsafe {
        let environment: [*const c_char; 1] = [core::ptr::null()];
        let mask: u64 = 0;
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, core::ptr::null::<u64>(), 8);
        libc::syscall(libc::SYS_dup3, (*start).output, 1, 0);
        libc::syscall(libc::SYS_dup3, (*start).output, 2, 0);
        libc::syscall(libc::SYS_execve, (*start).path, (*start).argv, environment.as_ptr());
        (*start).errno = *libc::__errno_location();
        libc::syscall(libc::SYS_exit, 127);
    }
    127
}

/// Starts the program at `path` with `argv` (the program's name first), an empty environment and `output` as standard
/// output and error. Other descriptors must be close-on-exec. Returns when the exec has happened, with the pidfd.
///
/// The child shares the memory until its exec (CLONE_VM and CLONE_VFORK): no page table is copied.
///
/// # Errors
/// The errno of clone(2) or of execve(2).
pub fn exec_tool(path: &CStr, argv: &[&CStr], output: BorrowedFd<'_>) -> Call<OwnedFd> {
    let mut pointers: Vec<*const c_char> = argv.iter().map(|word| word.as_ptr()).collect();
    pointers.push(core::ptr::null());
    let mut start = ToolStart { path: path.as_ptr(), argv: pointers.as_ptr(), output: output.as_raw_fd(), errno: 0 };
    // Enough for a few system calls, and nothing that has to be fetched or cleared.
    let mut stack = [const { core::mem::MaybeUninit::<u128>::uninit() }; 512];
    let top = stack.as_mut_ptr_range().end;
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: the stack is 8 KiB, aligned, used by nobody else; `start` and `pointers` outlive the child's use, which
    // ends at its exec or exit, before clone returns here.
    let pid = unsafe { libc::clone(tool_main, top.cast(), flags, (&raw mut start).cast(), &raw mut pidfd) };
    if pid < 0 {
        return Err(Errno::last());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: `start` is a local; volatile because the child wrote it behind the compiler's back.
    let errno = unsafe { core::ptr::read_volatile(&raw const start.errno) };
    if errno != 0 {
        // SAFETY: waits for our own child; the status is not wanted.
        unsafe { libc::waitpid(pid, core::ptr::null_mut(), 0) };
        return Err(Errno::from_raw(errno));
    }
    Ok(pidfd)
}

/// execve(2); returns only when it failed.
pub fn exec(path: &CStr, argv: &[*const c_char], environment: &[*const c_char]) -> Errno {
    if argv.last().is_none_or(|p| !p.is_null()) || environment.last().is_none_or(|p| !p.is_null()) {
        return Errno::EINVAL;
    }
    // SAFETY: both vectors end in NULL (checked) and hold pointers to strings that live as long as the plan.
    unsafe { libc::syscall(libc::SYS_execve, path.as_ptr(), argv.as_ptr(), environment.as_ptr()) };
    Errno::last()
}

/// Ends the process without running anything.
pub fn exit_now(code: c_int) -> ! {
    // SAFETY: always sound.
    unsafe { libc::_exit(code) }
}

/// unshare(2).
///
/// # Errors
/// Its errno.
pub fn unshare(flags: c_int) -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_unshare, flags) }).map(drop)
}

/// prctl(PR_SET_PDEATHSIG, SIGKILL): die with the parent.
///
/// # Errors
/// Its errno.
pub fn die_with_parent() -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }).map(drop)
}

/// setresgid(2) and then setresuid(2), each with the same id three times.
///
/// # Errors
/// The errno of the one that failed; EINVAL when the id is not mapped.
pub fn become_ids(uid: u32, gid: u32) -> Call<()> {
    // SAFETY: no pointer. The raw calls change this one thread, which is all there is.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// setgroups(2).
///
/// # Errors
/// Its errno; EPERM where /proc/PID/setgroups says `deny`.
pub fn set_groups(groups: &[u32]) -> Call<()> {
    // SAFETY: pointer and length belong together.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// sethostname(2).
///
/// # Errors
/// Its errno.
pub fn set_hostname(name: &CStr) -> Call<()> {
    let bytes = name.to_bytes();
    // SAFETY: pointer and length belong together.
    check(unsafe { libc::syscall(libc::SYS_sethostname, bytes.as_ptr(), bytes.len()) }).map(drop)
}

/// setsid(2).
///
/// # Errors
/// Its errno.
pub fn new_session() -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_setsid) }).map(drop)
}

/// fchdir(2).
///
/// # Errors
/// Its errno.
pub fn change_directory_to(directory: RawFd) -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_fchdir, directory) }).map(drop)
}

/// chdir(2).
///
/// # Errors
/// Its errno.
pub fn change_directory(path: &CStr) -> Call<()> {
    // SAFETY: the string ends in NUL.
    check(unsafe { libc::syscall(libc::SYS_chdir, path.as_ptr()) }).map(drop)
}

/// openat(2) with O_CLOEXEC added.
///
/// # Errors
/// Its errno.
pub fn open_at(directory: RawFd, path: &CStr, flags: c_int) -> Call<RawFd> {
    // SAFETY: the string ends in NUL.
    check_fd(unsafe { libc::syscall(libc::SYS_openat, directory, path.as_ptr(), flags | libc::O_CLOEXEC, 0) })
}

/// openat2(2) with O_CLOEXEC added and the given RESOLVE_ flags.
///
/// # Errors
/// Its errno; ENOSYS on kernels before 5.6.
pub fn open_at2(directory: RawFd, path: &CStr, flags: c_int, resolve: u64) -> Call<RawFd> {
    let how = [u64::try_from(flags | libc::O_CLOEXEC).unwrap_or(0), 0, resolve];
    // SAFETY: `how` has the layout of struct open_how: flags, mode and resolve, 64 bits each.
    check_fd(unsafe { libc::syscall(libc::SYS_openat2, directory, path.as_ptr(), how.as_ptr(), size_of_val(&how)) })
}

/// close(2).
pub fn close(fd: RawFd) {
    // SAFETY: callers pass numbers that they own; a wrong one is an error of close and nothing else here.
    unsafe { libc::syscall(libc::SYS_close, fd) };
}

/// dup3(2) without flags: `to` becomes a copy of `from` that survives an exec.
///
/// # Errors
/// Its errno; none when both are the same number, in which case close-on-exec is cleared.
pub fn duplicate_to(from: RawFd, to: RawFd) -> Call<()> {
    if from == to {
        // SAFETY: no pointer.
        return check(unsafe { libc::syscall(libc::SYS_fcntl, from, libc::F_SETFD, 0) }).map(drop);
    }
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_dup3, from, to, 0) }).map(drop)
}

/// umask(2).
pub fn set_umask(mask: u32) {
    // SAFETY: no pointer; it cannot fail.
    unsafe { libc::syscall(libc::SYS_umask, mask) };
}

/// fchmodat(2).
///
/// # Errors
/// Its errno.
pub fn change_mode(directory: RawFd, path: &CStr, mode: u32) -> Call<()> {
    // SAFETY: the string ends in NUL.
    check(unsafe { libc::syscall(libc::SYS_fchmodat, directory, path.as_ptr(), mode) }).map(drop)
}

/// Whether a file has the extended attribute `name`.
#[must_use]
pub fn has_attribute(path: &CStr, name: &CStr) -> bool {
    // SAFETY: both strings end in NUL; a length of 0 asks for the size and writes nothing.
    unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), core::ptr::null_mut(), 0) > 0 }
}

/// fchown(2) of the user alone.
///
/// # Errors
/// Its errno.
pub fn change_owner(fd: RawFd, uid: u32) -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_fchown, fd, uid, u32::MAX) }).map(drop)
}

/// mkdirat(2).
///
/// # Errors
/// Its errno.
pub fn make_directory(directory: RawFd, path: &CStr, mode: u32) -> Call<()> {
    // SAFETY: the string ends in NUL.
    check(unsafe { libc::syscall(libc::SYS_mkdirat, directory, path.as_ptr(), mode) }).map(drop)
}

/// unlinkat(2).
///
/// # Errors
/// Its errno.
pub fn remove_file(directory: RawFd, path: &CStr) -> Call<()> {
    // SAFETY: the string ends in NUL.
    check(unsafe { libc::syscall(libc::SYS_unlinkat, directory, path.as_ptr(), 0) }).map(drop)
}

/// write(2) of all of `bytes` at once, as files of /proc want it.
///
/// # Errors
/// Its errno; EIO when less was taken.
pub fn write_once(fd: RawFd, bytes: &[u8]) -> Call<()> {
    // SAFETY: pointer and length belong together.
    let taken = check(unsafe { libc::syscall(libc::SYS_write, fd, bytes.as_ptr(), bytes.len()) })?;
    if usize::try_from(taken) == Ok(bytes.len()) { Ok(()) } else { Err(Errno::EIO) }
}

/// mknodat(2) of an empty regular file.
///
/// # Errors
/// Its errno.
pub fn make_file(directory: RawFd, path: &CStr, mode: u32) -> Call<()> {
    // SAFETY: the string ends in NUL.
    check(unsafe { libc::syscall(libc::SYS_mknodat, directory, path.as_ptr(), libc::S_IFREG | mode, 0) }).map(drop)
}

/// rmdir(2) below a directory.
///
/// # Errors
/// The errno of unlinkat(2).
pub fn remove_directory(directory: RawFd, path: &CStr) -> Call<()> {
    // SAFETY: the string ends in NUL.
    check(unsafe { libc::syscall(libc::SYS_unlinkat, directory, path.as_ptr(), libc::AT_REMOVEDIR) }).map(drop)
}

/// symlinkat(2).
///
/// # Errors
/// Its errno.
pub fn make_link(content: &CStr, directory: RawFd, path: &CStr) -> Call<()> {
    // SAFETY: both strings end in NUL.
    check(unsafe { libc::syscall(libc::SYS_symlinkat, content.as_ptr(), directory, path.as_ptr()) }).map(drop)
}

/// The type bits (S_IFMT) of what a descriptor refers to.
///
/// # Errors
/// The errno of fstat(2).
pub fn file_type(fd: RawFd) -> Call<u32> {
    // SAFETY: stat is plain data for which zero is valid.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: the pointer is to a whole struct stat.
    check(c_long::from(unsafe { libc::fstat(fd, &raw mut stat) }))?;
    Ok(stat.st_mode & libc::S_IFMT)
}

/// readlinkat(2) of the link that `fd` refers to (O_PATH and O_NOFOLLOW); the number of bytes in `buffer`.
///
/// # Errors
/// Its errno; ENAMETOOLONG when the buffer is full.
pub fn read_link(fd: RawFd, path: &CStr, buffer: &mut [u8]) -> Call<usize> {
    // SAFETY: pointer and length belong together; the string ends in NUL.
    let length =
        check(unsafe { libc::syscall(libc::SYS_readlinkat, fd, path.as_ptr(), buffer.as_mut_ptr(), buffer.len()) })?;
    let length = usize::try_from(length).unwrap_or(0);
    if length >= buffer.len() { Err(Errno::ENAMETOOLONG) } else { Ok(length) }
}

/// close_range(2): closes the descriptors from `first` to `last`.
///
/// # Errors
/// Its errno; ENOSYS on kernels before 5.9.
pub fn close_range(first: c_uint, last: c_uint) -> Call<()> {
    // SAFETY: called first of all, when nothing but the standard library's 0 to 2 is in use, and in a clone that goes on to
    // its exec and uses those alone that its caller leaves open.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Sets close-on-exec on one descriptor.
///
/// # Errors
/// The errno of fcntl(2).
pub fn close_on_exec(fd: RawFd) -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// Sets the disposition of `signal` to its default.
///
/// # Errors
/// The errno of sigaction(2).
pub fn default_signal(signal: c_int) -> Call<()> {
    // SAFETY: the kernel's struct sigaction of at most 32 bytes, all zero, means SIG_DFL without flags.
    let action = [0_u64; 4];
    // SAFETY: pointers are valid, the size of the signal set is 8 bytes.
    check(unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), core::ptr::null::<u64>(), 8) })
        .map(drop)
}

/// sigaction(2) with a disposition that runs no code.
///
/// # Errors
/// Its errno.
pub fn set_disposition(signal: nix::sys::signal::Signal, action: &nix::sys::signal::SigAction) -> Call<()> {
    use nix::sys::signal::{SigHandler, sigaction};
    if !matches!(action.handler(), SigHandler::SigDfl | SigHandler::SigIgn) {
        return Err(Errno::EINVAL);
    }
    // SAFETY: no handler is installed (checked).
    unsafe { sigaction(signal, action) }.map(drop)
}

/// Unblocks all signals.
///
/// # Errors
/// The errno of sigprocmask(2).
pub fn unblock_signals() -> Call<()> {
    let mask = 0_u64;
    // SAFETY: pointers are valid, the size of the signal set is 8 bytes.
    check(unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, core::ptr::null::<u64>(), 8)
    })
    .map(drop)
}

/// pidfd_send_signal(2).
///
/// # Errors
/// Its errno.
pub fn signal_process(pidfd: BorrowedFd<'_>, signal: c_int) -> Call<()> {
    let null = core::ptr::null::<c_void>();
    // SAFETY: a NULL siginfo is allowed.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, null, 0) }).map(drop)
}

/// Waits for the child behind `pidfd` and reaps it: its exit code, or 128 and the signal that killed it, and that
/// signal (0: it exited).
///
/// # Errors
/// The errno of waitid(2).
pub fn wait_child(pidfd: BorrowedFd<'_>) -> Call<(u8, c_int)> {
    let id = libc::id_t::try_from(pidfd.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    // SAFETY: siginfo_t is plain data for which zero is valid.
    let mut info: libc::siginfo_t = unsafe { core::mem::zeroed() };
    loop {
        // SAFETY: the pointer is to a whole siginfo_t.
        match check(c_long::from(unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED) })) {
            Err(Errno::EINTR) => {}
            result => {
                result?;
                break;
            }
        }
    }
    // SAFETY: waitid fills in the member for SIGCHLD.
    let status = unsafe { info.si_status() };
    let code = u8::try_from(status & 0xff).unwrap_or(u8::MAX);
    if info.si_code == libc::CLD_EXITED { Ok((code, 0)) } else { Ok((128_u8.saturating_add(code), status)) }
}

/// Unlocks the pty of `master` and opens its other end without a path (TIOCGPTPEER).
///
/// # Errors
/// The errno of the ioctl(2) that failed.
pub fn open_peer(master: RawFd) -> Call<RawFd> {
    let unlocked: c_int = 0;
    // SAFETY: the pointer is to an int.
    check(unsafe { libc::syscall(libc::SYS_ioctl, master, libc::TIOCSPTLCK as c_ulong, &raw const unlocked) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the argument is a number.
    check_fd(unsafe { libc::syscall(libc::SYS_ioctl, master, libc::TIOCGPTPEER as c_ulong, flags) })
}

/// ioctl(TIOCSCTTY, 0): `tty` becomes the controlling terminal.
///
/// # Errors
/// Its errno.
pub fn take_terminal(tty: RawFd) -> Call<()> {
    // SAFETY: the argument is a number.
    check(unsafe { libc::syscall(libc::SYS_ioctl, tty, libc::TIOCSCTTY as c_ulong, 0) }).map(drop)
}

/// Copies the window size of the terminal `from` to `to`.
///
/// # Errors
/// The errno of ioctl(TIOCGWINSZ) or ioctl(TIOCSWINSZ).
pub fn copy_window_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Call<()> {
    // SAFETY: winsize is plain data for which zero is valid.
    let mut size: libc::winsize = unsafe { core::mem::zeroed() };
    // SAFETY: the pointer is to a whole struct winsize.
    check(c_long::from(unsafe { libc::ioctl(from.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }))?;
    // SAFETY: as above.
    check(c_long::from(unsafe { libc::ioctl(to.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })).map(drop)
}

/// The window size of a terminal: rows and columns, 16 bits each in this machine's order.
///
/// # Errors
/// The errno of ioctl(TIOCGWINSZ).
pub fn window_size(terminal: BorrowedFd<'_>) -> Call<[u8; 4]> {
    // SAFETY: winsize is plain data for which zero is valid.
    let mut size: libc::winsize = unsafe { core::mem::zeroed() };
    // SAFETY: the pointer is to a whole struct winsize.
    check(c_long::from(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }))?;
    let ([a, b], [c, d]) = (size.ws_row.to_ne_bytes(), size.ws_col.to_ne_bytes());
    Ok([a, b, c, d])
}

/// Gives a terminal a size as [`window_size`] tells it.
///
/// # Errors
/// The errno of ioctl(TIOCSWINSZ).
pub fn set_window_size(terminal: RawFd, [a, b, c, d]: [u8; 4]) -> Call<()> {
    let (rows, columns) = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointer is to a whole struct winsize.
    check(unsafe { libc::syscall(libc::SYS_ioctl, terminal, libc::TIOCSWINSZ as c_ulong, &raw const size) }).map(drop)
}

/// The foreground process group of the terminal whose master is `master`, as a number of this pid namespace.
///
/// # Errors
/// The errno of ioctl(TIOCGPGRP).
pub fn foreground_group(master: BorrowedFd<'_>) -> Call<i32> {
    let mut group: c_int = 0;
    // SAFETY: the pointer is to an int.
    check(c_long::from(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPGRP, &raw mut group) }))?;
    Ok(group)
}

/// read(2), again after EINTR.
///
/// # Errors
/// Its errno.
pub fn read(fd: RawFd, buffer: &mut [u8]) -> Call<usize> {
    loop {
        // SAFETY: pointer and length belong together.
        match check(unsafe { libc::syscall(libc::SYS_read, fd, buffer.as_mut_ptr(), buffer.len()) }) {
            Err(Errno::EINTR) => {}
            result => return Ok(usize::try_from(result?).unwrap_or(0)),
        }
    }
}

/// The beginning of a file in one read, as far as `buffer` holds it: right for the small files of /proc.
///
/// # Errors
/// The errno of openat(2) or read(2).
pub fn read_file<'a>(path: &CStr, buffer: &'a mut [u8]) -> Call<&'a [u8]> {
    let file = open_at(libc::AT_FDCWD, path, libc::O_RDONLY)?;
    let length = read(file, buffer);
    close(file);
    Ok(buffer.get(..length?).unwrap_or_default())
}

/// write(2), once.
///
/// # Errors
/// Its errno.
pub fn write(fd: RawFd, bytes: &[u8]) -> Call<usize> {
    // SAFETY: pointer and length belong together.
    let length = check(unsafe { libc::syscall(libc::SYS_write, fd, bytes.as_ptr(), bytes.len()) })?;
    Ok(usize::try_from(length).unwrap_or(0))
}
