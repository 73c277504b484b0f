//! `attach` moves a process of the caller's, and nobody else's.

use super::fixture::{Cgroups, alice, call, owner, place};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;
use std::fs;
use std::time::{Duration, Instant};
use tests::{ALICE, BOB, Target, Trial, World};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once("attach moves a process of the caller, in every hierarchy, and hands the cgroup over", plain),
        Trial::once("as a stage it moves the record's process for its namespace's root, and adds its paths", stage),
        Trial::once(
            "a record of pid 1, of bob's, of a setuid or undumpable process, or with another start time moves nobody",
            foreign,
        ),
        Trial::once(
            "a user namespace that another made is refused, and so is a group that is not the caller's",
            namespaces,
        ),
        Trial::once("however a process executes programs and starts threads, attach ends in time", storm),
        Trial::once("a process whose first thread has ended is told from one that has ended", without_first_thread),
        Trial::once("attach into a cgroup of create's moves, and it is the user's again afterwards", existing),
        Trial::once("a failed record is passed on untouched, a missing one is 65", passes_on),
        Trial::once("a process one of whose threads executes a program is moved, and not called ended", executes),
    ]
}

const LINE: &str = "alice pids,v1:pids,v1:cpuset,name=systemd 5 pids.max=200";

fn plain(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let target = Target::without_user_namespace(ALICE);
    alice(world, &format!("attach x --pid {}", target.pid())).assert_silent("attach");
    for word in cgroups.mounted(&["v2", "pids", "cpuset", "name=systemd"]) {
        assert_eq!(place(target.pid(), word), format!("/{}/cgd-1001/x", cgroups.base));
        assert_eq!(owner(&cgroups.node(word, ALICE, "x")), (1001, 100_000, 0o775));
    }
    assert_eq!(place(Pid::this(), "v2"), "/");
    alice(world, &format!("attach x --pid {}", target.pid())).assert_code(75, "in use, by itself");
}

fn start_of(pid: Pid) -> u64 {
    helper::handoff::start_time(&fs::read(format!("/proc/{pid}/stat")).expect("stat")).expect("start")
}

/// A process of alice's in a user namespace with this map.
fn mapped(map: &str) -> Target {
    let target = Target::new(ALICE);
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{file}", target.pid()), map).expect("map");
    }
    target
}

fn stage(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let target = mapped("0 100005 1\n1 100000 5\n");
    let record = format!("handoff/1 pid={} start={} name=c x=a%20b", target.pid(), start_of(target.pid()));
    let outcome = call(world, ALICE, "attach x").stdin(format!("{record}\n")).run(world);
    outcome.assert_code(0, "stage");
    let node = cgroups.node("v2", ALICE, "x");
    assert!(outcome.out().starts_with(&format!("{record} cgroup={},", node.display())), "{}", outcome.out());
    assert_eq!(outcome.out().matches("/cgd-1001/x").count(), cgroups.mounted(&["v2", "pids", "cpuset"]).len() + 1);
    assert!(place(target.pid(), "name=systemd").ends_with("/x"));
    // The gid that the namespace calls root, not the first of the file.
    assert_eq!(owner(&node), (1001, 100_005, 0o775));
}

