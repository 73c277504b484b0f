//! The escapes of other runtimes, tried on this one. Every trial compares the host before and after.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tests::{ALICE, BOB, Trial};

use crate::case::{Case, EV, V, both, chown_all, once, wait_for};
use crate::{probe, sys};

/// Puts a link in the place of `name` in the rootfs.
fn swap(case: &Case<'_>, name: &str, content: &str) {
    let path = format!("{EV}/{name}");
    case.world.remove(&path);
    symlink(content, &path).expect(name);
}

/// Starts it; either it is refused or it runs with everything in its place; the host is untouched either way.
#[track_caller]
fn contained(case: &mut Case<'_>, name: &str, content: &str) {
    let host = case.host();
    let script = "for p in /dev /proc /sys; do stat -f -c %T $p; done; cat /proc/1/cmdline >/dev/null && ls /dev/null /dev/pts/ptmx >/dev/null && echo placed";
    let outcome = case.sh(&[], script);
    let why = format!("{name} -> {content}");
    match outcome.code() {
        Some(0) => {}
        Some(125) => {
            let text = outcome.text();
            assert!(
                text.starts_with("spawn: ") && text.contains(name.split('/').next().expect("a name")),
                "{why}: {text}"
            );
            assert_eq!(outcome.out(), "", "{why}: refused and run all the same");
        }
        // The shell or a tool of it was not found, or could not look: the container's own trouble.
        _ => assert!(!outcome.out().contains("placed"), "{why}: {} {}", outcome.out(), outcome.text()),
    }
    host.assert_same(&why);
    case.nothing_left(&why);
}

