//! `rootfs import`: from an image, an archive or a tree to a container directory.

#![forbid(unsafe_code)]

use super::archive::{self, Archive};
use super::compression::{Compression, Expected, Stream, read_full};
use super::container::{Container, User};
use super::digest::{self, Digest, Hasher};
use super::error::{Error, Result, TRY_AGAIN, UNAVAILABLE, at, from_io, io_at, shown};
use super::guest::{self, Guest, Init};
use super::image::{self, Image, Run, Selection, Store};
use super::map::Map;
use super::namespace::{self, Ids};
use super::progress::Progress;
use super::root::Root;
use super::unpack::{self, Layer, Summary, Unpacker};
use super::{pack, sys, walk};
use helper::range::IdKind;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{Gid, Uid, chroot, fchdir, fchown};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// What is to be imported, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// File, directory or `-`.
    pub source: PathBuf,
    /// LXC's metadata archive beside a rootfs archive.
    pub metadata: Option<PathBuf>,
    /// The container's id map; without, every subordinate id.
    pub map: Option<Map>,
    /// Digest of the source file.
    pub digest: Option<Digest>,
    /// A SHA256SUMS file that lists the source.
    pub sums: Option<PathBuf>,
    /// Which image of several.
    pub selection: Selection,
    /// As [`unpack::Options::acls`].
    pub acls: bool,
    /// As [`unpack::Options::most_bytes`].
    pub most_bytes: Option<u64>,
    /// An existing container is replaced once the new one is complete.
    pub replace: bool,
    /// No progress bar and no summary.
    pub quiet: bool,
}

/// What has become of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Imported {
    /// Counts.
    pub summary: Summary,
    /// What the rootfs is.
    pub guest: Guest,
    /// What an image said about running it.
    pub run: Option<Run>,
    /// Architecture that the image claims, in Go's words.
    pub architecture: String,
    /// Digest of the image's manifest or of the source file.
    pub digest: Option<String>,
    /// Lines of LXC's metadata that go into the configuration.
    pub lxc_config: Option<String>,
    /// What LXC's metadata wants the user to be told.
    pub message: Option<String>,
    /// Things to be told on standard error.
    pub notes: Vec<String>,
}

enum Opened {
    /// A stream of bytes: a file, a pipe, or a tree that a packer writes into a pipe.
    Stream { file: File, name: String, total: Option<u64>, regular: bool },
    /// A directory with an image.
    Image(OwnedFd),
}

struct Packer {
    pid: nix::unistd::Pid,
    errors: File,
}

/// The name of a half-made container beside the finished ones.
#[must_use]
pub fn partial_name(name: &str) -> String {
    format!(".{name}.partial")
}

/// Whether a directory of this name is a left-over: half made, or half removed.
#[must_use]
pub fn is_left_over(name: &str) -> bool {
    name.starts_with('.') && (name.ends_with(".partial") || name.ends_with(".removing"))
}

/// Imports, and gives the container and what became of it.
///
/// # Errors
/// Everything that can be wrong with the source, the ids or the place; nothing is left behind then.
pub fn import(user: &User, word: &str, request: &Request) -> Result<(Container, Imported)> {
    let map = request.map.clone().map_or_else(|| Map::whole(&user.owner), Ok)?;
    let target = Container::new(user, word)?;
    let other = user.owner.uid() != Uid::current().as_raw();
    let parent_path = target.directory.parent().unwrap_or(Path::new("/"));
    if !request.replace && std::fs::symlink_metadata(&target.directory).is_ok() {
        let path = target.directory.display();
        return Err(Error::data(format!("{path} exists already: --replace takes its place, rootfs rm removes it")));
    }
    let mut packer = None;
    let (opened, metadata) = open(request, &map, &mut packer)?;
    let wanted = wanted_digest(request)?;
    make_parents(parent_path, user, other)?;
    let parent = open_directory(parent_path)?;
    let partial = c(&partial_name(&target.name))?;
    let (lock, rootfs) = make_partial(&parent, &partial, parent_path, user, other)?;
    let mut ids = Ids::of(&map)?;
    if other {
        ids.add(&Map::single(user.owner.uid(), user.gid));
    }
    let spool = lock.as_fd().try_clone_to_owned().map_err(io_at("duplicate", "a descriptor"))?;
    let result = namespace::run(&ids, || {
        let work = Work { request, target: &target, map: &map, wanted, rootfs, spool };
        work.run(opened, metadata)
    });
    let result = match packer {
        Some(packer) => packer.finish(result),
        None => result,
    };
    let result = result.and_then(|imported| {
        let text = configuration(&target, &map, &imported);
        write_config(&lock, &text, user, other)?;
        put_in_place(&parent, &partial, &target, request.replace, &ids)?;
        Ok(imported)
    });
    match result {
        Ok(imported) => {
            let container = Container { config: Some(target.directory.join("config")), ..target };
            Ok((container, imported))
        }
        Err(error) => {
            // The first error is the one to tell; what stays behind is found by the next import or by prune.
            let _ = remove_partial(&parent, &partial, &ids);
            Err(error)
        }
    }
}

