//! A pod definition: what a job runs in, checked once when it is loaded.
//!
//! It is a core/v1 `PodTemplate` manifest, known by its `metadata.name`. It stays the JSON that its author wrote, so that a
//! field which this crate does not know reaches the API server and is judged there. What is checked here are the mistakes that
//! the API server takes and that show only later: in a pod that never ends, or in an agent that does not start.
//!
//! `build.rs` compiles this file, too: a file of `pod-definitions/` that breaks a rule fails the build.

use std::borrow::Cow;

use serde_json::Value;

use crate::{excerpt::excerpt, quantity::Quantity};

/// The container that runs the Buildkite agent.
pub const AGENT: &str = "agent";

/// The annotation of the `PodTemplate` itself that keeps steps from choosing an image: `"false"`.
pub const ALLOW_IMAGE: &str = "agent-scheduler.buildkite.com/allow-image";

/// The annotation that limits a step's `cpu=`.
pub const MAX_CPU: &str = "agent-scheduler.buildkite.com/max-cpu";

/// The annotation that limits a step's `memory=`.
pub const MAX_MEMORY: &str = "agent-scheduler.buildkite.com/max-memory";

/// What Kubernetes takes when `terminationGracePeriodSeconds` is not set.
const GRACE_PERIOD: u64 = 30;

/// Where the agent's container is.
const AGENT_FIELD: &str = "template.spec.containers[0]";

/// A pod definition that was found to be usable.
#[derive(Clone, Debug, PartialEq)]
pub struct PodDefinition {
    name: String,
    template: Value,
    /// Whether a step may choose the image.
    pub allow_image: bool,
    /// The most that a step may ask for.
    pub max_cpu: Option<Quantity>,
    /// The most that a step may ask for.
    pub max_memory: Option<Quantity>,
}

/// No job can run in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {field} {problem}")]
pub struct Invalid {
    /// The file, or the object in the cluster.
    pub origin: String,
    /// The path of the field within it.
    pub field: String,
    /// What it must be, and what it is.
    pub problem: String,
}

/// A field, and what is wrong with it.
struct Problem(String, String);

type Checked<T = ()> = Result<T, Problem>;

fn problem<T>(field: impl Into<String>, problem: impl Into<String>) -> Checked<T> {
    Err(Problem(field.into(), problem.into()))
}

impl PodDefinition {
    /// Checks a manifest. `origin` is the file that it comes from.
    pub fn parse(origin: &str, manifest: &Value) -> Result<Self, Invalid> {
        let (version, kind) = (&manifest["apiVersion"], &manifest["kind"]);
        if version != "v1" || kind != "PodTemplate" {
            let problem = format!("must be PodTemplate of apiVersion v1, is {} of {}", quoted(kind), quoted(version));
            return Err(Invalid { origin: origin.to_owned(), field: "kind".to_owned(), problem });
        }
        Self::of_object(origin, manifest)
    }

    /// The same for an item of a list of `PodTemplates`, which does not repeat its kind.
    pub fn of_object(origin: &str, object: &Value) -> Result<Self, Invalid> {
        let checked = check(object);
        checked.map_err(|Problem(field, problem)| Invalid { origin: origin.to_owned(), field, problem })
    }

    /// What a step asks for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The `PodTemplateSpec`, as its author wrote it.
    pub fn template(&self) -> &Value {
        &self.template
    }

    /// The same definition with another template, for one step.
    #[must_use]
    pub fn with_template(&self, template: Value) -> Self {
        Self { template, ..self.clone() }
    }

    /// The `labels` or `annotations` that its author gives the pod.
    pub fn metadata(&self, kind: &str) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        let entries = self.template["metadata"][kind].as_object().into_iter().flatten();
        entries.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?.into())))
    }

    /// The one ordinary container.
    pub fn agent(&self) -> &Value {
        &self.template["spec"]["containers"][0]
    }

    /// Whether the author sees to the agent token, so that ours is not needed.
    pub fn brings_agent_token(&self) -> bool {
        variable(self.agent(), "BUILDKITE_AGENT_TOKEN").is_some()
    }
}

