//! Event in, Job out: the real binary against the lab.
//!
//! Every test looks for the agent token in all that the function printed and answered, as a rule by [`Scene::end`].

#![expect(clippy::unwrap_used, reason = "a test says so by ending")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, prelude::BASE64_STANDARD};
use lab::{Answer, Certificate, Fault, Function, Lab, Parameter, Request, When, function::Builder};
use serde_json::{Value, json};
use tokio::task::JoinSet;

const FUNCTION: &str = env!("CARGO_BIN_EXE_agent-scheduler");
const UUID: &str = "11111111-2222-4333-8444-555555555501";
const JOB: &str = "buildkite-11111111-2222-4333-8444-555555555501";
const JOBS: &str = "/apis/batch/v1/namespaces/buildkite/jobs";

const SCHEDULED: &str = include_str!("../events/job-scheduled.json");

/// One lab and one function in it.
struct Scene {
    lab: Lab,
    function: Function,
    answers: Vec<Answer>,
}

impl Scene {
    async fn new() -> Self {
        Self::with(|_, function| function).await
    }

    /// A function whose lab was changed, or which got other variables, before it starts.
    ///
    /// It has 5 s for an event, two of which are kept: what never works shall be given up soon.
    async fn with(change: impl FnOnce(&Lab, Builder) -> Builder) -> Self {
        let lab = Lab::start().await;
        let function = change(&lab, lab.function(FUNCTION).timeout(Duration::from_secs(5))).start();
        Self { lab, function, answers: Vec::new() }
    }

    async fn invoke(&mut self, event: impl Into<String>) -> Answer {
        let answer = self.function.invoke(event).await;
        self.answers.push(answer.clone());
        answer
    }

    async fn succeed(&mut self, event: impl Into<String>) -> Value {
        match self.invoke(event).await {
            Answer::Success(answer) => answer,
            other => panic!("{other:?}\n{}", self.function.output()),
        }
    }

    /// The error's type and text.
    async fn fail(&mut self, event: impl Into<String>) -> (String, String) {
        match self.invoke(event).await {
            Answer::Error { error_type, error_message } => (error_type, error_message),
            other => panic!("{other:?}\n{}", self.function.output()),
        }
    }

    /// Stops the function and gives its log, in which the agent token must not be.
    async fn end(self) -> Vec<Value> {
        self.end_with_metrics().await.0
    }

    /// The same with the lines of metrics, which are no part of the log.
    async fn end_with_metrics(self) -> (Vec<Value>, Vec<Value>) {
        let token = self.lab.agent_token();
        let printed = self.function.stop().await;
        let jobs = self.lab.kubernetes.jobs();
        for text in [&printed.text, &format!("{:?}", self.answers), &format!("{jobs:?}")] {
            assert!(
                !text.contains(token) && !text.contains(&BASE64_STANDARD.encode(token)),
                "the agent token is in: {text}"
            );
        }
        printed.lines().into_iter().partition(|line| line["_aws"].is_null())
    }

    fn posts(&self) -> Vec<Request> {
        self.lab.kubernetes.requests().into_iter().filter(|request| request.method == "POST").collect()
    }
}

/// The published event with `change` made to its `detail`.
fn changed(change: impl FnOnce(&mut Value)) -> String {
    let mut event: Value = serde_json::from_str(SCHEDULED).unwrap();
    change(&mut event["detail"]);
    event.to_string()
}

fn with_rules(rules: Value) -> String {
    changed(|detail| detail["job"]["agent_query_rules"] = rules)
}

fn job_uuid(job: &Value) -> String {
    job["metadata"]["labels"]["buildkite.com/job-uuid"].as_str().unwrap().to_owned()
}

fn created() -> Value {
    json!({"outcome": "created", "job": JOB, "namespace": "buildkite"})
}

mod an_event_for_us {
    use super::*;

    #[tokio::test]
    async fn becomes_one_job() {
        let mut scene = Scene::new().await;
        assert_eq!(scene.succeed(SCHEDULED).await, created());

        let [job] = &scene.lab.kubernetes.jobs()[..] else { panic!("not one Job") };
        assert_eq!(job["metadata"]["labels"]["buildkite.com/job-uuid"], UUID);
        let agent = &job["spec"]["template"]["spec"]["containers"][0];
        let env = |name| agent["env"].as_array().unwrap().iter().find(|variable| variable["name"] == name).unwrap();
        assert_eq!(env("BUILDKITE_AGENT_ACQUIRE_JOB")["value"], UUID);
        assert_eq!(env("BUILDKITE_AGENT_TAGS")["value"], "queue=default,pod-definition=default");
        let reference = json!({"name": "buildkite-agent-token", "key": "token"});
        assert_eq!(env("BUILDKITE_AGENT_TOKEN")["valueFrom"]["secretKeyRef"], reference);
        let posts = scene.posts();
        assert_eq!(posts.len(), 1);
        assert_eq!(posts[0].query, "fieldValidation=Strict&fieldManager=agent-scheduler");

        let log = scene.end().await;
        assert_eq!(log.len(), 1, "{log:#?}");
        let line = &log[0];
        let expected = [
            ("level", json!("INFO")),
            ("outcome", json!("created")),
            ("job", json!(UUID)),
            ("pipeline", json!("example-pipeline")),
            ("build", json!(1234)),
            ("queue", json!("default")),
            ("definition", json!("default")),
        ];
        for (field, value) in expected {
            assert_eq!(line[field], value, "{field} in {line}");
        }
        assert!(
            line["age"].as_u64().is_some_and(|seconds| seconds > 6 * 3_600),
            "an old event is served like any other: {line}"
        );
        assert!(line["milliseconds"].is_f64() && line["span"]["requestId"].is_string(), "{line}");
        assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
    }

    #[tokio::test]
    async fn may_have_the_shape_of_2019() {
        let mut scene = Scene::new().await;
        assert_eq!(scene.succeed(include_str!("../events/job-scheduled-2019.json")).await, created());
        scene.end().await;
    }

    #[tokio::test]
    async fn is_one_request_when_the_function_is_warm() {
        let mut scene = Scene::new().await;
        scene.succeed(SCHEDULED).await;
        let (kubernetes, aws) = (scene.lab.kubernetes.requests().len(), scene.lab.aws.requests().len());
        for n in 0..10 {
            let uuid = format!("11111111-2222-4333-8444-5555555556{n:02}");
            scene.succeed(changed(|detail| detail["job"]["uuid"] = json!(uuid))).await;
        }
        assert_eq!(scene.lab.kubernetes.requests().len() - kubernetes, 10);
        assert_eq!(scene.lab.aws.requests().len(), aws);
        scene.end().await;
    }

