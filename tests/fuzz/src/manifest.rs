//! What must hold of every Job that is sent to the API server.

use agent_scheduler::{
    buildkite::{job::ScheduledJob, rules::AgentQueryRules},
    pod::{
        definition::{Access, PodDefinition},
        job,
    },
    stack::Stack,
};
use serde_json::{Value, json};

use crate::check_text;

/// The limit of Kubernetes for all annotations of an object, keys and values together.
const MAX_ANNOTATION_BYTES: usize = 256 * 1024;

/// Checks the Job in the definition as a step with these rules gets it, or the text of the error.
pub fn check_for_step(
    job: &ScheduledJob,
    queue: Option<&str>,
    definition: &PodDefinition,
    rules: &AgentQueryRules,
    stack: &Stack,
) {
    if let Access::Refused(refused) = definition.access(job.pipeline.as_deref()) {
        check_text(&refused.to_string());
    }
    match definition.for_step(rules) {
        Ok(definition) => check(job, queue, &definition, stack),
        Err(unmet) => check_text(&unmet.to_string()),
    }
}

/// Builds the Job and checks it.
pub fn check(scheduled: &ScheduledJob, queue: Option<&str>, definition: &PodDefinition, stack: &Stack) {
    let built = build(scheduled, queue, definition, stack);
    assert_eq!((&built["apiVersion"], &built["kind"]), (&json!("batch/v1"), &json!("Job")));
    let uuid = scheduled.uuid.as_hyphenated().to_string();
    assert!(uuid.len() == 36 && uuid.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-')), "{uuid}");
    assert_eq!(built["metadata"]["name"], format!("buildkite-{uuid}"));
    assert_eq!(built["metadata"]["namespace"], stack.namespace);

    for metadata in [&built["metadata"], &built["spec"]["template"]["metadata"]] {
        labels(&metadata["labels"], &uuid, definition, stack);
        annotations(&metadata["annotations"], definition);
    }
    environment(&built, &uuid, definition, stack);

    // The other fields of the event appear in the annotations and nowhere else: not in the name, the namespace, the labels, the
    // service account, the volumes or the Secrets.
    let bare = build(&ScheduledJob::script(scheduled.uuid), queue, definition, stack);
    assert_eq!(without_annotations(built), without_annotations(bare));
}

fn build(job: &ScheduledJob, queue: Option<&str>, definition: &PodDefinition, stack: &Stack) -> Value {
    let json = job::build(job, queue, None, definition, stack).json();
    serde_json::from_slice(&json).expect("what was written is JSON")
}

fn without_annotations(mut job: Value) -> Value {
    for metadata in ["/metadata", "/spec/template/metadata"] {
        job.pointer_mut(metadata).expect("it is there")["annotations"] = Value::Null;
    }
    job
}

/// The labels that a definition cannot set.
const OURS: [&str; 3] =
    ["app.kubernetes.io/managed-by", "buildkite.com/job-uuid", "agent-scheduler.buildkite.com/stack"];

fn labels(labels: &Value, uuid: &str, definition: &PodDefinition, stack: &Stack) {
    assert_eq!(labels["app.kubernetes.io/managed-by"], "agent-scheduler");
    assert_eq!(labels["buildkite.com/job-uuid"], uuid);
    assert_eq!(labels["agent-scheduler.buildkite.com/stack"], *stack.id);
    let theirs = &definition.template()["metadata"]["labels"];
    for (key, value) in labels.as_object().expect("labels are a map") {
        let value = value.as_str().expect("a label is a string");
        if key == "buildkite.com/queue" && theirs[key].is_null() {
            assert!(stack.queues.iter().any(|queue| queue == value), "queue {value:?} is not ours");
            assert!(value.len() <= 63 && !value.ends_with(['-', '_']), "{value:?} is not a valid label value");
        } else if !OURS.contains(&key.as_str()) {
            assert_eq!(theirs[key], value, "label {key} has no source");
        }
    }
}

fn annotations(annotations: &Value, definition: &PodDefinition) {
    let size = |annotations: &Value| -> usize {
        let each = annotations.as_object().into_iter().flatten();
        each.map(|(key, value)| key.len() + value.as_str().expect("each is a string").len()).sum()
    };
    let (all, theirs) = (size(annotations), size(&definition.template()["metadata"]["annotations"]));
    // The API server checks the author's own annotations when they are applied. An event adds little to them.
    assert!(all - theirs.min(all) <= MAX_ANNOTATION_BYTES / 4, "{} bytes of annotations beside {theirs}", all - theirs);
}

/// The agent has its job and the configured Secret. Everything else comes from the definition.
fn environment(built: &Value, uuid: &str, definition: &PodDefinition, stack: &Stack) {
    let containers = built["spec"]["template"]["spec"]["containers"].as_array().expect("containers are a list");
    assert_eq!((containers.len(), &containers[0]["name"]), (1, &json!("agent")));
    let env = containers[0]["env"].as_array().expect("env is a list");
    let ours = env.iter().filter(|variable| variable["name"] == "BUILDKITE_AGENT_ACQUIRE_JOB");
    assert_eq!(ours.map(|variable| &variable["value"]).collect::<Vec<_>>(), [uuid]);
    let theirs = definition.agent()["env"].as_array().map(Vec::as_slice).unwrap_or_default();
    let reference = json!({"name": stack.agent_token_secret, "key": "token"});
    let token = json!({"name": "BUILDKITE_AGENT_TOKEN", "valueFrom": {"secretKeyRef": reference}});
    for variable in env.iter().filter(|variable| !variable["valueFrom"].is_null()) {
        assert!(*variable == token || theirs.contains(variable), "{variable} has no source");
    }
    assert_eq!(env.contains(&token), !definition.brings_agent_token() || theirs.contains(&token));
    assert_eq!(built["spec"]["template"]["spec"]["restartPolicy"], "Never");
}
