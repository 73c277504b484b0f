//! getsubids: drop-in output.

use tests::{ALICE, Call, Trial, World};

fn getsubids(world: &mut World, args: &str) -> tests::Outcome {
    let program = world.program("getsubids");
    Call::new(program).user(ALICE).words(args).run(world)
}

#[track_caller]
fn lists(world: &mut World, args: &str, wanted: &str) {
    let outcome = getsubids(world, args);
    outcome.assert_code(0, args);
    assert_eq!((outcome.out().as_str(), outcome.text().as_str()), (wanted, ""), "getsubids {args}");
}

#[track_caller]
fn fails(world: &mut World, args: &str) {
    let outcome = getsubids(world, args);
    outcome.assert_code(1, args);
    assert_eq!(outcome.out(), "", "getsubids {args}");
    assert!(!outcome.stderr.is_empty(), "getsubids {args}: a message");
}

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once("getsubids: a user's entries are listed with index, owner, start and count", |world| {
            lists(world, "alice", "0: alice 100000 65536\n");
            lists(world, "-g alice", "0: alice 100000 65536\n");
            world.write("/etc/subuid", "alice:100000:65536\nbob:300000:65536\nalice:200000:10\nalice:150000:100000\n");
            lists(world, "alice", "0: alice 100000 65536\n1: alice 200000 10\n2: alice 150000 100000\n");
            lists(world, "bob", "0: bob 300000 65536\n");
        }),
        Trial::once("getsubids: subuid and subgid are different files", |world| {
            world.write("/etc/subuid", "alice:100000:10\n");
            world.write("/etc/subgid", "alice:200000:20\n");
            lists(world, "alice", "0: alice 100000 10\n");
            lists(world, "-g alice", "0: alice 200000 20\n");
        }),
        Trial::once("getsubids: an entry by uid is found by name, as rootlesskit asks", |world| {
            world.write("/etc/subuid", "1001:100000:10\nbob:1:1\n1002:300000:10\n");
            let outcome = getsubids(world, "alice");
            outcome.assert_code(0, "alice");
            let numbers: Vec<&str> = outcome
                .stdout
                .split(|byte| *byte == b' ')
                .skip(2)
                .map(|word| std::str::from_utf8(word).expect("ASCII"))
                .collect();
            assert_eq!(numbers, ["100000", "10\n"], "{}", outcome.out());
        }),
        Trial::once("getsubids: a uid lists the entries of that uid, as rootlesskit asks", |world| {
            world.write("/etc/subuid", "1001:100000:10\nbob:1:1\n");
            lists(world, "1001", "0: 1001 100000 10\n");
        }),
        Trial::once("getsubids: with -g a number is still a uid", |world| {
            world.needs_ours("uids with -g: 4.13 looks the number up as a group");
            world.write("/etc/subgid", "1001:100000:10\n1101:200000:10\n");
            lists(world, "-g 1001", "0: 1001 100000 10\n");
        }),
        Trial::once("getsubids: no entry is an error with the original's text", |world| {
            world.write("/etc/subuid", "bob:300000:65536\n");
            for args in ["alice", "1001", "nosuchuser", "4242"] {
                let outcome = getsubids(world, args);
                outcome.assert_code(1, args);
                assert!(outcome.text().contains("Error fetching ranges"), "{}", outcome.text());
                assert_eq!(outcome.out(), "");
            }
        }),
        Trial::once("getsubids: bad lines and a missing file list nothing", |world| {
            world.write("/etc/subuid", "alice:x:10\nalice:100000\n:1:1\n#alice:1:1\nalice:200000:10\n");
            lists(world, "alice", "0: alice 200000 10\n");
            world.remove("/etc/subuid");
            fails(world, "alice");
        }),
        Trial::once("getsubids: a usage error exits with 1", |world| {
            for args in ["", "-g", "-x alice"] {
                fails(world, args);
            }
            if world.ours() {
                // 4.13 drops a second name without a word.
                for args in ["alice bob", "-g alice bob"] {
                    fails(world, args);
                }
            }
        }),
        Trial::once("getsubids: it lists exactly what the original lists", |world| {
            world.needs_ours("peer to be compared with");
            world.needs_tool("/usr/bin/getsubids");
            let original = "/run/original";
            std::fs::write(original, world.bytes("/usr/bin/getsubids")).expect("write");
            world.mode(original, 0o755);
            for content in [
                "alice:100000:65536\n",
                "alice:100000:65536\nalice:165536:1\nbob:1:1\n",
                "bob:300000:65536\nalice:100000:65536",
                "alice: 100000: 65536\nalice:0x30d40:0x10\n",
                "nosuch:1:1\n\n\nalice:400000:10\n",
                "bob:300000:65536\n",
                "",
            ] {
                world.write("/etc/subuid", content);
                world.write("/etc/subgid", content);
                for args in ["alice", "bob", "root", "nosuch2", "-g alice", "-g bob"] {
                    let theirs = Call::new(original).user(ALICE).words(args).run(world);
                    let ours = getsubids(world, args);
                    assert_eq!(
                        (ours.code(), ours.out()),
                        (theirs.code(), theirs.out()),
                        "getsubids {args} with {content:?}"
                    );
                }
            }
        }),
    ]
}
