//! The states of a job, in the words of Buildkite: <https://buildkite.com/docs/pipelines/configure/defining-steps#job-states>.

use std::fmt;

use crate::text::excerpt;

/// A job's state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words of Buildkite")]
pub enum State {
    Scheduled,
    Reserved,
    Assigned,
    Accepted,
    Running,
    Canceling,
    TimingOut,
    Finished,
    Canceled,
    TimedOut,
    Skipped,
    Broken,
    Expired,
    /// A job with a state that is not named here is left alone.
    Other(String),
}

const WORDS: [(&str, State); 13] = [
    ("scheduled", State::Scheduled),
    ("reserved", State::Reserved),
    ("assigned", State::Assigned),
    ("accepted", State::Accepted),
    ("running", State::Running),
    ("canceling", State::Canceling),
    ("timing_out", State::TimingOut),
    ("finished", State::Finished),
    ("canceled", State::Canceled),
    ("timed_out", State::TimedOut),
    ("skipped", State::Skipped),
    ("broken", State::Broken),
    ("expired", State::Expired),
];

impl From<&str> for State {
    fn from(word: &str) -> Self {
        let known = WORDS.iter().find(|(known, _)| *known == word);
        known.map_or_else(|| Self::Other(word.to_owned()), |(_, state)| state.clone())
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(word) => f.write_str(&excerpt(word)),
            known => f.write_str(WORDS.iter().find(|(_, state)| state == known).map_or("", |(word, _)| word)),
        }
    }
}

impl State {
    /// No agent has taken the job.
    pub fn is_waiting(&self) -> bool {
        matches!(self, Self::Scheduled | Self::Reserved)
    }

    /// An agent has the job.
    pub fn is_held(&self) -> bool {
        matches!(self, Self::Assigned | Self::Accepted | Self::Running | Self::Canceling | Self::TimingOut)
    }

    /// No agent needs to come any more.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Finished | Self::Canceled | Self::TimedOut | Self::Skipped | Self::Broken | Self::Expired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_waits_or_is_held_or_is_over_and_an_unknown_one_is_none_of_them() {
        let cases = [
            ("scheduled reserved", (true, false, false)),
            ("assigned accepted running canceling timing_out", (false, true, false)),
            ("finished canceled timed_out skipped broken expired", (false, false, true)),
            (
                "pending waiting blocked limiting limited platform_limited unblocked Scheduled new",
                (false, false, false),
            ),
        ];
        for (words, expected) in cases {
            for word in words.split(' ') {
                let state = State::from(word);
                assert_eq!((state.is_waiting(), state.is_held(), state.is_over()), expected, "{word}");
                assert_eq!(state.to_string(), word);
            }
        }
    }
}