fn check(object: &Value) -> Checked<PodDefinition> {
    let name = check_name(&object["metadata"]["name"])?;
    let template = &object["template"];
    let spec = &template["spec"];
    check_lists(spec, "template.spec", &["containers", "initContainers", "volumes"])?;
    let agent = check_containers(&spec["containers"])?;
    check_lists(agent, AGENT_FIELD, &["command", "args", "env", "volumeMounts"])?;
    check_resources(&agent["resources"])?;
    match &spec["restartPolicy"] {
        policy if policy == "Never" => {}
        policy => {
            let found = if policy.is_null() { "absent, which means Always".to_owned() } else { quoted(policy) };
            let text = format!("must be Never, is {found}: a Buildkite job runs once");
            return problem("template.spec.restartPolicy", text);
        }
    }
    check_environment(agent)?;
    check_arguments(agent)?;
    check_grace_period(spec, agent)?;
    check_pod_metadata(&template["metadata"])?;
    check_fargate(template)?;

    let annotations = &object["metadata"]["annotations"];
    Ok(PodDefinition {
        name: name.to_owned(),
        template: template.clone(),
        allow_image: allows_image(annotations)?,
        max_cpu: limit(annotations, MAX_CPU)?,
        max_memory: limit(annotations, MAX_MEMORY)?,
    })
}

