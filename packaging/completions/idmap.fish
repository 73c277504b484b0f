# The completions of spawn, rootfs, idmap, usernet and cgdelegate stand in one file.
source (status dirname)/spawn.fish
