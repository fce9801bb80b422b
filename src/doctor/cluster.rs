//! The cluster: whether it answers, as whom it knows the function, and what it allows.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use k8s_openapi::jiff::Timestamp;

use super::{Doctor, Finding};
use crate::{
    clock,
    config::Config,
    kubernetes::{self, Cluster, Permission, SUBJECT},
    pod::metadata::STACK_LABEL,
    text::{chain, excerpt},
};

/// What needs which minor version of Kubernetes.
const NEEDS: [(u32, &str); 2] = [
    (26, "podFailurePolicy: an agent that ran would be started again"),
    (29, "native sidecars: a pod with one would never end"),
];

/// A clock that is wrong by more may make tokens invalid.
const MAX_SKEW_SECONDS: i64 = 60;

/// When the function asks something of the API server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Always,
    /// Agents share the agent token.
    AgentToken,
    /// Each agent has a token of its own.
    JobTokens,
    Sweep,
}

/// What it asks: resource, verb, and when.
const PERMISSIONS: [(&str, &str, Need); 10] = [
    ("jobs", "create", Need::Always),
    ("jobs", "get", Need::Always),
    ("podtemplates", "list", Need::Always),
    ("secrets", "create", Need::AgentToken),
    ("secrets", "patch", Need::AgentToken),
    ("secrets", "create", Need::JobTokens),
    ("jobs", "list", Need::Sweep),
    ("jobs", "delete", Need::Sweep),
    ("pods", "list", Need::Sweep),
    ("events", "list", Need::Sweep),
];

/// The API server's answer about itself.
pub(super) struct Server {
    version: String,
    now: Option<Timestamp>,
    milliseconds: u128,
}

impl Doctor<'_> {
    /// What several checks need first.
    pub(super) async fn cluster(&self) -> Result<&Cluster, &Finding> {
        let find = async || {
            let found = self.scheduler.find_cluster(self.deadline).await;
            found.map_err(|error| self.config.wrong(&error))
        };
        self.cluster.get_or_init(find).await.as_ref()
    }

    async fn server(&self) -> Result<&Server, &Finding> {
        let cluster = self.cluster().await?;
        let ask = async || {
            let began = clock::monotonic();
            let (version, now) = match cluster.version(self.deadline).await {
                Ok(answer) => answer,
                // It answers, and "identity" says the rest.
                Err(error) if error.kind() == "Unauthorized" => ("of an unknown version".to_owned(), None),
                Err(error) => return Err(self.config.wrong(&error)),
            };
            Ok(Server { version, now, milliseconds: began.elapsed().as_millis() })
        };
        self.server.get_or_init(ask).await.as_ref()
    }
}

pub(super) async fn answers(doctor: &Doctor<'_>) -> Vec<Finding> {
    let Server { version, milliseconds, .. } = match doctor.server().await {
        Ok(server) => server,
        Err(wrong) => return vec![wrong.clone()],
    };
    let Config { cluster, region, .. } = doctor.config;
    let text = format!(
        "cluster {cluster}: Kubernetes {}, which answered in {milliseconds} ms, with a certificate of its CA",
        excerpt(version)
    );
    // v1.33.1-eks-595af52
    let minor: Option<u32> = version.split('.').nth(1).and_then(|minor| minor.parse().ok());
    let old = NEEDS.iter().filter(|(needed, _)| minor.is_some_and(|minor| minor < *needed));
    let old: Vec<_> = old.map(|(needed, what)| format!("too old for {what} (1.{needed})")).collect();
    vec![if old.is_empty() {
        Finding::well(text)
    } else {
        let fix = format!("aws eks update-cluster-version --region {region} --name {cluster} --kubernetes-version …");
        Finding::wrong(format!("{text}; {}", old.join("; ")), fix)
    }]
}

