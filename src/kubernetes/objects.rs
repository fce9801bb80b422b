//! What we read of Jobs and pods.
//!
//! All else is dropped while it is read, so that a list of 10,000 fits in the function's memory.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Deserializer, de::IgnoredAny};

use super::token_secret::token_secret;
use crate::pod::job::{DEFINITION_ANNOTATION, is_token_secret};

/// A Job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Job {
    /// Which one it is, who made it and when.
    pub metadata: Metadata,
    /// What holds its pods back.
    pub spec: JobSpec,
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
    /// Those of this project, and the pod definition's.
    #[serde(deserialize_with = "of_project")]
    pub annotations: BTreeMap<String, String>,
    /// By the API server's clock.
    pub creation_timestamp: Option<Timestamp>,
    /// Set while the object is being deleted.
    pub deletion_timestamp: Option<Timestamp>,
}

/// What keeps a Job from having a pod, or its pod from having a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct JobSpec {
    /// Another controller, such as Kueue, decides when it starts.
    pub suspend: bool,
    /// Of its pod.
    pub template: Template,
}

/// The template of a Job's pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Template {
    /// What the pod asks for.
    pub spec: TemplateSpec,
}

/// What holds the pod of a Job back, and where its agent's token is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TemplateSpec {
    /// How many gates it begins with.
    #[serde(deserialize_with = "count")]
    pub scheduling_gates: usize,
    /// The Secret that its agent's token is in, if it is in one.
    #[serde(rename = "containers", deserialize_with = "token_secret")]
    pub token_secret: Option<String>,
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

/// What the Job controller says of a Job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct JobStatus {
    /// Its pods that have not ended and are not being deleted.
    pub active: u32,
    /// Those of them that are ready.
    pub ready: u32,
    /// Its pods that are being deleted.
    pub terminating: u32,
    /// Its pods that ended and are not counted yet.
    #[serde(deserialize_with = "count_of_lists")]
    pub uncounted_terminated_pods: usize,
    /// Since when the Job controller makes its pods; set again when it is resumed.
    pub start_time: Option<Timestamp>,
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

impl Job {
    /// The Secret with the token of its agent, if that is for this Job alone.
    pub fn own_token_secret(&self) -> Option<&str> {
        let secret = self.spec.template.spec.token_secret.as_deref();
        secret.filter(|secret| is_token_secret(secret, &self.metadata.name))
    }

    /// The Job controller knows of no pod of it.
    pub fn has_no_pod(&self) -> bool {
        let JobStatus { active, ready, terminating, uncounted_terminated_pods, .. } = self.status;
        active + ready + terminating == 0 && uncounted_terminated_pods == 0
    }

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

    /// The condition of that type, if it is true.
    pub fn condition(&self, type_: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.type_ == type_ && condition.status == "True")
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

fn count<'de, D: Deserializer<'de>>(list: D) -> Result<usize, D::Error> {
    Vec::<IgnoredAny>::deserialize(list).map(|list| list.len())
}

fn count_of_lists<'de, D: Deserializer<'de>>(lists: D) -> Result<usize, D::Error> {
    BTreeMap::<String, Vec<IgnoredAny>>::deserialize(lists).map(|lists| lists.values().map(Vec::len).sum())
}

fn of_buildkite<'de, D: Deserializer<'de>>(labels: D) -> Result<BTreeMap<String, String>, D::Error> {
    only(labels, |key| key.contains("buildkite.com/"))
}

fn of_project<'de, D: Deserializer<'de>>(annotations: D) -> Result<BTreeMap<String, String>, D::Error> {
    only(annotations, |key| key.contains("agent-scheduler.buildkite.com/") || key == DEFINITION_ANNOTATION)
}

fn only<'de, D: Deserializer<'de>>(
    strings: D,
    is_read: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, String>, D::Error> {
    let mut strings = BTreeMap::deserialize(strings)?;
    strings.retain(|key: &String, _| is_read(key));
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
                "annotations": {"buildkite.com/branch": "main", "buildkite.com/pod-definition": "gpu", "agent-scheduler.buildkite.com/job": "{}"},
            },
            "spec": {"backoffLimit": 3, "suspend": true, "template": {"spec": {
                "schedulingGates": [{"name": "g"}],
                "containers": [{"name": "agent", "env": [
                    {"name": "A", "value": "b"},
                    {"name": "BUILDKITE_AGENT_TOKEN", "valueFrom": {"secretKeyRef": {"name": "s1", "key": "token"}}},
                ]}],
            }}},
            "status": {"active": 1, "ready": 0, "uncountedTerminatedPods": {"failed": ["u"]}, "conditions": [
                {"type": "Failed", "status": "False"},
                {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "lastTransitionTime": "2026-01-15T10:01:05Z"},
            ]},
        }))
        .unwrap();
        assert_eq!((job.metadata.labels.len(), job.metadata.annotations.len(), job.status.active), (2, 2, 1));
        assert_eq!(job.condition("Failed").unwrap().reason.as_deref(), Some("BackoffLimitExceeded"));
        assert_eq!(job.condition("Complete"), None);
        assert_eq!((job.spec.suspend, job.spec.template.spec.scheduling_gates), (true, 1));
        assert_eq!(job.spec.template.spec.token_secret.as_deref(), Some("s1"));
        assert_eq!((job.status.uncounted_terminated_pods, job.has_no_pod()), (1, false));
        assert!(Job::default().has_no_pod());
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
