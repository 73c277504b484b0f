//! `top`.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use serde::Serialize;

use super::cli::{Sort, Top};
use super::end::say;
use super::list::columns;
use super::live;
use super::usage::{self, Usage};
use crate::console::{make_raw, restore_terminal};
use crate::failure::{Failure, Outcome, words};
use crate::state::{self, Record};
use crate::supervise::{Signals, time_left};
use crate::{ambient, sys};

/// Between two looks on a terminal.
const USUAL: Duration = Duration::from_secs(2);
/// Between the two looks of one table.
const SHORT: Duration = Duration::from_millis(500);

/// The screen beside the usual one, without the cursor; and back.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";
/// ^C and ^D, as a terminal in raw mode gives them.
const ENDS: [u8; 4] = [b'q', b'Q', 3, 4];

/// A container, and the keys of `--json`.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// Of one processor.
    cpu_percent: f64,
    /// Microseconds.
    cpu_usec: u64,
    memory_bytes: u64,
    memory_limit_bytes: Option<u64>,
    pids: u64,
    pids_limit: Option<u64>,
    /// Where the numbers are from: `cgroup`, or `processes`, over which they are summed.
    cpu_from: &'static str,
    memory_from: &'static str,
    pids_from: &'static str,
}

/// One look at all of them.
struct Look {
    at: Instant,
    all: Vec<(Record, Usage)>,
}

impl Look {
    fn take(names: &[String]) -> Outcome<Self> {
        let mut records = state::all()?;
        if !names.is_empty() {
            records.retain(|record| names.contains(&record.name));
        }
        let usage = usage::of(&records);
        Ok(Self { at: Instant::now(), all: records.into_iter().zip(usage).collect() })
    }

    /// What has been used since `before`.
    fn rows(&self, before: &Self, sort: Sort) -> Vec<Row> {
        let time = self.at.saturating_duration_since(before.at).as_micros().max(1);
        // A container that has been started again meanwhile is another.
        let earlier: HashMap<(&str, u64), u64> =
            before.all.iter().map(|(record, usage)| ((record.name.as_str(), record.start), usage.cpu)).collect();
        let from = |cgroup: bool| if cgroup { "cgroup" } else { "processes" };
        let mut rows: Vec<Row> = self
            .all
            .iter()
            .map(|(record, usage)| {
                let used = earlier.get(&(record.name.as_str(), record.start)).map(|old| usage.cpu.saturating_sub(*old));
                let [cpu, memory, pids] = usage.from_cgroup;
                Row {
                    name: record.name.clone(),
                    cpu_percent: percent(used.unwrap_or(0), time),
                    cpu_usec: usage.cpu,
                    memory_bytes: usage.memory,
                    memory_limit_bytes: usage.memory_limit,
                    pids: usage.pids,
                    pids_limit: usage.pids_limit,
                    cpu_from: from(cpu),
                    memory_from: from(memory),
                    pids_from: from(pids),
                }
            })
            .collect();
        // They come sorted by name, and a stable sort keeps that among equals.
        match sort {
            Sort::Name => {}
            Sort::Cpu => rows.sort_by(|a, b| b.cpu_percent.total_cmp(&a.cpu_percent)),
            Sort::Memory => rows.sort_by_key(|row| std::cmp::Reverse(row.memory_bytes)),
            Sort::Pids => rows.sort_by_key(|row| std::cmp::Reverse(row.pids)),
        }
        rows
    }
}

/// With one digit after the point.
fn percent(used: u64, time: u128) -> f64 {
    let thousandths = u128::from(used).saturating_mul(1000) / time;
    f64::from(u32::try_from(thousandths).unwrap_or(u32::MAX)) / 10.0
}

