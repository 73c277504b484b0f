//! What will be done inside, as data: built before the clone, so that the child finds every string ready.

#![forbid(unsafe_code)]

use core::ffi::{CStr, c_char};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::card::Card;
use crate::cgroup::Own;
use crate::config::{Auto, Config};
use crate::confine::Confinement;

/// The root of the container.
#[derive(Debug, PartialEq, Eq)]
pub enum Root {
    /// A directory on the host, as the caller named it.
    Directory(CString),
    /// An overlay over one or more of them.
    Layered(Layered),
    /// The host's own tree: the entries of `/`, each shown in its own way.
    Host(Vec<HostEntry>),
}

/// How an entry of the host's `/` is shown in a container of `host`.
#[derive(Debug, PartialEq, Eq)]
pub struct HostEntry {
    /// Its name without the slash.
    pub name: CString,
    /// Its path on the host.
    pub path: CString,
    /// Permission bits of the directory.
    pub mode: u32,
    /// What is put there.
    pub shown: Shown,
}

/// See [`HostEntry`].
#[derive(Debug, PartialEq, Eq)]
pub enum Shown {
    /// A symbolic link with this content.
    Link(CString),
    /// The directory, below an overlay whose changes stay in memory.
    Overlay(Box<Overlay>),
    /// The directory with all that is mounted below it, or the file, read-only.
    Bind {
        /// Whether it is a directory.
        directory: bool,
    },
    /// An empty directory, because the caller may not read the host's.
    Empty,
}

/// Strings for the mount of one overlay. Upper and work directories are relative to the scratch tmpfs.
#[derive(Debug, PartialEq, Eq)]
pub struct Overlay {
    /// `upper/NAME`.
    pub upper: CString,
    /// `work/NAME`.
    pub work: CString,
    /// `root/NAME`.
    pub target: CString,
    /// Mount options with `userxattr` (kernel 5.11 and newer).
    pub options: CString,
    /// Mount options without it.
    pub plain_options: CString,
}

impl Root {
    /// The directory of the host whose owner must be root inside; none for `host`.
    #[must_use]
    pub fn base(&self) -> Option<&CStr> {
        match self {
            Self::Directory(path) => Some(path),
            Self::Layered(layered) => layered.lower.last().map(|layer| layer.path.as_c_str()),
            Self::Host(_) => None,
        }
    }

    /// The trees that are opened as the caller, by their paths: the directory, or every layer.
    pub fn trees(&self) -> impl Iterator<Item = &CStr> {
        let (one, layers) = match self {
            Self::Directory(path) => (Some(path.as_c_str()), None),
            Self::Layered(layered) => (None, Some(layered)),
            Self::Host(_) => (None, None),
        };
        let layers = layers.into_iter().flat_map(|layered| layered.lower.iter().chain(&layered.upper));
        one.into_iter().chain(layers.map(|layer| layer.path.as_c_str()))
    }
}

/// A root of several layers: an overlay below which a tmpfs or a directory of the host takes what is written.
#[derive(Debug, PartialEq, Eq)]
pub struct Layered {
    /// Directories that are read, the top one first.
    pub lower: Vec<Layer>,
    /// The directory in which the upper one and its work directory lie; none: a tmpfs.
    pub upper: Option<Layer>,
    /// Mount options with `userxattr` (kernel 5.11 and newer), paths relative to the scratch tmpfs.
    pub options: CString,
    /// Mount options without it.
    pub plain_options: CString,
}

/// A directory of the host and the name of its mount point in the scratch tmpfs.
#[derive(Debug, PartialEq, Eq)]
pub struct Layer {
    /// On the host.
    pub path: CString,
    /// In the scratch tmpfs.
    pub name: CString,
}

/// Layers at most: the child keeps their descriptors in an array.
pub const MAX_LAYERS: usize = 16;

/// A mount beside those that every container has: `--bind`, or a line of `lxc.mount.entry`.
#[derive(Debug, PartialEq, Eq)]
pub struct Mounting {
    /// What is mounted.
    pub source: Source,
    /// Below the root, without a leading slash; every prefix of it in turn, the whole last.
    pub target: Vec<PathStep>,
    /// MOUNT_ATTR_ bits.
    pub attributes: u32,
    /// MS_PRIVATE and its kin, or 0.
    pub propagation: u64,
    /// Whether a mount point that is missing is made.
    pub create: Create,
    /// Whether the start goes on without it when it fails.
    pub optional: bool,
}

