//! The process that `attach` moves: known by its directory in /proc, which stays that process's for ever, looked at with
//! the caller's rights alone, and held by ptrace(2) while it is moved, so that its number stays its own.

#![forbid(unsafe_code)]

use helper::caller::Caller;
use helper::handoff::start_time;
use helper::handover;
use helper::report::Failure;
use helper::sys;
use helper::target::{Target, TargetError, TargetName};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::ptrace;
use nix::sys::stat::{Mode, fstat, stat};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

/// Longest wait for the threads of a process to stop.
const STOPPING: Duration = Duration::from_secs(2);

/// After so much more time the program ends where it is: then the kernel has not come back from a seizure.
const BEYOND: Duration = Duration::from_millis(500);

const TRY_AGAIN: u8 = 75;
const NOT_PERMITTED: u8 = 77;
const UNAVAILABLE: u8 = 69;
const SYSTEM: u8 = 71;
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

    /// Takes hold of the process: every thread of it is traced by this program, and stopped.
    ///
    /// The kernel lets nobody but its tracer reap a traced process (wait_consider_task() and exit_notify() of
    /// kernel/exit.c), so it keeps its number until this program lets go or ends. But for one way: a thread that executes a
    /// program takes the number of the first thread over, whose trace ends then (de_thread() of fs/exec.c). So all
    /// threads have to be stopped, and nobody can start a stopped tracee but its tracer.
    ///
    /// This program must be the caller here, and no capability effective: the kernel decides whether he may trace the
    /// process. It compares the process's capabilities with those that are permitted here, though; with the effective ones
    /// it does when the namespace is opened, which so is part of it. SIGCHLD must not be ignored, nor any child of this program
    /// waited for meanwhile.
    ///
    /// A seizure that the kernel does not come back from ends this program with status 75, as if it were killed here.
    ///
    /// # Errors
    /// 77: the kernel does not let the caller trace it, or it is not his. 75: it does not stop. 65: it has ended.
    pub fn hold(&self, caller: &Caller) -> Result<Held, Failure> {
        let words = format!(
            "cgdelegate: process {} cannot be held while it moves: it has begun to execute a program and does not come to an end with that within {} s (is the program's file system slow?); try again\n",
            self.pid,
            STOPPING.as_secs()
        );
        let limit = STOPPING.saturating_add(BEYOND);
        let watch = handover::sys::watch_tracees(self.pid, limit, words, TRY_AGAIN);
        let watch = watch.map_err(|e| Failure::new(format!("setitimer: {}", e.desc())).status(SYSTEM))?;
        let held = self.hold_all(caller);
        drop(watch);
        held
    }

    fn hold_all(&self, caller: &Caller) -> Result<Held, Failure> {
        let end = Instant::now().checked_add(STOPPING);
        let mut held = Held { pid: self.pid, threads: BTreeSet::new() };
        self.seize_first(&mut held)?;
        let mut refused = None;
        while !self.is_stopped_whole(&held)? {
            if end.is_none_or(|end| Instant::now() >= end) {
                if self.read_status()?.1 {
                    return Err(first_has_ended(self.pid));
                }
                return Err(refused.map_or_else(
                    || {
                        Failure::new(format!(
                            "process {} does not stop within {} s, so it cannot be held while it moves: it is frozen, waits for a device or for a vfork(2), or starts threads too fast; try again",
                            self.pid,
                            STOPPING.as_secs()
                        ))
                        .status(TRY_AGAIN)
                    },
                    |error| self.cannot_trace(error),
                ));
            }
            // What executes a program has a lock that a seizure waits for, and itself waits for the threads that are held
            // already to be taken note of: below.
            let taken_over = self.read_status()?.1;
            if !taken_over && !self.is_traced()? {
                // Another thread has executed a program.
                held.threads.remove(&self.pid);
                self.seize_first(&mut held)?;
            }
            let listed = self.threads()?;
            refused = None;
            for tid in listed.difference(&held.threads.clone()).copied().filter(|_| !taken_over) {
                // ESRCH, or EPERM too: it may have ended meanwhile.
                refused = held.seize(tid).err().filter(|error| *error != Errno::ESRCH).or(refused);
            }
            let own = own_number();
            for tid in held.threads.clone().into_iter().filter(|tid| *tid != self.pid) {
                match self.directory.read_file(&format!("task/{tid}/status"), 1 << 14) {
                    // The clock has taken note of it, and another thread has its number now.
                    Some(status) if field(&status, "TracerPid:") != Some(own.as_str()) => {
                        held.threads.remove(&tid);
                    }
                    // The process keeps a thread that has ended until its tracer has taken note. Never the first: with it
                    // the number would go.
                    Some(status) if field(&status, "State:").is_some_and(|state| matches!(state, "Z" | "X")) => {
                        let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
                        let _ = waitid(Id::Pid(Pid::from_raw(tid)), ended);
                        held.threads.remove(&tid);
                    }
                    // It has executed a program and is the first thread now.
                    None if !listed.contains(&tid) => {
                        held.threads.remove(&tid);
                    }
                    _ => {}
                }
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        // Nothing of it can change any more.
        self.check_ids(caller)?;
        self.check_namespace(caller)?;
        self.check_alive()?;
        Ok(held)
    }

    /// Whether all threads of the process are held and stopped. In this order: threads that are stopped before and after
    /// their number was read were so then, and if they are as many, there is no other.
    fn is_stopped_whole(&self, held: &Held) -> Result<bool, Failure> {
        // Not waited for here: what executes a program waits for those threads in turn that are held.
        let stopped = held.is_stopped();
        let (status, first_ended) = self.read_status()?;
        if first_ended || !stopped {
            return Ok(false);
        }
        let threads = field(&status, "Threads:").and_then(|count| count.parse().ok());
        Ok(threads == Some(held.threads.len()) && held.is_stopped())
    }

    /// /proc/PID/status of a process that has not ended, and whether its first thread has.
    ///
    /// A thread that executes a program ends all others first and then takes the number of the first one over: until then
    /// that one looks like a process that has ended, but for the count of threads (de_thread() of fs/exec.c).
    fn read_status(&self) -> Result<(String, bool), Failure> {
        let status = self.directory.read_file("status", 1 << 14).ok_or_else(|| gone(self.pid))?;
        let first_ended = field(&status, "State:").is_some_and(|state| state == "Z" || state == "X");
        if first_ended && field(&status, "Threads:").is_none_or(|count| matches!(count, "0" | "1")) {
            return Err(gone(self.pid));
        }
        Ok((status, first_ended))
    }

    /// /proc/PID/status of a process whose first thread runs; one that is being taken over is waited for. A process whose
    /// first thread has left for good cannot be held.
    fn check_running(&self) -> Result<String, Failure> {
        const TRIES: u32 = 50;
        for _ in 0..TRIES {
            match self.read_status()? {
                (status, false) => return Ok(status),
                (_, true) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        Err(first_has_ended(self.pid))
    }

    /// Takes hold of the first thread, and sees that it is that of the directory: so the number is the one that /proc calls
    /// the process by, and neither that of another pid namespace nor another process's by now.
    fn seize_first(&self, held: &mut Held) -> Result<(), Failure> {
        const TRIES: u32 = 5;
        for tries in 1..=TRIES {
            self.check_running()?;
            match held.seize(self.pid) {
                Ok(()) if self.is_traced()? => return Ok(()),
                // Another thread takes its place at this moment; or the number is not this process's.
                Ok(()) => {}
                // Also for that.
                Err(Errno::EPERM) if tries < TRIES => {}
                Err(error) => return Err(self.cannot_trace(error)),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(gone(self.pid))
    }

    /// Whether this program traces the process of the directory.
    fn is_traced(&self) -> Result<bool, Failure> {
        Ok(field(&self.read_status()?.0, "TracerPid:") == Some(own_number().as_str()))
    }

    fn threads(&self) -> Result<BTreeSet<i32>, Failure> {
        let failed = |error: Errno| match error {
            Errno::ENOENT | Errno::ESRCH => gone(self.pid),
            other => Failure::new(format!("read /proc/{}/task: {}", self.pid, other.desc())).status(SYSTEM),
        };
        let opened = self.directory.open_file("task", OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(failed)?;
        let mut listed = Dir::from_fd(opened.into()).map_err(failed)?;
        let names = listed.iter().map(|entry| Ok(entry?.file_name().to_str().ok().and_then(|name| name.parse().ok())));
        names.filter_map(Result::transpose).collect::<Result<_, Errno>>().map_err(failed)
    }

    /// Why the kernel does not let the caller trace the process: cause and cure in words.
    fn cannot_trace(&self, error: Errno) -> Failure {
        if error == Errno::ESRCH {
            return gone(self.pid);
        }
        let status = match self.read_status() {
            Ok((status, false)) => status,
            Ok((_, true)) => return first_has_ended(self.pid),
            Err(gone) => return gone,
        };
        if let Some(tracer) = field(&status, "TracerPid:").filter(|tracer| *tracer != "0") {
            return refused(
                self.pid,
                &format!(
                    "process {tracer} traces it already, and it is held by ptrace(2) while it moves: end that first"
                ),
            );
        }
        let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
        let scope = scope.trim();
        if !matches!(scope, "" | "0") && (scope == "3" || self.shares_our_user_namespace()) {
            let other = if scope == "3" { "" } else { ", or give it a user namespace of its own" };
            return refused(
                self.pid,
                &format!(
                    "kernel.yama.ptrace_scope is {scope}, and it is held by ptrace(2) while it moves: start it with cgdelegate run NAME -- COMMAND{other}"
                ),
            );
        }
        refused(
            self.pid,
            &format!(
                "ptrace: {}: its program is setuid or unreadable, it has capabilities that you lack, it set PR_SET_DUMPABLE to 0, or a security module or seccomp forbids it: start it with cgdelegate run NAME -- COMMAND",
                error.desc()
            ),
        )
    }

    fn check_ids(&self, caller: &Caller) -> Result<(), Failure> {
        let status = self.check_running()?;
        // /proc/TID exists as well, but a move by that number moves the whole process, whose other threads may be another
        // user's.
        let leader = field(&status, "Tgid:").unwrap_or_default();
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

/// A process that is held, see [`Process::hold`]. Dropping lets it go on; so does the end of this program, however it comes.
#[derive(Debug)]
pub struct Held {
    pid: i32,
    threads: BTreeSet<i32>,
}

impl Held {
    fn seize(&mut self, tid: i32) -> Result<(), Errno> {
        let thread = Pid::from_raw(tid);
        ptrace::seize(thread, ptrace::Options::empty())?;
        self.threads.insert(tid);
        match ptrace::interrupt(thread) {
            Ok(()) => Ok(()),
            // It has ended, and what comes then finds that out; or it has executed a program meanwhile, and the number of the
            // first thread is its own now.
            Err(Errno::ESRCH) => {
                let _ = ptrace::interrupt(Pid::from_raw(self.pid));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// PTRACE_GETEVENTMSG, as most requests, is for tracees that are stopped. No wait(2): it would take the signal away
    /// that a thread has stopped to get.
    ///
    /// Nobody but its tracer and SIGKILL starts a stopped tracee: of what is held no thread is stopped any more when it has
    /// been killed.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.threads.iter().all(|tid| ptrace::getevent(Pid::from_raw(*tid)).is_ok())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The first thread last: until then the number is pinned.
        for tid in self.threads.iter().filter(|tid| **tid != self.pid).chain([&self.pid]) {
            let _ = handover::sys::release_tracee(*tid);
        }
    }
}

/// The first word of a field of /proc/PID/status.
fn field<'t>(status: &'t str, name: &str) -> Option<&'t str> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()
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

/// The number of this program in /proc; empty where /proc does not know it.
fn own_number() -> String {
    let own = std::fs::read_link("/proc/self").unwrap_or_default();
    own.to_str().unwrap_or_default().to_owned()
}

fn first_has_ended(pid: i32) -> Failure {
    Failure::new(format!(
        "the first thread of process {pid} has ended while others live, and without it the process cannot be held while it moves: start it with cgdelegate run NAME -- COMMAND"
    ))
    .status(GONE)
}

/// What is said of a process that has ended.
pub(crate) fn gone(pid: i32) -> Failure {
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
