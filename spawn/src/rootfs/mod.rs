//! `rootfs`: makes root file systems of images, and keeps them. No privilege: what an ordinary user may not do himself is
//! done in a user namespace of his subordinate ids ([`namespace`]).
//!
//! [`import`], [`export`], [`shift`], [`adapt`], [`check`] and [`manage`] are the commands; [`archive`], [`image`] and
//! [`compression`] read; [`unpack`], [`pack`] and [`edit`] write, below a [`root`] that they never leave.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod adapt;
pub mod archive;
pub mod check;
pub mod cli;
pub mod compression;
pub mod container;
pub mod digest;
pub mod edit;
pub mod error;
pub mod export;
pub mod guest;
pub mod image;
pub mod import;
pub mod manage;
pub mod map;
pub mod namespace;
pub mod pack;
pub mod progress;
pub mod root;
pub mod shift;
pub mod sys;
pub mod unpack;
pub mod walk;
