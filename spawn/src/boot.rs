//! Which init a rootfs has, and what is run when no command is given.

#![forbid(unsafe_code)]

use std::ffi::CString;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::rootfs::guest::{self, Init};
use crate::rootfs::root::Root;

/// Where an init may be, in the order in which they are tried; the kernel's own, and systemd without its link.
const PLACES: [&str; 5] = ["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/etc/init", "/bin/init"];

/// The first systemd that runs on cgroup2.
const UNIFIED: u32 = 230;

/// The init of the rootfs at `path`, looked for inside it.
#[must_use]
pub fn init_of(path: &Path) -> Init {
    let Ok(fd) = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) else {
        return Init::None;
    };
    let Ok(root) = Root::new(fd) else { return Init::None };
    match guest::init_of(&root) {
        // /sbin/init of busybox's own trees is found by the name alone; the others are those of the kernel.
        Init::None if PLACES.iter().skip(3).any(|place| is_program(&root, place)) => Init::Other,
        found => found,
    }
}

fn is_program(root: &Root, path: &str) -> bool {
    // A busybox in /bin whose applets are links is a rootfs for commands: nobody has put an init into it.
    root.lstat(path.as_bytes()).is_ok_and(|found| crate::rootfs::root::kind(&found) == nix::sys::stat::SFlag::S_IFREG)
}

/// The files that are tried for an init.
#[must_use]
pub fn candidates() -> Vec<CString> {
    PLACES.iter().filter_map(|place| CString::new(*place).ok()).collect()
}

/// Whether /sys/fs/cgroup is to hold the cgroup2 hierarchy when this init starts: on a host that has no other one, for an
/// init that can use it but may not mount it by itself. systemd before 230 knows only the hierarchy `name=systemd`, which
/// it mounts, and the others want none. On any other host each mounts what it wants.
#[must_use]
pub fn wants_cgroup2(init: &Init) -> bool {
    let unified = statfs("/sys/fs/cgroup").is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
    unified && matches!(init, Init::Systemd(Some(version)) if *version >= UNIFIED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree(programs: &[(&str, &str)], links: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in programs {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        for (path, target) in links {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(target, path).unwrap();
        }
        root
    }

    #[test]
    fn an_init_is_found_inside_the_rootfs() {
        let systemd = tree(&[("usr/lib/systemd/systemd", "x")], &[("sbin/init", "/usr/lib/systemd/systemd")]);
        assert!(matches!(init_of(systemd.path()), Init::Systemd(None)));
        let upstart = tree(&[("sbin/init", "x"), ("etc/init/rc.conf", "")], &[]);
        assert_eq!(init_of(upstart.path()), Init::Upstart);
        let own = tree(&[("bin/init", "x")], &[]);
        assert_eq!(init_of(own.path()), Init::Other);
        let commands = tree(&[("bin/busybox", "BusyBox")], &[("bin/init", "busybox"), ("bin/sh", "busybox")]);
        assert_eq!(init_of(commands.path()), Init::None);
        assert_eq!(init_of(Path::new("/nonexistent")), Init::None);
        // A link that leads out of the rootfs leads to nothing in it.
        let escape = tree(&[], &[("sbin/init", "/bin/true"), ("bin/init", "../../../../bin/true")]);
        assert_eq!(init_of(escape.path()), Init::None);
    }

    #[test]
    fn only_a_systemd_that_knows_cgroup2_is_given_it() {
        for init in [Init::Systemd(Some(219)), Init::Systemd(None), Init::Upstart, Init::Sysvinit, Init::None] {
            assert!(!wants_cgroup2(&init), "{init:?}");
        }
    }
}
