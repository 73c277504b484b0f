//! The values of LXC's keys, each read by itself. Nothing here asks the system.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use crate::sys;

/// Why a value is refused, in words.
pub type Value<T> = Result<T, String>;

/// glibc's SIGRTMIN and SIGRTMAX. musl's SIGRTMIN is another number, and what an init means by the name is not.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Signals by name, without SIG.
const SIGNALS: [(&str, i32); 33] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGIOT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGPOLL),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// A signal: a number from 1 to 64, a name with or without SIG, `SIGRTMIN+N` or `SIGRTMAX-N`.
///
/// # Errors
/// It is none of these.
pub fn signal(text: &str) -> Value<i32> {
    let wrong = || format!("\"{text}\" is no signal: a number, a name such as SIGPWR, SIGRTMIN+3 or SIGRTMAX-2");
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str| digits::<i32>(rest).filter(|n| *n <= RTMAX - RTMIN);
    let number = if let Some(number) = digits::<i32>(name) {
        Some(number)
    } else if let Some(rest) = name.strip_prefix("RTMIN") {
        let plus = if rest.is_empty() { Some(0) } else { rest.strip_prefix('+').and_then(offset) };
        plus.map(|n| RTMIN.saturating_add(n))
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        let minus = if rest.is_empty() { Some(0) } else { rest.strip_prefix('-').and_then(offset) };
        minus.map(|n| RTMAX.saturating_sub(n))
    } else {
        SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
    };
    number.filter(|number| (1..=RTMAX).contains(number)).ok_or_else(wrong)
}

/// Decimal digits and nothing else: no sign, no blank.
pub fn digits<T: core::str::FromStr>(text: &str) -> Option<T> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// A number.
///
/// # Errors
/// It is none, or too large.
pub fn number<T: core::str::FromStr>(text: &str) -> Value<T> {
    digits(text).ok_or_else(|| format!("\"{text}\" is no number, or too large"))
}

/// An id; 4294967295 is none.
///
/// # Errors
/// It is no id.
pub fn id(text: &str) -> Value<u32> {
    digits(text).filter(|id| *id != u32::MAX).ok_or_else(|| format!("\"{text}\" is no id"))
}

/// 0 or 1.
///
/// # Errors
/// It is something else.
pub fn switch(text: &str) -> Value<bool> {
    match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(format!("\"{text}\" must be 0 or 1")),
    }
}

/// Bytes: a number with nothing, KB, MB or GB after it, of 1024 each. `auto` is LXC's 128 KB.
///
/// # Errors
/// It is something else, or more than an exabyte.
pub fn size(text: &str) -> Value<u64> {
    if text == "auto" {
        return Ok(128 << 10);
    }
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => Some(1_u64),
        "K" | "KB" => Some(1 << 10),
        "M" | "MB" => Some(1 << 20),
        "G" | "GB" => Some(1 << 30),
        _ => None,
    };
    let bytes = digits::<u64>(number).zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    bytes
        .filter(|bytes| *bytes <= 1 << 60)
        .ok_or_else(|| format!("\"{text}\" is no size: as in 65536, 64KB, 1MB, auto"))
}

/// Seconds.
///
/// # Errors
/// No number of at most a million.
pub fn seconds(text: &str) -> Value<Duration> {
    number::<u32>(text).and_then(|seconds| match seconds {
        0..=1_000_000 => Ok(Duration::from_secs(u64::from(seconds))),
        _ => Err(format!("\"{text}\" is more than a million seconds")),
    })
}

/// An absolute path.
///
/// # Errors
/// It does not begin with a slash.
pub fn path(text: &str) -> Value<PathBuf> {
    if text.starts_with('/') { Ok(PathBuf::from(text)) } else { Err(format!("\"{text}\" must be an absolute path")) }
}

/// Words separated by blanks; what stands in single or double quotes is one, and a backslash outside of quotes takes
/// the next character as it is.
///
/// # Errors
/// A quote is not closed.
pub fn words(text: &str) -> Value<Vec<String>> {
    let mut list = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '\\') => word.get_or_insert_default().extend(chars.next()),
            (None, c) if c.is_ascii_whitespace() => list.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    list.extend(word);
    Ok(list)
}

