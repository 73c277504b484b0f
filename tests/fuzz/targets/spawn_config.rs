//! A container's configuration, which may be anybody's: spawn reads every one to its end without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| spawn::fuzzed::config(data));
