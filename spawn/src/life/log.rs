//! The file that a console's output is appended to: `--console-log`, `lxc.console.logfile`, `.size` and `.rotate`.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Console;
use crate::failure::Outcome;
use crate::state;

/// What there is to be known of a log, for a program that is executed in this process's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Absolute.
    pub path: PathBuf,
    /// Bytes at most; 0 is no limit.
    limit: u64,
    /// A full file is renamed to `PATH.1` and begun anew; else it is emptied.
    rotate: bool,
}

impl Settings {
    /// Of the command line, which comes first, and the configuration.
    #[must_use]
    pub fn new(asked: Option<&Path>, console: &Console) -> Option<Self> {
        let path = asked.or(console.logfile.as_deref())?;
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Some(Self { path, limit: console.size.unwrap_or(0), rotate: console.rotate })
    }
}

/// An open one.
#[derive(Debug)]
pub struct Log {
    settings: Settings,
    file: File,
    /// In bytes. Nobody else is expected to write there.
    length: u64,
}

impl Log {
    /// Opens it.
    ///
    /// # Errors
    /// When it cannot be opened or is no regular file.
    pub fn open(settings: Settings) -> Outcome<Self> {
        let file = state::open_log(&settings.path)?;
        Ok(Self::of(settings, file))
    }

    /// One that was handed on.
    #[must_use]
    pub fn resume(settings: Settings, file: OwnedFd) -> Self {
        Self::of(settings, file.into())
    }

    fn of(settings: Settings, file: File) -> Self {
        let length = file.metadata().map_or(0, |data| data.len());
        Self { settings, file, length }
    }

    /// For a program that is executed in this process's place.
    #[must_use]
    pub fn parts(&self) -> (RawFd, Settings) {
        (self.file.as_raw_fd(), self.settings.clone())
    }

    /// Appends. A file that cannot be written, on a full disk say, is no reason to stop a container.
    pub fn write(&mut self, bytes: &[u8]) {
        let limit = self.settings.limit;
        let mut rest = bytes;
        while limit > 0 && self.length.saturating_add(rest.len() as u64) > limit {
            if self.settings.rotate {
                // What fits, as LXC does.
                let room = usize::try_from(limit.saturating_sub(self.length)).unwrap_or(usize::MAX);
                let (now, later) = rest.split_at(room.min(rest.len()));
                self.append(now);
                rest = later;
            } else {
                // The end is of most use.
                let most = usize::try_from(limit).unwrap_or(usize::MAX);
                rest = rest.get(rest.len().saturating_sub(most)..).unwrap_or_default();
            }
            if !self.begin_anew() {
                return;
            }
        }
        self.append(rest);
    }

    fn append(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() && self.file.write_all(bytes).is_ok() {
            self.length = self.length.saturating_add(bytes.len() as u64);
        }
    }

    fn begin_anew(&mut self) -> bool {
        if self.settings.rotate {
            let mut old = self.settings.path.clone().into_os_string();
            old.push(".1");
            let moved = std::fs::rename(&self.settings.path, old).is_ok();
            match state::open_log(&self.settings.path) {
                Ok(file) if moved => self.file = file,
                _ => return false,
            }
        } else if self.file.set_len(0).is_err() {
            return false;
        }
        self.length = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(limit: u64, rotate: bool) -> (tempfile::TempDir, Log) {
        let top = tempfile::tempdir().unwrap();
        let console =
            Console { logfile: Some(top.path().join("log")), size: Some(limit), rotate, ..Console::default() };
        let log = Log::open(Settings::new(None, &console).unwrap()).unwrap();
        (top, log)
    }

    #[test]
    fn a_log_is_as_long_as_it_may_be() {
        let all: Vec<u8> = (0..100_u8).collect();
        for (limit, rotate, kept, old) in [
            (0, false, &all[..], None),
            (100, true, &all[..], None),
            (64, true, &all[64..], Some(&all[..64])),
            (30, true, &all[90..], Some(&all[60..90])),
            (64, false, &all[63..], None),
        ] {
            let (top, mut log) = log(limit, rotate);
            // Pieces of nine bytes, as pieces of a console's output come.
            all.chunks(9).for_each(|piece| log.write(piece));
            let read = |name: &str| std::fs::read(top.path().join(name)).ok();
            assert_eq!((read("log").as_deref(), read("log.1").as_deref()), (Some(kept), old), "{limit} {rotate}");
        }
        // One piece that is longer than the whole file.
        let (top, mut long) = log(7, true);
        long.write(&all);
        assert_eq!(std::fs::read(top.path().join("log")).unwrap(), all[98..]);
        assert_eq!(std::fs::read(top.path().join("log.1")).unwrap(), all[91..98]);
    }

    #[test]
    fn a_log_that_is_there_is_continued() {
        let (top, mut first) = log(10, false);
        first.write(b"12345678");
        let mut again = Log::open(first.parts().1).unwrap();
        again.write(b"90");
        assert_eq!(std::fs::read(top.path().join("log")).unwrap(), b"1234567890");
        again.write(b"x");
        assert_eq!(std::fs::read(top.path().join("log")).unwrap(), b"x");
    }
}
