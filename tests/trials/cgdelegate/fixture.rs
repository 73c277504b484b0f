//! A base of the trial's own in every hierarchy, and what is seen there.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tests::call::Running;
use tests::{ALICE, Call, Outcome, User, World};

pub const CONF: &str = "/etc/cgdelegate.conf";

/// A trial's cgroups.
pub struct Cgroups {
    /// Name of the base, at the top of every hierarchy.
    pub base: String,
    /// Mount points, cgroup2 first.
    pub mounts: Vec<PathBuf>,
}

impl Cgroups {
    /// A base of one's own, with `lines` as the configuration.
    pub fn new(world: &World, lines: &str) -> Self {
        // Only there a named hierarchy can be made where the host has none.
        in_host_cgroup_namespace(world);
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").expect("uuid");
        let base = format!("cgdtest-{}", &uuid[..8]);
        world.write(CONF, format!("base {base}\n{lines}\n"));
        let cgroups = Self { base, mounts: mounts() };
        if cgroups.mounts.is_empty() {
            tests::world::ignore("needs a mounted cgroup hierarchy");
        }
        cgroups
    }

    /// The same on pure cgroup2: the only mount that is seen is that of cgroup2.
    pub fn pure(world: &World, lines: &str) -> Self {
        while umount2("/sys/fs/cgroup", MntFlags::MNT_DETACH).is_ok() {}
        mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), None::<&str>).expect("cgroup2");
        Self::new(world, lines)
    }

    /// A configuration without a base, so that cgdelegate's own at the top of each hierarchy is used. Every trial has the
    /// same uids and a /run of its own, and so does not see another's lock: such trials come one after another.
    pub fn own_base(world: &World, lines: &str) -> (Self, nix::fcntl::Flock<fs::File>) {
        let cgroups = Self::pure(world, "");
        let turn = fs::File::open(cgroups.need("v2")).expect("cgroup2");
        let turn = nix::fcntl::Flock::lock(turn, nix::fcntl::FlockArg::LockExclusive).expect("flock");
        world.write(CONF, format!("{lines}\n"));
        (cgroups, turn)
    }

    /// Writes another configuration.
    pub fn configure(&self, world: &World, lines: &str) {
        world.write(CONF, format!("base {}\n{lines}\n", self.base));
    }

    /// The mount point of the hierarchy that carries `word` (`v2`, `name=systemd`, a v1 controller).
    pub fn mount(&self, word: &str) -> Option<&PathBuf> {
        self.mounts.iter().find(|mount| carries(mount, word))
    }

    /// The mount point of a hierarchy that the trial needs.
    pub fn need(&self, word: &str) -> PathBuf {
        self.mount(word).cloned().unwrap_or_else(|| tests::world::ignore(&format!("needs the hierarchy {word}")))
    }

    /// Those of `words` that are mounted here.
    pub fn mounted<'w>(&self, words: &[&'w str]) -> Vec<&'w str> {
        let found: Vec<&str> = words.iter().copied().filter(|word| self.mount(word).is_some()).collect();
        assert!(!found.is_empty(), "none of {words:?}");
        found
    }

    /// The cgroup `name` of `user` in the hierarchy `word`.
    pub fn node(&self, word: &str, user: User, name: &str) -> PathBuf {
        self.need(word).join(&self.base).join(format!("cgd-{}", user.uid)).join(name)
    }

    /// Every directory below the base, in all hierarchies.
    pub fn directories(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for mount in &self.mounts {
            collect(&mount.join(&self.base), &mut found);
        }
        found
    }

    /// Kills what is left and removes every directory.
    pub fn clean(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let mut all = self.directories();
            all.extend(self.mounts.iter().map(|mount| mount.join(&self.base)));
            all.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
            for directory in &all {
                let _ = fs::write(directory.join("cgroup.kill"), "1");
                let _ = fs::write(directory.join("freezer.state"), "THAWED");
                for pid in processes(directory) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                let _ = fs::remove_dir(directory);
            }
            while nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
                .is_ok_and(|status| status != nix::sys::wait::WaitStatus::StillAlive)
            {}
            if self.mounts.iter().all(|mount| !mount.join(&self.base).exists()) {
                return;
            }
            assert!(Instant::now() < end, "cannot remove {:?}", self.directories());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.clean()));
        } else {
            self.clean();
        }
    }
}

