//! Every `unsafe` block of usernet: two ioctls of netdevice(7), and the allocator.

#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use nix::errno::Errno;
use std::alloc::{GlobalAlloc, Layout, System};
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

/// Bytes of an [`Arena`]: several times what a call takes.
const ARENA: usize = 512 << 10;

/// The memory of a program that ends in a millisecond: nothing is given back, which takes longer than to end. What does
/// not fit comes from the system's allocator.
#[derive(Debug)]
pub struct Arena {
    bytes: UnsafeCell<[u8; ARENA]>,
    used: AtomicUsize,
}

impl Arena {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: UnsafeCell::new([0; ARENA]), used: AtomicUsize::new(0) }
    }

    #[inline(never)]
    fn take(&self, layout: Layout) -> Option<*mut u8> {
        let base = self.bytes.get().cast::<u8>();
        let mut used = self.used.load(Relaxed);
        loop {
            let begin =
                base.addr().checked_add(used)?.checked_next_multiple_of(layout.align())?.checked_sub(base.addr())?;
            let end = begin.checked_add(layout.size()).filter(|end| *end <= ARENA)?;
            match self.used.compare_exchange_weak(used, end, Relaxed, Relaxed) {
                Ok(_) => return Some(base.wrapping_add(begin)),
                Err(now) => used = now,
            }
        }
    }
}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: the bytes are reached only by what `take` gives out, each of them once.
unsafe impl Sync for Arena {}

// SAFETY: `take` gives out memory of the size and alignment that was asked for, which nobody else has or gets.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about the layout is the one that the system's allocator asks for.
        self.take(layout).unwrap_or_else(|| unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // The arena is zero until it is given out, which happens once.
        // SAFETY: as in `alloc`.
        self.take(layout).unwrap_or_else(|| unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        let base = self.bytes.get().addr();
        if !(base..base.saturating_add(ARENA)).contains(&place.addr()) {
            // SAFETY: what is not from the arena is from the system's allocator, with this layout.
            unsafe { System.dealloc(place, layout) }
        }
    }
}
