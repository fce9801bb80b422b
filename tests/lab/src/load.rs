//! `lab load`: a burst of events to many functions while requests are answered wrongly and functions are killed at work. Whatever
//! fails comes again as Lambda and SQS would send it, only sooner: in the end there is one Job for each.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use fastrand::Rng;
use hyper::{Request, StatusCode, header::ACCEPT};
use lab::{
    Answer, CLUSTER, Client, ControlPlane, Event, Fault, Function, Lab, When, control_plane::Caller, event,
    kubeconfig::Cluster,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};
use uuid::Uuid;

use crate::{
    bare::Body,
    bench::{FLOOR_TOKEN, Problem, percentile},
    run::{NAMESPACE, Player, control_plane_for_function},
    soak::took,
};

/// What part of all requests to the API server meets a fault.
const FAULTS: f64 = 0.05;

/// Lambda delivers an event three times before it gives it to the failure queue.
const DELIVERIES: usize = 3;

/// SQS hands so many messages over at once, and each at most so often.
const BATCH: usize = 10;
const RECEIVES: usize = 5;

/// Every so many events, one is delivered twice.
const DUPLICATE: usize = 10;

/// A function that is killed has worked so many milliseconds at most.
const WORK: u64 = 10;

/// Leaves the function a few milliseconds, as it keeps two seconds back.
const HURRY: Duration = Duration::from_millis(2_008);

/// What to send, and where.
#[derive(Args)]
pub struct Load {
    /// The function's release binary.
    #[arg(long, value_name = "PATH")]
    function: PathBuf,
    /// The event that is sent, each time with another job.
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
    /// How many events to send.
    #[arg(long, default_value_t = 10_000)]
    events: usize,
    /// How many functions work side by side.
    #[arg(long, default_value_t = 32)]
    processes: usize,
    /// What plays the cluster.
    #[arg(long, value_enum, default_value_t)]
    cluster: Player,
    /// Decides which requests and functions fail.
    #[arg(long, default_value_t = 9)]
    seed: u64,
}

/// A delivery on its way to its Job.
struct Item {
    /// What SQS knows it by, if it comes so far.
    id: Uuid,
    event: Event,
    /// How many of its deliveries end before it is served.
    doomed: usize,
}

/// What a function is invoked with, and what befalls it.
struct Invocation {
    payload: String,
    /// One, or those of a batch.
    items: Vec<Item>,
    fate: Fate,
}

enum Fate {
    /// Has all the time that it needs.
    Served,
    /// The process ends after so long.
    Killed(Duration),
    /// The invocation's time ends at once.
    Hurried,
}

/// What all functions share.
struct Site {
    lab: Lab,
    binary: PathBuf,
    waiting: Mutex<VecDeque<Invocation>>,
    failed: Mutex<Vec<Item>>,
}

/// One execution environment; there is a new process after one that ended.
struct Environment {
    site: Arc<Site>,
    function: Option<Function>,
    started: usize,
    killed: usize,
    /// Those that ended, or did not start, though nobody killed them.
    died: usize,
    lines: Vec<Value>,
}

/// The Jobs that there are, each with its uid.
type Jobs = BTreeMap<String, String>;

