//! `spawn`: starts a rootfs as a container for an ordinary user. It holds no privilege; newuidmap and newgidmap write
//! its id maps.
//!
//! [`cli`](self) turns the command line into a `Plan`; `child` clones the process that [`setup`](self) turns into the
//! container's first; `supervise` watches it. `hold` and `go` are the two ends of the pipeline of userns-handoff(7).
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod child;
mod cli;
mod client;
mod console;
mod container;
mod devices;
mod explain;
mod failure;
mod go;
mod hold;
mod identity;
mod plan;
mod report;
mod resolve;
mod setup;
mod supervise;
mod sys;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use child::{Child, Map, Tools};
use cli::{Cli, Command, MapOption, Options};
use console::Stdio;
use failure::{Failure, OWN_FAILURE, Outcome, USAGE};
use plan::{Plan, Root};
use supervise::{Signals, Supervisor};

/// The program: exit status as in spawn(1).
#[must_use]
pub fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        console::restore_terminal();
        complain(&format!("internal error: {info}"));
        sys::exit_now(i32::from(OWN_FAILURE));
    }));
    close_foreign_descriptors();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return say_usage(&error),
    };
    let (result, own) = match &cli.command {
        Command::Run(options) => (run(options), OWN_FAILURE),
        Command::Hold(options) => (hold_container(options), OWN_FAILURE),
        Command::Go => (go::go(), OWN_FAILURE),
    };
    ExitCode::from(result.unwrap_or_else(|failure| {
        complain(&failure.text);
        if failure.code == OWN_FAILURE { own } else { failure.code }
    }))
}

/// Help and version go to standard output. A wrong command line of `run` and `go` is 125, so that it cannot be taken
/// for an exit status of the command.
fn say_usage(error: &clap::Error) -> ExitCode {
    let asked = !error.use_stderr();
    let _ = error.print();
    let passes_on = std::env::args_os().nth(1).is_some_and(|word| word == "run" || word == "go");
    ExitCode::from(match (asked, passes_on) {
        (true, _) => 0,
        (false, true) => OWN_FAILURE,
        (false, false) => USAGE,
    })
}

/// Prints one line on standard error; nothing if there is nobody to read it.
pub(crate) fn complain(text: &str) {
    let _ = std::io::stderr().write_all(format!("spawn: {}\n", failure::one_line(text)).as_bytes());
}

/// Descriptors from 3 up are the caller's business: neither the container nor a holder in the background keeps them.
fn close_foreign_descriptors() {
    if sys::close_range(3, u32::MAX).is_ok() {
        return;
    }
    // Linux before 5.9. The directory's own descriptor is among the names; closing it twice is harmless.
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers: Vec<i32> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter(|fd| *fd > 2).collect();
    numbers.into_iter().for_each(sys::close);
}

fn map_of(options: &Options) -> Outcome<Map> {
    match options.map {
        Some(MapOption::Own) => Ok(Map::own()),
        Some(MapOption::Whole) | None => Map::whole(),
    }
}

fn check_root(plan: &Plan, map: &Map, options: &Options) -> Outcome<()> {
    match &plan.root {
        Root::Directory(path) => {
            use std::os::unix::ffi::OsStrExt;
            let path = std::path::Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()));
            container::check(path, map, options.read_only)
        }
        Root::Host(_) => Ok(()),
    }
}

fn run(options: &Options) -> Outcome<u8> {
    let deadline = Instant::now() + options.timeout;
    let map = map_of(options)?;
    let plan = options.plan(false)?;
    check_root(&plan, &map, options)?;
    let tools = Tools::find(&map)?;
    let stdio = Stdio::own().map_err(|error| Failure::own(format!("cannot copy a standard descriptor: {error}")))?;
    let signals = Signals::block()?;
    let child = Child::start(&plan)?;
    if let Err(failure) = child.write_map(&map, &tools, deadline) {
        child.end();
        return Err(failure);
    }
    Supervisor::release(child, plan.init, stdio, signals, deadline, None)?.watch()
}

/// The map is written by a stage of the pipeline, unless it is the caller's own, which needs no tool.
fn hold_container(options: &Options) -> Outcome<u8> {
    let map = match options.map {
        Some(MapOption::Own) => Map::own(),
        Some(MapOption::Whole) => Map::whole()?,
        None => Map::Stage,
    };
    let plan = options.plan(true)?;
    check_root(&plan, &map, options)?;
    let tools = match &map {
        Map::Stage => None,
        _ => Some(Tools::find(&map)?),
    };
    hold::hold(&plan, &map, tools.as_ref(), options.timeout)
}
