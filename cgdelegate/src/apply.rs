//! The verdict meets the kernel: makes, enters, lists and removes the cgroups of one user. Nothing is decided here.
//!
//! Layout: `BASE/cgd-UID/NAME`. `cgd-UID` is root's, holds no process and carries the ceilings; `NAME` becomes the user's.
//! Everything happens under the user's lock ([`Ledger`]) and as [`FullRoot`], which the user's signals cannot reach. A
//! killed call leaves at most a directory whose record does not say `made`, or one that holds no process: the next call
//! of the same user removes it before it counts.

#![forbid(unsafe_code)]

use crate::config::{Controller, Key, Limit, Value};
use crate::directory::{Directory, read_path, write_once};
use crate::hierarchy::{Base, BaseError, Hierarchy, Host, OWN_BASE, USER_PREFIX, check_release_agent};
use crate::ledger::{self, Ledger};
use crate::policy::{Grant, Ownership};
use crate::target::{Held, Process, gone};
use caps::Capability;
use core::fmt;
use helper::caller::Caller;
use helper::enter::FullRoot;
use helper::handover;
use helper::handover::sys;
use helper::report::Failure;
use nix::errno::Errno;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The owner record: an extended attribute that only root sees.
const RECORD: &CStr = c"trusted.cgdelegate";

/// A directory of earlier versions, in which `attach` may have left processes.
const STAGING: &str = ".staging";

/// Longest wait for processes that are dying.
const DYING: Duration = Duration::from_secs(1);

/// How often a directory that another user's call removed is made again.
const TRIES: u32 = 100;

/// Most directories that one call visits in one cgroup; the next call goes on.
pub(crate) const MAX_VISITS: u32 = 200_000;

/// The same for root's calls, which come to every user, for all cgroups of one user together: what is beyond counts as
/// alive.
const MAX_VISITS_OF_OTHERS: u32 = 5_000;

/// Rounds of killing.
const MAX_ROUNDS: u32 = 50;

const UNAVAILABLE: u8 = 69;
const SYSTEM: u8 = 71;
const TRY_AGAIN: u8 = 75;
const NOT_PERMITTED: u8 = 77;
const CONFIGURATION: u8 = 78;

/// How a cgroup came to be, which tells when it is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By `run`: stale when empty.
    Run,
    /// By `attach`: stale when empty.
    Attach,
    /// By `create`: stays until it is deleted.
    Create,
}

impl Kind {
    /// The word in the record and in lists.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Attach => "attach",
            Self::Create => "create",
        }
    }
}

/// What the owner record says: `1 made run 1001 4711`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whether it was finished.
    pub made: bool,
    /// By what.
    pub kind: Kind,
    /// For which uid.
    pub uid: u32,
    /// By which process.
    pub pid: u32,
}

impl Record {
    /// Reads one.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = core::str::from_utf8(bytes).ok()?;
        let mut words = text.split(' ');
        if words.next()? != "1" {
            return None;
        }
        let made = match words.next()? {
            "made" => true,
            "making" => false,
            _ => return None,
        };
        let kind = words.next()?;
        let kind = [Kind::Run, Kind::Attach, Kind::Create].into_iter().find(|k| k.word() == kind)?;
        let (uid, pid) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        words.next().is_none().then_some(Self { made, kind, uid, pid })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.made { "made" } else { "making" };
        write!(f, "1 {state} {} {} {}", self.kind.word(), self.uid, self.pid)
    }
}

/// A base in one hierarchy.
#[derive(Debug)]
struct Site {
    hierarchy: Hierarchy,
    top: Directory,
    base: Base,
    /// The user's directory once it has been opened. Nobody else removes it: that takes the user's lock.
    opened: RefCell<Option<Rc<Directory>>>,
    /// The files of the user's directory that carry a ceiling, as its record has them. `None`: not read yet.
    ceilings: RefCell<Option<Vec<String>>>,
}

/// A cgroup that this call has made, with its directories in the hierarchies of this call: root's alone, until they are
/// handed over.
#[derive(Debug)]
struct Fresh {
    name: String,
    nodes: Vec<(usize, Directory)>,
    given: bool,
}

/// How much [`Session::read_nodes`] looks at.
#[derive(Clone, Copy, Debug)]
enum Look<'n> {
    /// At everything.
    Everywhere,
    /// At what tells whether a cgroup is stale, and everywhere in that of this name, if one is given.
    Stale(Option<&'n str>),
}

impl Site {
    fn new(hierarchy: Hierarchy, top: Directory, base: Base) -> Self {
        Self { hierarchy, top, base, opened: RefCell::default(), ceilings: RefCell::default() }
    }

    /// Sets the ceilings of the user's directory, and takes those away that an earlier call has set and the file does not
    /// have any more. Which these are stands in a record of the directory's, so that what root sets by hand stays. The
    /// record is written before a ceiling is set and after one is taken away.
    fn set_ceilings(&self, user: &Directory, limits: &[Limit], uid: u32) -> Result<(), Failure> {
        let carried = limits.iter().any(|limit| !files_of(&self.hierarchy, *limit).is_empty());
        if !carried && !self.may_have_ceilings() {
            return Ok(());
        }
        let failed = |e| self.failure("write the record of", uid, "", e);
        let before = match self.ceilings.borrow_mut().take() {
            Some(before) => before,
            None => {
                let read = handover::with(Capability::CAP_SYS_ADMIN, || read_ceilings(user))?;
                read.map_err(|e| self.failure("read the record of", uid, "", e))?
            }
        };
        let now: Vec<String> = limits
            .iter()
            .flat_map(|limit| files_of(&self.hierarchy, *limit))
            .map(|(file, _)| file.to_owned())
            .collect();
        let write = |files: &[&String]| {
            let text = files.iter().map(|file| file.as_str()).collect::<Vec<_>>().join(" ");
            handover::with(Capability::CAP_SYS_ADMIN, || user.set_attribute(RECORD, text.as_bytes()))?.map_err(failed)
        };
        let lost: Vec<&String> = before.iter().filter(|file| !now.contains(file)).collect();
        if !now.iter().all(|file| before.contains(file)) {
            write(&now.iter().chain(lost.iter().copied()).collect::<Vec<_>>())?;
        }
        let mut result = Ok(());
        for limit in limits {
            match set_limits(self, user, core::slice::from_ref(limit), uid, "", true) {
                Err(failure) if failure.status != UNAVAILABLE => return Err(failure),
                set => result = result.and(set),
            }
        }
        for file in &lost {
            let Some(none) = no_limit(file) else { continue };
            match user.write(file, none) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(error) => {
                    return Err(self.failure(&format!("write {none} to {file} of"), uid, "", error));
                }
            }
        }
        if !lost.is_empty() {
            write(&now.iter().collect::<Vec<_>>())?;
        }
        *self.ceilings.borrow_mut() = Some(now);
        result
    }

    /// Whether a limit of the file can be one of this hierarchy's.
    fn may_have_ceilings(&self) -> bool {
        self.hierarchy.is_unified() || self.hierarchy.has_legacy("pids") || self.hierarchy.has_legacy("cpu")
    }

    /// The user's directory, when it is there.
    fn user(&self, uid: u32) -> Result<Option<Rc<Directory>>, Failure> {
        if let Some(user) = self.opened.borrow().as_ref() {
            return Ok(Some(Rc::clone(user)));
        }
        let base = self.base.open(&self.top, false).map_err(|e| self.base_failure(e))?;
        let Some(base) = base else { return Ok(None) };
        match base.open(&user_name(uid)) {
            Err(Errno::ENOENT) => Ok(None),
            Ok(user) if user.is_roots().unwrap_or(false) => Ok(Some(self.keep(user))),
            Ok(_) => Err(Failure::new(format!("{} is not root's alone", self.show(uid, ""))).status(SYSTEM)),
            Err(error) => Err(self.failure("open", uid, "", error)),
        }
    }

    fn forget(&self) {
        *self.opened.borrow_mut() = None;
    }

    fn keep(&self, user: Directory) -> Rc<Directory> {
        let user = Rc::new(user);
        *self.opened.borrow_mut() = Some(Rc::clone(&user));
        user
    }

    fn path(&self, uid: u32, name: &str) -> String {
        let separator = if name.is_empty() { "" } else { "/" };
        format!("{}/{}{separator}{name}", self.base.shown(), user_name(uid))
    }

    fn show(&self, uid: u32, name: &str) -> String {
        self.hierarchy.show(&self.path(uid, name))
    }

    fn failure(&self, what: &str, uid: u32, name: &str, error: Errno) -> Failure {
        Failure::new(format!("{what} {}: {}", self.show(uid, name), error.desc())).status(SYSTEM)
    }

    fn base_failure(&self, error: BaseError) -> Failure {
        let shown = self.hierarchy.show(&self.base.shown());
        match error {
            BaseError::NotRoots(part) => Failure::new(format!(
                "the base {shown} is not used: {part} is not root's, or others may write it; name another with a line \"base PATH\" in /etc/cgdelegate.conf"
            ))
            .status(CONFIGURATION),
            BaseError::Kernel(error) => Failure::new(format!("open the base {shown}: {}", error.desc())).status(SYSTEM),
        }
    }
}

