//! The cgroup hierarchies of the host, v1, hybrid or v2, and where in each of them a caller's cgroups belong.

#![forbid(unsafe_code)]

use crate::config::Controller;
use crate::directory::{Directory, open_path, read_path};
use crate::ledger;
use helper::handover;
use helper::handover::sys;
use helper::report::Failure;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{fstat, lstat};
use nix::sys::statfs::{SYSFS_MAGIC, statfs};
use std::collections::BTreeMap;
use std::ffi::CString;

/// Name of the base where no slice of systemd is and the file names none.
pub const OWN_BASE: &str = "cgdelegate";

/// What the directory of a user begins with; the rest is the uid.
pub const USER_PREFIX: &str = "cgd-";

const UNAVAILABLE: u8 = 69;
const SYSTEM: u8 = 71;

/// One hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// `v2`, `name=systemd`, or the controllers of a v1 hierarchy, as `cpu,cpuacct`.
    pub label: String,
    /// What it carries, in words of the configuration.
    pub controllers: Vec<Controller>,
    /// Mount points where its whole tree is seen, with device numbers; none for one that only we mount.
    pub mounts: Vec<(String, u64)>,
    /// The caller's cgroup in it.
    pub here: String,
    /// Why its mount points are not used.
    pub distrust: Option<String>,
    /// v1: what root runs for cgroups that have become empty, by the options of the mount.
    pub agent: Option<String>,
}

impl Hierarchy {
    /// Whether it is cgroup2.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.label == "v2"
    }

    /// Whether it carries a v1 controller.
    #[must_use]
    pub fn has_legacy(&self, name: &str) -> bool {
        self.controllers.iter().any(|c| matches!(c, Controller::Legacy(own) if own == name))
    }

    /// A cgroup of it for messages and records: a path in the file system where it is mounted, else `name=systemd:/...`.
    #[must_use]
    pub fn show(&self, path: &str) -> String {
        match self.mounts.first() {
            Some((mount, _)) => format!("{mount}{path}"),
            None => format!("{}:{path}", self.label),
        }
    }

    /// Opens its top. One that is mounted nowhere is mounted for this process alone, and made when `make` says so.
    ///
    /// # Errors
    /// Something else is mounted over it; others than root can change the path of its mount point; the kernel has no such
    /// hierarchies; in words.
    pub fn open(&self, make: bool) -> Result<Option<Directory>, Failure> {
        if let Some(why) = &self.distrust {
            return Err(Failure::new(format!("the hierarchy {} is not used: {why}", self.label)).status(SYSTEM));
        }
        let mut why = None;
        for (mount, device) in &self.mounts {
            match open_path(mount, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
                Ok(top) if fstat(&top).is_ok_and(|meta| meta.st_dev == *device) => {
                    return Directory::new(top, self.is_unified()).map(Some).map_err(|e| failure(SYSTEM, mount, e));
                }
                Ok(_) => {
                    why = Some(format!(
                        "{mount} is not the {} hierarchy that /proc/self/mountinfo tells of: something is mounted over it",
                        self.label
                    ))
                }
                Err(error) => why = Some(format!("open {mount}: {}", error.desc())),
            }
        }
        if let Some(why) = why {
            return Err(Failure::new(why).status(SYSTEM));
        }
        let Some(Controller::Named(name)) = self.controllers.first() else { return Ok(None) };
        if !make && self.here.is_empty() {
            return Ok(None);
        }
        private(name).map(Some)
    }
}

/// Mounts a named hierarchy for this process alone.
fn private(name: &str) -> Result<Directory, Failure> {
    let text = CString::new(name).map_err(|_| Failure::new("a name with a NUL byte").status(SYSTEM))?;
    let mounted =
        handover::with(caps::Capability::CAP_SYS_ADMIN, || sys::mount_named_hierarchy(&text, ledger::MOUNT_POINT))?;
    let why = |error: Errno| {
        match error {
        Errno::ENOENT => Failure::new(format!(
            "cannot mount the hierarchy name={name}: No such file or directory: the kernel was started with cgroup_no_v1=named (or without cgroup v1); remove that boot parameter"
        ))
        .status(UNAVAILABLE),
        Errno::ENODEV => Failure::new(format!(
            "cannot mount the hierarchy name={name}: {}: this kernel is built without cgroup v1",
            error.desc()
        ))
        .status(UNAVAILABLE),
        other => Failure::new(format!("cannot mount the hierarchy name={name}: {}", other.desc())).status(SYSTEM),
    }
    };
    mounted.map_err(why).and_then(|top| Directory::new(top, false).map_err(|e| failure(SYSTEM, "fstatfs", e)))
}

