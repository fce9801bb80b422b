//! Pod definitions on their author's desk, without AWS, cluster or network: what is wrong with them, and the Job that a step gets.
//!
//! The rules are the function's own, from `agent-scheduler-core`. What is here is not in the function: its build script checks
//! `pod-definitions/` with [`definitions`], and the lab prints Jobs with [`yaml`].

pub mod definitions;
pub mod render;
pub mod schema;
pub mod yaml;
