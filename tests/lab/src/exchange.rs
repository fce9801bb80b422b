//! One request and its answer, as every stand-in treats them: it meets a fault if one is planned, and is recorded for the test.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request as HttpRequest, State},
    http::{
        HeaderValue, StatusCode,
        header::{CONNECTION, RETRY_AFTER},
        request::Parts,
    },
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use parking_lot::Mutex;
use tokio::time::sleep;

use crate::{
    fault::{ErrorAnswer, Fault, Faults},
    server::Cut,
    timeline::{Actor, Call, Entry, Kind, Timeline},
};

/// More than any real server of these takes.
const BODY_LIMIT: usize = 16 * 1024 * 1024;

/// What was asked of a stand-in, and what came of it.
#[derive(Clone)]
pub struct Request {
    /// Time since the lab started when the whole of it had come.
    pub at: Duration,
    /// HTTP method.
    pub method: String,
    /// Path without query.
    pub path: String,
    /// Query without the question mark, still encoded; empty if there was none.
    pub query: String,
    /// The user that the caller proved to be.
    pub user: Option<String>,
    /// Why the caller was refused; the answer itself does not say.
    pub refusal: Option<String>,
    /// The body as text. May hold secrets, so `Debug` leaves it out.
    pub body: String,
    /// Status of the answer; none if the connection was cut or the client left.
    pub status: Option<u16>,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("query", &self.query)
            .field("user", &self.user)
            .field("refusal", &self.refusal)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// Who called, for the record; a stand-in puts it on its response.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    User(String),
    Refused(String),
}

/// The service that a stand-in plays, as far as the common treatment must know it.
pub(crate) trait Role: Send + Sync + 'static {
    /// Who is asked, and for what.
    fn call(&self, parts: &Parts, body: &[u8]) -> (Actor, Call);

    /// An error in this service's own words.
    fn error(&self, parts: &Parts, call: &Call, error: &ErrorAnswer) -> Response;
}

/// The faults that a stand-in has to inject, and the requests that it got. Clones share both.
#[derive(Clone)]
pub(crate) struct ExchangeLog {
    pub(crate) faults: Faults,
    pub(crate) timeline: Timeline,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl ExchangeLog {
    pub(crate) fn new(timeline: &Timeline) -> Self {
        Self { faults: Faults::default(), timeline: timeline.clone(), requests: Arc::default() }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().clone()
    }

    /// Nothing may be in work.
    pub(crate) fn forget(&self) {
        self.requests.lock().clear();
    }

    /// Puts the common treatment around a stand-in's routes.
    pub(crate) fn around(&self, routes: Router, role: impl Role) -> Router {
        let exchange = Exchange { log: self.clone(), role: Arc::new(role) };
        routes.layer(from_fn_with_state(exchange, handle))
    }

    /// Keeps the request before it is served, so that one whose client leaves meanwhile is seen too.
    fn arrived(&self, parts: &Parts, body: &[u8]) -> usize {
        let mut requests = self.requests.lock();
        requests.push(Request {
            at: self.timeline.now(),
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            user: None,
            refusal: None,
            body: String::from_utf8_lossy(body).into_owned(),
            status: None,
        });
        requests.len() - 1
    }

    /// An entry of its own, as the client may leave before the answer.
    fn delayed(&self, actor: Actor, call: &Call, fault: Option<Fault>) {
        self.timeline.push(Entry { fault, ..Entry::new(actor, Kind::Delayed(call.clone())) });
    }

    /// Returns the status that arrives.
    fn answered(&self, index: usize, response: &Response) -> Option<u16> {
        let request = &mut self.requests.lock()[index];
        match response.extensions().get::<Caller>() {
            Some(Caller::User(user)) => request.user = Some(user.clone()),
            Some(Caller::Refused(reason)) => request.refusal = Some(reason.clone()),
            None => {}
        }
        if response.extensions().get::<Cut>().is_none() {
            request.status = Some(response.status().as_u16());
        }
        request.status
    }
}

#[derive(Clone)]
struct Exchange {
    log: ExchangeLog,
    role: Arc<dyn Role>,
}

async fn handle(State(exchange): State<Exchange>, request: HttpRequest, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_LIMIT).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let log = &exchange.log;
    let (actor, call) = exchange.role.call(&parts, &body);
    let (index, arrived) = (log.arrived(&parts, &body), Instant::now());
    let mut fault = log.faults.take(&call);

    let mut response = match fault.clone() {
        Some(Fault::Delay(time)) => {
            log.delayed(actor, &call, fault.take());
            sleep(time).await;
            serve(next, parts, body).await
        }
        Some(Fault::DelayAfter(time)) => {
            let response = serve(next, parts, body).await;
            log.delayed(actor, &call, fault.take());
            sleep(time).await;
            response
        }
        Some(Fault::Status(error)) => retry_after(exchange.role.error(&parts, &call, &error), &error),
        Some(Fault::CutBefore) => cut(StatusCode::OK.into_response(), Cut::Closed),
        Some(Fault::ResetBefore) => cut(StatusCode::OK.into_response(), Cut::Reset),
        Some(Fault::CutAfter) => cut(serve(next, parts, body).await, Cut::Closed),
        Some(Fault::ResetAfter) => cut(serve(next, parts, body).await, Cut::Reset),
        Some(Fault::CutWithin) => cut(serve(next, parts, body).await, Cut::Within),
        Some(Fault::Garbage) => replaced(&serve(next, parts, body).await, "<html>this is no JSON</html>"),
        Some(Fault::Empty) => replaced(&serve(next, parts, body).await, ""),
        None | Some(Fault::Refuse | Fault::CutHandshake | Fault::Show(_)) => serve(next, parts, body).await,
    };
    let status = log.answered(index, &response);
    let called = Entry::new(actor, Kind::Called(call.clone()));
    log.timeline.push(Entry { fault, status, took: arrived.elapsed(), ..called });
    if log.faults.answered(&call) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn serve(next: Next, parts: Parts, body: Bytes) -> Response {
    next.run(HttpRequest::from_parts(parts, Body::from(body))).await
}

fn retry_after(mut response: Response, error: &ErrorAnswer) -> Response {
    if let Some(time) = error.retry_after {
        response.headers_mut().insert(RETRY_AFTER, time.as_secs().into());
    }
    response
}

fn cut(mut response: Response, cut: Cut) -> Response {
    response.extensions_mut().insert(cut);
    response
}

/// A success in any case: an error with such a body is one like any other.
fn replaced(served: &Response, body: &'static str) -> Response {
    let status = if served.status().is_success() { served.status() } else { StatusCode::OK };
    (status, body).into_response()
}
