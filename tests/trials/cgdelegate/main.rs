//! cgdelegate on the hierarchies of this host, below a base of each trial's own, and on pure cgroup2 as a private mount
//! namespace shows it. Everything is removed again at a trial's end.
//!
//! What has gone wrong in delegated cgroups, there or here, and the trials that look for it:
//!
//! | pitfall | trials |
//! |---|---|
//! | release_agent written from a user namespace (CVE-2022-0492) | `release_agent stays root's, and no user can write it`; `root of a user namespace cannot write release_agent, by any mount that it sees or makes` |
//! | the host's agent runs as root for a user's cgroup | `a hierarchy with a foreign release agent is not delegated` |
//! | a descriptor of the opener's leaks (CVE-2021-4197) | `run hands over environment, umask, limits, dispositions, mask, directory and descriptors`; `a kernel without fsopen (before 5.2) does the same, one without named hierarchies is told what it lacks` |
//! | another's process is moved in, then killed | `a record of pid 1, of bob's, of a setuid or undumpable process, or with another start time moves nobody`; all of held.rs |
//! | limit files are handed over | `the closed list is handed over and nothing else, to the caller and his first subordinate group` |
//! | ids of memory cgroups run out | `descendants and depth are limited above and on the node, and mkdir beyond ends in EAGAIN`; v1 memory: the tests of config.rs and request.rs |
//! | too many nodes, two bases | `max+1 calls give max cgroups, and one that ends makes room`; `of 200 parallel calls exactly as many get a cgroup as the file allows, and nothing is left`; `a call from another base counts against the same quota` |
//! | escape from the limits of user.slice | `a user's cgroups are below the slice that he is in, and its limit binds them` |
//! | `domain invalid` | `pure v2: run, limits and a controller for the user to switch on`; `on pure v2 a node whose controllers are on is joined through a leaf` |
//! | path races below what a user owns | `no path of more than one component is opened below a hierarchy, and none through a link`; `a deep and a wide tree of the user's are removed whole` |
//! | names | `names that are the kernel's, systemd's or paths are usage errors` |
//! | a tmpfs in place of the cgroup mount | `a tmpfs, or another hierarchy, mounted over a hierarchy is not used` |
//! | another user's subordinate id | `an owner that is not the caller's is refused, a subordinate one is taken`; `a user namespace that another made is refused, and so is a group that is not the caller's` |
//! | pruning between a stranger's mkdir and enter | `two users who make and prune in loops never fail and leave nothing` |
//! | the holder of a lock is frozen by its caller | `a call that its caller's freezer stops while it holds the lock holds up nobody else`; `one user's stopped call keeps root's prune and list from that user alone, and for a second` |
//! | killed half-way | the four of sweep.rs |
//! | the host's cgroup tree is seen and writable inside (CVE-2023-25809) | of spawn: `no cgroup tree of the host's is mounted in a container, with a cgroup of its own or without` |
//! | verbs to set a value or to use a path (CVE-2014-1425, CVE-2015-1342, CVE-2015-1344) | `there is no command that takes a path or a value to set but those of the manual`; `prune DIRECTORY has the caller's rights alone` |
//! | a user's path is opened as root (CVE-2018-6556) | `what the caller names is looked at with his rights`; `no path of more than one component is opened below a hierarchy, and none through a link` |
//! | parser, daemon, log file (CVE-2011-1006, CVE-2011-1022, CVE-2018-14348) | `a malformed line stops everybody with file, line and reason`; the fuzz target cgdelegate; there is no daemon and no log file |
//! | cgroup_no_v1=named, `none,` forgotten (CVE-2021-4154 is the host kernel's) | `a kernel without fsopen (before 5.2) does the same, one without named hierarchies is told what it lacks`; `name=NAME is made without a mount that others see, entered, and gone at the end` |
//! | a partial removal is reported as success | `a removal that one hierarchy does not allow is no success, and says where` |

mod attach;
mod fixture;
mod grants;
mod held;
mod hostile;
mod leftovers;
mod named;
mod pitfalls;
mod quota;
mod run;

mod sweep;

use std::process::ExitCode;

fn main() -> ExitCode {
    if tests::UnderTest::get() == tests::UnderTest::Theirs {
        return tests::main(Vec::new());
    }
    let modules = [
        grants::trials,
        run::trials,
        attach::trials,
        held::trials,
        quota::trials,
        sweep::trials,
        leftovers::trials,
        named::trials,
        hostile::trials,
        pitfalls::trials,
    ];
    tests::main(modules.iter().flat_map(|trials| trials()).collect())
}
