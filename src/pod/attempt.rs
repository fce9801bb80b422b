//! The Jobs of one Buildkite job, one after the other: the sweep replaces one that ended before an agent took the job. What must be
//! remembered of the earlier ones stands on the Job.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

/// The label that counts the Jobs for one Buildkite job. The first Job goes without it.
pub const ATTEMPT_LABEL: &str = "agent-scheduler.buildkite.com/attempt";

/// The annotation that counts those of the earlier attempts that failed; the others completed.
pub const FAILED_ATTEMPTS_ANNOTATION: &str = "agent-scheduler.buildkite.com/failed-attempts";

/// The annotation that says when the first Job was created.
pub const FIRST_CREATED_ANNOTATION: &str = "agent-scheduler.buildkite.com/first-created";

/// The annotation that holds the Buildkite job as JSON, of which the next attempt is built.
pub const JOB_ANNOTATION: &str = "agent-scheduler.buildkite.com/job";

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

#[cfg(test)]
mod tests {
    use super::*;

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
