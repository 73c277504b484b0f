//! Network cards: `--net`, the stage `usernet attach`, and what is left of them. In a network namespace of the trial's
//! own, with two bridges.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use tests::world::{BIN, helpers_dir};
use tests::{ALICE, BOB, Trial};

use crate::case::{Case, EV, V, both, once, wait_for};
use crate::handoff::{await_state, created_pid};

const CONFIG: &str = "/etc/lxc/lxc-usernet";
const ADDRESS: &str = "br0,ip=10.0.3.5/24,gw=10.0.3.1";
const THEIRS: &str = "/usr/libexec/lxc";

/// usernet and lxc-user-nic, read before a world hides the directory that they are in.
static PROGRAMS: OnceLock<Vec<Program>> = OnceLock::new();

/// Its name, and its bytes or why they cannot be read.
type Program = (&'static str, Result<Vec<u8>, String>);

/// Two bridges, the first with addresses; usernet, setuid root; and what alice may have.
pub fn furnish(case: &Case<'_>, config: &str) {
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>).expect("sysfs of the new namespace");
    install(case, "usernet");
    fs::create_dir("/etc/lxc").expect("/etc/lxc");
    case.world.write(CONFIG, config);
    for words in [
        "link set lo up",
        "link add br0 address 02:00:5e:00:00:01 type bridge",
        "addr add 10.0.3.1/24 dev br0",
        "addr add fd00:3::1/64 dev br0 nodad",
        "link set br0 up",
        "link add br1 address 02:00:5e:00:00:02 type bridge",
        "link set br1 up",
    ] {
        ip(words);
    }
}

pub fn install(case: &Case<'_>, name: &str) {
    let all = PROGRAMS.get().expect("read at the start");
    let (_, bytes) = all.iter().find(|(known, _)| *known == name).expect("a program");
    let bytes = bytes.as_ref().unwrap_or_else(|error| panic!("{error}: build it first (make build)"));
    let path = Path::new(BIN).join(name);
    fs::write(&path, bytes).expect(name);
    case.world.mode(&path, 0o4755);
}

/// Another program in the place of usernet.
fn fake_usernet(case: &Case<'_>, script: &str) {
    let path = format!("{BIN}/usernet");
    case.world.remove(&path);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("usernet");
    case.world.mode(&path, 0o4755);
}

#[track_caller]
fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split_whitespace()).output().expect("ip");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The host's ends of all cards.
fn veths() -> Vec<String> {
    let text = ip("-o link show type veth");
    text.lines().filter_map(|line| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned())).collect()
}

/// Waits until no card is left: the kernel takes a network namespace apart in its own time.
#[track_caller]
pub fn no_card_left() {
    wait_for("the end of all cards", || veths().is_empty().then_some(()));
}

#[track_caller]
fn assert_has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "\"{word}\" is not in: {text}");
    }
}

pub fn trials() -> Vec<Trial> {
    let read = |name| {
        let path = helpers_dir().join(name);
        (name, fs::read(&path).map_err(|error| format!("{}: {error}", path.display())))
    };
    PROGRAMS.get_or_init(|| vec![read("usernet"), read("lxc-user-nic")]);
    [cards(), refusals(), ends(), stages()].into_iter().flatten().collect()
}

