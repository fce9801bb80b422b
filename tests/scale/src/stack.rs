//! The same day through agent-stack-k8s, which asks Buildkite for jobs and keeps so many in flight.

use std::collections::VecDeque;

use crate::{
    agenda::{Time, seconds},
    bucket::Bucket,
    cluster::{Cluster, Seen as InCluster, Step},
    constants::Constants,
    day::{Day, LENGTH},
    series::Level,
};

/// What was seen until midnight.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// When the Job of each Buildkite job was made, if it was.
    pub created: Vec<Option<Time>>,
    /// Jobs that wait in Buildkite.
    pub waiting: Level,
    /// And in the cluster.
    pub cluster: InCluster,
}

/// Runs the day, and ends at midnight: what waits then may wait for days.
pub fn run(constants: &Constants, day: &Day) -> Seen {
    let mut seen = Seen { created: vec![None; day.arrivals.len()], ..Seen::default() };
    let mut cluster = Cluster::new(constants, day);
    let mut client = Bucket::new(constants.stack_qps, constants.stack_burst);
    let poll = seconds(constants.stack_poll);
    let mut known = VecDeque::new();
    let mut in_flight = 0_u32;
    let (mut scheduled, mut asked) = (0, 0);
    while asked <= LENGTH {
        while scheduled < day.arrivals.len() && day.arrivals[scheduled] <= asked {
            seen.waiting.up(asked);
            scheduled += 1;
        }
        // It holds what it has seen, and each answer brings no more than fits on its pages.
        let seen_before = known.back().map_or(next_unseen(&seen.created), |last| last + 1);
        known.extend((seen_before..scheduled).take(page(constants)));
        let until = asked + poll;
        let mut now = asked;
        loop {
            let room = constants.stack_in_flight == 0.0 || f64::from(in_flight) < constants.stack_in_flight;
            let turn = (room && !known.is_empty()).then(|| client.when(now, constants.stack_requests));
            let create = turn.filter(|at| *at < until);
            let step = cluster.next_at().filter(|at| *at < until);
            match (create, step) {
                (Some(at), step) if step.is_none_or(|step| at < step) => {
                    let Some(job) = known.pop_front() else { break };
                    client.wait(at, constants.stack_requests);
                    seen.waiting.down(at);
                    seen.created[job] = Some(at);
                    in_flight += 1;
                    cluster.create(job, at);
                    now = at;
                }
                (_, Some(at)) => {
                    now = now.max(at);
                    if let Some((_, Step::Finished)) = cluster.step() {
                        in_flight -= 1;
                    }
                }
                (_, None) => break,
            }
        }
        asked = until;
    }
    seen.cluster = cluster.seen;
    seen
}

/// It takes them in the order of their coming, so the first without a Job is the first that it has not seen.
fn next_unseen(created: &[Option<Time>]) -> usize {
    created.partition_point(Option::is_some)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of jobs")]
fn page(constants: &Constants) -> usize {
    constants.stack_page as usize
}
