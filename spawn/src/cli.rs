//! The command line, and the plan that comes of it.

#![forbid(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::ambient;
use crate::cgroup::Asked;
use crate::failure::{Failure, Outcome};
use crate::life;
use crate::plan::{self, Create, DEFAULT_PATH, Mounting, Plan, Source, User};
use crate::rootfs::cli::CheckArgs;
use crate::{settings, sys};

const EXAMPLES: &str = "\
Examples:
  spawn run                                  a shell in a container of this host; changes stay in memory
  spawn run host -- apt-get -s upgrade       a command there
  spawn run centos7                          a container: its init boots, and ends by `shutdown -h now` inside
  spawn run -P ~/.local/share/lxc c1         one that lxc-create has made
  spawn run ./rootfs -- /bin/bash            a directory with a root file system that belongs to your subordinate ids
  spawn run --map self ./rootfs              one that belongs to you
  spawn run --bind \"$PWD:/work\" --workdir /work host -- make
  spawn run --net lxcbr0,ip=10.0.3.5/24,gw=10.0.3.1 ./rootfs -- ping -c1 10.0.3.1
                                             one with a network card on the bridge lxcbr0
  spawn run -d ./c7/rootfs -- /sbin/init     a whole system in the background, called c7
  spawn console c7; spawn exec c7 -- ps; spawn stop c7
  spawn hold host -- id | idmap | spawn go   the start of a container as a pipeline
  spawn check centos6                        what would stop a start, with causes and cures

Your subordinate ids: idmap plan. Manual: spawn(1), usernet-bridge(7), userns-handoff(7).";

/// Start a rootfs as a container, as an ordinary user
#[derive(Debug, Parser)]
#[command(name = "spawn", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a container and wait for its command
    ///
    /// Exit status: the command's own, or 128 and the number of the signal that killed it; 125 if spawn itself failed,
    /// 126 if the command could not be executed, 127 if there is no such command.
    Run(Options),
    /// Make a container that waits, and write a handoff record about it (see userns-handoff(7))
    Hold(Options),
    /// Read a handoff record and let its container go; exits like `run`
    ///
    /// The command's standard input is the terminal (/dev/tty) if standard output or standard error is one, else what
    /// follows the record on standard input.
    Go,
    #[command(flatten)]
    Life(life::cli::Command),
    /// Look for everything that would stop a start: of this host and, when one is named, of a container
    ///
    /// One line for each finding, with the cause and the cure, as `rootfs check` prints them. Exit status: 78 when
    /// something was found that stops a start, else 0.
    Check(CheckArgs),
}

impl Cli {
    /// Reads the command line: the program's name first.
    ///
    /// # Errors
    /// What clap has to say, help and version included.
    pub fn read(words: &[OsString]) -> Result<Self, clap::Error> {
        // The options of all subcommands take three times as long to set up as those of one, and half of that time is
        // what a start can be shortened by. Whatever is wrong, or asked for, is for the whole to say.
        let command = match words.get(1).and_then(|word| word.to_str()) {
            Some("run") => alone::<Options>(words, "run").map(Command::Run),
            Some("exec") => {
                alone::<life::cli::Exec>(words, "exec").map(|exec| Command::Life(life::cli::Command::Exec(exec)))
            }
            _ => None,
        };
        command.map_or_else(|| Self::try_parse_from(words), |command| Ok(Self { command }))
    }
}

/// The arguments of the subcommand `name`, read without the other subcommands; nothing when they are wrong.
fn alone<A: Args>(words: &[OsString], name: &'static str) -> Option<A> {
    let parser = A::augment_args(clap::Command::new(name).disable_version_flag(true));
    let mut found = parser.try_get_matches_from(words.get(1..)?).ok()?;
    A::from_arg_matches_mut(&mut found).ok()
}

/// Which ids a container has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MapOption {
    /// All subordinate ids of the caller, from /etc/subuid and /etc/subgid
    Auto,
    /// The caller's own user and group id, as root inside, and nothing else
    #[value(name = "self")]
    Own,
}

