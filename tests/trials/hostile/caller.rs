//! What a caller arranges before the exec: environment, limits, descriptors, arguments, and what he tries meanwhile.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::Duration;

use nix::sys::resource::Resource;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use tests::call::describe;
use tests::{ALICE, BOB, Call, Does, Fd, Kind, ROOT, Target, Trial, User, World, sys};

use crate::Request;

const RANGE: &str = "0 100000 10";

/// Variables that make some loader, C library or Rust runtime open a file or print more.
fn poisoned(mut call: Call) -> Call {
    // Opening the FIFO would wait for ever, and reading the directory finds nothing to load.
    for (name, value) in [
        ("RUST_BACKTRACE", "full"),
        ("RUST_LIB_BACKTRACE", "full"),
        ("RUST_MIN_STACK", "99999999999999"),
        ("LD_PRELOAD", "/home/alice/evil/fifo"),
        ("LD_LIBRARY_PATH", "/home/alice/evil"),
        ("LD_AUDIT", "/home/alice/evil/fifo"),
        ("LD_DEBUG", "all"),
        ("LD_DEBUG_OUTPUT", "/home/alice/evil/debug"),
        ("GLIBC_TUNABLES", "glibc.malloc.mxfast=glibc.malloc.mxfast=A"),
        ("MALLOC_TRACE", "/home/alice/evil/trace"),
        ("TZ", ":/home/alice/evil/fifo"),
        ("TZDIR", "/home/alice/evil"),
        ("LOCPATH", "/home/alice/evil"),
        ("LC_ALL", "../../home/alice/evil"),
        ("LANG", "de_DE.UTF-8"),
        ("LANGUAGE", "../evil"),
        ("NLSPATH", "/home/alice/evil/%N"),
        ("GCONV_PATH", "/home/alice/evil"),
        ("RES_OPTIONS", "debug"),
        ("LOCALDOMAIN", "evil"),
        ("HOSTALIASES", "/home/alice/evil/fifo"),
        ("TMPDIR", "/home/alice/evil"),
        ("HOME", "/home/alice/evil"),
        ("PATH", "/home/alice/evil"),
        ("IFS", "/"),
        ("ENV", "/home/alice/evil/fifo"),
        ("BASH_ENV", "/home/alice/evil/fifo"),
        ("LLVM_PROFILE_FILE", "/home/alice/evil/profile"),
        ("", "no name"),
    ] {
        call = call.env(name, value);
    }
    call
}

fn evil_directory(world: &World) {
    world.remove("/home/alice/evil");
    fs::create_dir("/home/alice/evil").expect("mkdir");
    chown("/home/alice/evil", Some(ALICE.uid), Some(ALICE.gid)).expect("chown");
    nix::unistd::mkfifo("/home/alice/evil/fifo", Mode::from_bits_truncate(0o644)).expect("mkfifo");
    for name in ["getent", "newuidmap", "nscd"] {
        let path = format!("/home/alice/evil/{name}");
        fs::write(&path, "#!/bin/sh\n: >/home/alice/evil/was-run\necho 'root:x:1003:1103::/:/bin/sh'\n")
            .expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
}

fn evil_directory_is_untouched() {
    let mut names: Vec<String> = fs::read_dir("/home/alice/evil")
        .expect("read")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["fifo", "getent", "newuidmap", "nscd"], "something was run or written");
}

