//! cgdelegate from entry to exit.

#![forbid(unsafe_code)]

use crate::apply::{Kind, Node, Session};
use crate::config::{self, Config, Controller, Who};
use crate::hierarchy::{Host, let_go};
use crate::ledger;
use crate::leftovers;
use crate::policy::{self, Facts, Grant};
use crate::request::{Ask, Name, Request, parse};
use crate::target::Process;
use caps::Capability;
use core::fmt::Write as _;
use core::ops::ControlFlow;
use helper::caller::{Caller, plain_number, subid_source};
use helper::handoff::{EXIT_PASSED_ON, Record};
use helper::handover::{Inheritance, become_caller_for_good, enter_to_exec, forgo_new_privileges};
use helper::range::{IdKind, IdRange};
use helper::report::{Failure, Message, Program, print};
use helper::start::sys::words;
use helper::subid::{Line, Owner, parse_line};
use helper::trusted::{Distrust, Trusted};
use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::time::{Duration, Instant};

/// cgdelegate.
pub static CGDELEGATE: Program = Program { name: c"cgdelegate", panic_status: 70 };

/// Capabilities that stay permitted. None is effective until it is needed: CAP_CHOWN and CAP_DAC_OVERRIDE as long as the
/// program is fully root (setfsuid(2) raises them), CAP_SYS_ADMIN while a named hierarchy is mounted or a record is read
/// or written, CAP_KILL while `delete --kill` kills what no cgroup.kill reaches.
const CAPABILITIES: [Capability; 4] =
    [Capability::CAP_CHOWN, Capability::CAP_DAC_OVERRIDE, Capability::CAP_SYS_ADMIN, Capability::CAP_KILL];

const USAGE: u8 = 64;
const DATA: u8 = 65;
const SYSTEM: u8 = 71;
const TRY_AGAIN: u8 = 75;
const NOT_PERMITTED: u8 = 77;
const CONFIGURATION: u8 = 78;

/// Most subordinate ranges that are looked at.
const MAX_RANGES: usize = 1024;

/// The whole program: enter, parse, decide, apply.
#[must_use]
pub fn run() -> u8 {
    let result = enter_to_exec(&CGDELEGATE, &CAPABILITIES).map_err(|failure| failure.status(SYSTEM)).and_then(
        |(caller, groups, inheritance)| {
            let request = parse(words().iter().skip(1).cloned())
                .map_err(|line| Failure::new(format!("{line}; see cgdelegate --help")).status(USAGE))?;
            if !matches!(request, Request::Run { .. }) {
                forgo_new_privileges()?;
            }
            let call = Call { caller: &caller, groups: &groups };
            match request {
                Request::Help => print(HELP),
                Request::Version => print(concat!("cgdelegate (userns-helpers) ", env!("CARGO_PKG_VERSION"), "\n")),
                Request::Check { ask } => call.check(&ask),
                Request::Run { name, ask, join, command } => call.run(&name, &ask, join, &command, &inheritance),
                Request::Attach { name, ask, pid: Some(pid) } => call.attach(&name, &ask, pid, None).map(drop),
                Request::Attach { name, ask, pid: None } => call.stage(&name, &ask),
                Request::Create { name, ask } => call.create(&name, &ask),
                Request::Delete { name, kill } => call.delete(&name, kill),
                Request::List { json } => call.list(json),
                Request::Prune { dry_run, paths } if paths.is_empty() => call.prune(dry_run),
                Request::Prune { dry_run, paths } => call.leftovers(dry_run, &paths),
            }
        },
    );
    CGDELEGATE.status(result)
}

/// Who called, with the supplementary groups.
struct Call<'a> {
    caller: &'a Caller,
    groups: &'a [u32],
}

/// What is left after a sweep: the cgroup that is asked for, when it is there, and the others.
struct Found {
    node: Option<Node>,
    others: Vec<Node>,
}

/// What a call works with once it has been decided.
struct Decided {
    grant: Grant,
    host: Host,
    base: Option<Vec<String>>,
}

