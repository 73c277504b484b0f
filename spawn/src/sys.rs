//! Every system call of this crate that needs `unsafe`.
//!
//! The functions that the child calls between clone3 and exec make raw system calls: they take no lock, allocate
//! nothing and use no standard I/O. Descriptors are plain numbers there, because everything that the child opens is
//! close-on-exec and dies with the exec.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// Result of one system call.
pub type Call<T> = Result<T, Errno>;

pub const AT_RECURSIVE: c_int = 0x8000;
/// Follow nothing out of the directory that the path starts from: `/` and `..` end at it (openat2(2)).
pub const RESOLVE_IN_ROOT: u64 = 0x10;
/// Refuse links like /proc/self/fd/N.
pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
pub const MOUNT_ATTR_RDONLY: u32 = 0x01;
pub const MOUNT_ATTR_NOSUID: u32 = 0x02;
pub const MOUNT_ATTR_NODEV: u32 = 0x04;
pub const MOUNT_ATTR_NOEXEC: u32 = 0x08;

const OPEN_TREE_CLONE: c_int = 1;
const MOVE_MOUNT_F_EMPTY_PATH: c_int = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: c_int = 0x40;
const FSOPEN_CLOEXEC: c_int = 1;
const FSMOUNT_CLOEXEC: c_int = 1;
const FSCONFIG_SET_STRING: c_int = 1;
const FSCONFIG_CMD_CREATE: c_int = 6;