pub fn trials() -> Vec<Trial> {
    [
        both("CVE-2015-1335, CVE-2019-18837: a link in place of dev, dev/pts, proc, sys, run or mnt leads no mount outside", |case| {
            for name in ["dev", "proc", "sys", "run", "mnt", "dev/pts", "dev/shm"] {
                for content in [V, "../../../../../../home/victim", "/", "..", "/etc", "/home/victim/new", "/proc/self/cwd", "/proc/1/root"] {
                    for directory in ["dev", "proc", "sys", "run", "mnt"] {
                        case.world.remove(format!("{EV}/{directory}"));
                        fs::create_dir(format!("{EV}/{directory}")).expect(directory);
                    }
                    swap(case, name, content);
                    contained(case, name, content);
                }
            }
        }),
        both("a link of one mount point to another leads nowhere else", |case| {
            for (name, content) in [
                ("dev", "proc"), ("dev", "sys"), ("sys", "proc"), ("proc", "dev"), ("run", "proc"), ("run", "/proc/sys"), ("run", "dev"),
                ("sys", "/proc/sys"), ("dev", "/sys/kernel"), ("run", "/dev/pts"), ("dev", "bin"), ("proc", "etc"), ("sys", "dev"), ("proc", "proc"),
            ] {
                for directory in ["dev", "proc", "sys", "run"] {
                    case.world.remove(format!("{EV}/{directory}"));
                    fs::create_dir(format!("{EV}/{directory}")).expect(directory);
                }
                swap(case, name, content);
                contained(case, name, content);
            }
        }),
        both("CVE-2026-88264, CVE-2026-88265: links in the rootfs's own /dev touch nothing of the host", |case| {
            swap(case, "dev/console", &format!("{V}/new"));
            swap(case, "dev/null", &format!("{V}/secret"));
            swap(case, "dev/tty", "/proc/sysrq-trigger");
            swap(case, "dev/ptmx", &format!("{V}/ptmx"));
            swap(case, "dev/log", &format!("{V}/log"));
            let host = case.host();
            let outcome = case.sh(&[], "stat -c %F /dev/console /dev/null; echo x >/dev/null; echo x >/dev/console; stat -f -c %T /dev");
            outcome.assert_code(0, "links below /dev");
            assert_eq!(outcome.out(), "character special file\ncharacter special file\ntmpfs\n");
            host.assert_same("links below /dev");
        }),
        both("CVE-2019-19921 and its kin: a false /proc of the rootfs gets nothing written", |case| {
            fs::create_dir_all(format!("{EV}/proc/self/attr")).expect("mkdir");
            fs::create_dir_all(format!("{EV}/proc/sys/kernel")).expect("mkdir");
            let files = ["self/attr/exec", "self/setgroups", "self/uid_map", "sysrq-trigger", "kcore", "keys", "timer_list", "self/status", "sys/kernel/x"];
            for file in files {
                fs::write(format!("{EV}/proc/{file}"), "").expect(file);
                case.world.mode(format!("{EV}/proc/{file}"), 0o666);
            }
            swap(case, "proc/self/exe", &format!("{V}/secret"));
            chown_all(Path::new(EV), 100_000);
            let before = crate::case::tree(&Path::new(EV).join("proc"));
            let host = case.host();
            assert_eq!(case.out(&[], "stat -f -c %T /proc; cat /proc/self/setgroups"), "proc\nallow\n");
            assert_eq!(before, crate::case::tree(&Path::new(EV).join("proc")));
            host.assert_same("a false /proc");
        }),
        both("CVE-2025-31133: what is masked stays masked when /dev/null of the rootfs is a link", |case| {
            swap(case, "dev/null", "/proc/sys/kernel/core_pattern");
            let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern");
            let out = case.out(&[], "for f in kcore keys timer_list; do test ! -e /proc/$f || { stat -c %t:%T /proc/$f; echo evil >/proc/$f; }; done; cat /proc/sys/kernel/core_pattern");
            let masked = ["kcore", "keys", "timer_list"].iter().filter(|name| Path::new("/proc").join(name).exists()).count();
            assert_eq!(out, format!("{}{pattern}", "1:3\n".repeat(masked)));
            assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern"), pattern);
        }),
        both("CVE-2021-30465, CVE-2024-45310: a mount point exchanged with a link while it is mounted stays inside", |case| {
            let shared = "/home/alice/shared";
            fs::create_dir(shared).expect("mkdir");
            fs::write(format!("{shared}/in"), "").expect("write");
            fs::create_dir(format!("{EV}/mnt/d")).expect("mkdir");
            symlink(V, format!("{EV}/mnt/link")).expect("symlink");
            chown_all(Path::new(EV), 100_000);
            let host = case.host();
            let racer = tests::sys::fork(|| {
                let (one, other) = (format!("{EV}/mnt/d"), format!("{EV}/mnt/link"));
                let (one, other) = (CString::new(one).expect("no NUL"), CString::new(other).expect("no NUL"));
                loop {
                    sys::exchange(&one, &other).expect("renameat2");
                }
            })
            .expect("fork");
            let mut codes = std::collections::BTreeMap::new();
            for number in 0..60 {
                let target = if number % 2 == 0 { "/mnt/d".to_owned() } else { format!("/mnt/d/new{number}") };
                let outcome = case.sh(&["--bind", &format!("{shared}:{target}")], "cat /proc/mounts");
                *codes.entry(outcome.code()).or_insert(0) += 1;
                assert!(!outcome.out().contains("victim/"), "{}", outcome.out());
            }
            nix::sys::signal::kill(racer, nix::sys::signal::Signal::SIGKILL).expect("kill");
            let _ = tests::sys::wait(racer, 0);
            assert!(codes.keys().all(|code| [Some(0), Some(125)].contains(code)), "{codes:?}");
            assert!(codes.contains_key(&Some(0)), "none of the starts came so far: {codes:?}");
            host.assert_same("race");
        }),
        both("CVE-2019-5736: spawn's own file is not written through /proc/N/exe, whoever owns it", |case| {
            // Its own interpreter is spawn, in the moment before the exec.
            fs::write(format!("{EV}/bin/x"), "#!/proc/self/exe\n").expect("write");
            symlink("/proc/self/exe", format!("{EV}/bin/y")).expect("symlink");
            case.world.mode(format!("{EV}/bin/x"), 0o755);
            chown_all(Path::new(EV), 100_000);
            let before = fs::read("/run/bin/spawn").expect("spawn");
            for command in ["/bin/x", "/bin/y", "/proc/self/exe"] {
                let call = case.run_call(&[], &[command, "--version"]);
                let outcome = call.run(case.world);
                assert!(outcome.signal().is_none(), "{command}: {}", outcome.text());
            }
            let bind = probe::copy(case);
            for own_file in [false, true] {
                let mut call = case.spawn(&["run", "--bind", &bind, "host", "--", probe::INSIDE, probe::FLAG, "overwrite"]);
                if own_file {
                    fs::copy("/run/bin/spawn", "/home/alice/spawn").expect("copy");
                    case.world.mode("/home/alice/spawn", 0o755);
                    crate::case::own("/home/alice/spawn", ALICE);
                    call = case.call("/home/alice/spawn").args(["run", "--map", "self", "--bind", &bind, "host", "--", probe::INSIDE, probe::FLAG, "overwrite"]);
                }
                let outcome = call.run(case.world);
                outcome.assert_code(0, "overwrite");
                assert!(outcome.out().contains("probe"), "{}", outcome.out());
                // Writing to the running probe itself is refused by the kernel (ETXTBSY).
                assert!(!outcome.out().contains(" true"), "a program was opened for writing: {}", outcome.out());
                for line in outcome.out().lines() {
                    assert!(line.starts_with(probe::INSIDE), "another program than the container's was seen: {line}");
                }
            }
            // With the caller's id inside, and the file his own, what is run is not the file.
            case.make_rootfs("/home/alice/own", 0);
            fs::write("/home/alice/own/bin/x", "#!/proc/self/exe\n").expect("write");
            case.world.mode("/home/alice/own/bin/x", 0o755);
            let script = "/proc/self/exe";
            chown_all(Path::new("/home/alice/own"), ALICE.uid);
            for command in ["/bin/x", script] {
                let call = case.call("/home/alice/spawn").args(["run", "--map", "self", "/home/alice/own", "--", command, "--version"]);
                let _ = call.run(case.world);
            }
            assert!(before == fs::read("/run/bin/spawn").expect("spawn"), "spawn was changed");
            assert!(before == fs::read("/home/alice/spawn").expect("spawn"), "alice's spawn was changed");
        }),
        both("CVE-2024-21626, CVE-2016-8649: no descriptor of the host's is left in process 1 or below it", |case| {
            let call = case
                .run_call(&[], &["/bin/sh", "-c", "(exec ls /proc/1/fd >/tmp/list); echo $(cat /tmp/list); for n in 3 4 5 6 7 8 9 10 11 12; do cat /proc/self/fd/$n/passwd 2>/dev/null && echo read $n; done; readlink /proc/1/cwd; readlink /proc/1/root"])
                .opens(9, "/etc", libc::O_DIRECTORY)
                .opens(10, "/", libc::O_DIRECTORY);
            let outcome = call.run(case.world);
            outcome.assert_code(0, "descriptors");
            let out = outcome.out();
            assert!(!out.contains("read "), "{out}");
            assert!(out.ends_with("/\n/\n"), "{out}");
            // The shell keeps nothing open beside its standard descriptors while ls runs.
            assert_eq!(out.lines().next(), Some("0 1 2"), "{out}");
        }),
        both("CVE-2022-0492: no cgroup hierarchy can be mounted with its release_agent, no file outside the own subtree written", |case| {
            let script = "mkdir /tmp/c; for t in memory cpu devices freezer rdma pids; do \
                if mount -t cgroup -o $t x /tmp/c 2>/dev/null; then \
                  (echo /x >/tmp/c/release_agent) 2>/dev/null && echo agent $t; (echo 1 >/tmp/c/cgroup.procs) 2>/dev/null && echo procs $t; \
                  mkdir /tmp/c/made 2>/dev/null && echo made $t; umount /tmp/c; fi; done; \
                if mount -t cgroup2 x /tmp/c 2>/dev/null; then mkdir /tmp/c/made 2>/dev/null && echo made v2; (echo 1 >/tmp/c/cgroup.procs) 2>/dev/null && echo procs v2; fi; echo end";
            assert_eq!(case.sh(&[], script).out(), "end\n");
        }),
        once("signals and namespaces of another container with the same ids are out of reach", |case| {
            let first = case.run_call(&["--user", "ada"], &["/bin/sleep", "1000"]).start();
            let pid = wait_for("the first", || {
                fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
                    let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
                    (fs::read_to_string(format!("/proc/{pid}/comm")).ok()? == "sleep\n").then_some(pid)
                })
            });
            let script = format!("kill -9 -1; kill -9 {pid} 2>&1; ls /proc/{pid} 2>&1; ls -d /proc/[0-9]* | wc -l");
            let outcome = case.sh(&[], &script);
            assert!(outcome.out().contains("No such"), "{}", outcome.out());
            assert!(Path::new(&format!("/proc/{pid}")).exists(), "the first container lives");
            drop(first);
            case.nothing_left_of_killed("equal ranges");
        }),
        once("another user can neither trace, signal nor enter a start, nor read its descriptors", |case| {
            let running = case.run_call(&[], &["/bin/sleep", "1000"]).start();
            let child = wait_for("the command", || {
                fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
                    let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
                    (fs::read_to_string(format!("/proc/{pid}/comm")).ok()? == "sleep\n").then_some(pid)
                })
            });
            let spawn = running.pid();
            let stranger = tests::sys::fork(move || {
                BOB.become_user();
                let mut reached = 0;
                for pid in [spawn, nix::unistd::Pid::from_raw(child)] {
                    reached += i32::from(tests::sys::attach(pid).is_ok());
                    reached += i32::from(tests::sys::steal_descriptor(pid, 1).is_ok());
                    reached += i32::from(nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).is_ok());
                    for name in ["root", "cwd", "exe", "fd", "ns/user", "environ", "mem"] {
                        let path = format!("/proc/{pid}/{name}");
                        reached += i32::from(fs::read_dir(&path).is_ok() || fs::read_link(&path).is_ok() || fs::read(&path).is_ok());
                    }
                }
                reached
            })
            .expect("fork");
            let status = tests::sys::wait(stranger, 0).expect("wait").expect("a status").0;
            assert_eq!(libc::WEXITSTATUS(status), 0, "ways in");
            drop(running);
            case.nothing_left_of_killed("a stranger");
        }),
        both("a rootfs full of traps starts or is refused, and nothing of the host's is read or made", |case| {
            // passwd and group that are a FIFO, a device, a directory, a link to the host's; a libc link that leads out.
            nix::unistd::mkfifo(format!("{EV}/root/fifo").as_str(), nix::sys::stat::Mode::from_bits_truncate(0o666)).expect("mkfifo");
            fs::create_dir(format!("{EV}/lib64")).expect("mkdir");
            swap(case, "lib64/libc.so.6", "/home/victim/libc-2.12.so");
            let host = case.host();
            for content in ["/root/fifo", "/dev/zero", "/dev/console", "/proc/self/mem", "/proc/self/fd/0", "/etc", "/home/victim/secret", "passwd", "/dev/tty"] {
                swap(case, "etc/passwd", content);
                swap(case, "etc/group", content);
                let call = case.spawn(&["run", "--user", "ada", "--timeout", "8", EV, "--", "/bin/id", "-u"]);
                let outcome = call.run(case.world);
                assert_eq!(outcome.out(), "", "{content}");
                case.failed(&outcome, 125, &["passwd"], content);
            }
            host.assert_same("traps");
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}
