//! A hostile caller gets nothing.

use super::fixture::{Cgroups, alice, call, cgdelegate, owner, place, start_sleep};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::resource::Resource;
use std::fs;
use tests::{ALICE, BOB, Call, Fd, Trial, World};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once("release_agent stays root's, and no user can write it", release_agent),
        Trial::once("moving out, up or into another user's cgroup is refused", escape),
        Trial::once("a tmpfs, or another hierarchy, mounted over a hierarchy is not used", over_mounted),
        Trial::once("a hierarchy is not entered by a mount point whose path a user can change", foreign_path),
        Trial::once("a list of bases that was cut short is put right, and emptied with the last cgroup", cut_short),
        Trial::once("a base that is not root's alone is not used", foreign_base),
        Trial::once("no path of more than one component is opened below a hierarchy, and none through a link", paths),
        Trial::once("/run/cgdelegate that is not root's alone is not used", run_directory),
        Trial::once("tiny limits, closed descriptors and blocked pipes change nothing", conditions),
        Trial::once("a program that is not setuid says so", not_setuid),
        Trial::once("the owner record is invisible and cannot be forged", record),
        Trial::once("a kernel without openat2 does the same", without_openat2),
        Trial::once("the caller's signals reach no call that is at work", signals),
        Trial::once("a deep and a wide tree of the user's are removed whole", deep),
    ]
}

const LINE: &str = "alice pids,v1:pids,v1:cpuset,name=systemd 3 pids.max=200\nbob name=systemd 3";

fn shell(world: &mut World, script: &str) -> tests::Outcome {
    Call::new("/bin/sh").user(ALICE).env("PATH", "/usr/bin:/bin").arg("-c").arg(script).run(world)
}

fn release_agent(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let _running = start_sleep(world, ALICE, "x");
    for word in ["name=systemd", "pids", "cpuset"] {
        let top = cgroups.need(word);
        assert_eq!(owner(&top).0, 0);
        let agent = top.join("release_agent");
        if agent.exists() {
            assert_eq!(owner(&agent).0, 0);
            assert_ne!(shell(world, &format!("echo /x > {}", agent.display())).code(), Some(0));
        }
        assert!(!cgroups.node(word, ALICE, "x").join("release_agent").exists());
    }
}

fn escape(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let bobs = start_sleep(world, BOB, "b");
    let running = start_sleep(world, ALICE, "x");
    for word in cgroups.mounted(&["v2", "name=systemd"]) {
        let (mine, his) = (cgroups.node(word, ALICE, "x"), cgroups.node(word, BOB, "b"));
        let above = mine.parent().expect("user").to_owned();
        for (what, script) in [
            ("up", format!("echo {} > {}/cgroup.procs", running.pid(), above.display())),
            ("to the top", format!("echo {} > {}/cgroup.procs", running.pid(), cgroups.need(word).display())),
            ("to bob", format!("echo {} > {}/cgroup.procs", running.pid(), his.display())),
            ("bob's process", format!("echo {} > {}/cgroup.procs", bobs.pid(), mine.display())),
            ("pid 1", format!("echo 1 > {}/cgroup.procs", mine.display())),
            ("mkdir above", format!("mkdir {}/y", above.display())),
            ("mkdir in bob's", format!("mkdir {}/y", his.display())),
            ("rmdir of bob's", format!("rmdir {}", his.display())),
            ("rename", format!("mv {} {}/z", mine.display(), above.display())),
        ] {
            assert_ne!(shell(world, &script).code(), Some(0), "{word}: {what}");
        }
        assert!(place(running.pid(), word).ends_with("/cgd-1001/x"));
        assert!(place(bobs.pid(), word).ends_with("/cgd-1002/b"));
    }
    cgdelegate(world, BOB, "delete x --kill").assert_code(77, "alice's");
    cgdelegate(world, BOB, "prune").assert_silent("nothing of alice's");
    assert!(place(running.pid(), "v2").ends_with("/x"));
}

