//! The token for the agent of one Job, and the Secret that has it. It registers one agent, which takes that one job:
//! <https://buildkite.com/docs/agent/self-hosted/job-acquisition-tokens>.
//!
//! The Job comes first, since the Secret belongs to it: both are deleted together. A pod that starts before its Secret is there waits for
//! the kubelet's next look, some 15 s.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    ByteString,
    api::{batch::v1, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use kube::Resource;
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use crate::{
    deadline::Deadline,
    kubernetes::{self, Cluster, jobs::Job, pods::ContainerStatus},
    pod::{
        job::{self, TOKEN_KEY},
        metadata::{JOB_UUID_LABEL, MANAGED_BY_LABEL, MANAGER, STACK_LABEL},
    },
    stacks_api,
    text::chain,
};

/// Reserved for deleting a Job whose agent gets no token.
pub const TIME_TO_UNDO: Duration = Duration::from_secs(3);

/// A Job whose agent needs a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WithoutToken {
    /// Of the Buildkite job.
    pub job: Uuid,
    uid: String,
    /// The Secret that it refers to.
    secret: String,
}

/// Why an agent has no token.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text shows what the fields are")]
pub enum Error {
    /// Buildkite fails.
    #[error("Buildkite makes no token for the agent of Job {job}")]
    Issue { job: String, source: stacks_api::Error },
    /// Buildkite makes tokens, and none for this job.
    #[error("Buildkite makes no token for the agent of Job {job}: its reservation is over, or an agent has the job")]
    NotIssued { job: String },
    /// The Secret could not be created, or not be looked for.
    #[error("cannot create Secret {secret}, with the token for the agent of Job {job}")]
    Secret { job: String, secret: String, source: kubernetes::Error },
}

impl Error {
    /// The type of the failure: [`crate::scheduler::Error::kind`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Issue { .. } | Self::NotIssued { .. } => "BuildkiteUnavailable",
            Self::Secret { source, .. } => source.kind(),
        }
    }
}

/// What Buildkite answered for several jobs.
pub type Issued = Result<BTreeMap<Uuid, SecretString>, stacks_api::Error>;

impl WithoutToken {
    /// The Job and its Secret, of which it is known that the agent waits for it.
    pub fn new(job: Uuid, uid: &str, secret: &str) -> Self {
        Self { job, uid: uid.to_owned(), secret: secret.to_owned() }
    }

    /// `None` for a Job whose agent gets its token in another way. And for one that must not have it yet, or any more: it has ended, or
    /// another controller holds it back, perhaps for longer than a token lives.
    pub fn of(job: &Job, uuid: Uuid) -> Option<Self> {
        let secret = job.own_token_secret()?;
        let has_ended = ["Complete", "Failed"].iter().any(|end| job.condition(end).is_some());
        if has_ended || job.spec.suspend || job.spec.template.spec.scheduling_gates > 0 {
            return None;
        }
        Some(Self::new(uuid, job.metadata.uid.as_deref()?, secret))
    }

    /// If there is no Secret yet, the API server's time.
    pub async fn is_missing(&self, cluster: &Cluster, deadline: Deadline) -> Result<Option<Timestamp>, Error> {
        cluster.try_secret(&self.object(None, cluster), deadline).await.map_err(|source| self.failed(source))
    }

    /// Creates the Secret. If it is there, another delivery was faster.
    pub async fn give(&self, issued: &Issued, cluster: &Cluster, deadline: Deadline) -> Result<(), Error> {
        let name = || job::name(self.job);
        let issued = issued.as_ref().map_err(|source| Error::Issue { job: name(), source: source.clone() })?;
        let token = issued.get(&self.job).ok_or_else(|| Error::NotIssued { job: name() })?;
        let created = cluster.create_secret(&self.object(Some(token), cluster), deadline).await;
        created.map(drop).map_err(|source| self.failed(source))
    }

    /// Deletes the Job, so that the next delivery makes it again, unless a container of its pod has started: then that delivery gives it
    /// its token.
    pub async fn undo(&self, cluster: &Cluster, deadline: Deadline) {
        let delete = async {
            let pods = cluster.pods_for(self.job, deadline).await?;
            let mut pods = pods.iter().filter(|pod| pod.owner() == Some(&*self.uid));
            if pods.any(|pod| pod.containers().any(ContainerStatus::started)) {
                return Ok(());
            }
            cluster.delete_job(&job::name(self.job), &self.uid, deadline).await
        };
        if let Err(error) = delete.await {
            tracing::warn!(job = %self.job, error = chain(&error), "the Job stays without a token for its agent");
        }
    }

    fn failed(&self, source: kubernetes::Error) -> Error {
        Error::Secret { job: job::name(self.job), secret: self.secret.clone(), source }
    }

    fn object(&self, token: Option<&SecretString>, cluster: &Cluster) -> Secret {
        let labels =
            [(MANAGED_BY_LABEL, MANAGER), (STACK_LABEL, cluster.stack_id()), (JOB_UUID_LABEL, &self.job.to_string())];
        let owner = OwnerReference {
            api_version: v1::Job::api_version(&()).into_owned(),
            kind: v1::Job::kind(&()).into_owned(),
            name: job::name(self.job),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: None,
        };
        let data = token.map(|token| (TOKEN_KEY.to_owned(), ByteString(token.expose_secret().into())));
        Secret {
            metadata: ObjectMeta {
                name: Some(self.secret.clone()),
                labels: Some(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            data: Some(data.into_iter().collect()),
            immutable: Some(true),
            ..Secret::default()
        }
    }
}