/// What `run` and `hold` have in common.
#[derive(Debug, Args)]
pub struct Options {
    /// A container: a directory with `config` and `rootfs`, or of a bare rootfs (a path with a slash); the name of one
    /// below $XDG_DATA_HOME/spawn or in LXC's directories; or `host`: the host's own tree, in which changes stay in
    /// memory
    #[arg(value_name = "CONTAINER", default_value = "host")]
    pub rootfs: PathBuf,
    /// Look for the named container in DIR alone, as LXC's programs do
    #[arg(short = 'P', long, value_name = "DIR")]
    pub lxcpath: Option<PathBuf>,
    /// Set a key of the configuration after its file (see spawn-config(5))
    #[arg(short = 's', long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Keep in memory what is written to the rootfs
    #[arg(short, long)]
    pub ephemeral: bool,
    /// Mount SRC of the host on DST inside
    #[arg(long, visible_alias = "volume", value_name = "SRC:DST[:ro]")]
    pub bind: Vec<OsString>,
    /// Give the container a network card on BRIDGE, made by usernet as /etc/lxc/lxc-usernet grants; several times
    ///
    /// NAME is eth0 unless another is given, then eth1...; IP and GW (the default route) may be of IPv4 and IPv6. With
    /// `hold` the card is made by the stage `usernet attach BRIDGE`, and set up like this at `go`.
    #[arg(long, value_name = "BRIDGE[,name=NAME][,mac=MAC][,mtu=BYTES][,ip=IP/PREFIX][,gw=IP]")]
    pub net: Vec<OsString>,
    /// `run` only: put the container into the cgroup NAME, made by cgdelegate as /etc/cgdelegate.conf grants
    ///
    /// With `hold` it is a stage: `cgdelegate attach NAME`.
    #[arg(long, value_name = "NAME")]
    pub cgroup: Option<String>,
    /// `run` only: memory that the container may use, in bytes or with K, M, G, T; with a cgroup as --cgroup
    #[arg(long, value_name = "BYTES")]
    pub memory: Option<String>,
    /// `run` only: processes that it may have at a time; likewise
    #[arg(long, value_name = "N")]
    pub pids: Option<String>,
    /// `run` only: processors' time that it may use, as 2 or 0.5; likewise
    #[arg(long, value_name = "N")]
    pub cpus: Option<String>,
    /// Make the rootfs read-only
    #[arg(long)]
    pub read_only: bool,
    /// Set a variable of the command's environment, or pass on the caller's
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub env: Vec<OsString>,
    /// Host name inside [default: the container's name]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// The container's name [default: from ROOTFS]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Working directory of the command [default: /]
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// Run the command as UID[:GID] or as a user of the rootfs's /etc/passwd
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Which ids are mapped [default: auto]
    #[arg(long, value_enum)]
    pub map: Option<MapOption>,
    /// Seconds that the start may take, and that `hold` waits for `go`
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub timeout: Duration,
    /// `run` only: write the states of the start on descriptor N, one JSON object a line
    #[arg(long, value_name = "N")]
    pub info_fd: Option<i32>,
    /// `run` only: wait for one byte on descriptor N before the command is executed; its end means give up
    #[arg(long, value_name = "N")]
    pub hold_fd: Option<i32>,
    #[command(flatten)]
    pub background: life::cli::Background,
    /// Command and arguments [default: the rootfs's init, if it has one, else /bin/sh -l]
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// A number of seconds, more than 0 and at most 1000000.
///
/// # Errors
/// When it is none.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if !(number > 0.0 && number <= 1e6) {
        return Err("must be more than 0 and at most 1000000".to_owned());
    }
    Ok(Duration::from_secs_f64(number))
}

fn usage(text: impl Into<String>) -> Failure {
    Failure::own(text)
}

impl Options {
    /// What is asked of cgdelegate.
    #[must_use]
    pub fn cgroup(&self) -> Asked<'_> {
        Asked {
            name: self.cgroup.as_deref(),
            limits: [self.memory.as_deref(), self.pids.as_deref(), self.cpus.as_deref()],
            more: &[],
        }
    }

    /// Makes the plan. `held`: for `spawn hold`.
    ///
    /// # Errors
    /// When an option or the configuration cannot be understood, or the rootfs is not there.
    pub fn plan(&self, held: bool) -> Outcome<Plan> {
        settings::plan(self, held)
    }
}

