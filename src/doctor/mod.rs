//! The function examines its own set-up: what is missing until a job gets its pod, and the command that adds it.
//!
//! It has the identity, the network and the permissions that matter, and asks for no permission of its own. It changes nothing but
//! what each start does, which is to register the stack at Buildkite; all else is a look or a dry run. A new check is a function and a line in
//! `CHECKS`.

mod buildkite;
mod cluster;
mod definitions;
mod secret;

use std::{future::ready, pin::Pin, sync::Arc, time::Duration};

use futures_util::future::join_all;
use secrecy::SecretString;
use serde::Serialize;
use tokio::sync::OnceCell;

use self::{buildkite::Lists, cluster::Server};
use crate::{config::Config, deadline::Deadline, kubernetes::Cluster, scheduler::Scheduler};

/// How long all checks may take together.
const MAX_TIME: Duration = Duration::from_secs(20);

/// The `detail-type` and the `source` of its event.
pub const DETAIL_TYPE: &str = "Doctor";
/// See [`DETAIL_TYPE`].
pub const SOURCE: &str = "agent-scheduler";

type Findings<'a> = Pin<Box<dyn Future<Output = Vec<Finding>> + 'a>>;
type Look = for<'a> fn(&'a Doctor<'a>) -> Findings<'a>;

/// In the order of an event's way. All run side by side; what several need is asked for once.
const CHECKS: [(&str, Look); 14] = [
    ("settings", |doctor| Box::pin(ready(settings(doctor)))),
    ("events", |doctor| Box::pin(ready(events(doctor)))),
    ("agent token", |doctor| Box::pin(buildkite::agent_token(doctor))),
    ("Buildkite knows the token", |doctor| Box::pin(buildkite::identity(doctor))),
    ("Buildkite's Stacks API", |doctor| Box::pin(buildkite::stacks_api(doctor))),
    ("cluster", |doctor| Box::pin(cluster::answers(doctor))),
    ("clock", |doctor| Box::pin(cluster::clock(doctor))),
    ("identity", |doctor| Box::pin(cluster::identity(doctor))),
    ("permissions", |doctor| Box::pin(cluster::permissions(doctor))),
    ("agent Secret", |doctor| Box::pin(secret::agent_token(doctor))),
    ("job tokens", |doctor| Box::pin(secret::job_tokens(doctor))),
    ("pod definitions", |doctor| Box::pin(definitions::jobs(doctor))),
    ("what definitions name", |doctor| Box::pin(definitions::names(doctor))),
    ("one queue, one stack", |doctor| Box::pin(cluster::other_stacks(doctor))),
];

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// Nothing is wrong, as far as this can be seen from here.
    pub ok: bool,
    /// What was looked at.
    pub checks: Vec<Check>,
}

/// What one check found; a check may find several.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// Its name.
    pub check: &'static str,
    /// What it found.
    #[serde(flatten)]
    pub finding: Finding,
}

/// What is well or wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// `None` if this cannot be seen from here.
    pub ok: Option<bool>,
    /// What there is.
    pub found: String,
    /// What to do, or how to look: shell commands, and comments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    fn well(found: impl Into<String>) -> Self {
        Self { ok: Some(true), found: found.into(), fix: None }
    }

    fn wrong(found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { ok: Some(false), found: found.into(), fix: Some(fix.into()) }
    }

    fn unseen(found: impl Into<String>, look: impl Into<String>) -> Self {
        Self { ok: None, found: found.into(), fix: Some(look.into()) }
    }

    /// Another check has failed that this one needs.
    fn waits_for(check: &str) -> Self {
        Self { ok: None, found: format!("not looked at: first correct \"{check}\""), fix: None }
    }
}

/// What the checks share. Each is asked for once, when the first check needs it.
struct Doctor<'a> {
    scheduler: &'a Scheduler,
    config: &'a Config,
    deadline: Deadline,
    token: OnceCell<Result<Arc<SecretString>, Finding>>,
    lists: OnceCell<Option<Lists>>,
    cluster: OnceCell<Result<Cluster, Finding>>,
    server: OnceCell<Result<Server, Finding>>,
    definitions: OnceCell<crate::definitions::All>,
}