fn check(result: c_long) -> Call<c_long> {
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

fn check_fd(result: c_long) -> Call<RawFd> {
    check(result).and_then(|fd| RawFd::try_from(fd).map_err(|_| Errno::EOVERFLOW))
}

/// Which side of [`clone_child`] returned.
pub enum Clone {
    /// The new process.
    Child,
    /// The caller, with the child's pid and pidfd.
    Parent(i32, OwnedFd),
}

/// clone3(2) with `flags`, CLONE_PIDFD and SIGCHLD; both sides go on with a copy of the memory, as after fork(2).
///
/// # Errors
/// The errno of clone3; ENOSYS on kernels before 5.3.
pub fn clone_child(flags: c_int) -> Call<Clone> {
    let mut pidfd: c_int = -1;
    // SAFETY: clone_args is plain data for which zero is valid.
    let mut args: libc::clone_args = unsafe { core::mem::zeroed() };
    args.flags = u64::try_from(flags | libc::CLONE_PIDFD).unwrap_or(0);
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = u64::try_from(libc::SIGCHLD).unwrap_or(0);
    // SAFETY: no CLONE_VM and no new stack: the child runs on a copy of this stack like after fork. This program has
    // one thread, so no lock can be held by a thread that is missing in the child.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match check(result)? {
        0 => Ok(Clone::Child),
        pid => {
            let pid = i32::try_from(pid).map_err(|_| Errno::EOVERFLOW)?;
            // SAFETY: the kernel has just made this descriptor for us.
            Ok(Clone::Parent(pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
        }
    }
}

/// fork(2): a process with a copy of the memory.
///
/// # Errors
/// The errno of fork.
pub fn fork() -> Call<Option<i32>> {
    // SAFETY: this program has one thread, so the child may do everything that the parent may.
    match unsafe { libc::fork() } {
        -1 => Err(Errno::last()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// What [`exec_tool`]'s child needs; it lives in the memory that both share until the exec.
struct ToolStart {
    path: *const c_char,
    argv: *const *const c_char,
    output: RawFd,
    errno: c_int,
}

extern "C" fn tool_main(start: *mut c_void) -> c_int {
    let start = start.cast::<ToolStart>();
    // SAFETY: `start` points to the ToolStart of exec_tool, whose thread is suspended until we exec or exit, and its
    // strings end in NUL, its vector in NULL. Only system calls are made here.
    unsafe {
        let environment: [*const c_char; 1] = [core::ptr::null()];
        let mask: u64 = 0;
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, core::ptr::null::<u64>(), 8);
        libc::syscall(libc::SYS_dup3, (*start).output, 1, 0);
        libc::syscall(libc::SYS_dup3, (*start).output, 2, 0);
        libc::syscall(libc::SYS_execve, (*start).path, (*start).argv, environment.as_ptr());
        (*start).errno = *libc::__errno_location();
        libc::syscall(libc::SYS_exit, 127);
    }
    127
}

/// Starts the program at `path` with `argv` (the program's name first), an empty environment and `output` as standard
/// output and error. Other descriptors must be close-on-exec. Returns when the exec has happened, with the pidfd.
///
/// The child shares the memory until its exec (CLONE_VM and CLONE_VFORK): no page table is copied.
///
/// # Errors
/// The errno of clone(2) or of execve(2).
pub fn exec_tool(path: &CStr, argv: &[&CStr], output: BorrowedFd<'_>) -> Call<OwnedFd> {
    let mut pointers: Vec<*const c_char> = argv.iter().map(|word| word.as_ptr()).collect();
    pointers.push(core::ptr::null());
    let mut start = ToolStart { path: path.as_ptr(), argv: pointers.as_ptr(), output: output.as_raw_fd(), errno: 0 };
    let mut stack = vec![0_u128; 1024];
    let top = stack.as_mut_ptr_range().end;
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: the stack is 16 KiB, aligned, used by nobody else; `start` and `pointers` outlive the child's use, which
    // ends at its exec or exit, before clone returns here.
    let pid = unsafe { libc::clone(tool_main, top.cast(), flags, (&raw mut start).cast(), &raw mut pidfd) };
    if pid < 0 {
        return Err(Errno::last());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: `start` is a local; volatile because the child wrote it behind the compiler's back.
    let errno = unsafe { core::ptr::read_volatile(&raw const start.errno) };
    if errno != 0 {
        // SAFETY: waits for our own child; the status is not wanted.
        unsafe { libc::waitpid(pid, core::ptr::null_mut(), 0) };
        return Err(Errno::from_raw(errno));
    }
    Ok(pidfd)
}

/// execve(2); returns only when it failed.
pub fn exec(path: &CStr, argv: &[*const c_char], environment: &[*const c_char]) -> Errno {
    if argv.last().is_none_or(|p| !p.is_null()) || environment.last().is_none_or(|p| !p.is_null()) {
        return Errno::EINVAL;
    }
    // SAFETY: both vectors end in NULL (checked) and hold pointers to strings that live as long as the plan.
    unsafe { libc::syscall(libc::SYS_execve, path.as_ptr(), argv.as_ptr(), environment.as_ptr()) };
    Errno::last()
}

/// Ends the process without running anything.
pub fn exit_now(code: c_int) -> ! {
    // SAFETY: always sound.
    unsafe { libc::_exit(code) }
}

/// unshare(2).
///
/// # Errors
/// Its errno.
pub fn unshare(flags: c_int) -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_unshare, flags) }).map(drop)
}

/// prctl(PR_SET_PDEATHSIG, SIGKILL): die with the parent.
///
/// # Errors
/// Its errno.
pub fn die_with_parent() -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }).map(drop)
}

/// setresgid(2) and then setresuid(2), each with the same id three times.
///
/// # Errors
/// The errno of the one that failed; EINVAL when the id is not mapped.
pub fn become_ids(uid: u32, gid: u32) -> Call<()> {
    // SAFETY: no pointer. The raw calls change this one thread, which is all there is.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// setgroups(2).
///
/// # Errors
/// Its errno; EPERM where /proc/PID/setgroups says `deny`.
pub fn set_groups(groups: &[u32]) -> Call<()> {
    // SAFETY: pointer and length belong together.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// sethostname(2).
///
/// # Errors
/// Its errno.
pub fn set_hostname(name: &CStr) -> Call<()> {
    let bytes = name.to_bytes();
    // SAFETY: pointer and length belong together.
    check(unsafe { libc::syscall(libc::SYS_sethostname, bytes.as_ptr(), bytes.len()) }).map(drop)
}

/// setsid(2).
///
/// # Errors
/// Its errno.
pub fn new_session() -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_setsid) }).map(drop)
}

