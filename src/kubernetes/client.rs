//! The client of the API server: TLS by the cluster's own CA alone, and our token on every request.

use std::{
    mem,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, USER_AGENT, WARNING},
};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use k8s_openapi::jiff::Timestamp;
use kube::core::Status;
use tower::{BoxError, Service, ServiceExt, util::BoxCloneSyncService};

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

/// A client of one API server. Clones share its connections and its token.
#[derive(Clone)]
pub struct Client {
    http: BoxCloneSyncService<Request<Full<Bytes>>, Response<UnsyncBoxBody<Bytes, BoxError>>, BoxError>,
    pub(super) endpoint: Uri,
    signer: Arc<Signer>,
    quiet: Quiet,
}

impl Client {
    /// Trusts `authority` alone. No request yet.
    pub fn new(endpoint: Uri, authority: CertificateAuthority, signer: Signer) -> Result<Self, BoxError> {
        Ok(Self::over(https::client(authority, Plain::Refused)?, endpoint, signer))
    }

    /// The same over any HTTP service, such as a test's.
    pub fn over<H, B>(http: H, endpoint: Uri, signer: Signer) -> Self
    where
        H: Service<Request<Full<Bytes>>, Response = Response<B>, Error: Into<BoxError>, Future: Send>,
        H: Clone + Send + Sync + 'static,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let http = http.map_response(|response| response.map(|body| body.map_err(Into::into).boxed_unsync()));
        Self {
            http: BoxCloneSyncService::new(http.map_err(Into::into)),
            endpoint,
            signer: Arc::new(signer),
            quiet: Quiet::default(),
        }
    }

    /// The answer to a request for a path, whatever its status.
    ///
    /// Repeats are safe: a Job has its name, and a Secret is applied. A 401 is repeated once with a new token: the API server may have
    /// forgotten ours, or its clock may be ahead. If the API server `may_have_moved`, a failure to connect is final.
    pub(super) async fn send(
        &self,
        request: Request<Vec<u8>>,
        may_have_moved: bool,
        deadline: Deadline,
    ) -> Result<Response<Bytes>, BoxError> {
        let (mut parts, body) = request.map(Bytes::from).into_parts();
        let mut uri = self.endpoint.clone().into_parts();
        uri.path_and_query = parts.uri.into_parts().path_and_query;
        parts.uri = Uri::from_parts(uri)?;
        parts.headers.insert(USER_AGENT, HeaderValue::from_static(https::AGENT));
        let mut token_is_new = false;
        loop {
            let attempt = async |time| {
                let mut request = Request::from_parts(parts.clone(), Full::new(body.clone()));
                let authorization = self.signer.authorization(clock::wall());
                let authorization = authorization.map_err(|error| Final(Unsigned(error).into()))?;
                request.headers_mut().insert(AUTHORIZATION, authorization);
                https::send(self.http.clone(), request, time).await.map_err(|error| match error {
                    error if may_have_moved && https::is_connect(&error) => Final(error).into(),
                    error => error,
                })
            };
            let response = retry::send(&API, &self.quiet, deadline, attempt).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok(response);
            }
            if mem::replace(&mut token_is_new, true) {
                return wrong_clock(response.headers(), clock::wall()).map_or(Ok(response), |wrong| Err(wrong.into()));
            }
            tracing::debug!("the API server refuses the EKS token; retry with a new one");
            self.signer.expire();
        }
    }
}

/// What the API server accepts and finds questionable.
pub(super) fn warnings(headers: &HeaderMap) -> Vec<String> {
    headers.get_all(WARNING).iter().filter_map(|header| warning(header.to_str().ok()?)).collect()
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
    use std::sync::{Mutex, PoisonError};

    use aws_credential_types::Credentials;
    use http::header::DATE;
    use tower::service_fn;

    use super::*;

    /// What comes of a request that meets 401 with this header each time, and the tokens that it sent.
    async fn refused(date: Option<&'static str>) -> (Result<StatusCode, BoxError>, Vec<HeaderValue>) {
        let tokens = Arc::new(Mutex::new(Vec::new()));
        let sent = Arc::clone(&tokens);
        let server = service_fn(move |request: Request<Full<Bytes>>| {
            let token = request.headers()[AUTHORIZATION].clone();
            sent.lock().unwrap_or_else(PoisonError::into_inner).push(token);
            let response = Response::builder().status(401);
            let response = date.into_iter().fold(response, |response, date| response.header(DATE, date));
            async move { Ok::<_, BoxError>(response.body(Full::<Bytes>::default()).unwrap()) }
        });
        let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
        let signer = Signer::new(credentials, "us-east-1", "example-cluster");
        let client = Client::over(server, Uri::from_static("https://example"), signer);
        let request = Request::get("/").body(Vec::new()).unwrap();
        let answer = client.send(request, false, Deadline::after(Duration::from_secs(30))).await;
        let tokens = tokens.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (answer.map(|answer| answer.status()), tokens)
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
