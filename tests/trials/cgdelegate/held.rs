//! While `attach` moves a process, the number of that process is nobody else's.

use super::fixture::{Cgroups, alice, call, end, owner, place, wait_until};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::FileExt as _;
use tests::call::Running;
use tests::tracer::{self, Stop};
use tests::{ALICE, BOB, Target, Trial, World};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once("the number of a process that is killed while attach moves it is not used again", killed),
        Trial::once("a process that is killed at any moment after its move has ended, and nothing else is said", dies),
        Trial::once("nor is it after a program that another of its threads has executed", executed),
        Trial::once("nor on the way into a cgroup of create's, nor when attach is killed then", existing),
        Trial::once("attach that is killed leaves the process running, with the signals that it was sent", let_go),
        Trial::once("a process with threads that come and go moves as a whole and goes on", threads),
        Trial::once("a process that is traced already is refused, and the message says by whom", traced),
        Trial::once("where the kernel forbids to trace, the message says why and what to do instead", forbidden),
        Trial::once("what lives in the staging cgroup of an earlier version is let be", old_staging),
        Trial::once("the number of a thread is refused", thread),
        Trial::once("a cgroup that was never handed over is not killed as a whole", unfinished),
    ]
}

const LINE: &str = "alice pids,v1:pids,v1:cpuset,v1:freezer,name=systemd 5 pids.max=200";

/// Tries to become a process of bob's with the number `pid`; whether that came about, and the process.
fn bob_with(pid: Pid) -> Option<Target> {
    for _ in 0..50 {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid.as_raw() - 1).to_string()).expect("ns_last_pid");
        let target = Target::without_user_namespace(BOB);
        if target.pid() == pid {
            return Some(target);
        }
    }
    None
}

/// Whether this stop is a write of `pid` into a file called cgroup.procs.
fn moves(tracee: Pid, stop: Stop, pid: Pid) -> bool {
    let Stop::Enter(number, arguments) = stop else { return false };
    let text = pid.to_string();
    if number != libc::SYS_write as u64 || arguments[2] != text.len() as u64 {
        return false;
    }
    let mut written = vec![0; text.len()];
    let memory = fs::File::open(format!("/proc/{tracee}/mem")).expect("mem");
    let path = fs::read_link(format!("/proc/{tracee}/fd/{}", arguments[0])).expect("fd");
    memory.read_exact_at(&mut written, arguments[1]).is_ok()
        && written == text.as_bytes()
        && path.ends_with("cgroup.procs")
}

/// Goes on until the call is about to move `pid` for the `nth` time; its status when it has ended before.
fn stop_at_move(running: &Running, pid: Pid, nth: usize) -> Result<(), i32> {
    let mut seen = 0;
    loop {
        let stop = tracer::next(running.pid());
        if let Stop::Gone(status) = stop {
            return Err(status);
        }
        if moves(running.pid(), stop, pid) {
            seen += 1;
            if seen == nth {
                return Ok(());
            }
        }
    }
}

fn to_the_end(running: Running, world: &mut World) -> tests::Outcome {
    loop {
        if let Stop::Gone(status) = tracer::next(running.pid()) {
            return running.gone(status, world);
        }
    }
}

/// How many writes move the process.
fn moves_in_all(cgroups: &Cgroups) -> usize {
    cgroups.mounted(&["v2", "pids", "cpuset", "freezer"]).len() + 1
}

/// Kills `pid` and tries to reap it, as its parent, and to get its number for bob: nothing of that works.
fn cannot_be_reaped(pid: Pid) {
    kill(pid, Signal::SIGKILL).expect("kill");
    wait_until("it is a zombie", || {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z"))
    });
    for _ in 0..20 {
        assert_eq!(waitpid(pid, Some(WaitPidFlag::WNOHANG)).expect("wait"), WaitStatus::StillAlive);
    }
    assert!(bob_with(pid).is_none(), "bob has the number");
}

fn killed(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    for nth in 1..=moves_in_all(&cgroups) {
        let target = Target::without_user_namespace(ALICE);
        let pid = target.pid();
        std::mem::forget(target);
        let running = call(world, ALICE, &format!("attach x --pid {pid}")).start_traced();
        stop_at_move(&running, pid, nth).expect("a move");
        cannot_be_reaped(pid);
        let outcome = to_the_end(running, world);
        outcome.assert_code(65, "it has ended");
        // The end of the call is the end of the hold.
        assert_eq!(waitpid(pid, Some(WaitPidFlag::WNOHANG)).expect("wait").pid(), Some(pid));
        let bobs = bob_with(pid).expect("now the number is free, or the trial shows nothing");
        assert_eq!(place(bobs.pid(), "v2"), "/");
        drop(bobs);
        alice(world, "prune").assert_code(0, "prune");
        assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
    }
}

