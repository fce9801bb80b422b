//! What an attacker may try: through an event, through a network, through the logs. The real binary against the lab.
//!
//! What needs no process is proved in `src/pod/job.rs`, in `src/buildkite/rules.rs`, and by the targets of `tests/fuzz`.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod common;

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use lab::{Event, Fault, Lab, When, event::batch, function::Builder};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use common::{FUNCTION, Fixture, leaks};

const UUID: &str = "abcdef01-2222-4333-8444-555555555501";

fn event() -> Event {
    Event::scheduled().uuid(UUID)
}

mod a_hostile_event {
    use super::*;

    /// Texts that break out of lines, strings, paths, labels or screens.
    fn tricks() -> Vec<String> {
        let mut tricks: Vec<_> = [
            "\n{\"_aws\":{},\"level\":\"INFO\",\"message\":\"forged\"}",
            "a\0b\r\n\u{1b}[2J",
            "\u{202e}gnp.exe",
            "../../../kube-system/secrets/x",
            "..%2f..%2fsecrets",
            "default?dryRun=All#",
            "\",\"serviceAccountName\":\"admin",
            "$(cat /etc/passwd)",
        ]
        .map(str::to_owned)
        .to_vec();
        tricks.push("🚀".repeat(30_000));
        tricks
    }

    /// A function whose log is in the text format, where a line break would begin a line.
    async fn fixture() -> Fixture {
        Fixture::with(|_, function| function.env("AWS_LAMBDA_LOG_FORMAT", "Text")).await
    }

    async fn end(fixture: Fixture) {
        let printed = fixture.end().await.text;
        assert!(printed.lines().all(|line| !line.starts_with("{\"_aws\":{},")), "a line is forged: {printed}");
        assert!(!printed.contains(['\0', '\u{1b}', '\u{202e}', '\r']) && printed.len() < 100_000, "{}", printed.len());
    }

    /// The Job without its annotations and what differs between any two.
    fn job(lab: &Lab, uuid: &str) -> String {
        let mut job = lab.kubernetes.job(&format!("buildkite-{uuid}")).unwrap();
        for place in ["/metadata", "/spec/template/metadata"] {
            job.pointer_mut(place).unwrap()["annotations"] = Value::Null;
        }
        for field in ["uid", "creationTimestamp", "resourceVersion"] {
            job["metadata"][field] = Value::Null;
        }
        job.to_string().replace(uuid, "UUID")
    }

    #[tokio::test]
    async fn chooses_no_namespace_secret_service_account_or_label() {
        let fixture = fixture().await;
        let Fixture { lab, function } = &fixture;
        lab.kubernetes.add_namespace("kube-system");
        function.succeed(event()).await;
        let expected = job(lab, UUID);
        for (number, trick) in tricks().iter().enumerate() {
            let uuid = format!("abcdef01-2222-4333-8444-5555555556{number:02}");
            let hostile = Event::scheduled().uuid(&uuid).detail(|detail| {
                for part in ["job", "build", "pipeline", "organization"] {
                    detail[part]["namespace"] = json!("kube-system");
                    detail[part]["serviceAccountName"] = json!("admin");
                    detail[part]["labels"] = json!({"buildkite.com/job-uuid": UUID});
                    detail[part]["metadata"] = json!({"name": "x", "namespace": "kube-system"});
                    detail[part]["spec"] = json!({"serviceAccountName": "admin", "hostNetwork": true});
                }
                for (part, field) in [
                    ("build", "branch"),
                    ("build", "commit"),
                    ("job", "step_key"),
                    ("pipeline", "slug"),
                    ("organization", "slug"),
                ] {
                    detail[part][field] = json!(trick);
                }
            });
            assert_eq!(function.succeed(hostile).await["namespace"], "buildkite");
            assert_eq!(job(lab, &uuid), expected, "{trick:?}");
        }
        for request in lab.kubernetes.requests() {
            assert!(request.path.contains("/namespaces/buildkite/"), "{request:?}");
        }
        end(fixture).await;
    }

