//! The lab for a person: runs the real function against the stand-ins and shows what happened.

mod run;

use std::process::ExitCode;

use clap::Parser;

/// Stands in for Lambda, AWS and Kubernetes on this machine.
#[derive(Parser)]
#[command(name = "lab")]
enum Command {
    /// Feeds one event to the function, and prints what happened and the Job that came of it.
    ///
    /// Exits with 0 if the function answers, 1 if it fails, and 2 if it cannot be run at all.
    Run(run::Run),
}

#[tokio::main]
async fn main() -> ExitCode {
    match Command::parse() {
        Command::Run(run) => match run.run().await {
            Ok(code) => code,
            Err(problem) => {
                eprintln!("lab: {problem}");
                ExitCode::from(2)
            }
        },
    }
}
