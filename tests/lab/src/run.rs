//! `lab run`: one event, from the file to the Job; or one batch of the failure queue.

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use agent_scheduler_cli::{
    definitions::{Definition, Definitions},
    yaml,
};
use clap::Args;
use lab::{
    AGENT_TOKEN_PARAMETER, Answer, CLUSTER, ControlPlane, Event, Function, Lab, Parameter, buildkite,
    control_plane::{self, ClusterKind},
    event,
    kubeconfig::{self, Cluster},
    kubernetes::NAMESPACE,
};
use serde_json::{Value, json};
use textwrap::{Options, WordSplitter};
use tokio::time::sleep;

/// What fits into a terminal beside an editor.
const COLUMNS: usize = 100;

/// The Secret that carries the agent token, as in the template.
const SECRET: &str = "buildkite-agent-token";

/// The Secret of a run in a cluster of the user's own, where a deployed function may own the other.
const TRIAL_SECRET: &str = "buildkite-agent-token-of-make-run";

/// What passes before a sweep: it touches no younger Job.
const SWEEP_DELAY: Duration = Duration::from_mins(2);

/// How long to wait for the Job controller before showing what there is.
const POD_TIMEOUT: Duration = Duration::from_secs(10);

/// What to run, and on what.
#[derive(Args)]
pub struct Run {
    /// The function's binary.
    #[arg(long, value_name = "PATH")]
    function: PathBuf,
    /// The event: a JSON document, as EventBridge delivers it, or as SQS does.
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
    /// What the cluster is.
    #[arg(long, value_enum, default_value_t, conflicts_with = "context")]
    cluster: ClusterKind,
    /// A context of your kubeconfig: the Job is made in its cluster, with your rights. Its namespace must exist.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The Buildkite agent token that the pod gets; better given in the variable, where others do not see it.
    #[arg(long, value_name = "TOKEN", env = "BUILDKITE_AGENT_TOKEN", hide_env_values = true)]
    agent_token: Option<String>,
    /// The pod definitions that are compiled into the function: what is not in them has a comment in the Job.
    #[arg(long, value_name = "FOLDER", default_value = "pod-definitions")]
    definitions: PathBuf,
    /// A variable for the function, in place of the lab's own; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
}

/// A lab and the cluster of its functions.
struct Setup {
    lab: Lab,
    /// None for the lab's own stand-in.
    cluster: Option<Cluster>,
    /// Ends with this process.
    _control_plane: Option<ControlPlane>,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error(transparent)]
    Event(#[from] event::Problem),
    #[error("cannot run the function {}: {source}\nBuild it with `cargo build` first, and give --function its path.", path.display())]
    Function { path: PathBuf, source: io::Error },
    #[error(transparent)]
    ControlPlane(#[from] control_plane::Problem),
    #[error("cannot use the context {context}: {source}\nCheck it with `kubectl --context {context} get namespaces`.")]
    Context { context: String, source: kubeconfig::Problem },
    #[error(
        "a run in your own cluster requires the Buildkite agent token for its pod: `make run CONTEXT=… TOKEN=…`, \
         or the variable BUILDKITE_AGENT_TOKEN"
    )]
    NoAgentToken,
}

