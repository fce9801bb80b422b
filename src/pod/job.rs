//! The Kubernetes Job that runs one Buildkite job: the pod definition's own JSON with our parts on top.
//!
//! Why each field of the spec is set: <https://kubernetes.io/docs/concepts/workloads/controllers/job/>.

use std::{borrow::Cow, collections::BTreeMap, sync::LazyLock};

use serde::{Serialize, Serializer};
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

/// The most bytes of an annotation that an event tells, far more than a branch has. Kubernetes takes 256 KiB for all annotations
/// of an object, and most of that is the definition's.
const LONGEST_ANNOTATION: usize = 4 * 1024;

/// The agent's own exit code when Buildkite refuses it the job: another agent has it, or it was cancelled.
const JOB_REFUSED: i32 = 27;

/// Name of the Kubernetes Job that runs a Buildkite job.
///
/// The same job always gets the same name, so an event delivered twice meets `AlreadyExists` instead of starting a second
/// agent. 46 characters long: the Job controller copies the name into a pod label, which holds at most 63.
pub fn name(job: Uuid) -> String {
    format!("buildkite-{job}")
}

/// The Job, ready to be sent: borrowed from what it is built of, and serialised in one pass.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Job<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: ObjectMeta<'a>,
    spec: JobSpec<'a>,
}

#[derive(Debug, Serialize)]
struct ObjectMeta<'a> {
    name: String,
    namespace: &'a str,
    labels: Strings<'a>,
    annotations: Strings<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct JobSpec<'a> {
    backoff_limit: u32,
    active_deadline_seconds: u32,
    ttl_seconds_after_finished: u32,
    pod_failure_policy: PodFailurePolicy,
    template: PodTemplateSpec<'a>,
}

#[derive(Debug, Serialize)]
struct PodTemplateSpec<'a> {
    metadata: PodMeta<'a>,
    spec: PodSpec<'a>,
    #[serde(flatten)]
    others: Others<'a>,
}

#[derive(Debug, Serialize)]
struct PodMeta<'a> {
    labels: Strings<'a>,
    annotations: Strings<'a>,
    #[serde(flatten)]
    others: Others<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec<'a> {
    restart_policy: &'static str,
    containers: [Agent<'a>; 1],
    #[serde(flatten)]
    others: Others<'a>,
}

#[derive(Debug, Serialize)]
struct Agent<'a> {
    env: Vec<EnvVar<'a>>,
    #[serde(flatten)]
    others: Others<'a>,
}

#[derive(Debug, Serialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
enum EnvVar<'a> {
    Theirs(&'a Value),
    Plain { name: &'static str, value: String },
    Secret { name: &'static str, value_from: EnvVarSource<'a> },
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EnvVarSource<'a> {
    secret_key_ref: SecretKeySelector<'a>,
}

#[derive(Debug, Serialize)]
struct SecretKeySelector<'a> {
    name: &'a str,
    key: &'static str,
}

/// Labels or annotations.
type Strings<'a> = BTreeMap<&'a str, Cow<'a, str>>;

/// The fields of an object of the definition that we leave as they are: all but those that stand beside it.
#[derive(Debug)]
struct Others<'a> {
    object: Option<&'a Map<String, Value>>,
    but: &'static [&'static str],
}

impl Serialize for Others<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = self.object.into_iter().flatten();
        serializer.collect_map(fields.filter(|(name, _)| !self.but.contains(&name.as_str())))
    }
}

/// What becomes of the Job when its pod fails.
#[derive(Debug)]
struct PodFailurePolicy;

impl Serialize for PodFailurePolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        static RULES: LazyLock<Value> = LazyLock::new(|| {
            let refused = json!({ "containerName": AGENT, "operator": "In", "values": [JOB_REFUSED] });
            // Lost to a drain, a preemption or a spot reclaim: made again, and not counted.
            let disrupted = json!([{ "type": "DisruptionTarget", "status": "True" }]);
            json!({
                "rules": [
                    { "action": "FailJob", "onExitCodes": refused },
                    { "action": "Ignore", "onPodConditions": disrupted },
                ],
            })
        });
        RULES.serialize(serializer)
    }
}

