//! The target's files are opened so that nothing mounted over them is ever written.

use std::fs;
use std::os::unix::fs::chown;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tests::tracer::{self, Stop};
use tests::{ALICE, Answer, BOB, Call, Kind, Target, Trial, World, sys};

const PATH: i32 = libc::O_PATH | libc::O_DIRECTORY;
const RANGE: &str = "0 100000 10";
const FAKE: &str = "this file was mounted over a file of the target\n";

/// The maps and setgroups: each is covered by a file in turn.
const COVERED: [&str; 3] = ["uid_map", "gid_map", "setgroups"];

/// A process of alice's with a user and mount namespace of its own, in which a file of hers covers `name` of `victim`.
fn coverer(world: &World, victim: &Target, name: &str) -> Target {
    let fake = format!("/tmp/fake-{name}-{}", victim.pid());
    world.write(&fake, FAKE);
    chown(&fake, Some(ALICE.uid), Some(ALICE.gid)).expect("chown");
    let coverer = coverer_with(&fake, victim, name);
    let covered = fs::read_to_string(format!("/proc/{}/root/proc/{}/{name}", coverer.pid(), victim.pid()));
    assert_eq!(covered.expect("read"), FAKE, "the file is covered");
    coverer
}

/// As [`coverer`], with any file.
fn coverer_with(file: &str, victim: &Target, name: &str) -> Target {
    let over = format!("/proc/{}/{name}", victim.pid());
    Target::with(move || {
        ALICE.become_user();
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).expect("unshare");
        mount(Some(file), over.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .expect("bind mount over the file");
    })
}

/// The file mounted over alice's is the same file of bob's process: the owner of the directory says nothing about it.
fn covered_by_bobs(world: &mut World, old: bool) {
    for kind in Kind::BOTH {
        for name in COVERED {
            let triples = format!("0 {} 1", kind.own(ALICE));
            let bobs = Target::new(BOB);
            let victim = Target::new(ALICE);
            let coverer = coverer_with(&format!("/proc/{}/{name}", bobs.pid()), &victim, name);
            let directory = format!("/proc/{}/root/proc/{}", coverer.pid(), victim.pid());
            let call = aged(world.helper(kind), old).opens(7, directory, PATH).arg("fd:7").words(&triples);
            let answer = world.answer(kind, victim, call);
            bobs.assert_untouched("a file of bob's is mounted over one of alice's");
            if name == kind.map() || (kind == Kind::Gid && name == "setgroups") {
                answer.refused_with(world, &[name], "bob's file is mounted over it");
            }
        }
    }
}

fn fake_is_unchanged(victim: &Target, name: &str) {
    let fake = fs::read_to_string(format!("/tmp/fake-{name}-{}", victim.pid())).expect("fake");
    assert_eq!(fake, FAKE, "the file mounted over {name} was written");
}

/// Without openat2 when `old` says so, as on a kernel before 5.6.
fn aged(call: Call, old: bool) -> Call {
    if old {
        call.as_root(|| sys::without_system_call(libc::SYS_openat2, libc::ENOSYS).expect("seccomp filter"))
    } else {
        call
    }
}

fn covered(world: &mut World, old: bool) {
    for kind in Kind::BOTH {
        for name in COVERED {
            // A self map, so that newgidmap writes setgroups too.
            let triples = format!("0 {} 1", kind.own(ALICE));
            let victim = Target::new(ALICE);
            let coverer = coverer(world, &victim, name);
            let directory = format!("/proc/{}/root/proc/{}", coverer.pid(), victim.pid());
            let call = aged(world.helper(kind), old).opens(7, directory, PATH).arg("fd:7").words(&triples);
            let answer = world.answer(kind, victim, call);
            fake_is_unchanged(&answer.target, name);
            let concerns = name == kind.map() || (kind == Kind::Gid && name == "setgroups");
            if concerns {
                answer.refused_with(world, &[name], "a file is mounted over it");
            } else if answer.outcome.code() != Some(0) {
                answer.refused_with(world, &[], "another file of the target is covered");
            }
        }
    }
}

