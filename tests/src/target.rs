//! Processes whose maps the helpers are asked to write.

use std::fs;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::sys;
use crate::world::{Kind, User, read_map};

/// A process that waits until it is dropped.
#[derive(Debug)]
pub struct Target {
    pid: Pid,
    orders: OwnedFd,
}

impl Target {
    /// A process of `user` in a new user namespace of its own.
    #[must_use]
    pub fn new(user: User) -> Self {
        Self::with(|| {
            user.become_user();
            unshare(CloneFlags::CLONE_NEWUSER).expect("unshare(CLONE_NEWUSER)");
        })
    }

    /// A process of `user` with another gid and supplementary groups, in a new user namespace.
    #[must_use]
    pub fn with_gid(user: User, gid: u32, groups: &[u32]) -> Self {
        Self::with(|| {
            user.become_with_gid(gid, groups);
            unshare(CloneFlags::CLONE_NEWUSER).expect("unshare(CLONE_NEWUSER)");
        })
    }

    /// A process of `user` in the initial user namespace.
    #[must_use]
    pub fn without_user_namespace(user: User) -> Self {
        Self::with(|| user.become_user())
    }

    /// A process that runs `prepare` as root first, and is there when this function returns.
    ///
    /// # Panics
    /// When it cannot be started or `prepare` fails.
    #[must_use]
    pub fn with(prepare: impl FnOnce()) -> Self {
        Self::obeying(prepare, || {})
    }

    /// As [`Target::with`]; it runs `order` each time that [`Target::order`] is called.
    ///
    /// # Panics
    /// When it cannot be started or `prepare` fails.
    #[must_use]
    pub fn obeying(prepare: impl FnOnce(), order: impl Fn()) -> Self {
        let (orders_read, orders_write) = sys::pipe().expect("pipe");
        let (read, write) = sys::pipe().expect("pipe");
        let orders = orders_write.try_clone().expect("dup");
        let pid = sys::fork(move || {
            // The parent's end; the process ends by a signal, not by the end of its orders.
            let _kept = orders_write;
            prepare();
            let _ = nix::unistd::write(&write, b"r");
            drop(write);
            while let Ok(1) = nix::unistd::read(&orders_read, &mut [0]) {
                order();
            }
            0
        })
        .expect("fork");
        let mut byte = [0];
        assert_eq!(nix::unistd::read(&read, &mut byte), Ok(1), "the target could not be prepared");
        Self { pid, orders }
    }

    /// Tells it to run its order; does not wait.
    ///
    /// # Panics
    /// When it cannot be told.
    pub fn order(&self) {
        nix::unistd::write(&self.orders, b"o").expect("order");
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its map.
    #[must_use]
    pub fn map(&self, kind: Kind) -> Vec<[u64; 3]> {
        read_map(self.pid, kind.map())
    }

    /// `allow` or `deny`.
    ///
    /// # Panics
    /// When it is gone.
    #[must_use]
    pub fn setgroups(&self) -> String {
        let path = format!("/proc/{}/setgroups", self.pid);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
    }

    /// Nothing has been written: both maps are empty and setgroups is allowed.
    #[track_caller]
    pub fn assert_untouched(&self, why: &str) {
        for kind in Kind::BOTH {
            assert_eq!(self.map(kind), Vec::<[u64; 3]>::new(), "{} was written: {why}", kind.map());
        }
        assert_eq!(self.setgroups(), "allow", "setgroups was written: {why}");
    }

    /// Ends it and waits for its end, so that its pid is free.
    pub fn end(self) {
        drop(self);
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = sys::wait(self.pid, 0);
    }
}
