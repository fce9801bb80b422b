//! What we read of pods. All else is dropped while it is read.

use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;

use super::jobs::{Condition, count};

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Which one it is.
    pub metadata: PodMetadata,
    /// Where it runs.
    pub spec: PodSpec,
    /// What became of it.
    pub status: PodStatus,
}

/// What identifies a pod. Its labels prove nothing: the pod of an earlier Job has the same ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodMetadata {
    /// Unique in the namespace, at any one time.
    pub name: String,
    /// Different for each pod that ever had the name.
    pub uid: String,
    /// By the API server's clock.
    pub creation_timestamp: Option<Timestamp>,
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

/// Where a pod runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// Its node, once it has one.
    pub node_name: Option<String>,
    /// How many gates it has. While it has one, the scheduler leaves it.
    #[serde(deserialize_with = "count")]
    pub scheduling_gates: usize,
}

/// What the kubelet and the scheduler say of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// Such as `Pending`.
    pub phase: String,
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

/// A container runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Running {
    /// The kubelet's word.
    pub started_at: Option<Timestamp>,
}

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

impl Pod {
    /// The uid of the Job that made it.
    pub fn owner(&self) -> Option<&str> {
        let owner = self.metadata.owner_references.iter().find(|owner| owner.controller);
        owner.map(|owner| &*owner.uid)
    }

    /// The condition of that type, if it is true.
    pub fn condition(&self, type_: &str) -> Option<&Condition> {
        Condition::find(&self.status.conditions, type_)
    }

    /// None of its containers runs any more, or will.
    pub fn has_ended(&self) -> bool {
        matches!(&*self.status.phase, "Failed" | "Succeeded")
    }

    /// The statuses of its containers, in the order of their start.
    pub fn containers(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.status.init_container_statuses.iter().chain(&self.status.container_statuses)
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
        self.runs() || self.started_at().is_some()
    }

    /// When it started last.
    pub fn started_at(&self) -> Option<Timestamp> {
        let states = [&self.state, &self.last_state];
        let running = states.iter().find_map(|state| state.running.as_ref()?.started_at);
        running.or_else(|| states.iter().find_map(|state| state.terminated.as_ref()?.started_at))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

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
