//! `rootfs check` and `spawn check`: what would stop or spoil a start, found before it. Nothing is changed.
//!
//! [`host`] looks at this machine and the user's grants, [`container`] at one container. Each finding has a stable name,
//! a cause, and the command or step that cures it.

#![forbid(unsafe_code)]

use super::adapt;
use super::container::{Container, User, closed};
use super::error::{Result, at, io_at, shown};
use super::guest::{self, Guest, Init, LONGEST_TEXT};
use super::import::foreign_file_system;
use super::map::Map;
use super::namespace::{self, Ids};
use super::root::{Root, kind};
use super::{edit, walk};
use helper::allotment::{none_granted, ranges};
use helper::range::IdKind;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag};
use nix::sys::statvfs::{FsFlags, fstatvfs, statvfs};
use nix::unistd::{AccessFlags, access};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know; nothing breaks.
    Note,
    /// Something will not work.
    Warning,
    /// A start fails, or hangs.
    Error,
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// A stable name: `owner`, `no-init`, `start-udev`.
    pub name: String,
    /// What is wrong with what, and why.
    pub cause: String,
    /// What to do.
    pub cure: String,
}

/// Findings in the making.
#[derive(Debug, Default)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    fn add(&mut self, severity: Severity, name: &str, cause: impl Into<String>, cure: impl Into<String>) {
        self.0.push(Finding { severity, name: name.to_owned(), cause: cause.into(), cure: cure.into() });
    }

    fn error(&mut self, name: &str, cause: impl Into<String>, cure: impl Into<String>) {
        self.add(Severity::Error, name, cause, cure);
    }

    fn warning(&mut self, name: &str, cause: impl Into<String>, cure: impl Into<String>) {
        self.add(Severity::Warning, name, cause, cure);
    }

    fn note(&mut self, name: &str, cause: impl Into<String>, cure: impl Into<String>) {
        self.add(Severity::Note, name, cause, cure);
    }
}

/// Checks the host and, when one is given, a container.
///
/// # Errors
/// Looking itself failed: a file cannot be read, or no namespace can be made for another reason than those that are
/// findings.
pub fn all(user: &User, what: Option<&Container>) -> Result<Vec<Finding>> {
    let mut found = Findings::default();
    let can_map = host(user, &mut found);
    if let Some(what) = what {
        container(user, what, can_map, &mut found)?;
    }
    found.0.sort_by_key(|finding| core::cmp::Reverse(finding.severity));
    Ok(found.0)
}

// ---- the host

/// This machine and the user's grants; whether a namespace of the user's subordinate ids can be made.
pub fn host(user: &User, found: &mut Findings) -> bool {
    let mut can = true;
    if let Some(why) = helper::userns::forbidden() {
        found.error(
            "user-namespaces",
            format!("user namespaces are switched off: {why}"),
            "the setting named, as root",
        );
        can = false;
    }
    let who = user.owner.shown();
    for id_kind in [IdKind::Uid, IdKind::Gid] {
        let path = id_kind.subid_path();
        match ranges(id_kind, &user.owner) {
            Err(error) => {
                found.error("subordinate-ids", error.0, format!("see {path}"));
                can = false;
            }
            Ok(list) if list.is_empty() => {
                let text = none_granted(id_kind, &user.owner);
                let cure = format!(
                    "as root: usermod --add-sub{}s START-END {who}, or the line {who}:START:65536 in {path}",
                    id_kind.word()
                );
                found.error("subordinate-ids", text, cure);
                can = false;
            }
            Ok(list) => {
                let count: u64 = list.iter().map(|range| u64::from(range.count())).sum();
                if count < 65536 {
                    let word = id_kind.word();
                    let cause = format!(
                        "{path} grants {who} {count} {word}s: files of higher ids cannot be imported, and packages fail to install"
                    );
                    found.warning("few-ids", cause, format!("as root: grant 65536 in {path}"));
                }
            }
        }
        if user.owner.uid() == 0 {
            continue;
        }
        match namespace::map_program(id_kind) {
            Err(error) => {
                found.error(
                    "helpers",
                    error.text,
                    "install the helpers with their privilege (make install, or the package uidmap)",
                );
                can = false;
            }
            Ok(program) => {
                if statvfs(&program).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_NOSUID)) {
                    let cause =
                        format!("{} is on a file system mounted nosuid, so it has no privilege", program.display());
                    found.error("helpers", cause, "install it elsewhere, or remount without nosuid");
                    can = false;
                }
            }
        }
    }
    if std::fs::read_to_string("/proc/self/status").is_ok_and(|text| text.lines().any(|line| line == "NoNewPrivs:\t1"))
    {
        let cause = "no_new_privs is set in this session, so newuidmap and newgidmap get no privilege";
        found.error("no-new-privs", cause, "start from a login shell instead of a sandbox");
        can = false;
    }
    can
}

