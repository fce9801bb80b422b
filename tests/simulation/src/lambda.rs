//! Lambda: environments that start cold and stay warm, the asynchronous queue, kills, and the failure queue.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use agent_scheduler::{
    aws,
    config::Config,
    deadline::{Deadline, START_TIMEOUT},
    https::{self, CertificateAuthority},
    lambda, log,
    scheduler::Scheduler,
    text::chain,
};
use aws_credential_types::Credentials;
use aws_smithy_runtime_api::client::http::{SharedHttpConnector, http_client_fn};
use lab::{Event, event::batch};
use serde_json::Value;
use tokio::{
    task::spawn_local,
    time::{Instant, sleep, timeout},
};
use tower::{service_fn, util::BoxCloneSyncService};

use crate::{
    network::{INVOCATION, Invocation, Record, Sdk},
    plan::{Kind, Planted, What},
    world::World,
};

/// The function's timeout, by which Lambda ends it.
const TIMEOUT: Duration = Duration::from_mins(1);

/// An init may take this long.
const INIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Until a new environment runs the function, and the CPU time of its start at the share of a core that 256 MB have: docs/performance.md.
const START: Duration = Duration::from_millis(100 + 22);

/// The CPU time of a warm event, likewise.
const EVENT: Duration = Duration::from_millis(1);

/// An event that finds no environment waits for this long at most. It begins with a second, and doubles.
const MAX_THROTTLED: Duration = Duration::from_mins(5);

/// An environment that was idle for this long is gone.
const MAX_IDLE: Duration = Duration::from_mins(7);

/// Lambda tries an event this often, a minute and two minutes apart.
const ATTEMPTS: u32 = 3;

/// How often the failure queue hands out a message, before it is parked.
const RECEIVES: u32 = 5;

/// One process of the function, between two invocations.
pub struct Environment {
    number: usize,
    scheduler: Scheduler,
    used: Instant,
}

/// What an invocation has answered and done.
pub struct Done {
    pub invocation: Invocation,
    pub answer: Value,
    pub record: Record,
}

/// Why an invocation has no answer.
enum Failure {
    /// It was killed.
    Killed,
    /// The function says so.
    Error(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed => f.write_str("killed"),
            Self::Error(text) => f.write_str(text),
        }
    }
}

/// Polls an invocation, and kills it after so many polls.
struct Killable<F> {
    invocation: Invocation,
    polls_left: Option<u32>,
    work: Pin<Box<F>>,
}

impl<F: Future> Future for Killable<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls_left == Some(0) {
            return Poll::Ready(None);
        }
        self.polls_left = self.polls_left.map(|polls| polls - 1);
        INVOCATION.set(self.invocation);
        self.work.as_mut().poll(context).map(Some)
    }
}

impl World {
    /// Has the function's requests answered by this world.
    pub fn connect(self: &Arc<Self>) {
        let world = Arc::clone(self);
        let servers = service_fn(move |request| Arc::clone(&world).answer(request));
        https::simulate(BoxCloneSyncService::new(servers));
        let world = Arc::clone(self);
        log::simulate(move |line| world.print(line));
    }

    fn scheduler(self: &Arc<Self>) -> Scheduler {
        let mut variables = self.lab.variables();
        variables.insert("AWS_LAMBDA_FUNCTION_NAME".to_owned(), "agent-scheduler".to_owned());
        if self.plan.planted == Some(Planted::Despairs) {
            variables.insert("POD_PENDING_SECONDS".to_owned(), "750".to_owned());
        }
        variables.insert("JOB_TOKENS".to_owned(), self.plan.has_job_tokens.to_string());
        variables.insert("SWEEP_ENABLED".to_owned(), self.plan.sweeps.to_string());
        if self.plan.is_described {
            variables.remove("KUBERNETES_API_SERVER_ENDPOINT");
            variables.remove("KUBERNETES_CERTIFICATE_AUTHORITY_DATA");
        }
        let var = |name: &str| variables.get(name).cloned();
        let config = Config::read(var).expect("the settings of the lab are right");
        let keys = self.lab.credentials();
        let (id, secret, session) = (&keys.access_key_id, &keys.secret_access_key, &keys.session_token);
        let credentials = Credentials::new(id, secret, Some(session.clone()), None, "lab");
        let roots = CertificateAuthority(Vec::new());
        let sdk = aws::sdk_config(&config.region, credentials.clone(), roots.clone(), var).expect("a client is made");
        let connector = SharedHttpConnector::new(Sdk(Arc::clone(self)));
        let sdk = sdk.into_builder().http_client(http_client_fn(move |_, _| connector.clone())).build();
        Scheduler::new(config, credentials, &sdk, roots)
    }

    /// EventBridge hands an event to Lambda's asynchronous queue.
    pub fn send(self: &Arc<Self>, event: Event) {
        let world = Arc::clone(self);
        let counts = usize::from(!event.is_sweep());
        world.state().queued += counts;
        spawn_local(async move {
            let attempts = if event.is_sweep() { 1 } else { ATTEMPTS };
            for attempt in 1..=attempts {
                match world.invoke(&event.to_string(), world.is_plain(&event)).await {
                    Ok(done) => {
                        world.check_answer(&event, &done);
                        world.check_metrics(&done);
                        break;
                    }
                    Err(failure @ Failure::Error(_)) if world.is_plain(&event) && world.plan.is_calm() => {
                        world.violated(format!("an event fails without a cause: {failure}"));
                    }
                    Err(failure) if attempt == attempts => {
                        world.note(format!("given up: {failure}"));
                        if !event.is_sweep() {
                            world.state().failure_queue.push((event.clone(), 0));
                        }
                    }
                    Err(failure) => {
                        world.note(format!("attempt {attempt} failed: {failure}"));
                        sleep(Duration::from_mins(1) * attempt).await;
                    }
                }
            }
            world.state().queued -= counts;
        });
    }