fn c(name: &str) -> Result<CString> {
    CString::new(name).map_err(|_| Error::new(super::error::USAGE, "a name with a NUL byte"))
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty()).map_err(at("open", path.display()))
}

fn make_parents(path: &Path, user: &User, other: bool) -> Result<()> {
    let mut missing: Vec<&Path> =
        path.ancestors().take_while(|above| std::fs::symlink_metadata(above).is_err()).collect();
    while let Some(directory) = missing.pop() {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(directory)
            .map_err(io_at("make the directory", directory.display()))?;
        if other {
            std::os::unix::fs::lchown(directory, Some(user.owner.uid()), Some(user.gid))
                .map_err(io_at("chown", directory.display()))?;
        }
    }
    Ok(())
}

/// Makes the half-made container, locked, and `rootfs` in it. What an import that was killed has left is removed.
fn make_partial(
    parent: &OwnedFd,
    name: &CStr,
    parent_path: &Path,
    user: &User,
    other: bool,
) -> Result<(Flock<File>, OwnedFd)> {
    let shown_path = || parent_path.join(name.to_string_lossy().as_ref()).display().to_string();
    check_place(parent, parent_path)?;
    let (uid, gid) = (user.owner.uid(), user.gid);
    for _ in 0..3 {
        match mkdirat(parent, name, Mode::S_IRWXU) {
            Ok(()) => {
                let directory =
                    openat(parent, name, walk::READ_DIRECTORY, Mode::empty()).map_err(at("open", shown_path()))?;
                let Ok(lock) = Flock::lock(File::from(directory), FlockArg::LockExclusiveNonblock) else { continue };
                mkdirat(&*lock, c"rootfs", Mode::S_IRWXU).map_err(at("make the directory", shown_path()))?;
                let rootfs =
                    openat(&*lock, c"rootfs", walk::READ_DIRECTORY, Mode::empty()).map_err(at("open", shown_path()))?;
                // A set-group-ID directory above gives its group, which may not be mapped; ours is.
                let (owner, group) = (other.then_some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                for made in [lock.as_fd(), rootfs.as_fd()] {
                    fchown(made, owner, group).map_err(at("chown", shown_path()))?;
                }
                fchmod(&*lock, Mode::S_IRWXU).map_err(at("chmod", shown_path()))?;
                return Ok((lock, rootfs));
            }
            Err(Errno::EEXIST) => {
                let directory =
                    openat(parent, name, walk::READ_DIRECTORY, Mode::empty()).map_err(at("open", shown_path()))?;
                let Ok(_lock) = Flock::lock(File::from(directory), FlockArg::LockExclusiveNonblock) else {
                    let text = format!("{} is being made by another import", shown_path());
                    return Err(Error::new(TRY_AGAIN, text));
                };
                let ids = Ids::of(&Map::whole(&user.owner).unwrap_or_else(|_| Map::single(uid, gid)))?;
                remove_partial(parent, name, &ids)?;
            }
            Err(errno) => return Err(Error::system("make the directory", shown_path(), errno)),
        }
    }
    Err(Error::new(TRY_AGAIN, format!("{}: others make and remove it all the time", shown_path())))
}

/// Refuses file systems on which the tree would not be what the archive says.
fn check_place(parent: &OwnedFd, path: &Path) -> Result<()> {
    let refused = |why: &str| {
        let text = format!("{}: {why}: import to another place (a path with a slash names one)", path.display());
        Err(Error::new(UNAVAILABLE, text))
    };
    let found = fstatvfs(parent).map_err(at("statfs", path.display()))?;
    if found.flags().contains(FsFlags::ST_NOSUID) {
        return refused("the file system is mounted nosuid, so su, sudo and mount inside would have no effect");
    }
    if found.flags().contains(FsFlags::ST_NOEXEC) {
        return refused("the file system is mounted noexec, so no program inside could run");
    }
    let kind = nix::sys::statfs::fstatfs(parent).map_err(at("statfs", path.display()))?;
    if let Some(name) = foreign_file_system(kind.filesystem_type().0) {
        return refused(&format!("the file system is {name}, which does not keep the owners of another user's ids"));
    }
    // FS_CASEFOLD_FL (linux/fs.h).
    if sys::inode_flags(parent) & 0x4000_0000 != 0 {
        return refused("the directory takes names without regard to case, so files of a tree would fall together");
    }
    Ok(())
}

/// The name of a file system on which chown(2) to subordinate ids does not work, by its magic number (statfs(2)).
#[must_use]
pub fn foreign_file_system(magic: impl Into<i128>) -> Option<&'static str> {
    match magic.into() & 0xffff_ffff {
        0x6969 => Some("NFS"),
        0x6573_5546 => Some("FUSE"),
        0x517b | 0xfe53_4d42 | 0xff53_4d42 => Some("SMB"),
        0x0102_1997 => Some("9p"),
        0x4d44 => Some("FAT"),
        0x2011_bab0 => Some("exFAT"),
        0x5346_544e => Some("NTFS"),
        _ => None,
    }
}

