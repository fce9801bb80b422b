//! Why a job has no Kubernetes Job: for the log, for alarms, and for its build page.

use std::{sync::Arc, time::Duration};

use crate::{
    agent_token,
    buildkite::stacks,
    cause, definitions, job_token, kubernetes,
    pod::{
        definition::{OtherPipelines, Unmet},
        metadata::JOB_UUID_LABEL,
    },
    report::{Deferral, Failure},
    stacks_api,
    text::chain,
};

/// How long an operator has to replace a pod definition: before that, a retry may find it valid.
const TIME_TO_REPLACE: Duration = Duration::from_mins(1);

/// Why a job has no Kubernetes Job.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text shows what the fields are")]
pub enum Error {
    /// There is no client for the cluster.
    #[error(transparent)]
    Cluster(Arc<kubernetes::Error>),
    /// The step has no pod definition to run in.
    #[error(transparent)]
    Definition(#[from] definitions::Error),
    /// The step's pipeline may not use the pod definition.
    #[error(transparent)]
    Pipeline(#[from] OtherPipelines),
    /// The step asks for what its pod definition, or the API server, does not allow.
    #[error(transparent)]
    Unmet(#[from] Unmet),
    /// The agent would have no token.
    #[error(transparent)]
    AgentToken(Arc<agent_token::Error>),
    /// The API server did not take the Job.
    #[error("cannot create Job {name}")]
    CreateJob { name: String, source: kubernetes::Error },
    /// The API server may have created the Job, but did not say so.
    #[error("the API server did not confirm Job {name}; the next delivery of the event creates it, or finds it")]
    Uncertain { name: String, source: kubernetes::Error },
    /// The API server has a Job of that name, which could not be looked at.
    #[error("Job {name} exists already, and cannot be read to see whether it is ours")]
    ReadJob { name: String, source: kubernetes::Error },
    /// The Job of an earlier delivery is on its way out. The name becomes free.
    #[error("Job {name} exists already and is being deleted; the next delivery of the event creates it")]
    JobIsDeleted { name: String },
    /// The API server has a Job of that name, which is not ours.
    #[error(
        "Job {name} exists already and is not ours: its label {JOB_UUID_LABEL} is {label}; delete it, and keep others from using the name"
    )]
    NameTaken { name: String, label: String },
    /// Buildkite does not say whether a job still waits.
    #[error("cannot ask Buildkite whether the job still waits for an agent")]
    State { source: Arc<stacks::Error> },
    /// Buildkite does not reserve a job, so that its agent can have no token of its own.
    #[error("cannot reserve the job at Buildkite, which a token for its agent needs (JobTokens)")]
    Reserve { source: stacks_api::Error },
    /// The agent has no token of its own.
    #[error(transparent)]
    JobToken(#[from] job_token::Error),
    /// The job is left to a sweep, and none comes.
    #[error("{0}, and no sweep takes the job later; set SweepEnabled to true, or JobTokens to false")]
    NoSweep(Deferral),
    /// Buildkite does not finish a job that cannot start.
    #[error("cannot finish the job at Buildkite, which can never start ({refused})")]
    Finish { refused: String, source: Arc<stacks::Error> },
}

impl Error {
    /// The type of the failure, for alarms and for the table in docs/troubleshooting.md; it never changes its spelling.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cluster(error) => error.kind(),
            Self::Definition(error) => error.kind(),
            Self::Pipeline(_) | Self::Unmet(_) => "InvalidAgentQueryRule",
            Self::AgentToken(error) => error.kind(),
            Self::CreateJob { source, .. } | Self::Uncertain { source, .. } | Self::ReadJob { source, .. } => {
                source.kind()
            }
            Self::JobIsDeleted { .. } => "JobIsDeleted",
            Self::NameTaken { .. } => "RejectedByApiServer",
            Self::JobToken(error) => error.kind(),
            Self::State { .. } | Self::Finish { .. } | Self::Reserve { .. } | Self::NoSweep(_) => {
                "BuildkiteUnavailable"
            }
        }
    }

    /// The cluster may be elsewhere by now.
    pub(super) fn is_wrong_endpoint(&self) -> bool {
        let cause = if let Self::Cluster(error) = self { Some(&**error) } else { cause(self) };
        cause.is_some_and(kubernetes::Error::is_wrong_endpoint)
    }

    /// For the report.
    pub fn failure(&self) -> Failure {
        Failure { error_type: self.kind(), text: chain(self) }
    }

    /// No retry helps: the step or its pod definition must change first. `age` is that of the event: an operator may be replacing a
    /// definition that is not valid or gone.
    pub(super) fn is_final(&self, age: Option<Duration>) -> bool {
        match self {
            Self::Pipeline(_) | Self::Unmet(_) => true,
            Self::Definition(error) => match error {
                definitions::Error::Unknown { .. } => true,
                definitions::Error::Gone { .. }
                | definitions::Error::Invalid(_)
                | definitions::Error::Placeholder { .. } => age.is_some_and(|age| age >= TIME_TO_REPLACE),
                definitions::Error::List { .. } => false,
            },
            _ => false,
        }
    }

    /// Neither the cluster nor the function has a definition of that name.
    pub(super) fn is_unknown_definition(&self) -> bool {
        matches!(self, Self::Definition(definitions::Error::Unknown { .. }))
    }

    /// For the build page: as in the log, but without what the API server quotes of the Job.
    pub(super) fn summary(&self) -> String {
        match self {
            Self::CreateJob { name, source } if source.refused_fields().next().is_some() => {
                let fields: Vec<_> = source.refused_fields().map(|(field, _)| field).collect();
                format!("the API server rejects Job {name} for its fields {}", fields.join(", "))
            }
            error => chain(error),
        }
    }

    /// What an operator does about a failure that may pass.
    pub(super) fn advice(&self) -> &'static str {
        match self.kind() {
            "Forbidden" => "Operator: grant the permissions (connect STACK).",
            "Unauthorized" => "Operator: map the function's role to the cluster (connect STACK).",
            "ClusterUnavailable" | "Timeout" => "Operator: check the cluster and the function's network.",
            "InvalidPodDefinition" | "UnknownPodDefinition" => "Operator: correct the pod definition.",
            _ => "Operator: see the function's log.",
        }
    }
}
