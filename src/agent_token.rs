//! The Buildkite agent token: its value, which SSM keeps, and the Kubernetes Secret that gives it to the pods.
//!
//! It is in no Job, no log and no variable. The Secret is in place before the first Job is: a pod that starts before its Secret
//! waits for the kubelet's next look, some 15 s.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::core::params::PatchParams;
use secrecy::{ExposeSecret, SecretString};
use tower::BoxError;

use crate::{
    aws::ssm::Ssm,
    buildkite::token::{self, NotAToken},
    config::Config,
    deadline::Deadline,
    kept::Kept,
    kubernetes::{self, Cluster},
    pod::{
        job::TOKEN_KEY,
        metadata::{MANAGED_BY_LABEL, MANAGER},
    },
    text::excerpt,
};

/// How old the value and the Secret may be. For this long a pod may still start with a token that was replaced.
pub const MAX_AGE: Duration = Duration::from_mins(5);

/// Copies the agent token from SSM into a cluster, and keeps the copy current.
pub struct AgentToken {
    ssm: Ssm,
    parameter: String,
    region: String,
    secret: String,
    value: Kept<Token, Error>,
}

/// The Secret of one cluster, as we applied it.
pub struct AppliedSecret(Kept<(), Error>);

#[derive(Clone)]
struct Token {
    value: Arc<SecretString>,
    /// Names the source of the value: stacks that read one parameter share the Secret, and others get a conflict.
    field_manager: String,
}

/// Why there is no current token in the cluster.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text shows what the fields are")]
pub enum Error {
    /// SSM refuses, or cannot be reached.
    #[error("cannot read the agent token from SSM parameter {parameter} in {region}{hint}")]
    Read { parameter: String, region: String, hint: &'static str, source: BoxError },
    /// The parameter is there, and nothing in it.
    #[error("SSM parameter {parameter} in {region} is empty; it must hold the Buildkite agent token")]
    Empty { parameter: String, region: String },
    /// The parameter holds something else.
    #[error("SSM parameter {parameter} in {region} does not hold a Buildkite agent token: {not}")]
    NotAToken { parameter: String, region: String, not: NotAToken },
    /// The value could not be read again.
    #[error(transparent)]
    Value(Arc<Error>),
    /// The Secret belongs to a stack that reads another parameter.
    #[error(
        "Secret {secret} in namespace {namespace} holds the token of another parameter ({owner}); set AgentTokenSecretName to a \
         name that no other stack uses, or, if no other stack uses this one, `kubectl delete secret {secret} --namespace {namespace}`"
    )]
    Conflict { secret: String, namespace: String, owner: String, source: kubernetes::Error },
    /// The Secret could not be written.
    #[error("cannot apply Secret {secret} in namespace {namespace}")]
    Apply { secret: String, namespace: String, source: kubernetes::Error },
}

