//! Where a rootfs is, and whether it can be started.

#![forbid(unsafe_code)]

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::ambient;
use crate::child::Map;
use crate::cli::is_name;
use crate::explain::unreachable;
use crate::failure::{Failure, Outcome};
use crate::plan::{HostEntry, HostKind, host_entry, mounted_below};

/// Where the root of a container comes from.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// A rootfs.
    Directory(PathBuf),
    /// The host's own tree.
    Host,
}

impl Place {
    /// A name made of the path: its last component, or the one before when that is `rootfs`.
    #[must_use]
    pub fn name(&self) -> String {
        let Self::Directory(path) = self else { return "host".to_owned() };
        let whole = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let mut parts = whole.iter().rev().map(|part| part.to_string_lossy().into_owned());
        let last = parts.next().unwrap_or_default();
        let chosen = if last == "rootfs" { parts.next().unwrap_or(last) } else { last };
        let plain: String =
            chosen.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).take(60).collect();
        let plain = plain.trim_start_matches(['.', '-']).to_owned();
        if is_name(&plain) { plain } else { "container".to_owned() }
    }
}

/// A host name made of a container's name.
#[must_use]
pub fn hostname_of(name: &str) -> String {
    name.replace('_', "-")
}

/// A container as it was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// Its rootfs, unless its configuration names another.
    pub place: Place,
    /// Its configuration.
    pub config: Option<PathBuf>,
    /// Its name.
    pub name: String,
}

/// Finds CONTAINER: `host`, a path if it holds a slash, else a name: in `lxcpath` if that is given, or below the user's
/// data directory, or in LXC's own directories.
///
/// # Errors
/// When it is not there.
pub fn find(word: &Path, lxcpath: Option<&Path>) -> Outcome<Found> {
    if word.as_os_str().is_empty() {
        return Err(Failure::own("the container is an empty word: give a path, a name or `host`"));
    }
    let shown = word.display();
    if word.as_os_str().as_bytes().contains(&b'/') {
        if lxcpath.is_some() {
            return Err(Failure::own(format!("{shown} is a path; --lxcpath is for the name of a container")));
        }
        return Ok(at(word));
    }
    if lxcpath.is_none() && word == Path::new("host") {
        return Ok(Found { name: Place::Host.name(), place: Place::Host, config: None });
    }
    if !is_name(&word.to_string_lossy()) {
        return Err(Failure::own(format!("{shown} is no name of a container; a path has a slash in it")));
    }
    let places: Vec<PathBuf> = match lxcpath {
        Some(directory) => vec![directory.to_owned()],
        None => {
            let data = ambient::directory("XDG_DATA_HOME");
            let data = data.or_else(|| Some(ambient::directory("HOME")?.join(".local/share")));
            let own = data.iter().flat_map(|data| [data.join("spawn"), data.join("lxc")]);
            own.chain([PathBuf::from("/var/lib/lxc")]).collect()
        }
    };
    for place in &places {
        let directory = place.join(word);
        if is_container(&directory) {
            return Ok(Found { name: word.to_string_lossy().into_owned(), ..at(&directory) });
        }
    }
    let first = places.first().map(|place| place.join(word).join("rootfs")).unwrap_or_default();
    Err(Failure::own(format!(
        "there is no container {shown}: {} is no directory; `rootfs import IMAGE {shown}` makes one, `spawn ls` lists those that are there; for a rootfs in the working directory say ./{shown}",
        first.display()
    )))
}

/// Whether a directory is one of a container, as LXC makes them.
#[must_use]
pub fn is_container(directory: &Path) -> bool {
    directory.join("config").is_file() || directory.join("rootfs").is_dir()
}

/// The container directory or the bare rootfs at a path.
fn at(path: &Path) -> Found {
    let config = path.join("config");
    let config = config.is_file().then_some(config);
    let inner = path.join("rootfs");
    if config.is_none() && !inner.is_dir() {
        let place = Place::Directory(path.to_owned());
        return Found { name: place.name(), place, config };
    }
    Found { name: Place::Directory(path.to_owned()).name(), place: Place::Directory(inner), config }
}

