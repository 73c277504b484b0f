//! Past vulnerabilities of lxc-user-nic and its kin, each with its number.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sched::{CloneFlags, unshare};
use tests::{ALICE, BOB, Target, Trial, World, sys};

use crate::{
    CONFIG, NICS_GID, TWO, assert_nothing, assert_refused, create, fields, furnish, helper, listed, target, veths,
    with_group,
};

/// Puts a program in place of ovs-vsctl that writes down how it was called, and makes ovs0, which is no Linux bridge.
fn open_vswitch(world: &World) {
    fs::create_dir_all("/usr/local/bin").expect("directory");
    nix::mount::mount(Some("tmpfs"), "/usr/local/bin", Some("tmpfs"), nix::mount::MsFlags::empty(), Some("mode=755"))
        .expect("tmpfs");
    let path = "/usr/local/bin/ovs-vsctl";
    world.write(
        path,
        "#!/bin/sh\n{ echo \"called $*\"; /usr/bin/env; echo \"umask $(umask) pwd $(pwd)\"; /usr/bin/id; ls /proc/self/fd; grep Sig /proc/self/status; } >>/run/ovs.log\n",
    );
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
    forget_ovs_log();
    crate::ip("link add ovs0 type ifb");
    crate::ip("link set ovs0 up");
}

/// Empties the log. A shell that is started with two different uids writes it as the caller.
fn forget_ovs_log() {
    fs::write("/run/ovs.log", "").expect("log");
    fs::set_permissions("/run/ovs.log", fs::Permissions::from_mode(0o666)).expect("chmod");
}

fn ovs_log() -> String {
    fs::read_to_string("/run/ovs.log").unwrap_or_default()
}

fn on_ovs(user: tests::User, target: &Target) -> tests::Call {
    helper(user).words("create /dev/null c1").arg(target.pid().to_string()).words("veth ovs0 eth0")
}

fn delete(user: tests::User, netns: &str, link: &str, nic: &str) -> tests::Call {
    let call = helper(user).words("delete /dev/null c1").arg(netns).words("veth").arg(link);
    if nic.is_empty() { call } else { call.arg(nic) }
}

fn netns(target: &Target) -> String {
    format!("/proc/{}/ns/net", target.pid())
}

fn environment(world: &mut World) {
    furnish(world, "alice veth ovs0 2\n");
    open_vswitch(world);
    let target = target(ALICE);
    let call = on_ovs(ALICE, &target)
        .env("EVIL", "1")
        .env("LD_PRELOAD", "/tmp/evil.so")
        .env("OVS_RUNDIR", "/tmp")
        .as_user(|| {
            nix::unistd::chdir("/tmp").expect("chdir");
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o777));
            sys::ignore_signal(libc::SIGTERM).expect("signal");
        })
        .opens(77, "/etc/passwd", 0);
    let [_, _, host, _] = fields(&call.run(world));
    let log = ovs_log();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[0], format!("called add-port ovs0 {host}"));
    for line in &lines {
        let variable =
            line.split_once('=').filter(|(name, _)| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'));
        if let Some((name, _)) = variable {
            // PWD, OLDPWD, SHLVL and _ are the shell's own.
            assert!(["PATH", "PWD", "OLDPWD", "SHLVL", "_"].contains(&name), "{line}");
        }
    }
    assert!(!log.contains("EVIL"), "{log}");
    if world.ours() {
        assert!(log.contains("umask 0022 pwd /\n"), "{log}");
        assert!(log.contains("uid=0(root) gid=0(root) groups=0(root)\n"), "{log}");
        assert!(!lines.contains(&"77"), "{log}");
        assert!(log.contains("SigBlk:\t0000000000000000"), "{log}");
        // The signals above 31 are the C library's own.
        let ignored = log.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).expect("a mask");
        assert_eq!(u64::from_str_radix(ignored, 16).expect("hex") & 0x7fff_ffff, 0, "{log}");
    }
}

