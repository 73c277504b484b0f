//! The tar format: members with their names, numbers and attributes, whichever of the dialects (v7, ustar, GNU, pax,
//! star's extended attributes) wrote them.
//!
//! The fields of a header are decoded by the `tar` crate; this reader puts limits on what a header may claim, follows
//! pax sizes and sparse maps, and says at which byte an archive is wrong.

#![forbid(unsafe_code)]

use super::error::{Error, Result, from_io, shown};
use std::io::BufRead;
use tar::{EntryType, Header};

/// Size of a header and of what data is padded to, in bytes.
const BLOCK: usize = 512;

/// Longest name that the kernel takes, in bytes, its NUL included (PATH_MAX).
const LONGEST_NAME: u64 = 4096;

/// Longest set of extended headers before one member, in bytes. Attributes of 64 KiB fit many times.
const LONGEST_EXTENSION: u64 = 1 << 20;

/// Most extents of a sparse file.
const MOST_EXTENTS: usize = 1 << 20;

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link with its text.
    Symlink(Vec<u8>),
    /// A hard link to a name in the archive.
    Hardlink(Vec<u8>),
    /// A FIFO.
    Fifo,
    /// A character or block device.
    Device,
    /// Something that is no file: a volume label.
    Label,
    /// A type that no rootfs has; its letter.
    Other(u8),
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The name as written.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Mode bits, at most 07777.
    pub mode: u32,
    /// Owner. More than 32 bits are no id.
    pub uid: u64,
    /// Group. More than 32 bits are no id.
    pub gid: u64,
    /// Modification time: seconds since 1970, nanoseconds.
    pub mtime: (i64, u32),
    /// Size of the file in bytes, holes included.
    pub size: u64,
    /// Of a sparse file: where its data goes, offset and length in bytes, ascending.
    pub sparse: Option<Vec<(u64, u64)>>,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where its header stands in the archive, in bytes.
    pub offset: u64,
}

/// Reads members one after the other.
#[derive(Debug)]
pub struct Archive<R> {
    input: R,
    name: String,
    /// Bytes read.
    at: u64,
    /// Bytes of the present member's data that have not been read, padding apart.
    left: u64,
    padding: u64,
    ended: bool,
    global: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: BufRead> Archive<R> {
    /// An archive; `name` is for messages.
    pub fn new(input: R, name: &str) -> Self {
        Self { input, name: name.to_owned(), at: 0, left: 0, padding: 0, ended: false, global: Vec::new() }
    }

    /// The input, wherever it stands.
    pub fn into_input(self) -> R {
        self.input
    }

    /// Bytes of the archive read so far: after [`Archive::next`], where the member's data begins.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.at
    }

    /// Bytes of the present member's data that are left, as stored.
    #[must_use]
    pub const fn left(&self) -> u64 {
        self.left
    }

    fn wrong(&self, at: u64, why: &str) -> Error {
        Error::data(format!("{}: byte {at}: {why}", self.name))
    }

    /// Fills `buffer`; `false` when the input ended before its first byte.
    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<bool> {
        let mut length = 0_usize;
        while let Some(room) = buffer.get_mut(length..).filter(|room| !room.is_empty()) {
            match self.input.read(room) {
                Ok(0) if length == 0 => return Ok(false),
                Ok(0) => {
                    return Err(
                        self.wrong(self.at.saturating_add(length as u64), &format!("the archive ends within {what}"))
                    );
                }
                Ok(count) => length = length.saturating_add(count),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(from_io("read", &self.name, error)),
            }
        }
        self.at = self.at.saturating_add(length as u64);
        Ok(true)
    }

    fn skip(&mut self, mut count: u64, what: &str) -> Result<()> {
        while count > 0 {
            let ready = self.input.fill_buf().map_err(|error| from_io("read", &self.name, error))?.len();
            if ready == 0 {
                return Err(self.wrong(self.at, &format!("the archive ends within {what}")));
            }
            let step = usize::try_from(count).unwrap_or(usize::MAX).min(ready);
            self.input.consume(step);
            self.at = self.at.saturating_add(step as u64);
            count = count.saturating_sub(step as u64);
        }
        Ok(())
    }

