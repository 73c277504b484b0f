//! Who may, what is handed over, and which limits stay root's.

use super::fixture::{CONF, Cgroups, alice, cgdelegate, owner, place, start_sleep};
use std::fs;
use tests::{ALICE, BOB, Call, Trial, World};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once("limits asked for an existing cgroup are set, or refused with a line", limits_of_existing),
        Trial::once("hierarchies asked for an existing cgroup that it lacks are refused", hierarchies_of_existing),
        Trial::once("ceilings are those of the file at each call, wherever the user has cgroups", ceilings_follow),
        Trial::once("a ceiling that the file has no more goes at the next call, what root has set stays", ceilings_go),
        Trial::once(
            "without a file, or without a line, nobody gets a cgroup and the message says what to write",
            nobody,
        ),
        Trial::once("a malformed line stops everybody with file, line and reason", malformed),
        Trial::once("a file that others can write is not believed", untrusted),
        Trial::once(
            "the closed list is handed over and nothing else, to the caller and his first subordinate group",
            closed_list,
        ),
        Trial::once("a caller without subordinate group keeps his own, which may not write", own_group),
        Trial::once(
            "descendants and depth are limited above and on the node, and mkdir beyond ends in EAGAIN",
            descendants,
        ),
        Trial::once("pids.max binds the user's total, over all his cgroups and whatever he sets inside", pids_total),
        Trial::once("a limit may be asked lower, never higher", asked_limits),
        Trial::once("an owner that is not the caller's is refused, a subordinate one is taken", owners),
        Trial::once("names that are the kernel's, systemd's or paths are usage errors", names),
        Trial::once("v1 cpuset is initialised on the way, and a child that the user makes can be entered", cpuset),
        Trial::once("the host's own cpuset flag is never touched", host_flag),
        Trial::once("check names the deciding line and changes nothing", check),
    ]
}

const LINE: &str = "alice pids,v1:pids,v1:cpuset,name=systemd 3 pids.max=50";

fn nobody(world: &mut World) {
    let cgroups = Cgroups::new(world, "bob - 1");
    for (remove, word) in [(false, "has no line for you"), (true, "does not exist")] {
        if remove {
            world.remove(CONF);
        }
        let outcome = alice(world, "run x -- true");
        outcome.assert_code(77, word);
        assert!(outcome.text().contains(word) && outcome.text().contains("\"alice cpu,memory"), "{}", outcome.text());
        assert_eq!(outcome.text().lines().count(), 1);
    }
    cgroups.configure(world, "alice - 0\n@1101 - 5");
    alice(world, "create x").assert_code(77, "the first line decides");
    assert!(cgroups.directories().is_empty());
}

fn malformed(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice - 1\nbob - 1 pids.max=3");
    let outcome = alice(world, "create x");
    outcome.assert_code(78, "a line of somebody else");
    assert!(outcome.text().starts_with("cgdelegate: /etc/cgdelegate.conf:3: pids.max needs"), "{}", outcome.text());
    world.write(CONF, format!("alice - 1\n{}", "x".repeat(70_000)));
    assert!(alice(world, "create x").text().contains(":2: the line is 70000 bytes"));
    world.write(CONF, "x".repeat((1 << 20) + 1));
    alice(world, "create x").assert_code(78, "more than a mebibyte");
    assert!(cgroups.directories().is_empty());
}

fn untrusted(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice - 1");
    for mode in [0o664, 0o646] {
        world.mode(CONF, mode);
        alice(world, "create x").assert_code(78, "writable by others");
    }
    world.mode(CONF, 0o644);
    std::os::unix::fs::chown(CONF, Some(ALICE.uid), None).expect("chown");
    alice(world, "create x").assert_code(78, "alice's own");
    assert!(cgroups.directories().is_empty());
}

fn delegate_list() -> Vec<String> {
    fs::read_to_string("/sys/kernel/cgroup/delegate").expect("delegate").lines().map(str::to_owned).collect()
}

