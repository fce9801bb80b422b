//! Random schedules: events, duplicates and batches among faults, rotations, freezes and new processes, against a model of what
//! must come of them.
//!
//! The function runs in this process, on the clock of Tokio, which is paused: it moves on only when everybody waits for it, so
//! that a time-out of ten seconds costs nothing, and a freeze is a leap. The sockets are real. The lab runs on the same thread, and
//! so is a part of everybody.
//!
//! `PROPTEST_CASES=5000 cargo test --test random_schedules` runs more than usual. What was found is kept beside this file, and is
//! tried again first.

#![expect(clippy::unwrap_used, reason = "a test says so by ending")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::File,
    future::poll_fn,
    io::stdout,
    os::fd::OwnedFd,
    pin::pin,
    time::Duration,
};

use agent_scheduler::{
    aws,
    config::Config,
    deadline::Deadline,
    lambda::{self, Answer},
    scheduler::Scheduler,
    text::chain,
};
use aws_credential_types::Credentials;
use base64::{Engine, prelude::BASE64_STANDARD};
use lab::{AGENT_TOKEN_PARAMETER, Actor, Certificate, Entry, Fault, Lab, Parameter, When, fault::ErrorAnswer};
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

const SCHEDULED: &str = include_str!("../events/job-scheduled.json");
const NAMESPACE: &str = "buildkite";
const SECRET: &str = "buildkite-agent-token";
const LABEL: &str = "buildkite.com/job-uuid";

/// What an event has, and less.
const INVOCATION: Duration = Duration::from_secs(58);
const SHORT_INVOCATION: Duration = Duration::from_secs(3);
const START: Duration = Duration::from_secs(5);

/// How old what is known of the agent token may be, and the copy of the pod definitions.
const TOKEN_AGE: Duration = Duration::from_mins(5);
const COPY_AGE: Duration = Duration::from_mins(1);
/// How long the old one serves on when it could not be refreshed.
const AGAIN: Duration = Duration::from_secs(30);

