//! What an attacker may try: through an event, through a network, through the logs. The real binary against the lab.
//!
//! What needs no process is proved where it belongs: in `src/job.rs`, `src/query_rules.rs`, and by the targets of `tests/fuzz`.

#![expect(clippy::unwrap_used, reason = "a test says so by ending")]

use std::{env, fs, process, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use lab::{Answer, Fault, Function, Lab, Request, When, function::Builder};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

const FUNCTION: &str = env!("CARGO_BIN_EXE_agent-scheduler");
const UUID: &str = "abcdef01-2222-4333-8444-555555555501";
const JOBS: &str = "/apis/batch/v1/namespaces/buildkite/jobs";

/// The published event for a job of that number, with `change` made to its `detail`.
fn event(uuid: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut event: Value = serde_json::from_str(include_str!("../events/job-scheduled.json")).unwrap();
    event["detail"]["job"]["uuid"] = json!(uuid);
    change(&mut event["detail"]);
    event.to_string()
}

fn plain(uuid: &str) -> String {
    event(uuid, |_| {})
}

async fn succeed(function: &Function, event: impl Into<String>) -> Value {
    match function.invoke(event).await {
        Answer::Success(answer) => answer,
        other => panic!("{other:?}\n{}", function.output()),
    }
}

async fn fail(function: &Function, event: impl Into<String>) -> (String, String) {
    match function.invoke(event).await {
        Answer::Error { error_type, error_message } => (error_type, error_message),
        other => panic!("{other:?}\n{}", function.output()),
    }
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

    /// All that the Job is, but its annotations and what its own number stands in.
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
        let lab = Lab::start().await;
        lab.kubernetes.add_namespace("kube-system");
        let function = lab.function(FUNCTION).env("AWS_LAMBDA_LOG_FORMAT", "Text").start();
        succeed(&function, plain(UUID)).await;
        let expected = job(&lab, UUID);
        for (number, trick) in tricks().iter().enumerate() {
            let uuid = format!("abcdef01-2222-4333-8444-5555555556{number:02}");
            let hostile = event(&uuid, |detail| {
                for part in ["job", "build", "pipeline", "organization"] {
                    detail[part]["namespace"] = json!("kube-system");
                    detail[part]["serviceAccountName"] = json!("admin");
                    detail[part]["labels"] = json!({"buildkite.com/job-uuid": UUID});
                    detail[part]["metadata"] = json!({"name": "x", "namespace": "kube-system"});
                    detail[part]["spec"] = json!({"serviceAccountName": "admin", "hostNetwork": true});
                }
                for (part, field) in [("build", "branch"), ("build", "commit"), ("job", "step_key")] {
                    detail[part][field] = json!(trick);
                }
                detail["pipeline"]["slug"] = json!(trick);
                detail["organization"]["slug"] = json!(trick);
            });
            let answer = succeed(&function, hostile).await;
            assert_eq!(answer["namespace"], "buildkite");
            assert_eq!(job(&lab, &uuid), expected, "{trick:?}");
        }
        for request in lab.kubernetes.requests() {
            assert!(request.path.contains("/namespaces/buildkite/"), "{request:?}");
        }
        let printed = function.stop().await.text;
        assert!(printed.lines().all(|line| !line.starts_with("{\"_aws\":{},")), "a line is forged: {printed}");
        assert!(!printed.contains(['\0', '\u{1b}', '\u{202e}', '\r']) && printed.len() < 100_000, "{}", printed.len());
    }

    #[tokio::test]
    async fn is_the_same_job_however_its_uuid_is_written() {
        let lab = Lab::start().await;
        let function = lab.function(FUNCTION).start();
        succeed(&function, plain(UUID)).await;
        let others = [UUID.to_uppercase(), UUID.replace('-', ""), format!("{{{UUID}}}"), format!("urn:uuid:{UUID}")];
        for uuid in others {
            assert_eq!(succeed(&function, plain(&uuid)).await["outcome"], "already-exists", "{uuid}");
        }
        assert_eq!(lab.kubernetes.jobs()[0]["metadata"]["labels"]["buildkite.com/job-uuid"], UUID);
        for uuid in [format!("{UUID}\n"), format!(" {UUID}"), format!("{UUID}0"), format!("{UUID}/../x")] {
            assert_eq!(fail(&function, plain(&uuid)).await.0, "InvalidEvent", "{uuid:?}");
        }
        assert_eq!(lab.kubernetes.jobs().len(), 1);
    }

    /// As an answer, and in the log in its text format, where a line break would begin a line.
    #[tokio::test]
    async fn writes_no_line_of_its_own() {
        let lab = Lab::start().await;
        let function = lab.function(FUNCTION).env("AWS_LAMBDA_LOG_FORMAT", "Text").start();
        for trick in tricks() {
            for rules in [json!([format!("queue={trick}")]), json!(["queue=default", format!("a{trick}=b")])] {
                let event = event(UUID, |detail| detail["job"]["agent_query_rules"] = rules);
                let answer = succeed(&function, event).await;
                let reason = answer["reason"].as_str().unwrap();
                assert!(reason.len() < 2_000 && !reason.contains(char::is_control), "{reason:?}");
            }
            let kind = event(UUID, |detail| detail["job"]["type"] = json!(trick));
            succeed(&function, kind).await;
            succeed(&function, json!({"detail-type": trick, "detail": {}}).to_string()).await;
            fail(&function, plain(&trick)).await;
        }
        let printed = function.stop().await.text;
        assert!(printed.lines().all(|line| !line.starts_with("{\"_aws\":{},")), "a line is forged: {printed}");
        assert!(!printed.contains(['\0', '\u{1b}', '\u{202e}', '\r']) && printed.len() < 100_000, "{}", printed.len());
        assert!(lab.kubernetes.jobs().is_empty());
    }

    #[tokio::test]
    async fn asks_for_a_pod_definition_by_its_name_and_by_nothing_else() {
        let lab = Lab::start().await;
        let function = lab.function(FUNCTION).start();
        let mut names = tricks();
        let others = ["Default", "default ", "default\n", "./default", "defаult", "d\u{e9}fault", "default/"];
        names.extend(others.map(str::to_owned));
        names.push("a".repeat(10_000));
        for name in names {
            let rules = json!(["queue=default", format!("pod-definition={name}")]);
            let (kind, text) = fail(&function, event(UUID, |detail| detail["job"]["agent_query_rules"] = rules)).await;
            assert_eq!(kind, "UnknownPodDefinition", "{text}");
            assert!(
                text.starts_with("there is no pod definition \"") && text.contains("may ask for default"),
                "{text}"
            );
            assert!(text.len() < 4_000 && !text.contains(char::is_control) && !text.contains('\u{202e}'), "{text:?}");
        }
        for request in lab.kubernetes.requests() {
            let known = request.path.ends_with("/podtemplates") || request.path.ends_with("/buildkite-agent-token");
            assert!(known, "{request:?}");
            assert!(!request.query.contains("dryRun"), "{request:?}");
        }
        assert!(lab.kubernetes.jobs().is_empty());
    }
}

