//! A new look at what is kept with an age: the agent token, the cluster's pod definitions.
//!
//! An event that finds its copy too old looks anew before it posts its Job. It does not wait long for that, since the old copy
//! served until now.

use std::{error::Error, time::Duration};

use tokio::time::timeout;

use crate::eks;

/// How long an event waits.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// When to look again after that failed, so that not every event of a burst waits.
pub const AGAIN: Duration = Duration::from_secs(30);

/// Why the old copy serves on.
#[derive(Debug, thiserror::Error)]
pub enum Failure<E: Error> {
    /// There was an answer, and it was an error.
    #[error(transparent)]
    Told(E),
    /// There was none.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Late,
}

impl Failure<eks::Error> {
    /// The kind of failure: [`crate::scheduler::Error::kind`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Told(error) => error.kind(),
            Self::Late => "Timeout",
        }
    }
}

/// Looks anew.
pub async fn refresh<T, E: Error>(look: impl Future<Output = Result<T, E>>) -> Result<T, Failure<E>> {
    match timeout(TIMEOUT, look).await {
        Ok(result) => result.map_err(Failure::Told),
        Err(_) => Err(Failure::Late),
    }
}
