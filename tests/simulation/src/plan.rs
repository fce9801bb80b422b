//! What a seed decides before a run: the settings, the jobs with their fates, and the troubles.

use std::{ops::RangeInclusive, time::Duration};

use fastrand::Rng;
use lab::{Fault, When};

use crate::limits::{Rate, Rates};

/// Jobs come and troubles begin within this time.
const BUSY: RangeInclusive<u64> = 0..=900;

/// All that differs from one run to another.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting")]
pub struct Plan {
    /// Which run it is.
    pub seed: u64,
    /// Whether the sweep is on.
    pub sweeps: bool,
    /// Whether each agent has a token of its own.
    pub has_job_tokens: bool,
    /// How long a request is on its way at most, and its answer, in milliseconds.
    pub latency: u64,
    /// How far the clocks of Buildkite and of the API server are ahead of the function's.
    pub ahead: [Duration; 2],
    /// Whether the function asks EKS for the cluster's endpoint.
    pub is_described: bool,
    /// The reserved concurrency.
    pub environments: usize,
    /// How many requests the services take.
    pub rates: Rates,
    /// Jobs of Buildkite, in the order of their numbers.
    pub jobs: Vec<Job>,
    /// What goes wrong, or is done by operators.
    pub troubles: Vec<Trouble>,
    /// How often a pod looks whether it has to end.
    pub step: Duration,
    /// Whether all that happens is kept, for people to read.
    pub is_recorded: bool,
    /// For the tests of the checks.
    pub planted: Option<Planted>,
}

/// A fault of the function: its requests, or what it sees of the answers, are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// It does not see a `Retry-After`.
    Hurries,
    /// It does not see its deadline, and the network is slow.
    Dawdles,
    /// It puts the agent token into each Job.
    Leaks,
    /// It takes a Job for created that is not.
    Invents,
    /// It deletes Jobs that run.
    Deletes,
    /// It makes Jobs without a TTL.
    Litters,
    /// It makes Secrets that belong to no Job.
    Orphans,
    /// It lets another agent take a job that runs.
    Repeats,
    /// It finishes jobs before `PodPendingSeconds`.
    Despairs,
    /// It does not see the cluster's definitions.
    Clings,
    /// Each of its environments keeps nothing between two invocations.
    Forgets,
    /// It never lists what waits.
    Overlooks,
    /// It asks for large lists.
    Hoards,
    /// It lists Jobs before it makes one.
    Looks,
    /// It prints each answer that it gets.
    Prints,
    /// It says of a Job that was there that it is created.
    Boasts,
    /// It does not count the Jobs that it makes.
    Miscounts,
}

/// Numbers of jobs and of troubles to leave out.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "their names say it")]
pub struct Without {
    pub jobs: Vec<usize>,
    pub troubles: Vec<usize>,
}

/// A job of Buildkite, and what becomes of its event and of its pods.
#[derive(Clone, Debug)]
pub struct Job {
    /// The same in a plan with fewer jobs.
    pub number: usize,
    /// When it is scheduled.
    pub at: Duration,
    /// What its step asks for.
    pub kind: Kind,
    /// How long its command runs.
    pub runs: Duration,
    /// When its events come, from then on. None if the event is lost.
    pub deliveries: Vec<Duration>,
    /// When a user cancels it, from then on.
    pub cancelled: Option<Duration>,
    /// How long a concurrency group locks it.
    pub locked: Option<Duration>,
    /// Automatic retries of its step.
    pub retries: u32,
    /// What happens to its pods, the first one first.
    pub pods: Vec<Fate>,
}

/// What a step asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A queue of the stack.
    Usual,
    /// A pod definition that does not exist: the step must change.
    NoDefinition,
    /// An image that does not exist: no pod of it starts.
    NoImage,
    /// A tag that the stack does not have: the job is for another stack.
    OfAnotherStack,
}

/// What happens to a pod while there is trouble; a calm cluster runs each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its agent takes the job and ends it.
    Runs,
    /// It waits for its image for this long.
    Pulls(Duration),
    /// It has no node for this long.
    HasNoNode(Duration),
    /// An init container fails.
    Fails,
    /// Its agent ends with 1, and no job.
    AgentFails,
    /// Its agent ends with 1 while the command runs.
    Crashes,
    /// It is evicted while its agent starts or runs.
    IsEvicted(Duration),
    /// Its node is gone, before its agent has a job.
    LosesItsNode,
}