impl Call<'_> {
    /// run: enters a fresh cgroup and becomes the command.
    fn run(
        &self,
        name: &Name,
        ask: &Ask,
        join: bool,
        command: &[OsString],
        inheritance: &Inheritance,
    ) -> Result<(), Failure> {
        let (program, arguments) = find_command(command, inheritance)?;
        let result = self.decide(ask, None).and_then(|decided| {
            let mut session = self.session(&decided)?;
            self.claim(&mut session, name, ask, &decided.grant, join)?;
            Ok(decided.grant.line)
        });
        self.log("run", Some(name), result.as_ref().copied());
        result?;
        become_caller_for_good(self.caller)?;
        // From here on this is the caller's own process, and the command gets what was given to us.
        let error = inheritance.exec(&program, &arguments);
        let status = if error == nix::errno::Errno::ENOENT { 127 } else { 126 };
        Err(Failure::new(format!("exec {}: {}", program.to_string_lossy(), error.desc())).status(status))
    }

    /// Gets into a cgroup, which is made unless it is there to be entered.
    fn claim(
        &self,
        session: &mut Session<'_>,
        name: &Name,
        ask: &Ask,
        grant: &Grant,
        join: bool,
    ) -> Result<(), Failure> {
        let found = self.sweep_for(session, name, join)?;
        match found.node {
            Some(node) if join || node.kind() == Some(Kind::Create) => {
                // What was made with fewer hierarchies is entered as it is, unless others are asked for.
                if ask.controllers.is_some() && !session.is_whole(name.as_str())? {
                    return Err(other_hierarchies(name));
                }
                session.renew(name.as_str(), grant, &ask.limits)?;
                session.enter(name.as_str(), join)
            }
            Some(node) => Err(in_use(&node)),
            None => {
                Self::fits(&found.others, name, grant)?;
                session.make(name.as_str(), grant)?;
                session.hand_over(name.as_str(), grant.owner, Kind::Run)?;
                session.enter(name.as_str(), false).inspect_err(|_| session.abandon(name.as_str()))
            }
        }
    }

    /// Removes what is stale, then looks for a cgroup. One whose last process is dying this moment is waited for.
    fn sweep_for(&self, session: &mut Session<'_>, name: &Name, wanted_alive: bool) -> Result<Found, Failure> {
        let mut tries = 25_u32;
        loop {
            let mut others = session.sweep(Some(name.as_str()))?;
            let node = others.iter().position(|node| node.name == name.as_str()).map(|at| others.swap_remove(at));
            let dying = node.as_ref().is_some_and(|node| {
                !wanted_alive && node.kind() != Some(Kind::Create) && node.processes().iter().all(|pid| is_dying(*pid))
            });
            match (dying, tries.checked_sub(1)) {
                (true, Some(left)) => tries = left,
                _ => return Ok(Found { node, others }),
            }
            std::thread::sleep(std::time::Duration::from_millis(4));
        }
    }

    /// The quota.
    fn fits(others: &[Node], name: &Name, grant: &Grant) -> Result<(), Failure> {
        if others.len() < grant.max as usize {
            return Ok(());
        }
        let names: Vec<&str> = others.iter().map(|node| node.name.as_str()).take(8).collect();
        let dying = others.iter().any(Node::is_stale);
        Err(Failure::new(format!(
            "{name}: you have {} of the {} cgroups that {}:{} allows ({}{}): delete one{}",
            others.len(),
            grant.max,
            config::PATH,
            grant.line,
            names.join(", "),
            if others.len() > names.len() { ", ..." } else { "" },
            if dying { ", or try again: one is about to go" } else { "" }
        ))
        .status(if dying { TRY_AGAIN } else { NOT_PERMITTED }))
    }

    /// create: makes a cgroup that stays.
    fn create(&self, name: &Name, ask: &Ask) -> Result<(), Failure> {
        let result = self.decide(ask, None).and_then(|decided| {
            let mut session = self.session(&decided)?;
            let found = self.sweep_for(&mut session, name, false)?;
            match found.node {
                Some(node) if node.kind() == Some(Kind::Create) => {
                    if !session.is_whole(name.as_str())? {
                        return Err(other_hierarchies(name));
                    }
                    session.renew(name.as_str(), &decided.grant, &ask.limits)?;
                    return Ok(decided.grant.line);
                }
                Some(node) => return Err(in_use(&node)),
                None => {}
            }
            Self::fits(&found.others, name, &decided.grant)?;
            session.make(name.as_str(), &decided.grant)?;
            session.hand_over(name.as_str(), decided.grant.owner, Kind::Create)?;
            Ok(decided.grant.line)
        });
        self.log("create", Some(name), result.as_ref().copied());
        result.map(drop)
    }

    /// attach --pid: moves a process of the caller. Gives the paths.
    fn attach(&self, name: &Name, ask: &Ask, pid: i32, start: Option<u64>) -> Result<Vec<String>, Failure> {
        let result = self.attach_process(name, ask, pid, start);
        self.log("attach", Some(name), result.as_ref().map(|(line, _)| *line));
        result.map(|(_, paths)| paths)
    }

    fn attach_process(
        &self,
        name: &Name,
        ask: &Ask,
        pid: i32,
        start: Option<u64>,
    ) -> Result<(u64, Vec<String>), Failure> {
        let process = Process::open(pid, start, self.caller)?;
        let decided = self.decide(ask, Some(&process))?;
        let grant = &decided.grant;
        let mut session = self.session(&decided)?;
        let found = self.sweep_for(&mut session, name, false)?;
        match found.node {
            Some(node) if node.kind() == Some(Kind::Create) => {
                if !session.is_whole(name.as_str())? {
                    return Err(other_hierarchies(name));
                }
                session.renew(name.as_str(), grant, &ask.limits)?;
                let _held = session.move_in(name.as_str(), &process)?;
                session.hand_over_again(name.as_str(), grant.owner)?;
            }
            Some(node) => return Err(in_use(&node)),
            None => {
                Self::fits(&found.others, name, grant)?;
                session.make(name.as_str(), grant)?;
                let _held = session.move_in(name.as_str(), &process).inspect_err(|_| session.abandon(name.as_str()))?;
                session.hand_over(name.as_str(), grant.owner, Kind::Attach)?;
            }
        }
        Ok((grant.line, session.paths(name.as_str())))
    }

    /// attach as a stage of a container start; userns-handoff(7) is the contract.
    fn stage(&self, name: &Name, ask: &Ask) -> Result<(), Failure> {
        let mut record =
            Record::read_from(&mut std::io::stdin()).map_err(|e| Failure::new(e.to_string()).status(DATA))?;
        if record.failed().is_some() {
            print(&format!("{record}\n"))?;
            return Err(Failure::new("").status(EXIT_PASSED_ON));
        }
        let result = self.attach(name, ask, record.pid(), Some(record.start())).and_then(|paths| {
            record.set("cgroup", &paths.join(",")).map_err(|e| Failure::new(e.to_string()).status(DATA))
        });
        if let Err(failed) = &result {
            let word = format!("cgdelegate:{}", failed.status);
            if record.set("failed", &word).is_err() {
                record = Record::new(record.pid(), record.start());
                let _ = record.set("failed", &word);
            }
        }
        let passed_on = print(&format!("{record}\n")).map_err(|failure| failure.status(SYSTEM));
        result.and(passed_on)
    }

    /// delete: removes a cgroup, after killing what is in it if that was asked for.
    fn delete(&self, name: &Name, kill: bool) -> Result<(), Failure> {
        let host = Host::look()?;
        let mut session = Session::open(self.caller, &host, &[], None)?;
        let node = session.nodes()?.into_iter().find(|node| node.name == name.as_str());
        let Some(node) = node else {
            return Err(Failure::new(format!("you have no cgroup {name}: see cgdelegate list")).status(NOT_PERMITTED));
        };
        if node.is_alive() && !kill {
            let mut failure = in_use(&node);
            failure.text.push_str(", or delete it with --kill");
            return Err(failure);
        }
        if node.is_alive() {
            session.kill(&node)?;
            self.log("kill", Some(name), Ok(0));
        }
        // What was killed may need a moment to go.
        let mut result = session.remove(&node);
        for _ in 0..20 {
            if result.is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
            if kill {
                session.kill(&node)?;
            }
            result = session.remove(&node);
        }
        result?;
        let lost = session.tidy()?;
        drop(session);
        let_go(&lost);
        Ok(())
    }

    /// list: the caller's cgroups; root's list has everybody's.
    fn list(&self, json: bool) -> Result<(), Failure> {
        let host = Host::look()?;
        let mut found: Vec<(u32, Node)> = Vec::new();
        let result = self.for_each_user(&host, |uid, session| {
            found.extend(session.nodes()?.into_iter().map(|node| (uid, node)));
            Ok(())
        });
        let mut text = String::new();
        let lines: Vec<String> =
            found.iter().map(|(uid, node)| if json { as_json(*uid, node) } else { as_line(*uid, node) }).collect();
        if json {
            let _ = writeln!(text, "[{}]", lines.join(","));
        } else {
            lines.iter().for_each(|line| {
                let _ = writeln!(text, "{line}");
            });
        }
        print(&text)?;
        result
    }

    /// prune: removes what is stale; root's call everybody's.
    fn prune(&self, dry_run: bool) -> Result<(), Failure> {
        let host = Host::look()?;
        let mut text = String::new();
        let mut lost = Vec::new();
        let result = self.for_each_user(&host, |_, session| {
            let mut result = Ok(());
            let nodes = session.nodes()?;
            if !dry_run {
                session.clear_staging();
            }
            for node in nodes.iter().filter(|node| node.is_stale()) {
                let removed = if dry_run { Ok(()) } else { session.remove(node) };
                match removed {
                    Ok(()) => node.paths.iter().for_each(|path| {
                        let _ = writeln!(text, "{path}");
                    }),
                    Err(failure) => result = result.and(Err(failure)),
                }
            }
            if !dry_run {
                match session.tidy() {
                    Ok(names) => lost.extend(names),
                    Err(failure) => result = result.and(Err(failure)),
                }
            }
            result
        });
        let_go(&lost);
        print(&text)?;
        result
    }

    fn leftovers(&self, dry_run: bool, paths: &[OsString]) -> Result<(), Failure> {
        become_caller_for_good(self.caller)?;
        let (lines, result) = leftovers::prune(paths, dry_run)?;
        print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
        result
    }

    /// Works on the cgroups that a list or a prune is about: the caller's; root's call is about everybody's. A user can
    /// stop a call of his own while it holds his lock, so others are not waited for long, and are named at the end.
    fn for_each_user(
        &self,
        host: &Host,
        mut work: impl FnMut(u32, &mut Session<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if self.caller.uid != 0 {
            return work(self.caller.uid, &mut Session::open(self.caller, host, &[], None)?);
        }
        let mut result = Ok(());
        let mut begin = None;
        let mut left = ledger::users()?;
        // First those that are free, then the others.
        for _ in 0..2 {
            let mut held = Vec::new();
            for uid in left {
                let patience = begin.map_or(Duration::ZERO, |begin: Instant| {
                    ledger::PATIENCE_WITH_OTHERS.saturating_sub(begin.elapsed())
                });
                match Session::of(self.caller, uid, patience, host) {
                    Ok(mut session) => result = result.and(work(uid, &mut session)),
                    Err(failure) if failure.status == TRY_AGAIN => held.push(uid),
                    Err(failure) => result = result.and(Err(failure)),
                }
            }
            left = held;
            begin.get_or_insert_with(Instant::now);
        }
        if left.is_empty() {
            return result;
        }
        let uids: Vec<String> = left.iter().map(u32::to_string).collect();
        result.and(Err(Failure::new(format!(
            "left out uid {}: a call of that user holds {}/UID and has not let go: is it stopped or frozen? end it, or try again",
            uids.join(", "),
            ledger::PATH
        ))
        .status(TRY_AGAIN)))
    }

    /// check: the decision and the line behind it.
    fn check(&self, ask: &Ask) -> Result<(), Failure> {
        let decided = self.decide(ask, None)?;
        let grant = &decided.grant;
        let mut text = format!("allowed: {}:{}\ncgroups: at most {} at a time\n", config::PATH, grant.line, grant.max);
        let words =
            |limits: &[config::Limit]| limits.iter().map(config::Limit::to_string).collect::<Vec<_>>().join(" ");
        let controllers: Vec<String> = grant.controllers.iter().map(Controller::to_string).collect();
        let _ = writeln!(
            text,
            "controllers: {}",
            if controllers.is_empty() { "-".to_owned() } else { controllers.join(",") }
        );
        let _ = writeln!(text, "ceilings of all your cgroups together: {}", words(&grant.total));
        let _ = writeln!(text, "limits of one: {}", words(&grant.node));
        let _ = writeln!(
            text,
            "owner: {}:{}{}",
            grant.owner.uid,
            grant.owner.gid,
            if grant.owner.group_writes { ", group may write" } else { "" }
        );
        let hierarchies: Vec<String> = decided.host.select(&grant.controllers).into_iter().map(|h| h.label).collect();
        let _ = writeln!(text, "hierarchies: {}", hierarchies.join(" "));
        print(&text)
    }

    fn session(&self, decided: &Decided) -> Result<Session<'_>, Failure> {
        let selected = decided.host.select(&decided.grant.controllers);
        let session = Session::open(self.caller, &decided.host, &selected, decided.base.as_deref())?;
        session.renew_ceilings(&decided.grant)?;
        Ok(session)
    }

    /// Reads what a decision depends on, with the caller's rights, and decides.
    fn decide(&self, ask: &Ask, target: Option<&Process>) -> Result<Decided, Failure> {
        let (config, file_exists) = read_config()?;
        let names: Vec<String> =
            self.caller.account.names.iter().filter_map(|name| String::from_utf8(name.clone()).ok()).collect();
        let mut gids = self.groups.to_vec();
        gids.push(self.caller.gid);
        let caller = policy::Caller {
            uid: self.caller.uid,
            gid: self.caller.gid,
            names: &names,
            gids: &gids,
            shown: &self.caller.shown(),
        };
        let groups = group_ids(&config)?;
        let entry = policy::entry(&config, &caller, |name| groups.get(name).cloned().unwrap_or_default());
        let host = Host::look()?;
        let available = host.available(entry.map(|entry| entry.controllers.as_slice()).unwrap_or_default());
        let mut ask = ask.clone();
        let uids = if ask.owner.is_some() { self.ranges(IdKind::Uid)? } else { Vec::new() };
        let gid_ranges = self.ranges(IdKind::Gid)?;
        let within =
            |ranges: &[IdRange], id: u32| ranges.iter().any(|range| (range.start()..range.end()).contains(&id));
        if let Some(process) = target
            && ask.owner.is_none()
            && !process.shares_our_user_namespace()
            && let Some(gid) = process.root_gid()?
        {
            // What the target's user namespace calls root shall manage the cgroup, through its group.
            ask.owner = Some((self.caller.uid, Some(gid)));
        }
        let facts = Facts {
            entry,
            file_exists,
            unified: host.has_unified(),
            available: &available,
            subordinate_gid: gid_ranges.first().map(|range| range.start()),
            uid_is_granted: ask.owner.is_some_and(|(uid, _)| within(&uids, uid)),
            gid_is_granted: ask.owner.and_then(|(_, gid)| gid).is_some_and(|gid| within(&gid_ranges, gid)),
            caller,
        };
        let grant = policy::decide(&ask, &facts).map_err(|refusal| Failure::new(refusal.why).status(refusal.status))?;
        Ok(Decided { grant, host, base: config.base })
    }

    /// The caller's subordinate ids, in file order. A file that is missing, not believed or not the authority grants none.
    fn ranges(&self, kind: IdKind) -> Result<Vec<IdRange>, Failure> {
        let mut found = Vec::new();
        if subid_source().is_err() {
            return Ok(found);
        }
        let Ok(mut file) = Trusted::open(kind.subid_path()) else { return Ok(found) };
        let owner = Owner::new(self.caller.uid, &self.caller.account.names);
        file.each_line(|_, line| {
            if let Line::Grant(range) = parse_line(line, &owner) {
                found.push(range);
            }
            if found.len() < MAX_RANGES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
        .map_err(|why| Failure::new(format!("read {}: {why}", kind.subid_path())).status(SYSTEM))?;
        Ok(found)
    }

    fn log(&self, action: &str, name: Option<&Name>, result: Result<u64, &Failure>) {
        let user = self.caller.account.names.first().map_or(&b"-"[..], Vec::as_slice);
        let mut message = Message::default()
            .field("event", b"cgroup")
            .field("result", if result.is_ok() { b"granted" } else { b"refused" })
            .field("uid", self.caller.uid.to_string().as_bytes())
            .field("user", user)
            .field("pid", std::process::id().to_string().as_bytes())
            .field("action", action.as_bytes())
            .field("name", name.map_or("-", Name::as_str).as_bytes());
        match result {
            Ok(line) => message = message.field("line", line.to_string().as_bytes()),
            Err(failure) => message = message.field("reason", failure.text.as_bytes()),
        }
        CGDELEGATE.log(result.is_ok(), &message);
    }
}

/// Nothing but a signal that cannot be caught is left to it.
fn is_dying(pid: i32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let dead = status.lines().any(|line| line.starts_with("State:") && line.contains(['Z', 'X']));
    let killed = |line: &str| {
        line.strip_prefix("SigPnd:")
            .or_else(|| line.strip_prefix("ShdPnd:"))
            .is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & (1 << 8) != 0))
    };
    dead || status.lines().any(killed)
}