fn user_name(uid: u32) -> String {
    format!("{USER_PREFIX}{uid}")
}

/// What is known of one cgroup in one hierarchy.
#[derive(Debug)]
struct Piece {
    site: usize,
    record: Option<Record>,
    processes: Vec<i32>,
}

/// One cgroup of the user, over all hierarchies.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    pieces: Vec<Piece>,
    /// Where it is.
    pub paths: Vec<String>,
}

impl Node {
    /// Processes in it or below, in any hierarchy.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let mut all: Vec<i32> = self.pieces.iter().flat_map(|piece| piece.processes.iter().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether something lives in it.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.pieces.iter().any(|piece| !piece.processes.is_empty())
    }

    /// How it came to be; `None` when it was never finished.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        let mut records = self.pieces.iter().map(|piece| piece.record.filter(|record| record.made));
        let first = records.next().flatten()?;
        records.all(|record| record.is_some()).then_some(first.kind)
    }

    /// Nobody uses it, and nobody wants it kept.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        !self.is_alive() && self.kind() != Some(Kind::Create)
    }

    /// `4711, 4712 and 3 more`.
    #[must_use]
    pub fn shown_processes(&self) -> String {
        const SHOWN: usize = 5;
        let all = self.processes();
        let mut text = all
            .iter()
            .take(SHOWN)
            .map(|pid| if *pid == 0 { "one that cannot be seen here".to_owned() } else { pid.to_string() })
            .collect::<Vec<_>>()
            .join(", ");
        if all.len() > SHOWN {
            text.push_str(&format!(" and {} more", all.len().saturating_sub(SHOWN)));
        }
        text
    }
}

/// The cgroups of one user, locked. While it lives nobody else changes them.
#[derive(Debug)]
pub struct Session<'a> {
    caller: &'a Caller,
    uid: u32,
    ledger: Ledger,
    sites: Vec<Site>,
    /// The first so many sites are those of this call.
    current: usize,
    fresh: Option<Fresh>,
    /// Whether there is something to remove by the name [`STAGING`].
    staging: Cell<bool>,
    /// Dropped last, with the lock.
    root: Option<FullRoot>,
}

impl<'a> Session<'a> {
    /// Becomes root, takes the lock of the caller, and opens `selected` (a named hierarchy that does not exist is made) and
    /// whatever the user has used before.
    ///
    /// # Errors
    /// The privilege is missing (77), the lock is held (75), a hierarchy cannot be opened.
    pub fn open(
        caller: &'a Caller,
        host: &Host,
        selected: &[Hierarchy],
        base: Option<&[String]>,
    ) -> Result<Self, Failure> {
        Self::with(caller, caller.uid, ledger::PATIENCE, host, selected, base)
    }

