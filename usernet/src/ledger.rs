//! The ledger /run/lxc/nics, which lxc-user-nic of LXC reads and writes too, and the claims beside it.
//!
//! The ledger has a line `OWNER TYPE LINK NIC` for each NIC and is locked as a whole with fcntl(2). It is rewritten in
//! place: who waits for the lock waits for that inode.
//!
//! Every user has a file of his own in /run/lxc/usernet. Its lock is held while something is made for him, and its
//! content is his claim: what is being made, in the form of a ledger line. So a claim is alive while its file is
//! locked, and nobody who waits for one user's lock waits for another user.

#![forbid(unsafe_code)]

use crate::netlink::Mac;
use crate::status;
use core::ops::Range;
use helper::caller::Caller;
use helper::enter::FullRoot;
use helper::report::{Failure, reason};
use helper::trusted::split_line;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open, openat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, stat};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

/// The ledger.
pub const LEDGER: &str = "/run/lxc/nics";
const PARENT: &str = "/run/lxc";
const CLAIMS: &str = "/run/lxc/usernet";

/// Longest wait for the ledger's lock in all.
const LEDGER_LIMIT: Duration = Duration::from_millis(900);

/// A holder that keeps the ledger's lock for so long is stopped or frozen: it is gone round.
const STUCK: Duration = Duration::from_millis(250);

/// Longest wait for other calls of the same user.
const OWN_LIMIT: Duration = Duration::from_secs(5);

/// Size of a claim in its file, in bytes; the rest is newlines.
const CLAIM: usize = 512;

/// Most bytes of a ledger that are read.
const MAX_LEDGER: u64 = 16 << 20;

/// A line of four fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What the NIC is charged to.
    pub pot: &'a [u8],
    /// `veth`.
    pub kind: &'a [u8],
    /// The bridge.
    pub bridge: &'a [u8],
    /// The host end.
    pub nic: &'a [u8],
}

impl Entry<'_> {
    /// The line, with its newline.
    #[must_use]
    pub fn line(&self) -> Vec<u8> {
        [&[self.pot, self.kind, self.bridge, self.nic].join(&b' '), b"\n".as_slice()].concat()
    }
}

/// The lines of a ledger: the bytes of each with its newline, and what it says when it has exactly four fields.
pub fn entries(content: &[u8]) -> impl Iterator<Item = (Range<usize>, Option<Entry<'_>>)> {
    lines(content).map(|(range, line)| (range, parse(line)))
}

/// The lines of a ledger without their newlines, which are in the ranges.
fn lines(content: &[u8]) -> impl Iterator<Item = (Range<usize>, &[u8])> {
    let mut at = 0_usize;
    core::iter::from_fn(move || {
        let rest = content.get(at..).filter(|rest| !rest.is_empty())?;
        let (line, after) = split_line(rest).unwrap_or((rest, &[]));
        let range = at..content.len().saturating_sub(after.len());
        at = range.end;
        Some((range, line))
    })
}

fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.split(|b| matches!(b, b' ' | b'\t')).filter(|field| !field.is_empty());
    let entry = Entry { pot: fields.next()?, kind: fields.next()?, bridge: fields.next()?, nic: fields.next()? };
    (fields.next().is_none() && line.first() != Some(&b'#')).then_some(entry)
}

/// A change of a ledger, as writes to its file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// One write over the rest of the file, padded to its old end with newlines; and the length to cut it to after.
    pub rewrite: Option<(u64, Vec<u8>, u64)>,
    /// One write at the end.
    pub append: Option<(u64, Vec<u8>)>,
}