/// See [`Mounting`].
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// A file or directory of the host, as the caller named it.
    Bind {
        /// Its path.
        path: CString,
        /// With all that is mounted below it.
        recursive: bool,
    },
    /// One of the container, by its path there.
    Inside {
        /// Its path.
        path: CString,
        /// With all that is mounted below it.
        recursive: bool,
    },
    /// A file system of its own.
    FileSystem {
        /// Its type.
        kind: CString,
        /// Options with their values, the source among them.
        options: Vec<(CString, Option<CString>)>,
    },
}

/// How a mount point is made that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    /// Not at all.
    No,
    /// As a directory.
    Directory,
    /// As an empty file.
    File,
    /// As what is mounted on it.
    LikeSource,
}

/// What is written to a file of the container's own /proc before its command is there: `lxc.sysctl.*`, `lxc.proc.*`.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    /// The file, relative to /proc.
    pub file: CString,
    /// The bytes.
    pub value: CString,
    /// Key and place, for messages.
    pub key: CString,
}

/// One prefix of a path below the root.
#[derive(Debug, PartialEq, Eq)]
pub struct PathStep {
    /// From the root on: `a/b/c`.
    pub prefix: CString,
    /// Its last component: `c`.
    pub last: CString,
}

/// Whom the command runs as, inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// uid 0, gid 0.
    Root,
    /// A number, and a group if one was given.
    Id(u32, Option<u32>),
    /// A name of the rootfs's own /etc/passwd.
    Name(String),
}

/// Everything that the child needs.
#[derive(Debug)]
pub struct Plan {
    /// Name for messages.
    pub name: String,
    /// The root of the container.
    pub root: Root,
    /// Whether the rootfs, as a whole, is shown read-only.
    pub read_only: bool,
    /// Network cards beside the loopback, which are there when the child is told to go. Only with `held`.
    pub cards: Vec<Card>,
    /// Whether the command is systemd, which ends at once without a cgroup that it may write.
    pub systemd: bool,
    /// The cgroups to make a leaf in for the container.
    pub own_cgroup: Own,
    /// `lxc.cgroup.*` and `lxc.cgroup2.*` as limits of cgdelegate's: KEY=VALUE.
    pub limits: Vec<String>,
    /// More mounts in the order given, at most [`MAX_MOUNTS`].
    pub mounts: Vec<Mounting>,
    /// MOUNT_ATTR_ bits of the rootfs beside `read_only`.
    pub root_attributes: u32,
    /// How /proc is shown.
    pub proc: Auto,
    /// How /sys is shown.
    pub sys: Auto,
    /// Whether /sys/fs/cgroup gets the cgroup2 hierarchy. Without, init mounts what it wants, or nothing does.
    pub cgroup2: bool,
    /// Written to /proc.
    pub written: Vec<Written>,
    /// Terminals /dev/tty1 and on.
    pub ttys: u32,
    /// Mount options of /dev/pts.
    pub devpts: CString,
    /// What the command may not do.
    pub confinement: Confinement,
    /// The configuration that all this came from; it says as well how the container is stopped, logged and started again.
    pub config: Config,
    /// The file of it.
    pub config_file: Option<std::path::PathBuf>,
    /// Host name inside.
    pub hostname: CString,
    /// Working directory inside.
    pub workdir: CString,
    /// Whom the command runs as.
    pub user: User,
    /// The command, its name first.
    pub argv: Vec<CString>,
    /// The files to try in turn: the command itself if it has a slash, else one for each directory of PATH.
    pub candidates: Vec<CString>,
    /// KEY=VALUE, the whole environment of the command but HOME.
    pub environment: Vec<CString>,
    /// HOME=... as asked for; none: the user's home directory.
    pub home: Option<CString>,
    /// Whether the map has no more than the caller's own ids: setgroups(2) is denied then, and there is no gid 5.
    pub single_id: bool,
    /// Whether the command is the rootfs's init: it gets no controlling terminal, and a /proc/cmdline of its own.
    pub init: bool,
    /// Whether the child waits for `go` after its network namespace is there, and reports it (`spawn hold`, `--net`).
    pub held: bool,
}

/// Mounts beside those that every container has, at most: the child keeps their descriptors in an array.
pub const MAX_MOUNTS: usize = 128;

/// What an init finds in /proc/cmdline in place of the host's words, some of which it would obey: `single`, a runlevel,
/// `init=`. No file system is checked, no module loaded, and the root is writable.
pub const COMMAND_LINE: &CStr = c"fastboot nomodules noreadonlyroot\n";

/// The directories in which a command without a slash is looked for, inside.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A device node that is bound from the host, because mknod(2) is refused in a user namespace.
pub struct Node {
    /// Below /dev inside.
    pub name: &'static CStr,
    /// On the host.
    pub path: &'static CStr,
}

