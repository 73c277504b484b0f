//! The container's cgroup: one that cgdelegate(1) makes for `--cgroup`, or a leaf of the one that the caller was given
//! already (`cgdelegate run NAME -- spawn run`, `systemd-run --user -p Delegate=yes`).
//!
//! Either way the container's init stands alone in it when it takes its cgroup namespace: a process of ours in what it
//! sees as the root would keep its systemd from switching controllers on (the kernel's rule of no internal processes).
//!
//! CLONE_INTO_CGROUP is of no use to either. From outside, into a cgroup of cgdelegate's or a leaf in it, clone3 is EACCES:
//! the kernel asks for write permission on the common ancestor's cgroup.procs (cgroup_may_write, cgroup_css_set_fork),
//! which is root's. From inside it works, and spares the wait of a move (cgroup_threadgroup_rwsem: some milliseconds when
//! nobody has moved just before); but the leaf, which has to be there before, belongs to the caller with his own group:
//! the container's root could make nothing in it, and the caller may not give it to a subordinate gid. With `--map self`
//! alone, where the caller is that root, it would serve.

#![forbid(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};

use crate::child::Child;
use crate::complain;
use crate::failure::{Failure, Outcome, words};
use crate::sys;
use crate::tool::{self, Tool};

/// How long the removal at the end may take.
const REMOVAL: Duration = Duration::from_secs(5);

/// A cgroup of cgdelegate's for one container.
#[derive(Debug)]
pub struct Cgroup {
    tool: Tool,
    name: String,
    limits: Vec<String>,
    /// Set when the child is in it.
    made: Option<Made>,
    /// Its lines of /proc/PID/cgroup.
    places: Vec<String>,
}

/// Where a cgroup was seen: a directory below /sys/fs/cgroup with its device and inode number. `None`: its hierarchy is
/// not mounted there.
type Made = Option<(PathBuf, u64, u64)>;

/// What the command line asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// `--cgroup`.
    pub name: Option<&'a str>,
    /// `--memory`, `--pids` and `--cpus`, as cgdelegate takes them.
    pub limits: [Option<&'a str>; 3],
    /// KEY=VALUE of the configuration, for `--limit`.
    pub more: &'a [String],
}

const LIMITS: [&str; 3] = ["--memory", "--pids", "--cpus"];

impl Asked<'_> {
    /// Whether anything is asked for.
    #[must_use]
    pub fn any(&self) -> bool {
        self.name.is_some() || self.limits.iter().any(Option::is_some) || !self.more.is_empty()
    }

    /// The words of `cgdelegate attach`; a limit without a name is one for a cgroup called like the container.
    #[must_use]
    pub fn words(&self, container: &str) -> Vec<String> {
        let limits = LIMITS.iter().zip(self.limits).filter_map(|(option, value)| Some(format!("{option}={}", value?)));
        let more = self.more.iter().map(|limit| format!("--limit={limit}"));
        [self.name.unwrap_or(container).to_owned()].into_iter().chain(limits).chain(more).collect()
    }

    /// Looks for cgdelegate, if there is something to do for it.
    ///
    /// # Errors
    /// When it is not there with its privilege.
    pub fn find(&self, container: &str) -> Outcome<Option<Cgroup>> {
        if !self.any() {
            return Ok(None);
        }
        let tool = Tool::find("cgdelegate", &tool::places(), "userns-helpers")?;
        let mut words = self.words(container);
        let name = words.remove(0);
        Ok(Some(Cgroup { tool, name, limits: words, made: None, places: Vec::new() }))
    }
}

