//! The same day through agent-stack-k8s, which polls Buildkite for jobs and limits those in flight.
//!
//! Its client uses the same API server as the function, with another share of it.

use crate::{
    agenda::{Agenda, Time, seconds},
    api_server::{Answer, ApiServer},
    bucket::Bucket,
    cluster::{Cluster, Seen as InCluster, Step},
    constants::Constants,
    day::{Day, LENGTH},
};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// When the Job of each Buildkite job was made, if it was.
    pub created: Vec<Option<Time>>,
    pub cluster: InCluster,
}

/// Runs the day, and ends at midnight: what waits then may wait for days.
pub fn run(constants: &Constants, day: &Day) -> Seen {
    let mut created = vec![None; day.arrivals.len()];
    let mut cluster = Cluster::new(constants, day);
    let mut client = Bucket::new(constants.stack_qps, constants.stack_burst);
    let mut api_server = ApiServer::new(&constants.of_stack());
    let half = seconds(constants.network / 2.0);
    let poll = seconds(constants.stack_poll);
    // The jobs that it has seen, each from when it may be asked for; and those that the API server is about to make.
    let (mut known, mut made) = (Agenda::default(), Agenda::default());
    let mut in_flight = 0_u32;
    let (mut scheduled, mut held, mut asked) = (0, 0, 0);
    while asked <= LENGTH {
        scheduled += day.arrivals[scheduled..].partition_point(|at| *at <= asked);
        // It holds what it has seen, and each answer brings no more than fits on its pages.
        for job in (held..scheduled).take(page(constants)) {
            known.note(asked, job);
            held = job + 1;
        }
        let until = asked + poll;
        let mut now = asked;
        loop {
            let room = constants.stack_in_flight == 0.0 || f64::from(in_flight) < constants.stack_in_flight;
            let turn = known.next_at().filter(|_| room).map(|at| client.when(now.max(at), constants.stack_requests));
            let next = [turn, made.next_at(), cluster.next_at()].map(|at| at.filter(|at| *at < until));
            let Some(at) = next.into_iter().flatten().min() else { break };
            now = now.max(at);
            if next[1] == Some(at) {
                if let Some((at, job)) = made.take() {
                    cluster.create(job, at);
                }
            } else if next[2] == Some(at) {
                if let Some((_, Step::Finished)) = cluster.step() {
                    in_flight -= 1;
                }
            } else if let Some((_, job)) = known.take() {
                client.wait(at, constants.stack_requests);
                match api_server.request(at + half) {
                    Answer::Done(at) => {
                        in_flight += 1;
                        created[job] = Some(at);
                        made.note(at, job);
                    }
                    Answer::Refused(at) => known.note(at + half + seconds(constants.retry_after), job),
                }
            }
        }
        asked = until;
    }
    Seen { created, cluster: cluster.seen }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of jobs")]
fn page(constants: &Constants) -> usize {
    constants.stack_page as usize
}
