//! Memory for a start: cut from one piece, which the kernel fills with zeros where it is first touched. musl's allocator
//! maps and unmaps fifty times for the few kilobytes that a command line and a plan take.
#![allow(unsafe_code)]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::alloc::System;

/// Bytes of the piece. What does not fit comes from the C library.
const SIZE: usize = 96 << 10;

#[repr(align(4096))]
struct Space(UnsafeCell<[u8; SIZE]>);

// SAFETY: the space is only handed out in parts that do not overlap (`USED`), by pointer.
unsafe impl Sync for Space {}

static SPACE: Space = Space(UnsafeCell::new([0; SIZE]));
/// Where the part that nobody has begins.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Where the part that nobody ever had begins: it holds zeros.
static TOUCHED: AtomicUsize = AtomicUsize::new(0);

/// The allocator. Memory that is given back is used again if it was the last that was taken, else not before the end.
#[derive(Debug)]
pub struct Arena;

impl Arena {
    fn base() -> *mut u8 {
        SPACE.0.get().cast()
    }

    /// Where in the space a pointer points; `None` for one of the C library's.
    fn offset(pointer: *mut u8) -> Option<usize> {
        (pointer as usize).checked_sub(Self::base() as usize).filter(|offset| *offset < SIZE)
    }

    /// Takes a part: its offset.
    fn take(layout: Layout) -> Option<usize> {
        // Beyond a page the alignment of the space itself says nothing.
        if layout.align() > 4096 {
            return None;
        }
        let mut used = USED.load(Ordering::Relaxed);
        loop {
            let start = used.checked_next_multiple_of(layout.align())?;
            let end = start.checked_add(layout.size()).filter(|end| *end <= SIZE)?;
            match USED.compare_exchange_weak(used, end, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Some(start),
                Err(now) => used = now,
            }
        }
    }
}

// SAFETY: parts do not overlap, because only whoever moves USED forward has what lies between, and it moves back only over
// a part whose owner has given it back; alignment and size are those asked for.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match Self::take(layout) {
            Some(start) => {
                TOUCHED.fetch_max(start + layout.size(), Ordering::AcqRel);
                // SAFETY: start is less than SIZE.
                unsafe { Self::base().add(start) }
            }
            // SAFETY: the caller's promise about the layout is passed on.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about the layout is passed on.
        let Some(start) = Self::take(layout) else { return unsafe { System.alloc_zeroed(layout) } };
        // Taken first: whoever had a byte of this part before has raised the mark before giving it back.
        let touched = TOUCHED.fetch_max(start + layout.size(), Ordering::AcqRel);
        // SAFETY: start is less than SIZE.
        let pointer = unsafe { Self::base().add(start) };
        let dirty = touched.saturating_sub(start).min(layout.size());
        // SAFETY: the part is ours and at least that long.
        unsafe { pointer.write_bytes(0, dirty) };
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match Self::offset(pointer) {
            Some(start) => {
                let end = start + layout.size();
                let _ = USED.compare_exchange(end, start, Ordering::AcqRel, Ordering::Relaxed);
            }
            // SAFETY: it came from there with this layout.
            None => unsafe { System.dealloc(pointer, layout) },
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(start) = Self::offset(pointer) else {
            // SAFETY: it came from there with this layout.
            return unsafe { System.realloc(pointer, layout, size) };
        };
        let end = start + layout.size();
        if let Some(wanted) = start.checked_add(size).filter(|wanted| *wanted <= SIZE)
            && USED.compare_exchange(end, wanted, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            TOUCHED.fetch_max(wanted, Ordering::AcqRel);
            return pointer;
        }
        // SAFETY: the caller says that size is not 0 and does not overflow with this alignment.
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !new.is_null() {
            // SAFETY: both are valid for the smaller of the two sizes and do not overlap; the old one is not used again.
            unsafe {
                core::ptr::copy_nonoverlapping(pointer, new, layout.size().min(size));
                self.dealloc(pointer, layout);
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_overlap_and_zeroed_ones_hold_zeros() {
        let layout = |size, align| Layout::from_size_align(size, align).unwrap();
        let mut parts: Vec<(*mut u8, Layout, u8)> = Vec::new();
        // SAFETY: each part is used within its layout and given back once.
        unsafe {
            for round in 0_u16..3000 {
                let fill = u8::try_from(round % 251).unwrap();
                let wanted = layout(1 + usize::from(round % 97), 1 << (round % 5));
                let zeroed = round % 3 == 0;
                let pointer = if zeroed { Arena.alloc_zeroed(wanted) } else { Arena.alloc(wanted) };
                assert!(!pointer.is_null() && (pointer as usize).is_multiple_of(wanted.align()));
                if zeroed {
                    assert!((0..wanted.size()).all(|at| *pointer.add(at) == 0), "{round}");
                }
                pointer.write_bytes(fill, wanted.size());
                parts.push((pointer, wanted, fill));
                if round % 4 == 0 {
                    let (pointer, old, fill) = parts.pop().unwrap();
                    Arena.dealloc(pointer, old);
                    let again = Arena.alloc(old);
                    again.write_bytes(fill, old.size());
                    let longer = Arena.realloc(again, old, old.size() * 2);
                    assert!((0..old.size()).all(|at| *longer.add(at) == fill), "{round}");
                    longer.write_bytes(fill, old.size() * 2);
                    parts.push((longer, layout(old.size() * 2, old.align()), fill));
                }
            }
            for (pointer, layout, fill) in &parts {
                assert!((0..layout.size()).all(|at| *pointer.add(at) == *fill), "overwritten by another");
            }
            assert!(parts.iter().any(|(pointer, ..)| Arena::offset(*pointer).is_none()), "the C library helps out");
            for (pointer, layout, _) in parts.into_iter().rev() {
                Arena.dealloc(pointer, layout);
            }
        }
    }
}
