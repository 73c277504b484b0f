//! `rootfs ls`, `rootfs rm` and `rootfs prune`.

#![forbid(unsafe_code)]

use super::container::{Container, User};
use super::error::{Error, Result, TRY_AGAIN, at, io_at};
use super::guest::{self, Guest};
use super::import::{is_left_over, remove_partial};
use super::map::Map;
use super::namespace::Ids;
use super::root::Root;
use super::sys;
use helper::range::IdKind;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::Uid;
use serde::Serialize;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A container in the list.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub directory: PathBuf,
    /// The map, in the form `0:100000:65536`; empty when there is none.
    pub map: String,
    /// Whether the root directory belongs to the map's root.
    pub owned: bool,
    /// Whether `rootfs adapt` has been at work.
    pub adapted: bool,
    /// What is in it, as far as the caller may look.
    pub guest: Option<Guest>,
}

/// The user's containers, by name; then LXC's in the user's directory.
///
/// # Errors
/// The directory cannot be read. One that is not there is an empty one.
pub fn list(user: &User) -> Result<Vec<Listed>> {
    let mut all = Vec::new();
    for place in std::iter::once(&user.containers).chain(user.lxc.first()) {
        let entries = match std::fs::read_dir(place) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(io_at("read", place.display()))?,
        };
        let mut here: Vec<Container> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| !path.file_name().is_some_and(|name| name.as_bytes().starts_with(b".")))
            .filter_map(|path| Container::at(&path).filter(|found| !found.bare))
            .collect();
        here.sort_by(|a, b| a.name.cmp(&b.name));
        all.extend(here.iter().map(|container| listed(user, container)));
    }
    Ok(all)
}

fn listed(user: &User, container: &Container) -> Listed {
    let map = container.map(user).ok();
    let owner = std::fs::symlink_metadata(&container.rootfs).ok().map(|found| (found.uid(), found.gid()));
    let owned = matches!((&map, owner), (Some(map), Some((uid, gid)))
        if map.to_container(IdKind::Uid, uid) == Some(0) && map.to_container(IdKind::Gid, gid) == Some(0));
    let root = File::open(&container.rootfs).ok().and_then(|file| Root::new(OwnedFd::from(file)).ok());
    Listed {
        name: container.name.clone(),
        directory: container.directory.clone(),
        map: map.as_ref().map(Map::to_string).unwrap_or_default(),
        owned,
        adapted: container.record("adapted").exists(),
        guest: root.as_ref().map(guest::look),
    }
}

fn parent_of(path: &Path) -> Result<(OwnedFd, CString)> {
    let above = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
    let name = CString::new(name).map_err(|_| Error::data("a name with a NUL byte"))?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok((nix::fcntl::open(above, flags, Mode::empty()).map_err(at("open", above.display()))?, name))
}

/// Every id that the tree may have: those of the container's map, the user's subordinate ids, and his own.
fn ids_for(user: &User, map: Option<&Map>) -> Result<Ids> {
    let own = Map::single(user.owner.uid(), user.gid);
    let whole = Map::whole(&user.owner);
    let base = map.cloned().or_else(|| whole.as_ref().ok().cloned()).unwrap_or_else(|| own.clone());
    let mut ids = Ids::of(&base)?;
    if let Ok(whole) = whole {
        ids.add(&whole);
    }
    if user.owner.uid() != Uid::current().as_raw() {
        ids.add(&own);
    }
    Ok(ids)
}

/// Removes a container: first its name, so that it is gone at once, then its files.
///
/// # Errors
/// It is running (75), or something in it belongs to other ids.
pub fn remove(user: &User, container: &Container) -> Result<()> {
    let path = &container.directory;
    if container.bare {
        let text = format!(
            "{} is a bare rootfs, not a container: remove the directory that holds it by hand, or name a container",
            path.display()
        );
        return Err(Error::new(super::error::USAGE, text));
    }
    if let Some(pid) = user_of(&container.rootfs) {
        let text = format!("{} is in use by process {pid}: spawn stop {} first", container.name, container.name);
        return Err(Error::new(TRY_AGAIN, text));
    }
    let (parent, name) = parent_of(path)?;
    let ids = ids_for(user, container.map(user).ok().as_ref())?;
    let mut serial = 0_u32;
    let aside = loop {
        let suffix = if serial == 0 { String::new() } else { format!(".{serial}") };
        let aside = CString::new([b".", name.to_bytes(), suffix.as_bytes(), b".removing"].concat()).unwrap_or_default();
        match sys::rename((&parent, &name), (&parent, &aside), libc::RENAME_NOREPLACE) {
            Ok(true) => break aside,
            Err(Errno::EEXIST) if serial < 1000 => serial = serial.saturating_add(1),
            Ok(false) => {
                nix::fcntl::renameat(&parent, name.as_c_str(), &parent, aside.as_c_str())
                    .map_err(at("rename", path.display()))?;
                break aside;
            }
            Err(errno) => return Err(Error::system("rename", path.display(), errno)),
        }
    };
    remove_partial(&parent, &aside, &ids)
}

/// A process whose root directory is this tree, as far as the caller may see.
fn user_of(rootfs: &Path) -> Option<u32> {
    let wanted = std::fs::metadata(rootfs).ok().map(|found| (found.dev(), found.ino()))?;
    std::fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok()).find(
        |pid| std::fs::metadata(format!("/proc/{pid}/root/")).is_ok_and(|found| (found.dev(), found.ino()) == wanted),
    )
}

/// Removes what imports that were killed, and removals, have left. Gives the names.
///
/// # Errors
/// Something cannot be removed.
pub fn prune(user: &User) -> Result<Vec<String>> {
    let mut gone = Vec::new();
    let entries = match std::fs::read_dir(&user.containers) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(gone),
        other => other.map_err(io_at("read", user.containers.display()))?,
    };
    let ids = ids_for(user, None)?;
    for entry in entries.filter_map(core::result::Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !is_left_over(&name) || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let Ok(directory) = File::open(entry.path()) else { continue };
        // One that is locked is being made right now.
        let Ok(_lock) = Flock::lock(directory, FlockArg::LockExclusiveNonblock) else { continue };
        let (parent, c) = parent_of(&entry.path())?;
        remove_partial(&parent, &c, &ids)?;
        gone.push(name);
    }
    gone.sort();
    Ok(gone)
}