/// Looks at everything.
pub async fn run(scheduler: &Scheduler, deadline: Deadline) -> Answer {
    let doctor = Doctor {
        scheduler,
        config: &scheduler.config,
        deadline: deadline.within(MAX_TIME),
        token: OnceCell::new(),
        lists: OnceCell::new(),
        cluster: OnceCell::new(),
        server: OnceCell::new(),
        definitions: OnceCell::new(),
    };
    let looks = CHECKS.map(|(check, look)| {
        let findings = look(&doctor);
        async move { findings.await.into_iter().map(move |finding| Check { check, finding }) }
    });
    let checks: Vec<_> = join_all(looks).await.into_iter().flatten().collect();
    let wrong = checks.iter().filter(|check| check.finding.ok == Some(false)).map(|check| check.check);
    let mut wrong: Vec<_> = wrong.collect();
    wrong.dedup();
    let wrong = wrong.join(", ");
    tracing::info!(wrong, "the function has examined its set-up");
    Answer { ok: wrong.is_empty(), checks }
}

fn settings(Doctor { config, .. }: &Doctor<'_>) -> Vec<Finding> {
    let stack = &config.stack;
    let tags: Vec<_> = stack.agent_tags.iter().map(|tag| format!("{}={}", tag.key, tag.value)).collect();
    let on = |is_on| if is_on { "on" } else { "off" };
    let mut found = vec![Finding::well(format!(
        "jobs of {}{}, with the tags {}, run in namespace {} of cluster {}; Stacks API {}, sweep {}",
        stack.queues.join(", "),
        if stack.serve_jobs_without_queue { " and without a queue" } else { "" },
        if tags.is_empty() { "none".to_owned() } else { tags.join(",") },
        stack.namespace,
        config.cluster,
        on(config.stacks_endpoint.is_some()),
        on(config.sweep_enabled),
    ))];
    if config.sweep_enabled && config.stacks_endpoint.is_none() {
        found.push(Finding::wrong(
            "SweepEnabled is true and StacksApi is false, so there is no sweep: nothing repairs a lost event",
            "# set StacksApi to true, or SweepEnabled to false, and deploy",
        ));
    }
    found
}

/// Where an event comes from is outside.
fn events(Doctor { config, .. }: &Doctor<'_>) -> Vec<Finding> {
    let (region, function) = (&config.region, &config.function_name);
    let bus = config.of_stack("Parameters[?ParameterKey=='EventBridgeBusName'].ParameterValue");
    let today = "--start-time \"$(date -u +%F)T00:00:00Z\" --end-time \"$(date -u +%F)T23:59:59Z\" --period 86400 --statistics Sum";
    let mut look = vec![
        format!("aws events list-event-sources --region {region} --name-prefix aws.partner/buildkite.com   # ACTIVE"),
        format!(
            "aws events describe-rule --region {region} --event-bus-name {bus} --name {}-Queue",
            config.stack.queues[0]
        ),
        format!(
            "aws cloudwatch get-metric-statistics --region {region} --namespace AWS/Events --metric-name TriggeredRules \
             --dimensions Name=EventBusName,Value={bus} Name=RuleName,Value={}-Queue {today}",
            config.stack.queues[0]
        ),
    ];
    for queue in &config.stack.queues {
        let of_queue = |metric: &str| {
            format!(
                "aws cloudwatch get-metric-statistics --region {region} --namespace AgentScheduler --metric-name {metric} \
                 --dimensions Name=FunctionName,Value={function} Name=Queue,Value={queue} {today}"
            )
        };
        look.extend(["JobsCreated", "JobsRepaired"].map(of_queue));
    }
    vec![Finding::unseen("whether Buildkite's events arrive cannot be seen from inside", look.join("\n"))]
}

impl Config {
    /// The name of the CloudFormation stack.
    fn cloudformation_stack(&self) -> &str {
        self.stack_name.rsplit(':').next().unwrap_or_default()
    }

    /// A value of the stack, as a shell asks for it.
    fn of_stack(&self, query: &str) -> String {
        let (region, stack) = (&self.region, self.cloudformation_stack());
        format!(
            "\"$(aws cloudformation describe-stacks --region {region} --stack-name {stack} --query \"Stacks[0].{query}\" --output text)\""
        )
    }
}
