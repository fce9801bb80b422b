//! What a sweep does about the obstacles of its Jobs: a line on the build page when one has lasted, and then the end of the job.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::{
    brake::Brake,
    detail, explanation,
    finding::{Finding, Found},
    obstacle::Obstacle,
    plan::{MIN_AGE, Step, is_open, target},
    seen::Seen,
};
/// How often sweeps are due.
const PERIOD: SignedDuration = SignedDuration::from_secs(60);

/// A Job with something in its way, of a job whose queue is open.
pub(super) struct Blocked<'a> {
    pub(super) found: &'a Found<'a>,
    pub(super) obstacle: Obstacle<'a>,
    pub(super) may_be_finished: bool,
}

impl<'a> Blocked<'a> {
    /// Those whose obstacle has lasted.
    pub(super) fn all(jobs: &'a [Found<'a>], now: Timestamp, seen: &Seen) -> Vec<Self> {
        jobs.iter().filter_map(|found| Self::of(found, now, seen)).collect()
    }

    fn of(found: &'a Found<'a>, now: Timestamp, seen: &Seen) -> Option<Self> {
        let obstacle = found.obstacle.filter(|obstacle| obstacle.notify_at <= now)?;
        let is_open = found.scheduled_job().is_some_and(|job| is_open(&job, seen));
        let is_old_enough = now.duration_since(found.created) >= MIN_AGE;
        let may_be_finished = obstacle.is_due(now) && is_old_enough && seen.finishes;
        is_open.then_some(Self { found, obstacle, may_be_finished })
    }

    pub(super) fn finish(&self, seen: &Seen) -> Step {
        let detail = explanation::finish(self.found, &self.obstacle, seen);
        Step::Finish { target: target(self.found, Finding::Blocked(self.obstacle.kind)), detail }
    }

    /// A line when the obstacle has lasted, and one when its job would be finished, but for the brake or the settings.
    pub(super) fn notify(&self, brake: Option<&Brake>, seen: &Seen) -> Option<Step> {
        let due = seen.due?;
        let is_of_this_sweep = |time: &Timestamp| *time <= due && due.duration_since(*time) < PERIOD;
        let brake = brake.filter(|_| !self.obstacle.is_of_the_job);
        let beginning = if self.may_be_finished && brake.is_none() {
            return None;
        } else if self.obstacle.finish_at.as_ref().is_some_and(is_of_this_sweep) && (brake.is_some() || !seen.finishes)
        {
            brake.map_or_else(|| "Not finished, since SweepFinishes is false: ".to_owned(), detail::on_brake)
        } else if is_of_this_sweep(&self.obstacle.notify_at) {
            String::new()
        } else {
            return None;
        };
        let text = beginning + &explanation::cause(self.found, &self.obstacle, seen);
        let more = explanation::command(self.found, &self.obstacle, seen);
        Some(Step::Notify { uuid: self.found.uuid, text, more })
    }
}
