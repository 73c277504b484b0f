//! `spawn`: starts a rootfs as a container for an ordinary user. It holds no privilege; newuidmap and newgidmap write
//! its id maps.
//!
//! `cli` turns the command line into a `Plan`; `child` clones the process that `setup` turns into the container's first;
//! `supervise` watches it. `tool` runs the programs with privilege. `hold` and `go` are the two ends of the pipeline of userns-handoff(7).
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod ambient;
mod attach;
mod boot;
mod card;
mod cgroup;
mod child;
mod cli;
mod client;
pub mod config;
mod confine;
mod confinement {
    pub mod sys;
}
mod console;
mod container;
mod devices;
mod explain;
mod failure;
#[cfg(fuzzing)]
pub mod fuzzed;
mod go;
mod hold;
mod hooks;
mod identity;
mod layers;
mod life;
mod mounting;
mod mounts {
    pub mod sys;
}
pub(crate) mod memory {
    pub mod sys;
}
mod netlink;
mod own_program;
mod plan;
mod report;
mod resolve;
pub mod rootfs;
mod seccomp;
mod settings;
mod setup;
mod sockets {
    pub mod sys;
}
mod state;
mod status;
mod supervise;
mod sys;
mod tool;

use std::io::Write;
use std::time::Instant;

use helper::start::sys::words;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};

use attach::Attacher;
use cgroup::{Asked, Kept, Own};
use child::{Child, Map, Tools};
use cli::{Cli, Command, MapOption, Options};
use config::HookKind;
use console::Stdio;
use failure::{Failure, OWN_FAILURE, Outcome, USAGE};
use hooks::{AtEnd, Target};
use life::Life;
pub use memory::sys::Arena;
use plan::Plan;
use status::{State, Status};
use supervise::{Signals, Supervisor, Turn};

/// The program: exit status as in spawn(1).
#[must_use]
pub fn main() -> u8 {
    // A pipe without a reader is an error of the write. The child sets it back for the command.
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    let _ = sys::set_disposition(Signal::SIGPIPE, &ignore);
    std::panic::set_hook(Box::new(|info| {
        console::restore_terminal();
        complain(&format!("internal error: {info}"));
        sys::exit_now(i32::from(OWN_FAILURE));
    }));
    if let Some(code) = life::detach::is_supervisor() {
        sys::exit_now(i32::from(code));
    }
    let cli = match Cli::read(words()) {
        Ok(cli) => cli,
        Err(error) => return say_usage(&error),
    };
    let with_own_id = match &cli.command {
        Command::Run(options) | Command::Hold(options) => options.map == Some(MapOption::Own),
        Command::Life(command) => command.enters_own_id(),
        Command::Go | Command::Check(_) => false,
    };
    if with_own_id && let Err(failure) = own_program::seal() {
        complain(&failure.text);
        return failure.code;
    }
    let named = match &cli.command {
        Command::Run(options) => [options.info_fd, options.hold_fd],
        Command::Hold(_) | Command::Go | Command::Check(_) | Command::Life(_) => [None, None],
    };
    close_foreign_descriptors(named.into_iter().flatten().filter(|fd| *fd > 2).collect());
    let result = match &cli.command {
        Command::Run(options) => run(options),
        Command::Hold(options) => hold_container(options),
        Command::Go => go::go(),
        Command::Life(command) => life::command(command),
        Command::Check(words) => {
            rootfs::cli::spawn_check(words).map_err(|error| Failure { code: error.status, text: error.text })
        }
    };
    let code = result.unwrap_or_else(|failure| {
        complain(&failure.text);
        failure.code
    });
    // Nothing is buffered and the terminal is restored; the kernel closes descriptors faster than we do.
    sys::exit_now(i32::from(code))
}

/// Help and version go to standard output. A wrong command line of `run` and `go` is 125, so that it cannot be taken
/// for an exit status of the command.
fn say_usage(error: &clap::Error) -> u8 {
    let asked = !error.use_stderr();
    match words().get(1).and_then(|word| word.to_str()).and_then(|word| Some((word, elsewhere(word)?))) {
        Some((word, there)) if error.kind() == clap::error::ErrorKind::InvalidSubcommand => {
            complain(&format!("there is no command {word}: {there}"));
        }
        _ => drop(error.print()),
    }
    let _ = std::io::stdout().flush();
    let passes_on = words().get(1).is_some_and(|word| ["run", "go", "exec"].iter().any(|name| word == *name));
    match (asked, passes_on) {
        (true, _) => 0,
        (false, true) => OWN_FAILURE,
        (false, false) => USAGE,
    }
}

