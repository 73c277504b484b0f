//! Arguments, exit codes, texts: what clients pass and look for.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use tests::{ALICE, Answer, BOB, Call, Does, Kind, Target, Trial, World, expected, sys};

fn with_target(world: &mut World, kind: Kind, form: impl Fn(i32) -> String, triples: &str) -> Answer {
    let target = Target::new(ALICE);
    let word = form(target.pid().as_raw());
    let call = world.helper(kind).arg(word).words(triples);
    world.answer(kind, target, call)
}

#[track_caller]
fn is_usage(world: &World, kind: Kind, answer: &tests::Outcome, why: &str) {
    answer.assert_code(1, why);
    assert_eq!(answer.out(), "", "{why}: nothing goes to standard output");
    let text = answer.text();
    assert!(text.to_lowercase().contains("usage: "), "{why}: no usage: {text}");
    if world.ours() {
        assert!(text.contains(kind.program()), "{why}: the program's name is a constant: {text}");
        assert!(text.starts_with(kind.program()) || text.starts_with("usage: "), "{why}: {text}");
    }
}

pub fn trials() -> Vec<Trial> {
    let mut all = vec![
        Trial::new("a granted range is written, silently", |world| {
            for kind in Kind::BOTH {
                world.ask(kind, "0 100000 65536").granted("0 100000 65536", "whole range");
                world.ask(kind, "7 165535 1").granted("7 165535 1", "last id");
            }
        }),
        Trial::new(
            "called without arguments it exits with exactly 1, which is how mmdebstrap probes for it",
            |world| {
                for kind in Kind::BOTH {
                    let outcome = world.helper(kind).run(world);
                    is_usage(world, kind, &outcome, "no arguments");
                }
            },
        ),
        Trial::new("an empty argument vector prints the usage and exits with 1", |world| {
            for kind in Kind::BOTH {
                let outcome = world.helper(kind).argv(Vec::new()).run(world);
                is_usage(world, kind, &outcome, "argc 0");
            }
        }),
        Trial::new("argv[0] may be absolute, bare, empty or a lie", |world| {
            for kind in Kind::BOTH {
                for name in ["/usr/bin/newuidmap", "newgidmap", "", "x\n%s"] {
                    let target = Target::new(ALICE);
                    let words = [name, &target.pid().to_string(), "0", "100000", "10"].map(OsString::from);
                    let call = world.helper(kind).argv(words.to_vec());
                    world.answer(kind, target, call).granted("0 100000 10", name);
                }
            }
        }),
        Trial::new("a number of arguments other than 2+3k is a usage error", |world| {
            for kind in Kind::BOTH {
                for triples in
                    ["0", "0 100000", "0 100000 1 1", "0 100000 1 1 100001", "0 100000 1 1 100001 1 2 100002"]
                {
                    let answer = world.ask(kind, triples);
                    answer.refused(triples);
                    is_usage(world, kind, &answer.outcome, triples);
                }
            }
        }),
        Trial::new("a target without triples is a usage error", |world| {
            for kind in Kind::BOTH {
                let answer = world.ask(kind, "");
                answer.outcome.assert_code(1, "no triples");
                if world.ours() {
                    // The original goes as far as the write, and newgidmap denies setgroups on its way.
                    answer.refused("no triples");
                    is_usage(world, kind, &answer.outcome, "no triples");
                }
            }
        }),
        Trial::new("a pid may have leading blanks, a plus sign and zeros", |world| {
            for kind in Kind::BOTH {
                for form in [" P", "  \tP", "+P", "000P", " +0P"] {
                    with_target(world, kind, |pid| form.replace('P', &pid.to_string()), "0 100000 10")
                        .granted("0 100000 10", form);
                }
            }
        }),
        Trial::new("anything else in a pid's place is refused", |world| {
            for kind in Kind::BOTH {
                let forms = [
                    "",
                    " ",
                    "0",
                    "-1",
                    "-P",
                    "self",
                    "thread-self",
                    "P/task",
                    "P/",
                    "./P",
                    "Px",
                    "P ",
                    "P\n",
                    "0xP",
                    "++P",
                    "2147483648",
                    "4294967296",
                    "18446744073709551616",
                    "fd:",
                    "fd:x",
                    "fd:-1",
                    "fd:99",
                    "fd:99x",
                    "FD:0",
                    "../P",
                    "1e1",
                    "P.0",
                ];
                for form in forms {
                    with_target(world, kind, |pid| form.replace('P', &pid.to_string()), "0 100000 10").refused(form);
                }
                let wraps = with_target(world, kind, |pid| (4_294_967_296 + i64::from(pid)).to_string(), "0 100000 10");
                wraps.refused("2^32 + pid");
            }
        }),
        Trial::new("a pid that does not exist is refused", |world| {
            for kind in Kind::BOTH {
                let outcome = world.helper(kind).words("2147483647 0 100000 10").run(world);
                outcome.assert_code(1, "no such process");
                assert!(!outcome.stderr.is_empty(), "a message");
            }
        }),
        Trial::new("numbers of a triple are decimal, hexadecimal or octal, with leading blanks and plus", |world| {
            for kind in Kind::BOTH {
                for [upper, lower, count] in [
                    ["0", "100000", "16"],
                    ["0x0", "0x186a0", "0x10"],
                    ["0X0", "0X186A0", "020"],
                    ["00", "0303240", "0020"],
                    [" 0", " 100000", "  16"],
                    ["+0", "+100000", "+16"],
                    ["\t0", "\n100000", " +0x10"],
                ] {
                    let target = Target::new(ALICE);
                    let call = world.helper(kind).arg(target.pid().to_string()).args([upper, lower, count]);
                    world.answer(kind, target, call).granted("0 100000 16", lower);
                }
            }
        }),
        Trial::new("a number with trailing bytes, a sign or nothing in it is refused", |world| {
            for kind in Kind::BOTH {
                for bad in [
                    "", " ", "100000 ", "100000x", "100000\n", "-1", "-100000", "- 1", "08", "0xg", "1e5", "1.0",
                    "1,0", "++1", "+-1", "\u{661}", "NaN",
                ] {
                    for position in 0..3 {
                        let mut words = ["0", "100000", "10"];
                        words[position] = bad;
                        let target = Target::new(ALICE);
                        let call = world.helper(kind).arg(target.pid().to_string()).args(words);
                        world.answer(kind, target, call).refused(&format!("{words:?}"));
                    }
                }
            }
        }),
        Trial::new("a bad word in the second triple refuses the first one too", |world| {
            for kind in Kind::BOTH {
                world.ask(kind, "0 100000 1 1 100001 x").refused("second count");
                world.ask(kind, "0 100000 1 1 100001 0").refused("second count 0");
                world.ask(kind, "0 100000 1 1 99999 1").refused("second range not granted");
            }
        }),
        Trial::new("upper and lower reach 4294967294 and not further, whatever is granted", |world| {
            for kind in Kind::BOTH {
                world.write(kind.file(), "alice:100000:65536\nalice:4294967290:5\n");
                world.ask(kind, "4294967294 100000 1").granted("4294967294 100000 1", "highest upper");
                world.ask(kind, "0 4294967294 1").granted("0 4294967294 1", "highest lower");
                for triples in [
                    "4294967295 100000 1",
                    "0 4294967295 1",
                    "4294967294 100000 2",
                    "0 4294967294 2",
                    "4294967296 100000 1",
                    "0 4295067296 1",
                    "4294967295 100000 0",
                    "0 100000 0",
                    "0 100000 4294967296",
                    "0 100000 4294967295",
                    "0 100000 18446744073709551615",
                    "0 100000 18446744073709551616",
                    "0 100000 4294867296",
                    "18446744073709551615 100000 1",
                    "0 18446744073709551616 1",
                ] {
                    world.ask(kind, triples).refused(triples);
                }
            }
        }),
        Trial::new("the message for a bad triple says overflow", |world| {
            for kind in Kind::BOTH {
                let answer = world.ask(kind, "0 100000 4294967296");
                answer.refused_with(world, &["overflow"], "count 2^32");
            }
        }),
        Trial::new("the message for a range that is not granted is the one that clients look for", |world| {
            for kind in Kind::BOTH {
                let answer = world.ask(kind, "0 99999 5");
                answer.refused("below the grant");
                answer.says(&[&format!("{} range [0-5) -> [99999-100004) not allowed", kind.id())], "not granted");
                let answer = world.ask(kind, "3 165535 2");
                answer.says(&[&format!("{} range [3-5) -> [165535-165537) not allowed", kind.id())], "beyond the end");
            }
        }),
        Trial::new("the first range that is not allowed is the one named", |world| {
            for kind in Kind::BOTH {
                let answer = world.ask(kind, "0 100000 10 10 50 1 11 60 1");
                answer.refused("two bad ranges");
                answer.says(&["[10-11) -> [50-51) not allowed"], "argv order");
            }
        }),
        Trial::new("the message for another user's target is the one that clients look for", |world| {
            for kind in Kind::BOTH {
                let answer = world.ask_for(kind, Target::new(BOB), "0 100000 10");
                answer.refused("bob's");
                answer.says(
                    &["is owned by a different user: uid:1001 pw_uid:1001 st_uid:1002, gid:1101 pw_gid:1101 st_gid:1102"],
                    "bob's",
                );
                if world.ours() {
                    // 4.13 puts the pid in between, and newgidmap leaves out a word.
                    answer.says(&["Target process is owned by a different user"], "bob's");
                }
            }
        }),
        Trial::new("an empty environment is enough", |world| {
            for kind in Kind::BOTH {
                world.ask(kind, "0 100000 65536").granted("0 100000 65536", "no variable at all");
            }
        }),
        Trial::new("six triples, as runc and crun pass at most, are written, five in the order given", |world| {
            for kind in Kind::BOTH {
                let triples = "50 100050 10 0 100000 10 10 100010 10 30 100030 10 20 100020 10 40 100040 10";
                world.ask(kind, triples).granted(triples, "six");
                let five = "50 100050 10 0 100000 10 10 100010 10 30 100030 10 20 100020 10";
                world.ask(kind, five).granted(five, "five, which the kernel does not sort");
            }
        }),
        Trial::new("neighbouring triples are written as given and not merged", |world| {
            for kind in Kind::BOTH {
                world
                    .ask(kind, "0 100000 1 1 100001 1 2 100002 1")
                    .granted("0 100000 1 1 100001 1 2 100002 1", "as given");
            }
        }),
        Trial::new("an argument that is not UTF-8 is refused in one piece", |world| {
            for kind in Kind::BOTH {
                for position in 0..4 {
                    let target = Target::new(ALICE);
                    let mut words = [&target.pid().to_string(), "0", "100000", "10"].map(OsString::from);
                    words[position] = OsString::from_vec(vec![b'1', 0xff, 0xfe, 0x80]);
                    let call = world.helper(kind).args(words);
                    let answer = world.answer(kind, target, call);
                    answer.refused("not UTF-8");
                    if world.ours() {
                        assert!(std::str::from_utf8(&answer.outcome.stderr).is_ok(), "the message is printable");
                    }
                }
            }
        }),
        Trial::new("control characters in an argument do not reach the terminal", |world| {
            world.needs_ours("escaping of messages");
            for kind in Kind::BOTH {
                for bad in ["\u{1b}[2J", "1\n\nnewuidmap: all is well", "\r\u{7}"] {
                    let target = Target::new(ALICE);
                    let call = world.helper(kind).arg(target.pid().to_string()).args([bad, "100000", "10"]);
                    let answer = world.answer(kind, target, call);
                    answer.refused("control characters");
                    let lines = answer.outcome.text().lines().filter(|line| line.contains("all is well")).count();
                    assert!(
                        lines <= 1
                            && !answer.outcome.text().contains('\u{1b}')
                            && !answer.outcome.text().contains('\r')
                    );
                    assert!(!answer.outcome.text().lines().any(|line| line.starts_with("newuidmap: all is well")));
                }
            }
        }),
    ];
    all.extend(descriptors());
    all
}

