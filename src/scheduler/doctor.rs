//! What the doctor asks again, whatever is kept: an operator corrects something and looks again.

use std::sync::Arc;

use secrecy::SecretString;

use super::Scheduler;
use crate::{
    agent_token,
    deadline::Deadline,
    kubernetes::{self, Cluster},
};

impl Scheduler {
    /// The agent token's value.
    pub async fn read_token(&self, deadline: Deadline) -> Result<Arc<SecretString>, Arc<agent_token::Error>> {
        self.agent_token.read_again(deadline).await
    }

    /// The cluster, with an EKS token of its own.
    pub async fn find_cluster(&self, deadline: Deadline) -> Result<Cluster, kubernetes::Error> {
        Cluster::find(&self.config, &self.eks, &self.credentials, None, deadline).await
    }

    /// Whether the cluster has a Secret with the agent token, where no agent needs it.
    pub async fn is_secret_left_over(&self, cluster: &Cluster, deadline: Deadline) -> Result<bool, kubernetes::Error> {
        self.agent_token.is_left_over(cluster, deadline).await
    }

    /// Whether the API server would take the Secret of the agent token.
    pub async fn try_secret(&self, cluster: &Cluster, deadline: Deadline) -> Result<(), agent_token::Error> {
        self.agent_token.try_apply(cluster, deadline).await
    }
}