fn dies(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let mut ended = 0;
    for later in 1.. {
        let target = Target::without_user_namespace(ALICE);
        let running = call(world, ALICE, &format!("attach x --pid {}", target.pid())).start_traced();
        stop_at_move(&running, target.pid(), moves_in_all(&cgroups)).expect("the last move");
        let mut gone = None;
        for _ in 0..later {
            if let Stop::Gone(status) = tracer::next(running.pid()) {
                gone = Some(status);
                break;
            }
        }
        if let Some(status) = gone {
            running.gone(status, world).assert_silent("a whole call");
            break;
        }
        // Not waited for: what /proc tells of a process that is ending is told here.
        kill(target.pid(), Signal::SIGKILL).expect("kill");
        let outcome = to_the_end(running, world);
        assert!([Some(0), Some(65)].contains(&outcome.code()), "{later}: {:?} {}", outcome.code(), outcome.text());
        ended += u32::from(outcome.code() == Some(65));
        drop(target);
        alice(world, "prune").assert_code(0, "prune");
    }
    assert!(ended > 3, "{ended}");
    alice(world, "prune").assert_code(0, "prune");
}

/// When this file is there, the second thread of [`with_executing_thread`] executes a program.
const ORDER: &str = "/tmp/order";

fn with_executing_thread() -> Target {
    let _ = fs::remove_file(ORDER);
    Target::with(|| {
        ALICE.become_user();
        std::thread::spawn(|| {
            while !std::path::Path::new(ORDER).exists() {
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
            let words = [c"sleep", c"1000"].map(std::borrow::ToOwned::to_owned);
            let _ = tests::sys::exec(c"/usr/bin/sleep", &words, &[]);
        });
    })
}

fn order() {
    fs::write(ORDER, "").expect("order");
}

fn executed(world: &mut World) {
    let _cgroups = Cgroups::new(world, LINE);
    // Ordered when attach has taken hold.
    let target = with_executing_thread();
    let pid = target.pid();
    let running = call(world, ALICE, &format!("attach x --pid {pid}")).start_traced();
    stop_at_move(&running, pid, 1).expect("a move");
    order();
    std::thread::sleep(std::time::Duration::from_millis(50));
    let command = |pid: Pid| fs::read_to_string(format!("/proc/{pid}/comm")).expect("comm");
    assert_ne!(command(pid).trim(), "sleep", "it runs while it is moved");
    let outcome = to_the_end(running, world);
    outcome.assert_silent("attach");
    wait_until("it goes on and has executed", || command(pid).trim() == "sleep");
    assert!(place(pid, "v2").ends_with("/x"));
    drop(target);
    // Ordered at each moment of the call: whoever executes keeps the number pinned, or the call ends.
    let (mut nth, mut held) = (150, 0);
    loop {
        let target = with_executing_thread();
        let pid = target.pid();
        let running = call(world, ALICE, &format!("attach x --pid {pid}")).start_traced();
        let mut gone = None;
        for _ in 0..nth {
            if let Stop::Gone(status) = tracer::next(running.pid()) {
                gone = Some(status);
                break;
            }
        }
        if let Some(status) = gone {
            running.gone(status, world).assert_silent("a whole call");
            break;
        }
        order();
        std::thread::sleep(std::time::Duration::from_millis(2));
        match stop_at_move(&running, pid, 1) {
            Ok(()) => {
                cannot_be_reaped(pid);
                std::mem::forget(target);
                let _ = end(running, world);
                held += 1;
            }
            // The moves are over, or it could not be held: what another thread takes over looks like an end for a moment.
            Err(status) => {
                let outcome = running.gone(status, world);
                assert!([Some(0), Some(65), Some(75)].contains(&outcome.code()), "{}", outcome.text());
                drop(target);
            }
        }
        let _ = waitpid(pid, None);
        alice(world, "prune").assert_code(0, "prune");
        nth += 9;
    }
    assert!(held > 10, "{held}");
    alice(world, "prune").assert_code(0, "prune");
}

fn existing(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    alice(world, "create x").assert_silent("create");
    for nth in 1..=moves_in_all(&cgroups) {
        let target = Target::without_user_namespace(ALICE);
        let pid = target.pid();
        std::mem::forget(target);
        let running = call(world, ALICE, &format!("attach x --pid {pid}")).start_traced();
        stop_at_move(&running, pid, nth).expect("a move");
        cannot_be_reaped(pid);
        let _ = end(running, world);
        assert_eq!(waitpid(pid, None).expect("wait").pid(), Some(pid));
        let bobs = bob_with(pid).expect("now the number is free");
        assert_eq!(place(bobs.pid(), "v2"), "/");
    }
    let target = Target::without_user_namespace(ALICE);
    alice(world, &format!("attach x --pid {}", target.pid())).assert_silent("and it works still");
    assert_eq!(owner(&cgroups.node("v2", ALICE, "x").join("cgroup.procs")), (1001, 100_000, 0o664));
    drop(target);
    alice(world, "delete x").assert_silent("delete");
}

fn state(pid: Pid) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).expect("a state")
}

