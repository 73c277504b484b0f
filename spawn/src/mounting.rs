//! The mounts beside those that every container has: bind mounts and file systems of the command line and of the
//! configuration. In the child; every path of the rootfs is resolved to a descriptor below its root, and mounted on that.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;

use nix::errno::Errno;

use crate::plan::{Create, Mounting, Source};
use crate::report::{Step, Try, at};
use crate::resolve::open_in_root;
use crate::setup::{change_attributes, remount};
use crate::sys;

/// Opens what is bound from the host, while this process still is the caller. -1: nothing to open, or optional and not
/// there.
///
/// # Errors
/// When the caller cannot reach it.
pub fn open_source(mounting: &Mounting) -> Try<'_, RawFd> {
    let Source::Bind { path, recursive } = &mounting.source else { return Ok(-1) };
    match sys::clone_mounts(libc::AT_FDCWD, path, *recursive) {
        Err(_) if mounting.optional => Ok(-1),
        result => result.map_err(at(Step::OpenBind, path)),
    }
}

/// Mounts it. One that is optional and fails is passed over.
///
/// # Errors
/// With the mount point.
pub fn attach(root: RawFd, mounting: &Mounting, source: RawFd) -> Try<'_> {
    match attach_all(root, mounting, source) {
        Err(_) if mounting.optional => Ok(()),
        result => result,
    }
}

fn attach_all(root: RawFd, mounting: &Mounting, source: RawFd) -> Try<'_> {
    let Some(whole) = mounting.target.last() else {
        return Err(at(Step::Bind, c"/")(Errno::EINVAL));
    };
    let stop = || at(Step::Bind, &whole.prefix);
    let (tree, recursive) = match &mounting.source {
        Source::Bind { .. } if source < 0 => return Err(stop()(Errno::ENOENT)),
        Source::Bind { recursive, .. } => (source, *recursive),
        Source::Inside { path, recursive } => {
            let found = open_in_root(root, path, 0).map_err(at(Step::OpenBind, path))?;
            (sys::clone_mounts(found, c"", *recursive).map_err(at(Step::OpenBind, path))?, *recursive)
        }
        Source::FileSystem { kind, options } => {
            let options = options.iter().map(|(key, value)| (key.as_c_str(), value.as_deref()));
            (sys::new_file_system_of(kind, options, mounting.attributes).map_err(stop())?, false)
        }
    };
    let directory = sys::file_type(tree).map_err(stop())? == libc::S_IFDIR;
    let target = mount_point(root, mounting, directory)?;
    let bound = !matches!(mounting.source, Source::FileSystem { .. });
    let late = bound
        && mounting.attributes != 0
        && !change_attributes(tree, mounting.attributes, recursive).map_err(at(Step::ReadOnly, &whole.prefix))?;
    sys::attach(tree, target).map_err(stop())?;
    if late {
        remount(tree, mounting.attributes).map_err(at(Step::ReadOnly, &whole.prefix))?;
    }
    if mounting.propagation != 0 && directory {
        sys::change_directory_to(tree).map_err(stop())?;
        sys::mount(None, c".", None, mounting.propagation, None).map_err(stop())?;
    }
    Ok(())
}

/// The mount point, made with all directories above it where that is asked for.
fn mount_point(root: RawFd, mounting: &Mounting, directory: bool) -> Try<'_, RawFd> {
    let Some(whole) = mounting.target.last() else {
        return Err(at(Step::Bind, c"/")(Errno::EINVAL));
    };
    let target = open_in_root(root, &whole.prefix, 0);
    let directory = match mounting.create {
        Create::LikeSource => directory,
        Create::Directory => true,
        Create::File => false,
        Create::No => return target.map_err(at(Step::MountPoint, &whole.prefix)),
    };
    if target != Err(Errno::ENOENT) {
        return target.map_err(at(Step::MountPoint, &whole.prefix));
    }
    let mut parent = root;
    for step in &mounting.target {
        let stop = || at(Step::MountPoint, &step.prefix);
        let mut found = open_in_root(root, &step.prefix, 0);
        if found == Err(Errno::ENOENT) {
            if core::ptr::eq(step, whole) && !directory {
                sys::make_file(parent, &step.last, 0o644).map_err(stop())?;
            } else {
                sys::make_directory(parent, &step.last, 0o755).map_err(stop())?;
            }
            found = open_in_root(root, &step.prefix, 0);
        }
        parent = found.map_err(stop())?;
    }
    Ok(parent)
}
