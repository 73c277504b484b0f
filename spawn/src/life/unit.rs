//! `autostart enable` and `disable`: units of systemd's user manager (systemd.unit(5), systemd.service(5)).

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, getegid, geteuid, unlinkat};

use super::end::{each, say};
use crate::ambient;
use crate::cli::is_name;
use crate::container;
use crate::failure::{Failure, Outcome, words};

/// What every unit begins with that is ours to replace and to remove.
const MARK: &str = "# Made by `spawn autostart enable`, removed by `spawn autostart disable`.";

/// The unit of all containers with lxc.start.auto.
const ALL: &str = "spawn-autostart.service";

/// Where `systemctl --user enable` links a unit.
const WANTS: &str = "default.target.wants";

/// The name of the unit of one container: an instance, whose name is escaped.
fn unit_of(name: &str) -> String {
    format!("spawn@{}.service", escape(name))
}

/// systemd's rule for any string as a part of a unit's name (systemd.unit(5), "String Escaping for Inclusion in Unit
/// Names"): `/` becomes `-`, and every byte but `A-Za-z0-9:_.`, or a dot at the beginning, `\xNN`.
#[must_use]
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'/' => escaped.push('-'),
            b'.' if at == 0 => escaped.push_str("\\x2e"),
            _ if byte.is_ascii_alphanumeric() || b":_.".contains(&byte) => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("\\x{byte:02x}")),
        }
    }
    escaped
}

/// A word of a command line in a unit: quoted, specifiers and variables switched off.
fn quoted(word: &OsStr) -> Outcome<String> {
    let text = word
        .to_str()
        .filter(|text| !text.contains(char::is_control))
        .ok_or_else(|| Failure::own(format!("{} cannot stand in a unit: it is no text in UTF-8", word.display())))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=@,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    Ok(format!("\"{escaped}\""))
}

/// What the units have in common.
struct Call {
    program: String,
    /// A line `Environment=`, where the caller has one that the user manager has not.
    environment: String,
    /// Words after the subcommand.
    options: String,
}

impl Call {
    fn new(lxcpath: Option<&Path>) -> Outcome<Self> {
        let program = std::fs::read_link("/proc/self/exe")
            .map_err(|error| Failure::own(format!("cannot tell where this program is: {error}")))?;
        // Of the first word systemd replaces no variables, and takes none for a quoted one either.
        let usable = program.is_file() && !program.as_os_str().as_bytes().contains(&b'$');
        if !usable {
            return Err(Failure::own(format!("{} cannot stand in a unit: install spawn first", program.display())));
        }
        let data = ambient::directory("XDG_DATA_HOME");
        let environment = data.map(|data| {
            let mut word = OsString::from("XDG_DATA_HOME=");
            word.push(data);
            // Here systemd replaces specifiers, and no variables.
            Ok::<String, Failure>(format!("Environment={}\n", quoted(&word)?.replace("$$", "$")))
        });
        let options = lxcpath.map(|directory| {
            let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
            Ok::<String, Failure>(format!(" --lxcpath {}", quoted(directory.as_os_str())?))
        });
        Ok(Self {
            program: quoted(program.as_os_str())?,
            environment: environment.transpose()?.unwrap_or_default(),
            options: options.transpose()?.unwrap_or_default(),
        })
    }

    /// Delegate: the cgroup of the unit is the user's to divide, so that the container gets a part of its own.
    /// The supervisor is what `run --detach` leaves, and the only process of the unit whose parent is the manager. That
    /// a container has ended by itself, before ExecStop, is no failure of the unit.
    fn of_one(&self, name: &str) -> String {
        let Self { program, environment, options } = self;
        format!(
            "{MARK}\n[Unit]\nDescription=Container {name}\nDocumentation=man:spawn(1)\n\n\
             [Service]\nType=forking\n{environment}Delegate=yes\nExecStart={program} run --detach{options} {name}\n\
             ExecStop=-{program} stop {name}\nTimeoutStopSec=90\nKillMode=mixed\n\n\
             [Install]\nWantedBy=default.target\n"
        )
    }