// ---- a container

/// One container. Without `can_map` only what the caller may see himself.
///
/// # Errors
/// As [`all`].
pub fn container(user: &User, what: &Container, can_map: bool, found: &mut Findings) -> Result<()> {
    let name = &what.name;
    if let Some(text) = closed(&what.rootfs) {
        let cause = format!("{text}, so the rootfs below is out of reach");
        found.error("unreachable", cause, "its owner can open that one directory to you, or move the container");
        return Ok(());
    }
    let Ok(stat) = std::fs::symlink_metadata(&what.rootfs) else {
        found.error(
            "no-rootfs",
            format!("{} is not there", what.rootfs.display()),
            format!("rootfs import SOURCE {name}"),
        );
        return Ok(());
    };
    if !what.bare
        && let Ok(directory) = std::fs::symlink_metadata(&what.directory)
        && directory.mode() & 0o022 != 0
    {
        let (path, mode) = (what.directory.display(), directory.mode() & 0o7777);
        let cause = format!("{path} has mode {mode:o}: others may replace the container, or run its set-user-ID files");
        found.warning("open-directory", cause, format!("chmod 700 {path} (no wider mode is ever needed)"));
    }
    configuration(user, what, found);
    let map = match what.map(user) {
        Ok(map) => map,
        Err(error) => {
            // Without ids there is nothing to compare; that finding is the host's.
            if can_map {
                found.error("map", error.text, "correct the lxc.idmap lines");
            }
            return Ok(());
        }
    };
    let shown_path = what.rootfs.display();
    let (uid, gid) = (stat.uid(), stat.gid());
    let owned = map.to_container(IdKind::Uid, uid) == Some(0) && map.to_container(IdKind::Gid, gid) == Some(0);
    if !owned {
        let cure = if uid == user.owner.uid() || map.to_container(IdKind::Uid, uid).is_some() {
            format!("rootfs shift {}", word(user, what))
        } else {
            format!(
                "as root: rootfs shift --user {} {shown_path}; or import the image again as yourself",
                user.owner.shown()
            )
        };
        found.error(
            "owner",
            format!("{shown_path} belongs to uid {uid}, gid {gid}; root of your map {map} is another"),
            cure,
        );
    }
    place(&what.rootfs, found)?;
    if what.record("shifting").exists() {
        found.error(
            "half-shifted",
            format!("a shift of {name} was interrupted"),
            format!("rootfs shift {}", word(user, what)),
        );
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let tree = match nix::fcntl::open(&what.rootfs, flags, Mode::empty()) {
        Ok(tree) => tree,
        // Only its root may read it: then it is opened in the namespace.
        Err(nix::errno::Errno::EACCES) if can_map => {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            nix::fcntl::open(&what.rootfs, flags, Mode::empty()).map_err(at("open", shown_path))?
        }
        Err(errno) => return Err(super::error::Error::system("open", shown_path, errno)),
    };
    let tree_found: Vec<Finding> = if can_map {
        namespace::run(&Ids::of(&map)?, || inside(user, what, &map, tree, owned))?
    } else {
        inside(user, what, &map, tree, false)?
    };
    found.0.extend(tree_found);
    Ok(())
}

/// The word that names the container in a command line.
fn word(user: &User, what: &Container) -> String {
    let known = |place: &PathBuf| what.directory == place.join(&what.name);
    if what.bare {
        what.rootfs.display().to_string()
    } else if known(&user.containers) || user.lxc.iter().any(known) {
        what.name.clone()
    } else {
        what.directory.display().to_string()
    }
}

fn place(rootfs: &Path, found: &mut Findings) -> Result<()> {
    let directory = nix::fcntl::open(rootfs, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let directory = directory.map_err(at("open", rootfs.display()))?;
    let flags = fstatvfs(&directory).map_err(at("statfs", rootfs.display()))?.flags();
    let cure = "move the container to a file system without that option";
    if flags.contains(FsFlags::ST_NOSUID) {
        let cause = format!(
            "{} is on a file system mounted nosuid: su, sudo, mount and ping inside have no effect",
            rootfs.display()
        );
        found.warning("nosuid", cause, cure);
    }
    if flags.contains(FsFlags::ST_NOEXEC) {
        let cause = format!("{} is on a file system mounted noexec: no program inside can run", rootfs.display());
        found.error("noexec", cause, cure);
    }
    let kind = nix::sys::statfs::statfs(rootfs).map_err(at("statfs", rootfs.display()))?.filesystem_type().0;
    if let Some(name) = foreign_file_system(kind) {
        let cause = format!("{} is on {name}, which does not keep owners of subordinate ids", rootfs.display());
        found.error("file-system", cause, "move the container to a local file system (ext4, xfs, btrfs, tmpfs)");
    }
    Ok(())
}

/// Keys of LXC before 2.1 with their new names (lxc-update-config).
const OLD_KEYS: [(&str, &str); 10] = [
    ("lxc.id_map", "lxc.idmap"),
    ("lxc.rootfs", "lxc.rootfs.path"),
    ("lxc.utsname", "lxc.uts.name"),
    ("lxc.tty", "lxc.tty.max"),
    ("lxc.pts", "lxc.pty.max"),
    ("lxc.mount", "lxc.mount.fstab"),
    ("lxc.haltsignal", "lxc.signal.halt"),
    ("lxc.rebootsignal", "lxc.signal.reboot"),
    ("lxc.stopsignal", "lxc.signal.stop"),
    ("lxc.init_cmd", "lxc.init.cmd"),
];

fn configuration(user: &User, what: &Container, found: &mut Findings) {
    let Some(path) = &what.config else { return };
    let text = std::fs::read_to_string(path).unwrap_or_default();
    for (number, line) in text.lines().enumerate() {
        let key = line.split('=').next().unwrap_or_default().trim();
        let place = format!("{}:{}", path.display(), number.saturating_add(1));
        if let Some((_, new)) = OLD_KEYS.iter().find(|(old, _)| *old == key) {
            found.error(
                "old-key",
                format!("{place}: {key} is the name that LXC had before 2.1"),
                format!("write {new}"),
            );
        } else if key.starts_with("lxc.network.") {
            let cause = format!("{place}: {key} is the name that LXC had before 2.1");
            found.error("old-key", cause, format!("write lxc.net.0.{}", key.trim_start_matches("lxc.network.")));
        }
    }
    let Ok(config) = what.settings() else { return };
    let mut links: Vec<(String, String)> = Vec::new();
    for (key, value) in config.entries() {
        if let Some(number) = key.strip_prefix("lxc.net.").and_then(|rest| rest.strip_suffix(".link")) {
            links.push((number.to_owned(), value.to_owned()));
        }
    }
    for (number, bridge) in links {
        if config.last(&format!("lxc.net.{number}.type")) != Some("veth") || bridge.is_empty() {
            continue;
        }
        if !Path::new("/sys/class/net").join(&bridge).join("bridge").exists() {
            let cause = format!(
                "lxc.net.{number}.link: there is no bridge {bridge} on this host (one made by hand is gone after a reboot)"
            );
            found.error(
                "bridge",
                cause,
                format!("as root: ip link add {bridge} type bridge && ip link set {bridge} up"),
            );
        }
        if user.owner.uid() != 0 {
            grant(user, &bridge, found);
        }
    }
}

/// `alice veth lxcbr0 10` in /etc/lxc/lxc-usernet, and what is in use of it (/run/lxc/nics).
fn grant(user: &User, bridge: &str, found: &mut Findings) {
    let who = user.owner.shown();
    let text = std::fs::read_to_string("/etc/lxc/lxc-usernet").unwrap_or_default();
    let mut quota: u64 = 0;
    let mut granted = false;
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if let [name, "veth", its_bridge, count] = words[..]
            && its_bridge == bridge
            && (name == who || name.starts_with('@'))
        {
            granted = true;
            quota = quota.saturating_add(count.parse().unwrap_or(0));
        }
    }
    let cure = format!("as root: the line \"{who} veth {bridge} 10\" in /etc/lxc/lxc-usernet");
    if !granted {
        found.error("network-grant", format!("/etc/lxc/lxc-usernet grants {who} no veth on {bridge}"), cure);
        return;
    }
    let nics = std::fs::read_to_string("/run/lxc/nics").unwrap_or_default();
    let used = nics.lines().filter(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        matches!(words[..], [name, "veth", its_bridge, ..] if name == who && its_bridge == bridge)
    });
    let used = used.count() as u64;
    if used >= quota {
        let cause = format!("{who} has {used} of {quota} interfaces on {bridge} in use");
        found.error("network-quota", cause, format!("stop a container, or {cure} with a larger number"));
    }
}

