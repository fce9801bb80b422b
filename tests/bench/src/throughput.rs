//! `bench throughput`: events per second on a real API server, beside a bare client that posts the same bodies.

use std::time::{Duration, Instant};

use clap::Args;
use lab::{ControlPlane, Function};

use crate::{
    bare::Body,
    subject::{Failure, Subject, cpu_time, ms, took},
};

/// Short enough that a slow minute of the machine is shared, and long enough that a turn costs nothing.
const BLOCK: usize = 25;

/// What to measure, and how long.
#[derive(Args)]
pub struct Throughput {
    #[command(flatten)]
    subject: Subject,
    /// How many events to send, and how many bodies to post beside them.
    #[arg(long, default_value_t = 1000)]
    events: usize,
}

impl Throughput {
    /// Prints both rates and their ratio.
    pub async fn run(self) -> Result<bool, Failure> {
        let Self { subject, events } = self;
        let body = Body::of(&subject).await?;
        let control_plane = ControlPlane::start_for_function().await?;
        let lab = control_plane.lab().await;
        let function = subject.start(&lab)?;
        subject.invoke(&function).await?;
        let mut bare = control_plane.admin().await;

        let (cpu, before) = (cpu_time(&function)?, within(&function));
        let (mut ours, mut theirs) = (Duration::ZERO, Duration::ZERO);
        let blocks = events.div_ceil(BLOCK);
        for _ in 0..blocks {
            let started = Instant::now();
            for _ in 0..BLOCK {
                subject.invoke(&function).await?;
            }
            ours += started.elapsed();
            let started = Instant::now();
            for _ in 0..BLOCK {
                body.post(&mut bare).await?;
            }
            theirs += started.elapsed();
        }
        let cpu = cpu_time(&function)?.saturating_sub(cpu);
        print(blocks * BLOCK, ours, theirs, within(&function).saturating_sub(before), cpu);
        Ok(true)
    }
}

/// How long the function logged that its events took, with the wait for the API server; the rest is the Runtime API and the lab.
fn within(function: &Function) -> Duration {
    function.lines().iter().filter_map(took).sum()
}

#[expect(clippy::cast_precision_loss, reason = "no figure has as many digits")]
fn print(events: usize, ours: Duration, theirs: Duration, within: Duration, cpu: Duration) {
    println!("{events} events and as many raw posts, {BLOCK} and {BLOCK} in turn, against a real API server\n");
    println!("| | function | bare client | ratio |\n| --- | ---: | ---: | ---: |");
    let theirs = events as f64 / theirs.as_secs_f64();
    for (name, time) in [("per second", ours), ("per second, without Runtime API and lab", within)] {
        let rate = events as f64 / time.as_secs_f64();
        println!("| {name} | {rate:.1} | {theirs:.1} | {:.2} |", rate / theirs);
    }
    println!("| CPU per event, ms | {:.3} | | |", ms(cpu) / events as f64);
}
