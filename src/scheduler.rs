//! One job: is it for us, what does it run in, create the Job, name the result.

mod doctor;
mod error;
mod existing;
mod job_token;
mod redrive;
mod refusal;
mod sweep;
mod warned;

use std::{sync::Arc, time::Duration};

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use tokio::try_join;

use crate::{
    agent_token::{AgentToken, AppliedSecret},
    aws::{eks::Eks, ssm::Ssm},
    buildkite::{job::ScheduledJob, rules::AgentQueryRules},
    clock,
    config::Config,
    deadline::Deadline,
    definitions::Definitions,
    https::CertificateAuthority,
    kept::Kept,
    kubernetes::{self, Cluster},
    pod::{
        definition::{Access, refused_rule},
        job,
    },
    report::{Occasion, Outcome, Reason, Report},
    stacks_api::StacksApi,
    text::{chain, excerpt},
};

pub use self::{error::Error, sweep::InCluster};
use self::{job_token::New, warned::Warned};

/// How many Jobs, or Secrets, are created side by side.
const AT_ONCE: usize = 10;

/// Turns scheduled jobs into Kubernetes Jobs.
pub struct Scheduler {
    /// The settings.
    pub config: Config,
    credentials: Credentials,
    eks: Eks,
    agent_token: AgentToken,
    /// `None` where the settings say so.
    stacks_api: Option<StacksApi>,
    target: Kept<Arc<Target>, kubernetes::Error>,
    warned: Warned,
}

/// A job that is for us.
struct Matched<'a> {
    job: &'a ScheduledJob,
    /// `None` for a job without a queue.
    queue: Option<&'a str>,
    occasion: Occasion,
    /// Its agent may have a token of its own: the sweep reserves many jobs by one call.
    is_reserved: bool,
    rules: &'a AgentQueryRules<'a>,
}

/// A job on its way.
struct Begun<'a> {
    report: Report<'a>,
    placed: Result<Placed, Error>,
}

/// How far a job came.
enum Placed {
    Done(Outcome),
    /// It has a Job, whose agent needs a token.
    WithoutToken(New),
}

impl From<Outcome> for Placed {
    fn from(outcome: Outcome) -> Self {
        Self::Done(outcome)
    }
}

/// The cluster and all that is kept of it. A cluster that was created again is another target.
struct Target {
    cluster: Cluster,
    definitions: Definitions,
    secret: AppliedSecret,
}

impl Scheduler {
    /// No request yet.
    pub fn new(config: Config, credentials: Credentials, sdk: &SdkConfig, roots: CertificateAuthority) -> Self {
        Self {
            credentials,
            eks: Eks::new(sdk),
            agent_token: AgentToken::new(&config, Ssm::new(sdk)),
            stacks_api: StacksApi::new(&config, roots),
            target: Kept::new("the cluster's endpoint", Duration::MAX),
            warned: Warned::default(),
            config,
        }
    }

    /// Does the slow part before there is an event: the connection, with the list of pod definitions as its first request; side
    /// by side with it the agent token; then the Secret.
    pub async fn start(&self, deadline: Deadline) -> Result<(), Error> {
        let connect = async {
            let target = self.target(deadline).await?;
            target.definitions.refresh(&target.cluster, deadline).await?;
            Ok(target)
        };
        if let Some(stacks_api) = self.job_tokens() {
            return Box::pin(self.start_with_job_tokens(stacks_api, connect, deadline)).await;
        }
        let read_token = async { self.agent_token.value(deadline).await.map_err(Error::AgentToken) };
        let (target, _) = try_join!(connect, read_token)?;
        self.agent_token.apply(&target.secret, &target.cluster, deadline).await.map_err(Error::AgentToken)
    }

    /// Gives a job its Kubernetes Job, and reports what became of it.
    pub async fn schedule(&self, job: &ScheduledJob, occasion: Occasion, deadline: Deadline) -> Result<Outcome, Error> {
        let Begun { report, placed } = self.begin(job, occasion, false, deadline).await;
        let mut result = match placed {
            Ok(Placed::Done(outcome)) => Ok(outcome),
            // On the heap, since it is rare: every event's future would have room for it.
            Ok(Placed::WithoutToken(job)) => Box::pin(self.give_token(job, deadline)).await,
            Err(error) => Err(error),
        };
        self.end(&report, &mut result);
        result
    }

