//! argv becomes a request. No privilege, no kernel.

#![forbid(unsafe_code)]

use crate::config::{Controller, Key, Limit, parse_controllers, parse_limit};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

/// Longest name in bytes.
pub const MAX_NAME: usize = 64;

/// A name that a cgroup of a user may have, see [`Name::new`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// 1 to [`MAX_NAME`] bytes of `A-Za-z0-9_.-`, beginning with none of `.` and `-`; not a file that the kernel makes
    /// in a cgroup, not a unit of systemd (whose tools read the unit out of a cgroup's path), not `cgd-...`.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn new(word: &str) -> Result<Self, String> {
        let bad = |why: &str| {
            Err(format!("\"{}\" is no name for a cgroup: {why}", word.chars().take(80).collect::<String>()))
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        if word.is_empty() || word.len() > MAX_NAME || !word.bytes().all(plain) {
            return bad("1 to 64 of A-Za-z0-9_.- are allowed");
        }
        if word.starts_with(['.', '-']) {
            return bad("it begins with a dot or a dash");
        }
        if word.starts_with("cgd-") {
            return bad("cgd- is for the directories of users");
        }
        let kernel = |prefix: &&str| word.strip_prefix(*prefix).is_some_and(|rest| rest.starts_with('.'));
        if KERNEL_PREFIXES.iter().any(kernel) || KERNEL_FILES.contains(&word) {
            return bad("the kernel's own files begin so");
        }
        if UNIT_SUFFIXES.iter().any(|suffix| word.ends_with(suffix)) {
            return bad("it would look like a unit of systemd");
        }
        Ok(Self(word.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl core::fmt::Display for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Controllers, whose files in a cgroup begin with their names.
const KERNEL_PREFIXES: [&str; 17] = [
    "blkio", "cgroup", "cpu", "cpuacct", "cpuset", "debug", "devices", "dmem", "freezer", "hugetlb", "io", "irq",
    "memory", "misc", "net_cls", "pids", "rdma",
];

/// Files of a v1 cgroup without such a prefix, and two controllers with few files.
const KERNEL_FILES: [&str; 5] =
    ["tasks", "notify_on_release", "release_agent", "net_prio.ifpriomap", "net_prio.prioidx"];

const UNIT_SUFFIXES: [&str; 11] = [
    ".automount",
    ".device",
    ".mount",
    ".path",
    ".scope",
    ".service",
    ".slice",
    ".socket",
    ".swap",
    ".target",
    ".timer",
];

/// What a call asks for beyond the name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Limits of this one cgroup.
    pub limits: Vec<Limit>,
    /// These controllers instead of all that are granted and there.
    pub controllers: Option<Vec<Controller>>,
    /// Owner uid, and gid if it was given, instead of the caller and the first subordinate gid.
    pub owner: Option<(u32, Option<u32>)>,
}

/// A call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Make a cgroup, enter it, become the command.
    Run {
        /// The cgroup.
        name: Name,
        /// The rest.
        ask: Ask,
        /// Enter a cgroup of this name that is in use.
        join: bool,
        /// The command and its arguments, at least one word.
        command: Vec<OsString>,
    },
    /// Make a cgroup and move a process in.
    Attach {
        /// The cgroup.
        name: Name,
        /// The rest.
        ask: Ask,
        /// The process; without one a handoff record is read.
        pid: Option<i32>,
    },
    /// Make a cgroup that stays until it is deleted.
    Create {
        /// The cgroup.
        name: Name,
        /// The rest.
        ask: Ask,
    },
    /// Remove a cgroup.
    Delete {
        /// The cgroup.
        name: Name,
        /// Kill what is in it first.
        kill: bool,
    },
    /// Print the caller's cgroups.
    List {
        /// As JSON.
        json: bool,
    },
    /// Remove stale cgroups: the caller's own or, with paths, LXC's in these directories.
    Prune {
        /// Only say which.
        dry_run: bool,
        /// Directories.
        paths: Vec<OsString>,
    },
    /// Say what would be granted, and by which line.
    Check {
        /// The rest.
        ask: Ask,
    },
    /// `--help`.
    Help,
    /// `--version`.
    Version,
}

/// Reads the words after argv\[0\].
///
/// # Errors
/// What is wrong, in words; the exit status is 64.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Request, String> {
    let mut words = words.into_iter();
    let verb = words.next().ok_or_else(|| "no command".to_owned())?;
    let mut options = Options::default();
    let verb = verb.to_str().unwrap_or("?");
    if matches!(verb, "--help" | "-h" | "help") {
        return Ok(Request::Help);
    }
    if verb == "--version" {
        return Ok(Request::Version);
    }
    let known: &[&str] = match verb {
        "run" => &["--limit", "--memory", "--pids", "--cpus", "--controllers", "--owner", "--join", "--check"],
        "attach" => &["--limit", "--memory", "--pids", "--cpus", "--controllers", "--owner", "--pid", "--check"],
        "create" | "check" => &["--limit", "--memory", "--pids", "--cpus", "--controllers", "--owner", "--check"],
        "delete" => &["--kill"],
        "list" => &["--json"],
        "prune" => &["--dry-run"],
        _ => return Err(format!("\"{}\" is no command", verb.chars().take(40).collect::<String>())),
    };
    options.read(words, known)?;
    options.request(verb)
}

