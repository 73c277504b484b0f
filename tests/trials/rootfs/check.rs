//! The article's obstacles, row by row: the situation is made, `rootfs check` names cause and cure, and the cure cures.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use tests::{ALICE, Call, Kind, Outcome, Trial, World, sys};

use crate::adapt::{el6, el7, elf, import};
use crate::fixture::{BASE, CONTAINERS, as_root, good, refused, rootfs, run, tree, write};
use crate::tar::{Member, archive, dir, file, link};

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

/// A tree whose init is a shell script that goes CentOS 6's way, with a busybox to run it.
fn bootable(world: &World, mut members: Vec<Member>) -> Vec<Member> {
    world.needs_tool("/bin/busybox");
    members.retain(|member| !matches!(member.name.as_slice(), b"sbin/init" | b"bin/bash" | b"sbin/start_udev"));
    members.push(file("bin/busybox", fs::read("/bin/busybox").expect("busybox")).mode(0o755));
    members.extend(
        ["sh", "bash", "tr", "grep", "sleep", "true", "cat"].map(|name| link(format!("bin/{name}"), "busybox")),
    );
    members.push(
        file(
            "sbin/init",
            "#!/bin/sh\n# upstart .override\n/bin/sh /etc/rc.d/rc.sysinit\n. /etc/sysconfig/init\necho \"login: $ACTIVE_CONSOLES\"\n",
        )
        .mode(0o755),
    );
    members.push(file("sbin/start_udev", "#!/bin/sh\n. /etc/sysconfig/udev\nwhile :; do sleep 1; done\n").mode(0o755));
    members
}

/// A call of spawn as alice that ends after `seconds` at the latest.
fn spawn(world: &mut World, seconds: u32, words: &[&str]) -> Call {
    for kind in Kind::BOTH {
        let _ = world.program(kind.program());
    }
    let program = world.program("spawn");
    Call::new("/usr/bin/timeout")
        .user(ALICE)
        .env("HOME", "/home/alice")
        .env("PATH", "/run/bin:/usr/bin:/bin")
        .args(["-s", "KILL", &seconds.to_string()])
        .arg(program)
        .args(words)
}

fn chown_all(top: &Path, uid: u32, gid: u32) {
    std::os::unix::fs::lchown(top, Some(uid), Some(gid)).expect("chown");
    if fs::symlink_metadata(top).expect("stat").is_dir() {
        fs::read_dir(top).expect("directory").for_each(|entry| chown_all(&entry.expect("entry").path(), uid, gid));
    }
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

fn row_5_a_tree_of_the_template(world: &mut World) {
    // What lxc-create -t centos leaves when root runs it: real root's tree, and a map that was added afterwards.
    let mut members = bootable(world, el6());
    members.push(file(
        "etc/yum.repos.d/CentOS-Base.repo",
        "[base]\nmirrorlist=http://mirrorlist.centos.org/?release=$releasever&arch=$basearch&repo=os\n",
    ));
    import(world, "made", &members);
    let container = Path::new(CONTAINERS).join("made");
    chown_all(&container.join("rootfs"), 0, 0);
    let outcome = check(world, &["made"]);
    outcome.assert_code(78, "real root's tree");
    found(
        &outcome,
        "owner",
        &["belongs to uid 0", "0:100000:65536", "rootfs shift --user alice", "import the image again"],
    );
    // The second cure needs no root.
    import(world, "again", &members);
    let outcome = check(world, &["again"]);
    not_found(&outcome, "owner");
    found(&outcome, "mirrors", &["CentOS-Base.repo", "vault.centos.org/6.10"]);
    spawn(world, 30, &["run", "again", "--", "/bin/true"]).run(world).assert_code(0, "it starts");
    // Where there is no tree at all, the way to one is told.
    fs::remove_dir_all(tree("again")).expect("remove");
    found(&check(world, &["again"]), "no-rootfs", &["rootfs import SOURCE again"]);
}

fn row_6_ls_tells_whose_the_files_are(world: &mut World) {
    import(world, "right", &el6());
    import(world, "wrong", &el6());
    chown_all(&tree("wrong"), 0, 0);
    let text = good(world, &["ls"]).out();
    let row = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {text}"));
        line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row("NAME")[..3], ["NAME", "MAP", "OWNED"]);
    // Both have lxc.idmap, which is all that lxc-ls would look at.
    assert_eq!(row("right")[1..3], ["0:100000:65536", "yes"]);
    assert_eq!(row("wrong")[1..3], ["0:100000:65536", "no"]);
    assert!(good(world, &["ls", "--json"]).out().contains("\"owned\": false"));
}

