//! Event in, Job out: the real binary against the lab.
//!
//! [`Fixture::end`] searches all that the function printed, answered and sent for secrets.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod common;

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lab::{
    AGENT_TOKEN_PARAMETER, Answer, Certificate, Event, Fault, Lab, Parameter, When, buildkite::CLUSTER, event::batch,
    function::Builder,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use common::{Fixture, Output};

const UUID: &str = "11111111-2222-4333-8444-555555555501";
const JOB: &str = "buildkite-11111111-2222-4333-8444-555555555501";
const UUID_LABEL: &str = "buildkite.com/job-uuid";
const FOR_EVER: usize = usize::MAX;

const OTHER_QUEUE: &str = include_str!("../events/job-other-queue.json");
const FINISHED: &str = include_str!("../events/job-finished.json");

/// The uuid of another job.
fn uuid(number: usize) -> String {
    format!("11111111-2222-4333-8444-5555555556{number:02}")
}

fn created() -> Value {
    json!({"outcome": "created", "job": JOB, "namespace": "buildkite"})
}

fn post_job() -> When {
    When::request("POST", "/jobs")
}

fn template(name: &str, agent: &Value) -> Value {
    json!({"metadata": {"name": name}, "template": {"spec": {"restartPolicy": "Never", "containers": [agent]}}})
}

/// A definition whose pod needs no token of ours.
fn with_token(name: &str) -> Value {
    let env = json!([{"name": "BUILDKITE_AGENT_TOKEN", "value": "file:///var/run/token"}]);
    template(name, &json!({"name": "agent", "image": "i", "env": env}))
}

/// The `spec` of the pod of the one Job.
fn pod(lab: &Lab) -> Value {
    let [job] = &lab.kubernetes.jobs()[..] else { panic!("not one Job") };
    job["spec"]["template"]["spec"].clone()
}

fn env<'a>(agent: &'a Value, name: &str) -> &'a Value {
    agent["env"].as_array().unwrap().iter().find(|variable| variable["name"] == name).unwrap()
}

/// The uuids of the Jobs, in order.
fn uuids(lab: &Lab) -> Vec<String> {
    let uuid = |job: &Value| job["metadata"]["labels"][UUID_LABEL].as_str().unwrap().to_owned();
    let mut uuids: Vec<_> = lab.kubernetes.jobs().iter().map(uuid).collect();
    uuids.sort();
    uuids
}

mod an_event_for_us {
    use super::*;

