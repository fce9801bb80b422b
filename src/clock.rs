//! The wall clock, the monotonic clock and randomness: the only place in `src` that reads them.

use std::{cell::Cell, time::SystemTime};

use tokio::time::Instant;

thread_local! {
    /// In a simulation: the time of the wall clock at one of the monotonic clock.
    static SIMULATED: Cell<Option<(SystemTime, Instant)>> = const { Cell::new(None) };
}

/// From here on the wall clock of this thread is `now`, follows the monotonic clock, and stands still with it. What is random follows from
/// `seed`.
pub fn simulate(now: SystemTime, seed: u64) {
    SIMULATED.set(Some((now, monotonic())));
    fastrand::seed(seed);
}

/// The wall clock: for times that others read, such as a signature's.
pub fn wall() -> SystemTime {
    SIMULATED.get().map_or_else(SystemTime::now, |(start, instant)| start + instant.elapsed())
}

/// The monotonic clock: for ages and time limits. In tests it is Tokio's paused clock.
pub fn monotonic() -> Instant {
    Instant::now()
}

/// Five random lower-case letters and digits.
pub fn random_suffix() -> String {
    (0..5).map(|_| fastrand::alphanumeric().to_ascii_lowercase()).collect()
}

/// A random number from 0 up to 1.
pub fn random() -> f64 {
    fastrand::f64()
}
