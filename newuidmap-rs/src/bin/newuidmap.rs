//! newuidmap: writes the uid_map of a process of the caller, with ids that /etc/subuid grants him.

#![forbid(unsafe_code)]

use helper::{newidmap, range::IdKind};
use std::process::ExitCode;

fn main() -> ExitCode {
    newidmap::run(IdKind::Uid)
}
