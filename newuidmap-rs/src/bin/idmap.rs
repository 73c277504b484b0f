//! idmap: plans the id map of a user's subordinate ids, and has newuidmap and newgidmap write it. No privilege.

#![forbid(unsafe_code)]

use helper::allotment::{AllotmentError, Owner, none_granted, plan, ranges};
use helper::handoff::{EXIT_PASSED_ON, HandoffError, MAX_LINE, Record, start_time};
use helper::range::{Extent, IdKind};
use helper::report::{Failure, Program, print, reason};
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

static IDMAP: Program = Program { name: c"idmap", panic_status: 70 };

const USAGE: u8 = 64;
const DATA: u8 = 65;
const NO_USER: u8 = 67;
const SYSTEM: u8 = 71;
const NOT_PERMITTED: u8 = 77;

const HELP: &str = "\
usage: idmap plan [--map MAP]... [--json] [USER]
       idmap write [--map MAP]... PID
       idmap [--map MAP]...                    as a stage: spawn hold ... | idmap | ... | spawn go

Plans the id map of a user namespace from the subordinate ids in /etc/subuid and /etc/subgid, and has newuidmap and
newgidmap, found in PATH, write it.

plan         print the map of USER (default: you), one range a line: uid|gid INSIDE OUTSIDE COUNT
write PID    write it for a process of yours that has made a user namespace
(none)       read a handoff record, write the map of its process, tell its holder, pass the record on

--map auto   all your subordinate ids, neighbours merged, as 0, 1, 2... (default)
--map self   your own id alone, as 0; needs no subordinate id
--map u:INSIDE:OUTSIDE:COUNT
             this range of uids (g: gids, b: both), as in lxc.idmap; may be repeated
--json       plan as one JSON object
--help       this text
--version    name and version

examples:
  idmap plan                            uid 0 100000 65536
                                        gid 0 100000 65536
  unshare -U sleep 60 & idmap write $!
  spawn hold host -- id | idmap --map self | spawn go

Exit status: 0 done, 64 usage, 65 bad record, 67 no such user, 71 a system call failed, 75 an earlier stage had
failed, 77 not permitted, else that of newuidmap or newgidmap. Manual: idmap(1), userns-handoff(7).
";

/// Which map is wanted.
#[derive(Clone, Debug, Default)]
enum Wanted {
    #[default]
    Auto,
    Own,
    Given(Vec<Extent>, Vec<Extent>),
}

struct Maps {
    uids: Vec<Extent>,
    gids: Vec<Extent>,
}

impl Maps {
    fn of(&self, kind: IdKind) -> &[Extent] {
        match kind {
            IdKind::Uid => &self.uids,
            IdKind::Gid => &self.gids,
        }
    }
}

fn main() -> ExitCode {
    let words: Option<Vec<String>> = std::env::args_os().skip(1).map(|w| OsString::into_string(w).ok()).collect();
    IDMAP.finish(words.ok_or_else(|| usage("a word is not UTF-8")).and_then(|words| run(&words)))
}

fn run(words: &[String]) -> Result<(), Failure> {
    let (mut wanted, mut json, mut plain) = (Wanted::Auto, false, Vec::new());
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "--help" => return print(HELP),
            "--version" => return print(concat!("idmap (userns-helpers) ", env!("CARGO_PKG_VERSION"), "\n")),
            "--json" => json = true,
            "--map" => wanted = add_map(wanted, words.next().ok_or_else(|| usage("--map needs a map"))?)?,
            _ if word.starts_with("--map=") => wanted = add_map(wanted, word.trim_start_matches("--map="))?,
            _ if word.starts_with('-') => return Err(usage(&format!("unknown option {word}"))),
            _ => plain.push(word),
        }
    }
    match plain.as_slice() {
        ["plan"] => print_plan(&me()?, &wanted, json),
        ["plan", user] => print_plan(&Owner::of_word(user).map_err(|e| failure(NO_USER, e.0))?, &wanted, json),
        ["write", pid] if !json => {
            let pid = pid.parse().ok().filter(|pid| *pid > 0).ok_or_else(|| usage("write needs a process id"))?;
            write(pid, &maps(&me()?, &wanted)?)
        }
        [] if !json => stage(&wanted),
        _ => Err(usage("plan, write PID, or nothing for a stage")),
    }
}

fn me() -> Result<Owner, Failure> {
    Owner::of_uid(nix::unistd::getuid().as_raw()).map_err(|e| failure(SYSTEM, e.0))
}

