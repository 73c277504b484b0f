//! `spawn exec`: what the command gets, and what a hostile container cannot get from whoever enters it.

use std::fs;
use std::time::{Duration, Instant};

use tests::{Call, Trial};

use crate::background::{pty, spawn, start, told};
use crate::case::{Case, EV, V, both, once};
use crate::sys;

const IDLE: &str = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done";

/// `spawn exec c -- /bin/sh -c SCRIPT` with more options.
#[track_caller]
fn inside(case: &mut Case<'_>, options: &[&str], script: &str) -> String {
    let words: Vec<&str> =
        ["exec", "c"].iter().chain(options).chain(&["--", "/bin/sh", "-c", script]).copied().collect();
    told(case, &words)
}

fn exec_call(case: &Case<'_>, script: &str) -> Call {
    case.spawn(&["exec", "c", "--", "/bin/sh", "-c", script])
}

fn sum(path: &str) -> Vec<u8> {
    fs::read(path).expect(path)
}

pub fn trials() -> Vec<Trial> {
    [
        both("a command that enters has every namespace of process 1, its environment, and the status of its end", |case| {
            start(case, "c", IDLE);
            let out = inside(case, &[], "for n in user mnt pid net uts ipc cgroup; do \
                test $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n) && echo -n $n' '; done; echo; id -u; id -g; pwd; umask; env | grep -v TERM= | sort");
            assert_eq!(
                out,
                "user mnt pid net uts ipc cgroup \n0\n0\n/\n0022\nHOME=/root\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPWD=/\nSHLVL=1\ncontainer=lxc\n"
            );
            for (script, code) in [("exit 0", 0), ("exit 77", 77), ("kill -9 $$", 137)] {
                let outcome = exec_call(case, script).run(case.world);
                outcome.assert_code(code, script);
            }
            for (command, code, said) in
                [("nonesuch", 127, "no such command"), ("/etc/passwd", 126, "not executable"), ("/tmp", 126, "/tmp")]
            {
                let (got, _, text) = spawn(case, &["exec", "c", "--", command]);
                assert!(got == Some(code) && text.contains(said) && text.matches('\n').count() == 1, "{command}: {text}");
            }
            let (code, _, text) = spawn(case, &["exec", "gone", "--", "true"]);
            assert!(code == Some(125) && text.contains("there is no container gone"), "{text}");
            let (code, ..) = spawn(case, &["exec"]);
            assert_eq!(code, Some(125), "a wrong command line is no status of the command");
            let out = inside(case, &["-e", "A=b", "-e", "HOME=/x", "-w", "/var/log"], "echo $A $HOME $(pwd)");
            assert_eq!(out, "b /x /var/log\n");
            let secret = exec_call(case, "env").env("SECRET", "1").run(case.world).out();
            assert!(!secret.contains("SECRET"), "{secret}");
            told(case, &["stop", "c"]);
            case.nothing_left("exec");
        }),
        once("on kernels whose setns takes no pidfd the namespaces are joined one by one", |case| {
            start(case, "c", IDLE);
            let script = "for n in user mnt pid net uts ipc cgroup; do \
                test $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n) && echo -n $n' '; done";
            let call = exec_call(case, script).as_root(|| sys::without_setns_of_a_pidfd().expect("seccomp"));
            let outcome = call.run(case.world);
            assert_eq!((outcome.code(), outcome.out().as_str()), (Some(0), "user mnt pid net uts ipc cgroup "), "{}", outcome.text());
            told(case, &["stop", "c"]);
        }),
        both("only the standard descriptors go in, and no directory of the host (CVE-2024-21626, CVE-2016-8649)", |case| {
            start(case, "c", IDLE);
            let call = exec_call(case, "ls /proc/self/fd; cat /proc/self/fd/9/passwd 2>&1 | head -c 40; pwd")
                .opens(9, "/etc", libc::O_RDONLY | libc::O_DIRECTORY)
                .opens(10, "/", libc::O_PATH | libc::O_DIRECTORY)
                .as_user(|| std::env::set_current_dir("/etc").expect("chdir"));
            let outcome = call.run(case.world);
            let lines = outcome.out();
            // 3 is the directory that ls reads.
            assert!(lines.starts_with("0\n1\n2\n3\ncat: can't open") && lines.ends_with("/\n"), "{lines}");
            for directory in ["/proc/self/fd/9", "/proc/self/fd/10", "/proc/1/cwd/../../..//etc/../nowhere"] {
                let call = case
                    .spawn(&["exec", "c", "-w", directory, "--", "/bin/pwd"])
                    .opens(9, "/etc", libc::O_RDONLY | libc::O_DIRECTORY);
                let outcome = call.run(case.world);
                outcome.assert_code(125, directory);
                assert!(outcome.text().contains(directory), "{}", outcome.text());
            }
            told(case, &["stop", "c"]);
        }),
        once("whoever enters cannot be looked into before its exec (CVE-2016-9962)", |case| {
            // Every process that appears is looked at by root inside, as fast as a shell can.
            let watch = "echo ready; while :; do for p in /proc/[0-9]*; do for l in exe cwd root fd/0 fd/1 fd/2 fd/3 fd/4 fd/5 fd/6 fd/7 fd/8 fd/9; do \
                readlink $p/$l; done; ls $p/cwd/home/alice 2>/dev/null; done >>/tmp/seen 2>/dev/null; done";
            start(case, "c", watch);
            // The shell gets as far as this machine lets it; it is given more to look at until it has seen enough.
            let seen = || fs::read_to_string(format!("{EV}/tmp/seen")).unwrap_or_default();
            let begin = Instant::now();
            let mut entered = 0;
            while entered < 150 || (seen().lines().count() <= 500 && begin.elapsed() < Duration::from_secs(60)) {
                assert_eq!(told(case, &["exec", "c", "--", "/bin/true"]), "");
                entered += 1;
            }
            told(case, &["stop", "-t", "0", "c"]);
            let seen = seen();
            assert!(seen.lines().count() > 500, "it has looked");
            for line in seen.lines().filter(|line| line.starts_with('/')) {
                let own = ["/", "/bin/busybox", "/dev/console", "/dev/null", "/tmp/seen", "/tmp"].contains(&line)
                    || line.starts_with("/proc")
                    || line.starts_with("/dev/pts/");
                assert!(own, "{line} was seen inside");
            }
            assert!(!seen.contains("spawn"), "{seen}");
        }),
        once("a script that names /proc/self/exe as its interpreter does not get hold of spawn (CVE-2019-5736)", |case| {
            let program = "/home/alice/spawn";
            fs::copy("/run/bin/spawn", program).expect("copy");
            case.world.mode(program, 0o755);
            crate::case::own(program, tests::ALICE);
            let own = "/home/alice/own";
            case.make_rootfs(own, tests::ALICE.uid);
            let before = sum(program);
            for (rootfs, map) in [(EV, "auto"), (own, "self")] {
                fs::write(format!("{rootfs}/bin/x"), "#!/proc/self/exe\n").expect("script");
                case.world.mode(format!("{rootfs}/bin/x"), 0o755);
                let hunt = "echo ready; trap 'exit 0' TERM; while :; do for p in /proc/[0-9]*; do \
                    readlink $p/exe; (echo x >>$p/exe) 2>/dev/null && echo WROTE $p; done >>/tmp/seen 2>/dev/null; done";
                let call = case.call(program).args(["run", "-d", "--name", "c", "--map", map, rootfs, "--", "/bin/sh", "-c", hunt]);
                let outcome = call.run(case.world);
                outcome.assert_code(0, &outcome.text());
                for _ in 0..40 {
                    let outcome = case.call(program).args(["exec", "c", "--", "/bin/x"]).run(case.world);
                    assert_ne!(outcome.code(), Some(0), "{}", outcome.text());
                }
                told(case, &["stop", "-t", "0", "c"]);
                let seen = fs::read_to_string(format!("{rootfs}/tmp/seen")).expect("seen");
                assert!(seen.contains("/bin/busybox") && !seen.contains("WROTE"), "{seen}");
                // Where the caller's id is inside, it is not his file that is run.
                assert!(map == "auto" || !seen.contains("/home/alice/spawn"), "{seen}");
                assert!(before == sum(program), "spawn was written to");
                case.nothing_left(map);
            }
        }),
        both("whoever enters is under the filter of system calls, and cannot make writable what run shows read-only", |case| {
            for (mode, wanted) in [("ro", "2\n"), ("rw", "written\n2\n")] {
                let bind = format!("{V}:/mnt:{mode}");
                told(case, &["run", "-d", "--name", "c", "--bind", &bind, EV, "--", "/bin/sh", "-c", IDLE]);
                let script = "mount -o remount,bind,rw /mnt 2>/dev/null; (echo x >/mnt/x) 2>/dev/null && echo written; \
                    awk '/^Seccomp:/ { print $2 }' /proc/self/status";
                assert_eq!(inside(case, &[], script), wanted, "{mode}");
                told(case, &["stop", "c"]);
            }
        }),
        both("capabilities are those that process 1 can have, or none for a user; none is inheritable (CVE-2022-24769)", |case| {
            start(case, "c", IDLE);
            let caps = "grep -E 'Cap(Inh|Prm|Eff|Amb)|NoNew' /proc/self/status | tr '\\n' ' '; test $(grep CapBnd /proc/1/status | cut -f2) = $(grep CapBnd /proc/self/status | cut -f2) && echo same";
            let root = inside(case, &[], caps);
            let bounding = inside(case, &[], "grep CapBnd /proc/1/status | cut -f2");
            let full = bounding.trim();
            assert_eq!(
                root,
                format!("CapInh:\t0000000000000000 CapPrm:\t{full} CapEff:\t{full} CapAmb:\t0000000000000000 NoNewPrivs:\t0 same\n")
            );
            let user = inside(case, &["-u", "ada"], caps);
            for word in ["CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapAmb:\t0000000000000000", "same"] {
                assert!(user.contains(word), "{word}: {user}");
            }
            told(case, &["stop", "c"]);
        }),
        both("a user is a number or a name of the container, and nothing that looks like one (CVE-2026-30892)", |case| {
            start(case, "c", IDLE);
            assert_eq!(inside(case, &["-u", "ada"], "id -u; id -g; id -G; echo $HOME"), "1000\n100\n100 10\n/home/ada\n");
            assert_eq!(inside(case, &["-u", "1000:5"], "id -u; id -g"), "1000\n5\n");
            assert_eq!(inside(case, &["-u", "1"], "id -u"), "1\n");
            for user in ["1000:", "", "+0", "99999999999", "4294967295", "-1", "1x", "nobody-here"] {
                let outcome = case.spawn(&["exec", "c", &format!("--user={user}"), "--", "/bin/id"]).run(case.world);
                outcome.assert_code(125, user);
                assert!(!outcome.out().contains("uid=0"), "{user}: {}", outcome.out());
            }
            told(case, &["stop", "c"]);
        }),
        both("only the harmless devices open for whoever enters, and none is made", |case| {
            start(case, "c", IDLE);
            let script = "mknod /tmp/n b 8 0 2>/dev/null && echo made; for d in /dev/*; do test -c $d && stat -Lc '%t:%T' $d; done | sort -u | tr '\\n' ' '";
            assert_eq!(inside(case, &[], script), "1:3 1:5 1:7 1:8 1:9 5:0 5:2 88:0 ");
            told(case, &["stop", "c"]);
        }),
        once("signals from inside reach neither the supervisor nor who has entered", |case| {
            start(case, "c", IDLE);
            let outcome = exec_call(case, "kill -9 -1; sleep 0.2; echo alive; exit 4").run(case.world);
            // The shell itself is not among those that kill(-1) reaches; process 1 is not either.
            assert_eq!((outcome.code(), outcome.out().as_str()), (Some(4), "alive\n"), "{}", outcome.text());
            assert!(told(case, &["ls", "-f"]).contains("RUNNING"));
            told(case, &["stop", "c"]);
        }),
        once("a terminal of the caller's never goes in: the command has one of the container's (CVE-2016-10124)", |case| {
            case.world.needs_tool("/usr/bin/script");
            pty();
            start(case, "c", IDLE);
            let inner = "tty; test -t 0 && test -t 1 && test -t 2 && echo three; stty size; for f in 0 1 2; do readlink /proc/self/fd/$f; done";
            fs::write(format!("{EV}/bin/look"), format!("#!/bin/sh\n{inner}\n")).expect("script");
            case.world.mode(format!("{EV}/bin/look"), 0o755);
            let out = case.pipeline("script -qec 'stty rows 22 cols 66; tty; spawn exec c -- look; stty -a | grep -c \"[^-]icanon\"' /dev/null").out();
            let lines: Vec<&str> = out.lines().map(|line| line.trim_end_matches('\r')).collect();
            let at = lines.iter().position(|line| *line == "three").expect(&out);
            // `script` passes the end of its own input on, which stands before.
            assert!(lines[at - 1].contains("/dev/pts/"), "{out}");
            assert_eq!(lines[at + 1], "22 66", "{out}");
            assert_eq!(lines.last(), Some(&"1"), "the terminal is what it was: {out}");
            // Without a terminal outside, one is made when asked for; the end of the input is its end of file.
            let call = case.spawn(&["exec", "-t", "c", "--", "/bin/sh", "-c", "tty; cat; exit 6"]).stdin("typed\n");
            let outcome = call.run(case.world);
            assert_eq!(outcome.code(), Some(6), "{}", outcome.text());
            assert!(outcome.out().contains("/dev/pts/") && outcome.out().contains("typed"), "{}", outcome.out());
            told(case, &["stop", "c"]);
        }),
        once("a container that has put something else at /dev/pts/ptmx gives whoever enters no terminal", |case| {
            start(case, "c", IDLE);
            inside(case, &[], "umount -l /dev/pts; ln -s /dev/null /dev/pts/ptmx; mkfifo /dev/pts/fifo");
            for swap in ["true", "rm /dev/pts/ptmx; mkfifo /dev/pts/ptmx"] {
                inside(case, &[], swap);
                let outcome = case.spawn(&["exec", "-t", "c", "--", "/bin/true"]).run(case.world);
                outcome.assert_code(125, swap);
                assert!(outcome.text().contains("/dev/pts/ptmx"), "{}", outcome.text());
            }
            assert_eq!(fs::read_dir(V).expect("victim").count(), 1);
            told(case, &["stop", "c"]);
        }),
        once("who enters dies with the spawn that entered, and with the container", |case| {
            start(case, "c", IDLE);
            for _ in 0..20 {
                let running = exec_call(case, "exec sleep 1000").start();
                std::thread::sleep(std::time::Duration::from_millis(15));
                nix::sys::signal::kill(running.pid(), nix::sys::signal::Signal::SIGKILL).expect("kill");
                let _ = running.finish(case.world);
            }
            std::thread::sleep(std::time::Duration::from_millis(300));
            // Their orphans are this world's process 1's to reap, which is this one.
            crate::case::processes();
            let left = inside(case, &[], "ps | grep -c '[s]leep 1000'; true");
            assert_eq!(left, "0\n");
            let running = exec_call(case, "exec sleep 1000").start();
            crate::case::wait_for("the command", || {
                (inside(case, &[], "ps | grep -c '[s]leep 1000'; true") == "1\n").then_some(())
            });
            told(case, &["stop", "c"]);
            running.finish(case.world).assert_code(137, "the container has ended");
            case.nothing_left("exec");
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}