/// mount(2).
///
/// # Errors
/// Its errno.
pub fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: c_ulong,
    data: Option<&CStr>,
) -> Call<()> {
    let pointer = |text: Option<&CStr>| text.map_or(core::ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is NULL or a string that ends in NUL.
    check(unsafe {
        libc::syscall(libc::SYS_mount, pointer(source), target.as_ptr(), pointer(kind), flags, pointer(data))
    })
    .map(drop)
}

/// umount2(path, MNT_DETACH).
///
/// # Errors
/// Its errno.
pub fn detach(path: &CStr) -> Call<()> {
    // SAFETY: the string ends in NUL.
    check(unsafe { libc::syscall(libc::SYS_umount2, path.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// pivot_root(".", "."): the working directory becomes the root, and the old root lies over it.
///
/// # Errors
/// Its errno.
pub fn pivot_root_here() -> Call<()> {
    // SAFETY: both strings end in NUL.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) }).map(drop)
}

/// fchdir(2).
///
/// # Errors
/// Its errno.
pub fn change_directory_to(directory: RawFd) -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_fchdir, directory) }).map(drop)
}

/// chdir(2).
///
/// # Errors
/// Its errno.
pub fn change_directory(path: &CStr) -> Call<()> {
    // SAFETY: the string ends in NUL.
    check(unsafe { libc::syscall(libc::SYS_chdir, path.as_ptr()) }).map(drop)
}

/// openat(2) with O_CLOEXEC added.
///
/// # Errors
/// Its errno.
pub fn open_at(directory: RawFd, path: &CStr, flags: c_int) -> Call<RawFd> {
    // SAFETY: the string ends in NUL.
    check_fd(unsafe { libc::syscall(libc::SYS_openat, directory, path.as_ptr(), flags | libc::O_CLOEXEC, 0) })
}

/// openat2(2) with O_CLOEXEC added and the given RESOLVE_ flags.
///
/// # Errors
/// Its errno; ENOSYS on kernels before 5.6.
pub fn open_at2(directory: RawFd, path: &CStr, flags: c_int, resolve: u64) -> Call<RawFd> {
    let how = [u64::try_from(flags | libc::O_CLOEXEC).unwrap_or(0), 0, resolve];
    // SAFETY: `how` has the layout of struct open_how: flags, mode and resolve, 64 bits each.
    check_fd(unsafe { libc::syscall(libc::SYS_openat2, directory, path.as_ptr(), how.as_ptr(), size_of_val(&how)) })
}

/// close(2).
pub fn close(fd: RawFd) {
    // SAFETY: callers pass numbers that they own; a wrong one is an error of close and nothing else here.
    unsafe { libc::syscall(libc::SYS_close, fd) };
}

/// dup3(2) without flags: `to` becomes a copy of `from` that survives an exec.
///
/// # Errors
/// Its errno; none when both are the same number, in which case close-on-exec is cleared.
pub fn duplicate_to(from: RawFd, to: RawFd) -> Call<()> {
    if from == to {
        // SAFETY: no pointer.
        return check(unsafe { libc::syscall(libc::SYS_fcntl, from, libc::F_SETFD, 0) }).map(drop);
    }
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_dup3, from, to, 0) }).map(drop)
}

/// umask(2).
pub fn set_umask(mask: u32) {
    // SAFETY: no pointer; it cannot fail.
    unsafe { libc::syscall(libc::SYS_umask, mask) };
}

/// fchmodat(2).
///
/// # Errors
/// Its errno.
pub fn change_mode(directory: RawFd, path: &CStr, mode: u32) -> Call<()> {
    // SAFETY: the string ends in NUL.
    check(unsafe { libc::syscall(libc::SYS_fchmodat, directory, path.as_ptr(), mode) }).map(drop)
}

/// Whether a file has the extended attribute `name`.
#[must_use]
pub fn has_attribute(path: &CStr, name: &CStr) -> bool {
    // SAFETY: both strings end in NUL; a length of 0 asks for the size and writes nothing.
    unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), core::ptr::null_mut(), 0) > 0 }
}

/// fchown(2) of the user alone.
///
/// # Errors
/// Its errno.
pub fn change_owner(fd: RawFd, uid: u32) -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_fchown, fd, uid, u32::MAX) }).map(drop)
}

/// mkdirat(2).
///
/// # Errors
/// Its errno.
pub fn make_directory(directory: RawFd, path: &CStr, mode: u32) -> Call<()> {
    // SAFETY: the string ends in NUL.
    check(unsafe { libc::syscall(libc::SYS_mkdirat, directory, path.as_ptr(), mode) }).map(drop)
}

