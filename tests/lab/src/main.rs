//! The lab for a person: runs the real function against the stand-ins and shows what happened.

mod bare;
mod bench;
mod cold_starts;
mod instructions;
mod load;
mod run;
mod serve;
mod soak;
mod throughput;

use std::{error::Error, process::ExitCode};

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Stands in for Lambda, AWS and Kubernetes on this machine.
#[derive(Parser)]
#[command(name = "lab")]
enum Command {
    /// Feeds one event to the function, and prints what happened and the Job that came of it.
    ///
    /// Exits with 0 if the function answers, 1 if it fails, and 2 if it cannot be run at all.
    Run(run::Run),
    /// Serves AWS and Kubernetes to a function that another program runs, such as `sam local invoke`.
    ///
    /// Prints the variables that lead the function here, as one line of JSON. When the standard input ends, prints the Jobs that
    /// there are by then, as a JSON list, and ends.
    Serve(serve::Serve),
    /// Measures what a start and an event cost, beside the floor of tests/floor.
    Bench(bench::Bench),
    /// Measures events per second on a real API server, beside a bare client that posts the same bodies.
    Throughput(throughput::Throughput),
    /// Sends a burst of events to many functions while requests and functions fail, redelivers as Lambda and SQS do, and counts Jobs.
    Load(load::Load),
    /// Sends very many warm events to one function, and looks whether its memory, descriptors and threads stay as they were.
    Soak(soak::Soak),
    /// Starts many functions at once, and lets SSM answer only so many calls a second.
    ColdStarts(cold_starts::ColdStarts),
    /// Counts the instructions of a start and of a warm event, and compares them with the figures that are kept.
    Instructions(instructions::Instructions),
    /// Prints how many instructions one binary takes from its start to the first Job.
    Count(instructions::Count),
}

/// Hundreds of functions need more descriptors than a process has at first; as many as it may have cost nothing.
fn allow_many_descriptors() -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
}

#[tokio::main]
async fn main() -> ExitCode {
    if let Err(problem) = allow_many_descriptors() {
        eprintln!("lab: the limit of open files stays as it is: {problem}");
    }
    let ended: Result<ExitCode, Box<dyn Error>> = match Command::parse() {
        Command::Run(run) => run.run().await.map_err(Into::into),
        Command::Serve(serve) => serve.run().await.map_err(Into::into),
        Command::Bench(bench) => bench.run().await.map_err(Into::into),
        Command::Throughput(throughput) => throughput.run().await.map_err(Into::into),
        Command::Load(load) => load.run().await.map_err(Into::into),
        Command::Soak(soak) => soak.run().await.map_err(Into::into),
        Command::ColdStarts(cold_starts) => cold_starts.run().await.map_err(Into::into),
        Command::Instructions(instructions) => instructions.run().await.map_err(Into::into),
        Command::Count(count) => count.run().await.map_err(Into::into),
    };
    ended.unwrap_or_else(|problem| {
        eprintln!("lab: {problem}");
        ExitCode::from(2)
    })
}