/// Removes what is in a partial directory and the directory itself.
///
/// # Errors
/// Something in it cannot be removed.
pub fn remove_partial(parent: &OwnedFd, name: &CStr, ids: &Ids) -> Result<()> {
    let Ok(directory) = openat(parent, name, walk::READ_DIRECTORY, Mode::empty()) else { return Ok(()) };
    namespace::run(ids, || walk::empty(&directory))?;
    nix::unistd::unlinkat(parent, name, nix::unistd::UnlinkatFlags::RemoveDir)
        .map_err(at("remove", name.to_string_lossy()))
}

fn write_config(directory: &File, text: &str, user: &User, other: bool) -> Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = openat(directory, c"config", flags, Mode::from_bits_truncate(0o644)).map_err(at("create", "config"))?;
    if other {
        let (uid, gid) = (Uid::from_raw(user.owner.uid()), Gid::from_raw(user.gid));
        fchown(&file, Some(uid), Some(gid)).map_err(at("chown", "config"))?;
    }
    File::from(file).write_all(text.as_bytes()).map_err(io_at("write", "config"))
}

fn put_in_place(parent: &OwnedFd, partial: &CStr, target: &Container, replace: bool, ids: &Ids) -> Result<()> {
    let name = c(&target.name)?;
    let failed = |errno| match errno {
        Errno::EEXIST | Errno::ENOTEMPTY => Error::data(format!("{} exists already", target.directory.display())),
        errno => Error::system("rename to", target.directory.display(), errno),
    };
    if !replace || std::fs::symlink_metadata(&target.directory).is_err() {
        if !sys::rename((parent, partial), (parent, &name), libc::RENAME_NOREPLACE).map_err(failed)? {
            // The file system lacks the flag: a plain rename replaces nothing but an empty directory.
            nix::fcntl::renameat(parent, partial, parent, name.as_c_str()).map_err(failed)?;
        }
        return Ok(());
    }
    if !sys::rename((parent, partial), (parent, &name), libc::RENAME_EXCHANGE).map_err(failed)? {
        let text = "--replace: this file system cannot exchange two names: rootfs rm the old container first";
        return Err(Error::new(UNAVAILABLE, text));
    }
    remove_partial(parent, partial, ids)
}

// ---- the source

fn open(request: &Request, map: &Map, packer: &mut Option<Packer>) -> Result<(Opened, Option<(File, String)>)> {
    let open_file = |path: &Path| -> Result<(File, String)> {
        Ok((File::open(path).map_err(io_at("open", path.display()))?, path.display().to_string()))
    };
    let metadata = request.metadata.as_deref().map(open_file).transpose()?;
    if request.source.as_os_str() == "-" {
        let file = io::stdin().as_fd().try_clone_to_owned().map(File::from).map_err(io_at("use", "standard input"))?;
        let found = file.metadata().map_err(io_at("stat", "standard input"))?;
        if std::io::IsTerminal::is_terminal(&file) {
            return Err(Error::new(
                super::error::USAGE,
                "standard input is a terminal: give a file, or pipe an archive in",
            ));
        }
        let total = found.is_file().then_some(found.len());
        // A file whose position is not its start is read as a stream.
        return Ok((Opened::Stream { file, name: "standard input".into(), total, regular: false }, metadata));
    }
    let path = &request.source;
    let (file, name) = open_file(path)?;
    let found = file.metadata().map_err(io_at("stat", path.display()))?;
    if !found.is_dir() {
        let total = found.is_file().then_some(found.len());
        return Ok((Opened::Stream { file, name, total, regular: found.is_file() }, metadata));
    }
    let directory = OwnedFd::from(file);
    let has = |name: &CStr| nix::sys::stat::fstatat(&directory, name, nix::fcntl::AtFlags::empty()).is_ok();
    if has(c"oci-layout") || has(c"index.json") || has(c"manifest.json") {
        return Ok((Opened::Image(directory), metadata));
    }
    if let Some(rootfs) = archive_in(path, "rootfs.tar") {
        let metadata = match metadata {
            Some(given) => Some(given),
            None => archive_in(path, "meta.tar").as_deref().map(open_file).transpose()?,
        };
        let (file, name) = open_file(&rootfs)?;
        let total = file.metadata().ok().map(|found| found.len());
        return Ok((Opened::Stream { file, name, total, regular: true }, metadata));
    }
    if let Some(found) = Container::at(path).filter(|found| !found.bare) {
        let tree = open_directory(&found.rootfs)?;
        return Ok((start_packer(tree, &found.rootfs, map, packer)?, metadata));
    }
    if ["etc", "usr", "bin", "sbin"].iter().any(|name| std::fs::symlink_metadata(path.join(name)).is_ok()) {
        return Ok((start_packer(directory, path, map, packer)?, metadata));
    }
    let text = format!(
        "{}: no image (index.json, manifest.json, rootfs.tar) and no root file system (etc, usr, bin)",
        path.display()
    );
    Err(Error::data(text))
}

