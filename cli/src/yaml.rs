//! A Job as YAML, with a comment on each line that is not in its pod definition.

use agent_scheduler_core::text::excerpt;
use serde_json::{Value, json};

/// The mark of what the definition does not have.
const ADDED: &str = " # added";

/// A Job that the function built of a definition with this `PodTemplateSpec`.
pub fn job(job: &Value, template: &Value) -> String {
    let own = json!({"metadata": template["metadata"], "spec": {"template": template}});
    let mut lines = Vec::new();
    block(&mut lines, job, Some(&own));
    lines.join("\n") + "\n"
}

/// The lines of a map or a list that is not empty. `own` is what the definition has in its place; `None` if a line above has the
/// mark for all of it.
fn block(lines: &mut Vec<String>, value: &Value, own: Option<&Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let own = own.map(|own| &own[name]);
                // A key needs quotes where a text would.
                entry(lines, &format!("{}:", scalar(&name.as_str().into())), value, own);
            }
        }
        Value::Array(items) => {
            for item in items {
                entry(lines, "-", item, own.map(|own| counterpart(item, own)));
            }
        }
        _ => {}
    }
}

fn entry(lines: &mut Vec<String>, head: &str, value: &Value, own: Option<&Value>) {
    let mark = match own {
        None => String::new(),
        Some(Value::Null) => ADDED.to_owned(),
        Some(own) if is_block(value) || own == value => String::new(),
        Some(own) => format!(" # the definition has {}", excerpt(&own.to_string())),
    };
    if !is_block(value) {
        let text = scalar(value);
        let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
        lines.push(format!("{head} {first}{mark}"));
        lines.extend(rest.lines().map(str::to_owned));
        return;
    }
    let mut inner = Vec::new();
    block(&mut inner, value, own.filter(|own| !own.is_null()));
    let is_item = head == "-";
    let mut inner = inner.into_iter();
    match inner.next() {
        // An item begins on the line of its `-`. A line that ends in a mark of its own needs none of the item's.
        Some(first) if is_item => lines.push(format!("- {first}{mark}")),
        first => {
            lines.push(format!("{head}{mark}"));
            lines.extend(first.map(|line| format!("  {line}")));
        }
    }
    lines.extend(inner.map(|line| format!("  {line}")));
}

/// The definition's item of that name, or the same item.
fn counterpart<'a>(item: &Value, own: &'a Value) -> &'a Value {
    let key = |item: &Value| ["name", "mountPath"].map(|key| item[key].clone());
    let mut items = own.as_array().into_iter().flatten();
    items.find(|own| if item.is_object() { key(own) == key(item) } else { *own == item }).unwrap_or(&Value::Null)
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

/// A text of several lines stands below its first line, indented by two.
fn scalar(value: &Value) -> String {
    let text = serde_saphyr::to_string(value).expect("a scalar is YAML");
    text.trim_end_matches('\n').to_owned()
}
