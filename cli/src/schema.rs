//! A definition against the schema of Kubernetes, `docs/pod-definition.schema.json`: the fields that exist, their types, and those that
//! must be set. The other rules of that file are those of [`PodDefinition`](agent_scheduler_core::pod::definition::PodDefinition).
//!
//! The schema is of one version of Kubernetes, and the cluster may be newer. So a field that it does not have is a problem where
//! its name is close to another one, or where Kubernetes adds no fields; else it is a warning, and the API server decides.

use std::sync::LazyLock;

use agent_scheduler_core::{
    pod::{definition::Problem, quantity::Quantity},
    text::excerpt,
};
use serde_json::{Map, Value};

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../docs/pod-definition.schema.json")).expect("a test writes it")
});

/// Typing errors that make one name of another.
const MAX_TYPING_ERRORS: usize = 2;

/// What gives a manifest its shape. No field of these names will be added anywhere.
const STRUCTURE: [&str; 7] = ["apiVersion", "containers", "initContainers", "kind", "metadata", "spec", "template"];

/// What the schema says of a manifest.
#[derive(Debug, Default)]
pub struct Found {
    /// What no version of Kubernetes takes.
    pub problems: Vec<Problem>,
    /// What a newer one may take.
    pub warnings: Vec<Problem>,
}

/// Checks the manifest of a `PodTemplate`.
pub fn check(manifest: &Value) -> Found {
    let mut found = Found::default();
    found.check(manifest, &SCHEMA, "");
    found
}

impl Found {
    fn check(&mut self, value: &Value, schema: &Value, path: &str) {
        let (name, schema) = resolve(schema);
        let is_quantity = name.ends_with(".Quantity");
        match value {
            // As if it were absent.
            Value::Null => {}
            Value::Object(fields) if has_type(schema, "object") => self.fields(fields, schema, path),
            Value::Array(items) if has_type(schema, "array") => {
                for (place, item) in items.iter().enumerate() {
                    self.check(item, &schema["items"], &format!("{path}[{place}]"));
                }
            }
            Value::String(text) if is_quantity && Quantity::parse(text).is_none() => {
                let text =
                    format!("must be a quantity of Kubernetes, such as \"4\" or \"8Gi\", is \"{}\"", excerpt(text));
                self.problem(path, text);
            }
            value if types_of(value).iter().any(|kind| has_type(schema, kind)) => {}
            value => {
                let text = format!("must be {}, is {}", expected(schema), excerpt(&value.to_string()));
                let fix = if has_type(schema, "string") && !value.is_array() && !value.is_object() {
                    "; put it in quotes"
                } else {
                    ""
                };
                self.problem(path, text + fix);
            }
        }
    }

    fn fields(&mut self, fields: &Map<String, Value>, schema: &Value, path: &str) {
        let below = |name: &str| match path {
            "" => name.to_owned(),
            path if name.contains(['.', '/']) => format!("{path}[{}]", excerpt(name)),
            path => format!("{path}.{}", excerpt(name)),
        };
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if fields.get(name).is_none_or(Value::is_null) {
                self.problem(&below(name), "must be set, is absent".to_owned());
            }
        }
        let known = schema["properties"].as_object();
        for (name, value) in fields {
            match known.and_then(|known| known.get(name)) {
                Some(schema) => self.check(value, schema, &below(name)),
                None => match &schema["additionalProperties"] {
                    Value::Bool(false) => self.unknown(name, known, path, &below(name)),
                    of_all => self.check(value, of_all, &below(name)),
                },
            }
        }
    }

    fn unknown(&mut self, name: &str, known: Option<&Map<String, Value>>, parent: &str, path: &str) {
        let plain = |name: &str| name.replace(['-', '_'], "").to_lowercase();
        let errors = |known: &str| strsim::osa_distance(&plain(known), &plain(name));
        let nearest = known.into_iter().flat_map(Map::keys).min_by_key(|known| errors(known));
        let nearest = nearest.filter(|nearest| errors(nearest) <= MAX_TYPING_ERRORS.min(nearest.len() / 3));
        if let Some(nearest) = nearest {
            self.problem(path, format!("is unknown; the field is {nearest}"));
        } else if matches!(parent, "" | "template") || STRUCTURE.contains(&name) {
            let known: Vec<_> = known.into_iter().flat_map(Map::keys).map(String::as_str).collect();
            let known = if known.len() > 8 { String::new() } else { format!(", which has {}", known.join(", ")) };
            let place = if parent.is_empty() { "a PodTemplate" } else { parent };
            self.problem(path, format!("is no field of {place}{known}; move it to where it belongs, or remove it"));
        } else {
            let version = SCHEMA["x-kubernetes-version"].as_str().unwrap_or_default();
            let problem = format!(
                "is unknown to Kubernetes {version}, whose schema this is: no job starts with it, unless your cluster is newer and knows it"
            );
            self.warnings.push(Problem { field: path.to_owned(), problem });
        }
    }

    fn problem(&mut self, path: &str, problem: String) {
        self.problems.push(Problem { field: path.to_owned(), problem });
    }
}

/// What a reference refers to, and the name of that.
fn resolve(schema: &Value) -> (&str, &Value) {
    let references = [&schema["$ref"], &schema["allOf"][0]["$ref"]];
    let name = references.into_iter().find_map(|reference| reference.as_str()?.strip_prefix("#/definitions/"));
    name.map_or(("", schema), |name| (name, &SCHEMA["definitions"][name]))
}

fn has_type(schema: &Value, name: &str) -> bool {
    match &schema["type"] {
        Value::Array(types) => types.iter().any(|one| one == name),
        one => one == name,
    }
}

/// What JSON Schema calls it, if it is not null, a map or a list.
fn types_of(value: &Value) -> &'static [&'static str] {
    match value {
        Value::Bool(_) => &["boolean"],
        Value::Number(number) if number.is_i64() => &["integer", "number"],
        Value::Number(_) => &["number"],
        Value::String(_) => &["string"],
        _ => &[],
    }
}

fn expected(schema: &Value) -> &'static str {
    let kinds = [
        ("object", "a map"),
        ("array", "a list"),
        ("number", "a quantity of Kubernetes, such as \"4\" or \"8Gi\""),
        ("string", "a text"),
        ("integer", "a whole number"),
        ("boolean", "true or false"),
    ];
    kinds.into_iter().find(|(kind, _)| has_type(schema, kind)).map_or("something else", |(_, text)| text)
}
