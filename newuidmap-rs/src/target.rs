//! The process whose map is written: opened once, checked and used through that one descriptor.

#![forbid(unsafe_code)]

use crate::range::IdKind;
use crate::report::Failure;
use crate::{sys, userns};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, fstat, fstatat, stat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};

/// How the caller named the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetName {
    /// By number.
    Pid(i32),
    /// By a descriptor that the caller left open: of /proc/PID, of /proc/PID/task/TID, or a pidfd.
    Descriptor(i32),
}

impl core::fmt::Display for TargetName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Pid(pid) => write!(f, "{pid}"),
            Self::Descriptor(number) => write!(f, "fd:{number}"),
        }
    }
}

/// The effective ids of a process, as the kernel shows them on /proc/PID (root's for one that is not dumpable).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Effective uid.
    pub uid: u32,
    /// Effective gid.
    pub gid: u32,
}

/// An open /proc/PID directory.
#[derive(Debug)]
pub struct Target {
    name: TargetName,
    directory: OwnedFd,
}

/// Why there is no [`Target`].
#[derive(Debug)]
pub enum TargetError {
    /// The descriptor is closed, or open on something that is neither a process directory nor a pidfd: the usage is
    /// printed with this line.
    NotAProcess(String),
    /// Anything else.
    Failed(String),
}

impl Target {
    /// Opens the process directory, with the caller's rights alone.
    ///
    /// # Errors
    /// [`TargetError`]: no such process, a closed descriptor, no procfs.
    pub fn open(name: TargetName) -> Result<Self, TargetError> {
        let directory = match name {
            TargetName::Pid(pid) => open_pid(pid, &pid.to_string())?,
            TargetName::Descriptor(number) => open_descriptor(number)?,
        };
        // The procfs of this program itself, not another instance that shows other pids (pid_namespaces(7)).
        let ours = stat("/proc/self/uid_map").map_err(|e| {
            TargetError::Failed(format!("cannot stat /proc/self/uid_map: {}: is /proc mounted?", e.desc()))
        })?;
        let is_ours = is_procfs(&directory) && fstat(&directory).is_ok_and(|its| its.st_dev == ours.st_dev);
        if !is_ours || fstatat(&directory, "uid_map", AtFlags::AT_SYMLINK_NOFOLLOW).is_err() {
            return Err(TargetError::NotAProcess(format!(
                "{name} is no directory of a living process in the /proc seen here"
            )));
        }
        Ok(Self { name, directory })
    }

    /// How the caller named it.
    #[must_use]
    pub const fn name(&self) -> TargetName {
        self.name
    }

    /// Its effective ids.
    ///
    /// # Errors
    /// The process is gone.
    pub fn ids(&self) -> Result<Ids, Failure> {
        let meta = fstat(&self.directory)
            .map_err(|e| Failure::new(format!("cannot stat the directory of target {}: {}", self.name, e.desc())))?;
        Ok(Ids { uid: meta.st_uid, gid: meta.st_gid })
    }

    /// Its pid, for the log: 0 when it cannot be told.
    #[must_use]
    pub fn pid(&self) -> i32 {
        match self.name {
            TargetName::Pid(pid) => pid,
            TargetName::Descriptor(_) => self
                .open_file("stat", OFlag::O_RDONLY)
                .ok()
                .and_then(|file| {
                    let mut text = String::new();
                    file.take(32).read_to_string(&mut text).ok()?;
                    text.split(' ').next()?.parse().ok()
                })
                .unwrap_or(0),
        }
    }