    #[tokio::test]
    async fn becomes_one_job() {
        let fixture = Fixture::new().await;
        let Fixture { lab, function } = &fixture;
        assert_eq!(function.succeed(Event::scheduled().now()).await, created());

        assert_eq!(uuids(lab), [UUID]);
        let agent = &pod(lab)["containers"][0];
        assert_eq!(env(agent, "BUILDKITE_AGENT_ACQUIRE_JOB")["value"], UUID);
        assert_eq!(env(agent, "BUILDKITE_AGENT_TAGS")["value"], "queue=kubernetes,pod-definition=default");
        let reference = json!({"name": "buildkite-agent-token", "key": "token"});
        assert_eq!(env(agent, "BUILDKITE_AGENT_TOKEN")["valueFrom"]["secretKeyRef"], reference);
        let post = lab.kubernetes.requests().pop().unwrap();
        assert_eq!(post.query, "fieldValidation=Strict&fieldManager=agent-scheduler");

        let Output { log, .. } = fixture.end().await;
        let [line] = &log[..] else { panic!("not one line: {log:#?}") };
        let expected = json!({
            "level": "INFO", "outcome": "created", "job": UUID, "pipeline": "example-pipeline", "build": 1234,
            "queue": "kubernetes", "definition": "default",
        });
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(line[field], *value, "{field} in {line}");
        }
        assert!(line["age"].as_u64().is_some_and(|seconds| seconds < 60), "{line}");
        assert!(line["milliseconds"].is_f64() && line["span"]["requestId"].is_string(), "{line}");
        assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
    }

    #[tokio::test]
    async fn is_one_request_to_a_warm_function() {
        let fixture = Fixture::new().await;
        let Fixture { lab, function } = &fixture;
        function.initialised().await.unwrap();
        assert!(lab.kubernetes.secret("buildkite", "buildkite-agent-token").is_some(), "before the first event");
        let (kubernetes, aws) = (lab.kubernetes.requests().len(), lab.aws.requests().len());
        for number in 0..10 {
            function.succeed(Event::scheduled().uuid(uuid(number))).await;
        }
        assert_eq!((lab.kubernetes.requests().len() - kubernetes, lab.aws.requests().len()), (10, aws));
        assert!(lab.kubernetes.requests().iter().all(|request| request.refusal.is_none()));
        fixture.end().await;
    }

    #[tokio::test]
    async fn is_one_job_after_two_deliveries() {
        let fixture = Fixture::new().await;
        let Fixture { lab, function } = &fixture;
        assert_eq!(function.succeed(Event::scheduled()).await, created());
        let again = json!({"outcome": "already-exists", "job": JOB, "namespace": "buildkite"});
        assert_eq!(function.succeed(Event::scheduled()).await, again);
        assert_eq!(uuids(lab), [UUID]);
        fixture.end().await;
    }

    #[tokio::test]
    async fn may_have_a_megabyte_of_command() {
        let fixture = Fixture::new().await;
        let command = "make test # a secret of the step\n".repeat(32_000);
        assert!(command.len() > 1_000_000);
        let event = Event::scheduled().detail(|detail| detail["job"]["command"] = json!(command));
        assert_eq!(fixture.function.succeed(event).await, created());
        for line in fixture.end().await.log {
            assert!(!line.to_string().contains("a secret of the step"), "the command is in the log");
        }
    }

    #[tokio::test]
    async fn may_have_its_token_in_secrets_manager() {
        let parameter = "/aws/reference/secretsmanager/buildkite/agent-token";
        let fixture = Fixture::with(|lab, function| {
            lab.aws.put_parameter(parameter, Parameter::secure_string("bkct_from_secrets_manager"));
            function.env("BUILDKITE_AGENT_TOKEN_PARAMETER_PATH", parameter)
        })
        .await;
        assert_eq!(fixture.function.succeed(Event::scheduled()).await, created());
        let secret = fixture.lab.kubernetes.secret("buildkite", "buildkite-agent-token").unwrap();
        assert_eq!(secret["data"]["token"], "YmtjdF9mcm9tX3NlY3JldHNfbWFuYWdlcg==");
        fixture.end().await;
    }

    #[tokio::test]
    async fn gets_a_new_eks_token_if_the_api_server_refuses_the_kept_one() {
        let fixture = Fixture::new().await;
        let Fixture { lab, function } = &fixture;
        function.initialised().await.unwrap();
        lab.kubernetes.expire_tokens().await;
        assert_eq!(function.succeed(Event::scheduled()).await, created());
        let requests = lab.kubernetes.requests().into_iter().filter(|request| request.method == "POST");
        assert_eq!(requests.map(|request| request.status).collect::<Vec<_>>(), [Some(401), Some(201)]);
        fixture.end().await;
    }
}

mod a_pod_definition {
    use super::*;

    #[tokio::test]
    async fn of_the_cluster_is_posted_as_its_author_wrote_it() {
        let spec = json!({
            "restartPolicy": "Never",
            "schedulingGates": [{"name": "example.com/quota"}],
            "initContainers": [{"name": "dockerd", "image": "docker:dind", "restartPolicy": "Always"}],
            "volumes": [{"name": "cache", "emptyDir": {}}],
            "fieldOfTomorrow": {"a": 1},
            "containers": [{"name": "agent", "image": "agent:4", "fieldOfTomorrow": [1]}],
        });
        let fixture = Fixture::with(|lab, function| {
            lab.kubernetes.put_pod_template(json!({"metadata": {"name": "node"}, "template": {"spec": spec}}));
            function
        })
        .await;
        let event = Event::scheduled().rules(["queue=kubernetes", "pod-definition=node"]);
        assert_eq!(fixture.function.succeed(event).await, created());
        let mut pod = pod(&fixture.lab);
        let agent = &pod["containers"][0];
        assert_eq!(env(agent, "BUILDKITE_AGENT_TAGS")["value"], "queue=kubernetes,pod-definition=node");
        pod["containers"][0].as_object_mut().unwrap().remove("env");
        assert_eq!(pod, spec);
        assert_eq!(fixture.end().await.log.last().unwrap()["definition"], "node");
    }

    #[tokio::test]
    async fn without_a_hook_that_stops_its_agent_is_in_the_log_once() {
        let fixture = Fixture::with(|lab, function| {
            lab.kubernetes.put_pod_template(with_token("node"));
            lab.kubernetes.put_pod_template(json!({"metadata": {"name": "broken"}}));
            function
        })
        .await;
        assert_eq!(fixture.function.succeed(Event::scheduled()).await, created());
        // Lists the definitions again.
        let unknown = Event::scheduled().rules(["queue=kubernetes", "pod-definition=other"]);
        assert_eq!(fixture.function.fail(&unknown).await.0, "UnknownPodDefinition");
        let log = fixture.end().await.log;
        let warned: Vec<_> = log.iter().filter(|line| line["definitions"] != Value::Null).collect();
        let [warning] = warned[..] else { panic!("{warned:?}") };
        assert_eq!((&warning["level"], &warning["definitions"]), (&json!("WARN"), &json!("node")));
        assert!(warning["warning"].as_str().unwrap().contains("preStop is absent"), "{warning}");
    }

