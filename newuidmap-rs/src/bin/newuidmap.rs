//! newuidmap: writes the uid_map of a process of the caller, with ids that /etc/subuid grants him.

#![cfg_attr(not(test), no_main)]

helper::program!(helper::newidmap::run(helper::range::IdKind::Uid));
