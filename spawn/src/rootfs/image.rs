//! Container images: OCI layouts, docker's archives, skopeo's directories. Which layers make up the tree, and what each
//! must hash to.

#![forbid(unsafe_code)]

use super::archive::{Archive, Kind};
use super::compression::{Expected, Part};
use super::digest::{self, Digest};
use super::error::{Error, Result, at, io_at, shown};
use super::root::Root;
use nix::fcntl::OFlag;
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;

/// Longest JSON document that is read, in bytes.
const LONGEST_DOCUMENT: u64 = 8 << 20;

/// Indexes in indexes.
const DEEPEST: usize = 8;

/// Members of an image archive.
const MOST_MEMBERS: usize = 100_000;

/// Which image of several is wanted.
#[derive(Clone, Debug)]
pub struct Selection {
    /// `org.opencontainers.image.ref.name`, or a tag of docker's `manifest.json`.
    pub reference: Option<String>,
    /// Operating system, in Go's words: `linux`.
    pub os: String,
    /// Architecture, in Go's words: `amd64`.
    pub architecture: String,
    /// Variant: `v7`.
    pub variant: Option<String>,
}

impl Selection {
    /// This host's platform.
    #[must_use]
    pub fn host(reference: Option<String>) -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", None),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        let variant = variant.map(str::to_owned);
        Self { reference, os: "linux".into(), architecture: architecture.into(), variant }
    }

    /// Reads `OS/ARCHITECTURE[/VARIANT]`.
    ///
    /// # Errors
    /// The text has another form (64).
    pub fn with_platform(mut self, text: &str) -> Result<Self> {
        let mut words = text.split('/');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some(os), Some(architecture), variant, None) if !os.is_empty() && !architecture.is_empty() => {
                (self.os, self.architecture) = (os.to_owned(), architecture.to_owned());
                self.variant = variant.map(str::to_owned);
                Ok(self)
            }
            _ => Err(Error::new(super::error::USAGE, format!("platform \"{text}\": not OS/ARCHITECTURE[/VARIANT]"))),
        }
    }

    fn fits(&self, platform: &Platform) -> bool {
        platform.os == self.os
            && platform.architecture == self.architecture
            && (self.variant.is_none() || platform.variant.is_none() || platform.variant == self.variant)
    }
}

impl core::fmt::Display for Selection {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// Where the files of an image are.
#[derive(Debug)]
pub enum Store {
    /// In a directory.
    Directory(Root),
    /// In a tar that is not compressed.
    Archive {
        /// The tar.
        file: Arc<File>,
        /// Where each member's data is: offset and length in bytes.
        members: HashMap<Vec<u8>, Place>,
    },
}

/// Where a member's data is.
#[derive(Clone, Debug)]
pub enum Place {
    /// Offset and length in bytes.
    At(u64, u64),
    /// It is a link to another member.
    Link(Vec<u8>),
}

fn normal(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            other => parts.push(other),
        }
    }
    parts.join(&b'/')
}

