//! Containers of `spawn hold` and `spawn go` in the run state.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::Trial;
use tests::call::Running;

use crate::background::{spawn, told};
use crate::case::{Case, EV, RUNTIME, both, command_line, once, processes, wait_for};

/// Handles SIGTERM.
const POLITE: &str = "trap \"exit 3\" TERM; while :; do sleep 0.05; done";

/// Starts the pipeline around `script`, of the container `h`, and waits until that runs.
#[track_caller]
fn pipeline(case: &mut Case<'_>, script: &str) -> Running {
    let text = format!("spawn hold --name h {EV} -- /bin/sh -c '{script}' | idmap | spawn go");
    let running = case.call("/bin/sh").args(["-c", &text]).start();
    wait_for("the container", || told(case, &["ls", "-f"]).contains("h    RUNNING").then_some(()));
    running
}

/// The process of this world whose command line begins with `words`.
fn process(words: &str) -> Pid {
    wait_for(words, || processes().into_iter().find(|pid| command_line(*pid).starts_with(words)).map(Pid::from_raw))
}

pub fn trials() -> Vec<Trial> {
    [
        both(
            "a container of hold and go is in the run state: ls, info, exec, top, wait, kill and stop know it",
            |case| {
                let running = pipeline(case, POLITE);
                let info = told(case, &["info", "h"]);
                assert!(
                    info.contains(&format!("{}, in the foreground", process("spawn hold "))) && info.contains(EV),
                    "{info}"
                );
                assert_eq!(
                    told(
                        case,
                        &["exec", "h", "--", "/bin/sh", "-c", "id -u; hostname; readlink /proc/1/ns/net | wc -l"]
                    ),
                    "0\nh\n1\n"
                );
                assert!(told(case, &["top", "-d", "0.01"]).contains("\nh "));
                let (code, _, text) = spawn(case, &["restart", "h"]);
                assert!(code == Some(71) && text.contains("`spawn hold`") && text.matches('\n').count() == 1, "{text}");
                // Asked for in vain: it runs as before.
                assert!(told(case, &["ls", "-f"]).contains("h    RUNNING"));
                let (code, _, text) = spawn(case, &["run", "-d", "--name", "h", EV, "--", "/bin/true"]);
                assert!(code == Some(125) && text.contains("a container called h runs already"), "{text}");
                let taken = case.pipeline(&format!("spawn hold --name h {EV} -- /bin/true | idmap | spawn go"));
                assert!(taken.text().contains("a container called h runs already"), "{}", taken.text());
                let waiting = case.spawn(&["wait", "h"]).start();
                assert!(told(case, &["stop", "h"]).starts_with("h: ended by SIGTERM after "));
                assert_eq!(waiting.finish(case.world).out(), "3\n");
                running.finish(case.world).assert_code(3, "the status of go");
                case.nothing_left("stop");
                let running = pipeline(case, POLITE);
                told(case, &["kill", "h"]);
                running.finish(case.world).assert_code(137, "the status of go");
                case.nothing_left("kill");
            },
        ),
        both(
            "the name of a container of hold is free as soon as go has exited, whatever became of the start",
            |case| {
                for _ in 0..20 {
                    for (stages, code) in [("| idmap | spawn go", 7), ("| sed 's/$/ failed=x:3/' | spawn go", 125)] {
                        let outcome =
                            case.pipeline(&format!("spawn hold --name h {EV} -- /bin/sh -c 'exit 7' {stages}"));
                        outcome.assert_code(code, &outcome.text());
                    }
                }
                case.nothing_left("many of one name");
            },
        ),
        once("a container that is held is STARTING: it cannot be entered yet, and stop gives it up", |case| {
            let outcome =
                case.pipeline(&format!("spawn hold --timeout 60 --name h {EV} -- /bin/true 2>/tmp/holder.err"));
            outcome.assert_code(0, &outcome.text());
            assert!(told(case, &["ls", "-f"]).contains("h    STARTING"));
            let (code, _, text) = spawn(case, &["exec", "h", "--", "/bin/true"]);
            assert!(code == Some(125) && text.contains("h has not started yet"), "{text}");
            let (code, _, _) = spawn(case, &["wait", "-t", "0.1", "-s", "running", "h"]);
            assert_eq!(code, Some(75));
            assert_eq!(told(case, &["stop", "h"]), "h: killed before it had started\n");
            case.nothing_left("a held container that was stopped");
            assert!(fs::read_to_string("/tmp/holder.err").expect("said").contains("has ended"));
        }),
        both(
            "of a killed go or a killed holder the next command leaves nothing, even when process 1 outlives it",
            |case| {
                for script in ["exec sleep 1000", "exec su ada -c \"exec sleep 1000\""] {
                    for victim in ["spawn go ", "spawn hold "] {
                        let running = pipeline(case, script);
                        process("sleep 1000");
                        kill(process(victim), Signal::SIGKILL).expect("kill");
                        wait_for("the end of the supervisor", || {
                            (!processes().into_iter().any(|pid| command_line(pid).starts_with("spawn "))).then_some(())
                        });
                        assert_eq!(told(case, &["ls"]), "", "{victim}: {script}");
                        // The shell has been reaped as an orphan is.
                        let _ = running.gone(0, case.world);
                        case.nothing_left(victim);
                    }
                }
                // Of one that has not been told to go there is a directory more.
                case.pipeline(&format!("spawn hold --timeout 60 --name h {EV} -- /bin/true 2>/dev/null"))
                    .assert_code(0, "hold");
                kill(process("spawn hold "), Signal::SIGKILL).expect("kill");
                wait_for("its end", || processes().is_empty().then_some(()));
                assert_eq!(fs::read_dir(format!("{RUNTIME}/spawn")).expect("run state").count(), 2);
                assert_eq!(told(case, &["ls"]), "");
                case.nothing_left("a killed holder");
            },
        ),
        once("a container of hold that reboots has ended: the pipeline is not run again", |case| {
            let outcome =
                case.pipeline(&format!("spawn hold {EV} -- /bin/sh -c 'reboot -f; sleep 10' | idmap | spawn go"));
            outcome.assert_code(129, &outcome.text());
            case.nothing_left("reboot");
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}
