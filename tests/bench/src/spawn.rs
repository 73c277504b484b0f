//! `spawn run` of a static /bin/true beside other ways to start it.

use std::fs;
use std::io;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::fixture::{COUNT, Fixture};
use crate::measure::{Command, Linkage, Times, find, verdict};

const WARM_UP: usize = 2;

struct Row {
    name: &'static str,
    command: Command,
    /// The most that `spawn` may take of this peer's time.
    goal: Option<f64>,
    times: Times,
}

/// Prints the table. `dir` has our programs; `scale` multiplies the number of rounds.
pub fn run(fixture: &Fixture, dir: &Path, scale: f64) -> io::Result<()> {
    println!("\n## Starting a container\n");
    let spawn = dir.join("spawn");
    if !spawn.is_file() {
        println!("{}: not there, so nothing to compare", spawn.display());
        return Ok(());
    }
    let Some(busybox) = find("busybox") else {
        println!("no busybox on this host (apt: busybox-static), so no rootfs to start");
        return Ok(());
    };
    if Linkage::of(&busybox)? == Linkage::Dynamic {
        println!("{} is dynamic (apt: busybox-static), so it cannot run in a rootfs of its own", busybox.display());
        return Ok(());
    }
    let rootfs = make_rootfs(fixture, &busybox)?;
    make_bundle(fixture, &rootfs)?;
    // crun refuses a hybrid hierarchy: everyone is shown cgroup2 alone.
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), None::<&str>)?;
    }

    for name in ["newuidmap", "newgidmap"] {
        fixture.copy(&dir.join(name), "ours", 0o4755)?;
    }
    let spawn = fixture.copy(&spawn, "ours", 0o755)?;
    let system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let env = |path: &str| {
        vec![
            format!("PATH={path}"),
            format!("HOME={}", fixture.home().display()),
            format!("XDG_RUNTIME_DIR={}", fixture.runtime().display()),
            "LC_ALL=C".to_owned(),
        ]
    };
    let theirs = env(system);
    let ours = env(&format!("{}:{system}", fixture.dir.join("ours").display()));
    let root = rootfs.display();
    let home = fixture.home();
    let home = home.display();
    let mut rows = vec![Row {
        name: "spawn run",
        command: Command::new(&spawn, format!("run {root} -- /bin/true").split(' '), &ours),
        goal: None,
        times: Times::default(),
    }];
    let all = "--mount --pid --fork --net --ipc --uts --cgroup";
    let peers = [
        (
            "crun run",
            "crun",
            format!("--root {home}/crun --cgroup-manager=disabled run -b {home}/bundle c1"),
            Some(0.25),
        ),
        ("lxc-start -F", "lxc-start", format!("-P {home}/lxc -n c1 -f {home}/lxc.conf -F -- /bin/true"), Some(0.125)),
        ("lxc-execute", "lxc-execute", format!("-P {home}/lxc -n c2 -f {home}/lxc.conf -- /bin/true"), None),
        (
            "unshare --map-auto (no /dev, no pivot_root)",
            "unshare",
            format!("--user --map-auto {all} --root {root} --mount-proc --setuid 0 --setgid 0 /bin/true"),
            None,
        ),
        (
            "bwrap (one id)",
            "bwrap",
            format!("--unshare-all --uid 0 --gid 0 --ro-bind {root} / --proc /proc --dev /dev /bin/true"),
            None,
        ),
    ];
    match make_floor(fixture) {
        Ok(floor) => {
            let words = format!("{root} {} {COUNT} /bin/true", fixture.first);
            let command = Command::new(&floor, words.split(' '), &theirs);
            rows.push(Row {
                name: "the least in C, with the system's map tools",
                command,
                goal: Some(0.6),
                times: Times::default(),
            });
        }
        Err(error) => println!("tests/bench/floor.c: {error}"),
    }
    for (name, program, words, goal) in peers {
        match find(program) {
            Some(path) => {
                let command = Command::new(&path, words.split(' '), &theirs);
                rows.push(Row { name, command, goal, times: Times::default() });
            }
            None => println!("{name}: not installed"),
        }
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
    let rounds = (41.0 * scale).max(10.0) as usize;
    fixture.subordinate(10)?;
    fixture.as_user(|| {
        let scratch = fixture.home().join("scratch");
        // One that cannot run here is named with what it said and left out.
        let mut able = Vec::new();
        for row in rows {
            let (code, output) = row.command.output(&scratch)?;
            if code == 0 {
                able.push(row);
            } else {
                let said = output.lines().last().unwrap_or_default();
                println!("{}: exit code {code} ({said}), so not measured", row.name);
            }
        }
        alternate(&mut able, rounds)?;
        if able.is_empty() || able[0].name != "spawn run" {
            return Err(io::Error::other("spawn run failed, so there is nothing to compare"));
        }
        println!("/bin/true (static) in a busybox rootfs, as an ordinary user, whole subordinate range unless said, no cgroup,");
        print(&able, rounds);
        enter(fixture, &spawn, &ours, &theirs, &rootfs, scale)
    })
}

