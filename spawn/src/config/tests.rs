use super::text::tests::Memory;
use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> Result<Config, String> {
    let files = Memory::default().with("/c", text);
    Config::read(&files, Some(Path::new("/c")), &[]).map_err(|Wrong(text)| text)
}

/// The files of Debian's package lxc, as lxc-create leaves a container of an ordinary user.
fn debian() -> Memory {
    const COMMON: &str = "lxc.tty.dir = lxc\nlxc.pty.max = 1024\nlxc.tty.max = 4\n\
        lxc.cap.drop = mac_admin mac_override sys_time sys_module sys_rawio\n\
        lxc.hook.clone = /usr/share/lxc/hooks/clonehostname\n\
        lxc.cgroup.devices.deny = a\nlxc.cgroup.devices.allow = c *:* m\n\
        lxc.cgroup2.devices.deny = a\nlxc.cgroup2.devices.allow = c 1:3 rwm\n\
        lxc.mount.auto = cgroup:mixed proc:mixed sys:mixed\n\
        lxc.mount.entry = /sys/fs/fuse/connections sys/fs/fuse/connections none bind,optional 0 0\n\
        lxc.seccomp.profile = /usr/share/lxc/config/common.seccomp\n\
        lxc.include = /usr/share/lxc/config/common.conf.d/\n";
    const USERNS: &str = "lxc.cgroup.devices.deny =\nlxc.cgroup.devices.allow =\nlxc.cgroup2.devices.deny =\n\
        lxc.cgroup2.devices.allow =\nlxc.cap.drop =\nlxc.cap.keep =\nlxc.tty.dir =\nlxc.mount.auto = sys:rw\n\
        lxc.include = /usr/share/lxc/config/userns.conf.d/\n";
    Memory::default()
        .with("/usr/share/lxc/config/common.conf", COMMON)
        .with("/usr/share/lxc/config/userns.conf", USERNS)
}

#[test]
fn an_unprivileged_container_as_lxc_create_leaves_it_is_understood() {
    let files = debian().with(
        "/c",
        "# Template used to create this container: /usr/share/lxc/templates/lxc-download\n\
         lxc.include = /usr/share/lxc/config/common.conf\nlxc.include = /usr/share/lxc/config/userns.conf\n\
         lxc.arch = linux64\nlxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 100000 65536\n\
         lxc.apparmor.profile = generated\nlxc.apparmor.allow_nesting = 1\n\
         lxc.rootfs.path = dir:/home/u/.local/share/lxc/c1/rootfs\nlxc.uts.name = c1\n\
         lxc.net.0.type = veth\nlxc.net.0.link = lxcbr0\nlxc.net.0.flags = up\nlxc.net.0.hwaddr = 00:16:3e:xx:xx:01\n",
    );
    let config = Config::read(&files, Some(Path::new("/c")), &[]).unwrap();
    assert_eq!(config.root, Some(Root::Directory("/home/u/.local/share/lxc/c1/rootfs".into())));
    assert_eq!((config.hostname.as_deref(), config.ttys, config.ptys), (Some("c1"), Some(4), Some(1024)));
    assert_eq!(config.capabilities, Some(Capabilities::Drop(0)));
    assert_eq!((config.proc, config.sys, config.cgroup_mount), (Some(Auto::Mixed), Some(Auto::Writable), true));
    assert_eq!(config.extents().map(|(uids, gids)| (uids.len(), gids.len())), Some((1, 1)));
    assert!(config.cgroup.is_empty() && config.mounts.len() == 1 && config.mounts[0].0.optional);
    let net = &config.nets[&0];
    assert_eq!((net.kind.as_str(), net.link.as_deref(), net.up), ("veth", Some("lxcbr0"), true));
    let said: Vec<&str> = config.warnings.iter().map(|w| w.split(" is left out").next().unwrap()).collect();
    assert_eq!(
        said,
        [
            "/usr/share/lxc/config/common.conf:1: lxc.tty.dir",
            "/usr/share/lxc/config/common.conf:5: lxc.hook.clone",
            "/usr/share/lxc/config/common.conf:6: lxc.cgroup.devices.deny",
            "/usr/share/lxc/config/common.conf:8: lxc.cgroup2.devices.deny",
            "/c:7: lxc.apparmor.profile",
        ]
    );
}

