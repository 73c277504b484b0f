//! newuidmap, newgidmap, getsubids and idmap against their contract. Also run against the original:
//! `UNDER_TEST=theirs`.

mod cves;
mod files;
mod getsubids;
mod interface;
mod limits;
mod lines;
mod options;
mod owner;
mod privilege;
mod procfs;
mod setgroups;
mod stage;
mod syslog;
mod upstream;

use std::process::ExitCode;

fn main() -> ExitCode {
    let modules = [
        interface::trials,
        owner::trials,
        lines::trials,
        files::trials,
        setgroups::trials,
        procfs::trials,
        privilege::trials,
        limits::trials,
        upstream::trials,
        cves::trials,
        options::trials,
        syslog::trials,
        getsubids::trials,
        stage::trials,
    ];
    tests::main(modules.iter().flat_map(|trials| trials()).collect())
}
