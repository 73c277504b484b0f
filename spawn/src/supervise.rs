//! The parent's side: signals, the console, the client of a held container, and the end.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::child::Child;
use crate::client::{Client, Request};
use crate::console::{Console, End, Stdio, Typed};
use crate::explain;
use crate::failure::{Failure, Outcome, words};
use crate::life::{Life, server};
use crate::plan::Plan;
use crate::report;
use crate::sys;

/// Signals that are passed on to the command. Not among them: those that stop and continue this process, SIGCHLD, and
/// those that report a fault of this process.
const FORWARDED: [Signal; 12] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGPWR,
    Signal::SIGXCPU,
    Signal::SIGWINCH,
];

/// systemd's halt signal, SIGRTMIN+3 of glibc; musl's SIGRTMIN is another number, systemd's is not.
const SYSTEMD_HALT: i32 = 37;

/// What is left until `deadline`, for poll(2).
#[must_use]
pub fn time_left(deadline: Option<Instant>) -> PollTimeout {
    deadline.map_or(PollTimeout::NONE, |deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        // One millisecond more: never wake up just before the time.
        PollTimeout::try_from(left.saturating_add(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX)
    })
}

/// The signals of this process, readable from a descriptor. Made before the child exists, so that no signal can be
/// lost.
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals that are passed on, and undoes an inherited SIG_IGN of SIGCHLD, under which the kernel would
    /// reap the child itself and its exit status would be lost.
    ///
    /// # Errors
    /// When the kernel refuses a signalfd.
    pub fn block() -> Outcome<Self> {
        let fail = |errno| Failure::own(format!("cannot watch for signals: {}", words(errno)));
        let mask: SigSet = FORWARDED.into_iter().collect();
        let mut all = mask;
        all.add(Signal::SIGCHLD);
        all.thread_set_mask().map_err(fail)?;
        let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        sys::set_disposition(Signal::SIGCHLD, &action).map_err(fail)?;
        SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map(Self).map_err(fail)
    }

    /// The next signal that has come, if one has.
    #[must_use]
    pub fn next(&self) -> Option<i32> {
        self.0.read_signal().ok().flatten().and_then(|info| i32::try_from(info.ssi_signo).ok())
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How far the child is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting,
    /// It has said that the exec is next.
    Executing,
    Running,
}

/// A child that has been told to go, and all that is watched while it lives.
pub struct Supervisor {
    child: Child,
    init: bool,
    stdio: Stdio,
    signals: Signals,
    console: Option<Console>,
    /// The masters of /dev/tty1 and on.
    ttys: Vec<OwnedFd>,
    client: Option<Client>,
    state: State,
    /// Whether the child may still say something.
    open: bool,
    deadline: Option<Instant>,
    life: Option<Life>,
    /// Whether the command has entered a container of another supervisor, where it is not process 1.
    guest: bool,
    /// Set when a signal has ended the container in the command's stead.
    ended_by: Option<i32>,
    failure: Option<Failure>,
}

#[derive(Clone, Copy)]
enum Source {
    Signals,
    Child,
    Channel,
    Client,
    Console(End),
    Server(server::End),
}

/// How a watch came to its end.
pub enum Turn {
    /// The container has ended, with this status for the shell.
    Ended(u8),
    /// It has ended and wants to be started again.
    Again(Box<Life>),
    /// It runs and is to be watched in the background.
    Running(Box<Supervisor>),
}

