//! /dev inside: a tmpfs with the host's harmless nodes, a devpts of its own and the console.

#![forbid(unsafe_code)]

use core::ffi::CStr;
use std::os::fd::RawFd;

use crate::plan::{self, Plan};
use crate::report::{self, Step, Try, at};
use crate::setup::{PLAIN, mount_point};
use crate::sys;

/// Mounts /dev below `root` and returns the two ends of /dev/console. A tmpfs, whatever the rootfs has there: CentOS 6
/// puts its own over a directory that is none, and then /dev/null is a regular file.
///
/// An init gets a /proc/cmdline of its own, a file of this tmpfs that has no name in it any more; the masters of further
/// terminals go to the parent.
///
/// # Errors
/// At the first thing that the kernel refuses.
pub fn mount_dev(plan: &Plan, root: RawFd, proc: RawFd, channel: RawFd) -> Try<'_, (RawFd, RawFd)> {
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
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    sys::mount(Some(c"devpts"), c"pts", Some(c"devpts"), flags, Some(&plan.devpts)).map_err(mount(c"/dev/pts"))?;
    let ends = make_terminal(dev, c"console").map_err(at(Step::Console, c"/dev/console"))?;
    for name in plan::TERMINALS.iter().take(usize::try_from(plan.ttys).unwrap_or(0)) {
        let (master, _) = make_terminal(dev, name).map_err(at(Step::Console, name))?;
        sys::send_message(channel, &[report::TTY], &[master]).map_err(at(Step::Channel, c""))?;
    }
    if plan.init {
        show_command_line(dev, proc).map_err(at(Step::Protect, c"/proc/cmdline"))?;
    }
    sys::make_directory(dev, c"shm", 0o1777).map_err(mount(c"/dev/shm"))?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    sys::mount(Some(c"tmpfs"), c"shm", Some(c"tmpfs"), flags, Some(c"mode=1777")).map_err(mount(c"/dev/shm"))?;
    sys::make_directory(dev, c"mqueue", 0o755).map_err(mount(c"/dev/mqueue"))?;
    sys::mount(Some(c"mqueue"), c"mqueue", Some(c"mqueue"), PLAIN, None).map_err(mount(c"/dev/mqueue"))?;
    Ok(ends)
}

/// A pty of the container's own devpts, its slave bound on /dev/NAME. The slave comes from the master by TIOCGPTPEER and
/// never from a path, so nothing that lies at a path can be taken for it.
fn make_terminal(dev: RawFd, name: &CStr) -> sys::Call<(RawFd, RawFd)> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK;
    let master = sys::open_at(dev, c"pts/ptmx", flags)?;
    let slave = sys::open_peer(master)?;
    sys::make_file(dev, name, 0o600)?;
    let tree = sys::clone_tree(slave, c"")?;
    sys::attach_at(tree, dev, name)?;
    Ok((master, slave))
}

fn show_command_line(dev: RawFd, proc: RawFd) -> sys::Call<()> {
    const NAME: &CStr = c".cmdline";
    sys::make_file(dev, NAME, 0o444)?;
    let file = sys::open_at(dev, NAME, libc::O_WRONLY | libc::O_NOFOLLOW)?;
    sys::write_once(file, plan::COMMAND_LINE.to_bytes())?;
    sys::close(file);
    let tree = sys::clone_tree(dev, NAME)?;
    sys::attach_at(tree, proc, c"cmdline")?;
    sys::remove_file(dev, NAME)
}
