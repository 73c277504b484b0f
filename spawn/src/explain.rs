//! From a step and an errno to the cause and the cure.

#![forbid(unsafe_code)]

use core::ffi::CStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::failure::{Failure, NOT_EXECUTABLE, NOT_FOUND, one_line, words};
use crate::report::{Report, Step};

/// The failure that a child's report stands for. Runs in the parent, as the caller.
#[must_use]
pub fn child_failure(report: &Report) -> Failure {
    let Report { step, errno, object, more } = report;
    let cause = words(*errno);
    let text = match step {
        Step::Guard => format!("cannot tie the container's life to this process: {cause}"),
        Step::Namespaces => format!("cannot make the mount, uts and ipc namespaces: {}", namespace_limit(*errno)),
        Step::Private => format!("cannot make the mounts private: {cause}"),
        Step::OpenRoot => format!("cannot open the rootfs {object}: {}", unreachable(object, *errno)),
        Step::OpenBind if *errno == Errno::EINVAL => format!(
            "cannot bind {object}: something of the host is mounted below it, which `bind` would uncover; `rbind` takes it along"
        ),
        Step::OpenBind => format!("cannot open {object}, the source of a bind mount: {}", unreachable(object, *errno)),
        Step::Hostname => format!("cannot set the host name {object}: {cause}"),
        Step::Ids if matches!(errno, Errno::EINVAL | Errno::EPERM) => {
            "cannot become root inside: id 0 is not mapped; was `idmap` left out between `spawn hold` and `spawn go`?"
                .to_owned()
        }
        Step::Ids => format!("cannot become root inside: {cause}"),
        Step::Network => format!("cannot make the network namespace: {}", namespace_limit(*errno)),
        Step::Loopback => format!("cannot bring up the loopback: {cause}"),
        Step::Card if *errno == Errno::ENODEV => format!(
            "there is no card {object}: was the stage `usernet attach` left out between `idmap` and `spawn go`?"
        ),
        Step::Card => format!("cannot look for the card {object}: {cause}"),
        Step::CardMac => format!("cannot give the card {object} its hardware address: {cause}"),
        Step::CardMtu => format!("cannot set the MTU of the card {object}: {cause}"),
        Step::CardUp => format!("cannot bring up the card {object}: {cause}"),
        Step::Address => format!("cannot set the address {object}: {}", address(*errno)),
        Step::Route => format!("cannot set the default route to {object}: {cause}"),
        Step::Cgroup => format!("cannot make the cgroup namespace: {}", namespace_limit(*errno)),
        Step::AttachRoot => format!("cannot mount the rootfs {object}: {cause}"),
        Step::Layers => format!("cannot mount an overlay over {object}: {}", overlay(*errno)),
        Step::HostTree => format!("cannot show {object} of the host: {cause}"),
        Step::MountPoint => format!("cannot mount on /{object} of the rootfs: {}", mount_point(object, *errno)),
        Step::Mount => format!("cannot mount {object}: {}", kernel_file_system(object, *errno)),
        Step::Node => format!("cannot bind the device {object}: {cause}"),
        Step::Console => format!("cannot make {object}: {cause}"),
        Step::Protect => format!("cannot mask or protect {object}: {cause}"),
        Step::Bind => format!("cannot mount on /{object}: {}", bind(*errno)),
        Step::Write => format!("cannot set {object}: {}", written(*errno)),
        Step::Confine => format!("cannot confine the command: {object}: {cause}"),
        Step::Limit if *errno == Errno::EPERM => {
            format!("cannot set {object}: the hard limit of this user is lower, and only root on the host may raise it")
        }
        Step::Limit => format!("cannot set {object}: {cause}"),
        Step::ReadOnly => format!("cannot make {object} read-only: {cause}"),
        Step::Pivot => format!("cannot change the root: {cause}"),
        Step::Workdir if *errno == Errno::ELOOP => {
            format!(
                "cannot enter the working directory {object}: it leads through a link of /proc, and those may lead out of the container"
            )
        }
        Step::Workdir => format!("cannot enter the working directory {object} of the rootfs: {cause}"),
        Step::User if !more.is_empty() => more.clone(),
        Step::User if *errno == Errno::EINVAL => {
            "cannot become the user asked for with --user: the id is not mapped into the container".to_owned()
        }
        Step::User => format!("cannot become the user asked for with --user: {cause}"),
        Step::Stdio => format!("cannot set up {object}: {cause}"),
        Step::Exec => {
            let code = if *errno == Errno::ENOENT && more.is_empty() { NOT_FOUND } else { NOT_EXECUTABLE };
            let why = if more.is_empty() { "no such command in the rootfs" } else { more };
            return Failure { code, text: one_line(&format!("cannot execute {object}: {why}")) };
        }
        Step::Channel => "the start was given up".to_owned(),
    };
    Failure::own(one_line(&text))
}

