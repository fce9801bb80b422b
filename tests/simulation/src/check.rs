//! What must hold of answers, and in the end.

use lab::Event;
use serde_json::Value;

use crate::{
    plan::{Fate, Kind},
    world::World,
};

/// The states of a job that is over.
const OVER: [&str; 2] = ["finished", "canceled"];

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
            self.state().created.contains(&name) || jobs.iter().any(|(job, _)| *job == name)
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
        for job in self.jobs_that_wait() {
            self.violated(format!("{job} at the end"));
        }
        let finished: Vec<_> = {
            let buildkite = self.lab.buildkite.lock();
            let jobs = buildkite.jobs.iter().filter(|(_, job)| job.detail.is_some());
            jobs.map(|(uuid, job)| (uuid.clone(), job.detail.clone().unwrap_or_default())).collect()
        };
        for (uuid, detail) in finished {
            let (runs, number) = {
                let state = self.state();
                (state.runs.contains_key(&uuid), state.numbers.get(&uuid).copied())
            };
            if runs {
                self.violated(format!("job {uuid} was run, and then finished by us: {detail}"));
            }
            let is_healthy = number.and_then(|number| self.job(number)).is_some_and(|job| {
                job.kind == Kind::Usual && job.locked.is_none() && job.pods.iter().all(|fate| *fate == Fate::Runs)
            });
            if is_healthy && self.plan.troubles.is_empty() {
                self.violated(format!("job {uuid} could run, and was finished by us: {detail}"));
            }
        }
    }

    /// What is not gone yet.
    pub fn left(&self) -> Vec<String> {
        let mut left: Vec<_> =
            self.lab.kubernetes.job_uids().into_iter().map(|(name, _)| format!("Job {name}")).collect();
        let pods = self.lab.kubernetes.pods();
        left.extend(pods.iter().map(|pod| format!("pod {}", pod["metadata"]["name"])));
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
