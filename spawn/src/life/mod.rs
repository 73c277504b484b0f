//! A container's life after its start: its name and socket, the background, and the commands that reach it.

#![deny(unsafe_code)]

mod autostart;
pub mod cli;
pub mod detach;
mod end;
mod enter;
mod list;
pub mod log;
mod look;
mod membership;
mod ring;
pub mod server;
pub mod sys;
mod top;
mod unit;
mod usage;
mod watch;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use crate::cgroup::{Kept, Remains};
use crate::child::Child;
use crate::cli::Options;
use crate::failure::{Failure, OWN_FAILURE, Outcome};
use crate::hooks::{AtEnd, Target};
use crate::plan::Plan;
use crate::state::{self, Claim, Denied, Origin, Phase, Record};
use log::{Log, Settings};
use ring::Ring;
use server::{Server, View, Wish};

/// EX_UNAVAILABLE of sysexits.h: the container does not run.
pub const NOT_RUNNING: u8 = 69;
/// EX_OSERR of sysexits.h.
const SYSTEM_CALL: u8 = 71;
/// EX_TEMPFAIL of sysexits.h.
pub const TRY_AGAIN: u8 = 75;

/// A container that ends sooner than this is not started again at once.
const SHORT: Duration = Duration::from_secs(1);

/// What a container keeps from one start to the next.
#[derive(Debug)]
pub struct Life {
    /// Before the claim: the cgroup is gone when the name is free.
    cgroups: Cgroups,
    claim: Option<Claim>,
    server: Option<Server>,
    record: Option<Record>,
    /// In the background: the console's two ends and its last output.
    background: Option<Background>,
    wish: Option<Wish>,
    /// A client that is told how the next start went.
    waiting: Option<OwnedFd>,
    first: bool,
    /// Whether it is started again when it asks for that, or somebody else does.
    repeats: bool,
    /// What the supervisor runs when a container in the background has ended.
    at_end: AtEnd,
    /// In the foreground: where the console's output goes too.
    log: Option<Log>,
    began: Instant,
}

/// The container's cgroups, which go with it.
#[derive(Debug)]
enum Cgroups {
    Kept(Kept),
    /// Of a start that another program has made.
    Remains(Option<Remains>),
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        if let Self::Remains(remains) = self
            && let Some(remains) = remains.take()
        {
            remains.remove();
        }
    }
}

#[derive(Debug)]
struct Background {
    ring: Ring,
    ends: Option<[OwnedFd; 2]>,
}

impl Life {
    /// Before the first start.
    ///
    /// # Errors
    /// When there is no memory for the console's output.
    pub fn new(detached: bool) -> Outcome<Self> {
        let background = if detached { Some(Background { ring: Ring::new()?, ends: None }) } else { None };
        let began = Instant::now();
        Ok(Self {
            cgroups: Cgroups::Remains(None),
            claim: None,
            server: None,
            record: None,
            background,
            wish: None,
            waiting: None,
            first: true,
            repeats: true,
            at_end: AtEnd::default(),
            log: None,
            began,
        })
    }

    /// Of a container of `spawn hold`: the pipeline that has started it cannot be run again.
    ///
    /// # Errors
    /// As [`Life::new`].
    pub fn of_a_holder() -> Outcome<Self> {
        Ok(Self { repeats: false, ..Self::new(false)? })
    }

    /// Whether this is the first start.
    #[must_use]
    pub const fn is_first(&self) -> bool {
        self.first
    }

    /// Whether the container is to run in the background.
    #[must_use]
    pub const fn is_detached(&self) -> bool {
        self.background.is_some()
    }

    /// The name in the run state.
    #[must_use]
    pub fn name(&self) -> String {
        self.record.as_ref().map(|record| record.name.clone()).unwrap_or_default()
    }

    /// `lxc.signal.halt`.
    #[must_use]
    pub fn halt(&self) -> Option<i32> {
        self.record.as_ref().and_then(|record| record.halt)
    }

