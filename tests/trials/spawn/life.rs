//! Death at any moment, many starts, and what a start costs.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::{Call, Trial};

use crate::case::{Case, EV, both, once, processes};

/// A plain generator (xorshift): the trials want many moments, not unpredictable ones.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn quiet(call: Call) -> Call {
    call.as_user(|| {
        let null = fs::File::options().read(true).write(true).open("/dev/null").expect("/dev/null");
        for number in [1, 2] {
            tests::sys::place(std::os::fd::AsRawFd::as_raw_fd(&null), number).expect("dup2");
        }
    })
}

fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// The microseconds that one start takes here and now.
fn start_time(case: &mut Case<'_>) -> u64 {
    let mut times: Vec<u128> = (0..5)
        .map(|_| {
            let begin = Instant::now();
            case.sh(&[], "exit 0").assert_code(0, "a start");
            begin.elapsed().as_micros()
        })
        .collect();
    times.sort_unstable();
    u64::try_from(times[2]).expect("a time")
}

pub fn trials() -> Vec<Trial> {
    [
        both("SIGKILL of spawn at any of 100 moments leaves no process, mount or directory", |case| {
            let whole = start_time(case);
            let host = case.host();
            let mut numbers = Numbers(88_172_645_463_325_252);
            let mut left_early = 0;
            for _ in 0..100 {
                let running = quiet(case.run_call(&[], &["/bin/sleep", "1000"])).start();
                std::thread::sleep(Duration::from_micros(numbers.below(whole * 3 / 2)));
                left_early += i32::from(!processes_named("sleep"));
                kill(running.pid(), Signal::SIGKILL).expect("kill");
                assert_eq!(running.finish(case.world).signal(), Some(libc::SIGKILL));
                case.nothing_left_of_killed("SIGKILL of spawn");
            }
            assert!(left_early > 10, "the moments lie in the start: {left_early}");
            host.assert_same("SIGKILL of spawn");
        }),
        both("SIGKILL of a random process of many pipelines leaves nothing once the time limits are over", |case| {
            let host = case.host();
            let mut numbers = Numbers(2_463_534_242);
            for _ in 0..2 {
                let script = format!("spawn hold --timeout 3 {EV} -- /bin/sleep 2 | idmap | spawn go");
                let running: Vec<_> =
                    (0..25).map(|_| quiet(case.call("/bin/sh").args(["-c", &script])).start()).collect();
                let begin = Instant::now();
                let mut killed = 0;
                while killed < 50 && begin.elapsed() < Duration::from_secs(4) {
                    let victims: Vec<i32> =
                        all().into_iter().filter(|pid| ["spawn", "idmap"].contains(&comm(*pid).as_str())).collect();
                    if let Some(victim) =
                        victims.get(usize::try_from(numbers.below(victims.len().max(1) as u64)).expect("small"))
                    {
                        let _ = kill(Pid::from_raw(*victim), Signal::SIGKILL);
                        killed += 1;
                    }
                    std::thread::sleep(Duration::from_millis(numbers.below(15)));
                }
                assert!(killed > 10, "there was something to kill");
                for one in running {
                    let _ = one.finish(case.world);
                }
            }
            // What a killed holder could not remove goes away with the next command.
            let outcome = case.pipeline(&format!("spawn hold {EV} -- /bin/true | idmap | spawn go"));
            outcome.assert_code(0, &outcome.text());
            case.nothing_left_of_killed("a storm");
            host.assert_same("a storm");
        }),
        both("SIGKILL of a map tool ends the start with its name", |case| {
            let tool = "#!/bin/sh\nkill -9 $$\n";
            case.world.remove("/run/bin/newgidmap");
            fs::write("/run/bin/newgidmap", tool).expect("write");
            case.world.mode("/run/bin/newgidmap", 0o4755);
            case.fails(&[EV, "--", "/bin/touch", "/ran"], 125, &["newgidmap"]);
            assert!(!fs::exists(format!("{EV}/ran")).expect("exists"));
        }),
        both("300 starts in a row give the right code each time, and none hangs", |case| {
            for number in 0..300 {
                let (script, code) = match number % 3 {
                    0 => ("exit 0", 0),
                    1 => ("exit 7", 7),
                    _ => ("sh -c 'kill -9 $$'; exit $?", 137),
                };
                if number % 3 == 0 {
                    case.run(&[], &["/bin/true"]).assert_code(0, "true");
                } else {
                    case.sh(&[], script).assert_code(code, script);
                }
            }
            case.nothing_left("many starts");
        }),
        once("twenty starts at once all give the right code", |case| {
            for _ in 0..3 {
                let running: Vec<_> =
                    (0..20).map(|n| case.run_call(&[], &["/bin/sh", "-c", &format!("exit {n}")]).start()).collect();
                for (code, one) in (0..).zip(running) {
                    one.finish(case.world).assert_code(code, "at once");
                }
            }
            case.nothing_left("at once");
        }),
        once("a start makes no more system calls than it did, over all its processes", |case| {
            case.world.needs_tool("/usr/bin/strace");
            case.make_rootfs("/home/alice/own", tests::ALICE.uid);
            // The limits lie a little above what the programs make, with either C library; the map tools' own are about half of the
            // first number.
            for (options, limit) in [(&["run", EV][..], 445), (&["run", "--map", "self", "/home/alice/own"], 300)] {
                let call = Call::new("/usr/bin/strace")
                    .args(["-f", "-c", "-u", "alice", "-o", "/tmp/strace", "/run/bin/spawn"])
                    .args(options)
                    .args(["--", "/bin/true"])
                    .env("PATH", "/run/bin:/usr/bin:/bin")
                    .env("HOME", "/home/alice");
                let outcome = call.run(case.world);
                outcome.assert_code(0, &outcome.text());
                let table = fs::read_to_string("/tmp/strace").expect("strace");
                let total = table.lines().find(|line| line.ends_with(" total")).unwrap_or_else(|| panic!("{table}"));
                let calls: u32 = total
                    .split_ascii_whitespace()
                    .nth(3)
                    .and_then(|word| word.parse().ok())
                    .unwrap_or_else(|| panic!("{table}"));
                assert!((50..=limit).contains(&calls), "{calls} system calls, {limit} expected at most:\n{table}");
            }
        }),
        once("a container that is alone uses no more than one process of spawn's", |case| {
            let running = case.run_call(&[], &["/bin/sleep", "1000"]).start();
            crate::case::wait_for("the command", || processes_named("sleep").then_some(()));
            let names: Vec<String> = all().into_iter().map(comm).collect();
            assert_eq!(names.iter().filter(|name| *name == "spawn").count(), 1, "{names:?}");
            assert_eq!(names.len(), 2, "{names:?}");
            drop(running);
            let _ = processes();
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Every process of the world but this one; none is reaped.
fn all() -> Vec<i32> {
    let own = i32::try_from(std::process::id()).expect("a pid");
    fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .collect()
}

fn processes_named(name: &str) -> bool {
    all().into_iter().any(|pid| comm(pid) == name)
}