fn limits() -> Vec<Trial> {
    const MIB: u64 = 1 << 20;
    let sizes = [0, 4096, 65_536, 128 << 10, 256 << 10, 512 << 10, MIB, 2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB];
    [
        ("RLIMIT_AS", Resource::RLIMIT_AS, sizes.to_vec()),
        ("RLIMIT_DATA", Resource::RLIMIT_DATA, sizes.to_vec()),
        ("RLIMIT_STACK", Resource::RLIMIT_STACK, sizes.to_vec()),
        ("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE, (0..=12).collect()),
        ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE, vec![0, 1, 5, 10, 20, 4096]),
        ("RLIMIT_NPROC", Resource::RLIMIT_NPROC, vec![0, 1, 2]),
        ("RLIMIT_CORE", Resource::RLIMIT_CORE, vec![0, 4096]),
        ("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK, vec![0]),
        ("RLIMIT_SIGPENDING", Resource::RLIMIT_SIGPENDING, vec![0]),
        ("RLIMIT_CPU", Resource::RLIMIT_CPU, vec![1]),
        ("RLIMIT_LOCKS", Resource::RLIMIT_LOCKS, vec![0]),
        ("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE, vec![0]),
    ]
    .into_iter()
    .map(|(name, resource, values)| {
        Trial::new(format!("{name} at its minima leaves a map whole or empty and no core file"), move |world| {
            for kind in Kind::BOTH {
                for request in Request::both(kind) {
                    for value in &values {
                        let target = Target::new(ALICE);
                        let call = world
                            .helper(kind)
                            .limit(resource, *value)
                            .arg(target.pid().to_string())
                            .words(&request.triples);
                        let answer = world.answer(kind, target, call);
                        request.all_or_nothing(&answer, &format!("{name}={value}"));
                        let harmless = matches!(
                            resource,
                            Resource::RLIMIT_FSIZE
                                | Resource::RLIMIT_NPROC
                                | Resource::RLIMIT_CORE
                                | Resource::RLIMIT_MEMLOCK
                        );
                        if harmless && world.ours() {
                            answer.granted(&request.triples, &format!("{name}={value}"));
                        }
                    }
                }
            }
        })
    })
    .collect()
}

/// Starts a refused call whose message does not fit into standard error, and waits until it is blocked there.
fn blocked(world: &mut World, kind: Kind, target: &Target) -> tests::call::Running {
    let unlimited = || nix::sys::resource::setrlimit(Resource::RLIMIT_CORE, u64::MAX, u64::MAX).expect("RLIMIT_CORE");
    let call =
        world.helper(kind).as_root(unlimited).stdio(2, Fd::Stuck).arg(target.pid().to_string()).words("0 99999 10");
    let running = call.start();
    let pid = running.pid();
    for _ in 0..60_000 {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let syscall = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        let waits =
            [libc::SYS_write, libc::SYS_writev].iter().any(|number| syscall.starts_with(&format!("{number} 0x2 ")));
        if comm.trim() == kind.program() && waits {
            return running;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("it is not blocked on its message: {}", describe(pid));
}

/// Runs `attempt` as `user` in a process of its own; its result is the errno, 0 for success.
fn attempt(user: User, attempt: impl FnOnce() -> i32) -> i32 {
    let pid = sys::fork(move || {
        user.become_user();
        attempt()
    })
    .expect("fork");
    let (status, _) = sys::wait(pid, 0).expect("wait").expect("status");
    assert!(libc::WIFEXITED(status));
    libc::WEXITSTATUS(status)
}

pub fn trials() -> Vec<Trial> {
    let mut all = vec![
        Trial::new("no variable of the environment changes a decision, a message or opens a file", |world| {
            evil_directory(world);
            for kind in Kind::BOTH {
                for (triples, does) in [(RANGE, Does::Grants), ("0 99999 10", Does::Refuses), ("0 x 10", Does::Refuses)]
                {
                    let target = Target::new(ALICE);
                    let call = poisoned(world.helper(kind)).arg(target.pid().to_string()).words(triples);
                    let answer = world.answer(kind, target, call);
                    answer.did(does, triples, "poisoned environment");
                    let plain = world.ask(kind, triples);
                    assert_eq!(answer.outcome.text(), plain.outcome.text(), "the same message");
                    evil_directory_is_untouched();
                }
            }
        }),
        Trial::new("a caller without a passwd entry cannot put a getent of his own into PATH", |world| {
            const CAROL: User = User { name: "carol", uid: 1003, gid: 1103 };
            evil_directory(world);
            world.mode("/home/alice/evil", 0o777);
            for kind in Kind::BOTH {
                world.append(kind.file(), "root:500000:10\n");
                let target = Target::new(CAROL);
                let call = poisoned(world.helper(kind)).user(CAROL).arg(target.pid().to_string()).words("0 500000 10");
                world.answer(kind, target, call).refused("root's range");
                evil_directory_is_untouched();
            }
        }),
        Trial::new("an environment of 1 MB and an argument list of 1 MB change nothing", |world| {
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let mut call = world.helper(kind).arg(target.pid().to_string()).words(RANGE);
                for index in 0..10 {
                    call = call.env(&format!("V{index}"), "x".repeat(100_000));
                }
                world.answer(kind, target, call).granted(RANGE, "1 MB of environment");
                let target = Target::new(ALICE);
                let call = world.helper(kind).arg(target.pid().to_string()).args((0..10).map(|_| "9".repeat(100_000)));
                world.answer(kind, target, call).refused("ten numbers of 100 kB");
                let target = Target::new(ALICE);
                let many =
                    (0..50_000).flat_map(|index| [index.to_string(), (100_000 + index).to_string(), "1".to_owned()]);
                let call = world.helper(kind).arg(target.pid().to_string()).args(many);
                world.answer(kind, target, call).refused("50,000 triples");
                let target = Target::new(ALICE);
                let zeros = format!("{}10", "0".repeat(100_000));
                let call = world.helper(kind).arg(target.pid().to_string()).args(["0", "100000", &zeros]);
                let answer = world.answer(kind, target, call);
                // Octal: 8 ids, whether it is taken or not.
                if answer.outcome.code() == Some(0) {
                    answer.granted("0 100000 8", "100 kB of zeros");
                } else {
                    answer.refused("100 kB of zeros");
                }
            }
        }),
        Trial::new("bytes that are no UTF-8 anywhere in the arguments end in one printable message", |world| {
            for kind in Kind::BOTH {
                for bytes in [vec![0xff], vec![0xc3, 0x28], vec![b'1', 0x80], (1..=255).collect::<Vec<u8>>()] {
                    let target = Target::new(ALICE);
                    let word = OsString::from_vec(bytes);
                    let call = world.helper(kind).arg(&word).words(RANGE);
                    let answer = world.answer(kind, target, call);
                    answer.refused("not UTF-8");
                    if world.ours() {
                        answer.outcome.assert_one_line(kind.program(), "not UTF-8");
                    }
                }
            }
        }),
        Trial::new("a broken, full or closed standard error or output does not change a decision", |world| {
            for kind in Kind::BOTH {
                for number in [1, 2] {
                    for what in [Fd::Broken, Fd::Full, Fd::Closed] {
                        for (triples, does) in
                            [(RANGE, Does::Grants), ("0 99999 10", Does::Refuses), ("0 x 10", Does::Refuses)]
                        {
                            let target = Target::new(ALICE);
                            let call =
                                world.helper(kind).stdio(number, what).arg(target.pid().to_string()).words(triples);
                            let answer = world.answer(kind, target, call);
                            if world.ours() || does == Does::Grants || what != Fd::Broken {
                                answer.did(does, triples, &format!("{number} is {what:?}"));
                            } else {
                                // The original dies of SIGPIPE there.
                                answer.target.assert_untouched("SIGPIPE");
                            }
                        }
                    }
                }
            }
        }),
        Trial::new(
            "--help, --version and --check into a broken, full or closed standard output exit with 0 or 1 and never panic",
            |world| {
                world.needs_ours("options");
                for kind in Kind::BOTH {
                    for what in [Fd::Broken, Fd::Full, Fd::Closed] {
                        for errors in [Fd::Plain, what] {
                            for option in ["--help", "--version", "--check"] {
                                let target = Target::new(ALICE);
                                let mut call = world.helper(kind).stdio(1, what).stdio(2, errors).arg(option);
                                if option == "--check" {
                                    call = call.arg(target.pid().to_string()).words(RANGE);
                                }
                                let answer = world.answer(kind, target, call);
                                let code = answer.outcome.code();
                                assert!(
                                    code == Some(0) || code == Some(1),
                                    "{option} into {what:?}: {:?}",
                                    answer.outcome
                                );
                                assert!(!answer.outcome.text().contains("panicked"), "{}", answer.outcome.text());
                                answer.target.assert_untouched(option);
                            }
                        }
                    }
                }
            },
        ),
        Trial::new(
            "while it runs, alice can neither trace it nor read its memory, descriptors or environment",
            |world| {
                for kind in Kind::BOTH {
                    let target = Target::new(ALICE);
                    let running = blocked(world, kind, &target);
                    let pid = running.pid();
                    for user in [ALICE, BOB] {
                        assert_eq!(
                            attempt(user, || sys::attach(pid).err().map_or(0, |errno| errno as i32)),
                            libc::EPERM,
                            "PTRACE_ATTACH as {}",
                            user.name
                        );
                        let steal =
                            || sys::steal_descriptor(pid, 0).err().and_then(|error| error.raw_os_error()).unwrap_or(0);
                        assert_eq!(attempt(user, steal), libc::EPERM, "pidfd_getfd as {}", user.name);
                        for name in ["mem", "environ", "maps", "fd/0", "auxv", "syscall"] {
                            let open = || {
                                fs::File::open(format!("/proc/{pid}/{name}")).and_then(|mut file| {
                                    let mut byte = [0];
                                    std::io::Read::read(&mut file, &mut byte)
                                })
                            };
                            let denied =
                                attempt(user, || open().err().and_then(|error| error.raw_os_error()).unwrap_or(0));
                            assert!(
                                denied == libc::EACCES || denied == libc::EPERM,
                                "{name} as {}: errno {denied}",
                                user.name
                            );
                        }
                    }
                    let owner = fs::metadata(format!("/proc/{pid}/environ"))
                        .map(|meta| std::os::unix::fs::MetadataExt::uid(&meta))
                        .expect("stat");
                    assert_eq!(owner, 0, "it is not dumpable");
                    target.assert_untouched("it is still blocked");
                }
            },
        ),
        Trial::new("a program that its caller traces from before the exec gains no privilege", |world| {
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let program = sys::c_path(&world.program(kind.program()));
                let words = [kind.program(), &target.pid().to_string(), "0", "100000", "10"]
                    .map(|word| std::ffi::CString::new(word).expect("no NUL"));
                let ended = attempt(ALICE, || {
                    let child = sys::fork(|| {
                        nix::sys::ptrace::traceme().expect("PTRACE_TRACEME");
                        let errno = sys::exec(&program, &words, &[]);
                        panic!("exec: {errno}");
                    })
                    .expect("fork");
                    loop {
                        let (status, _) = sys::wait(child, 0).expect("wait").expect("status");
                        if libc::WIFSTOPPED(status) {
                            nix::sys::ptrace::cont(child, None).expect("PTRACE_CONT");
                        } else if libc::WIFEXITED(status) {
                            return libc::WEXITSTATUS(status);
                        } else {
                            return 99;
                        }
                    }
                });
                assert_ne!(ended, 0, "no privilege, no grant");
                target.assert_untouched("traced by alice");
            }
        }),
        Trial::new(
            "a seccomp filter of alice's own needs no_new_privs, so no system call can be made to lie",
            |world| {
                let errno = attempt(ALICE, || {
                    sys::without_system_call(libc::SYS_openat2, libc::ENOSYS)
                        .err()
                        .and_then(|error| error.raw_os_error())
                        .unwrap_or(0)
                });
                assert_eq!(errno, libc::EACCES);
                for kind in Kind::BOTH {
                    let target = Target::new(ALICE);
                    let call = world.helper(kind).as_user(|| {
                        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).expect("no_new_privs");
                        sys::without_system_call(libc::SYS_setresuid, 0).expect("filter");
                    });
                    let call = call.arg(target.pid().to_string()).words(RANGE);
                    world.answer(kind, target, call).refused("a filter with no_new_privs");
                }
            },
        ),
        Trial::new("a deleted working directory, a umask of 0777 and nice 19 change nothing", |world| {
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let call = world.helper(kind).as_user(|| {
                    fs::create_dir("/home/alice/gone").expect("mkdir");
                    std::env::set_current_dir("/home/alice/gone").expect("chdir");
                    fs::remove_dir("/home/alice/gone").expect("rmdir");
                    nix::sys::stat::umask(Mode::from_bits_truncate(0o777));
                });
                let call = call.arg(target.pid().to_string()).words(RANGE);
                world.answer(kind, target, call).granted(RANGE, "odd process attributes");
            }
        }),
        Trial::new("fifty open descriptors of the caller's are not mistaken for its own", |world| {
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let mut call = world.helper(kind);
                for number in 3..53 {
                    let path = if number % 2 == 0 { "/home/alice/kept" } else { "/etc/passwd" };
                    fs::write("/home/alice/kept", "kept").expect("write");
                    chown("/home/alice/kept", Some(ALICE.uid), None).expect("chown");
                    call = call
                        .fd(number, fs::OpenOptions::new().read(true).write(number % 2 == 0).open(path).expect("open"));
                }
                let call = call.arg(target.pid().to_string()).words(RANGE);
                world.answer(kind, target, call).granted(RANGE, "descriptors");
                assert_eq!(fs::read_to_string("/home/alice/kept").expect("read"), "kept");
            }
        }),
        Trial::new(
            "a hard link or a copy of the program by another name decides the same or has no privilege",
            |world| {
                for kind in Kind::BOTH {
                    let program = world.program(kind.program());
                    let link = format!("/run/bin/-x{}", kind.id());
                    fs::hard_link(&program, &link).expect("link");
                    let target = Target::new(ALICE);
                    let call = Call::new(&link).user(ALICE).arg(target.pid().to_string()).words("0 99999 1");
                    world.answer(kind, target, call).refused("hard link");
                    let target = Target::new(ALICE);
                    let call = Call::new(&link).user(ALICE).arg(target.pid().to_string()).words(RANGE);
                    world.answer(kind, target, call).granted(RANGE, "hard link");
                    let copy = format!("/home/alice/copy-{}", kind.id());
                    fs::copy(&program, &copy).expect("copy");
                    chown(&copy, Some(ALICE.uid), Some(ALICE.gid)).expect("chown");
                    world.mode(&copy, 0o4755);
                    let target = Target::new(ALICE);
                    let call = Call::new(&copy).user(ALICE).arg(target.pid().to_string()).words(RANGE);
                    world.answer(kind, target, call).refused("alice's copy with a setuid bit");
                }
            },
        ),
        Trial::new("a user of many grants gets nothing of root's by asking for everything", |world| {
            for kind in Kind::BOTH {
                for triples in
                    ["0 0 4294967295", "0 0 1", "0 1 4294967294", "0 0 65536", "1 1002 1", "1 1102 1", "0 65534 1"]
                {
                    world.ask(kind, triples).refused(triples);
                }
                let target = Target::new(ROOT);
                world.ask_for(kind, target, RANGE).refused("root's process");
            }
        }),
        Trial::new("with RLIMIT_CORE unlimited a fatal signal leaves no core file", |world| {
            for kind in Kind::BOTH {
                for signal in [libc::SIGQUIT, libc::SIGABRT, libc::SIGSEGV] {
                    let target = Target::new(ALICE);
                    let running = blocked(world, kind, &target);
                    let pid = running.pid();
                    kill(pid, Signal::try_from(signal).expect("signal")).expect("kill");
                    // Ours has most signals blocked, so it may well be there still.
                    let _ = kill(pid, Signal::SIGKILL);
                    let outcome = running.finish(world);
                    assert!(!outcome.dumped_core(), "a core file by signal {signal}");
                    target.assert_untouched("killed");
                }
            }
        }),
    ];
    all.extend(limits());
    all
}
