//! usernet: gives a network namespace of the caller's a veth on a bridge that lxc-usernet(5) grants him.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use usernet::program::{USERNET, run};

fn main() -> ExitCode {
    run(&USERNET)
}