fn in_use(node: &Node) -> Failure {
    let text = if node.is_alive() {
        format!(
            "{} is in use by process {}: choose another name, or wait for its end",
            node.name,
            node.shown_processes()
        )
    } else {
        format!("{} is still going away: try again", node.name)
    };
    Failure::new(text).status(TRY_AGAIN)
}

fn other_hierarchies(name: &Name) -> Failure {
    Failure::new(format!("{name} exists with other hierarchies: delete it first (cgdelegate delete {name})"))
        .status(TRY_AGAIN)
}

fn as_line(uid: u32, node: &Node) -> String {
    let state = if node.is_alive() {
        "alive"
    } else if node.is_stale() {
        "stale"
    } else {
        "idle"
    };
    let kind = node.kind().map_or("unfinished", Kind::word);
    format!("{} {uid} {kind} {state} {}", node.name, node.paths.join(" "))
}

/// Names and paths are ASCII of our own making, but for mount points; those are escaped.
fn as_json(uid: u32, node: &Node) -> String {
    let quote = |text: &str| {
        let mut quoted = String::from('"');
        for c in text.chars() {
            match c {
                '"' | '\\' => {
                    quoted.push('\\');
                    quoted.push(c);
                }
                c if c.is_control() => {
                    let _ = write!(quoted, "\\u{:04x}", u32::from(c));
                }
                c => quoted.push(c),
            }
        }
        quoted.push('"');
        quoted
    };
    let processes: Vec<String> = node.processes().iter().map(i32::to_string).collect();
    let paths: Vec<String> = node.paths.iter().map(|path| quote(path)).collect();
    format!(
        "{{\"name\":{},\"uid\":{uid},\"kind\":{},\"alive\":{},\"stale\":{},\"processes\":[{}],\"paths\":[{}]}}",
        quote(&node.name),
        quote(node.kind().map_or("unfinished", Kind::word)),
        node.is_alive(),
        node.is_stale(),
        processes.join(","),
        paths.join(",")
    )
}

