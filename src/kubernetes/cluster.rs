//! The EKS cluster: where its API server is, how the function proves who it is, and what the API server answers.

mod api_server;
mod token;

use aws_credential_types::Credentials;
use http::{Request, Uri, header, request};
use kube::core::Status;
use serde::Serialize;
use serde_json::Value;
use tokio::time::timeout_at;
use tower::BoxError;

use self::api_server::{Silence, Unsigned, WrongClock};
pub use self::{
    api_server::{connect, over},
    token::{Signer, token},
};
use crate::{
    aws::Tries,
    cause,
    config::{CertificateAuthority, Config},
    deadline::Deadline,
    excerpt::message,
};

/// The cluster that this function makes Jobs in.
#[derive(Clone)]
pub struct Cluster {
    client: kube::Client,
    name: String,
    namespace: String,
    endpoint: Uri,
}

/// What went wrong between us and the cluster.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// EKS was asked for endpoint and CA, and could not tell.
    #[error("cannot ask EKS for the endpoint of cluster {cluster:?}{hint}")]
    Describe {
        /// As configured.
        cluster: String,
        /// How to mend it, where that is known.
        hint: &'static str,
        /// What the SDK says.
        source: BoxError,
    },
    /// EKS knows the cluster, but it has no endpoint or CA that can be used; so it is while a cluster is being made.
    #[error(
        "EKS shows no usable endpoint and certificate authority for cluster {cluster:?} (status {status}); try again when it is ACTIVE"
    )]
    NotReady {
        /// As configured.
        cluster: String,
        /// CREATING, DELETING, …
        status: String,
    },
    /// TLS itself cannot be set up, or no token be signed, whatever the cluster.
    #[error("cannot make a client for the API server")]
    Client(#[source] BoxError),
    /// Whoever answers at the endpoint is not the API server that the CA vouches for.
    #[error(
        "the API server at {endpoint} shows a certificate that is not to be trusted; compare KUBERNETES_API_SERVER_ENDPOINT and \
         KUBERNETES_CERTIFICATE_AUTHORITY_DATA with what `aws eks describe-cluster --name {cluster}` shows"
    )]
    Certificate {
        /// As configured, or as EKS told.
        endpoint: Uri,
        /// As configured.
        cluster: String,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// No connection, or none that lasted until the answer, however often it was tried.
    #[error(
        "cannot reach the API server at {endpoint} (check the endpoint, and that the function's network leads there)"
    )]
    Unreachable {
        /// As configured, or as EKS told.
        endpoint: Uri,
        /// How it failed.
        source: BoxError,
    },
    /// Connected, and no answer in time, however often it was tried.
    #[error("the API server at {endpoint} did not answer in the time that there was")]
    Timeout {
        /// As configured, or as EKS told.
        endpoint: Uri,
    },
    /// An answer that is no answer of an API server.
    #[error("the API server at {endpoint} answered something that cannot be read")]
    Garbage {
        /// As configured, or as EKS told.
        endpoint: Uri,
        /// What it is not.
        source: Box<kube::Error>,
    },
    /// 429 and 5xx, however often it was tried: it cannot serve us now.
    #[error("the API server cannot serve the request now: {code} {message}")]
    Overloaded {
        /// HTTP status.
        code: u16,
        /// The API server's words.
        message: String,
    },
    /// 401, also with a fresh token.
    #[error(
        "the API server of cluster {cluster:?} does not accept the function's EKS token (401); map the function's role to \
         {SUBJECT} with an access entry or in aws-auth, and check that KUBERNETES_CLUSTER_IDENTIFIER is the cluster's name \
         and that the clock is right"
    )]
    Unauthorized {
        /// As configured.
        cluster: String,
    },
    /// 401, and the function's clock is wrong, which a token's time comes from.
    #[error(
        "the API server of cluster {cluster:?} does not accept the function's EKS token (401), and {skew}; a token is good for \
         15 min by the right clock"
    )]
    WrongClock {
        /// As configured.
        cluster: String,
        /// How wrong it is.
        skew: String,
    },
    /// 403 by RBAC.
    #[error(
        "the function lacks a permission in the cluster: {message}; grant it with \
         `kubectl apply -f buildkite-role.yaml --namespace {namespace}`, after `kubectl create namespace {namespace}` if that is \
         not there, and with the Secret's name in the file if AgentTokenSecretName is not the default"
    )]
    Forbidden {
        /// The API server's words, which name verb and resource.
        message: String,
        /// As configured.
        namespace: String,
    },
    /// 404 for the namespace.
    #[error(
        "the cluster has no namespace {namespace:?}; make it with `kubectl create namespace {namespace}`, or set KubernetesNamespace"
    )]
    NoNamespace {
        /// As configured.
        namespace: String,
    },
    /// Any other refusal, which a repetition would meet again.
    #[error("the API server rejects it: {} {}", .0.code, .0.message)]
    Rejected(Box<Status>),
}

