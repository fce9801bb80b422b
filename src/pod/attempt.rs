//! The Jobs of one Buildkite job, one after the other: the sweep replaces one that ended before an agent took the job. What must be
//! remembered of the earlier ones stands on the Job.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use crate::buildkite::job::ScheduledJob;

/// The label that counts the Jobs for one Buildkite job. The first Job goes without it.
pub const ATTEMPT_LABEL: &str = "agent-scheduler.buildkite.com/attempt";

/// The annotation that counts those of the earlier attempts that failed; the others completed.
pub const FAILED_ATTEMPTS_ANNOTATION: &str = "agent-scheduler.buildkite.com/failed-attempts";

/// The annotation that says when the first Job was created.
pub const FIRST_CREATED_ANNOTATION: &str = "agent-scheduler.buildkite.com/first-created";

/// The annotation that holds the Buildkite job as JSON, of which the next attempt is built.
pub const JOB_ANNOTATION: &str = "agent-scheduler.buildkite.com/job";

/// A larger job is left out of its Job, which then is not replaced: most of it is text that no rule needs, such as its branch.
const MAX_JOB_BYTES: usize = 16 * 1024;

/// One of the Jobs for a Buildkite job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// 1 for the first one.
    pub number: u32,
    /// How many of the earlier ones failed, and did not complete.
    pub failed: u32,
    /// When the first one was created, by the API server's clock.
    pub first_created: Timestamp,
}

impl Attempt {
    /// Which one a Job is, by its labels, its annotations and the time of its creation.
    pub fn of(labels: &BTreeMap<String, String>, annotations: &BTreeMap<String, String>, created: Timestamp) -> Self {
        let count = |text: Option<&String>| text.and_then(|text| text.parse().ok());
        let number = count(labels.get(ATTEMPT_LABEL)).unwrap_or(1).max(1);
        let failed = count(annotations.get(FAILED_ATTEMPTS_ANNOTATION)).unwrap_or(0).min(number - 1);
        let first_created = annotations.get(FIRST_CREATED_ANNOTATION).and_then(|time| time.parse().ok());
        Self { number, failed, first_created: first_created.unwrap_or(created) }
    }

    /// The one after this, which failed or completed.
    #[must_use]
    pub fn next(self, failed: bool) -> Self {
        Self { number: self.number.saturating_add(1), failed: self.failed + u32::from(failed), ..self }
    }
}

/// The labels of a Job, so that [`Attempt::of`] reads its attempt.
pub(super) fn labels(attempt: Option<Attempt>) -> Vec<(&'static str, String)> {
    attempt.map(|attempt| (ATTEMPT_LABEL, attempt.number.to_string())).into_iter().collect()
}

/// The annotations of a Job, so that the next attempt can be built.
pub(super) fn annotations(job: &ScheduledJob, attempt: Option<Attempt>) -> Vec<(&'static str, String)> {
    let job = serde_json::to_string(job).ok().filter(|job| job.len() <= MAX_JOB_BYTES);
    let mut annotations: Vec<_> = job.map(|job| (JOB_ANNOTATION, job)).into_iter().collect();
    if let Some(Attempt { failed, first_created, .. }) = attempt {
        annotations.push((FAILED_ATTEMPTS_ANNOTATION, failed.to_string()));
        annotations.push((FIRST_CREATED_ANNOTATION, first_created.to_string()));
    }
    annotations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buildkite::event::fixtures::scheduled;

    fn strings(strings: &[(&str, &str)]) -> BTreeMap<String, String> {
        strings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_job_without_marks_is_the_first_attempt() {
        let created: Timestamp = "2026-01-15T10:00:05Z".parse().unwrap();
        let first = Attempt { number: 1, failed: 0, first_created: created };
        assert_eq!(Attempt::of(&strings(&[]), &strings(&[]), created), first);
        let labels = strings(&[(ATTEMPT_LABEL, "0")]);
        let annotations = strings(&[(FAILED_ATTEMPTS_ANNOTATION, "7"), (FIRST_CREATED_ANNOTATION, "today")]);
        assert_eq!(Attempt::of(&labels, &annotations, created), first, "no sense in what others wrote");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let read = |attempt, created| {
            let owned = |strings: Vec<(&str, String)>| {
                strings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
            };
            Attempt::of(&owned(labels(attempt)), &owned(annotations(&scheduled(), attempt)), created)
        };
        let (first, later): (Timestamp, _) =
            ("2026-01-15T10:00:05Z".parse().unwrap(), "2026-01-15T11:00:00Z".parse().unwrap());
        let attempt = Attempt { number: 3, failed: 1, first_created: first };
        assert_eq!(read(Some(attempt), later), attempt);
        assert_eq!(read(None, later), Attempt { number: 1, failed: 0, first_created: later });
    }

    #[test]
    fn the_job_is_read_again_unless_it_is_huge() {
        let [(JOB_ANNOTATION, text)] = &annotations(&scheduled(), None)[..] else { panic!() };
        let again: ScheduledJob = serde_json::from_str(text).unwrap();
        assert_eq!(again, ScheduledJob { time: None, ..scheduled() });
        let huge = ScheduledJob { branch: Some("é".repeat(MAX_JOB_BYTES)), ..scheduled() };
        assert_eq!(annotations(&huge, None), []);
    }

    #[test]
    fn the_next_one_counts_and_remembers() {
        let created: Timestamp = "2026-01-15T10:00:05Z".parse().unwrap();
        let labels = strings(&[(ATTEMPT_LABEL, "3")]);
        let annotations =
            strings(&[(FAILED_ATTEMPTS_ANNOTATION, "1"), (FIRST_CREATED_ANNOTATION, "2026-01-15T09:00:00Z")]);
        let third = Attempt::of(&labels, &annotations, created);
        assert_eq!(
            (third.number, third.failed, third.first_created.to_string()),
            (3, 1, "2026-01-15T09:00:00Z".to_owned())
        );
        assert_eq!(third.next(true), Attempt { number: 4, failed: 2, ..third });
        assert_eq!(third.next(false), Attempt { number: 4, ..third });
    }
}
