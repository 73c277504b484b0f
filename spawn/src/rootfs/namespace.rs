//! A user namespace of our own, in which a child works as the container's root.
//!
//! Inside, every id means what it means outside: the maps are identities, of the ids that the work may touch and of the
//! caller's own. So nothing has to be translated when a file is looked at, an id that is not mapped cannot be confused
//! with one that is, and the kernel refuses every other id by itself, also when real root is at work. The child takes
//! the host ids of the container's root, and has every capability over the mapped ids and no other.

#![forbid(unsafe_code)]

use super::error::{Error, NOT_PERMITTED, Result, SYSTEM, UNAVAILABLE, at};
use super::map::Map;
use super::sys;
use helper::range::{IdKind, IdRange};
use helper::report::reason;
use helper::userns::forbidden;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, pipe2, setresgid, setresuid};
use serde::{Serialize, de::DeserializeOwned};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Which ids a child may touch, and which it takes.
#[derive(Clone, Debug)]
pub struct Ids {
    uids: Vec<IdRange>,
    gids: Vec<IdRange>,
    root: (u32, u32),
    /// The caller's own uid and gid, as they are outside.
    own: (u32, u32),
}

impl Ids {
    /// The ids of `map`, and the caller's own.
    ///
    /// # Errors
    /// The map has no root.
    pub fn of(map: &Map) -> Result<Self> {
        let own = (Uid::current().as_raw(), Gid::current().as_raw());
        let mut ids = Self { uids: Vec::new(), gids: Vec::new(), root: map.root()?, own };
        ids.add(map);
        ids.add(&Map::single(own.0, own.1));
        Ok(ids)
    }

    /// Adds the host ids of another map. Ids that are there already stay once.
    pub fn add(&mut self, map: &Map) {
        for (kind, list) in [(IdKind::Uid, &mut self.uids), (IdKind::Gid, &mut self.gids)] {
            for new in map.host_ranges(kind) {
                let mut fresh = vec![new];
                for old in list.iter() {
                    fresh =
                        fresh.into_iter().flat_map(|r| <[Option<IdRange>; 2]>::from(r.minus(*old))).flatten().collect();
                }
                list.extend(fresh);
            }
        }
    }

    fn of_kind(&self, kind: IdKind) -> &[IdRange] {
        match kind {
            IdKind::Uid => &self.uids,
            IdKind::Gid => &self.gids,
        }
    }

    /// Whether these are the caller's own two ids and no more: then no helper is needed.
    fn are_own(&self) -> bool {
        let own = |list: &[IdRange], id: u32| matches!(list, [one] if one.start() == id && one.count() == 1);
        self.own.0 != 0 && own(&self.uids, self.own.0) && own(&self.gids, self.own.1)
    }
}

