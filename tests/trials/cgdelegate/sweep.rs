//! Killed or failed at any system call, the next call puts everything right.

use super::fixture::{Cgroups, alice, call, place, processes};
use std::fs;
use tests::tracer::{self, Stop};
use tests::{ALICE, Target, Trial, World};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once("SIGKILL at any system call of run leaves nothing that one call does not remove", kill_run),
        Trial::once("SIGKILL at any system call of attach moves no stranger and loses nothing", kill_attach),
        Trial::once("SIGKILL at any system call of delete leaves nothing that one call does not remove", kill_delete),
        Trial::once("an error of any system call of run, create and attach is told, and undone", faults),
    ]
}

const LINE: &str = "alice v1:cpuset,name=systemd 1";

/// Kills the call at its `nth` stop after it has entered; `None` when it has not so many.
fn kill_at(world: &mut World, words: &str, nth: usize) -> Option<()> {
    let running = call(world, ALICE, words).start_traced();
    let pid = running.pid();
    for _ in 0..nth {
        match tracer::next(pid) {
            Stop::Gone(status) => {
                let _ = running.gone(status, world);
                return None;
            }
            // The command: what we test has ended.
            Stop::Exec => {
                let _ = super::fixture::end(running, world);
                return None;
            }
            _ => {}
        }
    }
    let _ = super::fixture::end(running, world);
    Some(())
}

/// After a kill the quota of one is free at once, whatever name is asked for, and a prune leaves nothing.
fn is_whole_again(world: &mut World, cgroups: &Cgroups, nth: usize) {
    if nth.is_multiple_of(2) {
        alice(world, "run other -- true").assert_code(0, &format!("the next call after a kill at {nth}"));
    }
    alice(world, "prune").assert_code(0, &format!("prune after a kill at {nth}"));
    assert!(cgroups.directories().is_empty(), "after a kill at {nth}: {:?}", cgroups.directories());
}

fn kill_run(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let mut nth = 1;
    while kill_at(world, "run x -- true", nth).is_some() {
        is_whole_again(world, &cgroups, nth);
        nth += if nth > 300 { 1 } else { 3 };
    }
    assert!(nth > 300, "only {nth} stops: that was no whole call");
}

fn kill_delete(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let mut nth = 1;
    loop {
        alice(world, "create x").assert_silent("create");
        if kill_at(world, "delete x", nth).is_none() {
            break;
        }
        // Either nothing has happened yet, or what is left is stale.
        if alice(world, "list").out().contains(" create idle ") {
            alice(world, "delete x").assert_silent("delete");
        }
        is_whole_again(world, &cgroups, nth);
        nth += 5;
    }
    assert!(nth > 100, "only {nth} stops: that was no whole call");
}

fn kill_attach(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let mut nth = 200;
    let mut inside = 0;
    loop {
        let target = Target::without_user_namespace(ALICE);
        let done = kill_at(world, &format!("attach x --pid {}", target.pid()), nth);
        let now = place(target.pid(), "v2");
        assert!(now == "/" || now == format!("/{}/cgd-1001/x", cgroups.base), "{now}");
        let stat = fs::read_to_string(format!("/proc/{}/stat", target.pid())).expect("stat");
        assert!(!stat.contains(") t") && !stat.contains(") Z"), "it goes on: {stat}");
        for directory in cgroups.directories() {
            let strangers: Vec<i32> =
                processes(&directory).into_iter().filter(|pid| *pid != target.pid().as_raw()).collect();
            assert!(strangers.is_empty(), "{strangers:?} in {}", directory.display());
        }
        if now != "/" {
            inside += 1;
            // Whoever lives in it keeps it: it counts.
            alice(world, "create other").assert_code(77, "the quota of one is used");
        }
        drop(target);
        is_whole_again(world, &cgroups, nth);
        if done.is_none() {
            break;
        }
        nth += 5;
    }
    assert!(nth > 300, "only {nth} stops: that was no whole call");
    assert!(inside > 1, "it was never killed on its way");
}

/// strace makes the `nth` call of one system call fail.
fn faults(world: &mut World) {
    if !std::path::Path::new("/usr/bin/strace").exists() {
        tests::world::ignore("needs strace");
    }
    let cgroups = Cgroups::new(world, LINE);
    let program = world.program("cgdelegate");
    let mut injected = 0;
    for (verb, tail) in [("run x", "-- true"), ("create x", ""), ("attach x", "--pid")] {
        for (system_call, error) in [
            ("mkdirat", "ENOMEM"),
            ("openat2", "EMFILE"),
            ("openat", "ENFILE"),
            ("write", "EIO"),
            ("fchmodat", "EPERM"),
            ("fchownat", "EPERM"),
            ("fchown", "EPERM"),
            ("fchmod", "EPERM"),
            ("fsetxattr", "ENOSPC"),
            ("fgetxattr", "EIO"),
            ("setresuid", "EAGAIN"),
            ("capset", "EPERM"),
            ("flock", "EINTR"),
            ("getdents64", "ENOMEM"),
            ("ptrace", "ESRCH"),
        ] {
            for nth in 1..60 {
                let target = Target::without_user_namespace(ALICE);
                let log = "/tmp/strace";
                let mut call = tests::Call::new("/usr/bin/strace")
                    .env("PATH", "/usr/bin")
                    .words(&format!(
                        "-u alice -o {log} -e trace={system_call} -e inject={system_call}:error={error}:when={nth}"
                    ))
                    .arg(&program)
                    .words(verb)
                    .words(tail);
                if tail == "--pid" {
                    call = call.arg(target.pid().to_string());
                }
                let outcome = call.run(world);
                let trace = fs::read_to_string(log).expect("strace's log");
                let hit = trace.contains("(INJECTED)");
                let what = format!("{verb}: {error} of {system_call} {nth}: {} {trace}", outcome.text());
                assert!(outcome.signal().is_none(), "{what}");
                if outcome.code() == Some(0) {
                    // The error was one that may be let go, and then everything was done.
                    let kind = verb.split(' ').next().expect("verb");
                    let list = alice(world, "list").out();
                    assert!(list.contains(&format!("x 1001 {kind} ")), "{list} {what}");
                } else {
                    // One line of ours, or of the way back from root, which ends the program on the spot.
                    assert!(
                        outcome.text().contains("cgdelegate: ") || outcome.text().contains("refusing to go on"),
                        "{what}"
                    );
                }
                for directory in cgroups.directories() {
                    let strangers: Vec<i32> =
                        processes(&directory).into_iter().filter(|pid| *pid != target.pid().as_raw()).collect();
                    assert!(strangers.is_empty(), "{strangers:?} {what}");
                }
                drop(target);
                if alice(world, "list").out().contains(" create idle ") {
                    alice(world, "delete x").assert_silent("delete");
                }
                alice(world, "prune").assert_code(0, &what);
                assert!(cgroups.directories().is_empty(), "{:?} after {what}", cgroups.directories());
                injected += usize::from(hit);
                if !hit {
                    break;
                }
            }
        }
    }
    assert!(injected > 100, "only {injected} errors were injected");
}