fn over_mounted(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice name=systemd 3");
    let (unified, systemd) = (cgroups.need("v2"), cgroups.need("name=systemd"));
    mount(Some("x"), &systemd, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs");
    let outcome = alice(world, "run x -- true");
    outcome.assert_code(71, "tmpfs");
    assert!(outcome.text().contains("mounted over it"), "{}", outcome.text());
    nix::mount::umount(&systemd).expect("umount");
    mount(Some(&systemd), &unified, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind");
    alice(world, "run x -- true").assert_code(71, "another hierarchy");
    nix::mount::umount(&unified).expect("umount");
    // Below the top as well.
    let base = systemd.join(&cgroups.base);
    let _ = fs::create_dir(&base);
    mount(Some("x"), &base, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs");
    alice(world, "run x -- true").assert_code(71, "tmpfs on the base");
    assert_eq!(fs::read_dir(&base).expect("tmpfs").count(), 0);
    nix::mount::umount(&base).expect("umount");
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn foreign_path(world: &mut World) {
    let cgroups = Cgroups::pure(world, "alice - 3");
    let usual = cgroups.need("v2");
    // The first mount that /proc/self/mountinfo names is one in a directory of alice's.
    let hers = std::path::PathBuf::from("/run/hers");
    fs::create_dir_all(hers.join("cgroup")).expect("mkdir");
    std::os::unix::fs::chown(&hers, Some(1001), Some(1001)).expect("chown");
    let bind = |from: &std::path::Path, to: &std::path::Path| {
        mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind");
    };
    bind(&usual, &hers.join("cgroup"));
    umount2(&usual, MntFlags::MNT_DETACH).expect("umount");
    let outcome = alice(world, "create x");
    outcome.assert_code(71, "only there");
    assert!(outcome.text().contains("/run/hers is not root's alone"), "{}", outcome.text());
    assert_eq!(outcome.text().lines().count(), 1);
    bind(&hers.join("cgroup"), &usual);
    alice(world, "create x").assert_silent("where it is root's");
    let list = alice(world, "list").out();
    assert!(list.contains(&format!("{}/", usual.display())) && !list.contains("/run/hers"), "{list}");
    alice(world, "delete x").assert_silent("delete");
    std::os::unix::fs::chown(&hers, Some(0), Some(0)).expect("chown");
    umount2(&usual, MntFlags::MNT_DETACH).expect("umount");
    alice(world, "run x -- true").assert_code(0, "a place of root's");
    bind(&hers.join("cgroup"), &usual);
    umount2(&hers.join("cgroup"), MntFlags::MNT_DETACH).expect("umount");
}

fn cut_short(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice name=systemd 3");
    let list = std::path::Path::new("/run/cgdelegate/1001");
    let read = || fs::read_to_string(list).unwrap_or_default();
    alice(world, "create x").assert_silent("create");
    alice(world, "delete x").assert_silent("delete");
    assert_eq!(read(), "", "nothing is left");
    for limit in [1, 5, 8, 14, 20, 27, 40] {
        let outcome = call(world, ALICE, "create x").limit(Resource::RLIMIT_FSIZE, limit).run(world);
        if outcome.code() == Some(0) {
            alice(world, "delete x").assert_silent("delete");
        }
        assert!(read().lines().all(|line| line.ends_with(&format!(" /{}", cgroups.base))), "{limit}: {:?}", read());
    }
    for text in ["v2", "v2 /", "v2 /\nname=systemd \n", "\n", "v2 x\n /\n"] {
        fs::write(list, text).expect("write");
        alice(world, "prune").assert_code(0, "prune");
        assert_eq!(read(), "", "{text:?} stays");
        fs::write(list, text).expect("write");
        alice(world, "create x").assert_silent("create");
        alice(world, "delete x").assert_silent("delete");
        assert_eq!(read(), "", "{text:?} stays");
    }
    assert!(cgroups.directories().is_empty());
}

fn foreign_base(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice name=systemd 3");
    for word in cgroups.mounted(&["v2", "name=systemd"]) {
        let base = cgroups.need(word).join(&cgroups.base);
        let _ = fs::create_dir(&base);
        std::os::unix::fs::chown(&base, Some(ALICE.uid), None).expect("chown");
        let outcome = alice(world, "run x -- true");
        outcome.assert_code(78, word);
        assert!(outcome.text().contains("is not root's"), "{}", outcome.text());
        std::os::unix::fs::chown(&base, Some(0), None).expect("chown");
        world.mode(&base, 0o777);
        alice(world, "run x -- true").assert_code(78, word);
        world.mode(&base, 0o755);
    }
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn paths(world: &mut World) {
    if !std::path::Path::new("/usr/bin/strace").exists() {
        tests::world::ignore("needs strace");
    }
    let _cgroups = Cgroups::new(world, LINE);
    let program = world.program("cgdelegate");
    let log = "/tmp/strace";
    let mut call = Call::new("/usr/bin/strace").env("PATH", "/usr/bin");
    call = call.words(&format!("-u alice -o {log} -e trace=%file,fchownat,unlinkat,mkdirat")).arg(&program);
    call.words("run x -- true").run(world).assert_code(0, "run");
    let trace = fs::read_to_string(log).expect("trace");
    let trace = trace.split("execve(\"/usr/bin/true\"").next().expect("before the command");
    let mut below = 0;
    for line in trace.lines().filter(|line| line.contains("cgroup") || line.contains("cgd")) {
        let Some(path) = line.split('"').nth(1) else { continue };
        let absolute_ok = path.starts_with("/proc/")
            || path == "/sys/kernel/cgroup/delegate"
            || path.starts_with("/run/cgdelegate")
            || path == "/etc/cgdelegate.conf"
            || path.starts_with("/run/bin/")
            || (path.starts_with("/sys/fs/cgroup")
                && (path.matches('/').count() <= 4 || path.ends_with("/unified/cgroup.controllers")));
        assert!(!path.contains('/') || absolute_ok, "{line}");
        if !path.contains('/') && line.starts_with("openat2(") {
            assert!(line.contains("RESOLVE_NO_SYMLINKS") && line.contains("RESOLVE_BENEATH"), "{line}");
            below += 1;
        }
    }
    assert!(below > 20, "{trace}");
}

fn run_directory(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    for (owner, mode) in [(1001, 0o700), (0, 0o755), (0, 0o770)] {
        fs::create_dir("/run/cgdelegate").expect("mkdir");
        world.mode("/run/cgdelegate", mode);
        std::os::unix::fs::chown("/run/cgdelegate", Some(owner), None).expect("chown");
        let outcome = alice(world, "create x");
        outcome.assert_code(71, "not believed");
        assert!(outcome.text().contains("0700"), "{}", outcome.text());
        world.remove("/run/cgdelegate");
    }
    std::os::unix::fs::symlink("/tmp", "/run/cgdelegate").expect("symlink");
    alice(world, "create x").assert_code(71, "a link");
    world.remove("/run/cgdelegate");
    assert!(cgroups.directories().is_empty());
    alice(world, "create x").assert_silent("made");
    assert_eq!(owner("/run/cgdelegate".as_ref()), (0, 0, 0o700));
    assert_eq!(owner("/run/cgdelegate/1001".as_ref()), (0, 0, 0o600));
}

fn conditions(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    for (resource, value) in [
        (Resource::RLIMIT_NOFILE, 4),
        (Resource::RLIMIT_NOFILE, 7),
        (Resource::RLIMIT_NOFILE, 10),
        (Resource::RLIMIT_FSIZE, 0),
        (Resource::RLIMIT_FSIZE, 5),
        (Resource::RLIMIT_AS, 1 << 20),
        (Resource::RLIMIT_STACK, 16384),
        (Resource::RLIMIT_CPU, 0),
    ] {
        let outcome = call(world, ALICE, "create x").limit(resource, value).run(world);
        if outcome.code() == Some(0) {
            alice(world, "delete x").assert_silent("it was whole");
        } else {
            assert!(!outcome.dumped_core());
            alice(world, "prune").assert_code(0, "prune");
        }
        assert!(cgroups.directories().is_empty(), "{resource:?} {value}: {:?}", cgroups.directories());
    }
    for closed in [vec![0], vec![1], vec![2], vec![0, 1, 2]] {
        let mut call = call(world, ALICE, "run x -- true");
        for number in &closed {
            call = call.stdio(*number, Fd::Closed);
        }
        call.run(world).assert_code(0, &format!("{closed:?}"));
    }
    call(world, ALICE, "list").stdio(1, Fd::Full).run(world).assert_code(1, "a full disk");
    call(world, ALICE, "create ../x").stdio(2, Fd::Broken).run(world).assert_code(64, "nobody hears it");
}

fn not_setuid(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let program = world.program("cgdelegate");
    world.mode(&program, 0o755);
    alice(world, "--help").assert_code(0, "help");
    alice(world, "check").assert_code(0, "check");
    let outcome = alice(world, "create x");
    outcome.assert_code(77, "not setuid");
    assert!(outcome.text().contains("chmod 4755"), "{}", outcome.text());
    world.mode(&program, 0o4755);
    let outcome = call(world, ALICE, "create x")
        .as_user(|| assert_eq!(tests::sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).expect("no_new_privs"), 0))
        .run(world);
    outcome.assert_code(77, "no_new_privs");
    assert!(outcome.text().contains("no_new_privs"), "{}", outcome.text());
    assert!(cgroups.directories().is_empty());
}

fn record(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    alice(world, "create x").assert_silent("create");
    for word in cgroups.mounted(&["v2", "name=systemd", "pids"]) {
        let node = cgroups.node(word, ALICE, "x");
        let value = tests::sys::attribute(&node, c"trusted.cgdelegate").expect("the record");
        assert!(String::from_utf8_lossy(&value).starts_with("1 made create 1001 "), "{value:?}");
        let inside = node.clone();
        let program = std::path::PathBuf::from("/bin/true");
        Call::new(program)
            .user(ALICE)
            .as_user(move || {
                assert!(tests::sys::attribute(&inside, c"trusted.cgdelegate").is_err());
                assert!(tests::sys::set_attribute(&inside, c"trusted.cgdelegate", b"x").is_err());
            })
            .run(world)
            .assert_code(0, "alice can neither read nor write it");
    }
}

fn without_openat2(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let mut run = |words: &str| {
        call(world, ALICE, words)
            .as_root(|| tests::sys::without_system_call(libc::SYS_openat2, libc::ENOSYS).expect("seccomp"))
            .run(world)
    };
    run("run x -- true").assert_code(0, "run");
    run("prune").assert_code(0, "prune");
    let word = cgroups.mounted(&["name=systemd", "v2"])[0];
    let base = cgroups.need(word).join(&cgroups.base);
    mount(Some("x"), &base, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs");
    run("run x -- true").assert_code(71, "tmpfs on the base");
    nix::mount::umount(&base).expect("umount");
    assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
}

fn signals(world: &mut World) {
    let _cgroups = Cgroups::new(world, LINE);
    let running = call(world, ALICE, "create x").start_traced();
    let pid = running.pid();
    let mut tried = 0;
    loop {
        match tests::tracer::next(pid) {
            tests::tracer::Stop::Enter(number, _)
                if number == libc::SYS_mkdirat as u64 || number == libc::SYS_fchown as u64 =>
            {
                for signal in ["STOP", "KILL", "TERM"] {
                    let outcome = Call::new("/bin/kill").user(ALICE).words(&format!("-{signal} {pid}")).run(world);
                    assert_ne!(outcome.code(), Some(0), "{signal}");
                }
                tried += 1;
            }
            tests::tracer::Stop::Gone(status) => {
                running.gone(status, world).assert_silent("create");
                break;
            }
            _ => {}
        }
    }
    assert!(tried > 6, "{tried}");
}

fn deep(world: &mut World) {
    let cgroups = Cgroups::new(world, LINE);
    let node = cgroups.node("name=systemd", ALICE, "x");
    // Far deeper than a process has descriptors.
    let script = format!(
        "cd {} && mkdir wide && for i in $(seq 500); do mkdir wide/$i; done; d=.; for i in $(seq 400); do mkdir a && cd a || exit 3; done; mkdir '$(id) ;x'",
        node.display()
    );
    call(world, ALICE, "run x -- sh -c").arg(script).run(world).assert_code(0, "made");
    call(world, ALICE, "prune").limit(Resource::RLIMIT_NOFILE, 64).run(world).assert_code(0, "prune");
    assert!(cgroups.directories().is_empty(), "{}", cgroups.directories().len());
}
