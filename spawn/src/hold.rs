//! `spawn hold`: a container that waits, a handoff record about it, and a holder in the background that serves the
//! control socket of userns-handoff(7).

#![forbid(unsafe_code)]

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use helper::handoff::Record;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};

use crate::ambient;
use crate::child::{Child, Map, Tools};
use crate::cli::Options;
use crate::client::{Client, Request};
use crate::console::Stdio;
use crate::failure::{Failure, OWN_FAILURE, Outcome, words};
use crate::life::{Life, server};
use crate::plan::Plan;
use crate::supervise::{Signals, Supervisor, time_left};
use crate::{complain, supervise, sys};

/// The directory of one container's run state; removed at the end.
struct RunDirectory {
    path: PathBuf,
    owner: nix::unistd::Pid,
}

impl RunDirectory {
    /// Makes `$XDG_RUNTIME_DIR/spawn/NAME.PID` or, without a usable $XDG_RUNTIME_DIR, the same in /tmp/spawn-UID.
    fn make(name: &str) -> Outcome<Self> {
        let uid = nix::unistd::geteuid().as_raw();
        let top = top(uid);
        make_private(&top, uid)?;
        sweep(&top);
        let owner = nix::unistd::getpid();
        let path = top.join(format!("{name}.{owner}"));
        // Left over from a holder that was killed and whose pid is now ours.
        let _ = std::fs::remove_file(path.join("control"));
        make_private(&path, uid)?;
        Ok(Self { path, owner })
    }

    fn socket(&self) -> PathBuf {
        self.path.join("control")
    }
}

/// The directory of this user's run state: `$XDG_RUNTIME_DIR/spawn`, or /tmp/spawn-UID without a usable one.
#[must_use]
pub fn top(uid: u32) -> PathBuf {
    let runtime = ambient::directory("XDG_RUNTIME_DIR");
    let runtime = runtime.filter(|path| private(path, uid).is_ok());
    runtime.map_or_else(|| PathBuf::from(format!("/tmp/spawn-{uid}")), |path| path.join("spawn"))
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        if nix::unistd::getpid() == self.owner {
            let _ = std::fs::remove_file(self.socket());
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

/// Removes what holders have left that were killed: sockets that nobody listens on, and directories without one whose
/// maker is gone and which are too old for one to be made just now.
pub fn sweep(top: &Path) {
    const YOUNG: Duration = Duration::from_secs(2);
    for entry in std::fs::read_dir(top).into_iter().flatten().flatten() {
        clear_up(&entry.path().join("control"));
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| name.rsplit('.').next()?.parse::<u32>().ok());
        let gone = maker.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        let age = entry.metadata().and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
        if gone && age.is_some_and(|age| age > YOUNG) {
            // Fails, as it should, where it holds anything.
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

/// Removes the socket of a holder that was killed, and the directory made for it. One that listens is left alone; one
/// that is stopped is not waited for.
pub fn clear_up(control: &Path) {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let Ok(address) = UnixAddr::new(control) else { return };
    let Ok(connection) = socket(AddressFamily::Unix, SockType::Stream, flags, None) else { return };
    let abandoned = connect(connection.as_raw_fd(), &address) == Err(Errno::ECONNREFUSED);
    if abandoned && std::fs::remove_file(control).is_ok() {
        // Fails, as it should, where it holds anything else.
        let _ = control.parent().map(std::fs::remove_dir);
    }
}

/// Makes a directory with mode 0700 unless it is there.
///
/// # Errors
/// As [`private`].
pub fn make_private(path: &Path, uid: u32) -> Outcome<()> {
    // Again when another process found it empty and removed it.
    for _ in 0..100 {
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Failure::own(format!("cannot make the directory {}: {error}", path.display())));
            }
            _ if std::fs::symlink_metadata(path).is_ok() => break,
            _ => {}
        }
    }
    private(path, uid)
}

/// Whether `name` is that of a holder's directory, NAME.PID, which [`sweep`] sees to.
#[must_use]
pub fn is_of_a_holder(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, pid)| pid.parse::<u32>().is_ok())
}

/// A real directory of this user that nobody else can enter.
///
/// # Errors
/// When it is none.
pub fn private(path: &Path, uid: u32) -> Outcome<()> {
    let wrong = |why: String| Failure::own(format!("{} cannot hold the run state: {why}", path.display()));
    let data = std::fs::symlink_metadata(path).map_err(|error| wrong(error.to_string()))?;
    if !data.is_dir() || data.uid() != uid || data.mode() & 0o077 != 0 {
        return Err(wrong(format!(
            "it must be a directory of uid {uid} with mode 700, and belongs to uid {} with mode {:o}; set XDG_RUNTIME_DIR to a directory of your own",
            data.uid(),
            data.mode() & 0o7777
        )));
    }
    Ok(())
}

