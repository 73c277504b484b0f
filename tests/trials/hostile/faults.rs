//! A fault in each system call in turn: strace(1), run by root, makes it fail.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use tests::{ALICE, Answer, Call, Kind, Target, Trial, World};

use crate::Request;

const STRACE: &str = "/usr/bin/strace";
const TRACE: &str = "/run/trace";

/// The program under strace, as alice, with `inject` words.
fn traced(world: &mut World, kind: Kind, request: &Request, target: &Target, inject: Option<String>) -> Call {
    let program = world.program(kind.program());
    world.remove(TRACE);
    let mut call = Call::new(STRACE).args(["-o", TRACE, "-u", ALICE.name]);
    if let Some(inject) = inject {
        call = call.args(["-e", &format!("inject={inject}")]);
    }
    call.arg("--").arg(program).arg(target.pid().to_string()).words(&request.triples)
}

/// One system call of an undisturbed run: its name, the how-manieth of this name, and its line.
struct Step {
    name: String,
    occurrence: usize,
    line: String,
}

fn steps(world: &mut World, kind: Kind, request: &Request) -> Vec<Step> {
    let target = Target::new(ALICE);
    let call = traced(world, kind, request, &target, None);
    world.answer(kind, target, call).granted(&request.triples, "under strace");
    assert!(
        !world.ours() || fs::read_to_string(TRACE).expect("the trace").contains("umask("),
        "the entry sequence begins with umask"
    );
    let trace = fs::read_to_string(TRACE).expect("the trace");
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut steps = Vec::new();
    for line in trace.lines() {
        let Some((name, _)) = line.split_once('(') else { continue };
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            || ["execve", "exit_group", "exit"].contains(&name)
        {
            continue;
        }
        let count = counts.entry(name.to_owned()).or_default();
        *count += 1;
        // Loops over capabilities and signals repeat one line with another number: a few of each are enough.
        let shape: String = line.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        let shape = if name == "prctl" || name == "rt_sigaction" {
            shape.split([',', ')']).next().unwrap_or_default().to_owned()
        } else {
            line.to_owned()
        };
        if seen.insert(format!("{shape}{}", if name == "prctl" || name == "rt_sigaction" { 0 } else { *count })) {
            steps.push(Step { name: name.to_owned(), occurrence: *count, line: line.to_owned() });
        }
    }
    assert!(steps.len() > 15, "a whole call was seen");
    steps
}

/// Steps that must not fail silently: hardening that may silently not happen is none.
fn must_refuse(line: &str) -> bool {
    [
        "setresuid(",
        "setresgid(",
        "capset(",
        "setitimer(",
        "PR_SET_NO_NEW_PRIVS",
        "PR_SET_DUMPABLE",
        "RLIMIT_CORE, {",
        "RLIMIT_FSIZE, {",
    ]
    .iter()
    .any(|word| line.contains(word))
}

/// Allocation may fail at any time, and Rust then aborts: before anything is written, or after all of it.
fn allocates(line: &str) -> bool {
    ["mmap(", "munmap(", "brk(", "mremap("].iter().any(|word| line.starts_with(word))
}

fn fault_in_each(world: &mut World, own: bool, error: &str) {
    world.needs_tool(STRACE);
    for kind in Kind::BOTH {
        let request = Request::both(kind).into_iter().find(|request| request.own == own).expect("both");
        // The entry sequence begins with umask; what comes before is the loader and the C library.
        let mut entered = false;
        let mut hardening = 0;
        for step in steps(world, kind, &request) {
            entered |= step.name == "umask";
            let target = Target::new(ALICE);
            let inject = format!("{}:error={error}:when={}", step.name, step.occurrence);
            let call = traced(world, kind, &request, &target, Some(inject));
            let answer: Answer = world.answer(kind, target, call);
            let why = format!("{error} from {} (number {}, {})", step.name, step.occurrence, step.line);
            request.all_or_nothing(&answer, &why);
            if !world.ours() || !entered || allocates(&step.line) {
                continue;
            }
            let code = answer.outcome.code();
            assert!(
                code == Some(0) || code == Some(1),
                "{why}: {:?} {}",
                answer.outcome.signal(),
                answer.outcome.text()
            );
            let text = answer.outcome.text();
            assert!(text.lines().count() <= 1 && !text.contains("panicked"), "{why}: {text}");
            assert!(text.is_empty() || text.starts_with(&format!("{}: ", kind.program())), "{why}: {text}");
            if code == Some(1) && step.name != "write" && step.name != "writev" {
                assert!(!text.is_empty(), "{why}: refused without a word");
            }
            if must_refuse(&step.line) {
                hardening += 1;
                assert_eq!(code, Some(1), "{why}: a step of the entry sequence failed and was passed over");
            }
        }
        assert!(!world.ours() || hardening >= 6, "only {hardening} steps of the entry sequence were recognised");
    }
}

pub fn trials() -> Vec<Trial> {
    let mut all = Vec::new();
    for error in ["EPERM", "EINTR", "ENOMEM"] {
        all.push(Trial::new(
            format!("{error} from each system call in turn leaves a granted range whole or unwritten"),
            move |world| {
                fault_in_each(world, false, error);
            },
        ));
    }
    all.push(Trial::new("EIO from each system call in turn leaves a self map whole or unwritten", |world| {
        fault_in_each(world, true, "EIO")
    }));
    all
}
