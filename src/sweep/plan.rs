//! What a sweep does, from what it has seen.

use std::{cmp::Reverse, collections::BTreeSet};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::{
    blocked::Blocked,
    brake::{Brake, Taken, brake},
    detail,
    finding::{self, Finding, Found},
    seen::Seen,
};
use crate::{
    buildkite::{job::ScheduledJob, rules::AgentQueryRules},
    pod::{attempt::Attempt, job},
};

/// How long the event of a job has time to create its Job.
const MIN_WAITING: SignedDuration = SignedDuration::from_secs(30);

/// Nothing but create and apply happens to a Job that is younger.
pub(super) const MIN_AGE: SignedDuration = SignedDuration::from_secs(60);

/// A job may be finished after this many Jobs that failed.
const MIN_FAILED_ATTEMPTS: u32 = 3;

/// Minutes from the end of the first, the second, and of each later attempt that failed, to the next one.
const PAUSES_AFTER_FAILED: [i64; 3] = [0, 1, 2];

/// The same after those that completed: a concurrency group may lock a job for hours.
const PAUSES_AFTER_COMPLETE: [i64; 3] = [1, 2, 4];

/// How long Kubernetes waits at most until it tries again what has failed: a Job that began later does not show that the attempts of
/// the others met a cluster that works.
const MAX_BACK_OFF: SignedDuration = SignedDuration::from_mins(5);

/// The most jobs that one sweep finishes.
pub const MAX_FINISHES: usize = 50;

/// Something to do, or to report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A job waits and has no Job: create it.
    Create(ScheduledJob),
    /// An attempt ended and no agent had taken the job: delete its Job, and create the next one.
    Replace {
        /// The Job that ended.
        ended: Target,
        /// It is being deleted already, and only its name must become free.
        is_deleted: bool,
        /// Its job.
        job: Box<ScheduledJob>,
        /// The attempt that begins.
        next: Attempt,
        /// For the build page.
        notification: String,
    },
    /// The Secret with the token for the Job's agent is missing: create it.
    GiveToken {
        /// The Job.
        target: Target,
        /// The Secret's name.
        secret: String,
    },
    /// The job is over and no agent ever started: delete its Job.
    Cancel(Target),
    /// Enough attempts ended, or something is in the way for too long: finish the job, and delete its Job if that has not ended.
    Finish {
        /// The last Job.
        target: Target,
        /// For the build page.
        detail: String,
    },
    /// Put a line on the job's build page.
    Notify {
        /// The job.
        uuid: Uuid,
        /// What is in the way.
        text: String,
        /// How to see more, if there is room.
        more: String,
    },
    /// One line of the log.
    Warn(String),
    /// One line of the log.
    Error(String),
}

/// The Job of a step, and why. Both are looked at again before the step is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Of the Buildkite job.
    pub uuid: Uuid,
    /// Of the Kubernetes Job.
    pub uid: String,
    /// What is wrong.
    pub finding: Finding,
}

/// The steps, in the order in which they are to be done: first what lets jobs run.
pub fn plan(seen: &Seen) -> Vec<Step> {
    let mut steps = create(seen).unwrap_or_default();
    steps.extend(repair(seen).unwrap_or_default());
    steps
}

/// The jobs that wait without a Job: the highest priority first, then the oldest.
fn create(seen: &Seen) -> Option<Vec<Step>> {
    let jobs = seen.jobs.get()?;
    let names: BTreeSet<_> = jobs.iter().map(|job| &*job.metadata.name).collect();
    let mut waiting = Vec::new();
    for (key, list) in seen.queues.iter().filter_map(|queue| Some((&*queue.key, queue.list.get()?))) {
        waiting.extend(list.ours(key, seen.stack).filter(|(job, waiting)| {
            let lost = waiting.scheduled_at.is_some_and(|time| list.now.duration_since(time) >= MIN_WAITING);
            let runnable = waiting.runnable_at.is_none_or(|time| time <= list.now);
            !list.paused && lost && runnable && !names.contains(&*job::name(job.uuid))
        }));
    }
    waiting.sort_by_key(|(job, waiting)| (Reverse(waiting.priority), waiting.since(), job.uuid));
    // A job may move from one queue to another between two lists.
    let mut listed = BTreeSet::new();
    waiting.retain(|(job, _)| listed.insert(job.uuid));
    Some(waiting.into_iter().map(|(job, _)| Step::Create(job)).collect())
}

