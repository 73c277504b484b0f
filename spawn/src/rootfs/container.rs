//! Where a container is, and what its `config` says: LXC's layout and keys.

#![forbid(unsafe_code)]

use super::error::{Error, Result, USAGE, io_at, shown};
use super::map::Map;
use helper::allotment::Owner;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Longest configuration file in bytes.
const LONGEST_CONFIG: u64 = 1 << 20;

/// Files that a configuration may include, one in the other.
const DEEPEST: usize = 10;

/// On whose behalf the program works.
#[derive(Clone, Debug)]
pub struct User {
    /// The user, whose subordinate ids count.
    pub owner: Owner,
    /// Primary group.
    pub gid: u32,
    /// The directory with the containers: `$XDG_DATA_HOME/spawn`.
    pub containers: PathBuf,
    /// LXC's directories, which are read as well.
    pub lxc: Vec<PathBuf>,
}

impl User {
    /// The caller, or as root somebody else by name.
    ///
    /// # Errors
    /// There is no such user (67), the caller is not root (77), or no home directory is known (64).
    pub fn of(name: Option<&str>) -> Result<Self> {
        #![expect(clippy::disallowed_methods, reason = "no privilege, and the caller's directories are meant")]
        let me = nix::unistd::getuid().as_raw();
        let owner = match name {
            None => Owner::of_uid(me).map_err(|error| Error::new(super::error::SYSTEM, error.0))?,
            Some(name) => Owner::of_word(name).map_err(|error| Error::new(super::error::NO_USER, error.0))?,
        };
        let other = owner.uid() != me;
        if other && me != 0 {
            return Err(Error::new(super::error::NOT_PERMITTED, "--user: only root may work for another user"));
        }
        let entry = passwd_entry(owner.uid());
        let variable = |name: &str| std::env::var_os(name).filter(|value| !other && value.as_bytes().starts_with(b"/"));
        let home = variable("HOME").map(PathBuf::from).or_else(|| entry.as_ref().map(|entry| entry.1.clone()));
        let home = home
            .ok_or_else(|| Error::new(USAGE, format!("no home directory of {} is known: set HOME", owner.shown())))?;
        let data = variable("XDG_DATA_HOME").map_or_else(|| home.join(".local/share"), PathBuf::from);
        let gid = if other { entry.map_or(0, |entry| entry.0) } else { nix::unistd::getgid().as_raw() };
        let lxc = vec![data.join("lxc"), PathBuf::from("/var/lib/lxc")];
        Ok(Self { owner, gid, containers: data.join("spawn"), lxc })
    }
}

/// Group and home directory in /etc/passwd.
fn passwd_entry(uid: u32) -> Option<(u32, PathBuf)> {
    let text = std::fs::read("/etc/passwd").ok()?;
    text.split(|byte| *byte == b'\n').find_map(|line| {
        let (_, its_uid, gid) = helper::caller::parse_passwd(line)?;
        let home = line.split(|byte| *byte == b':').nth(5)?;
        (its_uid == uid && home.starts_with(b"/")).then(|| (gid, PathBuf::from(OsStr::from_bytes(home))))
    })
}

/// A container directory, or a bare rootfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// The word that named it.
    pub name: String,
    /// The directory with `config` and `rootfs`; of a bare rootfs, the directory that holds it.
    pub directory: PathBuf,
    /// The root file system.
    pub rootfs: PathBuf,
    /// `config`, when there is one.
    pub config: Option<PathBuf>,
    /// Whether this is a rootfs without a container directory.
    pub bare: bool,
}

/// A name without a slash, of which a directory can be made.
///
/// # Errors
/// It is empty, hidden, or has a slash or control characters (64).
pub fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.starts_with('.') || name.len() > 200 || name.chars().any(|c| c == '/' || c.is_control())
    {
        return Err(Error::new(
            USAGE,
            format!("container name \"{}\": 1 to 200 characters, no slash, no dot first", shown(name.as_bytes())),
        ));
    }
    Ok(())
}

impl Container {
    /// Where a container of this name would be made.
    ///
    /// # Errors
    /// The name cannot be one (64).
    pub fn new(user: &User, word: &str) -> Result<Self> {
        let directory = if word.contains('/') {
            PathBuf::from(word.trim_end_matches('/'))
        } else {
            check_name(word)?;
            user.containers.join(word)
        };
        let name = directory.file_name().and_then(OsStr::to_str).unwrap_or_default().to_owned();
        check_name(&name)?;
        let directory = std::path::absolute(&directory).map_err(io_at("resolve", word))?;
        Ok(Self { name, rootfs: directory.join("rootfs"), config: None, bare: false, directory })
    }