impl Store {
    /// Looks where everything is in a tar that is not compressed.
    ///
    /// # Errors
    /// It is no tar, or has too many members.
    pub fn archive(file: Arc<File>, name: &str) -> Result<Self> {
        let mut reader = file.try_clone().map_err(io_at("duplicate", "the archive's descriptor"))?;
        reader.seek(SeekFrom::Start(0)).map_err(io_at("seek in", name))?;
        let mut archive = Archive::new(BufReader::with_capacity(4096, reader), name);
        let mut members = HashMap::new();
        while let Some(member) = archive.next()? {
            let path = normal(&member.name);
            let place = match member.kind {
                Kind::File if member.sparse.is_none() => Place::At(archive.position(), archive.left()),
                Kind::Hardlink(target) => Place::Link(normal(&target)),
                Kind::Symlink(target) => {
                    let above = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at);
                    let start = if target.starts_with(b"/") { &[][..] } else { path.get(..above).unwrap_or_default() };
                    Place::Link(normal(&[start, b"/", &target].concat()))
                }
                _ => continue,
            };
            members.insert(path, place);
            if members.len() > MOST_MEMBERS {
                return Err(Error::data(format!("{name}: more than {MOST_MEMBERS} members in an image archive")));
            }
            archive.seek_past()?;
        }
        Ok(Self::Archive { file, members })
    }

    /// Opens a file: its bytes, and how many they are.
    ///
    /// # Errors
    /// It is not there (65), or is no regular file.
    pub fn open(&self, name: &str) -> Result<(Box<dyn Read + Send>, u64)> {
        match self {
            Self::Directory(root) => {
                let file = root.open(name.as_bytes(), OFlag::O_RDONLY).map_err(at("open", name))?;
                let file = File::from(file);
                let found = file.metadata().map_err(io_at("stat", name))?;
                if !found.is_file() {
                    return Err(Error::data(format!("{name} is no regular file")));
                }
                Ok((Box::new(file), found.len()))
            }
            Self::Archive { file, members } => {
                let mut path = normal(name.as_bytes());
                for _ in 0..DEEPEST {
                    match members.get(&path) {
                        Some(Place::At(offset, length)) => {
                            return Ok((Box::new(Part::new(Arc::clone(file), *offset, *length)), *length));
                        }
                        Some(Place::Link(target)) => path = target.clone(),
                        None => break,
                    }
                }
                Err(Error::data(format!("\"{}\" is not in the image archive", shown(name.as_bytes()))))
            }
        }
    }

    /// Whether a file is there.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(root) => root.lstat(name.as_bytes()).is_ok(),
            Self::Archive { members, .. } => members.contains_key(&normal(name.as_bytes())),
        }
    }

    fn document(&self, name: &str) -> Result<Vec<u8>> {
        let (reader, length) = self.open(name)?;
        if length > LONGEST_DOCUMENT {
            return Err(Error::data(format!("{name}: {length} bytes where at most {LONGEST_DOCUMENT} make sense")));
        }
        let mut text = Vec::new();
        reader.take(LONGEST_DOCUMENT).read_to_end(&mut text).map_err(io_at("read", name))?;
        Ok(text)
    }

    /// The name of a blob: `blobs/ALGORITHM/HEX` in a layout, the bare digits in skopeo's `dir:`.
    fn blob_name(&self, digest: &Digest) -> String {
        let layout = format!("blobs/{}/{}", digest.algorithm(), digest.hex());
        if !self.has(&layout) && self.has(digest.hex()) { digest.hex().to_owned() } else { layout }
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let digest = Digest::parse(&descriptor.digest)?;
        let text = self.document(&self.blob_name(&digest))?;
        if descriptor.size.is_some_and(|size| size != text.len() as u64) {
            let announced = descriptor.size.unwrap_or(0);
            return Err(Error::data(format!(
                "blob {digest} has {} bytes where {announced} were announced",
                text.len()
            )));
        }
        verify(&text, &digest)?;
        Ok(text)
    }
}

impl<R: Read + Seek> Archive<BufReader<R>> {
    /// Passes over the present member's data by seeking.
    ///
    /// # Errors
    /// The input cannot seek.
    pub fn seek_past(&mut self) -> Result<()> {
        self.skip_by(|input, count| input.seek_relative(count))
    }
}

fn verify(text: &[u8], wanted: &Digest) -> Result<()> {
    let mut hasher = wanted.start();
    hasher.update(text);
    let found = hasher.finish();
    if found == *wanted {
        Ok(())
    } else {
        Err(Error::data(format!("a document has digest {found}, not {wanted}: damaged or tampered with")))
    }
}

/// A layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerFile {
    /// Its name in the [`Store`].
    pub file: String,
    /// Digest and size as stored, when the format tells.
    pub digest: Option<Digest>,
    /// Size as stored in bytes.
    pub size: Option<u64>,
    /// Digest of the plain tar.
    pub plain_digest: Option<Digest>,
}

impl LayerFile {
    /// What must be true of it.
    #[must_use]
    pub fn expected(&self) -> Expected {
        let name =
            self.digest.as_ref().map_or_else(|| format!("layer {}", self.file), |digest| format!("layer {digest}"));
        Expected { name, digest: self.digest.clone(), size: self.size, plain_digest: self.plain_digest.clone() }
    }
}

/// An image that was chosen.
#[derive(Clone, Debug)]
pub struct Image {
    /// Layers, lowest first.
    pub layers: Vec<LayerFile>,
    /// What the image says about running it.
    pub run: Run,
    /// Architecture in Go's words; empty when unknown.
    pub architecture: String,
    /// Digest of the manifest or the configuration.
    pub digest: Option<Digest>,
}

