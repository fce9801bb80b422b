//! What `make check-definitions` and the build say of definitions in files.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::{fs, path::PathBuf};

use agent_scheduler_cli::{definitions::Definitions, schema};
use serde_json::{Value, json};

/// One mistake a file: the file, the field, the beginning of what is wrong.
const WRONG: [(&str, &str, &str); 10] = [
    ("boolean-as-variable", "template.spec.containers[0].env[0].value", "must be a text, is true; put it in quotes"),
    (
        "misspelt-annotation",
        "metadata.annotations[agent-scheduler.buildkite.com/max-cpus]",
        "is unknown, so it limits nothing",
    ),
    ("misspelt-field", "template.spec.containers[0].resouces", "is unknown; the field is resources"),
    ("no-image", "template.spec.containers[0].image", "must be set, is absent"),
    ("number-as-text", "template.spec.terminationGracePeriodSeconds", "must be a whole number, is \"60\""),
    (
        "quantity",
        "template.spec.containers[0].resources.requests.cpu",
        "must be a quantity of Kubernetes, such as \"4\" or \"8Gi\", is \"2 cores\"",
    ),
    ("restarted", "template.spec.restartPolicy", "must be Never, is \"OnFailure\""),
    ("second-container", "template.spec.containers[0]", "is \"dockerd\", a container beside agent"),
    ("text-as-list", "template.spec.containers[0].args", "must be a list, is \"start\""),
    ("wrong-level", "spec", "is no field of a PodTemplate, which has apiVersion, kind, metadata, template; move it"),
];

fn manifest() -> Value {
    json!({
        "apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "node"},
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "agent", "image": "agent:4"}]}},
    })
}

/// The problems and the warnings of a manifest with this value at this place.
fn changed(parent: &str, name: &str, value: Value) -> (Vec<String>, Vec<String>) {
    let mut manifest = manifest();
    manifest.pointer_mut(parent).unwrap()[name] = value;
    let found = schema::check(&manifest);
    let texts = |problems: Vec<_>| problems.iter().map(ToString::to_string).collect();
    (texts(found.problems), texts(found.warnings))
}

#[test]
fn ten_mistakes_in_a_folder_are_ten_with_file_field_and_fix() {
    let read = Definitions::read(&[PathBuf::from("tests/wrong")]);
    assert!(read.valid.is_empty());
    for (file, field, problem) in WRONG {
        let begin = format!("tests/wrong/{file}.yaml: ");
        let of_file: Vec<_> = read.problems.iter().filter_map(|line| line.strip_prefix(&begin)).collect();
        assert!(of_file[0].starts_with(&format!("{field} {problem}")), "{of_file:?}");
        // A spec at the wrong level is also absent at the right one.
        assert_eq!(of_file.len(), if file == "wrong-level" { 3 } else { 1 }, "{of_file:?}");
    }
    assert_eq!(fs::read_dir("tests/wrong").unwrap().count(), WRONG.len());
}

#[test]
fn the_definitions_of_the_documentation_have_no_problem() {
    let mut checked = 0;
    for folder in ["..", "../docs"] {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let blocks = text.split("```yaml\n").skip(1).map(|block| block.split("```").next().unwrap());
            // Some show a part alone.
            for block in blocks.filter(|block| block.contains("kind: PodTemplate") && block.contains("\ntemplate:")) {
                let file = std::env::temp_dir().join(format!("agent-scheduler-{}-{checked}.yaml", std::process::id()));
                fs::write(&file, block).unwrap();
                let read = Definitions::read(std::slice::from_ref(&file));
                fs::remove_file(&file).unwrap();
                assert_eq!((read.problems, read.warnings), (vec![], vec![]), "{}: {block}", path.display());
                checked += 1;
            }
        }
    }
    assert!(checked >= 1);
}

#[test]
fn an_agent_without_a_hook_that_stops_it_is_a_warning_and_ours_have_one() {
    let read = Definitions::read(&[PathBuf::from("tests/definitions")]);
    assert_eq!((read.valid.len(), read.problems), (2, vec![]));
    for (warning, file) in read.warnings.iter().zip(["deploy", "own"]) {
        let begin = format!("tests/definitions/{file}.yaml: template.spec.containers[0].lifecycle.preStop is absent: ");
        assert!(warning.starts_with(&begin), "{warning}");
    }
    assert_eq!(read.warnings.len(), 2);
    let ours = Definitions::read(&[PathBuf::from("../pod-definitions")]);
    assert_eq!((ours.valid.len(), ours.warnings), (4, vec![]));
}

#[test]
fn a_field_that_may_be_newer_is_a_warning_that_names_the_version() {
    let (agent, spec) = ("/template/spec/containers/0", "/template/spec");
    // Of Kubernetes 1.34 and 1.35, with the names of 1.33 nearest to them.
    for (parent, name) in
        [(agent, "restartPolicyRules"), (spec, "hostnameOverride"), (spec, "workloadRef"), (spec, "fieldOfTomorrow")]
    {
        let (problems, warnings) = changed(parent, name, json!({}));
        assert!(problems.is_empty(), "{problems:?}");
        let [warning] = &warnings[..] else { panic!("{warnings:?}") };
        assert!(warning.contains(&format!("{name} is unknown to Kubernetes 1.33, whose schema this is")), "{warning}");
    }
}

#[test]
fn a_field_that_is_close_to_another_or_out_of_its_place_is_a_problem() {
    let (agent, spec) = ("/template/spec/containers/0", "/template/spec");
    let cases = [
        (agent, "resouces", "is unknown; the field is resources"),
        (agent, "image_pull_policy", "is unknown; the field is imagePullPolicy"),
        (agent, "arg", "is unknown; the field is args"),
        (spec, "tolerations ", "is unknown; the field is tolerations"),
        (spec, "nodeselector", "is unknown; the field is nodeSelector"),
        (spec, "spec", "is no field of template.spec; move it"),
        (agent, "containers", "is no field of template.spec.containers[0]; move it"),
        ("", "status", "is no field of a PodTemplate, which has"),
        ("/template", "restartPolicy", "is no field of template, which has metadata, spec; move it"),
    ];
    for (parent, name, expected) in cases {
        let (problems, warnings) = changed(parent, name, json!({}));
        let [problem] = &problems[..] else { panic!("{name}: {problems:?} {warnings:?}") };
        assert!(problem.contains(expected) && warnings.is_empty(), "{problem}");
    }
}

#[test]
fn what_kubernetes_accepts_has_no_problem() {
    let (agent, spec) = ("/template/spec/containers/0", "/template/spec");
    let cases = [
        (agent, "resources", json!({"limits": {"cpu": 2, "memory": "1.5Gi", "nvidia.com/gpu": 0.5}})),
        (agent, "livenessProbe", json!({"httpGet": {"port": "http"}})),
        (agent, "livenessProbe", json!({"httpGet": {"port": 80}})),
        (agent, "env", json!(null)),
        (
            spec,
            "volumes",
            json!([{"name": "cache", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "empty", "emptyDir": null}]),
        ),
        (spec, "nodeSelector", json!({"anything": "at all"})),
        ("/metadata", "creationTimestamp", json!("2026-01-15T10:00:05Z")),
    ];
    for (parent, name, value) in cases {
        assert_eq!(changed(parent, name, value), (vec![], vec![]), "{name}");
    }
}
