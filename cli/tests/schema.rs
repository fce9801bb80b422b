//! `docs/pod-definition.schema.json`: the schema of Kubernetes, and what this project asks of a definition beyond it. `UPDATE=1`
//! writes it.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::{any::type_name, env, fs};

use k8s_openapi::{
    api::core::v1::PodTemplate,
    schemars::{Schema, generate::SchemaSettings, transform::Transform, transform::transform_subschemas},
};
use serde_json::{Value, json};

const FILE: &str = "../docs/pod-definition.schema.json";

/// What the grammar of quantities takes, but for an amount below zero: no pod can have one.
const QUANTITY: &str = r"^\+?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+|[KMGTPE]i|[numkMGTPE])?$";
const SLUGS: &str = "^ *[a-z0-9_-]+ *(, *[a-z0-9_-]+ *)*$";
const NAME: &str = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$";

/// Beyond the schema of Kubernetes: where, and what stands there.
fn rules() -> Vec<(&'static str, &'static str, Value)> {
    let in_template = "/properties/template";
    let agent = json!({
        "properties": {
            "name": {"const": "agent"},
            "restartPolicy": false,
            "restartPolicyRules": false,
            "env": {"items": {"properties": {"name": {"not": {"enum": [
                "BUILDKITE_AGENT_ACQUIRE_JOB", "BUILDKITE_AGENT_QUEUE", "BUILDKITE_AGENT_META_DATA",
            ]}}}}},
        },
    });
    let own = "agent-scheduler.buildkite.com/";
    let annotations = json!({
        "properties": {
            format!("{own}allow-pipelines"): {
                "type": "string", "pattern": SLUGS, "description": "The slugs of the pipelines whose jobs get this definition.",
            },
            format!("{own}allow-image"): {"enum": ["true", "false"], "description": "Whether a step may choose an image."},
            format!("{own}max-cpu"): {
                "type": "string", "pattern": QUANTITY, "description": "What a step may ask for at most with cpu=….",
            },
            format!("{own}max-memory"): {
                "type": "string", "pattern": QUANTITY, "description": "What a step may ask for at most with memory=….",
            },
        },
        "patternProperties": {
            format!("^{}(?!(allow-pipelines|allow-image|max-cpu|max-memory)$)", own.replace('.', r"\.")): false,
        },
    });
    let of_definition = json!({
        "required": ["name"],
        "properties": {"name": {"pattern": NAME, "maxLength": 253}, "annotations": annotations},
    });
    let of_pod =
        json!({"properties": {"annotations": {"patternProperties": {format!("^{}", own.replace('.', r"\.")): false}}}});
    let spec = json!({
        "required": ["restartPolicy"],
        "properties": {
            "restartPolicy": {"const": "Never"},
            "containers": {"minItems": 1, "maxItems": 1, "items": agent},
        },
    });
    vec![
        ("", "required", json!(["apiVersion", "kind", "metadata", "template"])),
        ("/properties/apiVersion", "const", json!("v1")),
        ("/properties/kind", "const", json!("PodTemplate")),
        ("/properties/metadata/allOf", "-", of_definition),
        (in_template, "required", json!(["spec"])),
        (in_template, "properties", json!({"metadata": of_pod, "spec": spec})),
        ("/definitions/io.k8s.api.core.v1.Container", "required", json!(["name", "image"])),
    ]
}

/// Unknown fields are refused, and a quantity has the grammar that Kubernetes describes in words.
#[derive(Clone)]
struct Strict;

impl Transform for Strict {
    fn transform(&mut self, schema: &mut Schema) {
        if schema.get("properties").is_some() {
            schema.insert("additionalProperties".to_owned(), json!(false));
        }
        if schema.remove("x-kubernetes-int-or-string").is_some() {
            let is_quantity =
                schema.get("description").is_some_and(|text| text.as_str().unwrap().starts_with("Quantity"));
            schema.remove("description");
            if is_quantity {
                schema.insert("type".to_owned(), json!(["string", "number"]));
                schema.insert("pattern".to_owned(), json!(QUANTITY));
            } else {
                schema.insert("type".to_owned(), json!(["string", "integer"]));
            }
        }
        transform_subschemas(self, schema);
    }
}

fn generated() -> Value {
    let settings = SchemaSettings::draft07().with_transform(Strict);
    let mut schema = settings.into_generator().into_root_schema_for::<PodTemplate>().to_value();
    // k8s_openapi::v1_33::api::core::v1::PodTemplate
    let module = type_name::<PodTemplate>().split("::").find(|part| part.starts_with("v1_")).unwrap();
    schema["title"] = json!("Pod definition of agent-scheduler");
    schema["x-kubernetes-version"] = json!(module.trim_start_matches('v').replace('_', "."));
    for (place, name, rule) in rules() {
        match schema.pointer_mut(place).unwrap() {
            Value::Array(all) => all.push(rule),
            object => object[name] = rule,
        }
    }
    schema
}

#[test]
fn the_schema_is_what_is_generated() {
    let text = serde_json::to_string_pretty(&generated()).unwrap() + "\n";
    if env::var_os("UPDATE").is_some() {
        fs::write(FILE, &text).unwrap();
    }
    assert!(text == fs::read_to_string(FILE).unwrap(), "{FILE} is not what is generated; run with UPDATE=1");
}
