//! What a command may not do: seccomp filters, capabilities, resource limits, no_new_privs. Built before the clone, taken
//! on by the child just before its exec; a process that enters the container later takes on the same.

#![forbid(unsafe_code)]

use std::ffi::CString;

use nix::errno::Errno;
use seccompiler::BpfProgram;

use crate::config::{Capabilities, Config};
use crate::failure::{Failure, Outcome};
use crate::report::{Step, Try, at};
use crate::seccomp::Profile;
use crate::sys;

/// Capabilities that an init gets none of unless the configuration says otherwise: what a user namespace grants but the
/// kernel refuses all the same. Units of systemd that would fail without are passed over where the capability is not
/// there (ConditionCapability=): modules, clocks, debugfs. As LXC's common.conf has it.
const USELESS: u64 = 1 << 33 | 1 << 32 | 1 << 25 | 1 << 16 | 1 << 17; // mac_admin mac_override sys_time sys_module sys_rawio

/// linux/personality.h: uname(2) tells of a machine of 32 bits.
const PER_LINUX32: i32 = 8;

/// One resource limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    name: CString,
    resource: u32,
    soft: u64,
    hard: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Confinement {
    filters: Vec<BpfProgram>,
    /// Taken from the bounding set, as bits.
    dropped: u64,
    limits: Vec<Limit>,
    no_new_privs: bool,
    personality32: bool,
    own_keyring: bool,
}

impl Confinement {
    /// What `config` asks for, and what every container has. `init`: its command is an init; `read_only`: some mount of it
    /// is, and must stay so.
    ///
    /// # Errors
    /// When the seccomp profile cannot be read or done.
    pub fn new(config: &Config, init: bool, read_only: bool) -> Outcome<Self> {
        let profile = match &config.seccomp {
            None => None,
            Some((path, origin)) => {
                let wrong =
                    |why: String| Failure::own(format!("{origin}: lxc.seccomp.profile = {}: {why}", path.display()));
                let text = std::fs::read_to_string(path).map_err(|error| wrong(format!("cannot read it: {error}")))?;
                Some(Profile::parse(&text).map_err(wrong)?)
            }
        };
        let mut own = Profile::default();
        if read_only {
            own.keep_read_only();
        }
        let filters = own.programs(profile.as_ref()).map_err(|why| match &config.seccomp {
            Some((path, origin)) => Failure::own(format!("{origin}: lxc.seccomp.profile = {}: {why}", path.display())),
            None => Failure::own(format!("cannot make the seccomp filter: {why}")),
        })?;
        let dropped = match config.capabilities {
            None if init => USELESS,
            None => 0,
            Some(Capabilities::Drop(bits)) => bits,
            Some(Capabilities::Keep(bits)) => !bits,
        };
        let limits = config.limits.iter().map(|(limit, origin)| {
            let name = CString::new(format!("lxc.prlimit.{} ({origin})", limit.name));
            let name = name.map_err(|error| Failure::own(error.to_string()))?;
            Ok(Limit { name, resource: limit.resource, soft: limit.soft, hard: limit.hard })
        });
        Ok(Self {
            filters,
            dropped,
            limits: limits.collect::<Outcome<_>>()?,
            no_new_privs: config.no_new_privs,
            personality32: config.personality32,
            own_keyring: !config.keeps_keyring,
        })
    }

    /// Takes it on, as root inside and before that changes to another user: all but no_new_privs, which
    /// [`Confinement::seal`] sets last.
    ///
    /// # Errors
    /// At the first thing that the kernel refuses.
    pub fn apply(&self) -> Try<'_> {
        if self.own_keyring {
            // The caller's session keyring is his, and whoever has it possesses its keys. ENOSYS: a kernel without keys.
            match sys::new_session_keyring() {
                Err(Errno::ENOSYS) => {}
                result => result.map_err(at(Step::Confine, c"session keyring"))?,
            }
        }
        if self.personality32 {
            sys::set_personality(PER_LINUX32).map_err(at(Step::Confine, c"lxc.arch"))?;
        }
        for limit in &self.limits {
            sys::set_limit(limit.resource, limit.soft, limit.hard).map_err(at(Step::Limit, &limit.name))?;
        }
        for bit in (0..64_u32).filter(|bit| self.dropped & (1 << bit) != 0) {
            match sys::drop_from_bounding_set(bit) {
                // No capability of this kernel, nor is any above it.
                Err(Errno::EINVAL) => break,
                result => result.map_err(at(Step::Confine, c"capability bounding set"))?,
            }
        }
        for filter in &self.filters {
            sys::install_filter(filter).map_err(at(Step::Confine, c"seccomp filter"))?;
        }
        Ok(())
    }

    /// no_new_privs, if it is asked for.
    ///
    /// # Errors
    /// The kernel's.
    pub fn seal<'a>(&self) -> Try<'a> {
        if self.no_new_privs {
            sys::set_no_new_privs().map_err(at(Step::Confine, c"no_new_privs"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_keeps_what_the_configuration_says_and_a_command_everything() {
        let with = |capabilities, init| {
            Confinement::new(&Config { capabilities, ..Config::default() }, init, false).unwrap().dropped
        };
        assert_eq!((with(None, false), with(None, true)), (0, USELESS));
        assert_eq!(with(Some(Capabilities::Drop(0)), true), 0);
        assert_eq!(with(Some(Capabilities::Keep(1)), false), !1);
        let names = ["mac_admin", "mac_override", "sys_time", "sys_module", "sys_rawio"];
        let bits =
            names.iter().map(|name| crate::config::value::capability(name).unwrap()).fold(0, |all, bit| all | bit);
        assert_eq!(USELESS, bits);
    }

    #[test]
    fn a_read_only_mount_brings_a_second_filter() {
        let count = |read_only| Confinement::new(&Config::default(), false, read_only).unwrap().filters.len();
        assert_eq!((count(false), count(true)), (1, 2));
    }
}