/// The longest pause before the second try; it doubles with each. And the longest of all.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_secs(5);
/// With less than this nobody tries again.
const LEAST: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
struct Schedule {
    /// Whether the cluster's endpoint is asked of EKS.
    described: bool,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    /// A new event.
    Deliver(Kind, Duration),
    /// An earlier one, once more.
    Again(Index, Duration),
    /// Earlier ones, out of the failure queue.
    Batch(Vec<Index>),
    Misbehave(Call, Fault, usize),
    Behave,
    /// Another agent token in SSM.
    Rotate,
    RemoveSecret,
    /// The Secret is written by somebody else.
    TakeSecret,
    PutTemplate(&'static str, Form),
    RemoveTemplate(&'static str),
    /// As the TTL does.
    RemoveJob(Index),
    /// Somebody else makes a Job of the name that an earlier event would give, or the next one.
    TakeName(Index),
    Freeze {
        age: Duration,
        cut: bool,
    },
    ColdStart,
}

/// What an event asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A job for us, in the pod definition of that name.
    ForUs(&'static str),
    BadRule,
    OtherQueue,
    UnservedTag,
    NoScript,
    OtherType,
    NoEnvelope,
    NoUuid,
}

/// How a `PodTemplate` was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Good,
    BringsToken,
    Broken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Call {
    /// Of the API server.
    Anything,
    PostJob,
    GetJob,
    ApplySecret,
    ListTemplates,
    GetParameter,
    DescribeCluster,
}

fn schedule() -> impl Strategy<Value = Schedule> {
    (any::<bool>(), prop::collection::vec(step(), 1..30)).prop_map(|(described, steps)| Schedule { described, steps })
}

fn step() -> impl Strategy<Value = Step> {
    let definition = || select(vec!["default", "node"]);
    let time = || prop_oneof![4 => Just(INVOCATION), 1 => Just(SHORT_INVOCATION)];
    let form = select(vec![Form::Good, Form::Good, Form::BringsToken, Form::Broken]);
    prop_oneof![
        8 => (kind(), time()).prop_map(|(kind, time)| Step::Deliver(kind, time)),
        3 => (any::<Index>(), time()).prop_map(|(event, time)| Step::Again(event, time)),
        2 => prop::collection::vec(any::<Index>(), 0..4).prop_map(Step::Batch),
        6 => misbehaviour(),
        2 => Just(Step::Behave),
        2 => Just(Step::Rotate),
        1 => Just(Step::RemoveSecret),
        1 => Just(Step::TakeSecret),
        2 => (definition(), form).prop_map(|(name, form)| Step::PutTemplate(name, form)),
        1 => definition().prop_map(Step::RemoveTemplate),
        1 => any::<Index>().prop_map(Step::RemoveJob),
        1 => any::<Index>().prop_map(Step::TakeName),
        5 => (select(vec![1, 10, 29, 31, 59, 61, 150, 299, 301, 3_600]), any::<bool>())
            .prop_map(|(seconds, cut)| Step::Freeze { age: Duration::from_secs(seconds), cut }),
        2 => Just(Step::ColdStart),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => Just(Kind::ForUs("default")),
        1 => Just(Kind::ForUs("fargate")),
        3 => Just(Kind::ForUs("node")),
        1 => select(vec![
            Kind::BadRule,
            Kind::OtherQueue,
            Kind::UnservedTag,
            Kind::NoScript,
            Kind::OtherType,
            Kind::NoEnvelope,
            Kind::NoUuid,
        ]),
    ]
}

fn misbehaviour() -> impl Strategy<Value = Step> {
    let kubernetes = select(vec![
        Call::Anything,
        Call::PostJob,
        Call::PostJob,
        Call::GetJob,
        Call::ApplySecret,
        Call::ListTemplates,
    ]);
    let aws = select(vec![Call::GetParameter, Call::GetParameter, Call::DescribeCluster]);
    let wait = || {
        select(vec![700, 1_500, 4_000, 12_000, 600_000]).prop_flat_map(|time| {
            let time = Duration::from_millis(time);
            select(vec![Fault::Delay(time), Fault::DelayAfter(time)])
        })
    };
    let broken = vec![
        Fault::Refuse,
        Fault::CutBefore,
        Fault::CutAfter,
        Fault::CutWithin,
        Fault::ResetBefore,
        Fault::ResetAfter,
        Fault::Garbage,
        Fault::Empty,
    ];
    // There is none before SSM and EKS.
    let of_tls = vec![Fault::CutHandshake, Fault::Show(Certificate::Expired)];
    let status = |codes: &[u16]| select(codes.to_vec()).prop_map(Fault::status);
    let conflict =
        |reason| Fault::Status(ErrorAnswer { code: 409, reason: Some(reason), message: None, retry_after: None });
    let throttled = select(vec![0, 1, 20, 3_600]).prop_map(|time| Fault::throttled(Duration::from_secs(time)));
    // As RBAC says it.
    let forbidden = Fault::Status(ErrorAnswer {
        code: 403,
        reason: Some("Forbidden"),
        message: Some("it is forbidden: User \"function\" cannot do it".to_owned()),
        retry_after: None,
    });
    let said = select(vec![
        conflict("AlreadyExists"),
        conflict("Conflict"),
        Fault::invalid("not like this"),
        forbidden.clone(),
        forbidden,
    ]);
    let of_kubernetes = prop_oneof![
        2 => wait(),
        4 => select([&*broken, &*of_tls].concat()),
        3 => status(&[401, 401, 404, 408, 500, 502, 503, 503, 503, 504]),
        1 => throttled,
        1 => said,
    ];
    let of_aws = prop_oneof![
        wait(),
        select(broken),
        status(&[400, 403, 500, 503]),
        select(vec![Fault::access_denied(), Fault::throttling()])
    ];
    let times = || select(vec![1, 1, 2, 3, usize::MAX, usize::MAX]);
    prop_oneof![
        2 => (kubernetes, of_kubernetes, times()).prop_map(|(call, fault, times)| Step::Misbehave(call, fault, times)),
        1 => (aws, of_aws, times()).prop_map(|(call, fault, times)| Step::Misbehave(call, fault, times)),
    ]
}

type Templates = BTreeMap<&'static str, Template>;

#[derive(Clone, Debug)]
struct Template {
    form: Form,
    image: String,
}

/// An event, and what must be of it.
struct Event {
    uuid: Uuid,
    kind: Kind,
    payload: String,
    /// The last delivery failed.
    failed: bool,
}

/// What a definition's name leads to.
enum Definition {
    /// One that was compiled in.
    Compiled,
    OfCluster {
        image: String,
        brings_token: bool,
    },
    /// The kind of the failure.
    None(&'static str),
}

/// What one process may know, by what the lab answered it.
#[derive(Clone, Default)]
struct Knowledge {
    copy: Option<(Instant, Templates)>,
    list_failed: Option<Instant>,
    /// How a look at an unknown name may fail as one before did, each until then.
    look_failed: Vec<(&'static str, Instant)>,
    delivered: Option<Instant>,
    delivery_failed: Option<Instant>,
    /// A delivery may have been given up on its way, by an event that turned out not to need it.
    given_up: bool,
    /// What succeeded for sure: what came of it serves on if the same fails later.
    succeeded: BTreeSet<Call>,
}

/// What the lab did wrong on purpose, and what it may make of an event that is as it should be.
#[derive(Debug)]
struct Trouble {
    call: Call,
    /// How an event may fail of it.
    kinds: &'static [&'static str],
    /// It helps to ask again.
    passes: bool,
}

/// What came of one delivery.
enum Result {
    Created,
    AlreadyExists,
    Ignored,
    /// A message of a batch that need not come again.
    Served,
    Failed(Option<(&'static str, String)>),
}

/// What the lab saw during a step.
struct Seen {
    from: Instant,
    /// How long there was.
    time: Duration,
    entries: Vec<(Instant, Entry)>,
}

struct World {
    lab: Lab,
    described: bool,
    scheduler: Scheduler,
    knowledge: Knowledge,
    events: Vec<Event>,
    /// Each agent token with the time from which SSM held it.
    tokens: Vec<(String, Instant)>,
    /// When somebody else removed or wrote the Secret.
    touched: Option<Instant>,
    templates: Templates,
    images: usize,
    /// The Jobs that others made.
    others: BTreeSet<String>,
    /// The uid of each Job that is there.
    jobs: BTreeMap<String, Value>,
}

impl Kind {
    fn payload(self, uuid: Uuid) -> String {
        let mut event: Value = serde_json::from_str(SCHEDULED).unwrap();
        let job = &mut event["detail"]["job"];
        job["uuid"] = json!(uuid);
        match self {
            Self::ForUs("default") => {}
            Self::ForUs(name) => job["agent_query_rules"] = json!(["queue=default", format!("pod-definition={name}")]),
            Self::BadRule => job["agent_query_rules"] = json!(["queue=default", "cpu=1", "cpu=2"]),
            Self::OtherQueue => job["agent_query_rules"] = json!(["queue=other"]),
            Self::UnservedTag => job["agent_query_rules"] = json!(["queue=default", "os=plan9"]),
            Self::NoScript => job["type"] = json!("manual"),
            Self::OtherType => event["detail-type"] = json!("Job Finished"),
            Self::NoEnvelope => return json!({"uuid": uuid}).to_string(),
            Self::NoUuid => job["uuid"] = Value::Null,
        }
        event.to_string()
    }

    fn is_for_others(self) -> bool {
        matches!(self, Self::OtherQueue | Self::UnservedTag | Self::NoScript | Self::OtherType)
    }

    /// How it must fail, whatever the world is like.
    fn failure(self) -> Option<&'static str> {
        match self {
            Self::BadRule => Some("InvalidAgentQueryRule"),
            Self::NoEnvelope | Self::NoUuid => Some("InvalidEvent"),
            _ => None,
        }
    }
}

impl Call {
    /// None for a connection.
    fn of(entry: &Entry) -> Option<Self> {
        let calls = [
            Self::PostJob,
            Self::GetJob,
            Self::ApplySecret,
            Self::ListTemplates,
            Self::GetParameter,
            Self::DescribeCluster,
        ];
        let asked = entry.call()?;
        calls.into_iter().find(|call| call.when().matches(asked))
    }

    fn when(self) -> When {
        match self {
            Self::Anything => When::any(),
            Self::PostJob => When::request("POST", "/jobs"),
            Self::GetJob => When::request("GET", "/jobs/"),
            Self::ApplySecret => When::path("/secrets/"),
            Self::ListTemplates => When::path("/podtemplates"),
            Self::GetParameter => When::action("GetParameter"),
            Self::DescribeCluster => When::action("DescribeCluster"),
        }
    }
}

impl Event {
    fn job(&self) -> String {
        format!("buildkite-{}", self.uuid)
    }
}

impl Definition {
    fn of(name: &str, templates: &Templates) -> Self {
        match templates.get(name) {
            Some(Template { form: Form::Broken, .. }) => Self::None("InvalidPodDefinition"),
            Some(Template { form, image }) => {
                Self::OfCluster { image: image.clone(), brings_token: *form == Form::BringsToken }
            }
            None if name == "node" => Self::None("UnknownPodDefinition"),
            None => Self::Compiled,
        }
    }

    fn needs_token(&self) -> bool {
        !matches!(self, Self::OfCluster { brings_token: true, .. } | Self::None(_))
    }
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let line = |(at, entry): &(Instant, Entry)| format!("{:?} {entry}", *at - self.from);
        formatter.debug_list().entries(self.entries.iter().map(line)).finish()
    }
}

impl Seen {
    fn count(&self, actors: &[Actor]) -> usize {
        let is_request = |entry: &Entry| matches!(entry.kind, lab::Kind::Called(_));
        self.entries.iter().filter(|(_, entry)| actors.contains(&entry.actor) && is_request(entry)).count()
    }

    /// Whether nobody misbehaved.
    fn is_quiet(&self) -> bool {
        self.entries.iter().all(|(_, entry)| entry.fault.is_none())
    }

    fn has(&self, call: Call, is: impl Fn(&Entry) -> bool) -> bool {
        self.entries.iter().any(|(_, entry)| Call::of(entry) == Some(call) && is(entry))
    }

    fn listed(&self) -> bool {
        self.has(Call::ListTemplates, |entry| entry.status == Some(200) && entry.fault.is_none())
    }

    /// Whether the Secret was found to be somebody else's.
    fn conflict(&self) -> bool {
        self.has(Call::ApplySecret, |entry| entry.status == Some(409))
    }

    /// Whether the lab gave garbage with a code of success for the Secret: that it is somebody else's nobody could know.
    fn applied_unread(&self) -> bool {
        self.has(Call::ApplySecret, |entry| entry.fault.is_some() && matches!(entry.status, Some(200..=299)))
    }

    /// What is left of the time.
    fn left(&self) -> Duration {
        self.time.saturating_sub(self.from.elapsed())
    }
}

impl Trouble {
    fn of(entry: &Entry) -> Vec<Self> {
        let Some(fault) = &entry.fault else { return Vec::new() };
        let of_aws = matches!(entry.actor, Actor::Ssm | Actor::Eks);
        let calls = match Call::of(entry) {
            Some(call) => vec![call],
            // Whatever would have been asked.
            None if of_aws => vec![Call::GetParameter, Call::DescribeCluster],
            None => vec![Call::Anything],
        };
        let troubles = calls.into_iter().filter_map(|call| {
            let (kinds, passes) =
                if of_aws { Self::of_aws(call, fault) } else { Self::of_kubernetes(call, fault, entry.status)? };
            Some(Self { call, kinds, passes })
        });
        troubles.collect()
    }

    fn of_kubernetes(call: Call, fault: &Fault, status: Option<u16>) -> Option<(&'static [&'static str], bool)> {
        if waits(fault) {
            return Some((&["Timeout"], true));
        }
        Some(match status {
            // What cannot be read. Of the answer to a request that makes something, only the status counts.
            Some(200..=299) if matches!(call, Call::PostJob | Call::ApplySecret) => return None,
            Some(200..=299) => (&["ClusterUnavailable"], false),
            Some(401) => (&["Unauthorized"], true),
            Some(403) => (&["Forbidden"], false),
            Some(429 | 500..) => (&["ClusterUnavailable"], true),
            Some(_) => (&["RejectedByApiServer"], false),
            None => (&["ClusterUnavailable"], !matches!(fault, Fault::Show(_))),
        })
    }

    fn of_aws(call: Call, fault: &Fault) -> (&'static [&'static str], bool) {
        let waited = waits(fault);
        let kinds: &[_] = match call {
            // So that there was no time for the others.
            Call::DescribeCluster if waited => &["ClusterUnavailable", "AgentTokenUnavailable", "Timeout"],
            Call::DescribeCluster => &["ClusterUnavailable"],
            _ if waited => &["AgentTokenUnavailable", "Timeout"],
            _ => &["AgentTokenUnavailable"],
        };
        let passes = match fault {
            Fault::Status(answer) => answer.code >= 500 || answer.reason == Some("ThrottlingException"),
            Fault::Garbage | Fault::Empty => false,
            _ => true,
        };
        (kinds, passes)
    }
}

fn waits(fault: &Fault) -> bool {
    matches!(fault, Fault::Delay(_) | Fault::DelayAfter(_))
}

/// Whether a look at the pod definitions may have failed of it; over a connection anything would have been asked.
fn may_fail_list(entry: &Entry) -> bool {
    entry.fault.is_some() && matches!(Call::of(entry), Some(Call::ListTemplates) | None)
}

impl Knowledge {
    fn learn(&mut self, seen: &Seen, templates: &Templates, now: Instant) {
        let mut kinds = BTreeSet::new();
        for (at, entry) in &seen.entries {
            let (call, failed) = (Call::of(entry), entry.fault.is_some());
            if entry.actor == Actor::Kubernetes {
                self.succeeded.insert(Call::DescribeCluster);
            }
            if may_fail_list(entry) {
                self.list_failed = Some(now);
                kinds.extend(Trouble::of(entry).iter().flat_map(|trouble| trouble.kinds));
            } else if call == Some(Call::ListTemplates) {
                self.copy = Some((*at, templates.clone()));
                self.list_failed = None;
                kinds.clear();
            }
            if call == Some(Call::ApplySecret) && matches!(entry.status, Some(200 | 201)) {
                self.delivered = Some(*at);
                self.delivery_failed = None;
                self.given_up = false;
            }
            if failed && matches!(call, Some(Call::ApplySecret | Call::GetParameter) | None) {
                self.delivery_failed = Some(now);
            }
        }
        if seen.left() < LEAST {
            kinds.insert("Timeout");
        }
        self.look_failed.extend(kinds.into_iter().map(|kind| (kind, now + AGAIN)));
    }

