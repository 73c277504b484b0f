//! Who may map for which process.

use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::unistd::{Uid, setresuid};
use tests::world::USERS_GID;
use tests::{ALICE, Answer, BOB, Does, Install, Kind, ROOT, Target, Trial, User, World, expected};

/// alice's request while her real gid is `gid`, for a target with the same ids.
fn after_newgrp(world: &mut World, kind: Kind, gid: u32, triples: &str) -> Answer {
    let target = Target::with_gid(ALICE, gid, &[]);
    let call = world.helper(kind).as_is().as_root(move || ALICE.become_with_gid(gid, &[]));
    let call = call.arg(target.pid().to_string()).words(triples);
    world.answer(kind, target, call)
}

fn as_user(world: &mut World, kind: Kind, user: User, target: Target, triples: &str) -> Answer {
    let call = world.helper(kind).user(user).arg(target.pid().to_string()).words(triples);
    world.answer(kind, target, call)
}

/// Puts a script in the place of getent, in this world only. It notes how it was called before it does `what`.
fn fake_getent(world: &World, what: &str) {
    world.remove("/run/seen");
    std::fs::create_dir("/run/seen").expect("mkdir");
    let note = "{ echo \"$*\"; grep ^Uid: /proc/self/status; tr '\\0' '\\n' </proc/$$/environ; } >/run/seen/getent";
    let script = format!("#!/bin/sh\n{note}\n{what}\n");
    if Path::new("/run/getent").exists() {
        // Over the same file: it is bound there already.
        std::fs::write("/run/getent", script).expect("write");
        return;
    }
    world.write("/run/getent", script);
    world.mode("/run/getent", 0o755);
    mount(Some("/run/getent"), "/usr/bin/getent", None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind mount");
}

/// A user without an entry in /etc/passwd.
const CAROL: User = User { name: "carol", uid: 1003, gid: 1103 };

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("another user's target is refused, and so is root's", |world| {
            for kind in Kind::BOTH {
                world.ask_for(kind, Target::new(BOB), "0 100000 10").refused("bob's");
                world.ask_for(kind, Target::new(ROOT), "0 100000 10").refused("root's");
                let own = kind.own(ALICE);
                world.ask_for(kind, Target::new(BOB), &format!("0 {own} 1")).refused("bob's, self map");
            }
        }),
        Trial::new("a range that is granted to bob only is refused", |world| {
            for kind in Kind::BOTH {
                world.ask(kind, "0 300000 10").refused("bob's range");
                world.ask(kind, "0 100000 10 10 300000 1").refused("alice's range and one id of bob's");
            }
        }),
        Trial::new("a target of the caller's uid with another gid is refused", |world| {
            for kind in Kind::BOTH {
                let answer = world.ask_for(kind, Target::with_gid(ALICE, BOB.gid, &[]), "0 100000 10");
                answer.refused_with(world, &["owned by a different user", "st_gid:1102"], "gid of bob");
            }
        }),
        Trial::new("the target's effective ids count", |world| {
            for kind in Kind::BOTH {
                let target = Target::with(|| {
                    ROOT.become_with_gid(ALICE.gid, &[]);
                    let [real, effective] = [ALICE.uid, BOB.uid].map(Uid::from_raw);
                    setresuid(real, effective, real).expect("setresuid");
                    tests::sys::prctl(libc::PR_SET_DUMPABLE, 1).expect("dumpable");
                    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).expect("unshare");
                });
                world.ask_for(kind, target, "0 100000 10").refused("effective uid is bob's");
            }
        }),
        Trial::new("a caller whose gid is not that of his passwd entry is refused", |world| {
            for kind in Kind::BOTH {
                let answer = after_newgrp(world, kind, USERS_GID, "0 100000 10");
                answer.refused_with(
                    world,
                    &["owned by a different user", "gid:1150 pw_gid:1101 st_gid:1150"],
                    "newgrp",
                );
            }
        }),
        Trial::new("GRANT_AUX_GROUP_SUBIDS yes lets another gid of the caller in", |world| {
            for kind in Kind::BOTH {
                for (line, does) in [
                    ("GRANT_AUX_GROUP_SUBIDS yes\n", Does::Grants),
                    ("GRANT_AUX_GROUP_SUBIDS\tyes\n", Does::Grants),
                    ("  GRANT_AUX_GROUP_SUBIDS   yes  \n", Does::Grants),
                    ("GRANT_AUX_GROUP_SUBIDS YES\n", Does::Grants),
                    ("MAIL_DIR /var/mail\n\n# text\nGRANT_AUX_GROUP_SUBIDS yes", Does::Grants),
                    ("GRANT_AUX_GROUP_SUBIDS no\n", Does::Refuses),
                    ("#GRANT_AUX_GROUP_SUBIDS yes\n", Does::Refuses),
                    ("GRANT_AUX_GROUP_SUBIDSX yes\n", Does::Refuses),
                    ("XGRANT_AUX_GROUP_SUBIDS yes\n", Does::Refuses),
                    ("GRANT_AUX_GROUP_SUBIDS\n", Does::Refuses),
                    ("GRANT_AUX_GROUP_SUBIDS yesterday\n", Does::Refuses),
                    ("", Does::Refuses),
                ] {
                    world.write("/etc/login.defs", line);
                    after_newgrp(world, kind, USERS_GID, "0 100000 10").did(does, "0 100000 10", line);
                }
            }
        }),
        Trial::new(
            "GRANT_AUX_GROUP_SUBIDS does not let another user's target or another gid of the target in",
            |world| {
                world.write("/etc/login.defs", "GRANT_AUX_GROUP_SUBIDS yes\n");
                for kind in Kind::BOTH {
                    world.ask_for(kind, Target::new(BOB), "0 100000 10").refused("bob's");
                    world
                        .ask_for(kind, Target::with_gid(ALICE, USERS_GID, &[]), "0 100000 10")
                        .refused("the gids of caller and target differ");
                }
            },
        ),
        Trial::new("without /etc/login.defs the gid rule holds", |world| {
            world.remove("/etc/login.defs");
            for kind in Kind::BOTH {
                world.ask(kind, "0 100000 10").granted("0 100000 10", "primary gid");
                after_newgrp(world, kind, USERS_GID, "0 100000 10").refused("newgrp");
            }
        }),
        Trial::new("root has no exemption", |world| {
            for kind in Kind::BOTH {
                as_user(world, kind, ROOT, Target::new(ALICE), "0 100000 10").refused("alice's process");
                as_user(world, kind, ROOT, Target::new(ROOT), "0 100000 10")
                    .refused("root's own process, no line of root's");
                world.append(kind.file(), "root:500000:10\n");
                as_user(world, kind, ROOT, Target::new(ROOT), "0 500000 10").granted("0 500000 10", "a line of root's");
                as_user(world, kind, ROOT, Target::new(ALICE), "0 500000 10").refused("alice's process, root's range");
            }
        }),
        Trial::new("a caller without a passwd entry is granted by a numeric line", |world| {
            for kind in Kind::BOTH {
                world.append(kind.file(), "1003:400000:10\n");
                let answer = as_user(world, kind, CAROL, Target::new(CAROL), "0 400000 10");
                answer.did(expected("caller without a passwd entry, numeric line"), "0 400000 10", "numeric line");
                as_user(world, kind, CAROL, Target::new(CAROL), "0 400000 11").refused("one too many");
                as_user(world, kind, CAROL, Target::new(BOB), "0 400000 10").refused("bob's process");
            }
        }),
        Trial::new("a caller without a passwd entry and without a numeric line is told so", |world| {
            for kind in Kind::BOTH {
                world.append(kind.file(), "carol:400000:10\n");
                let answer = as_user(world, kind, CAROL, Target::new(CAROL), "0 400000 10");
                answer.refused("no name");
                answer.says(&["Cannot determine your user name."], "no name");
                if world.ours() {
                    answer.outcome.assert_one_line(kind.program(), "no name");
                }
            }
        }),
        Trial::new("every name of the caller's uid counts, and the first line of a name counts", |world| {
            world.append("/etc/passwd", "alias:x:1001:1101::/:/bin/sh\nalice:x:1002:1102::/:/bin/sh\n");
            for kind in Kind::BOTH {
                world.write(kind.file(), "alias:400000:10\nalice:100000:10\n");
                world.ask(kind, "0 400000 10 10 100000 10").granted("0 400000 10 10 100000 10", "both names");
                let answer = as_user(world, kind, BOB, Target::new(BOB), "0 100000 10");
                answer.refused("bob's uid in a later line of alice");
            }
        }),
        Trial::new("a broken line in /etc/passwd costs only itself", |world| {
            let long = format!("{}:x:1:1::/:/", "y".repeat(20_000));
            for broken in [
                "",
                ":x:1001:1101::/:",
                "#c:x:1001:1101",
                "x",
                "alice",
                "alice:x",
                &long,
                "alice:x:100a:1101::/:/",
                "alice:x::1101::/:/",
                "+alice::::::",
                "\u{1}",
                "\u{e9}:x:1:1::/:",
            ] {
                world.write("/etc/passwd", format!("{broken}\nalice:x:1001:1101::/home/alice:/bin/sh\n"));
                for kind in Kind::BOTH {
                    world.ask(kind, "0 100000 10").granted("0 100000 10", broken);
                }
            }
        }),
        Trial::new("without /etc/passwd only numeric lines grant", |world| {
            world.needs_ours("numeric lines without a passwd entry");
            world.remove("/etc/passwd");
            for kind in Kind::BOTH {
                world.ask(kind, "0 100000 10").refused("named line");
                world.write(kind.file(), "1001:100000:10\n");
                world.ask(kind, "0 100000 10").granted("0 100000 10", "numeric line");
            }
        }),
        Trial::new(
            "a caller known to getent alone is granted by name when setuid, and told so with file capabilities",
            |world| {
                world.needs_ours("getent of its own: it loads name service modules");
                for kind in Kind::BOTH {
                    world.append(kind.file(), "carol:400000:10\n");
                    fake_getent(world, "echo carol:x:1003:1103::/:/bin/sh");
                    let answer = as_user(world, kind, CAROL, Target::new(CAROL), "0 400000 10");
                    if world.install == Install::Setuid {
                        answer.granted("0 400000 10", "getent knows carol");
                        let seen = std::fs::read_to_string("/run/seen/getent").expect("it was run");
                        let wanted = "passwd 1003\nUid:\t0\t0\t0\t0\nPATH=";
                        assert!(
                            seen.starts_with(wanted),
                            "it is asked for the uid, as root, in an empty environment: {seen}"
                        );
                        assert_eq!(
                            seen.lines().filter(|line| line.contains('=')).count(),
                            1,
                            "an environment of one variable: {seen}"
                        );
                    } else {
                        answer.refused("no getent with file capabilities");
                        answer.says(&["Cannot determine your user name."], "told so");
                        assert!(!Path::new("/run/seen/getent").exists(), "it was not run");
                    }
                }
            },
        ),
        Trial::new("a getent that fails, lies, hangs, floods or is missing grants nothing and never hangs", |world| {
            world.needs_ours("getent of its own: it loads name service modules");
            for kind in Kind::BOTH {
                world.append(kind.file(), "carol:400000:10\n");
                for script in [
                    "exit 2",
                    "exit 1",
                    "exit 0",
                    "kill -9 $$",
                    "echo alice:x:1001:1101::/:/bin/sh",
                    "echo carol:x:0:0::/:/bin/sh",
                    "echo carol:x:1003",
                    "echo carol",
                    "while :; do echo carol:x:1003:1103::/:/bin/sh xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done",
                ] {
                    fake_getent(world, script);
                    as_user(world, kind, CAROL, Target::new(CAROL), "0 400000 10").refused(script);
                    as_user(world, kind, CAROL, Target::new(CAROL), "0 100000 10").refused(script);
                }
            }
            fake_getent(world, "exec sleep 1000");
            as_user(world, Kind::Uid, CAROL, Target::new(CAROL), "0 400000 10").refused("it hangs");
        }),
        Trial::new("a caller in /etc/passwd starts no getent", |world| {
            world.needs_ours("getent of its own: it loads name service modules");
            fake_getent(world, "exit 2");
            for kind in Kind::BOTH {
                world.ask(kind, "0 100000 10").granted("0 100000 10", "in /etc/passwd");
                world.ask(kind, "0 99999 10").refused("in /etc/passwd");
            }
            assert!(!Path::new("/run/seen/getent").exists(), "it was run");
        }),
        Trial::new("a /proc that hides other users' processes changes nothing for the caller's own", |world| {
            let options = Some("hidepid=2");
            mount(None::<&str>, "/proc", None::<&str>, MsFlags::MS_REMOUNT, options).expect("hidepid=2");
            for kind in Kind::BOTH {
                world.ask(kind, "0 100000 10").granted("0 100000 10", "hidepid=2");
                let answer = world.ask_for(kind, Target::new(BOB), "0 100000 10");
                answer.refused("bob's");
                assert!(!answer.outcome.stderr.is_empty());
            }
        }),
        Trial::new("loginuid is not consulted", |world| {
            if !Path::new("/proc/self/loginuid").exists() {
                world.ignore("needs a kernel with auditing: no /proc/self/loginuid");
            }
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let call = world
                    .helper(kind)
                    .as_root(|| std::fs::write("/proc/self/loginuid", BOB.uid.to_string()).expect("loginuid"));
                let call = call.arg(target.pid().to_string()).words("0 300000 10");
                world.answer(kind, target, call).refused("bob's range");
            }
        }),
        Trial::new(
            "a target of the caller that is in the caller's own user namespace is refused by the kernel and stays as it is",
            |world| {
                for kind in Kind::BOTH {
                    let target = Target::without_user_namespace(ALICE);
                    let before = target.map(kind);
                    let call = world.helper(kind).arg(target.pid().to_string()).words("0 100000 10");
                    let answer = world.answer(kind, target, call);
                    answer.outcome.assert_code(1, "initial user namespace");
                    assert_eq!(answer.target.map(kind), before);
                    if world.ours() {
                        answer.outcome.assert_one_line(kind.program(), "initial user namespace");
                        answer.says(&[&format!("{}_map failed", kind.id()), "user namespace"], "names the cause");
                    }
                }
            },
        ),
    ]
}
