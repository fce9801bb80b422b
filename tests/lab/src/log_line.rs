//! The JSON of a function's log as a line of text, for a person.

use serde_json::{Map, Value};

/// Not fields of the event.
const NO_FIELDS: [&str; 8] = ["_aws", "FunctionName", "level", "message", "span", "spans", "target", "timestamp"];

/// A line as `message name=value …`; a line that is no JSON object stays as it is.
///
/// The shape is that of tracing-subscriber's JSON format, be the event's fields flattened or not. A line with metrics in Embedded
/// Metric Format has no message, and its values are shown.
pub fn text(line: &str) -> String {
    let Ok(object) = serde_json::from_str::<Map<String, Value>>(line) else { return line.to_owned() };
    let fields = match object.get("fields") {
        Some(Value::Object(fields)) => fields,
        _ if object.contains_key("message") || object.contains_key("_aws") => &object,
        _ => return line.to_owned(),
    };
    let level = match object.get("level").and_then(Value::as_str) {
        Some(level @ ("WARN" | "ERROR")) => Some(format!("{level}:")),
        _ => None,
    };
    let message = fields.get("message").map_or_else(|| "metrics".to_owned(), plain);
    level.into_iter().chain([message]).chain(values(fields)).collect::<Vec<_>>().join(" ")
}

/// The fields of an object, each as `name=value`; a value with spaces in it is quoted.
pub(crate) fn values(object: &Map<String, Value>) -> impl Iterator<Item = String> {
    object.iter().filter(|(name, _)| !NO_FIELDS.contains(&name.as_str())).map(|(name, value)| {
        let value = plain(value);
        if value.contains(' ') { format!("{name}={value:?}") } else { format!("{name}={value}") }
    })
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        // Milliseconds, with three digits.
        Value::Number(number) if number.is_f64() => {
            number.as_f64().map_or_else(String::new, |number| format!("{number:.3}"))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn a_log_line_reads_as_its_message_and_its_fields() {
        let cases = [
            (
                r#"{"level":"INFO","fields":{"message":"matched","queue":"kubernetes","n":2}}"#,
                "matched n=2 queue=kubernetes",
            ),
            (
                r#"{"level":"WARN","fields":{"message":"ignored","reason":"not ours"},"spans":[{"name":"x"}]}"#,
                "WARN: ignored reason=\"not ours\"",
            ),
            (
                r#"{"level":"DEBUG","message":"matched","ms":1.23456,"n":2,"span":{"requestId":"1"}}"#,
                "matched ms=1.235 n=2",
            ),
            (
                r#"{"_aws":{"Timestamp":1},"FunctionName":"agent-scheduler","Queue":"kubernetes","JobsCreated":1,"TimeToJob":81}"#,
                "metrics JobsCreated=1 Queue=kubernetes TimeToJob=81",
            ),
            (r#"{"other":1}"#, r#"{"other":1}"#),
            ("thread 'main' panicked", "thread 'main' panicked"),
        ];
        for (line, expected) in cases {
            assert_eq!(text(line), expected);
        }
    }
}