    /// Whether nothing of the cluster's is known that goes by that name.
    fn lacks(&self, name: &str) -> bool {
        name == "node" && self.copy.as_ref().is_none_or(|(_, templates)| !templates.contains_key(name))
    }

    /// Nothing is due, and nothing went wrong that might be tried again.
    fn is_fresh(&self, now: Instant) -> bool {
        !self.given_up
            && self.list_failed.is_none()
            && self.delivery_failed.is_none()
            && self.copy.as_ref().is_some_and(|(at, _)| now - *at < COPY_AGE)
            && self.delivered.is_some_and(|at| now - at < TOKEN_AGE)
    }
}

impl World {
    async fn new(described: bool) -> std::result::Result<Self, TestCaseError> {
        let lab = Lab::start().await;
        let tokens = vec![(lab.agent_token().to_owned(), Instant::now())];
        let scheduler = scheduler(&lab, described);
        let mut world = Self {
            lab,
            described,
            scheduler,
            knowledge: Knowledge::default(),
            events: Vec::new(),
            tokens,
            touched: None,
            templates: Templates::new(),
            images: 0,
            others: BTreeSet::new(),
            jobs: BTreeMap::new(),
        };
        world.start().await?;
        Ok(world)
    }

    async fn take(&mut self, step: &Step) -> TestCaseResult {
        let now = Instant::now();
        let known = |index: &Index| (!self.events.is_empty()).then(|| index.index(self.events.len()));
        match step {
            Step::Deliver(kind, time) => {
                let event = self.announce(*kind);
                self.deliver(event, *time).await?;
            }
            Step::Again(index, time) => {
                if let Some(event) = known(index) {
                    self.deliver(event, *time).await?;
                }
            }
            Step::Batch(indices) => {
                let events = indices.iter().filter_map(known).collect::<Vec<_>>();
                self.redrive(&events).await?;
            }
            Step::Misbehave(call, fault, times) => {
                if matches!(call, Call::GetParameter | Call::DescribeCluster) {
                    self.lab.aws.inject(call.when(), fault.clone(), *times);
                } else {
                    self.lab.kubernetes.inject(call.when(), fault.clone(), *times);
                }
            }
            Step::Behave => self.clear_faults(),
            Step::Rotate => {
                let token = format!("bkct_{}", self.tokens.len());
                self.lab.aws.put_parameter(AGENT_TOKEN_PARAMETER, Parameter::secure_string(&token));
                self.tokens.push((token, now));
            }
            Step::RemoveSecret => self.remove_secret(),
            Step::TakeSecret => {
                self.lab.kubernetes.put_secret_as("somebody", NAMESPACE, SECRET, "token", "theirs");
                self.touched = Some(now);
            }
            Step::PutTemplate(name, form) => {
                self.images += 1;
                let image = format!("theirs:{}", self.images);
                self.lab.kubernetes.put_pod_template(template(name, *form, &image));
                self.templates.insert(name, Template { form: *form, image });
            }
            Step::RemoveTemplate(name) => {
                self.lab.kubernetes.remove_pod_template(NAMESPACE, name);
                self.templates.remove(name);
            }
            Step::RemoveJob(index) => {
                if let Some(event) = known(index) {
                    self.remove_job(&self.events[event].job());
                }
            }
            Step::TakeName(index) => {
                let name = format!("buildkite-{}", uuid(index.index(self.events.len() + 1)));
                if self.lab.kubernetes.job(&name).is_none() {
                    self.lab.kubernetes.put_job(json!({"metadata": {"name": name, "labels": {LABEL: "theirs"}}}));
                    self.others.insert(name);
                }
            }
            Step::Freeze { age, cut } => {
                if *cut {
                    self.lab.kubernetes.close_connections();
                    self.lab.aws.close_connections();
                }
                settle().await;
                advance(*age).await;
            }
            Step::ColdStart => self.cold_start().await?,
        }
        // A fault that refuses connections cuts those that idle.
        settle().await;
        self.check_jobs()
    }

