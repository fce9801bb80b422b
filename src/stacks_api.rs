//! This stack at Buildkite: registered when it is first needed, and again when Buildkite does not know it any more.
//!
//! Where Buildkite refuses the registration, the function works without it: no plan has the Stacks API, or the token is of another
//! kind. A log line and a metric say so.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use secrecy::SecretString;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    buildkite::{
        stacks::{self, MAX_DETAIL_BYTES, MAX_UUIDS, Notification, Quiets, RateLimit, Stacks},
        state::State,
        token::JOB_TOKEN_LIFETIME,
    },
    clock,
    config::Config,
    deadline::Deadline,
    https::CertificateAuthority,
    kept::Kept,
    report,
    text::chain,
};

/// Buildkite is asked again after this time whether it takes the registration.
const REFUSAL_AGE: Duration = Duration::from_mins(10);

/// A refused registration is logged and counted again after this time.
const WARNING_PAUSE: Duration = Duration::from_hours(1);

/// How long a job that is to be finished stays reserved. There is no way to give it back: if it is not finished, it must soon be
/// in the lists again.
pub const RESERVATION: Duration = Duration::from_mins(1);

/// What each automatic retry of a finished job meets.
const RETRIES: &str = "

Nothing was run. If the step has automatic retries, they end in the same way; a first entry of its retry.automatic ends them:
  - exit_status: -1
    signal_reason: stack_error
    limit: 0";

/// The Stacks API for one stack.
pub struct StacksApi {
    endpoint: String,
    roots: CertificateAuthority,
    quiets: Quiets,
    key: String,
    queue: String,
    metadata: BTreeMap<&'static str, String>,
    function_name: String,
    /// `None` if Buildkite refuses the registration.
    registered: Kept<Option<Arc<Stacks>>, stacks::Error>,
    /// When a refusal was logged.
    warned: Mutex<Option<Instant>>,
}

/// Why a call did not happen.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Buildkite refuses it to this stack, which the log says.
    #[error("Buildkite refuses the Stacks API to this stack")]
    Unavailable,
    /// It failed.
    #[error(transparent)]
    Call(Arc<stacks::Error>),
}

