//! The API servers of a cluster, as one user of a priority level meets them.
//!
//! Together they have a rate of requests. Of our level a number runs at once, a number of ours waits, and the rest is refused with
//! 429: <https://kubernetes.io/docs/concepts/cluster-administration/flow-control>.

use std::collections::VecDeque;

use crate::{
    agenda::{Time, seconds},
    constants::Constants,
};

/// All of them, as one.
pub struct ApiServer {
    each: Time,
    places: usize,
    seats: usize,
    wait: Time,
    /// When each request that is there will be finished.
    there: VecDeque<Time>,
    idle_from: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done at that time.
    Done(Time),
    /// 429 at that time.
    Refused(Time),
}

impl ApiServer {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts of requests")]
    pub fn new(constants: &Constants) -> Self {
        Self {
            each: seconds(1.0 / constants.api_rate),
            places: constants.api_places() as usize,
            seats: (constants.api_seats() * constants.api_servers) as usize,
            wait: seconds(constants.api_queue_wait),
            there: VecDeque::new(),
            idle_from: 0,
        }
    }

    /// A request comes. They must come in the order of time.
    pub fn request(&mut self, now: Time) -> Answer {
        while self.there.front().is_some_and(|done| *done <= now) {
            self.there.pop_front();
        }
        if self.there.len() >= self.places {
            return Answer::Refused(now);
        }
        if let Some(before) = self.there.len().checked_sub(self.seats)
            && self.there[before].saturating_sub(now) > self.wait
        {
            return Answer::Refused(now + self.wait);
        }
        self.idle_from = self.idle_from.max(now) + self.each;
        self.there.push_back(self.idle_from);
        Answer::Done(self.idle_from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agenda::SECOND;

    #[test]
    fn so_many_at_once_take_so_many_times_as_long_and_what_finds_no_place_is_refused() {
        let mut server = ApiServer::new(&Constants { api_rate: 200.0, ..Constants::default() });
        let answers: Vec<_> = (0..1_000).map(|_| server.request(0)).collect();
        let done: Vec<_> =
            answers.iter().filter_map(|answer| if let Answer::Done(at) = answer { Some(*at) } else { None }).collect();
        assert_eq!(done.len(), 2 * (49 + 300));
        assert_eq!(done.last(), Some(&(698 * SECOND / 200)));
        assert_eq!(
            server.request(SECOND),
            Answer::Done(698 * SECOND / 200 + SECOND / 200),
            "200 places are free again"
        );
    }

    #[test]
    fn a_request_that_would_wait_too_long_is_refused_when_that_is_over() {
        let slow = Constants { api_rate: 10.0, ..Constants::default() };
        let mut server = ApiServer::new(&slow);
        let last = (0..600).map(|_| server.request(0)).last();
        assert_eq!(last, Some(Answer::Refused(15 * SECOND)));
    }
}