/// The processes in one cgroup that this pid namespace sees.
pub fn processes(directory: &Path) -> Vec<i32> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1).collect()
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
            collect(&entry.path(), found);
        }
    }
}

fn mounts() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let mut found: Vec<(bool, PathBuf)> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let dash = words.iter().position(|word| *word == "-").expect("mountinfo");
        let (kind, options) = (words[dash + 1], words[dash + 3]);
        if matches!(kind, "cgroup" | "cgroup2") && words[3] == "/" && !options.split(',').any(|o| o == "memory") {
            found.push((kind != "cgroup2", PathBuf::from(words[4])));
        }
    }
    found.sort();
    found.dedup();
    found.into_iter().map(|(_, mount)| mount).collect()
}

fn carries(mount: &Path, word: &str) -> bool {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    text.lines().any(|line| {
        let Some((front, back)) = line.split_once(" - ") else { return false };
        let mut back = back.split(' ');
        let (kind, options) = (back.next().unwrap_or(""), back.nth(1).unwrap_or(""));
        front.split(' ').nth(4).is_some_and(|at| Path::new(at) == mount)
            && if word == "v2" { kind == "cgroup2" } else { kind == "cgroup" && options.split(',').any(|o| o == word) }
    })
}

/// A call of cgdelegate as `user`.
pub fn call(world: &mut World, user: User, words: &str) -> Call {
    let program = world.program("cgdelegate");
    Call::new(program).user(user).words(words).env("PATH", "/run/bin:/usr/bin:/bin")
}

/// Runs it.
pub fn cgdelegate(world: &mut World, user: User, words: &str) -> Outcome {
    call(world, user, words).run(world)
}

/// Runs it as alice.
pub fn alice(world: &mut World, words: &str) -> Outcome {
    cgdelegate(world, ALICE, words)
}

/// Starts `cgdelegate run NAME ... -- sleep` as `user` and waits until it is the command.
pub fn start_sleep(world: &mut World, user: User, words: &str) -> Running {
    let running = call(world, user, &format!("run {words} -- sleep 1000")).start();
    wait_for_command(running.pid(), "sleep");
    running
}

/// Waits until a process has become the program `name`.
pub fn wait_for_command(pid: Pid, name: &str) {
    wait_until(&format!("{pid} is {name}"), || {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
    });
}

/// Waits for a condition.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The path of a process in the hierarchy `word`.
pub fn place(pid: Pid, word: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup");
    let line = text.lines().find(|line| {
        let list = line.split(':').nth(1).unwrap_or("");
        if word == "v2" { list.is_empty() } else { list.split(',').any(|w| w == word) }
    });
    line.unwrap_or_else(|| panic!("{word} is not in {text}")).splitn(3, ':').nth(2).expect("a path").to_owned()
}

/// Owner, group and permission bits.
pub fn owner(path: &Path) -> (u32, u32, u32) {
    let meta = fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

/// Kills a traced call and waits until it is gone.
pub fn end(running: Running, world: &mut World) -> Outcome {
    let pid = running.pid();
    let _ = kill(pid, Signal::SIGKILL);
    loop {
        if let tests::tracer::Stop::Gone(status) = tests::tracer::next(pid) {
            return running.gone(status, world);
        }
    }
}

/// Leaves the trial's cgroup namespace for the host's.
pub fn in_host_cgroup_namespace(world: &World) {
    nix::sched::setns(&world.host_cgroup_namespace, nix::sched::CloneFlags::CLONE_NEWCGROUP).expect("setns");
}
