//! `bench soak`: very many warm events to one function, and how its process grows.
//!
//! The tasks of its runtime are not visible from outside. Memory, descriptors and threads stand for them: a task that waits for ever
//! keeps its memory, and mostly a connection.
//!
//! All events have the same trace id, unless `--own-traces` gives each its own as Lambda does: `lambda_runtime` puts the id into a
//! variable of the process, and glibc keeps every value that a variable ever had. That is less than 200 bytes an event, which this
//! function cannot free; other growth shows in both modes.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use clap::Args;
use lab::{Answer, Function, Lab};
use uuid::Uuid;

use crate::subject::{Failure, Subject, ms, percentile, status, took};

/// Events between two looks at the process. What the first block leaves is what the process needs.
const BLOCK: usize = 1000;

/// After this many events every idle connection is closed: a function that leaks its socket has ten more in each block.
const CLOSE: usize = 100;

/// How much memory may grow after the first block.
const GROWTH_KIB: u64 = 2 * 1024;

/// How many bytes a trace id may leave.
const TRACE_BYTES: u64 = 200;

/// How many descriptors may be added: one pool may have reconnected before another.
const GROWTH_DESCRIPTORS: u64 = 2;

/// What to send, and how often.
#[derive(Args)]
pub struct Soak {
    #[command(flatten)]
    subject: Subject,
    /// How many events to send; two thousand at least.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(2000..))]
    events: u32,
    /// Give each event a trace id of its own, as Lambda does, and let each leave 200 bytes.
    #[arg(long)]
    own_traces: bool,
}

/// What the kernel says of a process.
struct Sample {
    resident_kib: u64,
    descriptors: u64,
    sockets: u64,
    threads: u64,
}

impl Soak {
    /// Prints what grew and how long events took; fails if something leaks.
    pub async fn run(self) -> Result<bool, Failure> {
        let lab = Lab::start().await;
        let function =
            self.subject.start_as(&lab, |function| if self.own_traces { function } else { function.same_trace() })?;
        let mut job = Uuid::new_v4();
        let (mut samples, mut waits, mut within) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.events as usize / BLOCK {
            for index in 0..BLOCK {
                waits.push(self.invoke(&function, index, &mut job).await?);
                if index % CLOSE == CLOSE - 1 {
                    lab.kubernetes.close_connections();
                    lab.aws.close_connections();
                }
            }
            within.extend(function.take_lines().iter().filter_map(took));
            samples.push(Sample::of(&function)?);
            lab.forget();
        }
        function.stop().await;
        Ok(report(&samples, &waits, &within, self.own_traces))
    }

    /// Sends the next event, and returns how long the answer took: one of ten is a duplicate, and one of ten is for another queue.
    async fn invoke(&self, function: &Function, index: usize, job: &mut Uuid) -> Result<Duration, Failure> {
        let (queue, expected) = match index % 10 {
            3 => ("queue=kubernetes", "already-exists"),
            7 => ("queue=another", "ignored"),
            _ => ("queue=kubernetes", "created"),
        };
        if expected == "created" {
            *job = Uuid::new_v4();
        }
        let event = self.subject.event.clone().uuid(*job).rules([queue]);
        let sent = Instant::now();
        match function.invoke(event).await {
            Answer::Success(answer) if answer["outcome"] == expected => Ok(sent.elapsed()),
            answer => Err(self.subject.failed(&answer)),
        }
    }
}

impl Sample {
    fn of(function: &Function) -> io::Result<Self> {
        // A descriptor that is closed between the two looks counts, too.
        let open = fs::read_dir(format!("/proc/{}/fd", function.pid()))?.flatten();
        let targets: Vec<_> = open.map(|entry| fs::read_link(entry.path()).unwrap_or_default()).collect();
        let sockets = targets.iter().filter(|target| target.to_string_lossy().starts_with("socket:"));
        Ok(Self {
            resident_kib: status(function, "VmRSS")?,
            descriptors: targets.len() as u64,
            sockets: sockets.count() as u64,
            threads: status(function, "Threads")?,
        })
    }
}

/// Prints all, and returns whether everything is as after the first block.
#[expect(clippy::cast_precision_loss, reason = "no figure has as many digits")]
fn report(samples: &[Sample], waits: &[Duration], within: &[Duration], own_traces: bool) -> bool {
    let [first, .., last] = samples else { return false };
    let max = |figure: fn(&Sample) -> u64| samples.iter().map(figure).max().unwrap_or_default();
    let (traces, trace_bytes) =
        if own_traces { ("a trace id for each", TRACE_BYTES) } else { ("one trace id for all", 0) };
    println!("{} warm events to one process, {traces}\n", waits.len());
    println!("| after | {BLOCK} | {} | max |\n| --- | ---: | ---: | ---: |", samples.len() * BLOCK);
    let row = |name: &str, figure: fn(&Sample) -> u64, text: fn(u64) -> String| {
        println!("| {name} | {} | {} | {} |", text(figure(first)), text(figure(last)), text(max(figure)));
    };
    row("resident memory, MB", |sample| sample.resident_kib, |kib| format!("{:.2}", kib as f64 * 1024.0 / 1e6));
    row("descriptors", |sample| sample.descriptors, |number| number.to_string());
    row("of them sockets", |sample| sample.sockets, |number| number.to_string());
    row("threads", |sample| sample.threads, |number| number.to_string());

    let events = (waits.len() - BLOCK) as u64;
    let grown = last.resident_kib.saturating_sub(first.resident_kib) * 1024;
    println!("\nmemory grew by {:.1} bytes an event", grown as f64 / events as f64);

    println!("\n| events | p50, ms | p99, ms | p50 by the function, ms | p99 by the function, ms |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    let (tenth, tenth_within) = (waits.len() / 10, within.len() / 10);
    for (name, waits, within) in [
        ("first tenth", &waits[..tenth], &within[..tenth_within]),
        ("last tenth", &waits[waits.len() - tenth..], &within[within.len() - tenth_within..]),
    ] {
        let cells = [(waits, 50), (waits, 99), (within, 50), (within, 99)];
        let cells = cells.map(|(times, percent)| format!("{:.3}", ms(percentile(times, percent))));
        println!("| {name} | {} |", cells.join(" | "));
    }

    let max_kib = first.resident_kib + GROWTH_KIB + trace_bytes * events / 1024;
    let leaks = [
        ("memory", max(|sample| sample.resident_kib) > max_kib),
        ("descriptors", last.descriptors > first.descriptors + GROWTH_DESCRIPTORS),
        ("threads", last.threads > first.threads),
    ];
    let leaks: Vec<_> = leaks.into_iter().filter_map(|(name, grew)| grew.then_some(name)).collect();
    if !leaks.is_empty() {
        println!("\nGrew after the first {BLOCK} events: {}", leaks.join(", "));
    }
    leaks.is_empty()
}
