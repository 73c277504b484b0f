//! The handoff record: one line by which the stages of a container start pass on a held process.
//!
//! `userns-handoff(7)` is the contract. The line is ASCII, at most [`MAX_LINE`] bytes with its newline, and reads
//! `handoff/1 pid=4711 start=81516 key=value ...`, words separated by single spaces.

#![forbid(unsafe_code)]

use core::fmt;

/// Longest record in bytes, the newline included.
pub const MAX_LINE: usize = 4096;

/// Exit status of a stage that passes a failed record on untouched (EX_TEMPFAIL of sysexits.h).
pub const EXIT_PASSED_ON: u8 = 75;

const VERSION: &str = "handoff/1";

/// A record, in the order in which it was written. Keys that a stage does not know stay where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pid: i32,
    start: u64,
    words: Vec<(String, String)>,
}

/// Why a line is no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandoffError {
    /// The input ended before a line came: the stage before this one failed without a record.
    Empty,
    /// Longer than [`MAX_LINE`] bytes.
    TooLong,
    /// The line does not begin with `handoff/1`.
    Version,
    /// A word is not `key=value`, or holds a byte that should be escaped, or an escape that is none.
    Word(String),
    /// `pid` or `start` is missing, out of place or no number.
    Identity(&'static str),
    /// A key stands twice.
    Twice(String),
}

impl fmt::Display for HandoffError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(
                f,
                "no handoff record on standard input: the stage before this one failed, or `spawn hold` is missing"
            ),
            Self::TooLong => write!(f, "handoff record longer than {MAX_LINE} bytes"),
            Self::Version => write!(
                f,
                "standard input is no handoff record: it does not begin with \"{VERSION} \" (see userns-handoff(7))"
            ),
            Self::Word(word) => write!(f, "handoff record: bad word \"{}\"", word.escape_default()),
            Self::Identity(key) => {
                write!(f, "handoff record: {key}= is missing, out of place or no number (pid and start come first)")
            }
            Self::Twice(key) => write!(f, "handoff record: {key}= stands twice"),
        }
    }
}

impl std::error::Error for HandoffError {}

impl Record {
    /// A record of the process `pid` that started `start` clock ticks after boot (field 22 of /proc/PID/stat).
    #[must_use]
    pub fn new(pid: i32, start: u64) -> Self {
        Self { pid, start, words: Vec::new() }
    }

    /// The held process.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// Its start time in clock ticks after boot: with `pid` it identifies the process.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// The decoded value of `key`, which is neither `pid` nor `start`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.words.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Adds a word at the end, or replaces the value where the key stands.
    ///
    /// # Errors
    /// [`HandoffError::Word`] when `key` has bytes outside `a-z0-9_`, is `pid` or `start`, or `value` is not UTF-8
    /// text that fits; [`HandoffError::TooLong`] when the record would grow beyond [`MAX_LINE`]: it is unchanged then.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), HandoffError> {
        if !is_key(key) || key == "pid" || key == "start" {
            return Err(HandoffError::Word(key.to_owned()));
        }
        let mut words = self.words.clone();
        match words.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => value.clone_into(old),
            None => words.push((key.to_owned(), value.to_owned())),
        }
        let next = Self { pid: self.pid, start: self.start, words };
        if next.to_string().len() >= MAX_LINE {
            return Err(HandoffError::TooLong);
        }
        *self = next;
        Ok(())
    }

    /// The tool that failed and its exit code, when a stage has marked the record with `failed=TOOL:CODE`.
    #[must_use]
    pub fn failed(&self) -> Option<(&str, u8)> {
        let (tool, code) = self.get("failed")?.rsplit_once(':')?;
        Some((tool, code.parse().ok()?))
    }

    /// Reads one record from its line, with or without the newline.
    ///
    /// # Errors
    /// One for each way a line can be wrong; see [`HandoffError`].
    pub fn parse(line: &[u8]) -> Result<Self, HandoffError> {
        if line.len() > MAX_LINE {
            return Err(HandoffError::TooLong);
        }
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        if line.is_empty() {
            return Err(HandoffError::Empty);
        }
        let text = core::str::from_utf8(line).map_err(|_| HandoffError::Version)?;
        let mut words = text.split(' ');
        if words.next() != Some(VERSION) {
            return Err(HandoffError::Version);
        }
        let pid = number(words.next(), "pid")?;
        let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or(HandoffError::Identity("pid"))?;
        let start = number(words.next(), "start")?;
        let mut record = Self::new(pid, start);
        for word in words {
            let bad = || HandoffError::Word(word.to_owned());
            let (key, value) = word.split_once('=').ok_or_else(bad)?;
            if !is_key(key) || key == "pid" || key == "start" {
                return Err(bad());
            }
            if record.get(key).is_some() {
                return Err(HandoffError::Twice(key.to_owned()));
            }
            record.words.push((key.to_owned(), decode(value).ok_or_else(bad)?));
        }
        Ok(record)
    }

    /// Reads one line of at most [`MAX_LINE`] bytes from `input` and parses it. Nothing after the newline is consumed
    /// by this function beyond what the operating system delivers in one read of a single byte.
    ///
    /// # Errors
    /// [`HandoffError::Empty`] at end of file and when reading fails; else as [`Record::parse`].
    pub fn read_from(input: &mut impl std::io::Read) -> Result<Self, HandoffError> {
        let mut line = Vec::new();
        let mut byte = [0_u8];
        while line.len() <= MAX_LINE {
            match input.read(&mut byte) {
                Ok(1) => {
                    line.extend_from_slice(&byte);
                    if byte == *b"\n" {
                        break;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        Self::parse(&line)
    }
}

/// The record's line without its newline.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION} pid={} start={}", self.pid, self.start)?;
        for (key, value) in &self.words {
            write!(f, " {key}=")?;
            for byte in value.bytes() {
                if is_plain(byte) {
                    write!(f, "{}", char::from(byte))?;
                } else {
                    write!(f, "%{byte:02X}")?;
                }
            }
        }
        Ok(())
    }
}

fn is_key(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_.,:/@+-".contains(&byte)
}

fn number(word: Option<&str>, key: &'static str) -> Result<u64, HandoffError> {
    let digits = word.and_then(|w| w.strip_prefix(key)).and_then(|w| w.strip_prefix('='));
    match digits {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().map_err(|_| HandoffError::Identity(key))
        }
        _ => Err(HandoffError::Identity(key)),
    }
}

