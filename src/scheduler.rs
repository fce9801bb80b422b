//! One event from start to finish: is it for us, what does it run in, make the Job, name the result.
//!
//! Or several at once, when the failure queue gives them back.

use std::{
    io::{Write, stdout},
    pin::pin,
    sync::Arc,
    time::{Instant, SystemTime},
};

use aws_credential_types::Credentials;
use futures_util::future::{Either, join_all, select};
use http::{Request, header};
use serde::Serialize;
use tokio::{join, sync::OnceCell, try_join};
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    agent_token::{self, AgentToken},
    aws, chain,
    config::Config,
    deadline::Deadline,
    eks::{self, Cluster},
    event::{Event, InvalidEvent, ScheduledJob},
    excerpt::excerpt,
    failure_queue::{self, Message},
    job::{self, JOB_UUID_LABEL, MANAGER},
    library::{self, DEFAULT, Library},
    metrics::{self, Count},
    overrides::{Overrides, Unmet},
    pod_definition::PodDefinition,
    query_rules::{AgentQueryRules, Mismatch},
};

/// Turns scheduled jobs into Kubernetes Jobs.
pub struct Scheduler {
    config: Config,
    library: Library,
    credentials: Credentials,
    eks: aws_sdk_eks::Client,
    agent_token: AgentToken,
    /// Found once; a function that cannot find it looks again at the next event.
    cluster: OnceCell<Cluster>,
}

/// What became of an event. All but the failures: those are errors, so that Lambda tries again and then hands the event to
/// the failure queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A Job is there now.
    Created,
    /// An earlier delivery of the same event made the Job.
    AlreadyExists,
    /// Nothing to do here.
    Ignored(Reason),
}

/// Why an event is left alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Buildkite announces more than waiting jobs.
    #[error("\"{}\" is no \"Job Scheduled\"", excerpt(.detail_type))]
    OtherEvent {
        /// The envelope's `detail-type`.
        detail_type: String,
    },
    /// A step that no agent runs.
    #[error("a job of type \"{}\" needs no agent", excerpt(.0))]
    NoScript(String),
    /// A job for others.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
}

/// What the function answers to Lambda.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To an event.
    Event {
        /// `created`, `already-exists` or `ignored`.
        outcome: &'static str,
        /// The name of the Kubernetes Job.
        #[serde(skip_serializing_if = "Option::is_none")]
        job: Option<String>,
        /// Where that is.
        #[serde(skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        /// Why there is none.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// To a batch of the failure queue.
    Batch {
        /// The messages that SQS shall keep.
        #[serde(rename = "batchItemFailures")]
        failed: Vec<FailedMessage>,
    },
}

/// A message whose event has no Job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailedMessage {
    /// Its id in the queue.
    #[serde(rename = "itemIdentifier")]
    pub id: String,
}

/// What the events of one invocation have in common: how long there is, and, in a batch, what became of the questions that all
/// of them would ask. An event that needs an answer fails with the error that came in its place, and does not ask again.
struct Invocation {
    deadline: Deadline,
    cluster: Result<(), Arc<Error>>,
    definitions: Result<(), Arc<Error>>,
    token: Result<(), Arc<Error>>,
}

