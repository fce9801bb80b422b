//! Anything that answers as the API server: to a read, to a Job, to the Secret, to the list of pod definitions.
//!
//! The requests go through our client, with its signature, its retries and its timeouts, to a service without a socket.

use std::{
    cell::Cell,
    future::pending,
    io,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use agent_scheduler::{
    agent_token::AgentToken,
    aws::{self, eks_token::Signer, ssm::Ssm},
    deadline::Deadline,
    definitions::Definitions,
    https::CertificateAuthority,
    kubernetes::{Client, Cluster},
    pod::job,
    report::Failure,
    scheduler::Error,
};
use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_smithy_runtime_api::client::{
    http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn},
    orchestrator::{HttpRequest, HttpResponse},
};
use aws_smithy_types::body::SdkBody;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, RETRY_AFTER},
};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::{
    runtime,
    time::{Instant, advance, sleep},
};
use tower::service_fn;

use crate::{DEFINITIONS, check_text, config, manifest, pod_definition};

/// The agent token, which occurs nowhere else.
const TOKEN: &str = "bkct_planted0123456789";

/// The time limit of each request.
const TIME: Duration = Duration::from_secs(58);

/// How long the server takes for each answer.
const ANSWER_TIME: Duration = Duration::from_millis(500);

thread_local! {
    /// Of the request that is being made.
    static DEADLINE: Cell<Option<Deadline>> = const { Cell::new(None) };
}

/// `data` is one answer or several, separated by `---`: a status, headers, an empty line, a body; or `reset` or `silence` in place
/// of an answer. The last one repeats.
pub fn run(data: &[u8]) {
    // On a paused clock: until the deadline there are some dozen retries.
    let runtime = runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("the runtime is valid").block_on(ask(data));
}

async fn ask(data: &[u8]) {
    let config = config(&[]).expect("these variables are valid");
    let (job, stack) = (pod_definition::scheduled(), &config.stack);
    let cluster = || Cluster::new(client(data), &config);
    let of_cluster = |error| Error::Cluster(Arc::new(error));

    check_error(cluster().pod_templates(deadline().await).await.map_err(of_cluster));
    let built = job::build(&job, Some("kubernetes"), None, &DEFINITIONS[0], stack);
    check_error(cluster().create_job(&built, deadline().await).await.map_err(of_cluster));
    check_error(cluster().job(&job::name(job.uuid), deadline().await).await.map_err(of_cluster));

    let agent_token = AgentToken::new(&config, Ssm::new(&SDK));
    check_error(
        agent_token.apply(&AgentToken::not_applied(), &cluster(), deadline().await).await.map_err(Error::AgentToken),
    );

    let (definitions, cluster) = (Definitions::compiled(), cluster());
    let name: String = String::from_utf8_lossy(data).lines().last().unwrap_or_default().to_owned();
    for name in ["default", "node", &name] {
        let definition = definitions.get(name, &cluster, deadline().await).await;
        if let Ok(definition) = &definition {
            manifest::check(&job, Some("kubernetes"), definition, stack);
        }
        check_error(definition.map_err(Error::Definition));
    }
}

/// A different one for each request: that is how the server distinguishes a retry from a new request.
async fn deadline() -> Deadline {
    advance(Duration::from_millis(1)).await;
    let deadline = Deadline::after(TIME);
    DEADLINE.set(Some(deadline));
    deadline
}

/// Every error has a type of README's table, and a text for the log without the token.
fn check_error<T>(result: Result<T, Error>) {
    const TYPES: [&str; 8] = [
        "AgentTokenUnavailable",
        "ClusterUnavailable",
        "Forbidden",
        "InvalidPodDefinition",
        "RejectedByApiServer",
        "Timeout",
        "Unauthorized",
        "UnknownPodDefinition",
    ];
    let Err(error) = result else { return };
    let Failure { error_type, text } = error.failure();
    assert!(TYPES.contains(&error_type), "{error_type}");
    check_text(&text);
    for text in [text, format!("{error:?}")] {
        assert!(!text.contains(TOKEN) && !text.contains(&BASE64_STANDARD.encode(TOKEN)), "the token is in {text}");
    }
}

