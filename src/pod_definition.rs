//! Pod definitions: what a job runs in.
//!
//! Each is a core/v1 `PodTemplate` manifest, known by its `metadata.name`. It stays the JSON that its author wrote, so that
//! a field which this crate does not know reaches the API server and is judged there.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::Value;

/// The container that runs the Buildkite agent.
pub const AGENT: &str = "agent";

/// The definition of a step that asks for none.
pub const DEFAULT: &str = "default";

/// The definitions of `pod-definitions/`, each with its path, as JSON.
const COMPILED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/pod_definitions.rs"));

/// A pod definition that was found to be usable.
#[derive(Clone, Debug, PartialEq)]
pub struct PodDefinition {
    name: String,
    template: Value,
}

/// The definitions that a step can choose from.
#[derive(Clone, Debug)]
pub struct Library {
    definitions: BTreeMap<String, Result<PodDefinition, Error>>,
}

/// Why a step has no pod definition to run in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nobody wrote one of that name.
    #[error("there is no pod definition {name:?}; a step may ask for {}, or add {name:?} to pod-definitions/", .known.join(", "))]
    Unknown {
        /// What the step asks for.
        name: String,
        /// What it could have asked for.
        known: Vec<String>,
    },
    /// It is there, and no job can run in it.
    #[error("{origin}: {field} {problem}")]
    Invalid {
        /// The file.
        origin: String,
        /// The path of the field within it.
        field: &'static str,
        /// What it must be, and what it is.
        problem: String,
    },
}

impl PodDefinition {
    /// Checks a manifest. `origin` is the file that it comes from.
    pub fn parse(origin: &str, manifest: &Value) -> Result<Self, Error> {
        let invalid = |field, problem: String| Err(Error::Invalid { origin: origin.to_owned(), field, problem });
        if manifest["apiVersion"] != "v1" || manifest["kind"] != "PodTemplate" {
            let found = format!("{} {}", manifest["apiVersion"], manifest["kind"]);
            return invalid("kind", format!("must be PodTemplate of apiVersion v1, is {found}"));
        }
        let Some(name) = manifest["metadata"]["name"].as_str() else {
            return invalid("metadata.name", "must be the name that a step asks for, is absent".to_owned());
        };
        let template = &manifest["template"];
        let Some(agent) = agent(template) else {
            return invalid(
                "template.spec.containers",
                format!("must have one named {AGENT}, which runs the Buildkite agent"),
            );
        };
        match &template["spec"]["restartPolicy"] {
            Value::Null => {}
            policy if policy == "Never" => {}
            policy => {
                return invalid(
                    "template.spec.restartPolicy",
                    format!("must be Never, is {policy}: a Buildkite job runs once"),
                );
            }
        }
        if variable(agent, "BUILDKITE_AGENT_TAGS").is_some_and(|tags| !tags["value"].is_string()) {
            let problem = "must have a plain value for BUILDKITE_AGENT_TAGS, since tags are added to it".to_owned();
            return invalid("template.spec.containers[agent].env", problem);
        }
        for kind in ["labels", "annotations"] {
            let entries = &template["metadata"][kind];
            if !(entries.is_null() || entries.as_object().is_some_and(|entries| entries.values().all(Value::is_string)))
            {
                return invalid(
                    "template.metadata",
                    format!("must have a map of strings as its {kind}, has {entries}"),
                );
            }
        }
        Ok(Self { name: name.to_owned(), template: template.clone() })
    }

    /// What a step asks for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The `PodTemplateSpec`, as its author wrote it.
    pub fn template(&self) -> &Value {
        &self.template
    }

    /// The `labels` or `annotations` that its author gives the pod.
    pub fn metadata(&self, kind: &str) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        let entries = self.template["metadata"][kind].as_object().into_iter().flatten();
        entries.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?.into())))
    }

    /// The ordinary containers, among them the agent's.
    pub fn containers(&self) -> impl Iterator<Item = &Value> {
        containers(&self.template)
    }

    /// Whether the author sees to the agent token, so that ours is not needed.
    pub fn brings_agent_token(&self) -> bool {
        agent(&self.template).is_some_and(|agent| variable(agent, "BUILDKITE_AGENT_TOKEN").is_some())
    }
}

