//! One line in the system log for each grant and each refusal.

use std::collections::HashSet;

use tests::{ALICE, BOB, Kind, Target, Trial, World};

/// LOG_AUTHPRIV with LOG_NOTICE, and with LOG_WARNING.
const GRANT: &str = "<85>";
const REFUSAL: &str = "<84>";

/// The one datagram, its priority, and the words behind `PROGRAM[PID]: `.
#[track_caller]
fn only_line(world: &mut World, kind: Kind) -> (String, Vec<String>) {
    let lines = world.syslog();
    assert_eq!(
        lines.len(),
        1,
        "one line: {:?}",
        lines.iter().map(|line| String::from_utf8_lossy(line)).collect::<Vec<_>>()
    );
    assert!(lines[0].iter().all(|byte| (0x20..0x7f).contains(byte) || *byte == 0 || *byte == b'\n'), "printable ASCII");
    let line = String::from_utf8(lines[0].clone()).expect("ASCII");
    let line = line.trim_end_matches(['\0', '\n']);
    assert!(!line.contains(['\0', '\n']), "one line: {line:?}");
    let (head, text) = line.split_once("]: ").unwrap_or_else(|| panic!("no PROGRAM[PID]: in {line}"));
    assert!(head.contains(&format!("{}[", kind.program())), "{head}");
    assert!(text.len() <= 960, "{} bytes", text.len());
    (head[..4].to_owned(), text.split(' ').map(str::to_owned).collect())
}

/// Every word is key=value, no key stands twice, and the first six are the documented ones.
#[track_caller]
fn well_formed(words: &[String]) {
    let keys: Vec<&str> = words
        .iter()
        .map(|word| word.split_once('=').unwrap_or_else(|| panic!("no key=value: {word:?} in {words:?}")).0)
        .collect();
    assert_eq!(keys[..5], ["event", "result", "uid", "user", "pid"], "{words:?}");
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len(), "a key stands twice: {words:?}");
}

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("a grant is logged with authpriv.notice in the documented form", |world| {
            world.needs_ours("line in the system log");
            for kind in Kind::BOTH {
                let answer = world.ask(kind, "0 100000 65536");
                answer.granted("0 100000 65536", "grant");
                let (priority, words) = only_line(world, kind);
                well_formed(&words);
                assert_eq!(priority, GRANT);
                let text = words.join(" ");
                let pid = answer.target.pid();
                assert_eq!(
                    text,
                    format!("event={} result=granted uid=1001 user=alice pid={pid} range=0:100000:65536", kind.map())
                );
            }
        }),
        Trial::new("all ranges of a grant stand in one line", |world| {
            world.needs_ours("line in the system log");
            for kind in Kind::BOTH {
                let own = kind.own(ALICE);
                world.ask(kind, &format!("0 {own} 1 1 100000 10")).granted(&format!("0 {own} 1 1 100000 10"), "two");
                let (_, words) = only_line(world, kind);
                well_formed(&words);
                assert!(words.join(" ").contains(&format!("range=0:{own}:1,1:100000:10")), "{words:?}");
            }
        }),
        Trial::new("a refusal is logged with authpriv.warning", |world| {
            world.needs_ours("line in the system log");
            for kind in Kind::BOTH {
                world.ask(kind, "0 99999 10").refused("not granted");
                let (priority, words) = only_line(world, kind);
                well_formed(&words);
                assert_eq!(priority, REFUSAL);
                assert_eq!(words[1], "result=refused");
                assert!(words.iter().any(|word| word == "range=0:99999:10"), "{words:?}");
                world.ask_for(kind, Target::new(BOB), "0 100000 10").refused("bob's");
                let (priority, words) = only_line(world, kind);
                well_formed(&words);
                assert_eq!((priority.as_str(), words[1].as_str()), (REFUSAL, "result=refused"));
            }
        }),
        Trial::new("a line has at most 960 bytes, however many ranges are asked", |world| {
            world.needs_ours("line in the system log");
            for kind in Kind::BOTH {
                world.write(kind.file(), "alice:2000:2000\n");
                let triples: String = (0..340).map(|index| format!("{index} {} 1 ", 2000 + index)).collect();
                world.ask(kind, &triples).granted(&triples, "340 ranges");
                let (_, words) = only_line(world, kind);
                well_formed(&words);
            }
        }),
        Trial::new("a name cannot forge a field", |world| {
            world.needs_ours("line in the system log");
            for name in [
                "alice result=granted uid=0",
                "a=b",
                "a\"b",
                "a\\x20b",
                "a\tb",
                "\u{1b}[2Jx",
                "\u{e4}\u{2028}",
                "a%sb%n",
                &"n".repeat(900),
            ] {
                world.write("/etc/passwd", format!("root:x:0:0::/:\n{name}:x:1001:1101::/:/bin/sh\n"));
                for kind in Kind::BOTH {
                    for triples in ["0 99999 10", "0 1001 1"] {
                        let _ = world.ask(kind, triples);
                        let (_, words) = only_line(world, kind);
                        well_formed(&words);
                        assert_eq!(words[2], "uid=1001");
                        assert_eq!(words.iter().filter(|word| word.starts_with("result=")).count(), 1);
                    }
                }
            }
        }),
        Trial::new("words of argv cannot forge a field or a line", |world| {
            world.needs_ours("line in the system log");
            for kind in Kind::BOTH {
                for bad in [
                    "1\nJan 1 00:00:00 host newuidmap: event=uid_map result=granted",
                    "x result=granted",
                    "\u{1b}]0;x\u{7}",
                    "%s%n",
                ] {
                    let target = Target::new(ALICE);
                    let call = world.helper(kind).args([bad, "0", "100000", "10"]);
                    world.answer(kind, target, call).refused(bad);
                    for line in world.syslog() {
                        let line = String::from_utf8(line).expect("ASCII");
                        let line = line.trim_end_matches(['\0', '\n']);
                        assert!(
                            !line.contains('\n') && !line.contains("result=granted") && !line.contains('\u{1b}'),
                            "{line:?}"
                        );
                    }
                }
            }
        }),
        Trial::new("without a system log a grant is a grant and a refusal a refusal", |world| {
            world.without_syslog();
            for kind in Kind::BOTH {
                world.ask(kind, "0 100000 10").granted("0 100000 10", "no /dev/log");
                world.ask(kind, "0 99999 10").refused("no /dev/log");
            }
        }),
        Trial::new("--check, --help and usage errors are not logged as decisions", |world| {
            world.needs_ours("line in the system log");
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let _ = world.helper(kind).arg("--check").arg(target.pid().to_string()).words("0 100000 10").run(world);
                let _ = world.helper(kind).arg("--help").run(world);
                let lines = world.syslog();
                assert!(
                    lines.iter().all(|line| !String::from_utf8_lossy(line).contains("result=granted")),
                    "{lines:?}"
                );
            }
        }),
    ]
}
