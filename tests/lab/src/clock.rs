//! The time of the stand-ins.

use std::{cell::Cell, time::SystemTime};

use jiff::Timestamp;
use tokio::time::Instant;

thread_local! {
    static SIMULATED: Cell<Option<(SystemTime, Instant)>> = const { Cell::new(None) };
}

/// From here on it is `now` for the stand-ins of this thread, and their time follows the clock of tokio, which may be paused.
pub fn simulate(now: SystemTime) {
    SIMULATED.set(Some((now, Instant::now())));
}

pub(crate) fn wall() -> SystemTime {
    SIMULATED.get().map_or_else(SystemTime::now, |(start, instant)| start + instant.elapsed())
}

pub(crate) fn now() -> Timestamp {
    wall().try_into().expect("a time of this era")
}
