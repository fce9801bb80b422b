//! The day: which jobs come when, and how long each runs.

use std::f64::consts::TAU;

use rand_distr::{Distribution, LogNormal, StandardUniform};
use rand_pcg::{Pcg64Mcg, rand_core::SeedableRng};

use crate::{
    agenda::{SECOND, Time, seconds},
    constants::Constants,
};

pub const LENGTH: Time = 86_400 * SECOND;

/// The rate is highest at this hour.
const NOON: f64 = 14.0 * 3600.0;

/// Chance, from a seed. Each part of the model has its own, so that a change to one does not change the others.
pub struct Chance(Pcg64Mcg);

impl Chance {
    pub fn new(seed: u64, part: u64) -> Self {
        Self(Pcg64Mcg::seed_from_u64(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(part)))
    }

    /// At least 0, less than 1.
    pub fn share(&mut self) -> f64 {
        StandardUniform.sample(&mut self.0)
    }

    /// Log-normal, with the mean and sigma of its logarithm.
    pub fn log_normal(&mut self, mean: f64, sigma: f64) -> f64 {
        LogNormal::new(mean, sigma).map_or(mean.exp(), |distribution| distribution.sample(&mut self.0))
    }
}

/// The jobs of a day, in the order of their coming.
pub struct Day {
    /// When each is scheduled in Buildkite.
    pub arrivals: Vec<Time>,
    pub runs: Vec<Time>,
    pub bursts: Vec<Time>,
}

impl Day {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts of jobs")]
    pub fn new(constants: &Constants, seed: u64) -> Self {
        let mut chance = Chance::new(seed, 1);
        let jobs = constants.jobs_per_day as usize;
        let (bursts, burst) = (constants.bursts as u64, constants.burst as usize);
        let bursts: Vec<_> = (0..bursts).map(|number| LENGTH * (2 * number + 1) / (2 * bursts)).collect();
        let mut arrivals = Vec::with_capacity(jobs);
        for begin in &bursts {
            let count = burst.min(jobs - arrivals.len());
            arrivals.extend((0..count).map(|_| begin + seconds(chance.share() * constants.burst_seconds)));
        }
        while arrivals.len() < jobs {
            let at = chance.share() * 86_400.0;
            let rate = 1.0 + constants.swing * (TAU * (at - NOON) / 86_400.0).cos();
            if chance.share() * (1.0 + constants.swing) < rate {
                arrivals.push(seconds(at));
            }
        }
        arrivals.sort_unstable();
        let mut chance = Chance::new(seed, 2);
        let run =
            |_| seconds(chance.log_normal(constants.job_median.ln(), constants.job_sigma).min(constants.job_longest));
        Self { runs: (0..jobs).map(run).collect(), arrivals, bursts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_exactly_its_jobs_and_its_bursts() {
        let constants = Constants { jobs_per_day: 5_000.0, burst: 500.0, bursts: 2.0, ..Constants::default() };
        let day = Day::new(&constants, 7);
        assert_eq!((day.arrivals.len(), day.runs.len()), (5_000, 5_000));
        assert!(day.arrivals.is_sorted());
        for begin in day.bursts {
            let within = day.arrivals.iter().filter(|at| (begin..begin + 5 * SECOND).contains(at)).count();
            assert!((500..520).contains(&within), "{within}");
        }
    }

    #[test]
    fn half_of_the_jobs_run_longer_than_the_median() {
        let day = Day::new(&Constants { jobs_per_day: 10_000.0, burst: 0.0, ..Constants::default() }, 7);
        let longer = day.runs.iter().filter(|run| **run > 180 * SECOND).count();
        assert!((4_800..5_200).contains(&longer), "{longer}");
    }
}