    /// One container that does not start is no reason to end the others: a unit whose ExecStart fails is killed.
    fn of_all(&self) -> String {
        let Self { program, environment, options } = self;
        format!(
            "{MARK}\n[Unit]\nDescription=Containers with lxc.start.auto\nDocumentation=man:spawn(1)\n\n\
             [Service]\nType=oneshot\nRemainAfterExit=yes\n{environment}Delegate=yes\n\
             ExecStart=-{program} autostart run{options}\nExecStop=-{program} autostart stop{options}\n\
             TimeoutStartSec=infinity\nTimeoutStopSec=300\nKillMode=mixed\n\n\
             [Install]\nWantedBy=default.target\n"
        )
    }
}

/// The directory of the user's own units, open, and its path for messages.
struct Units {
    directory: OwnedFd,
    path: PathBuf,
}

impl Units {
    /// Opens `$XDG_CONFIG_HOME/systemd/user`, making what is missing. Each directory on the way belongs to the caller
    /// and is writable by him alone: what is written there is run as him.
    fn open() -> Outcome<Self> {
        let home = || Some(ambient::directory("HOME")?.join(".config"));
        let top = ambient::directory("XDG_CONFIG_HOME").or_else(home);
        let top = top.ok_or_else(|| Failure::own("neither HOME nor XDG_CONFIG_HOME says where units belong"))?;
        if let Err(error) = std::fs::create_dir(&top)
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(Failure::own(format!("cannot make {}: {error}", top.display())));
        }
        let (mut path, mut directory) = (top.clone(), own_directory(None, &top, &top)?);
        for part in ["systemd", "user"] {
            path.push(part);
            match mkdirat(&directory, part, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(cannot("make", &path, errno)),
            }
            directory = own_directory(Some(&directory), Path::new(part), &path)?;
        }
        Ok(Self { directory, path })
    }

    /// What stands at `name`: `None` for nothing, else whether it is ours.
    fn is_ours(&self, name: &str) -> Outcome<Option<bool>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&self.directory, name, flags, Mode::empty()) {
            Ok(fd) => std::fs::File::from(fd),
            Err(Errno::ENOENT) => return Ok(None),
            // A link, as that of a masked unit.
            Err(Errno::ELOOP) => return Ok(Some(false)),
            Err(errno) => return Err(cannot("open", &self.path.join(name), errno)),
        };
        let mut begin = [0; MARK.len()];
        Ok(Some((&file).read_exact(&mut begin).is_ok() && begin == *MARK.as_bytes()))
    }

    /// Writes a unit: whole and under its name, or not at all.
    fn write(&self, name: &str, text: &str) -> Outcome<()> {
        let path = self.path.join(name);
        if self.is_ours(name)? == Some(false) {
            return Err(Failure::own(format!("{} was not written by spawn: move it away first", path.display())));
        }
        let new = format!(".{name}.{}", std::process::id());
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let _ = unlinkat(&self.directory, new.as_str(), UnlinkatFlags::NoRemoveDir);
        let fd = openat(&self.directory, new.as_str(), flags, Mode::from_bits_truncate(0o644))
            .map_err(|errno| cannot("write", &path, errno))?;
        let mut file = std::fs::File::from(fd);
        let done = file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| error.to_string());
        let done = done.and_then(|()| renameat(&self.directory, new.as_str(), &self.directory, name).map_err(words));
        done.map_err(|why| {
            let _ = unlinkat(&self.directory, new.as_str(), UnlinkatFlags::NoRemoveDir);
            Failure::own(format!("cannot write {}: {why}", path.display()))
        })
    }

    /// Removes a unit of ours and the link of `systemctl enable`. Whether it was there.
    fn remove(&self, name: &str) -> Outcome<bool> {
        let path = self.path.join(name);
        match self.is_ours(name)? {
            None => return Ok(false),
            Some(false) => {
                return Err(Failure::own(format!("{} was not written by spawn, and stays", path.display())));
            }
            Some(true) => {}
        }
        let link = format!("{WANTS}/{name}");
        if fstatat(&self.directory, link.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
            .is_ok_and(|data| data.st_mode & libc::S_IFMT == libc::S_IFLNK)
        {
            let _ = unlinkat(&self.directory, link.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir).map_err(|errno| cannot("remove", &path, errno))?;
        Ok(true)
    }
}

fn cannot(what: &str, path: &Path, errno: Errno) -> Failure {
    Failure::own(format!("cannot {what} {}: {}", path.display(), words(errno)))
}

/// A directory that belongs to the caller and that nobody else may write, not even by a group that is not his own.
fn own_directory(parent: Option<&OwnedFd>, name: &Path, shown: &Path) -> Outcome<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let opened = match parent {
        Some(parent) => openat(parent, name, flags, Mode::empty()),
        None => nix::fcntl::open(name, flags, Mode::empty()),
    };
    let directory = opened.map_err(|errno| cannot("open", shown, errno))?;
    let file = std::fs::File::from(directory);
    let data = file.metadata().map_err(|error| Failure::own(format!("cannot look at {}: {error}", shown.display())))?;
    let by_group = data.mode() & 0o020 != 0 && data.gid() != getegid().as_raw();
    if data.uid() != geteuid().as_raw() || data.mode() & 0o002 != 0 || by_group {
        return Err(Failure::own(format!(
            "no unit is written to {}: others may write there (it belongs to uid {}, with mode {:o})",
            shown.display(),
            data.uid(),
            data.mode() & 0o7777
        )));
    }
    Ok(file.into())
}

