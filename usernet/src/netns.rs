//! The network namespace of the peer: opened once, with the caller's rights, and proved to be his.

#![forbid(unsafe_code)]

use crate::request::shown;
use crate::status;
use helper::caller::Caller;
use helper::handoff::start_time;
use helper::report::Failure;
use helper::sys;
use helper::target::{Target, TargetError, TargetName};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, fstat, stat};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

/// User namespaces nest at most this deep (user_namespaces(7)).
const MAX_LEVELS: usize = 33;

/// Opens the network namespace of a process and proves that it is the caller's. With `start` the process must have
/// started at that time, in clock ticks after boot.
///
/// # Errors
/// No such process, not the caller's to read, or a network namespace that is not his; in words.
pub fn of_process(caller: &Caller, pid: i32, start: Option<u64>) -> Result<OwnedFd, Failure> {
    let refused =
        |why: String| Failure::new(format!("network namespace of process {pid}: {why}")).status(status::NOT_PERMITTED);
    let target = Target::open(TargetName::Pid(pid)).map_err(|error| match error {
        TargetError::NotAProcess(why) | TargetError::Failed(why) => Failure::new(why).status(status::NOT_PERMITTED),
    })?;
    if let Some(start) = start {
        let stat = target.read_file("stat", 4096);
        if stat.and_then(|stat| start_time(stat.as_bytes())) != Some(start) {
            return Err(Failure::new(format!("the held process {pid} is gone")).status(status::DATA));
        }
    }
    let netns = target.open_namespace("ns/net").map_err(|error| {
        refused(match error {
            Errno::ENOENT | Errno::ESRCH => "the process is gone".to_owned(),
            Errno::EACCES | Errno::EPERM => {
                "Permission denied: the process is not yours, or not dumpable (setuid, or prctl(PR_SET_DUMPABLE, 0))"
                    .to_owned()
            }
            error => format!("open {pid}/ns/net: {}", error.desc()),
        })
    })?;
    prove(caller, &netns).map_err(refused)?;
    Ok(netns)
}

/// Opens the network namespace at a path that the caller names, without the side effects that opening a device or a
/// FIFO has, and proves that it is his.
///
/// # Errors
/// One text for every cause, so that it tells nothing about a path that the caller may not see (CVE-2022-47952).
pub fn at_path(caller: &Caller, path: &[u8]) -> Result<OwnedFd, Failure> {
    let found = || -> Option<OwnedFd> {
        // O_PATH opens nothing yet (CVE-2018-6556).
        let place = open(OsStr::from_bytes(path), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
        fstatfs(&place).ok().filter(|fs| fs.filesystem_type() == NSFS_MAGIC)?;
        let again = format!("/proc/self/fd/{}", place.as_raw_fd());
        let netns = open(again.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
        prove(caller, &netns).ok()?;
        Some(netns)
    };
    found().ok_or_else(|| {
        Failure::new(format!("\"{}\" is no network namespace of yours", shown(path))).status(status::NOT_PERMITTED)
    })
}

/// Proves that the network namespace belongs to a user namespace that the caller has made directly below the user
/// namespace in which he now is, or to one below it.
fn prove(caller: &Caller, netns: &OwnedFd) -> Result<(), String> {
    let failed = |what: &str, error: Errno| format!("{what}: {}", error.desc());
    let own = |path: &str| stat(path).map_err(|error| failed(&format!("stat {path}"), error));
    let is = |descriptor: &OwnedFd, known: &FileStat| {
        fstat(descriptor)
            .map(|its| its.st_dev == known.st_dev && its.st_ino == known.st_ino)
            .map_err(|error| failed("fstat of a namespace", error))
    };
    if is(netns, &own("/proc/self/ns/net")?)? {
        return Err("it is the host's own: the process has made none (unshare -Urn, or clone with CLONE_NEWUSER and CLONE_NEWNET)".to_owned());
    }
    let ours = own("/proc/self/ns/user")?;
    let not_yours = || "it belongs to a user namespace that is not below yours".to_owned();
    let mut level = sys::owning_user_namespace(netns.as_fd()).map_err(|error| match error {
        Errno::ENOTTY => "the kernel cannot tell whose it is (ioctl NS_GET_USERNS: Linux 4.9)".to_owned(),
        Errno::EPERM => not_yours(),
        error => failed("ioctl NS_GET_USERNS", error),
    })?;
    if is(&level, &ours)? {
        return Err("it belongs to the host's user namespace: it was not made in a user namespace of yours".to_owned());
    }
    for _ in 0..MAX_LEVELS {
        let parent = sys::parent_namespace(level.as_fd()).map_err(|error| match error {
            Errno::EPERM => not_yours(),
            error => failed("ioctl NS_GET_PARENT", error),
        })?;
        if is(&parent, &ours)? {
            return match sys::namespace_owner(level.as_fd()) {
                Ok(uid) if uid == caller.uid => Ok(()),
                Ok(uid) => Err(format!("its user namespace was made by uid {uid}, not by you")),
                Err(Errno::ENOTTY) => {
                    Err("the kernel cannot tell whose it is (ioctl NS_GET_OWNER_UID: Linux 4.11)".to_owned())
                }
                Err(error) => Err(failed("ioctl NS_GET_OWNER_UID", error)),
            };
        }
        level = parent;
    }
    Err(not_yours())
}
