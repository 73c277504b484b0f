//! `--cgroup`, limits, and a container in a cgroup that the caller stands in.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::{ALICE, Target, Trial};

use crate::case::{Case, EV, once, processes, wait_for};
use crate::cgroups::{Cgroups, alice, place};

const LINE: &str = "alice pids,v1:pids,v1:cpuset,v1:freezer,name=systemd 5 pids.max=200";

/// A configuration for cgdelegate, and that program beside the others.
fn cgroups(case: &mut Case<'_>, line: &str) -> Cgroups {
    case.world.needs_ours("cgdelegate");
    let _ = case.world.program("cgdelegate");
    Cgroups::new(case.world, line)
}

/// The process 1 of the container, which runs `sleep`.
fn sleeper() -> Pid {
    wait_for("sleep", || {
        let named =
            |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep");
        processes().into_iter().find(named).map(Pid::from_raw)
    })
}

/// The lines of /proc/self/cgroup inside that show no root.
fn not_a_root(text: &str, wanted: &[&str]) -> Vec<String> {
    let carries = |line: &&str, word: &str| {
        let list = line.split(':').nth(1).unwrap_or("");
        if word == "v2" { list.is_empty() } else { list.split(',').any(|w| w == word) }
    };
    for word in wanted {
        assert!(text.lines().any(|line| carries(&line, word)), "{word} is not in {text}");
    }
    let lines = text.lines().filter(|line| wanted.iter().any(|word| carries(line, word)));
    lines.filter(|line| !line.ends_with(":/")).map(str::to_owned).collect()
}

fn hierarchies(cgroups: &Cgroups) -> Vec<&'static str> {
    let mut words = cgroups.mounted(&["v2", "pids", "cpuset", "freezer"]);
    words.push("name=systemd");
    words
}

fn limits_file(cgroups: &Cgroups, name: &str) -> String {
    let word = if cgroups.mount("pids").is_some() { "pids" } else { "v2" };
    let path = cgroups.node(word, ALICE, name).join("pids.max");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}

