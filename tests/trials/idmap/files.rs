//! The state of the files that decide: /etc/subuid, /etc/subgid, /etc/nsswitch.conf.

use std::fs;
use std::os::unix::fs::{chown, lchown, symlink};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tests::tracer::{self, Stop};
use tests::{ALICE, Answer, Does, Kind, Target, Trial, World, expected};

const RANGE: &str = "0 100000 10";

fn own(kind: Kind) -> String {
    format!("0 {} 1", kind.own(ALICE))
}

/// A refusal that names the file; what the original says differs.
#[track_caller]
fn refused_naming_file(world: &mut World, kind: Kind, words: &[&str]) {
    let answer: Answer = world.ask(kind, RANGE);
    answer.refused_with(world, &[&[kind.file()], words].concat(), kind.file());
}

pub fn trials() -> Vec<Trial> {
    let mut all = vec![
        Trial::new("a missing file grants nothing, and self mapping works without it", |world| {
            for kind in Kind::BOTH {
                world.remove(kind.file());
                refused_naming_file(world, kind, &[]);
                let triples = own(kind);
                world.ask(kind, &triples).did_self(expected("file missing, self map"), kind, &triples);
            }
        }),
        Trial::new("a symlink that root owns is followed", |world| {
            fs::create_dir("/etc/managed").expect("directory");
            for kind in Kind::BOTH {
                let real = format!("/etc/managed/{}", kind.id());
                fs::rename(kind.file(), &real).expect("rename");
                for link in [real.clone(), format!("managed/{}", kind.id())] {
                    world.remove(kind.file());
                    symlink(&link, kind.file()).expect("symlink");
                    world.ask(kind, RANGE).did(expected("symlink owned by root"), RANGE, &link);
                }
            }
        }),
        Trial::new("a symlink that alice owns is refused", |world| {
            for kind in Kind::BOTH {
                let real = format!("/etc/real-{}", kind.id());
                fs::rename(kind.file(), &real).expect("rename");
                symlink(&real, kind.file()).expect("symlink");
                lchown(kind.file(), Some(ALICE.uid), Some(ALICE.gid)).expect("lchown");
                refused_naming_file(world, kind, &["symbolic link"]);
            }
        }),
        Trial::new("a symlink to a file that alice can write is refused", |world| {
            for kind in Kind::BOTH {
                let hers = format!("/home/alice/{}", kind.id());
                world.write(&hers, "alice:0:4294967295\nalice:100000:65536\n");
                chown(&hers, Some(ALICE.uid), Some(ALICE.gid)).expect("chown");
                world.remove(kind.file());
                symlink(&hers, kind.file()).expect("symlink");
                refused_naming_file(world, kind, &["root"]);
            }
        }),
        Trial::new("a symlink to nothing grants nothing", |world| {
            for kind in Kind::BOTH {
                world.remove(kind.file());
                symlink("/nowhere/at/all", kind.file()).expect("symlink");
                refused_naming_file(world, kind, &[]);
            }
        }),
        Trial::new("symlinks in a circle are refused", |world| {
            for kind in Kind::BOTH {
                world.remove(kind.file());
                symlink(kind.file(), kind.file()).expect("symlink");
                refused_naming_file(world, kind, &[]);
            }
        }),
        Trial::new("a directory is refused with the cause", |world| {
            for kind in Kind::BOTH {
                world.remove(kind.file());
                fs::create_dir(kind.file()).expect("mkdir");
                refused_naming_file(world, kind, &["regular file"]);
            }
        }),
        Trial::new("a FIFO is refused with the cause and nothing hangs", |world| {
            world.needs_ours("protection against a FIFO: it waits for a writer");
            for kind in Kind::BOTH {
                world.remove(kind.file());
                mkfifo(kind.file(), Mode::from_bits_truncate(0o644)).expect("mkfifo");
                refused_naming_file(world, kind, &["regular file"]);
            }
        }),
        Trial::new("a device is refused", |world| {
            for kind in Kind::BOTH {
                world.remove(kind.file());
                symlink("/dev/zero", kind.file()).expect("symlink");
                refused_naming_file(world, kind, &[]);
            }
        }),
        Trial::new(
            "mode 0600 is refused in both installs, and the message says that all must be able to read the file",
            |world| {
                for kind in Kind::BOTH {
                    world.mode(kind.file(), 0o600);
                    let does = match world.install {
                        // 4.13 reads the file as the caller there.
                        tests::Install::FileCapabilities => Does::Refuses,
                        tests::Install::Setuid => expected("mode 0600"),
                    };
                    let answer = world.ask(kind, RANGE);
                    answer.did(does, RANGE, "mode 0600");
                    if world.ours() {
                        answer.refused_with(world, &[kind.file(), "chmod"], "mode 0600");
                    }
                }
            },
        ),
        Trial::new("a file that its group or others can write is refused", |world| {
            for kind in Kind::BOTH {
                for mode in [0o664, 0o646, 0o666] {
                    world.mode(kind.file(), mode);
                    let answer = world.ask(kind, RANGE);
                    answer.did(expected("group or world writable file"), RANGE, "writable");
                    if world.ours() {
                        answer.refused_with(world, &[kind.file(), "writ"], "writable");
                    }
                }
            }
        }),
        Trial::new("a file that root does not own is refused", |world| {
            for kind in Kind::BOTH {
                chown(kind.file(), Some(ALICE.uid), None).expect("chown");
                let answer = world.ask(kind, RANGE);
                answer.did(expected("file not owned by root"), RANGE, "alice's file");
                if world.ours() {
                    answer.refused_with(world, &[kind.file(), "root"], "alice's file");
                }
            }
        }),
        Trial::new("self mapping works whatever the state of the file", |world| {
            world.needs_ours("self mapping with a bad file");
            for kind in Kind::BOTH {
                let triples = own(kind);
                world.mode(kind.file(), 0o666);
                world.ask(kind, &triples).did_self(Does::Grants, kind, &triples);
                world.mode(kind.file(), 0o600);
                world.ask(kind, &triples).did_self(Does::Grants, kind, &triples);
                world.remove(kind.file());
                mkfifo(kind.file(), Mode::from_bits_truncate(0o644)).expect("mkfifo");
                world.ask(kind, &triples).did_self(Does::Grants, kind, &triples);
            }
        }),
        Trial::new("a million lines are read in one pass with less than 4 MiB of memory", |world| {
            let mut text = String::with_capacity(30 << 20);
            for line in 0..1_000_000_u32 {
                use std::fmt::Write;
                writeln!(text, "user{line:07}:{}:65536", 1_000_000 + line).expect("text");
            }
            text.push_str("alice:100000:65536\n");
            for kind in Kind::BOTH {
                world.write(kind.file(), &text);
                let target = Target::new(ALICE);
                let running = world.helper(kind).arg(target.pid().to_string()).words(RANGE).start_traced();
                let pid = running.pid();
                let mut peak = None;
                let status = loop {
                    match tracer::next(pid) {
                        Stop::Exit => peak = Some(peak_kib(pid.as_raw())),
                        Stop::Gone(status) => break status,
                        _ => {}
                    }
                };
                let outcome = running.gone(status, world);
                Answer { kind, outcome, target }.granted(RANGE, "the last of a million lines");
                let peak = peak.expect("seen at its exit");
                assert!(!world.ours() || peak < 4096, "peak memory is {peak} KiB");
            }
        }),
        Trial::new("a file of 20,000 entries of the caller decides in bounded memory", |world| {
            for kind in Kind::BOTH {
                let text: String =
                    (0..20_000).rev().map(|entry| format!("alice:{}:10\n", 100_000 + entry * 10)).collect();
                world.write(kind.file(), text);
                world
                    .ask(kind, "0 100000 200000")
                    .granted("0 100000 200000", "20,000 adjacent entries in reverse order");
                world.ask(kind, "0 100000 200001").refused("one too many");
            }
        }),
    ];
    all.extend(
        [
            ("without nsswitch.conf the files decide", None, true),
            ("`subid: files` means the files", Some("subid: files\n"), true),
            ("`subid:files` means the files", Some("passwd: files\nsubid:files\n"), true),
            ("`SUBID: files` means the files", Some("SUBID:\tfiles\n"), true),
            ("the first word behind `subid:` counts", Some("subid: files sss\n"), true),
            ("a comment names no source", Some("#subid: sss\n# subid: sss\n"), true),
            ("a line that does not begin with `subid:` names no source", Some(" subid: sss\nxsubid: sss\n"), true),
            ("`subid: sss` makes ranges refused", Some("subid: sss\n"), false),
            ("`SubId: sss` makes ranges refused", Some("SubId: sss\n"), false),
            ("the first `subid:` line counts", Some("subid: sss\nsubid: files\n"), false),
            (
                "`subid:` with a path in it makes ranges refused and loads nothing",
                Some("subid: ../../tmp/evil files\n"),
                false,
            ),
        ]
        .into_iter()
        .map(|(name, content, by_files): (_, Option<&str>, bool)| {
            Trial::new(name, move |world| {
                match content {
                    Some(content) => world.write("/etc/nsswitch.conf", content),
                    None => world.remove("/etc/nsswitch.conf"),
                }
                for kind in Kind::BOTH {
                    let does = if by_files { Does::Grants } else { expected("another subid source") };
                    let answer = world.ask(kind, RANGE);
                    if world.ours() || by_files {
                        answer.did(does, RANGE, "range");
                    } else {
                        // The original complains about the missing plugin first.
                        answer.outcome.assert_code(0, "falls back to the files");
                    }
                    if world.ours() && !by_files {
                        answer.refused_with(world, &["nsswitch.conf", "source"], "names the cause");
                        let triples = own(kind);
                        world.ask(kind, &triples).did_self(Does::Grants, kind, &triples);
                    }
                }
            })
        }),
    );
    all
}

fn peak_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("KiB")
}

/// Self mapping by newgidmap denies setgroups, so a grant is not only the map.
trait DidSelf {
    fn did_self(&self, what: Does, kind: Kind, triples: &str);
}

impl DidSelf for Answer {
    #[track_caller]
    fn did_self(&self, what: Does, kind: Kind, triples: &str) {
        self.did(what, triples, "self mapping");
        if what == Does::Grants {
            let wanted = if kind == Kind::Gid { "deny" } else { "allow" };
            assert_eq!(self.target.setgroups(), wanted, "setgroups after self mapping");
        }
    }
}