fn let_go(world: &mut World) {
    let _cgroups = Cgroups::new(world, LINE);
    for is_killed in [true, false] {
        for signal in [libc::SIGUSR1, libc::SIGRTMIN() + 3, libc::SIGTERM] {
            let target = Target::without_user_namespace(ALICE);
            let pid = target.pid();
            std::mem::forget(target);
            let running = call(world, ALICE, &format!("attach x --pid {pid}")).start_traced();
            // On its way while the process is being stopped, so that it may stop there for the signal.
            loop {
                match tracer::next(running.pid()) {
                    Stop::Enter(number, arguments)
                        if number == libc::SYS_ptrace as u64 && arguments[0] == u64::from(libc::PTRACE_INTERRUPT) =>
                    {
                        break;
                    }
                    Stop::Gone(status) => panic!("{status}"),
                    _ => {}
                }
            }
            tests::sys::send_signal(pid, signal).expect("kill");
            std::thread::sleep(std::time::Duration::from_millis(5));
            if is_killed {
                stop_at_move(&running, pid, 1).expect("a move");
                assert_eq!(state(pid), 't');
                let _ = end(running, world);
            } else {
                let _ = to_the_end(running, world);
            }
            // None of the three is handled there: each ends the process, if it comes.
            let (status, _) = tests::sys::wait(pid, 0).expect("wait").expect("a status");
            assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == signal, "{signal}: {status:#x}");
            alice(world, "prune").assert_code(0, "prune");
        }
    }
    // One that is stopped stays so, one that runs goes on.
    let target = Target::without_user_namespace(ALICE);
    kill(target.pid(), Signal::SIGSTOP).expect("stop");
    wait_until("it is stopped", || state(target.pid()) == 'T');
    alice(world, &format!("attach x --pid {}", target.pid())).assert_silent("attach");
    assert!(place(target.pid(), "v2").ends_with("/x"));
    wait_until("it is stopped again", || state(target.pid()) == 'T');
    kill(target.pid(), Signal::SIGCONT).expect("continue");
    wait_until("it goes on", || state(target.pid()) == 'S');
    drop(target);
    alice(world, "prune").assert_code(0, "prune");
}

fn threads(world: &mut World) {
    // Hierarchies that are mounted here, so that the process can be moved back: name=systemd may have to be made.
    let cgroups = Cgroups::new(world, &LINE.replace(",name=systemd", ""));
    for short in [false, true] {
        let target = Target::with(move || {
            ALICE.become_user();
            for _ in 0..20 {
                std::thread::spawn(move || {
                    loop {
                        if short {
                            let _ = std::thread::spawn(|| {}).join();
                        }
                        std::thread::sleep(std::time::Duration::from_millis(if short { 2 } else { 1000 }));
                    }
                });
            }
        });
        for _ in 0..5 {
            alice(world, &format!("attach x --pid {}", target.pid())).assert_silent("attach");
            for thread in fs::read_dir(format!("/proc/{}/task", target.pid())).expect("task") {
                let path = thread.expect("task").path();
                if let Ok(text) = fs::read_to_string(path.join("cgroup")) {
                    assert!(text.lines().any(|line| line.starts_with("0::") && line.ends_with("/x")), "{text}");
                    let status = fs::read_to_string(path.join("status")).unwrap_or_default();
                    assert!(!status.contains("tracing stop"), "{status}");
                }
            }
            for word in cgroups.mounted(&["v2", "pids", "cpuset", "freezer"]) {
                fs::write(cgroups.need(word).join("cgroup.procs"), target.pid().to_string()).expect("back");
            }
        }
    }
    alice(world, "prune").assert_code(0, "prune");
}