    /// Enters the container into the run state, at its first start under a name that no live one has.
    ///
    /// # Errors
    /// When the name is taken, or the run state cannot be written.
    pub fn register(&mut self, plan: &mut Plan, options: &Options, child: &Child) -> Outcome<()> {
        let mut claim = match self.claim.take() {
            Some(claim) => claim,
            None => claim_name(plan, options)?,
        };
        claim.name().clone_into(&mut plan.name);
        let mut record = Record::new(&plan.name, child.pid, child.start_time()?);
        // A start after the first is another program's, whose own arguments are not those of the call.
        record.origin = self.record.take().map_or_else(Origin::own, |record| record.origin);
        record.detached = self.is_detached();
        record.init = plan.init;
        record.single_id = plan.single_id;
        record.rootfs = match plan.root.base() {
            None => "host".to_owned(),
            Some(path) => {
                let path = Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()));
                std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).to_string_lossy().into_owned()
            }
        };
        record.halt = plan.config.signals.halt;
        record.config = plan
            .config_file
            .as_ref()
            .map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()).to_string_lossy().into_owned());
        record.digest = record.config.as_deref().and_then(list::digest);
        record.command = plan.argv.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let log = Settings::new(options.background.console_log.as_deref(), &plan.config.console);
        record.log = log.as_ref().map(|log| log.path.to_string_lossy().into_owned());
        let log = log.map(Log::open).transpose()?;
        if let Some(background) = &mut self.background {
            background.ring.set_log(log);
            self.at_end = AtEnd::of(plan);
            record.hooks_at_end = !self.at_end.is_empty();
        } else {
            self.log = log;
        }
        claim.write(&record)?;
        if self.server.is_none() {
            self.server = Some(Server::new(claim.listen()?));
        }
        (self.claim, self.record) = (Some(claim), Some(record));
        self.began = Instant::now();
        Ok(())
    }

    /// Keeps what is to be removed when the container has ended.
    pub fn keep(&mut self, kept: Kept) {
        if let Some(record) = &mut self.record {
            // Written with the next state.
            record.cgroups = kept.places();
        }
        self.cgroups = Cgroups::Kept(kept);
    }

    /// Notes the lines of /proc/PID/cgroup of the cgroups that others have made for it.
    pub fn stands_in(&mut self, places: Vec<String>) {
        if let Some(record) = &mut self.record {
            record.cgroups = places;
        }
    }

    /// The command has been executed.
    ///
    /// # Errors
    /// When the run state cannot be written.
    pub fn runs(&mut self) -> Outcome<()> {
        self.enter(Phase::Running)?;
        if let Some(waiting) = self.waiting.take() {
            let _ = crate::sys::send_message(waiting.as_raw_fd(), b"started", &[]);
        }
        Ok(())
    }

    fn enter(&mut self, phase: Phase) -> Outcome<()> {
        if let (Some(record), Some(claim)) = (&mut self.record, &mut self.claim) {
            record.state = phase;
            claim.write(record)?;
        }
        Ok(())
    }

    /// The log of a container in the foreground, for its console.
    pub fn take_log(&mut self) -> Option<Log> {
        self.log.take()
    }

    /// Runs the hooks for the end of a container in the background: whether all have done well. What they have said is
    /// lost, and that one has failed is told in the console's output.
    fn run_hooks(&mut self, target: Target) -> bool {
        let Err(failure) = self.at_end.run(target) else { return true };
        if let Some(background) = &mut self.background {
            background.ring.write(format!("\r\nspawn: {}\r\n", crate::failure::one_line(&failure.text)).as_bytes());
        }
        false
    }

    /// Keeps the console of a container in the background.
    pub fn keep_console(&mut self, master: OwnedFd, slave: OwnedFd) {
        if let Some(background) = &mut self.background {
            background.ends = Some([master, slave]);
        }
    }

    /// Who is to be polled for the socket.
    #[must_use]
    pub fn interests(&self) -> Vec<(server::End, BorrowedFd<'_>, PollFlags)> {
        let written = self.background.as_ref().map_or(0, |background| background.ring.total());
        self.server.as_ref().map(|server| server.interests(written)).unwrap_or_default()
    }

    /// Serves one of them.
    pub fn serve(&mut self, end: server::End, events: PollFlags, pidfd: BorrowedFd<'_>) {
        let (Some(server), Some(record)) = (&mut self.server, &self.record) else { return };
        match server.ready(end, events, &view(record, self.background.as_ref(), pidfd, self.repeats)) {
            Some(Wish::Stop) => {
                self.wish = Some(Wish::Stop);
                let _ = self.enter(Phase::Stopping);
            }
            Some(Wish::Restart) => self.wish = Some(Wish::Restart),
            None => {}
        }
    }

    /// After each round of [`Life::serve`].
    pub fn sweep(&mut self) {
        if let Some(server) = &mut self.server {
            server.sweep();
        }
    }

    /// Somebody has told this process to end the container: it is not started again.
    pub const fn stops(&mut self) {
        self.wish = Some(Wish::Stop);
    }

    /// The container has ended. Whether it is to be started again; `reboots`: it has asked for that itself.
    pub fn goes_on(&mut self, reboots: bool) -> bool {
        let again = match self.wish.take() {
            Some(Wish::Stop) => false,
            Some(Wish::Restart) => true,
            None => reboots && self.repeats,
        };
        if again {
            // The next start makes its own.
            self.cgroups = Cgroups::Remains(None);
            self.first = false;
            if let Some(server) = self.server.take() {
                // Clients come again; the socket stays.
                let (listener, waiting) = server.into_parts();
                self.server = Some(Server::new(listener));
                self.waiting = waiting;
            }
            let _ = self.enter(Phase::Starting);
            // One that reboots at once would keep a processor busy.
            std::thread::sleep(SHORT.saturating_sub(self.began.elapsed()));
        }
        again
    }

    /// The container has ended for good: whoever waits is told.
    pub fn ended(&mut self, code: u8, pidfd: BorrowedFd<'_>) {
        if let (Some(server), Some(record)) = (&mut self.server, &self.record) {
            server.finish(code, &view(record, self.background.as_ref(), pidfd, self.repeats));
        }
    }
}

