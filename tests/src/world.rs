//! The world of one trial: namespaces, fixture `/etc`, the installed programs, and the socket that receives syslog.

use std::collections::HashMap;
use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};

use crate::call::{Answer, Call};
use crate::harness::{IGNORED, NOT_THEIRS};
use crate::sys;
use crate::target::Target;

/// A user of the fixture. The ids differ from each other and from those of any real account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Name in /etc/passwd.
    pub name: &'static str,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
}

/// uid 1001 as in the tables of the specification, gid 1101.
pub const ALICE: User = User { name: "alice", uid: 1001, gid: 1101 };
/// Another ordinary user.
pub const BOB: User = User { name: "bob", uid: 1002, gid: 1102 };
/// The administrator.
pub const ROOT: User = User { name: "root", uid: 0, gid: 0 };

/// A group that alice is in beside her primary group.
pub const USERS_GID: u32 = 1150;

impl User {
    /// Becomes this user: real, effective and saved ids, no other groups, dumpable as after exec.
    ///
    /// # Panics
    /// When the process may not.
    pub fn become_user(&self) {
        self.become_with_gid(self.gid, &[]);
    }

    /// As [`User::become_user`], with another real gid and with supplementary groups.
    ///
    /// # Panics
    /// When the process may not.
    pub fn become_with_gid(&self, gid: u32, groups: &[u32]) {
        let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(gid));
        setgroups(&groups).expect("setgroups");
        setresgid(gid, gid, gid).expect("setresgid");
        setresuid(uid, uid, uid).expect("setresuid");
        sys::prctl(libc::PR_SET_DUMPABLE, 1).expect("PR_SET_DUMPABLE");
    }
}

/// How the program under test is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Install {
    /// root, mode 4755.
    Setuid,
    /// root, mode 0755, `cap_setuid=ep` or `cap_setgid=ep`.
    FileCapabilities,
}

impl Install {
    /// The first word of the trial's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Setuid => "setuid",
            Self::FileCapabilities => "fcaps",
        }
    }
}

/// Whose programs are tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnderTest {
    /// Those of this repository.
    Ours,
    /// The distribution's: shadow's uidmap.
    Theirs,
}

impl UnderTest {
    /// From the environment variable `UNDER_TEST`; ours without it.
    ///
    /// # Panics
    /// When it is neither `ours` nor `theirs`.
    #[must_use]
    pub fn get() -> Self {
        match env::var("UNDER_TEST").as_deref() {
            Err(_) | Ok("ours" | "") => Self::Ours,
            Ok("theirs") => Self::Theirs,
            Ok(other) => panic!("UNDER_TEST={other}: it is ours or theirs"),
        }
    }
}

/// newuidmap or newgidmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// newuidmap, /etc/subuid, uid_map.
    Uid,
    /// newgidmap, /etc/subgid, gid_map.
    Gid,
}

impl Kind {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Uid, Self::Gid];

    /// The program.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Uid => "newuidmap",
            Self::Gid => "newgidmap",
        }
    }

    /// Its map in /proc/PID.
    #[must_use]
    pub const fn map(self) -> &'static str {
        match self {
            Self::Uid => "uid_map",
            Self::Gid => "gid_map",
        }
    }

    /// The file with its grants.
    #[must_use]
    pub const fn file(self) -> &'static str {
        match self {
            Self::Uid => "/etc/subuid",
            Self::Gid => "/etc/subgid",
        }
    }

    /// `uid` or `gid`, as messages have it.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::Uid => "uid",
            Self::Gid => "gid",
        }
    }

    /// The id of `user` that a self map may name.
    #[must_use]
    pub const fn own(self, user: User) -> u32 {
        match self {
            Self::Uid => user.uid,
            Self::Gid => user.gid,
        }
    }

    /// The one capability that the program holds (CAP_SETUID or CAP_SETGID).
    #[must_use]
    pub const fn capability(self) -> u32 {
        match self {
            Self::Uid => 7,
            Self::Gid => 6,
        }
    }
}

/// CAP_SETFCAP.
pub const CAP_SETFCAP: u32 = 31;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
alice:x:1001:1101::/home/alice:/bin/sh
bob:x:1002:1102::/home/bob:/bin/sh
nobody:x:65534:65534:nobody:/:/usr/sbin/nologin
";
const GROUP: &str = "root:x:0:\nalice:x:1101:\nbob:x:1102:\nusers:x:1150:alice\nnogroup:x:65534:\n";
const GRANTS: &str = "bob:300000:65536\nalice:100000:65536\n";

/// Where the programs under test are installed in every world.
pub const BIN: &str = "/run/bin";

/// What a trial works with.
pub struct World {
    /// How the program under test is installed.
    pub install: Install,
    /// Whose it is.
    pub under_test: UnderTest,
    /// The host's own cgroup namespace: only there a new named hierarchy can be made.
    pub host_cgroup_namespace: fs::File,
    log: UnixDatagram,
    lines: Vec<Vec<u8>>,
    programs: HashMap<String, Result<Vec<u8>, String>>,
}

