//! What is measured: a binary, the event that it gets, and what the kernel says of its process.

use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use lab::{Answer, Event, Function, Lab, event, function::Builder};
use nix::{errno::Errno, time::clock_getcpuclockid, unistd::Pid};
use serde_json::Value;
use uuid::Uuid;

/// Why there is nothing to print; for a person.
pub type Failure = Box<dyn Error + Send + Sync>;

/// The floor signs nothing, so it gets a token that the lab accepts as it is.
pub const FLOOR_TOKEN: &str = "floor";

/// One binary under test.
#[derive(Args, Clone)]
pub struct Subject {
    /// The function's binary.
    #[arg(long = "function", value_name = "PATH")]
    pub binary: PathBuf,
    /// The event that is sent, each time with another job.
    #[arg(long, value_name = "FILE", value_parser = |path: &str| Subject::read(path))]
    pub event: Event,
}

impl Subject {
    fn read(path: &str) -> Result<Event, event::Problem> {
        Event::read(Path::new(path)).map(|(_, event)| event)
    }

    /// The same event for another binary.
    pub fn with_binary(&self, binary: &Path) -> Self {
        Self { binary: binary.to_owned(), event: self.event.clone() }
    }

    /// Starts it in a lab, with TLS to all servers as on Lambda.
    pub fn start(&self, lab: &Lab) -> Result<Function, Failure> {
        self.start_as(lab, |builder| builder)
    }

    /// The same with a change to how it is started.
    pub fn start_as(&self, lab: &Lab, change: impl FnOnce(Builder) -> Builder) -> Result<Function, Failure> {
        let builder = lab.function_over_tls(&self.binary).env("FLOOR_TOKEN", FLOOR_TOKEN);
        let started = change(builder).try_start();
        started.map_err(|source| format!("cannot run {}: {source}", self.binary.display()).into())
    }

    /// Sends the event of a new job, and returns how long the answer took.
    pub async fn invoke(&self, function: &Function) -> Result<Duration, Failure> {
        let event = self.event.clone().uuid(Uuid::new_v4());
        let sent = Instant::now();
        match function.invoke(event).await {
            Answer::Success(_) => Ok(sent.elapsed()),
            answer => Err(self.failed(&answer)),
        }
    }

    /// An answer that was not expected.
    pub fn failed(&self, answer: &Answer) -> Failure {
        format!("{} failed: {answer}", self.binary.display()).into()
    }
}

/// User and system time of all threads of the process so far.
pub fn cpu_time(function: &Function) -> Result<Duration, Errno> {
    Ok(clock_getcpuclockid(pid(function)?)?.now()?.into())
}

/// The process of a function.
pub fn pid(function: &Function) -> Result<Pid, Errno> {
    Ok(Pid::from_raw(i32::try_from(function.pid()).map_err(|_| Errno::ESRCH)?))
}

/// A number of `/proc/PID/status`, such as `VmRSS` in KiB.
pub fn status(function: &Function, name: &str) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", function.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| io::Error::other(format!("the kernel reports no {name}")))
}

/// How long the function logged that an event took.
pub fn took(line: &Value) -> Option<Duration> {
    line["milliseconds"].as_f64().map(|milliseconds| Duration::from_secs_f64(milliseconds / 1000.0))
}

/// The time that this percentage did not exceed.
pub fn percentile(of: &[Duration], percent: usize) -> Duration {
    let mut sorted = of.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * percent / 100).copied().unwrap_or_default()
}

/// A time in milliseconds.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
