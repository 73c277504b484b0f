//! Messages with descriptors, and the loopback: the socket calls that need `unsafe`; see the crate's other `sys.rs`.
#![allow(unsafe_code)]

use core::ffi::{c_char, c_uint, c_ulong};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use crate::sys::{Call, check, check_fd, close};

/// Brings up the loopback of this network namespace.
///
/// # Errors
/// The errno of socket(2) or of ioctl(SIOCSIFFLAGS).
pub fn loopback_up() -> Call<()> {
    // SAFETY: no pointer.
    let socket =
        check_fd(unsafe { libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: ifreq is plain data for which zero is valid.
    let mut request: libc::ifreq = unsafe { core::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = c_char::try_from(*from).unwrap_or(0);
    }
    request.ifr_ifru.ifru_flags = 0x1 | 0x40; // IFF_UP | IFF_RUNNING
    // SAFETY: the pointer is to a whole struct ifreq.
    let result =
        check(unsafe { libc::syscall(libc::SYS_ioctl, socket, libc::SIOCSIFFLAGS as c_ulong, &raw mut request) });
    close(socket);
    result.map(drop)
}

/// Buffer for the control message of at most three descriptors.
#[repr(C, align(8))]
struct Ancillary([u8; 64]);

/// sendmsg(2) of `bytes` with up to three descriptors; never raises SIGPIPE.
///
/// # Errors
/// Its errno; EPIPE when the other side is gone, EINVAL for more than three descriptors.
pub fn send_message(socket: RawFd, bytes: &[u8], fds: &[RawFd]) -> Call<()> {
    if fds.len() > 3 {
        return Err(Errno::EINVAL);
    }
    let mut ancillary = Ancillary([0; 64]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain data for which zero is valid.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    let size = c_uint::try_from(size_of_val(fds)).unwrap_or(0);
    if !fds.is_empty() {
        message.msg_control = ancillary.0.as_mut_ptr().cast();
        // SAFETY: pure arithmetic; three descriptors need 32 bytes of the 64.
        message.msg_controllen = (unsafe { libc::CMSG_SPACE(size) }) as _;
        // SAFETY: the control buffer is aligned and long enough for one header and the descriptors.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size) as _;
            core::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), size_of_val(fds));
        }
    }
    // SAFETY: the message and everything it points to is valid.
    check(unsafe { libc::syscall(libc::SYS_sendmsg, socket, &raw const message, libc::MSG_NOSIGNAL) }).map(drop)
}

/// recvmsg(2): the number of bytes in `buffer` (0 at the end) and up to three descriptors, close-on-exec, in `fds`
/// (-1 where none came).
///
/// # Errors
/// Its errno.
pub fn receive_message(socket: RawFd, buffer: &mut [u8], fds: &mut [RawFd; 3]) -> Call<usize> {
    *fds = [-1; 3];
    let mut ancillary = Ancillary([0; 64]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain data for which zero is valid.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = ancillary.0.as_mut_ptr().cast();
    // SAFETY: pure arithmetic. CMSG_LEN and not CMSG_SPACE, whose padding would let a fourth descriptor in.
    message.msg_controllen = (unsafe { libc::CMSG_LEN(12) }) as _;
    let length = loop {
        // SAFETY: the message and everything it points to is valid.
        let result = unsafe { libc::syscall(libc::SYS_recvmsg, socket, &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match check(result) {
            Err(Errno::EINTR) => {}
            result => break result?,
        }
    };
    // SAFETY: the kernel has filled in the control buffer and its length.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: NULL or a header inside the buffer.
    if let Some(head) = unsafe { header.as_ref() }
        && head.cmsg_level == libc::SOL_SOCKET
        && head.cmsg_type == libc::SCM_RIGHTS
    {
        // SAFETY: pure arithmetic.
        let empty = unsafe { libc::CMSG_LEN(0) } as usize;
        #[allow(clippy::unnecessary_cast, reason = "the field's type differs between libcs")]
        let count = (head.cmsg_len as usize).saturating_sub(empty) / size_of::<RawFd>();
        // SAFETY: at most three descriptors, which is what the array holds and the kernel was given room for.
        unsafe {
            let data = libc::CMSG_DATA(header);
            core::ptr::copy_nonoverlapping(data, fds.as_mut_ptr().cast(), count.min(3) * size_of::<RawFd>());
        }
    }
    usize::try_from(length).map_err(|_| Errno::EOVERFLOW)
}

/// Takes ownership of a descriptor number that [`receive_message`] delivered.
#[must_use]
pub fn own(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: the kernel made it for us in recvmsg, and the caller passes each once.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A copy, close-on-exec, of a descriptor named on the command line by its number. A copy, because one number may be
/// named twice.
///
/// # Errors
/// EBADF when it is not open.
pub fn take(fd: RawFd) -> Call<OwnedFd> {
    // SAFETY: no pointer.
    let copy = check(unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, 3) })?;
    let copy = RawFd::try_from(copy).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}
