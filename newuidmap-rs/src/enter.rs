//! The entry sequence of a privileged program, and the reasons why its privilege may be missing.

#![forbid(unsafe_code)]

use crate::caller::{Account, Caller, ask_getent, look_up, uid_of_name};
use crate::report::{Failure, Program};
use crate::sys::{self, CapabilitySets};
use caps::Capability;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, geteuid, getgroups, getresgid, getresuid, setfsgid, setfsuid, setgroups};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;

/// Signals that are ignored from [`enter`] on: those of a closed pipe and of a full file, which are errors of a call
/// then; and those by which a terminal stops its processes. The kernel sends these whatever the ids are (job control
/// asks no permission), so that ^Z would stop a program that holds a lock as root.
pub const IGNORED: [Signal; 5] = [Signal::SIGPIPE, Signal::SIGXFSZ, Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// What is left of root after [`enter`].
#[derive(Clone, Copy, Debug)]
pub struct Keep<'a> {
    /// Capabilities that stay permitted and effective, as far as the program was installed with them.
    pub capabilities: &'a [Capability],
    /// Whether the saved uid stays 0, for a program with a critical section that the caller's signals must not reach.
    pub saved_root: bool,
}

/// Takes a program from whatever its caller prepared to a known state, in this order, each step fatal when it fails:
///
/// 1. a panic prints one line, with no backtrace, and exits;
/// 2. the environment is cleared;
/// 3. umask 077;
/// 4. no core file; RLIMIT_FSIZE as high as it may go, the signals of [`IGNORED`] ignored; interval timers stopped;
///    SIGCHLD at its default; no signal blocked;
/// 5. not dumpable, so the caller cannot trace it;
/// 6. the real ids are taken, once, and their names looked up;
/// 7. no_new_privs;
/// 8. ambient and inheritable sets emptied; all three uids and gids the caller's (saved uid 0 stays when
///    `keep` says so); effective and permitted sets as in `keep`; and that all this is so.
///
/// Only after it argv may be looked at.
///
/// # Errors
/// The step that failed, with its cause.
pub fn enter(program: &'static Program, keep: Keep<'_>) -> Result<Caller, Failure> {
    sequence(program, keep, None).map(|(caller, _)| caller)
}

/// [`enter`] for a program that has a critical section ([`FullRoot`]) and execs no program of the caller's: saved uid
/// and saved gid stay 0, and the supplementary groups are given up. They are returned, for a decision about the caller.
///
/// A program that is not installed setuid root (or is run under no_new_privs) enters as with [`enter`], without root:
/// its `--help` works, and [`FullRoot::begin`] says what is missing.
///
/// # Errors
/// As [`enter`].
pub fn enter_with_root(program: &'static Program, capabilities: &[Capability]) -> Result<(Caller, Vec<u32>), Failure> {
    let saved_root = geteuid().is_root();
    sequence(program, Keep { capabilities, saved_root }, Some(saved_root))
}

/// `groups`: `None` leaves the supplementary groups as they are; else they are returned, and given up if it says so.
fn sequence(program: &'static Program, keep: Keep<'_>, groups: Option<bool>) -> Result<(Caller, Vec<u32>), Failure> {
    let alone = groups == Some(true);
    set_panic_hook(program);
    sys::clear_environment().map_err(|e| step("clearenv", e))?;
    umask(Mode::from_bits_truncate(0o077));
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|e| step("setrlimit RLIMIT_CORE", e))?;
    let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).map_err(|e| step("getrlimit RLIMIT_FSIZE", e))?;
    // A hard limit can be undone only with CAP_SYS_RESOURCE, which a container's root may lack.
    let undone = alone && setrlimit(Resource::RLIMIT_FSIZE, RLIM_INFINITY, RLIM_INFINITY).is_ok();
    if !undone && soft != hard {
        setrlimit(Resource::RLIMIT_FSIZE, hard, hard).map_err(|e| step("setrlimit RLIMIT_FSIZE", e))?;
    }
    sys::stop_timers().map_err(|e| step("setitimer", e))?;
    for (signal, ignore) in IGNORED.map(|signal| (signal, true)).into_iter().chain([(Signal::SIGCHLD, false)]) {
        sys::set_signal(signal, ignore).map_err(|e| step("signal", e))?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(|e| step("sigprocmask", e))?;
    hide()?;

    let ids = getresuid().map_err(|e| step("getresuid", e))?;
    let (uid, gid) = (ids.real, getresgid().map_err(|e| step("getresgid", e))?.real);
    let account = account(uid, ids.effective.is_root(), true)?;

    let had_no_new_privs = prctl::get_no_new_privs().map_err(|e| step("prctl PR_GET_NO_NEW_PRIVS", e))?;
    prctl::set_no_new_privs().map_err(|e| step("prctl PR_SET_NO_NEW_PRIVS", e))?;
    let groups = match groups {
        Some(_) => getgroups().map_err(|e| step("getgroups", e))?.into_iter().map(Gid::as_raw).collect(),
        None => Vec::new(),
    };
    if alone {
        setgroups(&[]).map_err(|e| step("setgroups", e))?;
    }
    become_caller(uid, gid, keep, alone)?;
    Ok((Caller { uid: uid.as_raw(), gid: gid.as_raw(), account, had_no_new_privs }, groups))
}

