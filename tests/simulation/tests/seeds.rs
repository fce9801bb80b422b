//! Small worlds: 200 seeds, those that ever failed since the plans are as they are, and one twice.

use std::time::Duration;

use simulation::{
    plan::{Job, Kind, Plan, Planted, Trouble, What},
    run, search,
};

/// What the simulation found in the function.
const FAILED: [u64; 2] = [
    // A Job whose job was over kept the pod in the place of an evicted one, whose Secret was deleted.
    367, // With job tokens and no event, no sweep found a cluster that had been made again.
    98,
];

#[test]
fn no_seed_has_a_violation() {
    let (tried, mut failures) = search::search(0..200, || true);
    failures.extend(FAILED.iter().flat_map(|seed| search::search(*seed..seed + 1, || true).1));
    assert!(failures.is_empty(), "{}", failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
    assert_eq!(tried, 200);
}

#[test]
fn a_plan_has_one_timeline() {
    let timeline = || run(&Plan::of(2)).timeline;
    let (first, second) = (timeline(), timeline());
    assert!(first.contains("outcome=\"created\""), "the function's log is in it:\n{first}");
    assert!(first == second, "two runs of one seed differ");
}

/// A job that nothing is wrong with outlives an outage that is longer than `PodPendingSeconds`, also if the jobs of other builds, which are
/// in the same trouble, run again before it does.
#[test]
fn no_job_is_finished_while_no_agent_of_any_build_reaches_buildkite() {
    for seed in 0..10 {
        let mut plan = Plan { sweeps: true, ..Plan::of(seed) };
        let job = Job { kind: Kind::Usual, pods: Vec::new(), locked: None, cancelled: None, ..plan.jobs[0].clone() };
        plan.jobs = (0..3).map(|number| Job { number, deliveries: vec![Duration::ZERO], ..job.clone() }).collect();
        let what = What::NoAgents;
        plan.troubles = vec![Trouble { number: 0, at: Duration::ZERO, lasts: Duration::from_mins(50), what }];
        let run = run(&plan);
        assert!(run.violations.is_empty(), "seed {seed}:\n{}\n{}", run.timeline, run.violations.join("\n"));
    }
}

/// The first violation of a plan with that fault, in one of the first seeds that show it.
fn found(planted: Planted) -> String {
    let violations = |seed| run(&Plan { planted: Some(planted), ..Plan::of(seed) }).violations;
    let mut violations = (0..100).filter_map(|seed| violations(seed).into_iter().next());
    violations.next().unwrap_or_else(|| panic!("no seed shows that the function {planted:?}"))
}

#[test]
fn each_check_finds_a_planted_fault() {
    let faults = [
        (Planted::Hurries, "before its Retry-After"),
        (Planted::Dawdles, "outlasts its timeout"),
        (Planted::Leaks, "the agent token is in POST"),
        (Planted::Invents, "is not true: "),
        (Planted::Deletes, "is deleted while its command runs"),
        (Planted::Litters, "left at the end: Job"),
        (Planted::Orphans, "left at the end: Secret"),
        (Planted::Repeats, "runs a second time"),
        (Planted::Despairs, "too early"),
        (Planted::Forgets, "asks again for "),
        (Planted::Clings, "has an old definition"),
        (Planted::Hoards, "without a limit"),
        (Planted::Looks, "requests to Kubernetes, not "),
        (Planted::Prints, "the agent token is in the log"),
        (Planted::Boasts, "is not true: "),
        (Planted::Miscounts, "and counts [0, 0]"),
        (Planted::Overlooks, "is scheduled at the end"),
    ];
    for (planted, expected) in faults {
        let violation = found(planted);
        assert!(violation.contains(expected), "{planted:?}: {violation}");
    }
}