/// A private /sys/fs/cgroup with a cpuset hierarchy in it: the kernel's v1 one where it has it.
fn cpuset_hierarchy() -> (std::path::PathBuf, bool) {
    let top = Path::new("/sys/fs/cgroup");
    mount(Some("tmpfs"), top, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("tmpfs");
    let place = top.join("cpuset");
    fs::create_dir(&place).expect("directory");
    let real = mount(Some("cgroup"), &place, Some("cgroup"), MsFlags::empty(), Some("cpuset")).is_ok();
    (place, real)
}

/// Makes a node as LXC 3.0.4 does: nobody fills its lists.
fn cpuset_node(node: &Path, real: bool) {
    fs::create_dir(node).expect("node");
    if !real {
        for name in ["cpuset.cpus", "cpuset.mems", "cgroup.procs"] {
            fs::write(node.join(name), "\n").expect(name);
        }
    }
}

fn rows_7_to_10_and_15_cgroups_of_a_failed_start(world: &mut World) {
    import(world, "c", &el6());
    good(world, &["adapt", "c"]);
    // A name of the trial's own: the hierarchy is the host's.
    let name = format!("trial-{}-{}", std::process::id(), nix::unistd::getppid());
    fs::rename(Path::new(CONTAINERS).join("c"), Path::new(CONTAINERS).join(&name)).expect("rename");
    let (hierarchy, real) = cpuset_hierarchy();
    let flag = hierarchy.join("cgroup.clone_children");
    let before = fs::read(&flag).ok();
    let node = hierarchy.join(format!("lxc.monitor.{name}"));
    let inner = node.join("deep");
    struct Gone<'a>(Vec<&'a Path>);
    impl Drop for Gone<'_> {
        fn drop(&mut self) {
            self.0.iter().for_each(|node| drop(fs::remove_dir(node)));
        }
    }
    let _gone = Gone(vec![&inner, &node]);
    cpuset_node(&node, real);
    cpuset_node(&inner, real);
    if real {
        let error = fs::write(node.join("cgroup.procs"), "0").expect_err("the failure of the article");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }
    let outcome = check(world, &[&name]);
    found(
        &outcome,
        "cpuset",
        &["lxc.monitor.trial-", "cpuset.cpus is empty", "No space left on device", "needs no cpuset"],
    );
    found(&outcome, "stale-cgroups", &["1 empty cgroups", "File exists", "cgdelegate prune", "no reboot"]);
    assert_eq!(before, fs::read(&flag).ok(), "the host's flag");
    // Somebody lives in it: then it is no leftover.
    if real {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let host = fs::read(hierarchy.join(file)).expect(file);
            for node in [&node, &inner] {
                fs::write(node.join(file), &host).expect(file);
            }
        }
        let child = sys::fork(|| {
            std::thread::sleep(std::time::Duration::from_secs(60));
            0
        })
        .expect("fork");
        fs::write(inner.join("cgroup.procs"), child.to_string()).expect("enter");
        let outcome = check(world, &[&name]);
        not_found(&outcome, "stale-cgroups");
        not_found(&outcome, "cpuset");
        assert_eq!(fs::remove_dir(&inner).expect_err("alive").raw_os_error(), Some(libc::EBUSY));
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).expect("kill");
        sys::wait(child, 0).expect("wait");
        found(&check(world, &[&name]), "stale-cgroups", &[&name]);
        // The cure: rmdir, deepest first.
        fs::remove_dir(&inner).expect("rmdir");
        fs::remove_dir(&node).expect("rmdir");
    } else {
        fs::remove_dir_all(&node).expect("remove");
    }
    let outcome = check(world, &[&name]);
    not_found(&outcome, "stale-cgroups");
    not_found(&outcome, "cpuset");
}