/// The change that takes the lines at `dead` (in order) out of `content` and adds `lines`. Everything else stays as it
/// is, byte for byte and in order, but empty lines at the end: they are what a rewrite leaves that was killed before
/// it could cut the file.
#[must_use]
pub fn change(content: &[u8], dead: &[Range<usize>], lines: &[Vec<u8>]) -> Change {
    let mut change = Change::default();
    let mut end = content.len();
    let padding = content.iter().rev().take_while(|b| **b == b'\n').count().saturating_sub(1);
    if !dead.is_empty() || padding > 0 {
        let first = dead.first().map_or(content.len(), |range| range.start);
        let mut kept = Vec::with_capacity(content.len());
        let mut at = first;
        for range in dead {
            kept.extend_from_slice(content.get(at..range.start).unwrap_or_default());
            at = range.end;
        }
        kept.extend_from_slice(content.get(at..).unwrap_or_default());
        while kept.ends_with(b"\n\n") || kept == b"\n" {
            kept.pop();
        }
        // There is room for it: a line has gone.
        if kept.last().is_some_and(|b| *b != b'\n') {
            kept.push(b'\n');
        }
        let from = first.min(content.len().saturating_sub(padding));
        end = from.saturating_add(kept.len());
        kept.resize(content.len().saturating_sub(from), b'\n');
        change.rewrite = Some((from as u64, kept, end as u64));
    }
    if !lines.is_empty() {
        let ends_open = change.rewrite.is_none() && content.last().is_some_and(|b| *b != b'\n');
        let mut added = if ends_open { b"\n".to_vec() } else { Vec::new() };
        added.extend(lines.concat());
        change.append = Some((end as u64, added));
    }
    change
}

/// What a user is making just now, or was when he was killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whether its user's lock is held.
    pub alive: bool,
    /// What it is charged to.
    pub pot: Vec<u8>,
    /// The bridge.
    pub bridge: Vec<u8>,
    /// The host end.
    pub nic: Vec<u8>,
    /// The address reserved for it; empty: none.
    pub addr: Vec<u8>,
    /// Hardware address of the host end; `None`: the claim does not say.
    pub mac: Option<Mac>,
}

/// The open files, as [`Store::open`] or [`Store::peek`] found or made them.
#[derive(Debug)]
pub struct Store {
    claims: OwnedFd,
    own_name: String,
    own: File,
    ledger: File,
    /// Where the lines end that [`Store::apply`] has added.
    end: Option<u64>,
}

impl Store {
    /// Opens the ledger and the caller's own file; makes what is missing, owned by root:root, the directory 0755 and
    /// the files 0600.
    ///
    /// # Errors
    /// In words. A directory or file that others can write is not believed.
    pub fn open(caller: &Caller, _root: &FullRoot) -> Result<Self, Failure> {
        directory(PARENT, 0o755)?;
        let claims = directory(CLAIMS, 0o700)?;
        let own_name = caller.uid.to_string();
        let own = openat(&claims, own_name.as_str(), FLAGS | OFlag::O_CREAT, MODE)
            .map(File::from)
            .map_err(|error| failed("open", &format!("{CLAIMS}/{own_name}"), error))?;
        Ok(Self { claims, own_name, own, ledger: open_ledger()?, end: None })
    }

    /// Waits for the lock of the caller's own file, up to `limit`. Not as root: who waits can be killed.
    ///
    /// # Errors
    /// Another call of the same user holds it for too long.
    pub fn lock_own(&self, at_once: bool) -> Result<bool, Failure> {
        let end = Instant::now().checked_add(OWN_LIMIT);
        let mut nap = Nap::default();
        loop {
            match try_lock(&self.own) {
                Ok(true) => return Ok(true),
                Ok(false) if at_once => return Ok(false),
                Ok(false) if end.is_some_and(|end| Instant::now() < end) => nap.sleep(),
                Ok(false) => {
                    let text = format!(
                        "lock {CLAIMS}/{}: another call of yours has held it for {} seconds: is one stopped (fg, or kill -CONT)?",
                        self.own_name,
                        OWN_LIMIT.as_secs()
                    );
                    return Err(Failure::new(text).status(status::LATER));
                }
                Err(error) => return Err(failed("lock", CLAIMS, error)),
            }
        }
    }

