//! `autostart`: which containers are started by themselves, in which order, and by what.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Serialize;

use super::cli::{Autostart, Names, Selection};
use super::end::{self, each, say};
use super::list::{columns, containers_in};
use super::server::Wish;
use super::{NOT_RUNNING, unit};
use crate::complain;
use crate::config::{Config, Start};
use crate::failure::{Failure, Outcome};
use crate::state::{self, Phase};

/// The groups of a boot, as LXC's service has them: `onboot`, then the containers without a group.
const AT_BOOT: [&str; 2] = ["onboot", ""];

/// A container that may be started by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    name: String,
    start: Start,
    groups: Vec<String>,
}

/// A line of `list`, and the keys of `--json`.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// STARTING, RUNNING, STOPPING or STOPPED.
    state: String,
    autostart: bool,
    order: i32,
    /// Seconds.
    delay: u64,
    groups: Vec<String>,
    /// The unit of its own that `enable` has written.
    unit: Option<String>,
}

/// `spawn autostart`.
///
/// # Errors
/// When a container does not start or stop, or a unit cannot be written.
pub fn autostart(command: &Autostart) -> Outcome<u8> {
    match command {
        Autostart::Enable { names, lxcpath } => unit::enable(names, lxcpath.as_deref()),
        Autostart::Disable { names } => unit::disable(names),
        Autostart::Run(selection) => run(selection),
        Autostart::Stop { selection, timeout } => stop(selection, *timeout),
        Autostart::List { selection, json } => list(selection, *json),
    }
}

/// Those that are chosen, in the order of their start, and how many configurations could not be read.
fn chosen(selection: &Selection) -> (Vec<Candidate>, usize) {
    let mut wrong = 0_usize;
    let mut candidates = Vec::new();
    for (name, path) in containers_in(selection.lxcpath.as_deref()) {
        let file = path.join("config");
        match Config::load(file.is_file().then_some(file.as_path()), &[]) {
            Ok(config) => candidates.push(Candidate { name, start: config.start, groups: config.groups }),
            Err(failure) => {
                wrong = wrong.saturating_add(1);
                complain(&format!("{name} is left out: {}", failure.text));
            }
        }
    }
    (select(candidates, selection), wrong)
}

fn select(mut candidates: Vec<Candidate>, selection: &Selection) -> Vec<Candidate> {
    candidates.retain(|candidate| candidate.start.auto || selection.ignore_auto);
    candidates.sort_by(|a, b| (a.start.order, &a.name).cmp(&(b.start.order, &b.name)));
    if selection.all {
        return candidates;
    }
    let asked: Vec<&str> = selection.groups.iter().flat_map(|list| list.split(',')).map(str::trim).collect();
    let groups = if asked.is_empty() { AT_BOOT.to_vec() } else { asked };
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for group in groups {
        for candidate in &candidates {
            let is_in = if group.is_empty() {
                candidate.groups.is_empty()
            } else {
                candidate.groups.iter().any(|own| own == group)
            };
            if is_in && seen.insert(candidate.name.clone()) {
                found.push(candidate.clone());
            }
        }
    }
    found
}

/// The result of the whole: configurations that could not be read, which have been told, are a failure as well.
fn finish(result: Outcome<u8>, wrong: usize) -> Outcome<u8> {
    let text = match wrong {
        0 => return result,
        1 => "one container was left out, whose configuration cannot be read".to_owned(),
        _ => format!("{wrong} containers were left out, whose configurations cannot be read"),
    };
    if let Err(failure) = result {
        complain(&failure.text);
    }
    Err(Failure::own(text))
}

fn run(selection: &Selection) -> Outcome<u8> {
    let (candidates, wrong) = chosen(selection);
    let mut delay = Duration::ZERO;
    let result = each(candidates, |candidate| {
        let name = &candidate.name;
        if state::find(name)?.is_some() {
            say(&format!("{name}: runs already"));
            return Ok(());
        }
        std::thread::sleep(std::mem::take(&mut delay));
        start(name, selection.lxcpath.as_deref())?;
        say(&format!("{name}: started"));
        delay = candidate.start.delay;
        Ok(())
    });
    finish(result, wrong)
}