    /// Passes over the present member's data, and the padding behind it, by another way than reading.
    ///
    /// # Errors
    /// `pass`'s own.
    pub fn skip_by(&mut self, pass: impl FnOnce(&mut R, i64) -> std::io::Result<()>) -> Result<()> {
        let rest = self.left.saturating_add(self.padding);
        let step = i64::try_from(rest).map_err(|_| self.wrong(self.at, "a size beyond any file"))?;
        pass(&mut self.input, step).map_err(|error| from_io("seek in", &self.name, error))?;
        self.at = self.at.saturating_add(rest);
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// The next piece of the present member's data, as much as is at hand; empty at its end. Take it with
    /// [`Archive::consume`].
    ///
    /// # Errors
    /// The archive ends first (65), or cannot be read.
    pub fn data(&mut self) -> Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let (at, name) = (self.at, &self.name);
        let ready = self.input.fill_buf().map_err(|error| from_io("read", name, error))?;
        if ready.is_empty() {
            let text = format!("{name}: byte {at}: the archive ends within a member, {} bytes too early", self.left);
            return Err(Error::data(text));
        }
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(ready.len());
        Ok(ready.get(..length).unwrap_or_default())
    }

    /// Takes `count` bytes of what [`Archive::data`] gave.
    pub fn consume(&mut self, count: usize) {
        self.input.consume(count);
        self.at = self.at.saturating_add(count as u64);
        self.left = self.left.saturating_sub(count as u64);
    }

    /// The present member's data in memory.
    ///
    /// # Errors
    /// It is longer than `limit` bytes, or as [`Archive::data`].
    pub fn read_data(&mut self, limit: u64) -> Result<Vec<u8>> {
        if self.left > limit {
            return Err(self.wrong(self.at, &format!("{} bytes where at most {limit} make sense", self.left)));
        }
        let mut out = Vec::new();
        loop {
            let piece = self.data()?;
            if piece.is_empty() {
                return Ok(out);
            }
            out.extend_from_slice(piece);
            let length = piece.len();
            self.consume(length);
        }
    }

    /// The next member; `None` at the end. What is left of the one before is passed over.
    ///
    /// # Errors
    /// The archive is wrong (65), with the byte where; or cannot be read.
    #[expect(clippy::should_implement_trait, reason = "an Iterator could not give errors and data both")]
    pub fn next(&mut self) -> Result<Option<Member>> {
        if self.ended {
            return Ok(None);
        }
        let rest = self.left.saturating_add(self.padding);
        self.left = 0;
        self.padding = 0;
        self.skip(rest, "a member")?;
        let mut long_name = None;
        let mut long_link = None;
        let mut pax: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        loop {
            let offset = self.at;
            let mut block = [0_u8; BLOCK];
            let what = if offset == 0 { "its first header: this is no tar archive" } else { "a header" };
            if !self.fill(&mut block, what)? {
                if long_name.is_some() || long_link.is_some() || !pax.is_empty() {
                    return Err(self.wrong(offset, "the archive ends after an extended header"));
                }
                self.ended = true;
                return Ok(None);
            }
            if block.iter().all(|byte| *byte == 0) {
                // The end is two such blocks; one alone, and none at all, are taken for it too.
                self.ended = true;
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            self.check(header, offset)?;
            let number = |field: std::io::Result<u64>, name: &str| {
                field.map_err(|_| self.wrong(offset, &format!("the field {name} of the header is no number")))
            };
            let size = number(header.entry_size(), "size")?;
            match header.entry_type() {
                EntryType::GNULongName => long_name = Some(self.text(size, "a long name")?),
                EntryType::GNULongLink => long_link = Some(self.text(size, "a long link")?),
                EntryType::XHeader => {
                    let text = self.extension(size, LONGEST_EXTENSION, "an extended header")?;
                    pax.extend(records(&text).map_err(|why| self.wrong(offset, why))?);
                }
                EntryType::XGlobalHeader => {
                    let text = self.extension(size, LONGEST_EXTENSION, "a global header")?;
                    let found = records(&text).map_err(|why| self.wrong(offset, why))?;
                    // A name, a size or a map for every member makes no sense.
                    let every = |key: &[u8]| matches!(key, b"mtime" | b"uid" | b"gid");
                    self.global.extend(found.into_iter().filter(|(key, _)| every(key)));
                }
                _ => {
                    let merged = self.global.iter().cloned().chain(pax).collect::<Vec<_>>();
                    return self.member(header, offset, size, long_name, long_link, merged).map(Some);
                }
            }
        }
    }

    fn check(&self, header: &Header, offset: u64) -> Result<()> {
        let wanted = header.cksum().map_err(|_| {
            self.wrong(
                offset,
                match offset {
                    0 => "this is no archive: a tar, OCI or docker archive or LXC image is wanted, packed by gzip, xz, zstd, bzip2 or not at all",
                    _ => "this is no tar header (no checksum)",
                },
            )
        })?;
        let bytes = header.as_bytes();
        let sum = |value: fn(u8) -> i64| -> i64 {
            bytes.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { value(*byte) }).sum()
        };
        // Old tars summed signed bytes.
        if [sum(i64::from), sum(|byte| i64::from(i8::from_ne_bytes([byte])))].contains(&i64::from(wanted)) {
            Ok(())
        } else {
            Err(self.wrong(offset, "this is no tar header, or a damaged one (wrong checksum)"))
        }
    }

