//! LXC's configuration of a container (lxc.container.conf(5)): every key is honoured, refused with file, line and
//! reason, or listed as harmless to leave out, and then a warning says so once.
//!
//! `text` reads lines and includes, `value` single values; this file knows the keys. Nothing here is done yet: the
//! result is a [`Config`], and what the start makes of it stands in `settings`.

#![forbid(unsafe_code)]

pub mod text;
pub mod value;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use helper::range::Extent;

use crate::failure::{Failure, Outcome};
use crate::rootfs::map::Map;
use text::{Entry, Files, Origin, Wrong};
use value::{Limit, Mount, Value};

/// What `lxc.rootfs.path` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// A directory.
    Directory(PathBuf),
    /// An overlay: directories that are read, the top one first, and one that takes what is written.
    Overlay {
        /// Lower directories.
        lower: Vec<PathBuf>,
        /// Upper directory.
        upper: PathBuf,
    },
}

/// How a file system of the kernel's is shown: `lxc.mount.auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auto {
    /// Read-only but for what belongs to the container alone.
    Mixed,
    /// Read-only.
    ReadOnly,
    /// Writable.
    Writable,
}

/// `lxc.net.N.*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Net {
    /// `type`; only `veth` and `empty` are taken.
    pub kind: String,
    /// `link`: a bridge of the host.
    pub link: Option<String>,
    /// `flags` holds `up`.
    pub up: bool,
    /// `name` inside.
    pub name: Option<String>,
    /// `hwaddr`, in which an x stands for any digit.
    pub mac: Option<String>,
    /// `mtu` in bytes.
    pub mtu: Option<u32>,
    /// `ipv4.address` and `ipv6.address`, each with the length of its prefix.
    pub addresses: Vec<String>,
    /// `ipv4.gateway` and `ipv6.gateway`.
    pub gateways: Vec<String>,
    /// Where its first key stands.
    pub origin: Option<Origin>,
}

/// `lxc.cap.drop` or `lxc.cap.keep`, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capabilities {
    /// All but these stay.
    Drop(u64),
    /// These stay.
    Keep(u64),
}

/// `lxc.init.*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Init {
    /// `cmd`: the words of the command.
    pub command: Option<Vec<String>>,
    /// `uid`.
    pub uid: Option<u32>,
    /// `gid`.
    pub gid: Option<u32>,
    /// `cwd`.
    pub directory: Option<PathBuf>,
}

/// `lxc.signal.*`: numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// `halt`: what asks init to halt.
    pub halt: Option<i32>,
    /// `reboot`: what asks init to reboot.
    pub reboot: Option<i32>,
    /// `stop`: what ends the container at once.
    pub stop: Option<i32>,
}

/// `lxc.console.*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Console {
    /// `logfile`: what is written to the console goes there too.
    pub logfile: Option<PathBuf>,
    /// `size`: bytes of the log file at most; 0 is no limit.
    pub size: Option<u64>,
    /// `rotate`: a log file that is full is renamed and begun anew.
    pub rotate: bool,
    /// `buffer.size`: bytes of the ring buffer; 0 is none.
    pub buffer: Option<u64>,
}

/// `lxc.start.*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// `auto`.
    pub auto: bool,
    /// `delay`, after it is started.
    pub delay: Duration,
    /// `order`: the lower, the earlier.
    pub order: i32,
}

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// Before anything is made, on the host, as the caller.
    PreStart,
    /// When the container's namespaces are there and its init is not, on the host, as the caller.
    StartHost,
    /// When the container has ended and its namespaces are gone, on the host, as the caller.
    PostStop,
}

impl HookKind {
    /// LXC's word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::PreStart => "pre-start",
            Self::StartHost => "start-host",
            Self::PostStop => "post-stop",
        }
    }
}

/// `lxc.hook.*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// When.
    pub kind: HookKind,
    /// A line for /bin/sh.
    pub command: String,
    /// Where it stands.
    pub origin: Origin,
}

/// `lxc.cgroup.*` and `lxc.cgroup2.*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Version 2, or version 1.
    pub unified: bool,
    /// The file: `memory.max`.
    pub file: String,
    /// What is written to it.
    pub value: String,
    /// Where it stands.
    pub origin: Origin,
}

/// A file of /proc and what is written to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Below /proc/sys, or below /proc/PID.
    pub file: String,
    /// The value.
    pub value: String,
    /// Where it stands.
    pub origin: Origin,
}