impl Error {
    /// The type of the failure: [`crate::scheduler::Error::kind`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Read { .. } | Self::Empty { .. } | Self::NotAToken { .. } => "AgentTokenUnavailable",
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
        }
    }

    /// The value, for the Stacks API, and ahead of the Secret while there is no connection to the cluster yet.
    pub async fn value(&self, deadline: Deadline) -> Result<Arc<SecretString>, Arc<Error>> {
        let token = self.value.get(deadline, async |deadline| self.read(deadline).await).await;
        token.map(|token| token.value)
    }

    /// The cluster has no Secret yet.
    pub fn not_applied() -> AppliedSecret {
        // After a conflict the old Secret is of no use: another stack has written over it.
        AppliedSecret(Kept::new("the Secret of the agent token", MAX_AGE).until(Error::is_conflict))
    }

    /// Makes sure that the cluster's Secret holds what the parameter held at most five minutes ago.
    ///
    /// When it is too old, the Secret is applied even if the value is unchanged: it may have been deleted, or another
    /// environment may have written an older value.
    pub async fn apply(
        &self,
        applied: &AppliedSecret,
        cluster: &Cluster,
        deadline: Deadline,
    ) -> Result<(), Arc<Error>> {
        applied.0.get(deadline, async |deadline| self.write_fresh(cluster, deadline).await).await
    }

    /// The same, whatever was applied before: the Secret may have been deleted since.
    pub async fn apply_again(
        &self,
        applied: &AppliedSecret,
        cluster: &Cluster,
        deadline: Deadline,
    ) -> Result<(), Arc<Error>> {
        let apply = async |deadline| self.write_fresh(cluster, deadline).await;
        applied.0.fresh(|(), _| false, deadline, apply).await
    }

    /// Whether the cluster has the Secret, which no agent with a token of its own needs.
    pub async fn is_left_over(&self, cluster: &Cluster, deadline: Deadline) -> Result<bool, kubernetes::Error> {
        let metadata = ObjectMeta { name: Some(self.secret.clone()), ..ObjectMeta::default() };
        let created = cluster.try_secret(&Secret { metadata, ..Secret::default() }, deadline).await?;
        Ok(created.is_none())
    }

    /// The value as it is now.
    pub async fn read_again(&self, deadline: Deadline) -> Result<Arc<SecretString>, Arc<Error>> {
        let token = self.value.fresh(|_, _| false, deadline, async |deadline| self.read(deadline).await).await;
        token.map(|token| token.value)
    }

    /// Whether the API server would take the Secret.
    pub async fn try_apply(&self, cluster: &Cluster, deadline: Deadline) -> Result<(), Error> {
        let token = self.value.get(deadline, async |deadline| self.read(deadline).await).await.map_err(Error::Value)?;
        self.write(&token, cluster, PatchParams::dry_run, deadline).await
    }

    async fn write_fresh(&self, cluster: &Cluster, deadline: Deadline) -> Result<(), Error> {
        let read = async |deadline| self.read(deadline).await;
        let token = self.value.fresh(|_, time| time.elapsed() < MAX_AGE, deadline, read).await;
        self.write(&token.map_err(Error::Value)?, cluster, |how| how, deadline).await
    }

    async fn read(&self, deadline: Deadline) -> Result<Token, Error> {
        let (parameter, region) = (self.parameter.clone(), self.region.clone());
        match self.ssm.parameter(&parameter, deadline).await {
            Ok(found) => {
                let Some(value) = found.value else { return Err(Error::Empty { parameter, region }) };
                if let Err(not) = token::check(value.expose_secret()) {
                    return Err(Error::NotAToken { parameter, region, not });
                }
                tracing::debug!(parameter = self.parameter, "agent token read");
                Ok(Token { value: Arc::new(value), field_manager: field_manager(&found.source) })
            }
            Err(failure) => {
                let hint = hint(failure.code.as_deref());
                Err(Error::Read { parameter, region, hint, source: failure.source })
            }
        }
    }

    async fn write(
        &self,
        token: &Token,
        cluster: &Cluster,
        how: impl FnOnce(PatchParams) -> PatchParams,
        deadline: Deadline,
    ) -> Result<(), Error> {
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
        let how = how(PatchParams::apply(&token.field_manager));
        cluster.apply_secret(&secret, &how, deadline).await.map_err(|source| {
            let (secret, namespace) = (self.secret.clone(), cluster.namespace().to_owned());
            match source.manager_conflict().map(|owner| excerpt(owner).into_owned()) {
                Some(owner) => Error::Conflict { secret, namespace, owner, source },
                None => Error::Apply { secret, namespace, source },
            }
        })?;
        tracing::debug!(secret = self.secret, "agent token applied");
        Ok(())
    }
}

