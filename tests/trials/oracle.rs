//! Ours and the original decide the same about files and requests that neither was written for.
//!
//! Each case is a file of entries and a request, made at random; a model in a few lines of 64-bit arithmetic says
//! whether it is granted. The program under test must agree with the model, and the original beside it too.

use std::collections::BTreeSet;
use std::process::ExitCode;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tests::{ALICE, Answer, Call, Install, Kind, Target, Trial, World, sys};

/// An entry of /etc/subuid or /etc/subgid.
#[derive(Clone, Debug)]
struct Entry {
    owner: &'static str,
    start: u64,
    count: u64,
    hexadecimal: bool,
}

impl Entry {
    fn line(&self) -> String {
        if self.hexadecimal {
            format!("{}:{:#x}:{:#x}\n", self.owner, self.start, self.count)
        } else {
            format!("{}:{}:{}\n", self.owner, self.start, self.count)
        }
    }

    fn is_alices(&self) -> bool {
        ["alice", "1001", "alias"].contains(&self.owner)
    }
}

fn owner() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => Just("alice"), 2 => Just("1001"), 1 => Just("alias"), 2 => Just("bob"), 1 => Just("1002"), 1 => Just("nosuch"), 1 => Just("alic"), 1 => Just("users"), 1 => Just("root")]
}

/// Starts and counts that lie close together, so that entries touch, overlap and leave gaps of one.
fn entry() -> impl Strategy<Value = Entry> {
    let start = prop_oneof![6 => 100_000..100_060_u64, 1 => 4_294_967_280..4_294_967_295_u64, 1 => 1..30_u64];
    (owner(), start, 0..25_u64, any::<bool>()).prop_map(|(owner, start, count, hexadecimal)| Entry {
        owner,
        start,
        count: count.min((1 << 32) - 1 - start),
        hexadecimal,
    })
}

/// Upper, lower, count.
fn triple(kind: Kind) -> impl Strategy<Value = [u64; 3]> {
    let own = u64::from(kind.own(ALICE));
    let lower = prop_oneof![6 => 100_000..100_060_u64, 1 => 4_294_967_280..4_294_967_297_u64, 1 => 1..30_u64, 2 => Just(own), 1 => Just(1002_u64)];
    let count = prop_oneof![1 => Just(0_u64), 4 => Just(1_u64), 6 => 2..30_u64, 1 => 4_294_967_290..4_294_967_299_u64];
    (0..1000_u64, lower, count).prop_map(|(upper, lower, count)| [upper, lower, count])
}

/// Whether the specification grants it, id by id.
fn granted(kind: Kind, entries: &[Entry], triples: &[[u64; 3]]) -> bool {
    let mut ids = BTreeSet::new();
    for entry in entries.iter().filter(|entry| entry.is_alices()) {
        ids.extend((entry.start..entry.start + entry.count).filter(|id| *id < (1 << 32) - 1));
    }
    let (mut uppers, mut lowers) = (BTreeSet::new(), BTreeSet::new());
    for [upper, lower, count] in triples {
        let last = (1 << 32) - 1;
        if *count == 0 || *upper >= last || *lower >= last || *count > last - upper || *count > last - lower {
            return false;
        }
        let own = *count == 1 && *lower == u64::from(kind.own(ALICE));
        // No entry is longer than this, so longer requests need not be counted out.
        if !own && (*count > 10_000 || (*lower..lower + count).any(|id| !ids.contains(&id))) {
            return false;
        }
        for id in 0..*count {
            if !uppers.insert(upper + id) || !lowers.insert(lower + id) {
                return false;
            }
        }
    }
    true
}