/// One `--map` more. `u:0:100000:65536` is LXC's form: kind, inside, outside, count.
fn add_map(wanted: Wanted, text: &str) -> Result<Wanted, Failure> {
    let bad = || usage(&format!("--map {text}: not auto, self, or u|g|b:INSIDE:OUTSIDE:COUNT"));
    let (mut uids, mut gids) = match (text, wanted) {
        ("auto", Wanted::Auto) => return Ok(Wanted::Auto),
        ("self", Wanted::Auto | Wanted::Own) => return Ok(Wanted::Own),
        (_, Wanted::Given(uids, gids)) => (uids, gids),
        (_, Wanted::Auto) => (Vec::new(), Vec::new()),
        (_, Wanted::Own) => return Err(usage("--map self stands alone")),
    };
    let mut fields = text.split(':');
    let kind = fields.next().ok_or_else(bad)?;
    let mut number = || fields.next()?.parse::<u32>().ok();
    let (Some(inside), Some(outside), Some(count)) = (number(), number(), number()) else { return Err(bad()) };
    let extent = Extent { inside, outside, count };
    if fields.next().is_some() || extent.inside().is_none() || extent.outside().is_none() {
        return Err(bad());
    }
    if matches!(kind, "u" | "b") {
        uids.push(extent);
    }
    if matches!(kind, "g" | "b") {
        gids.push(extent);
    }
    if matches!(kind, "u" | "g" | "b") { Ok(Wanted::Given(uids, gids)) } else { Err(bad()) }
}

fn maps(owner: &Owner, wanted: &Wanted) -> Result<Maps, Failure> {
    match wanted {
        Wanted::Auto => Ok(Maps { uids: whole(IdKind::Uid, owner)?, gids: whole(IdKind::Gid, owner)? }),
        Wanted::Own => {
            let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
            let own = |outside| vec![Extent { inside: 0, outside, count: 1 }];
            Ok(Maps { uids: own(uid), gids: own(gid) })
        }
        Wanted::Given(uids, gids) if uids.is_empty() || gids.is_empty() => {
            let missing = if uids.is_empty() { "u" } else { "g" };
            Err(usage(&format!("a map needs uids and gids: add --map {missing}:INSIDE:OUTSIDE:COUNT (b: is both)")))
        }
        Wanted::Given(uids, gids) => Ok(Maps { uids: uids.clone(), gids: gids.clone() }),
    }
}

fn whole(kind: IdKind, owner: &Owner) -> Result<Vec<Extent>, Failure> {
    let ranges = ranges(kind, owner).map_err(|AllotmentError(why)| failure(NOT_PERMITTED, why))?;
    if ranges.is_empty() {
        return Err(failure(NOT_PERMITTED, none_granted(kind, owner)));
    }
    Ok(plan(&ranges))
}

fn print_plan(owner: &Owner, wanted: &Wanted, json: bool) -> Result<(), Failure> {
    let maps = maps(owner, wanted)?;
    let list = |kind: IdKind| -> Vec<String> {
        let line = |e: &Extent| match json {
            true => format!("{{\"inside\":{},\"outside\":{},\"count\":{}}}", e.inside, e.outside, e.count),
            false => format!("{} {e}\n", kind.word()),
        };
        maps.of(kind).iter().map(line).collect()
    };
    let (uids, gids) = (list(IdKind::Uid), list(IdKind::Gid));
    if json {
        print(&format!("{{\"uids\":[{}],\"gids\":[{}]}}\n", uids.join(","), gids.join(",")))
    } else {
        print(&(uids.concat() + &gids.concat()))
    }
}

/// Runs newuidmap and newgidmap at once, and waits for both. Their own messages are on standard error already.
fn write(pid: i32, maps: &Maps) -> Result<(), Failure> {
    let start = |kind: IdKind| -> Result<Child, Failure> {
        let name = kind.map_program();
        let path = program(name).ok_or_else(|| {
            failure(
                69,
                format!(
                    "{name} not found in PATH: install userns-helpers or your distribution's uidmap (shadow-utils)"
                ),
            )
        })?;
        let numbers = maps.of(kind).iter().flat_map(|e| [e.inside, e.outside, e.count]).map(|n| n.to_string());
        let mut command = Command::new(&path);
        command.arg(pid.to_string()).args(numbers).env_clear().stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().map_err(|e| failure(SYSTEM, format!("cannot run {}: {}", path.display(), reason(&e))))
    };
    let mut children = [(IdKind::Uid, start(IdKind::Uid)?), (IdKind::Gid, start(IdKind::Gid)?)];
    let mut result = Ok(());
    for (kind, child) in &mut children {
        let name = kind.map_program();
        let status = child.wait().map_err(|e| failure(SYSTEM, format!("wait for {name}: {}", reason(&e))))?;
        if !status.success() && result.is_ok() {
            let status = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(SYSTEM);
            result = Err(failure(status, format!("{name} has not written the {} of process {pid}", kind.map_file())));
        }
    }
    result
}

