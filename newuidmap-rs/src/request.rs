//! newuidmap and newgidmap: argv becomes a request. No privilege, no kernel.

#![forbid(unsafe_code)]

use crate::range::{Extent, IdKind};
use crate::target::TargetName;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

/// What the caller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Write a map, or (`check`) only say whether it would be written.
    Map {
        /// The process.
        target: TargetName,
        /// The extents in argv order, at least one.
        extents: Vec<Extent>,
        /// Decide and say why, change nothing.
        check: bool,
    },
    /// `--help`.
    Help,
    /// `--version`.
    Version,
}

/// Why argv is no request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// The usage is printed, after this line unless it is empty.
    Usage(String),
    /// A triple is out of bounds.
    Overflow(String),
}

/// Reads the words after argv\[0\].
///
/// # Errors
/// [`RequestError`].
pub fn parse(kind: IdKind, words: impl IntoIterator<Item = OsString>) -> Result<Request, RequestError> {
    let mut words = words.into_iter().peekable();
    let mut check = false;
    match words.peek().map(|w| w.as_bytes()) {
        Some(b"--help") => return Ok(Request::Help),
        Some(b"--version") => return Ok(Request::Version),
        Some(b"--check") => {
            check = true;
            words.next();
        }
        Some([b'-', b'-', ..]) => return Err(usage(format!("unknown option {}", shown(words.peek())))),
        _ => {}
    }
    let first = words.next().ok_or_else(|| usage(String::new()))?;
    let numbers: Vec<OsString> = words.collect();
    let (triples, rest) = numbers.as_chunks::<3>();
    if triples.is_empty() || !rest.is_empty() {
        return Err(usage(format!(
            "each range takes three numbers: inside, outside and count ({} given)",
            numbers.len()
        )));
    }
    let target = parse_target(first.as_bytes())
        .ok_or_else(|| usage(format!("\"{}\" is neither a process id nor fd:N", shown(Some(&first)))))?;
    let extents = triples.iter().map(|triple| parse_extent(kind, triple)).collect::<Result<_, _>>()?;
    Ok(Request::Map { target, extents, check })
}

fn parse_target(word: &[u8]) -> Option<TargetName> {
    if let Some(number) = word.strip_prefix(b"fd:") {
        return decimal(number).map(TargetName::Descriptor);
    }
    decimal(word).filter(|pid| *pid > 0).map(TargetName::Pid)
}

/// strtol(3), base 10, to its end, as the originals read a pid: blanks before it, a plus sign and zeros are accepted.
fn decimal(word: &[u8]) -> Option<i32> {
    let digits = word.trim_ascii_start();
    let digits = digits.strip_prefix(b"+").unwrap_or(digits);
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(digits).ok()?.parse().ok()
}

/// One triple. The bounds are the originals': both ids at most 4294967294, and neither range past it.
fn parse_extent(kind: IdKind, triple: &[OsString; 3]) -> Result<Extent, RequestError> {
    let word = kind.word();
    let [inside, outside, count] = [(0, "inside"), (1, "outside"), (2, "count")]
        .map(|(at, _)| triple.get(at).and_then(|w| unsigned(w.as_bytes())));
    let given = triple.iter().map(|w| shown(Some(w))).collect::<Vec<_>>().join(" ");
    let overflow = |what: &str, limit: u32| {
        RequestError::Overflow(format!("sub{word} overflow detected. In \"{given}\" {what} (at most {limit})"))
    };
    let (Some(inside), Some(outside), Some(count)) = (inside, outside, count) else {
        return Err(usage(format!(
            "sub{word} overflow detected. \"{given}\" are not three numbers of at most 4294967295"
        )));
    };
    if inside == u32::MAX || outside == u32::MAX {
        return Err(overflow(&format!("a {word} is 4294967295, which is no id"), u32::MAX.saturating_sub(1)));
    }
    let limit = u32::MAX.saturating_sub(inside.max(outside));
    if count == 0 {
        return Err(overflow("the count is 0", limit));
    }
    if count > limit {
        return Err(overflow("the count is too large", limit));
    }
    Ok(Extent { inside, outside, count })
}