/// Lets a named hierarchy go that only we mount and that holds no cgroup any more. The kernel frees removed cgroups a
/// little late, and a hierarchy ends only with a mount that finds none: so it is mounted and unmounted until it is gone,
/// for at most half a second. One that stays is harmless: a line in /proc/PID/cgroup.
pub fn let_go(names: &[String]) {
    const ROUNDS: u32 = 25;
    let exists = |name: &String| {
        let listed = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        listed.lines().any(|line| line.ends_with(&format!(":name={name}:/")))
    };
    for _ in 0..ROUNDS {
        if !names.iter().any(exists) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        // Looked at again after the wait, or a mount would make a new one.
        for name in names.iter().filter(|name| exists(name)) {
            drop(private(name));
        }
    }
}

/// Every hierarchy that has a use here, cgroup2 first, then named ones, then controllers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// The hierarchies.
    pub hierarchies: Vec<Hierarchy>,
}

impl Host {
    /// Looks.
    ///
    /// # Errors
    /// /proc is not there.
    pub fn look() -> Result<Self, Failure> {
        let read =
            |path: &str| read_path(path).map_err(|e| Failure::new(format!("read {path}: {}", e.desc())).status(SYSTEM));
        let mut host = Self::parse(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?);
        host.distrust(&mut Paths::default());
        // What cgroup2 has to give: the controllers that no v1 hierarchy has taken.
        if let Some(unified) = host.hierarchies.iter_mut().find(|h| h.is_unified())
            && let Some((mount, _)) = unified.mounts.first()
            && let Ok(list) = read_path(&format!("{mount}/cgroup.controllers"))
        {
            unified.controllers = list.split_ascii_whitespace().map(|c| Controller::Unified(c.to_owned())).collect();
        }
        Ok(host)
    }