impl Load {
    /// Prints rates, deliveries and Jobs; fails if a Job is missing, was made twice, or is for nobody, if a function ended that
    /// nobody killed, and if there was nothing to withstand.
    pub async fn run(self) -> Result<ExitCode, Problem> {
        let (_, event) = Event::read(&self.event)?;
        let body = Arc::new(Body::of(&self.function, &event).await?);
        let control_plane = match self.cluster {
            Player::Real => Some(control_plane_for_function().await?),
            Player::StandIn => None,
        };
        let lab = lab(control_plane.as_ref()).await?;
        let server = Server { lab: &lab, control_plane: control_plane.as_ref() };

        // One half before and one half after, so that both meet the same moods of the machine.
        let half = self.events.div_ceil(2);
        let mut bare = body.post_all(half, server.callers(self.processes).await).await?;
        let strangers = server.jobs().await;
        self.plan_faults(&lab);

        let site =
            Arc::new(Site { lab, binary: self.function.clone(), waiting: Mutex::default(), failed: Mutex::default() });
        let server = Server { lab: &site.lab, control_plane: control_plane.as_ref() };
        let mut course = Course { site: &site, server, strangers, seen: Jobs::new(), changed: BTreeSet::new() };
        let environments = (0..self.processes).map(|_| Environment::new(&site)).collect();
        let sent = self.send(&event, &mut course, environments).await?;
        let server = course.server;
        site.lab.kubernetes.clear_faults();
        bare += body.post_all(half, server.callers(self.processes).await).await?;
        Ok(if sent.report(&self, 2 * half, bare, &site.lab) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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

    /// All events to their end.
    async fn send(
        &self,
        event: &Event,
        course: &mut Course<'_>,
        mut environments: Vec<Environment>,
    ) -> Result<Sent, Problem> {
        let mut dice = Rng::with_seed(self.seed);
        let uuids: Vec<_> = (0..self.events).map(|_| Uuid::new_v4()).collect();
        let mut items = Vec::new();
        for (index, uuid) in uuids.iter().enumerate() {
            // The second right behind the first: two functions have the same event at the same time.
            for _ in 0..=usize::from(index % DUPLICATE == DUPLICATE - 1) {
                let doomed = match dice.u32(..100) {
                    0 => 3,
                    1 => 2,
                    2 | 3 => 1,
                    _ => 0,
                };
                items.push(Item { id: Uuid::new_v4(), event: event.clone().uuid(uuid), doomed });
            }
        }
        let mut sent = Sent { items: items.len(), ..Sent::default() };
        // The lab's own API server has seen the bare client's, too.
        let before = course.site.lab.kubernetes.requests().len();

        for delivery in 0..DELIVERIES {
            let invocations = items.into_iter().map(|item| Invocation {
                payload: item.event.to_string(),
                fate: if delivery < item.doomed { Fate::cast(&mut dice) } else { Fate::Served },
                items: vec![item],
            });
            items = course.round(invocations.collect(), &mut environments, &mut sent).await?;
        }
        for receive in 0..RECEIVES {
            let mut batches = Vec::new();
            while !items.is_empty() {
                let batch: Vec<_> = items.drain(..items.len().min(BATCH)).collect();
                let doomed = receive == 0 && batches.len() % 2 == 0;
                let fate = if doomed { Fate::cast(&mut dice) } else { Fate::Served };
                batches.push(Invocation { payload: batch_of(&batch), items: batch, fate });
            }
            items = course.round(batches.into(), &mut environments, &mut sent).await?;
        }

        for environment in environments {
            sent.started += environment.started;
            sent.killed += environment.killed;
            sent.died += environment.died;
            sent.took.extend(environment.stop().await.iter().filter_map(took));
        }
        let names: BTreeSet<_> = uuids.iter().map(|uuid| format!("buildkite-{uuid}")).collect();
        let made: BTreeSet<_> = course.seen.keys().cloned().collect();
        sent.requests = course.site.lab.kubernetes.requests().len() - before;
        sent.jobs = made.len();
        sent.missing = names.difference(&made).cloned().collect();
        sent.for_nobody = made.difference(&names).cloned().collect();
        sent.changed = course.changed.iter().cloned().collect();
        Ok(sent)
    }
}

/// A lab whose functions are led to the control plane, by way of a gate that can answer wrongly.
async fn lab(control_plane: Option<&ControlPlane>) -> Result<Lab, Problem> {
    let Some(control_plane) = control_plane else {
        let lab = Lab::start().await;
        lab.kubernetes.accept(FLOOR_TOKEN);
        return Ok(lab);
    };
    let mut lab = control_plane.lab().await;
    lab.forward_to(Cluster::of_context(CLUSTER, Some(&control_plane.kubeconfig())).await?).await;
    Ok(lab)
}

/// The API server, as those see it that no fault befalls.
struct Server<'a> {
    lab: &'a Lab,
    control_plane: Option<&'a ControlPlane>,
}

impl Server<'_> {
    async fn callers(&self, count: usize) -> Vec<Caller> {
        let mut callers = Vec::new();
        for _ in 0..count {
            callers.push(self.caller().await);
        }
        callers
    }

    async fn caller(&self) -> Caller {
        if let Some(control_plane) = self.control_plane {
            return control_plane.admin().await;
        }
        let client = Client::connect(&self.lab.kubernetes.url(), &self.lab.certificates.ca_pem()).await;
        Caller::new(client.expect("the lab takes connections"), FLOOR_TOKEN)
    }

