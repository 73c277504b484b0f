//! lxc-user-nic: gives a network namespace of the caller's a veth on a bridge that lxc-usernet(5) grants him.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use usernet::program::{LXC_USER_NIC, run};

fn main() -> ExitCode {
    run(&LXC_USER_NIC)
}