fn closed_list(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    alice(world, "create x").assert_silent("create");
    for word in cgroups.mounted(&["v2", "pids", "cpuset", "name=systemd"]) {
        let node = cgroups.node(word, ALICE, "x");
        let listed = if word == "v2" { delegate_list() } else { vec!["cgroup.procs".into(), "tasks".into()] };
        assert_eq!(owner(&node), (1001, 100_000, 0o775), "{word}");
        for entry in fs::read_dir(&node).expect("node").flatten() {
            let name = entry.file_name().into_string().expect("name");
            let (uid, gid, mode) = owner(&entry.path());
            if listed.contains(&name) {
                assert_eq!((uid, gid, mode & 0o022), (1001, 100_000, 0o020), "{word} {name}");
            } else {
                assert_eq!((uid, gid, mode & 0o022), (0, 0, 0), "{word} {name}");
            }
        }
        let above = node.parent().expect("parent");
        for path in [above, above.parent().expect("base")] {
            assert_eq!(owner(path), (0, 0, 0o755), "{}", path.display());
            assert_eq!(owner(&path.join("cgroup.procs")).0, 0);
        }
        assert_eq!(owner(&cgroups.need(word)).0, 0);
    }
}

fn own_group(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice name=systemd 3");
    world.write("/etc/subgid", "bob:300000:65536\n");
    alice(world, "create x").assert_silent("create");
    for word in cgroups.mounted(&["v2", "name=systemd"]) {
        let node = cgroups.node(word, ALICE, "x");
        assert_eq!(owner(&node), (1001, 1101, 0o755));
        assert_eq!(owner(&node.join("cgroup.procs")), (1001, 1101, 0o644));
    }
    // A group with other members, granted by mistake, may not write either.
    world.write("/etc/subgid", "alice:1150:1\n");
    let program = world.program("cgdelegate");
    let outcome =
        Call::new(program).as_is().as_root(|| ALICE.become_with_gid(ALICE.gid, &[1150])).words("create y").run(world);
    outcome.assert_silent("create");
    assert_eq!(owner(&cgroups.node("v2", ALICE, "y")), (1001, 1150, 0o755));
}

fn descendants(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice - 2 cgroup.max.descendants=5 cgroup.max.depth=2");
    alice(world, "create x").assert_silent("create");
    let node = cgroups.node("v2", ALICE, "x");
    let read = |path: &std::path::Path| fs::read_to_string(path).expect("limit").trim().to_owned();
    assert_eq!(read(&node.join("cgroup.max.descendants")), "5");
    assert_eq!(read(&node.join("cgroup.max.depth")), "2");
    assert_eq!(read(&node.join("../cgroup.max.descendants")), "7");
    assert_eq!(read(&node.join("../cgroup.max.depth")), "3");
    let script = format!(
        "cd {} && for i in 1 2 3 4 5; do mkdir $i || exit 3; done; mkdir 6 && exit 4; rmdir *; mkdir -p 1/2 && mkdir 1/2/3 && exit 5; exit 0",
        node.display()
    );
    let outcome = Call::new("/bin/sh").user(ALICE).arg("-c").arg(script).run(world);
    outcome.assert_code(0, "five, then no more");
    assert_eq!(outcome.text().matches("Resource temporarily unavailable").count(), 2, "{}", outcome.text());
    let raise = format!("echo 9 > {}", node.join("cgroup.max.descendants").display());
    assert_ne!(Call::new("/bin/sh").user(ALICE).arg("-c").arg(raise).run(world).code(), Some(0));
    // Root's own mkdir still works.
    fs::create_dir(cgroups.need("v2").join(&cgroups.base).join("roots")).expect("mkdir");
}