/// The part of an image configuration that says how to run it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Run {
    /// Words before [`Run::cmd`].
    #[serde(deserialize_with = "null_is_empty")]
    pub entrypoint: Vec<String>,
    /// Words.
    #[serde(deserialize_with = "null_is_empty")]
    pub cmd: Vec<String>,
    /// `NAME=value` each.
    #[serde(deserialize_with = "null_is_empty")]
    pub env: Vec<String>,
    /// Directory.
    #[serde(deserialize_with = "null_is_empty")]
    pub working_dir: String,
    /// `USER[:GROUP]`, names or numbers.
    #[serde(deserialize_with = "null_is_empty")]
    pub user: String,
    /// `SIGTERM`, `SIGRTMIN+3`.
    #[serde(deserialize_with = "null_is_empty")]
    pub stop_signal: String,
}

/// Go writes an empty list as null.
fn null_is_empty<'de, D, T>(deserializer: D) -> core::result::Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: String,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Configuration {
    architecture: String,
    os: String,
    #[serde(deserialize_with = "null_is_empty")]
    config: Run,
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RootFs {
    #[serde(deserialize_with = "null_is_empty")]
    diff_ids: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    layers: Vec<String>,
}

fn parse<'a, T: Deserialize<'a>>(text: &'a [u8], name: &str) -> Result<T> {
    serde_json::from_slice(text).map_err(|error| Error::data(format!("{name}: {error}")))
}

/// Finds the image that is wanted.
///
/// # Errors
/// There is none for the platform, or several and no reference (65); a document is damaged (65).
pub fn find(store: &Store, wanted: &Selection) -> Result<Image> {
    if store.has("index.json") {
        let text = store.document("index.json")?;
        return match of_index(store, &text, "index.json", wanted, true) {
            // docker's archives carry tags only in manifest.json.
            Err(error) if wanted.reference.is_some() && store.has("manifest.json") => {
                saved(store, wanted).map_err(|_| error)
            }
            other => other,
        };
    }
    if store.has("manifest.json") {
        return saved(store, wanted);
    }
    Err(Error::data("no image: neither index.json nor manifest.json is there"))
}

fn of_index(store: &Store, text: &[u8], name: &str, wanted: &Selection, top: bool) -> Result<Image> {
    let mut text = text.to_vec();
    let mut name = name.to_owned();
    let mut top = top;
    let mut digest = None;
    for _ in 0..DEEPEST {
        let document: Document = parse(&text, &name)?;
        let Some(list) = document.manifests else {
            return of_manifest(store, &document, digest, wanted);
        };
        let chosen = choose(&list, wanted, top)?;
        text = store.blob(&chosen)?;
        digest = Some(Digest::parse(&chosen.digest)?);
        name = format!("manifest {}", chosen.digest);
        // An index may name a reference for an image that is itself an index.
        top = false;
    }
    Err(Error::data(format!("more than {DEEPEST} indexes in each other")))
}

fn references(descriptor: &Descriptor) -> impl Iterator<Item = &str> {
    const KEYS: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];
    let annotations = descriptor.annotations.iter();
    annotations.flat_map(|all| KEYS.iter().filter_map(|key| all.get(*key))).map(String::as_str)
}

fn choose(list: &[Descriptor], wanted: &Selection, top: bool) -> Result<Descriptor> {
    let named = |descriptor: &&Descriptor| match &wanted.reference {
        Some(reference) if top => references(descriptor).any(|name| same_reference(name, reference)),
        _ => true,
    };
    let fits = |descriptor: &&Descriptor| descriptor.platform.as_ref().is_none_or(|platform| wanted.fits(platform));
    let all: Vec<&Descriptor> = list.iter().filter(named).collect();
    if all.is_empty()
        && let Some(reference) = &wanted.reference
    {
        let known: Vec<&str> = list.iter().flat_map(references).collect();
        let known = if known.is_empty() { "no image has a name".to_owned() } else { known.join(", ") };
        return Err(Error::data(format!("no image is called \"{reference}\" ({})", shown(known.as_bytes()))));
    }
    let mut fitting: Vec<&Descriptor> = all.iter().copied().filter(fits).collect();
    // One that says its platform is better than one that does not.
    if fitting.iter().any(|descriptor| descriptor.platform.is_some()) {
        fitting.retain(|descriptor| descriptor.platform.is_some());
    }
    fitting.dedup_by(|a, b| a.digest == b.digest);
    match fitting.as_slice() {
        [one] => Ok((*one).clone()),
        [] => {
            let known: Vec<String> = all
                .iter()
                .filter_map(|descriptor| descriptor.platform.as_ref())
                .map(|platform| format!("{}/{}", platform.os, platform.architecture))
                .collect();
            let known = if known.is_empty() { "the index is empty".to_owned() } else { known.join(", ") };
            Err(Error::data(format!("no image for {wanted} ({}): see --platform", shown(known.as_bytes()))))
        }
        // Of one index for several variants the first is the best (image-spec, image-index.md).
        [first, ..] if !top => Ok((*first).clone()),
        several => {
            let known: Vec<&str> = several.iter().copied().flat_map(references).collect();
            let known = shown(known.join(", ").as_bytes());
            Err(Error::data(format!("{} images ({known}): name one with --ref", several.len())))
        }
    }
}

