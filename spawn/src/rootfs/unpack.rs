//! Puts the members of archives into a directory, with the owners they have inside, and nowhere else.
//!
//! Whoever wrote the archive is taken for an enemy: every path is resolved inside the root (see [`super::root`]), the
//! last component is never followed, and each name that is written is first made free. Order for a file: create,
//! content, owner, mode, capability, times; chown(2) clears set-user-ID bits and capabilities.

#![forbid(unsafe_code)]

use super::archive::{Archive, Kind, Member};
use super::error::{Error, Result, at, shown};
use super::map::Map;
use super::root::{Identity, Root, c_name, kind};
use super::{sys, walk};
use helper::range::IdKind;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, fstatat, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchown, fchownat, linkat, mkfifoat, symlinkat, unlinkat};
use serde::{Deserialize, Serialize};
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::hash::BuildHasher;
use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

/// Unit of the holes that zeros become, in bytes: what file systems have as a block.
const HOLE: usize = 4096;

/// Directories that are remembered as open.
const REMEMBERED: usize = 200;

/// Hard links that may wait for a target that comes later.
const MOST_WAITING: usize = 1 << 17;

/// What has been done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Members that became something, of any kind.
    pub files: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// Device nodes left out: no user namespace may make them, and the spawner supplies /dev.
    pub devices: u64,
    /// Members left out because they are no files.
    pub others: u64,
    /// Extended attributes left out.
    pub attributes: u64,
    /// Whiteouts obeyed.
    pub whiteouts: u64,
}

/// How an archive is read.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only what stands below this directory of the archive is taken, and without it: `rootfs` in LXD's archives.
    pub below: Option<Vec<u8>>,
    /// POSIX ACLs are kept (attribute `system.posix_acl_*`).
    pub acls: bool,
    /// Refuse more bytes of content than this.
    pub most_bytes: Option<u64>,
}

/// What an archive is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// A whole tree: `.wh.` names are ordinary names.
    Flat,
    /// The lowest layer of an image.
    First,
    /// A layer above others.
    Upper,
}

struct Directory {
    fd: OwnedFd,
    inode: u64,
}

struct DirectoryTime {
    path: Vec<u8>,
    inode: u64,
    mtime: (i64, u32),
}

/// Unpacks archives into one root.
pub struct Unpacker<'a> {
    root: Root,
    map: &'a Map,
    owner: (u32, u32),
    options: Options,
    summary: Summary,
    directories: HashMap<Vec<u8>, Rc<Directory>>,
    times: Vec<DirectoryTime>,
    /// A set-group-ID directory gives its group to what is made in it.
    group_inherited: bool,
    /// Names that the present layer has made, hashed with the inode of their directory.
    made: HashSet<u64>,
    hasher: RandomState,
    waiting: Vec<(Member, Vec<u8>)>,
    left_out: HashSet<Vec<u8>>,
}

impl<'a> Unpacker<'a> {
    /// Starts in `root`, whose ids `map` tells. The process must be the map's root, with every capability over its ids.
    ///
    /// # Errors
    /// The map has no root.
    pub fn new(root: Root, map: &'a Map, options: Options) -> Result<Self> {
        Ok(Self {
            root,
            map,
            owner: map.root()?,
            options,
            summary: Summary::default(),
            directories: HashMap::new(),
            times: Vec::new(),
            group_inherited: false,
            made: HashSet::new(),
            hasher: RandomState::new(),
            waiting: Vec::new(),
            left_out: HashSet::new(),
        })
    }

    /// What has been done so far.
    #[must_use]
    pub const fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Unpacks one archive. `tick` is called now and then.
    ///
    /// # Errors
    /// The archive is wrong or hostile (65), an id is outside the map (65), or a system call failed (71). The tree is
    /// then half made and should be removed.
    pub fn layer<R: BufRead>(
        &mut self,
        archive: &mut Archive<R>,
        layer: Layer,
        mut tick: impl FnMut(&Summary),
    ) -> Result<()> {
        self.made.clear();
        self.left_out.clear();
        while let Some(member) = archive.next()? {
            self.member(archive, member, layer)?;
            tick(&self.summary);
        }
        self.link_those_that_wait(layer)
    }

