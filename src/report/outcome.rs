//! What becomes of a job, and why.

use crate::{
    buildkite::{rules::Mismatch, state::State},
    text::excerpt,
};

/// What became of a job, but for a failure: that is an error, so that Lambda retries it and then sends the event to the failure
/// queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is a Job now.
    Created,
    /// An earlier delivery of the same event created the Job.
    AlreadyExists,
    /// Not now; the sweep takes it later.
    Deferred(Deferral),
    /// Nothing to do here.
    Ignored(Reason),
    /// The step or its pod definition must change first, and the build page says so.
    Refused(Failure),
}

/// Why a job is left alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// A step that no agent runs.
    #[error("a job of type \"{}\" needs no agent", excerpt(.0))]
    NoScript(String),
    /// A job for others.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// Only some pipelines may use its pod definition, and the event does not name the job's.
    #[error(
        "pod definition \"{definition}\" is for some pipelines only, and the event does not say which one the job is of"
    )]
    UnknownPipeline {
        /// The definition.
        definition: String,
    },
    /// Its event is older than what is left of an earlier delivery.
    #[error("no agent has to come any more: Buildkite says {}", .0.as_ref().map_or_else(|| "nothing of the job".to_owned(), ToString::to_string))]
    NotWaiting(Option<State>),
    /// Its agent needs a token, for which the job must be reserved.
    #[error(
        "Buildkite does not reserve the job: it is {}, so another stack or an agent has it, or it is over",
        .0.as_ref().map_or_else(|| "unknown there".to_owned(), ToString::to_string)
    )]
    NotToBeHad(Option<State>),
    /// Its last Job still has its name.
    #[error("its last Job is being deleted, and the next sweep goes on")]
    JobIsDeleted,
    /// It can never start here, and is not ours to finish.
    #[error(
        "{refused}; not finished, since Buildkite does not reserve it: another stack or an agent has it, or it is over"
    )]
    NotReserved {
        /// Why it cannot start.
        refused: String,
    },
}

/// Why a job is left to the next sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Deferral {
    /// 429 to the reservation.
    #[error("Buildkite's rate limit for reservations is reached")]
    RateLimit,
    /// Buildkite says both that the job waits and that it cannot be reserved.
    #[error("Buildkite does not reserve the job yet, which is scheduled")]
    NotReserved,
    /// Its Job is younger than a minute, and has no Secret.
    #[error("another delivery has just made its Job, and has still to create the Secret with the token")]
    AtWork,
}

/// A failure, as alarms and operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// One of the table in docs/troubleshooting.md; it never changes its spelling.
    pub error_type: &'static str,
    /// What failed and what to do.
    pub text: String,
}

impl Outcome {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::AlreadyExists => "already-exists",
            Self::Deferred(_) => "deferred",
            Self::Ignored(_) => "ignored",
            Self::Refused(_) => "refused",
        }
    }

    /// The job waits until the step or the stack changes: worth a warning and an alarm.
    pub(super) fn is_unserved(&self) -> bool {
        matches!(self, Self::Ignored(Reason::Mismatch(Mismatch::UnservedTag { .. }) | Reason::UnknownPipeline { .. }))
    }
}
