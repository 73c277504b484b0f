//! The run state: one directory for each live container, with a record of what runs and the supervisor's socket.
//!
//! `$XDG_RUNTIME_DIR/spawn/NAME/` holds `record`, which is locked as long as the supervisor lives, and `socket`. The lock
//! is an open file description's (fcntl(2), F_OFD_SETLK): it ends with the supervisor, however that ends, it can be
//! asked for without being taken, and it survives the supervisor's exec.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use helper::handoff::start_time;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::cli::{Cli, Command, Options};
use crate::failure::{Failure, Outcome, words};
use crate::hold::{make_private, private, top};
use crate::supervise::time_left;
use crate::{life, sys};

/// The record's file name.
const RECORD: &str = "record";
/// The socket's.
const SOCKET: &str = "socket";
/// The version of [`Record`]; another one is another program's.
const VERSION: u32 = 1;
/// The record is padded to a multiple of this, so that a longer state does not change its length, in bytes.
const PADDING: usize = 128;
/// Longest record that is read, in bytes.
const MAX_RECORD: u64 = 1 << 20;
/// How long the end of a killed supervisor's container is waited for.
const REPAIR: Duration = Duration::from_secs(10);

/// How long a supervisor whose container has ended is waited for.
const TIDYING: Duration = Duration::from_secs(2);

/// How far a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Phase {
    /// Its command has not been executed yet.
    Starting,
    /// Its command runs.
    Running,
    /// It has been told to end.
    Stopping,
}

impl core::fmt::Display for Phase {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Starting => "STARTING",
            Self::Running => "RUNNING",
            Self::Stopping => "STOPPING",
        })
    }
}

/// How `spawn run` or `spawn hold` was called, so that the container can be started again and entered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    arguments: Vec<Vec<u8>>,
    directory: Vec<u8>,
}

impl Origin {
    /// This process's own.
    #[must_use]
    pub fn own() -> Self {
        let directory = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        Self {
            arguments: helper::start::sys::words().iter().map(|word| word.as_bytes().to_vec()).collect(),
            directory: directory.into_os_string().into_vec(),
        }
    }

    /// The working directory of the call.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.directory.clone()))
    }

    /// Its options, the rootfs as an absolute path.
    ///
    /// # Errors
    /// When it was no call of the two that this version understands.
    pub fn options(&self) -> Outcome<Options> {
        let words: Vec<OsString> = self.arguments.iter().cloned().map(OsString::from_vec).collect();
        match Cli::read(&words).map(|cli| cli.command) {
            Ok(Command::Run(mut options) | Command::Hold(mut options)) => {
                if options.rootfs.as_os_str().as_bytes().contains(&b'/') {
                    options.rootfs = self.directory().join(&options.rootfs);
                }
                Ok(options)
            }
            _ => Err(Failure::own("the container was started by another version of spawn")),
        }
    }
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// The container's name.
    pub name: String,
    /// How far it is.
    pub state: Phase,
    /// The pid of the supervisor.
    pub supervisor: i32,
    /// The pid of process 1, on the host.
    pub pid: i32,
    /// Its start time in clock ticks after boot.
    pub start: u64,
    /// Whether the supervisor is in the background.
    pub detached: bool,
    /// Whether process 1 is an init.
    pub init: bool,
    /// Whether the map holds the caller's own id alone.
    pub single_id: bool,
    /// The absolute path of the rootfs, or `host`.
    pub rootfs: String,
    /// The configuration that was read, if there is one.
    pub config: Option<String>,
    /// The SHA-256 of that file when it was read, in hexadecimal.
    pub digest: Option<String>,
    /// The command.
    pub command: Vec<String>,
    /// When it was started, in seconds since 1970.
    pub since: u64,
    /// The file that the console's output is written to.
    pub log: Option<String>,
    /// `lxc.signal.halt`.
    pub halt: Option<i32>,
    /// The lines of /proc/PID/cgroup of its own cgroups, as they were when it took its cgroup namespace.
    #[serde(default)]
    pub cgroups: Vec<String>,
    /// Whether the supervisor has hooks to run when it has ended, which take their time.
    #[serde(default)]
    pub hooks_at_end: bool,
    /// How it was started.
    pub origin: Origin,
}

