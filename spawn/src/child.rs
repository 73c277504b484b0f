//! Starting the held child and writing its id maps.

#![forbid(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use helper::allotment::{self, Owner};
use helper::handoff::start_time;
use helper::range::{Extent, IdKind};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::explain;
use crate::failure::{Failure, Outcome, words};
use crate::plan::{self, Plan};
use crate::report::Step;
use crate::supervise::time_left;
use crate::tool::{self, Running, Tool};
use crate::{report, setup, sys};

/// Which ids are mapped.
#[derive(Debug, PartialEq, Eq)]
pub enum Map {
    /// The caller's whole subordinate ranges, from id 0 inside on, by newuidmap and newgidmap.
    Whole {
        /// User ids.
        uids: Vec<Extent>,
        /// Group ids.
        gids: Vec<Extent>,
    },
    /// The caller's own uid and gid, as root inside; nothing else.
    Own {
        /// The caller's user id.
        uid: u32,
        /// His group id.
        gid: u32,
    },
    /// Somebody else writes it: a stage of the pipeline.
    Stage,
}

impl Map {
    /// The whole subordinate ranges of the caller.
    ///
    /// # Errors
    /// When a file cannot be read or grants him nothing: there is no fall-back to one id, which would break owners in
    /// silence.
    pub fn whole() -> Outcome<Self> {
        let owner = Owner::of_uid(nix::unistd::getuid().as_raw()).map_err(|error| Failure::own(error.to_string()))?;
        let extents = |kind| {
            let ranges = allotment::ranges(kind, &owner).map_err(|error| Failure::own(error.to_string()))?;
            if ranges.is_empty() {
                return Err(Failure::own(format!(
                    "{}; `--map self` starts with the caller's own id alone",
                    allotment::none_granted(kind, &owner)
                )));
            }
            Ok(allotment::plan(&ranges))
        };
        Ok(Self::Whole { uids: extents(IdKind::Uid)?, gids: extents(IdKind::Gid)? })
    }

    /// The caller's own ids.
    #[must_use]
    pub fn own() -> Self {
        Self::Own { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
    }

    /// The host's uid of root inside; `None` when it is not known here.
    #[must_use]
    pub fn root_uid(&self) -> Option<u32> {
        match self {
            Self::Whole { uids, .. } => uids.iter().find(|extent| extent.inside == 0).map(|extent| extent.outside),
            Self::Own { uid, .. } => Some(*uid),
            Self::Stage => None,
        }
    }

    /// Whether a uid of the host has a number inside.
    #[must_use]
    pub fn maps_uid(&self, uid: u32) -> bool {
        match self {
            Self::Whole { uids, .. } => uids.iter().any(|e| uid.checked_sub(e.outside).is_some_and(|n| n < e.count)),
            Self::Own { uid: own, .. } => *own == uid,
            Self::Stage => true,
        }
    }
}

/// The map of user ids, as in `0:100000:65536`.
impl core::fmt::Display for Map {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Whole { uids, .. } => {
                let words: Vec<String> =
                    uids.iter().map(|e| format!("{}:{}:{}", e.inside, e.outside, e.count)).collect();
                f.write_str(&words.join(","))
            }
            Self::Own { uid, .. } => write!(f, "0:{uid}:1"),
            Self::Stage => f.write_str("unknown"),
        }
    }
}

/// The process that will be the container's first.
#[derive(Debug)]
pub struct Child {
    /// Its pid here.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// Our end of the socket pair of [`crate::report`].
    pub channel: OwnedFd,
}

