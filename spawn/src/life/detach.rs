//! `spawn run --detach`: the start in a process of its own, which then executes this program again as a supervisor that
//! holds nothing but descriptors. For a container that reboots it executes the start once more.

#![forbid(unsafe_code)]

use std::ffi::CString;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::log::{Log, Settings};
use super::ring::Ring;
use super::server::Server;
use super::{Background, Cgroups, Life, watch};
use crate::cgroup::Remains;
use crate::cli::Options;
use crate::failure::{Failure, OWN_FAILURE, Outcome, USAGE, one_line, words};
use crate::hooks::AtEnd;
use crate::state::{Claim, Record};
use crate::status::{State, Status};
use crate::supervise::{Supervisor, Turn};
use crate::{ambient, complain, start_and_watch, sys};

/// The first argument of a supervisor; the second is the container's name, for who looks at the processes, and the
/// third the descriptor with the [`Handover`].
const WORD: &str = "supervise";

/// Longest message of the start to its caller, in bytes.
const MAX_MESSAGE: usize = 4096;

/// What one program hands to the next in its place.
#[derive(Debug, Serialize, Deserialize)]
struct Handover {
    /// Whether the container is to be started; else it runs.
    start: bool,
    record: Record,
    /// The claim's two.
    claim: [RawFd; 2],
    listener: RawFd,
    /// pidfd of process 1, and the console's master and slave.
    running: Option<[RawFd; 3]>,
    ring: RawFd,
    log: Option<(RawFd, Settings)>,
    total: u64,
    waiting: Option<RawFd>,
    cgroups: Remains,
    at_end: AtEnd,
}

/// Starts a container in the background and returns when its command has been executed.
///
/// # Errors
/// Why it has not been.
pub fn run(options: &Options, mut status: Status) -> Outcome<u8> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|errno| Failure::own(format!("cannot make a pipe: {}", words(errno))))?;
    match sys::fork().map_err(|errno| Failure::own(format!("cannot start the supervisor: {}", words(errno))))? {
        Some(_) => {
            drop(writer);
            hear(&reader)
        }
        None => {
            drop(reader);
            let _ = nix::unistd::setsid();
            let code = start(options, &mut status, &writer);
            crate::console::restore_terminal();
            sys::exit_now(i32::from(code));
        }
    }
}

/// The parent: `0` and the container's name, or an exit status and the failure.
fn hear(reader: &OwnedFd) -> Outcome<u8> {
    let mut message = Vec::new();
    let mut bytes = [0_u8; MAX_MESSAGE];
    while let Ok(length @ 1..) = sys::read(reader.as_raw_fd(), &mut bytes) {
        message.extend_from_slice(bytes.get(..length).unwrap_or_default());
        if message.len() > MAX_MESSAGE {
            break;
        }
    }
    match message.split_first() {
        Some((0, name)) => {
            let _ = std::io::stdout().write_all(&[name, b"\n"].concat());
            Ok(0)
        }
        Some((code, text)) => Err(Failure { code: *code, text: String::from_utf8_lossy(text).into_owned() }),
        None => Err(Failure::own("the supervisor has died, and the container with it")),
    }
}

/// The child. The descriptor closes at the exec, which tells the parent that there is nothing more to hear.
fn start(options: &Options, status: &mut Status, writer: &OwnedFd) -> u8 {
    let tell = |code: u8, text: &str| {
        let mut message = vec![code];
        message.extend(text.bytes().take(MAX_MESSAGE - 1));
        nix::unistd::write(writer, &message).is_ok()
    };
    let turn = Life::new(true).and_then(|life| start_and_watch(options, status, life));
    match turn {
        Ok(Turn::Running(supervisor)) => {
            // Nobody waits for it any more: the call was given up.
            let name = supervisor.name();
            if !tell(0, &name) {
                return OWN_FAILURE;
            }
            settle(*supervisor)
        }
        Ok(_) => {
            tell(OWN_FAILURE, "the container has ended before it was watched");
            OWN_FAILURE
        }
        Err(failure) => {
            status.tell(&State::Failed { code: failure.code, error: &failure.text });
            tell(failure.code, &one_line(&failure.text));
            failure.code
        }
    }
}

/// Lets go of all that the start needed: the rest of this process's life is [`watch::watch`].
fn settle(supervisor: Supervisor) -> u8 {
    let (child, life) = supervisor.into_parts();
    let Some(life) = life else { return OWN_FAILURE };
    let _ = std::env::set_current_dir("/");
    if let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        for fd in 0..3 {
            let _ = sys::duplicate_to(null.as_raw_fd(), fd);
        }
    }
    // If it cannot be executed, this process does the same with more memory.
    execute(&life, Some(child.pidfd.as_raw_fd()));
    watch::watch(life, &child.pidfd)
}

/// Starts the container again, in this process: returns only when it cannot.
pub fn start_again(life: &Life) {
    execute(life, None);
}

