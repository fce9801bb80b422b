//! What stands in for two services of AWS: the parameter store of SSM and the cluster directory of EKS.
//!
//! One router plays both, as one endpoint URL can serve every service of the SDK.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Request as HttpRequest, State},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION, request::Parts},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    certificates::{Certificate, Certificates},
    credentials::Credentials,
    exchange::{ExchangeLog, Request, Role},
    fault::{ErrorAnswer, Fault, When},
    server::{Server, Service},
    timeline::{Actor, Call, Timeline},
};

/// The region that everything is in.
pub const REGION: &str = "us-east-1";
/// The account that everything belongs to.
pub const ACCOUNT: &str = "111122223333";

const TARGET: &str = "x-amz-target";
/// The role of every function.
pub(crate) const ROLE: &str = "agent-scheduler";
/// Lambda names the session after the function.
pub(crate) const SESSION: &str = "agent-scheduler";

/// The stand-in for SSM and EKS. Clones are the same one.
#[derive(Clone)]
pub struct Aws {
    api: Arc<Api>,
    http: Arc<Server>,
    https: Arc<Server>,
}

/// A parameter as it is put.
#[derive(Clone)]
pub struct Parameter {
    kind: Kind,
    value: String,
}

#[derive(Clone, Copy)]
enum Kind {
    Plain,
    Secure,
}

impl Parameter {
    /// Stored as it is.
    pub fn string(value: impl Into<String>) -> Self {
        Self { kind: Kind::Plain, value: value.into() }
    }

    /// Encrypted; shown in the clear only to those that ask for decryption.
    pub fn secure_string(value: impl Into<String>) -> Self {
        Self { kind: Kind::Secure, value: value.into() }
    }
}

struct Api {
    access_key_id: String,
    log: ExchangeLog,
    parameters: Mutex<BTreeMap<String, Stored>>,
    clusters: Mutex<BTreeMap<String, Cluster>>,
}

struct Stored {
    parameter: Parameter,
    version: u64,
}

struct Cluster {
    endpoint: String,
    ca_data: String,
}

impl Aws {
    pub(crate) async fn start(
        ip: IpAddr,
        timeline: &Timeline,
        credentials: &Credentials,
        certificates: &Arc<Certificates>,
    ) -> Self {
        let log = ExchangeLog::new(timeline);
        let api = Arc::new(Api {
            access_key_id: credentials.access_key_id.clone(),
            log: log.clone(),
            parameters: Mutex::default(),
            clusters: Mutex::default(),
        });
        let routes = Router::new()
            .route("/", post(call))
            .route("/clusters/{name}", get(describe_cluster))
            .fallback(unknown_operation)
            .layer(from_fn_with_state(Arc::clone(&api), authenticate))
            .with_state(Arc::clone(&api));
        let service = Service {
            actor: Actor::Ssm,
            router: log.around(routes, AwsRole),
            faults: log.faults.clone(),
            timeline: timeline.clone(),
            certificates: Some(Arc::clone(certificates)),
        };
        let http = Server::listen(ip, None, service.clone()).await;
        let https = Server::listen(ip, Some(certificates.server(Certificate::Good)), service).await;
        Self { api, http: Arc::new(http), https: Arc::new(https) }
    }

    /// Where it listens without TLS; what `AWS_ENDPOINT_URL` of a function is.
    pub fn url(&self) -> String {
        format!("http://{}", self.http.authority())
    }

    /// Where it listens with a certificate of the lab's authority.
    pub fn https_url(&self) -> String {
        format!("https://{}", self.https.authority())
    }

    /// Stores a parameter; one that is there gets the next version.
    pub fn put_parameter(&self, name: impl Into<String>, parameter: Parameter) {
        let mut parameters = self.api.parameters.lock();
        let name = name.into();
        let version = parameters.get(&name).map_or(1, |stored| stored.version + 1);
        parameters.insert(name, Stored { parameter, version });
    }

    /// Forgets a parameter.
    pub fn remove_parameter(&self, name: &str) {
        self.api.parameters.lock().remove(name);
    }

    /// Makes a cluster known to EKS; `ca_data` is base64 of a PEM.
    pub fn put_cluster(&self, name: impl Into<String>, endpoint: impl Into<String>, ca_data: impl Into<String>) {
        let cluster = Cluster { endpoint: endpoint.into(), ca_data: ca_data.into() };
        self.api.clusters.lock().insert(name.into(), cluster);
    }

    /// Makes EKS forget a cluster.
    pub fn remove_cluster(&self, name: &str) {
        self.api.clusters.lock().remove(name);
    }

    /// Lets the next `times` requests that match, or connections, meet a fault.
    pub fn inject(&self, when: When, fault: Fault, times: usize) {
        self.api.log.faults.plan(when, fault, times);
    }

    /// Lets the requests that match meet a fault as far as more than so many come in a second.
    pub fn limit(&self, when: When, fault: Fault, per_second: u32) {
        self.api.log.faults.plan_beyond(when, fault, per_second);
    }

    /// Forgets all faults that are still planned.
    pub fn clear_faults(&self) {
        self.api.log.faults.clear();
    }

    /// How many faults were committed so far.
    pub fn faults_met(&self) -> usize {
        self.api.log.faults.met()
    }

    /// Closes every connection that is idle now, and the others after their answer.
    pub fn hang_up(&self) {
        self.api.log.faults.hang_up();
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.api.log.requests()
    }

    pub(crate) fn forget(&self) {
        self.api.log.forget();
    }
}

