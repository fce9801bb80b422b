//! `make scale`: a day with bursts, through the function with several settings and through agent-stack-k8s. Prints the tables of
//! docs/scale.md, and puts them into the page and its plots beside it.

mod plots;
mod tables;

use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    thread::{available_parallelism, scope},
    time::{Duration, Instant},
};

use clap::Parser;
use parking_lot::Mutex;
use simulation::{
    day::{self, Peer},
    limits::Rate,
    plan::Plan,
    run,
    seen::Seen,
};

#[derive(Parser)]
struct Options {
    /// Jobs of the day.
    #[arg(long, default_value_t = 100_000)]
    jobs: usize,
    /// Jobs of each of the two bursts. [default: 10,000, and a tenth of the jobs at most]
    #[arg(long)]
    burst: Option<usize>,
    /// Chance, from here on.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A page to put the tables into, each between its `<!-- NAME -->` and `<!-- end -->`, with the plots in the folder beside it.
    #[arg(long)]
    page: Option<PathBuf>,
}

/// The name of a setting, and what it changes.
type Setting = (&'static str, fn(&mut Plan));

const SETTINGS: [Setting; 4] = [
    ("as deployed", |_| {}),
    ("`ReservedConcurrency` 50", |plan| plan.environments = 50),
    ("… and `JobTokens`", |plan| {
        plan.environments = 50;
        plan.has_job_tokens = true;
    }),
    ("`ReservedConcurrency` 50, and a Job controller of 500 requests/s", |plan| {
        plan.environments = 50;
        plan.rates.job_controller = Some(Rate { per_second: 500.0, at_once: 750.0 });
    }),
];

/// What was measured on two busy cores, where the function made 175 Jobs a second (docs/performance.md).
const PEERS: [(&str, Peer); 3] = [
    ("agent-stack-k8s as it comes", Peer { per_second: 10.1, in_flight: 25 }),
    ("… `max-in-flight` 0", Peer { per_second: 10.1, in_flight: usize::MAX }),
    ("… and its client's limits raised", Peer { per_second: 82.0, in_flight: usize::MAX }),
];

/// What came of one setting.
struct Outcome {
    name: &'static str,
    seen: Seen,
    /// From the schedule of each job to its Kubernetes Job, if it got one.
    waits: Waits,
}

/// When each job was scheduled, and how long it waited for its Kubernetes Job.
type Waits = Vec<(Duration, Option<Duration>)>;

fn main() -> ExitCode {
    let options = Options::parse();
    let burst = options.burst.unwrap_or_else(|| (options.jobs / 10).min(10_000));
    let day = Plan::of_day(options.seed, options.jobs, burst);
    let outcomes = match outcomes(&day) {
        Ok(outcomes) => outcomes,
        Err(violations) => {
            print!("{violations}");
            return ExitCode::FAILURE;
        }
    };
    let wait = |(job, created): (&simulation::plan::Job, Duration)| (job.at, Some(created.saturating_sub(job.at)));
    let peers = PEERS.map(|(name, peer)| (name, day.jobs.iter().zip(peer.creates(&day)).map(wait).collect::<Waits>()));
    let tables = [
        ("to-the-job", tables::to_the_job(&outcomes, &peers)),
        ("in-the-way", tables::in_the_way(&outcomes)),
        ("in-the-cluster", tables::in_the_cluster(&outcomes)),
    ];
    for (_, table) in &tables {
        print!("{table}");
    }
    if let Some(page) = &options.page {
        let mut text = fs::read_to_string(page).expect("the page can be read");
        for (name, table) in &tables {
            tables::put(&mut text, name, table);
        }
        fs::write(page, text).expect("the page can be written");
        let folder = page.with_extension("");
        fs::create_dir_all(&folder).expect("a folder can be made");
        for (name, svg) in [plots::bursts(&outcomes, &peers), plots::day(&outcomes[1])] {
            fs::write(folder.join(name), svg).expect("a plot can be written");
        }
    }
    ExitCode::SUCCESS
}

/// The day with each setting, on all cores. A violation ends it.
fn outcomes(day: &Plan) -> Result<Vec<Outcome>, String> {
    let (next, outcomes) = (Mutex::new(SETTINGS.iter().enumerate()), Mutex::new(Vec::new()));
    scope(|threads| {
        for _ in 0..available_parallelism().map_or(1, Into::into) {
            threads.spawn(|| {
                loop {
                    let Some((place, (name, change))) = next.lock().next() else { break };
                    let mut plan = day.clone();
                    change(&mut plan);
                    let began = Instant::now();
                    let run = run(&plan);
                    eprintln!("{name}: {} s", began.elapsed().as_secs());
                    let created = |number| run.seen.created.get(&number).copied();
                    let wait = |job: &simulation::plan::Job| {
                        (job.at, created(job.number).map(|created| created.saturating_sub(job.at)))
                    };
                    let waits = plan.jobs.iter().map(wait).collect();
                    let is_right = run.violations.is_empty();
                    let outcome = Outcome { name, seen: run.seen, waits };
                    let violations = || format!("{name}:\n{}\n", run.violations.join("\n"));
                    outcomes.lock().push((place, if is_right { Ok(outcome) } else { Err(violations()) }));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner();
    outcomes.sort_by_key(|(place, _)| *place);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

/// The waits of some jobs, sorted. One without its Kubernetes Job waits for ever.
fn sorted<'a>(waits: impl IntoIterator<Item = &'a (Duration, Option<Duration>)>) -> Vec<Duration> {
    let mut sorted: Vec<_> = waits.into_iter().map(|(_, wait)| wait.unwrap_or(Duration::MAX)).collect();
    sorted.sort_unstable();
    sorted
}

/// Of the jobs in bursts alone.
fn in_bursts(waits: &Waits) -> impl Iterator<Item = &(Duration, Option<Duration>)> {
    waits.iter().filter(|(at, _)| day::is_in_burst(*at))
}

/// Of sorted values, that which so many thousandths of them do not exceed.
fn percentile<T: Copy>(sorted: &[T], thousandths: usize) -> Option<T> {
    sorted.get((sorted.len() * thousandths).div_ceil(1_000).saturating_sub(1)).copied()
}
