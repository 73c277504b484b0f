//! A hostile caller gets nothing.

use std::process::ExitCode;

fn main() -> ExitCode {
    tests::main(Vec::new())
}