    /// Gives a job its Kubernetes Job, which may still lack the token for its agent.
    async fn begin<'a>(
        &'a self,
        job: &'a ScheduledJob,
        occasion: Occasion,
        is_reserved: bool,
        deadline: Deadline,
    ) -> Begun<'a> {
        let began = clock::monotonic();
        let rules = AgentQueryRules::parse(&job.agent_query_rules);
        let matched = if job.kind == "script" {
            rules.matched(&self.config.stack).map_err(Reason::from)
        } else {
            Err(Reason::NoScript(job.kind.clone()))
        };
        let (queue, placed) = match matched {
            Ok(queue) => {
                let matched = Matched { job, queue, occasion, is_reserved, rules: &rules };
                let placed = if occasion == Occasion::Redrive {
                    Box::pin(self.create_if_it_waits(&matched, deadline)).await
                } else {
                    self.create(&matched, deadline).await
                };
                let placed = match placed {
                    Err(Error::JobIsDeleted { .. }) if occasion.is_of_sweep() => {
                        Ok(Outcome::Ignored(Reason::JobIsDeleted).into())
                    }
                    Err(error) => Box::pin(self.explain(&matched, error, deadline)).await,
                    placed => placed,
                };
                (queue, placed)
            }
            Err(reason) => (rules.queue(&self.config.stack).ok().flatten(), Ok(Outcome::Ignored(reason).into())),
        };
        let (definition, function_name) = (rules.definition(), &*self.config.function_name);
        Begun { report: Report { job, occasion, queue, definition, began, function_name }, placed }
    }

    /// Reports what became of a job. Without a sweep, a job that is left to it fails.
    fn end(&self, report: &Report<'_>, result: &mut Result<Outcome, Error>) {
        if let Ok(Outcome::Deferred(why)) = result
            && !self.config.sweep_enabled
        {
            *result = Err(Error::NoSweep(*why));
        }
        report.write(result.as_ref().map_err(Error::failure).as_ref().copied());
    }

    async fn create(&self, job: &Matched<'_>, deadline: Deadline) -> Result<Placed, Error> {
        tracing::debug!(queue = job.queue, definition = &*excerpt(job.rules.definition()), "job matched");
        self.in_cluster(deadline, async |target| self.create_in(target, job, deadline).await).await
    }

    /// If the cluster may have been created again, EKS is asked where it is now.
    async fn in_cluster<T>(
        &self,
        deadline: Deadline,
        ask: impl AsyncFn(&Arc<Target>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let target = self.target(deadline).await?;
        let error = match ask(&target).await {
            Err(error) if error.is_wrong_endpoint() && target.cluster.may_have_moved() => error,
            result => return result,
        };
        tracing::warn!(error = chain(&error), "the cluster may have been created again; EKS is asked for its endpoint");
        match Box::pin(self.target.fresh(|_, _| false, deadline, self.find(Some(&target)))).await {
            Ok(target) => ask(&target).await,
            Err(_) => Err(error),
        }
    }

    async fn create_in(
        &self,
        Target { cluster, definitions, secret }: &Target,
        matched: &Matched<'_>,
        deadline: Deadline,
    ) -> Result<Placed, Error> {
        let &Matched { job, queue, occasion, rules, .. } = matched;
        let (definition, reserved) = if self.config.job_tokens {
            Box::pin(self.definition_and_reservation(definitions, cluster, matched, deadline)).await
        } else {
            (definitions.get(rules.definition(), cluster, deadline).await, None)
        };
        let definition = definition?;
        match definition.access(job.pipeline.as_deref()) {
            Access::Allowed => {}
            Access::Refused(refused) => return Err(refused.into()),
            Access::Unknown => {
                let definition = definition.name().to_owned();
                return Ok(Outcome::Ignored(Reason::UnknownPipeline { definition }).into());
            }
        }
        let definition = definition.for_step(rules)?;
        let built = job::build(job, queue, occasion.attempt(), &definition, &self.config.stack);
        if !definition.brings_agent_token() {
            if self.config.job_tokens {
                let create = self.create_with_token(cluster, matched, built, reserved, deadline);
                return Box::pin(create).await;
            }
            self.agent_token.apply(secret, cluster, deadline).await.map_err(Error::AgentToken)?;
        }
        match cluster.create_job(&built, deadline).await {
            Ok(created) => {
                self.warned.log(&created.warnings, job.uuid, definition.name());
                Ok(Outcome::Created.into())
            }
            Err(error) if error.is_already_exists() => {
                self.existing(cluster, job.uuid, deadline).await.map(|_| Outcome::AlreadyExists.into())
            }
            Err(error) => Err(not_created(matched, error)),
        }
    }

    async fn target(&self, deadline: Deadline) -> Result<Arc<Target>, Error> {
        self.target.get(deadline, self.find(None)).await.map_err(Error::Cluster)
    }

    fn find(
        &self,
        known: Option<&Arc<Target>>,
    ) -> impl AsyncFnOnce(Deadline) -> Result<Arc<Target>, kubernetes::Error> {
        async move |deadline| {
            let old = known.map(|known| &known.cluster);
            let cluster = Cluster::find(&self.config, &self.eks, &self.credentials, old, deadline).await?;
            match known {
                Some(known) if known.cluster.is(&cluster) => Ok(Arc::clone(known)),
                _ => Ok(Arc::new(Target {
                    cluster,
                    definitions: Definitions::compiled(),
                    secret: AgentToken::not_applied(),
                })),
            }
        }
    }
}

