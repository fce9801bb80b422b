//! What the settings of a stack mean for a job: whether it is for us, and what its Kubernetes Job looks like.

/// The settings that decide about jobs; [`Config`](../agent_scheduler/config/struct.Config.html) reads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Which Jobs and pods of the namespace are this stack's, as their label: 32 hexadecimal digits, from `STACK`, cluster and namespace.
    pub id: String,
    /// `BUILDKITE_QUEUE`: the queues whose jobs are ours, at least one.
    pub queues: Vec<String>,
    /// `BUILDKITE_AGENT_TAGS`: what a job may ask for beside its queue.
    pub agent_tags: Vec<Tag>,
    /// `SERVE_JOBS_WITHOUT_QUEUE`: also take jobs that name no queue.
    pub serve_jobs_without_queue: bool,
    /// `KUBERNETES_NAMESPACE`: where the Jobs and the Secret live.
    pub namespace: String,
    /// `AGENT_TOKEN_SECRET_NAME`: the Kubernetes Secret that holds the agent token.
    pub agent_token_secret: String,
    /// `JOB_TTL_SECONDS`: how long a finished Job stays. A delivery that comes later is not recognised as a repetition;
    /// Buildkite refuses the agent that it starts.
    pub job_ttl_seconds: u32,
    /// `JOB_ACTIVE_DEADLINE_SECONDS`: how long a Job may take, waiting for a node included.
    pub job_active_deadline_seconds: u32,
}

/// One of the agent's tags, `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Left of the first `=`.
    pub key: String,
    /// All that is right of it, other `=` included.
    pub value: String,
}

/// A stack for the tests of the other rooms.
#[cfg(test)]
pub(crate) mod fixtures {
    use super::*;

    pub(crate) fn stack() -> Stack {
        Stack {
            id: "0123456789abcdef0123456789abcdef".to_owned(),
            queues: vec!["kubernetes".to_owned()],
            agent_tags: Vec::new(),
            serve_jobs_without_queue: false,
            namespace: "buildkite".to_owned(),
            agent_token_secret: "buildkite-agent-token".to_owned(),
            job_ttl_seconds: 600,
            job_active_deadline_seconds: 21_600,
        }
    }

    pub(crate) fn tags(tags: &[(&str, &str)]) -> Vec<Tag> {
        tags.iter().map(|(key, value)| Tag { key: (*key).to_owned(), value: (*value).to_owned() }).collect()
    }
}