/// The capabilities of capabilities(7) by name, in the order of their numbers.
const CAPABILITIES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// The bit of a capability: its name without CAP_, or its number.
///
/// # Errors
/// There is none of that name.
pub fn capability(text: &str) -> Value<u64> {
    let lower = text.to_ascii_lowercase();
    let name = lower.strip_prefix("cap_").unwrap_or(&lower);
    let number = CAPABILITIES.iter().position(|known| *known == name).or_else(|| digits(name).filter(|n| *n < 64));
    number.map(|number| 1_u64 << number).ok_or_else(|| format!("\"{text}\" is no capability (capabilities(7))"))
}

/// The resources of prlimit(2), in the order of their numbers on x86 and ARM.
const RESOURCES: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

/// A resource limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Its name: `nofile`.
    pub name: String,
    /// Its number, for prlimit(2).
    pub resource: u32,
    /// Soft limit; `u64::MAX` is none.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is none.
    pub hard: u64,
}

/// `lxc.prlimit.NAME = SOFT[:HARD]`, each a number or `unlimited`.
///
/// # Errors
/// There is no such limit, or no such number, or the soft one is above the hard one.
pub fn limit(name: &str, text: &str) -> Value<Limit> {
    let resource = RESOURCES.iter().position(|known| *known == name);
    let resource = resource.and_then(|number| u32::try_from(number).ok());
    let resource = resource.ok_or_else(|| format!("\"{name}\" is no limit: {}", RESOURCES.join(" ")))?;
    let one = |word: &str| match word.trim() {
        "unlimited" => Ok(u64::MAX),
        word => number::<u64>(word),
    };
    let (soft, hard) = match text.split_once(':') {
        Some((soft, hard)) => (one(soft)?, one(hard)?),
        None => (one(text)?, one(text)?),
    };
    if soft > hard {
        return Err(format!("the soft limit of \"{text}\" is above the hard one"));
    }
    Ok(Limit { name: name.to_owned(), resource, soft, hard })
}

/// Whether a mount point is made that is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Create {
    /// No.
    #[default]
    No,
    /// As a directory.
    Directory,
    /// As an empty file.
    File,
}

/// A line of `lxc.mount.entry` or of an fstab (fstab(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// The first field.
    pub source: String,
    /// The second; below the root of the container, with or without a slash first.
    pub target: String,
    /// The file system; `None` for a bind mount.
    pub kind: Option<String>,
    /// A bind mount with all that is mounted below its source.
    pub recursive: bool,
    /// `create=`.
    pub create: Create,
    /// A mount that fails is passed over.
    pub optional: bool,
    /// The source of a bind lies in the container.
    pub relative: bool,
    /// MOUNT_ATTR_ bits.
    pub attributes: u32,
    /// MS_PRIVATE, MS_SLAVE, MS_SHARED or MS_UNBINDABLE, with MS_REC; 0: as it is.
    pub propagation: u64,
    /// The options of the file system itself.
    pub options: Vec<(String, Option<String>)>,
}

/// One line of six fields, of which the last two may be missing. Octal escapes stand for blanks (fstab(5)).
///
/// # Errors
/// A field is missing, or an option is one that cannot be honoured.
pub fn mount(line: &str) -> Value<Mount> {
    let fields: Vec<String> = line.split_ascii_whitespace().map(unescaped).collect();
    let (source, target, kind, options) = match fields.as_slice() {
        [source, target, kind] => (source, target, kind, "defaults"),
        [source, target, kind, options]
        | [source, target, kind, options, _]
        | [source, target, kind, options, _, _] => (source, target, kind, options.as_str()),
        _ => return Err("must be SOURCE TARGET TYPE OPTIONS 0 0 (fstab(5))".to_owned()),
    };
    let mut mount = Mount { source: source.clone(), target: target.clone(), ..Mount::default() };
    if target.split('/').any(|part| part == "..") {
        return Err(format!("the target \"{target}\" must hold no `..`"));
    }
    let mut bind = matches!(kind.as_str(), "none" | "bind" | "auto" | "");
    for option in options.split(',').filter(|option| !option.is_empty()) {
        bind |= mount.take(option)?;
    }
    if !bind {
        mount.kind = Some(kind.clone());
    }
    if mount.relative && !bind {
        return Err("`relative` is for bind mounts".to_owned());
    }
    if bind && !mount.options.is_empty() {
        let names: Vec<&str> = mount.options.iter().map(|(key, _)| key.as_str()).collect();
        return Err(format!("a bind mount has no options of its own: {}", names.join(",")));
    }
    if bind && !mount.relative && !source.starts_with('/') {
        return Err(format!("the source \"{source}\" must be an absolute path, or the options must hold `relative`"));
    }
    Ok(mount)
}