// ---- inside the namespace

fn inside(user: &User, what: &Container, map: &Map, tree: OwnedFd, owned: bool) -> Result<Vec<Finding>> {
    let mut found = Findings::default();
    let tree = nix::fcntl::openat(&tree, c".", walk::READ_DIRECTORY, Mode::empty()).map_err(at("open", "rootfs"))?;
    if owned {
        ids_of_files(user, what, map, &tree, &mut found)?;
    }
    let root =
        Root::new(tree.try_clone().map_err(io_at("duplicate", "a descriptor"))?).map_err(at("stat", "rootfs"))?;
    let guest = guest::look(&root);
    let view = View { root: &root, guest: &guest, name: word(user, what) };
    view.init(&mut found);
    view.architecture(&mut found);
    view.vsyscall(&mut found, &std::fs::read_to_string("/proc/self/maps").unwrap_or_default());
    view.tables(&mut found);
    view.boot(&mut found);
    view.login(&mut found);
    view.article(&mut found);
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    view.cgroups(&mut found, &read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
    view.mirrors(&mut found);
    view.network(&mut found, what);
    stale_cgroups(&what.name, Path::new("/sys/fs/cgroup"), &mut found);
    Ok(found.0)
}

/// Files with ids outside the map: inside they belong to nobody.
fn ids_of_files(user: &User, what: &Container, map: &Map, tree: &OwnedFd, found: &mut Findings) -> Result<()> {
    let (mut count, mut first) = (0_u64, None);
    walk::walk(tree, |visit| {
        let stat = &visit.stat;
        let inside = map.to_container(IdKind::Uid, stat.st_uid).is_some()
            && map.to_container(IdKind::Gid, stat.st_gid).is_some();
        if !visit.after && !inside {
            count = u64::saturating_add(count, 1);
            first.get_or_insert_with(|| shown(visit.path));
        }
        Ok(walk::Next::Enter)
    })?;
    if let Some(first) = first {
        let cause =
            format!("{count} files belong to ids outside the map {map}, so inside to nobody; the first is /{first}");
        found.error("owner", cause, format!("as root: rootfs shift {}", word(user, what)));
    }
    Ok(())
}

struct View<'a> {
    root: &'a Root,
    guest: &'a Guest,
    name: String,
}

