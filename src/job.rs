//! The Kubernetes Job that runs one Buildkite job: the pod definition's own JSON with our parts on top.
//!
//! Why each field of the spec is set: <https://kubernetes.io/docs/concepts/workloads/controllers/job/>.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    config::Config,
    event::ScheduledJob,
    pod_definition::{AGENT, PodDefinition},
};

/// The label, on Job and pod, that tells which Buildkite job they are for.
pub const JOB_UUID_LABEL: &str = "buildkite.com/job-uuid";

/// The label, on all that this function makes, that tells who made it.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";

/// The value of [`MANAGED_BY_LABEL`].
pub const MANAGER: &str = "agent-scheduler";

/// The key of the agent token in its Secret.
pub const TOKEN_KEY: &str = "token";

/// The agent's own exit code when Buildkite refuses it the job: another agent has it, or it was cancelled.
const JOB_REFUSED: i32 = 27;

/// Name of the Kubernetes Job that runs a Buildkite job.
///
/// The same job always gets the same name, so an event delivered twice meets `AlreadyExists` instead of starting a second
/// agent. 46 characters long: the Job controller copies the name into a pod label, which holds at most 63.
pub fn name(job: Uuid) -> String {
    format!("buildkite-{job}")
}

/// Builds the Job whose pod takes `job`, on `queue` where the job names one.
pub fn build(job: &ScheduledJob, queue: Option<&str>, definition: &PodDefinition, config: &Config) -> Value {
    let mut template = definition.template().clone();
    // What the definition says itself wins, but for the labels that we find the Job by.
    let mut labels =
        defaults(queue.filter(|queue| is_label_value(queue)).map(|queue| ("buildkite.com/queue", queue.to_owned())));
    let mut annotations = defaults(describe(job, definition.name()));
    merge(&mut labels, &template["metadata"]["labels"]);
    merge(&mut annotations, &template["metadata"]["annotations"]);
    labels.insert(MANAGED_BY_LABEL.to_owned(), MANAGER.into());
    labels.insert(JOB_UUID_LABEL.to_owned(), job.uuid.to_string().into());
    template["metadata"]["labels"] = labels.clone().into();
    template["metadata"]["annotations"] = annotations.clone().into();

    template["spec"]["restartPolicy"] = "Never".into();
    for container in template["spec"]["containers"].as_array_mut().into_iter().flatten() {
        if container["name"] == AGENT {
            complete_agent(container, job.uuid, queue, definition, config);
        }
    }

    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name(job.uuid),
            "namespace": config.namespace,
            "labels": labels,
            "annotations": annotations,
        },
        "spec": {
            // A second agent could not acquire the job anyway.
            "backoffLimit": 0,
            "activeDeadlineSeconds": config.job_active_deadline_seconds,
            "ttlSecondsAfterFinished": config.job_ttl_seconds,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": { "containerName": AGENT, "operator": "In", "values": [JOB_REFUSED] },
                    },
                    // Lost to a drain, a preemption or a spot reclaim: made again, and not counted.
                    { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
                ],
            },
            "template": template,
        },
    })
}

/// Tells the agent which job to take, with which token and under which tags.
fn complete_agent(agent: &mut Value, job: Uuid, queue: Option<&str>, definition: &PodDefinition, config: &Config) {
    if !agent["env"].is_array() {
        agent["env"] = json!([]);
    }
    let Some(env) = agent["env"].as_array_mut() else { return };

    let own_tags = env.iter().find(|variable| variable["name"] == "BUILDKITE_AGENT_TAGS");
    let own_tags = own_tags.and_then(|variable| variable["value"].as_str()).filter(|tags| !tags.is_empty());
    let mut tags: Vec<_> = own_tags.map(str::to_owned).into_iter().collect();
    tags.extend(config.agent_tags.iter().map(|tag| format!("{}={}", tag.key, tag.value)));
    tags.extend(queue.map(|queue| format!("queue={queue}")));
    tags.push(format!("pod-definition={}", definition.name()));

    set(env, json!({ "name": "BUILDKITE_AGENT_ACQUIRE_JOB", "value": job }));
    set(env, json!({ "name": "BUILDKITE_AGENT_TAGS", "value": tags.join(",") }));
    if !definition.brings_agent_token() {
        let secret = json!({ "name": config.agent_token_secret, "key": TOKEN_KEY });
        set(env, json!({ "name": "BUILDKITE_AGENT_TOKEN", "valueFrom": { "secretKeyRef": secret } }));
    }
}

