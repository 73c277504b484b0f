//! What a rootfs, a client of the control socket or a kernel's text may hold, read by each parser of this crate: for
//! the fuzz target `spawn` alone.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::client::{Client, Request};
use crate::{explain, failure, identity, plan, report, supervise};

/// Reads `data` as everything. Panics when a rule is broken that holds for any input.
pub fn read(data: &[u8]) {
    let _ = explain::interpreter(data);
    let _ = explain::machine(data);
    let _ = report::parse(data);
    let text = String::from_utf8_lossy(data);
    let _ = supervise::parse_dispositions(&text);
    assert!(!failure::one_line(&text).contains(char::is_control));
    for name in plan::mounted_below(data) {
        assert!(!name.is_empty());
    }
    if let Some(steps) = plan::path_steps(Path::new(OsStr::from_bytes(data))) {
        for step in &steps {
            assert!(!step.last.as_bytes().contains(&b'/') && step.last.as_c_str() != c"..");
            assert!(
                step.prefix.as_bytes().ends_with(step.last.as_bytes()) && !step.prefix.as_bytes().starts_with(b"/")
            );
        }
    }
    if let Some(identity) = identity::by_name("ada", &text, &text) {
        assert!(identity.uid != u32::MAX && identity.gid != u32::MAX && !identity.groups.contains(&u32::MAX));
    }
    client(data);
}

/// The lines of one connection: it ends, whatever they are.
fn client(data: &[u8]) {
    let Ok((mut theirs, ours)) = UnixStream::pair() else { return };
    let Some(mut client) = Client::accept(ours) else { return };
    let sent = data.get(..data.len().min(8192)).unwrap_or_default();
    if theirs.write_all(sent).is_err() {
        return;
    }
    drop(theirs);
    for _ in 0..=sent.len() {
        match client.next() {
            Request::End => return,
            Request::Signal(number) => assert!((1..=64).contains(&number)),
            Request::Go(fds) => assert!(fds.is_none()),
            _ => {}
        }
    }
    unreachable!("more requests than bytes");
}
