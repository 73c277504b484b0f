//! `--check`, `--help`, `--version`: what the originals do not have.

use tests::{ALICE, BOB, Call, Kind, Outcome, Target, Trial, World};

fn check(world: &mut World, kind: Kind, target: &Target, triples: &str) -> Outcome {
    world.helper(kind).arg("--check").arg(target.pid().to_string()).words(triples).run(world)
}

/// Everything that it printed.
fn said(outcome: &Outcome) -> String {
    outcome.out() + &outcome.text()
}

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("a word that begins with -- is never a target", |world| {
            for kind in Kind::BOTH {
                for option in ["--frob", "--", "--checkx", "---help", "--help=x"] {
                    let outcome = world.helper(kind).arg(option).words("0 100000 10").run(world);
                    outcome.assert_code(1, option);
                    assert_eq!(outcome.out(), "");
                    assert!(outcome.text().to_lowercase().contains("usage"), "{}", outcome.text());
                }
            }
        }),
        Trial::new("--help prints a summary with an example and exits with 0", |world| {
            for kind in Kind::BOTH {
                let outcome = world.helper(kind).arg("--help").run(world);
                if !world.ours() {
                    outcome.assert_code(1, "the original has no options");
                    continue;
                }
                outcome.assert_code(0, "--help");
                for word in ["usage: ", kind.program(), "--check", "--version", "fd:N", "100000"] {
                    assert!(outcome.out().contains(word), "\"{word}\" is not in: {}", outcome.out());
                }
                assert!(outcome.out().lines().all(|line| line.len() <= 120), "no line is longer than a terminal's");
                assert_eq!(outcome.text(), "");
            }
        }),
        Trial::new("--version prints name and version and exits with 0", |world| {
            for kind in Kind::BOTH {
                let outcome = world.helper(kind).arg("--version").run(world);
                if !world.ours() {
                    outcome.assert_code(1, "the original has no options");
                    continue;
                }
                outcome.assert_code(0, "--version");
                assert!(
                    outcome.out().starts_with(&format!("{} ", kind.program()))
                        && outcome.out().ends_with(&format!("{}\n", env!("CARGO_PKG_VERSION")))
                );
                assert_eq!(outcome.text(), "");
            }
        }),
        Trial::new(
            "--check says that a request would be granted, by which file and line, and changes nothing",
            |world| {
                world.needs_ours("--check");
                for kind in Kind::BOTH {
                    world.write(kind.file(), "# header\nbob:300000:65536\nalice:100000:65536\n1001:400000:10\n");
                    let target = Target::new(ALICE);
                    let own = kind.own(ALICE);
                    let outcome = check(world, kind, &target, &format!("0 {own} 1 1 100000 10 20 400000 10"));
                    outcome.assert_code(0, "granted");
                    for word in [&format!("{}:3", kind.file()), &format!("{}:4", kind.file())] {
                        assert!(said(&outcome).contains(word.as_str()), "\"{word}\" is not in: {}", said(&outcome));
                    }
                    assert!(outcome.out().lines().count() >= 3, "a reason for each triple: {}", outcome.out());
                    target.assert_untouched("--check");
                }
            },
        ),
        Trial::new("--check says that a request would be refused, and what is granted", |world| {
            world.needs_ours("--check");
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let outcome = check(world, kind, &target, "0 99999 10");
                outcome.assert_code(1, "refused");
                for word in ["not allowed", "[99999-100009)", kind.file(), "alice", "100000"] {
                    assert!(said(&outcome).contains(word), "\"{word}\" is not in: {}", said(&outcome));
                }
                target.assert_untouched("--check");
            }
        }),
        Trial::new("--check warns about lines that look like the caller's and grant nothing", |world| {
            world.needs_ours("--check");
            for kind in Kind::BOTH {
                for line in [
                    "alice:0100000:65536",
                    "alice:100000:65536 # alice",
                    "01001:100000:65536",
                    " 1001:100000:65536",
                    "alice:100000:65536:x",
                    "alice:100000",
                    "alice:1:4294967296",
                    "alice:1:-1",
                    "alice:100000:65536\0",
                ] {
                    world.write(kind.file(), format!("bob:1:1\n{line}\n"));
                    let target = Target::new(ALICE);
                    let outcome = check(world, kind, &target, "0 100000 10");
                    outcome.assert_code(1, line);
                    let said = said(&outcome);
                    let named = said.contains(&format!("{}:2", kind.file()))
                        || (said.contains(kind.file()) && said.contains("line 2"));
                    assert!(named, "{line:?}: line 2 is not named in: {said}");
                }
            }
        }),
        Trial::new("--check and the call itself always agree", |world| {
            world.needs_ours("--check");
            for kind in Kind::BOTH {
                let own = kind.own(ALICE);
                world.write(
                    kind.file(),
                    "alice:100000:10\n1001:100010:10\nalice:200000:0\nalice:0300000:10\nbob:400000:10\n",
                );
                for triples in [
                    "0 100000 10",
                    "0 100000 20",
                    "0 100000 21",
                    "0 200000 1",
                    "0 300000 1",
                    "0 98304 1",
                    "0 400000 1",
                    "0 x 1",
                    "",
                    "0 100000 1 0 100001 1",
                    "0 100000 1 5 100000 1",
                    "0 0 1",
                    &format!("0 {own} 1"),
                    &format!("0 {own} 2"),
                    &format!("5 100000 1 0 {own} 1"),
                ] {
                    for user in [ALICE, BOB] {
                        let target = Target::new(user);
                        let checked = check(world, kind, &target, triples);
                        target.assert_untouched("--check");
                        let answer = world.ask_for(kind, target, triples);
                        assert_eq!(
                            checked.code(),
                            answer.outcome.code(),
                            "{triples}: --check said \"{}\", the call \"{}\"",
                            said(&checked),
                            answer.outcome.text()
                        );
                    }
                }
            }
        }),
        Trial::once("--check of an install without its privilege says what is missing", |world| {
            world.needs_ours("--check");
            for kind in Kind::BOTH {
                let path = format!("/run/{}-bare", kind.program());
                std::fs::write(&path, world.bytes(kind.program())).expect("write");
                world.mode(&path, 0o755);
                for triples in ["0 100000 10", "0 99999 10"] {
                    let target = Target::new(ALICE);
                    let call = Call::new(&path).user(ALICE).arg("--check").arg(target.pid().to_string()).words(triples);
                    let outcome = call.run(world);
                    outcome.assert_code(1, triples);
                    assert!(
                        said(&outcome).contains("setuid") || said(&outcome).contains("not allowed"),
                        "{}",
                        said(&outcome)
                    );
                    target.assert_untouched("--check");
                }
            }
        }),
    ]
}