/// Runs the rows in turn, round after round.
fn alternate(rows: &mut [Row], rounds: usize) -> io::Result<()> {
    for round in 0..rounds + WARM_UP {
        for row in &mut *rows {
            let (time, ended) = row.command.time()?;
            if ended.code != 0 {
                return Err(io::Error::other(format!("{}: exit code {} in round {round}", row.name, ended.code)));
            }
            if round >= WARM_UP {
                row.times.add(time);
            }
        }
    }
    Ok(())
}

/// The table of rows, of which the first is ours.
fn print(rows: &[Row], rounds: usize) {
    println!(
        "{rounds} rounds, on every CPU. Times in ms: median (minimum); ratio: median of spawn's time by the peer's.\n"
    );
    println!("| command | time | ratio | goal | |");
    println!("|---|---:|---:|---:|---|");
    let Some(ours) = rows.first().map(|row| row.times.clone()) else { return };
    for row in rows {
        let ratio = ours.ratio(&row.times);
        let (goal, met) = match row.goal {
            Some(goal) => (goal.to_string(), verdict(ratio <= goal)),
            None => ("-".to_owned(), ""),
        };
        println!("| {} | {} | {ratio:.3} | {goal} | {met} |", row.name, row.times.text());
    }
}

/// The table of a command in a container that runs.
fn enter(
    fixture: &Fixture,
    spawn: &Path,
    ours: &[String],
    theirs: &[String],
    rootfs: &Path,
    scale: f64,
) -> io::Result<()> {
    println!("\n## Entering a container\n");
    let home = fixture.home();
    let (scratch, lxc) = (home.join("scratch"), format!("-P {}/lxc -n c3", home.display()));
    let row = |name, program: &Path, words: &str, env: &[String], goal| Row {
        name,
        command: Command::new(program, words.split(' '), env),
        goal,
        times: Times::default(),
    };
    let succeeds = |program: &Path, words: &str, env: &[String]| -> io::Result<bool> {
        let (code, output) = Command::new(program, words.split(' '), env).output(&scratch)?;
        if code != 0 {
            println!("{} {words}: exit code {code} ({})", program.display(), output.lines().last().unwrap_or_default());
        }
        Ok(code == 0)
    };
    if !succeeds(spawn, &format!("run -d --name c3 {} -- /bin/sleep 3600", rootfs.display()), ours)? {
        return Err(io::Error::other("spawn run -d failed, so there is nothing to enter"));
    }
    let mut rows = vec![row("spawn exec", spawn, "exec c3 -- /bin/true", ours, None)];
    let peer = find("lxc-start").zip(find("lxc-attach"));
    if let Some((start, attach)) = &peer
        && succeeds(start, &format!("{lxc} -f {}/lxc.conf -d -- /bin/sleep 3600", home.display()), theirs)?
    {
        rows.push(row("lxc-attach", attach, &format!("{lxc} -- /bin/true"), theirs, Some(0.2)));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
    let rounds = (31.0 * scale).max(10.0) as usize;
    let measured = alternate(&mut rows, rounds);
    succeeds(spawn, "kill c3 -s KILL", ours)?;
    if rows.len() > 1
        && let Some(stop) = find("lxc-stop")
    {
        succeeds(&stop, &format!("{lxc} -k"), theirs)?;
    }
    measured?;
    println!("/bin/true (static) in a container that runs `sleep`, made as above,");
    print(&rows, rounds);
    idle(&scratch, spawn, ours, rootfs)
}

/// The table of what containers in the background keep of memory outside.
fn idle(scratch: &Path, spawn: &Path, ours: &[String], rootfs: &Path) -> io::Result<()> {
    const CONTAINERS: u32 = 50;
    const GOAL: f64 = 150.0;
    println!("\n## Containers in the background\n");
    let call = |words: &str| Command::new(spawn, words.split(' '), ours).output(scratch);
    for number in 0..CONTAINERS {
        let (code, said) = call(&format!("run -d --name idle{number} {} -- /bin/sleep 3600", rootfs.display()))?;
        if code != 0 {
            return Err(io::Error::other(format!("spawn run -d: exit code {code} ({said})")));
        }
    }
    let (mut supervisors, mut share, mut own) = (0_u32, 0_u32, 0_u32);
    for entry in fs::read_dir("/proc")?.flatten() {
        // Those of other users and those that end meanwhile cannot be read.
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if !read("cmdline").contains("\0supervise\0idle") {
            continue;
        }
        let rollup = read("smaps_rollup");
        let kilobytes = |key: &str| -> u32 {
            let fields = rollup.lines().filter_map(|line| line.strip_prefix(key));
            fields.filter_map(|rest| rest.split_ascii_whitespace().find_map(|word| word.parse::<u32>().ok())).sum()
        };
        supervisors += 1;
        share += kilobytes("Pss:");
        own += kilobytes("Private_");
    }
    let (code, said) = call("kill --all -s KILL")?;
    if code != 0 || supervisors != CONTAINERS {
        return Err(io::Error::other(format!(
            "{supervisors} supervisors of {CONTAINERS}; spawn kill: {code} ({said})"
        )));
    }
    let each = |sum: u32| f64::from(sum) / f64::from(CONTAINERS);
    println!(
        "{CONTAINERS} containers that run `sleep`; memory of the supervisor of each, in KiB (/proc/PID/smaps_rollup).\n"
    );
    println!("| | KiB | goal | |\n|---|---:|---:|---|");
    println!("| proportional share (Pss) | {:.0} | {GOAL} | {} |", each(share), verdict(each(share) <= GOAL));
    println!("| its own (Private) | {:.0} | - | |", each(own));
    Ok(())
}

/// Compiles floor.c, with musl where its compiler is at hand: its start is the cheapest there is.
fn make_floor(fixture: &Fixture) -> io::Result<std::path::PathBuf> {
    let source = fixture.dir.join("floor.c");
    fs::write(&source, include_str!("../floor.c"))?;
    let built = fixture.dir.join("floor");
    let Some(compiler) = find("musl-gcc").or_else(|| find("cc")) else {
        return Err(io::Error::other("no C compiler (apt: gcc musl-tools), so no floor to compare with"));
    };
    let status =
        std::process::Command::new(&compiler).args(["-O2", "-static", "-o"]).arg(&built).arg(&source).status()?;
    if status.success() { Ok(built) } else { Err(io::Error::other(format!("{}: {status}", compiler.display()))) }
}

/// A rootfs with one program, owned by the first subordinate id, which is root inside.
fn make_rootfs(fixture: &Fixture, busybox: &Path) -> io::Result<std::path::PathBuf> {
    let rootfs = fixture.dir.join("rootfs");
    for directory in ["bin", "dev", "etc", "proc", "sys", "tmp", "run", "root", "sbin", "usr", "var"] {
        fs::create_dir_all(rootfs.join(directory))?;
    }
    fs::copy(busybox, rootfs.join("bin/busybox"))?;
    symlink("busybox", rootfs.join("bin/true"))?;
    symlink("busybox", rootfs.join("bin/sh"))?;
    symlink("busybox", rootfs.join("bin/sleep"))?;
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n")?;
    fs::write(rootfs.join("etc/group"), "root:x:0:\n")?;
    let owner = Some(fixture.first);
    for path in ["", "bin", "dev", "etc", "proc", "sys", "tmp", "run", "root", "sbin", "usr", "var", "bin/busybox"] {
        chown(rootfs.join(path), owner, owner)?;
    }
    Ok(rootfs)
}

/// What crun and LXC read: the same rootfs, the same map, the same namespaces.
fn make_bundle(fixture: &Fixture, rootfs: &Path) -> io::Result<()> {
    let home = fixture.home();
    let (first, root) = (fixture.first, rootfs.display());
    for directory in ["bundle", "lxc"] {
        fs::create_dir(home.join(directory))?;
        chown(home.join(directory), Some(fixture.id), Some(fixture.id))?;
    }
    let map = format!(r#"[ {{ "containerID": 0, "hostID": {first}, "size": {COUNT} }} ]"#);
    fs::write(
        home.join("bundle/config.json"),
        format!(
            r#"{{ "ociVersion": "1.0.0", "root": {{ "path": "{root}" }},
  "process": {{ "user": {{ "uid": 0, "gid": 0 }}, "cwd": "/", "args": [ "/bin/true" ] }},
  "mounts": [ {{ "destination": "/proc", "type": "proc", "source": "proc" }},
    {{ "destination": "/dev", "type": "tmpfs", "source": "tmpfs" }},
    {{ "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": [ "newinstance", "ptmxmode=0666" ] }},
    {{ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [ "ro" ] }} ],
  "linux": {{ "uidMappings": {map}, "gidMappings": {map},
    "namespaces": [ {{ "type": "user" }}, {{ "type": "mount" }}, {{ "type": "pid" }}, {{ "type": "network" }},
      {{ "type": "ipc" }}, {{ "type": "uts" }}, {{ "type": "cgroup" }} ] }} }}
"#
        ),
    )?;
    fs::write(
        home.join("lxc.conf"),
        format!(
            "lxc.idmap = u 0 {first} {COUNT}\nlxc.idmap = g 0 {first} {COUNT}\nlxc.rootfs.path = dir:{root}\n\
             lxc.uts.name = c1\nlxc.mount.auto = proc sys:ro\nlxc.net.0.type = empty\n"
        ),
    )
}
