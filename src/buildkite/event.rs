//! The part of Buildkite's `Job Scheduled` event that decides what to run.
//!
//! Shape: <https://buildkite.com/docs/pipelines/integrations/observability/amazon-eventbridge#events-job-scheduled>.
//! Fields that this crate does not read are left out, so Buildkite can add more; those that it does not need may be null. Its
//! `state` is not read either: the event says `assigned`, which no page of the job lifecycle names.

use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::job::ScheduledJob;

/// The envelope's `detail-type`.
pub const JOB_SCHEDULED: &str = "Job Scheduled";

/// The `detail` of a [`JOB_SCHEDULED`] event. Only `uuid` and the rules must be readable.
#[derive(Debug, Deserialize, Serialize)]
#[serde(from = "Lenient")]
pub struct JobScheduled {
    /// Without its time, which the envelope has.
    pub job: ScheduledJob,
    /// What else is not as it should be: the build, the pipeline, the organization, or a field of the job.
    pub left_out: Vec<&'static str>,
}

/// The same, read in one pass: any field that is not as it should be is an error.
#[derive(Debug, Deserialize, Serialize)]
#[serde(from = "Strict")]
pub struct StrictJobScheduled(pub ScheduledJob);

type Lenient = Detail<Optional<Build>, Optional<Slug>, Optional<String>>;
type Strict = Detail<Option<Build>, Option<Slug>, Option<String>>;

#[derive(Deserialize)]
struct Detail<B, S, T: Default> {
    job: Job<T>,
    #[serde(default)]
    build: B,
    #[serde(default)]
    pipeline: S,
    #[serde(default)]
    organization: S,
}

#[derive(Deserialize)]
struct Job<T> {
    uuid: Uuid,
    #[serde(rename = "type", default)]
    kind: T,
    agent_query_rules: Option<Vec<String>>,
    #[serde(default)]
    step_key: T,
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

/// What is not needed: an error if it is there and is not as it should be.
struct Optional<T>(serde_json::Result<Option<T>>);

impl<T> Default for Optional<T> {
    fn default() -> Self {
        Self(Ok(None))
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Optional<T> {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        Ok(Self(serde_json::from_str(<&RawValue>::deserialize(value)?.get())))
    }
}

/// A field that may be absent.
trait Field<T> {
    /// The value; notes the name of a field that cannot be read.
    fn read(self, name: &'static str, left_out: &mut Vec<&'static str>) -> Option<T>;
}

impl<T> Field<T> for Optional<T> {
    fn read(self, name: &'static str, left_out: &mut Vec<&'static str>) -> Option<T> {
        self.0.unwrap_or_else(|_| {
            left_out.push(name);
            None
        })
    }
}

impl<T> Field<T> for Option<T> {
    fn read(self, _: &'static str, _: &mut Vec<&'static str>) -> Option<T> {
        self
    }
}

impl From<Strict> for StrictJobScheduled {
    fn from(detail: Strict) -> Self {
        Self(JobScheduled::from(detail).job)
    }
}

impl<B: Field<Build>, S: Field<Slug>, T: Field<String> + Default> From<Detail<B, S, T>> for JobScheduled {
    fn from(Detail { job, build, pipeline, organization }: Detail<B, S, T>) -> Self {
        let mut left_out = Vec::new();
        let build = build.read("detail.build", &mut left_out).unwrap_or_default();
        let pipeline = pipeline.read("detail.pipeline", &mut left_out).unwrap_or_default();
        let organization = organization.read("detail.organization", &mut left_out).unwrap_or_default();
        let job = ScheduledJob {
            time: None,
            uuid: job.uuid,
            kind: job.kind.read("detail.job.type", &mut left_out).unwrap_or_else(|| "script".to_owned()),
            agent_query_rules: job.agent_query_rules.unwrap_or_default(),
            step_key: job.step_key.read("detail.job.step_key", &mut left_out),
            build_number: build.number,
            commit: build.commit,
            branch: build.branch,
            pipeline: pipeline.slug,
            organization: organization.slug,
        };
        Self { job, left_out }
    }
}

#[cfg(test)]
pub(crate) mod fixtures {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::Value;

    use super::*;
    use crate::json;

    /// The published events, of today and of 2019.
    pub(crate) const TODAY: &str = include_str!("../../events/job-scheduled.json");
    pub(crate) const OF_2019: &str = include_str!("../../events/job-scheduled-2019.json");

    /// The job of an event with `change` made to its `detail`.
    pub(crate) fn changed(event: &str, change: impl FnOnce(&mut Value)) -> Result<ScheduledJob, String> {
        let mut event: Value = serde_json::from_str(event).unwrap();
        change(&mut event["detail"]);
        let time = Some(UNIX_EPOCH + Duration::from_secs(1_768_471_205));
        let read = json::parse::<JobScheduled>(&event["detail"].to_string(), "detail");
        read.map(|JobScheduled { job, .. }| ScheduledJob { time, ..job }).map_err(|malformed| malformed.to_string())
    }

