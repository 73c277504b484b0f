//! Stopping a program at a chosen system call: what a hostile caller does by luck, done on purpose.
//!
//! The tracer is root with CAP_SYS_PTRACE, so a setuid bit or a file capability keeps its effect.

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::sys;

/// Where a tracee has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// About to do this system call.
    Enter(u64, [u64; 6]),
    /// Has done a system call, with this result.
    Leave(i64),
    /// Has executed a program.
    Exec,
    /// About to end; its memory is still there.
    Exit,
    /// Ended.
    Gone(i32),
}

/// Goes on with `pid` to the next stop. A signal on its way is delivered.
///
/// # Panics
/// When `pid` is not a tracee of this process.
#[must_use]
pub fn next(pid: Pid) -> Stop {
    let mut signal = None;
    loop {
        match ptrace::syscall(pid, signal.take()) {
            // ESRCH: killed meanwhile; wait says so.
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => panic!("PTRACE_SYSCALL: {error}"),
        }
        let (status, _) = sys::wait(pid, libc::__WALL).expect("wait").expect("a status");
        if !libc::WIFSTOPPED(status) {
            return Stop::Gone(status);
        }
        match (libc::WSTOPSIG(status), status >> 16) {
            (libc::SIGTRAP, libc::PTRACE_EVENT_EXIT) => return Stop::Exit,
            (libc::SIGTRAP, libc::PTRACE_EVENT_EXEC) => return Stop::Exec,
            (_, libc::PTRACE_EVENT_STOP) => {}
            (number, 0) if number == libc::SIGTRAP | 0x80 => {
                if let Some(stop) = system_call(pid) {
                    return stop;
                }
            }
            (number, _) => signal = Signal::try_from(number).ok(),
        }
    }
}

fn system_call(pid: Pid) -> Option<Stop> {
    let info = ptrace::syscall_info(pid).ok()?;
    match info.op {
        libc::PTRACE_SYSCALL_INFO_ENTRY => Some(sys::syscall_entry(&info)),
        libc::PTRACE_SYSCALL_INFO_EXIT => Some(sys::syscall_exit(&info)),
        _ => None,
    }
}

/// Whether system call `number` only prepares the program itself, so that a sweep over a call's life may pass it by.
#[must_use]
pub fn only_prepares(number: u64) -> bool {
    let number = i64::try_from(number).unwrap_or(-1);
    [
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_sigaltstack,
        libc::SYS_prctl,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_brk,
    ]
    .contains(&number)
}
