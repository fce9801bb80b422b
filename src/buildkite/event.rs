//! The part of Buildkite's `Job Scheduled` event that decides what to run.
//!
//! Shape: <https://buildkite.com/docs/pipelines/integrations/observability/amazon-eventbridge#events-job-scheduled>.
//! Fields that this crate does not read are left out, so Buildkite can add more; those that it does not need may be null. Its
//! `state` is not read either: the event says `assigned`, which no page of the job lifecycle names.

use std::{borrow::Cow, collections::BTreeMap, time::SystemTime};

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::job::ScheduledJob;
use crate::json::{self, Malformed};

/// The envelope's `detail-type`.
pub const JOB_SCHEDULED: &str = "Job Scheduled";

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

/// Reads the `detail` of a [`JOB_SCHEDULED`] event that was sent at `time`: the job, and the fields that are not as they should be
/// and were left out. Only `uuid` and the rules must be readable.
pub fn job_scheduled(detail: &str, time: Option<SystemTime>) -> Result<(ScheduledJob, Vec<String>), Malformed> {
    let (Detail { job, build, pipeline, organization }, left_out) = match serde_json::from_str(detail) {
        Ok(detail) => (detail, Vec::new()),
        Err(_) => lenient(detail)?,
    };
    let job = ScheduledJob {
        time,
        uuid: job.uuid,
        kind: job.kind.unwrap_or_else(|| "script".to_owned()),
        agent_query_rules: job.agent_query_rules,
        step_key: job.step_key,
        build_number: build.number,
        commit: build.commit,
        branch: build.branch,
        pipeline: pipeline.slug,
        organization: organization.slug,
    };
    Ok((job, left_out))
}

/// Reads field by field.
fn lenient(detail: &str) -> Result<(Detail, Vec<String>), Malformed> {
    #[derive(Deserialize)]
    struct Required {
        job: RequiredOfJob,
    }
    #[derive(Deserialize)]
    struct RequiredOfJob {
        uuid: Uuid,
        #[serde(default, deserialize_with = "null_as_default")]
        agent_query_rules: Vec<String>,
    }
    let Required { job: RequiredOfJob { uuid, agent_query_rules } } = json::parse(detail, "detail")?;
    let objects: Object = serde_json::from_str(detail).unwrap_or_default();
    let mut left_out = Vec::new();
    let detail = Detail {
        job: Job {
            uuid,
            agent_query_rules,
            kind: field(&objects, "job", "type", &mut left_out),
            step_key: field(&objects, "job", "step_key", &mut left_out),
        },
        build: Build {
            number: field(&objects, "build", "number", &mut left_out),
            commit: field(&objects, "build", "commit", &mut left_out),
            branch: field(&objects, "build", "branch", &mut left_out),
        },
        pipeline: Slug { slug: field(&objects, "pipeline", "slug", &mut left_out) },
        organization: Slug { slug: field(&objects, "organization", "slug", &mut left_out) },
    };
    Ok((detail, left_out))
}

type Object<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// `None`, and a note in `left_out`, for a field that is there and is not what it should be.
fn field<T: DeserializeOwned>(
    objects: &Object,
    object: &'static str,
    name: &'static str,
    left_out: &mut Vec<String>,
) -> Option<T> {
    let value = objects.get(object)?;
    let read = serde_json::from_str::<Option<Object>>(value.get()).and_then(|object| {
        match object.unwrap_or_default().get(name) {
            Some(value) => serde_json::from_str(value.get()),
            None => Ok(None),
        }
    });
    read.unwrap_or_else(|_| {
        left_out.push(format!("detail.{object}.{name}"));
        None
    })
}

#[cfg(test)]
pub(crate) mod fixtures {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::Value;

    use super::*;

    /// The published events, of today and of 2019.
    pub(crate) const TODAY: &str = include_str!("../../events/job-scheduled.json");
    pub(crate) const OF_2019: &str = include_str!("../../events/job-scheduled-2019.json");

    /// The job of an event with `change` made to its `detail`.
    pub(crate) fn changed(event: &str, change: impl FnOnce(&mut Value)) -> Result<ScheduledJob, String> {
        let mut event: Value = serde_json::from_str(event).unwrap();
        change(&mut event["detail"]);
        let time = UNIX_EPOCH + Duration::from_secs(1_768_471_205);
        let job = job_scheduled(&event["detail"].to_string(), Some(time));
        job.map(|(job, _)| job).map_err(|malformed| malformed.to_string())
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
        let (job, left_out) = job_scheduled(minimal, None).unwrap();
        assert_eq!((job.clone(), left_out), job_scheduled(nulls, None).unwrap());
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
            (r#""number":1234"#, r#""number":"1234""#, "detail.build.number"),
            (r#""number":1234"#, r#""number":12.5"#, "detail.build.number"),
            (r#""number":1234"#, r#""number":-1"#, "detail.build.number"),
            (r#""branch":"main""#, r#""branch":"\ud800""#, "detail.build.branch"),
            (r#""branch":"main""#, r#""branch":{"name":"main"}"#, "detail.build.branch"),
            (r#""type":"script""#, r#""type":["script"]"#, "detail.job.type"),
            (r#""step_key":"unit_tests""#, r#""step_key":7"#, "detail.job.step_key"),
            (r#""slug":"example-pipeline""#, r#""slug":false"#, "detail.pipeline.slug"),
        ];
        for (from, to, field) in cases {
            let changed = detail.replacen(from, to, 1);
            assert_ne!(changed, detail, "{from} is not in the event");
            let (job, left_out) = job_scheduled(&changed, None).unwrap();
            assert_eq!((job.uuid, left_out), (scheduled().uuid, vec![field.to_owned()]), "{to}");
        }
        let (job, left_out) = job_scheduled(
            r#"{"job":{"uuid":"11111111-2222-4333-8444-555555555501","agent_query_rules":["queue=a"]},"build":[],"pipeline":7}"#,
            None,
        )
        .unwrap();
        assert_eq!((&*job.agent_query_rules[0], left_out.len()), ("queue=a", 4));
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