#[test]
fn an_empty_value_resets_a_key() {
    let text = "lxc.uts.name = a\nlxc.uts.name =\nlxc.net.0.type = veth\nlxc.net.3.type = empty\nlxc.net =\n\
        lxc.environment = A=1\nlxc.environment =\nlxc.environment = B=2\nlxc.mount.entry = /a b none bind\nlxc.mount.entry =\n\
        lxc.cgroup2.memory.max = 1G\nlxc.cgroup2.pids.max = 5\nlxc.cgroup2.memory.max =\nlxc.prlimit.core = 0\nlxc.prlimit.core =\n\
        lxc.sysctl.net.ipv4.ip_forward = 1\nlxc.sysctl =\nlxc.signal.halt = 5\nlxc.signal.halt =\nlxc.group = a b\nlxc.group =\n\
        lxc.init.cmd = /x\nlxc.init.cmd =\nlxc.mount.auto = proc:rw\nlxc.mount.auto =\nlxc.seccomp.profile = /x\nlxc.seccomp.profile =\n\
        lxc.idmap = u 0 1 1\nlxc.idmap =\nlxc.hook.pre-start = x\nlxc.hook.pre-start =\nlxc.hook.mount =\nlxc.rootfs.options = ro\nlxc.rootfs.options =\n";
    let config = parse(text).unwrap();
    let want = Config {
        environment: vec!["B=2".to_owned()],
        cgroup: vec![Cgroup {
            unified: true,
            file: "pids.max".to_owned(),
            value: "5".to_owned(),
            origin: Origin::Line("/c".into(), 12),
        }],
        ..Config::default()
    };
    assert_eq!(config, want);
}

#[test]
fn capabilities_are_dropped_or_kept() {
    let found = |text: &str| parse(text).map(|config| config.capabilities);
    assert_eq!(found(""), Ok(None));
    assert_eq!(found("lxc.cap.drop ="), Ok(Some(Capabilities::Drop(0))));
    assert_eq!(found("lxc.cap.drop = chown\nlxc.cap.drop = CAP_KILL 1"), Ok(Some(Capabilities::Drop(0b10_0011))));
    assert_eq!(found("lxc.cap.keep = none"), Ok(Some(Capabilities::Keep(0))));
    assert_eq!(found("lxc.cap.keep = chown kill"), Ok(Some(Capabilities::Keep(0b10_0001))));
    assert_eq!(found("lxc.cap.drop = chown\nlxc.cap.drop =\nlxc.cap.keep = kill"), Ok(Some(Capabilities::Keep(32))));
    assert_eq!(found("lxc.cap.drop = chown\nlxc.cap.keep ="), Ok(Some(Capabilities::Drop(1))));
    assert!(found("lxc.cap.drop = chown\nlxc.cap.keep = kill").unwrap_err().contains("exclude each other"));
    assert!(found("lxc.cap.drop = everything").unwrap_err().contains("\"everything\" is no capability"));
}

#[test]
fn the_command_line_comes_last() {
    let files = Memory::default().with("/c", "lxc.uts.name = a\nlxc.start.auto = 1\nlxc.start.order = -5");
    let read = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Config::read(&files, Some(Path::new("/c")), &words).map_err(|Wrong(text)| text)
    };
    let config = read(&["lxc.uts.name = b", "lxc.start.delay=3"]).unwrap();
    assert_eq!(config.hostname.as_deref(), Some("b"));
    assert_eq!(config.start, Start { auto: true, delay: Duration::from_secs(3), order: -5 });
    assert_eq!(Config::read(&files, None, &[]), Ok(Config::default()));
    for (word, said) in [
        ("uts.name=b", "begins with lxc."),
        ("lxc.uts.name", "no `=`"),
        ("lxc.include=/x", "cannot stand on the command line"),
        ("lxc.tty.max=x", "-s: lxc.tty.max = x: \"x\" is no number"),
    ] {
        let error = read(&[word]).unwrap_err();
        assert!(error.contains(said), "{word}: {error}");
    }
}

