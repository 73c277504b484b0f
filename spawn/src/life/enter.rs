//! `spawn exec`: a command in a container that runs.
//!
//! This process joins every namespace of process 1 and then clones the command, which the pid namespace takes in. From
//! before the first of them until the exec neither is dumpable: nobody inside may trace it, or look at its descriptors,
//! its directory or its file (CVE-2016-9962, CVE-2019-5736); CAP_SYS_PTRACE of the container is none over a program that
//! was executed outside. Every descriptor but the three standard ones is closed at the exec at the latest.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::cli::Exec;
use super::membership::Membership;
use super::{live, sys as life_sys};
use crate::child::Child;
use crate::console::Stdio;
use crate::failure::{Failure, Outcome, words};
use crate::plan::{self, Plan};
use crate::report::{self, Step, Try, at};
use crate::state::{Phase, Record};
use crate::supervise::{Signals, Supervisor, Turn, ignored_signals};
use crate::{setup, sys};

/// Every namespace of a container.
const NAMESPACES: [(&str, i32); 7] = [
    ("user", libc::CLONE_NEWUSER),
    ("mnt", libc::CLONE_NEWNS),
    ("uts", libc::CLONE_NEWUTS),
    ("ipc", libc::CLONE_NEWIPC),
    ("net", libc::CLONE_NEWNET),
    ("pid", libc::CLONE_NEWPID),
    ("cgroup", libc::CLONE_NEWCGROUP),
];

/// How long the command may take until its exec.
const START: Duration = Duration::from_secs(10);

/// The highest number of a capability that is tried: the kernel's set has 64 bits.
const CAPABILITIES: u32 = 63;

/// f_type of devpts (statfs(2)).
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// What process 1 is confined to, and the command with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Confinement {
    bounding: u64,
    no_new_privs: bool,
}

/// Runs a command in the container: its exit status.
///
/// # Errors
/// When the container does not run, cannot be entered, or the command cannot be executed.
pub fn exec(options: &Exec) -> Outcome<u8> {
    let record = live(&options.name).map_err(|failure| Failure::own(failure.text))?;
    if record.state == Phase::Starting {
        return Err(Failure::own(format!(
            "{0} has not started yet, and there is nothing to enter: `spawn wait --state running {0}` waits for it",
            record.name
        )));
    }
    let plan = plan(options, &record)?;
    let mut stdio =
        Stdio::own().map_err(|error| Failure::own(format!("cannot copy a standard descriptor: {error}")))?;
    let with_terminal = options.tty || stdio.terminals.iter().any(|terminal| *terminal);
    if options.tty {
        stdio.terminals = [true; 3];
    }
    let signals = Signals::block()?;
    let gone = || Failure::own(format!("{} has ended just now", record.name));
    let pidfd = record.process().ok_or_else(gone)?;
    let confinement = confinement(record.pid).ok_or_else(gone)?;
    life_sys::forbid_tracing().map_err(|errno| Failure::own(format!("cannot guard this process: {}", words(errno))))?;
    let membership = Membership::look(&record);
    join(&record, &pidfd, membership.is_none())?;
    let child = start(&plan, confinement, membership, with_terminal)?;
    // The command is no process 1: a signal that it does not handle is the kernel's business.
    match Supervisor::release(child, &plan, stdio, signals, Instant::now() + START, None)?.into_guest().watch(|| ())? {
        Turn::Ended(code) => Ok(code),
        _ => Err(Failure::own("the command was not watched to its end")),
    }
}

/// What is shared with `run` is made from its command line: environment, confinement, id map.
fn plan(options: &Exec, record: &Record) -> Outcome<Plan> {
    let mut of_run = record.origin.options()?;
    of_run.name = Some(record.name.clone());
    of_run.net.clear();
    of_run.env.clone_from(&options.env);
    of_run.user.clone_from(&options.user);
    of_run.workdir = Some(options.workdir.clone());
    of_run.command.clone_from(&options.command);
    if of_run.command.is_empty() {
        of_run.command = vec!["/bin/sh".into(), "-l".into()];
    }
    let mut plan = of_run.plan(false)?;
    // However it is called: here it is not process 1.
    plan.init = false;
    plan.held = false;
    Ok(plan)
}

