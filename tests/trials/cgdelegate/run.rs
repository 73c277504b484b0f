//! `run` hands over what it was given, and no more.

use super::fixture::{Cgroups, alice, call, place, start_sleep};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use std::fs;
use tests::{ALICE, BOB, Call, Trial, World};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once("run enters every hierarchy that was granted, and is the caller with nothing else", enters),
        Trial::once(
            "run hands over environment, umask, limits, dispositions, mask, directory and descriptors",
            hands_over,
        ),
        Trial::once("descriptors 0, 1 and 2 that were closed are closed for the command", closed),
        Trial::once("SIGPIPE is default for the command when it was for cgdelegate", sigpipe_default),
        Trial::once("run's exit status is the command's; a command that is not there makes no cgroup", status),
        Trial::once("the command can use a setuid program", setuid_inside),
        Trial::once("a name in use is refused and joined with --join", join),
        Trial::once("a stale cgroup is used again, whatever is left in it", reuse),
        Trial::once("a failed entry leaves the process where it was and nothing behind", realtime),
        Trial::once("pure v2: run, limits and a controller for the user to switch on", pure),
        Trial::once("on pure v2 a node whose controllers are on is joined through a leaf", join_leaf),
        Trial::once("delete refuses a living cgroup, and kills it with --kill", delete),
        Trial::once("a removal that one hierarchy does not allow is no success, and says where", partial),
        Trial::once("delete --kill ends a fork bomb without cgroup.kill as well", fork_bomb),
    ]
}

const LINE: &str = "alice pids,v1:pids,v1:cpuset,v1:freezer,name=systemd 5 pids.max=200";

fn enters(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let running = start_sleep(world, ALICE, "x");
    let wanted = format!("/{}/cgd-1001/x", cgroups.base);
    let mut words = cgroups.mounted(&["v2", "pids", "cpuset", "freezer"]);
    words.push("name=systemd");
    for word in words {
        assert_eq!(place(running.pid(), word), wanted, "{word}");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", running.pid())).expect("status");
    for line in [
        "Uid:\t1001\t1001\t1001\t1001",
        "Gid:\t1101\t1101\t1101\t1101",
        "Groups:\t ",
        "NoNewPrivs:\t0",
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapAmb:\t0000000000000000",
    ] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    let bounding = |text: &str| text.lines().find(|l| l.starts_with("CapBnd")).expect("CapBnd").to_owned();
    assert_eq!(bounding(&status), bounding(&fs::read_to_string("/proc/self/status").expect("status")));
}

fn hands_over(world: &mut World) {
    let _cgroups = Cgroups::new(world, LINE);
    let script = "cat /proc/self/environ | tr '\\0' '\\n'; echo --; umask; pwd; ulimit -c; ulimit -H -c; ulimit -f; ulimit -n; \
                  grep -E 'SigIgn|SigBlk|Groups' /proc/self/status; cat /proc/self/timerslack_ns; ls /proc/self/fd; ls -l /proc/self/fd/50 | cut -d/ -f5-";
    let dir = tests::world::BIN;
    let prepare = |call: Call| {
        let file = fs::File::open("/etc/passwd").expect("passwd");
        call.fd(50, file)
            .env("LD_LIBRARY_PATH", "/nowhere")
            .env("EMPTY", "")
            .env("NEWLINE", "a\nb")
            .as_is()
            .as_root(|| ALICE.become_with_gid(ALICE.gid, &[1150, 7]))
            .as_user(move || {
                nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o027));
                std::env::set_current_dir(dir).expect("chdir");
                setrlimit(Resource::RLIMIT_CORE, 4096, 8192).expect("core");
                setrlimit(Resource::RLIMIT_FSIZE, 1 << 20, 1 << 30).expect("fsize");
                setrlimit(Resource::RLIMIT_NOFILE, 100, 200).expect("nofile");
                let mut mask = SigSet::empty();
                mask.add(Signal::SIGUSR1);
                sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None).expect("mask");
                for signal in [Signal::SIGPIPE, Signal::SIGXFSZ, Signal::SIGALRM, Signal::SIGHUP] {
                    tests::sys::ignore_signal(signal as i32).expect("ignore");
                }
            })
    };
    let direct = prepare(Call::new("/bin/sh").arg("-c").arg(script)).run(world);
    let program = world.program("cgdelegate");
    let through = prepare(Call::new(program).words("run x -- /bin/sh -c").arg(script)).run(world);
    direct.assert_code(0, "direct");
    through.assert_code(0, "through cgdelegate");
    assert_eq!(direct.out(), through.out());
    assert!(
        direct.out().contains("LD_LIBRARY_PATH=/nowhere") && direct.out().contains("/etc/passwd"),
        "{}",
        direct.out()
    );
}