impl Cgroup {
    /// Makes it and moves `child` in, whose map is written and whose ids are the caller's still. Its lines of
    /// /proc/PID/cgroup.
    ///
    /// # Errors
    /// When cgdelegate refuses or has not ended at `deadline`, in its own words, or when the child is not where it says.
    pub fn attach(&mut self, child: &Child, deadline: Instant) -> Outcome<Vec<String>> {
        let name = self.name.clone();
        let pid = child.pid.to_string();
        let mut arguments = vec!["attach".to_owned(), name.clone(), "--pid".to_owned(), pid];
        arguments.extend(self.limits.iter().cloned());
        self.call(arguments, deadline).map_err(|failure| {
            // A child that has ended cannot be moved: its own words are the cause.
            let refused = Failure::own(format!("no cgroup {name}: {}", failure.text));
            child.last_words().unwrap_or(refused)
        })?;
        let path = format!("/proc/{}/cgroup", child.pid);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let end = format!("/{name}");
        let places: Vec<String> = text.lines().filter(|line| line.ends_with(&end)).map(str::to_owned).collect();
        self.made = Some(places.iter().find_map(|place| see(place)));
        if places.is_empty() {
            return Err(Failure::own(format!("{path} does not show the cgroup {name} that cgdelegate has made")));
        }
        self.places.clone_from(&places);
        Ok(places)
    }

    /// Runs cgdelegate: what it has said, or why it failed and its exit code.
    fn call(&self, arguments: Vec<String>, deadline: Instant) -> Result<String, Failure> {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)
            .map_err(|errno| Failure::own(format!("cannot make a pipe: {}", words(errno))))?;
        let running = self.tool.start(arguments, &writer)?;
        drop(writer);
        let result = running.wait(deadline);
        if result == Some(0) { Ok(tool::said(&reader)) } else { Err(self.tool.failure(result, &reader)) }
    }

    /// After the container's end, whose processes have gone with its pid namespace. `prune` and not `delete`: it leaves
    /// a cgroup of `cgdelegate create` as it is, and one that the caller's next container has made under this name.
    fn remove(&self, made: &Made) -> Outcome<()> {
        let deadline = Instant::now() + REMOVAL;
        let call = |words: &[&str]| self.call(words.iter().map(|word| (*word).to_owned()).collect(), deadline);
        call(&["prune"])?;
        let Some((path, device, inode)) = made else { return Ok(()) };
        let is_there = || path.metadata().is_ok_and(|data| (data.dev(), data.ino()) == (*device, *inode));
        // In use by processes that were moved in from outside: they end with the container that it was made for.
        if is_there() && is_of_attach(&call(&["list"])?, &self.name) && is_there() {
            call(&["delete", &self.name, "--kill"])?;
        }
        Ok(())
    }
}

/// What is to be removed when the container has ended, for the program that waits for that.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Remains {
    /// The name of cgdelegate's cgroup and where it was seen.
    made: Option<(String, Made)>,
    /// The leaves of [`Own`].
    leaves: Vec<PathBuf>,
}

/// The cgroups of a container that lives: removed when this is dropped.
#[derive(Debug, Default)]
pub struct Kept {
    cgroup: Option<Cgroup>,
    own: Own,
}

impl Kept {
    /// Of a start.
    #[must_use]
    pub fn new(cgroup: Option<Cgroup>, own: Own) -> Self {
        Self { cgroup, own }
    }

    /// The lines of /proc/PID/cgroup of a process that stands where the container sees its roots; none when it has no
    /// cgroup of its own. A leaf of [`Own`] that root inside was not let make is among them all the same.
    #[must_use]
    pub fn places(&self) -> Vec<String> {
        let leaf = self.own.leaf.to_string_lossy();
        let leaves = self.own.lines.iter().map(|line| format!("{}/{leaf}", line.trim_end_matches('/')));
        self.cgroup.iter().flat_map(|cgroup| cgroup.places.iter().cloned()).chain(leaves).collect()
    }

    /// What another program would have to remove in this one's place.
    #[must_use]
    pub fn remains(&self) -> Remains {
        let made = self.cgroup.as_ref().and_then(|cgroup| Some((cgroup.name.clone(), cgroup.made.clone()?)));
        let node = |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok();
        let leaf = std::ffi::OsStr::from_bytes(self.own.leaf.as_bytes());
        let leaves = self.own.nodes.iter().filter_map(node).map(|path| path.join(leaf)).collect();
        Remains { made, leaves }
    }
}

