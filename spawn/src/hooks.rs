//! `lxc.hook.*` that run on the host, as the caller, whose configuration they stand in.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::config::HookKind;
use crate::failure::{Failure, Outcome};
use crate::plan::Plan;

/// What becomes of a container that has ended: LXC_TARGET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nothing more.
    Stop,
    /// It is started again.
    Reboot,
}

/// Hooks of one kind, with all that they are told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Hooks {
    word: String,
    name: String,
    rootfs: Option<PathBuf>,
    config: Option<PathBuf>,
    /// Where each stands, and its line for /bin/sh.
    commands: Vec<(String, String)>,
}

impl Hooks {
    fn of(plan: &Plan, kind: HookKind) -> Self {
        let commands = plan.config.hooks(kind).map(|hook| (hook.origin.to_string(), hook.command.clone())).collect();
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        Self {
            word: kind.word().to_owned(),
            name: plan.name.clone(),
            rootfs: plan.root.base().map(|path| absolute(PathBuf::from(OsStr::from_bytes(path.to_bytes())))),
            config: plan.config_file.clone().map(absolute),
            commands,
        }
    }

    /// In order, each by /bin/sh with the arguments and variables of LXC (lxc.container.conf(5), "CONTAINER HOOKS").
    fn run(&self, pid: Option<i32>, target: Option<Target>) -> Outcome<()> {
        let word = &self.word;
        for (origin, line) in &self.commands {
            let wrong = |why: String| Failure::own(format!("{origin}: lxc.hook.{word} = {line}: {why}"));
            let mut command = Command::new("/bin/sh");
            // The words of the hook stand before LXC's three.
            command.args(["-c", &format!("{line} \"$@\""), "sh", &self.name, "lxc", word]);
            command.env("LXC_NAME", &self.name).env("LXC_HOOK_TYPE", word).env("LXC_HOOK_SECTION", "lxc");
            command.env("LXC_HOOK_VERSION", "0").stdin(Stdio::null());
            if let Some(path) = &self.rootfs {
                command.env("LXC_ROOTFS_PATH", path).env("LXC_ROOTFS_MOUNT", path);
            }
            if let Some(file) = &self.config {
                command.env("LXC_CONFIG_FILE", file);
            }
            if let Some(pid) = pid {
                command.env("LXC_PID", pid.to_string());
            }
            if let Some(target) = target {
                command.env("LXC_TARGET", if target == Target::Reboot { "reboot" } else { "stop" });
            }
            let status = command.status().map_err(|error| wrong(format!("cannot run /bin/sh: {error}")))?;
            if !status.success() {
                return Err(wrong(format!("has failed: {status}")));
            }
        }
        Ok(())
    }
}

/// Runs the hooks of one kind. `pid`: the container's first process, where there is one.
///
/// # Errors
/// When one of them cannot be run or fails: the others do not run then.
pub fn run(plan: &Plan, kind: HookKind, pid: Option<i32>) -> Outcome<()> {
    // Most containers have none.
    if plan.config.hooks.is_empty() {
        return Ok(());
    }
    Hooks::of(plan, kind).run(pid, None)
}

/// The hooks for the end of a container (`lxc.hook.post-stop`), for whatever process sees that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtEnd(Hooks);

impl AtEnd {
    /// Of a start.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        if plan.config.hooks.is_empty() { Self::default() } else { Self(Hooks::of(plan, HookKind::PostStop)) }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.commands.is_empty()
    }

    /// Runs them.
    ///
    /// # Errors
    /// As [`run`].
    pub fn run(&self, target: Target) -> Outcome<()> {
        self.0.run(None, Some(target))
    }
}