    /// /proc/self/cgroup and /proc/self/mountinfo become hierarchies (cgroups(7), proc_pid_mountinfo(5)).
    #[must_use]
    pub fn parse(own: &str, mountinfo: &str) -> Self {
        let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
        let mut hierarchies = Vec::new();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(list), Some(here)) = (fields.next(), fields.next(), fields.next()) else { continue };
            // A hierarchy whose tree is not seen from its top.
            // v1 memory is never delegated.
            if here.starts_with("/..") || list.split(',').any(|word| word == "memory") {
                continue;
            }
            let unified = list.is_empty();
            let own =
                |mount: &&Mount| mount.unified == unified && (unified || list.split(',').all(|word| mount.has(word)));
            let agent = mounts.iter().find(own).and_then(Mount::agent);
            let mounts: Vec<(String, u64)> =
                mounts.iter().filter(own).map(|mount| (mount.point.clone(), mount.device)).collect();
            if mounts.is_empty() && !list.starts_with("name=") {
                continue;
            }
            let controllers =
                list.split(',').filter(|word| !word.is_empty()).map(|word| match word.strip_prefix("name=") {
                    Some(name) => Controller::Named(name.to_owned()),
                    None => Controller::Legacy(word.to_owned()),
                });
            let controllers = controllers.collect();
            let label = if unified { "v2".to_owned() } else { list.to_owned() };
            hierarchies.push(Hierarchy {
                label,
                controllers,
                mounts,
                here: here.trim_end_matches(" (deleted)").to_owned(),
                agent,
                distrust: None,
            });
        }
        hierarchies.sort_by_key(|h| (!h.is_unified(), !h.label.starts_with("name="), h.label.clone()));
        Self { hierarchies }
    }

    /// Forgets the mount points whose path others than root can change: there somebody could put another cgroup of the same
    /// hierarchy, one of his own, in the place of its top. That a descriptor is the top the kernel does not tell: in a
    /// cgroup namespace the top is a cgroup as any other, without release_agent and with cgroup.type.
    fn distrust(&mut self, paths: &mut Paths) {
        for hierarchy in &mut self.hierarchies {
            let mut why = None;
            hierarchy.mounts.retain(|(mount, _)| match paths.changed_by_others(mount) {
                None => true,
                Some(reason) => {
                    why = Some(format!("it is mounted on {mount}, and {reason}; mount it on /sys/fs/cgroup"));
                    false
                }
            });
            let is_named = matches!(hierarchy.controllers.first(), Some(Controller::Named(_)));
            hierarchy.distrust = why.filter(|_| hierarchy.mounts.is_empty() && !is_named);
        }
    }

    /// Whether there is a cgroup2 hierarchy.
    #[must_use]
    pub fn has_unified(&self) -> bool {
        self.hierarchies.iter().any(Hierarchy::is_unified)
    }

    /// What the host can give of `wanted`: a named hierarchy always, because it can be made.
    #[must_use]
    pub fn available(&self, wanted: &[Controller]) -> Vec<Controller> {
        let here = |c: &Controller| self.hierarchies.iter().any(|h| h.controllers.contains(c));
        wanted.iter().filter(|c| matches!(c, Controller::Named(_)) || here(c)).cloned().collect()
    }

    /// The hierarchies that carry `controllers`, and cgroup2 if there is one; a named one that does not exist is added.
    #[must_use]
    pub fn select(&self, controllers: &[Controller]) -> Vec<Hierarchy> {
        let mut selected: Vec<Hierarchy> = self
            .hierarchies
            .iter()
            .filter(|h| h.is_unified() || h.controllers.iter().any(|c| controllers.contains(c)))
            .cloned()
            .collect();
        for controller in controllers {
            if let Controller::Named(_) = controller
                && !selected.iter().any(|h| h.controllers.contains(controller))
            {
                selected.push(Hierarchy {
                    label: controller.to_string(),
                    controllers: vec![controller.clone()],
                    mounts: Vec::new(),
                    here: String::new(),
                    agent: None,
                    distrust: None,
                });
            }
        }
        selected
    }
}

/// What is known of directories on the way to mount points, each looked at once.
#[derive(Debug, Default)]
struct Paths(BTreeMap<String, Option<String>>);

impl Paths {
    /// Who else than root can put something else where `path` leads to, in words. Asked from the top down, so that what was
    /// found cannot change meanwhile. A directory with the sticky bit keeps what is root's in it.
    fn changed_by_others(&mut self, path: &str) -> Option<String> {
        let ends = path.match_indices('/').map(|(at, _)| if at == 0 { "/" } else { path.get(..at).unwrap_or("/") });
        ends.into_iter().find_map(|directory| {
            let known = self.0.entry(directory.to_owned()).or_insert_with(|| Self::look(directory));
            known.clone()
        })
    }

    fn look(directory: &str) -> Option<String> {
        let meta = match lstat(directory) {
            Ok(meta) => meta,
            Err(error) => return Some(format!("{directory}: {}", error.desc())),
        };
        let others_write = meta.st_mode & 0o022 != 0 && meta.st_mode & libc::S_ISVTX == 0;
        let is_directory = meta.st_mode & libc::S_IFMT == libc::S_IFDIR;
        if is_directory && meta.st_uid == 0 && !others_write {
            return None;
        }
        // In sysfs nobody makes or renames anything, and inside of a user namespace its root is nobody that has a name there.
        if is_directory && statfs(directory).is_ok_and(|meta| meta.filesystem_type() == SYSFS_MAGIC) {
            return None;
        }
        Some(format!("{directory} is not root's alone"))
    }
}

struct Mount {
    device: u64,
    point: String,
    unified: bool,
    options: Vec<String>,
}

