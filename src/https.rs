//! The one TLS stack: rustls with aws-lc-rs, HTTP/1.1, for AWS and for the API server alike.
//!
//! Neither the SDK's client nor kube's is used. The SDK's reads the system's certificates file by file when it is made, half of
//! a cold start. kube's repeats requests for minutes, logs every failure, hands each request to another task, and brings along all
//! other ways to log in to a cluster, a tenth of the binary.

use std::{cell::RefCell, fs, str::FromStr, sync::Arc, time::Duration};

use aws_smithy_types::{DateTime, date_time::Format};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header::DATE};
use http_body_util::{BodyExt, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        self,
        connect::{HttpConnector, capture_connection},
    },
    rt::TokioExecutor,
};
use k8s_openapi::jiff::Timestamp;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, TrustAnchor, pem::PemObject};
use tokio::time::timeout;
use tower::{BoxError, Service, ServiceExt, util::BoxCloneSyncService};

/// Until there is a connection, without TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the server may leave sent data unacknowledged. A connection can vanish without a word: a NAT gateway forgets an
/// idle one, and Lambda may have frozen the function meanwhile.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an idle connection is kept: less than the 90 s of an API server, and than the limit of any load balancer.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// A larger answer is an error, before it takes the function's memory.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// The function's name in the logs of the APIs, such as the cluster's audit log.
pub const AGENT: &str = concat!("agent-scheduler/", env!("CARGO_PKG_VERSION"));

/// The variables that name a file of roots to trust instead, for a network whose proxy decrypts TLS.
const ROOTS_VARIABLES: [&str; 2] = ["AWS_CA_BUNDLE", "SSL_CERT_FILE"];

/// A client that keeps its connections.
pub type Client<Body> = legacy::Client<HttpsConnector<HttpConnector>, Body>;

/// All servers, in a simulation.
pub type Servers = BoxCloneSyncService<Request<Bytes>, Response<Bytes>, BoxError>;

thread_local! {
    static SERVERS: RefCell<Option<Servers>> = const { RefCell::new(None) };
}

/// From here on these servers get the requests of this thread, but for those of the SDK, in place of the network.
pub fn simulate(servers: Servers) {
    SERVERS.set(Some(servers));
}

/// Whether a URL may ask for no TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// For `AWS_ENDPOINT_URL`, such as that of a test.
    Allowed,
    /// Everywhere else.
    Refused,
}

/// The certificates that are trusted to sign a server's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateAuthority(pub Vec<TrustAnchor<'static>>);

/// A connection, but no answer.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} ms", .0.as_millis())]
pub struct NoAnswer(Duration);

/// Roots that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{variable} must name a file of certificates in PEM, got {path:?}")]
pub struct RootsError {
    variable: &'static str,
    path: String,
    source: BoxError,
}

/// No connection.
#[derive(Debug, thiserror::Error)]
#[error("no connection within {} ms", .0.as_millis())]
struct NoConnection(Duration);

/// A redirection, which none of our APIs sends, and which must not pass for a success.
#[derive(Debug, thiserror::Error)]
#[error("{0}, which is not an answer of an API")]
struct Redirected(StatusCode);

impl CertificateAuthority {
    /// Reads one certificate or several; an error without any.
    pub fn from_pem(pem: &[u8]) -> Result<Self, BoxError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate?)?;
        }
        if roots.is_empty() { Err("there is no certificate in it".into()) } else { Ok(Self(roots.roots)) }
    }
}

impl FromStr for CertificateAuthority {
    type Err = &'static str;

    /// Reads base64 of PEM, which is how EKS, kubeconfig and CloudFormation write it.
    fn from_str(value: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "base64 of a PEM certificate, as `aws eks describe-cluster` shows it";
        let pem = BASE64_STANDARD.decode(value).map_err(|_| EXPECTED)?;
        Self::from_pem(&pem).map_err(|_| EXPECTED)
    }
}

/// The roots that are trusted outside the cluster: Mozilla's, or those of the file that a variable names.
pub fn roots(var: impl Fn(&str) -> Option<String>) -> Result<CertificateAuthority, RootsError> {
    let named = |variable| Some((variable, var(variable).filter(|path| !path.is_empty())?));
    let Some((variable, path)) = ROOTS_VARIABLES.into_iter().find_map(named) else {
        return Ok(CertificateAuthority(webpki_roots::TLS_SERVER_ROOTS.to_vec()));
    };
    let read = fs::read(&path).map_err(BoxError::from).and_then(|pem| CertificateAuthority::from_pem(&pem));
    read.map_err(|source| RootsError { variable, path, source })
}

