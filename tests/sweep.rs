//! The sweep: the real binary against the lab, whose clocks the tests put forward.
//!
//! The function's own events create the Jobs. Each test then ends them as the Job controller does, and lets a minute pass.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod common;

use std::time::Duration;

use lab::{Event, Lab, buildkite::CLUSTER};
use serde_json::{Value, json};

use common::{FUNCTION, Fixture, Output};

const ATTEMPT: &str = "agent-scheduler.buildkite.com/attempt";

/// One function, with time for a sweep.
async fn scene() -> Fixture {
    Fixture::with(|_, function| function.timeout(Duration::from_secs(20))).await
}

/// The event of a job, of the build of its number.
fn event(number: u64) -> Event {
    Event::scheduled()
        .uuid(format!("11111111-2222-4333-8444-5555555556{number:02}"))
        .detail(|detail| detail["build"]["number"] = number.into())
        .now()
}

fn name(number: u64) -> String {
    event(number).job_name()
}

fn state(lab: &Lab, number: u64) -> &'static str {
    lab.buildkite.lock().jobs[event(number).job_uuid()].state
}

fn set_state(lab: &Lab, number: u64, state: &'static str) {
    lab.buildkite.lock().jobs.get_mut(event(number).job_uuid()).unwrap().state = state;
}

fn attempt(lab: &Lab, number: u64) -> Value {
    lab.kubernetes.job(&name(number)).unwrap()["metadata"]["labels"][ATTEMPT].clone()
}

impl Fixture {
    /// A job that waits at Buildkite.
    fn wait(&self, number: u64) {
        self.lab.buildkite.lock().schedule(&event(number), CLUSTER);
    }

    /// A job with its Job.
    async fn create(&self, number: u64) {
        self.wait(number);
        assert_eq!(self.function.succeed(event(number)).await["outcome"], "created");
    }

    /// Lets this many seconds pass.
    fn pass(&self, seconds: u64) {
        self.lab.skip(Duration::from_secs(seconds));
    }

    async fn sweep(&self) {
        assert_eq!(self.function.succeed(Event::sweep()).await, json!({"outcome": "swept"}));
    }

    /// What the sweep changed since the last such question: the calls that are no questions, without the Secret.
    fn changes(&self) -> Vec<String> {
        let entries = self.lab.timeline.entries();
        let calls = entries.iter().filter_map(|entry| entry.call().filter(|call| call.verb != "GET"));
        let changes =
            calls.filter(|call| !["get-states", "register", "secrets"].iter().any(|part| call.target.contains(part)));
        changes.map(|call| format!("{} {}", call.verb, call.target.rsplit('/').next().unwrap())).collect()
    }
}

#[tokio::test]
async fn a_lost_event_is_repaired() {
    let fixture = scene().await;
    fixture.wait(1);
    fixture.sweep().await;
    assert_eq!(fixture.lab.kubernetes.jobs(), [json!(null); 0], "its event may be on its way");
    fixture.pass(31);
    fixture.sweep().await;
    let job = fixture.lab.kubernetes.job(&name(1)).unwrap();
    assert_eq!(job["metadata"]["labels"]["buildkite.com/queue"], "kubernetes");
    let annotations = &job["metadata"]["annotations"];
    assert_eq!(
        (&annotations["buildkite.com/branch"], &annotations["buildkite.com/commit"]),
        (&json!("main"), &Value::Null)
    );
    fixture.sweep().await;
    let Output { log, metrics, .. } = fixture.end().await;
    let repaired: Vec<_> = log.iter().filter(|line| line["message"] == "repair handled").collect();
    assert_eq!((repaired.len(), &repaired[0]["outcome"]), (1, &json!("created")));
    let of = |name: &str| metrics.iter().filter_map(|line| line[name].as_u64()).collect::<Vec<_>>();
    assert_eq!((of("JobsRepaired"), of("JobsCreated"), of("Sweeps")), (vec![1], vec![], vec![1, 1, 1]));
    assert_eq!(of("JobsWaiting"), [1, 1, 1]);
    let oldest = of("OldestJobSeconds");
    assert!(oldest[0] < 10 && (30..40).contains(&oldest[1]), "{oldest:?}");
}

#[tokio::test]
async fn a_failed_job_is_replaced_and_finished_in_the_end() {
    let fixture = scene().await;
    let Fixture { lab, .. } = &fixture;
    fixture.create(1).await;
    let created = lab.kubernetes.job(&name(1)).unwrap()["metadata"].clone();
    for next in 2..=8 {
        lab.kubernetes.start_pod(&name(1), &json!({"waiting": {}}));
        fixture.pass(60);
        lab.kubernetes.end_job(&name(1), 1);
        fixture.sweep().await;
        if next > 2 {
            assert_eq!(attempt(lab, 1), (next - 1).to_string(), "in its pause");
            fixture.pass(120);
            fixture.sweep().await;
        }
        if state(lab, 1) == "finished" {
            break;
        }
        let job = &lab.kubernetes.job(&name(1)).unwrap()["metadata"];
        assert_eq!(job["labels"][ATTEMPT], next.to_string());
        assert_eq!(job["annotations"]["agent-scheduler.buildkite.com/first-created"], created["creationTimestamp"]);
        assert_eq!(job["annotations"]["buildkite.com/commit"], created["annotations"]["buildkite.com/commit"]);
        assert_eq!(lab.kubernetes.pods(), [json!(null); 0], "deleted with their Job");
    }
    let buildkite = lab.buildkite.lock();
    let job = &buildkite.jobs[event(1).job_uuid()];
    assert_eq!((job.state, job.exit_status), ("finished", Some(-1)));
    let detail = job.detail.as_ref().unwrap();
    for words in [
        "6 Kubernetes Jobs for it ended within 1",
        "container agent: exit code 1, Error",
        "kubectl describe job",
        "limit: 0",
    ] {
        assert!(detail.contains(words), "{words} is not in {detail}");
    }
    assert_eq!(job.notifications.len(), 5);
    assert!(job.notifications[0].1.starts_with("Attempt 2 begins: attempt 1 ended"), "{:?}", job.notifications[0]);
    drop(buildkite);
    let Output { metrics, .. } = fixture.end().await;
    let of = |name: &str| metrics.iter().filter_map(|line| line[name].as_u64()).sum::<u64>();
    assert_eq!((of("JobsReplaced"), of("JobsFinished"), of("SweepsFailed")), (5, 1, 0));
}