fn decode(value: &str) -> Option<String> {
    let mut bytes = value.bytes();
    let mut out = Vec::with_capacity(value.len());
    while let Some(byte) = bytes.next() {
        if is_plain(byte) {
            out.push(byte);
        } else if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            out.push(u8::try_from(high.checked_mul(16)?.checked_add(low)?).ok()?);
        } else {
            return None;
        }
    }
    String::from_utf8(out).ok()
}

/// The start time in a `/proc/PID/stat` line: field 22, in clock ticks after boot. The command name in field 2 may
/// hold blanks and parentheses, so fields are counted from the last `)`.
#[must_use]
pub fn start_time(stat: &[u8]) -> Option<u64> {
    let close = stat.iter().rposition(|b| *b == b')')?;
    let rest = core::str::from_utf8(stat.get(close..)?).ok()?;
    // `rest` begins with `)`, so its word 0 is the end of field 2 and its word 20 is field 22.
    rest.split_ascii_whitespace().nth(20)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_of_the_manual_is_read() {
        let line = b"handoff/1 pid=4711 start=81516 name=centos7 control=/run/user/1000/spawn/x x=a%20b\n";
        let record = Record::parse(line).expect("valid");
        assert_eq!((record.pid(), record.start()), (4711, 81516));
        assert_eq!(record.get("x"), Some("a b"));
        assert_eq!(record.to_string().as_bytes(), &line[..line.len() - 1]);
    }

    #[test]
    fn a_bad_line_is_refused() {
        for line in [
            "",
            "\n",
            "handoff/2 pid=1 start=1",
            "handoff/1",
            "handoff/1 start=1 pid=1",
            "handoff/1 pid=0 start=1",
            "handoff/1 pid=-1 start=1",
            "handoff/1 pid=+1 start=1",
            "handoff/1 pid=1 start=",
            "handoff/1  pid=1 start=1",
            "handoff/1 pid=1 start=1 ",
            "handoff/1 pid=1 start=1 a",
            "handoff/1 pid=1 start=1 a=%",
            "handoff/1 pid=1 start=1 a=%g0",
            "handoff/1 pid=1 start=1 a=\t",
            "handoff/1 pid=1 start=1 a=1 a=2",
            "handoff/1 pid=1 start=1 pid=2",
            "handoff/1 pid=99999999999 start=1",
            "handoff/1 pid=1 start=1 a=%ff",
        ] {
            assert!(Record::parse(line.as_bytes()).is_err(), "{line:?}");
        }
        assert_eq!(Record::parse(&[b'a'; MAX_LINE + 1]), Err(HandoffError::TooLong));
    }

    #[test]
    fn start_time_is_found_behind_any_command_name() {
        let stat = b"77 (a) b 9) S 1 77 77 0 -1 4194560 100 0 0 0 0 0 0 0 20 0 1 0 81516 1000 1 18446744073709551615";
        assert_eq!(start_time(stat), Some(81516));
        assert_eq!(start_time(b"77 (x"), None);
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(pid in 1..i32::MAX, start: u64, value in ".{0,60}") {
            let mut record = Record::new(pid, start);
            record.set("key", &value).expect("fits");
            prop_assert_eq!(Record::parse(record.to_string().as_bytes()), Ok(record));
        }

        #[test]
        fn no_input_panics(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::parse(&line);
            let _ = start_time(&line);
        }
    }
}
