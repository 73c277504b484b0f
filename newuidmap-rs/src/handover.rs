//! The entry and the end of a program that executes the caller's own command: what it was given, it hands over.

use crate::caller::Caller;
use crate::enter::{IGNORED, Keep, account, become_caller, read, set_panic_hook, step};
use crate::report::{Failure, Program, reason};
use crate::sys::{CapabilitySets, set_capabilities};
use caps::Capability;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, getgroups, getresgid, getresuid};
use std::ffi::{CStr, CString};
use std::io::Read as _;

pub mod sys;

/// What a program that ends by executing the caller's command found and [`enter_to_exec`] changed: the command gets it
/// back, exactly.
#[derive(Debug)]
pub struct Inheritance {
    environment: Vec<u8>,
    umask: Mode,
    core: (u64, u64),
    file_size: (u64, u64),
    /// `None`: none was set.
    timers: Option<sys::Timers>,
    ignored: Vec<(Signal, bool)>,
    blocked: SigSet,
}

/// [`crate::enter::enter`] for a program that has a critical section ([`crate::enter::FullRoot`]) and ends by executing the caller's command, which
/// may need a setuid program itself. Saved uid and gid stay 0, the supplementary groups stay the caller's and are
/// returned. The steps and their order are those of [`crate::enter::enter`], but what they change is remembered, and
///
/// * no_new_privs is not set ([`forgo_new_privileges`] does that once it is clear that no command will be executed), nor
///   are the caller's descriptors touched;
/// * of RLIMIT_CORE the soft limit alone becomes 0, because an ordinary user could not raise the hard one again; not
///   being dumpable prevents a core file of this program as well;
/// * SIGALRM, which [`sys::lock_within`] uses, is at its default;
/// * `capabilities` stay permitted but none is effective: [`with`] makes it so for a moment.
///
/// # Errors
/// The step that failed, with its cause.
pub fn enter_to_exec(
    program: &'static Program,
    capabilities: &[Capability],
) -> Result<(Caller, Vec<u32>, Inheritance), Failure> {
    set_panic_hook(program);
    // Room at once: mostly one read takes all, and another finds the end.
    let mut environment = Vec::with_capacity(1 << 14);
    std::fs::File::open("/proc/self/environ")
        .and_then(|file| file.take(u64::MAX).read_to_end(&mut environment))
        .map_err(|e| Failure::new(format!("read /proc/self/environ: {}: is /proc mounted?", reason(&e))))?;
    crate::sys::clear_environment().map_err(|e| step("clearenv", e))?;
    let umask = umask(Mode::from_bits_truncate(0o077));
    let core = getrlimit(Resource::RLIMIT_CORE).map_err(|e| step("getrlimit RLIMIT_CORE", e))?;
    setrlimit(Resource::RLIMIT_CORE, 0, core.1).map_err(|e| step("setrlimit RLIMIT_CORE", e))?;
    let file_size = getrlimit(Resource::RLIMIT_FSIZE).map_err(|e| step("getrlimit RLIMIT_FSIZE", e))?;
    setrlimit(Resource::RLIMIT_FSIZE, file_size.1, file_size.1).map_err(|e| step("setrlimit RLIMIT_FSIZE", e))?;
    let timers = sys::exchange_timers(None).map_err(|e| step("setitimer", e))?;
    let timers = timers.are_set().then_some(timers);
    let mut ignored = Vec::new();
    let changed = IGNORED.map(|signal| (signal, true)).into_iter();
    for (signal, ignore) in changed.chain([(Signal::SIGCHLD, false), (Signal::SIGALRM, false)]) {
        let was = sys::exchange_signal(signal, ignore).map_err(|e| step("sigaction", e))?;
        // What is as it was needs no way back.
        if was != ignore {
            ignored.push((signal, was));
        }
    }
    let mut blocked = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), Some(&mut blocked))
        .map_err(|e| step("sigprocmask", e))?;
    prctl::set_dumpable(false).map_err(|e| step("prctl PR_SET_DUMPABLE", e))?;

    let ids = getresuid().map_err(|e| step("getresuid", e))?;
    let (uid, gid) = (ids.real, getresgid().map_err(|e| step("getresgid", e))?.real);
    let account = account(uid, ids.effective.is_root(), false)?;
    let had_no_new_privs = prctl::get_no_new_privs().map_err(|e| step("prctl PR_GET_NO_NEW_PRIVS", e))?;
    let groups = getgroups().map_err(|e| step("getgroups", e))?.into_iter().map(Gid::as_raw).collect();
    // Not installed setuid root: there is no saved uid 0 to keep, and FullRoot::begin will say so.
    let saved_root = ids.effective.is_root();
    become_caller(uid, gid, Keep { capabilities, saved_root }, saved_root)?;
    set_capabilities(CapabilitySets { effective: 0, ..read()? }).map_err(|e| step("capset", e))?;
    let caller = Caller { uid: uid.as_raw(), gid: gid.as_raw(), account, had_no_new_privs };
    Ok((caller, groups, Inheritance { environment, umask, core, file_size, timers, ignored, blocked }))
}