    /// The container that a word names: one of the user's, or LXC's; with a slash, a path.
    ///
    /// # Errors
    /// There is none (65).
    pub fn find(user: &User, word: &str) -> Result<Self> {
        if word.contains('/') {
            let path = std::path::absolute(word).map_err(io_at("resolve", word))?;
            return Self::at(&path).ok_or_else(|| match closed(&path) {
                Some(text) => Error::data(format!("{}: {text}", shown(word.as_bytes()))),
                None => Error::data(format!(
                    "{}: no container directory (with config and rootfs) and no rootfs",
                    shown(word.as_bytes())
                )),
            });
        }
        check_name(word)?;
        let places = || std::iter::once(&user.containers).chain(&user.lxc);
        places().find_map(|place| Self::at(&place.join(word)).filter(|found| !found.bare)).ok_or_else(|| {
            Error::data(format!("no container \"{word}\" in {}: rootfs ls shows them", user.containers.display()))
        })
    }

    /// What stands at a path: a container directory or a bare rootfs.
    #[must_use]
    pub fn at(path: &Path) -> Option<Self> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_else(|| "/".to_owned());
        let config = path.join("config");
        let has_config = std::fs::symlink_metadata(&config).is_ok_and(|found| found.is_file());
        let inner = path.join("rootfs");
        if has_config || std::fs::symlink_metadata(&inner).is_ok_and(|found| found.is_dir()) {
            let config = has_config.then_some(config);
            let said =
                config.as_deref().and_then(|config| Config::read(config).ok()).and_then(|config| config.rootfs());
            let rootfs = said.filter(|said| said.is_dir()).unwrap_or(inner);
            return Some(Self { name, directory: path.to_owned(), rootfs, config, bare: false });
        }
        let is_directory = std::fs::metadata(path).is_ok_and(|found| found.is_dir());
        is_directory.then(|| Self {
            name,
            directory: path.parent().unwrap_or(path).to_owned(),
            rootfs: path.to_owned(),
            config: None,
            bare: true,
        })
    }

    /// Its configuration; empty when it has none.
    ///
    /// # Errors
    /// The file cannot be read or is no configuration (78 as 65).
    pub fn settings(&self) -> Result<Config> {
        self.config.as_deref().map_or_else(|| Ok(Config::default()), Config::read)
    }

    /// The map that its configuration has; else every subordinate id of the user, which `spawn` would take.
    ///
    /// # Errors
    /// The configuration is damaged, or no ids are granted.
    pub fn map(&self, user: &User) -> Result<Map> {
        match self.settings()?.map()? {
            Some(map) => Ok(map),
            None => {
                // A rootfs of one's own id alone needs no subordinate id.
                let owner = std::fs::symlink_metadata(&self.rootfs).ok().map(|found| (found.uid(), found.gid()));
                match Map::whole(&user.owner) {
                    Err(_) if owner == Some((user.owner.uid(), user.gid)) => {
                        Ok(Map::single(user.owner.uid(), user.gid))
                    }
                    other => other,
                }
            }
        }
    }

    /// Where the record of an adaptation or of a shift is kept: outside of the rootfs.
    #[must_use]
    pub fn record(&self, what: &str) -> PathBuf {
        if self.bare {
            self.directory.join(format!(".{}.{what}.json", self.name))
        } else {
            self.directory.join(format!("{what}.json"))
        }
    }
}

/// Whether a directory above a path may not be searched by the caller: the first of them, its mode and its owner, as a
/// cause.
#[must_use]
pub fn closed(path: &Path) -> Option<String> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.reverse();
    above.into_iter().find_map(|directory| {
        let stat = std::fs::metadata(directory).ok()?;
        let may = nix::unistd::access(directory, nix::unistd::AccessFlags::X_OK).is_ok();
        let (mode, owner) = (stat.mode() & 0o7777, stat.uid());
        (!may).then(|| format!("{} may not be searched by you (mode {mode:03o}, uid {owner})", directory.display()))
    })
}

/// `lxc.` keys with their values, in order, includes in their place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    entries: Vec<(String, String)>,
}

impl Config {
    /// Reads a file and what it includes. Files that are missing are passed over: nothing is started from this reading.
    ///
    /// # Errors
    /// It cannot be read, or is longer than 1 MiB.
    pub fn read(path: &Path) -> Result<Self> {
        let mut config = Self::default();
        config.add(path, 0)?;
        Ok(config)
    }

