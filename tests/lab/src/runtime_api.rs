//! Lambda's Runtime API for one function: hands out events, takes answers.
//!
//! <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>

use std::{
    collections::HashMap,
    mem,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot, watch};
use uuid::Uuid;

use crate::{
    aws::{ACCOUNT, REGION},
    credentials::random_hex,
    function::Answer,
    timeline::{Actor, Kind, Timeline},
};

/// An error as the runtime reports it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Diagnostic {
    error_type: String,
    error_message: String,
}

/// How far the start of the function has come.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Start {
    Pending,
    Done,
    Failed(Answer),
}

/// One event on its way to the function.
pub(crate) struct Invocation {
    pub(crate) event: String,
    /// How long the function may work on it.
    pub(crate) timeout: Duration,
    /// Sent when the function takes the event.
    pub(crate) handed: oneshot::Sender<Instant>,
    pub(crate) answer: oneshot::Sender<Answer>,
}

pub(crate) struct RuntimeApi {
    pub(crate) timeline: Timeline,
    /// The trace id of all events; without it each has its own.
    pub(crate) trace_id: Option<String>,
    pub(crate) start: watch::Sender<Start>,
    pub(crate) events: AsyncMutex<mpsc::UnboundedReceiver<Invocation>>,
    pub(crate) in_work: Mutex<HashMap<String, oneshot::Sender<Answer>>>,
}

impl RuntimeApi {
    pub(crate) fn routes(self: Arc<Self>) -> Router {
        Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
            .route("/2018-06-01/runtime/init/error", post(init_error))
            .with_state(self)
    }

    /// Ends an invocation; an id that is not in work is an error of the function.
    fn finish(&self, id: &str, answer: Answer) -> Response {
        self.timeline.record(Actor::Lambda, Kind::Answered(answer.clone()));
        let Some(waiting) = self.in_work.lock().remove(id) else {
            let body = json!({"errorType": "InvalidRequestID", "errorMessage": "Invalid request ID"});
            return (StatusCode::BAD_REQUEST, Json(body)).into_response();
        };
        // This fails after the deadline, when the answer is not waited for any more.
        let _ = waiting.send(answer);
        accepted()
    }
}

/// Waits for an event; real functions are frozen in this request.
async fn next(State(api): State<Arc<RuntimeApi>>) -> Response {
    if api.start.send_if_modified(|start| mem::replace(start, Start::Done) == Start::Pending) {
        api.timeline.record(Actor::Lambda, Kind::Ready);
    }
    let Some(Invocation { event, timeout, handed, answer }) = api.events.lock().await.recv().await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };

    let id = Uuid::new_v4().to_string();
    api.in_work.lock().insert(id.clone(), answer);
    api.timeline.record(Actor::Lambda, Kind::Invoked { bytes: event.len() });
    // The test may not wait any more; the function works on the event all the same.
    let _ = handed.send(Instant::now());
    let deadline = (SystemTime::now() + timeout).duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let headers = [
        ("content-type", "application/json".to_owned()),
        ("lambda-runtime-aws-request-id", id),
        ("lambda-runtime-deadline-ms", deadline.to_string()),
        ("lambda-runtime-invoked-function-arn", format!("arn:aws:lambda:{REGION}:{ACCOUNT}:function:agent-scheduler")),
        ("lambda-runtime-trace-id", api.trace_id.clone().unwrap_or_else(trace_id)),
    ];
    (headers, event).into_response()
}

async fn response(State(api): State<Arc<RuntimeApi>>, Path(id): Path<String>, body: Bytes) -> Response {
    let answer =
        serde_json::from_slice(&body).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
    api.finish(&id, Answer::Success(answer))
}

async fn error(State(api): State<Arc<RuntimeApi>>, Path(id): Path<String>, body: Bytes) -> Response {
    let Diagnostic { error_type, error_message } = diagnostic(&body);
    api.finish(&id, Answer::Error { error_type, error_message })
}

async fn init_error(State(api): State<Arc<RuntimeApi>>, body: Bytes) -> Response {
    let Diagnostic { error_type, error_message } = diagnostic(&body);
    let answer = Answer::InitError { error_type, error_message };
    api.timeline.record(Actor::Lambda, Kind::Answered(answer.clone()));
    api.start.send_replace(Start::Failed(answer));
    accepted()
}

fn diagnostic(body: &[u8]) -> Diagnostic {
    serde_json::from_slice(body).unwrap_or_else(|_| Diagnostic {
        error_type: "Unreadable".to_owned(),
        error_message: String::from_utf8_lossy(body).into_owned(),
    })
}

fn accepted() -> Response {
    (StatusCode::ACCEPTED, Json(json!({"status": "OK"}))).into_response()
}

pub(crate) fn trace_id() -> String {
    format!("Root=1-{}-{};Parent={};Sampled=0", random_hex::<4>(), random_hex::<12>(), random_hex::<8>())
}

#[cfg(test)]
mod tests;