/// A container's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `lxc.uts.name`
    pub hostname: Option<String>,
    /// `lxc.rootfs.path`
    pub root: Option<Root>,
    /// `lxc.rootfs.options` hold `ro`.
    pub read_only: bool,
    /// MOUNT_ATTR_ bits of `lxc.rootfs.options`.
    pub root_attributes: u32,
    /// `lxc.idmap`; empty lists are no map.
    pub map: Map,
    /// `lxc.net.N`, by number.
    pub nets: BTreeMap<u32, Net>,
    /// `lxc.mount.entry`, with the place of each.
    pub mounts: Vec<(Mount, Origin)>,
    /// `lxc.mount.fstab`
    pub fstab: Option<(PathBuf, Origin)>,
    /// `lxc.mount.auto` of /proc.
    pub proc: Option<Auto>,
    /// `lxc.mount.auto` of /sys.
    pub sys: Option<Auto>,
    /// `lxc.mount.auto` names cgroup.
    pub cgroup_mount: bool,
    /// `lxc.tty.max`: terminals /dev/tty1, /dev/tty2...
    pub ttys: Option<u32>,
    /// `lxc.pty.max`: pseudo-terminals at most.
    pub ptys: Option<u32>,
    /// `lxc.console.*`
    pub console: Console,
    /// `lxc.environment`: KEY=VALUE, or KEY for the caller's.
    pub environment: Vec<String>,
    /// `lxc.signal.*`
    pub signals: Signals,
    /// `lxc.init.*`
    pub init: Init,
    /// `lxc.cap.drop`, `lxc.cap.keep`; `None` when neither stands there, which an empty value is not.
    pub capabilities: Option<Capabilities>,
    /// `lxc.seccomp.profile`
    pub seccomp: Option<(PathBuf, Origin)>,
    /// `lxc.no_new_privs`
    pub no_new_privs: bool,
    /// `lxc.prlimit.*`
    pub limits: Vec<(Limit, Origin)>,
    /// `lxc.sysctl.*`
    pub sysctls: Vec<Written>,
    /// `lxc.proc.*`
    pub procs: Vec<Written>,
    /// `lxc.cgroup.*` and `lxc.cgroup2.*`, without devices.
    pub cgroup: Vec<Cgroup>,
    /// `lxc.hook.*`
    pub hooks: Vec<Hook>,
    /// `lxc.start.*`
    pub start: Start,
    /// `lxc.group`
    pub groups: Vec<String>,
    /// `lxc.arch` is one of 32 bits on this machine of 64.
    pub personality32: bool,
    /// `lxc.ephemeral`: what is written goes away with the container.
    pub ephemeral: bool,
    /// `lxc.keyring.session` is 0: the caller's session keyring is kept.
    pub keeps_keyring: bool,
    /// What is left out, one line each.
    pub warnings: Vec<String>,
    /// The keys and families that a warning stands for.
    pub warned: Vec<&'static str>,
}

/// Keys that are left out because nothing is lost by it, with what is said about it. A key that ends in a dot stands
/// for all that begin so.
const HARMLESS: [(&str, &str); 21] = [
    ("lxc.apparmor.", "the container runs under the caller's own AppArmor label"),
    ("lxc.selinux.", "the container runs under the caller's own SELinux context"),
    ("lxc.autodev", "/dev is always a tmpfs with the host's harmless nodes: no user namespace may make others"),
    ("lxc.cgroup.devices.", "no user namespace may make a device node, whatever a cgroup allows"),
    ("lxc.cgroup2.devices.", "no user namespace may make a device node, whatever a cgroup allows"),
    ("lxc.cgroup.dir", "cgdelegate has one place for a user's cgroups"),
    ("lxc.cgroup.relative", "cgdelegate has one place for a user's cgroups"),
    ("lxc.console.path", "the console is a pseudo-terminal that spawn holds"),
    ("lxc.execute.cmd", "the command stands on the command line"),
    ("lxc.hook.version", "hooks get LXC's variables and its first three arguments"),
    ("lxc.hook.clone", "spawn copies no containers"),
    ("lxc.hook.destroy", "rootfs removes containers"),
    ("lxc.log.", "spawn's messages go to standard error"),
    ("lxc.monitor.", "the supervisor is spawn's own"),
    ("lxc.rootfs.managed", "rootfs removes containers, when it is told to"),
    ("lxc.rootfs.mount", "the root is mounted where nobody else sees it"),
    ("lxc.seccomp.allow_nesting", "seccomp filters always nest"),
    ("lxc.tty.dir", "the terminals are /dev/tty1 and on"),
    ("lxc.sched.core", "scheduling is the host's"),
    ("lxc.cgroup.dir.", "cgdelegate has one place for a user's cgroups"),
    ("lxc.autodev.tmpfs.size", "/dev holds nodes and links alone"),
];

