//! What the sweep shares with the events: the stack at Buildkite, the agent token, and the cluster.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::future::join_all;
use secrecy::SecretString;
use uuid::Uuid;

use super::{AT_ONCE, Begun, Error, Placed, Scheduler};
use crate::{
    buildkite::{job::ScheduledJob, rules::AgentQueryRules},
    deadline::Deadline,
    kubernetes::Cluster,
    report::{Occasion, Outcome},
    stacks_api::StacksApi,
};

impl Scheduler {
    /// `None` where the settings say so.
    pub fn stacks_api(&self) -> Option<&StacksApi> {
        self.stacks_api.as_ref()
    }

    /// The agent token's value.
    pub async fn token(&self, deadline: Deadline) -> Result<Arc<SecretString>, Error> {
        self.agent_token.value(deadline).await.map_err(Error::AgentToken)
    }

    /// The cluster, and whether it has the Secret of the agent token, if agents share it. It is applied now: it may have been deleted.
    pub async fn cluster(&self, deadline: Deadline) -> Result<(Cluster, Result<(), Error>), Error> {
        let apply = async |target: &Arc<super::Target>| {
            if self.config.job_tokens {
                return Ok((target.cluster.clone(), Ok(())));
            }
            let applied = self.agent_token.apply_again(&target.secret, &target.cluster, deadline).await;
            match applied.map_err(Error::AgentToken) {
                Err(error) if error.is_wrong_endpoint() => Err(error),
                applied => Ok((target.cluster.clone(), applied)),
            }
        };
        self.in_cluster(deadline, apply).await
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