/// Runs `work` in a child with these ids and gives its result. Signals that would end this process end the child
/// instead; what it has left is the caller's to clear away.
///
/// # Errors
/// The namespace cannot be made or mapped (69, 77), the child died (71), or what `work` says.
pub fn run<T: Serialize + DeserializeOwned>(ids: &Ids, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let (answer_read, answer_write) = pipe()?;
    let (go_read, go_write) = pipe()?;
    let parent = Pid::this();
    let child = sys::fork(|| {
        sys::default_signals();
        // The parent's ends: end of file must mean that the parent is gone.
        let _ = (nix::unistd::close(answer_read.as_raw_fd()), nix::unistd::close(go_write.as_raw_fd()));
        child(ids, parent, File::from(go_read), File::from(answer_write), work)
    })
    .map_err(at("fork", "a child for the user namespace"))?;
    sys::pass_signals_to(child);
    // fork takes the closure by value, so the child's ends of the pipes are closed here already.
    let result = supervise(ids, child, File::from(answer_read), File::from(go_write));
    let status = wait(child);
    sys::pass_signals_to_nobody();
    match (result, status) {
        (_, Ok(WaitStatus::Signaled(_, signal, _))) if sys::signal_seen().is_some() => {
            Err(Error::new(128_u8.saturating_add(u8::try_from(signal as i32).unwrap_or(0)), "interrupted"))
        }
        (Ok(None) | Err(_), Ok(WaitStatus::Signaled(_, signal, _))) => {
            Err(Error::new(SYSTEM, format!("the child in the user namespace was ended by {}", signal.as_str())))
        }
        (Ok(None), _) => Err(Error::new(70, "the child in the user namespace ended without an answer")),
        (Ok(Some(answer)), _) => answer,
        (Err(error), _) => Err(error),
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(at("make", "a pipe"))
}

fn wait(child: Pid) -> core::result::Result<WaitStatus, Errno> {
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

fn child<T: Serialize>(
    ids: &Ids,
    parent: Pid,
    mut go: File,
    mut answer: File,
    work: impl FnOnce() -> Result<T>,
) -> i32 {
    let result = enter(ids, parent, &mut go, &mut answer).and_then(|()| work());
    let plain = result.map_err(|error| (error.status, error.text));
    let text = serde_json::to_vec(&plain).unwrap_or_default();
    i32::from(answer.write_all(&text).is_err())
}

fn enter(ids: &Ids, parent: Pid, go: &mut File, answer: &mut File) -> Result<()> {
    die_with_parent(parent)?;
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(refused)?;
    if ids.are_own() {
        let (uid, gid) = ids.root;
        write_file("/proc/self/setgroups", "deny")?;
        write_file("/proc/self/uid_map", &format!("{uid} {uid} 1\n"))?;
        write_file("/proc/self/gid_map", &format!("{gid} {gid} 1\n"))?;
    }
    answer.write_all(b"u").map_err(super::error::io_at("write to", "the parent"))?;
    let mut byte = [0];
    if !matches!(go.read(&mut byte), Ok(1)) {
        return Err(Error::new(SYSTEM, "the parent has given up"));
    }
    let (uid, gid) = (Uid::from_raw(ids.root.0), Gid::from_raw(ids.root.1));
    // When real root is at work, 0 is mapped, and leaving it would take the capabilities away.
    sys::keep_capabilities().map_err(at("prctl", "PR_SET_SECUREBITS"))?;
    setresgid(gid, gid, gid).map_err(at("become", "the container's group 0"))?;
    setresuid(uid, uid, uid).map_err(at("become", "the container's root"))?;
    // A change of ids undoes it.
    die_with_parent(parent)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    Ok(())
}

fn die_with_parent(parent: Pid) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(at("prctl", "PR_SET_PDEATHSIG"))?;
    if nix::unistd::getppid() == parent { Ok(()) } else { Err(Error::new(SYSTEM, "the parent is gone")) }
}

fn refused(errno: Errno) -> Error {
    let why = forbidden().unwrap_or_else(|| format!("unshare(CLONE_NEWUSER): {}", errno.desc()));
    Error::new(UNAVAILABLE, format!("cannot make a user namespace: {why}"))
}

fn write_file(path: &str, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(super::error::io_at("write", path))
}

type Answer<T> = Option<Result<T>>;

fn supervise<T: DeserializeOwned>(ids: &Ids, child: Pid, mut answer: File, mut go: File) -> Result<Answer<T>> {
    let mut first = [0];
    let count = loop {
        match answer.read(&mut first) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => break other.unwrap_or(0),
        }
    };
    let mut text = Vec::new();
    if count == 1 && first == *b"u" {
        if Uid::current().is_root() {
            write_maps(ids, child)?;
        } else if !ids.are_own() {
            run_helpers(ids, child)?;
        }
        let _ = go.write_all(b"g");
    } else {
        text.extend_from_slice(first.get(..count).unwrap_or_default());
    }
    drop(go);
    answer.read_to_end(&mut text).map_err(super::error::io_at("read from", "the child"))?;
    if text.is_empty() {
        return Ok(None);
    }
    let result: core::result::Result<T, (u8, String)> =
        serde_json::from_slice(&text).map_err(|error| Error::new(70, format!("the child's answer: {error}")))?;
    Ok(Some(result.map_err(|(status, text)| Error { text, status })))
}

