//! getsubids: lists the subordinate ids of a user, as shadow's program of that name does.

#![forbid(unsafe_code)]

use helper::caller::{ask_getent, plain_number, subid_source, uid_of_name};
use helper::range::IdKind;
use helper::report::{Failure, Program, print};
use helper::subid::{Line, Owner, parse_line};
use helper::trusted::{Distrust, Trusted};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;

static GETSUBIDS: Program = Program { name: c"getsubids", panic_status: 1 };

const USAGE: &str = "usage: getsubids [-g] USER; see getsubids --help";

const HELP: &str = "\
usage: getsubids [-g] USER

Lists the subordinate uids of USER, a name or a uid: one line for each entry of /etc/subuid that grants something,
with its index, the user as given, the first id and the number of ids.

-g         gids, from /etc/subgid (USER is a user there too)
--help     this text
--version  name and version

example:
  getsubids alice         0: alice 100000 65536

Exit status: 0 listed, 1 nothing is granted or anything else. Manual: getsubids(1).
";

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    GETSUBIDS.finish(match words.as_slice() {
        [b"--help"] => print(HELP),
        [b"--version"] => print(concat!("getsubids (userns-helpers) ", env!("CARGO_PKG_VERSION"), "\n")),
        [b"-g", user] => list(IdKind::Gid, user),
        [user] if !user.starts_with(b"-") => list(IdKind::Uid, user),
        _ => Err(Failure::new(USAGE)),
    })
}

/// Clients, rootlesskit for one, look for these words.
fn cannot_fetch(why: &str) -> Failure {
    Failure::new(format!("Error fetching ranges: {why}"))
}

fn list(kind: IdKind, user: &[u8]) -> Result<(), Failure> {
    let path = kind.subid_path();
    subid_source().map_err(|why| cannot_fetch(&why))?;
    let mut file = match Trusted::open(path) {
        Ok(file) => file,
        Err(Distrust::Missing) => return Err(cannot_fetch(&format!("{path} does not exist"))),
        Err(Distrust::Refused(why)) => return Err(cannot_fetch(&why)),
    };
    let owner = owner(user)?;
    let shown = String::from_utf8_lossy(user);
    let (mut text, mut index) = (String::new(), 0_u64);
    file.each_line(|_, line| {
        if let Line::Grant(ids) = parse_line(line, &owner) {
            let _ = writeln!(text, "{index}: {shown} {} {}", ids.start(), ids.count());
            index = index.saturating_add(1);
        }
        ControlFlow::Continue(())
    })
    .map_err(|why| cannot_fetch(&format!("read {path}: {why}")))?;
    if text.is_empty() {
        return Err(cannot_fetch(&format!("{path} grants {shown} nothing")));
    }
    print(&text)
}

/// A name stands for itself and for its uid, a uid for itself alone: that is what the original lists, and a client
/// that asks for both does not get an entry by name twice.
fn owner(user: &[u8]) -> Result<Owner, Failure> {
    if let Some(uid) = plain_number(user) {
        return Ok(Owner::new(uid, &[]));
    }
    let uid = uid_of_name(user).map_err(|failure| cannot_fetch(&failure.text))?;
    let uid = match uid {
        Some(uid) => Some(uid),
        None => ask_getent(&String::from_utf8_lossy(user), false)
            .map_err(|failure| cannot_fetch(&failure.text))?
            .map(|(_, uid, _)| uid),
    };
    Ok(uid.map_or_else(|| Owner::unknown(user), |uid| Owner::new(uid, &[user.to_vec()])))
}