/// Keys that cannot be honoured, with the reason.
const REFUSED: [(&str, &str); 12] = [
    ("lxc.namespace.share.", "a container has namespaces of its own; use `spawn exec` to enter one that runs"),
    ("lxc.namespace.clone", "which namespaces there are is not free: take the key out"),
    ("lxc.namespace.keep", "which namespaces there are is not free: take the key out"),
    ("lxc.time.", "time namespaces are not made: take the key out"),
    ("lxc.seccomp.notify.", "no supervisor answers for system calls: take the key out"),
    ("lxc.hook.pre-mount", "no program of the host runs inside a half-made container: mount with lxc.mount.entry"),
    ("lxc.hook.mount", "no program of the host runs inside a half-made container: mount with lxc.mount.entry"),
    ("lxc.hook.autodev", "no program of the host runs inside a half-made container: /dev is made by spawn"),
    ("lxc.hook.start", "start the program from the container's own init instead"),
    ("lxc.hook.stop", "lxc.hook.post-stop runs when the container has ended"),
    ("lxc.init.groups", "give the user supplementary groups in the rootfs's /etc/group and start with --user NAME"),
    ("lxc.mount", "it was renamed to lxc.mount.fstab in LXC 2.1"),
];

/// Keys as they were called before LXC 2.1.
const OLD: [(&str, &str); 15] = [
    ("lxc.haltsignal", "lxc.signal.halt"),
    ("lxc.utsname", "lxc.uts.name"),
    ("lxc.rootfs", "lxc.rootfs.path"),
    ("lxc.id_map", "lxc.idmap"),
    ("lxc.tty", "lxc.tty.max"),
    ("lxc.pts", "lxc.pty.max"),
    ("lxc.devttydir", "lxc.tty.dir"),
    ("lxc.console", "lxc.console.path"),
    ("lxc.stopsignal", "lxc.signal.stop"),
    ("lxc.rebootsignal", "lxc.signal.reboot"),
    ("lxc.init_cmd", "lxc.init.cmd"),
    ("lxc.init_uid", "lxc.init.uid"),
    ("lxc.init_gid", "lxc.init.gid"),
    ("lxc.seccomp", "lxc.seccomp.profile"),
    ("lxc.aa_profile", "lxc.apparmor.profile"),
];

impl Config {
    /// Reads a configuration file, if there is one, and then the `key=value` of the command line.
    ///
    /// # Errors
    /// With file, line, key and reason; or when the file cannot be read.
    pub fn load(file: Option<&Path>, overrides: &[String]) -> Outcome<Self> {
        Self::read(&text::System, file, overrides).map_err(|Wrong(text)| Failure::own(text))
    }

    /// [`Config::load`] from any files.
    ///
    /// # Errors
    /// As there.
    pub fn read(files: &dyn Files, file: Option<&Path>, overrides: &[String]) -> Result<Self, Wrong> {
        let mut entries = file.map_or_else(|| Ok(Vec::new()), |file| text::read(files, file))?;
        for word in overrides {
            let wrong = |why: &str| Wrong(format!("-s {}: {why}", word.escape_default()));
            match text::split(word) {
                Ok(Some((key, value))) if !value.contains('\0') && key != "lxc.include" => {
                    entries.push(Entry { key: key.to_owned(), value: value.to_owned(), origin: Origin::CommandLine });
                }
                Ok(Some(_)) => return Err(wrong("cannot stand on the command line")),
                Ok(None) => return Err(wrong("must be KEY=VALUE, and a key begins with lxc.")),
                Err(why) => return Err(wrong(why)),
            }
        }
        let mut config = Self::default();
        for entry in &entries {
            config
                .set(entry)
                .map_err(|reason| Wrong(format!("{}: {} = {}: {reason}", entry.origin, entry.key, entry.value)))?;
        }
        config.check()?;
        Ok(config)
    }

