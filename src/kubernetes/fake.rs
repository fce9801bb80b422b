//! The API server of the unit tests: one answer for every request, and a record of the requests.

#![cfg(test)]

use std::{
    future::pending,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aws_credential_types::Credentials;
use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower::service_fn;

use super::{Client, Cluster};
use crate::{aws::eks_token::Signer, config::fixtures::config};

/// Clones share one record.
#[derive(Clone, Default)]
pub(crate) struct ApiServer(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// `None` is silence.
    answer: Option<(StatusCode, Value)>,
    requests: Vec<Sent>,
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) uri: String,
    pub(crate) body: Value,
}

impl ApiServer {
    pub(crate) fn answering(status: StatusCode, body: Value) -> Self {
        let server = Self::default();
        server.answer(status, body);
        server
    }

    /// Has these `PodTemplates`.
    pub(crate) fn holding(templates: &[Value]) -> Self {
        let server = Self::default();
        server.hold(templates);
        server
    }

    pub(crate) fn hold(&self, templates: &[Value]) {
        self.answer(StatusCode::OK, json!({"kind": "PodTemplateList", "apiVersion": "v1", "items": templates}));
    }

    pub(crate) fn answer(&self, status: StatusCode, body: Value) {
        self.state().answer = Some((status, body));
    }

    /// Answers with a `Status`, as the API server refuses.
    pub(crate) fn refuse(&self, status: StatusCode, reason: &str, message: &str) {
        let code = status.as_u16();
        let body = json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message});
        self.answer(status, body);
    }

    pub(crate) fn hang(&self) {
        self.state().answer = None;
    }

    pub(crate) fn requests(&self) -> Vec<Sent> {
        self.state().requests.clone()
    }

    pub(crate) fn cluster(&self) -> Cluster {
        let server = self.clone();
        let service = service_fn(move |request: Request<Full<Bytes>>| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                let uri = parts.uri.path_and_query().unwrap().to_string();
                let sent = Sent { method: parts.method.to_string(), uri, body };
                let answer = {
                    let mut state = server.state();
                    state.requests.push(sent);
                    state.answer.clone()
                };
                let Some((status, body)) = answer else { return pending().await };
                let body = Full::<Bytes>::from(body.to_string());
                Ok::<_, io::Error>(Response::builder().status(status).body(body).unwrap())
            }
        });
        let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
        let signer = Signer::new(credentials, "us-east-1", "example-cluster");
        Cluster::new(Client::over(service, Uri::from_static("https://example"), signer), &config(&[]))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
