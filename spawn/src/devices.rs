//! /dev inside: a tmpfs with the host's harmless nodes, a devpts of its own and the console.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;

use crate::plan::{self, Plan};
use crate::report::{Step, Try, at};
use crate::setup::{PLAIN, mount_point};
use crate::sys;

/// Mounts /dev below `root` and returns the two ends of /dev/console. A tmpfs, whatever the rootfs has there: CentOS 6
/// puts its own over a directory that is none, and then /dev/null is a regular file.
pub fn mount_dev<'a>(plan: &Plan, root: RawFd) -> Try<'a, (RawFd, RawFd)> {
    let mount = |object| at(Step::Mount, object);
    let target = mount_point(root, c"dev")?;
    let options = [(c"mode", c"0755"), (c"size", c"1m")];
    let dev = sys::new_file_system(c"tmpfs", &options, sys::MOUNT_ATTR_NOSUID).map_err(mount(c"/dev"))?;
    sys::attach(dev, target).map_err(mount(c"/dev"))?;
    // Relative to the tmpfs that was made above; nothing in it can be a link that we did not make.
    sys::change_directory_to(dev).map_err(mount(c"/dev"))?;
    for node in &plan::NODES {
        sys::make_file(dev, node.name, 0o666).map_err(at(Step::Node, node.path))?;
        sys::mount(Some(node.path), node.name, None, libc::MS_BIND, None).map_err(at(Step::Node, node.path))?;
    }
    for (name, content) in plan::LINKS {
        sys::make_link(content, dev, name).map_err(mount(name))?;
    }
    sys::make_directory(dev, c"pts", 0o755).map_err(mount(c"/dev/pts"))?;
    // With one id there is no gid 5 to give the terminals to.
    let options = if plan.single_id {
        c"newinstance,ptmxmode=0666,mode=0600"
    } else {
        c"newinstance,ptmxmode=0666,mode=0620,gid=5"
    };
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    sys::mount(Some(c"devpts"), c"pts", Some(c"devpts"), flags, Some(options)).map_err(mount(c"/dev/pts"))?;
    let ends = make_console(dev)?;
    sys::make_directory(dev, c"shm", 0o1777).map_err(mount(c"/dev/shm"))?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    sys::mount(Some(c"tmpfs"), c"shm", Some(c"tmpfs"), flags, Some(c"mode=1777")).map_err(mount(c"/dev/shm"))?;
    sys::make_directory(dev, c"mqueue", 0o755).map_err(mount(c"/dev/mqueue"))?;
    sys::mount(Some(c"mqueue"), c"mqueue", Some(c"mqueue"), PLAIN, None).map_err(mount(c"/dev/mqueue"))?;
    Ok(ends)
}

/// A pty of the container's own devpts, its slave bound on /dev/console. The slave comes from the master by
/// TIOCGPTPEER and never from a path, so nothing that lies at a path can be taken for it.
fn make_console<'a>(dev: RawFd) -> Try<'a, (RawFd, RawFd)> {
    let console = || at(Step::Console, c"/dev/console");
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK;
    let master = sys::open_at(dev, c"pts/ptmx", flags).map_err(console())?;
    let slave = sys::open_peer(master).map_err(console())?;
    sys::make_file(dev, c"console", 0o600).map_err(console())?;
    let tree = sys::clone_tree(slave, c"").map_err(console())?;
    sys::attach_at(tree, dev, c"console").map_err(console())?;
    Ok((master, slave))
}
