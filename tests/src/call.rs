//! Starting a program as a user of the fixture, under whatever conditions a hostile caller can make, and its outcome.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::differences::Does;
use crate::sys;
use crate::target::Target;
use crate::tracer::{self, Stop};
use crate::world::{Kind, User, World};

/// Longer than any call takes on a loaded machine; a program that is still there hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the program finds as one of its standard descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fd {
    /// /dev/null as input; a pipe that is read as output.
    Plain,
    /// Nothing: the descriptor is closed.
    Closed,
    /// /dev/full.
    Full,
    /// A pipe whose reader is gone.
    Broken,
    /// A pipe that is full and that nobody reads, so that a writer waits for ever.
    Stuck,
}

type Hook = Box<dyn FnOnce()>;

/// A program to be started.
pub struct Call {
    program: PathBuf,
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    user: Option<User>,
    as_root: Vec<Hook>,
    as_user: Vec<Hook>,
    stdio: [Fd; 3],
    stdin: Option<Vec<u8>>,
    files: Vec<(RawFd, OwnedFd)>,
}

impl Call {
    /// `program`, started as root with its file name as argv\[0\], without arguments and environment.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let program = program.into();
        let name = program.file_name().expect("a program").to_owned();
        Self {
            program,
            argv: vec![name],
            env: Vec::new(),
            user: None,
            as_root: Vec::new(),
            as_user: Vec::new(),
            stdio: [Fd::Plain; 3],
            stdin: None,
            files: Vec::new(),
        }
    }

    /// Starts it as `user`.
    #[must_use]
    pub fn user(mut self, user: User) -> Self {
        self.user = Some(user);
        self
    }

    /// Does not change the user: the hooks do.
    #[must_use]
    pub fn as_is(mut self) -> Self {
        self.user = None;
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.argv.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.argv.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// More arguments: the words of `text`.
    #[must_use]
    pub fn words(self, text: &str) -> Self {
        self.args(text.split_ascii_whitespace())
    }

    /// The whole argument vector, argv\[0\] included; it may be empty.
    #[must_use]
    pub fn argv(mut self, argv: Vec<OsString>) -> Self {
        self.argv = argv;
        self
    }

    /// One more variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Runs before the process becomes the user.
    #[must_use]
    pub fn as_root(mut self, hook: impl FnOnce() + 'static) -> Self {
        self.as_root.push(Box::new(hook));
        self
    }

    /// Runs as the user, last before exec.
    #[must_use]
    pub fn as_user(mut self, hook: impl FnOnce() + 'static) -> Self {
        self.as_user.push(Box::new(hook));
        self
    }

    /// Makes a soft and hard limit, as the user.
    #[must_use]
    pub fn limit(self, resource: nix::sys::resource::Resource, value: u64) -> Self {
        self.as_user(move || nix::sys::resource::setrlimit(resource, value, value).expect("setrlimit"))
    }

    /// Standard descriptor `number` (0 to 2).
    #[must_use]
    pub fn stdio(mut self, number: usize, what: Fd) -> Self {
        self.stdio[number] = what;
        self
    }

    /// Bytes for standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Hands over `file` as descriptor `number`.
    #[must_use]
    pub fn fd(mut self, number: RawFd, file: impl Into<OwnedFd>) -> Self {
        self.files.push((number, file.into()));
        self
    }

    /// Hands over a descriptor that the user opens: `path` with the open flags `flags`.
    #[must_use]
    pub fn opens(self, number: RawFd, path: impl Into<PathBuf>, flags: i32) -> Self {
        let path = path.into();
        self.as_user(move || {
            use std::os::unix::fs::OpenOptionsExt;
            let file = OpenOptions::new().read(true).custom_flags(flags).open(&path);
            let file = file.unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
            assert_ne!(file.as_raw_fd(), number, "the number is free");
            sys::place(file.as_raw_fd(), number).expect("dup2");
        })
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(self) -> Running {
        let (out_read, out_write) = sys::pipe().expect("pipe");
        let (err_read, err_write) = sys::pipe().expect("pipe");
        let (in_read, in_write) = sys::pipe().expect("pipe");
        if let Some(bytes) = &self.stdin {
            assert!(bytes.len() <= 65536, "more than a pipe holds");
            let written = if bytes.is_empty() { 0 } else { nix::unistd::write(&in_write, bytes).expect("write") };
            assert_eq!(written, bytes.len());
        }
        drop(in_write);
        let reads_stdin = self.stdin.is_some();
        let stdio = self.stdio;
        let pid = sys::fork(move || {
            let program = sys::c_path(&self.program);
            let text = |word: &OsStr| CString::new(word.as_bytes()).expect("no NUL byte");
            let argv: Vec<CString> = self.argv.iter().map(|word| text(word)).collect();
            let env: Vec<CString> = self
                .env
                .iter()
                .map(|(name, value)| {
                    CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).expect("no NUL byte")
                })
                .collect();
            for hook in self.as_root {
                hook();
            }
            if let Some(user) = self.user {
                user.become_user();
            }
            for (number, file) in &self.files {
                sys::place(file.as_raw_fd(), *number).expect("dup2");
            }
            let plain = [if reads_stdin { Some(in_read) } else { None }, Some(out_write), Some(err_write)];
            // Hooks may panic, so standard error is arranged last but for them; `Closed` even after them.
            let mut keep = Vec::new();
            for ((number, what), plain) in stdio.iter().enumerate().zip(plain) {
                if let Some(fd) = descriptor(*what, plain) {
                    sys::place(fd.as_raw_fd(), RawFd::try_from(number).expect("0 to 2")).expect("dup2");
                    keep.push(fd);
                }
            }
            for hook in self.as_user {
                hook();
            }
            for (number, what) in stdio.iter().enumerate() {
                if *what == Fd::Closed {
                    sys::close(RawFd::try_from(number).expect("0 to 2"));
                }
            }
            let errno = sys::exec(&program, &argv, &env);
            panic!("exec {}: {errno}", self.program.display());
        })
        .expect("fork");
        let outputs = vec![Output::new(1, out_read, stdio[1]), Output::new(2, err_read, stdio[2])];
        Running { pid, outputs, done: false }
    }

    /// Starts it under the tracer of [`crate::tracer`], stopped right after its exec.
    ///
    /// # Panics
    /// When the kernel has no PTRACE_SEIZE or the exec fails.
    #[must_use]
    pub fn start_traced(self) -> Running {
        let (read, write) = sys::pipe().expect("pipe");
        let running = self
            .as_user(move || {
                let mut byte = [0];
                let _ = nix::unistd::read(&read, &mut byte);
            })
            .start();
        sys::seize(running.pid).unwrap_or_else(|error| panic!("PTRACE_SEIZE: {error}"));
        // A seized process runs until it stops by itself, so it is interrupted before it may go on to its exec.
        nix::sys::ptrace::interrupt(running.pid).expect("PTRACE_INTERRUPT");
        let (status, _) = sys::wait(running.pid, libc::__WALL).expect("wait").expect("a status");
        nix::unistd::write(&write, b"g").expect("go");
        assert!(libc::WIFSTOPPED(status), "the program ended before its exec: status {status:#x}");
        loop {
            match tracer::next(running.pid) {
                Stop::Exec => return running,
                Stop::Gone(status) => panic!("the program ended before its exec: status {status:#x}"),
                _ => {}
            }
        }
    }

    /// Starts it and waits for its end.
    #[must_use]
    pub fn run(self, world: &mut World) -> Outcome {
        self.start().finish(world)
    }
}

