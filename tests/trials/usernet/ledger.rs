//! /run/lxc/nics: shared with the original, never wrong for long.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::Resource;
use nix::sys::signal::{Signal, kill};
use tests::{ALICE, BOB, Target, Trial, World, sys};

use crate::{
    LEDGER, NICS_GID, TWO, assert_exact, assert_nothing, create, fields, furnish, helper, listed, target, usernet,
    veths, with_group,
};

fn write_ledger(world: &World, text: &str) {
    fs::create_dir_all("/run/lxc").expect("mkdir");
    world.write(LEDGER, text);
    world.mode(LEDGER, 0o600);
}

fn foreign_lines(world: &mut World) {
    furnish(world, TWO);
    let foreign = "# a comment\nbob veth br0 veth1002_gone\nbroken\n\nalice veth br1 veth1001_else\ncarol\tveth  br0\tlo\nalice phys br0 eth9\n";
    let dead = "alice veth br0 veth1001_dea1\nalice veth br0 veth1001_dea2\n";
    write_ledger(world, &format!("{dead}{foreign}{dead}"));
    let target = target(ALICE);
    let [_, _, host, _] = fields(&create(&target, "").run(world));
    if !world.ours() {
        world.ignore("5.0.2 rewrites only its own lines; what it does to the rest is its own affair");
    }
    assert_eq!(fs::read_to_string(LEDGER).expect("ledger"), format!("{foreign}alice veth br0 {host}\n"));
}

fn modes(world: &mut World) {
    world.needs_ours("care about the caller's umask");
    furnish(world, "alice veth br0 9\n");
    for mask in [0o777, 0] {
        world.remove("/run/lxc");
        let target = target(ALICE);
        let call = create(&target, "").as_user(move || {
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
        });
        fields(&call.run(world));
        for (path, mode) in [("/run/lxc", 0o40755), (LEDGER, 0o100600)] {
            let meta = fs::metadata(path).expect(path);
            assert_eq!((meta.mode(), meta.uid(), meta.gid()), (mode, 0, 0), "{path} with umask {mask:o}");
        }
        target.end();
        crate::eventually("the veth is gone", || veths().is_empty());
    }
}

/// A process that holds the ledger's lock until it is dropped: as a holder who is frozen.
fn holder() -> Target {
    Target::with(|| {
        fs::create_dir_all("/run/lxc").expect("mkdir");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(LEDGER)
            .expect("ledger");
        let lock = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
        fcntl(&file, FcntlArg::F_SETLK(&lock)).expect("lock");
        std::mem::forget(file);
    })
}

fn frozen_holder(world: &mut World) {
    furnish(world, "alice veth br0 2\n@nics veth br0 1\n");
    world.needs_ours("way round a holder that is frozen");
    world.write("/etc/group", "root:x:0:\nalice:x:1101:\nbob:x:1102:\nnics:x:1150:alice,bob\n");
    let (alices, bobs) = (target(ALICE), target(BOB));
    let frozen = holder();
    let mut made = 0;
    for (user, target) in [(ALICE, &alices), (ALICE, &alices), (BOB, &bobs), (ALICE, &alices), (BOB, &bobs)] {
        let begin = Instant::now();
        let call = helper(user).words("create a b").arg(target.pid().to_string()).words("veth br0");
        let outcome = with_group(call, user, NICS_GID).run(world);
        made += usize::from(outcome.code() == Some(0));
        assert!(begin.elapsed() < Duration::from_millis(1000), "{:?}: {}", begin.elapsed(), outcome.text());
    }
    assert_eq!((made, veths().len()), (3, 3), "two of alice's own and one of the group's, without the lock");
    assert_eq!(listed().len(), 0, "the ledger is not written without its lock");
    frozen.end();
    usernet(ALICE).words("prune").run(world).assert_code(0, "prune");
    for user in [ALICE, BOB] {
        with_group(usernet(user).words("prune"), user, NICS_GID).run(world).assert_code(0, "prune");
    }
    assert_exact("after the holder is gone");
}

/// Whether a system call has to do with locks, files or links: after these a call is stopped in turn.
fn touches(number: u64) -> bool {
    [libc::SYS_fcntl, libc::SYS_openat, libc::SYS_open, libc::SYS_sendto, libc::SYS_pwrite64, libc::SYS_setresuid]
        .contains(&i64::try_from(number).unwrap_or(-1))
}

