//! Anything that answers as the API server: to a read, to a Job, to the Secret, to the list of pod definitions.
//!
//! The requests go through our client, with its signature, its retries and its timeouts, to a service without a socket.

use std::{
    error::Error,
    future::pending,
    io,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use agent_scheduler::{
    agent_token::AgentToken,
    chain,
    deadline::Deadline,
    eks::{self, Cluster, Signer},
    library::Library,
    scheduler,
};
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_smithy_runtime_api::client::{
    http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn},
    orchestrator::{HttpRequest, HttpResponse},
};
use aws_smithy_types::{body::SdkBody, retry::RetryConfig};
use base64::{Engine, prelude::BASE64_STANDARD};
use http::{
    HeaderName, HeaderValue, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, RETRY_AFTER},
};
use kube::client::Body;
use serde_json::json;
use tokio::{
    runtime,
    time::{Instant, advance},
};
use tower::service_fn;

use crate::{CONFIGS, check_text, manifest, pod_definition};

/// The agent token, which occurs nowhere else.
const TOKEN: &str = "bkct_planted0123456789";

/// The time limit of each request.
const TIME: Duration = Duration::from_secs(58);

/// `data` is one answer or several, separated by `---`: a status, headers, an empty line, a body; or `reset` or `silence` in place
/// of an answer. The last one repeats.
pub fn run(data: &[u8]) {
    // On a paused clock: until the deadline there are some dozen retries.
    let runtime = runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("the runtime is valid").block_on(ask(data));
}

async fn ask(data: &[u8]) {
    let config = &CONFIGS[0];
    let cluster = || Cluster::new(client(data), endpoint(), config);

    let path = "/api/v1/namespaces/buildkite/podtemplates";
    check_error(cluster().get(path, deadline().await).await.err());
    let post = Request::post("/apis/batch/v1/namespaces/buildkite/jobs");
    check_error(cluster().send_json(post, &json!({"kind": "Job"}), deadline().await).await.err());

    let agent_token = AgentToken::new(config, SSM.clone());
    check_error(agent_token.deliver(&cluster(), deadline().await).await.err());

    let (library, cluster) = (Library::compiled(), cluster());
    let name: String = String::from_utf8_lossy(data).lines().last().unwrap_or_default().to_owned();
    for name in ["default", "node", &name] {
        match library.get(name, &cluster, deadline().await).await {
            Ok(definition) => manifest::check(&pod_definition::scheduled(), Some("default"), &definition, config),
            Err(error) => check_error(Some(error)),
        }
    }
}

/// A different one for each request, by which the server distinguishes a retry from a new request.
async fn deadline() -> Deadline {
    advance(Duration::from_millis(1)).await;
    Deadline::after(TIME)
}

/// Every error has a type of README's table, and a text for the log without the token.
fn check_error(error: Option<impl Error + Into<scheduler::Error>>) {
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
    let Some(error) = error.map(Into::into) else { return };
    assert!(TYPES.contains(&error.kind()), "{}", error.kind());
    let text = chain(&error);
    check_text(&text);
    for text in [text, format!("{error:?}")] {
        assert!(!text.contains(TOKEN) && !text.contains(&BASE64_STANDARD.encode(TOKEN)), "the token is in {text}");
    }
}

fn endpoint() -> Uri {
    Uri::from_static("https://api.example")
}

/// A client whose server gives these answers in turn.
fn client(data: &[u8]) -> kube::Client {
    let server = Arc::new(Mutex::new(Server { answers: answers(data), last: None }));
    let service = service_fn(move |request: Request<Body>| {
        let answer = server.lock().unwrap_or_else(PoisonError::into_inner).answer(&request);
        async move {
            match answer {
                Answer::Response(response) => Ok(response),
                Answer::Reset => Err(io::Error::from(io::ErrorKind::ConnectionReset)),
                Answer::Silence => pending().await,
            }
        }
    });
    let credentials = Credentials::new("AKID", "secret", None, None, "fuzz");
    let signer = Signer::new(credentials, "us-east-1", "example-cluster");
    eks::over(service, &endpoint(), signer).expect("the client is valid")
}

