//! The environment of an agent scheduler on one machine: Lambda, SSM and EKS of AWS, the Kubernetes API, and Buildkite.
//!
//! ```text
//!   test ──event──> Function (Runtime API + the real binary as a child process)
//!                      │ http, or https of the lab's authority
//!                      ├──> Aws         GetParameter, DescribeCluster
//!                      ├──> Buildkite   Stacks API, agent API
//!                      │ https of the lab's authority
//!                      └──> Kubernetes  Jobs, Secrets, PodTemplates; verifies the EKS token as the real one does
//! ```
//!
//! With [`ControlPlane::lab`] the functions use a real API server instead, and with [`Lab::forward_to`] one of the user's own. On a
//! [`Node`] the Jobs run.
//!
//! Each stand-in keeps its requests, records them in the [`Timeline`], and injects a [`Fault`] where a test wants one. Everything ends
//! when the [`Lab`] is dropped.
//!
//! ```no_run
//! # async fn example() {
//! use lab::{Event, Fault, Lab, When};
//!
//! let lab = Lab::start().await;
//! lab.kubernetes.inject(When::request("POST", "/jobs"), Fault::status(503), 1);
//! let function = lab.function("target/debug/agent-scheduler").env("BUILDKITE_QUEUE", "kubernetes").start();
//! assert_eq!(function.succeed(Event::scheduled()).await["outcome"], "created");
//! assert_eq!(lab.kubernetes.jobs().len(), 1);
//! # }
//! ```

pub mod aws;
pub mod buildkite;
mod certificates;
mod client;
pub mod clock;
pub mod control_plane;
mod credentials;
pub mod eks_token;
pub mod event;
mod exchange;
pub mod fault;
pub mod function;
pub mod kubeconfig;
pub mod kubernetes;
pub mod log_line;
pub mod node;
mod runtime_api;
mod server;
mod sts;
mod timeline;
mod wire;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use axum::{body::Body, http, response::Response};

use self::{credentials::random_hex, eks_token::Verifier, server::Server};

pub use self::{
    aws::{Aws, Parameter},
    buildkite::Buildkite,
    certificates::{Certificate, Certificates},
    client::Client,
    control_plane::ControlPlane,
    credentials::Credentials,
    event::Event,
    exchange::{Request, StandIn},
    fault::{Fault, When},
    function::{Answer, Function},
    kubernetes::Kubernetes,
    node::Node,
    timeline::{Actor, Call, Entry, Kind, Timeline},
};

/// The cluster of every lab.
pub const CLUSTER: &str = "example-cluster";
/// The parameter that holds the agent token.
pub const AGENT_TOKEN_PARAMETER: &str = "/buildkite/agent-token";

/// All stand-ins, with one certificate authority, one pair of keys, and one timeline.
pub struct Lab {
    /// SSM and EKS.
    pub aws: Aws,
    /// The cluster's API server.
    pub kubernetes: Kubernetes,
    /// The Stacks API and the agent API.
    pub buildkite: Buildkite,
    /// What happened, in order.
    pub timeline: Timeline,
    /// The authority behind every https URL of the lab.
    pub certificates: Arc<Certificates>,
    credentials: Credentials,
    agent_token: String,
    endpoint: String,
    ca_data: String,
    forwarder: Option<Server>,
}

impl Lab {
    /// On loopback, each server on a free port.
    pub async fn start() -> Self {
        Self::start_on(Ipv4Addr::LOCALHOST).await
    }

    /// Without sockets: [`Self::call`] answers.
    pub fn in_process() -> Self {
        let timeline = Timeline::start();
        let credentials = Credentials::random();
        let certificates = Arc::new(Certificates::new(Ipv4Addr::LOCALHOST.into()));
        let kubernetes = Kubernetes::new(&timeline, verifier(&credentials), &certificates);
        let aws = Aws::new(&timeline, &credentials, &certificates);
        let buildkite = Buildkite::new(&timeline, &certificates);
        Self::of(kubernetes, aws, buildkite, timeline, certificates, credentials)
    }

    /// Answers a request of a function without a socket. A connection that would be cut is an error.
    pub async fn call(&self, request: http::Request<Body>) -> io::Result<Response> {
        let service = match request.uri().host() {
            Some(kubernetes::HOST) => self.kubernetes.service(),
            Some(aws::HOST) => self.aws.service(),
            Some(buildkite::HOST) => self.buildkite.service(),
            _ => return Err(io::ErrorKind::HostUnreachable.into()),
        };
        service.call(request).await
    }

    /// On another address of this machine, so that a container can reach it too.
    pub async fn start_on(ip: impl Into<IpAddr>) -> Self {
        let ip = ip.into();
        let timeline = Timeline::start();
        let credentials = Credentials::random();
        let certificates = Arc::new(Certificates::new(ip));
        let kubernetes = Kubernetes::start(ip, &timeline, verifier(&credentials), &certificates).await;
        let aws = Aws::start(ip, &timeline, &credentials, &certificates).await;
        let buildkite = Buildkite::start(ip, &timeline, &certificates).await;
        Self::of(kubernetes, aws, buildkite, timeline, certificates, credentials)
    }

    fn of(
        kubernetes: Kubernetes,
        aws: Aws,
        buildkite: Buildkite,
        timeline: Timeline,
        certificates: Arc<Certificates>,
        credentials: Credentials,
    ) -> Self {
        let agent_token = format!("bkct_{}", random_hex::<20>());
        aws.put_parameter(AGENT_TOKEN_PARAMETER, Parameter::secure_string(&agent_token));
        let token = (buildkite::CLUSTER.to_owned(), buildkite::Token::Cluster);
        buildkite.lock().tokens.insert(agent_token.clone(), token);
        let (endpoint, ca_data) = (kubernetes.url(), kubernetes.ca_data());
        aws.put_cluster(CLUSTER, &endpoint, &ca_data);
        Self {
            aws,
            kubernetes,
            buildkite,
            timeline,
            certificates,
            credentials,
            agent_token,
            endpoint,
            ca_data,
            forwarder: None,
        }
    }