    /// The same for what `uid` has, whoever that is, waiting for the lock no longer than `patience`.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn of(caller: &'a Caller, uid: u32, patience: Duration, host: &Host) -> Result<Self, Failure> {
        Self::with(caller, uid, patience, host, &[], None)
    }

    fn with(
        caller: &'a Caller,
        uid: u32,
        patience: Duration,
        host: &Host,
        selected: &[Hierarchy],
        base: Option<&[String]>,
    ) -> Result<Self, Failure> {
        let root = FullRoot::begin(caller).map_err(|failure| failure.status(NOT_PERMITTED))?;
        let ledger = Ledger::open(uid, patience)?;
        let mut sites = Vec::new();
        for hierarchy in selected {
            let Some(top) = hierarchy.open(true)? else { continue };
            if !hierarchy.is_unified() {
                check_release_agent(hierarchy, &top)?;
            }
            let base = Base::choose(base, &hierarchy.here, &top).map_err(|e| {
                Failure::new(format!("look for a base in {}: {}", hierarchy.label, e.desc())).status(SYSTEM)
            })?;
            sites.push(Site::new(hierarchy.clone(), top, base));
        }
        let current = sites.len();
        let mut others = Vec::new();
        for (label, path) in ledger.entries() {
            let path: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
            if sites.iter().any(|site| site.hierarchy.label == *label && site.base.path == path) {
                continue;
            }
            let Some(hierarchy) = host.hierarchies.iter().find(|h| h.label == *label) else { continue };
            if let Some(top) = hierarchy.open(false)? {
                others.push(Site::new(hierarchy.clone(), top, Base { path, make: false }));
            }
        }
        let rank = |site: &Site| host.hierarchies.iter().position(|h| h.label == site.hierarchy.label);
        others.sort_by_key(rank);
        sites.append(&mut others);
        let staging = Cell::new(false);
        Ok(Self { caller, uid, ledger, sites, current, fresh: None, staging, root: Some(root) })
    }

    /// The user's cgroups.
    ///
    /// # Errors
    /// The kernel's, in words.
    pub fn nodes(&self) -> Result<Vec<Node>, Failure> {
        handover::with(Capability::CAP_SYS_ADMIN, || self.read_nodes(Look::Everywhere))?
    }

    fn read_nodes(&self, look: Look<'_>) -> Result<Vec<Node>, Failure> {
        let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
        let mut visits = if self.caller.uid == self.uid { MAX_VISITS } else { MAX_VISITS_OF_OTHERS };
        for (index, site) in self.sites.iter().enumerate() {
            let Some(user) = site.user(self.uid)? else { continue };
            let failed = |e| site.failure("read", self.uid, "", e);
            if site.may_have_ceilings() {
                *site.ceilings.borrow_mut() = Some(read_ceilings(&user).map_err(failed)?);
            }
            if user.is_leaf().map_err(failed)? {
                continue;
            }
            for name in user.children().map_err(failed)? {
                if name == STAGING {
                    self.staging.set(true);
                    continue;
                }
                // What lives in one hierarchy is not stale.
                let everywhere = match look {
                    Look::Everywhere => true,
                    Look::Stale(wanted) => wanted == Some(name.as_str()),
                };
                if !everywhere && nodes.get(&name).is_some_and(Node::is_alive) {
                    continue;
                }
                let directory = match user.open(&name) {
                    Ok(directory) => directory,
                    Err(Errno::ENOENT) => continue,
                    Err(error) => return Err(site.failure("open", self.uid, &name, error)),
                };
                let record = directory
                    .attribute(RECORD, 128)
                    .map_err(|e| site.failure("read the record of", self.uid, &name, e))?;
                let processes = living(&directory, site.hierarchy.is_unified(), &mut visits)
                    .map_err(|e| site.failure("read the processes of", self.uid, &name, e))?;
                let piece = Piece { site: index, record: record.as_deref().and_then(Record::parse), processes };
                let node = nodes.entry(name.clone()).or_insert_with(|| Node {
                    name: name.clone(),
                    pieces: Vec::new(),
                    paths: Vec::new(),
                });
                node.pieces.push(piece);
                node.paths.push(site.show(self.uid, &name));
            }
        }
        Ok(nodes.into_values().collect())
    }

    /// Removes what is stale and gives what is left. What cannot be removed yet is left, and so counts. Only of the one
    /// called `wanted` all processes and paths are told.
    ///
    /// # Errors
    /// The kernel's, in words.
    pub fn sweep(&mut self, wanted: Option<&str>) -> Result<Vec<Node>, Failure> {
        let mut left = Vec::new();
        let nodes = handover::with(Capability::CAP_SYS_ADMIN, || self.read_nodes(Look::Stale(wanted)))??;
        self.clear_staging();
        for node in nodes {
            if !node.is_stale() || self.remove(&node).is_err() {
                left.push(node);
            }
        }
        Ok(left)
    }

    /// Removes a cgroup that holds no process, in every hierarchy.
    ///
    /// # Errors
    /// 75: it is in use, or something in it is still dying; every hierarchy was tried.
    pub fn remove(&self, node: &Node) -> Result<(), Failure> {
        let mut first = None;
        if node.kind() == Some(Kind::Create) && !node.is_alive() {
            // If this call ends half-way, what is left is stale.
            let mut nodes = Vec::new();
            for piece in &node.pieces {
                let Some(user) = self.sites.get(piece.site).map(|site| site.user(self.uid)).transpose()?.flatten()
                else {
                    continue;
                };
                if let Ok(directory) = user.open(&node.name) {
                    nodes.push((piece.site, directory));
                }
            }
            self.write_records(&nodes, &node.name, Kind::Create, false)?;
        }
        for piece in node.pieces.iter().rev() {
            let Some(site) = self.sites.get(piece.site) else { continue };
            let Some(user) = site.user(self.uid)? else { continue };
            let shown = site.show(self.uid, &node.name);
            let failure = match remove_tree(&user, &node.name, site.hierarchy.is_unified()) {
                Ok(Removal::Gone) => continue,
                Ok(Removal::Alive(pids)) => {
                    let pids: Vec<String> = pids.iter().take(5).map(i32::to_string).collect();
                    Failure::new(format!("{shown} is in use by process {}", pids.join(", "))).status(TRY_AGAIN)
                }
                Ok(Removal::Dying) => Failure::new(format!(
                    "{shown} is still busy after {} s: a process in it is dying (frozen, or waiting for a device); try again",
                    DYING.as_secs()
                ))
                .status(TRY_AGAIN),
                Ok(Removal::Unfinished) => {
                    Failure::new(format!("{shown} has more than {MAX_VISITS} cgroups: call again to go on")).status(TRY_AGAIN)
                }
                Err(error) => Failure::new(format!("remove {shown}: {}", error.desc())).status(SYSTEM),
            };
            first.get_or_insert(failure);
        }
        first.map_or(Ok(()), Err)
    }

    /// Removes the user's own directory, and our own base, where they are empty; forgets the bases when nothing is left.
    /// Gives the names of the hierarchies that nobody mounts and that have lost their base, for
    /// [`crate::hierarchy::let_go`], which comes when this session has ended.
    ///
    /// # Errors
    /// The kernel's, in words.
    pub fn tidy(&mut self) -> Result<Vec<String>, Failure> {
        let mut empty = true;
        let mut lost = Vec::new();
        for site in &self.sites {
            let base = site.base.open(&site.top, false).map_err(|e| site.base_failure(e))?;
            let Some(base) = base else { continue };
            site.forget();
            match base.remove(&user_name(self.uid)) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(Errno::EBUSY | Errno::ENOTEMPTY) => empty = false,
                Err(error) => return Err(site.failure("remove", self.uid, "", error)),
            }
            if site.base.path.len() == 1 && site.base.path.first().is_some_and(|part| part == OWN_BASE) {
                // Another user's directory keeps it; if that is being made just now, its maker starts again.
                if site.top.remove(OWN_BASE).is_ok()
                    && site.hierarchy.mounts.is_empty()
                    && let Some(Controller::Named(name)) = site.hierarchy.controllers.first()
                {
                    lost.push(name.clone());
                }
            }
        }
        // A base whose hierarchy this call does not see may hold some still.
        let looked_at = |(label, path): &(String, String)| {
            self.sites.iter().any(|site| site.hierarchy.label == *label && site.base.shown() == *path)
        };
        if empty && self.ledger.entries().iter().all(looked_at) {
            self.ledger.clear()?;
        }
        Ok(lost)
    }

    /// Makes a cgroup in every hierarchy of this call, limited, and root's. [`Session::hand_over`] comes next.
    ///
    /// # Errors
    /// A limit that the kernel does not take, a controller that it does not give; what was made is removed again.
    pub fn make(&mut self, name: &str, grant: &Grant) -> Result<(), Failure> {
        let result = self.make_all(name, grant);
        if result.is_err() {
            self.undo(name);
        }
        result
    }

    fn make_all(&mut self, name: &str, grant: &Grant) -> Result<(), Failure> {
        self.fresh = Some(Fresh { name: name.to_owned(), nodes: Vec::new(), given: false });
        for index in 0..self.current {
            let mut tries = TRIES;
            while !self.make_one(index, name, grant)? {
                // Another user's call has removed the base, which was empty to it.
                self.sites.iter().for_each(|site| site.forget());
                tries = tries.checked_sub(1).ok_or_else(|| {
                    Failure::new("the base is removed again and again by others: try again").status(TRY_AGAIN)
                })?;
            }
        }
        Ok(())
    }

    /// `false`: a directory on the way has gone meanwhile.
    fn make_one(&mut self, index: usize, name: &str, grant: &Grant) -> Result<bool, Failure> {
        let uid = self.uid;
        let Some(site) = self.sites.get(index) else { return Ok(true) };
        self.ledger.add(&site.hierarchy.label, &site.base.shown())?;
        let Some(user) = user_directory(site, uid, grant)? else { return Ok(false) };
        match user.make(name) {
            Ok(()) => {}
            Err(Errno::ENOENT) => return Ok(false),
            Err(Errno::EAGAIN) => {
                return Err(Failure::new(format!(
                    "mkdir {}: the cgroups below {} are as many as cgroup.max.descendants allows: delete some",
                    site.show(uid, name),
                    site.show(uid, "")
                ))
                .status(NOT_PERMITTED));
            }
            Err(error) => return Err(site.failure("mkdir", uid, name, error)),
        }
        let node = user.open(name).map_err(|e| site.failure("open", uid, name, e))?;
        // Without a record it is unfinished.
        if is_cpuset(&site.hierarchy) {
            inherit_cpuset(&user, &node, true).map_err(|e| site.failure("initialise the cpuset", uid, name, e))?;
        }
        set_limits(site, &node, &grant.node, uid, name, false)?;
        if let Some(fresh) = &mut self.fresh {
            fresh.nodes.push((index, node));
        }
        Ok(true)
    }

    fn write_records(&self, nodes: &[(usize, Directory)], name: &str, kind: Kind, made: bool) -> Result<(), Failure> {
        let record = Record { made, kind, uid: self.uid, pid: std::process::id() }.to_string();
        handover::with(Capability::CAP_SYS_ADMIN, || {
            for (index, node) in nodes {
                let Some(site) = self.sites.get(*index) else { continue };
                node.set_attribute(RECORD, record.as_bytes())
                    .map_err(|e| site.failure("write the record of", self.uid, name, e))?;
            }
            Ok(())
        })?
    }

    /// The directories of a cgroup in the hierarchies of this call, with the index of each.
    fn open_node(&self, name: &str) -> Result<Vec<(usize, Directory)>, Failure> {
        let mut found = Vec::new();
        for (index, site) in self.sites.iter().enumerate().take(self.current) {
            let Some(user) = site.user(self.uid)? else { continue };
            match user.open(name) {
                Ok(node) => found.push((index, node)),
                Err(Errno::ENOENT) => {}
                Err(error) => return Err(site.failure("open", self.uid, name, error)),
            }
        }
        Ok(found)
    }

    /// Gives a finished cgroup to its owner: the closed list and nothing else. The point of no return: what has been
    /// given is limited already.
    ///
    /// # Errors
    /// The kernel's; the cgroup is removed again when that is possible.
    pub fn hand_over(&mut self, name: &str, owner: Ownership, kind: Kind) -> Result<(), Failure> {
        let result = self.hand_over_all(name, owner, kind);
        if result.is_err() {
            self.undo(name);
        }
        result
    }

    fn hand_over_all(&mut self, name: &str, owner: Ownership, kind: Kind) -> Result<(), Failure> {
        let opened;
        let (nodes, is_fresh) = match &self.fresh {
            Some(fresh) if fresh.name == name && !fresh.given => (&fresh.nodes, true),
            _ => {
                opened = self.open_node(name)?;
                (&opened, false)
            }
        };
        let list = if self.sites.iter().any(|site| site.hierarchy.is_unified()) { delegate_list() } else { Vec::new() };
        for (index, node) in nodes {
            let Some(site) = self.sites.get(*index) else { continue };
            let failed = |e| site.failure("hand over", self.uid, name, e);
            if kind == Kind::Attach && site.hierarchy.is_unified() {
                self.no_stranger(site, name, node)?;
            }
            if !is_fresh && node.owner().map_err(failed)? != 0 {
                // Given before: root may change the mode only of what is root's.
                node.give(0, 0).map_err(failed)?;
            }
            give(node, site.hierarchy.is_unified(), owner, &list, is_fresh).map_err(failed)?;
        }
        self.write_records(nodes, name, kind, true)?;
        if let Some(fresh) = self.fresh.as_mut().filter(|fresh| fresh.name == name) {
            fresh.given = true;
        }
        Ok(())
    }

    /// Whoever is in a cgroup when it is handed over comes into the user's power: nobody may be there whom he could not
    /// send a signal.
    fn no_stranger(&self, site: &Site, name: &str, node: &Directory) -> Result<(), Failure> {
        for pid in node.processes().map_err(|e| site.failure("read", self.uid, name, e))? {
            if uid_of(pid).is_some_and(|uid| uid != self.uid) {
                return Err(Failure::new(format!(
                    "process {pid} in {} is another user's: try again when it has ended",
                    site.show(self.uid, name)
                ))
                .status(TRY_AGAIN));
            }
        }
        Ok(())
    }

    /// Moves this process into a cgroup of the user, in the hierarchies of this call. It stops being root for it: the
    /// kernel asks whether the process is the mover's own.
    ///
    /// On a v1 hierarchy this one thread is moved, which is all of the process: for a process the kernel takes
    /// cgroup_threadgroup_rwsem and first waits until every processor has passed through the scheduler, some milliseconds
    /// (cgroup_procs_write_start() of kernel/cgroup/cgroup.c, from Linux 5.5 on). cgroup2 lets no thread cross between
    /// domains.
    ///
    /// # Errors
    /// The kernel's; the process is where it was then, as far as the kernel allows, and root again.
    pub fn enter(&mut self, name: &str, joining: bool) -> Result<(), Failure> {
        let mut files = self.open_files(name, own_file)?;
        drop(self.root.take());
        let mut result = Ok(());
        for (index, file) in &mut files {
            match write_once(file, "0") {
                Ok(()) => {}
                Err(Errno::EBUSY) if joining => {
                    result = self.enter_leaf(*index, name);
                }
                Err(error) => result = Err(self.cannot_enter(*index, name, error)),
            }
            if result.is_err() {
                break;
            }
        }
        if result.is_err() {
            self.root = Some(FullRoot::begin(self.caller)?);
            self.leave();
        }
        result
    }

    /// A cgroup2 node whose controllers are on holds no process itself. The caller makes a leaf in it, which is his.
    fn enter_leaf(&mut self, index: usize, name: &str) -> Result<(), Failure> {
        const LEAF: &str = "joined";
        let Some((_, node)) = self.open_node(name)?.into_iter().find(|(at, _)| *at == index) else { return Ok(()) };
        let failed = |e| self.cannot_enter(index, name, e);
        // Here with the caller's ids: the directory is his.
        match node.make(LEAF) {
            Ok(()) => {
                let leaf = node.open(LEAF).map_err(failed)?;
                leaf.publish(false).map_err(failed)?;
            }
            Err(Errno::EEXIST) => {}
            Err(error) => return Err(failed(error)),
        }
        let root = FullRoot::begin(self.caller)?;
        let opened = node.open(LEAF).and_then(|leaf| leaf.open_for_writing("cgroup.procs"));
        drop(root);
        opened.and_then(|mut file| write_once(&mut file, "0")).map_err(failed)
    }

    /// Opens the file that `which` says of each directory of a cgroup.
    fn open_files(&self, name: &str, which: fn(&Hierarchy) -> &'static str) -> Result<Vec<(usize, File)>, Failure> {
        let open = |(index, node): &(usize, Directory)| {
            let file = self.sites.get(*index).map_or("cgroup.procs", |site| which(&site.hierarchy));
            node.open_for_writing(file).map(|file| (*index, file)).map_err(|e| self.cannot_enter(*index, name, e))
        };
        match &self.fresh {
            Some(fresh) if fresh.name == name => fresh.nodes.iter().map(open).collect(),
            _ => self.open_node(name)?.iter().map(open).collect(),
        }
    }

    fn cannot_enter(&self, index: usize, name: &str, error: Errno) -> Failure {
        let Some(site) = self.sites.get(index) else { return Failure::new(error.desc()).status(SYSTEM) };
        let why = match error {
            Errno::EINVAL if site.hierarchy.has_legacy("cpu") => {
                ": a real-time process (SCHED_FIFO, SCHED_RR) cannot enter a v1 cpu cgroup: chrt -o 0, or leave v1:cpu out with --controllers"
            }
            Errno::EBUSY => {
                ": its controllers are switched on, so processes belong into its children: with run use --join"
            }
            Errno::EOPNOTSUPP => ": it is threaded or invalid (cgroup.type)",
            _ => "",
        };
        let mut failure = site.failure("enter", self.uid, name, error);
        failure.text.push_str(why);
        failure
    }

    /// Brings this process back to where it was, after it could enter only some hierarchies.
    fn leave(&mut self) {
        let mut files = Vec::new();
        for site in self.sites.iter().take(self.current) {
            if let Ok(file) =
                open_path(&site.top, &site.hierarchy.here).and_then(|d| d.open_for_writing(own_file(&site.hierarchy)))
            {
                files.push(file);
            }
        }
        drop(self.root.take());
        for file in &mut files {
            let _ = write_once(file, "0");
        }
        self.root = FullRoot::begin(self.caller).ok();
    }

    /// Moves a process of the caller into a cgroup of his.
    ///
    /// The kernel is told of a process by its number, and on cgroup2 it does not ask whose process has that number. So the
    /// process is held first ([`Process::hold`]), with the caller's own rights: until what is returned is dropped, or this
    /// program ends in whatever way, the number is that process's alone.
    ///
    /// # Errors
    /// It cannot be held; the kernel's. Where the process has been moved already it stays: that is the caller's own.
    pub fn move_in(&mut self, name: &str, process: &Process) -> Result<Held, Failure> {
        let mut files = self.open_files(name, |_| "cgroup.procs")?;
        // cgroup2 refuses least.
        let is_unified = |index: usize| self.sites.get(index).is_some_and(|site| site.hierarchy.is_unified());
        files.sort_by_key(|(index, _)| is_unified(*index));
        // The kernel asks by the real ids whether this process may trace that one.
        drop(self.root.take());
        let held = process.hold(self.caller);
        self.root = Some(FullRoot::begin(self.caller)?);
        let held = held?;
        let pid = process.pid().to_string();
        let mut moved: Vec<String> = Vec::new();
        let written = files.iter_mut().try_for_each(|(index, file)| {
            write_once(file, &pid).map_err(|error| self.cannot_enter(*index, name, error))?;
            moved.extend(self.sites.get(*index).map(|site| site.show(self.uid, name)));
            Ok(())
        });
        let result =
            written.and_then(|()| process.check_again(self.caller)).and_then(|()| self.is_in(name, process, &held));
        match result {
            Ok(()) => Ok(held),
            Err(mut failure) => {
                if !moved.is_empty() && held.is_stopped() && process.check_again(self.caller).is_ok() {
                    failure.text.push_str(&format!(
                        "; process {pid} stays in {}: end it, or cgdelegate delete {name} --kill",
                        moved.join(", ")
                    ));
                }
                Err(failure)
            }
        }
    }

    /// Removes the directory that `attach` of an earlier version has used. What lives in it is let be.
    pub fn clear_staging(&self) {
        if !self.staging.take() {
            return;
        }
        for site in self.sites.iter().filter(|site| site.hierarchy.is_unified()) {
            if let Ok(Some(user)) = site.user(self.uid) {
                let _ = user.remove(STAGING);
            }
        }
    }

    /// Whether /proc says that the process is in the cgroup, in every hierarchy of this call.
    fn is_in(&self, name: &str, process: &Process, held: &Held) -> Result<(), Failure> {
        let now = process.cgroups()?;
        for site in self.sites.iter().take(self.current) {
            let path = site.path(self.uid, name);
            if own_path(&now, &site.hierarchy.label) != Some(path.as_str()) {
                // Of one that is ending the kernel shows the top of v1 hierarchies (proc_cgroup_show() of
                // kernel/cgroup/cgroup.c).
                process.check_again(self.caller)?;
                if !held.is_stopped() {
                    return Err(gone(process.pid()));
                }
                return Err(Failure::new(format!(
                    "process {} was moved to {}, but /proc/{0}/cgroup does not show it there",
                    process.pid(),
                    site.show(self.uid, name)
                ))
                .status(SYSTEM));
            }
        }
        Ok(())
    }

    /// Gives a cgroup that is the user's already what this call asks for, and his ceilings what the file says now.
    ///
    /// # Errors
    /// A limit that the kernel does not take.
    pub fn renew(&mut self, name: &str, grant: &Grant, asked: &[Limit]) -> Result<(), Failure> {
        let limits: Vec<Limit> =
            grant.node.iter().filter(|limit| asked.iter().any(|asked| asked.key == limit.key)).copied().collect();
        for site in self.sites.iter().take(self.current) {
            user_directory(site, self.uid, grant)?;
        }
        for (index, node) in self.open_node(name)? {
            if let Some(site) = self.sites.get(index) {
                set_limits(site, &node, &limits, self.uid, name, true)?;
            }
        }
        Ok(())
    }

    /// Sets the ceilings where the user has cgroups beside those of this call.
    ///
    /// # Errors
    /// A ceiling that the kernel does not take; one that a hierarchy has no file for is let go there.
    pub fn renew_ceilings(&self, grant: &Grant) -> Result<(), Failure> {
        for site in self.sites.iter().skip(self.current) {
            let Some(user) = site.user(self.uid)? else { continue };
            match site.set_ceilings(&user, &grant.total, self.uid) {
                Err(failure) if failure.status != UNAVAILABLE => return Err(failure),
                _ => {}
            }
        }
        Ok(())
    }

    /// Hands a cgroup of the user over once more, to the owner that this call asks for.
    ///
    /// # Errors
    /// The kernel's.
    pub fn hand_over_again(&mut self, name: &str, owner: Ownership) -> Result<(), Failure> {
        self.hand_over_all(name, owner, Kind::Create)
    }

    /// Whether the cgroup has a piece in each hierarchy of this call.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_whole(&self, name: &str) -> Result<bool, Failure> {
        Ok(self.open_node(name)?.len() == self.current)
    }

    /// Removes what [`Session::make`] has made, as far as it is empty.
    fn undo(&mut self, name: &str) {
        self.fresh = None;
        if let Ok(nodes) = self.nodes()
            && let Some(node) = nodes.iter().find(|node| node.name == name)
        {
            let _ = self.remove(node);
        }
        let _ = self.tidy();
    }

    /// Takes a cgroup away after a failed entry.
    pub fn abandon(&mut self, name: &str) {
        self.undo(name);
    }

    /// Where a cgroup is, in the hierarchies of this call.
    #[must_use]
    pub fn paths(&self, name: &str) -> Vec<String> {
        self.sites.iter().take(self.current).map(|site| site.show(self.uid, name)).collect()
    }

    /// Kills everything in a cgroup.
    ///
    /// # Errors
    /// 75: something does not die.
    pub fn kill(&self, node: &Node) -> Result<(), Failure> {
        let mut strangers_stay = false;
        for round in 0..MAX_ROUNDS {
            let mut processes = Vec::new();
            for piece in &node.pieces {
                let Some(site) = self.sites.get(piece.site) else { continue };
                let Some(user) = site.user(self.uid)? else { continue };
                let Ok(directory) = user.open(&node.name) else { continue };
                let unified = site.hierarchy.is_unified();
                // What was never handed over is not the user's to kill, freeze or limit as a whole.
                if piece.record.is_some_and(|record| record.made && record.uid == self.uid) {
                    if unified && directory.write("cgroup.kill", "1").is_ok() {
                        continue;
                    }
                    if site.hierarchy.has_legacy("pids") || unified {
                        let _ = directory.write("pids.max", "0");
                    }
                    freeze(site, &directory, true);
                } else {
                    strangers_stay = true;
                }
                let listed = living(&directory, unified, &mut { MAX_VISITS })
                    .map_err(|e| site.failure("read", self.uid, &node.name, e))?;
                let path = site.path(self.uid, &node.name);
                processes.extend(listed.into_iter().map(|pid| (pid, site.hierarchy.label.clone(), path.clone())));
            }
            for (pid, label, path) in &processes {
                kill_inside(*pid, label, path, strangers_stay.then_some(self.uid))?;
            }
            let mut alive = false;
            for piece in &node.pieces {
                let Some(site) = self.sites.get(piece.site) else { continue };
                let Some(user) = site.user(self.uid)? else { continue };
                let Ok(directory) = user.open(&node.name) else { continue };
                freeze(site, &directory, false);
                alive |= !living(&directory, site.hierarchy.is_unified(), &mut { MAX_VISITS })
                    .unwrap_or_default()
                    .is_empty();
            }
            if !alive {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(if round < 5 { 1 } else { 20 }));
        }
        Err(Failure::new(format!("{} does not die: {} (waiting for a device?)", node.name, node.shown_processes()))
            .status(TRY_AGAIN))
    }
}