/// As root: the maps, without any helper.
fn write_maps(ids: &Ids, child: Pid) -> Result<()> {
    for kind in [IdKind::Uid, IdKind::Gid] {
        let text: String =
            ids.of_kind(kind).iter().map(|r| format!("{} {} {}\n", r.start(), r.start(), r.count())).collect();
        let path = format!("/proc/{child}/{}", kind.map_file());
        std::fs::write(&path, text).map_err(|error| {
            let why = reason(&error);
            let hint = "root of this namespace does not have all of the ids in it";
            Error::new(NOT_PERMITTED, format!("write {path}: {why} ({hint})"))
        })?;
    }
    Ok(())
}

/// As anyone else: newuidmap and newgidmap, both at once.
fn run_helpers(ids: &Ids, child: Pid) -> Result<()> {
    let start = |kind: IdKind| {
        let path = map_program(kind)?;
        let numbers = ids.of_kind(kind).iter().flat_map(|r| [r.start(), r.start(), r.count()]).map(|n| n.to_string());
        let mut command = Command::new(&path);
        command.arg(child.to_string()).args(numbers).env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let running = command.spawn().map_err(super::error::io_at("run", path.display()))?;
        Ok((kind, running))
    };
    let children = [start(IdKind::Uid)?, start(IdKind::Gid)?];
    let mut result = Ok(());
    for (kind, running) in children {
        let name = kind.map_program();
        let output = running.wait_with_output().map_err(super::error::io_at("wait for", name))?;
        if !output.status.success() && result.is_ok() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or("it said nothing").trim().to_owned();
            let said = said.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&said).to_owned();
            result = Err(Error::new(NOT_PERMITTED, format!("{name} has not written the {}: {said}", kind.map_file())));
        }
    }
    result
}

/// newuidmap or newgidmap, by absolute path: beside this program, in ../libexec/userns-helpers or ../libexec, in PATH,
/// in /usr/bin; the first one that has its privilege.
///
/// # Errors
/// There is none, or none that has the privilege (69).
pub fn map_program(kind: IdKind) -> Result<PathBuf> {
    let name = kind.map_program();
    let mut powerless = None;
    for path in program_directories().into_iter().map(|directory| directory.join(name)) {
        match privilege(&path) {
            Some(true) => return Ok(path),
            Some(false) => powerless = powerless.or(Some(path)),
            None => {}
        }
    }
    let capability = match kind {
        IdKind::Uid => "cap_setuid",
        IdKind::Gid => "cap_setgid",
    };
    Err(Error::new(
        UNAVAILABLE,
        match powerless {
            Some(path) => {
                let path = path.display();
                format!(
                    "{path} has no privilege (as root: chown root {path} && chmod 4755 {path}, or setcap {capability}=ep {path})"
                )
            }
            None => {
                format!("{name} not found in PATH: install userns-helpers or your distribution's uidmap (shadow-utils)")
            }
        },
    ))
}

/// Where the suite's programs are looked for.
#[must_use]
pub fn program_directories() -> Vec<PathBuf> {
    let mut directories = Vec::new();
    if let Some(own) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        directories.push(own.to_owned());
        if let Some(prefix) = own.parent() {
            directories.push(prefix.join("libexec/userns-helpers"));
            directories.push(prefix.join("libexec"));
        }
    }
    #[expect(clippy::disallowed_methods, reason = "this program has no privilege, and finding the helpers is its job")]
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    directories.extend(std::env::split_paths(&path).filter(|directory| directory.is_absolute()));
    directories.push(PathBuf::from("/usr/bin"));
    directories
}

/// Whether a program has privilege: set-user-ID root or file capabilities. `None`: it is not there.
#[must_use]
pub fn privilege(path: &Path) -> Option<bool> {
    let found = std::fs::metadata(path).ok().filter(|m| m.is_file() && m.mode() & 0o111 != 0)?;
    if found.mode() & 0o4000 != 0 && found.uid() == 0 {
        return Some(true);
    }
    // One that may be executed but not read is taken at its word.
    let Ok(file) = File::open(path) else { return Some(true) };
    Some(sys::get_xattr(&file, c"security.capability").ok().flatten().is_some())
}
