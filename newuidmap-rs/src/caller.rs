//! Who called: the real ids, and the names that /etc/passwd gives to the real uid. No NSS module is ever loaded.

#![forbid(unsafe_code)]

use crate::report::{Failure, reason};
use crate::sys;
use crate::trusted::{Distrust, Trusted};
use core::ops::ControlFlow;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PASSWD: &str = "/etc/passwd";

/// Names of one uid that are taken into account.
const MAX_NAMES: usize = 16;

/// Longest time that `getent` may take.
const GETENT_LIMIT: Duration = Duration::from_secs(10);

/// Where getent(1) is.
const GETENT: &str = "/usr/bin/getent";

/// Most bytes that `getent` may answer.
const GETENT_BYTES: u64 = 4096;

/// What passwd(5) says about a uid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Every name whose first line has the uid, in file order. Empty: the uid has no entry.
    pub names: Vec<Vec<u8>>,
    /// The gid in the first line with the uid.
    pub gid: Option<u32>,
}

impl Account {
    /// The first name, or the uid in digits, for messages.
    #[must_use]
    pub fn shown(&self, uid: u32) -> String {
        self.names.first().map_or_else(|| uid.to_string(), |name| String::from_utf8_lossy(name).into_owned())
    }
}

/// The user who called the program. Made once, at entry; nobody asks the kernel again.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Real uid.
    pub uid: u32,
    /// Real gid.
    pub gid: u32,
    /// The entries of /etc/passwd.
    pub account: Account,
    /// Whether no_new_privs was set before this program set it: then its privilege was void from the start.
    pub had_no_new_privs: bool,
}

impl Caller {
    /// The first name, or the uid in digits.
    #[must_use]
    pub fn shown(&self) -> String {
        self.account.shown(self.uid)
    }
}

/// One line of passwd(5): name, uid and gid. `None` for a line without three such fields, and for NIS lines.
#[must_use]
pub fn parse_passwd(line: &[u8]) -> Option<(&[u8], u32, u32)> {
    let mut fields = line.split(|b| *b == b':');
    let name = fields.next().filter(|name| !name.is_empty() && !matches!(name.first(), Some(b'+' | b'-' | b'#')))?;
    let mut fields = fields.skip(1);
    Some((name, plain_number(fields.next()?)?, plain_number(fields.next()?)?))
}

/// Digits and nothing else, as a number that is an id.
#[must_use]
pub fn plain_number(field: &[u8]) -> Option<u32> {
    if field.is_empty() || !field.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(field).ok()?.parse().ok().filter(|id| *id != u32::MAX)
}