/// Executes this program again. `pidfd`: of the container that runs.
fn execute(life: &Life, pidfd: Option<RawFd>) {
    let (Some(claim), Some(server), Some(record), Some(background)) =
        (&life.claim, &life.server, &life.record, &life.background)
    else {
        return;
    };
    let (ring, log) = background.ring.parts();
    let log_descriptor = log.as_ref().map(|(fd, _)| *fd);
    let running = pidfd
        .zip(background.ends.as_ref())
        .map(|(pidfd, [master, slave])| [pidfd, master.as_raw_fd(), slave.as_raw_fd()]);
    let handover = Handover {
        start: pidfd.is_none(),
        record: record.clone(),
        claim: claim.descriptors(),
        listener: server.descriptor(),
        running,
        ring,
        log,
        total: background.ring.total(),
        waiting: life.waiting.as_ref().map(AsRawFd::as_raw_fd),
        cgroups: match &life.cgroups {
            Cgroups::Kept(kept) => kept.remains(),
            Cgroups::Remains(_) => Remains::default(),
        },
        at_end: life.at_end.clone(),
    };
    let Some(memory) = write(&handover) else { return };
    let kept = [memory.as_raw_fd(), handover.claim[0], handover.claim[1], handover.listener, ring];
    for fd in kept.into_iter().chain(log_descriptor).chain(handover.waiting).chain(running.into_iter().flatten()) {
        let _ = super::sys::keep_on_exec(fd);
    }
    let number = memory.as_raw_fd().to_string();
    let words: Vec<CString> =
        ["spawn", WORD, &record.name, &number].into_iter().filter_map(|word| CString::new(word).ok()).collect();
    // By the descriptor's link: the file may have been replaced by a newer one.
    let _ = nix::unistd::execve(c"/proc/self/exe", &words, &ambient::all());
}

fn write(handover: &Handover) -> Option<OwnedFd> {
    let memory = memfd_create(c"handover", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).ok()?;
    let mut file = std::fs::File::from(memory);
    file.write_all(&serde_json::to_vec(handover).ok()?).ok()?;
    file.seek(SeekFrom::Start(0)).ok()?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::all())).ok()?;
    Some(file.into())
}

/// When this program was executed as a supervisor: does that, and gives its exit status.
#[must_use]
pub fn is_supervisor() -> Option<u8> {
    let mut arguments = helper::start::sys::words().iter().skip(1);
    if arguments.next()? != WORD {
        return None;
    }
    let number = arguments.nth(1).and_then(|word| word.to_str()?.parse::<RawFd>().ok()).filter(|fd| *fd > 2);
    let handover = number.and_then(|fd| {
        let memory = sys::take(fd).ok()?;
        // Nobody but this program makes one.
        fcntl(memory.as_fd(), FcntlArg::F_GET_SEALS).ok().filter(|seals| *seals != 0)?;
        sys::close(fd);
        serde_json::from_reader::<_, Handover>(std::fs::File::from(memory)).ok()
    });
    let Some(handover) = handover else {
        complain("supervise: that is how `spawn run --detach` executes itself; it is for nobody else");
        return Some(USAGE);
    };
    Some(resume(handover).unwrap_or_else(|failure| {
        complain(&failure.text);
        failure.code
    }))
}

fn resume(handover: Handover) -> Outcome<u8> {
    let take = |fd: RawFd| {
        let fd = sys::own(fd).ok_or_else(|| Failure::own("a descriptor was not handed over"))?;
        sys::close_on_exec(fd.as_raw_fd())
            .map_err(|errno| Failure::own(format!("a descriptor was not handed over: {}", words(errno))))?;
        Ok::<OwnedFd, Failure>(fd)
    };
    let [directory, file] = handover.claim;
    let claim = Claim::resume(&handover.record.name, take(directory)?, take(file)?)?;
    let log = match handover.log {
        Some((fd, settings)) => Some(Log::resume(settings, take(fd)?)),
        None => None,
    };
    let ring = Ring::resume(take(handover.ring)?, log, handover.total);
    let server = Server::new(take(handover.listener)?);
    let waiting = handover.waiting.map(take).transpose()?;
    let running = match handover.running {
        Some([pidfd, master, slave]) => Some((take(pidfd)?, [take(master)?, take(slave)?])),
        None => None,
    };
    let (pidfd, ends) = running.unzip();
    let life = Life {
        cgroups: Cgroups::Remains(Some(handover.cgroups)),
        claim: Some(claim),
        server: Some(server),
        record: Some(handover.record),
        background: Some(Background { ring, ends }),
        wish: None,
        waiting,
        first: false,
        repeats: true,
        at_end: handover.at_end,
        log: None,
        began: std::time::Instant::now(),
    };
    match (handover.start, pidfd) {
        (false, Some(pidfd)) => Ok(watch::watch(life, &pidfd)),
        _ => again(life),
    }
}

/// The start of a container that has been there before.
fn again(mut life: Life) -> Outcome<u8> {
    let waiting = life.waiting.as_ref().and_then(|fd| fd.try_clone().ok());
    let log = life.record.as_ref().and_then(|record| record.log.clone());
    let result = (|| {
        let origin = life.record.as_ref().map(|record| record.origin.clone()).unwrap_or_default();
        let options = origin.options()?;
        std::env::set_current_dir(origin.directory())
            .map_err(|error| Failure::own(format!("cannot go to {}: {error}", origin.directory().display())))?;
        if let Some(background) = &mut life.background {
            background.ends = None;
        }
        start_and_watch(&options, &mut Status::default(), life)
    })();
    let failure = match result {
        Ok(Turn::Running(supervisor)) => return Ok(settle(*supervisor)),
        Ok(_) => Failure::own("the container has ended before it was watched"),
        Err(failure) => failure,
    };
    let text = one_line(&failure.text);
    if let Some(waiting) = waiting {
        let _ = sys::send_message(waiting.as_raw_fd(), format!("failed {text}").as_bytes(), &[]);
    }
    if let Some(mut log) = log.and_then(|path| crate::state::open_log(Path::new(&path)).ok()) {
        let _ = writeln!(log, "spawn: it was not started again: {text}");
    }
    Err(failure)
}
