//! The Job of each definition and each override, as `make render` prints it, in `golden/`; `UPDATE=1` writes them.

use std::{env, fs, path::PathBuf};

use agent_scheduler_cli::{
    definitions::Definitions,
    render::{Settings, job_of_event, job_of_step, render},
};
use agent_scheduler_core::{pod::job, stack::Tag};
use serde_json::Value;

const EVENT: &str = include_str!("../../events/job-scheduled.json");

/// A file of `golden/`, and the `agents:` of its step.
const GOLDEN: [(&str, &str); 9] = [
    ("default", ""),
    ("fargate", "queue=kubernetes pod-definition=fargate"),
    ("restricted", "queue=kubernetes pod-definition=restricted"),
    ("elastic-ci-stack", "queue=kubernetes pod-definition=elastic-ci-stack"),
    ("image", "queue=kubernetes image=node:24"),
    ("cpu", "queue=kubernetes cpu=4"),
    ("memory", "queue=kubernetes memory=4Gi"),
    ("all", "queue=gpu pod-definition=own image=node:24 cpu=500m memory=512Mi"),
    ("own", "queue=gpu pod-definition=own"),
];

/// As `cargo test` does not run in the root of the workspace.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn definitions() -> Definitions {
    let read = Definitions::read(&[root().join("pod-definitions"), root().join("cli/tests/definitions")]);
    assert_eq!(read.problems, [""; 0]);
    read
}

/// What is printed, with the paths as they are in the root of the workspace.
fn rendered(agents: &str, settings: &Settings) -> Result<String, String> {
    let mut definitions = definitions().valid;
    for definition in &mut definitions {
        definition.file = definition.file.replace(&format!("{}/", root().display()), "");
    }
    render(&job_of_step(agents, None), &definitions, settings).map_err(|problem| problem.to_string())
}

#[test]
fn a_step_gets_the_job_in_its_golden_file() {
    for (name, agents) in GOLDEN {
        let file = root().join(format!("cli/tests/golden/{name}.yaml"));
        let text = rendered(agents, &Settings::default()).unwrap();
        if env::var_os("UPDATE").is_some() {
            fs::write(&file, &text).unwrap();
        }
        assert_eq!(text, fs::read_to_string(&file).unwrap(), "{name}; if the change is right, run with UPDATE=1");
    }
}

#[test]
fn the_yaml_is_the_job_and_each_value_of_the_definition_is_without_a_mark() {
    for (name, agents) in GOLDEN {
        let text = rendered(agents, &Settings::default()).unwrap();
        let parsed: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(parsed["metadata"]["name"], job::name(job_of_event(EVENT).unwrap().uuid), "{name}");
        let job = agent_scheduler_cli::yaml::job(&parsed, &parsed["spec"]["template"]);
        assert!(!job.contains("# the definition has"), "{name}");
        let pod = job.split_once("\n  template:\n").unwrap().1;
        let of_pod = pod.lines().take_while(|line| line.starts_with("    "));
        assert!(of_pod.clone().count() > 30 && of_pod.clone().all(|line| !line.contains("# added")), "{name}");
        assert_eq!(serde_saphyr::from_str::<Value>(&job).unwrap(), parsed, "{name}");
    }
}

#[test]
fn an_event_gets_the_job_of_its_step() {
    let job = job_of_event(EVENT).unwrap();
    let of_event = render(&job, &definitions().valid, &Settings::default()).unwrap();
    let of_step = render(&job_of_step("queue=kubernetes", None), &definitions().valid, &Settings::default()).unwrap();
    assert_eq!(of_event, of_step);
    let finished = job_of_event(include_str!("../../events/job-finished.json")).unwrap_err().to_string();
    assert!(finished.contains("detail-type \"Job Finished\""), "{finished}");
}

#[test]
fn the_settings_of_the_stack_decide_as_in_the_function() {
    let tag = Tag { key: "os".to_owned(), value: "linux".to_owned() };
    let settings = Settings { queues: vec!["linux".to_owned()], tags: vec![tag], namespace: Some("builds".to_owned()) };
    let text = rendered("queue=linux os=linux", &settings).unwrap();
    assert!(
        text.contains("  namespace: builds\n") && text.contains("value: os=linux,queue=linux,pod-definition="),
        "{text}"
    );
    let cases = [
        ("", "names no queue"),
        ("queue=gpu", "queue=gpu is not served here (BuildkiteQueue is linux)"),
        ("queue=linux os=mac", "no agent of this stack has the tag os=mac"),
        ("queue=linux pod-definition=go", "there is no pod definition \"go\"; there are default, "),
        ("queue=linux pod-definition=deploy", "is not for pipeline \"example-pipeline\""),
        ("queue=linux memory=1Ti", "the step asks for memory=1Ti"),
    ];
    for (agents, expected) in cases {
        let problem = rendered(agents, &settings).unwrap_err();
        assert!(problem.contains(expected), "{problem}");
    }
}
