//! `bench cost`: what a start and an event cost, for the function and for the floor, in one run.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use flate2::{Compression, read::DeflateEncoder};
use lab::Lab;

use crate::subject::{FLOOR_TOKEN, Failure, Subject, cpu_time, ms, percentile, status};

/// What to measure, and how often.
#[derive(Args)]
pub struct Cost {
    #[command(flatten)]
    subject: Subject,
    /// The binary of the floor.
    #[arg(long, value_name = "PATH")]
    floor: PathBuf,
    /// How many processes to start of each.
    #[arg(long, default_value_t = 40)]
    starts: usize,
    /// How many warm events to send to one process of each.
    #[arg(long, default_value_t = 1000)]
    events: u32,
}

/// What the starts and the warm events of one binary gave.
#[derive(Default)]
struct Figures {
    cpu_to_first_job: Vec<Duration>,
    init: Vec<Duration>,
    cpu_per_event: Duration,
    events: Vec<Duration>,
    /// Up to the first Job.
    cold: Requests,
    /// For all warm events.
    warm: Requests,
    peak_kib: u64,
    size: u64,
    zipped: u64,
}

/// How many requests AWS and Kubernetes got.
#[derive(Clone, Copy, Default)]
struct Requests(usize, usize);

impl Cost {
    /// Prints the table.
    pub async fn run(self) -> Result<bool, Failure> {
        let lab = Lab::start().await;
        lab.kubernetes.accept(FLOOR_TOKEN);
        let floor = self.subject.with_binary(&self.floor);
        let mut subjects = [(self.subject, Figures::default()), (floor, Figures::default())];
        // In turn, so that a slow minute of the machine is shared.
        for _ in 0..self.starts {
            for (subject, figures) in &mut subjects {
                figures.start(subject, &lab).await?;
            }
        }
        for (subject, figures) in &mut subjects {
            figures.warm(subject, &lab, self.events).await?;
        }
        let [(_, function), (_, floor)] = subjects;
        print_table(&function, &floor, self.starts, self.events);
        Ok(true)
    }
}

impl Figures {
    async fn start(&mut self, subject: &Subject, lab: &Lab) -> Result<(), Failure> {
        let started = Instant::now();
        let function = subject.start(lab)?;
        function.initialised().await.map_err(|answer| subject.failed(&answer))?;
        self.init.push(started.elapsed());
        subject.invoke(&function).await?;
        self.cpu_to_first_job.push(cpu_time(&function)?);
        function.stop().await;
        Ok(())
    }

    async fn warm(&mut self, subject: &Subject, lab: &Lab, events: u32) -> Result<(), Failure> {
        let start = Requests::of(lab);
        let function = subject.start(lab)?;
        subject.invoke(&function).await?;
        let (cold, cpu) = (Requests::of(lab), cpu_time(&function)?);
        for _ in 0..events {
            self.events.push(subject.invoke(&function).await?);
        }
        self.cpu_per_event = cpu_time(&function)?.saturating_sub(cpu) / events;
        (self.cold, self.warm) = (cold.since(start), Requests::of(lab).since(cold));
        self.peak_kib = status(&function, "VmHWM")?;
        self.size = fs::metadata(&subject.binary)?.len();
        self.zipped = zipped(&subject.binary)?;
        function.stop().await;
        Ok(())
    }
}

impl Requests {
    fn of(lab: &Lab) -> Self {
        Self(lab.aws.requests().len(), lab.kubernetes.requests().len())
    }

    fn since(self, before: Self) -> Self {
        Self(self.0 - before.0, self.1 - before.1)
    }
}

/// The binary's share of a zip file, at the default level of compression.
fn zipped(binary: &Path) -> io::Result<u64> {
    let mut deflated = DeflateEncoder::new(BufReader::new(File::open(binary)?), Compression::default());
    io::copy(&mut deflated.by_ref(), &mut io::sink())
}

#[expect(clippy::cast_precision_loss, reason = "no figure has as many digits")]
fn print_table(function: &Figures, floor: &Figures, starts: usize, events: u32) {
    println!("{starts} starts and {events} warm events of each; medians unless said otherwise\n");
    println!("| | function | floor | ratio |\n| --- | ---: | ---: | ---: |");
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let row = |name: &str, digits: usize, figure: &dyn Fn(&Figures) -> f64| {
        let (function, floor) = (figure(function), figure(floor));
        println!("| {name} | {function:.digits$} | {floor:.digits$} | {:.2} |", function / floor);
    };
    row("CPU from start to first Job, ms", 2, &|figures| ms(percentile(&figures.cpu_to_first_job, 50)));
    row("init, wall, ms", 1, &|figures| ms(percentile(&figures.init, 50)));
    row("CPU per warm event, ms", 4, &|figures| ms(figures.cpu_per_event));
    row("warm event, wall p50, ms", 3, &|figures| ms(percentile(&figures.events, 50)));
    row("warm event, wall p99, ms", 3, &|figures| ms(percentile(&figures.events, 99)));
    row("peak memory, MB", 1, &|figures| mb(figures.peak_kib * 1024));
    row("binary, MB", 2, &|figures| mb(figures.size));
    row("zip, MB", 2, &|figures| mb(figures.zipped));
    let requests = |name: &str, figure: fn(&Figures) -> Requests| {
        let (Requests(aws, kubernetes), Requests(floor_aws, floor_kubernetes)) = (figure(function), figure(floor));
        println!("| requests {name}, AWS + Kubernetes | {aws} + {kubernetes} | {floor_aws} + {floor_kubernetes} | |");
    };
    requests("up to the first Job", |figures| figures.cold);
    requests("for all warm events", |figures| figures.warm);
}