pub fn trials() -> Vec<Trial> {
    [
        once("--cgroup: the container stands in it, alone, and it is the root that the container sees", |case| {
            let cgroups = cgroups(case, LINE);
            let running = case.run_call(&["--cgroup", "x", "--pids", "20"], &["/bin/sleep", "1000"]).start();
            let pid = sleeper();
            for word in hierarchies(&cgroups) {
                assert_eq!(place(pid, word), format!("/{}/cgd-1001/x", cgroups.base), "{word}");
                assert_eq!(place(running.pid(), word), "/", "spawn is not in it: {word}");
            }
            assert_eq!(limits_file(&cgroups, "x"), "20");
            let node = cgroups.node("v2", ALICE, "x");
            assert_eq!(crate::cgroups::owner(&node), (1001, 100_000, 0o775), "root inside manages it by its group");
            kill(running.pid(), Signal::SIGTERM).expect("kill");
            running.finish(case.world).assert_code(143, "ended");
            case.nothing_left("--cgroup");
            assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
            let text = case.out(&["--cgroup", "x"], "cat /proc/self/cgroup");
            assert_eq!(not_a_root(&text, &hierarchies(&cgroups)), [""; 0], "{text}");
            // Mounted inside, the cgroup is what root inside may use; process 1 alone is in it.
            let text = case.out(
                &["--cgroup", "x"],
                "mount -t cgroup2 none /mnt && mkdir /mnt/a && sleep 1000 & p=$!; sleep 0.2; echo $p >/mnt/a/cgroup.procs || exit; cat /mnt/cgroup.procs | tr '\\n' ' '; kill $p",
            );
            assert!(text.starts_with("1 "), "{text}");
            assert!(!text.split(' ').any(|pid| pid == "0"), "a process of the host is in it: {text}");
            assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
        }),
        once("top reads what the container's cgroup counts, below --cgroup and below cgdelegate run", |case| {
            let cgroups = cgroups(case, LINE);
            for inside in [false, true] {
                let mut words = vec!["spawn run --name c"];
                if inside {
                    words.insert(0, "cgdelegate run x --pids 20 --");
                } else {
                    words.push("--cgroup x --pids 20");
                }
                let script = format!("{} {EV} -- /bin/sh -c 'sleep 1000 & sleep 1000; true'", words.join(" "));
                let running = case.call("/bin/sh").args(["-c", &format!("exec {script}")]).start();
                sleeper();
                let row = wait_for("its row", || {
                    let outcome = case.spawn(&["top", "--json", "-d", "0.01"]).run(case.world);
                    let rows: serde_json::Value = serde_json::from_str(&outcome.out()).expect("JSON");
                    // The shell and its two.
                    rows.get(0).filter(|row| row["pids"].as_u64() == Some(3)).cloned()
                });
                let counted = |key: &str| row[key].as_str() == Some("cgroup");
                assert!(counted("pids_from"), "{inside}: {row}");
                assert_eq!(row["pids_limit"].as_u64(), if inside { None } else { Some(20) }, "{row}");
                // Each cgroup of version 2 counts processors' time.
                assert_eq!(counted("cpu_from"), cgroups.mount("v2").is_some() && hierarchies(&cgroups).contains(&"v2"), "{row}");
                kill(running.pid(), Signal::SIGTERM).expect("kill");
                running.finish(case.world).assert_code(143, "ended");
                case.nothing_left("top");
                let _ = case.call("/run/bin/cgdelegate").args(["prune"]).run(case.world);
            }
        }),
        once("exec enters the container's cgroup where the caller may write it, and one line says where not", |case| {
            let cgroups = cgroups(case, LINE);
            let idle = "trap \"exit 0\" TERM; while :; do sleep 0.05; done";
            // From outside: version 1 lets the caller, cgroup2 does not.
            let script = format!("spawn run -d --name c --cgroup x --pids 10 {EV} -- /bin/sh -c '{idle}'");
            case.pipeline(&script).assert_code(0, "run");
            let outcome = case.spawn(&["exec", "c", "--", "/bin/cat", "/proc/self/cgroup"]).run(case.world);
            outcome.assert_code(0, "exec");
            let (legacy, unified): (Vec<&str>, Vec<&str>) = hierarchies(&cgroups).into_iter().partition(|word| *word != "v2");
            assert_eq!(not_a_root(&outcome.out(), &legacy), [""; 0], "{}", outcome.out());
            if !unified.is_empty() {
                assert_eq!(not_a_root(&outcome.out(), &unified).len(), 1, "{}", outcome.out());
                let text = outcome.text();
                assert!(text.starts_with("spawn: the command stays outside the container's cgroup (cgroup2), "), "{text}");
                assert_eq!(text.matches('\n').count(), 1, "{text}");
            }
            if cgroups.mount("pids").is_some() {
                // The limit counts for it.
                let words = ["exec", "c", "--", "/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done; echo unlimited"];
                let outcome = case.spawn(&words).run(case.world);
                assert!(!outcome.out().contains("unlimited") && outcome.text().contains("fork"), "{}", outcome.text());
            }
            case.spawn(&["stop", "c"]).run(case.world).assert_code(0, "stop");
            case.nothing_left("exec in a cgroup");
            assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
            // From below the same cgroup of the caller's: everywhere, also into the leaf that root inside has made.
            let inner = format!(
                "spawn run -d --name c {EV} -- /bin/sh -c '{idle}' >/dev/null && spawn exec c -- cat /proc/self/cgroup; spawn stop c >&2"
            );
            fs::write("/home/alice/inner", inner).expect("script");
            let outcome = case.pipeline("cgdelegate run y -- sh /home/alice/inner");
            outcome.assert_code(0, &outcome.text());
            assert!(!outcome.text().contains("outside"), "{}", outcome.text());
            assert_eq!(not_a_root(&outcome.out(), &hierarchies(&cgroups)), [""; 0], "{}", outcome.out());
            case.nothing_left("exec below cgdelegate run");
        }),
        once("exec into a cgroup that hands its controllers on, as systemd's does, goes into a leaf of it", |case| {
            let cgroups = cgroups(case, &LINE.replace("alice ", "alice hugetlb,"));
            let node = cgroups.node("v2", ALICE, "y").display().to_string();
            // spawn alone in the cgroup hands controllers on to the container, whose process 1 does the same.
            let busy = "mkdir /run/c; mount -t cgroup2 none /run/c && mkdir /run/c/own && echo 1 >/run/c/own/cgroup.procs && \
                for c in $(cat /run/c/cgroup.controllers); do echo +$c; done >/run/c/cgroup.subtree_control; \
                trap \"exit 0\" TERM; cat /run/c/cgroup.subtree_control >/handed; while :; do sleep 0.05; done";
            let inner = format!(
                "mkdir {node}/shell; echo $$ >{node}/shell/cgroup.procs; \
                 (sh -c 'echo $$ >{node}/cgroup.procs && exec \"$@\"' sh spawn run --name c {EV} -- /bin/sh -c '{busy}') & \
                 spawn wait -s running c; while ! test -e {EV}/handed; do sleep 0.1; done; \
                 spawn exec c -- cat /proc/self/cgroup; spawn stop c >&2; wait"
            );
            fs::write("/home/alice/inner", inner).expect("script");
            let outcome = case.pipeline("cgdelegate run y -- sh /home/alice/inner");
            outcome.assert_code(0, &outcome.text());
            assert!(!outcome.text().contains("outside"), "{}", outcome.text());
            let handed = !fs::read_to_string(format!("{EV}/handed")).expect("handed").trim().is_empty();
            let root = fs::read_to_string(cgroups.need("v2").join("cgroup.controllers")).expect("controllers");
            let some = root.split_ascii_whitespace().any(|word| ["hugetlb", "pids"].contains(&word));
            assert_eq!(handed, some, "{}", outcome.text());
            let left = not_a_root(&outcome.out(), &["v2"]);
            assert_eq!(left, if handed { &["0::/.spawn"][..] } else { &[] }, "{}", outcome.text());
            case.nothing_left("exec into a leaf");
        }),
        once("--pids without a name is for a cgroup called like the container, and it holds", |case| {
            let cgroups = cgroups(case, LINE);
            let script = "sleep 5 & sleep 5 & sleep 5 & sleep 5 & sleep 5 & echo unlimited";
            let outcome = case.sh(&["--name", "c6", "--pids", "3"], script);
            assert!(!outcome.out().contains("unlimited"), "{}", outcome.out());
            assert!(outcome.text().contains("fork"), "{}", outcome.text());
            assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
            let running = case.run_call(&["--name", "c6", "--pids", "7"], &["/bin/sleep", "1000"]).start();
            let pid = sleeper();
            assert!(place(pid, "name=systemd").ends_with("/cgd-1001/c6"));
            assert_eq!(limits_file(&cgroups, "c6"), "7");
            let again = case.run(&["--cgroup", "c6", "--pids", "7"], &["/bin/true"]);
            again.assert_code(125, "the name is taken");
            assert!(again.text().starts_with("spawn: no cgroup c6: ") && again.text().contains("in use"), "{}", again.text());
            assert!(Path::new(&format!("/proc/{pid}")).exists(), "the other container lives");
            assert_eq!(limits_file(&cgroups, "c6"), "7", "and so does its cgroup");
            kill(running.pid(), Signal::SIGTERM).expect("kill");
            running.finish(case.world).assert_code(143, "ended");
            assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
        }),
        once("--map self: the cgroup is the caller's, who is root inside", |case| {
            let cgroups = cgroups(case, LINE);
            case.make_rootfs("/home/alice/own", ALICE.uid);
            let script = "cat /proc/self/cgroup; mount -t cgroup2 none /mnt && mkdir /mnt/a && echo made";
            let call = case.spawn(&["run", "--map", "self", "--cgroup", "x", "/home/alice/own", "--", "/bin/sh", "-c", script]);
            let outcome = call.run(case.world);
            outcome.assert_code(0, "--map self");
            let text = outcome.out();
            let places = text.strip_suffix("made\n").unwrap_or_else(|| panic!("not made: {text}"));
            assert_eq!(not_a_root(places, &hierarchies(&cgroups)), [""; 0], "{text}");
            assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
        }),
        once("a cgroup that is not granted, or not so large, ends the start with cgdelegate's reason", |case| {
            let cgroups = cgroups(case, LINE);
            let one = |case: &mut Case<'_>, options: &[&str], said: &[&str]| {
                let words = [options, &[EV, "--", "/bin/echo", "ran"]].concat();
                let outcome = case.fails(&words, 125, said);
                assert_eq!(outcome.out(), "", "nothing ran");
            };
            one(case, &["--cgroup", "x", "--pids", "201"], &["no cgroup x: cgdelegate: ", "pids.max", "200", "/etc/cgdelegate.conf:2"]);
            one(case, &["--cgroup", "x", "--memory", "1G"], &["no cgroup x: cgdelegate: ", "memory"]);
            one(case, &["--cgroup", "x", "--memory", "1g"], &["cgdelegate: --memory 1g: "]);
            one(case, &["--cgroup", "../x"], &["is no name for a cgroup"]);
            one(case, &["--pids", "x"], &["cgdelegate: --pids x: "]);
            cgroups.configure(case.world, "bob pids 1");
            one(case, &["--cgroup", "x"], &["no cgroup x: cgdelegate: ", "/etc/cgdelegate.conf", "alice"]);
            fs::remove_file("/run/bin/cgdelegate").expect("remove");
            one(case, &["--cgroup", "x"], &["cgdelegate is not installed"]);
            let held = case.spawn(&["hold", "--cgroup", "x", "--pids", "5", EV]).run(case.world);
            case.failed(&held, 125, &["cgdelegate attach x --pids=5"], "hold");
            assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
        }),
        once("--info-fd tells the cgroup", |case| {
            let _cgroups = cgroups(case, LINE);
            let script = format!("spawn run --cgroup x --info-fd 3 {EV} -- /bin/sh -c 'exit 3' 3>&1");
            let outcome = case.pipeline(&script);
            outcome.assert_code(3, "the command's");
            let line = outcome.out().lines().find(|line| line.contains("\"network\"")).expect("network").to_owned();
            assert!(line.contains("\"cgroup\":[\"") && line.contains("name=systemd:/") && line.contains("/x\""), "{line}");
        }),
        once("SIGKILL of spawn leaves a cgroup that the next call of the same name takes away", |case| {
            let cgroups = cgroups(case, LINE);
            for _ in 0..5 {
                let running = case.run_call(&["--cgroup", "x"], &["/bin/sleep", "1000"]).start();
                sleeper();
                kill(running.pid(), Signal::SIGKILL).expect("kill");
                let _ = running.finish(case.world);
                case.nothing_left_of_killed("SIGKILL of spawn");
            }
            assert!(!cgroups.directories().is_empty(), "nobody was there to remove it");
            case.run(&["--cgroup", "y"], &["/bin/true"]).assert_silent("the next call");
            assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
        }),
        once("what was moved in from outside ends with the container; a cgroup of create's stays", |case| {
            let cgroups = cgroups(case, LINE);
            let stray = Target::without_user_namespace(ALICE);
            let running = case.run_call(&["--cgroup", "x"], &["/bin/sleep", "1000"]).start();
            let pid = sleeper();
            for mount in &cgroups.mounts {
                let node = mount.join(&cgroups.base).join("cgd-1001/x/cgroup.procs");
                if node.exists() {
                    fs::write(node, stray.pid().to_string()).expect("moved in");
                }
            }
            assert_eq!(place(stray.pid(), "v2"), place(pid, "v2"));
            kill(running.pid(), Signal::SIGTERM).expect("kill");
            let outcome = running.finish(case.world);
            outcome.assert_code(143, "ended");
            assert_eq!(outcome.text(), "");
            assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
            drop(stray);
            alice(case.world, "create kept").assert_silent("create");
            case.run(&["--cgroup", "kept"], &["/bin/true"]).assert_silent("in a cgroup of create's");
            assert_eq!(alice(case.world, "list").out().lines().count(), 1, "it stays");
            alice(case.world, "delete kept").assert_silent("delete");
        }),
        once("below `cgdelegate run` no option is needed: init alone in a leaf, which is the root it sees", |case| {
            let cgroups = cgroups(case, LINE);
            let script = "cat /proc/self/cgroup; mount -t cgroup2 none /mnt; mkdir /mnt/a && echo made; cat /mnt/cgroup.procs; ls /mnt/../mnt >/dev/null";
            let words = ["run", "x", "--", "/run/bin/spawn", "run", EV, "--", "/bin/sh", "-c", script];
            let outcome = case.call("/run/bin/cgdelegate").args(words).run(case.world);
            outcome.assert_code(0, "prefix");
            assert_eq!(outcome.text(), "");
            let text = outcome.out();
            let (places, rest) = text.split_once("made\n").unwrap_or_else(|| panic!("not made: {text}"));
            assert_eq!(not_a_root(places, &hierarchies(&cgroups)), [""; 0], "{text}");
            let inside: Vec<&str> = rest.lines().collect();
            assert!(inside.contains(&"1") && !inside.contains(&"0"), "init and its children alone: {rest}");
            let call = case.call("/run/bin/cgdelegate");
            let running = call.args(["run", "x", "--", "/run/bin/spawn", "run", EV, "--", "/bin/sleep", "1000"]).start();
            let pid = sleeper();
            let node = format!("/{}/cgd-1001/x", cgroups.base);
            for word in hierarchies(&cgroups) {
                let leaf = place(pid, word);
                assert!(leaf.starts_with(&format!("{node}/ev.")), "{word}: {leaf}");
            }
            assert_eq!(place(running.pid(), "v2"), format!("{node}/supervisor"));
            kill(running.pid(), Signal::SIGTERM).expect("kill");
            running.finish(case.world).assert_code(143, "ended");
            alice(case.world, "prune").assert_code(0, "prune");
            assert!(cgroups.directories().is_empty(), "{:?}", cgroups.directories());
        }),
        once("in the pipeline it is the stage `cgdelegate attach`", |case| {
            let cgroups = cgroups(case, LINE);
            let script = format!(
                "spawn hold {EV} -- /bin/cat /proc/self/cgroup | idmap | cgdelegate attach x --pids 20 | spawn go"
            );
            let outcome = case.pipeline(&script);
            outcome.assert_code(0, "pipeline");
            assert_eq!(not_a_root(&outcome.out(), &hierarchies(&cgroups)), [""; 0], "{}", outcome.out());
        }),
        once("no cgroup tree of the host's is mounted in a container, with a cgroup of its own or without", |case| {
            let cgroups = cgroups(case, LINE);
            for options in [&[][..], &["--cgroup", "x"]] {
                let text = case.out(options, "cat /proc/self/mountinfo; ls /sys/fs/cgroup | wc -l");
                assert!(!text.lines().any(|line| line.contains(" - cgroup")), "{options:?}: {text}");
                assert!(text.ends_with("\n0\n"), "{options:?}: {text}");
            }
            drop(cgroups);
        }),
        once("in a cgroup that is somebody else's the container is started as it is, and nothing is made in it", |case| {
            let cgroups = cgroups(case, LINE);
            // Made like a session's scope: its list of processes is root's.
            let top = cgroups.need("v2").join(&cgroups.base);
            fs::create_dir_all(top.join("scope")).expect("scope");
            let procs = top.join("scope/cgroup.procs");
            let call = case.run_call(&[], &["/bin/cat", "/proc/self/cgroup"]);
            let outcome = call.as_root(move || fs::write(procs, "0").expect("enter")).run(case.world);
            outcome.assert_code(0, "a start");
            assert_eq!(not_a_root(&outcome.out(), &["v2"]), [""; 0], "{}", outcome.out());
            assert_eq!(fs::read_dir(top.join("scope")).expect("scope").flatten().filter(|e| e.path().is_dir()).count(), 0);
        }),
        once("a unit of systemd's user instance is used with Delegate=yes alone", |case| {
            let cgroups = cgroups(case, LINE);
            case.world.needs_tool("/usr/bin/setfattr");
            case.make_rootfs("/home/alice/own", ALICE.uid);
            // As the user's systemd makes one: all of it is his, and the mark tells whose it is to manage.
            let unit = cgroups.need("v2").join(&cgroups.base).join("run-r1.scope");
            fs::create_dir_all(&unit).expect("scope");
            for file in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
                std::os::unix::fs::chown(unit.join(file), Some(ALICE.uid), Some(ALICE.gid)).expect("chown");
            }
            let start = |case: &mut Case<'_>| {
                let procs = unit.join("cgroup.procs");
                let words = ["run", "--map", "self", "/home/alice/own", "--", "/bin/sleep", "1000"];
                let call = case.spawn(&words).as_root(move || fs::write(procs, "0").expect("enter"));
                let running = call.start();
                let pid = sleeper();
                let places = (place(running.pid(), "v2"), place(pid, "v2"));
                kill(running.pid(), Signal::SIGTERM).expect("kill");
                running.finish(case.world).assert_code(143, "ended");
                places
            };
            let node = format!("/{}/run-r1.scope", cgroups.base);
            assert_eq!(start(case), (node.clone(), node.clone()), "systemd's to manage");
            let marked = std::process::Command::new("/usr/bin/setfattr").args(["-n", "user.delegate", "-v", "1"]).arg(&unit).status();
            assert!(marked.expect("setfattr").success());
            let (own, leaf) = start(case);
            assert_eq!(own, format!("{node}/supervisor"));
            assert!(leaf.starts_with(&format!("{node}/own.")), "{leaf}");
            let left: Vec<_> = cgroups.directories().into_iter().filter(|path| path.starts_with(&unit) && *path != unit).collect();
            assert_eq!(left, [unit.join("supervisor")], "the leaf goes with the container");
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}
