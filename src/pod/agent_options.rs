//! The options of `buildkite-agent start` that a definition must not set, as variables or as flags: the function sets them, or
//! an agent that acquires a job ends at once with them, or never runs it.
//!
//! From `clicommand/agent_start.go` of buildkite/agent, v3.138.3 and version 4; `tests/fixtures/agent-start-options.txt` lists all
//! options. A value that comes from elsewhere (`valueFrom`, `envFrom`, the agent's configuration file) is not known here.

use super::{definition::Problem, field::Field};

type Test = fn(&str) -> bool;

/// Flag and variable, either of which an option may lack, which values are fine (`None`: not even an unknown one), and why
/// others are not.
const REFUSED: [(&str, &str, Option<Test>, &str); 11] = [
    ("acquire-job", "BUILDKITE_AGENT_ACQUIRE_JOB", None, "every job sets its own"),
    // "Queue must be present in only one of the --tags or the --queue flags"
    (
        "queue",
        "BUILDKITE_AGENT_QUEUE",
        None,
        "the queue of the job is added to the tags, and an agent does not start with both",
    ),
    ("tags", "", None, "a definition has its tags in BUILDKITE_AGENT_TAGS, which the function adds to"),
    // Renamed to `tags`: "couldn't set config option `meta-data`, `tags` has already been set". Version 4 ignores the variable.
    (
        "meta-data",
        "BUILDKITE_AGENT_META_DATA",
        None,
        "it is the old name of BUILDKITE_AGENT_TAGS, and an agent does not start with both",
    ),
    (
        "token",
        "",
        None,
        "a definition with a token of its own has it in BUILDKITE_AGENT_TOKEN, which the function sets otherwise",
    ),
    // "missing token"
    ("", "BUILDKITE_AGENT_TOKEN", Some(|token| !token.is_empty()), "it is empty, and no agent starts without a token"),
    // "you can't spawn multiple agents and acquire a job at the same time"
    ("spawn", "BUILDKITE_AGENT_SPAWN", Some(|spawn| spawn == "1"), ONE_AGENT),
    ("spawn-per-cpu", "BUILDKITE_AGENT_SPAWN_PER_CPU", Some(|spawn| spawn == "0"), ONE_AGENT),
    // The job would run in another container, one that agent-stack-k8s makes: "failed to parse BUILDKITE_CONTAINER_COUNT"
    ("kubernetes-exec", "", None, OTHER_CONTAINERS),
    ("", "BUILDKITE_KUBERNETES_EXEC", Some(|exec| FALSE.contains(&exec)), OTHER_CONTAINERS),
    ("executor", "BUILDKITE_EXECUTOR", Some(|executor| executor != "kubernetes"), OTHER_CONTAINERS),
];

const ONE_AGENT: &str = "a pod runs one agent, which acquires one job";
const OTHER_CONTAINERS: &str = "the agent would wait for the containers of agent-stack-k8s";

/// As Go's `strconv.ParseBool` reads it; nothing is false, too.
const FALSE: [&str; 7] = ["", "0", "f", "F", "false", "False", "FALSE"];

/// Checks the variables and the flags of the agent's container.
pub(super) fn check(agent: &Field) -> Vec<Problem> {
    let mut problems: Vec<_> = agent.select("env *").iter().filter_map(variable).collect();
    let words = agent.select("command|args *");
    for (place, word) in words.iter().enumerate() {
        problems.extend(flag(word, words.get(place + 1)));
    }
    problems
}

fn variable(field: &Field) -> Option<Problem> {
    let (name, value) = (field.value["name"].as_str()?, &field.value["value"]);
    if name == "BUILDKITE_AGENT_TAGS" {
        return tags(field);
    }
    let (_, _, allows, why) = REFUSED.iter().find(|(_, variable, ..)| *variable == name && !name.is_empty())?;
    // The API server leaves an empty value out.
    let is_unknown = value.is_null() && !field.value["valueFrom"].is_null();
    let is_fine = allows.is_some_and(|allows| is_unknown || allows(value.as_str().unwrap_or_default()));
    (!is_fine).then(|| problem(field, name, why))
}

