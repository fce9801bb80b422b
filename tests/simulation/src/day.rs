//! The day of `make scale`: jobs around the clock, and two bursts. Each number that is not the question's has its source here.

use std::{cmp::Reverse, collections::BinaryHeap, f64::consts::TAU, time::Duration};

use fastrand::Rng;

use crate::{
    limits::{Rate, Rates},
    plan::{Job, Kind, Plan},
};

/// A day.
pub const LENGTH: Duration = Duration::from_hours(24);

/// When the bursts begin.
const BURSTS: [Duration; 2] = [Duration::from_hours(3), Duration::from_hours(15)];

/// How long one is.
const BURST: Duration = Duration::from_secs(5);

/// When most of the other jobs come, and how far their rate swings around its mean.
const NOON: f64 = 14.0 * 3_600.0;
const SWING: f64 = 0.8;

/// Half of the jobs run longer, as far as they follow an exponential distribution, and none for longer than half an hour.
const MEDIAN_RUN: f64 = 180.0;
const MAX_RUN: f64 = 1_800.0;

/// EventBridge's delivery in milliseconds: its published p90 is 80.
const DELIVERY: std::ops::Range<u64> = 20..87;

/// `GetParameter`, of all callers of the account and region: <https://docs.aws.amazon.com/general/latest/gr/ssm.html>. How many at once
/// after a pause is assumed: one second of them.
const SSM: Rate = Rate { per_second: 40.0, at_once: 40.0 };

/// Measured by `make load`: a bare client, 32 connections, all of a control plane on two cores. At once are the requests of one user that
/// two API servers run or keep: 20 of 245 shares of 600, and six queues of 50 (kubernetes, `flowcontrol/bootstrap/default.go`).
const API_SERVER: Rate = Rate { per_second: 470.0, at_once: 2.0 * (600.0 * 20.0 / 245.0 + 300.0) };

/// Kubernetes' default of `--kube-api-qps` and `--kube-api-burst`. EKS does not publish its own.
const JOB_CONTROLLER: Rate = Rate { per_second: 20.0, at_once: 30.0 };

/// Lambda's default quota of an account.
const ENVIRONMENTS: usize = 1_000;

/// Whether a job that comes then belongs to a burst, give or take the few others of those seconds.
pub fn is_in_burst(at: Duration) -> bool {
    BURSTS.iter().any(|begin| (*begin..*begin + BURST).contains(&at))
}

impl Plan {
    /// A day with so many jobs, of which each burst has so many.
    pub fn of_day(seed: u64, jobs: usize, burst: usize) -> Self {
        let mut dice = Rng::with_seed(seed);
        let mut times = Vec::with_capacity(jobs);
        for begin in BURSTS {
            times.extend((0..burst).map(|_| begin + BURST.mul_f64(dice.f64())));
        }
        while times.len() < jobs {
            let at = LENGTH.mul_f64(dice.f64());
            let rate = 1.0 + SWING * (TAU * (at.as_secs_f64() - NOON) / LENGTH.as_secs_f64()).cos();
            if dice.f64() * (1.0 + SWING) < rate {
                times.push(at);
            }
        }
        times.sort_unstable();
        let job = |(number, at)| Job {
            number,
            at,
            kind: Kind::Usual,
            runs: Duration::from_secs_f64((-dice.f64().max(f64::MIN_POSITIVE).log2() * MEDIAN_RUN).min(MAX_RUN)),
            deliveries: vec![Duration::from_millis(dice.u64(DELIVERY))],
            cancelled: None,
            locked: None,
            retries: 0,
            pods: Vec::new(),
        };
        Self {
            seed,
            sweeps: true,
            has_job_tokens: false,
            latency: 2,
            ahead: [Duration::ZERO; 2],
            is_described: false,
            environments: ENVIRONMENTS,
            rates: Rates { ssm: Some(SSM), api_server: Some(API_SERVER), job_controller: Some(JOB_CONTROLLER) },
            jobs: times.into_iter().enumerate().map(job).collect(),
            troubles: Vec::new(),
            // It is exact about ends, and ten seconds late if a pod is deleted.
            step: Duration::from_secs(10),
            is_recorded: false,
            planted: None,
        }
    }
}

/// What agent-stack-k8s was measured to do, and what its documentation says.
pub struct Peer {
    /// Kubernetes Jobs that it makes.
    pub per_second: f64,
    /// `max-in-flight`.
    pub in_flight: usize,
}

/// Until a pod's agent has its job, as the cluster of the simulation takes on average.
const POD_START: Duration = Duration::from_secs(13);

impl Peer {
    /// When each job of a day has its Kubernetes Job. It asks Buildkite once a second.
    pub fn creates(&self, plan: &Plan) -> Vec<Duration> {
        let (mut ends, mut free_at) = (BinaryHeap::new(), Duration::ZERO);
        let create = |job: &Job| {
            let mut at = Duration::from_secs(job.at.as_secs() + 1).max(free_at);
            if ends.len() == self.in_flight {
                at = at.max(ends.pop().map_or(at, |Reverse(end)| end));
            }
            free_at = at + Duration::from_secs_f64(1.0 / self.per_second);
            ends.push(Reverse(at + POD_START + job.runs));
            at
        };
        plan.jobs.iter().map(create).collect()
    }
}
