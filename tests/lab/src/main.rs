//! The lab for a person: runs the real function against the stand-ins and shows what happened.

mod run;
mod serve;

use std::{error::Error, process::ExitCode};

use clap::Parser;

/// Stands in for Lambda, AWS and Kubernetes on this machine.
#[derive(Parser)]
#[command(name = "lab")]
enum Command {
    /// Sends one event to the function, and prints what happened and the Job that it made.
    ///
    /// Exits with 0 if the function answers, 1 if it fails, and 2 if it cannot be run at all.
    Run(run::Run),
    /// Serves AWS and Kubernetes to a function that another program runs, such as `sam local invoke`.
    ///
    /// Prints the variables of the function as one line of JSON. When the standard input ends, prints the Jobs as a JSON list, and
    /// ends.
    Serve(serve::Serve),
}

#[tokio::main]
async fn main() -> ExitCode {
    let ended: Result<ExitCode, Box<dyn Error>> = match Command::parse() {
        Command::Run(run) => run.run().await.map_err(Into::into),
        Command::Serve(serve) => serve.run().await,
    };
    ended.unwrap_or_else(|problem| {
        eprintln!("lab: {problem}");
        ExitCode::from(2)
    })
}
