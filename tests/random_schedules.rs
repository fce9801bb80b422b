//! Random schedules: events, duplicates and batches among faults, rotations, freezes and new processes, and what holds in each.
//!
//! - After a success there is one Job with our label, in a definition and with a token that are not too old. An event that is not
//!   for us leaves nothing.
//! - A failure has a cause of its error type: the event, an object of the cluster, a fault that the lab met meanwhile, or a read
//!   that failed in the last 30 s.
//! - The second of two events is one request. Without a fault nothing takes time, and no event outlasts its deadline.
//! - After the faults and the longest age, every event for us succeeds, and the Secret holds the token of SSM.
//! - The agent token is in the Secret and nowhere else.
//!
//! The function runs in this process, on the clock of Tokio, which is paused: it advances only when all tasks wait. So a timeout of
//! ten seconds costs nothing, and a freeze is an advance. The sockets are real, and the lab runs on the same thread.
//!
//! `PROPTEST_CASES=5000 cargo test --test random_schedules` runs more than usual. Failures are kept beside this file and run first.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::File,
    io::stdout,
    os::fd::OwnedFd,
    time::Duration,
};

use agent_scheduler::{
    agent_token, aws, config::Config, deadline::Deadline, definitions, https::CertificateAuthority,
    kept::REFRESH_PAUSE, lambda, scheduler::Scheduler, text::chain,
};
use aws_credential_types::Credentials;
use base64::{Engine, prelude::BASE64_STANDARD};
use lab::{
    AGENT_TOKEN_PARAMETER, Actor, Certificate, Entry, Event, Fault, Lab, Parameter, When, event::batch,
    fault::ErrorAnswer,
};
use proptest::{
    prelude::*,
    sample::{Index, select},
    test_runner::{FileFailurePersistence, TestCaseResult},
};
use serde_json::{Value, json};
use tokio::{
    runtime::Builder,
    time::{Instant, advance, sleep},
};
use uuid::Uuid;

/// Some 20 s on two cores.
const CASES: u32 = 400;

const NAMESPACE: &str = "buildkite";
const SECRET: &str = "buildkite-agent-token";
const LABEL: &str = "buildkite.com/job-uuid";

/// The time of an event, as usual and after a late delivery.
const INVOCATION: Duration = Duration::from_secs(58);
const SHORT_INVOCATION: Duration = Duration::from_secs(3);
const START: Duration = Duration::from_secs(5);

/// The maximum ages of the kept token and of the kept definitions.
const TOKEN_AGE: Duration = agent_token::MAX_AGE;
const COPY_AGE: Duration = definitions::MAX_AGE;

