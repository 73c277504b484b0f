//! Input as a stream of plain bytes: found by its content to be gzip, xz, zstd, bzip2 or none, decompressed by a thread
//! of its own, digests computed on both sides, and counted for the progress bar.

#![forbid(unsafe_code)]

use super::digest::{Digest, Hasher};
use super::error::{Error, Result};
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

/// Bytes that travel between threads at once.
const CHUNK: usize = 256 << 10;

/// Chunks that wait at most between two threads: 1 MiB.
const WAITING: usize = 4;

/// Memory in bytes that the xz decoder may take: a dictionary of 128 MiB, twice what `xz -9` makes.
const XZ_MEMORY: u64 = 160 << 20;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// .xz
    Xz,
    /// RFC 8878.
    Zstd,
    /// .bz2
    Bzip2,
}

impl Compression {
    /// By the first bytes (six are enough).
    #[must_use]
    pub fn of(start: &[u8]) -> Self {
        if start.starts_with(&[0x1f, 0x8b]) {
            Self::Gzip
        } else if start.starts_with(b"\xfd7zXZ\0") {
            Self::Xz
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
            || (start.get(1..4) == Some(&[0x2a, 0x4d, 0x18]) && start.first().is_some_and(|byte| byte & 0xf0 == 0x50))
        {
            Self::Zstd
        } else if start.starts_with(b"BZh") && start.get(3).is_some_and(u8::is_ascii_digit) {
            Self::Bzip2
        } else {
            Self::None
        }
    }

    /// The name, for messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "not compressed",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
        }
    }
}

/// What is wanted of a stream.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Name for messages.
    pub name: String,
    /// Digest of the bytes as they come, compressed or not.
    pub digest: Option<Digest>,
    /// Number of those bytes.
    pub size: Option<u64>,
    /// Digest of the plain bytes.
    pub plain_digest: Option<Digest>,
}

/// A file, or a part of one, read without moving its position: several can read one file.
#[derive(Debug)]
pub struct Part {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Part {
    /// `length` bytes from `at` on.
    #[must_use]
    pub const fn new(file: Arc<File>, at: u64, length: u64) -> Self {
        Self { file, at, left: length }
    }
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(buffer.get_mut(..most).unwrap_or_default(), self.at)?;
        if count == 0 && most != 0 {
            return Err(Error::data("the file ends before the part that was announced").into());
        }
        self.at = self.at.saturating_add(count as u64);
        self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }
}

/// Plain bytes. Read to the end and call [`Stream::finish`]: before that nothing is verified.
pub struct Stream {
    chunk: Vec<u8>,
    used: usize,
    chunks: Option<Receiver<io::Result<Vec<u8>>>>,
    /// Where a chunk goes that has been read, to be filled again: fresh memory costs more than what is copied into it.
    spent: Sender<Vec<u8>>,
    threads: Vec<JoinHandle<()>>,
    compression: Compression,
}

impl Stream {
    /// Starts the threads that read `input`. `count` is raised by the bytes as they come.
    ///
    /// # Errors
    /// The first bytes cannot be read, or a thread cannot be started.
    pub fn open(mut input: Box<dyn Read + Send>, expected: &Expected, count: Arc<AtomicU64>) -> Result<Self> {
        let name = expected.name.clone();
        let failed = |error| super::error::from_io("read", &name, error);
        let mut start = vec![0_u8; 512];
        let length = read_full(&mut input, &mut start).map_err(failed)?;
        start.truncate(length);
        let compression = Compression::of(&start);
        let raw = Raw {
            start: io::Cursor::new(start),
            input,
            hasher: expected.digest.as_ref().map(Digest::start),
            seen: 0,
            expected: expected.clone(),
            count,
            done: false,
        };
        let (send, receive) = sync_channel(WAITING);
        let (spent, spare) = channel();
        let mut threads = vec![thread("read", move || decompress(raw, compression, &spare, &send))?];
        let chunks = match expected.plain_digest.clone() {
            // Without compression the same bytes have both digests: one of the two is enough when they are equal.
            Some(digest) if compression != Compression::None || expected.digest.as_ref() != Some(&digest) => {
                let (send, hashed) = sync_channel(WAITING);
                threads.push(thread("digest", move || hash(&receive, digest, &name, &send))?);
                hashed
            }
            _ => receive,
        };
        Ok(Self { chunk: Vec::new(), used: 0, chunks: Some(chunks), spent, threads, compression })
    }

    /// How the input was compressed.
    #[must_use]
    pub const fn compression(&self) -> Compression {
        self.compression
    }