fn foreign(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let before = |pid: Pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup");
    let bobs = Target::without_user_namespace(BOB);
    let half = |real: u32, effective: u32, saved: u32| {
        Target::with(move || {
            nix::unistd::setgroups(&[]).expect("setgroups");
            let gid = nix::unistd::Gid::from_raw(1101);
            nix::unistd::setresgid(gid, gid, gid).expect("setresgid");
            let uid = nix::unistd::Uid::from_raw;
            nix::unistd::setresuid(uid(real), uid(effective), uid(saved)).expect("setresuid");
            tests::sys::prctl(libc::PR_SET_DUMPABLE, 1).expect("dumpable");
        })
    };
    let others =
        [half(1001, 0, 0), half(1001, 1001, 0), half(0, 1001, 1001), half(1001, 1001, 1002), half(1001, 1002, 1001)];
    let undumpable = Target::with(|| {
        ALICE.become_user();
        tests::sys::prctl(libc::PR_SET_DUMPABLE, 0).expect("undumpable");
    });
    let own = Target::without_user_namespace(ALICE);
    let mut cases: Vec<(Pid, u64)> = vec![(Pid::from_raw(1), start_of(Pid::from_raw(1)))];
    for target in others.iter().chain([&bobs, &undumpable]) {
        cases.push((target.pid(), start_of(target.pid())));
    }
    cases.push((own.pid(), start_of(own.pid()) + 1));
    for (pid, start) in cases {
        let was = before(pid);
        let record = format!("handoff/1 pid={pid} start={start}");
        let outcome = call(world, ALICE, "attach x").stdin(format!("{record}\n")).run(world);
        outcome.assert_code(77, &format!("{pid} {start}: {was}"));
        assert_eq!(outcome.out(), format!("{record} failed=cgdelegate:77\n"));
        assert_eq!(before(pid), was, "it was moved");
        if pid != own.pid() {
            alice(world, &format!("attach x --pid {pid}")).assert_code(77, "by number");
            assert_eq!(before(pid), was, "it was moved");
        }
    }
    alice(world, "attach x --pid 4000000").assert_code(65, "nobody");
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn namespaces(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    // Root made the user namespace, and gave its process alice's ids.
    let target = Target::with(|| {
        unshare(CloneFlags::CLONE_NEWUSER).expect("unshare");
    });
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{file}", target.pid()), "0 1001 1\n").expect("map");
    }
    alice(world, &format!("attach x --pid {}", target.pid())).assert_code(77, "root's namespace");
    let target = mapped("0 300000 5\n");
    let outcome = alice(world, &format!("attach x --pid {}", target.pid()));
    outcome.assert_code(77, "bob's subordinate ids");
    assert!(outcome.text().contains("300000"), "{}", outcome.text());
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn existing(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    alice(world, "create x").assert_silent("create");
    let (one, two) = (Target::without_user_namespace(ALICE), Target::without_user_namespace(ALICE));
    for target in [&one, &two] {
        alice(world, &format!("attach x --pid {}", target.pid())).assert_silent("attach");
        assert!(place(target.pid(), "name=systemd").ends_with("/x"));
        let node = cgroups.node("v2", ALICE, "x");
        assert_eq!(owner(&node), (1001, 100_000, 0o775));
        assert_eq!(owner(&node.join("cgroup.procs")), (1001, 100_000, 0o664));
    }
    let bobs = Target::without_user_namespace(BOB);
    alice(world, &format!("attach x --pid {}", bobs.pid())).assert_code(77, "bob's");
    drop((one, two));
    assert_eq!(alice(world, "list").out().lines().count(), 1, "it stays");
    alice(world, "delete x").assert_silent("until it is deleted");
    assert!(cgroups.directories().is_empty());
}

fn executes(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice name=systemd 1");
    const ROUNDS: u64 = 12;
    let mut moved = 0;
    for round in 0..ROUNDS {
        let order = "/tmp/order";
        let _ = fs::remove_file(order);
        let target = Target::with(|| {
            ALICE.become_user();
            // The more threads there are to end, the longer the first one looks like an ended process.
            for _ in 0..20 {
                std::thread::spawn(|| std::thread::sleep(std::time::Duration::from_secs(1000)));
            }
            std::thread::spawn(|| {
                while !std::path::Path::new("/tmp/order").exists() {
                    std::thread::sleep(std::time::Duration::from_micros(100));
                }
                let words = [c"sleep", c"1000"].map(std::borrow::ToOwned::to_owned);
                let _ = tests::sys::exec(c"/usr/bin/sleep", &words, &[]);
            });
        });
        let running = call(world, ALICE, &format!("attach x --pid {}", target.pid())).start();
        std::thread::sleep(std::time::Duration::from_micros(round * 150));
        fs::write(order, "").expect("order");
        let outcome = running.finish(world);
        assert!(
            [Some(0), Some(75)].contains(&outcome.code()),
            "round {round}: {:?} {}",
            outcome.code(),
            outcome.text()
        );
        if outcome.code() == Some(0) {
            assert!(place(target.pid(), "v2").ends_with("/cgd-1001/x"));
            moved += 1;
        } else {
            assert!(outcome.text().contains("try again"), "{}", outcome.text());
        }
        drop(target);
    }
    assert!(moved > ROUNDS / 3, "only {moved} of {ROUNDS}");
    alice(world, "prune").assert_code(0, "prune");
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

/// A process with threads that come and go, one of which executes a program a little later.
fn restless(delay: Duration) -> Target {
    Target::with(move || {
        ALICE.become_user();
        for _ in 0..3 {
            std::thread::spawn(|| {
                loop {
                    // Refused while the other executes.
                    let _ = std::thread::Builder::new().spawn(|| {}).map(std::thread::JoinHandle::join);
                    std::thread::sleep(Duration::from_micros(50));
                }
            });
        }
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            let words = [c"sleep", c"1000"].map(std::borrow::ToOwned::to_owned);
            let _ = tests::sys::exec(c"/usr/bin/sleep", &words, &[]);
        });
    })
}