fn read_config() -> Result<(Config, bool), Failure> {
    let refused = |why: String| Failure::new(why).status(CONFIGURATION);
    let mut file = match Trusted::open(config::PATH) {
        Ok(file) => file,
        Err(Distrust::Missing) => return Ok((Config::default(), false)),
        Err(Distrust::Refused(why)) => return Err(refused(why)),
    };
    let content = file.whole(config::MAX_FILE).map_err(|why| refused(format!("read {}: {why}", config::PATH)))?;
    config::parse(&content).map(|config| (config, true)).map_err(|malformed| refused(malformed.to_string()))
}

/// The gids that /etc/group gives to the groups of the configuration. No NSS module is asked.
fn group_ids(config: &Config) -> Result<BTreeMap<String, Vec<u32>>, Failure> {
    const PATH: &str = "/etc/group";
    let mut wanted: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for entry in &config.entries {
        if let Who::Group(name) = &entry.who {
            wanted.entry(name.clone()).or_default();
        }
    }
    if wanted.is_empty() {
        return Ok(wanted);
    }
    let mut file = match Trusted::open(PATH) {
        Ok(file) => file,
        Err(Distrust::Missing) => return Ok(wanted),
        Err(Distrust::Refused(why)) => return Err(Failure::new(why).status(CONFIGURATION)),
    };
    file.each_line(|_, line| {
        let mut fields = line.split(|b| *b == b':');
        if let Some(gids) =
            fields.next().and_then(|name| core::str::from_utf8(name).ok()).and_then(|name| wanted.get_mut(name))
            && gids.is_empty()
            && let Some(gid) = fields.nth(1).and_then(plain_number)
        {
            gids.push(gid);
        }
        ControlFlow::Continue(())
    })
    .map_err(|why| Failure::new(format!("read {PATH}: {why}")).status(SYSTEM))?;
    Ok(wanted)
}

