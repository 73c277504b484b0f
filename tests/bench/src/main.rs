//! Times the helpers beside the programs they take the place of: process starts in alternating rounds (ours, theirs,
//! ours, theirs), so that whatever else the host does meets both.
//!
//! Prints tables; fails only when a call fails, never for a time.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a tool whose output is tables")]

mod cgroup;
mod fixture;
mod idmap;
mod measure;
mod nic;
mod rootfs;
mod spawn;
mod sys;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::fixture::Fixture;
use crate::measure::{Command, Linkage};

const HELP: &str = "usage: bench [--dir DIR] [--scale FACTOR] [idmap] [nic] [cgroup] [spawn] [rootfs]

Times the programs in DIR (target/dist) beside the system's own and prints tables. Without a word, everything.
Needs root: the programs must be set-user-ID root, and the fixture's /etc files are mounted in a private mount
namespace, which ends with the run. The calls themselves are an ordinary user's.

  --dir DIR       where newuidmap, newgidmap and spawn are
  --scale FACTOR  that many times the usual number of rounds (0.2 for a quick look)";

struct Options {
    dir: PathBuf,
    scale: f64,
    sections: Vec<String>,
}

fn options() -> Result<Option<Options>, String> {
    let mut options = Options { dir: "target/dist".into(), scale: 1.0, sections: Vec::new() };
    let mut words = std::env::args_os().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{} needs a value", word.display()));
        match word.to_str() {
            Some("--help" | "-h") => return Ok(None),
            Some("--dir") => options.dir = value()?.into(),
            Some("--scale") => {
                let value = value()?;
                let scale = value.to_str().and_then(|text| text.parse().ok()).filter(|scale| *scale > 0.0);
                options.scale = scale.ok_or_else(|| format!("--scale {}: a number above 0", value.display()))?;
            }
            Some(section @ ("idmap" | "nic" | "cgroup" | "spawn" | "rootfs")) => {
                options.sections.push(section.to_owned())
            }
            _ => return Err(format!("unknown word {}: see --help", word.display())),
        }
    }
    if options.sections.is_empty() {
        options.sections = ["idmap", "nic", "cgroup", "spawn", "rootfs"].map(str::to_owned).to_vec();
    }
    Ok(Some(options))
}

fn version(name: &str, words: &[&str], scratch: &Path) -> String {
    let Some(path) = measure::find(name) else { return "not installed".to_owned() };
    let output = Command::new(&path, words, &["LC_ALL=C".to_owned()]).output(scratch);
    match output {
        Ok((0, text)) => text.lines().next().unwrap_or_default().trim().to_owned(),
        _ => "version unknown".to_owned(),
    }
}

fn run(options: &Options) -> io::Result<()> {
    let dir = std::fs::canonicalize(&options.dir).map_err(|error| fixture::at(&options.dir, error))?;
    let newuidmap = dir.join("newuidmap");
    if !newuidmap.is_file() {
        return Err(fixture::at(&newuidmap, "not there: run make first"));
    }
    // Read before the tmpfs may cover it.
    let linkage = Linkage::of(&newuidmap)?;
    let fixture = Fixture::enter()?;
    let scratch = fixture.dir.join("scratch");
    let show = |name: &str, words: &[&str]| println!("{name}: {}", version(name, words, &scratch));
    println!("# Benchmarks\n");
    println!("ours: {} ({})", linkage.text(), options.dir.display());
    println!("kernel: {}", nix::sys::utsname::uname()?.release().display());
    println!("uidmap: {}", version("dpkg-query", &["-W", "-f", "${Package} ${Version}", "uidmap"], &scratch));
    if options.sections.iter().any(|section| section == "spawn") {
        show("crun", &["--version"]);
        show("lxc-start", &["--version"]);
        show("unshare", &["--version"]);
        show("bwrap", &["--version"]);
    }
    for section in &options.sections {
        match section.as_str() {
            "idmap" => idmap::run(&fixture, &dir, options.scale)?,
            "nic" => nic::run(&fixture, &dir, options.scale)?,
            "cgroup" => cgroup::run(&fixture, &dir, options.scale)?,
            "rootfs" => rootfs::run(&fixture, &dir, options.scale)?,
            _ => spawn::run(&fixture, &dir, options.scale)?,
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    sys::restore_sigpipe();
    let options = match options() {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("bench: {error}");
            return ExitCode::from(64);
        }
    };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("bench: must run as root (set-user-ID programs in a private mount namespace): sudo make bench");
        return ExitCode::from(77);
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
