//! /etc/subuid and /etc/subgid: which lines grant what to whom (subuid(5)), and how much of a request they cover.
//!
//! Pure: lines come in, coverage comes out. The reading is done by [`crate::trusted`].

#![forbid(unsafe_code)]

use crate::range::{Extent, IdRange};

/// Longest line that counts, in bytes without its newline: the original reads an entry into a buffer of 1024.
const MAX_LINE: usize = 1023;

/// Grants that a message lists before it says how many more there are.
const LISTED: usize = 8;

/// Pieces of a request that are kept apart at once. One more is only needed by a file that grants a request in
/// thousands of scattered lines, and then costs a second reading, not memory.
const MAX_PIECES: usize = 2048;

/// How a user can be named in the owner field.
#[derive(Clone, Debug)]
pub struct Owner {
    uid: Option<String>,
    names: Vec<Vec<u8>>,
}

impl Owner {
    /// The owner with this uid and these names. A name of digits alone never counts: such a field is a uid.
    #[must_use]
    pub fn new(uid: u32, names: &[Vec<u8>]) -> Self {
        let names = names.iter().filter(|name| !name.iter().all(u8::is_ascii_digit)).cloned().collect();
        Self { uid: Some(uid.to_string()), names }
    }

    /// A name that belongs to no account: lines with this name are its own, no uid is.
    #[must_use]
    pub fn unknown(name: &[u8]) -> Self {
        Self { uid: None, names: vec![name.to_vec()] }
    }

    fn fields(&self) -> impl Iterator<Item = &[u8]> {
        self.uid.iter().map(String::as_bytes).chain(self.names.iter().map(Vec::as_slice))
    }

    /// Whether the line's owner field is this owner: the fast test that almost every line of a large file fails.
    #[inline]
    fn owns(&self, line: &[u8]) -> bool {
        self.fields().any(|field| {
            line.first() == field.first() && line.get(field.len()) == Some(&b':') && line.starts_with(field)
        })
    }
}

/// What a line means for one owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// Nothing: another owner's, a comment, blank.
    Other,
    /// These ids.
    Grant(IdRange),
    /// Meant for this owner, as it seems, but grants nothing; the reason.
    Ignored(&'static str),
}

/// Reads one line for `owner`.
#[inline]
#[must_use]
pub fn parse_line(line: &[u8], owner: &Owner) -> Line {
    if owner.owns(line) {
        return parse_entry(line);
    }
    match line.first() {
        Some(b' ' | b'\t' | b'+' | b'0') => decorated(line, owner),
        _ => Line::Other,
    }
}

/// A line whose owner field would be this owner's without blanks, plus sign or leading zeros.
fn decorated(line: &[u8], owner: &Owner) -> Line {
    let field = line.split(|b| *b == b':').next().unwrap_or_default().trim_ascii();
    let digits = field.strip_prefix(b"+").unwrap_or(field);
    let digits = digits.iter().position(|b| *b != b'0').and_then(|at| digits.get(at..)).unwrap_or_default();
    if owner.fields().any(|own| own == field || own == digits) {
        Line::Ignored("the owner field must be a name or plain digits, without blanks, sign or leading zeros")
    } else {
        Line::Other
    }
}

fn parse_entry(line: &[u8]) -> Line {
    if line.len() > MAX_LINE {
        return Line::Ignored("the line is longer than 1023 bytes");
    }
    let end = line.iter().rposition(|b| !matches!(b, b' ' | b'\t' | b'\r')).map_or(0, |last| last.saturating_add(1));
    let mut fields = line.get(..end).unwrap_or_default().split(|b| *b == b':').skip(1);
    let (Some(start), Some(count), None) = (fields.next(), fields.next(), fields.next()) else {
        return Line::Ignored("an entry has three fields, OWNER:START:COUNT");
    };
    match (number(start), number(count)) {
        (Ok(start), Ok(count)) => grant(start, count),
        (Err(why), _) | (_, Err(why)) => Line::Ignored(why),
    }
}

