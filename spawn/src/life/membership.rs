//! The cgroups of a command that enters a container: those of the container, so that its limits count for the command
//! as well.
//!
//! The command's process moves itself, before it has joined the container's cgroup namespace: with `nsdelegate` the
//! kernel lets nobody move anything across the root of the writer's namespace. A cgroup that cgdelegate has made is the
//! caller's to write; the leaf that root inside has made for itself below one is root's, and so both try. On version 1
//! the writer must be the user that the process belongs to, which the one and then the other is; on cgroup2 he must also
//! be able to write the cgroup in which both lie (cgroups(7), "Delegation containment rules").

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;

use crate::cgroup::directory;
use crate::complain;
use crate::failure::words;
use crate::state::Record;
use crate::sys::{self, Call};

/// Where the command goes when the cgroup itself may hold no process, because it hands its controllers on to others
/// below it, as a systemd in the container does.
const LEAF: &core::ffi::CStr = c".spawn";
const LEAF_LIST: &core::ffi::CStr = c".spawn/cgroup.procs";
const LIST: &core::ffi::CStr = c"cgroup.procs";

/// The cgroups of a container, opened where their file systems are to be seen, and its cgroup namespace.
pub struct Membership {
    nodes: Vec<Node>,
    namespace: OwnedFd,
}

struct Node {
    /// Its hierarchy, for messages.
    hierarchy: String,
    directory: OwnedFd,
    /// `cgroup.procs`, as the caller may write it.
    list: Call<OwnedFd>,
    result: Call<()>,
}

impl Membership {
    /// `None`: the container has no cgroup of its own, or none that is there to be seen.
    #[must_use]
    pub fn look(record: &Record) -> Option<Self> {
        let open = |path: &std::path::Path, flags: i32, write: bool| {
            let file = std::fs::OpenOptions::new().read(!write).write(write).custom_flags(flags).open(path);
            file.map(OwnedFd::from).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
        };
        let node = |line: &String| {
            let path = directory(line)?;
            let list = line.split(':').nth(1).unwrap_or_default();
            Some(Node {
                hierarchy: if list.is_empty() { "cgroup2".to_owned() } else { list.to_owned() },
                directory: open(&path, libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW, false).ok()?,
                list: open(&path.join("cgroup.procs"), libc::O_NOFOLLOW, true),
                result: Err(Errno::EACCES),
            })
        };
        let nodes: Vec<Node> = record.cgroups.iter().filter_map(node).collect();
        let path = format!("/proc/{}/ns/cgroup", record.pid);
        let namespace = std::fs::File::open(path).ok().filter(|_| !nodes.is_empty())?;
        Some(Self { nodes, namespace: namespace.into() })
    }

    /// As the caller.
    pub fn enter_as_caller(&mut self) {
        for node in &mut self.nodes {
            node.result = match &node.list {
                Ok(list) => enter(&node.directory, list),
                Err(errno) => Err(*errno),
            };
        }
    }

    /// As root inside; then joins the cgroup namespace. What has refused is told.
    ///
    /// # Errors
    /// The errno of setns(2).
    pub fn enter_as_root(&mut self) -> Call<()> {
        for node in self.nodes.iter_mut().filter(|node| node.result.is_err()) {
            let list = sys::open_at(node.directory.as_raw_fd(), LIST, libc::O_WRONLY).ok().and_then(sys::own);
            if let Some(Ok(())) = list.map(|list| enter(&node.directory, &list)) {
                node.result = Ok(());
            }
        }
        let refused: Vec<&Node> = self.nodes.iter().filter(|node| node.result.is_err()).collect();
        if let Some(Err(errno)) = refused.first().map(|node| node.result) {
            let names: Vec<&str> = refused.iter().map(|node| node.hierarchy.as_str()).collect();
            let cause = if names == ["cgroup2"] && errno == Errno::EACCES {
                "cgroup2 lets a user move a process only within one cgroup that is the user's; enter it from there, as below the `cgdelegate run` that it was started in".to_owned()
            } else {
                words(errno)
            };
            complain(&format!(
                "the command stays outside the container's cgroup ({}), whose limits do not count for it: {cause}",
                names.join(", ")
            ));
        }
        super::sys::join(self.namespace.as_fd(), libc::CLONE_NEWCGROUP)
    }
}

/// Moves this process.
fn enter(directory: &OwnedFd, list: &OwnedFd) -> Call<()> {
    match sys::write(list.as_raw_fd(), b"0") {
        Err(Errno::EBUSY) => {
            match sys::make_directory(directory.as_raw_fd(), LEAF, 0o755) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
            let list = sys::open_at(directory.as_raw_fd(), LEAF_LIST, libc::O_WRONLY)?;
            let written = sys::write(list, b"0").map(drop);
            sys::close(list);
            written
        }
        result => result.map(drop),
    }
}