/// v1: the freezer; cgroup2 before cgroup.kill (Linux 5.14): cgroup.freeze.
fn freeze(site: &Site, directory: &Directory, freeze: bool) {
    if site.hierarchy.is_unified() {
        let _ = directory.write("cgroup.freeze", if freeze { "1" } else { "0" });
    } else if site.hierarchy.has_legacy("freezer") {
        let _ = directory.write("freezer.state", if freeze { "FROZEN" } else { "THAWED" });
    }
}

/// SIGKILL for a process that, once it is held by a descriptor, still is below `path`; and is of `uid`, if that is given.
fn kill_inside(pid: i32, label: &str, path: &str, uid: Option<u32>) -> Result<(), Failure> {
    if pid <= 0 {
        return Ok(());
    }
    let pidfd = match sys::pidfd_open(pid) {
        Ok(pidfd) => Some(pidfd),
        Err(Errno::ENOSYS) => None,
        Err(_) => return Ok(()),
    };
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let inside = own_path(&cgroups, label)
        .and_then(|own| own.strip_prefix(path))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let is_his = uid.is_none_or(|uid| uid_of(pid) == Some(uid));
    if !inside || !is_his {
        return Ok(());
    }
    let killed = handover::with(Capability::CAP_KILL, || match &pidfd {
        Some(pidfd) => sys::pidfd_kill(pidfd),
        // Before Linux 5.3 a number is all there is.
        None => nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL),
    })?;
    match killed {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(Failure::new(format!("kill {pid}: {}", error.desc())).status(SYSTEM)),
    }
}

