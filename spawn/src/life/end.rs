//! `stop`, `kill`, `restart` and `wait`.

#![forbid(unsafe_code)]

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};

use super::cli::{Awaited, Names};
use super::server::{VERSION, Wish};
use super::{NOT_RUNNING, TRY_AGAIN, records};
use crate::failure::{Failure, Outcome, words};
use crate::state::{self, Phase, Record};
use crate::supervise::{Dispositions, halt_signal, is_default, parse_dispositions, time_left};
use crate::{complain, sys};

/// How long a supervisor is given for an answer, and for cleaning up.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often an init that is not ready for its halt signal is looked at.
const AGAIN: Duration = Duration::from_millis(20);

/// After this time of waiting a line says what is waited for.
const WORD: Duration = Duration::from_secs(3);

/// An answer, with the descriptors that came.
pub struct Answer {
    /// What was said, without `ok`.
    pub text: String,
    /// What was handed out.
    pub fd: Option<OwnedFd>,
}

/// Sends a request; nothing is waited for.
///
/// # Errors
/// When the supervisor is gone.
pub fn send(connection: &OwnedFd, request: &str) -> Outcome<()> {
    sys::send_message(connection.as_raw_fd(), format!("{VERSION}{request}").as_bytes(), &[])
        .map_err(|errno| Failure::own(format!("the supervisor does not listen: {}", words(errno))))
}

/// The next packet; empty at the end of the connection.
///
/// # Errors
/// When none comes in time.
pub fn next(connection: &OwnedFd, deadline: Option<Instant>) -> Outcome<(Vec<u8>, Option<OwnedFd>)> {
    loop {
        let mut fds = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, time_left(deadline)) {
            Err(Errno::EINTR) => continue,
            Ok(1) => {}
            _ => return Err(Failure::own("the supervisor does not answer: is it stopped?")),
        }
        let (mut bytes, mut fds) = (vec![0_u8; 8192], [-1; 3]);
        let length = match sys::receive_message(connection.as_raw_fd(), &mut bytes, &mut fds) {
            Ok(length) => length,
            // It has let us go, or has died.
            Err(Errno::ECONNRESET) => 0,
            Err(errno) => return Err(Failure::own(format!("cannot hear the supervisor: {}", words(errno)))),
        };
        bytes.truncate(length);
        let [fd, ..] = fds.map(sys::own);
        return Ok((bytes, fd));
    }
}

/// Asks the supervisor of `name`.
///
/// # Errors
/// When it refuses, or does not answer.
pub fn ask(connection: &OwnedFd, name: &str, request: &str) -> Outcome<Answer> {
    send(connection, request)?;
    let (bytes, fd) = next(connection, Some(Instant::now() + PATIENCE))?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match text.split_once(' ').unwrap_or((&text, "")) {
        ("ok", rest) => Ok(Answer { text: rest.to_owned(), fd }),
        ("error", why) => Err(Failure::own(format!("{name}: {why}"))),
        _ => Err(Failure::own(format!("the supervisor of {name} has ended"))),
    }
}

/// A container that is being ended.
struct Ending {
    record: Record,
    pidfd: OwnedFd,
    connection: Option<OwnedFd>,
    signal: i32,
    sent: bool,
    /// Whether it was seen to have set the signal up when that was sent.
    heard: bool,
    /// Whether its command is yet to be executed: nobody is there who could halt.
    starting: bool,
    began: Instant,
}

impl Ending {
    fn begin(record: Record, wish: Wish) -> Outcome<Self> {
        let pidfd = record
            .process()
            .ok_or_else(|| Failure { code: NOT_RUNNING, text: format!("{} has ended just now", record.name) })?;
        // A supervisor that does not answer is no reason to leave the container alone.
        let connection = state::reach(&record.name).and_then(|connection| {
            let word = if wish == Wish::Stop { "stop" } else { "restart" };
            ask(&connection, &record.name, word).map(|_| connection)
        });
        let connection = match (connection, wish) {
            (Err(failure), Wish::Restart) => return Err(failure),
            (result, _) => result.ok(),
        };
        let signal = if record.init { halt_signal(record.pid, record.halt) } else { libc::SIGTERM };
        let starting = record.state == Phase::Starting;
        Ok(Self { record, pidfd, connection, signal, sent: false, heard: false, starting, began: Instant::now() })
    }

