//! hold, go, the record between them, the control socket, and the descriptors for other programs.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use tests::{ALICE, BOB, Outcome, Trial, sys};

use crate::case::{Case, EV, RUNTIME, both, once};

/// Reads one line of `--info-fd`; empty at its end.
pub fn line(read: &OwnedFd) -> String {
    use std::os::fd::AsFd;
    let mut text = String::new();
    loop {
        let mut fds = [PollFd::new(read.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, 30_000_u16), Ok(1), "nothing has come on --info-fd after {text:?}");
        let mut byte = [0];
        match nix::unistd::read(read, &mut byte) {
            Ok(1) if byte[0] == b'\n' => return text,
            Ok(1) => text.push(char::from(byte[0])),
            _ => return text,
        }
    }
}

/// The pid in the first line of `--info-fd`.
pub fn created_pid(read: &OwnedFd) -> i32 {
    let first = line(read);
    let rest = first.strip_prefix("{\"state\":\"created\",\"pid\":").unwrap_or_else(|| panic!("{first}"));
    rest.split(',').next().expect("a number").parse().expect("a pid")
}

/// Reads lines of `--info-fd` until the one with `state`.
pub fn await_state(read: &OwnedFd, state: &str) -> String {
    loop {
        let line = line(read);
        assert!(!line.is_empty(), "the descriptor ended without {state}");
        if line.starts_with(&format!("{{\"state\":\"{state}\"")) {
            return line;
        }
    }
}

/// A pipeline of shell words whose stages note their exit status; the shell's own is that of the last.
fn stages(case: &mut Case<'_>, stages: &[&str]) -> (Outcome, Vec<String>) {
    case.world.remove("/tmp/status");
    fs::create_dir("/tmp/status").expect("mkdir");
    case.world.mode("/tmp/status", 0o777);
    let noted: Vec<String> = stages
        .iter()
        .enumerate()
        .map(|(n, stage)| format!("{{ {stage}; r=$?; echo $r >/tmp/status/{n}; exit $r; }}"))
        .collect();
    let outcome = case.pipeline(&noted.join(" | "));
    let codes = (0..stages.len())
        .map(|n| fs::read_to_string(format!("/tmp/status/{n}")).unwrap_or_default().trim().to_owned())
        .collect();
    (outcome, codes)
}

/// A holder in the background and its record.
struct Held {
    record: String,
}

impl Held {
    fn new(case: &mut Case<'_>, options: &str) -> Self {
        let outcome = case.pipeline(&format!("spawn hold {options} {EV} -- /bin/sh -c 'exit 5' 2>/tmp/holder.err"));
        outcome.assert_code(0, "hold");
        Self { record: outcome.out() }
    }

    fn field(&self, key: &str) -> String {
        let record = helper_decode(&self.record);
        record.split(' ').find_map(|word| word.strip_prefix(&format!("{key}="))).expect(key).trim().to_owned()
    }

    fn pid(&self) -> i32 {
        self.field("pid").parse().expect("a pid")
    }
}

fn helper_decode(record: &str) -> String {
    // What stands in these records needs no escape.
    assert!(!record.contains('%'), "{record}");
    record.to_owned()
}

/// One request on a control socket as alice: the lines of the answer until its end, or until `lines` have come.
fn ask(control: &str, requests: &str, lines: usize) -> Vec<String> {
    let (mut read, write) = (Vec::new(), requests.to_owned());
    let control = control.to_owned();
    let (out_read, out_write) = sys::pipe().expect("pipe");
    let child = sys::fork(move || {
        ALICE.become_user();
        let mut stream = UnixStream::connect(&control).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("limit");
        stream.write_all(write.as_bytes()).expect("write");
        let mut out = fs::File::from(out_write);
        for line in BufReader::new(stream).lines().take(lines) {
            writeln!(out, "{}", line.expect("a line")).expect("tell");
        }
        0
    })
    .expect("fork");
    let _ = fs::File::from(out_read).read_to_end(&mut read);
    let status = sys::wait(child, 0).expect("wait").expect("a status").0;
    assert_eq!(status, 0, "the client");
    String::from_utf8_lossy(&read).lines().map(str::to_owned).collect()
}