impl Library {
    /// The definitions that were compiled in.
    pub fn compiled() -> Self {
        let definitions = COMPILED.iter().map(|(origin, json)| {
            // The build has seen to it that each is JSON and has a name of its own.
            let manifest: Value = serde_json::from_str(json).unwrap_or_default();
            let name = manifest["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            (name, PodDefinition::parse(origin, &manifest))
        });
        Self { definitions: definitions.collect() }
    }

    /// The definition of that name. A broken one fails only the jobs that ask for it.
    pub fn get(&self, name: &str) -> Result<&PodDefinition, Error> {
        match self.definitions.get(name) {
            Some(definition) => definition.as_ref().map_err(Clone::clone),
            None => Err(Error::Unknown { name: name.to_owned(), known: self.definitions.keys().cloned().collect() }),
        }
    }
}

fn containers(template: &Value) -> impl Iterator<Item = &Value> {
    template["spec"]["containers"].as_array().into_iter().flatten()
}

fn agent(template: &Value) -> Option<&Value> {
    containers(template).find(|container| container["name"] == AGENT)
}

fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a Value> {
    container["env"].as_array()?.iter().find(|variable| variable["name"] == name)
}

/// Definitions for the tests of other rooms.
#[cfg(test)]
pub(crate) mod fixtures {
    use serde_json::json;

    use super::*;

    /// A definition named `example` with this `template`.
    pub(crate) fn definition(template: &Value) -> PodDefinition {
        let manifest = json!({
            "apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "example"}, "template": template,
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
            "template": {"spec": {"containers": [{"name": "agent", "image": "agent:4"}]}},
        })
    }

    #[test]
    fn the_default_definition_is_compiled_in() {
        let library = Library::compiled();
        let default = library.get(DEFAULT).unwrap();
        assert_eq!(default.name(), "default");
        assert!(!default.brings_agent_token());
    }

    #[test]
    fn a_step_that_asks_for_an_unknown_definition_is_told_the_known_ones() {
        let error = Library::compiled().get("nodejs").unwrap_err().to_string();
        assert_eq!(
            error,
            r#"there is no pod definition "nodejs"; a step may ask for default, fargate, or add "nodejs" to pod-definitions/"#
        );
    }

    #[test]
    fn a_definition_keeps_fields_that_are_unknown_here() {
        let mut manifest = manifest();
        manifest["template"]["spec"]["fieldOfTomorrow"] = json!({"a": 1});
        let definition = PodDefinition::parse("node.yaml", &manifest).unwrap();
        assert_eq!(definition.template(), &manifest["template"]);
    }

    #[test]
    fn an_unusable_definition_names_its_file_its_field_and_the_mend() {
        let cases: [(&str, Value, &str); 7] = [
            ("/kind", json!("Pod"), "node.yaml: kind must be PodTemplate of apiVersion v1, is \"v1\" \"Pod\""),
            ("/metadata", json!({}), "node.yaml: metadata.name must be the name that a step asks for"),
            (
                "/template/spec/containers/0/name",
                json!("main"),
                "node.yaml: template.spec.containers must have one named agent",
            ),
            ("/template/spec", json!(null), "node.yaml: template.spec.containers must have one named agent"),
            (
                "/template/spec",
                json!({"restartPolicy": "Always", "containers": [{"name": "agent"}]}),
                "node.yaml: template.spec.restartPolicy must be Never, is \"Always\"",
            ),
            (
                "/template",
                json!({"metadata": {"labels": {"team": 7}}, "spec": {"containers": [{"name": "agent"}]}}),
                "node.yaml: template.metadata must have a map of strings as its labels, has {\"team\":7}",
            ),
            (
                "/template/spec/containers/0",
                json!({"name": "agent", "env": [{"name": "BUILDKITE_AGENT_TAGS", "valueFrom": {}}]}),
                "node.yaml: template.spec.containers[agent].env must have a plain value for BUILDKITE_AGENT_TAGS",
            ),
        ];
        for (path, value, expected) in cases {
            let mut manifest = manifest();
            *manifest.pointer_mut(path).unwrap() = value;
            let error = PodDefinition::parse("node.yaml", &manifest).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
