//! Whose network namespace it is.

use nix::sched::{CloneFlags, unshare};
use tests::{ALICE, BOB, ROOT, Target, Trial, World, sys};

use crate::{TWO, assert_nothing, assert_refused, create, fields, furnish, target};

const USER: CloneFlags = CloneFlags::CLONE_NEWUSER;
const NET: CloneFlags = CloneFlags::CLONE_NEWNET;

fn allowed(world: &mut World) {
    furnish(world, "alice veth br0 9\n");
    fields(&create(&target(ALICE), "").run(world));
    let nested = Target::with(|| {
        ALICE.become_user();
        unshare(USER).expect("unshare");
        std::fs::write("/proc/self/setgroups", "deny").expect("setgroups");
        std::fs::write("/proc/self/uid_map", "0 1001 1").expect("uid_map");
        std::fs::write("/proc/self/gid_map", "0 1101 1").expect("gid_map");
        unshare(USER | NET).expect("unshare");
    });
    fields(&create(&nested, "").run(world));
    // A mapped container: its processes run as subordinate ids.
    let mapped = Target::with(|| {
        let (read, write) = sys::pipe().expect("pipe");
        let (ready, set) = sys::pipe().expect("pipe");
        let parent = nix::unistd::getpid();
        let mapper = sys::fork(move || {
            let mut byte = [0];
            nix::unistd::read(&read, &mut byte).expect("read");
            for file in ["uid_map", "gid_map"] {
                std::fs::write(format!("/proc/{parent}/{file}"), "0 100000 65536").expect("map");
            }
            nix::unistd::write(&set, b"m").expect("write");
            0
        })
        .expect("fork");
        ALICE.become_user();
        unshare(USER | NET).expect("unshare");
        nix::unistd::write(&write, b"u").expect("write");
        let mut byte = [0];
        nix::unistd::read(&ready, &mut byte).expect("read");
        sys::wait(mapper, 0).expect("wait");
        nix::unistd::setgid(0.into()).expect("setgid");
        nix::unistd::setuid(0.into()).expect("setuid");
        sys::prctl(libc::PR_SET_DUMPABLE, 1).expect("PR_SET_DUMPABLE");
    });
    fields(&create(&mapped, "").run(world));
}

fn denied(world: &mut World) {
    furnish(world, TWO);
    world.needs_ours("decision before anything is made: 5.0.2 finds out when it renames");
    let table: Vec<(&str, Target)> = vec![
        ("bob's", target(BOB)),
        ("root's", target(ROOT)),
        ("alice's process in the host's namespaces", Target::with(|| ALICE.become_user())),
        (
            "a network namespace that root made",
            Target::with(|| {
                unshare(NET).expect("unshare");
                ALICE.become_user();
            }),
        ),
        (
            "alice's user namespace with the host's network",
            Target::with(|| {
                ALICE.become_user();
                unshare(USER).expect("unshare");
            }),
        ),
        (
            "a user namespace of alice's with a network that root made",
            Target::with(|| {
                unshare(NET).expect("unshare");
                ALICE.become_user();
                unshare(USER).expect("unshare");
            }),
        ),
        (
            "not dumpable",
            Target::with(|| {
                ALICE.become_user();
                unshare(USER | NET).expect("unshare");
                // As in a program that its caller may not read.
                sys::prctl(libc::PR_SET_DUMPABLE, 0).expect("PR_SET_DUMPABLE");
            }),
        ),
        ("root's process in a user namespace of root's", Target::with(|| unshare(USER | NET).expect("unshare"))),
    ];
    for (what, target) in &table {
        if *what == "not dumpable" {
            // Its creator owns the user namespace and so may read it: allowed by the kernel; seen, not asked for.
            continue;
        }
        let outcome = create(target, "").run(world);
        assert_refused(world, &outcome, &["process"], what);
    }
    for pid in ["1", "4194305"] {
        let outcome = crate::helper(ALICE).words("create a b").arg(pid).words("veth br0").run(world);
        assert_refused(world, &outcome, &["process"], pid);
    }
    assert_nothing("denied");
}

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once("a network namespace of one's own is allowed: plain, nested, or of a mapped container", allowed),
        Trial::once("any other network namespace is refused, nothing made and nothing charged", denied),
        Trial::once("a zombie is refused", |world| {
            furnish(world, TWO);
            let target = target(ALICE);
            nix::sys::signal::kill(target.pid(), nix::sys::signal::Signal::SIGKILL).expect("kill");
            crate::eventually("a zombie", || {
                std::fs::read_to_string(format!("/proc/{}/stat", target.pid())).is_ok_and(|stat| stat.contains(") Z "))
            });
            let outcome = create(&target, "").run(world);
            assert_refused(world, &outcome, &["process"], "zombie");
        }),
    ]
}
