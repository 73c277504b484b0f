//! `spawn`: see spawn(1).
#![cfg_attr(not(test), no_main)]

#[global_allocator]
static MEMORY: spawn::Arena = spawn::Arena;

helper::program!(spawn::main());
