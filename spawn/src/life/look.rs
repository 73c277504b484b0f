//! `console` and `logs`: the output comes from the supervisor's ring; what is typed goes straight to the pty.

#![forbid(unsafe_code)]

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::end::{ask, next};
use super::live;
use crate::console::{make_raw, restore_terminal};
use crate::failure::{Failure, Outcome, words};
use crate::supervise::Signals;
use crate::{complain, state, sys};

/// How long a container that starts again is waited for.
const AGAIN: Duration = Duration::from_secs(15);

/// ^], of which two leave the console.
const ESCAPE: u8 = 0x1d;
/// ^A, after which a q leaves it.
const PREFIX: u8 = 0x01;

/// A connection that the console's output comes from, and the offset of the next byte.
struct Stream {
    connection: OwnedFd,
    offset: u64,
}

impl Stream {
    fn open(name: &str, request: &str) -> Outcome<Self> {
        let connection = state::reach(name)?;
        let answer = ask(&connection, name, request)?;
        Ok(Self { connection, offset: answer.text.parse().unwrap_or(0) })
    }

    /// After the end of one: the next one of the same container, if it starts again.
    fn again(&mut self, name: &str) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < AGAIN && matches!(state::find(name), Ok(Some(_))) {
            if let Ok(stream) = Self::open(name, &format!("follow at {}", self.offset)) {
                *self = stream;
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    /// What has come; empty at the end.
    fn read(&mut self) -> Outcome<Vec<u8>> {
        let (bytes, _) = next(&self.connection, None)?;
        self.offset = self.offset.saturating_add(bytes.len() as u64);
        Ok(bytes)
    }
}

/// Prints the log.
///
/// # Errors
/// When the container does not run in the background.
pub fn logs(name: &str, follow: bool) -> Outcome<u8> {
    let record = live(name)?;
    let mut stream = Stream::open(&record.name, if follow { "follow" } else { "log" })?;
    let mut out = std::io::stdout();
    loop {
        let bytes = stream.read()?;
        if bytes.is_empty() {
            if follow && stream.again(name) {
                continue;
            }
            return Ok(0);
        }
        // A reader that has seen enough.
        if out.write_all(&bytes).and_then(|()| out.flush()).is_err() {
            return Ok(0);
        }
    }
}

/// What is typed, and whether it was the way out.
#[derive(Debug, Default)]
struct Keys {
    /// The first of two keys.
    held: Option<u8>,
}

impl Keys {
    /// Appends to `out` what is for the console; `true`: leave.
    fn take(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for byte in typed {
            match (self.held.take(), *byte) {
                (Some(ESCAPE), ESCAPE) | (Some(PREFIX), b'q') => return true,
                // Twice for once.
                (Some(PREFIX), PREFIX) => out.push(PREFIX),
                (held, byte) => {
                    out.extend(held);
                    if byte == ESCAPE || byte == PREFIX {
                        self.held = Some(byte);
                    } else {
                        out.push(byte);
                    }
                }
            }
        }
        false
    }
}

/// Why the console is left.
enum Left {
    Keys,
    Signal(i32),
    Ended,
    Hangup,
}

/// Attaches the terminal.
///
/// # Errors
/// When standard input is no terminal, or the container does not run in the background.
pub fn console(name: &str) -> Outcome<u8> {
    let record = live(name)?;
    let terminal = std::io::stdin().as_fd().try_clone_to_owned();
    let terminal = terminal.map_err(|error| Failure::own(format!("cannot copy standard input: {error}")))?;
    if !nix::unistd::isatty(&terminal).unwrap_or(false) {
        return Err(Failure::own(format!(
            "console: standard input is no terminal; `spawn exec {name} -- COMMAND` and `spawn logs {name}` need none"
        )));
    }
    let mut master = pty(name)?;
    let mut stream = Stream::open(name, "follow tail")?;
    let signals = Signals::block()?;
    complain(&format!("this is the console of {name}; leave it by ^] twice, or by ^A and q"));
    make_raw(&terminal, nix::unistd::isatty(std::io::stdout()).unwrap_or(false));
    let left = loop {
        match attend(&terminal, &master, &mut stream, &signals) {
            Ok(Left::Ended) => {
                // A reboot: the next start has a pty of its own.
                if stream.again(&record.name)
                    && let Ok(next) = pty(name)
                {
                    master = next;
                    continue;
                }
                break Ok(Left::Ended);
            }
            other => break other,
        }
    };
    restore_terminal();
    let _ = std::io::stderr().write_all(b"\n");
    match left? {
        Left::Keys => Ok(0),
        Left::Hangup => Ok(129),
        Left::Signal(signal) => Ok(u8::try_from(signal).unwrap_or(0).saturating_add(128)),
        Left::Ended => {
            complain(&format!("{name} has ended"));
            Ok(0)
        }
    }
}

fn pty(name: &str) -> Outcome<OwnedFd> {
    let connection = state::reach(name)?;
    ask(&connection, name, "console")?.fd.ok_or_else(|| Failure::own(format!("{name} has given no console")))
}

fn attend(terminal: &OwnedFd, master: &OwnedFd, stream: &mut Stream, signals: &Signals) -> Outcome<Left> {
    let _ = sys::copy_window_size(terminal.as_fd(), master.as_fd());
    let (mut keys, mut typed) = (Keys::default(), Vec::new());
    loop {
        let mut fds = vec![
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(stream.connection.as_fd(), PollFlags::POLLIN),
        ];
        // What the pty does not take yet is waited for, and nothing more is read until it has.
        fds.push(if typed.is_empty() {
            PollFd::new(terminal.as_fd(), PollFlags::POLLIN)
        } else {
            PollFd::new(master.as_fd(), PollFlags::POLLOUT)
        });
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(Failure::own(format!("cannot wait for the console: {}", words(errno)))),
            Ok(_) => {}
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        let [signal, output, input] = ready[..] else { return Ok(Left::Hangup) };
        if signal {
            while let Some(signal) = signals.next() {
                if signal != libc::SIGWINCH {
                    return Ok(Left::Signal(signal));
                }
                let _ = sys::copy_window_size(terminal.as_fd(), master.as_fd());
            }
        }
        if output {
            let bytes = stream.read()?;
            if bytes.is_empty() {
                return Ok(Left::Ended);
            }
            let mut out = std::io::stdout();
            let _ = out.write_all(&bytes).and_then(|()| out.flush());
        }
        if input && typed.is_empty() {
            let mut bytes = [0_u8; 4096];
            match sys::read(terminal.as_raw_fd(), &mut bytes) {
                Ok(0) | Err(Errno::EIO) => return Ok(Left::Hangup),
                Ok(length) => {
                    if keys.take(bytes.get(..length).unwrap_or_default(), &mut typed) {
                        return Ok(Left::Keys);
                    }
                }
                Err(_) => {}
            }
        }
        if !typed.is_empty() {
            match nix::unistd::write(master, &typed) {
                Ok(count) => drop(typed.drain(..count)),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                // Its end is told by the stream.
                Err(_) => typed.clear(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_keys_lead_out_and_everything_else_goes_in() {
        let typed = |parts: &[&[u8]]| {
            let (mut keys, mut out) = (Keys::default(), Vec::new());
            let left = parts.iter().any(|part| keys.take(part, &mut out));
            (left, out)
        };
        assert_eq!(typed(&[b"ls\r"]), (false, b"ls\r".to_vec()));
        assert_eq!(typed(&[b"a\x1d", b"\x1db"]), (true, b"a".to_vec()));
        assert_eq!(typed(&[b"\x1dx"]), (false, b"\x1dx".to_vec()));
        assert_eq!(typed(&[b"\x01", b"q"]), (true, vec![]));
        assert_eq!(typed(&[b"\x01\x01e\x01k"]), (false, b"\x01e\x01k".to_vec()));
        assert_eq!(typed(&[b"\x1d\x01q"]), (true, b"\x1d".to_vec()));
    }
}
