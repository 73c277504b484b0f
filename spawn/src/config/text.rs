//! The lines of LXC's configuration: keys, values, quotes, and files that include others.

#![forbid(unsafe_code)]

use core::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Longest file in bytes.
pub const LONGEST: usize = 1 << 20;
/// Files read at most, however they include one another.
const MOST_FILES: usize = 256;
/// Files that lie open one in the other at most.
const DEEPEST: usize = 16;

/// Where a setting stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file and the number of a line of it, from 1 on.
    Line(Rc<str>, u32),
    /// The command line, as `-s key=value`.
    CommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(file, line) => write!(f, "{file}:{line}"),
            Self::CommandLine => f.write_str("-s"),
        }
    }
}

/// One `key = value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The whole key: `lxc.uts.name`.
    pub key: String,
    /// The value without blanks and quotes around it; empty resets the key.
    pub value: String,
    /// Where it stands.
    pub origin: Origin,
}

/// What is wrong with a configuration, with the place of it first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong(pub String);

/// The files that a configuration is read from.
pub trait Files {
    /// The content of a file, of at most [`LONGEST`] and one bytes.
    ///
    /// # Errors
    /// The system's.
    fn read(&self, path: &Path) -> std::io::Result<Vec<u8>>;
    /// The names in a directory.
    ///
    /// # Errors
    /// The system's; `NotADirectory` for a file.
    fn list(&self, path: &Path) -> std::io::Result<Vec<PathBuf>>;
}

/// Those of the system.
pub struct System;

impl Files for System {
    fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        use std::io::Read;
        use std::os::unix::fs::OpenOptionsExt;
        // O_NONBLOCK: a FIFO must not hold the start up.
        let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let mut bytes = Vec::new();
        file.take(LONGEST as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn list(&self, path: &Path) -> std::io::Result<Vec<PathBuf>> {
        std::fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect()
    }
}

/// Splits one line: `None` for one that says nothing, which is every line that does not begin with `lxc.`.
///
/// # Errors
/// In words: there is no `=` in it.
pub fn split(line: &str) -> Result<Option<(&str, &str)>, &'static str> {
    let line = line.trim();
    if !line.starts_with("lxc.") {
        return Ok(None);
    }
    let (key, value) = line.split_once('=').ok_or("no `=`: a line is `key = value`")?;
    Ok(Some((key.trim_end(), unquoted(value.trim_start()))))
}

/// A value that stands in quotes as a whole loses them. One that holds the same quote again keeps them: it is a list of
/// quoted words.
fn unquoted(value: &str) -> &str {
    let inner = ['"', '\''].into_iter().find_map(|quote| {
        let inner = value.strip_prefix(quote)?.strip_suffix(quote)?;
        (!inner.contains(quote)).then_some(inner)
    });
    inner.unwrap_or(value)
}

/// Reads a file and all that it includes, each include in the place where it stands.
///
/// # Errors
/// A file cannot be read, includes itself, is too long or no text; a line has no `=`.
pub fn read(files: &dyn Files, path: &Path) -> Result<Vec<Entry>, Wrong> {
    let mut reading = Reading { files, open: Vec::new(), number: 0, entries: Vec::new() };
    reading.file(path, None)?;
    Ok(reading.entries)
}

struct Reading<'a> {
    files: &'a dyn Files,
    /// The files that are being read, the outermost first.
    open: Vec<PathBuf>,
    number: usize,
    entries: Vec<Entry>,
}

