//! One Job with what belongs to it, and what is wrong with it.
//!
//! The sweep asks twice: for its plan, and with fresh values before it finishes a job or deletes a Job.

use std::collections::{BTreeMap, HashMap, HashSet};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::{
    obstacle::{self, CONFIG_ERROR, Obstacle, wait_for_room},
    seen::Seen,
};
use crate::{
    buildkite::{job::ScheduledJob, state::State, token::JOB_TOKEN_LIFETIME},
    kubernetes::{
        jobs::Job,
        pods::{ContainerStatus, Pod},
    },
    pod::{
        attempt::{Attempt, JOB_ANNOTATION},
        definition::AGENT,
        job,
        metadata::{JOB_UUID_LABEL, STACK_LABEL},
    },
};

/// The agent's exit code if it cannot register, such as with a token that has ended.
const REGISTRATION_FAILED: i32 = 1;

/// How long after its grace period a pod is there only because its node is dead.
const MAX_TERMINATING: SignedDuration = SignedDuration::from_secs(60);

/// What is wrong with a Job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The Job failed, and its job waits.
    Failed,
    /// The Job completed, and its job waits: the agent ended with 0 and without a job.
    Complete,
    /// The Job's pod is on a dead node, and its job waits.
    Stuck,
    /// Its agent waits for the Secret with its token, and its job waits.
    WithoutToken,
    /// Something is in the way of the Job, and its job waits.
    Blocked(obstacle::Kind),
    /// The job is over, and no agent of the Job has started, or none of the pods that it still has.
    Over,
    /// The job is over, and an agent of the Job runs.
    OverAndRuns,
}

/// What is wrong, and since when by the control plane's clock. `pods` are those that the Job controls.
pub fn find(job: &Job, pods: &[&Pod], state: &State, now: Timestamp) -> Option<(Finding, Timestamp)> {
    let runs = agents(pods).any(ContainerStatus::runs);
    match end(job) {
        Some((finding, Some(time))) if state.is_waiting() && !runs => Some((finding, time)),
        None if state.is_over() => {
            let created = job.metadata.creation_timestamp?;
            // The pod that replaces one whose agent has ended waits for an agent, too.
            let live: Vec<_> = pods.iter().copied().filter(|pod| !pod.has_ended()).collect();
            let started = agents(if live.is_empty() { pods } else { &live }).any(ContainerStatus::started);
            match (runs, started) {
                (false, false) => Some((Finding::Over, created)),
                // Each agent runs for a moment after its job has finished.
                (true, _) if *state != State::Finished => Some((Finding::OverAndRuns, created)),
                _ => None,
            }
        }
        None if state.is_waiting() && !runs && job.status.active == 0 => {
            let due = pods.iter().filter_map(|pod| pod.metadata.deletion_timestamp);
            let stuck = due.filter(|due| now.duration_since(*due) >= MAX_TERMINATING).min()?;
            Some((Finding::Stuck, stuck))
        }
        _ => None,
    }
}

/// Whether it is still wrong with the same Job, with fresh values. `pods` may have others.
pub fn still(found: (&str, Finding), job: &Job, pods: &[Pod], state: &State, seen: &Seen) -> bool {
    let ((uid, finding), Some(now)) = (found, seen.now.get()) else { return false };
    let pods: Vec<_> = pods.iter().filter(|pod| pod.owner() == Some(uid)).collect();
    if job.metadata.uid.as_deref() != Some(uid) {
        return false;
    }
    match finding {
        Finding::Blocked(kind) => {
            in_the_way(job, &pods, state, seen).is_some_and(|obstacle| obstacle.kind == kind && obstacle.is_due(*now))
        }
        Finding::WithoutToken => missing_secret(job, &pods, state).is_some(),
        finding => find(job, &pods, state, *now).is_some_and(|(again, _)| again == finding),
    }
}

