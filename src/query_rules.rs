//! A step's `agents:`, which arrive as agent query rules: `queue=default`, `os=linux`, `pod-definition=node`.
//!
//! An agent in acquire mode takes its job whatever the job's tags are, so matching is ours to do, by Buildkite's rule: an
//! agent must have every tag that a step asks for, and may have more. The official matcher splits at the first `=`, compares
//! exactly, and leaves a rule without `=` out: buildkite/agent-stack-k8s, `internal/controller/agenttags/tags.go`. A value of
//! `*`, or none, asks for the tag with any value: <https://buildkite.com/docs/agent/queues>.

use crate::{config::Config, excerpt::excerpt};

/// What one step asks of its agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentQueryRules<'a> {
    rules: Vec<Rule<'a>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule<'a> {
    key: &'a str,
    value: &'a str,
}

/// Why a job is not for this function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Some other agents serve that queue.
    #[error("queue={} is not served here (BUILDKITE_QUEUE is {served})", excerpt(.wanted))]
    OtherQueue {
        /// The queue that the step names.
        wanted: String,
        /// The queues of this function.
        served: String,
    },
    /// The step names no queue, so its cluster's default queue has it.
    #[error("the job names no queue, and SERVE_JOBS_WITHOUT_QUEUE is false")]
    NoQueue,
    /// The queue is ours, but no agent of ours has that tag: the job waits until somebody mends the step or the tags.
    #[error(
        "no agent of this stack has the tag {} (add it to BuildkiteAgentTags, or take it from the step's agents)",
        excerpt(.tag)
    )]
    UnservedTag {
        /// As the step writes it.
        tag: String,
    },
}

impl Rule<'_> {
    fn is_any(self) -> bool {
        matches!(self.value, "*" | "")
    }

    fn accepts(self, value: &str) -> bool {
        self.is_any() || self.value == value
    }
}

impl<'a> AgentQueryRules<'a> {
    /// Reads the rules of an event. One without `=` asks for nothing that an agent could have.
    pub fn parse(rules: &'a [String]) -> Self {
        let rules = rules.iter().filter_map(|rule| {
            let (key, value) = rule.split_once('=')?;
            Some(Rule { key, value })
        });
        Self { rules: rules.collect() }
    }

