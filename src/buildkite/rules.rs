//! A step's `agents:`, which arrive as agent query rules: `queue=kubernetes`, `os=linux`, `pod-definition=node`.
//!
//! An agent in acquire mode takes its job whatever the job's tags are, so we match, by Buildkite's rule: an agent must have
//! every tag that a step asks for, and may have more. The official matcher splits at the first `=`, compares exactly, and
//! leaves a rule without `=` out: buildkite/agent-stack-k8s, `internal/controller/agenttags/tags.go`. A value of `*`, or an
//! empty one, asks for the tag with any value: <https://buildkite.com/docs/agent/queues>.

use crate::{stack::Stack, text::excerpt};

/// The definition of a step that asks for none.
pub const DEFAULT_DEFINITION: &str = "default";

/// What one step asks of its agent and of its pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentQueryRules<'a> {
    /// The values of `queue`. An agent is in one queue, so that one must satisfy them all.
    queues: Vec<&'a str>,
    /// What the agent must have among its tags.
    tags: Vec<(&'a str, &'a str)>,
    /// `pod-definition`, or `pod-template`, as agent-stack-k8s spells it.
    definition: Option<&'a str>,
    /// The image of the agent's container.
    pub image: Choice<'a>,
    /// The CPU that it requests.
    pub cpu: Choice<'a>,
    /// The memory that it requests, and its limit.
    pub memory: Choice<'a>,
}

/// What a step chooses for one field of its pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice<'a> {
    /// No rule, or rules that accept any value: the definition decides.
    #[default]
    Any,
    /// This value.
    One(&'a str),
    /// Two rules that no pod can meet together.
    Contradiction(&'a str, &'a str),
}

/// Why a job is not for this function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the text shows what the fields are")]
pub enum Mismatch {
    /// Other agents serve that queue.
    #[error("queue={} is not served here (BuildkiteQueue is {served})", excerpt(.wanted))]
    OtherQueue { wanted: String, served: String },
    /// The step names no queue, so the job is in the default queue of its Buildkite cluster.
    #[error("the job names no queue, and ServeJobsWithoutQueue is false")]
    NoQueue,
    /// The queue is ours, but no agent of ours has that tag: the job waits until the step or the tags change.
    #[error(
        "no agent of this stack has the tag {} (add it to BuildkiteAgentTags, or remove it from the step's agents)",
        excerpt(.tag)
    )]
    UnservedTag { tag: String },
}

impl<'a> AgentQueryRules<'a> {
    /// Reads the rules of a job. One without `=` asks for nothing that an agent could have.
    pub fn parse(rules: &'a [String]) -> Self {
        let mut parsed = Self::default();
        for (key, value) in rules.iter().filter_map(|rule| rule.split_once('=')) {
            match key {
                "queue" => parsed.queues.push(value),
                "pod-definition" | "pod-template" if accepts_any(value) => {}
                "pod-definition" | "pod-template" => {
                    // A second definition is a tag that no agent has: it has the one of the definition that it runs in.
                    if *parsed.definition.get_or_insert(value) != value {
                        parsed.tags.push((key, value));
                    }
                }
                "image" => parsed.image.add(value),
                "cpu" => parsed.cpu.add(value),
                "memory" => parsed.memory.add(value),
                _ => parsed.tags.push((key, value)),
            }
        }
        parsed
    }

    /// The queue that the agent names, if these rules are for this stack; `None` for a job without a queue.
    pub fn matched<'s>(&self, stack: &'s Stack) -> Result<Option<&'s str>, Mismatch> {
        let queue = self.queue(stack)?;
        let served =
            |key: &str, value: &str| stack.agent_tags.iter().any(|tag| tag.key == key && accepts(value, &tag.value));
        match self.tags.iter().find(|(key, value)| !served(key, value)) {
            Some((key, value)) => Err(Mismatch::UnservedTag { tag: format!("{key}={value}") }),
            None => Ok(queue),
        }
    }

    /// The queue of the stack that these rules name, whatever else they ask for; `None` for a job without a queue.
    pub fn queue<'s>(&self, stack: &'s Stack) -> Result<Option<&'s str>, Mismatch> {
        let Some(first) = self.queues.first() else {
            return if stack.serve_jobs_without_queue { Ok(None) } else { Err(Mismatch::NoQueue) };
        };
        match stack.queues.iter().find(|queue| self.queues.iter().all(|wanted| accepts(wanted, queue))) {
            Some(queue) => Ok(Some(queue)),
            None => Err(Mismatch::OtherQueue { wanted: (*first).to_owned(), served: stack.queues.join(",") }),
        }
    }

    /// The pod definition that the job runs in.
    pub fn definition(&self) -> &'a str {
        self.definition.unwrap_or(DEFAULT_DEFINITION)
    }
}

impl<'a> Choice<'a> {
    fn add(&mut self, value: &'a str) {
        match *self {
            _ if accepts_any(value) => {}
            Self::Any => *self = Self::One(value),
            Self::One(first) if first != value => *self = Self::Contradiction(first, value),
            Self::One(_) | Self::Contradiction(..) => {}
        }
    }
}

fn accepts_any(wanted: &str) -> bool {
    matches!(wanted, "*" | "")
}