fn foreign_port(world: &mut World) {
    furnish(world, "@nics veth ovs0 5\n");
    world.write("/etc/group", "root:x:0:\nalice:x:1101:\nbob:x:1102:\nnics:x:1150:alice,bob\n");
    open_vswitch(world);
    let (alices, bobs) = (target(ALICE), target(BOB));
    let [_, _, host, _] = fields(&with_group(on_ovs(ALICE, &alices), ALICE, NICS_GID).run(world));
    forget_ovs_log();
    let outcome = with_group(delete(BOB, &netns(&bobs), "ovs0", &host), BOB, NICS_GID).run(world);
    if !world.ours() {
        world.ignore("5.0.2 of this distribution may lack the fix; the trial is about ours");
    }
    outcome.assert_code(1, "bob deletes alice's");
    assert_eq!(ovs_log(), "", "del-port was called");
    assert_eq!(listed(), std::slice::from_ref(&host));
    with_group(delete(ALICE, &netns(&alices), "ovs0", &host), ALICE, NICS_GID).run(world).assert_silent("her own");
    assert!(ovs_log().starts_with(&format!("called del-port ovs0 {host}\n")), "{}", ovs_log());
}

fn delete_unchecked(world: &mut World) {
    furnish(world, "alice veth ovs0 2\nalice veth ovs1 2\n");
    open_vswitch(world);
    crate::ip("link add ovs1 type ifb");
    let target = target(ALICE);
    let [_, _, host, _] = fields(&on_ovs(ALICE, &target).run(world));
    forget_ovs_log();
    for (link, nic) in [("ovs0", "veth1001_none"), ("ovs1", host.as_str()), ("ovs0", "ovs1"), ("ovs0", "lo")] {
        delete(ALICE, &netns(&target), link, nic).run(world).assert_code(1, nic);
    }
    assert_eq!(ovs_log(), "", "del-port was called");
}

fn opened_path(world: &mut World) {
    furnish(world, TWO);
    nix::unistd::mkfifo("/tmp/fifo", nix::sys::stat::Mode::from_bits_truncate(0o666)).expect("mkfifo");
    for path in ["/tmp/fifo", "/dev/null", "/dev/tty", "/etc/passwd", "/proc/self/ns/user", "/proc/self/ns/net"] {
        // A FIFO that were opened would hang the call, which the harness takes for a failure.
        delete(ALICE, path, "br0", "d").run(world).assert_code(1, path);
    }
}

fn told_by_message(world: &mut World) {
    world.needs_ours("one text: 5.0.2 names two lines of its source");
    furnish(world, TWO);
    fs::create_dir("/run/secret").expect("mkdir");
    fs::set_permissions("/run/secret", fs::Permissions::from_mode(0o700)).expect("chmod");
    fs::write("/run/secret/x", "").expect("write");
    let text = |world: &mut World, path: &str| {
        let outcome = delete(ALICE, path, "br0", "d").run(world);
        outcome.assert_code(1, path);
        outcome.text().replace(path, "PATH")
    };
    let there = text(world, "/run/secret/x");
    assert_eq!(there, text(world, "/run/secret/y"));
    for path in ["/etc/passwd", "/nowhere", "/proc/1/ns/net", "/proc/self/ns/user"] {
        assert_eq!(there, text(world, path), "{path}");
    }
}