fn not_created(job: &Matched<'_>, source: kubernetes::Error) -> Error {
    let name = job::name(job.job.uuid);
    if source.is_uncertain() {
        return Error::Uncertain { name, source };
    }
    let unmet = source.refused_fields().find_map(|(field, problem)| refused_rule(job.rules, field, problem));
    unmet.map_or_else(|| Error::CreateJob { name, source }, Error::Unmet)
}

#[cfg(test)]
mod tests {
    use lab::Lab;
    use tokio::time::{advance, pause, resume};

    use super::*;
    use crate::{aws, buildkite::event, config::fixtures::config};

    /// A scheduler that asks the lab's EKS for the cluster's endpoint.
    async fn scheduler(lab: &Lab) -> Scheduler {
        let keys = lab.credentials();
        let session_token = Some(keys.session_token.clone());
        let credentials = Credentials::new(&keys.access_key_id, &keys.secret_access_key, session_token, None, "lab");
        let var = |name: &str| (name == "AWS_ENDPOINT_URL").then(|| lab.aws.url());
        let roots = CertificateAuthority(Vec::new());
        let sdk = aws::sdk_config("us-east-1", credentials.clone(), roots.clone(), var).unwrap();
        let scheduler = Scheduler::new(config(&[("STACKS_API", "false")]), credentials, &sdk, roots);
        scheduler.start(Deadline::after(Duration::from_secs(5))).await.unwrap();
        scheduler
    }

    fn job() -> ScheduledJob {
        let event: serde_json::Value = serde_json::from_str(lab::event::SCHEDULED).unwrap();
        serde_json::from_str::<event::JobScheduled>(&event["detail"].to_string()).unwrap().job
    }

    async fn wait(time: Duration) {
        pause();
        advance(time).await;
        resume();
    }

    #[tokio::test]
    async fn a_cluster_that_was_created_again_is_found_within_the_event_and_gets_its_secret() {
        let mut lab = Lab::start().await;
        let scheduler = scheduler(&lab).await;
        lab.recreate_cluster().await;
        wait(Duration::from_mins(1)).await;
        let outcome = scheduler.schedule(&job(), Occasion::Event, Deadline::after(Duration::from_secs(8))).await;
        assert_eq!(outcome.unwrap(), Outcome::Created);
        assert!(lab.kubernetes.secret("buildkite", "buildkite-agent-token").is_some());
    }

    #[tokio::test]
    async fn eks_is_asked_once_a_minute_for_a_cluster_that_is_away() {
        let mut lab = Lab::start().await;
        let scheduler = scheduler(&lab).await;
        let (endpoint, ca_data) = (lab.kubernetes.url(), lab.kubernetes.ca_data());
        lab.recreate_cluster().await;
        lab.aws.put_cluster(lab::CLUSTER, &endpoint, &ca_data);
        wait(Duration::from_mins(1)).await;
        let described = || lab.aws.requests().iter().filter(|request| request.path.contains("/clusters/")).count();
        for _ in 0..2 {
            let outcome = scheduler.schedule(&job(), Occasion::Event, Deadline::after(Duration::from_secs(1))).await;
            assert_eq!(outcome.unwrap_err().kind(), "ClusterUnavailable");
            assert_eq!(described(), 2, "at the start, and for the first event");
        }
    }
}
