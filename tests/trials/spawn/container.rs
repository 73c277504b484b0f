//! What is inside: file systems, devices, network, cgroup, binds, and `host`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tests::{ALICE, Trial};

use crate::case::{Case, EV, V, both, directory, once};

/// A directory of alice's with a file, for --bind.
const SHARED: &str = "/home/alice/shared";

fn shared(case: &Case<'_>) {
    fs::create_dir(SHARED).expect("mkdir");
    fs::write(format!("{SHARED}/file"), "content\n").expect("write");
    case.world.mode(SHARED, 0o777);
    case.world.mode(format!("{SHARED}/file"), 0o666);
}

fn host_run(case: &mut Case<'_>, options: &[&str], script: &str) -> tests::Outcome {
    let call = case.spawn(&["run"]).args(options).args(["host", "--", "/bin/sh", "-c", script]);
    call.run(case.world)
}

pub fn trials() -> Vec<Trial> {
    [
        both("a busybox rootfs runs with mounts of its own for proc, sys, dev, pts, shm, mqueue and run", |case| {
            let host = case.host();
            let out = case.out(&[], "cat /proc/self/mountinfo");
            let mounted: Vec<(String, String)> = out
                .lines()
                .map(|line| {
                    let words: Vec<&str> = line.split(' ').collect();
                    let kind = words.iter().position(|word| *word == "-").expect("a dash");
                    (words[4].to_owned(), words[kind + 1].to_owned())
                })
                .collect();
            for (path, kind) in [
                ("/proc", "proc"),
                ("/sys", "sysfs"),
                ("/dev", "tmpfs"),
                ("/dev/pts", "devpts"),
                ("/dev/shm", "tmpfs"),
                ("/dev/mqueue", "mqueue"),
                ("/run", "tmpfs"),
            ] {
                assert!(mounted.contains(&(path.to_owned(), kind.to_owned())), "{path}: {out}");
            }
            // Nothing of the host's tree is left below the new root.
            for word in ["/run/bin", "/home", "ext4", V, "/etc"] {
                assert!(!mounted.iter().any(|(path, kind)| path == word || kind == word), "{word}: {out}");
            }
            assert_eq!(case.out(&[], "ls -d /home/alice 2>/dev/null; ls / | tr '\\n' ' '"), "bin dev etc home mnt proc root run sys tmp var ");
            host.assert_same("mounts");
        }),
        both("the mount flags of proc, sys, dev, pts and the rootfs are those that CentOS wants", |case| {
            let out = case.out(&[], "cat /proc/mounts");
            let flags = |path: &str| -> String {
                let line = out.lines().find(|line| line.split(' ').nth(1) == Some(path)).unwrap_or_else(|| panic!("{path}: {out}"));
                line.split(' ').nth(3).expect("flags").to_owned()
            };
            for path in ["/proc", "/sys"] {
                for flag in ["nosuid", "nodev", "noexec"] {
                    assert!(flags(path).contains(flag), "{path}: {}", flags(path));
                }
            }
            assert!(flags("/sys").starts_with("ro,"), "{}", flags("/sys"));
            assert!(flags("/proc/sys").starts_with("ro,"), "{}", flags("/proc/sys"));
            assert!(flags("/proc/sys/net").starts_with("rw,"), "{}", flags("/proc/sys/net"));
            assert!(flags("/dev").contains("nosuid") && flags("/dev").contains("mode=755"), "{}", flags("/dev"));
            for word in ["gid=100005", "mode=620", "ptmxmode=666"] {
                assert!(flags("/dev/pts").contains(word), "{}", flags("/dev/pts"));
            }
            for flag in ["nosuid", "noexec"] {
                assert!(!flags("/").contains(flag), "su and sudo have to work: {}", flags("/"));
            }
        }),
        both("/dev has null, zero, full, random, urandom, tty, console, ptmx and the links, and they work", |case| {
            let script = "ls /dev | tr '\\n' ' '; echo; \
                cd /dev; stat -c '%n %t:%T' null zero full random urandom tty; \
                readlink fd; readlink stdin; readlink stdout; readlink stderr; readlink ptmx; \
                echo x >null; head -c 3 zero | wc -c; head -c 3 urandom | wc -c; (echo x >full) 2>/dev/null || echo full; \
                stat -c %a shm; stat -c '%u:%g:%a' console; test -t 0 <console && echo tty";
            let out = case.out(&[], script);
            assert_eq!(
                out.lines().collect::<Vec<_>>(),
                [
                    "console fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ",
                    "null 1:3", "zero 1:5", "full 1:7", "random 1:8", "urandom 1:9", "tty 5:0",
                    "/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "pts/ptmx",
                    "3", "3", "full", "1777", "0:5:620", "tty",
                ]
            );
        }),
        both("only the harmless devices can be opened, and none can be made", |case| {
            let script = "cd /tmp; for d in 'b 8 0' 'c 1 1' 'c 1 3' 'c 10 200' 'b 254 0'; do mknod node $d 2>&1; done; \
                mknod fifo p && echo fifo";
            let outcome = case.sh(&[], script);
            assert_eq!(outcome.out().matches("Operation not permitted").count(), 5, "{}", outcome.out());
            assert!(outcome.out().ends_with("fifo\n"), "{}", outcome.out());
            let script = "find /dev /root -type c -o -type b | while read -r f; do stat -c '%t:%T' $f; done | sort -u | tr '\\n' ' '";
            let out = case.sh(&[], script).out();
            assert_eq!(out, "1:3 1:5 1:7 1:8 1:9 5:0 5:2 88:0 ");
        }),
        both("sysrq-trigger and /proc/sys/kernel cannot be written, kcore and keys not read, net sysctls can be set", |case| {
            let script = "w() { (echo $2 >$1) 2>/dev/null && echo written $1; }; \
                w /proc/sysrq-trigger h; w /proc/sys/kernel/core_pattern x; w /proc/sys/kernel/hostname h; w /proc/sys/vm/drop_caches 1; \
                w /proc/sys/kernel/modprobe /x; w /proc/sys/fs/file-max 1; w /proc/sys/kernel/ns_last_pid 1; w /sys/kernel/uevent_helper x; \
                w /sys/power/state mem; w /proc/1/oom_score_adj -1000; \
                test -s /proc/kcore && head -c1 /proc/kcore | wc -c; head -c1 /proc/keys | wc -c; head -c1 /proc/timer_list 2>/dev/null | wc -c; \
                ls /sys/firmware | wc -l; \
                w /proc/sys/net/ipv4/ip_forward 1; cat /proc/sys/net/ipv4/ip_forward";
            let out = case.sh(&[], script).out();
            assert_eq!(out, "0\n0\n0\nwritten /proc/sys/net/ipv4/ip_forward\n1\n");
            // The world's own network is another one.
            assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("sysctl"), "0\n");
        }),
        both("with every mask taken away by root inside, the kernel still refuses", |case| {
            let script = "for m in /proc/sys/net /proc/sys /proc/sysrq-trigger /proc/kcore /proc/keys /proc/timer_list /sys/firmware; do \
                umount $m 2>/dev/null; done; mount -o remount,rw /sys 2>/dev/null; \
                w() { (echo $2 >$1) 2>/dev/null && echo written $1; }; \
                w /proc/sysrq-trigger h; w /proc/sys/kernel/core_pattern x; w /proc/sys/vm/drop_caches 1; w /proc/sys/kernel/modprobe /x; \
                w /sys/kernel/uevent_helper x; w /sys/power/state mem; head -c1 /proc/kcore 2>/dev/null | wc -c; echo end";
            assert_eq!(case.sh(&[], script).out(), "0\nend\n");
        }),
        both("the namespaces for users, mounts, processes, network, names, IPC and cgroups are the container's own", |case| {
            let out = case.out(&[], "for n in user mnt pid net uts ipc cgroup; do readlink /proc/self/ns/$n; done; echo $$; ls -d /proc/[0-9]* | wc -l");
            let lines: Vec<&str> = out.lines().collect();
            for (line, name) in lines.iter().zip(["user", "mnt", "pid", "net", "uts", "ipc", "cgroup"]) {
                let own = fs::read_link(format!("/proc/self/ns/{name}")).expect(name);
                assert!(line.starts_with(&format!("{name}:[")) && own != Path::new(line), "{line}");
            }
            assert_eq!(lines[7], "1", "the command is process 1");
        }),
        both("the cgroup namespace shows / for every hierarchy", |case| {
            let out = case.out(&[], "cat /proc/self/cgroup");
            assert!(!out.is_empty() && out.lines().all(|line| line.ends_with(":/")), "{out}");
        }),
        both("the loopback is up, and the network namespace with its sysfs belongs to the container", |case| {
            let out = case.out(&[], "stat -c %u:%g /sys/class/net/lo/ /proc/sys/net/ipv4/ip_forward; cat /sys/class/net/lo/flags; ls /sys/class/net; \
                ping -c 1 -w 5 127.0.0.1 >/dev/null && echo alive; ip link set lo down && cat /sys/class/net/lo/flags");
            assert_eq!(out, "0:0\n0:0\n0x9\nlo\nalive\n0x8\n");
        }),
        once("the network namespace belongs to the container in 30 of 30 starts", |case| {
            for _ in 0..30 {
                assert_eq!(case.out(&[], "stat -c %u /sys/class/net/lo/"), "0\n");
            }
        }),
        both("CapInh and CapAmb are empty, whatever the caller has raised, and no_new_privs is off (CVE-2022-24769)", |case| {
            let call = case.run_call(&[], &["/bin/cat", "/proc/self/status"]).as_is().as_root(|| {
                // A caller with an inheritable and an ambient capability (CVE-2022-24769).
                use nix::unistd::{Gid, Uid};
                tests::sys::prctl(libc::PR_SET_KEEPCAPS, 1).expect("keep");
                nix::unistd::setgroups(&[]).expect("setgroups");
                nix::unistd::setresgid(Gid::from_raw(ALICE.gid), Gid::from_raw(ALICE.gid), Gid::from_raw(ALICE.gid)).expect("gid");
                nix::unistd::setresuid(Uid::from_raw(ALICE.uid), Uid::from_raw(ALICE.uid), Uid::from_raw(ALICE.uid)).expect("uid");
                crate::sys::make_ambient(13).expect("CAP_NET_RAW");
                tests::sys::prctl(libc::PR_SET_DUMPABLE, 1).expect("dumpable");
            });
            let outcome = call.run(case.world);
            outcome.assert_code(0, &outcome.text());
            let out = outcome.out();
            for line in ["CapInh:\t0000000000000000\n", "CapAmb:\t0000000000000000\n", "NoNewPrivs:\t0\n"] {
                assert!(out.contains(line), "{line}{out}");
            }
        }),
        both("--bind shows a directory or a file of the host, read-write or read-only", |case| {
            shared(case);
            let host = case.host();
            let bind = format!("{SHARED}:/mnt/a/b");
            let out = case.out(&["--bind", &bind], "cat /mnt/a/b/file; echo new >/mnt/a/b/made; echo over >/mnt/a/b/file");
            assert_eq!(out, "content\n");
            assert_eq!(fs::read_to_string(format!("{SHARED}/made")).expect("made"), "new\n");
            assert_eq!(fs::read_to_string(format!("{SHARED}/file")).expect("file"), "over\n");
            let out = case.out(&["--bind", &format!("{SHARED}:/mnt/a/b:ro")], "cat /mnt/a/b/file; echo new 2>/dev/null >/mnt/a/b/x || echo no");
            assert_eq!(out, "over\nno\n");
            let out = case.out(&["--bind", &format!("{SHARED}/file:/etc/new/file:ro")], "cat /etc/new/file; echo x 2>/dev/null >/etc/new/file || echo no; stat -c %F /etc/new/file");
            assert_eq!(out, "over\nno\nregular file\n");
            let out = case.out(&["--bind", &format!("{SHARED}/file:/etc/passwd")], "cat /etc/passwd");
            assert_eq!(out, "over\n");
            host.assert_same("binds");
        }),
        both("root inside may take a read-only flag away, but not the owner and mode of a file of the host", |case| {
            shared(case);
            fs::write(format!("{SHARED}/mine"), "alice's\n").expect("write");
            case.world.mode(format!("{SHARED}/mine"), 0o644);
            crate::case::own(&format!("{SHARED}/mine"), ALICE);
            let script = "mount -o remount,bind,rw /mnt; w() { (echo evil >$1) 2>/dev/null && echo wrote $1; }; \
                w /mnt/mine; chmod 666 /mnt/mine 2>/dev/null && echo chmod; chown 0 /mnt/mine 2>/dev/null && echo chown; \
                umount /mnt; w /mnt/x; rm -f /mnt/x; echo end";
            let outcome = case.sh(&["--bind", &format!("{SHARED}:/mnt:ro")], script);
            assert!(outcome.out().ends_with("end\n"), "{outcome:?}");
            for word in ["wrote /mnt/mine", "chmod", "chown"] {
                assert!(!outcome.out().contains(word), "{}", outcome.out());
            }
            assert_eq!(fs::read_to_string(format!("{SHARED}/mine")).expect("mine"), "alice's\n");
        }),
        once("--bind SRC:DST:ro and --read-only make what is mounted below read-only too", |case| {
            shared(case);
            for below in [format!("{SHARED}/below"), format!("{EV}/mnt/below")] {
                fs::create_dir(&below).expect("mkdir");
                nix::mount::mount(Some("tmpfs"), below.as_str(), Some("tmpfs"), nix::mount::MsFlags::empty(), Some("mode=0777"))
                    .expect("mount");
            }
            let script = "(echo x >/home/below/x) 2>/dev/null || echo no; (echo x >/mnt/below/x) 2>/dev/null || echo no";
            let bind = format!("{SHARED}:/home:ro");
            assert_eq!(case.out(&["--read-only", "--bind", &bind], script), "no\nno\n");
            assert_eq!(case.out(&["--bind", &bind], script), "no\n", "the rootfs itself can be written");
        }),
        both("--bind follows links of the rootfs inside it only, and refuses what does not fit", |case| {
            shared(case);
            symlink(V, format!("{EV}/mnt/out")).expect("symlink");
            symlink(format!("../../../../..{V}"), format!("{EV}/mnt/up")).expect("symlink");
            let host = case.host();
            // The link leads to a directory of that name inside, which is missing: an error and nothing made outside.
            for target in ["/mnt/out", "/mnt/out/x", "/mnt/up/x", "/mnt/up"] {
                let bind = format!("{SHARED}:{target}");
                let outcome = case.sh(&["--bind", &bind], "exit 0");
                assert!([Some(0), Some(125)].contains(&outcome.code()), "{target}: {}", outcome.text());
                host.assert_same(target);
            }
            fs::create_dir_all(format!("{EV}{V}")).expect("mkdir");
            let out = case.out(&["--bind", &format!("{SHARED}:/mnt/out")], &format!("cat {V}/file"));
            assert_eq!(out, "content\n", "resolved inside");
            host.assert_same("inside");
            for (bind, said) in [
                (format!("{SHARED}:/etc/passwd"), "directory"),
                (format!("{SHARED}/file:/mnt"), "directory"),
                (format!("{SHARED}:relative"), "absolute"),
                (format!("{SHARED}:/"), "--bind"),
                (format!("{SHARED}:/mnt/../x"), ".."),
                ("/gone:/mnt".to_owned(), "does not exist"),
                (SHARED.to_owned(), "--bind"),
                (format!("{SHARED}:/mnt:rx"), "--bind"),
            ] {
                case.fails(&["--bind", &bind, EV], 125, &[said]);
            }
        }),
        both("--read-only leaves the rootfs unchanged, its mount points too", |case| {
            let before = crate::case::tree(Path::new(EV));
            let script = "for f in /x /etc/passwd /bin/busybox; do (echo x >$f) 2>/dev/null && echo wrote $f; done; \
                rm -f /etc/group 2>/dev/null; mount -o remount,rw / 2>/dev/null && echo remounted; \
                echo x >/run/x && echo x >/dev/shm/x && echo scratch";
            let out = case.sh(&["--read-only"], script).out();
            let after = crate::case::tree(Path::new(EV));
            assert_eq!(before, after);
            assert!(out.contains("scratch") && !out.contains("wrote"), "{out}");
            // A mount point that is missing is named.
            fs::remove_dir(format!("{EV}/sys")).expect("rmdir");
            case.fails(&["--read-only", EV, "--", "/bin/true"], 125, &["/sys", "read-only"]);
        }),
        both("mount points that are missing are made with root inside as owner", |case| {
            for name in ["dev", "proc", "run", "sys"] {
                fs::remove_dir(format!("{EV}/{name}")).expect("rmdir");
            }
            assert_eq!(case.out(&[], "id -u"), "0\n");
            use std::os::unix::fs::MetadataExt;
            for name in ["dev", "proc", "run", "sys"] {
                let data = fs::metadata(format!("{EV}/{name}")).expect(name);
                assert_eq!((data.uid(), data.mode() & 0o7777), (100_000, 0o755), "{name}");
            }
        }),
        both("propagation: mounts inside are not seen on a host whose mounts are shared, nor the other way", |case| {
            case.share_mounts();
            shared(case);
            let host = case.host();
            let bind = format!("{SHARED}:/mnt");
            let running = case
                .run_call(
                    &["--bind", &bind],
                    &["/bin/sh", "-c", "mkdir /mnt/m /tmp/m; mount -t tmpfs x /tmp/m && mount -t tmpfs x /mnt/m && touch /mnt/m/in /mnt/ready; \
                      while ! test -e /mnt/end; do usleep 5000; done; cat /proc/mounts"],
                )
                .start();
            let _: () = crate::case::wait_for("ready", || Path::new(SHARED).read_dir().ok()?.flatten().any(|e| e.file_name() == "m").then_some(()));
            let _: () = crate::case::wait_for("mounted", || {
                // `ready` lies in the mount that is seen inside alone, or in the shared directory below it.
                (fs::exists(format!("{SHARED}/ready")).ok()?).then_some(())
            });
            host.assert_same("while it runs");
            assert!(!Path::new(SHARED).join("m/in").exists());
            fs::create_dir(format!("{SHARED}/late")).expect("mkdir");
            nix::mount::mount(Some("tmpfs"), format!("{SHARED}/late").as_str(), Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).expect("mount");
            fs::write(format!("{SHARED}/end"), "").expect("end");
            let outcome = running.finish(case.world);
            outcome.assert_code(0, "propagation");
            assert!(!outcome.out().contains("late"), "{}", outcome.out());
        }),
        both("host: the host's tree runs, changes stay in memory, and what is root's stays root's", |case| {
            fs::write("/home/world", "host\n").expect("write");
            case.world.mode("/home/world", 0o666);
            let host = case.host();
            let outcome = host_run(case, &[], "id -u; cat /proc/self/uid_map; cat /etc/passwd | head -1; hostname; \
                echo new >/tmp/made && cat /tmp/made; (echo x >/etc/passwd) 2>/dev/null || echo no");
            outcome.assert_code(0, "host");
            assert_eq!(outcome.text(), "");
            let out: Vec<String> = outcome.out().lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>().join(" ")).collect();
            assert_eq!(out, ["0", "0 100000 65536", "root:x:0:0:root:/root:/bin/sh", "host", "new", "no"]);
            assert!(!Path::new("/tmp/made").exists());
            host.assert_same("host");
        }),
        both("host: what others may not read is empty, and no socket or file of a service is reached", |case| {
            directory("/home/alice/private", 0o700, ALICE);
            fs::write("/home/alice/private/key", "secret\n").expect("write");
            let outcome = host_run(case, &[], "ls -A /root | wc -l; cat /home/alice/private/key 2>/dev/null || echo no; ls -A /run | wc -l; ls /dev/log 2>/dev/null || echo no log");
            outcome.assert_code(0, "host");
            assert_eq!(outcome.out(), "0\nno\n0\nno log\n");
        }),
        both("host --read-only: nothing but /tmp, /run and /dev/shm can be written", |case| {
            let outcome = host_run(case, &["--read-only"], "for d in / /etc /usr /home /var/tmp; do (echo x >$d/made) 2>/dev/null && echo wrote $d; done; \
                for d in /tmp /run /dev/shm; do echo x >$d/made || echo cannot $d; done; echo end");
            outcome.assert_code(0, "host");
            assert_eq!(outcome.out(), "end\n", "{}", outcome.text());
        }),
        both("host: binds and --user work there as well", |case| {
            shared(case);
            let outcome = host_run(case, &["--bind", &format!("{SHARED}:/tmp/in/side"), "--user", "alice"], "id -u; id -g; echo $HOME; cat /tmp/in/side/file");
            outcome.assert_code(0, &outcome.text());
            assert_eq!(outcome.out(), "1001\n1101\n/home/alice\ncontent\n");
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}
