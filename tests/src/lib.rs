//! Tests of the helpers against a real kernel, each trial in a world of its own.
//!
//! A trial is one function. It runs as root in a process of its own, in private mount, pid, network, IPC, UTS and
//! cgroup namespaces, with a fixture `/etc`, and starts the program under test as one of the fixture's users. The host
//! is never edited, and trials run in parallel.
//!
//! * `UNDER_TEST=ours|theirs`: the programs of this repository (the default) or the distribution's in /usr/bin.
//!   What differs on purpose stands in [`differences`].
//! * `HELPERS_DIR`: where our programs are; else the directory above that of the test program, which is
//!   `target/PROFILE`. A program that is missing there fails the trial.
//! * `KERNEL_TESTS=require`: a trial that cannot run here fails, unless `may-be-skipped.txt` has its name.

pub mod call;
pub mod differences;
pub mod harness;
pub mod sys;
pub mod target;
pub mod tracer;
pub mod world;

pub use call::{Answer, Call, Fd, Outcome};
pub use differences::{Does, expected};
pub use harness::{Trial, main};
pub use target::Target;
pub use world::{ALICE, BOB, Install, Kind, ROOT, UnderTest, User, World};
