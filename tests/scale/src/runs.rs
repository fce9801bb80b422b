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

/// Some numbers other than the default, under a name.
pub struct Setting {
    /// What an operator would say.
    pub name: &'static str,
    /// Names of constants, and their values.
    pub changes: &'static [(&'static str, f64)],
}

/// What to compare up to the Job. The first is the day as it is.
pub const TO_THE_JOB: &[Setting] = &[
    Setting { name: "as deployed", changes: &[] },
    Setting { name: "SSM with higher throughput", changes: &[("ssm_rate", 10_000.0)] },
    Setting { name: "`ReservedConcurrency` 200", changes: &[("concurrency", 200.0)] },
    Setting { name: "`ReservedConcurrency` 50", changes: &[("concurrency", 50.0)] },
    Setting { name: "`ReservedConcurrency` 10", changes: &[("concurrency", 10.0)] },
    Setting { name: "no jitter in Lambda's queue", changes: &[("throttle_share", 1.0)] },
    Setting { name: "… and `ReservedConcurrency` 50", changes: &[("throttle_share", 1.0), ("concurrency", 50.0)] },
    Setting { name: "a FlowSchema to `workload-low`", changes: &[("api_shares", 100.0)] },
    Setting { name: "1,000 writes/s", changes: &[("api_rate", 1_000.0)] },
    Setting {
        name: "1,000 writes/s, `ReservedConcurrency` 50",
        changes: &[("api_rate", 1_000.0), ("concurrency", 50.0)],
    },
    Setting {
        name: "1,000 writes/s, SSM with higher throughput",
        changes: &[("api_rate", 1_000.0), ("ssm_rate", 10_000.0)],
    },
    Setting { name: "`MemorySize` 128", changes: &[("memory", 128.0)] },
    Setting { name: "`MemorySize` 512", changes: &[("memory", 512.0)] },
];

/// What to compare in the cluster.
pub const IN_THE_CLUSTER: &[Setting] = &[
    Setting { name: "controllers at 20 requests/s", changes: &[] },
    Setting { name: "… and `JobTtlSeconds` 60", changes: &[("job_ttl", 60.0)] },
    Setting {
        name: "controllers at 100 requests/s",
        changes: &[("controller_qps", 100.0), ("controller_burst", 150.0)],
    },
    Setting {
        name: "controllers at 500 requests/s",
        changes: &[("controller_qps", 500.0), ("controller_burst", 1_000.0)],
    },
    Setting {
        name: "… and `JobTtlSeconds` 60",
        changes: &[("controller_qps", 500.0), ("controller_burst", 1_000.0), ("job_ttl", 60.0)],
    },
];

/// agent-stack-k8s, as it comes and with its own settings raised.
pub const STACKS: &[Setting] = &[
    Setting { name: "agent-stack-k8s as it comes", changes: &[] },
    Setting { name: "… `max-in-flight` 0", changes: &[("stack_in_flight", 0.0)] },
    Setting {
        name: "… `max-in-flight` 0, 500 requests/s, 1,000 at once",
        changes: &[("stack_in_flight", 0.0), ("stack_qps", 500.0), ("stack_burst", 1_000.0)],
    },
];

/// Which of the function's settings stand beside agent-stack-k8s.
pub const BESIDE_THE_STACK: &[&str] = &["as deployed", "`ReservedConcurrency` 50"];

impl Setting {
    /// On top of others.
    pub fn on(&self, constants: &Constants) -> Constants {
        let mut constants = constants.clone();
        for (name, value) in self.changes {
            if let Some(constant) = Constants::ALL.iter().find(|constant| constant.name == *name) {
                *(constant.field)(&mut constants) = *value;
            }
        }
        constants
    }
}

/// From the schedule of a job to its Job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Half of the jobs have theirs sooner.
    pub p50: Time,
    /// Nine of ten.
    pub p90: Time,
    /// All but one in a hundred.
    pub p99: Time,
    /// The last.
    pub most: Time,
}

impl Times {
    /// Of some jobs. One without a Job counts with the time that it waited until midnight.
    pub fn of(day: &Day, created: &[Option<Time>], counts: impl Fn(Time) -> bool) -> Self {
        let jobs = day.arrivals.iter().zip(created).filter(|(at, _)| counts(**at));
        let mut waits: Vec<_> = jobs.map(|(at, made)| made.unwrap_or(LENGTH.max(*at)) - at).collect();
        let mut at = |share| percentile(&mut waits, share).unwrap_or_default();
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), most: at(1.0) }
    }
}

/// What a setting led to.
pub struct Outcome {
    /// Its name.
    pub name: &'static str,
    /// With its changes.
    pub constants: Constants,
    /// Up to the Job.
    pub seen: function::Seen,
    /// Of all jobs, and of those in bursts.
    pub all: Times,
    /// Of the bursts.
    pub burst: Times,
    /// At list prices.
    pub cost: Cost,
}

/// Those of the settings of these names, in the order of the names.
pub fn named<'a>(outcomes: &'a [Outcome], names: &[&str]) -> Vec<&'a Outcome> {
    names.iter().filter_map(|name| outcomes.iter().find(|outcome| outcome.name == *name)).collect()
}

/// Whether a job that comes then belongs to a burst, give or take the few others of those seconds.
pub fn in_burst(day: &Day, constants: &Constants) -> impl Fn(Time) -> bool {
    let length = seconds(constants.burst_seconds);
    move |at| day.bursts.iter().any(|begin| (*begin..*begin + length).contains(&at))
}

/// The day up to the Jobs.
pub fn outcome(name: &'static str, constants: Constants, day: &Day, seed: u64) -> Outcome {
    let model = function::run(&constants, day, seed);
    let all = Times::of(day, &model.created, |_| true);
    let burst = Times::of(day, &model.created, in_burst(day, &constants));
    let cost = Cost::of(&constants, &model);
    Outcome { name, constants, seen: model, all, burst, cost }
}

/// What half and double of a number led to.
pub struct Sensitivity {
    /// Which number.
    pub constant: &'static Constant,
    /// With half of it, and with double.
    pub ends: [End; 2],
}

/// The little that the sensitivity table shows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct End {
    /// Time to the Job of the jobs in bursts.
    pub p50: Time,
    /// The same.
    pub p99: Time,
    /// Events in the failure queue.
    pub failed: usize,
    /// From the Job to its pod.
    pub pod_p50: Time,
    /// The most that lives in etcd.
    pub gigabytes: f64,
}

/// A whole day in a line.
pub fn end(constants: &Constants, day: &Day, seed: u64) -> End {
    let outcome = outcome("", constants.clone(), day, seed);
    let mut cluster: cluster::Seen = Cluster::day(constants, day, &outcome.seen.created);
    End {
        p50: outcome.burst.p50,
        p99: outcome.burst.p99,
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

/// agent-stack-k8s under its settings.
pub fn stacks(constants: &Constants, day: &Day) -> Vec<(&'static str, stack::Seen)> {
    parallel(STACKS, |setting| (setting.name, stack::run(&setting.on(constants), day)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_changes_what_it_names() {
        let constants = Constants::default();
        for setting in TO_THE_JOB.iter().chain(IN_THE_CLUSTER).chain(STACKS) {
            let mut changed = setting.on(&constants);
            for (name, value) in setting.changes {
                let constant = Constants::ALL.iter().find(|constant| constant.name == *name);
                let constant = constant.unwrap_or_else(|| panic!("there is no {name}"));
                assert!(((constant.field)(&mut changed).to_bits()) == value.to_bits(), "{name}");
            }
        }
    }
}
