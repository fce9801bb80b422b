//! `lab throughput`: events per second on a real API server, beside a bare client that posts the same bodies.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use lab::{Answer, Event, Function, Lab};
use uuid::Uuid;

use crate::{
    bare::Body,
    bench::{self, Problem},
    run::control_plane_for_function,
};

/// So short that both meet the same moods of the machine, and so long that a turn costs nothing.
const BLOCK: usize = 25;

/// What to measure, and how long.
#[derive(Args)]
pub struct Throughput {
    /// The function's release binary.
    #[arg(long, value_name = "PATH")]
    function: PathBuf,
    /// The event that is sent, each time with another job.
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
    /// How many events to send, and how many bodies to post beside them.
    #[arg(long, default_value_t = 1000)]
    events: usize,
}

impl Throughput {
    /// Prints both rates and their ratio.
    pub async fn run(self) -> Result<ExitCode, Problem> {
        let (_, event) = Event::read(&self.event)?;
        let body = Body::of(&self.function, &event).await?;

        let control_plane = control_plane_for_function().await?;
        let lab = control_plane.lab().await;
        let function = self.process(&lab)?;
        self.invoke(&function, &event).await?;
        let mut bare = control_plane.admin().await;

        let (cpu, before) = (bench::cpu_time(&function)?, within(&function));
        let (mut ours, mut theirs) = (Duration::ZERO, Duration::ZERO);
        let blocks = self.events.div_ceil(BLOCK);
        for _ in 0..blocks {
            let started = Instant::now();
            for _ in 0..BLOCK {
                self.invoke(&function, &event).await?;
            }
            ours += started.elapsed();
            let started = Instant::now();
            for _ in 0..BLOCK {
                body.post(&mut bare).await?;
            }
            theirs += started.elapsed();
        }
        let cpu = bench::cpu_time(&function)?.saturating_sub(cpu);
        print(blocks * BLOCK, ours, theirs, within(&function).saturating_sub(before), cpu);
        Ok(ExitCode::SUCCESS)
    }

    fn process(&self, lab: &Lab) -> Result<Function, Problem> {
        let started = lab.function(&self.function).try_start();
        started.map_err(|source| Problem::Unusable { path: self.function.clone(), source })
    }

    /// Sends an event of a new job.
    async fn invoke(&self, function: &Function, event: &Event) -> Result<(), Problem> {
        match function.invoke(event.clone().uuid(Uuid::new_v4())).await {
            Answer::Success(_) => Ok(()),
            answer => Err(Problem::Failed { path: self.function.clone(), answer }),
        }
    }
}

/// What the function says itself that its events took, the wait for the API server included: the rest is the Runtime API and
/// the lab.
fn within(function: &Function) -> Duration {
    let took: f64 = function.lines().iter().filter_map(|line| line["milliseconds"].as_f64()).sum();
    Duration::from_secs_f64(took / 1000.0)
}

#[expect(clippy::cast_precision_loss, reason = "no figure has as many digits")]
fn print(events: usize, ours: Duration, theirs: Duration, within: Duration, cpu: Duration) {
    let rate = |time: Duration| events as f64 / time.as_secs_f64();
    println!("{events} events and as many raw posts, {BLOCK} and {BLOCK} in turn, against a real API server\n");
    println!("| | function | bare client | ratio |\n| --- | ---: | ---: | ---: |");
    println!("| per second | {:.1} | {:.1} | {:.2} |", rate(ours), rate(theirs), rate(ours) / rate(theirs));
    println!(
        "| per second, without Runtime API and lab | {:.1} | {:.1} | {:.2} |",
        rate(within),
        rate(theirs),
        rate(within) / rate(theirs)
    );
    println!("| CPU per event, ms | {:.3} | | |", cpu.as_secs_f64() * 1000.0 / events as f64);
}
