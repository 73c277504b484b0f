//! What the child tells its parent, through one SOCK_SEQPACKET pair that closes at the exec.
//!
//! The parent sends one word: [`MAPPED`], [`GO`] (with the command's three standard descriptors). The child sends
//! [`NETWORK`], [`CONSOLE`] (with the master and the slave of /dev/console), [`TTY`] for each of /dev/tty1 and on (with
//! its master), [`EXEC`] as the last word before its
//! exec, and [`FAILED`] with the step, the errno and the object. End of file after [`EXEC`] means that the exec
//! worked; without it, that the child died. End of file on the child's side means abort.

#![forbid(unsafe_code)]

use core::ffi::CStr;
use std::os::fd::RawFd;

use nix::errno::Errno;

use crate::sys;

/// The maps are written.
pub const MAPPED: u8 = b'm';
/// Go on to the exec.
pub const GO: u8 = b'g';
/// The network namespace is made.
pub const NETWORK: u8 = b'n';
/// The console's two ends come with this.
pub const CONSOLE: u8 = b'c';
/// The master of the next of /dev/tty1, /dev/tty2... comes with this.
pub const TTY: u8 = b't';
/// The next thing is the exec.
pub const EXEC: u8 = b'x';
/// A step failed.
pub const FAILED: u8 = b'e';

/// Longest message in bytes.
pub const MAX_MESSAGE: usize = 1024;

/// A step of the child's set-up.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// prctl(PR_SET_PDEATHSIG)
    Guard = 1,
    /// unshare of mount, uts and ipc
    Namespaces,
    /// making `/` private
    Private,
    /// opening the rootfs as the caller
    OpenRoot,
    /// opening the source of a bind as the caller
    OpenBind,
    /// sethostname
    Hostname,
    /// setgroups, setresgid, setresuid to the mapped 0
    Ids,
    /// unshare of net
    Network,
    /// loopback up
    Loopback,
    /// finding a network card
    Card,
    /// its hardware address
    CardMac,
    /// its MTU
    CardMtu,
    /// bringing it up
    CardUp,
    /// an address of it
    Address,
    /// the default route over it
    Route,
    /// unshare of cgroup
    Cgroup,
    /// attaching the root
    AttachRoot,
    /// an overlay as the root: object is its base
    Layers,
    /// a part of the tree of `host`
    HostTree,
    /// resolving or making a mount point in the rootfs
    MountPoint,
    /// a file system of the kernel's: object is the place
    Mount,
    /// binding a device node
    Node,
    /// making the console
    Console,
    /// mask or read-only path
    Protect,
    /// attaching a bind mount, or a file system of the configuration's
    Bind,
    /// writing to a file of /proc
    Write,
    /// capabilities, seccomp, keyring
    Confine,
    /// a resource limit
    Limit,
    /// making a tree read-only
    ReadOnly,
    /// pivot_root
    Pivot,
    /// the working directory
    Workdir,
    /// the user of the command
    User,
    /// standard descriptors, session, terminal
    Stdio,
    /// execve
    Exec,
    /// An unexpected word or the end of the parent's channel.
    Channel,
}

impl Step {
    const ALL: [Self; 35] = [
        Self::Guard,
        Self::Namespaces,
        Self::Private,
        Self::OpenRoot,
        Self::OpenBind,
        Self::Hostname,
        Self::Ids,
        Self::Network,
        Self::Loopback,
        Self::Card,
        Self::CardMac,
        Self::CardMtu,
        Self::CardUp,
        Self::Address,
        Self::Route,
        Self::Cgroup,
        Self::AttachRoot,
        Self::Layers,
        Self::HostTree,
        Self::MountPoint,
        Self::Mount,
        Self::Node,
        Self::Console,
        Self::Protect,
        Self::Bind,
        Self::Write,
        Self::Confine,
        Self::Limit,
        Self::ReadOnly,
        Self::Pivot,
        Self::Workdir,
        Self::User,
        Self::Stdio,
        Self::Exec,
        Self::Channel,
    ];

    fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step as u8 == number)
    }
}

/// Why the child stops: which step, on what, with which errno, and more words where they were found.
#[derive(Debug)]
pub struct Stop<'a> {
    /// The step.
    pub step: Step,
    /// The errno of its system call; 0 when `more` says it all.
    pub errno: Errno,
    /// A path, a name.
    pub object: &'a CStr,
    /// The cause, when it is known better here than there.
    pub more: String,
}

/// A step's result.
pub type Try<'a, T = ()> = Result<T, Stop<'a>>;

/// Makes a [`Stop`] of an errno: `.map_err(at(Step::Mount, c"/proc"))`.
pub fn at<'a>(step: Step, object: &'a CStr) -> impl Fn(Errno) -> Stop<'a> {
    move |errno| Stop { step, errno, object, more: String::new() }
}

/// A [`Stop`] as the parent reads it.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    /// The step.
    pub step: Step,
    /// The errno.
    pub errno: Errno,
    /// A path, a name.
    pub object: String,
    /// The cause in words; may be empty.
    pub more: String,
}

/// Sends `stop` to the parent.
pub fn send(channel: RawFd, stop: &Stop<'_>) {
    let mut message = [0_u8; MAX_MESSAGE];
    let object = stop.object.to_bytes();
    let length = {
        let head = [&[FAILED, stop.step as u8][..], &(stop.errno as i32).to_ne_bytes()[..]];
        let parts = [head[0], head[1], object, b"\0", stop.more.as_bytes()];
        let mut used = 0_usize;
        for byte in parts.into_iter().flatten() {
            if let Some(slot) = message.get_mut(used) {
                *slot = *byte;
                used = used.saturating_add(1);
            }
        }
        used
    };
    // Nobody is left to tell when this fails: the parent is dead.
    let _ = sys::send_message(channel, message.get(..length).unwrap_or_default(), &[]);
}

/// Reads a message that begins with [`FAILED`].
#[must_use]
pub fn parse(message: &[u8]) -> Option<Report> {
    let rest = message.strip_prefix(&[FAILED])?;
    let (step, rest) = rest.split_first()?;
    let (errno, rest) = rest.split_first_chunk::<4>()?;
    let end = rest.iter().position(|b| *b == 0).unwrap_or(rest.len());
    let (object, more) = rest.split_at(end);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(Report {
        step: Step::of(*step)?,
        errno: Errno::from_raw(i32::from_ne_bytes(*errno)),
        object: text(object),
        more: text(more.strip_prefix(b"\0").unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::os::fd::AsRawFd;

    #[test]
    fn a_stop_arrives_as_it_was_sent() {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        for step in Step::ALL {
            let more = "x".repeat(MAX_MESSAGE);
            send(a.as_raw_fd(), &Stop { step, errno: Errno::EACCES, object: c"/a b", more });
            let (mut buffer, mut fds) = ([0; 2 * MAX_MESSAGE], [0; 3]);
            let length = sys::receive_message(b.as_raw_fd(), &mut buffer, &mut fds).unwrap();
            let report = parse(&buffer[..length]).unwrap();
            assert_eq!((report.step, report.errno, report.object.as_str()), (step, Errno::EACCES, "/a b"));
            assert_eq!(fds, [-1; 3]);
        }
        assert_eq!(parse(b"e"), None);
        assert_eq!(parse(b""), None);
    }
}
