//! Measures the function in the lab: what it costs, and what it withstands.

mod bare;
mod burst;
mod cold_starts;
mod cost;
mod instructions;
mod load;
mod soak;
mod subject;
mod sweep;
mod throughput;

use std::process::ExitCode;

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Measures the function in the lab. Exits with 1 if a limit is exceeded, and with 2 if nothing can be measured.
#[derive(Parser)]
#[command(name = "bench")]
enum Command {
    /// Measures what a start and an event cost, beside the floor.
    Cost(cost::Cost),
    /// Measures what a sweep costs, beside more and more Jobs.
    Sweep(sweep::Sweep),
    /// Sends many jobs at once, with and without a token for each agent.
    Burst(burst::Burst),
    /// Measures events per second on a real API server, beside a bare client that posts the same bodies.
    Throughput(throughput::Throughput),
    /// Sends a burst of events to many functions while requests and functions fail, retries as Lambda and SQS do, and counts Jobs.
    Load(load::Load),
    /// Sends very many warm events to one function, and checks that its memory, descriptors and threads do not grow.
    Soak(soak::Soak),
    /// Starts many functions at once, while SSM throttles.
    ColdStarts(cold_starts::ColdStarts),
    /// Counts the instructions of a start and of a warm event, and compares them with the recorded counts.
    Instructions(instructions::Instructions),
    /// Prints how many instructions one binary takes from its start to the first Job.
    Count(instructions::Count),
}

/// Hundreds of functions need more descriptors than the default limit.
fn raise_descriptor_limit() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

#[tokio::main]
async fn main() -> ExitCode {
    if let Err(problem) = raise_descriptor_limit() {
        eprintln!("bench: the limit of open files stays as it is: {problem}");
    }
    let passed = match Command::parse() {
        Command::Cost(cost) => cost.run().await,
        Command::Sweep(sweep) => sweep.run().await,
        Command::Burst(burst) => burst.run().await,
        Command::Throughput(throughput) => throughput.run().await,
        Command::Load(load) => load.run().await,
        Command::Soak(soak) => soak.run().await,
        Command::ColdStarts(cold_starts) => cold_starts.run().await,
        Command::Instructions(instructions) => instructions.run().await,
        Command::Count(count) => count.run().await,
    };
    match passed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("bench: {problem}");
            ExitCode::from(2)
        }
    }
}