    /// Waits for the ledger's lock, or with `at_once` only tries. `false`: its holder is stopped, or there were too many;
    /// go round it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn lock_ledger(&mut self, _root: &FullRoot, at_once: bool) -> Result<bool, Failure> {
        let begin = Instant::now();
        let (mut holder, mut since) = (None, begin);
        let mut nap = Nap::default();
        loop {
            if try_lock(&self.ledger).map_err(|error| failed("lock", LEDGER, error))? {
                if self.is_current() {
                    return Ok(true);
                }
                // Replaced or removed while we waited, for example by an administrator's sed -i.
                (self.ledger, self.end) = (open_ledger()?, None);
                continue;
            }
            let now = Instant::now();
            let waited = |since: Instant| now.saturating_duration_since(since);
            let current = holder_of(&self.ledger);
            if current != holder {
                (holder, since) = (current, now);
            }
            if at_once || waited(since) > STUCK || waited(begin) > LEDGER_LIMIT {
                return Ok(false);
            }
            nap.sleep();
        }
    }

    /// Gives the ledger's lock back.
    pub fn unlock_ledger(&self) {
        let _ = fcntl(&self.ledger, FcntlArg::F_SETLK(&whole_file(libc::F_UNLCK)));
    }

    /// The bytes of the ledger.
    ///
    /// # Errors
    /// It cannot be read, or is absurdly long.
    pub fn read(&self) -> Result<Vec<u8>, Failure> {
        read_all(&self.ledger)
    }

    /// Makes a change under the ledger's lock. Dead lines go first, which needs no room; when the new lines then find
    /// none, the file is as long as before.
    ///
    /// # Errors
    /// The kernel's, as of a full file system.
    pub fn apply(&mut self, change: &Change) -> Result<(), Failure> {
        let failed = |error: std::io::Error| {
            Failure::new(format!("write {LEDGER}: {}: nothing was made", reason(&error))).status(status::SYSTEM)
        };
        if let Some((at, bytes, length)) = &change.rewrite {
            self.ledger.write_all_at(bytes, *at).and_then(|()| self.ledger.set_len(*length)).map_err(failed)?;
        }
        if let Some((at, bytes)) = &change.append {
            self.ledger.write_all_at(bytes, *at).map_err(|error| {
                let _ = self.ledger.set_len(*at);
                failed(error)
            })?;
            self.end = at.checked_add(bytes.len() as u64);
        }
        Ok(())
    }

    /// Whether the line that was added last is still where it was, and the ledger is not locked. When its link is there
    /// by now, the line stays: who locks the ledger from here on finds the link.
    #[must_use]
    pub fn keeps(&self, line: &[u8]) -> bool {
        let whole = [b"\n", line].concat();
        let mut there = vec![0; whole.len()];
        let begin = self.end.and_then(|end| end.checked_sub(line.len() as u64));
        let (skip, at) = match begin {
            None => return false,
            Some(0) => (1, 0),
            Some(begin) => (0, begin.saturating_sub(1)),
        };
        let (Some(whole), Some(there)) = (whole.get(skip..), there.get_mut(skip..)) else { return false };
        // In this order.
        holder_of(&self.ledger).is_none()
            && self.is_current()
            && read_at(&self.ledger, there, at).is_ok_and(|read| read == whole.len())
            && there == whole
    }

    /// Whether what is open is still the ledger.
    fn is_current(&self) -> bool {
        match (fstat(&self.ledger), stat(LEDGER)) {
            (Ok(ours), Ok(there)) => ours.st_dev == there.st_dev && ours.st_ino == there.st_ino,
            _ => false,
        }
    }

    /// Writes the caller's claim, in one write; `None` empties it.
    ///
    /// # Errors
    /// The kernel's, as of a full file system.
    pub fn claim(&self, entry: Option<(&Entry<'_>, &[u8], Mac)>) -> Result<(), Failure> {
        let mut bytes = entry.map_or_else(Vec::new, |(entry, addr, mac)| {
            let mut line = entry.line();
            line.pop();
            let mac = u64::from_be_bytes(eight(mac));
            [line.as_slice(), b" ", addr, format!(" {mac:012x}\n").as_bytes()].concat()
        });
        bytes.resize(CLAIM, b'\n');
        self.own.write_all_at(&bytes, 0).map_err(|error| {
            let text = format!("write {CLAIMS}/{}: {}: nothing was made", self.own_name, reason(&error));
            Failure::new(text).status(status::SYSTEM)
        })
    }

    /// What the caller's last call has claimed, when no call of his is under way: his lock is held.
    #[must_use]
    pub fn own_claim(&self) -> Option<Claim> {
        read_claim(&self.own, false)
    }

    /// The claims of all users; the caller's own, which he has left behind when he holds his lock, as a dead one.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn claims(&self, _root: &FullRoot) -> Result<Vec<Claim>, Failure> {
        let names = std::fs::read_dir(CLAIMS)
            .map_err(|error| Failure::new(format!("read {CLAIMS}: {}", reason(&error))).status(status::SYSTEM))?;
        let mut claims: Vec<Claim> = read_claim(&self.own, false).into_iter().collect();
        for entry in names.flatten().filter(|entry| entry.file_name() != self.own_name.as_str()) {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            if let Ok(file) = openat(&self.claims, entry.file_name().as_os_str(), flags, Mode::empty()) {
                let file = File::from(file);
                // Locked first: a claim that is read while its file is locked is one that may still be carried out.
                let alive = holder_of(&file).is_some();
                claims.extend(read_claim(&file, alive));
            }
        }
        Ok(claims)
    }
}