    #[tokio::test]
    async fn that_sets_the_token_itself_does_not_ask_ssm() {
        let fixture = Fixture::with(|lab, function| {
            lab.kubernetes.put_pod_template(with_token("default"));
            lab.aws.inject(When::action("GetParameter"), Fault::access_denied(), FOR_EVER);
            function
        })
        .await;
        let Fixture { lab, function } = &fixture;
        // The start-up failed, so this one has to list the definitions.
        assert_eq!(function.succeed(Event::scheduled()).await, created());
        let asked = lab.aws.requests().len();
        assert_eq!(function.succeed(Event::scheduled()).await["outcome"], "already-exists");
        assert_eq!(lab.aws.requests().len(), asked);
        fixture.end().await;
    }

    #[tokio::test]
    async fn gets_the_image_and_the_resources_that_the_step_asks_for() {
        let fixture = Fixture::new().await;
        let image = &format!("registry.example:5000/node@sha256:{}", "0123456789abcdef".repeat(4));
        let rules = ["queue=kubernetes", &format!("image={image}"), "cpu=2", "memory=4Gi"];
        assert_eq!(fixture.function.succeed(Event::scheduled().rules(rules)).await, created());
        let pod = pod(&fixture.lab);
        let agent = &pod["containers"][0];
        let resources = json!({"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "4Gi"}});
        assert_eq!((&agent["image"], &agent["resources"]), (&json!(image), &resources));
        assert_eq!(pod["initContainers"][0]["image"], "ghcr.io/buildkite/agent:4.10.1");
        fixture.end().await;
    }
}

#[tokio::test]
async fn an_event_that_is_not_for_us_is_ignored_with_the_reason() {
    let no_rules = Event::scheduled().detail(|detail| detail["job"]["agent_query_rules"] = Value::Null);
    let manual = Event::scheduled().detail(|detail| detail["job"]["type"] = json!("manual"));
    let cases = [
        (OTHER_QUEUE.to_owned(), "queue=windows", "INFO"),
        (include_str!("../events/job-unserved-tag.json").to_owned(), "gpu=a100", "WARN"),
        (FINISHED.to_owned(), "Job Finished", "INFO"),
        (manual.into(), "manual", "INFO"),
        (no_rules.into(), "queue", "INFO"),
    ];
    for (event, reason, level) in cases {
        let fixture = Fixture::new().await;
        let answer = fixture.function.succeed(event).await;
        assert_eq!(answer, json!({"outcome": "ignored", "reason": answer["reason"]}));
        assert!(answer["reason"].as_str().unwrap().contains(reason), "{answer}");
        assert!(fixture.lab.kubernetes.jobs().is_empty());
        let Output { log, .. } = fixture.end().await;
        let [line] = &log[..] else { panic!("not one line: {log:#?}") };
        assert_eq!((&line["level"], &line["outcome"]), (&json!(level), &json!("ignored")));
    }
}

mod a_failure {
    use super::*;

    type Change = Box<dyn FnOnce(&Lab, Builder) -> Builder + Send>;

    /// The error of an event.
    struct Failure {
        change: Change,
        event: String,
        error_type: &'static str,
        /// Of its text.
        words: Vec<String>,
    }

    fn failure(
        change: impl FnOnce(&Lab, Builder) -> Builder + Send + 'static,
        error_type: &'static str,
        words: &[&str],
    ) -> Failure {
        let words = words.iter().map(ToString::to_string).collect();
        Failure { change: Box::new(change), event: Event::scheduled().into(), error_type, words }
    }

    fn of_event(event: impl Into<String>, error_type: &'static str, words: &[&str]) -> Failure {
        Failure { event: event.into(), ..failure(|_, function| function, error_type, words) }
    }

    fn of_rule(rule: &str, error_type: &'static str, words: &[&str]) -> Failure {
        of_event(Event::scheduled().rules(["queue=kubernetes", rule]), error_type, words)
    }

    /// The lab is not as it should be.
    fn of_lab(change: impl FnOnce(&Lab) + Send + 'static, error_type: &'static str, words: &[&str]) -> Failure {
        let change = |lab: &Lab, function| {
            change(lab);
            function
        };
        failure(change, error_type, words)
    }

    /// The API server meets the fault at each of these requests.
    fn of_fault(when: When, fault: Fault, error_type: &'static str, words: &[&str]) -> Failure {
        of_lab(move |lab| lab.kubernetes.inject(when, fault, FOR_EVER), error_type, words)
    }

    fn of_variable(name: &'static str, value: &str, error_type: &'static str, words: &[&str]) -> Failure {
        let value = value.to_owned();
        failure(move |_, function| function.env(name, value), error_type, words)
    }

    fn of_missing_permission(verb: &'static str, resource: &'static str) -> Failure {
        let permission = format!("cannot {verb} resource \"{resource}\"");
        let words = [&*permission, "buildkite-role.yaml", "--namespace buildkite"];
        of_lab(move |lab| lab.kubernetes.forbid(verb, resource), "Forbidden", &words)
    }

    fn of_events() -> Vec<Failure> {
        let uuid = Event::scheduled().uuid("../../secrets");
        let other_records = r#"{"Records": [{"eventSource": "aws:s3"}]}"#;
        let broken = template("default", &json!({"name": "main", "image": "i"}));
        vec![
            of_event("{}", "InvalidEvent", &["detail-type"]),
            of_event(r#"{"detail-type""#, "InvalidEvent", &["not an event of EventBridge", "EOF while parsing"]),
            of_event(uuid, "InvalidEvent", &["detail.job.uuid"]),
            of_event(other_records, "InvalidEvent", &["aws:s3"]),
            of_rule("pod-definition=nodejs", "UnknownPodDefinition", &["\"nodejs\"", "default"]),
            of_rule("cpu=many", "InvalidAgentQueryRule", &["cpu=many"]),
            of_lab(
                move |lab| lab.kubernetes.put_pod_template(broken),
                "InvalidPodDefinition",
                &["PodTemplate default in namespace buildkite: template.spec.containers"],
            ),
        ]
    }

    fn of_aws() -> Vec<Failure> {
        let clusters = |_: &Lab, function: Builder| {
            function
                .env("KUBERNETES_CLUSTER_IDENTIFIER", "no-such-cluster")
                .env_remove("KUBERNETES_API_SERVER_ENDPOINT")
        };
        vec![
            of_lab(
                |lab| lab.aws.remove_parameter(AGENT_TOKEN_PARAMETER),
                "AgentTokenUnavailable",
                &[AGENT_TOKEN_PARAMETER, "us-east-1", "ParameterNotFound", "BuildkiteAgentTokenParameterPath"],
            ),
            of_lab(
                |lab| lab.aws.inject(When::action("GetParameter"), Fault::access_denied(), FOR_EVER),
                "AgentTokenUnavailable",
                &[AGENT_TOKEN_PARAMETER, "ssm:GetParameter", "is not authorized to perform"],
            ),
            // The lab's authority is not among the roots for AWS.
            failure(
                |lab, function| function.env("AWS_ENDPOINT_URL", lab.aws.https_url()),
                "AgentTokenUnavailable",
                &["invalid peer certificate"],
            ),
            failure(
                clusters,
                "ClusterUnavailable",
                &["\"no-such-cluster\"", "KubernetesClusterIdentifier", "No cluster found"],
            ),
        ]
    }

    /// The API server is out of reach, or another server than the configured one.
    fn of_connections() -> Vec<Failure> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = format!("https://{}", listener.local_addr().unwrap());
        let no_tls = |lab: &Lab, function: Builder| {
            function.env("KUBERNETES_API_SERVER_ENDPOINT", lab.aws.url().replace("http://", "https://"))
        };
        let other_ca = |lab: &Lab, function: Builder| {
            function.env("KUBERNETES_CERTIFICATE_AUTHORITY_DATA", lab.certificates.other_ca_data())
        };
        let unavailable = "ClusterUnavailable";
        vec![
            of_variable("KUBERNETES_API_SERVER_ENDPOINT", &closed, unavailable, &[&closed, "Connection refused"]),
            failure(no_tls, unavailable, &["corrupt message"]),
            failure(other_ca, unavailable, &["KubernetesCertificateAuthorityData", "example-cluster"]),
            of_fault(When::any(), Fault::Show(Certificate::Expired), unavailable, &["expired"]),
            of_fault(When::any(), Fault::Show(Certificate::OtherHost), unavailable, &["not valid for name"]),
            of_fault(post_job(), Fault::CutBefore, unavailable, &["did not confirm Job", JOB]),
            of_fault(post_job(), Fault::status(302), unavailable, &["302 Found"]),
            of_fault(post_job(), Fault::Delay(Duration::from_mins(1)), "Timeout", &["did not confirm Job", JOB]),
        ]
    }

    /// The API server refuses.
    fn of_kubernetes() -> Vec<Failure> {
        let theirs = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": JOB}});
        let other_token = |lab: &Lab| {
            let manager = "agent-scheduler:another";
            lab.kubernetes.put_secret_as(manager, "buildkite", "buildkite-agent-token", "token", "bkct_another");
        };
        let invalid = format!("Job.batch \"{JOB}\" is invalid: spec.template.spec.containers[0].image: Required value");
        let list = When::path("/podtemplates");
        let unavailable = Fault::status(503);
        vec![
            of_fault(list, unavailable.clone(), "ClusterUnavailable", &["pod definitions of namespace buildkite"]),
            of_fault(post_job(), unavailable, "ClusterUnavailable", &["did not confirm Job", JOB]),
            of_fault(post_job(), Fault::throttled(Duration::from_secs(1)), "ClusterUnavailable", &[JOB]),
            of_fault(post_job(), Fault::invalid(invalid.clone()), "RejectedByApiServer", &[&invalid]),
            of_fault(
                post_job(),
                Fault::status(401),
                "Unauthorized",
                &["EKS token", "\"example-cluster\"", "buildkite-on-demand-agent-scheduler"],
            ),
            of_variable(
                "KUBERNETES_CLUSTER_IDENTIFIER",
                "another-cluster",
                "Unauthorized",
                &["\"another-cluster\"", "KubernetesClusterIdentifier"],
            ),
            of_variable(
                "KUBERNETES_NAMESPACE",
                "builds",
                "RejectedByApiServer",
                &["\"builds\"", "kubectl create namespace builds"],
            ),
            of_lab(move |lab| lab.kubernetes.put_job(theirs), "RejectedByApiServer", &[JOB, UUID_LABEL]),
            of_lab(
                other_token,
                "RejectedByApiServer",
                &["Secret buildkite-agent-token", "AgentTokenSecretName", "conflict with \"agent-scheduler:another\""],
            ),
            of_missing_permission("create", "jobs"),
            of_missing_permission("patch", "secrets"),
            of_missing_permission("list", "podtemplates"),
        ]
    }

    impl Failure {
        async fn check(self) {
            // With it, some of these are no failures: refusals.rs.
            let fixture = Fixture::with(|lab, function| (self.change)(lab, function.env("STACKS_API", "false"))).await;
            let (error_type, text) = fixture.function.fail(self.event).await;
            assert_eq!(error_type, self.error_type, "{text}");
            for words in &self.words {
                assert!(text.contains(words), "{words:?} is not in: {text}");
            }
            let ours = |job: &Value| job["metadata"]["labels"][UUID_LABEL] == UUID;
            assert!(!fixture.lab.kubernetes.jobs().iter().any(ours), "{text}");
            let log = fixture.end().await.log;
            let last = log.last().unwrap();
            let logged = (&last["level"], &last["error_type"], &last["error"]);
            assert_eq!(logged, (&json!("ERROR"), &json!(error_type), &json!(text)));
        }
    }

    #[tokio::test]
    async fn has_its_type_and_its_words_and_leaves_no_job() {
        let failures = [of_events(), of_aws(), of_connections(), of_kubernetes()].into_iter().flatten();
        let checks: JoinSet<_> = failures.map(Failure::check).collect();
        checks.join_all().await;
    }
}

mod a_batch_of_the_failure_queue {
    use super::*;

    const REDRIVE: &str = include_str!("../events/redrive.json");

    /// For the job of that number; of an older one, Buildkite would be asked first.
    fn event(number: usize) -> String {
        Event::scheduled().now().uuid(uuid(number)).into()
    }

    /// A batch of these, numbered from 0.
    fn numbered<Body: std::fmt::Display>(bodies: impl IntoIterator<Item = Body>) -> String {
        batch(bodies.into_iter().enumerate())
    }

    fn ten() -> String {
        numbered((0..10).map(event))
    }

    fn failed(numbers: impl IntoIterator<Item = usize>) -> Value {
        let failures = numbers.into_iter().map(|number| json!({"itemIdentifier": number.to_string()}));
        json!({"batchItemFailures": failures.collect::<Vec<_>>()})
    }

    /// The lines of the message of that number.
    fn lines(log: &[Value], number: usize) -> Vec<&Value> {
        let id = number.to_string();
        log.iter().filter(|line| line["span"]["messageId"] == *id).collect()
    }

    #[tokio::test]
    async fn becomes_one_job_for_each_event_in_either_form() {
        let fixture = Fixture::new().await;
        let (_, sample) = Event::read(Path::new("events/redrive.json")).unwrap();
        for old in sample.jobs_scheduled() {
            fixture.lab.buildkite.lock().schedule(&old, CLUSTER);
        }
        for _ in 0..2 {
            assert_eq!(fixture.function.succeed(REDRIVE).await, failed([]));
            assert_eq!(uuids(&fixture.lab), [uuid(1), uuid(2)]);
        }
        let Output { mut log, .. } = fixture.end().await;
        log.truncate(2);
        let mut lines: Vec<_> = log.iter().map(|line| (&line["job"], &line["span"]["messageId"])).collect();
        lines.sort_by_key(|(job, _)| job.to_string());
        let messages = ["11111111-2222-4333-8444-555555555691", "11111111-2222-4333-8444-555555555692"];
        assert_eq!(lines, [(&json!(uuid(1)), &json!(messages[0])), (&json!(uuid(2)), &json!(messages[1]))]);
    }

    #[tokio::test]
    async fn may_be_empty_or_without_an_event_for_us() {
        let fixture = Fixture::new().await;
        assert_eq!(fixture.function.succeed(numbered([""; 0])).await, failed([]));
        assert_eq!(fixture.function.succeed(numbered([OTHER_QUEUE, FINISHED])).await, failed([]));
        assert!(fixture.lab.kubernetes.jobs().is_empty());
        fixture.end().await;
    }

    #[tokio::test]
    async fn reports_the_one_message_that_is_not_an_event() {
        let fixture = Fixture::new().await;
        let bodies =
            (0..10).map(|number| if number == 4 { "a secret of the message".to_owned() } else { event(number) });
        assert_eq!(fixture.function.succeed(numbered(bodies)).await, failed([4]));
        assert_eq!(uuids(&fixture.lab).len(), 9);

        let Output { log, .. } = fixture.end().await;
        let errors: Vec<_> = log.iter().filter(|line| line["level"] == "ERROR").collect();
        assert_eq!(errors, lines(&log, 4));
        assert_eq!(errors[0]["error_type"], "InvalidEvent");
        assert!(!json!(log).to_string().contains("a secret of the message"), "{log:#?}");
    }

    #[tokio::test]
    async fn reports_those_that_the_api_server_refuses() {
        let fixture = Fixture::new().await;
        let Fixture { lab, function } = &fixture;
        lab.kubernetes.inject(post_job(), Fault::invalid("no such field"), 3);
        let answer = function.succeed(ten()).await;
        let made = uuids(lab);
        assert_eq!(made.len(), 7);
        assert_eq!(answer, failed((0..10).filter(|number| !made.contains(&uuid(*number)))));

        assert_eq!(function.succeed(ten()).await, failed([]));
        assert_eq!(uuids(lab).len(), 10);
        fixture.end().await;
    }

    /// Lambda kills a function whose ten events wait in turn.
    #[tokio::test]
    async fn waits_once_for_an_api_server_that_hangs() {
        tokio::join!(waits_once("POST", "/jobs"), waits_once("PATCH", "/secrets"), waits_once("GET", "/podtemplates"));
    }

    async fn waits_once(method: &str, path: &str) {
        let fixture = Fixture::with(|lab, function| {
            let hangs = Fault::Delay(Duration::from_mins(1));
            lab.kubernetes.inject(When::request(method, path), hangs, FOR_EVER);
            function
        })
        .await;
        assert_eq!(fixture.function.succeed(ten()).await, failed(0..10));
        let log = fixture.end().await.log;
        for number in 0..10 {
            let mut errors = lines(&log, number);
            errors.retain(|line| line["level"] == "ERROR");
            assert_eq!(errors.iter().map(|line| &line["error_type"]).collect::<Vec<_>>(), ["Timeout"], "{log:#?}");
        }
    }

    #[tokio::test]
    async fn needs_no_token_for_a_definition_that_sets_it() {
        // An error that is final, and one that is retried until the deadline.
        for fault in [Fault::access_denied(), Fault::throttling()] {
            let fixture = Fixture::with(|lab, function| {
                lab.kubernetes.put_pod_template(with_token("own"));
                lab.aws.inject(When::action("GetParameter"), fault, FOR_EVER);
                function
            })
            .await;
            let own = Event::scheduled().now().uuid(uuid(0)).rules(["queue=kubernetes", "pod-definition=own"]);
            let bodies = [own.into(), event(1), FINISHED.to_owned(), "not an event".to_owned()];
            assert_eq!(fixture.function.succeed(numbered(bodies)).await, failed([1, 3]));
            assert_eq!(uuids(&fixture.lab), [uuid(0)]);

            let log = fixture.end().await.log;
            let error_type = |number| &lines(&log, number).pop().unwrap()["error_type"];
            assert_eq!((error_type(1), error_type(3)), (&json!("AgentTokenUnavailable"), &json!("InvalidEvent")));
        }
    }

    #[tokio::test]
    async fn has_an_answer_for_each_message_though_the_cluster_is_out_of_reach() {
        // The cluster has to be found first, or is known.
        let lost: [fn(&Lab, Builder) -> Builder; 2] = [
            |lab, function| {
                lab.aws.inject(When::action("DescribeCluster"), Fault::access_denied(), FOR_EVER);
                function.env_remove("KUBERNETES_API_SERVER_ENDPOINT")
            },
            |lab, function| {
                lab.kubernetes.inject(When::any(), Fault::CutBefore, FOR_EVER);
                function
            },
        ];
        for change in lost {
            let fixture = Fixture::with(change).await;
            fixture.function.initialised().await.unwrap();
            let bodies = [OTHER_QUEUE.to_owned(), "not an event".to_owned(), event(2), event(3)];
            assert_eq!(fixture.function.succeed(numbered(bodies)).await, failed([1, 2, 3]));

            let log = fixture.end().await.log;
            let line = |number| lines(&log, number).pop().unwrap();
            assert_eq!(line(0)["outcome"], "ignored");
            assert_eq!(line(1)["error_type"], "InvalidEvent");
            for number in [2, 3] {
                assert_eq!(line(number)["error_type"], "ClusterUnavailable");
                assert_eq!(line(number)["job"], uuid(number));
            }
        }
    }
}

mod metrics {
    use super::*;

    const BY_QUEUE: &[&str] = &["FunctionName", "Queue"];
    const BY_FUNCTION: &[&str] = &["FunctionName"];

    fn directive(dimensions: &[&[&str]], name: &str, unit: &str) -> Value {
        json!({"Namespace": "AgentScheduler", "Dimensions": dimensions, "Metrics": [{"Name": name, "Unit": unit}]})
    }

    /// A line with that one metric.
    fn line(name: &str, queue: &str) -> Value {
        // An alarm asks for these in all queues.
        let dimensions = if name == "JobsCreated" { &[BY_QUEUE, BY_FUNCTION][..] } else { &[BY_QUEUE] };
        let directives = [directive(dimensions, name, "Count")];
        json!({"_aws": {"CloudWatchMetrics": directives}, "FunctionName": "agent-scheduler", "Queue": queue, name: 1})
    }

    /// The lines without what depends on the time, which must be right.
    fn timeless(mut lines: Vec<Value>) -> Vec<Value> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        for line in &mut lines {
            let timestamp = line["_aws"].as_object_mut().unwrap().remove("Timestamp").unwrap();
            let timestamp = Duration::from_millis(timestamp.as_u64().unwrap());
            assert!(now.abs_diff(timestamp) < Duration::from_mins(1), "{timestamp:?} at {now:?}");
            if let Some(took) = line.as_object_mut().unwrap().remove("TimeToJob") {
                assert!(took.as_u64().is_some_and(|milliseconds| milliseconds < 60_000), "{took}");
            }
        }
        lines
    }

    #[tokio::test]
    async fn are_one_line_for_each_job() {
        let unserved = include_str!("../events/job-unserved-tag.json").to_owned();
        let mut of_unserved = line("JobsIgnored", "kubernetes");
        let add = |line: &mut Value, more| line["_aws"]["CloudWatchMetrics"].as_array_mut().unwrap().push(more);
        add(&mut of_unserved, directive(&[BY_FUNCTION], "JobsUnserved", "Count"));
        of_unserved["JobsUnserved"] = json!(1);
        let no_queue = || Event::scheduled().rules([""; 0]).to_string();
        let mut of_a_new_event = line("JobsCreated", "kubernetes");
        add(&mut of_a_new_event, directive(&[BY_QUEUE], "TimeToJob", "Milliseconds"));
        let events = [
            (Event::scheduled().uuid(uuid(3)).now().to_string(), Some(of_a_new_event.clone())),
            // The time to a Job says nothing of a sample from last year.
            (Event::scheduled().to_string(), Some(line("JobsCreated", "kubernetes"))),
            (Event::scheduled().to_string(), Some(line("JobsExisting", "kubernetes"))),
            // The queues of others are not ours to count.
            (OTHER_QUEUE.to_owned(), Some(line("JobsIgnored", "none"))),
            (no_queue(), Some(line("JobsIgnored", "none"))),
            (unserved, Some(of_unserved)),
            ("{}".to_owned(), Some(line("JobsFailed", "none"))),
            (FINISHED.to_owned(), None),
            (batch([("1", ""); 0]), None),
            (batch([("1", Event::scheduled().now().uuid(uuid(1)))]), Some(of_a_new_event)),
            (batch([("1", "not an event")]), Some(line("JobsFailed", "none"))),
        ];
        for format in ["JSON", "Text"] {
            let fixture = Fixture::with(|_, function| function.env("AWS_LAMBDA_LOG_FORMAT", format)).await;
            for (event, _) in &events {
                fixture.function.invoke(event).await;
            }
            let refused = Event::scheduled().uuid(uuid(2));
            fixture.lab.kubernetes.inject(post_job(), Fault::invalid("no such field"), 1);
            fixture.function.fail(refused).await;
            let expected = events.iter().filter_map(|(_, line)| line.clone());
            let expected: Vec<_> = expected.chain([line("JobsFailed", "kubernetes")]).collect();
            assert_eq!(timeless(fixture.end().await.metrics), expected);
        }

        let fixture = Fixture::with(|_, function| function.env("SERVE_JOBS_WITHOUT_QUEUE", "true")).await;
        assert_eq!(fixture.function.succeed(no_queue()).await, created());
        assert_eq!(timeless(fixture.end().await.metrics), [line("JobsCreated", "none")]);
    }
}

mod start_up {
    use super::*;

