//! What containers use: the numbers of their own cgroup where they have one, else sums over their processes.
//!
//! Each number comes from the cgroup if a controller counts it there: processors' time always does on cgroup2, whose
//! every cgroup has `cpu.stat`; memory and processes as far as the controllers were delegated. What none counts is summed
//! over the processes: those in the container's pid namespace (a command of `spawn exec` is no descendant of process 1)
//! and their descendants (which may be in pid namespaces of their own).

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nix::unistd::{SysconfVar, sysconf};

use crate::cgroup::directory;
use crate::state::Record;

/// What one container has used so far, or uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processors' time in microseconds.
    pub cpu: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// What it may use of it, where that is limited.
    pub memory_limit: Option<u64>,
    /// Processes and threads, as the pids controller counts them.
    pub pids: u64,
    /// How many of them there may be.
    pub pids_limit: Option<u64>,
    /// Whether `cpu`, `memory` and `pids` are the cgroup's.
    pub from_cgroup: [bool; 3],
}

/// What each of `records` uses.
#[must_use]
pub fn of(records: &[Record]) -> Vec<Usage> {
    let mut all: Vec<Counted> = records.iter().map(|record| counted(&directories(record))).collect();
    let complete = |counted: &Counted| counted.cpu.is_some() && counted.memory.is_some() && counted.pids.is_some();
    let sums = if all.iter().all(complete) { Vec::new() } else { sums(records) };
    all.drain(..)
        .enumerate()
        .map(|(at, counted)| {
            let sum = sums.get(at).copied().unwrap_or_default();
            Usage {
                cpu: counted.cpu.unwrap_or(sum.cpu),
                memory: counted.memory.unwrap_or(sum.memory),
                memory_limit: counted.memory_limit,
                pids: counted.pids.unwrap_or(sum.pids),
                pids_limit: counted.pids_limit,
                from_cgroup: [counted.cpu.is_some(), counted.memory.is_some(), counted.pids.is_some()],
            }
        })
        .collect()
}

/// A cgroup of a container: the controllers of its hierarchy, of which cgroup2 names none, and its directory.
type Node = (String, PathBuf);

/// The container's own cgroups that are there.
fn directories(record: &Record) -> Vec<Node> {
    let of_line = |line: &String| {
        let list = line.split(':').nth(1)?.to_owned();
        Some((list, directory(line).filter(|path| path.is_dir())?))
    };
    record.cgroups.iter().filter_map(of_line).collect()
}

/// What controllers count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    cpu: Option<u64>,
    memory: Option<u64>,
    memory_limit: Option<u64>,
    pids: Option<u64>,
    pids_limit: Option<u64>,
}

fn counted(nodes: &[Node]) -> Counted {
    let unified = nodes.iter().find(|(list, _)| list.is_empty()).map(|(_, path)| path.as_path());
    let legacy = |controller: &str| {
        let carries = |(list, _): &&Node| list.split(',').any(|word| word == controller);
        nodes.iter().find(carries).map(|(_, path)| path.as_path())
    };
    let number = |node: Option<&Path>, file: &str| -> Option<u64> { read(node?, file)?.trim().parse().ok() };
    let line = |node: Option<&Path>, file: &str, key: &str| -> Option<u64> { keyed(&read(node?, file)?, key) };
    let (accounting, memory, pids) = (legacy("cpuacct"), legacy("memory"), legacy("pids"));
    let used = number(unified, "memory.current").or_else(|| number(memory, "memory.usage_in_bytes"));
    // The cache of files that nobody has looked at lately is memory that others can have.
    let cache =
        line(unified, "memory.stat", "inactive_file").or_else(|| line(memory, "memory.stat", "total_inactive_file"));
    let nanoseconds = || number(accounting, "cpuacct.usage").map(|time| time / 1000);
    // Version 1 has no word for "no limit": a number of almost 2^63.
    let legacy_limit = || number(memory, "memory.limit_in_bytes").filter(|limit| *limit < 1 << 60);
    Counted {
        cpu: line(unified, "cpu.stat", "usage_usec").or_else(nanoseconds),
        memory: used.map(|used| used.saturating_sub(cache.unwrap_or(0))),
        memory_limit: number(unified, "memory.max").or_else(legacy_limit),
        pids: number(unified, "pids.current").or_else(|| number(pids, "pids.current")),
        pids_limit: number(unified, "pids.max").or_else(|| number(pids, "pids.max")),
    }
}

fn read(node: &Path, file: &str) -> Option<String> {
    std::fs::read_to_string(node.join(file)).ok()
}

/// The number after `key` in a file of lines `KEY NUMBER`.
fn keyed(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

/// What a process has used, from /proc/PID/stat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Process {
    parent: i32,
    /// In clock ticks, with that of its children that were waited for.
    ticks: u64,
    threads: u64,
    /// Resident, in pages.
    pages: u64,
}

/// From the text of /proc/PID/stat (proc_pid_stat(5)); the name, which may hold anything, ends at the last parenthesis.
fn process(stat: &str) -> Option<Process> {
    // From field 3 on.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |field: usize| -> Option<u64> { fields.get(field.checked_sub(3)?)?.parse().ok() };
    let ticks = [14, 15, 16, 17].into_iter().filter_map(number).fold(0_u64, u64::saturating_add);
    Some(Process { parent: fields.get(1)?.parse().ok()?, ticks, threads: number(20)?, pages: number(24).unwrap_or(0) })
}

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    cpu: u64,
    memory: u64,
    pids: u64,
}