fn accepts(wanted: &str, value: &str) -> bool {
    accepts_any(wanted) || wanted == value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::fixtures::{stack, tags};

    fn owned(rules: &[&str]) -> Vec<String> {
        rules.iter().map(ToString::to_string).collect()
    }

    fn matched(rules: &[&str], stack: &Stack) -> Result<Option<String>, String> {
        let rules = owned(rules);
        let matched = AgentQueryRules::parse(&rules).matched(stack);
        matched.map(|queue| queue.map(str::to_owned)).map_err(|mismatch| mismatch.to_string())
    }

    /// Serves the queues kubernetes and gpu.
    fn two_queues(agent_tags: &[(&str, &str)]) -> Stack {
        Stack { queues: owned(&["kubernetes", "gpu"]), agent_tags: tags(agent_tags), ..stack() }
    }

    #[test]
    fn a_job_is_matched_as_buildkite_matches_agents() {
        let ours = two_queues(&[("os", "linux"), ("os", "ubuntu"), ("flags", "a=b")]);
        let cases: [(&[&str], Option<&str>, &str); 15] = [
            (&["queue=kubernetes"], Some("kubernetes"), "exact"),
            (&["queue=gpu"], Some("gpu"), "any of our queues"),
            (&["queue=*"], Some("kubernetes"), "any queue"),
            (&["queue="], Some("kubernetes"), "an empty value is any"),
            (&["queue=gpu", "queue=gpu"], Some("gpu"), "twice the same"),
            (&["queue=gpu", "queue=*"], Some("gpu"), "both rules hold"),
            (&["queue=gpu", "os=linux", "os=ubuntu"], Some("gpu"), "two tags of one key"),
            (&["queue=gpu", "os=*", "os="], Some("gpu"), "any value"),
            (&["queue=gpu", "flags=a=b"], Some("gpu"), "split at the first ="),
            (&["queue=gpu", "no-equals-sign"], Some("gpu"), "a rule without = is left out"),
            (&["queue=gpu", "pod-definition=node"], Some("gpu"), "our own rule"),
            (&["queue=gpu", "pod-template=node"], Some("gpu"), "in another spelling"),
            (&["queue=gpu", "pod-template=node", "pod-definition=node"], Some("gpu"), "in both"),
            (&["queue=gpu", "image=node:24", "cpu=2", "memory=4Gi"], Some("gpu"), "fields of the pod"),
            (&["os=linux", "queue=kubernetes"], Some("kubernetes"), "in any order"),
        ];
        for (rules, queue, case) in cases {
            assert_eq!(matched(rules, &ours), Ok(queue.map(str::to_owned)), "{case}");
        }
    }

    #[test]
    fn a_job_that_is_not_ours_says_why() {
        let ours = two_queues(&[("os", "linux")]);
        let cases: [(&[&str], &str); 11] = [
            (&["queue=windows"], "queue=windows is not served here (BuildkiteQueue is kubernetes,gpu)"),
            (&["queue=Kubernetes"], "queue=Kubernetes is not served"),
            (&["queue=def*"], "queue=def* is not served"),
            (&["queue=kubernetes", "queue=gpu"], "queue=kubernetes is not served"),
            (&["queue=kubernetes", "os=mac"], "the tag os=mac "),
            (&["queue=kubernetes", "arch=*"], "the tag arch=* "),
            (&["queue=kubernetes", "os=lin*"], "the tag os=lin* "),
            (&["queue=kubernetes", "pod-definition=node", "pod-definition=go"], "the tag pod-definition=go "),
            (&["queue=kubernetes", "pod-definition=node", "pod-template=go"], "the tag pod-template=go "),
            (&[], "names no queue"),
            (&["os=linux"], "names no queue"),
        ];
        for (rules, reason) in cases {
            let mismatch = matched(rules, &ours).unwrap_err();
            assert!(mismatch.contains(reason), "{mismatch}");
        }
    }

    #[test]
    fn a_reason_is_one_short_line_whatever_the_step_asks_for() {
        let long = "a".repeat(100_000);
        for rules in [&[&*format!("queue=a\n{long}")], &["queue=kubernetes", &format!("a\u{202e}\0={long}")][..]] {
            let reason = matched(rules, &stack()).unwrap_err();
            assert!(
                reason.len() < 1_000 && !reason.contains(char::is_control) && !reason.contains('\u{202e}'),
                "{reason}"
            );
        }
    }

    #[test]
    fn a_job_without_a_queue_is_served_on_request() {
        let serves = Stack { serve_jobs_without_queue: true, ..stack() };
        assert_eq!(matched(&[], &serves), Ok(None));
        assert_eq!(matched(&["no-equals-sign"], &serves), Ok(None));
        assert!(matched(&["queue=windows"], &serves).is_err());
        assert!(matched(&["os=linux"], &serves).is_err());
    }

    #[test]
    fn the_step_chooses_its_pod_definition() {
        let cases: [(&[&str], &str); 6] = [
            (&["queue=kubernetes", "pod-definition=node"], "node"),
            (&["queue=kubernetes", "pod-template=node"], "node"),
            (&["pod-definition=*", "pod-template=node"], "node"),
            (&["queue=kubernetes"], "default"),
            (&["pod-definition=*", "pod-definition="], "default"),
            (&["pod-definition=*", "pod-definition=node"], "node"),
        ];
        for (rules, expected) in cases {
            assert_eq!(AgentQueryRules::parse(&owned(rules)).definition(), expected, "{rules:?}");
        }
    }

    #[test]
    fn the_step_chooses_fields_of_its_pod() {
        let reference = "registry.example/node@sha256:0?a=b";
        let cases: [(&[&str], Choice); 5] = [
            (&["image=*", "image="], Choice::Any),
            (&["image=registry.example/node@sha256:0?a=b", "image=*", "image="], Choice::One(reference)),
            (&["image=a", "image=a"], Choice::One("a")),
            (&["image=a", "image=a", "image=b"], Choice::Contradiction("a", "b")),
            (&["image=a", "image=b", "image=c"], Choice::Contradiction("a", "b")),
        ];
        for (rules, expected) in cases {
            assert_eq!(AgentQueryRules::parse(&owned(rules)).image, expected, "{rules:?}");
        }
    }
}
