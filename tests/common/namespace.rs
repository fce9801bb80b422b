//! A namespace of a real control plane, and a lab whose functions use it.

#![allow(dead_code, clippy::unwrap_used, reason = "no test uses all of it, and a test fails by a panic")]

use std::{sync::LazyLock, time::SystemTime};

use agent_scheduler::aws::eks_token;
use aws_credential_types::Credentials;
use lab::{CLUSTER, Client, ControlPlane, Event, Function, Lab, control_plane::eventually, function::Builder};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::common::FUNCTION;

pub const SUBJECT: &str = "buildkite-on-demand-agent-scheduler";
pub const REGION: &str = "us-east-1";

/// The function's permissions, as resource and verb.
pub const PERMISSIONS: [(&str, &str); 5] =
    [("jobs", "create"), ("jobs", "get"), ("secrets", "create"), ("secrets", "patch"), ("podtemplates", "list")];

/// Those of the sweep.
pub const SWEEP_PERMISSIONS: [(&str, &str); 4] =
    [("jobs", "list"), ("jobs", "delete"), ("pods", "list"), ("events", "list")];

/// A namespace, and a lab whose functions use it.
pub struct Namespace {
    pub control_plane: &'static ControlPlane,
    pub name: String,
    pub admin: Client,
    pub lab: Lab,
}

impl Namespace {
    /// On the control plane without nodes.
    pub async fn new() -> Self {
        Self::on(ControlPlane::shared().await).await
    }

    /// With the permissions that README gives.
    pub async fn on(control_plane: &'static ControlPlane) -> Self {
        let namespace = Self::bare(control_plane).await;
        namespace.apply_role_file().await;
        for (resource, verb) in PERMISSIONS.into_iter().chain(SWEEP_PERMISSIONS) {
            namespace.until_permitted(resource, verb, true).await;
        }
        namespace
    }

    pub async fn without_permissions() -> Self {
        Self::bare(ControlPlane::shared().await).await
    }

    async fn bare(control_plane: &'static ControlPlane) -> Self {
        let name = format!("test-{}", Uuid::new_v4().simple());
        control_plane.make_namespace(&name).await;
        Self { lab: control_plane.lab().await, admin: control_plane.admin().await, control_plane, name }
    }

    pub async fn apply_role_file(&self) {
        self.control_plane.apply_role_file(false, &self.name).await.unwrap();
    }

    /// The authoriser reads a changed role with a delay.
    pub async fn until_permitted(&self, resource: &str, verb: &str, permitted: bool) {
        let group = if resource == "jobs" { "batch" } else { "" };
        let name = if resource == "secrets" { "buildkite-agent-token" } else { "" };
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {
                "namespace": self.name, "group": group, "resource": resource, "verb": verb, "name": name,
            }},
        });
        let mut function = self.as_function().await;
        eventually("the role has no effect", async || {
            let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
            let (_, answer) = function.post(path, &review).await;
            (answer["status"]["allowed"] == permitted).then_some(())
        })
        .await;
    }

    pub fn function(&self) -> Function {
        self.builder().start()
    }

    pub fn builder(&self) -> Builder {
        self.lab.function(FUNCTION).env("KUBERNETES_NAMESPACE", &self.name)
    }

    /// Gives the event to a new function, and returns the name of its Job.
    pub async fn create(&self, event: &Event) -> String {
        create(&self.function(), event).await
    }

    /// The path of a namespaced resource, such as `jobs` or `secrets/name`.
    pub fn path(&self, resource: &str) -> String {
        let group = match resource.split(['/', '?']).next().unwrap() {
            "jobs" => "/apis/batch/v1",
            "roles" | "rolebindings" => "/apis/rbac.authorization.k8s.io/v1",
            _ => "/api/v1",
        };
        format!("{group}/namespaces/{}/{resource}", self.name)
    }

    pub async fn get(&mut self, resource: &str) -> Value {
        ok(self.admin.get(&self.path(resource)).await)
    }

    pub async fn list(&mut self, resource: &str) -> Vec<Value> {
        self.get(resource).await["items"].as_array().unwrap().clone()
    }

    pub async fn patch(&mut self, resource: &str, changes: &Value) {
        ok(self.admin.patch(&self.path(resource), changes).await);
    }

    /// Applies a `PodTemplate`.
    pub async fn apply(&mut self, manifest: &Value) {
        let path = self.path(&format!("podtemplates/{}?fieldManager=lab&force=true", name(manifest)));
        ok(self.admin.apply(&path, manifest).await);
    }

    pub async fn delete(&mut self, resource: &str) {
        ok(self.admin.delete(&self.path(resource)).await);
    }

    pub fn credentials(&self) -> Credentials {
        let keys = self.lab.credentials();
        Credentials::new(&keys.access_key_id, &keys.secret_access_key, Some(keys.session_token.clone()), None, "lab")
    }

    /// An EKS token as the function signs it.
    pub fn eks_token(&self) -> String {
        eks_token::token(&self.credentials(), REGION, CLUSTER, SystemTime::now()).unwrap()
    }

    /// The API server as the function sees it.
    pub async fn as_function(&self) -> Client {
        self.control_plane.client(&self.eks_token()).await
    }

    /// The Pod that the Job controller makes for a Job.
    pub async fn pod(&mut self, job: &str) -> Value {
        eventually("there is no Pod", async || {
            self.list("pods").await.into_iter().find(|pod| pod["metadata"]["labels"]["job-name"] == job)
        })
        .await
    }

    /// The condition that says how a Job ended.
    pub async fn finished(&mut self, job: &str) -> Value {
        eventually("the Job has not ended", async || {
            let job = self.get(&format!("jobs/{job}")).await;
            let conditions = job["status"]["conditions"].as_array()?;
            let ended = |condition: &&Value| condition["type"] == "Complete" || condition["type"] == "Failed";
            conditions.iter().find(ended).cloned()
        })
        .await
    }
}

/// The definitions of `pod-definitions/`.
pub fn compiled() -> Vec<Value> {
    fn checked(json: &str) -> Value {
        serde_json::from_str(json).unwrap()
    }
    let compiled: Vec<(&str, LazyLock<Value>)> = include!(concat!(env!("OUT_DIR"), "/pod_definitions.rs"));
    assert!(!compiled.is_empty());
    compiled.iter().map(|(_, manifest)| Value::clone(manifest)).collect()
}

/// The published event for a new job.
pub fn event() -> Event {
    Event::scheduled().uuid(Uuid::new_v4())
}

/// The same for a step that asks for these beside the queue.
pub fn event_with(rules: &[&str]) -> Event {
    event().rules(["queue=kubernetes"].iter().chain(rules))
}

/// Gives the event to the function, which must create its Job, and returns the name of that.
pub async fn create(function: &Function, event: &Event) -> String {
    assert_eq!(function.succeed(event).await["outcome"], "created");
    event.job_name()
}

/// The answer to a request that must succeed.
pub fn ok((status, answer): (u16, Value)) -> Value {
    assert!(matches!(status, 200 | 201), "{status}: {answer}");
    answer
}

pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}