/// The program to execute and its argument vector: looked up in the caller's PATH and with his rights, before anything is
/// made for it.
fn find_command(command: &[OsString], inheritance: &Inheritance) -> Result<(CString, Vec<CString>), Failure> {
    let text = |word: &OsString| {
        CString::new(word.as_bytes()).map_err(|_| Failure::new("an argument with a NUL byte").status(USAGE))
    };
    let arguments = command.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let word = command.first().cloned().unwrap_or_default();
    if word.as_bytes().contains(&b'/') {
        return usable(&word).map(|program| (program, arguments));
    }
    let path = inheritance.variable("PATH").unwrap_or(b"/usr/local/bin:/usr/bin:/bin").to_vec();
    let mut denied = None;
    for directory in path.split(|b| *b == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        let candidate = OsString::from_vec([directory, b"/", word.as_bytes()].concat());
        match usable(&candidate) {
            Ok(program) => return Ok((program, arguments)),
            Err(failure) if failure.status == 126 => {
                denied.get_or_insert(failure);
            }
            Err(_) => {}
        }
    }
    Err(denied.unwrap_or_else(|| Failure::new(format!("{}: not found in PATH", word.to_string_lossy())).status(127)))
}

fn usable(path: &OsString) -> Result<CString, Failure> {
    let shown = path.to_string_lossy();
    let bad = |why: &str, status: u8| Failure::new(format!("{shown}: {why}")).status(status);
    match nix::unistd::access(path.as_os_str(), nix::unistd::AccessFlags::X_OK) {
        Ok(()) => {}
        Err(error @ (nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR)) => return Err(bad(error.desc(), 127)),
        Err(error) => return Err(bad(error.desc(), 126)),
    }
    if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        return Err(bad("Is a directory or a special file", 126));
    }
    CString::new(path.as_bytes()).map_err(|_| bad("a NUL byte", USAGE))
}