    pub(crate) fn scheduled() -> ScheduledJob {
        changed(TODAY, |_| {}).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        fixtures::{OF_2019, TODAY, changed, scheduled},
        *,
    };

    #[test]
    fn both_published_shapes_are_read() {
        let expected = ScheduledJob {
            time: scheduled().time,
            uuid: "11111111-2222-4333-8444-555555555501".parse().unwrap(),
            kind: "script".to_owned(),
            agent_query_rules: vec!["queue=kubernetes".to_owned()],
            step_key: Some("unit_tests".to_owned()),
            build_number: Some(1234),
            commit: Some("0123456789abcdef0123456789abcdef01234567".to_owned()),
            branch: Some("main".to_owned()),
            pipeline: Some("example-pipeline".to_owned()),
            organization: Some("example-org".to_owned()),
        };
        assert_eq!(scheduled(), expected);
        assert_eq!(changed(OF_2019, |_| {}), Ok(expected));
    }

    #[test]
    fn only_the_uuid_is_required() {
        let minimal = r#"{"job":{"uuid":"11111111-2222-4333-8444-555555555501"}}"#;
        let nulls = r#"{"job":{"uuid":"11111111-2222-4333-8444-555555555501","type":null,"agent_query_rules":null,"step_key":null},
            "build":null,"pipeline":{"slug":null},"organization":null}"#;
        let JobScheduled { job, left_out } = serde_json::from_str(minimal).unwrap();
        let of_nulls: JobScheduled = serde_json::from_str(nulls).unwrap();
        assert_eq!((&job, &left_out), (&of_nulls.job, &of_nulls.left_out));
        assert_eq!((&*job.kind, job.agent_query_rules.len()), ("script", 0));
    }

    #[test]
    fn unknown_fields_are_accepted() {
        let job = changed(TODAY, |detail| {
            detail["job"]["priority"] = json!({"nested": [1, 2]});
            detail["cluster"] = json!(7);
        });
        assert_eq!(job, Ok(scheduled()));
    }

    #[test]
    fn text_keeps_its_emoji_quotes_and_newlines() {
        let branch = "feature/🚀 \"quoted\"\nsecond line";
        let job = changed(TODAY, |detail| detail["build"]["branch"] = json!(branch)).unwrap();
        assert_eq!(job.branch.as_deref(), Some(branch));
    }

    #[test]
    fn an_error_is_one_short_line_whatever_the_event_says() {
        let long = "a\n".repeat(100_000);
        for (field, value) in [("uuid", json!(long)), ("agent_query_rules", json!({&long: long}))] {
            let error = changed(TODAY, |detail| detail["job"][field] = value).unwrap_err();
            assert!(error.len() < 1_000 && !error.contains(char::is_control), "{error}");
        }
    }

    #[test]
    fn a_field_that_is_not_needed_is_left_out_if_it_cannot_be_read() {
        let event: Value = serde_json::from_str(TODAY).unwrap();
        let detail = event["detail"].to_string();
        let cases = [
            (r#""number":1234"#, r#""number":"1234""#, "detail.build"),
            (r#""number":1234"#, r#""number":12.5"#, "detail.build"),
            (r#""number":1234"#, r#""number":-1"#, "detail.build"),
            (r#""branch":"main""#, r#""branch":"\ud800""#, "detail.build"),
            (r#""branch":"main""#, r#""branch":{"name":"main"}"#, "detail.build"),
            (r#""type":"script""#, r#""type":["script"]"#, "detail.job.type"),
            (r#""step_key":"unit_tests""#, r#""step_key":7"#, "detail.job.step_key"),
            (r#""slug":"example-pipeline""#, r#""slug":false"#, "detail.pipeline"),
        ];
        for (from, to, field) in cases {
            let changed = detail.replacen(from, to, 1);
            assert_ne!(changed, detail, "{from} is not in the event");
            let JobScheduled { job, left_out } = serde_json::from_str(&changed).unwrap();
            assert_eq!((job.uuid, left_out), (scheduled().uuid, vec![field]), "{to}");
        }
        let objects = r#"{"job":{"uuid":"11111111-2222-4333-8444-555555555501","agent_query_rules":["queue=a"]},"build":"","pipeline":7}"#;
        let JobScheduled { job, left_out } = serde_json::from_str(objects).unwrap();
        assert_eq!((&*job.agent_query_rules[0], left_out), ("queue=a", vec!["detail.build", "detail.pipeline"]));
    }

    #[test]
    fn the_field_that_cannot_be_read_is_named() {
        let cases = [
            ("/job/uuid", json!("no-uuid"), "detail.job.uuid: "),
            ("/job/uuid", json!(null), "detail.job.uuid: "),
            ("/job", json!({}), "detail.job: missing field `uuid`"),
            ("", json!({}), "detail: missing field `job`"),
            ("/job/agent_query_rules", json!([7]), "detail.job.agent_query_rules[0]: "),
        ];
        for (path, value, field) in cases {
            let error = changed(TODAY, |detail| *detail.pointer_mut(path).unwrap() = value).unwrap_err();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
