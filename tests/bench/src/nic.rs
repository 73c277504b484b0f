//! lxc-user-nic beside the system's own, and beside the one netlink message that no helper can do without.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, setegid, seteuid, setgroups, setresgid, setresuid};
use usernet::netlink::{Batch, Netlink, Pair};

use crate::fixture::{Fixture, at};
use crate::measure::{Command, Times, find, pin, verdict};
use crate::sys;

const BRIDGE: &str = "bench0";
/// Where the cards of another user are.
const OTHER: &str = "bench1";
/// Calls before the first that counts.
const WARM_UP: usize = 3;
/// Part of the original's time that a create may take.
const GOAL: f64 = 0.45;
/// Multiple of the floor's time that a create may take.
const FLOOR_GOAL: f64 = 2.2;
/// Longest wait for a NIC to go.
const GONE: Duration = Duration::from_secs(10);

/// Where the cards are that the ledger lists.
#[derive(Clone, Copy)]
enum Cards {
    /// Nowhere: only their owner's next call takes the lines away.
    Gone,
    /// On another bridge.
    Elsewhere,
    /// On the bridge that the new one goes to, which can have no more than 1023.
    Beside,
}

impl Cards {
    fn text(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Elsewhere => "on another bridge",
            Self::Beside => "on the same bridge",
        }
    }
}

/// A process of the user in a user and a network namespace of its own; killed when dropped.
struct Target(Pid);

impl Target {
    fn new(id: u32) -> io::Result<Self> {
        let (read, write) = nix::unistd::pipe()?;
        let pid = sys::fork(|| {
            let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
            let ready = setresgid(gid, gid, gid)
                .and_then(|()| setresuid(uid, uid, uid))
                .and_then(|()| unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET))
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
            return Err(io::Error::other("cannot make a user and a network namespace as an ordinary user"));
        }
        Ok(target)
    }

    fn netns(&self) -> io::Result<OwnedFd> {
        Ok(fs::File::open(format!("/proc/{}/ns/net", self.0))?.into())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to do.
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = sys::wait(self.0);
    }
}

