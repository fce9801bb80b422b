//! A job whose agent gets a token of its own.
//!
//! ```text
//! reserve ──> POST the Job, which refers to a Secret that is not there yet ──> job-acquisition-tokens ──> POST that Secret
//! ```
//!
//! What a second token does to the first is not documented. So a token is made by the delivery that made the Job, and to repair a Job
//! without its Secret. The agent token never takes its place.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::future::join_all;
use k8s_openapi::jiff::SignedDuration;
use secrecy::SecretString;
use tokio::{join, try_join};
use uuid::Uuid;

use super::{AT_ONCE, Error, Matched, Placed, Scheduler, Target, not_created};
use crate::{
    buildkite::{stacks::RateLimit, state::State, token::JOB_TOKEN_LIFETIME},
    clock,
    deadline::Deadline,
    definitions::{self, Definitions},
    job_token::{self, TIME_TO_UNDO, WithoutToken},
    kubernetes::Cluster,
    pod::{definition::PodDefinition, job},
    report::{Deferral, Outcome, Reason},
    stacks_api::{self, StacksApi},
};

/// How long the delivery that made a Job has for its Secret.
const MAX_SECRET_DELAY: SignedDuration = SignedDuration::from_secs(60);

/// `None` if a job is reserved for us; else what becomes of it.
type Reservation = Result<Option<Outcome>, Error>;

/// A Job whose agent needs a token.
pub(super) struct New {
    job: WithoutToken,
    /// This delivery made the Job.
    is_new: bool,
}

impl Scheduler {
    /// `None` where the settings say so: then the agents share the agent token.
    pub fn job_tokens(&self) -> Option<&StacksApi> {
        self.stacks_api.as_ref().filter(|_| self.config.job_tokens)
    }

    /// The registration at Buildkite is for the first event, beside the connection to the cluster. No Secret of the agent token is applied,
    /// and one of before is reported.
    pub(super) async fn start_with_job_tokens(
        &self,
        stacks_api: &StacksApi,
        connect: impl Future<Output = Result<Arc<Target>, Error>>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let register = async {
            let token = self.token(deadline).await?;
            stacks_api.ready(&token, deadline).await.map_err(|source| Error::Reserve { source })
        };
        let (target, ()) = try_join!(connect, register)?;
        if self.agent_token.is_left_over(&target.cluster, deadline).await.is_ok_and(|is_left_over| is_left_over) {
            let (secret, namespace) = (&self.config.stack.agent_token_secret, target.cluster.namespace());
            tracing::warn!(
                "JobTokens is true, and Secret {secret} still has the agent token: when no Job of before runs any more, \
                 `kubectl delete secret {secret} --namespace {namespace}`"
            );
        }
        Ok(())
    }

    /// The definition of a job, and what became of its reservation: side by side, if the last list of definitions is too old and says
    /// that there will be a token.
    pub(super) async fn definition_and_reservation(
        &self,
        definitions: &Definitions,
        cluster: &Cluster,
        job: &Matched<'_>,
        deadline: Deadline,
    ) -> (Result<Arc<PodDefinition>, definitions::Error>, Option<Reservation>) {
        let name = job.rules.definition();
        let needs_token = definitions.last(name).is_some_and(|definition| !definition.brings_agent_token());
        let reserve = async { if needs_token { Some(self.reservation(job, deadline).await) } else { None } };
        join!(definitions.get(name, cluster, deadline), reserve)
    }

    /// `None` if the job is ours; else what becomes of it.
    async fn reservation(&self, job: &Matched<'_>, deadline: Deadline) -> Reservation {
        if job.is_reserved {
            Ok(None)
        } else if job.occasion.is_of_sweep() {
            // The sweep has not reserved it, and comes again.
            Ok(Some(Outcome::Deferred(Deferral::NotReserved)))
        } else {
            self.reserve(job.job.uuid, deadline).await
        }
    }

    /// Creates a Job that refers to a Secret of its own.
    pub(super) async fn create_with_token(
        &self,
        cluster: &Cluster,
        matched: &Matched<'_>,
        job: job::Job<'_>,
        reserved: Option<Reservation>,
        deadline: Deadline,
    ) -> Result<Placed, Error> {
        let reserved = match reserved {
            Some(reserved) => reserved,
            None => self.reservation(matched, deadline).await,
        };
        if let Some(outcome) = reserved? {
            return Ok(outcome.into());
        }
        let uuid = matched.job.uuid;
        let secret = job::token_secret(uuid, &clock::random_suffix());
        let made = match cluster.create_whole_job(&job.with_token_secret(&secret), deadline).await {
            Ok(created) => {
                self.warned.log(&created.warnings, uuid, matched.rules.definition());
                created.job().filter(|job| job.metadata.uid.is_some())
            }
            Err(error) if error.is_already_exists() => None,
            Err(error) => return Err(not_created(matched, error)),
        };
        // Without an answer that can be read, the Job shows its uid, and by its Secret whether it is ours.
        let job = match made {
            Some(job) => job,
            None => self.existing(cluster, uuid, deadline).await?,
        };
        let is_new = job.spec.template.spec.token_secret.as_ref() == Some(&secret);
        let Some(without) = WithoutToken::of(&job, uuid) else {
            return Ok(if is_new { Outcome::Created } else { Outcome::AlreadyExists }.into());
        };
        if is_new {
            return Ok(Placed::WithoutToken(New { job: without, is_new }));
        }
        let now = without.is_missing(cluster, deadline).await?;
        Ok(match (now, job.metadata.creation_timestamp) {
            (None, _) => Outcome::AlreadyExists.into(),
            (Some(now), Some(created)) if now.duration_since(created) >= MAX_SECRET_DELAY => {
                Placed::WithoutToken(New { job: without, is_new })
            }
            _ => Outcome::Deferred(Deferral::AtWork).into(),
        })
    }