fn words(triples: &[[u64; 3]]) -> String {
    triples.iter().flatten().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

fn agrees(kind: Kind, answer: &Answer, wanted: bool, triples: &[[u64; 3]], whose: &str) -> Result<(), TestCaseError> {
    let code = i32::from(!wanted);
    prop_assert_eq!(answer.outcome.code(), Some(code), "{}: {}", whose, answer.outcome.text());
    let mut map = if wanted { tests::call::parse(&words(triples)) } else { Vec::new() };
    if map.len() > 5 {
        map.sort_unstable();
    }
    prop_assert_eq!(answer.target.map(kind), map, "{}", whose);
    if wanted && kind == Kind::Gid {
        let own = |[_, lower, count]: &[u64; 3]| *count == 1 && *lower == u64::from(ALICE.gid);
        if triples.iter().any(|triple| !own(triple)) {
            prop_assert_eq!(answer.target.setgroups(), "allow", "{}", whose);
        }
    }
    Ok(())
}

fn random_requests(world: &mut World) {
    world.append("/etc/passwd", "alias:x:1001:1101::/:/bin/sh\n");
    let original = "/run/original";
    std::fs::create_dir(original).expect("mkdir");
    let beside = world.ours() && std::path::Path::new("/usr/bin/newuidmap").exists();
    for kind in Kind::BOTH {
        if beside {
            let path = format!("{original}/{}", kind.program());
            std::fs::write(&path, world.bytes(&format!("/usr/bin/{}", kind.program()))).expect("write");
            world.mode(&path, 0o755);
            match world.install {
                Install::Setuid => world.mode(&path, 0o4755),
                Install::FileCapabilities => {
                    sys::set_file_capabilities(path.as_ref(), &[kind.capability()]).expect("file capabilities")
                }
            }
        }
        let cases = std::env::var("ORACLE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(150);
        let mut runner =
            TestRunner::new(Config { cases, failure_persistence: None, max_shrink_iters: 300, ..Config::default() });
        let mut grants = 0;
        let aims = proptest::collection::vec(any::<(bool, prop::sample::Index)>(), 5);
        let strategy = (proptest::collection::vec(entry(), 0..8), proptest::collection::vec(triple(kind), 1..4), aims);
        let cell = std::cell::RefCell::new((&mut *world, &mut grants));
        let result = runner.run(&strategy, |(entries, mut triples, aims)| {
            let mut guard = cell.borrow_mut();
            let (world, grants) = &mut *guard;
            let hers: Vec<&Entry> = entries.iter().filter(|entry| entry.is_alices() && entry.count > 0).collect();
            for ([_, lower, count], (aim, at)) in triples.iter_mut().zip(aims) {
                // Aimed at an entry of alice's, up to one id beyond its end.
                if aim && !hers.is_empty() {
                    let entry = hers[at.index(hers.len())];
                    *lower = entry.start + *lower % entry.count;
                    *count = (*count).min(entry.start + entry.count + 1 - *lower);
                }
            }
            // Uppers one after the other most of the time, or nothing would ever be granted.
            if triples[0][0] % 4 != 0 {
                let mut next = triples[0][0];
                for triple in &mut triples {
                    triple[0] = next;
                    next += triple[2].min(1 << 20);
                }
            }
            let file: String = entries.iter().map(Entry::line).collect();
            world.write(kind.file(), file);
            let wanted = granted(kind, &entries, &triples);
            **grants += u32::from(wanted);
            let answer = world.ask(kind, &words(&triples));
            agrees(kind, &answer, wanted, &triples, "under test")?;
            if beside {
                let target = Target::new(ALICE);
                let call = Call::new(format!("{original}/{}", kind.program())).user(ALICE);
                let call = call.arg(target.pid().to_string()).words(&words(&triples));
                let answer = world.answer(kind, target, call);
                agrees(kind, &answer, wanted, &triples, "the original")?;
            }
            Ok(())
        });
        if let Err(error) = result {
            panic!("{}: {error}", kind.program());
        }
        assert!(grants * 20 > cases, "only {grants} of {cases} cases were granted: too few to mean anything");
    }
}

/// Taking an entry away never makes a refused request granted.
fn fewer_entries(world: &mut World) {
    for kind in Kind::BOTH {
        let mut runner = TestRunner::new(Config {
            cases: 60,
            failure_persistence: None,
            max_shrink_iters: 200,
            ..Config::default()
        });
        let strategy = (proptest::collection::vec(entry(), 1..7), triple(kind), any::<prop::sample::Index>());
        let cell = std::cell::RefCell::new(&mut *world);
        let result = runner.run(&strategy, |(mut entries, triple, index)| {
            let mut world = cell.borrow_mut();
            let lines = |entries: &[Entry]| entries.iter().map(Entry::line).collect::<String>();
            world.write(kind.file(), lines(&entries));
            let before = world.ask(kind, &words(&[triple])).outcome.code();
            entries.remove(index.index(entries.len()));
            world.write(kind.file(), lines(&entries));
            let after = world.ask(kind, &words(&[triple])).outcome.code();
            prop_assert!(before == Some(0) || after == Some(1), "refused with more entries, granted with fewer");
            Ok(())
        });
        if let Err(error) = result {
            panic!("{}: {error}", kind.program());
        }
    }
}

fn main() -> ExitCode {
    tests::main(vec![
        Trial::new(
            "random files and requests are decided as the model says, and as the original does",
            random_requests,
        ),
        Trial::new("removing an entry never allows more", fewer_entries),
    ])
}
