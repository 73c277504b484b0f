//! Seccomp filters: the one that every container has, and LXC's profiles (`lxc.seccomp.profile`).
//!
//! seccompiler makes the BPF of one architecture. On x86_64 a process may call the kernel in three ways, so each program
//! here is two of seccompiler's, one for x86_64 (whose table holds x32's numbers as well) and one for i386, with a jump
//! between them in place of their own check of the architecture, which would kill a program of the other kind.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::str::FromStr;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::config::value::Value;

/// Added to the number of a system call that is made in x32's way.
const X32: i64 = 0x4000_0000;
/// System calls that have numbers of their own in x32 (arch/x86/entry/syscalls/syscall_64.tbl, abi x32).
const X32_OWN: [(&str, i64); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];
/// AUDIT_ARCH_I386 of linux/audit.h.
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
/// Where `arch` stands in struct seccomp_data.
const ARCH_OFFSET: u32 = 4;
/// seccompiler's check of the architecture: this many instructions at the beginning.
const ARCH_CHECK: usize = 3;
const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP: u16 = 0x05;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// For which way of calling the kernel a rule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Calls {
    All,
    /// This machine's own, and x32.
    Native,
    /// i386.
    I386,
}

/// What is done with a system call.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    call: String,
    calls: Calls,
    /// All of them must hold: number of the argument, comparison, value.
    conditions: Vec<(u8, SeccompCmpOp, u64)>,
    /// Compare the low 32 bits alone, as the kernel does with this argument.
    narrow: bool,
    action: SeccompAction,
}

impl Rule {
    fn deny(call: &str, errno: u32, conditions: Vec<(u8, SeccompCmpOp, u64)>) -> Self {
        let action = SeccompAction::Errno(errno);
        Self { call: call.to_owned(), calls: Calls::All, conditions, narrow: true, action }
    }
}

/// A list of rules and what becomes of a call that none is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    default: SeccompAction,
    rules: Vec<Rule>,
}

impl Default for Profile {
    /// What LXC's common.seccomp forbids: modules, kexec, open_by_handle_at (which walks out of any root by a number) and
    /// `umount -f`; and typing into a terminal by ioctl (CVE-2016-10124, CVE-2017-5226), whose number the kernel compares
    /// in 32 bits (CVE-2019-10063).
    fn default() -> Self {
        const FORBIDDEN: [&str; 6] =
            ["kexec_load", "kexec_file_load", "open_by_handle_at", "init_module", "finit_module", "delete_module"];
        let mut rules: Vec<Rule> = FORBIDDEN.iter().map(|call| Rule::deny(call, EPERM, Vec::new())).collect();
        let force = u64::from(libc::MNT_FORCE.unsigned_abs());
        rules.push(Rule::deny("umount2", EPERM, vec![(1, SeccompCmpOp::MaskedEq(force), force)]));
        for request in [libc::TIOCSTI, libc::TIOCLINUX] {
            #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss, reason = "the type differs between libcs")]
            rules.push(Rule::deny("ioctl", EPERM, vec![(1, SeccompCmpOp::Eq, request as u64)]));
        }
        Self { default: SeccompAction::Allow, rules }
    }
}

impl Profile {
    /// Forbids to take MS_RDONLY from a mount, in all three ways that there are: a bind remount, mount_setattr(2) and
    /// open_tree_attr(2). The last two take their flags from memory, where no filter sees them, so they are as on a
    /// kernel that has them not. A bind of the mount, and a namespace's copy of it, keep the flag.
    pub fn keep_read_only(&mut self) {
        const BITS: u64 = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
        let remount = (3, SeccompCmpOp::MaskedEq(BITS), libc::MS_REMOUNT | libc::MS_BIND);
        self.rules.push(Rule::deny("mount", EPERM, vec![remount]));
        for call in ["mount_setattr", "open_tree_attr"] {
            self.rules.push(Rule::deny(call, ENOSYS, Vec::new()));
        }
    }