impl StacksApi {
    /// No request yet; `None` where the settings say so.
    pub fn new(config: &Config, roots: CertificateAuthority) -> Option<Self> {
        let stack_name = config.stack_name.rsplit(':').next().unwrap_or_default();
        let metadata = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("region", &config.region),
            ("stack", stack_name),
            ("cluster", &config.cluster),
            ("namespace", &config.stack.namespace),
        ];
        Some(Self {
            endpoint: config.stacks_endpoint.clone()?,
            roots,
            quiets: Quiets::default(),
            key: format!("agent-scheduler-{}", config.stack.id),
            queue: config.stack.queues[0].clone(),
            metadata: metadata.into_iter().map(|(name, value)| (name, value.to_owned())).collect(),
            function_name: config.function_name.clone(),
            registered: Kept::new("the registration at Buildkite", Duration::MAX),
            warned: Mutex::default(),
        })
    }

    /// Finishes a job that no agent has, with a reason for its build page, and how to end automatic retries. `false` if Buildkite says
    /// that another stack or an agent has it, or that it is over. It is reserved for that long, whatever happens.
    pub async fn finish(
        &self,
        job: Uuid,
        reason: &str,
        reservation: Duration,
        token: &SecretString,
        deadline: Deadline,
    ) -> Result<bool, Error> {
        if !self.reserve(&[job], reservation, RateLimit::Wait, token, deadline).await?.contains(&job) {
            return Ok(false);
        }
        let detail = detail(reason);
        let finish = async |stacks: &Stacks| stacks.finish(job, &detail, token, deadline).await;
        match self.call(token, deadline, finish).await {
            Err(Error::Call(error)) if matches!(error.status(), Some(404 | 422)) => Ok(false),
            finished => finished.map(|()| true),
        }
    }

    /// Reserves jobs, at most [`MAX_UUIDS`], and returns those that are to be had.
    pub async fn reserve(
        &self,
        jobs: &[Uuid],
        expiry: Duration,
        rate_limit: RateLimit,
        token: &SecretString,
        deadline: Deadline,
    ) -> Result<BTreeSet<Uuid>, Error> {
        let reserve = async |stacks: &Stacks| stacks.reserve(jobs, expiry, rate_limit, token, deadline).await;
        Ok(self.call(token, deadline, reserve).await?.reserved.into_iter().collect())
    }

    /// Makes a job acquisition token for each job that this stack has reserved. A job that gets none is left out.
    pub async fn issue_tokens(
        &self,
        jobs: &[Uuid],
        token: &SecretString,
        deadline: Deadline,
    ) -> Result<BTreeMap<Uuid, SecretString>, Error> {
        let issue =
            async |stacks: &Stacks| stacks.job_acquisition_tokens(jobs, JOB_TOKEN_LIFETIME, token, deadline).await;
        self.call(token, deadline, issue).await
    }

    /// The states of jobs, as many as there are. One that Buildkite does not know is left out.
    pub async fn states(
        &self,
        jobs: &[Uuid],
        token: &SecretString,
        deadline: Deadline,
    ) -> Result<BTreeMap<Uuid, State>, Error> {
        let mut states = BTreeMap::new();
        for jobs in jobs.chunks(MAX_UUIDS) {
            let some = self.call(token, deadline, async |stacks| stacks.states(jobs, token, deadline).await).await?;
            states.extend(some.into_iter().map(|(job, state)| (job, state.as_str().into())));
        }
        Ok(states)
    }

    /// Puts lines on the build pages of jobs, at most [`MAX_UUIDS`].
    pub async fn notify(
        &self,
        notifications: &[Notification],
        token: &SecretString,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let notify = async |stacks: &Stacks| stacks.notify(notifications, token, deadline).await;
        self.call(token, deadline, notify).await
    }

    /// Makes a call as a registered stack.
    pub async fn call<T>(
        &self,
        token: &SecretString,
        deadline: Deadline,
        call: impl AsyncFn(&Stacks) -> Result<T, stacks::Error>,
    ) -> Result<T, Error> {
        let asked = clock::monotonic();
        let result = match call(&*self.registered(None, token, deadline).await?).await {
            Err(error) if error.is_unknown_stack() => {
                tracing::debug!(error = chain(&error), "the stack registers again");
                call(&*self.registered(Some(asked), token, deadline).await?).await
            }
            result => result,
        };
        result.map_err(|error| match error.status() {
            Some(401 | 403) => {
                self.warn(&error);
                Error::Unavailable
            }
            _ => Error::Call(Arc::new(error)),
        })
    }

    /// Registers the stack, unless it is.
    pub async fn ready(&self, token: &SecretString, deadline: Deadline) -> Result<(), Error> {
        self.registered(None, token, deadline).await.map(drop)
    }

    /// The API, for a stack that may not be registered.
    pub fn connect(&self) -> Result<Stacks, stacks::Error> {
        Stacks::new(&self.endpoint, self.key.clone(), self.roots.clone(), self.quiets.clone())
    }

    /// Makes the stack known at Buildkite.
    pub async fn register(&self, token: &SecretString, deadline: Deadline) -> Result<Stacks, stacks::Error> {
        let stacks = self.connect()?;
        stacks.register(&self.queue, &self.metadata, token, deadline).await?;
        Ok(stacks)
    }

    /// The stack, registered after `since`, if given.
    async fn registered(
        &self,
        since: Option<Instant>,
        token: &SecretString,
        deadline: Deadline,
    ) -> Result<Arc<Stacks>, Error> {
        let is_fresh = |stacks: &Option<Arc<Stacks>>, time: Instant| match stacks {
            Some(_) => since.is_none_or(|since| time >= since),
            None => time.elapsed() < REFUSAL_AGE,
        };
        let register = async |deadline| match self.register(token, deadline).await {
            Ok(stacks) => Ok(Some(Arc::new(stacks))),
            Err(error) if matches!(error.status(), Some(401 | 403 | 404)) => {
                self.warn(&error);
                Ok(None)
            }
            Err(error) => Err(error),
        };
        let registered = self.registered.fresh(is_fresh, deadline, register).await.map_err(Error::Call)?;
        registered.ok_or(Error::Unavailable)
    }

    fn warn(&self, error: &stacks::Error) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|time| time.elapsed() >= WARNING_PAUSE) {
            *warned = Some(clock::monotonic());
            let fix = match error.status() {
                Some(401) => "store the agent token of a Buildkite cluster (bkct_…) in the SSM parameter",
                Some(403) => {
                    "check that the token's allowed IP addresses include the function's, and that the organization may have another \
                     stack"
                }
                _ => "check that BuildkiteQueue is a self-hosted queue of the token's Buildkite cluster",
            };
            report::stacks_api_unavailable(
                &format!("{}; {fix}, or set StacksApi to false", chain(error)),
                &self.function_name,
            );
        }
    }
}

fn detail(reason: &str) -> String {
    format!("{}{RETRIES}", &reason[..reason.floor_char_boundary(MAX_DETAIL_BYTES - RETRIES.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_keeps_its_limit_and_ends_with_how_to_end_retries() {
        for reason in ["no such pod definition".to_owned(), "🚀".repeat(100_000)] {
            let detail = detail(&reason);
            assert!(detail.len() <= MAX_DETAIL_BYTES && detail.ends_with(RETRIES), "{detail}");
            assert!(reason.starts_with(detail.strip_suffix(RETRIES).unwrap()));
        }
    }
}