fn overlay(errno: Errno) -> String {
    match errno {
        Errno::EPERM | Errno::ENODEV => {
            "this kernel mounts no overlay in a user namespace (5.11 or newer does)".to_owned()
        }
        Errno::EINVAL => "something else is mounted below it, or its file system cannot be a layer of one".to_owned(),
        other => words(other),
    }
}

fn written(errno: Errno) -> String {
    match errno {
        Errno::ENOENT => "this kernel has no such file".to_owned(),
        Errno::EACCES | Errno::EPERM => {
            "it belongs to the host, not to a namespace of the container: take the key out".to_owned()
        }
        Errno::EINVAL => "the kernel does not take this value".to_owned(),
        other => words(other),
    }
}

/// Why clone3 of a user namespace failed.
#[must_use]
pub fn user_namespace(errno: Errno) -> String {
    let read = |path: &str| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let zero = |path: &str| read(path).as_deref() == Some("0");
    let one = |path: &str| read(path).as_deref() == Some("1");
    let cause = match errno {
        Errno::ENOSPC if zero("/proc/sys/user/max_user_namespaces") => {
            "user namespaces are switched off: the sysctl user.max_user_namespaces is 0; the administrator can set it, e.g. to 10000".to_owned()
        }
        Errno::ENOSPC => namespace_limit(errno),
        Errno::EPERM | Errno::EACCES if zero("/proc/sys/kernel/unprivileged_userns_clone") => {
            "the sysctl kernel.unprivileged_userns_clone is 0; the administrator can set it to 1".to_owned()
        }
        Errno::EPERM | Errno::EACCES if one("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") => {
            "AppArmor forbids it: the sysctl kernel.apparmor_restrict_unprivileged_userns is 1; it needs a profile with `userns,` for this program, or that sysctl at 0".to_owned()
        }
        Errno::EPERM if chrooted() => {
            "this process is in a chroot, in which the kernel allows no user namespace (user_namespaces(7))".to_owned()
        }
        Errno::EPERM => {
            "not permitted: a seccomp filter (of a container or a service manager) or a security module forbids it".to_owned()
        }
        Errno::EINVAL => "this kernel was built without CONFIG_USER_NS or CONFIG_PID_NS".to_owned(),
        Errno::ENOSYS => "this kernel has no clone3, or a seccomp filter hides it: Linux 5.3 or newer is needed".to_owned(),
        Errno::EUSERS => "user namespaces are nested 32 deep already".to_owned(),
        other => words(other),
    };
    format!("cannot make a user namespace: {cause}")
}

/// In a chroot the root directory of this process is not that of the mount namespace; then /proc/self/mountinfo shows
/// no mount on `/`.
fn chrooted() -> bool {
    std::fs::read("/proc/self/mountinfo")
        .is_ok_and(|text| !text.split(|b| *b == b'\n').any(|line| line.split(|b| *b == b' ').nth(4) == Some(b"/")))
}

fn namespace_limit(errno: Errno) -> String {
    match errno {
        Errno::ENOSPC => "a limit on namespaces is reached: see the sysctls user.max_*_namespaces, and end containers that are not needed".to_owned(),
        Errno::EPERM => "not permitted: a seccomp filter or a security module forbids it".to_owned(),
        other => words(other),
    }
}

/// Why the caller cannot reach `path`: the first directory on the way that refuses him.
#[must_use]
pub fn unreachable(path: &str, errno: Errno) -> String {
    let path = Path::new(path);
    let ancestors: Vec<&Path> = path.ancestors().filter(|p| !p.as_os_str().is_empty()).collect();
    if errno == Errno::EACCES {
        // Walks from the top; the first one whose inside is closed is the cause.
        for directory in ancestors.iter().rev() {
            if std::fs::symlink_metadata(directory.join(".")).is_err_and(|e| e.raw_os_error() == Some(libc::EACCES)) {
                let whose = std::fs::metadata(directory).map_or_else(
                    |_| String::new(),
                    |found| format!(" (mode {:03o}, uid {})", found.mode() & 0o7777, found.uid()),
                );
                return format!(
                    "the directory {} may not be searched by this user{whose}: its owner can open that one directory (chmod o+x), or move the tree",
                    directory.display()
                );
            }
        }
    }
    if errno == Errno::ENOENT
        && let Some(missing) = ancestors.iter().rev().find(|p| std::fs::symlink_metadata(p).is_err())
    {
        return format!("{} does not exist", missing.display());
    }
    if errno == Errno::ENOSYS {
        return "this kernel has no open_tree: Linux 5.2 or newer is needed".to_owned();
    }
    words(errno)
}

