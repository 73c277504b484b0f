//! Files of the administrator: opened so that only root can have written what is read, and read in constant memory.

#![forbid(unsafe_code)]

use crate::report::reason;
use core::ops::ControlFlow;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, readlinkat};
use nix::sys::stat::Mode;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Size of the only buffer, in bytes: no longer line can be read, and memory use does not depend on the file.
const BUFFER: usize = 32 * 1024;

/// The only buffer, one for all files: mapping a fresh one for each costs more than reading a small file.
static LINES: Mutex<[u8; BUFFER]> = Mutex::new([0; BUFFER]);

/// A link to a link to a link ends here.
const MAX_LINKS: usize = 8;

/// Why a file is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// There is no such file.
    Missing,
    /// It is there but cannot be opened or must not be believed; the cause and the cure in words.
    Refused(String),
}

/// The state of a file at a time: two that are equal are of the same file with the same content, as far as its times
/// tell (kernels before Linux 6.13 advance them only every few milliseconds).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Device, inode number, and size in bytes.
    file: (u64, u64, u64),
    /// Time of the last change of content and of the last change of the inode, in seconds and nanoseconds.
    changed: [(i64, i64); 2],
}

/// An open file that root owns and nobody else can write.
#[derive(Debug)]
pub struct Trusted {
    file: File,
    /// Its size in bytes when it was opened.
    size: u64,
    passed_over: bool,
}

impl Trusted {
    /// Opens `path` for reading with the ids and capabilities of the moment. The open file must be regular, owned by
    /// root, and not writable by group or others. A symbolic link is followed only when root owns it and when nobody
    /// but root can change the directories that it leads through. Nothing is waited for (a FIFO is refused, not read).
    ///
    /// # Errors
    /// [`Distrust`].
    pub fn open(path: &str) -> Result<Self, Distrust> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let mut at = PathBuf::from(path);
        for _ in 0..MAX_LINKS {
            match openat(AT_FDCWD, &at, flags, Mode::empty()) {
                Ok(descriptor) => return Self::believe(File::from(descriptor), path),
                Err(Errno::ELOOP) => at = roots_path(path, follow(path, &at)?)?,
                Err(Errno::ENOENT) => return Err(Distrust::Missing),
                Err(Errno::EACCES) => {
                    return Err(Distrust::Refused(format!(
                        "cannot open {path}: Permission denied: it must be readable by everyone (chmod 644 {path})"
                    )));
                }
                Err(error) => return Err(Distrust::Refused(format!("cannot open {path}: {}", error.desc()))),
            }
        }
        Err(Distrust::Refused(format!("cannot open {path}: more than {MAX_LINKS} symbolic links")))
    }

    fn believe(file: File, path: &str) -> Result<Self, Distrust> {
        let refuse = |why: &str| Err(Distrust::Refused(format!("{path} is not believed: {why}")));
        let meta = file.metadata().map_err(|e| Distrust::Refused(format!("fstat {path}: {}", reason(&e))))?;
        if !meta.is_file() {
            return refuse("it is no regular file");
        }
        if meta.uid() != 0 {
            let cure = match meta.uid() {
                // The overflow uid (/proc/sys/kernel/overflowuid).
                65534 => "its owner, perhaps root, is not mapped in this user namespace".to_owned(),
                uid => format!("uid {uid} owns it, not root (chown root {path})"),
            };
            return refuse(&cure);
        }
        if meta.mode() & 0o022 != 0 {
            return refuse(&format!("its mode {:04o} lets others write it (chmod go-w {path})", meta.mode() & 0o7777));
        }
        Ok(Self { file, size: meta.size(), passed_over: false })
    }

    /// What tells this state of the file from a later one.
    ///
    /// # Errors
    /// That of fstat(2), in words.
    pub fn version(&self) -> Result<Version, String> {
        let meta = self.file.metadata().map_err(|e| reason(&e))?;
        Ok(Version {
            file: (meta.dev(), meta.ino(), meta.size()),
            changed: [(meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec())],
        })
    }

    /// Whether a line was too long to be looked at.
    #[must_use]
    pub const fn has_passed_over(&self) -> bool {
        self.passed_over
    }

    /// The whole file, when it has no more than `limit` bytes.
    ///
    /// # Errors
    /// It is longer; or what went wrong with reading, in words.
    pub fn whole(&mut self, limit: usize) -> Result<Vec<u8>, String> {
        self.file.seek(SeekFrom::Start(0)).map_err(|e| reason(&e))?;
        let mut content = Vec::new();
        let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        self.file.by_ref().take(most).read_to_end(&mut content).map_err(|e| reason(&e))?;
        if content.len() > limit { Err(format!("it has more than {limit} bytes")) } else { Ok(content) }
    }

    /// Calls `each` with the number (from 1) and the bytes of every line, from the beginning of the file; without the
    /// newline, which the last line may lack. A line of 32 KiB or more is passed over. Stops early when told to.
    /// `each` must not read another file: there is one buffer.
    ///
    /// # Errors
    /// What went wrong with reading, in words.
    pub fn each_line(&mut self, mut each: impl FnMut(u64, &[u8]) -> ControlFlow<()>) -> Result<(), String> {
        let mut offset = 0_u64;
        let mut buffer = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        let mut filled = 0_usize;
        let mut number = 0_u64;
        let mut passing_over = false;
        loop {
            let space = buffer.get_mut(filled..).unwrap_or_default();
            // The file as it was when it was opened: no read is spent on finding its end again.
            let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(space.len());
            let space = space.get_mut(..left).unwrap_or_default();
            let read = if left == 0 { Ok(0) } else { self.file.read_at(space, offset) };
            let read = match read {
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(reason(&error)),
            };
            offset = offset.saturating_add(read as u64);
            let end = filled.saturating_add(read);
            let mut rest = buffer.get(..end).unwrap_or_default();
            while let Some((line, after)) = split_line(rest) {
                number = number.saturating_add(1);
                rest = after;
                if !core::mem::take(&mut passing_over) && each(number, line).is_break() {
                    return Ok(());
                }
            }
            if read == 0 {
                if !rest.is_empty() && !passing_over {
                    let _ = each(number.saturating_add(1), rest);
                }
                return Ok(());
            }
            let left = rest.len();
            if left >= BUFFER {
                passing_over = true;
                self.passed_over = true;
            }
            filled = if passing_over { 0 } else { left };
            buffer.copy_within(end.saturating_sub(filled)..end, 0);
        }
    }
}

