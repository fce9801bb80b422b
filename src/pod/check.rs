//! The rules of a pod definition. They find the mistakes that the API server accepts and that show only later: in a pod that
//! never ends, or in an agent that does not start. All problems are reported; a rule skips what another one has refused.

use std::{collections::BTreeSet, path::Path, time::Duration};

use serde_json::{Map, Value};

use super::{
    agent_options,
    definition::{AGENT, ALLOW_IMAGE, ALLOW_PIPELINES, MAX_CPU, MAX_MEMORY, Problem, slugs, variable},
    duration, fargate,
    field::Field,
    image_reference,
    quantity::Quantity,
};
use crate::text::excerpt;

type Test = fn(&Value) -> bool;

/// What must have this type if it is there: the function adds to it, or looks into it.
const TYPES: [(&str, Test, &str); 5] = [
    ("spec containers|initContainers|volumes", Value::is_array, "a list"),
    ("spec containers * command|args|env|volumeMounts", Value::is_array, "a list"),
    ("spec containers * resources", Value::is_object, "a map"),
    ("spec containers * resources requests|limits", Value::is_object, "a map"),
    ("metadata labels|annotations", is_map_of_strings, "a map of strings"),
];

/// The values of the annotations of ours.
const ANNOTATIONS: [(&str, Test, &str); 4] = [
    (ALLOW_PIPELINES, is_slugs, "slugs of pipelines, separated by commas, such as \"deploy, release\""),
    (ALLOW_IMAGE, |allow| allow == "true" || allow == "false", "\"true\" or \"false\""),
    (MAX_CPU, is_quantity, QUANTITY),
    (MAX_MEMORY, is_quantity, QUANTITY),
];

const OUR_ANNOTATIONS: &str = "agent-scheduler.buildkite.com/";

const QUANTITY: &str = "a quantity of Kubernetes, such as \"4\" or \"8Gi\"";

/// What Kubernetes takes if `terminationGracePeriodSeconds` is not set.
const GRACE_PERIOD: u64 = 30;

/// Whether a manifest is that of a `PodTemplate`.
pub(super) fn kind(manifest: &Value) -> Option<Problem> {
    let (version, kind) = (&manifest["apiVersion"], &manifest["kind"]);
    let problem = || format!("must be PodTemplate of apiVersion v1, is {} of {}", found(kind), found(version));
    let is_right = version == "v1" && kind == "PodTemplate";
    (!is_right).then(|| Problem { field: "kind".to_owned(), problem: problem() })
}

/// All that is wrong with a manifest.
pub(super) fn check(manifest: &Value) -> Vec<Problem> {
    let root = Field { path: String::new(), value: manifest };
    let (metadata, template) = (root.get("metadata"), root.get("template"));
    let (spec, annotations) = (template.get("spec"), metadata.get("annotations"));

    let mut problems = Vec::new();
    let name =
        "the name that a step asks for, of lowercase letters, digits, `-` and `.`, with a letter or digit at both ends";
    problems.extend(must_be(&metadata.get("name"), is_name, name));
    for (pattern, is_right, kind) in TYPES {
        problems.extend(template.select(pattern).iter().filter_map(|field| may_be(field, is_right, kind)));
    }
    problems.extend(images(&spec));
    problems.extend(repeated_variables(&spec));
    problems.extend(containers(&spec.get("containers")));
    // A Buildkite job runs once.
    problems.extend(must_be(&spec.get("restartPolicy"), |policy| policy == "Never", "Never"));
    if let Some(agent) = spec.select("containers *").into_iter().find(is_agent) {
        problems.extend(restarts(&agent));
        problems.extend(agent_options::check(&agent));
        problems.extend(start(&agent));
        problems.extend(grace_period(&spec, &agent));
        problems.extend(read_only(&agent));
    }
    problems.extend(fargate::check(&template));
    problems.extend(may_be(&annotations, Value::is_object, "a map"));
    problems.extend(annotations_without_effect(&annotations, &template.get("metadata").get("annotations")));
    for (name, is_right, what) in ANNOTATIONS {
        // One without a value is not absent: its author wanted a limit.
        problems.extend(annotations.value.get(name).and_then(|_| must_be(&annotations.get(name), is_right, what)));
    }
    problems
}