/// `rootfs.tar`, `rootfs.tar.xz` and so on in a directory.
fn archive_in(directory: &Path, stem: &str) -> Option<PathBuf> {
    let endings = ["", ".xz", ".gz", ".zst", ".bz2"];
    let paths = endings.iter().map(|ending| directory.join(format!("{stem}{ending}")));
    let mut paths = paths.collect::<Vec<_>>().into_iter();
    paths.find(|path| path.is_file()).or_else(|| {
        let squashed = directory.join("rootfs.squashfs");
        (stem == "rootfs.tar" && squashed.is_file()).then_some(squashed)
    })
}

/// Has a child of its own write the tree into a pipe: outside of our namespace, where every id can be told apart; or in
/// a namespace of its own when the tree belongs to mapped ids and only their root may read it.
fn start_packer(tree: OwnedFd, path: &Path, map: &Map, packer: &mut Option<Packer>) -> Result<Opened> {
    let stat = fstat(&tree).map_err(at("stat", path.display()))?;
    let mapped = map.to_container(IdKind::Uid, stat.st_uid).is_some();
    let (uid, gid) = (Uid::current().as_raw(), Gid::current().as_raw());
    let inside = mapped && !Uid::current().is_root();
    let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(at("make", "a pipe"));
    let ((read, write), (errors, say)) = (pipe()?, pipe()?);
    let own = map.clone();
    let pid = sys::fork(|| {
        sys::default_signals();
        let _ = nix::unistd::close(std::os::fd::AsRawFd::as_raw_fd(&read));
        let id = |kind: IdKind, host: u32| {
            let self_id = if kind == IdKind::Uid { uid } else { gid };
            // One's own files are root's; other people's keep their number.
            own.to_container(kind, host).or(if host == self_id { Some(0) } else { Some(host) })
        };
        let out = io::BufWriter::with_capacity(256 << 10, File::from(write));
        let result = if inside {
            Ids::of(&own).and_then(|ids| namespace::run(&ids, || pack::pack(&tree, out, id, |_| ())))
        } else {
            pack::pack(&tree, out, id, |_| ())
        };
        match result {
            Ok(_) => 0,
            Err(error) => {
                let _ = File::from(say).write_all(error.text.as_bytes());
                i32::from(error.status)
            }
        }
    })
    .map_err(at("fork", "a child that reads the tree"))?;
    *packer = Some(Packer { pid, errors: File::from(errors) });
    Ok(Opened::Stream { file: File::from(read), name: path.display().to_string(), total: None, regular: false })
}

impl Packer {
    /// Waits for it. Its own failure is the cause of what the reader then found.
    fn finish<T>(mut self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            let _ = nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGTERM);
        }
        let status = loop {
            match nix::sys::wait::waitpid(self.pid, None) {
                Err(Errno::EINTR) => {}
                other => break other,
            }
        };
        let mut text = String::new();
        let _ = self.errors.read_to_string(&mut text);
        match status {
            Ok(nix::sys::wait::WaitStatus::Exited(_, 0)) => result,
            Ok(nix::sys::wait::WaitStatus::Exited(_, status)) if !text.is_empty() => {
                Err(Error::new(u8::try_from(status).unwrap_or(super::error::SYSTEM), text))
            }
            _ => result.and(Err(Error::new(super::error::SYSTEM, "the child that reads the tree has died"))),
        }
    }
}