fn endpoint() -> Uri {
    Uri::from_static("https://api.example")
}

/// A client whose server gives these answers in turn.
fn client(data: &[u8]) -> Client {
    let server = Arc::new(Mutex::new(Server { answers: answers(data), last: None }));
    let service = service_fn(move |request: Request<Full<Bytes>>| {
        let answer = server.lock().unwrap_or_else(PoisonError::into_inner).answer(&request);
        async move {
            // An endless list ends at the deadline.
            sleep(ANSWER_TIME).await;
            match answer {
                Answer::Response(response) => Ok(response.map(Full::<Bytes>::from)),
                Answer::Reset => Err(io::Error::from(io::ErrorKind::ConnectionReset)),
                Answer::Silence => pending().await,
            }
        }
    });
    let signer = Signer::new(credentials(), "us-east-1", "example-cluster");
    Client::over(service, endpoint(), signer)
}

enum Answer {
    Response(Response<Vec<u8>>),
    Reset,
    Silence,
}

/// The API server. It checks the retries.
struct Server {
    /// In reverse order.
    answers: Vec<Vec<u8>>,
    last: Option<Answered>,
}

/// The answer to the last request.
struct Answered {
    /// Of the request.
    deadline: Instant,
    /// From when the client may retry; `None` if it must not.
    retry: Option<Instant>,
    /// The client may ask for the next page.
    is_success: bool,
    /// A request with this deadline got a 401.
    unauthorized: bool,
}

impl Server {
    fn answer(&mut self, request: &Request<Full<Bytes>>) -> Answer {
        assert_eq!(request.uri().host(), endpoint().host(), "{}", request.uri());
        assert!(
            request.headers().get(AUTHORIZATION).is_some_and(HeaderValue::is_sensitive),
            "the request is not signed"
        );
        let deadline = DEADLINE.get().expect("each request has its deadline").instant();
        let is_next_page = request.uri().query().is_some_and(|query| query.contains("&continue="));
        let now = Instant::now();
        assert!(now < deadline, "a request {:?} after its deadline", now - deadline);
        let last = self.last.take().filter(|last| last.deadline == deadline);
        if let Some(last) = &last {
            match last.retry {
                Some(retry) => assert!(retry <= now, "a retry {:?} too early", retry - now),
                None => assert!(last.is_success && is_next_page, "an answer that is final is not followed by a retry"),
            }
        }

        let next = if self.answers.len() > 1 { self.answers.pop() } else { self.answers.last().cloned() };
        let answer = Answer::read(&next.unwrap_or_default());
        let unauthorized = last.is_some_and(|last| last.unauthorized);
        let is_success = matches!(&answer, Answer::Response(response) if response.status().is_success());
        let (retry, unauthorized) = match &answer {
            Answer::Reset | Answer::Silence => (Some(now), unauthorized),
            Answer::Response(response) => match response.status().as_u16() {
                401 => ((!unauthorized).then_some(now), true),
                300..=399 => (Some(now), unauthorized),
                429 | 500 | 502 | 503 | 504 => (Some(now + retry_after(response)), unauthorized),
                409 if is_write_conflict(response) => (Some(now + retry_after(response)), unauthorized),
                _ => (None, false),
            },
        };
        self.last = Some(Answered { deadline, retry, is_success, unauthorized });
        answer
    }
}

/// A conflict, but not of field managers.
fn is_write_conflict(response: &Response<Vec<u8>>) -> bool {
    let status: Value = serde_json::from_slice(response.body()).unwrap_or_default();
    let mut causes = status["details"]["causes"].as_array().into_iter().flatten();
    status["reason"] == "Conflict" && causes.all(|cause| cause["reason"] != "FieldManagerConflict")
}

/// Zero if the header is absent or invalid.
fn retry_after(response: &Response<Vec<u8>>) -> Duration {
    let text = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    Duration::from_secs(text.and_then(|text| text.parse::<u32>().ok()).unwrap_or_default().into())
}

/// In reverse order.
fn answers(data: &[u8]) -> Vec<Vec<u8>> {
    let mut answers = vec![Vec::new()];
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        match answers.last_mut() {
            Some(answer) if line != b"---\n" => answer.extend(line),
            _ => answers.push(Vec::new()),
        }
    }
    answers.reverse();
    answers
}

