//! System calls of these trials that nix has no safe form of: pseudo-terminals, and a kernel that is made to look older.
#![allow(unsafe_code)]

use core::ptr;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

pub use tests::sys::without_system_calls_from;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The slave of the pty whose master is `master`, unlocked, opened without a path.
pub fn open_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlocked: libc::c_int = 0;
    // SAFETY: the pointer is to an int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    // SAFETY: the argument is a number.
    let fd = check(unsafe {
        libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC)
    })?;
    // SAFETY: the descriptor was just made and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `terminal` the controlling terminal of this process, which leads a session.
pub fn take_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the argument is a number.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// Sets the size of a terminal in rows and columns.
pub fn set_window_size(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointer is to a whole struct winsize.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// How many bytes can be read from `fd` at once.
pub fn pending(fd: BorrowedFd<'_>) -> io::Result<i32> {
    let mut count: libc::c_int = 0;
    // SAFETY: the pointer is to an int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut count) })?;
    Ok(count)
}

/// Types one character into a terminal: TIOCSTI.
pub fn type_into(fd: RawFd, byte: u8) -> io::Result<()> {
    // SAFETY: the pointer is to one byte.
    check(unsafe { libc::ioctl(fd, libc::TIOCSTI, &raw const byte) }).map(drop)
}

/// Pastes the virtual console's selection: TIOCLINUX, subcode 3.
pub fn paste_selection(fd: RawFd) -> io::Result<()> {
    let mut subcode = [3_u8; 16];
    // SAFETY: the pointer is to more bytes than any subcode reads.
    check(unsafe { libc::ioctl(fd, libc::TIOCLINUX, subcode.as_mut_ptr()) }).map(drop)
}

/// Exchanges two names atomically: renameat2 with RENAME_EXCHANGE.
pub fn exchange(one: &CString, other: &CString) -> io::Result<()> {
    // SAFETY: both strings end in NUL.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            one.as_ptr(),
            libc::AT_FDCWD,
            other.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Blocks every signal, which exec keeps.
pub fn block_all_signals() -> io::Result<()> {
    // SAFETY: a sigset_t of zeroes is valid, sigfillset fills it, and no old mask is asked for.
    unsafe {
        let mut set: libc::sigset_t = core::mem::zeroed();
        libc::sigfillset(&raw mut set);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut())).map(drop)
    }
}

/// Makes the capability `number` inheritable and ambient, as a caller may who has it permitted.
pub fn make_ambient(number: u32) -> io::Result<()> {
    let mut header = [0x2008_0522_u32, 0];
    let bit = 1_u32 << number;
    // effective, permitted, inheritable; then the same for numbers from 32 on.
    let data = [bit, bit, bit, 0, 0, 0];
    // SAFETY: header and data have the layout of capset(2), version 3.
    if unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_ptr()) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this option takes numbers only.
    let result =
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, libc::c_ulong::from(number), 0, 0) };
    check(result).map(drop)
}

/// fork(2): `None` in the child.
pub fn fork() -> io::Result<Option<nix::unistd::Pid>> {
    // SAFETY: a world has one thread, so the child may use everything that the parent may.
    match check(unsafe { libc::fork() })? {
        0 => Ok(None),
        pid => Ok(Some(nix::unistd::Pid::from_raw(pid))),
    }
}

/// Ends the process without running anything.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: always sound.
    unsafe { libc::_exit(code) }
}

/// Calls the kernel by number with up to four numbers as arguments: the errno, or 0.
pub fn raw(number: libc::c_long, arguments: [u64; 4]) -> i32 {
    let [a, b, c, d] = arguments;
    // SAFETY: the callers pass no address but NULL, of which the kernel makes EFAULT, or one of a string that lives on.
    match check(unsafe { libc::syscall(number, a, b, c, d, 0, 0) } as libc::c_int) {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    }
}

/// Tries to take the read-only flag from the mount at `path` in each way that the kernel has: name and errno, 0 where
/// it succeeded.
pub fn make_writable(path: &std::ffi::CStr) -> Vec<(&'static str, i32)> {
    let at = path.as_ptr() as u64;
    let mut tries = Vec::new();
    let null = 0;
    for (name, flags) in [
        ("remount", libc::MS_REMOUNT | libc::MS_BIND),
        ("remount with the old magic", 0xc0ed_0000 | libc::MS_REMOUNT | libc::MS_BIND),
        ("remount, other flags", libc::MS_REMOUNT | libc::MS_BIND | libc::MS_NOSUID),
        ("superblock", libc::MS_REMOUNT),
    ] {
        // SAFETY: the path ends in NUL; the others are NULL.
        let result = unsafe { libc::syscall(libc::SYS_mount, null, at, null, flags, null) };
        tries.push((name, if result == 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap_or(-1) }));
    }
    // struct mount_attr: set, clear, propagation, user namespace.
    let clear: [u64; 4] = [0, 1, 0, 0];
    // SAFETY: the path ends in NUL and the attributes have the length that is told.
    let result =
        unsafe { libc::syscall(libc::SYS_mount_setattr, libc::AT_FDCWD, path.as_ptr(), 0, clear.as_ptr(), 32) };
    tries
        .push(("mount_setattr", if result == 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap_or(-1) }));
    // open_tree_attr(2) of Linux 6.15: a copy of the mount with other flags.
    // SAFETY: as above.
    let result = unsafe { libc::syscall(467, libc::AT_FDCWD, path.as_ptr(), 1, clear.as_ptr(), 32) };
    tries.push((
        "open_tree_attr",
        if result >= 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap_or(-1) },
    ));
    tries
}

/// Limits this process, and what it executes, to `count` open files, for good.
pub fn limit_files(count: u64) {
    let limit = libc::rlimit { rlim_cur: count, rlim_max: count };
    // SAFETY: the pointer is to a whole struct rlimit.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }).expect("setrlimit");
}

/// Joins a new session keyring of this name.
pub fn join_keyring(name: &std::ffi::CStr) {
    // SAFETY: the name ends in NUL.
    let id = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    assert!(id > 0, "keyctl: {}", io::Error::last_os_error());
}

/// What the kernel says of this process's session keyring: `type;uid;gid;permissions;description` (keyctl(2)).
pub fn session_keyring() -> String {
    let mut text = [0_u8; 256];
    // SAFETY: the buffer and its length belong together.
    let length = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_DESCRIBE,
            libc::KEY_SPEC_SESSION_KEYRING,
            text.as_mut_ptr(),
            text.len(),
        )
    };
    assert!(length > 0, "keyctl: {}", io::Error::last_os_error());
    text.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect()
}