/// Why a job has no Kubernetes Job.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What all events of a batch need was not there.
    #[error(transparent)]
    OfBatch(#[from] Arc<Error>),
    /// The event cannot be read.
    #[error(transparent)]
    Event(#[from] InvalidEvent),
    /// The step has no pod definition to run in.
    #[error(transparent)]
    Library(#[from] library::Error),
    /// The step asks for what its pod definition does not allow.
    #[error(transparent)]
    Rule(#[from] Unmet),
    /// The agent would have no token.
    #[error(transparent)]
    AgentToken(#[from] agent_token::Error),
    /// There is no client for the cluster.
    #[error(transparent)]
    Cluster(#[from] eks::Error),
    /// The API server did not take the Job.
    #[error("cannot create Job {name}")]
    CreateJob {
        /// `buildkite-<uuid>`
        name: String,
        /// What the API server said.
        source: eks::Error,
    },
    /// The API server may have taken the Job, and did not say so.
    #[error("the API server has not confirmed Job {name}; the next delivery of the event makes it, or finds it")]
    Uncertain {
        /// `buildkite-<uuid>`
        name: String,
        /// What became of the request.
        source: eks::Error,
    },
    /// The API server has a Job of that name, and it could not be looked at.
    #[error("Job {name} exists already, and cannot be read to see whether it is ours")]
    ReadJob {
        /// `buildkite-<uuid>`
        name: String,
        /// What the API server said.
        source: eks::Error,
    },
    /// The API server has a Job of that name, and somebody else made it.
    #[error(
        "Job {name} exists already and is not ours: its label {JOB_UUID_LABEL} is {label}; delete it, and keep others from using the name"
    )]
    NameTaken {
        /// `buildkite-<uuid>`
        name: String,
        /// The label's value, as JSON.
        label: String,
    },
}

impl Error {
    /// The kind of failure, for alarms and for README's table; it never changes its spelling.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::OfBatch(error) => error.kind(),
            Self::Event(_) => "InvalidEvent",
            Self::Library(library::Error::Unknown { .. }) => "UnknownPodDefinition",
            Self::Library(library::Error::Invalid(_)) => "InvalidPodDefinition",
            Self::Rule(_) => "InvalidAgentQueryRule",
            Self::AgentToken(agent_token::Error::Read { .. } | agent_token::Error::Empty { .. }) => {
                "AgentTokenUnavailable"
            }
            Self::NameTaken { .. } => "RejectedByApiServer",
            Self::Library(library::Error::List { source, .. }) => source.kind(),
            Self::AgentToken(
                agent_token::Error::Conflict { source, .. } | agent_token::Error::Apply { source, .. },
            )
            | Self::Cluster(source)
            | Self::CreateJob { source, .. }
            | Self::Uncertain { source, .. }
            | Self::ReadJob { source, .. } => source.kind(),
        }
    }
}

impl Invocation {
    /// Nothing is asked yet, as for an event that comes alone.
    fn until(deadline: Deadline) -> Self {
        Self { deadline, cluster: Ok(()), definitions: Ok(()), token: Ok(()) }
    }
}

impl Scheduler {
    /// Asks nobody yet.
    pub fn new(config: Config, credentials: Credentials, sdk: &aws_config::SdkConfig) -> Self {
        Self {
            library: Library::compiled(),
            credentials,
            eks: aws::eks(sdk),
            agent_token: AgentToken::new(&config, aws::ssm(sdk)),
            cluster: OnceCell::new(),
            config,
        }
    }

    /// Does the slow part before there is an event: the connection, over which the cluster's pod definitions come first, the
    /// agent token, and the Secret that carries it.
    pub async fn start(&self, deadline: Deadline) -> Result<(), Error> {
        let connect = async {
            let cluster = self.cluster(deadline).await?;
            self.library.refresh(cluster, deadline).await?;
            Ok(cluster)
        };
        let read_token = async { self.agent_token.read_ahead(deadline).await.map_err(Error::from) };
        let (cluster, ()) = try_join!(connect, read_token)?;
        Ok(self.agent_token.deliver(cluster, deadline).await?)
    }

    /// Serves one delivery from the event bus, or one batch of the failure queue.
    pub async fn handle(&self, payload: &str, deadline: Deadline) -> Result<Answer, Error> {
        let event = match Event::parse(payload) {
            Err(no_envelope @ InvalidEvent::Envelope(_)) => match failure_queue::parse(payload) {
                Some(Ok(messages)) => return Ok(self.redrive(messages, deadline).await),
                Some(Err(error)) => Err(error),
                None => Err(no_envelope),
            },
            event => event,
        };
        self.serve(event, &Invocation::until(deadline)).await
    }

    async fn serve(&self, event: Result<Event, InvalidEvent>, invocation: &Invocation) -> Result<Answer, Error> {
        match event {
            Ok(Event::JobScheduled(job)) => {
                let outcome = self.schedule(&job, invocation).await?;
                Ok(Answer::new(&outcome, &job, &self.config.namespace))
            }
            Ok(Event::Other { detail_type }) => {
                let reason = Reason::OtherEvent { detail_type };
                tracing::info!(outcome = "ignored", %reason, "event handled");
                Ok(Answer::ignored(&reason))
            }
            Err(error) => {
                let error = Error::from(error);
                self.failed(&error);
                Err(error)
            }
        }
    }

    /// Serves the events of a batch side by side, and tells which messages failed.
    async fn redrive(&self, messages: Vec<Message>, deadline: Deadline) -> Answer {
        // Most need these, and would wait for them in turn: a cluster that hangs shall cost one time-out and not ten.
        let invocation = &self.ask(deadline).await;
        let served = messages.into_iter().map(|message| {
            let span = tracing::error_span!("message", messageId = message.id);
            let served = async move {
                let failed = self.serve(message.event(), invocation).await.is_err();
                failed.then_some(FailedMessage { id: message.id })
            };
            served.instrument(span)
        });
        Answer::Batch { failed: join_all(served).await.into_iter().flatten().collect() }
    }

    async fn ask(&self, deadline: Deadline) -> Invocation {
        let mut asked = Invocation::until(deadline);
        match self.cluster(deadline).await {
            Ok(cluster) => {
                let definitions = self.library.refresh(cluster, deadline);
                // Not all of the time: a definition that brings the token needs none of ours.
                let token = self.agent_token.deliver(cluster, deadline.within(deadline.left() / 2));
                let (definitions, token) = join!(definitions, token);
                asked.definitions = definitions.map_err(|error| Arc::new(error.into()));
                asked.token = token.map_err(|error| Arc::new(error.into()));
            }
            Err(error) => asked.cluster = Err(Arc::new(error.into())),
        }
        asked
    }

    /// Gives a job its Kubernetes Job, and logs and counts what became of it.
    async fn schedule(&self, job: &ScheduledJob, invocation: &Invocation) -> Result<Outcome, Error> {
        let started = Instant::now();
        let rules = AgentQueryRules::parse(&job.agent_query_rules);
        let definition = rules.pod_definition().unwrap_or(DEFAULT);
        let matched = if job.kind == "script" {
            rules.matched(&self.config).map_err(Reason::from)
        } else {
            Err(Reason::NoScript(job.kind.clone()))
        };
        let (queue, result) = match matched {
            Ok(queue) => (queue, self.create(job, queue, &rules, invocation).await),
            Err(reason) => (rules.queue(&self.config).ok().flatten(), Ok(Outcome::Ignored(reason))),
        };
        Line { job, queue, definition, started }.log(&result);
        self.count(Count::of(job, &result), queue);
        result
    }

    async fn create(
        &self,
        job: &ScheduledJob,
        queue: Option<&str>,
        rules: &AgentQueryRules<'_>,
        invocation: &Invocation,
    ) -> Result<Outcome, Error> {
        let definition = rules.pod_definition().unwrap_or(DEFAULT);
        tracing::debug!(queue, definition = &*excerpt(definition), "job matched");
        let overrides = Overrides::of(rules)?;
        invocation.cluster.clone()?;
        let deadline = invocation.deadline;
        let cluster = self.cluster(deadline).await?;
        let definition = self.definition(definition, cluster, invocation).await?;
        let changed = if overrides.is_empty() { None } else { Some(overrides.apply(&definition)?) };
        let manifest = job::build(job, queue, changed.as_ref().unwrap_or(&definition), &self.config);
        // Strict: a field that the API server does not know is refused instead of dropped. kube's PostParams cannot say that.
        let jobs = format!("/apis/batch/v1/namespaces/{}/jobs", cluster.namespace());
        let request = Request::post(format!("{jobs}?fieldValidation=Strict&fieldManager={MANAGER}"))
            .header(header::CONTENT_TYPE, "application/json");
        match cluster.send_json(request, &manifest, deadline).await {
            Ok(()) => Ok(Outcome::Created),
            Err(error) if error.is_already_exists() => already_exists(cluster, &jobs, job.uuid, deadline).await,
            Err(source) if source.is_uncertain() => Err(Error::Uncertain { name: job::name(job.uuid), source }),
            Err(source) => Err(Error::CreateJob { name: job::name(job.uuid), source }),
        }
    }

    /// The definition of that name, with the agent token in place that its pod will need.
    async fn definition(
        &self,
        name: &str,
        cluster: &Cluster,
        invocation: &Invocation,
    ) -> Result<Arc<PodDefinition>, Error> {
        invocation.definitions.clone()?;
        let deadline = invocation.deadline;
        let definition = pin!(self.library.get(name, cluster, deadline));
        let token = pin!(async {
            invocation.token.clone()?;
            self.agent_token.deliver(cluster, deadline).await.map_err(Error::from)
        });
        // Side by side, if both have to ask. A definition that brings the token waits for none of ours.
        match select(definition, token).await {
            Either::Left((definition, token)) => {
                let definition = definition?;
                if !definition.brings_agent_token() {
                    token.await?;
                }
                Ok(definition)
            }
            Either::Right((token, definition)) => {
                let definition = definition.await?;
                if !definition.brings_agent_token() {
                    token?;
                }
                Ok(definition)
            }
        }
    }

    /// Logs and counts an event that did not get as far as its job.
    fn failed(&self, error: &Error) {
        tracing::error!(error_type = error.kind(), error = chain(error), "event failed");
        self.count(Count::Failed, None);
    }

    fn count(&self, count: Count, queue: Option<&str>) {
        let line = metrics::line(count, queue, &self.config.function_name, SystemTime::now());
        // As with the log: a line that cannot be written is no reason to fail.
        let _ = stdout().write_all(&line);
    }

    async fn cluster(&self, deadline: Deadline) -> Result<&Cluster, eks::Error> {
        self.cluster.get_or_try_init(|| Cluster::find(&self.config, &self.eks, &self.credentials, deadline)).await
    }
}

/// The name is taken: by an earlier delivery of the same event, if the Job carries our label for it.
async fn already_exists(cluster: &Cluster, jobs: &str, uuid: Uuid, deadline: Deadline) -> Result<Outcome, Error> {
    let name = job::name(uuid);
    match cluster.get(&format!("{jobs}/{name}"), deadline).await {
        Ok(job) => match &job["metadata"]["labels"][JOB_UUID_LABEL] {
            label if *label == uuid.to_string() => Ok(Outcome::AlreadyExists),
            label => Err(Error::NameTaken { name, label: label.to_string() }),
        },
        Err(source) => Err(Error::ReadJob { name, source }),
    }
}

impl Answer {
    fn new(outcome: &Outcome, job: &ScheduledJob, namespace: &str) -> Self {
        match outcome {
            Outcome::Ignored(reason) => Self::ignored(reason),
            Outcome::Created | Outcome::AlreadyExists => Self::Event {
                outcome: outcome.as_str(),
                job: Some(job::name(job.uuid)),
                namespace: Some(namespace.to_owned()),
                reason: None,
            },
        }
    }

    fn ignored(reason: &Reason) -> Self {
        Self::Event { outcome: "ignored", job: None, namespace: None, reason: Some(reason.to_string()) }
    }
}

impl Outcome {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::AlreadyExists => "already-exists",
            Self::Ignored(_) => "ignored",
        }
    }
}

