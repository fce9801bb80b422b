//! `bench instructions`: what a start and a warm event cost in instructions, which a busy machine does not change.
//! `bench count`: the count of a start.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use clap::Args;
use lab::{Answer, Lab};
use nix::sys::signal::{Signal, kill};
use serde::{Deserialize, Serialize};

use crate::subject::{FLOOR_TOKEN, Failure, Subject, pid};

/// Growth of a count above this is a regression.
const TOLERANCE: f64 = 0.10;

/// Enough that the count per event is steady.
const WARM_EVENTS: u64 = 200;

/// What to count, and what to compare it with.
#[derive(Args)]
pub struct Instructions {
    #[command(flatten)]
    subject: Subject,
    /// The binary of the floor, counted beside it.
    #[arg(long, value_name = "PATH")]
    floor: PathBuf,
    /// The file with the recorded counts.
    #[arg(long, value_name = "FILE")]
    figures: PathBuf,
    /// The compiler and its platform: counts of another are not comparable.
    #[arg(long, value_name = "VERSION")]
    toolchain: String,
    /// Record the new counts instead of comparing them.
    #[arg(long)]
    update: bool,
}

/// What to count, without a comparison.
#[derive(Args)]
pub struct Count {
    #[command(flatten)]
    subject: Subject,
}

/// Counts of `valgrind --tool=callgrind`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Figures {
    toolchain: String,
    start_to_first_job: u64,
    warm_event: u64,
}

impl Instructions {
    /// Prints the counts; fails if one grew too much.
    pub async fn run(self) -> Result<bool, Failure> {
        let (floor_start, floor_warm_event) = counts(&self.subject.with_binary(&self.floor)).await?;
        let (start_to_first_job, warm_event) = counts(&self.subject).await?;
        let now = Figures { toolchain: self.toolchain, start_to_first_job, warm_event };
        if self.update {
            fs::write(&self.figures, serde_json::to_string_pretty(&now)? + "\n")?;
        }
        let recorded = recorded(&self.figures).map_err(|problem| format!("{}: {problem}", self.figures.display()))?;

        let rows = [
            ("start to first Job", now.start_to_first_job, recorded.start_to_first_job, floor_start),
            ("warm event", now.warm_event, recorded.warm_event, floor_warm_event),
        ];
        println!("instructions, {}", now.toolchain);
        for (name, now, recorded, floor) in rows {
            let grown = growth(now, recorded) * 100.0;
            println!("  {name:<20} {now:>10}  recorded {recorded:>10}  {grown:+.1} %  floor {floor:>10}");
        }
        if now.toolchain != recorded.toolchain {
            println!("\nNOT COMPARED: the recorded counts are those of {}.", recorded.toolchain);
            println!("`make instructions UPDATE=1` records the new ones.");
            return Ok(true);
        }
        let grown = rows.iter().any(|(_, now, recorded, _)| growth(*now, *recorded) > TOLERANCE);
        if grown {
            println!("\nA count grew by more than {:.0} %. Find out why; if it is worth it,", TOLERANCE * 100.0);
            println!("`make instructions UPDATE=1` records the new counts.");
        }
        Ok(!grown)
    }
}

impl Count {
    /// Prints the instructions from the start to the first Job.
    pub async fn run(self) -> Result<bool, Failure> {
        println!("{}", count(&self.subject, 1).await?);
        Ok(true)
    }
}

fn recorded(figures: &Path) -> Result<Figures, Failure> {
    Ok(serde_json::from_str(&fs::read_to_string(figures)?)?)
}

/// Up to the first Job, and for one event more.
async fn counts(subject: &Subject) -> Result<(u64, u64), Failure> {
    let start = min_count(subject, 1).await?;
    let more = min_count(subject, 1 + WARM_EVENTS).await?;
    Ok((start, more.saturating_sub(start) / WARM_EVENTS))
}

/// The smallest of three counts: valgrind is so slow that on a busy machine a request of the start-up times out and is retried.
async fn min_count(subject: &Subject, events: u64) -> Result<u64, Failure> {
    let mut min = u64::MAX;
    for _ in 0..3 {
        min = min.min(count(subject, events).await?);
    }
    Ok(min)
}

/// The instructions of a whole process that gets this many events.
async fn count(subject: &Subject, events: u64) -> Result<u64, Failure> {
    let lab = Lab::start().await;
    lab.kubernetes.accept(FLOOR_TOKEN);
    let profile = env::temp_dir().join(format!("agent-scheduler-callgrind-{}", std::process::id()));
    let valgrind =
        ["valgrind", "--tool=callgrind", &format!("--callgrind-out-file={}", profile.display())].map(str::to_owned);
    let function = subject.start_as(&lab, |builder| builder.under(valgrind));
    let function = function.map_err(|problem| format!("{problem}\nvalgrind counts: `make valgrind` installs it"))?;
    for number in 0..events {
        // Not random: the count depends on the digits.
        let event = subject.event.clone().uuid(format!("11111111-2222-4333-8444-{number:012}"));
        match function.invoke(event).await {
            Answer::Success(_) => {}
            answer => return Err(subject.failed(&answer)),
        }
    }
    kill(pid(&function)?, Signal::SIGTERM)?;
    let output = function.exit().await.text;
    // The profile is of no use: valgrind prints its sum.
    let _ = fs::remove_file(profile);
    let count = output.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    count.ok_or_else(|| format!("valgrind printed no count:\n{output}").into())
}

#[expect(clippy::cast_precision_loss, reason = "no count has as many digits")]
fn growth(now: u64, recorded: u64) -> f64 {
    now as f64 / recorded as f64 - 1.0
}
