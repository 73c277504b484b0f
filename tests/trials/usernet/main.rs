//! usernet and lxc-user-nic against their contract. Also run against the original: `UNDER_TEST=theirs`.

mod concurrency;
mod config;
mod cves;
mod interface;
mod ledger;
mod options;
mod own_interface;
mod owner;
mod sweeps;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tests::world::{BIN, helpers_dir};
use tests::{ALICE, Call, Outcome, Target, UnderTest, User, World};

/// A third user, whose uid does not fit into the name of a host end.
const CAROL: User = User { name: "carol", uid: 4_000_000, gid: 1103 };

/// A supplementary group that the fixture's users can be given.
const NICS_GID: u32 = 1150;

const LEDGER: &str = "/run/lxc/nics";
const CONFIG: &str = "/etc/lxc/lxc-usernet";

/// The programs under test, read before a world hides them.
static PROGRAMS: OnceLock<Vec<Program>> = OnceLock::new();

/// A program's name, and its content or why it cannot be read.
type Program = (&'static str, Result<Vec<u8>, String>);

fn main() -> ExitCode {
    let directory = match UnderTest::get() {
        UnderTest::Theirs => PathBuf::from("/usr/libexec/lxc"),
        UnderTest::Ours => helpers_dir(),
    };
    let read = |name| {
        let path = directory.join(name);
        (name, fs::read(&path).map_err(|error| format!("{}: {error}", path.display())))
    };
    PROGRAMS.get_or_init(|| vec![read("lxc-user-nic"), read("usernet")]);
    let modules = [
        interface::trials,
        config::trials,
        owner::trials,
        cves::trials,
        ledger::trials,
        concurrency::trials,
        sweeps::trials,
        options::trials,
        own_interface::trials,
    ];
    tests::main(modules.iter().flat_map(|trials| trials()).collect())
}

/// Where ours differs from lxc-user-nic 5.0.2 on purpose, and why. A trial that asks for the difference names the row.
const DIFFERENCES: &[(&str, &str)] = &[
    ("options", "--help, --version and --check: upstream has no option and prints its usage"),
    ("other types", "only veth is made, whatever a line names; upstream passes the column's text on"),
    ("one-letter names", "granted: the kernel takes them; upstream refuses them"),
    ("empty name", "refused: upstream takes it for a missing one"),
    ("pots per bridge", "a NIC counts on its own bridge only (grants more): COUNT stands beside BRIDGE in the line"),
    ("negative count", "a negative line takes nothing from other lines"),
    ("huge count", "saturates at 2147483647; upstream's sum of counts wraps"),
    ("count with letters", "10abc grants nothing: a misspelt line must not"),
    ("unknown words", "a line with unknown words after COUNT grants nothing: a misspelt option must not open a port"),
    ("groups by gid", "a group is matched by its gid, so that unnamed gids and long lists do no harm"),
    ("lines of foreign groups", "passed over: 5.0.2 reads behind its list of groups (fixed upstream by d8f2c55fa)"),
    ("delete on bridges", "a NIC of one's own on a Linux bridge can be deleted; upstream says not implemented"),
    (
        "waiting",
        "a full pot is watched for 100 ms and more, because a NIC lives on after the last process of its namespace",
    ),
    ("one queue", "in each direction: upstream gets one per CPU, of which the kernel idles all but the first"),
    ("a text per cause", "\"Quota reached\" is said only of a quota"),
];

/// Names a row of [`DIFFERENCES`]: what follows holds for ours alone.
#[track_caller]
fn differs(world: &World, row: &str) -> bool {
    assert!(DIFFERENCES.iter().any(|(name, reason)| *name == row && !reason.is_empty()), "no difference: {row}");
    world.ours()
}

/// What alice may have in most trials.
const TWO: &str = "alice veth br0 2\n";

/// A world with a bridge br0, a sysfs that shows it, and the programs installed setuid root.
fn furnish(world: &mut World, config: &str) {
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>).expect("sysfs of the new namespace");
    for (name, bytes) in PROGRAMS.get().expect("read at the start") {
        match bytes {
            Ok(bytes) => {
                let path = Path::new(BIN).join(name);
                fs::write(&path, bytes).expect("install");
                world.mode(&path, 0o4755);
            }
            Err(error) if world.ours() || *name == "lxc-user-nic" => {
                assert!(world.ours(), "{error}");
                panic!("{error}: build it first (make build) or set HELPERS_DIR");
            }
            Err(_) => {}
        }
    }
    world.append("/etc/passwd", "carol:x:4000000:1103::/home/carol:/bin/sh\n");
    fs::create_dir("/etc/lxc").expect("/etc/lxc");
    world.write(CONFIG, config);
    ip("link set lo up");
    ip("link add br0 address 00:16:3e:00:00:01 type bridge");
    ip("link set br0 up");
}

