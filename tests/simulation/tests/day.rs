//! A small day of `make scale`.

use std::time::Duration;

use simulation::{
    day::{Peer, is_in_burst},
    limits::Rate,
    plan::{Plan, Server},
    run,
};

#[test]
fn a_day_gives_each_job_its_kubernetes_job_however_slow_the_services_are() {
    let mut plan = Plan::of_day(1, 300, 60);
    plan.environments = 20;
    plan.rates.ssm = Some(Rate { per_second: 1.0, at_once: 1.0 });
    plan.rates.api_server = Some(Rate { per_second: 10.0, at_once: 10.0 });
    plan.rates.job_controller = Some(Rate { per_second: 0.2, at_once: 1.0 });
    let run = run(&plan);
    assert!(run.violations.is_empty(), "{}", run.violations.join("\n"));
    let met = |server, status| run.seen.answers.contains_key(&(server, status));
    assert!(met(Server::Aws, 400) && met(Server::Kubernetes, 429), "each limit is met: {:?}", run.seen.answers);
    let longest = run.seen.pod_waits.iter().max().copied().unwrap_or_default();
    assert!(
        longest > Duration::from_mins(15),
        "the Job controller is behind by more than PodPendingSeconds: {longest:?}"
    );
    assert_eq!((run.seen.created.len(), run.seen.finished), (300, 0));
}

#[test]
fn the_peer_makes_so_many_jobs_a_second_and_keeps_so_many_in_flight() {
    let plan = Plan::of_day(1, 300, 60);
    let in_bursts = plan.jobs.iter().filter(|job| is_in_burst(job.at)).count();
    assert!((120..140).contains(&in_bursts), "{in_bursts}");
    let longest = |peer: &Peer| {
        let creates = peer.creates(&plan);
        plan.jobs.iter().zip(creates).map(|(job, at)| at.saturating_sub(job.at)).max().unwrap_or_default()
    };
    let quick = longest(&Peer { per_second: 10.0, in_flight: usize::MAX });
    assert!(
        (Duration::from_secs(2)..Duration::from_secs(8)).contains(&quick),
        "60 jobs in 5 s, at 10 a second: {quick:?}"
    );
    let slow = longest(&Peer { per_second: 10.0, in_flight: 1 });
    assert!(slow > Duration::from_hours(1), "one job after the other: {slow:?}");
}