/// From /proc/PID/status (proc_pid_status(5)).
fn confinement(pid: i32) -> Option<Confinement> {
    parse_confinement(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse_confinement(status: &str) -> Option<Confinement> {
    let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    Some(Confinement {
        bounding: u64::from_str_radix(field("CapBnd:")?, 16).ok()?,
        no_new_privs: field("NoNewPrivs:") == Some("1"),
    })
}

/// Joins the namespaces by the pidfd at once, or on kernels before 5.8 one by one. Without `cgroup`, that of cgroups is
/// left for [`Membership`].
fn join(record: &Record, pidfd: &OwnedFd, cgroup: bool) -> Outcome<()> {
    let fail = |what: &str, errno| {
        Failure::own(format!("cannot enter {}: cannot join its {what}: {}", record.name, words(errno)))
    };
    let wanted = NAMESPACES.into_iter().filter(|(_, flag)| cgroup || *flag != libc::CLONE_NEWCGROUP);
    let all = wanted.clone().fold(0, |flags, (_, flag)| flags | flag);
    match life_sys::join(pidfd.as_fd(), all) {
        Ok(()) => return Ok(()),
        Err(Errno::EINVAL) => {}
        Err(errno) => return Err(fail("namespaces", errno)),
    }
    // All are opened before the first is joined, which takes /proc away.
    let mut opened = Vec::with_capacity(NAMESPACES.len());
    for (name, flag) in wanted {
        let path = format!("/proc/{}/ns/{name}", record.pid);
        let file = std::fs::File::open(&path).map_err(|error| Failure::own(format!("cannot open {path}: {error}")))?;
        opened.push((name, flag, OwnedFd::from(file)));
    }
    // The number may have become another process's in between; as long as ours lives, it has not.
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, 0_u16) != Ok(0) {
        return Err(Failure::own(format!("{} has ended just now", record.name)));
    }
    for (name, flag, fd) in &opened {
        life_sys::join(fd.as_fd(), *flag).map_err(|errno| fail(&format!("{name} namespace"), errno))?;
    }
    Ok(())
}

/// Clones the command's process, which goes on in [`guest`].
fn start(plan: &Plan, confinement: Confinement, membership: Option<Membership>, with_terminal: bool) -> Outcome<Child> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| Failure::own(format!("cannot make a socket pair: {}", words(errno))))?;
    let argv = plan::pointers(&plan.argv);
    let mut environment = plan::pointers(&plan.environment);
    environment.insert(plan.environment.len(), c"HOME=/".as_ptr());
    match sys::clone_child(0) {
        Err(errno) => Err(Failure::own(format!("cannot start a process in the container: {}", words(errno)))),
        Ok(sys::Clone::Child) => {
            sys::close(ours.as_raw_fd());
            let channel = theirs.as_raw_fd();
            if let Err(stop) = guest(plan, &argv, &mut environment, channel, confinement, membership, with_terminal) {
                report::send(channel, &stop);
            }
            sys::exit_now(125)
        }
        Ok(sys::Clone::Parent(pid, pidfd)) => Ok(Child { pid, pidfd, channel: ours }),
    }
}

