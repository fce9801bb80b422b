//! The Buildkite agent token: where it is kept, SSM, and the Kubernetes Secret that carries it to the pods.
//!
//! It is in no Job, no log and no variable. The Secret is in place before the first Job is, since a pod that starts before
//! its Secret waits for the kubelet's next look, some 15 s.

use std::{mem, time::Duration};

use aws_sdk_ssm::{
    error::{ProvideErrorMetadata, SdkError},
    operation::get_parameter::GetParameterError,
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use http::{Request, header};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::{
    chain,
    config::Config,
    eks::{self, Cluster},
    job::{MANAGED_BY_LABEL, MANAGER, TOKEN_KEY},
};

/// How old what we know of the parameter may be; so long may a pod still start with a token that was replaced.
const AGE: Duration = Duration::from_mins(5);

/// How long an event waits for a look at the parameter while there is a token that served until now.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(2);

/// When to look again after that failed, so that not every event of a burst waits.
const REFRESH_AGAIN: Duration = Duration::from_secs(30);

/// Brings the agent token from SSM into the cluster, and keeps it current there.
pub struct AgentToken {
    ssm: aws_sdk_ssm::Client,
    parameter: String,
    region: String,
    secret: String,
    state: Mutex<State>,
}

enum State {
    Unknown,
    /// Read, but not yet in the cluster.
    Read(Token),
    /// In the cluster, and to be compared with the parameter again at that time.
    Delivered(Token, Instant),
}

struct Token {
    value: SecretString,
    /// Names the source of the value: stacks that read one parameter share the Secret, and others get a conflict.
    field_manager: String,
}

/// Why there is no current token in the cluster.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SSM refuses, or cannot be reached.
    #[error("cannot read the agent token from SSM parameter {parameter} in {region}{hint}")]
    Read {
        /// As configured.
        parameter: String,
        /// Where it was looked for.
        region: String,
        /// How to mend it, where that is known.
        hint: &'static str,
        /// What the SDK says.
        source: Box<SdkError<GetParameterError>>,
    },
    /// The parameter is there, and nothing in it.
    #[error("SSM parameter {parameter} in {region} is empty; it must hold the Buildkite agent token")]
    Empty {
        /// As configured.
        parameter: String,
        /// Where it was looked for.
        region: String,
    },
    /// The Secret belongs to a stack that reads another parameter.
    #[error(
        "Secret {secret} in namespace {namespace} carries the token of another parameter; set AgentTokenSecretName to a name that no \
         other stack uses"
    )]
    Conflict {
        /// As configured.
        secret: String,
        /// As configured.
        namespace: String,
        /// The API server's words.
        source: eks::Error,
    },
    /// The Secret could not be written.
    #[error("cannot apply Secret {secret} in namespace {namespace}")]
    Apply {
        /// As configured.
        secret: String,
        /// As configured.
        namespace: String,
        /// What the API server said.
        source: eks::Error,
    },
}

impl AgentToken {
    /// Asks for nothing yet.
    pub fn new(config: &Config, ssm: aws_sdk_ssm::Client) -> Self {
        Self {
            ssm,
            parameter: config.agent_token_parameter.clone(),
            region: config.region.clone(),
            secret: config.agent_token_secret.clone(),
            state: Mutex::new(State::Unknown),
        }
    }

