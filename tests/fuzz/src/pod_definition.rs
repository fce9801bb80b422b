//! A pod definition, from `pod-definitions/` or from the cluster, and the Job that is built on it.

use std::str;

use agent_scheduler::{
    buildkite::{job::ScheduledJob, rules::AgentQueryRules},
    lambda::{Event, Trigger},
    pod::definition::PodDefinition,
};
use serde_json::{Value, json};

use crate::{MANIFESTS, STACKS, check_text, manifest};

/// What steps ask for on top of a definition.
const RULES: [&[&str]; 4] = [&[], &["cpu=2", "memory=4Gi"], &["image=node:24"], &["image=node:24", "memory=1Gi"]];

/// `data` is a manifest in JSON, or changes to a valid one: each line is a JSON pointer, a space and the value.
pub fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let manifest = serde_json::from_str(text).ok().filter(Value::is_object).unwrap_or_else(|| changed(text));
    if let Err(invalid) = PodDefinition::parse("a file", &manifest) {
        check_text(&invalid.to_string());
    }
    let definition = match PodDefinition::of_object("PodTemplate node in namespace buildkite", &manifest) {
        Ok(definition) => definition,
        Err(invalid) => return check_text(&invalid.to_string()),
    };
    assert!(definition.name().len() <= 253);
    assert!(definition.name().bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.')));
    let job = scheduled();
    for rules in RULES {
        let rules: Vec<_> = rules.iter().map(ToString::to_string).collect();
        let rules = AgentQueryRules::parse(&rules);
        for stack in &*STACKS {
            manifest::check_for_step(&job, Some("kubernetes"), &definition, &rules, stack);
        }
    }
}

/// The default definition with these changes; an invalid line changes nothing.
fn changed(text: &str) -> Value {
    let mut manifest = MANIFESTS[0].clone();
    for line in text.lines() {
        let Some((pointer, value)) = line.split_once(' ') else { continue };
        let (Some((parent, field)), Ok(value)) = (pointer.rsplit_once('/'), serde_json::from_str(value)) else {
            continue;
        };
        match manifest.pointer_mut(parent) {
            Some(Value::Object(object)) => {
                object.insert(field.replace("~1", "/"), value);
            }
            Some(Value::Array(items)) => items.push(value),
            Some(null @ Value::Null) => *null = json!({field: value}),
            _ => {}
        }
    }
    manifest
}

pub(crate) fn scheduled() -> ScheduledJob {
    match Trigger::parse(include_str!("../../../events/job-scheduled.json")) {
        Ok(Trigger::Event(Event::JobScheduled(job))) => *job,
        other => panic!("no job in {other:?}"),
    }
}

/// `pod-definitions/`, and changes to fields that are checked.
pub fn seeds() -> Vec<Vec<u8>> {
    const AGENT: &str = "/template/spec/containers/0";
    let changes = [
        format!(
            r#"{AGENT}/env [{{"name":"BUILDKITE_AGENT_TAGS","value":"a=b"}},{{"name":"BUILDKITE_CANCEL_SIGNAL_TIMEOUT","value":"1m30.5s"}}]"#
        ),
        format!("{AGENT}/args [\"start\",\"--tags\",\"queue=x\"]\n{AGENT}/command [\"/usr/bin/buildkite-agent\"]"),
        format!(r#"{AGENT}/volumeMounts [{{"name":"builds","mountPath":"/buildkite"}}]"#),
        format!(
            "{AGENT}/resources {{\"limits\":{{\"cpu\":1}}}}\n/metadata/annotations {{\"agent-scheduler.buildkite.com/max-cpu\":\"1\"}}"
        ),
        r#"/metadata/annotations {"agent-scheduler.buildkite.com/allow-pipelines":"deploy, release"}"#.to_owned(),
        r#"/template/metadata {"labels":{"platform":"fargate"},"annotations":{"a":"b"}}"#.to_owned(),
        format!("/metadata/name {0}\n/template/spec/restartPolicy {0}", json!("\u{10fffd}".repeat(3_000))),
        "/template/spec/terminationGracePeriodSeconds 10\n/metadata/name \"Node\"".to_owned(),
        r#"/template/spec/containers/- {"name":"second"}"#.to_owned(),
        "/template/spec/restartPolicy \"Always\"\n/template/spec/volumes 1".to_owned(),
    ];
    MANIFESTS.iter().map(Value::to_string).chain(changes).map(String::into_bytes).collect()
}
