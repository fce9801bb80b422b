//! One job: is it for us, what does it run in, create the Job, name the result.

use std::{sync::Arc, time::Duration};

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use tokio::try_join;
use uuid::Uuid;

use crate::{
    agent_token::{self, AgentToken},
    aws::{eks::Eks, ssm::Ssm},
    buildkite::{job::ScheduledJob, rules::AgentQueryRules},
    clock,
    config::Config,
    deadline::Deadline,
    definitions::{self, Definitions},
    kept::Kept,
    kubernetes::{self, Cluster},
    pod::{
        definition::Unmet,
        job::{self, JOB_UUID_LABEL},
    },
    report::{Failure, Outcome, Reason, Report},
    text::{chain, excerpt},
};

/// Turns scheduled jobs into Kubernetes Jobs.
pub struct Scheduler {
    /// The settings.
    pub config: Config,
    credentials: Credentials,
    eks: Eks,
    cluster: Kept<Cluster, kubernetes::Error>,
    definitions: Definitions,
    agent_token: AgentToken,
}

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
    /// The step asks for what its pod definition does not allow.
    #[error(transparent)]
    Unmet(#[from] Unmet),
    /// The agent would have no token.
    #[error(transparent)]
    AgentToken(Arc<agent_token::Error>),
    /// The API server did not take the Job.
    #[error("cannot create Job {name}")]
    CreateJob {
        name: String,
        source: kubernetes::Error,
    },
    /// The API server may have created the Job, but did not say so.
    #[error("the API server did not confirm Job {name}; the next delivery of the event creates it, or finds it")]
    Uncertain {
        name: String,
        source: kubernetes::Error,
    },
    /// The API server has a Job of that name, which could not be looked at.
    #[error("Job {name} exists already, and cannot be read to see whether it is ours")]
    ReadJob {
        name: String,
        source: kubernetes::Error,
    },
    /// The API server has a Job of that name, which is not ours.
    #[error(
        "Job {name} exists already and is not ours: its label {JOB_UUID_LABEL} is {label}; delete it, and keep others from using the name"
    )]
    NameTaken {
        name: String,
        label: String,
    },
}

impl Error {
    /// The type of the failure, for alarms and for the table in docs/troubleshooting.md; it never changes its spelling.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cluster(error) => error.kind(),
            Self::Definition(error) => error.kind(),
            Self::Unmet(_) => "InvalidAgentQueryRule",
            Self::AgentToken(error) => error.kind(),
            Self::CreateJob { source, .. } | Self::Uncertain { source, .. } | Self::ReadJob { source, .. } => {
                source.kind()
            }
            Self::NameTaken { .. } => "RejectedByApiServer",
        }
    }

    /// For the report.
    pub fn failure(&self) -> Failure {
        Failure { error_type: self.kind(), text: chain(self) }
    }
}

impl Scheduler {
    /// No request yet.
    pub fn new(config: Config, credentials: Credentials, sdk: &SdkConfig) -> Self {
        Self {
            credentials,
            eks: Eks::new(sdk),
            cluster: Kept::new("the cluster's endpoint", Duration::MAX),
            definitions: Definitions::compiled(),
            agent_token: AgentToken::new(&config, Ssm::new(sdk)),
            config,
        }
    }

    /// Does the slow part before there is an event: the connection, with the list of pod definitions as its first request; side
    /// by side with it the agent token; then the Secret.
    pub async fn start(&self, deadline: Deadline) -> Result<(), Error> {
        let connect = async {
            let cluster = self.cluster(deadline).await?;
            self.definitions.refresh(&cluster, deadline).await?;
            Ok(cluster)
        };
        let read_token = async { self.agent_token.read_ahead(deadline).await.map_err(Error::AgentToken) };
        let (cluster, ()) = try_join!(connect, read_token)?;
        self.agent_token.apply(&cluster, deadline).await.map_err(Error::AgentToken)
    }

    /// Gives a job its Kubernetes Job, and reports what became of it.
    pub async fn schedule(&self, job: &ScheduledJob, deadline: Deadline) -> Result<Outcome, Error> {
        let began = clock::monotonic();
        let rules = AgentQueryRules::parse(&job.agent_query_rules);
        let matched = if job.kind == "script" {
            rules.matched(&self.config.stack).map_err(Reason::from)
        } else {
            Err(Reason::NoScript(job.kind.clone()))
        };
        let (queue, result) = match matched {
            Ok(queue) => (queue, self.create(job, queue, &rules, deadline).await),
            Err(reason) => (rules.queue(&self.config.stack).ok().flatten(), Ok(Outcome::Ignored(reason))),
        };
        let (definition, function_name) = (rules.definition(), &*self.config.function_name);
        let report = Report { job, queue, definition, began, function_name };
        report.write(result.as_ref().map_err(Error::failure).as_ref().copied());
        result
    }

    async fn create(
        &self,
        job: &ScheduledJob,
        queue: Option<&str>,
        rules: &AgentQueryRules<'_>,
        deadline: Deadline,
    ) -> Result<Outcome, Error> {
        tracing::debug!(queue, definition = &*excerpt(rules.definition()), "job matched");
        let cluster = self.cluster(deadline).await?;
        let definition = self.definitions.get(rules.definition(), &cluster, deadline).await?;
        let definition = definition.for_step(rules)?;
        if !definition.brings_agent_token() {
            self.agent_token.apply(&cluster, deadline).await.map_err(Error::AgentToken)?;
        }
        let name = || job::name(job.uuid);
        match cluster.create_job(&job::build(job, queue, &definition, &self.config.stack), deadline).await {
            Ok(_) => Ok(Outcome::Created),
            Err(error) if error.is_already_exists() => already_exists(&cluster, job.uuid, deadline).await,
            Err(source) if source.is_uncertain() => Err(Error::Uncertain { name: name(), source }),
            Err(source) => Err(Error::CreateJob { name: name(), source }),
        }
    }

    async fn cluster(&self, deadline: Deadline) -> Result<Cluster, Error> {
        let find = async |deadline| Cluster::find(&self.config, &self.eks, &self.credentials, deadline).await;
        self.cluster.get(deadline, find).await.map_err(Error::Cluster)
    }
}

/// An earlier delivery of the same event created the Job, if that has our label for it.
async fn already_exists(cluster: &Cluster, uuid: Uuid, deadline: Deadline) -> Result<Outcome, Error> {
    let name = job::name(uuid);
    match cluster.job(&name, deadline).await {
        Ok(job) => match job.labels.get(JOB_UUID_LABEL) {
            Some(label) if *label == uuid.to_string() => Ok(Outcome::AlreadyExists),
            label => {
                let label = label.map_or_else(|| "absent".to_owned(), |label| format!("\"{}\"", excerpt(label)));
                Err(Error::NameTaken { name, label })
            }
        },
        Err(source) => Err(Error::ReadJob { name, source }),
    }
}
