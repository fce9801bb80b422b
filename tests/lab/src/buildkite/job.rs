//! The state machine of one job, and what its build page shows.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use crate::event::Event;

/// A job of a build.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// The event that Buildkite sent for it.
    pub event: Event,
    /// The Buildkite cluster of its pipeline.
    pub cluster: String,
    /// The queue that its rules ask for, else the default queue of the cluster.
    pub queue: String,
    /// Higher first.
    pub priority: i64,
    /// In the lab also the time of its creation.
    pub scheduled_at: Timestamp,
    /// When it may start, if that is later.
    pub runnable_at: Option<Timestamp>,
    /// Variables beside those of every job.
    pub env: BTreeMap<String, String>,
    /// Automatic retries that its step has left.
    pub retries: u32,
    /// A concurrency group or a dependency locks it: `acquire` answers 423.
    pub is_locked: bool,
    /// As in the Stacks API; a test may set one that the lab does not reach itself, such as `timing_out`.
    pub state: &'static str,
    /// The key of the stack that reserved it last, and when that expires.
    pub reservation: Option<(String, Timestamp)>,
    /// The id of the agent that acquired it.
    pub agent: Option<String>,
    /// What its agent sent to the log.
    pub log: Vec<u8>,
    /// Exit status of the command, or that of a stack.
    pub exit_status: Option<i64>,
    /// Why it failed, such as `stack_error`.
    pub signal_reason: Option<String>,
    /// The reason that a stack gave.
    pub detail: Option<String>,
    /// Notifications of stacks.
    pub notifications: Vec<(Timestamp, String)>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The uuid of the job that replaces it.
    pub retried_in_job_id: Option<String>,
}

impl Job {
    /// A field of the event's `detail`, such as `/build/number`.
    pub(super) fn field(&self, pointer: &str) -> Value {
        self.event.0["detail"].pointer(pointer).cloned().unwrap_or_default()
    }

    pub(super) fn is_reserved_by(&self, stack: &str) -> bool {
        self.state == "reserved" && self.reservation.as_ref().is_some_and(|(holder, _)| holder == stack)
    }

    /// It is scheduled again when its reservation is over.
    pub(super) fn expire(&mut self, now: Timestamp) {
        if self.state == "reserved" && self.reservation.as_ref().is_none_or(|(_, end)| *end <= now) {
            self.state = "scheduled";
        }
    }

    pub(super) fn reserve(&mut self, stack: &str, until: Timestamp) -> bool {
        let is_free = self.state == "scheduled" || self.is_reserved_by(stack);
        if is_free {
            (self.state, self.reservation) = ("reserved", Some((stack.to_owned(), until)));
        }
        is_free
    }

    /// Returns the status of the answer.
    pub(super) fn acquire(&mut self, agent: &str) -> u16 {
        match self.state {
            "scheduled" | "reserved" if self.is_locked => 423,
            "scheduled" | "reserved" => {
                (self.state, self.agent) = ("accepted", Some(agent.to_owned()));
                200
            }
            _ => 422,
        }
    }

    pub(super) fn start(&mut self) -> bool {
        let may_start = matches!(self.state, "accepted" | "canceling");
        if self.state == "accepted" {
            self.state = "running";
        }
        may_start
    }

    /// The end that its agent, or the stack that reserved it, reports.
    pub(super) fn finish(&mut self, exit_status: i64, signal_reason: Option<&str>, now: Timestamp) -> bool {
        let ended = match self.state {
            "reserved" | "accepted" | "running" => "finished",
            "canceling" => "canceled",
            _ => return false,
        };
        (self.state, self.finished_at) = (ended, Some(now));
        (self.exit_status, self.signal_reason) = (Some(exit_status), signal_reason.map(str::to_owned));
        true
    }

    pub(super) fn cancel(&mut self, now: Timestamp) {
        match self.state {
            "scheduled" | "reserved" => (self.state, self.finished_at) = ("canceled", Some(now)),
            "accepted" | "running" => self.state = "canceling",
            _ => {}
        }
    }

    /// Whether its step makes a new job in its place.
    pub(super) fn is_retried(&self) -> bool {
        self.state == "finished" && self.exit_status != Some(0) && self.retries > 0
    }
}