impl Record {
    /// The record of a container of which only the process is known.
    #[must_use]
    pub fn new(name: &str, pid: i32, start: u64) -> Self {
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs());
        Self {
            version: VERSION,
            name: name.to_owned(),
            state: Phase::Starting,
            supervisor: nix::unistd::getpid().as_raw(),
            pid,
            start,
            detached: false,
            init: false,
            single_id: false,
            rootfs: String::new(),
            config: None,
            digest: None,
            command: Vec::new(),
            since,
            log: None,
            halt: None,
            cgroups: Vec::new(),
            hooks_at_end: false,
            origin: Origin::default(),
        }
    }

    /// A pidfd of process 1, if it still is that process.
    #[must_use]
    pub fn process(&self) -> Option<OwnedFd> {
        if self.pid <= 0 {
            return None;
        }
        let pidfd = life::sys::open_process(self.pid).ok()?;
        // Looked at after the pidfd was opened: a process that has the number by now has another start time.
        let stat = std::fs::read(format!("/proc/{}/stat", self.pid)).ok()?;
        (start_time(&stat) == Some(self.start)).then_some(pidfd)
    }
}

/// Why [`Claim::take`] gives no claim.
#[derive(Debug)]
pub enum Denied {
    /// A live container has the name.
    Taken,
    /// Anything else.
    Failed(Failure),
}

impl From<Failure> for Denied {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// A name that is this process's own until it ends; its directory is removed then.
#[derive(Debug)]
pub struct Claim {
    name: String,
    directory: OwnedFd,
    path: PathBuf,
    file: std::fs::File,
    length: usize,
    /// Only this process removes anything, no copy of it that a fork made.
    owner: nix::unistd::Pid,
}

impl Claim {
    /// Takes `name`, and repairs what a killed supervisor has left under it.
    ///
    /// # Errors
    /// [`Denied::Taken`], or when the directory cannot be made.
    pub fn take(name: &str) -> Result<Self, Denied> {
        let uid = nix::unistd::geteuid().as_raw();
        let top = top(uid);
        make_private(&top, uid)?;
        let path = top.join(name);
        // Again when another process removed between our open and our lock what we opened.
        for _ in 0..100 {
            make_private(&path, uid)?;
            let Some(directory) = open_directory(&path)? else { continue };
            let file = match open_record(&directory, OFlag::O_RDWR | OFlag::O_CREAT) {
                Err(Errno::ENOENT) => continue,
                result => result.map_err(|errno| cannot("make", &path.join(RECORD), errno))?,
            };
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
                Err(Errno::EAGAIN | Errno::EACCES) => return Err(Denied::Taken),
                result => result.map_err(|errno| cannot("lock", &path.join(RECORD), errno))?,
            };
            if file.metadata().is_ok_and(|data| data.nlink() == 0) {
                continue;
            }
            let mut claim =
                Self { name: name.to_owned(), directory, path, file, length: 0, owner: nix::unistd::getpid() };
            claim.repair()?;
            return Ok(claim);
        }
        Err(Denied::Failed(Failure::own(format!("cannot make {}: another process removes it again", path.display()))))
    }