    fn extension(&mut self, size: u64, limit: u64, what: &str) -> Result<Vec<u8>> {
        if size > limit {
            return Err(self.wrong(self.at, &format!("{what} of {size} bytes, where at most {limit} make sense")));
        }
        let mut text = vec![0_u8; usize::try_from(size).unwrap_or(0)];
        if size > 0 && !self.fill(&mut text, what)? {
            return Err(self.wrong(self.at, &format!("the archive ends before {what}")));
        }
        self.skip(padding(size), what)?;
        Ok(text)
    }

    fn text(&mut self, size: u64, what: &str) -> Result<Vec<u8>> {
        let mut text = self.extension(size, LONGEST_NAME, what)?;
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        text.truncate(end);
        Ok(text)
    }

    fn member(
        &mut self,
        header: &Header,
        offset: u64,
        header_size: u64,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        pax: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<Member> {
        let wrong = |why: &str| Error::data(format!("{}: byte {offset}: {why}", self.name));
        let number = |field: std::io::Result<u64>, name: &str| {
            field.map_err(|_| wrong(&format!("the field {name} of the header is no number")))
        };
        let find = |key: &str| pax.iter().rev().find(|(k, _)| k == key.as_bytes()).map(|(_, value)| value.as_slice());
        let decimal = |key: &str| match find(key) {
            None => Ok(None),
            Some(text) => match core::str::from_utf8(text).ok().and_then(|text| text.trim().parse::<u64>().ok()) {
                Some(number) => Ok(Some(number)),
                None => Err(wrong(&format!("the extended header {key} is no number"))),
            },
        };
        let name = find("GNU.sparse.name").or_else(|| find("path")).map(<[u8]>::to_vec).or(long_name);
        let name = name.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = find("linkpath").map(<[u8]>::to_vec).or(long_link);
        let link = link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned)).unwrap_or_default();
        for text in [&name, &link] {
            if text.len() as u64 >= LONGEST_NAME {
                let why = format!(
                    "a name of {} bytes ({}), where the kernel takes {}",
                    text.len(),
                    shown(text),
                    LONGEST_NAME - 1
                );
                return Err(wrong(&why));
            }
            if text.contains(&0) {
                return Err(wrong(&format!("a name with a NUL byte ({})", shown(text))));
            }
        }
        let stored = decimal("size")?.unwrap_or(header_size);
        let mtime = match find("mtime") {
            Some(text) => time(text).ok_or_else(|| wrong("the extended header mtime is no time"))?,
            None => (seconds(&header.as_old().mtime).ok_or_else(|| wrong("the field mtime is no number"))?, 0),
        };
        let kind = match header.entry_type() {
            // A v7 archive has directories as files whose name ends in a slash.
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse if name.ends_with(b"/") => {
                Kind::Directory
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(link),
            EntryType::Link => Kind::Hardlink(link),
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char | EntryType::Block => Kind::Device,
            other => match other.as_byte() {
                b'V' => Kind::Label,
                letter => Kind::Other(letter),
            },
        };
        // Only files have data; a hard link's size is that of the file it names, and some tars give directories one.
        let has_data =
            matches!(kind, Kind::File | Kind::Label | Kind::Other(_)) || header.entry_type() == EntryType::GNUSparse;
        let data = if has_data { stored } else { 0 };
        let mut member = Member {
            kind,
            mode: u32::try_from(number(header.mode().map(u64::from), "mode")? & 0o7777).unwrap_or(0),
            uid: decimal("uid")?.map_or_else(|| number(header.uid(), "uid"), Ok)?,
            gid: decimal("gid")?.map_or_else(|| number(header.gid(), "gid"), Ok)?,
            mtime,
            size: data,
            sparse: None,
            xattrs: xattrs(&pax),
            offset,
            name,
        };
        self.left = data;
        self.padding = padding(data);
        self.sparse(header, &pax, &mut member)?;
        Ok(member)
    }