pub(super) async fn clock(doctor: &Doctor<'_>) -> Vec<Finding> {
    let (server, lists) = (doctor.server().await, doctor.lists().await);
    let buildkite = lists.and_then(|lists| lists.as_ref().ok()?.iter().find_map(|(_, list)| list.as_ref().ok()?.now));
    let sides = [("the API server", server.ok().and_then(|server| server.now)), ("Buildkite", buildkite)];
    let now = Timestamp::try_from(clock::wall()).unwrap_or_default();
    let skews = sides.map(|(side, theirs)| Some((side, theirs?.duration_since(now).as_secs())));
    let skews: Vec<_> = skews.into_iter().flatten().collect();
    if skews.is_empty() {
        return vec![Finding::waits_for("cluster")];
    }
    let texts: Vec<_> = skews
        .iter()
        .map(|(side, seconds)| {
            format!(
                "the clock of {side} is {} s {} ours",
                seconds.abs(),
                if *seconds < 0 { "behind" } else { "ahead of" }
            )
        })
        .collect();
    vec![if skews.iter().all(|(_, seconds)| seconds.abs() <= MAX_SKEW_SECONDS) {
        Finding::well(texts.join(", "))
    } else {
        Finding::wrong(texts.join(", "), "# Lambda's clock is right: look at the clocks of the other sides")
    }]
}

pub(super) async fn identity(doctor: &Doctor<'_>) -> Vec<Finding> {
    let Ok(cluster) = doctor.cluster().await else { return vec![Finding::waits_for("cluster")] };
    let config = doctor.config;
    let user = match cluster.who_am_i(doctor.deadline).await {
        Ok(user) => user,
        Err(error) if error.kind() == "Unauthorized" => return vec![config.wrong(&error)],
        Err(error) => return vec![config.failed(&error)],
    };
    let text = format!("the API server knows the function as user {} of groups {}", user.name, user.groups.join(", "));
    vec![if user.name == SUBJECT || user.groups.iter().any(|group| group == SUBJECT) {
        Finding::well(text)
    } else {
        Finding::wrong(
            format!("{text}, and buildkite-role.yaml is for {SUBJECT}"),
            config.map_role("update", user.arn.as_deref()),
        )
    }]
}

pub(super) async fn permissions(doctor: &Doctor<'_>) -> Vec<Finding> {
    let Ok(cluster) = doctor.cluster().await else { return vec![Finding::waits_for("cluster")] };
    let config = doctor.config;
    let sweeps = config.sweep_enabled && config.stacks_endpoint.is_some();
    let is_needed = |need| match need {
        Need::Always => true,
        Need::AgentToken => !config.job_tokens,
        Need::JobTokens => config.job_tokens,
        Need::Sweep => sweeps,
    };
    let needed: Vec<_> = PERMISSIONS.iter().filter(|(.., need)| is_needed(*need)).collect();
    let reviews = needed.iter().map(|(resource, verb, need)| {
        let group = if *resource == "jobs" { "batch" } else { "" };
        let name = if *need == Need::AgentToken { &*config.stack.agent_token_secret } else { "" };
        cluster.may(Permission { group, resource, verb, name }, doctor.deadline)
    });
    let mut missing = Vec::new();
    for ((resource, verb, _), answer) in needed.iter().zip(join_all(reviews).await) {
        match answer {
            Ok(true) => {}
            Ok(false) => missing.push(format!("{verb} {resource}")),
            Err(error) => return vec![config.failed(&error)],
        }
    }
    let namespace = &config.stack.namespace;
    vec![if missing.is_empty() {
        Finding::well(format!("all {} that are needed in namespace {namespace}", needed.len()))
    } else {
        Finding::wrong(format!("missing in namespace {namespace}: {}", missing.join(", ")), config.apply_role())
    }]
}

