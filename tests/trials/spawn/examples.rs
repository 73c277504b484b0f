//! The programs of examples/, which show authors of other runtimes how the helpers are called: each is run as written.

use std::fs;
use std::process::Command;

use tests::{ALICE, Outcome, Trial};

use crate::case::{Case, EV, once, own};
use crate::net;

const HOME: &str = "/home/alice";

const MAP_C: &str = include_str!("../../../examples/map.c");
const FILES: [(&str, &str); 3] = [
    ("start.py", include_str!("../../../examples/start.py")),
    ("card.py", include_str!("../../../examples/card.py")),
    ("nice-stage", include_str!("../../../examples/nice-stage")),
];

/// The examples in alice's home, and her shell there.
fn shell(case: &mut Case<'_>, script: &str) -> Outcome {
    for (name, text) in FILES {
        let path = format!("{HOME}/{name}");
        case.world.write(&path, text);
        case.world.mode(&path, 0o755);
        own(&path, ALICE);
    }
    let call = case.call("/bin/sh").args(["-c", &format!("cd {HOME} && {script}")]);
    call.run(case.world)
}

/// map.c, compiled with every warning an error.
fn compile(case: &Case<'_>) {
    let source = format!("{HOME}/map.c");
    fs::write(&source, MAP_C).expect("map.c");
    let output = Command::new("gcc")
        .args(["-Wall", "-Wextra", "-Werror", "-o", &format!("{HOME}/map"), &source])
        .output()
        .expect("gcc");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    case.world.mode(format!("{HOME}/map"), 0o755);
}

pub fn trials() -> Vec<Trial> {
    [
        once("examples: map.c has the two map tools map a range, and passes on status and refusal", |case| {
            compile(case);
            let outcome =
                shell(case, "./map 100000 65536 sh -c 'id -u; cat /proc/self/uid_map /proc/self/gid_map; exit 7'");
            outcome.assert_code(7, "the command's own");
            let words: Vec<String> = outcome.out().split_whitespace().map(str::to_owned).collect();
            assert_eq!(words, ["0", "0", "100000", "65536", "0", "100000", "65536"]);
            let outcome = shell(case, "./map 99 65536 touch x; echo $?; test ! -e x");
            outcome.assert_code(0, "not granted: the command has not run");
            assert_eq!(outcome.out(), "125\n");
            assert!(outcome.text().contains("newuidmap: "), "{}", outcome.text());
        }),
        once("examples: start.py sees every state, acts on the waiting container and passes on its status", |case| {
            case.world.needs_tool("/usr/bin/python3");
            let outcome = shell(case, &format!("./start.py {EV} sh -c 'echo inside; exit 3'"));
            outcome.assert_code(3, "the command's own");
            assert_eq!(outcome.out(), "inside\n");
            let said: Vec<String> = outcome.text().lines().map(str::to_owned).collect();
            let wanted = ["created", "mapped", "network", "uid_map 0 100000 65536", "running", "exited"];
            assert_eq!(said, wanted.map(|state| format!("start.py: {state}")));
            let outcome = shell(case, "./start.py ./no-such-rootfs true");
            outcome.assert_code(125, "no rootfs");
            case.nothing_left("start.py");
        }),
        once("examples: nice-stage is a stage of a pipeline, and fails as the contract says", |case| {
            let outcome = shell(case, &format!("spawn hold {EV} -- cut -d' ' -f19 /proc/self/stat | idmap | ./nice-stage 10 | spawn go"));
            outcome.assert_code(0, "");
            // Field 19 of stat(5) is the nice value.
            assert_eq!((outcome.out().as_str(), outcome.text().as_str()), ("10\n", ""));
            let outcome =
                shell(case, &format!("spawn hold {EV} -- cut -d' ' -f19 /proc/self/stat | idmap | ./nice-stage ten 2>/dev/null | spawn go"));
            outcome.assert_code(125, "the stage failed");
            assert!(outcome.text().contains("nice-stage"), "{}", outcome.text());
            let outcome = shell(case, "echo 'handoff/1 pid=1 start=1 name=x' | ./nice-stage 10");
            outcome.assert_code(71, "another process");
            let outcome = shell(case, "echo 'handoff/1 pid=1 start=1 failed=idmap:77' | ./nice-stage 10");
            outcome.assert_code(75, "passed on untouched");
            assert_eq!(outcome.out(), "handoff/1 pid=1 start=1 failed=idmap:77\n");
            shell(case, "./nice-stage 10 </dev/null").assert_code(65, "no record");
            case.nothing_left("nice-stage");
        }),
        once("examples: card.py gives a namespace of its own a card, and passes on a refusal", |case| {
            case.world.needs_tool("/usr/bin/python3");
            net::furnish(case, "alice veth br0 1\n");
            net::install(case, "lxc-user-nic");
            let outcome = shell(case, "./card.py br0 wan0");
            outcome.assert_code(0, "granted");
            let out = outcome.out();
            assert!(out.starts_with("card.py: wan0 inside is veth1001_") && out.contains("\nwan0@"), "{out}");
            net::no_card_left();
            let outcome = shell(case, "./card.py br1");
            outcome.assert_code(1, "no line grants it");
            net::no_card_left();
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}