    #[tokio::test]
    async fn asks_eks_once_for_what_is_not_configured() {
        for absent in ["KUBERNETES_API_SERVER_ENDPOINT", "KUBERNETES_CERTIFICATE_AUTHORITY_DATA"] {
            let fixture = Fixture::with(|_, function| function.env_remove(absent)).await;
            for outcome in ["created", "already-exists"] {
                assert_eq!(fixture.function.succeed(Event::scheduled()).await["outcome"], outcome);
            }
            let described =
                fixture.lab.aws.requests().into_iter().filter(|request| request.path.starts_with("/clusters/"));
            assert_eq!(described.count(), 1);
            fixture.end().await;
        }
    }

    #[tokio::test]
    async fn fails_with_every_invalid_variable() {
        let fixture = Fixture::with(|_, function| {
            function
                .env_remove("BUILDKITE_QUEUE")
                .env("JOB_TTL_SECONDS", "ten minutes")
                .env("KUBERNETES_API_SERVER_ENDPOINT", "http://127.0.0.1:6443")
        })
        .await;
        fails(fixture, &["BUILDKITE_QUEUE", "JOB_TTL_SECONDS", "\"ten minutes\"", "KUBERNETES_API_SERVER_ENDPOINT"])
            .await;
        let fixture = Fixture::with(|_, function| function.env("AWS_CA_BUNDLE", "/no/such/file.pem")).await;
        fails(fixture, &["AWS_CA_BUNDLE"]).await;
    }

