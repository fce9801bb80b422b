//! `lab instructions`: what a start and a warm event cost in instructions, which a busy machine does not change.
//! `lab count`: the bare count of a start.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use lab::{Answer, Event, Lab, event};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::bench::FLOOR_TOKEN;

/// More than this over the figures that are kept is a regression.
const TOLERANCE: f64 = 0.10;

/// So many that the last digits of one event's share are steady.
const WARM_EVENTS: u64 = 200;

/// What to count, and what to compare it with.
#[derive(Args)]
pub struct Instructions {
    /// The function's release binary.
    #[arg(long, value_name = "PATH")]
    function: PathBuf,
    /// The release binary of tests/floor, counted beside it.
    #[arg(long, value_name = "PATH")]
    floor: PathBuf,
    /// The event that is sent, each time with another job.
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
    /// The file that keeps the figures.
    #[arg(long, value_name = "FILE")]
    figures: PathBuf,
    /// The compiler and its platform: counts of another are not comparable.
    #[arg(long, value_name = "VERSION")]
    toolchain: String,
    /// Keeps the new figures instead of comparing them.
    #[arg(long)]
    update: bool,
}

/// What to count, with nothing to compare it with.
#[derive(Args)]
pub struct Count {
    /// The function's binary.
    #[arg(long, value_name = "PATH")]
    function: PathBuf,
    /// The event that is sent.
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
}

/// Counts of `valgrind --tool=callgrind`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Figures {
    toolchain: String,
    start_to_first_job: u64,
    warm_event: u64,
}

/// Why there are no counts.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("cannot read or write {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} is not what it should be: {source}", path.display())]
    Garbled { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    Event(#[from] event::Problem),
    #[error("cannot run valgrind: {0}\nInstall it, with `apt-get install valgrind` for example.")]
    NoValgrind(io::Error),
    #[error("the function failed under valgrind: {0}")]
    Failed(Answer),
    #[error("cannot end the function: {0}")]
    Signal(#[from] Errno),
    #[error("valgrind told no count:\n{0}")]
    NoCount(String),
}

impl Instructions {
    /// Prints the counts, and fails if one grew too much.
    pub async fn run(self) -> Result<ExitCode, Problem> {
        let (_, event) = Event::read(&self.event)?;
        let (floor_start, floor_warm_event) = counts(&self.floor, &event).await?;
        let (start_to_first_job, warm_event) = counts(&self.function, &event).await?;
        let now = Figures { toolchain: self.toolchain.clone(), start_to_first_job, warm_event };
        if self.update {
            let text = serde_json::to_string_pretty(&now).map_err(|source| self.garbled(source))?;
            fs::write(&self.figures, text + "\n").map_err(|source| file(&self.figures, source))?;
        }
        let kept = fs::read_to_string(&self.figures).map_err(|source| file(&self.figures, source))?;
        let kept: Figures = serde_json::from_str(&kept).map_err(|source| self.garbled(source))?;

        let rows = [
            ("start to first Job", now.start_to_first_job, kept.start_to_first_job, floor_start),
            ("warm event", now.warm_event, kept.warm_event, floor_warm_event),
        ];
        println!("instructions, {}", now.toolchain);
        for (name, now, kept, floor) in rows {
            let grown = growth(now, kept) * 100.0;
            println!("  {name:<20} {now:>10}  kept {kept:>10}  {grown:+.1} %  floor {floor:>10}");
        }
        if now.toolchain != kept.toolchain {
            println!("\nNOT COMPARED: the figures kept are those of {}.", kept.toolchain);
            println!("`make instructions UPDATE=1` keeps the new ones.");
            return Ok(ExitCode::SUCCESS);
        }
        let grown = rows.iter().any(|(_, now, kept, _)| growth(*now, *kept) > TOLERANCE);
        if grown {
            println!("\nA count grew by more than {:.0} %. Find out why; if it is worth it,", TOLERANCE * 100.0);
            println!("`make instructions UPDATE=1` keeps the new figures.");
        }
        Ok(if grown { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn garbled(&self, source: serde_json::Error) -> Problem {
        Problem::Garbled { path: self.figures.clone(), source }
    }
}

impl Count {
    /// Prints the instructions from the start to the first Job.
    pub async fn run(self) -> Result<ExitCode, Problem> {
        let (_, event) = Event::read(&self.event)?;
        println!("{}", count(&self.function, &event, 1).await?);
        Ok(ExitCode::SUCCESS)
    }
}

/// Up to the first Job, and for one event more.
async fn counts(binary: &Path, event: &Event) -> Result<(u64, u64), Problem> {
    let start = least(binary, event, 1).await?;
    let more = least(binary, event, 1 + WARM_EVENTS).await?;
    Ok((start, more.saturating_sub(start) / WARM_EVENTS))
}

/// The least of some counts: valgrind is so slow that on a busy machine the start-up loses patience with a request, and repeats it.
async fn least(binary: &Path, event: &Event, events: u64) -> Result<u64, Problem> {
    let mut least = u64::MAX;
    for _ in 0..3 {
        least = least.min(count(binary, event, events).await?);
    }
    Ok(least)
}

/// The instructions of a whole process that serves so many events.
async fn count(binary: &Path, event: &Event, events: u64) -> Result<u64, Problem> {
    let lab = Lab::start().await;
    lab.kubernetes.accept(FLOOR_TOKEN);
    let profile = env::temp_dir().join(format!("agent-scheduler-callgrind-{}", std::process::id()));
    let valgrind =
        ["valgrind", "--tool=callgrind", &format!("--callgrind-out-file={}", profile.display())].map(str::to_owned);
    let function = lab
        .function(binary)
        .env("FLOOR_TOKEN", FLOOR_TOKEN)
        .under(valgrind)
        .try_start()
        .map_err(Problem::NoValgrind)?;
    for number in 0..events {
        let uuid = format!("11111111-2222-4333-8444-{number:012}");
        match function.invoke(event.clone().uuid(&uuid)).await {
            Answer::Success(_) => {}
            answer => return Err(Problem::Failed(answer)),
        }
    }
    let pid = i32::try_from(function.pid()).map_err(|_| Errno::ESRCH)?;
    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    let output = function.exit().await.text;
    // Only its sum is of use here, and valgrind prints that.
    let _ = fs::remove_file(profile);
    let count = output.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    count.ok_or(Problem::NoCount(output))
}

fn file(path: &Path, source: io::Error) -> Problem {
    Problem::File { path: path.to_owned(), source }
}

#[expect(clippy::cast_precision_loss, reason = "no count has as many digits")]
fn growth(now: u64, kept: u64) -> f64 {
    now as f64 / kept as f64 - 1.0
}