    /// What a supervisor that was killed has left: a container that has outlived it is ended, a socket removed.
    fn repair(&mut self) -> Outcome<()> {
        self.length = usize::try_from(self.file.metadata().map_or(0, |data| data.len())).unwrap_or(0);
        if self.length == 0 {
            return Ok(());
        }
        if let Some(record) = read(&self.file) {
            end(&record)?;
        }
        let _ = std::fs::remove_file(self.at(SOCKET));
        Ok(())
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Below the directory, wherever that was moved to.
    fn at(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd()))
    }

    /// Writes the record in place.
    ///
    /// # Errors
    /// When the file system is full, say.
    pub fn write(&mut self, record: &Record) -> Outcome<()> {
        let fail =
            |error: std::io::Error| Failure::own(format!("cannot write {}: {error}", self.path.join(RECORD).display()));
        let mut text = serde_json::to_vec(record).map_err(|error| fail(error.into()))?;
        text.resize(text.len().next_multiple_of(PADDING).saturating_sub(1), b' ');
        text.push(b'\n');
        self.file.write_all_at(&text, 0).map_err(fail)?;
        if text.len() < self.length {
            self.file.set_len(text.len() as u64).map_err(fail)?;
        }
        self.length = text.len();
        Ok(())
    }

    /// Makes the socket, listening and nonblocking.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn listen(&self) -> Outcome<OwnedFd> {
        let fail = |errno| cannot("make the socket", &self.path.join(SOCKET), errno);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(fail)?;
        let address = UnixAddr::new(&self.at(SOCKET)).map_err(fail)?;
        bind(listener.as_raw_fd(), &address).map_err(fail)?;
        listen(&listener, Backlog::new(64).map_err(fail)?).map_err(fail)?;
        Ok(listener)
    }

    /// The descriptors that keep the claim, for a program that is executed in this process's place: directory and
    /// record.
    #[must_use]
    pub fn descriptors(&self) -> [i32; 2] {
        [self.directory.as_raw_fd(), self.file.as_raw_fd()]
    }

    /// Takes a claim over that was handed on by [`Claim::descriptors`].
    ///
    /// # Errors
    /// When they are not open.
    pub fn resume(name: &str, directory: OwnedFd, file: OwnedFd) -> Outcome<Self> {
        let path = top(nix::unistd::geteuid().as_raw()).join(name);
        let file = std::fs::File::from(file);
        let data = file.metadata().map_err(|error| Failure::own(format!("cannot keep the name {name}: {error}")))?;
        let length = usize::try_from(data.len()).unwrap_or(0);
        Ok(Self { name: name.to_owned(), directory, path, file, length, owner: nix::unistd::getpid() })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if nix::unistd::getpid() == self.owner {
            // The record last: as long as it is there and locked, nobody else touches the rest.
            let _ = std::fs::remove_file(self.at(SOCKET));
            let _ = std::fs::remove_file(self.at(RECORD));
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

fn cannot(what: &str, path: &Path, errno: Errno) -> Failure {
    Failure::own(format!("cannot {what} {}: {}", path.display(), words(errno)))
}

/// `None`: it has been removed just now.
fn open_directory(path: &Path) -> Outcome<Option<OwnedFd>> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match nix::fcntl::open(path, flags, Mode::empty()) {
        Err(Errno::ENOENT) => Ok(None),
        result => result.map(Some).map_err(|errno| cannot("open", path, errno)),
    }
}

fn open_record(directory: &OwnedFd, flags: OFlag) -> Result<std::fs::File, Errno> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    nix::fcntl::openat(directory, RECORD, flags, Mode::from_bits_truncate(0o600)).map(std::fs::File::from)
}

fn whole_file() -> libc::flock {
    let kind = |n: i32| i16::try_from(n).unwrap_or(0);
    libc::flock { l_type: kind(libc::F_WRLCK), l_whence: kind(libc::SEEK_SET), l_start: 0, l_len: 0, l_pid: 0 }
}

fn is_locked(file: &std::fs::File) -> bool {
    let mut lock = whole_file();
    let asked = fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock));
    asked.is_ok() && i32::from(lock.l_type) != libc::F_UNLCK
}

