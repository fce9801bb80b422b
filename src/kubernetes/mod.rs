//! The cluster's API server: what we ask it, how, and what its refusals mean.

mod client;
mod cluster;
mod error;
pub(crate) mod fake;
mod list;
mod review;
mod secrets;

pub use agent_scheduler_core::kubernetes::{events, jobs, pods};

pub use self::{
    client::{ATTEMPT_TIMEOUT, Client},
    cluster::{Cluster, Created},
    error::{Error, SUBJECT, role_selector},
    list::Listed,
    review::{NamedKind, Permission, User},
};