mod a_secret {
    use super::*;

    /// Neither the agent token nor what the function proves itself with, in whatever went well or wrong, at every level.
    #[tokio::test]
    async fn is_in_nothing_that_leaves_the_function_but_where_it_belongs() {
        type Break = fn(&Lab);
        let broken: [(&str, Break); 6] = [
            ("nothing", |_| {}),
            ("SSM answers garbage", |lab| lab.aws.inject(When::action("GetParameter"), Fault::Garbage, 9)),
            ("SSM denies", |lab| lab.aws.inject(When::action("GetParameter"), Fault::access_denied(), 9)),
            ("the Secret is refused", |lab| lab.kubernetes.forbid("patch", "secrets")),
            ("the Secret is garbage", |lab| {
                lab.kubernetes.inject(When::request("PATCH", "/secrets"), Fault::Garbage, 9);
            }),
            ("the Job is refused", |lab| {
                lab.kubernetes.inject(When::request("POST", JOBS), Fault::invalid("no"), 9);
            }),
        ];
        for (what, fault) in broken {
            for format in ["JSON", "Text"] {
                let lab = Lab::start().await;
                fault(&lab);
                let function = lab
                    .function(FUNCTION)
                    .env("AWS_LAMBDA_LOG_LEVEL", "TRACE")
                    .env("AWS_LAMBDA_LOG_FORMAT", format)
                    .env("RUST_LOG", "trace")
                    .start();
                let answers = [
                    function.invoke(plain(UUID)).await,
                    function.invoke("{}").await,
                    function.invoke(event(UUID, |detail| detail["job"]["uuid"] = json!(7))).await,
                ];
                let requests = lab.kubernetes.requests();
                let mut left = vec![format!("{answers:?}"), function.stop().await.text];
                for Request { method, path, query, body, .. } in &requests {
                    // The Secret is where the token belongs.
                    left.push(format!("{path} {query} {}", if method == "PATCH" { "" } else { body }));
                }
                left.extend(lab.kubernetes.jobs().iter().map(ToString::to_string));
                let keys = lab.credentials();
                for secret in [lab.agent_token(), &keys.secret_access_key, &keys.session_token] {
                    for secret in [secret.to_owned(), BASE64_STANDARD.encode(secret)] {
                        assert!(left.iter().all(|text| !text.contains(&secret)), "{what}, {format}: a secret left");
                    }
                }
                assert!(left.iter().all(|text| !text.contains("k8s-aws-v1.")), "{what}, {format}: the EKS token left");
                // It did go where it belongs, so the search would have found it.
                let delivered =
                    requests.iter().any(|request| request.body.contains(&BASE64_STANDARD.encode(lab.agent_token())));
                assert_eq!(delivered, !what.starts_with("SSM"), "{what}");
            }
        }
    }
}

