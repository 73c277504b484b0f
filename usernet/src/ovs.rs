//! Open vSwitch bridges, by ovs-vsctl(8).

#![forbid(unsafe_code)]

use crate::request::shown;
use crate::status;
use helper::caller::Caller;
use helper::enter::{FullRoot, IGNORED};
use helper::report::{Failure, reason};
use helper::sys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use std::ffi::OsStr;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

const DIRECTORIES: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// How long it may take: it waits for a database server that may be down.
const LIMIT: Duration = Duration::from_secs(10);

/// The path of ovs-vsctl, when root owns it and nobody else can write it.
#[must_use]
pub fn program() -> Option<String> {
    DIRECTORIES.iter().map(|directory| format!("{directory}/ovs-vsctl")).find(|path| {
        std::fs::metadata(path)
            .is_ok_and(|m| m.is_file() && m.uid() == 0 && m.mode() & 0o022 == 0 && m.mode() & 0o111 != 0)
    })
}

/// Runs `ovs-vsctl VERB BRIDGE NIC` as root, with nothing that comes from the caller but the two names: empty
/// environment but PATH, directory `/`, umask 022, default signals, no descriptor but 0 to 2.
///
/// # Errors
/// It is not there, failed, or took longer than ten seconds; in words.
pub fn run(caller: &Caller, verb: &str, bridge: &[u8], nic: &[u8]) -> Result<(), Failure> {
    let shown = format!("ovs-vsctl {verb} {} {}", shown(bridge), shown(nic));
    let failed = |why: String| Failure::new(format!("{shown}: {why}")).status(status::SYSTEM);
    let program = program().ok_or_else(|| failed(format!("not found in {}", DIRECTORIES.join(":"))))?;
    let mut command = Command::new(program);
    command.arg(verb).args([bridge, nic].map(OsStr::from_bytes));
    command.env_clear().env("PATH", DIRECTORIES.join(":")).current_dir("/").uid(0).gid(0).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    umask(Mode::from_bits_truncate(0o022));
    let _section = FullRoot::begin(caller)?;
    close_others();
    // What is ignored stays ignored in what is executed: by us, or by the caller before.
    for signal in Signal::iterator() {
        let _ = sys::set_signal(signal, false);
    }
    let child = command.spawn();
    for signal in IGNORED {
        let _ = sys::set_signal(signal, true);
    }
    let mut child = child.map_err(|error| failed(reason(&error)))?;
    let end = Instant::now().checked_add(LIMIT);
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if end.is_some_and(|end| Instant::now() < end) => std::thread::sleep(Duration::from_millis(2)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(format!("no answer in {} seconds: is ovsdb-server running?", LIMIT.as_secs())));
            }
            Err(error) => return Err(failed(format!("wait: {}", reason(&error)))),
        }
    };
    if status.success() {
        return Ok(());
    }
    // What it said is in the pipe by now; a grandchild may hold the other end, so nothing is waited for.
    let mut said = [0; 256];
    let there = |pipe: &ChildStderr| poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO);
    let pipe = child.stderr.take().filter(|pipe| there(pipe) == Ok(1));
    let read = pipe.and_then(|mut pipe| pipe.read(&mut said).ok()).unwrap_or(0);
    let said = String::from_utf8_lossy(said.get(..read).unwrap_or_default());
    Err(failed(format!("{status}: {}", said.lines().next().unwrap_or_default())))
}

/// Marks every descriptor from 3 on close-on-exec; one by one on kernels before 5.11.
fn close_others() {
    if sys::close_on_exec_from_3().is_err() {
        let numbers = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        for number in numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|n| *n > 2) {
            sys::close_on_exec(number);
        }
    }
}
