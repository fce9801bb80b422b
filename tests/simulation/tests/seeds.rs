//! Small worlds: 200 seeds, those that ever failed, and one twice.

use std::sync::Mutex;

use simulation::{plan::Plan, quiet::Quiet, run, search};

/// Standard output is that of the process.
static OUTPUT: Mutex<()> = Mutex::new(());

fn quietly<T>(work: impl FnOnce() -> T) -> T {
    let _alone = OUTPUT.lock();
    let _quiet = Quiet::new();
    work()
}

#[test]
fn no_seed_has_a_violation() {
    let (tried, failures) = quietly(|| search::search(0..200, || true));
    assert!(failures.is_empty(), "{}", failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
    assert_eq!(tried, 200);
}

#[test]
fn a_plan_has_one_timeline() {
    let timeline = || run(&Plan::of(2)).timeline;
    let (first, second) = quietly(|| (timeline(), timeline()));
    assert!(first.contains("outcome=\"created\""), "the function's log is in it:\n{first}");
    assert!(first == second, "two runs of one seed differ");
}
