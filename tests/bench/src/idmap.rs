//! newuidmap and newgidmap beside the system's own.

use std::io;
use std::path::{Path, PathBuf};

use crate::fixture::{COUNT, Fixture, Target, at};
use crate::measure::{Command, Linkage, Times, find, pin, verdict};

/// Peak memory that a call of ours may take, in KiB.
const PEAK_GOAL_KIB: i64 = 4096;
/// Calls before the first that counts.
const WARM_UP: usize = 3;

struct Pair {
    ours: PathBuf,
    theirs: PathBuf,
    map: &'static str,
    words: Vec<String>,
}

impl Pair {
    /// One call of `program` on a fresh target, made before the clock starts.
    fn call<T>(&self, program: &Path, run: impl Fn(&Command) -> io::Result<(T, i32)>) -> io::Result<T> {
        let target = Target::new()?;
        let mut words = vec![target.pid().to_string()];
        words.extend(self.words.iter().cloned());
        let (value, code) = run(&Command::new(program, words, &[]))?;
        if code != 0 || !target.is_mapped(self.map) {
            return Err(at(program, format!("failed (exit code {code}), so there is nothing to measure")));
        }
        Ok(value)
    }

    fn rounds(&self, rounds: usize) -> io::Result<[Times; 2]> {
        let mut times = [Times::default(), Times::default()];
        for round in 0..rounds + WARM_UP {
            for (program, times) in [&self.ours, &self.theirs].into_iter().zip(&mut times) {
                let time = self.call(program, |command| {
                    let (time, ended) = command.time()?;
                    Ok((time, ended.code))
                })?;
                if round >= WARM_UP {
                    times.add(time);
                }
            }
        }
        Ok(times)
    }

    /// The greater of three peaks, in KiB.
    fn peak(&self, program: &Path) -> io::Result<i64> {
        let mut greatest = 0;
        for _ in 0..3 {
            let peak = self.call(program, |command| {
                let ended = command.peak()?;
                Ok((ended.peak_kib, ended.code))
            })?;
            greatest = greatest.max(peak);
        }
        Ok(greatest)
    }
}

/// Prints the table. `dir` has our programs; `scale` multiplies the numbers of rounds.
pub fn run(fixture: &Fixture, dir: &Path, scale: f64) -> io::Result<()> {
    let linkage = Linkage::of(&dir.join("newuidmap"))?;
    let ours = |name: &str| fixture.copy(&dir.join(name), "ours", 0o4755);
    // The original on the same file system, set-user-ID root too.
    let theirs = |name: &str| {
        let path = find(name).ok_or_else(|| io::Error::other(format!("no {name} on this host (apt: uidmap)")))?;
        fixture.copy(&path, "theirs", 0o4755)
    };
    let (id, first) = (fixture.id, fixture.first);
    let two = [format!("0 {id} 1"), format!("1 {first} {}", COUNT - 1)].join(" ");
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let uid = Pair { ours: ours("newuidmap")?, theirs: theirs("newuidmap")?, map: "uid_map", words: words(&two) };
    let gid = Pair {
        ours: ours("newgidmap")?,
        theirs: theirs("newgidmap")?,
        map: "gid_map",
        words: words(&format!("0 {id} 1")),
    };
    let at_ten = if linkage == Linkage::StaticMusl { 0.4 } else { 0.6 };

    println!("\n## Writing an id map\n");
    println!("newuidmap: two triples (the caller, its whole grant). newgidmap: the caller's own group. On one CPU.");
    println!("Times in ms: median (minimum); ratio: median of the ratios round by round; peak memory in KiB.\n");
    println!(
        "| call | lines of the file | rounds | ours | the system's | ratio | goal | | peak | the system's | goal | |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|---|");
    let rows = [
        ("newuidmap", &uid, 10, 201.0, Some(at_ten)),
        ("newgidmap, self", &gid, 10, 201.0, None),
        ("newuidmap", &uid, 10_000, 101.0, Some(0.2)),
        ("newuidmap", &uid, 1_000_000, 15.0, Some(0.1)),
    ];
    for (name, pair, lines, rounds, goal) in rows {
        // Ten at least: fewer say nothing.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
        let rounds = (rounds * scale).max(10.0) as usize;
        fixture.subordinate(lines)?;
        fixture.as_user(|| {
            pin()?;
            let [ours, theirs] = pair.rounds(rounds)?;
            let (peak, their_peak) = (pair.peak(&pair.ours)?, pair.peak(&pair.theirs)?);
            let ratio = ours.ratio(&theirs);
            let (goal, met) = match goal {
                Some(goal) => (goal.to_string(), verdict(ratio <= goal)),
                None => ("-".to_owned(), ""),
            };
            println!(
                "| {name} | {lines} | {rounds} | {} | {} | {ratio:.3} | {goal} | {met} | {peak} | {their_peak} | {PEAK_GOAL_KIB} | {} |",
                ours.text(),
                theirs.text(),
                verdict(peak < PEAK_GOAL_KIB),
            );
            Ok(())
        })?;
    }
    fixture.subordinate(10)
}
