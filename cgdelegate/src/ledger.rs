//! One file for each user in `/run/cgdelegate`, which only root can enter: the user's lock, and the list of bases below
//! which he may have cgroups. A base is written down before anything is made below it, so that a user who calls from two
//! places has one quota.

#![forbid(unsafe_code)]

use crate::directory::open_path;
use helper::handover::sys;
use helper::report::{Failure, reason};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::mkdir;
use std::ffi::CStr;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// The directory.
pub const PATH: &str = "/run/cgdelegate";

/// The same: before Linux 5.2 a directory is needed to mount something on, in a namespace of its own.
pub const MOUNT_POINT: &CStr = c"/run/cgdelegate";

/// Longest wait for a lock, which another call of the same user holds.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Longest wait of root's for the locks of others, for all of them together: a user can stop a call that holds his.
pub const PATIENCE_WITH_OTHERS: Duration = Duration::from_secs(1);

/// Most bytes of a list.
const MAX_LIST: u64 = 1 << 16;

const SYSTEM: u8 = 71;
const TRY_AGAIN: u8 = 75;

/// A user's file, locked as long as this value lives.
#[derive(Debug)]
pub struct Ledger {
    file: File,
    entries: Vec<(String, String)>,
    /// Whether the file has no byte.
    is_empty: bool,
}

impl Ledger {
    /// Opens and locks the file of `uid`, waiting no longer than `patience`; both directory and file are made when they are
    /// missing.
    ///
    /// # Errors
    /// 75: another call of this user holds it still. 71: the file system's, in words.
    pub fn open(uid: u32, patience: Duration) -> Result<Self, Failure> {
        let directory = directory()?;
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let name = uid.to_string();
        let opened = openat(&directory, name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let file = File::from(opened.map_err(|e| failed("open", &name, e))?);
        match sys::lock_within(&file, patience) {
            Ok(()) => {}
            Err(Errno::EWOULDBLOCK) => {
                return Err(Failure::new(format!(
                    "another call of uid {uid} holds {PATH}/{name} and has not let go: is it stopped or frozen? try again"
                ))
                .status(TRY_AGAIN));
            }
            Err(error) => return Err(failed("lock", &name, error)),
        }
        let mut ledger = Self { file, entries: Vec::new(), is_empty: false };
        ledger.read().map_err(|e| Failure::new(format!("read {PATH}/{name}: {}", reason(&e))).status(SYSTEM))?;
        Ok(ledger)
    }

    fn read(&mut self) -> std::io::Result<()> {
        let mut text = String::with_capacity(1024);
        (&self.file).take(MAX_LIST).read_to_string(&mut text)?;
        self.is_empty = text.is_empty();
        self.entries = entries_of(&text);
        Ok(())
    }

    /// The bases: label of the hierarchy, path with a leading slash.
    #[must_use]
    pub fn entries(&self) -> &[(String, String)] {
        &self.entries
    }

    /// Writes a base down, unless it is there already. Comes before the first mkdir below that base.
    ///
    /// # Errors
    /// The file cannot be written, or there are too many bases.
    pub fn add(&mut self, label: &str, base: &str) -> Result<(), Failure> {
        if self.entries.iter().any(|(l, b)| l == label && b == base) {
            return Ok(());
        }
        let line = format!("{label} {base}\n");
        let failed = |why: String| Failure::new(format!("write {PATH}: {why}")).status(SYSTEM);
        let end = self.file.seek(SeekFrom::End(0)).map_err(|e| failed(reason(&e)))?;
        if end.saturating_add(line.len() as u64) > MAX_LIST {
            return Err(failed("too many bases: run cgdelegate prune".to_owned()).status(TRY_AGAIN));
        }
        // A line that was cut short is ended first, so that this one stands alone.
        let whole = if self.ends_whole(end).map_err(|e| failed(reason(&e)))? { line } else { format!("\n{line}") };
        match self.file.write(whole.as_bytes()) {
            Ok(written) if written == whole.len() => {}
            Ok(_) => {
                // Nothing has been made below it. If even this fails, what is there is no entry.
                let _ = self.file.set_len(end);
                return Err(failed("only a part was written: is /run full, or ulimit -f too small?".to_owned()));
            }
            Err(error) => return Err(failed(reason(&error))),
        }
        self.is_empty = false;
        self.entries.push((label.to_owned(), base.to_owned()));
        Ok(())
    }

    fn ends_whole(&mut self, end: u64) -> std::io::Result<bool> {
        let Some(last) = end.checked_sub(1) else { return Ok(true) };
        let mut byte = [0_u8];
        self.file.seek(SeekFrom::Start(last))?;
        self.file.read_exact(&mut byte)?;
        Ok(byte == *b"\n")
    }

    /// Forgets every base: the user has no cgroup anywhere.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn clear(&mut self) -> Result<(), Failure> {
        if self.is_empty {
            return Ok(());
        }
        self.entries.clear();
        self.file.set_len(0).map_err(|e| Failure::new(format!("truncate {PATH}: {}", reason(&e))).status(SYSTEM))?;
        self.is_empty = true;
        Ok(())
    }
}