/// Looks a uid up in /etc/passwd. The first line of a name decides: a second line that gives the name another uid,
/// or the uid another name that has an earlier line, does not count.
///
/// # Errors
/// The file cannot be read or must not be believed. A missing file, and a uid without entry, are no errors.
pub fn look_up(uid: u32) -> Result<Account, Failure> {
    let mut passwd = match Trusted::open(PASSWD) {
        Ok(file) => file,
        Err(Distrust::Missing) => return Ok(Account::default()),
        Err(Distrust::Refused(why)) => return Err(nameless(&why)),
    };
    let mut found: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut gid = None;
    let each = |number: u64, line: &[u8]| {
        if let Some((name, _, its_gid)) = parse_passwd(line).filter(|(_, its_uid, _)| *its_uid == uid)
            && found.len() < MAX_NAMES
        {
            gid.get_or_insert(its_gid);
            found.push((number, name.to_vec()));
        }
        ControlFlow::Continue(())
    };
    passwd.each_line(each).map_err(|why| nameless(&format!("read {PASSWD}: {why}")))?;
    if let Some((last, _)) = found.last().cloned() {
        let each = |number: u64, line: &[u8]| {
            found.retain(|(at, candidate)| *at <= number || !is_line_of(line, candidate));
            if number < last { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        passwd.each_line(each).map_err(|why| nameless(&format!("read {PASSWD}: {why}")))?;
        if passwd.has_passed_over() {
            return Err(nameless(&format!("{PASSWD} has a line of 32 KiB or more, which may hide another user")));
        }
    }
    Ok(Account { names: found.into_iter().map(|(_, name)| name).collect(), gid })
}

fn nameless(why: &str) -> Failure {
    Failure::new(format!("Cannot determine your user name. {why}"))
}

/// Whether the C library may take this line as the one of user `name`: more is taken for such a line here than
/// [`parse_passwd`] reads, because it can only take a name away. It strips blanks before the name, and reads ids with
/// strtoul(3), which takes blanks and a sign.
fn is_line_of(line: &[u8], name: &[u8]) -> bool {
    let is_number = |field: &[u8]| {
        let digits = field.trim_ascii_start();
        let digits = digits.strip_prefix(b"+").or_else(|| digits.strip_prefix(b"-")).unwrap_or(digits);
        !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
    };
    let mut fields = line.trim_ascii_start().split(|b| *b == b':');
    fields.next() == Some(name) && fields.nth(1).is_some_and(is_number) && fields.next().is_some_and(is_number)
}

/// The uid in the first line of /etc/passwd with this name.
///
/// # Errors
/// As [`look_up`].
pub fn uid_of_name(name: &[u8]) -> Result<Option<u32>, Failure> {
    let mut passwd = match Trusted::open(PASSWD) {
        Ok(file) => file,
        Err(Distrust::Missing) => return Ok(None),
        Err(Distrust::Refused(why)) => return Err(nameless(&why)),
    };
    let mut found = None;
    passwd
        .each_line(|_, line| match parse_passwd(line) {
            Some((its_name, uid, _)) if its_name == name => {
                found = Some(uid);
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        })
        .map_err(|why| nameless(&format!("read {PASSWD}: {why}")))?;
    Ok(found)
}

/// Asks `getent passwd KEY`, which loads whatever nsswitch.conf names into a process of its own, with an empty
/// environment and a time limit. As root (`as_root`) its ids are all root's and its limits its own, so that the caller
/// can neither trace it and forge the answer nor keep it from answering; it ends with this program.
/// `None`: there is no such entry, or no getent on this host.
///
/// # Errors
/// getent failed or did not answer in time: whether there is an entry is not known.
pub fn ask_getent(key: &str, as_root: bool) -> Result<Option<(Vec<u8>, u32, u32)>, Failure> {
    const NOT_FOUND: i32 = 2;
    let failed = |what: &str| nameless(&format!("{GETENT} passwd {key}: {what}"));
    if as_root {
        raise_limits();
    }
    let mut command = Command::new(GETENT);
    command.args(["passwd", key]).env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    if as_root {
        command.uid(0).gid(0);
    }
    sys::end_with_parent(&mut command);
    let mut child = match command.spawn() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| failed(&reason(&e)))?,
    };
    let answer = child.stdout.take().and_then(|out| read_in_time(out, Instant::now().checked_add(GETENT_LIMIT)?));
    if answer.is_none() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|e| failed(&reason(&e)))?;
    match (status.code(), answer) {
        (Some(NOT_FOUND), Some(_)) => Ok(None),
        (Some(0), Some(answer)) => {
            let line = answer.split(|b| *b == b'\n').next().unwrap_or_default();
            let (name, uid, gid) = parse_passwd(line).ok_or_else(|| failed("its answer is no line of passwd(5)"))?;
            Ok(Some((name.to_vec(), uid, gid)))
        }
        (_, None) => Err(failed("no answer in time")),
        _ => Err(failed("it failed, so the directory service may be down; try again")),
    }
}

/// Root's limits instead of the caller's, for getent. Where root may not raise them (a container without
/// CAP_SYS_RESOURCE) the caller's stay, and a getent that fails of them refuses the call.
fn raise_limits() {
    use nix::sys::resource::Resource::{RLIMIT_AS, RLIMIT_CPU, RLIMIT_DATA, RLIMIT_NOFILE, RLIMIT_NPROC, RLIMIT_STACK};
    const SECONDS: u64 = 10;
    const MEMORY: u64 = 1 << 32;
    for (limit, value) in [
        (RLIMIT_NOFILE, 1024),
        (RLIMIT_NPROC, 4096),
        (RLIMIT_CPU, SECONDS),
        (RLIMIT_AS, MEMORY),
        (RLIMIT_DATA, MEMORY),
        (RLIMIT_STACK, 8 << 20),
    ] {
        let _ = nix::sys::resource::setrlimit(limit, value, value);
    }
}