/// A C string.
///
/// # Errors
/// When a NUL byte is in it.
pub fn text(word: &OsStr) -> Outcome<CString> {
    CString::new(word.as_bytes()).map_err(|_| usage("an argument holds a NUL byte"))
}

/// Whether `name` can be a directory of the run state and a word of a record.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    plain && !name.is_empty() && name.len() <= 64 && !name.starts_with(['.', '-'])
}

/// `SRC:DST[:ro]`.
///
/// # Errors
/// When it is something else.
pub fn bind(word: &OsStr) -> Outcome<Mounting> {
    let wrong = |why: &str| usage(format!("--bind {}: {why}", word.display()));
    let parts: Vec<&[u8]> = word.as_bytes().split(|b| *b == b':').collect();
    let (source, target, read_only) = match parts[..] {
        [source, target] | [source, target, b"rw"] => (source, target, false),
        [source, target, b"ro"] => (source, target, true),
        _ => return Err(wrong("must be SRC:DST, SRC:DST:ro or SRC:DST:rw (a path with a colon cannot be named)")),
    };
    if source.is_empty() || !target.starts_with(b"/") {
        return Err(wrong("SRC must not be empty and DST must be an absolute path"));
    }
    let target = plan::path_steps(Path::new(OsStr::from_bytes(target)));
    let target = target.filter(|steps| !steps.is_empty()).ok_or_else(|| wrong("DST must not be / and hold no .."))?;
    Ok(Mounting {
        source: Source::Bind { path: text(OsStr::from_bytes(source))?, recursive: true },
        target,
        attributes: if read_only { sys::MOUNT_ATTR_RDONLY } else { 0 },
        propagation: 0,
        create: Create::LikeSource,
        optional: false,
    })
}

/// `UID`, `UID:GID` or a name; what looks like a number is one or an error, never a name, and never another number
/// (CVE-2026-30892).
///
/// # Errors
/// When it is none of these.
pub fn user(word: &str) -> Outcome<User> {
    let wrong = || usage(format!("--user {}: must be UID, UID:GID or the name of a user", word.escape_default()));
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        // 4294967295 is (uid_t)-1: no id.
        plain.then(|| digits.parse::<u32>().ok().filter(|id| *id != u32::MAX)).flatten()
    };
    if word.starts_with(|c: char| c.is_ascii_digit()) {
        let (uid, gid) = word.split_once(':').map_or((word, None), |(uid, gid)| (uid, Some(gid)));
        let uid = number(uid).ok_or_else(wrong)?;
        let gid = gid.map(|gid| number(gid).ok_or_else(wrong)).transpose()?;
        return Ok(if uid == 0 && gid.is_none_or(|gid| gid == 0) { User::Root } else { User::Id(uid, gid) });
    }
    let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-$".contains(&b));
    match word {
        "root" => Ok(User::Root),
        _ if plain && word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') => {
            Ok(User::Name(word.to_owned()))
        }
        _ => Err(wrong()),
    }
}

/// What the command finds in its environment.
pub struct Environment {
    /// All but HOME, as KEY=VALUE.
    pub list: Vec<CString>,
    /// HOME=..., if it is asked for.
    pub home: Option<CString>,
    /// The directories in which a command is looked for.
    pub path: String,
}

/// container, PATH and TERM, then what was asked for; nothing else of the caller's environment goes in.
///
/// # Errors
/// When a word is none of KEY=VALUE and KEY.
pub fn environment<'a>(asked: impl Iterator<Item = &'a OsStr>) -> Outcome<Environment> {
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = vec![
        (b"container".to_vec(), b"lxc".to_vec()),
        (b"PATH".to_vec(), DEFAULT_PATH.into()),
        (b"TERM".to_vec(), terminal_type().into_bytes()),
    ];
    for word in asked {
        let bytes = word.as_bytes();
        let mut parts = bytes.splitn(2, |b| *b == b'=');
        let key = parts.next().unwrap_or_default().to_vec();
        if key.is_empty() {
            return Err(usage(format!("--env {}: must be KEY=VALUE or KEY", word.display())));
        }
        let value = match parts.next() {
            Some(value) => value.to_vec(),
            None => match ambient::variable(OsStr::from_bytes(&key)) {
                Some(value) => value.into_vec(),
                None => continue,
            },
        };
        pairs.retain(|(known, _)| *known != key);
        pairs.push((key, value));
    }
    let path =
        pairs.iter().find(|(key, _)| key == b"PATH").map(|(_, value)| String::from_utf8_lossy(value).into_owned());
    let mut list = Vec::with_capacity(pairs.len());
    let mut home = None;
    for (key, value) in pairs {
        let word = CString::new([&key[..], b"=", &value].concat()).map_err(|_| usage("--env holds a NUL byte"))?;
        if key == b"HOME" {
            home = Some(word);
        } else {
            list.push(word);
        }
    }
    Ok(Environment { list, home, path: path.unwrap_or_default() })
}