    /// Deletes the cluster and creates it again under its name: another endpoint, another CA, and nothing in it.
    pub async fn recreate_cluster(&mut self) {
        let certificates = Arc::new(Certificates::new(Ipv4Addr::LOCALHOST.into()));
        let verifier = verifier(&self.credentials);
        self.kubernetes = Kubernetes::start(Ipv4Addr::LOCALHOST.into(), &self.timeline, verifier, &certificates).await;
        self.set_endpoint(self.kubernetes.url(), self.kubernetes.ca_data());
    }

    /// Makes all functions from here on use another API server, which must know [`Self::verifier`]'s keys.
    pub(crate) fn set_endpoint(&mut self, endpoint: String, ca_data: String) {
        self.aws.put_cluster(CLUSTER, &endpoint, &ca_data);
        (self.endpoint, self.ca_data) = (endpoint, ca_data);
    }

    /// Puts the clocks of Buildkite and of the API server forward; the functions have that of this machine.
    pub fn skip(&self, time: Duration) {
        self.buildkite.lock().skipped += time;
        self.kubernetes.skip(time);
    }

    /// Verifies the EKS tokens of this lab's functions.
    pub(crate) fn verifier(&self) -> Verifier {
        verifier(&self.credentials)
    }

    /// A function with the variables of Lambda and those of this lab.
    pub fn function(&self, binary: impl Into<PathBuf>) -> function::Builder {
        let mut variables = self.variables();
        variables.extend(owned([
            ("AWS_LAMBDA_FUNCTION_NAME", "agent-scheduler"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
            ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
            ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"),
            ("AWS_LAMBDA_LOG_FORMAT", "JSON"),
            ("AWS_LAMBDA_LOG_LEVEL", "INFO"),
            ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/agent-scheduler"),
            ("AWS_LAMBDA_LOG_STREAM_NAME", "2026/01/15/[$LATEST]0123456789abcdef0123456789abcdef"),
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("LANG", "en_US.UTF-8"),
            ("TZ", ":UTC"),
            ("RUST_BACKTRACE", "1"),
        ]));
        function::Builder::new(binary.into(), variables, self.timeline.clone())
    }

    /// The same over TLS, as on Lambda: also to AWS and to Buildkite.
    pub fn function_over_tls(&self, binary: impl Into<PathBuf>) -> function::Builder {
        self.function(binary)
            .env("AWS_CA_BUNDLE", self.certificates.ca_file())
            .env("AWS_ENDPOINT_URL", self.aws.https_url())
            .env("BUILDKITE_STACKS_ENDPOINT", self.buildkite.https_url())
    }

    /// Clears the timeline, the requests and all Jobs, which would fill the memory in a long run. No function may be at work.
    pub fn forget(&self) {
        self.timeline.forget();
        self.aws.forget();
        self.kubernetes.forget();
        self.buildkite.forget();
    }

    /// The value of `/buildkite/agent-token`. It occurs nowhere else, so a test can search for a leak.
    pub fn agent_token(&self) -> &str {
        &self.agent_token
    }

    /// The keys that a function gets.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// What any function in this lab requires: the keys, the endpoints, and the settings with the defaults of `template.yml`.
    pub fn variables(&self) -> BTreeMap<String, String> {
        let Credentials { access_key_id, secret_access_key, session_token } = &self.credentials;
        owned([
            ("AWS_REGION", aws::REGION),
            ("AWS_DEFAULT_REGION", aws::REGION),
            ("AWS_ACCESS_KEY_ID", access_key_id),
            ("AWS_SECRET_ACCESS_KEY", secret_access_key),
            ("AWS_SESSION_TOKEN", session_token),
            ("AWS_ENDPOINT_URL", &self.aws.url()),
            ("BUILDKITE_QUEUE", "kubernetes"),
            ("BUILDKITE_AGENT_TOKEN_PARAMETER_PATH", AGENT_TOKEN_PARAMETER),
            ("KUBERNETES_NAMESPACE", kubernetes::NAMESPACE),
            ("AGENT_TOKEN_SECRET_NAME", "buildkite-agent-token"),
            ("JOB_TTL_SECONDS", "600"),
            ("JOB_ACTIVE_DEADLINE_SECONDS", "21600"),
            ("SWEEP_ENABLED", "true"),
            ("SWEEP_FINISHES", "true"),
            ("JOB_TOKENS", "false"),
            ("POD_PENDING_SECONDS", "900"),
            ("SERVE_JOBS_WITHOUT_QUEUE", "false"),
            ("STACK", "111122223333:us-east-1:buildkite-agent-scheduler"),
            ("STACKS_API", "true"),
            ("BUILDKITE_STACKS_ENDPOINT", &self.buildkite.url()),
            ("KUBERNETES_CLUSTER_IDENTIFIER", CLUSTER),
            ("KUBERNETES_API_SERVER_ENDPOINT", &self.endpoint),
            ("KUBERNETES_CERTIFICATE_AUTHORITY_DATA", &self.ca_data),
        ])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.buildkite.check();
    }
}

fn owned<const N: usize>(variables: [(&str, &str); N]) -> BTreeMap<String, String> {
    variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn verifier(credentials: &Credentials) -> Verifier {
    Verifier {
        cluster: CLUSTER.to_owned(),
        region: aws::REGION.to_owned(),
        access_key_id: credentials.access_key_id.clone(),
        secret_access_key: credentials.secret_access_key.clone(),
        session_token: credentials.session_token.clone(),
    }
}