#[test]
fn what_cannot_be_honoured_is_refused_with_file_line_key_and_reason() {
    for (line, said) in [
        ("lxc.no.such.key = 1", "there is no such key"),
        ("lxc.utsname = x", "is called lxc.uts.name since LXC 2.1"),
        ("lxc.rootfs = /x", "is called lxc.rootfs.path since LXC 2.1"),
        ("lxc.network.type = veth", "is called lxc.net.N.* since LXC 2.1"),
        ("lxc.rootfs.path = zfs:tank/x", "only directories and overlays"),
        ("lxc.rootfs.path = rootfs", "absolute path"),
        ("lxc.rootfs.path = overlay:/a", "overlay:LOWER:UPPER"),
        ("lxc.rootfs.options = idmap=container", "idmapped mount"),
        ("lxc.rootfs.options = subvol=x", "subvol"),
        ("lxc.net.0.type = phys", "needs root on the host"),
        ("lxc.net.0.type = none", "host's network"),
        ("lxc.net.0.link = br0", "no lxc.net.N.type"),
        ("lxc.net.x.type = veth", "N a number"),
        ("lxc.net.0.script.up = /x", "no program of a user's"),
        ("lxc.net.0.ipv4.gateway = auto", "give the gateway's address"),
        ("lxc.mount.entry = /a b", "SOURCE TARGET TYPE"),
        ("lxc.mount.auto = shmounts:/x", "cannot be honoured"),
        ("lxc.mount.auto = dev", "none of proc, sys and cgroup"),
        ("lxc.mount = /etc/fstab", "lxc.mount.fstab"),
        ("lxc.hook.mount = /x", "half-made container"),
        ("lxc.hook.start = /x", "init"),
        ("lxc.namespace.share.net = 1", "spawn exec"),
        ("lxc.time.offset.boot = 1d", "time namespaces"),
        ("lxc.seccomp.notify.proxy = unix:/x", "no supervisor"),
        ("lxc.arch = sparc", "this host is a"),
        ("lxc.tty.max = 13", "at most 12"),
        ("lxc.idmap = u 0 1", "INSIDE OUTSIDE COUNT"),
        ("lxc.idmap = u 0 1 1", "u and for g"),
        ("lxc.signal.halt = SIGNONE", "no signal"),
        ("lxc.prlimit.memory = 1", "no limit"),
        ("lxc.sysctl.net..x = 1", "no name of a file"),
        ("lxc.sysctl.../x = 1", "no name of a file"),
        ("lxc.proc.../../x = 1", "no name of a file"),
        ("lxc.cgroup2.cgroup.procs = 1", "no file of a controller"),
        ("lxc.cgroup2.memory/x.y = 1", "no file of a controller"),
        ("lxc.init.uid = 4294967295", "no id"),
        ("lxc.init.cwd = x", "absolute path"),
        ("lxc.no_new_privs = yes", "0 or 1"),
        ("lxc.environment = =x", "KEY=VALUE"),
    ] {
        let error = parse(&format!("\n{line}")).unwrap_err();
        let place = if line.starts_with("lxc.idmap = u 0 1 1") { "lxc.idmap" } else { "/c:2: " };
        assert!(error.starts_with(place) && error.contains(said), "{line}: {error}");
    }
}

