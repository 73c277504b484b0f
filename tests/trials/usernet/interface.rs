//! The command line, the output line, and what is made.

use tests::{ALICE, BOB, Fd, Trial, World};

use crate::{
    CAROL, CONFIG, TWO, assert_nothing, assert_refused, create, differs, fields, furnish, helper, ip, ip_in, listed,
    target, veths,
};

fn made_as_asked(world: &mut World) {
    furnish(world, TWO);
    let target = target(ALICE);
    let [nic, index, host, host_index] = fields(&create(&target, "eth0").run(world));
    assert_eq!(nic, "eth0");
    assert_eq!(index, "2");
    assert!(host.starts_with("veth1001_") && host.len() == 13, "{host}");
    let link = ip(&format!("-d -o link show {host}"));
    assert!(link.starts_with(&format!("{host_index}: ")), "{link}");
    for part in [" master br0 ", "link/ether fe:", ",UP", " mtu 1500 "] {
        assert!(link.contains(part), "{part}: {link}");
    }
    let peer = ip_in(&target, "-o link show eth0");
    assert!(peer.starts_with("2: eth0@") && !peer.contains(",UP"), "{peer}");
    assert_eq!(std::fs::read_to_string(crate::LEDGER).expect("ledger"), format!("alice veth br0 {host}\n"));
    let [second, ..] = fields(&create(&target, "").run(world));
    assert_eq!(second, "eth1", "the first free name");
    let third = create(&target, "").run(world);
    third.assert_code(1, "quota 2");
    assert!(third.text().contains("Quota reached"), "{}", third.text());
    assert_eq!(veths().len(), 2);
}

fn names(world: &mut World) {
    furnish(world, "alice veth br0 99\n");
    let target = target(ALICE);
    for name in ["eth%d", "-x", "123456789012345", "eth7"] {
        let [nic, ..] = fields(&create(&target, name).run(world));
        assert_eq!(nic, if name == "eth%d" { "eth0" } else { name });
    }
    if differs(world, "one-letter names") {
        assert_eq!(fields(&create(&target, "a").run(world))[0], "a");
    }
    let there = veths();
    for name in ["1234567890123456", "a/b", "a b", "..", ".", "a:b"] {
        create(&target, "").args([name]).run(world).assert_code(1, name);
    }
    if differs(world, "empty name") {
        create(&target, "").arg("").run(world).assert_code(1, "empty");
    }
    create(&target, "eth7").run(world).assert_code(1, "taken");
    if world.ours() {
        // 5.0.2 makes the pair first and leaves it when the name is refused later.
        assert_eq!(veths(), there);
        assert_eq!(listed().len(), there.len(), "no charge remains");
    }
}

fn pids(world: &mut World) {
    furnish(world, "alice veth br0 99\n");
    let target = target(ALICE);
    let pid = target.pid().as_raw();
    let call = |pid: &str| helper(ALICE).words("create /dev/null c1").arg(pid).words("veth br0");
    for text in [format!("{pid}"), format!(" {pid}"), format!("+{pid}"), format!("{pid:#x}"), format!("0{pid:o}")] {
        fields(&call(&text).run(world));
    }
    let there = veths();
    for text in [format!("{pid}x"), format!("{pid} "), String::new(), "0".into(), "-1".into(), "99999999999".into()] {
        call(&text).run(world).assert_code(1, &text);
    }
    assert_eq!(veths(), there);
}

