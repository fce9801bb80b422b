//! `bench burst`: many jobs at once, with the agent token that all share and with a token for each agent, for which Buildkite takes ten
//! reservations a second. How many get their Job by event, and how many by the sweep?

use std::{sync::Arc, time::Duration};

use clap::Args;
use lab::{Answer, Event, Function, Lab, buildkite::CLUSTER};
use nix::errno::Errno;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use crate::subject::{Failure, Subject, cpu_time, ms};

/// The burst begins in the middle between two sweeps.
const FIRST_SWEEP: Duration = Duration::from_secs(30);
const PERIOD: Duration = Duration::from_mins(1);

/// What to send.
#[derive(Args)]
pub struct Burst {
    #[command(flatten)]
    subject: Subject,
    /// How many jobs are scheduled at once.
    #[arg(long, default_value_t = 1_000)]
    jobs: usize,
    /// How many functions work side by side.
    #[arg(long, default_value_t = 32)]
    processes: usize,
}

impl Burst {
    /// Prints the table; fails if a job has no Job, or no Secret of its own.
    pub async fn run(self) -> Result<bool, Failure> {
        println!("\n{} jobs at once on {} functions; the first sweep comes after 30 s\n", self.jobs, self.processes);
        println!("| token | all Jobs after, s | by event | deferred | by sweep | CPU per event, ms |");
        println!("| --- | ---: | ---: | ---: | ---: | ---: |");
        let shared = self.measure("shared", "false").await?;
        let own = self.measure("one for each agent", "true").await?;
        Ok(shared && own)
    }

    #[expect(clippy::cast_precision_loss, reason = "no figure has as many digits")]
    async fn measure(&self, token: &str, job_tokens: &str) -> Result<bool, Failure> {
        let lab = Lab::start().await;
        let start = || {
            let change =
                |builder: lab::function::Builder| builder.timeout(Duration::from_mins(1)).env("JOB_TOKENS", job_tokens);
            self.subject.start_as(&lab, change)
        };
        let functions: Vec<_> = (0..self.processes).map(|_| start()).collect::<Result<_, _>>()?;
        let sweeper = start()?;
        for function in functions.iter().chain([&sweeper]) {
            function.initialised().await.map_err(|answer| self.subject.failed(&answer))?;
        }
        let events: Vec<_> = (0..self.jobs).map(|_| self.subject.event.clone().uuid(Uuid::new_v4()).now()).collect();
        for event in &events {
            lab.buildkite.lock().schedule(event, CLUSTER);
        }
        let cpu: Duration = functions.iter().map(cpu_time).sum::<Result<_, _>>()?;
        let (began, mut worked) = (Instant::now(), Duration::ZERO);
        let waiting = Arc::new(Mutex::new(events));
        let mut working: JoinSet<_> =
            functions.into_iter().map(|function| work(function, Arc::clone(&waiting))).collect();
        let mut outcomes: Vec<Value> = Vec::new();
        let mut next = began + FIRST_SWEEP;
        let mut all = None;
        while all.is_none() {
            tokio::select! {
                Some(done) = working.join_next() => {
                    let (answers, cpu) = done?;
                    worked += cpu?;
                    for answer in answers {
                        let Answer::Success(answer) = answer else { return Err(self.subject.failed(&answer)) };
                        outcomes.push(answer["outcome"].clone());
                    }
                }
                () = sleep_until(next) => {
                    next += PERIOD;
                    sweeper.invoke(Event::sweep()).await;
                }
            }
            let is_done = working.is_empty() && lab.kubernetes.jobs().len() == self.jobs;
            all = is_done.then(|| began.elapsed());
        }
        let count = |outcome: &str| outcomes.iter().filter(|found| **found == outcome).count();
        let (created, deferred) = (count("created"), count("deferred"));
        let seconds = all.unwrap_or_default().as_secs_f64();
        let by_sweep = self.jobs - created;
        let each = ms(worked.saturating_sub(cpu)) / self.jobs as f64;
        println!("| {token} | {seconds:.1} | {created} | {deferred} | {by_sweep} | {each:.2} |");
        let own_secrets = lab.kubernetes.secrets().iter().filter(|secret| secret["immutable"] == true).count();
        sweeper.stop().await;
        Ok(own_secrets == if job_tokens == "true" { self.jobs } else { 0 })
    }
}

/// Gives a function one event after the other. Returns its answers, and how long it has worked since its start.
async fn work(function: Function, waiting: Arc<Mutex<Vec<Event>>>) -> (Vec<Answer>, Result<Duration, Errno>) {
    let mut answers = Vec::new();
    loop {
        let Some(event) = waiting.lock().pop() else { return (answers, cpu_time(&function)) };
        answers.push(function.invoke(event).await);
    }
}
