//! `spawn top`.

use tests::Trial;

use crate::background::{pty, spawn, start, told};
use crate::case::{Case, both, once, wait_for};

/// The rows of `spawn top --json`.
#[track_caller]
fn rows(case: &mut Case<'_>, words: &[&str]) -> Vec<serde_json::Value> {
    let text = told(case, &[&["top", "--json"], words].concat());
    serde_json::from_str::<serde_json::Value>(&text).expect("JSON").as_array().expect("an array").clone()
}

fn number(row: &serde_json::Value, key: &str) -> u64 {
    row[key].as_u64().unwrap_or_else(|| panic!("{key}: {row}"))
}

pub fn trials() -> Vec<Trial> {
    [
        both("top tells what each container uses: its processes, however they came in, and no others", |case| {
            let busy = "echo ready; (while :; do :; done) & trap 'kill %1; exit 0' TERM; while :; do sleep 0.05; done";
            start(case, "busy", busy);
            let idle = "trap 'exit 0' TERM; echo ready; read x";
            start(case, "idle", idle);
            let first = rows(case, &["-d", "0.3"]);
            assert_eq!(first.iter().map(|row| row["name"].as_str().expect("a name")).collect::<Vec<_>>(), ["busy", "idle"]);
            assert!(first[0]["cpu_percent"].as_f64() > Some(1.0), "{first:?}");
            assert!(number(&first[0], "cpu_usec") > 0 && number(&first[0], "memory_bytes") > 4096, "{first:?}");
            assert_eq!((first[1]["cpu_percent"].as_f64(), number(&first[1], "pids")), (Some(0.0), 1), "{first:?}");
            assert_eq!((first[1]["pids_from"].as_str(), first[1]["pids_limit"].as_u64()), (Some("processes"), None));
            // One that has come in by exec is no descendant of process 1; one with a pid namespace of its own is.
            let entered = case.spawn(&["exec", "idle", "--", "/bin/sleep", "1000"]).start();
            wait_for("the command", || (number(&rows(case, &["idle", "-d", "0.01"])[0], "pids") == 2).then_some(()));
            let nested = "unshare -p -f sleep 1000; true";
            let nested = case.spawn(&["exec", "idle", "--", "/bin/sh", "-c", nested]).start();
            wait_for("three more", || (number(&rows(case, &["idle", "-d", "0.01"])[0], "pids") == 5).then_some(()));
            let again = rows(case, &["--sort", "pids", "-d", "0.1"]);
            assert_eq!(again[0]["name"].as_str(), Some("idle"), "{again:?}");
            assert!(number(&again[1], "cpu_usec") > number(&first[0], "cpu_usec"), "{again:?}");
            let table = told(case, &["top", "-d", "0.1", "idle"]);
            let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_ascii_whitespace().collect()).collect();
            assert_eq!(lines[0].join(" "), "NAME CPU% TIME MEM MEMLIMIT PIDS PIDSLIMIT", "{table}");
            assert_eq!((lines.len(), lines[1][0], lines[1][4], lines[1][5]), (2, "idle", "-", "5"), "{table}");
            told(case, &["stop", "-t", "0", "--all"]);
            let _ = (entered.finish(case.world), nested.finish(case.world));
            assert!(rows(case, &["-d", "0.01"]).is_empty());
            let (code, _, text) = spawn(case, &["top", "idle"]);
            assert_eq!((code, text.as_str()), (Some(69), "spawn: there is no container idle: `spawn ls` lists them\n"));
            case.nothing_left("top");
        }),
        once("top on a terminal draws anew until q, ^C or the end of those that were named, and leaves all as it was", |case| {
            case.world.needs_tool("/usr/bin/script");
            pty();
            start(case, "c", "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done");
            for keys in ["q", "\\003"] {
                let script = format!(
                    "(sleep 2; printf '{keys}'; sleep 1) | TERM=vt100 script -qec 'stty rows 5 cols 40; spawn top -d 0.2; echo left $?; stty -a' /dev/null"
                );
                let out = case.pipeline(&script).out();
                assert!(out.matches("every 0.2 s; q ends").count() >= 3, "{keys}: {out:?}");
                let (screen, after) = out.split_once("\u{1b}[?1049l").expect("the usual screen is back");
                assert!(screen.contains("\u{1b}[?1049h") && screen.contains("\u{1b}[K\r\nc "), "{out:?}") ;
                // No line is wider than the terminal.
                assert!(!screen.contains("PIDSLIMIT") && screen.contains("NAME CPU%"), "{out:?}");
                assert!(!after.contains("-icanon") && !after.contains("-isig"), "{out:?}");
                assert!(after.contains("left 0") && after.contains("icanon"), "{out:?}");
            }
            let script = "(sleep 1; spawn stop c >&2; sleep 5) | TERM=vt100 script -qec 'spawn top c -d 0.2; echo left $?' /dev/null";
            assert!(case.pipeline(script).out().contains("left 0"));
            case.nothing_left("top on a terminal");
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}
