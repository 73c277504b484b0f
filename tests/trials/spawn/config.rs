//! A container's configuration, the init of its rootfs, and what a command may not do.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tests::{ALICE, Outcome, Trial};

use crate::case::{Case, EV, FIRST, V, both, chown_all, directory, once, own, tree};
use crate::probe;

/// Where alice's LXC containers are.
const LXC: &str = "/home/alice/.local/share/lxc";

/// Makes an LXC container `name` of the rootfs in [`EV`], with `text` as its config.
fn container(name: &str, text: &str) -> String {
    let path = format!("{LXC}/{name}");
    fs::create_dir_all(&path).expect("mkdir");
    for directory in ["/home/alice/.local", "/home/alice/.local/share", LXC, path.as_str()] {
        own(directory, ALICE);
    }
    fs::rename(EV, format!("{path}/rootfs")).expect("rename");
    write_config(name, text);
    format!("{path}/rootfs")
}

fn write_config(name: &str, text: &str) {
    fs::write(format!("{LXC}/{name}/config"), text).expect("config");
}

/// `spawn run` with options and words, to its end.
fn run(case: &mut Case<'_>, words: &[&str]) -> Outcome {
    let call = case.spawn(&["run"]).args(words);
    call.run(case.world)
}

/// The output of a shell script in EV with `-s` for each of `keys`.
#[track_caller]
fn with(case: &mut Case<'_>, keys: &[&str], script: &str) -> String {
    let options: Vec<&str> = keys.iter().flat_map(|key| ["-s", key]).collect();
    let outcome = case.sh(&options, script);
    outcome.assert_code(0, script);
    outcome.out()
}

/// An init for the rootfs at `root`: a script that tells what it finds.
fn make_init(case: &Case<'_>, root: &str, script: &str) {
    fs::create_dir_all(format!("{root}/sbin")).expect("mkdir");
    fs::write(format!("{root}/sbin/init"), format!("#!/bin/sh\n{script}\n")).expect("init");
    case.world.mode(format!("{root}/sbin/init"), 0o755);
    chown_all(Path::new(root), FIRST);
}

