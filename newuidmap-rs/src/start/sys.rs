//! A program's start without the standard library's runtime, which makes a dozen system calls to handle a stack overflow
//! and SIGPIPE in ways that are not wanted here: the kernel's SIGSEGV says as much, and what is done about SIGPIPE each
//! program decides itself. What the runtime does for safety stays: descriptors 0 to 2 are open before anything is opened.

#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::OnceLock;

static WORDS: OnceLock<Vec<OsString>> = OnceLock::new();

/// The argument vector, the program's name first. In place of `std::env::args_os`, which the runtime fills in on musl.
pub fn words() -> &'static [OsString] {
    WORDS.get_or_init(|| std::env::args_os().collect())
}

/// Makes `run`, which gives the exit status, the program: the C library calls it with nothing in between. The crate
/// that uses it is `#![cfg_attr(not(test), no_main)]`.
#[macro_export]
macro_rules! program {
    ($run:expr) => {
        #[cfg(not(test))]
        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        extern "C" fn main(count: ::core::ffi::c_int, words: *const *const ::core::ffi::c_char) -> ::core::ffi::c_int {
            // SAFETY: called by the C library, once, with the vector of execve(2).
            unsafe { $crate::start::sys::begin(count, words) };
            $crate::sys::exit_now($run)
        }
    };
}

/// See [`program`].
///
/// # Safety
/// `words` must point to `count` strings that end in NUL and live as long as the process.
pub unsafe fn begin(count: c_int, words: *const *const c_char) {
    open_standard_descriptors();
    let word = |index: usize| {
        // SAFETY: `index` is less than `count`, and each string ends in NUL (the caller's promise).
        let text = unsafe { CStr::from_ptr(*words.add(index)) };
        OsStr::from_bytes(text.to_bytes()).to_owned()
    };
    let _ = WORDS.set((0..usize::try_from(count).unwrap_or(0)).map(word).collect());
}

/// A descriptor of the three that is closed becomes /dev/null, lest a file that is opened later be taken for it.
fn open_standard_descriptors() {
    let mut fds = [0, 1, 2].map(|fd| libc::pollfd { fd, events: 0, revents: 0 });
    // SAFETY: the array and its length belong together; a time of 0 waits for nothing.
    let asked = unsafe { libc::poll(fds.as_mut_ptr(), 3, 0) } >= 0;
    for fd in &fds {
        // poll(2) fails where fewer descriptors than three are allowed (RLIMIT_NOFILE).
        let closed = if asked { fd.revents & libc::POLLNVAL != 0 } else { is_closed(fd.fd) };
        // The lowest number that is free, and so this one.
        // SAFETY: the path ends in NUL.
        if closed && unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) } < 0 {
            crate::sys::exit_now(1);
        }
    }
}

fn is_closed(fd: c_int) -> bool {
    // SAFETY: F_GETFD takes no argument; the kernel checks whether the descriptor is open.
    unsafe { libc::fcntl(fd, libc::F_GETFD) < 0 }
}
