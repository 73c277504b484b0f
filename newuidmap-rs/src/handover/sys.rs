//! System calls of the programs that end by executing the caller's command.

#![allow(unsafe_code)]

use crate::sys::set_signal;
use core::sync::atomic::{AtomicU8, Ordering};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::Mutex;
use std::time::Duration;

/// Which of descriptors 0, 1 and 2 were closed when the process started, one bit each. The C library opens all three in a
/// setuid program, and Rust's runtime in any, before main or what .init_array names.
static CLOSED_AT_START: AtomicU8 = AtomicU8::new(0);

/// The entry point of a program that hands its descriptors over (its build script names it to the linker): asks
/// fcntl(F_GETFD) about descriptors 0, 1 and 2, and goes on to the C library's. Elsewhere than on x86-64 that is the entry
/// point itself, and the three are open.
///
/// # Safety
/// The kernel alone enters here, with the stack of a fresh program.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn handover_start() -> ! {
    // The stack and rdx are the C library's and stay as they are; a system call changes rax, rcx and r11.
    core::arch::naked_asm!(
        "mov r12, rdx",
        "xor ebx, ebx",
        "xor ebp, ebp",
        "2:",
        "mov edi, ebx",
        "mov esi, {get_flags}",
        "mov eax, {fcntl}",
        "syscall",
        "test rax, rax",
        "jns 3f",
        "bts ebp, ebx",
        "3:",
        "inc ebx",
        "cmp ebx, 3",
        "jne 2b",
        "mov byte ptr [rip + {closed}], bpl",
        "mov rdx, r12",
        "xor ebp, ebp",
        "jmp _start",
        get_flags = const libc::F_GETFD,
        fcntl = const libc::SYS_fcntl,
        closed = sym CLOSED_AT_START,
    )
}

/// Closes those of descriptors 0, 1 and 2 again that were closed when the process started.
pub fn close_as_at_start() {
    let closed = CLOSED_AT_START.load(Ordering::Relaxed);
    for number in (0..3).filter(|number| closed & (1 << number) != 0) {
        // SAFETY: close(2) touches no memory, and what the C library has opened there nobody here owns.
        unsafe { libc::close(number) };
    }
}

/// Sets a signal to being ignored or to its default action, and gives whether it was ignored before (sigaction(2)).
///
/// # Errors
/// EINVAL for SIGKILL, SIGSTOP and numbers that are no signal.
pub fn exchange_signal(signal: Signal, ignore: bool) -> Result<bool, Errno> {
    // SAFETY: a sigaction of zeroes is valid, and the kernel fills it.
    let mut old: libc::sigaction = unsafe { core::mem::zeroed() };
    // SAFETY: as above: no flags, an empty mask.
    let mut new: libc::sigaction = unsafe { core::mem::zeroed() };
    new.sa_sigaction = if ignore { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: neither action is a handler, so no code runs in signal context; both are whole sigactions.
    Errno::result(unsafe { libc::sigaction(signal as libc::c_int, &raw const new, &raw mut old) })?;
    Ok(old.sa_sigaction == libc::SIG_IGN)
}

/// The three interval timers as they were, see [`exchange_timers`].
#[derive(Clone, Copy)]
pub struct Timers([libc::itimerval; 3]);

impl Timers {
    /// Whether one of them is set to anything.
    #[must_use]
    pub fn are_set(&self) -> bool {
        let is_set = |time: &libc::timeval| time.tv_sec != 0 || time.tv_usec != 0;
        self.0.iter().any(|timer| is_set(&timer.it_value) || is_set(&timer.it_interval))
    }
}

impl core::fmt::Debug for Timers {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Timers")
    }
}