    /// The programs that together do what this profile and `more` say: of several answers the kernel takes the strictest.
    ///
    /// # Errors
    /// In words: a call that this machine does not have, or a program longer than the kernel takes.
    pub fn programs(&self, more: Option<&Self>) -> Value<Vec<BpfProgram>> {
        let allow = SeccompAction::Allow;
        // The rules of both by their action; deny lists with the same one share a program.
        let mut groups: Vec<(SeccompAction, Vec<&Rule>)> = Vec::new();
        for rule in self.rules.iter().chain(more.iter().flat_map(|profile| &profile.rules)) {
            if rule.action != allow {
                match groups.iter_mut().find(|(action, _)| *action == rule.action) {
                    Some((_, rules)) => rules.push(rule),
                    None => groups.push((rule.action.clone(), vec![rule])),
                }
            }
        }
        let mut programs = Vec::new();
        for (action, rules) in groups {
            programs.push(program(&rules, &allow, &action)?);
        }
        if let Some(profile) = more.filter(|profile| profile.default != allow) {
            // An allow list; what has another action in it is caught by the programs above.
            programs.push(program(&profile.rules.iter().collect::<Vec<_>>(), &profile.default, &allow)?);
        }
        Ok(programs)
    }

    /// Reads a profile of LXC's, version 2 (lxc.container.conf(5), "SECCOMP CONFIGURATION").
    ///
    /// # Errors
    /// With the number of the line.
    pub fn parse(text: &str) -> Value<Self> {
        let mut lines = text.lines().zip(1_u32..).map(|(line, number)| (line.trim(), number));
        let mut next = || lines.find(|(line, _)| !line.is_empty() && !line.starts_with('#'));
        match next() {
            Some(("2", _)) => {}
            Some(("1", _)) => return Err("version 1 has numbers for names; write it as version 2".to_owned()),
            _ => return Err("does not begin with the version, 2".to_owned()),
        }
        let Some((policy, number)) = next() else { return Err("says neither denylist nor allowlist".to_owned()) };
        let mut words = policy.split_ascii_whitespace();
        let kind = words.next().unwrap_or_default();
        let given = words.collect::<Vec<_>>().join(" ");
        let wrong = |number: u32, why: String| format!("line {number}: {why}");
        let given = if given.is_empty() { None } else { Some(action(&given).map_err(|why| wrong(number, why))?) };
        let (default, usual) = match kind {
            "denylist" | "blacklist" => (SeccompAction::Allow, given.unwrap_or(SeccompAction::KillProcess)),
            "allowlist" | "whitelist" => (given.unwrap_or(SeccompAction::KillProcess), SeccompAction::Allow),
            _ => return Err(wrong(number, format!("\"{kind}\" is neither denylist nor allowlist"))),
        };
        let mut profile = Self { default, rules: Vec::new() };
        let mut calls = Some(Calls::All);
        while let Some((line, number)) = next() {
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                calls = match name.to_ascii_lowercase().as_str() {
                    "all" => Some(Calls::All),
                    "x86" | "i386" | "i686" => cfg!(target_arch = "x86_64").then_some(Calls::I386),
                    "x86_64" | "amd64" => cfg!(target_arch = "x86_64").then_some(Calls::Native),
                    "arm64" | "aarch64" => cfg!(target_arch = "aarch64").then_some(Calls::Native),
                    _ => None,
                };
                continue;
            }
            // A rule for another machine.
            let Some(calls) = calls else { continue };
            let text = line.split(" #").next().unwrap_or(line).trim();
            if text == "reject_force_umount" {
                // EACCES, as LXC answers.
                let force = u64::from(libc::MNT_FORCE.unsigned_abs());
                profile.rules.push(Rule::deny("umount2", 13, vec![(1, SeccompCmpOp::MaskedEq(force), force)]));
                continue;
            }
            let rule = rule(text, calls, &usual).map_err(|why| wrong(number, why))?;
            if profile.default == SeccompAction::Allow && rule.action == SeccompAction::Allow {
                return Err(wrong(number, "nothing can be allowed in a deny list".to_owned()));
            }
            profile.rules.push(rule);
        }
        Ok(profile)
    }
}

