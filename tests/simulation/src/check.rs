//! What must hold of answers, and in the end.

use std::time::Duration;

use agent_scheduler::kept::REFRESH_TIMEOUT;
use lab::Event;
use serde_json::Value;

use crate::{
    agent::decoded,
    lambda::Done,
    plan::{Fate, Kind, What},
    world::{SECRET, START, World},
};

/// The states of a job that is over.
const OVER: [&str; 2] = ["finished", "canceled"];

/// The label of a Job of ours.
const LABEL: &str = "buildkite.com/job-uuid";

/// How old the copy of the cluster's definitions may be, with the time that a request takes.
const MAX_DEFINITION_AGE: Duration = Duration::from_secs(70);

/// How old the copy of the token may be, and its Secret, with a sweep in between.
const MAX_TOKEN_AGE: Duration = Duration::from_mins(7);

/// `PodPendingSeconds`, less what rounding to seconds takes off.
const POD_PENDING: Duration = Duration::from_secs(898);

impl World {
    /// What the function answers is true, and costs no more than it has to.
    pub fn check_answer(&self, event: &Event, done: &Done) {
        if event.is_sweep() {
            return;
        }
        let Done { invocation, answer, record } = done;
        let (uuid, outcome) = (event.job_uuid(), answer["outcome"].as_str().unwrap_or_default());
        let (kind, name) = (self.kind(uuid), event.job_name());
        let was_there = || {
            let is_made = self.state().created.contains_key(&name);
            is_made || self.lab.kubernetes.job(&name).is_some_and(|job| job["metadata"]["labels"][LABEL] == uuid)
        };
        let is_warm = invocation.number != invocation.environment;
        let requests = 1 + u32::from(self.plan.has_job_tokens);
        if is_warm && outcome == "created" && !record.is_disturbed && record.requests != requests {
            self.violated(format!("job {uuid} takes {} requests to Kubernetes, not {requests}", record.requests));
        }
        let is_true = match outcome {
            "created" if record.is_garbled => was_there(),
            "created" => record.made.contains(&name),
            "already-exists" => was_there(),
            "refused" => kind == Kind::NoDefinition,
            // The sweep makes its Job.
            "deferred" => self.plan.has_job_tokens || kind == Kind::NoDefinition,
            "ignored" if kind == Kind::OfAnotherStack => true,
            "ignored" => (self.plan.has_job_tokens || kind == Kind::NoDefinition) && !self.waits(uuid),
            _ => false,
        };
        if !is_true {
            self.violated(format!("the answer to job {uuid} ({kind:?}) is not true: {answer}"));
        }
    }

    /// The metrics of an invocation add up to what it did, unless an answer that it lacks has hidden that.
    pub fn check_metrics(&self, Done { invocation, record, .. }: &Done) {
        let sum = |names: &[&str]| names.iter().filter_map(|name| record.metrics.get(*name)).sum::<u64>();
        let counted = [sum(&["JobsCreated", "JobsRepaired", "JobsReplaced"]), sum(&["JobsRefused", "JobsFinished"])];
        if !record.is_disturbed && counted != [record.made.len() as u64, record.finished] {
            let (made, finished) = (record.made.len(), record.finished);
            let number = invocation.number;
            self.violated(format!("invocation {number} made {made}, finished {finished}, and counts {counted:?}"));
        }
    }

    /// Whether a new Job is ours. Then it has a definition that the cluster had a short time ago.
    pub fn check_job(&self, name: &str, uid: &str) -> bool {
        let job = self.lab.kubernetes.with_job(name, uid, |job| job.clone()).unwrap_or_default();
        if !job["metadata"]["labels"][LABEL].is_string() {
            return false;
        }
        // A copy that cannot be refreshed stays in use, and a refresh may take two seconds.
        let hides = |what: &What| matches!(what, What::Answers(..) | What::Forbid(..));
        let is_slow = self.travels(2) > REFRESH_TIMEOUT;
        let definitions = self.state().definitions.clone();
        let recent = definitions
            .iter()
            .zip(definitions.iter().skip(1).map(Some).chain([None]))
            .filter(|(_, next)| next.is_none_or(|(until, _)| until.elapsed() <= MAX_DEFINITION_AGE + self.travels(4)));
        let image = job["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
        let theirs = Some(image.to_owned()).filter(|image| image.starts_with("theirs:"));
        let is_recent = recent.map(|((_, image), _)| image).any(|image| *image == theirs);
        if !is_recent && !is_slow && !self.plan.troubles.iter().any(|trouble| hides(&trouble.what)) {
            self.violated(format!("Job {} has an old definition, with image {image}", job["metadata"]["name"]));
        }
        true
    }

    /// The Secret has the token of SSM, some time after the last trouble.
    fn check_secret(&self) {
        let secret = self.lab.kubernetes.secret("buildkite", SECRET).unwrap_or_default();
        let token = secret["data"]["token"].as_str().and_then(decoded);
        if self.plan.sweeps
            && !self.plan.has_job_tokens
            && self.now() > self.plan.calm_at() + MAX_TOKEN_AGE
            && token != self.state().tokens.last().cloned()
        {
            self.violated("the Secret does not have the token of SSM at the end".to_owned());
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
            let is_brake_due = self.plan.jobs.len() > 1;
            let mut troubles = self.plan.troubles.iter();
            if is_healthy && troubles.all(|trouble| is_brake_due && matches!(trouble.what, What::NoAgents)) {
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
        let may_lack_secret = self
            .plan
            .troubles
            .iter()
            .any(|trouble| matches!(trouble.what, What::DeleteSecrets | What::TakeSecret | What::Rebuild));
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
        let mut secrets = self.lab.kubernetes.secrets();
        secrets.retain(|secret| secret["metadata"]["name"] != SECRET);
        left.extend(secrets.iter().map(|secret| format!("Secret {}", secret["metadata"]["name"])));
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
        self.check_secret();
        let refused = std::mem::take(&mut self.lab.buildkite.lock().violations);
        for refused in refused {
            self.violated(format!("Buildkite does not document: {refused}"));
        }
    }
}