    /// Opens a file of the process directory: the kernel's own, never one that somebody mounted over it.
    ///
    /// `openat2` refuses a mount point below the directory; on kernels before 5.6 the mount ids of directory and
    /// file have to be equal.
    ///
    /// # Errors
    /// ESRCH or ENOENT when the process is gone, EACCES when it is not dumpable, EXDEV when something is mounted over
    /// the file.
    pub fn open_file(&self, file: &str, flags: OFlag) -> Result<File, Errno> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY | OFlag::O_NOFOLLOW;
        let beneath = ResolveFlag::RESOLVE_NO_XDEV
            | ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let opened = match openat2(&self.directory, file, OpenHow::new().flags(flags).resolve(beneath)) {
            // EPERM: container runtimes' older seccomp filters answer it to calls that they do not know.
            Err(Errno::ENOSYS | Errno::EPERM) => {
                let opened = openat(&self.directory, file, flags, Mode::empty())?;
                match (mount_id(&self.directory), mount_id(&opened)) {
                    (Some(directory), Some(file)) if directory == file => opened,
                    // Neither openat2 nor mount ids (Linux 3.15): only the pid form is safe, in the caller's own view.
                    (None, None) if matches!(self.name, TargetName::Pid(_)) => opened,
                    _ => return Err(Errno::EXDEV),
                }
            }
            // On the mount of the directory (RESOLVE_NO_XDEV), which is procfs's.
            other => return other.map(File::from),
        };
        if is_procfs(&opened) { Ok(File::from(opened)) } else { Err(Errno::EXDEV) }
    }

    /// Opens a namespace of the process: `ns/net` and so on. The kernel asks whether this program, with its effective
    /// ids, may read the process (ptrace(2), PTRACE_MODE_READ_FSCREDS).
    ///
    /// # Errors
    /// EACCES when it may not; ENOENT or ESRCH when the process is gone.
    pub fn open_namespace(&self, file: &str) -> Result<OwnedFd, Errno> {
        openat(&self.directory, file, OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, Mode::empty())
    }

    /// The first bytes of a file of the process directory, at most `limit`; `None` when it cannot be read.
    #[must_use]
    pub fn read_file(&self, file: &str, limit: u64) -> Option<String> {
        let mut text = String::new();
        self.open_file(file, OFlag::O_RDONLY).ok()?.take(limit).read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn is_zombie(&self) -> bool {
        self.read_file("stat", 512)
            .is_some_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
    }

    /// Whether the process lives in the same user namespace as this program; `None` when that cannot be told.
    #[must_use]
    pub fn shares_our_user_namespace(&self) -> Option<bool> {
        let its = fstatat(&self.directory, "ns/user", AtFlags::empty()).ok()?;
        let ours = stat("/proc/self/ns/user").ok()?;
        Some(its.st_ino == ours.st_ino && its.st_dev == ours.st_dev)
    }

    /// What a failed access to `file` of the target most likely means: cause and cure in words.
    #[must_use]
    pub fn explain(&self, kind: IdKind, error: Errno) -> String {
        let (name, map) = (self.name, kind.map_file());
        match error {
            Errno::ENOENT | Errno::ESRCH => format!("process {name} is gone"),
            Errno::EXDEV => format!("something is mounted over that file of process {name}"),
            Errno::EACCES if self.is_zombie() => format!("process {name} has ended and waits for its parent"),
            Errno::EACCES => format!(
                "process {name} is not dumpable (its program is setuid or unreadable, or it called prctl(PR_SET_DUMPABLE, 0)), so its files in /proc belong to root"
            ),
            Errno::EPERM if self.shares_our_user_namespace() == Some(true) => {
                let why = userns::forbidden().unwrap_or_else(|| "unshare -U, or clone with CLONE_NEWUSER".to_owned());
                format!("process {name} has made no user namespace yet: {why}")
            }
            Errno::EPERM => match self.read_file(map, 512).as_deref().map(str::trim_end) {
                None => format!("its {map} cannot be read to tell the cause"),
                Some("") => format!(
                    "the user namespace of process {name} was made by another user or below another namespace, or a security module forbids it"
                ),
                Some(set) => format!("its {map} is already set, to \"{}\": a map can be written once", one_line(set)),
            },
            _ => format!("see user_namespaces(7) about {map}"),
        }
    }
}

/// The lines of a map on one line, blanks squeezed.
#[must_use]
pub fn one_line(map: &str) -> String {
    let lines: Vec<String> = map.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    lines.join(", ")
}

fn open_pid(pid: i32, shown: &str) -> Result<OwnedFd, TargetError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let path = format!("/proc/{pid}");
    openat(AT_FDCWD, path.as_str(), flags, Mode::empty()).map_err(|error| {
        let cause = match error {
            Errno::ENOENT | Errno::ESRCH => "no such process (it may have ended, or /proc hides it: hidepid)",
            other => other.desc(),
        };
        TargetError::Failed(format!("Could not open proc directory for target {shown}: {cause}"))
    })
}

fn open_descriptor(number: i32) -> Result<OwnedFd, TargetError> {
    let copy = sys::duplicate(number).map_err(|error| match error {
        Errno::EBADF => TargetError::NotAProcess(format!("fd:{number} is not open")),
        other => TargetError::Failed(format!("cannot duplicate descriptor {number}: {}", other.desc())),
    })?;
    let Some(pid) = pid_of_pidfd(&copy) else { return Ok(copy) };
    let gone = || TargetError::Failed(format!("fd:{number} is the pidfd of a process that is gone"));
    if pid <= 0 {
        return Err(gone());
    }
    let directory = open_pid(pid, &format!("{pid}, the process of fd:{number}"))?;
    // Alive after its directory was opened: so the directory is not of a later process with the same number.
    sys::pidfd_lives(&copy).map_err(|_| gone())?;
    Ok(directory)
}

/// The pid of a pidfd (`Pid:` in its fdinfo, from Linux 5.3 on), -1 for a process that was waited for, 0 for one that
/// has no number here; `None` for any other descriptor.
fn pid_of_pidfd(descriptor: &OwnedFd) -> Option<i32> {
    let target = readlinkat(nix::fcntl::AT_FDCWD, own_fd_path("fd", descriptor).as_str()).ok()?;
    let target = target.to_str()?;
    if !target.starts_with("anon_inode:[pidfd]") && !target.starts_with("pidfd:") {
        return None;
    }
    fdinfo(descriptor, "Pid:")
}

fn mount_id(descriptor: &OwnedFd) -> Option<i32> {
    fdinfo(descriptor, "mnt_id:")
}

fn fdinfo(descriptor: &OwnedFd, key: &str) -> Option<i32> {
    let mut text = String::new();
    File::open(own_fd_path("fdinfo", descriptor)).ok()?.take(4096).read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

fn own_fd_path(directory: &str, descriptor: &OwnedFd) -> String {
    use std::os::fd::AsRawFd as _;
    format!("/proc/self/{directory}/{}", descriptor.as_raw_fd())
}

fn is_procfs(descriptor: impl AsFd) -> bool {
    fstatfs(descriptor).is_ok_and(|fs| fs.filesystem_type() == PROC_SUPER_MAGIC)
}