mod the_cluster {
    use super::*;

    async fn refused(lab: &Lab, change: impl FnOnce(Builder) -> Builder, words: &str) {
        let function = change(lab.function(FUNCTION)).start();
        let (kind, text) = fail(&function, plain(UUID)).await;
        assert_eq!(kind, "ClusterUnavailable", "{text}");
        assert!(text.contains(words), "{text}");
        assert!(lab.kubernetes.requests().is_empty(), "{:?}", lab.kubernetes.requests());
    }

    #[tokio::test]
    async fn is_vouched_for_by_its_own_authority_and_by_none_that_vouches_for_aws() {
        let lab = Lab::start().await;
        let roots = env::temp_dir().join(format!("agent-scheduler-security-{}.pem", process::id()));
        fs::write(&roots, lab.certificates.ca_pem()).unwrap();
        for variable in ["AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
            let change = |function: Builder| {
                function
                    .env(variable, roots.to_str().unwrap())
                    .env("KUBERNETES_CERTIFICATE_AUTHORITY_DATA", lab.certificates.other_ca_data())
            };
            refused(&lab, change, "certificate that is not to be trusted").await;
        }
        fs::remove_file(roots).unwrap();
    }

    /// A server that takes any greeting and chooses an older version. What it is sent after that must be an alert alone.
    #[tokio::test]
    async fn is_not_spoken_to_in_an_older_tls_than_1_2() {
        for version in [0x01, 0x02] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = format!("https://{}", listener.local_addr().unwrap());
            let server = tokio::spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let mut greeting = [0; 4096];
                    // A connection that was made ahead, and is given up, greets nobody.
                    if stream.read(&mut greeting).await.unwrap_or_default() == 0 {
                        continue;
                    }
                    // Handshake, ServerHello: that version, a random, no session, ECDHE-RSA-AES128-CBC-SHA, no compression.
                    let mut hello = vec![0x16, 3, version, 0, 42, 2, 0, 0, 38, 3, version];
                    hello.extend([7; 32]);
                    hello.extend([0, 0xc0, 0x13, 0]);
                    stream.write_all(&hello).await.unwrap();
                    let mut answer = Vec::new();
                    let _ = stream.read_to_end(&mut answer).await;
                    // One record, a fatal alert; or none that arrived before the connection was reset.
                    let is_alert = answer.len() == 7 && (answer[0], answer[5]) == (0x15, 2);
                    assert!(answer.is_empty() || is_alert, "{answer:x?}");
                }
            });
            let lab = Lab::start().await;
            let change = |function: Builder| {
                function.env("KUBERNETES_API_SERVER_ENDPOINT", endpoint).timeout(Duration::from_secs(10))
            };
            refused(&lab, change, "peer is incompatible").await;
            assert!(!server.is_finished(), "{:?}", server.await);
            server.abort();
        }
    }
}