impl Supervisor {
    /// Tells the child to go on to its exec. One that was held has not inherited the three of `stdio` and gets them
    /// with this word.
    ///
    /// # Errors
    /// When the child is not there any more.
    pub fn release(
        child: Child,
        plan: &Plan,
        stdio: Stdio,
        signals: Signals,
        deadline: Instant,
        client: Option<Client>,
    ) -> Outcome<Self> {
        // The command may ask for the size of its window before this process has been given the console.
        let [a, b, c, d] =
            if stdio.interactive() { sys::window_size(stdio.fds[0].as_fd()).unwrap_or_default() } else { [0; 4] };
        let word = [report::GO, stdio.console_mask(), u8::from(stdio.interactive()), a, b, c, d];
        let fds: Vec<RawFd> = if plan.held {
            let handed = stdio.fds.iter().zip(stdio.terminals).filter(|(_, terminal)| !terminal);
            handed.map(|(fd, _)| fd.as_raw_fd()).collect()
        } else {
            Vec::new()
        };
        let sent = sys::send_message(child.channel.as_raw_fd(), &word, &fds);
        let supervisor = Self {
            child,
            init: plan.init,
            stdio,
            signals,
            console: None,
            ttys: Vec::new(),
            client,
            state: State::Starting,
            open: true,
            deadline: Some(deadline),
            life: None,
            guest: false,
            ended_by: None,
            failure: None,
        };
        match sent {
            // EPIPE: it has ended and its report, or its death, is to be read yet.
            Ok(()) | Err(Errno::EPIPE) => Ok(supervisor),
            Err(errno) => Err(Failure::own(format!("cannot release the container: {}", words(errno)))),
        }
    }

    /// Gives it a name and a socket.
    #[must_use]
    pub fn with(mut self, life: Life) -> Self {
        self.life = Some(life);
        self
    }

    /// The command is not process 1.
    #[must_use]
    pub fn into_guest(mut self) -> Self {
        self.guest = true;
        self
    }

    /// The container's name in the run state.
    #[must_use]
    pub fn name(&self) -> String {
        self.life.as_ref().map(Life::name).unwrap_or_default()
    }

    /// What is kept of it in the background: its child and what it registered.
    #[must_use]
    pub fn into_parts(self) -> (Child, Option<Life>) {
        (self.child, self.life)
    }

