//! The command line of the commands for containers that run.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::cli::seconds;

/// What `run` has for containers in the background.
#[derive(Debug, Args)]
pub struct Background {
    /// `run` only: return when the command has been executed, and print the container's name
    ///
    /// The command's standard descriptors are the console: see `spawn console` and `spawn logs`.
    #[arg(short, long)]
    pub detach: bool,
    /// `run` only: append what is written to the console to FILE, as lxc.console.logfile
    #[arg(long, value_name = "FILE")]
    pub console_log: Option<PathBuf>,
}

impl Background {
    /// Whether any was given.
    #[must_use]
    pub const fn any(&self) -> bool {
        self.detach || self.console_log.is_some()
    }
}

/// The containers that a command is for.
#[derive(Debug, Args)]
#[group(required = true)]
pub struct Names {
    /// Names of containers
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// All containers that run
    #[arg(short, long, conflicts_with = "names")]
    pub all: bool,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a container that runs
    ///
    /// Exit status: as that of `run`.
    Exec(Exec),
    /// Attach the terminal to a container's console; ^] twice or ^A q leaves it
    Console {
        /// Name of a container
        name: String,
    },
    /// Print the last output of a container's console
    Logs {
        /// Name of a container
        name: String,
        /// Go on with what comes
        #[arg(short, long)]
        follow: bool,
    },
    /// Stop containers: the signal by which their init halts, and SIGKILL when the time is over
    ///
    /// The signal is lxc.signal.halt of the configuration, else SIGRTMIN+3 if the init blocks that, as systemd does, else
    /// SIGPWR. A command that is no init gets SIGTERM.
    Stop {
        #[command(flatten)]
        names: Names,
        /// Seconds until SIGKILL; 0 sends it at once
        #[arg(short, long, value_name = "SECONDS", default_value = "60", value_parser = seconds_or_none)]
        timeout: Duration,
    },
    /// Send a signal to process 1 of containers
    Kill {
        #[command(flatten)]
        names: Names,
        /// A name or a number
        #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = signal)]
        signal: i32,
    },
    /// Stop containers and start them again as they were started
    Restart {
        #[command(flatten)]
        names: Names,
        /// Seconds until SIGKILL; 0 sends it at once
        #[arg(short, long, value_name = "SECONDS", default_value = "60", value_parser = seconds_or_none)]
        timeout: Duration,
    },
    /// Wait until containers run or have ended
    ///
    /// For a container that ends, its exit status is printed.
    Wait {
        #[command(flatten)]
        names: Names,
        /// What to wait for
        #[arg(short, long, value_enum, default_value = "stopped")]
        state: Awaited,
        /// Give up after this time, with exit status 75 [default: never]
        #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
        timeout: Option<Duration>,
    },
    /// List containers: those that run, and those below $XDG_DATA_HOME/spawn
    Ls {
        /// A table
        #[arg(short, long)]
        fancy: bool,
        /// One JSON array
        #[arg(long, conflicts_with = "fancy")]
        json: bool,
        /// Only those that run
        #[arg(short, long)]
        running: bool,
    },
    /// Show what the containers that run use: processors' time, memory, processes
    ///
    /// On a terminal the table is renewed until q or ^C; else, and with --once or --json, it is printed once.
    Top(Top),
    /// Start containers at boot: those whose configuration says so, in order, or single ones as units of systemd
    #[command(subcommand)]
    Autostart(Autostart),
    /// Say what is known of containers
    Info {
        #[command(flatten)]
        names: Names,
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
}

impl Command {
    /// Whether this enters a container in which the caller's own id is mapped.
    #[must_use]
    pub fn enters_own_id(&self) -> bool {
        match self {
            Self::Exec(options) => {
                crate::state::find(&options.name).ok().flatten().is_some_and(|record| record.single_id)
            }
            _ => false,
        }
    }
}

/// `autostart`.
#[derive(Debug, Subcommand)]
pub enum Autostart {
    /// Write a unit of systemd's user manager that starts a container; without a name, one that does `autostart run`
    ///
    /// It is written below ~/.config/systemd/user, and the commands that come next are printed.
    Enable {
        /// Names of containers
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// The containers are in DIR, as LXC's programs have it
        #[arg(short = 'P', long, value_name = "DIR")]
        lxcpath: Option<PathBuf>,
    },
    /// Remove what enable has written
    Disable {
        /// Names of containers
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
    /// Start the containers that have lxc.start.auto, in the order of lxc.start.order, with lxc.start.delay between them
    Run(Selection),
    /// Stop them, in the opposite order
    Stop {
        #[command(flatten)]
        selection: Selection,
        /// Seconds until SIGKILL; 0 sends it at once
        #[arg(short, long, value_name = "SECONDS", default_value = "60", value_parser = seconds_or_none)]
        timeout: Duration,
    },
    /// List them in that order
    List {
        #[command(flatten)]
        selection: Selection,
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
}

/// The containers that `autostart` is about, chosen as by lxc-autostart(1).
#[derive(Debug, Args)]
pub struct Selection {
    /// Those of these lxc.group, group by group; an empty GROUP is those without any [default: onboot, and an empty one]
    #[arg(short, long, value_name = "GROUP[,GROUP...]", conflicts_with = "all")]
    pub groups: Vec<String>,
    /// Whatever their groups
    #[arg(short, long)]
    pub all: bool,
    /// Whatever their lxc.start.auto
    #[arg(short = 'A', long)]
    pub ignore_auto: bool,
    /// The containers in DIR, as LXC's programs have it
    #[arg(short = 'P', long, value_name = "DIR")]
    pub lxcpath: Option<PathBuf>,
}

/// `top`.
#[derive(Debug, Args)]
pub struct Top {
    /// Names of containers [default: all that run]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Print one table, on a terminal too
    #[arg(short = '1', long)]
    pub once: bool,
    /// One JSON array
    #[arg(long)]
    pub json: bool,
    /// Time between two looks, of which CPU% is the difference [default: 2, or 0.5 for one table]
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    pub delay: Option<Duration>,
    /// What comes first
    #[arg(short, long, value_enum, default_value = "name")]
    pub sort: Sort,
}

/// See [`Top`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// By name
    Name,
    /// The highest CPU%
    Cpu,
    /// The most memory
    Memory,
    /// The most processes
    Pids,
}

/// See [`Command::Wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Awaited {
    /// The command has been executed
    Running,
    /// The container has ended for good
    Stopped,
}

fn seconds_or_none(text: &str) -> Result<Duration, String> {
    if text.parse() == Ok(0.0) { Ok(Duration::ZERO) } else { seconds(text) }
}

/// A signal's number, or its name with or without SIG. RTMIN is 34 and RTMAX 64, as in glibc and in what runs inside.
fn signal(text: &str) -> Result<i32, String> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let real_time = |base: i32, sign: i32, rest: &str| -> Option<i32> {
        if rest.is_empty() {
            return Some(base);
        }
        let digits = rest.strip_prefix(if sign > 0 { '+' } else { '-' })?;
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let number: i32 = plain.then(|| digits.parse().ok()).flatten()?;
        base.checked_add(sign.checked_mul(number)?)
    };
    let plain = name.bytes().all(|b| b.is_ascii_digit());
    let number = if plain {
        name.parse().ok()
    } else if let Some(rest) = name.strip_prefix("RTMIN") {
        real_time(34, 1, rest).filter(|n| *n >= 34)
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        real_time(64, -1, rest).filter(|n| *n >= 34)
    } else {
        format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
    };
    number.filter(|n| (1..=64).contains(n)).ok_or_else(|| "no signal: as TERM, SIGTERM, 15 or RTMIN+3".to_owned())
}