/// Prints the table. `dir` has our programs; `scale` multiplies the numbers of rounds.
pub fn run(fixture: &Fixture, dir: &Path, scale: f64) -> io::Result<()> {
    let program = Path::new("/usr/libexec/lxc/lxc-user-nic");
    let ours = dir.join("lxc-user-nic");
    println!("\n## A card on a bridge\n");
    if !ours.is_file() || !program.is_file() || !Path::new("/etc/lxc").is_dir() {
        println!("{} or {} is not there (apt: lxc), so there is nothing to compare", ours.display(), program.display());
        return Ok(());
    }
    let ours = fixture.copy(&ours, "ours", 0o4755)?;
    let theirs = fixture.copy(program, "theirs", 0o4755)?;
    let ip = find("ip").ok_or_else(|| io::Error::other("no ip on this host (apt: iproute2)"))?;
    println!(
        "create: a veth in a fresh network namespace, its host end on a bridge. delete: ours again (the original has"
    );
    println!(
        "none for such bridges). floor: a forked process that sends the one netlink message, with no exec. On one CPU,"
    );
    println!("with as many lines of another user's in /run/lxc/nics as stated. Times in ms: median (minimum).\n");
    println!(
        "| lines | their cards | rounds | create, ours | the system's | ratio | goal | | floor | ours by floor | goal | | delete, ours |"
    );
    println!("|---:|---|---:|---:|---:|---:|---:|---|---:|---:|---:|---|---:|");
    for (lines, cards) in [
        (0_usize, Cards::Gone),
        (100, Cards::Gone),
        (1000, Cards::Gone),
        (100, Cards::Elsewhere),
        (1000, Cards::Elsewhere),
        (100, Cards::Beside),
        (1000, Cards::Beside),
    ] {
        // Ten at least: fewer say nothing.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
        let rounds = (61.0 * scale).max(10.0) as usize;
        let worker =
            sys::fork(|| match in_a_network_of_its_own(fixture, [&ours, &theirs], &ip, (lines, cards), rounds) {
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
            return Err(io::Error::other("the cards could not be timed"));
        }
    }
    Ok(())
}

fn in_a_network_of_its_own(
    fixture: &Fixture,
    [ours, theirs]: [&PathBuf; 2],
    ip: &Path,
    (lines, cards): (usize, Cards),
    rounds: usize,
) -> io::Result<String> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    // The original asks /sys which cards are there.
    mount(none, "/sys", Some("sysfs"), MsFlags::empty(), none).map_err(|error| at(Path::new("/sys"), error))?;
    for path in ["/run", "/etc/lxc"] {
        mount(Some("bench"), path, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .map_err(|error| at(Path::new(path), error))?;
    }
    fs::create_dir("/run/lxc")?;
    fs::write("/etc/lxc/lxc-usernet", format!("bench veth {BRIDGE} 5\n"))?;
    let mut batch = format!("link add {BRIDGE} type bridge\nlink set {BRIDGE} up\nlink add {OTHER} type bridge\n");
    let mut ledger = String::new();
    let bridge = if matches!(cards, Cards::Beside) { BRIDGE } else { OTHER };
    for card in 0..lines {
        if !matches!(cards, Cards::Gone) {
            batch.push_str(&format!("link add veth60000_{card:04} type veth peer name peer{card}\n"));
            batch.push_str(&format!("link set veth60000_{card:04} master {bridge}\n"));
        }
        ledger.push_str(&format!("other veth {bridge} veth60000_{card:04}\n"));
    }
    let script = fixture.dir.join("links");
    fs::write(&script, batch)?;
    let (code, text) =
        Command::new(ip, ["-batch".as_ref(), script.as_os_str()], &[]).output(&fixture.dir.join("scratch"))?;
    if code != 0 {
        return Err(io::Error::other(format!("ip -batch: {text}")));
    }
    fs::write("/run/lxc/nics", ledger)?;
    pin()?;

    let id = fixture.id;
    let master = Netlink::open()?.find(BRIDGE.as_bytes())?.ok_or_else(|| io::Error::other("the bridge is gone"))?.index;
    // The helpers run as the user's; for the floor this process becomes root again.
    let (uid, gid, root) = (Uid::from_raw(id), Gid::from_raw(id), 0);
    setgroups(&[gid])?;
    setresgid(gid, gid, Gid::from_raw(root))?;
    setresuid(uid, uid, Uid::from_raw(root))?;
    let [mut create, mut original, mut floor, mut delete] = [(); 4].map(|()| Times::default());
    for round in 0..rounds + WARM_UP {
        let target = Target::new(id)?;
        let timed = call(ours, "create", &target.0.to_string())?;
        let deleted = call(ours, "delete", &format!("/proc/{}/ns/net", target.0))?;
        drop(target);
        wait_until_gone(id)?;
        let target = Target::new(id)?;
        let theirs = call(theirs, "create", &target.0.to_string())?;
        drop(target);
        wait_until_gone(id)?;
        let target = Target::new(id)?;
        let bare = bare_message(&target, master)?;
        drop(target);
        wait_until_gone(id)?;
        if round >= WARM_UP {
            for (times, time) in
                [(&mut create, timed), (&mut original, theirs), (&mut floor, bare), (&mut delete, deleted)]
            {
                times.add(time);
            }
        }
    }
    let (ratio, by_floor) = (create.ratio(&original), create.ratio(&floor));
    Ok(format!(
        "| {lines} | {} | {rounds} | {} | {} | {ratio:.3} | {GOAL} | {} | {} | {by_floor:.2} | {FLOOR_GOAL} | {} | {} |",
        cards.text(),
        create.text(),
        original.text(),
        verdict(ratio <= GOAL),
        floor.text(),
        verdict(by_floor <= FLOOR_GOAL),
        delete.text(),
    ))
}

fn call(program: &Path, what: &str, target: &str) -> io::Result<Duration> {
    let words = [what, "/dev/null", "bench", target, "veth", BRIDGE, "eth0"];
    let (time, ended) = Command::new(program, words, &[]).time()?;
    if ended.code != 0 {
        return Err(at(program, format!("{what} failed (exit code {}), so there is nothing to measure", ended.code)));
    }
    Ok(time)
}

/// The floor: one process, one socket, one message, one answer.
fn bare_message(target: &Target, master: u32) -> io::Result<Duration> {
    let netns = target.netns()?;
    seteuid(Uid::from_raw(0))?;
    setegid(Gid::from_raw(0))?;
    let mac = [0xfe, 0, 0, 0, 0, 1];
    let pair = Pair {
        host: b"vethfloor",
        host_mac: mac,
        mtu: Some(1500),
        master: Some(master),
        peer: b"eth0",
        peer_mac: None,
        netns: netns.as_fd(),
    };
    let begin = Instant::now();
    let sender = sys::fork(|| {
        let mut batch = Batch::default();
        batch.create(&pair);
        let sent = Netlink::open().and_then(|mut netlink| netlink.ask(&batch));
        i32::from(!sent.is_ok_and(|answers| answers.into_iter().all(|answer| answer.is_ok())))
    })?;
    let code = sys::wait(sender)?.code;
    let time = begin.elapsed();
    setegid(nix::unistd::getgid())?;
    seteuid(nix::unistd::getuid())?;
    if code == 0 { Ok(time) } else { Err(io::Error::other("the bare message was refused")) }
}

/// A network namespace takes its cards with it some milliseconds after its last process.
fn wait_until_gone(id: u32) -> io::Result<()> {
    let own = format!("veth{id}_");
    let begin = Instant::now();
    loop {
        let mut there = false;
        for entry in fs::read_dir("/sys/class/net")? {
            let name = entry?.file_name();
            there |= name.to_string_lossy().starts_with(&own) || name == "vethfloor";
        }
        if !there {
            return Ok(());
        }
        if begin.elapsed() > GONE {
            return Err(io::Error::other("a card outlives its network namespace"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