/// strtoul(3), base 0: decimal, `0x` hexadecimal, octal after a leading zero; blanks and a plus sign before it.
fn unsigned(word: &[u8]) -> Option<u32> {
    let digits = word.trim_ascii_start();
    let digits = digits.strip_prefix(b"+").unwrap_or(digits);
    let (digits, radix) = match digits {
        [b'0', b'x' | b'X', hex @ ..] => (hex, 16),
        [b'0', octal @ ..] if !octal.is_empty() => (octal, 8),
        _ => (digits, 10),
    };
    if !digits.iter().all(|b| char::from(*b).is_digit(radix)) {
        return None;
    }
    u32::from_str_radix(core::str::from_utf8(digits).ok()?, radix).ok()
}

fn usage(line: String) -> RequestError {
    RequestError::Usage(line)
}

/// A word of argv for a message, cut at 64 characters.
fn shown(word: Option<&OsString>) -> String {
    word.map(|w| w.to_string_lossy().chars().take(64).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(line: &str) -> Result<Request, RequestError> {
        parse(IdKind::Uid, line.split('|').map(OsString::from))
    }

    fn map(target: TargetName, extents: &[(u32, u32, u32)], check: bool) -> Result<Request, RequestError> {
        let extents = extents.iter().map(|&(inside, outside, count)| Extent { inside, outside, count }).collect();
        Ok(Request::Map { target, extents, check })
    }

    #[test]
    fn numbers_are_read_as_the_originals_read_them() {
        let pid = TargetName::Pid(42);
        assert_eq!(words("42|0|100000|65536"), map(pid, &[(0, 100_000, 65536)], false));
        assert_eq!(words(" +042|0x0| +010|1"), map(pid, &[(0, 8, 1)], false));
        assert_eq!(words("42|0|0|4294967295"), map(pid, &[(0, 0, u32::MAX)], false));
        assert_eq!(words("42|4294967294|0|1"), map(pid, &[(u32::MAX - 1, 0, 1)], false));
        assert_eq!(words("--check|fd:3|0|1|1|1|5|2"), map(TargetName::Descriptor(3), &[(0, 1, 1), (1, 5, 2)], true));
        assert_eq!(words("--help"), Ok(Request::Help));
        assert_eq!(words("--version|x"), Ok(Request::Version));
    }

    #[test]
    fn these_lines_are_usage_errors() {
        assert!(matches!(parse(IdKind::Uid, []), Err(RequestError::Usage(_))));
        for line in [
            "",
            "42",
            "42|0",
            "42|0|1",
            "42|0|1|1|2",
            "0|0|1|1",
            "-1|0|1|1",
            "self|0|1|1",
            "1/2|0|1|1",
            "42x|0|1|1",
            "fd:|0|1|1",
            "fd:-1|0|1|1",
            "fd:3x|0|1|1",
            "2147483648|0|1|1",
            "42|a|1|1",
            "42||1|1",
            "42|-1|1|1",
            "42|0|1|1 ",
            "42|0|08|1",
            "42|0x|1|1",
            "42|4294967296|1|1",
            "--x",
            "-h",
            "42|0|1|18446744073709551617",
        ] {
            assert!(matches!(words(line), Err(RequestError::Usage(_))), "{line}");
        }
    }

    #[test]
    fn these_triples_overflow() {
        for line in [
            "42|0|1|0",
            "42|4294967295|1|1",
            "42|0|4294967295|1",
            "42|0|1|4294967295",
            "42|1|0|4294967295",
            "42|4294967294|0|2",
        ] {
            assert!(matches!(words(line), Err(RequestError::Overflow(_))), "{line}");
        }
    }

    proptest! {
        #[test]
        fn an_accepted_triple_is_two_ranges(inside: u32, outside: u32, count: u32) {
            let line = format!("1|{inside}|{outside}|{count}");
            if let Ok(Request::Map { extents, .. }) = words(&line) {
                prop_assert!(extents[0].inside().is_some() && extents[0].outside().is_some());
                prop_assert_eq!(extents[0].to_string(), format!("{inside} {outside} {count}"));
            } else {
                let end = u64::from(inside.max(outside)) + u64::from(count);
                prop_assert!(count == 0 || end > u64::from(u32::MAX));
            }
        }

        #[test]
        fn no_argv_panics(line in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 0..8)) {
            use std::os::unix::ffi::OsStringExt as _;
            let _ = parse(IdKind::Gid, line.into_iter().map(OsString::from_vec));
        }
    }
}
