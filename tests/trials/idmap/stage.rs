//! idmap: plan, write, and as a stage of a container start.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixListener;

use tests::{ALICE, BOB, Call, Kind, Outcome, Target, Trial, World, sys};

const PATH: &str = "/run/bin";

fn idmap(world: &mut World, args: &str) -> Call {
    let _ = (world.program("newuidmap"), world.program("newgidmap"));
    let program = world.program("idmap");
    Call::new(program).user(ALICE).env("PATH", PATH).words(args)
}

#[track_caller]
fn plans(world: &mut World, args: &str, wanted: &str) {
    let outcome = idmap(world, args).run(world);
    outcome.assert_code(0, args);
    assert_eq!((outcome.out().as_str(), outcome.text().as_str()), (wanted, ""), "idmap {args}");
}

#[track_caller]
fn fails(world: &mut World, args: &str, code: i32) -> Outcome {
    let outcome = idmap(world, args).run(world);
    outcome.assert_code(code, args);
    assert_eq!(outcome.out(), "", "idmap {args}");
    assert!(outcome.text().starts_with("idmap: "), "{}", outcome.text());
    outcome
}

/// Field 22 of /proc/PID/stat.
fn start_time(target: &Target) -> u64 {
    let stat = fs::read(format!("/proc/{}/stat", target.pid())).expect("stat");
    helper::handoff::start_time(&stat).expect("field 22")
}

/// A holder that takes one connection, writes down what it hears and gives `answer`.
struct Holder {
    process: nix::unistd::Pid,
}

const CONTROL: &str = "/home/alice/run/control";
const HEARD: &str = "/home/alice/run/heard";

impl Holder {
    fn new(world: &World, answer: &'static str) -> Self {
        world.remove("/home/alice/run");
        fs::create_dir("/home/alice/run").expect("mkdir");
        world.mode("/home/alice/run", 0o700);
        chown("/home/alice/run", Some(ALICE.uid), Some(ALICE.gid)).expect("chown");
        let (read, write) = sys::pipe().expect("pipe");
        let process = sys::fork(move || {
            ALICE.become_user();
            let listener = UnixListener::bind(CONTROL).expect("bind");
            nix::unistd::write(&write, b"r").expect("ready");
            let (stream, _) = listener.accept().expect("accept");
            let mut lines = BufReader::new(stream.try_clone().expect("dup"));
            let mut line = String::new();
            lines.read_line(&mut line).expect("a line");
            fs::write(HEARD, &line).expect("heard");
            let mut stream = stream;
            let _ = stream.write_all(answer.as_bytes());
            0
        })
        .expect("fork");
        assert_eq!(nix::unistd::read(&read, &mut [0]), Ok(1), "the holder listens");
        Self { process }
    }

    fn heard(&self) -> String {
        fs::read_to_string(HEARD).unwrap_or_default()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(self.process, nix::sys::signal::Signal::SIGKILL);
        let _ = sys::wait(self.process, 0);
    }
}

/// Runs idmap as a stage with `record` on its standard input.
fn stage(world: &mut World, args: &str, record: &str) -> Outcome {
    idmap(world, args).stdin(record).run(world)
}