    /// What is wrong only when all keys are known.
    fn check(&self) -> Result<(), Wrong> {
        for net in self.nets.values() {
            if let Some(origin) = &net.origin
                && net.kind.is_empty()
            {
                return Err(Wrong(format!("{origin}: a network card has no lxc.net.N.type: veth or empty")));
            }
        }
        if self.map.uids.is_empty() != self.map.gids.is_empty() {
            return Err(Wrong("lxc.idmap: there must be lines for u and for g, or none".to_owned()));
        }
        Ok(())
    }

    /// The id map, when there is one.
    #[must_use]
    pub fn extents(&self) -> Option<(&[Extent], &[Extent])> {
        (!self.map.uids.is_empty()).then_some((&self.map.uids, &self.map.gids))
    }

    /// The hooks of one kind in order.
    pub fn hooks(&self, kind: HookKind) -> impl Iterator<Item = &Hook> {
        self.hooks.iter().filter(move |hook| hook.kind == kind)
    }

    fn set(&mut self, entry: &Entry) -> Value<()> {
        let Entry { key, value, origin } = entry;
        let (key, value) = (key.as_str(), value.as_str());
        let some = || (!value.is_empty()).then_some(value);
        match key {
            "lxc.uts.name" => self.hostname = some().map(str::to_owned),
            "lxc.rootfs.path" => self.root = some().map(root).transpose()?,
            "lxc.rootfs.options" => self.root_options(value)?,
            "lxc.idmap" if value.is_empty() => self.map = Map::default(),
            "lxc.idmap" => self.map.add(value).map_err(|error| error.text)?,
            "lxc.mount.entry" if value.is_empty() => self.mounts.clear(),
            "lxc.mount.entry" => self.mounts.push((value::mount(value)?, origin.clone())),
            "lxc.mount.fstab" => self.fstab = some().map(value::path).transpose()?.map(|path| (path, origin.clone())),
            "lxc.mount.auto" => self.auto(value)?,
            "lxc.tty.max" => self.ttys = some().map(|text| at_most(text, 12)).transpose()?,
            "lxc.pty.max" => self.ptys = some().map(|text| at_most(text, 1 << 20)).transpose()?,
            "lxc.console.logfile" => {
                self.console.logfile = some().filter(|v| *v != "none").map(value::path).transpose()?
            }
            "lxc.console.size" => self.console.size = some().map(value::size).transpose()?,
            "lxc.console.buffer.size" => self.console.buffer = some().map(value::size).transpose()?,
            "lxc.console.rotate" => self.console.rotate = some().map_or(Ok(false), value::switch)?,
            "lxc.environment" if value.is_empty() => self.environment.clear(),
            "lxc.environment" if value.starts_with('=') => return Err("must be KEY=VALUE or KEY".to_owned()),
            "lxc.environment" => self.environment.push(value.to_owned()),
            "lxc.signal.halt" => self.signals.halt = some().map(value::signal).transpose()?,
            "lxc.signal.reboot" => self.signals.reboot = some().map(value::signal).transpose()?,
            "lxc.signal.stop" => self.signals.stop = some().map(value::signal).transpose()?,
            "lxc.init.cmd" => self.init.command = some().map(value::words).transpose()?.filter(|w| !w.is_empty()),
            "lxc.init.uid" => self.init.uid = some().map(value::id).transpose()?,
            "lxc.init.gid" => self.init.gid = some().map(value::id).transpose()?,
            "lxc.init.cwd" => self.init.directory = some().map(value::path).transpose()?,
            "lxc.cap.drop" | "lxc.cap.keep" => self.capability(key, value)?,
            "lxc.seccomp.profile" => {
                let path = some().filter(|v| *v != "none").map(value::path).transpose()?;
                self.seccomp = path.map(|path| (path, origin.clone()));
            }
            "lxc.no_new_privs" => self.no_new_privs = some().map_or(Ok(false), value::switch)?,
            "lxc.keyring.session" => self.keeps_keyring = !some().map_or(Ok(true), value::switch)?,
            "lxc.start.auto" => self.start.auto = some().map_or(Ok(false), value::switch)?,
            "lxc.start.delay" => self.start.delay = some().map_or(Ok(Duration::ZERO), value::seconds)?,
            "lxc.start.order" => self.start.order = some().map_or(Ok(0), order)?,
            "lxc.group" if value.is_empty() => self.groups.clear(),
            "lxc.group" => self.groups.extend(value.split_ascii_whitespace().map(str::to_owned)),
            "lxc.arch" => self.personality32 = some().map_or(Ok(false), architecture)?,
            "lxc.ephemeral" => self.ephemeral = some().map_or(Ok(false), value::switch)?,
            "lxc.net" if value.is_empty() => self.nets.clear(),
            "lxc.sysctl" if value.is_empty() => self.sysctls.clear(),
            "lxc.proc" if value.is_empty() => self.procs.clear(),
            "lxc.prlimit" if value.is_empty() => self.limits.clear(),
            "lxc.hook" if value.is_empty() => self.hooks.clear(),
            "lxc.cgroup" | "lxc.cgroup2" if value.is_empty() => {
                self.cgroup.retain(|setting| setting.unified != (key == "lxc.cgroup2"));
            }
            _ => return self.set_family(entry),
        }
        Ok(())
    }

