//! One run of one plan: time, what is remembered for the checks, and who acts beside the function.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use fastrand::Rng;
use lab::{AGENT_TOKEN_PARAMETER, Event, Lab, Parameter, buildkite, buildkite::CLUSTER};
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};
use tokio::{
    task::spawn_local,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    lambda::Environment,
    limits::Backlogs,
    network::{Pauses, Read, Record},
    plan::{Job, Kind, Plan, Trouble, What},
    seen::Seen,
};

/// When every world begins.
pub const START: Duration = Duration::from_secs(1_768_471_205);

/// The Secret with the agent token.
pub const SECRET: &str = "buildkite-agent-token";

/// The period of the sweep.
const SWEEP: Duration = Duration::from_mins(1);

/// A job of Buildkite that is for the stack ends within this time after the last trouble: `PodPendingSeconds` (15 min), the pauses
/// between its attempts and the time that each takes.
const MAX_WAITING: Duration = Duration::from_mins(45);

/// With job tokens, a job may be reserved for this long though it has no Job.
const JOB_TOKEN_LIFETIME: Duration = Duration::from_hours(1);

/// Then all that was made for it is gone: a pod on a dead node after 15 minutes, its Job by the TTL of ten, and a minute.
const MAX_LEFT: Duration = Duration::from_mins(26);

/// All of one run.
pub struct World {
    pub lab: Lab,
    pub plan: Plan,
    start: Instant,
    state: Mutex<State>,
}

/// What is remembered.
pub struct State {
    /// For what is no fate of the plan.
    pub dice: Rng,
    /// What invocations that are at work have done.
    pub records: BTreeMap<usize, Record>,
    /// How often the cluster was made again.
    rebuilds: u16,
    /// What servers have asked of invocations.
    pub pauses: Pauses,
    /// Each agent token that SSM had.
    pub tokens: Vec<String>,
    /// Warm environments, the one that was used last at the end.
    pub idle: Vec<Environment>,
    /// How many environments are at work.
    pub busy: usize,
    /// Events of jobs that are on their way.
    pub queued: usize,
    /// With the number of redrives.
    pub failure_queue: Vec<(Event, u32)>,
    /// Uuids of the jobs whose events are in the parking queue.
    pub parked: BTreeSet<String>,
    pub backlogs: Backlogs,
    /// For the tables of a day.
    pub seen: Seen,
    /// Names of Jobs that were there, and when the first one was seen.
    pub created: BTreeMap<String, Duration>,
    /// The number in the plan of each job of Buildkite.
    pub numbers: BTreeMap<String, usize>,
    /// How many pods each job of Buildkite had.
    pub pods: BTreeMap<String, usize>,
    /// The jobs whose command runs, by the uid of their Job.
    pub running: BTreeMap<String, String>,
    /// How often the command of a job was run.
    pub runs: BTreeMap<String, u32>,
    /// The image of the cluster's own definition `default` from a time on.
    pub definitions: Vec<(Instant, Option<String>)>,
    /// What environments have read, and when.
    pub read: Read,
    pub violations: Vec<String>,
    last_pod: usize,
}

impl State {
    pub fn next_pod(&mut self) -> usize {
        self.last_pod += 1;
        self.last_pod
    }
}

impl World {
    /// Nothing has happened yet. It needs a runtime whose clock is paused.
    pub fn new(plan: Plan) -> Arc<Self> {
        let now = SystemTime::UNIX_EPOCH + START;
        agent_scheduler::clock::simulate(now, plan.seed);
        lab::clock::simulate(now);
        let lab = Lab::in_process();
        if !plan.is_recorded {
            lab.timeline.close();
        }
        let [buildkite_ahead, kubernetes_ahead] = plan.ahead;
        lab.buildkite.lock().skipped = buildkite_ahead;
        lab.kubernetes.skip(kubernetes_ahead);
        let state = State {
            dice: Rng::with_seed(plan.seed),
            records: BTreeMap::new(),
            rebuilds: 0,
            pauses: Pauses::default(),
            tokens: vec![lab.agent_token().to_owned()],
            idle: Vec::new(),
            busy: 0,
            queued: 0,
            failure_queue: Vec::new(),
            parked: BTreeSet::new(),
            backlogs: Backlogs::default(),
            seen: Seen::default(),
            created: BTreeMap::new(),
            numbers: BTreeMap::new(),
            pods: BTreeMap::new(),
            running: BTreeMap::new(),
            runs: BTreeMap::new(),
            definitions: vec![(Instant::now(), None)],
            read: Read::default(),
            violations: Vec::new(),
            last_pod: 0,
        };
        Arc::new(Self { lab, plan, start: Instant::now(), state: Mutex::new(state) })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + START + self.now()
    }