fn read(file: &std::fs::File) -> Option<Record> {
    // A few times: it may be written just now.
    for _ in 0..20 {
        let length = file.metadata().map_or(0, |data| data.len()).min(MAX_RECORD);
        let mut text = vec![0; usize::try_from(length).unwrap_or(0)];
        if file.read_exact_at(&mut text, 0).is_ok()
            && let Ok(record) = serde_json::from_slice::<Record>(&text)
        {
            return (record.version == VERSION).then_some(record);
        }
        if length == 0 {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

/// Ends process 1 of a container whose supervisor is gone, and with it the whole container.
fn end(record: &Record) -> Outcome<()> {
    let Some(pidfd) = record.process() else { return Ok(()) };
    let _ = sys::signal_process(pidfd.as_fd(), libc::SIGKILL);
    if ends_within(&pidfd, REPAIR) {
        return Ok(());
    }
    Err(Failure::own(format!(
        "the supervisor of {} was killed, and its process {} does not end by SIGKILL: it waits for a device, or is frozen",
        record.name, record.pid
    )))
}

/// Whether the process behind `pidfd` ends within `time`.
#[must_use]
pub fn ends_within(pidfd: &OwnedFd, time: Duration) -> bool {
    let deadline = Instant::now() + time;
    loop {
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, time_left(Some(deadline))) {
            Err(Errno::EINTR) => {}
            Ok(1) => return true,
            _ => return false,
        }
    }
}

/// The record of `name` if a supervisor lives that has it. What a killed one has left is repaired on the way.
///
/// # Errors
/// When it cannot be repaired, or the run state is not this user's own.
pub fn find(name: &str) -> Outcome<Option<Record>> {
    let uid = nix::unistd::geteuid().as_raw();
    let path = top(uid).join(name);
    if !crate::cli::is_name(name) {
        return Ok(None);
    }
    // It may be between its start and its first record.
    for _ in 0..200 {
        if std::fs::symlink_metadata(&path).is_err() {
            return Ok(None);
        }
        private(path.parent().unwrap_or(&path), uid)?;
        private(&path, uid)?;
        let Some(directory) = open_directory(&path)? else { return Ok(None) };
        let Ok(file) = open_record(&directory, OFlag::O_RDONLY) else { return Ok(None) };
        if !is_locked(&file) {
            return match Claim::take(name) {
                // Dropped at once, and the directory with it.
                Ok(_) => Ok(None),
                Err(Denied::Taken) => continue,
                Err(Denied::Failed(failure)) => Err(failure),
            };
        }
        if let Some(record) = read(&file) {
            return Ok(Some(record));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Err(Failure::own(format!("{} is held by a program that does not write it", path.join(RECORD).display())))
}

/// When the container `name` has ended and its supervisor tidies up, waits for that, a short time.
pub fn let_go(name: &str) {
    let begin = Instant::now();
    while begin.elapsed() < TIDYING {
        let Ok(Some(record)) = find(name) else { return };
        if record.process().is_some() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// All live containers, by name. What killed supervisors have left is repaired on the way.
///
/// # Errors
/// As [`find`].
pub fn all() -> Outcome<Vec<Record>> {
    let uid = nix::unistd::geteuid().as_raw();
    let top = top(uid);
    if std::fs::symlink_metadata(&top).is_err() {
        return Ok(Vec::new());
    }
    private(&top, uid)?;
    crate::hold::sweep(&top);
    let mut records = Vec::new();
    for entry in std::fs::read_dir(&top).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !crate::cli::is_name(&name) {
            continue;
        }
        if entry.path().join(RECORD).exists() {
            records.extend(find(&name)?);
        } else if !crate::hold::is_of_a_holder(&name) {
            // A supervisor was killed before it made its record. One that is just about to makes the directory again.
            let _ = std::fs::remove_dir(entry.path());
        }
    }
    records.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(records)
}

/// Connects to the supervisor of `name`.
///
/// # Errors
/// When it does not listen.
pub fn reach(name: &str) -> Outcome<OwnedFd> {
    let path = top(nix::unistd::geteuid().as_raw()).join(name);
    let fail = |errno| cannot(&format!("reach the supervisor of {name} at"), &path.join(SOCKET), errno);
    let Some(directory) = open_directory(&path)? else { return Err(fail(Errno::ENOENT)) };
    let connection = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).map_err(fail)?;
    // A supervisor that is stopped does not accept: its backlog fills, and then connect(2) would wait.
    let timeout = nix::sys::time::TimeVal::new(5, 0);
    let _ = nix::sys::socket::setsockopt(&connection, nix::sys::socket::sockopt::SendTimeout, &timeout);
    let address = UnixAddr::new(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()).as_str()).map_err(fail)?;
    connect(connection.as_raw_fd(), &address).map_err(fail)?;
    Ok(connection)
}

/// Opens a file of the caller's for appending, made with mode 0600 when it is missing.
///
/// # Errors
/// When it cannot be opened or is no regular file.
pub fn open_log(path: &Path) -> Outcome<std::fs::File> {
    let fail = |why: String| Failure::own(format!("cannot write the console's output to {}: {why}", path.display()));
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path);
    let file = file.map_err(|error| fail(error.to_string()))?;
    if !file.metadata().is_ok_and(|data| data.is_file()) {
        return Err(fail("it is no regular file".to_owned()));
    }
    Ok(file)
}
