//! What went wrong between us and the API server, in words that name the correction.

use bytes::Bytes;
use http::{Response, Uri};
use kube::core::Status;
use tower::BoxError;

use super::{
    client::{Unsigned, WrongClock, is_other_uid, manager_conflict},
    cluster::Cluster,
};
use crate::{aws::eks, cause, https::NoAnswer, text::message};

/// The user, and the group, that the function's role is mapped to.
pub const SUBJECT: &str = "buildkite-on-demand-agent-scheduler";

/// Why a request to the cluster failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text shows what the fields are")]
pub enum Error {
    /// Endpoint and CA are not known.
    #[error(transparent)]
    Eks(#[from] eks::Error),
    /// TLS cannot be set up, no token be signed, or no request be built, whatever the cluster.
    #[error("cannot build a request to the API server")]
    Client(#[source] BoxError),
    /// The CA does not vouch for the server that answers at the endpoint.
    #[error(
        "the API server at {endpoint} shows a certificate that is not trusted; compare KubernetesApiServerEndpoint and \
         KubernetesCertificateAuthorityData with the output of `aws eks describe-cluster --name {cluster}`"
    )]
    Certificate { endpoint: Uri, cluster: String, source: Box<rustls::Error> },
    /// No connection, or none that lasted until the answer, in all attempts.
    #[error(
        "cannot reach the API server at {endpoint} (check the endpoint, and that the function's network leads there)"
    )]
    Unreachable { endpoint: Uri, source: BoxError },
    /// Connected, and no answer in time, in all attempts.
    #[error("the API server at {endpoint} did not answer before the deadline")]
    Timeout { endpoint: Uri },
    /// Not an answer of an API server.
    #[error("the answer of the API server at {endpoint} cannot be read")]
    Garbage { endpoint: Uri, source: BoxError },
    /// 429 and 5xx in all attempts.
    #[error("the API server cannot serve the request now: {code} {message}")]
    Overloaded { code: u16, message: String },
    /// 401, also with a new token.
    #[error(
        "the API server of cluster {cluster:?} does not accept the function's EKS token (401); map the function's role with \
         `connect STACK`, or by hand to {SUBJECT} with an access entry or in aws-auth, and check that KubernetesClusterIdentifier is \
         the cluster's name and that the clock is right"
    )]
    Unauthorized { cluster: String },
    /// 401, and the function's clock, which dates the token, is wrong.
    #[error(
        "the API server of cluster {cluster:?} does not accept the function's EKS token (401), and {skew}; a token is valid for \
         15 min by the right clock"
    )]
    WrongClock { cluster: String, skew: String },
    /// 403 by RBAC.
    #[error(
        "the function lacks a permission in the cluster: {message}; grant it with `connect STACK`, or with \
         `kubectl apply -f buildkite-role.yaml --namespace {namespace} --selector {selector}`, after `kubectl create namespace {namespace}` if there is \
         no such namespace, and with the Secret's name in the file if AgentTokenSecretName is not the default"
    )]
    Forbidden { message: String, namespace: String, selector: &'static str },
    /// 404 for the namespace.
    #[error(
        "the cluster has no namespace {namespace:?}; create it with `kubectl create namespace {namespace}`, or set KubernetesNamespace"
    )]
    NoNamespace { namespace: String },
    /// Any other refusal, which a repetition would meet again.
    #[error("the API server rejects it: {} {}", .0.code, .0.message)]
    Rejected(Box<Status>),
}

impl Error {
    /// The type of the failure: [`crate::scheduler::Error::kind`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Eks(_)
            | Self::Client(_)
            | Self::Certificate { .. }
            | Self::Unreachable { .. }
            | Self::Garbage { .. }
            | Self::Overloaded { .. } => "ClusterUnavailable",
            Self::Timeout { .. } => "Timeout",
            Self::Unauthorized { .. } | Self::WrongClock { .. } => "Unauthorized",
            Self::Forbidden { .. } => "Forbidden",
            Self::NoNamespace { .. } | Self::Rejected(_) => "RejectedByApiServer",
        }
    }

    /// An attempt may have been carried out all the same; this error says nothing of the attempts before the last one.
    pub fn is_uncertain(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Timeout { .. } | Self::Garbage { .. } | Self::Overloaded { .. })
    }

    /// The API server already has an object of that name.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Rejected(status) if status.is_already_exists())
    }

    /// There is no such object.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Rejected(status) if status.code == 404)
    }

    /// The object that was to be deleted is gone, and another one has its name.
    pub fn is_other_uid(&self) -> bool {
        matches!(self, Self::Rejected(status) if is_other_uid(status))
    }

    /// Another field manager owns a field that was to be applied: in the words of the API server, which name it.
    pub fn manager_conflict(&self) -> Option<&str> {
        match self {
            Self::Rejected(status) => manager_conflict(status),
            _ => None,
        }
    }

    /// The fields that the API server refuses, each with its problem.
    pub fn refused_fields(&self) -> impl Iterator<Item = (&str, &str)> {
        let status = match self {
            Self::Rejected(status) if matches!(status.code, 400 | 422) => status.details.as_ref(),
            _ => None,
        };
        let causes = status.into_iter().flat_map(|details| &details.causes);
        causes.map(|cause| (&*cause.field, &*cause.message))
    }

    /// The server at the endpoint is not the cluster's API server, or nothing answers there.
    pub fn is_wrong_endpoint(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Certificate { .. })
    }
}