fn descriptor(what: Fd, plain: Option<OwnedFd>) -> Option<OwnedFd> {
    let null = || OwnedFd::from(File::open("/dev/null").expect("/dev/null"));
    match what {
        Fd::Closed => None,
        Fd::Plain => Some(plain.unwrap_or_else(null)),
        Fd::Full => Some(OpenOptions::new().write(true).open("/dev/full").expect("/dev/full").into()),
        Fd::Broken => Some(sys::pipe().expect("pipe").1),
        Fd::Stuck => {
            let (read, write) = sys::pipe().expect("pipe");
            let flags = nix::fcntl::OFlag::O_NONBLOCK;
            nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_SETFL(flags)).expect("O_NONBLOCK");
            while nix::unistd::write(&write, &[b'x'; 4096]).is_ok() {}
            while nix::unistd::write(&write, b"x").is_ok() {}
            nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()))
                .expect("blocking again");
            // The read end stays open in the program, or writing would end with EPIPE.
            sys::place(read.as_raw_fd(), 200).expect("dup2");
            Some(write)
        }
    }
}

struct Output {
    number: i32,
    pipe: Option<OwnedFd>,
    bytes: Vec<u8>,
}

impl Output {
    fn new(number: i32, pipe: OwnedFd, what: Fd) -> Self {
        Self { number, pipe: (what == Fd::Plain).then_some(pipe), bytes: Vec::new() }
    }
}

