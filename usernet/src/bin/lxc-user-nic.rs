//! lxc-user-nic: gives a network namespace of the caller's a veth on a bridge that lxc-usernet(5) grants him.

#![forbid(unsafe_code)]

use helper::memory::sys::Arena;
use usernet::program::{LXC_USER_NIC, run};

#[global_allocator]
static MEMORY: Arena = Arena::new();

fn main() -> ! {
    run(&LXC_USER_NIC)
}
