//! Many seeds, on all cores; and of one that fails, the smallest plan that fails, too.

use std::{
    fmt,
    num::NonZero,
    ops::Range,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    thread::{available_parallelism, scope},
};

use parking_lot::Mutex;

use crate::{
    plan::{Plan, Without},
    run,
};

/// After so many seeds that failed, no other is tried.
const MAX_FAILURES: usize = 10;

/// A seed whose run has violations. `Display` has the command that repeats it.
#[derive(Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What can be left out of its plan.
    pub without: Without,
    /// What happens in what is left.
    pub violations: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        writeln!(f, "seed {} fails:", self.seed)?;
        self.violations.iter().try_for_each(|violation| writeln!(f, "  {violation}"))?;
        write!(f, "  cargo run -p simulation -- --seed {}", self.seed)?;
        let options = [("--without-jobs", &self.without.jobs[..]), ("--without-troubles", &self.without.troubles[..])];
        let mut options = options.iter().filter(|(_, numbers)| !numbers.is_empty());
        options.try_for_each(|(option, numbers)| write!(f, " {option} {}", list(numbers)))
    }
}

/// Runs seeds as long as it may go on. Returns how many, and those that failed.
pub fn search(seeds: Range<u64>, may_go_on: impl Fn() -> bool + Sync) -> (usize, Vec<Failure>) {
    let (next, tried, failures) = (AtomicU64::new(seeds.start), AtomicUsize::new(0), Mutex::new(Vec::new()));
    scope(|threads| {
        for _ in 0..available_parallelism().map_or(1, NonZero::get) {
            threads.spawn(|| {
                while may_go_on() && failures.lock().len() < MAX_FAILURES {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !seeds.contains(&seed) {
                        break;
                    }
                    let failed = !run(&Plan::of(seed)).violations.is_empty();
                    tried.fetch_add(1, Ordering::Relaxed);
                    if failed {
                        failures.lock().push(shrink(seed));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner();
    failures.sort_by_key(|failure| failure.seed);
    (tried.into_inner(), failures)
}

/// Leaves out one job and one trouble after the other, as long as the run still fails.
fn shrink(seed: u64) -> Failure {
    let plan = Plan::of(seed);
    let (mut without, mut violations) = (Without::default(), run(&plan).violations);
    let jobs = plan.jobs.iter().map(|job| (job.number, true));
    for (number, is_job) in plan.troubles.iter().map(|trouble| (trouble.number, false)).chain(jobs) {
        let mut smaller = without.clone();
        if is_job { &mut smaller.jobs } else { &mut smaller.troubles }.push(number);
        let run = run(&plan.clone().without(&smaller));
        if !run.violations.is_empty() {
            (without, violations) = (smaller, run.violations);
        }
    }
    Failure { seed, without, violations }
}