impl Answer {
    fn read(answer: &[u8]) -> Self {
        match answer.trim_ascii() {
            b"reset" => Self::Reset,
            b"silence" => Self::Silence,
            _ => Self::Response(response(answer)),
        }
    }
}

fn response(answer: &[u8]) -> Response<Vec<u8>> {
    let end = answer.windows(2).position(|two| two == b"\n\n").unwrap_or(answer.len());
    let (head, body) = answer.split_at(end);
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.trim().parse().ok()).unwrap_or(StatusCode::OK);
    let mut response = Response::new(body.get(2..).unwrap_or_default().to_vec());
    *response.status_mut() = status;
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            response.headers_mut().append(name, value);
        }
    }
    response
}

/// AWS, where SSM holds the token.
static SDK: LazyLock<SdkConfig> = LazyLock::new(|| {
    let connector = SharedHttpConnector::new(FakeSsm);
    let config = aws::sdk_config("us-east-1", credentials(), CertificateAuthority(Vec::new()), |_| None)
        .expect("the configuration is valid");
    config.into_builder().http_client(http_client_fn(move |_, _| connector.clone())).build()
});

fn credentials() -> Credentials {
    Credentials::new("AKID", "secret", None, None, "fuzz")
}

#[derive(Debug)]
struct FakeSsm;

impl HttpConnector for FakeSsm {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        let answer = json!({"Parameter": {"ARN": "arn:aws:ssm:us-east-1:1:parameter/token", "Value": TOKEN}});
        let response = Response::new(SdkBody::from(answer.to_string()));
        HttpConnectorFuture::ready(Ok(HttpResponse::try_from(response).expect("the response is valid")))
    }
}

/// One answer of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let status = |code: u16, reason: &str, message: &str| {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code});
        format!("{code}\ncontent-type: application/json\n\n{status}")
    };
    let template = json!({
        "metadata": {"name": "node"},
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "agent", "image": "agent:4"}]}},
    });
    let owned = json!({
        "kind": "Status", "status": "Failure", "reason": "Conflict", "code": 409,
        "details": {"causes": [{"reason": "FieldManagerConflict", "message": "conflict with \"other\""}]},
    });
    let broken = json!({"metadata": {"name": "default"}, "template": {"spec": {}}});
    [
        "201\n\n{\"kind\":\"PartialObjectMetadata\"}".to_owned(),
        format!("200\n\n{}", json!({"items": [template]})),
        format!("200\n\n{}\n---\n{{\"items\":[]}}", json!({"metadata": {"continue": "page-2"}, "items": [template]})),
        format!("200\n\n{}", json!({"metadata": {"continue": "the same page"}})),
        format!("200\n\n{}\n---\n{}", json!({"items": [broken]}), status(503, "ServiceUnavailable", "later")),
        status(409, "AlreadyExists", "jobs.batch \"buildkite-1\" already exists"),
        status(409, "Conflict", "Operation cannot be fulfilled on resourcequotas \"quota\""),
        format!("409\n\n{owned}"),
        status(401, "Unauthorized", "Unauthorized"),
        status(403, "Forbidden", "jobs.batch is forbidden: User \"u\" cannot create resource \"jobs\""),
        status(404, "NotFound", "namespaces \"builds\" not found"),
        status(422, "Invalid", "Job.batch \"j\" is invalid"),
        status(422, "Invalid", &"\u{10fffd}".repeat(3_000)),
        format!(
            "429\nretry-after: 1\n{}",
            status(429, "TooManyRequests", "slow down").split_once('\n').unwrap_or_default().1
        ),
        "429\nretry-after: 30\n\n---\n503\n\n---\n201\n\n{}".to_owned(),
        "401\ndate: Thu, 01 Jan 2026 00:00:00 GMT\n\n{}".to_owned(),
        "302\nlocation: https://login.example/\n\n".to_owned(),
        "reset\n---\nsilence\n---\n200\n\n{\"items\":[]}".to_owned(),
        "502\ncontent-type: text/html\n\n<html>bad gateway</html>".to_owned(),
        "200\n\n".to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec()
}
