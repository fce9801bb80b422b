//! The steps of a sweep, each with a second look before it.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use uuid::Uuid;

use super::{
    Sweep, Unavailable, add,
    create::{MAX_CHUNK, Replacement},
    finding::{self, Finding},
    plan::{Step, Target},
    seen::{Known, Seen},
};
use crate::{
    buildkite::{
        stacks::{MAX_NOTIFICATION_CHARS, MAX_UUIDS, Notification},
        state::State,
        token::JOB_TOKEN_LIFETIME,
    },
    job_token, kubernetes,
    pod::job,
    report,
    stacks_api::{self, RESERVATION},
    text::chain,
};

/// How many steps are done side by side.
pub(super) const AT_ONCE: usize = 10;

/// No step begins with less time: a Job that was deleted must be created again.
const MIN_TIME: Duration = Duration::from_secs(5);

/// Why a step is not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Buildkite(#[from] stacks_api::Error),
    #[error(transparent)]
    Cluster(#[from] kubernetes::Error),
    #[error(transparent)]
    JobToken(#[from] job_token::Error),
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
        let (mut tokens, mut notifications) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Create(job) => created.push(job),
                Step::Replace { ended, is_deleted, job, next, notification } => {
                    replaced.push(Replacement { ended, is_deleted, job, next, notification });
                }
                Step::GiveToken { target, secret } => tokens.push((target, secret)),
                Step::Cancel(target) => cancelled.push(target),
                Step::Finish { target, detail } => finished.push((target, detail)),
                Step::Notify { uuid, text, more } => notifications.push(notification(uuid, &text, &more)),
                Step::Warn(text) => tracing::warn!("{text}"),
                Step::Error(text) => tracing::error!("{text}"),
            }
        }
        self.create(&created, report).await;
        for some in replaced.chunks(AT_ONCE) {
            self.replace(some, seen, report).await?;
        }
        for some in tokens.chunks(MAX_CHUNK) {
            self.give_tokens(some, seen, report).await?;
        }
        for some in cancelled.chunks(AT_ONCE) {
            let Some(states) = self.states(some.iter().map(|target| target.uuid), report).await? else { continue };
            let cancel = async |target: &&Target| self.cancel(target, &states, seen).await;
            let those = self.those(some.iter().collect(), cancel, report).await?;
            report.cancelled += those.len();
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

    /// Those for which it is so, looked at side by side.
    pub(super) async fn those<T>(
        &self,
        all: Vec<T>,
        look: impl AsyncFn(&T) -> Result<bool, Error>,
        report: &mut report::Sweep,
    ) -> Result<Vec<T>, Unavailable> {
        let mut those = Vec::new();
        let mut all = all.into_iter().peekable();
        while all.peek().is_some() {
            let some: Vec<_> = all.by_ref().take(AT_ONCE).collect();
            let looks = join_all(some.iter().map(|one| look(one))).await;
            for (one, look) in some.into_iter().zip(looks) {
                if report.of_step(look)? {
                    those.push(one);
                }
            }
        }
        Ok(those)
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
        // A token of the Job's agent lives no longer than the reservation, should the job not be finished after all.
        let reservation = if self.scheduler.config.job_tokens { JOB_TOKEN_LIFETIME } else { RESERVATION };
        let finish = self.stacks_api.finish(target.uuid, detail, reservation, &self.token, self.deadline);
        if !is_still || !finish.await? {
            return Ok(false);
        }
        report::job_finished(target.uuid, detail);
        if matches!(target.finding, Finding::Stuck | Finding::Blocked(_)) {
            self.delete(target).await?;
        }
        Ok(true)
    }

    /// The states of some jobs, now. `None` if they are unknown, or if there is no time for what comes next.
    pub(super) async fn states(
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
    pub(super) async fn is_still(
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
    pub(super) async fn delete(&self, target: &Target) -> Result<bool, kubernetes::Error> {
        match self.cluster.delete_job(&job::name(target.uuid), &target.uid, self.deadline).await {
            Err(error) if error.is_other_uid() => Ok(false),
            Err(error) if error.is_not_found() => Ok(true),
            deleted => deleted.map(|()| true),
        }
    }

    pub(super) fn is_late(&self) -> bool {
        self.deadline.left() < MIN_TIME
    }
}

/// How much of a long notification is its beginning. The cause of an error stands at its end.
const MAX_BEGINNING: usize = 100;

/// The text, and if there is room the command that shows more.
pub(super) fn notification(job_uuid: Uuid, text: &str, more: &str) -> Notification {
    let (chars, gap) = (text.chars().count(), " … ");
    let with_more = format!("{text} More: {more}");
    let detail = if !more.is_empty() && with_more.chars().count() <= MAX_NOTIFICATION_CHARS {
        with_more
    } else if chars <= MAX_NOTIFICATION_CHARS {
        text.to_owned()
    } else {
        let left_out = chars - (MAX_NOTIFICATION_CHARS - MAX_BEGINNING - gap.chars().count());
        text.chars().take(MAX_BEGINNING).chain(gap.chars()).chain(text.chars().skip(left_out)).collect()
    };
    Notification { job_uuid, detail }
}

impl report::Sweep {
    /// Whether a step is done.
    pub(super) fn of_step(&mut self, done: Result<bool, Error>) -> Result<bool, Unavailable> {
        let done = match done {
            Ok(done) => Known::Known(done),
            Err(Error::Buildkite(error)) => self.of_buildkite(Err(error))?,
            Err(Error::Cluster(error)) => self.of_cluster(Err(error)),
            Err(Error::JobToken(error)) => {
                add(&mut self.failures, chain(&error));
                Known::Unknown
            }
        };
        Ok(matches!(done, Known::Known(true)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_keeps_its_limit_and_the_end_of_a_long_text() {
        let detail = |text: &str, more| notification(Uuid::nil(), text, more).detail;
        assert_eq!(detail("why", "kubectl"), "why More: kubectl");
        assert_eq!(detail("why", ""), "why");
        let long = "é".repeat(MAX_NOTIFICATION_CHARS);
        assert_eq!(detail(&long, "kubectl"), long);
        let longer = detail(&format!("the pod {} connection refused", "é".repeat(MAX_NOTIFICATION_CHARS)), "kubectl");
        assert_eq!(longer.chars().count(), MAX_NOTIFICATION_CHARS);
        assert!(longer.starts_with("the pod é") && longer.ends_with("é connection refused"), "{longer}");
    }
}
