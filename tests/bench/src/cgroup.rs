//! cgdelegate beside cgcreate, cgexec and cgdelete of libcgroup: make, delegate, enter, leave and remove.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::fixture::{Fixture, at};
use crate::measure::{Command, Times, find, pin, verdict};
use crate::sys;

/// Cycles before the first that counts.
const WARM_UP: usize = 3;
/// Part of the originals' time that a cycle may take.
const GOAL: f64 = 0.25;
/// The same for many cycles at a time.
const PARALLEL_GOAL: f64 = 0.45;
/// How many cycles run at a time.
const PARALLEL: usize = 200;
/// Name of the base of everything that is made here.
const BASE: &str = "cgdelegate-bench";

/// The commands of both sides, and the least that does their work.
struct Sides {
    /// Makes and enters.
    ours: Vec<Command>,
    /// cgcreate, cgexec, cgdelete.
    theirs: Vec<Command>,
    /// The same with a cgdelete for each hierarchy.
    whole: Vec<Command>,
    floor: Floor,
}

/// Prints the tables. `dir` has our programs; `scale` multiplies the numbers of rounds.
pub fn run(fixture: &Fixture, dir: &Path, scale: f64) -> io::Result<()> {
    println!("\n## A cgroup\n");
    let ours = dir.join("cgdelegate");
    let tools: Option<Vec<PathBuf>> = ["cgcreate", "cgexec", "cgdelete"].into_iter().map(find).collect();
    let (true, Some(tools)) = (ours.is_file(), tools) else {
        println!("{} or cgcreate is not there (apt: cgroup-tools), so there is nothing to compare", ours.display());
        return Ok(());
    };
    let controllers = controllers()?;
    if controllers.is_empty() {
        println!("no cgroup hierarchy is mounted here, so there is nothing to compare");
        return Ok(());
    }
    let ours = fixture.copy(&ours, "ours", 0o4755)?;
    println!(
        "ours: run NAME -- true, and one prune at the end, as an ordinary user. theirs: cgcreate -a -t; cgexec true; cgdelete, as"
    );
    println!(
        "root, who alone can. Both in the hierarchies of {} (ours in cgroup2 as well, with",
        controllers.join(", ")
    );
    println!(
        "cgroup.max.*, and under the user's lock and quota). floor: the kernel's price of ours: a process of root's that is there"
    );
    println!(
        "already makes, hands over and enters the same directories, starts true, and removes those of the round before; no lock,"
    );
    println!(
        "no quota, no record, no exec of its own. theirs, all removed: cgdelete once for each hierarchy, because of a list it"
    );
    println!("removes the first and says nothing (2.0.2). Times in ms: median (minimum).\n");
    println!(
        "| cycles | rounds | ours | theirs | ratio | goal | | theirs, all removed | ratio | | floor | floor by theirs | ours by floor | left by ours | by theirs |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---|---:|---:|---|---:|---:|---:|---:|---:|");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
    let rounds = |usual: f64, least: f64| (usual * scale).max(least) as usize;
    for (cycles, rounds, goal) in [(1, rounds(101.0, 11.0), GOAL), (PARALLEL, rounds(7.0, 3.0), PARALLEL_GOAL)] {
        let worker = sys::fork(|| match in_a_world(fixture, &ours, &tools, &controllers, (cycles, rounds, goal)) {
            Ok(row) => {
                println!("{row}");
                0
            }
            Err(error) => {
                eprintln!("bench: {error}");
                1
            }
        })?;
        if sys::wait(worker)?.code != 0 {
            return Err(io::Error::other("the cgroups could not be timed"));
        }
    }
    Ok(())
}

/// Controllers that both sides can use: v1 hierarchies that are mounted, without memory, which ours does not delegate, and
/// without cpuset, which cgexec cannot enter after cgcreate has made it (it is empty: ENOSPC); or, with cgroup2 alone, what
/// it has.
fn controllers() -> io::Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut legacy = Vec::new();
    let mut unified = None;
    for line in mounts.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, at, kind, options, ..] = words.as_slice() else { continue };
        let known = ["cpu", "cpuacct", "pids", "freezer", "devices", "blkio", "net_cls", "hugetlb", "perf_event"];
        match *kind {
            "cgroup" => legacy.extend(options.split(',').filter(|option| known.contains(option)).map(str::to_owned)),
            "cgroup2" => unified = Some(Path::new(at).join("cgroup.controllers")),
            _ => {}
        }
    }
    legacy.sort();
    legacy.dedup();
    if !legacy.is_empty() {
        return Ok(legacy);
    }
    let known = ["cpu", "memory", "pids", "io"];
    let list = unified.map(fs::read_to_string).transpose()?.unwrap_or_default();
    Ok(list.split_whitespace().filter(|word| known.contains(word)).map(str::to_owned).collect())
}

