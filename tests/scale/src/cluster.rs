//! A Job in the cluster: its pod, its end, its TTL, and what etcd holds.
//!
//! A controller sends requests at its own rate (`--kube-api-qps`), in the order of its work.

use crate::{
    agenda::{Agenda, SECOND, Time, seconds},
    bucket::Bucket,
    constants::Constants,
    day::{Day, LENGTH},
    series::Level,
};

pub struct Cluster<'a> {
    constants: &'a Constants,
    day: &'a Day,
    agenda: Agenda<(Step, usize)>,
    job_controller: Bucket,
    ttl_controller: Bucket,
    collector: Bucket,
    pub seen: Seen,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    pub jobs: Level,
    /// Those of them that wait for the Job controller to make a pod.
    pub without_pod: Level,
    pub pods: Level,
    pub events: Level,
    pub pod_waits: Vec<Time>,
    pub ended: u64,
    /// Jobs that are gone again by midnight.
    pub gone: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Pod,
    Over,
    /// The Job is marked as finished.
    Finished,
    /// It is old enough to be deleted.
    Due,
    /// It is deleted, with its pod.
    Gone,
    /// One of its Events is.
    EventGone,
}

impl<'a> Cluster<'a> {
    pub fn new(constants: &'a Constants, day: &'a Day) -> Self {
        let controller = || Bucket::new(constants.controller_qps, constants.controller_burst);
        Self {
            constants,
            day,
            agenda: Agenda::default(),
            job_controller: controller(),
            ttl_controller: controller(),
            collector: Bucket::new(constants.controller_qps * constants.collector_factor, constants.controller_burst),
            seen: Seen::default(),
        }
    }

    /// A whole day, of Jobs that come from elsewhere at these times.
    pub fn day(constants: &'a Constants, day: &'a Day, created: &[Option<Time>]) -> Seen {
        let mut order: Vec<_> = created.iter().enumerate().filter_map(|(job, at)| Some(((*at)?, job))).collect();
        order.sort_unstable();
        let mut cluster = Self::new(constants, day);
        for (at, job) in order {
            if at > LENGTH {
                break;
            }
            while cluster.next_at().is_some_and(|next| next <= at) {
                cluster.step();
            }
            cluster.create(job, at);
        }
        while cluster.next_at().is_some_and(|next| next <= LENGTH) {
            cluster.step();
        }
        cluster.seen
    }

    pub fn create(&mut self, job: usize, now: Time) {
        self.seen.jobs.up(now);
        self.seen.without_pod.up(now);
        let pod = self.job_controller.wait(now, 1.0);
        // Its Event and its updates of the status take turns, too.
        self.job_controller.wait(now, self.constants.requests_to_pod - 1.0);
        self.seen.pod_waits.push(pod - now);
        self.agenda.note(pod, (Step::Pod, job));
    }

    pub fn next_at(&self) -> Option<Time> {
        self.agenda.next_at()
    }

    /// Does the next step, and returns it.
    pub fn step(&mut self) -> Option<(Time, Step)> {
        let (now, (step, job)) = self.agenda.take()?;
        let constants = self.constants;
        match step {
            Step::Pod => {
                self.seen.without_pod.down(now);
                self.seen.pods.up(now);
                self.events(now, job, 0.5);
                let over = now + seconds(constants.pod_start) + self.day.runs[job];
                self.agenda.note(over, (Step::Over, job));
            }
            Step::Over => {
                self.seen.pods.down(now);
                let finished = self.job_controller.wait(now, constants.requests_to_end);
                self.agenda.note(finished, (Step::Finished, job));
            }
            Step::Finished => {
                self.seen.ended += 1;
                self.events(now, job, 0.5);
                self.agenda.note(now + seconds(constants.job_ttl), (Step::Due, job));
            }
            Step::Due => {
                let deleted = self.ttl_controller.wait(now, constants.requests_to_delete);
                let gone = self.collector.wait(now, constants.requests_to_collect);
                self.agenda.note(deleted.max(gone), (Step::Gone, job));
            }
            Step::Gone => {
                self.seen.gone += 1;
                self.seen.jobs.down(now);
            }
            Step::EventGone => self.seen.events.down(now),
        }
        Some((now, step))
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of Events")]
    fn events(&mut self, now: Time, job: usize, part: f64) {
        for _ in 0..(self.constants.events_per_job * part).round() as usize {
            self.seen.events.up(now);
            self.agenda.note(now + seconds(self.constants.event_ttl), (Step::EventGone, job));
        }
    }
}

impl Seen {
    /// Gigabytes of live objects in etcd, in that second: Jobs with their pods, and Events.
    pub fn gigabytes(&self, constants: &Constants, second: usize) -> f64 {
        let with_pod = constants.job_bytes + constants.pod_bytes;
        let jobs = self.jobs.at(second);
        let without = self.without_pod.at(second);
        ((jobs * with_pod - without * constants.pod_bytes).max(0.0) + self.events.at(second) * constants.event_bytes)
            / 1e9
    }

    pub fn most_gigabytes(&self, constants: &Constants) -> f64 {
        let seconds = usize::try_from(LENGTH / SECOND).unwrap_or(0);
        (0..seconds).map(|second| self.gigabytes(constants, second)).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_gets_its_pods_at_the_rate_of_the_job_controller() {
        let constants = Constants { jobs_per_day: 1_000.0, burst: 0.0, ..Constants::default() };
        let day = Day::new(&constants, 1);
        let seen = Cluster::day(&constants, &day, &vec![Some(0); 1_000]);
        // The last pod waits for the four requests of each Job before it, of which 30 are free, and for one of its own.
        let expected = (999.0 * 4.0 + 1.0 - 30.0) / 20.0;
        assert_eq!(seen.pod_waits.last(), Some(&seconds(expected)));
    }

    #[test]
    fn what_is_made_is_there_until_it_is_gone() {
        let fast = Constants {
            jobs_per_day: 2_000.0,
            burst: 100.0,
            bursts: 2.0,
            controller_qps: 1e6,
            controller_burst: 1e6,
            ..Constants::default()
        };
        let day = Day::new(&fast, 1);
        let created: Vec<_> = day.arrivals.iter().map(|at| Some(*at)).collect();
        let seen = Cluster::day(&fast, &day, &created);
        assert_eq!(u64::from(seen.jobs.now()) + seen.gone, 2_000);
        assert!(seen.ended >= seen.gone);
        assert_eq!(seen.without_pod.now(), 0);
    }
}
