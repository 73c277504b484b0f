//! Id maps, who owns the rootfs, and what spawn says when it cannot start.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tests::{ALICE, BOB, Trial};

use crate::case::{Case, EV, both, chown_all, directory, once, own, processes};

const MAPS: &str = "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; id -u; id -g; id -G";

fn words(text: &str) -> String {
    text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// A tool in the place of newuidmap.
fn fake_tool(case: &Case<'_>, name: &str, script: &str) {
    let path = format!("/run/bin/{name}");
    case.world.remove(&path);
    fs::write(&path, script).expect(name);
    case.world.mode(&path, 0o4755);
}

pub fn trials() -> Vec<Trial> {
    [
        both(
            "the whole subordinate range is mapped from 0 on, the caller is not, and his groups stay outside",
            |case| {
                let out = case.out(&[], MAPS);
                assert_eq!(words(&out), "0 100000 65536 0 100000 65536 allow 0 0 0");
                case.world.append("/etc/subuid", "alice:165536:10\nalice:400000:5\n");
                let out = case.out(&[], "cat /proc/self/uid_map");
                assert_eq!(words(&out), "0 100000 65546 65546 400000 5");
                let call =
                    case.run_call(&[], &["/bin/sh", "-c", "id -G; cat /proc/self/status"]).as_is().as_root(|| {
                        ALICE.become_with_gid(ALICE.gid, &[1150, 4]);
                    });
                let out = call.run(case.world).out();
                assert!(out.starts_with("0\n") && out.contains("Groups:\t \n"), "{out}");
            },
        ),
        both("--map self maps the caller's own id as root and nothing else, and setgroups is denied", |case| {
            case.make_rootfs("/home/alice/own", 0);
            chown_all(Path::new("/home/alice/own"), ALICE.uid);
            let script = format!("{MAPS}; stat -c %u:%g / /dev/console /dev/pts; touch /made && stat -c %u /made");
            let call = case.spawn(&["run", "--map", "self", "/home/alice/own", "--", "/bin/sh", "-c", &script]);
            let outcome = call.run(case.world);
            outcome.assert_code(0, "self");
            assert_eq!(words(&outcome.out()), "0 1001 1 0 1101 1 deny 0 0 0 0:65534 0:0 0:0 0");
            // CVE-2014-8989: without a gid range of his own the caller cannot drop a group that shuts him out.
            let call = case
                .spawn(&["run", "--map", "self", "/home/alice/own", "--", "/bin/cat", "/proc/self/status"])
                .as_is()
                .as_root(|| ALICE.become_with_gid(ALICE.gid, &[1150]));
            let out = call.run(case.world).out();
            assert!(out.contains("Groups:\t65534 \n"), "{out}");
            case.nothing_left("self");
        }),
        both(
            "a refused map ends the start with one line that names the tool, and never falls back to one id",
            |case| {
                for (name, other) in [("newuidmap", "newgidmap"), ("newgidmap", "newuidmap")] {
                    fake_tool(case, name, &format!("#!/bin/sh\necho '{name}: refused by the test' >&2\nexit 1\n"));
                    let outcome = case.fails(&[EV, "--", "/bin/id"], 125, &[name, "refused by the test"]);
                    assert_eq!(outcome.out(), "", "the command has not run");
                    assert!(!outcome.text().contains(other), "{}", outcome.text());
                    case.world.remove(format!("/run/bin/{name}"));
                    let _ = case.world.program(name);
                }
                fake_tool(case, "newuidmap", "#!/bin/sh\nexit 9\n");
                case.fails(&[EV, "--", "/bin/id"], 125, &["newuidmap", "status 9"]);
                fake_tool(case, "newuidmap", "#!/bin/sh\nkill -9 $$\n");
                case.fails(&[EV, "--", "/bin/id"], 125, &["newuidmap", "137"]);
            },
        ),
        both("a map tool that says it has written the map and has not is found out", |case| {
            fake_tool(case, "newuidmap", "#!/bin/sh\nexit 0\n");
            let outcome = case.fails(&[EV, "--", "/bin/id"], 125, &["id 0 is not mapped"]);
            assert_eq!(outcome.out(), "");
        }),
        both("a map tool that hangs ends with the time limit and is named", |case| {
            fake_tool(case, "newgidmap", "#!/bin/sh\nexec sleep 1000\n");
            case.fails(&["--timeout", "0.3", EV, "--", "/bin/id"], 125, &["newgidmap", "in time"]);
        }),
        once("a map tool gets an empty environment and no descriptor but 0 to 2", |case| {
            fs::write("/tmp/tool", "").expect("write");
            case.world.mode("/tmp/tool", 0o666);
            let script =
                "#!/bin/sh\n{ cat /proc/self/environ | tr '\\0' '\\n'; ls /proc/self/fd; } >>/tmp/tool\nexit 1\n";
            fake_tool(case, "newuidmap", script);
            let call = case.run_call(&[], &["/bin/id"]).env("SECRET", "hunter2").opens(9, "/etc", 0);
            call.run(case.world).assert_code(125, "tool");
            let found = fs::read_to_string("/tmp/tool").expect("tool");
            let numbers: Vec<&str> = found.lines().filter(|line| line.parse::<u32>().is_ok()).collect();
            assert!(!found.contains("SECRET"), "{found}");
            // 3 is the directory that ls reads; a shell may keep its script as 10.
            assert!(numbers.iter().all(|n| ["0", "1", "2", "3", "10"].contains(n)) && numbers.len() >= 4, "{found}");
        }),
        both("without subordinate ids the line to add is printed", |case| {
            case.world.write("/etc/subuid", "bob:300000:65536\n");
            let said = ["/etc/subuid", "alice:", "--map self"];
            case.fails(&[EV, "--", "/bin/id"], 125, &said);
            case.world.write("/etc/subuid", "alice:100000:65536\n");
            case.world.write("/etc/subgid", "");
            case.fails(&[EV, "--", "/bin/id"], 125, &["/etc/subgid", "alice:"]);
        }),
        both("a map tool without privilege, or none at all, is named with its cure", |case| {
            // Nothing else of that name may be found.
            mount(Some("tmpfs"), "/usr/bin", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("no /usr/bin");
            case.world.mode("/run/bin/newuidmap", 0o755);
            case.fails(&[EV, "--", "/bin/id"], 125, &["/run/bin/newuidmap", "no privilege", "4755"]);
            case.world.remove("/run/bin/newuidmap");
            case.fails(&[EV, "--", "/bin/id"], 125, &["newuidmap", "not installed", "uidmap"]);
        }),
        both("a map tool on a nosuid mount, or a caller with no_new_privs, is told what took the privilege", |case| {
            let call = case.run_call(&[], &["/bin/id"]).as_user(|| {
                tests::sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).expect("no_new_privs");
            });
            let outcome = call.run(case.world);
            case.failed(&outcome, 125, &["newuidmap", "no_new_privs"], "no_new_privs");
            mount(Some("/run/bin"), "/run/bin", None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .and_then(|()| {
                    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID;
                    mount(None::<&str>, "/run/bin", None::<&str>, flags, None::<&str>)
                })
                .expect("nosuid");
            case.fails(&[EV, "--", "/bin/id"], 125, &["newuidmap", "nosuid"]);
        }),
        once("where user namespaces are switched off, the sysctl and its value are named", |case| {
            case.make_rootfs("/home/alice/own", 0);
            chown_all(Path::new("/home/alice/own"), ALICE.uid);
            for (limit, said) in [
                ("max_user_namespaces", "user.max_user_namespaces is 0"),
                ("max_net_namespaces", "network namespace"),
                ("max_mnt_namespaces", "mount, uts and ipc namespaces"),
                ("max_cgroup_namespaces", "cgroup namespace"),
            ] {
                // In a user namespace of our own, whose limits are ours to set.
                let call = case.spawn(&["run", "--map", "self", "/home/alice/own", "--", "/bin/true"]).as_is().as_root(
                    move || {
                        unshare(CloneFlags::CLONE_NEWUSER).expect("CLONE_NEWUSER");
                        // Written from here, by whom the maps are allowed: root of the world above is not needed, for
                        // a process may map its own id.
                        fs::write("/proc/self/setgroups", "deny").expect("setgroups");
                        fs::write("/proc/self/uid_map", format!("{0} 0 1", ALICE.uid)).expect("uid_map");
                        fs::write("/proc/self/gid_map", format!("{0} 0 1", ALICE.gid)).expect("gid_map");
                        fs::write(format!("/proc/sys/user/{limit}"), "0").expect("limit");
                    },
                );
                let outcome = call.run(case.world);
                // The rootfs is owned by an unmapped id there; the namespace comes first only when it is not checked.
                let call = outcome.text();
                assert_eq!(outcome.code(), Some(125), "{call}");
                assert!(call.contains(said) || call.contains("belongs to uid"), "{limit}: {call}");
            }
            case.nothing_left("limits");
        }),
        once("a kernel without a call that is needed is told, with the version that has it", |case| {
            for (number, said) in
                [(libc::SYS_clone3, "Linux 5.3"), (libc::SYS_open_tree, "Linux 5.2"), (libc::SYS_fsopen, "Linux 5.2")]
            {
                let call = case.run_call(&[], &["/bin/id"]).as_is().as_root(move || {
                    tests::sys::without_system_call(number, libc::ENOSYS).expect("seccomp");
                    ALICE.become_user();
                });
                let outcome = call.run(case.world);
                assert_eq!(outcome.out(), "");
                case.failed(&outcome, 125, &[said], said);
            }
            // What a service manager's or another container's filter answers.
            for (errno, said) in [(libc::EPERM, "seccomp"), (libc::EINVAL, "CONFIG_USER_NS")] {
                let call = case.run_call(&[], &["/bin/id"]).as_is().as_root(move || {
                    tests::sys::without_system_call(libc::SYS_clone3, errno).expect("seccomp");
                    ALICE.become_user();
                });
                let outcome = call.run(case.world);
                case.failed(&outcome, 125, &["user namespace", said], said);
            }
        }),
        both("a rootfs of real root's is refused with path, owner, map and cure", |case| {
            chown_all(Path::new(EV), 0);
            let outcome = case.fails(
                &[EV, "--", "/bin/id"],
                125,
                &[EV, "uid 0", "0:100000:65536", "rootfs shift --user alice", "--read-only"],
            );
            assert_eq!(outcome.out(), "");
            // The cure works.
            chown_all(Path::new(EV), 100_000);
            assert_eq!(case.out(&[], "id -u"), "0\n");
        }),
        both(
            "a rootfs of another range's, of the caller's and one shifted in part are each refused with their cure",
            |case| {
                chown_all(Path::new(EV), 300_000);
                case.fails(&[EV, "--", "/bin/id"], 125, &[EV, "uid 300000", "0:100000:65536"]);
                chown_all(Path::new(EV), ALICE.uid);
                case.fails(&[EV, "--", "/bin/id"], 125, &[EV, "uid 1001", "--map self"]);
                chown_all(Path::new(EV), 100_000);
                own(&format!("{EV}/etc"), tests::ROOT);
                case.fails(&[EV, "--", "/bin/id"], 125, &["/etc belongs to uid 0", "in part"]);
                chown_all(Path::new(EV), 100_005);
                case.fails(&[EV, "--", "/bin/id"], 125, &[EV, "uid 100005"]);
            },
        ),
        both("a foreign rootfs runs with --read-only", |case| {
            chown_all(Path::new(EV), 0);
            let out = case.out(
                &["--read-only"],
                "id -u; stat -c %u /bin/busybox; touch /x 2>/dev/null || echo no; touch /tmp/x 2>/dev/null || echo no",
            );
            assert_eq!(words(&out), "0 65534 no no");
        }),
        both("a rootfs below a 0700 home runs, by absolute and by relative path and by name", |case| {
            directory("/home/alice/closed", 0o700, ALICE);
            directory("/home/alice/closed/further", 0o700, ALICE);
            fs::rename(EV, "/home/alice/closed/further/ev").expect("rename");
            let call = case.spawn(&["run", "/home/alice/closed/further/ev", "--", "/bin/id", "-u"]);
            let outcome = call.run(case.world);
            outcome.assert_code(0, "absolute");
            assert_eq!(outcome.out(), "0\n");
            let call = case
                .spawn(&["run", "./ev", "--", "/bin/id", "-u"])
                .as_user(|| std::env::set_current_dir("/home/alice/closed/further").expect("chdir"));
            call.run(case.world).assert_code(0, "relative");
            directory("/home/alice/closed/data", 0o700, ALICE);
            directory("/home/alice/closed/data/spawn", 0o700, ALICE);
            directory("/home/alice/closed/data/spawn/box", 0o700, ALICE);
            fs::rename("/home/alice/closed/further/ev", "/home/alice/closed/data/spawn/box/rootfs").expect("rename");
            let call =
                case.spawn(&["run", "box", "--", "/bin/hostname"]).env("XDG_DATA_HOME", "/home/alice/closed/data");
            let outcome = call.run(case.world);
            outcome.assert_code(0, "by name");
            assert_eq!(outcome.out(), "box\n");
            // The mode of the directories above is what it was.
            let mode =
                std::os::unix::fs::PermissionsExt::mode(&fs::metadata("/home/alice/closed").expect("x").permissions());
            assert_eq!(mode & 0o7777, 0o700);
        }),
        both("the first directory that the caller may not search is named, and so is one that is missing", |case| {
            directory("/home/bob/closed", 0o700, BOB);
            directory("/home/bob/closed/deep", 0o755, BOB);
            case.make_rootfs("/home/bob/closed/deep/ev", 100_000);
            let outcome = case.fails(&["/home/bob/closed/deep/ev"], 125, &["/home/bob/closed may not be searched"]);
            assert!(!outcome.text().contains("/home/bob/closed/deep may"), "{}", outcome.text());
            case.fails(&["/home/alice/gone/deep/ev"], 125, &["/home/alice/gone does not exist"]);
            case.fails(&["no-such-container"], 125, &["no container no-such-container"]);
            case.fails(&[&format!("{EV}/etc/passwd")], 125, &["not a directory"]);
            case.fails(&["--bind", "/home/bob/closed/deep:/mnt", EV], 125, &["/home/bob/closed may not be searched"]);
        }),
        once("the cause of a failed start is told, however slow the map tools are", |case| {
            // The child has reported and ended long before the tools have.
            for name in ["newuidmap", "newgidmap"] {
                fs::rename(format!("/run/bin/{name}"), format!("/run/bin/{name}.real")).expect("rename");
                let content = "#!/bin/sh\nsleep 0.2\nexec /run/bin/NAME.real \"$@\"\n".replace("NAME", name);
                fake_tool(case, name, &content);
            }
            case.fails(&["--bind", "/gone:/mnt", EV, "--", "/bin/id"], 125, &["/gone does not exist"]);
        }),
        once("nothing runs as a host id that the files do not grant", |case| {
            let running = case.run_call(&["--user", "ada"], &["/bin/sleep", "1000"]).start();
            let uid = crate::case::wait_for("the command", || {
                processes().into_iter().find_map(|pid| {
                    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
                    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
                    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.to_owned();
                    (name == "sleep\n").then_some(uid)
                })
            });
            assert_eq!(words(&uid), "101000 101000 101000 101000");
            drop(running);
            case.nothing_left_of_killed("ids");
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}
