//! What we read of Jobs.
//!
//! All else is dropped while it is read, so that a list of 10,000 fits in the function's memory.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Deserializer, de::IgnoredAny};

use super::token_secret::token_secret;
use crate::pod::{job::is_token_secret, metadata::DEFINITION_ANNOTATION};

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
        Condition::find(&self.status.conditions, type_)
    }
}

impl Condition {
    /// The one of that type, if it is true.
    pub(super) fn find<'a>(conditions: &'a [Self], type_: &str) -> Option<&'a Self> {
        conditions.iter().find(|condition| condition.type_ == type_ && condition.status == "True")
    }
}

pub(super) fn count<'de, D: Deserializer<'de>>(list: D) -> Result<usize, D::Error> {
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
}
