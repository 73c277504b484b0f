//! The documents of an image, and what else is read as text: digests, checksum files, configurations, ACLs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spawn::rootfs::{adapt, container, digest, image, unpack};

fuzz_target!(|data: &[u8]| {
    image::parse_anything(data);
    let _ = image::looks_like_image(data);
    let text = String::from_utf8_lossy(data);
    let _ = digest::Digest::parse(&text);
    let _ = digest::in_sums(&text, "rootfs.tar.xz");
    let _ = container::parse(&text);
    let _ = unpack::acl_with(data, |_, id| id.checked_add(1));
    if let Some(third) = unpack::capability_for(data, 7) {
        assert_eq!(third.len(), 24);
    }
    if let Some(after) = adapt::with_optional_loginuid(data) {
        assert_eq!(adapt::with_optional_loginuid(&after), None);
    }
});