    #[tokio::test]
    async fn is_the_same_job_in_every_spelling_of_its_uuid() {
        let fixture = Fixture::new().await;
        let Fixture { lab, function } = &fixture;
        function.succeed(event()).await;
        let others = [UUID.to_uppercase(), UUID.replace('-', ""), format!("{{{UUID}}}"), format!("urn:uuid:{UUID}")];
        for uuid in others {
            assert_eq!(function.succeed(event().uuid(&uuid)).await["outcome"], "already-exists", "{uuid}");
        }
        for uuid in [format!("{UUID}\n"), format!(" {UUID}"), format!("{UUID}0"), format!("{UUID}/../x")] {
            assert_eq!(function.fail(event().uuid(&uuid)).await.0, "InvalidEvent", "{uuid:?}");
        }
        let [job] = &lab.kubernetes.jobs()[..] else { panic!("not one Job") };
        assert_eq!(job["metadata"]["labels"]["buildkite.com/job-uuid"], UUID);
        fixture.end().await;
    }

    #[tokio::test]
    async fn writes_no_line_of_its_own() {
        let fixture = fixture().await;
        let function = &fixture.function;
        for trick in tricks() {
            let ignored = [
                event().rules([format!("queue={trick}")]),
                event().rules(["queue=kubernetes".to_owned(), format!("a{trick}=b")]),
                event().detail(|detail| detail["job"]["type"] = json!(trick)),
            ];
            for event in ignored {
                let answer = function.succeed(event).await;
                let reason = answer["reason"].as_str().unwrap();
                assert!(reason.len() < 2_000 && !reason.contains(char::is_control), "{reason:?}");
            }
            let mut other: Value = serde_json::from_str(include_str!("../events/job-finished.json")).unwrap();
            other["detail-type"] = json!(trick);
            function.succeed(other.to_string()).await;
            function.fail(event().uuid(&trick)).await;
            function.succeed(batch([("1", trick)])).await;
        }
        assert!(fixture.lab.kubernetes.jobs().is_empty());
        end(fixture).await;
    }

    #[tokio::test]
    async fn asks_for_a_pod_definition_by_its_name_alone() {
        let fixture = Fixture::new().await;
        let Fixture { lab, function } = &fixture;
        let others = ["Default", "default ", "default\n", "./default", "defаult", "d\u{e9}fault", "default/"];
        let names = tricks().into_iter().chain(others.map(str::to_owned)).chain(["a".repeat(10_000)]);
        for name in names {
            let rules = ["queue=kubernetes".to_owned(), format!("pod-definition={name}")];
            let (error_type, text) = function.fail(event().rules(rules)).await;
            assert_eq!(error_type, "UnknownPodDefinition", "{text}");
            assert!(text.len() < 4_000 && !text.contains(char::is_control) && !text.contains('\u{202e}'), "{text:?}");
        }
        for request in lab.kubernetes.requests() {
            let known = request.path.ends_with("/podtemplates") || request.path.ends_with("/buildkite-agent-token");
            assert!(known && !request.query.contains("dryRun"), "{request:?}");
        }
        assert!(lab.kubernetes.jobs().is_empty());
        fixture.end().await;
    }
}