/// What jobs risk that run in a definition without a mistake.
pub(super) fn warning(template: &Value) -> Option<Problem> {
    let template = Field { path: "template".to_owned(), value: template };
    let agent = template.select("spec containers *").into_iter().find(is_agent)?;
    let hook = agent.get("lifecycle").get("preStop");
    let text = "is absent: when Kubernetes stops the pod, as in a drain, the agent waits for its job until \
                terminationGracePeriodSeconds have passed, and is killed with it; the command gets no SIGTERM, and Buildkite does \
                not learn the end of the job; copy the hook and the grace period of pod-definitions/default.yaml";
    (!is_set(hook.value)).then(|| hook.problem(text))
}

/// Their author believes in a limit that does not exist: a misspelt one, or one on the pod in place of the definition.
fn annotations_without_effect(of_definition: &Field, of_pod: &Field) -> Vec<Problem> {
    let known = ANNOTATIONS.map(|(name, ..)| name);
    let unknown = format!("is unknown, so it limits nothing; the known ones are {}", known.join(", "));
    let misplaced = "has no effect on a pod; move it to metadata.annotations of the PodTemplate";
    let mut problems = Vec::new();
    for (annotations, allowed, text) in [(of_definition, &known[..], &*unknown), (of_pod, &[], misplaced)] {
        let names = annotations.value.as_object().into_iter().flat_map(Map::keys);
        let ours = names.filter(|name| name.starts_with(OUR_ANNOTATIONS) && !allowed.contains(&&***name));
        problems.extend(ours.map(|name| annotations.get(name).problem(text)));
    }
    problems
}

fn must_be(field: &Field, is_right: Test, what: &str) -> Option<Problem> {
    (!is_right(field.value)).then(|| field.problem(format!("must be {what}, is {}", found(field.value))))
}

/// The same for a field that may be absent.
fn may_be(field: &Field, is_right: Test, what: &str) -> Option<Problem> {
    if is_set(field.value) { must_be(field, is_right, what) } else { None }
}

fn images(spec: &Field) -> Vec<Problem> {
    let images = ["containers|initContainers * image", "volumes * image reference"].map(|pattern| spec.select(pattern));
    let problem = |image: Field| {
        let wrong = image_reference::check(image.value.as_str()?).err()?;
        Some(image.problem(format!("must be the reference of an image, is {}, {wrong}", found(image.value))))
    };
    images.into_iter().flatten().filter_map(problem).collect()
}

/// Kubernetes takes the last one, which would also replace one that the function sets.
fn repeated_variables(spec: &Field) -> Vec<Problem> {
    let mut problems = Vec::new();
    for container in spec.select("containers|initContainers *") {
        let mut names = BTreeSet::new();
        for variable in container.select("env *") {
            let Some(name) = variable.value["name"].as_str().filter(|name| !names.insert(*name)) else { continue };
            let text =
                format!("must not be {} again: Kubernetes takes the last one; remove one of them", excerpt(name));
            problems.push(variable.problem(text));
        }
    }
    problems
}

fn containers(field: &Field) -> Vec<Problem> {
    let mut containers = field.each();
    if is_set(field.value) && !field.value.is_array() {
        return Vec::new();
    }
    let Some(agent) = containers.iter().position(is_agent) else {
        return vec![field.problem(format!("must have one named {AGENT}, which runs the Buildkite agent"))];
    };
    containers.remove(agent);
    let beside = |container: &Field| {
        container.problem(format!(
            "is {}, a container beside {AGENT}: it would keep the pod running when the agent has ended; move it to \
             template.spec.initContainers with restartPolicy: Always, which makes it a sidecar",
            found(&container.value["name"])
        ))
    };
    containers.iter().map(beside).collect()
}

