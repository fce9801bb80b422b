//! The steps of a sweep that let jobs run: a Job, the next one, the token for an agent.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::{
    Sweep, Unavailable,
    act::{Error, notification},
    add,
    plan::Target,
    seen::Seen,
};
use crate::{
    buildkite::{
        job::ScheduledJob,
        stacks::{Notification, RateLimit},
        state::State,
        token::JOB_TOKEN_LIFETIME,
    },
    job_token::WithoutToken,
    pod::attempt::Attempt,
    report::{self, Occasion, Outcome},
    scheduler,
    stacks_api::{self, RESERVATION},
    text::chain,
};

/// How many jobs are reserved, or get their tokens, by one call.
pub(super) const MAX_CHUNK: usize = 50;

/// For the build page of a job whose event brought no Job.
const REPAIRED: &str = "The sweep has created the Kubernetes Job: the event of this job was lost, was late, or failed.";

/// No job gets a Job after this many have failed to: the next sweep tries again.
const MAX_FAILURES: usize = 50;

/// A Job that ended, and the next attempt.
pub(super) struct Replacement {
    pub(super) ended: Target,
    pub(super) is_deleted: bool,
    pub(super) job: Box<ScheduledJob>,
    pub(super) next: Attempt,
    pub(super) notification: String,
}

