//! Trials in libtest-mimic: each re-executes the test program with the hidden argument `--world`, which runs exactly
//! one trial in a world of its own, and tells the result by its exit status.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Completion, Failed};

use crate::world::{self, Install, World};

/// Exit status of a trial that cannot run here; its reason is the last line on standard error.
pub const IGNORED: i32 = 77;

/// Exit status of a trial of something that the original does not have: ignored with `KERNEL_TESTS=require` too.
pub const NOT_THEIRS: i32 = 78;

const WORLD: &str = "--world";

/// Which installs of the program under test a trial is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installs {
    /// Once setuid root, once with file capabilities.
    Both,
    /// The trial makes its own installs or needs none.
    Any,
}

/// One trial: a sentence that is true when it passes.
pub struct Trial {
    name: String,
    installs: Installs,
    run: Box<dyn Fn(&mut World) + Send + Sync>,
}

impl Trial {
    /// A trial that is run for each install kind.
    #[must_use]
    pub fn new(name: impl Into<String>, run: impl Fn(&mut World) + Send + Sync + 'static) -> Self {
        Self { name: name.into(), installs: Installs::Both, run: Box::new(run) }
    }

    /// A trial for which the install kind means nothing.
    #[must_use]
    pub fn once(name: impl Into<String>, run: impl Fn(&mut World) + Send + Sync + 'static) -> Self {
        Self { name: name.into(), installs: Installs::Any, run: Box::new(run) }
    }

    fn runs(&self) -> Vec<(String, Install)> {
        match self.installs {
            Installs::Any => vec![(self.name.clone(), Install::Setuid)],
            Installs::Both => [Install::Setuid, Install::FileCapabilities]
                .into_iter()
                .map(|install| (format!("{}: {}", install.name(), self.name), install))
                .collect(),
        }
    }
}

/// The `main` of a test target.
#[must_use]
pub fn main(trials: Vec<Trial>) -> ExitCode {
    let args: Vec<OsString> = env::args_os().collect();
    if let [_, flag, name] = args.as_slice()
        && flag == WORLD
    {
        return inside(&trials, &name.to_string_lossy());
    }
    let may_be_skipped =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("may-be-skipped.txt")).unwrap_or_default();
    let may_be_skipped: Vec<String> = may_be_skipped
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    let require = env::var_os("KERNEL_TESTS").is_some_and(|value| value == "require");
    let mut names = std::collections::HashSet::new();
    let tests = trials
        .iter()
        .flat_map(Trial::runs)
        .map(|(name, _)| {
            assert!(names.insert(name.clone()), "two trials are called \"{name}\"");
            let must_run = require && !may_be_skipped.contains(&name);
            libtest_mimic::Trial::ignorable_test(name.clone(), move || outside(&name, must_run))
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn outside(name: &str, must_run: bool) -> Result<Completion, Failed> {
    let output = Command::new("/proc/self/exe")
        .args([WORLD, name])
        .stdin(Stdio::null())
        .env("RUST_BACKTRACE", "0")
        .output()
        .map_err(|error| format!("cannot start the trial's process: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => Ok(Completion::Completed),
        Some(code @ (IGNORED | NOT_THEIRS)) => {
            let reason = text.lines().last().unwrap_or("no reason given").to_owned();
            if must_run && code == IGNORED {
                return Err(format!("must run with KERNEL_TESTS=require, but: {reason}").into());
            }
            Ok(Completion::ignored_with(reason))
        }
        _ => Err(format!("{}\n{text}", output.status).into()),
    }
}

fn inside(trials: &[Trial], name: &str) -> ExitCode {
    for trial in trials {
        for (run, install) in trial.runs() {
            if run == name {
                return world::enter(install, &*trial.run);
            }
        }
    }
    panic!("no trial is called \"{name}\"");
}