    /// Reads the parameter ahead of [`deliver`](Self::deliver), while there is no connection to the cluster yet.
    pub async fn read_ahead(&self) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        if let State::Unknown = *state {
            *state = State::Read(self.read().await?);
        }
        Ok(())
    }

    /// Sees to it that the cluster's Secret holds what the parameter held at most five minutes ago.
    ///
    /// Asks nobody while that is known. A token that cannot be compared or replaced serves on: the log warns.
    pub async fn deliver(&self, cluster: &Cluster) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        match &mut *state {
            State::Delivered(token, due) => {
                if *due <= Instant::now() {
                    *due = Instant::now() + self.refresh(token, cluster).await;
                }
            }
            State::Unknown | State::Read(_) => {
                // A failure leaves nothing behind: the next event reads anew.
                let token = match mem::replace(&mut *state, State::Unknown) {
                    State::Read(token) => token,
                    _ => self.read().await?,
                };
                self.apply(&token, cluster).await?;
                *state = State::Delivered(token, Instant::now() + AGE);
            }
        }
        Ok(())
    }

    /// Compares with the parameter, replaces the Secret's content if it changed, and tells when to do so again.
    async fn refresh(&self, token: &mut Token, cluster: &Cluster) -> Duration {
        let renewed = timeout(REFRESH_TIMEOUT, async {
            let current = self.read().await?;
            if current.value.expose_secret() != token.value.expose_secret() {
                self.apply(&current, cluster).await?;
                tracing::info!(parameter = self.parameter, secret = self.secret, "agent token replaced");
                *token = current;
            }
            Ok::<_, Error>(())
        });
        let problem = match renewed.await {
            Ok(Ok(())) => return AGE,
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("no answer within {} s", REFRESH_TIMEOUT.as_secs()),
        };
        tracing::warn!(error = problem, "the agent token could not be refreshed; the one of before serves on");
        REFRESH_AGAIN
    }

    async fn read(&self) -> Result<Token, Error> {
        let (parameter, region) = (self.parameter.clone(), self.region.clone());
        let answer = self.ssm.get_parameter().name(&parameter).with_decryption(true).send().await;
        let answer = answer.map_err(|error| Error::Read {
            parameter: parameter.clone(),
            region: region.clone(),
            hint: hint(&error),
            source: Box::new(error),
        })?;
        let found = answer.parameter();
        // A line break at the end is what is left of `echo token | …`, and no part of it.
        let value = found.and_then(|parameter| parameter.value()).map(str::trim).filter(|value| !value.is_empty());
        let Some((value, arn)) = value.zip(found.and_then(|parameter| parameter.arn())) else {
            return Err(Error::Empty { parameter, region });
        };
        tracing::debug!(parameter, "agent token read");
        Ok(Token { value: value.into(), field_manager: field_manager(arn) })
    }

    async fn apply(&self, token: &Token, cluster: &Cluster) -> Result<(), Error> {
        let namespace = cluster.namespace();
        let manifest = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": self.secret, "labels": { MANAGED_BY_LABEL: MANAGER } },
            "type": "Opaque",
            "data": { TOKEN_KEY: BASE64_STANDARD.encode(token.value.expose_secret()) },
        });
        let uri =
            format!("/api/v1/namespaces/{namespace}/secrets/{}?fieldManager={}", self.secret, token.field_manager);
        let request = Request::patch(uri).header(header::CONTENT_TYPE, "application/apply-patch+yaml");
        match cluster.send_json(request, &manifest).await {
            Ok(()) => {
                tracing::debug!(secret = self.secret, "agent token applied");
                Ok(())
            }
            Err(source) => {
                let (secret, namespace) = (self.secret.clone(), namespace.to_owned());
                if source.is_conflict() {
                    Err(Error::Conflict { secret, namespace, source })
                } else {
                    Err(Error::Apply { secret, namespace, source })
                }
            }
        }
    }
}

/// The parameter's ARN tells account, region and name. Its hash fits into the 128 characters of a field manager.
fn field_manager(arn: &str) -> String {
    let hash = Sha256::digest(arn);
    format!("{MANAGER}:{}", BASE64_URL_SAFE_NO_PAD.encode(&hash[..12]))
}

fn hint(error: &SdkError<GetParameterError>) -> &'static str {
    match error.as_service_error().and_then(ProvideErrorMetadata::code) {
        Some("ParameterNotFound") => "; make it with `aws ssm put-parameter`, or set BuildkiteAgentTokenParameterPath",
        Some("AccessDeniedException") => {
            "; allow the function's role ssm:GetParameter on it, and kms:Decrypt if its key is your own"
        }
        _ => "",
    }
}
