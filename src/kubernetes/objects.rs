//! What we read of Jobs and pods.
//!
//! All else is dropped while it is read, so that a list of 10,000 fits in the function's memory.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Deserializer};

/// A Job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Job {
    /// Which one it is, who made it and when.
    pub metadata: Metadata,
    /// How it ended, if it did.
    pub status: JobStatus,
}

/// What identifies a Job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata {
    /// Unique in the namespace, at any one time.
    pub name: String,
    /// Given by the API server, different for each object that ever had the name.
    pub uid: Option<String>,
    /// Those of Buildkite and of this project.
    #[serde(deserialize_with = "of_buildkite")]
    pub labels: BTreeMap<String, String>,
    /// Those of this project.
    #[serde(deserialize_with = "of_project")]
    pub annotations: BTreeMap<String, String>,
    /// By the API server's clock.
    pub creation_timestamp: Option<Timestamp>,
    /// Set while the object is being deleted.
    pub deletion_timestamp: Option<Timestamp>,
}

/// What the Job controller says of a Job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct JobStatus {
    /// Its pods that have not ended and are not being deleted.
    pub active: u32,
    /// When it became Complete.
    pub completion_time: Option<Timestamp>,
    /// `Complete`, `Failed`, `Suspended` and others.
    pub conditions: Vec<Condition>,
}

/// A condition of a Job or of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Condition {
    /// Such as `Failed`.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word.
    pub reason: Option<String>,
    /// A sentence.
    pub message: Option<String>,
    /// When it became what it is.
    pub last_transition_time: Option<Timestamp>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Which one it is.
    pub metadata: PodMetadata,
    /// What became of it.
    pub status: PodStatus,
}

/// What identifies a pod. Its labels prove nothing: the pod of an earlier Job has the same ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodMetadata {
    /// Unique in the namespace, at any one time.
    pub name: String,
    /// Who it belongs to.
    pub owner_references: Vec<OwnerReference>,
    /// When the kubelet must have ended it: the end of its grace period.
    pub deletion_timestamp: Option<Timestamp>,
}

/// Who an object belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct OwnerReference {
    /// Of the owner.
    pub uid: String,
    /// The owner is the one that made the object.
    pub controller: bool,
}

/// What the kubelet and the scheduler say of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// Such as `PodScheduled`.
    pub conditions: Vec<Condition>,
    /// In the order of the pod's spec.
    pub init_container_statuses: Vec<ContainerStatus>,
    /// In the order of the pod's spec.
    pub container_statuses: Vec<ContainerStatus>,
}

/// What became of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerStatus {
    /// Its name.
    pub name: String,
    /// Now.
    pub state: ContainerState,
    /// Before its last restart.
    pub last_state: ContainerState,
}

/// One of the three, or none yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    /// It has not started.
    pub waiting: Option<Waiting>,
    /// It runs.
    pub running: Option<Running>,
    /// It has ended, or will never start.
    pub terminated: Option<Terminated>,
}

/// Why a container has not started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Waiting {
    /// Such as `ImagePullBackOff`.
    pub reason: Option<String>,
    /// A sentence.
    pub message: Option<String>,
}

/// A container runs; since when is the kubelet's word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Running {}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Terminated {
    /// 0 for a success.
    pub exit_code: i32,
    /// Such as `OOMKilled`.
    pub reason: Option<String>,
    /// A sentence.
    pub message: Option<String>,
    /// Absent if it never ran.
    pub started_at: Option<Timestamp>,
}

impl Job {
    /// The condition of that type, if it is true.
    pub fn condition(&self, type_: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.type_ == type_ && condition.status == "True")
    }
}

impl Pod {
    /// The uid of the Job that made it.
    pub fn owner(&self) -> Option<&str> {
        let owner = self.metadata.owner_references.iter().find(|owner| owner.controller);
        owner.map(|owner| &*owner.uid)
    }

