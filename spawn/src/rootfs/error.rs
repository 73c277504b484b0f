//! What went wrong: one line and an exit status of sysexits.h, which also travels from the namespace to its parent.

#![forbid(unsafe_code)]

use core::fmt;
use helper::report::{Failure, reason};
use nix::errno::Errno;
use std::io;

/// EX_USAGE: the command line is wrong.
pub const USAGE: u8 = 64;
/// EX_DATAERR: the image, the archive or the tree is wrong.
pub const DATA: u8 = 65;
/// EX_NOINPUT is not in the suite's table; a container or source that is not there is wrong data too.
pub const NO_USER: u8 = 67;
/// EX_UNAVAILABLE: the kernel, the file system or a program that is needed lacks something.
pub const UNAVAILABLE: u8 = 69;
/// EX_OSERR: a system call failed.
pub const SYSTEM: u8 = 71;
/// EX_TEMPFAIL: somebody else is at work on the same thing.
pub const TRY_AGAIN: u8 = 75;
/// EX_NOPERM: the administrator's files do not allow it.
pub const NOT_PERMITTED: u8 = 77;

/// A failed operation: operation, object, cause and cure in one line, and the exit status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The line, without the program's name.
    pub text: String,
    /// The exit status, of sysexits.h.
    pub status: u8,
}

/// A result with [`Error`].
pub type Result<T> = core::result::Result<T, Error>;

impl Error {
    /// An error with this status.
    pub fn new(status: u8, text: impl Into<String>) -> Self {
        Self { text: text.into(), status }
    }

    /// A system call failed: `system("open", "x", error)` reads "open x: No such file or directory".
    pub fn system(operation: &str, object: impl fmt::Display, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        let hint = match error.raw_os_error() {
            Some(libc::ENOSPC) => " (the file system is full)",
            Some(libc::EDQUOT) => " (your disk quota is used up)",
            _ => "",
        };
        Self::new(SYSTEM, format!("{operation} {object}: {}{hint}", reason(&error)))
    }

    /// The image or archive is wrong.
    pub fn data(text: impl Into<String>) -> Self {
        Self::new(DATA, text)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(error.text).status(error.status)
    }
}

/// So that a reader can pass an [`Error`] through `std::io::Read`; [`from_io`] takes it out again.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

/// The [`Error`] inside an I/O error that one of our own readers made, or else a new one about `operation object`.
#[must_use]
pub fn from_io(operation: &str, object: &str, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => Error::system(operation, object, error),
    }
}

/// `map_err` for nix: `.map_err(at("open", path))`.
pub fn at<D: fmt::Display>(operation: &'static str, object: D) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::system(operation, object, errno)
}

/// `map_err` for std.
pub fn io_at<D: fmt::Display>(operation: &'static str, object: D) -> impl FnOnce(io::Error) -> Error {
    move |error| from_io(operation, &object.to_string(), error)
}

/// A file name of any bytes for a message: control characters, quotes and bytes that are not UTF-8 escaped, the middle
/// of a very long one left out.
#[must_use]
pub fn shown(name: &[u8]) -> String {
    const MOST: usize = 200;
    let mut text = String::new();
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' { text.extend(c.escape_default()) } else { text.push(c) }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    let count = text.chars().count();
    if count > MOST {
        let head: String = text.chars().take(MOST / 2).collect();
        let tail: String = text.chars().skip(count.saturating_sub(MOST / 4)).collect();
        return format!("{head}...({} bytes)...{tail}", name.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_forge_a_line_and_is_cut() {
        assert_eq!(shown(b"a\nb\x1b[0m\xff\\"), "a\\nb\\u{1b}[0m\\xff\\\\");
        assert!(shown(&[b'x'; 65536]).len() < 250);
    }

    #[test]
    fn an_error_of_ours_passes_through_a_reader() {
        let error = Error::data("bad");
        assert_eq!(from_io("read", "x", io::Error::from(error.clone())), error);
        assert_eq!(from_io("read", "x", io::Error::from_raw_os_error(5)).text, "read x: I/O error");
    }
}