/// Starts the holder in the background and returns when it has written the record: the exit status of `spawn hold`.
///
/// # Errors
/// When this process cannot even start it; the holder prints its own errors.
pub fn hold(plan: Plan, options: &Options, map: &Map, tools: Option<&Tools>) -> Outcome<u8> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|errno| Failure::own(format!("cannot make a pipe: {}", words(errno))))?;
    match sys::fork().map_err(|errno| Failure::own(format!("cannot start the holder: {}", words(errno))))? {
        Some(pid) => {
            drop(writer);
            let mut code = [0_u8];
            match sys::read(reader.as_raw_fd(), &mut code) {
                Ok(1) => Ok(code[0]),
                _ => {
                    let path = top(nix::unistd::geteuid().as_raw()).join(format!("{}.{pid}", plan.name));
                    clear_up(&path.join("control"));
                    let _ = std::fs::remove_dir(path);
                    Err(Failure::own("the holder has died"))
                }
            }
        }
        None => {
            drop(reader);
            let code = holder(plan, options, map, tools, writer).unwrap_or_else(|failure| {
                complain(&failure.text);
                failure.code
            });
            crate::console::restore_terminal();
            sys::exit_now(i32::from(code));
        }
    }
}

fn holder(mut plan: Plan, options: &Options, map: &Map, tools: Option<&Tools>, started: OwnedFd) -> Outcome<u8> {
    let tell = |code: u8| {
        let _ = nix::unistd::write(&started, &[code]);
    };
    match Holder::start(&mut plan, options, map, tools) {
        Ok(holder) => {
            tell(0);
            drop(started);
            holder.serve(&plan)
        }
        Err(failure) => {
            complain(&failure.text);
            tell(failure.code);
            Ok(failure.code)
        }
    }
}

struct Holder {
    child: Child,
    /// Its name and socket in the run state.
    life: Life,
    signals: Signals,
    listener: UnixListener,
    directory: RunDirectory,
    name: String,
    timeout: Duration,
    /// The answer to `mapped`, once it is known.
    network: Option<Result<(), String>>,
}

/// Why the wait for `go` ended.
enum Turn {
    Go(Client, Option<[OwnedFd; 3]>),
    End(u8),
}

impl Holder {
    fn start(plan: &mut Plan, options: &Options, map: &Map, tools: Option<&Tools>) -> Outcome<Self> {
        // A session of its own: signals of the terminal are for the pipeline, and `go` passes them on.
        let _ = nix::unistd::setsid();
        let signals = Signals::block()?;
        let mut life = Life::of_a_holder()?;
        let child = Child::start(plan)?;
        let made =
            life.register(plan, options, &child).and_then(|()| RunDirectory::make(&plan.name)).and_then(|directory| {
                let socket = directory.socket();
                UnixListener::bind(&socket)
                    .and_then(|listener| listener.set_nonblocking(true).map(|()| (directory, listener)))
                    .map_err(|error| Failure::own(format!("cannot make the socket {}: {error}", socket.display())))
            });
        let (directory, listener) = match made {
            Ok(made) => made,
            Err(failure) => {
                child.end();
                return Err(failure);
            }
        };
        let (name, timeout) = (plan.name.clone(), options.timeout);
        let mut holder = Self { child, life, signals, listener, directory, name, timeout, network: None };
        if let Err(failure) = holder.announce(map, tools) {
            holder.child.end();
            return Err(failure);
        }
        Ok(holder)
    }

    /// Writes the map where no stage does, and the record.
    fn announce(&mut self, map: &Map, tools: Option<&Tools>) -> Outcome<()> {
        if let Some(tools) = tools {
            let mapping = self.child.begin_map(map, tools)?;
            self.child.finish_map(mapping, Instant::now() + self.timeout)?;
            self.map_written(Instant::now() + self.timeout).map_err(Failure::own)?;
        }
        let pid = self.child.pid;
        let start = self.child.start_time()?;
        let mut record = Record::new(pid, start);
        let socket = self.directory.socket();
        for (key, value) in [("name", self.name.as_str()), ("control", &socket.to_string_lossy())] {
            record.set(key, value).map_err(|error| Failure::own(error.to_string()))?;
        }
        writeln!(std::io::stdout(), "{record}")
            .map_err(|error| Failure::own(format!("cannot write the handoff record: {error}")))?;
        // The pipeline goes on: nothing of it is held any longer but standard error.
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
        let null = null.map_err(|error| Failure::own(format!("cannot open /dev/null: {error}")))?;
        for fd in [0, 1] {
            sys::duplicate_to(null.as_raw_fd(), fd)
                .map_err(|errno| Failure::own(format!("cannot let go of standard output: {}", words(errno))))?;
        }
        Ok(())
    }

    /// Tells the child that its map is written and waits until its network namespace is there. Once only; asked again,
    /// the answer is the same.
    fn map_written(&mut self, deadline: Instant) -> Result<(), String> {
        if let Some(answer) = &self.network {
            return answer.clone();
        }
        let made = self.child.check_map().and_then(|()| self.child.make_network(deadline));
        let answer = made.map_err(|failure| failure.text);
        if answer.is_err() {
            // There is one map for a process, so nothing better can come.
            self.child.end();
        }
        self.network = Some(answer.clone());
        answer
    }