/// Sets the interval timers ITIMER_REAL, ITIMER_VIRTUAL and ITIMER_PROF, all stopped without `new`, and gives what they
/// were (setitimer(2)).
///
/// # Errors
/// The kernel's, which has none for these arguments.
pub fn exchange_timers(new: Option<Timers>) -> Result<Timers, Errno> {
    let zero = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let never = libc::itimerval { it_interval: zero, it_value: zero };
    let new = new.unwrap_or(Timers([never; 3]));
    let mut old = [never; 3];
    let which = [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF];
    for ((which, new), old) in which.into_iter().zip(&new.0).zip(&mut old) {
        // SAFETY: both point at whole itimervals that outlive the call.
        Errno::result(unsafe { libc::setitimer(which, new, old) })?;
    }
    Ok(Timers(old))
}

extern "C" fn wake_up(_: libc::c_int) {}

/// Takes an exclusive flock(2), waiting no longer than `limit`. ITIMER_REAL and SIGALRM are used meanwhile: SIGALRM is at
/// its default and the timer stopped afterwards.
///
/// # Errors
/// EWOULDBLOCK when the time is over; the kernel's.
pub fn lock_within(file: &std::fs::File, limit: Duration) -> Result<(), Errno> {
    let lock = |operation| {
        // SAFETY: the descriptor is open for as long as `file` is borrowed.
        Errno::result(unsafe { libc::flock(file.as_raw_fd(), operation) }).map(drop)
    };
    match lock(libc::LOCK_EX | libc::LOCK_NB) {
        Err(Errno::EWOULDBLOCK) if !limit.is_zero() => {}
        other => return other,
    }
    // SAFETY: a sigaction of zeroes is valid: no flags, so that the alarm interrupts flock.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = wake_up as extern "C" fn(libc::c_int) as usize;
    // SAFETY: the handler does nothing, and `action` is a whole sigaction.
    Errno::result(unsafe { libc::sigaction(libc::SIGALRM, &raw const action, core::ptr::null_mut()) })?;
    let end = std::time::Instant::now().checked_add(limit).ok_or(Errno::EINVAL)?;
    // Repeated, so that an alarm between the test of the time and flock is not the last one.
    let every = libc::timeval { tv_sec: 0, tv_usec: 200_000 };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: `timer` outlives the call, and a null pointer means that the old value is not wanted.
    Errno::result(unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, core::ptr::null_mut()) })?;
    let locked = loop {
        match lock(libc::LOCK_EX) {
            Err(Errno::EINTR) if std::time::Instant::now() < end => {}
            Err(Errno::EINTR) => break Err(Errno::EWOULDBLOCK),
            other => break other,
        }
    };
    exchange_timers(None)?;
    set_signal(Signal::SIGALRM, false)?;
    locked
}

/// What the handler of [`watch_tracees`] goes by.
struct Watch {
    first: i32,
    end: std::time::Instant,
    words: String,
    status: u8,
}

static WATCH: Mutex<Option<Watch>> = Mutex::new(None);

/// Of system calls only waitid(2), clock_gettime(2), write(2) and _exit(2), and no memory is allocated.
extern "C" fn take_note(_: libc::c_int) {
    let errno = Errno::last_raw();
    // Whoever sets it has stopped the timer, so this is never refused for long.
    if let Ok(watch) = WATCH.try_lock()
        && let Some(watch) = watch.as_ref()
    {
        loop {
            if std::time::Instant::now() >= watch.end {
                // SAFETY: a text with its own length; both calls are allowed in a signal handler.
                unsafe {
                    libc::write(2, watch.words.as_ptr().cast(), watch.words.len());
                    libc::_exit(libc::c_int::from(watch.status));
                }
            }
            let look = libc::WEXITED | libc::WNOHANG | libc::__WALL;
            // SAFETY: a siginfo of zeroes is valid, and the kernel fills it.
            let mut info: libc::siginfo_t = unsafe { core::mem::zeroed() };
            // SAFETY: `info` is a whole siginfo that outlives the call.
            if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, look | libc::WNOWAIT) } != 0 {
                break;
            }
            // SAFETY: waitid(2) fills this field, and leaves its zero where nothing has ended.
            let ended = unsafe { info.si_pid() };
            let Ok(id) = libc::id_t::try_from(ended) else { break };
            if ended == 0 || ended == watch.first {
                break;
            }
            // SAFETY: as above.
            unsafe { libc::waitid(libc::P_PID, id, &raw mut info, look) };
        }
    }
    Errno::set_raw(errno);
}

