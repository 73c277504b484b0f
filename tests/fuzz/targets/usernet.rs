//! A line of lxc-usernet: what grants is what a slower reader of the same rules grants, and no input panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use usernet::policy::{Line, Who, parse_line};

/// The four fields and the count, as sscanf("%99[^ \t] %99[^ \t] %99[^ \t] %d") sees them. `None`: no grant.
fn slow(line: &[u8]) -> Option<(Vec<u8>, Vec<u8>, u64)> {
    let mut rest = line;
    let mut fields = Vec::new();
    for _ in 0..3 {
        let field: Vec<u8> = rest.iter().copied().take_while(|b| *b != b' ' && *b != b'\t').collect();
        rest = &rest[field.len()..];
        while rest.first().is_some_and(u8::is_ascii_whitespace) {
            rest = &rest[1..];
        }
        fields.push(field);
    }
    let digits: Vec<u8> =
        rest.strip_prefix(b"+").unwrap_or(rest).iter().copied().take_while(u8::is_ascii_digit).collect();
    let count = digits.iter().fold(0_u64, |n, d| (n * 10 + u64::from(d - b'0')).min(u64::from(u32::MAX)));
    let valid = !digits.is_empty() && count > 0 && fields.iter().all(|f| !f.is_empty() && f.len() <= 99);
    (valid && fields[1] == b"veth" && line[0] != b'#').then(|| (fields.remove(0), fields.remove(1), count))
}

fuzz_target!(|data: &[u8]| {
    let line = data.split(|b| *b == b'\n').next().unwrap_or_default();
    let parsed = parse_line(7, line);
    let Ok(Some(Line { number, pot, who, bridge, grant: Ok((count, options)) })) = parsed else { return };
    assert_eq!(number, 7);
    // Whatever grants here grants in the original as well, the same to the same.
    let (their_pot, their_bridge, their_count) = slow(line).expect("the original grants it too");
    assert_eq!((&pot, &bridge), (&their_pot, &their_bridge));
    assert_eq!(u64::from(count), their_count.min(i32::MAX as u64));
    match who {
        Who::User(name) => assert_eq!(name, pot),
        Who::Group(name) => assert_eq!([b"@".as_slice(), &name].concat(), pot),
    }
    assert!(options.vid.is_none_or(|vid| (1..=4094).contains(&vid)));
    assert!(options.mtu.is_none_or(|mtu| (68..=65535).contains(&mtu)));
    if let Some(pool) = options.pool {
        let address = pool.address(u64::from(count), &Default::default()).expect("an empty pool is refused");
        assert!(address.contains('/'));
    }
});
