//! The clock of a simulation: what is due when.

use std::collections::BTreeMap;

/// Microseconds since midnight. Whole numbers, so that a day is the same on every machine.
pub type Time = u64;

pub const SECOND: Time = 1_000_000;

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "no time is negative, and a day is short")]
pub fn seconds(seconds: f64) -> Time {
    (seconds * 1e6).round() as Time
}

#[expect(clippy::cast_precision_loss, reason = "a day is short")]
pub fn in_seconds(time: Time) -> f64 {
    time as f64 / 1e6
}

/// Things to come, the soonest first; of two at the same time, the one that was noted first.
pub struct Agenda<T> {
    due: BTreeMap<(Time, u64), T>,
    noted: u64,
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self { due: BTreeMap::new(), noted: 0 }
    }
}

impl<T> Agenda<T> {
    pub fn note(&mut self, at: Time, what: T) {
        self.noted += 1;
        self.due.insert((at, self.noted), what);
    }

    pub fn next_at(&self) -> Option<Time> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    pub fn take(&mut self) -> Option<(Time, T)> {
        self.due.pop_first().map(|((at, _), what)| (at, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soonest_comes_first_and_of_two_at_once_the_one_noted_first() {
        let mut agenda = Agenda::default();
        for (at, what) in [(3, "c"), (1, "a"), (3, "d"), (2, "b")] {
            agenda.note(at, what);
        }
        let mut order = Vec::new();
        while let Some((_, what)) = agenda.take() {
            order.push(what);
        }
        assert_eq!(order, ["a", "b", "c", "d"]);
    }
}
