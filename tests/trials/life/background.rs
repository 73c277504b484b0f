//! `run --detach`, `ls`, `info`, `stop`, `kill`, `restart`, `wait`, `logs`, `console`, and the supervisor.

use std::fs;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::Pid;
use tests::{ALICE, BOB, Trial};

use crate::case::{Case, EV, RUNTIME, both, command_line, once, processes, wait_for};

/// Handles SIGTERM, and says so.
const POLITE: &str = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done";

/// `spawn WORDS`: its code, standard output and standard error.
#[track_caller]
pub fn spawn(case: &mut Case<'_>, words: &[&str]) -> (Option<i32>, String, String) {
    let outcome = case.spawn(words).run(case.world);
    (outcome.code(), outcome.out(), outcome.text())
}

/// Standard output of `spawn WORDS`, which must exit with 0 and complain of nothing.
#[track_caller]
pub fn told(case: &mut Case<'_>, words: &[&str]) -> String {
    let (code, out, text) = spawn(case, words);
    assert_eq!((code, text.as_str()), (Some(0), ""), "{words:?}: {out}");
    out
}

/// Starts `script` in the background as `name`, and waits until it has written `ready`.
#[track_caller]
pub fn start(case: &mut Case<'_>, name: &str, script: &str) {
    let words = ["run", "-d", "--name", name, EV, "--", "/bin/sh", "-c", script];
    assert_eq!(told(case, &words), format!("{name}\n"));
    let begin = Instant::now();
    while !told(case, &["logs", name]).contains("ready") {
        assert!(begin.elapsed() < Duration::from_secs(30), "{name} is not ready");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The pids of the supervisors.
fn supervisors() -> Vec<Pid> {
    let all = processes().into_iter();
    all.filter(|pid| command_line(*pid).starts_with("spawn supervise ")).map(Pid::from_raw).collect()
}

fn kill_supervisors() {
    for supervisor in supervisors() {
        kill(supervisor, Signal::SIGKILL).expect("kill");
    }
    wait_for("their end", || supervisors().is_empty().then_some(()));
}

fn record(name: &str) -> String {
    fs::read_to_string(format!("{RUNTIME}/spawn/{name}/record")).expect("record")
}

/// Makes pseudo-terminals to be had in this world.
pub fn pty() {
    use nix::mount::{MsFlags, mount};
    if !std::path::Path::new("/dev/pts/ptmx").exists() {
        fs::create_dir_all("/dev/pts").expect("mkdir");
        let options = Some("newinstance,ptmxmode=0666,mode=0620");
        mount(Some("devpts"), "/dev/pts", Some("devpts"), MsFlags::empty(), options).expect("devpts");
        let _ = std::os::unix::fs::symlink("pts/ptmx", "/dev/ptmx");
    }
}

pub fn trials() -> Vec<Trial> {
    [
        both(
            "a container in the background has a supervisor without terminal, files or directory of the caller's",
            |case| {
                start(case, "c", POLITE);
                let all = supervisors();
                let [supervisor] = all[..] else { panic!("{all:?}") };
                let stat = fs::read_to_string(format!("/proc/{supervisor}/stat")).expect("stat");
                let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name").1.split(' ').collect();
                assert_eq!(
                    (fields[3], fields[4]),
                    (supervisor.to_string().as_str(), "0"),
                    "session and terminal: {stat}"
                );
                assert_eq!(fs::read_link(format!("/proc/{supervisor}/cwd")).expect("cwd").to_str(), Some("/"));
                for entry in fs::read_dir(format!("/proc/{supervisor}/fd")).expect("fd").flatten() {
                    let number: i32 = entry.file_name().to_str().expect("a number").parse().expect("a number");
                    let link = fs::read_link(entry.path()).expect("a link").display().to_string();
                    let own = [
                        "anon_inode:",
                        "socket:",
                        "/memfd:",
                        "/dev/pts/ptmx",
                        "/dev/pts/0",
                        &format!("{RUNTIME}/spawn/c"),
                    ];
                    if number < 3 {
                        assert_eq!(link, "/dev/null");
                    } else {
                        assert!(own.iter().any(|begin| link.starts_with(begin)), "{number}: {link}");
                    }
                }
                let table = told(case, &["ls", "-f"]);
                let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_ascii_whitespace().collect()).collect();
                assert_eq!(rows[0], ["NAME", "STATE", "AUTOSTART", "GROUPS", "IPV4", "IPV6", "UNPRIVILEGED"]);
                assert_eq!(rows[1], ["c", "RUNNING", "0", "-", "-", "-", "true"]);
                let info = told(case, &["info", "c"]);
                assert!(info.contains(&format!("{supervisor}, in the background")) && info.contains(EV), "{info}");
                assert!(told(case, &["ls", "--json"]).contains("\"state\": \"RUNNING\""));
                let out = told(case, &["stop", "c"]);
                assert!(out.starts_with("c: ended by SIGTERM after "), "{out}");
                case.nothing_left("stop");
            },
        ),
        both("a start in the background that fails says why, with the status of one in the foreground", |case| {
            for (command, code, said) in
                [("/bin/nonesuch", 127, "no such command"), ("/etc/passwd", 126, "is not executable")]
            {
                let call = case.spawn(&["run", "-d", EV, "--", command]);
                let outcome = call.run(case.world);
                case.failed(&outcome, code, &[said], command);
                assert_eq!(outcome.out(), "");
            }
            let call = case.spawn(&["run", "-d", "/gone", "--", "/bin/true"]);
            let outcome = call.run(case.world);
            case.failed(&outcome, 125, &["/gone"], "no rootfs");
            assert_eq!(told(case, &["run", "-d", EV, "--", "/bin/true"]), "ev\n");
            case.nothing_left("a command that ends at once");
        }),
        once("a name is one live container's: an asked one is refused, one made of a path gets a number", |case| {
            start(case, "c", POLITE);
            let (code, _, text) = spawn(case, &["run", "--name", "c", EV, "--", "/bin/true"]);
            assert_eq!(code, Some(125));
            assert!(text.contains("a container called c runs already") && text.matches('\n').count() == 1, "{text}");
            for name in ["ev", "ev-2", "ev-3"] {
                assert_eq!(told(case, &["run", "-d", EV, "--", "/bin/sleep", "100"]), format!("{name}\n"));
            }
            assert_eq!(told(case, &["ls"]), "c\nev\nev-2\nev-3\n");
            let (code, out, _) = spawn(case, &["stop", "--all"]);
            assert_eq!((code, out.lines().count()), (Some(0), 4), "{out}");
            assert_eq!(out.matches("killed, because its command has not set up SIGTERM").count(), 3, "{out}");
            case.nothing_left("stop --all");
        }),
        once("a container in the foreground has its name too, and is stopped like any other", |case| {
            let running = case.run_call(&["--name", "front"], &["/bin/sh", "-c", POLITE]).start();
            wait_for("the container", || (told(case, &["ls", "-f"]).contains("front RUNNING")).then_some(()));
            let (_, _, text) = spawn(case, &["logs", "front"]);
            assert!(text.contains("in the foreground"), "{text}");
            std::thread::sleep(Duration::from_millis(200));
            assert!(told(case, &["stop", "front"]).contains("ended by SIGTERM"));
            running.finish(case.world).assert_code(3, "its own status");
            case.nothing_left("a container in the foreground");
        }),
        both("of a killed supervisor the next command leaves nothing, even when process 1 outlives it", |case| {
            // A process 1 that changes its user loses the kernel's promise to end it with its parent.
            for script in ["exec sleep 1000", "exec su ada -c 'exec sleep 1000'"] {
                let words = ["run", "-d", "--name", "c", EV, "--", "/bin/sh", "-c", script];
                told(case, &words);
                wait_for("sleep", || processes().into_iter().find(|pid| command_line(*pid).contains("[sleep]")));
                kill_supervisors();
                assert_eq!(told(case, &["ls"]), "", "{script}");
                case.nothing_left(script);
                // Or the next start under the name.
                told(case, &words);
                kill_supervisors();
                assert_eq!(told(case, &["run", "-d", "--name", "c", EV, "--", "/bin/true"]), "c\n");
                told(case, &["wait", "c"]);
                case.nothing_left(script);
            }
        }),
        once("stop waits, kills when the time is over, and says which of the two ended it", |case| {
            start(case, "deaf", "trap '' TERM; echo ready; while :; do sleep 0.05; done");
            let begin = Instant::now();
            let (code, out, text) = spawn(case, &["stop", "-t", "1", "deaf"]);
            assert_eq!((code, out.as_str()), (Some(0), "deaf: killed, because it had not ended by SIGTERM within 1 s\n"));
            assert!((1..10).contains(&begin.elapsed().as_secs()));
            // What is waited for, and how not to.
            let said = "spawn: deaf: its command ignores SIGTERM, as an interactive shell does: it is killed in 1 s; `spawn stop -t 0 deaf` kills at once\n";
            assert_eq!(text, said);
            start(case, "slow", "trap 'sleep 4; exit 0' TERM; echo ready; while :; do sleep 0.05; done");
            let (code, out, text) = spawn(case, &["stop", "slow"]);
            assert!(code == Some(0) && out.starts_with("slow: ended by SIGTERM after 4."), "{out}");
            assert_eq!(text, "spawn: slow: has not ended by SIGTERM yet: it is killed in 57 s; `spawn stop -t 0 slow` kills at once\n");
            start(case, "c", POLITE);
            assert_eq!(told(case, &["stop", "-t", "0", "c"]), "c: killed\n");
            let (code, _, text) = spawn(case, &["stop", "c"]);
            assert_eq!((code, text.as_str()), (Some(69), "spawn: there is no container c: `spawn ls` lists them\n"));
            case.nothing_left("stop");
        }),
        once("stop hangs up on an interactive shell, which ignores SIGTERM", |case| {
            case.world.needs_tool("/bin/bash");
            told(case, &["run", "-d", "--name", "shell", "host", "--", "/bin/bash", "--norc"]);
            wait_for("the prompt", || told(case, &["logs", "shell"]).contains("# ").then_some(()));
            let out = told(case, &["stop", "shell"]);
            assert!(out.starts_with("shell: ended by SIGHUP after "), "{out}");
            start(case, "c", "trap '' TERM; trap 'exit 0' HUP; echo ready; while :; do sleep 0.05; done");
            assert!(told(case, &["stop", "c"]).starts_with("c: ended by SIGHUP after "));
            case.nothing_left("stop of shells");
        }),
        once("kill sends a signal and wait tells the status", |case| {
            start(case, "c", "trap 'exit 9' USR1; echo ready; while :; do sleep 0.05; done");
            let waiting = case.spawn(&["wait", "c"]).start();
            told(case, &["kill", "-s", "USR1", "c"]);
            let outcome = waiting.finish(case.world);
            assert_eq!((outcome.code(), outcome.out().as_str()), (Some(0), "9\n"));
            start(case, "c", POLITE);
            let (code, ..) = spawn(case, &["wait", "-t", "0.2", "c"]);
            assert_eq!(code, Some(75), "it still runs");
            told(case, &["wait", "--state", "running", "c"]);
            let waiting = case.spawn(&["wait", "c"]).start();
            std::thread::sleep(Duration::from_millis(100));
            told(case, &["kill", "c"]);
            assert_eq!(waiting.finish(case.world).out(), "137\n");
            let (code, _, text) = spawn(case, &["kill", "-s", "NOSUCH", "c"]);
            assert!(code == Some(64) && text.contains("no signal"), "{text}");
            case.nothing_left("kill");
        }),
        both("restart starts a container again, and so does reboot(2) inside; halt ends it", |case| {
            let script = "echo ready; trap 'exit 0' TERM; echo $(cat /count 2>/dev/null)x >/count; \
                case $(cat /count) in xx) reboot -f;; xxxx) poweroff -f;; esac; while :; do sleep 0.05; done";
            start(case, "c", script);
            let first = record("c");
            assert!(told(case, &["restart", "c"]).contains("c: ended by SIGTERM"));
            // The second start reboots by itself, and the third runs on.
            wait_for("the third start", || {
                (spawn(case, &["exec", "c", "--", "cat", "/count"]).1 == "xxx\n").then_some(())
            });
            wait_for("its record", || record("c").contains("RUNNING").then_some(()));
            assert_ne!(first, record("c"));
            assert_eq!(supervisors().len(), 1);
            assert_eq!(told(case, &["logs", "c"]).matches("ready").count(), 3, "the log goes on");
            let waiting = case.spawn(&["wait", "c"]).start();
            told(case, &["restart", "c"]);
            assert_eq!(waiting.finish(case.world).code(), Some(0));
            wait_for("the end", || (told(case, &["ls"]).is_empty()).then_some(()));
            assert_eq!(fs::read_to_string(format!("{EV}/count")).expect("count"), "xxxx\n");
            case.nothing_left("poweroff");
        }),
        both("a container in the foreground that reboots is started again as well", |case| {
            let script = "if test -e /once; then exit 5; fi; touch /once; reboot -f; sleep 10; exit 1";
            case.sh(&[], script).assert_code(5, "the second start");
            case.nothing_left("reboot");
        }),
        once("the log is the last 64 KiB, the file is all of it, and logs -f goes on until the end", |case| {
            let file = "/home/alice/console.log";
            let script = "i=0; while [ $i -lt 12000 ]; do echo line $i; i=$((i+1)); done; echo ready; read x; echo end";
            let words = ["run", "-d", "--name", "c", "--console-log", file, EV, "--", "/bin/sh", "-c", script];
            told(case, &words);
            wait_for("the output", || told(case, &["logs", "c"]).contains("ready").then_some(()));
            let log = told(case, &["logs", "c"]);
            assert_eq!(log.len(), 64 << 10);
            let following = case.spawn(&["logs", "-f", "c"]).start();
            std::thread::sleep(Duration::from_millis(200));
            let (code, ..) = spawn(case, &["stop", "c"]);
            assert_eq!(code, Some(0));
            let followed = following.finish(case.world).out();
            assert!(followed.starts_with(&log[..1000]) && followed.contains("ready"));
            let whole = fs::read_to_string(file).expect("log");
            assert!(whole.starts_with("line 0\r\nline 1\r\n") && whole.contains("line 11999\r\nready"));
            case.nothing_left("logs");
        }),
        both("post-stop runs after every end: in the background, of each start of several, and of one that failed half-way", |case| {
            let hook = "#!/bin/sh\nsleep 0.3\necho $1 $3 $LXC_TARGET >>/home/alice/seen\n";
            fs::write("/home/alice/hook", hook).expect("hook");
            case.world.mode("/home/alice/hook", 0o755);
            let seen = || {
                let text = fs::read_to_string("/home/alice/seen").unwrap_or_default();
                let _ = fs::remove_file("/home/alice/seen");
                text
            };
            let both = ["-s", "lxc.hook.pre-start=/home/alice/hook", "-s", "lxc.hook.post-stop=/home/alice/hook"];
            let run = |more: &[&'static str], command: &[&'static str]| -> Vec<&'static str> {
                [&["run", "--name", "c"], more, &both, &[EV, "--"], command].concat()
            };
            let script = "trap 'exit 0' TERM; if test -e /once; then echo ready; else touch /once; reboot -f; fi; while :; do sleep 0.05; done";
            assert_eq!(told(case, &run(&["-d"], &["/bin/sh", "-c", script])), "c\n");
            wait_for("the second start", || told(case, &["ls", "-f"]).contains("RUNNING").then_some(()));
            wait_for("its output", || spawn(case, &["logs", "c"]).1.contains("ready").then_some(()));
            told(case, &["stop", "c"]);
            assert_eq!(seen(), "c pre-start\nc post-stop reboot\nc pre-start\nc post-stop stop\n", "all of it before stop returns");
            case.nothing_left("hooks");
            for detach in [&[][..], &["-d"]] {
                let (code, _, text) = spawn(case, &run(detach, &["/bin/nonesuch"]));
                assert_eq!((code, seen().as_str()), (Some(127), "c pre-start\nc post-stop stop\n"), "{text}");
                let more = [detach, &["-s", "lxc.hook.pre-start=false"]].concat();
                let (code, _, text) = spawn(case, &[&["run", "--name", "c"], &both[..], &more, &[EV]].concat());
                assert_eq!((code, seen().as_str()), (Some(125), "c pre-start\nc post-stop stop\n"), "{text}");
                assert!(text.contains("lxc.hook.pre-start = false"), "{text}");
                case.nothing_left("hooks of a start that failed");
            }
            // One that fails is told, and the status is the command's.
            let (code, _, text) = spawn(case, &["run", "-s", "lxc.hook.post-stop=exit 4; :", EV, "--", "/bin/sh", "-c", "exit 6"]);
            assert!(code == Some(6) && text.contains("lxc.hook.post-stop") && text.matches('\n').count() == 1, "{text}");
        }),
        once("lxc.console.logfile is written in the background and in the foreground, no longer than it may be", |case| {
            case.world.needs_tool("/usr/bin/script");
            pty();
            let file = "/home/alice/console.log";
            let read = |name: &str| fs::read_to_string(name).unwrap_or_default();
            let options = format!("-s lxc.console.logfile={file} -s lxc.console.size=1000 -s lxc.console.rotate=1");
            let count = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); done >/dev/console";
            let pipeline = format!("spawn run -d --name c {options} {EV} -- /bin/sh -c '{count}' && spawn wait c");
            case.pipeline(&pipeline).assert_code(0, "background");
            let (new, old) = (read(file), read(&format!("{file}.1")));
            assert_eq!(old.len(), 1000);
            assert!(new.len() < 1000 && (old + &new).ends_with("line 298\r\nline 299\r\n"), "{new}");
            // With a terminal, and without one.
            for wrapper in ["script -qec 'exec sh /home/alice/inner' /dev/null", "sh /home/alice/inner </dev/null 2>&1 | cat"] {
                let _ = fs::remove_file(file);
                let inner = format!("spawn run -s lxc.console.logfile={file} {EV} -- /bin/sh -c 'echo seen >/dev/console'");
                fs::write("/home/alice/inner", inner).expect("script");
                let outcome = case.pipeline(wrapper);
                assert!(outcome.out().contains("seen"), "{}", outcome.out());
                // `script` passes the end of its own input on.
                assert!(read(file).ends_with("seen\r\n"), "{wrapper}: {}", read(file));
            }
            let outcome = case.pipeline(&format!("spawn hold {options} {EV} -- /bin/sh -c 'echo held >/dev/console' | idmap | spawn go"));
            outcome.assert_code(0, &outcome.text());
            assert!(read(file).ends_with("held\r\n"));
            for words in [&["run"][..], &["run", "-d"]] {
                let call = case.spawn(&[words, &["--console-log", "/home/alice", EV, "--", "/bin/true"]].concat());
                let outcome = call.run(case.world);
                case.failed(&outcome, 125, &["/home/alice"], "a directory");
            }
        }),
        once("console takes what is typed, shows what comes, and is left by two keys", |case| {
            case.world.needs_tool("/usr/bin/script");
            pty();
            told(case, &["run", "-d", "--name", "c", EV, "--", "/bin/sh"]);
            for keys in ["\\001q", "\\035\\035"] {
                let script = format!(
                    "(sleep 1; printf 'echo $((40+2))x; stty size\\n'; sleep 1; printf '{keys}'; sleep 1) | \
                     script -qec 'stty rows 31 cols 97; spawn console c; echo left $?' /dev/null"
                );
                let outcome = case.pipeline(&script);
                let out = outcome.out();
                assert!(out.contains("42x") && out.contains("31 97") && out.contains("left 0"), "{out}");
            }
            let (code, _, text) = spawn(case, &["console", "c"]);
            assert!(code == Some(71) && text.contains("no terminal"), "{text}");
            // An interactive shell ignores SIGTERM.
            told(case, &["stop", "-t", "0", "c"]);
            case.nothing_left("console");
        }),
        once("a client that is silent, loud, deaf or a stranger does not keep the supervisor from its work", |case| {
            let flood = "trap 'exit 0' TERM; while :; do echo flood flood flood flood; done";
            told(case, &["run", "-d", "--name", "c", EV, "--", "/bin/sh", "-c", flood]);
            wait_for("the flood", || told(case, &["logs", "c"]).contains("flood").then_some(()));
            let path: &'static str = "/run/user/1001/spawn/c/socket";
            let client = move || {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("socket");
                let _ = connect(fd.as_raw_fd(), &UnixAddr::new(path).expect("address"));
                fd
            };
            // As root of this world: refused by its user id, whatever it says.
            let strangers: Vec<_> = (0..100).map(|_| client()).collect();
            for stranger in &strangers {
                let _ = nix::unistd::write(stranger, b"spawn/1 stop");
            }
            let mine = case.call("/bin/true").as_user(move || {
                let mut kept = Vec::new();
                for number in 0..300 {
                    let fd = client();
                    let words: [&[u8]; 6] =
                        [b"spawn/1 follow", b"spawn/1 log", b"spawn/2 status", &[0xff; 4000], b"spawn/1 wait", b""];
                    let _ = nix::unistd::write(&fd, words[number % 6]);
                    kept.push(fd);
                }
                // Deaf ones stay connected for a while.
                std::thread::sleep(Duration::from_secs(2));
            });
            let running = mine.start();
            for _ in 0..10 {
                assert!(told(case, &["exec", "c", "--", "echo", "in"]).contains("in"));
                let (code, out, text) = spawn(case, &["logs", "c"]);
                assert_eq!(code, Some(0), "{out}{text}");
            }
            running.finish(case.world).assert_code(0, "clients");
            let info = told(case, &["info", "c"]);
            assert!(info.contains("RUNNING"), "{info}");
            let bob = case.call_as(BOB, "/run/bin/spawn").args(["stop", "c"]).env("XDG_RUNTIME_DIR", RUNTIME);
            let outcome = bob.run(case.world);
            assert_ne!(outcome.code(), Some(0), "{}", outcome.text());
            assert!(told(case, &["stop", "c"]).contains("ended by SIGTERM"));
            case.nothing_left("hostile clients");
        }),
        once("a run state that is another user's, or open to others, is not used", |case| {
            crate::case::directory(&format!("{RUNTIME}/spawn"), 0o755, ALICE);
            let call = case.spawn(&["run", EV, "--", "/bin/true"]);
            let outcome = call.run(case.world);
            outcome.assert_code(125, "open to others");
            assert!(outcome.text().contains("mode 700"), "{}", outcome.text());
            fs::remove_dir(format!("{RUNTIME}/spawn")).expect("rmdir");
            std::os::unix::fs::symlink("/home/victim", format!("{RUNTIME}/spawn")).expect("symlink");
            let outcome = case.spawn(&["run", EV, "--", "/bin/true"]).run(case.world);
            outcome.assert_code(125, "a link");
            assert_eq!(fs::read_dir("/home/victim").expect("victim").count(), 1);
            fs::remove_file(format!("{RUNTIME}/spawn")).expect("rm");
        }),
        once("many runs of a program that ends at once: no hang and no wrong code", |case| {
            let runs: u32 = std::env::var("LIFE_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
            for number in 0..runs {
                let code = [0, 7, 255][number as usize % 3];
                case.run(&[], &["/bin/sh", "-c", &format!("exit {code}")]).assert_code(code, &number.to_string());
                if number % 10 == 0 {
                    told(case, &["run", "-d", "--name", "d", EV, "--", "/bin/true"]);
                    wait_for("its end", || told(case, &["ls"]).is_empty().then_some(()));
                }
            }
            case.nothing_left("many runs");
        }),
        once("of many containers whose supervisors are killed nothing is left, and each supervisor is small", |case| {
            let count = if std::env::var_os("LIFE_RUNS").is_some() { 50 } else { 20 };
            for number in 0..count {
                told(case, &["run", "-d", "--name", &format!("n{number}"), EV, "--", "/bin/sleep", "1000"]);
            }
            let all = wait_for("the supervisors", || Some(supervisors()).filter(|all| all.len() == count));
            for supervisor in &all {
                let text = fs::read_to_string(format!("/proc/{supervisor}/smaps_rollup")).expect("smaps_rollup");
                let of = |key: &str| -> u64 {
                    let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("a line");
                    line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
                };
                // The program's file lies on a tmpfs here, whose pages count as shared memory.
                assert!(of("Pss_Anon:") <= 150, "{text}");
                assert!(of("Pss:") <= 250, "{text}");
            }
            assert_eq!(told(case, &["ls"]).lines().count(), count);
            for supervisor in all {
                kill(supervisor, Signal::SIGKILL).expect("kill");
            }
            case.nothing_left_of_killed("killed supervisors");
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}