fn traced(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let target = Target::without_user_namespace(ALICE);
    tests::sys::seize(target.pid()).expect("seize");
    let outcome = alice(world, &format!("attach x --pid {}", target.pid()));
    outcome.assert_code(77, "traced");
    assert!(outcome.text().contains(&format!("process {} traces it already", Pid::this())), "{}", outcome.text());
    assert_eq!(outcome.text().lines().count(), 1);
    assert_eq!(place(target.pid(), "v2"), "/");
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn forbidden(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let attempt = |world: &mut World, target: &Target| {
        let outcome = call(world, ALICE, &format!("attach x --pid {}", target.pid()))
            .as_root(|| tests::sys::without_system_call(libc::SYS_ptrace, libc::EPERM).expect("seccomp"))
            .run(world);
        outcome.assert_code(77, "forbidden");
        assert_eq!(place(target.pid(), "v2"), "/");
        assert_eq!(outcome.text().lines().count(), 1);
        assert!(outcome.text().contains("cgdelegate run NAME -- COMMAND"), "{}", outcome.text());
        outcome.text()
    };
    let (plain, apart) = (Target::without_user_namespace(ALICE), Target::new(ALICE));
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{file}", apart.pid()), "0 100000 5\n").expect("map");
    }
    // What the message goes by; no kernel without Yama has the file.
    mount(Some("x"), "/proc/sys/kernel", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs");
    assert!(!attempt(world, &plain).contains("yama"));
    fs::create_dir("/proc/sys/kernel/yama").expect("mkdir");
    for (scope, target, said) in [
        ("0", &plain, false),
        ("1", &plain, true),
        ("2", &plain, true),
        ("3", &plain, true),
        ("1", &apart, false),
        ("3", &apart, true),
    ] {
        fs::write("/proc/sys/kernel/yama/ptrace_scope", format!("{scope}\n")).expect("scope");
        let text = attempt(world, target);
        assert_eq!(text.contains(&format!("kernel.yama.ptrace_scope is {scope}")), said, "{text}");
    }
    nix::mount::umount("/proc/sys/kernel").expect("umount");
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn old_staging(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    alice(world, "create keep").assert_silent("create");
    let staging = cgroups.node("v2", ALICE, ".staging");
    fs::create_dir(&staging).expect("mkdir");
    let residents = [Target::without_user_namespace(ALICE), Target::without_user_namespace(BOB)];
    for target in &residents {
        fs::write(staging.join("cgroup.procs"), target.pid().to_string()).expect("move");
    }
    alice(world, "delete .staging --kill").assert_code(64, "no name");
    for words in ["run x -- true", "list", "prune", "delete keep"] {
        alice(world, words).assert_code(0, words);
        for target in &residents {
            assert!(place(target.pid(), "v2").ends_with("/.staging"), "{words}");
            assert_ne!(state(target.pid()), 'Z', "{words}");
        }
    }
    drop(residents);
    alice(world, "prune").assert_code(0, "prune");
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn thread(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    // Root's process, of which one thread has become alice.
    let target = Target::with(|| {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            tests::sys::this_thread_becomes(ALICE.uid, ALICE.gid).expect("ids");
            sender.send(()).expect("send");
            std::thread::sleep(std::time::Duration::from_secs(1000));
        });
        receiver.recv().expect("the thread is ready");
    });
    let pid = target.pid().as_raw();
    let threads: Vec<i32> = fs::read_dir(format!("/proc/{pid}/task"))
        .expect("task")
        .filter_map(|entry| entry.expect("task").file_name().to_str()?.parse().ok())
        .filter(|tid| *tid != pid)
        .collect();
    assert_eq!(threads.len(), 1);
    let before = place(target.pid(), "v2");
    let outcome = alice(world, &format!("attach x --pid {}", threads[0]));
    outcome.assert_code(77, "a thread");
    assert!(outcome.text().contains(&format!("thread of process {pid}")), "{}", outcome.text());
    assert_eq!(place(target.pid(), "v2"), before);
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn unfinished(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice - 3");
    alice(world, "create x").assert_silent("create");
    let node = cgroups.node("v2", ALICE, "x");
    // As an interrupted call would leave it.
    tests::sys::set_attribute(&node, c"trusted.cgdelegate", b"1 making attach 1001 1").expect("record");
    let (bobs, own) = (Target::without_user_namespace(BOB), Target::without_user_namespace(ALICE));
    for target in [&bobs, &own] {
        fs::write(node.join("cgroup.procs"), target.pid().to_string()).expect("move");
    }
    alice(world, "delete x --kill").assert_code(75, "somebody stays");
    let state = |pid: Pid| fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    assert!(state(own.pid()).contains(") Z"), "alice's is killed");
    assert!(!state(bobs.pid()).contains(") Z"), "bob's is not");
    assert_eq!(fs::read_to_string(node.join("cgroup.freeze")).expect("freeze").trim(), "0");
    drop((bobs, own));
    alice(world, "delete x").assert_silent("delete");
}
