//! `bench cold-starts`: many functions that start at once, while SSM throttles.
//!
//! Every function reads the agent token when it starts. SSM answers 40 `GetParameter` calls a second in an account and region, and
//! 10,000 with the higher throughput that can be switched on: <https://docs.aws.amazon.com/general/latest/gr/ssm.html>.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use lab::{Answer, Event, Fault, Function, Lab, When};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::subject::{Failure, Subject, percentile};

/// Calls a second with higher throughput.
const HIGHER: u32 = 10_000;

/// Lambda delivers an event three times.
const DELIVERIES: usize = 3;

/// How long Lambda waits after the first failure and after the second. The bench does not wait, but adds them.
const PAUSES: [Duration; DELIVERIES] = [Duration::from_mins(1), Duration::from_mins(2), Duration::ZERO];

/// What to start, and how much SSM answers.
#[derive(Args)]
pub struct ColdStarts {
    #[command(flatten)]
    subject: Subject,
    /// How many events come at once, each to a function that is yet to start.
    #[arg(long, default_value_t = 200)]
    starts: usize,
    /// How many calls a second SSM answers.
    #[arg(long, default_value_t = 40)]
    calls: u32,
    /// The reserved concurrency of the last run.
    #[arg(long, default_value_t = 40)]
    reserved: usize,
}

/// What came of the events of one function, or of all.
#[derive(Default)]
struct Served {
    /// From the arrival of all events to the Job of each.
    waits: Vec<Duration>,
    /// How many events failed this often.
    failures: [usize; DELIVERIES],
}

impl ColdStarts {
    /// Prints what each event waited for; fails if one has no Job in the end.
    pub async fn run(self) -> Result<bool, Failure> {
        let Self { starts, calls, reserved, .. } = self;
        println!(
            "{starts} events at once; seconds from their arrival to the Job, with Lambda's pauses between its retries\n"
        );
        println!(
            "| functions | SSM calls a second | p50 | p90 | p99 | last | SSM calls | throttled | failed once, twice, thrice |"
        );
        println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        let mut passed = true;
        for (functions, calls) in [(starts, calls), (starts, HIGHER), (reserved.min(starts), calls)] {
            let lab = Lab::start().await;
            lab.aws.limit(When::action("GetParameter"), Fault::throttling(), calls);
            let Served { waits, failures: [once, twice, thrice] } = self.burst(&lab, functions).await?;
            let asked = lab.aws.requests();
            let throttled = asked.iter().filter(|request| request.status == Some(400)).count();
            let times = [50, 90, 99, 100].map(|of| format!("{:.2}", percentile(&waits, of).as_secs_f64()));
            println!(
                "| {functions} | {calls} | {} | {} | {throttled} | {once}, {twice}, {thrice} |",
                times.join(" | "),
                asked.len()
            );
            let jobs = lab.kubernetes.jobs().len();
            if jobs != starts {
                println!("\n{jobs} Jobs of {starts} events");
                passed = false;
            }
            if functions == starts && calls < HIGHER && throttled == 0 {
                println!("\nSSM throttled no call: this run shows nothing");
                passed = false;
            }
        }
        Ok(passed)
    }

    async fn burst(&self, lab: &Lab, functions: usize) -> Result<Served, Failure> {
        let event = |_| self.subject.event.clone().uuid(Uuid::new_v4());
        let mut events: Vec<_> = (0..self.starts).map(event).collect();
        let waiting = Arc::new(Mutex::new(events.split_off(functions)));
        let arrived = Instant::now();
        let mut serving = JoinSet::new();
        for first in events {
            serving.spawn(serve(self.subject.start(lab)?, first, Arc::clone(&waiting), arrived));
        }
        let mut sum = Served::default();
        for Served { waits, failures } in serving.join_all().await {
            sum.waits.extend(waits);
            sum.failures.iter_mut().zip(failures).for_each(|(sum, failed)| *sum += failed);
        }
        Ok(sum)
    }
}

/// Sends a function its first event, and then those that still wait.
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
