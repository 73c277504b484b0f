//! `spawn autostart`: what a boot starts, and the units that do it.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use tests::{ALICE, BOB, Trial};

use crate::background::{spawn, told};
use crate::case::{Case, EV, V, both, once, own};

const DATA: &str = "/home/alice/.local/share/spawn";
const UNITS: &str = "/home/alice/.config/systemd/user";

/// A container of alice's data directory with `lines` in its configuration.
fn container(case: &Case<'_>, name: &str, lines: &str) {
    for path in ["/home/alice/.local", "/home/alice/.local/share", DATA, &format!("{DATA}/{name}")] {
        if fs::create_dir(path).is_ok() {
            own(path, ALICE);
        }
    }
    let text = format!("lxc.rootfs.path = dir:{EV}\nlxc.init.cmd = /bin/sleep 1000\n{lines}");
    case.world.write(format!("{DATA}/{name}/config"), text);
}

/// Directories of alice's, the last of which is that of her units.
fn units() {
    for path in ["/home/alice/.config", "/home/alice/.config/systemd", UNITS] {
        fs::create_dir(path).expect(path);
        own(path, ALICE);
    }
}

pub fn trials() -> Vec<Trial> {
    [
        both(
            "autostart run starts what a boot starts: by group, order and delay; stop and list know the same",
            |case| {
                container(case, "late", "lxc.start.auto = 1\nlxc.start.order = 7\n");
                container(case, "early", "lxc.start.auto = 1\nlxc.start.order = 2\nlxc.start.delay = 1\n");
                container(
                    case,
                    "first",
                    "lxc.start.auto = 1\nlxc.start.order = 9\nlxc.group = onboot\nlxc.group = web\n",
                );
                container(case, "web", "lxc.start.auto = 1\nlxc.group = web\n");
                container(case, "off", "lxc.group = web\n");
                let begin = Instant::now();
                assert_eq!(told(case, &["autostart", "run"]), "first: started\nearly: started\nlate: started\n");
                assert!(begin.elapsed() >= Duration::from_secs(1), "the delay of one that another follows");
                let words = |text: &str| -> Vec<String> {
                    text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>().join(" ")).collect()
                };
                assert_eq!(
                    words(&told(case, &["ls", "-f"]))[1..],
                    [
                        "early RUNNING 1 - - - true",
                        "first RUNNING 1 onboot, web - - true",
                        "late RUNNING 1 - - - true",
                        "off STOPPED 0 web - - true",
                        "web STOPPED 1 web - - true",
                    ]
                );
                assert_eq!(
                    told(case, &["autostart", "run", "-g", "web,"]).lines().collect::<Vec<_>>(),
                    ["web: started", "first: runs already", "early: runs already", "late: runs already"]
                );
                assert_eq!(
                    words(&told(case, &["autostart", "list", "-a", "-A"])),
                    [
                        "NAME STATE AUTOSTART ORDER DELAY GROUPS UNIT",
                        "off STOPPED 0 0 0 web -",
                        "web RUNNING 1 0 0 web -",
                        "early RUNNING 1 2 1 - -",
                        "late RUNNING 1 7 0 - -",
                        "first RUNNING 1 9 0 onboot, web -",
                    ]
                );
                let out = told(case, &["autostart", "stop", "-t", "0", "-g", "onboot,"]);
                assert_eq!(out, "late: killed\nearly: killed\nfirst: killed\n");
                assert_eq!(told(case, &["ls", "-r"]), "web\n");
                assert_eq!(told(case, &["autostart", "stop", "-t", "0", "-a"]), "web: killed\n");
                case.nothing_left("autostart");
            },
        ),
        once(
            "autostart: a container that does not start, or whose configuration is wrong, does not keep the others",
            |case| {
                container(case, "a", "lxc.start.auto = 1\nlxc.init.cmd = /bin/nonesuch\n");
                container(case, "b", "lxc.start.auto = 1\nlxc.no.such = 1\n");
                container(case, "c", "lxc.start.auto = 1\n");
                let (code, out, text) = spawn(case, &["autostart", "run"]);
                assert_eq!((code, out.as_str()), (Some(71), "c: started\n"), "{text}");
                assert!(text.contains("spawn: a was not started: ") && text.contains("/bin/nonesuch"), "{text}");
                assert!(text.contains(&format!("spawn: b is left out: {DATA}/b/config:4: lxc.no.such")), "{text}");
                let (code, out, _) = spawn(case, &["autostart", "stop", "-t", "0"]);
                assert_eq!((code, out.as_str()), (Some(71), "c: killed\n"));
                // Another directory, as for LXC's programs.
                fs::rename(format!("{DATA}/c"), "/home/alice/c").expect("rename");
                fs::create_dir("/home/alice/lxc").expect("mkdir");
                fs::rename("/home/alice/c", "/home/alice/lxc/d").expect("rename");
                assert_eq!(told(case, &["autostart", "run", "-P", "/home/alice/lxc"]), "d: started\n");
                assert!(told(case, &["ls", "-f"]).contains("d    RUNNING 1 "), "the configuration of the start");
                told(case, &["autostart", "stop", "-t", "0", "-P", "/home/alice/lxc"]);
                case.nothing_left("autostart");
            },
        ),
        once("autostart enable writes units that systemd understands, and disable removes them", |case| {
            container(case, "web-1", "");
            container(case, "c7", "");
            let out = told(case, &["autostart", "enable", "web-1", "c7"]);
            let unit = format!("{UNITS}/spawn@web\\x2d1.service");
            assert_eq!(
                out.lines().collect::<Vec<_>>()[..5],
                [
                    format!("written: {unit}").as_str(),
                    &format!("written: {UNITS}/spawn@c7.service"),
                    "next:",
                    "  systemctl --user daemon-reload",
                    "  systemctl --user enable --now 'spawn@web\\x2d1.service' spawn@c7.service",
                ]
            );
            assert!(out.contains("loginctl enable-linger"), "{out}");
            let text = fs::read_to_string(&unit).expect("the unit");
            assert!(
                text.contains("\nExecStart=/run/bin/spawn run --detach web-1\n") && text.contains("\nDelegate=yes\n"),
                "{text}"
            );
            assert!(told(case, &["autostart", "list", "-a", "-A"]).contains("spawn@web\\x2d1.service"));
            // Words that systemd would take apart.
            let odd = "/home/alice/a b%h$HOME";
            fs::create_dir(odd).expect("mkdir");
            fs::rename(format!("{DATA}/c7"), format!("{odd}/odd")).expect("rename");
            told(case, &["autostart", "enable", "-P", odd, "odd"]);
            told(case, &["autostart", "enable"]);
            if std::path::Path::new("/usr/bin/systemd-analyze").exists() {
                for name in ["spawn@web\\x2d1.service", "spawn@odd.service", "spawn-autostart.service"] {
                    let outcome = case
                        .call("/usr/bin/systemd-analyze")
                        .args(["--user", "--man=no", "verify", &format!("{UNITS}/{name}")])
                        .run(case.world);
                    assert_eq!(
                        (outcome.code(), outcome.text().matches(name).count()),
                        (Some(0), 0),
                        "{}",
                        outcome.text()
                    );
                }
            }
            let text = fs::read_to_string(format!("{UNITS}/spawn@odd.service")).expect("the unit");
            assert!(text.contains(" --lxcpath \"/home/alice/a b%%h$$HOME\" odd\n"), "{text}");
            let wants = format!("{UNITS}/default.target.wants");
            fs::create_dir(&wants).expect("mkdir");
            own(&wants, ALICE);
            symlink(&unit, format!("{wants}/spawn@web\\x2d1.service")).expect("link");
            told(case, &["autostart", "disable", "web-1", "odd", "c7"]);
            told(case, &["autostart", "disable"]);
            let left: Vec<_> = fs::read_dir(UNITS).expect("units").flatten().map(|entry| entry.file_name()).collect();
            assert_eq!(left, ["default.target.wants"]);
            assert_eq!(fs::read_dir(wants).expect("wants").count(), 0);
            for words in [&["enable", "nobody"][..], &["enable", "host"], &["enable", "../x"], &["disable", "web-1"]] {
                let (code, out, text) = spawn(case, &[&["autostart"], words].concat());
                assert!(
                    code == Some(71) && out.is_empty() && text.matches('\n').count() == 1,
                    "{words:?}: {out}{text}"
                );
            }
        }),
        once(
            "autostart enable writes through nothing that is another's, and over nothing that is not its own",
            |case| {
                container(case, "c", "");
                units();
                let unit = format!("{UNITS}/spawn@c.service");
                let refused = |case: &mut Case<'_>, why: &str| {
                    for action in ["enable", "disable"] {
                        let (code, out, text) = spawn(case, &["autostart", action, "c"]);
                        assert_eq!(
                            (code, out.as_str(), text.matches('\n').count()),
                            (Some(71), "", 1),
                            "{action}: {why}: {text}"
                        );
                        assert!(text.contains(UNITS) || text.contains("/home/alice/.config"), "{why}: {text}");
                    }
                    assert_eq!(fs::read_dir(V).expect("victim").count(), 1, "{why}");
                    assert_eq!(fs::read_to_string(format!("{V}/secret")).expect("secret"), "secret\n", "{why}");
                };
                fs::write(&unit, "[Unit]\n").expect("a unit");
                refused(case, "a unit of the user's own");
                assert_eq!(fs::read_to_string(&unit).expect("the unit"), "[Unit]\n");
                fs::remove_file(&unit).expect("remove");
                symlink(format!("{V}/secret"), &unit).expect("link");
                refused(case, "a link in the unit's place");
                fs::remove_file(&unit).expect("remove");
                // A directory that others may write, one of somebody else's, and links to such.
                case.world.mode(UNITS, 0o777);
                refused(case, "a directory for all");
                case.world.mode(UNITS, 0o775);
                nix::unistd::chown(UNITS, None, Some(BOB.gid.into())).expect("chown");
                refused(case, "a directory for another group");
                own(UNITS, BOB);
                refused(case, "a directory of bob's");
                fs::remove_dir(UNITS).expect("rmdir");
                symlink(V, UNITS).expect("link");
                refused(case, "a link to a directory for all");
                fs::remove_file(UNITS).expect("remove");
                // One that the user has linked to a place of her own.
                fs::create_dir("/home/alice/dotfiles").expect("mkdir");
                own("/home/alice/dotfiles", ALICE);
                symlink("/home/alice/dotfiles", UNITS).expect("link");
                told(case, &["autostart", "enable", "c"]);
                told(case, &["autostart", "enable", "c"]);
                let names: Vec<_> =
                    fs::read_dir("/home/alice/dotfiles").expect("units").flatten().map(|e| e.file_name()).collect();
                assert_eq!(names, ["spawn@c.service"]);
            },
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}