/// Builds the Job whose pod takes `job`, on `queue` where the job names one.
pub fn build<'a>(
    job: &'a ScheduledJob,
    queue: Option<&'a str>,
    definition: &'a PodDefinition,
    config: &'a Config,
) -> Job<'a> {
    let (labels, annotations) = (labels(job, queue, definition), annotations(job, definition));
    let template = definition.template();
    let (metadata, spec) = (&template["metadata"], &template["spec"]);
    let agent = definition.agent();
    let env = env(agent, job, queue, definition, config);
    let agent = Agent { env, others: Others { object: agent.as_object(), but: &["env"] } };
    Job {
        api_version: "batch/v1",
        kind: "Job",
        metadata: ObjectMeta {
            name: name(job.uuid),
            namespace: &config.namespace,
            labels: labels.clone(),
            annotations: annotations.clone(),
        },
        spec: JobSpec {
            // A second agent could not acquire the job anyway.
            backoff_limit: 0,
            active_deadline_seconds: config.job_active_deadline_seconds,
            ttl_seconds_after_finished: config.job_ttl_seconds,
            pod_failure_policy: PodFailurePolicy,
            template: PodTemplateSpec {
                metadata: PodMeta {
                    labels,
                    annotations,
                    others: Others { object: metadata.as_object(), but: &["labels", "annotations"] },
                },
                spec: PodSpec {
                    restart_policy: "Never",
                    containers: [agent],
                    others: Others { object: spec.as_object(), but: &["restartPolicy", "containers"] },
                },
                others: Others { object: template.as_object(), but: &["metadata", "spec"] },
            },
        },
    }
}

/// Tells the agent which job to take, with which token and under which tags. A variable of ours stands where the definition
/// has one of its name, so that what refers to it still does.
fn env<'a>(
    agent: &'a Value,
    job: &ScheduledJob,
    queue: Option<&str>,
    definition: &PodDefinition,
    config: &'a Config,
) -> Vec<EnvVar<'a>> {
    let theirs = agent["env"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named = |name: &str| theirs.iter().position(|variable| variable["name"] == name);
    let mut env: Vec<_> = theirs.iter().map(EnvVar::Theirs).collect();
    let mut set = |name, variable| match named(name) {
        Some(place) => env[place] = variable,
        None => env.push(variable),
    };

    let own_tags = named("BUILDKITE_AGENT_TAGS").and_then(|place| theirs[place]["value"].as_str());
    let mut tags = own_tags.unwrap_or_default().to_owned();
    let mut add = |key: &str, value: &str| {
        let comma = if tags.is_empty() { "" } else { "," };
        tags.extend([comma, key, "=", value]);
    };
    for tag in &config.agent_tags {
        add(&tag.key, &tag.value);
    }
    if let Some(queue) = queue {
        add("queue", queue);
    }
    add("pod-definition", definition.name());

    let uuid = job.uuid.to_string();
    set("BUILDKITE_AGENT_ACQUIRE_JOB", EnvVar::Plain { name: "BUILDKITE_AGENT_ACQUIRE_JOB", value: uuid });
    set("BUILDKITE_AGENT_TAGS", EnvVar::Plain { name: "BUILDKITE_AGENT_TAGS", value: tags });
    if !definition.brings_agent_token() {
        let secret_key_ref = SecretKeySelector { name: &config.agent_token_secret, key: TOKEN_KEY };
        let value_from = EnvVarSource { secret_key_ref };
        set("BUILDKITE_AGENT_TOKEN", EnvVar::Secret { name: "BUILDKITE_AGENT_TOKEN", value_from });
    }
    env
}

/// What the definition says itself wins, but for the labels that we find the Job by.
fn labels<'a>(job: &ScheduledJob, queue: Option<&'a str>, definition: &'a PodDefinition) -> Strings<'a> {
    let mut labels = Strings::new();
    // A queue key may be longer than a label, or end in `-`: then the Job goes without that label.
    if let Some(queue) = queue.filter(|queue| is_label_value(queue)) {
        labels.insert("buildkite.com/queue", queue.into());
    }
    labels.extend(definition.metadata("labels"));
    labels.insert(MANAGED_BY_LABEL, MANAGER.into());
    labels.insert(JOB_UUID_LABEL, job.uuid.to_string().into());
    labels
}