    /// Gives the agent of one Job its token.
    pub(super) async fn give_token(&self, job: New, deadline: Deadline) -> Result<Outcome, Error> {
        let (target, token) = try_join!(self.target(deadline), self.token(deadline))?;
        self.give_tokens(&target.cluster, &token, vec![job], deadline).await.remove(0)
    }

    /// Gives the agents of Jobs their tokens. A new Job whose agent gets none is deleted.
    pub(super) async fn give_tokens(
        &self,
        cluster: &Cluster,
        token: &SecretString,
        jobs: Vec<New>,
        deadline: Deadline,
    ) -> Vec<Result<Outcome, Error>> {
        let (jobs, are_new): (Vec<_>, Vec<_>) = jobs.into_iter().map(|New { job, is_new }| (job, is_new)).unzip();
        let given = self.give(cluster, token, &jobs, deadline.before(TIME_TO_UNDO)).await;
        let end = async |((job, is_new), given): ((&WithoutToken, bool), Result<(), job_token::Error>)| {
            let outcome = if is_new { Outcome::Created } else { Outcome::AlreadyExists };
            let Err(error) = given.map_err(Error::JobToken) else { return Ok(outcome) };
            if is_new {
                job.undo(cluster, deadline).await;
            }
            if let Some(stacks_api) = self.job_tokens() {
                self.notify(stacks_api, job.job, &error, deadline).await;
            }
            Err(error)
        };
        join_all(jobs.iter().zip(are_new).zip(given).map(end)).await
    }

    /// Has tokens made, all by one call, and creates their Secrets.
    pub async fn give(
        &self,
        cluster: &Cluster,
        token: &SecretString,
        jobs: &[WithoutToken],
        deadline: Deadline,
    ) -> Vec<Result<(), job_token::Error>> {
        let Some(stacks_api) = self.job_tokens().filter(|_| !jobs.is_empty()) else { return Vec::new() };
        let uuids: Vec<_> = jobs.iter().map(|job| job.job).collect();
        let issued = stacks_api.issue_tokens(&uuids, token, deadline).await;
        let mut given = Vec::with_capacity(jobs.len());
        for some in jobs.chunks(AT_ONCE) {
            given.extend(join_all(some.iter().map(|job| job.give(&issued, cluster, deadline))).await);
        }
        given
    }

    /// Reserves a job for as long as a token lives. If it is not to be had, what becomes of it.
    pub(super) async fn reserve(&self, job: Uuid, deadline: Deadline) -> Result<Option<Outcome>, Error> {
        let failed = |source| Error::Reserve { source };
        match self.reserve_all(&[job], RateLimit::GiveUp, deadline).await {
            Ok(reserved) if reserved.contains(&job) => return Ok(None),
            Ok(_) => {}
            Err(Error::Reserve { source: stacks_api::Error::Call(error) }) if error.status() == Some(429) => {
                return Ok(Some(Outcome::Deferred(Deferral::RateLimit)));
            }
            Err(error) => return Err(error),
        }
        let Some(stacks_api) = &self.stacks_api else { return Ok(None) };
        let token = self.token(deadline).await?;
        let state = stacks_api.states(&[job], &token, deadline).await.map_err(failed)?.remove(&job);
        Ok(Some(match state {
            // What Buildkite lists is eventually consistent.
            Some(State::Scheduled) => Outcome::Deferred(Deferral::NotReserved),
            state => Outcome::Ignored(Reason::NotToBeHad(state)),
        }))
    }

    /// Reserves jobs for as long as a token lives, and returns those that are to be had.
    pub async fn reserve_all(
        &self,
        jobs: &[Uuid],
        rate_limit: RateLimit,
        deadline: Deadline,
    ) -> Result<BTreeSet<Uuid>, Error> {
        let Some(stacks_api) = self.job_tokens().filter(|_| !jobs.is_empty()) else { return Ok(BTreeSet::new()) };
        let token = self.token(deadline).await?;
        let reserved = stacks_api.reserve(jobs, JOB_TOKEN_LIFETIME, rate_limit, &token, deadline).await;
        reserved.map_err(|source| Error::Reserve { source })
    }
}
