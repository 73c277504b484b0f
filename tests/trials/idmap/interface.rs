//! Arguments, exit codes, texts.

use tests::{Kind, Trial};

pub fn trials() -> Vec<Trial> {
    vec![Trial::new("a granted range is written", |world| {
        for kind in Kind::BOTH {
            world.ask(kind, "0 100000 65536").granted("0 100000 65536", "whole range");
            world.ask(kind, "0 100000 65537").refused_with(world, &["not allowed"], "one too many");
        }
    })]
}
