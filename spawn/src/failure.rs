//! How a start fails: one line for the person, one number for the shell.

#![forbid(unsafe_code)]

use core::fmt;

/// Exit status when `spawn` itself failed.
pub const OWN_FAILURE: u8 = 125;
/// Exit status when the command is there but could not be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// Exit status when there is no such command.
pub const NOT_FOUND: u8 = 127;
/// EX_USAGE of sysexits.h.
pub const USAGE: u8 = 64;

/// A failure, ready to be printed: operation, object, cause, cure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Failure {
    /// Exit status.
    pub code: u8,
    /// One line without the program's name.
    pub text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Failure {
    /// A failure of `spawn` itself.
    #[must_use]
    pub fn own(text: impl Into<String>) -> Self {
        Self { code: OWN_FAILURE, text: text.into() }
    }
}

/// What most functions of this crate return.
pub type Outcome<T> = Result<T, Failure>;

/// The text of an errno without its number: `Permission denied` becomes `permission denied`.
#[must_use]
pub fn words(errno: nix::errno::Errno) -> String {
    let text = errno.desc();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_ascii_lowercase().to_string() + chars.as_str())
}

/// One printable line: control characters, which a file name or a tool's message may hold, are escaped.
#[must_use]
pub fn one_line(text: &str) -> String {
    text.trim_end().chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_without_control_characters() {
        assert_eq!(one_line("a\u{1b}[31m\nb \n"), "a\\u{1b}[31m\\nb");
    }
}