/// Stops the clock of [`watch_tracees`] when it is dropped, with SIGALRM at its default.
#[derive(Debug)]
pub struct Clock(());

impl Drop for Clock {
    fn drop(&mut self) {
        // Neither has an error for these arguments.
        let _ = exchange_timers(None);
        let _ = set_signal(Signal::SIGALRM, false);
    }
}

/// For a program that takes hold of the threads of a process by PTRACE_SEIZE, one after another: until what is returned is
/// dropped, it takes note of those that have ended, every 5 ms, and after `limit` it ends with `words` on standard error and
/// `status`.
///
/// A thread that executes a program has the lock that a seizure waits for (cred_guard_mutex; ptrace_attach() of
/// kernel/ptrace.c), and waits itself until every other thread has gone (de_thread() of fs/exec.c); those that are traced
/// go when their tracer takes note, which waits. A signal alone does not end that wait: it begins anew after the handler.
///
/// Never taken note of is `first`, with whose entry the number of the process would go; the first thread is not waited for
/// by what executes a program. Every other child of this program that has ended goes. ITIMER_REAL and SIGALRM are used.
///
/// # Errors
/// The kernel's, which has none for these arguments.
pub fn watch_tracees(first: i32, limit: Duration, words: String, status: u8) -> Result<Clock, Errno> {
    let end = std::time::Instant::now().checked_add(limit).ok_or(Errno::EINVAL)?;
    if let Ok(mut watch) = WATCH.lock() {
        *watch = Some(Watch { first, end, words, status });
    }
    // SAFETY: a sigaction of zeroes is valid.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = take_note as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler calls what may be called in one, and `action` is a whole sigaction.
    Errno::result(unsafe { libc::sigaction(libc::SIGALRM, &raw const action, core::ptr::null_mut()) })?;
    let clock = Clock(());
    let every = libc::timeval { tv_sec: 0, tv_usec: 5_000 };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: `timer` outlives the call, and a null pointer means that the old value is not wanted.
    Errno::result(unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, core::ptr::null_mut()) })?;
    Ok(clock)
}