    /// Reads what is left and makes sure that every digest and size was right.
    ///
    /// # Errors
    /// The digest, the size or the compressed stream is wrong.
    pub fn finish(mut self) -> io::Result<()> {
        loop {
            let length = self.fill_buf()?.len();
            if length == 0 {
                break;
            }
            self.consume(length);
        }
        self.chunks = None;
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| io::Error::other("a reading thread has panicked"))?;
        }
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let count = ready.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), ready.get(..count)) {
            to.copy_from_slice(from);
        }
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Stream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.used >= self.chunk.len() {
            match self.chunks.as_ref().map(Receiver::recv) {
                Some(Ok(chunk)) => {
                    let spent = std::mem::replace(&mut self.chunk, chunk?);
                    self.used = 0;
                    // Nobody wants it at the end.
                    let _ = self.spent.send(spent);
                }
                // The sender is gone: the end.
                _ => return Ok(&[]),
            }
        }
        Ok(self.chunk.get(self.used..).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.used = self.used.saturating_add(count);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // The senders then fail and their threads end; one that waits for a pipe ends with the process.
        self.chunks = None;
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let builder = std::thread::Builder::new().name(name.to_owned()).stack_size(512 << 10);
    builder.spawn(work).map_err(super::error::io_at("start", "a thread"))
}

