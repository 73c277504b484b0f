//! Many at once, and NICs that are going away.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use tests::{ALICE, BOB, Trial, User, World};

use crate::{
    LEDGER, NICS_GID, assert_exact, create, fields, furnish, helper, listed, target, usernet, veths, with_group,
};

/// Starts `count` calls for each user at once and counts what each gets.
fn race(world: &mut World, users: &[User], count: usize, group: bool) -> Vec<usize> {
    let targets: Vec<_> = users.iter().map(|user| target(*user)).collect();
    let mut running = Vec::new();
    for _ in 0..count {
        for (number, (user, target)) in users.iter().zip(&targets).enumerate() {
            let call = helper(*user).words("create a b").arg(target.pid().to_string()).words("veth br0");
            running.push((number, if group { with_group(call, *user, NICS_GID) } else { call }.start()));
        }
    }
    let mut made = vec![0; users.len()];
    for (number, call) in running {
        let outcome = call.finish(world);
        match outcome.code() {
            Some(0) => made[number] += 1,
            _ => assert!(outcome.text().contains("Quota reached"), "{}", outcome.text()),
        }
    }
    assert_eq!(veths().len(), made.iter().sum::<usize>());
    assert_exact("after the race");
    for target in targets {
        target.end();
    }
    made
}

fn settle() {
    crate::eventually("all veths are gone", || veths().is_empty());
}

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once(
            "two users with fifty creates each at once get exactly their quotas, also after their NICs have died",
            |world| {
                furnish(world, "alice veth br0 10\nbob veth br0 10\n");
                for _ in 0..3 {
                    assert_eq!(race(world, &[ALICE, BOB], 50, false), [10, 10]);
                    settle();
                }
            },
        ),
        Trial::once("two hundred creates at once get exactly the quota", |world| {
            furnish(world, "alice veth br0 10\n");
            assert_eq!(race(world, &[ALICE], 200, false), [10]);
        }),
        Trial::once("users of one group with fifty creates each at once get exactly the group's quota", |world| {
            furnish(world, "@nics veth br0 10\n");
            world.write("/etc/group", "root:x:0:\nalice:x:1101:\nbob:x:1102:\nnics:x:1150:alice,bob\n");
            for _ in 0..3 {
                assert_eq!(race(world, &[ALICE, BOB], 50, true).iter().sum::<usize>(), 10);
                settle();
            }
        }),
        Trial::once("a quota that only a dying namespace holds is waited for", |world| {
            furnish(world, "alice veth br0 1\n");
            crate::differs(world, "waiting");
            world.needs_ours("waiting");
            let mut old = target(ALICE);
            fields(&create(&old, "").run(world));
            for round in 0..40 {
                let new = target(ALICE);
                kill(old.pid(), Signal::SIGKILL).expect("kill");
                let outcome = create(&new, "").run(world);
                outcome.assert_code(0, &format!("round {round}: {}", outcome.text()));
                old = new;
            }
            let begin = Instant::now();
            create(&old, "").run(world).assert_code(1, "the pot is full of the living");
            assert!(begin.elapsed() < Duration::from_millis(900), "bounded: {:?}", begin.elapsed());
        }),
        Trial::once("kill one, create in both, again and again: the living never exceed the quota", |world| {
            furnish(world, "alice veth br0 2\n");
            world.needs_ours("promise about it");
            let mut pair = [target(ALICE), target(ALICE)];
            for round in 0..30 {
                kill(pair[round % 2].pid(), Signal::SIGKILL).expect("kill");
                pair[round % 2] = target(ALICE);
                let calls = [create(&pair[0], "").start(), create(&pair[1], "").start()];
                for call in calls {
                    let _ = call.finish(world);
                    assert!(veths().len() <= 2, "{:?}", veths());
                }
            }
            usernet(ALICE).words("prune").run(world).assert_code(0, "prune");
            assert_exact("after the loop");
        }),
        Trial::once("ours and the original in turn, on one ledger, keep the quota", |world| {
            furnish(world, "alice veth br0 4\n");
            world.needs_ours("other program to be mixed with");
            world.needs_tool("/usr/libexec/lxc/lxc-user-nic");
            let target = target(ALICE);
            let theirs = || {
                tests::Call::new("/usr/libexec/lxc/lxc-user-nic")
                    .user(ALICE)
                    .words("create /dev/null c1")
                    .arg(target.pid().to_string())
                    .words("veth br0")
            };
            let mut running = Vec::new();
            for _ in 0..10 {
                running.push(create(&target, "").start());
                running.push(theirs().start());
            }
            let made = running.into_iter().map(|call| call.finish(world)).filter(|o| o.code() == Some(0)).count();
            usernet(ALICE).words("prune").run(world).assert_code(0, "prune");
            assert_eq!(
                (made, veths().len(), listed().len()),
                (4, 4, 4),
                "{}",
                std::fs::read_to_string(LEDGER).expect("ledger")
            );
        }),
    ]
}