    /// Sends the halt signal; once more when process 1 has only now set it up, for before, the kernel has dropped it.
    /// One that waits in sigtimedwait(2), as busybox does, takes it without having it set up to be seen.
    fn tell(&mut self) {
        if self.heard || self.starting {
            return;
        }
        if self.record.init && self.record.halt.is_none() {
            // It may have come further since.
            let signal = halt_signal(self.record.pid, None);
            self.sent &= signal == self.signal;
            self.signal = signal;
        }
        self.heard = !is_default(self.record.pid, self.signal);
        if self.heard || !self.sent {
            self.sent = true;
            let _ = sys::signal_process(self.pidfd.as_fd(), self.signal);
            // An interactive shell ignores SIGTERM and ends by SIGHUP, as when its terminal goes (systemd's SendSIGHUP).
            if !self.record.init && self.ignores() && catches(self.record.pid, libc::SIGHUP) {
                self.signal = libc::SIGHUP;
                let _ = sys::signal_process(self.pidfd.as_fd(), self.signal);
            }
        }
    }

    /// Whether process 1 ignores the signal.
    fn ignores(&self) -> bool {
        dispositions(self.record.pid).is_some_and(|known| known.ignored & bit(self.signal) != 0)
    }

    /// Says once, when there is something to wait for, what that is and what else can be done.
    fn say_what_is_waited_for(&self, left: Duration) -> bool {
        let name = &self.record.name;
        let (signal, seconds) = (signal_name(self.signal), left.as_secs_f64());
        let cure = format!("`spawn stop -t 0 {name}` kills at once");
        if !self.record.init && self.ignores() {
            complain(&format!(
                "{name}: its command ignores {signal}, as an interactive shell does: it is killed in {seconds:.0} s; {cure}"
            ));
        } else if self.began.elapsed() >= WORD {
            complain(&format!("{name}: has not ended by {signal} yet: it is killed in {seconds:.0} s; {cure}"));
        } else {
            return false;
        }
        true
    }

    /// What ended it, for the person who asked.
    fn wait(mut self, timeout: Duration) -> Outcome<String> {
        let name = self.record.name.clone();
        let deadline = self.began + timeout;
        let (mut ended, mut told) = (false, false);
        while !ended && !self.starting && Instant::now() < deadline {
            self.tell();
            let left = deadline.saturating_duration_since(Instant::now());
            told = told || self.say_what_is_waited_for(left);
            let step = if self.heard { left } else { AGAIN.min(left) };
            let step = if told { step } else { step.min(WORD.saturating_sub(self.began.elapsed()).max(AGAIN)) };
            ended = state::ends_within(&self.pidfd, step);
            if !self.heard && !self.record.init {
                break;
            }
        }
        let signal = signal_name(self.signal);
        if ended {
            let time = self.began.elapsed().as_secs_f64();
            self.settle()?;
            return Ok(format!("{name}: ended by {signal} after {time:.1} s"));
        }
        let _ = sys::signal_process(self.pidfd.as_fd(), libc::SIGKILL);
        if !state::ends_within(&self.pidfd, PATIENCE) {
            return Err(Failure::own(format!(
                "{name}: process {} has not ended by SIGKILL: it waits for a device, or is frozen",
                self.record.pid
            )));
        }
        let seconds = timeout.as_secs_f64();
        let text = match (timeout.is_zero(), self.heard) {
            _ if self.starting => format!("{name}: killed before it had started"),
            (true, _) => format!("{name}: killed"),
            (false, true) => format!("{name}: killed, because it had not ended by {signal} within {seconds} s"),
            (false, false) if self.record.init => {
                format!("{name}: killed, because its init had not set up {signal} within {seconds} s")
            }
            (false, false) => format!("{name}: killed, because its command has not set up {signal}"),
        };
        self.settle()?;
        Ok(text)
    }

    /// The supervisor tidies up, or starts it again; then the name is free, or taken anew.
    fn settle(&mut self) -> Outcome<()> {
        let deadline = (!self.record.hooks_at_end).then(|| Instant::now() + PATIENCE);
        let Some(connection) = self.connection.take() else {
            let _ = state::find(&self.record.name);
            return Ok(());
        };
        loop {
            let (bytes, _) = next(&connection, deadline)?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            match text.split_once(' ').unwrap_or((&text, "")) {
                ("failed", why) => {
                    return Err(Failure::own(format!("{} was not started again: {why}", self.record.name)));
                }
                ("started" | "", _) => return Ok(()),
                _ => {}
            }
        }
    }
}

