//! The routes of the API server, with authentication and authorisation before each.

use std::{collections::HashSet, sync::Arc, time::SystemTime};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, Request as HttpRequest, State},
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE, WARNING},
    },
    middleware::{Next, from_fn_with_state},
    response::{AppendHeaders, IntoResponse, Response},
    routing::{get, patch, post},
};
use jiff::fmt::rfc2822::DateTimePrinter;
use parking_lot::{Mutex, MutexGuard};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    USER,
    list::{DeleteOptions, Listing},
    reviews,
    status::{Cause, EVENTS, JOBS, NAMESPACES, POD_TEMPLATES, PODS, Resource, SECRETS, Status},
    store::Store,
};
use crate::{
    clock,
    eks_token::Verifier,
    exchange::{Caller, Role},
    timeline::{Actor, Call, Kind, Timeline},
};

const APPLY_PATCH: &str = "application/apply-patch+yaml";

/// The state of the API server.
pub(super) struct Api {
    pub(super) store: Mutex<Store>,
    pub(super) tokens: Mutex<Tokens>,
    pub(super) verifier: Verifier,
    pub(super) timeline: Timeline,
}

/// What the verifier does not know about tokens.
#[derive(Default)]
pub(super) struct Tokens {
    /// Tokens signed at this time or earlier are refused.
    pub(super) expired_until: Option<SystemTime>,
    /// Tokens that are accepted without verification, as those of a token file.
    pub(super) known: HashSet<String>,
    /// Each is recorded once, as the real server asks STS once per token.
    accepted: HashSet<String>,
}

type Answer = Result<Response, Status>;

pub(super) fn routes(api: &Arc<Api>) -> Router {
    Router::new()
        .route("/apis/batch/v1/namespaces/{namespace}/jobs", post(create_job).get(list_jobs))
        .route("/apis/batch/v1/namespaces/{namespace}/jobs/{name}", get(get_job).delete(delete_job))
        .route("/api/v1/namespaces/{namespace}/secrets", post(create_secret))
        .route("/api/v1/namespaces/{namespace}/secrets/{name}", patch(apply_secret).get(reviews::secret))
        .route("/api/v1/namespaces/{namespace}/podtemplates", get(list_pod_templates))
        .route("/api/v1/namespaces/{namespace}/pods", get(list_pods))
        .route("/api/v1/namespaces/{namespace}/events", get(list_events))
        .merge(reviews::routes())
        .fallback(async || Status::no_such_path())
        .layer(from_fn_with_state(Arc::clone(api), authenticate))
        // The only path without authentication.
        .route("/version", get(reviews::version))
        .with_state(Arc::clone(api))
}

pub(super) async fn authenticate(State(api): State<Arc<Api>>, request: HttpRequest, next: Next) -> Response {
    let (caller, mut response) = match api.identify(request.headers()) {
        Ok(()) => (Caller::User(USER.to_owned()), next.run(request).await),
        Err(reason) => {
            api.timeline.record(Actor::Kubernetes, Kind::TokenRefused(reason.clone()));
            (Caller::Refused(reason), Status::unauthorized().into_response())
        }
    };
    response.extensions_mut().insert(caller);
    response
}

impl Api {
    fn identify(&self, headers: &HeaderMap) -> Result<(), String> {
        let token = bearer_token(headers)?;
        if self.tokens.lock().known.contains(token) {
            return Ok(());
        }
        let now = clock::wall();
        let identity = self.verifier.verify(token, now).map_err(|refusal| refusal.to_string())?;

        let mut tokens = self.tokens.lock();
        if tokens.expired_until.is_some_and(|until| identity.signed_at <= until) {
            return Err("the lab expired this token".to_owned());
        }
        if tokens.accepted.insert(token.to_owned()) {
            self.timeline.record(Actor::Kubernetes, Kind::accepted(&identity.cluster, identity.signed_at, now));
        }
        Ok(())
    }

    /// What is written goes into a namespace that exists.
    fn store_with(&self, namespace: &str) -> Result<MutexGuard<'_, Store>, Status> {
        let store = self.store.lock();
        if store.namespaces.contains(namespace) { Ok(store) } else { Err(Status::not_found(NAMESPACES, namespace)) }
    }

    /// RBAC; the name is empty where the path has none.
    fn authorise(&self, verb: &str, resource: Resource, namespace: &str, name: &str) -> Result<(), Status> {
        let wanted = (verb.to_owned(), resource.plural.to_owned());
        if self.store.lock().forbidden.contains(&wanted) {
            return Err(Status::forbidden(USER, verb, resource, namespace, name));
        }
        Ok(())
    }
}