#[derive(Default)]
struct Options {
    ask: Ask,
    pid: Option<i32>,
    join: bool,
    kill: bool,
    json: bool,
    dry_run: bool,
    check: bool,
    help: bool,
    plain: Vec<OsString>,
    command: Option<Vec<OsString>>,
}

impl Options {
    fn read(&mut self, mut words: impl Iterator<Item = OsString>, known: &[&str]) -> Result<(), String> {
        while let Some(word) = words.next() {
            if word == "--" {
                self.command = Some(words.collect());
                return Ok(());
            }
            if !word.as_bytes().starts_with(b"-") || word == "-" {
                self.plain.push(word);
                continue;
            }
            let text = word.to_str().ok_or_else(|| "an option is not UTF-8".to_owned())?;
            let (name, given) =
                text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value.to_owned())));
            if name == "--help" {
                self.help = true;
                continue;
            }
            if !known.contains(&name) {
                return Err(format!("unknown option {}", name.chars().take(40).collect::<String>()));
            }
            let flag = match name {
                "--join" => Some(&mut self.join),
                "--kill" => Some(&mut self.kill),
                "--json" => Some(&mut self.json),
                "--dry-run" => Some(&mut self.dry_run),
                "--check" => Some(&mut self.check),
                _ => None,
            };
            if let Some(flag) = flag {
                if given.is_some() {
                    return Err(format!("{name} takes no value"));
                }
                *flag = true;
                continue;
            }
            let value =
                given.or_else(|| words.next()?.into_string().ok()).ok_or_else(|| format!("{name} needs a value"))?;
            self.value(name, &value).map_err(|why| format!("{name} {value}: {why}"))?;
        }
        Ok(())
    }

    fn value(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "--limit" => self.limit(parse_limit(value)?),
            "--memory" => self.limit(parse_limit(&format!("{}={value}", Key::MemoryMax.word()))?),
            "--pids" => self.limit(parse_limit(&format!("{}={value}", Key::PidsMax.word()))?),
            "--cpus" => self.limit(cpus(value)?),
            "--controllers" => {
                self.ask.controllers = Some(parse_controllers(value)?);
                Ok(())
            }
            "--owner" => {
                let (uid, gid) = value.split_once(':').map_or((value, None), |(uid, gid)| (uid, Some(gid)));
                let id = |word: &str| {
                    helper::caller::plain_number(word.as_bytes()).ok_or_else(|| format!("\"{word}\" is no id"))
                };
                self.ask.owner = Some((id(uid)?, gid.map(id).transpose()?));
                Ok(())
            }
            _ => {
                let pid = helper::caller::plain_number(value.as_bytes()).and_then(|pid| i32::try_from(pid).ok());
                self.pid = Some(pid.filter(|pid| *pid > 0).ok_or_else(|| "not a process id".to_owned())?);
                Ok(())
            }
        }
    }

    fn limit(&mut self, limit: Limit) -> Result<(), String> {
        if self.ask.limits.iter().any(|other| other.key == limit.key) {
            return Err(format!("{} was given already", limit.key.word()));
        }
        self.ask.limits.push(limit);
        Ok(())
    }

    fn request(self, verb: &str) -> Result<Request, String> {
        if self.help {
            return Ok(Request::Help);
        }
        if verb != "run" && self.command.is_some() {
            return Err(format!("{verb} takes no command"));
        }
        if verb == "list" {
            let listed = if self.plain.is_empty() { Ok(Request::List { json: self.json }) } else { Err(()) };
            return listed.map_err(|()| "list takes no name".to_owned());
        }
        if verb == "prune" {
            return Ok(Request::Prune { dry_run: self.dry_run, paths: self.plain });
        }
        if verb == "check" && self.plain.is_empty() {
            return Ok(Request::Check { ask: self.ask });
        }
        let [word] = self.plain.as_slice() else {
            return Err(match (verb, self.plain.len()) {
                (_, 0) => format!("{verb} needs a name"),
                _ => {
                    format!("{verb} takes one name{}", if verb == "run" { "; the command comes after --" } else { "" })
                }
            });
        };
        let name = Name::new(&word.to_string_lossy())?;
        if self.check || verb == "check" {
            return Ok(Request::Check { ask: self.ask });
        }
        match verb {
            "run" => match self.command {
                Some(command) if !command.is_empty() => {
                    Ok(Request::Run { name, ask: self.ask, join: self.join, command })
                }
                _ => Err("run needs a command: cgdelegate run NAME -- COMMAND".to_owned()),
            },
            "attach" => Ok(Request::Attach { name, ask: self.ask, pid: self.pid }),
            "create" => Ok(Request::Create { name, ask: self.ask }),
            _ => Ok(Request::Delete { name, kill: self.kill }),
        }
    }
}