const HELP: &str = "\
usage: cgdelegate run NAME [OPTION...] [--join] -- COMMAND [ARGUMENT...]
       cgdelegate create NAME [OPTION...]
       cgdelegate attach NAME [OPTION...] [--pid PID]      without --pid: as a stage, spawn hold ... | ... | spawn go
       cgdelegate delete NAME [--kill]
       cgdelegate list [--json]
       cgdelegate prune [--dry-run] [DIRECTORY...]
       cgdelegate check [OPTION...]

Gives you cgroups of your own, in every hierarchy of the host, as /etc/cgdelegate.conf allows.

run           make the cgroup NAME, enter it, and become COMMAND; it goes when it is empty, at your next call
create        make one that stays until you delete it
attach        move a process of yours (or of a container that you start) into one
delete        remove one; --kill: kill everything in it first
list          name, uid, how it was made, state, and where it is
prune         remove stale cgroups, and print them: yours; with DIRECTORY what LXC left there (lxc.monitor, lxc.payload,
              lxc.pivot), without touching a container that is alive
check         whether you may, by which line, and with what limits; changes nothing

--memory BYTES, --pids N, --cpus N      limits of this cgroup; K, M, G and T are 1024
--limit KEY=VALUE                       any other: memory.high, memory.swap.max, cpu.max, cpu.weight, io.weight,
                                        cgroup.max.descendants, cgroup.max.depth
--controllers LIST                      only these of what you are granted, as memory,pids,name=systemd; - for none
--owner UID[:GID]                       whose it becomes: you or a subordinate id of yours
--join                                  enter NAME although something is running in it
--check                                 say whether it would be done, as the command check
--dry-run                               say what would be removed
--help, --version                       this text; name and version

examples:
  cgdelegate run build1 --memory 2G --pids 500 -- make -j8
  cgdelegate run c7 -- lxc-start -n c7
  spawn hold centos7 | idmap | cgdelegate attach centos7 | spawn go
  cgdelegate delete build1 --kill

Exit status: 0 done, 64 usage, 65 bad record or no such process, 69 the host lacks it, 71 a system call failed, 75 in
use or try again, 77 not permitted, 78 bad configuration; run: the command's own, 126 or 127 when it cannot be executed.
Manual: cgdelegate(1), cgdelegate.conf(5).
";
