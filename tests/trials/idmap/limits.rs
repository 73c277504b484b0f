//! The kernel's limits, found before anything is written.

use std::fmt::Write as _;

use tests::{Kind, Trial};

fn triples(count: u32, of: impl Fn(u32) -> (u32, u32, u32)) -> String {
    let mut text = String::new();
    for index in 0..count {
        let (upper, lower, length) = of(index);
        write!(text, "{upper} {lower} {length} ").expect("text");
    }
    text
}

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("340 extents are granted and 341 are refused with the limit", |world| {
            for kind in Kind::BOTH {
                world.write(kind.file(), "alice:2000:2000\n");
                let most = triples(340, |index| (index, 2000 + index, 1));
                world.ask(kind, &most).granted(&most, "340");
                let more = triples(341, |index| (index, 2000 + index, 1));
                world.ask(kind, &more).refused_with(world, &["341", "340"], "341");
            }
        }),
        Trial::new("a map of 4095 bytes is granted and one of 4096 is refused with its size", |world| {
            for kind in Kind::BOTH {
                // A line "100000 100000 1\n" has 16 bytes; one with an upper of five digits has 15.
                let fits =
                    triples(254, |index| (200_000 + index, 100_000 + index, 1)) + "300000 100900 1 10000 100901 1";
                world.ask(kind, &fits).granted(&fits, "4095 bytes");
                let full = triples(256, |index| (200_000 + index, 100_000 + index, 1));
                world.ask(kind, &full).refused_with(world, &["4096"], "4096 bytes");
                let more = triples(300, |index| (200_000 + index, 100_000 + index, 1));
                world.ask(kind, &more).refused_with(world, &["4800"], "4800 bytes");
            }
        }),
        Trial::new("ranges that overlap inside or outside are refused, and both are named", |world| {
            for kind in Kind::BOTH {
                for (request, first, second) in [
                    ("0 100000 10 9 100010 1", "0 100000 10", "9 100010 1"),
                    ("0 100000 10 10 100009 1", "0 100000 10", "10 100009 1"),
                    ("0 100000 1 0 100000 1", "0 100000 1", "0 100000 1"),
                    ("5 100000 1 0 100010 10", "5 100000 1", "0 100010 10"),
                    ("100 100100 1 200 100050 100", "100 100100 1", "200 100050 100"),
                    ("0 100000 10 50 100050 10 20 100020 10 25 100090 1", "20 100020 10", "25 100090 1"),
                ] {
                    let answer = world.ask(kind, request);
                    answer.refused(request);
                    if world.ours() {
                        answer.outcome.assert_one_line(kind.program(), request);
                        let text = answer.outcome.text().replace(['[', ']', '(', ')', '"', ','], " ");
                        assert!(text.contains("overlap"), "{text}");
                        for triple in [first, second] {
                            let [upper, lower, count]: [u64; 3] = triple
                                .split(' ')
                                .map(|word| word.parse().expect("number"))
                                .collect::<Vec<_>>()
                                .try_into()
                                .expect("three");
                            let forms = [
                                triple.to_owned(),
                                format!("{upper}-{} -> {lower}-{}", upper + count, lower + count),
                                triple.replace(' ', ":"),
                            ];
                            let bare = text.split_whitespace().collect::<Vec<_>>().join(" ");
                            assert!(forms.iter().any(|form| bare.contains(form)), "{triple} is not named in: {bare}");
                        }
                    }
                }
            }
        }),
        Trial::new("neighbours do not overlap", |world| {
            for kind in Kind::BOTH {
                let request = "10 100010 10 0 100000 10 20 100020 1";
                world.ask(kind, request).granted(request, "neighbours");
            }
        }),
        Trial::new("a second write is refused with what is set already, and the first stays", |world| {
            for kind in Kind::BOTH {
                let first = world.ask(kind, "0 100000 10");
                first.granted("0 100000 10", "first");
                let second = world.ask_for(kind, first.target, "0 100010 10");
                second.outcome.assert_code(1, "second");
                assert_eq!(second.target.map(kind), [[0, 100_000, 10]], "the first stays");
                if world.ours() {
                    second.outcome.assert_one_line(kind.program(), "second");
                    second.says(&[&format!("write to {} failed", kind.map()), "already", "100000"], "names the map");
                }
            }
        }),
        Trial::new("a second write of a self map does not touch setgroups", |world| {
            world.needs_ours("check before the write");
            let first = world.ask(Kind::Gid, "0 100000 10");
            first.granted("0 100000 10", "first");
            let second = world.ask_for(Kind::Gid, first.target, "0 1101 1");
            second.outcome.assert_code(1, "second");
            assert_eq!(second.target.setgroups(), "allow", "setgroups is as it was");
        }),
        Trial::new("one map of a target can be set by each helper, in either order", |world| {
            for order in [[Kind::Uid, Kind::Gid], [Kind::Gid, Kind::Uid]] {
                let first = world.ask(order[0], "0 100000 10");
                first.granted("0 100000 10", "first");
                world.ask_for(order[1], first.target, "0 100000 20").granted("0 100000 20", "the other map");
            }
        }),
    ]
}
