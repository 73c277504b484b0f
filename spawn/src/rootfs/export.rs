//! `rootfs export`: a container's tree as a tar or an OCI layout, with the ids that it has inside.

#![forbid(unsafe_code)]

use super::container::{Container, User};
use super::digest::{Digest, Hasher, of};
use super::error::{Error, Result, USAGE, at, io_at};
use super::guest::{self, Init};
use super::map::Map;
use super::namespace::{self, Ids};
use super::pack::{self, Packed};
use super::progress::Progress;
use super::root::Root;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One tar.
    Tar,
    /// A directory in OCI's image layout, one layer.
    Oci,
}

/// How it is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressed {
    /// Not.
    None,
    /// gzip, level 6.
    Gzip,
    /// zstd, level 3.
    Zstd,
}

#[derive(Serialize, Deserialize)]
struct Written {
    packed: Packed,
    plain_digest: String,
    digest: String,
    size: u64,
    architecture: String,
    has_init: bool,
}

/// Writes a container to `output` (`-`: standard output).
///
/// # Errors
/// The output exists, a file has ids outside the map, or changes meanwhile; or a system call failed.
pub fn export(
    user: &User,
    container: &Container,
    output: &Path,
    format: Format,
    pressed: Pressed,
    quiet: bool,
) -> Result<Packed> {
    let map = container.map(user)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let tree =
        nix::fcntl::open(&container.rootfs, flags, Mode::empty()).map_err(at("open", container.rootfs.display()))?;
    match format {
        Format::Tar if output.as_os_str() == "-" => {
            let out = io::stdout().as_fd().try_clone_to_owned().map_err(io_at("use", "standard output"))?;
            if io::IsTerminal::is_terminal(&out) {
                return Err(Error::new(USAGE, "standard output is a terminal: name a file, or pipe it on"));
            }
            Ok(write(&map, tree, File::from(out), pressed, quiet)?.packed)
        }
        Format::Tar => {
            let partial = beside(output);
            let out = File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial);
            let out = out.map_err(io_at("create", partial.display()))?;
            let result = write(&map, tree, out, pressed, quiet);
            let result = result.and_then(|written| {
                std::fs::rename(&partial, output).map_err(io_at("rename to", output.display()))?;
                Ok(written.packed)
            });
            if result.is_err() {
                let _ = std::fs::remove_file(&partial);
            }
            result
        }
        Format::Oci => {
            if output.as_os_str() == "-" {
                return Err(Error::new(USAGE, "an OCI layout is a directory: name one that does not exist yet"));
            }
            if std::fs::symlink_metadata(output).is_ok() {
                return Err(Error::data(format!("{} exists already", output.display())));
            }
            let partial = beside(output);
            let _ = std::fs::remove_dir_all(&partial);
            let result = layout(container, &map, tree, &partial, pressed, quiet);
            let result = result.and_then(|packed| {
                std::fs::rename(&partial, output).map_err(io_at("rename to", output.display()))?;
                Ok(packed)
            });
            if result.is_err() {
                let _ = std::fs::remove_dir_all(&partial);
            }
            result
        }
    }
}

fn beside(output: &Path) -> PathBuf {
    let name = output.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    output.with_file_name(format!(".{name}.partial"))
}

/// A writer that hashes and counts.
struct Hashing<W> {
    inner: W,
    hasher: Hasher,
    bytes: u64,
    count: Option<Arc<AtomicU64>>,
}

