//! What makes pods of Jobs and runs them: the Job controller, the scheduler, the kubelet, the TTL, and the agent in the pod.

use std::{sync::Arc, time::Duration};

use lab::buildkite::CLUSTER;
use serde_json::{Value, json};
use tokio::{
    task::spawn_local,
    time::{Instant, sleep},
};

use crate::{
    agent::{self, Work},
    plan::{Fate, Kind, What},
    world::{SECRET, World},
};

/// How long the Job controller takes to see the end of a pod.
const NOTICE: Duration = Duration::from_secs(1);

/// Requests of the Job controller for a pod until it runs, and as many at its end: the pod, an Event, and two of the Job's status. Counted
/// on a control plane 1.36.
const REQUESTS: f64 = 4.0;

/// How long the API server keeps an Event.
const EVENT_TTL: Duration = Duration::from_hours(1);

/// `backoffLimit`.
const BACKOFF_LIMIT: u32 = 3;

/// Until the taint of a dead node evicts its pods.
const TOLERATION: Duration = Duration::from_mins(5);

/// Until the pods of a node that is gone are collected.
const NODE_IS_COLLECTED: Duration = Duration::from_mins(15);

/// Until Buildkite knows that an agent is lost.
const AGENT_IS_LOST: Duration = Duration::from_mins(3);

/// How a pod ended.
pub enum End {
    /// Each container ended with 0.
    Succeeded,
    /// The agent ended with this code.
    Exit(i32),
    /// It was evicted.
    Disrupted,
    /// An init container failed.
    InitFailed,
}

/// The pod was deleted.
pub struct Gone;

/// The name of the Secret with the token of a Job's agent.
fn token_secret(job: &Value) -> String {
    let variables = job["spec"]["template"]["spec"]["containers"][0]["env"].as_array().into_iter().flatten();
    let mut tokens = variables.filter(|variable| variable["name"] == "BUILDKITE_AGENT_TOKEN");
    let token = tokens.next().and_then(|token| token["valueFrom"]["secretKeyRef"]["name"].as_str());
    token.unwrap_or(SECRET).to_owned()
}

impl World {
    /// The Job controller sees what was made.
    pub fn control(self: &Arc<Self>) {
        for (name, uid) in self.lab.kubernetes.new_jobs() {
            if self.check_job(&name, &uid) {
                self.record(|record| record.made.push(name.clone()));
                let now = self.now();
                let mut state = self.state();
                state.created.entry(name.clone()).or_insert(now);
                state.seen.jobs += 1;
                state.seen.most_jobs = state.seen.most_jobs.max(state.seen.jobs);
                drop(state);
                spawn_local(Arc::clone(self).control_job(name, uid));
            }
        }
    }

    async fn control_job(self: Arc<Self>, name: String, uid: String) {
        let created = Instant::now();
        self.take_turn().await;
        let time = self.timestamp();
        self.state().seen.pod_waits.push(created.elapsed());
        self.status(&name, &uid, |status| status["startTime"] = time.into());
        let mut failures = 0;
        let condition = loop {
            let now = self.timestamp();
            let pod = self.make_pod(&name, &uid);
            let end = self.run_pod(&pod, &uid, &name).await;
            let phase = if matches!(end, Ok(End::Succeeded)) { "Succeeded" } else { "Failed" };
            if let Ok(End::Exit(_) | End::Succeeded | End::InitFailed | End::Disrupted) = end {
                self.lab.kubernetes.with_pod(&pod, |pod| pod["status"]["phase"] = phase.into());
                self.status(&name, &uid, |status| status["active"] = 0.into());
            }
            sleep(NOTICE).await;
            self.take_turn().await;
            match end {
                Ok(End::Succeeded) => break json!({"type": "Complete"}),
                Ok(End::Exit(code)) => {
                    let message =
                        format!("Container agent for pod {pod} failed with exit code {code} matching FailJob rule");
                    break json!({"type": "Failed", "reason": "PodFailurePolicy", "message": message});
                }
                Ok(End::InitFailed) if failures == BACKOFF_LIMIT => {
                    break json!({"type": "Failed", "reason": "BackoffLimitExceeded", "message": format!("since {now}")});
                }
                Ok(End::InitFailed) => {
                    failures += 1;
                    sleep(Duration::from_secs(10) * 2_u32.pow(failures - 1)).await;
                }
                Ok(End::Disrupted) | Err(Gone) => {}
            }
            if self.status(&name, &uid, |_| ()).is_none() {
                self.state().seen.jobs -= 1;
                return;
            }
        };
        let time = self.timestamp();
        self.status(&name, &uid, |status| {
            let mut condition = condition;
            (condition["status"], condition["lastTransitionTime"]) = ("True".into(), time.clone().into());
            if condition["type"] == "Complete" {
                status["completionTime"] = time.into();
            }
            status["conditions"] = json!([condition]);
        });
        let ttl = self.lab.kubernetes.with_job(&name, &uid, |job| job["spec"]["ttlSecondsAfterFinished"].as_u64());
        if let Some(ttl) = ttl.flatten() {
            sleep(Duration::from_secs(ttl)).await;
            self.lab.kubernetes.collect_job(&name, &uid);
        }
        self.state().seen.jobs -= 1;
    }

