//! The terminal: a pty made by the test is the caller's, and spawn must leave it as it was.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;
use tests::{Call, Outcome, Trial};

use crate::case::{Case, EV, both, once, processes, wait_for};
use crate::{probe, sys};

struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
    seen: Vec<u8>,
    before: Termios,
    /// The pid of what runs on it, and a byte when that has ended.
    news: OwnedFd,
    tell: OwnedFd,
    /// Held as long as the session lasts: its end would throw away output that nobody has read yet.
    last: Option<OwnedFd>,
    session: OwnedFd,
}

impl Terminal {
    fn new() -> Self {
        if !std::path::Path::new("/dev/pts/ptmx").exists() {
            std::fs::create_dir_all("/dev/pts").expect("mkdir");
            let options = Some("newinstance,ptmxmode=0666,mode=0620");
            mount(Some("devpts"), "/dev/pts", Some("devpts"), MsFlags::empty(), options).expect("devpts");
        }
        let master = File::options().read(true).write(true).open("/dev/pts/ptmx").expect("ptmx");
        let slave = sys::open_peer(master.as_fd()).expect("slave");
        sys::set_window_size(slave.as_fd(), 33, 99).expect("size");
        let before = tcgetattr(&slave).expect("termios");
        assert!(before.local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO));
        let (news, tell) = tests::sys::pipe().expect("pipe");
        let (session, last) = tests::sys::pipe().expect("pipe");
        Self { master: master.into(), slave, seen: Vec::new(), before, news, tell, last: Some(last), session }
    }

    /// Makes it the standard descriptors of `call`, and its controlling terminal. The session has a leader of its own,
    /// as a login has: what is started is the leader, and [`Terminal::program`] tells of the program.
    fn attach(&self, call: Call, numbers: &'static [i32]) -> Call {
        let copy = |fd: &OwnedFd| fd.try_clone().expect("dup");
        let (slave, tell, session) = (copy(&self.slave), copy(&self.tell), copy(&self.session));
        let last = self.last.as_ref().expect("not finished").as_raw_fd();
        call.as_user(move || {
            nix::unistd::setsid().expect("setsid");
            sys::take_terminal(slave.as_fd()).expect("TIOCSCTTY");
            for number in numbers {
                tests::sys::place(slave.as_raw_fd(), *number).expect("dup2");
            }
            let Some(program) = sys::fork().expect("fork") else { return };
            tests::sys::close(last);
            nix::unistd::write(&tell, &program.as_raw().to_ne_bytes()).expect("pid");
            let status = tests::sys::wait(program, 0).expect("wait").expect("a status").0;
            nix::unistd::write(&tell, b"e").expect("end");
            let _ = nix::unistd::read(&session, &mut [0]);
            sys::exit_now(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 99 });
        })
    }

    /// The program that was started on it. To be called once.
    fn program(&self) -> Pid {
        let mut bytes = [0; 4];
        assert_eq!(nix::unistd::read(&self.news, &mut bytes), Ok(4));
        Pid::from_raw(i32::from_ne_bytes(bytes))
    }

    /// Reads until `text` has been seen.
    #[track_caller]
    fn expect(&mut self, text: &str) {
        let begin = Instant::now();
        while !self.text().contains(text) {
            assert!(begin.elapsed() < Duration::from_secs(30), "\"{text}\" has not come: {:?}", self.text());
            self.read(100);
        }
    }

    fn read(&mut self, milliseconds: u16) {
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        if matches!(poll(&mut fds, milliseconds), Ok(1)) {
            let mut buffer = [0; 4096];
            if let Ok(count) = nix::unistd::read(&self.master, &mut buffer) {
                self.seen.extend_from_slice(&buffer[..count]);
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    fn type_text(&self, text: &str) {
        nix::unistd::write(&self.master, text.as_bytes()).expect("type");
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.slave).expect("termios").local_flags.contains(LocalFlags::ICANON)
    }

    #[track_caller]
    fn assert_restored(&self, why: &str) {
        assert_eq!(tcgetattr(&self.slave).expect("termios"), self.before, "{why}: the terminal is not as it was");
    }

    #[track_caller]
    fn assert_nothing_typed(&self, why: &str) {
        let mut settings = tcgetattr(&self.slave).expect("termios");
        nix::sys::termios::cfmakeraw(&mut settings);
        nix::sys::termios::tcsetattr(&self.slave, nix::sys::termios::SetArg::TCSANOW, &settings).expect("raw");
        assert_eq!(sys::pending(self.slave.as_fd()).expect("FIONREAD"), 0, "{why}: somebody has typed");
    }

    /// Waits for the end of the program and takes what is still to be read.
    fn finish(&mut self, running: tests::call::Running, case: &mut Case<'_>) -> Outcome {
        let begin = Instant::now();
        loop {
            // The pty must be read, or a writer waits.
            self.read(10);
            let mut news = [0; 8];
            let mut fds = [PollFd::new(self.news.as_fd(), PollFlags::POLLIN)];
            if matches!(poll(&mut fds, 0_u16), Ok(1)) {
                let count = nix::unistd::read(&self.news, &mut news).expect("news");
                if news[..count].ends_with(b"e") {
                    break;
                }
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "the program hangs: {:?}", self.text());
        }
        let mut seen = None;
        while seen != Some(self.seen.len()) {
            seen = Some(self.seen.len());
            self.read(30);
        }
        self.last = None;
        running.finish(case.world)
    }
}

/// The process inside whose name is `name`, as the host numbers it.
fn inside(name: &str) -> Pid {
    let find = || {
        std::fs::read_dir("/proc").expect("/proc").flatten().find_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (comm.trim() == name).then_some(Pid::from_raw(pid))
        })
    };
    wait_for(name, find)
}

