//! How long an event may be worked on: until shortly before Lambda ends the invocation, so that its answer is ours.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// What is kept for the last words: Lambda tells nobody why a function that it had to end did not answer.
const RESERVE: Duration = Duration::from_secs(2);

/// Lambda lets no function work longer: <https://docs.aws.amazon.com/lambda/latest/dg/configuration-timeout.html>.
const LONGEST: Duration = Duration::from_mins(15);

/// The function's timeout in `template.yml`.
const USUAL: Duration = Duration::from_mins(1);

/// When there must be an answer.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// So long from now.
    pub fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// Two seconds before Lambda ends the invocation.
    ///
    /// An end that is over or further away than it can be comes of a wrong clock, and is no reason to give an event up.
    pub fn of_invocation(end: SystemTime) -> Self {
        let left = end.duration_since(SystemTime::now()).ok().filter(|left| *left <= LONGEST);
        Self::after(left.unwrap_or(USUAL).saturating_sub(RESERVE))
    }

    /// This, or so long from now if that is sooner.
    #[must_use]
    pub fn within(self, time: Duration) -> Self {
        Self(self.0.min(Instant::now() + time))
    }

    /// How long it is still.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// How long one try of a request may take: never more than half of what is left, so that there is time for another.
    pub fn one_try(self, longest: Duration) -> Duration {
        longest.min(self.left() / 2)
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
    async fn two_seconds_are_kept_of_what_lambda_gives() {
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
    async fn a_try_leaves_time_for_another() {
        let deadline = Deadline::after(Duration::from_secs(30));
        assert_eq!(deadline.one_try(Duration::from_secs(10)), Duration::from_secs(10));
        tokio::time::advance(Duration::from_secs(24)).await;
        assert_eq!(deadline.one_try(Duration::from_secs(10)), Duration::from_secs(3));
        assert_eq!(deadline.within(Duration::from_secs(1)).left(), Duration::from_secs(1));
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(deadline.left(), Duration::ZERO);
    }
}
