//! A step's `agents:` alone, so that a run covers more of them than within an event.

use std::str;

use agent_scheduler::{
    buildkite::{job::ScheduledJob, rules::AgentQueryRules},
    pod::quantity::Quantity,
    stack::Stack,
};
use uuid::Uuid;

use crate::{DEFINITIONS, STACKS, check_text, manifest};

/// Each line of `data` is a rule.
pub fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let rules: Vec<_> = text.split('\n').map(str::to_owned).collect();
    let parsed = AgentQueryRules::parse(&rules);
    for (_, amount) in pairs(&rules).filter(|(key, _)| matches!(*key, "cpu" | "memory")) {
        let Some(quantity) = Quantity::parse(amount) else { continue };
        assert_eq!(quantity.text, amount);
        assert!(!quantity.exceeds(&quantity));
    }
    let job = ScheduledJob::script(Uuid::nil());
    for stack in &*STACKS {
        match parsed.matched(stack) {
            Ok(queue) => {
                assert!(has_all(&rules, queue, &parsed, stack), "{rules:?} matched queue {queue:?}");
                assert!(queue.is_some() || stack.serve_jobs_without_queue);
                for definition in &*DEFINITIONS {
                    manifest::check_for_step(&job, queue, definition, &parsed, stack);
                }
            }
            Err(mismatch) => {
                check_text(&mismatch.to_string());
                let any = stack.queues.iter().any(|queue| has_all(&rules, Some(queue), &parsed, stack));
                let named = rules.iter().any(|rule| rule.starts_with("queue="));
                assert!(!(any && named), "{rules:?} did not match");
            }
        }
    }
}

fn pairs(rules: &[String]) -> impl Iterator<Item = (&str, &str)> {
    rules.iter().filter_map(|rule| rule.split_once('='))
}

/// Buildkite's rule, written a second time: the agent has each tag that the step asks for.
fn has_all(rules: &[String], queue: Option<&str>, parsed: &AgentQueryRules, stack: &Stack) -> bool {
    let definition = parsed.definition();
    let mut tags: Vec<_> = stack.agent_tags.iter().map(|tag| (&*tag.key, &*tag.value)).collect();
    tags.extend(queue.map(|queue| ("queue", queue)));
    tags.extend([("pod-definition", definition), ("pod-template", definition)]);
    pairs(rules).all(|(key, wanted)| {
        let is_any = wanted.is_empty() || wanted == "*";
        matches!(key, "image" | "cpu" | "memory")
            || tags.iter().any(|(own, value)| *own == key && (is_any || *value == wanted))
    })
}

/// Rules of every kind.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        "queue=kubernetes",
        "queue=gpu\nos=linux\nos=*\nflags=a=b",
        "queue=*\npod-definition=node\npod-template=node",
        "queue=kubernetes\nimage=registry.example:5000/node@sha256:0123\ncpu=500m\nmemory=1.5Gi",
        "queue=kubernetes\ncpu=1e3\nmemory=0.000001Ti\nno-equals-sign",
        "queue=windows\npod-definition=../../secrets",
    ]
    .map(|rules| rules.as_bytes().to_vec())
    .to_vec()
}
