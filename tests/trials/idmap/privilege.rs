//! What the programs hold, what they do without it, and what they say when it is missing.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::Resource;
use tests::tracer::{self, Stop};
use tests::world::CAP_SETFCAP;
use tests::{ALICE, Answer, BOB, Call, Does, Fd, Install, Kind, Target, Trial, World, expected, sys};

const RANGE: &str = "0 100000 10";

/// The `status` of the helper at its end, and how it ended.
fn last_status(world: &mut World, call: Call) -> (HashMap<String, String>, tests::Outcome) {
    let running = call.start_traced();
    let mut last = HashMap::new();
    loop {
        match tracer::next(running.pid()) {
            Stop::Exit => {
                let status = fs::read_to_string(format!("/proc/{}/status", running.pid())).expect("status");
                last = status
                    .lines()
                    .filter_map(|line| line.split_once(':'))
                    .map(|(key, value)| (key.into(), value.trim().into()))
                    .collect();
            }
            Stop::Gone(status) => return (last, running.gone(status, world)),
            _ => {}
        }
    }
}

fn holds(status: &HashMap<String, String>, set: &str) -> Vec<u32> {
    let bits = u64::from_str_radix(&status[set], 16).expect("hexadecimal");
    (0..64).filter(|bit| bits >> bit & 1 == 1).collect()
}