/// Inside, up to the exec.
fn guest<'a>(
    plan: &'a Plan,
    argv: &[*const core::ffi::c_char],
    environment: &mut [*const core::ffi::c_char],
    channel: RawFd,
    confinement: Confinement,
    mut membership: Option<Membership>,
    with_terminal: bool,
) -> Try<'a> {
    let guard = || at(Step::Guard, c"");
    let ignored = ignored_signals();
    sys::die_with_parent().map_err(guard())?;
    sys::change_directory(c"/").map_err(guard())?;
    sys::set_umask(0o022);
    if let Some(membership) = &mut membership {
        membership.enter_as_caller();
    }
    if !plan.single_id {
        sys::set_groups(&[]).map_err(at(Step::Ids, c""))?;
    }
    // No more than process 1 can ever get. What is dropped for root is dropped for every user.
    for number in (0..=CAPABILITIES).filter(|number| confinement.bounding & (1 << number) == 0) {
        match life_sys::drop_from_bounding_set(number) {
            // A number beyond the kernel's last.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err(guard()(errno)),
        }
    }
    sys::become_ids(0, 0).map_err(at(Step::Ids, c""))?;
    life_sys::forbid_tracing().map_err(guard())?;
    sys::die_with_parent().map_err(guard())?;
    if let Some(membership) = &mut membership {
        membership.enter_as_root().map_err(at(Step::Cgroup, c""))?;
    }
    if confinement.no_new_privs {
        life_sys::set_no_new_privs().map_err(guard())?;
    }
    let mut slave = -1;
    if with_terminal {
        let master;
        (master, slave) = terminal()?;
        sys::send_message(channel, &[report::CONSOLE], &[master, slave]).map_err(at(Step::Channel, c""))?;
        sys::close(master);
    }
    let go = setup::wait_for(channel, report::GO)?;
    // The exec itself closes them too late: between the new memory, which root inside may look into where his ids are the
    // caller's, and the closing of descriptors (begin_new_exec() of fs/exec.c) a copy of the caller's terminal could be
    // opened by /proc/PID/fd.
    close_all_but(&go.descriptors().into_iter().chain([channel, slave]).collect::<Vec<_>>());
    setup::start_command(plan, argv, environment, channel, slave, &go, ignored)
}

/// Closes every descriptor from 3 up but these. Linux before 5.9 is told each number: what this program has opened since it
/// closed its caller's, has low ones, and /proc is the container's here.
fn close_all_but(kept: &[RawFd]) {
    const HIGHEST: RawFd = 1023;
    let mut kept: Vec<RawFd> = kept.iter().copied().filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    for end in kept.into_iter().map(Some).chain([None]) {
        let last = end.map_or(u32::MAX, |fd| fd.unsigned_abs().saturating_sub(1));
        let range = u32::try_from(first).unwrap_or(u32::MAX);
        if range <= last && sys::close_range(range, last).is_err() {
            (first..end.unwrap_or(HIGHEST.saturating_add(1))).for_each(sys::close);
        }
        first = end.map_or(first, |fd| fd.saturating_add(1));
    }
}

/// A pty of the container's devpts, whatever it has put at that path: character device 5:2, on a devpts.
fn terminal<'a>() -> Try<'a, (RawFd, RawFd)> {
    let fail = || at(Step::Console, c"/dev/pts/ptmx");
    let place = sys::open_at(libc::AT_FDCWD, c"/dev/pts/ptmx", libc::O_PATH).map_err(fail())?;
    let multiplexer = sys::file_type(place) == Ok(libc::S_IFCHR)
        && sys::file_system(place) == Ok(DEVPTS_SUPER_MAGIC)
        && life_sys::device(place) == Ok((5, 2));
    if !multiplexer {
        return Err(report::Stop {
            step: Step::Console,
            errno: Errno::ENODEV,
            object: c"/dev/pts/ptmx",
            more: "/dev/pts/ptmx of the container is no terminal multiplexer".to_owned(),
        });
    }
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK;
    let master = sys::open_at(libc::AT_FDCWD, c"/dev/pts/ptmx", flags).map_err(fail())?;
    if life_sys::device(master) != Ok((5, 2)) {
        return Err(fail()(Errno::ENODEV));
    }
    let slave = sys::open_peer(master).map_err(fail())?;
    Ok((master, slave))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_process_1_may_ever_get_is_read_from_its_status() {
        let text = "Name:\tinit\nCapInh:\t0000000000000000\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t1\n";
        assert_eq!(parse_confinement(text), Some(Confinement { bounding: 0xa804_25fb, no_new_privs: true }));
        assert_eq!(parse_confinement("Name:\tx\n"), None);
    }
}
