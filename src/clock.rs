//! The wall clock, the monotonic clock and randomness: the only place in `src` that reads them.

use std::time::SystemTime;

use tokio::time::Instant;

/// The wall clock: for times that others read, such as a signature's.
pub fn wall() -> SystemTime {
    SystemTime::now()
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
