//! The cgroup delegator: hands cgroups below one base to ordinary users, as `/etc/cgdelegate.conf` says.
//!
//! [`request`] reads argv; [`config`] reads the file; [`policy`] decides; [`hierarchy`] knows the hierarchies of the host,
//! v1, hybrid or v2, and works below them by directory descriptors alone; [`target`] holds the process that is moved;
//! [`apply`] makes, enters and removes; [`cgdelegate`] puts them together.
#![forbid(unsafe_code)]
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
pub mod cgdelegate;
pub mod config;
pub mod directory;
pub mod hierarchy;
pub mod ledger;
pub mod leftovers;
pub mod policy;
pub mod request;
pub mod target;
