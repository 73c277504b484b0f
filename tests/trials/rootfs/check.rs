//! The article's obstacles, row by row: the situation is made, `rootfs check` names cause and cure, and the cure cures.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use tests::{ALICE, Outcome, Trial, World};

use crate::adapt::{el6, el7, elf, import};
use crate::fixture::{CONTAINERS, as_root, good, run, tree, write};
use crate::tar::{dir, file, link};

fn check(world: &mut World, words: &[&str]) -> Outcome {
    run(world, &[&["check"], words].concat())
}

/// There is a finding of this name, and its line holds each of `words`.
#[track_caller]
fn found(outcome: &Outcome, name: &str, words: &[&str]) {
    let text = outcome.out();
    let marker = format!(": {name}: ");
    let line = text.lines().find(|line| line.contains(&marker) && words.iter().all(|word| line.contains(word)));
    assert!(
        line.is_some_and(|line| line.contains("; cure: ")),
        "no \"{name}\" with {words:?} in:\n{text}{}",
        outcome.text()
    );
}

#[track_caller]
fn not_found(outcome: &Outcome, name: &str) {
    assert!(!outcome.out().contains(&format!(": {name}: ")), "\"{name}\" in:\n{}", outcome.out());
}

fn row_1_old_keys(world: &mut World) {
    import(world, "c", &el6());
    let config = Path::new(CONTAINERS).join("c/config");
    let text = fs::read_to_string(&config).expect("config");
    write(&config, text + "lxc.id_map = u 0 100000 65536\nlxc.network.type = veth\n");
    let outcome = check(world, &["c"]);
    found(&outcome, "old-key", &["lxc.id_map", "config:", "lxc.idmap"]);
    found(&outcome, "old-key", &["lxc.network.type", "lxc.net.0.type"]);
}

fn rows_2_and_4_bridge_and_grant(world: &mut World) {
    import(world, "c", &el7());
    let config = Path::new(CONTAINERS).join("c/config");
    let text = fs::read_to_string(&config).expect("config");
    write(&config, text + "lxc.net.0.type = veth\nlxc.net.0.link = lxcbr0\n");
    let outcome = check(world, &["c"]);
    outcome.assert_code(78, "a start would fail");
    found(&outcome, "bridge", &["lxcbr0", "ip link add lxcbr0 type bridge"]);
    found(&outcome, "network-grant", &["alice veth lxcbr0 10", "/etc/lxc/lxc-usernet"]);
    assert!(!outcome.out().to_lowercase().contains("quota"));
    fs::create_dir_all("/etc/lxc").expect("lxc");
    fs::write("/etc/lxc/lxc-usernet", "alice veth lxcbr0 1\n").expect("grant");
    let outcome = check(world, &["c"]);
    not_found(&outcome, "network-grant");
    not_found(&outcome, "network-quota");
    fs::create_dir_all("/run/lxc").expect("lxc");
    fs::write("/run/lxc/nics", "alice veth lxcbr0 veth1001_x\n").expect("nics");
    found(&check(world, &["c"]), "network-quota", &["1 of 1"]);
    let made = std::process::Command::new("/usr/sbin/ip").args(["link", "add", "lxcbr0", "type", "bridge"]).status();
    if made.is_ok_and(|status| status.success()) {
        // The sysfs of the host belongs to another network namespace.
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>).expect("sysfs");
        not_found(&check(world, &["c"]), "bridge");
    }
}

fn row_3_subordinate_ids(world: &mut World) {
    world.write("/etc/subgid", "bob:300000:65536\n");
    let outcome = check(world, &[]);
    outcome.assert_code(78, "no start without ids");
    found(&outcome, "subordinate-ids", &["/etc/subgid grants alice nothing", "alice:START:65536"]);
    world.write("/etc/subgid", "1001:100000:100\n");
    let outcome = check(world, &[]);
    not_found(&outcome, "subordinate-ids");
    found(&outcome, "few-ids", &["100 gids"]);
    world.write("/etc/subgid", "1001:100000:65536\n");
    let outcome = check(world, &[]);
    not_found(&outcome, "few-ids");
    outcome.assert_code(0, "all is well");
}

fn row_14_user_namespaces(world: &mut World) {
    let _ = crate::fixture::rootfs(world, &[]);
    // The setting belongs to the user namespace: a nested one keeps the host's as it is.
    let call = crate::fixture::rootfs(world, &["check"]).as_root(|| {
        let (read, write_end) = tests::sys::pipe().expect("pipe");
        let me = nix::unistd::getpid();
        let helper = tests::sys::fork(move || {
            let _ = nix::unistd::read(&read, &mut [0]);
            for map in ["uid_map", "gid_map"] {
                fs::write(format!("/proc/{me}/{map}"), "0 0 4294967295\n").expect("map");
            }
            0
        });
        let helper = helper.expect("fork");
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).expect("unshare");
        nix::unistd::write(&write_end, b"g").expect("go");
        tests::sys::wait(helper, 0).expect("wait");
        fs::write("/proc/sys/user/max_user_namespaces", "0").expect("sysctl");
    });
    let outcome = call.run(world);
    outcome.assert_code(78, "user namespaces are off");
    found(&outcome, "user-namespaces", &["user.max_user_namespaces is 0", "sysctl -w user.max_user_namespaces=15000"]);
}