    /// The time as it stands in an object.
    pub fn timestamp(&self) -> String {
        self.lab.kubernetes.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// A time between so many milliseconds.
    pub fn between(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.state().dice.u64(from..to))
    }

    pub fn note(&self, text: String) {
        self.lab.timeline.note(text);
    }

    /// Of the cluster as it is now, if the function asks EKS for its endpoint.
    pub fn api_server_port(&self) -> Option<u16> {
        let rebuilds = self.state().rebuilds;
        (self.plan.is_described && rebuilds > 0).then(|| 6_443 + rebuilds)
    }

    pub fn violated(&self, text: String) {
        self.note(format!("VIOLATION: {text}"));
        self.state().violations.push(text);
    }

    pub fn job(&self, number: usize) -> Option<&Job> {
        let place = self.plan.jobs.binary_search_by_key(&number, |job| job.number).ok()?;
        Some(&self.plan.jobs[place])
    }

    /// What the step of a job of Buildkite asks for.
    pub fn kind(&self, uuid: &str) -> Kind {
        let number = self.state().numbers[uuid];
        self.job(number).map_or(Kind::Usual, |job| job.kind)
    }

    /// How long its command runs.
    pub fn runs(&self, uuid: &str) -> Duration {
        let number = self.state().numbers[uuid];
        self.job(number).map_or(Duration::ZERO, |job| job.runs)
    }

    /// Runs until all is settled, or too late.
    pub async fn run(self: &Arc<Self>) {
        self.connect();
        spawn_local(Arc::clone(self).schedule_sweeps());
        self.state().queued += self.plan.jobs.len();
        spawn_local(Arc::clone(self).schedule_jobs());
        for trouble in &self.plan.troubles {
            spawn_local(Arc::clone(self).make_trouble(trouble.clone()));
        }
        let calm_at = self.plan.calm_at();
        sleep_until(self.start + calm_at).await;
        self.note("calm".to_owned());
        let reserved = if self.plan.may_lose_reservations() { JOB_TOKEN_LIFETIME } else { Duration::ZERO };
        let mut late = calm_at + MAX_WAITING + reserved;
        while self.now() < late && (!self.jobs_that_wait().is_empty() || !self.plan.sweeps) {
            self.redrive().await;
            sleep(SWEEP).await;
        }
        self.check_ended();
        late = self.now() + MAX_LEFT;
        while self.now() < late && !self.left().is_empty() {
            self.redrive().await;
            sleep(SWEEP).await;
        }
        self.check_left();
    }

    async fn schedule_sweeps(self: Arc<Self>) {
        loop {
            sleep(SWEEP).await;
            if !self.is_troubled(|what| matches!(what, What::NoSweep)) {
                self.send(Event::sweep());
            }
            // Each second counts in the bus, too.
            let retried = std::mem::take(&mut self.lab.buildkite.lock().events);
            for event in retried {
                let number = event.number();
                self.state().numbers.insert(event.job_uuid().to_owned(), number);
                self.send(event);
            }
        }
    }

    pub fn is_troubled(&self, by: impl Fn(&What) -> bool) -> bool {
        let now = self.now();
        let mut due =
            self.plan.troubles.iter().filter(|trouble| (trouble.at..trouble.at + trouble.lasts).contains(&now));
        due.any(|trouble| by(&trouble.what))
    }

    async fn schedule_jobs(self: Arc<Self>) {
        let mut jobs = self.plan.jobs.clone();
        jobs.sort_by_key(|job| job.at);
        for job in jobs {
            sleep_until(self.start + job.at).await;
            spawn_local(Arc::clone(&self).schedule_job(job));
        }
    }

    /// Buildkite schedules a job, the bus delivers its events, and a user may cancel it.
    async fn schedule_job(self: Arc<Self>, job: Job) {
        let event = Event::of_number(job.number);
        let event = match job.kind {
            Kind::Usual | Kind::NoImage => event,
            Kind::NoDefinition => event.rules(["queue=kubernetes", "pod-definition=missing"]),
            Kind::OfAnotherStack => event.rules(["queue=kubernetes", "gpu=true"]),
        }
        .now();
        let uuid = event.job_uuid().to_owned();
        self.note(format!("job {} is scheduled: {uuid}", job.number));
        self.state().numbers.insert(uuid.clone(), job.number);
        {
            let mut buildkite = self.lab.buildkite.lock();
            let scheduled = buildkite.schedule(&event, CLUSTER);
            (scheduled.retries, scheduled.is_locked) = (job.retries, job.locked.is_some());
        }
        let mut acts: Vec<(Duration, Act)> = job.deliveries.iter().map(|time| (*time, Act::Deliver)).collect();
        acts.extend(job.cancelled.map(|time| (time, Act::Cancel)));
        acts.extend(job.locked.map(|time| (time, Act::Unlock)));
        acts.sort_by_key(|(time, _)| *time);
        let start = Instant::now();
        for (time, act) in acts {
            sleep_until(start + time).await;
            self.note(format!("job {}: {act:?}", job.number));
            match act {
                Act::Deliver => self.send(event.clone()),
                Act::Cancel => self.lab.buildkite.lock().cancel(&uuid),
                Act::Unlock => {
                    self.lab.buildkite.lock().jobs.get_mut(&uuid).expect("it is scheduled").is_locked = false;
                }
            }
        }
        self.state().queued -= 1;
    }

