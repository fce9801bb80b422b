//! What the sweep shares with the events: the stack at Buildkite, the agent token, and the cluster.

use std::sync::Arc;

use secrecy::SecretString;

use super::{Error, Scheduler};
use crate::{deadline::Deadline, kubernetes::Cluster, stacks_api::StacksApi};

impl Scheduler {
    /// `None` where the settings say so.
    pub fn stacks_api(&self) -> Option<&StacksApi> {
        self.stacks_api.as_ref()
    }

    /// The agent token's value.
    pub async fn token(&self, deadline: Deadline) -> Result<Arc<SecretString>, Error> {
        self.agent_token.value(deadline).await.map_err(Error::AgentToken)
    }

    /// The cluster, and whether it has the Secret of the agent token, which is applied now: it may have been deleted.
    pub async fn cluster(&self, deadline: Deadline) -> Result<(Cluster, Result<(), Error>), Error> {
        let apply = async |target: &Arc<super::Target>| {
            let applied = self.agent_token.apply_again(&target.secret, &target.cluster, deadline).await;
            match applied.map_err(Error::AgentToken) {
                Err(error) if error.is_wrong_endpoint() => Err(error),
                applied => Ok((target.cluster.clone(), applied)),
            }
        };
        self.in_cluster(deadline, apply).await
    }
}