/// What LXC's programs, podman and machinectl(1) call something that has another name here.
fn elsewhere(command: &str) -> Option<&'static str> {
    Some(match command {
        "start" | "boot" | "execute" => "`spawn run NAME` starts a container, `spawn run -d NAME` in the background",
        "create" | "import" | "pull" | "load" => "`rootfs import IMAGE NAME` makes a container of an image",
        "rm" | "destroy" | "remove" | "delete" => "`rootfs rm NAME` removes a container",
        "attach" | "enter" | "shell" | "login" => {
            "`spawn exec NAME` is a shell in a container, `spawn console NAME` its console"
        }
        "list" | "ps" => "`spawn ls -f`",
        "stats" | "monitor" => "`spawn top`",
        "status" | "inspect" | "show" => "`spawn info NAME`",
        "poweroff" | "halt" | "shutdown" | "terminate" => "`spawn stop NAME`",
        "reboot" => "`spawn restart NAME`",
        "export" | "save" | "adapt" | "shift" => "`rootfs --help` has it",
        "enable" | "disable" => "`spawn autostart --help`",
        _ => return None,
    })
}

/// Prints one line on standard error; nothing if there is nobody to read it.
pub(crate) fn complain(text: &str) {
    let _ = std::io::stderr().write_all(format!("spawn: {}\n", failure::one_line(text)).as_bytes());
}

/// Descriptors from 3 up are the caller's business: neither the container nor a holder in the background keeps them.
/// Those in `kept` stay open until the exec.
fn close_foreign_descriptors(mut kept: Vec<i32>) {
    kept.sort_unstable();
    let mut first = 3_u32;
    let mut closed = true;
    for fd in &kept {
        let _ = sys::close_on_exec(*fd);
        let fd = u32::try_from(*fd).unwrap_or(u32::MAX);
        if fd > first {
            closed &= sys::close_range(first, fd.saturating_sub(1)).is_ok();
        }
        first = fd.saturating_add(1);
    }
    if sys::close_range(first, u32::MAX).is_ok() && closed {
        return;
    }
    // Linux before 5.9. The directory's own descriptor is among the names; closing it twice is harmless.
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let numbers: Vec<i32> = numbers.filter(|fd| *fd > 2 && !kept.contains(fd)).collect();
    numbers.into_iter().for_each(sys::close);
}

fn map_of(options: &Options, plan: &Plan) -> Outcome<Map> {
    match (options.map, plan.config.extents()) {
        (Some(MapOption::Own), _) => Ok(Map::own()),
        (None, Some((uids, gids))) => Ok(Map::Whole { uids: uids.to_vec(), gids: gids.to_vec() }),
        (Some(MapOption::Auto) | None, _) => Map::whole(),
    }
}

fn check_root(plan: &Plan, map: &Map, options: &Options) -> Outcome<()> {
    use std::os::unix::ffi::OsStrExt;
    let Some(path) = plan.root.base() else { return Ok(()) };
    let path = std::path::Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()));
    container::check(path, map, plan.read_only)?;
    if plan.init
        && let Some(text) = rootfs::adapt::offer(path, &options.rootfs.to_string_lossy())
    {
        complain(&text);
    }
    Ok(())
}

fn run(options: &Options) -> Outcome<u8> {
    let mut status = Status::open(options.info_fd)?;
    if options.background.detach {
        return life::detach::run(options, status);
    }
    let mut life = Life::new(false)?;
    let result = loop {
        match start_and_watch(options, &mut status, life) {
            Ok(Turn::Ended(code)) => break Ok(code),
            Ok(Turn::Again(again)) => life = *again,
            Ok(Turn::Running(_)) => break Err(Failure::own("the container went to the background unasked")),
            Err(failure) => break Err(failure),
        }
    };
    status.tell(&match &result {
        Ok(code) => State::Exited { code: *code },
        Err(failure) => State::Failed { code: failure.code, error: &failure.text },
    });
    result
}

/// One start, and the watch over it. `life`: what a container keeps from one start to the next.
fn start_and_watch(options: &Options, status: &mut Status, life: Life) -> Outcome<Turn> {
    let deadline = Instant::now() + options.timeout;
    let hold = if life.is_first() { status::named("--hold-fd", options.hold_fd)? } else { None };
    // Step by step only when somebody wants to know of the steps, or has something to do between them.
    let held = hold.is_some() || status.is_some() || !options.net.is_empty();
    let mut plan = options.plan(held)?;
    let held = plan.held;
    let map = map_of(options, &plan)?;
    check_root(&plan, &map, options)?;
    let result = hooks::run(&plan, HookKind::PreStart, None)
        .and_then(|()| start(options, status, life, &mut plan, (&map, hold.as_ref(), held, deadline)));
    // What a hook has made before the start goes after it, whatever became of that. A supervisor sees to it by itself.
    let target = match result {
        Ok(Turn::Running(_)) => return result,
        Ok(Turn::Again(_)) => Target::Reboot,
        Ok(Turn::Ended(_)) | Err(_) => Target::Stop,
    };
    match (AtEnd::of(&plan).run(target), target) {
        (Ok(()), _) => result,
        (Err(failure), Target::Reboot) => Err(failure),
        (Err(failure), Target::Stop) => {
            complain(&failure.text);
            result
        }
    }
}