fn view<'a>(record: &'a Record, background: Option<&'a Background>, pidfd: BorrowedFd<'a>, repeats: bool) -> View<'a> {
    let console = background.and_then(|background| {
        let [master, _] = background.ends.as_ref()?;
        Some((master.as_fd(), &background.ring))
    });
    View { record, pidfd, console, repeats }
}

/// The name that was asked for, or one made of the path. That one gets a number when it is taken and nothing is at
/// stake: an init and a container of the data directory run once.
fn claim_name(plan: &Plan, options: &Options) -> Outcome<Claim> {
    let path = options.rootfs.as_os_str();
    let free = options.name.is_none() && !plan.init && (path == "host" || path.as_bytes().contains(&b'/'));
    let base: String = plan.name.chars().take(60).collect();
    let numbered = (2..if free { 1000 } else { 2 }).map(|n| format!("{base}-{n}"));
    for name in std::iter::once(plan.name.clone()).chain(numbered) {
        let taken = Claim::take(&name).or_else(|denied| match denied {
            Denied::Taken => {
                state::let_go(&name);
                Claim::take(&name)
            }
            failed @ Denied::Failed(_) => Err(failed),
        });
        match taken {
            Ok(claim) => return Ok(claim),
            Err(Denied::Taken) => {}
            Err(Denied::Failed(failure)) => return Err(failure),
        }
    }
    Err(Failure::own(format!(
        "a container called {0} runs already: enter it with `spawn exec {0} -- COMMAND`, stop it with `spawn stop {0}`, or give this one another --name",
        plan.name
    )))
}

/// Does what `command` says: the exit status.
///
/// # Errors
/// With a status of sysexits.h; see spawn(1).
pub fn command(command: &cli::Command) -> Outcome<u8> {
    use cli::Command;
    let result = match command {
        Command::Stop { names, timeout } => end::stop(names, *timeout, Wish::Stop),
        Command::Restart { names, timeout } => end::stop(names, *timeout, Wish::Restart),
        Command::Kill { names, signal } => end::kill(names, *signal),
        Command::Wait { names, state, timeout } => end::wait(names, *state, *timeout),
        Command::Ls { fancy, json, running } => list::ls(*fancy, *json, *running),
        Command::Info { names, json } => list::info(names, *json),
        Command::Autostart(command) => autostart::autostart(command),
        Command::Top(options) => top::top(options),
        Command::Console { name } => look::console(name),
        Command::Logs { name, follow } => look::logs(name, *follow),
        Command::Exec(options) => enter::exec(options),
    };
    let passes_on = matches!(command, Command::Exec(_));
    result.map_err(|failure| {
        if failure.code == OWN_FAILURE && !passes_on { Failure { code: SYSTEM_CALL, ..failure } } else { failure }
    })
}

/// The live container `name`.
///
/// # Errors
/// When there is none.
pub fn live(name: &str) -> Outcome<Record> {
    let wrong = |text: String| Failure { code: NOT_RUNNING, text };
    if !crate::cli::is_name(name) {
        return Err(wrong(format!("{} is no name of a container (see `spawn ls`)", name.escape_default())));
    }
    state::find(name)?.ok_or_else(|| {
        wrong(if list::is_stopped_container(name) {
            format!("{name} does not run: start it with `spawn run -d {name}`")
        } else {
            format!("there is no container {name}: `spawn ls` lists them")
        })
    })
}

/// Those that `names` is about.
///
/// # Errors
/// When one of them does not run.
fn records(names: &cli::Names) -> Outcome<Vec<Record>> {
    if names.all { state::all() } else { names.names.iter().map(|name| live(name)).collect() }
}