fn stopped(world: &mut World) {
    furnish(world, "alice veth br0 5\nbob veth br0 5\n");
    world.needs_ours("locks of its own for each user");
    let (alices, bobs) = (target(ALICE), target(BOB));
    // Stopped at each step in turn, alice's call never keeps bob waiting for long.
    for step in 0.. {
        let call = create(&alices, "").start_traced();
        let pid = call.pid();
        let (mut at, mut counts) = (0, false);
        let ended = loop {
            match tests::tracer::next(pid) {
                tests::tracer::Stop::Gone(status) => break Some(status),
                tests::tracer::Stop::Enter(number, _) => counts = touches(number),
                tests::tracer::Stop::Leave(_) if counts && at == step => break None,
                tests::tracer::Stop::Leave(_) if counts => at += 1,
                _ => {}
            }
        };
        if let Some(status) = ended {
            let _ = call.gone(status, world);
            assert!(step > 20, "the sweep saw the whole call: {step}");
            break;
        }
        let begin = Instant::now();
        let bob = helper(BOB).words("create a b").arg(bobs.pid().to_string()).words("veth br0").run(world);
        let waited = begin.elapsed();
        let [_, _, host, _] = fields(&bob);
        assert!(waited < Duration::from_millis(1000), "step {step}: bob waited {waited:?}");
        usernet(BOB).words("detach").arg(&host).run(world).assert_silent("bob");
        kill(pid, Signal::SIGKILL).expect("kill");
        // It stops once more on its way out, with its locks held.
        let status = loop {
            if let tests::tracer::Stop::Gone(status) = tests::tracer::next(pid) {
                break status;
            }
        };
        let _ = call.gone(status, world);
        for nic in veths() {
            usernet(ALICE).words("detach").arg(&nic).run(world).assert_silent("alice");
        }
    }
}

fn limits(world: &mut World) {
    furnish(world, "alice veth br0 9\n");
    world.needs_ours("promise about it");
    let target = target(ALICE);
    let outcome = create(&target, "").limit(Resource::RLIMIT_FSIZE, 0).run(world);
    // Root without CAP_SYS_RESOURCE, as in a container, cannot undo a hard limit: then there is no claim and no link.
    assert!(outcome.code() == Some(0) || outcome.text().contains("File too large"), "{}", outcome.text());
    assert_eq!(veths().len(), usize::from(outcome.code() == Some(0)));
    assert_exact("RLIMIT_FSIZE 0");
    for files in 3..12 {
        let before = veths().len();
        let outcome = create(&target, "").limit(Resource::RLIMIT_NOFILE, files).run(world);
        match outcome.code() {
            Some(0) => break,
            code => assert_eq!(code, Some(1), "{files} files: {}", outcome.text()),
        }
        assert_eq!(veths().len(), before, "{files} files");
        assert!(files < 11, "twelve are enough");
        if files > 3 {
            assert!(outcome.text().contains("Too many open files"), "{files} files: {}", outcome.text());
        }
    }
    assert_exact("limits");
}

