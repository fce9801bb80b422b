//! A day of a million jobs, simulated: through EventBridge, Lambda, SSM, the API server, the Job controller and etcd, and the same
//! day through agent-stack-k8s.
//!
//! ```text
//! Day ──> Function ──> ApiServer ──>      Jobs, with the time of each
//!            └─> Bucket (SSM)                │
//! Day ──> Stack ──> ApiServer ─────────> Cluster: pods, ends, TTL, etcd
//! ```
//!
//! Discrete events with a seed: the same seed and the same [`Constants`] give the same day, byte for byte. `docs/scale.md` shows
//! the results.

mod agenda;
mod api_server;
mod bucket;
mod cluster;
mod constants;
mod cost;
mod day;
mod function;
mod page;
mod plots;
mod runs;
mod series;
mod stack;
mod tables;
#[cfg(test)]
mod tests;

use std::{error::Error, fs, path::PathBuf, process::ExitCode};

use clap::Parser;

use self::{cluster::Cluster, constants::Constants, day::Day};

/// The table that `--quick` leaves out.
const SENSITIVITY: &str = "sensitivity";

/// A day of a million jobs, simulated: what breaks first, which setting helps, and what it costs.
///
/// The same options give the same output, byte for byte.
#[derive(Parser)]
#[command(name = "scale")]
struct Command {
    /// Chance, from here on.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A folder for the pictures; none are drawn without it.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// A page to put tables and values into, each between its `<!-- NAME -->` and `<!-- end -->`.
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    /// Leaves out the sensitivity table, which takes most of the time.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    constants: Constants,
}

fn main() -> ExitCode {
    match run(&Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("scale: {problem}");
            ExitCode::from(2)
        }
    }
}

fn run(command: &Command) -> Result<(), Box<dyn Error>> {
    let (constants, seed) = (&command.constants, command.seed);
    let day = Day::new(constants, seed);
    let outcomes = runs::parallel(runs::TO_THE_JOB, |setting| {
        runs::outcome(setting.0, runs::with(constants, setting), &day, seed)
    });
    let ours = &outcomes[0];
    let mut clusters = runs::parallel(runs::IN_THE_CLUSTER, |setting| {
        let constants = runs::with(constants, setting);
        let cluster = Cluster::day(&constants, &day, &ours.seen.created);
        (setting.0, constants, cluster)
    });
    let stacks = runs::stacks(constants, &day);
    let beside = runs::named(&outcomes, runs::BESIDE_THE_STACK);

    let mut made = tables::of_constants(constants, &day);
    let mut table = |name: &str, table: String| made.push((name.to_owned(), table));
    table("answer", tables::answer(&outcomes));
    table("to-the-job", tables::to_the_job(&outcomes));
    table("in-the-way", tables::in_the_way(&outcomes));
    table("costs", tables::costs(&outcomes));
    table("cluster", tables::cluster(&mut clusters));
    table("agent-stack-k8s", tables::stacks(constants, &day, &beside, &stacks));
    if !command.quick {
        let base = runs::end(constants, &day, seed);
        table(SENSITIVITY, tables::sensitivity(&base, &runs::sensitivity(constants, &day, seed)));
    }
    for (name, made) in &made {
        println!("{name}\n{made}");
    }
    if let Some(page) = &command.page {
        made.extend(tables::values(ours));
        let filled = page::fill(fs::read_to_string(page)?, &made, &[SENSITIVITY]);
        fs::write(page, filled.map_err(|problem| format!("{}: {problem}", page.display()))?)?;
    }
    if let Some(folder) = &command.out {
        let pictures = [
            plots::time_to_job(&day, ours),
            plots::burst(&day, ours),
            plots::settings(&day, &outcomes),
            plots::cluster(&clusters),
            plots::stacks(&day, ours, &stacks),
        ];
        fs::create_dir_all(folder)?;
        for (name, svg) in pictures {
            fs::write(folder.join(name), svg)?;
        }
    }
    Ok(())
}
