//! Writes a tree as a tar: ustar headers with pax records where they do not suffice, attributes as star and GNU tar
//! write them, holes as GNU tar's sparse format 1.0.

#![forbid(unsafe_code)]

use super::error::{Error, Result, at, io_at, shown};
use super::root::{Identity, kind};
use super::unpack::capability_plain;
use super::{sys, walk};
use helper::range::IdKind;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{Whence, lseek64};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use tar::{EntryType, Header};

/// The largest id in a ustar header: seven octal digits.
const LARGEST_ID: u32 = 0o7_777_777;

/// The largest size in a ustar header: eleven octal digits.
const LARGEST_SIZE: u64 = 0o77_777_777_777;

/// Longest name in a header in bytes; longer ones go into a pax record.
const LONGEST_NAME: usize = 100;

/// What has been written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// Members.
    pub files: u64,
    /// Bytes of content, holes left out.
    pub bytes: u64,
    /// Device nodes and sockets left out.
    pub left_out: u64,
}

/// Writes the tree below `root`. `id` gives the id to write for one on disk, `None` when there is none: that is an error
/// with the file's name.
///
/// # Errors
/// A file cannot be read, has an id that `id` does not know, or changes meanwhile; or `out` fails.
pub fn pack(
    root: &OwnedFd,
    mut out: impl Write,
    id: impl Fn(IdKind, u32) -> Option<u32>,
    mut tick: impl FnMut(&Packed),
) -> Result<Packed> {
    let mut done = Packed::default();
    let mut links: HashMap<Identity, Vec<u8>> = HashMap::new();
    walk::walk(root, |visit| {
        if visit.after {
            return Ok(walk::Next::Enter);
        }
        let object = || if visit.path.is_empty() { "the root directory".to_owned() } else { shown(visit.path) };
        let known = |id_kind: IdKind, value: u32| {
            id(id_kind, value).ok_or_else(|| {
                let word = id_kind.word();
                let text = format!("{} belongs to {word} {value}, outside the map: rootfs check tells more", object());
                Error::data(text)
            })
        };
        let stat = &visit.stat;
        let mut name = if visit.path.is_empty() { b"./".to_vec() } else { visit.path.to_vec() };
        let mut entry = Entry {
            kind: EntryType::Regular,
            mode: stat.st_mode & 0o7777,
            uid: known(IdKind::Uid, stat.st_uid)?,
            gid: known(IdKind::Gid, stat.st_gid)?,
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            size: 0,
            link: Vec::new(),
            records: Vec::new(),
        };
        let file_kind = kind(stat);
        if file_kind != SFlag::S_IFDIR
            && stat.st_nlink > 1
            && !matches!(file_kind, SFlag::S_IFSOCK | SFlag::S_IFCHR | SFlag::S_IFBLK)
        {
            if let Some(first) = links.get(&Identity::from(stat)) {
                entry.kind = EntryType::Link;
                entry.link.clone_from(first);
                entry.write(&mut out, &name)?;
                done.files = done.files.saturating_add(1);
                return Ok(walk::Next::Enter);
            }
            links.insert(Identity::from(stat), name.clone());
        }
        match file_kind {
            SFlag::S_IFREG => {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                let file = openat(visit.directory, visit.name, flags, Mode::empty()).map_err(at("open", object()))?;
                same(&file, stat, &object)?;
                attributes(&file, &mut entry, &id, &object)?;
                let file = File::from(file);
                done.bytes = done.bytes.saturating_add(content(&file, stat, entry, name, &mut out, &object)?);
            }
            SFlag::S_IFDIR => {
                if !visit.path.is_empty() {
                    name.push(b'/');
                }
                let file = openat(visit.directory, visit.name, walk::READ_DIRECTORY, Mode::empty())
                    .map_err(at("open", object()))?;
                same(&file, stat, &object)?;
                attributes(&file, &mut entry, &id, &object)?;
                entry.kind = EntryType::Directory;
                entry.write(&mut out, &name)?;
            }
            SFlag::S_IFLNK => {
                entry.kind = EntryType::Symlink;
                entry.mode = 0o777;
                entry.link = readlinkat(visit.directory, visit.name).map_err(at("read the link", object()))?.into_vec();
                entry.write(&mut out, &name)?;
            }
            SFlag::S_IFIFO => {
                entry.kind = EntryType::Fifo;
                entry.write(&mut out, &name)?;
            }
            _ => {
                done.left_out = done.left_out.saturating_add(1);
                return Ok(walk::Next::Enter);
            }
        }
        done.files = done.files.saturating_add(1);
        tick(&done);
        Ok(walk::Next::Enter)
    })?;
    out.write_all(&[0; 1024]).map_err(io_at("write", "the end of the archive"))?;
    out.flush().map_err(io_at("write", "the end of the archive"))?;
    Ok(done)
}

