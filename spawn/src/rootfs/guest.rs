//! What a rootfs is: distribution, init, C library, architecture. Everything is read inside the root, and nothing of it
//! is run.

#![forbid(unsafe_code)]

use super::root::{Root, kind, os};
use super::walk::{READ_DIRECTORY, names};
use nix::fcntl::openat;
use nix::sys::stat::{Mode, SFlag};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Longest program that is searched for a version, in bytes.
const LONGEST_PROGRAM: u64 = 32 << 20;

/// Longest text file that is read, in bytes.
pub const LONGEST_TEXT: u64 = 1 << 20;

/// The program that becomes process 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// systemd; its version when a file name tells.
    Systemd(Option<u32>),
    /// upstart, as in EL 6.
    Upstart,
    /// System V init, as in EL 5 and Devuan.
    Sysvinit,
    /// busybox.
    Busybox,
    /// Another program at /sbin/init.
    Other,
    /// There is none.
    None,
}

impl Init {
    /// The name, for messages.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Systemd(Some(version)) => format!("systemd {version}"),
            Self::Systemd(None) => "systemd".to_owned(),
            Self::Upstart => "upstart".to_owned(),
            Self::Sysvinit => "sysvinit".to_owned(),
            Self::Busybox => "busybox".to_owned(),
            Self::Other => "/sbin/init of another kind".to_owned(),
            Self::None => "none".to_owned(),
        }
    }
}

/// A rootfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Name and version as the distribution writes them; empty when unknown.
    pub name: String,
    /// Major version of CentOS, RHEL and their kin.
    pub el: Option<u32>,
    /// Process 1.
    pub init: Init,
    /// Version of glibc: 2.12 is (2, 12).
    pub glibc: Option<(u32, u32)>,
    /// Architecture in `uname -m`'s words, by the ELF header of init or the shell.
    pub machine: Option<String>,
}

/// Looks at a rootfs.
#[must_use]
pub fn look(root: &Root) -> Guest {
    let (name, el) = distribution(root);
    let init = init_of(root);
    let programs: [&[u8]; 5] =
        [b"sbin/init", b"usr/lib/systemd/systemd", b"lib/systemd/systemd", b"bin/sh", b"bin/bash"];
    let machine = programs.iter().find_map(|path| machine(root, path));
    Guest { name, el, init, glibc: glibc(root), machine }
}

fn text(root: &Root, path: &[u8]) -> Option<String> {
    root.read(path, LONGEST_TEXT).ok().map(|text| String::from_utf8_lossy(&text).into_owned())
}

fn distribution(root: &Root) -> (String, Option<u32>) {
    const KIN: [&str; 9] =
        ["rhel", "centos", "rocky", "almalinux", "ol", "scientific", "eurolinux", "circle", "oraclelinux"];
    let release = [&b"etc/redhat-release"[..], b"etc/centos-release", b"etc/system-release"];
    let release = release.iter().find_map(|path| text(root, path));
    let release = release.and_then(|text| text.lines().next().map(|line| line.trim().to_owned()));
    let os_release = text(root, b"etc/os-release").or_else(|| text(root, b"usr/lib/os-release")).unwrap_or_default();
    let field = |key: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim_matches(['"', '\'']).to_owned())
    };
    let major =
        |text: &str| text.split(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty())?.parse::<u32>().ok();
    let mut el = None;
    if let Some(line) = &release
        && let Some((system, version)) = line.split_once(" release ")
        && !system.starts_with("Fedora")
        && !system.starts_with("Amazon")
    {
        el = major(version);
    }
    if el.is_none() && field("ID").is_some_and(|id| KIN.contains(&id.as_str())) {
        el = field("VERSION_ID").as_deref().and_then(major);
    }
    let debian = || text(root, b"etc/debian_version").map(|version| format!("Debian {}", version.trim()));
    let name = release.or_else(|| field("PRETTY_NAME")).or_else(debian).unwrap_or_default();
    (name.chars().filter(|c| !c.is_control()).take(100).collect(), el)
}

/// The path that a link leads to, inside the root, by its text.
fn follow(root: &Root, path: &str) -> String {
    let mut path = path.to_owned();
    for _ in 0..10 {
        let Ok(target) = root.read_link(path.as_bytes()) else { break };
        let target = os(&target).to_string_lossy().into_owned();
        let above = Path::new(&path).parent().map(|above| above.to_string_lossy().into_owned()).unwrap_or_default();
        path = if target.starts_with('/') { target } else { format!("{above}/{target}") };
    }
    path
}

