//! `lxc.hook.*` that run on the host, as the caller, whose configuration they stand in.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use crate::config::HookKind;
use crate::failure::{Failure, Outcome};
use crate::plan::Plan;

/// Runs the hooks of one kind in order, each by /bin/sh with the arguments and variables of LXC (lxc.container.conf(5),
/// "CONTAINER HOOKS"). `pid`: the container's first process, where there is one.
///
/// # Errors
/// When one of them cannot be run or fails: the others do not run then.
pub fn run(plan: &Plan, kind: HookKind, pid: Option<i32>) -> Outcome<()> {
    for hook in plan.config.hooks(kind) {
        let word = kind.word();
        let wrong = |why: String| Failure::own(format!("{}: lxc.hook.{word} = {}: {why}", hook.origin, hook.command));
        let mut command = Command::new("/bin/sh");
        // The words of the hook stand before LXC's three.
        command.args(["-c", &format!("{} \"$@\"", hook.command), "sh", &plan.name, "lxc", word]);
        command.env("LXC_NAME", &plan.name).env("LXC_HOOK_TYPE", word).env("LXC_HOOK_SECTION", "lxc");
        command.env("LXC_HOOK_VERSION", "0").stdin(Stdio::null());
        if let Some(path) = plan.root.base() {
            let path = OsStr::from_bytes(path.to_bytes());
            command.env("LXC_ROOTFS_PATH", path).env("LXC_ROOTFS_MOUNT", path);
        }
        if let Some(file) = &plan.config_file {
            command.env("LXC_CONFIG_FILE", file);
        }
        if let Some(pid) = pid {
            command.env("LXC_PID", pid.to_string());
        }
        let status = command.status().map_err(|error| wrong(format!("cannot run /bin/sh: {error}")))?;
        if !status.success() {
            return Err(wrong(format!("has failed: {status}")));
        }
    }
    Ok(())
}