/// A started program.
pub struct Running {
    pid: Pid,
    outputs: Vec<Output>,
    done: bool,
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its output and end after the tracer has seen [`Stop::Gone`] with `status`.
    #[must_use]
    pub fn gone(mut self, status: i32, world: &mut World) -> Outcome {
        self.done = true;
        world.drain_log();
        for output in &mut self.outputs {
            let mut buffer = [0; 65536];
            while let Some(pipe) = &output.pipe {
                match nix::unistd::read(pipe, &mut buffer) {
                    Ok(0) | Err(_) => output.pipe = None,
                    Ok(count) => output.bytes.extend_from_slice(&buffer[..count]),
                }
            }
        }
        let [stdout, stderr] = [0, 1].map(|index| std::mem::take(&mut self.outputs[index].bytes));
        Outcome { status, peak: 0, stdout, stderr }
    }

    /// Reads its output to the end and waits for its own end. Syslog is received meanwhile.
    ///
    /// # Panics
    /// When it hangs.
    #[must_use]
    pub fn finish(mut self, world: &mut World) -> Outcome {
        let begin = Instant::now();
        loop {
            world.drain_log();
            // Short, so that a program that holds no pipe of ours is seen to have ended.
            let nap = PollTimeout::from(20_u8);
            let pipes: Vec<&OwnedFd> = self.outputs.iter().filter_map(|output| output.pipe.as_ref()).collect();
            let no_pipe = pipes.is_empty();
            let mut ready: Vec<PollFd> = pipes.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
            ready.push(PollFd::new(world.log().as_fd(), PollFlags::POLLIN));
            let _ = poll(&mut ready, if no_pipe { PollTimeout::from(1_u8) } else { nap });
            let events: Vec<bool> = ready.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            let mut open = self.outputs.iter_mut().filter(|output| output.pipe.is_some());
            for ready in &events[..events.len() - 1] {
                let output = open.next().expect("as many as were polled");
                if *ready && let Some(pipe) = &output.pipe {
                    let mut buffer = [0; 65536];
                    match nix::unistd::read(pipe, &mut buffer) {
                        Ok(0) | Err(_) => output.pipe = None,
                        Ok(count) => output.bytes.extend_from_slice(&buffer[..count]),
                    }
                }
            }
            let all_read = self.outputs.iter().all(|output| output.pipe.is_none());
            if all_read && let Some((status, peak)) = sys::wait(self.pid, libc::WNOHANG).expect("wait") {
                self.done = true;
                world.drain_log();
                let mut take = |number| {
                    let output = self.outputs.iter_mut().find(|output| output.number == number);
                    std::mem::take(&mut output.expect("1 and 2").bytes)
                };
                return Outcome { status, peak, stdout: take(1), stderr: take(2) };
            }
            assert!(begin.elapsed() < PATIENCE, "the program hangs: {}", describe(self.pid));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.done {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = kill(self.pid, Signal::SIGCONT);
            let _ = sys::wait(self.pid, 0);
        }
    }
}

/// What a process is doing, for messages.
#[must_use]
pub fn describe(pid: Pid) -> String {
    let read =
        |name: &str| std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join(name)).unwrap_or_default();
    format!("{} in system call {}", read("stat").trim(), read("syscall").trim())
}

/// How a program ended and what it printed.
#[derive(Clone, Debug)]
pub struct Outcome {
    status: i32,
    /// Peak resident memory in KiB, that of the image before exec included.
    pub peak: i64,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Outcome {
    /// The exit code; `None` when a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        libc::WIFEXITED(self.status).then(|| libc::WEXITSTATUS(self.status))
    }