/// The ids of an entry. A count may reach up to 2^32, but 4294967295 itself is no id and is never granted.
fn grant(start: u64, count: u64) -> Line {
    const IDS: u64 = 1 << 32;
    if count == 0 {
        return Line::Ignored("its count is 0");
    }
    let end = match start.checked_add(count) {
        Some(end) if end <= IDS && count < IDS => end.min(IDS.saturating_sub(1)),
        _ => return Line::Ignored("its ids go beyond 4294967295"),
    };
    match (u32::try_from(start), u32::try_from(end)) {
        (Ok(start), Ok(end)) => IdRange::between(start, end).map_or(Line::Ignored("4294967295 is no id"), Line::Grant),
        _ => Line::Ignored("its ids go beyond 4294967295"),
    }
}

/// strtoul(3) as the originals use it, base 0, but for octal: another reader of the file takes `0100000` as decimal.
fn number(field: &[u8]) -> Result<u64, &'static str> {
    const NONE: &str = "START and COUNT must be numbers and nothing else";
    let digits = field.trim_ascii_start();
    let digits = digits.strip_prefix(b"+").unwrap_or(digits);
    let (digits, radix) = match digits {
        [b'0', b'x' | b'X', hex @ ..] => (hex, 16),
        [b'0', _, ..] => return Err("a number with a leading zero is octal to some programs and decimal to others"),
        _ => (digits, 10),
    };
    let plain = |b: &u8| if radix == 16 { b.is_ascii_hexdigit() } else { b.is_ascii_digit() };
    if digits.is_empty() || !digits.iter().all(plain) {
        return Err(NONE);
    }
    let text = core::str::from_utf8(digits).map_err(|_| NONE)?;
    u64::from_str_radix(text, radix).map_err(|_| "its ids go beyond 4294967295")
}

/// One line that grants something: its number from 1 and its ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Line number, from 1.
    pub line: u64,
    /// The ids.
    pub ids: IdRange,
}

/// How much of a request the lines read so far grant. Memory use depends on the request alone, not on the file.
#[derive(Debug)]
pub struct Coverage {
    /// What is not granted yet: pieces of the request's outside ranges, each with the index of its extent.
    missing: Vec<(usize, IdRange)>,
    /// The line that granted first something of each extent.
    first_line: Vec<Option<u64>>,
    /// The first lines that grant the owner anything, for messages.
    pub grants: Vec<Granted>,
    /// The number of such lines in all.
    pub grant_count: u64,
    /// The first lines that look like the owner's but grant nothing, with the reason.
    pub ignored: Vec<(u64, &'static str)>,
    crowded: bool,
    progress: bool,
}

impl Coverage {
    /// Nothing granted yet. Extents that are no ranges at all (see [`Extent::outside`]) are left out; the request
    /// parser refuses them.
    #[must_use]
    pub fn new(request: &[Extent]) -> Self {
        Self {
            missing: request.iter().enumerate().filter_map(|(i, e)| Some((i, e.outside()?))).collect(),
            first_line: vec![None; request.len()],
            grants: Vec::new(),
            grant_count: 0,
            ignored: Vec::new(),
            crowded: false,
            progress: false,
        }
    }

    /// Takes in line `number` of the file.
    #[inline]
    pub fn line(&mut self, number: u64, line: &[u8], owner: &Owner) {
        match parse_line(line, owner) {
            Line::Other => {}
            Line::Grant(ids) => self.grant(number, ids),
            Line::Ignored(why) => {
                if self.ignored.len() < LISTED {
                    self.ignored.push((number, why));
                }
            }
        }
    }

    fn grant(&mut self, line: u64, ids: IdRange) {
        self.grant_count = self.grant_count.saturating_add(1);
        if self.grants.len() < LISTED {
            self.grants.push(Granted { line, ids });
        }
        let mut added = Vec::new();
        let room = MAX_PIECES.max(self.first_line.len()).saturating_sub(self.missing.len());
        let (first_line, crowded, progress) = (&mut self.first_line, &mut self.crowded, &mut self.progress);
        self.missing.retain_mut(|(extent, piece)| {
            if !piece.overlaps(ids) {
                return true;
            }
            let left = match piece.minus(ids) {
                (Some(_), Some(_)) if added.len() >= room => {
                    *crowded = true;
                    return true;
                }
                (Some(below), Some(above)) => {
                    added.push((*extent, above));
                    Some(below)
                }
                (one, other) => one.or(other),
            };
            *progress = true;
            if let Some(first) = first_line.get_mut(*extent) {
                first.get_or_insert(line);
            }
            left.inspect(|left| *piece = *left).is_some()
        });
        self.missing.append(&mut added);
    }

