//! What is read below /proc and from passwd(5): no bytes of it panic, and a number is what stands there.
#![no_main]

use helper::caller::{parse_passwd, plain_number};
use helper::handoff::start_time;
use helper::target::one_line;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(time) = start_time(data) {
        let text = time.to_string();
        assert!(
            data.windows(text.len()).any(|window| window == text.as_bytes())
                || data.contains(&b'0')
                || data.contains(&b'+')
        );
    }
    // A command name of any bytes does not move the fields behind it.
    let mut stat = b"77 (".to_vec();
    stat.extend(data.iter().filter(|byte| **byte != b'\n').take(15));
    stat.extend_from_slice(b") S 1 77 77 0 -1 4194560 100 0 0 0 0 0 0 0 20 0 1 0 81516 1000 1 18446744073709551615");
    assert_eq!(start_time(&stat), Some(81_516));
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(!one_line(text).contains('\n'));
    }
    if let Some((name, uid, gid)) = parse_passwd(data) {
        assert!(!name.is_empty() && !name.contains(&b':'));
        assert!(uid != u32::MAX && gid != u32::MAX);
    }
    if let Some(id) = plain_number(data) {
        assert!(data.iter().all(u8::is_ascii_digit) && data.ends_with(id.to_string().as_bytes()));
    }
});