fn in_a_world(
    fixture: &Fixture,
    ours: &Path,
    tools: &[PathBuf],
    controllers: &[String],
    (cycles, rounds, goal): (usize, usize, f64),
) -> io::Result<String> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let legacy = fs::read_to_string("/proc/self/mounts")?.lines().any(|line| line.contains(" cgroup rw"));
    // An /etc of our own, because the file need not exist.
    let etc = fixture.dir.join(format!("etc-{cycles}"));
    fs::create_dir(&etc)?;
    let cp = find("cp").ok_or_else(|| io::Error::other("no cp on this host"))?;
    let (code, text) = Command::new(&cp, ["-a".as_ref(), Path::new("/etc/.").as_os_str(), etc.as_os_str()], &[])
        .output(&fixture.dir.join("scratch"))?;
    if code != 0 {
        return Err(io::Error::other(format!("cp -a /etc: {text}")));
    }
    let prefix = if legacy { "v1:" } else { "" };
    let list: Vec<String> = controllers.iter().map(|name| format!("{prefix}{name}")).collect();
    fs::write(etc.join("cgdelegate.conf"), format!("base {BASE}\nbench {} 1000\n", list.join(",")))?;
    mount(Some(&etc), "/etc", none, MsFlags::MS_BIND, none).map_err(|error| at(&etc, error))?;
    mount(Some("bench"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .map_err(|error| at(Path::new("/run"), error))?;
    if cycles == 1 {
        pin()?;
    }
    let id = fixture.id;
    let [mut own, mut original, mut complete, mut floor] = [(); 4].map(|()| Times::default());
    let (mut left, mut their_left) = (0, 0);
    let prune = [command(ours, &["prune"])];
    let prune = || cycle(&prune, Some(id), |prune| success(std::slice::from_ref(prune))).inspect_err(|_| remove());
    let legacy: Vec<PathBuf> = hierarchies("cgroup", controllers)?;
    let unified: Vec<PathBuf> = hierarchies("cgroup2", &[])?;
    for round in 0..rounds + WARM_UP {
        let sides = |number| sides((ours, tools), controllers, (&unified, &legacy), (id, number));
        let all: Vec<Sides> = (0..cycles).map(sides).collect();
        let mut timed = cycle(&all, Some(id), |sides| success(&sides.ours)).inspect_err(|_| remove())?;
        if cycles > 1 {
            timed += prune()?;
            left += directories_of(id);
        }
        let theirs = cycle(&all, None, |sides| success(&sides.theirs)).inspect_err(|_| remove())?;
        their_left += directories("theirs");
        remove_theirs();
        let whole = cycle(&all, None, |sides| success(&sides.whole)).inspect_err(|_| remove())?;
        let mut bare = cycle(&all, None, |sides| sides.floor.run()).inspect_err(|_| remove())?;
        if cycles > 1 {
            let begin = Instant::now();
            all.iter().for_each(|sides| sides.floor.remove());
            bare += begin.elapsed();
        }
        if round >= WARM_UP {
            own.add(timed);
            original.add(theirs);
            complete.add(whole);
            floor.add(bare);
        }
    }
    prune()?;
    left += directories_of(id);
    remove();
    let (ratio, same) = (own.ratio(&original), own.ratio(&complete));
    Ok(format!(
        "| {cycles} | {rounds} | {} | {} | {ratio:.3} | {goal} | {} | {} | {same:.3} | {} | {} | {:.3} | {:.2} | {left} | {their_left} |",
        own.text(),
        original.text(),
        verdict(ratio <= goal && left == 0),
        complete.text(),
        verdict(same <= goal && left == 0),
        floor.text(),
        floor.ratio(&original),
        own.ratio(&floor),
    ))
}

fn command(program: &Path, words: &[&str]) -> Command {
    Command::new(program, words, &["PATH=/usr/bin".to_owned()])
}

fn sides(
    (ours, tools): (&Path, &[PathBuf]),
    controllers: &[String],
    (unified, legacy): (&[PathBuf], &[PathBuf]),
    (id, number): (u32, usize),
) -> Sides {
    let name = format!("n{number}");
    let place = format!("{BASE}/theirs{number}");
    let group = format!("{}:{place}", controllers.join(","));
    let theirs = vec![
        command(&tools[0], &["-a", "bench:bench", "-t", "bench:bench", "-g", &group]),
        command(&tools[1], &["-g", &group, "/bin/true"]),
    ];
    let each = controllers.iter().map(|controller| command(&tools[2], &["-g", &format!("{controller}:{place}")]));
    let whole = theirs.iter().cloned().chain(each).collect();
    let theirs = theirs.into_iter().chain([command(&tools[2], &["-g", &group])]).collect();
    let node = |mount: &PathBuf| mount.join(BASE).join(format!("floor{number}"));
    Sides {
        ours: vec![command(ours, &["run", &name, "--", "/bin/true"])],
        theirs,
        whole,
        floor: Floor {
            unified: unified.iter().map(node).collect(),
            legacy: legacy.iter().map(node).collect(),
            id,
            command: command(Path::new("/bin/true"), &[]),
        },
    }
}

/// The mount points of this type, of v1 those with one of `controllers`.
fn hierarchies(kind: &str, controllers: &[String]) -> io::Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let found = mounts.lines().filter_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, at, its_kind, options, ..] = words.as_slice() else { return None };
        let carries = kind == "cgroup2" || options.split(',').any(|option| controllers.iter().any(|c| c == option));
        (*its_kind == kind && carries).then(|| PathBuf::from(at))
    });
    Ok(found.collect())
}