fn rows_12_and_22_owner(world: &mut World) {
    import(world, "c", &el6());
    good(world, &["adapt", "c"]);
    not_found(&check(world, &["c"]), "owner");
    // One deep file.
    let deep = tree("c").join("etc/pam.d/other");
    chown(&deep, Some(0), Some(0)).expect("chown");
    let outcome = check(world, &["c"]);
    outcome.assert_code(78, "one file");
    found(&outcome, "owner", &["1 files", "/etc/pam.d/other", "0:100000:65536"]);
    as_root(world, &["shift", "-q", "--user", "alice", &tree("c").to_string_lossy(), "--from", "b:0:0:65536"])
        .assert_silent("the cure");
    not_found(&check(world, &["c"]), "owner");
    // The whole tree: real root's, the caller's, another range.
    for (uid, gid) in [(0, 0), (ALICE.uid, ALICE.gid), (300_000, 300_000)] {
        chown(tree("c"), Some(uid), Some(gid)).expect("chown");
        let outcome = check(world, &["c"]);
        outcome.assert_code(78, "the root directory");
        found(&outcome, "owner", &[&format!("belongs to uid {uid}"), "0:100000:65536", "rootfs shift"]);
    }
}

fn rows_17_and_18_directories(world: &mut World) {
    import(world, "c", &el7());
    // A home that is closed to others is no obstacle.
    fs::set_permissions("/home/alice", fs::Permissions::from_mode(0o700)).expect("chmod");
    not_found(&check(world, &["c"]), "unreachable");
    let container = Path::new(CONTAINERS).join("c");
    fs::set_permissions(&container, fs::Permissions::from_mode(0o775)).expect("chmod");
    found(&check(world, &["c"]), "open-directory", &["775", "chmod 700"]);
    // One that she herself may not search is named.
    fs::create_dir_all("/home/closed/c/rootfs").expect("directory");
    fs::set_permissions("/home/closed/c", fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::set_permissions("/home/closed", fs::Permissions::from_mode(0o700)).expect("chmod");
    let outcome = check(world, &["/home/closed/c"]);
    assert_ne!(outcome.code(), Some(0), "{}", outcome.out());
}

fn row_20_systemd_219(world: &mut World) {
    import(world, "c", &el7());
    // Neither of hybrid nor of pure cgroup v2 hosts has alice a node of hers.
    found(&check(world, &["c"]), "cgroup", &["name=systemd", "cgdelegate"]);
    import(world, "d", &el6());
    not_found(&check(world, &["d"]), "cgroup");
}

fn rows_23_to_29_the_articles_final_state(world: &mut World) {
    let mut members = el6();
    members.retain(|member| !matches!(member.name.as_slice(), b"etc/rc.d/rc.sysinit" | b"etc/sysconfig/init"));
    members.extend([
        file("etc/rc.d/rc.sysinit", "\n").mode(0o755),
        file("etc/sysconfig/init", "ACTIVE_CONSOLES=\n"),
        file("etc/mtab", "/dev/mapper/centos-root / xfs rw 0 0\n/dev/sda1 /boot xfs rw 0 0\n"),
        dir("selinux"),
        file("selinux/enforce", "0"),
        dir("etc/rc.d/init.d"),
        file("etc/rc.d/init.d/network", "#!/bin/sh\n"),
        file("etc/rc.d/init.d/sshd", "#!/bin/sh\n"),
        dir("etc/rc.d/rc3.d"),
        link("etc/rc.d/rc3.d/K90network", "../init.d/network"),
        link("etc/rc.d/rc3.d/S55sshd", "../init.d/sshd"),
        file("etc/init/lxc-sysinit.conf", "start on startup\n"),
        file("etc/rsyslog.conf", "$ModLoad imuxsock\n$ModLoad imklog\n"),
    ]);
    import(world, "c", &members);
    let outcome = check(world, &["c"]);
    found(&outcome, "rc-sysinit", &["empty"]);
    found(&outcome, "no-console", &["ACTIVE_CONSOLES"]);
    found(&outcome, "mtab", &["/dev/mapper/centos-root"]);
    found(&outcome, "selinux", &["/selinux/enforce", "means nothing"]);
    found(&outcome, "services", &["network", "chkconfig"]);
    assert!(!outcome.out().lines().any(|line| line.contains(": services: ") && line.contains("sshd")));
    found(&outcome, "lxc-sysinit", &["rootfs adapt c"]);
    found(&outcome, "imklog", &["rsyslog"]);
    not_found(&outcome, "start-udev");
    good(world, &["adapt", "c"]);
    let outcome = check(world, &["c"]);
    for name in ["no-console", "lxc-sysinit", "getty", "loginuid", "fstab"] {
        not_found(&outcome, name);
    }
}

fn row_24_start_udev_and_the_rest_of_el6(world: &mut World) {
    import(world, "c", &el6());
    let outcome = check(world, &["c"]);
    outcome.assert_code(78, "a boot would hang");
    found(&outcome, "start-udev", &["Welcome to CentOS", "rootfs adapt c"]);
    found(&outcome, "getty", &["--nohangup"]);
    found(&outcome, "loginuid", &["pam_loginuid", "Cannot make/remove an entry"]);
    found(&outcome, "fstab", &["UUID=0b2c3d4e"]);
    good(world, &["adapt", "c"]);
    let outcome = check(world, &["c"]);
    for name in ["start-udev", "getty", "loginuid", "fstab"] {
        not_found(&outcome, name);
    }
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    if maps.contains("[vsyscall]") {
        outcome.assert_code(0, "after the cure nothing stops a start");
        not_found(&outcome, "vsyscall");
    } else {
        found(&outcome, "vsyscall", &["glibc 2.12", "vsyscall=xonly"]);
    }
}

fn row_31_shared_network(world: &mut World) {
    import(world, "c", &el6());
    let config = Path::new(CONTAINERS).join("c/config");
    let text = fs::read_to_string(&config).expect("config");
    write(&config, text + "lxc.net.0.type = none\n");
    found(&check(world, &["c"]), "shared-network", &["abstract socket", "lxc.net.0.type = empty"]);
}

fn what_cannot_start(world: &mut World) {
    import(
        world,
        "none",
        &[dir("./"), dir("etc"), file("etc/redhat-release", "CentOS release 6.9 (Final)\n"), file("bin/sh", elf(""))],
    );
    found(&check(world, &["none"]), "no-init", &["upstart", "vault"]);
    let mut foreign = elf("");
    foreign[18] = 8;
    import(world, "foreign", &[dir("./"), file("bin/sh", &foreign)]);
    found(&check(world, &["foreign"]), "architecture", &["unknown"]);
    import(world, "empty", &[dir("./"), dir("etc")]);
    found(&check(world, &["empty"]), "empty", &["no program"]);
    for (flag, name) in [(MsFlags::MS_NOSUID, "nosuid"), (MsFlags::MS_NOEXEC, "noexec")] {
        let place = format!("/home/alice/{name}");
        write(Path::new(&place).join("x"), "");
        mount(Some("tmpfs"), place.as_str(), Some("tmpfs"), flag, Some("mode=777")).expect("tmpfs");
        fs::create_dir_all(format!("{place}/etc")).expect("etc");
        found(&check(world, &[&format!("{place}/")]), name, &[name]);
    }
}

fn helpers(world: &mut World) {
    let _ = crate::fixture::rootfs(world, &[]);
    not_found(&check(world, &[]), "helpers");
    world.mode("/run/bin/newuidmap", 0o755);
    let outcome = tests::Call::new("/run/bin/rootfs")
        .user(ALICE)
        .env("HOME", "/home/alice")
        .env("PATH", "/nowhere")
        .args(["check", "--json"])
        .run(world);
    // Another one of the system's in /usr/bin is good as well.
    if Path::new("/usr/bin/newuidmap").exists() {
        outcome.assert_code(0, "the system's own is found");
        assert_eq!(outcome.out().trim(), "[]");
    } else {
        assert!(outcome.out().contains("has no privilege"), "{}", outcome.out());
    }
}

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once("article, row 1: keys of old LXC are met with their new names", row_1_old_keys),
        Trial::once("article, rows 2 and 4: a missing bridge, grant or quota is named", rows_2_and_4_bridge_and_grant),
        Trial::once("article, row 3: missing subordinate ids are told with the line to add", row_3_subordinate_ids),
        Trial::once(
            "article, row 14: user namespaces that are switched off are named by their setting",
            row_14_user_namespaces,
        ),
        Trial::once(
            "article, rows 12 and 22: files of other ids are found before a start, and the cure cures",
            rows_12_and_22_owner,
        ),
        Trial::once(
            "article, rows 17 and 18: closed directories are no obstacle, open ones are told",
            rows_17_and_18_directories,
        ),
        Trial::once("article, row 20: systemd 219 without a delegated hierarchy is told", row_20_systemd_219),
        Trial::once(
            "article, rows 23 and 26 to 29: each oddity of the article's final state is told",
            rows_23_to_29_the_articles_final_state,
        ),
        Trial::once(
            "article, row 24: a boot that would hang is told, and adapt cures it",
            row_24_start_udev_and_the_rest_of_el6,
        ),
        Trial::once(
            "article, row 31: an upstart guest without a network namespace of its own is refused",
            row_31_shared_network,
        ),
        Trial::once("no init, a foreign architecture, nothing at all, nosuid and noexec are told", what_cannot_start),
        Trial::once("a helper without privilege is passed over", helpers),
    ]
}
