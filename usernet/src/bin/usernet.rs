//! usernet: gives a network namespace of the caller's a veth on a bridge that lxc-usernet(5) grants him.

#![forbid(unsafe_code)]

use helper::memory::sys::Arena;
use usernet::program::{USERNET, run};

#[global_allocator]
static MEMORY: Arena = Arena::new();

fn main() -> ! {
    run(&USERNET)
}
