//! The Job that the function makes for a step.

use agent_scheduler_core::{
    buildkite::{
        event::{JOB_SCHEDULED, JobScheduled},
        job::ScheduledJob,
        rules::{AgentQueryRules, Mismatch},
    },
    json::{self, Malformed},
    pod::{
        definition::{Access, OtherPipelines, Unmet},
        job,
    },
    stack::{Stack, Tag},
};
use serde_json::Value;

use crate::{definitions::Definition, yaml};

/// The job of a step, but for its rules.
const SAMPLE: &str = include_str!("../../events/job-scheduled.json");

/// The defaults of the stack's parameters.
const TEMPLATE: &str = include_str!("../../template.yml");

/// What the stack's parameters are here.
#[derive(Debug, Default)]
pub struct Settings {
    /// `BuildkiteQueue`; empty for any queue, and for jobs that name none.
    pub queues: Vec<String>,
    /// `BuildkiteAgentTags`.
    pub tags: Vec<Tag>,
    /// `KubernetesNamespace`; the template's where it is `None`.
    pub namespace: Option<String>,
}

/// Why there is no Job.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// Not an event, or not of a job.
    #[error("cannot read the event: {0}")]
    Event(#[from] Malformed),
    /// An event of something else.
    #[error("the event is of detail-type {0}, and the function makes a Job for \"{JOB_SCHEDULED}\" alone")]
    OtherEvent(Value),
    /// Nothing that an agent runs.
    #[error("a job of type \"{0}\" needs no agent")]
    NoScript(String),
    /// Not for this stack.
    #[error("the job is ignored: {0}")]
    Mismatch(#[from] Mismatch),
    /// A definition that does not exist.
    #[error("there is no pod definition \"{0}\"; there are {1}")]
    Unknown(String, String),
    /// The definition is for others.
    #[error(transparent)]
    Pipeline(#[from] OtherPipelines),
    /// Only some pipelines may use the definition, and the event does not name the job's.
    #[error("pod definition \"{0}\" is for some pipelines only, and the event does not say which one the job is of")]
    UnknownPipeline(String),
    /// The definition does not allow it.
    #[error(transparent)]
    Unmet(#[from] Unmet),
}

/// The job of an event.
pub fn job_of_event(event: &str) -> Result<ScheduledJob, Problem> {
    let event: Value = json::parse(event, "")?;
    if event["detail-type"] != JOB_SCHEDULED {
        return Err(Problem::OtherEvent(event["detail-type"].clone()));
    }
    Ok(json::parse::<JobScheduled>(&event["detail"].to_string(), "detail")?.job)
}

/// The job of a step whose `agents:` are these, as `key=value` with spaces between them. All else is the sample event's.
pub fn job_of_step(agents: &str, pipeline: Option<String>) -> ScheduledJob {
    let sample = job_of_event(SAMPLE).expect("the sample is an event");
    let agent_query_rules = agents.split_whitespace().map(str::to_owned).collect();
    ScheduledJob { agent_query_rules, pipeline: pipeline.or(sample.pipeline), ..sample }
}

/// The Job as YAML. Of two definitions of one name the later one is taken.
pub fn render(job: &ScheduledJob, definitions: &[Definition], settings: &Settings) -> Result<String, Problem> {
    if job.kind != "script" {
        return Err(Problem::NoScript(job.kind.clone()));
    }
    let stack = stack(job, settings);
    let rules = AgentQueryRules::parse(&job.agent_query_rules);
    let queue = rules.matched(&stack)?;
    let Some(definition) = definitions.iter().rfind(|found| found.definition.name() == rules.definition()) else {
        let names: Vec<_> = definitions.iter().map(|found| found.definition.name()).collect();
        return Err(Problem::Unknown(rules.definition().to_owned(), names.join(", ")));
    };
    match definition.definition.access(job.pipeline.as_deref()) {
        Access::Allowed => {}
        Access::Refused(refused) => return Err(refused.into()),
        Access::Unknown => return Err(Problem::UnknownPipeline(rules.definition().to_owned())),
    }
    let for_step = definition.definition.for_step(&rules)?;
    let built = job::build(job, queue, None, &for_step, &stack).json();
    let built = serde_json::from_slice(&built).expect("a Job is JSON");
    let agents = if job.agent_query_rules.is_empty() { "no agents" } else { &job.agent_query_rules.join(" ") };
    let placeholder = definition.definition.placeholder_image();
    let placeholder =
        placeholder.map(|image| format!("# {image} is a placeholder: no job gets it before it is another image.\n"));
    Ok(format!(
        "# The Job of a step with {agents}, in {}.\n# What is added to the pod definition, or is not as it is there, has a \
         comment.\n{}{}",
        definition.file,
        placeholder.unwrap_or_default(),
        yaml::job(&built, definition.definition.template())
    ))
}

/// A stack with the template's defaults.
fn stack(job: &ScheduledJob, settings: &Settings) -> Stack {
    let template: Value = serde_saphyr::from_str(TEMPLATE).expect("the template is YAML");
    let default = |parameter: &str| &template["Parameters"][parameter]["Default"];
    let text = |parameter| default(parameter).as_str().expect("it has a default").to_owned();
    let seconds =
        |parameter| default(parameter).as_u64().and_then(|seconds| seconds.try_into().ok()).unwrap_or_default();
    let named = || job.agent_query_rules.iter().filter_map(|rule| rule.strip_prefix("queue=")).map(str::to_owned);
    Stack {
        // That of the deployed stack follows from its account, region and name.
        id: "0".repeat(32),
        serve_jobs_without_queue: settings.queues.is_empty(),
        queues: if settings.queues.is_empty() { named().collect() } else { settings.queues.clone() },
        agent_tags: settings.tags.clone(),
        namespace: settings.namespace.clone().unwrap_or_else(|| text("KubernetesNamespace")),
        agent_token_secret: text("AgentTokenSecretName"),
        job_ttl_seconds: seconds("JobTtlSeconds"),
        job_active_deadline_seconds: seconds("JobActiveDeadlineSeconds"),
    }
}