/// The user's directory with its ceilings, made when it is missing. `None`: a directory on the way has gone meanwhile.
fn user_directory(site: &Site, uid: u32, grant: &Grant) -> Result<Option<Rc<Directory>>, Failure> {
    let controllers: Vec<&str> = grant
        .controllers
        .iter()
        .filter_map(|c| match c {
            Controller::Unified(name) if site.hierarchy.is_unified() => Some(name.as_str()),
            _ => None,
        })
        .collect();
    let user = match site.user(uid)? {
        Some(user) if is_supplied(site, &user, &controllers).unwrap_or(false) => Some(user),
        _ => make_user_directory(site, uid, &controllers)?,
    };
    let Some(user) = user else { return Ok(None) };
    user.open_to_all().map_err(|e| site.failure("prepare", uid, "", e))?;
    site.set_ceilings(&user, &grant.total, uid)?;
    enable(&user, &controllers, &site.show(uid, ""))?;
    Ok(Some(user))
}

/// Whether everything above the user's directory has been prepared for it.
fn is_supplied(site: &Site, user: &Directory, controllers: &[&str]) -> Result<bool, Errno> {
    if is_cpuset(&site.hierarchy) {
        let filled = |file| user.read(file, 4096).map(|list| !list.trim_end().is_empty());
        return Ok(filled("cpuset.cpus")? && filled("cpuset.mems")?);
    }
    if controllers.is_empty() {
        return Ok(true);
    }
    let given = user.read_value("cgroup.controllers")?;
    Ok(controllers.iter().all(|wanted| given.split_ascii_whitespace().any(|given| given == *wanted)))
}