    /// Keys whose last part is a name of its own.
    fn set_family(&mut self, entry: &Entry) -> Value<()> {
        let Entry { key, value, origin } = entry;
        if let Some((_, reason)) = known(&REFUSED, key) {
            // An empty value takes back what could not be honoured.
            return if value.is_empty() { Ok(()) } else { Err(format!("cannot be honoured: {reason}")) };
        }
        if let Some((family, why)) = known(&HARMLESS, key) {
            // What allows or asks for nothing needs no word.
            let quiet = value.is_empty() || (key == "lxc.autodev" && value == "1");
            if !quiet && !self.warned.contains(&family) {
                self.warned.push(family);
                self.warnings.push(format!("{origin}: {key} is left out: {why}"));
            }
            return Ok(());
        }
        let family = |prefix: &str| key.strip_prefix(prefix).filter(|rest| !rest.is_empty());
        if let Some(name) = family("lxc.prlimit.") {
            self.limits.retain(|(limit, _)| limit.name != name);
            if !value.is_empty() {
                self.limits.push((value::limit(name, value)?, origin.clone()));
            }
        } else if let Some(name) = family("lxc.sysctl.") {
            // A slash in a name stands for a dot that is part of one, as in net.ipv4.conf.eth0/1.forwarding.
            let file = name.split('.').map(|part| part.replace('/', ".")).collect::<Vec<_>>().join("/");
            write(&mut self.sysctls, file, value, origin)?;
        } else if let Some(name) = family("lxc.proc.") {
            // A file of /proc/PID itself: a directory of it may be a link to anywhere.
            write(&mut self.procs, name.to_owned(), value, origin)?;
        } else if let Some(rest) = family("lxc.net.") {
            self.net(rest, value, origin)?;
        } else if let Some(file) = family("lxc.cgroup2.") {
            self.cgroup(true, file, value, origin)?;
        } else if let Some(file) = family("lxc.cgroup.") {
            self.cgroup(false, file, value, origin)?;
        } else if let Some(word) = family("lxc.hook.") {
            let kinds = [HookKind::PreStart, HookKind::StartHost, HookKind::PostStop];
            let kind = kinds.into_iter().find(|kind| kind.word() == word).ok_or("is no hook of LXC's")?;
            if value.is_empty() {
                self.hooks.retain(|hook| hook.kind != kind);
            } else {
                self.hooks.push(Hook { kind, command: value.clone(), origin: origin.clone() });
            }
        } else if let Some((_, new)) = OLD.iter().find(|(old, _)| old == key) {
            return Err(format!("is called {new} since LXC 2.1: lxc-update-config renames the keys of a file"));
        } else if key.starts_with("lxc.network") {
            return Err("is called lxc.net.N.* since LXC 2.1: lxc-update-config renames the keys of a file".to_owned());
        } else {
            return Err("there is no such key (lxc.container.conf(5), spawn-config(5))".to_owned());
        }
        Ok(())
    }

    fn root_options(&mut self, value: &str) -> Value<()> {
        (self.read_only, self.root_attributes) = (false, 0);
        let options = value::mount(&format!("/ / none bind,{value}"));
        let mount =
            options.map_err(|why| why.replace("a bind mount has no options of its own", "cannot be honoured"))?;
        if mount.create != value::Create::No || mount.optional || mount.relative {
            return Err("create=, optional and relative are options of lxc.mount.entry".to_owned());
        }
        self.read_only = mount.attributes & crate::sys::MOUNT_ATTR_RDONLY != 0;
        self.root_attributes = mount.attributes & !crate::sys::MOUNT_ATTR_RDONLY;
        Ok(())
    }

