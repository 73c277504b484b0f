//! The process that `attach` moves: held by its directory in /proc, which stays that process's for ever, and looked at
//! with the caller's rights alone.

#![forbid(unsafe_code)]

use helper::caller::Caller;
use helper::handoff::start_time;
use helper::report::Failure;
use helper::sys;
use helper::target::{Target, TargetError, TargetName};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat, stat};
use std::os::fd::AsFd as _;

const NOT_PERMITTED: u8 = 77;
const UNAVAILABLE: u8 = 69;
const GONE: u8 = 65;

/// A process of the caller's.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    start: u64,
    directory: Target,
}

impl Process {
    /// Opens a process and sees that it is the caller's in every respect: real, effective and saved uid are his; it is
    /// dumpable; its user namespace is the caller's own or one that he made. With `start` its start time has to be that.
    ///
    /// # Errors
    /// 77: it is not his. 65: there is none, or it is another one by now. In words.
    pub fn open(pid: i32, start: Option<u64>, caller: &Caller) -> Result<Self, Failure> {
        let directory = Target::open(TargetName::Pid(pid)).map_err(|error| match error {
            TargetError::NotAProcess(why) | TargetError::Failed(why) => Failure::new(why).status(GONE),
        })?;
        let its_start = read_start(&directory).ok_or_else(|| gone(pid))?;
        if start.is_some_and(|start| start != its_start) {
            return Err(Failure::new(format!(
                "process {pid} is not the one of the record, which has ended: it started at {its_start}, not {}",
                start.unwrap_or(0)
            ))
            .status(NOT_PERMITTED));
        }
        let process = Self { pid, start: its_start, directory };
        process.check_ids(caller)?;
        process.check_namespace(caller)?;
        // Last: everything above was read of this process, not of a later one with its number.
        process.check_alive()?;
        Ok(process)
    }

    /// Its number.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// Its cgroups, as /proc/PID/cgroup has them.
    ///
    /// # Errors
    /// It is gone.
    pub fn cgroups(&self) -> Result<String, Failure> {
        self.directory.read_file("cgroup", 1 << 16).ok_or_else(|| gone(self.pid))
    }

    /// The gid that its user namespace calls 0, as this program sees it.
    ///
    /// # Errors
    /// It is gone.
    pub fn root_gid(&self) -> Result<Option<u32>, Failure> {
        let map = self.directory.read_file("gid_map", 1 << 16).ok_or_else(|| gone(self.pid))?;
        Ok(root_of(&map))
    }

    /// The uid that its user namespace calls 0, as this program sees it.
    ///
    /// # Errors
    /// It is gone.
    pub fn root_uid(&self) -> Result<Option<u32>, Failure> {
        let map = self.directory.read_file("uid_map", 1 << 16).ok_or_else(|| gone(self.pid))?;
        Ok(root_of(&map))
    }

    /// Whether it lives in the user namespace of this program.
    #[must_use]
    pub fn shares_our_user_namespace(&self) -> bool {
        self.directory.shares_our_user_namespace() == Some(true)
    }

    /// After the move: it still is that process, unreaped, and its ids still are the caller's. So its number was its own
    /// when it was moved.
    ///
    /// # Errors
    /// It is gone, or has become another's.
    pub fn check_again(&self, caller: &Caller) -> Result<(), Failure> {
        self.check_ids(caller)?;
        self.check_alive()
    }

    /// Whether the number still is this process's.
    ///
    /// # Errors
    /// It is gone.
    pub fn check_alive(&self) -> Result<(), Failure> {
        if read_start(&self.directory) == Some(self.start) { Ok(()) } else { Err(gone(self.pid)) }
    }

    fn check_ids(&self, caller: &Caller) -> Result<(), Failure> {
        let status = self.directory.read_file("status", 1 << 14).ok_or_else(|| gone(self.pid))?;
        // /proc/TID exists as well, but a move by that number moves the whole process, whose other threads may be another
        // user's.
        let leader = status.lines().find_map(|line| line.strip_prefix("Tgid:")).unwrap_or_default().trim();
        if leader != self.pid.to_string() {
            return Err(refused(
                self.pid,
                &format!("it is a thread of process {leader}, and a process moves as a whole"),
            ));
        }
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
        let mut uids = uids.split_ascii_whitespace().take(3).map(str::parse::<u32>);
        let all_his = uids.clone().count() == 3 && uids.all(|uid| uid == Ok(caller.uid));
        if !all_his {
            return Err(refused(self.pid, &format!("its real, effective and saved uid are not all {}", caller.uid)));
        }
        if status.lines().any(|line| line.starts_with("State:") && line.contains('Z')) {
            return Err(gone(self.pid));
        }
        Ok(())
    }

    fn check_namespace(&self, caller: &Caller) -> Result<(), Failure> {
        // With the caller's rights this fails for a process that is not dumpable or that he could not trace.
        let path = format!("/proc/{}/ns/user", self.pid);
        let namespace = open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(|error| {
            refused(self.pid, &format!("{path}: {}: its program is setuid or unreadable, it has capabilities that you lack, or it set PR_SET_DUMPABLE to 0", error.desc()))
        })?;
        let (its, ours) = (fstat(&namespace), stat("/proc/self/ns/user"));
        if let (Ok(its), Ok(ours)) = (its, ours)
            && its.st_ino == ours.st_ino
            && its.st_dev == ours.st_dev
        {
            return Ok(());
        }
        match sys::namespace_owner(namespace.as_fd()) {
            Ok(owner) if owner == caller.uid => Ok(()),
            Ok(owner) => Err(refused(self.pid, &format!("uid {owner} made its user namespace"))),
            Err(error) => Err(Failure::new(format!(
                "who made the user namespace of process {}: {}: Linux 4.11 or newer is needed",
                self.pid,
                error.desc()
            ))
            .status(UNAVAILABLE)),
        }
    }
}

fn read_start(directory: &Target) -> Option<u64> {
    start_time(directory.read_file("stat", 4096)?.as_bytes())
}

/// The outside id of 0 in an id map.
fn root_of(map: &str) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (inside, outside) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        (inside == 0).then_some(outside)
    })
}

fn gone(pid: i32) -> Failure {
    Failure::new(format!("process {pid} has ended")).status(GONE)
}

fn refused(pid: i32, why: &str) -> Failure {
    Failure::new(format!("process {pid} is not yours to move: {why}")).status(NOT_PERMITTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_a_map_is_found() {
        assert_eq!(root_of("         0     100000      65536\n"), Some(100_000));
        assert_eq!(root_of("1000 1000 1\n0 5 1\n"), Some(5));
        assert_eq!(root_of("1 5 1\n"), None);
        assert_eq!(root_of("0 4294967295 1\nx"), Some(u32::MAX));
        assert_eq!(root_of(""), None);
    }
}
