//! newuidmap and newgidmap: the verdict meets the kernel. Nothing is decided here.

#![forbid(unsafe_code)]

use crate::policy::Verdict;
use crate::range::IdKind;
use crate::report::{Failure, Program, reason};
use crate::target::Target;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};

/// The open map file of a target that has no map yet: all that can be found out without changing anything.
#[derive(Debug)]
pub struct Unwritten<'a> {
    target: &'a Target,
    kind: IdKind,
    map: File,
}

impl<'a> Unwritten<'a> {
    /// Opens the map file and looks whether it is still empty.
    ///
    /// # Errors
    /// It cannot be opened, or is written already, or the target has no user namespace of its own; in words.
    pub fn open(target: &'a Target, kind: IdKind) -> Result<Self, Failure> {
        let file = kind.map_file();
        let failed = |error: Errno| {
            Failure::new(format!("open of {file} failed: {}: {}", error.desc(), target.explain(kind, error)))
        };
        let mut map = target.open_file(file, OFlag::O_RDWR).map_err(failed)?;
        let mut first = [0_u8; 1];
        match map.read(&mut first) {
            Ok(0) => Ok(Self { target, kind, map }),
            Ok(_) => Err(write_failed(target, kind, file, Errno::EPERM)),
            Err(error) => Err(Failure::new(format!("read of {file} failed: {}", reason(&error)))),
        }
    }

    /// Denies setgroups where the verdict says so, then writes the map in one write.
    ///
    /// # Errors
    /// The kernel's refusal, in words. Nothing is changed then but, at most, `setgroups` of the target.
    pub fn write(mut self, program: &Program, verdict: &Verdict) -> Result<(), Failure> {
        if verdict.deny_setgroups {
            deny_setgroups(program, self.target, self.kind)?;
        }
        // From here on there is one write, which the kernel does wholly or not at all.
        let file = self.kind.map_file();
        // At the beginning still: the read in `open` found nothing to pass over.
        let written = self.map.write(verdict.text.as_bytes());
        match written {
            Ok(bytes) if bytes == verdict.text.len() => Ok(()),
            Ok(bytes) => Err(Failure::new(format!("write to {file} failed: the kernel took only {bytes} bytes"))),
            Err(error) => {
                let error = Errno::from_raw(error.raw_os_error().unwrap_or(0));
                Err(write_failed(self.target, self.kind, file, error))
            }
        }
    }
}

/// CVE-2018-7169: whoever maps nothing but his own gid must not be able to drop a group that denies him access.
fn deny_setgroups(program: &Program, target: &Target, kind: IdKind) -> Result<(), Failure> {
    let failed =
        |error: &str| Failure::new(format!("write to setgroups failed: {error}: the map is not written either"));
    let mut file = match target.open_file("setgroups", OFlag::O_RDWR) {
        Ok(file) => file,
        // Before Linux 3.19 there is no such file, and no way to deny it.
        Err(Errno::ENOENT) if std::fs::symlink_metadata("/proc/self/setgroups").is_err_and(is_missing) => {
            program
                .say("warning: this kernel has no setgroups file, so a group that denies access can be dropped inside");
            return Ok(());
        }
        Err(error) => return Err(failed(&format!("{}: {}", error.desc(), target.explain(kind, error)))),
    };
    let mut now = String::new();
    file.read_to_string(&mut now).map_err(|e| failed(&reason(&e)))?;
    if now.starts_with("deny\n") {
        return Ok(());
    }
    file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(b"deny")).map_err(|e| failed(&reason(&e)))
}

fn is_missing(error: std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
}

fn write_failed(target: &Target, kind: IdKind, file: &str, error: Errno) -> Failure {
    Failure::new(format!("write to {file} failed: {}: {}", error.desc(), target.explain(kind, error)))
}