fn sums(records: &[Record]) -> Vec<Sum> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    // One that ends meanwhile is not there any more.
    let processes: HashMap<i32, Process> = numbers
        .filter_map(|pid| Some((pid, process(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)))
        .collect();
    let owners = owners(&processes, records);
    let setting = |name, usual| sysconf(name).ok().flatten().and_then(|n| u64::try_from(n).ok()).unwrap_or(usual);
    let (second, page) = (setting(SysconfVar::CLK_TCK, 100).max(1), setting(SysconfVar::PAGE_SIZE, 4096));
    let mut sums = vec![Sum::default(); records.len()];
    for (pid, process) in &processes {
        if let Some(Some(owner)) = owners.get(pid)
            && let Some(sum) = sums.get_mut(*owner)
        {
            sum.cpu = sum.cpu.saturating_add(process.ticks.saturating_mul(1_000_000) / second);
            sum.memory = sum.memory.saturating_add(process.pages.saturating_mul(page));
            sum.pids = sum.pids.saturating_add(process.threads);
        }
    }
    sums
}

/// To which of the containers each process belongs, by its place among `records`.
fn owners(processes: &HashMap<i32, Process>, records: &[Record]) -> HashMap<i32, Option<usize>> {
    let namespace = |pid: i32| -> Option<OsString> {
        std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok().map(PathBuf::into_os_string)
    };
    let namespaces: Vec<Option<OsString>> = records.iter().map(|record| namespace(record.pid)).collect();
    let mut owners: HashMap<i32, Option<usize>> = HashMap::new();
    for pid in processes.keys() {
        // Up to the first ancestor of which it is known, and down again.
        let (mut line, mut at) = (Vec::new(), *pid);
        let mut owner = loop {
            if let Some(known) = owners.get(&at) {
                break *known;
            }
            let Some(process) = processes.get(&at).filter(|_| !line.contains(&at)) else { break None };
            line.push(at);
            if let Some(number) = records.iter().position(|record| record.pid == at) {
                break Some(number);
            }
            at = process.parent;
        };
        for pid in line.into_iter().rev() {
            if owner.is_none()
                && let Some(own) = namespace(pid)
            {
                owner = namespaces.iter().position(|other| other.as_ref() == Some(&own));
            }
            owners.insert(pid, owner);
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_it_calls_itself() {
        let stat =
            "7 (a) R 9 9) S 3 7 7 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 5 0 12345 1000000 77 18446744073709551615";
        assert_eq!(process(stat), Some(Process { parent: 3, ticks: 100, threads: 5, pages: 77 }));
        assert_eq!(process("7 (x) S"), None);
        assert_eq!(process(""), None);
    }

    #[test]
    fn a_container_has_its_process_1_and_all_that_descend_from_it() {
        let of = |parent| Process { parent, ..Process::default() };
        // Pids that no process can have (the kernel's limit is 2^22), so that /proc says nothing about them.
        let base = 1 << 23;
        let processes: HashMap<i32, Process> = [(1, 0), (2, 1), (3, 2), (4, 3), (5, 1), (6, 0), (7, 8), (8, 7)]
            .map(|(pid, parent)| (base + pid, of(base + parent)))
            .into();
        let records = [Record::new("a", base + 2, 0), Record::new("b", base + 5, 0)];
        let owners = owners(&processes, &records);
        let found: Vec<Option<usize>> = (1..9).map(|pid| owners[&(base + pid)]).collect();
        assert_eq!(found, [None, Some(0), Some(0), Some(0), Some(1), None, None, None]);
    }

    #[test]
    fn controllers_of_both_versions_are_read() {
        let top = tempfile::tempdir().unwrap();
        let write = |node: &str, file: &str, text: &str| {
            std::fs::create_dir_all(top.path().join(node)).unwrap();
            std::fs::write(top.path().join(node).join(file), text).unwrap();
        };
        write("v2", "cpu.stat", "usage_usec 5000\nuser_usec 1\n");
        write("pids", "pids.current", "9\n");
        write("pids", "pids.max", "max\n");
        let node = |list: &str, name: &str| (list.to_owned(), top.path().join(name));
        let nodes = [node("", "v2"), node("pids", "pids"), node("name=systemd", "v2")];
        let wanted = Counted { cpu: Some(5000), pids: Some(9), ..Counted::default() };
        assert_eq!(counted(&nodes), wanted);
        write("v2", "memory.current", "1000\n");
        write("v2", "memory.max", "2000\n");
        write("v2", "memory.stat", "anon 1\ninactive_file 300\n");
        write("v2", "pids.current", "3\n");
        write("v2", "pids.max", "20\n");
        let wanted = Counted {
            cpu: Some(5000),
            memory: Some(700),
            memory_limit: Some(2000),
            pids: Some(3),
            pids_limit: Some(20),
        };
        assert_eq!(counted(&nodes), wanted);
        write("v1", "cpuacct.usage", "7000000\n");
        write("v1", "memory.usage_in_bytes", "1000\n");
        write("v1", "memory.limit_in_bytes", "9223372036854771712\n");
        let nodes = [node("cpu,cpuacct", "v1"), node("memory", "v1")];
        assert_eq!(counted(&nodes), Counted { cpu: Some(7000), memory: Some(1000), ..Counted::default() });
    }
}
