//! The function examines its own set-up: each check fails alone, and all at once, with the fix that an operator needs.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod common;

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt, stream};
use lab::{AGENT_TOKEN_PARAMETER, Event, Fault, Lab, Parameter, When, buildkite, function::Builder};
use serde_json::{Value, json};
use tokio::time::Instant;

use common::{FUNCTION, leaks};

const DOCTOR: &str = include_str!("../events/doctor.json");
const FOR_EVER: usize = usize::MAX;

/// What breaks the set-up.
type Break = fn(&Lab, Builder) -> Builder;

/// One fault, and what is found.
struct Case {
    fault: Break,
    /// The checks that fail, in their order.
    wrong: &'static [&'static str],
    /// Of the first of them.
    found: &'static str,
    fix: &'static str,
}

/// What the doctor answers in a lab with this fault.
async fn examine(fault: Break) -> (Value, Lab) {
    let lab = Lab::start().await;
    lab.buildkite.lock().queue(buildkite::CLUSTER, "kubernetes");
    let function = fault(&lab, lab.function(FUNCTION).timeout(Duration::from_secs(12))).start();
    let answer = function.succeed(DOCTOR).await;
    let printed = function.stop().await;
    assert_eq!(leaks(&lab), [""; 0]);
    let lines = printed.lines();
    let line = lines.iter().find(|line| line["message"] == "the function has examined its set-up").unwrap();
    assert_eq!(line["wrong"], wrong(&answer).join(", "), "{line}");
    (answer, lab)
}

/// The names of the checks that failed, each once.
fn wrong(answer: &Value) -> Vec<&str> {
    let checks = answer["checks"].as_array().unwrap();
    let mut wrong: Vec<_> =
        checks.iter().filter(|check| check["ok"] == false).map(|check| check["check"].as_str().unwrap()).collect();
    wrong.dedup();
    wrong
}

/// What a check found.
fn findings<'a>(answer: &'a Value, name: &str) -> Vec<&'a Value> {
    answer["checks"].as_array().unwrap().iter().filter(|check| check["check"] == name).collect()
}

fn template(name: &str, spec: &Value) -> Value {
    let mut template = json!({
        "apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name, "namespace": "buildkite"},
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "agent", "image": "agent:4"}]}},
    });
    for (field, value) in spec.as_object().unwrap() {
        template["template"]["spec"][field] = value.clone();
    }
    template
}

fn token_is(lab: &Lab, kind: buildkite::Token) {
    let token = (buildkite::CLUSTER.to_owned(), kind);
    lab.buildkite.lock().tokens.insert(lab.agent_token().to_owned(), token);
}

