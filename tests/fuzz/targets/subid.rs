//! A file of /etc/subuid's form: lines are found as a plain search finds them, and a line grants what a second, slower
//! reader says it grants.
#![no_main]

use helper::range::Extent;
use helper::subid::{Coverage, Line, Owner, parse_line};
use helper::trusted::split_line;
use libfuzzer_sys::fuzz_target;

/// The rules of subuid(5) once more, without a thought for speed.
fn slow(line: &[u8]) -> Option<(u64, u64)> {
    if line.len() > 1023 {
        return None;
    }
    let text = std::str::from_utf8(line).ok()?.trim_end_matches([' ', '\t', '\r']);
    let fields: Vec<&str> = text.split(':').collect();
    let [owner, start, count] = fields.as_slice() else { return None };
    if !["alice", "1001"].contains(owner) {
        return None;
    }
    let number = |field: &str| -> Option<u64> {
        let field = field.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
        let field = field.strip_prefix('+').unwrap_or(field);
        if let Some(hex) = field.strip_prefix("0x").or_else(|| field.strip_prefix("0X")) {
            return if hex.starts_with('+') { None } else { u64::from_str_radix(hex, 16).ok() };
        }
        if field.starts_with('+') || (field.len() > 1 && field.starts_with('0')) { None } else { field.parse().ok() }
    };
    let (start, count) = (number(start)?, number(count)?);
    let end = start.checked_add(count)?;
    if count == 0 || count >= 1 << 32 || end > 1 << 32 {
        return None;
    }
    let end = end.min(u64::from(u32::MAX));
    (start < end).then_some((start, end))
}

fuzz_target!(|data: &[u8]| {
    let owner = Owner::new(1001, &[b"alice".to_vec()]);
    let request = [Extent { inside: 0, outside: 100_000, count: 65_536 }];
    let mut coverage = Coverage::new(&request);
    let mut rest = data;
    let mut lines = Vec::new();
    while let Some((line, after)) = split_line(rest) {
        lines.push(line);
        rest = after;
    }
    lines.push(rest);
    assert_eq!(lines, data.split(|byte| *byte == b'\n').collect::<Vec<_>>());
    let mut granted = std::collections::BTreeMap::new();
    for (number, line) in lines.iter().enumerate() {
        coverage.line(number as u64 + 1, line, &owner);
        let wanted = slow(line);
        // The slow reader takes vertical tabs for blanks, as strtoul does.
        if !line.contains(&0x0b) {
            match parse_line(line, &owner) {
                Line::Grant(ids) => {
                    assert_eq!(Some((u64::from(ids.start()), u64::from(ids.end()))), wanted, "{line:?}")
                }
                Line::Other | Line::Ignored(_) => assert_eq!(wanted, None, "{line:?}"),
            }
        }
        if let Line::Grant(ids) = parse_line(line, &owner) {
            granted.insert(ids.start(), ids.end().max(granted.get(&ids.start()).copied().unwrap_or(0)));
        }
    }
    // The request is covered exactly when a walk over the sorted grants reaches its end.
    let mut reached = 100_000;
    for (start, end) in granted {
        if start <= reached && end > reached {
            reached = end;
        }
    }
    assert_eq!(coverage.is_granted(0), reached >= 165_536);
});