    fn auto(&mut self, value: &str) -> Value<()> {
        if value.is_empty() {
            (self.proc, self.sys, self.cgroup_mount) = (None, None, false);
        }
        for word in value.split_ascii_whitespace() {
            match word {
                "proc" | "proc:mixed" => self.proc = Some(Auto::Mixed),
                "proc:rw" => self.proc = Some(Auto::Writable),
                "sys" | "sys:mixed" => self.sys = Some(Auto::Mixed),
                "sys:ro" => self.sys = Some(Auto::ReadOnly),
                "sys:rw" => self.sys = Some(Auto::Writable),
                _ if word.split(':').next().is_some_and(|kind| kind == "cgroup" || kind == "cgroup-full") => {
                    self.cgroup_mount = true;
                }
                _ if word.starts_with("shmounts") => {
                    return Err("cannot be honoured: nothing can be mounted into a container that runs".to_owned());
                }
                _ => return Err(format!("\"{word}\" is none of proc, sys and cgroup")),
            }
        }
        Ok(())
    }

    fn capability(&mut self, key: &str, value: &str) -> Value<()> {
        let keep = key.ends_with("keep");
        if value.is_empty() {
            // Also where nothing stood before: then not even those are dropped that spawn would drop unasked.
            if !matches!(
                (keep, self.capabilities),
                (false, Some(Capabilities::Keep(_))) | (true, Some(Capabilities::Drop(_)))
            ) {
                self.capabilities = Some(Capabilities::Drop(0));
            }
            return Ok(());
        }
        let mut bits = 0;
        for word in value.split_ascii_whitespace() {
            match word {
                "none" if keep => bits = 0,
                _ => bits |= value::capability(word)?,
            }
        }
        self.capabilities = Some(match (keep, self.capabilities) {
            (false, None) => Capabilities::Drop(bits),
            (false, Some(Capabilities::Drop(old))) => Capabilities::Drop(old | bits),
            (true, None | Some(Capabilities::Drop(0))) => Capabilities::Keep(bits),
            (true, Some(Capabilities::Keep(old))) => Capabilities::Keep(old | bits),
            _ => return Err("lxc.cap.drop and lxc.cap.keep exclude each other: empty one of them first".to_owned()),
        });
        Ok(())
    }

    fn net(&mut self, rest: &str, value: &str, origin: &Origin) -> Value<()> {
        let (number, key) = rest.split_once('.').unwrap_or((rest, ""));
        let number: u32 = value::number(number).map_err(|_| "must be lxc.net.N.KEY, N a number".to_owned())?;
        if key.is_empty() {
            if value.is_empty() {
                self.nets.remove(&number);
                return Ok(());
            }
            return Err("must be lxc.net.N.KEY".to_owned());
        }
        let net = self.nets.entry(number).or_default();
        net.origin.get_or_insert_with(|| origin.clone());
        let some = || (!value.is_empty()).then(|| value.to_owned());
        let gateway = |list: &mut Vec<String>, six: bool| {
            list.retain(|old| old.contains(':') != six);
            match value {
                "auto" | "dev" => Err("cannot be honoured: give the gateway's address".to_owned()),
                _ => {
                    list.extend(some());
                    Ok(())
                }
            }
        };
        match key {
            "type" => match value {
                "veth" | "empty" | "" => net.kind = value.to_owned(),
                "none" => {
                    return Err(
                        "cannot be honoured: in the host's network no container can mount /sys, and inits of CentOS 6 would meet each other"
                            .to_owned(),
                    );
                }
                _ => return Err("cannot be honoured: it needs root on the host; veth and empty do not".to_owned()),
            },
            "link" => net.link = some(),
            "flags" => match value {
                "up" | "" => net.up = value == "up",
                _ => return Err("must be `up` or empty".to_owned()),
            },
            "name" => net.name = some(),
            "hwaddr" => net.mac = some(),
            "mtu" => net.mtu = some().map(|mtu| at_most(&mtu, 65_535)).transpose()?,
            "ipv4.address" | "ipv6.address" if value.is_empty() => {
                net.addresses.retain(|address| address.contains(':') != (key == "ipv6.address"));
            }
            // A broadcast address may follow; the kernel knows it from the prefix.
            "ipv4.address" | "ipv6.address" => {
                net.addresses.extend(value.split_ascii_whitespace().next().map(str::to_owned))
            }
            "ipv4.gateway" => gateway(&mut net.gateways, false)?,
            "ipv6.gateway" => gateway(&mut net.gateways, true)?,
            _ if key.starts_with("script.") => {
                return if value.is_empty() {
                    Ok(())
                } else {
                    Err("cannot be honoured: usernet makes the card, and runs no program of a user's".to_owned())
                };
            }
            // The host's end is named by the tool that makes it; the mode of a veth is its default.
            "veth.pair" | "veth.mode" if value.is_empty() || (key == "veth.mode" && value == "bridge") => {}
            "veth.pair" => {
                let warning = format!("{origin}: lxc.net.{number}.veth.pair is left out: usernet names the host's end");
                if !self.warnings.contains(&warning) {
                    self.warnings.push(warning);
                }
            }
            _ => return Err("there is no such key, or it needs root on the host".to_owned()),
        }
        Ok(())
    }

