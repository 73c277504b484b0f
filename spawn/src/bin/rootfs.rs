//! rootfs: from an image to a container's root file system, and back. No privilege.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    spawn::rootfs::cli::main()
}