/// The digest that the source must have: given, or in a SHA256SUMS file given or beside it.
fn wanted_digest(request: &Request) -> Result<HashMap<String, Digest>> {
    let mut wanted = HashMap::new();
    let source = &request.source;
    if let Some(digest) = &request.digest {
        if source.is_dir() {
            return Err(Error::new(super::error::USAGE, "--digest is for a file or a pipe; a directory has none"));
        }
        let name = if source.as_os_str() == "-" { "standard input".to_owned() } else { source.display().to_string() };
        wanted.insert(name, digest.clone());
        return Ok(wanted);
    }
    let given = request.sums.is_some();
    let directory =
        if source.is_dir() { source.clone() } else { source.parent().map(Path::to_owned).unwrap_or_default() };
    let sums = request.sums.clone().unwrap_or_else(|| directory.join("SHA256SUMS"));
    if !given && (source.as_os_str() == "-" || !sums.is_file()) {
        return Ok(wanted);
    }
    let text = std::fs::read_to_string(&sums).map_err(io_at("read", sums.display()))?;
    let mut files: Vec<PathBuf> = Vec::new();
    if source.is_dir() {
        files.extend(archive_in(source, "rootfs.tar"));
        files.extend(archive_in(source, "meta.tar"));
    } else {
        files.push(source.clone());
    }
    files.extend(request.metadata.clone());
    for file in files {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        match digest::in_sums(&text, &name) {
            Some(digest) => drop(wanted.insert(file.display().to_string(), digest)),
            None if given => return Err(Error::data(format!("{} does not list {name}", sums.display()))),
            None => {}
        }
    }
    Ok(wanted)
}

// ---- in the namespace

struct Work<'a> {
    request: &'a Request,
    target: &'a Container,
    map: &'a Map,
    wanted: HashMap<String, Digest>,
    rootfs: OwnedFd,
    spool: OwnedFd,
}

/// What an import has found beside files.
#[derive(Default)]
struct Found {
    image: Option<Image>,
    digest: Option<String>,
    notes: Vec<String>,
}

