//! newgidmap and /proc/PID/setgroups.

use std::fs;

use tests::world::USERS_GID;
use tests::{ALICE, Answer, Kind, Target, Trial, World};

fn after_newgrp(world: &mut World, triples: &str) -> Answer {
    let target = Target::with_gid(ALICE, USERS_GID, &[]);
    let call = world.helper(Kind::Gid).as_is().as_root(|| ALICE.become_with_gid(USERS_GID, &[]));
    let call = call.arg(target.pid().to_string()).words(triples);
    world.answer(Kind::Gid, target, call)
}

#[track_caller]
fn setgroups_is(answer: &Answer, triples: &str, wanted: &str) {
    answer.granted(triples, triples);
    assert_eq!(answer.target.setgroups(), wanted, "setgroups after {triples}");
}

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("a granted range leaves setgroups allowed", |world| {
            for triples in ["0 100000 65536", "0 100000 1", "5 100000 10 20 100010 1"] {
                setgroups_is(&world.ask(Kind::Gid, triples), triples, "allow");
            }
        }),
        Trial::new("self mapping alone denies setgroups", |world| {
            for triples in ["0 1101 1", "1101 1101 1", "65534 1101 1"] {
                setgroups_is(&world.ask(Kind::Gid, triples), triples, "deny");
            }
        }),
        Trial::new("self mapping and one granted gid leave setgroups allowed", |world| {
            for triples in ["0 1101 1 1 100000 10", "1 100000 1 0 1101 1"] {
                setgroups_is(&world.ask(Kind::Gid, triples), triples, "allow");
            }
        }),
        Trial::new("the own gid granted by /etc/subgid leaves setgroups allowed", |world| {
            world.write("/etc/subgid", "alice:1101:1\n");
            setgroups_is(&world.ask(Kind::Gid, "0 1101 1"), "0 1101 1", "allow");
        }),
        Trial::new("newuidmap never touches setgroups", |world| {
            for triples in ["0 1001 1", "0 100000 10", "0 1001 1 1 100000 10"] {
                let answer = world.ask(Kind::Uid, triples);
                answer.granted(triples, triples);
                assert_eq!(answer.target.setgroups(), "allow");
            }
        }),
        Trial::new("a refused or malformed request leaves setgroups as it was", |world| {
            for triples in [
                "0 1102 1",
                "0 1101 2",
                "0 99999 1",
                "0 1101 0",
                "0 1101 x",
                "0 1101 1 1 1102 1",
                "0 1101 1 0",
                "0 1150 1",
            ] {
                world.ask(Kind::Gid, triples).refused(triples);
            }
        }),
        Trial::new("a self map that the kernel would refuse leaves setgroups as it was", |world| {
            world.needs_ours("check before the write");
            for triples in ["0 1101 1 0 1101 1", "0 1101 1 1 1101 1"] {
                world.ask(Kind::Gid, triples).refused(triples);
            }
        }),
        Trial::new("setgroups that is denied already stays denied, and the call goes on", |world| {
            for triples in ["0 1101 1", "0 100000 10"] {
                let target = Target::new(ALICE);
                fs::write(format!("/proc/{}/setgroups", target.pid()), "deny").expect("setgroups");
                setgroups_is(&world.ask_for(Kind::Gid, target, triples), triples, "deny");
            }
        }),
        Trial::new("a supplementary group is not mapped, and not denied either", |world| {
            let target = Target::with_gid(ALICE, ALICE.gid, &[USERS_GID]);
            let call = world.helper(Kind::Gid).as_is().as_root(|| ALICE.become_with_gid(ALICE.gid, &[USERS_GID]));
            let call = call.arg(target.pid().to_string()).words("0 1150 1");
            world.answer(Kind::Gid, target, call).refused("a group of alice's that is not her real gid");
        }),
        Trial::new(
            "after newgrp the new gid maps itself only with GRANT_AUX_GROUP_SUBIDS, and setgroups is denied",
            |world| {
                after_newgrp(world, "0 1150 1").refused("gid rule");
                after_newgrp(world, "0 1101 1").refused("gid rule");
                world.write("/etc/login.defs", "GRANT_AUX_GROUP_SUBIDS yes\n");
                setgroups_is(&after_newgrp(world, "0 1150 1"), "0 1150 1", "deny");
                after_newgrp(world, "0 1101 1").refused("the passwd gid is not the real gid");
            },
        ),
        Trial::new("alice herself cannot get setgroups back after a self map", |world| {
            let answer = world.ask(Kind::Gid, "0 1101 1");
            setgroups_is(&answer, "0 1101 1", "deny");
            let path = format!("/proc/{}/setgroups", answer.target.pid());
            assert!(fs::write(path, "allow").is_err(), "the kernel keeps deny");
        }),
    ]
}