impl World {
    /// Ours are under test.
    #[must_use]
    pub fn ours(&self) -> bool {
        self.under_test == UnderTest::Ours
    }

    /// Ends the trial as ignored.
    pub fn ignore(&self, reason: &str) -> ! {
        ignore(reason)
    }

    /// Ends the trial as ignored when the original is under test, for it has no `what`.
    pub fn needs_ours(&self, what: &str) {
        if !self.ours() {
            end(NOT_THEIRS, &format!("the original has no {what}"));
        }
    }

    /// Ends the trial as ignored when a tool of the system is not installed.
    pub fn needs_tool(&self, path: &str) {
        if !Path::new(path).exists() {
            ignore(&format!("needs {path}"));
        }
    }

    /// Writes a fixture file, owned by root with mode 0644. Whatever was there is replaced.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        let path = path.as_ref();
        self.remove(path);
        fs::write(path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self.mode(path, 0o644);
    }

    /// Appends to a fixture file.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn append(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .and_then(|mut file| file.write_all(content.as_ref()))
            .expect("append");
    }

    /// Removes a file, a symlink or a directory, if it is there.
    ///
    /// # Panics
    /// When it cannot be removed.
    pub fn remove(&self, path: impl AsRef<Path>) {
        let path = path.as_ref();
        match fs::symlink_metadata(path) {
            Err(_) => {}
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).expect("remove"),
            Ok(_) => fs::remove_file(path).expect("remove"),
        }
    }

    /// Changes a file's mode.
    ///
    /// # Panics
    /// When it cannot be changed.
    pub fn mode(&self, path: impl AsRef<Path>, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    /// The path of a program under test, which is installed on first use.
    ///
    /// # Panics
    /// When the program has not been built.
    pub fn program(&mut self, name: &str) -> PathBuf {
        let path = Path::new(BIN).join(name);
        if !path.exists() {
            self.install_at(name, &path, self.install);
        }
        path
    }

    /// Installs a program under test at `path`.
    ///
    /// # Panics
    /// When the program has not been built.
    pub fn install_at(&self, name: &str, path: &Path, install: Install) {
        let bytes = self.bytes(name);
        fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self.mode(path, 0o755);
        let capability = match name {
            "newuidmap" => Kind::Uid.capability(),
            "newgidmap" => Kind::Gid.capability(),
            "cgdelegate" => return self.mode(path, 0o4755),
            _ => return,
        };
        match install {
            Install::Setuid => self.mode(path, 0o4755),
            Install::FileCapabilities => {
                if let Err(error) = sys::set_file_capabilities(path, &[capability]) {
                    ignore(&format!("needs file capabilities on tmpfs: {error}"));
                }
            }
        }
    }

    /// The content of a program under test.
    ///
    /// # Panics
    /// When the program has not been built.
    #[must_use]
    pub fn bytes(&self, name: &str) -> &[u8] {
        match self.programs.get(name) {
            Some(Ok(bytes)) => bytes,
            Some(Err(error)) => {
                panic!("{error}: build it first (cargo build -p newuidmap-rs --bins) or set HELPERS_DIR")
            }
            None => panic!("no program is called {name}"),
        }
    }

    /// A call of newuidmap or newgidmap as alice.
    pub fn helper(&mut self, kind: Kind) -> Call {
        let program = self.program(kind.program());
        Call::new(program).user(ALICE)
    }

    /// Calls the helper as alice with a fresh target of hers and `triples` (words separated by blanks).
    pub fn ask(&mut self, kind: Kind, triples: &str) -> Answer {
        let target = Target::new(ALICE);
        self.ask_for(kind, target, triples)
    }

    /// As [`World::ask`] with a target made by the caller.
    pub fn ask_for(&mut self, kind: Kind, target: Target, triples: &str) -> Answer {
        let call = self.helper(kind).arg(target.pid().to_string()).words(triples);
        self.answer(kind, target, call)
    }

    /// Runs `call` and looks at what became of `target`.
    pub fn answer(&mut self, kind: Kind, target: Target, call: Call) -> Answer {
        let outcome = call.run(self);
        Answer { kind, outcome, target }
    }

    /// The socket behind /dev/log.
    pub(crate) fn log(&self) -> &UnixDatagram {
        &self.log
    }

    /// Takes what has arrived at /dev/log.
    pub(crate) fn drain_log(&mut self) {
        let mut buffer = [0; 65536];
        while let Ok(count) = self.log.recv(&mut buffer) {
            self.lines.push(buffer[..count].to_vec());
        }
    }

    /// The datagrams that came to /dev/log since the last call of this function.
    pub fn syslog(&mut self) -> Vec<Vec<u8>> {
        self.drain_log();
        std::mem::take(&mut self.lines)
    }

    /// Removes /dev/log, so that there is no syslog.
    pub fn without_syslog(&self) {
        self.remove("/dev/log");
    }
}

/// Ends the trial as ignored.
pub fn ignore(reason: &str) -> ! {
    end(IGNORED, reason)
}

#[allow(clippy::print_stderr)]
fn end(status: i32, reason: &str) -> ! {
    eprintln!("{reason}");
    std::process::exit(status)
}

