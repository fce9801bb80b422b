//! One lab and one function in it, whose events create the Jobs; what the Job controller, users and time then make of them.

#![allow(dead_code, clippy::unwrap_used, reason = "no test uses all of it, and a test fails by a panic")]

use std::time::Duration;

use lab::{Event, Function, Lab, buildkite::CLUSTER, function::Builder};
use serde_json::{Value, json};

use crate::common::{FUNCTION, leaks};

pub const ATTEMPT: &str = "agent-scheduler.buildkite.com/attempt";
pub const NONE: [&str; 0] = [];

/// A lab, and one function in it, with time for a sweep.
pub struct Scene {
    pub lab: Lab,
    pub function: Function,
}

/// The event of a job, in the build of its number.
pub fn event(number: u64) -> Event {
    let event = Event::scheduled().uuid(format!("11111111-2222-4333-8444-5555555{number:05}"));
    event.detail(|detail| detail["build"]["number"] = number.into()).now()
}

/// The name of its Job.
pub fn name(number: u64) -> String {
    event(number).job_name()
}

pub fn builder(lab: &Lab) -> Builder {
    lab.function(FUNCTION).timeout(Duration::from_secs(30))
}

impl Scene {
    pub async fn new() -> Self {
        Self::with(|function| function).await
    }

    pub async fn with(change: impl FnOnce(Builder) -> Builder) -> Self {
        let lab = Lab::start().await;
        let function = change(builder(&lab)).start();
        Self { lab, function }
    }

    /// A job that waits at Buildkite.
    pub fn wait(&self, number: u64) {
        self.lab.buildkite.lock().schedule(&event(number), CLUSTER);
    }

    /// A job that waits, with its Job and a pod that pulls its image.
    pub async fn create(&self, number: u64) {
        self.wait(number);
        assert_eq!(self.function.succeed(event(number)).await["outcome"], "created");
        self.start_pod(number);
    }

    pub fn start_pod(&self, number: u64) {
        self.lab.kubernetes.start_pod(&name(number), &json!({"waiting": {"reason": "ContainerCreating"}}));
    }

    /// Changes the pod of a Job.
    pub fn change_pod(&self, number: u64, change: impl FnOnce(&mut Value)) {
        let mut pods = self.lab.kubernetes.pods().into_iter();
        let mut pod = pods.find(|pod| pod["metadata"]["ownerReferences"][0]["name"] == name(number)).unwrap();
        change(&mut pod);
        self.lab.kubernetes.put_pod(pod);
    }

    /// The agent of a Job waits with this reason, of which the kubelet reports this Event.
    pub fn agent_waits(&self, number: u64, reason: &str, message: &str) {
        self.change_pod(number, |pod| {
            let waiting = json!({"waiting": {"reason": reason, "message": message}});
            pod["status"]["containerStatuses"] = json!([{"name": "agent", "state": waiting}]);
            self.report(&pod["metadata"]["uid"], "spec.containers{agent}", "Failed", message);
        });
    }

    /// An Event of an object.
    pub fn report(&self, uid: &Value, path: &str, reason: &str, message: &str) {
        let type_ = if reason == "Started" { "Normal" } else { "Warning" };
        self.lab.kubernetes.put_event(json!({
            "metadata": {"name": format!("{}-{reason}", uid.as_str().unwrap())},
            "involvedObject": {"uid": uid, "fieldPath": path}, "type": type_, "reason": reason, "message": message,
        }));
    }

    /// The lines of its build page.
    pub fn notifications(&self, number: u64) -> Vec<String> {
        let buildkite = self.lab.buildkite.lock();
        buildkite.jobs[event(number).job_uuid()].notifications.iter().map(|(_, text)| text.clone()).collect()
    }

    /// The reason that its build page has for its end.
    pub fn detail(&self, number: u64) -> String {
        self.lab.buildkite.lock().jobs[event(number).job_uuid()].detail.clone().unwrap_or_default()
    }

    pub fn end(&self, number: u64, exit_code: i32) {
        self.lab.kubernetes.end_job(&name(number), exit_code);
    }

    pub fn set_state(&self, number: u64, state: &'static str) {
        self.lab.buildkite.lock().jobs.get_mut(event(number).job_uuid()).unwrap().state = state;
    }

    pub fn state(&self, number: u64) -> &'static str {
        self.lab.buildkite.lock().jobs[event(number).job_uuid()].state
    }

    /// Two Jobs have failed before this one.
    pub fn make_third_attempt(&self, number: u64) {
        self.lab.kubernetes.change_job(&name(number), |job| {
            job["metadata"]["labels"][ATTEMPT] = "3".into();
            job["metadata"]["annotations"]["agent-scheduler.buildkite.com/failed-attempts"] = "2".into();
        });
    }

    /// The attempt of the job's Job, `null` for the first.
    pub fn attempt(&self, number: u64) -> Value {
        self.lab.kubernetes.job(&name(number)).unwrap()["metadata"]["labels"][ATTEMPT].clone()
    }

    pub fn has_job(&self, number: u64) -> bool {
        self.lab.kubernetes.job(&name(number)).is_some()
    }

    /// Lets this many seconds pass, and sweeps. Returns what the sweep changed: its calls that ask nothing.
    pub async fn sweep_after(&self, seconds: u64) -> Vec<String> {
        self.lab.skip(Duration::from_secs(seconds));
        let requests = || [self.lab.kubernetes.requests(), self.lab.buildkite.requests()];
        let before = requests().map(|requests| requests.len());
        let sweep = Event::sweep().at(self.lab.kubernetes.now());
        assert_eq!(self.function.succeed(sweep).await, json!({"outcome": "swept"}));
        let mut changes = Vec::new();
        for (requests, before) in requests().into_iter().zip(before) {
            let asks = ["get-states", "register", "buildkite-agent-token"];
            let calls = requests[before..].iter().map(|call| (&call.method, call.path.rsplit('/').next().unwrap()));
            let calls = calls.filter(|(method, last)| *method != "GET" && !asks.contains(last));
            changes.extend(calls.map(|(method, last)| format!("{method} {last}")));
        }
        changes
    }

    /// Stops the function and searches for secrets. Returns the log, without what is usual, and the metrics.
    pub async fn stop(self) -> (Vec<Value>, Vec<Value>) {
        let printed = self.function.stop().await;
        assert_eq!(leaks(&self.lab), NONE);
        printed.lines().into_iter().partition(|line| line["_aws"].is_null())
    }
}

pub fn of_level<'a>(log: &'a [Value], level: &str) -> Vec<&'a Value> {
    log.iter().filter(|line| line["level"] == level).collect()
}

/// The sum of a metric.
pub fn sum(metrics: &[Value], name: &str) -> u64 {
    metrics.iter().filter_map(|line| line[name].as_u64()).sum()
}