/// Which objects of `buildkite-role.yaml` are for a stack.
pub fn role_selector(job_tokens: bool) -> &'static str {
    if job_tokens {
        "agent-scheduler.buildkite.com/job-tokens!=false"
    } else {
        "agent-scheduler.buildkite.com/job-tokens!=true"
    }
}

impl Cluster {
    pub(super) fn explain_failure(&self, error: BoxError) -> Error {
        let endpoint = self.endpoint().clone();
        if let Some(source @ rustls::Error::InvalidCertificate(_)) = cause(&*error) {
            Error::Certificate { endpoint, cluster: self.name.clone(), source: Box::new(source.clone()) }
        } else if let Some(skew) = cause::<WrongClock>(&*error) {
            Error::WrongClock { cluster: self.name.clone(), skew: skew.to_string() }
        } else if cause::<Unsigned>(&*error).is_some() {
            Error::Client(error)
        } else if cause::<NoAnswer>(&*error).is_some() {
            Error::Timeout { endpoint }
        } else {
            Error::Unreachable { endpoint, source: error }
        }
    }

    pub(super) fn explain_refusal(&self, response: &Response<Bytes>) -> Error {
        // A proxy before the API server may answer a page.
        let page = || {
            let text = String::from_utf8_lossy(response.body());
            Status::failure(text.trim(), "").with_code(response.status().as_u16())
        };
        let mut status: Status = serde_json::from_slice(response.body()).unwrap_or_else(|_| page());
        status.message = message(&status.message).into_owned();
        match status.code {
            0 => {
                let source = format!("{} with JSON that is not a Status", response.status());
                Error::Garbage { endpoint: self.endpoint().clone(), source: source.into() }
            }
            401 => Error::Unauthorized { cluster: self.name.clone() },
            // A quota and an admission webhook answer 403 too, and no role corrects those.
            403 if status.message.contains(": User \"") && status.message.contains("\" cannot ") => {
                let (message, namespace) = (status.message, self.namespace.clone());
                Error::Forbidden { message, namespace, selector: self.role_selector }
            }
            404 if status.message.starts_with("namespaces ") => {
                Error::NoNamespace { namespace: self.namespace.clone() }
            }
            code @ (429 | 500..) => Error::Overloaded { code, message: status.message },
            _ => Error::Rejected(Box::new(status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;
    use serde_json::json;

    use crate::{deadline::Deadline, kubernetes::fake::ApiServer, text::chain};

    #[tokio::test(start_paused = true)]
    async fn the_fields_of_an_invalid_object_are_named_and_those_of_another_refusal_are_not() {
        for (code, expected) in [(422, 1), (400, 1), (403, 0), (409, 0)] {
            let causes = json!([{"reason": "FieldValueInvalid", "message": "Invalid value", "field": "spec.a"}]);
            let status = json!({"kind": "Status", "status": "Failure", "code": code, "details": {"causes": causes}});
            let cluster = ApiServer::answering(StatusCode::from_u16(code).unwrap(), status).cluster();
            let error = cluster.pod_templates(Deadline::after(Duration::from_secs(1))).await.unwrap_err();
            let fields: Vec<_> = error.refused_fields().collect();
            assert_eq!(fields, vec![("spec.a", "Invalid value"); expected], "{error}");
        }
    }

    /// The answer of a proxy before the API server.
    #[tokio::test(start_paused = true)]
    async fn json_that_is_not_a_status_is_not_a_refusal() {
        for status in [StatusCode::UNAUTHORIZED, StatusCode::SERVICE_UNAVAILABLE] {
            let cluster = ApiServer::answering(status, json!({"error": "upstream"})).cluster();
            let error = cluster.pod_templates(Deadline::after(Duration::from_secs(10))).await.unwrap_err();
            assert_eq!(error.kind(), "ClusterUnavailable");
            assert!(chain(&error).starts_with("the answer of the API server at https://example/ cannot be read"));
        }
    }
}