/// The entries of a file. A last line without its newline was cut short, and then nothing has been made below that base; a
/// line that was cut short and ended later may name no base either.
fn entries_of(text: &str) -> Vec<(String, String)> {
    let whole = text.rfind('\n').and_then(|end| text.get(..end)).unwrap_or_default();
    let entries = whole.lines().filter_map(|line| line.split_once(' '));
    let is_base = |base: &str| base.strip_prefix('/').is_some_and(|rest| rest.split('/').any(|part| !part.is_empty()));
    let named = entries.filter(|(label, base)| !label.is_empty() && is_base(base));
    named.map(|(label, base)| (label.to_owned(), base.to_owned())).collect()
}

/// The uids that have a file.
///
/// # Errors
/// The directory cannot be read; one that does not exist holds none.
pub fn users() -> Result<Vec<u32>, Failure> {
    let listed = match std::fs::read_dir(PATH) {
        Ok(listed) => listed,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::new(format!("read {PATH}: {}", reason(&error))).status(SYSTEM)),
    };
    let mut uids: Vec<u32> = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    uids.sort_unstable();
    Ok(uids)
}

/// The directory, which must be root's and closed to everybody else.
fn directory() -> Result<OwnedFd, Failure> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let opened = open_path(PATH, flags).or_else(|error| {
        if error != Errno::ENOENT {
            return Err(failed("open", "", error));
        }
        match mkdir(PATH, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => open_path(PATH, flags).map_err(|e| failed("open", "", e)),
            Err(error) => Err(Failure::new(format!("mkdir {PATH}: {}", error.desc())).status(SYSTEM)),
        }
    })?;
    let meta = fstat(&opened).map_err(|e| failed("fstat", "", e))?;
    if meta.st_uid == 0 && meta.st_mode & 0o077 == 0 {
        Ok(opened)
    } else {
        Err(Failure::new(format!(
            "{PATH} is not believed: it must be root's with mode 0700 (chown root {PATH}; chmod 700 {PATH})"
        ))
        .status(SYSTEM))
    }
}

fn failed(what: &str, name: &str, error: Errno) -> Failure {
    Failure::new(format!("{what} {PATH}/{name}: {}", error.desc())).status(SYSTEM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_short_is_no_entry() {
        let text = "v2 /a/b\nname=systemd /\nv2\nv2 \nv2 //\n /a\nv2 a\npids /c\nv2 /d";
        let expected = [("v2", "/a/b"), ("pids", "/c")].map(|(label, base)| (label.to_owned(), base.to_owned()));
        assert_eq!(entries_of(text), expected);
        assert_eq!(entries_of("v2 /a"), []);
    }
}