fn shell(case: &Case<'_>, script: &str) -> Call {
    case.run_call(&[], &["/bin/sh", "-c", script])
}

const ALL: &[i32] = &[0, 1, 2];

pub fn trials() -> Vec<Trial> {
    [
        both("a terminal is raw while the command runs and as it was after its end", |case| {
            let mut terminal = Terminal::new();
            let script = "echo begin; read line; echo \"got $line\"; exit 4";
            let running = terminal.attach(shell(case, script), ALL).start();
            terminal.expect("begin\r\n");
            assert!(terminal.is_raw(), "the container's console does what a terminal does");
            terminal.type_text("hello\r");
            terminal.expect("got hello\r\n");
            terminal.finish(running, case).assert_code(4, "terminal");
            terminal.assert_restored("end of the command");
            // What was typed was echoed once, by the inner console.
            assert_eq!(terminal.text().matches("hello").count(), 2, "{:?}", terminal.text());
            case.nothing_left("terminal");
        }),
        both("a terminal is as it was after the command dies of SIGTERM or SIGKILL", |case| {
            for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGKILL, 137)] {
                let mut terminal = Terminal::new();
                // TERM is sent to a child, because process 1 has not set it up.
                let script = "echo begin; sh -c 'exec sleep 1000'; exit $?";
                let running = terminal.attach(shell(case, script), ALL).start();
                terminal.expect("begin");
                kill(inside("sleep"), signal).expect("kill");
                terminal.finish(running, case).assert_code(code, "killed");
                terminal.assert_restored("the command was killed");
                case.nothing_left("killed");
            }
        }),
        both("a terminal is as it was after SIGTERM, SIGHUP, SIGINT and SIGQUIT to spawn", |case| {
            for (signal, code) in [
                (Signal::SIGTERM, 143),
                (Signal::SIGHUP, 129),
                (Signal::SIGINT, 130),
                (Signal::SIGQUIT, 131),
            ] {
                let mut terminal = Terminal::new();
                let running = terminal.attach(shell(case, "echo begin; exec sleep 1000"), ALL).start();
                terminal.expect("begin");
                let _ = inside("sleep");
                kill(terminal.program(), signal).expect("kill");
                terminal.finish(running, case).assert_code(code, "a signal to spawn");
                terminal.assert_restored("a signal to spawn");
                case.nothing_left("a signal to spawn");
            }
        }),
        both("a terminal is as it was after a failed start", |case| {
            let mut terminal = Terminal::new();
            let call = case.run_call(&[], &["/bin/nothing"]);
            let running = terminal.attach(call, ALL).start();
            terminal.finish(running, case).assert_code(127, "no such command");
            assert!(terminal.text().contains("spawn: cannot execute /bin/nothing"), "{:?}", terminal.text());
            terminal.assert_restored("a failed start");
        }),
        both("the end of the pipeline leaves the terminal as it was", |case| {
            let mut terminal = Terminal::new();
            let script = format!("spawn hold {EV} -- /bin/sh -c 'tty; stty size; echo begin; read x; echo \"got $x\"; exit 8' | idmap | spawn go");
            let call = case.call("/bin/sh").args(["-c", &script]);
            let running = terminal.attach(call, ALL).start();
            terminal.expect("begin\r\n");
            assert!(terminal.text().contains("/dev/pts/0\r\n33 99\r\n"), "{:?}", terminal.text());
            assert!(terminal.is_raw());
            terminal.type_text("typed\r");
            terminal.finish(running, case).assert_code(8, "pipeline");
            assert!(terminal.text().contains("got typed\r\n"), "{:?}", terminal.text());
            terminal.assert_restored("pipeline");
            case.nothing_left("pipeline");
        }),
        both("a holder that is killed leaves the terminal as it was", |case| {
            let mut terminal = Terminal::new();
            let script = format!("spawn hold {EV} -- /bin/sh -c 'echo begin; exec sleep 1000' | idmap | spawn go");
            let running = terminal.attach(case.call("/bin/sh").args(["-c", &script]), ALL).start();
            terminal.expect("begin");
            let child = inside("sleep");
            let stat = std::fs::read_to_string(format!("/proc/{child}/status")).expect("status");
            let holder = stat.lines().find_map(|line| line.strip_prefix("PPid:\t")).expect("PPid").parse().expect("pid");
            kill(Pid::from_raw(holder), Signal::SIGKILL).expect("kill");
            terminal.finish(running, case).assert_code(125, "the holder was killed");
            assert!(terminal.text().contains("holder has died"), "{:?}", terminal.text());
            terminal.assert_restored("the holder was killed");
            case.nothing_left("the holder was killed");
        }),
        both("the size of the window is handed in, and each change of it", |case| {
            let mut terminal = Terminal::new();
            let script = "trap 'stty size; exit 0' WINCH; stty size; echo begin; while :; do usleep 5000; done";
            let running = terminal.attach(shell(case, script), ALL).start();
            terminal.expect("33 99\r\nbegin\r\n");
            sys::set_window_size(terminal.master.as_fd(), 12, 34).expect("size");
            terminal.expect("12 34\r\n");
            terminal.finish(running, case).assert_code(0, "window");
        }),
        both("the command has its console as controlling terminal, /dev/console and not the caller's", |case| {
            let mut terminal = Terminal::new();
            let script = "tty; echo x >/dev/tty; echo y >/dev/console; ls -1 /dev/pts; stat -c %t:%T /dev/console; \
                          readlink /proc/self/fd/0; stat -c %u:%g:%a /dev/pts/0; echo done";
            let running = terminal.attach(shell(case, script), ALL).start();
            terminal.finish(running, case).assert_code(0, "console");
            let text = terminal.text();
            assert_eq!(text, "/dev/pts/0\r\nx\r\ny\r\n0\r\nptmx\r\n88:0\r\n/dev/pts/0\r\n0:5:620\r\ndone\r\n");
        }),
        both("the interrupt and quit characters end a command that has not set them up, and reach one that has", |case| {
            for (character, code) in [("\x03", 130), ("\x1c", 131)] {
                let mut terminal = Terminal::new();
                let running = terminal.attach(shell(case, "echo begin; exec sleep 1000"), ALL).start();
                terminal.expect("begin");
                let _ = inside("sleep");
                terminal.type_text(character);
                terminal.finish(running, case).assert_code(code, "a key");
                terminal.assert_restored("a key");
            }
            let mut terminal = Terminal::new();
            let script = "trap 'echo caught; exit 3' INT; echo begin; while :; do usleep 5000; done";
            let running = terminal.attach(shell(case, script), ALL).start();
            terminal.expect("begin");
            terminal.type_text("\x03");
            terminal.finish(running, case).assert_code(3, "a key");
            assert!(terminal.text().contains("caught"), "{:?}", terminal.text());
        }),
        both("only the descriptors that are terminals become the console", |case| {
            let mut terminal = Terminal::new();
            let script = "readlink /proc/self/fd/0; for n in 1 2; do readlink /proc/self/fd/$n; done | cat >&2";
            let running = terminal.attach(shell(case, script), &[2]).start();
            let outcome = terminal.finish(running, case);
            outcome.assert_code(0, "stderr alone");
            assert_eq!(outcome.out(), "/dev/null\n");
            assert!(terminal.text().contains("pipe:") && terminal.text().contains("/dev/pts/0"), "{:?}", terminal.text());
        }),
        both("what was written last is shown, all of it", |case| {
            let mut terminal = Terminal::new();
            let running = terminal.attach(shell(case, "seq 1 20000; echo the end"), ALL).start();
            terminal.finish(running, case).assert_code(0, "much output");
            let text = terminal.text();
            assert!(text.ends_with("19999\r\n20000\r\nthe end\r\n") && text.starts_with("1\r\n2\r\n"), "{}", text.len());
            assert_eq!(text.lines().count(), 20_001);
        }),
        both("output to the console goes to standard error when nothing is a terminal", |case| {
            let outcome = case.sh(&[], "echo on the console >/dev/console; exit 2");
            outcome.assert_code(2, "console");
            assert_eq!((outcome.out().as_str(), outcome.text().as_str()), ("", "on the console\r\n"));
        }),
        once("TIOCSTI and TIOCLINUX from inside type nothing into the caller's terminal (CVE-2016-10124, CVE-2017-5226)", |case| {
            let bind = probe::copy(case);
            let words = ["run", "--bind", &bind, "host", "--", probe::INSIDE, probe::FLAG, "type"];
            // The way works where it may: the terminal's own session can type into it.
            let mut terminal = Terminal::new();
            let own = terminal.attach(case.call("/home/probe").args([probe::FLAG, "type"]), ALL).start();
            terminal.finish(own, case).assert_code(0, "control");
            let legacy = std::fs::read_to_string("/proc/sys/dev/tty/legacy_tiocsti").is_ok_and(|text| text.trim() == "0");
            assert_eq!(terminal.text().contains("0: TIOCSTI true"), !legacy, "{:?}", terminal.text());

            for numbers in [&[0, 1, 2][..], &[0], &[1], &[2], &[0, 2]] {
                let mut terminal = Terminal::new();
                let numbers: &'static [i32] = numbers.to_vec().leak();
                let running = terminal.attach(case.spawn(&words), numbers).start();
                let outcome = terminal.finish(running, case);
                outcome.assert_code(0, "type");
                assert!((outcome.out() + &terminal.text()).contains("typed"), "{outcome:?}");
                terminal.assert_nothing_typed(&format!("{numbers:?}"));
            }
            // And of whoever enters a container that runs.
            let start = ["run", "-d", "--name", "c", "--bind", &bind, "host", "--", "/bin/sleep", "1000"];
            case.spawn(&start).run(case.world).assert_code(0, "run -d");
            for (numbers, tty) in [(&[0, 1, 2][..], false), (&[0], false), (&[1], false), (&[2], false), (&[0, 2], true)] {
                let mut terminal = Terminal::new();
                let numbers: &'static [i32] = numbers.to_vec().leak();
                let tty = if tty { &["-t"][..] } else { &[] };
                let words = [&["exec", "c"], tty, &["--", probe::INSIDE, probe::FLAG, "type"]].concat();
                let running = terminal.attach(case.spawn(&words), numbers).start();
                let outcome = terminal.finish(running, case);
                outcome.assert_code(0, "type");
                assert!((outcome.out() + &terminal.text()).contains("typed"), "{outcome:?}");
                terminal.assert_nothing_typed(&format!("exec {numbers:?}"));
            }
            case.spawn(&["stop", "-t", "0", "c"]).run(case.world).assert_code(0, "stop");
            let mut terminal = Terminal::new();
            let script = format!("spawn hold --bind {bind} host -- {} {} type | idmap | spawn go", probe::INSIDE, probe::FLAG);
            let running = terminal.attach(case.call("/bin/sh").args(["-c", &script]), ALL).start();
            terminal.finish(running, case).assert_code(0, "pipeline");
            assert!(terminal.text().contains("typed"), "{:?}", terminal.text());
            terminal.assert_nothing_typed("pipeline");
        }),
        once("the caller's terminal is nowhere inside", |case| {
            let mut terminal = Terminal::new();
            let script = "ls -l /proc/[0-9]*/fd; echo done; exec sleep 1000";
            let running = terminal.attach(shell(case, script), ALL).start();
            terminal.expect("done");
            let own = std::fs::read_link(format!("/proc/self/fd/{}", terminal.slave.as_raw_fd())).expect("link");
            let outer = std::fs::metadata(own).expect("metadata");
            let sleep = inside("sleep");
            for entry in std::fs::read_dir(format!("/proc/{sleep}/fd")).expect("fd").flatten() {
                let data = std::fs::metadata(entry.path()).expect("metadata");
                use std::os::unix::fs::MetadataExt;
                assert!((data.dev(), data.ino()) != (outer.dev(), outer.ino()), "{:?}", entry.file_name());
            }
            drop(running);
            let _ = processes();
            case.nothing_left("nowhere");
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}
