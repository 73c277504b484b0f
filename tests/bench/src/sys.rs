//! The few calls that nix offers only as unsafe, or not at all.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;

use nix::errno::Errno;
use nix::unistd::{ForkResult, Pid};

/// How a child ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Exit code; 128 and the signal's number when a signal ended it, as a shell counts.
    pub code: i32,
    /// Peak resident memory in KiB. The image that called exec counts too: a forked one is small, a vforked one is
    /// the harness itself.
    pub peak_kib: i64,
}

/// Gives SIGPIPE its default action back, which Rust's start took: for what is started here, and for a reader of the
/// tables that closes early.
pub fn restore_sigpipe() {
    // SAFETY: SIG_DFL installs no handler, and nothing else has set one.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Runs `child` in a forked process; its value is the exit code.
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the harness never starts a thread, so the child of fork may do whatever the parent might.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(70);
            // SAFETY: _exit ends the process; handlers and destructors of the parent's copy do not run.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Waits for the end of `pid`.
pub fn wait(pid: Pid) -> io::Result<Ended> {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are to live objects of the types that wait4 writes.
        let got = unsafe { libc::wait4(pid.as_raw(), &raw mut status, 0, usage.as_mut_ptr()) };
        if got == pid.as_raw() {
            break;
        }
        if Errno::last() != Errno::EINTR {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: all zero bytes are a valid rusage, and wait4 has filled it.
    let usage = unsafe { usage.assume_init() };
    let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) };
    Ok(Ended { code, peak_kib: usage.ru_maxrss })
}

/// Replaces this process.
pub fn exec(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    match nix::unistd::execve(path, args, env) {
        Ok(never) => match never {},
        Err(error) => error.into(),
    }
}