impl Child {
    /// Clones the child, which goes on in [`setup::run`].
    ///
    /// # Errors
    /// When the kernel makes no user namespace, with the reason found.
    pub fn start(plan: &Plan) -> Outcome<Self> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|errno| Failure::own(format!("cannot make a socket pair: {}", words(errno))))?;
        let argv = plan::pointers(&plan.argv);
        // One slot more, before the NULL: HOME, which the child knows last.
        let mut environment = plan::pointers(&plan.environment);
        environment.insert(plan.environment.len(), c"HOME=/".as_ptr());
        match sys::clone_child(libc::CLONE_NEWUSER | libc::CLONE_NEWPID) {
            Err(errno) => Err(Failure::own(explain::user_namespace(errno))),
            Ok(sys::Clone::Child) => {
                sys::close(ours.as_raw_fd());
                setup::run(plan, &argv, &mut environment, theirs.as_raw_fd())
            }
            Ok(sys::Clone::Parent(pid, pidfd)) => Ok(Self { pid, pidfd, channel: ours }),
        }
    }

    /// Its start time in clock ticks after boot, which with the pid identifies it.
    ///
    /// # Errors
    /// When /proc does not tell.
    pub fn start_time(&self) -> Outcome<u64> {
        let path = format!("/proc/{}/stat", self.pid);
        // One read, which the line always fits in: the standard library would need six.
        let mut line = [0_u8; 2048];
        let length = CString::new(path.as_str()).ok().and_then(|path| {
            let file = sys::open_at(libc::AT_FDCWD, &path, libc::O_RDONLY).ok()?;
            let length = sys::read(file, &mut line);
            sys::close(file);
            length.ok()
        });
        start_time(line.get(..length.unwrap_or(0)).unwrap_or_default())
            .ok_or_else(|| Failure::own(format!("cannot read {path}: is /proc mounted?")))
    }

    /// Whether somebody has written a map that holds the ids 0.
    ///
    /// # Errors
    /// When not. Where /proc does not tell, the child will.
    pub fn check_map(&self) -> Outcome<()> {
        for file in ["uid_map", "gid_map"] {
            let Ok(map) = std::fs::read_to_string(format!("/proc/{}/{file}", self.pid)) else { return Ok(()) };
            if !map.lines().any(|line| line.split_ascii_whitespace().next() == Some("0")) {
                let stop = report::Report {
                    step: Step::Ids,
                    errno: Errno::EINVAL,
                    object: String::new(),
                    more: String::new(),
                };
                return Err(explain::child_failure(&stop));
            }
        }
        Ok(())
    }

    /// Tells it that its map is written and waits until it has made its network namespace. For a plan that is `held`.
    ///
    /// # Errors
    /// What the child reports, or that it took too long.
    pub fn make_network(&self, deadline: Instant) -> Outcome<()> {
        let channel = self.channel.as_raw_fd();
        // EPIPE: its report says why it has ended.
        let _ = sys::send_message(channel, &[report::MAPPED], &[]);
        loop {
            let mut fds = [PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, time_left(Some(deadline))) {
                Err(Errno::EINTR) => {}
                Ok(1) => break,
                _ => return Err(Failure::own("the network namespace was not made in time")),
            }
        }
        let (mut message, mut none) = ([0_u8; report::MAX_MESSAGE], [-1; 3]);
        let length = sys::receive_message(channel, &mut message, &mut none).unwrap_or(0);
        let message = message.get(..length).unwrap_or_default();
        match message.first() {
            Some(&report::NETWORK) => Ok(()),
            _ => Err(report::parse(message)
                .map_or_else(|| Failure::own("the held process has ended"), |report| explain::child_failure(&report))),
        }
    }

    /// Why it has stopped, if it has said so by now. For a start that is given up anyway: other messages are lost.
    #[must_use]
    pub fn last_words(&self) -> Option<Failure> {
        let mut fds = [PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut fds, 0_u16), Ok(1)) {
            return None;
        }
        let (mut message, mut none) = ([0_u8; report::MAX_MESSAGE], [-1; 3]);
        let length = sys::receive_message(self.channel.as_raw_fd(), &mut message, &mut none).ok()?;
        report::parse(message.get(..length)?).map(|report| explain::child_failure(&report))
    }

    /// Kills it and all that runs in its pid namespace, and reaps it.
    pub fn end(&self) {
        // ESRCH: it has ended by itself.
        let _ = sys::signal_process(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = sys::wait_child(self.pidfd.as_fd());
    }

    /// Writes `map`, or starts the programs that do.
    ///
    /// # Errors
    /// When a tool was not found, or cannot be executed.
    pub fn begin_map<'a>(&self, map: &Map, tools: &'a Tools) -> Outcome<Mapping<'a>> {
        match map {
            Map::Stage => Ok(Mapping(None)),
            Map::Own { uid, gid } => self.write_own(*uid, *gid).map(|()| Mapping(None)),
            Map::Whole { uids, gids } => {
                let Tools(Some(tools)) = tools else {
                    return Err(Failure::own("the map tools were not looked for"));
                };
                let [uid, gid] = tools;
                let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
                    .map_err(|errno| Failure::own(format!("cannot make a pipe: {}", words(errno))))?;
                // Both at once: together they take as long as one.
                let first = uid.start(map_words(self.pid, uids), &writer)?;
                let second = gid.start(map_words(self.pid, gids), &writer);
                drop(writer);
                let second = match second {
                    Ok(second) => second,
                    Err(failure) => {
                        first.end();
                        return Err(failure);
                    }
                };
                Ok(Mapping(Some(Writers { tools, running: [first, second], said: reader })))
            }
        }
    }

    /// Waits until the map is written.
    ///
    /// # Errors
    /// When a tool has no privilege, refuses, or has not ended at `deadline`; its own words are passed on.
    pub fn finish_map(&self, mapping: Mapping<'_>, deadline: Instant) -> Outcome<()> {
        let Some(Writers { tools, running, said }) = mapping.0 else { return Ok(()) };
        for (result, tool) in running.map(|running| running.wait(deadline)).into_iter().zip(tools) {
            if result != Some(0) {
                // A child that has ended has no map to be written: its own words are the cause.
                return Err(self.last_words().unwrap_or_else(|| tool.failure(result, &said)));
            }
        }
        Ok(())
    }

    fn write_own(&self, uid: u32, gid: u32) -> Outcome<()> {
        // The kernel lets anyone map his own ids, but his group only once setgroups(2) is denied (CVE-2014-8989).
        let lines =
            [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))];
        for (file, line) in lines {
            let path = format!("/proc/{}/{file}", self.pid);
            std::fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .and_then(|mut file| std::io::Write::write_all(&mut file, line.as_bytes()))
                .map_err(|error| {
                    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
                    let cure = if errno == Errno::EPERM {
                        ": a security module or a seccomp filter keeps the new user namespace without power"
                    } else {
                        ""
                    };
                    Failure::own(format!("cannot write \"{line}\" to {path}: {}{cure}", words(errno)))
                })?;
        }
        Ok(())
    }
}