    /// The map of a sparse file, in any of its four forms.
    fn sparse(&mut self, header: &Header, pax: &[(Vec<u8>, Vec<u8>)], member: &mut Member) -> Result<()> {
        let find = |key: &str| pax.iter().rev().find(|(k, _)| k == key.as_bytes()).map(|(_, value)| value.as_slice());
        let plain = |text: &[u8]| core::str::from_utf8(text).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let offset = member.offset;
        let bad = |archive: &Self| {
            archive.wrong(offset, &format!("{}: the map of the sparse file is wrong", shown(&member.name)))
        };
        let mut map: Vec<(u64, u64)> = Vec::new();
        let real;
        if header.entry_type() == EntryType::GNUSparse {
            let Some(gnu) = header.as_gnu() else { return Err(bad(self)) };
            real = gnu.real_size().map_err(|_| bad(self))?;
            let take = |list: &[tar::GnuSparseHeader], map: &mut Vec<(u64, u64)>| -> Option<()> {
                for extent in list.iter().filter(|extent| !extent.is_empty()) {
                    map.push((extent.offset().ok()?, extent.length().ok()?));
                }
                Some(())
            };
            take(&gnu.sparse, &mut map).ok_or_else(|| bad(self))?;
            let mut more = gnu.is_extended();
            // Extension blocks follow the header and are not part of the size.
            while more {
                let mut extension = tar::GnuExtSparseHeader::new();
                if map.len() > MOST_EXTENTS || !self.fill(extension.as_mut_bytes(), "a sparse map")? {
                    return Err(bad(self));
                }
                take(&extension.sparse, &mut map).ok_or_else(|| bad(self))?;
                more = extension.is_extended();
            }
        } else if find("GNU.sparse.major").is_some_and(|major| major == b"1") {
            real = find("GNU.sparse.realsize").and_then(plain).ok_or_else(|| bad(self))?;
            map = self.map_in_data().map_err(|error| if error.text.is_empty() { bad(self) } else { error })?;
        } else if let Some(size) = find("GNU.sparse.size").or_else(|| find("GNU.sparse.realsize")).and_then(plain) {
            real = size;
            let numbers: Option<Vec<u64>> = match find("GNU.sparse.map") {
                Some(list) => list.split(|byte| *byte == b',').filter(|text| !text.is_empty()).map(plain).collect(),
                None => {
                    let wanted = |key: &[u8]| matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes");
                    pax.iter().filter(|(key, _)| wanted(key)).map(|(_, value)| plain(value)).collect()
                }
            };
            let numbers = numbers.filter(|numbers| numbers.len() % 2 == 0).ok_or_else(|| bad(self))?;
            map = numbers.chunks_exact(2).filter_map(|pair| Some((*pair.first()?, *pair.last()?))).collect();
        } else {
            return Ok(());
        }
        let mut end = 0_u64;
        let mut total = 0_u64;
        for (at, length) in &map {
            if *at < end {
                return Err(bad(self));
            }
            end = at.checked_add(*length).filter(|end| *end <= real).ok_or_else(|| bad(self))?;
            total = total.saturating_add(*length);
        }
        if total != self.left || i64::try_from(real).is_err() {
            return Err(bad(self));
        }
        member.size = real;
        member.sparse = Some(map);
        Ok(())
    }