/// `fd:N`.
fn descriptors() -> Vec<Trial> {
    const PATH: i32 = libc::O_PATH | libc::O_DIRECTORY;
    fn by_descriptor(world: &mut World, kind: Kind, flags: i32, path: impl Fn(i32) -> String) -> Answer {
        let target = Target::new(ALICE);
        let path = path(target.pid().as_raw());
        let call = world.helper(kind).opens(7, path, flags).words("fd:7 0 100000 10");
        world.answer(kind, target, call)
    }
    fn usage_or_refused(world: &World, answer: &Answer, why: &str) {
        answer.refused(why);
        if world.ours() {
            assert!(!answer.outcome.stderr.is_empty(), "{why}: a message");
        }
    }
    vec![
        Trial::new("fd:N names a process by a descriptor on its procfs directory", |world| {
            for kind in Kind::BOTH {
                for (flags, why) in
                    [(libc::O_DIRECTORY, "O_RDONLY"), (PATH, "O_PATH"), (libc::O_PATH, "O_PATH without O_DIRECTORY")]
                {
                    by_descriptor(world, kind, flags, |pid| format!("/proc/{pid}")).did(
                        expected("fd:N"),
                        "0 100000 10",
                        why,
                    );
                }
            }
        }),
        Trial::new("fd:N may be a task directory", |world| {
            for kind in Kind::BOTH {
                by_descriptor(world, kind, PATH, |pid| format!("/proc/{pid}/task/{pid}")).did(
                    expected("fd:N"),
                    "0 100000 10",
                    "task",
                );
            }
        }),
        Trial::new("fd:0 is a descriptor like any other", |world| {
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let directory = std::fs::File::open(format!("/proc/{}", target.pid())).expect("open");
                let call = world
                    .helper(kind)
                    .as_user(move || sys::place(std::os::fd::AsRawFd::as_raw_fd(&directory), 0).expect("dup2"));
                let call = call.words("fd:0 0 100000 10");
                world.answer(kind, target, call).did(expected("fd:N"), "0 100000 10", "fd:0");
            }
        }),
        Trial::new("fd:N with N closed is a usage error, whichever number it is", |world| {
            for kind in Kind::BOTH {
                for number in [3, 4, 5, 6, 7, 77, 1023, 1024, 2_147_483_647] {
                    let target = Target::new(ALICE);
                    let call = world.helper(kind).arg(format!("fd:{number}")).words("0 100000 10");
                    let answer = world.answer(kind, target, call);
                    usage_or_refused(world, &answer, "closed");
                    is_usage(world, kind, &answer.outcome, "closed");
                }
            }
        }),
        Trial::new("fd:N on a directory that is not procfs is a usage error", |world| {
            for kind in Kind::BOTH {
                for path in ["/", "/tmp", "/etc", "/sys", "/dev"] {
                    let answer = by_descriptor(world, kind, PATH, |_| path.to_owned());
                    usage_or_refused(world, &answer, path);
                    is_usage(world, kind, &answer.outcome, path);
                }
            }
        }),
        Trial::new("fd:N on another directory of procfs is refused", |world| {
            for kind in Kind::BOTH {
                for path in ["/proc", "/proc/sys", "/proc/PID/task", "/proc/PID/ns", "/proc/PID/fd", "/proc/PID/attr"] {
                    let answer = by_descriptor(world, kind, PATH, |pid| path.replace("PID", &pid.to_string()));
                    usage_or_refused(world, &answer, path);
                }
            }
        }),
        Trial::new("fd:N on a regular file of procfs is refused", |world| {
            for kind in Kind::BOTH {
                for path in ["/proc/PID/uid_map", "/proc/PID/status", "/proc/version"] {
                    for flags in [0, libc::O_PATH] {
                        let answer = by_descriptor(world, kind, flags, |pid| path.replace("PID", &pid.to_string()));
                        usage_or_refused(world, &answer, path);
                    }
                }
            }
        }),
        Trial::new(
            "fd:N on the directory of a process that has ended is refused, also when its pid is used again",
            |world| {
                world.needs_tool("/proc/sys/kernel/ns_last_pid");
                for kind in Kind::BOTH {
                    let first = Target::new(ALICE);
                    let pid = first.pid();
                    let directory = std::fs::File::open(format!("/proc/{pid}")).expect("open");
                    first.end();
                    std::fs::write("/proc/sys/kernel/ns_last_pid", (pid.as_raw() - 1).to_string())
                        .expect("ns_last_pid");
                    let second = Target::new(ALICE);
                    assert_eq!(second.pid(), pid, "the pid is used again");
                    let call = world.helper(kind).fd(7, directory).words("fd:7 0 100000 10");
                    world.answer(kind, second, call).refused("stale directory");
                }
            },
        ),
        Trial::new("fd:N on bob's process is refused", |world| {
            for kind in Kind::BOTH {
                let target = Target::new(BOB);
                let path = format!("/proc/{}", target.pid());
                let call = world.helper(kind).opens(7, path, PATH).words("fd:7 0 100000 10");
                let answer = world.answer(kind, target, call);
                answer.refused("bob's");
                if world.ours() {
                    answer.says(&["owned by a different user"], "bob's");
                }
            }
        }),
        Trial::new("fd:N may be a real pidfd", |world| {
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let pidfd = sys::pidfd(target.pid()).expect("pidfd_open");
                let call = world.helper(kind).fd(7, pidfd).words("fd:7 0 100000 10");
                world.answer(kind, target, call).did(expected("real pidfd as fd:N"), "0 100000 10", "pidfd");
            }
        }),
        Trial::new("a pidfd of bob's process is refused", |world| {
            for kind in Kind::BOTH {
                let target = Target::new(BOB);
                let pidfd = sys::pidfd(target.pid()).expect("pidfd_open");
                let call = world.helper(kind).fd(7, pidfd).words("fd:7 0 100000 10");
                world.answer(kind, target, call).refused("bob's pidfd");
            }
        }),
        Trial::new("a pidfd of a process that has ended is refused, also when its pid is used again", |world| {
            world.needs_tool("/proc/sys/kernel/ns_last_pid");
            for kind in Kind::BOTH {
                let first = Target::new(ALICE);
                let pid = first.pid();
                let pidfd = sys::pidfd(pid).expect("pidfd_open");
                first.end();
                let call = world.helper(kind).fd(7, pidfd.try_clone().expect("dup")).words("fd:7 0 100000 10");
                let spare = Target::new(ALICE);
                world.answer(kind, spare, call).refused("pidfd of a dead process");
                std::fs::write("/proc/sys/kernel/ns_last_pid", (pid.as_raw() - 1).to_string()).expect("ns_last_pid");
                let second = Target::new(ALICE);
                assert_eq!(second.pid(), pid, "the pid is used again");
                let call = world.helper(kind).fd(7, pidfd).words("fd:7 0 100000 10");
                world.answer(kind, second, call).refused("stale pidfd");
            }
        }),
        Trial::new("other descriptors are no target: file, pipe, socket, eventfd, directory of sysfs", |world| {
            for kind in Kind::BOTH {
                let (pipe, _other) = sys::pipe().expect("pipe");
                let (socket, _peer) = std::os::unix::net::UnixStream::pair().expect("socketpair");
                let file = std::fs::File::open("/etc/passwd").expect("open");
                for (descriptor, why) in [(pipe, "pipe"), (socket.into(), "socket"), (file.into(), "file")] {
                    let target = Target::new(ALICE);
                    let call: Call = world.helper(kind).fd(7, descriptor).words("fd:7 0 100000 10");
                    world.answer(kind, target, call).refused(why);
                }
            }
        }),
        Trial::new("a fake pidfd by fdinfo does not exist: a FIFO or memfd called Pid: is refused", |world| {
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let path = format!("/tmp/Pid:\t{}", target.pid());
                std::fs::write(&path, format!("Pid:\t{}\n", target.pid())).expect("write");
                let call = world.helper(kind).opens(7, path, 0).words("fd:7 0 100000 10");
                world.answer(kind, target, call).did(Does::Refuses, "", "a file named like fdinfo");
            }
        }),
    ]
}