/// Every system call that Linux 5.5 does not have answers ENOSYS.
fn rows_11_16_and_19_an_old_kernel(world: &mut World) {
    let image = write("/home/alice/guest.tar", archive(&bootable(world, el6())));
    let image = image.to_string_lossy();
    let out = "/home/alice/out.tar";
    let steps: [&[&str]; 8] = [
        &["import", "-q", &image, "c"],
        &["ls"],
        &["adapt", "-q", "c"],
        &["check", "c"],
        &["export", "-q", "c", out],
        &["adapt", "-q", "--undo", "c"],
        &["shift", "-q", "c"],
        &["rm", "c"],
    ];
    for words in steps {
        let call = rootfs(world, words).as_root(|| tests::sys::without_system_calls_from(436).expect("seccomp"));
        let outcome = call.run(world);
        outcome.assert_code(0, &words.join(" "));
        assert_eq!(outcome.text(), "", "no extra line: {words:?}");
    }
    good(world, &["import", "-q", &image, "d"]);
    let call = spawn(world, 30, &["run", "d", "--", "/bin/true"]);
    let outcome = call.as_root(|| tests::sys::without_system_calls_from(436).expect("seccomp")).run(world);
    outcome.assert_silent("a start");
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
    rows_12_and_22_start(world);
    // The whole tree: real root's, the caller's, another range.
    for (uid, gid) in [(0, 0), (ALICE.uid, ALICE.gid), (300_000, 300_000)] {
        chown(tree("c"), Some(uid), Some(gid)).expect("chown");
        let outcome = check(world, &["c"]);
        outcome.assert_code(78, "the root directory");
        found(&outcome, "owner", &[&format!("belongs to uid {uid}"), "0:100000:65536", "rootfs shift"]);
    }
}

/// spawn says the same before a start, and each cure that it names makes the start.
fn rows_12_and_22_start(world: &mut World) {
    let members = bootable(world, el6());
    import(world, "s", &members);
    let shown = tree("s").to_string_lossy().into_owned();
    let start = |world: &mut World| spawn(world, 30, &["run", "s", "--", "/bin/true"]).run(world);
    let refused = |outcome: &Outcome, words: &[&str]| {
        outcome.assert_code(125, "refused");
        let text = outcome.text();
        assert!(text.matches('\n').count() == 1 && !text.contains("terminated"), "{text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{word} in {text}"));
    };
    start(world).assert_code(0, "as imported");
    for (uid, gid, from) in [(0, 0, "b:0:0:65536"), (300_000, 300_000, "b:0:300000:65536")] {
        chown_all(&tree("s"), uid, gid);
        let cure = format!("rootfs shift --user alice {shown}");
        refused(&start(world), &[&shown, &format!("uid {uid}"), "100000", "0:100000:65536", &cure]);
        as_root(world, &["shift", "-q", "--user", "alice", &shown, "--from", from]).assert_silent("the cure");
        start(world).assert_code(0, "after the cure");
    }
    chown_all(&tree("s"), ALICE.uid, ALICE.gid);
    refused(&start(world), &[&shown, "uid 1001", &format!("rootfs shift {shown}")]);
    good(world, &["shift", "-q", &shown]);
    start(world).assert_code(0, "after the cure");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(tree("s").join("etc/fstab")).expect("fstab").uid(), BASE);
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
    let call = spawn(world, 30, &["run", "/home/closed/c/rootfs", "--", "/bin/true"]);
    for outcome in [check(world, &["/home/closed/c"]), call.run(world)] {
        let text = outcome.out() + &outcome.text();
        assert_ne!(outcome.code(), Some(0), "{text}");
        assert!(text.matches('\n').count() == 1, "{text}");
        for word in ["/home/closed", "700", "uid 0"] {
            assert!(text.contains(word), "{word} in {text}");
        }
        assert!(!text.contains("chmod 77"), "{text}");
    }
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
    let members = bootable(world, members);
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
    // None of them breaks the start.
    let outcome = spawn(world, 30, &["run", "c", "--", "/sbin/init"]).run(world);
    outcome.assert_code(0, "a boot");
    assert!(outcome.out().contains("login: /dev/console"), "{}", outcome.out());
}

fn row_24_a_boot_that_hangs_and_one_that_does_not(world: &mut World) {
    let mut members = bootable(world, el6());
    members.retain(|member| member.name != b"etc/rc.d/rc.sysinit");
    members.push(
        file("etc/rc.d/rc.sysinit", "echo 'Welcome to CentOS'\n/bin/sh /sbin/start_udev\necho sysinit is through\n")
            .mode(0o755),
    );
    import(world, "c", &members);
    found(&check(world, &["c"]), "start-udev", &["Welcome to CentOS"]);
    // Told before the start, in one line with the command; and it does hang.
    let outcome = spawn(world, 3, &["run", "c", "--", "/sbin/init"]).run(world);
    assert_eq!(outcome.signal(), Some(libc::SIGKILL), "{}", outcome.text());
    assert!(outcome.out().contains("Welcome to CentOS") && !outcome.out().contains("through"), "{}", outcome.out());
    let text = outcome.text();
    let line = text.lines().find(|line| line.contains("start_udev")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.starts_with("spawn: ") && line.ends_with("rootfs adapt c"), "{line}");
    // A command that is no init is not told of it.
    let outcome = spawn(world, 30, &["run", "c", "--", "/bin/true"]).run(world);
    outcome.assert_silent("no boot");
    // The command that it names.
    good(world, &["adapt", "c"]);
    not_found(&check(world, &["c"]), "start-udev");
    let outcome = spawn(world, 30, &["run", "c", "--", "/sbin/init"]).run(world);
    outcome.assert_code(0, "a boot");
    assert!(outcome.out().contains("sysinit is through") && outcome.out().contains("login: /dev/console"));
    assert_eq!(outcome.text(), "");
}