impl Work<'_> {
    fn run(&self, opened: Opened, metadata: Option<(File, String)>) -> Result<Imported> {
        let (uid, gid) = self.map.root()?;
        fchown(&self.rootfs, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(|errno| {
            let text =
                format!("chown of the new rootfs to uid {uid}: {}: does this file system keep owners?", errno.desc());
            Error::new(UNAVAILABLE, text)
        })?;
        fchmod(&self.rootfs, Mode::from_bits_truncate(0o755)).map_err(at("chmod", "rootfs"))?;
        // A default ACL of the directory above would change the mode of every file.
        for name in [c"system.posix_acl_default", c"system.posix_acl_access"] {
            let _ = sys::remove_xattr(&self.rootfs, name);
        }
        // The second wall: for this process there is nothing outside any more but what it has open.
        fchdir(&self.rootfs).map_err(at("enter", "rootfs"))?;
        chroot(".").map_err(at("chroot", "rootfs"))?;
        let root = Root::new(self.rootfs.try_clone().map_err(io_at("duplicate", "a descriptor"))?);
        let root = root.map_err(at("stat", "rootfs"))?;
        let mut found = Found::default();
        let meta = metadata.map(|(file, name)| self.metadata(file, &name)).transpose()?;
        let options = unpack::Options { below: None, acls: self.request.acls, most_bytes: self.request.most_bytes };
        let mut unpacker = Unpacker::new(root, self.map, options)?;
        match opened {
            Opened::Image(directory) => {
                let store = Store::Directory(Root::new(directory).map_err(at("stat", "the image"))?);
                self.image(&mut unpacker, &store, &mut found)?;
            }
            Opened::Stream { file, name, total, regular } => {
                unpacker = self.stream(unpacker, file, &name, total, regular, &mut found)?;
            }
        }
        let summary = unpacker.finish()?;
        if summary.files == 0 {
            return Err(Error::data("the source has no files: it is empty, or no rootfs"));
        }
        let root = Root::new(self.rootfs.try_clone().map_err(io_at("duplicate", "a descriptor"))?);
        let root = root.map_err(at("stat", "rootfs"))?;
        let mut imported = Imported {
            summary,
            guest: guest::look(&root),
            run: found.image.as_ref().map(|image| image.run.clone()),
            architecture: found.image.as_ref().map(|image| image.architecture.clone()).unwrap_or_default(),
            digest: found.image.and_then(|image| image.digest).map(|digest| digest.to_string()).or(found.digest),
            lxc_config: None,
            message: None,
            notes: found.notes,
        };
        if let Some(meta) = meta {
            meta.apply(&root, self.target, &mut imported)?;
        }
        Ok(imported)
    }

    fn stream<'a>(
        &'a self,
        mut unpacker: Unpacker<'a>,
        mut file: File,
        name: &str,
        total: Option<u64>,
        regular: bool,
        found: &mut Found,
    ) -> Result<Unpacker<'a>> {
        let digest = self.wanted.get(name).cloned();
        let expected = Expected { name: name.to_owned(), digest: digest.clone(), ..Expected::default() };
        if regular {
            let mut start = [0_u8; 4096];
            let length = read_full(&mut file, &mut start).map_err(io_at("read", name))?;
            file.seek(SeekFrom::Start(0)).map_err(io_at("seek in", name))?;
            let start = start.get(..length).unwrap_or_default();
            if start.starts_with(b"hsqs") {
                let text = format!("{name} is a squashfs image: unpack it with unsquashfs and import the directory");
                return Err(Error::data(text));
            }
            if Compression::of(start) == Compression::None
                && first_member(start).is_some_and(|m| image::looks_like_image(&m))
            {
                if let Some(digest) = &digest {
                    verify_file(&mut file, name, digest)?;
                }
                let store = Store::archive(Arc::new(file), name)?;
                self.image(&mut unpacker, &store, found)?;
                return Ok(unpacker);
            }
        }
        let count = Arc::new(AtomicU64::new(0));
        let mut progress = Progress::new(self.request.quiet, total, Arc::clone(&count));
        let mut stream = Stream::open(Box::new(file), &expected, count)?;
        let mut start = vec![0_u8; 64 << 10];
        let length = read_full(&mut stream, &mut start).map_err(|error| from_io("read", name, error))?;
        start.truncate(length);
        if start.is_empty() {
            return Err(Error::data(format!("{name} is empty")));
        }
        let first = first_member(&start);
        if first.as_deref().is_some_and(image::looks_like_image) {
            let store = self.spool(io::Cursor::new(start).chain(&mut stream), name)?;
            stream.finish().map_err(|error| from_io("read", name, error))?;
            progress.done();
            self.image(&mut unpacker, &store, found)?;
            return Ok(unpacker);
        }
        if first.as_deref().is_some_and(is_unified) {
            let root = Root::new(self.rootfs.try_clone().map_err(io_at("duplicate", "a descriptor"))?);
            let options = unpack::Options {
                below: Some(b"rootfs".to_vec()),
                acls: self.request.acls,
                most_bytes: self.request.most_bytes,
            };
            unpacker = Unpacker::new(root.map_err(at("stat", "rootfs"))?, self.map, options)?;
            found.notes.push("an image of LXD or Incus: the tree in it was taken, its templates were not".to_owned());
        }
        let mut archive = Archive::new(io::Cursor::new(start).chain(stream), name);
        let result = unpacker.layer(&mut archive, Layer::Flat, |summary| progress.tick(summary.files));
        progress.done();
        result?;
        let (_, stream) = archive.into_input().into_inner();
        stream.finish().map_err(|error| from_io("read", name, error))?;
        found.digest = digest.map(|digest| digest.to_string());
        Ok(unpacker)
    }

    /// Copies an image archive that cannot be read out of order into a file without a name.
    fn spool(&self, mut from: impl Read, name: &str) -> Result<Store> {
        let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
        let fd = match openat(&self.spool, c".", flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {
                let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                let made = openat(&self.spool, c"spool", flags, Mode::S_IRUSR | Mode::S_IWUSR);
                let _ = nix::unistd::unlinkat(&self.spool, c"spool", nix::unistd::UnlinkatFlags::NoRemoveDir);
                made
            }
            other => other,
        };
        let mut file = File::from(fd.map_err(at("make", "a temporary file beside the container"))?);
        io::copy(&mut from, &mut file).map_err(|error| from_io("copy", name, error))?;
        Store::archive(Arc::new(file), name)
    }

    fn image(&self, unpacker: &mut Unpacker<'_>, store: &Store, found: &mut Found) -> Result<()> {
        let image = image::find(store, &self.request.selection)?;
        let mut opened = Vec::new();
        let mut total = 0_u64;
        for layer in &image.layers {
            let (reader, length) = store.open(&layer.file)?;
            total = total.saturating_add(length);
            opened.push((reader, layer));
        }
        let count = Arc::new(AtomicU64::new(0));
        let mut progress = Progress::new(self.request.quiet, Some(total), Arc::clone(&count));
        for (position, (reader, layer)) in opened.into_iter().enumerate() {
            let expected = layer.expected();
            let stream = Stream::open(reader, &expected, Arc::clone(&count))?;
            let mut archive = Archive::new(stream, &expected.name);
            let kind = if position == 0 { Layer::First } else { Layer::Upper };
            let result = unpacker.layer(&mut archive, kind, |summary| progress.tick(summary.files));
            if result.is_err() {
                progress.done();
            }
            // A damaged layer is named by its digest only at its end; that is the truer cause.
            let finished = archive.into_input().finish().map_err(|error| from_io("read", &expected.name, error));
            match (result, finished) {
                (Err(_), Err(damaged)) if damaged.text.contains("digest") => return Err(damaged),
                (Err(error), _) | (Ok(()), Err(error)) => return Err(error),
                (Ok(()), Ok(())) => {}
            }
        }
        progress.done();
        found.image = Some(image);
        Ok(())
    }

    fn metadata(&self, file: File, name: &str) -> Result<Metadata> {
        let expected =
            Expected { name: name.to_owned(), digest: self.wanted.get(name).cloned(), ..Expected::default() };
        let stream = Stream::open(Box::new(file), &expected, Arc::new(AtomicU64::new(0)))?;
        let mut archive = Archive::new(BufReader::new(stream), name);
        let metadata = Metadata::read(&mut archive)?;
        archive.into_input().into_inner().finish().map_err(|error| from_io("read", name, error))?;
        Ok(metadata)
    }
}

