//! `prune PATH`: what LXC leaves behind (`lxc.monitor`, `lxc.payload`, `lxc.pivot`, and `lxc` of older versions), removed
//! with the caller's own rights and nothing more: a path that a user names is never opened by root for him.

#![forbid(unsafe_code)]

use crate::apply::{MAX_VISITS, Removal, living, remove_tree};
use crate::directory::Directory;
use helper::report::Failure;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

/// Names that hold one directory for each container.
const COLLECTIONS: [&str; 3] = ["lxc", "lxc.monitor", "lxc.payload"];

/// Beginnings of names that are a container's own.
const SINGLE: [&str; 3] = ["lxc.monitor.", "lxc.payload.", "lxc.pivot"];

/// A directory that is empty twice, so long apart, is not one that a container which is starting will enter in a moment.
const GRACE: Duration = Duration::from_millis(250);

const USAGE: u8 = 64;
const SYSTEM: u8 = 71;
const TRY_AGAIN: u8 = 75;

/// A directory that may be stale: where it is, and the container that it belongs to.
struct Candidate {
    place: usize,
    parent: Directory,
    name: String,
    shown: String,
    identity: (u64, u64),
}

/// Removes what is stale directly below `paths`; what is alive in one of them is left in all. Gives the lines to print.
///
/// # Errors
/// 64: a path is no cgroup directory. 71, 75: something could not be removed; everything was tried.
pub fn prune(paths: &[OsString], dry_run: bool) -> Result<(Vec<String>, Result<(), Failure>), Failure> {
    let before = stale(paths)?;
    if before.is_empty() {
        return Ok((Vec::new(), Ok(())));
    }
    std::thread::sleep(GRACE);
    let known: BTreeSet<(u64, u64)> = before.iter().map(|candidate| candidate.identity).collect();
    let mut lines = Vec::new();
    let mut result = Ok(());
    for candidate in stale(paths)?.iter().filter(|candidate| known.contains(&candidate.identity)) {
        if dry_run {
            lines.push(candidate.shown.clone());
            continue;
        }
        let unified = is_unified(&candidate.parent);
        let failed = match remove_tree(&candidate.parent, &candidate.name, unified) {
            Ok(Removal::Gone) => {
                lines.push(candidate.shown.clone());
                continue;
            }
            Ok(Removal::Alive(_)) => continue,
            Ok(Removal::Dying | Removal::Unfinished) => {
                Failure::new(format!("{} is still busy: try again", candidate.shown)).status(TRY_AGAIN)
            }
            Err(error @ (Errno::EACCES | Errno::EPERM)) => Failure::new(format!(
                "remove {}: {}: it is another user's; its owner or root can",
                candidate.shown,
                error.desc()
            ))
            .status(77),
            Err(error) => Failure::new(format!("remove {}: {}", candidate.shown, error.desc())).status(SYSTEM),
        };
        result = result.and(Err(failed));
    }
    Ok((lines, result))
}

fn is_unified(directory: &Directory) -> bool {
    directory.read("cgroup.controllers", 1).is_ok() || directory.read("cgroup.type", 1).is_ok()
}

/// Every candidate in which nothing lives, in any of the places; the deepest first.
fn stale(paths: &[OsString]) -> Result<Vec<Candidate>, Failure> {
    // By what would be one container's: monitor and payload of the same name.
    let mut sets: BTreeMap<String, Vec<Candidate>> = BTreeMap::new();
    let mut alive: BTreeSet<String> = BTreeSet::new();
    for (place, path) in paths.iter().enumerate() {
        let directory = open_cgroup(Path::new(path))?;
        let shown = Path::new(path).display().to_string();
        let failed = |error: Errno| Failure::new(format!("read {shown}: {}", error.desc())).status(SYSTEM);
        for name in directory.children().map_err(failed)? {
            if COLLECTIONS.contains(&name.as_str()) {
                let Ok(collection) = directory.open(&name) else { continue };
                let children = collection.children().map_err(failed)?;
                for child in &children {
                    let shown = format!("{shown}/{name}/{child}");
                    look(place, &collection, child, child.clone(), shown, &mut sets, &mut alive).map_err(failed)?;
                }
                // The collection itself, after its children; a set of its own for each name.
                look(place, &directory, &name, format!("/{name}"), format!("{shown}/{name}"), &mut sets, &mut alive)
                    .map_err(failed)?;
            } else if let Some(prefix) = SINGLE.iter().find(|prefix| name.starts_with(**prefix)) {
                let container = name.strip_prefix(prefix).filter(|rest| !rest.is_empty()).unwrap_or(&name).to_owned();
                look(place, &directory, &name, container, format!("{shown}/{name}"), &mut sets, &mut alive)
                    .map_err(failed)?;
            }
        }
    }
    let mut found: Vec<Candidate> =
        sets.into_iter().filter(|(container, _)| !alive.contains(container)).flat_map(|(_, set)| set).collect();
    found.sort_by_key(|c| (c.place, core::cmp::Reverse(c.shown.matches('/').count()), c.shown.clone()));
    Ok(found)
}

fn look(
    place: usize,
    parent: &Directory,
    name: &str,
    container: String,
    shown: String,
    sets: &mut BTreeMap<String, Vec<Candidate>>,
    alive: &mut BTreeSet<String>,
) -> Result<(), Errno> {
    let directory = match parent.open(name) {
        Err(Errno::ENOENT) => return Ok(()),
        other => other?,
    };
    if !living(&directory, is_unified(&directory), &mut { MAX_VISITS })?.is_empty() {
        alive.insert(container);
        return Ok(());
    }
    let identity = directory.identity()?;
    let parent = parent.again()?;
    sets.entry(container).or_default().push(Candidate { place, parent, name: name.to_owned(), shown, identity });
    Ok(())
}

fn open_cgroup(path: &Path) -> Result<Directory, Failure> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let opened = open(path, flags, Mode::empty())
        .map_err(|e| Failure::new(format!("open {}: {}", path.display(), e.desc())).status(USAGE))?;
    let unified = Directory::version(&opened).ok_or_else(|| {
        Failure::new(format!(
            "{} is no cgroup directory: name one, as /sys/fs/cgroup or /sys/fs/cgroup/cpuset",
            path.display()
        ))
        .status(USAGE)
    })?;
    Directory::new(opened, unified)
        .map_err(|e| Failure::new(format!("{}: {}", path.display(), e.desc())).status(SYSTEM))
}