    /// Sets the times of directories, which every change in them has moved, and gives the summary.
    ///
    /// # Errors
    /// A system call failed.
    pub fn finish(mut self) -> Result<Summary> {
        for time in std::mem::take(&mut self.times) {
            let (tv, object) = (times(time.mtime), shown(&time.path));
            if time.path.is_empty() {
                let top = openat(self.root.fd(), c".", walk::READ_DIRECTORY, Mode::empty());
                futimens(top.map_err(at("open", "the root"))?, &OMIT, &tv)
                    .map_err(at("set the times of", "the root"))?;
                continue;
            }
            // A later member may have replaced it by something else, which has its own times.
            let Ok((directory, name)) = self.root.parent(&time.path) else { continue };
            let Ok(stat) = fstatat(&directory, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
            if stat.st_ino == time.inode && kind(&stat) == SFlag::S_IFDIR {
                utimensat(&directory, name.as_c_str(), &OMIT, &tv, UtimensatFlags::NoFollowSymlink)
                    .map_err(at("set the times of", object))?;
            }
        }
        Ok(self.summary)
    }

    fn member<R: BufRead>(&mut self, archive: &mut Archive<R>, mut member: Member, layer: Layer) -> Result<()> {
        let Some(path) = self.path(&member.name)? else {
            self.summary.others = self.summary.others.saturating_add(1);
            return Ok(());
        };
        if let Kind::Hardlink(target) = &member.kind {
            let Some(target) = self.path(target)? else {
                return Err(refused(&member, "is a hard link to something that is not unpacked"));
            };
            member.kind = Kind::Hardlink(target);
        }
        if path.is_empty() {
            return self.top(&member);
        }
        member.name = path;
        if layer != Layer::Flat && self.whiteout(&member, layer)? {
            return Ok(());
        }
        match member.kind {
            Kind::Label => {
                self.summary.others = self.summary.others.saturating_add(1);
                return Ok(());
            }
            Kind::Other(letter) => {
                let letter = char::from(letter).escape_default();
                return Err(refused(&member, &format!("has the type '{letter}', which no rootfs has")));
            }
            _ => {}
        }
        let (uid, gid) = (self.host(IdKind::Uid, member.uid, &member)?, self.host(IdKind::Gid, member.gid, &member)?);
        let (directory, name) = self.place(&member)?;
        let fd = &directory.fd;
        match &member.kind {
            Kind::File => self.file(archive, &member, fd, &name, (uid, gid))?,
            Kind::Directory => self.directory(&member, fd, &name, (uid, gid))?,
            Kind::Symlink(target) => {
                if target.is_empty() {
                    return Err(refused(&member, "is a symbolic link to nothing"));
                }
                let target = c_name(target).map_err(|_| refused(&member, "has a NUL byte in its target"))?;
                self.make_free(fd, &name, || symlinkat(target.as_c_str(), fd, name.as_c_str()))
                    .map_err(at("make the link", shown(&member.name)))?;
                self.finish_unopened(&member, fd, &name, (uid, gid))?;
            }
            Kind::Fifo => {
                let mode = Mode::from_bits_truncate(member.mode & 0o777);
                self.make_free(fd, &name, || mkfifoat(fd, name.as_c_str(), mode))
                    .map_err(at("make the FIFO", shown(&member.name)))?;
                self.finish_unopened(&member, fd, &name, (uid, gid))?;
            }
            Kind::Hardlink(target) => {
                let target = target.clone();
                if !self.hard_link(&member, &target, &directory, &name)? {
                    if self.waiting.len() >= MOST_WAITING {
                        return Err(refused(&member, "is one of too many hard links to what is not there yet"));
                    }
                    self.waiting.push((member, target));
                    return Ok(());
                }
            }
            Kind::Device => {
                // Whatever had the name is gone: the last member of a name decides.
                self.clear(fd, &name).map_err(at("remove", shown(&member.name)))?;
                self.summary.devices = self.summary.devices.saturating_add(1);
                self.left_out.insert(member.name);
                return Ok(());
            }
            Kind::Label | Kind::Other(_) => return Ok(()),
        }
        self.note(layer, &directory, &name);
        self.summary.files = self.summary.files.saturating_add(1);
        Ok(())
    }

    fn note(&mut self, layer: Layer, directory: &Directory, name: &CStr) {
        if layer == Layer::Upper {
            self.made.insert(self.hasher.hash_one((directory.inode, name.to_bytes())));
        }
    }

    /// The path of a member from the root on, without `.` and slashes too many; empty: the root itself. `None`: it is
    /// not below [`Options::below`].
    fn path(&self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut path: Vec<u8> = Vec::with_capacity(name.len());
        let mut below = self.options.below.as_deref();
        for part in name.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    return Err(Error::data(format!("member \"{}\": \"..\" in a name is refused", shown(name))));
                }
                // NAME_MAX (limits.h); the kernel would say so as well, but without the member.
                _ if part.len() > 255 => {
                    let text = format!(
                        "member \"{}\": a component of {} bytes, where the kernel takes 255",
                        shown(name),
                        part.len()
                    );
                    return Err(Error::data(text));
                }
                _ if below.is_some() => {
                    if below != Some(part) {
                        return Ok(None);
                    }
                    below = None;
                }
                _ => {
                    if !path.is_empty() {
                        path.push(b'/');
                    }
                    path.extend_from_slice(part);
                }
            }
        }
        if name.is_empty() {
            return Err(Error::data("a member without a name"));
        }
        Ok(if below.is_some() { None } else { Some(path) })
    }

    fn host(&self, id_kind: IdKind, id: u64, member: &Member) -> Result<u32> {
        let host = u32::try_from(id).ok().and_then(|id| self.map.to_host(id_kind, id));
        host.ok_or_else(|| {
            let word = id_kind.word();
            let why = if id == u64::from(u32::MAX) {
                format!("has {word} {id}, which means \"no id\"")
            } else {
                format!("belongs to {word} {id}, outside the map {}: more subordinate ids are needed", self.map)
            };
            refused(member, &why)
        })
    }

    /// The directory in which a member goes, made when it is missing, and its name there.
    fn place(&mut self, member: &Member) -> Result<(Rc<Directory>, CString)> {
        let path = member.name.as_slice();
        let slash = path.iter().rposition(|byte| *byte == b'/');
        let name = path.get(slash.map_or(0, |at| at.saturating_add(1))..).unwrap_or_default();
        let name = c_name(name).map_err(|_| refused(member, "has a NUL byte in its name"))?;
        let above = path.get(..slash.unwrap_or(0)).unwrap_or_default();
        if let Some(known) = self.directories.get(above) {
            return Ok((Rc::clone(known), name));
        }
        let fd = self.root.make_directory(above).map_err(|errno| match errno {
            Errno::ENOTDIR => refused(member, "is below something that is no directory"),
            Errno::ELOOP => refused(member, "is behind a loop of symbolic links"),
            errno => Error::system("make the directory of", shown(path), errno),
        })?;
        let inode = fstat(&fd).map_err(at("stat the directory of", shown(path)))?.st_ino;
        if self.directories.len() >= REMEMBERED {
            self.directories.clear();
        }
        let directory = Rc::new(Directory { fd, inode });
        self.directories.insert(above.to_vec(), Rc::clone(&directory));
        Ok((directory, name))
    }

    /// Removes what has the name, whatever it is.
    fn clear(&mut self, directory: &OwnedFd, name: &CStr) -> core::result::Result<(), Errno> {
        // A directory or a link may have been on the way to a remembered directory.
        self.directories.clear();
        match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(Errno::EISDIR | Errno::EPERM) => walk::remove(directory, name).map_err(|_| Errno::ENOTEMPTY),
            Err(errno) => Err(errno),
        }
    }

    /// Calls `make`; when the name is taken, makes it free and calls again.
    fn make_free<T>(
        &mut self,
        directory: &OwnedFd,
        name: &CStr,
        mut make: impl FnMut() -> core::result::Result<T, Errno>,
    ) -> core::result::Result<T, Errno> {
        match make() {
            Err(Errno::EEXIST) => {
                self.clear(directory, name)?;
                make()
            }
            other => other,
        }
    }

    fn file<R: BufRead>(
        &mut self,
        archive: &mut Archive<R>,
        member: &Member,
        directory: &OwnedFd,
        name: &CStr,
        owner: (u32, u32),
    ) -> Result<()> {
        let object = || shown(&member.name);
        let total = self.summary.bytes.saturating_add(member.size);
        if let Some(most) = self.options.most_bytes.filter(|most| total > *most) {
            return Err(refused(member, &format!("would make more than the {most} bytes allowed")));
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // The final mode at once; set-ID bits only after the owner.
        let mode = Mode::from_bits_truncate(member.mode & 0o777);
        let fd =
            self.make_free(directory, name, || openat(directory, name, flags, mode)).map_err(at("create", object()))?;
        let file = File::from(fd);
        match &member.sparse {
            None => write_dense(archive, &file, member)?,
            Some(map) => write_sparse(archive, &file, member, map)?,
        }
        self.summary.bytes = total;
        if owner != self.owner || self.group_inherited {
            let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
            fchown(&file, Some(uid), Some(gid)).map_err(at("chown", object()))?;
        }
        if member.mode & 0o7000 != 0 {
            fchmod(&file, Mode::from_bits_truncate(member.mode)).map_err(at("chmod", object()))?;
        }
        self.attributes(&file, member)?;
        let tv = times(member.mtime);
        futimens(&file, &OMIT, &tv).map_err(at("set the times of", object()))
    }

    fn directory(&mut self, member: &Member, directory: &OwnedFd, name: &CStr, owner: (u32, u32)) -> Result<()> {
        let object = || shown(&member.name);
        let mut fresh = true;
        if let Err(errno) = mkdirat(directory, name, Mode::S_IRWXU) {
            let failed = at("make the directory", object());
            if errno != Errno::EEXIST {
                return Err(failed(errno));
            }
            let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(at("stat", object()))?;
            if kind(&stat) == SFlag::S_IFDIR {
                fresh = false;
            } else {
                self.clear(directory, name).map_err(at("remove", object()))?;
                mkdirat(directory, name, Mode::S_IRWXU).map_err(failed)?;
            }
        }
        let fd = openat(directory, name, walk::READ_DIRECTORY, Mode::empty()).map_err(at("open", object()))?;
        self.finish_directory(member, &fd, fresh, owner)
    }

    /// The root directory itself, as `./`.
    fn top(&mut self, member: &Member) -> Result<()> {
        if member.kind != Kind::Directory {
            return Err(refused(member, "would take the place of the root directory"));
        }
        let owner = (self.host(IdKind::Uid, member.uid, member)?, self.host(IdKind::Gid, member.gid, member)?);
        let top = openat(self.root.fd(), c".", walk::READ_DIRECTORY, Mode::empty()).map_err(at("open", "the root"))?;
        let member = Member { name: Vec::new(), ..member.clone() };
        self.finish_directory(&member, &top, false, owner)?;
        self.summary.files = self.summary.files.saturating_add(1);
        Ok(())
    }

    fn finish_directory(&mut self, member: &Member, fd: &OwnedFd, fresh: bool, owner: (u32, u32)) -> Result<()> {
        let object = || shown(&member.name);
        // Its mode can be final at once: the container's root may write into any directory.
        if !fresh || owner != self.owner || self.group_inherited {
            let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
            fchown(fd, Some(uid), Some(gid)).map_err(at("chown", object()))?;
        }
        self.group_inherited |= member.mode & 0o2000 != 0;
        fchmod(fd, Mode::from_bits_truncate(member.mode)).map_err(at("chmod", object()))?;
        if !fresh {
            for name in sys::list_xattrs(fd).unwrap_or_default() {
                if let Ok(name) = c_name(&name)
                    && name.to_bytes().starts_with(b"user.")
                {
                    let _ = sys::remove_xattr(fd, &name);
                }
            }
        }
        self.attributes(fd, member)?;
        let inode = fstat(fd).map_err(at("stat", object()))?.st_ino;
        self.times.push(DirectoryTime { path: member.name.clone(), inode, mtime: member.mtime });
        Ok(())
    }

    /// Owner and times of what must not be opened.
    fn finish_unopened(&self, member: &Member, directory: &OwnedFd, name: &CStr, owner: (u32, u32)) -> Result<()> {
        if owner != self.owner || self.group_inherited {
            let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
            fchownat(directory, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(at("chown", shown(&member.name)))?;
        }
        let tv = times(member.mtime);
        utimensat(directory, name, &OMIT, &tv, UtimensatFlags::NoFollowSymlink)
            .map_err(at("set the times of", shown(&member.name)))
    }

    fn attributes(&mut self, file: impl AsFd, member: &Member) -> Result<()> {
        for (name, value) in &member.xattrs {
            let value =
                match name.as_slice() {
                    b"security.capability" => Some(
                        capability_for(value, self.owner.0)
                            .ok_or_else(|| refused(member, "has a security.capability attribute that is none"))?,
                    ),
                    b"system.posix_acl_access" | b"system.posix_acl_default" if self.options.acls => {
                        let ids = |id_kind, id| self.map.to_host(id_kind, id);
                        Some(acl_with(value, ids).ok_or_else(|| {
                            refused(member, "has an ACL that is damaged or has an id outside the map")
                        })?)
                    }
                    other if other.starts_with(b"user.") => Some(value.clone()),
                    _ => None,
                };
            let Some(value) = value else {
                self.summary.attributes = self.summary.attributes.saturating_add(1);
                continue;
            };
            let c = c_name(name).map_err(|_| refused(member, "has an attribute with a NUL byte in its name"))?;
            sys::set_xattr(&file, &c, &value).map_err(|errno| {
                let hint = match errno {
                    Errno::EOPNOTSUPP => ": the file system keeps no such attributes",
                    Errno::EINVAL | Errno::EPERM if name.starts_with(b"security.") => {
                        ": Linux 4.14 is needed for file capabilities in a user namespace"
                    }
                    _ => "",
                };
                let object = format!("{} of {}", shown(name), shown(&member.name));
                let error = Error::system("set the attribute", object, errno);
                Error { text: error.text + hint, ..error }
            })?;
        }
        Ok(())
    }

    /// Makes a hard link; `false`: its target is not there (yet).
    fn hard_link(&mut self, member: &Member, target: &[u8], directory: &Rc<Directory>, name: &CStr) -> Result<bool> {
        if self.left_out.contains(target) {
            self.left_out.insert(member.name.clone());
            self.summary.devices = self.summary.devices.saturating_add(1);
            return Ok(true);
        }
        let from = match self.root.parent(target) {
            Ok(from) => from,
            Err(Errno::ENOENT) => return Ok(false),
            Err(Errno::EINVAL) => return Err(refused(member, "is a hard link to the root directory")),
            Err(errno) => return Err(Error::system("look up the target of", shown(&member.name), errno)),
        };
        let failed = |errno| match errno {
            Errno::EPERM => refused(member, &format!("is a hard link to \"{}\", which is a directory", shown(target))),
            errno => Error::system("make the hard link", shown(&member.name), errno),
        };
        let stat = match fstatat(&from.0, from.1.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Ok(false),
            other => other.map_err(at("stat the target of", shown(&member.name)))?,
        };
        let link = || linkat(&from.0, from.1.as_c_str(), &directory.fd, name, LinkatFlags::empty());
        match link() {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => {
                let here = fstatat(&directory.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
                // A link to itself, or one that has been made already.
                if Identity::from(&here) == Identity::from(&stat) {
                    return Ok(true);
                }
                if is_above(&self.root, target, &here) {
                    return Err(refused(member, "would take the place of a directory that holds its own target"));
                }
                self.clear(&directory.fd, name).map_err(failed)?;
                link().map_err(failed)?;
                Ok(true)
            }
            Err(errno) => Err(failed(errno)),
        }
    }

    fn link_those_that_wait(&mut self, layer: Layer) -> Result<()> {
        loop {
            let waiting = std::mem::take(&mut self.waiting);
            let before = waiting.len();
            for (member, target) in waiting {
                let (directory, name) = self.place(&member)?;
                if self.hard_link(&member, &target, &directory, &name)? {
                    self.note(layer, &directory, &name);
                    self.summary.files = self.summary.files.saturating_add(1);
                } else {
                    self.waiting.push((member, target));
                }
            }
            match self.waiting.first() {
                None => return Ok(()),
                Some((member, target)) if self.waiting.len() == before => {
                    let why = format!("is a hard link to \"{}\", which is not in the archive", shown(target));
                    return Err(refused(member, &why));
                }
                Some(_) => {}
            }
        }
    }

    /// Obeys a whiteout; `false`: the member is none.
    fn whiteout(&mut self, member: &Member, layer: Layer) -> Result<bool> {
        let mut parts: Vec<&[u8]> = member.name.split(|byte| *byte == b'/').collect();
        let last = parts.pop().unwrap_or_default();
        if parts.iter().any(|part| part.starts_with(b".wh.")) {
            return Err(refused(member, "stands below a whiteout"));
        }
        let Some(hidden) = last.strip_prefix(b".wh.") else { return Ok(false) };
        let above = parts.join(&b'/');
        match hidden {
            b"" | b"." | b".." => return Err(refused(member, "is a whiteout of no name")),
            // Bookkeeping of aufs: .wh..wh.aufs, .wh..wh.orph, .wh..wh.plnk.
            _ if hidden.starts_with(b".wh.") && hidden != b".wh..opq" => return Ok(true),
            _ => {}
        }
        self.summary.whiteouts = self.summary.whiteouts.saturating_add(1);
        if layer == Layer::First {
            return Ok(true);
        }
        let directory = match self.root.directory(&above) {
            Ok(directory) => directory,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(true),
            Err(errno) => return Err(Error::system("look up", shown(&above), errno)),
        };
        // What goes may have been on the way to a remembered directory.
        self.directories.clear();
        if hidden == b".wh..opq" {
            self.remove_lower(&directory)?;
            return Ok(true);
        }
        let name = c_name(hidden).map_err(|_| refused(member, "has a NUL byte in its name"))?;
        let Ok(stat) = fstatat(&directory, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) else { return Ok(true) };
        let inode = fstat(&directory).map_err(at("stat", shown(&above)))?.st_ino;
        let ours = self.made.contains(&self.hasher.hash_one((inode, hidden)));
        let failed = at("remove", shown(&member.name));
        if kind(&stat) != SFlag::S_IFDIR {
            if !ours {
                unlinkat(&directory, name.as_c_str(), UnlinkatFlags::NoRemoveDir).map_err(failed)?;
            }
            return Ok(true);
        }
        if self.made.is_empty() {
            walk::remove(&directory, &name)?;
            return Ok(true);
        }
        let inner = openat(&directory, name.as_c_str(), walk::READ_DIRECTORY, Mode::empty()).map_err(failed)?;
        self.remove_lower(&inner)?;
        if !ours {
            remove_if_empty(&directory, &name)?;
        }
        Ok(true)
    }

    /// Removes what lower layers have put below a directory; what the present layer has made stays.
    fn remove_lower(&self, directory: &OwnedFd) -> Result<()> {
        let directory =
            openat(directory, c".", walk::READ_DIRECTORY, Mode::empty()).map_err(at("open", "a directory"))?;
        if self.made.is_empty() {
            return walk::empty(&directory);
        }
        walk::walk(&directory, |visit| {
            let is_directory = kind(&visit.stat) == SFlag::S_IFDIR;
            if visit.path.is_empty() || (is_directory && !visit.after) {
                return Ok(walk::Next::Enter);
            }
            let inode = fstat(visit.directory).map_err(at("stat the directory of", shown(visit.path)))?.st_ino;
            if !self.made.contains(&self.hasher.hash_one((inode, visit.name.to_bytes()))) {
                if is_directory {
                    remove_if_empty(visit.directory, visit.name)?;
                } else {
                    unlinkat(visit.directory, visit.name, UnlinkatFlags::NoRemoveDir)
                        .map_err(at("remove", shown(visit.path)))?;
                }
            }
            Ok(walk::Next::Enter)
        })
    }
}

fn remove_if_empty(directory: &OwnedFd, name: &CStr) -> Result<()> {
    match unlinkat(directory, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
        Err(errno) => Err(Error::system("remove", shown(name.to_bytes()), errno)),
    }
}

/// Whether the file `stat` is a directory on the way to `path`.
fn is_above(root: &Root, path: &[u8], stat: &FileStat) -> bool {
    let wanted = Identity::from(stat);
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').any(|(at, _)| {
        let above = path.get(..at).unwrap_or_default();
        root.directory(above).and_then(fstat).is_ok_and(|stat| Identity::from(&stat) == wanted)
    })
}