/// Kubernetes 1.35 accepts these of a container that is not a sidecar.
fn restarts(agent: &Field) -> Vec<Problem> {
    let text = "must not be set: a Buildkite job runs once, so its agent must not be started again; remove it";
    let fields = agent.select("restartPolicy|restartPolicyRules").into_iter().filter(|field| is_set(field.value));
    fields.map(|field| field.problem(text)).collect()
}

/// Arguments take the place of the image's own, which are `start`; a command takes that of its entry point, too.
fn start(agent: &Field) -> Option<Problem> {
    let args = agent.get("args");
    let starts_by_args = match agent.value["command"].as_array().and_then(|words| words.last()?.as_str()) {
        Some(program) => program.rsplit('/').next() == Some("buildkite-agent"),
        None => !args.each().is_empty(),
    };
    let text = || format!("must begin with start, before the agent's options, is {}", found(args.value));
    (starts_by_args && args.value[0] != "start").then(|| args.problem(text()))
}

/// An agent that is killed while it cancels a job leaves that job running in Buildkite.
fn grace_period(spec: &Field, agent: &Field) -> Vec<Problem> {
    let field = spec.get("terminationGracePeriodSeconds");
    let given = field.value.as_u64().unwrap_or(GRACE_PERIOD);
    let plain = |name: &str| variable(agent.value, name)?["value"].as_str();

    let (mut problems, mut cancel) = (Vec::new(), Duration::ZERO);
    for (name, default) in [("BUILDKITE_CANCEL_SIGNAL_TIMEOUT", "10s"), ("BUILDKITE_CANCEL_CLEANUP_TIMEOUT", "5s")] {
        let text = plain(name).unwrap_or(default);
        cancel += duration::parse(text).unwrap_or_else(|| {
            let text = format!("must have a duration such as 30s for {name}, has \"{}\"", excerpt(text));
            problems.push(agent.get("env").problem(text));
            Duration::ZERO
        });
    }
    // The name that agents of version 3 know, in seconds.
    let of_version_3 = plain("BUILDKITE_CANCEL_GRACE_PERIOD").and_then(|text| text.parse().ok());
    let needed = cancel.max(Duration::from_secs(of_version_3.unwrap_or_default()));
    if Duration::from_secs(given) <= needed {
        let seconds = needed.as_secs() + u64::from(needed.subsec_nanos() > 0);
        problems.push(field.problem(format!(
            "must be more than the {seconds} s that the agent takes to cancel a job (BUILDKITE_CANCEL_SIGNAL_TIMEOUT, by \
             default 10s, and BUILDKITE_CANCEL_CLEANUP_TIMEOUT, by default 5s; version 3: BUILDKITE_CANCEL_GRACE_PERIOD), \
             is {given}"
        )));
    }
    problems
}

/// An agent that cannot write to these folders acquires its job, and never reports the end of it.
fn read_only(agent: &Field) -> Option<Problem> {
    let set = |name: &str| variable(agent.value, name).map(|own| own["value"].as_str());
    let home = set("HOME").unwrap_or(Some("/root")).map(|home| format!("{home}/.buildkite-agent"));
    let folders = [
        ("BUILDKITE_BUILD_PATH", Some("/buildkite/builds")),
        ("BUILDKITE_PLUGINS_PATH", Some("/buildkite/plugins")),
        ("BUILDKITE_SOCKETS_PATH", home.as_deref()),
        ("TMPDIR", Some("/tmp")),
    ];
    let mounts = agent.select("volumeMounts * mountPath");
    let is_mounted =
        |folder: &str| mounts.iter().any(|path| Path::new(folder).starts_with(path.value.as_str().unwrap_or("-")));
    // What comes from a source that is not known here is not checked.
    let folders = folders.into_iter().filter_map(|(name, default)| set(name).unwrap_or(default));
    let missing: Vec<_> = folders.filter(|folder| !is_mounted(folder)).collect();
    let context = agent.get("securityContext");
    (context.value["readOnlyRootFilesystem"] == true && !missing.is_empty()).then(|| {
        context.problem(format!(
            "has readOnlyRootFilesystem, and the agent must write to {}; mount an emptyDir there",
            missing.join(", ")
        ))
    })
}