fn bearer_token(headers: &HeaderMap) -> Result<&str, &'static str> {
    let header = headers.get(AUTHORIZATION).ok_or("no Authorization header")?;
    header.to_str().ok().and_then(|header| header.strip_prefix("Bearer ")).ok_or("no bearer token")
}

/// How an object is posted.
#[derive(Deserialize)]
struct Posting {
    #[serde(rename = "dryRun")]
    dry_run: Option<String>,
}

async fn create_job(
    State(api): State<Arc<Api>>,
    Path(namespace): Path<String>,
    Query(query): Query<Posting>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    api.authorise("create", JOBS, &namespace, "")?;
    let mut job = posted(&body, &namespace)?;
    let mut store = api.store_with(&namespace)?;
    if let (None, Some(prefix)) = (job["metadata"]["name"].as_str(), job["metadata"]["generateName"].as_str()) {
        job["metadata"]["name"] = format!("{prefix}{:05}", store.jobs.len()).into();
    }
    let name = job["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let causes = job_causes(&job);
    if !causes.is_empty() {
        return Err(Status::invalid(JOBS, &name, &causes));
    }
    if store.jobs.contains_key(&(namespace, name.clone())) {
        return Err(Status::already_exists(JOBS, &name));
    }
    let job = if query.dry_run.as_deref() == Some("All") { job } else { store.put_job(job) };
    let warning = store.warning.iter().map(|warning| (WARNING, format!("299 - {warning:?}"))).collect::<Vec<_>>();
    Ok((StatusCode::CREATED, AppendHeaders(warning), represent(&headers, job)).into_response())
}

/// The object of a request that creates one.
fn posted(body: &[u8], namespace: &str) -> Result<Value, Status> {
    let mut object = serde_json::from_slice(body).map_err(|problem| Status::bad_request(problem.to_string()))?;
    check_namespace(&mut object, namespace)?;
    Ok(object)
}

/// The whole object, or its metadata alone if the client asks for no more.
fn represent(headers: &HeaderMap, object: Value) -> Json<Value> {
    let accepted = headers.get(ACCEPT).and_then(|accepted| accepted.to_str().ok()).unwrap_or_default();
    if accepted.contains("as=PartialObjectMetadata") {
        let metadata = &object["metadata"];
        return Json(json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}));
    }
    Json(object)
}

/// An object may omit its namespace, but not name another than the path.
fn check_namespace(object: &mut Value, namespace: &str) -> Result<(), Status> {
    if !object["metadata"].is_object() {
        return Err(Status::bad_request("the object has no metadata"));
    }
    match object["metadata"]["namespace"].as_str() {
        None => object["metadata"]["namespace"] = namespace.into(),
        Some(own) if own == namespace => {}
        Some(own) => {
            return Err(Status::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request \
                 ({own} != {namespace})"
            )));
        }
    }
    Ok(())
}

/// Fields that a Job requires.
fn job_causes(job: &Value) -> Vec<Cause> {
    let pod = &job["spec"]["template"]["spec"];
    let rules = [
        (
            job["metadata"]["name"].as_str().is_some_and(|name| !name.is_empty()),
            "metadata.name",
            "Required value: name or generateName is required",
        ),
        (
            pod["containers"].as_array().is_some_and(|containers| !containers.is_empty()),
            "spec.template.spec.containers",
            "Required value",
        ),
        (
            matches!(pod["restartPolicy"].as_str(), Some("Never" | "OnFailure")),
            "spec.template.spec.restartPolicy",
            "Required value: valid values: \"OnFailure\", \"Never\"",
        ),
    ];
    rules.into_iter().filter(|(holds, ..)| !holds).map(|(_, field, message)| Cause { field, message }).collect()
}

async fn get_job(State(api): State<Arc<Api>>, Path((namespace, name)): Path<(String, String)>) -> Answer {
    api.authorise("get", JOBS, &namespace, &name)?;
    let store = api.store.lock();
    let job = store.jobs.get(&(namespace, name.clone())).ok_or_else(|| Status::not_found(JOBS, &name))?;
    Ok(Json(job).into_response())
}