/// Replaces the process by `program` (execve(2)). Returns only when that fails.
pub fn exec(program: &CStr, arguments: &[CString], environment: &[CString]) -> Errno {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|word| word.as_ptr()).chain([core::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both lists are null-terminated arrays of NUL-terminated strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Errno::last()
}

/// A mount of the v1 hierarchy `name=NAME`, which is made when it does not exist: the descriptor of its top,
/// close-on-exec. Nobody else sees the mount, and closing the descriptor unmounts it (fsopen(2), from Linux 5.2 on; before,
/// a mount on the directory `at` in a mount namespace that ends at once).
///
/// # Errors
/// ENOENT when the kernel was started with cgroup_no_v1=named; ENODEV without cgroup v1; EPERM without CAP_SYS_ADMIN.
pub fn mount_named_hierarchy(name: &CStr, at: &CStr) -> Result<OwnedFd, Errno> {
    match mount_detached(name) {
        Err(Errno::ENOSYS) => mount_in_a_namespace(name, at),
        other => other,
    }
}

/// A child that shares this process's descriptors, but nothing else, mounts the hierarchy in a mount namespace of its own
/// and puts the descriptor of its top in the place of one that was opened before. The mount namespace ends with the child;
/// the mount lives on by the descriptor.
fn mount_in_a_namespace(name: &CStr, at: &CStr) -> Result<OwnedFd, Errno> {
    let options = CString::new([b"none,name=", name.to_bytes()].concat()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: a NUL-terminated string and flags.
    let place = unsafe { libc::open(c"/".as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
    let place = owned(Errno::result(place)?.into())?;
    let flags = libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: as fork(2): this process has one thread, and the child makes system calls alone and ends.
    let child = Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })?;
    if child == 0 {
        let mount = |source: &CStr, target: &CStr, kind: *const libc::c_char, flags, data: *const libc::c_char| {
            // SAFETY: each pointer is null or a NUL-terminated string that outlives the call.
            unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, data.cast()) }
        };
        // SAFETY: a number.
        let unshared = unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0;
        let attributes = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let mounted = unshared
            && mount(c"none", c"/", core::ptr::null(), libc::MS_REC | libc::MS_PRIVATE, core::ptr::null()) == 0
            && mount(c"none", at, c"cgroup".as_ptr(), attributes, options.as_ptr()) == 0;
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: a NUL-terminated string and flags.
        let top = if mounted { unsafe { libc::open(at.as_ptr(), flags) } } else { -1 };
        // SAFETY: numbers; the parent waits for this child before it looks at the descriptor.
        let placed = top >= 0 && unsafe { libc::dup3(top, place.as_raw_fd(), libc::O_CLOEXEC) } >= 0;
        let errno = if placed { 0 } else { Errno::last_raw() };
        // SAFETY: numbers; the descriptors are shared, so this one would stay open in the parent.
        unsafe {
            libc::close(top);
            libc::_exit(errno)
        }
    }
    let mut status = 0;
    loop {
        // SAFETY: a whole int that the kernel fills.
        let waited = unsafe { libc::syscall(libc::SYS_wait4, child, &raw mut status, 0, 0) };
        match Errno::result(waited) {
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, 0) => Ok(place),
        (true, errno) => Err(Errno::from_raw(errno)),
        _ => Err(Errno::EINTR),
    }
}

fn mount_detached(name: &CStr) -> Result<OwnedFd, Errno> {
    const FSOPEN_CLOEXEC: libc::c_int = 1;
    const FSMOUNT_CLOEXEC: libc::c_int = 1;
    const SET_FLAG: libc::c_int = 0;
    const SET_STRING: libc::c_int = 1;
    const CREATE: libc::c_int = 6;
    // MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    const ATTRIBUTES: libc::c_int = 0x2 | 0x4 | 0x8;
    // SAFETY: one NUL-terminated string and a flag.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, c"cgroup".as_ptr(), FSOPEN_CLOEXEC) };
    let context = owned(Errno::result(context)?)?;
    let set = |command: libc::c_int, key: Option<&CStr>, value: Option<&CStr>| {
        let pointer = |text: Option<&CStr>| text.map_or(core::ptr::null(), CStr::as_ptr);
        // SAFETY: each pointer is null or a NUL-terminated string that outlives the call.
        let done =
            unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, pointer(key), pointer(value), 0) };
        Errno::result(done).map(drop)
    };
    set(SET_FLAG, Some(c"none"), None)?;
    set(SET_STRING, Some(c"name"), Some(name))?;
    set(CREATE, None, None)?;
    // SAFETY: three numbers.
    let mount = unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, ATTRIBUTES) };
    owned(Errno::result(mount)?)
}

/// A descriptor that the kernel has just made for us.
fn owned(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let number = RawFd::try_from(result).map_err(|_| Errno::EBADF)?;
    // SAFETY: the caller of this function got the number from the kernel this moment, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A descriptor of the process `pid`, close-on-exec (pidfd_open(2), from Linux 5.3 on).
///
/// # Errors
/// ENOSYS before; ESRCH.
pub fn pidfd_open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: two numbers.
    owned(Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?)
}

/// Sends SIGKILL to the process of a pidfd (pidfd_send_signal(2), from Linux 5.1 on).
///
/// # Errors
/// ESRCH when it is gone; EPERM.
pub fn pidfd_kill(pidfd: &OwnedFd) -> Result<(), Errno> {
    let no_info = core::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open for as long as `pidfd` is borrowed, and a null siginfo is allowed.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, no_info, 0) };
    Errno::result(sent).map(drop)
}