pub fn trials() -> Vec<Trial> {
    [
        both("spawn hold | idmap | spawn go runs the command with the whole map and its exit status", |case| {
            let hold = format!("spawn hold {EV} -- /bin/sh -c 'cat /proc/self/uid_map; id -u; stat -c %u /sys/class/net/lo/; hostname; exit 7'");
            let (outcome, codes) = stages(case, &[&hold, "idmap", "spawn go"]);
            outcome.assert_code(7, "pipeline");
            assert_eq!(codes, ["0", "0", "7"]);
            let words: Vec<String> = outcome.out().split_ascii_whitespace().map(str::to_owned).collect();
            assert_eq!(words, ["0", "100000", "65536", "0", "0", "ev"]);
            assert_eq!(outcome.text(), "");
            case.nothing_left("pipeline");
        }),
        both("hold's own --map needs no stage, and every option means what it means to run", |case| {
            let hold = format!("spawn hold --map auto --user ada --hostname box --workdir /home --env A=b {EV} -- /bin/sh -c 'id -u; hostname; pwd; echo $A'");
            let (outcome, _) = stages(case, &[&hold, "spawn go"]);
            outcome.assert_code(0, &outcome.text());
            assert_eq!(outcome.out(), "1000\nbox\n/home\nb\n");
            case.nothing_left("hold --map");
        }),
        both("the command of a pipeline reads what follows the record, and writes where go writes", |case| {
            let hold = format!("spawn hold {EV} -- /bin/sh -c 'cat; echo error >&2; readlink /proc/self/fd/1'");
            let (outcome, _) = stages(case, &[&hold, "idmap", "{ cat; echo more; }", "spawn go"]);
            outcome.assert_code(0, &outcome.text());
            assert!(outcome.out().starts_with("more\npipe:["), "{}", outcome.out());
            assert_eq!(outcome.text(), "error\n");
        }),
        both("a held command finds no descriptor but 0 to 2, default signals and no more environment", |case| {
            let hold = format!("spawn hold {EV} -- /bin/sh -c 'ls /proc/self/fd | tr \"\\n\" \" \"; grep ^Sig[BIC] /proc/self/status; env' 9</etc");
            let (outcome, _) = stages(case, &[&hold, "idmap", "spawn go 8</etc"]);
            outcome.assert_code(0, &outcome.text());
            let out = outcome.out();
            assert!(out.starts_with("0 1 2 3 "), "{out}");
            assert!(!out.contains("/run/user") && out.contains("container=lxc"), "{out}");
            for line in out.lines().filter(|line| line.starts_with("Sig")) {
                assert!(line.ends_with("\t0000000000000000") || line.starts_with("SigCgt"), "{out}");
            }
        }),
        both("the record is one line of userns-handoff(7), and foreign keys pass through in order", |case| {
            let held = Held::new(case, "--timeout 20");
            let words: Vec<&str> = held.record.trim_end_matches('\n').split(' ').collect();
            assert_eq!((words.len(), words[0], words[3]), (5, "handoff/1", "name=ev"), "{}", held.record);
            assert!(words[1].starts_with("pid=") && words[2].starts_with("start="), "{}", held.record);
            assert!(words[4].starts_with(&format!("control={RUNTIME}/spawn/ev.")), "{}", held.record);
            let stat = fs::read(format!("/proc/{}/stat", held.pid())).expect("stat");
            assert_eq!(helper::handoff::start_time(&stat).map(|n| n.to_string()), Some(held.field("start")));
            let status = fs::read_to_string(format!("/proc/{}/status", held.pid())).expect("status");
            assert!(status.contains("Uid:\t1001\t1001\t1001\t1001"), "{status}");
            // A stage of one's own in the middle.
            fs::write("/tmp/record", held.record.trim_end().to_owned() + " own=1 later=2\n").expect("write");
            case.world.mode("/tmp/record", 0o644);
            let outcome = case.pipeline("idmap </tmp/record >/tmp/mapped; cat /tmp/mapped; spawn go </tmp/mapped; exit $?");
            outcome.assert_code(5, &outcome.text());
            let record = outcome.out();
            assert!(record.contains(" own=1 later=2 uids=0:100000:65536 gids=0:100000:65536\n"), "{record}");
            case.nothing_left("record");
        }),
        both("each stage that fails is named by go, later stages pass on with 75, and the command never runs", |case| {
            let hold = format!("spawn hold {EV} -- /bin/touch /ran");
            let pass = "idmap";
            for (pipeline, codes, tool) in [
                (vec![hold.as_str(), "idmap --map u:0:5:1 --map g:0:5:1", "idmap", "spawn go"], ["0", "1", "75", "125"], "idmap"),
                (vec![hold.as_str(), "sed 's/$/ failed=mytool:3/'", pass, "spawn go"], ["0", "0", "75", "125"], "mytool"),
                (vec![hold.as_str(), "idmap", "sed 's/$/ failed=usernet:77/'", "spawn go"], ["0", "0", "0", "125"], "usernet"),
            ] {
                let (outcome, found) = stages(case, &pipeline);
                assert_eq!(found, codes, "{pipeline:?}: {}", outcome.text());
                let text = outcome.text();
                let last = text.lines().last().expect("a line");
                assert!(last.starts_with("spawn: ") && last.contains(tool), "{pipeline:?}: {text}");
                case.nothing_left(tool);
            }
            case.world.write("/etc/subuid", "");
            let (outcome, found) = stages(case, &[&hold, "idmap", "spawn go"]);
            assert_eq!(found, ["0", "77", "125"], "{}", outcome.text());
            case.nothing_left("no subordinate ids");
            // The stage before says nothing at all.
            for silent in ["false", "true", "echo nonsense", "printf handoff/1"] {
                let (outcome, found) = stages(case, &[silent, "idmap", "spawn go"]);
                assert_eq!(found[1..], ["65", "125"], "{silent}: {}", outcome.text());
            }
            assert!(!fs::exists(format!("{EV}/ran")).expect("exists"), "the command has run");
            case.nothing_left("no record");
        }),
        both("hold's own failure ends the pipeline with its line, and a map left out is told", |case| {
            let (outcome, found) = stages(case, &["spawn hold /home/alice/gone", "idmap", "spawn go"]);
            assert_eq!(found, ["125", "65", "125"], "{}", outcome.text());
            assert!(outcome.text().contains("/home/alice/gone does not exist"), "{}", outcome.text());
            let (outcome, found) = stages(case, &[&format!("spawn hold {EV} -- /bin/touch /ran"), "spawn go"]);
            assert_eq!(found, ["0", "125"], "{}", outcome.text());
            assert!(outcome.text().contains("idmap"), "the stage that is missing: {}", outcome.text());
            let (outcome, found) = stages(case, &[&format!("spawn hold {EV} -- /bin/nothing"), "idmap", "spawn go"]);
            assert_eq!(found, ["0", "0", "127"], "{}", outcome.text());
            assert!(outcome.text().contains("/bin/nothing"), "{}", outcome.text());
            case.nothing_left("hold");
        }),
        both("a holder whose go never comes ends with its time limit and leaves nothing", |case| {
            let begin = Instant::now();
            let held = Held::new(case, "--timeout 0.5");
            assert!(fs::exists(format!("/proc/{}", held.pid())).expect("exists"));
            case.nothing_left("no go");
            assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
            let said = fs::read_to_string("/tmp/holder.err").expect("err");
            assert!(said.starts_with("spawn: ") && said.contains("no `go` came for ev within 0.5 s"), "{said}");
            // go comes too late.
            fs::write("/tmp/record", &held.record).expect("write");
            let outcome = case.pipeline("spawn go </tmp/record");
            case.failed(&outcome, 125, &["ended"], "too late");
        }),
        both("a record with a foreign start time is refused by idmap and by go, and nobody is mapped or released", |case| {
            let held = Held::new(case, "--timeout 20");
            let start = held.field("start");
            let wrong = held.record.replace(&format!("start={start}"), &format!("start={}", start.parse::<u64>().expect("x") + 1));
            fs::write("/tmp/record", &wrong).expect("write");
            let outcome = case.pipeline("idmap </tmp/record");
            assert!(outcome.code() != Some(0) && outcome.out().contains("failed=idmap:"), "{outcome:?}");
            let map = fs::read_to_string(format!("/proc/{}/uid_map", held.pid())).expect("map");
            assert_eq!(map, "");
            let outcome = case.pipeline("spawn go </tmp/record");
            outcome.assert_code(125, "go");
            case.nothing_left("a foreign start time");
            // And a pid of somebody else's.
            let held = Held::new(case, "--timeout 20");
            fs::write("/tmp/record", held.record.replace(&format!("pid={}", held.pid()), "pid=1")).expect("write");
            let outcome = case.pipeline("spawn go </tmp/record");
            outcome.assert_code(125, "go");
            case.nothing_left("another's pid");
        }),
        once("a pid that another process has by now is neither mapped nor released", |case| {
            let held = Held::new(case, "--timeout 20");
            let pid = held.pid();
            assert_eq!(ask(&held.field("control"), "abort\n", 1).as_slice(), ["exited 125"]);
            case.nothing_left("abort");
            // Another process of alice's, in a user namespace that waits for its map as well, gets the number. A start
            // time counts clock ticks of 10 ms: within the same one no record could tell the two apart.
            std::thread::sleep(Duration::from_millis(50));
            fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).expect("ns_last_pid");
            let stranger = tests::Target::new(ALICE);
            assert_eq!(stranger.pid().as_raw(), pid, "the number is used again");
            fs::write("/tmp/record", &held.record).expect("write");
            let outcome = case.pipeline("idmap </tmp/record");
            assert!(outcome.code() != Some(0) && outcome.out().contains("failed=idmap:"), "{outcome:?}");
            stranger.assert_untouched("a recycled pid");
            let outcome = case.pipeline("spawn go </tmp/record");
            outcome.assert_code(125, "go");
            assert!(fs::exists(format!("/proc/{pid}")).expect("exists"), "the stranger lives");
            stranger.end();
            case.nothing_left("a recycled pid");
        }),
        both("the control socket answers as userns-handoff(7) says", |case| {
            let held = Held::new(case, "--timeout 20 --map auto");
            let control = held.field("control");
            assert_eq!(ask(&control, "mapped\nmapped\nnonsense\nMAPPED\nsignal 15\ngo on\n", 5).as_slice(), [
                "net",
                "net",
                "failed unknown request (see userns-handoff(7))",
                "failed unknown request (see userns-handoff(7))",
                "failed unknown request (see userns-handoff(7))",
            ]);
            let net = fs::read_link(format!("/proc/{}/ns/net", held.pid())).expect("net");
            assert_ne!(net, fs::read_link("/proc/self/ns/net").expect("net"));
            assert_eq!(ask(&control, "go\n", 2).as_slice(), ["running", "exited 5"]);
            case.nothing_left("go");
            let held = Held::new(case, "--timeout 20");
            assert_eq!(ask(&held.field("control"), "abort\n", 1).as_slice(), ["exited 125"]);
            case.nothing_left("abort");
            let held = Held::new(case, "--timeout 20");
            let answer = ask(&held.field("control"), "mapped\n", 1);
            assert!(answer[0].starts_with("failed ") && answer[0].contains("id 0 is not mapped"), "{answer:?}");
            case.nothing_left("mapped and not mapped");
        }),
        both("whoever said go and goes away takes the container with him", |case| {
            let outcome = case.pipeline(&format!("spawn hold --map auto {EV} -- /bin/sleep 1000 2>/dev/null"));
            let held = Held { record: outcome.out() };
            assert_eq!(ask(&held.field("control"), "go\n", 1).as_slice(), ["running"]);
            case.nothing_left("the client is gone");
        }),
        once("the control socket and its directory are closed to other users", |case| {
            let held = Held::new(case, "--timeout 20");
            let control = held.field("control");
            let mode = |path: &str| std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).expect(path).permissions()) & 0o7777;
            let directory = control.trim_end_matches("/control").to_owned();
            assert_eq!((mode(&directory), mode(&format!("{RUNTIME}/spawn"))), (0o700, 0o700));
            let connect = |control: String, user: tests::User| {
                let child = sys::fork(move || {
                    user.become_user();
                    let Ok(mut stream) = UnixStream::connect(&control) else { return 1 };
                    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("limit");
                    let _ = stream.write_all(b"abort\n");
                    let mut answer = String::new();
                    let _ = stream.read_to_string(&mut answer);
                    if answer.is_empty() { 2 } else { 3 }
                })
                .expect("fork");
                libc::WEXITSTATUS(sys::wait(child, 0).expect("wait").expect("status").0)
            };
            assert_eq!(connect(control.clone(), BOB), 1, "bob cannot reach it");
            // Even where he can, he is not heard. Nor is root, who is another user as well.
            case.world.mode(RUNTIME, 0o755);
            case.world.mode(format!("{RUNTIME}/spawn"), 0o755);
            case.world.mode(&directory, 0o755);
            case.world.mode(&control, 0o777);
            assert_eq!(connect(control.clone(), BOB), 2, "bob is not heard");
            assert_eq!(ask(&control, "abort\n", 1).as_slice(), ["exited 125"], "the holder still serves alice");
            case.nothing_left("bob");
        }),
        once("a directory that another user has made in /tmp is not trusted with the socket", |case| {
            let attempt = |case: &mut Case<'_>| {
                let call = case.call("/bin/sh").args(["-c", &format!("unset XDG_RUNTIME_DIR; spawn hold --timeout 1 {EV}")]);
                call.run(case.world)
            };
            for trap in ["directory", "link", "file", "open"] {
                case.world.remove("/tmp/spawn-1001");
                match trap {
                    "directory" => crate::case::directory("/tmp/spawn-1001", 0o777, BOB),
                    "link" => std::os::unix::fs::symlink("/home/bob", "/tmp/spawn-1001").expect("symlink"),
                    "file" => fs::write("/tmp/spawn-1001", "").expect("write"),
                    _ => crate::case::directory("/tmp/spawn-1001", 0o777, ALICE),
                }
                let outcome = attempt(case);
                outcome.assert_code(125, trap);
                assert!(outcome.text().contains("/tmp/spawn-1001") && outcome.out().is_empty(), "{trap}: {}", outcome.text());
                assert!(fs::read_dir("/home/bob").expect("bob").next().is_none());
            }
            case.world.remove("/tmp/spawn-1001");
            let outcome = attempt(case);
            outcome.assert_code(0, "a directory of its own");
            assert!(outcome.out().contains("control=/tmp/spawn-1001/ev."), "{}", outcome.out());
            case.nothing_left("/tmp");
        }),
        both("--info-fd tells created, mapped, network, running and exited, one JSON object a line", |case| {
            let (read, write) = sys::pipe().expect("pipe");
            let call = case.run_call(&["--info-fd", "9"], &["/bin/sh", "-c", "ls /proc/self/fd; exit 3"]).fd(9, write);
            let outcome = call.run(case.world);
            outcome.assert_code(3, "info");
            assert_eq!(outcome.out(), "0\n1\n2\n3\n", "the descriptor is not inside");
            let lines: Vec<String> = std::iter::repeat_with(|| line(&read)).take(6).collect();
            assert!(lines[0].starts_with("{\"state\":\"created\",\"pid\":") && lines[0].ends_with(",\"name\":\"ev\"}"), "{lines:?}");
            assert_eq!(lines[1..], [
                "{\"state\":\"mapped\"}",
                "{\"state\":\"network\"}",
                "{\"state\":\"running\"}",
                "{\"state\":\"exited\",\"code\":3}",
                "",
            ]);
            let (read, write) = sys::pipe().expect("pipe");
            let call = case.run_call(&["--info-fd", "9"], &["/bin/nothing"]).fd(9, write);
            let outcome = call.run(case.world);
            case.failed(&outcome, 127, &["/bin/nothing"], "info");
            let last = std::iter::repeat_with(|| line(&read)).take(6).filter(|line| !line.is_empty()).last().expect("a line");
            assert!(last.starts_with("{\"state\":\"failed\",\"code\":127,\"error\":\"cannot execute /bin/nothing"), "{last}");
        }),
        both("--hold-fd: one byte means go; end of file, time and a signal mean give up, and the command never runs", |case| {
            for what in ["byte", "end", "time", "signal"] {
                let (info, info_write) = sys::pipe().expect("pipe");
                let (hold_read, hold) = sys::pipe().expect("pipe");
                let timeout = if what == "time" { "0.5" } else { "20" };
                let running = case
                    .run_call(&["--info-fd", "9", "--hold-fd", "10", "--timeout", timeout], &["/bin/touch", "/ran"])
                    .fd(9, info_write)
                    .fd(10, hold_read)
                    .start();
                let pid = created_pid(&info);
                await_state(&info, "network");
                // The state of the network is what it says, and the command has not run.
                let net = fs::read_link(format!("/proc/{pid}/ns/net"));
                if what != "time" {
                    assert_ne!(net.expect("net"), fs::read_link("/proc/self/ns/net").expect("net"));
                }
                assert!(!fs::exists(format!("{EV}/ran")).expect("exists"));
                let code = match what {
                    "byte" => {
                        nix::unistd::write(&hold, b"g").expect("go");
                        0
                    }
                    "end" => {
                        drop(hold);
                        125
                    }
                    "signal" => {
                        kill(running.pid(), Signal::SIGTERM).expect("kill");
                        143
                    }
                    _ => 125,
                };
                running.finish(case.world).assert_code(code, what);
                let last = await_state(&info, if code == 0 { "exited" } else { "failed" });
                assert!(last.contains(&format!("\"code\":{code}")), "{last}");
                assert_eq!(fs::exists(format!("{EV}/ran")).expect("exists"), code == 0, "{what}");
                case.world.remove(format!("{EV}/ran"));
                case.nothing_left(what);
            }
        }),
        both("one socket serves as --info-fd and --hold-fd at once", |case| {
            let (ours, theirs) = UnixStream::pair().expect("pair");
            let running = case
                .run_call(&["--info-fd", "9", "--hold-fd", "9"], &["/bin/sh", "-c", "exit 6"])
                .fd(9, theirs)
                .start();
            let ours = OwnedFd::from(ours);
            await_state(&ours, "network");
            nix::unistd::write(&ours, b"g").expect("go");
            running.finish(case.world).assert_code(6, "both");
            assert_eq!(await_state(&ours, "exited"), "{\"state\":\"exited\",\"code\":6}");
        }),
        both("a descriptor that is not open, or a standard one, is refused as --info-fd and --hold-fd", |case| {
            for option in ["--info-fd", "--hold-fd"] {
                case.fails(&[option, "2", EV], 125, &[option, "3 or more"]);
                case.fails(&[option, "77", EV], 125, &[option, "not open"]);
                case.fails(&[option, "-1", EV].map(|w| if w == "-1" { "2147483647" } else { w }), 125, &[option]);
            }
            let (outcome, found) = stages(case, &[&format!("spawn hold --info-fd 9 {EV}"), "spawn go"]);
            assert_eq!(found, ["125", "125"], "{}", outcome.text());
        }),
        both("a reader of --info-fd that goes away stops nothing", |case| {
            let (read, write) = sys::pipe().expect("pipe");
            drop(read);
            let call = case.run_call(&["--info-fd", "9"], &["/bin/sh", "-c", "exit 4"]).fd(9, write);
            call.run(case.world).assert_code(4, "no reader");
        }),
        both("TERM to go reaches the command, and KILL of go ends the container", |case| {
            for (signal, code) in [(Signal::SIGTERM, Some(42)), (Signal::SIGKILL, None)] {
                case.world.remove("/tmp/go");
                let script = format!("spawn hold {EV} -- /bin/sh -c 'trap \"exit 42\" TERM; echo ready; while :; do usleep 5000; done' | idmap >/tmp/go.record; exec spawn go </tmp/go.record");
                let (out, out_write) = sys::pipe().expect("pipe");
                let running = case.call("/bin/sh").args(["-c", &script]).as_user(move || {
                    sys::place(std::os::fd::AsRawFd::as_raw_fd(&out_write), 1).expect("dup2");
                }).start();
                assert_eq!(line(&out), "ready");
                kill(running.pid(), signal).expect("kill");
                let outcome = running.finish(case.world);
                assert_eq!(outcome.code(), code, "{signal}: {}", outcome.text());
                case.nothing_left("go");
            }
        }),
        both("a thousand bytes of name and odd words in the record are refused, never believed", |case| {
            let held = Held::new(case, "--timeout 20");
            let (pid, start, control) = (held.pid(), held.field("start"), held.field("control"));
            for record in [
                format!("handoff/2 pid={pid} start={start} control={control}"),
                format!("handoff/1 start={start} pid={pid} control={control}"),
                format!("handoff/1 pid={pid} start={start}"),
                format!("handoff/1 pid={pid} start={start} control={control} control=/x"),
                format!("handoff/1  pid={pid} start={start} control={control}"),
                format!("handoff/1 pid={pid} start={start} control={control} x={}", "y".repeat(5000)),
                format!("handoff/1 pid=-1 start={start} control={control}"),
                format!("handoff/1 pid={pid} start={start} control=/gone/socket"),
                String::new(),
            ] {
                fs::write("/tmp/record", format!("{record}\n")).expect("write");
                let outcome = case.pipeline("spawn go </tmp/record");
                outcome.assert_code(125, &record);
                assert_eq!(outcome.text().matches('\n').count(), 1, "{}", outcome.text());
            }
            let _ = ask(&control, "abort\n", 1);
            case.nothing_left("odd records");
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}
