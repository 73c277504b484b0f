//! What a rootfs and a client of the control socket may hold: every parser of spawn comes to an end without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| spawn::fuzzed::read(data));
