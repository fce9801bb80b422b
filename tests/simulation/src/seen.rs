//! What a run was like, in numbers.

use std::{collections::BTreeMap, time::Duration};

use crate::plan::Server;

/// Counts and times, from the start of the run.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Requests of the function, by their server and the status of their answer. No answer is 0.
    pub answers: BTreeMap<(Server, u16), usize>,
    /// Invocations of the function.
    pub invocations: usize,
    /// Those that began with the start of an environment.
    pub starts: usize,
    /// How many environments were at work at once.
    pub most_environments: usize,
    /// How long all of them worked.
    pub worked: Duration,
    /// Jobs in the cluster.
    pub jobs: usize,
    /// The most of them.
    pub most_jobs: usize,
    /// When each job of Buildkite had its first Kubernetes Job, by its number in the plan.
    pub created: BTreeMap<usize, Duration>,
    /// How long each Kubernetes Job had no pod.
    pub pod_waits: Vec<Duration>,
    /// How many jobs the function finished.
    pub finished: usize,
}
