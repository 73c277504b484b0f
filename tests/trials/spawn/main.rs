//! spawn against a real kernel, a hostile container and a hostile fellow user. Most trials run twice: on the kernel as
//! it is, and with every system call newer than Linux 5.5 answering ENOSYS.

mod case;
mod cgroup;
#[expect(dead_code, reason = "cgdelegate's own trials use all of it")]
#[path = "../cgdelegate/fixture.rs"]
mod cgroups;
mod command;
mod config;
mod container;
mod escapes;
mod examples;
mod handoff;
mod life;
mod maps;
mod net;
mod probe;
mod sys;
mod terminal;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    if let [_, flag, words @ ..] = args.as_slice()
        && flag == probe::FLAG
    {
        return probe::main(words);
    }
    let modules = [
        cgroup::trials,
        command::trials,
        config::trials,
        container::trials,
        escapes::trials,
        examples::trials,
        handoff::trials,
        life::trials,
        maps::trials,
        net::trials,
        terminal::trials,
    ];
    tests::main(modules.iter().flat_map(|trials| trials()).collect())
}