    async fn jobs(&self) -> Jobs {
        let jobs = if self.control_plane.is_some() {
            let request = Request::get(format!("/apis/batch/v1/namespaces/{NAMESPACE}/jobs"));
            let request = request.header(ACCEPT, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
            let answer = self.caller().await.send(request, "").await;
            assert_eq!(answer.status(), StatusCode::OK, "the administrator may list Jobs");
            serde_json::from_slice(answer.body()).expect("a list is JSON")
        } else {
            json!({"items": self.lab.kubernetes.jobs()})
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let jobs = jobs["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        jobs.iter().map(|job| (text(&job["metadata"]["name"]), text(&job["metadata"]["uid"]))).collect()
    }
}

/// One round of deliveries after the other, and the Jobs after each.
struct Course<'a> {
    site: &'a Arc<Site>,
    server: Server<'a>,
    /// The bare client's.
    strangers: Jobs,
    seen: Jobs,
    /// Those that are gone, or are another's by the same name.
    changed: BTreeSet<String>,
}

impl Course<'_> {
    /// Hands all of these out, each to the next function that is free; returns what has to come again.
    async fn round(
        &mut self,
        invocations: VecDeque<Invocation>,
        environments: &mut Vec<Environment>,
        sent: &mut Sent,
    ) -> Result<Vec<Item>, Problem> {
        let started = Instant::now();
        *self.site.waiting.lock() = invocations;
        let mut working = JoinSet::new();
        for environment in environments.drain(..) {
            working.spawn(environment.work());
        }
        for environment in working.join_all().await {
            environments.push(environment?);
        }
        sent.time += started.elapsed();
        let failed = std::mem::take(&mut *self.site.failed.lock());
        sent.failed.push(failed.len());

        let mut jobs = self.server.jobs().await;
        jobs.retain(|name, _| !self.strangers.contains_key(name));
        let changed = self.seen.iter().filter(|(name, uid)| jobs.get(*name) != Some(*uid));
        self.changed.extend(changed.map(|(name, _)| name.clone()));
        self.seen.extend(jobs);
        Ok(failed)
    }
}

impl Fate {
    fn cast(dice: &mut Rng) -> Self {
        if dice.bool() { Self::Killed(Duration::from_millis(dice.u64(..WORK))) } else { Self::Hurried }
    }
}

impl Environment {
    fn new(site: &Arc<Site>) -> Self {
        Self { site: Arc::clone(site), function: None, started: 0, killed: 0, died: 0, lines: Vec::new() }
    }

    /// Takes one invocation after the other until there are no more.
    async fn work(mut self) -> Result<Self, Problem> {
        loop {
            let next = self.site.waiting.lock().pop_front();
            let Some(Invocation { payload, items, fate }) = next else { return Ok(self) };
            let answer = self.invoke(&payload, &fate).await?;
            let kept = answer.as_ref().map(|answer| answer["batchItemFailures"].as_array());
            let failed = items.into_iter().filter(|item| match kept {
                None => true,
                Some(kept) => {
                    kept.is_some_and(|kept| kept.iter().any(|kept| kept["itemIdentifier"] == item.id.to_string()))
                }
            });
            self.site.failed.lock().extend(failed);
        }
    }

    /// None if the invocation failed.
    async fn invoke(&mut self, payload: &str, fate: &Fate) -> Result<Option<Value>, Problem> {
        let function = match self.function.take() {
            Some(function) => function,
            None => self.start()?,
        };
        // Ready first: what is killed shall be at work.
        let _ = function.initialised().await;
        let answer = match fate {
            Fate::Served => Some(function.invoke(payload).await),
            Fate::Hurried => Some(function.invoke_within(HURRY, payload).await),
            Fate::Killed(after) => tokio::select! {
                answer = function.invoke(payload) => Some(answer),
                () = sleep(*after) => None,
            },
        };
        let result = match answer {
            Some(Answer::Success(answer)) => Some(answer),
            Some(Answer::Error { .. }) => None,
            ended => {
                let on_purpose = match fate {
                    Fate::Served => false,
                    Fate::Hurried => matches!(ended, Some(Answer::TimedOut)),
                    Fate::Killed(_) => ended.is_none(),
                };
                if on_purpose {
                    self.killed += 1;
                } else {
                    self.died += 1;
                }
                self.lines.extend(function.kill().await.lines());
                return Ok(None);
            }
        };
        self.function = Some(function);
        Ok(result)
    }

