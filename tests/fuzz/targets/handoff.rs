//! A handoff record: what is read is printed and read back, and a stage's own words fit or change nothing.
#![no_main]

use helper::handoff::{MAX_LINE, Record};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(mut record) = Record::parse(data) else { return };
    assert!(record.pid() > 0);
    let line = record.to_string();
    assert!(line.is_ascii() && !line.bytes().any(|byte| byte.is_ascii_control()));
    assert!(!line.contains("  ") && !line.ends_with(' '));
    // Escapes of plain bytes become plain, so a line never grows by being read and printed.
    assert!(line.len() <= data.len());
    assert_eq!(Record::parse(line.as_bytes()).as_ref(), Ok(&record));
    let before = record.clone();
    let value = "\u{e4} b=c\n%41";
    match record.set("uids", value) {
        Ok(()) => {
            assert_eq!(record.get("uids"), Some(value));
            let line = format!("{record}\n");
            assert!(line.len() <= MAX_LINE);
            assert_eq!(Record::parse(line.as_bytes()), Ok(record));
        }
        Err(_) => assert_eq!(record, before),
    }
});
