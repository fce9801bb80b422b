//! One simulation, of the real code.
//!
//! A seed decides a [`plan::Plan`]: jobs with what becomes of their events and pods, and troubles. [`run`] lets the function's own
//! [`Scheduler`](agent_scheduler::scheduler::Scheduler) and sweep live through it, on tokio's paused clock, in one thread, without sockets:
//!
//! ```text
//!   Buildkite's jobs --bus: late, twice, lost--> Lambda: cold, warm, killed, retried --handle--> the function
//!   the minute ---------------------------------^                                                  |
//!   network: takes time, fails, loses answers <--- https::simulate, the SDK's HTTP client ---------+
//!     |--> the lab's SSM and EKS, Buildkite, and API server
//!                                  Job controller, scheduler, kubelet, agents ---^
//! ```
//!
//! The same plan gives the same run, byte for byte: time is that of [`agent_scheduler::clock`], chance follows from the seed, and nothing
//! depends on the order of a hash map.

mod agent;
mod check;
mod cluster;
pub mod day;
mod lambda;
pub mod limits;
mod network;
pub mod plan;
pub mod search;
pub mod seen;
mod world;

use std::mem;

use agent_scheduler::log::Log;
use lab::Event;
use tokio::{runtime::Builder, task::LocalSet};

use self::{
    plan::{Job, Plan},
    seen::Seen,
    world::{Numbered, World},
};

/// What came of a plan.
pub struct Run {
    /// What must not happen, and did.
    pub violations: Vec<String>,
    /// All that happened, a line each.
    pub timeline: String,
    /// The same in numbers.
    pub seen: Seen,
}

/// Runs a plan in this thread.
pub fn run(plan: &Plan) -> Run {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime is made");
    LocalSet::new().block_on(&runtime, async {
        let world = World::new(plan.clone());
        let level = if plan.is_recorded { "INFO" } else { "OFF" };
        let log = Log::read(|name| (name == "AWS_LAMBDA_LOG_LEVEL").then(|| level.to_owned()));
        let _log = tracing::subscriber::set_default(log);
        world.run().await;
        world.end()
    })
}

impl World {
    fn end(&self) -> Run {
        // They hold the world.
        self.state().idle.clear();
        let mut state = self.state();
        let (mut seen, violations) = (mem::take(&mut state.seen), mem::take(&mut state.violations));
        let created = |job: &Job| {
            let created = state.created.get(&Event::of_number(job.number).job_name());
            created.map(|created| (job.number, *created))
        };
        seen.created = self.plan.jobs.iter().filter_map(created).collect();
        seen.finished = self.lab.buildkite.lock().jobs.values().filter(|job| job.detail.is_some()).count();
        Run { violations, timeline: self.lab.timeline.to_string(), seen }
    }
}
