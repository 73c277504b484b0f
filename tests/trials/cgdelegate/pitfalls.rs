//! What has gone wrong elsewhere and is in no other trial's way: see the table at the head of main.rs.

use super::fixture::{Cgroups, alice, call, cgdelegate, wait_for_command};
use nix::sys::ptrace;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};
use tests::{ALICE, BOB, Call, ROOT, Trial, World};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once("a call that its caller's freezer stops while it holds the lock holds up nobody else", frozen),
        Trial::once("root of a user namespace cannot write release_agent, by any mount that it sees or makes", agent),
        Trial::once("there is no command that takes a path or a value to set but those of the manual", verbs),
        Trial::once("what the caller names is looked at with his rights", rights),
        Trial::once("a user's cgroups are below the slice that he is in, and its limit binds them", slice),
    ]
}

const LINE: &str = "alice pids,v1:pids,v1:freezer,name=systemd 3\nbob name=systemd 3";

fn frozen(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    // A cgroup that alice has made in one of hers, as she may.
    alice(world, "create z").assert_silent("create");
    let (own, file, words) = match cgroups.mount("freezer") {
        Some(_) => (cgroups.node("freezer", ALICE, "z").join("own"), "freezer.state", ["FROZEN", "THAWED"]),
        None => (cgroups.node("v2", ALICE, "z").join("own"), "cgroup.freeze", ["1", "0"]),
    };
    let made = Call::new("/bin/mkdir").user(ALICE).arg(&own).run(world);
    made.assert_silent("hers");
    let running = call(world, ALICE, "run a -- sleep 1000").start_traced();
    let pid = running.pid();
    loop {
        match tests::tracer::next(pid) {
            tests::tracer::Stop::Enter(number, _) if number == libc::SYS_mkdirat as u64 => break,
            tests::tracer::Stop::Gone(status) => panic!("gone: {status}"),
            _ => {}
        }
    }
    fs::write(own.join("cgroup.procs"), pid.to_string()).expect("into hers");
    let freeze = format!("echo {} > {}", words[0], own.join(file).display());
    Call::new("/bin/sh").user(ALICE).arg("-c").arg(freeze).run(world).assert_silent("she freezes it");
    ptrace::detach(pid, None).expect("detach");
    std::thread::sleep(Duration::from_millis(100));
    assert!(!cgroups.node("name=systemd", ALICE, "a").exists(), "it stands still before its first mkdir");
    let begin = Instant::now();
    cgdelegate(world, BOB, "run b -- true").assert_code(0, "bob");
    cgdelegate(world, BOB, "prune").assert_code(0, "bob");
    assert!(begin.elapsed() < Duration::from_secs(5), "bob has waited {:?}", begin.elapsed());
    let begin = Instant::now();
    let outcome = cgdelegate(world, ROOT, "prune");
    outcome.assert_code(75, "root leaves her out");
    assert!(outcome.text().contains("left out uid 1001:"), "{}", outcome.text());
    assert!(begin.elapsed() < Duration::from_secs(8), "root has waited {:?}", begin.elapsed());
    let outcome = alice(world, "create y");
    outcome.assert_code(75, "her own waits, but not for ever");
    assert!(outcome.text().contains("frozen"), "{}", outcome.text());
    fs::write(own.join(file), words[1]).expect("thaw");
    wait_for_command(pid, "sleep");
    alice(world, "create y").assert_silent("and then it goes on");
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill");
    let _ = running.finish(world);
    alice(world, "prune").assert_code(0, "prune");
    alice(world, "delete y").assert_silent("delete");
    alice(world, "delete z").assert_silent("delete");
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn agent(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let top = cgroups.need("pids");
    let agent = || fs::read_to_string(top.join("release_agent")).expect("agent");
    let before = agent();
    let script = format!(
        "echo /x > {}/release_agent && exit 3; mkdir /tmp/m; mount -t cgroup -o pids x /tmp/m && ! [ -e /tmp/m/release_agent ] || exit 4; \
         mount --bind {0} /tmp/m && echo /x > /tmp/m/release_agent && exit 5; mount -o remount,release_agent=/x /tmp/m && exit 6; exit 0",
        top.display()
    );
    let outcome = call(world, ALICE, "run x -- unshare -Ur -m -C sh -c").arg(script).run(world);
    outcome.assert_code(0, "refused each way");
    assert_eq!(agent(), before);
    alice(world, "prune").assert_code(0, "prune");
}

fn verbs(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let help = alice(world, "--help").out();
    let commands: Vec<&str> = help
        .lines()
        .take_while(|line| !line.starts_with("examples"))
        .filter_map(|line| line.trim_start().trim_start_matches("usage: ").strip_prefix("cgdelegate "))
        .filter_map(|rest| rest.split(' ').next())
        .filter(|word| word.chars().all(|c| c.is_ascii_lowercase()))
        .collect();
    let mut known = commands.clone();
    known.sort_unstable();
    known.dedup();
    assert_eq!(known, ["attach", "check", "create", "delete", "list", "prune", "run"], "{help}");
    for words in [
        "set x pids.max 5",
        "get x pids.max",
        "chown x",
        "chmod x",
        "move 1 x",
        "kill x",
        "freeze x",
        "mount x",
        "create /x",
        "create x y",
        "create x --path=/x",
        "create x --base=/x",
        "create x --config=/x",
        "attach x --pid=1,2",
        "list /x",
        "delete /x",
    ] {
        alice(world, words).assert_code(64, words);
    }
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn rights(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    // A directory that root alone can enter, with a program and a pipe that nobody reads.
    let closed = "/run/closed";
    fs::create_dir(closed).expect("mkdir");
    fs::copy("/bin/true", format!("{closed}/program")).expect("copy");
    fs::set_permissions(format!("{closed}/program"), fs::Permissions::from_mode(0o755)).expect("mode");
    nix::unistd::mkfifo("/run/closed/pipe", nix::sys::stat::Mode::from_bits_truncate(0o666)).expect("mkfifo");
    world.mode(closed, 0o700);
    let absolute = alice(world, "run x -- /run/closed/program");
    assert!([Some(126), Some(127)].contains(&absolute.code()), "{:?}", absolute.code());
    let program = world.program("cgdelegate");
    let by_path = Call::new(program).user(ALICE).env("PATH", closed).words("run x -- program").run(world);
    assert!([Some(126), Some(127)].contains(&by_path.code()), "{:?}", by_path.code());
    for path in ["/run/closed", "/run/closed/pipe", "/run/closed/none"] {
        let outcome = alice(world, &format!("prune {path}"));
        outcome.assert_code(64, path);
        assert!(outcome.text().contains("Permission denied"), "whether it exists is told: {}", outcome.text());
    }
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn slice(world: &mut World) {
    let cgroups = Cgroups::new(world, "");
    let word = if cgroups.mount("pids").is_some() { "pids" } else { "v2" };
    let top = cgroups.need(word).join(&cgroups.base).join("u.slice");
    // As systemd has it: the slice holds no process and is limited, and below it is the session.
    fs::create_dir_all(top.join("s.scope")).expect("mkdir");
    if word == "v2" {
        for above in [cgroups.need("v2"), cgroups.need("v2").join(&cgroups.base)] {
            fs::write(above.join("cgroup.subtree_control"), "+pids").expect("pids");
        }
    }
    fs::write(top.join("pids.max"), "30").expect("limit");
    world.write(super::fixture::CONF, "alice v1:pids,pids 2 pids.max=1000\n");
    let procs = top.join("s.scope/cgroup.procs");
    let script = "cat /proc/self/cgroup; for i in $(seq 60); do sleep 1 & done; echo unlimited";
    let outcome = call(world, ALICE, "run x -- sh -c")
        .arg(script)
        .as_root(move || fs::write(procs, "0").expect("enter"))
        .run(world);
    assert!(outcome.out().contains(&format!("/{}/u.slice/cgd-1001/x", cgroups.base)), "{}", outcome.out());
    assert!(!outcome.out().contains("unlimited"), "30 processes are the slice's: {}", outcome.out());
    assert!(outcome.text().contains("fork"), "{}", outcome.text());
    alice(world, "delete x --kill").assert_silent("delete");
}
