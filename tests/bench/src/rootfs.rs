//! `rootfs import` of 500 MiB beside GNU tar in `podman unshare`, `umoci unpack` and `podman load`.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use crate::fixture::Fixture;
use crate::measure::{Command, Times, find, verdict};

/// Bytes of content in the root that is imported, and in the small one that shows whether memory grows with it.
const BYTES: u64 = 500 << 20;
const SMALL: u64 = 50 << 20;
/// Peak memory that an import may take, in KiB.
const PEAK_GOAL_KIB: i64 = 64 << 10;
/// Rounds before the first that counts.
const WARM_UP: usize = 1;

struct Row {
    name: &'static str,
    /// Below the home.
    source: &'static str,
    /// The small root in the same form.
    small: &'static str,
    peer: &'static str,
    /// The programs of it that have to be there.
    needs: &'static [&'static str],
    /// A shell's words, in the home.
    script: &'static str,
    /// Makes room again; not timed.
    clean: &'static str,
    goal: f64,
}

const PODMAN: &str =
    "podman --root $PWD/store --runroot $PWD/run --storage-driver vfs --events-backend none --cgroup-manager cgroupfs";

const ROWS: [Row; 4] = [
    Row {
        name: "tar",
        source: "root.tar",
        small: "small.tar",
        peer: "GNU tar in podman unshare",
        needs: &["podman"],
        script: "mkdir theirs && $P unshare tar --numeric-owner -C theirs -xpf root.tar",
        clean: "$P unshare rm -rf theirs",
        goal: 1.0,
    },
    Row {
        name: "tar.xz",
        source: "root.tar.xz",
        small: "small.tar.xz",
        peer: "GNU tar in podman unshare",
        needs: &["podman", "xz"],
        script: "mkdir theirs && $P unshare tar --numeric-owner -C theirs -xJpf root.tar.xz",
        clean: "$P unshare rm -rf theirs",
        goal: 1.0,
    },
    Row {
        name: "oci-archive, zstd",
        source: "zstd.tar",
        small: "small-zstd.tar",
        peer: "podman load and mount",
        needs: &["podman"],
        script: "id=$($P load -q -i zstd.tar) && $P unshare $P image mount ${id##*:}",
        clean: "$P unshare $P image umount -a; $P rmi -af",
        goal: 0.5,
    },
    Row {
        name: "OCI layout, gzip",
        source: "gzip",
        small: "small-gzip",
        peer: "umoci unpack --rootless",
        needs: &["umoci"],
        script: "umoci unpack --rootless --image gzip:latest bundle",
        clean: "chmod -R u+rwX bundle; rm -rf bundle",
        goal: 0.5,
    },
];

