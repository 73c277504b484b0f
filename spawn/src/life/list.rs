//! `ls` and `info`.

#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::cli::Names;
use super::end::say;
use super::records;
use crate::config::Config;
use crate::container::{data_directory, is_container};
use crate::failure::Outcome;
use crate::state::{self, Record};

/// What is known of a container, and the keys of `--json`.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// STARTING, RUNNING, STOPPING or STOPPED.
    state: String,
    autostart: bool,
    groups: Vec<String>,
    ipv4: Vec<Ipv4Addr>,
    ipv6: Vec<Ipv6Addr>,
    unprivileged: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    supervisor: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detached: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    init: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<Vec<String>>,
    /// Seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rootfs: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<String>,
    /// Whether the configuration is another one than that of the start.
    config_changed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    console_log: Option<String>,
}

/// What the configuration says about starts; of a container without one, nothing.
#[derive(Debug, Default)]
struct Settings {
    auto: bool,
    groups: Vec<String>,
}

impl Row {
    fn live(record: Record) -> Self {
        let Settings { auto, groups } = settings(record.config.as_ref().map(Path::new));
        let (ipv4, ipv6) = addresses(record.pid);
        let config_changed = record.config.as_ref().is_some_and(|path| digest(path) != record.digest);
        Self {
            name: record.name,
            state: record.state.to_string(),
            autostart: auto,
            groups,
            ipv4,
            ipv6,
            unprivileged: true,
            pid: Some(record.pid),
            supervisor: Some(record.supervisor),
            detached: Some(record.detached),
            init: Some(record.init),
            command: Some(record.command),
            since: Some(record.since),
            rootfs: Some(record.rootfs),
            config: record.config,
            config_changed,
            console_log: record.log,
        }
    }

    fn stopped(name: String, rootfs: PathBuf) -> Self {
        let Settings { auto, groups } = settings(config_of(&name).as_deref());
        Self {
            name,
            state: "STOPPED".to_owned(),
            autostart: auto,
            groups,
            ipv4: Vec::new(),
            ipv6: Vec::new(),
            unprivileged: true,
            pid: None,
            supervisor: None,
            detached: None,
            init: None,
            command: None,
            since: None,
            rootfs: Some(rootfs.to_string_lossy().into_owned()),
            config: None,
            config_changed: false,
            console_log: None,
        }
    }

    /// NAME STATE AUTOSTART GROUPS IPV4 IPV6 UNPRIVILEGED, as lxc-ls has them.
    fn cells(&self) -> [String; 7] {
        fn list<T: ToString>(all: &[T]) -> String {
            if all.is_empty() { "-".to_owned() } else { all.iter().map(T::to_string).collect::<Vec<_>>().join(", ") }
        }
        let changed = if self.config_changed { " (config changed)" } else { "" };
        [
            self.name.clone(),
            format!("{}{changed}", self.state),
            u8::from(self.autostart).to_string(),
            list(&self.groups),
            list(&self.ipv4),
            list(&self.ipv6),
            self.unprivileged.to_string(),
        ]
    }
}

/// The SHA-256 of a file in hexadecimal.
#[must_use]
pub fn digest(path: &str) -> Option<String> {
    let bytes = std::fs::read(path).ok()?;
    Some(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

fn settings(file: Option<&Path>) -> Settings {
    let Some(file) = file else { return Settings::default() };
    // A configuration that cannot be read is told of when it is started.
    let Ok(config) = Config::load(Some(file), &[]) else { return Settings::default() };
    Settings { auto: config.start.auto, groups: config.groups }
}

/// The configuration of a container of the data directory, if it has one.
#[must_use]
pub fn config_of(name: &str) -> Option<PathBuf> {
    Some(data_directory()?.join(name).join("config")).filter(|path| path.is_file())
}

/// Whether `name` is a container of the data directory.
#[must_use]
pub fn is_stopped_container(name: &str) -> bool {
    data_directory().is_some_and(|directory| is_container(&directory.join(name)))
}

/// The containers in `directory`, the data directory unless it is given: name and path, by name.
#[must_use]
pub fn containers_in(directory: Option<&Path>) -> Vec<(String, PathBuf)> {
    let Some(directory) = directory.map(Path::to_owned).or_else(data_directory) else { return Vec::new() };
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let named = entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()));
    let mut all: Vec<_> = named.filter(|(name, path)| crate::cli::is_name(name) && is_container(path)).collect();
    all.sort();
    all
}

