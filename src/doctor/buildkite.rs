//! Buildkite: the token, and what Buildkite says to it.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};

use super::{Doctor, Finding};
use crate::{
    buildkite::stacks::{Error, ScheduledJobs, Stacks},
    config::Config,
    stacks_api::StacksApi,
    text::{chain, excerpt},
};

/// What waits in each queue of the stack, or why there is no list; or why there is no stack at Buildkite.
pub(super) type Lists = Result<Vec<(String, Result<ScheduledJobs, Error>)>, Error>;

/// What a token is by its beginning. Older ones have none.
const KINDS: [(&str, &str); 5] = [
    ("bkct_", "the agent token of a Buildkite cluster (bkct_…)"),
    ("bkcqt_", "the agent token of one queue (bkcqt_…)"),
    ("bkar_", "an agent token outside of any Buildkite cluster (bkar_…)"),
    ("bkjat_", "the token of one job (bkjat_…)"),
    ("bkua_", "the API access token of a user (bkua_…)"),
];

impl Doctor<'_> {
    pub(super) async fn token(&self) -> Result<&Arc<SecretString>, &Finding> {
        let read = async || {
            let token = self.scheduler.read_token(self.deadline).await;
            token.map_err(|error| Finding::wrong(chain(&*error), self.config.put_token()))
        };
        self.token.get_or_init(read).await.as_ref()
    }

    fn buildkite(&self) -> Option<Result<Stacks, Error>> {
        self.scheduler.stacks_api().map(StacksApi::connect)
    }

    /// `None` without the Stacks API or a token.
    pub(super) async fn lists(&self) -> Option<&Lists> {
        let list = async || {
            let (stacks_api, token) = (self.scheduler.stacks_api()?, self.token().await.ok()?);
            let stacks = match stacks_api.register(token, self.deadline).await {
                Ok(stacks) => stacks,
                Err(error) => return Some(Err(error)),
            };
            let mut lists = Vec::new();
            for queue in &self.config.stack.queues {
                lists.push((queue.clone(), stacks.scheduled_jobs(queue, None, token, self.deadline).await));
            }
            Some(Ok(lists))
        };
        self.lists.get_or_init(list).await.as_ref()
    }
}

pub(super) async fn agent_token(doctor: &Doctor<'_>) -> Vec<Finding> {
    let config = doctor.config;
    let (parameter, region) = (&config.agent_token_parameter, &config.region);
    let found = match doctor.token().await {
        Err(wrong) => wrong.clone(),
        Ok(token) => {
            let token = token.expose_secret();
            let kind = KINDS.iter().find(|(prefix, _)| token.starts_with(prefix)).map(|(_, kind)| *kind);
            let text = format!(
                "SSM parameter {parameter} in {region} holds {}",
                kind.unwrap_or("a token without a known prefix")
            );
            if token.starts_with("bkua_") || token.starts_with("bkjat_") {
                Finding::wrong(text, config.put_token())
            } else {
                Finding::well(text)
            }
        }
    };
    vec![found]
}

pub(super) async fn identity(doctor: &Doctor<'_>) -> Vec<Finding> {
    let Some(stacks) = doctor.buildkite() else { return vec![without_stacks_api()] };
    let Ok(token) = doctor.token().await else { return vec![Finding::waits_for("agent token")] };
    let known = match stacks {
        Ok(stacks) => stacks.token(token, doctor.deadline).await,
        Err(error) => Err(error),
    };
    let info = match known {
        Ok(info) => info,
        Err(error) => return vec![wrong(&error, doctor.config, None)],
    };
    let named = |name: &Option<String>| excerpt(name.as_deref().unwrap_or("?")).into_owned();
    let text =
        format!("a token of kind {} of organization {}", named(&info.token_type), named(&info.organization_slug));
    vec![if info.cluster_uuid.as_deref().unwrap_or_default().is_empty() {
        Finding::wrong(
            format!("{text}, in no Buildkite cluster: it cannot use the Stacks API"),
            doctor.config.put_token(),
        )
    } else if info.token_type.as_deref() == Some("cluster_queue") {
        let text = format!("{text} for one queue alone, which may not use the Stacks API");
        Finding::wrong(text, doctor.config.put_token())
    } else {
        Finding::well(format!("{text}, Buildkite cluster {}", named(&info.cluster_name)))
    }]
}

pub(super) async fn stacks_api(doctor: &Doctor<'_>) -> Vec<Finding> {
    if doctor.scheduler.stacks_api().is_none() {
        return vec![without_stacks_api()];
    }
    let of_queue = |(queue, list): &(String, Result<ScheduledJobs, Error>)| match list {
        Ok(list) if list.cluster_queue.dispatch_paused => Finding::wrong(
            format!("queue {queue} is paused: no job of it starts"),
            "# resume it on its page in Buildkite",
        ),
        Ok(list) => Finding::well(format!("queue {queue}: {}", waiting(list))),
        Err(error) => wrong(error, doctor.config, Some(queue)),
    };
    match doctor.lists().await {
        None => vec![Finding::waits_for("agent token")],
        Some(Ok(lists)) => lists.iter().map(of_queue).collect(),
        Some(Err(error)) => vec![wrong(error, doctor.config, Some(&doctor.config.stack.queues[0]))],
    }
}

fn without_stacks_api() -> Finding {
    Finding { ok: None, found: "not looked at: StacksApi is false".to_owned(), fix: None }
}

fn waiting(list: &ScheduledJobs) -> String {
    let more = if list.page_info.has_next_page { " at least" } else { "" };
    let since = list.jobs.iter().filter_map(|job| job.scheduled_at.as_deref()?.parse::<Timestamp>().ok()).min();
    match since {
        Some(since) => format!("{}{more} jobs wait, the oldest since {since}", list.jobs.len()),
        None => "no job waits".to_owned(),
    }
}

fn wrong(error: &Error, config: &Config, queue: Option<&str>) -> Finding {
    let fix = match error.status() {
        Some(401) => format!(
            "{}\n# if that is the token: its allowed IP addresses in Buildkite must include the function's",
            config.put_token()
        ),
        Some(403) => {
            "# the token's allowed IP addresses in Buildkite must include the function's, and the organization must be \
                      allowed another stack; or set StacksApi to false"
                .to_owned()
        }
        Some(404) => format!(
            "# create the self-hosted queue {} in the token's Buildkite cluster, or correct BuildkiteQueue",
            queue.unwrap_or_default()
        ),
        _ => "# a function in a VPC needs a way to agent.buildkite.com; or set StacksApi to false".to_owned(),
    };
    Finding::wrong(chain(error), fix)
}

impl Config {
    fn put_token(&self) -> String {
        let (parameter, region) = (&self.agent_token_parameter, &self.region);
        format!(
            "read -rs TOKEN   # in Buildkite: Agents, the cluster, Agent Tokens\n\
             aws ssm put-parameter --region {region} --name {parameter} --type SecureString --overwrite --value \"$TOKEN\"\n\
             # if the parameter is there: allow the function's role ssm:GetParameter on it, and kms:Decrypt if its key is your own"
        )
    }
}