/// The cgroups of one cycle, made with nothing but what the kernel has to do.
struct Floor {
    unified: Vec<PathBuf>,
    legacy: Vec<PathBuf>,
    id: u32,
    command: Command,
}

impl Floor {
    /// Removes those of the round before, makes them anew, hands them over, enters, and starts a command.
    fn run(&self) -> io::Result<()> {
        self.remove();
        let all = || self.unified.iter().chain(&self.legacy);
        for node in all() {
            fs::create_dir(node).map_err(|error| at(node, error))?;
        }
        for node in &self.unified {
            fs::write(node.join("cgroup.max.descendants"), "1000")?;
            fs::write(node.join("cgroup.max.depth"), "16")?;
        }
        let give = |node: &Path, files: &[&str]| {
            let owned = |file: &&str| std::os::unix::fs::chown(node.join(file), Some(self.id), Some(self.id));
            files.iter().try_for_each(owned)
        };
        for node in &self.unified {
            give(node, &["cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "."])?;
            fs::write(node.join("cgroup.procs"), "0")?;
        }
        for node in &self.legacy {
            give(node, &["cgroup.procs", "tasks", "."])?;
            fs::write(node.join("tasks"), "0")?;
        }
        success(std::slice::from_ref(&self.command))
    }

    fn remove(&self) {
        for node in self.unified.iter().chain(&self.legacy) {
            let _ = fs::remove_dir(node);
        }
    }
}

/// Runs commands one after another; each must succeed.
fn success(commands: &[Command]) -> io::Result<()> {
    for command in commands {
        match command.time()?.1.code {
            0 => {}
            code => return Err(io::Error::other(format!("a command ended with {code}"))),
        }
    }
    Ok(())
}

/// Does `work` for every cycle at the same time, each in a process of its own, which is there before: the time from the
/// word to the last answer.
fn cycle<T>(all: &[T], id: Option<u32>, work: impl Fn(&T) -> io::Result<()>) -> io::Result<Duration> {
    let (read, write) = nix::unistd::pipe()?;
    let (answers, answer) = nix::unistd::pipe()?;
    let mut workers = Vec::new();
    for sides in all {
        workers.push(sys::fork(|| {
            if let Some(id) = id {
                let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
                let become_user =
                    setgroups(&[gid]).and_then(|()| setresgid(gid, gid, gid)).and_then(|()| setresuid(uid, uid, uid));
                if become_user.is_err() {
                    return 1;
                }
            }
            let _ = nix::unistd::read(&read, &mut [0]);
            let result = work(sides);
            let _ = nix::unistd::write(&answer, b"+");
            match result {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("bench: {error}");
                    1
                }
            }
        })?);
    }
    drop(answer);
    let begin = Instant::now();
    nix::unistd::write(&write, &vec![b'+'; all.len()])?;
    let mut answered = 0;
    let mut buffer = [0; 256];
    while answered < all.len() {
        match nix::unistd::read(&answers, &mut buffer)? {
            0 => break,
            more => answered += more,
        }
    }
    let time = begin.elapsed();
    let mut code = 0;
    for worker in workers {
        code |= sys::wait(worker)?.code;
    }
    if code == 0 && answered == all.len() {
        Ok(time)
    } else {
        Err(io::Error::other(format!("a cycle ended with {code}, so there is nothing to measure")))
    }
}

fn bases() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter(|line| line.contains(" cgroup rw") || line.contains(" cgroup2 rw"));
    let bases = points.filter_map(|line| Some(Path::new(line.split(' ').nth(1)?).join(BASE)));
    bases.filter(|base| base.is_dir()).collect()
}

/// How many cgroups of this user's are left below the bases.
fn directories_of(id: u32) -> usize {
    directories(&format!("cgd-{id}"))
}

/// How many cgroups that begin so are left below the bases.
fn directories(prefix: &str) -> usize {
    let children = |base: &PathBuf| {
        let entries = fs::read_dir(base).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).count()
    };
    bases().iter().map(children).sum()
}

/// What cgdelete has left.
fn remove_theirs() {
    remove_called("theirs");
}

fn remove_called(prefix: &str) {
    for entry in bases().iter().flat_map(fs::read_dir).flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn remove() {
    remove_theirs();
    remove_called("floor");
    for base in bases() {
        let _ = fs::remove_dir(base);
    }
}