impl Mount {
    /// One line of mountinfo, when it is a cgroup mount that shows the hierarchy from its top.
    fn parse(line: &str) -> Option<Self> {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(2);
        let (major, minor) = front.next()?.split_once(':')?;
        if front.next()? != "/" {
            return None;
        }
        let point = unescape(front.next()?);
        let mut back = back.split(' ');
        let unified = match back.next()? {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        let options = back.nth(1)?.split(',').map(str::to_owned).collect();
        let device = nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?);
        Some(Self { device, point, unified, options })
    }

    fn has(&self, word: &str) -> bool {
        self.options.iter().any(|option| option == word)
    }

    /// The release agent, which the kernel shows to everybody (cgroup1_show_options() of kernel/cgroup/cgroup-v1.c).
    fn agent(&self) -> Option<String> {
        self.options.iter().find_map(|option| option.strip_prefix("release_agent=")).map(unescape)
    }
}

/// Undoes the octal escapes of mountinfo.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        match after.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) if byte.is_ascii() => {
                plain.push(char::from(byte));
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    plain
}

/// Where below the top of a hierarchy the users' cgroups are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its components.
    pub path: Vec<String>,
    /// Whether it is made when it is missing.
    pub make: bool,
}

impl Base {
    /// `/a/b`.
    #[must_use]
    pub fn shown(&self) -> String {
        format!("/{}", self.path.join("/"))
    }

    /// The base for a caller whose cgroup is `here`: the one of the configuration; else the nearest slice of systemd that
    /// holds no process and is root's together with all above it, so that the slice's limits stay over him; else our own
    /// at the top.
    ///
    /// # Errors
    /// The kernel's.
    pub fn choose(configured: Option<&[String]>, here: &str, top: &Directory) -> Result<Self, Errno> {
        if let Some(path) = configured {
            return Ok(Self { path: path.to_vec(), make: true });
        }
        let own = || Self { path: vec![OWN_BASE.to_owned()], make: true };
        // A caller inside of one of our cgroups is where that cgroup's base is.
        let above: Vec<&str> =
            here.split('/').filter(|part| !part.is_empty()).take_while(|part| !part.starts_with(USER_PREFIX)).collect();
        if !above.iter().any(|part| part.ends_with(".slice")) {
            let systemd = match top.open("user.slice") {
                Ok(slice) => slice.is_roots()? && slice.processes()?.is_empty(),
                Err(_) => false,
            };
            return Ok(if systemd { Self { path: vec!["user.slice".to_owned()], make: false } } else { own() });
        }
        let mut best = None;
        let mut at = top.again()?;
        let mut path = Vec::new();
        for part in above {
            at = match at.open(part) {
                Ok(child) if child.is_roots()? => child,
                _ => break,
            };
            path.push(part.to_owned());
            if at.processes().is_ok_and(|processes| processes.is_empty()) {
                best = Some(path.clone());
            }
        }
        Ok(best.map_or_else(own, |path| Self { path, make: false }))
    }

    /// Opens it, and makes what is missing. `None`: it is not there and is not to be made.
    ///
    /// # Errors
    /// A part of it is not root's alone; the kernel's; in words.
    pub fn open(&self, top: &Directory, make: bool) -> Result<Option<Directory>, BaseError> {
        let mut opened: Option<Directory> = None;
        for part in &self.path {
            let at = opened.as_ref().unwrap_or(top);
            let child = match at.open(part) {
                Err(Errno::ENOENT) if make && self.make => {
                    match at.make(part) {
                        Ok(()) | Err(Errno::EEXIST) => {}
                        Err(error) => return Err(BaseError::Kernel(error)),
                    }
                    at.open(part).and_then(|child| child.publish(false).map(|()| child))
                }
                Err(Errno::ENOENT) => return Ok(None),
                other => other,
            };
            let child = child.map_err(BaseError::Kernel)?;
            if !child.is_roots().map_err(BaseError::Kernel)? {
                return Err(BaseError::NotRoots(part.clone()));
            }
            opened = Some(child);
        }
        // A base has a component at least.
        Ok(Some(opened.map_or_else(|| top.again(), Ok).map_err(BaseError::Kernel)?))
    }
}

