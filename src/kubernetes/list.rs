//! Lists of the API server.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::ListMeta, jiff::Timestamp};
use serde::Deserialize;

/// A list, all that is needed of it.
#[derive(Debug)]
pub struct Listed<T> {
    /// What is in it.
    pub items: Vec<T>,
    /// When the API server began to answer, by its own clock.
    pub now: Option<Timestamp>,
}

/// One page.
#[derive(Deserialize)]
pub(super) struct Page<T> {
    #[serde(default)]
    pub(super) metadata: ListMeta,
    #[serde(default = "Vec::new")]
    pub(super) items: Vec<T>,
}