    /// The Job controller has other Jobs, too.
    async fn take_turn(&self) {
        if let Some(rate) = self.plan.rates.job_controller {
            let wait = self.state().backlogs.job_controller.wait(rate, REQUESTS);
            sleep(wait).await;
        }
    }

    fn status<T>(&self, name: &str, uid: &str, change: impl FnOnce(&mut Value) -> T) -> Option<T> {
        self.lab.kubernetes.with_job(name, uid, |job| change(&mut job["status"]))
    }

    fn make_pod(&self, job: &str, uid: &str) -> String {
        let name = format!("{job}-{}", self.state().next_pod());
        let made = self.lab.kubernetes.with_job(job, uid, |job| {
            job["status"]["active"] = 1.into();
            job["spec"]["template"]["metadata"]["labels"].clone()
        });
        // A Job that was deleted has no pod any more.
        if let Some(labels) = made {
            let owner = json!({"kind": "Job", "name": job, "uid": uid, "controller": true});
            self.lab.kubernetes.put_pod(json!({
                "metadata": {"name": name, "labels": labels, "ownerReferences": [owner]},
                "spec": {}, "status": {"phase": "Pending"},
            }));
        }
        name
    }

    /// From its creation to its end.
    async fn run_pod(self: &Arc<Self>, pod: &str, uid: &str, job: &str) -> Result<End, Gone> {
        let work = job.trim_start_matches("buildkite-");
        let (kind, fate) = (self.kind(work), self.fate(work));
        self.note(format!("pod {pod}: {fate:?}"));
        let evicted_at = if let Fate::IsEvicted(time) = fate { Some(Instant::now() + time) } else { None };
        self.hold(pod, self.between(50, 2_000)).await?;
        if let Fate::HasNoNode(time) = fate {
            self.report(pod, "", "FailedScheduling", "0/3 nodes are available: 3 Insufficient cpu.");
            self.hold(pod, self.until_calm(time)).await?;
        }
        let time = self.timestamp();
        self.lab.kubernetes.with_pod(pod, |pod| {
            pod["spec"]["nodeName"] = "node-1".into();
            pod["status"]["conditions"] =
                json!([{"type": "PodScheduled", "status": "True", "lastTransitionTime": time}]);
        });
        self.container(pod, &json!({"waiting": {"reason": "ContainerCreating"}}));
        if fate == Fate::LosesItsNode {
            return self.lose_node(pod, job, uid).await;
        }
        if kind == Kind::NoImage {
            self.fail_to_pull(pod, "rpc error: code = NotFound desc = failed to pull: not found");
            loop {
                self.hold(pod, Duration::from_mins(1)).await?;
            }
        }
        if let Fate::Pulls(time) = fate {
            self.fail_to_pull(pod, "failed to pull: 503 Service Unavailable");
            self.hold(pod, self.until_calm(time)).await?;
        }
        self.hold(pod, self.between(500, 20_000)).await?;
        if fate == Fate::Fails {
            self.container(pod, &json!({"waiting": {"reason": "PodInitializing"}}));
            return Ok(End::InitFailed);
        }
        let secret = self.lab.kubernetes.with_job(job, uid, |job| token_secret(job)).ok_or(Gone)?;
        let token = loop {
            if let Some(token) = self.token(&secret) {
                break token;
            }
            let message = format!("secret \"{secret}\" not found");
            self.container(pod, &json!({"waiting": {"reason": "CreateContainerConfigError", "message": message}}));
            self.hold(pod, Duration::from_secs(15)).await?;
        };
        let started = self.timestamp();
        self.lab.kubernetes.with_pod(pod, |pod| pod["status"]["phase"] = "Running".into());
        self.container(pod, &json!({"running": {"startedAt": started}}));
        self.report(pod, "spec.containers{agent}", "Started", "Started container agent");
        let work = Work { pod, job_uid: uid, uuid: work, token: &token, evicted_at, fate };
        let end = self.run_agent(&work).await;
        if let Ok(end) = &end {
            let code = match end {
                End::Exit(code) => *code,
                _ => 0,
            };
            self.container(pod, &json!({"terminated": {"exitCode": code, "startedAt": started}}));
        }
        end
    }

