//! What an examination of the set-up asks: the version, who asks, what it may do, and whether an object is there.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use serde_json::{Value, json};

use super::{
    api::Api,
    status::{PRIORITY_CLASSES, Resource, SECRETS, SERVICE_ACCOUNTS, Status},
};
use crate::kubernetes::USER;

pub(super) fn routes() -> Router<Arc<Api>> {
    let review = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let access_review = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    Router::new()
        .route(review, post(who_am_i))
        .route(access_review, post(may))
        .route("/api/v1/namespaces/{namespace}/serviceaccounts/{name}", get(service_account))
        .route("/apis/scheduling.k8s.io/v1/priorityclasses/{name}", get(priority_class))
}

pub(super) async fn version(State(api): State<Arc<Api>>) -> Json<Value> {
    let minor = api.store.lock().minor_version;
    Json(
        json!({"major": "1", "minor": minor.to_string(), "gitVersion": format!("v1.{minor}.0-lab"), "platform": "linux/amd64"}),
    )
}

async fn who_am_i(State(api): State<Arc<Api>>) -> (StatusCode, Json<Value>) {
    let user = api.store.lock().user.clone();
    let extra = json!({"canonicalArn": ["arn:aws:iam::111122223333:role/agent-scheduler"]});
    let user = json!({"username": user, "groups": ["system:authenticated"], "extra": extra});
    (StatusCode::CREATED, Json(json!({"kind": "SelfSubjectReview", "status": {"userInfo": user}})))
}

async fn may(State(api): State<Arc<Api>>, Json(mut review): Json<Value>) -> (StatusCode, Json<Value>) {
    let asked = &review["spec"]["resourceAttributes"];
    let [verb, resource] = ["verb", "resource"].map(|field| asked[field].as_str().unwrap_or_default().to_owned());
    let is_allowed = !api.store.lock().forbidden.contains(&(verb, resource));
    review["status"] = json!({"allowed": is_allowed});
    (StatusCode::CREATED, Json(review))
}

async fn service_account(
    api: State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Value>, Status> {
    look_up(&api, SERVICE_ACCOUNTS, &namespace, &name)
}

async fn priority_class(api: State<Arc<Api>>, Path(name): Path<String>) -> Result<Json<Value>, Status> {
    look_up(&api, PRIORITY_CLASSES, "", &name)
}

/// As the real one, where only those with a permission of their own look.
pub(super) fn look_up(api: &Api, resource: Resource, namespace: &str, name: &str) -> Result<Json<Value>, Status> {
    match &api.store.lock().readable {
        None => Err(Status::forbidden(USER, "get", resource, namespace, name)),
        Some(names) if names.contains(name) => Ok(Json(json!({"kind": resource.kind, "metadata": {"name": name}}))),
        Some(_) => Err(Status::not_found(resource, name)),
    }
}

pub(super) async fn secret(
    api: State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Value>, Status> {
    look_up(&api, SECRETS, &namespace, &name)
}
