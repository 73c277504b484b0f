use super::*;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const DENIED: u32 = libc::SECCOMP_RET_ERRNO | 1;
const X86_64: u32 = 0xc000_003e;

/// The kernel's own semantics of the few instructions that seccompiler makes.
fn run(program: &BpfProgram, arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = [number.to_ne_bytes(), arch.to_ne_bytes(), [0; 4], [0; 4]].concat();
    data.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
    let (mut at, mut a) = (0_usize, 0_u32);
    loop {
        let i = &program[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { i.jt } else { i.jf });
        match i.code {
            0x20 => a = u32::from_ne_bytes(data[i.k as usize..i.k as usize + 4].try_into().unwrap()),
            0x54 => a &= i.k,
            0x05 => at += i.k as usize,
            0x15 => at += jump(a == i.k),
            0x25 => at += jump(a > i.k),
            0x35 => at += jump(a >= i.k),
            0x06 => return i.k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// The strictest answer of all programs, as the kernel takes it: the lowest number, read as signed.
fn answer(programs: &[BpfProgram], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
    programs
        .iter()
        .map(|program| run(program, arch, number, arguments))
        .min_by_key(|a| (*a & 0xffff_0000).cast_signed())
        .unwrap()
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_built_in_filter_denies_the_same_in_every_way_of_calling() {
    let programs = Profile::default().programs(None).unwrap();
    assert_eq!(programs.len(), 1);
    let ask = |arch, number, arguments| answer(&programs, arch, number, arguments);
    let none = [0; 6];
    // kexec_load, kexec_file_load, open_by_handle_at, init_module, finit_module, delete_module.
    for number in [246, 320, 304, 175, 313, 176] {
        assert_eq!(ask(X86_64, number, none), DENIED, "{number}");
        assert_eq!(ask(X86_64, number | 0x4000_0000, none), DENIED, "x32 {number}");
    }
    for number in [283, 342, 128, 350, 129] {
        assert_eq!(ask(AUDIT_ARCH_I386, number, none), DENIED, "i386 {number}");
    }
    assert_eq!(ask(X86_64, 528 | 0x4000_0000, none), DENIED);
    for (arch, ioctl) in
        [(X86_64, 16), (X86_64, 514 | 0x4000_0000), (X86_64, 16 | 0x4000_0000), (X86_64, 514), (AUDIT_ARCH_I386, 54)]
    {
        for request in [0x5412, 0x541c] {
            assert_eq!(ask(arch, ioctl, [0, request, 0, 0, 0, 0]), DENIED);
            // The kernel looks at 32 bits (CVE-2019-10063).
            assert_eq!(ask(arch, ioctl, [0, request | 0xdead_0000_0000, 0, 0, 0, 0]), DENIED);
        }
        assert_eq!(ask(arch, ioctl, [0, 0x5413, 0, 0, 0, 0]), ALLOW);
    }
    for (arch, umount) in [(X86_64, 166), (AUDIT_ARCH_I386, 52)] {
        assert_eq!(ask(arch, umount, [0, 1, 0, 0, 0, 0]), DENIED);
        assert_eq!(ask(arch, umount, [0, 3, 0, 0, 0, 0]), DENIED);
        assert_eq!(ask(arch, umount, [0, 2, 0, 0, 0, 0]), ALLOW);
    }
    // read, mount, and numbers that mean another call in the other table.
    for (arch, number) in [
        (X86_64, 0),
        (X86_64, 165),
        (X86_64, 54),
        (X86_64, 128),
        (AUDIT_ARCH_I386, 3),
        (AUDIT_ARCH_I386, 246),
        (AUDIT_ARCH_I386, 16),
    ] {
        assert_eq!(ask(arch, number, [0, 0x5412, 0, 0, 0, 0]), ALLOW, "{arch:x} {number}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_read_only_mount_stays_so() {
    let mut profile = Profile::default();
    profile.keep_read_only();
    let programs = profile.programs(None).unwrap();
    let ask = |arch, number, flags| answer(&programs, arch, number, [0, 0, 0, flags, 0, 0]);
    for (arch, mount) in [(X86_64, 165), (X86_64, 165 | 0x4000_0000), (AUDIT_ARCH_I386, 21)] {
        assert_eq!(ask(arch, mount, libc::MS_REMOUNT | libc::MS_BIND), DENIED);
        assert_eq!(ask(arch, mount, 0xc0ed_0000 | libc::MS_REMOUNT | libc::MS_BIND | libc::MS_NOSUID), DENIED);
        assert_eq!(ask(arch, mount, libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY), ALLOW);
        assert_eq!(ask(arch, mount, libc::MS_REMOUNT), ALLOW);
        assert_eq!(ask(arch, mount, libc::MS_BIND), ALLOW);
    }
    for arch in [X86_64, AUDIT_ARCH_I386] {
        for number in [442, 467] {
            assert_eq!(ask(arch, number, 0), libc::SECCOMP_RET_ERRNO | 38);
        }
    }
    assert_eq!(answer(&programs, X86_64, 304, [0; 6]), DENIED);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_profile_of_lxcs_is_done_as_it_says() {
    let text = "2\ndenylist\n# comment\nreject_force_umount  # comment this\n[all]\nkexec_load errno 1\nmkdir errno 2\n\
                ioctl errno 3 [1,0x5413,SCMP_CMP_EQ]\n[x86]\ngetpid errno 4\n[x86_64]\ngettid kill\n[ppc64]\nnonsense\n";
    let profile = Profile::parse(text).unwrap();
    let programs = Profile::default().programs(Some(&profile)).unwrap();
    let ask = |arch, number, arguments| answer(&programs, arch, number, arguments);
    let errno = |n| libc::SECCOMP_RET_ERRNO | n;
    assert_eq!(ask(X86_64, 83, [0; 6]), errno(2));
    assert_eq!(ask(AUDIT_ARCH_I386, 39, [0; 6]), errno(2));
    assert_eq!(ask(X86_64, 16, [0, 0x5413, 0, 0, 0, 0]), errno(3));
    assert_eq!(ask(X86_64, 16, [0, 0x5412, 0, 0, 0, 0]), DENIED);
    assert_eq!(ask(AUDIT_ARCH_I386, 20, [0; 6]), errno(4));
    assert_eq!(ask(X86_64, 39, [0; 6]), ALLOW);
    assert_eq!(ask(X86_64, 186, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
    assert_eq!(ask(AUDIT_ARCH_I386, 224, [0; 6]), ALLOW);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn an_allow_list_refuses_what_it_does_not_name() {
    let profile = Profile::parse("2\nallowlist errno 38\n[all]\nread\nwrite\nmkdir errno 5\nioctl\n").unwrap();
    let programs = Profile::default().programs(Some(&profile)).unwrap();
    let ask = |number, arguments| answer(&programs, X86_64, number, arguments);
    assert_eq!((ask(0, [0; 6]), ask(1, [0; 6])), (ALLOW, ALLOW));
    assert_eq!(ask(2, [0; 6]), libc::SECCOMP_RET_ERRNO | 38);
    assert_eq!(ask(83, [0; 6]), libc::SECCOMP_RET_ERRNO | 5);
    assert_eq!(ask(16, [0, 0x5412, 0, 0, 0, 0]), DENIED, "what is built in stays");
}

#[test]
fn a_profile_that_cannot_be_done_is_refused_with_its_line() {
    for (text, said) in [
        ("", "begin with the version"),
        ("1\nwhitelist\n5\n", "version 1"),
        ("3\n", "begin with the version"),
        ("2\n", "neither denylist nor allowlist"),
        ("2\nmaybe\n", "line 2: \"maybe\""),
        ("2\ndenylist\nno_such_call errno 1\n", "line 3: \"no_such_call\" is no system call"),
        ("2\ndenylist\nread notify\n", "line 3: the action \"notify\""),
        ("2\ndenylist\nread errno\n", "line 3: \"errno\" is no action"),
        ("2\ndenylist\nread errno 99999\n", "is no errno"),
        ("2\ndenylist\nread allow\n", "nothing can be allowed"),
        ("2\ndenylist\nread errno 1 [1,2\n", "has no ]"),
        ("2\ndenylist\nread errno 1 [6,2,SCMP_CMP_EQ]\n", "must be [INDEX"),
        ("2\ndenylist\nread errno 1 [0,2,SCMP_CMP_MASKED_EQ]\n", "must be [INDEX"),
    ] {
        let error = Profile::parse(text).unwrap_err();
        assert!(error.contains(said), "{text:?}: {error}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_a_profile_or_refused_in_words(
        text in "(2\\n)?(denylist|allowlist)?( errno [0-9]{1,5})?\\n(\\[(all|x86|arm)\\]\\n)?((read|ioctl|mkdir|x)( errno [0-9])?( \\[[0-6],[0-9x]{1,4},(SCMP_CMP_EQ|<)\\])?\\n){0,6}[ -~\\n]{0,20}"
    ) {
        match Profile::parse(&text) {
            Ok(profile) => {
                for program in Profile::default().programs(Some(&profile)).unwrap() {
                    proptest::prop_assert!(program.len() <= 4096);
                    // Every path of it ends in an answer.
                    for number in [0, 16, 83, 1000] {
                        run(&program, X86_64, number, [1; 6]);
                        run(&program, AUDIT_ARCH_I386, number, [1; 6]);
                    }
                }
            }
            Err(why) => proptest::prop_assert!(!why.is_empty()),
        }
    }
}
