//! What Buildkite keeps of one organisation: clusters, queues, tokens, stacks, agents and jobs.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    thread::panicking,
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    api::{Refusal, refusal},
    job::Job,
};
use crate::{clock, credentials::random_uuid, event::Event};

pub(super) const SLUG: &str = "example-org";
pub(super) const UUID: &str = "11111111-2222-4333-8444-555555555504";

/// The sliding window of every rate limit.
const WINDOW: Duration = Duration::from_secs(1);

/// The uuid of the Buildkite cluster of every lab.
pub const CLUSTER: &str = "11111111-2222-4333-8444-555555555505";

/// All that Buildkite keeps.
#[derive(Default)]
pub struct Organization {
    /// By uuid.
    pub jobs: BTreeMap<String, Job>,
    /// What Buildkite sent by itself: one event for each retry.
    pub events: Vec<Event>,
    /// What the documentation does not allow; a test that expects it takes it.
    pub violations: Vec<String>,
    /// Agent tokens, each with its cluster.
    pub tokens: BTreeMap<String, (String, Token)>,
    /// Time to add to the clock.
    pub skipped: Duration,
    /// The queue of a job without a queue rule, in every cluster.
    pub default_queue: String,
    /// The ends of reservations, each with its job; it may have been extended, or be over already.
    reservations: BTreeSet<(Timestamp, String)>,
    pub(super) queues: BTreeMap<(String, String), Queue>,
    clock: Clock,
    /// By session token, and by job token.
    pub(super) agents: BTreeMap<String, Agent>,
    /// Keys, each with its cluster and the time of its last list.
    pub(super) stacks: BTreeMap<String, (String, Option<Timestamp>)>,
    /// Times of the last requests, by stack and scope.
    requests: BTreeMap<(String, &'static str), Vec<Timestamp>>,
}

/// Stands still while the clock of tokio is paused.
struct Clock(Timestamp, Instant);

impl Default for Clock {
    fn default() -> Self {
        Self(clock::now(), Instant::now())
    }
}

/// What an agent token is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// `bkct_`: all queues of its cluster, and the Stacks API.
    Cluster,
    /// `bkcqt_`: agents of this queue.
    Queue(String),
    /// `bkar_`: agents outside of any cluster.
    Unclustered,
    /// `bkjat_`: agents for one job.
    Job {
        /// The job.
        uuid: String,
        /// The token of the stack.
        issued_by: String,
        /// The end of its lifetime, or of the reservation if that is earlier.
        expires_at: Timestamp,
    },
}

/// A queue of a cluster.
#[derive(Default)]
pub struct Queue {
    /// Its dispatch is paused.
    pub is_paused: bool,
    /// When a stack listed its jobs last; its page shows it as connected for five minutes from then.
    pub listed_at: Option<Timestamp>,
}

#[derive(Clone)]
pub(super) struct Agent {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) tags: Vec<String>,
    pub(super) cluster: String,
    pub(super) queue: String,
    /// All that an agent with a job acquisition token may acquire.
    pub(super) job: Option<String>,
}

impl Organization {
    /// The time at Buildkite, which the `Date` of each answer shows.
    pub fn now(&self) -> Timestamp {
        let Clock(start, instant) = self.clock;
        start + instant.elapsed() + self.skipped
    }

    /// The queue with this key; a new one is created.
    pub fn queue(&mut self, cluster: &str, key: &str) -> &mut Queue {
        self.queues.entry((cluster.to_owned(), key.to_owned())).or_default()
    }

    /// Schedules the job of an event, and creates its queue if need be.
    pub fn schedule(&mut self, event: &Event, cluster: &str) -> &mut Job {
        let rules = event.0["detail"]["job"]["agent_query_rules"].as_array().into_iter().flatten();
        let mut queues = rules.filter_map(|rule| rule.as_str()?.strip_prefix("queue="));
        let queue = queues.next().unwrap_or(&self.default_queue).to_owned();
        self.queue(cluster, &queue);
        let (cluster, scheduled_at) = (cluster.to_owned(), self.now());
        let job = Job { event: event.clone(), cluster, queue, scheduled_at, state: "scheduled", ..Job::default() };
        self.jobs.entry(event.job_uuid().to_owned()).insert_entry(job).into_mut()
    }

    /// The keys of the stacks that have registered.
    pub fn stack_keys(&self) -> Vec<String> {
        self.stacks.keys().cloned().collect()
    }

    /// Cancels a job, as a user does.
    pub fn cancel(&mut self, uuid: &str) {
        let now = self.now();
        if let Some(job) = self.jobs.get_mut(uuid) {
            job.cancel(now);
        }
    }

    /// A stack reserves a job. A second reservation by the same stack extends the first.
    pub fn reserve(&mut self, uuid: &str, stack: &str, until: Timestamp) -> bool {
        let is_reserved = self.jobs.get_mut(uuid).is_some_and(|job| job.reserve(stack, until));
        if is_reserved {
            self.reservations.insert((until, uuid.to_owned()));
        }
        is_reserved
    }

    pub(super) fn expire(&mut self) {
        let now = self.now();
        while self.reservations.first().is_some_and(|(end, _)| *end <= now) {
            let due = self.reservations.pop_first();
            if let Some(job) = due.and_then(|(_, uuid)| self.jobs.get_mut(&uuid)) {
                job.expire(now);
            }
        }
    }

    /// What follows the end of a job: the retry of its step.
    pub(super) fn ended(&mut self, uuid: &str) {
        let retry = random_uuid();
        let Some(job) = self.jobs.get_mut(uuid).filter(|job| job.is_retried()) else { return };
        job.retried_in_job_id = Some(retry.clone());
        let old = job.clone();
        let mut event = old.event.uuid(retry);
        event.0["id"] = random_uuid().into();
        let new = self.schedule(&event, &old.cluster);
        (new.priority, new.env, new.retries) = (old.priority, old.env, old.retries - 1);
        self.events.push(event);
    }

    pub(super) fn find_job(&mut self, uuid: &str, cluster: &str) -> Result<&mut Job, Refusal> {
        let job = self.jobs.get_mut(uuid).filter(|job| job.cluster == cluster);
        job.ok_or_else(|| refusal(404, "Job not found"))
    }

    /// The requests of this second, with the new one; one beyond the limit does not count.
    pub(super) fn count(&mut self, stack: &str, scope: &'static str, limit: usize) -> usize {
        let now = self.now();
        let window = self.requests.entry((stack.to_owned(), scope)).or_default();
        window.retain(|time| *time + WINDOW > now);
        let current = window.len() + 1;
        if current <= limit {
            window.push(now);
        }
        current
    }

    pub(super) fn find_queue(&mut self, cluster: &str, key: &str) -> Result<&mut Queue, Refusal> {
        let queue = self.queues.get_mut(&(cluster.to_owned(), key.to_owned()));
        queue.ok_or_else(|| refusal(404, "Queue not found"))
    }

    pub(super) fn check(&mut self) {
        let violations = mem::take(&mut self.violations);
        assert!(violations.is_empty() || panicking(), "Buildkite does not document:\n{}", violations.join("\n"));
    }
}

/// In process this fails the test. Over a socket a server may drop it elsewhere, so the lab checks before.
impl Drop for Organization {
    fn drop(&mut self) {
        self.check();
    }
}