/// The host's own programs, libraries and data, up to so many bytes: what a root holds, in the sizes it has there.
fn list(most: u64) -> io::Result<String> {
    let mut total = 0;
    let mut text = String::new();
    let mut queue: Vec<PathBuf> = ["/usr/lib", "/usr/share", "/usr/sbin", "/usr/bin"].map(PathBuf::from).to_vec();
    while let Some(directory) = queue.pop() {
        let mut entries: Vec<PathBuf> =
            fs::read_dir(&directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        entries.sort();
        text.push_str(&format!(".{}\n", directory.display()));
        for path in entries {
            let found = fs::symlink_metadata(&path)?;
            let odd = path.to_str().is_none_or(|path| path.contains(['\n', '\\']));
            if found.is_dir() && !odd {
                queue.push(path);
            } else if !odd && total + found.size() <= most && found.size() < most / 10 {
                total += found.size();
                text.push_str(&format!(".{}\n", path.display()));
            }
        }
        if total > most / 100 * 99 {
            break;
        }
    }
    Ok(text)
}

/// Prints the table. `dir` has our programs; `scale` multiplies the number of rounds.
pub fn run(fixture: &Fixture, dir: &Path, scale: f64) -> io::Result<()> {
    println!("\n## Importing a root file system\n");
    let program = dir.join("rootfs");
    if !program.is_file() {
        println!("{}: not there, so nothing to compare", program.display());
        return Ok(());
    }
    // podman's locks, which would outlive the run.
    if Path::new("/dev/shm").is_dir() {
        mount(Some("shm"), "/dev/shm", Some("tmpfs"), MsFlags::empty(), Some("mode=1777"))?;
    }
    for name in ["newuidmap", "newgidmap"] {
        fixture.copy(&dir.join(name), "ours", 0o4755)?;
    }
    let ours = fixture.copy(&program, "ours", 0o755)?;
    let home = fixture.home();
    let env = vec![
        format!("PATH={}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", fixture.dir.join("ours").display()),
        format!("HOME={}", home.display()),
        format!("TMPDIR={}", home.display()),
        format!("XDG_RUNTIME_DIR={}", fixture.runtime().display()),
        "LC_ALL=C".to_owned(),
    ];
    let shell = |script: &str| {
        let script = format!("set -e; cd {}; P='{PODMAN}'; {script}", home.display());
        Command::new(Path::new("/bin/sh"), ["-c".to_owned(), script], &env)
    };
    let scratch = fixture.dir.join("scratch");
    let made = |command: &Command, scratch: &Path| match command.output(scratch)? {
        (0, _) => Ok(()),
        (code, text) => Err(io::Error::other(format!("exit code {code}: {}", text.lines().last().unwrap_or_default()))),
    };
    for (name, most) in [("root", BYTES), ("small", SMALL)] {
        let names = fixture.dir.join("names");
        fs::write(&names, list(most)?)?;
        let pack = format!("tar -C / --no-recursion --numeric-owner -T {} -cf {name}.tar", names.display());
        made(&shell(&format!("{pack}; xz -T0 -1 -k {name}.tar")), &scratch)?;
        for ending in ["tar", "tar.xz"] {
            chown(home.join(format!("{name}.{ending}")), Some(fixture.id), Some(fixture.id))?;
        }
    }
    fixture.subordinate(10)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
    let rounds = (5.0 * scale).max(3.0) as usize;
    fixture.as_user(|| {
        let scratch = home.join("scratch");
        for (name, prefix) in [("root", ""), ("small", "small-")] {
            let script = format!(
                "rootfs import -q {name}.tar made; rootfs export -q made {prefix}gzip --format oci; \
                 rootfs export -q made layout --format oci --compress zstd; tar -C layout -cf {prefix}zstd.tar .; \
                 rm -rf layout; rootfs rm made"
            );
            made(&shell(&script), &scratch)?;
        }
        println!("{} MiB of this host's own /usr on a tmpfs, as an ordinary user, {rounds} rounds, on every CPU.", BYTES >> 20);
        println!("Times in ms: median (minimum); ratio: median of ours by the peer's, round by round; peak memory of one process of ours in KiB,");
        println!("and that of importing {} MiB.\n", SMALL >> 20);
        println!("| source | peer | ours | the peer's | ratio | goal | | peak | small | goal | |");
        println!("|---|---|---:|---:|---:|---:|---|---:|---:|---:|---|");
        for row in &ROWS {
            one(row, &ours, &env, &shell, &scratch, rounds)?;
        }
        Ok(())
    })
}

fn one(
    row: &Row,
    ours: &Path,
    env: &[String],
    shell: &dyn Fn(&str) -> Command,
    scratch: &Path,
    rounds: usize,
) -> io::Result<()> {
    if let Some(missing) = row.needs.iter().find(|name| find(name).is_none()) {
        println!("| {} | {}: no {missing} here, so not measured |", row.name, row.peer);
        return Ok(());
    }
    let failed = |who: &str, code: i32| io::Error::other(format!("{} by {who}: exit code {code}", row.name));
    let import = |source: &str| {
        let path = scratch.with_file_name(source);
        let words = ["import".to_owned(), "-q".to_owned(), path.display().to_string(), "ours".to_owned()];
        Command::new(ours, words, env)
    };
    let remove = Command::new(ours, ["rm", "ours"], env);
    let peak = |source: &str| {
        let ended = import(source).peak()?;
        let (code, _) = remove.output(scratch)?;
        if ended.code + code == 0 { Ok(ended.peak_kib) } else { Err(failed("rootfs", ended.code + code)) }
    };
    let (large, small) = (peak(row.source)?, peak(row.small)?);
    let (script, clean) = (shell(row.script), shell(row.clean));
    let (code, text) = script.output(scratch)?;
    clean.output(scratch)?;
    if code != 0 {
        println!("| {} | {}: exit code {code} ({}) |", row.name, row.peer, text.lines().last().unwrap_or_default());
        return Ok(());
    }
    let mut times = [Times::default(), Times::default()];
    for round in 0..rounds + WARM_UP {
        let source = import(row.source);
        for ((command, undo), times) in [(&source, &remove), (&script, &clean)].into_iter().zip(&mut times) {
            let (time, ended) = command.time()?;
            let (code, _) = undo.output(scratch)?;
            if ended.code + code != 0 {
                return Err(failed("rootfs or its peer", ended.code + code));
            }
            if round >= WARM_UP {
                times.add(time);
            }
        }
    }
    let [ours, theirs] = times;
    let ratio = ours.ratio(&theirs);
    println!(
        "| {} | {} | {} | {} | {ratio:.3} | {} | {} | {large} | {small} | {PEAK_GOAL_KIB} | {} |",
        row.name,
        row.peer,
        ours.text(),
        theirs.text(),
        row.goal,
        verdict(ratio <= row.goal),
        verdict(large < PEAK_GOAL_KIB),
    );
    Ok(())
}