fn closed(world: &mut World) {
    if !cfg!(target_arch = "x86_64") {
        tests::world::ignore("x86-64 only");
    }
    let _cgroups = Cgroups::new(world, LINE);
    let script = "open=; for n in 0 1 2; do [ -e /proc/$$/fd/$n ] && open=$open$n; done; echo $open >/tmp/open";
    for numbers in [vec![], vec![0], vec![1], vec![2], vec![0, 2], vec![0, 1, 2]] {
        let mut seen = Vec::new();
        for direct in [true, false] {
            let mut call = if direct {
                Call::new("/bin/sh").user(ALICE).words("-c").arg(script)
            } else {
                call(world, ALICE, "run x -- /bin/sh -c").arg(script)
            };
            for number in &numbers {
                call = call.stdio(*number, tests::Fd::Closed);
            }
            world.write("/tmp/open", "");
            world.mode("/tmp/open", 0o666);
            call.run(world).assert_code(0, &format!("{numbers:?}"));
            seen.push(fs::read_to_string("/tmp/open").expect("open"));
        }
        assert_eq!(seen[0], seen[1], "{numbers:?} closed");
        let open: String = (0..3).filter(|n| !numbers.contains(n)).map(|n| n.to_string()).collect();
        assert_eq!(seen[1].trim(), open);
    }
}

fn sigpipe_default(world: &mut World) {
    let _cgroups = Cgroups::new(world, LINE);
    let outcome = call(world, ALICE, "run x -- grep SigIgn /proc/self/status")
        .as_user(|| {
            for signal in [Signal::SIGPIPE, Signal::SIGXFSZ] {
                tests::sys::default_signal(signal).expect("default");
            }
        })
        .run(world);
    let mask = u64::from_str_radix(outcome.out().trim().trim_start_matches("SigIgn:\t"), 16).expect("a mask");
    for signal in [Signal::SIGPIPE, Signal::SIGXFSZ, Signal::SIGCHLD, Signal::SIGALRM] {
        assert_eq!(mask >> (signal as i32 - 1) & 1, 0, "{signal} is ignored: {mask:x}");
    }
}

fn status(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    alice(world, "run x -- sh -c exit\u{a0}3").assert_code(127, "one word, so no such command");
    call(world, ALICE, "run x -- sh -c").arg("exit 3").run(world).assert_code(3, "its own");
    alice(world, "delete x").assert_silent("gone");
    for (command, code) in [("nosuch", 127), ("/nosuch", 127), ("/etc/passwd", 126), ("/etc", 126)] {
        let outcome = alice(world, &format!("run x -- {command}"));
        outcome.assert_code(code, command);
        assert_eq!(outcome.text().lines().count(), 1, "{}", outcome.text());
    }
    assert!(cgroups.directories().is_empty());
    world.write("/run/bin/script", "echo from a script: $1\n");
    world.mode("/run/bin/script", 0o755);
    let outcome = alice(world, "run x -- script one");
    assert_eq!((outcome.out().as_str(), outcome.code()), ("from a script: one\n", Some(0)));
}

fn setuid_inside(world: &mut World) {
    let _cgroups = Cgroups::new(world, "alice - 3");
    let outcome = alice(world, "run x -- cgdelegate run y -- cat /proc/self/cgroup");
    outcome.assert_code(0, "a setuid program inside of a cgroup of cgdelegate");
    assert!(outcome.out().contains("/cgd-1001/y\n") && !outcome.out().contains("/x/"), "{}", outcome.out());
}