/// `exec`.
#[derive(Debug, Args)]
pub struct Exec {
    /// Name of a container
    pub name: String,
    /// Run the command as UID[:GID] or as a user of the container's /etc/passwd [default: root]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Set a variable of the command's environment, or pass on the caller's
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub env: Vec<OsString>,
    /// Working directory of the command
    #[arg(short, long, value_name = "DIR", default_value = "/")]
    pub workdir: PathBuf,
    /// Give the command a terminal even if no standard descriptor is one
    #[arg(short, long)]
    pub tty: bool,
    /// Command and arguments [default: /bin/sh -l]
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_a_name_or_a_number() {
        for (word, number) in
            [("TERM", 15), ("sigterm", 15), ("9", 9), ("RTMIN+3", 37), ("SIGRTMIN", 34), ("RTMAX-1", 63), ("64", 64)]
        {
            assert_eq!(signal(word), Ok(number), "{word}");
        }
        for word in [
            "",
            "0",
            "65",
            "-9",
            "+9",
            "TERMX",
            "RTMIN-1",
            "RTMIN+31",
            "RTMAX+1",
            "RTMAX-31",
            "RTMIN+",
            "RTMIN+ 1",
            "SIG",
            "99999999999",
        ] {
            assert!(signal(word).is_err(), "{word}");
        }
    }
}
