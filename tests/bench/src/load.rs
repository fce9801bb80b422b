//! `bench load`: a burst of events to many functions while requests meet faults and functions are killed. What fails is retried as
//! Lambda and SQS do, only sooner: in the end each event has one Job.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use fastrand::Rng;
use hyper::{Request, StatusCode, header::ACCEPT};
use lab::{
    Answer, CLUSTER, Client, ControlPlane, Event, Fault, Function, Lab, When, control_plane::ClusterKind, event,
    kubeconfig::Cluster, kubernetes::NAMESPACE,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};
use uuid::Uuid;

use crate::{
    bare::Body,
    subject::{FLOOR_TOKEN, Failure, Subject, ms, percentile, took},
};

/// What part of all requests to the API server meets a fault.
const FAULTS: f64 = 0.05;

/// Lambda delivers an event three times before it sends it to the failure queue.
const DELIVERIES: usize = 3;

/// SQS delivers this many messages at once, and each at most this often.
const BATCH: usize = 10;
const RECEIVES: usize = 5;

/// One of this many events is delivered twice.
const DUPLICATE: usize = 10;

/// A function that is killed has worked this many milliseconds at most.
const WORK: u64 = 10;

/// Leaves the function a few milliseconds, as it reserves two seconds.
const SHORT_TIMEOUT: Duration = Duration::from_millis(2_008);

/// What to send, and where.
#[derive(Args)]
pub struct Load {
    #[command(flatten)]
    subject: Subject,
    /// How many events to send.
    #[arg(long, default_value_t = 10_000)]
    events: usize,
    /// How many functions work side by side.
    #[arg(long, default_value_t = 32)]
    processes: usize,
    /// What the cluster is.
    #[arg(long, value_enum, default_value_t)]
    cluster: ClusterKind,
    /// Decides which requests and functions fail.
    #[arg(long, default_value_t = 9)]
    seed: u64,
    /// Nothing fails, and nothing is between the functions and the cluster: what an event costs beside a bare client's request.
    #[arg(long)]
    calm: bool,
}

/// A delivery on its way to its Job.
struct Item {
    /// Its id as a message of SQS.
    id: Uuid,
    event: Event,
    /// How many of its deliveries are interrupted.
    interrupted: usize,
}

/// What a function is invoked with.
struct Invocation {
    payload: String,
    /// One, or those of a batch.
    items: Vec<Item>,
    interruption: Option<Interruption>,
}

enum Interruption {
    /// The process is killed after this time.
    Kill(Duration),
    ShortTimeout,
}

/// What all functions share.
struct Shared {
    lab: Lab,
    subject: Subject,
    waiting: Mutex<VecDeque<Invocation>>,
    failed: Mutex<Vec<Item>>,
}

/// One execution environment; after a process ended, it starts another.
struct Environment {
    shared: Arc<Shared>,
    function: Option<Function>,
    started: usize,
    killed: usize,
    /// Processes that ended, or did not start, and were not killed.
    died: usize,
    lines: Vec<Value>,
}

/// Names of Jobs, each with its uid.
type Jobs = BTreeMap<String, String>;

/// All events to their end, round by round.
struct Burst {
    shared: Arc<Shared>,
    control_plane: Option<ControlPlane>,
    environments: Vec<Environment>,
    /// The Jobs of the bare client.
    bare: Jobs,
    seen: Jobs,
    /// Jobs that are gone, or were made again under the same name.
    changed: BTreeSet<String>,
    /// After each round, how many items have to be retried.
    failed: Vec<usize>,
    time: Duration,
}