    #[tokio::test]
    async fn twice_is_one_job_and_two_successes() {
        let mut scene = Scene::new().await;
        assert_eq!(scene.succeed(SCHEDULED).await["outcome"], "created");
        let again = json!({"outcome": "already-exists", "job": JOB, "namespace": "buildkite"});
        assert_eq!(scene.succeed(SCHEDULED).await, again);
        assert_eq!(scene.lab.kubernetes.jobs().len(), 1);
        scene.end().await;
    }

    #[tokio::test]
    async fn survives_a_connection_that_died_while_nobody_used_it() {
        let mut scene = Scene::new().await;
        scene.function.initialised().await.unwrap();
        scene.lab.kubernetes.hang_up();
        assert_eq!(scene.succeed(SCHEDULED).await, created());
        // This one is cut just when it is used.
        scene.lab.kubernetes.inject(When::request("POST", JOBS), Fault::CutBefore, 1);
        let other = "11111111-2222-4333-8444-555555555502";
        let answer = scene.succeed(changed(|detail| detail["job"]["uuid"] = json!(other))).await;
        assert_eq!(answer["outcome"], "created");
        scene.end().await;
    }

    #[tokio::test]
    async fn survives_the_loss_of_the_answer() {
        let mut scene = Scene::new().await;
        scene.lab.kubernetes.inject(When::request("POST", JOBS), Fault::CutAfter, 1);
        assert_eq!(scene.succeed(SCHEDULED).await["outcome"], "already-exists");
        assert_eq!(scene.lab.kubernetes.jobs().len(), 1);
        scene.end().await;
    }

