//! The one TLS stack: rustls with aws-lc-rs, HTTP/1.1, for AWS and for the API server alike.
//!
//! Neither the SDK's client nor kube's is used. The SDK's reads the system's certificates file by file when it is made, half of
//! a cold start; kube's repeats requests for minutes, logs every failure, and brings along all other ways to log in to a
//! cluster, a tenth of the binary.

use std::{sync::Arc, time::Duration};

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use tower::BoxError;

use crate::config::CertificateAuthority;

/// Until there is a connection, TLS not counted.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the other side may leave unacknowledged what was sent, as it does if the connection is gone and nobody said so:
/// a NAT gateway forgets one that idles, and Lambda may have kept the function frozen meanwhile.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a connection is kept that nobody uses: less than the 90 s of an API server, and than any load balancer's limit.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// A client that keeps its connections.
pub type Client<Body> = legacy::Client<HttpsConnector<HttpConnector>, Body>;

/// Whether a URL may ask for no TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// For `AWS_ENDPOINT_URL`, such as that of a test.
    Allowed,
    /// Everywhere else.
    Refused,
}

/// A client that trusts `authority` and nobody else.
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