async fn delete_job(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    body: Bytes,
) -> Answer {
    api.authorise("delete", JOBS, &namespace, &name)?;
    let options = if body.is_empty() { Ok(DeleteOptions::default()) } else { serde_json::from_slice(&body) };
    let options = options.map_err(|problem| Status::bad_request(problem.to_string()))?;
    let deleted = api.store.lock().delete_job(&namespace, &name, &options)?;
    Ok(Json(deleted).into_response())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Apply {
    field_manager: Option<String>,
    #[serde(default)]
    force: bool,
    dry_run: Option<String>,
}

async fn apply_secret(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(apply): Query<Apply>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    api.authorise("patch", SECRETS, &namespace, &name)?;
    if headers.get(CONTENT_TYPE).is_none_or(|kind| kind != APPLY_PATCH) {
        return Err(Status::unsupported_media_type(APPLY_PATCH));
    }
    let manager = apply.field_manager.filter(|manager| !manager.is_empty()).ok_or_else(no_manager)?;
    let mut secret: Value =
        serde_saphyr::from_slice(&body).map_err(|problem| Status::bad_request(problem.to_string()))?;
    check_namespace(&mut secret, &namespace)?;
    if secret["metadata"]["name"] != name {
        return Err(Status::bad_request("the name of the object does not match the name on the URL"));
    }

    let key = (namespace.clone(), name.clone());
    if !api.store.lock().secrets.contains_key(&key) {
        api.authorise("create", SECRETS, &namespace, &name)?;
    }
    let mut store = api.store_with(&namespace)?;
    let (secret, new) = store
        .apply_secret(&manager, &secret, apply.force, apply.dry_run.is_some())
        .map_err(|conflicts| Status::conflict(&conflicts))?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, represent(&headers, secret)).into_response())
}

async fn create_secret(
    State(api): State<Arc<Api>>,
    Path(namespace): Path<String>,
    Query(query): Query<Posting>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    api.authorise("create", SECRETS, &namespace, "")?;
    let secret = posted(&body, &namespace)?;
    let name = secret["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let mut store = api.store_with(&namespace)?;
    let is_dry_run = query.dry_run.as_deref() == Some("All");
    let secret = store.create_secret(secret, is_dry_run).ok_or_else(|| Status::already_exists(SECRETS, &name))?;
    Ok((StatusCode::CREATED, represent(&headers, secret)).into_response())
}

fn no_manager() -> Status {
    const PATCH_OPTIONS: Resource = Resource { group: "meta.k8s.io", plural: "patchoptions", kind: "PatchOptions" };
    let message = "Required value: is required for apply patch";
    Status::invalid(PATCH_OPTIONS, "", &[Cause { field: "fieldManager", message }])
}

async fn list_jobs(api: State<Arc<Api>>, namespace: Path<String>, listing: Query<Listing>) -> Answer {
    list(&api, JOBS, &namespace, &listing)
}

async fn list_pods(api: State<Arc<Api>>, namespace: Path<String>, listing: Query<Listing>) -> Answer {
    list(&api, PODS, &namespace, &listing)
}

async fn list_events(api: State<Arc<Api>>, namespace: Path<String>, listing: Query<Listing>) -> Answer {
    list(&api, EVENTS, &namespace, &listing)
}

async fn list_pod_templates(api: State<Arc<Api>>, namespace: Path<String>, listing: Query<Listing>) -> Answer {
    list(&api, POD_TEMPLATES, &namespace, &listing)
}

fn list(api: &Api, resource: Resource, namespace: &str, listing: &Listing) -> Answer {
    api.authorise("list", resource, namespace, "")?;
    Ok(Json(api.store.lock().list(resource, namespace, listing)?).into_response())
}

/// Each answer has the date of the lab, and not that of this machine.
pub(super) async fn date(State(api): State<Arc<Api>>, mut response: Response) -> Response {
    let now = DateTimePrinter::new().timestamp_to_rfc9110_string(&api.store.lock().now());
    response.headers_mut().insert(DATE, now.expect("a date of this era").try_into().expect("a date is ASCII"));
    response
}

/// The API server as a stand-in.
pub(super) const API_SERVER: Role = Role {
    call: |parts, _| (Actor::Kubernetes, Call::new(parts.method.as_str(), parts.uri.path())),
    error: |_, _, error| Status::injected(error).into_response(),
};