/// Makes the world, runs the trial as its first process and returns the trial's exit status.
pub(crate) fn enter(install: Install, trial: &dyn Fn(&mut World)) -> ExitCode {
    if !Uid::effective().is_root() {
        ignore("needs uid 0");
    }
    let programs = read_programs();
    let spaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    let host_cgroup_namespace = fs::File::open("/proc/self/ns/cgroup").expect("cgroup namespace");
    if let Err(error) = unshare(spaces) {
        ignore(&format!("needs namespaces: unshare: {error}"));
    }
    let first = sys::fork(move || {
        sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong).expect("PR_SET_PDEATHSIG");
        let log = furnish();
        let mut world =
            World { install, under_test: UnderTest::get(), host_cgroup_namespace, log, lines: Vec::new(), programs };
        trial(&mut world);
        0
    });
    let status = match first.and_then(|pid| sys::wait(pid, 0)) {
        Ok(Some((status, _))) => status,
        other => panic!("the trial's first process: {other:?}"),
    };
    assert!(libc::WIFEXITED(status), "the trial died of signal {}", libc::WTERMSIG(status));
    ExitCode::from(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(1))
}

fn read_programs() -> HashMap<String, Result<Vec<u8>, String>> {
    let directory = match UnderTest::get() {
        UnderTest::Theirs => PathBuf::from("/usr/bin"),
        UnderTest::Ours => helpers_dir(),
    };
    let mut programs: HashMap<_, _> = ["newuidmap", "newgidmap", "getsubids", "idmap", "spawn", "cgdelegate", "rootfs"]
        .into_iter()
        .map(|name| (name.to_owned(), read(&directory.join(name))))
        .collect();
    for name in ["newuidmap", "newgidmap", "getsubids"] {
        programs.insert(format!("/usr/bin/{name}"), read(&Path::new("/usr/bin").join(name)));
    }
    programs
}

/// Where our programs are: `HELPERS_DIR`, or the directory above that of this test program.
///
/// # Panics
/// When the test program does not know where it is.
#[must_use]
pub fn helpers_dir() -> PathBuf {
    if let Some(directory) = env::var_os("HELPERS_DIR").filter(|value| !value.is_empty()) {
        return PathBuf::from(directory);
    }
    let exe = env::current_exe().expect("the test program's own path");
    exe.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST").to_owned()
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn tmpfs(path: &str, mode: u32) {
    fs::create_dir_all(path).expect("mount point");
    let options = format!("mode={mode:o}");
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
        .unwrap_or_else(|error| panic!("tmpfs on {path}: {error}"));
}

fn furnish() -> UnixDatagram {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .expect("private mounts");
    let loader_cache = fs::read("/etc/ld.so.cache").unwrap_or_default();
    for (path, mode) in [("/etc", 0o755), ("/run", 0o755), ("/tmp", 0o1777), ("/home", 0o755)] {
        tmpfs(path, mode);
    }
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>).expect("proc of the new pid namespace");
    fs::create_dir(BIN).expect(BIN);
    for (name, content) in [
        ("passwd", PASSWD),
        ("group", GROUP),
        ("subuid", GRANTS),
        ("subgid", GRANTS),
        ("nsswitch.conf", "passwd: files\ngroup: files\n"),
        ("login.defs", "MAIL_DIR /var/mail\n"),
    ] {
        fs::write(Path::new("/etc").join(name), content).expect(name);
    }
    fs::write("/etc/ld.so.cache", loader_cache).expect("ld.so.cache");
    for user in [ALICE, BOB] {
        let home = Path::new("/home").join(user.name);
        fs::create_dir(&home).expect("home");
        chown(&home, Some(user.uid), Some(user.gid)).expect("home");
    }
    devices()
}

fn devices() -> UnixDatagram {
    let kept = ["null", "zero", "full", "random", "urandom", "tty"];
    fs::create_dir("/run/dev").expect("dev");
    tmpfs("/run/dev", 0o755);
    for name in kept {
        let (host, here) = (Path::new("/dev").join(name), Path::new("/run/dev").join(name));
        fs::write(&here, "").expect(name);
        mount(Some(&host), &here, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect(name);
    }
    mount(Some("/run/dev"), "/dev", None::<&str>, MsFlags::MS_MOVE, None::<&str>).expect("move /dev");
    symlink("/proc/self/fd", "/dev/fd").expect("/dev/fd");
    let log = UnixDatagram::bind("/dev/log").expect("/dev/log");
    fs::set_permissions("/dev/log", fs::Permissions::from_mode(0o666)).expect("/dev/log");
    log.set_nonblocking(true).expect("/dev/log");
    log
}

/// A process's id map: (upper, lower, count) per line.
///
/// # Panics
/// When the process is gone.
#[must_use]
pub fn read_map(pid: Pid, file: &str) -> Vec<[u64; 3]> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines()
        .map(|line| {
            let words: Vec<u64> = line.split_whitespace().map(|word| word.parse().expect("a number")).collect();
            words.try_into().expect("three numbers")
        })
        .collect()
}