/// `latest` also finds `name:latest` and `docker.io/library/name:latest`.
fn same_reference(name: &str, wanted: &str) -> bool {
    let ends = |separator: char| name.strip_suffix(wanted).is_some_and(|rest| rest.ends_with(separator));
    name == wanted || ends(':') || ends('/')
}

fn of_manifest(store: &Store, manifest: &Document, digest: Option<Digest>, wanted: &Selection) -> Result<Image> {
    if manifest.schema_version != 2 {
        let version = manifest.schema_version;
        return Err(Error::data(format!("image manifest of schema version {version}: only 2 is known")));
    }
    let (Some(config), Some(layers)) = (&manifest.config, &manifest.layers) else {
        return Err(Error::data("the image manifest has no config or no layers"));
    };
    let text = store.blob(config)?;
    let configuration: Configuration = parse(&text, "image configuration")?;
    check_platform(&configuration, wanted)?;
    let ids = &configuration.rootfs.diff_ids;
    if ids.len() != layers.len() {
        return Err(Error::data(format!("{} layers, but {} diff_ids in the configuration", layers.len(), ids.len())));
    }
    let mut files = Vec::new();
    for (layer, id) in layers.iter().zip(ids) {
        known_type(&layer.media_type)?;
        let digest = Digest::parse(&layer.digest)?;
        let file = store.blob_name(&digest);
        files.push(LayerFile { file, digest: Some(digest), size: layer.size, plain_digest: Some(Digest::parse(id)?) });
    }
    let Configuration { architecture, config: run, .. } = configuration;
    Ok(Image { layers: files, run, architecture, digest: digest.or_else(|| Digest::parse(&config.digest).ok()) })
}

fn check_platform(configuration: &Configuration, wanted: &Selection) -> Result<()> {
    let (os, architecture) = (&configuration.os, &configuration.architecture);
    let wrong = |is: &str, should: &str| !is.is_empty() && is != should;
    if wrong(os, &wanted.os) || wrong(architecture, &wanted.architecture) {
        let is = shown(format!("{os}/{architecture}").as_bytes());
        return Err(Error::data(format!("the image is for {is}, not {wanted}: --platform {is} takes it all the same")));
    }
    Ok(())
}

fn known_type(media_type: &str) -> Result<()> {
    let base = media_type.split('+').next().unwrap_or_default();
    let tar = base.is_empty() || base.ends_with(".tar") || base.ends_with(".tar.gzip") || base.ends_with(".tar.zstd");
    if media_type.contains("encrypted") || !tar {
        let name = shown(media_type.as_bytes());
        return Err(Error::data(format!("a layer has the media type {name}: only tar layers that are not encrypted")));
    }
    Ok(())
}

/// `manifest.json`: a list as docker save writes it, or one manifest as skopeo's `dir:` has it.
fn saved(store: &Store, wanted: &Selection) -> Result<Image> {
    let text = store.document("manifest.json")?;
    if text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{') {
        return of_index(store, &text, "manifest.json", wanted, false);
    }
    let list: Vec<Saved> = parse(&text, "manifest.json")?;
    let all: Vec<&str> = list.iter().flat_map(|image| &image.repo_tags).map(String::as_str).collect();
    let known = shown(all.join(", ").as_bytes());
    let named = |image: &&Saved| {
        wanted.reference.as_ref().is_none_or(|name| image.repo_tags.iter().any(|tag| same_reference(tag, name)))
    };
    let chosen = match list.iter().filter(named).collect::<Vec<_>>()[..] {
        [one] => one,
        [] => {
            return Err(Error::data(format!(
                "no image is called \"{}\" ({known})",
                wanted.reference.as_deref().unwrap_or("")
            )));
        }
        ref several => return Err(Error::data(format!("{} images ({known}): name one with --ref", several.len()))),
    };
    let text = store.document(&chosen.config)?;
    let digest = named_digest(&chosen.config);
    if let Some(digest) = &digest {
        verify(&text, digest)?;
    }
    let configuration: Configuration = parse(&text, &chosen.config)?;
    check_platform(&configuration, wanted)?;
    let ids = &configuration.rootfs.diff_ids;
    // Archives before 1.10 have no diff_ids, and then nothing to verify a layer by.
    if !ids.is_empty() && ids.len() != chosen.layers.len() {
        let (layers, ids) = (chosen.layers.len(), ids.len());
        return Err(Error::data(format!("{layers} layers, but {ids} diff_ids in the configuration")));
    }
    let mut layers = Vec::new();
    for (position, file) in chosen.layers.iter().enumerate() {
        let plain_digest = ids.get(position).map(|id| Digest::parse(id)).transpose()?;
        let digest = file.strip_prefix("blobs/sha256/").and_then(|hex| Digest::parse(&format!("sha256:{hex}")).ok());
        layers.push(LayerFile { file: file.clone(), digest, size: None, plain_digest });
    }
    let Configuration { architecture, config: run, .. } = configuration;
    Ok(Image { layers, run, architecture, digest: digest.or_else(|| Some(digest::of(&text))) })
}