/// Neither the agent token nor the function's own credentials, at every log level and format, with and without a failure.
#[tokio::test]
async fn a_secret_leaves_the_function_in_the_kubernetes_secret_alone() {
    type Break = fn(&Lab);
    let broken: [(&str, Break); 6] = [
        ("nothing", |_| {}),
        ("SSM answers garbage", |lab| lab.aws.inject(When::action("GetParameter"), Fault::Garbage, 9)),
        ("SSM denies", |lab| lab.aws.inject(When::action("GetParameter"), Fault::access_denied(), 9)),
        ("the Secret is refused", |lab| lab.kubernetes.forbid("patch", "secrets")),
        ("the Secret is garbage", |lab| lab.kubernetes.inject(When::request("PATCH", "/secrets"), Fault::Garbage, 9)),
        ("the Job is refused", |lab| lab.kubernetes.inject(When::request("POST", "/jobs"), Fault::invalid("no"), 9)),
    ];
    for (what, inject) in broken {
        for format in ["JSON", "Text"] {
            let Fixture { lab, function } = Fixture::with(|lab, function| {
                inject(lab);
                let function = function.env("AWS_LAMBDA_LOG_LEVEL", "TRACE").env("RUST_LOG", "trace");
                function.env("AWS_LAMBDA_LOG_FORMAT", format)
            })
            .await;
            function.invoke(event()).await;
            function.fail("{}").await;
            function.fail(event().detail(|detail| detail["job"]["uuid"] = json!(7))).await;
            let printed = function.stop().await.text;
            assert!(!printed.contains("make test"), "{what}, {format}: the step's command is in the output");
            assert_eq!(leaks(&lab), [""; 0], "{what}, {format}");
            // It arrived in the Secret, so the search would have found it.
            let token = BASE64_STANDARD.encode(lab.agent_token());
            let delivered = lab.kubernetes.requests().iter().any(|request| request.body.contains(&token));
            assert_eq!(delivered, !what.starts_with("SSM"), "{what}");
        }
    }
}

mod the_cluster {
    use super::*;

    async fn gets_no_request(lab: &Lab, change: impl FnOnce(Builder) -> Builder, words: &str) {
        let function = change(lab.function(FUNCTION)).start();
        let (error_type, text) = function.fail(event()).await;
        assert_eq!(error_type, "ClusterUnavailable", "{text}");
        assert!(text.contains(words), "{text}");
        assert!(lab.kubernetes.requests().is_empty(), "{:?}", lab.kubernetes.requests());
    }

    #[tokio::test]
    async fn is_trusted_by_its_own_authority_and_not_by_the_roots_for_aws() {
        let lab = Lab::start().await;
        for variable in ["AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
            let change = |function: Builder| {
                function
                    .env(variable, lab.certificates.ca_file())
                    .env("KUBERNETES_CERTIFICATE_AUTHORITY_DATA", lab.certificates.other_ca_data())
            };
            gets_no_request(&lab, change, "certificate").await;
        }
    }

    /// The server takes any `ClientHello` and chooses an older version. The answer must be an alert and nothing else.
    #[tokio::test]
    async fn gets_no_request_in_a_tls_older_than_1_2() {
        for version in [0x01, 0x02] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = format!("https://{}", listener.local_addr().unwrap());
            let server = tokio::spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let mut client_hello = [0; 4096];
                    // A connection that was made ahead and is not used sends nothing.
                    if stream.read(&mut client_hello).await.unwrap_or_default() == 0 {
                        continue;
                    }
                    // Handshake, ServerHello: the version, a random, no session, ECDHE-RSA-AES128-CBC-SHA, no compression.
                    let mut hello = vec![0x16, 3, version, 0, 42, 2, 0, 0, 38, 3, version];
                    hello.extend([7; 32]);
                    hello.extend([0, 0xc0, 0x13, 0]);
                    stream.write_all(&hello).await.unwrap();
                    let mut answer = Vec::new();
                    let _ = stream.read_to_end(&mut answer).await;
                    // One record, a fatal alert; or nothing, if the connection was reset before.
                    let is_alert = answer.len() == 7 && (answer[0], answer[5]) == (0x15, 2);
                    assert!(answer.is_empty() || is_alert, "{answer:x?}");
                }
            });
            let lab = Lab::start().await;
            let change = |function: Builder| {
                function.env("KUBERNETES_API_SERVER_ENDPOINT", endpoint).timeout(Duration::from_secs(10))
            };
            gets_no_request(&lab, change, "peer is incompatible").await;
            assert!(!server.is_finished(), "{:?}", server.await);
            server.abort();
        }
    }
}