    /// Its node does not answer any more. A pod of it stays until the node is collected, whatever becomes of its Job.
    async fn lose_node(&self, pod: &str, job: &str, uid: &str) -> Result<End, Gone> {
        self.hold(pod, TOLERATION).await?;
        let due = self.timestamp();
        self.lab.kubernetes.with_pod(pod, |pod| pod["metadata"]["deletionTimestamp"] = due.into());
        self.status(job, uid, |status| (status["active"], status["terminating"]) = (0.into(), 1.into()));
        sleep(NODE_IS_COLLECTED).await;
        self.lab.kubernetes.remove_pod(pod);
        self.status(job, uid, |status| status["terminating"] = 0.into());
        Ok(End::Disrupted)
    }

    /// Lets time pass for a pod, as long as it is there.
    pub async fn hold(&self, pod: &str, time: Duration) -> Result<(), Gone> {
        let end = Instant::now() + time;
        loop {
            if !self.lab.kubernetes.has_pod(pod) {
                return Err(Gone);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            sleep(left.min(self.plan.step)).await;
        }
    }

    /// The time, but not longer than there is trouble.
    fn until_calm(&self, time: Duration) -> Duration {
        time.min(self.plan.calm_at().saturating_sub(self.now()))
    }

    fn fate(&self, uuid: &str) -> Fate {
        if self.is_troubled(|what| matches!(what, What::NoAgents)) {
            return Fate::AgentFails;
        }
        let mut state = self.state();
        let count = state.pods.entry(uuid.to_owned()).or_default();
        *count += 1;
        let fates = state.numbers.get(uuid).and_then(|number| self.job(*number)).map(|job| &job.pods);
        let fate = fates.and_then(|fates| fates.get(state.pods[uuid] - 1)).copied();
        fate.filter(|_| self.now() < self.plan.calm_at()).unwrap_or(Fate::Runs)
    }

    fn container(&self, pod: &str, state: &Value) {
        let statuses = json!([{"name": "agent", "state": state}]);
        self.lab.kubernetes.with_pod(pod, |pod| pod["status"]["containerStatuses"] = statuses);
    }

    fn fail_to_pull(self: &Arc<Self>, pod: &str, message: &str) {
        self.container(pod, &json!({"waiting": {"reason": "ImagePullBackOff", "message": message}}));
        self.report(pod, "spec.containers{agent}", "Failed", message);
    }

    /// An Event.
    fn report(self: &Arc<Self>, pod: &str, path: &str, reason: &str, message: &str) {
        let Some(uid) = self.lab.kubernetes.with_pod(pod, |pod| pod["metadata"]["uid"].clone()) else { return };
        let type_ = if reason == "Started" { "Normal" } else { "Warning" };
        let name = format!("{pod}-{reason}");
        self.lab.kubernetes.put_event(json!({
            "metadata": {"name": name}, "type": type_, "reason": reason, "message": message,
            "involvedObject": {"uid": uid, "fieldPath": path},
        }));
        let world = Arc::clone(self);
        spawn_local(async move {
            sleep(EVENT_TTL).await;
            world.lab.kubernetes.remove_event(&name);
        });
    }

    /// The token in a Secret, as a pod gets it.
    fn token(&self, secret: &str) -> Option<String> {
        let secret = self.lab.kubernetes.secret("buildkite", secret)?;
        agent::decoded(secret["data"]["token"].as_str()?)
    }

    /// Buildkite finds out that the agent of a job is lost.
    pub fn lose_agent(self: &Arc<Self>, uuid: &str) {
        let (world, uuid) = (Arc::clone(self), uuid.to_owned());
        spawn_local(async move {
            sleep(AGENT_IS_LOST).await;
            let mut buildkite = world.lab.buildkite.lock();
            let now = buildkite.now();
            if let Some(job) = buildkite.jobs.get_mut(&uuid).filter(|job| job.cluster == CLUSTER) {
                (job.state, job.exit_status, job.finished_at) = ("finished", Some(-1), Some(now));
            }
        });
    }
}
