//! One process start as the unit: started without copying the harness (posix_spawn), waited for, timed.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sched::CpuSet;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, posix_spawn};
use nix::unistd::Pid;

use crate::sys::{self, Ended};

/// A command line, ready for exec.
#[derive(Clone, Debug)]
pub struct Command {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

fn c(text: impl AsRef<OsStr>) -> CString {
    // Words come from this program and from paths, which have no NUL byte.
    CString::new(text.as_ref().as_bytes()).unwrap_or_default()
}

impl Command {
    /// `program` (a path) with `words` and exactly the environment `env` (`NAME=value` each).
    pub fn new<W: AsRef<OsStr>>(program: &Path, words: impl IntoIterator<Item = W>, env: &[String]) -> Self {
        let mut args = vec![c(program)];
        args.extend(words.into_iter().map(c));
        Self { path: c(program), args, env: env.iter().map(c).collect() }
    }

    fn spawn(&self, input: &File, output: &File) -> io::Result<Pid> {
        let mut actions = PosixSpawnFileActions::init()?;
        for (file, number) in [(input, 0), (output, 1), (output, 2)] {
            actions.add_dup2(file.as_raw_fd(), number)?;
        }
        Ok(posix_spawn(self.path.as_c_str(), &actions, &PosixSpawnAttr::init()?, &self.args, &self.env)?)
    }

    /// Runs it once, standard descriptors on /dev/null; from before the start to after the wait.
    pub fn time(&self) -> io::Result<(Duration, Ended)> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let begin = Instant::now();
        let ended = sys::wait(self.spawn(&null, &null)?)?;
        Ok((begin.elapsed(), ended))
    }

    /// Runs it once; its exit code and what it printed on both outputs, for which `scratch` is overwritten.
    pub fn output(&self, scratch: &Path) -> io::Result<(i32, String)> {
        let ended = sys::wait(self.spawn(&File::open("/dev/null")?, &File::create(scratch)?)?)?;
        let bytes = fs::read(scratch)?;
        fs::remove_file(scratch)?;
        Ok((ended.code, String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Runs it once from a forked process, whose memory is small, for its peak memory in KiB.
    pub fn peak(&self) -> io::Result<Ended> {
        sys::wait(sys::fork(|| {
            sys::exec(&self.path, &self.args, &self.env);
            127
        })?)
    }
}

/// Binds this process, and what it starts, to one CPU: the last one that it may use.
pub fn pin() -> io::Result<()> {
    let may = nix::sched::sched_getaffinity(Pid::from_raw(0))?;
    let last = (0..CpuSet::count()).rev().find(|cpu| may.is_set(*cpu).unwrap_or(false)).unwrap_or(0);
    let mut one = CpuSet::new();
    one.set(last)?;
    Ok(nix::sched::sched_setaffinity(Pid::from_raw(0), &one)?)
}

/// Median of a non-empty list.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// Times of one program over the rounds, in microseconds.
#[derive(Clone, Debug, Default)]
pub struct Times(pub Vec<f64>);

impl Times {
    /// One more.
    pub fn add(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e6);
    }

    /// "median (min)" in milliseconds.
    pub fn text(&self) -> String {
        let min = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        format!("{:.3} ({:.3})", median(&self.0) / 1e3, min / 1e3)
    }

    /// Median of the ratios to `other`, round by round.
    pub fn ratio(&self, other: &Self) -> f64 {
        median(&self.0.iter().zip(&other.0).map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>())
    }
}

/// "met" or "MISSED".
pub fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// How a program is linked, by what its file contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linkage {
    /// It names a dynamic linker.
    Dynamic,
    /// It contains glibc's start-up code.
    StaticGlibc,
    /// Neither: what the build makes with a musl standard library.
    StaticMusl,
}

impl Linkage {
    /// Looks at the file's bytes.
    pub fn of(path: &Path) -> io::Result<Self> {
        let bytes = fs::read(path)?;
        let has = |text: &[u8]| bytes.windows(text.len()).any(|part| part == text);
        // The program header of type PT_INTERP holds this path; static glibc reads its tunables at start.
        Ok(if has(b"/ld-linux") || has(b"/ld-musl") {
            if has(b"GLIBC_TUNABLES") { Self::StaticGlibc } else { Self::Dynamic }
        } else if has(b"GLIBC_TUNABLES") {
            Self::StaticGlibc
        } else {
            Self::StaticMusl
        })
    }

    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Dynamic => "dynamic",
            Self::StaticGlibc => "static glibc",
            Self::StaticMusl => "static musl",
        }
    }
}

/// The first of the usual directories that has `name`.
pub fn find(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"]
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.is_file())
}
