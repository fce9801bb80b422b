//! What happens to the Jobs and Pods of a namespace, on the timeline.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    client::Client,
    timeline::{Actor, Kind, Timeline},
};

/// Records each state of each object once, until the connection ends.
pub(super) async fn watch(mut client: Client, path: &str, timeline: &Timeline) {
    let mut seen = BTreeSet::new();
    let each = |event: Value| {
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
        for state in states(&event) {
            if seen.insert((name.to_owned(), state.clone())) {
                timeline.record(Actor::Kubernetes, Kind::Became { name: name.to_owned(), state });
            }
        }
    };
    // The API server ends a watch after half an hour at the earliest, and no test takes as long.
    let _ = client.follow(path, each).await;
}

/// The states of an object, in the order in which it gets them.
fn states(event: &Value) -> Vec<String> {
    let object = &event["object"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut states = vec!["created".to_owned()];
    if object["spec"]["nodeName"].is_string() {
        states.push("scheduled".to_owned());
    }
    for condition in object["status"]["conditions"].as_array().into_iter().flatten() {
        if condition["status"] == "True" {
            states.push(format!("{} {}", text(&condition["type"]), text(&condition["reason"])).trim().to_owned());
        }
    }
    let containers =
        ["initContainerStatuses", "containerStatuses"].into_iter().filter_map(|list| object["status"][list].as_array());
    for container in containers.flatten() {
        let (name, state) = (text(&container["name"]), &container["state"]);
        states.push(if state["running"].is_object() {
            format!("{name} running")
        } else if state["terminated"].is_object() {
            format!("{name} terminated {}", state["terminated"]["exitCode"])
        } else {
            format!("{name} waiting {}", text(&state["waiting"]["reason"]))
        });
    }
    if object["status"]["reason"].is_string() {
        states.push(format!("{} {}", text(&object["status"]["phase"]), text(&object["status"]["reason"])));
    }
    if object["metadata"]["deletionTimestamp"].is_string() {
        states.push("terminating".to_owned());
    }
    if event["type"] == "DELETED" {
        states.push("deleted".to_owned());
    }
    states
}