/// Refuses a key that this lab never gave away. The signature itself is not looked at: the SDK makes it, not the function.
async fn authenticate(State(api): State<Arc<Api>>, request: HttpRequest, next: Next) -> Response {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let key = header.split_once("Credential=").and_then(|(_, rest)| rest.split('/').next());
    let rest = is_rest(request.uri().path());
    match key {
        Some(key) if key == api.access_key_id => next.run(request).await,
        Some(_) => {
            let message = "The security token included in the request is invalid.";
            error(rest, StatusCode::FORBIDDEN, "UnrecognizedClientException", message)
        }
        None => {
            error(rest, StatusCode::FORBIDDEN, "MissingAuthenticationTokenException", "Missing Authentication Token")
        }
    }
}

async fn call(State(api): State<Arc<Api>>, headers: HeaderMap, body: Bytes) -> Response {
    if headers.get(TARGET).is_none_or(|target| target != "AmazonSSM.GetParameter") {
        return unknown_operation().await;
    }
    match serde_json::from_slice(&body) {
        Ok(request) => get_parameter(&api, &request),
        Err(problem) => error(false, StatusCode::BAD_REQUEST, "SerializationException", &problem.to_string()),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GetParameter {
    name: String,
    #[serde(default)]
    with_decryption: bool,
}

fn get_parameter(api: &Api, request: &GetParameter) -> Response {
    let parameters = api.parameters.lock();
    let Some(Stored { parameter, version }) = parameters.get(&request.name) else {
        // The real service gives no message with it.
        return (StatusCode::BAD_REQUEST, aws_json(&json!({"__type": "ParameterNotFound"}))).into_response();
    };
    let (kind, value) = match parameter.kind {
        Kind::Plain => ("String", parameter.value.clone()),
        Kind::Secure if request.with_decryption => ("SecureString", parameter.value.clone()),
        Kind::Secure => ("SecureString", "kms:AQICAHhfakedciphertextblobthatnobodycanread==".to_owned()),
    };
    aws_json(&json!({"Parameter": {
        "ARN": parameter_arn(&request.name),
        "DataType": "text",
        "LastModifiedDate": 1_767_225_600.0,
        "Name": request.name,
        "Type": kind,
        "Value": value,
        "Version": version,
    }}))
}

async fn describe_cluster(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Response {
    let clusters = api.clusters.lock();
    let Some(cluster) = clusters.get(&name) else {
        let message = format!("No cluster found for name: {name}.");
        return error(true, StatusCode::NOT_FOUND, "ResourceNotFoundException", &message);
    };
    Json(json!({"cluster": {
        "arn": cluster_arn(&name),
        "certificateAuthority": {"data": cluster.ca_data},
        "endpoint": cluster.endpoint,
        "name": name,
        "status": "ACTIVE",
        "version": "1.33",
    }}))
    .into_response()
}

async fn unknown_operation() -> Response {
    error(false, StatusCode::NOT_FOUND, "UnknownOperationException", "the lab does not know this operation")
}

/// EKS speaks REST, SSM does not; their errors differ in form.
fn is_rest(path: &str) -> bool {
    path != "/"
}

fn error(rest: bool, status: StatusCode, kind: &str, message: &str) -> Response {
    if rest {
        return (status, [("x-amzn-errortype", kind)], Json(json!({"message": message}))).into_response();
    }
    // SSM spells the field with a capital in this one error.
    let field = if kind == "AccessDeniedException" { "Message" } else { "message" };
    (status, aws_json(&json!({"__type": kind, field: message}))).into_response()
}

fn aws_json(body: &Value) -> Response {
    ([("content-type", "application/x-amz-json-1.1")], body.to_string()).into_response()
}

fn parameter_arn(name: &str) -> String {
    format!("arn:aws:ssm:{REGION}:{ACCOUNT}:parameter/{}", name.trim_start_matches('/'))
}

fn cluster_arn(name: &str) -> String {
    format!("arn:aws:eks:{REGION}:{ACCOUNT}:cluster/{name}")
}

struct AwsRole;

impl Role for AwsRole {
    fn call(&self, parts: &Parts, body: &[u8]) -> (Actor, Call) {
        if let Some(name) = parts.uri.path().strip_prefix("/clusters/") {
            return (Actor::Eks, Call::new("DescribeCluster", name));
        }
        let target = parts.headers.get(TARGET).and_then(|target| target.to_str().ok()).unwrap_or_default();
        let action = target.rsplit('.').next().unwrap_or_default();
        let name = serde_json::from_slice::<GetParameter>(body).map(|request| request.name).unwrap_or_default();
        (Actor::Ssm, Call::new(action, name))
    }

    fn error(&self, parts: &Parts, call: &Call, answer: &ErrorAnswer) -> Response {
        let rest = is_rest(parts.uri.path());
        let kind = answer.reason.unwrap_or("InternalServerError");
        let code = match kind {
            "AccessDeniedException" if rest => 403,
            "ThrottlingException" if rest => 429,
            _ => answer.code,
        };
        let message = match &answer.message {
            Some(message) => message.clone(),
            None if kind == "AccessDeniedException" => access_denied(rest, call),
            None => "We encountered an internal error. Please try again.".to_owned(),
        };
        let status = StatusCode::from_u16(code).expect("a fault has an HTTP status");
        error(rest, status, kind, &message)
    }
}

fn access_denied(rest: bool, Call { verb: action, target }: &Call) -> String {
    let (service, resource) = if rest { ("eks", cluster_arn(target)) } else { ("ssm", parameter_arn(target)) };
    format!(
        "User: arn:aws:sts::{ACCOUNT}:assumed-role/{ROLE}/{SESSION} is not authorized to perform: {service}:{action} on resource: \
         {resource} because no identity-based policy allows the {service}:{action} action"
    )
}

#[cfg(test)]
mod tests;