impl<W> Hashing<W> {
    fn new(inner: W, count: Option<Arc<AtomicU64>>) -> Self {
        Self { inner, hasher: Hasher::sha256(), bytes: 0, count }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hasher.update(buffer.get(..written).unwrap_or_default());
        self.bytes = self.bytes.saturating_add(written as u64);
        if let Some(count) = &self.count {
            count.fetch_add(written as u64, Ordering::Relaxed);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn write(map: &Map, tree: OwnedFd, out: File, pressed: Pressed, quiet: bool) -> Result<Written> {
    let ids = Ids::of(map)?;
    namespace::run(&ids, || {
        let count = Arc::new(AtomicU64::new(0));
        let mut progress = Progress::new(quiet, None, Arc::clone(&count));
        let root =
            Root::new(tree.try_clone().map_err(io_at("duplicate", "a descriptor"))?).map_err(at("stat", "rootfs"))?;
        let guest = guest::look(&root);
        let id = |kind, host| map.to_container(kind, host);
        let file = Hashing::new(BufWriter::with_capacity(256 << 10, out), None);
        let tick = |packed: &Packed| progress.tick(packed.files);
        let failed = || io_at("write", "the archive");
        let (packed, plain, mut file) = match pressed {
            Pressed::None => {
                let mut plain = Hashing::new(file, Some(count));
                let packed = pack::pack(&tree, &mut plain, id, tick)?;
                (packed, plain.hasher.finish(), plain.inner)
            }
            Pressed::Gzip => {
                let encoder = flate2::write::GzEncoder::new(file, flate2::Compression::default());
                let mut plain = Hashing::new(encoder, Some(count));
                let packed = pack::pack(&tree, &mut plain, id, tick)?;
                (packed, plain.hasher.finish(), plain.inner.finish().map_err(failed())?)
            }
            Pressed::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(file, 3).map_err(failed())?;
                encoder.include_checksum(true).map_err(failed())?;
                let mut plain = Hashing::new(encoder, Some(count));
                let packed = pack::pack(&tree, &mut plain, id, tick)?;
                (packed, plain.hasher.finish(), plain.inner.finish().map_err(failed())?)
            }
        };
        file.flush().map_err(failed())?;
        progress.done();
        Ok(Written {
            packed,
            plain_digest: plain.to_string(),
            size: file.bytes,
            digest: file.hasher.finish().to_string(),
            architecture: go_architecture(guest.machine.as_deref()).to_owned(),
            has_init: guest.init != Init::None,
        })
    })
}

/// `uname -m`'s word in Go's.
fn go_architecture(machine: Option<&str>) -> &str {
    match machine {
        Some("x86_64") => "amd64",
        Some("i686") => "386",
        Some("aarch64") => "arm64",
        Some("armv7l") => "arm",
        Some(other) => other,
        None => match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        },
    }
}

fn layout(
    container: &Container,
    map: &Map,
    tree: OwnedFd,
    directory: &Path,
    pressed: Pressed,
    quiet: bool,
) -> Result<Packed> {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).map_err(io_at("make the directory", blobs.display()))?;
    let layer = blobs.join("layer");
    let out = File::create(&layer).map_err(io_at("create", layer.display()))?;
    let written = write(map, tree, out, pressed, quiet)?;
    let digest = Digest::parse(&written.digest)?;
    std::fs::rename(&layer, blobs.join(digest.hex())).map_err(io_at("rename", layer.display()))?;
    let media_type = match pressed {
        Pressed::None => "application/vnd.oci.image.layer.v1.tar",
        Pressed::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Pressed::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    };
    let settings = container.settings()?;
    let command: Vec<String> = match settings.last("lxc.init.cmd") {
        Some(command) => command.split_ascii_whitespace().map(str::to_owned).collect(),
        None if written.has_init => vec!["/sbin/init".to_owned()],
        None => Vec::new(),
    };
    let blob = |value: &serde_json::Value| -> Result<(String, usize)> {
        let text = value.to_string();
        let digest = of(text.as_bytes());
        let path = blobs.join(digest.hex());
        std::fs::write(&path, &text).map_err(io_at("write", path.display()))?;
        Ok((digest.to_string(), text.len()))
    };
    let (config, config_size) = blob(&json!({
        "architecture": written.architecture,
        "os": "linux",
        "config": { "Env": settings.all("lxc.environment"), "Cmd": command },
        "rootfs": { "type": "layers", "diff_ids": [written.plain_digest] },
        "history": [{ "created_by": "rootfs export" }],
    }))?;
    let (manifest, manifest_size) = blob(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size },
        "layers": [{ "mediaType": media_type, "digest": written.digest, "size": written.size }],
    }))?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest,
            "size": manifest_size,
            "platform": { "os": "linux", "architecture": written.architecture },
            "annotations": { "org.opencontainers.image.ref.name": "latest" },
        }],
    });
    for (name, text) in [("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })), ("index.json", index)] {
        let path = directory.join(name);
        std::fs::write(&path, text.to_string()).map_err(io_at("write", path.display()))?;
    }
    Ok(written.packed)
}
