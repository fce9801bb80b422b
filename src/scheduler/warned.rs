//! The warnings of the API server: each once an hour for a definition.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use crate::{clock, text::message};

/// A warning is logged again after this time.
const PAUSE: Duration = Duration::from_hours(1);

/// When each was logged.
#[derive(Default)]
pub(super) struct Warned(Mutex<HashMap<(String, String), Instant>>);

impl Warned {
    /// Logs those that are due.
    pub(super) fn log(&self, warnings: &[String], job: Uuid, definition: &str) {
        for warning in warnings {
            let mut warned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            warned.retain(|_, time| time.elapsed() < PAUSE);
            if let Entry::Vacant(first) = warned.entry((definition.to_owned(), warning.clone())) {
                first.insert(clock::monotonic());
                tracing::warn!(%job, definition, warning = &*message(warning), "the API server warns about the Job");
            }
        }
    }
}