    /// Watches until the container has ended, or runs in the background. The client has been told everything;
    /// `running` is called when the command has been executed.
    ///
    /// # Errors
    /// When the command has not been executed.
    pub fn watch(mut self, mut running: impl FnMut()) -> Outcome<Turn> {
        let mut told = false;
        loop {
            let (mut sources, mut fds) = (Vec::with_capacity(8), Vec::with_capacity(8));
            // First, and read once without asking again: later ones may hear all that is left (`catch_up`).
            if self.open {
                sources.push(Source::Channel);
                fds.push(PollFd::new(self.child.channel.as_fd(), PollFlags::POLLIN));
            }
            sources.extend([Source::Signals, Source::Child]);
            fds.push(PollFd::new(self.signals.as_fd(), PollFlags::POLLIN));
            fds.push(PollFd::new(self.child.pidfd.as_fd(), PollFlags::POLLIN));
            if let Some(client) = &self.client {
                sources.push(Source::Client);
                fds.push(PollFd::new(client.as_fd(), PollFlags::POLLIN));
            }
            if let Some(console) = &self.console {
                for (end, fd, events) in console.interests() {
                    sources.push(Source::Console(end));
                    fds.push(PollFd::new(fd, events));
                }
            }
            if let Some(life) = &self.life {
                for (end, fd, events) in life.interests() {
                    sources.push(Source::Server(end));
                    fds.push(PollFd::new(fd, events));
                }
            }
            let count = match poll(&mut fds, time_left(self.deadline)) {
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Failure::own(format!("cannot wait for the container: {}", words(errno)))),
                Ok(count) => count,
            };
            let ready: Vec<(Source, PollFlags)> = sources
                .into_iter()
                .zip(fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())))
                .filter(|(_, events)| !events.is_empty())
                .collect();
            drop(fds);
            if count == 0 {
                self.give_up("has not started in time");
            }
            let mut ended = false;
            for (source, events) in ready {
                match source {
                    Source::Signals => {
                        while let Some(signal) = self.signals.next() {
                            self.forward(signal);
                        }
                    }
                    Source::Child => ended = true,
                    Source::Channel => self.open = self.hear(),
                    Source::Client => self.serve(),
                    Source::Console(end) => self.console_ready(end, events),
                    Source::Server(end) => {
                        if let Some(life) = &mut self.life {
                            life.serve(end, events, self.child.pidfd.as_fd());
                        }
                    }
                }
            }
            if let Some(life) = &mut self.life {
                life.sweep();
            }
            if ended {
                // Its last words may have come in the same moment.
                self.catch_up();
            }
            if self.state == State::Running && !told {
                told = true;
                running();
                if let Some(life) = &mut self.life {
                    life.runs()?;
                    if life.is_detached() {
                        return Ok(Turn::Running(Box::new(self)));
                    }
                }
            }
            if ended {
                return self.finish();
            }
        }
    }

    /// Hears all that the child has said so far.
    fn catch_up(&mut self) {
        while self.open && self.channel_ready() {
            self.open = self.hear();
        }
    }

    fn channel_ready(&self) -> bool {
        let mut fds = [PollFd::new(self.child.channel.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, 0_u16), Ok(1))
    }

    /// One message of the child; `false` at the end of them.
    fn hear(&mut self) -> bool {
        let mut message = [0_u8; report::MAX_MESSAGE];
        let mut fds = [-1; 3];
        let channel = self.child.channel.as_raw_fd();
        let length = match sys::receive_message(channel, &mut message, &mut fds) {
            // It has ended without having read our word; what it has said before comes next.
            Err(Errno::ECONNRESET) => sys::receive_message(channel, &mut message, &mut fds),
            result => result,
        };
        let message = message.get(..length.unwrap_or(0)).unwrap_or_default();
        let [master, slave, _] = fds.map(sys::own);
        match message.first() {
            None => {
                if self.state == State::Executing && self.failure.is_none() {
                    self.state = State::Running;
                    self.deadline = None;
                    if let Some(client) = &mut self.client {
                        client.say("running");
                    }
                }
                return false;
            }
            Some(&report::CONSOLE) => self.connect(master, slave),
            // Kept open: a getty on a terminal whose master is gone would be started again for ever.
            Some(&report::TTY) => self.ttys.extend(master),
            Some(&report::EXEC) => self.state = State::Executing,
            Some(&report::FAILED) => {
                self.failure = report::parse(message).map(|report| explain::child_failure(&report));
            }
            Some(_) => {}
        }
        true
    }

    fn connect(&mut self, master: Option<OwnedFd>, slave: Option<OwnedFd>) {
        let (Some(master), Some(slave)) = (master, slave) else {
            return self.give_up("has sent no console: too many open files?");
        };
        if let Some(life) = self.life.as_mut().filter(|life| life.is_detached()) {
            return life.keep_console(master, slave);
        }
        match Console::new(master, slave, &self.stdio) {
            Ok(console) => self.console = Some(console.with_log(self.life.as_mut().and_then(Life::take_log))),
            Err(error) => self.give_up(&format!("has no console: {error}")),
        }
    }

    fn give_up(&mut self, why: &str) {
        if self.failure.is_none() {
            self.failure = Some(Failure::own(format!("the container {why}")));
        }
        self.deadline = None;
        self.kill();
    }

    fn kill(&self) {
        // ESRCH: it has ended by itself.
        let _ = sys::signal_process(self.child.pidfd.as_fd(), libc::SIGKILL);
    }

    fn serve(&mut self) {
        while let Some(client) = &mut self.client {
            match client.next() {
                Request::Signal(signal) => self.forward(signal),
                Request::Nothing => return,
                Request::End => {
                    // Whoever said `go` is gone, and the container with it.
                    self.client = None;
                    self.kill();
                }
                _ => client.say("failed the container runs already"),
            }
        }
    }

    fn console_ready(&mut self, end: End, events: PollFlags) {
        let Some(console) = &mut self.console else { return };
        match console.ready(end, events) {
            Typed::Text => {}
            Typed::Hangup => self.forward(libc::SIGHUP),
            // The command is not there yet: the kernel has nobody to send it to.
            Typed::Signal(signal) if self.state != State::Running => self.forward(signal),
            Typed::Signal(signal) => {
                // The console signals its foreground group. When the command itself, pid 1, is in it and has not said
                // what to do, the kernel drops the signal for pid 1 alone; anywhere else it would end the command.
                if console.foreground() == self.child.pid && !self.init && !self.guest {
                    self.end_if_default(signal);
                }
            }
        }
    }

    /// Passes a signal on to the command.
    fn forward(&mut self, signal: i32) {
        if signal == libc::SIGWINCH {
            if let Some(console) = &self.console {
                console.resize();
            }
            return;
        }
        // A command that has been executed, and has set the signal up, is no start to be given up.
        self.catch_up();
        if self.state != State::Running {
            self.ended_by = Some(signal);
            return self.kill();
        }
        if self.guest {
            let _ = sys::signal_process(self.child.pidfd.as_fd(), signal);
            return;
        }
        if self.init && signal == libc::SIGTERM {
            // An init takes SIGTERM for something else (upstart and systemd execute themselves again).
            let halt = halt_signal(self.child.pid, self.life.as_ref().and_then(Life::halt));
            let _ = sys::signal_process(self.child.pidfd.as_fd(), halt);
            if let Some(life) = &mut self.life {
                life.stops();
            }
            return;
        }
        if self.init || !self.end_if_default(signal) {
            let _ = sys::signal_process(self.child.pidfd.as_fd(), signal);
        }
    }

    /// The kernel drops every signal to pid 1 of a pid namespace that it has not set up. A command that is pid 1 only
    /// because it is alone in its container is ended in its stead, as the signal would have done outside.
    fn end_if_default(&mut self, signal: i32) -> bool {
        let default = is_default(self.child.pid, signal);
        if default {
            self.ended_by = Some(signal);
            self.kill();
        }
        default
    }

    fn finish(mut self) -> Outcome<Turn> {
        let waited = sys::wait_child(self.child.pidfd.as_fd());
        if let Some(console) = self.console.take() {
            console.finish();
        }
        let reboots = matches!(waited, Ok((_, libc::SIGHUP)))
            && self.ended_by.is_none()
            && self.failure.is_none()
            && self.state == State::Running;
        let result = self.result(waited);
        if result.is_ok()
            && self.ended_by.is_none()
            && let Some(life) = self.life.take_if(|life| life.goes_on(reboots))
        {
            return Ok(Turn::Again(Box::new(life)));
        }
        if let Some(client) = &mut self.client {
            match &result {
                Ok(code) => client.say(&format!("exited {code}")),
                Err(failure) => {
                    client.say(&format!("failed {}", failure.text));
                    client.say(&format!("exited {}", failure.code));
                }
            }
        }
        if let (Ok(code), Some(life)) = (&result, &mut self.life) {
            life.ended(*code, self.child.pidfd.as_fd());
        }
        result.map(Turn::Ended)
    }

    fn result(&self, waited: sys::Call<(u8, i32)>) -> Outcome<u8> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        if let Some(signal) = self.ended_by {
            return Ok(u8::try_from(signal).unwrap_or(0).saturating_add(128));
        }
        let (code, signal) =
            waited.map_err(|errno| Failure::own(format!("cannot wait for the container: {}", words(errno))))?;
        if self.state == State::Starting {
            return Err(Failure::own(match signal {
                0 => "the container has ended before it started".to_owned(),
                _ => format!("the container was killed by signal {signal} before it started"),
            }));
        }
        Ok(exit_code(self.init, code, signal))
    }
}