impl Count {
    fn of(job: &ScheduledJob, result: &Result<Outcome, Error>) -> Self {
        match result {
            Ok(Outcome::Created) => Self::Created { announced: job.time },
            Ok(Outcome::AlreadyExists) => Self::Existing,
            Ok(Outcome::Ignored(Reason::Mismatch(Mismatch::UnservedTag { .. }))) => Self::Unserved,
            Ok(Outcome::Ignored(_)) => Self::Ignored,
            Err(_) => Self::Failed,
        }
    }
}

/// The one line that the log has for each job.
struct Line<'a> {
    job: &'a ScheduledJob,
    queue: Option<&'a str>,
    definition: &'a str,
    started: Instant,
}

impl Line<'_> {
    fn log(&self, result: &Result<Outcome, Error>) {
        macro_rules! line {
            ($level:ident, $message:literal, $($result:tt)*) => {
                tracing::$level!(
                    job = %self.job.uuid,
                    pipeline = self.job.pipeline.as_deref().map(excerpt).as_deref(),
                    build = self.job.build_number,
                    queue = self.queue,
                    definition = &*excerpt(self.definition),
                    age = self.job.time.and_then(|time| SystemTime::now().duration_since(time).ok()).map(|age| age.as_secs()),
                    milliseconds = self.started.elapsed().as_secs_f64() * 1_000.0,
                    $($result)*,
                    $message
                )
            };
        }
        match result {
            Ok(outcome @ Outcome::Ignored(reason @ Reason::Mismatch(Mismatch::UnservedTag { .. }))) => {
                line!(warn, "event handled", outcome = outcome.as_str(), %reason);
            }
            Ok(outcome @ Outcome::Ignored(reason)) => line!(info, "event handled", outcome = outcome.as_str(), %reason),
            Ok(outcome) => line!(info, "event handled", outcome = outcome.as_str()),
            Err(error) => line!(error, "event failed", error_type = error.kind(), error = chain(error)),
        }
    }
}
