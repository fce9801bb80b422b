//! The requests to the API server, one function each, in the order of `buildkite-role.yaml`; those for Secrets are beside it. Paths,
//! queries and content types stand here and nowhere else.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_credential_types::Credentials;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Event, Pod, PodTemplate},
};
use kube::{
    Resource,
    core::{
        Request as Requests,
        params::{DeleteParams, GetParams, ListParams, Preconditions},
    },
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;
use tower::BoxError;
use uuid::Uuid;

use super::{
    client::{Client, warnings},
    error::{Error, role_selector},
    events, jobs,
    list::Listed,
    pods,
};
use crate::{
    aws::{eks::Eks, eks_token::Signer},
    clock,
    config::Config,
    deadline::Deadline,
    https::CertificateAuthority,
    pod::{job, metadata},
};

/// How long the answer of EKS is trusted when the API server cannot be reached: it is asked again at most this often.
const LOCATION_AGE: Duration = Duration::from_mins(1);

/// How many objects a page of a list has: the size of a `PodTemplate` is its author's.
const TEMPLATES_PER_PAGE: u32 = 250;
const JOBS_PER_PAGE: u32 = 500;

/// The cluster and the namespace that this function creates Jobs in.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) stack_id: String,
    pub(super) role_selector: &'static str,
    /// Where Jobs are created. Strict: the API server refuses a field that it does not know, and does not drop it. kube's `PostParams`
    /// cannot say that.
    new_jobs: Uri,
    certificate_authority: CertificateAuthority,
    /// When EKS last said so; `None` if the settings do.
    located: Option<Arc<Mutex<Instant>>>,
}

/// A Job that was created.
#[derive(Debug, Default)]
pub struct Created {
    answer: Bytes,
    /// What the API server accepts and finds questionable, such as a pod that `PodSecurity` will refuse.
    pub warnings: Vec<String>,
}

impl Created {
    /// As the API server has it, if the answer can be read: the Job is there in any case.
    pub fn job(&self) -> Option<jobs::Job> {
        serde_json::from_slice(&self.answer).ok()
    }
}

impl Cluster {
    /// Takes endpoint and CA from the settings, and asks EKS for what they lack. Gives `known` back if they are still the same.
    pub async fn find(
        config: &Config,
        eks: &Eks,
        credentials: &Credentials,
        known: Option<&Self>,
        deadline: Deadline,
    ) -> Result<Self, Error> {
        let (mut endpoint, mut authority) = (config.api_server_endpoint.clone(), config.certificate_authority.clone());
        let located = endpoint.is_none() || authority.is_none();
        if located {
            let described = eks.describe_cluster(&config.cluster, deadline).await?;
            endpoint.get_or_insert(described.0);
            authority.get_or_insert(described.1);
        }
        let (Some(endpoint), Some(authority)) = (endpoint, authority) else { unreachable!("EKS was asked for both") };
        if let Some(known) = known.filter(|known| known.is_at(&endpoint, &authority)) {
            if let Some(located) = &known.located {
                *located.lock().unwrap_or_else(PoisonError::into_inner) = clock::monotonic();
            }
            return Ok(known.clone());
        }
        let signer = Signer::new(credentials.clone(), &config.region, &config.cluster);
        let client = Client::new(endpoint, authority.clone(), signer).map_err(Error::Client)?;
        let located = located.then(|| Arc::new(Mutex::new(clock::monotonic())));
        Ok(Self { certificate_authority: authority, located, ..Self::new(client, config) })
    }

    /// A cluster behind any client, such as a test's.
    pub fn new(client: Client, config: &Config) -> Self {
        let jobs = Job::url_path(&(), Some(&config.stack.namespace));
        Self {
            client,
            new_jobs: format!("{jobs}?fieldValidation=Strict&fieldManager={}", metadata::MANAGER)
                .parse()
                .expect("a namespace is a part of a path"),
            name: config.cluster.clone(),
            namespace: config.stack.namespace.clone(),
            stack_id: config.stack.id.clone(),
            role_selector: role_selector(config.job_tokens),
            certificate_authority: CertificateAuthority(Vec::new()),
            located: None,
        }
    }

    /// Whether it may have been created again under its name, with another endpoint or CA.
    pub fn may_have_moved(&self) -> bool {
        let located = self.located.as_ref();
        located.is_some_and(|located| located.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= LOCATION_AGE)
    }

    /// Whether both are one and the same, found once.
    pub fn is(&self, other: &Self) -> bool {
        self.is_at(other.endpoint(), &other.certificate_authority)
    }

    fn is_at(&self, endpoint: &Uri, authority: &CertificateAuthority) -> bool {
        self.endpoint() == endpoint && self.certificate_authority == *authority
    }

    pub(super) fn endpoint(&self) -> &Uri {
        &self.client.endpoint
    }

    /// The namespace of Jobs and Secret.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The id of the stack whose Jobs they are.
    pub fn stack_id(&self) -> &str {
        &self.stack_id
    }

    /// Creates a Job. The answer has no more than its metadata.
    pub async fn create_job(&self, job: &job::Job<'_>, deadline: Deadline) -> Result<Created, Error> {
        self.post_job(job, self.new_jobs.clone(), metadata_only, deadline).await
    }

