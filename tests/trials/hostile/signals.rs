//! Signals: at every system call, at any time, by timer, ignored and blocked.

use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use tests::tracer::{self, Stop};
use tests::{ALICE, Answer, Kind, Target, Trial, World, sys};

use crate::Request;

/// Runs the call to its `step`th system call (entry or exit) that may touch anything, and does `there` to it.
/// `None` when the call ended before.
fn at_step(
    world: &mut World,
    kind: Kind,
    request: &Request,
    step: usize,
    there: impl Fn(nix::unistd::Pid),
) -> Option<Answer> {
    let target = Target::new(ALICE);
    let running = world.helper(kind).arg(target.pid().to_string()).words(&request.triples).start_traced();
    let pid = running.pid();
    let mut seen = 0;
    let mut done = false;
    let mut counts = true;
    let status = loop {
        let stop = tracer::next(pid);
        match stop {
            Stop::Enter(number, _) => counts = !tracer::only_prepares(number),
            Stop::Gone(status) => break status,
            Stop::Exec | Stop::Exit | Stop::Leave(_) => {}
        }
        if matches!(stop, Stop::Enter(..) | Stop::Leave(_)) && counts {
            if seen == step {
                there(pid);
                done = true;
            }
            seen += 1;
        }
    };
    let outcome = running.gone(status, world);
    done.then_some(Answer { kind, outcome, target })
}

fn killed_at_each_step(world: &mut World, own: bool) {
    for kind in Kind::BOTH {
        let request = Request::both(kind).into_iter().find(|request| request.own == own).expect("both");
        let mut written = 0;
        for step in 0..4000 {
            let Some(answer) = at_step(world, kind, &request, step, |pid| kill(pid, Signal::SIGKILL).expect("kill"))
            else {
                assert!(
                    step > 20 && written > 0,
                    "the sweep saw the whole call: {step} steps, {written} after the write"
                );
                break;
            };
            assert_eq!(answer.outcome.signal(), Some(libc::SIGKILL), "step {step}");
            request.all_or_nothing(&answer, &format!("killed at step {step}"));
            written += usize::from(!answer.target.map(kind).is_empty());
        }
    }
}

