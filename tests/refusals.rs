//! What a build page says of a job that cannot start: the real binary against the lab's Buildkite, which accepts only what the
//! Stacks API documents.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod common;

use std::time::Duration;

use lab::{Actor, Event, Fault, Lab, When, buildkite::CLUSTER, event::batch, function::Builder};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};

use common::{Fixture, Output};

const UUID: &str = "11111111-2222-4333-8444-555555555501";
const FOR_EVER: usize = usize::MAX;

/// A step's rules, sent long ago, as a sample is.
fn event(rules: &[&str]) -> Event {
    Event::scheduled().rules(["queue=kubernetes"].iter().chain(rules))
}

/// With time for the second look at an unknown definition.
async fn fixture(event: &Event, change: impl FnOnce(&Lab, Builder) -> Builder) -> Fixture {
    Fixture::with(|lab, function| {
        lab.buildkite.lock().schedule(event, CLUSTER);
        change(lab, function.timeout(Duration::from_secs(30)))
    })
    .await
}

fn template(name: &str, annotations: &Value, container: &str) -> Value {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": container, "image": "i"}]});
    json!({"metadata": {"name": name, "annotations": annotations}, "template": {"spec": spec}})
}

/// The last part of the paths that Buildkite was asked for, in order.
fn calls(lab: &Lab) -> Vec<String> {
    let entries = lab.timeline.entries().into_iter().filter(|entry| entry.actor == Actor::Buildkite);
    let calls = entries.filter_map(|entry| entry.call().map(|call| call.target.clone()));
    calls.map(|target| target.rsplit('/').next().unwrap().to_owned()).collect()
}

/// State, reason and notifications on the build page of the job.
fn build_page(lab: &Lab) -> (&'static str, Option<String>, Vec<String>) {
    let buildkite = lab.buildkite.lock();
    let job = &buildkite.jobs[UUID];
    (job.state, job.detail.clone(), job.notifications.iter().map(|(_, text)| text.clone()).collect())
}

fn count(metrics: &[Value], name: &str) -> u64 {
    metrics.iter().filter_map(|line| line[name].as_u64()).sum()
}

mod a_job_that_can_never_start {
    use super::*;