    fn start(&mut self) -> Result<Function, Problem> {
        self.started += 1;
        let started = self.site.lab.function(&self.site.binary).try_start();
        started.map_err(|source| Problem::Unusable { path: self.site.binary.clone(), source })
    }

    /// Returns what its functions logged.
    async fn stop(mut self) -> Vec<Value> {
        if let Some(function) = self.function {
            self.lines.extend(function.stop().await.lines());
        }
        self.lines
    }
}

/// Messages as SQS hands them over, each the record of a failed invocation.
fn batch_of(items: &[Item]) -> String {
    event::batch(items.iter().map(|item| (item.id, item.event.failure_record())))
}

/// What came of all events.
#[derive(Default)]
struct Sent {
    items: usize,
    /// After each round, how many have to come again.
    failed: Vec<usize>,
    time: Duration,
    took: Vec<Duration>,
    started: usize,
    killed: usize,
    died: usize,
    jobs: usize,
    missing: Vec<String>,
    for_nobody: Vec<String>,
    changed: Vec<String>,
    requests: usize,
}

impl Sent {
    /// Prints all, and tells whether each event has its Job.
    #[expect(clippy::cast_precision_loss, reason = "no figure has as many digits")]
    fn report(&self, load: &Load, posts: usize, bare: Duration, lab: &Lab) -> bool {
        let faults = lab.kubernetes.faults_met();
        let (events, processes) = (load.events, load.processes);
        println!(
            "{events} events in {} deliveries to {processes} functions at a time ({:?})\n",
            self.items, load.cluster
        );
        let (ours, theirs) = (events as f64 / self.time.as_secs_f64(), posts as f64 / bare.as_secs_f64());
        println!("| | |\n| --- | ---: |");
        println!("| events a second | {ours:.1} |");
        println!("| raw posts a second, over {processes} connections | {theirs:.1} |");
        println!("| ratio | {:.2} |", ours / theirs);
        for percent in [50, 99] {
            println!(
                "| event by the function, p{percent}, ms | {:.1} |",
                percentile(&self.took, percent).as_secs_f64() * 1e3
            );
        }
        println!("| requests to the API server | {} |", self.requests);
        println!("| of them met a fault | {faults} |");
        println!("| processes started, and killed at work | {}, {} |", self.started, self.killed);
        println!("| processes that ended though nobody killed them | {} |", self.died);
        let mut left = self.items;
        let rounds = (1..=DELIVERIES).map(|round| format!("delivery {round}"));
        let rounds = rounds.chain((1..=RECEIVES).map(|round| format!("redrive, receive {round}")));
        for (round, failed) in rounds.zip(&self.failed) {
            println!("| done by {round} | {} |", left - failed);
            left = *failed;
        }
        println!("| never done | {left} |");
        println!("| Jobs | {} |", self.jobs);
        println!("| missing | {} |", self.missing.len());
        println!("| for no event | {} |", self.for_nobody.len());
        println!("| gone or made again | {} |", self.changed.len());
        for name in self.missing.iter().chain(&self.for_nobody).chain(&self.changed) {
            println!("{name}");
        }
        let again = self.failed.iter().sum::<usize>();
        let problems = [
            (left > 0, "events were never done"),
            (self.jobs != events, "there are not as many Jobs as events"),
            (!self.missing.is_empty(), "Jobs are missing"),
            (!self.for_nobody.is_empty(), "Jobs are for no event"),
            (!self.changed.is_empty(), "Jobs are gone, or were made again"),
            (self.died > 0, "functions ended though nobody killed them"),
            (faults == 0, "no request met a fault: this run shows nothing"),
            (self.killed == 0, "no function was killed: this run shows nothing"),
            (again == 0, "no event came again: this run shows nothing"),
        ];
        for (_, problem) in problems.iter().filter(|(is_so, _)| *is_so) {
            println!("\n{problem}");
        }
        problems.iter().all(|(is_so, _)| !is_so)
    }
}