fn row_28_a_login_uid(world: &mut World) {
    import(world, "c", &el6());
    for (set, word) in [(true, "it is set in this session"), (false, "it is not set in this session")] {
        let outcome = rootfs(world, &["check", "c"])
            .as_root(move || {
                let number = if set { "1001" } else { "4294967295" };
                if fs::write("/proc/self/loginuid", number).is_err() {
                    tests::world::ignore("needs a login uid that can be set (CONFIG_AUDIT, CAP_AUDIT_CONTROL)");
                }
            })
            .run(world);
        found(
            &outcome,
            "loginuid",
            &["pam_loginuid is required", "Cannot make/remove an entry", word, "rootfs adapt c"],
        );
    }
    good(world, &["adapt", "c"]);
    not_found(&check(world, &["c"]), "loginuid");
}

fn spawn_check_is_rootfs_check(world: &mut World) {
    import(world, "c", &el6());
    for words in
        [&["check"][..], &["check", "--json"], &["check", "c"], &["check", "--json", "c"], &["check", "c", "--json"]]
    {
        let ours = run(world, words);
        let theirs = spawn(world, 30, words).run(world);
        assert_eq!((theirs.code(), theirs.out(), theirs.text()), (ours.code(), ours.out(), ours.text()), "{words:?}");
    }
    let outcome = spawn(world, 30, &["check", "c"]).run(world);
    outcome.assert_code(78, "a boot would hang");
    let whole: serde_json::Value =
        serde_json::from_str(&spawn(world, 30, &["check", "c", "--json"]).run(world).out()).expect("JSON");
    let names: Vec<&str> = whole.as_array().expect("list").iter().filter_map(|one| one["name"].as_str()).collect();
    assert!(names.contains(&"start-udev") && whole[0]["severity"] == "error", "{whole}");
    good(world, &["adapt", "c"]);
    spawn(world, 30, &["check", "c"]).run(world).assert_code(0, "after the cure");
    spawn(world, 30, &["check", "host"]).run(world).assert_code(0, "the host's own tree");
    let outcome = spawn(world, 30, &["check", "nothing"]).run(world);
    outcome.assert_code(65, "no such container");
    assert!(outcome.text().starts_with("spawn: no container \"nothing\""), "{}", outcome.text());
    refused(&run(world, &["check", "nothing"]), 65, &["no container"]);
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
            "article, row 5: a tree that a template made as root is told, and an import of one's own is none",
            row_5_a_tree_of_the_template,
        ),
        Trial::once("article, rows 6 and 13: the list tells whose the files are", row_6_ls_tells_whose_the_files_are),
        Trial::once(
            "article, rows 7 to 10 and 15: an uninitialised cpuset and empty cgroups are named, and rmdir cures",
            rows_7_to_10_and_15_cgroups_of_a_failed_start,
        ),
        Trial::once(
            "article, rows 11, 16 and 19: all works with the system calls of Linux 5.5, and says nothing of it",
            rows_11_16_and_19_an_old_kernel,
        ),
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
            "article, row 24: spawn offers the adaptation before a boot that hangs, and adapted it boots",
            row_24_a_boot_that_hangs_and_one_that_does_not,
        ),
        Trial::once("article, row 28: a login uid is told, set or not, until adapted", row_28_a_login_uid),
        Trial::once("spawn check finds what rootfs check finds", spawn_check_is_rootfs_check),
        Trial::once(
            "article, row 31: an upstart guest without a network namespace of its own is refused",
            row_31_shared_network,
        ),
        Trial::once("no init, a foreign architecture, nothing at all, nosuid and noexec are told", what_cannot_start),
        Trial::once("a helper without privilege is passed over", helpers),
    ]
}