/// The start itself, after the hooks before it.
fn start(
    options: &Options,
    status: &mut Status,
    mut life: Life,
    plan: &mut Plan,
    (map, hold, held, deadline): (&Map, Option<&std::os::fd::OwnedFd>, bool, Instant),
) -> Outcome<Turn> {
    let tools = Tools::find(map)?;
    // Removed when this function fails; kept with the container once that is there.
    let mut cgroup = Asked { more: &plan.limits, ..options.cgroup() }.find(&plan.name)?;
    if cgroup.is_none() {
        plan.own_cgroup = Own::look(&plan.name);
        if plan.systemd && plan.own_cgroup.is_none() {
            complain(
                "systemd ends or freezes without a cgroup of its own: start it with --cgroup NAME (an administrator allows that in /etc/cgdelegate.conf), or below `systemd-run --user --scope -p Delegate=yes`",
            );
        }
    }
    let attacher = Attacher::find(&plan.cards)?;
    let stdio = if life.is_detached() { Stdio::console() } else { Stdio::own() }
        .map_err(|error| Failure::own(format!("cannot copy a standard descriptor: {error}")))?;
    let signals = Signals::block()?;
    let child = Child::start(plan)?;
    let mut prepare = || {
        let mapping = child.begin_map(map, &tools)?;
        // The child and the map tools are at work meanwhile.
        life.register(plan, options, &child)?;
        if status.is_some() {
            status.tell(&State::Created { pid: child.pid, start: child.start_time()?, name: &plan.name });
        }
        child.finish_map(mapping, deadline)?;
        // While the child still is the caller, whose processes alone cgdelegate moves for him.
        let places = cgroup.as_mut().map_or(Ok(Vec::new()), |cgroup| cgroup.attach(&child, deadline))?;
        if held {
            status.tell(&State::Mapped);
            child.make_network(deadline)?;
            let nics = attacher.attach(&plan.cards, &child, &plan.name, deadline)?;
            status.tell(&State::Network { nics: &nics, cgroup: &places });
            hooks::run(plan, HookKind::StartHost, Some(child.pid))?;
        }
        hold.map_or(Ok(()), |hold| status::wait_for_byte(hold, &child, &signals, deadline))
    };
    if let Err(failure) = prepare() {
        child.end();
        return Err(failure);
    }
    life.keep(Kept::new(cgroup, std::mem::take(&mut plan.own_cgroup)));
    // The time for the go does not count against the start.
    let deadline = if hold.is_some() { Instant::now() + options.timeout } else { deadline };
    Supervisor::release(child, plan, stdio, signals, deadline, None)?.with(life).watch(|| status.tell(&State::Running))
}

/// The map is written by a stage of the pipeline, unless it is the caller's own, which needs no tool.
fn hold_container(options: &Options) -> Outcome<u8> {
    if options.info_fd.is_some() || options.hold_fd.is_some() {
        return Err(Failure::own(
            "--info-fd and --hold-fd are for `spawn run`: the pipeline has the record and the control socket",
        ));
    }
    if options.cgroup().any() {
        return Err(Failure::own(format!(
            "--cgroup, --memory, --pids and --cpus are for `spawn run`: in the pipeline it is a stage, `| cgdelegate attach {}`",
            options.cgroup().words("NAME").join(" ")
        )));
    }
    let map = match options.map {
        Some(MapOption::Own) => Map::own(),
        Some(MapOption::Auto) => Map::whole()?,
        None => Map::Stage,
    };
    if options.background.any() {
        return Err(Failure::own(
            "--detach and --console-log are for `spawn run`: the holder is in the background anyway",
        ));
    }
    let plan = options.plan(true)?;
    if !plan.config.hooks.is_empty() {
        return Err(Failure::own(
            "the configuration has hooks, which only `spawn run` runs: `-s lxc.hook=` starts without them",
        ));
    }
    check_root(&plan, &map, options)?;
    let tools = match &map {
        Map::Stage => None,
        _ => Some(Tools::find(&map)?),
    };
    hold::hold(plan, options, &map, tools.as_ref())
}