/// A refused call for which the program lacks its privilege.
#[track_caller]
fn lacks(world: &World, answer: &Answer, words: &[&str], why: &str) {
    answer.refused(why);
    if world.ours() {
        answer.outcome.assert_one_line(answer.kind.program(), why);
        answer.says(words, why);
    }
}

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("a bounding set of SETUID and SETGID is enough", |world| {
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let call = world.helper(kind).as_root(|| sys::keep_in_bounding_set(&[6, 7]).expect("bounding set"));
                let call = call.arg(target.pid().to_string()).words(RANGE);
                let does = if world.install == Install::Setuid {
                    expected("setuid, bounding set of SETUID and SETGID")
                } else {
                    Does::Grants
                };
                world.answer(kind, target, call).did(does, RANGE, "two capabilities");
            }
        }),
        Trial::new("a bounding set without the capability is refused, and the message names the capability", |world| {
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let other = [6, 7].into_iter().find(|cap| *cap != kind.capability()).expect("the other");
                let call =
                    world.helper(kind).as_root(move || sys::keep_in_bounding_set(&[other]).expect("bounding set"));
                let call = call.arg(target.pid().to_string()).words(RANGE);
                let answer = world.answer(kind, target, call);
                if world.install == Install::FileCapabilities {
                    // The kernel refuses the exec itself: capabilities(7), "Safety checking for capability-dumb binaries".
                    answer.target.assert_untouched("no exec");
                    assert_ne!(answer.outcome.code(), Some(0));
                } else {
                    lacks(world, &answer, &[&format!("CAP_SET{}", kind.id()), "bounding set"], "bounding set");
                }
            }
        }),
        Trial::new("at its end the program is the caller three times and holds one capability", |world| {
            world.needs_ours("promise about what it holds");
            for kind in Kind::BOTH {
                for (triples, code) in [(RANGE, 0), ("0 99999 1", 1), ("x", 1)] {
                    let target = Target::new(ALICE);
                    let call = world.helper(kind).arg(target.pid().to_string()).words(triples);
                    let (status, outcome) = last_status(world, call);
                    outcome.assert_code(code, triples);
                    for (key, id) in [("Uid", ALICE.uid), ("Gid", ALICE.gid)] {
                        let all: Vec<&str> = status[key].split_whitespace().collect();
                        assert_eq!(all, vec![id.to_string(); 4], "{key} after {triples}");
                    }
                    let mut permitted = holds(&status, "CapPrm");
                    if triples == "x" {
                        // CAP_SETFCAP goes when the request is known, and this is none.
                        permitted.retain(|cap| *cap != CAP_SETFCAP);
                    }
                    assert_eq!(permitted, [kind.capability()], "permitted after {triples}");
                    // The bounding set may stay full: no_new_privs, checked below, makes it moot.
                    for set in ["CapInh", "CapAmb"] {
                        assert_eq!(holds(&status, set), Vec::<u32>::new(), "{set} after {triples}");
                    }
                    assert_eq!(status["NoNewPrivs"], "1", "no_new_privs after {triples}");
                }
            }
        }),
        Trial::new("CAP_SETFCAP is held at the end only by a newuidmap that maps id 0 of the host", |world| {
            world.needs_ours("promise about what it holds");
            for kind in Kind::BOTH {
                world.write(kind.file(), "alice:0:1\nalice:100000:65536\n");
                let target = Target::new(ALICE);
                let call = world.helper(kind).arg(target.pid().to_string()).words("0 0 1");
                let (status, outcome) = last_status(world, call);
                let mut wanted = vec![kind.capability()];
                if kind == Kind::Uid && world.install == Install::Setuid {
                    wanted.push(CAP_SETFCAP);
                }
                assert_eq!(holds(&status, "CapPrm"), wanted, "{}", outcome.text());
            }
        }),
        Trial::new("map lower id 0 when granted: setuid yes, file capabilities only with cap_setfcap", |world| {
            for kind in Kind::BOTH {
                world.write(kind.file(), "alice:0:1\nalice:100000:65536\n");
                let answer = world.ask(kind, "0 0 1 1 100000 10");
                if kind == Kind::Uid && world.install == Install::FileCapabilities {
                    answer.refused_with(world, &["CAP_SETFCAP", "setcap"], "without cap_setfcap");
                    let program = world.program("newuidmap");
                    sys::set_file_capabilities(&program, &[kind.capability(), CAP_SETFCAP]).expect("file capabilities");
                    let answer = world.ask(kind, "0 0 1 1 100000 10");
                    if world.ours() {
                        answer.granted("0 0 1 1 100000 10", "with cap_setfcap");
                    }
                } else {
                    answer.granted("0 0 1 1 100000 10", "lower id 0");
                }
            }
        }),
        Trial::new("lower id 0 that is not granted is refused", |world| {
            for kind in Kind::BOTH {
                world.ask(kind, "0 0 1").refused("not granted");
                world.ask(kind, "0 0 4294967295").refused("everything");
            }
        }),
        Trial::new("`0 0 4294967295` is valid when granted", |world| {
            for kind in Kind::BOTH {
                if kind == Kind::Uid && world.install == Install::FileCapabilities {
                    continue;
                }
                world.write(kind.file(), "alice:0:4294967295\n");
                world.ask(kind, "0 0 4294967295").granted("0 0 4294967295", "everything");
            }
        }),
        Trial::new("no_new_privs is refused with its name", |world| {
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let call = world.helper(kind).as_user(|| {
                    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).expect("no_new_privs");
                });
                let call = call.arg(target.pid().to_string()).words(RANGE);
                let answer = world.answer(kind, target, call);
                lacks(world, &answer, &["no_new_privs"], "no_new_privs");
            }
        }),
        Trial::new("an install on a nosuid mount is refused with that cause", |world| {
            fs::create_dir("/run/nosuid").expect("mkdir");
            mount(Some("tmpfs"), "/run/nosuid", Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755")).expect("mount");
            for kind in Kind::BOTH {
                let path = Path::new("/run/nosuid").join(kind.program());
                world.install_at(kind.program(), &path, world.install);
                let target = Target::new(ALICE);
                let call = Call::new(path).user(ALICE).arg(target.pid().to_string()).words(RANGE);
                let answer = world.answer(kind, target, call);
                lacks(world, &answer, &["nosuid", "mount"], "nosuid");
            }
        }),
        Trial::new(
            "an install that lost its setuid bit or capability is refused with the command that restores it",
            |world| {
                for kind in Kind::BOTH {
                    let path = Path::new("/run/bare").join(kind.program());
                    fs::create_dir_all("/run/bare").expect("mkdir");
                    fs::write(&path, world.bytes(kind.program())).expect("write");
                    world.mode(&path, 0o755);
                    let target = Target::new(ALICE);
                    let call = Call::new(path).user(ALICE).arg(target.pid().to_string()).words(RANGE);
                    let answer = world.answer(kind, target, call);
                    lacks(world, &answer, &["setuid", "chmod"], "0755");
                }
            },
        ),
        Trial::new("an install that belongs to bob is refused", |world| {
            for kind in Kind::BOTH {
                let path = world.program(kind.program());
                chown(&path, Some(BOB.uid), Some(0)).expect("chown");
                world.mode(&path, 0o4755);
                let answer = world.ask(kind, RANGE);
                lacks(world, &answer, &[], "setuid bob");
            }
        }),
        Trial::new("a target that is not dumpable is refused with that cause", |world| {
            for kind in Kind::BOTH {
                let target = Target::with(|| {
                    ALICE.become_user();
                    unshare(CloneFlags::CLONE_NEWUSER).expect("unshare");
                    sys::prctl(libc::PR_SET_DUMPABLE, 0).expect("PR_SET_DUMPABLE");
                });
                let answer = world.ask_for(kind, target, RANGE);
                let does = if world.install == Install::FileCapabilities {
                    Does::Refuses
                } else {
                    expected("non-dumpable target")
                };
                answer.did(does, RANGE, "not dumpable");
                if world.ours() {
                    let text = format!("open of {} failed: Permission denied", kind.map());
                    lacks(world, &answer, &[&text, "dumpable"], "not dumpable");
                }
            }
        }),
        Trial::new("with descriptors 0, 1 and 2 closed a request is granted or refused as ever", |world| {
            for kind in Kind::BOTH {
                for closed in [vec![0], vec![1], vec![2], vec![0, 1], vec![1, 2], vec![0, 2], vec![0, 1, 2]] {
                    for (triples, does) in
                        [(RANGE, Does::Grants), ("0 99999 10", Does::Refuses), ("0 x 1", Does::Refuses)]
                    {
                        let target = Target::new(ALICE);
                        let mut call = world.helper(kind).arg(target.pid().to_string()).words(triples);
                        for number in &closed {
                            call = call.stdio(*number, Fd::Closed);
                        }
                        world.answer(kind, target, call).did(does, triples, &format!("{closed:?} closed"));
                    }
                }
            }
        }),
        Trial::new("root may call it with descriptors 0, 1 and 2 closed", |world| {
            for kind in Kind::BOTH {
                world.append(kind.file(), "root:500000:10\n");
                let target = Target::new(tests::ROOT);
                let mut call = world.helper(kind).user(tests::ROOT).arg(target.pid().to_string()).words("0 500000 10");
                for number in 0..3 {
                    call = call.stdio(number, Fd::Closed);
                }
                world.answer(kind, target, call).granted("0 500000 10", "root, nothing open");
            }
        }),
        Trial::new("a file size limit of 0 does no harm", |world| {
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let call =
                    world.helper(kind).limit(Resource::RLIMIT_FSIZE, 0).arg(target.pid().to_string()).words(RANGE);
                world.answer(kind, target, call).granted(RANGE, "RLIMIT_FSIZE 0");
            }
        }),
        Trial::new("with a limit of 4 descriptors it is whole or refused, and says which open failed", |world| {
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let call =
                    world.helper(kind).limit(Resource::RLIMIT_NOFILE, 4).arg(target.pid().to_string()).words(RANGE);
                let answer = world.answer(kind, target, call);
                if answer.outcome.code() == Some(0) {
                    answer.granted(RANGE, "RLIMIT_NOFILE 4");
                } else if world.ours() {
                    lacks(world, &answer, &["open", "Too many open files"], "RLIMIT_NOFILE 4");
                } else {
                    answer.refused("RLIMIT_NOFILE 4");
                }
            }
        }),
    ]
}
