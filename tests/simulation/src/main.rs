//! `make simulate`: as many seeds as there is time for, on all cores; or one of them, with its timeline.

use std::{
    ops::Range,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use simulation::{
    plan::{Plan, Without},
    run, search,
};

#[derive(Parser)]
struct Options {
    /// Runs this seed alone, and prints its plan and all that happens.
    #[arg(long)]
    seed: Option<u64>,
    /// Of that seed, the jobs to leave out.
    #[arg(long, value_delimiter = ',')]
    without_jobs: Vec<usize>,
    /// Of that seed, the troubles to leave out.
    #[arg(long, value_delimiter = ',')]
    without_troubles: Vec<usize>,
    /// How long to try seeds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many seeds there are.
    #[arg(long, default_value_t = u64::MAX)]
    seeds: u64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(seed) = options.seed {
        let without = Without { jobs: options.without_jobs, troubles: options.without_troubles };
        let plan = Plan::of(seed).without(&without);
        let run = run(&plan);
        println!("{plan:#?}\n{}", run.timeline);
        for violation in &run.violations {
            println!("VIOLATION: {violation}");
        }
        return if run.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let (began, time) = (Instant::now(), Duration::from_secs(options.seconds));
    let seeds = Range { start: options.from, end: options.from.saturating_add(options.seeds) };
    let (tried, failures) = search::search(seeds, || began.elapsed() < time);
    for failure in &failures {
        println!("{failure}");
    }
    println!("{tried} seeds in {} s, {} failed", began.elapsed().as_secs(), failures.len());
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
