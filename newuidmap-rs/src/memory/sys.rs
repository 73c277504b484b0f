//! The memory of a program that lives for a moment.

#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::alloc::{GlobalAlloc, Layout, System};

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