    /// Format 1.0: decimal lines at the start of the data, padded to a block. An empty error text: the map is wrong.
    fn map_in_data(&mut self) -> Result<Vec<(u64, u64)>> {
        let bad = || Error::data("");
        let mut numbers: Vec<u64> = Vec::new();
        let mut line: Vec<u8> = Vec::new();
        loop {
            let mut block = [0_u8; BLOCK];
            if self.left < BLOCK as u64 || !self.fill(&mut block, "a sparse map")? {
                return Err(bad());
            }
            self.left = self.left.saturating_sub(BLOCK as u64);
            for byte in block {
                if byte == b'\n' {
                    let number = core::str::from_utf8(&line).ok().and_then(|text| text.parse::<u64>().ok());
                    numbers.push(number.ok_or_else(bad)?);
                    line.clear();
                    let count = numbers.first().copied().unwrap_or(0);
                    if count > MOST_EXTENTS as u64 {
                        return Err(bad());
                    }
                    if numbers.len() as u64 == count.saturating_mul(2).saturating_add(1) {
                        let pairs = numbers.get(1..).unwrap_or_default().chunks_exact(2);
                        return Ok(pairs.filter_map(|pair| Some((*pair.first()?, *pair.last()?))).collect());
                    }
                } else if line.len() < 20 {
                    line.push(byte);
                } else {
                    return Err(bad());
                }
            }
        }
    }
}

fn padding(size: u64) -> u64 {
    size.checked_next_multiple_of(BLOCK as u64).map_or(0, |whole| whole.saturating_sub(size))
}

/// Keys and values of an extended header.
type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// The records of an extended header (pax(1)): `LENGTH KEY=VALUE\n`.
fn records(text: &[u8]) -> core::result::Result<Records, &'static str> {
    const WRONG: &str = "a damaged extended header";
    let mut list = Vec::new();
    let mut rest = text;
    // By hand: the tar crate's parser splits at newlines, which a value may hold.
    while !rest.is_empty() && rest.first() != Some(&0) {
        let blank = rest.iter().take(20).position(|byte| *byte == b' ').ok_or(WRONG)?;
        let digits = rest.get(..blank).unwrap_or_default();
        let length: usize = core::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).ok_or(WRONG)?;
        let record = rest.get(..length).filter(|record| record.len() > blank).ok_or(WRONG)?;
        if !record.ends_with(b"\n") {
            return Err(WRONG);
        }
        let body = record.get(blank.saturating_add(1)..length.saturating_sub(1)).ok_or(WRONG)?;
        let equals = body.iter().position(|byte| *byte == b'=').ok_or(WRONG)?;
        let (key, value) = body.split_at(equals);
        list.push((key.to_vec(), value.get(1..).unwrap_or_default().to_vec()));
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(list)
}

/// `SCHILY.xattr.NAME` as it is, `LIBARCHIVE.xattr.NAME` in base64 when the other is not there.
fn xattrs(pax: &[(Vec<u8>, Vec<u8>)]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut list: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (key, value) in pax {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            list.retain(|(other, _)| other != name);
            list.push((name.to_vec(), value.clone()));
        }
    }
    for (key, value) in pax {
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.")
            && !list.iter().any(|(other, _)| other == name)
            && let Some(value) = base64(value)
        {
            list.push((name.to_vec(), value));
        }
    }
    list
}

fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let (mut bits, mut count) = (0_u32, 0_u32);
    for byte in text.iter().filter(|byte| **byte != b'=' && !byte.is_ascii_whitespace()) {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from((bits >> count) & 0xff).ok()?);
        }
    }
    Some(out)
}

/// `-1.5`, `1234567890.123456789`: seconds and nanoseconds since.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = core::str::from_utf8(text).ok()?.trim();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = if whole.is_empty() || whole == "-" { 0 } else { whole.parse().ok()? };
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    match (negative, nanoseconds) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        _ => Some((seconds, nanoseconds)),
    }
}

/// A number field that may be negative: octal, or base-256 with the sign in the second highest bit.
fn seconds(field: &[u8; 12]) -> Option<i64> {
    let [first, rest @ ..] = field;
    if first & 0x80 != 0 {
        let start: i128 = if first & 0x40 != 0 { -1 } else { 0 };
        let low = i128::from(first & 0x3f);
        let start = if start < 0 { -64 + low } else { low };
        let value = rest.iter().fold(start, |value, byte| value * 256 + i128::from(*byte));
        return i64::try_from(value).ok();
    }
    let text = field.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = core::str::from_utf8(text).ok()?.trim();
    if text.is_empty() { Some(0) } else { i64::from_str_radix(text, 8).ok() }
}

