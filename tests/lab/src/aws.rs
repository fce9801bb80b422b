//! The stand-in for two services of AWS: the parameter store of SSM, and `DescribeCluster` of EKS.
//!
//! One router serves both, as the SDK takes one endpoint URL for all services.

use std::{collections::BTreeMap, net::IpAddr, ops::Deref, sync::Arc};

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
    certificates::Certificates,
    credentials::Credentials,
    exchange::{Role, StandIn},
    fault::ErrorAnswer,
    server::{Server, Service},
    timeline::{Actor, Call, Timeline},
};

/// The region of the lab.
pub const REGION: &str = "us-east-1";
/// The account of the lab.
pub const ACCOUNT: &str = "111122223333";

/// In process.
pub(crate) const HOST: &str = "aws.lab";

const TARGET: &str = "x-amz-target";
/// The role of every function.
pub(crate) const ROLE: &str = "agent-scheduler";
/// Lambda names the session after the function.
pub(crate) const SESSION: &str = "agent-scheduler";

/// The stand-in for SSM and EKS. Clones are the same one.
#[derive(Clone)]
pub struct Aws {
    api: Arc<Api>,
    stand_in: StandIn,
    service: Service,
    /// Without and with TLS; none in process.
    servers: Option<Arc<[Server; 2]>>,
}

/// A parameter of the store.
pub struct Parameter {
    is_secure: bool,
    value: String,
}

impl Parameter {
    /// A `String`.
    pub fn string(value: impl Into<String>) -> Self {
        Self { is_secure: false, value: value.into() }
    }

    /// A `SecureString`: in the clear only with decryption.
    pub fn secure_string(value: impl Into<String>) -> Self {
        Self { is_secure: true, value: value.into() }
    }
}

struct Api {
    access_key_id: String,
    /// Name to value and version.
    parameters: Mutex<BTreeMap<String, (Parameter, u64)>>,
    /// Name to endpoint and certificate authority.
    clusters: Mutex<BTreeMap<String, (String, String)>>,
}

impl Aws {
    pub(crate) async fn start(
        ip: IpAddr,
        timeline: &Timeline,
        credentials: &Credentials,
        certificates: &Arc<Certificates>,
    ) -> Self {
        let aws = Self::new(timeline, credentials, certificates);
        let http = Server::listen(ip, None, aws.service.clone()).await;
        let https = Server::listen(ip, Some(certificates.public_server()), aws.service.clone()).await;
        Self { servers: Some(Arc::new([http, https])), ..aws }
    }

    pub(crate) fn new(timeline: &Timeline, credentials: &Credentials, certificates: &Arc<Certificates>) -> Self {
        let stand_in = StandIn::new(timeline, certificates);
        let api = Arc::new(Api {
            access_key_id: credentials.access_key_id.clone(),
            parameters: Mutex::default(),
            clusters: Mutex::default(),
        });
        let routes = Router::new()
            .route("/", post(call))
            .route("/clusters/{name}", get(describe_cluster))
            .fallback(unknown_operation)
            .layer(from_fn_with_state(Arc::clone(&api), authenticate))
            .with_state(Arc::clone(&api));
        let service = stand_in.service(Actor::Ssm, routes, AWS);
        Self { api, stand_in, service, servers: None }
    }

    /// Where it listens without TLS; what `AWS_ENDPOINT_URL` of a function is.
    pub fn url(&self) -> String {
        self.servers.as_ref().map_or_else(|| format!("http://{HOST}"), |servers| servers[0].url())
    }

    pub(crate) fn service(&self) -> &Service {
        &self.service
    }

    /// Where it listens with a certificate of the lab's authority.
    pub fn https_url(&self) -> String {
        self.servers.as_ref().map_or_else(|| format!("https://{HOST}"), |servers| servers[1].url())
    }

