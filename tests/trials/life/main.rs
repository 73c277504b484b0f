//! The life of a container after its start: in the background, entered, looked at, stopped, started again; and what a
//! hostile container or a hostile client of the supervisor can make of that.

mod autostart;
mod background;
#[allow(dead_code, reason = "the trials of spawn use the rest")]
#[path = "../spawn/case.rs"]
mod case;
mod enter;
mod pipeline;
mod sys;
mod top;

use std::process::ExitCode;

fn main() -> ExitCode {
    let modules = [autostart::trials, background::trials, enter::trials, pipeline::trials, top::trials];
    tests::main(modules.iter().flat_map(|trials| trials()).collect())
}
