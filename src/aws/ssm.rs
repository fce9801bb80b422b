//! SSM: the parameter that holds the agent token.

use aws_config::SdkConfig;
use aws_sdk_ssm::Client;
use secrecy::SecretString;

use super::attempts::{Attempts, Failure, unlimited_retries};
use crate::deadline::Deadline;

/// What a client is made of. It is made for each request: they are rare, and each has a deadline of its own.
#[derive(Clone, Debug)]
pub struct Ssm(SdkConfig);

/// What a parameter holds.
pub struct Parameter {
    /// `None` if there is nothing but white space.
    pub value: Option<SecretString>,
    /// Account, region and name of the parameter, and the version if one was asked for.
    pub source: String,
}

impl Ssm {
    /// No request yet.
    pub fn new(config: &SdkConfig) -> Self {
        Self(config.clone())
    }

    /// Reads a parameter, decrypted.
    pub async fn parameter(&self, name: &str, deadline: Deadline) -> Result<Parameter, Failure> {
        let attempts = Attempts::until(deadline, "SSM GetParameter");
        let config = aws_sdk_ssm::config::Builder::from(&self.0).retry_partition(unlimited_retries());
        let config = config.timeout_config(attempts.timeouts()).interceptor(attempts.clone());
        let request = Client::from_conf(config.build()).get_parameter().name(name).with_decryption(true);
        let answer = attempts.answer(Box::pin(request.send())).await?;
        let found = answer.parameter();
        // A line break at the end is a remainder of `echo token | …`, and not part of it.
        let value = found.and_then(|parameter| parameter.value()).map(str::trim).filter(|value| !value.is_empty());
        let arn = found.and_then(|parameter| parameter.arn()).unwrap_or(name);
        let selector = found.and_then(|parameter| parameter.selector()).unwrap_or_default();
        Ok(Parameter { value: value.map(SecretString::from), source: format!("{arn}{selector}") })
    }
}
