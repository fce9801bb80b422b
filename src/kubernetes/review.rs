//! What the doctor asks of the API server beside the requests of the function: each authenticated user may ask the first three.

use http::Request;
use k8s_openapi::{
    api::batch::v1::Job,
    api::core::v1::{Secret, ServiceAccount},
    api::scheduling::v1::PriorityClass,
    jiff::Timestamp,
};
use kube::{
    Resource,
    core::{
        Request as Requests,
        params::{GetParams, ListParams, PostParams},
    },
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    cluster::{Cluster, metadata_only},
    error::Error,
    jobs,
};
use crate::{
    deadline::Deadline,
    https::date,
    pod::metadata::{QUEUE_LABEL, STACK_LABEL},
};

/// A permission in the namespace.
#[derive(Clone, Copy, Debug)]
pub struct Permission<'a> {
    /// Its API group; empty for the core one.
    pub group: &'a str,
    /// Such as `jobs`.
    pub resource: &'a str,
    /// Such as `create`.
    pub verb: &'a str,
    /// Empty for all.
    pub name: &'a str,
}

/// As whom the API server knows the function.
#[derive(Clone, Debug)]
pub struct User {
    /// The user.
    pub name: String,
    /// Its groups.
    pub groups: Vec<String>,
    /// The role, where the API server is one of EKS.
    pub arn: Option<String>,
}

/// What a pod may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NamedKind {
    /// `serviceAccountName`
    ServiceAccount,
    /// `imagePullSecrets`
    Secret,
    /// `priorityClassName`
    PriorityClass,
}

impl Cluster {
    /// The version of the API server, and its clock.
    pub async fn version(&self, deadline: Deadline) -> Result<(String, Option<Timestamp>), Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            git_version: String,
        }
        let response = self.send(Request::get("/version").body(Vec::new()), deadline).await?;
        let Version { git_version } = self.parse(&response)?;
        Ok((git_version, date(response.headers())))
    }

    /// As whom the API server knows the function.
    pub async fn who_am_i(&self, deadline: Deadline) -> Result<User, Error> {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        let answer = self.review("/apis/authentication.k8s.io/v1/selfsubjectreviews", &review, deadline).await?;
        let user = &answer["status"]["userInfo"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Ok(User {
            name: text(&user["username"]).unwrap_or_default(),
            groups: user["groups"].as_array().into_iter().flatten().filter_map(text).collect(),
            arn: text(&user["extra"]["canonicalArn"][0]),
        })
    }

    /// Whether the function has a permission.
    pub async fn may(&self, permission: Permission<'_>, deadline: Deadline) -> Result<bool, Error> {
        let Permission { group, resource, verb, name } = permission;
        let asked =
            json!({"namespace": self.namespace, "group": group, "resource": resource, "verb": verb, "name": name});
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": asked},
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        Ok(self.review(path, &review, deadline).await?["status"]["allowed"] == true)
    }

    /// The Jobs of a queue that other stacks made, or that have no stack.
    pub async fn jobs_of_others(&self, queue: &str, deadline: Deadline) -> Result<Vec<jobs::Job>, Error> {
        let selector = format!("{QUEUE_LABEL}={queue},{STACK_LABEL}!={}", self.stack_id);
        Ok(self.list::<Job, _>(ListParams::default().limit(500).labels(&selector), deadline).await?.items)
    }

    /// Whether there is an object of that name; of a Secret, too, only its metadata is read.
    pub async fn exists(&self, kind: NamedKind, name: &str, deadline: Deadline) -> Result<bool, Error> {
        let namespace = Some(&*self.namespace);
        let path = match kind {
            NamedKind::ServiceAccount => ServiceAccount::url_path(&(), namespace),
            NamedKind::Secret => Secret::url_path(&(), namespace),
            NamedKind::PriorityClass => PriorityClass::url_path(&(), None),
        };
        let request = Requests::new(path).get(name, &GetParams::default());
        match self.send(metadata_only(request), deadline).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn review(&self, path: &str, review: &Value, deadline: Deadline) -> Result<Value, Error> {
        let request = Requests::new(path).create(&PostParams::default(), review.to_string().into_bytes());
        self.read(request, deadline).await
    }
}
