//! What `attach` does with a number that becomes another process's while it is at work, and where it is meanwhile.

use super::fixture::{Cgroups, alice, call, cgdelegate, end, owner, place, start_sleep, wait_until};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use tests::call::Running;
use tests::tracer::{self, Stop};
use tests::{ALICE, BOB, ROOT, Target, Trial, World};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once("a pid that is used again while attach is stopped brings nobody into the user's power", again),
        Trial::once("nor when attach is killed then, nor at the calls that come after", again_and_killed),
        Trial::once("nor when the process ends between the staging cgroup and the user's", between),
        Trial::once("nor on the way into a cgroup of create's", again_existing),
        Trial::once("while attach moves a process its caller can neither freeze nor kill it", out_of_reach),
        Trial::once(
            "what is in the staging cgroup goes back to where its user is, never into another's power",
            sent_home,
        ),
        Trial::once("an attach that was killed half-way leaves a process that the next call brings back", half_way),
        Trial::once("the number of a thread is refused", thread),
        Trial::once("a cgroup that was never handed over is not killed as a whole", unfinished),
    ]
}

const LINE: &str = "alice pids,v1:pids,v1:cpuset,v1:freezer,name=systemd 5 pids.max=200";

/// A process of bob's with the number `pid`, which is free.
fn bob_with(pid: Pid) -> Target {
    for _ in 0..50 {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid.as_raw() - 1).to_string()).expect("ns_last_pid");
        let target = Target::without_user_namespace(BOB);
        if target.pid() == pid {
            return target;
        }
    }
    panic!("{pid} is not free");
}

/// Whether this stop is a write of `pid` into a file called cgroup.procs of cgroup2; its path then.
fn moves(tracee: Pid, stop: Stop, pid: Pid) -> Option<PathBuf> {
    let Stop::Enter(number, arguments) = stop else { return None };
    let text = pid.to_string();
    if number != libc::SYS_write as u64 || arguments[2] != text.len() as u64 {
        return None;
    }
    let mut written = vec![0; text.len()];
    let memory = fs::File::open(format!("/proc/{tracee}/mem")).ok()?;
    memory.read_exact_at(&mut written, arguments[1]).ok()?;
    if written != text.as_bytes() {
        return None;
    }
    let path = fs::read_link(format!("/proc/{tracee}/fd/{}", arguments[0])).ok()?;
    (path.ends_with("cgroup.procs") && path.parent()?.join("cgroup.events").exists()).then_some(path)
}