/// Where the symbolic link `path` leads to, when nobody but root can change what the directories on the way mean: each
/// must be root's and writable by root alone, or sticky; a symbolic link among them must be root's and is resolved the
/// same way.
fn roots_path(path: &str, mut to: PathBuf) -> Result<PathBuf, Distrust> {
    for _ in 0..MAX_LINKS {
        let parent = to.parent().unwrap_or(Path::new("/")).to_owned();
        let mut prefix = PathBuf::new();
        let mut resolved = None;
        for component in parent.components() {
            prefix.push(component);
            let meta = std::fs::symlink_metadata(&prefix).map_err(|e| unfollowed(path, &prefix, &reason(&e)))?;
            if meta.file_type().is_symlink() {
                let rest = to.strip_prefix(&prefix).unwrap_or(&to).to_owned();
                resolved = Some(follow(path, &prefix)?.join(rest));
                break;
            }
            if meta.uid() != 0 || (meta.mode() & 0o022 != 0 && meta.mode() & 0o1000 == 0) {
                let (uid, mode) = (meta.uid(), meta.mode() & 0o7777);
                let why = format!("others than root can change that directory (uid {uid}, mode {mode:04o})");
                return Err(unfollowed(path, &prefix, &why));
            }
        }
        match resolved {
            Some(next) => to = next,
            None => return Ok(to),
        }
    }
    Err(unfollowed(path, &to, &format!("more than {MAX_LINKS} symbolic links")))
}

/// Where the symbolic link at `link`, met on the way of `path`, leads to, when root owns it.
fn follow(path: &str, link: &Path) -> Result<PathBuf, Distrust> {
    let failed = |error: Errno| unfollowed(path, link, error.desc());
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let descriptor = File::from(openat(AT_FDCWD, link, flags, Mode::empty()).map_err(failed)?);
    let owner = descriptor.metadata().map_err(|e| unfollowed(path, link, &reason(&e)))?.uid();
    if owner != 0 {
        return Err(unfollowed(path, link, &format!("it is a symbolic link of uid {owner}, not of root")));
    }
    let to = readlinkat(&descriptor, "").map_err(failed)?;
    Ok(link.parent().unwrap_or(Path::new("/")).join(to))
}

fn unfollowed(path: &str, at: &Path, why: &str) -> Distrust {
    Distrust::Refused(format!("{path} is not believed: it is a symbolic link, and at {}: {why}", at.display()))
}

/// The first line of `bytes` and what follows its newline; `None` when there is no newline.
///
/// Eight bytes at a time: the classic test for a zero byte in a word, on the word with every newline turned to zero.
#[inline]
#[must_use]
pub fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let (words, _) = bytes.as_chunks::<8>();
    let mut at = 0_usize;
    for word in words {
        let word = u64::from_le_bytes(*word) ^ (ONES.wrapping_mul(b'\n' as u64));
        let zeros = word.wrapping_sub(ONES) & !word & HIGHS;
        if zeros != 0 {
            // Bytes after the first zero may be marked wrongly, the first never.
            at = at.wrapping_add((zeros.trailing_zeros() / 8) as usize);
            return bytes.split_at_checked(at).map(|(line, rest)| (line, rest.get(1..).unwrap_or_default()));
        }
        at = at.wrapping_add(8);
    }
    let tail = bytes.get(at..)?.iter().position(|b| *b == b'\n')?;
    bytes.split_at_checked(at.wrapping_add(tail)).map(|(line, rest)| (line, rest.get(1..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines_of(content: &[u8]) -> Vec<(u64, usize)> {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, content).unwrap();
        let mut seen = Vec::new();
        let size = file.metadata().unwrap().len();
        let mut file = Trusted { file, size, passed_over: false };
        file.each_line(|number, line| {
            seen.push((number, line.len()));
            ControlFlow::Continue(())
        })
        .unwrap();
        seen
    }

    #[test]
    fn a_line_longer_than_the_buffer_costs_only_itself() {
        let mut content = b"a\n".to_vec();
        content.extend(vec![b'x'; 1_000_000]);
        content.extend(b"\nbc\n\nlast");
        assert_eq!(lines_of(&content), [(1, 1), (3, 2), (4, 0), (5, 4)]);
        assert_eq!(lines_of(b""), []);
        assert_eq!(lines_of(&vec![b'x'; BUFFER]), []);
        assert_eq!(lines_of(&vec![b'x'; BUFFER - 1]), [(1, BUFFER - 1)]);
    }

    proptest! {
        #[test]
        fn lines_are_those_of_a_plain_split(content in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..300)) {
            let mut rest = content.as_slice();
            let mut ours = Vec::new();
            while let Some((line, after)) = split_line(rest) {
                ours.push(line.to_vec());
                rest = after;
            }
            ours.push(rest.to_vec());
            let plain: Vec<Vec<u8>> = content.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
            prop_assert_eq!(ours, plain);
        }
    }
}