/// Makes the user's directory and what is above it, as far as it is missing, and gives it the controllers and, in a v1
/// cpuset, its lists. `None`: a directory on the way has gone meanwhile.
fn make_user_directory(site: &Site, uid: u32, controllers: &[&str]) -> Result<Option<Rc<Directory>>, Failure> {
    let base = match site.base.open(&site.top, true) {
        Ok(Some(base)) => base,
        Ok(None) | Err(BaseError::Kernel(Errno::ENOENT | Errno::ENODEV)) => return Ok(None),
        Err(error) => return Err(site.base_failure(error)),
    };
    let cpuset = is_cpuset(&site.hierarchy);
    if cpuset || !controllers.is_empty() {
        let mut above = site.top.again().map_err(|e| site.failure("open", uid, "", e))?;
        let mut shown = String::new();
        enable(&above, controllers, &site.hierarchy.show("/"))?;
        for part in &site.base.path {
            let at = match above.open(part) {
                Ok(at) => at,
                Err(Errno::ENOENT) => return Ok(None),
                Err(error) => return Err(site.failure("open", uid, "", error)),
            };
            shown = format!("{shown}/{part}");
            if cpuset {
                inherit_cpuset(&above, &at, false).map_err(|e| site.failure("initialise the cpuset", uid, "", e))?;
            }
            enable(&at, controllers, &site.hierarchy.show(&shown))?;
            above = at;
        }
    }
    let name = user_name(uid);
    let user = match base.open(&name) {
        Err(Errno::ENOENT) => match base.make(&name) {
            Ok(()) | Err(Errno::EEXIST) => base.open(&name),
            Err(error) => Err(error),
        },
        other => other,
    };
    let user = match user {
        Ok(user) => user,
        Err(Errno::ENOENT | Errno::ENODEV) => return Ok(None),
        Err(error) => return Err(site.failure("make", uid, "", error)),
    };
    if !user.is_roots().unwrap_or(false) {
        return Err(Failure::new(format!("{} is not root's alone", site.show(uid, ""))).status(SYSTEM));
    }
    let user = site.keep(user);
    if cpuset {
        inherit_cpuset(&base, &user, false).map_err(|e| site.failure("prepare", uid, "", e))?;
    }
    Ok(Some(user))
}

