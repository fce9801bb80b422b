//! A new look at what is kept with an age: the agent token, the cluster's pod definitions.
//!
//! An event that finds its copy too old looks anew before it posts its Job. It does not wait long for that, since the old copy
//! served until now.

use std::time::Duration;

/// How long an event waits.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// When to look again after that failed, so that not every event of a burst waits.
pub const AGAIN: Duration = Duration::from_secs(30);
