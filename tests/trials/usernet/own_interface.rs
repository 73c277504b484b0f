//! usernet's own commands, and the stage of a container start.

use tests::{ALICE, BOB, Call, ROOT, Trial, World};

use crate::{CONFIG, TWO, assert_nothing, fields, furnish, ip_in, listed, target, usernet, veths};

fn start_of(pid: nix::unistd::Pid) -> u64 {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).expect("stat");
    helper::handoff::start_time(&stat).expect("start time")
}

fn stage(line: &str) -> Call {
    usernet(ALICE).words("attach br0 --name eth0").stdin(format!("{line}\n"))
}

fn pipeline(world: &mut World) {
    furnish(world, TWO);
    let target = target(ALICE);
    let (pid, start) = (target.pid(), start_of(target.pid()));
    let record = format!("handoff/1 pid={pid} start={start} name=c7 x=a%20b");
    let outcome = stage(&record).run(world);
    outcome.assert_code(0, "stage");
    let [host] = <[String; 1]>::try_from(veths()).expect("one veth");
    let out = outcome.out();
    assert!(out.starts_with(&format!("{record} nic=eth0:2:{host}:")) && out.ends_with('\n'), "{out}");
    // A second stage adds its own.
    let outcome = usernet(ALICE).words("attach br0").stdin(out).run(world);
    outcome.assert_code(0, "second stage");
    assert!(outcome.out().contains(",eth1:3:veth1001_"), "{}", outcome.out());
    let list = usernet(ALICE).words("list").run(world);
    assert!(list.out().contains(" c7\n") && list.out().contains("2 of 2 used: alice on br0"), "{}", list.out());
}

fn refusing(world: &mut World) {
    furnish(world, TWO);
    let mine = target(ALICE);
    let bobs = target(BOB);
    let pid = mine.pid();
    let start = start_of(pid);
    for (line, code, failed) in [
        (format!("handoff/1 pid={pid} start={start} failed=idmap:77"), 75, "failed=idmap:77"),
        (format!("handoff/1 pid={pid} start={}", start + 1), 65, "failed=usernet:65"),
        (format!("handoff/1 pid={} start={}", bobs.pid(), start_of(bobs.pid())), 77, "failed=usernet:77"),
        (format!("handoff/1 pid=1 start={}", start_of(nix::unistd::Pid::from_raw(1)) + 1), 65, "failed=usernet:65"),
    ] {
        let outcome = stage(&line).run(world);
        outcome.assert_code(code, &line);
        assert!(outcome.out().ends_with(&format!(" {failed}\n")), "{line}: {}", outcome.out());
        assert_eq!(outcome.out().matches("failed=").count(), 1);
    }
    for line in ["", "nonsense", "handoff/2 pid=1 start=1", "handoff/1 pid=0 start=1"] {
        let outcome = stage(line).run(world);
        outcome.assert_code(65, line);
        assert_eq!(outcome.out(), "", "{line}");
    }
    world.write(CONFIG, "alice veth br9 2\n");
    let outcome = usernet(ALICE).words("attach br9").stdin(format!("handoff/1 pid={pid} start={start}\n")).run(world);
    outcome.assert_code(78, "no bridge");
    assert!(outcome.out().ends_with(" failed=usernet:78\n"), "{}", outcome.out());
    let full = stage(&format!("handoff/1 pid={pid} start={start}")).stdio(1, tests::Fd::Full).run(world);
    assert!(full.code().is_some_and(|code| code > 1), "{}", full.text());
    assert_nothing("refused stages");
}

fn commands(world: &mut World) {
    furnish(world, "alice veth br0 3\nbob veth br0 1\n");
    let target = target(ALICE);
    let attach = |words: &str| usernet(ALICE).words("attach br0 --pid").arg(target.pid().to_string()).words(words);
    let [nic, _, host, index] = fields(&attach("--name net0 --mac 02:00:00:00:00:07 --container web").run(world));
    assert_eq!(nic, "net0");
    assert!(ip_in(&target, "-o link show net0").contains("link/ether 02:00:00:00:00:07"));
    let json = usernet(ALICE).words("list --json").run(world).out();
    let wanted = format!(
        "{{\"nics\":[{{\"name\":\"net0\",\"host\":\"{host}\",\"index\":{index},\"bridge\":\"br0\",\"container\":\"web\",\"uid\":1001,\"pot\":\"alice\",\"addr\":null}}],\"quotas\":[{{\"pot\":\"alice\",\"bridge\":\"br0\",\"used\":1,\"allowed\":3,\"line\":1}}]}}\n"
    );
    assert_eq!(json, wanted);
    let bobs = usernet(BOB).words("list").run(world).out();
    assert_eq!(bobs, "0 of 1 used: bob on br0 (/etc/lxc/lxc-usernet:2)\n");
    let roots = usernet(ROOT).words("list").run(world).out();
    assert!(roots.contains(&host) && roots.contains("alice on br0") && roots.contains("bob on br0"), "{roots}");
    usernet(BOB).words("detach").arg(&host).run(world).assert_code(77, "not bob's");
    let check = attach("--check").run(world);
    check.assert_code(0, "check");
    assert!(check.out().contains("/etc/lxc/lxc-usernet:1 grants alice 3, of which 1 in use"), "{}", check.out());
    usernet(ALICE).words("detach").arg(&host).run(world).assert_silent("detach");
    assert_nothing("detached");
    for (words, code) in [("", 64), ("attach", 64), ("detach lo", 77), ("frob", 64), ("--help", 0), ("--version", 0)] {
        usernet(ALICE).words(words).run(world).assert_code(code, words);
    }
    let log: Vec<String> = world.syslog().iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    assert!(
        log.iter().any(|line| line.contains("usernet[")
            && line.contains("event=nic_create result=granted uid=1001 user=alice")
            && line.contains("pot=alice line=1")),
        "{log:?}"
    );
}

pub fn trials() -> Vec<Trial> {
    let ours = |name: &str, run: fn(&mut World)| {
        Trial::once(name, move |world| {
            world.needs_ours("usernet");
            run(world);
        })
    };
    vec![
        ours("as a stage it passes the record on with nic added", pipeline),
        ours("a stage that fails says so in the record, and one after a failure passes it on untouched", refusing),
        ours("attach, list, detach and --check do what the manual says", commands),
        ours("prune removes dead lines and writes missing ones", |world| {
            furnish(world, TWO);
            let target = target(ALICE);
            fields(&usernet(ALICE).words("attach br0 --pid").arg(target.pid().to_string()).run(world));
            std::fs::write(crate::LEDGER, "alice veth br0 veth1001_dead\nbob veth br0 veth1002_dead\n").expect("write");
            let outcome = usernet(ALICE).words("prune").run(world);
            assert_eq!(outcome.out(), "1 lines removed, 1 lines written\n");
            assert_eq!(listed(), ["veth1002_dead".to_owned(), veths()[0].clone()]);
        }),
        ours("without the setuid bit it says what is missing", |world| {
            furnish(world, TWO);
            let path = std::path::Path::new(tests::world::BIN).join("usernet");
            world.mode(&path, 0o755);
            let target = target(ALICE);
            let outcome = usernet(ALICE).words("attach br0 --pid").arg(target.pid().to_string()).run(world);
            assert!(outcome.code() != Some(0) && outcome.text().contains("setuid root"), "{}", outcome.text());
            usernet(ALICE).words("--version").run(world).assert_code(0, "version");
            assert_nothing("no privilege");
        }),
    ]
}