    struct Refusal {
        rules: Vec<String>,
        template: Option<Value>,
        error_type: &'static str,
        /// Of the reason.
        words: &'static [&'static str],
    }

    fn refusal(
        rules: &[&str],
        template: Option<Value>,
        error_type: &'static str,
        words: &'static [&'static str],
    ) -> Refusal {
        Refusal { rules: rules.iter().map(ToString::to_string).collect(), template, error_type, words }
    }

    fn refusals() -> Vec<Refusal> {
        let only = |annotation: &str, value: &str| {
            let name = format!("agent-scheduler.buildkite.com/{annotation}");
            Some(template("limited", &json!({name: value}), "agent"))
        };
        let long = format!("pod-definition=🚀\u{1b}[2J{}", "é".repeat(50_000));
        let invalid = "InvalidAgentQueryRule";
        vec![
            refusal(&["cpu=many"], None, invalid, &["cpu=many", "500m, 2 or 4Gi"]),
            refusal(&["memory=4"], None, invalid, &["memory=4", "write 4Gi, not 4"]),
            refusal(&["image=a", "image=b"], None, invalid, &["image=a", "image=b as well"]),
            refusal(
                &["pod-definition=limited", "image=node"],
                only("allow-image", "false"),
                invalid,
                &["image=node", "allows no other image"],
            ),
            refusal(
                &["pod-definition=limited", "cpu=4"],
                only("max-cpu", "2"),
                invalid,
                &["cpu=4", "2 at most", "max-cpu"],
            ),
            refusal(
                &["pod-definition=limited"],
                only("allow-pipelines", "deploy"),
                invalid,
                &["\"example-pipeline\"", "add the pipeline there"],
            ),
            refusal(
                &["pod-definition=nodejs"],
                None,
                "UnknownPodDefinition",
                &["\"nodejs\"", "default", "kubectl apply"],
            ),
            refusal(&[&long], None, "UnknownPodDefinition", &["🚀\\u{1b}[2Jé", "default"]),
            refusal(
                &["pod-definition=broken"],
                Some(template("broken", &json!({}), "main")),
                "InvalidPodDefinition",
                &["PodTemplate broken in namespace buildkite", "must have one named agent"],
            ),
            refusal(
                &["pod-definition=elastic-ci-stack"],
                None,
                "InvalidPodDefinition",
                &["placeholder", "build the image"],
            ),
        ]
    }

    impl Refusal {
        async fn check(self) {
            let event = event(&self.rules.iter().map(String::as_str).collect::<Vec<_>>());
            let fixture = fixture(&event, |lab, function| {
                if let Some(template) = self.template {
                    lab.kubernetes.put_pod_template(template);
                }
                function
            })
            .await;
            let Fixture { lab, function } = &fixture;
            let answer = function.succeed(&event).await;
            assert_eq!(answer["outcome"], "refused", "{answer}");
            let reason = answer["reason"].as_str().unwrap();
            assert_eq!(lab.kubernetes.jobs(), [json!(null); 0], "{reason}");
            let (state, detail, notifications) = build_page(lab);
            let detail = detail.unwrap();
            assert_eq!((state, notifications), ("finished", vec![]), "{detail}");
            for words in self.words {
                assert!(detail.contains(words) && reason.contains(words), "{words:?} is not in {detail}");
            }
            assert!(detail.len() <= 4_096 && detail.contains("signal_reason: stack_error"), "{detail}");
            let unsafe_character = |c: char| c.is_control() && c != '\n';
            assert!(!detail.contains(unsafe_character), "{detail:?}");
            assert!(!detail.contains("make test"), "the step's command is in {detail}");
            assert_eq!(calls(lab), ["register", "batch-reserve", "finish"]);

            let again = function.succeed(&event).await;
            assert_eq!(again["outcome"], "ignored", "{again}");
            assert!(again["reason"].as_str().unwrap().contains("Buildkite does not reserve it"), "{again}");
            assert_eq!(calls(lab)[3..], ["batch-reserve"]);

            let Output { log, metrics, .. } = fixture.end().await;
            let line = log.iter().find(|line| line["outcome"] == "refused").unwrap();
            assert_eq!((&line["level"], &line["error_type"]), (&json!("WARN"), &json!(self.error_type)));
            assert_eq!((count(&metrics, "JobsRefused"), count(&metrics, "JobsFailed")), (1, 0));
        }
    }

    #[tokio::test]
    async fn is_finished_once_with_a_reason_that_names_the_correction() {
        let checks: JoinSet<_> = refusals().into_iter().map(Refusal::check).collect();
        checks.join_all().await;
    }

    #[tokio::test]
    async fn is_one_whose_rule_the_api_server_refuses_and_no_other_field() {
        let invalid = |field: &str| {
            Fault::invalid(format!("Job.batch \"a\" is invalid: spec.template.spec.{field}: Invalid value: \"hidden\""))
        };
        for (field, is_final) in [("containers[0].image", true), ("volumes[0].name", false)] {
            let event = event(&["image=node"]);
            let fixture = fixture(&event, |lab, function| {
                lab.kubernetes.inject(When::request("POST", "/jobs"), invalid(field), 2);
                function
            })
            .await;
            let Fixture { lab, function } = &fixture;
            if is_final {
                let answer = function.succeed(&event).await;
                assert_eq!(answer["outcome"], "refused", "{answer}");
                let (state, detail, _) = build_page(lab);
                assert!(state == "finished" && detail.unwrap().contains("the step asks for image=node, which"));
            } else {
                assert_eq!(function.fail(&event).await.0, "RejectedByApiServer");
                let (state, _, notifications) = build_page(lab);
                let [text] = &notifications[..] else { panic!("not one line: {notifications:?}") };
                assert!(state == "scheduled" && text.contains(field) && !text.contains("hidden"), "{text}");
            }
            fixture.end().await;
        }
    }

    #[tokio::test]
    async fn of_a_batch_is_not_a_failed_message() {
        let event = event(&["cpu=many"]);
        let fixture = fixture(&event, |_, function| function).await;
        let answer = fixture.function.succeed(batch([("1", event.failure_record())])).await;
        assert_eq!(answer, json!({"batchItemFailures": []}));
        assert_eq!(build_page(&fixture.lab).0, "finished");
        fixture.end().await;
    }

    #[tokio::test]
    async fn of_another_stack_or_agent_or_one_that_is_over_is_left_alone() {
        let event = event(&["cpu=many"]);
        for state in ["accepted", "running", "finished", "canceled"] {
            let fixture = fixture(&event, |lab, function| {
                lab.buildkite.lock().jobs.get_mut(UUID).unwrap().state = state;
                function
            })
            .await;
            let answer = fixture.function.succeed(&event).await;
            assert_eq!(answer["outcome"], "ignored", "{answer}");
            assert_eq!(build_page(&fixture.lab), (state, None, vec![]));
            fixture.end().await;
        }
    }

    #[tokio::test]
    async fn that_was_taken_between_reservation_and_finish_is_left_alone() {
        for status in [404, 422] {
            let event = event(&["cpu=many"]);
            let fixture = fixture(&event, |lab, function| {
                lab.buildkite.inject(When::request("POST", "/finish"), Fault::status(status), 1);
                function
            })
            .await;
            let answer = fixture.function.succeed(&event).await;
            assert_eq!(answer["outcome"], "ignored", "{answer}");
            fixture.end().await;
        }
    }

    #[tokio::test]
    async fn is_a_failure_without_the_stacks_api() {
        let event = event(&["cpu=many"]);
        let fixture = fixture(&event, |_, function| function.env("STACKS_API", "false")).await;
        for _ in 0..2 {
            assert_eq!(fixture.function.fail(&event).await.0, "InvalidAgentQueryRule");
        }
        assert_eq!(calls(&fixture.lab), [""; 0]);
        let Output { log, metrics, .. } = fixture.end().await;
        assert!(log.iter().all(|line| line["level"] == "ERROR"), "{log:#?}");
        assert_eq!(count(&metrics, "JobsFailed"), 2);
    }

    #[tokio::test]
    async fn is_a_failure_where_buildkite_refuses_the_stacks_api_and_one_warning_says_so() {
        for (status, fix) in [(401, "bkct_"), (403, "allowed IP addresses"), (404, "BuildkiteQueue")] {
            let event = event(&["cpu=many"]);
            let fixture = fixture(&event, |lab, function| {
                lab.buildkite.inject(When::request("POST", "/register"), Fault::status(status), FOR_EVER);
                function
            })
            .await;
            for _ in 0..3 {
                assert_eq!(fixture.function.fail(&event).await.0, "InvalidAgentQueryRule");
            }
            assert_eq!(calls(&fixture.lab), ["register"], "asked again after ten minutes");
            let Output { log, metrics, .. } = fixture.end().await;
            let warnings: Vec<_> = log.iter().filter(|line| line["level"] == "WARN").collect();
            let [warning] = &warnings[..] else { panic!("not one warning: {warnings:#?}") };
            let reason = warning["reason"].as_str().unwrap();
            assert!(reason.contains(fix) && reason.contains("StacksApi"), "{reason}");
            assert_eq!(count(&metrics, "StacksApiUnavailable"), 1);
        }
    }

    #[tokio::test]
    async fn registers_again_if_buildkite_has_forgotten_the_stack() {
        let first = event(&["cpu=many"]);
        let second = event(&["cpu=many"]).uuid("11111111-2222-4333-8444-555555555502");
        let fixture = fixture(&first, |_, function| function).await;
        let Fixture { lab, function } = &fixture;
        function.succeed(&first).await;
        lab.buildkite.lock().schedule(&second, CLUSTER);
        lab.buildkite.inject(When::request("PUT", "/batch-reserve"), Fault::status(404), 1);
        assert_eq!(function.succeed(&second).await["outcome"], "refused");
        assert_eq!(calls(lab)[3..], ["batch-reserve", "register", "batch-reserve", "finish"]);
        fixture.end().await;
    }
}