/// The digest that a name promises: `HEX.json`, `blobs/sha256/HEX`.
fn named_digest(name: &str) -> Option<Digest> {
    let hex = name.strip_prefix("blobs/sha256/").or_else(|| name.strip_suffix(".json")).unwrap_or(name);
    Digest::parse(&format!("sha256:{hex}")).ok()
}

/// Whether a tar that begins with this member is an image rather than a tree.
#[must_use]
pub fn looks_like_image(first_member: &[u8]) -> bool {
    let name = normal(first_member);
    let first = name.split(|byte| *byte == b'/').next().unwrap_or_default();
    let hex = first.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    match first {
        b"oci-layout" | b"index.json" | b"manifest.json" | b"repositories" | b"blobs" => true,
        _ if hex == 64 => {
            let rest = first.get(64..).unwrap_or_default();
            rest.is_empty() || rest == b".json" || rest == b".tar"
        }
        _ => false,
    }
}

/// For the fuzz target: documents as they might stand in a hostile image.
pub fn parse_anything(text: &[u8]) {
    let _ = parse::<Document>(text, "x")
        .map(|document| document.manifests.map(|list| choose(&list, &Selection::host(None), true)));
    let _ = parse::<Configuration>(text, "x");
    let _ = parse::<Vec<Saved>>(text, "x");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn image_archives_are_told_from_trees_by_their_first_member() {
        let hex = "0".repeat(64);
        for image in [
            "oci-layout",
            "./index.json",
            "blobs/",
            "blobs/sha256/ab",
            "manifest.json",
            &format!("{hex}.json"),
            &format!("{hex}/layer.tar"),
            &format!("{hex}.tar"),
            &format!("./{hex}/"),
        ] {
            assert!(looks_like_image(image.as_bytes()), "{image}");
        }
        for tree in ["./", "bin/", "etc/passwd", ".dockerenv", "rootfs/", "metadata.yaml", &format!("{hex}0"), ""] {
            assert!(!looks_like_image(tree.as_bytes()), "{tree}");
        }
    }

    #[test]
    fn a_platform_is_chosen_and_attestations_are_not() {
        let text = br#"{"manifests":[
            {"digest":"sha256:aa","platform":{"os":"linux","architecture":"arm64"}},
            {"digest":"sha256:bb","platform":{"os":"linux","architecture":"amd64"}},
            {"digest":"sha256:cc","platform":{"os":"unknown","architecture":"unknown"}}]}"#;
        let list = parse::<Document>(text, "x").unwrap().manifests.unwrap();
        let wanted = Selection::host(None).with_platform("linux/amd64").unwrap();
        assert_eq!(choose(&list, &wanted, true).unwrap().digest, "sha256:bb");
        let none = wanted.clone().with_platform("linux/s390x").unwrap();
        assert!(choose(&list, &none, true).unwrap_err().text.contains("linux/arm64"));
        let named = Selection { reference: Some("x".into()), ..wanted };
        assert!(choose(&list, &named, true).unwrap_err().text.contains("no image is called"));
    }

    #[test]
    fn references_are_compared_by_their_end() {
        assert!(same_reference("docker.io/library/busybox:latest", "busybox:latest"));
        assert!(same_reference("localhost/x:1", "1"));
        assert!(!same_reference("localhost/xbusybox:latest", "busybox:latest"));
    }

    proptest! {
        #[test]
        fn no_document_panics(text in ".{0,300}") {
            parse_anything(text.as_bytes());
        }
    }
}
