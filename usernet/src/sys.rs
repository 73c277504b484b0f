//! Every `unsafe` block of usernet: two ioctls of netdevice(7).

#![allow(unsafe_code)]

use nix::errno::Errno;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Most ports of a bridge, plus one: they are numbered from 1 (BR_MAX_PORTS of net/bridge/br_private.h).
const MAX_PORTS: usize = 1024;

/// struct ifreq: a name, and what is asked or answered about it.
#[repr(C, align(8))]
struct Request {
    name: [u8; libc::IF_NAMESIZE],
    value: [u8; 24],
}

impl Request {
    fn new(name: &[u8], bytes: &[u8]) -> Self {
        let mut request = Self { name: [0; libc::IF_NAMESIZE], value: [0; 24] };
        // The last byte of the name stays 0.
        request.name.iter_mut().take(libc::IF_NAMESIZE - 1).zip(name).for_each(|(place, byte)| *place = *byte);
        request.value.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
        request
    }
}

/// The indexes of all ports of a bridge, as they are at one moment (BRCTL_GET_PORT_LIST of linux/if_bridge.h). It works
/// on a socket of any kind.
///
/// # Errors
/// ENODEV; EOPNOTSUPP when the link is no bridge, and for 32-bit programs of a 64-bit kernel.
pub fn bridge_ports(socket: BorrowedFd<'_>, bridge: &[u8]) -> Result<Vec<u32>, Errno> {
    const SIOCDEVPRIVATE: libc::Ioctl = 0x89f0; // linux/sockios.h
    const GET_PORT_LIST: usize = 7;
    let mut indexes = [0_i32; MAX_PORTS];
    let words = [GET_PORT_LIST, (&raw mut indexes).expose_provenance(), MAX_PORTS, 0];
    let mut request = Request::new(bridge, &(&raw const words).expose_provenance().to_ne_bytes());
    // SAFETY: the kernel reads the four words (unsigned long has the size of usize on Linux) and writes no more than
    // MAX_PORTS ints to where the second points; all of these outlive the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCDEVPRIVATE, &raw mut request) })?;
    Ok(indexes.iter().filter_map(|index| u32::try_from(*index).ok()).filter(|index| *index != 0).collect())
}

/// The name of the link with this index, and zeros (SIOCGIFNAME).
///
/// # Errors
/// ENODEV.
pub fn link_name(socket: BorrowedFd<'_>, index: u32) -> Result<[u8; libc::IF_NAMESIZE], Errno> {
    let mut request = Request::new(&[], &index.to_ne_bytes());
    // SAFETY: the request reads an int and writes a name, both within the structure, which outlives the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFNAME as libc::Ioctl, &raw mut request) })?;
    Ok(request.name)
}