/// The name of the first member in the start of an archive that is more than the root (`./`, which tar(1) puts first).
fn first_member(start: &[u8]) -> Option<Vec<u8>> {
    let mut archive = Archive::new(start, "");
    let is_root = |name: &[u8]| name.split(|byte| *byte == b'/').all(|part| matches!(part, b"" | b"."));
    loop {
        let name = archive.next().ok().flatten()?.name;
        if !is_root(&name) {
            return Some(name);
        }
    }
}

/// Whether an archive that begins so is LXD's unified form: `metadata.yaml`, `templates/`, `rootfs/`.
fn is_unified(first: &[u8]) -> bool {
    let name = first.strip_prefix(b"./").unwrap_or(first);
    matches!(name, b"metadata.yaml" | b"templates" | b"templates/" | b"rootfs" | b"rootfs/")
}

fn verify_file(file: &mut File, name: &str, wanted: &Digest) -> Result<()> {
    let mut hasher: Hasher = wanted.start();
    let mut buffer = vec![0_u8; 256 << 10];
    loop {
        let length = read_full(file, &mut buffer).map_err(io_at("read", name))?;
        if length == 0 {
            break;
        }
        hasher.update(buffer.get(..length).unwrap_or_default());
    }
    file.seek(SeekFrom::Start(0)).map_err(io_at("seek in", name))?;
    let found = hasher.finish();
    if found == *wanted {
        Ok(())
    } else {
        Err(Error::data(format!("{name} has digest {found}, not {wanted}: damaged or tampered with")))
    }
}

// ---- LXC's metadata

/// Where LXC's own configuration files are.
const TEMPLATES: &str = "/usr/share/lxc/config";

/// What LXC's metadata archive holds, for an ordinary user at compatibility level 5 (lxc-download).
struct Metadata {
    config: Option<String>,
    message: Option<String>,
    expiry: Option<u64>,
    templates: Vec<String>,
}

impl Metadata {
    const LONGEST: u64 = 1 << 20;

    fn read<R: BufRead>(archive: &mut Archive<R>) -> Result<Self> {
        let mut files: HashMap<String, String> = HashMap::new();
        while let Some(member) = archive.next()? {
            if member.kind != archive::Kind::File || files.len() > 100 {
                continue;
            }
            let name = String::from_utf8_lossy(&member.name).trim_start_matches("./").to_owned();
            let text = archive.read_data(Self::LONGEST)?;
            files.insert(name, String::from_utf8_lossy(&text).into_owned());
        }
        let best = |name: &str| {
            let with = |base: &str| {
                let newest = (1..=5).rev().find_map(|level| files.get(&format!("{base}.{level}")));
                newest.or_else(|| files.get(base))
            };
            with(&format!("{name}-user")).or_else(|| with(name)).cloned()
        };
        Ok(Self {
            config: best("config"),
            message: best("create-message"),
            expiry: best("expiry").and_then(|text| text.trim().parse().ok()),
            templates: best("templates").unwrap_or_default().lines().map(str::to_owned).collect(),
        })
    }

    /// Fills in LXC's words in the files that the image names, and hands the rest on.
    fn apply(self, root: &Root, target: &Container, imported: &mut Imported) -> Result<()> {
        for path in self.templates.iter().map(|line| line.trim()).filter(|line| !line.is_empty()) {
            let Ok(content) = root.read(path.as_bytes(), Self::LONGEST) else { continue };
            let Ok(text) = String::from_utf8(content) else { continue };
            let directory = target.directory.parent().unwrap_or(Path::new("/")).display().to_string();
            let filled = text
                .replace("LXC_NAME", &target.name)
                .replace("LXC_PATH", &directory)
                .replace("LXC_ROOTFS", &target.rootfs.display().to_string())
                .replace("LXC_TEMPLATE_CONFIG", TEMPLATES)
                .replace("LXC_HOOK_DIR", "/usr/share/lxc/hooks");
            if filled != text {
                super::edit::replace(root, path.as_bytes(), filled.as_bytes())?;
            }
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs());
        if self.expiry.is_some_and(|expiry| expiry < now) {
            imported.notes.push("the image has passed its expiry date: look for a newer one".to_owned());
        }
        imported.lxc_config = self.config;
        imported.message = self.message.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        Ok(())
    }
}

