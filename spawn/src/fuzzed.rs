//! What a rootfs, a client of the control socket or a kernel's text may hold, read by each parser of this crate: for
//! the fuzz target `spawn` alone.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::client::{Client, Request};
use crate::config::{Config, text};
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

/// A configuration: every text is read or refused with a reason of one line that names a place.
pub fn config(data: &[u8]) {
    struct One<'a>(&'a [u8]);
    impl text::Files for One<'_> {
        fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
            // Parts of the input are files of their own, so that it can include itself in every way.
            let mut parts = self.0.split(|b| *b == b'\x01');
            let number = path.to_str().and_then(|path| path.strip_prefix('/')?.parse::<usize>().ok());
            let part = number.and_then(|number| parts.nth(number));
            part.map(<[u8]>::to_vec).ok_or_else(|| std::io::ErrorKind::NotFound.into())
        }
        fn list(&self, path: &Path) -> std::io::Result<Vec<std::path::PathBuf>> {
            match path.to_str() {
                Some("/d") => Ok(vec!["/1".into(), "/2.conf".into()]),
                _ if self.read(path).is_ok() => Err(std::io::ErrorKind::NotADirectory.into()),
                _ => Err(std::io::ErrorKind::NotFound.into()),
            }
        }
    }
    match Config::read(&One(data), Some(Path::new("/0")), &[]) {
        Err(wrong) => assert!(wrong.0.starts_with('/') || wrong.0.starts_with("lxc.idmap: ")),
        Ok(config) => {
            for written in config.sysctls.iter().chain(&config.procs) {
                assert!(!written.file.split('/').any(|part| part.is_empty() || part == ".."), "{written:?}");
            }
            for (mount, _) in &config.mounts {
                assert!(!mount.target.split('/').any(|part| part == ".."), "{mount:?}");
            }
            for (limit, _) in &config.limits {
                assert!(limit.soft <= limit.hard && limit.resource < 16, "{limit:?}");
            }
            for signal in [config.signals.halt, config.signals.reboot, config.signals.stop].into_iter().flatten() {
                assert!((1..=64).contains(&signal));
            }
            assert!(config.init.uid != Some(u32::MAX) && config.init.gid != Some(u32::MAX));
        }
    }
}
