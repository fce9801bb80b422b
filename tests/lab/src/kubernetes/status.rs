//! Errors of the API server: `metav1.Status` bodies as the real one sends them.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::apply::Conflict;
use crate::fault::ErrorAnswer;

/// A kind of object, with the names that messages use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Resource {
    pub(super) group: &'static str,
    pub(super) plural: &'static str,
    pub(super) kind: &'static str,
}

pub(super) const JOBS: Resource = Resource { group: "batch", plural: "jobs", kind: "Job" };
pub(super) const SECRETS: Resource = Resource { group: "", plural: "secrets", kind: "Secret" };
pub(super) const POD_TEMPLATES: Resource = Resource { group: "", plural: "podtemplates", kind: "PodTemplate" };
pub(super) const PODS: Resource = Resource { group: "", plural: "pods", kind: "Pod" };
pub(super) const EVENTS: Resource = Resource { group: "", plural: "events", kind: "Event" };
pub(super) const SERVICE_ACCOUNTS: Resource = Resource { group: "", plural: "serviceaccounts", kind: "ServiceAccount" };
pub(super) const PRIORITY_CLASSES: Resource =
    Resource { group: "scheduling.k8s.io", plural: "priorityclasses", kind: "PriorityClass" };
pub(super) const NAMESPACES: Resource = Resource { group: "", plural: "namespaces", kind: "Namespace" };

impl Resource {
    /// `jobs.batch`, or `secrets` where the group has no name.
    fn qualified(self, name: &str) -> String {
        if self.group.is_empty() { name.to_owned() } else { format!("{name}.{}", self.group) }
    }
}

/// A field that is required and missing.
pub(super) struct Cause {
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
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>, details: Option<Value>) -> Self {
        Self { code, reason, message: message.into(), details }
    }

    /// The real server does not say why.
    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized", None)
    }

    /// `name` is empty where the authoriser does not know it, as in a plain create.
    pub(super) fn forbidden(user: &str, verb: &str, resource: Resource, namespace: &str, name: &str) -> Self {
        let Resource { group, plural, .. } = resource;
        let object = resource.qualified(plural);
        let object = if name.is_empty() { object } else { format!("{object} \"{name}\"") };
        let message = format!(
            "{object} is forbidden: User \"{user}\" cannot {verb} resource \"{plural}\" in API group \"{group}\" in \
             the namespace \"{namespace}\""
        );
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message, Some(details(resource, plural, name)))
    }

    pub(super) fn not_found(resource: Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.qualified(resource.plural));
        Self::new(StatusCode::NOT_FOUND, "NotFound", message, Some(details(resource, resource.plural, name)))
    }

    /// The path is not served.
    pub(super) fn no_such_path() -> Self {
        let message = "the server could not find the requested resource";
        Self::new(StatusCode::NOT_FOUND, "NotFound", message, Some(json!({})))
    }

    pub(super) fn already_exists(resource: Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.qualified(resource.plural));
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message, Some(details(resource, resource.plural, name)))
    }

    /// The object that was to be deleted is another by now.
    pub(super) fn other_uid(resource: Resource, name: &str, wanted: &str, own: &str) -> Self {
        let object = resource.qualified(resource.kind);
        let message = format!(
            "Operation cannot be fulfilled on {object} \"{name}\": the UID in the precondition ({wanted}) does not match the UID in \
             record ({own}). The object might have been deleted and then recreated"
        );
        Self::new(StatusCode::CONFLICT, "Conflict", message, Some(details(resource, resource.plural, name)))
    }

    /// A list cannot go on where its last page ended.
    pub(super) fn expired() -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result.";
        Self::new(StatusCode::GONE, "Expired", message, None)
    }

    /// Other managers own fields that were applied with another value.
    pub(super) fn conflict(conflicts: &[Conflict]) -> Self {
        let cause = |Conflict { manager, field }: &Conflict| json!({"reason": "FieldManagerConflict", "message": format!("conflict with \"{manager}\""), "field": field});
        let causes: Vec<_> = conflicts.iter().map(cause).collect();
        Self::new(StatusCode::CONFLICT, "Conflict", conflict_message(conflicts), Some(json!({"causes": causes})))
    }

    pub(super) fn invalid(resource: Resource, name: &str, causes: &[Cause]) -> Self {
        let problems: Vec<_> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let problems =
            if let [problem] = &problems[..] { problem.clone() } else { format!("[{}]", problems.join(", ")) };
        let message = format!("{} \"{name}\" is invalid: {problems}", resource.qualified(resource.kind));
        let mut details = details(resource, resource.kind, name);
        details["causes"] = causes
            .iter()
            .map(|cause| json!({"reason": "FieldValueRequired", "message": cause.message, "field": cause.field}))
            .collect();
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message, Some(details))
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message, None)
    }

    pub(super) fn unsupported_media_type(wanted: &str) -> Self {
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {wanted}");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message, None)
    }

    /// An injected error; what it leaves out follows from its status.
    pub(super) fn injected(error: &ErrorAnswer) -> Self {
        let (reason, message) = match error.code {
            401 => ("Unauthorized", "Unauthorized"),
            403 => ("Forbidden", "forbidden"),
            404 => ("NotFound", "the server could not find the requested resource"),
            409 => ("Conflict", "the object has been modified; please apply your changes to the latest version"),
            422 => ("Invalid", "the object is invalid"),
            429 => ("TooManyRequests", "Too many requests, please try again later."),
            503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
            504 => ("Timeout", "the server was unable to return a response in the time allotted"),
            _ => ("InternalError", "Internal error occurred: injected"),
        };
        let code = StatusCode::from_u16(error.code).expect("a fault has an HTTP status");
        let message = error.message.as_deref().unwrap_or(message);
        // The message of an invalid object repeats its cause: `Job.batch "a" is invalid: spec.b: Required value`.
        let cause = message.split_once(" is invalid: ").and_then(|(_, cause)| cause.split_once(": "));
        let causes = cause.map(|(field, problem)| json!({"causes": [{"field": field, "message": problem}]}));
        let pause = error.retry_after.map(|time| json!({"retryAfterSeconds": time.as_secs()}));
        let details = causes.or(pause);
        Self::new(code, error.reason.unwrap_or(reason), message, details)
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

/// As `getConflictMessage` of the API server: one conflict in a line, several grouped by manager.
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
