//! The Kubernetes Job that runs one Buildkite job: the pod definition's own JSON with our parts on top.
//!
//! Why each field of the spec is set: <https://kubernetes.io/docs/concepts/workloads/controllers/job/>.

use std::{borrow::Cow, sync::LazyLock};

use k8s_openapi::api::batch::v1 as batch;
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};
use uuid::Uuid;

use super::{
    attempt::{self, Attempt},
    definition::{AGENT, PodDefinition, variable},
    metadata,
};
use crate::{
    buildkite::job::ScheduledJob,
    json::{Writer, without},
    stack::Stack,
};

/// The variable of the agent's container that has its token.
pub const TOKEN_VARIABLE: &str = "BUILDKITE_AGENT_TOKEN";

/// The key of the agent token in its Secret.
pub const TOKEN_KEY: &str = "token";

/// How many pods may replace one that failed before its agent ran.
const BACKOFF_LIMIT: u32 = 3;

/// What becomes of the Job when its pod fails. The first rule that matches counts. A pod that matches none is replaced: the kubelet
/// refused it, or an init container failed, and its agent never ran.
static POD_FAILURE_POLICY: LazyLock<Box<RawValue>> = LazyLock::new(|| {
    let agent_exits = |operator: &str, code| batch::PodFailurePolicyRule {
        action: "FailJob".to_owned(),
        on_exit_codes: Some(batch::PodFailurePolicyOnExitCodesRequirement {
            container_name: Some(AGENT.to_owned()),
            operator: operator.to_owned(),
            values: vec![code],
        }),
        on_pod_conditions: None,
    };
    // Buildkite refused the agent the job: another agent has it, or it was cancelled.
    let refused = agent_exits("In", 27);
    // A drain, a preemption or a spot reclaim ended this pod: it is replaced, and not counted. If its agent had the job, Buildkite refuses
    // the new one. An agent that had the time to end has ended with 0: then the pod has succeeded, and no rule is asked.
    let (type_, status) = ("DisruptionTarget".to_owned(), "True".to_owned());
    let disrupted = batch::PodFailurePolicyRule {
        action: "Ignore".to_owned(),
        on_exit_codes: None,
        on_pod_conditions: Some(vec![batch::PodFailurePolicyOnPodConditionsPattern { type_, status }]),
    };
    // In all other cases an agent that ran is not replaced.
    let ended = agent_exits("NotIn", 0);
    to_raw_value(&batch::PodFailurePolicy { rules: vec![refused, disrupted, ended] })
        .expect("texts and numbers are JSON")
});

/// Name of the Secret for the token of one Job. Its suffix is random, so that it never meets the Secret of an earlier Job that is not
/// collected yet.
pub fn token_secret(job: Uuid, suffix: &str) -> String {
    format!("{}-{suffix}", name(job))
}

/// Whether a Secret is that of the token of a Job of this name, and not one that several share.
pub fn is_token_secret(secret: &str, job: &str) -> bool {
    secret.strip_prefix(job).is_some_and(|suffix| suffix.starts_with('-'))
}

/// Name of the Kubernetes Job that runs a Buildkite job.
///
/// The same job always gets the same name, so an event delivered twice meets `AlreadyExists` instead of starting a second
/// agent. 46 characters long: the Job controller copies the name into a pod label, which holds at most 63.
pub fn name(job: Uuid) -> String {
    format!("buildkite-{job}")
}

/// The Job of one Buildkite job.
#[derive(Debug)]
pub struct Job<'a> {
    scheduled: &'a ScheduledJob,
    queue: Option<&'a str>,
    attempt: Option<Attempt>,
    definition: &'a PodDefinition,
    stack: &'a Stack,
    token_secret: &'a str,
}

/// Builds the Job whose pod takes the scheduled job, on `queue` where the job names one. `attempt` is absent for the first one.
pub fn build<'a>(
    scheduled: &'a ScheduledJob,
    queue: Option<&'a str>,
    attempt: Option<Attempt>,
    definition: &'a PodDefinition,
    stack: &'a Stack,
) -> Job<'a> {
    Job { scheduled, queue, attempt, definition, stack, token_secret: &stack.agent_token_secret }
}