/// Switches controllers on for the children of a cgroup2 directory.
fn enable(directory: &Directory, controllers: &[&str], shown: &str) -> Result<(), Failure> {
    if controllers.is_empty() {
        return Ok(());
    }
    let now = directory.read_value("cgroup.subtree_control").unwrap_or_default();
    for controller in controllers {
        if now.split_ascii_whitespace().any(|on| on == *controller) {
            continue;
        }
        directory.write("cgroup.subtree_control", &format!("+{controller}")).map_err(|error| {
            let why = match error {
                Errno::EBUSY => ": it holds processes, and cgroup2 gives controllers only to the children of a cgroup without; name a base that holds none",
                Errno::ENOENT => ": the controller is not given to it from above",
                _ => "",
            };
            Failure::new(format!("switch {controller} on in {shown}: {}{why}", error.desc())).status(CONFIGURATION)
        })?;
    }
    Ok(())
}

/// Writes the limits that this hierarchy carries. One that the kernel does not take is fatal: nobody gets a cgroup that is
/// less limited than the file says. `look`: one that is there already is not written.
fn set_limits(
    site: &Site,
    directory: &Directory,
    limits: &[Limit],
    uid: u32,
    name: &str,
    look: bool,
) -> Result<(), Failure> {
    for limit in limits {
        for (file, value) in files_of(&site.hierarchy, *limit) {
            let now = look && directory.read_value(file).map(|text| text.trim_end() == value).unwrap_or(false);
            if now {
                continue;
            }
            directory.write(file, &value).map_err(|error| {
                let why = if error == Errno::ENOENT { ": this kernel has no such limit" } else { "" };
                Failure::new(format!("write {value} to {}/{file}: {}{why}", site.show(uid, name), error.desc()))
                    .status(if error == Errno::ENOENT { UNAVAILABLE } else { SYSTEM })
            })?;
        }
    }
    Ok(())
}

/// The names in the record of a user's directory.
fn read_ceilings(user: &Directory) -> Result<Vec<String>, Errno> {
    let record = user.attribute(RECORD, 512)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&record).split_ascii_whitespace().map(str::to_owned).collect())
}

/// What a file that carries a limit says when there is none (kernel's admin-guide/cgroup-v2 and scheduler/sched-bwc).
fn no_limit(file: &str) -> Option<&'static str> {
    match file {
        "pids.max" | "memory.max" | "memory.high" | "memory.swap.max" | "cpu.max" => Some("max"),
        "cpu.weight" | "io.weight" => Some("100"),
        "cpu.cfs_quota_us" => Some("-1"),
        _ => None,
    }
}

/// The files of a hierarchy that take a limit, with what to write.
fn files_of(hierarchy: &Hierarchy, limit: Limit) -> Vec<(&'static str, String)> {
    let carriers = limit.key.carriers();
    let carried = carriers.is_empty() || carriers.iter().any(|c| hierarchy.controllers.contains(c));
    if !carried {
        return Vec::new();
    }
    if hierarchy.is_unified() {
        return vec![(limit.key.word(), limit.value.text())];
    }
    match (limit.key, limit.value) {
        (Key::PidsMax, value) => vec![("pids.max", value.text())],
        (Key::CpuMax, Value::Share { quota, period }) => {
            vec![("cpu.cfs_period_us", period.to_string()), ("cpu.cfs_quota_us", quota.to_string())]
        }
        (Key::CpuMax, _) => vec![("cpu.cfs_quota_us", "-1".to_owned())],
        _ => Vec::new(),
    }
}

/// The file by which this process moves itself, with one thread.
fn own_file(hierarchy: &Hierarchy) -> &'static str {
    if hierarchy.is_unified() { "cgroup.procs" } else { "tasks" }
}

fn is_cpuset(hierarchy: &Hierarchy) -> bool {
    hierarchy.has_legacy("cpuset")
}

/// A v1 cpuset is empty when it is made, and entering it is ENOSPC until both lists are set. They are copied from above,
/// top-down. The flag makes the kernel do the same for the user's own children; it is never set on what is not ours.
fn inherit_cpuset(above: &Directory, directory: &Directory, flag: bool) -> Result<(), Errno> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if directory.read(file, 4096)?.trim_end().is_empty() {
            let value = above.read(file, 4096)?;
            directory.write(file, value.trim_end())?;
        }
    }
    if flag { directory.write("cgroup.clone_children", "1") } else { Ok(()) }
}

/// The closed list: what of a directory is handed over, and nothing else (sections of cgroups(7) and the kernel's
/// admin-guide/cgroup-v2, "Delegation").
fn give(node: &Directory, unified: bool, owner: Ownership, list: &[String], is_fresh: bool) -> Result<(), Errno> {
    let legacy = ["cgroup.procs".to_owned(), "tasks".to_owned()];
    for file in if unified { list } else { &legacy } {
        if is_fresh {
            node.give_fresh_file(file, owner.uid, owner.gid, owner.group_writes)?;
        } else {
            node.give_file(file, owner.uid, owner.gid, owner.group_writes)?;
        }
    }
    // Before it is given away, while root may change its mode. The files have their owner already.
    node.publish(owner.group_writes)?;
    node.give(owner.uid, owner.gid)
}

/// /sys/kernel/cgroup/delegate, from Linux 4.15 on: the files that this kernel means to be handed over.
fn delegate_list() -> Vec<String> {
    let plain = |word: &&str| !word.contains('/') && word.contains('.') && !word.starts_with('.');
    let listed: Vec<String> = read_path("/sys/kernel/cgroup/delegate")
        .unwrap_or_default()
        .split_ascii_whitespace()
        .filter(plain)
        .take(16)
        .map(str::to_owned)
        .collect();
    if listed.iter().any(|file| file == "cgroup.procs") {
        return listed;
    }
    ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"].map(str::to_owned).to_vec()
}

/// The path in one line of /proc/PID/cgroup.
fn own_path<'t>(cgroups: &'t str, label: &str) -> Option<&'t str> {
    cgroups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (list, path) = rest.split_once(':')?;
        let matches = if list.is_empty() { label == "v2" } else { list == label };
        matches.then_some(path)
    })
}

/// The real uid of a process.
fn uid_of(pid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_ascii_whitespace().next()?.parse().ok()
}

fn open_path(top: &Directory, path: &str) -> Result<Directory, Errno> {
    let mut at = top.again()?;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        at = at.open(part)?;
    }
    Ok(at)
}