    /// Whether the file has to be read once more, because a grant in the middle of a piece found no room. Ends a
    /// pass: asking again without reading gives `false`.
    #[must_use]
    pub fn needs_another_pass(&mut self) -> bool {
        let again = core::mem::take(&mut self.crowded) && core::mem::take(&mut self.progress);
        if again {
            self.grants.clear();
            self.grant_count = 0;
            self.ignored.clear();
        }
        again
    }

    /// Whether every id outside of extent `index` is granted.
    #[must_use]
    pub fn is_granted(&self, index: usize) -> bool {
        self.first_line(index).is_some() && !self.missing.iter().any(|(extent, _)| *extent == index)
    }

    /// The first line that granted something of extent `index`.
    #[must_use]
    pub fn first_line(&self, index: usize) -> Option<u64> {
        self.first_line.get(index).copied().flatten()
    }

    /// Whether nothing is missing any more.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// What the file at `path` grants `who`, in words: `/etc/subuid:3 grants alice 100000-165535`.
    #[must_use]
    pub fn describe(&self, path: &str, who: &str) -> String {
        let listed: Vec<String> = self.grants.iter().map(|g| format!("{} (line {})", g.ids, g.line)).collect();
        let more = self.grant_count.saturating_sub(listed.len() as u64);
        match (listed.is_empty(), more) {
            (true, _) => format!("{path} grants {who} nothing"),
            (false, 0) => format!("{path} grants {who} {}", listed.join(", ")),
            (false, more) => format!("{path} grants {who} {} and {more} more", listed.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn alice() -> Owner {
        Owner::new(1001, &[b"alice".to_vec(), b"al-2.x_@\\$ \xc3\xa4".to_vec(), b"2004".to_vec()])
    }

    fn range(start: u32, end: u32) -> Line {
        Line::Grant(IdRange::between(start, end).unwrap())
    }

    #[test]
    fn these_lines_grant() {
        for (line, start, end) in [
            ("alice:100000:65536", 100_000, 165_536),
            ("1001:100000:65536", 100_000, 165_536),
            ("al-2.x_@\\$ ä:1:2", 1, 3),
            ("alice:100000:65536 \t\r", 100_000, 165_536),
            ("alice: 100000: 65536", 100_000, 165_536),
            ("alice:+100000:+1", 100_000, 100_001),
            ("alice:0x186a0:0X10", 100_000, 100_016),
            ("alice:0:1", 0, 1),
            ("alice:0:4294967295", 0, u32::MAX),
            ("alice:4294967294:1", u32::MAX - 1, u32::MAX),
            ("alice:4294967294:2", u32::MAX - 1, u32::MAX),
        ] {
            assert_eq!(parse_line(line.as_bytes(), &alice()), range(start, end), "{line}");
        }
        let longest = format!("alice:{}1:1", " ".repeat(MAX_LINE - 9));
        assert_eq!(parse_line(longest.as_bytes(), &alice()), range(1, 2));
    }

    #[test]
    fn these_lines_grant_nothing_and_say_why() {
        let longer = format!("alice:{}1:1", " ".repeat(MAX_LINE - 8));
        for line in [
            "01001:1:1",
            " 1001:1:1",
            " +1001:1:1",
            "+1001:1:1",
            " alice:1:1",
            "\talice:1:1",
            "alice:0100000:65536",
            "alice:00:1",
            "alice:1:01",
            "alice:100000:65536 # text",
            "alice:1:1:",
            "alice:1:1:foo",
            "alice:1",
            "alice:",
            "alice::5000",
            "alice:100000:",
            "alice:100000a:1",
            "alice:-1:1",
            "alice:1:-1",
            "alice:0:0",
            "alice:0x:1",
            "alice:1 :1",
            "alice:1:4294967296",
            "alice:0:4294967296",
            "alice:4294967295:1",
            "alice:4294967295:2",
            "alice:1:18446744073709551615",
            "alice:1:18446744073709551617",
            "alice:1\0:1",
            &longer,
        ] {
            assert!(matches!(parse_line(line.as_bytes(), &alice()), Line::Ignored(_)), "{line}");
        }
    }

    #[test]
    fn these_lines_are_somebody_elses() {
        for line in [
            "",
            ":",
            ":100000:10",
            "#alice:1:1",
            "alicee:1:1",
            "alic:1:1",
            "Alice:1:1",
            "alice :1:1",
            "0x3e9:1:1",
            "4294968297:1:1",
            "2004:1:1",
            "-alice:1:1",
            "@alice:1:1",
            "bob:1:1",
            "alice",
            "10010:1:1",
            "100:1:1",
        ] {
            assert_eq!(parse_line(line.as_bytes(), &alice()), Line::Other, "{line}");
        }
    }

    fn covered(request: &[(u32, u32)], lines: &[(u32, u32)]) -> Coverage {
        let request: Vec<Extent> =
            request.iter().map(|(outside, count)| Extent { inside: 0, outside: *outside, count: *count }).collect();
        let mut coverage = Coverage::new(&request);
        loop {
            for (number, (start, count)) in lines.iter().enumerate() {
                coverage.line(number as u64 + 1, format!("alice:{start}:{count}").as_bytes(), &alice());
            }
            if !coverage.needs_another_pass() {
                return coverage;
            }
        }
    }

    #[test]
    fn a_request_may_span_lines_in_any_order() {
        assert!(covered(&[(10, 20)], &[(25, 5), (10, 6), (15, 11)]).is_complete());
        assert!(!covered(&[(10, 20)], &[(25, 5), (10, 5), (16, 10)]).is_complete());
        let two = covered(&[(10, 5), (40, 5)], &[(38, 20)]);
        assert!(!two.is_granted(0) && two.is_granted(1) && !two.is_granted(2));
        assert_eq!((two.first_line(0), two.first_line(1)), (None, Some(1)));
        assert_eq!(two.describe("/etc/subuid", "alice"), "/etc/subuid grants alice 38-57 (line 1)");
    }

    #[test]
    fn ten_thousand_scattered_lines_are_covered_in_bounded_memory() {
        let lines: Vec<(u32, u32)> = (0..10_000).step_by(2).chain((1..10_000).step_by(2)).map(|id| (id, 1)).collect();
        let coverage = covered(&[(0, 10_000)], &lines);
        assert!(coverage.is_complete() && coverage.missing.capacity() <= 2 * MAX_PIECES);
        let coverage = covered(&[(0, 10_001)], &lines);
        assert!(!coverage.is_complete());
    }

    proptest! {
        #[test]
        fn coverage_is_that_of_a_set_of_ids(
            request in proptest::collection::vec((0..60_u32, 1..20_u32), 1..4),
            lines in proptest::collection::vec((0..60_u32, 1..12_u32), 0..12),
        ) {
            let coverage = covered(&request, &lines);
            for (index, (start, count)) in request.iter().enumerate() {
                let whole = (*start..start + count).all(|id| lines.iter().any(|(s, c)| (*s..s + c).contains(&id)));
                prop_assert_eq!(coverage.is_granted(index), whole);
            }
        }

        #[test]
        fn removing_a_line_never_grants_more(
            request in (0..60_u32, 1..20_u32),
            lines in proptest::collection::vec((0..60_u32, 1..12_u32), 1..12),
        ) {
            let fewer = covered(&[request], &lines[1..]).is_complete();
            prop_assert!(!fewer || covered(&[request], &lines).is_complete());
        }

        #[test]
        fn no_line_panics(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut owned = b"alice:".to_vec();
            owned.extend(&line);
            let _ = parse_line(&line, &alice());
            let _ = parse_line(&owned, &alice());
        }
    }
}