impl Sweep<'_> {
    /// Gives jobs that wait without a Job their first one.
    pub(super) async fn create(&self, jobs: &[ScheduledJob], report: &mut report::Sweep) {
        let mut failed = 0;
        for some in jobs.chunks(MAX_CHUNK) {
            if self.is_late() || failed >= MAX_FAILURES {
                report.left += some.len();
                continue;
            }
            let jobs: Vec<_> = some.iter().map(|job| (job, Occasion::Repair)).collect();
            let with_token = self.scheduler.with_token(&jobs, self.deadline).await;
            let reserved = match self.scheduler.reserve_all(&with_token, RateLimit::Wait, self.deadline).await {
                Ok(reserved) => reserved,
                Err(error) => {
                    add(&mut report.failures, chain(&error));
                    report.left += some.len();
                    continue;
                }
            };
            let outcomes = self.schedule(&jobs, &reserved).await;
            failed += outcomes.iter().filter(|(_, outcome)| outcome.is_err()).count();
            let created = created(outcomes);
            report.repaired += created.len();
            self.notify(created.into_iter().map(|job| notification(job, REPAIRED, "")).collect()).await;
        }
    }

    /// As well as it can.
    async fn notify(&self, notifications: Vec<Notification>) {
        if notifications.is_empty() {
            return;
        }
        if let Err(error) = self.stacks_api.notify(&notifications, &self.token, self.deadline).await {
            tracing::debug!(error = chain(&error), "the build pages do not show the Jobs of this sweep");
        }
    }

    async fn schedule(
        &self,
        jobs: &[(&ScheduledJob, Occasion)],
        reserved: &BTreeSet<Uuid>,
    ) -> Vec<(Uuid, Result<Outcome, scheduler::Error>)> {
        let sides = (&self.cluster, &*self.token);
        let outcomes = self.scheduler.schedule_all(jobs, reserved, sides, self.deadline).await;
        let is_there = |outcome: &Result<_, _>| matches!(outcome, Ok(Outcome::Created | Outcome::AlreadyExists));
        let hidden = outcomes.iter().filter(|(job, outcome)| reserved.contains(job) && !is_there(outcome));
        let hidden: Vec<_> = hidden.map(|(job, _)| job.to_string()).collect();
        if !hidden.is_empty() {
            tracing::error!(
                jobs = hidden.join(", "),
                "reserved at Buildkite, and without a Job: no list shows these jobs until the reservation ends, in {} minutes",
                JOB_TOKEN_LIFETIME.as_secs() / 60
            );
        }
        outcomes
    }

    /// Deletes Jobs that ended, and creates the next ones.
    pub(super) async fn replace(
        &self,
        some: &[Replacement],
        seen: &Seen<'_>,
        report: &mut report::Sweep,
    ) -> Result<(), Unavailable> {
        let Some(states) = self.states(some.iter().map(|one| one.ended.uuid), report).await? else { return Ok(()) };
        let look = async |one: &&Replacement| {
            Ok(self.is_still(&one.ended, one.is_deleted, states.get(&one.ended.uuid), seen).await?)
        };
        let due = self.those(some.iter().collect(), look, report).await?;
        let with_token = self.scheduler.with_token(&jobs(&due), self.deadline).await;
        let reserved = self.scheduler.reserve_all(&with_token, RateLimit::Wait, self.deadline).await;
        let reserved = reserved.map_err(|error| add(&mut report.failures, chain(&error))).unwrap_or_default();
        let is_ours = async |one: &&Replacement| {
            let uuid = one.ended.uuid;
            if with_token.contains(&uuid) {
                return Ok(reserved.contains(&uuid));
            }
            // Another stack may have reserved it.
            Ok(states.get(&uuid) != Some(&State::Reserved) || self.reserve(uuid).await?)
        };
        let ours = self.those(due, is_ours, report).await?;
        let delete = async |one: &&Replacement| Ok(one.is_deleted || self.delete(&one.ended).await?);
        let deleted = self.those(ours, delete, report).await?;
        // The scheduler reports what becomes of them.
        let outcomes = self.schedule(&jobs(&deleted), &reserved).await;
        let created = created(outcomes);
        report.replaced += created.len();
        let created = deleted.iter().filter(|one| created.contains(&one.ended.uuid));
        self.notify(created.map(|one| notification(one.ended.uuid, &one.notification, "")).collect()).await;
        Ok(())
    }

    /// Whether a job is ours for a minute.
    async fn reserve(&self, job: Uuid) -> Result<bool, stacks_api::Error> {
        let wait = RateLimit::Wait;
        let reserved = self.stacks_api.reserve(&[job], RESERVATION, wait, &self.token, self.deadline).await;
        Ok(reserved?.contains(&job))
    }

    /// Gives agents the tokens that they wait for: the function ended before it created their Secrets, or another controller held their
    /// pods back.
    pub(super) async fn give_tokens(
        &self,
        some: &[(Target, String)],
        seen: &Seen<'_>,
        report: &mut report::Sweep,
    ) -> Result<(), Unavailable> {
        let Some(states) = self.states(some.iter().map(|(target, _)| target.uuid), report).await? else {
            return Ok(());
        };
        let look = async |(target, secret): &&(Target, String)| {
            let is_still = self.is_still(target, false, states.get(&target.uuid), seen).await?;
            let without = WithoutToken::new(target.uuid, &target.uid, secret);
            Ok(is_still && without.is_missing(&self.cluster, self.deadline).await?.is_some())
        };
        let missing = self.those(some.iter().collect(), look, report).await?;
        let uuids: Vec<_> = missing.iter().map(|(target, _)| target.uuid).collect();
        let reserved = self.scheduler.reserve_all(&uuids, RateLimit::Wait, self.deadline).await;
        let reserved = reserved.map_err(|error| add(&mut report.failures, chain(&error))).unwrap_or_default();
        let reserved = missing.into_iter().filter(|(target, _)| reserved.contains(&target.uuid));
        let without: Vec<_> =
            reserved.map(|(target, secret)| WithoutToken::new(target.uuid, &target.uid, secret)).collect();
        for given in self.scheduler.give(&self.cluster, &self.token, &without, self.deadline).await {
            report.tokens += usize::from(report.of_step(given.map(|()| true).map_err(Error::JobToken))?);
        }
        Ok(())
    }
}

/// The jobs that have a new Job.
fn created(outcomes: Vec<(Uuid, Result<Outcome, scheduler::Error>)>) -> BTreeSet<Uuid> {
    let created = outcomes.into_iter().filter(|(_, outcome)| matches!(outcome, Ok(Outcome::Created)));
    created.map(|(job, _)| job).collect()
}

/// The jobs of replacements, and why they get a Job.
fn jobs<'a>(replacements: &[&'a Replacement]) -> Vec<(&'a ScheduledJob, Occasion)> {
    replacements.iter().map(|one| (&*one.job, Occasion::Replacement(one.next))).collect()
}