pub fn trials() -> Vec<Trial> {
    let mut all = vec![
        Trial::once("idmap plan: a user's whole allotment, from 0 on, neighbours merged", |world| {
            world.needs_ours("idmap");
            plans(world, "plan", "uid 0 100000 65536\ngid 0 100000 65536\n");
            plans(world, "plan alice", "uid 0 100000 65536\ngid 0 100000 65536\n");
            plans(world, "plan 1001", "uid 0 100000 65536\ngid 0 100000 65536\n");
            plans(world, "plan bob", "uid 0 300000 65536\ngid 0 300000 65536\n");
            world.write("/etc/subuid", "alice:100000:10\n1001:100010:10\nalice:500000:5\n");
            plans(world, "plan", "uid 0 100000 20\nuid 20 500000 5\ngid 0 100000 65536\n");
        }),
        Trial::once("idmap plan: overlapping entries never map an id twice", |world| {
            world.needs_ours("idmap");
            world.write("/etc/subuid", "alice:100000:10\nalice:100005:10\nalice:100002:2\n");
            let outcome = idmap(world, "plan").run(world);
            outcome.assert_code(0, "plan");
            let total: u64 = outcome
                .out()
                .lines()
                .filter_map(|line| line.strip_prefix("uid "))
                .map(|line| line.rsplit(' ').next().and_then(|count| count.parse::<u64>().ok()).expect("count"))
                .sum();
            assert_eq!(total, 15, "{}", outcome.out());
        }),
        Trial::once("idmap plan --json: the same as one JSON object", |world| {
            world.needs_ours("idmap");
            let object = "{\"uids\":[{\"inside\":0,\"outside\":100000,\"count\":65536}],\"gids\":[{\"inside\":0,\"outside\":100000,\"count\":65536}]}\n";
            plans(world, "plan --json", object);
        }),
        Trial::once(
            "idmap plan: nothing granted is 77 with the line that is missing, an unknown user is 67, bad words are 64",
            |world| {
                world.needs_ours("idmap");
                world.write("/etc/subuid", "");
                let outcome = fails(world, "plan", 77);
                assert!(outcome.text().contains("/etc/subuid"), "{}", outcome.text());
                fails(world, "plan nosuch", 67);
                for args in [
                    "plan --map",
                    "plan --map x",
                    "plan --map u:0:1",
                    "plan --map u:0:1:0",
                    "plan --map u:0:4294967295:2",
                    "plan --frob",
                    "frob",
                    "write",
                    "write x",
                    "write 1 2",
                ] {
                    fails(world, args, 64);
                }
            },
        ),
        Trial::once("idmap --map u:0:100000:65536 takes LXC's form", |world| {
            world.needs_ours("idmap");
            plans(world, "plan --map u:0:100000:10 --map g:0:100000:20", "uid 0 100000 10\ngid 0 100000 20\n");
            plans(world, "plan --map b:0:100000:10", "uid 0 100000 10\ngid 0 100000 10\n");
            plans(world, "plan --map self", "uid 0 1001 1\ngid 0 1101 1\n");
        }),
        Trial::new("idmap write: both maps of the caller's process are written through the helpers", |world| {
            world.needs_ours("idmap");
            for (args, uids, gids) in [
                ("write", vec![[0, 100_000, 65_536]], vec![[0, 100_000, 65_536]]),
                ("write --map self", vec![[0, 1001, 1]], vec![[0, 1101, 1]]),
                (
                    "write --map u:0:1001:1 --map u:1:100000:10 --map g:0:100000:5",
                    vec![[0, 1001, 1], [1, 100_000, 10]],
                    vec![[0, 100_000, 5]],
                ),
            ] {
                let target = Target::new(ALICE);
                let call = idmap(world, args).arg(target.pid().to_string());
                call.run(world).assert_silent(args);
                assert_eq!((target.map(Kind::Uid), target.map(Kind::Gid)), (uids, gids), "{args}");
            }
        }),
        Trial::new("idmap write: a refusal of a helper is idmap's own exit code, and its message is shown", |world| {
            world.needs_ours("idmap");
            let target = Target::new(BOB);
            let outcome = idmap(world, "write").arg(target.pid().to_string()).run(world);
            outcome.assert_code(1, "bob's");
            assert!(outcome.text().contains("owned by a different user"), "{}", outcome.text());
            target.assert_untouched("bob's");
            let target = Target::new(ALICE);
            let outcome = idmap(world, "write --map b:0:99999:5").arg(target.pid().to_string()).run(world);
            outcome.assert_code(1, "not granted");
            assert!(outcome.text().contains("not allowed"), "{}", outcome.text());
            target.assert_untouched("not granted");
        }),
        Trial::new("idmap works with the system's newuidmap and newgidmap too", |world| {
            world.needs_ours("idmap");
            world.needs_tool("/usr/bin/newuidmap");
            let program = world.program("idmap");
            fs::create_dir("/run/original").expect("mkdir");
            for kind in Kind::BOTH {
                let path = format!("/run/original/{}", kind.program());
                fs::write(&path, world.bytes(&format!("/usr/bin/{}", kind.program()))).expect("write");
                world.mode(&path, 0o755);
                match world.install {
                    tests::Install::Setuid => world.mode(&path, 0o4755),
                    tests::Install::FileCapabilities => {
                        sys::set_file_capabilities(path.as_ref(), &[kind.capability()]).expect("file capabilities")
                    }
                }
            }
            let target = Target::new(ALICE);
            let call =
                Call::new(program).user(ALICE).env("PATH", "/run/original").arg("write").arg(target.pid().to_string());
            call.run(world).assert_silent("theirs");
            assert_eq!(
                (target.map(Kind::Uid), target.map(Kind::Gid)),
                (vec![[0, 100_000, 65_536]], vec![[0, 100_000, 65_536]])
            );
        }),
        Trial::new(
            "idmap as a stage: the map is written, the holder told, the record passed on with the map added",
            |world| {
                world.needs_ours("idmap");
                let target = Target::new(ALICE);
                let holder = Holder::new(world, "net\n");
                let record = format!(
                    "handoff/1 pid={} start={} name=c7 control={CONTROL} x=a%20b",
                    target.pid(),
                    start_time(&target)
                );
                let outcome = stage(world, "", &format!("{record}\n"));
                outcome.assert_code(0, "stage");
                assert_eq!(outcome.out(), format!("{record} uids=0:100000:65536 gids=0:100000:65536\n"));
                assert_eq!(outcome.text(), "");
                assert_eq!(holder.heard(), "mapped\n");
                assert_eq!(
                    (target.map(Kind::Uid), target.map(Kind::Gid)),
                    (vec![[0, 100_000, 65_536]], vec![[0, 100_000, 65_536]])
                );
            },
        ),
        Trial::new(
            "idmap as a stage: several ranges are separated by commas, and later words are left alone",
            |world| {
                world.needs_ours("idmap");
                let target = Target::new(ALICE);
                let _holder = Holder::new(world, "net\n");
                let record = format!("handoff/1 pid={} start={} control={CONTROL}", target.pid(), start_time(&target));
                let outcome = stage(
                    world,
                    "--map u:0:1001:1 --map u:1:100000:10 --map g:0:100000:5",
                    &format!("{record}\nmore\n"),
                );
                outcome.assert_code(0, "stage");
                assert_eq!(outcome.out(), format!("{record} uids=0:1001:1,1:100000:10 gids=0:100000:5\n"));
            },
        ),
        Trial::new("idmap as a stage: another start time means another process, and nothing is written", |world| {
            world.needs_ours("idmap");
            let target = Target::new(ALICE);
            let record =
                format!("handoff/1 pid={} start={} control={CONTROL}\n", target.pid(), start_time(&target) + 1);
            let outcome = stage(world, "", &record);
            assert_ne!(outcome.code(), Some(0));
            target.assert_untouched("start time");
            assert!(
                outcome.out().trim_end().ends_with(&format!("failed=idmap:{}", outcome.code().expect("a code"))),
                "{}",
                outcome.out()
            );
        }),
        Trial::new("idmap as a stage: a failure is marked in the record and is the exit code", |world| {
            world.needs_ours("idmap");
            let target = Target::new(ALICE);
            let record = format!("handoff/1 pid={} start={} control={CONTROL}", target.pid(), start_time(&target));
            let outcome = stage(world, "--map b:0:99999:1", &format!("{record}\n"));
            outcome.assert_code(1, "not granted");
            assert_eq!(outcome.out(), format!("{record} failed=idmap:1\n"));
            assert!(outcome.text().contains("not allowed"), "{}", outcome.text());
            target.assert_untouched("not granted");
        }),
        Trial::new("idmap as a stage: a holder that answers failed is a failure", |world| {
            world.needs_ours("idmap");
            for answer in ["failed no network namespaces left\n", "", "nonsense\n"] {
                let target = Target::new(ALICE);
                let _holder = Holder::new(world, answer);
                let record = format!("handoff/1 pid={} start={} control={CONTROL}", target.pid(), start_time(&target));
                let outcome = stage(world, "", &format!("{record}\n"));
                let code = outcome.code().expect("a code");
                assert_ne!(code, 0, "{answer:?}");
                assert!(outcome.out().ends_with(&format!(" failed=idmap:{code}\n")), "{answer:?}: {}", outcome.out());
                assert!(outcome.text().starts_with("idmap: "), "{}", outcome.text());
            }
        }),
        Trial::new("idmap as a stage: a record that has failed is passed on untouched with 75", |world| {
            world.needs_ours("idmap");
            let target = Target::new(ALICE);
            let record =
                format!("handoff/1 pid={} start={} failed=usernet:75 y=1\n", target.pid(), start_time(&target));
            let outcome = stage(world, "", &record);
            outcome.assert_code(75, "failed before");
            assert_eq!(outcome.out(), record);
            target.assert_untouched("failed before");
        }),
        Trial::new("idmap as a stage: bob's process in a record is refused by the helpers", |world| {
            world.needs_ours("idmap");
            let target = Target::new(BOB);
            let record = format!("handoff/1 pid={} start={} control={CONTROL}\n", target.pid(), start_time(&target));
            let outcome = stage(world, "", &record);
            assert_ne!(outcome.code(), Some(0));
            target.assert_untouched("bob's");
        }),
    ];
    all.push(Trial::once(
        "idmap as a stage: no record, or one that breaks the rules, is 65 and nothing is passed on",
        |world| {
            world.needs_ours("idmap");
            let long = format!("handoff/1 pid=1 start=1 x={}\n", "a".repeat(4096));
            for record in [
                "",
                "\n",
                "handoff/2 pid=1 start=1\n",
                "handoff/1\n",
                "handoff/1 start=1 pid=1\n",
                "pid=1\n",
                "handoff/1 pid=x start=1\n",
                "handoff/1  pid=1 start=1\n",
                "\u{e4}\n",
                &long,
            ] {
                let outcome = stage(world, "", record);
                outcome.assert_code(65, record);
                assert_eq!(outcome.out(), "", "{record:?}");
                assert!(outcome.text().starts_with("idmap: "), "{record:?}: {}", outcome.text());
            }
        },
    ));
    all.push(Trial::once("idmap: --help and --version exit with 0", |world| {
        world.needs_ours("idmap");
        for option in ["--help", "--version"] {
            let outcome = idmap(world, option).run(world);
            outcome.assert_code(0, option);
            assert!(outcome.out().contains("idmap"), "{}", outcome.out());
        }
    }));
    all
}