impl Remains {
    /// Removes it.
    pub fn remove(self) {
        if let Some((name, made)) = self.made {
            match Tool::find("cgdelegate", &tool::places(), "userns-helpers") {
                Ok(tool) => {
                    drop(Cgroup { tool, name, limits: Vec::new(), made: Some(made), places: Vec::new() });
                }
                Err(failure) => complain(&format!("the cgroup {name} stays: {}", failure.text)),
            }
        }
        for leaf in self.leaves {
            // As in Own's drop.
            let _ = std::fs::remove_dir(leaf);
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Some(made) = self.made.take()
            && let Err(failure) = self.remove(&made)
        {
            complain(&format!("the cgroup {} stays until your next call of cgdelegate: {}", self.name, failure.text));
        }
    }
}

/// Whether `cgdelegate list` tells of the cgroup `name` that `attach` has made it.
fn is_of_attach(list: &str, name: &str) -> bool {
    list.lines().any(|line| {
        let mut words = line.split(' ');
        words.next() == Some(name) && words.nth(1) == Some("attach")
    })
}

/// The directory of a line of /proc/PID/cgroup, where hierarchies are mounted by custom (cgroups(7), systemd).
#[must_use]
pub fn directory(line: &str) -> Option<PathBuf> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (list, path) = (fields.next()?, fields.next()?.strip_prefix('/')?);
    // `/..` begins the path of a cgroup outside this process's cgroup namespace.
    if path.is_empty() || path.starts_with("..") {
        return None;
    }
    let top = Path::new("/sys/fs/cgroup");
    let mount = match list.strip_prefix("name=").unwrap_or(list) {
        "" if is_cgroup(top, CGROUP2_SUPER_MAGIC) => top.to_owned(),
        "" => top.join("unified"),
        other => top.join(other),
    };
    let kind = if list.is_empty() { CGROUP2_SUPER_MAGIC } else { CGROUP_SUPER_MAGIC };
    is_cgroup(&mount, kind).then(|| mount.join(path))
}

fn is_cgroup(mount: &Path, kind: FsType) -> bool {
    statfs(mount).is_ok_and(|stat| stat.filesystem_type() == kind)
}

fn see(line: &str) -> Made {
    let path = directory(line)?;
    let data = path.metadata().ok()?;
    Some((path, data.dev(), data.ino()))
}

/// The cgroups of the caller's that this process was started in: the container gets a leaf in each.
#[derive(Debug, Default)]
pub struct Own {
    nodes: Vec<OwnedFd>,
    /// The line of /proc/PID/cgroup of each.
    lines: Vec<String>,
    leaf: CString,
}

impl Own {
    /// Whether the container gets no cgroup of its own.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Looks where this process stands. A cgroup counts when it is the caller's to write, and was made for that:
    /// by cgdelegate, or by systemd with Delegate=yes (the rest of what is below user@UID.service is the caller's as
    /// well, and systemd's to manage).
    ///
    /// On cgroup2, where processes and controllers exclude each other, this process goes into a leaf of its own if it
    /// is alone in such a cgroup, and hands the controllers on to the leaves.
    ///
    /// `container` is a name without slashes.
    #[must_use]
    pub fn look(container: &str) -> Self {
        let mut buffer = [0_u8; 4096];
        let text = sys::read_file(c"/proc/self/cgroup", &mut buffer).unwrap_or_default();
        let text = String::from_utf8_lossy(text);
        // Mostly there is nothing: no look at any mount then. The v1 memory hierarchy is delegated by nobody.
        let lines: Vec<&str> =
            text.lines().filter(|line| !line.ends_with(":/") && !line.contains(":memory:")).collect();
        // Root may write every cgroup, and none of them was given to him for that.
        if lines.is_empty() || nix::unistd::geteuid().is_root() {
            return Self::default();
        }
        let mut own = Self { nodes: Vec::new(), lines: Vec::new(), leaf: c"".to_owned() };
        for line in lines {
            let Some(path) = directory(line).filter(|path| is_delegated(path)) else { continue };
            let Ok(node) = std::fs::OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
                .open(&path)
                .map(OwnedFd::from)
            else {
                continue;
            };
            if line.starts_with("0:") {
                make_room(&path);
            }
            own.nodes.push(node);
            own.lines.push(line.to_owned());
        }
        if !own.nodes.is_empty() {
            own.leaf = CString::new(format!("{container}.{}", std::process::id())).unwrap_or_default();
        }
        own
    }