mod a_definition {
    use super::*;

    #[tokio::test]
    async fn that_is_added_within_seconds_is_found() {
        let event = event(&["pod-definition=node"]);
        let fixture = fixture(&event, |_, function| function).await;
        let Fixture { lab, function } = &fixture;
        let add = async {
            sleep(Duration::from_secs(2)).await;
            lab.kubernetes.put_pod_template(template("node", &json!({}), "agent"));
        };
        let (answer, ()) = tokio::join!(function.succeed(&event), add);
        assert_eq!(answer["outcome"], "created");
        assert_eq!(calls(lab), [""; 0]);
        fixture.end().await;
    }

    #[tokio::test]
    async fn that_is_unknown_is_no_proof_while_the_cluster_takes_no_job() {
        let event = event(&["pod-definition=node"]);
        let fixture = fixture(&event, |_, function| function.env("KUBERNETES_NAMESPACE", "builds")).await;
        let (error_type, text) = fixture.function.fail(&event).await;
        assert_eq!(error_type, "RejectedByApiServer");
        assert!(text.contains("kubectl create namespace builds"), "{text}");
        assert_eq!(build_page(&fixture.lab).0, "scheduled");
        fixture.end().await;
    }

    /// An operator may be replacing it.
    #[tokio::test]
    async fn that_is_invalid_or_gone_has_a_minute_to_become_valid() {
        let event = event(&["pod-definition=node"]).now();
        let fixture = fixture(&event, |lab, function| {
            lab.kubernetes.put_pod_template(template("node", &json!({}), "main"));
            function
        })
        .await;
        let (error_type, _) = fixture.function.fail(&event).await;
        assert_eq!(error_type, "InvalidPodDefinition");
        let (state, _, notifications) = build_page(&fixture.lab);
        assert_eq!(state, "scheduled");
        assert!(notifications[0].ends_with("Operator: correct the pod definition."), "{notifications:?}");
        fixture.end().await;
    }

