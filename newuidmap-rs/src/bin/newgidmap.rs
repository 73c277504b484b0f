//! newgidmap: writes the gid_map of a process of the caller, with ids that /etc/subgid grants him.

#![cfg_attr(not(test), no_main)]

helper::program!(helper::newidmap::run(helper::range::IdKind::Gid));
