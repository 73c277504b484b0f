//! The unsafe code of the test crate: fork, exec and the system calls that nix has no safe form of.
#![allow(unsafe_code)]

use core::mem;
use core::ptr;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::Pid;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Runs `child` in a forked process whose exit status is its result, or 101 after a panic.
///
/// Only for single-threaded processes, which is what every world is.
///
/// # Errors
/// When fork fails.
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the process has one thread, so the child may use everything that the parent may.
    match check(unsafe { libc::fork() })? {
        0 => {
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// Executes `program`. Returns only when that fails. `argv` may be empty, which is a caller's right.
pub fn exec(program: &CStr, argv: &[CString], env: &[CString]) -> Errno {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both lists are null-terminated arrays of NUL-terminated strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    Errno::last()
}

/// Makes `fd` the descriptor `number` of this process, without close-on-exec.
///
/// # Errors
/// When dup2 fails.
pub fn place(fd: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: dup2 touches no memory; the caller owns the numbering of a process that is about to exec.
    check(unsafe { libc::dup2(fd, number) }).map(drop)
}

/// Closes `number`, whoever owns it: for a process that is about to exec.
pub fn close(number: RawFd) {
    // SAFETY: close touches no memory; the process is about to exec and uses the descriptor no more.
    unsafe { libc::close(number) };
}

/// A pipe, both ends close-on-exec: (read end, write end).
///
/// # Errors
/// When pipe2 fails.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: the array has room for the two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: both were just made and nothing else owns them.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Gives the file at `path` the capabilities `caps` (numbers below 32) as permitted and effective, as
/// `setcap cap_x=ep` does: capabilities(7), version 2 of the extended attribute.
///
/// # Errors
/// When the file system has no `security.capability` attributes.
pub fn set_file_capabilities(path: &Path, caps: &[u32]) -> io::Result<()> {
    let permitted: u32 = caps.iter().map(|cap| 1 << cap).sum();
    let mut value = Vec::new();
    for word in [0x0200_0000_u32 | 1, permitted, 0, 0, 0] {
        value.extend_from_slice(&word.to_le_bytes());
    }
    let path = c_path(path);
    let name = c"security.capability";
    // SAFETY: two NUL-terminated strings, and a buffer with its own length.
    check(unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }).map(drop)
}

/// `path` for the kernel.
///
/// # Panics
/// When it holds a NUL byte.
#[must_use]
pub fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).expect("a path has no NUL byte")
}

/// Ends this thread alone, also the first one of the process.
pub fn end_thread() {
    // SAFETY: a number; nothing of this thread's is used by others afterwards.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

/// Sends SIGALRM to this process, also after exec, when `microseconds` have passed.
///
/// # Errors
/// When setitimer fails.
pub fn alarm_after(microseconds: i64) -> io::Result<()> {
    let timer = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
        it_value: libc::timeval { tv_sec: microseconds / 1_000_000, tv_usec: microseconds % 1_000_000 },
    };
    // SAFETY: `timer` is a whole itimerval, and no old value is asked for.
    check(unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()) }).map(drop)
}

/// prctl with one argument.
///
/// # Errors
/// The call's own.
pub fn prctl(option: libc::c_int, argument: libc::c_ulong) -> io::Result<libc::c_int> {
    let zero: libc::c_ulong = 0;
    // SAFETY: only used with options whose argument is a number.
    check(unsafe { libc::prctl(option, argument, zero, zero, zero) })
}

/// Takes every capability but `keep` out of the bounding set.
///
/// # Errors
/// When CAP_SETPCAP is missing.
pub fn keep_in_bounding_set(keep: &[u32]) -> io::Result<()> {
    for cap in 0..64 {
        if !keep.contains(&cap) && prctl(libc::PR_CAPBSET_READ, cap.into()).unwrap_or(0) == 1 {
            prctl(libc::PR_CAPBSET_DROP, cap.into())?;
        }
    }
    Ok(())
}

/// Makes the system call `number` answer `errno` in this process and all that it executes, without no_new_privs (which
/// needs CAP_SYS_ADMIN), as an old kernel would.
///
/// # Errors
/// When the kernel has no seccomp filters.
pub fn without_system_call(number: libc::c_long, errno: i32) -> io::Result<()> {
    let word = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let errno = u32::try_from(errno).expect("an errno is positive");
    let number = u32::try_from(number).expect("a system call number is positive");
    let mut filter = [
        word(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        word(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        word(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno),
        word(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: the program points at four instructions that outlive the call, and the kernel copies them.
    check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) }).map(drop)
}

/// Makes every system call from `first` on answer ENOSYS in this process and all that it executes, without
/// no_new_privs (which needs CAP_SYS_ADMIN). Since Linux 5.1 numbers are the same on every architecture and only grow
/// with the versions: 436 (close_range) is the first that 5.5 does not have.
///
/// # Errors
/// When the kernel has no seccomp filters.
pub fn without_system_calls_from(first: u32) -> io::Result<()> {
    let word = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let errno = u32::try_from(libc::ENOSYS).expect("an errno is positive");
    let mut filter = [
        word(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        word(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, first),
        word(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno),
        word(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: the program points at four instructions that outlive the call, and the kernel copies them.
    check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) }).map(drop)
}

/// A descriptor (close-on-exec) that refers to the process `pid`: pidfd_open(2), Linux 5.3.
///
/// # Errors
/// ENOSYS on an older kernel, ESRCH when there is no such process.
pub fn pidfd(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: two numbers in, a new descriptor out.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).expect("a descriptor fits")) })
}

