//! A kernel that is made to look older.
#![allow(unsafe_code)]

use std::io;

pub use tests::sys::without_system_calls_from;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A kernel before 5.8: setns(2) with more than one kind of namespace, which it takes for a pidfd, answers EINVAL. The
/// filter is inherited. For a process with CAP_SYS_ADMIN.
pub fn without_setns_of_a_pidfd() -> io::Result<()> {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let number = u32::try_from(libc::SYS_setns).expect("a number");
    let all = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWCGROUP;
    let mut filter = [
        step(LOAD, 0, 0, 0),
        step(EQUAL, 0, 3, number),
        // The low half of the second argument.
        step(LOAD, 0, 0, 24),
        step(EQUAL, 0, 1, u32::try_from(all).expect("flags")),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EINVAL).expect("an errno")),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 6, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter outlive the call, which copies them.
    check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) }).map(drop)
}