/// `spawn run --detach NAME`, by this program: a process of its own, for it becomes the supervisor.
fn start(name: &str, lxcpath: Option<&Path>) -> Outcome<()> {
    let mut command = Command::new("/proc/self/exe");
    std::os::unix::process::CommandExt::arg0(&mut command, "spawn");
    command.args(["run", "--detach"]);
    if let Some(directory) = lxcpath {
        command.arg("--lxcpath").arg(directory);
    }
    command.arg(name).stdin(Stdio::null()).stdout(Stdio::null());
    let output =
        command.output().map_err(|error| Failure::own(format!("{name}: cannot execute this program: {error}")))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let mut lines: Vec<&str> = said.lines().map(|line| line.strip_prefix("spawn: ").unwrap_or(line)).collect();
    let failed = !output.status.success();
    let last = if failed { lines.pop() } else { None };
    lines.iter().for_each(|line| complain(&format!("{name}: {line}")));
    if failed {
        let why = last.map_or_else(|| output.status.to_string(), str::to_owned);
        return Err(Failure::own(format!("{name} was not started: {why}")));
    }
    Ok(())
}

fn stop(selection: &Selection, timeout: Duration) -> Outcome<u8> {
    let (mut candidates, wrong) = chosen(selection);
    candidates.reverse();
    // Those of one order were started next to each other, and are told together.
    let batches: Vec<Vec<String>> = candidates
        .chunk_by(|a, b| a.start.order == b.start.order)
        .map(|batch| batch.iter().map(|candidate| candidate.name.clone()).collect())
        .collect();
    let result = each(batches, |names| {
        let mut live = Vec::new();
        for name in names {
            if state::find(&name)?.is_some() {
                live.push(name);
            }
        }
        match end::stop(&Names { names: live, all: false }, timeout, Wish::Stop) {
            // It has ended by itself meanwhile.
            Err(failure) if failure.code == NOT_RUNNING => Ok(()),
            result => result.map(drop),
        }
    });
    finish(result, wrong)
}

fn list(selection: &Selection, json: bool) -> Outcome<u8> {
    let (candidates, wrong) = chosen(selection);
    let live: Vec<(String, Phase)> = state::all()?.into_iter().map(|record| (record.name, record.state)).collect();
    let rows: Vec<Row> = candidates
        .into_iter()
        .map(|candidate| {
            let state = live.iter().find(|(name, _)| *name == candidate.name);
            Row {
                state: state.map_or_else(|| "STOPPED".to_owned(), |(_, state)| state.to_string()),
                autostart: candidate.start.auto,
                order: candidate.start.order,
                delay: candidate.start.delay.as_secs(),
                unit: unit::written(&candidate.name),
                groups: candidate.groups,
                name: candidate.name,
            }
        })
        .collect();
    if json {
        say(&serde_json::to_string_pretty(&rows).unwrap_or_default());
    } else {
        let head = ["NAME", "STATE", "AUTOSTART", "ORDER", "DELAY", "GROUPS", "UNIT"].map(str::to_owned);
        let cells = rows.iter().map(|row| {
            [
                row.name.clone(),
                row.state.clone(),
                u8::from(row.autostart).to_string(),
                row.order.to_string(),
                row.delay.to_string(),
                if row.groups.is_empty() { "-".to_owned() } else { row.groups.join(", ") },
                row.unit.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        });
        columns(&std::iter::once(head).chain(cells).collect::<Vec<_>>()).iter().for_each(|line| say(line));
    }
    finish(Ok(0), wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `NAME:ORDER:GROUPS`, without `auto` where the name is in capitals.
    fn candidate(text: &str) -> Candidate {
        let parts: Vec<&str> = text.split(':').collect();
        let [name, order, groups] = parts[..] else { panic!("{text}") };
        let auto = name.chars().all(char::is_lowercase);
        let groups = groups.split_ascii_whitespace().map(str::to_owned).collect();
        let start = Start { auto, delay: Duration::ZERO, order: order.parse().unwrap() };
        Candidate { name: name.to_owned(), start, groups }
    }

    #[test]
    fn containers_are_chosen_and_sorted_as_lxc_does() {
        let all = ["a:5:", "b:1:web", "c:3:", "d:3:onboot web", "OFF:0:web", "e:-1:", "f:9:onboot"];
        let names = |groups: &[&str], all_groups, ignore_auto| -> String {
            let selection = Selection {
                groups: groups.iter().map(|group| (*group).to_owned()).collect(),
                all: all_groups,
                ignore_auto,
                lxcpath: None,
            };
            let found = select(all.map(candidate).to_vec(), &selection);
            found.into_iter().map(|candidate| candidate.name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(&[], false, false), "d f e c a", "a boot: onboot, then those without a group");
        assert_eq!(names(&["web"], false, false), "b d");
        assert_eq!(names(&["web"], false, true), "OFF b d");
        assert_eq!(names(&[",web"], false, false), "e c a b d");
        assert_eq!(names(&["onboot", "web,"], false, false), "d f b e c a");
        assert_eq!(names(&[""], false, false), "e c a");
        assert_eq!(names(&[], true, false), "e b c d a f");
        assert_eq!(names(&["none-of-these"], false, false), "");
    }
}