/// Puts a variable in the place of the one of its name, or at the end.
fn set(env: &mut Vec<Value>, variable: Value) {
    match env.iter_mut().find(|present| present["name"] == variable["name"]) {
        Some(present) => *present = variable,
        None => env.push(variable),
    }
}

/// What leads from the Job back to its build, as far as the event tells, and what keeps its node from being taken away.
fn describe(job: &ScheduledJob, definition: &str) -> impl Iterator<Item = (&'static str, String)> {
    let build_url = match (&job.organization, &job.pipeline, job.build_number) {
        (Some(organization), Some(pipeline), Some(number)) => {
            Some(format!("https://buildkite.com/{organization}/{pipeline}/builds/{number}"))
        }
        _ => None,
    };
    [
        ("buildkite.com/job-url", build_url.as_ref().map(|url| format!("{url}#{}", job.uuid))),
        ("buildkite.com/build-url", build_url),
        ("buildkite.com/pipeline", job.pipeline.clone()),
        ("buildkite.com/branch", job.branch.clone()),
        ("buildkite.com/commit", job.commit.clone()),
        ("buildkite.com/step-key", job.step_key.clone()),
        ("buildkite.com/pod-definition", Some(definition.to_owned())),
        ("cluster-autoscaler.kubernetes.io/safe-to-evict", Some("false".to_owned())),
        ("karpenter.sh/do-not-disrupt", Some("true".to_owned())),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value?)))
}