/// `errno N`, `kill`, `trap`, `allow`, `log`.
fn action(text: &str) -> Value<SeccompAction> {
    let mut words = text.split_ascii_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("errno"), Some(number), None) => {
            let errno = crate::config::value::digits::<u16>(number).filter(|n| *n < 4096);
            errno.map(|errno| SeccompAction::Errno(u32::from(errno))).ok_or_else(|| format!("\"{number}\" is no errno"))
        }
        (Some("kill"), None, None) => Ok(SeccompAction::KillProcess),
        (Some("trap"), None, None) => Ok(SeccompAction::Trap),
        (Some("allow"), None, None) => Ok(SeccompAction::Allow),
        (Some("log"), None, None) => Ok(SeccompAction::Log),
        (Some("trace" | "notify"), ..) => {
            Err(format!("the action \"{text}\" needs a supervisor that answers for system calls, and there is none"))
        }
        _ => Err(format!("\"{text}\" is no action: errno N, kill, trap, log, allow")),
    }
}

/// `NAME [ACTION] [ARGUMENTS]`.
fn rule(text: &str, calls: Calls, usual: &SeccompAction) -> Value<Rule> {
    let (before, arguments) = match text.split_once('[') {
        Some((before, rest)) => (before.trim(), Some(rest)),
        None => (text, None),
    };
    let (call, rest) = before.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((before, ""));
    let action = if rest.trim().is_empty() { usual.clone() } else { action(rest.trim())? };
    let mut conditions = Vec::new();
    // Every `[index,value,comparison[,mask]]`.
    for argument in arguments.into_iter().flat_map(|rest| rest.split('[')) {
        let inner = argument.trim().trim_end_matches(',').trim().strip_suffix(']');
        conditions.push(condition(inner.ok_or_else(|| format!("\"[{argument}\" has no ]"))?)?);
    }
    if native_numbers(call).is_empty() && i386(call).is_none() {
        return Err(format!("\"{call}\" is no system call of this machine"));
    }
    Ok(Rule { call: call.to_owned(), calls, conditions, narrow: false, action })
}

fn condition(text: &str) -> Value<(u8, SeccompCmpOp, u64)> {
    let wrong = || format!("\"[{text}]\" must be [INDEX,VALUE,COMPARISON] or [INDEX,VALUE,SCMP_CMP_MASKED_EQ,MASK]");
    let number = |word: &str| {
        let word = word.trim();
        match word.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => crate::config::value::digits(word),
        }
    };
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    let (index, value, operator, mask) = match parts.as_slice() {
        [index, value] => (index, value, "SCMP_CMP_EQ", None),
        [index, value, operator] => (index, value, *operator, None),
        [index, value, operator, mask] => (index, value, *operator, Some(*mask)),
        _ => return Err(wrong()),
    };
    let index = crate::config::value::digits::<u8>(index).filter(|index| *index < 6).ok_or_else(wrong)?;
    let value = number(value).ok_or_else(wrong)?;
    let operator = match (operator, mask) {
        ("SCMP_CMP_NE" | "!=", None) => SeccompCmpOp::Ne,
        ("SCMP_CMP_LT" | "<", None) => SeccompCmpOp::Lt,
        ("SCMP_CMP_LE" | "<=", None) => SeccompCmpOp::Le,
        ("SCMP_CMP_EQ" | "==", None) => SeccompCmpOp::Eq,
        ("SCMP_CMP_GE" | ">=", None) => SeccompCmpOp::Ge,
        ("SCMP_CMP_GT" | ">", None) => SeccompCmpOp::Gt,
        ("SCMP_CMP_MASKED_EQ" | "&=", Some(mask)) => SeccompCmpOp::MaskedEq(number(mask).ok_or_else(wrong)?),
        _ => return Err(wrong()),
    };
    Ok((index, operator, value))
}