/// The nodes of /dev.
pub const NODES: [Node; 6] = [
    Node { name: c"null", path: c"/dev/null" },
    Node { name: c"zero", path: c"/dev/zero" },
    Node { name: c"full", path: c"/dev/full" },
    Node { name: c"random", path: c"/dev/random" },
    Node { name: c"urandom", path: c"/dev/urandom" },
    Node { name: c"tty", path: c"/dev/tty" },
];

/// The names of the terminals that `lxc.tty.max` can ask for, in /dev.
pub const TERMINALS: [&CStr; 12] =
    [c"tty1", c"tty2", c"tty3", c"tty4", c"tty5", c"tty6", c"tty7", c"tty8", c"tty9", c"tty10", c"tty11", c"tty12"];

/// The links of /dev: name and content.
pub const LINKS: [(&CStr, &CStr); 5] = [
    (c"fd", c"/proc/self/fd"),
    (c"stdin", c"/proc/self/fd/0"),
    (c"stdout", c"/proc/self/fd/1"),
    (c"stderr", c"/proc/self/fd/2"),
    (c"ptmx", c"pts/ptmx"),
];

/// Paths below /proc that are shown read-only: what `lxc.mount.auto = proc:mixed` does. /proc/sys/net is the
/// container's own network namespace and stays writable.
pub const PROC_READ_ONLY: [&CStr; 2] = [c"sys", c"sysrq-trigger"];

/// Below /proc, stays writable.
pub const PROC_WRITABLE: &CStr = c"sys/net";

/// Files below /proc over which /dev/null is bound, where they exist: memory, keys and timers of the host.
pub const PROC_MASKED_FILES: [&CStr; 3] = [c"kcore", c"keys", c"timer_list"];

/// Directories below /sys over which an empty read-only directory is put, where they exist: tables of the firmware.
pub const SYS_MASKED_DIRECTORIES: [&CStr; 1] = [c"firmware"];

/// Below the read-only /sys, stays writable: `lxc.mount.auto = sys:mixed`.
pub const SYS_WRITABLE: &CStr = c"devices/virtual/net";

/// The prefixes of `path`, which may begin with slashes; empty for `/` itself, `None` when a component is `..`.
#[must_use]
pub fn path_steps(path: &Path) -> Option<Vec<PathStep>> {
    let mut steps = Vec::new();
    let mut prefix = Vec::new();
    for part in path.as_os_str().as_bytes().split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".") {
        if part == b".." {
            return None;
        }
        if !prefix.is_empty() {
            prefix.push(b'/');
        }
        prefix.extend_from_slice(part);
        steps.push(PathStep { prefix: CString::new(prefix.clone()).ok()?, last: CString::new(part).ok()? });
    }
    Some(steps)
}

/// The files that are tried for the command `name` with the directories `path` (colon-separated).
#[must_use]
pub fn candidates(name: &CStr, path: &str) -> Vec<CString> {
    let bytes = name.to_bytes();
    if bytes.contains(&b'/') {
        return vec![name.to_owned()];
    }
    let joined = path.split(':').filter(|directory| !directory.is_empty()).map(|directory| {
        let mut file = directory.as_bytes().to_vec();
        file.push(b'/');
        file.extend_from_slice(bytes);
        file
    });
    joined.filter_map(|file| CString::new(file).ok()).collect()
}

/// Whether a command is an init, by its name: those run on the console but must not own it as controlling terminal,
/// or no getty could ever take it (mingetty's TIOCSCTTY would need a capability of the host).
#[must_use]
pub fn is_init(command: &CStr) -> bool {
    let name = command.to_bytes().rsplit(|b| *b == b'/').next().unwrap_or_default();
    [&b"init"[..], b"systemd", b"upstart"].contains(&name)
}

/// How the entry `name` of the host's `/` is shown. `mounted`: something is mounted below it, which an overlay would
/// not show (and the kernel refuses one over a tree with locked mounts). `None`: not at all, `spawn` puts a
/// file system of its own there.
#[must_use]
pub fn host_entry(name: &[u8], kind: HostKind, mode: u32, mounted: bool, read_only: bool) -> Option<HostEntry> {
    if [&b"proc"[..], b"sys", b"dev", b"run"].contains(&name) || name.is_empty() {
        return None;
    }
    let text = |parts: &[&[u8]]| CString::new(parts.concat()).ok();
    let shown = match kind {
        HostKind::Link(content) => Shown::Link(CString::new(content).ok()?),
        HostKind::File => Shown::Bind { directory: false },
        // The container's root is "other" to every file of the host.
        HostKind::Directory if mode & 0o5 != 0o5 => Shown::Empty,
        HostKind::Directory if mounted || read_only || name.iter().any(|b| b",:\\".contains(b)) => {
            Shown::Bind { directory: true }
        }
        HostKind::Directory => {
            let options = [b"lowerdir=/", name, b",upperdir=upper/", name, b",workdir=work/", name].concat();
            Shown::Overlay(Box::new(Overlay {
                upper: text(&[b"upper/", name])?,
                work: text(&[b"work/", name])?,
                target: text(&[b"root/", name])?,
                options: text(&[&options, b",userxattr"])?,
                plain_options: text(&[&options])?,
            }))
        }
    };
    Some(HostEntry { name: text(&[name])?, path: text(&[b"/", name])?, mode: mode & 0o1777, shown })
}

