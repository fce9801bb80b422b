//! Observations of each second.

use crate::agenda::{SECOND, Time};

/// Things that happened, counted in each second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Count(Vec<u32>);

impl Count {
    pub fn add(&mut self, at: Time) {
        let second = second(at);
        if second >= self.0.len() {
            self.0.resize(second + 1, 0);
        }
        self.0[second] += 1;
    }

    pub fn total(&self) -> u64 {
        self.0.iter().map(|count| u64::from(*count)).sum()
    }

    pub fn at(&self, second: usize) -> f64 {
        f64::from(self.0.get(second).copied().unwrap_or(0))
    }
}

/// How many there are of something that comes and goes: the most of each second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Level {
    now: u32,
    most: Vec<u32>,
}

impl Level {
    pub fn up(&mut self, at: Time) {
        self.reach(at);
        self.now += 1;
        let most = &mut self.most[second(at)];
        *most = self.now.max(*most);
    }

    pub fn down(&mut self, at: Time) {
        self.reach(at);
        debug_assert!(self.now > 0, "none is there that could go");
        self.now = self.now.saturating_sub(1);
    }

    /// Of things that came and went at these times.
    pub fn of(came: &[Time], went: &[Option<Time>]) -> Self {
        let went = went.iter().flatten().map(|at| (*at, false));
        let mut changes: Vec<_> = came.iter().map(|at| (*at, true)).chain(went).collect();
        // What comes and goes at one time was there.
        changes.sort_unstable_by_key(|(at, came)| (*at, !came));
        let mut level = Self::default();
        for (at, came) in changes {
            if came { level.up(at) } else { level.down(at) }
        }
        level
    }

    pub fn now(&self) -> u32 {
        self.now
    }

    pub fn most(&self) -> u32 {
        self.most.iter().copied().max().unwrap_or(0)
    }

    /// The most in that second of the day.
    pub fn at(&self, second: usize) -> f64 {
        f64::from(self.most.get(second).copied().unwrap_or(self.now))
    }

    fn reach(&mut self, at: Time) {
        let second = second(at);
        if second >= self.most.len() {
            self.most.resize(second + 1, self.now);
        }
    }
}

fn second(at: Time) -> usize {
    (at / SECOND) as usize
}

/// The value that this share does not exceed. Sorts the values.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a place in a list"
)]
pub fn percentile(times: &mut [Time], share: f64) -> Option<Time> {
    times.sort_unstable();
    let place = (times.len() as f64 * share).ceil() as usize;
    times.get(place.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_holds_until_it_changes_and_a_second_keeps_its_highest() {
        let mut level = Level::default();
        level.up(0);
        level.up(SECOND / 2);
        level.down(SECOND - 1);
        level.down(3 * SECOND);
        assert_eq!((0..5).map(|second| level.at(second)).collect::<Vec<_>>(), [2.0, 1.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn what_comes_and_goes_is_there_in_between() {
        let level = Level::of(&[0, SECOND, SECOND], &[Some(2 * SECOND), None, Some(SECOND)]);
        assert_eq!((0..4).map(|second| level.at(second)).collect::<Vec<_>>(), [1.0, 3.0, 2.0, 1.0]);
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let mut times: Vec<Time> = (1..=100).rev().collect();
        assert_eq!([0.5, 0.99, 1.0].map(|share| percentile(&mut times, share)), [Some(50), Some(99), Some(100)]);
        assert_eq!(percentile(&mut [], 0.5), None);
    }
}
