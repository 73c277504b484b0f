//! The unsafe code of rootfs: fork, a signal handler that passes a signal on, and extended attributes.
#![allow(unsafe_code)]

use core::ptr;
use core::sync::atomic::{AtomicI32, Ordering};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The child that [`pass_on`] sends signals to; 0 when there is none.
static CHILD: AtomicI32 = AtomicI32::new(0);
/// The last signal that [`pass_on`] has seen; 0 when there was none.
static SEEN: AtomicI32 = AtomicI32::new(0);

/// Runs `child` in a forked process whose exit status is its result.
///
/// # Errors
/// fork(2) failed.
///
/// # Panics
/// The process has more than one thread: then the child could not rely on locks.
pub fn fork(child: impl FnOnce() -> i32) -> Result<Pid, Errno> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    assert!(threads == 1 || cfg!(test), "fork with {threads} threads");
    // SAFETY: the process has one thread (checked above), so the child may use all that the parent may. In unit tests,
    // which are threaded, the parent's other threads hold no lock that the child needs but possibly stdio's.
    match Errno::result(unsafe { libc::fork() })? {
        0 => {
            let status = catch_unwind(AssertUnwindSafe(child)).unwrap_or(70);
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(status) }
        }
        pid => Ok(Pid::from_raw(pid)),
    }
}

extern "C" fn pass_on(signal: libc::c_int) {
    SEEN.store(signal, Ordering::SeqCst);
    let child = CHILD.load(Ordering::SeqCst);
    if child > 0 {
        // SAFETY: kill(2) is async-signal-safe and touches no memory. errno may change: the handler's caller is this
        // program alone, whose waits look at EINTR only through the return value of the interrupted call.
        unsafe { libc::kill(child, signal) };
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP go to `child` and do not end this process, which has to clean up.
pub fn pass_signals_to(child: Pid) {
    CHILD.store(child.as_raw(), Ordering::SeqCst);
    set_handlers(pass_on as *const () as libc::sighandler_t);
}

/// No child any more: the signals are only remembered.
pub fn pass_signals_to_nobody() {
    CHILD.store(0, Ordering::SeqCst);
}

/// The default dispositions, for a child.
pub fn default_signals() {
    set_handlers(libc::SIG_DFL);
}

/// The signal that has come since the start of the program, if one has.
pub fn signal_seen() -> Option<i32> {
    Some(SEEN.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
}

fn set_handlers(handler: libc::sighandler_t) {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: a zeroed sigaction with an empty mask is valid; the handler is async-signal-safe (see above) or
        // SIG_DFL.
        unsafe {
            let mut action: libc::sigaction = core::mem::zeroed();
            action.sa_sigaction = handler;
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
    }
}

/// From now on a change of user ids takes no capability away (SECBIT_NO_SETUID_FIXUP, capabilities(7)).
///
/// # Errors
/// CAP_SETPCAP is missing.
pub fn keep_capabilities() -> Result<(), Errno> {
    const NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
    let zero: libc::c_ulong = 0;
    // SAFETY: PR_SET_SECUREBITS takes numbers only.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, NO_SETUID_FIXUP, zero, zero, zero) }).map(drop)
}

/// Sets an extended attribute of an open file.
///
/// # Errors
/// fsetxattr(2)'s own.
pub fn set_xattr(file: impl AsFd, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: a NUL-terminated name, and a buffer with its own length.
    Errno::result(unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }).map(drop)
}

/// Removes an extended attribute of an open file.
///
/// # Errors
/// fremovexattr(2)'s own.
pub fn remove_xattr(file: impl AsFd, name: &CStr) -> Result<(), Errno> {
    // SAFETY: a NUL-terminated name.
    Errno::result(unsafe { libc::fremovexattr(file.as_fd().as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// The value of an extended attribute of an open file; `None` when it has no such attribute, or the file system none.
///
/// # Errors
/// fgetxattr(2)'s own.
pub fn get_xattr(file: impl AsFd, name: &CStr) -> Result<Option<Vec<u8>>, Errno> {
    let fd = file.as_fd().as_raw_fd();
    // 64 KiB is the kernel's own limit (XATTR_SIZE_MAX); nearly all values are far shorter.
    for room in [256_usize, 65536] {
        let mut value = vec![0_u8; room];
        // SAFETY: a NUL-terminated name, and a buffer with its own length.
        let got = unsafe { libc::fgetxattr(fd, name.as_ptr(), value.as_mut_ptr().cast(), room) };
        match Errno::result(got) {
            Ok(length) => {
                value.truncate(usize::try_from(length).unwrap_or(0));
                return Ok(Some(value));
            }
            Err(Errno::ERANGE) => {}
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Err(Errno::ERANGE)
}

/// The names of an open file's extended attributes.
///
/// # Errors
/// flistxattr(2)'s own.
pub fn list_xattrs(file: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let fd = file.as_fd().as_raw_fd();
    for room in [1024_usize, 65536] {
        let mut names = vec![0_u8; room];
        // SAFETY: a buffer with its own length.
        let got = unsafe { libc::flistxattr(fd, names.as_mut_ptr().cast(), room) };
        match Errno::result(got) {
            Ok(length) => {
                names.truncate(usize::try_from(length).unwrap_or(0));
                let each = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
                return Ok(each.map(<[u8]>::to_vec).collect());
            }
            Err(Errno::ERANGE) => {}
            Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    }
    Err(Errno::ERANGE)
}

/// The inode flags of an open directory (FS_IOC_GETFLAGS); 0 where the file system has none.
pub fn inode_flags(file: impl AsFd) -> u32 {
    let mut flags: libc::c_ulong = 0;
    // SAFETY: the kernel writes an int into the long's memory (linux/fs.h: the argument is declared long, used as int).
    let done = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), libc::FS_IOC_GETFLAGS as _, &raw mut flags) };
    if done == -1 { 0 } else { u32::try_from(flags & 0xffff_ffff).unwrap_or(0) }
}

/// Changes owner and group of the very file that is open, also one opened with O_PATH.
///
/// # Errors
/// fchownat(2)'s own.
pub fn chown_open(file: impl AsFd, uid: u32, gid: u32) -> Result<(), Errno> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: an empty, NUL-terminated path with AT_EMPTY_PATH means the file itself.
    Errno::result(unsafe { libc::fchownat(fd, c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH) }).map(drop)
}

/// Exchanges two names of directories or files in one step; `false` when the kernel or file system cannot.
///
/// # Errors
/// renameat2(2)'s own.
pub fn rename(from: (impl AsFd, &CStr), to: (impl AsFd, &CStr), flags: u32) -> Result<bool, Errno> {
    let (from_fd, to_fd) = (from.0.as_fd().as_raw_fd(), to.0.as_fd().as_raw_fd());
    // SAFETY: two descriptors, two NUL-terminated names, a number. By number: musl has no wrapper everywhere.
    let done = unsafe { libc::syscall(libc::SYS_renameat2, from_fd, from.1.as_ptr(), to_fd, to.1.as_ptr(), flags) };
    match Errno::result(done) {
        Ok(_) => Ok(true),
        Err(Errno::ENOSYS | Errno::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}