fn prefixes(world: &mut World) {
    furnish(world, "alic veth br0 9\nalice2 veth br0 9\nalicee veth br0 9\nalice veth br0 1\n");
    fs::create_dir_all("/run/lxc").expect("mkdir");
    let others = "alice2 veth br0 lo\nalic veth br0 lo\nalicee veth br0 lo\n";
    world.write(crate::LEDGER, others);
    world.mode(crate::LEDGER, 0o600);
    let target = target(ALICE);
    let [_, _, host, _] = fields(&create(&target, "").run(world));
    create(&target, "").run(world).assert_code(1, "only one is hers");
    assert_eq!(fs::read_to_string(crate::LEDGER).expect("ledger"), format!("{others}alice veth br0 {host}\n"));
}

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once("the ownership of the target is checked (8d9f636da, 2013)", |world| {
            furnish(world, TWO);
            let bobs = target(BOB);
            for pid in [1, bobs.pid().as_raw()] {
                let outcome = helper(ALICE).words("create /x c").arg(pid.to_string()).words("veth br0 eth0").run(world);
                assert_refused(world, &outcome, &["process"], "not hers");
            }
        }),
        Trial::once("nothing of the caller reaches ovs-vsctl (361b4fe7e, 2014)", environment),
        Trial::once("CVE-2017-5985: nothing is done in a network namespace that is not the caller's", |world| {
            furnish(world, TWO);
            let own = Target::with(|| ALICE.become_user());
            let made = Target::with(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
                ALICE.become_user();
            });
            let without = Target::with(|| {
                ALICE.become_user();
                unshare(CloneFlags::CLONE_NEWUSER).expect("unshare");
            });
            if !world.ours() {
                world.ignore("5.0.2 leaves the decision to its rename; the trial is about ours");
            }
            for target in [&own, &made, &without] {
                let outcome = create(target, "eth0").run(world);
                assert_refused(world, &outcome, &["network namespace"], "not hers");
            }
        }),
        Trial::once(
            "delete is checked against what is the caller's on that bridge (1bd8d726a, 8b8e00a24)",
            delete_unchecked,
        ),
        Trial::once("CVE-2018-6556: delete opens no path that is no network namespace", opened_path),
        Trial::once(
            "CVE-2022-47952: delete does not tell whether a path exists that the caller cannot see",
            told_by_message,
        ),
        Trial::once("CVE-2026-39402: another user's Open vSwitch port cannot be deleted", foreign_port),
        Trial::once(
            "a group of which the caller is no member, or that is none, harms no later line (d8f2c55fa)",
            |world| {
                furnish(world, "@nosuch veth br0 5\n@bob veth br0 5\nalice veth br0 1\n");
                let target = target(ALICE);
                fields(&create(&target, "").run(world));
                create(&target, "").run(world).assert_code(1, "one only");
            },
        ),
        Trial::once("an owner is matched whole, never by prefix (9ed8c96ff)", prefixes),
        Trial::once("uids above 9999 and above 65535 get what is theirs (fa2e1cea8)", |world| {
            furnish(world, "mallory veth br0 1\n");
            for uid in [10000, 65536] {
                world.append("/etc/passwd", format!("mallory{uid}:x:{uid}:{uid}::/:/bin/sh\n"));
                world.write(CONFIG, format!("mallory{uid} veth br0 1\n"));
                let user = tests::User { name: "mallory", uid, gid: uid };
                let target = target(user);
                let call = || helper(user).words("create a b").arg(target.pid().to_string()).words("veth br0");
                let [_, _, host, _] = fields(&call().run(world));
                assert!(host.starts_with(&format!("veth{uid}_")), "{host}");
                call().run(world).assert_code(1, "one only");
            }
        }),
        Trial::once("CVE-2019-13164: a bridge name that is too long is refused, not cut", |world| {
            furnish(world, "alice veth brabcdefghijklm 2\n");
            crate::ip("link add brabcdefghijklm type bridge");
            let target = target(ALICE);
            let call =
                |link: &str| helper(ALICE).words("create a b").arg(target.pid().to_string()).words("veth").arg(link);
            let outcome = call("brabcdefghijklmn").run(world);
            assert_refused(world, &outcome, &["no name of a link"], "16 bytes");
            fields(&call("brabcdefghijklm").run(world));
        }),
        Trial::once("delete on a Linux bridge takes away one's own NIC alone", |world| {
            furnish(world, "@nics veth br0 5\n");
            crate::differs(world, "delete on bridges");
            world.needs_ours("delete on Linux bridges");
            world.write("/etc/group", "root:x:0:\nalice:x:1101:\nbob:x:1102:\nnics:x:1150:alice,bob\n");
            let (alices, bobs) = (target(ALICE), target(BOB));
            let mut hosts = Vec::new();
            for (user, target) in [(ALICE, &alices), (ALICE, &alices), (BOB, &bobs)] {
                let call = helper(user).words("create a b").arg(target.pid().to_string()).words("veth br0");
                let [_, _, host, _] = fields(&with_group(call, user, NICS_GID).run(world));
                hosts.push(host);
            }
            let mut run = |user, target: &Target, nic: &str, code| {
                with_group(delete(user, &netns(target), "br0", nic), user, NICS_GID).run(world).assert_code(code, nic);
            };
            run(BOB, &bobs, &hosts[0], 1);
            run(BOB, &alices, &hosts[0], 1);
            run(ALICE, &alices, "eth7", 1);
            assert_eq!(veths().len(), 3);
            run(ALICE, &alices, &hosts[0], 0);
            run(ALICE, &alices, "eth1", 0);
            run(BOB, &bobs, "", 0);
            assert_nothing("all deleted");
        }),
    ]
}