    fn cgroup(&mut self, unified: bool, file: &str, value: &str, origin: &Origin) -> Value<()> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if !file.bytes().all(plain) || !file.contains('.') || file.starts_with("cgroup.") || file.len() > 100 {
            return Err("is no file of a controller, such as memory.max".to_owned());
        }
        if value.is_empty() {
            self.cgroup.retain(|setting| setting.unified != unified || setting.file != file);
        } else {
            let (file, value) = (file.to_owned(), value.to_owned());
            self.cgroup.push(Cgroup { unified, file, value, origin: origin.clone() });
        }
        Ok(())
    }
}

/// A key or a family of keys, and the remark about it.
type Remark = (&'static str, &'static str);

/// The entry of a table that a key falls under: the longest.
fn known(table: &[Remark], key: &str) -> Option<Remark> {
    let fits = |entry: &&Remark| if entry.0.ends_with('.') { key.starts_with(entry.0) } else { key == entry.0 };
    table.iter().filter(fits).max_by_key(|entry| entry.0.len()).copied()
}

fn write(list: &mut Vec<Written>, file: String, value: &str, origin: &Origin) -> Value<()> {
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('/');
    if !file.split('/').all(part) {
        return Err("is no name of a file of /proc".to_owned());
    }
    list.retain(|old| old.file != file);
    if !value.is_empty() {
        list.push(Written { file, value: value.to_owned(), origin: origin.clone() });
    }
    Ok(())
}

/// `lxc.rootfs.path`.
fn root(value: &str) -> Value<Root> {
    let (kind, rest) = match value.split_once(':') {
        Some((kind, rest)) if !kind.contains('/') => (kind, rest),
        _ => ("dir", value),
    };
    match kind {
        "dir" | "btrfs" => value::path(rest).map(Root::Directory),
        "overlay" | "overlayfs" => {
            let mut parts: Vec<PathBuf> = rest.split(':').map(value::path).collect::<Value<_>>()?;
            let upper = parts.pop().filter(|_| !parts.is_empty());
            let upper = upper.ok_or("must be overlay:LOWER:UPPER")?;
            parts.reverse();
            Ok(Root::Overlay { lower: parts, upper })
        }
        _ => {
            Err("cannot be honoured: only directories and overlays can be mounted without root on the host".to_owned())
        }
    }
}

fn order(value: &str) -> Value<i32> {
    value.parse().map_err(|_| format!("\"{value}\" is no number"))
}

fn at_most(value: &str, most: u32) -> Value<u32> {
    let number: u32 = value::number(value)?;
    if number > most { Err(format!("at most {most} can be had")) } else { Ok(number) }
}

/// Whether `lxc.arch` asks for programs of 32 bits.
fn architecture(value: &str) -> Value<bool> {
    const THIRTY_TWO: [&str; 7] = ["x86", "i386", "i486", "i586", "i686", "linux32", "athlon"];
    let same = match value {
        "amd64" => "x86_64",
        "arm64" | "armv8" => "aarch64",
        "linux64" => std::env::consts::ARCH,
        other => other,
    };
    if same == std::env::consts::ARCH {
        return Ok(false);
    }
    if std::env::consts::ARCH == "x86_64" && THIRTY_TWO.contains(&value) {
        return Ok(true);
    }
    Err(format!("this host is a {}, which cannot run it", std::env::consts::ARCH))
}

#[cfg(test)]
mod tests;