/// The user, and the group, that the function's role is mapped to.
pub const SUBJECT: &str = "buildkite-on-demand-agent-scheduler";

impl Error {
    /// The kind of failure: [`crate::scheduler::Error::kind`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Describe { .. }
            | Self::NotReady { .. }
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

    /// A try may have been carried out all the same; which of them is told here says nothing of those before.
    pub fn is_uncertain(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Timeout { .. } | Self::Garbage { .. } | Self::Overloaded { .. })
    }

    /// The API server already has an object of that name.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Rejected(status) if status.is_already_exists())
    }

    /// Another field manager owns a field that was to be applied.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Rejected(status) if status.is_conflict() && !status.is_already_exists())
    }
}

impl Cluster {
    /// Takes endpoint and CA from the settings, and asks EKS for what is not there.
    pub async fn find(
        config: &Config,
        eks: &aws_sdk_eks::Client,
        credentials: &Credentials,
        deadline: Deadline,
    ) -> Result<Self, Error> {
        let (endpoint, certificate_authority) = match (&config.api_server_endpoint, &config.certificate_authority) {
            (Some(endpoint), Some(certificate_authority)) => (endpoint.clone(), certificate_authority.clone()),
            (endpoint, certificate_authority) => {
                let described = describe(eks, &config.cluster, deadline).await?;
                (endpoint.clone().unwrap_or(described.0), certificate_authority.clone().unwrap_or(described.1))
            }
        };
        let signer = Signer::new(credentials.clone(), &config.region, &config.cluster);
        let client = connect(&endpoint, certificate_authority, signer).map_err(Error::Client)?;
        Ok(Self::new(client, endpoint, config))
    }

    /// A cluster behind any client, such as a test's.
    pub fn new(client: kube::Client, endpoint: Uri, config: &Config) -> Self {
        Self { client, name: config.cluster.clone(), namespace: config.namespace.clone(), endpoint }
    }

    /// Where Jobs and Secret live.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Reads an object.
    pub async fn get(&self, path: &str, deadline: Deadline) -> Result<Value, Error> {
        let text = self.request(Request::get(path), Vec::new(), deadline).await?;
        serde_json::from_str(&text).map_err(|error| self.explain(kube::Error::SerdeError(error)))
    }

    /// Sends a JSON body. Of the answer only the status counts, so the API server is asked to leave the object out of it.
    pub async fn send_json(
        &self,
        request: request::Builder,
        body: &impl Serialize,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let request = request
            .header(header::ACCEPT, "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json");
        let body = serde_json::to_vec(body).map_err(|error| self.explain(kube::Error::SerdeError(error)))?;
        self.request(request, body, deadline).await.map(drop)
    }

    async fn request(&self, request: request::Builder, body: Vec<u8>, deadline: Deadline) -> Result<String, Error> {
        if deadline.left().is_zero() {
            return Err(Error::Timeout { endpoint: self.endpoint.clone() });
        }
        let request = request.extension(deadline).body(body);
        let request = request.map_err(|error| self.explain(kube::Error::HttpError(error)))?;
        match timeout_at(deadline.instant(), self.client.request_text(request)).await {
            Ok(answer) => answer.map_err(|error| self.explain(error)),
            Err(_) => Err(Error::Timeout { endpoint: self.endpoint.clone() }),
        }
    }

    fn explain(&self, error: kube::Error) -> Error {
        let endpoint = self.endpoint.clone();
        match error {
            kube::Error::Api(status) => self.explain_status(status),
            kube::Error::Service(error) => self.explain_failure(error),
            kube::Error::HyperError(error) => self.explain_failure(error.into()),
            error => Error::Garbage { endpoint, source: Box::new(error) },
        }
    }