#[test]
fn what_is_honoured_arrives_as_it_is_meant() {
    let config = parse(
        "lxc.rootfs.path = overlay:/l1:/l2:/up\nlxc.rootfs.options = ro,nosuid\nlxc.signal.halt = SIGRTMIN+3\n\
         lxc.signal.reboot = SIGINT\nlxc.console.logfile = /l\nlxc.console.size = 1MB\nlxc.console.rotate = 1\n\
         lxc.init.cmd = /sbin/init 'a b'\nlxc.init.uid = 5\nlxc.sysctl.net.ipv4.conf.eth0/1.forwarding = 1\n\
         lxc.proc.oom_score_adj = 10\nlxc.hook.pre-start = /x y\nlxc.group = a,b c\nlxc.ephemeral = 1\n\
         lxc.keyring.session = 0\nlxc.prlimit.nofile = 5:6\nlxc.prlimit.nofile = 7\nlxc.net.1.type = veth\n\
         lxc.net.1.ipv4.address = 10.0.3.5/24 10.0.3.255\nlxc.net.1.ipv4.gateway = 10.0.3.1\nlxc.net.1.mtu = 1400\n\
         lxc.net.1.ipv6.gateway = fe80::1\nlxc.net.1.ipv6.address = fd00::5/64\nlxc.mount.fstab = /f\n",
    )
    .unwrap();
    assert_eq!(config.root, Some(Root::Overlay { lower: vec!["/l2".into(), "/l1".into()], upper: "/up".into() }));
    assert!(config.read_only && config.root_attributes == crate::sys::MOUNT_ATTR_NOSUID);
    assert_eq!(config.signals, Signals { halt: Some(37), reboot: Some(2), stop: None });
    assert_eq!(config.console, Console { logfile: Some("/l".into()), size: Some(1 << 20), rotate: true, buffer: None });
    assert_eq!(config.init.command, Some(vec!["/sbin/init".to_owned(), "a b".to_owned()]));
    assert_eq!(config.sysctls[0].file, "net/ipv4/conf/eth0.1/forwarding");
    assert_eq!(config.hooks(HookKind::PreStart).count(), 1);
    assert_eq!(config.hooks(HookKind::PostStop).count(), 0);
    assert!(config.ephemeral && config.keeps_keyring);
    assert_eq!((config.limits.len(), config.limits[0].0.soft), (1, 7));
    let net = &config.nets[&1];
    assert_eq!(net.addresses, ["10.0.3.5/24", "fd00::5/64"]);
    assert_eq!((net.gateways.len(), net.mtu, net.up), (2, Some(1400), false));
}

/// Every key that has a meaning, for inputs that reach it.
const KEYS: [&str; 40] = [
    "uts.name",
    "rootfs.path",
    "rootfs.options",
    "idmap",
    "mount.entry",
    "mount.fstab",
    "mount.auto",
    "tty.max",
    "pty.max",
    "console.logfile",
    "console.size",
    "console.buffer.size",
    "environment",
    "signal.halt",
    "init.cmd",
    "init.uid",
    "init.cwd",
    "cap.drop",
    "cap.keep",
    "seccomp.profile",
    "no_new_privs",
    "start.auto",
    "start.delay",
    "start.order",
    "group",
    "arch",
    "net",
    "net.0.type",
    "net.0.flags",
    "net.0.ipv4.address",
    "net.0.mtu",
    "sysctl.a.b",
    "proc.x",
    "prlimit.core",
    "cgroup2.memory.max",
    "cgroup.devices.allow",
    "hook.pre-start",
    "apparmor.profile",
    "autodev",
    "include",
];

proptest! {
    #[test]
    fn any_text_is_read_or_refused_with_a_place(text in "(lxc\\.[a-z0-9._]{0,12}|#)? ?=? ?[ -~\\n]{0,40}(\\n.{0,30}){0,4}") {
        if let Err(error) = parse(&text) {
            prop_assert!(error.starts_with("/c:") || error.starts_with("lxc.idmap"), "{}", error);
        }
    }

    #[test]
    fn a_key_with_an_empty_value_leaves_nothing_behind(
        lines in prop::collection::vec((0..KEYS.len(), "[a-z0-9:/=, ]{0,12}"), 0..8)
    ) {
        let mut text = String::new();
        for (key, value) in &lines {
            // What is set and taken back. A value that is refused ends the reading, which is no matter here.
            text.push_str(&format!("lxc.{0} = {value}\nlxc.{0} =\n", KEYS[*key]));
        }
        if let Ok(found) = parse(&text) {
            let left = Config {
                warnings: found.warnings.clone(),
                warned: found.warned.clone(),
                capabilities: found.capabilities.filter(|c| *c == Capabilities::Drop(0)),
                nets: BTreeMap::new(),
                ..Config::default()
            };
            let found = Config { nets: BTreeMap::new(), ..found };
            prop_assert_eq!(found, left);
        }
    }
}