/// A critical section that no signal of the caller's reaches but what a terminal sends to end its processes. While it lives the real and saved ids are root's, which
/// is what kill(2) asks about, and files are opened and made as root (setfsuid(2)). The effective ids stay the
/// caller's: they are the way back, for which no capability is kept. A program executed from here, once its own
/// effective ids are set to 0, has root's ids alone.
#[derive(Debug)]
pub struct FullRoot {
    uid: u32,
    gid: u32,
}

impl FullRoot {
    /// Begins it.
    ///
    /// # Errors
    /// The program has no saved uid 0: in words, with the cure.
    pub fn begin(caller: &Caller) -> Result<Self, Failure> {
        let (root, root_gid) = (Uid::from_raw(0), Gid::from_raw(0));
        if sys::set_ids([0, caller.gid, 0], [0, caller.uid, 0]).is_err() {
            return Err(Failure::new(format!(
                "it must be installed setuid root: {}",
                why_powerless(caller, Capability::CAP_NET_ADMIN)
            )));
        }
        // From here on dropping this value is the way back.
        let section = Self { uid: caller.uid, gid: caller.gid };
        setfsuid(root);
        setfsgid(root_gid);
        // Neither call tells of an error; a second one returns the id that is in force.
        if setfsuid(root) == root && setfsgid(root_gid) == root_gid {
            hide()?;
            Ok(section)
        } else {
            Err(Failure::new("setfsuid: the kernel did not take root's ids: refusing to go on"))
        }
    }
}

impl Drop for FullRoot {
    fn drop(&mut self) {
        // setresuid and setresgid set the ids for file access to the effective ones again.
        let back = sys::set_ids([self.gid, self.gid, 0], [self.uid, self.uid, 0]);
        if back.is_err() || hide().is_err() {
            let _ = std::io::stderr().write_all(b"setresuid: cannot give root's ids back: refusing to go on\n");
            sys::exit_now(1);
        }
    }
}

/// A panic prints one line, with no backtrace, and exits.
pub(crate) fn set_panic_hook(program: &'static Program) {
    std::panic::set_hook(Box::new(|_| {
        program.say("internal error: this is a bug, please report it");
        sys::exit_now(program.panic_status);
    }));
}

/// Names of the real uid: from /etc/passwd; for a uid that is not there, and only where nobody but root could forge
/// the answer, from getent. Elsewhere such a caller stays nameless, and lines with the bare uid still serve.
pub(crate) fn account(uid: Uid, is_root: bool, close_descriptors: bool) -> Result<Account, Failure> {
    let account = look_up(uid.as_raw())?;
    if !account.names.is_empty() || !is_root {
        return Ok(account);
    }
    // On a kernel without close_range, and from a program that hands the caller's descriptors over, getent may inherit
    // them; it does not look at them.
    if close_descriptors {
        let _ = sys::close_on_exec_from_3();
    }
    let Some((name, its_uid, gid)) = ask_getent(&uid.to_string(), true)? else { return Ok(account) };
    if its_uid != uid.as_raw() {
        return Ok(account);
    }
    // A name that /etc/passwd gives to another uid is that other user's.
    let is_anothers = uid_of_name(&name)?.is_some_and(|its_uid| its_uid != uid.as_raw());
    Ok(Account { names: if is_anothers { Vec::new() } else { vec![name] }, gid: Some(gid) })
}