impl Load {
    /// Prints rates, deliveries and Jobs; fails if a Job is missing, was made twice or is for no event, if a function ended that was
    /// not killed, and if no fault happened.
    pub async fn run(self) -> Result<bool, Failure> {
        let body = Arc::new(Body::of(&self.subject).await?);
        let mut burst = Burst::new(&self).await?;
        // One half before and one half after, so that a slow minute of the machine is shared.
        let half = self.events.div_ceil(2);
        let mut bare = body.post_all(half, burst.clients(self.processes).await).await?;
        burst.bare = burst.jobs().await;
        if !self.calm {
            self.plan_faults(&burst.shared.lab);
        }
        let before = burst.shared.lab.kubernetes.requests().len();

        let mut rng = Rng::with_seed(self.seed);
        let uuids: Vec<_> = (0..self.events).map(|_| Uuid::new_v4()).collect();
        let items = self.items(&uuids, &mut rng);
        let deliveries = items.len();
        let left = burst.send(items, &mut rng).await?;

        let requests = burst.shared.lab.kubernetes.requests().len() - before;
        burst.shared.lab.kubernetes.clear_faults();
        bare += body.post_all(half, burst.clients(self.processes).await).await?;
        let raw_rate = rate(2 * half, bare);
        Ok(self.report(burst, &uuids, deliveries, left.len(), requests, raw_rate).await)
    }

    fn plan_faults(&self, lab: &Lab) {
        let faults = [
            Fault::CutBefore,
            Fault::CutAfter,
            Fault::throttled(Duration::ZERO),
            Fault::status(503),
            Fault::Delay(Duration::from_millis(100)),
            Fault::Garbage,
        ];
        #[expect(clippy::cast_precision_loss, reason = "there are six")]
        let share = FAULTS / faults.len() as f64;
        for (seed, fault) in (self.seed..).zip(faults) {
            lab.kubernetes.inject_share(When::any(), fault, share, seed);
        }
    }

    fn items(&self, uuids: &[Uuid], rng: &mut Rng) -> Vec<Item> {
        let mut items = Vec::new();
        for (index, uuid) in uuids.iter().enumerate() {
            // The duplicate right behind the first: two functions have the same event at the same time.
            for _ in 0..=usize::from(!self.calm && index % DUPLICATE == DUPLICATE - 1) {
                let interrupted = match rng.u32(..100) {
                    _ if self.calm => 0,
                    0 => 3,
                    1 => 2,
                    2 | 3 => 1,
                    _ => 0,
                };
                // Of an old one that comes back from the failure queue, Buildkite would be asked first.
                let event = self.subject.event.clone().now().uuid(uuid);
                items.push(Item { id: Uuid::new_v4(), event, interrupted });
            }
        }
        items
    }

    /// Prints all, and returns whether each event has its Job.
    async fn report(
        &self,
        burst: Burst,
        uuids: &[Uuid],
        deliveries: usize,
        never: usize,
        requests: usize,
        raw_rate: f64,
    ) -> bool {
        let faults = burst.shared.lab.kubernetes.faults_met();
        let (mut started, mut killed, mut died, mut took_times) = (0, 0, 0, Vec::new());
        for environment in burst.environments {
            started += environment.started;
            killed += environment.killed;
            died += environment.died;
            took_times.extend(environment.stop().await.iter().filter_map(took));
        }
        let names: BTreeSet<_> = uuids.iter().map(|uuid| format!("buildkite-{uuid}")).collect();
        let made: BTreeSet<_> = burst.seen.into_keys().collect();
        let missing: Vec<_> = names.difference(&made).collect();
        let for_no_event: Vec<_> = made.difference(&names).collect();

        let (events, processes) = (self.events, self.processes);
        println!(
            "{events} events in {deliveries} deliveries to {processes} functions at a time ({:?})\n",
            self.cluster
        );
        let event_rate = rate(events, burst.time);
        println!("| | |\n| --- | ---: |");
        println!("| events a second | {event_rate:.1} |");
        println!("| raw posts a second, over {processes} connections | {raw_rate:.1} |");
        println!("| ratio | {:.2} |", event_rate / raw_rate);
        for percent in [50, 99] {
            println!("| event by the function, p{percent}, ms | {:.1} |", ms(percentile(&took_times, percent)));
        }
        if !self.calm {
            println!("| requests to the API server | {requests} |");
            println!("| of them met a fault | {faults} |");
        }
        println!("| processes started, and killed at work | {started}, {killed} |");
        println!("| processes that ended and were not killed | {died} |");
        let mut left = deliveries;
        let rounds = (1..=DELIVERIES).map(|round| format!("delivery {round}"));
        let rounds = rounds.chain((1..=RECEIVES).map(|round| format!("redrive, receive {round}")));
        for (round, failed) in rounds.zip(&burst.failed) {
            println!("| done by {round} | {} |", left - failed);
            left = *failed;
        }
        println!("| never done | {never} |");
        println!("| Jobs | {} |", made.len());
        println!("| missing | {} |", missing.len());
        println!("| for no event | {} |", for_no_event.len());
        println!("| gone or made again | {} |", burst.changed.len());
        for name in missing.iter().chain(&for_no_event).copied().chain(&burst.changed) {
            println!("{name}");
        }
        let problems = [
            (never > 0, "events were never done"),
            (made.len() != events, "there are not as many Jobs as events"),
            (!missing.is_empty(), "Jobs are missing"),
            (!for_no_event.is_empty(), "Jobs are for no event"),
            (!burst.changed.is_empty(), "Jobs are gone, or were made again"),
            (died > 0, "functions ended and were not killed"),
            (!self.calm && faults == 0, "no request met a fault: this run shows nothing"),
            (!self.calm && killed == 0, "no function was killed: this run shows nothing"),
            (
                !self.calm && burst.failed.iter().all(|failed| *failed == 0),
                "no event was retried: this run shows nothing",
            ),
        ];
        for (_, problem) in problems.iter().filter(|(is_so, _)| *is_so) {
            println!("\n{problem}");
        }
        problems.iter().all(|(is_so, _)| !is_so)
    }
}