/// Something that lasts for a while.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// The same in a plan with fewer troubles.
    pub number: usize,
    /// When it begins.
    pub at: Duration,
    /// How long it lasts.
    pub lasts: Duration,
    /// What it is.
    pub what: What,
}

/// What goes wrong, or is done.
#[derive(Clone, Debug)]
pub enum What {
    /// A share of the requests to a server that match meets a fault.
    Answers(Server, When, Fault, f64),
    /// A share of the invocations is killed after this many awaits at most.
    Kills(f64, u32),
    /// The rule of the sweep is disabled.
    NoSweep,
    /// Another agent token in SSM; the old one works on for an hour.
    Rotate,
    /// An operator deletes the Secrets.
    DeleteSecrets,
    /// Another field manager owns the Secret, which has another token.
    TakeSecret,
    /// Another client has a Job with the name of this job's.
    TakeName(usize),
    /// The cluster has a definition `default` of its own.
    Define,
    /// The function lacks a permission.
    Forbid(&'static str, &'static str),
    /// The queue is paused.
    Pause,
    /// The cluster is made again: nothing is in it, and EKS has its endpoint.
    Rebuild,
    /// No agent reaches Buildkite.
    NoAgents,
}

/// Who answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Server {
    Aws,
    Buildkite,
    Kubernetes,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Self {
        let mut dice = Rng::with_seed(seed);
        let (jobs, troubles) = (dice.usize(1..=12), dice.usize(0..=5));
        let sweeps = dice.u32(0..8) > 0;
        Self {
            seed,
            sweeps,
            // Without the sweep, nothing makes what an event leaves to it.
            has_job_tokens: sweeps && dice.bool(),
            latency: *pick(&mut dice, &[2, 20, 20, 300, 1_500]),
            ahead: [0; 2].map(|_: u64| seconds(if dice.bool() { 0 } else { dice.u64(0..120) })),
            is_described: dice.bool(),
            environments: dice.usize(1..=4),
            rates: Rates::of(&mut dice.fork()),
            jobs: (0..jobs).map(|number| Job::of(number, &mut dice.fork())).collect(),
            troubles: (0..troubles).map(|number| Trouble::of(number, &mut dice.fork())).collect(),
            step: Duration::from_secs(1),
            is_recorded: true,
            planted: None,
        }
    }

    /// The same with less in it.
    #[must_use]
    pub fn without(mut self, Without { jobs, troubles }: &Without) -> Self {
        self.jobs.retain(|job| !jobs.contains(&job.number));
        self.troubles.retain(|trouble| !troubles.contains(&trouble.number));
        self
    }

    /// Nothing goes wrong in it, and no service is short.
    pub fn is_calm(&self) -> bool {
        let Rates { ssm, api_server, .. } = self.rates;
        self.troubles.is_empty() && ssm.is_none() && api_server.is_none()
    }

    /// A job that is reserved for its token may lose its Job, or never get it; no list of what waits has it.
    pub fn may_lose_reservations(&self) -> bool {
        let loses = |what: &What| {
            matches!(what, What::Answers(..) | What::Kills(..) | What::Forbid(..) | What::Pause | What::Rebuild)
        };
        self.has_job_tokens && self.troubles.iter().any(|trouble| loses(&trouble.what))
    }

    /// From then on nothing goes wrong any more.
    pub fn calm_at(&self) -> Duration {
        let troubles = self.troubles.iter().map(|trouble| trouble.at + trouble.lasts);
        let jobs = self.jobs.iter().map(|job| job.at + job.last_act());
        troubles.chain(jobs).max().unwrap_or_default().max(Duration::from_secs(*BUSY.end()))
    }
}

impl Rates {
    /// In most plans only a few requests meet a limit.
    fn of(dice: &mut Rng) -> Self {
        let mut rate = |per_second: f64, at_once: f64| (dice.u32(0..4) == 0).then_some(Rate { per_second, at_once });
        Self { ssm: rate(0.5, 1.0), api_server: rate(4.0, 8.0), job_controller: rate(0.1, 1.0) }
    }
}

impl Job {
    /// When the last of its events comes, or a user has done the last thing.
    fn last_act(&self) -> Duration {
        let acts = self.deliveries.iter().chain(&self.cancelled).chain(&self.locked);
        acts.max().copied().unwrap_or_default()
    }

