//! The day under several settings, and what half and double of a number do to it.

use std::{num::NonZero, thread};

use crate::{
    agenda::{Time, seconds},
    cluster::{self, Cluster},
    constants::{Constant, Constants, Origin},
    cost::Cost,
    day::{Day, LENGTH},
    function,
    series::percentile,
    stack,
};

/// A setting: what an operator would call it, and the names of the constants that it changes, with their values.
pub type Setting = (&'static str, &'static [(&'static str, f64)]);

/// What to compare up to the Job. The first is the day as it is.
pub const TO_THE_JOB: &[Setting] = &[
    ("as deployed", &[]),
    ("SSM with higher throughput", &[("ssm_rate", 10_000.0)]),
    ("`ReservedConcurrency` 200", &[("concurrency", 200.0)]),
    ("`ReservedConcurrency` 50", &[("concurrency", 50.0)]),
    ("`ReservedConcurrency` 10", &[("concurrency", 10.0)]),
    ("no jitter in Lambda's queue", &[("throttle_share", 1.0)]),
    ("… and `ReservedConcurrency` 50", &[("throttle_share", 1.0), ("concurrency", 50.0)]),
    ("a FlowSchema to `workload-low`", &[("api_shares", 100.0)]),
    ("1,000 writes/s", &[("api_rate", 1_000.0)]),
    ("1,000 writes/s, `ReservedConcurrency` 50", &[("api_rate", 1_000.0), ("concurrency", 50.0)]),
    ("1,000 writes/s, SSM with higher throughput", &[("api_rate", 1_000.0), ("ssm_rate", 10_000.0)]),
    ("`MemorySize` 128", &[("memory", 128.0)]),
    ("`MemorySize` 512", &[("memory", 512.0)]),
];

/// What to compare in the cluster.
pub const IN_THE_CLUSTER: &[Setting] = &[
    ("controllers at 20 requests/s", &[]),
    ("… and `JobTtlSeconds` 60", &[("job_ttl", 60.0)]),
    ("controllers at 100 requests/s", &[("controller_qps", 100.0), ("controller_burst", 150.0)]),
    ("controllers at 500 requests/s", &[("controller_qps", 500.0), ("controller_burst", 1_000.0)]),
    ("… and `JobTtlSeconds` 60", &[("controller_qps", 500.0), ("controller_burst", 1_000.0), ("job_ttl", 60.0)]),
];

/// agent-stack-k8s, with its defaults and with its own settings raised.
pub const STACKS: &[Setting] = &[
    ("agent-stack-k8s as it comes", &[]),
    ("… `max-in-flight` 0", &[("stack_in_flight", 0.0)]),
    (
        "… `max-in-flight` 0, 500 requests/s, 1,000 at once",
        &[("stack_in_flight", 0.0), ("stack_qps", 500.0), ("stack_burst", 1_000.0)],
    ),
];

/// The function's settings in the table of agent-stack-k8s.
pub const BESIDE_THE_STACK: &[&str] = &["as deployed", "`ReservedConcurrency` 50"];

pub fn with(constants: &Constants, (_, changes): &Setting) -> Constants {
    let mut constants = constants.clone();
    for (name, value) in *changes {
        let constant = Constants::ALL.iter().find(|constant| constant.name == *name);
        *(constant.expect("a setting names a constant").field)(&mut constants) = *value;
    }
    constants
}

/// From the schedule of a job to its Job: p50, p90, p99 and the longest.
pub type Times = [Time; 4];

/// Of some jobs. One without a Job counts with the time that it waited until midnight.
pub fn times(day: &Day, created: &[Option<Time>], counts: impl Fn(Time) -> bool) -> Times {
    let jobs = day.arrivals.iter().zip(created).filter(|(at, _)| counts(**at));
    let mut waits: Vec<_> = jobs.map(|(at, made)| made.unwrap_or(LENGTH.max(*at)) - at).collect();
    [0.5, 0.9, 0.99, 1.0].map(|share| percentile(&mut waits, share).unwrap_or_default())
}

pub struct Outcome {
    pub name: &'static str,
    pub constants: Constants,
    pub seen: function::Seen,
    pub all: Times,
    pub burst: Times,
    pub cost: Cost,
}

pub fn named<'a>(outcomes: &'a [Outcome], names: &[&str]) -> Vec<&'a Outcome> {
    names.iter().filter_map(|name| outcomes.iter().find(|outcome| outcome.name == *name)).collect()
}

/// Whether a job that comes then belongs to a burst, give or take the few others of those seconds.
pub fn in_burst(day: &Day, constants: &Constants) -> impl Fn(Time) -> bool {
    let length = seconds(constants.burst_seconds);
    move |at| day.bursts.iter().any(|begin| (*begin..*begin + length).contains(&at))
}

pub fn outcome(name: &'static str, constants: Constants, day: &Day, seed: u64) -> Outcome {
    let model = function::run(&constants, day, seed);
    let all = times(day, &model.created, |_| true);
    let burst = times(day, &model.created, in_burst(day, &constants));
    let cost = Cost::of(&constants, &model);
    Outcome { name, constants, seen: model, all, burst, cost }
}

pub struct Sensitivity {
    pub constant: &'static Constant,
    pub ends: [End; 2],
}

/// The columns of the sensitivity table.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct End {
    /// Time to the Job of the jobs in bursts, median.
    pub p50: Time,
    pub p99: Time,
    pub failed: usize,
    pub pod_p50: Time,
    /// The most that lives in etcd.
    pub gigabytes: f64,
}

pub fn end(constants: &Constants, day: &Day, seed: u64) -> End {
    let outcome = outcome("", constants.clone(), day, seed);
    let mut cluster: cluster::Seen = Cluster::day(constants, day, &outcome.seen.created);
    let [p50, _, p99, _] = outcome.burst;
    End {
        p50,
        p99,
        failed: outcome.seen.failed.len(),
        pod_p50: percentile(&mut cluster.pod_waits, 0.5).unwrap_or_default(),
        gigabytes: cluster.most_gigabytes(constants),
    }
}

/// Each number that is assumed or measured, halved and doubled.
pub fn sensitivity(constants: &Constants, day: &Day, seed: u64) -> Vec<Sensitivity> {
    let asked = |constant: &&'static Constant| {
        matches!(constant.origin, Origin::Assumed(_) | Origin::Measured(_)) && constant.name != "log_bytes"
    };
    let asked: Vec<&'static Constant> = Constants::ALL.iter().filter(asked).collect();
    parallel(&asked, |constant| {
        let ends = [0.5, 2.0].map(|factor| {
            let mut changed = constants.clone();
            *(constant.field)(&mut changed) *= factor;
            end(&changed, day, seed)
        });
        Sensitivity { constant, ends }
    })
}

pub fn stacks(constants: &Constants, day: &Day) -> Vec<(&'static str, stack::Seen)> {
    parallel(STACKS, |setting| (setting.0, stack::run(&with(constants, setting), day)))
}

/// As many at once as there are cores; the answers in the order of the questions.
pub fn parallel<T: Sync, A: Send>(questions: &[T], answer: impl Fn(&T) -> A + Sync) -> Vec<A> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let mut answers = Vec::with_capacity(questions.len());
    for some in questions.chunks(cores) {
        let answer = &answer;
        thread::scope(|scope| {
            let threads: Vec<_> = some.iter().map(|question| scope.spawn(move || answer(question))).collect();
            answers.extend(threads.into_iter().map(|thread| thread.join().expect("an answer does not panic")));
        });
    }
    answers
}