    /// SQS hands the messages of the failure queue to the function, once an operator has switched that on.
    pub async fn redrive(self: &Arc<Self>) {
        let messages: Vec<_> = {
            let mut state = self.state();
            let count = state.failure_queue.len().min(10);
            state.failure_queue.drain(..count).collect()
        };
        if messages.is_empty() {
            return;
        }
        let records = messages.iter().enumerate().map(|(id, (event, _))| (id, event.failure_record()));
        let done = self.invoke(&batch(records), false).await;
        if let Ok(done) = &done {
            self.check_metrics(done);
        }
        for (id, (event, receives)) in messages.into_iter().enumerate() {
            let id = id.to_string();
            let failures = done.as_ref().ok().and_then(|done| done.answer["batchItemFailures"].as_array());
            let has_failed = failures.is_none_or(|all| all.iter().any(|one| one["itemIdentifier"] == id.as_str()));
            if has_failed && receives + 1 < RECEIVES {
                self.state().failure_queue.push((event, receives + 1));
            } else if has_failed {
                self.note(format!("parked: {}", event.job_uuid()));
                self.state().parked.insert(event.job_uuid().to_owned());
            }
        }
    }

    /// One invocation, as soon as an environment is free.
    async fn invoke(self: &Arc<Self>, payload: &str, is_plain: bool) -> Result<Done, Failure> {
        let mut pause = Duration::from_secs(1);
        while self.state().busy == self.plan.environments {
            // AWS names no jitter; without any, all events of a burst come back at once.
            let share = self.state().dice.f64() / 2.0 + 0.5;
            sleep(pause.mul_f64(share)).await;
            pause = MAX_THROTTLED.min(pause * 2);
        }
        let began = Instant::now();
        let (number, warm, polls_left) = {
            let mut state = self.state();
            (state.busy, state.seen.invocations) = (state.busy + 1, state.seen.invocations + 1);
            state.seen.most_environments = state.seen.most_environments.max(state.busy);
            let warm = state.idle.pop().filter(|environment| environment.used.elapsed() < MAX_IDLE);
            state.seen.starts += usize::from(warm.is_none());
            (state.seen.invocations, warm, self.killed_after(&mut state.dice))
        };
        let environment = warm.as_ref().map_or(number, |environment| environment.number);
        let invocation = Invocation { number, environment, is_plain };
        let world = Arc::clone(self);
        let work = async move {
            let environment = match warm {
                Some(environment) if world.plan.planted != Some(Planted::Forgets) => environment,
                Some(_) | None => world.cold_start(environment).await,
            };
            sleep(EVENT).await;
            let is_blind = world.plan.planted == Some(Planted::Dawdles);
            let end = world.wall() + if is_blind { TIMEOUT * 10 } else { TIMEOUT };
            let handled = lambda::handle(&environment.scheduler, payload, Deadline::of_invocation(end));
            (timeout(TIMEOUT, handled).await, environment)
        };
        self.note(format!("invocation {number}"));
        let done = Killable { invocation, polls_left, work: Box::pin(work) }.await;
        let mut state = self.state();
        state.busy -= 1;
        let record = state.records.remove(&number).unwrap_or_default();
        state.seen.worked += began.elapsed();
        match done {
            Some((Ok(answer), environment)) => {
                state.idle.push(Environment { used: Instant::now(), ..environment });
                drop(state);
                let answer = answer.map_err(|error| Failure::Error(chain(&error)))?;
                let answer = serde_json::to_value(answer).expect("an answer is JSON");
                self.note(format!("invocation {number} answers {answer}"));
                Ok(Done { invocation, answer, record })
            }
            Some((Err(_), _)) => {
                drop(state);
                self.violated(format!("invocation {number} outlasts its timeout"));
                Err(Failure::Killed)
            }
            None => Err(Failure::Killed),
        }
    }

    fn is_plain(&self, event: &Event) -> bool {
        !event.is_sweep() && matches!(self.kind(event.job_uuid()), Kind::Usual | Kind::NoImage)
    }

    async fn cold_start(self: &Arc<Self>, number: usize) -> Environment {
        sleep(START).await;
        let scheduler = self.scheduler();
        match timeout(INIT_TIMEOUT, scheduler.start(Deadline::after(START_TIMEOUT))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.note(format!("start-up is not complete: {}", chain(&error))),
            Err(_) => self.violated("a start outlasts its timeout".to_owned()),
        }
        Environment { number, scheduler, used: Instant::now() }
    }

    /// How many polls an invocation that begins now has, if it is to be killed.
    fn killed_after(&self, dice: &mut fastrand::Rng) -> Option<u32> {
        let now = self.now();
        let mut due =
            self.plan.troubles.iter().filter(|trouble| (trouble.at..trouble.at + trouble.lasts).contains(&now));
        due.find_map(|trouble| match trouble.what {
            What::Kills(share, polls) if dice.f64() < share => Some(dice.u32(1..=polls)),
            _ => None,
        })
    }
}