// ---- the configuration

/// The text of `config`: what the image is, its map, how its init is told to halt.
#[must_use]
pub fn configuration(target: &Container, map: &Map, imported: &Imported) -> String {
    let guest = &imported.guest;
    let mut text = String::from("# Made by rootfs import. Keys: lxc.container.conf(5), spawn-config(5).\n");
    if !guest.name.is_empty() {
        text.push_str(&format!("# {}\n", one_line(&guest.name)));
    }
    if let Some(digest) = &imported.digest {
        text.push_str(&format!("# image {digest}\n"));
    }
    text.push_str(&format!("# init: {}\n", guest.init.name()));
    if let Some(lines) = &imported.lxc_config {
        text.push_str("\n# From the image's metadata.\n");
        text.push_str(&lxc_lines(lines));
        text.push('\n');
    }
    let rootfs = target.rootfs.display().to_string();
    text.push_str(&format!("lxc.rootfs.path = dir:{}\n", one_line(&rootfs)));
    text.push_str(&format!("lxc.uts.name = {}\n", host_name(&target.name)));
    if let Some(machine) = &guest.machine {
        text.push_str(&format!("lxc.arch = {machine}\n"));
    }
    text.push_str(&map.lxc_lines());
    match guest.init {
        Init::Systemd(_) => text.push_str("lxc.signal.halt = SIGRTMIN+3\n"),
        Init::Upstart | Init::Sysvinit => text.push_str("lxc.signal.halt = SIGPWR\n"),
        Init::Busybox => text.push_str("lxc.signal.halt = SIGUSR1\nlxc.signal.reboot = SIGTERM\n"),
        Init::Other | Init::None => {}
    }
    if let Some(run) = &imported.run {
        for variable in &run.env {
            text.push_str(&format!("lxc.environment = {}\n", one_line(variable)));
        }
        let words: Vec<String> = run.entrypoint.iter().chain(&run.cmd).map(|word| quoted(word)).collect();
        if guest.init == Init::None && !words.is_empty() {
            text.push_str(&format!("lxc.init.cmd = {}\n", words.join(" ")));
            if !run.working_dir.is_empty() {
                text.push_str(&format!("lxc.init.cwd = {}\n", one_line(&run.working_dir)));
            }
            let mut ids = run.user.split(':');
            if let Some(uid) = ids.next().and_then(|word| word.parse::<u32>().ok()).filter(|uid| *uid != 0) {
                text.push_str(&format!("lxc.init.uid = {uid}\n"));
                let gid = ids.next().and_then(|word| word.parse::<u32>().ok()).unwrap_or(uid);
                text.push_str(&format!("lxc.init.gid = {gid}\n"));
            }
        }
    }
    text
}

/// LXC's words in its own configuration are filled in. A file to include that is not on this host is left out: it would
/// stop every start. What this program writes itself is left out as well.
fn lxc_lines(lines: &str) -> String {
    const OURS: [&str; 4] = ["lxc.rootfs.path", "lxc.uts.name", "lxc.idmap", "lxc.arch"];
    let mut text = String::new();
    for line in lines.lines() {
        let line = line.replace("LXC_TEMPLATE_CONFIG", TEMPLATES);
        let key = line.split('=').next().unwrap_or_default().trim();
        if OURS.contains(&key) {
            continue;
        }
        let missing =
            key == "lxc.include" && line.split_once('=').is_some_and(|(_, path)| !Path::new(path.trim()).exists());
        if missing {
            text.push_str("# not on this host: ");
        }
        text.push_str(&one_line(&line));
        text.push('\n');
    }
    text
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn quoted(word: &str) -> String {
    let word = one_line(word);
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.,:=+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// A container's name as a host name (hostname(7)).
fn host_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' };
    let text: String = name.chars().map(plain).take(63).collect();
    let text = text.trim_matches('-').to_owned();
    if text.is_empty() { "container".to_owned() } else { text }
}

/// One line about what has been done, for standard error.
#[must_use]
pub fn told(container: &Container, imported: &Imported) -> String {
    let summary = &imported.summary;
    let mut text =
        format!("{}: {} files, {} MiB", shown(container.name.as_bytes()), summary.files, summary.bytes >> 20);
    if summary.devices > 0 {
        text.push_str(&format!(", {} device nodes left out (spawn supplies /dev)", summary.devices));
    }
    if summary.attributes > 0 {
        text.push_str(&format!(", {} extended attributes left out", summary.attributes));
    }
    let guest = &imported.guest;
    let name = if guest.name.is_empty() { "unknown system".to_owned() } else { shown(guest.name.as_bytes()) };
    text.push_str(&format!("; {name}, init: {}", guest.init.name()));
    text
}

/// Bytes of a path for a C call.
#[must_use]
pub fn path_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}
