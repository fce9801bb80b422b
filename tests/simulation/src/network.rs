//! The requests of the functions: each takes some time, may meet a trouble, and is checked.

use std::{cell::Cell, collections::BTreeMap, sync::Arc, time::Duration};

use aws_smithy_runtime_api::client::{
    http::{HttpConnector, HttpConnectorFuture},
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
};
use aws_smithy_types::body::SdkBody;
use axum::body::Body;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{Method, Request, Response, header::RETRY_AFTER};
use http_body_util::BodyExt;
use lab::{Call, When};
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tower::BoxError;

use crate::{
    plan::{Planted, Server, What},
    world::World,
};

/// The path of the stack's Jobs.
const JOBS: &str = "apis/batch/v1/namespaces/buildkite/jobs";

thread_local! {
    /// The invocation that is polled now, on this thread.
    pub static INVOCATION: Cell<usize> = const { Cell::new(0) };
}

/// What a server has asked of an invocation: no such request before that time.
#[derive(Default)]
pub struct Pauses(BTreeMap<(usize, Method, String), Instant>);

/// The HTTP client of the SDK.
#[derive(Clone)]
pub struct Sdk(pub Arc<World>);

impl World {
    /// Answers a request of a function.
    pub async fn answer(self: Arc<Self>, mut request: Request<Bytes>) -> Result<Response<Bytes>, BoxError> {
        if let Some(planted) = self.plan.planted {
            self.spoil(planted, &mut request);
        }
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let asked = (INVOCATION.get(), method.clone(), path.clone());
        self.check_request(&asked, &request);
        self.travel().await;
        let is_kubernetes = request.uri().host().is_some_and(|host| host.starts_with("kubernetes"));
        let server = match request.uri().host().unwrap_or_default() {
            host if host.starts_with("kubernetes") => Server::Kubernetes,
            host if host.starts_with("buildkite") => Server::Buildkite,
            _ => Server::Aws,
        };
        if let Some(fault) = self.fault(server, &Call::new(method.as_str(), &path)) {
            let stand_in = match server {
                Server::Aws => &*self.lab.aws,
                Server::Buildkite => &*self.lab.buildkite,
                Server::Kubernetes => &*self.lab.kubernetes,
            };
            stand_in.inject(When::any(), fault, 1);
        }
        let before =
            if is_kubernetes && method == Method::DELETE { self.lab.kubernetes.job_uids() } else { Vec::new() };
        let answer = self.lab.call(request.map(Body::from)).await;
        self.check_deleted(before);
        let (parts, body) = answer?.into_parts();
        let mut response = Response::from_parts(parts, body.collect().await?.to_bytes());
        self.travel().await;
        let pause = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        if let (429, Some(pause)) = (response.status().as_u16(), pause) {
            self.state().pauses.0.insert(asked, Instant::now() + Duration::from_secs(pause));
        }
        if self.plan.planted == Some(Planted::Hurries) {
            response.headers_mut().remove(RETRY_AFTER);
        }
        Ok(response)
    }

    /// Makes the function worse than it is.
    fn spoil(&self, planted: Planted, request: &mut Request<Bytes>) {
        let path = request.uri().path().to_owned();
        let running: Vec<_> = self.state().running.clone().into_iter().collect();
        match planted {
            Planted::Leaks | Planted::Litters if *request.method() == Method::POST && path.ends_with("/jobs") => {
                let mut job: Value = serde_json::from_slice(request.body()).expect("a Job is JSON");
                if planted == Planted::Leaks {
                    job["metadata"]["annotations"]["token"] = self.lab.agent_token().into();
                } else {
                    job["spec"]["ttlSecondsAfterFinished"] = Value::Null;
                }
                *request.body_mut() = job.to_string().into();
            }
            Planted::Invents if *request.method() == Method::POST && path.ends_with("/jobs") => {
                let uri = format!("{}?dryRun=All", request.uri().path());
                *request.uri_mut() = format!("{}{uri}", self.lab.kubernetes.url()).parse().expect("a URI");
            }
            Planted::Deletes if path.ends_with("/pods") => {
                for (uid, job) in running {
                    *request.method_mut() = Method::DELETE;
                    let uri = format!("{}/{JOBS}/buildkite-{job}", self.lab.kubernetes.url());
                    *request.uri_mut() = uri.parse().expect("a URI");
                    self.note(format!("the Job with uid {uid} is to be deleted"));
                }
            }
            Planted::Repeats if path.ends_with("/pods") => {
                for (_, job) in running {
                    let mut buildkite = self.lab.buildkite.lock();
                    buildkite.jobs.get_mut(&job).expect("it runs").state = "scheduled";
                }
            }
            Planted::Overlooks if path.ends_with("/scheduled-jobs") => {
                *request.uri_mut() = format!("{}/none", self.lab.buildkite.url()).parse().expect("a URI");
            }
            _ => {}
        }
    }

    /// From a function to a server, or back.
    async fn travel(&self) {
        let slow = if self.plan.planted == Some(Planted::Dawdles) { Duration::from_secs(4) } else { Duration::ZERO };
        sleep(self.between(1, self.plan.latency) + slow).await;
    }

    /// The fault that the request meets, if one is due.
    fn fault(&self, server: Server, call: &Call) -> Option<lab::Fault> {
        let now = self.now();
        let mut state = self.state();
        let mut due =
            self.plan.troubles.iter().filter(|trouble| (trouble.at..trouble.at + trouble.lasts).contains(&now));
        due.find_map(|trouble| match &trouble.what {
            What::Answers(of, when, fault, share)
                if *of == server && when.matches(call) && state.dice.f64() < *share =>
            {
                Some(fault.clone())
            }
            _ => None,
        })
    }

    /// The token is nowhere but in the Secret, and a pause that a server asked for is kept.
    fn check_request(&self, asked: &(usize, Method, String), request: &Request<Bytes>) {
        let text = format!("{} {}", request.uri(), String::from_utf8_lossy(request.body()));
        let is_secret = request.method() == Method::PATCH && request.uri().path().contains("/secrets/");
        if !is_secret && self.has_token(&text) {
            self.violated(format!("the agent token is in {} {}", request.method(), request.uri()));
        }
        let until = self.state().pauses.0.get(asked).copied();
        if let Some(early) = until.and_then(|until| until.checked_duration_since(Instant::now()))
            && !early.is_zero()
        {
            self.violated(format!("{} {} comes {early:?} before its Retry-After", asked.1, asked.2));
        }
    }

    /// Whether an agent token is in a text, as it is or in base64.
    pub fn has_token(&self, text: &str) -> bool {
        let tokens = self.state().tokens.clone();
        tokens.iter().any(|token| text.contains(token) || text.contains(&BASE64_STANDARD.encode(token)))
    }

    /// A Job that is gone had no agent with a command.
    fn check_deleted(&self, before: Vec<(String, String)>) {
        if before.is_empty() {
            return;
        }
        let after = self.lab.kubernetes.job_uids();
        for (name, uid) in before.into_iter().filter(|job| !after.contains(job)) {
            if self.state().running.contains_key(&uid) {
                self.violated(format!("Job {name} is deleted while its command runs"));
            }
        }
    }
}

impl std::fmt::Debug for Sdk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sdk")
    }
}

impl HttpConnector for Sdk {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let world = Arc::clone(&self.0);
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map_err(ConnectorError::user)?.to_bytes();
            let response = world.answer(Request::from_parts(parts, body)).await.map_err(ConnectorError::io)?;
            HttpResponse::try_from(response.map(SdkBody::from))
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}