/// The init of a rootfs.
#[must_use]
pub fn init_of(root: &Root) -> Init {
    let exists = |path: &str| root.lstat(path.as_bytes()).is_ok();
    let target = follow(root, "/sbin/init");
    let systemd = ["usr/lib/systemd/systemd", "lib/systemd/systemd"].into_iter().any(exists);
    if target.ends_with("/systemd") && systemd {
        return Init::Systemd(systemd_version(root));
    }
    if ["etc/init/rcS.conf", "etc/init/rc.conf", "etc/init/rc-sysinit.conf"].into_iter().any(exists)
        && exists("sbin/init")
    {
        return Init::Upstart;
    }
    let Ok(program) = root.read(b"sbin/init", LONGEST_PROGRAM) else {
        return if systemd { Init::Systemd(systemd_version(root)) } else { Init::None };
    };
    if contains(&program, b"BusyBox") || target.ends_with("/busybox") {
        Init::Busybox
    } else if contains(&program, b"upstart") {
        Init::Upstart
    } else if contains(&program, b"sysvinit") || (exists("etc/inittab") && contains(&program, b"/etc/inittab")) {
        Init::Sysvinit
    } else {
        Init::Other
    }
}

/// Whether `needle` stands in `hay`.
#[must_use]
pub fn contains(hay: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else { return true };
    let mut rest = hay;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        rest = rest.get(at..).unwrap_or_default();
        if rest.starts_with(needle) {
            return true;
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    false
}

fn list(root: &Root, directory: &[u8]) -> Vec<String> {
    let Ok(start) = root.directory(directory) else { return Vec::new() };
    let Ok(open) = openat(&start, c".", READ_DIRECTORY, Mode::empty()) else { return Vec::new() };
    names(&open).map(|all| all.iter().map(|name| name.to_string_lossy().into_owned()).collect()).unwrap_or_default()
}

/// systemd names a library after its version: libsystemd-shared-252.so (from 232 on). Before that, the packages tell.
fn systemd_version(root: &Root) -> Option<u32> {
    let number = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok();
    let library = [&b"usr/lib/systemd"[..], b"lib/systemd", b"usr/lib64/systemd", b"usr/lib/x86_64-linux-gnu/systemd"];
    let by_library = library.iter().flat_map(|directory| list(root, directory));
    let by_library = by_library.into_iter().find_map(|name| number(name.strip_prefix("libsystemd-shared-")?));
    by_library.or_else(|| {
        list(root, b"usr/share/doc")
            .iter()
            .find_map(|name| number(name.strip_prefix("systemd-")?))
            .filter(|version| *version > 25)
    })
}

fn glibc(root: &Root) -> Option<(u32, u32)> {
    let places: [&[u8]; 7] = [
        b"lib64",
        b"usr/lib64",
        b"lib",
        b"usr/lib",
        b"lib/x86_64-linux-gnu",
        b"usr/lib/x86_64-linux-gnu",
        b"lib/i386-linux-gnu",
    ];
    places.iter().flat_map(|place| list(root, place)).find_map(|name| {
        let version = name.strip_prefix("libc-")?.strip_suffix(".so")?;
        let (major, minor) = version.split_once('.')?;
        Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
    })
}

fn machine(root: &Root, path: &[u8]) -> Option<String> {
    let stat = root.lstat(path).ok()?;
    if !matches!(kind(&stat), SFlag::S_IFREG | SFlag::S_IFLNK) {
        return None;
    }
    let program = root.read(path, LONGEST_PROGRAM).ok()?;
    machine_of(&program).map(str::to_owned)
}

/// The architecture of an ELF file (elf(5)), little-endian ones and s390x.
#[must_use]
pub fn machine_of(program: &[u8]) -> Option<&'static str> {
    if !program.starts_with(b"\x7fELF") {
        return None;
    }
    let wide = program.get(4) == Some(&2);
    let little = program.get(5) == Some(&1);
    let field: [u8; 2] = *program.get(18..20)?.first_chunk()?;
    let number = if little { u16::from_le_bytes(field) } else { u16::from_be_bytes(field) };
    Some(match (number, wide, little) {
        (3, false, true) => "i686",
        (62, true, true) => "x86_64",
        (62, false, true) => "x32",
        (40, false, true) => "armv7l",
        (183, true, true) => "aarch64",
        (21, true, true) => "ppc64le",
        (21, true, false) => "ppc64",
        (22, true, false) => "s390x",
        (243, true, true) => "riscv64",
        _ => "unknown",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_elf_header_tells_the_machine() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(machine_of(&own), Some(std::env::consts::ARCH));
        assert_eq!(machine_of(b"#!/bin/sh\n"), None);
        assert_eq!(machine_of(b"\x7fELF"), None);
    }

    #[test]
    fn needles_are_found() {
        assert!(contains(b"aaab", b"aab") && contains(b"x", b"") && !contains(b"aa", b"ab"));
    }
}