fn dispositions(pid: i32) -> Option<Dispositions> {
    Some(parse_dispositions(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?))
}

fn catches(pid: i32, signal: i32) -> bool {
    dispositions(pid).is_some_and(|known| known.caught & bit(signal) != 0)
}

/// Of the masks of /proc/PID/status.
fn bit(signal: i32) -> u64 {
    u32::try_from(signal).ok().and_then(|n| n.checked_sub(1)).and_then(|n| 1_u64.checked_shl(n)).unwrap_or(0)
}

/// The name of a signal.
fn signal_name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) => format!("SIGRTMIN+{}", signal.saturating_sub(34)),
    }
}

/// Prints a line on standard output.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Whatever becomes of one, the others have their turn: the last failure is the result.
///
/// # Errors
/// The last one's.
pub fn each<T>(all: impl IntoIterator<Item = T>, mut action: impl FnMut(T) -> Outcome<()>) -> Outcome<u8> {
    let mut result = Ok(0);
    for one in all {
        if let Err(failure) = action(one)
            && let Err(earlier) = std::mem::replace(&mut result, Err(failure))
        {
            complain(&earlier.text);
        }
    }
    result
}

/// `stop` and `restart`: all are told, and then waited for together.
///
/// # Errors
/// When one does not run or does not end; the others are stopped.
pub fn stop(names: &Names, timeout: Duration, wish: Wish) -> Outcome<u8> {
    let mut endings = Vec::new();
    for record in records(names)? {
        let mut ending = Ending::begin(record, wish)?;
        if !timeout.is_zero() {
            ending.tell();
        }
        endings.push(ending);
    }
    each(endings, |ending| {
        let name = ending.record.name.clone();
        say(&ending.wait(timeout)?);
        if wish == Wish::Restart {
            return match state::find(&name)? {
                Some(record) if record.state == Phase::Running => Ok(()),
                _ => Err(Failure::own(format!("{name} does not run after its new start: see `spawn logs {name}`"))),
            };
        }
        Ok(())
    })
}

/// Sends a signal.
///
/// # Errors
/// When a container does not run.
pub fn kill(names: &Names, signal: i32) -> Outcome<u8> {
    each(records(names)?, |record| {
        let gone = || Failure { code: NOT_RUNNING, text: format!("{} has ended just now", record.name) };
        let pidfd = record.process().ok_or_else(gone)?;
        let forced = [libc::SIGKILL, libc::SIGSTOP, libc::SIGCONT].contains(&signal);
        if !forced && is_default(record.pid, signal) {
            let signal = signal_name(signal);
            complain(&format!(
                "{}: process 1 has not set up {signal}: the kernel drops it, unless it waits for it just now",
                record.name
            ));
        }
        match sys::signal_process(pidfd.as_fd(), signal) {
            Err(Errno::ESRCH) => Err(gone()),
            result => result.map_err(|errno| {
                Failure::own(format!("cannot send {} to {}: {}", signal_name(signal), record.name, words(errno)))
            }),
        }
    })
}

/// Waits for a state; prints the exit status of a container that has ended.
///
/// # Errors
/// When the time is over.
pub fn wait(names: &Names, state: Awaited, timeout: Option<Duration>) -> Outcome<u8> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let list =
        if names.all { records(names)?.into_iter().map(|record| record.name).collect() } else { names.names.clone() };
    let late = |name: &str| Failure { code: TRY_AGAIN, text: format!("{name} is not what was waited for yet") };
    for name in &list {
        if !crate::cli::is_name(name) {
            super::live(name)?;
        }
        loop {
            let found = state::find(name)?;
            match (state, found) {
                (Awaited::Running, Some(record)) if record.state == Phase::Running => break,
                (Awaited::Running, _) => {}
                (Awaited::Stopped, None) => break,
                (Awaited::Stopped, Some(_)) => {
                    // It may be gone by now, or be starting again: then the next look tells.
                    if let Ok(connection) = state::reach(name)
                        && send(&connection, "wait").is_ok()
                    {
                        let (bytes, _) = next(&connection, deadline).map_err(|_| late(name))?;
                        if let Some(code) = String::from_utf8_lossy(&bytes).strip_prefix("ended ") {
                            say(code);
                            // The end of the connection: the name is free.
                            let _ = next(&connection, Some(Instant::now() + PATIENCE));
                            break;
                        }
                    }
                }
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(late(name));
            }
            std::thread::sleep(AGAIN);
        }
    }
    Ok(0)
}