fn address(errno: Errno) -> String {
    match errno {
        Errno::EEXIST => "the card has it already".to_owned(),
        Errno::EACCES => "IPv6 is switched off for new cards (sysctl net.ipv6.conf.default.disable_ipv6)".to_owned(),
        Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP => "this kernel has no IPv6".to_owned(),
        other => words(other),
    }
}

fn mount_point(object: &str, errno: Errno) -> String {
    match errno {
        Errno::ENOENT | Errno::EEXIST => format!("{object} is a link that leads to nothing inside the rootfs, or its directory is missing"),
        Errno::ENOTDIR => format!("{object} is not a directory"),
        Errno::ELOOP => format!("{object} is a link that leads out of the rootfs or in a circle"),
        Errno::EROFS => "it is missing and the rootfs is read-only: make it, or leave --read-only out".to_owned(),
        Errno::EACCES | Errno::EPERM => "it is missing or closed, and root inside may not make it: does the rootfs belong to the ids that are mapped?".to_owned(),
        Errno::EOVERFLOW => "it is missing, and the owner of its directory is not mapped".to_owned(),
        other => words(other),
    }
}

fn kernel_file_system(object: &str, errno: Errno) -> String {
    match errno {
        Errno::EPERM if object == "/proc" || object == "/sys" => format!(
            "the kernel shows an ordinary user no more of {object} than he sees already, and something is mounted over parts of the host's: this happens inside another container whose {object} is masked"
        ),
        Errno::ENODEV => "this kernel was built without it".to_owned(),
        Errno::ENOSYS => "this kernel has no fsopen: Linux 5.2 or newer is needed".to_owned(),
        Errno::EINVAL if object == "/dev/pts" => {
            "group 5 (tty) is not mapped: the map needs at least the ids 0 to 5".to_owned()
        }
        other => words(other),
    }
}

fn bind(errno: Errno) -> String {
    match errno {
        Errno::EINVAL | Errno::ENOTDIR => "one of source and target is a directory and the other is not".to_owned(),
        other => words(other),
    }
}

/// Why an exec failed, found out by looking at the file. Runs in the child, inside the new root, so it sees what the
/// kernel saw. Empty when the plain errno says it all.
#[must_use]
pub fn exec_failure(path: &CStr, errno: Errno) -> String {
    let file = PathBuf::from(std::ffi::OsStr::from_bytes(path.to_bytes()));
    let shown = file.display();
    let Ok(data) = std::fs::metadata(&file) else {
        return match std::fs::symlink_metadata(&file) {
            Ok(_) => format!("{shown} is a link that leads to nothing inside the rootfs"),
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
                format!("a directory above {shown} may not be searched by the command's user")
            }
            Err(_) => String::new(),
        };
    };
    if data.is_dir() {
        return format!("{shown} is a directory");
    }
    if !data.is_file() {
        // Never opened: a FIFO would hold us up, a device could do anything.
        return format!("{shown} is no regular file");
    }
    let head = head(&file);
    match errno {
        Errno::ENOENT => match interpreter(&head) {
            Some(loader) => format!(
                "{shown} needs {loader}, which is missing in the rootfs: the dynamic loader or interpreter of another system, or an incomplete rootfs"
            ),
            None => format!("{shown} needs an interpreter that is missing in the rootfs"),
        },
        Errno::ENOEXEC => match machine(&head) {
            Some(machine) => {
                format!("{shown} is a program for {machine}, and this machine is {}", std::env::consts::ARCH)
            }
            None => format!("{shown} is neither a program for this machine nor a script that begins with #!"),
        },
        Errno::EACCES if noexec(&file) => {
            format!("{shown} lies on a file system mounted noexec: mount it without, or put the rootfs elsewhere")
        }
        Errno::EACCES if data.mode() & 0o111 == 0 => {
            format!("{shown} is not executable (mode {:o})", data.mode() & 0o7777)
        }
        Errno::EACCES => format!(
            "permission denied for {shown}, owned by {}:{} inside, mode {:o}, or for its interpreter{}",
            data.uid(),
            data.gid(),
            data.mode() & 0o7777,
            if data.uid() == 65534 { "; 65534 is an owner that is not mapped" } else { "" }
        ),
        Errno::E2BIG => "the arguments and the environment are too long".to_owned(),
        other => format!("{shown}: {}", words(other)),
    }
}

