//! usernet, and lxc-user-nic, for which it can stand in: gives an ordinary user a veth pair between a bridge that the
//! administrator has granted him and a network namespace of his own.
//!
//! [`request`] reads argv, [`policy`] decides, [`apply`] does it with [`netlink`] and [`ledger`]; [`program`] puts
//! them together.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod apply;
pub mod grants;
pub mod label;
pub mod ledger;
pub mod list;
pub mod netlink;
pub mod netns;
pub mod ovs;
pub mod policy;
pub mod program;
pub mod request;
pub mod sys;

/// Exit statuses of usernet (sysexits.h); lxc-user-nic has 0 and 1 alone.
pub mod status {
    /// The command line.
    pub const USAGE: u8 = 64;
    /// A handoff record.
    pub const DATA: u8 = 65;
    /// The kernel lacks something.
    pub const UNAVAILABLE: u8 = 69;
    /// A system call failed.
    pub const SYSTEM: u8 = 71;
    /// A lock is held or a quota is full: may work later.
    pub const LATER: u8 = 75;
    /// Not granted.
    pub const NOT_PERMITTED: u8 = 77;
    /// The configuration, or the bridge that it names.
    pub const CONFIG: u8 = 78;
}