fn refused(member: &Member, why: &str) -> Error {
    Error::data(format!("member \"{}\" (byte {}) {why}", shown(&member.name), member.offset))
}

/// The access time stays what it is.
const OMIT: TimeSpec = TimeSpec::UTIME_OMIT;

fn times((seconds, nanoseconds): (i64, u32)) -> TimeSpec {
    TimeSpec::new(seconds, i64::from(nanoseconds))
}

fn write_dense<R: BufRead>(archive: &mut Archive<R>, file: &File, member: &Member) -> Result<()> {
    let failed = |error| super::error::from_io("write", &shown(&member.name), error);
    let mut position = 0_u64;
    let mut ends_in_hole = false;
    loop {
        let piece = archive.data()?;
        if piece.is_empty() {
            break;
        }
        let length = piece.len();
        if member.size < HOLE as u64 {
            file.write_all_at(piece, position).map_err(failed)?;
        } else {
            ends_in_hole = write_around_holes(file, piece, position).map_err(failed)?;
        }
        position = position.saturating_add(length as u64);
        archive.consume(length);
    }
    if ends_in_hole {
        file.set_len(position).map_err(failed)?;
    }
    Ok(())
}

/// Writes what is not zero; whether the piece ends in zeros that were not written.
fn write_around_holes(file: &File, piece: &[u8], position: u64) -> std::io::Result<bool> {
    const ZEROS: [u8; HOLE] = [0; HOLE];
    let mut rest = piece;
    let mut at = position;
    let mut run: &[u8] = &[];
    let mut run_at = position;
    let mut hole = false;
    while !rest.is_empty() {
        // Up to the next boundary in the file.
        let into = usize::try_from(at % HOLE as u64).unwrap_or(0);
        let length = HOLE.saturating_sub(into).min(rest.len());
        let (block, after) = rest.split_at(length);
        hole = block == ZEROS.get(..length).unwrap_or_default();
        if hole {
            if !run.is_empty() {
                file.write_all_at(run, run_at)?;
            }
            run = &[];
        } else {
            if run.is_empty() {
                run_at = at;
            }
            // The run and this block are neighbours in `piece`.
            let start = usize::try_from(run_at.saturating_sub(position)).unwrap_or(0);
            let end = usize::try_from(at.saturating_sub(position)).unwrap_or(0).saturating_add(length);
            run = piece.get(start..end).unwrap_or_default();
        }
        at = at.saturating_add(length as u64);
        rest = after;
    }
    if !run.is_empty() {
        file.write_all_at(run, run_at)?;
    }
    Ok(hole)
}