/// Starts to trace `pid`, which goes on running: PTRACE_SEIZE with PTRACE_O_TRACEEXIT and PTRACE_O_TRACESYSGOOD.
/// With `kill` the tracee dies with its tracer.
///
/// # Errors
/// EPERM when the kernel forbids it.
pub fn seize(pid: Pid) -> io::Result<()> {
    let options =
        libc::PTRACE_O_TRACEEXIT | libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACEEXEC;
    // SAFETY: PTRACE_SEIZE takes numbers only.
    let result = unsafe {
        libc::ptrace(libc::PTRACE_SEIZE, pid.as_raw(), ptr::null_mut::<libc::c_void>(), libc::c_long::from(options))
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The raw status of `pid`, and the peak of its resident memory in KiB over its whole life (forked image included).
///
/// # Errors
/// ECHILD when it is no child of this process.
pub fn wait(pid: Pid, flags: i32) -> io::Result<Option<(i32, i64)>> {
    let mut status = 0;
    // SAFETY: a rusage of zeroes is valid, and the kernel fills it.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    loop {
        // SAFETY: both pointers are to whole, writable values.
        match check(unsafe { libc::wait4(pid.as_raw(), &raw mut status, flags, &raw mut usage) }) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some((status, usage.ru_maxrss))),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The number and arguments in what PTRACE_GET_SYSCALL_INFO says at the entry of a system call.
#[must_use]
pub fn syscall_entry(info: &libc::ptrace_syscall_info) -> crate::tracer::Stop {
    assert_eq!(info.op, libc::PTRACE_SYSCALL_INFO_ENTRY);
    // SAFETY: `op` says that the kernel filled this variant.
    let entry = unsafe { info.u.entry };
    crate::tracer::Stop::Enter(entry.nr, entry.args)
}

/// The result in what PTRACE_GET_SYSCALL_INFO says at the exit of a system call.
#[must_use]
pub fn syscall_exit(info: &libc::ptrace_syscall_info) -> crate::tracer::Stop {
    assert_eq!(info.op, libc::PTRACE_SYSCALL_INFO_EXIT);
    // SAFETY: `op` says that the kernel filled this variant.
    crate::tracer::Stop::Leave(unsafe { info.u.exit.sval })
}

/// Sets a signal to its default action.
///
/// # Errors
/// EINVAL.
pub fn default_signal(signal: nix::sys::signal::Signal) -> io::Result<()> {
    // SAFETY: no handler is installed.
    let old = unsafe { libc::signal(signal as libc::c_int, libc::SIG_DFL) };
    if old == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes this process a real-time one (SCHED_FIFO, priority 1).
///
/// # Errors
/// EPERM without CAP_SYS_NICE.
pub fn become_fifo() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: a whole sched_param.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) }).map(drop)
}

/// An extended attribute of a file.
///
/// # Errors
/// ENODATA when it is not there, or not for this reader.
pub fn attribute(path: &Path, name: &CStr) -> io::Result<Vec<u8>> {
    let path = c_path(path);
    let mut value = vec![0_u8; 256];
    // SAFETY: two NUL-terminated strings, and a buffer with its own length.
    let read = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(read).map_err(|_| io::Error::last_os_error())?);
    Ok(value)
}

/// Sets an extended attribute of a file.
///
/// # Errors
/// EPERM for a writer who may not.
pub fn set_attribute(path: &Path, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = c_path(path);
    // SAFETY: two NUL-terminated strings, and a buffer with its own length.
    check(unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }).map(drop)
}

/// Tries to take control of `pid` as any user may: PTRACE_ATTACH.
///
/// # Errors
/// EPERM when the kernel forbids it, which is what a test hopes for.
pub fn attach(pid: Pid) -> nix::Result<()> {
    nix::sys::ptrace::attach(pid)
}

/// Tries to copy descriptor `number` out of the process `pid`: pidfd_getfd(2), Linux 5.6.
///
/// # Errors
/// EPERM when the kernel forbids it.
pub fn steal_descriptor(pid: Pid, number: i32) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let pidfd = pidfd(pid)?;
    // SAFETY: numbers in, a new descriptor out.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).expect("a descriptor fits")) })
}

/// Sends any signal, a real-time one too.
///
/// # Errors
/// ESRCH, EPERM.
pub fn send_signal(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: two numbers.
    if unsafe { libc::kill(pid.as_raw(), signal) } == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets `signal` to be ignored, which exec keeps.
///
/// # Errors
/// EINVAL for a signal that cannot be ignored.
pub fn ignore_signal(signal: i32) -> io::Result<()> {
    // SAFETY: SIG_IGN runs no code.
    if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Gives this one thread the ids of a user, and makes the process dumpable.
///
/// # Errors
/// The kernel's.
pub fn this_thread_becomes(uid: u32, gid: u32) -> io::Result<()> {
    let numbers = |call: libc::c_long, id: u32| {
        // SAFETY: three numbers; the raw call changes one thread, as is wanted here.
        if unsafe { libc::syscall(call, id, id, id) } == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: a null list of no length.
    if unsafe { libc::syscall(libc::SYS_setgroups, 0, ptr::null::<libc::gid_t>()) } == -1 {
        return Err(io::Error::last_os_error());
    }
    numbers(libc::SYS_setresgid, gid)?;
    numbers(libc::SYS_setresuid, uid)?;
    prctl(libc::PR_SET_DUMPABLE, 1).map(drop)
}
