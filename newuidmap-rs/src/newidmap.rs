//! newuidmap and newgidmap from entry to exit.

#![forbid(unsafe_code)]

use crate::apply::Unwritten;
use crate::caller::{Caller, login_defs, subid_source};
use crate::enter::{Keep, enter, give_up, holds, why_powerless};
use crate::policy::{Facts, Ground, Verdict, decide};
use crate::range::{Extent, IdKind};
use crate::report::{Failure, Message, Program, print};
use crate::request::{Request, RequestError, parse};
use crate::start::sys::words;
use crate::subid::{Coverage, Owner};
use crate::target::{Ids, Target, TargetError, TargetName};
use crate::trusted::{Distrust, Trusted};
use caps::Capability;
use core::ops::ControlFlow;

/// newuidmap.
pub static NEWUIDMAP: Program = Program { name: c"newuidmap", panic_status: 1 };

/// newgidmap.
pub static NEWGIDMAP: Program = Program { name: c"newgidmap", panic_status: 1 };

/// The whole program: enter, parse, decide, apply.
#[must_use]
pub fn run(kind: IdKind) -> u8 {
    let program = match kind {
        IdKind::Uid => &NEWUIDMAP,
        IdKind::Gid => &NEWGIDMAP,
    };
    let result = enter(program, Keep { capabilities: needed(kind), saved_root: false }).and_then(|caller| {
        match parse(kind, words().iter().skip(1).cloned()) {
            Ok(Request::Map { target, extents, check }) => {
                // Only for a request that maps uid 0 of this namespace does the kernel ask for CAP_SETFCAP.
                if !extents.iter().any(|extent| extent.outside == 0) {
                    give_up(Capability::CAP_SETFCAP)?;
                }
                let call = Call { kind, program, caller: &caller, name: target, extents: &extents };
                let result = Target::open(target).map_err(|error| refused_target(kind, error));
                let result = result.and_then(|target| map(&call, &target, check));
                if let (Err(failure), false) = (&result, check) {
                    call.log(0, Some(failure));
                }
                result
            }
            Ok(Request::Help) => print(&help(kind)),
            Ok(Request::Version) => {
                print(&format!("{} (userns-helpers) {}\n", program.name(), env!("CARGO_PKG_VERSION")))
            }
            Err(RequestError::Usage(line)) => Err(usage(kind, &line)),
            Err(RequestError::Overflow(line)) => Err(Failure::new(line)),
        }
    });
    program.status(result)
}

const fn needed(kind: IdKind) -> &'static [Capability] {
    match kind {
        IdKind::Uid => &[Capability::CAP_SETUID, Capability::CAP_SETFCAP],
        IdKind::Gid => &[Capability::CAP_SETGID],
    }
}

/// What does not change during a call.
struct Call<'a> {
    kind: IdKind,
    program: &'static Program,
    caller: &'a Caller,
    name: TargetName,
    extents: &'a [Extent],
}

fn map(call: &Call<'_>, target: &Target, check: bool) -> Result<(), Failure> {
    let &Call { kind, program, caller, extents, .. } = call;
    let (coverage, no_file) = read_grants(kind, caller, extents);
    let facts = Facts {
        kind,
        caller: Ids { uid: caller.uid, gid: caller.gid },
        caller_name: &caller.shown(),
        account_gid: caller.account.gid,
        aux_groups: may_use_aux_groups(caller),
        target: target.ids()?,
        target_name: &target.name().to_string(),
        coverage: &coverage,
        no_file: no_file.as_deref(),
    };
    let verdict = decide(extents, &facts).map_err(|refusal| Failure::new(refusal.to_string()))?;
    require_privilege(kind, caller, extents, &verdict)?;
    let unwritten = Unwritten::open(target, kind)?;
    if check {
        for (line, why) in &coverage.ignored {
            program.say(&format!("warning: {}:{line} is ignored: {why}", kind.subid_path()));
        }
        return print(&allowed(kind, extents, &verdict));
    }
    // The grant is logged ahead, so that no caller can use it and keep it out of the log by killing this program. A
    // refusal by the kernel is logged as well, after it.
    call.log(target.pid(), None);
    unwritten.write(program, &verdict)
}

/// What the file grants of the request, or why it is not believed.
fn read_grants(kind: IdKind, caller: &Caller, extents: &[Extent]) -> (Coverage, Option<String>) {
    let (path, owner) = (kind.subid_path(), Owner::new(caller.uid, &caller.account.names));
    let mut coverage = Coverage::new(extents);
    let read = subid_source().and_then(|()| match Trusted::open(path) {
        Err(Distrust::Missing) => Err(format!("{path} does not exist")),
        Err(Distrust::Refused(why)) => Err(why),
        Ok(mut file) => loop {
            file.each_line(|number, line| {
                coverage.line(number, line, &owner);
                ControlFlow::Continue(())
            })
            .map_err(|why| format!("read {path}: {why}"))?;
            if !coverage.needs_another_pass() {
                break Ok(());
            }
        },
    });
    (coverage, read.err())
}

