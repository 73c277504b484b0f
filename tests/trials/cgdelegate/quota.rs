//! The quota is exact, whoever calls at the same time.

use super::fixture::{Cgroups, alice, call, cgdelegate, start_sleep};
use tests::{ALICE, BOB, Trial, World};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once("max+1 calls give max cgroups, and one that ends makes room", exact),
        Trial::once(
            "of 200 parallel calls exactly as many get a cgroup as the file allows, and nothing is left",
            parallel,
        ),
        Trial::once("200 parallel runs of one name at a time leave nothing", churn),
        Trial::once("two users who make and prune in loops never fail and leave nothing", two_users),
        Trial::once("a user's frozen call holds up nobody else, and the user no longer than the bound", frozen),
        Trial::once(
            "one user's stopped call keeps root's prune and list from that user alone, and for a second",
            others,
        ),
        Trial::once("create counts until it is deleted, and a name is listed with its state", list),
        Trial::once("a call from another base counts against the same quota", two_bases),
    ]
}

const LINE: &str = "alice pids,v1:pids,name=systemd 3 pids.max=2000\nbob pids,v1:pids,name=systemd 3";

fn exact(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let mut running: Vec<_> = ["a", "b", "c"].into_iter().map(|name| start_sleep(world, ALICE, name)).collect();
    let outcome = alice(world, "run d -- true");
    outcome.assert_code(77, "the fourth");
    assert!(
        outcome.text().contains("you have 3 of the 3") && outcome.text().contains("(a, b, c)"),
        "{}",
        outcome.text()
    );
    cgdelegate(world, BOB, "run d -- true").assert_code(0, "bob has his own");
    drop(running.remove(0));
    alice(world, "run d -- true").assert_code(0, "there is room again");
    drop(running);
    cgdelegate(world, BOB, "prune").assert_code(0, "prune");
    alice(world, "prune").assert_code(0, "prune");
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn parallel(world: &mut World) {
    // Nobody reads the log while 200 calls write to it.
    world.without_syslog();
    let cgroups = Cgroups::new(world, "alice pids,v1:pids,name=systemd 7 pids.max=2000");
    let program = world.program("cgdelegate");
    let all: Vec<_> = (0..200)
        .map(|number| {
            let name = format!("n{number}");
            tests::Call::new(&program)
                .user(ALICE)
                .env("PATH", "/usr/bin")
                .args(["run", &name, "--", "sleep", "1000"])
                .start()
        })
        .collect();
    let mut winners = Vec::new();
    let mut losers = 0;
    for running in all {
        let pid = running.pid();
        super::fixture::wait_until("an end or a command", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains(") Z") || stat.contains("(sleep)")
        });
        if std::fs::read_to_string(format!("/proc/{pid}/comm")).expect("comm").trim() == "sleep" {
            winners.push(running);
        } else {
            running.finish(world).assert_code(77, "above the quota");
            losers += 1;
        }
    }
    assert_eq!((winners.len(), losers), (7, 193));
    drop(winners);
    alice(world, "prune").assert_code(0, "prune");
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn churn(world: &mut World) {
    world.without_syslog();
    let cgroups = Cgroups::new(world, "alice pids,v1:pids,v1:cpuset,name=systemd 200 pids.max=2000");
    let program = world.program("cgdelegate");
    let all: Vec<_> = (0..200)
        .map(|number| {
            let name = format!("n{number}");
            tests::Call::new(&program).user(ALICE).env("PATH", "/usr/bin").args(["run", &name, "--", "true"]).start()
        })
        .collect();
    for running in all {
        running.finish(world).assert_silent("run");
    }
    alice(world, "prune").assert_code(0, "prune");
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn two_users(world: &mut World) {
    // Without a base in the file, both share one that is made and removed all the time.
    let (cgroups, _turn) = Cgroups::own_base(world, "alice - 2\nbob - 2");
    let program = world.program("cgdelegate");
    let script = "for i in $(seq 40); do \"$0\" run x -- true || exit 1; \"$0\" prune >/dev/null || exit 2; done";
    let both: Vec<_> = [ALICE, BOB]
        .into_iter()
        .map(|user| {
            tests::Call::new("/bin/sh").user(user).env("PATH", "/usr/bin").arg("-c").arg(script).arg(&program).start()
        })
        .collect();
    for running in both {
        running.finish(world).assert_silent("loop");
    }
    let own = cgroups.need("v2").join("cgdelegate");
    assert!(!own.exists(), "{} is left", own.display());
}

fn frozen(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    // Inside a cgroup of hers, alice starts a call, and it is stopped while it holds her lock: as her freezer could do.
    let running = call(world, ALICE, "run a -- true").start_traced();
    loop {
        match tests::tracer::next(running.pid()) {
            tests::tracer::Stop::Enter(number, _) if number == libc::SYS_mkdirat as u64 => break,
            tests::tracer::Stop::Gone(status) => panic!("gone: {status}"),
            _ => {}
        }
    }
    let begin = std::time::Instant::now();
    cgdelegate(world, BOB, "run b -- true").assert_code(0, "bob's call returns");
    assert!(begin.elapsed() < std::time::Duration::from_secs(5));
    let outcome = alice(world, "run c -- true");
    outcome.assert_code(75, "alice's own waits, but not for ever");
    assert!(
        begin.elapsed() < std::time::Duration::from_secs(40) && outcome.text().contains("frozen"),
        "{}",
        outcome.text()
    );
    let _ = super::fixture::end(running, world);
    alice(world, "run c -- true").assert_code(0, "and when the stopped one is dead, it works");
    drop(cgroups);
}

/// Stopped while it holds alice's lock.
fn stopped(world: &mut World, words: &str) -> tests::call::Running {
    let running = call(world, ALICE, words).start_traced();
    loop {
        match tests::tracer::next(running.pid()) {
            tests::tracer::Stop::Enter(number, _) if number == libc::SYS_mkdirat as u64 => return running,
            tests::tracer::Stop::Gone(status) => panic!("gone: {status}"),
            _ => {}
        }
    }
}

fn others(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    // Alice's uid comes before bob's, whose cgroup is stale.
    cgdelegate(world, BOB, "run b -- true").assert_code(0, "bob's");
    alice(world, "create a").assert_silent("alice's");
    let running = stopped(world, "run c -- true");
    for words in ["prune", "list", "prune --dry-run"] {
        let begin = std::time::Instant::now();
        let outcome = cgdelegate(world, tests::ROOT, words);
        outcome.assert_code(75, words);
        assert!(begin.elapsed() < std::time::Duration::from_secs(8), "{words} took {:?}", begin.elapsed());
        assert!(outcome.text().contains("left out uid 1001:"), "{}", outcome.text());
        assert_eq!(outcome.out().contains("/cgd-1002/b"), words == "prune", "{words}: {}", outcome.out());
        assert!(!cgroups.node("v2", BOB, "b").exists(), "bob's is gone");
    }
    let _ = super::fixture::end(running, world);
    assert!(cgdelegate(world, tests::ROOT, "list").out().starts_with("a 1001 create idle "));
    cgdelegate(world, tests::ROOT, "prune").assert_code(0, "nobody is left out");
    alice(world, "delete a").assert_silent("delete");
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn list(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    assert_eq!(alice(world, "list").out(), "");
    alice(world, "create idle").assert_silent("create");
    alice(world, "create idle").assert_silent("twice is once");
    let running = start_sleep(world, ALICE, "busy");
    alice(world, "run gone -- true").assert_code(0, "run");
    let text = alice(world, "list").out();
    let line =
        |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}"));
    assert!(line("idle").starts_with("idle 1001 create idle /"), "{text}");
    assert!(line("busy").starts_with("busy 1001 run alive /"), "{text}");
    assert!(line("gone").starts_with("gone 1001 run stale /"), "{text}");
    assert_eq!(cgdelegate(world, BOB, "list").out(), "");
    assert_eq!(cgdelegate(world, tests::ROOT, "list").out(), text);
    let json = alice(world, "list --json").out();
    assert!(json.starts_with("[{\"name\":\"busy\",\"uid\":1001,") && json.ends_with("}]\n"), "{json}");
    assert!(json.contains(&format!("\"processes\":[{}]", running.pid())), "{json}");
    let pruned = alice(world, "prune --dry-run").out();
    assert_eq!(pruned.lines().count(), cgroups.mounted(&["v2", "pids"]).len() + 1, "{pruned}");
    assert!(cgroups.node("v2", ALICE, "gone").exists());
    assert_eq!(alice(world, "prune").out(), pruned);
    assert!(!cgroups.node("v2", ALICE, "gone").exists() && cgroups.node("v2", ALICE, "idle").exists());
    alice(world, "run idle -- true").assert_code(0, "a cgroup of create's is entered");
    alice(world, "prune").assert_silent("and stays");
    alice(world, "delete idle").assert_silent("delete");
}

fn two_bases(world: &mut World) {
    let cgroups = Cgroups::new(world, "");
    let v2 = cgroups.need("v2");
    // Two places as systemd has them: slices that hold no process, and below them what the caller is in.
    for place in ["a.slice/a-b.slice/one.scope", "c.slice/two.service"] {
        std::fs::create_dir_all(v2.join(&cgroups.base).join(place)).expect("mkdir");
    }
    world.write(super::fixture::CONF, "alice - 2\n");
    let at = |place: &str| {
        let procs = v2.join(&cgroups.base).join(place).join("cgroup.procs");
        move || std::fs::write(procs, "0").expect("enter")
    };
    let one = call(world, ALICE, "run one -- sleep 1000").as_root(at("a.slice/a-b.slice/one.scope")).start();
    super::fixture::wait_for_command(one.pid(), "sleep");
    assert_eq!(super::fixture::place(one.pid(), "v2"), format!("/{}/a.slice/a-b.slice/cgd-1001/one", cgroups.base));
    let two = call(world, ALICE, "run two -- sleep 1000").as_root(at("c.slice/two.service")).start();
    super::fixture::wait_for_command(two.pid(), "sleep");
    assert_eq!(super::fixture::place(two.pid(), "v2"), format!("/{}/c.slice/cgd-1001/two", cgroups.base));
    for place in ["a.slice/a-b.slice/one.scope", "c.slice/two.service"] {
        let outcome = call(world, ALICE, "run three -- true").as_root(at(place)).run(world);
        outcome.assert_code(77, "one quota");
    }
    drop((one, two));
    assert_eq!(alice(world, "prune").out().lines().count(), 2);
}
