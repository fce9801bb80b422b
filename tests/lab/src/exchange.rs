//! One request and its answer, as every stand-in treats them: it meets a fault if one is planned, and is recorded for the test.

use std::{fmt, sync::Arc, time::Duration};

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
use tokio::time::{Instant, sleep};

use crate::{
    certificates::Certificates,
    fault::{Due, ErrorAnswer, Fault, Faults, When},
    server::{Cut, Service},
    timeline::{Actor, Call, Entry, Kind, Timeline},
};

/// More than the real servers take.
const BODY_LIMIT: usize = 16 * 1024 * 1024;

/// A request to a stand-in, and the status of its answer.
#[derive(Clone)]
pub struct Request {
    /// When all of it had come, since the start of the lab.
    pub at: Duration,
    /// HTTP method.
    pub method: String,
    /// Path without query.
    pub path: String,
    /// Query without the question mark, still encoded; empty if there was none.
    pub query: String,
    /// The authenticated user.
    pub user: Option<String>,
    /// Why authentication failed; the answer does not say.
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

/// Who called; a stand-in puts it into the extensions of its response.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    User(String),
    Refused(String),
}

/// What differs from one stand-in to the other.
#[derive(Clone, Copy)]
pub(crate) struct Role {
    /// Who is asked, and for what.
    pub(crate) call: fn(&Parts, &[u8]) -> (Actor, Call),
    /// An error in the format of this service.
    pub(crate) error: fn(&Parts, &Call, &ErrorAnswer) -> Response,
}

/// What all stand-ins have in common: the faults that they inject, and the requests that they got. Clones share both.
#[derive(Clone)]
pub struct StandIn {
    faults: Faults,
    timeline: Timeline,
    certificates: Arc<Certificates>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl StandIn {
    pub(crate) fn new(timeline: &Timeline, certificates: &Arc<Certificates>) -> Self {
        Self {
            faults: Faults::default(),
            timeline: timeline.clone(),
            certificates: Arc::clone(certificates),
            requests: Arc::default(),
        }
    }

    /// Lets the next `times` requests that match, or connections, meet a fault.
    pub fn inject(&self, when: When, fault: Fault, times: usize) {
        self.faults.plan(when, fault, Due::Next(times));
    }

    /// Lets each request that matches meet a fault with this probability; the same seed, the same requests.
    pub fn inject_share(&self, when: When, fault: Fault, share: f64, seed: u64) {
        self.faults.plan(when, fault, Due::share(share, seed));
    }

    /// Lets the requests that match meet a fault as far as more than this number come in a second.
    pub fn limit(&self, when: When, fault: Fault, per_second: u32) {
        self.faults.plan(when, fault, Due::beyond(per_second));
    }

    /// Forgets all faults that are still planned.
    pub fn clear_faults(&self) {
        self.faults.clear();
    }

    /// How many faults were injected so far.
    pub fn faults_met(&self) -> usize {
        self.faults.met()
    }

    /// Closes every connection that is idle now, and the others after their answer.
    pub fn close_connections(&self) {
        self.faults.close();
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().clone()
    }

    /// No request may be in work.
    pub(crate) fn forget(&self) {
        self.requests.lock().clear();
    }

    /// Serves a stand-in's routes, with faults and records.
    pub(crate) fn service(&self, actor: Actor, routes: Router, role: Role) -> Service {
        let exchange = Exchange { stand_in: self.clone(), role };
        let certificates = Some(Arc::clone(&self.certificates));
        Service {
            actor,
            router: routes.layer(from_fn_with_state(exchange, handle)),
            faults: self.faults.clone(),
            timeline: self.timeline.clone(),
            certificates,
        }
    }

    /// Records the request before it is served, so that one whose client leaves meanwhile is seen too.
    fn arrived(&self, parts: &Parts, body: &[u8]) -> Option<usize> {
        if !self.timeline.is_open() {
            return None;
        }
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
        Some(requests.len() - 1)
    }

    /// An entry of its own, as the client may leave before the answer.
    fn delayed(&self, actor: Actor, call: &Call, fault: Option<Fault>) {
        self.timeline.push(Entry { fault, ..Entry::new(actor, Kind::Delayed(call.clone())) });
    }

    /// Returns the status that arrives.
    fn answered(&self, index: Option<usize>, response: &Response) -> Option<u16> {
        let request = &mut self.requests.lock()[index?];
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
    stand_in: StandIn,
    role: Role,
}

async fn handle(State(exchange): State<Exchange>, request: HttpRequest, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_LIMIT).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let stand_in = &exchange.stand_in;
    let (actor, call) = (exchange.role.call)(&parts, &body);
    let (index, arrived) = (stand_in.arrived(&parts, &body), Instant::now());
    let mut fault = stand_in.faults.take(&call);

    let mut response = match fault.clone() {
        Some(Fault::Delay(time)) => {
            stand_in.delayed(actor, &call, fault.take());
            sleep(time).await;
            serve(next, parts, body).await
        }
        Some(Fault::DelayAfter(time)) => {
            let response = serve(next, parts, body).await;
            stand_in.delayed(actor, &call, fault.take());
            sleep(time).await;
            response
        }
        Some(Fault::Status(error)) => retry_after((exchange.role.error)(&parts, &call, &error), &error),
        Some(Fault::CutBefore) => cut(StatusCode::OK.into_response(), Cut::Closed),
        Some(Fault::ResetBefore) => cut(StatusCode::OK.into_response(), Cut::Reset),
        Some(Fault::CutAfter) => cut(serve(next, parts, body).await, Cut::Closed),
        Some(Fault::ResetAfter) => cut(serve(next, parts, body).await, Cut::Reset),
        Some(Fault::CutWithin) => cut(serve(next, parts, body).await, Cut::Within),
        Some(Fault::Garbage) => replaced(&serve(next, parts, body).await, "<html>this is no JSON</html>"),
        Some(Fault::Empty) => replaced(&serve(next, parts, body).await, ""),
        None | Some(Fault::Refuse | Fault::CutHandshake | Fault::Show(_)) => serve(next, parts, body).await,
    };
    let status = stand_in.answered(index, &response);
    let called = Entry::new(actor, Kind::Called(call.clone()));
    stand_in.timeline.push(Entry { fault, status, took: arrived.elapsed(), ..called });
    if stand_in.faults.answered(&call) {
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

/// Always a success: an error with such a body is an ordinary error.
fn replaced(served: &Response, body: &'static str) -> Response {
    let status = if served.status().is_success() { served.status() } else { StatusCode::OK };
    (status, body).into_response()
}
