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

/// The programs and words of both sides.
struct Sides {
    /// Makes and enters.
    ours: [(PathBuf, Vec<String>); 1],
    /// cgcreate, cgexec, cgdelete.
    theirs: [(PathBuf, Vec<String>); 3],
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
    println!("cgroup.max.*, and under the user's lock and quota). Times in ms: median (minimum).\n");
    println!("| cycles | rounds | ours | theirs | ratio | goal | | left by ours | by theirs |");
    println!("|---:|---:|---:|---:|---:|---:|---|---:|---:|");
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
    let [mut own, mut original] = [(); 2].map(|()| Times::default());
    let (mut left, mut their_left) = (0, 0);
    let prune = [(ours.to_owned(), vec!["prune".to_owned()])];
    for round in 0..rounds + WARM_UP {
        let all: Vec<Sides> = (0..cycles).map(|number| sides(ours, tools, controllers, number)).collect();
        let begin = Instant::now();
        cycle(&all, |sides| &sides.ours, Some(id)).inspect_err(|_| remove())?;
        if cycles > 1 {
            cycle(std::slice::from_ref(&prune), |prune| prune, Some(id)).inspect_err(|_| remove())?;
            left += directories_of(id);
        }
        let timed = begin.elapsed();
        let theirs = cycle(&all, |sides| &sides.theirs, None).inspect_err(|_| remove())?;
        their_left += directories("theirs");
        if round >= WARM_UP {
            own.add(timed);
            original.add(theirs);
        }
        remove_theirs();
    }
    cycle(std::slice::from_ref(&prune), |prune| prune, Some(id)).inspect_err(|_| remove())?;
    left += directories_of(id);
    remove();
    let ratio = own.ratio(&original);
    Ok(format!(
        "| {cycles} | {rounds} | {} | {} | {ratio:.3} | {goal} | {} | {left} | {their_left} |",
        own.text(),
        original.text(),
        verdict(ratio <= goal && left == 0),
    ))
}

fn sides(ours: &Path, tools: &[PathBuf], controllers: &[String], number: usize) -> Sides {
    let name = format!("n{number}");
    let group = format!("{}:{BASE}/theirs{number}", controllers.join(","));
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    Sides {
        ours: [(ours.to_owned(), words(&["run", &name, "--", "/bin/true"]))],
        theirs: [
            (tools[0].clone(), words(&["-a", "bench:bench", "-t", "bench:bench", "-g", &group])),
            (tools[1].clone(), words(&["-g", &group, "/bin/true"])),
            (tools[2].clone(), words(&["-g", &group])),
        ],
    }
}

/// Runs one side of every cycle at the same time, each in a process of its own, and waits for all.
fn cycle<T, const N: usize>(
    all: &[T],
    side: impl Fn(&T) -> &[(PathBuf, Vec<String>); N],
    id: Option<u32>,
) -> io::Result<Duration> {
    let (read, write) = nix::unistd::pipe()?;
    let mut workers = Vec::new();
    for sides in all {
        let commands: Vec<Command> = side(sides)
            .iter()
            .map(|(program, words)| Command::new(program, words, &["PATH=/usr/bin".to_owned()]))
            .collect();
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
            for command in &commands {
                match command.time() {
                    Ok((_, ended)) if ended.code == 0 => {}
                    Ok((_, ended)) => {
                        return ended.code.max(1);
                    }
                    Err(_) => return 1,
                }
            }
            0
        })?);
    }
    let begin = Instant::now();
    nix::unistd::write(&write, &vec![b'+'; all.len()])?;
    let mut code = 0;
    for worker in workers {
        code |= sys::wait(worker)?.code;
    }
    let time = begin.elapsed();
    if code == 0 {
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

/// cgdelete removes only the first of a list (2.0.2), and says nothing.
fn remove_theirs() {
    for entry in bases().iter().flat_map(fs::read_dir).flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("theirs") {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn remove() {
    remove_theirs();
    for base in bases() {
        let _ = fs::remove_dir(base);
    }
}