/// Runs ip(8) in the host's network namespace of this world.
#[track_caller]
fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split_whitespace()).output().expect("ip");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// As [`ip`], in the network namespace of a target.
#[track_caller]
fn ip_in(target: &Target, words: &str) -> String {
    let net = format!("--net=/proc/{}/ns/net", target.pid());
    let output = Command::new("nsenter").arg(net).arg("ip").args(words.split_whitespace()).output().expect("nsenter");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A process of `user` in user and network namespaces of its own.
fn target(user: User) -> Target {
    Target::with(move || {
        user.become_user();
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).expect("unshare");
    })
}

/// lxc-user-nic, as `user`.
fn helper(user: User) -> Call {
    Call::new(Path::new(BIN).join("lxc-user-nic")).user(user)
}

/// usernet, as `user`.
fn usernet(user: User) -> Call {
    Call::new(Path::new(BIN).join("usernet")).user(user)
}

/// As `user` with a supplementary group.
fn with_group(call: Call, user: User, gid: u32) -> Call {
    call.as_is().as_root(move || user.become_with_gid(user.gid, &[gid]))
}

/// lxc-user-nic create for a target of alice's on br0.
fn create(target: &Target, name: &str) -> Call {
    helper(ALICE).words("create /dev/null c1").arg(target.pid().to_string()).words("veth br0").args(words(name))
}

fn words(name: &str) -> Vec<&str> {
    if name.is_empty() { Vec::new() } else { vec![name] }
}

/// The four fields of a successful create.
#[track_caller]
fn fields(outcome: &Outcome) -> [String; 4] {
    outcome.assert_code(0, "created");
    assert_eq!(outcome.text(), "", "not a byte on standard error");
    let out = outcome.out();
    let line = out.strip_suffix('\n').expect("one newline");
    let fields: Vec<String> = line.split(':').map(str::to_owned).collect();
    fields.try_into().unwrap_or_else(|_| panic!("not four fields: {out}"))
}

/// Names of all veths of the host's network namespace.
fn veths() -> Vec<String> {
    let text = ip("-o link show type veth");
    let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
    let mut names: Vec<String> = text.lines().filter_map(name).collect();
    names.sort();
    names
}

/// The host ends in the ledger's lines of four fields, in order.
fn listed() -> Vec<String> {
    let text = fs::read_to_string(LEDGER).unwrap_or_default();
    text.lines().filter_map(|line| line.split(' ').nth(3)).map(str::to_owned).collect()
}

/// Nothing was made: no veth, and no line in the ledger.
#[track_caller]
fn assert_nothing(why: &str) {
    assert_eq!(veths(), Vec::<String>::new(), "{why}: a veth is left");
    assert_eq!(listed(), Vec::<String>::new(), "{why}: a line is left");
}

/// It was refused in one line that holds each of `parts`, and nothing was made.
#[track_caller]
fn assert_refused(world: &World, outcome: &Outcome, parts: &[&str], why: &str) {
    outcome.assert_code(1, why);
    assert_eq!(outcome.out(), "", "{why}");
    if world.ours() {
        outcome.assert_one_line("lxc-user-nic", why);
        for part in parts {
            assert!(outcome.text().contains(part), "{why}: \"{part}\" is not in: {}", outcome.text());
        }
    }
    assert_nothing(why);
}

/// Waits until `done`, at most five seconds.
#[track_caller]
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(5), "in five seconds not: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The ledger's lines are exactly the living veths.
#[track_caller]
fn assert_exact(why: &str) {
    let mut listed = listed();
    listed.sort();
    assert_eq!(listed, veths(), "{why}: the ledger and the kernel");
}
