//! Lines of /etc/subuid and /etc/subgid: what grants and what does not.

use tests::Does::{Grants, Refuses};
use tests::{ALICE, Does, Kind, Target, Trial, User, World, expected};

/// The file's content, the request, and what the specification says for it.
struct Row {
    name: &'static str,
    content: String,
    request: &'static str,
    does: fn() -> Does,
}

const HUNDRED: &str = "0 100000 10";

fn row(name: &'static str, content: impl Into<String>, does: fn() -> Does) -> Row {
    Row { name, content: content.into(), request: HUNDRED, does }
}

fn asking(name: &'static str, content: impl Into<String>, request: &'static str, does: fn() -> Does) -> Row {
    Row { name, content: content.into(), request, does }
}

fn grants() -> Does {
    Grants
}

fn refuses() -> Does {
    Refuses
}

fn rows() -> Vec<Row> {
    let long = |length: usize| {
        let rest = "100000:65536";
        format!("alice:{}{rest}\n", " ".repeat(length - "alice:".len() - rest.len()))
    };
    vec![
        row("an entry by name grants", "alice:100000:65536\n", grants),
        row("an entry by uid grants", "1001:100000:65536\n", grants),
        row("an owner with leading zeros grants nothing", "01001:100000:65536\n", refuses),
        row("an owner with a leading blank before its digits grants nothing", " 1001:100000:65536\n", refuses),
        row("an owner with a blank and a plus sign grants nothing", " +1001:100000:65536\n", refuses),
        row("an owner with a plus sign grants nothing", "+1001:100000:65536\n", refuses),
        row("a hexadecimal owner grants nothing", "0x3e9:100000:65536\n", refuses),
        row("an owner of 2^32 and the uid grants nothing", "4294968297:100000:65536\n", refuses),
        row("a name with a leading blank grants nothing", " alice:100000:65536\n", refuses),
        row("a name with a trailing blank grants nothing", "alice :100000:65536\n", refuses),
        row("a name in capitals grants nothing", "Alice:100000:65536\n", refuses),
        row("a beginning of the name grants nothing", "alic:100000:65536\n", refuses),
        row("a longer name grants nothing", "alicex:100000:65536\n", refuses),
        row("a comment grants nothing", "#alice:100000:65536\n# alice:100000:65536\n", refuses),
        row("a trailing blank is dropped", "alice:100000:65536 \n", || expected("trailing blanks")),
        row("a trailing tab is dropped", "alice:100000:65536\t\n", || expected("trailing blanks")),
        row("trailing blanks without a final newline are dropped", "alice:100000:65536 \t ", || {
            expected("trailing blanks")
        }),
        row("a carriage return is dropped", "bob:1:1\r\nalice:100000:65536\r\n", || expected("carriage return")),
        row("a text behind the count grants nothing", "alice:100000:65536 # alice\n", refuses),
        row("blanks before the numbers are accepted", "alice: 100000: 65536\n", grants),
        row("a plus sign before the numbers is accepted", "alice:+100000:+65536\n", grants),
        row("hexadecimal numbers are accepted", "alice:0x186a0:0x10000\n", grants),
        row("an octal start is ignored at its octal value", "alice:0303240:65536\n", || expected("octal start")),
        row("an octal start is ignored at its decimal value", "alice:0100000:65536\n", refuses),
        row("an octal count is ignored", "alice:100000:0200000\n", || expected("octal start")),
        row("an empty fourth field grants nothing", "alice:100000:65536:\n", || expected("fourth field")),
        row("a fourth field grants nothing", "alice:100000:65536:foo\n", || expected("fourth field")),
        row("a name alone grants nothing", "alice\n", refuses),
        row("a name and a colon grant nothing", "alice:\n", refuses),
        row("two fields grant nothing", "alice:100000\n", refuses),
        row("an empty count grants nothing", "alice:100000:\n", refuses),
        row("an empty start grants nothing", "alice::65536\n", refuses),
        row("an empty owner grants nothing", ":100000:65536\n", refuses),
        row("a start that is no number grants nothing", "alice:x:65536\n", refuses),
        row("a start with trailing letters grants nothing", "alice:100000a:65536\n", refuses),
        row("a count with trailing letters grants nothing", "alice:100000:65536a\n", refuses),
        row("a start with a trailing blank grants nothing", "alice:100000 :65536\n", refuses),
        row("a NIS name with a plus sign grants nothing", "+alice:100000:65536\n", refuses),
        row("a NIS name with a minus sign grants nothing", "-alice:100000:65536\n", refuses),
        row("blank lines are skipped", "\n\n   \n\nalice:100000:65536\n", grants),
        row("a last line without newline grants", "bob:1:1\nalice:100000:65536", grants),
        row("an empty file grants nothing", "", refuses),
        row("a file of one newline grants nothing", "\n", refuses),
        row("an entry of 1023 bytes grants", long(1023), grants),
        row("an entry of 1024 bytes grants nothing", long(1024), refuses),
        row("an entry of 1025 bytes grants nothing", long(1025), refuses),
        row("an entry of 5000 bytes grants nothing", long(5000), refuses),
        row("a line of 1 MB is skipped", format!("{}\nalice:100000:65536\n", "x".repeat(1 << 20)), grants),
        row(
            "the end of a line of 1 MB is no line of its own",
            format!("{}alice:100000:65536\n", "x".repeat(1 << 20)),
            refuses,
        ),
        row(
            "the end of a line of 1 MB and a comment sign is no line of its own",
            format!("#{}\ralice:100000:65536\n", "x".repeat(70_000)),
            refuses,
        ),
        row("count 0 grants nothing", "alice:100000:0\n", refuses),
        asking("count -1 grants nothing", "alice:1:-1\n", "0 1 5", || expected("count -1")),
        asking("count 2^64-1 grants nothing", "alice:1:18446744073709551615\n", "0 1 5", || {
            expected("count 18446744073709551615")
        }),
        asking("count 2^32 grants nothing", "alice:1:4294967296\n", "0 1 5", || expected("count 4294967296")),
        row("a count beyond 2^64 grants nothing", "alice:100000:99999999999999999999999\n", refuses),
        row("a start beyond 2^64 grants nothing", "alice:18446744073709651616:65536\n", refuses),
        row("a start of 2^32 and more grants nothing", "alice:4295067296:65536\n", refuses),
        row("a negative start grants nothing", "alice:-1:200000\n", refuses),
        asking("4294967294 is the last id that can be granted", "alice:4294967294:2\n", "0 4294967294 1", grants),
        asking("4294967295 is never granted", "alice:4294967294:2\nalice:4294967295:1\n", "0 4294967295 1", refuses),
        row("an owner that passwd does not know is skipped", "nosuch:100000:65536\nalice:100000:65536\n", grants),
        row("an owner that passwd does not know grants nothing", "nosuch:100000:65536\n", refuses),
        row(
            "a bad line costs only itself",
            "alice:100000\n:::\nalice:x:y\nalice:100000:5\n\u{1}\u{2}\nalice:100005:5\n",
            grants,
        ),
        row("bytes that are not UTF-8 cost only their line", "\u{e9}\u{7f}:1:1\nalice:100000:65536\n", grants),
        row("adjacent entries are granted as one range", "alice:100000:5\nalice:100005:5\n", grants),
        row("adjacent entries in reverse order are granted as one range", "alice:100005:5\nalice:100000:5\n", grants),
        row("overlapping entries are granted as one range", "alice:100003:7\nalice:100000:6\nalice:100002:2\n", grants),
        row(
            "entries by name and by uid are granted as one range",
            "1001:100005:5\nbob:100000:65536\nalice:100000:5\n",
            grants,
        ),
        row("one missing id between two entries refuses the range", "alice:100000:5\nalice:100006:5\n", refuses),
        row("one missing id at the start refuses the range", "alice:100001:65536\n", refuses),
        row("one missing id at the end refuses the range", "alice:100000:9\n", refuses),
        asking("a range may lie anywhere inside an entry", "alice:100000:65536\n", "0 133333 777", grants),
        row(
            "ten single ids make a range",
            (0..10).rev().map(|id| format!("alice:{}:1\n", 100_000 + id)).collect::<String>(),
            grants,
        ),
        row("the same range may be granted to several users", "bob:100000:65536\nalice:100000:65536\n", grants),
        row("a group name grants nothing", "users:100000:65536\n", refuses),
        row("a gid grants nothing", "1101:100000:65536\n1150:100000:65536\n", refuses),
    ]
}