fn pids_total(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice v1:pids,pids 3 pids.max=6");
    let word = if cgroups.mount("pids").is_some() { "pids" } else { "v2" };
    let first = start_sleep(world, ALICE, "a");
    let second = start_sleep(world, ALICE, "b");
    let node = cgroups.node(word, ALICE, "a");
    assert_eq!(fs::read_to_string(node.join("../pids.max")).expect("limit").trim(), "6");
    assert_eq!(fs::read_to_string(node.join("pids.max")).expect("limit").trim(), "max");
    assert_eq!(owner(&node.join("../pids.max")).0, 0);
    // Two sleep already; a shell and three more, and then no more.
    let script = "n=0; while [ $n -lt 12 ]; do sleep 5 & n=$((n+1)); done; kill $(jobs -p); wait";
    let outcome = super::fixture::call(world, ALICE, "run c -- sh -c").arg(script).run(world);
    assert!(outcome.text().contains("ork"), "it could fork 12 times: {}", outcome.text());
    drop((first, second));
}

fn asked_limits(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    alice(world, "create x --pids 51").assert_code(77, "above the ceiling");
    alice(world, "create x --pids max").assert_code(77, "no limit");
    alice(world, "create x --memory 1M").assert_code(77, "a controller that is not granted");
    alice(world, "create x --limit cgroup.max.depth=17").assert_code(77, "above the default");
    assert!(cgroups.directories().is_empty());
    alice(world, "create x --pids 7 --limit cgroup.max.depth=3").assert_silent("below");
    let pids = cgroups.mounted(&["pids", "v2"])[0];
    let node = cgroups.node(pids, ALICE, "x");
    assert_eq!(fs::read_to_string(node.join("pids.max")).expect("limit").trim(), "7");
    assert_eq!(owner(&node.join("pids.max")), (0, 0, 0o644));
    assert_eq!(fs::read_to_string(node.join("../pids.max")).expect("limit").trim(), "50");
    let node = cgroups.node("v2", ALICE, "x");
    assert_eq!(fs::read_to_string(node.join("cgroup.max.depth")).expect("limit").trim(), "3");
    // A smaller ask does not get rid of what carries the ceiling.
    alice(world, "create y --controllers name=systemd").assert_silent("smaller");
    assert!(cgroups.node(pids, ALICE, "y").exists());
    assert!(cgroups.mount("cpuset").is_none() || !cgroups.node("cpuset", ALICE, "y").exists());
    alice(world, "create z --controllers v1:freezer").assert_code(77, "not granted");
    cgroups.configure(world, "alice memory,v1:pids 3 memory.max=1G");
    if !fs::read_to_string(cgroups.need("v2").join("cgroup.controllers")).expect("controllers").contains("memory") {
        alice(world, "create z").assert_code(69, "a ceiling that this host cannot set is fatal");
    }
}

fn owners(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice name=systemd 3");
    for bad in ["300000", "0", "1002", "1001:300000", "1001:0", "1001:1150", "165536"] {
        alice(world, &format!("create x --owner {bad}")).assert_code(77, bad);
    }
    assert!(cgroups.directories().is_empty());
    alice(world, "create x --owner 100000:100000").assert_silent("subordinate");
    let word = cgroups.mounted(&["name=systemd", "v2"])[0];
    assert_eq!(owner(&cgroups.node(word, ALICE, "x")), (100_000, 100_000, 0o775));
    alice(world, "delete x").assert_silent("and it is still alice's to delete");
    alice(world, "create x --owner 1001:1101").assert_silent("own");
    assert_eq!(owner(&cgroups.node("v2", ALICE, "x")), (1001, 1101, 0o755));
}

fn names(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice name=systemd 3");
    let long = "x".repeat(65);
    for bad in
        ["../x", "a/b", ".", "..", "cgroup.procs", "pids.max", "tasks", "x.service", "cgd-1002", ".x", &long, "x\u{e9}"]
    {
        for verb in ["create", "delete", "run", "attach"] {
            let tail = if verb == "run" { " -- true" } else { "" };
            alice(world, &format!("{verb} {bad}{tail}")).assert_code(64, bad);
        }
    }
    assert!(cgroups.directories().is_empty());
}