fn covered_by_pid(world: &mut World, old: bool) {
    for kind in Kind::BOTH {
        for name in COVERED {
            let victim = Target::new(ALICE);
            let _coverer = coverer(world, &victim, name);
            let call = aged(world.helper(kind), old).arg(victim.pid().to_string()).words(RANGE);
            let answer = world.answer(kind, victim, call);
            answer.granted(RANGE, "mounts of another mount namespace mean nothing to a pid");
            fake_is_unchanged(&answer.target, name);
        }
    }
}

/// The file mounted over is the same file of another process of alice's. Nobody's rights but hers are in it, and still
/// it would undo CVE-2018-7169's cure: one process gets the `deny`, the other the map.
fn covered_by_own(world: &mut World, old: bool) {
    for kind in Kind::BOTH {
        for name in COVERED {
            let triples = format!("0 {} 1", kind.own(ALICE));
            let other = Target::new(ALICE);
            let victim = Target::new(ALICE);
            let coverer = coverer_with(&format!("/proc/{}/{name}", other.pid()), &victim, name);
            let directory = format!("/proc/{}/root/proc/{}", coverer.pid(), victim.pid());
            let call = aged(world.helper(kind), old).opens(7, directory, PATH).arg("fd:7").words(&triples);
            let answer = world.answer(kind, victim, call);
            if name == kind.map() || (kind == Kind::Gid && name == "setgroups") {
                // The map is opened first, so that a covered setgroups is found with nothing written yet.
                answer.refused_with(world, &[name], "another process's file is mounted over it");
            }
            other.assert_untouched("its file is mounted over that of the target");
            let mapped = !answer.target.map(Kind::Gid).is_empty();
            assert!(!mapped || answer.target.setgroups() == "deny", "a self map with setgroups allowed");
        }
    }
}

/// A whole procfs of the coverer's own making, or a directory tree that looks like one.
fn other_procfs(world: &mut World, old: bool) {
    for kind in Kind::BOTH {
        // A directory that looks like /proc/PID.
        let victim = Target::new(ALICE);
        let pid = victim.pid();
        let directory = "/home/alice/looks".to_owned();
        world.remove(&directory);
        fs::create_dir(&directory).expect("mkdir");
        chown(&directory, Some(ALICE.uid), Some(ALICE.gid)).expect("chown");
        let stat = format!("{pid} (x) S 1 1 1 0 -1 0\n");
        for (name, content) in [("uid_map", ""), ("gid_map", ""), ("setgroups", ""), ("stat", &stat)] {
            let path = format!("{directory}/{name}");
            world.write(&path, content);
            chown(&path, Some(ALICE.uid), Some(ALICE.gid)).expect("chown");
        }
        let call = aged(world.helper(kind), old).opens(7, directory.clone(), PATH).arg("fd:7").words(RANGE);
        world.answer(kind, victim, call).refused("a directory that looks like /proc/PID");
        for name in COVERED {
            assert_eq!(
                fs::read_to_string(format!("{directory}/{name}")).expect("read"),
                "",
                "{name} of the false directory was written"
            );
        }
        // A procfs of another pid namespace: its numbers mean other processes.
        let bobs = Target::new(BOB);
        let other = Target::with(|| {
            ALICE.become_user();
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID).expect("unshare");
            let (read, write) = sys::pipe().expect("pipe");
            let _init = sys::fork(move || {
                mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>).expect("proc");
                nix::unistd::write(&write, b"r").expect("ready");
                loop {
                    nix::unistd::pause();
                }
            })
            .expect("fork");
            assert_eq!(nix::unistd::read(&read, &mut [0]), Ok(1));
        });
        let directory = format!("/proc/{}/root/proc/1", other.pid());
        let call = aged(world.helper(kind), old).opens(7, directory, PATH).arg("fd:7").words(RANGE);
        let answer = world.answer(kind, bobs, call);
        answer.target.assert_untouched("the procfs of another pid namespace");
        answer.outcome.assert_code(1, "a procfs that is not the helper's own");
    }
}