/// mknodat(2) of an empty regular file.
///
/// # Errors
/// Its errno.
pub fn make_file(directory: RawFd, path: &CStr, mode: u32) -> Call<()> {
    // SAFETY: the string ends in NUL.
    check(unsafe { libc::syscall(libc::SYS_mknodat, directory, path.as_ptr(), libc::S_IFREG | mode, 0) }).map(drop)
}

/// symlinkat(2).
///
/// # Errors
/// Its errno.
pub fn make_link(content: &CStr, directory: RawFd, path: &CStr) -> Call<()> {
    // SAFETY: both strings end in NUL.
    check(unsafe { libc::syscall(libc::SYS_symlinkat, content.as_ptr(), directory, path.as_ptr()) }).map(drop)
}

/// The type bits (S_IFMT) of what a descriptor refers to.
///
/// # Errors
/// The errno of fstat(2).
pub fn file_type(fd: RawFd) -> Call<u32> {
    // SAFETY: stat is plain data for which zero is valid.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: the pointer is to a whole struct stat.
    check(c_long::from(unsafe { libc::fstat(fd, &raw mut stat) }))?;
    Ok(stat.st_mode & libc::S_IFMT)
}

/// The magic number of the file system that a descriptor lies on.
///
/// # Errors
/// The errno of fstatfs(2).
pub fn file_system(fd: RawFd) -> Call<i64> {
    // SAFETY: statfs is plain data for which zero is valid.
    let mut stat: libc::statfs = unsafe { core::mem::zeroed() };
    // SAFETY: the pointer is to a whole struct statfs.
    check(c_long::from(unsafe { libc::fstatfs(fd, &raw mut stat) }))?;
    #[allow(clippy::unnecessary_cast, clippy::cast_possible_wrap, reason = "the field's type differs between libcs")]
    Ok(stat.f_type as i64)
}

/// The mount flags (ST_ bits of statvfs(3)) of the mount that a descriptor lies on.
///
/// # Errors
/// The errno of fstatvfs.
pub fn mount_flags(fd: RawFd) -> Call<c_ulong> {
    // SAFETY: statvfs is plain data for which zero is valid.
    let mut stat: libc::statvfs = unsafe { core::mem::zeroed() };
    // SAFETY: the pointer is to a whole struct statvfs.
    check(c_long::from(unsafe { libc::fstatvfs(fd, &raw mut stat) }))?;
    Ok(stat.f_flag)
}

/// readlinkat(2) of the link that `fd` refers to (O_PATH and O_NOFOLLOW); the number of bytes in `buffer`.
///
/// # Errors
/// Its errno; ENAMETOOLONG when the buffer is full.
pub fn read_link(fd: RawFd, path: &CStr, buffer: &mut [u8]) -> Call<usize> {
    // SAFETY: pointer and length belong together; the string ends in NUL.
    let length =
        check(unsafe { libc::syscall(libc::SYS_readlinkat, fd, path.as_ptr(), buffer.as_mut_ptr(), buffer.len()) })?;
    let length = usize::try_from(length).unwrap_or(0);
    if length >= buffer.len() { Err(Errno::ENAMETOOLONG) } else { Ok(length) }
}

/// open_tree(2) with OPEN_TREE_CLONE and AT_RECURSIVE: a detached copy of the mounts at `path`.
///
/// # Errors
/// Its errno; EINVAL when `directory` was opened in another mount namespace.
pub fn clone_tree(directory: RawFd, path: &CStr) -> Call<RawFd> {
    let mut flags = OPEN_TREE_CLONE | AT_RECURSIVE | libc::O_CLOEXEC;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH;
    }
    // SAFETY: the string ends in NUL.
    check_fd(unsafe { libc::syscall(libc::SYS_open_tree, directory, path.as_ptr(), flags) })
}

/// move_mount(2): attaches the mount of `tree` on the directory or file `target`.
///
/// # Errors
/// Its errno.
pub fn attach(tree: RawFd, target: RawFd) -> Call<()> {
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both strings end in NUL.
    check(unsafe { libc::syscall(libc::SYS_move_mount, tree, c"".as_ptr(), target, c"".as_ptr(), flags) }).map(drop)
}

