//! The form of a request and of its answer, the same in both APIs.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::AUTHORIZATION, request::Parts},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::{agents, organization::Organization, stacks};

pub(super) struct Request<'a> {
    pub(super) parts: &'a Parts,
    pub(super) body: &'a [u8],
    pub(super) now: Timestamp,
}

/// Status and body; `null` is no body.
pub(super) type Answer = Result<(u16, Value), Refusal>;

pub(super) struct Refusal {
    status: u16,
    message: String,
    /// The documentation does not allow the request.
    is_violation: bool,
}

/// Scope and limit of a rate limit, and the requests of this second with the new one.
pub(super) type Usage = (&'static str, usize, usize);

pub(super) fn refusal(status: u16, message: impl Into<String>) -> Refusal {
    Refusal { status, message: message.into(), is_violation: false }
}

pub(super) fn violation(status: u16, message: impl Into<String>) -> Refusal {
    Refusal { is_violation: true, ..refusal(status, message) }
}

/// A violation unless the condition holds.
pub(super) fn require(condition: bool, status: u16, message: &str) -> Result<(), Refusal> {
    condition.then_some(()).ok_or_else(|| violation(status, message))
}

impl Request<'_> {
    /// What follows the scheme `Token`.
    pub(super) fn token(&self) -> Option<&str> {
        self.parts.headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Token ")
    }

    pub(super) fn json(&self) -> Result<Value, Refusal> {
        serde_json::from_slice(self.body).map_err(|problem| violation(400, problem.to_string()))
    }
}

pub(super) fn serve(organization: &mut Organization, parts: &Parts, body: &[u8]) -> Response {
    let (mut usage, now) = (None, organization.now());
    let answer = path(parts.uri.path()).and_then(|path| {
        let (request, path) = (Request { parts, body, now }, path.iter().map(String::as_str).collect::<Vec<_>>());
        match path[0] {
            "stacks" | "token" => stacks::answer(organization, &request, &path, &mut usage),
            _ => agents::answer(organization, &request, &path),
        }
    });
    let (status, mut body) = answer.unwrap_or_else(|Refusal { status, message, is_violation }| {
        if is_violation {
            organization.violations.push(format!("{} {}: {message}", parts.method, parts.uri));
        }
        (status, json!({"message": message}))
    });
    let Some((scope, limit, current)) = usage else { return response(status, body) };
    if status == 429 {
        (body["scope"], body["limit"]) = (scope.into(), limit.into());
        (body["current"], body["reset"]) = (current.into(), 1.into());
    }
    let mut response = response(status, body);
    let headers = response.headers_mut();
    headers.insert("ratelimit-scope", HeaderValue::from_static(scope));
    headers.insert("ratelimit-limit", limit.into());
    headers.insert("ratelimit-remaining", limit.saturating_sub(current).into());
    headers.insert("ratelimit-reset", 1.into());
    response
}

/// The decoded segments after `/v3/`; the real service takes no `.` but as `%2E`.
fn path(path: &str) -> Result<Vec<String>, Refusal> {
    if path.starts_with("/agentedge.") {
        return Err(refusal(404, "no streaming pings; an agent falls back to polling"));
    }
    let rest = path.strip_prefix("/v3/").ok_or_else(|| violation(404, "the path begins with /v3/"))?;
    let is_encoded = rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_~%/".contains(&byte));
    require(is_encoded, 404, "a path segment is not percent-encoded")?;
    Ok(rest.split('/').map(|segment| percent_decode_str(segment).decode_utf8_lossy().into_owned()).collect())
}

pub(super) fn response(status: u16, body: Value) -> Response {
    let status = StatusCode::from_u16(status).expect("an HTTP status");
    if body.is_null() { status.into_response() } else { (status, Json(body)).into_response() }
}