/// `spawn top`.
///
/// # Errors
/// When a container that is named does not run, or the run state cannot be read.
pub fn top(options: &Top) -> Outcome<u8> {
    for name in &options.names {
        live(name)?;
    }
    let usable = nix::unistd::isatty(std::io::stdout()).unwrap_or(false)
        && ambient::variable("TERM").is_some_and(|name| name != "dumb");
    if options.once || options.json || !usable {
        let before = Look::take(&options.names)?;
        std::thread::sleep(options.delay.unwrap_or(SHORT));
        let rows = Look::take(&options.names)?.rows(&before, options.sort);
        if options.json {
            say(&serde_json::to_string_pretty(&rows).unwrap_or_default());
        } else {
            table(&rows).iter().for_each(|line| say(line));
        }
        return Ok(0);
    }
    let signals = Signals::block()?;
    let keys = std::io::stdin().as_fd().try_clone_to_owned().ok();
    let keys = keys.filter(|fd| nix::unistd::isatty(fd).unwrap_or(false));
    if let Some(keys) = &keys {
        make_raw(keys, true);
    }
    let screen = |bytes: &[u8]| {
        let mut out = std::io::stdout();
        out.write_all(bytes).and_then(|()| out.flush()).is_ok()
    };
    screen(ENTER);
    let result = watch(options, keys, &signals, &screen);
    screen(LEAVE);
    restore_terminal();
    result
}

/// Until somebody ends it, or all that were named have ended.
fn watch(options: &Top, mut keys: Option<OwnedFd>, signals: &Signals, screen: &dyn Fn(&[u8]) -> bool) -> Outcome<u8> {
    let delay = options.delay.unwrap_or(USUAL);
    let mut before = Look::take(&options.names)?;
    // Something is to be seen at once; CPU% is right from the second picture on, which comes soon.
    let mut next = Instant::now() + SHORT.min(delay);
    let mut lines = picture(&before.rows(&before, options.sort), delay);
    loop {
        if !screen(&cut(&lines, window())) {
            return Ok(0);
        }
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if let Some(keys) = &keys {
            fds.push(PollFd::new(keys.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, time_left(Some(next))) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(Failure::own(format!("cannot wait for a key: {}", words(errno)))),
            Ok(_) => {}
        }
        let typed = fds.get(1).is_some_and(|fd| fd.any().unwrap_or(false));
        drop(fds);
        while let Some(signal) = signals.next() {
            match signal {
                // A new size: drawn again at once.
                libc::SIGWINCH => {}
                libc::SIGINT => return Ok(0),
                _ => return Ok(u8::try_from(signal).unwrap_or(0).saturating_add(128)),
            }
        }
        if typed && let Some(fd) = &keys {
            let mut bytes = [0_u8; 64];
            match sys::read(fd.as_raw_fd(), &mut bytes) {
                Ok(0) | Err(Errno::EIO) => keys = None,
                Ok(length) if bytes.iter().take(length).any(|byte| ENDS.contains(byte)) => return Ok(0),
                _ => {}
            }
        }
        if Instant::now() >= next {
            let look = Look::take(&options.names)?;
            if look.all.is_empty() && !options.names.is_empty() {
                return Ok(0);
            }
            lines = picture(&look.rows(&before, options.sort), delay);
            before = look;
            next = Instant::now() + delay;
        }
    }
}

/// Rows and columns of the terminal.
fn window() -> (usize, usize) {
    let [a, b, c, d] = sys::window_size(std::io::stdout().as_fd()).unwrap_or_default();
    let [rows, columns] = [[a, b], [c, d]].map(|bytes| usize::from(u16::from_ne_bytes(bytes)));
    (if rows == 0 { 24 } else { rows }, if columns == 0 { 80 } else { columns })
}

fn picture(rows: &[Row], delay: Duration) -> Vec<String> {
    let plural = if rows.len() == 1 { "" } else { "s" };
    let head = format!("{} container{plural}, every {} s; q ends", rows.len(), delay.as_secs_f64());
    [head, String::new()].into_iter().chain(table(rows)).collect()
}

/// What fits into a window, from its upper left corner on; the rest of it is cleared.
fn cut(lines: &[String], (rows, columns): (usize, usize)) -> Vec<u8> {
    let shown = lines.iter().take(rows).map(|line| line.chars().take(columns).collect::<String>() + "\x1b[K");
    format!("\x1b[H{}\x1b[J", shown.collect::<Vec<_>>().join("\r\n")).into_bytes()
}

fn table(rows: &[Row]) -> Vec<String> {
    let head = ["NAME", "CPU%", "TIME", "MEM", "MEMLIMIT", "PIDS", "PIDSLIMIT"].map(str::to_owned);
    let cells = rows.iter().map(|row| {
        [
            row.name.clone(),
            format!("{:.1}", row.cpu_percent),
            time(row.cpu_usec),
            bytes(row.memory_bytes),
            row.memory_limit_bytes.map_or_else(|| "-".to_owned(), bytes),
            row.pids.to_string(),
            row.pids_limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string()),
        ]
    });
    columns(&std::iter::once(head).chain(cells).collect::<Vec<_>>())
}

