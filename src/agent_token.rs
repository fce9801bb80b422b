//! The Buildkite agent token: its value, which SSM keeps, and the Kubernetes Secret that gives it to the pods.
//!
//! It is in no Job, no log and no variable. The Secret is in place before the first Job is: a pod that starts before its Secret
//! waits for the kubelet's next look, some 15 s.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tower::BoxError;

use crate::{
    aws::ssm::Ssm,
    config::Config,
    deadline::Deadline,
    kept::Kept,
    kubernetes::{self, Cluster},
    pod::job::{MANAGED_BY_LABEL, MANAGER, TOKEN_KEY},
};

/// How old the value and the Secret may be. For this long a pod may still start with a token that was replaced.
pub const MAX_AGE: Duration = Duration::from_mins(5);

/// Copies the agent token from SSM into the cluster, and keeps the copy current.
pub struct AgentToken {
    ssm: Ssm,
    parameter: String,
    region: String,
    secret: String,
    value: Kept<Token, Error>,
    applied: Kept<(), Error>,
}

#[derive(Clone)]
struct Token {
    value: Arc<SecretString>,
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
        /// The region of the parameter.
        region: String,
        /// How to correct it, where that is known.
        hint: &'static str,
        /// What the SDK says.
        source: BoxError,
    },
    /// The parameter is there, and nothing in it.
    #[error("SSM parameter {parameter} in {region} is empty; it must hold the Buildkite agent token")]
    Empty {
        /// As configured.
        parameter: String,
        /// The region of the parameter.
        region: String,
    },
    /// The value could not be read again.
    #[error(transparent)]
    Value(Arc<Error>),
    /// The Secret belongs to a stack that reads another parameter.
    #[error(
        "Secret {secret} in namespace {namespace} holds the token of another parameter; set AgentTokenSecretName to a name \
         that no other stack uses, or, if no other stack uses this one, `kubectl delete secret {secret} --namespace {namespace}`"
    )]
    Conflict {
        /// As configured.
        secret: String,
        /// As configured.
        namespace: String,
        /// The API server's words.
        source: kubernetes::Error,
    },
    /// The Secret could not be written.
    #[error("cannot apply Secret {secret} in namespace {namespace}")]
    Apply {
        /// As configured.
        secret: String,
        /// As configured.
        namespace: String,
        /// What the API server said.
        source: kubernetes::Error,
    },
}

impl Error {
    /// The type of the failure: [`crate::scheduler::Error::kind`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Read { .. } | Self::Empty { .. } => "AgentTokenUnavailable",
            Self::Value(error) => error.kind(),
            Self::Conflict { source, .. } | Self::Apply { source, .. } => source.kind(),
        }
    }

    fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }
}

impl AgentToken {
    /// No request yet.
    pub fn new(config: &Config, ssm: Ssm) -> Self {
        Self {
            ssm,
            parameter: config.agent_token_parameter.clone(),
            region: config.region.clone(),
            secret: config.stack.agent_token_secret.clone(),
            value: Kept::new("the agent token", MAX_AGE),
            // Another stack has written over a Secret in conflict.
            applied: Kept::new("the Secret of the agent token", MAX_AGE).until(Error::is_conflict),
        }
    }

    /// Reads the value, while there is no connection to the cluster yet.
    pub async fn read_ahead(&self, deadline: Deadline) -> Result<(), Arc<Error>> {
        self.value.get(deadline, async |deadline| self.read(deadline).await).await.map(drop)
    }

    /// Makes sure that the cluster's Secret holds what the parameter held at most five minutes ago.
    ///
    /// When it is too old, the Secret is applied even if the value is unchanged: it may have been deleted, or another
    /// environment may have written an older value.
    pub async fn apply(&self, cluster: &Cluster, deadline: Deadline) -> Result<(), Arc<Error>> {
        let apply = async |deadline| {
            let token = self.value.fresh(MAX_AGE, deadline, async |deadline| self.read(deadline).await);
            self.write(&token.await.map_err(Error::Value)?, cluster, deadline).await
        };
        self.applied.get(deadline, apply).await
    }

    async fn read(&self, deadline: Deadline) -> Result<Token, Error> {
        let (parameter, region) = (self.parameter.clone(), self.region.clone());
        match self.ssm.parameter(&parameter, deadline).await {
            Ok(found) => {
                let value = found.value.ok_or(Error::Empty { parameter, region })?;
                tracing::debug!(parameter = self.parameter, "agent token read");
                Ok(Token { value: Arc::new(value), field_manager: field_manager(&found.source) })
            }
            Err(failure) => {
                let hint = hint(failure.code.as_deref());
                Err(Error::Read { parameter, region, hint, source: failure.source })
            }
        }
    }

    async fn write(&self, token: &Token, cluster: &Cluster, deadline: Deadline) -> Result<(), Error> {
        let value = ByteString(token.value.expose_secret().as_bytes().to_vec());
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(self.secret.clone()),
                labels: Some(BTreeMap::from([(MANAGED_BY_LABEL.to_owned(), MANAGER.to_owned())])),
                ..ObjectMeta::default()
            },
            type_: Some("Opaque".to_owned()),
            data: Some(BTreeMap::from([(TOKEN_KEY.to_owned(), value)])),
            ..Secret::default()
        };
        cluster.apply_secret(&secret, &token.field_manager, deadline).await.map_err(|source| {
            let (secret, namespace) = (self.secret.clone(), cluster.namespace().to_owned());
            if source.is_conflict() {
                Error::Conflict { secret, namespace, source }
            } else {
                Error::Apply { secret, namespace, source }
            }
        })?;
        tracing::debug!(secret = self.secret, "agent token applied");
        Ok(())
    }
}

/// A hash of the parameter's account, region, name and version, since a field manager has at most 128 characters.
fn field_manager(source: &str) -> String {
    format!("{MANAGER}:{}", BASE64_URL_SAFE_NO_PAD.encode(&Sha256::digest(source)[..12]))
}

fn hint(code: Option<&str>) -> &'static str {
    match code {
        Some("ParameterNotFound") => {
            "; create it with `aws ssm put-parameter --type SecureString`, or set BuildkiteAgentTokenParameterPath"
        }
        Some("AccessDeniedException") => {
            "; allow the function's role ssm:GetParameter on it, kms:Decrypt if its key is your own, and \
             secretsmanager:GetSecretValue if it refers to Secrets Manager"
        }
        _ => "",
    }
}