enum Answer {
    Response(Response<Body>),
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
    /// A request with this deadline got a 401.
    unauthorized: bool,
}

impl Server {
    fn answer(&mut self, request: &Request<Body>) -> Answer {
        assert_eq!(request.uri().host(), endpoint().host(), "{}", request.uri());
        assert!(
            request.headers().get(AUTHORIZATION).is_some_and(HeaderValue::is_sensitive),
            "the request is not signed"
        );
        let deadline = request.extensions().get::<Deadline>().expect("each request has its deadline").instant();
        let now = Instant::now();
        assert!(now < deadline, "a request {:?} after its deadline", now - deadline);
        let last = self.last.take().filter(|last| last.deadline == deadline);
        if let Some(last) = &last {
            let retry = last.retry.expect("an error that is not retryable is not retried");
            assert!(retry <= now, "a retry {:?} too early", retry - now);
        }

        let next = if self.answers.len() > 1 { self.answers.pop() } else { self.answers.last().cloned() };
        let answer = Answer::read(&next.unwrap_or_default());
        let unauthorized = last.is_some_and(|last| last.unauthorized);
        let (retry, unauthorized) = match &answer {
            Answer::Reset | Answer::Silence => (Some(now), unauthorized),
            Answer::Response(response) => match response.status().as_u16() {
                401 => ((!unauthorized).then_some(now), true),
                300..=399 => (Some(now), unauthorized),
                429 | 500 | 502 | 503 | 504 => (Some(now + retry_after(response)), unauthorized),
                _ => (None, unauthorized),
            },
        };
        self.last = Some(Answered { deadline, retry, unauthorized });
        answer
    }
}

/// Zero if the header is absent or invalid.
fn retry_after(response: &Response<Body>) -> Duration {
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

fn response(answer: &[u8]) -> Response<Body> {
    let end = answer.windows(2).position(|two| two == b"\n\n").unwrap_or(answer.len());
    let (head, body) = answer.split_at(end);
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.trim().parse().ok()).unwrap_or(StatusCode::OK);
    let mut response = Response::new(Body::from(body.get(2..).unwrap_or_default().to_vec()));
    *response.status_mut() = status;
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            response.headers_mut().append(name, value);
        }
    }
    response
}

/// An SSM that holds the token.
static SSM: LazyLock<aws_sdk_ssm::Client> = LazyLock::new(|| {
    let connector = SharedHttpConnector::new(Ssm);
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(SharedCredentialsProvider::new(Credentials::new("AKID", "secret", None, None, "fuzz")))
        .retry_config(RetryConfig::disabled())
        .http_client(http_client_fn(move |_, _| connector.clone()))
        .build();
    aws_sdk_ssm::Client::new(&config)
});

#[derive(Debug)]
struct Ssm;

impl HttpConnector for Ssm {
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
    let broken = json!({"metadata": {"name": "default"}, "template": {"spec": {}}});
    [
        "201\n\n{\"kind\":\"PartialObjectMetadata\"}".to_owned(),
        format!("200\n\n{}", json!({"items": [template]})),
        format!("200\n\n{}\n---\n{}", json!({"items": [broken]}), status(503, "ServiceUnavailable", "later")),
        status(409, "AlreadyExists", "jobs.batch \"buildkite-1\" already exists"),
        status(409, "Conflict", "Apply failed with 1 conflict"),
        status(401, "Unauthorized", "Unauthorized"),
        status(403, "Forbidden", "jobs.batch is forbidden: User \"u\" cannot create resource \"jobs\""),
        status(404, "NotFound", "namespaces \"builds\" not found"),
        status(422, "Invalid", "Job.batch \"j\" is invalid"),
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
