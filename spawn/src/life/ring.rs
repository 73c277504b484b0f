//! The last output of a console: a ring in a memfd, which survives the supervisor's exec and takes no more memory than
//! was written; and the log beside it.

#![forbid(unsafe_code)]

use std::ffi::c_int;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::log::{Log, Settings};
use crate::failure::{Failure, Outcome, words};

/// How much is kept, in bytes.
pub const SIZE: u64 = 64 << 10;

/// The ring, and the file that everything is appended to.
#[derive(Debug)]
pub struct Ring {
    memory: File,
    /// Bytes that were ever written.
    total: u64,
    log: Option<Log>,
}

impl Ring {
    /// An empty one.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new() -> Outcome<Self> {
        let memory = memfd_create(c"console", MFdFlags::MFD_CLOEXEC)
            .map_err(|errno| Failure::own(format!("cannot make the console's ring buffer: {}", words(errno))))?;
        Ok(Self { memory: File::from(memory), total: 0, log: None })
    }

    /// One that was handed on.
    #[must_use]
    pub fn resume(memory: OwnedFd, log: Option<Log>, total: u64) -> Self {
        Self { memory: File::from(memory), total, log }
    }

    /// From now on everything is written there too.
    pub fn set_log(&mut self, log: Option<Log>) {
        self.log = log;
    }

    /// Bytes that were ever written: the offset of what comes next.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// The offset of the oldest byte that is left.
    #[must_use]
    pub const fn oldest(&self) -> u64 {
        self.total.saturating_sub(SIZE)
    }

    /// The descriptor and those of the log, for a program that is executed in this process's place.
    #[must_use]
    pub fn parts(&self) -> (c_int, Option<(c_int, Settings)>) {
        (self.memory.as_raw_fd(), self.log.as_ref().map(Log::parts))
    }

    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) {
        if let Some(log) = &mut self.log {
            log.write(bytes);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = self.total % SIZE;
            let room = usize::try_from(SIZE - at).unwrap_or(rest.len()).min(rest.len());
            let (now, later) = rest.split_at(room);
            let _ = self.memory.write_all_at(now, at);
            self.total = self.total.saturating_add(now.len() as u64);
            rest = later;
        }
    }

    /// Reads from `offset`, or from the oldest byte if that is gone: the bytes in `buffer`, and the offset after them.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> (usize, u64) {
        let from = offset.clamp(self.oldest(), self.total);
        let at = from % SIZE;
        let length = (self.total - from).min(SIZE - at).min(buffer.len() as u64);
        let length = usize::try_from(length).unwrap_or(0);
        let part = buffer.get_mut(..length).unwrap_or_default();
        match self.memory.read_exact_at(part, at) {
            Ok(()) => (length, from.saturating_add(length as u64)),
            Err(_) => (0, self.total),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(ring: &Ring, mut offset: u64) -> Vec<u8> {
        let (mut all, mut buffer) = (Vec::new(), [0; 1000]);
        loop {
            let (length, next) = ring.read(offset, &mut buffer);
            if length == 0 {
                return all;
            }
            all.extend_from_slice(&buffer[..length]);
            offset = next;
        }
    }

    #[test]
    fn the_ring_keeps_the_last_bytes_in_their_order() {
        let mut ring = Ring::new().unwrap();
        assert!(whole(&ring, 0).is_empty());
        ring.write(b"abc");
        assert_eq!(
            (whole(&ring, 0), whole(&ring, 2), whole(&ring, 3), whole(&ring, 99)),
            (b"abc".to_vec(), b"c".to_vec(), vec![], vec![])
        );
        let all: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        let mut ring = Ring::new().unwrap();
        for chunk in all.chunks(7777) {
            ring.write(chunk);
        }
        let kept = usize::try_from(SIZE).unwrap();
        assert_eq!(whole(&ring, 0), all[all.len() - kept..]);
        assert_eq!(whole(&ring, 199_990), all[199_990..]);
        // More at once than it holds.
        ring.write(&all);
        assert_eq!(whole(&ring, 0), all[all.len() - kept..]);
    }
}