/// `GRANT_AUX_GROUP_SUBIDS yes`; looked up only for a caller whose real gid is not the one in passwd(5). A file that
/// is not believed grants nothing.
fn may_use_aux_groups(caller: &Caller) -> bool {
    caller.account.gid.is_some_and(|gid| gid != caller.gid)
        && login_defs(b"GRANT_AUX_GROUP_SUBIDS")
            .is_ok_and(|value| value.is_some_and(|v| v.eq_ignore_ascii_case(b"yes")))
}

/// Without its capability the program may still map the caller's own id, as the caller himself may. To map uid 0 of
/// this namespace takes CAP_SETFCAP too (verify_root_map() of kernel/user_namespace.c, Linux 5.12).
fn require_privilege(kind: IdKind, caller: &Caller, extents: &[Extent], verdict: &Verdict) -> Result<(), Failure> {
    let maps_root = kind == IdKind::Uid && extents.iter().any(|extent| extent.outside == 0);
    let needed = match kind {
        _ if verdict.grounds.iter().all(|ground| *ground == Ground::Own) => return Ok(()),
        IdKind::Uid if maps_root => &[Capability::CAP_SETUID, Capability::CAP_SETFCAP][..],
        IdKind::Uid => &[Capability::CAP_SETUID],
        IdKind::Gid => &[Capability::CAP_SETGID],
    };
    for capability in needed {
        if !holds(*capability)? {
            let (file, why) = (kind.map_file(), why_powerless(caller, *capability));
            return Err(Failure::new(format!("write to {file} failed: Operation not permitted: {why}")));
        }
    }
    Ok(())
}

fn allowed(kind: IdKind, extents: &[Extent], verdict: &Verdict) -> String {
    let line = |(extent, ground): (&Extent, &Ground)| {
        let why = match ground {
            Ground::Granted(line) => format!("{}:{line}", kind.subid_path()),
            Ground::Own => format!("your own {}", kind.word()),
        };
        format!("{} range {extent} allowed: {why}\n", kind.word())
    };
    let mut text: String = extents.iter().zip(&verdict.grounds).map(line).collect();
    if verdict.deny_setgroups {
        text.push_str("setgroups would be denied: no gid comes from /etc/subgid (CVE-2018-7169)\n");
    }
    text
}

impl Call<'_> {
    /// One line for the system log; `pid` is 0 when the target could not be opened.
    fn log(&self, pid: i32, failure: Option<&Failure>) {
        const LOGGED: usize = 16;
        let range = |e: &Extent| format!("{}:{}:{}", e.inside, e.outside, e.count);
        let ranges: Vec<String> = self.extents.iter().take(LOGGED).map(range).collect();
        let more = if self.extents.len() > LOGGED { ",..." } else { "" };
        let user = self.caller.account.names.first().map_or(&b"-"[..], Vec::as_slice);
        let pid = if pid > 0 { pid.to_string() } else { self.name.to_string() };
        let mut message = Message::default()
            .field("event", self.kind.map_file().as_bytes())
            .field("result", if failure.is_none() { b"granted" } else { b"refused" })
            .field("uid", self.caller.uid.to_string().as_bytes())
            .field("user", user)
            .field("pid", pid.as_bytes())
            .field("range", format!("{}{more}", ranges.join(",")).as_bytes());
        if let Some(failure) = failure {
            message = message.field("reason", failure.text.as_bytes());
        }
        self.program.log(failure.is_none(), &message);
    }
}

fn refused_target(kind: IdKind, error: TargetError) -> Failure {
    match error {
        TargetError::NotAProcess(line) => usage(kind, &line),
        TargetError::Failed(line) => Failure::new(line),
    }
}

fn usage(kind: IdKind, line: &str) -> Failure {
    let (program, word) = (kind.map_program(), kind.word());
    let usage = format!(
        "usage: {program} [--check] PID|fd:N {word} lower{word} count [{word} lower{word} count]...; see {program} --help"
    );
    Failure::new(if line.is_empty() { usage } else { format!("{line}; {usage}") })
}

fn help(kind: IdKind) -> String {
    let (program, word, path, map) = (kind.map_program(), kind.word(), kind.subid_path(), kind.map_file());
    format!(
        "usage: {program} [--check] TARGET {word} lower{word} count [{word} lower{word} count]...\n\
         \n\
         Writes the {map} of a process of yours, with the {word}s that {path} grants you.\n\
         \n\
         TARGET        a process id, or fd:N, an open descriptor of /proc/PID or a pidfd\n\
         {word}           first {word} inside the user namespace\n\
         lower{word}      first {word} outside it: granted to you, or your own with count 1\n\
         count         how many, all consecutive\n\
         \n\
         --check       say whether it would be done and which line grants it; change nothing\n\
         --help        this text\n\
         --version     name and version\n\
         \n\
         examples:\n\
         \x20 unshare -U sleep 60 &\n\
         \x20 {program} $! 0 100000 65536         {word}s 0-65535 inside are 100000-165535 outside\n\
         \x20 {program} $! 0 $(id -{first}) 1           only your own, as 0\n\
         \x20 {program} --check $! 0 100000 65536 which line grants it, or why it is refused\n\
         \n\
         Exit status: 0 done, 1 anything else. Manual: {program}(1).\n",
        first = word.get(..1).unwrap_or("u"),
    )
}
