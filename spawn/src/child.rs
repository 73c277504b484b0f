//! Starting the held child and writing its id maps.

#![forbid(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use helper::allotment::{self, Owner};
use helper::handoff::start_time;
use helper::range::{Extent, IdKind};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::ambient;
use crate::explain;
use crate::failure::{Failure, Outcome, one_line, words};
use crate::plan::{self, Plan};
use crate::supervise::time_left;
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
        let stat = std::fs::read(&path).unwrap_or_default();
        start_time(&stat).ok_or_else(|| Failure::own(format!("cannot read {path}: is /proc mounted?")))
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

    /// Kills it and all that runs in its pid namespace, and reaps it.
    pub fn end(&self) {
        // ESRCH: it has ended by itself.
        let _ = sys::signal_process(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = sys::wait_child(self.pidfd.as_fd());
    }

    /// Writes `map`.
    ///
    /// # Errors
    /// When a tool is missing, has no privilege, refuses, or has not ended at `deadline`; its own words are passed on.
    pub fn write_map(&self, map: &Map, tools: &Tools, deadline: Instant) -> Outcome<()> {
        match map {
            Map::Stage => Ok(()),
            Map::Own { uid, gid } => self.write_own(*uid, *gid),
            Map::Whole { uids, gids } => {
                let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
                    .map_err(|errno| Failure::own(format!("cannot make a pipe: {}", words(errno))))?;
                // Both at once: together they take as long as one.
                let first = tools.start(IdKind::Uid, self.pid, uids, &writer)?;
                let second = tools.start(IdKind::Gid, self.pid, gids, &writer);
                drop(writer);
                let second = match second {
                    Ok(second) => second,
                    Err(failure) => {
                        first.end();
                        return Err(failure);
                    }
                };
                let results = [first.wait(deadline), second.wait(deadline)];
                for (result, kind) in results.into_iter().zip([IdKind::Uid, IdKind::Gid]) {
                    if result != Some(0) {
                        return Err(tools.failure(kind, result, &reader));
                    }
                }
                Ok(())
            }
        }
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

/// newuidmap and newgidmap, looked up once.
#[derive(Debug)]
pub struct Tools {
    uid: PathBuf,
    gid: PathBuf,
}

/// A map tool that runs.
struct Tool {
    pidfd: OwnedFd,
}

impl Tool {
    fn end(&self) {
        let _ = sys::signal_process(self.pidfd.as_fd(), libc::SIGKILL);
        // Not waited for: a tool that is root may not be killed by us, and then would hold us up.
    }

    /// Its exit code, 128 and more for a signal; `None` when the time is up.
    fn wait(&self, deadline: Instant) -> Option<u8> {
        loop {
            let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, time_left(Some(deadline))) {
                Err(Errno::EINTR) => {}
                Ok(0) | Err(_) => {
                    self.end();
                    return None;
                }
                Ok(_) => return sys::wait_child(self.pidfd.as_fd()).ok().map(|(code, _)| code),
            }
        }
    }
}

impl Tools {
    /// Looks for those that `map` needs: beside this program, in `../libexec` from there, along the caller's PATH, in /usr/bin.
    ///
    /// # Errors
    /// When one is missing, or is there but holds no privilege.
    pub fn find(map: &Map) -> Outcome<Self> {
        if !matches!(map, Map::Whole { .. }) {
            return Ok(Self { uid: PathBuf::new(), gid: PathBuf::new() });
        }
        let mut places = Vec::new();
        if let Ok(own) = std::env::current_exe()
            && let Some(directory) = own.parent()
        {
            places.push(directory.to_owned());
            places.extend(directory.parent().map(|above| above.join("libexec")));
        }
        if let Some(path) = ambient::variable("PATH") {
            places.extend(std::env::split_paths(&path).filter(|place| place.is_absolute()));
        }
        places.push(PathBuf::from("/usr/bin"));
        let find = |kind: IdKind| find_tool(kind.map_program(), &places);
        Ok(Self { uid: find(IdKind::Uid)?, gid: find(IdKind::Gid)? })
    }

    fn path(&self, kind: IdKind) -> &Path {
        match kind {
            IdKind::Uid => &self.uid,
            IdKind::Gid => &self.gid,
        }
    }

    fn start(&self, kind: IdKind, pid: i32, extents: &[Extent], output: &OwnedFd) -> Outcome<Tool> {
        let path = self.path(kind);
        let fail = |cause: String| Failure::own(format!("cannot execute {}: {cause}", path.display()));
        let numbers = extents.iter().flat_map(|e| [e.inside, e.outside, e.count]).map(|n| n.to_string());
        let words_of = [kind.map_program().to_owned(), pid.to_string()].into_iter().chain(numbers);
        let argv: Vec<CString> = words_of.filter_map(|word| CString::new(word).ok()).collect();
        let file = CString::new(path.as_os_str().as_bytes()).map_err(|error| fail(error.to_string()))?;
        let argv: Vec<&core::ffi::CStr> = argv.iter().map(CString::as_c_str).collect();
        sys::exec_tool(&file, &argv, output.as_fd()).map(|pidfd| Tool { pidfd }).map_err(|errno| fail(words(errno)))
    }

    /// One line that names the tool and holds its own words, with what is known to take its privilege away.
    fn failure(&self, kind: IdKind, result: Option<u8>, output: &OwnedFd) -> Failure {
        let path = self.path(kind);
        let Some(code) = result else {
            return Failure::own(format!("{} has not ended in time", path.display()));
        };
        // What has been said already and no more: a descendant may still hold the other end.
        let mut said = vec![0_u8; 4096];
        let mut fds = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        let length = match poll(&mut fds, 0_u16) {
            Ok(1) => sys::read(output.as_raw_fd(), &mut said).unwrap_or(0),
            _ => 0,
        };
        said.truncate(length);
        let said = String::from_utf8_lossy(&said).into_owned();
        let program = kind.map_program();
        // The tool that failed first has spoken first; only its own lines are wanted.
        let line = said.lines().find(|line| line.starts_with(program)).or(said.lines().next());
        let line =
            line.map_or_else(|| format!("{} ended with status {code} and said nothing", path.display()), one_line);
        Failure::own(match lost_privilege(path) {
            Some(cause) => format!("{line}; {cause}"),
            None => line,
        })
    }
}

/// Why a map tool that looks privileged is not, when that is so.
fn lost_privilege(path: &Path) -> Option<String> {
    if nix::sys::prctl::get_no_new_privs().unwrap_or(false) {
        return Some(format!(
            "{} has lost its privilege, because no_new_privs is set on the caller (a service manager's NoNewPrivileges=, a container, setpriv --nnp)",
            path.display()
        ));
    }
    let flags = nix::sys::statvfs::statvfs(path).ok()?.flags();
    flags
        .contains(nix::sys::statvfs::FsFlags::ST_NOSUID)
        .then(|| format!("{} has lost its privilege, because it lies on a file system mounted nosuid", path.display()))
}

fn find_tool(program: &str, places: &[PathBuf]) -> Outcome<PathBuf> {
    let root = nix::unistd::geteuid().is_root();
    let mut powerless = None;
    for place in places {
        let path = place.join(program);
        let Ok(data) = std::fs::metadata(&path) else { continue };
        if !data.is_file() || data.permissions().mode() & 0o111 == 0 {
            continue;
        }
        let privileged = root || (data.mode() & 0o4000 != 0 && data.uid() == 0) || has_capability(&path);
        if privileged {
            return Ok(path);
        }
        powerless.get_or_insert(path);
    }
    Err(Failure::own(match powerless {
        Some(path) => format!(
            "{} has no privilege: as root, `chown 0:0 {0} && chmod 4755 {0}`, or install it again",
            path.display()
        ),
        None => format!(
            "{program} is not installed: it is in the package uidmap (Debian, Ubuntu) or shadow-utils (Fedora, CentOS), or in userns-helpers"
        ),
    }))
}

fn has_capability(path: &Path) -> bool {
    CString::new(path.as_os_str().as_bytes()).is_ok_and(|path| sys::has_attribute(&path, c"security.capability"))
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

    #[test]
    fn a_tool_without_privilege_is_not_taken() {
        let top = tempfile::tempdir().unwrap();
        let places = [top.path().to_owned()];
        let missing = find_tool("newuidmap", &places).unwrap_err();
        assert!(missing.text.contains("is not installed"), "{missing}");
        let path = top.path().join("newuidmap");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        if !nix::unistd::geteuid().is_root() {
            assert!(find_tool("newuidmap", &places).unwrap_err().text.contains("has no privilege"));
        }
    }
}
