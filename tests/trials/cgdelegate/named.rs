//! A named hierarchy that nobody has mounted: made for a user, seen by nobody else, gone with its last cgroup.

use super::fixture::{Cgroups, alice, call, cgdelegate, place, start_sleep};
use std::fs;
use tests::{ALICE, BOB, Trial, World};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once("name=NAME is made without a mount that others see, entered, and gone at the end", made),
        Trial::once("on pure v2 a user's container mounts name=systemd writable in its cgroup namespace", container),
        Trial::once(
            "a kernel without fsopen (before 5.2) does the same, one without named hierarchies is told what it lacks",
            old_kernel,
        ),
        Trial::once("a hierarchy with a foreign release agent is not delegated", agent),
    ]
}

fn name() -> String {
    format!("cgd{}", &fs::read_to_string("/proc/sys/kernel/random/uuid").expect("uuid")[..6])
}

fn exists(name: &str) -> bool {
    fs::read_to_string("/proc/self/cgroup").expect("cgroup").contains(&format!("name={name}:"))
}

/// Waits for the end of a hierarchy that the trial itself has mounted. The kernel frees the last cgroup a little late, and
/// a hierarchy ends with a mount that finds none.
fn gone(name: &str) {
    let _ = fs::create_dir("/run/gone");
    let options = format!("none,name={name}");
    super::fixture::wait_until("the hierarchy is gone", || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        // Looked at after the wait: a mount of one that has gone would make it anew.
        if exists(name) {
            nix::mount::mount(
                Some("x"),
                "/run/gone",
                Some("cgroup"),
                nix::mount::MsFlags::empty(),
                Some(options.as_str()),
            )
            .expect("mount");
            nix::mount::umount("/run/gone").expect("umount");
        }
        !exists(name)
    });
}

fn made(world: &mut World) {
    let name = name();
    let (cgroups, _turn) = Cgroups::own_base(world, "");
    cgroups.configure(world, &format!("alice name={name} 2\nbob name={name} 2"));
    assert!(!exists(&name));
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let running = start_sleep(world, ALICE, "x");
    assert!(exists(&name));
    assert!(place(running.pid(), &format!("name={name}")).ends_with("/cgd-1001/x"));
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").expect("mountinfo"), mounts, "a mount is seen");
    let text = fs::read_to_string(format!("/proc/{}/mountinfo", running.pid())).expect("mountinfo");
    assert!(!text.contains(&name), "{text}");
    assert!(alice(world, "list").out().contains(&format!("name={name}:/")));
    cgdelegate(world, BOB, "run y -- true").assert_code(0, "bob in the same hierarchy");
    drop(running);
    alice(world, "prune").assert_code(0, "prune");
    cgdelegate(world, BOB, "prune").assert_code(0, "prune");
    // The base was ours to keep: it is named in the configuration. Without, nothing is left.
    world.write(super::fixture::CONF, format!("alice name={name} 2\n"));
    alice(world, "run x -- true").assert_code(0, "own base");
    alice(world, "prune").assert_code(0, "prune");
    let top = "/run/named";
    fs::create_dir(top).expect("mkdir");
    let options = format!("none,name={name}");
    nix::mount::mount(Some("x"), top, Some("cgroup"), nix::mount::MsFlags::empty(), Some(options.as_str()))
        .expect("mount");
    for entry in fs::read_dir(top).expect("top").flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        assert!(entry.file_name().to_string_lossy().starts_with("cgdtest-"), "{:?} is left", entry.file_name());
        fs::remove_dir(entry.path()).expect("rmdir");
    }
    assert_eq!(fs::read_to_string(format!("{top}/release_agent")).expect("agent").trim(), "");
    nix::mount::umount(top).expect("umount");
    gone(&name);
}

