//! The command: exit status, descriptors, environment, signals, user, directory.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::signal::{Signal, kill};
use tests::{Fd, Trial};

use crate::case::{Case, EV, both, once, own, wait_for};

/// The lines `KEY:<tab>VALUE` of a /proc/PID/status.
fn fields(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

fn assert_signals_are_default(case: &mut Case<'_>, status: &str) {
    let fields = fields(status);
    for key in ["SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(u64::from_str_radix(&fields[key], 16), Ok(0), "{key} in {status}");
    }
    case.nothing_left("signals");
}

const OUTSIDE: &str = "/home/alice/outside";

/// Starts a shell inside that says `ready` in a file, runs `script` and waits; sends `signal` to spawn; the exit status.
fn signalled(case: &mut Case<'_>, script: &str, signal: Signal) -> tests::Outcome {
    case.world.remove(OUTSIDE);
    fs::create_dir(OUTSIDE).expect("mkdir");
    case.world.mode(OUTSIDE, 0o777);
    let script = format!("{script}\ntouch /mnt/ready; while :; do usleep 5000; done");
    let call = case.run_call(&["--bind", &format!("{OUTSIDE}:/mnt")], &["/bin/sh", "-c", &script]);
    let running = call.start();
    let _: () = wait_for("the command", || fs::exists(format!("{OUTSIDE}/ready")).ok()?.then_some(()));
    kill(running.pid(), signal).expect("kill");
    running.finish(case.world)
}

pub fn trials() -> Vec<Trial> {
    [
        both("the exit status is the command's own", |case| {
            for code in [0, 1, 7, 77, 124, 125, 126, 127, 128, 129, 255] {
                case.sh(&[], &format!("exit {code}")).assert_code(code, "exit");
            }
            case.nothing_left("exit");
        }),
        both("a command killed by signal N gives 128+N", |case| {
            // A child is killed, since the kernel drops what process 1 sends to itself; its shell hands the status on.
            case.sh(&[], "sh -c 'kill -TERM $$'; exit $?").assert_code(143, "a child by TERM");
            case.sh(&[], "sh -c 'kill -SEGV $$'; exit $?").assert_code(139, "a child by SEGV");
            let (read, write) = tests::sys::pipe().expect("pipe");
            let running = case.run_call(&["--info-fd", "9"], &["/bin/sleep", "1000"]).fd(9, write).start();
            let pid = crate::handoff::created_pid(&read);
            crate::handoff::await_state(&read, "running");
            // From outside only KILL ends a process 1 that has set up nothing.
            kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
            running.finish(case.world).assert_code(137, "process 1 by KILL");
            case.nothing_left("killed");
        }),
        both("what cannot be executed is 126, what is not there is 127, each with its cause", |case| {
            let elf = |machine: u8| {
                let mut bytes = vec![0_u8; 64];
                bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
                bytes[16] = 2;
                bytes[18] = machine;
                bytes
            };
            let put = |name: &str, content: &[u8], mode: u32| {
                let path = format!("{EV}/bin/{name}");
                fs::write(&path, content).expect("write");
                fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("chmod");
                std::os::unix::fs::lchown(&path, Some(100_000), Some(100_000)).expect("chown");
            };
            put("arm", &elf(183), 0o755);
            put("text", b"just words\n", 0o755);
            put("script", b"#!/usr/bin/perl -w\n", 0o755);
            put("plain", b"#!/bin/sh\n", 0o644);
            std::os::unix::fs::symlink("/nowhere/at/all", format!("{EV}/bin/dangling")).expect("symlink");
            let cases: [(&str, i32, &[&str]); 11] = [
                ("/bin/nothing", 127, &["/bin/nothing", "no such command"]),
                ("nothing", 127, &["nothing", "no such command"]),
                ("/bin/true/x", 127, &["/bin/true/x"]),
                ("/bin/arm", 126, &["aarch64", "x86_64"]),
                ("arm", 126, &["aarch64"]),
                ("/bin/text", 126, &["/bin/text", "#!"]),
                ("/bin/script", 126, &["/usr/bin/perl", "missing"]),
                ("/bin/plain", 126, &["not executable", "644"]),
                ("plain", 126, &["not executable"]),
                ("/bin", 126, &["directory"]),
                ("/bin/dangling", 126, &["leads to nothing"]),
            ];
            for (command, code, said) in cases {
                case.fails(&[EV, "--", command], code, said);
            }
        }),
        both("a FIFO or a device in the command's place is refused at once", |case| {
            nix::unistd::mkfifo(
                format!("{EV}/bin/fifo").as_str(),
                nix::sys::stat::Mode::from_bits_truncate(0o777),
            )
            .expect("mkfifo");
            case.world.mode(format!("{EV}/bin/fifo"), 0o777);
            let begin = std::time::Instant::now();
            case.fails(&["--timeout", "8", EV, "--", "/bin/fifo"], 126, &["/bin/fifo"]);
            case.fails(&["--timeout", "8", EV, "--", "/dev/tty"], 126, &["/dev/tty"]);
            assert!(begin.elapsed().as_secs() < 8, "spawn has waited for a FIFO");
        }),
        both("a wrong command line is 125, and hold's is 64", |case| {
            for words in [
                vec!["run", "--frob"],
                vec!["run", "a", "b"],
                vec!["run", "--map", "other", EV],
                vec!["run", "--timeout", "0", EV],
                vec!["go", "x"],
            ] {
                let call = case.spawn(&words);
                let outcome = call.run(case.world);
                outcome.assert_code(125, &words.join(" "));
                assert_eq!(outcome.out(), "");
            }
            let call = case.spawn(&["hold", "--frob"]);
            call.run(case.world).assert_code(64, "hold --frob");
            let call = case.spawn(&["--version"]);
            let outcome = call.run(case.world);
            outcome.assert_code(0, "--version");
            assert!(outcome.out().starts_with("spawn "), "{}", outcome.out());
        }),
        both("standard input, output and error are passed on as pipes and files", |case| {
            let call = case.run_call(&[], &["/bin/sh", "-c", "cat; echo error >&2"]).stdin("through\nthe pipe\n");
            let outcome = call.run(case.world);
            outcome.assert_code(0, "cat");
            assert_eq!((outcome.out().as_str(), outcome.text().as_str()), ("through\nthe pipe\n", "error\n"));
            let outcome = case.out(&[], "readlink /proc/self/fd/1; stat -L -c %F /proc/self/fd/2");
            assert!(outcome.starts_with("pipe:") && outcome.ends_with("fifo\n"), "{outcome}");
        }),
        both("a megabyte through standard input arrives whole", |case| {
            case.world.remove(OUTSIDE);
            let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
            fs::write(OUTSIDE, &bytes).expect("write");
            let file = fs::File::open(OUTSIDE).expect("open");
            let call = case.run_call(&[], &["/bin/cat"]).as_user(move || {
                tests::sys::place(std::os::fd::AsRawFd::as_raw_fd(&file), 0).expect("dup2");
            });
            let outcome = call.run(case.world);
            outcome.assert_code(0, "cat");
            assert!(outcome.stdout == bytes, "{} bytes came", outcome.stdout.len());
        }),
        both("closed standard descriptors are /dev/null inside, and nothing of spawn's lands on them", |case| {
            for closed in [vec![0], vec![1], vec![2], vec![0, 1], vec![0, 1, 2]] {
                case.world.remove(OUTSIDE);
                fs::create_dir(OUTSIDE).expect("mkdir");
                case.world.mode(OUTSIDE, 0o777);
                let script = "for n in 0 1 2; do readlink /proc/self/fd/$n || echo closed; done >/mnt/out 2>/mnt/err; exit 5";
                // The shell's own redirections hide 1 and 2, so each is copied first.
                let script = format!("exec 11<&0 12>&1 13>&2\n{}", script.replace("self/fd/$n", "self/fd/1$((n+1))"));
                let bind = format!("{OUTSIDE}:/mnt");
                let mut call = case.run_call(&["--bind", &bind], &["/bin/sh", "-c", &script]);
                for number in &closed {
                    call = call.stdio(*number, Fd::Closed);
                }
                call.run(case.world).assert_code(5, "closed");
                let found = fs::read_to_string(format!("{OUTSIDE}/out")).expect("out");
                for (number, line) in found.lines().enumerate() {
                    if closed.contains(&number) {
                        assert_eq!(line, "/dev/null", "descriptor {number} of {closed:?} closed: {found}");
                    }
                }
                assert_eq!(found.lines().count(), 3, "{found}");
            }
            case.nothing_left("closed");
        }),
        both("no descriptor of the caller's gets in, and no working directory", |case| {
            let call = case
                .run_call(&[], &["/bin/ls", "-l", "/proc/self/fd", "/proc/self/cwd"])
                .opens(9, "/etc", libc::O_DIRECTORY)
                .opens(10, "/", libc::O_PATH)
                .opens(200, "/home/victim/secret", 0)
                .as_user(|| std::env::set_current_dir("/home/victim").expect("chdir"));
            let outcome = call.run(case.world);
            outcome.assert_code(0, "ls");
            let out = outcome.out();
            let mut links: Vec<&str> = out.lines().filter_map(|line| line.split_once(" -> ")).map(|(left, _)| left).collect();
            links.iter_mut().for_each(|left| *left = left.rsplit(' ').next().unwrap_or_default());
            links.sort_unstable();
            assert_eq!(links, ["/proc/self/cwd", "0", "1", "2"], "{out}");
            // Beside them the directory that ls reads.
            let call = case.run_call(&[], &["/bin/ls", "/proc/self/fd"]).opens(9, "/etc", libc::O_DIRECTORY);
            assert_eq!(call.run(case.world).out(), "0\n1\n2\n3\n");
            assert!(outcome.out().contains("/proc/self/cwd -> /\n"), "{}", outcome.out());
            assert!(!outcome.out().contains("etc") && !outcome.out().contains("victim"), "{}", outcome.out());
        }),
        both("the environment is container=lxc, PATH, TERM, HOME and what --env names; no secret of the caller's", |case| {
            let call = case
                .run_call(&["--env", "A=b=c", "--env", "PASSED", "--env", "ABSENT", "--env", "EMPTY="], &["/bin/env"])
                .env("SECRET", "hunter2")
                .env("LD_PRELOAD", "/x.so")
                .env("PASSED", "on")
                .env("TERM", "xterm-256color");
            let outcome = call.run(case.world);
            outcome.assert_code(0, "env");
            let out = outcome.out();
            let mut lines: Vec<&str> = out.lines().collect();
            lines.sort_unstable();
            assert_eq!(
                lines,
                [
                    "A=b=c",
                    "EMPTY=",
                    "HOME=/root",
                    "PASSED=on",
                    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    "TERM=xterm-256color",
                    "container=lxc",
                ]
            );
            let call = case.run_call(&[], &["/bin/cat", "/proc/1/environ"]).env("TERM", "x\nSECRET=1");
            let out = call.run(case.world).out();
            assert!(out.contains("container=lxc\0") && !out.contains("SECRET"), "{out:?}");
        }),
        both("the command's signals have their default action and none is blocked", |case| {
            let outcome = case.run(&[], &["/bin/cat", "/proc/self/status"]);
            assert_signals_are_default(case, &outcome.out());
        }),
        both("a caller that ignores every signal, SIGCHLD too, and blocks all changes nothing", |case| {
            let hostile = || {
                for signal in (1..65).filter(|n| ![libc::SIGKILL, libc::SIGSTOP, 32, 33].contains(n)) {
                    tests::sys::ignore_signal(signal).expect("SIG_IGN");
                }
                crate::sys::block_all_signals().expect("sigprocmask");
            };
            let outcome =
                case.run_call(&[], &["/bin/cat", "/proc/self/status"]).as_user(hostile).run(case.world);
            outcome.assert_code(0, "cat");
            assert_signals_are_default(case, &outcome.out());
            for code in [0, 7] {
                let call = case.run_call(&[], &["/bin/sh", "-c", &format!("exit {code}")]).as_user(hostile);
                call.run(case.world).assert_code(code, "hostile caller");
            }
            let call = case.run_call(&[], &["/bin/sh", "-c", "sh -c 'kill -9 $$'; exit $?"]).as_user(hostile);
            call.run(case.world).assert_code(137, "a killed child");
        }),
        once("a caller in hundreds of groups that ignores SIGHUP changes nothing", |case| {
            // The line of groups stands before the signals in /proc/PID/status.
            let groups: Vec<u32> = (0..2000).map(|n| 1_000_000_000 + n).collect();
            let call = case
                .run_call(&[], &["/bin/cat", "/proc/self/status"])
                .as_is()
                .as_root(move || {
                    tests::ALICE.become_with_gid(tests::ALICE.gid, &groups);
                    tests::sys::ignore_signal(libc::SIGHUP).expect("SIG_IGN");
                });
            let outcome = call.run(case.world);
            outcome.assert_code(0, "cat");
            assert_signals_are_default(case, &outcome.out());
        }),
        both("TERM, INT, HUP, USR1 and USR2 reach the command's handler", |case| {
            for (signal, name) in [
                (Signal::SIGTERM, "TERM"),
                (Signal::SIGINT, "INT"),
                (Signal::SIGHUP, "HUP"),
                (Signal::SIGUSR1, "USR1"),
                (Signal::SIGUSR2, "USR2"),
            ] {
                let outcome = signalled(case, &format!("trap 'echo got {name}; exit 42' {name}"), signal);
                outcome.assert_code(42, name);
                assert_eq!(outcome.out(), format!("got {name}\n"));
            }
            case.nothing_left("forwarded");
        }),
        both("a signal that the command has not set up ends the container with 128+N", |case| {
            for (signal, code) in
                [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGHUP, 129), (Signal::SIGUSR1, 138)]
            {
                signalled(case, ":", signal).assert_code(code, "default action");
                case.nothing_left("default action");
            }
        }),
        both("a signal that the command ignores does nothing", |case| {
            fs::create_dir(OUTSIDE).expect("mkdir");
            case.world.mode(OUTSIDE, 0o777);
            let script = "trap '' TERM; touch /mnt/ready; while ! test -e /mnt/end; do usleep 5000; done; exit 3";
            let running = case.run_call(&["--bind", &format!("{OUTSIDE}:/mnt")], &["/bin/sh", "-c", script]).start();
            let _: () = wait_for("the command", || fs::exists(format!("{OUTSIDE}/ready")).ok()?.then_some(()));
            for _ in 0..3 {
                kill(running.pid(), Signal::SIGTERM).expect("kill");
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            fs::write(format!("{OUTSIDE}/end"), "").expect("end");
            running.finish(case.world).assert_code(3, "ignored");
        }),
        both("an init that TERM reaches is told to halt and not killed", |case| {
            fs::write(
                format!("{EV}/bin/upstart"),
                "#!/bin/sh\ntrap 'echo halt; exit 9' PWR\ntrap 'echo term' TERM\ntouch /mnt/ready\nwhile :; do usleep 5000; done\n",
            )
            .expect("write");
            case.world.mode(format!("{EV}/bin/upstart"), 0o755);
            fs::create_dir(OUTSIDE).expect("mkdir");
            case.world.mode(OUTSIDE, 0o777);
            let bind = format!("{OUTSIDE}:/mnt");
            let running = case.run_call(&["--bind", &bind], &["/bin/upstart"]).start();
            let _: () = wait_for("the init", || fs::exists(format!("{OUTSIDE}/ready")).ok()?.then_some(()));
            kill(running.pid(), Signal::SIGTERM).expect("kill");
            let outcome = running.finish(case.world);
            outcome.assert_code(9, "an init");
            assert_eq!(outcome.out(), "halt\n");
        }),
        both("kill(-1) and signals to the parent from inside leave spawn alive and the status right", |case| {
            case.sh(&[], "(usleep 1000; kill -9 -1) & kill -9 0; kill -9 $PPID; kill -9 -1; exit 6").assert_code(6, "kill");
            case.nothing_left("kill");
        }),
        both("--user takes a number, a number with a group, or a name of the rootfs's passwd", |case| {
            let id = "id -u; id -g; id -G; echo $HOME";
            assert_eq!(case.out(&[], id), "0\n0\n0\n/root\n");
            assert_eq!(case.out(&["--user", "ada"], id), "1000\n100\n100 10\n/home/ada\n");
            assert_eq!(case.out(&["--user", "1000"], id), "1000\n100\n100\n/home/ada\n");
            assert_eq!(case.out(&["--user", "4242:7"], id), "4242\n7\n7\n/\n");
            assert_eq!(case.out(&["--user", "ada", "--env", "HOME=/x"], "echo $HOME"), "/x\n");
            let status = case.run(&["--user", "ada"], &["/bin/cat", "/proc/self/status"]);
            let fields = fields(&status.out());
            for key in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert_eq!(u64::from_str_radix(&fields[key], 16), Ok(0), "{key}");
            }
            assert_eq!(fields["Uid"], "1000\t1000\t1000\t1000");
        }),
        both("--user refuses whatever is neither an id nor a name, and never means root by it", |case| {
            for word in ["", "1000:", ":5", "+0", "-1", "99999999999", "4294967295", "0x0", " 0", "1:2:3", "no\nbody"] {
                case.fails(&[&format!("--user={word}"), EV, "--", "/bin/id"], 125, &["--user"]);
            }
            case.fails(&["--user", "nobody-here", EV, "--", "/bin/id"], 125, &["nobody-here", "/etc/passwd"]);
            case.fails(&["--user", "70000", EV, "--", "/bin/id"], 125, &["--user", "not mapped"]);
        }),
        both("a passwd entry with the id -1 does not make root of its user", |case| {
            for (name, line) in [
                ("minus", "minus:x:4294967295:4294967295::/:/bin/sh\n"),
                ("signed", "signed:x:-1:-1::/:/bin/sh\n"),
                ("nogid", "nogid:x:5:4294967295::/:/bin/sh\n"),
                ("plus", "plus:x:+0:+0::/:/bin/sh\n"),
            ] {
                fs::write(format!("{EV}/etc/passwd"), line).expect("passwd");
                let outcome = case.run(&["--user", name], &["/bin/id", "-u"]);
                outcome.assert_code(125, name);
                assert_eq!(outcome.out(), "", "{name}");
            }
        }),
        both("--workdir is entered inside, as the command's user, and a link never leads out of the rootfs", |case| {
            fs::write("/etc/outside", "x").expect("write");
            assert_eq!(case.out(&["--workdir", "/home/ada"], "pwd"), "/home/ada\n");
            std::os::unix::fs::symlink("/etc", format!("{EV}/root/link")).expect("symlink");
            std::os::unix::fs::symlink("../../../../../../etc", format!("{EV}/root/up")).expect("symlink");
            for link in ["/root/link", "/root/up"] {
                assert_eq!(case.out(&["--workdir", link], "ls outside 2>/dev/null; ls passwd"), "passwd\n", "{link}");
            }
            case.fails(&["--workdir", "/nothing", EV, "--", "/bin/pwd"], 125, &["working directory", "/nothing"]);
            for magic in ["/proc/self/fd/0", "/proc/self/cwd", "/proc/1/root"] {
                case.fails(&["--workdir", magic, EV, "--", "/bin/pwd"], 125, &[magic]);
            }
            fs::create_dir(format!("{EV}/root/closed")).expect("mkdir");
            case.world.mode(format!("{EV}/root/closed"), 0o700);
            own(&format!("{EV}/root/closed"), tests::User { name: "root inside", uid: 100_000, gid: 100_000 });
            case.fails(&["--user", "ada", "--workdir", "/root/closed", EV, "--", "/bin/pwd"], 125, &["/root/closed"]);
        }),
        once("what other programs call a command is answered with what it is called here", |case| {
            for (word, there) in [("start", "spawn run -d NAME"), ("rm", "rootfs rm NAME"), ("ps", "spawn ls -f")] {
                let outcome = case.spawn(&[word, "c"]).run(case.world);
                outcome.assert_code(64, word);
                assert!(outcome.text().starts_with(&format!("spawn: there is no command {word}: ")), "{}", outcome.text());
                assert!(outcome.text().contains(there) && outcome.text().lines().count() == 1, "{}", outcome.text());
            }
            let outcome = case.spawn(&["strat"]).run(case.world);
            assert!(outcome.text().contains("unrecognized subcommand 'strat'"), "{}", outcome.text());
        }),
        both("--hostname and the container's name are the host name inside, and the host keeps its own", |case| {
            let before = fs::read_to_string("/proc/sys/kernel/hostname").expect("name");
            assert_eq!(case.out(&[], "hostname"), "ev\n");
            assert_eq!(case.out(&["--name", "a_b"], "hostname"), "a-b\n");
            assert_eq!(case.out(&["--hostname", "box.example"], "hostname; hostname changed; hostname"), "box.example\nchanged\n");
            assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").expect("name"), before);
            let long = "x".repeat(65);
            for name in ["", long.as_str(), "a\nb"] {
                case.fails(&["--hostname", name, EV], 125, &["--hostname"]);
            }
            for name in ["", "a/b", "..", "-x", "a b"] {
                case.fails(&[&format!("--name={name}"), EV], 125, &["--name"]);
            }
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}
