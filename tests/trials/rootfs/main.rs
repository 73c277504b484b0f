//! rootfs against a real kernel: hostile archives, every kind of image, owners, attributes, interruption, the guests
//! that it adapts, and the obstacles that it finds.

mod adapt;
mod check;
mod fixture;
mod hostile;
mod import;
mod peers;
mod shift;
mod tar;

use std::process::ExitCode;

fn main() -> ExitCode {
    let modules = [hostile::trials, import::trials, shift::trials, adapt::trials, check::trials, peers::trials];
    tests::main(modules.iter().flat_map(|trials| trials()).collect())
}