fn storm(world: &mut World) {
    const ROUNDS: u64 = 120;
    // 2.5 s are the most that a hold takes; the rest is for a machine with much to do.
    const LONGEST: Duration = Duration::from_secs(6);
    let cgroups = Cgroups::new(world, "alice name=systemd 1");
    let end = Instant::now() + Duration::from_secs(20);
    let (mut calls, mut moved) = (0, 0);
    for round in 0..ROUNDS {
        let target = restless(Duration::from_micros(1000 + round % 40 * 100));
        let begin = Instant::now();
        let outcome = alice(world, &format!("attach x --pid {}", target.pid()));
        let took = begin.elapsed();
        assert!(took < LONGEST, "round {round}: {took:?}");
        let code = outcome.code();
        assert!([Some(0), Some(65), Some(75)].contains(&code), "round {round}: {code:?} {}", outcome.text());
        assert_eq!(outcome.text().lines().count(), usize::from(code != Some(0)), "{}", outcome.text());
        drop(target);
        calls += 1;
        moved += u64::from(code == Some(0));
        if Instant::now() > end {
            break;
        }
    }
    assert!(calls > 5 && moved > calls / 2, "only {moved} of {calls} were moved");
    alice(world, "prune").assert_code(0, "prune");
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn without_first_thread(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice name=systemd 1");
    let target = Target::obeying(
        || {
            ALICE.become_user();
            std::thread::spawn(|| std::thread::sleep(Duration::from_secs(1000)));
        },
        tests::sys::end_thread,
    );
    target.order();
    super::fixture::wait_until("its first thread has ended", || {
        fs::read_to_string(format!("/proc/{}/stat", target.pid())).is_ok_and(|stat| stat.contains(") Z"))
    });
    let outcome = alice(world, &format!("attach x --pid {}", target.pid()));
    outcome.assert_code(65, "it cannot be held");
    assert!(outcome.text().contains("the first thread of process"), "{}", outcome.text());
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn passes_on(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let record = "handoff/1 pid=5 start=7 failed=idmap:77\n";
    let outcome = call(world, ALICE, "attach x").stdin(record).run(world);
    outcome.assert_code(75, "passed on");
    assert_eq!((outcome.out().as_str(), outcome.text().as_str()), (record, ""));
    call(world, ALICE, "attach x").stdin("").run(world).assert_code(65, "no record");
    call(world, ALICE, "attach x").stdin("handoff/1 pid=1\n").run(world).assert_code(65, "half a record");
    assert!(cgroups.directories().is_empty());
}