    /// The queue that the agent shall name, if these rules are for this function; `None` for a job without a queue.
    pub fn matched<'c>(&self, config: &'c Config) -> Result<Option<&'c str>, Mismatch> {
        let queue = self.queue(config)?;
        let definition = self.pod_definition();
        let served = |rule: &Rule| match rule.key {
            // The queue is matched, and the others are not what the agent must have, but what its pod shall be.
            "queue" | "image" | "cpu" | "memory" => true,
            // The agent will have the tag of the one definition that it runs in.
            "pod-definition" | "pod-template" => definition.is_none_or(|definition| rule.accepts(definition)),
            key => config.agent_tags.iter().any(|tag| tag.key == key && rule.accepts(&tag.value)),
        };
        match self.rules.iter().find(|rule| !served(rule)) {
            Some(Rule { key, value }) => Err(Mismatch::UnservedTag { tag: format!("{key}={value}") }),
            None => Ok(queue),
        }
    }

    /// The pod definition that the step chose, in either spelling; `None` for the default one.
    pub fn pod_definition(&self) -> Option<&'a str> {
        let mut named = self.rules.iter().filter(|rule| matches!(rule.key, "pod-definition" | "pod-template"));
        named.find(|rule| !rule.is_any()).map(|rule| rule.value)
    }

    /// The values that the step gives for that key, where it does not leave the choice to us.
    pub fn values(&self, key: &str) -> impl Iterator<Item = &'a str> {
        self.rules.iter().filter(move |rule| rule.key == key && !rule.is_any()).map(|rule| rule.value)
    }

    /// The queue of ours that these rules name, whatever else they ask for; `None` for a job without a queue.
    ///
    /// An agent is in one queue, so it must satisfy all the rules that name one.
    pub fn queue<'c>(&self, config: &'c Config) -> Result<Option<&'c str>, Mismatch> {
        let mut wanted = self.rules.iter().filter(|rule| rule.key == "queue").peekable();
        let Some(first) = wanted.peek().map(|rule| rule.value.to_owned()) else {
            return if config.serve_jobs_without_queue { Ok(None) } else { Err(Mismatch::NoQueue) };
        };
        let wanted: Vec<_> = wanted.collect();
        match config.queues.iter().find(|queue| wanted.iter().all(|rule| rule.accepts(queue))) {
            Some(queue) => Ok(Some(queue)),
            None => Err(Mismatch::OtherQueue { wanted: first, served: config.queues.join(",") }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::fixtures::config;

    fn matched(rules: &[&str], variables: &[(&str, &str)]) -> Result<Option<String>, String> {
        let rules: Vec<_> = rules.iter().map(ToString::to_string).collect();
        let config = config(variables);
        let matched = AgentQueryRules::parse(&rules).matched(&config);
        matched.map(|queue| queue.map(str::to_owned)).map_err(|mismatch| mismatch.to_string())
    }

    #[test]
    fn a_job_is_matched_as_buildkite_matches_agents() {
        let ours = [("BUILDKITE_QUEUE", "default,gpu"), ("BUILDKITE_AGENT_TAGS", "os=linux,os=ubuntu,flags=a=b")];
        let cases: [(&[&str], Option<&str>, &str); 15] = [
            (&["queue=default"], Some("default"), "exact"),
            (&["queue=gpu"], Some("gpu"), "any of our queues"),
            (&["queue=*"], Some("default"), "any queue"),
            (&["queue="], Some("default"), "a blank value is any"),
            (&["queue=gpu", "queue=gpu"], Some("gpu"), "twice the same"),
            (&["queue=gpu", "queue=*"], Some("gpu"), "both rules hold"),
            (&["queue=gpu", "os=linux", "os=ubuntu"], Some("gpu"), "two tags of one key"),
            (&["queue=gpu", "os=*", "os="], Some("gpu"), "any value"),
            (&["queue=gpu", "flags=a=b"], Some("gpu"), "split at the first ="),
            (&["queue=gpu", "no-equals-sign"], Some("gpu"), "a rule without = is left out"),
            (&["queue=gpu", "pod-definition=node"], Some("gpu"), "our own rule"),
            (&["queue=gpu", "pod-template=node"], Some("gpu"), "in another spelling"),
            (&["queue=gpu", "pod-template=node", "pod-definition=node"], Some("gpu"), "in both"),
            (&["queue=gpu", "image=node:24", "cpu=2", "memory=4Gi"], Some("gpu"), "what the pod shall be"),
            (&["os=linux", "queue=default"], Some("default"), "in any order"),
        ];
        for (rules, queue, case) in cases {
            assert_eq!(matched(rules, &ours), Ok(queue.map(str::to_owned)), "{case}");
        }
    }

    #[test]
    fn a_job_that_is_not_ours_says_why() {
        let ours = [("BUILDKITE_QUEUE", "default,gpu"), ("BUILDKITE_AGENT_TAGS", "os=linux")];
        let cases: [(&[&str], &str); 11] = [
            (&["queue=windows"], "queue=windows is not served here (BUILDKITE_QUEUE is default,gpu)"),
            (&["queue=Default"], "queue=Default is not served"),
            (&["queue=def*"], "queue=def* is not served"),
            (&["queue=default", "queue=gpu"], "queue=default is not served"),
            (&["queue=default", "os=mac"], "the tag os=mac "),
            (&["queue=default", "arch=*"], "the tag arch=* "),
            (&["queue=default", "os=lin*"], "the tag os=lin* "),
            (&["queue=default", "pod-definition=node", "pod-definition=go"], "the tag pod-definition=go "),
            (&["queue=default", "pod-definition=node", "pod-template=go"], "the tag pod-template=go "),
            (&[], "names no queue"),
            (&["os=linux"], "names no queue"),
        ];
        for (rules, reason) in cases {
            let told = matched(rules, &ours).unwrap_err();
            assert!(told.contains(reason), "{told}");
        }
    }

    #[test]
    fn a_reason_is_one_line_and_no_flood_whatever_the_step_asks_for() {
        let long = "a".repeat(100_000);
        for rules in [&[&*format!("queue=a\n{long}")], &["queue=default", &format!("a\u{202e}\0={long}")][..]] {
            let told = matched(rules, &[]).unwrap_err();
            assert!(told.len() < 1_000 && !told.contains(char::is_control) && !told.contains('\u{202e}'), "{told}");
        }
    }

    #[test]
    fn a_job_without_a_queue_is_served_on_request() {
        let serve = [("SERVE_JOBS_WITHOUT_QUEUE", "true")];
        assert_eq!(matched(&[], &serve), Ok(None));
        assert_eq!(matched(&["no-equals-sign"], &serve), Ok(None));
        assert!(matched(&["queue=windows"], &serve).is_err());
        assert!(matched(&["os=linux"], &serve).is_err());
    }

    #[test]
    fn the_step_chooses_its_pod_definition() {
        let cases: [(&[&str], Option<&str>); 6] = [
            (&["queue=default", "pod-definition=node"], Some("node")),
            (&["queue=default", "pod-template=node"], Some("node")),
            (&["pod-definition=*", "pod-template=node"], Some("node")),
            (&["queue=default"], None),
            (&["pod-definition=*", "pod-definition="], None),
            (&["pod-definition=*", "pod-definition=node"], Some("node")),
        ];
        for (rules, expected) in cases {
            let rules: Vec<_> = rules.iter().map(ToString::to_string).collect();
            assert_eq!(AgentQueryRules::parse(&rules).pod_definition(), expected, "{rules:?}");
        }
    }

    #[test]
    fn a_value_may_hold_an_equals_sign() {
        let rules = ["image=registry.example/node@sha256:0?a=b", "image=*", "image="].map(str::to_owned);
        let values: Vec<_> = AgentQueryRules::parse(&rules).values("image").collect();
        assert_eq!(values, ["registry.example/node@sha256:0?a=b"]);
    }
}