/// See [`host_entry`].
pub enum HostKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link with this content.
    Link(Vec<u8>),
}

/// The names of the entries of `/` below which something is mounted, from the text of /proc/self/mountinfo
/// (its fifth field, in which blank, tab, newline and backslash are octal escapes).
#[must_use]
pub fn mounted_below(mountinfo: &[u8]) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = mountinfo
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .filter_map(|path| {
            let mut parts = path.strip_prefix(b"/")?.split(|b| *b == b'/');
            parts.next().filter(|_| parts.next().is_some())
        })
        .filter(|name| !name.is_empty())
        .map(unescape)
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| core::str::from_utf8(digits).ok());
        if let Some(byte) = code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            out.push(byte);
            rest = tail.get(3..).unwrap_or_default();
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

/// Pointers to `strings` with NULL at the end, as execve(2) wants them.
#[must_use]
pub fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|text| text.as_ptr()).chain(core::iter::once(core::ptr::null())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(path: &str) -> Option<Vec<String>> {
        let steps = path_steps(Path::new(path))?;
        Some(steps.iter().map(|s| format!("{}>{}", s.prefix.to_string_lossy(), s.last.to_string_lossy())).collect())
    }

    #[test]
    fn a_target_is_cut_into_its_prefixes() {
        assert_eq!(prefixes("//a/./b/"), Some(vec!["a>a".to_owned(), "a/b>b".to_owned()]));
        assert_eq!(prefixes("/"), Some(vec![]));
        assert_eq!(prefixes("/a/../b"), None);
        assert_eq!(prefixes("/a..b"), Some(vec!["a..b>a..b".to_owned()]));
    }

    #[test]
    fn a_command_is_looked_for_in_every_directory_of_the_path() {
        let list = candidates(c"ls", "/bin::/usr/bin");
        assert_eq!(list, vec![c"/bin/ls".to_owned(), c"/usr/bin/ls".to_owned()]);
        assert_eq!(candidates(c"./ls", "/bin"), vec![c"./ls".to_owned()]);
    }

    #[test]
    fn an_init_is_known_by_its_name() {
        assert!(is_init(c"/sbin/init") && is_init(c"/usr/lib/systemd/systemd") && is_init(c"init"));
        assert!(!is_init(c"/bin/sh") && !is_init(c"/sbin/init-d") && !is_init(c"/init/sh"));
    }

    #[test]
    fn a_directory_of_the_host_that_others_may_not_read_is_shown_empty() {
        let shown = |mode, mounted, read_only| host_entry(b"x", HostKind::Directory, mode, mounted, read_only).unwrap();
        assert_eq!(shown(0o700, false, false).shown, Shown::Empty);
        assert_eq!(shown(0o755, true, false).shown, Shown::Bind { directory: true });
        assert_eq!(shown(0o755, false, true).shown, Shown::Bind { directory: true });
        let Shown::Overlay(overlay) = shown(0o41777, false, false).shown else { panic!("no overlay") };
        assert_eq!(overlay.options.to_bytes(), b"lowerdir=/x,upperdir=upper/x,workdir=work/x,userxattr");
        assert_eq!(host_entry(b"proc", HostKind::Directory, 0o555, true, false), None);
        let colon = host_entry(b"a:b", HostKind::Directory, 0o755, false, false).unwrap();
        assert_eq!(colon.shown, Shown::Bind { directory: true });
    }

    #[test]
    fn mount_points_are_found_in_mountinfo() {
        let text = b"27 1 254:0 / / rw - ext4 /dev/vda rw\n28 27 0:25 / /mnt/a rw - tmpfs t rw\n\
                     29 27 0:26 / /a\\040b/c rw - tmpfs t rw\n30 27 0:26 / /mnt/b rw - tmpfs t rw\n31 27 0:27 / /tmp rw - tmpfs t rw\n";
        assert_eq!(mounted_below(text), vec![b"a b".to_vec(), b"mnt".to_vec()]);
    }
}
