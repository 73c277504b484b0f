//! What every trial of spawn works with: a rootfs of busybox that belongs to alice's first subordinate id, calls of
//! spawn as alice, and a look at what is left afterwards.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use tests::{ALICE, Call, Outcome, Trial, User, World};

use crate::sys;

/// The rootfs.
pub const EV: &str = "/home/alice/ev";
/// A directory of the host that anybody may write to, with one file `secret`.
pub const V: &str = "/home/victim";
/// Root inside, as the host numbers it: the first of alice's subordinate ids.
pub const FIRST: u32 = 100_000;
/// Where alice's programs keep their sockets.
pub const RUNTIME: &str = "/run/user/1001";
/// The first system call that Linux 5.5 does not have.
const NEWER_THAN_5_5: u32 = 436;

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 62] = [
    "[", "awk", "basename", "cat", "chmod", "chown", "chroot", "cp", "cut", "date", "dd", "df", "dirname", "echo",
    "env", "expr", "false", "find", "grep", "head", "hostname", "id", "ifconfig", "init", "ip", "kill", "ln", "ls",
    "mkdir", "mkfifo", "mknod", "mount", "mv", "nc", "od", "ping", "printf", "ps", "pwd", "readlink", "rm", "rmdir",
    "sed", "seq", "setsid", "sh", "sleep", "sort", "stat", "stty", "tail", "test", "touch", "tr", "true", "tty",
    "umount", "uname", "unshare", "usleep", "wc", "which",
];

/// One trial's fixture.
pub struct Case<'a> {
    /// The world it stands in.
    pub world: &'a mut World,
    /// Whether the kernel is made to look like 5.5: every newer system call answers ENOSYS.
    pub old: bool,
}

/// A trial that runs twice: with the kernel as it is, and with one that is made to look like Linux 5.5.
pub fn both(name: &'static str, run: fn(&mut Case<'_>)) -> Vec<Trial> {
    vec![
        Trial::once(format!("spawn: {name}"), move |world| run(&mut Case::new(world, false))),
        Trial::once(format!("spawn on Linux 5.5: {name}"), move |world| run(&mut Case::new(world, true))),
    ]
}

/// A trial that the version of the kernel means nothing to.
pub fn once(name: &'static str, run: fn(&mut Case<'_>)) -> Vec<Trial> {
    vec![Trial::once(format!("spawn: {name}"), move |world| run(&mut Case::new(world, false)))]
}

impl<'a> Case<'a> {
    fn new(world: &'a mut World, old: bool) -> Self {
        world.needs_ours("spawn");
        world.needs_tool(BUSYBOX);
        for name in ["spawn", "newuidmap", "newgidmap", "idmap"] {
            let _ = world.program(name);
        }
        fs::create_dir_all(RUNTIME).expect(RUNTIME);
        own(RUNTIME, ALICE);
        world.mode(RUNTIME, 0o700);
        fs::create_dir(V).expect(V);
        world.mode(V, 0o777);
        fs::write(Path::new(V).join("secret"), "secret\n").expect("secret");
        let case = Self { world, old };
        case.make_rootfs(EV, FIRST);
        case
    }