/// For the tests and the fuzz target: reads an archive to its end and gives its members.
///
/// # Errors
/// As [`Archive::next`].
pub fn list(bytes: &[u8]) -> Result<Vec<Member>> {
    let mut archive = Archive::new(bytes, "archive");
    let mut members = Vec::new();
    while let Some(member) = archive.next()? {
        members.push(member);
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(name: &str, kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(1);
        header.set_gid(2);
        header.set_mtime(3);
        header.set_cksum();
        header
    }

    fn member(name: &str, kind: EntryType, data: &[u8]) -> Vec<u8> {
        let mut out = header(name, kind, data.len() as u64).as_bytes().to_vec();
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        out
    }

    fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
        let mut text = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let mut length = body + 1;
            while length != body + length.to_string().len() {
                length = body + length.to_string().len();
            }
            text.extend_from_slice(format!("{length} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        member("pax", EntryType::XHeader, &text)
    }

    #[test]
    fn pax_records_rule_over_the_header() {
        let archive = [
            pax(&[
                ("path", b"long\nname"),
                ("uid", b"70000"),
                ("mtime", b"-1.25"),
                ("size", b"3"),
                ("SCHILY.xattr.user.x", b"a\nb\0c=d"),
                ("LIBARCHIVE.xattr.user.y", b"aGk="),
            ]),
            member("short", EntryType::Regular, b"abc"),
            member("next", EntryType::Fifo, b""),
        ]
        .concat();
        let members = list(&archive).unwrap();
        assert_eq!(members.len(), 2);
        assert_eq!((members[0].name.as_slice(), members[0].uid, members[0].gid), (&b"long\nname"[..], 70000, 2));
        assert_eq!((members[0].mtime, members[0].size), ((-2, 750_000_000), 3));
        let xattrs = &members[0].xattrs;
        assert_eq!(xattrs[0], (b"user.x".to_vec(), b"a\nb\0c=d".to_vec()));
        assert_eq!(xattrs[1], (b"user.y".to_vec(), b"hi".to_vec()));
        assert_eq!(members[1].kind, Kind::Fifo);
    }

    #[test]
    fn a_pax_size_beyond_the_header_is_followed() {
        // The header says 0, the pax record says 600: what follows must not be taken for a header.
        let mut archive = pax(&[("size", b"600")]);
        archive.extend_from_slice(header("big", EntryType::Regular, 0).as_bytes());
        archive.extend_from_slice(&[b'x'; 1024]);
        archive.extend_from_slice(&member("after", EntryType::Regular, b""));
        let members = list(&archive).unwrap();
        assert_eq!(members.iter().map(|m| m.size).collect::<Vec<_>>(), [600, 0]);
    }

    #[test]
    fn long_names_of_gnu_are_read() {
        let name = "d/".repeat(100) + "f";
        let mut text = name.clone().into_bytes();
        text.push(0);
        let archive = [
            member("././@LongLink", EntryType::GNULongName, &text),
            member("././@LongLink", EntryType::GNULongLink, &text),
            member("cut", EntryType::Symlink, b""),
        ]
        .concat();
        let members = list(&archive).unwrap();
        assert_eq!(members[0].name, name.as_bytes());
        assert_eq!(members[0].kind, Kind::Symlink(name.into_bytes()));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let good = member("a", EntryType::Regular, b"abc");
        let mut damaged = [good.clone(), good.clone()].concat();
        damaged[1024 + 5] ^= 1;
        assert!(list(&damaged).unwrap_err().text.contains("byte 1024"));
        assert!(list(&good[..700]).unwrap_err().text.contains("byte 700"));
        assert!(list(&good[..300]).unwrap_err().text.contains("byte 300"));
        assert_eq!(list(&good).unwrap().len(), 1, "no end-of-archive block is fine");
        let huge = member("././@LongLink", EntryType::GNULongName, &[b'x'; 65536]);
        assert!(list(&huge).unwrap_err().text.contains("65536 bytes"));
        assert!(list(&pax(&[("path", &[b'x'; 65536])]).into_iter().chain(good.clone()).collect::<Vec<_>>()).is_err());
        assert!(list(&[b"not a tar archive".repeat(100)].concat()).unwrap_err().text.contains("byte 0"));
        let mut claims = header("bomb", EntryType::Regular, 1 << 40).as_bytes().to_vec();
        claims.extend_from_slice(&[0; 512]);
        assert!(list(&claims).unwrap_err().text.contains("ends within"));
        let mut claims = header("bomb", EntryType::XHeader, 1 << 40).as_bytes().to_vec();
        claims.extend_from_slice(&[0; 512]);
        assert!(list(&claims).unwrap_err().text.contains("make sense"));
    }

    #[test]
    fn negative_and_large_times_are_read() {
        assert_eq!(seconds(b"00000000017\0"), Some(15));
        assert_eq!(seconds(&[0xff; 12]), Some(-1));
        assert_eq!(seconds(&[0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]), Some(1 << 32));
        assert_eq!(time(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(time(b"-0.5"), Some((-1, 500_000_000)));
        assert_eq!(time(b"x"), None);
    }

    #[test]
    fn maps_of_sparse_files_are_checked() {
        let map = |text: &[u8]| {
            let mut data = text.to_vec();
            data.resize(512, 0);
            data.extend_from_slice(b"12345678");
            [
                pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.realsize", b"100"),
                    ("GNU.sparse.name", b"s"),
                ]),
                member("x", EntryType::Regular, &data),
            ]
            .concat()
        };
        let members = list(&map(b"2\n0\n4\n50\n4\n")).unwrap();
        assert_eq!((members[0].size, members[0].sparse.as_deref()), (100, Some(&[(0, 4), (50, 4)][..])));
        for bad in ["2\n50\n4\n0\n4\n", "1\n99\n8\n", "1\n0\n7\n", "99999999999\n", "x\n"] {
            assert!(list(&map(bad.as_bytes())).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics_or_hangs(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let _ = list(&bytes);
        }

        #[test]
        fn no_damage_panics(at in 0..3000_usize, byte: u8, cut in 0..3000_usize) {
            let mut archive = [
                pax(&[("path", b"p"), ("SCHILY.xattr.user.a", b"v")]),
                member("a", EntryType::Regular, b"abc"),
                member("b", EntryType::GNUSparse, b""),
            ].concat();
            let length = archive.len();
            archive[at % length] = byte;
            archive.truncate(cut.max(1));
            let _ = list(&archive);
        }
    }
}