fn is_agent(container: &Field) -> bool {
    container.value["name"] == AGENT
}

/// As Kubernetes requires it. Such a name is also safe within the agent's tags.
fn is_name(name: &Value) -> bool {
    let is_label = |label: &str| {
        let ends = [label.as_bytes().first(), label.as_bytes().last()];
        ends.iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
            && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    name.as_str().is_some_and(|name| name.len() <= 253 && name.split('.').all(is_label))
}

fn is_map_of_strings(value: &Value) -> bool {
    value.as_object().is_some_and(|entries| entries.values().all(Value::is_string))
}

fn is_slugs(value: &Value) -> bool {
    let is_slug = |slug: &str| {
        !slug.is_empty() && slug.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    value.as_str().is_some_and(|text| slugs(text).all(is_slug))
}

fn is_quantity(value: &Value) -> bool {
    value.as_str().and_then(Quantity::parse).is_some()
}

fn is_set(value: &Value) -> bool {
    !value.is_null()
}

fn found(value: &Value) -> String {
    if value.is_null() { "absent".to_owned() } else { excerpt(&value.to_string()).into_owned() }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use serde_json::json;

    use super::*;
    use crate::pod::definition::{Invalid, PodDefinition};

    const SPEC: &str = "/template/spec";
    const AGENT: &str = "/template/spec/containers/0";
    const ENV: &str = "/template/spec/containers/0/env";
    const ARGS: &str = "/template/spec/containers/0/args";
    const COMMAND: &str = "/template/spec/containers/0/command";
    const RESOURCES: &str = "/template/spec/containers/0/resources";
    const CONTAINERS: &str = "/template/spec/containers";
    const INIT_CONTAINERS: &str = "/template/spec/initContainers";
    const VOLUMES: &str = "/template/spec/volumes";
    const LABELS: &str = "/template/metadata/labels";
    const GRACE_PERIOD: &str = "/template/spec/terminationGracePeriodSeconds";

    fn manifest() -> Value {
        json!({
            "apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "node"},
            "template": {
                "metadata": {},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "agent", "image": "agent:4"}]},
            },
        })
    }

    /// With these values at these places.
    fn changed(changes: &[(&str, Value)]) -> Result<PodDefinition, Invalid> {
        let mut manifest = manifest();
        for (path, value) in changes {
            let (parent, field) = path.rsplit_once('/').unwrap();
            manifest.pointer_mut(parent).unwrap()[field] = value.clone();
        }
        PodDefinition::parse("node.yaml", &manifest)
    }

    /// The change makes one problem, and its text begins as expected.
    fn refused(changes: &[(&str, Value)], expected: &str) {
        let invalid = changed(changes).unwrap_err();
        let text = invalid.to_string();
        assert!(text.starts_with(&format!("node.yaml: {expected}")), "{text}\nis not\n{expected}");
        assert_eq!(invalid.problems.len(), 1, "{text}");
    }

    fn env(name: &str, value: &str) -> Value {
        json!([{"name": name, "value": value}])
    }

    #[test]
    fn an_agent_without_a_hook_that_stops_it_is_a_warning() {
        let warning = changed(&[]).unwrap().warning().unwrap().to_string();
        assert!(warning.starts_with("template.spec.containers[0].lifecycle.preStop is absent: "), "{warning}");
        let hook = json!({"preStop": {"exec": {"command": ["kill", "-TERM", "1"]}}});
        assert_eq!(changed(&[("/template/spec/containers/0/lifecycle", hook)]).unwrap().warning(), None);
    }

    #[test]
    fn a_problem_names_its_file_its_field_and_what_to_do() {
        let agent = json!({"name": "agent"});
        let dockerd = json!({"name": "dockerd"});
        let second = [&agent, &dockerd].map(Clone::clone);
        let first = [&dockerd, &agent].map(Clone::clone);
        let cases = [
            ("/kind", json!("Pod"), "kind must be PodTemplate of apiVersion v1, is \"Pod\" of \"v1\""),
            ("/apiVersion", json!("v2"), "kind must be PodTemplate of apiVersion v1, is \"PodTemplate\" of \"v2\""),
            (
                "/metadata",
                json!({}),
                "metadata.name must be the name that a step asks for, of lowercase letters, digits, `-` and `.`, with a letter or digit at both ends, is absent",
            ),
            (
                "/metadata/name",
                json!("a,b"),
                "metadata.name must be the name that a step asks for, of lowercase letters, digits",
            ),
            (
                "/metadata/name",
                json!("-a"),
                "metadata.name must be the name that a step asks for, of lowercase letters, digits",
            ),
            (
                "/metadata/name",
                json!("a".repeat(254)),
                "metadata.name must be the name that a step asks for, of lowercase letters, digits",
            ),
            (CONTAINERS, json!([]), "template.spec.containers must have one named agent"),
            (CONTAINERS, json!([dockerd]), "template.spec.containers must have one named agent"),
            (
                CONTAINERS,
                json!(second),
                "template.spec.containers[1] is \"dockerd\", a container beside agent: it would keep the pod running when the \
                 agent has ended; move it to template.spec.initContainers with restartPolicy: Always",
            ),
            (CONTAINERS, json!(first), "template.spec.containers[0] is \"dockerd\", a container"),
            (CONTAINERS, json!([agent, agent]), "template.spec.containers[1] is \"agent\", a container"),
            (
                "/template/spec/restartPolicy",
                json!("OnFailure"),
                "template.spec.restartPolicy must be Never, is \"OnFailure\"",
            ),
            ("/template/spec/restartPolicy", json!(null), "template.spec.restartPolicy must be Never, is absent"),
            (
                ENV,
                json!([{"name": "A", "value": "b"}, {"name": "BUILDKITE_AGENT_ACQUIRE_JOB", "value": "1"}]),
                "template.spec.containers[0].env[1] must not be BUILDKITE_AGENT_ACQUIRE_JOB: every job sets its own; remove it",
            ),
            (
                ENV,
                env("BUILDKITE_AGENT_QUEUE", "q"),
                "template.spec.containers[0].env[0] must not be BUILDKITE_AGENT_QUEUE",
            ),
            (
                ENV,
                json!([{"name": "BUILDKITE_AGENT_TAGS", "valueFrom": {}}]),
                "template.spec.containers[0].env[0] must have a plain value for BUILDKITE_AGENT_TAGS",
            ),
            (
                ENV,
                env("BUILDKITE_AGENT_TAGS", "docker=true, queue=kubernetes"),
                "template.spec.containers[0].env[0] must not name a queue in BUILDKITE_AGENT_TAGS",
            ),
        ];
        for (path, value, expected) in cases {
            refused(&[(path, value)], expected);
        }
    }

    #[test]
    fn an_annotation_has_its_values() {
        let cases = [
            ("allow-image", json!("no"), "\"true\" or \"false\", is \"no\""),
            (
                "allow-pipelines",
                json!(""),
                "slugs of pipelines, separated by commas, such as \"deploy, release\", is \"\"",
            ),
            ("allow-pipelines", json!("deploy,"), "slugs of pipelines"),
            ("allow-pipelines", json!("My Pipeline"), "slugs of pipelines"),
            ("allow-pipelines", json!("organization/deploy"), "slugs of pipelines"),
            ("allow-pipelines", json!(["deploy"]), "slugs of pipelines"),
            ("allow-pipelines", json!(null), "slugs of pipelines"),
            ("max-memory", json!("8GB"), "a quantity of Kubernetes, such as \"4\" or \"8Gi\", is \"8GB\""),
            ("max-cpu", json!(4), "a quantity of Kubernetes"),
        ];
        for (name, value, expected) in cases {
            let annotations = json!({format!("agent-scheduler.buildkite.com/{name}"): value});
            let expected = format!("metadata.annotations[agent-scheduler.buildkite.com/{name}] must be {expected}");
            refused(&[("/metadata/annotations", annotations)], &expected);
        }
        refused(&[("/metadata/annotations", json!([]))], "metadata.annotations must be a map, is []");
        refused(
            &[(
                "/metadata/annotations",
                json!({"agent-scheduler.buildkite.com/allow-pipeline": "deploy", "note": "kept"}),
            )],
            "metadata.annotations[agent-scheduler.buildkite.com/allow-pipeline] is unknown, so it limits nothing; the known ones \
             are agent-scheduler.buildkite.com/allow-pipelines, agent-scheduler.buildkite.com/allow-image, \
             agent-scheduler.buildkite.com/max-cpu, agent-scheduler.buildkite.com/max-memory",
        );
        refused(
            &[("/template/metadata/annotations", json!({MAX_CPU: "4", "note": "kept"}))],
            "template.metadata.annotations[agent-scheduler.buildkite.com/max-cpu] has no effect on a pod; move it to \
             metadata.annotations of the PodTemplate",
        );
    }

    #[test]
    fn an_agent_that_would_not_start_or_be_killed_early_is_refused() {
        let cases = [
            (
                ARGS,
                json!(["--no-color"]),
                "template.spec.containers[0].args must begin with start, before the agent's options, is [\"--no-color\"]",
            ),
            (ARGS, json!(["--no-color", "start"]), "template.spec.containers[0].args must begin with start"),
            (
                COMMAND,
                json!(["tini", "/usr/bin/buildkite-agent"]),
                "template.spec.containers[0].args must begin with start, before the agent's options, is absent",
            ),
            (
                GRACE_PERIOD,
                json!(15),
                "template.spec.terminationGracePeriodSeconds must be more than the 15 s that the agent takes to cancel a job",
            ),
            (
                ENV,
                env("BUILDKITE_CANCEL_SIGNAL_TIMEOUT", "25.5s"),
                "template.spec.terminationGracePeriodSeconds must be more than the 31 s",
            ),
            (
                ENV,
                env("BUILDKITE_CANCEL_CLEANUP_TIMEOUT", "1m"),
                "template.spec.terminationGracePeriodSeconds must be more than the 70 s",
            ),
            (
                ENV,
                env("BUILDKITE_CANCEL_SIGNAL_TIMEOUT", "30"),
                "template.spec.containers[0].env must have a duration such as 30s for BUILDKITE_CANCEL_SIGNAL_TIMEOUT, has \"30\"",
            ),
            (
                ENV,
                env("BUILDKITE_CANCEL_GRACE_PERIOD", "30"),
                "template.spec.terminationGracePeriodSeconds must be more than the 30 s that the agent takes to cancel a job",
            ),
        ];
        for (path, value, expected) in cases {
            refused(&[(path, value)], expected);
        }
    }

    #[test]
    fn an_agent_that_cannot_write_to_its_folders_is_refused() {
        let read_only = (&*format!("{AGENT}/securityContext"), json!({"readOnlyRootFilesystem": true}));
        let mounts = |paths: &[&str]| {
            let mounts = paths.iter().map(|path| json!({"name": "writable", "mountPath": path}));
            (format!("{AGENT}/volumeMounts"), mounts.collect::<Value>())
        };
        let env = (ENV, json!([{"name": "HOME", "value": "/home/me"}, {"name": "TMPDIR", "valueFrom": {}}]));
        let (field, problem) =
            ("template.spec.containers[0].securityContext", "has readOnlyRootFilesystem, and the agent must write to");
        let all = format!(
            "{field} {problem} /buildkite/builds, /buildkite/plugins, /root/.buildkite-agent, /tmp; mount an emptyDir there"
        );
        refused(slice::from_ref(&read_only), &all);
        let (path, some) = mounts(&["/buildkite/", "/home/me/builds"]);
        let own = format!("{field} {problem} /home/me/.buildkite-agent; mount an emptyDir there");
        refused(&[read_only.clone(), env, (&path, some)], &own);
        let (path, enough) = mounts(&["/buildkite", "/root", "/tmp"]);
        changed(&[read_only, (&path, enough)]).unwrap();
    }

    #[test]
    fn every_image_must_be_a_reference() {
        let cases = [
            (
                CONTAINERS,
                json!([{"name": "agent", "image": "Agent:4"}]),
                "containers[0].image",
                "\"Agent:4\", whose repository",
            ),
            (
                INIT_CONTAINERS,
                json!([{"image": "a:1"}, {"image": "a:1:2"}]),
                "initContainers[1].image",
                "\"a:1:2\", whose tag",
            ),
            (
                VOLUMES,
                json!([{"image": {"reference": "https://a/b"}}]),
                "volumes[0].image.reference",
                "\"https://a/b\", which",
            ),
            (VOLUMES, json!([{"image": {"reference": ""}}]), "volumes[0].image.reference", "\"\", which is not"),
        ];
        for (path, value, field, text) in cases {
            refused(&[(path, value)], &format!("template.spec.{field} must be the reference of an image, is {text}"));
        }
    }

    #[test]
    fn a_variable_must_not_be_set_twice_in_a_container() {
        let [a, b] = ["A", "B"].map(|name| json!({"name": name, "value": "1"}));
        let cases = [
            (ENV, json!([a, b, a]), "containers[0].env[2] must not be A again"),
            (ENV, json!([b, {"name": "B", "valueFrom": {}}]), "containers[0].env[1] must not be B again"),
            (
                INIT_CONTAINERS,
                json!([{"env": [a]}, {"env": [a, b, b]}]),
                "initContainers[1].env[2] must not be B again",
            ),
        ];
        for (path, value, expected) in cases {
            refused(&[(path, value)], &format!("template.spec.{expected}"));
        }
        let fine = [(ENV, json!([a, b])), (INIT_CONTAINERS, json!([{"env": [a]}, {"env": [a]}]))];
        changed(&fine).unwrap();
    }

    #[test]
    fn an_agent_must_not_be_started_again() {
        for (field, value) in [
            ("restartPolicy", json!("Always")),
            ("restartPolicy", json!("OnFailure")),
            ("restartPolicyRules", json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}])),
        ] {
            let expected = format!("template.spec.containers[0].{field} must not be set: a Buildkite job runs once");
            refused(&[(&format!("{AGENT}/{field}"), value)], &expected);
        }
    }

    #[test]
    fn what_is_added_to_must_be_a_list_or_a_map() {
        let mount = format!("{AGENT}/volumeMounts");
        let cases = [
            (CONTAINERS, json!({}), "template.spec.containers must be a list, is {}"),
            (INIT_CONTAINERS, json!({}), "template.spec.initContainers must be a list, is {}"),
            (VOLUMES, json!("v"), "template.spec.volumes must be a list, is \"v\""),
            (ENV, json!({"A": "b"}), "template.spec.containers[0].env must be a list, is {\"A\":\"b\"}"),
            (&*mount, json!(1), "template.spec.containers[0].volumeMounts must be a list, is 1"),
            (ARGS, json!("start"), "template.spec.containers[0].args must be a list, is \"start\""),
            (COMMAND, json!(true), "template.spec.containers[0].command must be a list, is true"),
            (RESOURCES, json!([]), "template.spec.containers[0].resources must be a map, is []"),
            (
                RESOURCES,
                json!({"requests": "1"}),
                "template.spec.containers[0].resources.requests must be a map, is \"1\"",
            ),
            (RESOURCES, json!({"limits": []}), "template.spec.containers[0].resources.limits must be a map, is []"),
            (LABELS, json!({"team": 7}), "template.metadata.labels must be a map of strings, is {\"team\":7}"),
            (
                "/template/metadata/annotations",
                json!(["a"]),
                "template.metadata.annotations must be a map of strings, is [\"a\"]",
            ),
        ];
        for (path, value, expected) in cases {
            refused(&[(path, value)], expected);
        }
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let invalid = changed(&[
            ("/metadata/name", json!("A")),
            ("/metadata/annotations", json!({ALLOW_IMAGE: "no", MAX_CPU: "x"})),
            (LABELS, json!({"platform": "fargate"})),
            (SPEC, json!({"hostNetwork": true, "containers": [{"name": "a"}, {"name": "agent", "env": 7}]})),
        ]);
        let fields: Vec<_> = invalid.unwrap_err().problems.into_iter().map(|problem| problem.field).collect();
        let expected = [
            "metadata.name",
            "template.spec.containers[1].env",
            "template.spec.containers[0]",
            "template.spec.restartPolicy",
            "template.spec.hostNetwork",
            "metadata.annotations[agent-scheduler.buildkite.com/allow-image]",
            "metadata.annotations[agent-scheduler.buildkite.com/max-cpu]",
        ];
        assert_eq!(fields, expected);
        let text = changed(&[("/metadata/name", json!(7)), (SPEC, json!(null))]).unwrap_err().to_string();
        assert_eq!(
            text,
            "node.yaml: metadata.name must be the name that a step asks for, of lowercase letters, digits, `-` and `.`, with a \
             letter or digit at both ends, is 7; template.spec.containers must have one named agent, which runs the Buildkite \
             agent; template.spec.restartPolicy must be Never, is absent"
        );
    }

    #[test]
    fn a_text_is_one_short_line_whatever_the_author_writes() {
        let long = "a\n".repeat(100_000);
        let cases = [
            ("/metadata/name", json!(long)),
            ("/template/spec/restartPolicy", json!(long)),
            (VOLUMES, json!({"a": long})),
            (RESOURCES, json!(long)),
            (ARGS, json!(["stop", long])),
            (ENV, env("BUILDKITE_CANCEL_SIGNAL_TIMEOUT", &long)),
            (LABELS, json!(long)),
            ("/kind", json!(long)),
        ];
        for (place, value) in cases {
            let text = changed(&[(place, value)]).unwrap_err().to_string();
            assert!(text.len() < 1_000 && !text.contains(char::is_control), "{text}");
        }
        let many = vec![json!({"name": long}); 1_000];
        let text = changed(&[(CONTAINERS, json!(many))]).unwrap_err().to_string();
        assert!(text.len() < 1_000, "{text}");
        let many = vec![json!({"name": "BUILDKITE_AGENT_QUEUE"}); 1_000];
        let text = changed(&[(ENV, json!(many))]).unwrap_err().to_string();
        assert!(text.chars().count() < 2_100 && text.ends_with('…'), "{text}");
    }

    #[test]
    fn what_can_run_is_accepted() {
        let start = json!(["start", "--no-color"]);
        let cases: [&[(&str, Value)]; 13] = [
            &[],
            &[(INIT_CONTAINERS, json!([{"name": "dockerd", "restartPolicy": "Always"}]))],
            &[(ARGS, json!([]))],
            &[(ARGS, start.clone())],
            &[(COMMAND, json!(["buildkite-agent", "start"]))],
            &[(COMMAND, json!(["tini", "--", "/usr/local/bin/buildkite-agent"])), (ARGS, start)],
            &[(COMMAND, json!(["sh", "-c"])), (ARGS, json!(["exec buildkite-agent start"]))],
            &[(GRACE_PERIOD, json!(16))],
            &[(ENV, env("BUILDKITE_CANCEL_SIGNAL_TIMEOUT", "24.999s"))],
            &[(ENV, json!([{"name": "BUILDKITE_CANCEL_SIGNAL_TIMEOUT", "valueFrom": {}}]))],
            &[(RESOURCES, json!({"requests": {"cpu": "1"}}))],
            &[("/metadata/name", json!("node-24.large"))],
            &[("/metadata/annotations", json!({MAX_CPU: "4"}))],
        ];
        for changes in cases {
            changed(changes).unwrap();
        }
    }

    #[test]
    fn an_item_of_a_list_has_no_kind() {
        let mut manifest = manifest();
        manifest.as_object_mut().unwrap().remove("kind");
        assert!(PodDefinition::of_object("PodTemplate node", &manifest).is_ok());
        assert!(PodDefinition::parse("node.yaml", &manifest).is_err());
    }
}