fn same(file: &OwnedFd, stat: &FileStat, object: &impl Fn() -> String) -> Result<()> {
    let opened = fstat(file).map_err(at("stat", object()))?;
    if Identity::from(&opened) == Identity::from(stat) { Ok(()) } else { Err(changed(object)) }
}

fn changed(object: &impl Fn() -> String) -> Error {
    Error::new(
        super::error::TRY_AGAIN,
        format!("{} changed while it was being read: is the container running?", object()),
    )
}

/// `security.capability`, POSIX ACLs and `user.*`.
fn attributes(
    file: &OwnedFd,
    entry: &mut Entry,
    id: &impl Fn(IdKind, u32) -> Option<u32>,
    object: &impl Fn() -> String,
) -> Result<()> {
    for name in sys::list_xattrs(file).map_err(at("list the attributes of", object()))? {
        let acl = matches!(name.as_slice(), b"system.posix_acl_access" | b"system.posix_acl_default");
        if name != b"security.capability" && !acl && !name.starts_with(b"user.") {
            continue;
        }
        let Ok(c) = super::root::c_name(&name) else { continue };
        let Some(value) = sys::get_xattr(file, &c).map_err(at("read an attribute of", object()))? else { continue };
        let value = if name == b"security.capability" {
            capability_plain(&value)
        } else if acl {
            super::unpack::acl_with(&value, id)
        } else {
            Some(value)
        };
        let value = value.ok_or_else(|| {
            Error::data(format!(
                "{}: the attribute {} is damaged, or has an id outside the map",
                object(),
                shown(&name)
            ))
        })?;
        entry.records.push(([b"SCHILY.xattr.", name.as_slice()].concat(), value));
    }
    Ok(())
}

/// Writes a file with its header; gives the bytes of content.
fn content(
    file: &File,
    stat: &FileStat,
    mut entry: Entry,
    name: Vec<u8>,
    out: &mut impl Write,
    object: &impl Fn() -> String,
) -> Result<u64> {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let stored = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    let extents = if stored < size { extents(file, size).map_err(at("find the holes of", object()))? } else { None };
    let Some(extents) = extents else {
        entry.size = size;
        entry.write(out, &name)?;
        copy(file, 0, size, out, object)?;
        pad(size, out)?;
        return Ok(size);
    };
    let mut map = format!("{}\n", extents.len());
    let mut data = 0_u64;
    for (offset, length) in &extents {
        map.push_str(&format!("{offset}\n{length}\n"));
        data = data.saturating_add(*length);
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(512), 0);
    for (key, value) in [
        ("GNU.sparse.major", "1".to_owned()),
        ("GNU.sparse.minor", "0".to_owned()),
        ("GNU.sparse.realsize", size.to_string()),
    ] {
        entry.records.push((key.as_bytes().to_vec(), value.into_bytes()));
    }
    entry.records.push((b"GNU.sparse.name".to_vec(), name.clone()));
    entry.size = data.saturating_add(map.len() as u64);
    entry.write(out, &name)?;
    out.write_all(&map).map_err(io_at("write", "the archive"))?;
    for (offset, length) in extents {
        copy(file, offset, length, out, object)?;
    }
    pad(data, out)?;
    Ok(data)
}