    async fn make_trouble(self: Arc<Self>, Trouble { at, lasts, what, number }: Trouble) {
        sleep(at).await;
        self.note(format!("trouble {number} begins: {what:?}"));
        let pause = |is_paused| self.lab.buildkite.lock().queue(CLUSTER, "kubernetes").is_paused = is_paused;
        match what {
            What::Rotate => {
                let token = format!("bkct_{number}{}", "0".repeat(40));
                self.lab.aws.put_parameter(AGENT_TOKEN_PARAMETER, Parameter::secure_string(&token));
                let cluster = (CLUSTER.to_owned(), buildkite::Token::Cluster);
                self.lab.buildkite.lock().tokens.insert(token.clone(), cluster);
                self.state().tokens.push(token);
            }
            What::DeleteSecrets => {
                for secret in self.lab.kubernetes.secrets() {
                    let name = secret["metadata"]["name"].as_str().unwrap_or_default();
                    self.lab.kubernetes.remove_secret("buildkite", name);
                }
            }
            What::TakeSecret => self.lab.kubernetes.put_secret_as("another", "buildkite", SECRET, "token", "theirs"),
            What::TakeName(number) => {
                let name = Event::of_number(number).job_name();
                if self.lab.kubernetes.job(&name).is_none() {
                    self.lab.kubernetes.put_job(json!({"metadata": {"name": name, "labels": {"theirs": "yes"}}}));
                }
            }
            What::Define => {
                let image = format!("theirs:{number}");
                let spec = json!({"restartPolicy": "Never", "containers": [{"name": "agent", "image": image}]});
                let template = json!({"metadata": {"name": "default"}, "template": {"spec": spec}});
                self.lab.kubernetes.put_pod_template(template);
                self.state().definitions.push((Instant::now(), Some(image)));
            }
            What::Forbid(verb, resource) => self.lab.kubernetes.forbid(verb, resource),
            What::Pause => pause(true),
            What::Rebuild => {
                self.lab.kubernetes.empty();
                let mut state = self.state();
                state.definitions.push((Instant::now(), None));
                state.rebuilds += 1;
                drop(state);
                if let Some(port) = self.api_server_port() {
                    let endpoint = format!("{}:{port}", self.lab.kubernetes.url());
                    self.lab.aws.put_cluster(lab::CLUSTER, endpoint, self.lab.kubernetes.ca_data());
                }
            }
            What::Answers(..) | What::Kills(..) | What::NoSweep | What::NoAgents => {}
        }
        sleep(lasts).await;
        self.note(format!("trouble {number} ends"));
        match what {
            What::Forbid(verb, resource) => self.lab.kubernetes.allow(verb, resource),
            What::Pause => pause(false),
            What::TakeSecret => self.lab.kubernetes.remove_secret("buildkite", SECRET),
            What::TakeName(number) => {
                let name = Event::of_number(number).job_name();
                let taken = self.lab.kubernetes.job(&name);
                if let Some(job) = taken.filter(|job| job["metadata"]["labels"]["theirs"] == "yes") {
                    self.lab.kubernetes.collect_job(&name, job["metadata"]["uid"].as_str().unwrap_or_default());
                }
            }
            What::Define => {
                self.lab.kubernetes.remove_pod_template("buildkite", "default");
                self.state().definitions.push((Instant::now(), None));
            }
            _ => {}
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Deliver,
    Cancel,
    Unlock,
}

/// A job's event knows its number in the plan: it is that of the build.
pub trait Numbered {
    /// That of the job with this number.
    fn of_number(number: usize) -> Self;
    /// The number of its job.
    fn number(&self) -> usize;
}

impl Numbered for Event {
    fn of_number(number: usize) -> Self {
        let event = Self::scheduled().uuid(format!("11111111-2222-4333-8444-{number:012}"));
        event.detail(|detail| detail["build"]["number"] = number.into())
    }

    fn number(&self) -> usize {
        let event: Value = serde_json::from_str(&self.to_string()).unwrap_or_default();
        event["detail"]["build"]["number"].as_u64().and_then(|number| number.try_into().ok()).unwrap_or_default()
    }
}