    /// The status of its container of that name.
    pub fn container(&self, name: &str) -> Option<&ContainerStatus> {
        self.status.container_statuses.iter().find(|container| container.name == name)
    }
}

impl ContainerStatus {
    /// It runs now, as far as its kubelet has said.
    pub fn runs(&self) -> bool {
        self.state.running.is_some()
    }

    /// It runs, or ran.
    pub fn started(&self) -> bool {
        let ran = |state: &ContainerState| state.terminated.as_ref().is_some_and(|ended| ended.started_at.is_some());
        self.runs() || ran(&self.state) || ran(&self.last_state)
    }
}

fn of_buildkite<'de, D: Deserializer<'de>>(labels: D) -> Result<BTreeMap<String, String>, D::Error> {
    only(labels, "buildkite.com/")
}

fn of_project<'de, D: Deserializer<'de>>(annotations: D) -> Result<BTreeMap<String, String>, D::Error> {
    only(annotations, "agent-scheduler.buildkite.com/")
}

fn only<'de, D: Deserializer<'de>>(strings: D, domain: &str) -> Result<BTreeMap<String, String>, D::Error> {
    let mut strings = BTreeMap::deserialize(strings)?;
    strings.retain(|key: &String, _| key.contains(domain));
    Ok(strings)
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn a_job_is_read_without_what_is_not_needed() {
        let job: Job = from_value(json!({
            "apiVersion": "batch/v1",
            "metadata": {
                "name": "buildkite-1", "uid": "u1", "generation": 1, "creationTimestamp": "2026-01-15T10:00:05Z",
                "labels": {"team": "web", "buildkite.com/job-uuid": "1", "agent-scheduler.buildkite.com/stack": "s"},
                "annotations": {"buildkite.com/branch": "main", "agent-scheduler.buildkite.com/job": "{}"},
            },
            "spec": {"backoffLimit": 3},
            "status": {"active": 1, "ready": 0, "conditions": [
                {"type": "Failed", "status": "False"},
                {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "lastTransitionTime": "2026-01-15T10:01:05Z"},
            ]},
        }))
        .unwrap();
        assert_eq!((job.metadata.labels.len(), job.metadata.annotations.len(), job.status.active), (2, 1, 1));
        assert_eq!(job.condition("Failed").unwrap().reason.as_deref(), Some("BackoffLimitExceeded"));
        assert_eq!(job.condition("Complete"), None);
        assert_eq!(from_value::<Job>(json!({})).unwrap(), Job::default());
    }

    #[test]
    fn a_pod_is_of_the_job_that_controls_it() {
        let pod: Pod = from_value(json!({"metadata": {"name": "p", "ownerReferences": [
            {"kind": "ConfigMap", "name": "a", "uid": "u1"},
            {"kind": "Job", "name": "a", "uid": "u2", "controller": true},
        ]}}))
        .unwrap();
        assert_eq!((pod.owner(), Pod::default().owner()), (Some("u2"), None));
    }

    #[test]
    fn a_container_started_if_it_runs_or_has_a_start() {
        let ended = json!({"terminated": {"exitCode": 1, "startedAt": "2026-01-15T10:00:05Z"}});
        let cases = [
            (json!({"state": {"running": {"startedAt": "2026-01-15T10:00:05Z"}}}), (true, true)),
            (json!({"state": {"running": {}}}), (true, true)),
            (json!({"state": ended}), (false, true)),
            (json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended}), (false, true)),
            (json!({"state": {"terminated": {"exitCode": 128, "startedAt": null}}}), (false, false)),
            (json!({"state": {"waiting": {"reason": "PodInitializing"}}, "lastState": {}}), (false, false)),
            (json!({}), (false, false)),
        ];
        for (status, expected) in cases {
            let container: ContainerStatus = from_value(status.clone()).unwrap();
            assert_eq!((container.runs(), container.started()), expected, "{status}");
        }
    }
}