impl Run {
    /// Returns the exit code: success if the function answered, failure if it did not.
    pub async fn run(self) -> Result<ExitCode, Problem> {
        let (event, parsed) = Event::read(&self.event)?;
        let agent_token = self.agent_token.clone().filter(|token| !token.is_empty());
        if self.context.is_some() && agent_token.is_none() {
            return Err(Problem::NoAgentToken);
        }
        let namespace = self.namespace().to_owned();
        let setup = self.set_up(&namespace).await?;
        let lab = &setup.lab;
        if let Some(token) = agent_token {
            lab.aws.put_parameter(AGENT_TOKEN_PARAMETER, Parameter::secure_string(&token));
            let cluster = (buildkite::CLUSTER.to_owned(), buildkite::Token::Cluster);
            lab.buildkite.lock().tokens.insert(token, cluster);
        }
        for job in parsed.jobs_scheduled() {
            lab.buildkite.lock().schedule(&job, buildkite::CLUSTER);
        }
        let secret = if self.context.is_some() { TRIAL_SECRET } else { SECRET };
        let function = lab.function_over_tls(&self.function).env("AWS_LAMBDA_LOG_LEVEL", "DEBUG");
        let mut function = function.env("AGENT_TOKEN_SECRET_NAME", secret);
        for (name, value) in self.env {
            function = function.env(name, value);
        }
        let function = function.try_start().map_err(|source| Problem::Function { path: self.function, source })?;
        let answer = if parsed.is_sweep() {
            if setup.cluster.is_none() {
                prepare_sweep(lab, &function).await;
            }
            function.invoke(parsed.now()).await
        } else {
            function.invoke(event).await
        };
        let log = function.stop().await.lines();

        print_timeline(lab);
        print_build_pages(lab);
        let answer = match answer {
            Answer::Success(answer) => answer,
            failure => {
                println!("\nThe function failed.\n{failure}");
                return Ok(ExitCode::FAILURE);
            }
        };
        println!("\n{}", outcome(&answer));
        let jobs = job_uuids(&log);
        if let Some(cluster) = setup.cluster.as_ref().filter(|_| !jobs.is_empty()) {
            show(cluster, &namespace, &jobs, secret).await;
            if let Some(context) = &self.context {
                println!("\nThe Job is removed after its TTL. Remove the token's Secret yourself:");
                println!("kubectl --context {context} --namespace {namespace} delete secret {secret}");
            }
        }
        // Of the stand-in; a real cluster has shown its own.
        let definitions = Definitions::read(&[self.definitions]).valid;
        for job in lab.kubernetes.jobs() {
            print!("\n{}", in_definition(&job, &definitions));
        }
        let failures = answer["batchItemFailures"].as_array().is_some_and(|failures| !failures.is_empty());
        Ok(if failures { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// Where the function makes its Jobs.
    fn namespace(&self) -> &str {
        let given = self.env.iter().rfind(|(name, _)| name == "KUBERNETES_NAMESPACE");
        given.map_or(NAMESPACE, |(_, value)| value)
    }

    async fn set_up(&self, namespace: &str) -> Result<Setup, Problem> {
        if let Some(context) = &self.context {
            let cluster = open(context, None).await?;
            cluster.check(namespace).await.map_err(|source| explain(context, source))?;
            let mut lab = Lab::start().await;
            lab.timeline.note(format!("context {context} is {}", cluster.url()));
            lab.forward_to(cluster.clone()).await;
            return Ok(Setup { lab, cluster: Some(cluster), _control_plane: None });
        }
        if self.cluster == ClusterKind::StandIn {
            return Ok(Setup { lab: Lab::start().await, cluster: None, _control_plane: None });
        }
        let control_plane = ControlPlane::start_for_function().await?;
        let cluster = open(CLUSTER, Some(&control_plane.kubeconfig())).await?;
        Ok(Setup { lab: control_plane.lab().await, cluster: Some(cluster), _control_plane: Some(control_plane) })
    }
}

/// Three jobs that only a sweep helps: the event of the first was lost, the Job of the second failed, and the third was cancelled.
async fn prepare_sweep(lab: &Lab, function: &Function) {
    let [lost, failed, cancelled] = [1, 2, 3].map(|number| {
        let event = Event::scheduled().uuid(format!("11111111-2222-4333-8444-55555555560{number}")).now();
        lab.buildkite.lock().schedule(&event, buildkite::CLUSTER);
        event
    });
    lab.timeline.note(format!("the event of job {} is lost", lost.job_uuid()));
    for event in [&failed, &cancelled] {
        function.invoke(event).await;
        if lab.kubernetes.job(&event.job_name()).is_some() {
            lab.kubernetes.start_pod(&event.job_name(), &json!({"waiting": {"reason": "ContainerCreating"}}));
        }
    }
    if lab.kubernetes.job(&failed.job_name()).is_some() {
        lab.kubernetes.end_job(&failed.job_name(), 1);
        lab.timeline.note(format!("{} fails before its agent takes the job", failed.job_name()));
    }
    lab.buildkite.lock().cancel(cancelled.job_uuid());
    lab.timeline.note(format!("job {} is cancelled", cancelled.job_uuid()));
    lab.skip(SWEEP_DELAY);
    lab.timeline.note("two minutes later");
}

async fn open(context: &str, kubeconfig: Option<&Path>) -> Result<Cluster, Problem> {
    Cluster::of_context(context, kubeconfig).await.map_err(|source| explain(context, source))
}

fn explain(context: &str, source: kubeconfig::Problem) -> Problem {
    Problem::Context { context: context.to_owned(), source }
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not of the form NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Long entries continue below the first word of what happened.
fn print_timeline(lab: &Lab) {
    let indent = " ".repeat("     12.3 ms  kubernetes    ".len());
    for entry in lab.timeline.entries() {
        // Names are full of hyphens, and are copied more often than read.
        let options = Options::new(COLUMNS).subsequent_indent(&indent);
        let options = options.word_splitter(WordSplitter::NoHyphenation).break_words(false);
        println!("{}", textwrap::fill(&entry.to_string(), options));
    }
}

/// What a user of Buildkite sees of the jobs that a stack has reported on.
fn print_build_pages(lab: &Lab) {
    for (uuid, job) in &lab.buildkite.lock().jobs {
        let ended = job.detail.iter().map(|detail| {
            let reason = job.signal_reason.as_deref().unwrap_or_default();
            format!("{}, exit status {}, {reason}\n{detail}", job.state, job.exit_status.unwrap_or_default())
        });
        let reports: Vec<_> = job.notifications.iter().map(|(_, text)| text.clone()).chain(ended).collect();
        if !reports.is_empty() {
            println!("\nThe build page of job {uuid}:\n{}", textwrap::indent(&reports.join("\n"), "  "));
        }
    }
}

/// The Job as YAML, beside the definition that its annotation names.
fn in_definition(job: &Value, definitions: &[Definition]) -> String {
    let name = &job["metadata"]["annotations"]["buildkite.com/pod-definition"];
    let definition = definitions.iter().find(|found| *name == *found.definition.name());
    yaml::job(job, definition.map_or(&Value::Null, |found| found.definition.template()))
}

/// The jobs that have a Kubernetes Job now, by what the function logged: its answer to a batch names none.
fn job_uuids(log: &[Value]) -> Vec<&str> {
    let made = log.iter().filter(|line| matches!(line["outcome"].as_str(), Some("created" | "already-exists")));
    made.filter_map(|line| line["job"].as_str()).collect()
}

/// What the Job controller made of the Jobs, and the Secret that their Pods refer to.
async fn show(cluster: &Cluster, namespace: &str, jobs: &[&str], secret: &str) {
    let ours = format!("labelSelector=buildkite.com%2Fjob-uuid%20in%20({})", jobs.join("%2C"));
    let pods = format!("/api/v1/namespaces/{namespace}/pods?{ours}");
    let started = Instant::now();
    let have_pods = async || {
        let list = cluster.get(&pods).await;
        list.is_ok_and(|list| list["items"].as_array().is_some_and(|pods| pods.len() >= jobs.len()))
    };
    while !have_pods().await && started.elapsed() < POD_TIMEOUT {
        sleep(Duration::from_millis(100)).await;
    }
    for path in [
        format!("/apis/batch/v1/namespaces/{namespace}/jobs?{ours}"),
        pods,
        format!("/api/v1/namespaces/{namespace}/secrets?fieldSelector=metadata.name%3D{secret}"),
    ] {
        match cluster.table(&path).await {
            Ok(table) => print!("\n{table}"),
            Err(problem) => println!("\n{path} cannot be read: {problem}"),
        }
    }
}

fn outcome(answer: &Value) -> String {
    let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
    if let Some(failures) = answer["batchItemFailures"].as_array() {
        let ids: Vec<_> = failures.iter().filter_map(|failure| failure["itemIdentifier"].as_str()).collect();
        return match &ids[..] {
            [] => "No message of the batch failed; SQS deletes them all.".to_owned(),
            ids => format!("These messages of the batch failed, and SQS keeps them: {}.", ids.join(", ")),
        };
    }
    match answer["outcome"].as_str() {
        Some("ignored") => format!("The event was ignored: {}. No Job was made.", text("reason")),
        Some("swept") => "The sweep is done; the timeline shows what it did.".to_owned(),
        Some("refused") => format!("The job was refused: {}. No Job was made.", text("reason")),
        Some(outcome) => format!("Job {} in namespace {}: {outcome}.", text("job"), text("namespace")),
        None => format!("The function answered {answer}."),
    }
}