/// Where a file has data, offset and length in bytes; `None` when it has no holes after all, or the file system cannot
/// tell.
fn extents(file: &File, size: u64) -> core::result::Result<Option<Vec<(u64, u64)>>, Errno> {
    let mut list = Vec::new();
    let mut position = 0_u64;
    while position < size {
        let seek = |from: u64, whence| lseek64(file, i64::try_from(from).unwrap_or(i64::MAX), whence);
        let start = match seek(position, Whence::SeekData) {
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL) => return Ok(None),
            other => u64::try_from(other?).unwrap_or(size),
        };
        let end = u64::try_from(seek(start, Whence::SeekHole)?).unwrap_or(size).min(size);
        if start >= end {
            break;
        }
        list.push((start, end.saturating_sub(start)));
        position = end;
    }
    Ok(if list == [(0, size)] { None } else { Some(list) })
}

fn copy(file: &File, offset: u64, length: u64, out: &mut impl Write, object: &impl Fn() -> String) -> Result<()> {
    let mut buffer = vec![0_u8; usize::try_from(length.min(256 << 10)).unwrap_or(0)];
    let (mut position, mut left) = (offset, length);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let room = buffer.get_mut(..most).unwrap_or_default();
        let count = file.read_at(room, position).map_err(io_at("read", object()))?;
        if count == 0 {
            return Err(changed(object));
        }
        out.write_all(room.get(..count).unwrap_or_default()).map_err(io_at("write", "the archive"))?;
        position = position.saturating_add(count as u64);
        left = left.saturating_sub(count as u64);
    }
    Ok(())
}

fn pad(size: u64, out: &mut impl Write) -> Result<()> {
    let rest = usize::try_from(size.next_multiple_of(512).saturating_sub(size)).unwrap_or(0);
    out.write_all([0; 512].get(..rest).unwrap_or_default()).map_err(io_at("write", "the archive"))
}

struct Entry {
    kind: EntryType,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    size: u64,
    link: Vec<u8>,
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    fn write(mut self, out: &mut impl Write, name: &[u8]) -> Result<()> {
        let mut record = |key: &str, value: Vec<u8>| self.records.push((key.as_bytes().to_vec(), value));
        if name.len() > LONGEST_NAME {
            record("path", name.to_vec());
        }
        if self.link.len() > LONGEST_NAME {
            record("linkpath", self.link.clone());
        }
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if id > LARGEST_ID {
                record(key, id.to_string().into_bytes());
            }
        }
        if self.size > LARGEST_SIZE {
            record("size", self.size.to_string().into_bytes());
        }
        let (seconds, nanoseconds) = self.mtime;
        if seconds < 0 || nanoseconds != 0 || seconds.unsigned_abs() > LARGEST_SIZE {
            record("mtime", decimal(seconds, nanoseconds).into_bytes());
        }
        if !self.records.is_empty() {
            let text = records(&self.records);
            let header = header(EntryType::XHeader, b"pax", b"", text.len() as u64, 0o644, (0, 0), 0);
            out.write_all(header.as_bytes())
                .and_then(|()| out.write_all(&text))
                .map_err(io_at("write", "the archive"))?;
            pad(text.len() as u64, out)?;
        }
        let owner = (self.uid.min(LARGEST_ID), self.gid.min(LARGEST_ID));
        let size = self.size.min(LARGEST_SIZE);
        let mtime = u64::try_from(seconds).unwrap_or(0).min(LARGEST_SIZE);
        let header = header(self.kind, name, &self.link, size, self.mode, owner, mtime);
        out.write_all(header.as_bytes()).map_err(io_at("write", "the archive"))
    }
}

fn header(kind: EntryType, name: &[u8], link: &[u8], size: u64, mode: u32, owner: (u32, u32), mtime: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(owner.0.into());
    header.set_gid(owner.1.into());
    header.set_mtime(mtime);
    let old = header.as_old_mut();
    // A name that does not fit is cut: the pax record before has it.
    for (field, text) in [(&mut old.name, name), (&mut old.linkname, link)] {
        let length = text.len().min(LONGEST_NAME);
        if let (Some(to), Some(from)) = (field.get_mut(..length), text.get(..length)) {
            to.copy_from_slice(from);
        }
    }
    header.set_cksum();
    header
}

