//! AWS: how the function authenticates, and how often it asks.
//!
//! The SDK's loader is not used: it searches for profiles and credentials in places that a function does not have.

mod attempts;
pub mod eks;
pub mod eks_token;
pub mod ssm;

use std::time::Duration;

use aws_config::{
    BehaviorVersion, Region, SdkConfig, environment::EnvironmentVariableCredentialsProvider, identity::IdentityCache,
    retry::RetryConfig,
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

/// The credentials of the function's role: Lambda puts them into variables, and they last as long as this environment.
pub async fn credentials() -> Result<Credentials, CredentialsError> {
    EnvironmentVariableCredentialsProvider::new().provide_credentials().await
}

/// The common configuration of the clients of SSM and EKS.
pub fn sdk_config(
    region: &str,
    credentials: Credentials,
    roots: CertificateAuthority,
    var: impl Fn(&str) -> Option<String>,
) -> Result<SdkConfig, BoxError> {
    let var = |name: &str| var(name).filter(|value| !value.is_empty());
    // As many attempts as there is time for: a thousand cold starts at once wait for SSM, which answers 40 calls a second by
    // default. Not the adaptive mode: after one throttling its pauses have no jitter and reach ten seconds, and with 200 starts the
    // last one waited twice as long.
    let retries = RetryConfig::standard()
        .with_max_attempts(u32::MAX)
        .with_initial_backoff(FIRST_PAUSE)
        .with_max_backoff(MAX_PAUSE);
    let mut config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        // The credentials are values. A cache saves nothing, and adds up the pauses of all attempts.
        .identity_cache(IdentityCache::no_cache())
        .retry_config(retries)
        .http_client(http_client(roots)?);
    config.set_endpoint_url(var("AWS_ENDPOINT_URL"));
    config.set_use_fips(var("AWS_USE_FIPS_ENDPOINT").map(|value| value == "true"));
    config.set_use_dual_stack(var("AWS_USE_DUALSTACK_ENDPOINT").map(|value| value == "true"));
    Ok(config.build())
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