/// Where named containers are: `$XDG_DATA_HOME/spawn`.
#[must_use]
pub fn data_directory() -> Option<PathBuf> {
    let data = ambient::directory("XDG_DATA_HOME");
    Some(data.or_else(|| Some(ambient::directory("HOME")?.join(".local/share")))?.join("spawn"))
}

/// Looks at a rootfs before anything is started: whether it is one, whose it is, and whether this kernel can run it.
///
/// # Errors
/// With the path, the id, the map and the cure.
pub fn check(path: &Path, map: &Map, read_only: bool) -> Outcome<()> {
    let data = std::fs::metadata(path).map_err(|error| {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
        let cause = unreachable(&path.to_string_lossy(), errno);
        Failure::own(format!("cannot open the rootfs {}: {cause}", path.display()))
    })?;
    if !data.is_dir() {
        return Err(Failure::own(format!("the rootfs {} is not a directory", path.display())));
    }
    if !read_only {
        check_owner(path, data.uid(), map)?;
    }
    check_vsyscall(path)
}

/// Root inside must own the tree. The tree of somebody else seems to start and then fails in a hundred places.
fn check_owner(path: &Path, owner: u32, map: &Map) -> Outcome<()> {
    let Some(root) = map.root_uid() else { return Ok(()) };
    if owner != root {
        let shown = path.display();
        let caller = nix::unistd::geteuid().as_raw();
        let cure = match map {
            Map::Own { .. } => {
                "leave `--map self` out if the owner is one of your subordinate ids, or unpack the tree as yourself"
                    .to_owned()
            }
            _ if map.maps_uid(owner) => {
                format!("its root directory must belong to root inside: `rootfs shift {shown}`")
            }
            _ if owner == caller => format!(
                "it is your own, so `--map self` starts it with you as its root; or `rootfs shift {shown}` shifts it to your subordinate ids"
            ),
            _ => format!(
                "as root, `rootfs shift --user {} {shown}` shifts it to the map; or import the image again as yourself (rootfs import); or use it as it is with --read-only",
                caller_name()
            ),
        };
        return Err(Failure::own(format!(
            "the rootfs {shown} belongs to uid {owner}, and root inside is uid {root} of the host (map {map}): {cure}"
        )));
    }
    let etc = path.join("etc");
    match std::fs::symlink_metadata(&etc) {
        Ok(data) if !map.maps_uid(data.uid()) => Err(Failure::own(format!(
            "{} belongs to uid {}, which the map {map} does not hold: the tree was shifted in part only: as root, `rootfs shift --user {} {}` goes on with it",
            etc.display(),
            data.uid(),
            caller_name(),
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// The caller's name, or the uid without one, as /etc/subuid has it.
fn caller_name() -> String {
    let uid = nix::unistd::getuid().as_raw();
    helper::allotment::Owner::of_uid(uid).map_or_else(|_| uid.to_string(), |owner| owner.shown())
}

/// glibc before 2.15 jumps into the vsyscall page without asking whether there is one.
fn check_vsyscall(path: &Path) -> Outcome<()> {
    // A link before glibc 2.34, and its content holds the version.
    let Ok(target) = std::fs::read_link(path.join("lib64/libc.so.6")) else { return Ok(()) };
    if !needs_vsyscall(&target.to_string_lossy()) {
        return Ok(());
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    if maps.is_empty() || maps.contains("[vsyscall]") {
        return Ok(());
    }
    Err(Failure::own(format!(
        "{} holds {}, which needs the kernel's vsyscall page, and this kernel has none: boot the host with `vsyscall=xonly` (or emulate); every program of this rootfs would die of SIGSEGV",
        path.display(),
        target.display()
    )))
}

/// `libc-2.12.so`: a glibc older than 2.15 (it took the vDSO's time() and getcpu() from then on).
fn needs_vsyscall(name: &str) -> bool {
    let version = name.rsplit('/').next().and_then(|file| file.strip_prefix("libc-2.")?.strip_suffix(".so"));
    let minor = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    minor.is_some_and(|minor| minor < 15)
}

/// The entries of the host's `/`, for [`crate::plan::Root::Host`].
///
/// # Errors
/// When `/` cannot be read.
pub fn host_entries(read_only: bool) -> Outcome<Vec<HostEntry>> {
    let fail = |error: std::io::Error| Failure::own(format!("cannot read the host's /: {error}"));
    let mounted = mounted_below(&std::fs::read("/proc/self/mountinfo").map_err(fail)?);
    let mut list = Vec::new();
    for entry in std::fs::read_dir("/").map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        let Ok(data) = entry.metadata() else { continue };
        let kind = if data.is_dir() {
            HostKind::Directory
        } else if data.is_symlink() {
            let Ok(content) = std::fs::read_link(entry.path()) else { continue };
            HostKind::Link(content.into_os_string().as_bytes().to_vec())
        } else if data.is_file() {
            HostKind::File
        } else {
            continue;
        };
        let covered = mounted.iter().any(|top| *top == name.as_bytes());
        list.extend(host_entry(name.as_bytes(), kind, data.permissions().mode(), covered, read_only));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use helper::range::Extent;

    #[test]
    fn a_name_is_made_of_the_path() {
        let name = |path: &str| Place::Directory(PathBuf::from(path)).name();
        assert_eq!(name("/srv/c7/rootfs"), "c7");
        assert_eq!(name("/srv/c7/"), "c7");
        assert_eq!(name("/srv/.hidden dir"), "hiddendir");
        assert_eq!(name("/"), "container");
        assert_eq!(Place::Host.name(), "host");
    }

    #[test]
    fn a_word_without_a_slash_is_no_path() {
        let find = |word: &str| super::find(Path::new(word), None);
        assert_eq!(find("host").unwrap().place, Place::Host);
        assert_eq!(find("./host").unwrap().place, Place::Directory("./host".into()));
        assert!(find("no-such-container").unwrap_err().text.contains("./no-such-container"));
        assert!(find("").is_err() && find("..").is_err());
    }

    #[test]
    fn a_container_directory_has_a_configuration_and_a_rootfs() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("c1");
        std::fs::create_dir_all(path.join("rootfs")).unwrap();
        let rootfs = Place::Directory(path.join("rootfs"));
        assert_eq!(at(&path), Found { place: rootfs, config: None, name: "c1".to_owned() });
        std::fs::write(path.join("config"), "").unwrap();
        assert_eq!(at(&path).config, Some(path.join("config")));
        let found = find(Path::new("c1"), Some(top.path())).unwrap();
        assert_eq!((found.name.as_str(), found.config), ("c1", Some(path.join("config"))));
        assert!(find(Path::new("c2"), Some(top.path())).unwrap_err().text.contains("c2/rootfs is no directory"));
        assert!(find(Path::new("./c1"), Some(top.path())).is_err());
        assert!(find(Path::new("host"), Some(top.path())).is_err(), "-P never means the host's own tree");
        let bare = path.join("rootfs");
        assert_eq!(at(&bare), Found { place: Place::Directory(bare), config: None, name: "c1".to_owned() });
    }

    #[test]
    fn old_glibc_is_known_by_its_link() {
        assert!(needs_vsyscall("libc-2.12.so") && needs_vsyscall("/lib64/libc-2.14.1.so"));
        assert!(!needs_vsyscall("libc-2.15.so") && !needs_vsyscall("libc-2.17.so") && !needs_vsyscall("x"));
    }

    #[test]
    fn a_foreign_tree_is_refused_with_owner_map_and_cure() {
        let map = Map::Whole { uids: vec![Extent { inside: 0, outside: 100_000, count: 65536 }], gids: vec![] };
        let failure = check_owner(Path::new("/x"), 4242, &map).unwrap_err();
        for part in ["/x", "4242", "100000", "0:100000:65536", "rootfs shift --user "] {
            assert!(failure.text.contains(part), "{failure}");
        }
        assert!(check_owner(Path::new("/nonexistent"), 100_000, &map).is_ok());
        let own = Map::Own { uid: 7, gid: 7 };
        assert!(check_owner(Path::new("/nonexistent"), 7, &own).is_ok());
        assert!(check_owner(Path::new("/x"), 8, &own).unwrap_err().text.contains("--map self"));
    }
}
