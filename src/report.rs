//! What became of a job, and of a sweep: the answer to Lambda, the log line and the metrics.

mod metrics;
mod outcome;
mod sweep;

use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::time::Instant;

use self::metrics::{BY_BOTH, BY_QUEUE, Metric};
pub use self::{
    outcome::{Deferral, Failure, Outcome, Reason},
    sweep::{QueueReport, Sweep, job_cancelled, job_finished},
};
use crate::{
    buildkite::job::ScheduledJob,
    clock,
    pod::{attempt::Attempt, job},
    text::excerpt,
};

/// Why a job is to get a Kubernetes Job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// An event announces it.
    Event,
    /// Its event comes back from the failure queue.
    Redrive,
    /// It waits at Buildkite, and has no Job.
    Repair,
    /// Its last Job ended, and no agent had taken it.
    Replacement(Attempt),
}

/// The answer to Lambda; absent fields are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// `created`, `already-exists`, `ignored`, `refused` or `deferred`.
    pub outcome: &'static str,
    /// The name of the Kubernetes Job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The namespace of that Job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Why there is no Job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The report on one job.
pub struct Report<'a> {
    /// The job.
    pub job: &'a ScheduledJob,
    /// Why it is to get a Job.
    pub occasion: Occasion,
    /// The stack's queue that the job is for.
    pub queue: Option<&'a str>,
    /// The name of its pod definition.
    pub definition: &'a str,
    /// When the work on it began.
    pub began: Instant,
    /// A dimension of the metrics.
    pub function_name: &'a str,
}

impl Answer {
    /// To an event or a job that is left alone.
    pub fn ignored(reason: &impl ToString) -> Self {
        Self { outcome: "ignored", reason: Some(reason.to_string()), ..Self::default() }
    }

    /// To a job.
    pub fn of(outcome: &Outcome, job: &ScheduledJob, namespace: &str) -> Self {
        match outcome {
            Outcome::Ignored(reason) => Self::ignored(reason),
            Outcome::Deferred(reason) => {
                Self { outcome: outcome.name(), reason: Some(reason.to_string()), ..Self::default() }
            }
            Outcome::Refused(Failure { text, .. }) => {
                Self { outcome: outcome.name(), reason: Some(text.clone()), ..Self::default() }
            }
            Outcome::Created | Outcome::AlreadyExists => Self {
                outcome: outcome.name(),
                job: Some(job::name(job.uuid)),
                namespace: Some(namespace.to_owned()),
                reason: None,
            },
        }
    }
}

impl Occasion {
    /// For a Job that is not the first one.
    pub fn attempt(self) -> Option<Attempt> {
        match self {
            Self::Replacement(attempt) => Some(attempt),
            _ => None,
        }
    }

    /// The next sweep comes in a minute, and finds what this one leaves.
    pub fn is_of_sweep(self) -> bool {
        matches!(self, Self::Repair | Self::Replacement(_))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Event | Self::Redrive => "event",
            Self::Repair => "repair",
            Self::Replacement(_) => "replacement",
        }
    }
}

impl Report<'_> {
    /// Writes the log line and the metrics.
    pub fn write(&self, result: Result<&Outcome, &Failure>) {
        let now = clock::wall();
        let age = self.job.time.and_then(|time| age(time, now));
        self.log(result, age);
        metrics::write(&metrics(result, self.occasion, age), self.queue, self.function_name, now);
    }

    fn log(&self, result: Result<&Outcome, &Failure>, age: Option<Duration>) {
        macro_rules! line {
            ($level:ident, $ending:literal, $($result:tt)*) => {
                tracing::$level!(
                    job = %self.job.uuid,
                    pipeline = self.job.pipeline.as_deref().map(excerpt).as_deref(),
                    build = self.job.build_number,
                    queue = self.queue,
                    definition = &*excerpt(self.definition),
                    age = age.map(|age| age.as_secs()),
                    attempt = self.occasion.attempt().map(|attempt| attempt.number),
                    milliseconds = self.began.elapsed().as_secs_f64() * 1_000.0,
                    $($result)*,
                    concat!("{} ", $ending),
                    self.occasion.name(),
                )
            };
        }
        match result {
            Ok(outcome @ Outcome::Ignored(reason)) if outcome.is_unserved() => {
                line!(warn, "handled", outcome = outcome.name(), %reason);
            }
            Ok(outcome @ Outcome::Ignored(reason)) => line!(info, "handled", outcome = outcome.name(), %reason),
            Ok(outcome @ Outcome::Deferred(reason)) => line!(info, "handled", outcome = outcome.name(), %reason),
            Ok(outcome @ Outcome::Refused(Failure { error_type, text })) => {
                line!(warn, "handled", outcome = outcome.name(), error_type, reason = text);
            }
            Ok(outcome) => line!(info, "handled", outcome = outcome.name()),
            Err(Failure { error_type, text }) => line!(error, "failed", error_type, error = text),
        }
    }
}

