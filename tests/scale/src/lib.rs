//! A day of a million jobs, on paper: through EventBridge, Lambda, SSM, the API server, the Job controller and etcd, and the same
//! day through agent-stack-k8s.
//!
//! ```text
//! Day ──> Function ──> ApiServer ──>      Jobs, with the time of each
//!            └─> Bucket (SSM)                │
//! Day ──> Stack ──> ApiServer ─────────> Cluster: pods, ends, TTL, etcd
//! ```
//!
//! Discrete events with a seed: the same seed and the same [`Constants`] give the same day, byte for byte. `docs/scale.md` shows
//! what came out.

pub mod agenda;
pub mod api_server;
pub mod bucket;
pub mod cluster;
pub mod constants;
pub mod cost;
pub mod day;
pub mod function;
pub mod page;
pub mod plots;
pub mod runs;
pub mod series;
pub mod stack;
pub mod tables;

pub use constants::Constants;