/// The name of the unit of a container that `enable` has written, if it is there.
#[must_use]
pub fn written(name: &str) -> Option<String> {
    let home = || Some(ambient::directory("HOME")?.join(".config"));
    let top = ambient::directory("XDG_CONFIG_HOME").or_else(home)?;
    let unit = unit_of(name);
    let text = std::fs::read_to_string(top.join("systemd/user").join(&unit)).ok()?;
    text.starts_with(MARK).then_some(unit)
}

/// Writes a unit for each of `names`, or the one for all.
///
/// # Errors
/// When there is no such container, or the unit cannot be written.
pub fn enable(names: &[String], lxcpath: Option<&Path>) -> Outcome<u8> {
    let call = Call::new(lxcpath)?;
    let mut texts = Vec::new();
    for name in names {
        if !is_name(name) || name == "host" {
            return Err(Failure::own(format!("{} is no name of a container", name.escape_default())));
        }
        container::find(Path::new(name), lxcpath)?;
        texts.push((unit_of(name), call.of_one(name)));
    }
    if texts.is_empty() {
        texts.push((ALL.to_owned(), call.of_all()));
    }
    let units = Units::open()?;
    for (unit, text) in &texts {
        units.write(unit, text)?;
        say(&format!("written: {}", units.path.join(unit).display()));
    }
    say("next:");
    say("  systemctl --user daemon-reload");
    let shown: Vec<String> = texts.iter().map(|(unit, _)| for_a_shell(unit)).collect();
    say(&format!("  systemctl --user enable --now {}", shown.join(" ")));
    say("  loginctl enable-linger    # once for this user: at boot, without a login, and on after the last one");
    Ok(0)
}

fn for_a_shell(word: &str) -> String {
    if word.contains('\\') { format!("'{word}'") } else { word.to_owned() }
}

/// Removes the unit of each of `names`, or the one for all.
///
/// # Errors
/// When there is none, or it is not ours.
pub fn disable(names: &[String]) -> Outcome<u8> {
    let units = Units::open()?;
    let all: Vec<String> =
        if names.is_empty() { vec![ALL.to_owned()] } else { names.iter().map(|name| unit_of(name)).collect() };
    let result = each(&all, |unit| {
        let path = units.path.join(unit);
        if !units.remove(unit)? {
            return Err(Failure::own(format!("there is no unit {}", path.display())));
        }
        say(&format!("removed: {}", path.display()));
        Ok(())
    })?;
    say("next:");
    say("  systemctl --user daemon-reload");
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_escaped_by_the_rule_of_systemd() {
        // As systemd-escape(1) prints them.
        for (name, escaped) in [
            ("c7", "c7"),
            ("web-1", "web\\x2d1"),
            (".a", "\\x2ea"),
            ("a.b_c:d", "a.b_c:d"),
            ("a b/ü", "a\\x20b-\\xc3\\xbc"),
        ] {
            assert_eq!(escape(name), escaped);
        }
    }

    #[test]
    fn a_word_of_a_command_line_means_itself() {
        let word = |text: &str| quoted(OsStr::new(text)).map_err(|failure| failure.text);
        assert_eq!(word("/usr/bin/spawn").as_deref(), Ok("/usr/bin/spawn"));
        assert_eq!(word("/a b/50%/$x\"\\").as_deref(), Ok("\"/a b/50%%/$$x\\\"\\\\\""));
        assert_eq!(word("").as_deref(), Ok("\"\""));
        assert!(word("/a\nb").is_err() && quoted(OsStr::from_bytes(b"\xff")).is_err());
    }
}