/// The status for the shell of a process 1 that has ended by itself. reboot(2) inside: halt and power off end it by
/// SIGINT, which is how an init stops well.
#[must_use]
pub const fn exit_code(init: bool, code: u8, signal: i32) -> u8 {
    if init && signal == libc::SIGINT { 0 } else { code }
}

/// The signal by which an init halts, as LXC chooses it: the configured one, else SIGRTMIN+3 if it blocks that (systemd
/// reads it from a signalfd), else SIGPWR.
#[must_use]
pub fn halt_signal(pid: i32, configured: Option<i32>) -> i32 {
    configured.unwrap_or_else(|| {
        // A C library blocks every signal while it forks, those too that nobody blocks for long: then another look.
        let mut looks = (0..100).map(|look| {
            if look > 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            dispositions(pid).map_or(0, |d| d.blocked)
        });
        let blocked = looks.find(|blocked| blocked & bit(libc::SIGSEGV) == 0).unwrap_or(0);
        if blocked & bit(SYSTEMD_HALT) != 0 { SYSTEMD_HALT } else { libc::SIGPWR }
    })
}

/// Whether a process has said nothing about `signal`: the kernel drops it then if the process is process 1.
#[must_use]
pub fn is_default(pid: i32, signal: i32) -> bool {
    dispositions(pid).is_some_and(|d| (d.blocked | d.ignored | d.caught) & bit(signal) == 0)
}

