//! The agent of a pod: it registers, acquires its job, runs the command, and ends. It asks the lab's Buildkite.

use std::{sync::Arc, time::Duration};

use axum::body::{Body, to_bytes};
use base64::{Engine, prelude::BASE64_STANDARD};
use http::{Request, header::AUTHORIZATION};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    cluster::{End, Gone},
    plan::Fate,
    world::World,
};

/// How often an agent tries to acquire its job.
const ACQUIRES: u32 = 7;

/// What an agent is started with, and what will happen to it.
pub struct Work<'a> {
    pub pod: &'a str,
    pub job_uid: &'a str,
    pub uuid: &'a str,
    pub token: &'a str,
    pub evicted_at: Option<Instant>,
    pub fate: Fate,
}

impl Work<'_> {
    fn is_evicted(&self) -> bool {
        self.evicted_at.is_some_and(|time| time <= Instant::now())
    }
}

impl World {
    /// From the start of its container to its end.
    pub async fn run_agent(self: &Arc<Self>, work: &Work<'_>) -> Result<End, Gone> {
        self.hold(work.pod, self.between(200, 3_000)).await?;
        if work.fate == Fate::AgentFails {
            return Ok(End::Exit(1));
        }
        let about = json!({"name": work.pod, "hostname": work.pod, "meta_data": ["queue=kubernetes"]});
        let (status, agent) = self.ask_buildkite("POST", "register", work.token, &about).await;
        let Some(session) = agent["access_token"].as_str().filter(|_| status == 200) else { return Ok(End::Exit(1)) };
        let path = |call: &str| format!("jobs/{}/{call}", work.uuid);
        for attempt in 1.. {
            let (status, _) = self.ask_buildkite("PUT", &path("acquire"), session, &Value::Null).await;
            match status {
                200 => break,
                422 => return Ok(End::Exit(27)),
                423 if attempt < ACQUIRES => self.hold(work.pod, Duration::from_secs(2_u64.pow(attempt))).await?,
                _ => return Ok(End::Succeeded),
            }
            if work.is_evicted() {
                return Ok(End::Disrupted);
            }
        }
        self.begins(work);
        let (status, _) = self.ask_buildkite("PUT", &path("start"), session, &Value::Null).await;
        let ended = if status == 200 { self.run_command(work).await } else { Ok(End::Succeeded) };
        self.state().running.remove(work.job_uid);
        if matches!(ended, Ok(End::Exit(_))) {
            self.lose_agent(work.uuid);
            return ended;
        }
        // An agent whose pod is deleted or evicted has time to report.
        let exit_status = if matches!(ended, Ok(End::Succeeded)) { "0" } else { "-1" };
        self.ask_buildkite("PUT", &path("finish"), session, &json!({"exit_status": exit_status})).await;
        ended
    }

    async fn run_command(&self, work: &Work<'_>) -> Result<End, Gone> {
        let end = Instant::now() + self.runs(work.uuid);
        while Instant::now() < end {
            self.hold(work.pod, self.plan.step.min(end - Instant::now())).await?;
            if work.fate == Fate::Crashes {
                return Ok(End::Exit(1));
            }
            if work.is_evicted() {
                return Ok(End::Disrupted);
            }
            if self.lab.buildkite.lock().jobs[work.uuid].state == "canceling" {
                break;
            }
        }
        Ok(End::Succeeded)
    }

    fn begins(&self, work: &Work) {
        let mut state = self.state();
        state.running.insert(work.job_uid.to_owned(), work.uuid.to_owned());
        let runs = state.runs.entry(work.uuid.to_owned()).or_default();
        *runs += 1;
        let runs = *runs;
        drop(state);
        self.note(format!("job {} begins in {}", work.uuid, work.pod));
        if runs > 1 {
            self.violated(format!("the command of job {} runs a second time", work.uuid));
        }
    }

    async fn ask_buildkite(&self, method: &str, path: &str, token: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder().method(method).uri(format!("{}/{path}", self.lab.buildkite.url()));
        let request = request.header(AUTHORIZATION, format!("Token {token}")).body(body);
        let answer = self.lab.buildkite.call(request.expect("the request is right")).await;
        let (parts, body) = answer.expect("an agent meets no trouble").into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
        (parts.status.as_u16(), serde_json::from_slice(&body).unwrap_or_default())
    }
}

/// Base64.
pub fn decoded(text: &str) -> Option<String> {
    String::from_utf8(BASE64_STANDARD.decode(text).ok()?).ok()
}