/// Logs and counts an event whose job cannot be read.
pub fn event_failed(Failure { error_type, text }: &Failure, function_name: &str) {
    tracing::error!(error_type, error = text, "event failed");
    metrics::write(&[Metric::one("JobsFailed")], None, function_name, clock::wall());
}

const STACKS_API_UNAVAILABLE: Metric = Metric::of_function("StacksApiUnavailable", 1);

/// Logs and counts that Buildkite refuses the Stacks API to this stack.
pub fn stacks_api_unavailable(reason: &str, function_name: &str) {
    tracing::warn!(reason, "no build page says why a job cannot start: the Stacks API is not available");
    metrics::write(&[STACKS_API_UNAVAILABLE], None, function_name, clock::wall());
}

/// Logs an event that announces something other than a job.
pub fn event_ignored(reason: &str) {
    tracing::info!(outcome = "ignored", reason, "event handled");
}

/// The age of an event. An event may wait in the failure queue for 14 days; an older one is a sample, and its age says nothing.
fn age(time: SystemTime, now: SystemTime) -> Option<Duration> {
    const MAX: Duration = Duration::from_hours(14 * 24);
    Some(now.duration_since(time).unwrap_or_default()).filter(|age| *age <= MAX)
}

/// What a sweep finds is found by each sweep, so only what it changes counts.
fn metrics(result: Result<&Outcome, &Failure>, occasion: Occasion, age: Option<Duration>) -> Vec<Metric> {
    let of_event = !occasion.is_of_sweep();
    let count = match (result, occasion) {
        (Ok(Outcome::Created), Occasion::Repair) => Metric { dimensions: BY_BOTH, ..Metric::one("JobsRepaired") },
        (Ok(Outcome::Created), Occasion::Replacement(_)) => Metric::of_function("JobsReplaced", 1),
        (Ok(Outcome::AlreadyExists | Outcome::Ignored(_) | Outcome::Deferred(_)), _) if !of_event => return Vec::new(),
        (Ok(Outcome::Created), _) => Metric { dimensions: BY_BOTH, ..Metric::one("JobsCreated") },
        (Ok(Outcome::AlreadyExists), _) => Metric::one("JobsExisting"),
        (Ok(Outcome::Ignored(_)), _) => Metric::one("JobsIgnored"),
        (Ok(Outcome::Deferred(_)), _) => Metric::one("JobsDeferred"),
        (Ok(Outcome::Refused(_)), _) => Metric::one("JobsRefused"),
        (Err(_), _) => Metric::one("JobsFailed"),
    };
    let mut metrics = vec![count];
    if let (Ok(Outcome::Created), Some(age), true) = (result, age, of_event) {
        let value = age.as_millis();
        metrics.push(Metric { name: "TimeToJob", unit: "Milliseconds", value, dimensions: BY_QUEUE });
    }
    if result.is_ok_and(Outcome::is_unserved) {
        metrics.push(Metric::of_function("JobsUnserved", 1));
    }
    metrics
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::UNIX_EPOCH};

    use k8s_openapi::jiff::Timestamp;
    use serde_json::Value;

    use super::{metrics::line, *};
    use crate::buildkite::rules::Mismatch;

    /// 2026-01-15T10:00:05.081Z
    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(1_768_471_205_081)
    }

    fn text(result: Result<&Outcome, &Failure>, time: Option<SystemTime>, queue: Option<&str>) -> String {
        let metrics = metrics(result, Occasion::Event, time.and_then(|time| age(time, now())));
        String::from_utf8(line(&metrics, queue, "agent-scheduler", now())).unwrap()
    }

    #[test]
    fn a_line_is_as_cloudwatch_specifies_it() {
        let expected = concat!(
            r#"{"_aws":{"Timestamp":1768471205081,"CloudWatchMetrics":[{"Namespace":"AgentScheduler","#,
            r#""Dimensions":[["FunctionName","Queue"],["FunctionName"]],"Metrics":[{"Name":"JobsCreated","Unit":"Count"}]},"#,
            r#"{"Namespace":"AgentScheduler","#,
            r#""Dimensions":[["FunctionName","Queue"]],"Metrics":[{"Name":"TimeToJob","Unit":"Milliseconds"}]}]},"#,
            r#""FunctionName":"agent-scheduler","Queue":"kubernetes","JobsCreated":1,"TimeToJob":81}"#,
            "\n"
        );
        let announced = now() - Duration::from_millis(81);
        assert_eq!(text(Ok(&Outcome::Created), Some(announced), Some("kubernetes")), expected);
    }

    #[test]
    fn a_tag_that_no_agent_has_is_also_counted_for_all_queues() {
        let unserved = Outcome::Ignored(Mismatch::UnservedTag { tag: "os=plan9".to_owned() }.into());
        let expected = concat!(
            r#"{"_aws":{"Timestamp":1768471205081,"CloudWatchMetrics":[{"Namespace":"AgentScheduler","#,
            r#""Dimensions":[["FunctionName","Queue"]],"Metrics":[{"Name":"JobsIgnored","Unit":"Count"}]},"#,
            r#"{"Namespace":"AgentScheduler","#,
            r#""Dimensions":[["FunctionName"]],"Metrics":[{"Name":"JobsUnserved","Unit":"Count"}]}]},"#,
            r#""FunctionName":"agent-scheduler","Queue":"gpu","JobsIgnored":1,"JobsUnserved":1}"#,
            "\n"
        );
        assert_eq!(text(Ok(&unserved), None, Some("gpu")), expected);
    }

    #[test]
    fn each_outcome_has_its_own_metric() {
        let ignored = Outcome::Ignored(Reason::NoScript("manual".to_owned()));
        let failure = Failure { error_type: "Timeout", text: String::new() };
        let ahead = Some(now() + Duration::from_secs(3));
        let sample = Some(now() - Duration::from_hours(15 * 24));
        let cases = [
            (Ok(&Outcome::Created), None, r#""JobsCreated":1}"#),
            (Ok(&Outcome::Created), ahead, r#""JobsCreated":1,"TimeToJob":0}"#),
            (Ok(&Outcome::Created), sample, r#""JobsCreated":1}"#),
            (Ok(&Outcome::AlreadyExists), None, r#""JobsExisting":1}"#),
            (Ok(&ignored), None, r#""JobsIgnored":1}"#),
            (Ok(&Outcome::Refused(failure.clone())), None, r#""JobsRefused":1}"#),
            (Err(&failure), None, r#""JobsFailed":1}"#),
        ];
        for (result, time, end) in cases {
            let line = text(result, time, None);
            assert!(line.ends_with(&format!("\"Queue\":\"none\",{end}\n")), "{line}");
        }
    }

    #[test]
    fn the_dashboard_shows_every_metric() {
        let failure = Failure { error_type: "Timeout", text: String::new() };
        let unserved = Outcome::Ignored(Mismatch::UnservedTag { tag: "os=plan9".to_owned() }.into());
        let outcomes = [Outcome::Created, Outcome::AlreadyExists, unserved, Outcome::Refused(failure.clone())];
        let first = Timestamp::UNIX_EPOCH;
        let next = Attempt { number: 2, failed: 1, first_created: first };
        let occasions = [Occasion::Event, Occasion::Repair, Occasion::Replacement(next)];
        let mut all = vec![STACKS_API_UNAVAILABLE, sweep::SKIPPED];
        for occasion in occasions {
            for result in outcomes.iter().map(Ok).chain([Err(&failure)]) {
                all.extend(metrics(result, occasion, Some(Duration::ZERO)));
            }
        }
        let queues = vec![QueueReport { queue: "kubernetes".to_owned(), waiting: 1, oldest: Some(1) }];
        let done = Sweep { queues, cancelled: 1, finished: 1, ..Sweep::default() };
        let failed = Sweep { failures: vec![String::new()], ..Sweep::default() };
        for sweep in [&done, &failed] {
            all.extend(sweep.metrics().into_iter().flat_map(|(_, metrics)| metrics));
        }
        let names: BTreeSet<_> = all.iter().map(|metric| metric.name).collect();

        let template: Value = serde_saphyr::from_str(include_str!("../template.yml")).unwrap();
        let body = template["Resources"]["Dashboard"]["Properties"]["DashboardBody"][0].as_str().unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        let metrics = |widget: &Value| widget["properties"]["metrics"].as_array().cloned().unwrap_or_default();
        let rows: Vec<_> = body["widgets"].as_array().unwrap().iter().flat_map(metrics).collect();
        let shown = rows.iter().filter_map(|row| match row[0]["expression"].as_str() {
            Some(search) => search.split("MetricName=\"").nth(1)?.split('"').next(),
            None => row[1].as_str().filter(|_| row[0] == "AgentScheduler"),
        });
        assert_eq!(shown.collect::<BTreeSet<_>>(), names);
    }
}