fn container(world: &mut World) {
    let name = name();
    let (_cgroups, _turn) = Cgroups::own_base(world, &format!("alice name={name} 2"));
    // What a container's init does: a cgroup namespace after entering, then its own mount.
    let script = format!(
        "mkdir /tmp/c && mount -t cgroup -o none,name={name} x /tmp/c && mkdir /tmp/c/system.slice && echo $$ > /tmp/c/system.slice/cgroup.procs && \
         cat /proc/self/cgroup && ! [ -e /tmp/c/release_agent ] && ls -d /tmp/c/cgroup.procs"
    );
    let outcome = call(world, ALICE, "run x -- unshare -Ur -m -C sh -c").arg(&script).run(world);
    outcome.assert_code(0, "a writable named hierarchy");
    assert!(outcome.out().contains(&format!("name={name}:/system.slice\n")), "{}", outcome.out());
    // Without cgdelegate the hierarchy cannot be made; with its last cgroup it goes.
    alice(world, "prune").assert_code(0, "prune");
    gone(&name);
    let outcome = tests::Call::new("/usr/bin/unshare")
        .user(ALICE)
        .env("PATH", "/usr/bin")
        .words("-Ur -m -C sh -c")
        .arg(&script)
        .run(world);
    assert_ne!(outcome.code(), Some(0), "{}", outcome.out());
}

fn old_kernel(world: &mut World) {
    let name = name();
    let (cgroups, _turn) = Cgroups::own_base(world, &format!("alice name={name} 2"));
    let mut run = |words: &str, errno: i32| {
        call(world, ALICE, words)
            .as_root(move || tests::sys::without_system_call(libc::SYS_fsopen, errno).expect("seccomp"))
            .run(world)
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let outcome = run("run x -- cat /proc/self/cgroup /proc/self/mountinfo", libc::ENOSYS);
    outcome.assert_code(0, "made by a mount in a namespace");
    assert!(outcome.out().contains(&format!(":name={name}:/cgdelegate/cgd-1001/x\n")), "{}", outcome.out());
    assert_eq!(outcome.out().matches(&name).count(), 1, "a mount is seen: {}", outcome.out());
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").expect("mountinfo"), mounts, "a mount is seen");
    let through = run("run x -- ls /proc/self/fd", libc::ENOSYS);
    let direct = tests::Call::new("/bin/ls").user(ALICE).words("/proc/self/fd");
    let listed = run("list", libc::ENOSYS);
    let pruned = run("prune", libc::ENOSYS);
    assert!(listed.out().contains(&format!("name={name}:/cgdelegate/cgd-1001/x")), "{}", listed.out());
    pruned.assert_code(0, "prune");
    let outcome = run("run x -- true", libc::ENOENT);
    assert_eq!(through.out(), direct.run(world).out(), "a descriptor is handed over");
    gone(&name);
    outcome.assert_code(69, "cgroup_no_v1=named");
    assert!(outcome.text().contains("cgroup_no_v1=named"), "{}", outcome.text());
    assert!(cgroups.directories().is_empty());
}

fn agent(world: &mut World) {
    let name = name();
    let cgroups = Cgroups::pure(world, &format!("alice name={name} 2"));
    let top = "/run/named";
    fs::create_dir(top).expect("mkdir");
    let options = format!("none,name={name},release_agent=/bin/agent");
    nix::mount::mount(Some("x"), top, Some("cgroup"), nix::mount::MsFlags::empty(), Some(options.as_str()))
        .expect("mount");
    let outcome = alice(world, "run x -- true");
    outcome.assert_code(77, "foreign agent");
    assert!(outcome.text().contains("/bin/agent"), "{}", outcome.text());
    fs::write(format!("{top}/release_agent"), "\n").expect("agent");
    alice(world, "run x -- true").assert_code(0, "none");
    alice(world, "prune").assert_code(0, "prune");
    fs::remove_dir(format!("{top}/{}", cgroups.base)).expect("rmdir");
    nix::mount::umount(top).expect("umount");
    gone(&name);
}