fn other_job(stack: &str, queue: &str) -> Value {
    json!({"metadata": {"name": format!("of-{stack}"), "namespace": "buildkite", "labels": {
        "agent-scheduler.buildkite.com/stack": stack, "buildkite.com/queue": queue,
    }}})
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<Case> {
    let case = |fault, wrong, found, fix| Case { fault, wrong, found, fix };
    vec![
        case(|_, function| function.env("STACKS_API", "false"), &["settings"], "so there is no sweep", "SweepEnabled"),
        case(
            |lab, function| {
                lab.aws.remove_parameter(AGENT_TOKEN_PARAMETER);
                function
            },
            &["agent token"],
            "ParameterNotFound",
            "aws ssm put-parameter --region us-east-1 --name /buildkite/agent-token --type SecureString",
        ),
        case(
            |lab, function| {
                lab.aws.inject(When::action("GetParameter"), Fault::access_denied(), FOR_EVER);
                function
            },
            &["agent token"],
            "AccessDeniedException",
            "ssm:GetParameter",
        ),
        case(
            |lab, function| {
                lab.aws.put_parameter(AGENT_TOKEN_PARAMETER, Parameter::secure_string("bkua_0123456789abcdef"));
                let cluster = (buildkite::CLUSTER.to_owned(), buildkite::Token::Cluster);
                lab.buildkite.lock().tokens.insert("bkua_0123456789abcdef".to_owned(), cluster);
                function
            },
            &["agent token"],
            "the API access token of a user (bkua_…)",
            "aws ssm put-parameter",
        ),
        case(
            |lab, function| {
                lab.aws.put_parameter(AGENT_TOKEN_PARAMETER, Parameter::secure_string("bkct_unknown"));
                function
            },
            &["Buildkite knows the token", "Buildkite's Stacks API"],
            "Buildkite answers token with 401",
            "allowed IP addresses",
        ),
        case(
            |lab, function| {
                lab.buildkite.lock().tokens.clear();
                let token = (String::new(), buildkite::Token::Unclustered);
                lab.buildkite.lock().tokens.insert(lab.agent_token().to_owned(), token);
                function
            },
            &["Buildkite knows the token", "Buildkite's Stacks API"],
            "in no Buildkite cluster",
            "Agent Tokens",
        ),
        case(
            |lab, function| {
                token_is(lab, buildkite::Token::Queue("kubernetes".to_owned()));
                function
            },
            &["Buildkite knows the token", "Buildkite's Stacks API"],
            "for one queue alone",
            "Agent Tokens",
        ),
        case(
            |lab, function| {
                lab.buildkite.inject(When::request("POST", "/register"), Fault::status(403), FOR_EVER);
                function
            },
            &["Buildkite's Stacks API"],
            "403",
            "allowed another stack",
        ),
        case(
            |lab, function| {
                lab.buildkite.inject(When::any(), Fault::Refuse, FOR_EVER);
                function
            },
            &["Buildkite knows the token", "Buildkite's Stacks API"],
            "cannot reach Buildkite",
            "a way to agent.buildkite.com",
        ),
        case(
            |_, function| function.env("BUILDKITE_QUEUE", "kubernetes,gpu"),
            &["Buildkite's Stacks API"],
            "404",
            "create the self-hosted queue gpu",
        ),
        case(
            |lab, function| {
                lab.buildkite.lock().queue(buildkite::CLUSTER, "kubernetes").is_paused = true;
                function
            },
            &["Buildkite's Stacks API"],
            "queue kubernetes is paused",
            "resume it",
        ),
        case(
            |lab, function| {
                lab.kubernetes.inject(When::any(), Fault::Refuse, FOR_EVER);
                function
            },
            &["cluster"],
            "cannot reach the API server at https://127.0.0.1",
            "aws eks describe-cluster --region us-east-1 --name example-cluster",
        ),
        case(
            |lab, function| {
                lab.aws.inject(When::action("DescribeCluster"), Fault::access_denied(), FOR_EVER);
                function.env("KUBERNETES_API_SERVER_ENDPOINT", "")
            },
            &["cluster"],
            "eks:DescribeCluster",
            "aws eks describe-cluster",
        ),
        case(
            |lab, function| {
                lab.kubernetes.become_version(28);
                function
            },
            &["cluster"],
            "too old for native sidecars",
            "aws eks update-cluster-version",
        ),
        case(
            |lab, function| {
                lab.skip(Duration::from_mins(3));
                function
            },
            &["clock"],
            " s ahead of ours",
            "Lambda's clock is right",
        ),
        case(
            |lab, function| {
                lab.kubernetes.map_to("system:node:one");
                function
            },
            &["identity"],
            "as user system:node:one of groups system:authenticated",
            "aws eks update-access-entry --region us-east-1 --cluster-name example-cluster --principal-arn \
             arn:aws:iam::111122223333:role/agent-scheduler --username buildkite-on-demand-agent-scheduler",
        ),
        case(
            |_, function| function.env("KUBERNETES_CLUSTER_IDENTIFIER", "other"),
            &["identity"],
            "does not accept the function's EKS token (401)",
            "--stack-name buildkite-agent-scheduler --query \"Stacks[0].Outputs[?OutputKey=='RoleArn'].OutputValue\"",
        ),
        case(
            |lab, function| {
                lab.kubernetes.put_secret_as(
                    "agent-scheduler:other",
                    "buildkite",
                    "buildkite-agent-token",
                    "token",
                    "hush",
                );
                function
            },
            &["agent Secret"],
            "agent-scheduler:other",
            "\nkubectl delete secret buildkite-agent-token --namespace buildkite",
        ),
        case(
            |lab, function| {
                lab.kubernetes.put_pod_template(template("node", &json!({"restartPolicy": "Always"})));
                function
            },
            &["pod definitions"],
            "PodTemplate node in namespace buildkite: template.spec.restartPolicy must be Never",
            "correct PodTemplate node",
        ),
        case(
            |lab, function| {
                let invalid = "Job.batch \"a\" is invalid: spec.template.spec.volumes[0].name: Required value";
                lab.kubernetes.inject(When::request("POST", "/jobs"), Fault::invalid(invalid), 1);
                function
            },
            &["pod definitions"],
            "spec.template.spec.volumes[0].name: Required value",
            "correct spec.template.spec.volumes[0].name of ",
        ),
        case(
            |lab, function| {
                lab.kubernetes
                    .warn("would violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false");
                function
            },
            &["pod definitions"],
            "would violate PodSecurity \"restricted:latest\"",
            "pod-definition=restricted",
        ),
        case(
            |lab, function| {
                lab.kubernetes.let_read(&["there"]);
                let spec = json!({"serviceAccountName": "deploy", "imagePullSecrets": [{"name": "there"}]});
                lab.kubernetes.put_pod_template(template("node", &spec));
                function
            },
            &["what definitions name"],
            "names serviceaccount deploy, which is not there",
            "kubectl create serviceaccount deploy --namespace buildkite",
        ),
        case(
            |lab, function| {
                lab.kubernetes.put_job(other_job("0123456789abcdef", "kubernetes"));
                lab.kubernetes.put_job(other_job("fedcba9876543210", "gpu"));
                function
            },
            &["one queue, one stack"],
            "stack 0123456789abcdef has Jobs of kubernetes",
            "StacksApi to false on all but one",
        ),
    ]
}

#[tokio::test]
async fn a_set_up_without_faults_is_well_and_nothing_is_changed_but_what_a_start_does() {
    let (answer, lab) = examine(|lab, function| {
        for number in 1..=2 {
            let event = Event::scheduled().uuid(uuid::Uuid::from_u128(number).to_string());
            lab.buildkite.lock().schedule(&event, buildkite::CLUSTER);
        }
        function
    })
    .await;
    assert_eq!(answer["ok"], true, "{answer:#}");
    let unseen = answer["checks"].as_array().unwrap().iter().filter(|check| check["ok"].is_null());
    let unseen: Vec<_> = unseen.map(|check| check["check"].as_str().unwrap()).collect();
    // The image of elastic-ci-stack is a placeholder.
    assert_eq!(unseen, ["events", "pod definitions"]);
    let found = |check: &str| findings(&answer, check)[0]["found"].as_str().unwrap().to_owned();
    assert!(found("agent token").ends_with("holds the agent token of a Buildkite cluster (bkct_…)"));
    assert!(found("Buildkite knows the token").contains("of organization example-org, Buildkite cluster"));
    assert!(found("Buildkite's Stacks API").starts_with("queue kubernetes: 2 jobs wait, the oldest since "));
    assert!(found("cluster").contains("Kubernetes v1.33.0-lab, which answered in "));
    assert!(found("permissions").starts_with("all 9 that are needed in namespace buildkite"));
    let events = findings(&answer, "events")[0]["fix"].as_str().unwrap();
    for part in ["--name kubernetes-Queue", "TriggeredRules", "JobsCreated", "JobsRepaired", "list-event-sources"] {
        assert!(events.contains(part), "{events}");
    }
    assert_eq!(lab.kubernetes.jobs(), [Value::Null; 0]);
}

#[tokio::test]
async fn each_fault_fails_its_check_alone_with_its_fix() {
    let check = |Case { fault, wrong: expected, found, fix }: Case| async move {
        let (answer, _) = examine(fault).await;
        assert_eq!(wrong(&answer), expected, "{answer:#}");
        assert_eq!(answer["ok"], false);
        let first = findings(&answer, expected[0]).into_iter().find(|check| check["ok"] == false).unwrap();
        assert!(first["found"].as_str().unwrap().contains(found), "{found}: {first:#}");
        assert!(first["fix"].as_str().unwrap().contains(fix), "{fix}: {first:#}");
    };
    // Not all at once: each has a function of its own, with a deadline.
    stream::iter(cases()).map(check).buffer_unordered(4).collect::<()>().await;
}

#[tokio::test]
async fn each_permission_is_named_where_it_is_missing() {
    let permissions = [
        ("create", "jobs"),
        ("get", "jobs"),
        ("create", "secrets"),
        ("patch", "secrets"),
        ("list", "podtemplates"),
        ("list", "jobs"),
        ("delete", "jobs"),
        ("list", "pods"),
        ("list", "events"),
    ];
    let lab = Lab::start().await;
    lab.buildkite.lock().queue(buildkite::CLUSTER, "kubernetes");
    let function = lab.function(FUNCTION).start();
    for (verb, resource) in permissions {
        lab.kubernetes.forbid(verb, resource);
        let answer = function.succeed(DOCTOR).await;
        let [finding] = findings(&answer, "permissions")[..] else { panic!("{answer:#}") };
        assert_eq!(finding["found"], format!("missing in namespace buildkite: {verb} {resource}"));
        assert!(finding["fix"].as_str().unwrap().contains("buildkite-role.yaml | kubectl apply --namespace buildkite"));
        lab.kubernetes.allow(verb, resource);
    }
    lab.kubernetes.forbid("delete", "jobs");
    let without_sweep = lab.function(FUNCTION).env("SWEEP_ENABLED", "false").start();
    assert_eq!(without_sweep.succeed(DOCTOR).await["ok"], true);
    without_sweep.stop().await;
    function.stop().await;
}

#[tokio::test]
async fn a_namespace_that_does_not_exist_is_named_with_the_command() {
    let (answer, _) = examine(|_, function| function.env("KUBERNETES_NAMESPACE", "builds")).await;
    assert_eq!(wrong(&answer), ["agent Secret", "pod definitions"]);
    for check in ["agent Secret", "pod definitions"] {
        let [finding] = findings(&answer, check)[..] else { panic!("{answer:#}") };
        assert_eq!(finding["fix"], "kubectl create namespace builds");
    }
}

#[tokio::test]
async fn what_the_function_may_not_read_is_not_looked_at_and_the_command_looks() {
    let (answer, _) = examine(|lab, function| {
        let spec = json!({"serviceAccountName": "deploy", "priorityClassName": "high", "imagePullSecrets": [{"name": "pull"}]});
        lab.kubernetes.put_pod_template(template("node", &spec));
        function
    })
    .await;
    assert_eq!(answer["ok"], true);
    let findings = findings(&answer, "what definitions name");
    let commands: BTreeSet<_> = findings.iter().map(|finding| finding["fix"].as_str().unwrap()).collect();
    let expected = ["priorityclass high", "secret pull", "serviceaccount deploy"];
    let expected: BTreeSet<_> = expected.map(|name| format!("kubectl get {name} --namespace buildkite")).into();
    assert_eq!(commands, expected.iter().map(String::as_str).collect());
    assert!(findings.iter().all(|finding| finding["ok"].is_null()), "{findings:#?}");
}

#[tokio::test]
async fn all_faults_at_once_are_all_found_in_20_seconds() {
    let started = Instant::now();
    let (answer, _) = examine(|lab, function| {
        lab.buildkite.lock().queue(buildkite::CLUSTER, "kubernetes").is_paused = true;
        token_is(lab, buildkite::Token::Cluster);
        lab.buildkite.inject(When::path("/token"), Fault::status(403), FOR_EVER);
        lab.skip(Duration::from_mins(3));
        lab.kubernetes.become_version(28);
        lab.kubernetes.map_to("system:node:one");
        lab.kubernetes.forbid("delete", "jobs");
        lab.kubernetes.put_secret_as("agent-scheduler:other", "buildkite", "buildkite-agent-token", "token", "hush");
        lab.kubernetes.let_read(&[]);
        lab.kubernetes.put_pod_template(template("node", &json!({"priorityClassName": "high", "fieldOfTomorrow": 1})));
        lab.kubernetes.put_pod_template(template("broken", &json!({"restartPolicy": "Always"})));
        lab.kubernetes.put_job(other_job("0123456789abcdef", "kubernetes"));
        function
    })
    .await;
    let expected = [
        "Buildkite knows the token",
        "Buildkite's Stacks API",
        "cluster",
        "clock",
        "identity",
        "permissions",
        "agent Secret",
        "pod definitions",
        "what definitions name",
        "one queue, one stack",
    ];
    assert_eq!(wrong(&answer), expected, "{answer:#}");
    assert!(started.elapsed() < Duration::from_secs(20));

    // Nothing answers at all.
    let (answer, _) = examine(|lab, function| {
        lab.aws.inject(When::any(), Fault::Delay(Duration::from_mins(1)), FOR_EVER);
        lab.kubernetes.inject(When::any(), Fault::Delay(Duration::from_mins(1)), FOR_EVER);
        function
    })
    .await;
    assert_eq!(wrong(&answer)[0], "agent token", "{answer:#}");
    assert!(wrong(&answer).contains(&"cluster"));
}
