//! What the sweep shares with the events: the stack at Buildkite, the agent token, and the cluster.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::future::join_all;
use secrecy::SecretString;
use uuid::Uuid;

use super::{AT_ONCE, Begun, Error, Placed, Scheduler};
use crate::{
    buildkite::{job::ScheduledJob, rules::AgentQueryRules},
    deadline::Deadline,
    kubernetes::{self, Cluster, Listed, jobs},
    report::{Occasion, Outcome},
    stacks_api::StacksApi,
};

/// What a sweep begins with.
pub struct InCluster {
    /// Where the rest is asked for.
    pub cluster: Cluster,
    /// Whether the Secret is there.
    pub applied: Result<(), Error>,
    /// The stack's Jobs.
    pub jobs: Result<Listed<jobs::Job>, kubernetes::Error>,
}

impl Scheduler {
    /// `None` where the settings say so.
    pub fn stacks_api(&self) -> Option<&StacksApi> {
        self.stacks_api.as_ref()
    }

    /// The agent token's value.
    pub async fn token(&self, deadline: Deadline) -> Result<Arc<SecretString>, Error> {
        self.agent_token.value(deadline).await.map_err(Error::AgentToken)
    }

    /// The cluster, where it is now. If agents share the agent token, its Secret is applied: it may have been deleted.
    pub async fn cluster(&self, deadline: Deadline) -> Result<InCluster, Error> {
        let ask = async |target: &Arc<super::Target>| {
            let cluster = target.cluster.clone();
            let applied = if self.config.job_tokens {
                Ok(())
            } else {
                let applied = self.agent_token.apply_again(&target.secret, &cluster, deadline).await;
                applied.map_err(Error::AgentToken)
            };
            let applied = match applied {
                Err(error) if error.is_wrong_endpoint() => return Err(error),
                applied => applied,
            };
            match cluster.jobs(deadline).await {
                Err(error) if error.is_wrong_endpoint() => Err(Error::Cluster(error.into())),
                jobs => Ok(InCluster { cluster, applied, jobs }),
            }
        };
        self.in_cluster(deadline, ask).await
    }

    /// Those of the jobs whose agent gets a token of its own: they must be reserved.
    pub async fn with_token(&self, jobs: &[(&ScheduledJob, Occasion)], deadline: Deadline) -> Vec<Uuid> {
        if !self.config.job_tokens {
            return Vec::new();
        }
        let Ok(target) = self.target(deadline).await else { return Vec::new() };
        // A failure is reported for each job.
        let _ = target.definitions.refresh(&target.cluster, deadline).await;
        let gets_token = |job: &ScheduledJob| {
            let definition = target.definitions.last(AgentQueryRules::parse(&job.agent_query_rules).definition());
            definition.is_some_and(|definition| !definition.brings_agent_token())
        };
        jobs.iter().filter(|(job, _)| gets_token(job)).map(|(job, _)| job.uuid).collect()
    }

    /// Gives jobs their Kubernetes Jobs, side by side. For those of them whose agent gets a token of its own, `reserved` has those that are
    /// to be had.
    pub async fn schedule_all(
        &self,
        jobs: &[(&ScheduledJob, Occasion)],
        reserved: &BTreeSet<Uuid>,
        (cluster, token): (&Cluster, &SecretString),
        deadline: Deadline,
    ) -> Vec<(Uuid, Result<Outcome, Error>)> {
        let mut on_their_way = Vec::with_capacity(jobs.len());
        for some in jobs.chunks(AT_ONCE) {
            let begin = some.iter().map(|(job, occasion)| {
                let is_reserved = reserved.contains(&job.uuid);
                Box::pin(self.begin(job, *occasion, is_reserved, deadline))
            });
            on_their_way.extend(join_all(begin).await);
        }
        let (mut new, mut ended) = (Vec::new(), Vec::new());
        for Begun { report, placed } in on_their_way {
            match placed {
                Ok(Placed::WithoutToken(job)) => new.push((report, job)),
                Ok(Placed::Done(outcome)) => ended.push((report, Ok(outcome))),
                Err(error) => ended.push((report, Err(error))),
            }
        }
        let (reports, new): (Vec<_>, Vec<_>) = new.into_iter().unzip();
        ended.extend(reports.into_iter().zip(self.give_tokens(cluster, token, new, deadline).await));
        for (report, result) in &mut ended {
            self.end(report, result);
        }
        ended.into_iter().map(|(report, result)| (report.job.uuid, result)).collect()
    }
}
