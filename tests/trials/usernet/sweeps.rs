//! Killed after each of its system calls in turn, and each of them failing in turn.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::signal::{Signal, kill};
use tests::tracer::{self, Stop};
use tests::{ALICE, Call, Trial, World};

use crate::{assert_exact, create, fields, furnish, helper, listed, target, usernet, veths};

const STRACE: &str = "/usr/bin/strace";
const TRACE: &str = "/run/trace";

/// What every disturbed call has to leave: never more NICs than lines, and exactness after the next call.
fn check(world: &mut World, quota: usize, why: &str) {
    let (there, listed) = (veths(), listed());
    assert!(there.iter().all(|nic| listed.contains(nic)), "{why}: uncounted: {there:?}, listed {listed:?}");
    assert!(there.len() <= quota, "{why}: {there:?}");
    usernet(ALICE).words("prune").run(world).assert_code(0, why);
    assert_exact(why);
}

fn clear(world: &mut World, why: &str) {
    for nic in veths() {
        usernet(ALICE).words("detach").arg(&nic).run(world).assert_silent(why);
    }
    crate::assert_nothing(why);
}

fn killed(world: &mut World, config: &str) {
    furnish(world, config);
    world.needs_ours("promise about it");
    let target = target(ALICE);
    // A dead line, so that the ledger is rewritten too.
    let mut with_link = 0;
    for step in 0.. {
        fs::create_dir_all("/run/lxc").expect("mkdir");
        world.write(crate::LEDGER, "alice veth br0 veth1001_dead\n");
        world.mode(crate::LEDGER, 0o600);
        let call = create(&target, "").start_traced();
        let pid = call.pid();
        let mut at = 0;
        let status = loop {
            match tracer::next(pid) {
                Stop::Gone(status) => break status,
                Stop::Leave(_) if at == step => {
                    kill(pid, Signal::SIGKILL).expect("kill");
                    at += 1;
                }
                Stop::Leave(_) => at += 1,
                _ => {}
            }
        };
        let outcome = call.gone(status, world);
        let why = format!("killed after system call {step}");
        if outcome.signal() != Some(libc::SIGKILL) {
            assert!(step > 60 && with_link > 5, "the sweep saw the whole call: {step} steps, {with_link} with a link");
            break;
        }
        with_link += usize::from(!veths().is_empty());
        check(world, 1, &why);
        clear(world, &why);
    }
}

fn failed(world: &mut World, error: &str, undo: bool) {
    furnish(world, "alice veth br0 1\n");
    world.needs_ours("promise about it");
    world.needs_tool(STRACE);
    let target = target(ALICE);
    let program = std::path::Path::new(tests::world::BIN).join("lxc-user-nic");
    let run = |world: &mut World, inject: Option<String>| {
        world.remove(TRACE);
        let mut call = Call::new(STRACE).args(["-o", TRACE, "-u", ALICE.name]);
        if let Some(inject) = inject {
            call = call.args(["-e", &format!("inject={inject}")]);
        }
        let call =
            call.arg("--").arg(&program).words("create /dev/null c1").arg(target.pid().to_string()).words("veth br0");
        if undo { call.stdio(1, tests::Fd::Broken) } else { call }.run(world)
    };
    let outcome = run(world, None);
    if !undo {
        fields(&outcome);
    }
    let trace = fs::read_to_string(TRACE).expect("trace");
    clear(world, "undisturbed");
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut entered = false;
    let (mut disturbed, mut refused) = (0, 0);
    for line in trace.lines() {
        let Some((name, _)) = line.split_once('(') else { continue };
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            continue;
        }
        let occurrence = counts.entry(name).or_default();
        *occurrence += 1;
        entered |= name == "umask";
        // What comes before the entry sequence is the C library's; allocation that fails aborts.
        if !entered || ["exit_group", "mmap", "munmap", "brk", "mremap", "rt_sigprocmask"].contains(&name) {
            continue;
        }
        let outcome = run(world, Some(format!("{name}:error={error}:when={occurrence}")));
        let why = format!("{error} from {name} number {occurrence} ({line})");
        assert!(matches!(outcome.code(), Some(0 | 1)), "{why}: {:?} {}", outcome.signal(), outcome.text());
        disturbed += 1;
        refused += usize::from(outcome.code() == Some(1));
        if outcome.code() == Some(1) && !undo {
            assert!(
                outcome.text().starts_with("lxc-user-nic: ") || outcome.text().starts_with("setresuid: "),
                "{why}: {}",
                outcome.text()
            );
        }
        // A link that is left is one that was reported, or one that is still charged.
        check(world, 1, &why);
        if outcome.code() == Some(1) && !outcome.text().contains("give root's ids back") {
            assert_eq!(veths(), Vec::<String>::new(), "{why}: a stray link");
        }
        clear(world, &why);
    }
    assert!(disturbed > 60 && refused > 20, "{disturbed} disturbed, {refused} refused");
}

pub fn trials() -> Vec<Trial> {
    let mut all = vec![
        Trial::once("killed after each system call in turn, a call for a user's pot leaves an exact ledger", |world| {
            killed(world, "alice veth br0 1\n");
        }),
        Trial::once(
            "killed after each system call in turn, a call with port options leaves an exact ledger",
            |world| {
                killed(world, "alice veth br0 1 isolated mac=stable\n");
            },
        ),
        Trial::once("killed at any time, never more NICs than the quota are alive", |world| {
            furnish(world, "alice veth br0 2\n");
            world.needs_ours("promise about it");
            let target = target(ALICE);
            for delay in (0..3000).step_by(100) {
                let call = create(&target, "").start();
                std::thread::sleep(std::time::Duration::from_micros(delay));
                let _ = kill(call.pid(), Signal::SIGKILL);
                let _ = call.finish(world);
                assert!(veths().len() <= 2, "{delay} microseconds: {:?}", veths());
            }
            let more = helper(ALICE).words("create a b").arg(target.pid().to_string()).words("veth br0").run(world);
            assert_eq!(more.code() == Some(0), veths().len() <= 2 && !more.text().contains("Quota"));
            usernet(ALICE).words("prune").run(world).assert_code(0, "prune");
            assert_exact("killed at any time");
        }),
    ];
    for (error, undo) in [("EPERM", false), ("EINTR", false), ("ENOMEM", false), ("EIO", true)] {
        let what = if undo { "and standard output has no reader" } else { "in turn" };
        all.push(Trial::once(
            format!("{error} from each system call {what} leaves an exact ledger and no stray link"),
            move |world| {
                failed(world, error, undo);
            },
        ));
    }
    all
}