/// What leads from the Job back to its build, as far as the event tells, and what keeps its node from being taken away. What
/// the definition says itself wins.
fn annotations<'a>(job: &'a ScheduledJob, definition: &'a PodDefinition) -> Strings<'a> {
    let mut annotations = Strings::from([
        ("buildkite.com/pod-definition", definition.name().into()),
        ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false".into()),
        ("karpenter.sh/do-not-disrupt", "true".into()),
    ]);
    let told = [
        ("buildkite.com/pipeline", &job.pipeline),
        ("buildkite.com/branch", &job.branch),
        ("buildkite.com/commit", &job.commit),
        ("buildkite.com/step-key", &job.step_key),
    ];
    annotations.extend(told.into_iter().filter_map(|(key, value)| Some((key, cut(value.as_deref()?).into()))));
    if let (Some(organization), Some(pipeline), Some(number)) = (&job.organization, &job.pipeline, job.build_number) {
        let build = format!("https://buildkite.com/{organization}/{pipeline}/builds/{number}");
        // One that is cut leads nowhere.
        if build.len() <= LONGEST_ANNOTATION {
            annotations.insert("buildkite.com/job-url", format!("{build}#{}", job.uuid).into());
            annotations.insert("buildkite.com/build-url", build.into());
        }
    }
    annotations.extend(definition.metadata("annotations"));
    annotations
}

fn cut(value: &str) -> &str {
    &value[..value.floor_char_boundary(LONGEST_ANNOTATION)]
}

fn is_label_value(value: &str) -> bool {
    let ends = [value.as_bytes().first(), value.as_bytes().last()];
    value.len() <= 63 && ends.into_iter().flatten().all(u8::is_ascii_alphanumeric)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1;

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
        json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "agent", "image": "agent:4"}]}})
    }

    fn build_json(job: &ScheduledJob, queue: Option<&str>, definition: &PodDefinition, config: &Config) -> Value {
        serde_json::to_value(build(job, queue, definition, config)).unwrap()
    }

    fn built(template: &Value, variables: &[(&str, &str)]) -> Value {
        build_json(&scheduled(), Some("default"), &definition(template), &config(variables))
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
        let typed: v1::Job = serde_json::from_value(job.clone()).unwrap();
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
        template["fieldOfTomorrow"] = json!(1);
        template["metadata"]["fieldOfTomorrow"] = json!(1);
        template["spec"]["fieldOfTomorrow"] = json!(1);
        template["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
        let template = &built(&template, &[])["spec"]["template"];
        let spec = &template["spec"];
        for object in [template, &template["metadata"], spec] {
            assert_eq!(object["fieldOfTomorrow"], 1);
        }
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
        let job = build_json(&scheduled(), None, &definition(&least()), &config(&[]));
        assert_eq!(env(&job, "BUILDKITE_AGENT_TAGS")["value"], "pod-definition=example");
        assert_eq!(job["metadata"]["labels"]["buildkite.com/queue"], Value::Null);
    }

    #[test]
    fn a_queue_that_is_no_label_value_is_no_label() {
        for queue in ["q-", "-q", &"q".repeat(64)] {
            let job = build_json(&scheduled(), Some(queue), &definition(&least()), &config(&[]));
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
    fn init_containers_are_left_alone() {
        let mut template = least();
        let dockerd = json!({"name": "dockerd", "image": "docker:dind", "restartPolicy": "Always"});
        template["spec"]["initContainers"] = json!([dockerd]);
        assert_eq!(built(&template, &[])["spec"]["template"]["spec"]["initContainers"], json!([dockerd]));
    }

    #[test]
    fn an_event_that_tells_too_much_is_cut_between_two_characters() {
        let mut job = scheduled();
        let long = format!("a{}", "é".repeat(150_000));
        for field in [&mut job.pipeline, &mut job.branch, &mut job.commit, &mut job.step_key, &mut job.organization] {
            *field = Some(long.clone());
        }
        let job = build_json(&job, Some("default"), &definition(&least()), &config(&[]));
        for metadata in [&job["metadata"], &job["spec"]["template"]["metadata"]] {
            for key in ["pipeline", "branch", "commit", "step-key"] {
                let value = metadata["annotations"][format!("buildkite.com/{key}")].as_str().unwrap();
                assert!(long.starts_with(value) && value.len() == LONGEST_ANNOTATION - 1, "{key}: {}", value.len());
            }
            assert_eq!(metadata["annotations"]["buildkite.com/build-url"], Value::Null);
            assert_eq!(metadata["annotations"]["buildkite.com/job-url"], Value::Null);
        }
    }

    #[test]
    fn an_event_that_tells_little_gets_the_annotations_that_it_can() {
        let mut job = scheduled();
        (job.pipeline, job.branch, job.step_key) = (None, None, None);
        let job = build_json(&job, None, &definition(&least()), &config(&[]));
        let annotations = job["metadata"]["annotations"].as_object().unwrap();
        let keys: Vec<_> =
            annotations.keys().map(String::as_str).filter(|key| key.starts_with("buildkite.com/")).collect();
        assert_eq!(keys, ["buildkite.com/commit", "buildkite.com/pod-definition"]);
    }
}
