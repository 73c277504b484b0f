//! One trial for each known vulnerability of the originals and of programs like them. SECURITY refers to these names.

use std::ffi::OsString;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;

use tests::{ALICE, BOB, Does, Install, Kind, Target, Trial, expected, sys};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("CVE-2018-7169: a self map of the gid denies setgroups", |world| {
            let answer = world.ask(Kind::Gid, "0 1101 1");
            answer.granted("0 1101 1", "self map");
            assert_eq!(answer.target.setgroups(), "deny");
        }),
        Trial::new("CVE-2016-6252: no count overflows into a grant", |world| {
            for kind in Kind::BOTH {
                let mut counts: Vec<u128> =
                    vec![1 << 32, (1 << 32) + 1, 1 << 63, (1 << 64) - 1, 1 << 64, (1 << 64) + 10, (1 << 32) - 100_000];
                counts.extend([17, 30, 31, 32, 33, 47, 62, 63].map(|bit| (1_u128 << bit) + 65_536));
                for count in counts {
                    world.ask(kind, &format!("0 100000 {count}")).refused(&format!("count {count}"));
                    world.ask(kind, &format!("{count} 100000 4294967295")).refused(&format!("upper {count}"));
                    world.ask(kind, &format!("0 {} 10", count + 100_000)).refused("lower too large");
                }
                world.ask(kind, "0 100000 -1").refused("count -1");
                world.ask(kind, "0 -1 1").refused("lower -1");
                world.ask(kind, "-1 100000 1").refused("upper -1");
            }
        }),
        Trial::new("CVE-2016-6251: a loginuid of bob's does not make alice bob", |world| {
            if !Path::new("/proc/self/loginuid").exists() {
                world.ignore("needs a kernel with auditing: no /proc/self/loginuid");
            }
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let call = world
                    .helper(kind)
                    .as_root(|| fs::write("/proc/self/loginuid", BOB.uid.to_string()).expect("loginuid"));
                let call = call.arg(target.pid().to_string()).words("0 300000 10");
                world.answer(kind, target, call).refused("bob's range");
            }
        }),
        Trial::new("CVE-2016-6251: LOGNAME, USER and utmp do not make alice bob", |world| {
            fs::create_dir_all("/run").expect("run");
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let call = world.helper(kind).env("LOGNAME", "bob").env("USER", "bob").env("SUDO_UID", "1002");
                let call = call.arg(target.pid().to_string()).words("0 300000 10");
                world.answer(kind, target, call).refused("bob's range");
            }
        }),
        Trial::new("CVE-2024-56433: there are no default ranges, so nothing is granted that no line grants", |world| {
            for kind in Kind::BOTH {
                world.write(kind.file(), "");
                for lower in [1, 1000, 1002, 100_000, 165_536, 524_288, 231_072] {
                    world.ask(kind, &format!("0 {lower} 65536")).refused("no line");
                }
            }
        }),
        Trial::new("shadow 9463d57b: an entry of count 0 grants nothing, at 0 least of all", |world| {
            for kind in Kind::BOTH {
                for (line, request) in
                    [("alice:0:0\n", "0 0 1"), ("alice:1:0\n", "0 1 1"), ("alice:100000:0\n", "0 100000 1")]
                {
                    world.write(kind.file(), line);
                    let answer = world.ask(kind, request);
                    if world.ours() || request != "0 0 1" {
                        answer.refused(line);
                    }
                    // 4.13 has the fault: `0:0` is no empty grant there.
                }
            }
        }),
        Trial::new("shadow: counts of -1 and 2^64-1 in the file grant nothing", |world| {
            for kind in Kind::BOTH {
                for count in ["-1", "18446744073709551615", "-4294967295", "0xffffffffffffffff", "4294967296"] {
                    world.write(kind.file(), format!("alice:1:{count}\n"));
                    let answer = world.ask(kind, "0 1 5");
                    if world.ours() {
                        answer.refused(count);
                    }
                    // 4.13 accepts some of them; differences.rs has the rows.
                }
            }
        }),
        Trial::new("shadow 1ecca843, 52c081b0, 59c2dabb: CAP_SYS_ADMIN is not needed", |world| {
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let call = world.helper(kind).as_root(|| sys::keep_in_bounding_set(&[6, 7]).expect("bounding set"));
                let call = call.arg(target.pid().to_string()).words("0 100000 65536");
                let setuid = world.install == Install::Setuid;
                let does = if setuid { expected("setuid, bounding set of SETUID and SETGID") } else { Does::Grants };
                world.answer(kind, target, call).did(does, "0 100000 65536", "SETUID and SETGID only");
            }
        }),
        Trial::new("shadow 91d4ab62: id 0 of the host is mapped when it is granted", |world| {
            for kind in Kind::BOTH {
                world.write(kind.file(), "alice:0:1\n");
                let answer = world.ask(kind, "0 0 1");
                if kind == Kind::Gid || world.install == Install::Setuid {
                    answer.granted("0 0 1", "granted");
                } else {
                    answer.refused("the file has no cap_setfcap");
                }
            }
        }),
        Trial::new("shadow 7ff33fae: a closed descriptor is not taken for descriptor 0", |world| {
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let directory = fs::File::open(format!("/proc/{}", target.pid())).expect("open");
                let call = world.helper(kind).as_user(move || sys::place(directory.as_raw_fd(), 0).expect("dup2"));
                let call = call.words("fd:77 0 100000 1");
                let answer = world.answer(kind, target, call);
                answer.refused("77 is closed");
                if world.ours() {
                    answer.says(&["usage"], "77 is closed");
                }
            }
        }),
        Trial::new("shadow effdb147: extents of every digit width are written exactly", |world| {
            for kind in Kind::BOTH {
                world.write(kind.file(), "alice:1:4294967294\n");
                let mut triples = String::new();
                for (index, width) in (0..130_u32).map(|index| (index, index % 10)) {
                    let id = 10_u64.pow(width) + u64::from(index) * 7;
                    triples.push_str(&format!("{id} {id} 1 "));
                }
                world.ask(kind, &triples).granted(&triples, "130 extents");
                let wide = "4294967285 4294967285 1 4294967286 4294967286 1 4294967287 4294967287 1 4294967288 4294967288 1 4294967289 4294967289 1";
                world.ask(kind, wide).granted(wide, "as wide as can be");
            }
        }),
        Trial::new("CVE-2023-6246: an argv[0] of any length does not reach syslog", |world| {
            for kind in Kind::BOTH {
                for name in ["x".repeat(1_200), "x".repeat(100_000), "%n%s%n%s".to_owned()] {
                    let target = Target::new(ALICE);
                    let words = [name.as_str(), &target.pid().to_string(), "0", "100000", "10"].map(OsString::from);
                    let call = world.helper(kind).argv(words.to_vec());
                    world.answer(kind, target, call).granted("0 100000 10", "long argv[0]");
                    for line in world.syslog() {
                        let line = String::from_utf8_lossy(&line).into_owned();
                        assert!(
                            line.contains(kind.program()) && !line.contains("xxx") && !line.contains("%n"),
                            "{line}"
                        );
                    }
                }
            }
        }),
        Trial::new("CVE-2021-4034: an empty argument vector does not make the environment arguments", |world| {
            for kind in Kind::BOTH {
                let target = Target::new(ALICE);
                let pid = target.pid().to_string();
                let mut call = world.helper(kind).argv(Vec::new());
                for word in [pid.as_str(), "0", "100000", "10"] {
                    call = call.env(word, "");
                }
                world.answer(kind, target, call).refused("argc 0");
            }
        }),
        Trial::new("CVE-2025-5791 and its like: alice's grants are not root's, and a group lends nothing", |world| {
            for kind in Kind::BOTH {
                world.write(kind.file(), "root:100000:65536\nusers:200000:65536\n0:300000:10\n1150:400000:10\n");
                for lower in [100_000, 200_000, 300_000, 400_000] {
                    let target = Target::with_gid(ALICE, ALICE.gid, &[tests::world::USERS_GID]);
                    let call = world
                        .helper(kind)
                        .as_is()
                        .as_root(|| ALICE.become_with_gid(ALICE.gid, &[tests::world::USERS_GID, 0]));
                    let call = call.arg(target.pid().to_string()).words(&format!("0 {lower} 1"));
                    world.answer(kind, target, call).refused("root's or a group's");
                }
            }
        }),
    ]
}