impl<'a> Job<'a> {
    /// The agent's token is in that Secret, and not in the one that all Jobs share.
    #[must_use]
    pub fn with_token_secret(self, token_secret: &'a str) -> Self {
        Self { token_secret, ..self }
    }
}

/// What each Job of a definition has of it, as JSON: an event's CPU time is spent on what differs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fixed {
    /// The fields that are not ours: of the template, of the pod's metadata, of its spec, and of its agent.
    template: String,
    metadata: String,
    spec: String,
    agent: String,
    /// The agent's variables, each with its name.
    env: Vec<(String, String)>,
}

impl Fixed {
    pub(super) fn of(template: &Value) -> Self {
        let spec = &template["spec"];
        let agent = &spec["containers"][0];
        let env = agent["env"].as_array().into_iter().flatten();
        let named = |variable: &Value| (variable["name"].as_str().unwrap_or_default().to_owned(), variable.to_string());
        Self {
            template: without(template, |name| matches!(name, "metadata" | "spec")),
            metadata: without(&template["metadata"], |name| matches!(name, "labels" | "annotations")),
            spec: without(spec, |name| matches!(name, "restartPolicy" | "containers")),
            agent: without(agent, |name| name == "env"),
            env: env.map(named).collect(),
        }
    }

    pub(super) fn sets(&self, variable: &str) -> bool {
        self.env.iter().any(|(name, _)| name == variable)
    }
}