/// Minutes, seconds and hundredths, as top(1) has them; from an hour on without those.
fn time(microseconds: u64) -> String {
    let (seconds, hundredths) = (microseconds / 1_000_000, microseconds / 10_000 % 100);
    match seconds / 3600 {
        0 => format!("{}:{:02}.{hundredths:02}", seconds / 60, seconds % 60),
        hours => format!("{hours}:{:02}:{:02}", seconds / 60 % 60, seconds % 60),
    }
}

/// With three digits or four, in powers of 1024.
fn bytes(number: u64) -> String {
    let mut scaled = number;
    let mut rest = 0;
    for unit in ["B", "K", "M", "G", "T"] {
        if scaled < 1024 {
            let tenths = rest * 10 / 1024;
            return if unit == "B" || scaled >= 100 {
                format!("{scaled}{unit}")
            } else {
                format!("{scaled}.{tenths}{unit}")
            };
        }
        (scaled, rest) = (scaled / 1024, scaled % 1024);
    }
    format!("{scaled}P")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown: Vec<String> =
            [0, 1023, 1024, 1536, 102_400, 1 << 20, (1 << 30) - 1, 5 << 30].into_iter().map(bytes).collect();
        assert_eq!(shown, ["0B", "1023B", "1.0K", "1.5K", "100K", "1.0M", "1023M", "5.0G"]);
        assert_eq!([0, 1_234_567, 83_000_000, 3_723_000_000].map(time), ["0:00.00", "0:01.23", "1:23.00", "1:02:03"]);
        assert!((percent(150_000, 1_000_000) - 15.0).abs() < 1e-9);
    }

    #[test]
    fn cpu_is_the_difference_of_two_looks_at_the_same_container() {
        let begin = Instant::now();
        let look = |at: u64, all: &[(&str, u64, u64)]| Look {
            at: begin + Duration::from_secs(at),
            all: all
                .iter()
                .map(|(name, start, cpu)| (Record::new(name, 1, *start), Usage { cpu: *cpu, ..Usage::default() }))
                .collect(),
        };
        let before = look(0, &[("a", 1, 0), ("b", 1, 500_000), ("gone", 1, 9)]);
        let after = look(2, &[("a", 1, 1_000_000), ("b", 2, 700_000), ("new", 1, 5)]);
        let rows = |sort| -> Vec<(String, String)> {
            let rows = after.rows(&before, sort);
            rows.into_iter().map(|row| (row.name, format!("{:.1}", row.cpu_percent))).collect()
        };
        let pairs = |list: [(&str, &str); 3]| list.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec();
        assert_eq!(rows(Sort::Name), pairs([("a", "50.0"), ("b", "0.0"), ("new", "0.0")]));
        assert_eq!(rows(Sort::Cpu), pairs([("a", "50.0"), ("b", "0.0"), ("new", "0.0")]));
    }

    #[test]
    fn a_picture_is_as_large_as_the_window() {
        let lines: Vec<String> = (0..30).map(|n| format!("{n:0100}")).collect();
        let text = String::from_utf8(cut(&lines, (5, 20))).unwrap();
        assert_eq!((text.matches("\r\n").count(), text.matches('0').count()), (4, 100));
    }
}