    fn of(number: usize, dice: &mut Rng) -> Self {
        let kind = match dice.u32(0..20) {
            0 => Kind::NoDefinition,
            1 => Kind::NoImage,
            2 => Kind::OfAnotherStack,
            _ => Kind::Usual,
        };
        // Some jobs come in a burst.
        let at = if dice.bool() { seconds(60) } else { seconds(dice.u64(BUSY)) };
        let deliveries = match dice.u32(0..10) {
            0 => vec![],
            1 => vec![1, 1],
            2 => vec![1, dice.u64(2..900)],
            3 => vec![dice.u64(10..300)],
            _ => vec![1],
        };
        let (is_cancelled, is_locked) = (dice.u32(0..6) == 0, dice.u32(0..10) == 0);
        Self {
            number,
            at,
            kind,
            runs: seconds(dice.u64(1..400)),
            deliveries: deliveries.into_iter().map(seconds).collect(),
            cancelled: is_cancelled.then(|| seconds(dice.u64(0..400))),
            locked: is_locked.then(|| seconds(dice.u64(0..1_500))),
            retries: dice.u32(0..=1),
            pods: (0..4).map(|_| Fate::of(dice)).collect(),
        }
    }
}

impl Fate {
    fn of(dice: &mut Rng) -> Self {
        match dice.u32(0..24) {
            0 | 1 => Self::Pulls(seconds(dice.u64(60..1_200))),
            2 => Self::HasNoNode(seconds(dice.u64(30..1_200))),
            3 => Self::Fails,
            4 | 5 => Self::AgentFails,
            6 => Self::Crashes,
            7 => Self::IsEvicted(seconds(dice.u64(0..90))),
            8 => Self::LosesItsNode,
            _ => Self::Runs,
        }
    }
}

impl Trouble {
    fn of(number: usize, dice: &mut Rng) -> Self {
        let what = match dice.u32(0..20) {
            0..=6 => Self::answers(dice),
            7 | 8 => What::Kills(*pick(dice, &[0.2, 0.5, 1.0]), dice.u32(1..200)),
            9 => What::NoSweep,
            10 => What::Rotate,
            11 => What::DeleteSecrets,
            12 => {
                let permissions = [
                    ("create", "jobs"),
                    ("get", "jobs"),
                    ("list", "jobs"),
                    ("delete", "jobs"),
                    ("list", "pods"),
                    ("list", "events"),
                    ("patch", "secrets"),
                    ("list", "podtemplates"),
                    ("create", "secrets"),
                ];
                let (verb, resource) = *pick(dice, &permissions);
                What::Forbid(verb, resource)
            }
            13 => What::Pause,
            14 => What::TakeSecret,
            15 | 16 => What::TakeName(dice.usize(0..12)),
            17 => What::Rebuild,
            _ => What::Define,
        };
        Self { number, at: seconds(dice.u64(BUSY)), lasts: seconds(dice.u64(1..900)), what }
    }

    fn answers(dice: &mut Rng) -> What {
        let server = *pick(dice, &[Server::Kubernetes, Server::Kubernetes, Server::Buildkite, Server::Aws]);
        let (parts, faults) = match server {
            Server::Aws => (&[("", "")][..], vec![Fault::throttling(), Fault::access_denied(), Fault::status(503)]),
            Server::Buildkite => (
                &[("GET", "/scheduled-jobs"), ("POST", "/get-states"), ("POST", "/finish"), ("PUT", "/batch-reserve")]
                    [..],
                vec![Fault::status(401), Fault::throttled(seconds(dice.u64(0..20)))],
            ),
            Server::Kubernetes => (
                &[("POST", "/jobs"), ("GET", "/jobs"), ("DELETE", "/jobs/"), ("GET", "/pods"), ("PATCH", "/secrets/")]
                    [..],
                vec![Fault::status(401), Fault::throttled(seconds(dice.u64(0..20))), Fault::status(504)],
            ),
        };
        let time = Duration::from_millis(dice.u64(100..30_000));
        let common = [
            Fault::status(500),
            Fault::status(503),
            Fault::CutBefore,
            Fault::CutAfter,
            Fault::CutAfter,
            Fault::Delay(time),
            Fault::DelayAfter(time),
            Fault::Garbage,
        ];
        let faults: Vec<_> = faults.into_iter().chain(common).collect();
        let (verb, part) = *pick(dice, parts);
        let when = if dice.bool() || verb.is_empty() { When::any() } else { When::request(verb, part) };
        What::Answers(server, when, pick(dice, &faults).clone(), *pick(dice, &[0.1, 0.5, 1.0]))
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn pick<'a, T>(dice: &mut Rng, among: &'a [T]) -> &'a T {
    &among[dice.usize(..among.len())]
}
