//! The steps of a sweep, each with a second look before it.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use uuid::Uuid;

use super::{
    Sweep, Unavailable,
    finding::{self, Finding},
    plan::{Step, Target},
    seen::{Known, Seen},
};
use crate::{
    buildkite::{
        job::ScheduledJob,
        stacks::{MAX_NOTIFICATION_CHARS, MAX_UUIDS, Notification},
        state::State,
    },
    kubernetes,
    pod::{attempt::Attempt, job},
    report::{self, Occasion, Outcome},
    stacks_api,
    text::chain,
};

/// How many steps are done side by side.
const AT_ONCE: usize = 10;

/// No step begins with less time: a Job that was deleted must be created again.
const MIN_TIME: Duration = Duration::from_secs(5);

/// No job gets a Job after this many have failed to: the next sweep tries again.
const MAX_FAILURES: usize = 50;

/// Why a step is not done.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Buildkite(#[from] stacks_api::Error),
    #[error(transparent)]
    Cluster(#[from] kubernetes::Error),
}

/// A Job that ended, and the next attempt.
struct Replacement {
    ended: Target,
    is_deleted: bool,
    job: Box<ScheduledJob>,
    next: Attempt,
    notification: String,
}

impl Sweep<'_> {
    /// Does the steps, in their order.
    pub(super) async fn act(
        &self,
        steps: Vec<Step>,
        seen: &Seen<'_>,
        report: &mut report::Sweep,
    ) -> Result<(), Unavailable> {
        let (mut created, mut replaced, mut cancelled, mut finished) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut notifications = Vec::new();
        for step in steps {
            match step {
                Step::Create(job) => created.push(job),
                Step::Replace { ended, is_deleted, job, next, notification } => {
                    replaced.push(Replacement { ended, is_deleted, job, next, notification });
                }
                Step::Cancel(target) => cancelled.push(target),
                Step::Finish { target, detail } => finished.push((target, detail)),
                Step::Notify { uuid, text, more } => notifications.push(notification(uuid, &text, &more)),
                Step::Warn(text) => tracing::warn!("{text}"),
                Step::Error(text) => tracing::error!("{text}"),
            }
        }
        self.create(&created, report).await;
        for some in replaced.chunks(AT_ONCE) {
            let Some(states) = self.states(some.iter().map(|one| one.ended.uuid), report).await? else { continue };
            let replace = |one| self.replace(one, &states, seen);
            for done in join_all(some.iter().map(replace)).await {
                report.replaced += usize::from(report.of_step(done)?);
            }
        }
        for some in cancelled.chunks(AT_ONCE) {
            let Some(states) = self.states(some.iter().map(|target| target.uuid), report).await? else { continue };
            let cancel = |target| self.cancel(target, &states, seen);
            for done in join_all(some.iter().map(cancel)).await {
                report.cancelled += usize::from(report.of_step(done)?);
            }
        }
        for (target, detail) in finished {
            let Some(states) = self.states([target.uuid].into_iter(), report).await? else { continue };
            let done = self.finish(&target, &detail, &states, seen).await;
            report.finished += usize::from(report.of_step(done)?);
        }
        for some in notifications.chunks(MAX_UUIDS) {
            if self.is_late() {
                report.left += some.len();
                continue;
            }
            let notified = self.stacks_api.notify(some, &self.token, self.deadline).await;
            if let Known::Known(()) = report.of_buildkite(notified)? {
                report.notified += some.len();
            }
        }
        Ok(())
    }

    async fn create(&self, jobs: &[ScheduledJob], report: &mut report::Sweep) {
        let mut failed = 0;
        for some in jobs.chunks(AT_ONCE) {
            if self.is_late() || failed >= MAX_FAILURES {
                report.left += some.len();
                continue;
            }
            let create = |job| self.scheduler.schedule(job, Occasion::Repair, self.deadline);
            for outcome in join_all(some.iter().map(create)).await {
                report.repaired += usize::from(matches!(outcome, Ok(Outcome::Created)));
                failed += usize::from(outcome.is_err());
            }
        }
    }

    /// Deletes the Job that ended, and creates the next one.
    async fn replace(
        &self,
        Replacement { ended, is_deleted, job, next, notification }: &Replacement,
        states: &BTreeMap<Uuid, State>,
        seen: &Seen<'_>,
    ) -> Result<bool, Error> {
        let state = states.get(&ended.uuid);
        if !self.is_still(ended, *is_deleted, state, seen).await? {
            return Ok(false);
        }
        let reserved = state == Some(&State::Reserved);
        if reserved && !self.stacks_api.reserve(ended.uuid, &self.token, self.deadline).await? {
            return Ok(false);
        }
        if !is_deleted && !self.delete(ended).await? {
            return Ok(false);
        }
        // The scheduler reports what becomes of it.
        let outcome = self.scheduler.schedule(job, Occasion::Replacement(*next), self.deadline).await;
        let created = matches!(outcome, Ok(Outcome::Created));
        if created {
            let notification = [self::notification(ended.uuid, notification, "")];
            let notified = self.stacks_api.notify(&notification, &self.token, self.deadline).await;
            if let Err(error) = notified {
                tracing::debug!(job = %ended.uuid, error = chain(&error), "the build page does not show the next attempt");
            }
        }
        Ok(created)
    }

    /// Deletes the Job of a job that is over.
    async fn cancel(&self, target: &Target, states: &BTreeMap<Uuid, State>, seen: &Seen<'_>) -> Result<bool, Error> {
        let Some(state) = states.get(&target.uuid) else { return Ok(false) };
        let cancelled = self.is_still(target, false, Some(state), seen).await? && self.delete(target).await?;
        if cancelled {
            report::job_cancelled(target.uuid, state);
        }
        Ok(cancelled)
    }

    /// Finishes a job, and then deletes its Job if that has not ended: never the other order.
    async fn finish(
        &self,
        target: &Target,
        detail: &str,
        states: &BTreeMap<Uuid, State>,
        seen: &Seen<'_>,
    ) -> Result<bool, Error> {
        let is_still = self.is_still(target, false, states.get(&target.uuid), seen).await?;
        if !is_still || !self.stacks_api.finish(target.uuid, detail, &self.token, self.deadline).await? {
            return Ok(false);
        }
        report::job_finished(target.uuid, detail);
        if matches!(target.finding, Finding::Stuck | Finding::Blocked(_)) {
            self.delete(target).await?;
        }
        Ok(true)
    }

    /// The states of some jobs, now. `None` if they are unknown, or if there is no time for what comes next.
    async fn states(
        &self,
        jobs: impl ExactSizeIterator<Item = Uuid>,
        report: &mut report::Sweep,
    ) -> Result<Option<BTreeMap<Uuid, State>>, Unavailable> {
        if self.is_late() {
            report.left += jobs.len();
            return Ok(None);
        }
        let jobs: Vec<_> = jobs.collect();
        let states = self.stacks_api.states(&jobs, &self.token, self.deadline).await;
        match report.of_buildkite(states)? {
            Known::Known(states) => Ok(Some(states)),
            Known::Unknown => Ok(None),
        }
    }

    /// The same is wrong with the same Job, by what both sides say now.
    async fn is_still(
        &self,
        target: &Target,
        is_deleted: bool,
        state: Option<&State>,
        seen: &Seen<'_>,
    ) -> Result<bool, kubernetes::Error> {
        let Some(state) = state else { return Ok(false) };
        let job = match self.cluster.job(&job::name(target.uuid), self.deadline).await {
            Err(error) if error.is_not_found() => return Ok(false),
            job => job?,
        };
        let pods = self.cluster.pods_for(target.uuid, self.deadline).await?;
        let is_same = finding::still((&target.uid, target.finding), &job, &pods, state, seen);
        Ok(is_same && job.metadata.deletion_timestamp.is_some() == is_deleted)
    }

    /// `false` if another Job has its name by now. An attempt whose answer was lost may have deleted it already.
    async fn delete(&self, target: &Target) -> Result<bool, kubernetes::Error> {
        match self.cluster.delete_job(&job::name(target.uuid), &target.uid, self.deadline).await {
            Err(error) if error.is_other_uid() => Ok(false),
            Err(error) if error.is_not_found() => Ok(true),
            deleted => deleted.map(|()| true),
        }
    }

    fn is_late(&self) -> bool {
        self.deadline.left() < MIN_TIME
    }
}

/// The text, and if there is room the command that shows more.
fn notification(job_uuid: Uuid, text: &str, more: &str) -> Notification {
    let with_more = format!("{text} More: {more}");
    let text = if more.is_empty() || with_more.chars().count() > MAX_NOTIFICATION_CHARS { text } else { &with_more };
    Notification { job_uuid, detail: text.chars().take(MAX_NOTIFICATION_CHARS).collect() }
}

impl report::Sweep {
    /// Whether a step is done.
    fn of_step(&mut self, done: Result<bool, Error>) -> Result<bool, Unavailable> {
        let done = match done {
            Ok(done) => Known::Known(done),
            Err(Error::Buildkite(error)) => self.of_buildkite(Err(error))?,
            Err(Error::Cluster(error)) => self.of_cluster(Err(error)),
        };
        Ok(matches!(done, Known::Known(true)))
    }
}