    fn explain_failure(&self, error: BoxError) -> Error {
        let endpoint = self.endpoint.clone();
        if let Some(source @ rustls::Error::InvalidCertificate(_)) = cause(&*error) {
            Error::Certificate { endpoint, cluster: self.name.clone(), source: source.clone() }
        } else if let Some(skew) = cause::<WrongClock>(&*error) {
            Error::WrongClock { cluster: self.name.clone(), skew: skew.to_string() }
        } else if cause::<Unsigned>(&*error).is_some() {
            Error::Client(error)
        } else if cause::<Silence>(&*error).is_some() {
            Error::Timeout { endpoint }
        } else {
            Error::Unreachable { endpoint, source: error }
        }
    }

    fn explain_status(&self, mut status: Box<Status>) -> Error {
        // Whatever stands in front of the API server may answer a page, which kube then takes for the message.
        status.message = message(&status.message).into_owned();
        match status.code {
            // JSON of something else, which kube takes for a status with nothing in it.
            0 => Error::Garbage { endpoint: self.endpoint.clone(), source: Box::new(kube::Error::Api(status)) },
            401 => Error::Unauthorized { cluster: self.name.clone() },
            // A quota and an admission webhook answer 403 too, and no role mends those.
            403 if status.message.contains(": User \"") && status.message.contains("\" cannot ") => {
                Error::Forbidden { message: status.message, namespace: self.namespace.clone() }
            }
            404 if status.message.starts_with("namespaces ") => {
                Error::NoNamespace { namespace: self.namespace.clone() }
            }
            code @ (429 | 500..) => Error::Overloaded { code, message: status.message },
            _ => Error::Rejected(status),
        }
    }
}

/// Asks EKS for the endpoint and the CA of a cluster.
async fn describe(
    eks: &aws_sdk_eks::Client,
    cluster: &str,
    deadline: Deadline,
) -> Result<(Uri, CertificateAuthority), Error> {
    let tries = Tries::until(deadline);
    let config = aws_sdk_eks::config::Builder::new().timeout_config(tries.timeouts()).interceptor(tries.clone());
    let request = eks.describe_cluster().name(cluster).customize().config_override(config);
    let described = tries.answer(request.send()).await.map_err(|failure| Error::Describe {
        cluster: cluster.to_owned(),
        hint: match failure.code.as_deref() {
            Some("ResourceNotFoundException") => {
                "; KUBERNETES_CLUSTER_IDENTIFIER must be the name of a cluster in the function's region"
            }
            Some("AccessDeniedException") => {
                "; allow the function eks:DescribeCluster, or set KUBERNETES_API_SERVER_ENDPOINT and \
                 KUBERNETES_CERTIFICATE_AUTHORITY_DATA"
            }
            _ => "",
        },
        source: failure.source,
    })?;
    let found = described.cluster();
    let endpoint = found.and_then(|cluster| cluster.endpoint()?.parse().ok());
    let certificate_authority = found.and_then(|cluster| cluster.certificate_authority()?.data()?.parse().ok());
    endpoint.zip(certificate_authority).ok_or_else(|| Error::NotReady {
        cluster: cluster.to_owned(),
        status: found.and_then(|cluster| Some(cluster.status()?.to_string())).unwrap_or_else(|| "unknown".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{Response, StatusCode};
    use kube::client::Body;
    use tower::service_fn;

    use super::*;
    use crate::{chain, config::fixtures::config};

    /// Answered by whatever stands in front of the API server.
    #[tokio::test]
    async fn json_that_is_no_status_is_no_refusal() {
        for status in [StatusCode::UNAUTHORIZED, StatusCode::SERVICE_UNAVAILABLE] {
            let service = service_fn(move |_: Request<Body>| async move {
                let body = Body::from(br#"{"error": "upstream"}"#.to_vec());
                Ok::<_, BoxError>(Response::builder().status(status).body(body).unwrap())
            });
            let client = kube::Client::new(service, "");
            let cluster = Cluster::new(client, Uri::from_static("https://example"), &config(&[]));
            let error = cluster.get("/version", Deadline::after(Duration::from_secs(10))).await.unwrap_err();
            assert_eq!(error.kind(), "ClusterUnavailable");
            assert!(
                chain(&error).starts_with("the API server at https://example/ answered something that cannot be read")
            );
        }
    }
}
