//! cgdelegate: cgroups of one's own.

#![cfg_attr(not(test), no_main)]

use helper::memory::sys::Arena;

#[global_allocator]
static MEMORY: Arena = Arena::new();

helper::program!(cgdelegate::cgdelegate::run());