    /// The signal that ended it.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        libc::WIFSIGNALED(self.status).then(|| libc::WTERMSIG(self.status))
    }

    /// Whether it left a core file.
    #[must_use]
    pub fn dumped_core(&self) -> bool {
        libc::WIFSIGNALED(self.status) && libc::WCOREDUMP(self.status)
    }

    /// Standard error as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output as text.
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// It exited with `code`.
    #[track_caller]
    pub fn assert_code(&self, code: i32, why: &str) {
        assert_eq!(
            self.code(),
            Some(code),
            "{why}: signal {:?}, stderr \"{}\"",
            self.signal(),
            self.text().escape_debug()
        );
    }

    /// It exited with 0 and printed nothing.
    #[track_caller]
    pub fn assert_silent(&self, why: &str) {
        self.assert_code(0, why);
        assert_eq!((self.out(), self.text()), (String::new(), String::new()), "{why}: success is silent");
    }

    /// It exited with 1 and printed exactly one line, to standard error, that begins with `PROGRAM: `.
    #[track_caller]
    pub fn assert_one_line(&self, program: &str, why: &str) {
        self.assert_code(1, why);
        let text = self.text();
        assert_eq!(self.out(), "", "{why}: nothing goes to standard output");
        assert!(text.starts_with(&format!("{program}: ")), "{why}: \"{}\"", text.escape_debug());
        assert!(
            text.ends_with('\n') && text.matches('\n').count() == 1,
            "{why}: not one line: \"{}\"",
            text.escape_debug()
        );
        assert!(!text.trim_end_matches('\n').contains(|c: char| c.is_control()), "{why}: control characters: {text:?}");
    }
}

/// How a helper ended, and the target it was called for.
#[derive(Debug)]
pub struct Answer {
    /// Which helper.
    pub kind: Kind,
    /// How it ended.
    pub outcome: Outcome,
    /// Whose map it was to write.
    pub target: Target,
}

impl Answer {
    /// It succeeded silently, and the kernel has exactly `triples`.
    #[track_caller]
    pub fn granted(&self, triples: &str, why: &str) {
        self.outcome.assert_silent(why);
        let mut wanted = parse(triples);
        if wanted.len() > 5 {
            // From six extents on the kernel keeps them sorted (kernel/user_namespace.c, UID_GID_MAP_MAX_BASE_EXTENTS).
            wanted.sort_unstable();
        }
        assert_eq!(self.target.map(self.kind), wanted, "{why}");
    }

    /// It did as the table of differences, or a row of the specification, says.
    #[track_caller]
    pub fn did(&self, what: Does, triples: &str, why: &str) {
        match what {
            Does::Grants => self.granted(triples, why),
            Does::Refuses => self.refused(why),
        }
    }

    /// It exited with 1 and changed nothing.
    #[track_caller]
    pub fn refused(&self, why: &str) {
        self.outcome.assert_code(1, why);
        assert_eq!(self.outcome.out(), "", "{why}: nothing goes to standard output");
        self.target.assert_untouched(why);
    }

    /// It exited with 1, changed nothing, and its message holds each of `words`; ours is one line.
    #[track_caller]
    pub fn refused_with(&self, world: &World, words: &[&str], why: &str) {
        self.refused(why);
        if world.ours() {
            self.outcome.assert_one_line(self.kind.program(), why);
            self.says(words, why);
        }
    }

    /// Its message holds each of `words`, in any case of letters.
    #[track_caller]
    pub fn says(&self, words: &[&str], why: &str) {
        let text = self.outcome.text();
        for word in words {
            assert!(text.to_lowercase().contains(&word.to_lowercase()), "{why}: \"{word}\" is not in: {text}");
        }
    }
}

/// Triples as words become the map that the kernel shows.
///
/// # Panics
/// When they are no triples of decimal numbers.
#[must_use]
pub fn parse(triples: &str) -> Vec<[u64; 3]> {
    let numbers: Vec<u64> = triples.split_ascii_whitespace().map(|word| word.parse().expect("a number")).collect();
    assert_eq!(numbers.len() % 3, 0);
    numbers.chunks(3).map(|triple| [triple[0], triple[1], triple[2]]).collect()
}