/// The first file of this name in PATH that may be executed, as an absolute path; then one beside this program, which is
/// where a package keeps the suite's own, and the system's.
fn program(name: &str) -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "this program has no privilege, and finding the helpers is its job")]
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let runnable = |file: &PathBuf| std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.mode() & 0o111 != 0);
    let own = std::env::current_exe().ok().and_then(|own| own.parent().map(PathBuf::from));
    let places = std::env::split_paths(&path).filter(|dir| dir.is_absolute());
    places.chain(own).chain([PathBuf::from("/usr/bin")]).map(|dir| dir.join(name)).find(runnable)
}

/// A stage of a container start; userns-handoff(7) is the contract.
fn stage(wanted: &Wanted) -> Result<(), Failure> {
    let mut record =
        Record::read_from(&mut std::io::stdin()).map_err(|e: HandoffError| failure(DATA, e.to_string()))?;
    if record.failed().is_some() {
        print(&format!("{record}\n"))?;
        return Err(failure(EXIT_PASSED_ON, String::new()));
    }
    let result = work(&mut record, wanted).map_err(|failed| {
        // Before the record is passed on: the stages after it then speak after this line.
        IDMAP.say(&failed.text);
        failure(failed.status, String::new())
    });
    if let Err(failed) = &result {
        let word = format!("idmap:{}", failed.status);
        if record.set("failed", &word).is_err() {
            record = Record::new(record.pid(), record.start());
            let _ = record.set("failed", &word);
        }
    }
    let passed_on = print(&format!("{record}\n")).map_err(|failure| failure.status(SYSTEM));
    result.and(passed_on)
}

fn work(record: &mut Record, wanted: &Wanted) -> Result<(), Failure> {
    let maps = maps(&me()?, wanted)?;
    same_process(record)?;
    write(record.pid(), &maps)?;
    // The tools were given a number: if it has changed hands meanwhile, they have refused or mapped a process of this
    // same user, and the container must not go on either way.
    same_process(record)?;
    if let Some(control) = record.get("control") {
        tell_holder(control)?;
    }
    for (key, kind) in [("uids", IdKind::Uid), ("gids", IdKind::Gid)] {
        let words: Vec<String> =
            maps.of(kind).iter().map(|e| format!("{}:{}:{}", e.inside, e.outside, e.count)).collect();
        record.set(key, &words.join(",")).map_err(|e| failure(DATA, e.to_string()))?;
    }
    Ok(())
}

fn same_process(record: &Record) -> Result<(), Failure> {
    let path = format!("/proc/{}/stat", record.pid());
    let gone = || failure(DATA, format!("the held process {} is gone", record.pid()));
    let stat = std::fs::read(path).map_err(|_| gone())?;
    if start_time(&stat) == Some(record.start()) { Ok(()) } else { Err(gone()) }
}

/// Says that the map is written, and waits until the holder has made the network namespace after it.
fn tell_holder(control: &str) -> Result<(), Failure> {
    const LIMIT: Duration = Duration::from_secs(10);
    let failed = |what: &str, error: &std::io::Error| {
        failure(SYSTEM, format!("{what} the holder's socket {control}: {}", reason(error)))
    };
    let mut holder = UnixStream::connect(control).map_err(|e| failed("connect to", &e))?;
    holder
        .set_read_timeout(Some(LIMIT))
        .and_then(|()| holder.set_write_timeout(Some(LIMIT)))
        .map_err(|e| failed("set a time limit on", &e))?;
    holder.write_all(b"mapped\n").map_err(|e| failed("write to", &e))?;
    let mut answer = String::new();
    BufReader::new(holder).take(MAX_LINE as u64).read_line(&mut answer).map_err(|e| failed("read from", &e))?;
    match answer.trim_end().split_once(' ').unwrap_or((answer.trim_end(), "")) {
        ("net", _) => Ok(()),
        ("failed", why) => Err(failure(SYSTEM, format!("the holder could not go on after the map: {why}"))),
        ("", _) => Err(failure(SYSTEM, format!("the holder at {control} has ended"))),
        _ => Err(failure(DATA, format!("the holder at {control} answered \"{}\", not net", answer.trim_end()))),
    }
}

fn usage(line: &str) -> Failure {
    failure(USAGE, format!("{line}; see idmap --help"))
}

fn failure(status: u8, text: impl Into<String>) -> Failure {
    Failure::new(text).status(status)
}
