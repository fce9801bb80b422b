//! What became of a job: the answer to Lambda, the log line and the metrics.
//!
//! The metrics are a line of JSON that CloudWatch Logs turns into metrics. Shape:
//! <https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>.
//! Each new value of a dimension is a metric that costs money, so only a queue of the stack is a value.

use std::{
    io::{Write, stdout},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Serialize, Serializer};
use tokio::time::Instant;

use crate::{
    buildkite::{job::ScheduledJob, rules::Mismatch},
    clock,
    pod::job,
    text::excerpt,
};

/// What became of a job, but for a failure: that is an error, so that Lambda retries it and then sends the event to the failure
/// queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is a Job now.
    Created,
    /// An earlier delivery of the same event created the Job.
    AlreadyExists,
    /// Nothing to do here.
    Ignored(Reason),
    /// The step or its pod definition must change first, and the build page says so.
    Refused(Failure),
}

/// Why a job is left alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// A step that no agent runs.
    #[error("a job of type \"{}\" needs no agent", excerpt(.0))]
    NoScript(String),
    /// A job for others.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// Only some pipelines may use its pod definition, and the event does not name the job's.
    #[error(
        "pod definition \"{definition}\" is for some pipelines only, and the event does not say which one the job is of"
    )]
    UnknownPipeline {
        /// The definition.
        definition: String,
    },
    /// It can never start here, and is not ours to finish.
    #[error(
        "{refused}; not finished, since Buildkite does not reserve it: another stack or an agent has it, or it is over"
    )]
    NotReserved {
        /// Why it cannot start.
        refused: String,
    },
}

/// A failure, as alarms and operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// One of the table in docs/troubleshooting.md; it never changes its spelling.
    pub error_type: &'static str,
    /// What failed and what to do.
    pub text: String,
}

/// The answer to Lambda; absent fields are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// `created`, `already-exists`, `ignored` or `refused`.
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

impl Outcome {
    fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::AlreadyExists => "already-exists",
            Self::Ignored(_) => "ignored",
            Self::Refused(_) => "refused",
        }
    }

    /// The job waits until the step or the stack changes: worth a warning and an alarm.
    fn is_unserved(&self) -> bool {
        matches!(self, Self::Ignored(Reason::Mismatch(Mismatch::UnservedTag { .. }) | Reason::UnknownPipeline { .. }))
    }
}

impl Report<'_> {
    /// Writes the log line and the metrics.
    pub fn write(&self, result: Result<&Outcome, &Failure>) {
        let now = clock::wall();
        let age = self.job.time.and_then(|time| age(time, now));
        self.log(result, age);
        write_metrics(&metrics(result, age), self.queue, self.function_name, now);
    }

    fn log(&self, result: Result<&Outcome, &Failure>, age: Option<Duration>) {
        macro_rules! line {
            ($level:ident, $message:literal, $($result:tt)*) => {
                tracing::$level!(
                    job = %self.job.uuid,
                    pipeline = self.job.pipeline.as_deref().map(excerpt).as_deref(),
                    build = self.job.build_number,
                    queue = self.queue,
                    definition = &*excerpt(self.definition),
                    age = age.map(|age| age.as_secs()),
                    milliseconds = self.began.elapsed().as_secs_f64() * 1_000.0,
                    $($result)*,
                    $message
                )
            };
        }
        match result {
            Ok(outcome @ Outcome::Ignored(reason)) if outcome.is_unserved() => {
                line!(warn, "event handled", outcome = outcome.name(), %reason);
            }
            Ok(outcome @ Outcome::Ignored(reason)) => line!(info, "event handled", outcome = outcome.name(), %reason),
            Ok(outcome @ Outcome::Refused(Failure { error_type, text })) => {
                line!(warn, "event handled", outcome = outcome.name(), error_type, reason = text);
            }
            Ok(outcome) => line!(info, "event handled", outcome = outcome.name()),
            Err(Failure { error_type, text }) => line!(error, "event failed", error_type, error = text),
        }
    }
}

/// Logs and counts an event whose job cannot be read.
pub fn event_failed(Failure { error_type, text }: &Failure, function_name: &str) {
    tracing::error!(error_type, error = text, "event failed");
    write_metrics(&[Metric::one("JobsFailed")], None, function_name, clock::wall());
}