/// move_mount(2): attaches the mount of `tree` on `path` below `directory`; a link at its end is not followed.
///
/// # Errors
/// Its errno.
pub fn attach_at(tree: RawFd, directory: RawFd, path: &CStr) -> Call<()> {
    let flags = MOVE_MOUNT_F_EMPTY_PATH;
    // SAFETY: both strings end in NUL.
    check(unsafe { libc::syscall(libc::SYS_move_mount, tree, c"".as_ptr(), directory, path.as_ptr(), flags) }).map(drop)
}

/// mount_setattr(2) on the mount of `tree` and, if `recursive`, on those below it: sets the MOUNT_ATTR_ bits `set`.
///
/// # Errors
/// Its errno; ENOSYS on kernels before 5.12.
pub fn set_mount_attributes(tree: RawFd, set: u32, recursive: bool) -> Call<()> {
    let attributes = [u64::from(set), 0, 0, 0];
    let flags = libc::AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: `attributes` has the layout of struct mount_attr: set, clear, propagation, user namespace, 64 bits each.
    check(unsafe {
        libc::syscall(libc::SYS_mount_setattr, tree, c"".as_ptr(), flags, attributes.as_ptr(), size_of_val(&attributes))
    })
    .map(drop)
}

/// A new file system of `kind` with `options` (key and value), as a detached mount with the MOUNT_ATTR_ bits
/// `attributes`: fsopen(2), fsconfig(2), fsmount(2).
///
/// # Errors
/// The errno of the call that failed; ENOSYS on kernels before 5.2.
pub fn new_file_system(kind: &CStr, options: &[(&CStr, &CStr)], attributes: u32) -> Call<RawFd> {
    // SAFETY: the string ends in NUL.
    let context = check_fd(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    for (key, value) in options {
        // SAFETY: both strings end in NUL.
        check(unsafe {
            libc::syscall(libc::SYS_fsconfig, context, FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr(), 0)
        })?;
    }
    let null = core::ptr::null::<c_char>();
    // SAFETY: this command takes no strings.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context, FSCONFIG_CMD_CREATE, null, null, 0) })?;
    // SAFETY: no pointer.
    check_fd(unsafe { libc::syscall(libc::SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes) })
}

/// close_range(2): closes the descriptors from `first` to `last`.
///
/// # Errors
/// Its errno; ENOSYS on kernels before 5.9.
pub fn close_range(first: c_uint, last: c_uint) -> Call<()> {
    // SAFETY: called first of all, when nothing but the standard library's 0 to 2 is in use.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Sets close-on-exec on one descriptor.
///
/// # Errors
/// The errno of fcntl(2).
pub fn close_on_exec(fd: RawFd) -> Call<()> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// Sets the disposition of `signal` to its default.
///
/// # Errors
/// The errno of sigaction(2).
pub fn default_signal(signal: c_int) -> Call<()> {
    // SAFETY: the kernel's struct sigaction of at most 32 bytes, all zero, means SIG_DFL without flags.
    let action = [0_u64; 4];
    // SAFETY: pointers are valid, the size of the signal set is 8 bytes.
    check(unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), core::ptr::null::<u64>(), 8) })
        .map(drop)
}

/// sigaction(2) with a disposition that runs no code.
///
/// # Errors
/// Its errno.
pub fn set_disposition(signal: nix::sys::signal::Signal, action: &nix::sys::signal::SigAction) -> Call<()> {
    use nix::sys::signal::{SigHandler, sigaction};
    if !matches!(action.handler(), SigHandler::SigDfl | SigHandler::SigIgn) {
        return Err(Errno::EINVAL);
    }
    // SAFETY: no handler is installed (checked).
    unsafe { sigaction(signal, action) }.map(drop)
}

/// Unblocks all signals.
///
/// # Errors
/// The errno of sigprocmask(2).
pub fn unblock_signals() -> Call<()> {
    let mask = 0_u64;
    // SAFETY: pointers are valid, the size of the signal set is 8 bytes.
    check(unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, core::ptr::null::<u64>(), 8)
    })
    .map(drop)
}

