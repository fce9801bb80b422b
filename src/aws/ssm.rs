//! SSM: the parameter that holds the agent token.

use aws_config::SdkConfig;
use secrecy::SecretString;

use super::attempts::{Attempts, Failure, unlimited_retries};
use crate::deadline::Deadline;

/// The client.
#[derive(Clone, Debug)]
pub struct Ssm(aws_sdk_ssm::Client);

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
        let config = aws_sdk_ssm::config::Builder::from(config).retry_partition(unlimited_retries());
        Self(aws_sdk_ssm::Client::from_conf(config.build()))
    }

    /// Reads a parameter, decrypted.
    pub async fn parameter(&self, name: &str, deadline: Deadline) -> Result<Parameter, Failure> {
        let attempts = Attempts::until(deadline, "SSM GetParameter");
        let config =
            aws_sdk_ssm::config::Builder::new().timeout_config(attempts.timeouts()).interceptor(attempts.clone());
        let request = self.0.get_parameter().name(name).with_decryption(true);
        let answer = attempts.answer(request.customize().config_override(config).send()).await?;
        let found = answer.parameter();
        // A line break at the end is a remainder of `echo token | …`, and not part of it.
        let value = found.and_then(|parameter| parameter.value()).map(str::trim).filter(|value| !value.is_empty());
        let arn = found.and_then(|parameter| parameter.arn()).unwrap_or(name);
        let selector = found.and_then(|parameter| parameter.selector()).unwrap_or_default();
        Ok(Parameter { value: value.map(SecretString::from), source: format!("{arn}{selector}") })
    }
}
