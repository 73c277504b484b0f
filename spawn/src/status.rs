//! `--info-fd` and `--hold-fd`: the states of a start for another program, and its word to go on.

#![forbid(unsafe_code)]

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use serde::Serialize;

use crate::child::Child;
use crate::failure::{Failure, Outcome, words};
use crate::supervise::{Signals, time_left};
use crate::sys;

/// One line on the descriptor of `--info-fd`, as a JSON object with the key `state`.
#[derive(Debug, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum State<'a> {
    /// The child exists and waits.
    Created {
        /// Its pid here.
        pid: i32,
        /// Its start time in clock ticks after boot.
        start: u64,
        /// The container's name.
        name: &'a str,
    },
    /// Its id maps are written.
    Mapped,
    /// Its network namespace is there: /proc/PID/ns/net is its own.
    Network {
        /// The cards of `--net` in it, each as NAME:INDEX:HOST_NAME:HOST_INDEX; they are set up later.
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        nics: &'a [String],
        /// The lines of its /proc/PID/cgroup that name the cgroup of --cgroup.
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        cgroup: &'a [String],
    },
    /// The command has been executed.
    Running,
    /// The command has ended.
    Exited {
        /// The exit status of `spawn`.
        code: u8,
    },
    /// The start has failed.
    Failed {
        /// The exit status of `spawn`.
        code: u8,
        /// What `spawn` says on standard error.
        error: &'a str,
    },
}

/// The descriptor of `--info-fd`, if there is one.
#[derive(Debug, Default)]
pub struct Status(Option<std::fs::File>);

impl Status {
    /// Takes a copy of a descriptor of this process.
    ///
    /// # Errors
    /// When it is not open.
    pub fn open(fd: Option<i32>) -> Outcome<Self> {
        Ok(Self(named("--info-fd", fd)?.map(std::fs::File::from)))
    }

    /// Whether anybody is told.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Writes one line. A reader that is gone is no reason to stop a container.
    pub fn tell(&mut self, state: &State<'_>) {
        if let Some(file) = &mut self.0
            && let Ok(mut line) = serde_json::to_string(state)
        {
            line.push('\n');
            let _ = file.write_all(line.as_bytes());
        }
    }
}

/// A descriptor named on the command line.
///
/// # Errors
/// When it is below 3 or not open.
pub fn named(option: &str, fd: Option<i32>) -> Outcome<Option<OwnedFd>> {
    let Some(fd) = fd else { return Ok(None) };
    let taken = if fd < 3 { Err(Errno::EINVAL) } else { sys::take(fd) };
    taken.map(Some).map_err(|errno| {
        Failure::own(format!(
            "{option} {fd}: {}",
            match errno {
                Errno::EINVAL => "must be 3 or more, 0 to 2 are the command's".to_owned(),
                Errno::EBADF => "is not open".to_owned(),
                other => words(other),
            }
        ))
    })
}

/// Waits for one byte on `hold`. End of file, a signal to end, the end of the child and the time limit all mean that
/// the start is given up.
///
/// # Errors
/// When it is.
pub fn wait_for_byte(hold: &OwnedFd, child: &Child, signals: &Signals, deadline: Instant) -> Outcome<()> {
    loop {
        let mut fds = [
            PollFd::new(hold.as_fd(), PollFlags::POLLIN),
            PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, time_left(Some(deadline))) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(Failure::own(format!("cannot wait on --hold-fd: {}", words(errno)))),
            Ok(0) => return Err(Failure::own("no byte came on --hold-fd in time, so the container was given up")),
            Ok(_) => {}
        }
        let [byte, ended, signal] = fds.map(|fd| fd.any().unwrap_or(false));
        if ended {
            return Err(Failure::own("the held process has ended"));
        }
        if signal {
            while let Some(signal) = signals.next() {
                if signal != libc::SIGWINCH {
                    let code = u8::try_from(signal).unwrap_or(0).saturating_add(128);
                    return Err(Failure { code, text: format!("given up because of signal {signal}") });
                }
            }
        }
        if byte {
            return match sys::read(hold.as_raw_fd(), &mut [0]) {
                Ok(1) => Ok(()),
                Err(Errno::EAGAIN) => continue,
                _ => Err(Failure::own("--hold-fd was closed without a byte, so the container was given up")),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_one_json_object() {
        let line = |state: &State<'_>| serde_json::to_string(state).unwrap();
        assert_eq!(line(&State::Mapped), r#"{"state":"mapped"}"#);
        assert_eq!(
            line(&State::Created { pid: 7, start: 8, name: "x" }),
            r#"{"state":"created","pid":7,"start":8,"name":"x"}"#
        );
        assert_eq!(
            line(&State::Failed { code: 125, error: "a \"b\"" }),
            r#"{"state":"failed","code":125,"error":"a \"b\""}"#
        );
    }

    #[test]
    fn the_standard_descriptors_cannot_be_named() {
        assert!(named("--info-fd", Some(2)).is_err());
        assert!(named("--info-fd", Some(9999)).is_err());
        assert!(named("--info-fd", None).unwrap().is_none());
    }
}
