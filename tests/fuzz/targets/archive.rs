//! A tar: reading ends, and no member claims what the limits forbid.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(members) = spawn::rootfs::archive::list(data) else { return };
    for member in members {
        assert!(member.name.len() < 4096 && !member.name.contains(&0));
        assert!(member.mode <= 0o7777 && member.offset < data.len() as u64);
        if let Some(map) = member.sparse {
            assert!(map.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
            assert!(map.last().is_none_or(|(at, length)| at + length <= member.size));
        }
    }
});