/// A client that trusts `authority` alone.
pub fn client<Body>(authority: CertificateAuthority, plain: Plain) -> Result<Client<Body>, BoxError>
where
    Body: http_body::Body<Data: Send> + Send,
{
    let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore { roots: authority.0 })
        .with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT));
    let https = HttpsConnectorBuilder::new().with_tls_config(tls);
    let https = match plain {
        Plain::Allowed => https.https_or_http(),
        Plain::Refused => https.https_only(),
    };
    let mut client = legacy::Client::builder(TokioExecutor::new());
    client.pool_idle_timeout(IDLE_TIMEOUT);
    // So that a request which fails on a kept connection, after a freeze, is repeated on a new one and not on the next dead one.
    client.pool_max_idle_per_host(1);
    Ok(client.build(https.enable_http1().wrap_connector(tcp)))
}

/// Sends a request once, and reads the answer to its end, since it may break off anywhere.
pub async fn send<H, Sent, Received>(
    http: H,
    mut request: Request<Sent>,
    time: Duration,
) -> Result<Response<Bytes>, BoxError>
where
    H: Service<Request<Sent>, Response = Response<Received>, Error: Into<BoxError>>,
    Sent: http_body::Body<Error: Into<BoxError>>,
    Received: http_body::Body<Error: Into<BoxError>>,
{
    if let Some(servers) = SERVERS.with_borrow(Clone::clone) {
        return simulated(servers, request, time).await;
    }
    let connection = capture_connection(&mut request);
    let answer = async {
        let (parts, body) = http.oneshot(request).await.map_err(Into::into)?.into_parts();
        if parts.status.is_redirection() {
            return Err(Redirected(parts.status).into());
        }
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    };
    match timeout(time, answer).await {
        Ok(answer) => answer,
        Err(_) if connection.connection_metadata().is_none() => Err(NoConnection(time).into()),
        Err(_) => Err(NoAnswer(time).into()),
    }
}

async fn simulated<Sent>(servers: Servers, request: Request<Sent>, time: Duration) -> Result<Response<Bytes>, BoxError>
where
    Sent: http_body::Body<Error: Into<BoxError>>,
{
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(Into::into)?.to_bytes();
    let answer = timeout(time, servers.oneshot(Request::from_parts(parts, body))).await;
    answer.unwrap_or_else(|_| Err(NoAnswer(time).into()))
}

/// Whether no connection came about: another server may have the place by now.
pub fn is_connect(error: &BoxError) -> bool {
    error.downcast_ref::<legacy::Error>().is_some_and(legacy::Error::is_connect)
}

/// The clock of the server that answered, in whole seconds.
pub fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let date = DateTime::from_str(headers.get(DATE)?.to_str().ok()?, Format::HttpDate).ok()?;
    Timestamp::from_second(date.secs()).ok()
}

#[cfg(test)]
mod tests {
    use std::env;

    use super::*;

    #[tokio::test]
    async fn mozillas_roots_are_trusted_unless_a_file_is_named() {
        let roots = |variable: &'static str, path: &str| roots(|name| (name == variable).then(|| path.to_owned()));
        assert!(roots("UNRELATED", "").unwrap().0.len() > 100);

        let file = env::temp_dir().join(format!("agent-scheduler-roots-{}.pem", std::process::id()));
        fs::write(&file, lab::Lab::start().await.certificates.ca_pem()).unwrap();
        for variable in ROOTS_VARIABLES {
            assert_eq!(roots(variable, file.to_str().unwrap()).unwrap().0.len(), 1);
        }
        fs::write(&file, "no certificate").unwrap();
        let error = roots("SSL_CERT_FILE", file.to_str().unwrap()).unwrap_err();
        assert!(
            error.to_string().starts_with("SSL_CERT_FILE must name a file of certificates in PEM, got "),
            "{error}"
        );
        fs::remove_file(&file).unwrap();
        assert!(roots("AWS_CA_BUNDLE", file.to_str().unwrap()).is_err());
    }
}