/// pidfd_send_signal(2).
///
/// # Errors
/// Its errno.
pub fn signal_process(pidfd: BorrowedFd<'_>, signal: c_int) -> Call<()> {
    let null = core::ptr::null::<c_void>();
    // SAFETY: a NULL siginfo is allowed.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, null, 0) }).map(drop)
}

/// Waits for the child behind `pidfd` and reaps it: its exit code, or 128 and the signal that killed it, and that
/// signal (0: it exited).
///
/// # Errors
/// The errno of waitid(2).
pub fn wait_child(pidfd: BorrowedFd<'_>) -> Call<(u8, c_int)> {
    let id = libc::id_t::try_from(pidfd.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    // SAFETY: siginfo_t is plain data for which zero is valid.
    let mut info: libc::siginfo_t = unsafe { core::mem::zeroed() };
    loop {
        // SAFETY: the pointer is to a whole siginfo_t.
        match check(c_long::from(unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED) })) {
            Err(Errno::EINTR) => {}
            result => break result?,
        }
    }
    // SAFETY: waitid fills in the member for SIGCHLD.
    let status = unsafe { info.si_status() };
    let code = u8::try_from(status & 0xff).unwrap_or(u8::MAX);
    if info.si_code == libc::CLD_EXITED { Ok((code, 0)) } else { Ok((128_u8.saturating_add(code), status)) }
}