fn write_sparse<R: BufRead>(archive: &mut Archive<R>, file: &File, member: &Member, map: &[(u64, u64)]) -> Result<()> {
    let failed = |error| super::error::from_io("write", &shown(&member.name), error);
    for (offset, length) in map {
        let (mut position, mut left) = (*offset, *length);
        while left > 0 {
            let piece = archive.data()?;
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
            let piece = piece.get(..most).unwrap_or_default();
            if piece.is_empty() {
                return Err(refused(member, "ends before its last extent"));
            }
            file.write_all_at(piece, position).map_err(failed)?;
            archive.consume(most);
            position = position.saturating_add(most as u64);
            left = left.saturating_sub(most as u64);
        }
    }
    // The size may be huge: a hole costs nothing, and a size that the file system does not take is an error.
    file.set_len(member.size).map_err(failed)
}

/// The attribute `security.capability` of a file that belongs to the namespace whose root is the host's `root`:
/// version 3 (linux/capability.h), of a version 2 or 3 one. Numbers are little-endian.
#[must_use]
pub fn capability_for(value: &[u8], root: u32) -> Option<Vec<u8>> {
    const REVISION_2: u32 = 0x0200_0000;
    const REVISION_3: u32 = 0x0300_0000;
    const REVISION_MASK: u32 = 0xff00_0000;
    let magic = u32::from_le_bytes(*value.first_chunk()?);
    match (magic & REVISION_MASK, value.len()) {
        (REVISION_2, 20) | (REVISION_3, 24) => {}
        _ => return None,
    }
    let mut out = ((magic & !REVISION_MASK) | REVISION_3).to_le_bytes().to_vec();
    out.extend_from_slice(value.get(4..20)?);
    out.extend_from_slice(&root.to_le_bytes());
    Some(out)
}

