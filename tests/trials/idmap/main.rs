//! newuidmap, newgidmap, getsubids and idmap against their contract. Also run against the original:
//! `UNDER_TEST=theirs`.

mod interface;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut trials = Vec::new();
    trials.extend(interface::trials());
    tests::main(trials)
}
