//! cgdelegate on the hierarchies of this host, below a base of each trial's own, and on pure cgroup2 as a private mount
//! namespace shows it. Everything is removed again at a trial's end.

mod attach;
mod fixture;
mod grants;
mod hostile;
mod leftovers;
mod named;
mod quota;
mod run;
mod staging;
mod sweep;

use std::process::ExitCode;

fn main() -> ExitCode {
    if tests::UnderTest::get() == tests::UnderTest::Theirs {
        return tests::main(Vec::new());
    }
    let modules = [
        grants::trials,
        run::trials,
        attach::trials,
        staging::trials,
        quota::trials,
        sweep::trials,
        leftovers::trials,
        named::trials,
        hostile::trials,
    ];
    tests::main(modules.iter().flat_map(|trials| trials()).collect())
}