impl Mount {
    /// Takes one option; whether it makes the mount a bind mount.
    fn take(&mut self, option: &str) -> Value<bool> {
        let refused = |why: &str| Err(format!("the option \"{option}\" cannot be honoured: {why}"));
        match option {
            "defaults" | "rw" | "suid" | "dev" | "exec" | "atime" | "diratime" | "relatime" | "async" | "auto"
            | "noauto" | "nouser" | "nofail" => {}
            "bind" => return Ok(true),
            "rbind" => {
                self.recursive = true;
                return Ok(true);
            }
            "ro" => self.attributes |= sys::MOUNT_ATTR_RDONLY,
            "nosuid" => self.attributes |= sys::MOUNT_ATTR_NOSUID,
            "nodev" => self.attributes |= sys::MOUNT_ATTR_NODEV,
            "noexec" => self.attributes |= sys::MOUNT_ATTR_NOEXEC,
            "noatime" => self.attributes |= sys::MOUNT_ATTR_NOATIME,
            "nodiratime" => self.attributes |= sys::MOUNT_ATTR_NODIRATIME,
            "strictatime" => self.attributes |= sys::MOUNT_ATTR_STRICTATIME,
            "private" => self.propagation = libc::MS_PRIVATE,
            "rprivate" => self.propagation = libc::MS_PRIVATE | libc::MS_REC,
            "slave" => self.propagation = libc::MS_SLAVE,
            "rslave" => self.propagation = libc::MS_SLAVE | libc::MS_REC,
            "shared" => self.propagation = libc::MS_SHARED,
            "rshared" => self.propagation = libc::MS_SHARED | libc::MS_REC,
            "unbindable" => self.propagation = libc::MS_UNBINDABLE,
            "runbindable" => self.propagation = libc::MS_UNBINDABLE | libc::MS_REC,
            "optional" => self.optional = true,
            "relative" => self.relative = true,
            "create=dir" => self.create = Create::Directory,
            "create=file" => self.create = Create::File,
            "remount" => return refused("everything is mounted anew"),
            "sync" | "dirsync" | "mand" | "loop" => return refused("it needs root on the host"),
            _ if option.starts_with("create=") => return refused("create=dir and create=file are known"),
            _ if option.starts_with("idmap=") => return refused("an idmapped mount needs root on the host"),
            _ => match option.split_once('=') {
                Some((key, value)) => self.options.push((key.to_owned(), Some(value.to_owned()))),
                None => self.options.push((option.to_owned(), None)),
            },
        }
        Ok(false)
    }
}