fn head(file: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(file) {
        let _ = file.take(1 << 16).read_to_end(&mut bytes);
    }
    bytes
}

fn noexec(file: &Path) -> bool {
    std::fs::File::open(file).is_ok_and(|file| sys_flags(&file).is_some_and(|flags| flags & libc::ST_NOEXEC != 0))
}

fn sys_flags(file: &std::fs::File) -> Option<u64> {
    use std::os::fd::AsRawFd;
    crate::sys::mount_flags(file.as_raw_fd()).ok()
}

/// The interpreter that a file names: after `#!`, or in the PT_INTERP segment of an ELF file (elf(5)), 64 or 32 bits,
/// little-endian.
#[must_use]
pub fn interpreter(head: &[u8]) -> Option<String> {
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|b| *b == b'\n').next()?;
        let word = line.split(|b| *b == b' ' || *b == b'\t').find(|word| !word.is_empty())?;
        return Some(String::from_utf8_lossy(word).into_owned());
    }
    let number = |at: usize, size: usize| {
        let bytes = head.get(at..at.checked_add(size)?)?;
        usize::try_from(bytes.iter().rev().fold(0_u64, |n, b| (n << 8) | u64::from(*b))).ok()
    };
    if !head.starts_with(b"\x7fELF") {
        return None;
    }
    let wide = *head.get(4)? == 2;
    // e_phoff, e_phentsize, e_phnum; then p_offset and p_filesz within a program header.
    let (table, size, count) = if wide {
        (number(32, 8)?, number(54, 2)?, number(56, 2)?)
    } else {
        (number(28, 4)?, number(42, 2)?, number(44, 2)?)
    };
    let header = (0..count)
        .filter_map(|index| table.checked_add(index.checked_mul(size)?))
        .find(|header| number(*header, 4) == Some(3))?;
    let (offset, length) = if wide {
        (number(header.checked_add(8)?, 8)?, number(header.checked_add(32)?, 8)?)
    } else {
        (number(header.checked_add(4)?, 4)?, number(header.checked_add(16)?, 4)?)
    };
    let text = head.get(offset..offset.checked_add(length)?)?;
    Some(String::from_utf8_lossy(text.split(|b| *b == 0).next()?).into_owned())
}

/// The machine that an ELF file is for (e_machine of elf(5)), as `uname -m` names it.
#[must_use]
pub fn machine(head: &[u8]) -> Option<String> {
    if !head.starts_with(b"\x7fELF") {
        return None;
    }
    let (low, high) = (*head.get(18)?, *head.get(19)?);
    let code = if head.get(5) == Some(&2) { [low, high] } else { [high, low] };
    Some(match u16::from_be_bytes(code) {
        3 => "i386".to_owned(),
        8 => "mips".to_owned(),
        20 => "ppc".to_owned(),
        21 => "ppc64".to_owned(),
        22 => "s390x".to_owned(),
        40 => "arm".to_owned(),
        62 => "x86_64".to_owned(),
        183 => "aarch64".to_owned(),
        243 => "riscv64".to_owned(),
        258 => "loongarch64".to_owned(),
        other => format!("ELF machine {other}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_of_a_program_is_found() {
        let head = head(Path::new("/bin/sh"));
        if let Some(loader) = interpreter(&head) {
            assert!(Path::new(&loader).is_absolute(), "{loader}");
        }
        assert_eq!(machine(&head).as_deref(), Some(std::env::consts::ARCH));
        assert_eq!(interpreter(b"#! /bin/x -a\nrest"), Some("/bin/x".to_owned()));
        assert_eq!(interpreter(b"#!\n"), None);
        assert_eq!(interpreter(b"text"), None);
    }

    #[test]
    fn no_header_makes_the_reader_panic() {
        let whole = head(Path::new("/bin/sh"));
        for length in 0..whole.len().min(400) {
            let _ = interpreter(&whole[..length]);
            let _ = machine(&whole[..length]);
        }
        let mut wild = whole[..64].to_vec();
        wild[32..40].fill(0xff);
        assert_eq!(interpreter(&wild), None);
    }

    #[test]
    fn the_first_missing_directory_is_named() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("gone/further/down");
        let text = unreachable(path.to_str().unwrap(), Errno::ENOENT);
        assert_eq!(text, format!("{} does not exist", top.path().join("gone").display()));
    }
}
