//! `lab throughput`: events per second on a real API server, beside a bare client that posts the same bodies.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use hyper::{
    Request, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use lab::{Answer, Function, Lab, control_plane::Caller};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    bench::{self, Problem},
    event_file,
    run::{NAMESPACE, control_plane_for_function},
};

/// So short that both meet the same moods of the machine, and so long that a turn costs nothing.
const BLOCK: usize = 25;

/// What to measure, and how long.
#[derive(Args)]
pub struct Throughput {
    /// The function's release binary.
    #[arg(long, value_name = "PATH")]
    function: PathBuf,
    /// The event that is sent, each time with another job.
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
    /// How many events to send, and how many bodies to post beside them.
    #[arg(long, default_value_t = 1000)]
    events: usize,
}

impl Throughput {
    /// Prints both rates and their ratio.
    pub async fn run(self) -> Result<ExitCode, Problem> {
        let (_, event) = event_file::read(&self.event)?;
        let (uuid, body) = self.body(&event).await?;

        let control_plane = control_plane_for_function().await?;
        let lab = control_plane.lab().await;
        let function = self.process(&lab)?;
        self.invoke(&function, &event).await?;
        let mut bare = control_plane.admin().await;

        let (cpu, before) = (bench::cpu_time(&function)?, within(&function));
        let (mut ours, mut theirs) = (Duration::ZERO, Duration::ZERO);
        let blocks = self.events.div_ceil(BLOCK);
        for _ in 0..blocks {
            let started = Instant::now();
            for _ in 0..BLOCK {
                self.invoke(&function, &event).await?;
            }
            ours += started.elapsed();
            let started = Instant::now();
            for _ in 0..BLOCK {
                post(&mut bare, body.replace(&uuid, &Uuid::new_v4().to_string())).await?;
            }
            theirs += started.elapsed();
        }
        let cpu = bench::cpu_time(&function)?.saturating_sub(cpu);
        print(blocks * BLOCK, ours, theirs, within(&function).saturating_sub(before), cpu);
        Ok(ExitCode::SUCCESS)
    }

    /// What the function posts, as the lab's stand-in sees it, and the job that it is for.
    async fn body(&self, event: &Value) -> Result<(String, String), Problem> {
        let lab = Lab::start().await;
        let function = self.process(&lab)?;
        let uuid = self.invoke(&function, event).await?;
        function.stop().await;
        let posted = lab.kubernetes.requests().into_iter().find(|request| request.method == "POST");
        Ok((uuid, posted.map(|request| request.body).unwrap_or_default()))
    }

    fn process(&self, lab: &Lab) -> Result<Function, Problem> {
        let started = lab.function(&self.function).try_start();
        started.map_err(|source| Problem::Unusable { path: self.function.clone(), source })
    }

    /// Sends an event of a new job, and tells which.
    async fn invoke(&self, function: &Function, event: &Value) -> Result<String, Problem> {
        let uuid = Uuid::new_v4().to_string();
        match function.invoke(event_file::of_job(event, &uuid)).await {
            Answer::Success(_) => Ok(uuid),
            answer => Err(Problem::Failed { path: self.function.clone(), answer }),
        }
    }
}

async fn post(bare: &mut Caller, body: String) -> Result<(), Problem> {
    let request = Request::post(format!("/apis/batch/v1/namespaces/{NAMESPACE}/jobs?fieldValidation=Strict"));
    // As the function does, asks for no more of the answer than the metadata.
    let request = request.header(ACCEPT, "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
    let response = bare.send(request.header(CONTENT_TYPE, "application/json"), body).await;
    match response.status() {
        StatusCode::CREATED => Ok(()),
        status => Err(Problem::Refused { status, said: String::from_utf8_lossy(response.body()).into_owned() }),
    }
}

/// What the function says itself that its events took, the wait for the API server included: the rest is the Runtime API and
/// the lab.
fn within(function: &Function) -> Duration {
    let took: f64 = function.lines().iter().filter_map(|line| line["milliseconds"].as_f64()).sum();
    Duration::from_secs_f64(took / 1000.0)
}

#[expect(clippy::cast_precision_loss, reason = "no figure has as many digits")]
fn print(events: usize, ours: Duration, theirs: Duration, within: Duration, cpu: Duration) {
    let rate = |time: Duration| events as f64 / time.as_secs_f64();
    println!("{events} events and as many raw posts, {BLOCK} and {BLOCK} in turn, against a real API server\n");
    println!("| | function | bare client | ratio |\n| --- | ---: | ---: | ---: |");
    println!("| per second | {:.1} | {:.1} | {:.2} |", rate(ours), rate(theirs), rate(ours) / rate(theirs));
    println!(
        "| per second, without Runtime API and lab | {:.1} | {:.1} | {:.2} |",
        rate(within),
        rate(theirs),
        rate(within) / rate(theirs)
    );
    println!("| CPU per event, ms | {:.3} | | |", cpu.as_secs_f64() * 1000.0 / events as f64);
}
