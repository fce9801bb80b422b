//! What Buildkite hears of a job without a Kubernetes Job: a job that can never start is finished on its build page, with the reason;
//! of any other failure the build page gets a line.

use std::time::Duration;

use tokio::time::sleep;
use uuid::Uuid;

use super::{Error, Matched, Placed, Scheduler};
use crate::{
    buildkite::stacks::{MAX_NOTIFICATION_CHARS, Notification},
    clock,
    deadline::Deadline,
    pod::job,
    report::{Outcome, Reason},
    stacks_api::{self, RESERVATION, StacksApi},
    text::chain,
};

/// Between two lists that both lack a definition: it may have been added a moment ago.
const LIST_PAUSE: Duration = Duration::from_secs(5);

/// What an event waits for a notification.
const NOTIFICATION_TIMEOUT: Duration = Duration::from_secs(2);

/// What a failure is, looked at again.
enum Verdict {
    /// It passed: the job has its Job.
    Passed(Placed),
    /// No retry helps.
    Final(Error),
    /// A retry may help.
    MayPass(Error),
}

impl Scheduler {
    /// Finishes a job that no retry helps; of any other failure the build page gets a line.
    ///
    /// Without the Stacks API a refusal stays a failure: nothing else shows it.
    pub(super) async fn explain(&self, job: &Matched<'_>, error: Error, deadline: Deadline) -> Result<Placed, Error> {
        let Some(stacks_api) = &self.stacks_api else { return Err(error) };
        let age = job.job.age(clock::wall());
        let verdict = if error.is_final(age) {
            self.look_again(job, error, age, deadline).await
        } else {
            Verdict::MayPass(error)
        };
        match verdict {
            Verdict::Passed(placed) => Ok(placed),
            Verdict::Final(error) => self.refuse(stacks_api, job.job.uuid, error, deadline).await.map(Placed::Done),
            Verdict::MayPass(error) => {
                self.notify(stacks_api, job.job.uuid, &error, deadline).await;
                Err(error)
            }
        }
    }

    /// The list of definitions may be older than their last change, so the job is tried once more with a new one. A definition is
    /// unknown if two lists lack it, and the cluster would take the Job of another: a missing namespace has an empty list, too.
    async fn look_again(&self, job: &Matched<'_>, error: Error, age: Option<Duration>, deadline: Deadline) -> Verdict {
        let target = match self.target(deadline).await {
            Ok(target) => target,
            Err(error) => return Verdict::MayPass(error),
        };
        if error.is_unknown_definition() {
            if deadline.left() < LIST_PAUSE * 2 {
                return Verdict::MayPass(error);
            }
            sleep(LIST_PAUSE).await;
        } else if let Err(error) = target.definitions.list_again(&target.cluster, deadline).await {
            return Verdict::MayPass(error.into());
        }
        let error = match self.create_in(&target, job, deadline).await {
            Ok(placed) => return Verdict::Passed(placed),
            Err(error) if error.is_final(age) => error,
            Err(error) => return Verdict::MayPass(error),
        };
        let Some(definition) = target.definitions.any_compiled() else { return Verdict::MayPass(error) };
        let other = job::build(job.job, job.queue, job.occasion.attempt(), definition, &self.config.stack);
        match target.cluster.try_job(&other, deadline).await {
            // An earlier delivery created it, before the definition changed.
            Err(taken) if taken.is_already_exists() => {
                let existing = self.existing(&target.cluster, job.job.uuid, deadline).await;
                existing.map_or_else(Verdict::MayPass, |_| Verdict::Passed(Outcome::AlreadyExists.into()))
            }
            Err(source) if error.is_unknown_definition() => {
                Verdict::MayPass(Error::CreateJob { name: job::name(job.job.uuid), source })
            }
            _ => Verdict::Final(error),
        }
    }

    async fn refuse(
        &self,
        stacks_api: &StacksApi,
        job: Uuid,
        error: Error,
        deadline: Deadline,
    ) -> Result<Outcome, Error> {
        let Ok(token) = self.agent_token.value(deadline).await else { return Err(error) };
        let reason = format!("agent-scheduler cannot start this job: {}.", chain(&error));
        match stacks_api.finish(job, &reason, RESERVATION, &token, deadline).await {
            Ok(true) => Ok(Outcome::Refused(error.failure())),
            Ok(false) => Ok(Outcome::Ignored(Reason::NotReserved { refused: chain(&error) })),
            Err(stacks_api::Error::Unavailable) => Err(error),
            Err(stacks_api::Error::Call(source)) => Err(Error::Finish { refused: chain(&error), source }),
        }
    }

    /// As well as it can: the failure itself is reported in any case.
    pub(super) async fn notify(&self, stacks_api: &StacksApi, job: Uuid, error: &Error, deadline: Deadline) {
        let deadline = deadline.within(NOTIFICATION_TIMEOUT);
        let Ok(token) = self.agent_token.value(deadline).await else { return };
        let notification = [Notification { job_uuid: job, detail: notification(error) }];
        if let Err(error) = stacks_api.notify(&notification, &token, deadline).await {
            tracing::debug!(%job, error = chain(&error), "the build page does not show the failure");
        }
    }
}

/// What is wrong, as far as there is room, that it is tried again, and what the operator does.
fn notification(error: &Error) -> String {
    const TRIED_AGAIN: &str = "agent-scheduler could not start this job and tries again: ";
    let (summary, advice) = (error.summary(), error.advice());
    let room = MAX_NOTIFICATION_CHARS - TRIED_AGAIN.len() - advice.len() - "… ".len();
    let mut problem: String = summary.chars().take(room).collect();
    problem.push_str(if problem.len() < summary.len() { "… " } else { ". " });
    format!("{TRIED_AGAIN}{problem}{advice}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes;

    #[test]
    fn a_notification_keeps_its_limit_and_ends_with_what_the_operator_does() {
        for length in [0, 60, 200, 100_000] {
            let message = "é".repeat(length);
            let error = kubernetes::Error::Forbidden { message, namespace: "buildkite".to_owned(), selector: "" };
            let error = Error::CreateJob { name: "buildkite-1".to_owned(), source: error };
            let text = notification(&error);
            assert!(text.chars().count() <= MAX_NOTIFICATION_CHARS, "{text}");
            assert!(text.ends_with("Operator: grant the permissions (connect STACK)."), "{text}");
        }
    }
}