    /// Creates a Job. The answer has all of it, with what admission made of it.
    pub async fn create_whole_job(&self, job: &job::Job<'_>, deadline: Deadline) -> Result<Created, Error> {
        self.post_job(job, self.new_jobs.clone(), |request| request, deadline).await
    }

    /// Whether the API server would create the Job, and its warnings.
    pub async fn try_job(&self, job: &job::Job<'_>, deadline: Deadline) -> Result<Created, Error> {
        self.post_job(job, format!("{}&dryRun=All", self.new_jobs), metadata_only, deadline).await
    }

    async fn post_job(
        &self,
        job: &job::Job<'_>,
        uri: impl TryInto<Uri, Error: Into<http::Error>>,
        answer: impl FnOnce(Posted) -> Posted,
        deadline: Deadline,
    ) -> Result<Created, Error> {
        let request = Request::post(uri).header(header::CONTENT_TYPE, "application/json");
        let response = self.send(answer(request.body(job.json())), deadline).await?;
        Ok(Created { warnings: warnings(response.headers()), answer: response.into_body() })
    }

    /// A Job that exists.
    pub async fn job(&self, name: &str, deadline: Deadline) -> Result<jobs::Job, Error> {
        let jobs = Requests::new(Job::url_path(&(), Some(&self.namespace)));
        self.read(jobs.get(name, &GetParams::default()), deadline).await
    }

    /// All `PodTemplates` of the namespace.
    pub async fn pod_templates(&self, deadline: Deadline) -> Result<Vec<Value>, Error> {
        let all = ListParams::default().limit(TEMPLATES_PER_PAGE);
        Ok(self.list::<PodTemplate, _>(all, deadline).await?.items)
    }

    /// The stack's Jobs.
    pub async fn jobs(&self, deadline: Deadline) -> Result<Listed<jobs::Job>, Error> {
        self.list::<Job, _>(self.of_stack(), deadline).await
    }

    /// Deletes a Job, if it still has that uid, and then its pods.
    pub async fn delete_job(&self, name: &str, uid: &str, deadline: Deadline) -> Result<(), Error> {
        let jobs = Requests::new(Job::url_path(&(), Some(&self.namespace)));
        let this_one = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let request = jobs.delete(name, &DeleteParams::background().preconditions(this_one));
        self.send(metadata_only(request), deadline).await.map(drop)
    }

    /// The stack's pods.
    pub async fn pods(&self, deadline: Deadline) -> Result<Listed<pods::Pod>, Error> {
        self.list::<Pod, _>(self.of_stack(), deadline).await
    }

    /// The pods for one Buildkite job, also those of an earlier Job.
    pub async fn pods_for(&self, job: Uuid, deadline: Deadline) -> Result<Vec<pods::Pod>, Error> {
        let of_job = ListParams::default().limit(JOBS_PER_PAGE).labels(&format!("{}={job}", metadata::JOB_UUID_LABEL));
        Ok(self.list::<Pod, _>(of_job, deadline).await?.items)
    }

    /// Of these objects the Events with a field such as `type=Warning`.
    pub async fn events(
        &self,
        objects: &HashSet<String>,
        field: &str,
        deadline: Deadline,
    ) -> Result<Vec<events::Event>, Error> {
        let all = ListParams::default().limit(JOBS_PER_PAGE).fields(field);
        let is_of_them = |event: &events::Event| objects.contains(&event.involved_object.uid);
        Ok(self.list_some::<Event, _>(all, is_of_them, deadline).await?.items)
    }

    fn of_stack(&self) -> ListParams {
        ListParams::default().limit(JOBS_PER_PAGE).labels(&format!("{}={}", metadata::STACK_LABEL, self.stack_id))
    }

    pub(super) async fn read<T: DeserializeOwned>(
        &self,
        request: Result<Request<Vec<u8>>, impl Into<BoxError>>,
        deadline: Deadline,
    ) -> Result<T, Error> {
        self.parse(&self.send(request, deadline).await?)
    }

    pub(super) fn parse<T: DeserializeOwned>(&self, response: &Response<Bytes>) -> Result<T, Error> {
        serde_json::from_slice(response.body())
            .map_err(|error| Error::Garbage { endpoint: self.endpoint().clone(), source: error.into() })
    }

    /// The answer, if it is a success.
    pub(super) async fn send(
        &self,
        request: Result<Request<Vec<u8>>, impl Into<BoxError>>,
        deadline: Deadline,
    ) -> Result<Response<Bytes>, Error> {
        let request = request.map_err(|error| Error::Client(error.into()))?;
        if deadline.left().is_zero() {
            return Err(Error::Timeout { endpoint: self.endpoint().clone() });
        }
        let response = self.client.send(request, self.may_have_moved(), deadline).await;
        let response = response.map_err(|error| self.explain_failure(error))?;
        if response.status().is_success() { Ok(response) } else { Err(self.explain_refusal(&response)) }
    }
}

/// A request that creates an object.
type Posted = Result<Request<Vec<u8>>, http::Error>;

/// Asks the API server to leave everything but the metadata out of its answer.
pub(super) fn metadata_only<E>(request: Result<Request<Vec<u8>>, E>) -> Result<Request<Vec<u8>>, E> {
    const METADATA: HeaderValue =
        HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json");
    request.map(|mut request| {
        request.headers_mut().insert(header::ACCEPT, METADATA);
        request
    })
}