pub(super) async fn other_stacks(doctor: &Doctor<'_>) -> Vec<Finding> {
    let Ok(cluster) = doctor.cluster().await else { return vec![Finding::waits_for("cluster")] };
    let stack = &doctor.config.stack;
    let mut others: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for queue in &stack.queues {
        let jobs = match cluster.jobs_of_others(queue, doctor.deadline).await {
            Ok(jobs) => jobs,
            Err(kubernetes::Error::Forbidden { .. }) => {
                let look = format!("kubectl get jobs --namespace {} --label-columns {STACK_LABEL}", stack.namespace);
                return vec![Finding::unseen("not looked at: the function may not list Jobs", look)];
            }
            // A queue whose key is no label value.
            Err(kubernetes::Error::Rejected(_)) => continue,
            Err(error) => return vec![doctor.config.failed(&error)],
        };
        let of_others = jobs.into_iter().filter_map(|mut job| job.metadata.labels.remove(STACK_LABEL));
        for other in of_others {
            others.entry(other).or_default().insert(queue.clone());
        }
    }
    if others.is_empty() {
        return vec![Finding::well("no other stack has Jobs of these queues in the namespace")];
    }
    let of_other = |(other, queues): (&String, &BTreeSet<String>)| {
        format!(
            "stack {} has Jobs of {}",
            excerpt(other),
            queues.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
        )
    };
    let text = others.iter().map(of_other).collect::<Vec<_>>().join("; ");
    vec![if doctor.config.stacks_endpoint.is_none() {
        Finding::well(format!("{text}; StacksApi is false here, so the two do not meet"))
    } else {
        Finding::wrong(
            text,
            "# set StacksApi to false on all but one of the stacks that serve a queue, or give each its own queues",
        )
    }]
}

impl Config {
    /// A request that failed, for a reason that may be another check's.
    pub(super) fn failed(&self, error: &kubernetes::Error) -> Finding {
        match error {
            error if error.kind() == "Unauthorized" => Finding::waits_for("identity"),
            error if error.is_wrong_endpoint() => Finding::waits_for("cluster"),
            error => self.wrong(error),
        }
    }

    /// A request that failed, and what is to be done.
    pub(super) fn wrong(&self, error: &kubernetes::Error) -> Finding {
        let Self { region, cluster, .. } = self;
        let fix = match error {
            kubernetes::Error::Forbidden { .. } => self.apply_role(),
            kubernetes::Error::NoNamespace { namespace } => format!("kubectl create namespace {namespace}"),
            kubernetes::Error::Unauthorized { .. } | kubernetes::Error::WrongClock { .. } => {
                self.map_role("create", None)
            }
            kubernetes::Error::Rejected(_) => "# correct what the API server names".to_owned(),
            _ => format!(
                "aws eks describe-cluster --region {region} --name {cluster} --query 'cluster.[status,endpoint,resourcesVpcConfig]'"
            ),
        };
        Finding::wrong(chain(error), fix)
    }

    /// Runs as it is, also in a namespace that does not exist yet.
    pub(super) fn apply_role(&self) -> String {
        let (namespace, secret) = (&self.stack.namespace, &self.stack.agent_token_secret);
        format!(
            "# connect {} does this, too, and keeps the Secrets of other stacks in the role\n\
             kubectl create namespace {namespace} --dry-run=client --output yaml | kubectl apply --filename -\n\
             sed 's/\\[buildkite-agent-token\\]/[{secret}]/' buildkite-role.yaml | kubectl apply --namespace {namespace} --filename - \
             --selector {}",
            self.cloudformation_stack(),
            kubernetes::role_selector(self.job_tokens)
        )
    }

    /// `verb` is `create` or `update`.
    fn map_role(&self, verb: &str, arn: Option<&str>) -> String {
        let Self { region, cluster, .. } = self;
        let arn = arn.map_or_else(|| self.of_stack("Outputs[?OutputKey=='RoleArn'].OutputValue"), str::to_owned);
        format!(
            "# connect {} does this, too\n\
             aws eks {verb}-access-entry --region {region} --cluster-name {cluster} --principal-arn {arn} --username {SUBJECT} \
             --kubernetes-groups {SUBJECT}\n\
             # in a cluster with aws-auth: eksctl create iamidentitymapping --region {region} --cluster {cluster} --arn {arn} \
             --username {SUBJECT} --group {SUBJECT}",
            self.cloudformation_stack()
        )
    }
}