impl Burst {
    async fn new(load: &Load) -> Result<Self, Failure> {
        let control_plane = match load.cluster {
            ClusterKind::Real => Some(ControlPlane::start_for_function().await?),
            ClusterKind::StandIn => None,
        };
        let lab = match &control_plane {
            // Through the lab's forwarder, which injects the faults.
            Some(control_plane) if load.calm => control_plane.lab().await,
            Some(control_plane) => {
                let mut lab = control_plane.lab().await;
                lab.forward_to(Cluster::of_context(CLUSTER, Some(&control_plane.kubeconfig())).await?).await;
                lab
            }
            None => Lab::start().await,
        };
        lab.kubernetes.accept(FLOOR_TOKEN);
        let (waiting, failed) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { lab, subject: load.subject.clone(), waiting, failed });
        let environment = |_| Environment {
            shared: Arc::clone(&shared),
            function: None,
            started: 0,
            killed: 0,
            died: 0,
            lines: Vec::new(),
        };
        Ok(Self {
            environments: (0..load.processes).map(environment).collect(),
            shared,
            control_plane,
            bare: Jobs::new(),
            seen: Jobs::new(),
            changed: BTreeSet::new(),
            failed: Vec::new(),
            time: Duration::ZERO,
        })
    }

    /// Sends all to their end; returns those that never succeeded.
    async fn send(&mut self, mut items: Vec<Item>, rng: &mut Rng) -> Result<Vec<Item>, Failure> {
        for delivery in 0..DELIVERIES {
            let invocations = items.into_iter().map(|item| Invocation {
                payload: item.event.to_string(),
                interruption: (delivery < item.interrupted).then(|| Interruption::random(rng)),
                items: vec![item],
            });
            items = self.round(invocations.collect()).await?;
        }
        for receive in 0..RECEIVES {
            let mut batches = VecDeque::new();
            while !items.is_empty() {
                let batch: Vec<_> = items.drain(..items.len().min(BATCH)).collect();
                let interrupted = receive == 0 && batches.len() % 2 == 0;
                batches.push_back(Invocation {
                    payload: event::batch(batch.iter().map(|item| (item.id, item.event.failure_record()))),
                    interruption: interrupted.then(|| Interruption::random(rng)),
                    items: batch,
                });
            }
            items = self.round(batches).await?;
        }
        Ok(items)
    }

    /// Sends each of these to the next function that is free; returns what has to be retried.
    async fn round(&mut self, invocations: VecDeque<Invocation>) -> Result<Vec<Item>, Failure> {
        let started = Instant::now();
        *self.shared.waiting.lock() = invocations;
        let working: JoinSet<_> = self.environments.drain(..).map(Environment::work).collect();
        for environment in working.join_all().await {
            self.environments.push(environment?);
        }
        self.time += started.elapsed();
        let failed = std::mem::take(&mut *self.shared.failed.lock());
        self.failed.push(failed.len());

        let mut jobs = self.jobs().await;
        jobs.retain(|name, _| !self.bare.contains_key(name));
        let changed = self.seen.iter().filter(|(name, uid)| jobs.get(*name) != Some(*uid));
        self.changed.extend(changed.map(|(name, _)| name.clone()));
        self.seen.extend(jobs);
        Ok(failed)
    }

    async fn clients(&self, count: usize) -> Vec<Client> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(self.client().await);
        }
        clients
    }

    /// A client that no fault affects.
    async fn client(&self) -> Client {
        if let Some(control_plane) = &self.control_plane {
            return control_plane.admin().await;
        }
        let lab = &self.shared.lab;
        let client = Client::connect(&lab.kubernetes.url(), &lab.certificates.ca_pem()).await;
        client.expect("the lab takes connections").with_token(FLOOR_TOKEN)
    }

    async fn jobs(&self) -> Jobs {
        let jobs = if self.control_plane.is_some() {
            let request = Request::get(format!("/apis/batch/v1/namespaces/{NAMESPACE}/jobs"));
            let request = request.header(ACCEPT, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
            let answer = self.client().await.send(request, "").await;
            assert_eq!(answer.status(), StatusCode::OK, "the administrator may list Jobs");
            serde_json::from_slice(answer.body()).expect("a list is JSON")
        } else {
            json!({"items": self.shared.lab.kubernetes.jobs()})
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let jobs = jobs["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        jobs.iter().map(|job| (text(&job["metadata"]["name"]), text(&job["metadata"]["uid"]))).collect()
    }
}

impl Interruption {
    fn random(rng: &mut Rng) -> Self {
        if rng.bool() { Self::Kill(Duration::from_millis(rng.u64(..WORK))) } else { Self::ShortTimeout }
    }
}

impl Environment {
    /// Takes one invocation after the other until there are no more.
    async fn work(mut self) -> Result<Self, Failure> {
        loop {
            let next = self.shared.waiting.lock().pop_front();
            let Some(Invocation { payload, items, interruption }) = next else { return Ok(self) };
            let answer = self.invoke(&payload, interruption.as_ref()).await?;
            let failed = items.into_iter().filter(|item| match &answer {
                None => true,
                Some(answer) => answer["batchItemFailures"].as_array().is_some_and(|failures| {
                    failures.iter().any(|failure| failure["itemIdentifier"] == item.id.to_string())
                }),
            });
            self.shared.failed.lock().extend(failed);
        }
    }

    /// None if the invocation failed.
    async fn invoke(&mut self, payload: &str, interruption: Option<&Interruption>) -> Result<Option<Value>, Failure> {
        let function = if let Some(function) = self.function.take() {
            function
        } else {
            self.started += 1;
            self.shared.subject.start(&self.shared.lab)?
        };
        // Wait for the start-up first: what is killed has to be at work.
        let _ = function.initialised().await;
        let answer = match interruption {
            None => Some(function.invoke(payload).await),
            Some(Interruption::ShortTimeout) => Some(function.invoke_within(SHORT_TIMEOUT, payload).await),
            Some(Interruption::Kill(after)) => tokio::select! {
                answer = function.invoke(payload) => Some(answer),
                () = sleep(*after) => None,
            },
        };
        let result = match answer {
            Some(Answer::Success(answer)) => Some(answer),
            Some(Answer::Error { .. }) => None,
            ended => {
                let intended = match interruption {
                    None => false,
                    Some(Interruption::ShortTimeout) => matches!(ended, Some(Answer::TimedOut)),
                    Some(Interruption::Kill(_)) => ended.is_none(),
                };
                *(if intended { &mut self.killed } else { &mut self.died }) += 1;
                self.lines.extend(function.kill().await.lines());
                return Ok(None);
            }
        };
        self.function = Some(function);
        Ok(result)
    }

    /// Returns what its functions logged.
    async fn stop(mut self) -> Vec<Value> {
        if let Some(function) = self.function {
            self.lines.extend(function.stop().await.lines());
        }
        self.lines
    }
}

#[expect(clippy::cast_precision_loss, reason = "no figure has as many digits")]
fn rate(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}