/// The processes in a cgroup and everything below it, at least the first of them; empty means that nothing lives there.
/// 0 stands for what could not be seen: a process of another pid namespace, or what is beyond `visits` directories, or in
/// a tree that changes too fast to be walked.
///
/// # Errors
/// The kernel's.
pub(crate) fn living(directory: &Directory, unified: bool, visits: &mut u32) -> Result<Vec<i32>, Errno> {
    const ENOUGH: usize = 64;
    const TRIES: u32 = 3;
    if unified && directory.read_value("cgroup.events")?.lines().any(|line| line == "populated 0") {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    let mut unseen = unified;
    for tries in 1..=TRIES {
        found.clear();
        let mut over = false;
        let walked = walk(directory, |at| {
            let Some(left) = visits.checked_sub(1) else {
                over = true;
                return Ok(false);
            };
            *visits = left;
            match at.processes() {
                Ok(processes) => found.extend(processes),
                // Removed meanwhile; or threaded, and then its root lists the processes.
                Err(Errno::ENODEV | Errno::EOPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
            Ok(found.len() < ENOUGH)
        });
        unseen |= over;
        match walked {
            Ok(()) => break,
            // Somebody removes what is being walked.
            Err(Errno::ENOENT | Errno::ENODEV | Errno::ESTALE) => unseen |= tries == TRIES,
            Err(error) => return Err(error),
        }
    }
    if unseen && found.is_empty() {
        found.push(0);
    }
    Ok(found)
}

/// Calls `visit` for a directory and everything below it, until it says `false`. One descriptor is open at a time, however
/// deep the tree is.
fn walk(top: &Directory, mut visit: impl FnMut(&Directory) -> Result<bool, Errno>) -> Result<(), Errno> {
    if !visit(top)? || top.is_leaf()? {
        return Ok(());
    }
    let mut at = top.again()?;
    let mut levels = vec![(at.children_raw()?, at.identity()?)];
    while let Some((pending, _)) = levels.last_mut() {
        if let Some(child) = pending.pop() {
            match at.open_raw(&child) {
                Err(Errno::ENOENT) => {}
                Err(error) => return Err(error),
                Ok(below) => {
                    if !visit(&below)? {
                        return Ok(());
                    }
                    if below.is_leaf()? {
                        continue;
                    }
                    let children = below.children_raw()?;
                    if !children.is_empty() {
                        levels.push((children, below.identity()?));
                        at = below;
                    }
                }
            }
            continue;
        }
        levels.pop();
        if let Some((_, identity)) = levels.last() {
            at = at.parent()?;
            if at.identity()? != *identity {
                return Err(Errno::ESTALE);
            }
        }
    }
    Ok(())
}

/// What became of a directory that was to be removed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// It is gone.
    Gone,
    /// Processes are in it.
    Alive(Vec<i32>),
    /// It is empty but busy.
    Dying,
    /// It is too large for one call.
    Unfinished,
}

struct Level {
    name: CString,
    pending: Vec<CString>,
    identity: (u64, u64),
}

/// Removes a cgroup depth first. One descriptor is open at a time, however deep it is. Kills nothing: what holds a process
/// cannot be removed.
///
/// # Errors
/// The kernel's.
pub(crate) fn remove_tree(parent: &Directory, name: &str, unified: bool) -> Result<Removal, Errno> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    match parent.remove_raw(&name) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(Removal::Gone),
        Err(Errno::EBUSY | Errno::ENOTEMPTY) => {}
        Err(error) => return Err(error),
    }
    let end = Instant::now().checked_add(DYING);
    let mut at = match parent.open_raw(&name) {
        Err(Errno::ENOENT) => return Ok(Removal::Gone),
        other => other?,
    };
    // The whole must be dead before anything of it is touched.
    let processes = living(&at, unified, &mut { MAX_VISITS })?;
    if !processes.is_empty() {
        return Ok(Removal::Alive(processes));
    }
    let mut levels = vec![Level { name, pending: at.children_raw()?, identity: at.identity()? }];
    let mut visits = 0_u32;
    while let Some(level) = levels.last_mut() {
        if let Some(child) = level.pending.pop() {
            visits = visits.saturating_add(1);
            if visits > MAX_VISITS {
                return Ok(Removal::Unfinished);
            }
            match at.remove_raw(&child) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(Errno::EBUSY | Errno::ENOTEMPTY) => {
                    let below = match at.open_raw(&child) {
                        Err(Errno::ENOENT) => continue,
                        other => other?,
                    };
                    levels.push(Level { name: child, pending: below.children_raw()?, identity: below.identity()? });
                    at = below;
                }
                Err(error) => return Err(error),
            }
            continue;
        }
        let name = level.name.clone();
        let above = match levels.len() {
            1 => parent.again()?,
            count => {
                let above = at.parent()?;
                // cgroup directories cannot be moved to another parent; if that ever changes, nothing is done.
                let expected = count.checked_sub(2).and_then(|index| levels.get(index)).map(|level| level.identity);
                if Some(above.identity()?) != expected {
                    return Err(Errno::ESTALE);
                }
                above
            }
        };
        loop {
            match above.remove_raw(&name) {
                Ok(()) | Err(Errno::ENOENT) => {
                    levels.pop();
                    at = above;
                    break;
                }
                Err(Errno::EBUSY | Errno::ENOTEMPTY) => {}
                Err(error) => return Err(error),
            }
            let children = at.children_raw().unwrap_or_default();
            if !children.is_empty() {
                if let Some(level) = levels.last_mut() {
                    level.pending = children;
                }
                break;
            }
            let processes = at.processes().unwrap_or_default();
            if !processes.is_empty() && !unified {
                return Ok(Removal::Alive(processes));
            }
            if end.is_none_or(|end| Instant::now() >= end) {
                return Ok(if processes.is_empty() { Removal::Dying } else { Removal::Alive(processes) });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        if visits > MAX_VISITS {
            return Ok(Removal::Unfinished);
        }
    }
    Ok(Removal::Gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_is_written() {
        for kind in [Kind::Run, Kind::Attach, Kind::Create] {
            for made in [true, false] {
                let record = Record { made, kind, uid: 1001, pid: 4711 };
                assert_eq!(Record::parse(record.to_string().as_bytes()), Some(record));
            }
        }
        for text in
            ["", "1", "2 made run 1 1", "1 made run 1", "1 made run 1 1 1", "1 made x 1 1", "1 x run 1 1", "\u{e9}"]
        {
            assert_eq!(Record::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_process_is_found_in_its_hierarchy() {
        let text = "9:name=systemd:/a\n2:cpu,cpuacct:/b:c\n0::/d\n";
        assert_eq!(own_path(text, "v2"), Some("/d"));
        assert_eq!(own_path(text, "name=systemd"), Some("/a"));
        assert_eq!(own_path(text, "cpu,cpuacct"), Some("/b:c"));
        assert_eq!(own_path(text, "cpu"), None);
    }

    #[test]
    fn every_ceiling_can_be_taken_away() {
        for key in Key::ALL.into_iter().filter(|key| !key.carriers().is_empty()) {
            assert!(no_limit(key.word()).is_some(), "{}", key.word());
        }
        for always in [Key::MaxDescendants, Key::MaxDepth] {
            assert_eq!(no_limit(always.word()), None, "always set");
        }
        assert_eq!(no_limit("cgroup.procs"), None);
    }

    #[test]
    fn a_limit_goes_to_what_carries_it() {
        let legacy = |name: &str| Hierarchy {
            label: name.to_owned(),
            controllers: vec![Controller::Legacy(name.to_owned())],
            mounts: Vec::new(),
            here: String::new(),
            agent: None,
            distrust: None,
        };
        let share = Limit { key: Key::CpuMax, value: Value::Share { quota: 5, period: 9 } };
        assert_eq!(files_of(&legacy("cpu"), share).len(), 2);
        assert_eq!(files_of(&legacy("pids"), share), []);
        let pids = Limit { key: Key::PidsMax, value: Value::Max };
        assert_eq!(files_of(&legacy("pids"), pids), [("pids.max", "max".to_owned())]);
    }
}
