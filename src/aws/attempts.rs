//! The attempts that the SDK makes of one request: how long each may take, and why the last one failed.

use std::{
    error::Error,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_config::timeout::TimeoutConfig;
use aws_sdk_ssm::config::retry::{RetryPartition, TokenBucket};
use aws_smithy_runtime_api::client::{
    interceptors::{Intercept, context::FinalizerInterceptorContextRef, dyn_dispatch_hint},
    orchestrator::HttpResponse,
    result::SdkError,
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::{config_bag::ConfigBag, error::metadata::ProvideErrorMetadata};
use serde_json::{Map, Value};
use tokio::time::timeout_at;
use tower::BoxError;

use crate::{
    deadline::Deadline,
    text::{chain, message as quoted},
};

/// One attempt of a request.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// The attempts of one request.
#[derive(Clone, Debug)]
pub struct Attempts {
    /// Service and operation, for the log.
    request: &'static str,
    deadline: Deadline,
    last_failure: Arc<Mutex<Option<String>>>,
}

/// A request without a usable answer.
#[derive(Debug)]
pub struct Failure {
    /// The service's error code.
    pub code: Option<String>,
    /// What the SDK says.
    pub source: BoxError,
}

/// The SDK gives a process some hundred retries for its whole life: after two bad minutes it would never retry again.
pub fn unlimited_retries() -> RetryPartition {
    RetryPartition::custom("agent-scheduler").token_bucket(TokenBucket::unlimited()).build()
}

impl Attempts {
    /// As many as there is time for.
    pub fn until(deadline: Deadline, request: &'static str) -> Self {
        Self { request, deadline, last_failure: Arc::default() }
    }

    /// For one attempt.
    pub fn timeouts(&self) -> TimeoutConfig {
        TimeoutConfig::builder().operation_attempt_timeout(self.deadline.attempt(ATTEMPT_TIMEOUT)).build()
    }

    /// The answer that comes in time; else why the last attempt failed. The request is on the heap, since it is rare: every event's
    /// future would have room for it.
    pub async fn answer<T, E>(
        &self,
        sent: Pin<Box<impl Future<Output = Result<T, SdkError<E, HttpResponse>>>>>,
    ) -> Result<T, Failure>
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        match timeout_at(self.deadline.instant(), sent).await {
            Ok(answer) => answer.map_err(|error| {
                let code = error.code().map(str::to_owned);
                let source = match (&code, error.raw_response().and_then(message)) {
                    (Some(code), Some(message)) => format!("{code}: {message}").into(),
                    _ => error.into_source().unwrap_or_else(Into::into),
                };
                Failure { code, source }
            }),
            Err(late) => {
                let last = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).take();
                Err(Failure { code: None, source: last.map_or_else(|| late.into(), Into::into) })
            }
        }
    }
}

/// The service's own words. The SDK knows one spelling of the field; services have several.
fn message(response: &HttpResponse) -> Option<String> {
    let body: Map<String, Value> = serde_json::from_slice(response.body().bytes()?).ok()?;
    let mut fields = body.iter().filter(|(key, _)| matches!(&*key.to_ascii_lowercase(), "message" | "errormessage"));
    fields.find_map(|(_, value)| Some(quoted(value.as_str().filter(|text| !text.is_empty())?).into_owned()))
}

#[dyn_dispatch_hint]
impl Intercept for Attempts {
    fn name(&self) -> &'static str {
        "Attempts"
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(Err(error)) = context.output_or_error() {
            let text = error.as_operation_error().map_or_else(|| chain(error), |error| chain(error));
            let text = match context.response().and_then(message) {
                Some(message) if !text.contains(&message) => format!("{text}: {message}"),
                _ => text,
            };
            tracing::warn!(error = text, "an attempt of {} failed", self.request);
            *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        }
        Ok(())
    }
}