/// A hash of the parameter's account, region, name and version, since a field manager has at most 128 characters.
fn field_manager(source: &str) -> String {
    format!("{MANAGER}:{}", BASE64_URL_SAFE_NO_PAD.encode(&digest(&SHA256, source.as_bytes()).as_ref()[..12]))
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

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use aws_credential_types::Credentials;
    use aws_smithy_runtime_api::client::{
        http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn},
        orchestrator::HttpRequest,
    };
    use aws_smithy_types::body::SdkBody;
    use http::{Response, StatusCode};
    use serde_json::{Value, json};
    use tokio::time::{Instant, advance};

    use super::*;
    use crate::{
        aws,
        config::fixtures::config,
        https::CertificateAuthority,
        kept::{REFRESH_PAUSE, REFRESH_TIMEOUT},
        kubernetes::fake::ApiServer,
        text::chain,
    };

    /// A value, or the code of an error, or nothing at all.
    type Answer = Option<Result<String, &'static str>>;

    /// What SSM answers, and how often it was asked.
    #[derive(Clone, Debug, Default)]
    struct FakeSsm(Arc<Mutex<(Answer, usize)>>);

    impl HttpConnector for FakeSsm {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            assert_eq!(request.headers().get("x-amz-target"), Some("AmazonSSM.GetParameter"));
            let asked: Value = serde_json::from_slice(request.body().bytes().unwrap()).unwrap();
            assert_eq!(asked, json!({"Name": "/buildkite/agent-token", "WithDecryption": true}));
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.1 += 1;
            let (status, body) = match &state.0 {
                Some(Ok(value)) => {
                    let arn = "arn:aws:ssm:us-east-1:111122223333:parameter/buildkite/agent-token";
                    (200, json!({"Parameter": {"ARN": arn, "Value": value}}))
                }
                // Services spell the field either way.
                Some(Err(code)) => {
                    let message = if code.starts_with('A') { "message" } else { "Message" };
                    (400, json!({"__type": code, message: "no such thing"}))
                }
                None => return HttpConnectorFuture::new(std::future::pending()),
            };
            let answer = Response::builder().status(status).body(SdkBody::from(body.to_string())).unwrap();
            HttpConnectorFuture::ready(Ok(answer.try_into().unwrap()))
        }
    }

    /// An agent token between SSM and the API server.
    struct Scene {
        ssm: FakeSsm,
        api_server: ApiServer,
        agent_token: AgentToken,
        applied: AppliedSecret,
    }

    impl Scene {
        fn holding(value: &str) -> Self {
            let ssm = FakeSsm::default();
            let connector = SharedHttpConnector::new(ssm.clone());
            let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
            let sdk = aws::sdk_config("us-east-1", credentials, CertificateAuthority(Vec::new()), |_| None)
                .unwrap()
                .into_builder();
            let sdk = sdk.http_client(http_client_fn(move |_, _| connector.clone())).build();
            let agent_token = AgentToken::new(&config(&[]), Ssm::new(&sdk));
            let api_server = ApiServer::answering(StatusCode::OK, json!({"kind": "PartialObjectMetadata"}));
            let scene = Self { ssm, api_server, agent_token, applied: AgentToken::not_applied() };
            scene.ssm_answers(Some(Ok(value)));
            scene
        }

        fn ssm_answers(&self, answer: Option<Result<&str, &'static str>>) {
            self.ssm.0.lock().unwrap_or_else(PoisonError::into_inner).0 =
                answer.map(|answer| answer.map(str::to_owned));
        }

        fn reads(&self) -> usize {
            self.ssm.0.lock().unwrap_or_else(PoisonError::into_inner).1
        }

        async fn apply(&self) -> Result<(), Arc<Error>> {
            let deadline = Deadline::after(Duration::from_secs(58));
            self.agent_token.apply(&self.applied, &self.api_server.cluster(), deadline).await
        }

        /// The values that were applied, in base64.
        fn applied(&self) -> Vec<String> {
            let requests = self.api_server.requests();
            requests.iter().map(|request| request.body["data"]["token"].as_str().unwrap().to_owned()).collect()
        }
    }

    /// Base64 of `bkct_1` and `bkct_2`.
    const FIRST: &str = "YmtjdF8x";
    const SECOND: &str = "YmtjdF8y";

    #[tokio::test(start_paused = true)]
    async fn the_secret_is_applied_once() {
        let scene = Scene::holding("bkct_1\n");
        scene.agent_token.value(Deadline::after(Duration::from_secs(5))).await.unwrap();
        for _ in 0..3 {
            scene.apply().await.unwrap();
        }
        assert_eq!((scene.applied(), scene.reads()), (vec![FIRST.to_owned()], 1));
        let request = &scene.api_server.requests()[0];
        let uri = "/api/v1/namespaces/buildkite/secrets/buildkite-agent-token?&fieldManager=agent-scheduler%3A";
        assert!(request.method == "PATCH" && request.uri.starts_with(uri), "{request:?}");
        assert_eq!(request.body["metadata"]["labels"][MANAGED_BY_LABEL], MANAGER);
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_that_was_read_ahead_long_ago_is_read_again() {
        let scene = Scene::holding("bkct_1");
        scene.agent_token.value(Deadline::after(Duration::from_secs(5))).await.unwrap();
        scene.ssm_answers(Some(Ok("bkct_2")));
        advance(MAX_AGE).await;
        scene.apply().await.unwrap();
        assert_eq!(scene.applied(), [SECOND]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_of_five_minutes_is_applied_again_changed_or_not() {
        let scene = Scene::holding("bkct_1");
        scene.apply().await.unwrap();
        scene.ssm_answers(Some(Ok("bkct_2")));
        advance(MAX_AGE.saturating_sub(Duration::from_secs(1))).await;
        scene.apply().await.unwrap();
        assert_eq!(scene.applied(), [FIRST]);
        advance(Duration::from_secs(1)).await;
        scene.apply().await.unwrap();
        assert_eq!(scene.applied(), [FIRST, SECOND]);
        advance(MAX_AGE).await;
        scene.apply().await.unwrap();
        assert_eq!(scene.applied(), [FIRST, SECOND, SECOND], "the Secret may have been deleted");
        assert_eq!(scene.reads(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_that_cannot_be_read_leaves_the_secret_as_it_is_and_is_read_again_soon() {
        let scene = Scene::holding("bkct_1");
        scene.apply().await.unwrap();
        for failure in [None, Some(Err("AccessDeniedException"))] {
            scene.ssm_answers(failure);
            advance(MAX_AGE).await;
            let began = Instant::now();
            scene.apply().await.unwrap();
            assert!(began.elapsed() <= REFRESH_TIMEOUT + Duration::from_millis(1), "{:?}", began.elapsed());
        }
        scene.ssm_answers(Some(Ok("bkct_2")));
        scene.apply().await.unwrap();
        assert_eq!(scene.applied(), [FIRST]);
        advance(REFRESH_PAUSE).await;
        scene.apply().await.unwrap();
        assert_eq!(scene.applied(), [FIRST, SECOND]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_failure_names_the_correction_and_the_next_event_tries_again() {
        let scene = Scene::holding("bkct_1");
        let cases = [
            ("ParameterNotFound", "; create it with `aws ssm put-parameter --type SecureString`, or set Buildkite"),
            ("AccessDeniedException", "; allow the function's role ssm:GetParameter on it, "),
        ];
        for (code, hint) in cases {
            scene.ssm_answers(Some(Err(code)));
            let error = chain(&*scene.apply().await.unwrap_err());
            let start = "cannot read the agent token from SSM parameter /buildkite/agent-token in us-east-1";
            assert!(error.starts_with(&format!("{start}{hint}")), "{error}");
            assert!(error.contains(code) && error.contains("no such thing"), "{error}");
        }
        scene.ssm_answers(Some(Ok(" \n")));
        let error = scene.apply().await.unwrap_err().to_string();
        assert!(error.contains("/buildkite/agent-token in us-east-1 is empty"), "{error}");
        scene.ssm_answers(Some(Ok(r#"{"token":"hush"}"#)));
        let error = scene.apply().await.unwrap_err();
        assert_eq!(error.kind(), "AgentTokenUnavailable");
        let error = chain(&*error);
        assert!(error.contains("does not hold a Buildkite agent token: it looks like a JSON object with"), "{error}");
        assert!(!error.contains("hush"), "{error}");
        scene.ssm_answers(Some(Ok("bkct_1")));
        scene.apply().await.unwrap();
        assert_eq!(scene.applied(), [FIRST]);
    }

    /// Each for a minute, and the last as often as the first.
    #[tokio::test(start_paused = true)]
    async fn a_throttled_read_is_retried_by_every_event() {
        let scene = Scene::holding("bkct_1");
        scene.ssm_answers(Some(Err("ThrottlingException")));
        for event in 0..12 {
            let before = scene.reads();
            let error = chain(&*scene.apply().await.unwrap_err());
            assert!(error.contains("ThrottlingException"), "{error}");
            assert!(scene.reads() - before > 10, "{} by event {event}", scene.reads() - before);
        }
        scene.ssm_answers(Some(Ok("bkct_1")));
        scene.apply().await.unwrap();
        assert_eq!(scene.applied(), [FIRST]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_of_another_parameter_is_a_conflict_at_the_first_write_and_at_a_refresh() {
        let scene = Scene::holding("bkct_1");
        let message = r#"conflict with "agent-scheduler:other""#;
        let status = json!({
            "kind": "Status", "status": "Failure", "code": 409, "reason": "Conflict", "message": "Apply failed with 1 conflict",
            "details": {"causes": [{"reason": "FieldManagerConflict", "message": message, "field": ".data.token"}]},
        });
        for _ in 0..2 {
            scene.api_server.answer(StatusCode::CONFLICT, status.clone());
            let error = scene.apply().await.unwrap_err();
            assert!(error.is_conflict(), "{error}");
            let text = chain(&*error);
            for words in ["set AgentTokenSecretName", "`kubectl delete secret buildkite-agent-token ", message] {
                assert!(text.contains(words), "{words} is not in: {text}");
            }
            scene.api_server.answer(StatusCode::OK, json!({}));
            scene.apply().await.unwrap();
            advance(MAX_AGE).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_conflict_leaves_the_secret_as_it_is() {
        let scene = Scene::holding("bkct_1");
        scene.apply().await.unwrap();
        advance(MAX_AGE).await;
        scene.api_server.refuse(StatusCode::CONFLICT, "Conflict", "the object has been modified");
        scene.apply().await.unwrap();
    }

    #[test]
    fn stacks_that_read_one_parameter_share_a_field_manager() {
        let arn = "arn:aws:ssm:us-east-1:111122223333:parameter/a";
        assert_eq!(field_manager(arn), field_manager(arn));
        assert_ne!(field_manager(arn), field_manager(&arn.replace("1111", "2222")));
        assert_ne!(field_manager(&format!("{arn}:1")), field_manager(&format!("{arn}:2")));
        assert!(field_manager(arn).len() <= 128);
    }
}