    /// A rootfs of busybox at `path` in which everything belongs to `owner` (user and group) of the host.
    pub fn make_rootfs(&self, path: &str, owner: u32) {
        let root = Path::new(path);
        let directories = "bin dev etc home/ada mnt proc root run sys tmp var/log";
        for directory in directories.split(' ') {
            fs::create_dir_all(root.join(directory)).expect(directory);
        }
        fs::copy(BUSYBOX, root.join("bin/busybox")).expect("busybox");
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).expect(applet);
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nbin:x:1:1::/bin:/bin/false\nada:x:1000:100::/home/ada:/bin/sh\n",
        )
        .expect("passwd");
        fs::write(root.join("etc/group"), "root:x:0:\nwheel:x:10:root,ada\nusers:x:100:\nother:x:33:adam\n")
            .expect("group");
        self.world.mode(root.join("tmp"), 0o1777);
        chown_all(root, owner);
    }

    /// A call of `program` as alice, with the environment of a login.
    pub fn call(&self, program: impl Into<PathBuf>) -> Call {
        self.call_as(ALICE, program)
    }

    /// As [`Case::call`] for another user.
    pub fn call_as(&self, user: User, program: impl Into<PathBuf>) -> Call {
        let old = self.old;
        Call::new(program)
            .as_root(move || {
                if old {
                    sys::without_system_calls_from(NEWER_THAN_5_5).expect("seccomp");
                }
                std::env::set_current_dir("/").expect("chdir");
            })
            .user(user)
            .env("PATH", "/run/bin:/usr/local/bin:/usr/bin:/bin")
            .env("HOME", format!("/home/{}", user.name))
            .env("XDG_RUNTIME_DIR", format!("/run/user/{}", user.uid))
    }

    /// `spawn` with `words`.
    pub fn spawn(&self, words: &[&str]) -> Call {
        self.call("/run/bin/spawn").args(words)
    }

    /// `spawn run OPTIONS rootfs -- COMMAND`, to be started.
    pub fn run_call(&self, options: &[&str], command: &[&str]) -> Call {
        self.spawn(&["run"]).args(options).arg(EV).arg("--").args(command)
    }

    /// `spawn run OPTIONS rootfs -- COMMAND`, run to its end.
    pub fn run(&mut self, options: &[&str], command: &[&str]) -> Outcome {
        let call = self.run_call(options, command);
        call.run(self.world)
    }

    /// A shell script inside.
    pub fn sh(&mut self, options: &[&str], script: &str) -> Outcome {
        self.run(options, &["/bin/sh", "-c", script])
    }

    /// The output of a shell script inside, which must exit with 0 and write nothing to standard error.
    #[track_caller]
    pub fn out(&mut self, options: &[&str], script: &str) -> String {
        let outcome = self.sh(options, script);
        outcome.assert_code(0, script);
        assert_eq!(outcome.text(), "", "standard error of: {script}");
        outcome.out()
    }

    /// `spawn run` with `words` fails with `code`, and each of `said` stands in its one line on standard error.
    #[track_caller]
    pub fn fails(&mut self, words: &[&str], code: i32, said: &[&str]) -> Outcome {
        let call = self.spawn(&["run"]).args(words);
        let outcome = call.run(self.world);
        self.failed(&outcome, code, said, &words.join(" "));
        outcome
    }

    /// What [`Case::fails`] wants of an outcome.
    #[track_caller]
    pub fn failed(&mut self, outcome: &Outcome, code: i32, said: &[&str], why: &str) {
        outcome.assert_code(code, why);
        let text = outcome.text();
        assert!(
            text.starts_with("spawn: ") && text.ends_with('\n') && text.matches('\n').count() == 1,
            "{why}: not one line: {text:?}"
        );
        for word in said {
            assert!(text.contains(word), "{why}: \"{word}\" is not in: {text}");
        }
        self.nothing_left(why);
    }

    /// A shell pipeline of the host's, as alice.
    pub fn pipeline(&mut self, script: &str) -> Outcome {
        let call = self.call("/bin/sh").args(["-c", script]);
        call.run(self.world)
    }

    /// Waits until no process but this one is left, nor anything that a start makes on the host.
    #[track_caller]
    pub fn nothing_left(&mut self, why: &str) {
        self.no_process_left(why);
        for directory in [format!("{RUNTIME}/spawn"), format!("/tmp/spawn-{}", ALICE.uid)] {
            let names: Vec<_> =
                fs::read_dir(&directory).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
            assert!(names.is_empty(), "{why}: {directory} still holds {names:?}");
        }
    }

    /// After a SIGKILL of `spawn`: every process goes by itself, and the run state with the next command.
    #[track_caller]
    pub fn nothing_left_of_killed(&mut self, why: &str) {
        self.no_process_left(why);
        let outcome = self.spawn(&["ls"]).run(self.world);
        assert_eq!((outcome.code(), outcome.out().as_str()), (Some(0), ""), "{why}: {}", outcome.text());
        self.nothing_left(why);
    }

    #[track_caller]
    fn no_process_left(&self, why: &str) {
        let begin = Instant::now();
        loop {
            let left = processes();
            if left.is_empty() {
                break;
            }
            let text: Vec<String> = left.iter().map(|pid| format!("{pid}: {}", command_line(*pid))).collect();
            assert!(begin.elapsed() < Duration::from_secs(20), "{why}: still there: {}", text.join("; "));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What the host is like.
    pub fn host(&self) -> Host {
        Host::look()
    }

    /// Makes the mounts of this world shared, as systemd does with those of a host.
    pub fn share_mounts(&self) {
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>).expect("shared");
    }
}

