//! A Buildkite job that waits for an agent, wherever it was announced.

use std::time::SystemTime;

use serde::Serialize;
use uuid::Uuid;

/// One job that waits for an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ScheduledJob {
    /// When it was announced, to the second: the `time` of its event.
    pub time: Option<SystemTime>,
    /// Identifies the job to `buildkite-agent start --acquire-job`.
    pub uuid: Uuid,
    /// Only a `script` needs an agent; `manual`, `waiter` and `trigger` do not.
    pub kind: String,
    /// The step's `agents:`, each as `key=value`, such as `queue=kubernetes`.
    pub agent_query_rules: Vec<String>,
    /// The step's `key:`.
    pub step_key: Option<String>,
    /// Counts per pipeline.
    pub build_number: Option<u64>,
    /// What is built; may be `HEAD`.
    pub commit: Option<String>,
    /// Where it is built from.
    pub branch: Option<String>,
    /// The pipeline's name in its URL.
    pub pipeline: Option<String>,
    /// The organization's name in its URL.
    pub organization: Option<String>,
}