fn full_file_system(world: &mut World) {
    furnish(world, TWO);
    world.needs_ours("promise about it");
    fs::create_dir("/run/lxc").expect("mkdir");
    nix::mount::mount(
        Some("tmpfs"),
        "/run/lxc",
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some("mode=755,size=16k"),
    )
    .expect("tmpfs");
    fs::create_dir("/run/lxc/usernet").expect("mkdir");
    fs::set_permissions("/run/lxc/usernet", std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("chmod");
    let target = target(ALICE);
    let fill = |keep: usize| {
        let mut file = fs::File::create("/run/lxc/fill").expect("fill");
        while std::io::Write::write(&mut file, &[0; 4096]).is_ok_and(|n| n == 4096) {}
        let length = file.metadata().expect("stat").len();
        file.set_len(length.saturating_sub(4096 * keep as u64)).expect("truncate");
    };
    // No room at all; room for the claim but not for the ledger; room for both.
    for (pages, code) in [(0, 1), (1, 1), (2, 0)] {
        fill(pages);
        let outcome = create(&target, "").run(world);
        outcome.assert_code(code, &format!("{pages} pages: {}", outcome.text()));
        if code == 1 {
            assert!(outcome.text().contains("No space left on device"), "{}", outcome.text());
            assert_nothing("full");
        }
    }
}

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once("dead lines of the caller go, everything else stays byte for byte and in order", foreign_lines),
        Trial::once("the directory is 0755 and the file 0600, root's, whatever umask the first caller has", modes),
        Trial::once("a NIC that lost its line is counted and written back", |world| {
            furnish(world, TWO);
            world.needs_ours("kernel truth");
            let target = target(ALICE);
            for _ in 0..2 {
                fields(&create(&target, "").run(world));
            }
            world.remove(LEDGER);
            create(&target, "").run(world).assert_code(1, "both are there");
            assert_exact("written back");
        }),
        Trial::once("a NIC of the original's that lost its line is counted by its name", |world| {
            furnish(world, TWO);
            world.needs_ours("kernel truth");
            crate::ip("link add veth1001_abcd type veth peer name x1");
            crate::ip("link set veth1001_abcd master br0");
            let target = target(ALICE);
            fields(&create(&target, "").run(world));
            create(&target, "").run(world).assert_code(1, "two are there");
        }),
        Trial::once("among the ports of others the caller's are found, by name and by alias", |world| {
            furnish(world, TWO);
            world.needs_ours("kernel truth");
            for number in 1000..1040 {
                crate::ip(&format!("link add veth1002_{number} type veth peer name x{number}"));
                crate::ip(&format!("link set veth1002_{number} master br0"));
            }
            let target = target(ALICE);
            let [_, _, host, _] = fields(&create(&target, "").run(world));
            crate::ip(&format!("link set {host} down"));
            crate::ip(&format!("link set {host} name card7"));
            world.remove(LEDGER);
            crate::ip("link add veth1001_abcd type veth peer name x1");
            let check =
                helper(ALICE).words("--check create a b").arg(target.pid().to_string()).words("veth br0").run(world);
            check.assert_code(0, "what is no port of the bridge is not counted");
            crate::ip("link set veth1001_abcd master br0");
            create(&target, "").run(world).assert_code(1, "two are there");
            let mut found = listed();
            found.sort();
            assert_eq!(found, ["card7", "veth1001_abcd"]);
        }),
        Trial::once("a ledger that is replaced while others use it is found again", |world| {
            furnish(world, TWO);
            let target = target(ALICE);
            fields(&create(&target, "").run(world));
            let frozen = holder();
            let text = fs::read(LEDGER).expect("ledger");
            fs::rename(LEDGER, "/run/lxc/old").expect("rename");
            world.write(LEDGER, &text);
            world.mode(LEDGER, 0o600);
            fields(&create(&target, "").run(world));
            assert_eq!(listed().len(), 2);
            create(&target, "").run(world).assert_code(1, "two are listed");
            frozen.end();
        }),
        Trial::once(
            "who holds the ledger's lock and is frozen keeps nobody from a grant, and no quota is exceeded",
            frozen_holder,
        ),
        Trial::once("stopped at any step, a call keeps no other user waiting for a second", stopped),
        Trial::once(
            "limits on file size and descriptors lead to a message or to a NIC, never to an uncounted one",
            limits,
        ),
        Trial::once("a full file system lets nothing be made", full_file_system),
        Trial::once("timers that survive exec do not end the call", |world| {
            furnish(world, "alice veth br0 60\n");
            world.needs_ours("stopping of them");
            let target = target(ALICE);
            for micros in [150, 300, 600, 900, 1500, 2500] {
                let outcome = create(&target, "").as_user(move || sys::alarm_after(micros).expect("timer")).run(world);
                assert!(
                    outcome.code() == Some(0) || outcome.signal() == Some(libc::SIGALRM),
                    "{micros}: {}",
                    outcome.text()
                );
            }
            usernet(ALICE).words("prune").run(world).assert_code(0, "prune");
            assert_exact("timers");
        }),
        Trial::once("ledger and directory of others are not believed", |world| {
            furnish(world, TWO);
            world.needs_ours("distrust");
            let target = target(ALICE);
            fs::create_dir("/run/lxc").expect("mkdir");
            fs::set_permissions("/run/lxc", std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("chmod");
            create(&target, "").run(world).assert_code(1, "others can write the directory");
            fs::set_permissions("/run/lxc", std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
            std::os::unix::fs::symlink("/etc/passwd", LEDGER).expect("symlink");
            create(&target, "").run(world).assert_code(1, "a symbolic link");
            assert_eq!(veths(), Vec::<String>::new());
        }),
    ]
}
