//! The privileged programs that a start runs: found once, executed by absolute path with an empty environment, and
//! waited for no longer than the start may take.

#![forbid(unsafe_code)]

use core::ffi::CStr;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};

use crate::ambient;
use crate::failure::{Failure, Outcome, one_line, words};
use crate::supervise::time_left;
use crate::sys;

/// A program with privilege.
#[derive(Debug)]
pub struct Tool {
    name: &'static str,
    path: PathBuf,
}

/// Where such programs are looked for: beside this program, in `../libexec` from there, along the caller's PATH, in
/// /usr/bin.
#[must_use]
pub fn places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Ok(own) = std::env::current_exe()
        && let Some(directory) = own.parent()
    {
        places.push(directory.to_owned());
        places.extend(directory.parent().map(|above| above.join("libexec")));
    }
    if let Some(path) = ambient::variable("PATH") {
        places.extend(std::env::split_paths(&path).filter(|place| place.is_absolute()));
    }
    places.push(PathBuf::from("/usr/bin"));
    places
}

impl Tool {
    /// The first program called `name` in `places` that holds a privilege. `source`: where it comes from, for who does
    /// not have it.
    ///
    /// # Errors
    /// When it is missing, or is there but holds no privilege.
    pub fn find(name: &'static str, places: &[PathBuf], source: &str) -> Outcome<Self> {
        let mut powerless = None;
        for place in places {
            let path = place.join(name);
            let Ok(data) = std::fs::metadata(&path) else { continue };
            if !data.is_file() || data.permissions().mode() & 0o111 == 0 {
                continue;
            }
            let privileged = (data.mode() & 0o4000 != 0 && data.uid() == 0)
                || has_capability(&path)
                || nix::unistd::geteuid().is_root();
            if privileged {
                return Ok(Self { name, path });
            }
            powerless.get_or_insert(path);
        }
        Err(Failure::own(match powerless {
            Some(path) => format!(
                "{} has no privilege: as root, `chown 0:0 {0} && chmod 4755 {0}`, or install it again",
                path.display()
            ),
            None => format!("{name} is not installed: it is in {source}"),
        }))
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Starts it with `arguments`; what it says on standard output and error goes to `output`.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub fn start(&self, arguments: impl IntoIterator<Item = String>, output: &OwnedFd) -> Outcome<Running> {
        let fail = |cause: String| Failure::own(format!("cannot execute {}: {cause}", self.path.display()));
        let all = [self.name.to_owned()].into_iter().chain(arguments);
        let argv: Vec<CString> = all.filter_map(|word| CString::new(word).ok()).collect();
        let file = CString::new(self.path.as_os_str().as_bytes()).map_err(|error| fail(error.to_string()))?;
        let argv: Vec<&CStr> = argv.iter().map(CString::as_c_str).collect();
        sys::exec_tool(&file, &argv, output.as_fd()).map(|pidfd| Running { pidfd }).map_err(|errno| fail(words(errno)))
    }

    /// One line that names the tool and holds its own words, with what is known to take its privilege away. `result`:
    /// of [`Running::wait`]; `output`: the other end of its output.
    #[must_use]
    pub fn failure(&self, result: Option<u8>, output: &OwnedFd) -> Failure {
        let Some(code) = result else {
            return Failure::own(format!("{} has not ended in time", self.path.display()));
        };
        let said = said(output);
        // The tool that failed first has spoken first; only its own lines are wanted.
        let line = said.lines().find(|line| line.starts_with(self.name)).or(said.lines().next());
        let line =
            line.map_or_else(|| format!("{} ended with status {code} and said nothing", self.path.display()), one_line);
        Failure::own(match lost_privilege(&self.path) {
            Some(cause) => format!("{line}; {cause}"),
            None => line,
        })
    }
}

/// What has been said already and no more: a descendant may still hold the other end.
#[must_use]
pub fn said(output: &OwnedFd) -> String {
    let mut bytes = vec![0_u8; 4096];
    let mut fds = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
    let length = match poll(&mut fds, 0_u16) {
        Ok(1) => sys::read(output.as_raw_fd(), &mut bytes).unwrap_or(0),
        _ => 0,
    };
    bytes.truncate(length);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A tool that runs.
#[derive(Debug)]
pub struct Running {
    pidfd: OwnedFd,
}

impl Running {
    /// Ends it.
    pub fn end(&self) {
        let _ = sys::signal_process(self.pidfd.as_fd(), libc::SIGKILL);
        // Not waited for: a tool that is root may not be killed by us, and then would hold us up.
    }

    /// Its exit code, 128 and more for a signal; `None` when the time is up.
    #[must_use]
    pub fn wait(&self, deadline: Instant) -> Option<u8> {
        loop {
            let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, time_left(Some(deadline))) {
                Err(Errno::EINTR) => {}
                Ok(0) | Err(_) => {
                    self.end();
                    return None;
                }
                Ok(_) => return sys::wait_child(self.pidfd.as_fd()).ok().map(|(code, _)| code),
            }
        }
    }
}

/// Why a tool that looks privileged is not, when that is so.
fn lost_privilege(path: &Path) -> Option<String> {
    if nix::sys::prctl::get_no_new_privs().unwrap_or(false) {
        return Some(format!(
            "{} has lost its privilege, because no_new_privs is set on the caller (a service manager's NoNewPrivileges=, a container, setpriv --nnp)",
            path.display()
        ));
    }
    let flags = nix::sys::statvfs::statvfs(path).ok()?.flags();
    flags
        .contains(nix::sys::statvfs::FsFlags::ST_NOSUID)
        .then(|| format!("{} has lost its privilege, because it lies on a file system mounted nosuid", path.display()))
}

fn has_capability(path: &Path) -> bool {
    CString::new(path.as_os_str().as_bytes()).is_ok_and(|path| sys::has_attribute(&path, c"security.capability"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_without_privilege_is_not_taken() {
        let top = tempfile::tempdir().unwrap();
        let places = [top.path().to_owned()];
        let missing = Tool::find("newuidmap", &places, "the package uidmap").unwrap_err();
        assert!(missing.text.contains("is not installed: it is in the package uidmap"), "{missing}");
        let path = top.path().join("newuidmap");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        if !nix::unistd::geteuid().is_root() {
            let powerless = Tool::find("newuidmap", &places, "a package").unwrap_err();
            assert!(powerless.text.contains("has no privilege"), "{powerless}");
        }
    }
}
