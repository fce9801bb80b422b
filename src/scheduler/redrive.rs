//! A job whose event comes back from the failure queue, perhaps days later.

use super::{Error, Matched, Placed, Scheduler};
use crate::{
    clock,
    deadline::Deadline,
    report::{Outcome, Reason},
    stacks_api,
};

impl Scheduler {
    /// A Job of an earlier delivery is gone by now if the event is older than a finished Job stays. Then Buildkite is asked first whether
    /// the job still waits for an agent.
    pub(super) async fn create_if_it_waits(&self, job: &Matched<'_>, deadline: Deadline) -> Result<Placed, Error> {
        let is_old =
            job.job.age(clock::wall()).is_some_and(|age| age.as_secs() > self.config.stack.job_ttl_seconds.into());
        let Some(stacks_api) = self.stacks_api.as_ref().filter(|_| is_old) else {
            return self.create(job, deadline).await;
        };
        let token = self.agent_token.value(deadline).await.map_err(Error::AgentToken)?;
        match stacks_api.states(&[job.job.uuid], &token, deadline).await {
            Ok(mut states) => match states.remove(&job.job.uuid) {
                Some(state) if state.is_waiting() => self.create(job, deadline).await,
                state => Ok(Outcome::Ignored(Reason::NotWaiting(state)).into()),
            },
            Err(stacks_api::Error::Unavailable) => self.create(job, deadline).await,
            Err(stacks_api::Error::Call(source)) => Err(Error::State { source }),
        }
    }
}