impl View<'_> {
    fn exists(&self, path: &str) -> bool {
        self.root.lstat(path.as_bytes()).is_ok()
    }

    fn text(&self, path: &str) -> Option<String> {
        let text = self.root.read(path.as_bytes(), LONGEST_TEXT).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    fn is_el6(&self) -> bool {
        self.guest.init == Init::Upstart
    }

    fn init(&self, found: &mut Findings) {
        if self.guest.init != Init::None {
            return;
        }
        let cure = match self.guest.el {
            Some(6) => {
                "install upstart and initscripts in it (centos:6 of Docker lacks them; vault.centos.org has them), or run one program: spawn run NAME -- COMMAND"
            }
            _ => "install an init in it, or run one program: spawn run NAME -- COMMAND",
        };
        found.warning("no-init", "neither /sbin/init nor systemd is in the rootfs", cure);
    }

    fn architecture(&self, found: &mut Findings) {
        let Some(machine) = &self.guest.machine else {
            if !self.exists("bin/sh") && !self.exists("sbin/init") {
                found.error(
                    "empty",
                    "there is no program in the rootfs (no /sbin/init, no /bin/sh)",
                    "rootfs import an image with a system in it",
                );
            }
            return;
        };
        let host = std::env::consts::ARCH;
        let runs = match (machine.as_str(), host) {
            (guest, host) if guest == host => true,
            ("i686", "x86" | "x86_64") => true,
            ("armv7l", "arm" | "aarch64") => true,
            _ => false,
        };
        if !runs {
            let cause = format!("the programs in it are for {machine}, and this host is {host}");
            found.error(
                "architecture",
                cause,
                format!("import an image for {host} (rootfs import --platform), or set up qemu-user in binfmt_misc"),
            );
        } else if machine == "i686" && host == "x86_64" && ia32_is_off() {
            let cause = "the programs in it are for i686, and this kernel was booted without 32-bit support";
            found.error("architecture", cause, "boot the host with ia32_emulation=on");
        }
    }

    /// glibc before 2.15 jumps into the vsyscall page without asking.
    fn vsyscall(&self, found: &mut Findings, maps: &str) {
        let (Some((2, minor)), Some("x86_64")) = (self.guest.glibc, self.guest.machine.as_deref()) else { return };
        if minor < 15 && !maps.contains("[vsyscall]") {
            let cause = format!(
                "glibc 2.{minor} needs the kernel's vsyscall page, which is switched off here: every program would die of SIGSEGV"
            );
            found.error(
                "vsyscall",
                cause,
                "boot the host with vsyscall=xonly (or emulate); nothing inside a container can help",
            );
        }
    }

    fn tables(&self, found: &mut Findings) {
        let Some(fstab) = self.text("etc/fstab") else { return };
        let devices: Vec<&str> = fstab
            .lines()
            .filter_map(|line| line.split_ascii_whitespace().next())
            .filter(|word| {
                (word.starts_with("/dev/") && *word != "/dev/root")
                    || word.starts_with("UUID=")
                    || word.starts_with("LABEL=")
            })
            .collect();
        let cure = format!("rootfs adapt {}", self.name);
        if let Some(first) = devices.first() {
            let first = shown(first.as_bytes());
            let checks = self.is_el6()
                && ["sbin/fsck.ext4", "sbin/fsck.ext3", "sbin/fsck.xfs"].iter().any(|path| self.exists(path));
            if checks {
                let cause = format!(
                    "/etc/fstab names {first}, which is not here: rc.sysinit ends in a repair shell on the console"
                );
                found.error("fstab", cause, cure);
            } else {
                let cause = format!("/etc/fstab names {first}, which is not here: mounting it fails at each boot");
                found.warning("fstab", cause, cure);
            }
        }
        for place in ["/dev/pts", "/proc"] {
            if self.is_el6()
                && fstab
                    .lines()
                    .any(|line| !line.starts_with('#') && line.split_ascii_whitespace().nth(1) == Some(place))
            {
                let cause = if place == "/proc" {
                    "/etc/fstab names /proc: rc.sysinit then mounts it again without nosuid, nodev and noexec"
                } else {
                    "/etc/fstab names /dev/pts: a second devpts hides the spawner's, and only root can open a terminal"
                };
                found.warning("fstab", cause, format!("rootfs adapt {}", self.name));
            }
        }
    }

    fn boot(&self, found: &mut Findings) {
        if !self.is_el6() {
            return;
        }
        if adapt::would_hang(self.root, || false) {
            let cause = "start_udev waits for the host's events after \"Welcome to CentOS\", possibly for ever";
            found.error("start-udev", cause, format!("rootfs adapt {}", self.name));
        }
        if self.exists("etc/init/lxc-sysinit.conf") && !self.exists("etc/init/lxc-sysinit.override") {
            let cause =
                "the job lxc-sysinit of LXC's template runs telinit beside rc.sysinit, which kills rcS half way";
            found.warning("lxc-sysinit", cause, format!("rootfs adapt {}", self.name));
        }
        let words = [
            "single",
            "s",
            "S",
            "-s",
            "emergency",
            "1",
            "2",
            "3",
            "4",
            "5",
            "confirm",
            "forcefsck",
            "readonlyroot",
            "autorelabel",
        ];
        let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        if let Some(trap) = line.split_ascii_whitespace().find(|word| words.contains(word)) {
            let cause = format!(
                "the host was booted with \"{trap}\" in /proc/cmdline, which the guest's rc.sysinit would obey"
            );
            found.note(
                "cmdline",
                cause,
                "spawn run shows the guest a command line of its own; other spawners must bind one over it",
            );
        }
    }

    fn login(&self, found: &mut Findings) {
        if self.is_el6() {
            let job = self.text("etc/init/tty.conf").unwrap_or_default();
            let over = self.text("etc/init/tty.override").unwrap_or_default();
            if job.contains("mingetty") && !job.contains("--nohangup") && !over.contains("--nohangup") {
                let cause =
                    "mingetty without --nohangup fails in vhangup(2) every five seconds: no login on the console";
                found.warning("getty", cause, format!("rootfs adapt {}", self.name));
            }
        }
        let set =
            std::fs::read_to_string("/proc/self/loginuid").is_ok_and(|text| !matches!(text.trim(), "" | "4294967295"));
        let old = self.is_el6() || self.guest.el == Some(7);
        let required = edit::list(self.root, b"etc/pam.d").iter().any(|name| {
            let path = [b"etc/pam.d/", name.as_slice()].concat();
            let regular = self.root.lstat(&path).is_ok_and(|stat| kind(&stat) == SFlag::S_IFREG);
            let text = if regular { self.root.read(&path, LONGEST_TEXT).unwrap_or_default() } else { Vec::new() };
            adapt::with_optional_loginuid(&text).is_some()
        });
        if old && required {
            let now = if set {
                "; it is set in this session"
            } else {
                "; it is not set in this session, but is in an ssh or desktop session"
            };
            let cause = format!(
                "pam_loginuid is required, and fails where the login uid is set: \"Cannot make/remove an entry for the specified session\"{now}"
            );
            found.warning("loginuid", cause, format!("rootfs adapt {}", self.name));
        }
    }

    /// The mirror lists of CentOS 6 and 7 are switched off (since 2020-11-30 and 2024-06-30).
    fn mirrors(&self, found: &mut Findings) {
        let last = match self.guest.el {
            Some(6) => "6.10",
            Some(7) => "7.9.2009",
            _ => return,
        };
        let asks = edit::list(self.root, b"etc/yum.repos.d").into_iter().find(|name| {
            let path = [b"etc/yum.repos.d/", name.as_slice()].concat();
            let text = self.root.read(&path, LONGEST_TEXT).unwrap_or_default();
            String::from_utf8_lossy(&text).lines().any(|line| {
                line.strip_prefix("mirrorlist=").is_some_and(|url| url.contains("//mirrorlist.centos.org/"))
            })
        });
        if let Some(name) = asks {
            let cause = format!(
                "/etc/yum.repos.d/{} asks mirrorlist.centos.org, which is switched off: yum finds no package",
                shown(&name)
            );
            let cure = format!("inside: baseurl=http://vault.centos.org/{last}/os/$basearch/ instead of mirrorlist");
            found.note("mirrors", cause, cure);
        }
    }

    /// What the article's author did to his CentOS 6, and what its template leaves.
    fn article(&self, found: &mut Findings) {
        if !self.is_el6() {
            return;
        }
        if self.text("etc/rc.d/rc.sysinit").is_some_and(|text| text.trim().is_empty()) {
            let cause = "/etc/rc.d/rc.sysinit is empty: no host name, no /var/run clean-up, no utmp, no mtab";
            found.warning("rc-sysinit", cause, "inside: yum reinstall initscripts (it is never necessary to empty it)");
        }
        let init = self.text("etc/sysconfig/init").unwrap_or_default();
        let last = init.lines().rev().find_map(|line| line.trim().strip_prefix("ACTIVE_CONSOLES="));
        if last.is_some_and(|value| value.trim_matches(['"', '\'']).is_empty()) {
            let cause = "ACTIVE_CONSOLES in /etc/sysconfig/init is empty: no login on the console at all";
            found.warning("no-console", cause, format!("rootfs adapt {}", self.name));
        }
        let mtab = self.root.lstat(b"etc/mtab").is_ok_and(|stat| kind(&stat) == SFlag::S_IFREG);
        let text = if mtab { self.text("etc/mtab").unwrap_or_default() } else { String::new() };
        if let Some(line) = text
            .lines()
            .find(|line| (line.starts_with("/dev/") && !line.starts_with("/dev/root ")) || line.contains("/run/user/"))
        {
            let device = shown(line.split(' ').next().unwrap_or_default().as_bytes());
            let cause = format!("/etc/mtab names {device}, a device of the host's: df and umount believe it");
            found.note("mtab", cause, format!("rootfs adapt {}: rc.sysinit then writes a true one", self.name));
        }
        if self.exists("selinux/enforce") {
            let cause = "/selinux/enforce exists: rc.sysinit then prints \"cat: /proc/self/attr/current: Invalid argument\", which means nothing";
            found.note("selinux", cause, "rm /selinux/enforce inside, or leave it");
        }
        let started = edit::list(self.root, b"etc/rc.d/rc3.d");
        let has = |name: &str| {
            started.iter().any(|entry| entry.first() == Some(&b'S') && entry.get(3..) == Some(name.as_bytes()))
        };
        let off: Vec<&str> = ["network", "iptables", "netfs", "sshd", "crond", "rsyslog"]
            .into_iter()
            .filter(|service| self.exists(&format!("etc/rc.d/init.d/{service}")) && !has(service))
            .collect();
        if !off.is_empty() {
            let list = off.join(", ");
            let cause = format!(
                "services are switched off in runlevel 3: {list}; all of them run in a container of an ordinary user"
            );
            found.note("services", cause, format!("inside: for s in {}; do chkconfig $s on; done", off.join(" ")));
        }
        if self
            .text("etc/rsyslog.conf")
            .is_some_and(|text| text.lines().any(|line| line.trim().starts_with("$ModLoad imklog")))
        {
            let cause = "rsyslog loads imklog, and /proc/kmsg may not be read in a user namespace: it was seen to take all of a CPU";
            found.warning("imklog", cause, "put a # before $ModLoad imklog in /etc/rsyslog.conf inside");
        }
    }

    /// systemd freezes where it may make no cgroup. Before 230 it knows cgroup v1 only, and wants name=systemd.
    fn cgroups(&self, found: &mut Findings, mounts: &str, own: &str) {
        let old = match &self.guest.init {
            Init::Systemd(Some(version)) => *version < 230,
            Init::Systemd(None) => self.guest.el == Some(7),
            _ => return,
        };
        let cure = format!(
            "cgdelegate run {0} -- spawn run {0} (an administrator allows it in /etc/cgdelegate.conf)",
            self.name
        );
        let named = node(mounts, own, |kind, options| kind == "cgroup" && options == "name=systemd", ":name=systemd:");
        let unified = node(mounts, own, |kind, _| kind == "cgroup2", "0::").filter(|_| !old);
        // Looked at as the container's root, which has to own it: not the caller.
        let may = |node: &Option<PathBuf>| node.as_ref().is_some_and(|node| access(node, AccessFlags::W_OK).is_ok());
        if may(&named) || may(&unified) {
            return;
        }
        let owner = |node: &Path| {
            let owner = std::fs::metadata(node).map_or_else(|_| "another".to_owned(), |stat| stat.uid().to_string());
            format!("{} belongs to uid {owner} as seen inside, not to the container's root", node.display())
        };
        let cause = match (unified.or(named), old) {
            (None, true) => "this systemd needs the cgroup v1 hierarchy name=systemd, and the host has none: it would freeze (\"Failed to mount cgroup at /sys/fs/cgroup/systemd\")".to_owned(),
            (None, false) => "this systemd needs a cgroup of its own, and neither cgroup2 nor name=systemd is mounted on the host: it would freeze".to_owned(),
            (Some(node), true) => format!(
                "this systemd needs a delegated node of the cgroup v1 hierarchy name=systemd, and {}: it would freeze (\"Failed to create root cgroup hierarchy\")",
                owner(&node)
            ),
            (Some(node), false) => format!(
                "this systemd needs a delegated cgroup, and {}: it would freeze (\"Failed to allocate manager object\")",
                owner(&node)
            ),
        };
        found.warning("cgroup", cause, cure);
    }

    fn network(&self, found: &mut Findings, what: &Container) {
        if !self.is_el6() {
            return;
        }
        let shares = what.settings().is_ok_and(|config| {
            config.last("lxc.net.0.type") == Some("none") || config.last("lxc.namespace.share.net").is_some()
        });
        if shares {
            let cause = "upstart listens on an abstract socket, which belongs to the network namespace: two guests in one, or a guest on the host's, rule each other";
            found.error("shared-network", cause, "give it its own network namespace: lxc.net.0.type = empty, or veth");
        }
    }
}