fn defaults(entries: impl IntoIterator<Item = (&'static str, String)>) -> Map<String, Value> {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect()
}

fn merge(into: &mut Map<String, Value>, from: &Value) {
    let entries = from.as_object().into_iter().flatten();
    into.extend(entries.map(|(key, value)| (key.clone(), value.clone())));
}

/// A queue key may be longer than a label, or end in `-`: then the Job goes without that label.
fn is_label_value(value: &str) -> bool {
    let ends = [value.as_bytes().first(), value.as_bytes().last()];
    value.len() <= 63 && ends.into_iter().flatten().all(u8::is_ascii_alphanumeric)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::Job;

    use super::*;
    use crate::{config::fixtures::config, event::Event, pod_definition::fixtures::definition};

    const UUID: &str = "11111111-2222-4333-8444-555555555501";

    fn scheduled() -> ScheduledJob {
        match Event::parse(include_str!("../events/job-scheduled.json")) {
            Ok(Event::JobScheduled(job)) => *job,
            other => panic!("no job in {other:?}"),
        }
    }

    fn least() -> Value {
        json!({"spec": {"containers": [{"name": "agent", "image": "agent:4"}]}})
    }

    fn built(template: &Value, variables: &[(&str, &str)]) -> Value {
        build(&scheduled(), Some("default"), &definition(template), &config(variables))
    }

    fn env<'a>(job: &'a Value, name: &str) -> &'a Value {
        let env = &job.pointer("/spec/template/spec/containers/0/env").unwrap().as_array().unwrap();
        let mut found = env.iter().filter(|variable| variable["name"] == name);
        let variable = found.next().unwrap_or(&Value::Null);
        assert!(found.next().is_none(), "{name} is set twice");
        variable
    }

    #[test]
    fn the_whole_job() {
        let expected: Value = serde_json::from_str(include_str!("../tests/fixtures/job.json")).unwrap();
        let job = built(&least(), &[("BUILDKITE_AGENT_TAGS", "os=linux")]);
        assert_eq!(serde_json::to_string_pretty(&job).unwrap(), serde_json::to_string_pretty(&expected).unwrap());
    }

    #[test]
    fn every_field_is_known_to_kubernetes() {
        let job = built(&least(), &[]);
        let typed: Job = serde_json::from_value(job.clone()).unwrap();
        assert_eq!(serde_json::to_value(typed).unwrap(), job);
    }

    #[test]
    fn the_name_is_the_lock_and_fits_into_a_label() {
        assert_eq!(name(UUID.parse().unwrap()), format!("buildkite-{UUID}"));
        assert_eq!(name(UUID.to_uppercase().parse().unwrap()), format!("buildkite-{UUID}"));
        assert!(name(UUID.parse().unwrap()).len() <= 63);
    }

    #[test]
    fn what_the_definition_says_wins_but_for_the_labels_we_find_the_job_by() {
        let mut template = least();
        template["metadata"] = json!({
            "labels": {
                "team": "web", "buildkite.com/queue": "theirs",
                "app.kubernetes.io/managed-by": "theirs", "buildkite.com/job-uuid": "theirs",
            },
            "annotations": {"karpenter.sh/do-not-disrupt": "false", "note": "kept"},
        });
        let job = built(&template, &[]);
        for metadata in [&job["metadata"], &job["spec"]["template"]["metadata"]] {
            assert_eq!(
                metadata["labels"],
                json!({
                    "team": "web", "buildkite.com/queue": "theirs",
                    "app.kubernetes.io/managed-by": "agent-scheduler", "buildkite.com/job-uuid": UUID,
                })
            );
            assert_eq!(metadata["annotations"]["karpenter.sh/do-not-disrupt"], "false");
            assert_eq!(metadata["annotations"]["note"], "kept");
            assert_eq!(metadata["annotations"]["buildkite.com/branch"], "main");
        }
    }

    #[test]
    fn fields_that_are_unknown_here_are_kept() {
        let mut template = least();
        template["spec"]["fieldOfTomorrow"] = json!(1);
        template["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
        let spec = &built(&template, &[])["spec"]["template"]["spec"];
        assert_eq!(spec["fieldOfTomorrow"], 1);
        assert_eq!(spec["containers"][0]["resources"]["requests"]["cpu"], "1");
    }

    #[test]
    fn the_definitions_own_tags_come_first_and_keep_their_place() {
        let mut template = least();
        template["spec"]["containers"][0]["env"] = json!([{"name": "BUILDKITE_AGENT_TAGS", "value": "docker=true"}, {"name": "LATER", "value": "$(BUILDKITE_AGENT_TAGS)"}]);
        let job = built(&template, &[("BUILDKITE_AGENT_TAGS", "os=linux")]);
        let tags = env(&job, "BUILDKITE_AGENT_TAGS");
        assert_eq!(tags["value"], "docker=true,os=linux,queue=default,pod-definition=example");
        assert_eq!(job["spec"]["template"]["spec"]["containers"][0]["env"][0], *tags);
    }

    #[test]
    fn a_job_without_a_queue_gets_an_agent_without_one() {
        let job = build(&scheduled(), None, &definition(&least()), &config(&[]));
        assert_eq!(env(&job, "BUILDKITE_AGENT_TAGS")["value"], "pod-definition=example");
        assert_eq!(job["metadata"]["labels"]["buildkite.com/queue"], Value::Null);
    }

    #[test]
    fn a_queue_that_is_no_label_value_is_no_label() {
        for queue in ["q-", "-q", &"q".repeat(64)] {
            let job = build(&scheduled(), Some(queue), &definition(&least()), &config(&[]));
            assert_eq!(job["metadata"]["labels"]["buildkite.com/queue"], Value::Null, "{queue}");
        }
    }

    #[test]
    fn a_definition_that_brings_the_token_is_left_alone() {
        let theirs = json!({"name": "BUILDKITE_AGENT_TOKEN", "value": "file:///var/run/token"});
        let mut template = least();
        template["spec"]["containers"][0]["env"] = json!([theirs]);
        assert_eq!(*env(&built(&template, &[]), "BUILDKITE_AGENT_TOKEN"), theirs);
    }

    #[test]
    fn other_containers_are_left_alone() {
        let mut template = least();
        let dockerd = json!({"name": "dockerd", "image": "docker:dind", "restartPolicy": "Always"});
        template["spec"]["initContainers"] = json!([dockerd]);
        assert_eq!(built(&template, &[])["spec"]["template"]["spec"]["initContainers"], json!([dockerd]));
    }

    #[test]
    fn an_event_that_tells_little_gets_the_annotations_that_it_can() {
        let mut job = scheduled();
        (job.pipeline, job.branch, job.step_key) = (None, None, None);
        let job = build(&job, None, &definition(&least()), &config(&[]));
        let annotations = job["metadata"]["annotations"].as_object().unwrap();
        let keys: Vec<_> =
            annotations.keys().map(String::as_str).filter(|key| key.starts_with("buildkite.com/")).collect();
        assert_eq!(keys, ["buildkite.com/commit", "buildkite.com/pod-definition"]);
    }
}