/// The bytes of the ledger, without its lock, for who changes nothing; empty when there is none.
///
/// # Errors
/// It cannot be opened or read.
pub fn peek(_root: &FullRoot) -> Result<Vec<u8>, Failure> {
    match open(LEDGER, FLAGS, MODE) {
        Ok(file) => read_all(&File::from(file)),
        Err(Errno::ENOENT) => Ok(Vec::new()),
        Err(error) => Err(failed("open", LEDGER, error)),
    }
}

const FLAGS: OFlag =
    OFlag::O_RDWR.union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK).union(OFlag::O_CLOEXEC).union(OFlag::O_NOCTTY);
const MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

fn open_ledger() -> Result<File, Failure> {
    let file = open(LEDGER, FLAGS | OFlag::O_CREAT, MODE).map_err(|error| failed("open", LEDGER, error))?;
    let meta = fstat(&file).map_err(|error| failed("fstat", LEDGER, error))?;
    let regular = SFlag::from_bits_truncate(meta.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
    if !regular || meta.st_uid != 0 || meta.st_mode & 0o022 != 0 {
        let why = format!("{LEDGER} is not believed: not a regular file of root that only root can write: remove it");
        return Err(Failure::new(why).status(status::CONFIG));
    }
    Ok(File::from(file))
}

/// Opens a directory of root's, or makes it. The umask is 022, and root's group is the one for new files.
fn directory(path: &str, mode: u32) -> Result<OwnedFd, Failure> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = match open(path, flags, Mode::empty()) {
        Err(Errno::ENOENT) => match mkdirat(nix::fcntl::AT_FDCWD, path, Mode::from_bits_truncate(mode)) {
            Ok(()) | Err(Errno::EEXIST) => open(path, flags, Mode::empty()),
            Err(error) => return Err(failed("make directory", path, error)),
        },
        other => other,
    };
    let descriptor = opened.map_err(|error| failed("open", path, error))?;
    let meta = fstat(&descriptor).map_err(|error| failed("fstat", path, error))?;
    if meta.st_uid != 0 || meta.st_mode & 0o022 != 0 {
        let why =
            format!("{path} is not believed: others than root can write it (chown root {path}; chmod go-w {path})");
        return Err(Failure::new(why).status(status::CONFIG));
    }
    Ok(descriptor)
}

fn read_all(file: &File) -> Result<Vec<u8>, Failure> {
    let broken = |why: String| Failure::new(format!("read {LEDGER}: {why}")).status(status::SYSTEM);
    let length = file.metadata().map_err(|error| broken(reason(&error)))?.len();
    if length > MAX_LEDGER {
        return Err(broken(format!("{length} bytes are too many: is it a ledger?")));
    }
    let mut content = vec![0; usize::try_from(length).unwrap_or(0)];
    let read = read_at(file, &mut content, 0).map_err(|error| broken(reason(&error)))?;
    content.truncate(read);
    Ok(content)
}