/// The same as it stands outside of any namespace: version 2, without the root's id.
#[must_use]
pub fn capability_plain(value: &[u8]) -> Option<Vec<u8>> {
    let third = capability_for(value, 0)?;
    let magic = u32::from_le_bytes(*third.first_chunk()?);
    let mut out = ((magic & 0x00ff_ffff) | 0x0200_0000).to_le_bytes().to_vec();
    out.extend_from_slice(third.get(4..20)?);
    Some(out)
}

/// A POSIX ACL attribute (linux/posix_acl_xattr.h: a version, then entries of tag, permissions and id) with other ids.
#[must_use]
pub fn acl_with(value: &[u8], id_for: impl Fn(IdKind, u32) -> Option<u32>) -> Option<Vec<u8>> {
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    let (version, entries) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != 2 || entries.len() % 8 != 0 {
        return None;
    }
    let mut out = version.to_vec();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes(*entry.first_chunk()?);
        let id = u32::from_le_bytes(*entry.last_chunk()?);
        let id = match tag {
            USER => id_for(IdKind::Uid, id)?,
            GROUP => id_for(IdKind::Gid, id)?,
            _ => id,
        };
        out.extend_from_slice(entry.get(..4)?);
        out.extend_from_slice(&id.to_le_bytes());
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_change_their_revision_and_keep_their_bits() {
        let plain: Vec<u8> = [0x0200_0001_u32, 0x2000, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        let shifted = capability_for(&plain, 100_000).unwrap();
        assert_eq!(shifted.len(), 24);
        assert_eq!(shifted[20..], 100_000_u32.to_le_bytes());
        assert_eq!(capability_plain(&shifted).unwrap(), plain);
        assert_eq!(capability_for(&shifted, 7).unwrap()[20..], 7_u32.to_le_bytes());
        for bad in [&b""[..], &plain[..19], &shifted[..23], &[0; 20]] {
            assert_eq!(capability_for(bad, 0), None);
        }
    }

    #[test]
    fn zeros_become_holes() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("f");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let mut content = vec![0_u8; 3 << 20];
        content[5] = 1;
        content[(1 << 20) + 17] = 2;
        let mut position = 0;
        let mut hole = false;
        for piece in content.chunks(100_001) {
            hole = write_around_holes(&file, piece, position).unwrap();
            position += piece.len() as u64;
        }
        assert!(hole);
        file.set_len(position).unwrap();
        assert!(std::fs::read(&path).unwrap() == content);
        use std::os::unix::fs::MetadataExt;
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 <= 16384, "two blocks of data");
    }

    #[test]
    fn the_ids_of_an_acl_are_replaced() {
        let mut acl = 2_u32.to_le_bytes().to_vec();
        for (tag, id) in [(1_u16, u32::MAX), (2, 5), (8, 6), (0x20, u32::MAX)] {
            acl.extend_from_slice(&tag.to_le_bytes());
            acl.extend_from_slice(&7_u16.to_le_bytes());
            acl.extend_from_slice(&id.to_le_bytes());
        }
        let shifted = acl_with(&acl, |_, id| Some(id + 100_000)).unwrap();
        assert_eq!(acl_with(&shifted, |_, id| id.checked_sub(100_000)).unwrap(), acl);
        assert_eq!(acl_with(&acl, |_, _| None), None);
        assert_eq!(acl_with(&acl[..9], |_, id| Some(id)), None);
    }
}