    #[tokio::test]
    async fn whose_limits_changed_after_its_job_was_created_refuses_nothing() {
        let event = event(&["pod-definition=node", "cpu=4"]);
        let fixture = fixture(&event, |lab, function| {
            lab.kubernetes.put_pod_template(template("node", &json!({}), "agent"));
            function
        })
        .await;
        let Fixture { lab, function } = &fixture;
        assert_eq!(function.succeed(&event).await["outcome"], "created");
        let max_cpu = json!({"agent-scheduler.buildkite.com/max-cpu": "2"});
        lab.kubernetes.put_pod_template(template("node", &max_cpu, "agent"));
        // An environment that starts now knows the new limits alone.
        let other = lab.function(common::FUNCTION).timeout(Duration::from_secs(30)).start();
        assert_eq!(other.succeed(&event).await["outcome"], "already-exists");
        assert_eq!(build_page(lab).0, "scheduled");
        other.stop().await;
        fixture.end().await;
    }
}

mod a_failure_that_may_pass {
    use super::*;

    #[tokio::test]
    async fn is_a_line_on_the_build_page_for_each_attempt() {
        let event = event(&[]);
        let fixture = fixture(&event, |lab, function| {
            lab.kubernetes.forbid("create", "jobs");
            function
        })
        .await;
        for _ in 0..2 {
            assert_eq!(fixture.function.fail(&event).await.0, "Forbidden");
        }
        let (state, detail, notifications) = build_page(&fixture.lab);
        assert_eq!((state, detail, notifications.len()), ("scheduled", None, 2));
        for text in notifications {
            assert!(text.contains("tries again") && text.ends_with("grant the permissions (connect STACK)."), "{text}");
        }
        fixture.end().await;
    }

    #[tokio::test]
    async fn that_passed_within_the_invocation_is_not_mentioned() {
        let event = event(&[]);
        let fixture = fixture(&event, |lab, function| {
            lab.kubernetes.inject(When::request("POST", "/jobs"), Fault::status(503), 1);
            function
        })
        .await;
        assert_eq!(fixture.function.succeed(&event).await["outcome"], "created");
        assert_eq!(calls(&fixture.lab), [""; 0]);
        fixture.end().await;
    }

    #[tokio::test]
    async fn is_reported_as_ever_if_buildkite_does_not_answer() {
        let event = event(&[]);
        let fixture = fixture(&event, |lab, function| {
            lab.kubernetes.forbid("create", "jobs");
            lab.buildkite.inject(When::any(), Fault::Delay(Duration::from_mins(1)), FOR_EVER);
            function
        })
        .await;
        assert_eq!(fixture.function.fail(&event).await.0, "Forbidden");
        assert!(!calls(&fixture.lab).contains(&"notifications".to_owned()));
        fixture.end().await;
    }
}