/// Reads until `buffer` is full or the input ends.
///
/// # Errors
/// The input's own.
pub fn read_full(input: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0_usize;
    while let Some(room) = buffer.get_mut(length..).filter(|room| !room.is_empty()) {
        match input.read(room) {
            Ok(0) => break,
            Ok(count) => length = length.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// The bytes as they come: counted, hashed, and compared at their end.
struct Raw {
    start: io::Cursor<Vec<u8>>,
    input: Box<dyn Read + Send>,
    hasher: Option<Hasher>,
    seen: u64,
    expected: Expected,
    count: Arc<AtomicU64>,
    done: bool,
}

impl Read for Raw {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let count = match self.start.read(buffer)? {
            0 => self.input.read(buffer)?,
            count => count,
        };
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        self.seen = self.seen.saturating_add(count as u64);
        if self.expected.size.is_some_and(|size| self.seen > size) {
            return Err(self.wrong(format!("longer than the {} bytes announced", self.expected.size.unwrap_or(0))));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(buffer.get(..count).unwrap_or_default());
        }
        if count == 0 && !self.done {
            self.done = true;
            if let Some(size) = self.expected.size.filter(|size| *size != self.seen) {
                return Err(self.wrong(format!("has {} bytes where {size} were announced", self.seen)));
            }
            if let (Some(hasher), Some(digest)) = (self.hasher.take(), &self.expected.digest) {
                let found = hasher.finish();
                if found != *digest {
                    return Err(self.wrong(format!("has digest {found}, not {digest}: damaged or tampered with")));
                }
            }
        }
        Ok(count)
    }
}

impl Raw {
    fn wrong(&self, why: String) -> io::Error {
        Error::data(format!("{} {why}", self.expected.name)).into()
    }
}

type Chunks = SyncSender<io::Result<Vec<u8>>>;

fn decompress(raw: Raw, compression: Compression, spare: &Receiver<Vec<u8>>, to: &Chunks) {
    let name = raw.expected.name.clone();
    let mut input = io::BufReader::with_capacity(CHUNK, raw);
    let result = match compression {
        Compression::None => pump(&mut input, spare, to),
        Compression::Gzip => pump(&mut flate2::bufread::MultiGzDecoder::new(&mut input), spare, to),
        Compression::Bzip2 => pump(&mut bzip2::bufread::MultiBzDecoder::new(&mut input), spare, to),
        Compression::Xz => liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)
            .map_err(io::Error::from)
            .and_then(|stream| pump(&mut liblzma::bufread::XzDecoder::new_stream(&mut input, stream), spare, to)),
        Compression::Zstd => zstd::stream::read::Decoder::with_buffer(&mut input).and_then(|mut decoder| {
            // 128 MiB, zstd's own default, written down.
            decoder.window_log_max(27)?;
            pump(&mut decoder, spare, to)
        }),
    };
    // What is behind the compressed stream belongs to the digest as well.
    let result = result.and_then(|()| io::copy(&mut input, &mut io::sink()).map(drop));
    if let Err(error) = result {
        let told = error.get_ref().is_some_and(|inner| inner.is::<Error>());
        let error = if told || error.raw_os_error().is_some() {
            error
        } else if error.kind() == io::ErrorKind::UnexpectedEof {
            Error::data(format!("{name} is cut off in its {} data", compression.name())).into()
        } else {
            Error::data(format!("{name}: bad {} data: {error}", compression.name())).into()
        };
        // Nobody listens any more when the reader has given up first.
        let _ = to.send(Err(error));
    }
}

fn pump(from: &mut impl Read, spare: &Receiver<Vec<u8>>, to: &Chunks) -> io::Result<()> {
    loop {
        let mut chunk = spare.try_recv().unwrap_or_default();
        chunk.resize(CHUNK, 0);
        let length = read_full(from, &mut chunk)?;
        if length == 0 {
            return Ok(());
        }
        chunk.truncate(length);
        if to.send(Ok(chunk)).is_err() {
            return Ok(());
        }
    }
}

fn hash(from: &Receiver<io::Result<Vec<u8>>>, digest: Digest, name: &str, to: &Chunks) {
    let mut hasher = digest.start();
    for chunk in from {
        let failed = chunk.is_err();
        if let Ok(chunk) = &chunk {
            hasher.update(chunk);
        }
        if to.send(chunk).is_err() || failed {
            return;
        }
    }
    let found = hasher.finish();
    if found != digest {
        let why = format!("{name} unpacks to digest {found}, not {digest}: damaged or tampered with");
        let _ = to.send(Err(Error::data(why).into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::digest;
    use std::io::Write;

    fn text() -> Vec<u8> {
        (0..150_000_u32).flat_map(u32::to_le_bytes).collect()
    }

    fn packed(compression: Compression) -> Vec<u8> {
        let text = text();
        let mut out = Vec::new();
        match compression {
            Compression::None => out = text,
            Compression::Gzip => {
                // Two members, as pigz and concatenation make them.
                for half in text.chunks(text.len() / 2) {
                    let mut writer = flate2::write::GzEncoder::new(&mut out, flate2::Compression::fast());
                    writer.write_all(half).unwrap();
                    writer.finish().unwrap();
                }
            }
            Compression::Xz => {
                let mut writer = liblzma::write::XzEncoder::new(&mut out, 0);
                writer.write_all(&text).unwrap();
                writer.finish().unwrap();
            }
            Compression::Zstd => {
                // As zstd(1) does by itself.
                let mut writer = zstd::Encoder::new(&mut out, 1).unwrap();
                writer.include_checksum(true).unwrap();
                writer.write_all(&text).unwrap();
                writer.finish().unwrap();
            }
            Compression::Bzip2 => {
                let mut writer = bzip2::write::BzEncoder::new(&mut out, bzip2::Compression::fast());
                writer.write_all(&text).unwrap();
                writer.finish().unwrap();
            }
        }
        out
    }

    const ALL: [Compression; 5] =
        [Compression::None, Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Bzip2];

    fn unpack(bytes: Vec<u8>, expected: &Expected) -> io::Result<Vec<u8>> {
        let count = Arc::new(AtomicU64::new(0));
        let mut stream = Stream::open(Box::new(io::Cursor::new(bytes)), expected, count).map_err(io::Error::from)?;
        let mut out = Vec::new();
        stream.read_to_end(&mut out)?;
        stream.finish()?;
        Ok(out)
    }

    #[test]
    fn each_kind_is_found_by_content_and_both_digests_are_verified() {
        for compression in ALL {
            let bytes = packed(compression);
            assert_eq!(Compression::of(&bytes), compression);
            let right = Expected {
                name: "x".into(),
                digest: Some(digest::of(&bytes)),
                size: Some(bytes.len() as u64),
                plain_digest: Some(digest::of(&text())),
            };
            assert!(unpack(bytes.clone(), &right).unwrap() == text(), "{compression:?}");
            let other = Some(digest::of(b"other"));
            let wrong = [
                Expected { digest: other.clone(), ..right.clone() },
                Expected { plain_digest: other, ..right.clone() },
                Expected { size: Some(bytes.len() as u64 - 1), ..right.clone() },
                Expected { size: Some(bytes.len() as u64 + 1), ..right.clone() },
            ];
            for expected in wrong {
                let error = unpack(bytes.clone(), &expected).unwrap_err();
                assert!(error.get_ref().unwrap().is::<Error>(), "{compression:?}: {error}");
            }
        }
    }

    #[test]
    fn a_stream_that_is_cut_off_or_damaged_is_an_error() {
        for compression in ALL.into_iter().skip(1) {
            let bytes = packed(compression);
            let expected = Expected { name: "x".into(), ..Expected::default() };
            assert!(unpack(bytes[..bytes.len() / 2].to_vec(), &expected).is_err(), "{compression:?} cut");
            let mut damaged = bytes.clone();
            let middle = damaged.len() / 2;
            for byte in &mut damaged[middle..middle + 8] {
                *byte ^= 0xff;
            }
            assert!(unpack(damaged, &expected).is_err(), "{compression:?} damaged");
        }
    }
}