/// Octal escapes of three digits, as in fstab(5): `\040` is a blank.
fn unescaped(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        let byte = tail.get(1..4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = byte.filter(|byte| byte.is_ascii() && *byte != 0) {
            out.push(char::from(byte));
            rest = tail.get(4..).unwrap_or_default();
        } else {
            out.push('\\');
            rest = tail.get(1..).unwrap_or_default();
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_a_number_or_a_name() {
        for (text, number) in [
            ("SIGPWR", 30),
            ("PWR", 30),
            ("sigterm", 15),
            ("9", 9),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-2", 62),
            ("SIGRTMAX", 64),
        ] {
            assert_eq!(signal(text), Ok(number), "{text}");
        }
        for wrong in ["", "SIG", "0", "65", "-1", "SIGRTMIN+31", "SIGRTMIN-1", "SIGRTMAX+1", "SIGNONE", "SIGRTMIN+"] {
            assert!(signal(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn words_are_split_as_a_shell_would() {
        assert_eq!(words("/sbin/init  a 'b c' d\"e f\"g ''").unwrap(), ["/sbin/init", "a", "b c", "de fg", ""]);
        // As `rootfs import` writes a quote in a word.
        assert_eq!(words(r"x 'it'\''s'").unwrap(), ["x", "it's"]);
        assert_eq!(words("  ").unwrap(), Vec::<String>::new());
        assert!(words("a 'b").is_err());
    }

    #[test]
    fn capabilities_and_limits_have_the_kernels_numbers() {
        assert_eq!(capability("sys_admin"), Ok(1 << 21));
        assert_eq!(capability("CAP_CHOWN"), Ok(1));
        assert_eq!(capability("checkpoint_restore"), Ok(1 << 40));
        assert_eq!(capability("63"), Ok(1 << 63));
        assert!(capability("64").is_err() && capability("sys-admin").is_err() && capability("").is_err());
        let nofile = limit("nofile", "1024:4096").unwrap();
        assert_eq!((nofile.resource, nofile.soft, nofile.hard), (libc::RLIMIT_NOFILE, 1024, 4096));
        assert_eq!(limit("as", "unlimited").unwrap().resource, libc::RLIMIT_AS);
        assert_eq!(limit("rttime", "5").unwrap().resource, libc::RLIMIT_RTTIME);
        assert_eq!(limit("core", "0").unwrap().resource, libc::RLIMIT_CORE);
        for (name, text) in [("x", "1"), ("core", ""), ("core", "2:1"), ("core", "unlimited:1"), ("core", "-1")] {
            assert!(limit(name, text).is_err(), "{name} {text}");
        }
    }

    #[test]
    fn sizes_and_times_have_limits() {
        assert_eq!((size("64KB"), size("1 MB"), size("12")), (Ok(65536), Ok(1 << 20), Ok(12)));
        assert!(size("99999999999999GB").is_err() && size("x").is_err() && size("").is_err() && size("1TB").is_err());
        assert_eq!(seconds("5"), Ok(Duration::from_secs(5)));
        assert!(seconds("1000001").is_err() && seconds("-1").is_err());
    }

    #[test]
    fn a_mount_entry_is_a_line_of_fstab() {
        let bind = mount("/srv/a\\040b mnt/x none bind,ro,create=dir,optional 0 0").unwrap();
        assert_eq!((bind.source.as_str(), bind.target.as_str()), ("/srv/a b", "mnt/x"));
        assert_eq!((&bind.kind, bind.create, bind.optional), (&None, Create::Directory, true));
        assert_eq!((bind.attributes, bind.recursive), (sys::MOUNT_ATTR_RDONLY, false));
        let rbind = mount("/a b none rbind,rslave").unwrap();
        assert!(rbind.recursive && rbind.propagation == libc::MS_SLAVE | libc::MS_REC);
        let tmpfs = mount("tmpfs run tmpfs nosuid,mode=0755,size=1m,huge 0 0").unwrap();
        assert_eq!(tmpfs.kind.as_deref(), Some("tmpfs"));
        assert_eq!(tmpfs.options.len(), 3);
        assert!(mount("dev/null proc/kcore none bind,relative 0 0").unwrap().relative);
        for wrong in [
            "",
            "/a",
            "/a b",
            "/a b none bind 0 0 0",
            "a b none bind 0 0",
            "/a ../b none bind 0 0",
            "/a b none bind,size=1 0 0",
            "/a b none bind,remount 0 0",
            "/a b none bind,idmap=container 0 0",
            "/a b none bind,create=x 0 0",
            "tmpfs b tmpfs relative 0 0",
        ] {
            assert!(mount(wrong).is_err(), "{wrong}");
        }
        assert_eq!(unescaped("a\\x\\0401\\09\\"), "a\\x 1\\09\\");
    }
}