/// Lets go of a tracee that is stopped (PTRACE_DETACH). A signal that was about to reach it does so.
///
/// # Errors
/// ESRCH when it is not a stopped tracee of this process.
pub fn release_tracee(tid: i32) -> Result<(), Errno> {
    let none = core::ptr::null_mut::<libc::c_void>();
    // SAFETY: a siginfo of zeroes is valid, and the kernel fills it.
    let mut info: libc::siginfo_t = unsafe { core::mem::zeroed() };
    // SAFETY: `info` is a whole siginfo that outlives the call.
    let asked = Errno::result(unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, tid, none, &raw mut info) });
    // Stopped by PTRACE_INTERRUPT or job control it is about to get no signal.
    let signal = match asked {
        Ok(_) if info.si_code >> 8 != libc::PTRACE_EVENT_STOP => info.si_signo,
        Ok(_) | Err(Errno::EINVAL) => 0,
        Err(error) => return Err(error),
    };
    // SAFETY: numbers; this request touches no memory of this process.
    Errno::result(unsafe { libc::ptrace(libc::PTRACE_DETACH, tid, none, libc::c_long::from(signal)) }).map(drop)
}

/// The value of an extended attribute, at most `limit` bytes (fgetxattr(2)).
///
/// # Errors
/// ENODATA when there is none, also for a reader without CAP_SYS_ADMIN in `trusted.*`; ERANGE when it is longer.
pub fn attribute(file: &impl AsFd, name: &CStr, limit: usize) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0_u8; limit];
    // SAFETY: a NUL-terminated string, and a buffer with its own length.
    let read =
        unsafe { libc::fgetxattr(file.as_fd().as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    let read = usize::try_from(Errno::result(read)?).map_err(|_| Errno::EINVAL)?;
    value.truncate(read);
    Ok(value)
}

/// Sets an extended attribute (fsetxattr(2)).
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN in `trusted.*`; EOPNOTSUPP.
pub fn set_attribute(file: &impl AsFd, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: a NUL-terminated string, and a buffer with its own length.
    let set =
        unsafe { libc::fsetxattr(file.as_fd().as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(set).map(drop)
}

/// The names of the directories in an open directory, from its beginning, without `.` and `..` (getdents64(2)). The
/// position of the descriptor is moved.
///
/// # Errors
/// The kernel's; EIO for what it never says.
pub fn directories_in(directory: &impl AsFd) -> Result<Vec<CString>, Errno> {
    /// Where d_reclen, d_type and d_name stand in a struct linux_dirent64.
    const LENGTH: usize = 16;
    const TYPE: usize = 18;
    const NAME: usize = 19;
    let number = directory.as_fd().as_raw_fd();
    // SAFETY: numbers.
    Errno::result(unsafe { libc::lseek(number, 0, libc::SEEK_SET) })?;
    let mut names = Vec::new();
    let mut buffer = [0_u8; 4096];
    loop {
        // SAFETY: a buffer with its own length.
        let read = unsafe { libc::syscall(libc::SYS_getdents64, number, buffer.as_mut_ptr(), buffer.len()) };
        let read = usize::try_from(Errno::result(read)?).map_err(|_| Errno::EIO)?;
        let mut rest = buffer.get(..read).ok_or(Errno::EIO)?;
        if rest.is_empty() {
            return Ok(names);
        }
        while !rest.is_empty() {
            let length = rest.get(LENGTH..TYPE).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
            let (entry, after) = length.and_then(|length| rest.split_at_checked(length.into())).ok_or(Errno::EIO)?;
            // Shorter than its head, it would be no entry, and a length of 0 no way on.
            let name = entry.get(NAME..).and_then(|name| CStr::from_bytes_until_nul(name).ok()).ok_or(Errno::EIO)?;
            if entry.get(TYPE) == Some(&libc::DT_DIR) && name != c"." && name != c".." {
                names.push(name.to_owned());
            }
            rest = after;
        }
    }
}