pub fn trials() -> Vec<Trial> {
    let mut all = Vec::new();
    for old in [false, true] {
        let kernel = if old { " without openat2" } else { "" };
        all.extend([
            Trial::new(
                format!("a file mounted over uid_map, gid_map or setgroups is never written{kernel}"),
                move |world| {
                    world.needs_ours("fd:N");
                    covered(world, old);
                },
            ),
            Trial::new(
                format!("a file of bob's process mounted over one of alice's is never written{kernel}"),
                move |world| {
                    world.needs_ours("fd:N");
                    covered_by_bobs(world, old);
                },
            ),
            Trial::new(format!("CVE-2018-7169: setgroups or gid_map of another process mounted over the target's is refused{kernel}"), move |world| {
                world.needs_ours("fd:N");
                covered_by_own(world, old);
            }),
            Trial::new(format!("mounts of alice's own namespace do not mislead the pid form{kernel}"), move |world| {
                covered_by_pid(world, old)
            }),
            Trial::new(format!("a directory that only looks like the procfs is refused{kernel}"), move |world| {
                world.needs_ours("fd:N");
                other_procfs(world, old);
            }),
            Trial::new(format!("every form of a target works{kernel}"), move |world| {
                world.needs_ours("fd:N");
                for kind in Kind::BOTH {
                    for triples in [RANGE.to_owned(), format!("0 {} 1", kind.own(ALICE))] {
                        let target = Target::new(ALICE);
                        let call = aged(world.helper(kind), old).arg(target.pid().to_string()).words(&triples);
                        world.answer(kind, target, call).granted(&triples, "pid");
                        let target = Target::new(ALICE);
                        let directory = format!("/proc/{}", target.pid());
                        let call = aged(world.helper(kind), old).opens(7, directory, PATH).arg("fd:7").words(&triples);
                        world.answer(kind, target, call).granted(&triples, "descriptor");
                        let target = Target::new(ALICE);
                        let directory = format!("/proc/{0}/task/{0}", target.pid());
                        let call = aged(world.helper(kind), old).opens(7, directory, PATH).arg("fd:7").words(&triples);
                        world.answer(kind, target, call).granted(&triples, "task");
                        let target = Target::new(ALICE);
                        let pidfd = sys::pidfd(target.pid()).expect("pidfd_open");
                        let call = aged(world.helper(kind), old).fd(7, pidfd).arg("fd:7").words(&triples);
                        world.answer(kind, target, call).granted(&triples, "pidfd");
                    }
                }
            }),
        ]);
    }
    all.extend([
        Trial::new(
            "a helper that is started inside the coverer's namespaces has no privilege there and writes nothing",
            |world| {
                for kind in Kind::BOTH {
                    let victim = Target::new(ALICE);
                    let coverer = coverer(world, &victim, kind.map());
                    let spaces: Vec<fs::File> = ["user", "mnt"]
                        .iter()
                        .map(|name| fs::File::open(format!("/proc/{}/ns/{name}", coverer.pid())).expect("namespace"))
                        .collect();
                    let call = world.helper(kind).as_user(move || {
                        for space in spaces {
                            nix::sched::setns(space, CloneFlags::empty()).expect("setns");
                        }
                    });
                    let call = call.arg(victim.pid().to_string()).words(RANGE);
                    let answer = world.answer(kind, victim, call);
                    answer.refused("inside alice's own user namespace");
                    fake_is_unchanged(&answer.target, kind.map());
                }
            },
        ),
        Trial::new(
            "a target that ends after the decision is refused, and a process that gets its pid is not written",
            |world| {
                world.needs_tool("/proc/sys/kernel/ns_last_pid");
                for kind in Kind::BOTH {
                    let mut reused = 0;
                    // Before each system call from the first that names the target on.
                    for step in 0..2000 {
                        let target = Target::new(ALICE);
                        let pid = target.pid();
                        let running = world.helper(kind).arg(pid.to_string()).words(RANGE).start_traced();
                        let helper = running.pid();
                        let mut entered = 0;
                        let mut victim = None;
                        let mut target = Some(target);
                        let status = loop {
                            match tracer::next(helper) {
                                Stop::Enter(number, _) if !tracer::only_prepares(number) => {
                                    if entered == step {
                                        target.take().expect("once").end();
                                        fs::write("/proc/sys/kernel/ns_last_pid", (pid.as_raw() - 1).to_string())
                                            .expect("ns_last_pid");
                                        let next = Target::new(BOB);
                                        assert_eq!(next.pid(), pid, "the pid is used again");
                                        victim = Some(next);
                                    }
                                    entered += 1;
                                }
                                Stop::Gone(status) => break status,
                                _ => {}
                            }
                        };
                        let outcome = running.gone(status, world);
                        let Some(victim) = victim else {
                            // The helper had ended before this step: all steps are done.
                            outcome.assert_code(0, "an undisturbed call");
                            reused = step;
                            break;
                        };
                        victim.assert_untouched("bob's process has the pid of alice's");
                        assert!(outcome.code() == Some(1) || outcome.code() == Some(0), "exit code: {outcome:?}");
                    }
                    assert!(reused > 5, "the sweep reached the end of a call");
                }
            },
        ),
        Trial::new("a descriptor of a target that ends midway never leads to the process that gets its pid", |world| {
            world.needs_ours("fd:N");
            world.needs_tool("/proc/sys/kernel/ns_last_pid");
            for kind in Kind::BOTH {
                for by_pidfd in [false, true] {
                    for step in 0..2000 {
                        let target = Target::new(ALICE);
                        let pid = target.pid();
                        let call = world.helper(kind).arg("fd:7").words(RANGE);
                        let call = if by_pidfd {
                            call.fd(7, sys::pidfd(pid).expect("pidfd_open"))
                        } else {
                            call.opens(7, format!("/proc/{pid}"), PATH)
                        };
                        let running = call.start_traced();
                        let mut entered = 0;
                        let mut target = Some(target);
                        let mut next = None;
                        let status = loop {
                            match tracer::next(running.pid()) {
                                Stop::Enter(number, _) if !tracer::only_prepares(number) => {
                                    if entered == step {
                                        target.take().expect("once").end();
                                        fs::write("/proc/sys/kernel/ns_last_pid", (pid.as_raw() - 1).to_string())
                                            .expect("ns_last_pid");
                                        // alice's too, so that no check of the owner helps.
                                        let reused = Target::new(ALICE);
                                        assert_eq!(reused.pid(), pid, "the pid is used again");
                                        next = Some(reused);
                                    }
                                    entered += 1;
                                }
                                Stop::Gone(status) => break status,
                                _ => {}
                            }
                        };
                        let outcome = running.gone(status, world);
                        let Some(next) = next else {
                            outcome.assert_code(0, "an undisturbed call");
                            assert!(step > 5, "the sweep reached the end of a call");
                            break;
                        };
                        next.assert_untouched(&format!(
                            "step {step}, pidfd {by_pidfd}: it has the pid of the process that was meant"
                        ));
                    }
                }
            }
        }),
        Trial::new("a target that executes a setuid program midway is written whole or not at all", |world| {
            fs::copy("/bin/sleep", "/run/sleeper").expect("copy");
            world.mode("/run/sleeper", 0o4711);
            for kind in Kind::BOTH {
                // Before each system call, the target executes a program that alice can neither read nor own.
                for step in 0..2000 {
                    let target = Target::obeying(
                        || {
                            ALICE.become_user();
                            unshare(CloneFlags::CLONE_NEWUSER).expect("unshare");
                        },
                        || panic!("exec: {}", sys::exec(c"/run/sleeper", &[c"sleeper".into(), c"1000".into()], &[])),
                    );
                    let running = world.helper(kind).arg(target.pid().to_string()).words(RANGE).start_traced();
                    let helper = running.pid();
                    let mut entered = 0;
                    let mut changed = false;
                    let status = loop {
                        match tracer::next(helper) {
                            Stop::Enter(number, _) if !tracer::only_prepares(number) => {
                                if entered == step {
                                    target.order();
                                    wait_until(|| owner_of(target.pid().as_raw()) == 0);
                                    changed = true;
                                }
                                entered += 1;
                            }
                            Stop::Gone(status) => break status,
                            _ => {}
                        }
                    };
                    let outcome = running.gone(status, world);
                    let answer = Answer { kind, outcome, target };
                    if answer.outcome.code() == Some(0) {
                        answer.granted(RANGE, "whole when granted");
                    } else {
                        answer.refused("nothing when refused");
                    }
                    if !changed {
                        assert!(step > 5, "the sweep reached the end of a call");
                        break;
                    }
                }
            }
        }),
    ]);
    all
}

fn owner_of(pid: i32) -> u32 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(format!("/proc/{pid}/uid_map")).map_or(u32::MAX, |meta| meta.uid())
}

fn wait_until(done: impl Fn() -> bool) {
    for _ in 0..60_000 {
        if done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("it never became so");
}