fn read_at(file: &File, buffer: &mut [u8], at: u64) -> std::io::Result<usize> {
    let mut filled = 0_usize;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(read) => filled = filled.saturating_add(read),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn read_claim(file: &File, alive: bool) -> Option<Claim> {
    let mut bytes = [0; CLAIM];
    let read = read_at(file, &mut bytes, 0).ok()?;
    let line = bytes.get(..read)?.split(|b| *b == b'\n').next()?;
    let mut fields = line.split(|b| *b == b' ');
    let pot = fields.next().filter(|pot| !pot.is_empty())?.to_vec();
    let (_, bridge, nic) = (fields.next()?, fields.next()?.to_vec(), fields.next()?.to_vec());
    let addr = fields.next().unwrap_or_default().to_vec();
    let mac = fields.next().filter(|digits| digits.len() == 12 && digits.iter().all(u8::is_ascii_hexdigit));
    let mac = mac.and_then(|digits| u64::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok());
    let mac = mac.map(u64::to_be_bytes).map(|[_, _, a, b, c, d, e, f]| [a, b, c, d, e, f]);
    Some(Claim { alive, pot, bridge, nic, addr, mac })
}

/// A hardware address as the low bytes of a number, most significant first.
const fn eight(mac: Mac) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac;
    [0, 0, a, b, c, d, e, f]
}

fn whole_file(kind: libc::c_int) -> libc::flock {
    let kind = libc::c_short::try_from(kind).unwrap_or(0);
    libc::flock { l_type: kind, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 }
}