    /// Stores a parameter; one that is there gets the next version.
    pub fn put_parameter(&self, name: impl Into<String>, parameter: Parameter) {
        let mut parameters = self.api.parameters.lock();
        let name = name.into();
        let version = parameters.get(&name).map_or(1, |(_, version)| version + 1);
        parameters.insert(name, (parameter, version));
    }

    /// Removes a parameter.
    pub fn remove_parameter(&self, name: &str) {
        self.api.parameters.lock().remove(name);
    }

    /// Adds or replaces a cluster; `ca_data` is base64 of a PEM.
    pub fn put_cluster(&self, name: impl Into<String>, endpoint: impl Into<String>, ca_data: impl Into<String>) {
        self.api.clusters.lock().insert(name.into(), (endpoint.into(), ca_data.into()));
    }
}

impl Deref for Aws {
    type Target = StandIn;

    fn deref(&self) -> &StandIn {
        &self.stand_in
    }
}

/// Refuses a key that is not the lab's. The signature is not verified: the SDK makes it, not the function.
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
    let Some((parameter, version)) = parameters.get(&request.name) else {
        // The real service sends no message.
        return (StatusCode::BAD_REQUEST, aws_json(&json!({"__type": "ParameterNotFound"}))).into_response();
    };
    let is_encrypted = parameter.is_secure && !request.with_decryption;
    aws_json(&json!({"Parameter": {
        "ARN": parameter_arn(&request.name),
        "DataType": "text",
        "LastModifiedDate": 1_767_225_600.0,
        "Name": request.name,
        "Type": if parameter.is_secure { "SecureString" } else { "String" },
        "Value": if is_encrypted { "kms:AQICAHhfakedciphertextblob==" } else { &parameter.value },
        "Version": version,
    }}))
}

async fn describe_cluster(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Response {
    let clusters = api.clusters.lock();
    let Some((endpoint, ca_data)) = clusters.get(&name) else {
        let message = format!("No cluster found for name: {name}.");
        return error(true, StatusCode::NOT_FOUND, "ResourceNotFoundException", &message);
    };
    Json(json!({"cluster": {
        "arn": cluster_arn(&name),
        "certificateAuthority": {"data": ca_data},
        "endpoint": endpoint,
        "name": name,
        "status": "ACTIVE",
        "version": "1.33",
    }}))
    .into_response()
}

async fn unknown_operation() -> Response {
    error(false, StatusCode::NOT_FOUND, "UnknownOperationException", "the lab does not know this operation")
}

/// EKS is a REST API and SSM is not; their errors differ in format.
fn is_rest(path: &str) -> bool {
    path != "/"
}

fn error(rest: bool, status: StatusCode, kind: &str, message: &str) -> Response {
    if rest {
        return (status, [("x-amzn-errortype", kind)], Json(json!({"message": message}))).into_response();
    }
    // SSM capitalises the field in this error only.
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

const AWS: Role = Role { call: asked, error: injected };

fn asked(parts: &Parts, body: &[u8]) -> (Actor, Call) {
    if let Some(name) = parts.uri.path().strip_prefix("/clusters/") {
        return (Actor::Eks, Call::new("DescribeCluster", name));
    }
    let target = parts.headers.get(TARGET).and_then(|target| target.to_str().ok()).unwrap_or_default();
    let action = target.rsplit('.').next().unwrap_or_default();
    let name = serde_json::from_slice::<GetParameter>(body).map(|request| request.name).unwrap_or_default();
    (Actor::Ssm, Call::new(action, name))
}

fn injected(parts: &Parts, call: &Call, answer: &ErrorAnswer) -> Response {
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

fn access_denied(rest: bool, Call { verb: action, target }: &Call) -> String {
    let (service, resource) = if rest { ("eks", cluster_arn(target)) } else { ("ssm", parameter_arn(target)) };
    format!(
        "User: arn:aws:sts::{ACCOUNT}:assumed-role/{ROLE}/{SESSION} is not authorized to perform: {service}:{action} on resource: \
         {resource} because no identity-based policy allows the {service}:{action} action"
    )
}

#[cfg(test)]
mod tests;