pub fn trials() -> Vec<Trial> {
    [
        both("an unprivileged container as lxc-create leaves it starts unchanged, by -P and by its name", |case| {
            case.world.needs_tool("/usr/share/lxc/config/userns.conf");
            let root = container("c1", "");
            let text = format!(
                "# Template used to create this container: /usr/share/lxc/templates/lxc-download\n\
                 lxc.include = /usr/share/lxc/config/common.conf\nlxc.include = /usr/share/lxc/config/userns.conf\n\
                 lxc.arch = linux64\nlxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 100000 65536\n\
                 lxc.rootfs.path = dir:{root}\nlxc.uts.name = from-config\nlxc.net.0.type = empty\n"
            );
            write_config("c1", &text);
            let before = tree(Path::new(LXC)).len();
            let script = "hostname; cat /proc/self/uid_map; ls /dev/tty[1-9]; env | grep -c container_ttys";
            for words in [&["-P", LXC, "c1"][..], &["c1"], &[&format!("{LXC}/c1")]] {
                let outcome = run(case, &[words, &["--", "/bin/sh", "-c", script]].concat());
                outcome.assert_code(0, "an LXC container");
                assert_eq!(outcome.out(), "from-config\n         0     100000      65536\n/dev/tty1\n/dev/tty2\n/dev/tty3\n/dev/tty4\n1\n");
                // What is left out is said once.
                assert_eq!(outcome.text().matches("lxc.cgroup.devices.").count(), 1, "{}", outcome.text());
            }
            assert_eq!(before, tree(Path::new(LXC)).len());
            case.fails(&["-P", "/nowhere", "c1"], 125, &["/nowhere/c1/rootfs", "no container c1"]);
            case.fails(&["-P", LXC, "./c1"], 125, &["--lxcpath"]);
        }),
        both("a key that cannot be honoured ends the start with file, line, key and reason", |case| {
            container("c1", "lxc.uts.name = c1\n\nlxc.net.0.type = phys\n");
            case.fails(&["c1"], 125, &["/c1/config:3: lxc.net.0.type = phys", "needs root on the host"]);
            write_config("c1", "lxc.include = /nowhere\n");
            case.fails(&["c1"], 125, &["/c1/config:1: lxc.include /nowhere"]);
            write_config("c1", "lxc.mount.entry = /nowhere mnt none bind 0 0\n");
            case.fails(&["c1", "--", "/bin/true"], 125, &["/nowhere", "bind mount"]);
            write_config("c1", "lxc.seccomp.profile = /nowhere\n");
            case.fails(&["c1"], 125, &["/c1/config:1: lxc.seccomp.profile = /nowhere"]);
            write_config("c1", "lxc.sysctl.vm.swappiness = 50\n");
            case.fails(&["c1", "--", "/bin/true"], 125, &["/proc/sys/vm/swappiness", "/c1/config:1", "belongs to the host"]);
            case.fails(&["-s", "uts.name=x", "c1"], 125, &["-s uts.name=x"]);
        }),
        both("the keys for environment, limits, capabilities, sysctl, proc, terminals and architecture do what they say", |case| {
            let out = with(case, &[
                "lxc.environment = A=b c", "lxc.prlimit.nofile = 100:200", "lxc.cap.drop = sys_admin CAP_CHOWN", "lxc.no_new_privs = 1",
                "lxc.sysctl.net.ipv4.ip_forward = 1", "lxc.proc.oom_score_adj = 300", "lxc.pty.max = 7", "lxc.uts.name = named",
                "lxc.init.cwd = /var", "lxc.init.uid = 1000",
            ], "echo $A; ulimit -Sn; ulimit -Hn; grep -E 'CapBnd|NoNewPrivs' /proc/self/status; cat /proc/sys/net/ipv4/ip_forward; \
                cat /proc/self/oom_score_adj; grep -o max=. /proc/mounts | sort -u; hostname; pwd; id -u");
            let whole = case.out(&[], "sed -n 's/^CapBnd:.//p' /proc/self/status");
            let bits = u64::from_str_radix(whole.trim(), 16).expect("hex") & !(1 << 21 | 1);
            assert_eq!(out, format!("b c\n100\n200\nCapBnd:\t{bits:016x}\nNoNewPrivs:\t1\n1\n300\nmax=7\nnamed\n/var\n1000\n"));
            assert_eq!(with(case, &["lxc.cap.keep = setuid"], "grep CapBnd /proc/self/status"), "CapBnd:\t0000000000000080\n");
            assert_eq!(with(case, &["lxc.mount.auto = proc:rw sys:rw"], "grep -c ' /proc/sys ' /proc/mounts; grep -c 'sysfs rw' /proc/mounts; true"), "0\n1\n");
            let limit = fs::read_to_string("/proc/sys/fs/nr_open").expect("nr_open");
            let above = format!("lxc.prlimit.nofile = {}", limit.trim().parse::<u64>().expect("a number"));
            let call = case.run_call(&["-s", &above], &["/bin/true"]).as_root(|| crate::sys::limit_files(4096));
            let outcome = call.run(case.world);
            case.failed(&outcome, 125, &["lxc.prlimit.nofile (-s)", "hard limit"], "above the hard limit");
            if cfg!(target_arch = "x86_64") {
                assert_eq!(with(case, &["lxc.arch = i686"], "uname -m"), "i686\n");
            }
        }),
        both("mount entries are made as LXC makes them: create, optional, relative, ro, file systems and an fstab", |case| {
            directory("/home/alice/src", 0o755, ALICE);
            fs::write("/home/alice/src/file", "content\n").expect("write");
            fs::write("/home/alice/fstab", "# comment\n\n/home/alice/src mnt/fstab none bind,create=dir 0 0\n").expect("fstab");
            let out = with(case, &[
                "lxc.mount.fstab = /home/alice/fstab",
                "lxc.mount.entry = /home/alice/src mnt/a/b none bind,ro,nosuid,create=dir 0 0",
                "lxc.mount.entry = /home/alice/src/file mnt/f none bind,create=file 0 0",
                "lxc.mount.entry = tmpfs mnt/t tmpfs create=dir,size=64k,mode=0700,noexec 0 0",
                "lxc.mount.entry = /nowhere mnt/n none bind,optional,create=dir 0 0",
                "lxc.mount.entry = /home/alice/src mnt/missing none bind,optional 0 0",
                "lxc.mount.entry = etc/passwd var/log none bind,relative,optional 0 0",
                "lxc.mount.entry = /etc/group mnt/r none bind,relative,create=file 0 0",
                &format!("lxc.mount.entry = /home/alice/src {EV}/home none bind 0 0"),
            ], "cat /mnt/a/b/file /mnt/f /mnt/fstab/file /home/file; (echo x >/mnt/a/b/new) 2>/dev/null || echo ro; head -n1 /mnt/r; stat -c %a /mnt/t; \
                grep ' /mnt/t ' /proc/mounts | grep -c noexec.*size=64k; grep ' /mnt/a/b ' /proc/mounts | grep -c ro,nosuid; ls -d /mnt/n /mnt/missing 2>/dev/null; true");
            assert_eq!(out, "content\ncontent\ncontent\ncontent\nro\nroot:x:0:\n700\n1\n1\n");
            case.fails(&["-s", "lxc.mount.entry = /home/alice/src mnt/none none bind 0 0", EV, "--", "/bin/true"], 125, &["mnt/none"]);
            // No block device is mounted by an ordinary user.
            case.fails(&["-s", "lxc.mount.entry = /dev/vda mnt ext4 defaults 0 0", EV, "--", "/bin/true"], 125, &["/mnt"]);
        }),
        both("CVE-2021-30465, CVE-2015-1335: a mount entry follows no link of the rootfs out of it, and creates nothing outside", |case| {
            directory("/home/alice/src", 0o755, ALICE);
            for (number, content) in [V, "../../../../../../home/victim", "/proc/self/root/home/victim", "/proc/1/cwd"].into_iter().enumerate() {
                let link = format!("{EV}/mnt/l{number}");
                symlink(content, &link).expect("symlink");
                std::os::unix::fs::lchown(&link, Some(FIRST), Some(FIRST)).expect("chown");
                for option in ["create=dir", "create=file", "optional"] {
                    for target in [format!("mnt/l{number}"), format!("mnt/l{number}/new")] {
                        let host = case.host();
                        let entry = format!("lxc.mount.entry = /home/alice/src {target} none bind,{option} 0 0");
                        let outcome = case.sh(&["-s", &entry], "cat /home/victim/secret 2>/dev/null; true");
                        assert!(matches!(outcome.code(), Some(0 | 125)), "{entry}: {}", outcome.text());
                        assert!(!outcome.out().contains("secret"), "{entry}");
                        host.assert_same(&entry);
                    }
                }
            }
        }),
        both("CVE-2019-19921: sysctl and proc keys are written to spawn's own procfs, whatever lies on /proc", |case| {
            fs::create_dir_all(format!("{EV}/proc/sys/net/ipv4")).expect("mkdir");
            fs::create_dir_all(format!("{EV}/proc/1")).expect("mkdir");
            for file in ["sys/net/ipv4/ip_forward", "1/oom_score_adj"] {
                fs::write(format!("{EV}/proc/{file}"), "").expect(file);
                case.world.mode(format!("{EV}/proc/{file}"), 0o666);
            }
            directory("/home/alice/false", 0o755, ALICE);
            chown_all(Path::new(EV), FIRST);
            let keys = ["lxc.sysctl.net.ipv4.ip_forward=1", "lxc.proc.oom_score_adj=10", "lxc.mount.entry=/home/alice/false proc none bind,optional 0 0"];
            with(case, &keys, "true");
            assert!(tree(&Path::new(EV).join("proc")).iter().all(|line| line.ends_with("\"\"")), "something was written");
            for wrong in ["lxc.proc.../../etc/passwd=x", "lxc.sysctl.net/../../../x=1", "lxc.proc.fd.1=x", "lxc.proc.cwd=x", "lxc.proc.exe=x"] {
                let outcome = case.run(&["-s", wrong], &["/bin/true"]);
                outcome.assert_code(125, wrong);
            }
        }),
        both("the system calls that LXC's profile forbids, and typing into a terminal, are refused in every container", |case| {
            let bind = probe::copy(case);
            let outcome = run(case, &["--bind", &bind, "host", "--", probe::INSIDE, probe::FLAG, "forbidden"]);
            outcome.assert_code(0, "forbidden");
            let names = ["open_by_handle_at", "init_module", "finit_module", "delete_module", "kexec_load", "umount2", "ioctl", "ioctl, more bits"];
            let want: String = names.iter().map(|name| format!("{name}: {}\n", libc::EPERM)).collect();
            assert_eq!(outcome.out(), format!("{want}ioctl, another: {}\n", libc::EBADF));
        }),
        both("a profile of LXC's is done besides, and its errors are those of its file", |case| {
            fs::write("/home/alice/profile", "2\ndenylist\n[all]\nmkdir errno 95\nmkdirat errno 95\n").expect("profile");
            let key = "lxc.seccomp.profile = /home/alice/profile";
            let outcome = case.sh(&["-s", key], "mkdir /tmp/x 2>&1; test -d /tmp/x || echo none");
            assert!(outcome.out().contains("not supported") && outcome.out().ends_with("none\n"), "{}", outcome.out());
            fs::write("/home/alice/profile", "2\ndenylist\n[all]\nmkdir notify\n").expect("profile");
            case.fails(&["-s", key, EV, "--", "/bin/true"], 125, &["/home/alice/profile", "line 4", "notify"]);
            case.world.needs_tool("/usr/share/lxc/config/common.seccomp");
            assert_eq!(with(case, &["lxc.seccomp.profile = /usr/share/lxc/config/common.seccomp"], "echo run"), "run\n");
        }),
        both("root inside cannot make writable what is shown to it read-only, in any of the kernel's ways", |case| {
            directory("/home/alice/src", 0o777, ALICE);
            fs::set_permissions("/home/alice/src", std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("chmod");
            let bind = probe::copy(case);
            let inside = [probe::INSIDE, probe::FLAG, "writable", "/mnt"];
            let ro = run(case, &[&["--bind", &bind, "--bind", "/home/alice/src:/mnt:ro", "host", "--"][..], &inside].concat());
            ro.assert_code(0, "writable");
            let out = ro.out();
            assert!(out.contains("written false") && !out.contains(": 0\n"), "{out}");
            assert_eq!(out.lines().count(), 7, "{out}");
            assert!(!Path::new("/home/alice/src/probe-was-here").exists());
            // The same without :ro, so that the trial can fail.
            let rw = run(case, &[&["--bind", &bind, "--bind", "/home/alice/src:/mnt", "host", "--"][..], &inside].concat());
            assert!(rw.out().contains("written true"), "{}", rw.out());
            for script in ["mount -o remount,bind,rw / 2>/dev/null; echo x >/x; ls /x 2>/dev/null", "mount -o remount,rw / 2>/dev/null; echo x >/x; ls /x 2>/dev/null"] {
                let outcome = case.sh(&["--read-only"], script);
                assert_eq!(outcome.out(), "", "{script}");
            }
            assert!(!Path::new(EV).join("x").exists());
        }),
        once("--ephemeral keeps in memory what is written to the rootfs, and an overlay in the configuration has its own place", |case| {
            let before = tree(Path::new(EV));
            let script = "echo new >/etc/new; rm /etc/passwd; mkdir /var/d; cat /etc/new; ls /etc";
            assert_eq!(case.out(&["--ephemeral"], script), "new\ngroup\nnew\n");
            assert_eq!(with(case, &["lxc.ephemeral = 1"], script), "new\ngroup\nnew\n");
            assert_eq!(before, tree(Path::new(EV)));
            directory("/home/alice/snap", 0o755, ALICE);
            for name in ["delta0", "olwork"] {
                directory(&format!("/home/alice/snap/{name}"), 0o755, tests::User { uid: FIRST, gid: FIRST, ..ALICE });
            }
            let key = format!("lxc.rootfs.path = overlay:{EV}:/home/alice/snap/delta0");
            assert_eq!(with(case, &[&key], script), "new\ngroup\nnew\n");
            assert_eq!(fs::read_to_string("/home/alice/snap/delta0/etc/new").expect("the upper directory"), "new\n");
            assert_eq!(with(case, &[&key], "cat /etc/new; mkdir /var/e"), "new\n");
            assert_eq!(case.sh(&["-s", &key, "--read-only"], "mount -o remount,rw /; echo x >/etc/x; cat /etc/new").out(), "new\n");
            assert!(!Path::new("/home/alice/snap/delta0/etc/x").exists());
            assert_eq!(before, tree(Path::new(EV)));
        }),
        both("without a command the rootfs's init is started, as process 1 and with a command line of its own", |case| {
            make_init(case, EV, "echo $$ $0; cat /proc/cmdline; echo $container; grep CapBnd /proc/self/status; tty </dev/console; exit 7");
            let outcome = run(case, &[EV]);
            outcome.assert_code(7, &outcome.text());
            let out = outcome.out();
            let lines: Vec<&str> = out.lines().collect();
            assert_eq!(lines[..3], ["1 /sbin/init", "fastboot nomodules noreadonlyroot", "lxc"]);
            let bits = u64::from_str_radix(lines[3].strip_prefix("CapBnd:\t").expect("CapBnd"), 16).expect("hex");
            assert_eq!(bits & (1 << 33 | 1 << 32 | 1 << 25 | 1 << 16 | 1 << 17), 0, "{out}");
            assert!(bits & (1 << 22) != 0, "shutdown needs CAP_SYS_BOOT: {out}");
            // A command is none, and finds the host's command line.
            let host = fs::read_to_string("/proc/cmdline").expect("cmdline");
            assert_eq!(case.out(&[], "cat /proc/cmdline"), host);
            assert_eq!(run(case, &["-s", "lxc.init.cmd = /bin/echo 'a b' c", EV]).out(), "a b c\n");
            case.world.remove(format!("{EV}/sbin/init"));
            let outcome = case.spawn(&["run", EV]).stdin("echo shell $0\n").run(case.world);
            assert_eq!(outcome.out(), "shell /bin/sh\n", "{}", outcome.text());
            assert_eq!(case.spawn(&["run", "host"]).stdin("exit 5\n").run(case.world).code(), Some(5));
        }),
        both("hooks run on the host, as the caller, with LXC's words and variables, and one that fails ends the start", |case| {
            fs::write("/home/alice/hook", "#!/bin/sh\necho \"$(id -u) $* $LXC_NAME $LXC_HOOK_TYPE\" >>/home/alice/said\n").expect("hook");
            case.world.mode("/home/alice/hook", 0o755);
            let hooks = ["lxc.hook.pre-start=/home/alice/hook own", "lxc.hook.start-host=/home/alice/hook", "lxc.hook.post-stop=/home/alice/hook"];
            assert_eq!(with(case, &hooks, "echo inside"), "inside\n");
            let uid = ALICE.uid;
            assert_eq!(
                fs::read_to_string("/home/alice/said").expect("said"),
                format!("{uid} own ev lxc pre-start ev pre-start\n{uid} ev lxc start-host ev start-host\n{uid} ev lxc post-stop ev post-stop\n")
            );
            case.fails(&["-s", "lxc.hook.pre-start=false", EV, "--", "/bin/true"], 125, &["lxc.hook.pre-start = false", "has failed"]);
            case.fails(&["-s", "lxc.hook.start-host=false", EV, "--", "/bin/true"], 125, &["lxc.hook.start-host = false"]);
        }),
        both("CVE-2026-41579, CVE-2026-47766: without LXC's autodev too, nothing is made where a link /dev of the rootfs leads", |case| {
            for content in [V, "../../../../home/victim", "/", "/etc"] {
                case.world.remove(format!("{EV}/dev"));
                symlink(content, format!("{EV}/dev")).expect("symlink");
                std::os::unix::fs::lchown(format!("{EV}/dev"), Some(FIRST), Some(FIRST)).expect("chown");
                let host = case.host();
                let outcome = case.sh(&["-s", "lxc.autodev = 0", "-s", "lxc.tty.max = 4"], "stat -f -c %T /dev/.; stat -c %t /dev/null");
                // A link to its own root costs the container its tools; that is its own trouble.
                assert!(matches!(outcome.code(), Some(0 | 1 | 125..=127)), "{content}: {}", outcome.text());
                if outcome.code() == Some(0) {
                    assert_eq!(outcome.out(), "tmpfs\n1\n", "{content}");
                }
                host.assert_same(content);
            }
        }),
        both("CVE-2024-21626: a working directory of the configuration that leads through /proc to the host is refused", |case| {
            for path in ["/proc/self/fd/9", "/proc/self/fd/9/..", "/proc/1/root/etc", "/proc/self/cwd"] {
                let key = format!("lxc.init.cwd = {path}");
                let call = case.run_call(&["-s", &key], &["/bin/cat", "passwd"]).opens(9, "/etc", libc::O_DIRECTORY);
                let outcome = call.run(case.world);
                case.failed(&outcome, 125, &["working directory", path], path);
            }
        }),
        both("CVE-2025-52565: the console and the terminals are pseudo-terminals of the container's own, whatever the rootfs has", |case| {
            for name in ["console", "tty1", "pts"] {
                symlink("/proc/sysrq-trigger", format!("{EV}/dev/{name}")).expect("symlink");
            }
            let script = "for t in console tty1 tty2; do stat -c %t /dev/$t; tty </dev/$t >/dev/null && echo tty; done; stat -c %T /dev/console /dev/tty1 /dev/tty2";
            assert_eq!(with(case, &["lxc.tty.max = 2"], script), "88\ntty\n88\ntty\n88\ntty\n0\n1\n2\n");
        }),
        once("the caller's session keyring stays outside", |case| {
            let program = probe::copy(case);
            let words = ["run", "--bind", &program, "host", "--", probe::INSIDE, probe::FLAG, "keyring"];
            let call = case.spawn(&words).as_root(|| crate::sys::join_keyring(c"callers-own"));
            let outcome = call.run(case.world);
            outcome.assert_code(0, "the probe");
            assert!(outcome.out().ends_with(";_ses\n"), "a keyring of its own: {}", outcome.out());
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}
