//! The requests of the functions: each takes some time, may meet a trouble, and is checked.

use std::{cell::Cell, collections::BTreeMap, sync::Arc, time::Duration};

use agent_scheduler::{agent_token, definitions, log};
use aws_smithy_runtime_api::client::{
    http::{HttpConnector, HttpConnectorFuture},
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
};
use aws_smithy_types::body::SdkBody;
use axum::body::Body;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode,
    header::{AUTHORIZATION, RETRY_AFTER},
};
use http_body_util::BodyExt;
use lab::{Call, Fault, When};
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tower::BoxError;

use crate::{
    plan::{Planted, Server, What},
    world::World,
};

/// What is listed.
const LISTS: [&str; 5] = ["/jobs", "/pods", "/events", "/podtemplates", "/scheduled-jobs"];

/// The most items of a page, of which an invocation holds one.
const MAX_PAGE: u32 = 1_000;

/// The path of the stack's Jobs.
const JOBS: &str = "apis/batch/v1/namespaces/buildkite/jobs";

thread_local! {
    /// The one that is polled now, on this thread.
    pub static INVOCATION: Cell<Invocation> = const { Cell::new(Invocation { number: 0, environment: 0, is_plain: false }) };
}

/// An invocation.
#[derive(Clone, Copy)]
pub struct Invocation {
    pub number: usize,
    /// The number of its first invocation.
    pub environment: usize,
    /// It is for one event whose job needs nothing but what is kept.
    pub is_plain: bool,
}

/// What an invocation has done.
#[derive(Default)]
pub struct Record {
    /// How many requests it sent to Kubernetes, but for what it keeps.
    pub requests: u32,
    /// The names of the Jobs that it made, also if it does not know that.
    pub made: Vec<String>,
    /// How many jobs it finished.
    pub finished: u64,
    /// It had to wait, or got another answer than it hoped for.
    pub is_disturbed: bool,
    /// It could not read an answer.
    pub is_garbled: bool,
    /// The sums of its metrics.
    pub metrics: BTreeMap<String, u64>,
}

/// What a server has asked of an environment: no request under this limit before that time.
pub type Pauses = BTreeMap<Limit, Instant>;

/// The number of an environment, the server, and the call if each has a limit of its own, as with Buildkite.
type Limit = (usize, Server, Option<String>);

/// A pause that is longer is for one request.
const MAX_PAUSE: u64 = 30;

