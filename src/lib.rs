//! Starts one Buildkite agent on EKS for every job that waits for one.
//!
//! One event in, one Kubernetes Job out:
//!
//! ```text
//! JSON --event--> ScheduledJob --query_rules--> for us? --no--> Outcome::Ignored
//!                                                 | yes
//!   library --> PodDefinition --job::build--> Job --eks client--> POST jobs
//!                                                   |      |         |
//!                                               Created  AlreadyExists  Error
//! ```
//!
//! The same event may come back in a message of the [`failure_queue`], several at once.
//!
//! The middle ([`event`], [`failure_queue`], [`query_rules`], [`pod_definition`], [`quantity`], [`overrides`], [`job`], [`metrics`]) is
//! functions of values: no client, no clock, no environment. The edge ([`deadline`], [`https`], [`aws`], [`agent_token`], [`library`], [`refresh`],
//! [`eks`]) asks and sends, and [`scheduler`] walks an event through all of it once.

pub mod agent_token;
pub mod aws;
pub mod config;
pub mod deadline;
pub mod eks;
pub mod event;
mod excerpt;
pub mod failure_queue;
pub mod https;
pub mod job;
pub mod library;
pub mod metrics;
pub mod overrides;
pub mod pod_definition;
pub mod quantity;
pub mod query_rules;
pub mod refresh;
pub mod scheduler;

use std::{error::Error, io};

/// An error and its causes, the outermost first, as one text.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
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
