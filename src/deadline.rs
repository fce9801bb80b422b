//! How long the start-up and the work on an event may take: the latter until shortly before Lambda ends the invocation, so that the answer is ours.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::clock;

/// Lambda stops an init after 10 s, and then starts it again within the first event's time.
pub const START_TIMEOUT: Duration = Duration::from_secs(5);

/// Reserved for reporting the error: a function that Lambda kills cannot say why it failed.
pub const RESERVE: Duration = Duration::from_secs(2);

/// The maximum of a function's timeout: <https://docs.aws.amazon.com/lambda/latest/dg/configuration-timeout.html>.
const MAX_TIMEOUT: Duration = Duration::from_mins(15);

/// The function's timeout in `template.yml`.
const TIMEOUT: Duration = Duration::from_mins(1);

/// When the answer is due.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// This long from now.
    pub fn after(time: Duration) -> Self {
        Self(clock::monotonic() + time)
    }

    /// Two seconds before Lambda ends the invocation.
    ///
    /// An end that is past, or further away than possible, is the mark of a wrong clock. The event is served all the same.
    pub fn of_invocation(end: SystemTime) -> Self {
        let left = end.duration_since(clock::wall()).ok().filter(|left| *left <= MAX_TIMEOUT);
        Self::after(left.unwrap_or(TIMEOUT).saturating_sub(RESERVE))
    }

    /// This deadline, or `time` from now if that is sooner.
    #[must_use]
    pub fn within(self, time: Duration) -> Self {
        Self(self.0.min(clock::monotonic() + time))
    }

    /// This long before this deadline.
    #[must_use]
    pub fn before(self, time: Duration) -> Self {
        Self(self.0.checked_sub(time).unwrap_or(self.0))
    }

    /// The time that is left.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(clock::monotonic())
    }

    /// The time for one attempt of a request: at most half of what is left, so that there is time for another.
    pub fn attempt(self, max: Duration) -> Duration {
        max.min(self.left() / 2)
    }

    /// For [`tokio::time::timeout_at`].
    pub fn instant(self) -> Instant {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_seconds_of_lambdas_time_are_reserved() {
        let left = |end: SystemTime| Deadline::of_invocation(end).left().as_millis();
        let now = SystemTime::now();
        assert!((57_900..=58_000).contains(&left(now + Duration::from_mins(1))));
        assert!((900..=1_000).contains(&left(now + Duration::from_secs(3))));
        assert_eq!(left(now + Duration::from_millis(1_500)), 0, "the clock is right, and there is no time");
        for wrong in [now - Duration::from_mins(10), now + Duration::from_hours(1), SystemTime::UNIX_EPOCH] {
            assert_eq!(left(wrong), 58_000);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_leaves_time_for_another() {
        let deadline = Deadline::after(Duration::from_secs(30));
        assert_eq!(deadline.attempt(Duration::from_secs(10)), Duration::from_secs(10));
        tokio::time::advance(Duration::from_secs(24)).await;
        assert_eq!(deadline.attempt(Duration::from_secs(10)), Duration::from_secs(3));
        assert_eq!(deadline.within(Duration::from_secs(1)).left(), Duration::from_secs(1));
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(deadline.left(), Duration::ZERO);
    }
}
