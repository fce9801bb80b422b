//! The client of the API server: TLS by the cluster's own CA alone, and our token on every request.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, USER_AGENT, WARNING},
};
use k8s_openapi::jiff::Timestamp;
use kube::{
    client::{Body, middleware::BaseUriLayer},
    core::Status,
};
use tower::{BoxError, Service, ServiceBuilder, service_fn};

use crate::{
    aws::eks_token::Signer,
    clock,
    deadline::Deadline,
    https::{self, CertificateAuthority, Plain},
    retry::{self, Api, Final, Quiet, is_overload},
};

/// One attempt, from the connection to the end of the answer.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

const API: Api<Bytes> = Api {
    name: "the API server",
    max_attempt: ATTEMPT_TIMEOUT,
    may_pass: |response| is_overload(response.status()) || is_write_conflict(response),
    max_rate_limited: None,
};

/// A clock that is wrong by this many seconds is named as the cause of a 401; a token is valid for a quarter of an hour.
const MAX_CLOCK_SKEW: i64 = 60;

/// There is no token to send.
#[derive(Debug, thiserror::Error)]
#[error("the EKS token cannot be signed")]
pub(super) struct Unsigned(#[source] BoxError);

/// 401, and our clock is wrong: it is this many seconds behind the API server's.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the function's clock is {} s {} that of the API server", .0.unsigned_abs(), if *.0 < 0 { "ahead of" } else { "behind" })]
pub(super) struct WrongClock(i64);

/// On a request: a failure to connect is final, since the API server may be at another endpoint by now.
#[derive(Clone, Copy)]
pub(super) struct MayHaveMoved;

/// On a request: where the client puts the headers of its answer.
#[derive(Clone, Default)]
pub(super) struct Headers(Arc<Mutex<HeaderMap>>);

impl Headers {
    fn set(&self, headers: &HeaderMap) {
        headers.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Has the answer to a request leave them here.
    pub(super) fn of<E>(&self, request: Result<Request<Vec<u8>>, E>) -> Result<Request<Vec<u8>>, E> {
        request.map(|mut request| {
            request.extensions_mut().insert(self.clone());
            request
        })
    }

    /// What the API server accepts and finds questionable.
    pub(super) fn warnings(&self) -> Vec<String> {
        let headers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        headers.get_all(WARNING).iter().filter_map(|header| warning(header.to_str().ok()?)).collect()
    }

    /// The API server's clock.
    pub(super) fn date(&self) -> Option<Timestamp> {
        https::date(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A client for one API server. Its requests carry their [`Deadline`] as an extension.
pub fn connect(endpoint: &Uri, authority: CertificateAuthority, signer: Signer) -> Result<kube::Client, BoxError> {
    Ok(over(https::client(authority, Plain::Refused)?, endpoint, signer))
}

/// The same over any HTTP service, such as a test's.
pub fn over<H, B>(http: H, endpoint: &Uri, signer: Signer) -> kube::Client
where
    H: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>, Future: Send>,
    H: Clone + Send + Sync + 'static,
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let (signer, quiet) = (Arc::new(signer), Quiet::default());
    let service = ServiceBuilder::new()
        .layer(BaseUriLayer::new(endpoint.clone()))
        .service(service_fn(move |request| send(http.clone(), Arc::clone(&signer), quiet.clone(), request)));
    // Every request has its namespace in its path.
    kube::Client::new(service, "")
}

/// Repeats are safe: a Job has its name, and a Secret is applied. A 401 is repeated once with a new token: the API server may have
/// forgotten ours, or its clock may be ahead.
async fn send<H, B>(
    http: H,
    signer: Arc<Signer>,
    quiet: Quiet,
    request: Request<Body>,
) -> Result<Response<Body>, BoxError>
where
    H: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>> + Clone,
    B: http_body::Body<Error: Into<BoxError>>,
{
    let deadline = *request.extensions().get::<Deadline>().ok_or("the request has no deadline")?;
    let (mut parts, body) = request.into_parts();
    let body = body.collect_bytes().await?;
    parts.headers.insert(USER_AGENT, HeaderValue::from_static(https::AGENT));
    let may_have_moved = parts.extensions.remove::<MayHaveMoved>().is_some();
    let headers = parts.extensions.remove::<Headers>();
    let mut token_is_new = false;
    loop {
        let attempt = |time| {
            let mut request = Request::from_parts(parts.clone(), Body::from(body.clone()));
            let (http, signer) = (http.clone(), Arc::clone(&signer));
            async move {
                let authorization = signer.authorization(clock::wall());
                let authorization = authorization.map_err(|error| Final(Unsigned(error).into()))?;
                request.headers_mut().insert(AUTHORIZATION, authorization);
                https::send(http, request, time).await.map_err(|error| match error {
                    error if may_have_moved && https::is_connect(&error) => Final(error).into(),
                    error => error,
                })
            }
        };
        let response = retry::send(&API, &quiet, deadline, attempt).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            if let Some(headers) = &headers {
                headers.set(response.headers());
            }
            return Ok(response.map(Body::from));
        }
        if mem::replace(&mut token_is_new, true) {
            return match wrong_clock(response.headers(), clock::wall()) {
                Some(wrong) => Err(wrong.into()),
                None => Ok(response.map(Body::from)),
            };
        }
        tracing::debug!("the API server refuses the EKS token; retry with a new one");
        signer.expire();
    }
}

/// Two writers met at an object that the API server updates beside ours, such as a `ResourceQuota`. A conflict of field managers, and
/// another uid than that of a delete, would be met again.
fn is_write_conflict(response: &Response<Bytes>) -> bool {
    let status = || serde_json::from_slice::<Status>(response.body()).ok();
    response.status() == StatusCode::CONFLICT
        && status().is_some_and(|status| {
            status.reason == "Conflict" && manager_conflict(&status).is_none() && !is_other_uid(&status)
        })
}

/// The field manager that owns a field which was to be applied, in the words of the API server.
pub(super) fn manager_conflict(status: &Status) -> Option<&str> {
    let causes = status.details.as_ref()?.causes.iter();
    causes.into_iter().find(|cause| cause.reason == "FieldManagerConflict").map(|cause| &*cause.message)
}

/// The object that was to be deleted is gone, and another has its name. The API server says "the UID in the precondition (…) does not
/// match the UID in record (…)", or, if it finds out late, "Precondition failed: UID in precondition: …".
pub(super) fn is_other_uid(status: &Status) -> bool {
    let Status { reason, message, .. } = status;
    reason == "Conflict" && message.contains("UID in") && message.contains("precondition")
}

/// The text of a header such as `299 - "would violate PodSecurity"`.
fn warning(header: &str) -> Option<String> {
    let (_, text) = header.split_once('"')?;
    let (text, _) = text.rsplit_once('"')?;
    Some(text.replace("\\\"", "\"").replace("\\\\", "\\"))
}

fn wrong_clock(headers: &HeaderMap, now: SystemTime) -> Option<WrongClock> {
    let now = Timestamp::try_from(now).ok()?;
    let behind = https::date(headers)?.duration_since(now).as_secs();
    (behind.abs() >= MAX_CLOCK_SKEW).then_some(WrongClock(behind))
}

#[cfg(test)]
mod tests {
    use aws_credential_types::Credentials;
    use http::header::DATE;

    use super::*;

    /// What comes of a request that meets 401 with this header each time, and the tokens that it sent.
    async fn refused(date: Option<&'static str>) -> (Result<StatusCode, BoxError>, Vec<HeaderValue>) {
        let tokens = Arc::new(Mutex::new(Vec::new()));
        let sent = Arc::clone(&tokens);
        let server = service_fn(move |request: Request<Body>| {
            let token = request.headers()[AUTHORIZATION].clone();
            sent.lock().unwrap_or_else(PoisonError::into_inner).push(token);
            let response = Response::builder().status(401);
            let response = date.into_iter().fold(response, |response, date| response.header(DATE, date));
            async move { Ok::<_, BoxError>(response.body(Body::empty()).unwrap()) }
        });
        let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
        let signer = Arc::new(Signer::new(credentials, "us-east-1", "example-cluster"));
        let request =
            Request::get("/").extension(Deadline::after(Duration::from_secs(30))).body(Body::empty()).unwrap();
        let answer = send(server, signer, Quiet::default(), request).await.map(|answer| answer.status());
        let tokens = tokens.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (answer, tokens)
    }

    #[tokio::test]
    async fn a_second_401_may_prove_that_the_clock_is_wrong() {
        let (answer, tokens) = refused(Some("Thu, 01 Jan 2026 00:00:00 GMT")).await;
        assert_eq!(tokens.len(), 2, "once with a new token");
        let text = answer.unwrap_err().to_string();
        assert!(
            text.starts_with("the function's clock is ") && text.ends_with(" s ahead of that of the API server"),
            "{text}"
        );
        for date in [None, Some("yesterday")] {
            let (answer, tokens) = refused(date).await;
            assert_eq!((answer.unwrap().as_u16(), tokens.len()), (401, 2));
        }
    }
}
