//! The Buildkite agent token: where it is kept, SSM, and the Kubernetes Secret that carries it to the pods.
//!
//! It is in no Job, no log and no variable. The Secret is in place before the first Job is, since a pod that starts before
//! its Secret waits for the kubelet's next look, some 15 s.

use std::{mem, time::Duration};

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use http::{Request, header};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::{sync::Mutex, time::Instant};
use tower::BoxError;

use crate::{
    aws::Tries,
    chain,
    config::Config,
    deadline::Deadline,
    eks::{self, Cluster},
    job::{MANAGED_BY_LABEL, MANAGER, TOKEN_KEY},
    refresh,
};

/// How old what we know of the parameter may be; so long may a pod still start with a token that was replaced.
const AGE: Duration = Duration::from_mins(5);

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
    /// Read at that time, but not yet in the cluster.
    Read(Token, Instant),
    /// In the cluster, and due to be brought there again at that time.
    Delivered(Instant),
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
        source: BoxError,
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
        "Secret {secret} in namespace {namespace} carries the token of another parameter; set AgentTokenSecretName to a name \
         that no other stack uses, or, if no other stack uses this one, `kubectl delete secret {secret} --namespace {namespace}`"
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
    pub async fn read_ahead(&self, deadline: Deadline) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        if let State::Unknown = *state {
            *state = State::Read(self.read(deadline).await?, Instant::now());
        }
        Ok(())
    }

    /// Sees to it that the cluster's Secret holds what the parameter held at most five minutes ago.
    ///
    /// Asks nobody while that is known. When it is due, the Secret is applied even if the parameter is as it was: somebody may
    /// have deleted it, or another environment have written what it had read before. A token that cannot be brought again
    /// serves on, and the log warns; but not one that another stack has written over.
    pub async fn deliver(&self, cluster: &Cluster, deadline: Deadline) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        match *state {
            State::Delivered(due) if due > Instant::now() => Ok(()),
            State::Delivered(_) => {
                let again = self.deliver_again(cluster, deadline.within(refresh::TIMEOUT)).await?;
                *state = State::Delivered(Instant::now() + again);
                Ok(())
            }
            State::Unknown | State::Read(..) => {
                // A failure leaves nothing behind: the next event reads anew.
                let token = match mem::replace(&mut *state, State::Unknown) {
                    State::Read(token, read) if read.elapsed() < AGE => token,
                    _ => self.read(deadline).await?,
                };
                self.apply(&token, cluster, deadline).await?;
                *state = State::Delivered(Instant::now() + AGE);
                Ok(())
            }
        }
    }

    /// Tells when to do so the next time.
    async fn deliver_again(&self, cluster: &Cluster, deadline: Deadline) -> Result<Duration, Error> {
        let delivered = async { self.apply(&self.read(deadline).await?, cluster, deadline).await };
        match delivered.await {
            Ok(()) => Ok(AGE),
            Err(error @ Error::Conflict { .. }) => Err(error),
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "the agent token could not be refreshed; the one of before serves on"
                );
                Ok(refresh::AGAIN)
            }
        }
    }

    async fn read(&self, deadline: Deadline) -> Result<Token, Error> {
        let (parameter, region) = (self.parameter.clone(), self.region.clone());
        let tries = Tries::until(deadline);
        let config = aws_sdk_ssm::config::Builder::new().timeout_config(tries.timeouts()).interceptor(tries.clone());
        let request = self.ssm.get_parameter().name(&parameter).with_decryption(true);
        // On the heap, since it is rare: every event's future would have room for it.
        let answer = Box::pin(tries.answer(request.customize().config_override(config).send())).await;
        let answer = answer.map_err(|failure| Error::Read {
            parameter: parameter.clone(),
            region: region.clone(),
            hint: hint(failure.code.as_deref()),
            source: failure.source,
        })?;
        let found = answer.parameter();
        // A line break at the end is what is left of `echo token | …`, and no part of it.
        let value = found.and_then(|parameter| parameter.value()).map(str::trim).filter(|value| !value.is_empty());
        let Some(value) = value else { return Err(Error::Empty { parameter, region }) };
        tracing::debug!(parameter, "agent token read");
        let arn = found.and_then(|parameter| parameter.arn()).unwrap_or(&parameter);
        let selector = found.and_then(|parameter| parameter.selector()).unwrap_or_default();
        Ok(Token { value: value.into(), field_manager: field_manager(arn, selector) })
    }

    async fn apply(&self, token: &Token, cluster: &Cluster, deadline: Deadline) -> Result<(), Error> {
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
        match cluster.send_json(request, &manifest, deadline).await {
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

/// The parameter's ARN tells account, region and name, and the selector the version, if one was asked for. Their hash fits into
/// the 128 characters of a field manager.
fn field_manager(arn: &str, selector: &str) -> String {
    let hash = Sha256::digest(format!("{arn}{selector}"));
    format!("{MANAGER}:{}", BASE64_URL_SAFE_NO_PAD.encode(&hash[..12]))
}

fn hint(code: Option<&str>) -> &'static str {
    match code {
        Some("ParameterNotFound") => "; make it with `aws ssm put-parameter`, or set BuildkiteAgentTokenParameterPath",
        Some("AccessDeniedException") => {
            "; allow the function's role ssm:GetParameter on it, kms:Decrypt if its key is your own, and \
             secretsmanager:GetSecretValue if it refers to Secrets Manager"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, PoisonError};

    use aws_credential_types::Credentials;
    use aws_smithy_runtime_api::client::{
        http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn},
        orchestrator::HttpRequest,
    };
    use aws_smithy_types::body::SdkBody;
    use http::{Response, StatusCode, Uri};
    use kube::client::Body;
    use serde_json::Value;

    use super::*;
    use crate::{aws, config::fixtures::config};

    /// SSM and the API server as this module sees them, and what they were asked.
    #[derive(Clone, Default)]
    struct World(Arc<Mutex<Answers>>);

    #[derive(Default)]
    struct Answers {
        /// What SSM answers; a value, or the code of an error, or nothing at all.
        parameter: Option<Result<String, &'static str>>,
        /// What the API server answers to an apply, with 200 for none.
        refusal: Option<Value>,
        reads: usize,
        applied: Vec<(String, Value)>,
    }

    impl std::fmt::Debug for World {
        fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
            formatter.write_str("World")
        }
    }

    impl HttpConnector for World {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            assert_eq!(request.headers().get("x-amz-target"), Some("AmazonSSM.GetParameter"));
            let asked: Value = serde_json::from_slice(request.body().bytes().unwrap()).unwrap();
            assert_eq!(asked, json!({"Name": "/buildkite/agent-token", "WithDecryption": true}));
            let (status, body) = self.with(|answers| {
                answers.reads += 1;
                match &answers.parameter {
                    Some(Ok(value)) => {
                        let arn = "arn:aws:ssm:us-east-1:111122223333:parameter/buildkite/agent-token";
                        (200, json!({"Parameter": {"ARN": arn, "Value": value}}))
                    }
                    Some(Err(code)) => (400, json!({"__type": code, "Message": "no such thing"})),
                    None => (0, Value::Null),
                }
            });
            if status == 0 {
                return HttpConnectorFuture::new(std::future::pending());
            }
            let answer = Response::builder().status(status).body(SdkBody::from(body.to_string())).unwrap();
            HttpConnectorFuture::ready(Ok(answer.try_into().unwrap()))
        }
    }

    impl World {
        fn with<T>(&self, change: impl FnOnce(&mut Answers) -> T) -> T {
            change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
        }

        fn holding(value: &str) -> Self {
            let world = Self::default();
            world.with(|answers| answers.parameter = Some(Ok(value.to_owned())));
            world
        }

        fn agent_token(&self) -> AgentToken {
            let connector = SharedHttpConnector::new(self.clone());
            let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
            let sdk = aws::sdk_config("us-east-1", credentials, |_| None).unwrap().into_builder();
            let sdk = sdk.http_client(http_client_fn(move |_, _| connector.clone())).build();
            AgentToken::new(&config(&[]), aws::ssm(&sdk))
        }

        fn cluster(&self) -> Cluster {
            let world = self.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                let world = world.clone();
                async move {
                    assert_eq!(request.method(), "PATCH");
                    assert_eq!(request.headers()[header::CONTENT_TYPE], "application/apply-patch+yaml");
                    let uri = request.uri().to_string();
                    let body: Value =
                        serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap();
                    let answer = world.with(|answers| {
                        answers.applied.push((uri, body));
                        answers.refusal.clone()
                    });
                    let status = answer.as_ref().map_or(StatusCode::OK, |status| {
                        StatusCode::from_u16(status["code"].to_string().parse().unwrap()).unwrap()
                    });
                    let body = answer.unwrap_or_else(|| json!({"kind": "PartialObjectMetadata"})).to_string();
                    Ok::<_, std::io::Error>(
                        Response::builder().status(status).body(Body::from(body.into_bytes())).unwrap(),
                    )
                }
            });
            Cluster::new(kube::Client::new(service, "default"), Uri::from_static("https://example"), &config(&[]))
        }

        fn applied_tokens(&self) -> Vec<String> {
            let decode = |(_, manifest): &(String, Value)| {
                String::from_utf8(BASE64_STANDARD.decode(manifest["data"]["token"].as_str().unwrap()).unwrap()).unwrap()
            };
            self.with(|answers| answers.applied.iter().map(decode).collect())
        }
    }

    fn deadline() -> Deadline {
        Deadline::after(Duration::from_secs(58))
    }

    #[tokio::test(start_paused = true)]
    async fn the_secret_is_applied_once_and_then_nobody_is_asked() {
        let world = World::holding("bkct_1\n");
        let (agent_token, cluster) = (world.agent_token(), world.cluster());
        for _ in 0..3 {
            agent_token.deliver(&cluster, deadline()).await.unwrap();
        }
        assert_eq!(world.applied_tokens(), ["bkct_1"]);
        assert_eq!(world.with(|answers| answers.reads), 1);
        let (uri, manifest) = world.with(|answers| answers.applied[0].clone());
        assert!(
            uri.starts_with("/api/v1/namespaces/buildkite/secrets/buildkite-agent-token?fieldManager=agent-scheduler:"),
            "{uri}"
        );
        assert_eq!(manifest["metadata"]["labels"][MANAGED_BY_LABEL], MANAGER);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_ahead_is_not_read_again() {
        let world = World::holding("bkct_1");
        let agent_token = world.agent_token();
        agent_token.read_ahead(deadline()).await.unwrap();
        agent_token.deliver(&world.cluster(), deadline()).await.unwrap();
        assert_eq!(world.with(|answers| answers.reads), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_ahead_long_ago_is_read_again() {
        let world = World::holding("bkct_1");
        let agent_token = world.agent_token();
        agent_token.read_ahead(deadline()).await.unwrap();
        world.with(|answers| answers.parameter = Some(Ok("bkct_2".to_owned())));
        tokio::time::advance(AGE).await;
        agent_token.deliver(&world.cluster(), deadline()).await.unwrap();
        assert_eq!(world.applied_tokens(), ["bkct_2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_of_five_minutes_is_brought_again_changed_or_not() {
        let world = World::holding("bkct_1");
        let (agent_token, cluster) = (world.agent_token(), world.cluster());
        agent_token.deliver(&cluster, deadline()).await.unwrap();
        world.with(|answers| answers.parameter = Some(Ok("bkct_2".to_owned())));

        tokio::time::advance(AGE.saturating_sub(Duration::from_secs(1))).await;
        agent_token.deliver(&cluster, deadline()).await.unwrap();
        assert_eq!(world.applied_tokens(), ["bkct_1"]);

        tokio::time::advance(Duration::from_secs(1)).await;
        agent_token.deliver(&cluster, deadline()).await.unwrap();
        assert_eq!(world.applied_tokens(), ["bkct_1", "bkct_2"]);

        tokio::time::advance(AGE).await;
        agent_token.deliver(&cluster, deadline()).await.unwrap();
        assert_eq!(world.applied_tokens(), ["bkct_1", "bkct_2", "bkct_2"], "somebody may have deleted the Secret");
        assert_eq!(world.with(|answers| answers.reads), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_cannot_be_refreshed_serves_on_and_is_looked_at_again_soon() {
        let world = World::holding("bkct_1");
        let (agent_token, cluster) = (world.agent_token(), world.cluster());
        agent_token.deliver(&cluster, deadline()).await.unwrap();

        for failure in [None, Some(Err("AccessDeniedException"))] {
            world.with(|answers| answers.parameter = failure);
            tokio::time::advance(AGE).await;
            let asked = Instant::now();
            agent_token.deliver(&cluster, deadline()).await.unwrap();
            assert!(asked.elapsed() <= refresh::TIMEOUT + Duration::from_millis(1), "{:?}", asked.elapsed());
        }
        world.with(|answers| answers.parameter = Some(Ok("bkct_2".to_owned())));
        agent_token.deliver(&cluster, deadline()).await.unwrap();
        assert_eq!(world.applied_tokens(), ["bkct_1"], "not every event of a burst waits");
        tokio::time::advance(refresh::AGAIN).await;
        agent_token.deliver(&cluster, deadline()).await.unwrap();
        assert_eq!(world.applied_tokens(), ["bkct_1", "bkct_2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_failure_is_told_and_the_next_event_tries_again() {
        let world = World::holding("bkct_1");
        let (agent_token, cluster) = (world.agent_token(), world.cluster());
        let cases = [
            ("ParameterNotFound", "; make it with `aws ssm put-parameter`, or set BuildkiteAgentTokenParameterPath: "),
            ("AccessDeniedException", "; allow the function's role ssm:GetParameter on it, "),
        ];
        for (code, hint) in cases {
            world.with(|answers| answers.parameter = Some(Err(code)));
            let error = chain(&agent_token.deliver(&cluster, deadline()).await.unwrap_err());
            let start = "cannot read the agent token from SSM parameter /buildkite/agent-token in us-east-1";
            assert!(error.starts_with(&format!("{start}{hint}")), "{error}");
            assert!(error.contains(code) && error.contains("no such thing"), "{error}");
        }
        world.with(|answers| answers.parameter = Some(Ok(" \n".to_owned())));
        let error = agent_token.deliver(&cluster, deadline()).await.unwrap_err().to_string();
        assert!(error.contains("/buildkite/agent-token in us-east-1 is empty"), "{error}");

        world.with(|answers| answers.parameter = Some(Ok("bkct_1".to_owned())));
        agent_token.deliver(&cluster, deadline()).await.unwrap();
        assert_eq!(world.applied_tokens(), ["bkct_1"]);
    }

    /// Each for a minute, and the last as often as the first.
    #[tokio::test(start_paused = true)]
    async fn a_throttled_read_is_repeated_by_every_event() {
        let world = World::holding("bkct_1");
        let (agent_token, cluster) = (world.agent_token(), world.cluster());
        world.with(|answers| answers.parameter = Some(Err("ThrottlingException")));
        for event in 0..12 {
            let before = world.with(|answers| answers.reads);
            let error = chain(&agent_token.deliver(&cluster, deadline()).await.unwrap_err());
            assert!(error.contains("ThrottlingException"), "{error}");
            let reads = world.with(|answers| answers.reads) - before;
            assert!(reads > 10, "{reads} by event {event}");
        }
        world.with(|answers| answers.parameter = Some(Ok("bkct_1".to_owned())));
        agent_token.deliver(&cluster, deadline()).await.unwrap();
        assert_eq!(world.applied_tokens(), ["bkct_1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_of_another_parameter_is_a_conflict_that_names_the_mend() {
        let world = World::holding("bkct_1");
        let message = r#"Apply failed with 1 conflict: conflict with "agent-scheduler:other": .data.token"#;
        let status =
            json!({"kind": "Status", "status": "Failure", "code": 409, "reason": "Conflict", "message": message});
        world.with(|answers| answers.refusal = Some(status));
        let told = |error: Error| {
            assert!(matches!(error, Error::Conflict { .. }), "{error}");
            let text = chain(&error);
            for words in ["set AgentTokenSecretName", "`kubectl delete secret buildkite-agent-token ", message] {
                assert!(text.contains(words), "{words} is not in: {text}");
            }
        };
        let (agent_token, cluster) = (world.agent_token(), world.cluster());
        told(agent_token.deliver(&cluster, deadline()).await.unwrap_err());

        let status = world.with(|answers| answers.refusal.take());
        agent_token.deliver(&cluster, deadline()).await.unwrap();
        world.with(|answers| answers.refusal = status);
        tokio::time::advance(AGE).await;
        told(agent_token.deliver(&cluster, deadline()).await.unwrap_err());
    }

    #[test]
    fn stacks_that_read_one_parameter_share_a_field_manager() {
        let arn = "arn:aws:ssm:us-east-1:111122223333:parameter/a";
        assert_eq!(field_manager(arn, ""), field_manager(arn, ""));
        assert_ne!(field_manager(arn, ""), field_manager(&arn.replace("1111", "2222"), ""));
        assert_ne!(field_manager(arn, ":1"), field_manager(arn, ":2"));
        assert!(field_manager(arn, ":1").len() <= 128);
    }
}