    /// Everything is mended, and a minute later Lambda delivers what failed once more.
    async fn end(&mut self) -> TestCaseResult {
        self.clear_faults();
        self.remove_secret();
        for name in self.others.clone() {
            self.remove_job(&name);
        }
        advance(COPY_AGE).await;
        for index in 0..self.events.len() {
            let Event { kind: Kind::ForUs(name), failed: true, .. } = self.events[index] else { continue };
            self.deliver(index, INVOCATION).await?;
            let runs = !matches!(Definition::of(name, &self.templates), Definition::None(_));
            prop_assert_ne!(self.events[index].failed, runs, "event {} at the end", index);
        }
        self.check_jobs()
    }

    fn clear_faults(&mut self) {
        self.lab.kubernetes.clear_faults();
        self.lab.aws.clear_faults();
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

    async fn cold_start(&mut self) -> TestCaseResult {
        self.scheduler = scheduler(&self.lab, self.described);
        self.knowledge = Knowledge::default();
        self.start().await
    }

    async fn start(&mut self) -> TestCaseResult {
        let (started, seen) = self.watch(START, self.scheduler.start(Deadline::after(START))).await;
        self.check_clock(&seen)?;
        if let Err(error) = &started {
            let mut kinds = self.kinds_of_troubles(&seen, |call| {
                (call != Call::DescribeCluster || self.described).then_some(seen.time)
            });
            if seen.conflict() {
                kinds.push("RejectedByApiServer");
            }
            prop_assert!(kinds.contains(&error.kind()), "{}, expected {:?}: {:#?}", chain(error), kinds, seen);
        }
        self.learn(&seen, started.is_err());
        if started.is_err() {
            // The look may have been given up on its way, too.
            self.knowledge.succeeded.remove(&Call::ListTemplates);
        }
        Ok(())
    }

    fn announce(&mut self, kind: Kind) -> usize {
        let index = self.events.len();
        let uuid = uuid(index);
        self.events.push(Event { uuid, kind, payload: kind.payload(uuid), failed: false });
        index
    }

    async fn deliver(&mut self, index: usize, time: Duration) -> TestCaseResult {
        let before = self.lab.kubernetes.jobs();
        let (answer, seen) =
            self.watch(time, self.scheduler.handle(&self.events[index].payload, Deadline::after(time))).await;
        let result = match &answer {
            Ok(Answer::Event { outcome: "created", .. }) => Result::Created,
            Ok(Answer::Event { outcome: "already-exists", .. }) => Result::AlreadyExists,
            Ok(Answer::Event { outcome: "ignored", .. }) => Result::Ignored,
            Ok(other) => return Err(TestCaseError::fail(format!("{other:?}"))),
            Err(error) => Result::Failed(Some((error.kind(), chain(error)))),
        };
        let fresh = self.knowledge.is_fresh(seen.from);
        self.check_clock(&seen)?;
        self.check(index, &result, &seen, &before)?;
        if fresh && seen.is_quiet() {
            self.check_requests(index, &result, &seen)?;
        }
        let given_up = match self.events[index].kind {
            Kind::ForUs(name) => {
                let definitions = self.definitions(name, &seen);
                definitions.is_empty() || definitions.iter().any(|definition| !definition.needs_token())
            }
            _ => false,
        };
        self.learn(&seen, given_up);
        Ok(())
    }

    async fn redrive(&mut self, events: &[usize]) -> TestCaseResult {
        let before = self.lab.kubernetes.jobs();
        let records = events.iter().enumerate().map(|(id, index)| {
            let payload = &self.events[*index].payload;
            // Lambda's record of a failure, or the event as EventBridge sends it.
            let body = if id % 2 == 0 { format!(r#"{{"requestPayload":{payload}}}"#) } else { payload.clone() };
            json!({"messageId": id.to_string(), "eventSource": "aws:sqs", "body": body})
        });
        let batch = json!({"Records": records.collect::<Vec<_>>()}).to_string();
        let (answer, seen) = self.watch(INVOCATION, self.scheduler.handle(&batch, Deadline::after(INVOCATION))).await;
        self.check_clock(&seen)?;
        let failed: BTreeSet<usize> = match &answer {
            Ok(Answer::Batch { failed }) => failed.iter().map(|message| message.id.parse::<usize>().unwrap()).collect(),
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        for (id, index) in events.iter().enumerate() {
            let result = if failed.contains(&id) { Result::Failed(None) } else { Result::Served };
            self.check(*index, &result, &seen, &before)?;
        }
        self.learn(&seen, false);
        Ok(())
    }

    /// Does the work, and notes what the lab does meanwhile, each thing with its time on the moved clock.
    async fn watch<T>(&self, time: Duration, work: impl Future<Output = T>) -> (T, Seen) {
        let mut seen = Seen { from: Instant::now(), time, entries: Vec::new() };
        let before = self.lab.timeline.entries().len();
        let mut work = pin!(work);
        let done = poll_fn(|context| {
            let polled = work.as_mut().poll(context);
            let new = self.lab.timeline.entries().split_off(before + seen.entries.len());
            seen.entries.extend(new.into_iter().map(|entry| (Instant::now(), entry)));
            polled
        })
        .await;
        (done, seen)
    }

    fn learn(&mut self, seen: &Seen, given_up: bool) {
        if seen.applied_unread() {
            self.touched = Some(Instant::now());
        }
        let knowledge = &mut self.knowledge;
        knowledge.learn(seen, &self.templates, Instant::now());
        knowledge.given_up |= given_up;
        if seen.listed() {
            knowledge.succeeded.insert(Call::ListTemplates);
        }
        if !knowledge.given_up && knowledge.delivered.is_some_and(|at| at >= seen.from) {
            knowledge.succeeded.extend([Call::GetParameter, Call::ApplySecret]);
        }
    }

    /// There was an answer in time; at once, if nobody made us wait.
    fn check_clock(&self, seen: &Seen) -> TestCaseResult {
        let (time, took, timeline) = (seen.time, seen.from.elapsed(), &self.lab.timeline);
        if seen.is_quiet() {
            prop_assert_eq!(took, Duration::ZERO, "it took time, and nobody made us wait: {}", timeline);
        }
        // The clock counts milliseconds.
        prop_assert!(took <= time + Duration::from_millis(2), "the answer took {:?} of {:?}: {}", took, time, timeline);
        Ok(())
    }

    /// What must be true of an event that was just delivered.
    fn check(&mut self, index: usize, result: &Result, seen: &Seen, before: &[Value]) -> TestCaseResult {
        let event = &self.events[index];
        let told = || format!("event {index} {:?}: {:#?}", event.kind, seen);
        self.events[index].failed = match (event.kind, result) {
            (Kind::ForUs(name), Result::Created | Result::AlreadyExists | Result::Served) => {
                self.check_success(event, name, result, seen, before)?;
                false
            }
            (Kind::ForUs(name), Result::Failed(error)) => {
                self.check_failure(event, name, error.as_ref(), seen, before)?;
                true
            }
            (kind, Result::Failed(error)) => {
                prop_assert!(kind.failure().is_some(), "{}", told());
                prop_assert_eq!(error.as_ref().map(|error| error.0), error.as_ref().and(kind.failure()));
                true
            }
            (kind, Result::Ignored | Result::Served) => {
                prop_assert!(kind.is_for_others(), "{}", told());
                false
            }
            _ => return Err(TestCaseError::fail(told())),
        };
        Ok(())
    }

    fn check_success(
        &self,
        event: &Event,
        name: &str,
        result: &Result,
        seen: &Seen,
        before: &[Value],
    ) -> TestCaseResult {
        let existed = before.iter().any(|job| job["metadata"]["name"] == event.job());
        // The lab gives garbage with a code of success: that the name is taken nobody could know.
        if existed && seen.has(Call::PostJob, |entry| matches!(entry.fault, Some(Fault::Garbage | Fault::Empty))) {
            return Ok(());
        }
        let found = self.lab.kubernetes.job(&event.job());
        prop_assert!(found.is_some(), "success without a Job: {:#?}", seen);
        let job = found.unwrap();
        prop_assert_eq!(&job["metadata"]["labels"][LABEL], &json!(event.uuid), "success with the Job of others");

        match result {
            Result::Created => prop_assert!(!existed, "created twice"),
            Result::AlreadyExists => prop_assert!(existed || !seen.is_quiet(), "existed before it was made"),
            _ => {}
        }
        if existed {
            return Ok(());
        }
        let agent = &job["spec"]["template"]["spec"]["containers"][0];
        let tags = agent["env"].as_array().unwrap().iter().find(|variable| variable["name"] == "BUILDKITE_AGENT_TAGS");
        prop_assert_eq!(&tags.unwrap()["value"], &json!(format!("queue=default,pod-definition={name}")));
        prop_assert_eq!(&job["metadata"]["labels"]["buildkite.com/queue"], "default");

        let image = agent["image"].as_str().unwrap();
        let right = |definition: &Definition| match definition {
            Definition::Compiled => !image.starts_with("theirs:"),
            Definition::OfCluster { image: right, .. } => image == right,
            Definition::None(_) => false,
        };
        let definition = self.definitions(name, seen).into_iter().find(right);
        prop_assert!(definition.is_some(), "the Job runs in {}, which is not the right definition: {:#?}", image, seen);
        if definition.unwrap().needs_token() {
            self.check_secret(seen)?;
        }
        Ok(())
    }

    /// What the name may lead to: in the copy, if that is not too old, and in the cluster, if that was asked.
    fn definitions(&self, name: &str, seen: &Seen) -> Vec<Definition> {
        let mut known = self.knowledge.clone();
        known.learn(seen, &self.templates, Instant::now());
        let failed = known.list_failed.is_some_and(|at| seen.from.saturating_duration_since(at) < AGAIN);
        // In a batch one event may look again after that, and another not.
        let serves_on = failed || seen.entries.iter().any(|(_, entry)| may_fail_list(entry));
        let copy = self.knowledge.copy.as_ref().filter(|(at, _)| seen.from - *at < COPY_AGE || serves_on);
        let copy = copy.map(|(_, templates)| templates);
        let cluster = seen.listed().then_some(&self.templates);
        copy.into_iter().chain(cluster).map(|templates| Definition::of(name, templates)).collect()
    }

    /// A Job was made whose pod reads the Secret: it holds what SSM held five minutes ago at most.
    fn check_secret(&self, seen: &Seen) -> TestCaseResult {
        let mut known = self.knowledge.clone();
        known.learn(seen, &self.templates, Instant::now());
        prop_assert!(known.delivered.is_some(), "this process never applied the Secret: {:#?}", seen);
        if known.delivery_failed.is_some_and(|at| seen.from.saturating_duration_since(at) < AGAIN) {
            return Ok(());
        }
        let recent = |at: Instant| seen.from.saturating_duration_since(at) < TOKEN_AGE;
        if self.touched.is_some_and(recent) || seen.applied_unread() {
            return Ok(());
        }
        let secret = self.lab.kubernetes.secret(NAMESPACE, SECRET).map(|secret| secret["data"]["token"].clone());
        let held = |token: &str| secret.as_ref().is_some_and(|held| *held == BASE64_STANDARD.encode(token));
        let place = self.tokens.iter().position(|(token, _)| held(token));
        prop_assert!(place.is_some(), "the Secret holds none of our tokens: {:#?}", seen);
        // It was replaced when the next one came.
        let replaced = self.tokens.get(place.unwrap() + 1).map(|(_, from)| *from);
        prop_assert!(
            replaced.is_none_or(recent),
            "the Secret holds a token that was replaced {:?} ago: {}",
            replaced.map(|at| seen.from - at),
            self.lab.timeline
        );
        Ok(())
    }

    fn check_failure(
        &self,
        event: &Event,
        name: &str,
        error: Option<&(&'static str, String)>,
        seen: &Seen,
        before: &[Value],
    ) -> TestCaseResult {
        let definitions = self.definitions(name, seen);
        let needs_token = definitions.iter().any(Definition::needs_token);
        // That there is none of that name is told after a look only.
        let looked = seen.listed() && !self.templates.contains_key(name);
        let missing = definitions.iter().filter_map(|definition| match definition {
            Definition::None(kind) => (looked || *kind != "UnknownPodDefinition").then_some(*kind),
            _ => None,
        });
        let mut kinds: Vec<&str> = missing.collect();
        if needs_token && seen.conflict() {
            kinds.push("RejectedByApiServer");
        }
        if before.iter().any(|job| job["metadata"]["name"] == event.job() && self.others.contains(&event.job())) {
            kinds.push("RejectedByApiServer");
        }
        let lacks = self.knowledge.lacks(name);
        if lacks {
            let remembered = self.knowledge.look_failed.iter().filter(|(_, until)| seen.from < *until);
            kinds.extend(remembered.map(|(kind, _)| kind));
        }
        let of_batch = error.is_none();
        kinds.extend(self.kinds_of_troubles(seen, |call| match call {
            Call::ListTemplates if lacks => Some(seen.time),
            Call::DescribeCluster if !self.described => None,
            Call::GetParameter | Call::ApplySecret if !needs_token => None,
            _ if self.knowledge.succeeded.contains(&call) => None,
            // In a batch the token has half of the time. The rest is for the definitions that bring one.
            Call::GetParameter | Call::ApplySecret | Call::Anything if of_batch => Some(seen.time / 2),
            _ => Some(seen.time),
        }));
        let told = format!("{name}: {error:?}, expected {kinds:?}: {seen:#?}");
        prop_assert!(!kinds.is_empty(), "a failure without a reason: {}", told);
        prop_assert!(error.is_none_or(|error| kinds.contains(&error.0)), "{}", told);
        Ok(())
    }

    /// The kinds of failure that follow from what the lab did wrong. `time` is how long it is worth to ask again; none if the event
    /// does not depend on the answer.
    ///
    /// What passes is no reason to fail as long as there is time for another try.
    fn kinds_of_troubles(&self, seen: &Seen, time: impl Fn(Call) -> Option<Duration>) -> Vec<&'static str> {
        let troubles: Vec<_> = seen.entries.iter().flat_map(|(_, entry)| Trouble::of(entry)).collect();
        let passing = troubles.iter().filter(|trouble| trouble.passes).count();
        let doubled = 2_u32.saturating_pow(u32::try_from(passing).unwrap_or(u32::MAX).saturating_sub(1));
        let retry_after = seen.entries.iter().filter_map(|(_, entry)| match &entry.fault {
            Some(Fault::Status(answer)) => answer.retry_after,
            _ => None,
        });
        let retry_after = retry_after.max();
        let needed = FIRST_PAUSE.saturating_mul(doubled).min(PAUSE) + retry_after.unwrap_or_default() + LEAST;
        // A new token helps, unless it is refused, too.
        let is_401 = |trouble: &&Trouble| trouble.kinds == ["Unauthorized"];
        let refused_again = |call| troubles.iter().filter(is_401).filter(|trouble| trouble.call == call).count() > 1;
        let follow = troubles.iter().filter(|trouble| {
            time(trouble.call).is_some_and(|time| {
                let is_up = time.saturating_sub(seen.from.elapsed()) < needed;
                !trouble.passes || is_up || is_401(trouble) && refused_again(trouble.call)
            })
        });
        follow.flat_map(|trouble| trouble.kinds).copied().collect()
    }

    /// How often the API server is asked when everything is known already, and nobody else at all.
    fn check_requests(&self, index: usize, result: &Result, seen: &Seen) -> TestCaseResult {
        let Event { kind, .. } = self.events[index];
        let expected = match (kind, result) {
            (Kind::ForUs(_), Result::AlreadyExists | Result::Failed(Some(("RejectedByApiServer", _)))) => 2,
            (Kind::ForUs(_), Result::Created | Result::Failed(Some(("UnknownPodDefinition", _)))) => 1,
            _ => 0,
        };
        // A definition that was added since is found by a look before it is due.
        let looked = usize::from(seen.listed() && !matches!(result, Result::Failed(Some(("UnknownPodDefinition", _)))));
        if looked == 1 {
            let copy = &self.knowledge.copy.as_ref().unwrap().1;
            prop_assert!(kind == Kind::ForUs("node") && !copy.contains_key("node"), "an early look: {:#?}", seen);
        }
        prop_assert_eq!(seen.count(&[Actor::Kubernetes]), expected + looked, "event {}: {:#?}", index, seen);
        prop_assert_eq!(seen.count(&[Actor::Ssm, Actor::Eks]), 0, "event {}: {:#?}", index, seen);
        Ok(())
    }

    /// Every Job belongs to exactly one event, and stays the one that it is.
    fn check_jobs(&mut self) -> TestCaseResult {
        let mut there = BTreeMap::new();
        for job in self.lab.kubernetes.jobs() {
            let metadata = &job["metadata"];
            let name = metadata["name"].as_str().unwrap();
            if self.others.contains(name) {
                continue;
            }
            let event = self.events.iter().find(|event| event.job() == name);
            prop_assert!(
                event.is_some_and(|event| {
                    matches!(event.kind, Kind::ForUs(_)) && metadata["labels"][LABEL] == json!(event.uuid)
                }),
                "a Job without an event: {}",
                metadata
            );
            there.insert(name.to_owned(), metadata["uid"].clone());
        }
        for (name, uid) in &self.jobs {
            prop_assert_eq!(there.get(name), Some(uid), "{} is another Job than it was", name);
        }
        self.jobs = there;
        Ok(())
    }
}

/// Until nobody has anything to do: both ends know that a socket was cut.
async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

fn uuid(index: usize) -> Uuid {
    Uuid::from_u128(index as u128)
}

fn template(name: &str, form: Form, image: &str) -> Value {
    let env = match form {
        Form::BringsToken => json!([{"name": "BUILDKITE_AGENT_TOKEN", "value": "file:///var/run/token"}]),
        Form::Good | Form::Broken => json!([]),
    };
    let policy = if form == Form::Broken { "Always" } else { "Never" };
    let spec = json!({"restartPolicy": policy, "containers": [{"name": "agent", "image": image, "env": env}]});
    json!({"metadata": {"name": name}, "template": {"spec": spec}})
}

/// A new process.
fn scheduler(lab: &Lab, described: bool) -> Scheduler {
    let mut variables = lab.variables();
    variables.insert("AWS_LAMBDA_FUNCTION_NAME".to_owned(), "agent-scheduler".to_owned());
    if described {
        variables.remove("KUBERNETES_API_SERVER_ENDPOINT");
        variables.remove("KUBERNETES_CERTIFICATE_AUTHORITY_DATA");
    }
    let config = Config::read(|name| variables.get(name).cloned()).unwrap();
    let keys = lab.credentials();
    let (id, secret, session) = (&keys.access_key_id, &keys.secret_access_key, &keys.session_token);
    let credentials = Credentials::new(id, secret, Some(session.clone()), None, "lab");
    let sdk = aws::sdk_config(&config.region, credentials.clone(), |name| variables.get(name).cloned()).unwrap();
    Scheduler::new(config, credentials, &sdk)
}

fn run(schedule: &Schedule) -> TestCaseResult {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(schedule.described).await?;
        for step in &schedule.steps {
            world.take(step).await?;
        }
        world.end().await
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
    fn whatever_happens_an_event_has_its_job_or_fails(schedule in schedule()) {
        let _quiet = NoOutput::new();
        run(&schedule)?;
    }
}
