//! What every privileged program of userns-helpers stands on, and newuidmap and newgidmap themselves.
//!
//! [`enter`] takes a program to a known state; [`caller`] says who called it; [`target`] holds the process it works
//! on; [`trusted`] reads the administrator's files; [`report`] speaks. [`handover`] is for a program that ends by executing the
//! caller's command. [`request`], [`policy`] and [`apply`] are the
//! three steps of the id map writers, which [`newidmap`] puts together.
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

pub mod allotment;
pub mod apply;
pub mod caller;
pub mod enter;
pub mod handoff;
pub mod handover;
pub mod memory {
    //! See [`sys`].
    pub mod sys;
}
pub mod newidmap;
pub mod policy;
pub mod range;
pub mod report;
pub mod request;
pub mod start {
    //! See [`sys`].
    pub mod sys;
}
pub mod subid;
pub mod sys;
pub mod target;
pub mod trusted;
pub mod userns;
