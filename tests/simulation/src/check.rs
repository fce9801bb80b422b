//! What must hold of answers, and in the end.

use std::time::Duration;

use lab::Event;
use serde_json::Value;

use crate::{
    plan::{Fate, Kind, What},
    world::{START, World},
};

/// The states of a job that is over.
const OVER: [&str; 2] = ["finished", "canceled"];

/// `PodPendingSeconds`, less what rounding to seconds takes off.
const POD_PENDING: Duration = Duration::from_secs(898);

impl World {
    /// What the function answers is true.
    pub fn check_answer(&self, event: &Event, answer: &Value) {
        if event.is_sweep() {
            return;
        }
        let (uuid, outcome) = (event.job_uuid(), answer["outcome"].as_str().unwrap_or_default());
        let (kind, name) = (self.kind(uuid), event.job_name());
        let was_there = || {
            let jobs = self.lab.kubernetes.job_uids();
            self.state().created.contains_key(&name) || jobs.iter().any(|(job, _)| *job == name)
        };
        let is_true = match outcome {
            "created" | "already-exists" => was_there(),
            "refused" | "deferred" => kind == Kind::NoDefinition,
            "ignored" if kind == Kind::NoDefinition => !self.waits(uuid),
            "ignored" => kind == Kind::OfAnotherStack,
            _ => false,
        };
        if !is_true {
            self.violated(format!("the answer to job {uuid} ({kind:?}) is not true: {answer}"));
        }
    }

    fn waits(&self, uuid: &str) -> bool {
        self.lab.buildkite.lock().jobs.get(uuid).is_some_and(|job| job.state == "scheduled")
    }

    /// The jobs for the stack that are not over.
    pub fn jobs_that_wait(&self) -> Vec<String> {
        let jobs: Vec<_> = {
            let buildkite = self.lab.buildkite.lock();
            buildkite.jobs.iter().map(|(uuid, job)| (uuid.clone(), job.state)).collect()
        };
        let waits = |(uuid, state): &(String, &str)| {
            let kind = self.state().numbers.get(uuid).copied();
            let is_ours = kind.and_then(|number| self.job(number)).is_none_or(|job| job.kind != Kind::OfAnotherStack);
            is_ours && !OVER.contains(state)
        };
        jobs.into_iter().filter(waits).map(|(uuid, state)| format!("job {uuid} is {state}")).collect()
    }

    /// After the last trouble each job ends, and none for a reason that it does not have.
    pub fn check_ended(&self) {
        if self.plan.sweeps {
            for job in self.jobs_that_wait() {
                self.violated(format!("{job} at the end"));
            }
        } else {
            self.check_delivered();
        }
        let finished: Vec<_> = {
            let buildkite = self.lab.buildkite.lock();
            let jobs = buildkite.jobs.iter().filter(|(_, job)| job.detail.is_some());
            let since_start = |job: &lab::buildkite::Job| {
                let time = job.finished_at.unwrap_or_default().as_millisecond().unsigned_abs();
                Duration::from_millis(time).saturating_sub(START + self.plan.ahead[0])
            };
            jobs.map(|(uuid, job)| (uuid.clone(), job.detail.clone().unwrap_or_default(), since_start(job))).collect()
        };
        for (uuid, detail, finished_at) in finished {
            let (runs, number) = {
                let state = self.state();
                (state.runs.contains_key(&uuid), state.numbers.get(&uuid).copied())
            };
            if runs {
                self.violated(format!("job {uuid} was run, and then finished by us: {detail}"));
            }
            let created = self.state().created.get(&format!("buildkite-{uuid}")).copied();
            let is_early = created.is_none_or(|created| finished_at < created + POD_PENDING);
            if is_early && number.and_then(|number| self.job(number)).is_some_and(|job| job.kind == Kind::Usual) {
                self.violated(format!("job {uuid} was finished by us at {finished_at:?}, too early: {detail}"));
            }
            let is_healthy = number.and_then(|number| self.job(number)).is_some_and(|job| {
                job.kind == Kind::Usual && job.locked.is_none() && job.pods.iter().all(|fate| *fate == Fate::Runs)
            });
            if is_healthy && self.plan.troubles.is_empty() {
                self.violated(format!("job {uuid} could run, and was finished by us: {detail}"));
            }
        }
    }

    /// Without the sweep, a job whose event came has its Job, or its event is in the parking queue.
    fn check_delivered(&self) {
        let numbers = self.state().numbers.clone();
        for (uuid, number) in numbers {
            let is_due = self.job(number).is_some_and(|job| {
                let is_ours = matches!(job.kind, Kind::Usual | Kind::NoImage);
                is_ours && job.cancelled.is_none() && !job.deliveries.is_empty()
            });
            let state = self.state();
            let is_there = state.created.contains_key(&format!("buildkite-{uuid}")) || state.parked.contains(&uuid);
            drop(state);
            if is_due && !is_there {
                self.violated(format!("the event of job {uuid} came, and it has no Job"));
            }
        }
    }

    /// What is not gone yet.
    pub fn left(&self) -> Vec<String> {
        // Without the sweep, a pod that cannot start has its Job's deadline of hours, and only an event applies the Secret.
        let waits = |name: &str| {
            let number = self.state().numbers.get(name.trim_start_matches("buildkite-")).copied();
            number.and_then(|number| self.job(number)).is_some_and(|job| job.kind == Kind::NoImage)
        };
        let may_lack_secret = self.plan.troubles.iter().any(|trouble| matches!(trouble.what, What::DeleteSecret));
        let is_left = |name: &str| self.plan.sweeps || !(may_lack_secret || waits(name));
        let mut left: Vec<_> = self
            .lab
            .kubernetes
            .job_uids()
            .into_iter()
            .filter(|(name, _)| is_left(name))
            .map(|(name, _)| format!("Job {name}"))
            .collect();
        let pods = self.lab.kubernetes.pods();
        let owner = |pod: &Value| pod["metadata"]["ownerReferences"][0]["name"].as_str().unwrap_or_default().to_owned();
        let pods = pods.iter().filter(|pod| is_left(&owner(pod)));
        left.extend(pods.map(|pod| format!("pod {}", pod["metadata"]["name"])));
        let buildkite = self.lab.buildkite.lock();
        let reserved = buildkite.jobs.iter().filter(|(_, job)| job.state == "reserved");
        left.extend(reserved.map(|(uuid, _)| format!("the reservation of job {uuid}")));
        drop(buildkite);
        let state = self.state();
        left.extend(state.failure_queue.iter().map(|(event, _)| format!("a message for job {}", event.job_uuid())));
        left.extend((state.queued > 0).then(|| format!("{} events", state.queued)));
        left
    }

    /// Nothing is left, and no request was against the documentation.
    pub fn check_left(&self) {
        for left in self.left() {
            self.violated(format!("left at the end: {left}"));
        }
        let refused = std::mem::take(&mut self.lab.buildkite.lock().violations);
        for refused in refused {
            self.violated(format!("Buildkite does not document: {refused}"));
        }
        let jobs = self.lab.kubernetes.jobs().into_iter().map(|job| job.to_string());
        let lines = self.lab.timeline.entries().into_iter().map(|entry| entry.to_string());
        for text in jobs.chain(lines).filter(|text| self.has_token(text)) {
            self.violated(format!("the agent token is in {}", &text[..text.len().min(60)]));
        }
    }
}