fn bit(signal: i32) -> u64 {
    u32::try_from(signal).ok().and_then(|n| n.checked_sub(1)).and_then(|n| 1_u64.checked_shl(n)).unwrap_or(0)
}

/// What a process does with signals: bit N-1 for signal N.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dispositions {
    /// Blocked.
    pub blocked: u64,
    /// Ignored.
    pub ignored: u64,
    /// Handled.
    pub caught: u64,
}

fn dispositions(pid: i32) -> Option<Dispositions> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(parse_dispositions(&text))
}

/// The signals from 1 to 64 that this process ignores, as bits (bit 0 is signal 1).
#[must_use]
pub fn ignored_signals() -> u64 {
    // One read: the standard library would feel its way through a file of size 0 with a dozen.
    let mut text = [0_u8; 4096];
    let Ok(file) = sys::open_at(libc::AT_FDCWD, c"/proc/self/status", libc::O_RDONLY) else { return 0 };
    let length = sys::read(file, &mut text).unwrap_or(0);
    sys::close(file);
    let text = text.get(..length).unwrap_or_default();
    if text.windows(8).any(|bytes| bytes == b"\nSigIgn:") && text.ends_with(b"\n") {
        return parse_dispositions(&String::from_utf8_lossy(text)).ignored;
    }
    // The line of groups, which stands before, may be long.
    std::fs::read_to_string("/proc/self/status").map_or(0, |text| parse_dispositions(&text).ignored)
}

/// Reads the masks from the text of /proc/PID/status (proc_pid_status(5)).
#[must_use]
pub fn parse_dispositions(status: &str) -> Dispositions {
    let mask = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
    };
    Dispositions { blocked: mask("SigBlk:"), ignored: mask("SigIgn:"), caught: mask("SigCgt:") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_masks_are_read_from_proc_status() {
        let text = "Name:\tx\nSigPnd:\t0000000000000001\nSigBlk:\t7be3c0fe28014a03\nSigIgn:\t0000000000001000\nSigCgt:\t00000001000004ec\n";
        let d = parse_dispositions(text);
        assert_eq!(d.ignored, bit(libc::SIGPIPE));
        assert!(d.blocked & bit(SYSTEMD_HALT) != 0, "systemd blocks its halt signal");
        assert_eq!(parse_dispositions(""), Dispositions::default());
    }

    #[test]
    fn a_signal_is_one_bit() {
        assert_eq!(bit(1), 1);
        assert_eq!(bit(64), 1 << 63);
        assert_eq!((bit(0), bit(65), bit(-1)), (0, 0, 0));
    }
}
