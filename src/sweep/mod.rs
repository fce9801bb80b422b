//! The sweep: once a minute compare what waits at Buildkite with what the cluster holds, and repair the difference.
//!
//! ```text
//! ask: queues, Jobs, pods, states ──> Seen ──plan──> steps ──act: look again, reserve──> create, replace, cancel, finish
//! ```
//!
//! It keeps nothing between two runs: what it must remember stands on the Jobs. It always succeeds, so that Lambda does not repeat it:
//! the next one comes.

mod act;
mod ask;
mod create;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::jiff::Timestamp;
use secrecy::SecretString;

pub use agent_scheduler_core::sweep::*;

use self::seen::Known;
use crate::{
    clock,
    deadline::Deadline,
    kubernetes::{self, Cluster},
    report::{self, Answer},
    scheduler::{InCluster, Scheduler},
    stacks_api::{self, StacksApi},
    text::chain,
};

/// How long a sweep may take.
const MAX_TIME: Duration = Duration::from_secs(45);

/// A sweep that is older has waited in Lambda's queue, and others have been due since.
const MAX_AGE: Duration = Duration::from_secs(90);

/// How long a sweep looks at both sides, if it has as much again for its steps.
const MAX_LOOK: Duration = Duration::from_secs(25);

/// How many reasons the log line of a sweep that failed has.
const MAX_REASONS: usize = 5;

/// One sweep.
struct Sweep<'a> {
    scheduler: &'a Scheduler,
    stacks_api: &'a StacksApi,
    token: Arc<SecretString>,
    cluster: Cluster,
    deadline: Deadline,
}

/// Buildkite refuses the Stacks API to this stack: there is nothing to compare.
struct Unavailable;

/// Compares both sides and repairs the difference, if the sweep that was due at `time` is not too old.
pub async fn run(scheduler: &Scheduler, time: Option<SystemTime>, deadline: Deadline) -> Answer {
    let config = &scheduler.config;
    let age = time.and_then(|time| clock::wall().duration_since(time).ok());
    if let Some(age) = age.filter(|age| *age > MAX_AGE) {
        report::Sweep::skipped(age, &config.function_name);
        return Answer::ignored(&format!("the sweep was due {} s ago", age.as_secs()));
    }
    let Some(stacks_api) = scheduler.stacks_api().filter(|_| config.sweep_enabled) else {
        return Answer::ignored(&"SweepEnabled or StacksApi is false");
    };
    let mut report = report::Sweep::default();
    let due = time.and_then(|time| time.try_into().ok());
    if let Err(Unavailable) = sweep(scheduler, stacks_api, due, &mut report, deadline.within(MAX_TIME)).await {
        return Answer::ignored(&"Buildkite refuses the Stacks API to this stack");
    }
    report.write(&config.function_name);
    Answer { outcome: "swept", ..Answer::default() }
}

async fn sweep(
    scheduler: &Scheduler,
    stacks_api: &StacksApi,
    due: Option<Timestamp>,
    report: &mut report::Sweep,
    deadline: Deadline,
) -> Result<(), Unavailable> {
    let token = match scheduler.token(deadline).await {
        Ok(token) => token,
        Err(error) => {
            report.failures.push(chain(&error));
            return Ok(());
        }
    };
    let look = deadline.within(deadline.attempt(MAX_LOOK));
    let queues = ask::queues(scheduler, stacks_api, &token, report, look).await?;
    let (cluster, jobs) = match scheduler.cluster(look).await {
        Ok(InCluster { cluster, applied, jobs }) => {
            report.failures.extend(applied.err().map(|error| chain(&error)));
            (cluster, report.of_cluster(jobs))
        }
        Err(error) => {
            report.failures.push(chain(&error));
            return Ok(());
        }
    };
    let sweep = Sweep { scheduler, stacks_api, token, cluster, deadline };
    let seen = sweep.look(due, queues, jobs, report, look).await?;
    sweep.act(plan::plan(&seen), &seen, report).await
}

impl report::Sweep {
    /// What Buildkite answered, if it did.
    fn of_buildkite<T>(&mut self, answer: Result<T, stacks_api::Error>) -> Result<Known<T>, Unavailable> {
        match answer {
            Ok(answer) => Ok(Known::Known(answer)),
            Err(stacks_api::Error::Unavailable) => Err(Unavailable),
            Err(stacks_api::Error::Call(error)) => {
                add(&mut self.failures, chain(&*error));
                Ok(Known::Unknown)
            }
        }
    }

    /// What the API server answered, if it did.
    fn of_cluster<T>(&mut self, answer: Result<T, kubernetes::Error>) -> Known<T> {
        match answer {
            Ok(answer) => return Known::Known(answer),
            Err(error @ kubernetes::Error::Forbidden { .. }) => add(&mut self.forbidden, chain(&error)),
            Err(error) => add(&mut self.failures, chain(&error)),
        }
        Known::Unknown
    }
}

/// Many steps may fail for one reason.
fn add(reasons: &mut Vec<String>, reason: String) {
    if reasons.len() < MAX_REASONS && !reasons.contains(&reason) {
        reasons.push(reason);
    }
}
