//! AWS: how the function authenticates, and which roots it trusts.
//!
//! The SDK's loader is not used: it searches for profiles and credentials in places that a function does not have.

mod attempts;
pub mod eks;
pub mod eks_token;
pub mod ssm;

use std::{fs, time::Duration};

use aws_config::{
    BehaviorVersion, Region, SdkConfig, environment::EnvironmentVariableCredentialsProvider, retry::RetryConfig,
};
use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, SharedCredentialsProvider, error::CredentialsError},
};
use aws_smithy_runtime_api::client::{
    http::{HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn},
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
};
use aws_smithy_types::body::SdkBody;
use tower::BoxError;

use crate::{
    cause,
    https::{self, CertificateAuthority, Plain},
};

/// The maximum of the first pause between two attempts; each further one is up to twice as long.
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The maximum of all those pauses.
pub const MAX_PAUSE: Duration = Duration::from_secs(5);

/// The variables that name a file of roots to trust instead, for a network whose proxy decrypts TLS.
const ROOTS_VARIABLES: [&str; 2] = ["AWS_CA_BUNDLE", "SSL_CERT_FILE"];

/// Roots that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{variable} must name a file of certificates in PEM, got {path:?}")]
pub struct RootsError {
    variable: &'static str,
    path: String,
    source: BoxError,
}

/// The credentials of the function's role: Lambda puts them into variables, and they last as long as this environment.
pub async fn credentials() -> Result<Credentials, CredentialsError> {
    EnvironmentVariableCredentialsProvider::new().provide_credentials().await
}

/// The common configuration of the clients of SSM and EKS.
pub fn sdk_config(
    region: &str,
    credentials: Credentials,
    var: impl Fn(&str) -> Option<String>,
) -> Result<SdkConfig, BoxError> {
    let var = |name: &str| var(name).filter(|value| !value.is_empty());
    // As many attempts as there is time for: a thousand cold starts at once wait for SSM, which answers 40 calls a second by
    // default. Not `u32::MAX`: the SDK adds up the pauses. Not the adaptive mode: after one throttling its pauses have no jitter
    // and reach ten seconds, and with 200 starts the last one waited twice as long.
    let retries =
        RetryConfig::standard().with_max_attempts(1_000).with_initial_backoff(FIRST_PAUSE).with_max_backoff(MAX_PAUSE);
    let mut config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .retry_config(retries)
        .http_client(http_client(roots(var)?)?);
    config.set_endpoint_url(var("AWS_ENDPOINT_URL"));
    config.set_use_fips(var("AWS_USE_FIPS_ENDPOINT").map(|value| value == "true"));
    config.set_use_dual_stack(var("AWS_USE_DUALSTACK_ENDPOINT").map(|value| value == "true"));
    Ok(config.build())
}

fn roots(var: impl Fn(&str) -> Option<String>) -> Result<CertificateAuthority, RootsError> {
    let named = |variable| Some((variable, var(variable)?));
    let Some((variable, path)) = ROOTS_VARIABLES.into_iter().find_map(named) else {
        return Ok(CertificateAuthority(webpki_roots::TLS_SERVER_ROOTS.to_vec()));
    };
    let read = fs::read(&path).map_err(BoxError::from).and_then(|pem| CertificateAuthority::from_pem(&pem));
    read.map_err(|source| RootsError { variable, path, source })
}

fn http_client(roots: CertificateAuthority) -> Result<SharedHttpClient, BoxError> {
    let connector = SharedHttpConnector::new(Connector(https::client(roots, Plain::Allowed)?));
    Ok(http_client_fn(move |_, _| connector.clone()))
}

/// Our client, as the SDK's interface.
#[derive(Clone, Debug)]
struct Connector(https::Client<SdkBody>);

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.0.clone();
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            let response = client.request(request).await.map_err(|error| match cause(&error) {
                Some(rustls::Error::InvalidCertificate(_)) => ConnectorError::other(error.into(), None),
                // The SDK retries I/O errors.
                _ => ConnectorError::io(error.into()),
            })?;
            let response = response.map(SdkBody::from_body_1_x);
            HttpResponse::try_from(response).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
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