    async fn fails(fixture: Fixture, words: &[&str]) {
        let answer = fixture.function.invoke(Event::scheduled()).await;
        let Answer::InitError { error_type, error_message } = answer else { panic!("{answer}") };
        assert_eq!(error_type, "InvalidConfig");
        for words in words {
            assert!(error_message.contains(words), "{words:?} is not in: {error_message}");
        }
        let log = fixture.end().await.log;
        assert!(!json!(log).to_string().contains("panicked"), "{log:?}");
    }

    #[tokio::test]
    async fn that_fails_leaves_the_rest_to_the_first_event() {
        let (list, read) = (When::path("/podtemplates"), When::action("GetParameter"));
        let cases = [
            (read, Fault::access_denied(), "AgentTokenUnavailable"),
            (list.clone(), Fault::CutBefore, "ClusterUnavailable"),
            (list, Fault::Delay(Duration::from_mins(1)), "Timeout"),
        ];
        for (when, fault, error_type) in cases {
            let fixture = Fixture::with(|lab, function| {
                lab.aws.inject(when.clone(), fault.clone(), FOR_EVER);
                lab.kubernetes.inject(when, fault, FOR_EVER);
                function
            })
            .await;
            let Fixture { lab, function } = &fixture;
            function.initialised().await.unwrap();
            lab.aws.clear_faults();
            lab.kubernetes.clear_faults();
            let secret = || lab.kubernetes.secret("buildkite", "buildkite-agent-token");
            assert!(secret().is_none());
            assert_eq!(function.succeed(Event::scheduled()).await, created());
            assert!(secret().is_some());
            let log = fixture.end().await.log;
            let warned = |line: &Value| line["level"] == "WARN" && line["error_type"] == error_type;
            assert!(log.iter().any(warned), "{log:#?}");
        }
    }
}
