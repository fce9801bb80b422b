//! The part of Buildkite's `Job Scheduled` event that decides what to run.
//!
//! Shape: <https://buildkite.com/docs/pipelines/integrations/observability/amazon-eventbridge#events-job-scheduled>.
//! Fields that this crate does not read are left out, so Buildkite can add more; those that it does not need may be null. Its
//! `state` is not read either: the event says `assigned`, which no page of the job lifecycle names.

use std::time::SystemTime;

use serde::{Deserialize, Deserializer};
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

/// Reads the `detail` of a [`JOB_SCHEDULED`] event that was sent at `time`.
pub fn job_scheduled(detail: &str, time: Option<SystemTime>) -> Result<ScheduledJob, Malformed> {
    let Detail { job, build, pipeline, organization } = json::parse(detail, "detail")?;
    Ok(ScheduledJob {
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
        job_scheduled(&event["detail"].to_string(), Some(time)).map_err(|malformed| malformed.to_string())
    }

    pub(crate) fn scheduled() -> ScheduledJob {
        changed(TODAY, |_| {}).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
            agent_query_rules: vec!["queue=default".to_owned()],
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
        let job = job_scheduled(minimal, None).unwrap();
        assert_eq!(job, job_scheduled(nulls, None).unwrap());
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
        for (object, field, value) in
            [("job", "uuid", json!(long)), ("build", "number", json!(long)), ("job", "type", json!({&long: long}))]
        {
            let error = changed(TODAY, |detail| detail[object][field] = value).unwrap_err();
            assert!(error.len() < 1_000 && !error.contains(char::is_control), "{error}");
        }
    }

    #[test]
    fn the_field_that_cannot_be_read_is_named() {
        let cases = [
            ("/job/uuid", json!("no-uuid"), "detail.job.uuid: "),
            ("/job/uuid", json!(null), "detail.job.uuid: "),
            ("/job", json!({}), "detail.job: missing field `uuid`"),
            ("", json!({}), "detail: missing field `job`"),
            ("/job/agent_query_rules", json!([7]), "detail.job.agent_query_rules[0]: "),
            ("/build/number", json!("7"), "detail.build.number: "),
        ];
        for (path, value, field) in cases {
            let error = changed(TODAY, |detail| *detail.pointer_mut(path).unwrap() = value).unwrap_err();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