/// What is in the way of a Job that has not ended and whose job waits.
fn in_the_way<'a>(job: &'a Job, pods: &[&'a Pod], state: &State, seen: &Seen) -> Option<Obstacle<'a>> {
    let waits = state.is_waiting() && end(job).is_none() && job.metadata.deletion_timestamp.is_none();
    waits.then(|| obstacle::find(job, pods, seen)).flatten()
}

/// The name of the Secret that the agent of a Job waits for, by what its kubelet says: only that Job refers to it.
fn missing_secret<'a>(job: &'a Job, pods: &[&Pod], state: &State) -> Option<&'a str> {
    let secret = job.own_token_secret()?;
    let waits = state.is_waiting() && end(job).is_none() && job.metadata.deletion_timestamp.is_none();
    let mut agents = agents(pods).filter_map(|agent| agent.state.waiting.as_ref());
    let is_missing = agents.any(|waiting| {
        let message = waiting.message.as_deref().unwrap_or_default();
        waiting.reason.as_deref() == Some(CONFIG_ERROR) && message.contains(secret)
    });
    (waits && is_missing).then_some(secret)
}

/// The uids of the Jobs whose job waits and which have not ended, and of their pods: their Events say what is in the way.
pub fn uids_to_explain(jobs: &[Job], pods: &[Pod], states: &BTreeMap<Uuid, State>, stack_id: &str) -> HashSet<String> {
    let waits = |job: &&Job| {
        let state = Identity::of(job, stack_id).and_then(|identity| states.get(&identity.uuid));
        state.is_some_and(State::is_waiting) && end(job).is_none()
    };
    let jobs: HashSet<_> = jobs.iter().filter(waits).filter_map(|job| job.metadata.uid.clone()).collect();
    let of_jobs = pods.iter().filter(|pod| pod.owner().is_some_and(|owner| jobs.contains(owner)));
    let pods: Vec<_> = of_jobs.map(|pod| pod.metadata.uid.clone()).collect();
    jobs.into_iter().chain(pods).collect()
}

/// How the Job ended, and when, if the control plane says so.
pub fn end(job: &Job) -> Option<(Finding, Option<Timestamp>)> {
    if let Some(failed) = job.condition("Failed") {
        return Some((Finding::Failed, failed.last_transition_time));
    }
    let complete = job.condition("Complete")?;
    Some((Finding::Complete, job.status.completion_time.or(complete.last_transition_time)))
}

/// A Job whose job has a state that is known.
pub(super) struct Found<'a> {
    pub uuid: Uuid,
    pub uid: &'a str,
    pub created: Timestamp,
    pub job: &'a Job,
    pub pods: Vec<&'a Pod>,
    pub state: &'a State,
    pub attempt: Attempt,
    pub finding: Option<(Finding, Timestamp)>,
    /// If nothing else is wrong.
    pub obstacle: Option<Obstacle<'a>>,
}

/// The Jobs of the stack, those of the oldest jobs first, and beside them the jobs of Jobs that Buildkite does not know and whose agent
/// does not run. `None` if a list is unknown.
pub(super) fn jobs<'a>(seen: &'a Seen) -> Option<(Vec<Found<'a>>, Vec<Uuid>)> {
    let (now, jobs, pods, states) = (*seen.now.get()?, seen.jobs.get()?, seen.pods.get()?, seen.states.get()?);
    let mut pods_of = HashMap::<_, Vec<_>>::new();
    for pod in pods {
        if let Some(owner) = pod.owner() {
            pods_of.entry(owner).or_default().push(pod);
        }
    }
    let (mut found, mut unknown) = (Vec::new(), Vec::new());
    for job in jobs {
        let Some(Identity { uuid, uid, created }) = Identity::of(job, &seen.stack.id) else { continue };
        let pods = pods_of.remove(uid).unwrap_or_default();
        let Some(state) = states.get(&uuid) else {
            if end(job).is_none() && !agents(&pods).any(ContainerStatus::runs) {
                unknown.push(uuid);
            }
            continue;
        };
        let attempt = Attempt::of(&job.metadata.labels, &job.metadata.annotations, created);
        let finding = find(job, &pods, state, now);
        let obstacle = if finding.is_none() { in_the_way(job, &pods, state, seen) } else { None };
        found.push(Found { uuid, uid, created, job, pods, state, attempt, finding, obstacle });
    }
    wait_for_room(&mut found, now, seen.pod_pending);
    found.sort_by_key(|found| (found.attempt.first_created, found.uuid));
    unknown.sort();
    Some((found, unknown))
}

