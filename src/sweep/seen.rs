//! What a sweep has seen of Buildkite and of the cluster.
//!
//! Ages at Buildkite are taken by Buildkite's clock, and those in the cluster by the API server's. The function's own clock is not
//! used.

use std::collections::BTreeMap;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use crate::{
    buildkite::{job::ScheduledJob, rules::AgentQueryRules, state::State},
    kubernetes::{events::Events, jobs::Job, pods::Pod},
    stack::Stack,
};

/// What was asked for. A list that failed, or is not complete, is unknown, and not empty: what needs it does nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Known<T> {
    /// All of it.
    Known(T),
    /// Not, or not all of it.
    #[default]
    Unknown,
}

/// Both sides at one time, and the settings that decide.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// Which jobs and which Jobs are ours, and how long a Job may take.
    pub stack: &'a Stack,
    /// `POD_PENDING_SECONDS`: how long the Jobs of a Buildkite job may fail, or its pod may wait, before it is finished.
    pub pod_pending: SignedDuration,
    /// `SWEEP_FINISHES`: whether jobs are finished; else the build page only gets lines.
    pub finishes: bool,
    /// When this sweep was due. What began within the minute before it is for this sweep to report, and for no other.
    pub due: Option<Timestamp>,
    /// The stack's queues.
    pub queues: Vec<Queue>,
    /// The API server's clock, not later than its lists.
    pub now: Known<Timestamp>,
    /// The stack's Jobs.
    pub jobs: Known<Vec<Job>>,
    /// The stack's pods.
    pub pods: Known<Vec<Pod>>,
    /// Those of the Jobs whose job waits, and of their pods.
    pub events: Known<Events>,
    /// What Buildkite says of the Jobs' jobs. One that is absent is unknown.
    pub states: Known<BTreeMap<Uuid, State>>,
}

/// A queue of the stack.
#[derive(Clone, Debug)]
pub struct Queue {
    /// Its key.
    pub key: String,
    /// What Buildkite says of it.
    pub list: Known<QueueList>,
}

/// What waits in a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueList {
    /// Buildkite's clock, not later than the list.
    pub now: Timestamp,
    /// No job of the queue may start: `dispatch_paused`.
    pub paused: bool,
    /// The first of them, the oldest first.
    pub jobs: Vec<Waiting>,
}

/// A job that waits in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The job.
    pub job: ScheduledJob,
    /// The higher the earlier.
    pub priority: i64,
    /// Since when it waits; may be the time at which its build was made.
    pub scheduled_at: Option<Timestamp>,
    /// When it may start. It is not always given.
    pub runnable_at: Option<Timestamp>,
}

impl<T> Known<T> {
    /// Its value, if it is known.
    pub fn get(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown => None,
        }
    }
}

impl Waiting {
    /// Since when it could run.
    pub fn since(&self) -> Option<Timestamp> {
        self.runnable_at.or(self.scheduled_at)
    }
}

impl QueueList {
    /// The jobs that are for this stack. One without a queue belongs to the queue that it waits in.
    pub fn ours<'a>(&'a self, key: &'a str, stack: &'a Stack) -> impl Iterator<Item = (ScheduledJob, &'a Waiting)> {
        self.jobs.iter().filter_map(move |waiting| {
            let mut job = waiting.job.clone();
            if AgentQueryRules::parse(&job.agent_query_rules).matched(stack).ok()?.is_none() {
                job.agent_query_rules.push(format!("queue={key}"));
            }
            Some((job, waiting))
        })
    }
}
