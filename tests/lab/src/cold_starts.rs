//! `lab cold-starts`: many functions that start at once, before an SSM that answers only so many calls a second.
//!
//! Every function reads the agent token when it starts. SSM answers 40 `GetParameter` calls a second in an account and region, and
//! 10,000 with the higher throughput that can be switched on: <https://docs.aws.amazon.com/general/latest/gr/ssm.html>.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use lab::{Answer, Event, Fault, Function, Lab, When};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::bench::{Problem, percentile};

/// With higher throughput.
const HIGHER: u32 = 10_000;

/// Lambda delivers an event three times.
const DELIVERIES: usize = 3;

/// How long Lambda waits after the first failure and after the second. Nobody waits here, but it counts.
const PAUSES: [Duration; DELIVERIES] = [Duration::from_mins(1), Duration::from_mins(2), Duration::ZERO];

/// What to start, and how much SSM answers.
#[derive(Args)]
pub struct ColdStarts {
    /// The function's release binary.
    #[arg(long, value_name = "PATH")]
    function: PathBuf,
    /// The event that is sent, each time with another job.
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
    /// How many events come at once, each to a function that is yet to start.
    #[arg(long, default_value_t = 200)]
    starts: usize,
    /// How many calls a second SSM answers.
    #[arg(long, default_value_t = 40)]
    calls: u32,
    /// How many functions there are at most where concurrency is reserved.
    #[arg(long, default_value_t = 40)]
    reserved: usize,
}

/// What came of one burst.
#[derive(Default)]
struct Burst {
    /// From the arrival of all events to the Job of each.
    waits: Vec<Duration>,
    /// How many events had failed so often.
    failures: [usize; DELIVERIES],
    calls: usize,
    throttled: usize,
    jobs: usize,
}

impl ColdStarts {
    /// Prints what each event waited for; fails if one has no Job in the end.
    pub async fn run(self) -> Result<ExitCode, Problem> {
        let (_, event) = Event::read(&self.event)?;
        let Self { starts, calls, reserved, .. } = self;
        println!(
            "{starts} events at once; seconds from their arrival to the Job, with Lambda's pauses before it delivers one again\n"
        );
        println!(
            "| functions | SSM calls a second | p50 | p90 | p99 | last | SSM calls | throttled | failed once, twice, thrice |"
        );
        println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        let mut well = true;
        for (functions, calls) in [(starts, calls), (starts, HIGHER), (reserved.min(starts), calls)] {
            let burst = self.burst(functions, calls, &event).await?;
            let [p50, p90, p99, last] = [50, 90, 99, 100].map(|of| percentile(&burst.waits, of).as_secs_f64());
            let [once, twice, thrice] = burst.failures;
            println!(
                "| {functions} | {calls} | {p50:.2} | {p90:.2} | {p99:.2} | {last:.2} | {} | {} | {once}, {twice}, {thrice} |",
                burst.calls, burst.throttled,
            );
            if burst.jobs != starts {
                println!("\n{} Jobs of {starts} events", burst.jobs);
                well = false;
            }
            if functions == starts && calls < HIGHER && burst.throttled == 0 {
                println!("\nSSM throttled nobody: this run shows nothing");
                well = false;
            }
        }
        Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn burst(&self, functions: usize, calls: u32, event: &Event) -> Result<Burst, Problem> {
        let lab = Lab::start().await;
        lab.aws.limit(When::action("GetParameter"), Fault::throttling(), calls);
        let mut events: Vec<_> = (0..self.starts).map(|_| event.clone().uuid(Uuid::new_v4())).collect();
        let waiting = Arc::new(Mutex::new(events.split_off(functions)));
        let arrived = Instant::now();
        let mut serving = JoinSet::new();
        for first in events {
            let function = lab.function(&self.function).try_start();
            let function = function.map_err(|source| Problem::Unusable { path: self.function.clone(), source })?;
            serving.spawn(serve(function, first, Arc::clone(&waiting), arrived));
        }
        let mut burst = Burst::default();
        for Served { waits, failures } in serving.join_all().await {
            burst.waits.extend(waits);
            for (sum, failed) in burst.failures.iter_mut().zip(failures) {
                *sum += failed;
            }
        }
        let asked: Vec<_> = lab.aws.requests().iter().map(|request| request.status).collect();
        burst.calls = asked.len();
        burst.throttled = asked.iter().filter(|status| **status == Some(400)).count();
        burst.jobs = lab.kubernetes.jobs().len();
        Ok(burst)
    }
}

/// What one function did.
#[derive(Default)]
struct Served {
    waits: Vec<Duration>,
    failures: [usize; DELIVERIES],
}

/// Gives a function its first event, and then what still waits.
async fn serve(function: Function, first: Event, waiting: Arc<Mutex<Vec<Event>>>, arrived: Instant) -> Served {
    let mut served = Served::default();
    let mut next = Some(first);
    while let Some(event) = next {
        let mut paused = Duration::ZERO;
        for (failed, pause) in served.failures.iter_mut().zip(PAUSES) {
            if let Answer::Success(_) = function.invoke(&event).await {
                served.waits.push(arrived.elapsed() + paused);
                break;
            }
            *failed += 1;
            paused += pause;
        }
        next = waiting.lock().pop();
    }
    function.stop().await;
    served
}