fn cards() -> Vec<Trial> {
    [
        both("a card of --net is there, up, with its name, MAC, address, broadcast address and route", |case| {
            furnish(case, "alice veth br0 1\n");
            let net = "br0,name=wan0,mac=02:00:5e:10:00:01,ip=10.0.3.5/24,gw=10.0.3.1";
            let script = "ls /sys/class/net; stat -c 'owner %u' -L /sys/class/net/wan0; ip link show wan0; ip -4 addr show wan0; ip route; cat /proc/self/uid_map";
            let out = case.out(&["--net", net], script);
            assert_has(
                &out,
                &[
                    "lo\nwan0\nowner 0\n",
                    "UP,LOWER_UP",
                    "link/ether 02:00:5e:10:00:01",
                    "inet 10.0.3.5/24 brd 10.0.3.255 scope global wan0",
                    "default via 10.0.3.1 dev wan0",
                    "100000",
                ],
            );
            no_card_left();
        }),
        once("without --net there is a loopback and nothing else, whatever is granted", |case| {
            furnish(case, "alice veth br0 1\n");
            assert_eq!(case.out(&[], "ls /sys/class/net"), "lo\n");
            assert!(!Path::new("/run/lxc/nics").exists(), "usernet was not asked");
        }),
        once("several cards are made one after the other and named eth0, eth1...", |case| {
            furnish(case, "alice veth br0 2\nalice veth br1 1\n");
            let options = ["--net", "br0", "--net", "br1,ip=10.0.4.5/24", "--net", "br0,name=eth0,ip=10.0.3.5/24"];
            let out = case.out(&options, "ls /sys/class/net; ip -4 -o addr show");
            assert_has(&out, &["eth0\neth1\neth2\nlo\n", "eth0    inet 10.0.3.5/24", "eth2    inet 10.0.4.5/24"]);
            assert!(!out.contains("eth1    inet"), "{out}");
            no_card_left();
        }),
        once("addresses and routes of IPv6 can be used at once", |case| {
            furnish(case, "alice veth br0 1\n");
            let net = "br0,ip=fd00:3::5/64,gw=fd00:3::1,ip=10.0.3.5/24";
            let script = "ip -6 addr show eth0; ip -6 route; ping -6 -c1 -W20 fd00:3::1 >/dev/null && echo reached";
            let out = case.out(&["--net", net], script);
            assert_has(&out, &["inet6 fd00:3::5/64 scope global", "default via fd00:3::1 dev eth0", "reached"]);
            let line = out.lines().find(|line| line.contains("fd00:3::5/64")).expect("the address");
            assert!(!line.contains("tentative"), "{line}");
        }),
        both("two containers on one bridge reach each other and the bridge", |case| {
            furnish(case, "alice veth br0 2\n");
            let script = |own: &str, other: &str| {
                format!(
                    "until ping -c1 -W1 10.0.3.{other} >/dev/null 2>&1; do usleep 50000; done
                     ping -c1 -W20 10.0.3.1 >/dev/null || exit 9
                     touch /mnt/{own}; until [ -e /mnt/{other} ]; do usleep 20000; done; echo {own} reached {other}"
                )
            };
            let bind = format!("{V}:/mnt");
            let start = |own: &str, other: &str| {
                let net = format!("br0,ip=10.0.3.{own}/24");
                let options = ["--timeout", "60", "--net", &net, "--bind", &bind];
                case.run_call(&options, &["/bin/sh", "-c", &script(own, other)]).start()
            };
            let (first, second) = (start("5", "6"), start("6", "5"));
            for (running, said) in [(first, "5 reached 6\n"), (second, "6 reached 5\n")] {
                let outcome = running.finish(case.world);
                outcome.assert_code(0, said);
                assert_eq!((outcome.out().as_str(), outcome.text().as_str()), (said, ""));
            }
            no_card_left();
        }),
        once("a container with a card has its standard input, and its exit status is the command's", |case| {
            furnish(case, "alice veth br0 1\n");
            let call = case.run_call(&["--net", ADDRESS], &["/bin/sh", "-c", "cat; exit 7"]).stdin("typed\n");
            let outcome = call.run(case.world);
            outcome.assert_code(7, "exit 7");
            assert_eq!((outcome.out().as_str(), outcome.text().as_str()), ("typed\n", ""));
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn refusals() -> Vec<Trial> {
    [
        both("at the quota the start ends with usernet's message, and what was made before is gone", |case| {
            furnish(case, "alice veth br0 1\n");
            let host = case.host();
            let words = ["--net", "br0", "--net", "br0", EV, "--", "/bin/id"];
            let said = ["no card eth1 on br0", "usernet: Quota reached", CONFIG];
            let outcome = case.fails(&words, 125, &said);
            assert_eq!(outcome.out(), "", "the command has not run");
            no_card_left();
            host.assert_same("refused");
            for turn in 0..5 {
                let out = case.out(&["--net", ADDRESS], "ip -4 -o addr show eth0");
                assert!(out.contains("10.0.3.5/24"), "turn {turn}, at the quota, at once: {out}");
            }
        }),
        once("a bridge that is missing, or granted to somebody else, or to nobody, ends the start", |case| {
            furnish(case, "alice veth br9 1\nbob veth br1 1\n");
            case.fails(&["--net", "br9", EV, "--", "/bin/id"], 125, &["no card eth0 on br9", "usernet: ", "br9"]);
            case.fails(&["--net", "br1", EV, "--", "/bin/id"], 125, &["no card eth0 on br1", "usernet: ", CONFIG]);
            case.world.remove(CONFIG);
            case.fails(&["--net", "br0", EV, "--", "/bin/id"], 125, &["no card eth0 on br0", "usernet: ", CONFIG]);
            assert_eq!(veths(), Vec::<String>::new());
        }),
        once("a wrong word of --net is named before anything is made", |case| {
            furnish(case, "alice veth br0 9\n");
            let log = case.world.syslog();
            for (wrong, said) in [
                ("", "name of a bridge"),
                ("--pid,ip=10.0.3.5/24", "name of a bridge"),
                ("br0,eth0", "\"eth0\""),
                ("br0,name=lo", "\"lo\""),
                ("br0,mac=01:00:00:00:00:00", "mac=01:00:00:00:00:00"),
                ("br0,ip=10.0.3.5", "prefix"),
                ("br0,ip=10.0.3.5/24,gw=10.0.4.1", "gw=10.0.4.1"),
            ] {
                case.fails(&[&format!("--net={wrong}"), EV, "--", "/bin/id"], 125, &["--net", said]);
            }
            let two = ["--net=br0,name=a", "--net=br0,name=a", EV, "--", "/bin/id"];
            case.fails(&two, 125, &["two cards are called a"]);
            assert_eq!(case.world.syslog().len(), 0, "neither map nor card was made: {log:?}");
        }),
        both("what the kernel refuses about a card is told with the card and the cause", |case| {
            furnish(case, "alice veth br0 1\n");
            let words = ["--net", "br0,ip=10.0.3.5/24,ip=10.0.3.5/24", EV, "--", "/bin/id"];
            case.fails(&words, 125, &["cannot set the address 10.0.3.5/24 on eth0", "has it already"]);
            no_card_left();
        }),
        once("usernet that is missing, or has no privilege, is named with its cure", |case| {
            furnish(case, "alice veth br0 1\n");
            if Path::new(THEIRS).exists() {
                mount(Some("tmpfs"), THEIRS, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("no lxc-user-nic");
            }
            case.world.mode(format!("{BIN}/usernet"), 0o755);
            let words = ["--net", "br0", EV, "--", "/bin/id"];
            case.fails(&words, 125, &["/run/bin/usernet has no privilege", "4755"]);
            case.world.remove(format!("{BIN}/usernet"));
            case.fails(&words, 125, &["usernet is not installed", "lxc-user-nic", "userns-helpers"]);
            assert_eq!(case.out(&[], "echo without a card"), "without a card\n");
        }),
        once("a usernet that fails without a word, lies or hangs ends the start in time and is named", |case| {
            furnish(case, "alice veth br0 1\n");
            let words = ["--net", "br0", EV, "--", "/bin/id"];
            fake_usernet(case, "exit 9");
            case.fails(&words, 125, &["usernet", "status 9"]);
            fake_usernet(case, "exit 0");
            case.fails(&words, 125, &["usernet has not said which card"]);
            fake_usernet(case, "echo eth0:2:veth1001_abcd:10");
            case.fails(&words, 125, &["there is no card eth0 on br0"]);
            fake_usernet(case, "exec sleep 1000");
            case.fails(&["--timeout", "2", "--net", "br0", EV, "--", "/bin/id"], 125, &["usernet", "in time"]);
        }),
        once("usernet gets the card's words, an empty environment and no descriptor but 0 to 2", |case| {
            furnish(case, "alice veth br0 1\n");
            fs::write("/tmp/tool", "").expect("write");
            case.world.mode("/tmp/tool", 0o666);
            fake_usernet(
                case,
                "{ echo \"$*\"; cat /proc/$$/environ | tr '\\0' '\\n'; ls /proc/self/fd; } >>/tmp/tool 2>&1; exit 1",
            );
            let net = "br0,mac=02:00:5E:10:00:0f,ip=10.0.3.5/24";
            let options = ["--name", "c7", "--net", net];
            let call = case.run_call(&options, &["/bin/id"]).env("SECRET", "hunter2").opens(9, "/etc", 0);
            call.run(case.world).assert_code(125, "the fake");
            let found = fs::read_to_string("/tmp/tool").expect("tool");
            let first = found.lines().next().unwrap_or_default();
            assert!(first.starts_with("attach br0 --name eth0 --pid "), "{found}");
            assert!(first.ends_with(" --container c7 --mac 02:00:5e:10:00:0f"), "{found}");
            assert!(!found.contains("SECRET") && !found.contains("PATH="), "{found}");
            // 3 is the directory that ls reads; a shell may keep its script as 10.
            let numbers: Vec<&str> = found.lines().skip(1).filter(|line| line.parse::<u32>().is_ok()).collect();
            assert!(numbers.iter().all(|n| ["0", "1", "2", "3", "10"].contains(n)) && numbers.len() >= 4, "{found}");
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn ends() -> Vec<Trial> {
    [
        both(
            "the card is gone when the container ends, when spawn is killed, and when the command is missing",
            |case| {
                furnish(case, "alice veth br0 1\n");
                let running = case.run_call(&["--net", ADDRESS], &["/bin/sleep", "1000"]).start();
                wait_for("the card", || (veths().len() == 1).then_some(()));
                wait_for("the command", || {
                    let text = fs::read_to_string("/run/lxc/nics").unwrap_or_default();
                    (text.lines().count() == 1).then_some(())
                });
                kill(running.pid(), Signal::SIGKILL).expect("SIGKILL");
                let _ = running.finish(case.world);
                no_card_left();
                case.nothing_left_of_killed("SIGKILL of spawn");
                case.sh(&["--net", ADDRESS], "exit 3").assert_code(3, "exit 3");
                no_card_left();
                case.fails(&["--net", ADDRESS, EV, "--", "/bin/nothing"], 127, &["/bin/nothing"]);
                no_card_left();
            },
        ),
        once("SIGKILL of spawn at any of 40 moments leaves no card, and no card that is not counted", |case| {
            furnish(case, "alice veth br0 1\n");
            let begin = Instant::now();
            case.sh(&["--net", ADDRESS], "exit 0").assert_code(0, "a start");
            let whole = u32::try_from(begin.elapsed().as_micros()).expect("a time");
            let mut made = 0;
            for turn in 0..40 {
                no_card_left();
                let call = case.run_call(&["--timeout", "60", "--net", ADDRESS], &["/bin/sleep", "1000"]);
                let running = call.start();
                std::thread::sleep(Duration::from_micros(u64::from(whole / 25 * turn)));
                kill(running.pid(), Signal::SIGKILL).expect("SIGKILL");
                made += i32::from(!veths().is_empty());
                let _ = running.finish(case.world);
                case.nothing_left_of_killed("SIGKILL of spawn");
            }
            no_card_left();
            assert!(made > 0 && made < 40, "some after the card was made and some before: {made}");
            assert!(case.out(&["--net", ADDRESS], "ip -4 -o addr show eth0").contains("10.0.3.5/24"));
        }),
        once("while it waits, a container's network namespace is open to its own user and to no other", |case| {
            furnish(case, "alice veth br0 1\nbob veth br0 1\n");
            let (read, write) = tests::sys::pipe().expect("pipe");
            let (go, hold) = tests::sys::pipe().expect("pipe");
            let options = ["--info-fd", "10", "--hold-fd", "11"];
            let running = case.run_call(&options, &["/bin/true"]).fd(10, write).fd(11, go).start();
            let pid = created_pid(&read).to_string();
            await_state(&read, "network");
            for (user, may) in [(ALICE, true), (BOB, false)] {
                let look = case.call_as(user, "/bin/readlink").arg(format!("/proc/{pid}/ns/net")).run(case.world);
                assert_eq!(look.code() == Some(0), may, "{}: {}{}", user.name, look.out(), look.text());
                let words = ["attach", "br0", "--pid", &pid, "--check"];
                let attach = case.call_as(user, "/run/bin/usernet").args(words).run(case.world);
                assert_eq!(attach.code() == Some(0), may, "{}: {}", user.name, attach.text());
            }
            drop(hold);
            running.finish(case.world).assert_code(125, "given up");
        }),
        once("--info-fd tells which cards there are, and giving up on --hold-fd takes them away", |case| {
            furnish(case, "alice veth br0 2\n");
            let (read, write) = tests::sys::pipe().expect("pipe");
            let (go, hold) = tests::sys::pipe().expect("pipe");
            let options = ["--net", ADDRESS, "--net", "br0,name=x", "--info-fd", "10", "--hold-fd", "11"];
            let running = case.run_call(&options, &["/bin/id"]).fd(10, write).fd(11, go).start();
            let pid = created_pid(&read);
            let state = await_state(&read, "network");
            let ends = veths();
            assert_eq!(ends.len(), 2, "{ends:?}");
            assert_has(&state, &["\"nics\":[\"eth0:", "\"x:"]);
            for end in &ends {
                assert!(end.starts_with("veth1001_") && state.contains(&format!(":{end}:")), "{end}: {state}");
            }
            let net = fs::read_link(format!("/proc/{pid}/ns/net")).expect("ns/net");
            assert_ne!(net, fs::read_link("/proc/self/ns/net").expect("ns/net"));
            drop(hold);
            running.finish(case.world).assert_code(125, "given up");
            no_card_left();
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn stages() -> Vec<Trial> {
    [
        both("in the pipeline usernet attach makes the card, and hold's --net says how it is set up", |case| {
            furnish(case, "alice veth br0 1\n");
            let show = "ip -4 -o addr show eth0; ip route; ping -c1 -W20 10.0.3.1 >/dev/null && echo reached";
            let line = format!(
                "spawn hold --net {ADDRESS},mac=02:00:5e:10:00:02 {EV} -- /bin/sh -c '{show}; ip link show eth0' | idmap | usernet attach br0 | spawn go"
            );
            let outcome = case.pipeline(&line);
            outcome.assert_code(0, &line);
            assert_eq!(outcome.text(), "");
            let said = ["10.0.3.5/24", "default via 10.0.3.1 dev eth0", "reached", "02:00:5e:10:00:02"];
            assert_has(&outcome.out(), &said);
            no_card_left();
        }),
        once("a pipeline whose stage usernet attach was left out, or was refused, says so and runs nothing", |case| {
            furnish(case, "bob veth br0 1\n");
            let line = |stage: &str| format!("spawn hold --net {ADDRESS} {EV} -- /bin/id | idmap {stage} | spawn go");
            let outcome = case.pipeline(&line(""));
            case.failed(&outcome, 125, &["there is no card eth0 on br0", "usernet attach"], "left out");
            assert_eq!(outcome.out(), "");
            let outcome = case.pipeline(&line("| usernet attach br0"));
            outcome.assert_code(125, "refused");
            assert_has(&outcome.text(), &["usernet: ", CONFIG, "spawn: usernet failed with status 77"]);
            assert_eq!(outcome.out(), "");
            case.nothing_left("refused");
        }),
        once("lxc-user-nic makes the card where there is no usernet", |case| {
            furnish(case, "alice veth br0 1\n");
            case.world.remove(format!("{BIN}/usernet"));
            install(case, "lxc-user-nic");
            let net = format!("{ADDRESS},mac=02:00:5e:10:00:03");
            let out = case.out(&["--net", &net], "ip -4 -o addr show eth0; ip link show eth0");
            assert_has(&out, &["10.0.3.5/24", "02:00:5e:10:00:03", "LOWER_UP"]);
            no_card_left();
            let words = ["--net", "br0", "--net", "br0", EV, "--", "/bin/id"];
            case.fails(&words, 125, &["no card eth1 on br0", "lxc-user-nic", "Quota reached"]);
        }),
        once("LXC's own lxc-user-nic makes the card where there is neither", |case| {
            case.world.needs_tool(&format!("{THEIRS}/lxc-user-nic"));
            furnish(case, "alice veth br0 1\n");
            case.world.remove(format!("{BIN}/usernet"));
            let out = case.out(&["--net", ADDRESS], "ip -4 -o addr show eth0; ip link show eth0");
            assert_has(&out, &["10.0.3.5/24", "LOWER_UP"]);
            no_card_left();
            let words = ["--net", "br1", EV, "--", "/bin/id"];
            case.fails(&words, 125, &["no card eth0 on br1", "lxc-user-nic: "]);
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}