/// Ours are added to them.
fn tags(field: &Field) -> Option<Problem> {
    let value = &field.value["value"];
    let mut tags = value.as_str().unwrap_or_default().split(',').map(str::trim);
    if tags.any(|tag| tag == "queue" || tag.starts_with("queue=")) {
        let text =
            "must not name a queue in BUILDKITE_AGENT_TAGS: the queue of the job is added to the tags; remove it";
        return Some(field.problem(text));
    }
    let is_plain = value.is_string() || value.is_null() && field.value["valueFrom"].is_null();
    (!is_plain).then(|| field.problem("must have a plain value for BUILDKITE_AGENT_TAGS, since tags are added to it"))
}

fn flag(word: &Field, next: Option<&Field>) -> Option<Problem> {
    let text = word.value.as_str()?;
    let flag = text.strip_prefix("--").or_else(|| text.strip_prefix('-'))?;
    let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
    let (_, _, allows, why) = REFUSED.iter().find(|(flag, ..)| *flag == name && !name.is_empty())?;
    let value = value.or_else(|| next.and_then(|next| next.value.as_str())).unwrap_or_default();
    let is_fine = allows.is_some_and(|allows| allows(value));
    (!is_fine).then(|| problem(word, &format!("--{name}"), why))
}

/// Without the value: it may be a token.
fn problem(field: &Field, name: &str, why: &str) -> Problem {
    field.problem(format!("must not be {name}: {why}; remove it"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{
        buildkite::event::fixtures::scheduled,
        pod::{
            definition::{
                PodDefinition,
                fixtures::{definition, template},
            },
            job,
        },
        stack::fixtures::stack,
    };

    use super::*;

    /// Every option: its flag, its variables, and what a definition may do with it.
    fn options() -> Vec<(&'static str, Vec<&'static str>, &'static str)> {
        let fixture = include_str!("../../tests/fixtures/agent-start-options.txt");
        let lines = fixture.lines().filter(|line| !line.starts_with('#'));
        let options = lines.map(|line| {
            let [flag, variables, _, verdict] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            (flag, variables.split(',').filter(|variable| *variable != "-").collect(), verdict)
        });
        options.collect()
    }

    /// The problem of a definition whose agent has this field.
    fn problem(field: &str, value: Value) -> Option<String> {
        let mut template = template();
        template["spec"]["containers"][0][field] = value;
        let manifest = json!({"metadata": {"name": "example"}, "template": template});
        let invalid = PodDefinition::of_object("example", &manifest).err()?;
        assert_eq!(invalid.problems.len(), 1, "{invalid}");
        Some(invalid.problems[0].problem.clone())
    }

    fn of_variable(name: &str, value: &str) -> Option<String> {
        problem("env", json!([{"name": name, "value": value}]))
    }

    fn of_flag(words: &[&str]) -> Option<String> {
        problem("args", json!([&["start"], words].concat()))
    }

    #[test]
    fn every_option_of_the_agent_is_allowed_or_refused_or_ours() {
        let job = job::build(&scheduled(), None, None, &definition(&template()), &stack()).json();
        let job: Value = serde_json::from_slice(&job).unwrap();
        let ours = job["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
        let options = options();
        assert_eq!(options.len(), 130);
        for (flag, variables, verdict) in options {
            let (verdict, value) = verdict.split_once('=').unwrap_or((verdict, "1"));
            let by_flag = [
                of_flag(&[&format!("--{flag}={value}")]),
                of_flag(&[&format!("-{flag}={value}")]),
                of_flag(&[&format!("--{flag}"), value]),
            ];
            let by_variable: Vec<_> = variables.iter().map(|variable| of_variable(variable, value)).collect();
            let is_refused =
                |problem: &Option<String>| problem.as_ref().is_some_and(|text| text.contains("must not be"));
            match verdict {
                "allowed" => assert!(by_flag.iter().chain(&by_variable).all(Option::is_none), "{flag}"),
                "refused" => assert!(by_flag.iter().chain(&by_variable).all(is_refused), "{flag}"),
                "ours" => {
                    assert!(by_flag.iter().all(is_refused), "{flag}");
                    assert!(ours.iter().any(|variable| variable["name"] == variables[0]), "{flag}");
                }
                other => panic!("{other}"),
            }
        }
    }

    #[test]
    fn no_option_is_refused_that_no_agent_has() {
        let options = options();
        for (refused, variable, ..) in &REFUSED {
            let is_there = options.iter().any(|(flag, variables, verdict)| {
                *verdict != "allowed"
                    && (refused.is_empty() || refused == flag)
                    && (variable.is_empty() || variables.contains(variable))
            });
            assert!(is_there, "{refused} {variable}");
        }
    }

    #[test]
    fn only_some_values_are_refused() {
        let from = |name: &str| problem("env", json!([{"name": name, "valueFrom": {}}])).is_none();
        let variable = |name: &str, value: &str| of_variable(name, value).is_none();
        let flag = |words: &[&str]| of_flag(words).is_none();
        let accepted = [
            variable("BUILDKITE_AGENT_SPAWN", "1"),
            from("BUILDKITE_AGENT_SPAWN"),
            flag(&["--spawn=1"]),
            flag(&["--spawn", "1", "--no-color"]),
            variable("BUILDKITE_AGENT_SPAWN_PER_CPU", "0"),
            variable("BUILDKITE_KUBERNETES_EXEC", ""),
            variable("BUILDKITE_KUBERNETES_EXEC", "false"),
            variable("BUILDKITE_EXECUTOR", "docker"),
            flag(&["--executor", "exec"]),
            variable("BUILDKITE_AGENT_TOKEN", "file:///run/token"),
            from("BUILDKITE_AGENT_TOKEN"),
            flag(&["--name", "queue", "token=1"]),
            variable("BUILDKITE_AGENT_TAGS", "docker=true"),
            variable("BUILDKITE_AGENT_TAGS", "merge-queue=true,queues=2"),
            problem("env", json!([{"name": "BUILDKITE_AGENT_TAGS"}])).is_none(),
            variable("", "judged by the API server"),
            flag(&["--", "--=1"]),
        ];
        assert_eq!(accepted, [true; 17]);
        let refused = [
            variable("BUILDKITE_AGENT_SPAWN", ""),
            variable("BUILDKITE_AGENT_SPAWN", "0"),
            variable("BUILDKITE_AGENT_SPAWN", "two"),
            problem("env", json!([{"name": "BUILDKITE_AGENT_SPAWN"}])).is_none(),
            flag(&["--spawn"]),
            flag(&["--kubernetes-exec"]),
            variable("BUILDKITE_KUBERNETES_EXEC", "yes"),
            variable("BUILDKITE_AGENT_TOKEN", ""),
            problem("env", json!([{"name": "BUILDKITE_AGENT_TOKEN"}])).is_none(),
            from("BUILDKITE_AGENT_QUEUE"),
            from("BUILDKITE_AGENT_ACQUIRE_JOB"),
            from("BUILDKITE_AGENT_TAGS"),
            variable("BUILDKITE_AGENT_TAGS", "docker=true, queue=kubernetes"),
            variable("BUILDKITE_AGENT_TAGS", "queue"),
        ];
        assert_eq!(refused, [false; 14]);
    }

    #[test]
    fn the_value_of_an_option_is_not_printed() {
        for (flag, variable, ..) in &REFUSED {
            let words = [format!("--{flag}=hush"), format!("--{flag}"), "hush".to_owned()];
            for problem in [of_flag(&[&words[0]]), of_flag(&[&words[1], &words[2]]), of_variable(variable, "hush")] {
                assert!(problem.is_none_or(|text| !text.contains("hush")), "{flag}");
            }
        }
        // What is in the command counts, too.
        let command = problem("command", json!(["buildkite-agent", "--token", "hush"])).unwrap();
        let text = "must not be --token: a definition with a token of its own has it in BUILDKITE_AGENT_TOKEN, which the function \
                    sets otherwise; remove it";
        assert_eq!(command, text);
    }
}