/// What identifies a Job of the stack.
pub struct Identity<'a> {
    /// Of the Buildkite job.
    pub uuid: Uuid,
    /// Of the Job.
    pub uid: &'a str,
    /// By the API server's clock.
    pub created: Timestamp,
}

impl<'a> Identity<'a> {
    /// `None` for a Job that is not the stack's.
    pub fn of(job: &'a Job, stack_id: &str) -> Option<Self> {
        let metadata = &job.metadata;
        let uuid = metadata.labels.get(JOB_UUID_LABEL)?.parse().ok()?;
        let ours = metadata.labels.get(STACK_LABEL)? == stack_id && metadata.name == job::name(uuid);
        ours.then_some(Self { uuid, uid: metadata.uid.as_deref()?, created: metadata.creation_timestamp? })
    }
}

fn agents<'a>(pods: &'a [&Pod]) -> impl Iterator<Item = &'a ContainerStatus> {
    pods.iter().filter_map(|pod| pod.container(AGENT))
}

impl<'a> Found<'a> {
    /// The Secret that the agent waits for.
    pub fn missing_secret(&self) -> Option<&'a str> {
        missing_secret(self.job, &self.pods, self.state)
    }

    /// The agent failed to register, and started after the end of its token. A pod may wait for room for longer.
    pub fn came_too_late(&self) -> bool {
        let has_token = self.job.own_token_secret().is_some();
        let mut ends = agents(&self.pods).filter_map(|agent| agent.state.terminated.as_ref());
        let late = |time: Timestamp| self.created.duration_until(time).unsigned_abs() >= JOB_TOKEN_LIFETIME;
        has_token && ends.any(|end| end.exit_code == REGISTRATION_FAILED && end.started_at.is_some_and(late))
    }

    /// Its Buildkite job, if the Job says so.
    pub fn scheduled_job(&self) -> Option<ScheduledJob> {
        serde_json::from_str(self.job.metadata.annotations.get(JOB_ANNOTATION)?).ok()
    }

    /// The Job is on its way out already.
    pub fn is_deleted(&self) -> bool {
        self.job.metadata.deletion_timestamp.is_some()
    }

    /// What is wrong, if an attempt ended and no agent had taken the job.
    pub fn ended_in_vain(&self) -> Option<(Finding, Timestamp)> {
        self.finding.filter(|(finding, _)| !matches!(finding, Finding::Over | Finding::OverAndRuns))
    }

    /// This attempt ended in vain or something is in its way, or an earlier one did and no agent has taken the job since.
    pub fn shows_a_fault(&self, now: Timestamp) -> bool {
        let again = self.attempt.number > 1 && self.state.is_waiting() && end(self.job).is_none();
        self.ended_in_vain().is_some() || self.obstacle.is_some_and(|obstacle| obstacle.is_fault(now)) || again
    }

    /// When its last agent started; the pods of a Job may be gone.
    pub fn started_at(&self) -> Timestamp {
        agents(&self.pods).filter_map(ContainerStatus::started_at).max().unwrap_or(self.created)
    }

    /// An agent has the job, or had it. What the sweep has finished is finished, too, but never after the first attempt.
    pub fn was_taken(&self) -> bool {
        let ran =
            *self.state == State::Finished && self.attempt.number == 1 && self.job.condition("Complete").is_some();
        self.state.is_held() || ran
    }
}
