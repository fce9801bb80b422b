//! `lab soak`: very many warm events to one function, and what that leaves in its process.
//!
//! Nobody outside sees the tasks of its runtime: memory, descriptors and threads stand for them, as a task that waits for ever keeps
//! its memory, and mostly a connection.
//!
//! All events have the same trace id unless `--own-traces` is given, as Lambda gives them: `lambda_runtime` puts the id into a variable of
//! the process, and glibc keeps every value that a variable ever had. That is less than 200 bytes an event, and nothing that this
//! function could free; what else grows shows in both.

use std::{
    fs, io,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use lab::{Answer, Event, Function, Lab};
use serde_json::Value;
use uuid::Uuid;

use crate::bench::{Problem, percentile};

/// After so many events the process is looked at; what the first ones leave is what it needs.
const BLOCK: usize = 1000;

/// After so many events every idle connection is closed: a function that keeps the socket of one has ten more in each block.
const HANG_UP: usize = 100;

/// How much more memory there may be than after the first block.
const GROWTH_KIB: u64 = 2 * 1024;

/// How many bytes a trace id may leave for good.
const TRACE_BYTES: u64 = 200;

/// How many more descriptors: one pool may have opened a connection again that another has not yet.
const GROWTH_DESCRIPTORS: usize = 2;

/// What to send, and how often.
#[derive(Args)]
pub struct Soak {
    /// The function's release binary.
    #[arg(long, value_name = "PATH")]
    function: PathBuf,
    /// The event that is sent, each time with another job.
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
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
    threads: u64,
    descriptors: usize,
    sockets: usize,
}

impl Soak {
    /// Prints what grew and how long events took; fails if something leaks.
    pub async fn run(self) -> Result<ExitCode, Problem> {
        let (_, event) = Event::read(&self.event)?;
        let lab = Lab::start().await;
        let function = lab.function(&self.function);
        let function = if self.own_traces { function } else { function.same_trace() };
        let function = function.try_start();
        let function = function.map_err(|source| Problem::Unusable { path: self.function.clone(), source })?;
        let unreadable = |source| Problem::Unreadable { path: format!("/proc/{}", function.pid()).into(), source };
        let mut warm = Warm { soak: &self, event, last: Uuid::new_v4() };

        let (mut samples, mut waits, mut within) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.events as usize / BLOCK {
            for index in 0..BLOCK {
                waits.push(warm.invoke(&function, index).await?);
                if index % HANG_UP == HANG_UP - 1 {
                    lab.kubernetes.hang_up();
                    lab.aws.hang_up();
                }
            }
            within.extend(function.take_lines().iter().filter_map(took));
            samples.push(Sample::of(&function).map_err(unreadable)?);
            lab.forget();
        }
        function.stop().await;
        Ok(if report(&samples, &waits, &within, self.own_traces) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// A stream of events of which most make a Job.
struct Warm<'a> {
    soak: &'a Soak,
    event: Event,
    last: Uuid,
}

impl Warm<'_> {
    /// Sends the next event, and tells how long the answer took: one of ten comes again, and one of ten is for another queue.
    async fn invoke(&mut self, function: &Function, index: usize) -> Result<Duration, Problem> {
        let (queue, expected) = match index % 10 {
            3 => ("queue=default", "already-exists"),
            7 => ("queue=another", "ignored"),
            _ => ("queue=default", "created"),
        };
        if expected == "created" {
            self.last = Uuid::new_v4();
        }
        let event = self.event.clone().uuid(self.last).rules([queue]);
        let sent = Instant::now();
        match function.invoke(event).await {
            Answer::Success(answer) if answer["outcome"] == expected => Ok(sent.elapsed()),
            answer => Err(Problem::Failed { path: self.soak.function.clone(), answer }),
        }
    }
}

/// How long the function says that an event took.
pub fn took(line: &Value) -> Option<Duration> {
    line["milliseconds"].as_f64().map(|milliseconds| Duration::from_secs_f64(milliseconds / 1000.0))
}

impl Sample {
    fn of(function: &Function) -> io::Result<Self> {
        let process = PathBuf::from(format!("/proc/{}", function.pid()));
        let status = fs::read_to_string(process.join("status"))?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            number.ok_or_else(|| io::Error::other(format!("the kernel tells no {name}")))
        };
        // One that is closed between the two looks counts all the same.
        let open: Vec<_> =
            fs::read_dir(process.join("fd"))?.flatten().map(|entry| fs::read_link(entry.path())).collect();
        let is_socket = |target: &&io::Result<PathBuf>| {
            target.as_ref().is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
        };
        Ok(Self {
            resident_kib: number("VmRSS")?,
            threads: number("Threads")?,
            descriptors: open.len(),
            sockets: open.iter().filter(is_socket).count(),
        })
    }
}

/// Prints all, and tells whether everything is as it was after the first block.
#[expect(clippy::cast_precision_loss, reason = "no figure has as many digits")]
fn report(samples: &[Sample], waits: &[Duration], within: &[Duration], own_traces: bool) -> bool {
    let [first, .., last] = samples else { return false };
    let most = |figure: fn(&Sample) -> u64| samples.iter().map(figure).max().unwrap_or_default();
    let (traces, allowed_bytes) =
        if own_traces { ("a trace id for each", TRACE_BYTES) } else { ("one trace id for all", 0) };
    println!("{} warm events to one process, {traces}\n", waits.len());
    println!("| after | {BLOCK} | {} | most |\n| --- | ---: | ---: | ---: |", samples.len() * BLOCK);
    let mb = |sample: fn(&Sample) -> u64| {
        [sample(first), sample(last), most(sample)].map(|kib| format!("{:.2}", kib as f64 * 1024.0 / 1e6))
    };
    let row = |name: &str, [first, last, most]: [String; 3]| println!("| {name} | {first} | {last} | {most} |");
    row("resident memory, MB", mb(|sample| sample.resident_kib));
    for (name, figure) in [
        ("descriptors", (|sample| sample.descriptors as u64) as fn(&Sample) -> u64),
        ("of them sockets", |sample| sample.sockets as u64),
        ("threads", |sample| sample.threads),
    ] {
        row(name, [figure(first), figure(last), most(figure)].map(|number| number.to_string()));
    }

    let events = (waits.len() - BLOCK) as u64;
    let grown = last.resident_kib.saturating_sub(first.resident_kib) * 1024;
    println!("\nmemory grew by {:.1} bytes an event", grown as f64 / events as f64);

    println!("\n| events | p50, ms | p99, ms | p50 by the function, ms | p99 by the function, ms |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    let ms = |times: &[Duration], percent| percentile(times, percent).as_secs_f64() * 1000.0;
    let (tenth, tenth_within) = (waits.len() / 10, within.len() / 10);
    for (name, waits, within) in [
        ("first tenth", &waits[..tenth], &within[..tenth_within]),
        ("last tenth", &waits[waits.len() - tenth..], &within[within.len() - tenth_within..]),
    ] {
        println!(
            "| {name} | {:.3} | {:.3} | {:.3} | {:.3} |",
            ms(waits, 50),
            ms(waits, 99),
            ms(within, 50),
            ms(within, 99)
        );
    }

    let leaks = [
        (
            "memory",
            most(|sample| sample.resident_kib) > first.resident_kib + GROWTH_KIB + allowed_bytes * events / 1024,
        ),
        ("descriptors", last.descriptors > first.descriptors + GROWTH_DESCRIPTORS),
        ("threads", last.threads > first.threads),
    ];
    let leaks: Vec<_> = leaks.into_iter().filter_map(|(name, grew)| grew.then_some(name)).collect();
    if !leaks.is_empty() {
        println!("\nGrew after the first {BLOCK} events: {}", leaks.join(", "));
    }
    leaks.is_empty()
}