/// The numbers of a system call in this machine's own way of calling, and in x32's.
fn native_numbers(call: &str) -> Vec<i64> {
    #[cfg(target_arch = "x86_64")]
    let known = syscalls::x86_64::Sysno::from_str(call).ok().map(|number| i64::from(number as i32));
    #[cfg(target_arch = "aarch64")]
    let known = syscalls::aarch64::Sysno::from_str(call).ok().map(|number| i64::from(number as i32));
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let known: Option<i64> = None;
    let known = known.or_else(|| newer(call));
    let mut list: Vec<i64> = known.into_iter().collect();
    if cfg!(target_arch = "x86_64") {
        list.extend(known.map(|number| number | X32));
        // Kernels before 5.15 take these without the bit as well.
        let own = X32_OWN.iter().filter(|(name, _)| *name == call);
        list.extend(own.flat_map(|(_, number)| [*number, *number | X32]));
    }
    list
}

/// What came after the tables of the crate, with one number everywhere.
fn newer(call: &str) -> Option<i64> {
    (call == "open_tree_attr").then_some(467)
}

fn i386(call: &str) -> Option<i64> {
    let known = syscalls::x86::Sysno::from_str(call).ok().map(|number| i64::from(number as i32));
    known.or_else(|| newer(call)).filter(|_| cfg!(target_arch = "x86_64"))
}

/// One program: a call that a rule is about gets `matching`, every other `other`.
fn program(rules: &[&Rule], other: &SeccompAction, matching: &SeccompAction) -> Value<BpfProgram> {
    let mut native: BTreeMap<i64, Option<Vec<SeccompRule>>> = BTreeMap::new();
    let mut foreign = native.clone();
    for rule in rules {
        if rule.calls != Calls::I386 {
            for number in native_numbers(&rule.call) {
                add(&mut native, number, rule)?;
            }
        }
        if rule.calls != Calls::Native
            && let Some(number) = i386(&rule.call)
        {
            add(&mut foreign, number, rule)?;
        }
    }
    let compile = |table: BTreeMap<i64, Option<Vec<SeccompRule>>>| -> Value<BpfProgram> {
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())?;
        // No conditions: the empty list stands for any call of that number.
        let table = table.into_iter().map(|(number, rules)| (number, rules.unwrap_or_default())).collect();
        let filter = SeccompFilter::new(table, other.clone(), matching.clone(), arch).map_err(|e| e.to_string())?;
        BpfProgram::try_from(filter).map_err(|error| error.to_string())
    };
    let native = compile(native)?;
    if !cfg!(target_arch = "x86_64") {
        return Ok(native);
    }
    let (Some(native), foreign) = (native.get(ARCH_CHECK..), compile(foreign)?) else {
        return Err("seccompiler has made no program".to_owned());
    };
    let foreign = foreign.get(ARCH_CHECK..).unwrap_or_default();
    let instruction = |code, jt, jf, k| seccompiler::sock_filter { code, jt, jf, k };
    let distance = u32::try_from(native.len()).map_err(|error| error.to_string())?;
    let mut whole = vec![
        instruction(LOAD, 0, 0, ARCH_OFFSET),
        instruction(JUMP_IF_EQUAL, 0, 1, AUDIT_ARCH_I386),
        instruction(JUMP, 0, 0, distance),
    ];
    whole.extend_from_slice(native);
    whole.extend_from_slice(foreign);
    if whole.len() > 4096 {
        return Err(format!("{} instructions, and the kernel takes 4096", whole.len()));
    }
    Ok(whole)
}

/// Adds a rule to the table; `None` in it stands for any call of that number, whatever other rules say.
fn add(table: &mut BTreeMap<i64, Option<Vec<SeccompRule>>>, number: i64, rule: &Rule) -> Value<()> {
    if rule.conditions.is_empty() {
        table.insert(number, None);
        return Ok(());
    }
    let width = if rule.narrow { SeccompCmpArgLen::Dword } else { SeccompCmpArgLen::Qword };
    let conditions: Result<Vec<SeccompCondition>, _> = rule
        .conditions
        .iter()
        .map(|(index, operator, value)| SeccompCondition::new(*index, width.clone(), operator.clone(), *value))
        .collect();
    let made = conditions.and_then(SeccompRule::new).map_err(|error| error.to_string())?;
    if let Some(rules) = table.entry(number).or_insert_with(|| Some(Vec::new())) {
        rules.push(made);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