fn join(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let first = start_sleep(world, ALICE, "x");
    let outcome = alice(world, "run x -- true");
    outcome.assert_code(75, "in use");
    assert!(outcome.text().contains(&format!("in use by process {}", first.pid())), "{}", outcome.text());
    alice(world, "create x").assert_code(75, "in use");
    let outcome = alice(world, "run x --join -- cat /proc/self/cgroup");
    outcome.assert_code(0, "joined");
    let count = cgroups.mounted(&["v2", "pids", "cpuset", "freezer"]).len() + 1;
    assert_eq!(outcome.out().matches("/cgd-1001/x\n").count(), count, "{}", outcome.out());
    super::fixture::cgdelegate(world, BOB, "run x --join -- true").assert_code(77, "not bob");
}

fn reuse(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice v1:cpuset,name=systemd 1");
    cgroups.need("cpuset");
    for round in 0..3 {
        let outcome = call(world, ALICE, "run x -- sh -c")
            .arg("for m in cpuset systemd unified; do p=/sys/fs/cgroup/$m$(grep -E \"(:${m}|name=${m}|^0:):\" /proc/self/cgroup | head -1 | cut -d: -f3); mkdir -p $p/a/b/c || exit 9; chmod 0 $p/a/b; done")
            .run(world);
        outcome.assert_code(0, &format!("round {round}"));
        assert!(cgroups.node("name=systemd", ALICE, "x/a").exists());
    }
    alice(world, "run other -- true").assert_code(0, "and another name is free at once");
    assert!(!cgroups.node("name=systemd", ALICE, "x").exists());
}

fn realtime(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice name=systemd,v1:cpu 3");
    if !cgroups.need("cpu").join("cpu.rt_runtime_us").exists() {
        tests::world::ignore("needs a kernel with groups of real-time processes (CONFIG_RT_GROUP_SCHED)");
    }
    let outcome =
        call(world, ALICE, "run x -- true").as_root(|| tests::sys::become_fifo().expect("SCHED_FIFO")).run(world);
    outcome.assert_code(71, "a real-time process cannot enter a v1 cpu cgroup");
    assert!(outcome.text().contains("real-time"), "{}", outcome.text());
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
    alice(world, "run x -- true").assert_code(0, "and afterwards it works");
}

fn pure(world: &mut World) {
    let cgroups = Cgroups::pure(world, "alice pids,cpu,memory,hugetlb 3");
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").expect("controllers");
    let outcome = call(world, ALICE, "run x -- sh -c")
        .arg(
            "p=/sys/fs/cgroup$(grep ^0: /proc/self/cgroup | cut -d: -f3); cat $p/cgroup.controllers; mkdir $p/leaf && echo 0 > $p/leaf/cgroup.procs && \
             for c in $(cat $p/cgroup.controllers); do echo +$c > $p/cgroup.subtree_control || exit 5; done; cat $p/leaf/cgroup.type $p/cgroup.subtree_control",
        )
        .run(world);
    outcome.assert_code(0, "pure v2");
    let granted: Vec<&str> =
        controllers.split_whitespace().filter(|c| ["pids", "cpu", "memory", "hugetlb"].contains(c)).collect();
    for controller in granted {
        assert_eq!(outcome.out().matches(controller).count(), 2, "{controller}: {}", outcome.out());
    }
    assert!(outcome.out().contains("domain\n") && !outcome.out().contains("invalid"), "{}", outcome.out());
    drop(cgroups);
}