/// When an environment has read or written what it keeps.
#[derive(Default)]
pub struct Read(BTreeMap<(usize, &'static str), Instant>);

/// What an environment keeps, by the end of the path of its request, and for how long.
const KEPT: [(Server, &str, Duration); 3] = [
    (Server::Kubernetes, "/podtemplates", definitions::MAX_AGE),
    (Server::Kubernetes, "/secrets/buildkite-agent-token", agent_token::MAX_AGE),
    (Server::Aws, "/", agent_token::MAX_AGE),
];

/// The HTTP client of the SDK.
#[derive(Clone)]
pub struct Sdk(pub Arc<World>);

impl World {
    /// Answers a request of a function.
    pub async fn answer(self: Arc<Self>, mut request: Request<Bytes>) -> Result<Response<Bytes>, BoxError> {
        if let Some(planted) = self.plan.planted {
            self.spoil(planted, &mut request);
        }
        if self.plan.planted == Some(Planted::Looks)
            && let Some(look) = look(&request)
        {
            Box::pin(Arc::clone(&self).answer(look)).await?;
        }
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let server = match request.uri().host().unwrap_or_default() {
            host if host.starts_with("kubernetes") => Server::Kubernetes,
            host if host.starts_with("buildkite") => Server::Buildkite,
            _ => Server::Aws,
        };
        let invocation = INVOCATION.get();
        if server == Server::Kubernetes && request.uri().port_u16() != self.api_server_port() {
            return Err("nothing listens at the endpoint of the old cluster".into());
        }
        let call = path.rsplit('/').next().filter(|_| server == Server::Buildkite).map(str::to_owned);
        let limit = (invocation.environment, server, call);
        let kept = KEPT.iter().find(|(of, end, _)| *of == server && path.ends_with(end));
        if let Some(kept) = kept {
            self.check_kept(invocation, kept);
        }
        self.check_request(&request);
        self.check_pause(&limit, &request);
        self.check_pages(&request);
        self.record(|record| record.requests += u32::from(server == Server::Kubernetes && kept.is_none()));
        self.travel().await;
        let fault = self.fault(server, &Call::new(method.as_str(), &path));
        let is_quiet = fault.is_none();
        let fault = match fault {
            None => self.wait_for_turn(server).await,
            fault => fault,
        };
        self.record(|record| {
            record.is_disturbed |= fault.is_some();
            record.is_garbled |= matches!(fault, Some(Fault::Garbage));
        });
        if let Some(fault) = fault {
            let stand_in = match server {
                Server::Aws => &*self.lab.aws,
                Server::Buildkite => &*self.lab.buildkite,
                Server::Kubernetes => &*self.lab.kubernetes,
            };
            stand_in.inject(When::any(), fault, 1);
        }
        let before = if method == Method::DELETE { self.lab.kubernetes.job_uids() } else { Vec::new() };
        let answer = self.lab.call(request.map(Body::from)).await;
        self.control();
        let status = answer.as_ref().map_or(0, |answer| answer.status().as_u16());
        let is_success = (200..300).contains(&status);
        self.record(|record| {
            record.is_disturbed |= !is_success;
            record.finished += u64::from(is_success && server == Server::Buildkite && path.ends_with("/finish"));
        });
        *self.state().seen.answers.entry((server, status)).or_default() += 1;
        self.check_deleted(before);
        let (parts, body) = answer?.into_parts();
        let mut response = Response::from_parts(parts, body.collect().await?.to_bytes());
        self.travel().await;
        let pause = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        if let (429, Some(pause @ ..=MAX_PAUSE)) = (response.status().as_u16(), pause) {
            let until = Instant::now() + Duration::from_secs(pause);
            let mut state = self.state();
            let pause = state.pauses.entry(limit).or_insert(until);
            *pause = until.max(*pause);
        }
        if let Some((_, end, _)) = kept.filter(|_| is_quiet && is_success) {
            self.state().read.0.insert((invocation.environment, end), Instant::now());
        }
        match self.plan.planted {
            Some(Planted::Hurries) => drop(response.headers_mut().remove(RETRY_AFTER)),
            Some(Planted::Prints) => log::print(response.body()),
            Some(Planted::Boasts) if method == Method::POST && path.ends_with("/jobs") && status == 409 => {
                *response.status_mut() = StatusCode::CREATED;
            }
            _ => {}
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
            Planted::Orphans if *request.method() == Method::POST && path.ends_with("/secrets") => {
                let mut secret: Value = serde_json::from_slice(request.body()).expect("a Secret is JSON");
                secret["metadata"]["ownerReferences"] = Value::Null;
                *request.body_mut() = secret.to_string().into();
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
            Planted::Hoards if *request.method() == Method::GET && path.ends_with("/pods") => {
                let uri = request.uri().to_string().replace("limit=", "limit=1");
                *request.uri_mut() = uri.parse().expect("a URI");
            }
            Planted::Clings if path.ends_with("/podtemplates") => {
                let uri = format!("{}{path}?limit=1&labelSelector=none=none", self.lab.kubernetes.url());
                *request.uri_mut() = uri.parse().expect("a URI");
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

    /// What so many ways between the function and a server take at most.
    pub fn travels(&self, ways: u32) -> Duration {
        Duration::from_millis(self.plan.latency) * ways
    }

    /// The fault that the request meets, if one is due.
    fn fault(&self, server: Server, call: &Call) -> Option<Fault> {
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

    /// A service takes so many requests at once, and refuses others.
    async fn wait_for_turn(&self, server: Server) -> Option<Fault> {
        let (rates, busy) = (self.plan.rates, Fault::throttled(Duration::from_secs(1)));
        let (wait, refusal) = {
            let backlogs = &mut self.state().backlogs;
            match server {
                // One that is not throttled does not wait.
                Server::Aws => {
                    (rates.ssm.map(|rate| backlogs.ssm.enter(rate).map(|_| Duration::ZERO)), Fault::throttling())
                }
                Server::Kubernetes => (rates.api_server.map(|rate| backlogs.api_server.enter(rate)), busy),
                Server::Buildkite => (None, busy),
            }
        };
        match wait {
            Some(Some(wait)) => sleep(wait).await,
            Some(None) => return Some(refusal),
            None => {}
        }
        None
    }

    /// The token is nowhere but in the Secret.
    fn check_request(&self, request: &Request<Bytes>) {
        let text = format!("{} {}", request.uri(), String::from_utf8_lossy(request.body()));
        let is_secret = request.method() == Method::PATCH && request.uri().path().contains("/secrets/");
        let is_own_secret = request.method() == Method::POST && request.uri().path().ends_with("/secrets");
        let may_have_token = is_secret && !self.plan.has_job_tokens;
        if !may_have_token && self.has_token(&text) || !is_own_secret && has_job_token(&text) {
            self.violated(format!("the agent token is in {} {}", request.method(), request.uri()));
        }
    }

    /// A list has pages: the memory is that of one page and of what is kept of it.
    fn check_pages(&self, request: &Request<Bytes>) {
        let path = request.uri().path();
        let is_list = *request.method() == Method::GET && LISTS.iter().any(|list| path.ends_with(list));
        let mut parameters = request.uri().query().unwrap_or_default().split('&');
        let limit: Option<u32> = parameters.find_map(|parameter| parameter.strip_prefix("limit=")?.parse().ok());
        if is_list && limit.is_none_or(|limit| limit > MAX_PAGE) {
            self.violated(format!("{path} is listed without a limit, or with a large one: {limit:?}"));
        }
    }

    /// A pause that a server asked for is kept.
    fn check_pause(&self, limit: &Limit, request: &Request<Bytes>) {
        let until = self.state().pauses.get(limit).copied();
        if let Some(early) = until.and_then(|until| until.checked_duration_since(Instant::now()))
            && !early.is_zero()
        {
            self.violated(format!("{} {} comes {early:?} before its Retry-After", request.method(), request.uri()));
        }
    }

    /// Adds to the record of the invocation that is polled now.
    pub fn record(&self, add: impl FnOnce(&mut Record)) {
        add(self.state().records.entry(INVOCATION.get().number).or_default());
    }

    /// Takes what a function prints: its log and its metrics.
    pub fn print(&self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end();
        if self.has_token(line) || has_job_token(line) {
            self.violated(format!("the agent token is in the log: {line}"));
        }
        let Ok(Value::Object(metrics)) = serde_json::from_str(line) else {
            self.lab.timeline.print(line);
            return;
        };
        for (name, value) in metrics {
            let miscounts = self.plan.planted == Some(Planted::Miscounts) && name == "JobsCreated";
            if let Some(count) = value.as_u64().filter(|_| !miscounts) {
                self.record(|record| *record.metrics.entry(name).or_default() += count);
            }
        }
    }

    /// A plain event asks only for what is too old: warm, it is one request to Kubernetes.
    fn check_kept(&self, invocation: Invocation, (_, end, max_age): &(Server, &'static str, Duration)) {
        let read = self.state().read.0.get(&(invocation.environment, *end)).copied();
        let changes =
            |what: &What| matches!(what, What::Rotate | What::DeleteSecrets | What::TakeSecret | What::Rebuild);
        let may_change = end.contains("/secrets/") && self.plan.troubles.iter().any(|trouble| changes(&trouble.what));
        if let Some(age) = read.map(|read| read.elapsed()).filter(|age| age < max_age)
            && invocation.is_plain
            && !may_change
        {
            self.violated(format!("invocation {} asks again for {end}, of {age:?} ago", invocation.number));
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

/// A list of Jobs, before one is made.
fn look(request: &Request<Bytes>) -> Option<Request<Bytes>> {
    let uri = Some(request.uri()).filter(|uri| request.method() == Method::POST && uri.path().ends_with("/jobs"))?;
    let (path, _) = uri.path_and_query()?.as_str().split_once('?')?;
    let mut look = Request::get(format!("https://{}{path}?limit=1", uri.authority()?)).body(Bytes::new()).ok()?;
    look.headers_mut().insert(AUTHORIZATION, request.headers().get(AUTHORIZATION)?.clone());
    Some(look)
}

/// Whether a token for one job is in a text, as it is or in base64.
fn has_job_token(text: &str) -> bool {
    text.contains("bkjat_") || text.contains("YmtqYXRf")
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
