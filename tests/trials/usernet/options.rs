//! Options after COUNT.

use tests::{ALICE, Trial, World};

use crate::{CONFIG, assert_nothing, assert_refused, create, fields, furnish, ip, ip_in, target, usernet, veths};

fn mac_of(text: &str) -> String {
    text.split("link/ether ").nth(1).expect("a hardware address").split(' ').next().expect("one").to_owned()
}

fn stable(world: &mut World) {
    furnish(world, "alice veth br0 5 mac=stable\n");
    let mut seen = Vec::new();
    for name in ["eth0", "", "eth1"] {
        let target = target(ALICE);
        let [nic, _, host, _] = fields(&create(&target, name).run(world));
        let inside = mac_of(&ip_in(&target, &format!("-o link show {nic}")));
        let outside = mac_of(&ip(&format!("-o link show {host}")));
        assert!(outside.starts_with("fe:") && inside != outside);
        seen.push(inside);
    }
    assert_eq!(seen[0], seen[1], "the first free name is eth0 as well");
    assert_ne!(seen[0], seen[2]);
}

fn locked(world: &mut World) {
    furnish(world, "alice veth br0 5 locked isolated\n");
    let target = target(ALICE);
    let [nic, _, host, _] = fields(&create(&target, "").run(world));
    let port = ip(&format!("-d -o link show {host}"));
    assert!(port.contains("isolated on") && port.contains("locked on") && port.contains("learning off"), "{port}");
    let inside = mac_of(&ip_in(&target, &format!("-o link show {nic}")));
    let output = std::process::Command::new("bridge").args(["fdb", "show", "dev", &host]).output().expect("bridge");
    let fdb = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(fdb.lines().any(|line| line.starts_with(&inside) && line.contains("static")), "{fdb}");
}

fn mac_is_not_the_callers(world: &mut World) {
    furnish(world, "");
    for word in ["locked", "mac=stable"] {
        world.write(CONFIG, format!("alice veth br0 5 {word}\n"));
        let target = target(ALICE);
        let attach = |words: &str| usernet(ALICE).words(&format!("attach br0 --pid {} {words}", target.pid()));
        for check in ["", "--check"] {
            let outcome = attach(&format!("--mac 02:00:00:00:00:07 {check}")).run(world);
            outcome.assert_code(77, word);
            assert!(outcome.text().contains(&format!("{CONFIG}:1: with {word} ")), "{}", outcome.text());
        }
        assert!(veths().is_empty(), "{word}");
        attach("").run(world).assert_code(0, word);
        target.end();
        crate::eventually("no veth is left", || veths().is_empty());
    }
}

fn no_ipv6_without_a_bridge(world: &mut World) {
    furnish(world, "alice veth none 2\n");
    let target = target(ALICE);
    let call = usernet(ALICE).words("attach none --pid").arg(target.pid().to_string());
    let [_, _, host, _] = fields(&call.run(world));
    let sysctl = format!("/proc/sys/net/ipv6/conf/{host}/disable_ipv6");
    match std::fs::read_to_string(&sysctl) {
        Ok(value) => assert_eq!(value, "1\n", "{sysctl}"),
        Err(error) => {
            let has_ipv6 = std::path::Path::new("/proc/sys/net/ipv6/conf/all").exists();
            assert!(!has_ipv6, "{sysctl}: {error}");
            world.ignore("this kernel has no IPv6");
        }
    }
}

/// Two containers on one bridge, addresses set: whether the first reaches the other and the bridge.
fn reaches(world: &mut World, config: &str) -> (bool, bool) {
    world.write(CONFIG, config);
    ip("addr flush dev br0");
    ip("addr add 192.0.2.1/24 dev br0");
    let targets = [target(ALICE), target(ALICE)];
    for (number, target) in targets.iter().enumerate() {
        let [nic, ..] = fields(&create(target, "").run(world));
        ip_in(target, &format!("addr add 192.0.2.{}/24 dev {nic}", 10 + number));
        ip_in(target, &format!("link set {nic} up"));
    }
    let ping = |to: &str| {
        (0..3).any(|_| {
            std::process::Command::new("nsenter")
                .args([&format!("--net=/proc/{}/ns/net", targets[0].pid()), "busybox", "ping", "-c1", "-W1", to])
                .output()
                .is_ok_and(|output| output.status.success())
        })
    };
    let reached = (ping("192.0.2.11"), ping("192.0.2.1"));
    for target in targets {
        target.end();
    }
    crate::eventually("no veth is left", || veths().is_empty());
    reached
}