fn join_leaf(world: &mut World) {
    let cgroups = Cgroups::pure(world, "alice hugetlb,memory 3");
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").expect("controllers");
    let Some(controller) = controllers.split_whitespace().find(|c| ["memory", "hugetlb"].contains(c)) else {
        tests::world::ignore("needs a domain controller of cgroup2")
    };
    let running = start_sleep(world, ALICE, "x");
    let node = cgroups.node("v2", ALICE, "x");
    let script = format!(
        "mkdir {0}/leaf && echo {1} > {0}/leaf/cgroup.procs && echo +{controller} > {0}/cgroup.subtree_control",
        node.display(),
        running.pid()
    );
    call(world, ALICE, "run x --join -- sh -c")
        .arg(format!("echo 0 > {}/../x/cgroup.procs; true", node.display()))
        .run(world)
        .assert_code(0, "plain join");
    Call::new("/bin/sh")
        .user(ALICE)
        .arg("-c")
        .arg(script)
        .as_root({
            let procs = node.join("cgroup.procs");
            move || fs::write(procs, "0").expect("enter")
        })
        .run(world)
        .assert_code(1, "the shell itself is in the way");
    // From a leaf it works.
    let script = format!("echo +{controller} > {}/cgroup.subtree_control", node.display());
    let leaf = node.join("leaf/cgroup.procs");
    Call::new("/bin/sh")
        .user(ALICE)
        .arg("-c")
        .arg(script)
        .as_root(move || fs::write(leaf, "0").expect("enter"))
        .run(world)
        .assert_silent("on");
    let outcome = alice(world, "run x --join -- cat /proc/self/cgroup");
    outcome.assert_code(0, "joined");
    assert!(outcome.out().contains("/cgd-1001/x/joined\n"), "{}", outcome.out());
}

fn delete(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let running = start_sleep(world, ALICE, "x");
    alice(world, "delete x").assert_code(75, "alive");
    super::fixture::cgdelegate(world, BOB, "delete x --kill").assert_code(77, "not bob's");
    assert!(place(running.pid(), "v2").ends_with("/x"));
    alice(world, "delete x --kill").assert_silent("killed");
    assert_eq!(running.finish(world).signal(), Some(libc::SIGKILL));
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
    alice(world, "delete x").assert_code(77, "no such cgroup");
}

fn partial(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    for word in cgroups.mounted(&["name=systemd", "pids", "v2"]) {
        alice(world, "create x").assert_silent("create");
        let node = cgroups.node(word, ALICE, "x");
        let below = node.join("below");
        fs::create_dir(&below).expect("mkdir");
        let target = tests::Target::without_user_namespace(ALICE);
        fs::write(below.join("cgroup.procs"), target.pid().to_string()).expect("move");
        let outcome = alice(world, "delete x");
        outcome.assert_code(75, word);
        assert!(outcome.text().contains(&format!("process {}", target.pid())), "{}", outcome.text());
        for other in cgroups.mounted(&["v2", "name=systemd", "pids", "cpuset", "freezer"]) {
            assert!(cgroups.node(other, ALICE, "x").exists(), "the whole set stays: {word}, {other}");
        }
        drop(target);
        // A directory that cannot be removed, because something is mounted on what is in it.
        mount(Some("x"), &below, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs");
        let outcome = alice(world, "delete x");
        assert_ne!(outcome.code(), Some(0), "{word}");
        assert!(outcome.text().contains(&node.display().to_string()), "{word}: {}", outcome.text());
        nix::mount::umount(&below).expect("umount");
        alice(world, "delete x").assert_silent("and now it goes");
        assert!(cgroups.directories().is_empty(), "{word}: {:?}", cgroups.directories());
    }
}

fn fork_bomb(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let node = cgroups.node("v2", ALICE, "x");
    let running = call(world, ALICE, "run x -- sh -c")
        .arg("for i in $(seq 60); do (while :; do (sleep 0.01 &) ; done) & done; sleep 1000")
        .start();
    super::fixture::wait_until("many processes", || super::fixture::processes(&node).len() > 40);
    // As on a kernel before 5.14.
    let outcome = call(world, ALICE, "delete x --kill")
        .as_root(move || {
            let kill = node.join("cgroup.kill");
            if kill.exists() {
                nix::mount::mount(Some("/dev/full"), &kill, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>)
                    .expect("bind");
            }
        })
        .run(world);
    outcome.assert_silent("killed");
    drop(running);
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}
