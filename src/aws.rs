//! How the function speaks to AWS: with the role's credentials that Lambda gives it, over the TLS stack that serves the API
//! server too, and trusting the roots that are compiled in.
//!
//! The SDK's own client reads the system's certificates file by file when it is made, which took two fifths of the CPU time
//! of a cold start.

use std::{env, time::Duration};

use aws_config::{
    BehaviorVersion, Region, SdkConfig, environment::EnvironmentVariableCredentialsProvider, timeout::TimeoutConfig,
};
use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, error::CredentialsError},
};
use aws_smithy_runtime_api::client::{
    http::{HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn},
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
};
use aws_smithy_types::body::SdkBody;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tower::BoxError;

/// Until there is a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// One try of a request; the SDK makes three.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// The variables that name a file of roots to trust instead, for a network whose proxy opens TLS.
const ROOTS_VARIABLES: [&str; 2] = ["AWS_CA_BUNDLE", "SSL_CERT_FILE"];

/// Roots that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{variable} must name a file of certificates in PEM, got {path:?}")]
pub struct RootsError {
    variable: &'static str,
    path: String,
    source: BoxError,
}

/// The credentials of the function's role: Lambda gives them in variables, and they last as long as this environment does.
pub async fn credentials() -> Result<Credentials, CredentialsError> {
    EnvironmentVariableCredentialsProvider::new().provide_credentials().await
}

/// What the clients of SSM and EKS are made from.
pub async fn sdk_config(region: &str, credentials: Credentials) -> Result<SdkConfig, RootsError> {
    let config = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .credentials_provider(credentials)
        .timeout_config(TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_TIMEOUT).build())
        .http_client(http_client(roots(|name| env::var(name).ok())?));
    Ok(config.load().await)
}

fn roots(var: impl Fn(&str) -> Option<String>) -> Result<RootCertStore, RootsError> {
    let named = |variable| Some((variable, var(variable).filter(|path| !path.is_empty())?));
    let Some((variable, path)) = ROOTS_VARIABLES.into_iter().find_map(named) else {
        return Ok(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() });
    };
    read_roots(&path).map_err(|source| RootsError { variable, path, source })
}

fn read_roots(path: &str) -> Result<RootCertStore, BoxError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path)? {
        roots.add(certificate?)?;
    }
    if roots.is_empty() { Err("it holds none".into()) } else { Ok(roots) }
}

fn http_client(roots: RootCertStore) -> SharedHttpClient {
    let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let mut tcp = connect::HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    // Plain http is for AWS_ENDPOINT_URL, such as that of a test.
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
    let connector = SharedHttpConnector::new(Connector(legacy::Client::builder(TokioExecutor::new()).build(https)));
    http_client_fn(move |_, _| connector.clone())
}

/// hyper, as the SDK wants to see it.
#[derive(Clone, Debug)]
struct Connector(legacy::Client<HttpsConnector<connect::HttpConnector>, SdkBody>);

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.0.clone();
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            // An I/O error is what the SDK tries again.
            let response = client.request(request).await.map_err(|error| ConnectorError::io(error.into()))?;
            let response = response.map(SdkBody::from_body_1_x);
            HttpResponse::try_from(response).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn mozillas_roots_are_trusted_unless_a_file_is_named() {
        let roots = |variable: &'static str, path: &str| roots(|name| (name == variable).then(|| path.to_owned()));
        assert!(roots("AWS_CA_BUNDLE", "").unwrap().len() > 100);

        let file = env::temp_dir().join(format!("agent-scheduler-roots-{}.pem", std::process::id()));
        fs::write(&file, lab::Lab::start().await.certificates.ca_pem()).unwrap();
        for variable in ROOTS_VARIABLES {
            assert_eq!(roots(variable, file.to_str().unwrap()).unwrap().len(), 1);
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
