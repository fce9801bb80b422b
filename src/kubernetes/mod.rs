//! The cluster's API server: what we ask it, how, and what its refusals mean.

mod client;
mod cluster;
mod error;
pub(crate) mod fake;

pub use self::{
    client::{ATTEMPT_TIMEOUT, over},
    cluster::{Cluster, Created, FoundJob},
    error::{Error, SUBJECT},
};
