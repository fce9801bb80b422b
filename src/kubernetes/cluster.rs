//! The requests to the API server, one function each, in the order of `buildkite-role.yaml`: paths, queries and content types
//! stand here and nowhere else.

use std::collections::BTreeMap;

use aws_credential_types::Credentials;
use http::{HeaderValue, Request, Uri, header};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{PodTemplate, Secret},
};
use kube::{
    Resource, ResourceExt,
    core::{
        Request as Requests,
        params::{GetParams, ListParams, Patch, PatchParams},
    },
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time::timeout_at;
use tower::BoxError;

use super::{client, error::Error};
use crate::{
    aws::{eks::Eks, eks_token::Signer},
    config::Config,
    deadline::Deadline,
    pod::job,
};

/// The cluster and the namespace that this function creates Jobs in.
#[derive(Clone)]
pub struct Cluster {
    client: kube::Client,
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) endpoint: Uri,
}

/// What we read of an object's metadata.
#[derive(Debug, Default, Deserialize)]
pub struct Metadata {
    /// Given by the API server, different for each object that ever had the name.
    pub uid: Option<String>,
    /// As they were written.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    metadata: Metadata,
}

/// With each item as the JSON of its author.
#[derive(Deserialize)]
struct List {
    #[serde(default)]
    items: Vec<Value>,
}

impl Cluster {
    /// Takes endpoint and CA from the settings, and asks EKS for what they lack.
    pub async fn find(
        config: &Config,
        eks: &Eks,
        credentials: &Credentials,
        deadline: Deadline,
    ) -> Result<Self, Error> {
        let (endpoint, certificate_authority) = match (&config.api_server_endpoint, &config.certificate_authority) {
            (Some(endpoint), Some(certificate_authority)) => (endpoint.clone(), certificate_authority.clone()),
            (endpoint, certificate_authority) => {
                let described = eks.describe_cluster(&config.cluster, deadline).await?;
                (endpoint.clone().unwrap_or(described.0), certificate_authority.clone().unwrap_or(described.1))
            }
        };
        let signer = Signer::new(credentials.clone(), &config.region, &config.cluster);
        let client = client::connect(&endpoint, certificate_authority, signer).map_err(Error::Client)?;
        Ok(Self::new(client, endpoint, config))
    }

    /// A cluster behind any client, such as a test's.
    pub fn new(client: kube::Client, endpoint: Uri, config: &Config) -> Self {
        Self { client, name: config.cluster.clone(), namespace: config.stack.namespace.clone(), endpoint }
    }

    /// The namespace of Jobs and Secret.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Creates a Job. Its uid, if the answer can be read: the Job is there in any case.
    pub async fn create_job(&self, job: &job::Job<'_>, deadline: Deadline) -> Result<Option<String>, Error> {
        // Strict: the API server refuses a field that it does not know, and does not drop it. kube's PostParams cannot say that.
        let jobs = Job::url_path(&(), Some(&self.namespace));
        let request = Request::post(format!("{jobs}?fieldValidation=Strict&fieldManager={}", job::MANAGER));
        let request = request.header(header::CONTENT_TYPE, "application/json");
        let body = serde_json::to_vec(job).map_err(|error| Error::Client(error.into()))?;
        let created = self.send(metadata_only(request.body(body)), deadline).await?;
        Ok(serde_json::from_str(&created).ok().and_then(|Object { metadata }| metadata.uid))
    }

    /// The metadata of a Job.
    pub async fn job(&self, name: &str, deadline: Deadline) -> Result<Metadata, Error> {
        let jobs = Requests::new(Job::url_path(&(), Some(&self.namespace)));
        let request = metadata_only(jobs.get(name, &GetParams::default()));
        self.read(request, deadline).await.map(|Object { metadata }| metadata)
    }

    /// Creates or changes a Secret by server-side apply. Its values do not come back.
    pub async fn apply_secret(&self, secret: &Secret, field_manager: &str, deadline: Deadline) -> Result<(), Error> {
        let secrets = Requests::new(Secret::url_path(&(), Some(&self.namespace)));
        let request = secrets.patch(&secret.name_any(), &PatchParams::apply(field_manager), &Patch::Apply(secret));
        self.send(metadata_only(request), deadline).await.map(drop)
    }

    /// All `PodTemplates` of the namespace.
    pub async fn pod_templates(&self, deadline: Deadline) -> Result<Vec<Value>, Error> {
        let templates = Requests::new(PodTemplate::url_path(&(), Some(&self.namespace)));
        self.read(templates.list(&ListParams::default()), deadline).await.map(|List { items }| items)
    }

    async fn read<T: DeserializeOwned>(
        &self,
        request: Result<Request<Vec<u8>>, impl Into<BoxError>>,
        deadline: Deadline,
    ) -> Result<T, Error> {
        let text = self.send(request, deadline).await?;
        serde_json::from_str(&text).map_err(|error| self.explain(kube::Error::SerdeError(error)))
    }

    async fn send(
        &self,
        request: Result<Request<Vec<u8>>, impl Into<BoxError>>,
        deadline: Deadline,
    ) -> Result<String, Error> {
        let mut request = request.map_err(|error| Error::Client(error.into()))?;
        let late = || Error::Timeout { endpoint: self.endpoint.clone() };
        if deadline.left().is_zero() {
            return Err(late());
        }
        request.extensions_mut().insert(deadline);
        match timeout_at(deadline.instant(), self.client.request_text(request)).await {
            Ok(answer) => answer.map_err(|error| self.explain(error)),
            Err(_) => Err(late()),
        }
    }
}

/// Asks the API server to leave everything but the metadata out of its answer.
fn metadata_only<E>(request: Result<Request<Vec<u8>>, E>) -> Result<Request<Vec<u8>>, E> {
    const METADATA: HeaderValue =
        HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json");
    request.map(|mut request| {
        request.headers_mut().insert(header::ACCEPT, METADATA);
        request
    })
}