/// `--cpus 1.5`: so many processors' time, in thousandths.
fn cpus(word: &str) -> Result<Limit, String> {
    let bad = || "a number of processors, as 2 or 0.5, at least 0.01".to_owned();
    let (whole, part) = word.split_once('.').unwrap_or((word, "0"));
    let digits =
        |text: &str, most: usize| !text.is_empty() && text.len() <= most && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole, 5) || !digits(part, 3) {
        return Err(bad());
    }
    let thousandths: u64 = format!("{whole}{part:0<3}").parse().map_err(|_| bad())?;
    let quota = thousandths.checked_mul(100).filter(|quota| *quota >= 1000).ok_or_else(bad)?;
    Ok(Limit { key: Key::CpuMax, value: crate::config::Value::Share { quota, period: 100_000 } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Value;
    use proptest::prelude::*;

    fn words(line: &str) -> Result<Request, String> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn requests_are_read() {
        let Ok(Request::Run { name, ask, join, command }) = words(
            "run build1 --memory 1G --limit=pids.max=5 --cpus 1.5 --controllers pids,memory --owner 7:8 -- make -j2 -- x",
        ) else {
            panic!()
        };
        assert_eq!((name.as_str(), join, command.len()), ("build1", false, 4));
        assert_eq!(ask.owner, Some((7, Some(8))));
        assert_eq!(ask.limits.last().unwrap().value, Value::Share { quota: 150_000, period: 100_000 });
        assert!(matches!(words("attach c --pid 7"), Ok(Request::Attach { pid: Some(7), .. })));
        assert!(matches!(words("attach c"), Ok(Request::Attach { pid: None, .. })));
        assert!(matches!(words("create c --owner 7"), Ok(Request::Create { .. })));
        assert!(matches!(words("delete c --kill"), Ok(Request::Delete { kill: true, .. })));
        assert!(matches!(words("list --json"), Ok(Request::List { json: true })));
        assert!(
            matches!(words("prune --dry-run /a /b"), Ok(Request::Prune { dry_run: true, paths }) if paths.len() == 2)
        );
        assert!(matches!(words("run x --check"), Ok(Request::Check { .. })));
        assert!(matches!(words("check --pids 5"), Ok(Request::Check { .. })));
        assert_eq!(words("run --help"), Ok(Request::Help));
    }

    #[test]
    fn these_are_usage_errors() {
        for line in [
            "",
            "x",
            "run",
            "run x",
            "run x --",
            "run x y -- z",
            "run ../x -- y",
            "run a/b -- y",
            "run . -- y",
            "run .x -- y",
            "run cgroup.procs -- y",
            "run memory.max -- y",
            "run tasks -- y",
            "run x.service -- y",
            "run cgd-1 -- y",
            "run x --kill -- y",
            "run x --pid 3 -- y",
            "create",
            "create x -- y",
            "create x --join",
            "delete",
            "delete x y",
            "list x",
            "attach x --pid 0",
            "attach x --pid -1",
            "attach x --pid 1x",
            "attach x --pid",
            "create x --limit a=b",
            "create x --memory 1g",
            "create x --cpus 0.001",
            "create x --cpus 1.",
            "create x --pids 5 --pids 6",
            "create x --limit pids.max=1 --pids 6",
            "create x --owner a",
            "create x --owner 4294967295",
            "list --json=1",
            "create x --controllers v1:memory",
            "create -x",
        ] {
            assert!(words(line).is_err(), "{line}");
        }
        assert!(words(&format!("create {}", "x".repeat(65))).is_err());
        assert!(words(&format!("create {}", "x".repeat(64))).is_ok());
    }

    proptest! {
        #[test]
        fn a_name_is_one_component_and_none_of_the_kernels(word in "[a-z./_-]{0,70}|.{0,20}") {
            if let Ok(name) = Name::new(&word) {
                prop_assert!(!name.as_str().contains('/') && !name.as_str().starts_with('.') && name.as_str().len() <= 64);
                prop_assert!(!name.as_str().starts_with("cgroup."));
                prop_assert!(name.as_str().is_ascii());
            }
        }

        #[test]
        fn no_argv_panics(line in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 0..8)) {
            use std::os::unix::ffi::OsStringExt as _;
            let mut words = vec![OsString::from("run")];
            words.extend(line.into_iter().map(OsString::from_vec));
            let _ = parse(words);
        }
    }
}