fn read_in_time(mut out: std::process::ChildStdout, end: Instant) -> Option<Vec<u8>> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::io::Read;
    use std::os::fd::AsFd;
    let mut answer = Vec::new();
    loop {
        let left = end.checked_duration_since(Instant::now())?;
        let timeout = PollTimeout::try_from(left).ok()?;
        match poll(&mut [PollFd::new(out.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return None,
        }
        let mut piece = [0_u8; 1024];
        match out.read(&mut piece) {
            Ok(0) => return Some(answer),
            Ok(read) => answer.extend_from_slice(piece.get(..read)?),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
        if answer.len() as u64 > GETENT_BYTES {
            return None;
        }
    }
}

/// The value of a key in login.defs(5), `KEY VALUE` a line, quotes allowed; the last one counts.
///
/// # Errors
/// The file is there but cannot be read or must not be believed, in words.
pub fn login_defs(key: &[u8]) -> Result<Option<Vec<u8>>, String> {
    const PATH: &str = "/etc/login.defs";
    let mut file = match Trusted::open(PATH) {
        Ok(file) => file,
        Err(Distrust::Missing) => return Ok(None),
        Err(Distrust::Refused(why)) => return Err(why),
    };
    let mut value = None;
    file.each_line(|_, line| {
        if let Some(found) = login_defs_value(line, key) {
            value = Some(found.to_vec());
        }
        ControlFlow::Continue(())
    })
    .map_err(|why| format!("read {PATH}: {why}"))?;
    Ok(value)
}

/// The value in one line of login.defs(5) when its key is `key`, read as the originals read it: a key ends at a blank,
/// the value begins after blanks and quotes and ends at the next quote. It may be empty.
fn login_defs_value<'a>(line: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let line = line.trim_ascii();
    let rest = line.strip_prefix(key)?;
    if !rest.first().is_none_or(|b| matches!(b, b' ' | b'\t')) {
        return None;
    }
    let between = |b: &u8| matches!(b, b' ' | b'\t' | b'"');
    let value = rest.iter().position(|b| !between(b)).and_then(|at| rest.get(at..)).unwrap_or_default();
    value.split(|b| *b == b'"').next()
}

/// Whether a file, rather than a plug-in, is the authority for subordinate ids: `Err` carries the first word after
/// `subid:` in nsswitch.conf(5) when that is not `files`.
///
/// # Errors
/// See above; also a file that must not be believed, in words.
pub fn subid_source() -> Result<(), String> {
    const PATH: &str = "/etc/nsswitch.conf";
    let mut file = match Trusted::open(PATH) {
        Ok(file) => file,
        Err(Distrust::Missing) => return Ok(()),
        Err(Distrust::Refused(why)) => return Err(why),
    };
    let mut verdict = Ok(());
    file.each_line(|number, line| {
        let Some(word) = subid_word(line).filter(|word| !word.is_empty()) else { return ControlFlow::Continue(()) };
        if word != b"files" {
            verdict = Err(format!(
                "{PATH}:{number} names \"{}\" as the source of subordinate ids, and only \"files\" is supported",
                String::from_utf8_lossy(word)
            ));
        }
        ControlFlow::Break(())
    })
    .map_err(|why| format!("read {PATH}: {why}"))?;
    verdict
}

fn subid_word(line: &[u8]) -> Option<&[u8]> {
    let (key, rest) = line.split_at_checked(6)?;
    if !key.eq_ignore_ascii_case(b"subid:") {
        return None;
    }
    Some(rest.trim_ascii().split(u8::is_ascii_whitespace).next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwd_lines_are_read_and_bad_ones_left_out() {
        assert_eq!(parse_passwd(b"alice:x:1001:1002:A:/home/alice:/bin/sh"), Some((&b"alice"[..], 1001, 1002)));
        for line in [
            "",
            "alice",
            "alice:x:1001",
            "alice:x:-1:1",
            "alice:x:1a:1",
            "alice:x:4294967295:1",
            "+alice:x:1:1",
            ":x:1:1",
        ] {
            assert_eq!(parse_passwd(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn a_line_that_only_the_c_library_reads_takes_the_name_away() {
        for line in ["bob:x:1:2", " bob:x:+1:2", "\tbob:x: 1:-1", "bob:x:99999999999:4294967295:::"] {
            assert!(is_line_of(line.as_bytes(), b"bob"), "{line}");
        }
        for line in ["bob", "bob:x", "bob:x:1", "bob:x:1a:2", "bob:x:1:", "bob:x::2", "bobb:x:1:2", "bo:x:1:2", ""] {
            assert!(!is_line_of(line.as_bytes(), b"bob"), "{line}");
        }
    }

    #[test]
    fn login_defs_values_are_found() {
        let key = b"GRANT_AUX_GROUP_SUBIDS";
        assert_eq!(login_defs_value(b"GRANT_AUX_GROUP_SUBIDS yes", key), Some(&b"yes"[..]));
        assert_eq!(login_defs_value(b"  GRANT_AUX_GROUP_SUBIDS\t \"YES\" # x", key), Some(&b"YES"[..]));
        assert_eq!(login_defs_value(b"GRANT_AUX_GROUP_SUBIDS yes # x", key), Some(&b"yes # x"[..]));
        assert_eq!(login_defs_value(b"GRANT_AUX_GROUP_SUBIDS \"yes x\"", key), Some(&b"yes x"[..]));
        assert_eq!(login_defs_value(b"GRANT_AUX_GROUP_SUBIDS \"\"", key), Some(&b""[..]));
        assert_eq!(login_defs_value(b"GRANT_AUX_GROUP_SUBIDS\"yes\"", key), None);
        assert_eq!(login_defs_value(b"#GRANT_AUX_GROUP_SUBIDS yes", key), None);
        assert_eq!(login_defs_value(b"GRANT_AUX_GROUP_SUBIDSyes", key), None);
        assert_eq!(login_defs_value(b"GRANT_AUX_GROUP_SUBIDS", key), Some(&b""[..]));
    }

    #[test]
    fn the_subid_line_of_nsswitch_is_found() {
        assert_eq!(subid_word(b"SubID: files sss"), Some(&b"files"[..]));
        assert_eq!(subid_word(b"subid:\tsss"), Some(&b"sss"[..]));
        assert_eq!(subid_word(b"subid:"), Some(&b""[..]));
        assert_eq!(subid_word(b" subid: sss"), None);
    }
}