fn cpuset(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let running = start_sleep(world, ALICE, "x");
    let node = cgroups.node("cpuset", ALICE, "x");
    let read = |file: &str| fs::read_to_string(node.join(file)).expect(file).trim().to_owned();
    assert_ne!((read("cpuset.cpus"), read("cpuset.mems")), (String::new(), String::new()));
    assert_eq!(read("cgroup.clone_children"), "1");
    assert!(place(running.pid(), "cpuset").ends_with("/cgd-1001/x"));
    let script = format!("mkdir {0}/child && echo {1} > {0}/child/cgroup.procs", node.display(), running.pid());
    Call::new("/bin/sh").user(ALICE).arg("-c").arg(script).run(world).assert_silent("a child can be entered at once");
    assert!(place(running.pid(), "cpuset").ends_with("/x/child"));
}

fn host_flag(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let top = cgroups.need("cpuset");
    let before = fs::read_to_string(top.join("cgroup.clone_children")).expect("flag");
    alice(world, "create x").assert_silent("create");
    assert_eq!(fs::read_to_string(top.join("cgroup.clone_children")).expect("flag"), before);
    for above in [".", ".."] {
        let flag = cgroups.node("cpuset", ALICE, "x").join("..").join(above).join("cgroup.clone_children");
        assert_eq!(fs::read_to_string(flag).expect("flag").trim(), "0");
    }
}

fn check(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let outcome = alice(world, "check --pids 5");
    outcome.assert_code(0, "check");
    assert!(outcome.out().starts_with("allowed: /etc/cgdelegate.conf:2\n"), "{}", outcome.out());
    assert!(outcome.out().contains("pids.max=50") && outcome.out().contains("pids.max=5\n"), "{}", outcome.out());
    alice(world, "run x --check -- true").assert_code(0, "as an option");
    cgdelegate(world, BOB, "check").assert_code(77, "bob");
    assert!(cgroups.directories().is_empty());
    alice(world, "--help").assert_code(0, "help");
    assert!(alice(world, "--version").out().starts_with("cgdelegate (userns-helpers) "));
}

/// Where pids.max of alice's is on this host.
fn pids_word(cgroups: &Cgroups) -> &'static str {
    if cgroups.mount("pids").is_some() { "pids" } else { "v2" }
}

fn limits_of_existing(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice v1:pids,pids 3 pids.max=60");
    let word = pids_word(&cgroups);
    let node = cgroups.node(word, ALICE, "x");
    let limit = || fs::read_to_string(node.join("pids.max")).expect("limit").trim().to_owned();
    alice(world, "create x --pids 50").assert_silent("create");
    assert_eq!(limit(), "50");
    alice(world, "create x").assert_silent("nothing asked");
    assert_eq!(limit(), "50");
    alice(world, "create x --pids 40").assert_silent("create");
    assert_eq!(limit(), "40");
    alice(world, "run x --pids 30 -- true").assert_code(0, "run");
    assert_eq!(limit(), "30");
    let inside = start_sleep(world, ALICE, "x");
    alice(world, "run x --join --pids 20 -- true").assert_code(0, "join");
    assert_eq!(limit(), "20");
    let target = tests::Target::without_user_namespace(ALICE);
    alice(world, &format!("attach x --pids 10 --pid {}", target.pid())).assert_silent("attach");
    assert_eq!(limit(), "10");
    alice(world, "run x --join --pids 61 -- true").assert_code(77, "above the ceiling");
    assert_eq!(limit(), "10");
    assert_eq!(owner(&node.join("pids.max")).0, 0);
    drop((inside, target));
    alice(world, "delete x").assert_silent("delete");
}

fn hierarchies_of_existing(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice name=systemd,v1:cpuset 3");
    cgroups.need("name=systemd");
    cgroups.need("cpuset");
    alice(world, "create x --controllers name=systemd").assert_silent("create");
    for words in ["create x", "run x --controllers v1:cpuset -- true", "run x --join --controllers v1:cpuset -- true"] {
        let outcome = alice(world, words);
        outcome.assert_code(75, words);
        assert!(outcome.text().contains("exists with other hierarchies"), "{words}: {}", outcome.text());
    }
    alice(world, "run x -- true").assert_code(0, "as it is");
    alice(world, "run x --controllers name=systemd -- true").assert_code(0, "as it is");
    alice(world, "delete x").assert_silent("delete");
}

