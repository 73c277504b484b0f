//! `spawn go`: the end of the pipeline.

#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use helper::handoff::{Record, start_time};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::console;
use crate::failure::{Failure, OWN_FAILURE, Outcome, words};
use crate::hold;
use crate::supervise::Signals;
use crate::{state, sys};

/// How long a holder that is told to give up is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Reads the record from standard input, lets the container go, and returns its exit status.
///
/// # Errors
/// When the record is none, a stage has failed, or the holder is not there.
pub fn go() -> Outcome<u8> {
    let record = Record::read_from(&mut Unbuffered).map_err(|error| Failure::own(error.to_string()))?;
    let control = record.get("control").ok_or_else(|| Failure::own("the handoff record names no control socket"))?;
    let connect = || {
        UnixStream::connect(control).map_err(|error| {
            Failure::own(format!("cannot reach the holder at {control}: {error}; has its time run out?"))
        })
    };
    // The holder may be gone already; the container is then, too.
    let give_up = || {
        if let Ok(mut stream) = connect() {
            let _ = stream.write_all(b"abort\n");
            // Until it has ended the process.
            let _ = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.read(&mut [0; 64]));
        }
    };
    if let Some(value) = record.get("failed") {
        give_up();
        let text = match record.failed() {
            Some((tool, code)) => format!("{tool} failed with status {code}, so the container was given up"),
            None => format!("a stage failed ({value}), so the container was given up"),
        };
        return Err(Failure::own(text));
    }
    let stat = std::fs::read(format!("/proc/{}/stat", record.pid())).unwrap_or_default();
    if start_time(&stat) != Some(record.start()) {
        give_up();
        return Err(Failure::own(format!("the held process {} of the handoff record has ended", record.pid())));
    }
    // Before the container exists: no signal may be lost.
    let signals = Signals::block()?;
    let stream = connect()?;
    let input = standard_input()?;
    console::remember_terminal(&input);
    let fds = [input.as_raw_fd(), 1, 2];
    sys::send_message(stream.as_raw_fd(), b"go\n", &fds)
        .map_err(|errno| Failure::own(format!("cannot reach the holder at {control}: {}", words(errno))))?;
    let result = follow(stream, &signals);
    console::restore_terminal();
    if result.is_err() {
        hold::clear_up(std::path::Path::new(control));
        // A holder that was killed could not do this.
        let _ = record.get("name").map(state::find);
    }
    result
}

/// Standard input, one byte per read: what follows the record is left for the command.
struct Unbuffered;

impl std::io::Read for Unbuffered {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        Ok(sys::read(0, buffer)?)
    }
}

/// The terminal when output goes to one, for standard input is the pipe of the record; else that pipe.
fn standard_input() -> Outcome<OwnedFd> {
    let interactive = [1, 2].iter().any(|fd| {
        let terminal =
            if *fd == 1 { nix::unistd::isatty(std::io::stdout()) } else { nix::unistd::isatty(std::io::stderr()) };
        terminal.unwrap_or(false)
    });
    let open = |path| std::fs::OpenOptions::new().read(true).write(true).open(path).map(OwnedFd::from);
    let own = || std::io::stdin().as_fd().try_clone_to_owned();
    let chosen = if interactive { open("/dev/tty").or_else(|_| own()) } else { own() };
    chosen.or_else(|_| open("/dev/null")).map_err(|error| Failure::own(format!("cannot open /dev/null: {error}")))
}

/// Passes signals on and waits for the exit status.
fn follow(stream: UnixStream, signals: &Signals) -> Outcome<u8> {
    let gone = || Failure::own("the holder has died, and the container with it");
    let mut writer = stream.try_clone().map_err(|_| gone())?;
    let mut reader = BufReader::new(stream);
    let mut failure = None;
    loop {
        let mut fds =
            [PollFd::new(reader.get_ref().as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(Failure::own(format!("cannot wait for the container: {}", words(errno)))),
            Ok(_) => {}
        }
        let [answer, signal] = fds.map(|fd| fd.any().unwrap_or(false));
        if signal {
            while let Some(signal) = signals.next() {
                let _ = writeln!(writer, "signal {signal}");
            }
        }
        if !answer {
            continue;
        }
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(0) | Err(_) => return Err(failure.unwrap_or_else(gone)),
                Ok(_) => {}
            }
            match line.trim_end().split_once(' ') {
                Some(("failed", text)) => failure = Some(Failure::own(text)),
                Some(("exited", code)) => {
                    let code = code.parse().unwrap_or(OWN_FAILURE);
                    return failure.map_or(Ok(code), |failure| Err(Failure { code, ..failure }));
                }
                _ => {}
            }
            if reader.buffer().is_empty() {
                break;
            }
        }
    }
}