/// The cgroup of this process in the hierarchy whose mount (file system type, super options' last word) fits, with
/// `mark` before its path in /proc/self/cgroup (proc_pid_mountinfo(5), cgroups(7)).
fn node(mounts: &str, own: &str, fits: impl Fn(&str, &str) -> bool, mark: &str) -> Option<PathBuf> {
    let place = mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let kind = right.split(' ').next()?;
        let options = right.rsplit([' ', ',']).next()?;
        fits(kind, options).then(|| left.split(' ').nth(4)).flatten()
    })?;
    let path = own.lines().find_map(|line| Some(line.split_once(mark)?.1)).unwrap_or_default();
    Some(Path::new(place).join(path.trim_start_matches('/')))
}

fn ia32_is_off() -> bool {
    std::fs::read_to_string("/proc/cmdline").is_ok_and(|line| {
        line.split_ascii_whitespace()
            .rev()
            .find_map(|word| word.strip_prefix("ia32_emulation="))
            .is_some_and(|value| matches!(value, "off" | "0" | "false" | "n"))
    })
}

/// What LXC and starts that were killed leave: empty cgroups with the container's name, which stop the next start.
pub fn stale_cgroups(name: &str, base: &Path, found: &mut Findings) {
    let mut hierarchies = vec![base.to_owned()];
    hierarchies.extend(std::fs::read_dir(base).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())));
    let mut stale = Vec::new();
    for hierarchy in hierarchies {
        for parent in ["lxc.payload", "lxc.monitor", "lxc"] {
            stale.push(hierarchy.join(parent).join(name));
        }
        for parent in ["lxc.payload", "lxc.monitor"] {
            stale.push(hierarchy.join(format!("{parent}.{name}")));
        }
    }
    stale.retain(|node| node.is_dir());
    stale.sort();
    cpuset(&stale, found);
    stale.retain(|node| is_empty_cgroup(node));
    if let Some(first) = stale.first() {
        let cause = format!(
            "{} empty cgroups of {name} are left of an earlier start (the first is {}): LXC then says \"File exists\"",
            stale.len(),
            first.display()
        );
        found.warning(
            "stale-cgroups",
            cause,
            "cgdelegate prune, or rmdir of each, deepest first (no reboot is needed)",
        );
    }
}