pub(crate) fn become_caller(uid: Uid, gid: Gid, keep: Keep<'_>, saved_root_gid: bool) -> Result<(), Failure> {
    let kept = bits(keep.capabilities) & read()?.permitted;
    prctl::set_keepcaps(true).map_err(|e| step("prctl PR_SET_KEEPCAPS", e))?;
    let saved = if keep.saved_root { Uid::from_raw(0) } else { uid };
    let saved_gid = if saved_root_gid { Gid::from_raw(0) } else { gid };
    sys::set_ids([gid, gid, saved_gid].map(Gid::as_raw), [uid, uid, saved].map(Uid::as_raw))
        .map_err(|e| step("setresgid or setresuid", e))?;
    prctl::set_keepcaps(false).map_err(|e| step("prctl PR_SET_KEEPCAPS", e))?;
    // All three sets in one call. Emptying the inheritable set empties the ambient set too, which must be a subset of it
    // (capabilities(7)). The bounding set may stay: with no_new_privs an exec gains nothing beyond the permitted set,
    // and emptying it takes 82 system calls.
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: 0 };
    sys::set_capabilities(sets).map_err(|e| step("capset", e))?;

    hide()?;

    let (uids, gids) = (getresuid(), getresgid());
    let uids_right = uids.is_ok_and(|u| u.real == uid && u.effective == uid && u.saved == saved);
    let gids_right = gids.is_ok_and(|g| g.real == gid && g.effective == gid && g.saved == saved_gid);
    if uids_right && gids_right && read()? == sets {
        Ok(())
    } else {
        Err(Failure::new("giving up privilege left other ids or capabilities than asked for: refusing to go on"))
    }
}

/// Not dumpable: the caller can neither trace the program nor open its files in /proc. The kernel sets this anew, from
/// the sysctl fs.suid_dumpable, whenever an effective id changes (commit_creds() of kernel/cred.c).
pub(crate) fn hide() -> Result<(), Failure> {
    prctl::set_dumpable(false).map_err(|e| step("prctl PR_SET_DUMPABLE", e))
}

/// Gives up one more capability, for good.
///
/// # Errors
/// The kernel's, in words.
pub fn give_up(capability: Capability) -> Result<(), Failure> {
    let (had, others) = (read()?, !capability.bitmask());
    let sets = CapabilitySets {
        effective: had.effective & others,
        permitted: had.permitted & others,
        inheritable: had.inheritable,
    };
    if sets == had { Ok(()) } else { sys::set_capabilities(sets).map_err(|e| step("capset", e)) }
}

/// Whether a capability is effective now.
///
/// # Errors
/// The kernel's, in words.
pub fn holds(capability: Capability) -> Result<bool, Failure> {
    Ok(read()?.effective & capability.bitmask() != 0)
}

fn bits(capabilities: &[Capability]) -> u64 {
    capabilities.iter().fold(0, |set, capability| set | capability.bitmask())
}

/// Why a program that needs `capability` does not hold it: cause and cure in words.
#[must_use]
pub fn why_powerless(caller: &Caller, capability: Capability) -> String {
    if caller.had_no_new_privs {
        return "no_new_privs is set, which voids the setuid bit and file capabilities: start it outside the sandbox or \
                service that sets it (in a systemd unit: NoNewPrivileges=no)"
            .to_owned();
    }
    let path = std::fs::read_link("/proc/self/exe").map_or_else(|_| "its file".to_owned(), |p| p.display().to_string());
    let nosuid = nix::sys::statfs::statfs("/proc/self/exe")
        .is_ok_and(|fs| fs.flags().contains(nix::sys::statvfs::FsFlags::ST_NOSUID));
    if nosuid {
        return format!("{path} is on a file system mounted nosuid: install it elsewhere, or remount without nosuid");
    }
    // Only newuidmap needs CAP_SETFCAP, beside the one it always needs, and setcap sets all at once.
    let name = match capability {
        Capability::CAP_SETFCAP => "cap_setuid,cap_setfcap".to_owned(),
        other => other.to_string().to_lowercase(),
    };
    let setuid_root = std::fs::metadata("/proc/self/exe").is_ok_and(|m| m.mode() & 0o4000 != 0 && m.uid() == 0);
    if !setuid_root {
        return format!(
            "{path} is neither setuid root nor does it carry {name}: as root run `chmod 4755 {path}` or `setcap {name}=ep {path}`"
        );
    }
    format!(
        "{path} is setuid root, but {name} is missing here: it is outside the bounding set, or root is not mapped in this user namespace"
    )
}

pub(crate) fn read() -> Result<CapabilitySets, Failure> {
    sys::capabilities().map_err(|e| step("capget", e))
}

pub(crate) fn step(operation: &str, error: Errno) -> Failure {
    Failure::new(format!("{operation}: {}", error.desc()))
}
