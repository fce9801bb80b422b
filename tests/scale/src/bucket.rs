//! Rate limits: a token bucket, as AWS and client-go have them.

use crate::agenda::{Time, in_seconds, seconds};

/// `size` at once, and `rate` a second after that.
#[derive(Clone, Debug)]
pub struct Bucket {
    rate: f64,
    size: f64,
    tokens: f64,
    filled: Time,
}

impl Bucket {
    /// Full at midnight.
    pub fn new(rate: f64, size: f64) -> Self {
        Self { rate, size, tokens: size, filled: 0 }
    }

    /// Takes one if there is one now, as a server that refuses the rest.
    pub fn take(&mut self, now: Time) -> bool {
        self.fill(now);
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }

    /// Takes `count`, and returns when they are there, as a client that waits for its turn.
    pub fn wait(&mut self, now: Time, count: f64) -> Time {
        self.fill(now);
        self.tokens -= count;
        if self.tokens >= 0.0 { now } else { now + seconds(-self.tokens / self.rate) }
    }

    /// When `count` are there, if none is taken before.
    pub fn when(&self, now: Time, count: f64) -> Time {
        let passed = in_seconds(now.saturating_sub(self.filled));
        let missing = count - (self.tokens + passed * self.rate).min(self.size);
        if missing <= 0.0 { now } else { now + seconds(missing / self.rate) }
    }

    fn fill(&mut self, now: Time) {
        let passed = now.saturating_sub(self.filled);
        self.tokens = (self.tokens + in_seconds(passed) * self.rate).min(self.size);
        self.filled = self.filled.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agenda::SECOND;

    #[test]
    fn who_does_not_wait_gets_the_bucket_and_then_the_rate() {
        let mut bucket = Bucket::new(40.0, 40.0);
        let got = (0..100).filter(|_| bucket.take(0)).count();
        assert_eq!(got, 40);

        let got = (0..100).filter(|_| bucket.take(SECOND / 2)).count();
        assert_eq!(got, 20);
    }

    #[test]
    fn who_waits_gets_them_in_turn_at_the_rate() {
        let mut bucket = Bucket::new(10.0, 20.0);
        let last = (0..120).map(|_| bucket.wait(0, 1.0)).max();
        assert_eq!(last, Some(10 * SECOND), "20 at once, and 100 at ten a second");
    }

    #[test]
    fn it_never_holds_more_than_its_size() {
        let mut bucket = Bucket::new(1000.0, 5.0);
        bucket.take(3600 * SECOND);
        assert!(bucket.tokens <= 5.0);
    }
}
