//! `lab bench`: what a start and an event cost, for the function and for the floor under it, in one run.

use std::{
    fmt,
    fs::{self, File},
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use flate2::{Compression, read::DeflateEncoder};
use hyper::StatusCode;
use lab::{Answer, Event, Function, Lab, control_plane, event, function::Builder, kubeconfig};
use nix::{errno::Errno, time::clock_getcpuclockid, unistd::Pid};
use uuid::Uuid;

/// The floor signs nothing, so it gets a token that is good as it is.
pub const FLOOR_TOKEN: &str = "floor";

/// What to measure, and how often.
#[derive(Args)]
pub struct Bench {
    /// The function's release binary.
    #[arg(long, value_name = "PATH")]
    function: PathBuf,
    /// The release binary of tests/floor.
    #[arg(long, value_name = "PATH")]
    floor: PathBuf,
    /// The event that is sent, each time with another job.
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
    /// How many processes to start of each.
    #[arg(long, default_value_t = 40)]
    starts: usize,
    /// How many warm events to send to one process of each.
    #[arg(long, default_value_t = 1000)]
    events: usize,
}

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("cannot read {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Event(#[from] event::Problem),
    #[error("cannot run {}: {source}", path.display())]
    Unusable { path: PathBuf, source: io::Error },
    #[error("{} failed: {answer}", path.display())]
    Failed { path: PathBuf, answer: Answer },
    #[error("cannot read the CPU time of a process: {0}")]
    Clock(#[from] Errno),
    #[error("{}", control_plane::explain(.0))]
    ControlPlane(#[from] control_plane::Problem),
    #[error(transparent)]
    Kubeconfig(#[from] kubeconfig::Problem),
    #[error("the API server refuses a body of the bare client: {status} {said}")]
    Refused { status: StatusCode, said: String },
}

/// One binary under test.
struct Subject<'a> {
    lab: &'a Lab,
    binary: &'a Path,
    event: &'a Event,
}

/// What the starts and the warm events of one binary gave.
#[derive(Default)]
struct Figures {
    cpu_to_first_job: Vec<Duration>,
    init: Vec<Duration>,
    cpu_per_event: Duration,
    events: Vec<Duration>,
    requests: Requests,
    peak_kib: u64,
    size: u64,
    zipped: u64,
}

/// How many requests each stand-in saw: up to the first Job, and for all warm events.
#[derive(Default)]
struct Requests {
    aws_cold: usize,
    kubernetes_cold: usize,
    aws_warm: usize,
    kubernetes_warm: usize,
}

impl Bench {
    /// Prints the table.
    pub async fn run(self) -> Result<ExitCode, Problem> {
        let (_, event) = Event::read(&self.event)?;
        let lab = Lab::start().await;
        lab.kubernetes.accept(FLOOR_TOKEN);
        let mut subjects = [&self.function, &self.floor]
            .map(|binary| (Subject { lab: &lab, binary, event: &event }, Figures::default()));
        // In turn, so that both meet the same moods of the machine.
        for _ in 0..self.starts {
            for (subject, figures) in &mut subjects {
                subject.start(figures).await?;
            }
        }
        for (subject, figures) in &mut subjects {
            subject.warm(self.events, figures).await?;
        }
        let [(_, function), (_, floor)] = subjects;
        print_table(&function, &floor, self.starts, self.events);
        Ok(ExitCode::SUCCESS)
    }
}

impl Subject<'_> {
    async fn start(&self, figures: &mut Figures) -> Result<(), Problem> {
        let started = Instant::now();
        let function = self.process()?;
        function.initialised().await.map_err(|answer| self.failed(answer))?;
        figures.init.push(started.elapsed());
        self.invoke(&function).await?;
        figures.cpu_to_first_job.push(cpu_time(&function)?);
        function.stop().await;
        Ok(())
    }

    async fn warm(&self, events: usize, figures: &mut Figures) -> Result<(), Problem> {
        let before = self.seen();
        let function = self.process()?;
        self.invoke(&function).await?;
        let (cold, cpu) = (self.seen(), cpu_time(&function)?);
        for _ in 0..events {
            figures.events.push(self.invoke(&function).await?);
        }
        let warm = self.seen();
        figures.cpu_per_event = (cpu_time(&function)?.saturating_sub(cpu)) / u32::try_from(events).unwrap_or(u32::MAX);
        figures.requests = Requests {
            aws_cold: cold.0 - before.0,
            kubernetes_cold: cold.1 - before.1,
            aws_warm: warm.0 - cold.0,
            kubernetes_warm: warm.1 - cold.1,
        };
        let unreadable = |source| Problem::Unreadable { path: self.binary.to_owned(), source };
        figures.peak_kib = peak_kib(&function).map_err(unreadable)?;
        figures.size = fs::metadata(self.binary).map_err(unreadable)?.len();
        figures.zipped = zipped(self.binary).map_err(unreadable)?;
        function.stop().await;
        Ok(())
    }

    fn process(&self) -> Result<Function, Problem> {
        let builder: Builder = self.lab.function(self.binary).env("FLOOR_TOKEN", FLOOR_TOKEN);
        builder.try_start().map_err(|source| Problem::Unusable { path: self.binary.to_owned(), source })
    }

    /// Sends an event of a new job, and tells how long the answer took.
    async fn invoke(&self, function: &Function) -> Result<Duration, Problem> {
        let event = self.event.clone().uuid(Uuid::new_v4());
        let sent = Instant::now();
        match function.invoke(event).await {
            Answer::Success(_) => Ok(sent.elapsed()),
            answer => Err(self.failed(answer)),
        }
    }

    fn failed(&self, answer: Answer) -> Problem {
        Problem::Failed { path: self.binary.to_owned(), answer }
    }

    fn seen(&self) -> (usize, usize) {
        (self.lab.aws.requests().len(), self.lab.kubernetes.requests().len())
    }
}

/// User and system time of all threads of the process so far.
pub fn cpu_time(function: &Function) -> Result<Duration, Errno> {
    let pid = Pid::from_raw(i32::try_from(function.pid()).map_err(|_| Errno::ESRCH)?);
    Ok(clock_getcpuclockid(pid)?.now()?.into())
}

/// The most memory that the process had at once, by the kernel's account.
fn peak_kib(function: &Function) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", function.pid()))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse().ok());
    kib.ok_or_else(|| io::Error::other("the kernel tells no VmHWM"))
}

/// The binary's share of a zip file: deflated at the level that zip programs use unless told otherwise.
fn zipped(binary: &Path) -> io::Result<u64> {
    let mut deflated = DeflateEncoder::new(BufReader::new(File::open(binary)?), Compression::default());
    io::copy(&mut deflated.by_ref(), &mut io::sink())
}

#[expect(clippy::cast_precision_loss, reason = "no figure has as many digits")]
fn print_table(function: &Figures, floor: &Figures, starts: usize, events: usize) {
    println!("{starts} starts and {events} warm events of each; medians unless said otherwise\n");
    println!("| | function | floor | ratio |\n| --- | ---: | ---: | ---: |");
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
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
    println!(
        "| requests up to the first Job, AWS + Kubernetes | {} | {} | |",
        function.requests.cold(),
        floor.requests.cold()
    );
    println!(
        "| requests for all warm events, AWS + Kubernetes | {} | {} | |",
        function.requests.warm(),
        floor.requests.warm()
    );
}

impl Requests {
    fn cold(&self) -> impl fmt::Display {
        format!("{} + {}", self.aws_cold, self.kubernetes_cold)
    }

    fn warm(&self) -> impl fmt::Display {
        format!("{} + {}", self.aws_warm, self.kubernetes_warm)
    }
}

/// The time that so many of a hundred did not exceed.
pub fn percentile(of: &[Duration], percent: usize) -> Duration {
    let mut sorted = of.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * percent / 100).copied().unwrap_or_default()
}