impl Reading<'_> {
    fn file(&mut self, path: &Path, from: Option<&Origin>) -> Result<(), Wrong> {
        let shown = path.display();
        let wrong = |why: &str| match from {
            Some(origin) => Wrong(format!("{origin}: lxc.include {shown}: {why}")),
            None => Wrong(format!("{shown}: {why}")),
        };
        if self.open.iter().any(|open| open == path) {
            return Err(wrong("the file includes itself; take one of the two lines out"));
        }
        self.number = self.number.saturating_add(1);
        if self.open.len() >= DEEPEST || self.number > MOST_FILES {
            return Err(wrong("more than 16 includes one in the other, or more than 256 in all"));
        }
        let bytes = self.files.read(path).map_err(|error| wrong(&format!("cannot read it: {error}")))?;
        if bytes.len() > LONGEST {
            return Err(wrong("longer than 1 MiB: no configuration"));
        }
        let text = String::from_utf8(bytes).map_err(|_| wrong("holds bytes that are not UTF-8"))?;
        let name: Rc<str> = path.to_string_lossy().into();
        self.open.push(path.to_owned());
        for (line, number) in text.lines().zip(1_u32..) {
            let origin = Origin::Line(Rc::clone(&name), number);
            let (key, value) = match split(line) {
                Ok(Some(pair)) => pair,
                Ok(None) => continue,
                Err(why) => return Err(Wrong(format!("{origin}: {why}"))),
            };
            if value.contains('\0') || key.contains('\0') {
                return Err(Wrong(format!("{origin}: holds a NUL byte")));
            }
            if key == "lxc.include" {
                self.include(Path::new(value), &origin)?;
            } else {
                self.entries.push(Entry { key: key.to_owned(), value: value.to_owned(), origin });
            }
        }
        self.open.pop();
        Ok(())
    }

    /// A file, or every `*.conf` of a directory in the order of their names. A directory that is not there is no error;
    /// so that it can be told from a file, its name must end in a slash or in `.d`.
    fn include(&mut self, path: &Path, origin: &Origin) -> Result<(), Wrong> {
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let wrong = |why: String| Wrong(format!("{origin}: lxc.include {}: {why}", path.display()));
        if !path.is_absolute() {
            return Err(wrong("must be an absolute path".to_owned()));
        }
        match self.files.list(path) {
            Ok(mut list) => {
                list.retain(|file| file.extension().is_some_and(|ending| ending == "conf"));
                list.sort();
                list.iter().try_for_each(|file| self.file(file, Some(origin)))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => self.file(path, Some(origin)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let text = path.to_string_lossy();
                if text.ends_with('/') || text.ends_with(".d") {
                    return Ok(());
                }
                Err(wrong("there is no such file".to_owned()))
            }
            Err(error) => Err(wrong(error.to_string())),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Files in memory; a directory is what a name with a slash lies in.
    #[derive(Default)]
    pub struct Memory(pub BTreeMap<PathBuf, Vec<u8>>);

    impl Memory {
        pub fn with(mut self, path: &str, text: impl AsRef<[u8]>) -> Self {
            self.0.insert(path.into(), text.as_ref().to_vec());
            self
        }
    }

    impl Files for Memory {
        fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
            self.0.get(path).cloned().ok_or_else(|| std::io::ErrorKind::NotFound.into())
        }

        fn list(&self, path: &Path) -> std::io::Result<Vec<PathBuf>> {
            if self.0.contains_key(path) {
                return Err(std::io::ErrorKind::NotADirectory.into());
            }
            let list: Vec<PathBuf> = self.0.keys().rev().filter(|name| name.parent() == Some(path)).cloned().collect();
            if list.is_empty() { Err(std::io::ErrorKind::NotFound.into()) } else { Ok(list) }
        }
    }

    #[test]
    fn a_line_is_a_key_and_a_value_without_blanks_and_quotes() {
        assert_eq!(split("  lxc.uts.name = \"a b\"  "), Ok(Some(("lxc.uts.name", "a b"))));
        assert_eq!(split("lxc.a='x'"), Ok(Some(("lxc.a", "x"))));
        assert_eq!(split("lxc.a = 'x y' 'z'"), Ok(Some(("lxc.a", "'x y' 'z'"))));
        assert_eq!(split("lxc.a = \"x'"), Ok(Some(("lxc.a", "\"x'"))));
        assert_eq!(split("lxc.a = \""), Ok(Some(("lxc.a", "\""))));
        assert_eq!(split("lxc.a ="), Ok(Some(("lxc.a", ""))));
        assert_eq!(split("lxc.a = b = c # d"), Ok(Some(("lxc.a", "b = c # d"))));
        for nothing in ["", " ", "# lxc.a = b", "lxd.a", "other = x"] {
            assert_eq!(split(nothing), Ok(None), "{nothing:?}");
        }
        assert!(split("lxc.a").is_err());
    }

    #[test]
    fn includes_stand_in_their_place_and_a_directory_is_sorted() {
        let files = Memory::default()
            .with(
                "/c",
                "lxc.a = 1\nlxc.include = /d/\nlxc.include = /missing.d\nlxc.include = /x\nlxc.include =\nlxc.b = 4",
            )
            .with("/d/2.conf", "lxc.a = 3")
            .with("/d/1.conf", "\nlxc.a = 2")
            .with("/d/README", "lxc.a 5")
            .with("/x", "lxc.c = 1");
        let entries = read(&files, Path::new("/c")).unwrap();
        let shown: Vec<String> =
            entries.iter().map(|entry| format!("{} {}={}", entry.origin, entry.key, entry.value)).collect();
        assert_eq!(
            shown,
            ["/c:1 lxc.a=1", "/d/1.conf:2 lxc.a=2", "/d/2.conf:1 lxc.a=3", "/x:1 lxc.c=1", "/c:6 lxc.b=4"]
        );
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        for (text, said) in [
            ("\nlxc.include = /nothing", "/c:2: lxc.include /nothing: there is no such file"),
            ("lxc.include = /c", "/c:1: lxc.include /c: the file includes itself"),
            ("lxc.include = /loop", "/loop:1: lxc.include /c: the file includes itself"),
            ("lxc.include = relative", "/c:1: lxc.include relative: must be an absolute path"),
            ("lxc.uts.name", "/c:1: no `=`"),
            ("lxc.a = \u{0}", "/c:1: holds a NUL"),
        ] {
            let files = Memory::default().with("/c", text).with("/loop", "lxc.include = /c");
            let Wrong(found) = read(&files, Path::new("/c")).unwrap_err();
            assert!(found.starts_with(said), "{found}");
        }
        assert!(read(&Memory::default(), Path::new("/c")).unwrap_err().0.starts_with("/c: cannot read it"));
        let binary = Memory::default().with("/c", [0xff, 0xfe]);
        assert!(read(&binary, Path::new("/c")).unwrap_err().0.contains("UTF-8"));
    }

    #[test]
    fn files_that_include_more_and_more_come_to_an_end() {
        let mut files = Memory::default();
        for number in 0..40 {
            let next = number + 1;
            files = files.with(&format!("/{number}"), format!("lxc.include = /{next}\nlxc.include = /{next}\n"));
        }
        let files = files.with("/40", "");
        assert!(read(&files, Path::new("/0")).unwrap_err().0.contains("16 includes"));
        let mut wide = Memory::default();
        for number in 0..10 {
            let next = number + 1;
            wide = wide.with(&format!("/{number}"), format!("lxc.include = /{next}\nlxc.include = /{next}\n"));
        }
        assert!(read(&wide.with("/10", ""), Path::new("/0")).unwrap_err().0.contains("256 in all"));
    }
}