    #[tokio::test]
    async fn ten_times_at_once_from_ten_processes_is_one_job() {
        let lab = Lab::start().await;
        let functions = (0..10).map(|_| lab.function(FUNCTION).start());
        let token = lab.agent_token().to_owned();
        let deliveries: JoinSet<_> = functions
            .map(|function| {
                let token = token.clone();
                async move {
                    let answer = function.invoke(SCHEDULED).await;
                    assert!(!function.stop().await.text.contains(&token), "the agent token is in the output");
                    answer
                }
            })
            .collect();
        let outcomes: Vec<_> = deliveries
            .join_all()
            .await
            .into_iter()
            .map(|answer| match answer {
                Answer::Success(answer) => answer["outcome"].as_str().unwrap().to_owned(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(outcomes.iter().filter(|outcome| *outcome == "created").count(), 1, "{outcomes:?}");
        assert_eq!(outcomes.iter().filter(|outcome| *outcome == "already-exists").count(), 9, "{outcomes:?}");
        assert_eq!(lab.kubernetes.jobs().len(), 1);
    }

    #[tokio::test]
    async fn may_hold_a_megabyte_of_command() {
        let mut scene = Scene::new().await;
        let command = "make test # a secret of the step\n".repeat(32_000);
        assert!(command.len() > 1_000_000);
        assert_eq!(scene.succeed(changed(|detail| detail["job"]["command"] = json!(command))).await, created());
        for line in scene.end().await {
            assert!(!line.to_string().contains("a secret of the step"), "the command is in the log");
        }
    }

    #[tokio::test]
    async fn may_hold_emoji_quotes_and_newlines() {
        let mut scene = Scene::new().await;
        let text = "🚀 \"quoted\" 'twice' \\ <b>\nsecond line\u{0}";
        let event = changed(|detail| {
            detail["job"]["label"] = json!(text);
            detail["build"]["branch"] = json!(text);
            detail["build"]["message"] = json!(text);
        });
        assert_eq!(scene.succeed(event).await, created());
        assert_eq!(scene.lab.kubernetes.jobs()[0]["metadata"]["annotations"]["buildkite.com/branch"], text);
        scene.end().await;
    }

    #[tokio::test]
    async fn may_repeat_its_rules_and_hold_some_that_are_none() {
        let mut scene = Scene::new().await;
        let rules = json!(["queue=default", "queue=default", "no-equals-sign", ""]);
        assert_eq!(scene.succeed(with_rules(rules)).await, created());
        scene.end().await;
    }

    #[tokio::test]
    async fn may_name_no_queue_if_those_are_served() {
        for rules in [json!(null), json!([])] {
            let mut scene = Scene::with(|_, function| function.env("SERVE_JOBS_WITHOUT_QUEUE", "true")).await;
            assert_eq!(scene.succeed(with_rules(rules)).await, created());
            scene.end().await;
        }
    }

    #[tokio::test]
    async fn may_come_from_a_reference_to_secrets_manager() {
        let parameter = "/aws/reference/secretsmanager/buildkite/agent-token";
        let mut scene = Scene::with(|lab, function| {
            lab.aws.put_parameter(parameter, Parameter::secure_string("bkct_from_secrets_manager"));
            function.env("BUILDKITE_AGENT_TOKEN_PARAMETER_PATH", parameter)
        })
        .await;
        assert_eq!(scene.succeed(SCHEDULED).await, created());
        let secret = scene.lab.kubernetes.secret("buildkite", "buildkite-agent-token").unwrap();
        assert_eq!(secret["data"]["token"], "YmtjdF9mcm9tX3NlY3JldHNfbWFuYWdlcg==");
        scene.end().await;
    }
}

mod a_pod_definition {
    use super::*;

    /// The `spec` of the pod of the one Job.
    fn pod(scene: &Scene) -> Value {
        let [job] = &scene.lab.kubernetes.jobs()[..] else { panic!("not one Job") };
        job["spec"]["template"]["spec"].clone()
    }

    fn template(name: &str, spec: &Value) -> Value {
        json!({"metadata": {"name": name}, "template": {"spec": spec}})
    }

    #[tokio::test]
    async fn of_the_cluster_passes_through_as_its_author_wrote_it() {
        let spec = json!({
            "restartPolicy": "Never",
            "priorityClassName": "builds",
            "tolerations": [{"key": "builds", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "schedulingGates": [{"name": "example.com/quota"}],
            "initContainers": [{"name": "dockerd", "image": "docker:dind", "restartPolicy": "Always"}],
            "volumes": [{"name": "cache", "emptyDir": {}}],
            "fieldOfTomorrow": {"a": 1},
            "containers": [{"name": "agent", "image": "agent:4", "fieldOfTomorrow": [1]}],
        });
        for rule in ["pod-definition=node", "pod-template=node"] {
            let mut scene = Scene::with(|lab, function| {
                lab.kubernetes.put_pod_template(template("node", &spec));
                function
            })
            .await;
            assert_eq!(scene.succeed(with_rules(json!(["queue=default", rule]))).await, created());
            let mut pod = pod(&scene);
            let env = pod["containers"][0].as_object_mut().unwrap().remove("env").unwrap();
            assert_eq!(pod, spec);
            let tags = env.as_array().unwrap().iter().find(|variable| variable["name"] == "BUILDKITE_AGENT_TAGS");
            assert_eq!(tags.unwrap()["value"], "queue=default,pod-definition=node");
            assert_eq!(scene.end().await[0]["definition"], "node");
        }
    }

    #[tokio::test]
    async fn that_was_added_since_is_found_by_one_request_more() {
        let mut scene = Scene::new().await;
        scene.function.initialised().await.unwrap();
        let spec = json!({"restartPolicy": "Never", "containers": [{"name": "agent", "image": "node:24"}]});
        scene.lab.kubernetes.put_pod_template(template("node", &spec));
        let before = scene.lab.kubernetes.requests().len();
        scene.succeed(with_rules(json!(["queue=default", "pod-definition=node"]))).await;
        assert_eq!(pod(&scene)["containers"][0]["image"], "node:24");
        assert_eq!(scene.lab.kubernetes.requests().len() - before, 2);
        scene.end().await;
    }

    #[tokio::test]
    async fn of_another_namespace_is_none() {
        let mut scene = Scene::new().await;
        let spec = json!({"restartPolicy": "Never", "containers": [{"name": "agent", "image": "node:24"}]});
        let mut other = template("node", &spec);
        other["metadata"]["namespace"] = json!("other");
        scene.lab.kubernetes.put_pod_template(other);
        let (error_type, _) = scene.fail(with_rules(json!(["queue=default", "pod-definition=node"]))).await;
        assert_eq!(error_type, "UnknownPodDefinition");
        scene.end().await;
    }

    #[tokio::test]
    async fn that_brings_its_token_needs_none_of_ours() {
        let mut scene = Scene::with(|lab, function| {
            let env = json!([{"name": "BUILDKITE_AGENT_TOKEN", "value": "file:///var/run/token"}]);
            let spec = json!({"restartPolicy": "Never", "containers": [{"name": "agent", "image": "i", "env": env}]});
            lab.kubernetes.put_pod_template(template("default", &spec));
            lab.aws.inject(When::action("GetParameter"), Fault::access_denied(), usize::MAX);
            function
        })
        .await;
        // The first event has to list the definitions: the start-up ended with the other failure.
        assert_eq!(scene.succeed(SCHEDULED).await, created());
        let reads = scene.lab.aws.requests().len();
        assert_eq!(scene.succeed(SCHEDULED).await["outcome"], "already-exists");
        assert_eq!(scene.lab.aws.requests().len(), reads);
        scene.end().await;
    }

    #[tokio::test]
    async fn gets_the_image_and_the_resources_that_the_step_asks_for() {
        let mut scene = Scene::new().await;
        let image = "registry.example:5000/node@sha256:0123";
        let rules = json!(["queue=default", format!("image={image}"), "cpu=2", "memory=4Gi"]);
        assert_eq!(scene.succeed(with_rules(rules)).await, created());
        let pod = pod(&scene);
        let agent = &pod["containers"][0];
        assert_eq!(agent["image"], image);
        let resources = json!({"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "4Gi"}});
        assert_eq!(agent["resources"], resources);
        let copy = &pod["initContainers"][0];
        assert_eq!((&copy["image"], &copy["env"]), (&json!("ghcr.io/buildkite/agent:4.10.1"), &json!(null)));
        scene.end().await;
    }
}

mod an_event_that_is_not_for_us {
    use super::*;

    async fn ignored(event: &str, reason: &str, level: &str) {
        let mut scene = Scene::new().await;
        let answer = scene.succeed(event).await;
        assert_eq!(answer["outcome"], "ignored", "{answer}");
        assert!(answer["reason"].as_str().unwrap().contains(reason), "{answer}");
        assert_eq!(answer.as_object().unwrap().len(), 2, "{answer}");
        assert!(scene.lab.kubernetes.jobs().is_empty());
        let log = scene.end().await;
        assert_eq!(log.len(), 1, "{log:#?}");
        assert_eq!((&log[0]["level"], &log[0]["outcome"]), (&json!(level), &json!("ignored")));
    }

    #[tokio::test]
    async fn is_ignored_when_it_is_for_another_queue() {
        ignored(include_str!("../events/job-other-queue.json"), "queue=windows is not served here", "INFO").await;
    }

    #[tokio::test]
    async fn is_ignored_with_a_warning_when_nothing_here_has_the_tag() {
        ignored(include_str!("../events/job-unserved-tag.json"), "gpu=a100", "WARN").await;
    }

    #[tokio::test]
    async fn is_ignored_when_it_tells_of_something_else() {
        ignored(include_str!("../events/job-finished.json"), "Job Finished", "INFO").await;
    }

    #[tokio::test]
    async fn is_ignored_when_no_agent_is_needed() {
        ignored(&changed(|detail| detail["job"]["type"] = json!("manual")), "\"manual\" needs no agent", "INFO").await;
    }

    #[tokio::test]
    async fn is_ignored_when_it_names_no_queue() {
        ignored(&with_rules(json!(null)), "names no queue", "INFO").await;
    }
}

mod an_event_that_cannot_be_served {
    use super::*;

    /// Fails with that type and a text that has all these words, and leaves no Job.
    async fn fails(mut scene: Scene, event: impl Into<String>, kind: &str, words: &[&str]) -> Vec<Request> {
        let (error_type, text) = scene.fail(event).await;
        assert_eq!(error_type, kind, "{text}");
        for word in words {
            assert!(text.contains(word), "{word:?} is not in: {text}");
        }
        let ours = |job: &Value| job["metadata"]["labels"]["buildkite.com/job-uuid"] == UUID;
        assert!(!scene.lab.kubernetes.jobs().iter().any(ours));
        let posts = scene.posts();
        let log = scene.end().await;
        let last = log.last().unwrap();
        assert_eq!(
            (&last["level"], &last["error_type"], &last["error"]),
            (&json!("ERROR"), &json!(kind), &json!(text))
        );
        posts
    }

    /// The same with a lab that was changed and a function that got other variables.
    async fn fails_with(change: impl FnOnce(&Lab, Builder) -> Builder, kind: &str, words: &[&str]) -> Vec<Request> {
        fails(Scene::with(change).await, SCHEDULED, kind, words).await
    }

    #[tokio::test]
    async fn json_that_is_no_event() {
        for event in ["{}", "[1, 2]", "null", "\"text\"", r#"{"Records": [{}]}"#] {
            fails(Scene::new().await, event, "InvalidEvent", &["not an EventBridge event", "detail-type"]).await;
        }
    }

    #[tokio::test]
    async fn a_uuid_that_is_none() {
        let event = changed(|detail| detail["job"]["uuid"] = json!("../../secrets"));
        fails(Scene::new().await, event, "InvalidEvent", &["detail.job.uuid"]).await;
    }

    #[tokio::test]
    async fn an_unknown_pod_definition() {
        let event = with_rules(json!(["queue=default", "pod-definition=nodejs"]));
        fails(Scene::new().await, event, "UnknownPodDefinition", &["\"nodejs\"", "may ask for default"]).await;
    }

    #[tokio::test]
    async fn a_broken_pod_definition_of_the_cluster() {
        let change = |lab: &Lab, function| {
            let spec = json!({"restartPolicy": "Never", "containers": [{"name": "main", "image": "i"}]});
            lab.kubernetes.put_pod_template(json!({"metadata": {"name": "default"}, "template": {"spec": spec}}));
            function
        };
        let words = ["PodTemplate default in namespace buildkite: template.spec.containers must have one named agent"];
        fails_with(change, "InvalidPodDefinition", &words).await;
    }

    #[tokio::test]
    async fn a_rule_that_its_pod_cannot_meet() {
        for (rule, words) in [
            ("cpu=many", "the step asks for cpu=many, which is no amount"),
            ("memory=512m", "the step asks for memory=512m, which is less than 16Mi"),
        ] {
            let event = with_rules(json!(["queue=default", rule]));
            fails(Scene::new().await, event, "InvalidAgentQueryRule", &[words]).await;
        }
        let event = with_rules(json!(["queue=default", "cpu=1", "cpu=2"]));
        fails(Scene::new().await, event, "InvalidAgentQueryRule", &["cpu=1, and for cpu=2 as well"]).await;
    }

    #[tokio::test]
    async fn pod_definitions_that_cannot_be_listed() {
        let change = |lab: &Lab, function| {
            lab.kubernetes.inject(When::path("/podtemplates"), Fault::status(503), usize::MAX);
            function
        };
        let words = ["cannot list the pod definitions of namespace buildkite", "cannot serve the request now"];
        fails_with(change, "ClusterUnavailable", &words).await;
    }

    #[tokio::test]
    async fn a_job_of_that_name_that_is_not_ours() {
        let theirs =
            json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": JOB, "namespace": "buildkite"}});
        let change = |lab: &Lab, function| {
            lab.kubernetes.put_job(theirs);
            function
        };
        fails_with(change, "RejectedByApiServer", &[JOB, "not ours", "buildkite.com/job-uuid"]).await;
    }

    #[tokio::test]
    async fn a_parameter_that_is_missing() {
        let change = |lab: &Lab, function| {
            lab.aws.remove_parameter("/buildkite/agent-token");
            function
        };
        let words = ["/buildkite/agent-token", "us-east-1", "ParameterNotFound", "BuildkiteAgentTokenParameterPath"];
        fails_with(change, "AgentTokenUnavailable", &words).await;
    }

    #[tokio::test]
    async fn a_parameter_that_may_not_be_read() {
        let change = |lab: &Lab, function| {
            lab.aws.inject(When::action("GetParameter"), Fault::access_denied(), usize::MAX);
            function
        };
        let words =
            ["/buildkite/agent-token", "allow the function's role ssm:GetParameter", "is not authorized to perform"];
        fails_with(change, "AgentTokenUnavailable", &words).await;
    }

    #[tokio::test]
    async fn a_cluster_that_eks_does_not_know() {
        let change = |_: &Lab, function: Builder| {
            function
                .env("KUBERNETES_CLUSTER_IDENTIFIER", "no-such-cluster")
                .env_remove("KUBERNETES_API_SERVER_ENDPOINT")
        };
        let words = ["\"no-such-cluster\"", "KUBERNETES_CLUSTER_IDENTIFIER", "No cluster found"];
        fails_with(change, "ClusterUnavailable", &words).await;
    }

    #[tokio::test]
    async fn an_api_server_that_cannot_be_reached() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = format!("https://{}", listener.local_addr().unwrap());
        drop(listener);
        let change = |_: &Lab, function: Builder| function.env("KUBERNETES_API_SERVER_ENDPOINT", &closed);
        fails_with(change, "ClusterUnavailable", &["cannot reach the API server", &closed, "Connection refused"]).await;
    }

    #[tokio::test]
    async fn an_api_server_that_hangs_up() {
        let change = |lab: &Lab, function| {
            lab.kubernetes.inject(When::request("POST", JOBS), Fault::CutBefore, usize::MAX);
            function
        };
        fails_with(change, "ClusterUnavailable", &["has not confirmed Job buildkite-", "cannot reach the API server"])
            .await;
    }

    #[tokio::test]
    async fn a_proxy_that_leads_elsewhere() {
        let change = |lab: &Lab, function| {
            lab.kubernetes.inject(When::request("POST", JOBS), Fault::status(302), usize::MAX);
            function
        };
        fails_with(change, "ClusterUnavailable", &["cannot reach the API server", "302 Found, which no API server"])
            .await;
    }

    #[tokio::test]
    async fn an_api_server_that_speaks_no_tls() {
        let change = |lab: &Lab, function: Builder| {
            function.env("KUBERNETES_API_SERVER_ENDPOINT", lab.aws.url().replace("http://", "https://"))
        };
        fails_with(change, "ClusterUnavailable", &["cannot reach the API server", "corrupt message"]).await;
    }

    #[tokio::test]
    async fn an_answer_that_does_not_come() {
        let late = Fault::Delay(Duration::from_mins(1));
        not_confirmed(late, "Timeout", "did not answer in the time that there was").await;
    }

    #[tokio::test]
    async fn an_answer_that_is_always_lost() {
        not_confirmed(Fault::CutAfter, "ClusterUnavailable", "cannot reach the API server").await;
    }

    /// Fails since it is not known what became of the Job, and the next delivery makes up for it.
    async fn not_confirmed(fault: Fault, kind: &str, words: &str) {
        let mut scene = Scene::with(|lab, function| {
            lab.kubernetes.inject(When::request("POST", JOBS), fault, usize::MAX);
            function
        })
        .await;
        let (error_type, text) = scene.fail(SCHEDULED).await;
        assert_eq!(error_type, kind);
        assert!(text.starts_with(&format!("the API server has not confirmed Job {JOB}; ")), "{text}");
        assert!(text.contains(words), "{text}");
        scene.lab.kubernetes.clear_faults();
        scene.succeed(SCHEDULED).await;
        assert_eq!(scene.lab.kubernetes.jobs().len(), 1);
        scene.end().await;
    }

    #[tokio::test]
    async fn a_certificate_of_another_ca() {
        let change = |lab: &Lab, function: Builder| {
            function.env("KUBERNETES_CERTIFICATE_AUTHORITY_DATA", lab.certificates.other_ca_data())
        };
        let words =
            ["certificate that is not to be trusted", "KUBERNETES_CERTIFICATE_AUTHORITY_DATA", "example-cluster"];
        fails_with(change, "ClusterUnavailable", &words).await;
    }

    #[tokio::test]
    async fn a_certificate_that_expired_or_names_another_host() {
        for (certificate, problem) in
            [(Certificate::Expired, "expired"), (Certificate::OtherHost, "not valid for name")]
        {
            let lab = Lab::start().await;
            let url = lab.kubernetes.serve_with(certificate).await;
            let function = lab.function(FUNCTION).env("KUBERNETES_API_SERVER_ENDPOINT", url).start();
            let scene = Scene { lab, function, answers: Vec::new() };
            fails(scene, SCHEDULED, "ClusterUnavailable", &["certificate that is not to be trusted", problem]).await;
        }
    }

    #[tokio::test]
    async fn a_token_that_stays_refused_after_one_new_one() {
        let scene = Scene::with(|lab, function| {
            lab.kubernetes.inject(When::request("POST", JOBS), Fault::status(401), usize::MAX);
            function
        })
        .await;
        let words =
            ["does not accept the function's EKS token", "\"example-cluster\"", "buildkite-on-demand-agent-scheduler"];
        let posts = fails(scene, SCHEDULED, "Unauthorized", &words).await;
        assert_eq!(posts.len(), 2, "once, and once more with a new token");
    }

    #[tokio::test]
    async fn a_missing_permission() {
        for (verb, resource) in [("create", "jobs"), ("patch", "secrets"), ("list", "podtemplates")] {
            let change = |lab: &Lab, function| {
                lab.kubernetes.forbid(verb, resource);
                function
            };
            let permission = format!("cannot {verb} resource \"{resource}\"");
            let words = [&*permission, "buildkite-role.yaml", "--namespace buildkite"];
            fails_with(change, "Forbidden", &words).await;
        }
    }

    #[tokio::test]
    async fn a_namespace_that_is_not_there() {
        let change = |_: &Lab, function: Builder| function.env("KUBERNETES_NAMESPACE", "builds");
        fails_with(change, "RejectedByApiServer", &["no namespace \"builds\"", "kubectl create namespace builds"])
            .await;
    }

    #[tokio::test]
    async fn a_secret_that_carries_another_token() {
        let change = |lab: &Lab, function| {
            lab.kubernetes.put_secret_as(
                "agent-scheduler:another",
                "buildkite",
                "buildkite-agent-token",
                "token",
                "bkct_another",
            );
            function
        };
        let words =
            ["Secret buildkite-agent-token", "AgentTokenSecretName", "conflict with \"agent-scheduler:another\""];
        fails_with(change, "RejectedByApiServer", &words).await;
    }

    #[tokio::test]
    async fn an_object_that_the_api_server_finds_invalid() {
        let message = format!("Job.batch \"{JOB}\" is invalid: spec.template.spec.containers[0].image: Required value");
        let change = |lab: &Lab, function| {
            lab.kubernetes.inject(When::request("POST", JOBS), Fault::invalid(message.clone()), usize::MAX);
            function
        };
        fails_with(change, "RejectedByApiServer", &[&message]).await;
    }

    #[tokio::test]
    async fn an_overloaded_api_server() {
        for fault in [Fault::throttled(Duration::from_secs(1)), Fault::status(500), Fault::status(503)] {
            let change = |lab: &Lab, function| {
                lab.kubernetes.inject(When::request("POST", JOBS), fault, usize::MAX);
                function
            };
            fails_with(
                change,
                "ClusterUnavailable",
                &["has not confirmed Job buildkite-", "cannot serve the request now"],
            )
            .await;
        }
    }
}

mod a_batch_of_the_failure_queue {
    use super::*;

    const REDRIVE: &str = include_str!("../events/redrive.json");

    fn message(number: usize) -> String {
        format!("11111111-2222-4333-8444-5555555557{number:02}")
    }

    fn uuid(number: usize) -> String {
        format!("11111111-2222-4333-8444-5555555556{number:02}")
    }

    /// A message of that number, with an event for a job of that number.
    fn record(number: usize) -> Value {
        with_body(number, &changed(|detail| detail["job"]["uuid"] = json!(uuid(number))))
    }

    fn with_body(number: usize, body: &str) -> Value {
        json!({"messageId": message(number), "body": body, "eventSource": "aws:sqs"})
    }

    fn batch(records: impl IntoIterator<Item = Value>) -> String {
        json!({"Records": records.into_iter().collect::<Vec<_>>()}).to_string()
    }

    fn failed(numbers: impl IntoIterator<Item = usize>) -> Value {
        let failures = numbers.into_iter().map(|number| json!({"itemIdentifier": message(number)}));
        json!({"batchItemFailures": failures.collect::<Vec<_>>()})
    }

    #[tokio::test]
    async fn becomes_one_job_for_each_event_in_either_form() {
        let mut scene = Scene::new().await;
        assert_eq!(scene.succeed(REDRIVE).await, failed([]));
        let mut uuids: Vec<_> = scene.lab.kubernetes.jobs().iter().map(job_uuid).collect();
        uuids.sort();
        assert_eq!(uuids, [uuid(1), uuid(2)]);

        let log = scene.end().await;
        let mut lines: Vec<_> = log.iter().map(|line| (&line["job"], &line["span"]["messageId"])).collect();
        lines.sort_by_key(|(job, _)| job.to_string());
        let messages = ["11111111-2222-4333-8444-555555555691", "11111111-2222-4333-8444-555555555692"];
        assert_eq!(lines, [(&json!(uuid(1)), &json!(messages[0])), (&json!(uuid(2)), &json!(messages[1]))]);
    }

    #[tokio::test]
    async fn makes_nothing_and_fails_nothing_the_second_time() {
        let mut scene = Scene::new().await;
        assert_eq!(scene.succeed(REDRIVE).await, failed([]));
        assert_eq!(scene.succeed(REDRIVE).await, failed([]));
        assert_eq!(scene.lab.kubernetes.jobs().len(), 2);
        scene.end().await;
    }

    #[tokio::test]
    async fn may_be_empty() {
        let mut scene = Scene::new().await;
        assert_eq!(scene.succeed(batch([])).await, failed([]));
        assert!(scene.end().await.is_empty());
    }

    #[tokio::test]
    async fn may_hold_events_that_are_not_for_us() {
        let mut scene = Scene::new().await;
        let others = [include_str!("../events/job-other-queue.json"), include_str!("../events/job-finished.json")];
        let records = others.iter().zip(0..).map(|(event, number)| with_body(number, event));
        assert_eq!(scene.succeed(batch(records)).await, failed([]));
        assert!(scene.lab.kubernetes.jobs().is_empty());
        scene.end().await;
    }

    #[tokio::test]
    async fn reports_the_one_message_that_holds_no_event() {
        for body in ["a secret of the message", r#"{"requestPayload":"a secret of the message"}"#] {
            let mut scene = Scene::new().await;
            let records = (0..10).map(|number| if number == 4 { with_body(4, body) } else { record(number) });
            assert_eq!(scene.succeed(batch(records)).await, failed([4]));
            assert_eq!(scene.lab.kubernetes.jobs().len(), 9);

            let log = scene.end().await;
            let errors: Vec<_> = log.iter().filter(|line| line["level"] == "ERROR").collect();
            let [error] = errors[..] else { panic!("not one error in {log:#?}") };
            assert_eq!(error["error_type"], "InvalidEvent");
            assert_eq!(error["span"]["messageId"], message(4));
            assert!(error["error"].as_str().unwrap().contains("expected what Lambda sends of a failed invocation"));
            assert!(log.iter().all(|line| !line.to_string().contains("a secret of the message")), "{log:#?}");
        }
    }

    #[tokio::test]
    async fn reports_those_that_the_api_server_refuses() {
        let mut scene = Scene::new().await;
        scene.lab.kubernetes.inject(When::request("POST", JOBS), Fault::invalid("no such field"), 3);
        let answer = scene.succeed(batch((0..10).map(record))).await;
        let made: Vec<_> = scene.lab.kubernetes.jobs().iter().map(job_uuid).collect();
        assert_eq!(made.len(), 7);
        assert_eq!(answer, failed((0..10).filter(|number| !made.contains(&uuid(*number)))));

        assert_eq!(scene.succeed(batch((0..10).map(record))).await, failed([]));
        assert_eq!(scene.lab.kubernetes.jobs().len(), 10);
        scene.end().await;
    }

    #[tokio::test]
    async fn waits_once_for_an_api_server_that_hangs() {
        // When it takes Jobs, and already when it takes the Secret or is asked for the pod definitions.
        for (method, path) in [("POST", JOBS), ("PATCH", "/secrets"), ("GET", "/podtemplates")] {
            let mut scene = Scene::with(|lab, function| {
                let late = Fault::Delay(Duration::from_mins(1));
                lab.kubernetes.inject(When::request(method, path), late, usize::MAX);
                function
            })
            .await;
            // In time for Lambda, which ends a function that waits for each in turn.
            assert_eq!(scene.succeed(batch((0..10).map(record))).await, failed(0..10));
            let log = scene.end().await;
            let late = log.iter().filter(|line| line["message"] == "event failed" && line["error_type"] == "Timeout");
            assert_eq!(late.count(), 10, "{log:#?}");
        }
    }

    #[tokio::test]
    async fn needs_no_token_of_ours_where_the_definition_brings_it() {
        // One that is refused at once, and one that may come for as long as there is time.
        for fault in [Fault::access_denied(), Fault::throttling()] {
            let mut scene = Scene::with(|lab, function| {
                let env = json!([{"name": "BUILDKITE_AGENT_TOKEN", "value": "file:///var/run/token"}]);
                let spec =
                    json!({"restartPolicy": "Never", "containers": [{"name": "agent", "image": "i", "env": env}]});
                lab.kubernetes.put_pod_template(json!({"metadata": {"name": "own"}, "template": {"spec": spec}}));
                lab.aws.inject(When::action("GetParameter"), fault, usize::MAX);
                function
            })
            .await;
            let own = changed(|detail| {
                detail["job"]["uuid"] = json!(uuid(0));
                detail["job"]["agent_query_rules"] = json!(["queue=default", "pod-definition=own"]);
            });
            let finished = include_str!("../events/job-finished.json");
            let records = [with_body(0, &own), record(1), with_body(2, finished), with_body(3, "no event")];
            assert_eq!(scene.succeed(batch(records)).await, failed([1, 3]));
            let made: Vec<_> = scene.lab.kubernetes.jobs().iter().map(job_uuid).collect();
            assert_eq!(made, [uuid(0)]);

            let log = scene.end().await;
            let mut errors: Vec<_> = log.iter().filter(|line| line["level"] == "ERROR").collect();
            errors.sort_by_key(|line| line["span"]["messageId"].to_string());
            let [token, no_event] = errors[..] else { panic!("{log:#?}") };
            assert_eq!((&token["error_type"], &token["job"]), (&json!("AgentTokenUnavailable"), &json!(uuid(1))));
            assert_eq!(no_event["error_type"], "InvalidEvent");
        }
    }

    #[tokio::test]
    async fn judges_each_message_though_the_cluster_cannot_be_reached() {
        // When it has to be found first, and when it is known.
        let lost: [fn(&Lab, Builder) -> Builder; 2] = [
            |lab, function| {
                lab.aws.inject(When::action("DescribeCluster"), Fault::access_denied(), usize::MAX);
                function.env_remove("KUBERNETES_API_SERVER_ENDPOINT")
            },
            |lab, function| {
                lab.kubernetes.inject(When::path("/"), Fault::CutBefore, usize::MAX);
                function
            },
        ];
        for change in lost {
            let mut scene = Scene::with(change).await;
            let _ = scene.function.initialised().await;
            let other_queue = include_str!("../events/job-other-queue.json");
            let records = [with_body(0, other_queue), with_body(1, "no event"), record(2), record(3)];
            assert_eq!(scene.succeed(batch(records)).await, failed([1, 2, 3]));

            let log = scene.end().await;
            let of = |number: usize| {
                let lines: Vec<_> = log.iter().filter(|line| line["span"]["messageId"] == message(number)).collect();
                let [line] = lines[..] else { panic!("{number} has not one line in {log:#?}") };
                line
            };
            assert_eq!(of(0)["outcome"], "ignored");
            assert_eq!(of(1)["error_type"], "InvalidEvent");
            for number in [2, 3] {
                let line = of(number);
                assert_eq!((&line["error_type"], &line["job"]), (&json!("ClusterUnavailable"), &json!(uuid(number))));
            }
        }
    }

    #[tokio::test]
    async fn of_another_service_is_refused() {
        for (field, service) in [("eventSource", "aws:s3"), ("EventSource", "aws:sns")] {
            let mut scene = Scene::new().await;
            let (error_type, text) = scene.fail(batch([json!({field: service})])).await;
            assert_eq!(error_type, "InvalidEvent");
            assert!(text.starts_with(&format!("records of {service}, which the function does not take")), "{text}");
            scene.end().await;
        }
    }
}

mod metrics {
    use super::*;

    fn directive(dimensions: &Value, metrics: &[(&str, &str)]) -> Value {
        let metrics: Vec<_> = metrics.iter().map(|(name, unit)| json!({"Name": name, "Unit": unit})).collect();
        json!({"Namespace": "AgentScheduler", "Dimensions": [dimensions], "Metrics": metrics})
    }

    fn line(directives: &[Value], queue: &str, values: &Value) -> Value {
        let mut line = json!({"_aws": {"CloudWatchMetrics": directives}, "FunctionName": "agent-scheduler"});
        line["Queue"] = json!(queue);
        line.as_object_mut().unwrap().extend(values.as_object().unwrap().clone());
        line
    }

    /// A line with that one metric.
    fn one(name: &str, queue: &str) -> Value {
        let directive = directive(&json!(["FunctionName", "Queue"]), &[(name, "Count")]);
        line(&[directive], queue, &json!({name: 1}))
    }

    /// The published event, announced at another time.
    fn at(time: &Value) -> String {
        let mut event: Value = serde_json::from_str(SCHEDULED).unwrap();
        event["time"] = time.clone();
        event.to_string()
    }

    /// Ends the scene and gives its lines without their timestamps, which must be of this minute, beside those.
    async fn end(scene: Scene) -> Vec<(u64, Value)> {
        let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
        let (_, lines) = scene.end_with_metrics().await;
        let lines = lines.into_iter().map(|mut line| {
            let timestamp = line["_aws"].as_object_mut().unwrap().remove("Timestamp").unwrap().as_u64().unwrap();
            assert!(timestamp.abs_diff(now) < 60_000, "{timestamp} at {now}");
            (timestamp, line)
        });
        lines.collect()
    }

    /// The lines that these events leave, in order.
    async fn are(mut scene: Scene, events: &[&str], expected: &[Value]) {
        for event in events {
            scene.invoke(*event).await;
        }
        let lines: Vec<_> = end(scene).await.into_iter().map(|(_, line)| line).collect();
        assert_eq!(lines, expected);
    }

    #[tokio::test]
    async fn tell_of_a_new_job_and_how_long_it_took() {
        let mut scene = Scene::new().await;
        scene.succeed(at(&json!("2020-01-01T00:00:00Z"))).await;
        let [(timestamp, found)] = &end(scene).await[..] else { panic!("not one line") };
        let metrics = [("JobsCreated", "Count"), ("TimeToJob", "Milliseconds")];
        let directive = directive(&json!(["FunctionName", "Queue"]), &metrics);
        let values = json!({"JobsCreated": 1, "TimeToJob": timestamp - 1_577_836_800_000});
        assert_eq!(*found, line(&[directive], "default", &values));
    }

    #[tokio::test]
    async fn tell_nothing_of_a_time_that_nobody_knows() {
        for time in [json!(null), json!("yesterday"), json!([7])] {
            are(Scene::new().await, &[&at(&time)], &[one("JobsCreated", "default")]).await;
        }
    }

    #[tokio::test]
    async fn tell_of_a_repeated_event() {
        let event = at(&json!(null));
        let lines = [one("JobsCreated", "default"), one("JobsExisting", "default")];
        are(Scene::new().await, &[&event, &event], &lines).await;
    }

    #[tokio::test]
    async fn tell_of_a_job_that_is_not_for_us_and_never_name_its_queue() {
        let events = [include_str!("../events/job-other-queue.json"), &with_rules(json!(null))];
        are(Scene::new().await, &events, &[one("JobsIgnored", "none"), one("JobsIgnored", "none")]).await;
    }

    #[tokio::test]
    async fn tell_of_a_job_without_a_queue() {
        let mut event: Value = serde_json::from_str(&with_rules(json!([]))).unwrap();
        event["time"] = json!(null);
        let scene = Scene::with(|_, function| function.env("SERVE_JOBS_WITHOUT_QUEUE", "true")).await;
        are(scene, &[&event.to_string()], &[one("JobsCreated", "none")]).await;
    }

    #[tokio::test]
    async fn tell_of_a_job_that_will_wait_for_ever() {
        let directives = [
            directive(&json!(["FunctionName", "Queue"]), &[("JobsIgnored", "Count")]),
            directive(&json!(["FunctionName"]), &[("JobsUnserved", "Count")]),
        ];
        let expected = line(&directives, "default", &json!({"JobsIgnored": 1, "JobsUnserved": 1}));
        are(Scene::new().await, &[include_str!("../events/job-unserved-tag.json")], &[expected]).await;
    }

    #[tokio::test]
    async fn tell_of_a_job_that_failed_and_of_an_event_that_cannot_be_read() {
        let scene = Scene::new().await;
        scene.lab.kubernetes.inject(When::request("POST", JOBS), Fault::invalid("no such field"), 1);
        are(scene, &[SCHEDULED, "{}"], &[one("JobsFailed", "default"), one("JobsFailed", "none")]).await;
    }

    #[tokio::test]
    async fn tell_nothing_of_other_events() {
        are(Scene::new().await, &[include_str!("../events/job-finished.json"), r#"{"Records":[]}"#], &[]).await;
    }

    #[tokio::test]
    async fn tell_of_each_message_of_a_batch() {
        let message = |body: &str| json!({"messageId": "1", "body": body, "eventSource": "aws:sqs"});
        let batch = json!({"Records": [message(&at(&json!(null))), message("no event")]}).to_string();
        let mut scene = Scene::new().await;
        scene.succeed(batch).await;
        let mut lines: Vec<_> = end(scene).await.into_iter().map(|(_, line)| line).collect();
        lines.sort_by_key(ToString::to_string);
        let mut expected = [one("JobsCreated", "default"), one("JobsFailed", "none")];
        expected.sort_by_key(ToString::to_string);
        assert_eq!(lines, expected);
    }

    #[tokio::test]
    async fn are_lines_of_their_own_whatever_the_format_of_the_log() {
        let scene = Scene::with(|_, function| function.env("AWS_LAMBDA_LOG_FORMAT", "Text")).await;
        are(scene, &[&at(&json!(null))], &[one("JobsCreated", "default")]).await;
    }
}

mod start_up {
    use super::*;

    #[tokio::test]
    async fn puts_the_secret_in_place_before_it_asks_for_an_event() {
        let mut scene = Scene::new().await;
        scene.function.initialised().await.unwrap();
        assert!(scene.lab.kubernetes.secret("buildkite", "buildkite-agent-token").is_some());
        let before = scene.lab.kubernetes.requests().len();
        scene.succeed(SCHEDULED).await;
        assert_eq!(scene.lab.kubernetes.requests().len(), before + 1);
        scene.end().await;
    }

    #[tokio::test]
    async fn asks_eks_for_what_is_not_configured() {
        for absent in ["KUBERNETES_API_SERVER_ENDPOINT", "KUBERNETES_CERTIFICATE_AUTHORITY_DATA"] {
            let mut scene = Scene::with(|_, function| function.env_remove(absent)).await;
            assert_eq!(scene.succeed(SCHEDULED).await, created());
            scene.succeed(SCHEDULED).await;
            let described =
                scene.lab.aws.requests().into_iter().filter(|request| request.path.starts_with("/clusters/"));
            assert_eq!(described.count(), 1, "once per start");
            scene.end().await;
        }
    }

    #[tokio::test]
    async fn tells_lambda_all_that_is_wrong_with_the_variables() {
        let mut scene = Scene::with(|_, function| {
            function
                .env_remove("BUILDKITE_QUEUE")
                .env("JOB_TTL_SECONDS", "ten minutes")
                .env("KUBERNETES_API_SERVER_ENDPOINT", "http://127.0.0.1:6443")
        })
        .await;
        let Answer::InitError { error_type, error_message } = scene.invoke(SCHEDULED).await else {
            panic!("it started")
        };
        assert_eq!(error_type, "InvalidConfig");
        for problem in [
            "BUILDKITE_QUEUE must be one queue key or several",
            "JOB_TTL_SECONDS must be a whole number of seconds, got \"ten minutes\"",
            "KUBERNETES_API_SERVER_ENDPOINT must be the https:// address of the API server",
        ] {
            assert!(error_message.contains(problem), "{problem:?} is not in: {error_message}");
        }
        let log = scene.end().await;
        assert!(log.iter().all(|line| !line.to_string().contains("panicked")), "{log:?}");
    }

    #[tokio::test]
    async fn tells_lambda_of_roots_that_cannot_be_read() {
        let mut scene = Scene::with(|_, function| function.env("AWS_CA_BUNDLE", "/no/such/file.pem")).await;
        let Answer::InitError { error_type, error_message } = scene.invoke(SCHEDULED).await else {
            panic!("it started")
        };
        assert_eq!(error_type, "InvalidConfig");
        assert!(error_message.starts_with("AWS_CA_BUNDLE must name a file of certificates in PEM"), "{error_message}");
        scene.end().await;
    }

    #[tokio::test]
    async fn reaches_aws_over_tls_with_the_roots_of_a_private_proxy() {
        for variable in ["AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
            let roots = std::env::temp_dir().join(format!("agent-scheduler-{variable}-{}.pem", std::process::id()));
            let mut scene = Scene::with(|lab, function| {
                std::fs::write(&roots, lab.certificates.ca_pem()).unwrap();
                function.env("AWS_ENDPOINT_URL", lab.aws.https_url()).env(variable, roots.to_str().unwrap())
            })
            .await;
            assert_eq!(scene.succeed(SCHEDULED).await, created());
            scene.end().await;
            std::fs::remove_file(roots).unwrap();
        }
    }

    #[tokio::test]
    async fn trusts_no_other_roots_for_aws_than_it_should() {
        let mut scene = Scene::with(|lab, function| function.env("AWS_ENDPOINT_URL", lab.aws.https_url())).await;
        let (error_type, text) = scene.fail(SCHEDULED).await;
        assert_eq!(error_type, "AgentTokenUnavailable");
        assert!(text.contains("invalid peer certificate"), "{text}");
        scene.end().await;
    }

    #[tokio::test]
    async fn that_failed_is_made_up_for_by_the_first_event() {
        let denied = |lab: &Lab, function| {
            lab.aws.inject(When::action("GetParameter"), Fault::access_denied(), 1);
            function
        };
        let cut = |lab: &Lab, function| {
            lab.kubernetes.inject(When::path("/podtemplates"), Fault::CutBefore, usize::MAX);
            function
        };
        for mut scene in [Scene::with(denied).await, Scene::with(cut).await] {
            scene.function.initialised().await.unwrap();
            scene.lab.kubernetes.clear_faults();
            assert!(scene.lab.kubernetes.secret("buildkite", "buildkite-agent-token").is_none());
            assert_eq!(scene.succeed(SCHEDULED).await, created());
            assert!(scene.lab.kubernetes.secret("buildkite", "buildkite-agent-token").is_some());
            let log = scene.end().await;
            assert!(
                log.iter().any(|line| line["level"] == "WARN" && line["message"] == "start-up is not complete"),
                "{log:#?}"
            );
        }
    }

    #[tokio::test]
    async fn that_hangs_gives_way_to_the_first_event() {
        let mut scene = Scene::with(|lab, function| {
            lab.kubernetes.inject(When::path("/podtemplates"), Fault::Delay(Duration::from_mins(1)), usize::MAX);
            function
        })
        .await;
        scene.function.initialised().await.unwrap();
        scene.lab.kubernetes.clear_faults();
        assert_eq!(scene.succeed(SCHEDULED).await, created());
        let log = scene.end().await;
        assert!(log.iter().any(|line| line["error_type"] == "Timeout"), "{log:#?}");
    }
}

mod the_eks_token {
    use super::*;

    #[tokio::test]
    async fn is_accepted_by_the_verifier_and_used_again() {
        let mut scene = Scene::new().await;
        scene.succeed(SCHEDULED).await;
        scene.succeed(SCHEDULED).await;
        let requests = scene.lab.kubernetes.requests();
        assert!(requests.iter().all(|request| request.refusal.is_none()), "{requests:#?}");
        scene.end().await;
    }

    #[tokio::test]
    async fn is_replaced_when_the_api_server_does_not_know_it_any_more() {
        let mut scene = Scene::new().await;
        scene.function.initialised().await.unwrap();
        scene.lab.kubernetes.expire_tokens().await;
        assert_eq!(scene.succeed(SCHEDULED).await, created());
        let posts = scene.posts();
        assert_eq!(posts.iter().map(|request| request.status).collect::<Vec<_>>(), [Some(401), Some(201)]);
        scene.end().await;
    }

    #[tokio::test]
    async fn of_another_cluster_is_refused() {
        let mut scene =
            Scene::with(|_, function| function.env("KUBERNETES_CLUSTER_IDENTIFIER", "another-cluster")).await;
        let (error_type, text) = scene.fail(SCHEDULED).await;
        assert_eq!(error_type, "Unauthorized");
        assert!(text.contains("KUBERNETES_CLUSTER_IDENTIFIER"), "{text}");
        scene.end().await;
    }
}

mod the_agent_token {
    use super::*;

    /// With every level that the environment can ask for, in both formats.
    #[tokio::test]
    async fn is_never_printed_however_much_is_logged() {
        for format in ["JSON", "TEXT"] {
            let mut scene = Scene::with(|_, function| {
                function
                    .env("AWS_LAMBDA_LOG_LEVEL", "TRACE")
                    .env("AWS_LAMBDA_LOG_FORMAT", format)
                    .env("RUST_LOG", "trace")
            })
            .await;
            scene.succeed(SCHEDULED).await;
            scene.lab.kubernetes.inject(When::request("POST", JOBS), Fault::Garbage, 1);
            scene.invoke(changed(|detail| detail["job"]["uuid"] = json!("11111111-2222-4333-8444-555555555502"))).await;
            let output = scene.function.output();
            assert!(!output.contains("make test"), "the step's command is in the output");
            assert!(!output.contains("k8s-aws-v1."), "the EKS token is in the output");
            scene.end().await;
        }
    }
}
