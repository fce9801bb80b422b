//! How the function speaks to AWS: with what Lambda gives it in variables, and trusting the roots that are compiled in.
//!
//! The SDK's loader is not used: it looks for profiles and for credentials in places that a function does not have.

use std::{
    error::Error as StdError,
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_config::{
    BehaviorVersion, Region, SdkConfig, environment::EnvironmentVariableCredentialsProvider, retry::RetryConfig,
    timeout::TimeoutConfig,
};
use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, SharedCredentialsProvider, error::CredentialsError},
};
use aws_sdk_ssm::config::retry::{RetryPartition, TokenBucket};
use aws_smithy_runtime_api::client::{
    http::{HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn},
    interceptors::{Intercept, context::FinalizerInterceptorContextRef, dyn_dispatch_hint},
    orchestrator::{HttpRequest, HttpResponse},
    result::{ConnectorError, SdkError},
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::{body::SdkBody, config_bag::ConfigBag, error::metadata::ProvideErrorMetadata};
use tokio::time::timeout_at;
use tower::BoxError;

use crate::{
    cause, chain,
    config::CertificateAuthority,
    deadline::Deadline,
    https::{self, Plain},
};

/// One try of a request.
const TRY: Duration = Duration::from_secs(5);

/// The longest pause between two tries.
const PAUSE: Duration = Duration::from_secs(5);

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
pub fn sdk_config(
    region: &str,
    credentials: Credentials,
    var: impl Fn(&str) -> Option<String>,
) -> Result<SdkConfig, BoxError> {
    let var = |name: &str| var(name).filter(|value| !value.is_empty());
    // As many tries as there is time for: a thousand cold starts at once wait for SSM, which gives 40 answers a second by default.
    // Not `u32::MAX`: the SDK sums up what so many pauses would take. Not the adaptive mode: after one throttling its pauses have
    // no jitter and reach ten seconds, and with 200 starts the last waited twice as long.
    let retries = RetryConfig::standard()
        .with_max_attempts(1_000)
        .with_initial_backoff(Duration::from_millis(100))
        .with_max_backoff(PAUSE);
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

/// The client of SSM.
pub fn ssm(config: &SdkConfig) -> aws_sdk_ssm::Client {
    let config = aws_sdk_ssm::config::Builder::from(config).retry_partition(unlimited_retries());
    aws_sdk_ssm::Client::from_conf(config.build())
}

/// The client of EKS.
pub fn eks(config: &SdkConfig) -> aws_sdk_eks::Client {
    let config = aws_sdk_eks::config::Builder::from(config).retry_partition(unlimited_retries());
    aws_sdk_eks::Client::from_conf(config.build())
}

/// The SDK would give a process some hundred retries for good: after two bad minutes it would never try again.
fn unlimited_retries() -> RetryPartition {
    RetryPartition::custom("agent-scheduler").token_bucket(TokenBucket::unlimited()).build()
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

/// The tries that the SDK makes of one request: how long, and what is left to tell of them.
#[derive(Clone, Debug)]
pub struct Tries {
    deadline: Deadline,
    last_failure: Arc<Mutex<Option<String>>>,
}

/// A request that got no answer that helps.
#[derive(Debug)]
pub struct Failure {
    /// The service's name for it.
    pub code: Option<String>,
    /// What the SDK says.
    pub source: BoxError,
}

impl Tries {
    /// As many as there is time for.
    pub fn until(deadline: Deadline) -> Self {
        Self { deadline, last_failure: Arc::default() }
    }

    /// For one try.
    pub fn timeouts(&self) -> TimeoutConfig {
        TimeoutConfig::builder().operation_attempt_timeout(self.deadline.one_try(TRY)).build()
    }

    /// The answer that comes in time; else why the last try failed.
    pub async fn answer<T, E>(
        &self,
        sent: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, Failure>
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        match timeout_at(self.deadline.instant(), sent).await {
            Ok(answer) => answer.map_err(|error| Failure {
                code: error.code().map(str::to_owned),
                source: error.into_source().unwrap_or_else(Into::into),
            }),
            Err(late) => {
                let last = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).take();
                Err(Failure { code: None, source: last.map_or_else(|| late.into(), Into::into) })
            }
        }
    }
}

#[dyn_dispatch_hint]
impl Intercept for Tries {
    fn name(&self) -> &'static str {
        "Tries"
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(Err(error)) = context.output_or_error() {
            let text = error.as_operation_error().map_or_else(|| chain(error), |error| chain(error));
            tracing::warn!(error = text, "a request to AWS failed");
            *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        }
        Ok(())
    }
}

/// hyper, as the SDK wants to see it.
#[derive(Clone, Debug)]
struct Connector(https::Client<SdkBody>);

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.0.clone();
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            let response = client.request(request).await.map_err(|error| match cause(&error) {
                Some(rustls::Error::InvalidCertificate(_)) => ConnectorError::other(error.into(), None),
                // An I/O error is what the SDK tries again.
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
