//! The world in which everything is timed: a private mount namespace with copies of the /etc files, an ordinary user
//! who exists in them alone, and the programs set-user-ID root on a tmpfs. It ends with the process; the host is not
//! touched.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};

use crate::sys;

/// How many ids the user is granted.
pub const COUNT: u32 = 65_536;
const USER: &str = "bench";
/// Ids of each other user in the files, so that a million of them fit below 2^32.
const OTHERS_COUNT: u64 = 4_000;

/// See the module's comment.
pub struct Fixture {
    /// The tmpfs.
    pub dir: PathBuf,
    /// Of the ordinary user; the group id is the same number.
    pub id: u32,
    /// First subordinate id, user and group alike.
    pub first: u32,
}

/// What went wrong, with the path it went wrong with.
pub fn at(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

impl Fixture {
    /// Makes it: this process is in it from now on.
    pub fn enter() -> io::Result<Self> {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        // Directories that the file system hierarchy standard promises and no program of the system needs.
        let dir = ["/mnt", "/media", "/srv"]
            .iter()
            .map(PathBuf::from)
            .find(|path| path.is_dir())
            .ok_or_else(|| io::Error::other("none of /mnt, /media, /srv is a directory"))?;
        mount(Some("bench"), &dir, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;

        let passwd = fs::read_to_string("/etc/passwd")?;
        let group = fs::read_to_string("/etc/group")?;
        let taken = |id: u32| {
            let has = |text: &str| text.lines().any(|line| line.split(':').nth(2) == Some(&id.to_string()));
            has(&passwd) || has(&group)
        };
        let id = (61_000..65_000).find(|id| !taken(*id)).ok_or_else(|| io::Error::other("no free id"))?;
        let fixture = Self { dir, id, first: 4_100_000_000 };
        fixture.file("passwd", &format!("{passwd}{USER}:x:{id}:{id}::{}:/bin/sh\n", fixture.home().display()))?;
        fixture.file("group", &format!("{group}{USER}:x:{id}:\n"))?;
        fixture.file("nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\n")?;
        fixture.file("subuid", "")?;
        fixture.file("subgid", "")?;
        fixture.subordinate(10)?;
        // Grants are logged: the host's log shall not be filled with them.
        if let Ok(socket) = fs::canonicalize("/dev/log") {
            mount(Some("/dev/null"), &socket, none, MsFlags::MS_BIND, none).map_err(|error| at(&socket, error))?;
        }
        // LXC enters the home as a user of the container.
        for (path, mode) in [(fixture.home(), 0o711), (fixture.runtime(), 0o700)] {
            fs::create_dir(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            std::os::unix::fs::chown(&path, Some(id), Some(id))?;
        }
        Ok(fixture)
    }

    /// The user's own directory.
    pub fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    /// The user's directory for run state.
    pub fn runtime(&self) -> PathBuf {
        self.dir.join("runtime")
    }

    fn file(&self, name: &str, text: &str) -> io::Result<()> {
        let copy = self.dir.join(format!("etc-{name}"));
        let to = Path::new("/etc").join(name);
        fs::write(&copy, text).map_err(|error| at(&copy, error))?;
        if !to.exists() {
            return Err(at(&to, "does not exist, so nothing can be mounted there: create it empty"));
        }
        mount(Some(&copy), &to, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|error| at(&to, error))
    }

    /// Fills /etc/subuid and /etc/subgid with `lines` lines, the user's last.
    pub fn subordinate(&self, lines: u64) -> io::Result<()> {
        for name in ["subuid", "subgid"] {
            let mut out = BufWriter::new(File::create(self.dir.join(format!("etc-{name}")))?);
            for line in 1..lines {
                writeln!(out, "user{line:07}:{}:{OTHERS_COUNT}", 100_000 + line * OTHERS_COUNT)?;
            }
            writeln!(out, "{USER}:{}:{COUNT}", self.first)?;
            out.flush()?;
        }
        Ok(())
    }

    /// Copies `program` into directory `directory` of the tmpfs with `mode`, owned by root.
    pub fn copy(&self, program: &Path, directory: &str, mode: u32) -> io::Result<PathBuf> {
        let name = program.file_name().ok_or_else(|| at(program, "no file name"))?;
        let copy = self.dir.join(directory).join(name);
        fs::create_dir_all(self.dir.join(directory))?;
        fs::copy(program, &copy).map_err(|error| at(program, error))?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(mode))?;
        Ok(copy)
    }

    /// Runs `work` in a process of the ordinary user, and waits.
    pub fn as_user(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let worker = sys::fork(|| {
            let become_user = || -> io::Result<()> {
                let (uid, gid) = (Uid::from_raw(self.id), Gid::from_raw(self.id));
                setgroups(&[gid])?;
                setresgid(gid, gid, gid)?;
                setresuid(uid, uid, uid)?;
                // A process that was root is not dumpable: its /proc files would be root's.
                nix::sys::prctl::set_dumpable(true)?;
                std::env::set_current_dir(self.home())
            };
            match become_user().and_then(|()| work()) {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("bench: {error}");
                    1
                }
            }
        })?;
        match sys::wait(worker)?.code {
            0 => Ok(()),
            code => Err(io::Error::other(format!("the ordinary user's part ended with {code}"))),
        }
    }
}

/// A process in a fresh user namespace that waits to be mapped, and is killed when dropped.
pub struct Target(Pid);

impl Target {
    /// Makes one; returns when its namespace exists.
    pub fn new() -> io::Result<Self> {
        let (read, write) = nix::unistd::pipe()?;
        let pid = sys::fork(|| {
            let ready = unshare(CloneFlags::CLONE_NEWUSER)
                .and_then(|()| nix::sys::prctl::set_dumpable(true))
                .and_then(|()| nix::unistd::write(&write, b"+"));
            if ready.is_err() {
                return 1;
            }
            loop {
                nix::unistd::pause();
            }
        })?;
        let target = Self(pid);
        drop(write);
        if nix::unistd::read(&read, &mut [0])? != 1 {
            return Err(io::Error::other(
                "cannot make a user namespace as an ordinary user (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)",
            ));
        }
        Ok(target)
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.0
    }

    /// Whether `file` (uid_map or gid_map) holds a map.
    pub fn is_mapped(&self, file: &str) -> bool {
        fs::read(format!("/proc/{}/{file}", self.0)).is_ok_and(|text| !text.is_empty())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to do.
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = sys::wait(self.0);
    }
}