/// A v1 cpuset that nobody has initialised: whoever enters it gets ENOSPC (cpuset_can_attach in the kernel).
fn cpuset(nodes: &[PathBuf], found: &mut Findings) {
    let empty = |file: &Path| std::fs::read_to_string(file).is_ok_and(|text| text.trim().is_empty());
    let files = nodes.iter().flat_map(|node| ["cpuset.cpus", "cpuset.mems"].map(|file| node.join(file)));
    if let Some(file) = files.into_iter().find(|file| empty(file)) {
        let cause = format!(
            "{} is empty: LXC enters this cgroup and says \"No space left on device\", with every disk empty",
            file.display()
        );
        found.warning(
            "cpuset",
            cause,
            "a container needs no cpuset, and spawn enters none; cgdelegate fills both files",
        );
    }
}

fn is_empty_cgroup(node: &Path) -> bool {
    let alive = std::fs::read_to_string(node.join("cgroup.procs")).is_ok_and(|text| !text.trim().is_empty());
    let children = std::fs::read_dir(node).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    !alive && children.filter(|path| path.is_dir()).all(|path| is_empty_cgroup(&path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn guest(init: Init, glibc: Option<(u32, u32)>, machine: &str) -> Guest {
        Guest { name: String::new(), el: None, init, glibc, machine: Some(machine.to_owned()) }
    }

    fn with(guest: &Guest, test: impl Fn(&View<'_>, &mut Findings)) -> Vec<Finding> {
        let scratch = tempfile::tempdir().unwrap();
        let root = Root::new(OwnedFd::from(File::open(scratch.path()).unwrap())).unwrap();
        let mut found = Findings::default();
        test(&View { root: &root, guest, name: "c".into() }, &mut found);
        found.0
    }

    #[test]
    fn old_glibc_without_vsyscall_is_an_error_and_with_it_is_not() {
        let old = guest(Init::Upstart, Some((2, 12)), "x86_64");
        let found = with(&old, |view, found| view.vsyscall(found, "7ff... [vdso]\n"));
        assert!(found.len() == 1 && found[0].cure.contains("vsyscall="));
        assert!(with(&old, |view, found| view.vsyscall(found, "ffffffffff600000 --xp [vsyscall]\n")).is_empty());
        let new = guest(Init::Upstart, Some((2, 17)), "x86_64");
        assert!(with(&new, |view, found| view.vsyscall(found, "")).is_empty());
    }

    #[test]
    fn another_architecture_is_an_error() {
        let other = guest(Init::Other, None, "s390x");
        assert_eq!(with(&other, |view, found| view.architecture(found))[0].name, "architecture");
        let own = guest(Init::Other, None, std::env::consts::ARCH);
        assert!(with(&own, |view, found| view.architecture(found)).is_empty());
    }

    #[test]
    fn an_old_systemd_wants_the_named_hierarchy() {
        let old = guest(Init::Systemd(Some(219)), None, "x86_64");
        let unified = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let found = with(&old, |view, found| view.cgroups(found, unified, "0::/\n"));
        assert!(found.len() == 1 && found[0].cause.contains("name=systemd"));
        // A newer one takes either; the node may be owned by another than the container's root.
        let scratch = tempfile::tempdir().unwrap();
        let mounts = |kind: &str| format!("31 23 0:27 / {} rw - {kind}\n", scratch.path().display());
        std::fs::create_dir(scratch.path().join("own")).unwrap();
        let new = guest(Init::Systemd(Some(252)), None, "x86_64");
        for (guest, kind, own) in [
            (&new, "cgroup2 cgroup2 rw", "0::/own\n"),
            (&new, "cgroup cgroup rw,name=systemd", "3:name=systemd:/own\n"),
            (&old, "cgroup cgroup rw,xattr,name=systemd", "3:name=systemd:/own\n"),
        ] {
            assert!(with(guest, |view, found| view.cgroups(found, &mounts(kind), own)).is_empty(), "{kind}");
            let missing = own.replace("/own", "/not");
            let found = with(guest, |view, found| view.cgroups(found, &mounts(kind), &missing));
            assert!(found.len() == 1 && found[0].cause.contains("/not belongs to uid"), "{kind}: {found:?}");
        }
        assert_eq!(with(&new, |view, found| view.cgroups(found, "", "")).len(), 1);
    }

    #[test]
    fn empty_cgroups_of_the_name_are_told_from_live_ones() {
        let scratch = tempfile::tempdir().unwrap();
        let node = scratch.path().join("cpuset/lxc.monitor/c7/deep");
        std::fs::create_dir_all(&node).unwrap();
        std::fs::write(node.join("cgroup.procs"), "").unwrap();
        let live = scratch.path().join("memory/lxc.payload/c7");
        std::fs::create_dir_all(&live).unwrap();
        std::fs::write(live.join("cgroup.procs"), "42\n").unwrap();
        let mut found = Findings::default();
        stale_cgroups("c7", scratch.path(), &mut found);
        assert!(found.0.len() == 1 && found.0[0].cause.starts_with("1 empty"));
        let mut none = Findings::default();
        stale_cgroups("other", scratch.path(), &mut none);
        assert!(none.0.is_empty());
    }
}