/// Sets no_new_privs, for a program that will not execute the caller's command after all.
///
/// # Errors
/// The kernel's, in words.
pub fn forgo_new_privileges() -> Result<(), Failure> {
    prctl::set_no_new_privs().map_err(|e| step("prctl PR_SET_NO_NEW_PRIVS", e))
}

/// Does `work`, which leaves ids and capabilities as they are, with a permitted capability effective as well, and no longer.
///
/// # Errors
/// The capability cannot be raised or lowered, in words.
pub fn with<T>(capability: Capability, work: impl FnOnce() -> T) -> Result<T, Failure> {
    let sets = read()?;
    let raised = CapabilitySets { effective: sets.effective | capability.bitmask(), ..sets };
    set_capabilities(raised).map_err(|e| step("capset", e))?;
    let result = work();
    set_capabilities(sets).map_err(|e| step("capset", e))?;
    Ok(result)
}

/// Becomes the caller and nobody else, for good, outside of [`crate::enter::FullRoot`]: no saved id of root and no capability is left.
///
/// # Errors
/// A step failed, or something is left: the program must end.
pub fn become_caller_for_good(caller: &Caller) -> Result<(), Failure> {
    become_caller(
        Uid::from_raw(caller.uid),
        Gid::from_raw(caller.gid),
        Keep { capabilities: &[], saved_root: false },
        false,
    )
}

impl Inheritance {
    /// The value of a variable of the caller's environment.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&[u8]> {
        self.environment
            .split(|b| *b == 0)
            .find_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    }

    /// Executes `program` with `arguments` (argv\[0\] first) and everything that this program was started with:
    /// environment, umask, limits, timers, dispositions, signal mask. Descriptors and the working directory were never
    /// touched; those of descriptors 0, 1 and 2 that were closed are closed again. Comes after
    /// [`become_caller_for_good`]. A file that is neither binary nor names its interpreter is given to
    /// /bin/sh, as execvp(3) does.
    ///
    /// # Errors
    /// Returns only then: what execve(2) said, or a step before it.
    pub fn exec(&self, program: &CStr, arguments: &[CString]) -> Errno {
        let mut pieces: Vec<&[u8]> = self.environment.split(|b| *b == 0).collect();
        // What follows the last NUL byte is no variable.
        pieces.pop();
        let environment: Vec<CString> = pieces.into_iter().filter_map(|variable| CString::new(variable).ok()).collect();
        let restored = || -> Result<(), Errno> {
            umask(self.umask);
            setrlimit(Resource::RLIMIT_CORE, self.core.0, self.core.1)?;
            setrlimit(Resource::RLIMIT_FSIZE, self.file_size.0, self.file_size.1)?;
            for (signal, ignore) in &self.ignored {
                crate::sys::set_signal(*signal, *ignore)?;
            }
            if self.timers.is_some() {
                sys::exchange_timers(self.timers)?;
            }
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.blocked), None)
        };
        if let Err(error) = restored() {
            return error;
        }
        sys::close_as_at_start();
        match sys::exec(program, arguments, &environment) {
            Errno::ENOEXEC => {
                let mut shell = vec![c"sh".to_owned(), program.to_owned()];
                shell.extend(arguments.iter().skip(1).cloned());
                sys::exec(c"/bin/sh", &shell, &environment)
            }
            error => error,
        }
    }
}