/// A map that is being written.
#[derive(Debug)]
pub struct Mapping<'a>(Option<Writers<'a>>);

#[derive(Debug)]
struct Writers<'a> {
    tools: &'a [Tool; 2],
    running: [Running; 2],
    /// The other end of their output.
    said: OwnedFd,
}

/// newuidmap and newgidmap, looked up once; none where nothing is mapped by them.
#[derive(Debug)]
pub struct Tools(Option<[Tool; 2]>);

impl Tools {
    /// Looks for those that `map` needs, see [`tool::places`].
    ///
    /// # Errors
    /// When one is missing, or is there but holds no privilege.
    pub fn find(map: &Map) -> Outcome<Self> {
        const SOURCE: &str =
            "the package uidmap (Debian, Ubuntu) or shadow-utils (Fedora, CentOS), or in userns-helpers";
        if !matches!(map, Map::Whole { .. }) {
            return Ok(Self(None));
        }
        let places = tool::places();
        let find = |kind: IdKind| Tool::find(kind.map_program(), &places, SOURCE);
        Ok(Self(Some([find(IdKind::Uid)?, find(IdKind::Gid)?])))
    }
}

/// The words that make a map tool write `extents` for `pid`.
fn map_words(pid: i32, extents: &[Extent]) -> impl Iterator<Item = String> {
    let numbers = extents.iter().flat_map(|e| [e.inside, e.outside, e.count]).map(|n| n.to_string());
    [pid.to_string()].into_iter().chain(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_tells_which_host_ids_it_holds() {
        let uids = vec![Extent { inside: 0, outside: 100_000, count: 10 }, Extent { inside: 10, outside: 7, count: 1 }];
        let map = Map::Whole { uids, gids: vec![] };
        assert_eq!(map.root_uid(), Some(100_000));
        assert!(map.maps_uid(100_009) && map.maps_uid(7));
        assert!(!map.maps_uid(100_010) && !map.maps_uid(99_999) && !map.maps_uid(0));
        assert_eq!(map.to_string(), "0:100000:10,10:7:1");
    }
}
