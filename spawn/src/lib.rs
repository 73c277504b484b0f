//! spawn and rootfs.
pub mod rootfs;