/// Entries in the reverse order that overlap in a way which one pass over the file has to put together again.
fn shuffled(world: &mut World) {
    let mut seed = 7_u32;
    for kind in Kind::BOTH {
        for _ in 0..12 {
            let mut lines: Vec<String> =
                (0..40).map(|step| format!("alice:{}:{}\n", 100_000 + step * 25, 25 + step % 3)).collect();
            for index in (1..lines.len()).rev() {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                lines.swap(index, seed as usize % (index + 1));
            }
            world.write(kind.file(), lines.concat());
            world.ask(kind, "0 100000 1000").granted("0 100000 1000", "40 entries in any order");
            lines.remove(20);
            let gap: String = lines.concat();
            world.write(kind.file(), gap);
            world.ask(kind, "0 100000 1000").refused("39 of the 40 entries");
        }
    }
}

pub fn trials() -> Vec<Trial> {
    let mut all: Vec<Trial> = rows()
        .into_iter()
        .map(|row| {
            Trial::new(row.name, move |world| {
                for kind in Kind::BOTH {
                    world.write(kind.file(), &row.content);
                    world.ask(kind, row.request).did((row.does)(), row.request, kind.file());
                }
            })
        })
        .collect();
    all.extend([
        Trial::new("entries in any order are put together, and one missing among forty refuses", shuffled),
        Trial::new("a name with - . _ @ \\ $, a blank or letters beyond ASCII grants", |world| {
            for name in ["a-l", "a.l", "a_l", "a@l", "a\\l", "al$", "a l", "\u{e4}\u{f6}", "A1"] {
                world.write("/etc/passwd", format!("{name}:x:1001:1101::/:/bin/sh\n"));
                for kind in Kind::BOTH {
                    world.write(kind.file(), format!("{name}:100000:65536\n"));
                    world.ask(kind, HUNDRED).granted(HUNDRED, name);
                }
            }
        }),
        Trial::new("a field of digits is a uid, also when a user has that name", |world| {
            const DIGITS: User = User { name: "1001", uid: 2004, gid: 2104 };
            world.append("/etc/passwd", "1001:x:2004:2104::/:/bin/sh\n");
            for kind in Kind::BOTH {
                world.write(kind.file(), "1001:100000:65536\n");
                world.ask(kind, HUNDRED).granted(HUNDRED, "uid 1001");
                let target = Target::new(DIGITS);
                let call = world.helper(kind).user(DIGITS).arg(target.pid().to_string()).words(HUNDRED);
                world.answer(kind, target, call).did(
                    expected("name of digits owns by its uid"),
                    HUNDRED,
                    "the user called 1001",
                );
            }
        }),
        Trial::new("a NUL byte costs only its line", |world| {
            world.needs_ours("promise: 4.13 loses the rest of the line or exits");
            for kind in Kind::BOTH {
                world.write(kind.file(), "alice:100000:65536\0\nalice\0:200000:10\n\0\nalice:400000:10\n");
                world.ask(kind, "0 400000 10").granted("0 400000 10", "the line after it");
                world.ask(kind, HUNDRED).refused("behind the count");
                world.ask(kind, "0 200000 10").refused("in the name");
            }
        }),
        Trial::new("the owner's own line does not help another user", |world| {
            for kind in Kind::BOTH {
                let target = Target::new(tests::BOB);
                let call = world.helper(kind).user(tests::BOB).arg(target.pid().to_string()).words(HUNDRED);
                world.answer(kind, target, call).refused("alice's range asked by bob");
            }
        }),
        Trial::new("a file of subgids does not grant uids, nor the other way round", |world| {
            world.write("/etc/subuid", "alice:100000:10\n");
            world.write("/etc/subgid", "alice:200000:10\n");
            world.ask(Kind::Uid, "0 200000 10").refused("of /etc/subgid");
            world.ask(Kind::Gid, "0 100000 10").refused("of /etc/subuid");
        }),
        Trial::new("self mapping and granted ranges mix freely", |world| {
            for kind in Kind::BOTH {
                let own = kind.own(ALICE);
                for triples in [
                    format!("0 {own} 1 1 100000 65536"),
                    format!("0 100000 1 1001 {own} 1"),
                    format!("1 100000 10 0 {own} 1 20 100020 1"),
                    format!("{own} {own} 1"),
                ] {
                    world.ask(kind, &triples).granted(&triples, "mixed");
                }
                world.ask(kind, &format!("0 {own} 2")).refused("two ids from the own one on");
                world.ask(kind, &format!("0 {} 2", own - 1)).refused("two ids up to the own one");
                world.ask(kind, "0 1002 1").refused("bob's uid");
                world.ask(kind, "0 1102 1").refused("bob's gid");
            }
            world.ask(Kind::Uid, &format!("0 {} 1", ALICE.gid)).refused("the gid as uid");
            world.ask(Kind::Gid, &format!("0 {} 1", ALICE.uid)).refused("the uid as gid");
        }),
    ]);
    all
}