    fn add(&mut self, path: &Path, depth: usize) -> Result<()> {
        let size = std::fs::metadata(path).map_err(io_at("read", path.display()))?.len();
        if size > LONGEST_CONFIG {
            return Err(Error::data(format!("{}: {size} bytes, too long for a configuration", path.display())));
        }
        let text = std::fs::read(path).map_err(io_at("read", path.display()))?;
        for (key, value) in parse(&String::from_utf8_lossy(&text)) {
            if key == "lxc.include" && depth < DEEPEST {
                let place = Path::new(&value);
                let mut files = vec![place.to_owned()];
                if place.is_dir() {
                    let list = std::fs::read_dir(place).map_err(io_at("read", place.display()))?;
                    files = list.filter_map(|entry| Some(entry.ok()?.path())).collect();
                    files.retain(|file| file.extension() == Some(OsStr::new("conf")));
                    files.sort();
                }
                for file in files.iter().filter(|file| file.is_file()) {
                    self.add(file, depth.saturating_add(1))?;
                }
            } else {
                self.entries.push((key, value));
            }
        }
        Ok(())
    }

    /// Every value of a key, in order; an empty value has emptied the list before it.
    pub fn all<'a>(&'a self, key: &'a str) -> Vec<&'a str> {
        let mut values = Vec::new();
        for (_, value) in self.entries.iter().filter(|(its, _)| its == key) {
            if value.is_empty() { values.clear() } else { values.push(value.as_str()) }
        }
        values
    }

    /// The last value of a key.
    #[must_use]
    pub fn last(&self, key: &str) -> Option<&str> {
        self.entries.iter().rev().find(|(its, _)| its == key).map(|(_, value)| value.as_str())
    }

    /// All keys with their values.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// `lxc.idmap`; `None` without.
    ///
    /// # Errors
    /// A line is no extent.
    pub fn map(&self) -> Result<Option<Map>> {
        let lines = self.all("lxc.idmap");
        if lines.is_empty() {
            return Ok(None);
        }
        let mut map = Map::default();
        for line in lines {
            map.add(line).map_err(|error| Error::data(format!("lxc.idmap: {}", error.text)))?;
        }
        Ok(Some(map))
    }

    /// `lxc.rootfs.path` (or the older `lxc.rootfs`) when it is a plain directory.
    #[must_use]
    pub fn rootfs(&self) -> Option<PathBuf> {
        let said = self.last("lxc.rootfs.path").or_else(|| self.last("lxc.rootfs"))?;
        let path = said.strip_prefix("dir:").unwrap_or(said);
        path.starts_with('/').then(|| PathBuf::from(path))
    }
}

/// Lines of a configuration: only those that begin with `lxc.` count; blanks around key and value go, and quotes.
#[must_use]
pub fn parse(text: &str) -> Vec<(String, String)> {
    let each = text.lines().map(str::trim).filter(|line| line.starts_with("lxc."));
    each.filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        let value = value.trim();
        let quoted = ['"', '\''].into_iter().find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
        Some((key.trim().to_owned(), quoted.unwrap_or(value).to_owned()))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read_with_its_includes_and_resets() {
        let scratch = tempfile::tempdir().unwrap();
        let (main, more) = (scratch.path().join("config"), scratch.path().join("more.conf"));
        std::fs::write(&more, "lxc.idmap = u 0 1 1\nlxc.arch=\"x86_64\"\n").unwrap();
        let text = format!(
            "# comment\nlxc.include = {}\nlxc.include = /nowhere\nlxc.idmap =\nlxc.idmap = u 0 100000 65536\n\
             lxc.idmap = g 0 100000 65536\nother = x\nlxc.rootfs.path = dir:/x/rootfs\n",
            more.display()
        );
        std::fs::write(&main, text).unwrap();
        let config = Config::read(&main).unwrap();
        assert_eq!(config.map().unwrap().unwrap(), Map::run(100_000, 100_000, 65536));
        assert_eq!(config.last("lxc.arch"), Some("x86_64"));
        assert_eq!(config.rootfs(), Some(PathBuf::from("/x/rootfs")));
    }

    #[test]
    fn names_are_checked() {
        for bad in ["", ".", "..", ".x", "a/b", "a\nb"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        check_name("centos-6.8_x").unwrap();
    }

    #[test]
    fn a_container_directory_and_a_bare_rootfs_are_told_apart() {
        let scratch = tempfile::tempdir().unwrap();
        let bare = scratch.path().join("tree");
        std::fs::create_dir_all(bare.join("etc")).unwrap();
        assert!(Container::at(&bare).unwrap().bare);
        let whole = scratch.path().join("c");
        std::fs::create_dir_all(whole.join("rootfs")).unwrap();
        let found = Container::at(&whole).unwrap();
        assert!(!found.bare && found.rootfs == whole.join("rootfs") && found.config.is_none());
        assert_eq!(found.record("adapted"), whole.join("adapted.json"));
        assert_eq!(Container::at(&scratch.path().join("no")), None);
    }
}