/// What becomes of the Jobs that are there.
fn repair(seen: &Seen) -> Option<Vec<Step>> {
    let now = *seen.now.get()?;
    let namespace = &seen.stack.namespace;
    let (jobs, unknown) = finding::jobs(seen)?;
    let old_enough = jobs.iter().filter(|found| now.duration_since(found.created) >= MIN_AGE);
    let (mut ended, mut tokens, mut cancelled, mut runs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for found in old_enough {
        if let Some(secret) = found.missing_secret() {
            tokens.push(Step::GiveToken { target: target(found, Finding::WithoutToken), secret: secret.to_owned() });
        }
        match found.finding {
            Some((Finding::Over, _)) if !found.is_deleted() => {
                cancelled.push(Step::Cancel(target(found, Finding::Over)));
            }
            Some((Finding::Over, _)) | None => {}
            Some((Finding::OverAndRuns, _)) => runs.push(found.uuid),
            Some((finding, end)) => ended.extend(Ended::of(found, finding, end, now, seen)),
        }
    }
    let (mut due, not_due): (Vec<_>, Vec<_>) = ended.into_iter().partition(|ended| ended.may_be_finished);
    let mut replaced: Vec<_> = not_due.into_iter().filter_map(|ended| ended.replace(None, seen)).collect();
    // Those are left to their TTL.
    due.retain(|_| seen.finishes);
    let (blocked, taken) = (Blocked::all(&jobs, now, seen), Taken::of(&jobs));
    let (of_jobs, of_cluster): (Vec<_>, Vec<_>) =
        blocked.iter().filter(|blocked| blocked.may_be_finished).partition(|blocked| blocked.obstacle.is_of_the_job);
    let ends = due.iter().map(|ended| ended.end).chain(of_cluster.iter().map(|_| now - MAX_BACK_OFF));
    let brake = ends.min().and_then(|until| brake(&jobs, &taken, until, now, seen));
    let mut finished: Vec<_> = of_jobs.iter().map(|blocked| blocked.finish(seen)).collect();
    let mut lines = Vec::new();
    if let Some(brake) = &brake {
        lines.push(Step::Error(detail::brake(brake, due.len() + of_cluster.len(), namespace)));
        replaced.extend(due.into_iter().filter_map(|ended| ended.replace(Some(brake), seen)));
    } else {
        for ended in due {
            if taken.only_after(ended.found, ended.end) {
                replaced.extend(ended.replace(None, seen));
            } else {
                finished.push(ended.finish(now, namespace));
            }
        }
        let stays = |blocked: &&&Blocked| !taken.only_after(blocked.found, now - MAX_BACK_OFF);
        finished.extend(of_cluster.iter().filter(stays).map(|blocked| blocked.finish(seen)));
    }
    if finished.len() > MAX_FINISHES {
        lines.push(Step::Error(detail::too_many(finished.len())));
        finished.truncate(MAX_FINISHES);
    }
    let notified = blocked.iter().filter_map(|blocked| blocked.notify(brake.as_ref(), seen)).collect();
    lines.extend(detail::without_state(&unknown).map(Step::Warn));
    lines.extend(detail::runs_though_over(&runs).map(Step::Warn));
    Some([replaced, tokens, cancelled, finished, notified, lines].concat())
}

/// An attempt that ended in vain, of a job whose queue is open.
pub(super) struct Ended<'a> {
    pub(super) found: &'a Found<'a>,
    pub(super) finding: Finding,
    /// When it ended.
    pub(super) end: Timestamp,
    job: ScheduledJob,
    may_be_finished: bool,
    pause_is_over: bool,
    /// The agent had waited for longer than its token lived, and so failed.
    came_too_late: bool,
}

impl<'a> Ended<'a> {
    fn of(found: &'a Found<'a>, finding: Finding, end: Timestamp, now: Timestamp, seen: &Seen) -> Option<Self> {
        let Attempt { number, failed, first_created } = found.attempt;
        let came_too_late = finding == Finding::Failed && found.came_too_late();
        let job = ScheduledJob { time: Some(first_created.into()), ..found.scheduled_job()? };
        if !is_open(&job, seen) {
            return None;
        }
        let (count, pauses, max) = match finding {
            Finding::Complete => {
                let max = SignedDuration::from_secs(seen.stack.job_active_deadline_seconds.into());
                (number - failed, PAUSES_AFTER_COMPLETE, max)
            }
            _ => (failed + u32::from(!came_too_late), PAUSES_AFTER_FAILED, seen.pod_pending),
        };
        let pause = pauses[pauses.len().min(count.max(1) as usize) - 1];
        let enough = finding == Finding::Complete || count >= MIN_FAILED_ATTEMPTS && !came_too_late;
        let may_be_finished = enough && now.duration_since(first_created) >= max;
        if may_be_finished && found.is_deleted() {
            return None;
        }
        let pause_is_over = came_too_late || now.duration_since(end) >= SignedDuration::from_mins(pause);
        Some(Self { found, finding, end, job, may_be_finished, pause_is_over, came_too_late })
    }

    /// The next attempt, if the pause is over.
    fn replace(self, brake: Option<&Brake>, seen: &Seen) -> Option<Step> {
        let attempt = self.found.attempt;
        let next = if self.came_too_late { attempt } else { attempt.next(self.finding != Finding::Complete) };
        self.pause_is_over.then(|| Step::Replace {
            ended: target(self.found, self.finding),
            is_deleted: self.found.is_deleted(),
            notification: detail::notification(self.found, next, brake, seen),
            job: Box::new(self.job),
            next,
        })
    }

    fn finish(&self, now: Timestamp, namespace: &str) -> Step {
        let detail = detail::finish(self, now, namespace);
        Step::Finish { target: target(self.found, self.finding), detail }
    }
}

pub(super) fn target(found: &Found, finding: Finding) -> Target {
    Target { uuid: found.uuid, uid: found.uid.to_owned(), finding }
}

/// The job is still for this stack, and its queue is known and not paused. A job without a queue may be in any of them.
pub(super) fn is_open(job: &ScheduledJob, seen: &Seen) -> bool {
    let Ok(queue) = AgentQueryRules::parse(&job.agent_query_rules).matched(seen.stack) else { return false };
    let mut queues = seen.queues.iter().filter(|one| queue.is_none_or(|queue| queue == one.key)).peekable();
    queues.peek().is_some() && queues.all(|queue| queue.list.get().is_some_and(|list| !list.paused))
}