fn ceilings_follow(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice v1:pids,pids 3 pids.max=60");
    let word = pids_word(&cgroups);
    alice(world, "create x").assert_silent("create");
    let ceiling = cgroups.node(word, ALICE, "").join("pids.max");
    let limit = || fs::read_to_string(&ceiling).expect("limit").trim().to_owned();
    assert_eq!(limit(), "60");
    for (max, words) in [(50, "run x -- true"), (40, "create x"), (30, "create y"), (45, "run x -- true")] {
        cgroups.configure(world, &format!("alice v1:pids,pids 3 pids.max={max}"));
        alice(world, words).assert_code(0, words);
        assert_eq!(limit(), max.to_string(), "{words}");
    }
    let inside = start_sleep(world, ALICE, "x");
    cgroups.configure(world, "alice v1:pids,pids 3 pids.max=20");
    alice(world, "run x --join -- true").assert_code(0, "join");
    assert_eq!(limit(), "20");
    // A call with another base lowers it here as well.
    let other = format!("{}/other", cgroups.base);
    world.write(super::fixture::CONF, format!("base {other}\nalice v1:pids,pids 3 pids.max=10\n"));
    alice(world, "run z -- true").assert_code(0, "elsewhere");
    assert_eq!(limit(), "10");
    drop(inside);
    alice(world, "delete x").assert_silent("delete");
    alice(world, "delete y").assert_silent("delete");
}

fn ceilings_go(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice v1:pids,pids,v1:cpu,cpu 3 pids.max=60 cpu.max=50000/100000");
    let pids = cgroups.node(pids_word(&cgroups), ALICE, "").join("pids.max");
    let (cpu, none) = match cgroups.mount("cpu") {
        Some(_) => (cgroups.node("cpu", ALICE, "").join("cpu.cfs_quota_us"), "-1"),
        None => (cgroups.node("v2", ALICE, "").join("cpu.max"), "max 100000"),
    };
    let read = |file: &std::path::Path| fs::read_to_string(file).expect("limit").trim().to_owned();
    alice(world, "create x").assert_silent("create");
    assert_eq!(read(&pids), "60");
    assert!(read(&cpu).starts_with("50000"), "{}", read(&cpu));
    // Of another line of the file, by a call that makes, enters or only finds; and of a hierarchy that is not granted any more.
    for (round, words) in ["create y", "create x", "run x -- true"].into_iter().enumerate() {
        cgroups.configure(world, "alice v1:pids,pids,v1:cpu,cpu 3 pids.max=60 cpu.max=50000/100000");
        alice(world, "run x -- true").assert_code(0, "set");
        assert_eq!(read(&pids), "60");
        let line = if round == 2 { "alice - 3" } else { "alice v1:pids,pids,v1:cpu,cpu 3 cpu.max=50000/100000" };
        cgroups.configure(world, line);
        alice(world, words).assert_code(0, words);
        assert_eq!(read(&pids), "max", "{words}");
        assert_eq!(read(&cpu), if round == 2 { none.to_owned() } else { read(&cpu) }, "{words}");
        assert!(round == 2 || read(&cpu).starts_with("50000"), "{words}: {}", read(&cpu));
    }
    fs::write(&pids, "77").expect("pids.max");
    alice(world, "run x -- true").assert_code(0, "run");
    assert_eq!(read(&pids), "77", "root's own");
    let descendants = cgroups.node("v2", ALICE, "").join("cgroup.max.descendants");
    assert_ne!(read(&descendants), "max", "always set");
    alice(world, "delete x").assert_silent("delete");
    alice(world, "delete y").assert_silent("delete");
}