/// How long a call takes here and now.
fn life(world: &mut World, kind: Kind, request: &Request) -> Duration {
    let begin = Instant::now();
    world.ask(kind, &request.triples).granted(&request.triples, "undisturbed");
    begin.elapsed()
}

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("killed at each system call in turn, a granted range is written whole or not at all", |world| {
            killed_at_each_step(world, false)
        }),
        Trial::new("killed at each system call in turn, a self map is written whole or not at all", |world| {
            killed_at_each_step(world, true)
        }),
        Trial::new("stopped and continued at any time, a call ends as ever", |world| {
            for kind in Kind::BOTH {
                for request in Request::both(kind) {
                    let life = life(world, kind, &request);
                    for part in 0..25 {
                        let target = Target::new(ALICE);
                        let running = world.helper(kind).arg(target.pid().to_string()).words(&request.triples).start();
                        std::thread::sleep(life * part / 20);
                        let _ = kill(running.pid(), Signal::SIGSTOP);
                        request.target_is_sound(kind, &target, "stopped");
                        let _ = kill(running.pid(), Signal::SIGCONT);
                        let outcome = running.finish(world);
                        Answer { kind, outcome, target }.granted(&request.triples, "continued");
                    }
                }
            }
        }),
        Trial::new("killed at any time, a map is whole or empty", |world| {
            for kind in Kind::BOTH {
                for request in Request::both(kind) {
                    let life = life(world, kind, &request);
                    for part in 0..60 {
                        let target = Target::new(ALICE);
                        let running = world.helper(kind).arg(target.pid().to_string()).words(&request.triples).start();
                        std::thread::sleep(life * part / 40);
                        let _ = kill(running.pid(), Signal::SIGKILL);
                        let outcome = running.finish(world);
                        request.all_or_nothing(&Answer { kind, outcome, target }, "killed at any time");
                    }
                }
            }
        }),
        Trial::new("a timer that survives exec leaves a map whole or empty", |world| {
            for kind in Kind::BOTH {
                for request in Request::both(kind) {
                    let life = i64::try_from(life(world, kind, &request).as_micros()).expect("microseconds");
                    for part in 1..40 {
                        let target = Target::new(ALICE);
                        let after = (life * part / 30).max(1);
                        let call = world.helper(kind).as_user(move || sys::alarm_after(after).expect("setitimer"));
                        let call = call.arg(target.pid().to_string()).words(&request.triples);
                        let answer = world.answer(kind, target, call);
                        request.all_or_nothing(&answer, "timer");
                        let code = answer.outcome.code();
                        let by_timer = answer.outcome.signal() == Some(libc::SIGALRM) || code == Some(101);
                        assert!(code == Some(0) || by_timer, "ended by nothing but the timer: {:?}", answer.outcome);
                    }
                }
            }
        }),
        Trial::new("a timer that has not fired when the program starts never fires in it", |world| {
            world.needs_ours("timers undone");
            for kind in Kind::BOTH {
                let request = &Request::both(kind)[0];
                let target = Target::new(ALICE);
                let call = world.helper(kind).as_user(|| sys::alarm_after(3_600_000_000).expect("setitimer"));
                let running = call.arg(target.pid().to_string()).words(&request.triples).start_traced();
                let pid = running.pid();
                let mut cleared = false;
                let status = loop {
                    match tracer::next(pid) {
                        Stop::Enter(number, arguments) if i64::try_from(number) == Ok(libc::SYS_setitimer) => {
                            cleared |= arguments[0] == libc::ITIMER_REAL as u64;
                        }
                        Stop::Gone(status) => break status,
                        _ => {}
                    }
                };
                let outcome = running.gone(status, world);
                Answer { kind, outcome, target }.granted(&request.triples, "timer of an hour");
                assert!(cleared, "ITIMER_REAL is undone");
            }
        }),
        Trial::new("ignored SIGCHLD, SIGPIPE and every other signal change nothing", |world| {
            for kind in Kind::BOTH {
                for request in Request::both(kind) {
                    let target = Target::new(ALICE);
                    let call = world.helper(kind).as_user(|| {
                        for signal in 1..=64 {
                            let _ = sys::ignore_signal(signal);
                        }
                    });
                    let call = call.arg(target.pid().to_string()).words(&request.triples);
                    world.answer(kind, target, call).granted(&request.triples, "all ignored");
                }
                let target = Target::new(ALICE);
                let call = world.helper(kind).as_user(|| {
                    for signal in 1..=64 {
                        let _ = sys::ignore_signal(signal);
                    }
                });
                let call = call.arg(target.pid().to_string()).words("0 99999 1");
                world.answer(kind, target, call).refused("all ignored");
            }
        }),
        Trial::new("with all signals blocked a call ends as ever", |world| {
            for kind in Kind::BOTH {
                for request in Request::both(kind) {
                    let target = Target::new(ALICE);
                    let call = world.helper(kind).as_user(|| {
                        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).expect("sigprocmask")
                    });
                    let call = call.arg(target.pid().to_string()).words(&request.triples);
                    world.answer(kind, target, call).granted(&request.triples, "all blocked");
                }
            }
        }),
        Trial::new(
            "every signal that alice may send, at each system call from the decision on, leaves a map whole or empty",
            |world| {
                for kind in Kind::BOTH {
                    let request = &Request::both(kind)[1];
                    for signal in [Signal::SIGTERM, Signal::SIGALRM, Signal::SIGXFSZ] {
                        for step in (0..4000).step_by(11) {
                            let Some(answer) =
                                at_step(world, kind, request, step, |pid| kill(pid, signal).expect("kill"))
                            else {
                                break;
                            };
                            request.all_or_nothing(&answer, &format!("{signal} at step {step}"));
                        }
                    }
                }
            },
        ),
    ]
}