/// Seconds and nanoseconds as a decimal number.
fn decimal(seconds: i64, nanoseconds: u32) -> String {
    let (sign, whole, fraction) = if seconds < 0 && nanoseconds > 0 {
        ("-", seconds.saturating_add(1).unsigned_abs(), 1_000_000_000_u32.saturating_sub(nanoseconds))
    } else {
        (if seconds < 0 { "-" } else { "" }, seconds.unsigned_abs(), nanoseconds)
    };
    let text = format!("{sign}{whole}.{fraction:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Records of an extended header: each begins with its own length in bytes, that number included.
fn records(list: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in list {
        let body = key.len().saturating_add(value.len()).saturating_add(3);
        let mut length = body;
        loop {
            let with = body.saturating_add(length.to_string().len());
            if with == length {
                break;
            }
            length = with;
        }
        text.extend_from_slice(length.to_string().as_bytes());
        text.push(b' ');
        text.extend_from_slice(key);
        text.push(b'=');
        text.extend_from_slice(value);
        text.push(b'\n');
    }
    text
}

/// Everything of a reader, for documents that are put into an archive.
///
/// # Errors
/// Reading or writing failed.
pub fn add_file(out: &mut impl Write, name: &str, size: u64, mut from: impl Read) -> Result<()> {
    let header = header(EntryType::Regular, name.as_bytes(), b"", size, 0o644, (0, 0), 0);
    out.write_all(header.as_bytes()).map_err(io_at("write", "the archive"))?;
    let copied = std::io::copy(&mut from, out).map_err(io_at("write", "the archive"))?;
    if copied != size {
        return Err(Error::new(70, format!("{name} has {copied} bytes, not {size}")));
    }
    pad(size, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::archive::{Kind, list};
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn what_is_packed_is_read_back() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path();
        let long = "d".repeat(90);
        std::fs::create_dir_all(top.join(&long).join("x".repeat(90))).unwrap();
        std::fs::write(top.join("plain"), "content").unwrap();
        std::fs::set_permissions(top.join("plain"), std::fs::Permissions::from_mode(0o4751)).unwrap();
        std::fs::hard_link(top.join("plain"), top.join("second")).unwrap();
        symlink("t".repeat(150), top.join("link")).unwrap();
        nix::unistd::mkfifo(&top.join("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
        let sparse = File::create(top.join("sparse")).unwrap();
        sparse.write_all_at(b"end", 1 << 20).unwrap();
        sparse.set_len(2 << 20).unwrap();
        let _ = std::os::unix::net::UnixListener::bind(top.join("socket")).unwrap();
        let mut out = Vec::new();
        let root = OwnedFd::from(File::open(top).unwrap());
        let done = pack(&root, &mut out, |_, _| Some(3_000_000), |_| ()).unwrap();
        assert_eq!(done.left_out, 1);
        let members = list(&out).unwrap();
        let find = |name: &[u8]| members.iter().find(|member| member.name == name).unwrap();
        assert_eq!(members[0].name, b"./");
        let plain = find(b"plain");
        assert_eq!((plain.mode, plain.uid, plain.size), (0o4751, 3_000_000, 7));
        assert_eq!(find(b"second").kind, Kind::Hardlink(b"plain".to_vec()));
        assert_eq!(find(b"link").kind, Kind::Symlink(vec![b't'; 150]));
        assert_eq!(find(b"fifo").kind, Kind::Fifo);
        assert_eq!(find(b"sparse").size, 2 << 20);
        assert!(find(b"sparse").sparse.as_ref().is_some_and(|map| map.len() == 1));
        assert!(out.len() < 64 << 10, "holes are not written");
        let deep = format!("{long}/{}/", "x".repeat(90));
        assert_eq!(find(deep.as_bytes()).kind, Kind::Directory);
        assert!(pack(&root, std::io::sink(), |_, _| None, |_| ()).unwrap_err().text.contains("outside the map"));
    }

    #[test]
    fn times_are_written_as_decimal_numbers() {
        assert_eq!(decimal(1, 500_000_000), "1.5");
        assert_eq!(decimal(-2, 750_000_000), "-1.25");
        assert_eq!(decimal(-3, 0), "-3");
        assert_eq!(decimal(1_000, 0), "1000");
    }
}