/// The addresses of the network namespace of a process, without those of the loopback and the link-local ones.
fn addresses(pid: i32) -> (Vec<Ipv4Addr>, Vec<Ipv6Addr>) {
    let read = |name| std::fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
    (ipv4(&read("fib_trie")), ipv6(&read("if_inet6")))
}

/// From /proc/net/fib_trie, where a local address is a leaf with a line `/32 host LOCAL` below it.
fn ipv4(trie: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut leaf = None;
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) = leaf.take()
            && !address.is_loopback()
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

/// From /proc/net/if_inet6: address, index, prefix, scope (00: global), flags, name.
fn ipv6(table: &str) -> Vec<Ipv6Addr> {
    let of_line = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [address, _, _, scope, ..] = words[..] else { return None };
        (scope == "00").then(|| u128::from_str_radix(address, 16).ok().map(Ipv6Addr::from_bits)).flatten()
    };
    table.lines().filter_map(of_line).collect()
}

/// `spawn ls`.
///
/// # Errors
/// When the run state cannot be read.
pub fn ls(fancy: bool, json: bool, running: bool) -> Outcome<u8> {
    let mut rows: Vec<Row> = state::all()?.into_iter().map(Row::live).collect();
    if !running {
        for (name, path) in containers_in(None) {
            if !rows.iter().any(|row| row.name == name) {
                rows.push(Row::stopped(name, path.join("rootfs")));
            }
        }
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    if json {
        say(&serde_json::to_string_pretty(&rows).unwrap_or_default());
    } else if fancy {
        let head = ["NAME", "STATE", "AUTOSTART", "GROUPS", "IPV4", "IPV6", "UNPRIVILEGED"].map(str::to_owned);
        let cells: Vec<[String; 7]> = std::iter::once(head).chain(rows.iter().map(Row::cells)).collect();
        columns(&cells).iter().for_each(|line| say(line));
    } else {
        rows.iter().for_each(|row| say(&row.name));
    }
    Ok(0)
}

/// Lines of columns that are as wide as their widest cell.
#[must_use]
pub fn columns<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join(" ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// `spawn info`.
///
/// # Errors
/// When one does not run.
pub fn info(names: &Names, json: bool) -> Outcome<u8> {
    let rows: Vec<Row> = records(names)?.into_iter().map(Row::live).collect();
    if json {
        say(&serde_json::to_string_pretty(&rows).unwrap_or_default());
        return Ok(0);
    }
    for row in &rows {
        let mut lines = vec![("Name", row.name.clone()), ("State", row.state.clone())];
        let mut add = |key, value: Option<String>| lines.extend(value.map(|value| (key, value)));
        add("PID", row.pid.map(|pid| pid.to_string()));
        let place = if row.detached == Some(true) { "background" } else { "foreground" };
        add("Supervisor", row.supervisor.map(|pid| format!("{pid}, in the {place}")));
        add("Rootfs", row.rootfs.clone());
        add("Command", row.command.as_ref().map(|words| words.join(" ")));
        add("Running for", row.since.map(age));
        add("IPv4", (!row.ipv4.is_empty()).then(|| row.cells()[4].clone()));
        add("IPv6", (!row.ipv6.is_empty()).then(|| row.cells()[5].clone()));
        let changed = if row.config_changed { ", changed since the start" } else { "" };
        add("Configuration", row.config.as_ref().map(|path| format!("{path}{changed}")));
        add("Console log", row.console_log.clone());
        lines
            .iter()
            .for_each(|(key, value)| say(&format!("{:<15}{}", format!("{key}:"), crate::failure::one_line(value))));
    }
    Ok(0)
}

fn age(since: u64) -> String {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs());
    let seconds = now.saturating_sub(since);
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_are_found_in_the_kernels_tables() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 10.0.3.0\n        /24 link UNICAST\n\
            Local:\n  +-- 0.0.0.0/0 3 0 5\n        |-- 10.0.3.5\n           /32 host LOCAL\n        |-- 10.0.3.255\n           /32 link BROADCAST\n\
            \x20    |-- 127.0.0.0\n        /8 host LOCAL\n        |-- 127.0.0.1\n           /32 host LOCAL\n";
        assert_eq!(ipv4(trie), [Ipv4Addr::new(10, 0, 3, 5)]);
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
            fd000003000000000000000000000005 02 40 00 80     eth0\nfe80000000000000000002fffe000001 02 40 20 80     eth0\nx\n";
        assert_eq!(ipv6(table), ["fd00:3::5".parse::<Ipv6Addr>().unwrap()]);
        assert!(ipv4("").is_empty() && ipv6("").is_empty());
    }
}
