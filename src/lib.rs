//! Starts one Buildkite agent on EKS for every job that waits for one.
//!
//! One event in, one Kubernetes Job out:
//!
//! ```text
//! payload --lambda--> Trigger --event--> ScheduledJob --rules--> for us? --no--> Outcome::Ignored
//!                                                         | yes
//!     definitions --> PodDefinition --for_step, job::build--> Job --cluster--> POST jobs
//!                                                                    |      |         |
//!                                                                Created  AlreadyExists  Error --report--> answer, log, metrics
//! ```
//!
//! The same event may come back in a message of the failure queue, several at once.
//!
//! Each room uses those below it:
//!
//! | room | what lives there |
//! | --- | --- |
//! | [`lambda`] | payload to [`lambda::Trigger`], and its answer |
//! | [`sweep`] | once a minute: what waits at Buildkite beside what the cluster holds, and the steps that repair the difference |
//! | [`scheduler`] | one job: match, build, create |
//! | [`doctor`] | what of the set-up is missing, and the command that adds it |
//! | [`report`] | what became of a job: answer, log line, metrics |
//! | [`definitions`], [`agent_token`], [`job_token`], [`stacks_api`] | the compiled definitions and the cluster's; the token that agents share, and one agent's own; this stack at Buildkite |
//! | [`kubernetes`] | the API server: one function per request, the client, what a refusal means |
//! | [`aws`] | SSM, EKS, the EKS token |
//! | [`kept`], [`retry`], [`https`] | a value with an age; the one retry policy; the one TLS stack |
//! | [`config`], [`deadline`], [`clock`], [`log`] | the settings; an invocation's time; the clocks and randomness; the lines of the log |
//! | [`buildkite`], [`pod`], [`stack`], [`json`], [`text`] | pure, in the crate `agent-scheduler-core`: the job and its rules; what it runs in; the settings that decide about jobs |

pub mod agent_token;
pub mod aws;
pub mod clock;
pub mod config;
pub mod deadline;
pub mod definitions;
pub mod doctor;
pub mod https;
pub mod job_token;
pub mod kept;
pub mod kubernetes;
pub mod lambda;
pub mod log;
pub mod report;
pub mod retry;
pub mod scheduler;
pub mod stacks_api;
pub mod sweep;

use std::{error::Error, io};

pub use agent_scheduler_core::{json, pod, stack, text};

pub mod buildkite {
    //! Buildkite: what it says of a job, and its Stacks API.

    mod client;
    pub mod stacks;

    pub use agent_scheduler_core::buildkite::*;
}

/// The first cause of that type. An `io::Error` does not give what it wraps as its source, so it is asked for that.
pub(crate) fn cause<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}
