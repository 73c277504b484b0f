//! The supervisor of a container in the background: all that it does while the container runs.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Life, detach, server};
use crate::failure::OWN_FAILURE;
use crate::hooks::Target;
use crate::supervise::{Signals, exit_code, halt_signal, is_default};
use crate::sys;

/// Bytes of the console that are read at once.
const CHUNK: usize = 4096;

/// Watches until the container behind `pidfd`, a child of this process, has ended for good: the exit status.
pub fn watch(mut life: Life, pidfd: &OwnedFd) -> u8 {
    let Ok(signals) = Signals::block() else { return OWN_FAILURE };
    loop {
        let mut sources: Vec<server::End> = Vec::new();
        let Some(console) = life.console() else { return OWN_FAILURE };
        let mut fds = vec![
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(console, PollFlags::POLLIN),
        ];
        for (end, fd, events) in life.interests() {
            sources.push(end);
            fds.push(PollFd::new(fd, events));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(_) => return OWN_FAILURE,
            Ok(_) => {}
        }
        let events: Vec<PollFlags> = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        drop(fds);
        let [signal, ended, output, clients @ ..] = &events[..] else { return OWN_FAILURE };
        if !output.is_empty() {
            life.read_console(1);
        }
        for (end, events) in sources.into_iter().zip(clients).filter(|(_, events)| !events.is_empty()) {
            life.serve(end, *events, pidfd.as_fd());
        }
        life.sweep();
        if !signal.is_empty() {
            while let Some(signal) = signals.next() {
                life.pass_on(signal, pidfd);
            }
        }
        if !ended.is_empty() {
            let Ok((code, signal)) = sys::wait_child(pidfd.as_fd()) else { return OWN_FAILURE };
            // What was written last; no more than a pty holds, whoever still writes.
            life.read_console(64);
            // A container whose end has not been tidied up is not started again, as in LXC.
            if life.goes_on(signal == libc::SIGHUP) && life.run_hooks(Target::Reboot) {
                detach::start_again(&life);
                return OWN_FAILURE;
            }
            life.run_hooks(Target::Stop);
            let code = exit_code(life.is_init(), code, signal);
            life.ended(code, pidfd.as_fd());
            return code;
        }
    }
}

impl Life {
    fn console(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.background.as_ref()?.ends.as_ref().map(|[master, _]| master.as_fd())
    }

    fn is_init(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.init)
    }

    /// At most `times` a chunk of what has been written to the console.
    fn read_console(&mut self, times: usize) {
        let Some(background) = &mut self.background else { return };
        let Some([master, _]) = &background.ends else { return };
        let mut bytes = [0_u8; CHUNK];
        for _ in 0..times {
            match sys::read(master.as_raw_fd(), &mut bytes) {
                Ok(length @ 1..) => background.ring.write(bytes.get(..length).unwrap_or_default()),
                _ => return,
            }
        }
    }

    /// A signal to this process means what it means to a `spawn run` in the foreground.
    fn pass_on(&mut self, signal: i32, pidfd: &OwnedFd) {
        let Some(record) = &self.record else { return };
        if signal == libc::SIGWINCH {
            return;
        }
        let sent = match (record.init, signal) {
            (true, libc::SIGTERM) => halt_signal(record.pid, record.halt),
            (false, _) if is_default(record.pid, signal) => libc::SIGKILL,
            _ => signal,
        };
        if signal == libc::SIGTERM || sent == libc::SIGKILL {
            self.stops();
        }
        let _ = sys::signal_process(pidfd.as_fd(), sent);
    }
}