pub fn trials() -> Vec<Trial> {
    let ours = |name: &str, run: fn(&mut World)| {
        Trial::once(name, move |world| {
            crate::differs(world, "unknown words");
            world.needs_ours("options");
            run(world);
        })
    };
    vec![
        ours("mac=stable gives the same NIC the same hardware address", stable),
        ours("locked and mac=stable leave no hardware address to the caller", mac_is_not_the_callers),
        ours("a host end without a bridge has no IPv6, so that no router advertisement reaches it", |world| {
            no_ipv6_without_a_bridge(world);
        }),
        ours("locked and isolated set the port before it is up, with one static entry", locked),
        ours("isolated containers reach the bridge and not each other, plain and locked ones both", |world| {
            furnish(world, "");
            world.needs_tool("/usr/bin/busybox");
            assert_eq!(reaches(world, "alice veth br0 5\n"), (true, true), "plain");
            assert_eq!(
                reaches(world, "alice veth br0 5 locked\n"),
                (true, true),
                "locked, with the MAC it was made with"
            );
            assert_eq!(reaches(world, "alice veth br0 5 isolated\n"), (false, true), "isolated");
        }),
        ours("a locked port passes no frame of another hardware address", |world| {
            furnish(world, "alice veth br0 5 locked\n");
            world.needs_tool("/usr/bin/busybox");
            ip("addr add 192.0.2.1/24 dev br0");
            let target = target(ALICE);
            let [nic, ..] = fields(&create(&target, "").run(world));
            ip_in(&target, &format!("link set {nic} address 02:00:00:00:00:77 up"));
            ip_in(&target, &format!("addr add 192.0.2.9/24 dev {nic}"));
            let ping = std::process::Command::new("nsenter")
                .args([&format!("--net=/proc/{}/ns/net", target.pid()), "busybox", "ping", "-c1", "-W1", "192.0.2.1"])
                .output()
                .expect("ping");
            assert!(!ping.status.success(), "a forged hardware address passed");
        }),
        ours("mtu sets both ends", |world| {
            furnish(world, "alice veth br0 5 mtu=1300\n");
            let target = target(ALICE);
            let [nic, _, host, _] = fields(&create(&target, "").run(world));
            assert!(ip(&format!("-o link show {host}")).contains(" mtu 1300 "));
            assert!(ip_in(&target, &format!("-o link show {nic}")).contains(" mtu 1300 "));
        }),
        ours("vid makes an access port, or is refused with the cause", |world| {
            furnish(world, "alice veth br0 5 vid=7\n");
            let target = target(ALICE);
            let outcome = create(&target, "").run(world);
            assert_refused(world, &outcome, &["lxc-usernet:1", "vlan_filtering 1"], "no filtering");
            let enabled = std::process::Command::new("ip")
                .args(["link", "set", "br0", "type", "bridge", "vlan_filtering", "1"])
                .output()
                .expect("ip");
            if !enabled.status.success() {
                return; // A kernel without VLAN filtering: the refusal above is all there is to see.
            }
            let [_, _, host, _] = fields(&create(&target, "").run(world));
            let output =
                std::process::Command::new("bridge").args(["vlan", "show", "dev", &host]).output().expect("bridge");
            let vlans = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(vlans.contains("7 PVID Egress Untagged") && !vlans.contains(" 1 "), "{vlans}");
        }),
        ours("addr reserves an address for each NIC, the same for the same one, and lists it", |world| {
            furnish(world, "alice veth br0 5 addr=192.0.2.100-192.0.2.101/24\n");
            let list = |world: &mut World| {
                let text = usernet(ALICE).words("list --json").run(world).out();
                let mut found: Vec<String> = text
                    .split("\"addr\":\"")
                    .skip(1)
                    .filter_map(|rest| Some(rest.split('"').next()?.to_owned()))
                    .collect();
                found.sort();
                found
            };
            let target = target(ALICE);
            let [.., host, _] = fields(&create(&target, "eth0").run(world));
            let first = list(world);
            assert_eq!(first.len(), 1);
            usernet(ALICE).words("detach").arg(&host).run(world).assert_silent("detach");
            fields(&create(&target, "eth0").run(world));
            assert_eq!(list(world), first, "the same again");
            fields(&create(&target, "eth1").run(world));
            assert_eq!(list(world), ["192.0.2.100/24", "192.0.2.101/24"]);
            let outcome = create(&target, "eth2").run(world);
            outcome.assert_code(1, "none left");
            assert!(outcome.text().contains("every address of its addr= is in use"), "{}", outcome.text());
        }),
        ours("an unknown word grants nothing, and the file and line are named", |world| {
            furnish(world, "# quotas\nalice veth br0 5 isolatd\n");
            let target = target(ALICE);
            let outcome = create(&target, "").run(world);
            assert_refused(world, &outcome, &["line 2 grants nothing", "\"isolatd\""], "misspelt");
            let log: String = world.syslog().iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
            assert!(log.contains("result=refused") && log.contains("isolatd"), "{log}");
            let check = usernet(ALICE).arg("--check").run(world);
            check.assert_code(78, "--check");
            assert!(
                check.out().contains("/etc/lxc/lxc-usernet:2: alice gets nothing: option \"isolatd\""),
                "{}",
                check.out()
            );
            assert_nothing("misspelt");
        }),
        ours("options of a port are refused where there is no port of a Linux bridge", |world| {
            furnish(world, "alice veth none 5 isolated\n");
            let target = target(ALICE);
            let outcome =
                crate::helper(ALICE).words("create a b").arg(target.pid().to_string()).words("veth none").run(world);
            assert_refused(world, &outcome, &["lxc-usernet:1", "port of a Linux bridge"], "none");
        }),
    ]
}
