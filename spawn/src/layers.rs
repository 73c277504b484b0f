//! A root of layers: `--ephemeral`, and `lxc.rootfs.path = overlay:LOWER:UPPER`. In the child.

#![forbid(unsafe_code)]

use core::ffi::CStr;
use std::os::fd::RawFd;

use nix::errno::Errno;

use crate::plan::Layered;
use crate::report::{Step, Try, at};
use crate::sys;

/// Where LXC has the work directory of an overlay, beside the upper one.
pub const WORK: &CStr = c"olwork";

/// Mounts the overlay in a scratch tmpfs that lies over the old root, and opens it. `trees`: the layers in the order of
/// [`crate::plan::Root::trees`], opened as the caller.
///
/// # Errors
/// When the kernel mounts no overlay here.
pub fn build<'a>(layered: &'a Layered, trees: &[RawFd]) -> Try<'a, RawFd> {
    let base = layered.lower.last().map_or(c"/", |layer| layer.path.as_c_str());
    let stop = || at(Step::Layers, base);
    let scratch = sys::new_file_system(c"tmpfs", &[(c"mode", c"0755")], sys::MOUNT_ATTR_NODEV).map_err(stop())?;
    sys::attach_at(scratch, libc::AT_FDCWD, c"/").map_err(stop())?;
    sys::change_directory_to(scratch).map_err(stop())?;
    sys::make_directory(scratch, c"root", 0o755).map_err(stop())?;
    for (layer, tree) in layered.lower.iter().chain(&layered.upper).zip(trees) {
        sys::make_directory(scratch, &layer.name, 0o755).map_err(stop())?;
        sys::attach_at(*tree, scratch, &layer.name).map_err(at(Step::Layers, &layer.path))?;
    }
    match &layered.upper {
        None => {
            for name in [c"upper", c"work"] {
                sys::make_directory(scratch, name, 0o755).map_err(stop())?;
            }
        }
        Some(upper) => {
            let place = sys::open_at(scratch, &upper.name, libc::O_PATH).map_err(at(Step::Layers, &upper.path))?;
            match sys::make_directory(place, WORK, 0o755) {
                Ok(()) | Err(Errno::EEXIST | Errno::EROFS) => {}
                Err(errno) => return Err(at(Step::Layers, &upper.path)(errno)),
            }
        }
    }
    let mount = |options| sys::mount(Some(c"overlay"), c"root", Some(c"overlay"), 0, Some(options));
    match mount(&layered.options) {
        Err(Errno::EINVAL) => mount(&layered.plain_options),
        result => result,
    }
    .map_err(stop())?;
    sys::open_at(scratch, c"root", libc::O_PATH | libc::O_DIRECTORY).map_err(stop())
}