/// Goes on until the call is about to move `pid` on cgroup2 for the `nth` time.
fn stop_at_move(running: &Running, pid: Pid, nth: usize) -> PathBuf {
    let mut seen = 0;
    loop {
        let stop = tracer::next(running.pid());
        assert!(!matches!(stop, Stop::Gone(_)), "it ended before move {nth}");
        if let Some(path) = moves(running.pid(), stop, pid) {
            seen += 1;
            if seen == nth {
                return path;
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

/// Bob's process lives, and no cgroup in which it is is anybody's but root's.
fn is_unharmed(cgroups: &Cgroups, bobs: &Target) {
    let stat = fs::read_to_string(format!("/proc/{}/stat", bobs.pid())).expect("stat");
    assert!(!stat.contains(") Z"), "bob's process was killed");
    let at = place(bobs.pid(), "v2");
    assert!(!at.contains("/cgd-"), "it is in {at}");
    assert_eq!(owner(&cgroups.need("v2").join(at.trim_start_matches('/'))).0, 0);
}

fn again(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    for nth in [1, 2] {
        let target = Target::without_user_namespace(ALICE);
        let pid = target.pid();
        let running = call(world, ALICE, &format!("attach x --pid {pid}")).start_traced();
        let _ = stop_at_move(&running, pid, nth);
        drop(target);
        let bobs = bob_with(pid);
        let outcome = to_the_end(running, world);
        assert_ne!(outcome.code(), Some(0), "{nth}");
        is_unharmed(&cgroups, &bobs);
        let outcome = alice(world, "delete x --kill");
        assert!([Some(0), Some(77)].contains(&outcome.code()), "{}", outcome.text());
        is_unharmed(&cgroups, &bobs);
        alice(world, "prune").assert_code(0, "prune");
        assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
    }
}

fn again_and_killed(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let target = Target::without_user_namespace(ALICE);
    let pid = target.pid();
    let running = call(world, ALICE, &format!("attach x --pid {pid}")).start_traced();
    let _ = stop_at_move(&running, pid, 1);
    drop(target);
    let bobs = bob_with(pid);
    // The write is done, and that is all.
    assert!(matches!(tracer::next(running.pid()), Stop::Leave(_)));
    let _ = end(running, world);
    // It is in the hands of root alone, and no verb of alice's reaches it.
    let at = place(pid, "v2");
    assert!(at.ends_with("/.staging"), "{at}");
    let staging = cgroups.need("v2").join(at.trim_start_matches('/'));
    assert_eq!(owner(&staging), (0, 0, 0o700));
    assert_eq!(owner(&staging.join("cgroup.procs")).0, 0);
    alice(world, "delete .staging --kill").assert_code(64, "no name");
    for words in ["delete x --kill", "run x -- true", "create x", "delete x --kill", "prune"] {
        let _ = alice(world, words);
        assert!(!fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat").contains(") Z"), "{words}");
        assert!(!place(pid, "v2").ends_with("/x"), "{words}");
    }
    is_unharmed(&cgroups, &bobs);
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn between(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let target = Target::without_user_namespace(ALICE);
    let pid = target.pid();
    let running = call(world, ALICE, &format!("attach x --pid {pid}")).start_traced();
    let path = stop_at_move(&running, pid, 2);
    assert!(path.ends_with("x/cgroup.procs"), "{}", path.display());
    assert!(place(pid, "v2").ends_with("/.staging"));
    drop(target);
    let bobs = bob_with(pid);
    let before = place(pid, "v2");
    match tracer::next(running.pid()) {
        Stop::Leave(result) => assert_eq!(result, -i64::from(libc::EACCES), "the kernel refuses it"),
        other => panic!("{other:?}"),
    }
    assert_eq!(place(pid, "v2"), before, "it was not moved");
    let _ = end(running, world);
    is_unharmed(&cgroups, &bobs);
    alice(world, "prune").assert_code(0, "prune");
}

fn again_existing(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    alice(world, "create x").assert_silent("create");
    let inside = start_sleep(world, ALICE, "x");
    for nth in [1, 2] {
        let target = Target::without_user_namespace(ALICE);
        let pid = target.pid();
        let running = call(world, ALICE, &format!("attach x --pid {pid}")).start_traced();
        let _ = stop_at_move(&running, pid, nth);
        drop(target);
        let bobs = bob_with(pid);
        let outcome = to_the_end(running, world);
        assert_ne!(outcome.code(), Some(0), "{nth}");
        is_unharmed(&cgroups, &bobs);
        drop(bobs);
    }
    assert!(place(inside.pid(), "v2").ends_with("/x"), "what was there stays");
    let target = Target::without_user_namespace(ALICE);
    alice(world, &format!("attach x --pid {}", target.pid())).assert_silent("and it works still");
    let node = cgroups.node("v2", ALICE, "x");
    assert_eq!(owner(&node.join("cgroup.procs")), (1001, 100_000, 0o664));
    assert_eq!(owner(&node.join("../cgroup.procs")), (0, 0, 0o644));
    // A cgroup whose owner is another id of alice's.
    alice(world, "create y --owner 100000:100000").assert_silent("create");
    let target = Target::without_user_namespace(ALICE);
    alice(world, &format!("attach y --pid {} --owner 100000:100000", target.pid())).assert_silent("attach");
    assert_eq!(owner(&cgroups.node("v2", ALICE, "y").join("cgroup.procs")), (100_000, 100_000, 0o664));
}

fn out_of_reach(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let outer = start_sleep(world, ALICE, "outer");
    let words = cgroups.mounted(&["v2", "freezer"]);
    // Where alice can freeze what she starts: below a cgroup of hers.
    let mut places = Vec::new();
    for word in &words {
        let child = cgroups.node(word, ALICE, "outer").join("child");
        fs::create_dir(&child).expect("mkdir");
        for path in [child.clone(), child.join("cgroup.procs")] {
            std::os::unix::fs::chown(path, Some(1001), Some(1101)).expect("chown");
        }
        places.push(child);
    }
    let target = Target::without_user_namespace(ALICE);
    let pid = target.pid();
    let procs: Vec<PathBuf> = places.iter().map(|place| place.join("cgroup.procs")).collect();
    let running = call(world, ALICE, &format!("attach x --pid {pid}"))
        .as_root(move || procs.iter().for_each(|file| fs::write(file, "0").expect("enter")))
        .start_traced();
    assert!(place(running.pid(), "v2").ends_with("/outer/child"));
    for _ in 0..2 {
        let _ = stop_at_move(&running, pid, 1);
        for word in &words {
            let at = place(running.pid(), word);
            let directory = cgroups.need(word).join(at.trim_start_matches('/'));
            assert_eq!(owner(&directory).0, 0, "{word}: {at}");
            assert!(!at.contains("/outer"), "{word}: {at}");
        }
    }
    let outcome = to_the_end(running, world);
    outcome.assert_silent("attach");
    assert!(place(pid, "v2").ends_with("/x"));
    for (word, child) in words.iter().zip(places) {
        assert!(super::fixture::processes(&child).is_empty(), "{word}");
        fs::remove_dir(child).expect("rmdir");
    }
    drop((outer, target));
    alice(world, "prune").assert_code(0, "prune");
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn sent_home(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE.replace("\n", "").as_str());
    cgroups.configure(world, &format!("{LINE}\nbob pids,name=systemd 5"));
    alice(world, "create keep").assert_silent("create");
    let bobs_place = start_sleep(world, BOB, "home");
    let v2 = cgroups.need("v2");
    let staging = v2.join(&cgroups.base).join("cgd-1001/.staging");
    fs::create_dir(&staging).expect("mkdir");
    // Bob's, whose parent is in a cgroup of alice's; and bob's whose session's leader is in one of bob's.
    let strays: Vec<Target> = (0..2).map(|_| Target::without_user_namespace(BOB)).collect();
    let own = Target::without_user_namespace(ALICE);
    for target in strays.iter().chain([&own]) {
        fs::write(staging.join("cgroup.procs"), target.pid().to_string()).expect("move");
    }
    // Their parent, this trial, is in a cgroup of alice's for the moment.
    let keep = cgroups.node("v2", ALICE, "keep");
    fs::write(keep.join("cgroup.procs"), "0").expect("enter");
    let entry = v2.join("cgroup.procs");
    let outcome =
        call(world, ALICE, "run other -- true").as_root(move || fs::write(entry, "0").expect("enter")).run(world);
    fs::write(v2.join("cgroup.procs"), "0").expect("leave");
    outcome.assert_code(0, "run");
    for target in &strays {
        is_unharmed(&cgroups, target);
    }
    assert_eq!(place(own.pid(), "v2"), "/", "alice's goes where she called from");
    assert!(place(bobs_place.pid(), "v2").ends_with("/cgd-1002/home"));
    assert!(!staging.exists());
    alice(world, "delete keep").assert_silent("delete");
}

fn half_way(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice pids,name=systemd 1");
    let target = Target::without_user_namespace(ALICE);
    let pid = target.pid();
    let running = call(world, ALICE, &format!("attach x --pid {pid}")).start_traced();
    let _ = stop_at_move(&running, pid, 2);
    let _ = end(running, world);
    assert!(place(pid, "v2").ends_with("/.staging"));
    // Root's call leaves it: only where its user calls from it belongs.
    let _ = cgdelegate(world, ROOT, "prune");
    assert!(place(pid, "v2").ends_with("/.staging"));
    alice(world, "delete x --kill").assert_silent("the half-made one");
    wait_until("it is gone", || waitpid(pid, Some(WaitPidFlag::WNOHANG)).is_ok_and(|s| s.pid().is_some()));
    std::mem::forget(target);
    let target = Target::without_user_namespace(ALICE);
    let pid = target.pid();
    let running = call(world, ALICE, &format!("attach x --pid {pid} --controllers -")).start_traced();
    let _ = stop_at_move(&running, pid, 2);
    let _ = end(running, world);
    alice(world, "create keep").assert_silent("its call brings it back");
    assert_eq!(place(pid, "v2"), "/");
    alice(world, "delete keep").assert_silent("delete");
    alice(world, "create keep").assert_silent("create");
    cgroups.configure(world, "alice pids,name=systemd 2");
    // As a call that was killed between the two would leave it.
    world.mode(cgroups.node("v2", ALICE, "").join("cgroup.procs"), 0o664);
    alice(world, &format!("attach x --pid {pid}")).assert_silent("and it can be moved again");
    assert_eq!(owner(&cgroups.node("v2", ALICE, "").join("cgroup.procs")), (0, 0, 0o644));
    assert!(place(pid, "v2").ends_with("/x"));
    drop(target);
    alice(world, "delete keep").assert_silent("delete");
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