/// The caller's TERM, if it looks like one.
fn terminal_type() -> String {
    let plain = |name: &String| {
        let known = |b: u8| b.is_ascii_alphanumeric() || b"-_+.".contains(&b);
        !name.is_empty() && name.len() < 64 && name.bytes().all(known)
    };
    ambient::variable("TERM")
        .and_then(|name| name.into_string().ok())
        .filter(plain)
        .unwrap_or_else(|| "linux".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Result<Options, String> {
        let cli = Cli::try_parse_from(words.iter().copied()).map_err(|error| error.to_string())?;
        match cli.command {
            Command::Run(options) | Command::Hold(options) => Ok(options),
            Command::Go | Command::Life(_) | Command::Check(_) => Err("no options".to_owned()),
        }
    }

    #[test]
    fn the_command_stands_after_two_dashes() {
        let found = options(&["spawn", "run", "./x", "--", "ls", "-l", "--", "--bind"]).unwrap();
        assert_eq!((found.rootfs.to_str(), found.command.len()), (Some("./x"), 4));
        let found = options(&["spawn", "run", "--", "ls"]).unwrap();
        assert_eq!((found.rootfs.to_str(), found.command.len()), (Some("host"), 1));
        assert!(options(&["spawn", "run", "a", "b"]).is_err());
        assert!(options(&["spawn", "run", "--map", "other"]).is_err());
        assert!(options(&["spawn", "run", "--timeout", "0"]).is_err());
        assert!(options(&["spawn", "run", "--timeout", "nan"]).is_err());
    }

    #[test]
    fn a_user_is_a_number_or_a_name_and_nothing_between() {
        assert_eq!(user("0"), Ok(User::Root));
        assert_eq!(user("root"), Ok(User::Root));
        assert_eq!(user("1"), Ok(User::Id(1, None)));
        assert_eq!(user("1000:5"), Ok(User::Id(1000, Some(5))));
        assert_eq!(user("0:5"), Ok(User::Id(0, Some(5))));
        assert_eq!(user("ada"), Ok(User::Name("ada".to_owned())));
        for wrong in
            ["", "1000:", ":5", "+0", "-1", "99999999999", "4294967295", "1x", "0x0", " 0", "a b", "1:2:3", "a:b"]
        {
            assert!(user(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_bind_has_two_or_three_parts() {
        let ok = |word: &str| bind(OsStr::new(word)).unwrap();
        assert_eq!((ok("a:/b").attributes, ok("a:/b:ro").attributes), (0, sys::MOUNT_ATTR_RDONLY));
        assert_eq!(ok("a:/b/c").target.len(), 2);
        for wrong in ["", "a", "a:b", ":/b", "a:/", "a:/b/../c", "a:/b:x", "a:/b:ro:ro"] {
            assert!(bind(OsStr::new(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn nothing_of_the_callers_environment_goes_in_unasked() {
        let words = [OsString::from("A=b=c"), "PATH=/x".into(), "HOME=/h".into(), "NOT_SET_ANYWHERE".into()];
        let found = environment(words.iter().map(OsString::as_os_str)).unwrap();
        let list: Vec<_> = found.list.iter().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(
            list.iter().filter(|word| !word.starts_with("TERM=")).collect::<Vec<_>>(),
            [&"container=lxc", &"A=b=c", &"PATH=/x"]
        );
        assert_eq!((found.home.as_deref(), found.path.as_str()), (Some(c"HOME=/h"), "/x"));
        assert!(environment([OsStr::new("=x")].into_iter()).is_err());
    }
}
