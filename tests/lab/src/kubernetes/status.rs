//! Errors of the API server: metav1.Status bodies in the words of the real one.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::apply::Conflict;
use crate::fault::ErrorAnswer;

/// A kind of object, by all the names that messages use for it.
#[derive(Clone, Copy)]
pub(super) struct Resource {
    pub(super) group: &'static str,
    pub(super) plural: &'static str,
    pub(super) kind: &'static str,
}

pub(super) const JOBS: Resource = Resource { group: "batch", plural: "jobs", kind: "Job" };
pub(super) const SECRETS: Resource = Resource { group: "", plural: "secrets", kind: "Secret" };
pub(super) const POD_TEMPLATES: Resource = Resource { group: "", plural: "podtemplates", kind: "PodTemplate" };
pub(super) const NAMESPACES: Resource = Resource { group: "", plural: "namespaces", kind: "Namespace" };

impl Resource {
    /// `jobs.batch`, or `secrets` where the group has no name.
    fn qualified(self, name: &str) -> String {
        if self.group.is_empty() { name.to_owned() } else { format!("{name}.{}", self.group) }
    }
}

/// What is wrong with one field of an object.
pub(super) struct Cause {
    pub(super) reason: &'static str,
    pub(super) field: &'static str,
    pub(super) message: &'static str,
}

/// An error answer.
pub(super) struct Status {
    code: StatusCode,
    reason: &'static str,
    message: String,
    details: Option<Value>,
}

impl Status {
    /// The real server gives no hint why.
    pub(super) fn unauthorized() -> Self {
        Self {
            code: StatusCode::UNAUTHORIZED,
            reason: "Unauthorized",
            message: "Unauthorized".to_owned(),
            details: None,
        }
    }

    /// `name` is empty where the authoriser does not know it, as in a plain create.
    pub(super) fn forbidden(user: &str, verb: &str, resource: Resource, namespace: &str, name: &str) -> Self {
        let Resource { group, plural, .. } = resource;
        let object = resource.qualified(plural);
        let object = if name.is_empty() { object } else { format!("{object} \"{name}\"") };
        Self {
            code: StatusCode::FORBIDDEN,
            reason: "Forbidden",
            message: format!(
                "{object} is forbidden: User \"{user}\" cannot {verb} resource \"{plural}\" in API group \"{group}\" in \
                 the namespace \"{namespace}\""
            ),
            details: Some(details(resource, plural, name)),
        }
    }

    pub(super) fn not_found(resource: Resource, name: &str) -> Self {
        Self {
            code: StatusCode::NOT_FOUND,
            reason: "NotFound",
            message: format!("{} \"{name}\" not found", resource.qualified(resource.plural)),
            details: Some(details(resource, resource.plural, name)),
        }
    }

    /// The path leads nowhere.
    pub(super) fn no_such_path() -> Self {
        Self {
            code: StatusCode::NOT_FOUND,
            reason: "NotFound",
            message: "the server could not find the requested resource".to_owned(),
            details: Some(json!({})),
        }
    }

    pub(super) fn already_exists(resource: Resource, name: &str) -> Self {
        Self {
            code: StatusCode::CONFLICT,
            reason: "AlreadyExists",
            message: format!("{} \"{name}\" already exists", resource.qualified(resource.plural)),
            details: Some(details(resource, resource.plural, name)),
        }
    }

    /// Other managers own fields that were applied with another value.
    pub(super) fn conflict(conflicts: &[Conflict]) -> Self {
        let causes: Vec<Value> = conflicts
            .iter()
            .map(|conflict| {
                json!({
                    "reason": "FieldManagerConflict",
                    "message": format!("conflict with \"{}\"", conflict.manager),
                    "field": conflict.field,
                })
            })
            .collect();
        Self {
            code: StatusCode::CONFLICT,
            reason: "Conflict",
            message: conflict_message(conflicts),
            details: Some(json!({"causes": causes})),
        }
    }

    pub(super) fn invalid(resource: Resource, name: &str, causes: &[Cause]) -> Self {
        let problems: Vec<String> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let problems = if let [problem] = problems.as_slice() { problem.clone() } else { list(&problems) };
        let causes: Vec<Value> = causes
            .iter()
            .map(|cause| json!({"reason": cause.reason, "message": cause.message, "field": cause.field}))
            .collect();
        let mut details = details(resource, resource.kind, name);
        details["causes"] = causes.into();
        Self {
            code: StatusCode::UNPROCESSABLE_ENTITY,
            reason: "Invalid",
            message: format!("{} \"{name}\" is invalid: {problems}", resource.qualified(resource.kind)),
            details: Some(details),
        }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self { code: StatusCode::BAD_REQUEST, reason: "BadRequest", message: message.into(), details: None }
    }

    pub(super) fn unsupported_media_type(wanted: &str) -> Self {
        Self {
            code: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            reason: "UnsupportedMediaType",
            message: format!(
                "the body of the request was in an unknown format - accepted media types include: {wanted}"
            ),
            details: None,
        }
    }

    /// An error on purpose; what it leaves open is filled in from its status.
    pub(super) fn planned(error: &ErrorAnswer) -> Self {
        let (reason, message) = match error.code {
            401 => ("Unauthorized", "Unauthorized"),
            403 => ("Forbidden", "forbidden"),
            404 => ("NotFound", "the server could not find the requested resource"),
            409 => ("Conflict", "the object has been modified; please apply your changes to the latest version"),
            422 => ("Invalid", "the object is invalid"),
            429 => ("TooManyRequests", "Too many requests, please try again later."),
            503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
            504 => ("Timeout", "the server was unable to return a response in the time allotted"),
            _ => ("InternalError", "Internal error occurred: on purpose"),
        };
        Self {
            code: StatusCode::from_u16(error.code).expect("a fault has an HTTP status"),
            reason: error.reason.unwrap_or(reason),
            message: error.message.clone().unwrap_or_else(|| message.to_owned()),
            details: error.retry_after.map(|time| json!({"retryAfterSeconds": time.as_secs()})),
        }
    }
}

impl IntoResponse for Status {
    fn into_response(self) -> Response {
        let mut body = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code.as_u16(),
        });
        if let Some(details) = self.details {
            body["details"] = details;
        }
        (self.code, Json(body)).into_response()
    }
}

fn details(resource: Resource, kind: &str, name: &str) -> Value {
    let mut details = json!({"kind": kind});
    for (field, value) in [("name", name), ("group", resource.group)] {
        if !value.is_empty() {
            details[field] = value.into();
        }
    }
    details
}

fn list(problems: &[String]) -> String {
    format!("[{}]", problems.join(", "))
}

/// As `getConflictMessage` of the API server words it: one conflict in a line, several under the manager that has them.
fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [conflict] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with \"{}\": {}", conflict.manager, conflict.field);
    }
    let mut lines = Vec::new();
    let mut manager = None;
    for conflict in conflicts {
        if manager != Some(&conflict.manager) {
            lines.push(format!("conflicts with \"{}\":", conflict.manager));
            manager = Some(&conflict.manager);
        }
        lines.push(format!("- {}", conflict.field));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}