/// Brings up the loopback of this network namespace.
///
/// # Errors
/// The errno of socket(2) or of ioctl(SIOCSIFFLAGS).
pub fn loopback_up() -> Call<()> {
    // SAFETY: no pointer.
    let socket =
        check_fd(unsafe { libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: ifreq is plain data for which zero is valid.
    let mut request: libc::ifreq = unsafe { core::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = c_char::try_from(*from).unwrap_or(0);
    }
    request.ifr_ifru.ifru_flags = 0x1 | 0x40; // IFF_UP | IFF_RUNNING
    // SAFETY: the pointer is to a whole struct ifreq.
    let result =
        check(unsafe { libc::syscall(libc::SYS_ioctl, socket, libc::SIOCSIFFLAGS as c_ulong, &raw mut request) });
    close(socket);
    result.map(drop)
}

/// Unlocks the pty of `master` and opens its other end without a path (TIOCGPTPEER).
///
/// # Errors
/// The errno of the ioctl(2) that failed.
pub fn open_peer(master: RawFd) -> Call<RawFd> {
    let unlocked: c_int = 0;
    // SAFETY: the pointer is to an int.
    check(unsafe { libc::syscall(libc::SYS_ioctl, master, libc::TIOCSPTLCK as c_ulong, &raw const unlocked) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the argument is a number.
    check_fd(unsafe { libc::syscall(libc::SYS_ioctl, master, libc::TIOCGPTPEER as c_ulong, flags) })
}

/// ioctl(TIOCSCTTY, 0): `tty` becomes the controlling terminal.
///
/// # Errors
/// Its errno.
pub fn take_terminal(tty: RawFd) -> Call<()> {
    // SAFETY: the argument is a number.
    check(unsafe { libc::syscall(libc::SYS_ioctl, tty, libc::TIOCSCTTY as c_ulong, 0) }).map(drop)
}

/// Copies the window size of the terminal `from` to `to`.
///
/// # Errors
/// The errno of ioctl(TIOCGWINSZ) or ioctl(TIOCSWINSZ).
pub fn copy_window_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Call<()> {
    // SAFETY: winsize is plain data for which zero is valid.
    let mut size: libc::winsize = unsafe { core::mem::zeroed() };
    // SAFETY: the pointer is to a whole struct winsize.
    check(c_long::from(unsafe { libc::ioctl(from.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }))?;
    // SAFETY: as above.
    check(c_long::from(unsafe { libc::ioctl(to.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })).map(drop)
}

/// The foreground process group of the terminal whose master is `master`, as a number of this pid namespace.
///
/// # Errors
/// The errno of ioctl(TIOCGPGRP).
pub fn foreground_group(master: BorrowedFd<'_>) -> Call<i32> {
    let mut group: c_int = 0;
    // SAFETY: the pointer is to an int.
    check(c_long::from(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPGRP, &raw mut group) }))?;
    Ok(group)
}

/// Buffer for the control message of at most three descriptors.
#[repr(C, align(8))]
struct Ancillary([u8; 64]);

/// sendmsg(2) of `bytes` with up to three descriptors; never raises SIGPIPE.
///
/// # Errors
/// Its errno; EPIPE when the other side is gone, EINVAL for more than three descriptors.
pub fn send_message(socket: RawFd, bytes: &[u8], fds: &[RawFd]) -> Call<()> {
    if fds.len() > 3 {
        return Err(Errno::EINVAL);
    }
    let mut ancillary = Ancillary([0; 64]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain data for which zero is valid.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    let size = c_uint::try_from(size_of_val(fds)).unwrap_or(0);
    if !fds.is_empty() {
        message.msg_control = ancillary.0.as_mut_ptr().cast();
        // SAFETY: pure arithmetic; three descriptors need 32 bytes of the 64.
        message.msg_controllen = (unsafe { libc::CMSG_SPACE(size) }) as _;
        // SAFETY: the control buffer is aligned and long enough for one header and the descriptors.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size) as _;
            core::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), size_of_val(fds));
        }
    }
    // SAFETY: the message and everything it points to is valid.
    check(unsafe { libc::syscall(libc::SYS_sendmsg, socket, &raw const message, libc::MSG_NOSIGNAL) }).map(drop)
}

/// recvmsg(2): the number of bytes in `buffer` (0 at the end) and up to three descriptors, close-on-exec, in `fds`
/// (-1 where none came).
///
/// # Errors
/// Its errno.
pub fn receive_message(socket: RawFd, buffer: &mut [u8], fds: &mut [RawFd; 3]) -> Call<usize> {
    *fds = [-1; 3];
    let mut ancillary = Ancillary([0; 64]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain data for which zero is valid.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = ancillary.0.as_mut_ptr().cast();
    // SAFETY: pure arithmetic. CMSG_LEN and not CMSG_SPACE, whose padding would let a fourth descriptor in.
    message.msg_controllen = (unsafe { libc::CMSG_LEN(12) }) as _;
    let length = loop {
        // SAFETY: the message and everything it points to is valid.
        let result = unsafe { libc::syscall(libc::SYS_recvmsg, socket, &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match check(result) {
            Err(Errno::EINTR) => {}
            result => break result?,
        }
    };
    // SAFETY: the kernel has filled in the control buffer and its length.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: NULL or a header inside the buffer.
    if let Some(head) = unsafe { header.as_ref() }
        && head.cmsg_level == libc::SOL_SOCKET
        && head.cmsg_type == libc::SCM_RIGHTS
    {
        // SAFETY: pure arithmetic.
        let empty = unsafe { libc::CMSG_LEN(0) } as usize;
        #[allow(clippy::unnecessary_cast, reason = "the field's type differs between libcs")]
        let count = (head.cmsg_len as usize).saturating_sub(empty) / size_of::<RawFd>();
        // SAFETY: at most three descriptors, which is what the array holds and the kernel was given room for.
        unsafe {
            let data = libc::CMSG_DATA(header);
            core::ptr::copy_nonoverlapping(data, fds.as_mut_ptr().cast(), count.min(3) * size_of::<RawFd>());
        }
    }
    usize::try_from(length).map_err(|_| Errno::EOVERFLOW)
}

/// Takes ownership of a descriptor number that [`receive_message`] delivered.
#[must_use]
pub fn own(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: the kernel made it for us in recvmsg, and the caller passes each once.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor of this process by number, such as one named on the command line.
///
/// # Errors
/// EBADF when it is not open.
pub fn take(fd: RawFd) -> Call<OwnedFd> {
    // SAFETY: no pointer.
    check(unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_GETFD) })?;
    // SAFETY: it is open, and the caller of this program handed it to us by name.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// read(2), again after EINTR.
///
/// # Errors
/// Its errno.
pub fn read(fd: RawFd, buffer: &mut [u8]) -> Call<usize> {
    loop {
        // SAFETY: pointer and length belong together.
        match check(unsafe { libc::syscall(libc::SYS_read, fd, buffer.as_mut_ptr(), buffer.len()) }) {
            Err(Errno::EINTR) => {}
            result => return Ok(usize::try_from(result?).unwrap_or(0)),
        }
    }
}