fn try_lock(file: &File) -> Result<bool, Errno> {
    match fcntl(file, FcntlArg::F_SETLK(&whole_file(libc::F_WRLCK))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The process that has locked the file, as far as it can be seen from here; `None`: it is not locked.
fn holder_of(file: &File) -> Option<i32> {
    let mut lock = whole_file(libc::F_WRLCK);
    match fcntl(file.as_fd(), FcntlArg::F_GETLK(&mut lock)) {
        Ok(_) if i32::from(lock.l_type) == libc::F_UNLCK => None,
        Ok(_) => Some(lock.l_pid),
        Err(_) => Some(file.as_raw_fd().saturating_neg()),
    }
}

/// Naps that grow from 50 microseconds to 4 milliseconds.
#[derive(Debug, Default)]
struct Nap(u32);

impl Nap {
    fn sleep(&mut self) {
        let micros = 50_u64.checked_shl(self.0).unwrap_or(4000).min(4000);
        std::thread::sleep(Duration::from_micros(micros));
        self.0 = self.0.saturating_add(1).min(7);
    }
}

fn failed(operation: &str, path: &str, error: Errno) -> Failure {
    Failure::new(format!("{operation} {path}: {}", error.desc())).status(status::SYSTEM)
}

/// The host ends in the ledger that are charged to one of the pots on a bridge.
#[must_use]
pub fn charged<'a>(content: &'a [u8], bridge: &[u8], pots: &BTreeSet<&[u8]>) -> Vec<(Range<usize>, Entry<'a>)> {
    // Of a long ledger most lines are other users'.
    let may_be =
        |line: &[u8]| matches!(line.first(), Some(b' ' | b'\t')) || pots.iter().any(|pot| line.starts_with(pot));
    lines(content)
        .filter(|(_, line)| may_be(line))
        .filter_map(|(range, line)| Some((range, parse(line)?)))
        .filter(|(_, entry)| entry.kind == b"veth" && entry.bridge == bridge && pots.contains(entry.pot))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The file after the writes; with `killed` after the first of them and before the file is cut.
    fn written(content: &[u8], change: &Change, killed: bool) -> Vec<u8> {
        let mut file = content.to_vec();
        let put = |file: &mut Vec<u8>, at: u64, bytes: &[u8]| {
            let at = at as usize;
            assert!(at <= file.len(), "no hole");
            file.resize(file.len().max(at + bytes.len()), b'X');
            file[at..at + bytes.len()].copy_from_slice(bytes);
        };
        if let Some((at, bytes, length)) = &change.rewrite {
            put(&mut file, *at, bytes);
            assert_eq!(file.len(), content.len(), "a rewrite needs no room");
            if killed {
                return file;
            }
            file.truncate(*length as usize);
        }
        if let Some((at, bytes)) = &change.append {
            assert_eq!(*at as usize, file.len());
            put(&mut file, *at, bytes);
        }
        file
    }

    #[test]
    fn dead_lines_go_and_the_rest_stays_in_order() {
        let content = b"a veth b v1\n# x\na veth b v2\nbroken\na veth b v3\n\n\n";
        let dead: Vec<_> =
            entries(content).filter(|(_, e)| e.is_some_and(|e| e.nic != b"v2")).map(|(r, _)| r).collect();
        let change = change(content, &dead, &[b"a veth b v4\n".to_vec()]);
        assert_eq!(written(content, &change, false), b"# x\na veth b v2\nbroken\na veth b v4\n");
        let killed = written(content, &change, true);
        assert!(killed.starts_with(b"# x\na veth b v2\nbroken\n\n"));
        assert!(entries(&killed).filter_map(|(_, e)| e).all(|e| e.nic == b"v2"));
    }

    #[test]
    fn a_line_without_newline_is_ended() {
        assert_eq!(written(b"x", &change(b"x", &[], &[b"l\n".to_vec()]), false), b"x\nl\n");
        assert_eq!(written(b"", &change(b"", &[], &[b"l\n".to_vec()]), false), b"l\n");
        assert_eq!(change(b"x\n", &[], &[]), Change::default());
    }

    #[test]
    fn four_fields_make_an_entry() {
        for line in ["a veth b", "a veth b v x", "#a veth b v", ""] {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
        assert_eq!(parse(b"a\tveth  b v").unwrap().nic, b"v");
    }

    proptest! {
        #[test]
        fn a_change_keeps_the_living_byte_for_byte(
            lines in proptest::collection::vec(("[a-d#]{1,3} veth b(r| [a-d]{1,2})", any::<bool>()), 0..12),
            open_end: bool, added in proptest::collection::vec("[a-d]{1,4}", 0..3), padding in 0..4_usize,
        ) {
            let mut content: String = lines.iter().map(|(line, _)| format!("{line}\n")).collect();
            if open_end { content.pop(); } else if !content.is_empty() { content.push_str(&"\n".repeat(padding)); }
            let dead: Vec<_> = entries(content.as_bytes()).zip(&lines)
                .filter(|(_, (_, dies))| *dies).map(|((range, _), _)| range).collect();
            let added: Vec<_> = added.iter().map(|line| format!("{line}\n").into_bytes()).collect();
            let change = change(content.as_bytes(), &dead, &added);
            let living: String = lines.iter().filter(|(_, dies)| !dies).map(|(line, _)| format!("{line}\n")).collect();
            let mut expected = living.clone().into_bytes();
            let open_last = open_end && change.rewrite.is_none() && lines.last().is_some_and(|(_, dies)| !dies) && added.is_empty();
            if open_last { expected.pop(); }
            expected.extend(added.concat());
            prop_assert_eq!(
                String::from_utf8(written(content.as_bytes(), &change, false)).unwrap(),
                String::from_utf8(expected).unwrap()
            );
            let killed = written(content.as_bytes(), &change, true);
            if change.rewrite.is_some() {
                prop_assert_eq!(String::from_utf8(killed).unwrap().trim_end().to_owned(), living.trim_end().to_owned());
            }
        }

        #[test]
        fn no_content_panics(content in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b' '), any::<u8>()], 0..80)) {
            let all: Vec<_> = entries(&content).map(|(range, _)| range).collect();
            prop_assert_eq!(all.last().map_or(0, |range| range.end), content.len());
            let _ = change(&content, &all, &[]);
            let _ = change(&content, &[], &[b"x\n".to_vec()]);
        }
    }
}
