//! The HTTP client of the Stacks API: one call, its headers, its attempts, and why it failed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT},
};
use http_body_util::Full;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tower::BoxError;

use crate::{
    deadline::Deadline,
    https::{self, CertificateAuthority, Plain},
    retry::{self, Api, AsksForQuiet, Final, Quiet},
    text::message,
};

/// One attempt takes five seconds at most.
const API: Api<Bytes> = Api {
    name: "Buildkite",
    max_attempt: Duration::from_secs(5),
    may_pass: |response| retry::is_overload(response.status()) || response.status().is_server_error(),
    max_rate_limited: None,
};

/// For a call that something else makes later: it waits for `Retry-After` once.
const LATER: Api<Bytes> = Api { max_rate_limited: Some(1), ..API };

/// A client for one endpoint.
pub(super) struct Client {
    http: https::Client<Full<Bytes>>,
    endpoint: String,
    quiets: Quiets,
}

/// What Buildkite has asked of this process, whatever the client: each call has a limit of its own.
#[derive(Clone, Debug, Default)]
pub struct Quiets(Arc<Mutex<BTreeMap<&'static str, Quiet>>>);

impl Quiets {
    fn of(&self, call: &'static str) -> Quiet {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(call).or_default().clone()
    }
}

/// One call of the API.
pub(super) struct Call {
    pub(super) name: &'static str,
    pub(super) method: Method,
    pub(super) path: String,
}

/// What becomes of a call while Buildkite answers 429.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimit {
    /// It is retried while there is time.
    Wait,
    /// It is retried once, and not made at all while Buildkite wants no such call: something else makes it later.
    GiveUp,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text shows what the fields are")]
pub enum Error {
    /// A status other than 2xx, in all attempts if it may pass.
    #[error("Buildkite answers {call} with {status}: {message}")]
    Refused { call: &'static str, status: StatusCode, message: String },
    /// No answer, in all attempts.
    #[error("cannot reach Buildkite for {call}")]
    Unreachable { call: &'static str, source: BoxError },
    /// An answer without what it must have.
    #[error("the answer of Buildkite to {call} cannot be read")]
    Garbage { call: &'static str, source: serde_json::Error },
}

impl Error {
    /// The status that refuses the call.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(status.as_u16()),
            _ => None,
        }
    }

    /// Buildkite does not know the stack, such as one that was deregistered. After a reservation, it is the job that is not found.
    pub fn is_unknown_stack(&self) -> bool {
        match self {
            Self::Refused { call, status: StatusCode::NOT_FOUND, message } => {
                *call != "finish" || message.to_ascii_lowercase().contains("stack")
            }
            _ => false,
        }
    }
}

impl Client {
    pub(super) fn new(endpoint: String, roots: CertificateAuthority, quiets: Quiets) -> Result<Self, BoxError> {
        Ok(Self { http: https::client(roots, Plain::Allowed)?, endpoint, quiets })
    }

    pub(super) async fn read<T: DeserializeOwned>(
        &self,
        call: Call,
        body: Option<&impl Serialize>,
        token: &SecretString,
        deadline: Deadline,
    ) -> Result<T, Error> {
        let name = call.name;
        parse(name, &self.send(call, body, token, deadline).await?)
    }

    pub(super) async fn send(
        &self,
        call: Call,
        body: Option<&impl Serialize>,
        token: &SecretString,
        deadline: Deadline,
    ) -> Result<Response<Bytes>, Error> {
        self.send_within(RateLimit::Wait, call, body, token, deadline).await
    }

    pub(super) async fn send_within(
        &self,
        rate_limit: RateLimit,
        Call { name, method, path }: Call,
        body: Option<&impl Serialize>,
        token: &SecretString,
        deadline: Deadline,
    ) -> Result<Response<Bytes>, Error> {
        let api = if rate_limit == RateLimit::Wait { &API } else { &LATER };
        let unreachable = |source: BoxError| Error::Unreachable { call: name, source };
        let url = format!("{}/{path}", self.endpoint);
        let body = body.map(serde_json::to_vec).transpose().map_err(|error| unreachable(error.into()))?;
        let body = Bytes::from(body.unwrap_or_default());
        let headers = headers(token).map_err(unreachable)?;
        let attempt = |time| {
            let request = Request::builder().method(method.clone()).uri(&url).body(Full::new(body.clone()));
            let (http, headers) = (self.http.clone(), headers.clone());
            async move {
                let mut request = request.map_err(|error| Final(error.into()))?;
                request.headers_mut().extend(headers);
                https::send(http, request, time).await
            }
        };
        let answer = retry::send(api, &self.quiets.of(name), deadline, attempt).await.map_err(|error| {
            if error.is::<AsksForQuiet>() {
                return Error::Refused {
                    call: name,
                    status: StatusCode::TOO_MANY_REQUESTS,
                    message: error.to_string(),
                };
            }
            unreachable(error)
        })?;
        if answer.status().is_success() { Ok(answer) } else { Err(refused(name, &answer)) }
    }
}

pub(super) fn parse<T: DeserializeOwned>(call: &'static str, answer: &Response<Bytes>) -> Result<T, Error> {
    serde_json::from_slice(answer.body()).map_err(|source| Error::Garbage { call, source })
}

fn headers(token: &SecretString) -> Result<HeaderMap, BoxError> {
    const JSON: HeaderValue = HeaderValue::from_static("application/json");
    let mut authorization = HeaderValue::try_from(format!("Token {}", token.expose_secret()))
        .map_err(|_| "the agent token has a character that no HTTP header can hold")?;
    authorization.set_sensitive(true);
    let headers = [
        (AUTHORIZATION, authorization),
        (ACCEPT, JSON),
        (CONTENT_TYPE, JSON),
        (USER_AGENT, HeaderValue::from_static(https::AGENT)),
    ];
    Ok(HeaderMap::from_iter(headers))
}

fn refused(call: &'static str, answer: &Response<Bytes>) -> Error {
    #[derive(Deserialize)]
    struct Body {
        message: String,
    }
    let text = String::from_utf8_lossy(answer.body());
    let words = serde_json::from_str(&text).map_or_else(|_| text.into_owned(), |Body { message }| message);
    Error::Refused { call, status: answer.status(), message: message(&words).into_owned() }
}