#[derive(Clone, Debug)]
enum Step {
    /// A new event.
    Deliver(Payload, Duration),
    /// Two new events without a pause, in the definition of that name.
    DeliverTwo(&'static str),
    /// An earlier one.
    Again(Index, Duration),
    /// Earlier ones, from the failure queue.
    Batch(Vec<Index>),
    InjectIntoKubernetes(When, Fault, usize),
    InjectIntoAws(When, Fault, usize),
    ClearFaults,
    /// Another agent token in SSM.
    Rotate,
    RemoveSecret,
    /// Another field manager writes the Secret.
    TakeSecret,
    /// A definition of the cluster, valid or not.
    PutTemplate(&'static str, bool),
    RemoveTemplate(&'static str),
    /// As the TTL does.
    RemoveJob(Index),
    /// Another client creates a Job with the name of an earlier event, or of the next one.
    TakeName(Index),
    Freeze(Duration),
    CloseConnections,
    ColdStart,
}

/// What an event asks for.
#[derive(Clone, Copy, Debug)]
enum Payload {
    /// A job for us, in the definition of that name.
    ForUs(&'static str),
    OtherQueue,
    InvalidRule,
}

/// A `PodTemplate` of the cluster.
#[derive(Clone, Debug)]
struct Template {
    is_valid: bool,
    image: String,
}

fn step() -> impl Strategy<Value = Step> {
    use Payload::{ForUs, InvalidRule, OtherQueue};
    let definition = || select(vec!["default", "default", "node", "node", "fargate"]);
    let payload = prop_oneof![8 => definition().prop_map(ForUs), 1 => select(vec![OtherQueue, InvalidRule])];
    let time = || select(vec![INVOCATION, INVOCATION, INVOCATION, INVOCATION, SHORT_INVOCATION]);
    let seconds = select(vec![1, 10, 29, 31, 59, 61, 150, 299, 301, 3_600]);
    prop_oneof![
        8 => (payload, time()).prop_map(|(payload, time)| Step::Deliver(payload, time)),
        2 => definition().prop_map(Step::DeliverTwo),
        3 => (any::<Index>(), time()).prop_map(|(event, time)| Step::Again(event, time)),
        2 => prop::collection::vec(any::<Index>(), 0..4).prop_map(Step::Batch),
        6 => fault(),
        2 => Just(Step::ClearFaults),
        2 => Just(Step::Rotate),
        1 => Just(Step::RemoveSecret),
        1 => Just(Step::TakeSecret),
        2 => (definition(), prop::bool::weighted(0.7)).prop_map(|(name, is_valid)| Step::PutTemplate(name, is_valid)),
        1 => definition().prop_map(Step::RemoveTemplate),
        1 => any::<Index>().prop_map(Step::RemoveJob),
        1 => any::<Index>().prop_map(Step::TakeName),
        5 => seconds.prop_map(|seconds| Step::Freeze(Duration::from_secs(seconds))),
        2 => Just(Step::CloseConnections),
        2 => Just(Step::ColdStart),
    ]
}

fn fault() -> impl Strategy<Value = Step> {
    let delays = [700, 1_500, 4_000, 12_000, 600_000].map(Duration::from_millis);
    let delays: Vec<_> = delays.into_iter().flat_map(|time| [Fault::Delay(time), Fault::DelayAfter(time)]).collect();
    let broken =
        [Fault::Refuse, Fault::CutBefore, Fault::CutAfter, Fault::CutWithin, Fault::ResetBefore, Fault::ResetAfter];
    let unreadable = [Fault::Garbage, Fault::Empty];
    // The lab's AWS has no TLS here.
    let of_tls = [Fault::CutHandshake, Fault::Show(Certificate::Expired)];
    let throttled = [0, 1, 20, 3_600].map(|time| Fault::throttled(Duration::from_secs(time)));
    let transient = [401, 401, 404, 408, 500, 502, 503, 503, 503, 504].map(Fault::status);
    let answer = |code, reason, message: &str| {
        let message = Some(message.to_owned());
        Fault::Status(ErrorAnswer { code, reason: Some(reason), message, retry_after: None })
    };
    let lasting = [
        answer(409, "AlreadyExists", "it exists"),
        answer(409, "Conflict", "it was changed"),
        answer(422, "Invalid", "it is invalid"),
        // As RBAC writes it.
        answer(403, "Forbidden", "it is forbidden: User \"function\" cannot do it"),
    ];
    let of_kubernetes = [&delays[..], &broken, &broken, &of_tls, &throttled, &transient, &lasting].concat();
    let of_aws_alone = [Fault::access_denied(), Fault::throttling(), Fault::status(400), Fault::status(503)];
    let of_aws = [&delays[..], &broken, &unreadable, &of_aws_alone].concat();

    let (list, get) = (When::request("GET", "/podtemplates"), When::request("GET", "/jobs/"));
    let (apply, post) = (When::request("PATCH", "/secrets/"), When::request("POST", "/jobs"));
    let kubernetes = vec![When::any(), post.clone(), post, get.clone(), apply, list.clone()];
    let read = When::action("GetParameter");
    let aws = vec![read.clone(), read, When::action("DescribeCluster")];
    let times = || select(vec![1, 1, 2, 3, usize::MAX, usize::MAX]);
    let into_kubernetes = |(when, fault, times)| Step::InjectIntoKubernetes(when, fault, times);
    prop_oneof![
        6 => (select(kubernetes), select(of_kubernetes), times()).prop_map(into_kubernetes),
        // Of the answer to a write only the status counts, and these have that of a success.
        1 => (select(vec![list, get]), select(unreadable.to_vec()), times()).prop_map(into_kubernetes),
        3 => (select(aws), select(of_aws), times())
            .prop_map(|(when, fault, times)| Step::InjectIntoAws(when, fault, times)),
    ]
}

impl Payload {
    fn event(self, uuid: Uuid) -> String {
        let event = Event::scheduled().uuid(uuid);
        match self {
            Self::ForUs("default") => event,
            Self::ForUs(name) => event.rules(["queue=kubernetes", &format!("pod-definition={name}")]),
            Self::OtherQueue => event.rules(["queue=other"]),
            Self::InvalidRule => event.rules(["queue=kubernetes", "cpu=1", "cpu=2"]),
        }
        .into()
    }
}

/// Whether the request's verb or target contains that. Any request may be behind a connection.
fn is_about(entry: &Entry, part: &str) -> bool {
    entry.call().is_none_or(|call| call.verb.contains(part) || call.target.contains(part))
}

/// The error types that follow from a fault, or from a Secret that another field manager wrote.
fn error_types(entry: &Entry) -> &'static [&'static str] {
    if entry.actor != Actor::Kubernetes {
        return &["AgentTokenUnavailable", "ClusterUnavailable", "Timeout"];
    }
    match &entry.fault {
        Some(Fault::Delay(_) | Fault::DelayAfter(_)) => &["Timeout"],
        Some(Fault::Status(answer)) => match answer.code {
            401 => &["Unauthorized"],
            403 => &["Forbidden"],
            429 | 500.. => &["ClusterUnavailable"],
            _ => &["RejectedByApiServer"],
        },
        Some(_) => &["ClusterUnavailable"],
        None => &["RejectedByApiServer"],
    }
}

/// An outcome, or the type of an error; without them for a message of a batch.
type Answer = Result<Option<String>, Option<&'static str>>;

struct Delivered {
    uuid: Uuid,
    payload: Payload,
    event: String,
}

impl Delivered {
    fn job(&self) -> String {
        format!("buildkite-{}", self.uuid)
    }
}

/// What the lab recorded of an invocation that began then.
struct Seen {
    from: Instant,
    entries: Vec<Entry>,
}

impl Seen {
    fn is_quiet(&self) -> bool {
        self.entries.iter().all(|entry| entry.fault.is_none())
    }
}

struct Run {
    lab: Lab,
    /// Whether the cluster's endpoint is read from EKS.
    described: bool,
    scheduler: Scheduler,
    last: Seen,
    /// What the process met, and may fail of until then.
    causes: Vec<(Instant, Entry)>,
    events: Vec<Delivered>,
    /// Each agent token, with the time from which SSM held it.
    tokens: Vec<(String, Instant)>,
    /// When the Secret was removed or written by another client.
    touched: Option<Instant>,
    /// The template of a name from a time on, in this order. Before its first one a name has none.
    templates: Vec<(Instant, &'static str, Option<Template>)>,
    /// The Jobs of others.
    others: BTreeSet<String>,
    /// The uid of each Job of ours.
    jobs: BTreeMap<String, Value>,
    /// What the function answered.
    texts: Vec<String>,
}

/// Does the work, and returns what the lab recorded meanwhile. It ends in time, and at once without a fault.
async fn watch<T>(lab: &Lab, time: Duration, work: impl Future<Output = T>) -> Result<(T, Seen), TestCaseError> {
    let (from, recorded) = (Instant::now(), lab.timeline.entries().len());
    let done = work.await;
    let seen = Seen { from, entries: lab.timeline.entries().split_off(recorded) };
    let took = from.elapsed();
    // The clock counts milliseconds.
    prop_assert!(took <= time + Duration::from_millis(2), "{:?} of {:?}", took, time);
    prop_assert!(took.is_zero() || !seen.is_quiet(), "{:?} without a fault", took);
    Ok((done, seen))
}

impl Run {
    async fn new(described: bool) -> Result<Self, TestCaseError> {
        let lab = Lab::start().await;
        let now = Instant::now();
        let mut run = Self {
            scheduler: scheduler(&lab, described),
            tokens: vec![(lab.agent_token().to_owned(), now)],
            lab,
            described,
            last: Seen { from: now, entries: Vec::new() },
            causes: Vec::new(),
            events: Vec::new(),
            touched: None,
            templates: Vec::new(),
            others: BTreeSet::new(),
            jobs: BTreeMap::new(),
            texts: Vec::new(),
        };
        run.start().await?;
        Ok(run)
    }

    async fn take(&mut self, step: Step) -> TestCaseResult {
        let (now, count) = (Instant::now(), self.events.len());
        match step {
            Step::Deliver(payload, time) => drop(self.deliver_new(payload, time).await?),
            Step::DeliverTwo(name) => self.deliver_two(name).await?,
            // There is no earlier event.
            Step::Again(..) | Step::Batch(_) | Step::RemoveJob(_) if count == 0 => {}
            Step::Again(index, time) => drop(self.deliver(index.index(count), time).await?),
            Step::Batch(indices) => {
                let events: Vec<_> = indices.into_iter().map(|index| index.index(count)).collect();
                self.deliver_batch(&events).await?;
            }
            Step::InjectIntoKubernetes(when, fault, times) => self.lab.kubernetes.inject(when, fault, times),
            Step::InjectIntoAws(when, fault, times) => self.lab.aws.inject(when, fault, times),
            Step::ClearFaults => self.clear_faults(),
            Step::Rotate => self.rotate(),
            Step::RemoveSecret => self.remove_secret(),
            Step::TakeSecret => {
                self.lab.kubernetes.put_secret_as("another", NAMESPACE, SECRET, "token", "theirs");
                self.touched = Some(now);
            }
            Step::PutTemplate(name, is_valid) => {
                let image = format!("theirs:{}", self.templates.len());
                let policy = if is_valid { "Never" } else { "Always" };
                let spec = json!({"restartPolicy": policy, "containers": [{"name": "agent", "image": image}]});
                self.lab.kubernetes.put_pod_template(json!({"metadata": {"name": name}, "template": {"spec": spec}}));
                self.templates.push((now, name, Some(Template { is_valid, image })));
            }
            Step::RemoveTemplate(name) => {
                self.lab.kubernetes.remove_pod_template(NAMESPACE, name);
                self.templates.push((now, name, None));
            }
            Step::RemoveJob(index) => self.remove_job(&self.events[index.index(count)].job()),
            Step::TakeName(index) => {
                let name = format!("buildkite-{}", uuid(index.index(count + 1)));
                if self.lab.kubernetes.job(&name).is_none() {
                    self.lab.kubernetes.put_job(json!({"metadata": {"name": name, "labels": {LABEL: "theirs"}}}));
                    self.others.insert(name);
                }
            }
            Step::Freeze(age) => advance(age).await,
            Step::CloseConnections => {
                self.lab.kubernetes.close_connections();
                self.lab.aws.close_connections();
            }
            Step::ColdStart => {
                self.scheduler = scheduler(&self.lab, self.described);
                self.causes.clear();
                self.start().await?;
            }
        }
        // Until no task has anything to do: both ends know that a socket was closed.
        sleep(Duration::from_millis(1)).await;
        self.check_jobs()
    }

    /// Without faults and past all ages, every event for us succeeds.
    async fn end(&mut self) -> TestCaseResult {
        self.clear_faults();
        self.rotate();
        self.remove_secret();
        for name in self.others.clone() {
            self.remove_job(&name);
        }
        advance(TOKEN_AGE.max(COPY_AGE).max(REFRESH_PAUSE)).await;
        self.deliver_two("fargate").await?;
        for index in 0..self.events.len() {
            let Payload::ForUs(name) = self.events[index].payload else { continue };
            let answer = self.deliver(index, INVOCATION).await?;
            let template = self.templates.iter().rfind(|(_, of, _)| *of == name);
            let template = template.and_then(|(.., template)| template.as_ref());
            let runs = template.map_or(name != "node", |template| template.is_valid);
            prop_assert_eq!(answer.is_ok(), runs, "event {} at the end: {:?}", index, answer);
            if runs {
                let (token, _) = self.tokens.last().unwrap();
                prop_assert_eq!(self.secret(), Some(json!(BASE64_STANDARD.encode(token))), "the Secret at the end");
            }
        }
        self.check_jobs()?;
        self.check_secrecy()
    }

    fn clear_faults(&self) {
        self.lab.kubernetes.clear_faults();
        self.lab.aws.clear_faults();
    }

    fn rotate(&mut self) {
        let token = format!("bkct_{}", self.tokens.len());
        self.lab.aws.put_parameter(AGENT_TOKEN_PARAMETER, Parameter::secure_string(&token));
        self.tokens.push((token, Instant::now()));
    }

    fn remove_secret(&mut self) {
        self.lab.kubernetes.remove_secret(NAMESPACE, SECRET);
        self.touched = Some(Instant::now());
    }

    fn remove_job(&mut self, name: &str) {
        self.lab.kubernetes.remove_job(name);
        self.others.remove(name);
        self.jobs.remove(name);
    }

    async fn start(&mut self) -> TestCaseResult {
        let (started, seen) = watch(&self.lab, START, self.scheduler.start(Deadline::after(START))).await?;
        self.remember(seen);
        if let Err(error) = started {
            self.texts.push(chain(&error));
            let mut types = self.causes.iter().flat_map(|(_, entry)| error_types(entry));
            prop_assert!(types.any(|cause| *cause == error.kind()), "{}", chain(&error));
        }
        Ok(())
    }

    async fn deliver_new(&mut self, payload: Payload, time: Duration) -> Result<Answer, TestCaseError> {
        let uuid = uuid(self.events.len());
        self.events.push(Delivered { uuid, payload, event: payload.event(uuid) });
        self.deliver(self.events.len() - 1, time).await
    }

    /// Nothing is due for the second event.
    async fn deliver_two(&mut self, name: &'static str) -> TestCaseResult {
        let created = Ok(Some("created".to_owned()));
        let before = self.deliver_new(Payload::ForUs(name), INVOCATION).await? == created && self.last.is_quiet();
        let after = self.deliver_new(Payload::ForUs(name), INVOCATION).await? == created && self.last.is_quiet();
        prop_assert!(!before || !after || self.last.entries.len() == 1, "{:?}", self.last.entries);
        Ok(())
    }

    async fn deliver(&mut self, index: usize, time: Duration) -> Result<Answer, TestCaseError> {
        let before = self.job_names();
        let work = lambda::handle(&self.scheduler, &self.events[index].event, Deadline::after(time));
        let (answer, seen) = watch(&self.lab, time, work).await?;
        self.remember(seen);
        let answer = match answer {
            Ok(answer) => {
                self.texts.push(format!("{answer:?}"));
                Ok(json!(answer)["outcome"].as_str().map(str::to_owned))
            }
            Err(error) => {
                self.texts.push(format!("{}{error:?}", chain(&error)));
                Err(Some(error.kind()))
            }
        };
        self.check(index, &answer, &before)?;
        Ok(answer)
    }

    async fn deliver_batch(&mut self, events: &[usize]) -> TestCaseResult {
        let before = self.job_names();
        let bodies = events.iter().enumerate().map(|(id, index)| {
            let event = &self.events[*index].event;
            // Lambda's record of a failure, or the event as EventBridge sends it.
            (id, if id % 2 == 0 { format!(r#"{{"requestPayload":{event}}}"#) } else { event.clone() })
        });
        let payload = batch(bodies);
        let work = lambda::handle(&self.scheduler, &payload, Deadline::after(INVOCATION));
        let (answer, seen) = watch(&self.lab, INVOCATION, work).await?;
        self.remember(seen);
        let answer = json!(answer.map_err(|error| TestCaseError::fail(chain(&error)))?);
        self.texts.push(answer.to_string());
        let failures = answer["batchItemFailures"].as_array().unwrap();
        for (id, index) in events.iter().enumerate() {
            let has_failed = failures.iter().any(|failure| failure["itemIdentifier"] == *id.to_string());
            self.check(*index, &if has_failed { Err(None) } else { Ok(None) }, &before)?;
        }
        Ok(())
    }

    /// Keeps what is still a cause, and adds what the process met.
    fn remember(&mut self, seen: Seen) {
        let now = Instant::now();
        self.causes.retain(|(until, _)| *until >= seen.from);
        for entry in &seen.entries {
            let is_conflict = entry.status == Some(409) && is_about(entry, "/secrets/");
            if entry.fault.is_some() || is_conflict {
                // A read that failed is not repeated at once.
                let is_read = entry.call().is_none_or(|call| !call.target.contains("/jobs"));
                self.causes.push((if is_read { now + REFRESH_PAUSE } else { now }, entry.clone()));
            }
        }
        self.last = seen;
    }

    fn has_failed(&self, part: &str) -> bool {
        self.causes.iter().any(|(_, entry)| is_about(entry, part))
    }

    fn job_names(&self) -> BTreeSet<String> {
        self.lab.kubernetes.jobs().iter().map(|job| job["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    fn check(&self, index: usize, answer: &Answer, before: &BTreeSet<String>) -> TestCaseResult {
        let event = &self.events[index];
        let is_right = match (event.payload, answer) {
            (Payload::ForUs(name), Ok(outcome)) => {
                return self.check_success(event, name, outcome.as_deref(), before.contains(&event.job()));
            }
            (Payload::ForUs(name), Err(error)) => {
                let causes = self.causes(event, name);
                error.map_or(!causes.is_empty(), |error| causes.contains(error))
            }
            (Payload::OtherQueue, Ok(outcome)) => outcome.as_deref().is_none_or(|outcome| outcome == "ignored"),
            // The rules are compared with the definition, once that is known.
            (Payload::InvalidRule, Err(error)) => error
                .is_none_or(|error| error == "InvalidAgentQueryRule" || self.causes(event, "default").contains(error)),
            _ => false,
        };
        prop_assert!(is_right, "event {}, {:?}: {:?}", index, event.payload, answer);
        Ok(())
    }

    fn check_success(&self, event: &Delivered, name: &str, outcome: Option<&str>, existed: bool) -> TestCaseResult {
        let job = self.lab.kubernetes.job(&event.job());
        prop_assert!(job.is_some(), "{:?} without a Job", outcome);
        let job = job.unwrap();
        prop_assert_eq!(&job["metadata"]["labels"][LABEL], &json!(event.uuid), "{:?} with the Job of others", outcome);
        let is_right = match outcome {
            Some("created") => !existed,
            Some("already-exists") => existed || !self.last.is_quiet(),
            Some(_) => false,
            None => true,
        };
        prop_assert!(is_right, "{:?} of a Job that existed: {}", outcome, existed);
        if existed {
            return Ok(());
        }
        let image = job["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap();
        let is_right = |definition: Option<&Template>| match definition {
            Some(template) => template.is_valid && image == template.image,
            None => name != "node" && !image.starts_with("theirs:"),
        };
        let definitions = self.definitions(name);
        prop_assert!(definitions.iter().copied().any(is_right), "{} is not of {:?}", image, definitions);
        self.check_token()
    }

    /// The Secret holds a token that SSM held lately: one is kept for its age before it is applied, and then in the Secret.
    fn check_token(&self) -> TestCaseResult {
        let age = |at: Instant| self.last.from.saturating_duration_since(at);
        let was_touched = self.touched.is_some_and(|at| age(at) < TOKEN_AGE);
        if was_touched || self.has_failed("/secrets/") || self.has_failed("GetParameter") {
            return Ok(());
        }
        let secret = self.secret();
        let place = self.tokens.iter().position(|(token, _)| secret == Some(json!(BASE64_STANDARD.encode(token))));
        prop_assert!(place.is_some(), "the Secret holds none of the tokens");
        let replaced = self.tokens.get(place.unwrap() + 1).map(|(_, at)| age(*at));
        prop_assert!(replaced.is_none_or(|age| age < 2 * TOKEN_AGE), "replaced {:?} ago", replaced);
        Ok(())
    }

    fn secret(&self) -> Option<Value> {
        self.lab.kubernetes.secret(NAMESPACE, SECRET).map(|secret| secret["data"]["token"].clone())
    }

    /// What the name may lead to: what the cluster held in the last minute, and all from before if a read failed.
    fn definitions(&self, name: &str) -> Vec<Option<&Template>> {
        let (mut held, mut last) = (Vec::new(), None);
        for (at, _, template) in self.templates.iter().filter(|(_, of, _)| *of == name) {
            if self.last.from.saturating_duration_since(*at) < COPY_AGE || self.has_failed("/podtemplates") {
                held.push(last);
            }
            last = template.as_ref();
        }
        held.push(last);
        held
    }

    /// The error types that an event for us may have.
    fn causes(&self, event: &Delivered, name: &str) -> BTreeSet<&'static str> {
        let mut types: BTreeSet<_> = self.causes.iter().flat_map(|(_, entry)| error_types(entry)).copied().collect();
        for definition in self.definitions(name) {
            match definition {
                Some(Template { is_valid: false, .. }) => types.insert("InvalidPodDefinition"),
                None if name == "node" => types.insert("UnknownPodDefinition"),
                _ => false,
            };
        }
        if self.others.contains(&event.job()) {
            types.insert("RejectedByApiServer");
        }
        types
    }

    /// Every Job belongs to one event for us, and stays the same Job.
    fn check_jobs(&mut self) -> TestCaseResult {
        let mut there = BTreeMap::new();
        for job in self.lab.kubernetes.jobs() {
            let metadata = &job["metadata"];
            let name = metadata["name"].as_str().unwrap();
            if self.others.contains(name) {
                continue;
            }
            let event = self.events.iter().find(|event| event.job() == name);
            let is_ours = |event: &Delivered| {
                matches!(event.payload, Payload::ForUs(_)) && metadata["labels"][LABEL] == json!(event.uuid)
            };
            prop_assert!(event.is_some_and(is_ours), "a Job without an event: {}", metadata);
            there.insert(name.to_owned(), metadata["uid"].clone());
        }
        for (name, uid) in &self.jobs {
            prop_assert_eq!(there.get(name), Some(uid), "{} is another Job than before", name);
        }
        self.jobs = there;
        Ok(())
    }

    /// Each agent token begins with `bkct_`.
    fn check_secrecy(&self) -> TestCaseResult {
        let jobs = self.lab.kubernetes.jobs().into_iter().map(|job| job.to_string());
        let requests = self.lab.kubernetes.requests().into_iter().filter(|request| request.method != "PATCH");
        let requests = requests.map(|request| request.path + &request.query + &request.body);
        for text in self.texts.iter().cloned().chain(jobs).chain(requests) {
            prop_assert!(!text.contains("bkct_") && !text.contains("YmtjdF"), "the agent token is in: {}", text);
        }
        Ok(())
    }
}

fn uuid(index: usize) -> Uuid {
    Uuid::from_u128(index as u128)
}

fn scheduler(lab: &Lab, described: bool) -> Scheduler {
    let mut variables = lab.variables();
    variables.insert("AWS_LAMBDA_FUNCTION_NAME".to_owned(), "agent-scheduler".to_owned());
    // No job here is known to Buildkite.
    variables.insert("STACKS_API".to_owned(), "false".to_owned());
    if described {
        variables.remove("KUBERNETES_API_SERVER_ENDPOINT");
        variables.remove("KUBERNETES_CERTIFICATE_AUTHORITY_DATA");
    }
    let config = Config::read(|name| variables.get(name).cloned()).unwrap();
    let keys = lab.credentials();
    let (id, secret, session) = (&keys.access_key_id, &keys.secret_access_key, &keys.session_token);
    let credentials = Credentials::new(id, secret, Some(session.clone()), None, "lab");
    let roots = CertificateAuthority(Vec::new());
    let var = |name: &str| variables.get(name).cloned();
    let sdk = aws::sdk_config(&config.region, credentials.clone(), roots.clone(), var).unwrap();
    Scheduler::new(config, credentials, &sdk, roots)
}

fn run(described: bool, steps: Vec<Step>) -> TestCaseResult {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut run = Run::new(described).await?;
        let done = async {
            for step in steps {
                run.take(step).await?;
            }
            run.end().await
        };
        done.await.map_err(|error| TestCaseError::fail(format!("{error}\n{}", run.lab.timeline)))
    })
}

/// Keeps the lines of metrics out of the output of the tests.
struct NoOutput(OwnedFd);

impl NoOutput {
    fn new() -> Self {
        let kept = nix::unistd::dup(stdout()).unwrap();
        nix::unistd::dup2_stdout(File::create("/dev/null").unwrap()).unwrap();
        Self(kept)
    }
}

impl Drop for NoOutput {
    fn drop(&mut self) {
        nix::unistd::dup2_stdout(&self.0).unwrap();
    }
}

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: if env::var_os("PROPTEST_CASES").is_some() { default.cases } else { CASES },
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        max_shrink_iters: 2_000,
        ..default
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn an_event_has_its_job_or_fails_with_a_cause(described: bool, steps in prop::collection::vec(step(), 1..30)) {
        let _quiet = NoOutput::new();
        run(described, steps)?;
    }
}
