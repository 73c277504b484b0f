//! Arguments, separated by NUL bytes: whatever they are, a request keeps the limits, and a plain one is read back.
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use helper::range::IdKind;
use helper::request::{Request, parse};
use helper::target::TargetName;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let words: Vec<OsString> = data.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect();
    let (kind, other) = (IdKind::Uid, IdKind::Gid);
    let result = parse(kind, words.clone());
    assert_eq!(result.is_ok(), parse(other, words.clone()).is_ok(), "both programs take the same words");
    let Ok(Request::Map { target, extents, check }) = result else { return };
    assert_eq!(check, words[0] == "--check");
    assert_eq!(extents.len() * 3 + 1 + usize::from(check), words.len());
    for extent in &extents {
        let limit = u64::from(u32::MAX);
        assert!(extent.count > 0);
        assert!(u64::from(extent.inside) + u64::from(extent.count) <= limit);
        assert!(u64::from(extent.outside) + u64::from(extent.count) <= limit);
    }
    let first = match target {
        TargetName::Pid(pid) => {
            assert!(pid > 0);
            pid.to_string()
        }
        TargetName::Descriptor(number) => {
            assert!(number >= 0);
            format!("fd:{number}")
        }
    };
    let numbers = extents
        .iter()
        .flat_map(|extent| [extent.inside, extent.outside, extent.count])
        .map(|number| number.to_string());
    let plain: Vec<OsString> = std::iter::once(first).chain(numbers).map(OsString::from).collect();
    assert_eq!(parse(kind, plain), Ok(Request::Map { target, extents, check: false }));
});