/// What a start must leave as it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Host {
    victim: Vec<String>,
    mounts: String,
    links: Vec<String>,
    tmp: Vec<String>,
}

impl Host {
    fn look() -> Self {
        let mut links: Vec<String> = fs::read_to_string("/proc/net/dev")
            .expect("dev")
            .lines()
            .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
            .collect();
        links.sort();
        Self {
            victim: tree(Path::new(V)),
            mounts: fs::read_to_string("/proc/self/mountinfo").expect("mountinfo"),
            links,
            tmp: tree(Path::new("/tmp")).into_iter().filter(|line| !line.contains("/tmp/spawn-1001 ")).collect(),
        }
    }

    /// Nothing has changed.
    #[track_caller]
    pub fn assert_same(&self, why: &str) {
        assert_eq!(*self, Self::look(), "{why}: the host has changed");
    }
}

/// Every file below `path`: its name, mode, owner and content.
pub fn tree(path: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut all = Vec::new();
    for entry in fs::read_dir(path).expect("a directory").flatten() {
        let data = entry.metadata().expect("metadata");
        let content = if data.is_file() { fs::read(entry.path()).unwrap_or_default() } else { Vec::new() };
        all.push(format!(
            "{} {:o} {}:{} {:x?}",
            entry.path().display(),
            data.mode(),
            data.uid(),
            data.gid(),
            String::from_utf8_lossy(&content)
        ));
        if data.is_dir() {
            all.extend(tree(&entry.path()));
        }
    }
    all.sort();
    all
}

/// Gives `path` to `user`.
pub fn own(path: &str, user: User) {
    lchown(path, Some(user.uid), Some(user.gid)).expect(path);
}

/// Gives everything below `path`, and it, to the user and group `owner`.
pub fn chown_all(path: &Path, owner: u32) {
    lchown(path, Some(owner), Some(owner)).expect("chown");
    if fs::symlink_metadata(path).expect("metadata").is_dir() {
        for entry in fs::read_dir(path).expect("a directory").flatten() {
            chown_all(&entry.path(), owner);
        }
    } else if path.ends_with("bin/busybox") {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    }
}

/// Makes a directory with `mode`.
pub fn directory(path: &str, mode: u32, user: User) {
    fs::DirBuilder::new().mode(mode).create(path).expect(path);
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect(path);
    own(path, user);
}

/// The processes of this world but this one, whose orphans are reaped on the way: it is the world's process 1.
pub fn processes() -> Vec<i32> {
    while let Ok(nix::sys::wait::WaitStatus::Exited(..) | nix::sys::wait::WaitStatus::Signaled(..)) =
        nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
    {}
    let own = i32::try_from(std::process::id()).expect("a pid");
    fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .collect()
}

/// The command line of a process, or its name.
pub fn command_line(pid: i32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{} [{}]", String::from_utf8_lossy(&words).replace('\0', " "), name.trim())
}

/// Waits until `there` gives something.
#[track_caller]
pub fn wait_for<T>(what: &str, mut there: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = there() {
            return found;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "{what} has not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}