/// As Kubernetes wants it, which also keeps it from breaking up the agent's tags.
fn check_name(name: &Value) -> Checked<&str> {
    const FIELD: &str = "metadata.name";
    let Some(name) = name.as_str() else {
        return problem(FIELD, "must be the name that a step asks for, is absent");
    };
    let is_label = |label: &str| {
        let ends = [label.as_bytes().first(), label.as_bytes().last()];
        ends.iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
            && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    if name.len() > 253 || !name.split('.').all(is_label) {
        let text = format!(
            "must be small letters, digits, `-` and `.` with a letter or digit at both ends, is \"{}\"",
            excerpt(name)
        );
        return problem(FIELD, text);
    }
    Ok(name)
}

/// What is added to must be what it is taken for.
fn check_lists(parent: &Value, path: &str, fields: &[&str]) -> Checked {
    for field in fields {
        let list = &parent[field];
        if !(list.is_null() || list.is_array()) {
            return problem(format!("{path}.{field}"), format!("must be a list, is {}", quoted(list)));
        }
    }
    Ok(())
}

fn check_resources(resources: &Value) -> Checked {
    let maps = [("", resources), (".requests", &resources["requests"]), (".limits", &resources["limits"])];
    for (field, map) in maps {
        if !(map.is_null() || map.is_object()) {
            return problem(format!("{AGENT_FIELD}.resources{field}"), format!("must be a map, is {}", quoted(map)));
        }
    }
    Ok(())
}

fn check_containers(containers: &Value) -> Checked<&Value> {
    const FIELD: &str = "template.spec.containers";
    let containers = containers.as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(agent) = containers.iter().find(|container| container["name"] == AGENT) else {
        return problem(FIELD, format!("must have one named {AGENT}, which runs the Buildkite agent"));
    };
    if let Some(second) = containers.iter().position(|container| !std::ptr::eq(container, agent)) {
        let text = format!(
            "is {}, a container beside {AGENT}: it would keep the pod running when the agent has ended; move it to \
             template.spec.initContainers with restartPolicy: Always, which makes it a sidecar",
            quoted(&containers[second]["name"])
        );
        return problem(format!("{FIELD}[{second}]"), text);
    }
    Ok(agent)
}

fn check_environment(agent: &Value) -> Checked {
    for (place, variable) in agent["env"].as_array().into_iter().flatten().enumerate() {
        let text = match variable["name"].as_str() {
            Some("BUILDKITE_AGENT_ACQUIRE_JOB") => {
                "must not be BUILDKITE_AGENT_ACQUIRE_JOB: every job sets its own; take it out"
            }
            Some("BUILDKITE_AGENT_QUEUE") => {
                "must not be BUILDKITE_AGENT_QUEUE: the queue of the job is added to the tags, and an agent does not start \
                 with both; take it out"
            }
            // The API server leaves an empty value out.
            Some("BUILDKITE_AGENT_TAGS")
                if !(variable["value"].is_string()
                    || variable["value"].is_null() && variable["valueFrom"].is_null()) =>
            {
                "must have a plain value for BUILDKITE_AGENT_TAGS, since tags are added to it"
            }
            Some("BUILDKITE_AGENT_TAGS") if names_queue(&variable["value"]) => {
                "must not name a queue in BUILDKITE_AGENT_TAGS: the queue of the job is added to the tags; take it out"
            }
            _ => continue,
        };
        return problem(format!("{AGENT_FIELD}.env[{place}]"), text);
    }
    Ok(())
}

fn names_queue(tags: &Value) -> bool {
    let tags = tags.as_str().unwrap_or_default().split(',');
    tags.map(str::trim).any(|tag| tag == "queue" || tag.starts_with("queue="))
}

fn check_arguments(agent: &Value) -> Checked {
    let words = |field: &str| agent[field].as_array().map(Vec::as_slice).unwrap_or_default();
    for field in ["command", "args"] {
        for (place, word) in words(field).iter().enumerate() {
            if let Some((flag, variable)) = word.as_str().and_then(flag_of_ours) {
                let mend = if flag == "--token" {
                    "take it out, and set that variable here if the token is your own"
                } else {
                    "take it out"
                };
                // Not the word itself: it may hold a token.
                let text = format!("must not be {flag}: the function sets {variable}; {mend}");
                return problem(format!("{AGENT_FIELD}.{field}[{place}]"), text);
            }
        }
    }
    // Arguments take the place of the image's own, which are `start`; a command takes that of its entry point, too.
    let starts_by_args = match words("command").last().and_then(Value::as_str) {
        Some(program) => program.rsplit('/').next() == Some("buildkite-agent"),
        None => !words("args").is_empty(),
    };
    if starts_by_args && words("args").first().is_none_or(|word| word != "start") {
        let found = if agent["args"].is_null() { "absent".to_owned() } else { quoted(&agent["args"]) };
        let text = format!("must begin with start, before the agent's options, is {found}");
        return problem(format!("{AGENT_FIELD}.args"), text);
    }
    Ok(())
}

/// An option of the agent that the function sets, and the variable that it sets it by.
fn flag_of_ours(word: &str) -> Option<(&'static str, &'static str)> {
    const FLAGS: [(&str, &str); 4] = [
        ("--acquire-job", "BUILDKITE_AGENT_ACQUIRE_JOB"),
        ("--queue", "BUILDKITE_AGENT_TAGS"),
        ("--tags", "BUILDKITE_AGENT_TAGS"),
        ("--token", "BUILDKITE_AGENT_TOKEN"),
    ];
    let name = word.split_once('=').map_or(word, |(name, _)| name);
    let is = |flag: &str| name == flag || name == &flag[1..];
    FLAGS.into_iter().find(|(flag, _)| is(flag))
}

/// An agent that is killed while it cancels a job leaves that job hanging in Buildkite.
fn check_grace_period(spec: &Value, agent: &Value) -> Checked {
    let plain = |name: &str| variable(agent, name).and_then(|variable| variable["value"].as_str());
    let duration = |name: &str, default: u64| match plain(name) {
        None => Ok(default * NANOS_PER_SECOND),
        Some(text) => nanoseconds(text).ok_or_else(|| {
            Problem(
                "template.spec.containers[0].env".to_owned(),
                format!("must have a duration such as 30s for {name}, has \"{}\"", excerpt(text)),
            )
        }),
    };
    let signal = duration("BUILDKITE_CANCEL_SIGNAL_TIMEOUT", 10)?;
    let cleanup = duration("BUILDKITE_CANCEL_CLEANUP_TIMEOUT", 5)?;
    let grace_period = spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(GRACE_PERIOD);
    let too_short = |needed: u64, why: &str| {
        let text = format!("must be more than the {} s {why}, is {grace_period}", needed.div_ceil(NANOS_PER_SECOND));
        problem("template.spec.terminationGracePeriodSeconds", text)
    };
    let given = grace_period.saturating_mul(NANOS_PER_SECOND);
    if given <= signal.saturating_add(cleanup) {
        let why = "that the agent takes to cancel a job (BUILDKITE_CANCEL_SIGNAL_TIMEOUT, by default 10s, and \
                   BUILDKITE_CANCEL_CLEANUP_TIMEOUT, by default 5s)";
        return too_short(signal.saturating_add(cleanup), why);
    }
    // The name that agents of version 3 know, in seconds.
    if let Some(seconds) = plain("BUILDKITE_CANCEL_GRACE_PERIOD").and_then(|text| text.parse().ok())
        && grace_period <= seconds
    {
        return too_short(seconds.saturating_mul(NANOS_PER_SECOND), "of BUILDKITE_CANCEL_GRACE_PERIOD");
    }
    Ok(())
}

fn check_pod_metadata(metadata: &Value) -> Checked {
    for kind in ["labels", "annotations"] {
        let entries = &metadata[kind];
        if !(entries.is_null() || entries.as_object().is_some_and(|entries| entries.values().all(Value::is_string))) {
            return problem(
                format!("template.metadata.{kind}"),
                format!("must be a map of strings, is {}", quoted(entries)),
            );
        }
    }
    Ok(())
}

/// Fargate leaves a pod that it refuses pending, until the Job's deadline.
fn check_fargate(template: &Value) -> Checked {
    let (labels, spec) = (&template["metadata"]["labels"], &template["spec"]);
    let label = if labels["platform"] == "fargate" {
        "platform: fargate"
    } else if labels["eks.amazonaws.com/fargate-profile"].is_string() {
        "eks.amazonaws.com/fargate-profile"
    } else {
        return Ok(());
    };
    let refused = |field: String, what: &str| {
        problem(
            field,
            format!("must not be set under the label {label}: Fargate runs no pod with {what}; take either out"),
        )
    };
    for kind in ["containers", "initContainers"] {
        for (place, container) in spec[kind].as_array().into_iter().flatten().enumerate() {
            if container["securityContext"]["privileged"] == true {
                let field = format!("template.spec.{kind}[{place}].securityContext.privileged");
                return refused(field, "a privileged container");
            }
            let ports = container["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
            if let Some(port) = ports.iter().position(|port| port["hostPort"].as_u64().is_some_and(|port| port > 0)) {
                return refused(format!("template.spec.{kind}[{place}].ports[{port}].hostPort"), "a port of its host");
            }
            for resources in ["limits", "requests"] {
                if !container["resources"][resources]["nvidia.com/gpu"].is_null() {
                    let field = format!("template.spec.{kind}[{place}].resources.{resources}[nvidia.com/gpu]");
                    return refused(field, "a GPU");
                }
            }
        }
    }
    let volumes = spec["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
    if let Some(place) = volumes.iter().position(|volume| !volume["hostPath"].is_null()) {
        return refused(format!("template.spec.volumes[{place}].hostPath"), "a path of its host");
    }
    if spec["hostNetwork"] == true {
        return refused("template.spec.hostNetwork".to_owned(), "the network of its host");
    }
    if spec["nodeSelector"]["kubernetes.io/arch"] == "arm64" {
        return refused("template.spec.nodeSelector[kubernetes.io/arch]".to_owned(), "images of arm64");
    }
    Ok(())
}

fn allows_image(annotations: &Value) -> Checked<bool> {
    match &annotations[ALLOW_IMAGE] {
        Value::Null => Ok(true),
        allow if allow == "true" => Ok(true),
        allow if allow == "false" => Ok(false),
        other => problem(annotation(ALLOW_IMAGE), format!("must be \"true\" or \"false\", is {}", quoted(other))),
    }
}

fn limit(annotations: &Value, name: &str) -> Checked<Option<Quantity>> {
    let limit = &annotations[name];
    match limit.as_str().map(str::parse) {
        Some(Ok(limit)) => Ok(Some(limit)),
        None if limit.is_null() => Ok(None),
        _ => problem(
            annotation(name),
            format!("must be a quantity of Kubernetes, such as \"4\" or \"8Gi\", is {}", quoted(limit)),
        ),
    }
}

/// What was found, for the one who has to mend it.
fn quoted(value: &Value) -> String {
    excerpt(&value.to_string()).into_owned()
}

fn annotation(name: &str) -> String {
    format!("metadata.annotations[{name}]")
}

fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a Value> {
    container["env"].as_array()?.iter().find(|variable| variable["name"] == name)
}

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A duration as Go writes it: `1m30s`, `1.5h`, `0`.
fn nanoseconds(text: &str) -> Option<u64> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(0);
    }
    let mut sum: u64 = 0;
    loop {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let end = rest[number..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |end| number + end);
        let (whole, fraction) = rest[..number].split_once('.').unwrap_or((&rest[..number], ""));
        let unit: u64 = match &rest[number..end] {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => NANOS_PER_SECOND,
            "m" => 60 * NANOS_PER_SECOND,
            "h" => 3_600 * NANOS_PER_SECOND,
            _ => return None,
        };
        let scale = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let digits: u64 = format!("{whole}{fraction}").parse().ok()?;
        sum = sum.checked_add(u64::try_from(u128::from(digits) * u128::from(unit) / u128::from(scale)).ok()?)?;
        rest = &rest[end..];
        if rest.is_empty() {
            return Some(sum);
        }
    }
}

/// Definitions for the tests of other rooms.
#[cfg(test)]
pub(crate) mod fixtures {
    use serde_json::json;

    use super::*;

    /// A definition named `example` with this `template`.
    pub(crate) fn definition(template: &Value) -> PodDefinition {
        annotated(template, &json!(null))
    }

    /// The same with annotations of its own.
    pub(crate) fn annotated(template: &Value, annotations: &Value) -> PodDefinition {
        let manifest = json!({
            "apiVersion": "v1", "kind": "PodTemplate",
            "metadata": {"name": "example", "annotations": annotations}, "template": template,
        });
        PodDefinition::parse("example.yaml", &manifest).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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

    fn refused(changes: &[(&str, Value)], expected: &str) {
        let error = changed(changes).unwrap_err().to_string();
        assert!(error.starts_with(&format!("node.yaml: {expected}")), "{error}\nis not\n{expected}");
    }

    const SPEC: &str = "/template/spec";
    const ENV: &str = "/template/spec/containers/0/env";

    #[test]
    fn a_problem_is_one_line_and_no_flood_whatever_the_author_writes() {
        let long = "a\n".repeat(100_000);
        let agent = "/template/spec/containers/0";
        for (place, value) in [
            ("/metadata/name", json!(long)),
            ("/template/spec/restartPolicy", json!(long)),
            ("/template/spec/volumes", json!({"a": long})),
            (&*format!("{agent}/resources"), json!(long)),
            (&format!("{agent}/args"), json!(["stop", long])),
            (&format!("{agent}/env"), json!([{"name": "BUILDKITE_CANCEL_SIGNAL_TIMEOUT", "value": long}])),
            ("/template/metadata/labels", json!(long)),
            ("/kind", json!(long)),
        ] {
            let told = changed(&[(place, value)]).unwrap_err().to_string();
            assert!(told.len() < 1_000 && !told.contains(char::is_control), "{told}");
        }
    }

    #[test]
    fn a_definition_keeps_fields_that_are_unknown_here() {
        let mut manifest = manifest();
        manifest["template"]["spec"]["fieldOfTomorrow"] = json!({"a": 1});
        let definition = PodDefinition::parse("node.yaml", &manifest).unwrap();
        assert_eq!(definition.template(), &manifest["template"]);
        assert_eq!((definition.name(), definition.allow_image), ("node", true));
        assert!(!definition.brings_agent_token());
    }

    #[test]
    fn an_item_of_a_list_has_no_kind() {
        let mut manifest = manifest();
        manifest.as_object_mut().unwrap().remove("kind");
        assert!(PodDefinition::of_object("PodTemplate node", &manifest).is_ok());
        assert!(PodDefinition::parse("node.yaml", &manifest).is_err());
    }

    #[test]
    fn an_unusable_definition_names_its_file_its_field_and_the_mend() {
        let agent = json!({"name": "agent"});
        let dockerd = json!({"name": "dockerd"});
        let cases = [
            ("/kind", json!("Pod"), "kind must be PodTemplate of apiVersion v1, is \"Pod\" of \"v1\""),
            ("/metadata", json!({}), "metadata.name must be the name that a step asks for, is absent"),
            ("/metadata/name", json!("a,b"), "metadata.name must be small letters, digits"),
            ("/metadata/name", json!("-a"), "metadata.name must be small letters, digits"),
            ("/template/spec/containers", json!([]), "template.spec.containers must have one named agent"),
            ("/template/spec/containers", json!([dockerd]), "template.spec.containers must have one named agent"),
            ("/template/spec", json!(null), "template.spec.containers must have one named agent"),
            (
                "/template/spec/containers",
                json!([agent, dockerd]),
                "template.spec.containers[1] is \"dockerd\", a container beside agent: it would keep the pod running when the \
                 agent has ended; move it to template.spec.initContainers with restartPolicy: Always",
            ),
            (
                "/template/spec/containers",
                json!([dockerd, agent]),
                "template.spec.containers[0] is \"dockerd\", a container",
            ),
            (
                "/template/spec/restartPolicy",
                json!("OnFailure"),
                "template.spec.restartPolicy must be Never, is \"OnFailure\"",
            ),
            (
                "/template/spec/restartPolicy",
                json!(null),
                "template.spec.restartPolicy must be Never, is absent, which means Always",
            ),
            (
                ENV,
                json!([{"name": "A", "value": "b"}, {"name": "BUILDKITE_AGENT_ACQUIRE_JOB", "value": "1"}]),
                "template.spec.containers[0].env[1] must not be BUILDKITE_AGENT_ACQUIRE_JOB: every job sets its own; take it out",
            ),
            (
                ENV,
                json!([{"name": "BUILDKITE_AGENT_QUEUE", "value": "q"}]),
                "template.spec.containers[0].env[0] must not be BUILDKITE_AGENT_QUEUE",
            ),
            (
                ENV,
                json!([{"name": "BUILDKITE_AGENT_TAGS", "valueFrom": {}}]),
                "template.spec.containers[0].env[0] must have a plain value for BUILDKITE_AGENT_TAGS",
            ),
            (
                ENV,
                json!([{"name": "BUILDKITE_AGENT_TAGS", "value": "docker=true, queue=default"}]),
                "template.spec.containers[0].env[0] must not name a queue in BUILDKITE_AGENT_TAGS",
            ),
            (
                "/template/spec/terminationGracePeriodSeconds",
                json!(15),
                "template.spec.terminationGracePeriodSeconds must be more than the 15 s that the agent takes to cancel a job",
            ),
            (
                ENV,
                json!([{"name": "BUILDKITE_CANCEL_SIGNAL_TIMEOUT", "value": "25.5s"}]),
                "template.spec.terminationGracePeriodSeconds must be more than the 31 s",
            ),
            (
                ENV,
                json!([{"name": "BUILDKITE_CANCEL_CLEANUP_TIMEOUT", "value": "1m"}]),
                "template.spec.terminationGracePeriodSeconds must be more than the 70 s",
            ),
            (
                ENV,
                json!([{"name": "BUILDKITE_CANCEL_SIGNAL_TIMEOUT", "value": "30"}]),
                "template.spec.containers[0].env must have a duration such as 30s for BUILDKITE_CANCEL_SIGNAL_TIMEOUT, has \"30\"",
            ),
            (
                ENV,
                json!([{"name": "BUILDKITE_CANCEL_GRACE_PERIOD", "value": "30"}]),
                "template.spec.terminationGracePeriodSeconds must be more than the 30 s of BUILDKITE_CANCEL_GRACE_PERIOD, is 30",
            ),
            (
                "/template/metadata/labels",
                json!({"team": 7}),
                "template.metadata.labels must be a map of strings, is {\"team\":7}",
            ),
            (
                "/metadata/annotations",
                json!({"agent-scheduler.buildkite.com/allow-image": "no"}),
                "metadata.annotations[agent-scheduler.buildkite.com/allow-image] must be \"true\" or \"false\", is \"no\"",
            ),
            (
                "/metadata/annotations",
                json!({"agent-scheduler.buildkite.com/max-memory": "8GB"}),
                "metadata.annotations[agent-scheduler.buildkite.com/max-memory] must be a quantity of Kubernetes",
            ),
            (
                "/metadata/annotations",
                json!({"agent-scheduler.buildkite.com/max-cpu": 4}),
                "metadata.annotations[agent-scheduler.buildkite.com/max-cpu] must be a quantity of Kubernetes",
            ),
        ];
        for (path, value, expected) in cases {
            refused(&[(path, value)], expected);
        }
    }

    #[test]
    fn arguments_that_do_not_start_an_agent_are_refused() {
        let cases = [
            (
                "/template/spec/containers/0/args",
                json!(["--no-color"]),
                "template.spec.containers[0].args must begin with start, before the agent's options, is [\"--no-color\"]",
            ),
            (
                "/template/spec/containers/0/args",
                json!(["--no-color", "start"]),
                "template.spec.containers[0].args must begin with start",
            ),
            (
                "/template/spec/containers/0/command",
                json!(["tini", "/usr/bin/buildkite-agent"]),
                "template.spec.containers[0].args must begin with start, before the agent's options, is absent",
            ),
        ];
        for (path, value, expected) in cases {
            refused(&[(path, value)], expected);
        }
    }

    #[test]
    fn what_is_added_to_must_be_a_list_or_a_map() {
        let cases = [
            ("/template/spec/containers", json!({}), "template.spec.containers must be a list, is {}"),
            ("/template/spec/initContainers", json!({}), "template.spec.initContainers must be a list, is {}"),
            ("/template/spec/volumes", json!("v"), "template.spec.volumes must be a list, is \"v\""),
            (ENV, json!({"A": "b"}), "template.spec.containers[0].env must be a list, is {\"A\":\"b\"}"),
            (
                "/template/spec/containers/0/volumeMounts",
                json!(1),
                "template.spec.containers[0].volumeMounts must be a list, is 1",
            ),
            (
                "/template/spec/containers/0/args",
                json!("start"),
                "template.spec.containers[0].args must be a list, is \"start\"",
            ),
            (
                "/template/spec/containers/0/resources",
                json!([]),
                "template.spec.containers[0].resources must be a map, is []",
            ),
            (
                "/template/spec/containers/0/resources",
                json!({"requests": "1"}),
                "template.spec.containers[0].resources.requests must be a map, is \"1\"",
            ),
            (
                "/template/spec/containers/0/resources",
                json!({"limits": []}),
                "template.spec.containers[0].resources.limits must be a map, is []",
            ),
        ];
        for (path, value, expected) in cases {
            refused(&[(path, value)], expected);
        }
    }

    #[test]
    fn an_option_that_the_function_sets_by_a_variable_is_refused_and_not_repeated() {
        for flag in ["--acquire-job", "--queue", "--tags", "--token"] {
            for word in [flag.to_owned(), flag[1..].to_owned(), format!("{flag}=hush"), format!("{}=hush", &flag[1..])]
            {
                for (field, words) in
                    [("args", json!(["start", word, "hush"])), ("command", json!(["buildkite-agent", word, "hush"]))]
                {
                    let path = format!("/template/spec/containers/0/{field}");
                    let error = changed(&[(&path, words)]).unwrap_err().to_string();
                    let expected = format!(
                        "node.yaml: template.spec.containers[0].{field}[1] must not be {flag}: the function sets"
                    );
                    assert!(error.starts_with(&expected) && error.contains("take it out"), "{error}");
                    assert!(!error.contains("hush"), "{error}");
                }
            }
        }
    }

    #[test]
    fn what_fargate_refuses_is_refused_under_its_labels_and_taken_without() {
        let privileged = json!({"restartPolicy": "Never", "containers": [{"name": "agent", "securityContext": {"privileged": true}}]});
        let sidecar = json!([{"name": "dockerd", "restartPolicy": "Always", "securityContext": {"privileged": true}}]);
        let cases = [
            (SPEC, privileged, "template.spec.containers[0].securityContext.privileged"),
            ("/template/spec/initContainers", sidecar, "template.spec.initContainers[0].securityContext.privileged"),
            (
                "/template/spec/volumes",
                json!([{"name": "a", "emptyDir": {}}, {"name": "b", "hostPath": {"path": "/"}}]),
                "template.spec.volumes[1].hostPath",
            ),
            ("/template/spec/hostNetwork", json!(true), "template.spec.hostNetwork"),
            (
                "/template/spec/containers/0/ports",
                json!([{"containerPort": 1}, {"containerPort": 80, "hostPort": 80}]),
                "template.spec.containers[0].ports[1].hostPort",
            ),
            (
                "/template/spec/containers/0/resources",
                json!({"limits": {"nvidia.com/gpu": 1}}),
                "template.spec.containers[0].resources.limits[nvidia.com/gpu]",
            ),
            (
                "/template/spec/initContainers",
                json!([{"name": "i", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]),
                "template.spec.initContainers[0].resources.limits[nvidia.com/gpu]",
            ),
            (
                "/template/spec/nodeSelector",
                json!({"kubernetes.io/arch": "arm64"}),
                "template.spec.nodeSelector[kubernetes.io/arch]",
            ),
        ];
        for (path, value, field) in cases {
            for (label, value_of_label) in [("platform", "fargate"), ("eks.amazonaws.com/fargate-profile", "builds")] {
                let labels = json!({label: value_of_label});
                let expected = format!("{field} must not be set under the label {label}");
                refused(&[(path, value.clone()), ("/template/metadata/labels", labels)], &expected);
            }
            for labels in [json!(null), json!({"platform": "ec2"})] {
                assert!(changed(&[(path, value.clone()), ("/template/metadata/labels", labels)]).is_ok(), "{field}");
            }
        }
    }

    #[test]
    fn what_can_run_is_taken() {
        let cases = [
            ("/template/spec/initContainers", json!([{"name": "dockerd", "restartPolicy": "Always"}])),
            ("/template/spec/containers/0/args", json!([])),
            ("/template/spec/containers/0/args", json!(["start", "--no-color"])),
            ("/template/spec/terminationGracePeriodSeconds", json!(16)),
            (ENV, json!([{"name": "BUILDKITE_CANCEL_SIGNAL_TIMEOUT", "value": "24.999s"}])),
            (ENV, json!([{"name": "BUILDKITE_CANCEL_SIGNAL_TIMEOUT", "valueFrom": {}}])),
            (ENV, json!([{"name": "BUILDKITE_AGENT_TAGS", "value": "docker=true"}])),
            (ENV, json!([{"name": "BUILDKITE_AGENT_TAGS"}])),
            (ENV, json!([{"name": "BUILDKITE_AGENT_TAGS", "value": "merge-queue=true,queues=2"}])),
            ("/template/spec/containers/0/command", json!(["buildkite-agent", "start"])),
            ("/template/spec/containers/0/resources", json!({"requests": {"cpu": "1"}})),
            ("/metadata/name", json!("node-24.large")),
            ("/metadata/annotations", json!({"agent-scheduler.buildkite.com/max-cpu": "4"})),
        ];
        for (path, value) in cases {
            changed(&[(path, value)]).unwrap();
        }
        let tini = json!(["tini", "--", "/usr/local/bin/buildkite-agent"]);
        let start = json!(["start", "--tags-from-host", "--no-color"]);
        changed(&[("/template/spec/containers/0/command", tini), ("/template/spec/containers/0/args", start)]).unwrap();
        let shell = [("/template/spec/containers/0/command", json!(["sh", "-c"]))];
        changed(&[shell[0].clone(), ("/template/spec/containers/0/args", json!(["exec buildkite-agent start"]))])
            .unwrap();
    }

    #[test]
    fn the_definitions_of_the_readme_can_be_used() {
        let readme = include_str!("../README.md");
        let blocks = readme.split("```yaml\n").skip(1).filter_map(|rest| rest.split_once("\n```"));
        let whole = blocks.filter(|(yaml, _)| yaml.contains("kind: PodTemplate") && yaml.contains("\ntemplate:"));
        let names = whole.map(|(yaml, _)| {
            let manifest: Value = serde_saphyr::from_str(yaml).unwrap();
            PodDefinition::parse("README.md", &manifest).unwrap().name().to_owned()
        });
        assert_eq!(names.collect::<Vec<_>>(), ["node", "ec2"]);
    }

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let cases = [
            ("0", Some(0)),
            ("15ns", Some(15)),
            ("10s", Some(10_000_000_000)),
            ("1m30s", Some(90_000_000_000)),
            ("1.5h", Some(5_400_000_000_000)),
            (".5s", Some(500_000_000)),
            ("100ms1µs", Some(100_001_000)),
            ("", None),
            ("10", None),
            ("s", None),
            ("10 s", None),
            ("-1s", None),
            ("1d", None),
        ];
        for (text, expected) in cases {
            assert_eq!(nanoseconds(text), expected, "{text:?}");
        }
    }
}
