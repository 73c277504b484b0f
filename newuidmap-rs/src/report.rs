//! What a helper says: one line on standard error, one line in the system log, an exit status.

#![forbid(unsafe_code)]

use core::fmt::{self, Write as _};
use std::ffi::CStr;
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::process::ExitCode;
use std::time::Duration;

/// Longest system log message in bytes, so that neither the C library's buffer nor a relay cuts it.
pub const MAX_LOG: usize = 960;

/// A program's constant identity. Nothing is taken from argv\[0\], which the caller chooses.
#[derive(Debug)]
pub struct Program {
    /// The name in messages and in the system log.
    pub name: &'static CStr,
    /// The exit status after a panic: 1 in a drop-in, 70 (EX_SOFTWARE) elsewhere.
    pub panic_status: u8,
}

/// A call that was refused or went wrong: the line to print and the status to exit with.
#[derive(Debug)]
pub struct Failure {
    /// Operation, object, cause and cure in one line, without the program's name. Empty: nothing is printed.
    pub text: String,
    /// Exit status.
    pub status: u8,
}

impl Failure {
    /// A failure of a drop-in program, whose only failing status is 1.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), status: 1 }
    }

    /// The same failure with another exit status.
    #[must_use]
    pub const fn status(mut self, status: u8) -> Self {
        self.status = status;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Program {
    /// The name as text.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name.to_str().unwrap_or("helper")
    }

    /// Prints `name: text` on standard error, in one write. Control characters are escaped, so that a caller's words
    /// cannot forge a second line or drive a terminal. A write that fails is let go: there is nowhere to say so.
    pub fn say(&self, text: &str) {
        let mut line = String::with_capacity(text.len().saturating_add(32));
        let _ = write!(line, "{}: {}", self.name(), Printable(text));
        line.push('\n');
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    /// Reports a failure and gives its exit status.
    #[must_use]
    pub fn finish(&self, result: Result<(), Failure>) -> ExitCode {
        ExitCode::from(self.status(result))
    }

    /// As [`Program::finish`], the status as a number.
    #[must_use]
    pub fn status(&self, result: Result<(), Failure>) -> u8 {
        let Err(failure) = result else { return 0 };
        if !failure.text.is_empty() {
            self.say(&failure.text);
        }
        failure.status
    }

    /// Writes one message to the system log, facility authpriv: NOTICE for a grant, WARNING for a refusal. The message
    /// is cut at [`MAX_LOG`] bytes. Where no log daemon listens nothing happens, and one that is stuck is waited for a
    /// second: syslog(3) would wait for ever.
    pub fn log(&self, granted: bool, message: &Message) {
        const AUTHPRIV: u8 = 10 << 3;
        let (notice, warning) = (5, 4);
        let priority = AUTHPRIV | if granted { notice } else { warning };
        let line = format!("<{priority}>{}[{}]: {}", self.name(), std::process::id(), message.text());
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.set_write_timeout(Some(Duration::from_secs(1)))?;
            socket.send_to(line.as_bytes(), "/dev/log")
        });
        // No log daemon is no error: see above.
        drop(sent);
    }
}

/// Prints `text` on standard output, in one write.
///
/// # Errors
/// [`Failure`] when standard output takes less than all of it.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Failure::new(format!("cannot write to standard output: {}", reason(&error))))
}

/// The cause of an I/O error in words, without Rust's "(os error N)".
#[must_use]
pub fn reason(error: &std::io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |code| nix::errno::Errno::from_raw(code).desc().to_owned())
}

/// Text of any origin, with control characters (C0, C1, line separators, text direction marks) escaped.
#[derive(Debug)]
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            let turns =
                matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if c.is_control() || turns { write!(f, "{}", c.escape_unicode())? } else { f.write_char(c)? }
        }
        Ok(())
    }
}

/// A system log message: `key=value` words in a fixed order.
#[derive(Debug, Default)]
pub struct Message(String);

impl Message {
    /// Adds a word. In the value every byte outside `A-Za-z0-9_.,:/@+-` becomes `%XX`, so no value can forge a field.
    #[must_use]
    pub fn field(mut self, key: &str, value: &[u8]) -> Self {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        self.0.push_str(key);
        self.0.push('=');
        for byte in value {
            if byte.is_ascii_alphanumeric() || b"_.,:/@+-".contains(byte) {
                self.0.push(char::from(*byte));
            } else {
                let _ = write!(self.0, "%{byte:02X}");
            }
        }
        self
    }

    /// The message, at most [`MAX_LOG`] bytes.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0.get(..MAX_LOG).unwrap_or(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_forge_a_field_or_a_line() {
        let message = Message::default().field("user", b"al ice\nevent=x").field("pid", b"7");
        assert_eq!(message.text(), "user=al%20ice%0Aevent%3Dx pid=7");
        assert_eq!(Printable("a\nb\x1b[0m\u{202e}").to_string(), "a\\u{a}b\\u{1b}[0m\\u{202e}");
    }

    #[test]
    fn a_message_is_cut_at_its_limit() {
        assert_eq!(Message::default().field("range", &[b'\n'; 2000]).text().len(), MAX_LOG);
    }
}