fn usage(world: &mut World) {
    furnish(world, TWO);
    let target = target(ALICE);
    let pid = target.pid().to_string();
    for line in ["", "create", "-h", "create a b PID veth", "create a b PID veth br0 x y", "make a b PID veth br0"] {
        let outcome = helper(ALICE).words(&line.replace("PID", &pid)).run(world);
        outcome.assert_code(1, line);
        assert_eq!(outcome.out(), "", "{line}");
        assert!(outcome.text().to_lowercase().contains("usage"), "{line}: {}", outcome.text());
    }
    assert_nothing("usage");
}

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once("create makes what the contract says and prints one line about it", made_as_asked),
        Trial::once("NICNAME follows the kernel's rules and is never cut", names),
        Trial::once("PID is read as strtol with base 0 reads it", pids),
        Trial::once("any other command line is answered with the usage", usage),
        Trial::once("the command line of LXC 1.0 is answered with what to use", |world| {
            world.needs_ours("answer to it");
            furnish(world, TWO);
            let outcome = helper(ALICE).words("42 veth br0 eth0").run(world);
            assert_refused(world, &outcome, &["LXC 1.0", "create LXCPATH NAME PID veth BRIDGE"], "old form");
        }),
        Trial::once("a type other than veth is refused even when a line names it", |world| {
            differs(world, "other types");
            world.needs_ours("refusal of it");
            furnish(world, "alice macvlan br0 2\nalice veth br0 2\n");
            let target = target(ALICE);
            let pid = target.pid().to_string();
            let outcome = helper(ALICE).words("create a b").arg(&pid).words("macvlan br0").run(world);
            assert_refused(world, &outcome, &["type \"macvlan\""], "macvlan");
        }),
        Trial::once("none makes a veth without a bridge", |world| {
            furnish(world, "alice veth none 1\n");
            let target = target(ALICE);
            let pid = target.pid().to_string();
            let none = || helper(ALICE).words("create a b").arg(&pid).words("veth none");
            let [_, _, host, _] = fields(&none().run(world));
            let link = ip(&format!("-o link show {host}"));
            assert!(!link.contains("master") && link.contains(" mtu 1500 ") && link.contains(",UP"), "{link}");
            none().run(world).assert_code(1, "quota 1");
            create(&target, "").run(world).assert_code(1, "br0 is another");
        }),
        Trial::once("both ends have the bridge's MTU", |world| {
            furnish(world, "alice veth br0 9\n");
            let target = target(ALICE);
            for mtu in ["1400", "9000"] {
                ip(&format!("link set br0 mtu {mtu}"));
                let [nic, _, host, _] = fields(&create(&target, "").run(world));
                assert!(ip(&format!("-o link show {host}")).contains(&format!(" mtu {mtu} ")));
                assert!(ip_in(&target, &format!("-o link show {nic}")).contains(&format!(" mtu {mtu} ")));
            }
        }),
        Trial::once("a uid that does not fit into a name is told by the alias", |world| {
            furnish(world, "carol veth br0 1\n");
            let target = target(CAROL);
            let pid = target.pid().to_string();
            let carol = || helper(CAROL).words("create a b").arg(&pid).words("veth br0");
            let [_, _, host, _] = fields(&carol().run(world));
            assert!(host.starts_with("veth") && host.len() == 10 && !host.contains('_'), "{host}");
            carol().run(world).assert_code(1, "quota 1");
            if world.ours() {
                world.remove(crate::LEDGER);
                carol().run(world).assert_code(1, "the ledger is lost, and the link is counted");
                assert_eq!(listed(), [host], "and written back");
            }
        }),
        Trial::once("a missing bridge is named with its cure, and never called a quota", |world| {
            differs(world, "a text per cause");
            furnish(world, "alice veth br7 2\nalice veth lo 2\n");
            let target = target(ALICE);
            let pid = target.pid().to_string();
            let on = |link: &str| helper(ALICE).words("create a b").arg(&pid).words("veth").arg(link);
            let outcome = on("br7").run(world);
            assert_refused(world, &outcome, &["no bridge br7", "ip link add br7 type bridge"], "missing");
            assert!(!world.ours() || !outcome.text().contains("uota"));
            let outcome = on("lo").run(world);
            assert_refused(world, &outcome, &["lo is no bridge", "ovs-vsctl"], "no bridge");
        }),
        Trial::once("a name that is taken inside leaves no veth, no port and no charge", |world| {
            furnish(world, TWO);
            world.needs_ours("promise about it");
            let target = target(ALICE);
            let outcome = create(&target, "lo").run(world);
            assert_refused(world, &outcome, &["lo exists already"], "taken");
        }),
        Trial::once("a grant that is missing is explained with the file and a line to add", |world| {
            furnish(world, "bob veth br0 2\nalice veth br1 2\n");
            let target = target(ALICE);
            let outcome = create(&target, "").run(world);
            assert_refused(world, &outcome, &[CONFIG, "only on br1", "\"alice veth br0 1\""], "no line");
        }),
        Trial::once("root as caller needs a line like anyone else", |world| {
            furnish(world, TWO);
            let target = target(tests::ROOT);
            let pid = target.pid().to_string();
            let root = || helper(tests::ROOT).words("create a b").arg(&pid).words("veth br0");
            let outcome = root().run(world);
            assert_refused(world, &outcome, &["grants root no veth"], "no line");
            world.append(CONFIG, "root veth br0 1\n");
            fields(&root().run(world));
        }),
        Trial::once("standard output that is closed, full or without reader leaves nothing", |world| {
            furnish(world, TWO);
            world.needs_ours("undoing");
            let target = target(ALICE);
            for what in [Fd::Closed, Fd::Full, Fd::Broken] {
                let outcome = create(&target, "").stdio(1, what).run(world);
                outcome.assert_code(1, &format!("{what:?}"));
                assert!(outcome.text().contains("standard output"), "{what:?}: {}", outcome.text());
                crate::eventually("the veth is gone", || veths().is_empty());
                assert_nothing(&format!("{what:?}"));
            }
        }),
        Trial::once("with all three descriptors closed the ledger gets none of their numbers", |world| {
            furnish(world, TWO);
            world.needs_ours("undoing");
            let target = target(ALICE);
            create(&target, "")
                .stdio(0, Fd::Closed)
                .stdio(1, Fd::Closed)
                .stdio(2, Fd::Closed)
                .run(world)
                .assert_code(1, "closed");
            assert_nothing("closed");
            let outcome = create(&target, "").stdio(0, Fd::Closed).stdio(2, Fd::Closed).run(world);
            fields(&outcome);
            assert_eq!(listed(), veths());
        }),
        Trial::once("both ends have one queue in each direction", |world| {
            differs(world, "one queue");
            world.needs_ours("one queue");
            furnish(world, TWO);
            let target = target(ALICE);
            let [nic, _, host, _] = fields(&create(&target, "").run(world));
            for text in
                [crate::ip(&format!("-d link show {host}")), crate::ip_in(&target, &format!("-d link show {nic}"))]
            {
                assert!(text.contains(" numtxqueues 1 numrxqueues 1 "), "{text}");
            }
        }),
        Trial::once("--help, --version and --check answer and change nothing", |world| {
            differs(world, "options");
            world.needs_ours("options");
            furnish(world, TWO);
            let target = target(ALICE);
            let pid = target.pid().to_string();
            assert!(helper(ALICE).arg("--help").run(world).out().contains("examples:"));
            assert!(helper(BOB).arg("--version").run(world).out().starts_with("lxc-user-nic (userns-helpers) "));
            let check = helper(ALICE).words("--check create a b").arg(&pid).words("veth br0").run(world);
            check.assert_code(0, "check");
            assert!(
                check.out().contains("/etc/lxc/lxc-usernet:1 grants alice 2, of which 0 in use"),
                "{}",
                check.out()
            );
            let check = helper(ALICE).words("--check create a b 1 veth br0").run(world);
            check.assert_code(1, "check");
            assert_nothing("check");
            assert!(!std::path::Path::new("/run/lxc").exists(), "not even the directory");
        }),
    ]
}