/// Why a base cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BaseError {
    /// A part of its path is another's, or can be written by others.
    NotRoots(String),
    /// The kernel's; ENOENT and ENODEV mean that somebody removed a part meanwhile.
    Kernel(Errno),
}

/// A v1 hierarchy in which the host's root runs a program for empty cgroups must not be handed to a user, who can ask
/// for it in his own; systemd's agent only tells systemd.
///
/// # Errors
/// There is another agent; in words.
pub fn check_release_agent(hierarchy: &Hierarchy, top: &Directory) -> Result<(), Failure> {
    const OF_SYSTEMD: [&str; 2] = ["/usr/lib/systemd/systemd-cgroups-agent", "/lib/systemd/systemd-cgroups-agent"];
    let agent = match &hierarchy.agent {
        Some(agent) => agent.clone(),
        None if !hierarchy.mounts.is_empty() => String::new(),
        // Mounted by this program alone: its own mountinfo does not have it.
        None => match top.read_value("release_agent") {
            Ok(agent) => agent.trim_end_matches('\n').to_owned(),
            // The top of a cgroup namespace has no such file.
            Err(Errno::ENOENT) => String::new(),
            Err(error) => return Err(failure(SYSTEM, "read release_agent", error)),
        },
    };
    if agent.is_empty() || OF_SYSTEMD.contains(&agent.as_str()) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the hierarchy {} has the release agent {agent}, which root would run for a user's cgroup: it is not delegated; empty {} first",
        hierarchy.label,
        hierarchy.show("/release_agent")
    ))
    .status(77))
}

fn failure(status: u8, what: &str, error: Errno) -> Failure {
    Failure::new(format!("{what}: {}", error.desc())).status(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HYBRID: &str = "9:name=systemd:/\n8:pids:/\n4:memory:/x/y\n3:cpuset:/\n1:cpu,cpuacct:/user.slice\n0::/user.slice/user-7.slice/s.scope\n";
    const MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu\\040x rw,relatime shared:1 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 /a /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/systemd/systemd-cgroups-agent,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn a_hybrid_host_is_read() {
        let host = Host::parse(HYBRID, MOUNTS);
        let labels: Vec<&str> = host.hierarchies.iter().map(|h| h.label.as_str()).collect();
        // pids is mounted only from a cgroup below its top; memory is never delegated.
        assert_eq!(labels, ["v2", "name=systemd", "cpu,cpuacct", "cpuset"]);
        let cpu = &host.hierarchies[2];
        assert_eq!(cpu.mounts, [("/sys/fs/cgroup/cpu x".to_owned(), nix::sys::stat::makedev(0, 29))]);
        assert_eq!((cpu.here.as_str(), cpu.show("/a")), ("/user.slice", "/sys/fs/cgroup/cpu x/a".to_owned()));
        assert!(host.has_unified() && cpu.has_legacy("cpuacct") && !cpu.has_legacy("pids"));
    }

    #[test]
    fn a_pure_v2_host_can_be_given_a_named_hierarchy() {
        let host = Host::parse("0::/\n", "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        let named = Controller::Named("systemd".into());
        assert_eq!(host.available(&[named.clone(), Controller::Legacy("pids".into())]), std::slice::from_ref(&named));
        let selected = host.select(&[named]);
        assert_eq!(selected.iter().map(|h| h.show("/x")).collect::<Vec<_>>(), ["/sys/fs/cgroup/x", "name=systemd:/x"]);
    }

    proptest! {
        #[test]
        fn no_proc_file_panics(own in "([0-9]{1,2}:[a-z=,]{0,12}:/[a-z/.]{0,12}\n){0,6}|.{0,80}", mounts in "(.{0,60} - cgroup2? .{0,20}\n){0,4}") {
            let host = Host::parse(&own, &mounts);
            for hierarchy in &host.hierarchies {
                prop_assert!(!hierarchy.label.split(',').any(|word| word == "memory"));
            }
        }
    }
}
