//! `bench sweep`: what a sweep costs that finds nothing to do, beside more and more Jobs.

use std::time::{Duration, Instant};

use clap::Args;
use lab::{Answer, Event, Lab, buildkite::CLUSTER};
use serde_json::json;

use crate::subject::{Failure, Subject, cpu_time, ms, status};

/// What to measure.
#[derive(Args)]
pub struct Sweep {
    #[command(flatten)]
    subject: Subject,
    /// How many Jobs there are, each with a pod whose agent runs.
    #[arg(long, value_delimiter = ',', default_value = "0,1000,10000")]
    jobs: Vec<u64>,
}

impl Sweep {
    /// Prints the table.
    pub async fn run(self) -> Result<bool, Failure> {
        println!("\nA sweep; the first one, which registers the stack, is left out\n");
        println!("| Jobs and pods | CPU, ms | wall, ms | requests to the cluster | to Buildkite | peak memory, MB |");
        println!("| ---: | ---: | ---: | ---: | ---: | ---: |");
        for &jobs in &self.jobs {
            self.measure(jobs).await?;
        }
        Ok(true)
    }

    #[expect(clippy::cast_precision_loss, reason = "no figure has as many digits")]
    async fn measure(&self, jobs: u64) -> Result<(), Failure> {
        let lab = Lab::start().await;
        let function = self.subject.start_as(&lab, |builder| builder.timeout(Duration::from_mins(1)))?;
        if jobs > 0 {
            self.fill(&lab, &function, jobs).await?;
        }
        lab.skip(Duration::from_mins(2));
        self.sweep(&function).await?;
        let requests = || (lab.kubernetes.requests().len(), lab.buildkite.requests().len());
        let (before, cpu, began) = (requests(), cpu_time(&function)?, Instant::now());
        self.sweep(&function).await?;
        let (wall, cpu, after) = (began.elapsed(), cpu_time(&function)?.saturating_sub(cpu), requests());
        let (cluster, buildkite) = (after.0 - before.0, after.1 - before.1);
        let memory = status(&function, "VmHWM")? as f64 / 1e3;
        println!("| {jobs} | {:.1} | {:.1} | {cluster} | {buildkite} | {memory:.1} |", ms(cpu), ms(wall));
        function.stop().await;
        Ok(())
    }

    async fn sweep(&self, function: &lab::Function) -> Result<(), Failure> {
        match function.invoke(Event::sweep()).await {
            Answer::Success(_) => Ok(()),
            answer => Err(self.subject.failed(&answer)),
        }
    }

    /// Copies of the first Job, which the function creates.
    async fn fill(&self, lab: &Lab, function: &lab::Function, jobs: u64) -> Result<(), Failure> {
        let first = self.subject.event.clone().now();
        if !matches!(function.invoke(&first).await, Answer::Success(_)) {
            return Err("the function creates no Job to copy".into());
        }
        let agent = json!({"running": {"startedAt": "2026-01-15T10:00:00Z"}});
        lab.kubernetes.start_pod(&first.job_name(), &agent);
        let (job, pod) = (lab.kubernetes.jobs().remove(0), lab.kubernetes.pods().remove(0));
        for number in 1..=jobs {
            let event = self.subject.event.clone().uuid(format!("11111111-2222-4333-8444-5555555{number:05}"));
            lab.buildkite.lock().schedule(&event, CLUSTER).state = "running";
            let (mut job, mut pod) = (job.clone(), pod.clone());
            for object in [&mut job, &mut pod] {
                object["metadata"]["labels"]["buildkite.com/job-uuid"] = event.job_uuid().into();
                object["metadata"]["uid"] = event.job_uuid().into();
            }
            job["metadata"]["name"] = event.job_name().into();
            pod["metadata"]["name"] = format!("{}-abcde", event.job_name()).into();
            pod["metadata"]["ownerReferences"][0]["uid"] = event.job_uuid().into();
            lab.kubernetes.put_job(job);
            lab.kubernetes.put_pod(pod);
        }
        Ok(())
    }
}