    /// In the child, as the container's root: makes the leaves, which are his then, and enters them. Where he may not,
    /// because the cgroup was not made for him to write, he stays, and the cgroup is his root as it is.
    pub fn enter(&self) {
        for node in &self.nodes {
            let node = node.as_raw_fd();
            let enter = || {
                sys::make_directory(node, &self.leaf, 0o755)?;
                let leaf = sys::open_at(node, &self.leaf, libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW)?;
                let list = sys::open_at(leaf, c"cgroup.procs", libc::O_WRONLY)?;
                sys::write(list, b"0").map(drop)
            };
            let _: sys::Call<()> = enter();
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        for node in &self.nodes {
            // A leaf in which the container has made others is not ours to empty: it goes with the cgroup around it.
            let _ = sys::remove_directory(node.as_raw_fd(), &self.leaf);
        }
    }
}

/// See [`Own::look`].
fn is_delegated(path: &Path) -> bool {
    use nix::unistd::{AccessFlags, access};
    let writable = access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
        && access(&path.join("cgroup.procs"), AccessFlags::W_OK).is_ok();
    let unit = path.extension().is_some_and(|kind| kind == "service" || kind == "scope" || kind == "slice");
    writable
        && (!unit
            || CString::new(path.as_os_str().as_bytes()).is_ok_and(|path| sys::has_attribute(&path, c"user.delegate")))
}

/// Moves this process into the leaf `supervisor` if nobody else stands in the cgroup `node` of cgroup2, and switches its
/// controllers on for the leaves. What fails is left: the container then runs without controllers of its own.
fn make_room(node: &Path) {
    let procs = node.join("cgroup.procs");
    let own = std::process::id().to_string();
    if std::fs::read_to_string(&procs).is_ok_and(|list| list.trim() == own) {
        let leaf = node.join("supervisor");
        let made = std::fs::create_dir(&leaf);
        let there = made.is_ok() || made.is_err_and(|error| error.kind() == std::io::ErrorKind::AlreadyExists);
        if there && std::fs::write(leaf.join("cgroup.procs"), "0").is_ok() {
            let controllers = std::fs::read_to_string(node.join("cgroup.controllers")).unwrap_or_default();
            for controller in controllers.split_ascii_whitespace() {
                let _ = std::fs::write(node.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_without_a_name_is_for_a_cgroup_called_like_the_container() {
        let none = Asked::default();
        assert!(!none.any());
        let limits = Asked { name: None, limits: [Some("1G"), None, Some("0.5")], more: &[] };
        assert!(limits.any());
        assert_eq!(limits.words("c7").join(" "), "c7 --memory=1G --cpus=0.5");
        assert_eq!(Asked { name: Some("x"), ..none }.words("c7"), ["x"]);
        let more = ["memory.max=1G".to_owned()];
        let configured = Asked { more: &more, ..none };
        assert!(configured.any());
        assert_eq!(configured.words("c7"), ["c7", "--limit=memory.max=1G"]);
    }

    #[test]
    fn only_what_attach_has_made_goes_with_the_container() {
        let list = "a 1001 create idle /sys/fs/cgroup/a\nb 1001 attach alive /sys/fs/cgroup/b\n";
        assert!(is_of_attach(list, "b"));
        assert!(!is_of_attach(list, "a") && !is_of_attach(list, "c") && !is_of_attach("", ""));
    }

    #[test]
    fn a_cgroup_outside_the_own_namespace_has_no_directory() {
        for line in ["0::/", "0::/../x", "0::", "", "5:pids", "7:name=no-such-hierarchy:/x"] {
            assert_eq!(directory(line), None, "{line}");
        }
    }
}