    fn serve(mut self, plan: &Plan) -> Outcome<u8> {
        let deadline = Instant::now() + self.timeout;
        match self.wait_for_go(deadline)? {
            Turn::End(code) => {
                self.child.end();
                Ok(code)
            }
            Turn::Go(mut client, fds) => {
                if let Err(text) = self.map_written(deadline) {
                    client.say(&format!("failed {text}"));
                    client.say("exited 125");
                    self.child.end();
                    return Ok(125);
                }
                let stdio = match fds {
                    Some(fds) => Stdio::new(fds),
                    None => Stdio::new(nothing()?),
                };
                let Self { child, mut life, signals, timeout, directory, listener, .. } = self;
                // Nobody else is listened to any more, and nobody is to wait for it.
                drop((listener, directory));
                // The stages before have moved it where it belongs; it takes its cgroup namespace next.
                life.stands_in(own_places(child.pid));
                let deadline = Instant::now() + timeout;
                let result = Supervisor::release(child, plan, stdio, signals, deadline, Some(client))
                    .and_then(|supervisor| supervisor.with(life).watch(|| ()));
                // A container of a holder has one turn only.
                let result =
                    result.map(|turn| if let supervise::Turn::Ended(code) = turn { code } else { OWN_FAILURE });
                // The client has been told, and prints it.
                Ok(result.unwrap_or_else(|failure| failure.code))
            }
        }
    }

    fn wait_for_go(&mut self, deadline: Instant) -> Outcome<Turn> {
        let mut clients: Vec<Client> = Vec::new();
        loop {
            let mut fds = vec![
                PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.child.pidfd.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            fds.extend(clients.iter().map(|client| PollFd::new(client.as_fd(), PollFlags::POLLIN)));
            let served = fds.len();
            let mut sources: Vec<server::End> = Vec::new();
            for (end, fd, events) in self.life.interests() {
                sources.push(end);
                fds.push(PollFd::new(fd, events));
            }
            match poll(&mut fds, time_left(Some(deadline))) {
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Failure::own(format!("cannot wait for `go`: {}", words(errno)))),
                Ok(0) => {
                    return Err(self.give_up(format!(
                        "no `go` came for {} within {} s: given up",
                        self.name,
                        self.timeout.as_secs_f64()
                    )));
                }
                Ok(_) => {}
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            let events: Vec<PollFlags> =
                fds.iter().skip(served).map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
            drop(fds);
            for (end, events) in sources.into_iter().zip(events).filter(|(_, events)| !events.is_empty()) {
                self.life.serve(end, events, self.child.pidfd.as_fd());
            }
            self.life.sweep();
            if ready.get(1) == Some(&true) {
                let said = self.child.last_words().map(|failure| failure.text);
                let text = said.unwrap_or_else(|| format!("the held process of {} has ended", self.name));
                return Err(self.give_up(text));
            }
            if ready.get(2) == Some(&true) {
                return Ok(Turn::End(125));
            }
            let mut kept = Vec::new();
            for mut client in clients {
                match self.answer(&mut client, deadline) {
                    Answer::Keep => kept.push(client),
                    Answer::Close => {}
                    Answer::Go(fds) => return Ok(Turn::Go(client, fds)),
                    Answer::Abort => return Ok(Turn::End(125)),
                }
            }
            clients = kept;
            if ready.first() == Some(&true)
                && let Ok((stream, _)) = self.listener.accept()
            {
                clients.extend(Client::accept(stream));
            }
        }
    }

    fn answer(&mut self, client: &mut Client, deadline: Instant) -> Answer {
        loop {
            match client.next() {
                Request::Mapped => match self.map_written(deadline) {
                    Ok(()) => client.say("net"),
                    Err(text) => client.say(&format!("failed {text}")),
                },
                Request::Go(fds) => return Answer::Go(fds),
                Request::Abort => {
                    // First: the name is then taken by nobody who lives.
                    self.child.end();
                    client.say("exited 125");
                    return Answer::Abort;
                }
                Request::Signal(_) => {}
                Request::Unknown => client.say("failed unknown request (see userns-handoff(7))"),
                Request::Nothing => return Answer::Keep,
                Request::End => return Answer::Close,
            }
        }
    }

    fn give_up(&self, text: String) -> Failure {
        self.child.end();
        Failure::own(text)
    }
}

/// The lines of /proc/PID/cgroup by which a process stands elsewhere than this one.
fn own_places(pid: i32) -> Vec<String> {
    let lines = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let (its, ours) = (lines(&pid.to_string()), lines("self"));
    its.lines().filter(|line| !ours.lines().any(|own| own == *line)).map(str::to_owned).collect()
}

enum Answer {
    Keep,
    Close,
    Go(Option<[OwnedFd; 3]>),
    Abort,
}

/// /dev/null three times.
fn nothing() -> Outcome<[OwnedFd; 3]> {
    let open = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let all = || Ok([open()?, open()?, open()?]);
    all().map_err(|error: std::io::Error| Failure::own(format!("cannot open /dev/null: {error}")))
}
