//! A Buildkite job that waits for an agent, wherever it was announced.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One job that waits for an agent. As JSON it stands on its Kubernetes Job, so that the sweep can create that again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledJob {
    /// When it was announced, to the second: the `time` of its event.
    #[serde(skip)]
    pub time: Option<SystemTime>,
    /// Identifies the job to `buildkite-agent start --acquire-job`.
    pub uuid: Uuid,
    /// Only a `script` needs an agent; `manual`, `waiter` and `trigger` do not.
    pub kind: String,
    /// The step's `agents:`, each as `key=value`, such as `queue=kubernetes`.
    pub agent_query_rules: Vec<String>,
    /// The step's `key:`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_key: Option<String>,
    /// Counts per pipeline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_number: Option<u64>,
    /// What is built; may be `HEAD`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Where it is built from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// The pipeline's name in its URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<String>,
    /// The organization's name in its URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
}

impl ScheduledJob {
    /// A job that needs an agent, of which nothing else is known.
    pub fn script(uuid: Uuid) -> Self {
        Self {
            time: None,
            uuid,
            kind: "script".to_owned(),
            agent_query_rules: Vec::new(),
            step_key: None,
            build_number: None,
            commit: None,
            branch: None,
            pipeline: None,
            organization: None,
        }
    }

    /// How long ago it was announced.
    pub fn age(&self, now: SystemTime) -> Option<Duration> {
        self.time.map(|time| now.duration_since(time).unwrap_or_default())
    }
}