/// Logs and counts that Buildkite refuses the Stacks API to this stack.
pub fn stacks_api_unavailable(reason: &str, function_name: &str) {
    tracing::warn!(reason, "no build page says why a job cannot start: the Stacks API is not available");
    let metric = Metric { dimensions: BY_FUNCTION, ..Metric::one("StacksApiUnavailable") };
    write_metrics(&[metric], None, function_name, clock::wall());
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

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Metric {
    name: &'static str,
    unit: &'static str,
    #[serde(skip)]
    value: u128,
    #[serde(skip)]
    dimensions: &'static [&'static str],
}

const BY_QUEUE: &[&str] = &["FunctionName", "Queue"];
const BY_FUNCTION: &[&str] = &["FunctionName"];

impl Metric {
    const fn one(name: &'static str) -> Self {
        Self { name, unit: "Count", value: 1, dimensions: BY_QUEUE }
    }
}

fn metrics(result: Result<&Outcome, &Failure>, age: Option<Duration>) -> Vec<Metric> {
    let count = match result {
        Ok(Outcome::Created) => "JobsCreated",
        Ok(Outcome::AlreadyExists) => "JobsExisting",
        Ok(Outcome::Ignored(_)) => "JobsIgnored",
        Ok(Outcome::Refused(_)) => "JobsRefused",
        Err(_) => "JobsFailed",
    };
    let mut metrics = vec![Metric::one(count)];
    if let (Ok(Outcome::Created), Some(age)) = (result, age) {
        let value = age.as_millis();
        metrics.push(Metric { name: "TimeToJob", unit: "Milliseconds", value, dimensions: BY_QUEUE });
    }
    if result.is_ok_and(Outcome::is_unserved) {
        metrics.push(Metric { dimensions: BY_FUNCTION, ..Metric::one("JobsUnserved") });
    }
    metrics
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Line<'a> {
    #[serde(rename = "_aws")]
    aws: Metadata<'a>,
    function_name: &'a str,
    queue: &'a str,
    #[serde(flatten, serialize_with = "values")]
    values: &'a [Metric],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata<'a> {
    timestamp: u128,
    cloud_watch_metrics: Vec<Directive<'a>>,
}

/// Metrics of the same dimensions.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Directive<'a> {
    namespace: &'static str,
    dimensions: [&'static [&'static str]; 1],
    metrics: &'a [Metric],
}

fn values<S: Serializer>(metrics: &&[Metric], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(metrics.iter().map(|metric| (metric.name, metric.value)))
}

fn line(metrics: &[Metric], queue: Option<&str>, function_name: &str, now: SystemTime) -> Vec<u8> {
    let directives = metrics.chunk_by(|one, other| one.dimensions == other.dimensions).map(|metrics| Directive {
        namespace: "AgentScheduler",
        dimensions: [metrics[0].dimensions],
        metrics,
    });
    let timestamp = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let aws = Metadata { timestamp, cloud_watch_metrics: directives.collect() };
    let line = Line { aws, function_name, queue: queue.unwrap_or("none"), values: metrics };
    // Room for any line with names of usual length.
    let mut json = Vec::with_capacity(512);
    serde_json::to_writer(&mut json, &line).expect("numbers and texts are JSON");
    json.push(b'\n');
    json
}

/// A line that cannot be written is no reason to fail, as with the log.
fn write_metrics(metrics: &[Metric], queue: Option<&str>, function_name: &str, now: SystemTime) {
    let _ = stdout().write_all(&line(metrics, queue, function_name, now));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-01-15T10:00:05.081Z
    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(1_768_471_205_081)
    }

    fn text(result: Result<&Outcome, &Failure>, time: Option<SystemTime>, queue: Option<&str>) -> String {
        let metrics = metrics(result, time.and_then(|time| age(time, now())));
        String::from_utf8(line(&metrics, queue, "agent-scheduler", now())).unwrap()
    }

    #[test]
    fn a_line_is_as_cloudwatch_specifies_it() {
        let expected = concat!(
            r#"{"_aws":{"Timestamp":1768471205081,"CloudWatchMetrics":[{"Namespace":"AgentScheduler","#,
            r#""Dimensions":[["FunctionName","Queue"]],"#,
            r#""Metrics":[{"Name":"JobsCreated","Unit":"Count"},{"Name":"TimeToJob","Unit":"Milliseconds"}]}]},"#,
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
}
