//! What a sweep found and did: its log line and its metrics.

use std::time::Duration;

use uuid::Uuid;

use super::metrics::{self, BY_BOTH, BY_QUEUE, Metric};
use crate::{buildkite::state::State, clock, text::message};

pub(super) const SKIPPED: Metric = Metric::of_function("SweepsSkipped", 1);

/// What waits in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueReport {
    /// Its key.
    pub queue: String,
    /// How many jobs wait there for this stack.
    pub waiting: usize,
    /// Since how many seconds the oldest of them could run. `None` if none waits, or if the queue is paused.
    pub oldest: Option<u64>,
}

/// What a sweep found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// The queues that Buildkite has listed.
    pub queues: Vec<QueueReport>,
    /// The stack's Kubernetes Jobs.
    pub jobs: usize,
    /// Jobs that got a Kubernetes Job.
    pub repaired: usize,
    /// Jobs whose Kubernetes Job was replaced.
    pub replaced: usize,
    /// Agents that got the token that they waited for.
    pub tokens: usize,
    /// Kubernetes Jobs that were deleted, since no agent has to come any more.
    pub cancelled: usize,
    /// Jobs that were finished, since no agent can start.
    pub finished: usize,
    /// Jobs whose build page has a new line about what is in the way.
    pub notified: usize,
    /// Steps that the next sweep must do.
    pub left: usize,
    /// Permissions that the function lacks.
    pub forbidden: Vec<String>,
    /// What else failed.
    pub failures: Vec<String>,
}

impl QueueReport {
    /// None where nothing waits: a metric costs money for each hour with a value.
    fn metrics(&self) -> Vec<Metric> {
        let value = self.waiting as u128;
        let waiting = Metric { name: "JobsWaiting", unit: "Count", value, dimensions: BY_QUEUE };
        let oldest = self.oldest.map(|seconds| Metric {
            name: "OldestJobSeconds",
            unit: "Seconds",
            value: seconds.into(),
            dimensions: BY_BOTH,
        });
        Some(waiting).filter(|waiting| waiting.value > 0).into_iter().chain(oldest).collect()
    }
}

impl Sweep {
    /// Writes the log lines and the metrics.
    pub fn write(&self, function_name: &str) {
        let Self { queues, jobs, repaired, replaced, tokens, cancelled, finished, notified, left, forbidden, failures } =
            self;
        let waiting: usize = queues.iter().map(|queue| queue.waiting).sum();
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    waiting,
                    jobs,
                    repaired,
                    replaced,
                    tokens,
                    cancelled,
                    finished,
                    notified,
                    left,
                    "sweep done"
                )
            };
        }
        let is_idle = repaired + replaced + tokens + cancelled + finished + notified + left == 0;
        if is_idle {
            line!(debug);
        } else {
            line!(info);
        }
        if !forbidden.is_empty() {
            tracing::warn!(error = forbidden.join("; "), "the sweep lacks a permission, and leaves what needs it");
        }
        if !failures.is_empty() {
            tracing::error!(error = failures.join("; "), "sweep failed");
        }
        for (queue, metrics) in self.metrics() {
            metrics::write(&metrics, queue, function_name, clock::wall());
        }
    }

    /// Those of each queue, and those of the sweep.
    pub(super) fn metrics(&self) -> Vec<(Option<&str>, Vec<Metric>)> {
        let ended = if self.forbidden.is_empty() && self.failures.is_empty() { "Sweeps" } else { "SweepsFailed" };
        let counts = [(ended, 1), ("JobsCancelled", self.cancelled), ("JobsFinished", self.finished)];
        let counts = counts.into_iter().filter(|(_, count)| *count > 0);
        let counts = counts.map(|(name, count)| Metric::of_function(name, count as u128));
        let queues = self.queues.iter().map(|queue| (Some(&*queue.queue), queue.metrics()));
        queues.chain([(None, counts.collect())]).collect()
    }

    /// Logs and counts a sweep that came too late, and did nothing.
    pub fn skipped(age: Duration, function_name: &str) {
        tracing::info!(age = age.as_secs(), "sweep skipped: others were due since");
        metrics::write(&[SKIPPED], None, function_name, clock::wall());
    }
}

/// Logs that a job that is over has no Kubernetes Job any more.
pub fn job_cancelled(job: Uuid, state: &State) {
    tracing::info!(%job, %state, "Kubernetes Job deleted: no agent has to come any more");
}

/// Logs that a job is finished at Buildkite.
pub fn job_finished(job: Uuid, detail: &str) {
    tracing::warn!(%job, detail = &*message(detail), "job finished: no agent can start");
}
