//! The part of Buildkite's `Job Scheduled` event that decides what to run.
//!
//! Shape: <https://buildkite.com/docs/pipelines/integrations/observability/amazon-eventbridge#events-job-scheduled>.
//! Fields that this crate does not read are left out, so Buildkite can add more; those that it does not need may be null.

use std::time::SystemTime;

use aws_smithy_types::{DateTime, date_time::Format};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::excerpt::excerpt;

/// What one delivery from the event bus says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A job waits for an agent.
    JobScheduled(Box<ScheduledJob>),
    /// Anything else that Buildkite announces; the bus carries all of it.
    Other {
        /// The envelope's `detail-type`.
        detail_type: String,
    },
}

/// One job that is waiting for an agent.
///
/// Its `state` is not here: the event says `assigned`, which is none of the lifecycle's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledJob {
    /// When it was announced, to the second: the envelope's `time`.
    pub time: Option<SystemTime>,
    /// Identifies the job to `buildkite-agent start --acquire-job`.
    pub uuid: Uuid,
    /// Only a `script` needs an agent; `manual`, `waiter` and `trigger` do not.
    pub kind: String,
    /// The step's `agents:`, each as `key=value`, such as `queue=default`.
    pub agent_query_rules: Vec<String>,
    /// The step's `key:`.
    pub step_key: Option<String>,
    /// Counts per pipeline.
    pub build_number: Option<u64>,
    /// What is built; may be `HEAD`.
    pub commit: Option<String>,
    /// Where it is built from.
    pub branch: Option<String>,
    /// The pipeline's name in its URL.
    pub pipeline: Option<String>,
    /// The organization's name in its URL.
    pub organization: Option<String>,
}

/// Why a delivery cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InvalidEvent {
    /// No envelope: whoever invoked the function is not EventBridge.
    #[error("not an EventBridge event; expected the envelope of the partner event bus, with detail-type and detail")]
    Envelope(#[source] Malformed),
    /// A `Job Scheduled` event without what it must have.
    #[error("cannot read the Job Scheduled event")]
    Detail(#[source] Malformed),
    /// Records of some other service than SQS.
    #[error(
        "records of {}, which the function does not take; expected an event of the partner event bus, or messages \
         of the failure queue (aws:sqs)",
        excerpt(.event_source)
    )]
    OtherRecords {
        /// What the first of them says that it comes from.
        event_source: String,
    },
    /// Records of SQS without what each of them must have.
    #[error("cannot read the batch of SQS messages")]
    Batch(#[source] Malformed),
    /// A message without an event in it. Its text is nobody's business, so there is no cause that would quote it.
    #[error(
        "the message holds no event; expected what Lambda sends of a failed invocation, with requestPayload, or the event that \
         EventBridge could not deliver, with detail-type and detail"
    )]
    Message,
}

/// A JSON document that is not what it should be: which field, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{}{}", .field.as_ref().map(|field| format!("{}: ", excerpt(field))).unwrap_or_default(), excerpt(&.problem.to_string()))]
pub struct Malformed {
    field: Option<String>,
    problem: serde_json::Error,
}

/// The `detail-type` that is ours.
const JOB_SCHEDULED: &str = "Job Scheduled";

#[derive(Deserialize)]
struct Envelope<'a, Detail> {
    #[serde(rename = "detail-type")]
    detail_type: String,
    /// Anything: one that cannot be read is no reason to fail.
    #[serde(borrow)]
    time: Option<&'a RawValue>,
    detail: Detail,
}

#[derive(Deserialize)]
struct Detail {
    job: Job,
    #[serde(default, deserialize_with = "null_as_default")]
    build: Build,
    #[serde(default, deserialize_with = "null_as_default")]
    pipeline: Slug,
    #[serde(default, deserialize_with = "null_as_default")]
    organization: Slug,
}

#[derive(Deserialize)]
struct Job {
    uuid: Uuid,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    agent_query_rules: Vec<String>,
    step_key: Option<String>,
}

#[derive(Default, Deserialize)]
struct Build {
    number: Option<u64>,
    commit: Option<String>,
    branch: Option<String>,
}

#[derive(Default, Deserialize)]
struct Slug {
    slug: Option<String>,
}

fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(value: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

impl Event {
    /// Reads a delivery.
    pub fn parse(json: &str) -> Result<Self, InvalidEvent> {
        // The event that this function is there for is read in one pass.
        if let Ok(Envelope::<Detail> { detail_type, time, detail }) = serde_json::from_str(json)
            && detail_type == JOB_SCHEDULED
        {
            return Ok(Self::job_scheduled(detail, time));
        }
        // Any other: the envelope first, and the detail only of the type that is ours, so that no change in another one can
        // make us fail.
        let envelope: Envelope<&RawValue> = parse(json, "").map_err(InvalidEvent::Envelope)?;
        if envelope.detail_type != JOB_SCHEDULED {
            return Ok(Self::Other { detail_type: envelope.detail_type });
        }
        let detail: Detail = parse(envelope.detail.get(), "detail").map_err(InvalidEvent::Detail)?;
        Ok(Self::job_scheduled(detail, envelope.time))
    }

    fn job_scheduled(Detail { job, build, pipeline, organization }: Detail, time: Option<&RawValue>) -> Self {
        Self::JobScheduled(Box::new(ScheduledJob {
            time: time.and_then(read_time),
            uuid: job.uuid,
            kind: job.kind.unwrap_or_else(|| "script".to_owned()),
            agent_query_rules: job.agent_query_rules,
            step_key: job.step_key,
            build_number: build.number,
            commit: build.commit,
            branch: build.branch,
            pipeline: pipeline.slug,
            organization: organization.slug,
        }))
    }
}

/// RFC 3339, as EventBridge writes it.
fn read_time(json: &RawValue) -> Option<SystemTime> {
    let text = serde_json::from_str(json.get()).ok()?;
    DateTime::from_str(text, Format::DateTimeWithOffset).ok()?.try_into().ok()
}

/// Parses, and parses again with a record of the path when that fails: the record costs, and good events need none.
pub(crate) fn parse<'a, T: Deserialize<'a>>(json: &'a str, root: &str) -> Result<T, Malformed> {
    serde_json::from_str(json).map_err(|error| {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let path =
            serde_path_to_error::deserialize::<_, T>(&mut deserializer).err().map(|error| error.path().to_string());
        let parts = [root, path.as_deref().unwrap_or_default()].into_iter().filter(|part| !matches!(*part, "" | "."));
        let field = parts.collect::<Vec<_>>().join(".");
        Malformed { field: Some(field).filter(|field| !field.is_empty()), problem: error }
    })
}

#[cfg(test)]
mod tests {
    use std::{
        error::Error,
        time::{Duration, UNIX_EPOCH},
    };

    use serde_json::{Value, json};

    use super::*;

    const TODAY: &str = include_str!("../events/job-scheduled.json");
    const OF_2019: &str = include_str!("../events/job-scheduled-2019.json");

    fn job(json: &str) -> ScheduledJob {
        match Event::parse(json) {
            Ok(Event::JobScheduled(job)) => *job,
            other => panic!("no job in {other:?}"),
        }
    }

    /// The published event with `change` made to its `detail`.
    fn changed(change: impl FnOnce(&mut Value)) -> String {
        let mut event: Value = serde_json::from_str(TODAY).unwrap();
        change(&mut event["detail"]);
        event.to_string()
    }

    fn problem(json: &str) -> String {
        let error = Event::parse(json).unwrap_err();
        format!("{error}: {}", error.source().unwrap())
    }

    #[test]
    fn both_published_shapes_are_read() {
        let time = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
        let expected = ScheduledJob {
            time: time(1_768_471_205),
            uuid: "11111111-2222-4333-8444-555555555501".parse().unwrap(),
            kind: "script".to_owned(),
            agent_query_rules: vec!["queue=default".to_owned()],
            step_key: Some("unit_tests".to_owned()),
            build_number: Some(1234),
            commit: Some("0123456789abcdef0123456789abcdef01234567".to_owned()),
            branch: Some("main".to_owned()),
            pipeline: Some("example-pipeline".to_owned()),
            organization: Some("example-org".to_owned()),
        };
        assert_eq!(job(TODAY), expected);
        assert_eq!(job(OF_2019), ScheduledJob { time: time(1_565_503_276), ..expected });
    }

    #[test]
    fn a_job_is_known_by_its_uuid_alone() {
        let least =
            r#"{"detail-type":"Job Scheduled","detail":{"job":{"uuid":"11111111-2222-4333-8444-555555555501"}}}"#;
        let nulls = r#"{"detail-type":"Job Scheduled","detail":{"job":{"uuid":"11111111-2222-4333-8444-555555555501",
            "type":null,"agent_query_rules":null,"step_key":null},"build":null,"pipeline":{"slug":null},"organization":null}}"#;
        assert_eq!(job(least), job(nulls));
        assert_eq!((&*job(least).kind, job(least).agent_query_rules.len()), ("script", 0));
    }

    #[test]
    fn unknown_fields_are_welcome() {
        let more = changed(|detail| {
            detail["job"]["priority"] = json!({"nested": [1, 2]});
            detail["cluster"] = json!(7);
        });
        assert_eq!(job(&more), job(TODAY));
    }

    #[test]
    fn text_keeps_its_emoji_quotes_and_newlines() {
        let branch = "feature/🚀 \"quoted\"\nsecond line";
        assert_eq!(job(&changed(|detail| detail["build"]["branch"] = json!(branch))).branch.as_deref(), Some(branch));
    }

    #[test]
    fn a_time_that_cannot_be_read_is_none_and_no_error() {
        let seconds = |time: Value| {
            let mut event: Value = serde_json::from_str(TODAY).unwrap();
            event["time"] = time;
            job(&event.to_string()).time.map(|time| time.duration_since(UNIX_EPOCH).unwrap().as_secs())
        };
        assert_eq!(seconds(json!("2026-01-15T12:00:05+02:00")), Some(1_768_471_205));
        for time in
            [json!(null), json!(""), json!("now"), json!(7), json!({"at": [1]}), json!("2026-01-15 10:00:05 UTC")]
        {
            assert_eq!(seconds(time.clone()), None, "{time}");
        }
    }

    #[test]
    fn another_detail_type_is_no_error_whatever_its_detail() {
        let event = r#"{"detail-type":"Agent Connected","detail":[{"job":7}]}"#;
        assert_eq!(Event::parse(event).unwrap(), Event::Other { detail_type: "Agent Connected".to_owned() });
    }

    #[test]
    fn json_that_is_no_event_is_told_so() {
        for json in ["{}", "[]", "null", "7", r#"{"job":{}}"#, r#"{"detail-type":null,"detail":{}}"#] {
            assert!(problem(json).starts_with("not an EventBridge event"), "{json}");
        }
        assert!(problem(r#"{"detail":{}}"#).contains("missing field `detail-type`"));
    }

    #[test]
    fn a_problem_is_one_line_and_no_flood_whatever_the_event_says() {
        let long = "a\n".repeat(100_000);
        let events = [
            changed(|detail| detail["job"]["uuid"] = json!(long)),
            changed(|detail| detail["build"]["number"] = json!(long)),
            changed(|detail| detail["job"]["type"] = json!({&long: long})),
            format!(r#"{{"{}": tru"#, "a".repeat(100_000)),
        ];
        for event in events {
            let told = problem(&event);
            assert!(told.len() < 1_000 && !told.contains(char::is_control), "{told}");
        }
    }

    #[test]
    fn the_field_that_cannot_be_read_is_named() {
        let cases = [
            (changed(|detail| detail["job"]["uuid"] = json!("no-uuid")), "detail.job.uuid: "),
            (changed(|detail| detail["job"]["uuid"] = json!(null)), "detail.job.uuid: "),
            (changed(|detail| detail["job"] = json!({})), "detail.job: missing field `uuid`"),
            (changed(|detail| *detail = json!({})), "detail: missing field `job`"),
            (changed(|detail| detail["job"]["agent_query_rules"] = json!([7])), "detail.job.agent_query_rules[0]: "),
            (changed(|detail| detail["build"]["number"] = json!("7")), "detail.build.number: "),
        ];
        for (event, field) in cases {
            let problem = problem(&event);
            assert!(problem.starts_with(&format!("cannot read the Job Scheduled event: {field}")), "{problem}");
        }
    }
}
