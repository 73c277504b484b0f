//! cgdelegate: cgroups of one's own.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    cgdelegate::cgdelegate::run()
}