impl Job<'_> {
    /// As it is sent.
    pub fn json(&self) -> Vec<u8> {
        let Self { scheduled: job, queue, attempt, definition, stack, token_secret } = *self;
        let fixed = &definition.fixed;
        let (of_pod, of_job) = (&definition.template()["metadata"], &definition.metadata_of_job);
        let uuid = job.uuid.to_string();
        let labels = metadata::labels(&uuid, queue, stack, &of_pod["labels"]);
        let annotations = metadata::annotations(job, &uuid, definition.name(), &of_pod["annotations"]);

        // Room for any Job of usual length.
        let mut json = Writer::with_capacity(8 * 1024);
        json.part(r#"{"apiVersion":"batch/v1","kind":"Job","metadata":{"#);
        json.text("name", &name(job.uuid));
        json.text("namespace", &stack.namespace);
        // What the Job alone has is for the sweep.
        labels.write(&mut json, "labels", &attempt::labels(attempt), &of_job["labels"]);
        annotations.write(&mut json, "annotations", &attempt::annotations(job, attempt), &of_job["annotations"]);
        json.end("}");

        json.begin("spec", "{");
        json.field("backoffLimit", &BACKOFF_LIMIT);
        json.field("activeDeadlineSeconds", &stack.job_active_deadline_seconds);
        json.field("ttlSecondsAfterFinished", &stack.job_ttl_seconds);
        json.field("podFailurePolicy", &**POD_FAILURE_POLICY);
        json.begin("template", "{");
        json.part(&fixed.template);
        json.begin("metadata", "{");
        labels.write(&mut json, "labels", &[], &of_pod["labels"]);
        annotations.write(&mut json, "annotations", &[], &of_pod["annotations"]);
        json.part(&fixed.metadata);
        json.end("}");

        json.begin("spec", "{");
        json.part(&fixed.spec);
        json.part(r#""restartPolicy":"Never","containers":[{"#);
        json.part(&fixed.agent);
        json.begin("env", "[");
        // Which job to take, under which tags and with which token.
        let tags = tags(queue, definition, stack);
        let ours = [
            ("BUILDKITE_AGENT_ACQUIRE_JOB", Source::Text(&uuid)),
            ("BUILDKITE_AGENT_TAGS", Source::Text(&tags)),
            (TOKEN_VARIABLE, Source::Secret(token_secret)),
        ];
        env(&mut json, &fixed.env, if definition.brings_agent_token() { &ours[..2] } else { &ours });
        json.end("]}]}}}}");
        json.into_bytes()
    }
}

/// What a variable of ours is set to.
enum Source<'a> {
    Text(&'a str),
    /// The token in this Secret.
    Secret(&'a str),
}

/// What the agent's container sets. A variable of ours takes the place of the definition's variable of that name, so that what
/// refers to it still does. No definition has a name twice.
fn env(json: &mut Writer, theirs: &[(String, String)], ours: &[(&str, Source)]) {
    for (theirs, variable) in theirs {
        match ours.iter().find(|(name, _)| name == theirs) {
            Some((name, source)) => set(json, name, source),
            None => json.part(variable),
        }
    }
    for (name, source) in ours.iter().filter(|(ours, _)| theirs.iter().all(|(name, _)| name != ours)) {
        set(json, name, source);
    }
}

fn set(json: &mut Writer, name: &str, source: &Source) {
    json.part("{");
    json.text("name", name);
    match source {
        Source::Text(text) => json.text("value", text),
        Source::Secret(secret) => {
            json.begin("valueFrom", r#"{"secretKeyRef":{"#);
            json.text("name", secret);
            json.text("key", TOKEN_KEY);
            json.end("}}");
        }
    }
    json.end("}");
}

/// The definition's own tags, and what the job was matched by. Kubernetes expands `$(NAME)` in a variable's value: in the definition's
/// tags its author wants that, in ours the agent gets what the operator wrote.
fn tags(queue: Option<&str>, definition: &PodDefinition, stack: &Stack) -> String {
    let own = variable(definition.agent(), "BUILDKITE_AGENT_TAGS").and_then(|own| own["value"].as_str());
    let ours = stack.agent_tags.iter().map(|tag| (&*tag.key, &*tag.value));
    let ours = ours.chain(queue.map(|queue| ("queue", queue))).chain([("pod-definition", definition.name())]);
    let mut tags = own.unwrap_or_default().to_owned();
    for (key, value) in ours {
        let comma = if tags.is_empty() { "" } else { "," };
        tags.extend([comma, &verbatim(key), "=", &verbatim(value)]);
    }
    tags
}

fn verbatim(text: &str) -> Cow<'_, str> {
    if text.contains('$') { text.replace('$', "$$").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1;
    use serde_json::json;

    use super::*;
    use crate::{
        buildkite::event::fixtures::scheduled,
        pod::{
            definition::{
                MARKS_OF_CONTROLLERS,
                fixtures::{definition, template},
            },
            metadata::{MAX_ANNOTATION_BYTES, STACK_LABEL},
        },
        stack::fixtures::{stack, tags},
    };

    const UUID: &str = "11111111-2222-4333-8444-555555555501";

    fn build_json(job: &ScheduledJob, queue: Option<&str>, definition: &PodDefinition, stack: &Stack) -> Value {
        serde_json::from_slice(&build(job, queue, None, definition, stack).json()).unwrap()
    }

    fn built(template: &Value) -> Value {
        let stack = Stack { agent_tags: tags(&[("os", "linux")]), ..stack() };
        build_json(&scheduled(), Some("kubernetes"), &definition(template), &stack)
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
        let expected: Value = serde_json::from_str(include_str!("../../tests/fixtures/job.json")).unwrap();
        let job = built(&template());
        assert_eq!(serde_json::to_string_pretty(&job).unwrap(), serde_json::to_string_pretty(&expected).unwrap());
    }

    #[test]
    fn every_field_is_known_to_kubernetes() {
        let job = built(&template());
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
    fn a_token_of_its_own_has_a_secret_of_its_own() {
        let (uuid, template, stack) = (UUID.parse().unwrap(), template(), stack());
        let secret = token_secret(uuid, "x2f7q");
        assert!(is_token_secret(&secret, &name(uuid)), "{secret}");
        for other in [&*name(uuid), "buildkite-agent-token", &token_secret(Uuid::nil(), "x2f7q")] {
            assert!(!is_token_secret(other, &name(uuid)), "{other}");
        }
        let (job, definition) = (scheduled(), definition(&template));
        let built = build(&job, None, None, &definition, &stack).with_token_secret(&secret);
        let built = serde_json::from_slice(&built.json()).unwrap();
        let reference = json!({"secretKeyRef": {"name": secret, "key": "token"}});
        assert_eq!(env(&built, "BUILDKITE_AGENT_TOKEN")["valueFrom"], reference);
    }

    #[test]
    fn what_the_definition_says_wins_except_for_the_labels_we_find_the_job_by() {
        let mut template = template();
        template["metadata"] = json!({
            "labels": {
                "team": "web", "buildkite.com/queue": "theirs",
                "app.kubernetes.io/managed-by": "theirs", "buildkite.com/job-uuid": "theirs", STACK_LABEL: "theirs",
            },
            "annotations": {"karpenter.sh/do-not-disrupt": "false", "note": "kept"},
        });
        let job = built(&template);
        for metadata in [&job["metadata"], &job["spec"]["template"]["metadata"]] {
            assert_eq!(
                metadata["labels"],
                json!({
                    "team": "web", "buildkite.com/queue": "theirs",
                    "app.kubernetes.io/managed-by": "agent-scheduler", "buildkite.com/job-uuid": UUID,
                    STACK_LABEL: "0123456789abcdef0123456789abcdef",
                })
            );
            assert_eq!(metadata["annotations"]["karpenter.sh/do-not-disrupt"], "false");
            assert_eq!(metadata["annotations"]["note"], "kept");
            assert_eq!(metadata["annotations"]["buildkite.com/branch"], "main");
        }
    }

    #[test]
    fn the_marks_of_other_controllers_stay_on_the_pod() {
        let mut template = template();
        let marks =
            MARKS_OF_CONTROLLERS.map(|mark| if mark.contains('/') { mark.to_owned() } else { format!("{mark}/x") });
        for kind in ["labels", "annotations"] {
            for name in marks.iter().map(String::as_str).chain(["team", "app.kubernetes.io/name", "argocd.example/x"]) {
                template["metadata"][kind][name] = json!("web");
            }
        }
        let job = built(&template);
        for kind in ["labels", "annotations"] {
            let (of_job, of_pod) = (&job["metadata"][kind], &job["spec"]["template"]["metadata"][kind]);
            for mark in &marks {
                assert_eq!((&of_job[mark], &of_pod[mark]), (&Value::Null, &json!("web")), "{mark}");
            }
            for kept in ["team", "app.kubernetes.io/name", "argocd.example/x"] {
                assert_eq!((&of_job[kept], &of_pod[kept]), (&json!("web"), &json!("web")), "{kept}");
            }
        }
        assert_eq!(job["metadata"]["labels"]["buildkite.com/job-uuid"], UUID);
    }

    #[test]
    fn fields_that_are_unknown_here_are_kept() {
        let mut template = template();
        template["fieldOfTomorrow"] = json!(1);
        template["metadata"]["fieldOfTomorrow"] = json!(1);
        template["spec"]["fieldOfTomorrow"] = json!(1);
        template["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
        let template = &built(&template)["spec"]["template"];
        let spec = &template["spec"];
        for object in [template, &template["metadata"], spec] {
            assert_eq!(object["fieldOfTomorrow"], 1);
        }
        assert_eq!(spec["containers"][0]["resources"]["requests"]["cpu"], "1");
    }

    #[test]
    fn the_definitions_own_tags_come_first_and_keep_their_place() {
        let mut template = template();
        template["spec"]["containers"][0]["env"] = json!([{"name": "BUILDKITE_AGENT_TAGS", "value": "docker=true"}, {"name": "LATER", "value": "$(BUILDKITE_AGENT_TAGS)"}]);
        let job = built(&template);
        let tags = env(&job, "BUILDKITE_AGENT_TAGS");
        assert_eq!(tags["value"], "docker=true,os=linux,queue=kubernetes,pod-definition=example");
        assert_eq!(job["spec"]["template"]["spec"]["containers"][0]["env"][0], *tags);
    }

    #[test]
    fn kubernetes_expands_the_definitions_tags_and_not_ours() {
        let mut template = template();
        template["spec"]["containers"][0]["env"] = json!([{"name": "BUILDKITE_AGENT_TAGS", "value": "node=$(NODE)"}]);
        let stack = Stack { agent_tags: tags(&[("home", "$(HOME)"), ("price", "$$5"), ("end", "$")]), ..stack() };
        let job = build_json(&scheduled(), None, &definition(&template), &stack);
        let expected = "node=$(NODE),home=$$(HOME),price=$$$$5,end=$$,pod-definition=example";
        assert_eq!(env(&job, "BUILDKITE_AGENT_TAGS")["value"], expected);
    }

    #[test]
    fn a_job_without_a_queue_gets_an_agent_without_one() {
        let job = build_json(&scheduled(), None, &definition(&template()), &stack());
        assert_eq!(env(&job, "BUILDKITE_AGENT_TAGS")["value"], "pod-definition=example");
        assert_eq!(job["metadata"]["labels"]["buildkite.com/queue"], Value::Null);
    }

    #[test]
    fn a_queue_that_is_no_label_value_is_no_label() {
        for queue in ["q-", "-q", &"q".repeat(64)] {
            let job = build_json(&scheduled(), Some(queue), &definition(&template()), &stack());
            assert_eq!(job["metadata"]["labels"]["buildkite.com/queue"], Value::Null, "{queue}");
        }
    }

    #[test]
    fn a_definition_that_brings_the_token_is_left_alone() {
        let theirs = json!({"name": "BUILDKITE_AGENT_TOKEN", "value": "file:///var/run/token"});
        let mut template = template();
        template["spec"]["containers"][0]["env"] = json!([theirs]);
        assert_eq!(*env(&built(&template), "BUILDKITE_AGENT_TOKEN"), theirs);
    }

    #[test]
    fn init_containers_are_left_alone() {
        let mut template = template();
        let dockerd = json!({"name": "dockerd", "image": "docker:dind", "restartPolicy": "Always"});
        template["spec"]["initContainers"] = json!([dockerd]);
        assert_eq!(built(&template)["spec"]["template"]["spec"]["initContainers"], json!([dockerd]));
    }

    #[test]
    fn an_event_with_long_values_is_cut_between_two_characters() {
        let mut job = scheduled();
        let long = format!("a{}", "é".repeat(150_000));
        for field in [&mut job.pipeline, &mut job.branch, &mut job.commit, &mut job.step_key, &mut job.organization] {
            *field = Some(long.clone());
        }
        let job = build_json(&job, Some("kubernetes"), &definition(&template()), &stack());
        for metadata in [&job["metadata"], &job["spec"]["template"]["metadata"]] {
            for key in ["pipeline", "branch", "commit", "step-key"] {
                let value = metadata["annotations"][format!("buildkite.com/{key}")].as_str().unwrap();
                assert!(long.starts_with(value) && value.len() == MAX_ANNOTATION_BYTES - 1, "{key}: {}", value.len());
            }
            assert_eq!(metadata["annotations"]["buildkite.com/build-url"], Value::Null);
            assert_eq!(metadata["annotations"]["buildkite.com/job-url"], Value::Null);
        }
    }

    #[test]
    fn an_event_with_few_fields_gets_the_annotations_that_it_can() {
        let mut job = scheduled();
        (job.pipeline, job.branch, job.step_key) = (None, None, None);
        let job = build_json(&job, None, &definition(&template()), &stack());
        let annotations = job["metadata"]["annotations"].as_object().unwrap();
        let keys: Vec<_> =
            annotations.keys().map(String::as_str).filter(|key| key.starts_with("buildkite.com/")).collect();
        assert_eq!(keys, ["buildkite.com/commit", "buildkite.com/pod-definition"]);
    }
}
