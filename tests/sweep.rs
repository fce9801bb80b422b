//! The sweep: the real binary against the lab, whose clocks the tests put forward.
//!
//! The function's own events create the Jobs. A test then ends them as the Job controller does, and lets time pass.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod common;
#[path = "sweep/obstacles.rs"]
mod obstacles;
#[path = "sweep/outage.rs"]
mod outage;
#[path = "sweep/scene.rs"]
mod scene;
#[path = "sweep/second_look.rs"]
mod second_look;

use std::{process::Command, time::Duration};

use lab::{
    AGENT_TOKEN_PARAMETER, Answer, Event, Fault, Parameter, When,
    buildkite::{CLUSTER, Token},
    event::batch,
    function::Builder,
};
use serde_json::{Value, json};
use tokio::{join, time::sleep};

use scene::{ATTEMPT, NONE, Scene, builder, event, name, of_level, sum};

mod a_trigger {
    use super::*;

    #[tokio::test]
    async fn that_is_too_old_does_nothing() {
        let scene = Scene::new().await;
        scene.wait(1);
        scene.lab.skip(Duration::from_mins(1));
        scene.function.initialised().await.unwrap();
        let requests = || (scene.lab.kubernetes.requests().len(), scene.lab.buildkite.requests().len());
        let before = requests();
        let late = Event::sweep().sent(Duration::from_secs(92));
        assert_eq!(scene.function.succeed(late).await["outcome"], "ignored");
        assert_eq!(requests(), before);
        scene.function.succeed(Event::sweep().sent(Duration::from_secs(85))).await;
        assert!(scene.has_job(1));
        let (_, metrics) = scene.stop().await;
        assert_eq!((sum(&metrics, "SweepsSkipped"), sum(&metrics, "Sweeps")), (1, 1));
    }

    #[tokio::test]
    async fn is_not_needed_again_when_the_function_is_killed() {
        let mut scene = Scene::new().await;
        for number in 1..=3 {
            scene.create(number).await;
        }
        scene.end(1, 1);
        scene.set_state(2, "canceled");
        scene.lab.skip(Duration::from_mins(1));
        // Between the delete and the create.
        let create = When::request("POST", "/jobs");
        scene.lab.kubernetes.inject(create, Fault::Delay(Duration::from_mins(1)), usize::MAX);
        let kill = async {
            while scene.has_job(1) {
                sleep(Duration::from_millis(10)).await;
            }
            let pid = scene.function.pid().to_string();
            assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        };
        let sweep = Event::sweep().sent(Duration::from_secs(80));
        let (answer, ()) = join!(scene.function.invoke(&sweep), kill);
        assert!(matches!(answer, Answer::Exited(_)), "{answer:?}");
        scene.lab.kubernetes.clear_faults();
        scene.function = builder(&scene.lab).start();
        for _ in 0..2 {
            let late = Event::sweep().sent(Duration::from_secs(150));
            assert_eq!(scene.function.succeed(late).await["outcome"], "ignored");
        }
        scene.sweep_after(0).await;
        scene.sweep_after(60).await;
        assert!(scene.has_job(1) && !scene.has_job(2) && scene.has_job(3));
        assert_eq!((scene.state(1), scene.state(3)), ("scheduled", "scheduled"));
        scene.stop().await;
    }

    #[tokio::test]
    async fn in_the_failure_queue_counts_as_done() {
        let scene = Scene::new().await;
        let messages = batch([("1", Event::sweep().failure_record()), ("2", Event::sweep().to_string())]);
        assert_eq!(scene.function.succeed(messages).await, json!({"batchItemFailures": []}));
        assert_eq!(scene.lab.buildkite.requests().len(), 0);
        scene.stop().await;
    }

    #[tokio::test]
    async fn ends_well_and_counts_nothing_without_the_stacks_api() {
        for variable in ["STACKS_API", "SWEEP_ENABLED"] {
            let scene = Scene::with(|function| function.env(variable, "false")).await;
            assert_eq!(scene.function.succeed(Event::sweep()).await["outcome"], "ignored");
            assert_eq!(scene.lab.buildkite.requests().len(), 0);
            let (log, metrics) = scene.stop().await;
            assert_eq!((of_level(&log, "ERROR").len(), metrics.len()), (0, 0));
        }
        let scene = Scene::new().await;
        scene.lab.buildkite.lock().tokens.clear();
        assert_eq!(scene.function.succeed(Event::sweep()).await["outcome"], "ignored");
        let (log, metrics) = scene.stop().await;
        assert_eq!((of_level(&log, "WARN").len(), of_level(&log, "ERROR").len()), (1, 0), "{log:#?}");
        assert_eq!((sum(&metrics, "Sweeps"), sum(&metrics, "SweepsFailed")), (0, 0));
    }

    #[tokio::test]
    async fn twice_at_once_does_no_harm() {
        let scene = Scene::new().await;
        for number in 1..=4 {
            scene.create(number).await;
        }
        scene.end(1, 1);
        scene.end(2, 0);
        scene.set_state(3, "canceled");
        scene.wait(5);
        let other = builder(&scene.lab).start();
        for _ in 0..3 {
            scene.lab.skip(Duration::from_secs(61));
            join!(scene.function.succeed(Event::sweep()), other.succeed(Event::sweep()));
        }
        assert!([1, 2, 4, 5].into_iter().all(|number| scene.has_job(number)) && !scene.has_job(3));
        assert!([1, 2, 4, 5].into_iter().all(|number| scene.state(number) == "scheduled"));
        let (_, metrics) = scene.stop().await;
        let of_other: Vec<_> = other.stop().await.lines();
        let of_both = |name| sum(&metrics, name) + sum(&of_other, name);
        // One may find no Job where the other is between its delete and its create.
        assert!(of_both("JobsRepaired") >= 1);
        assert_eq!(of_both("JobsFinished"), 0);
    }
}

mod a_lost_event {
    use super::*;

    #[tokio::test]
    async fn is_repaired_after_half_a_minute() {
        let scene = Scene::new().await;
        scene.wait(1);
        assert_eq!(scene.sweep_after(0).await, NONE, "it may be on its way");
        assert_eq!(scene.sweep_after(31).await, ["POST jobs", "POST notifications"]);
        assert!(scene.notifications(1)[0].starts_with("The sweep has created the Kubernetes Job"));
        let job = &scene.lab.kubernetes.job(&name(1)).unwrap()["metadata"];
        assert_eq!(job["labels"]["buildkite.com/queue"], "kubernetes");
        let of_listed = ["branch", "commit"].map(|key| &job["annotations"][format!("buildkite.com/{key}")]);
        assert_eq!(of_listed, [&json!("main"), &Value::Null]);
        assert_eq!(scene.sweep_after(600).await, NONE);
        let (log, metrics) = scene.stop().await;
        let repaired = log.iter().find(|line| line["message"] == "repair handled").unwrap();
        assert_eq!((&repaired["outcome"], &repaired["queue"]), (&json!("created"), &json!("kubernetes")));
        assert_eq!((sum(&metrics, "JobsRepaired"), sum(&metrics, "JobsCreated"), sum(&metrics, "Sweeps")), (1, 0, 3));
        let oldest: Vec<_> = metrics.iter().filter_map(|line| line["OldestJobSeconds"].as_u64()).collect();
        assert!(oldest[0] < 20 && (30..50).contains(&oldest[1]) && (630..660).contains(&oldest[2]), "{oldest:?}");
        assert_eq!(sum(&metrics, "JobsWaiting"), 3);
        let done = log.iter().filter(|line| line["message"] == "sweep done").count();
        assert_eq!(done, 1, "a sweep that finds nothing has no line");
    }

    #[tokio::test]
    async fn of_a_paused_queue_waits() {
        let scene = Scene::new().await;
        scene.wait(1);
        scene.lab.buildkite.lock().queue(CLUSTER, "kubernetes").is_paused = true;
        assert_eq!(scene.sweep_after(60).await, NONE);
        scene.lab.buildkite.lock().queue(CLUSTER, "kubernetes").is_paused = false;
        assert_eq!(scene.sweep_after(60).await, ["POST jobs", "POST notifications"]);
        let (_, metrics) = scene.stop().await;
        let oldest = metrics.iter().filter(|line| line["OldestJobSeconds"].is_u64()).count();
        assert_eq!((oldest, sum(&metrics, "JobsWaiting")), (1, 2), "a pause is no reason for an alarm");
    }

    #[tokio::test]
    async fn in_each_queue_is_repaired_and_one_that_no_agent_serves_is_not() {
        let change = |function: Builder| {
            function.env("BUILDKITE_QUEUE", "kubernetes,gpu").env("SERVE_JOBS_WITHOUT_QUEUE", "true")
        };
        let scene = Scene::with(change).await;
        let rules = [vec!["queue=kubernetes"], vec!["queue=gpu"], vec![], vec!["queue=gpu", "os=plan9"]];
        for (number, rules) in (1..).zip(&rules) {
            scene.lab.buildkite.lock().schedule(&event(number).rules(rules), CLUSTER);
        }
        assert_eq!(scene.sweep_after(60).await, ["POST jobs", "POST jobs", "POST jobs", "POST notifications"]);
        let queue = |number| {
            scene.lab.kubernetes.job(&name(number)).unwrap()["metadata"]["labels"]["buildkite.com/queue"].clone()
        };
        assert_eq!([queue(1), queue(2), queue(3)], ["kubernetes", "gpu", "kubernetes"]);
        scene.stop().await;
    }

    #[tokio::test]
    async fn whose_step_cannot_start_is_refused() {
        let scene = Scene::new().await;
        scene.lab.buildkite.lock().schedule(&event(1).rules(["queue=kubernetes", "cpu=1000"]), CLUSTER);
        scene.sweep_after(60).await;
        assert_eq!((scene.state(1), scene.has_job(1)), ("finished", false));
        scene.stop().await;
    }
}

mod a_job_that_failed {
    use super::*;

    #[tokio::test]
    async fn is_replaced_and_its_job_is_finished_in_the_end() {
        let scene = Scene::new().await;
        scene.create(1).await;
        let first = scene.lab.kubernetes.job(&name(1)).unwrap()["metadata"].clone();
        let replaced = [format!("DELETE {}", name(1)), "POST jobs".to_owned(), "POST notifications".to_owned()];
        // The pause before it, in seconds.
        for (attempt, pause) in [(2, 0), (3, 60), (4, 120), (5, 120), (6, 120)] {
            scene.lab.skip(Duration::from_mins(1));
            scene.end(1, 1);
            if pause > 0 {
                assert_eq!(scene.sweep_after(pause - 5).await, NONE, "attempt {attempt} begins later");
            }
            assert_eq!(scene.sweep_after(pause.min(6)).await, replaced, "attempt {attempt}");
            let job = &scene.lab.kubernetes.job(&name(1)).unwrap()["metadata"];
            assert_eq!(job["labels"][ATTEMPT], attempt.to_string());
            assert_eq!(job["annotations"]["agent-scheduler.buildkite.com/first-created"], first["creationTimestamp"]);
            assert_eq!(job["annotations"]["buildkite.com/commit"], first["annotations"]["buildkite.com/commit"]);
            scene.start_pod(1);
        }
        scene.lab.skip(Duration::from_mins(4));
        scene.end(1, 1);
        assert_eq!(scene.sweep_after(0).await, ["PUT batch-reserve", "POST finish"]);
        {
            let buildkite = scene.lab.buildkite.lock();
            let job = &buildkite.jobs[event(1).job_uuid()];
            assert_eq!(
                (job.state, job.exit_status, job.signal_reason.as_deref()),
                ("finished", Some(-1), Some("stack_error"))
            );
            let detail = job.detail.as_ref().unwrap();
            for words in [
                "6 Kubernetes Jobs for it ended",
                "container agent: exit code 1, Error",
                "kubectl describe job",
                "limit: 0",
            ] {
                assert!(detail.contains(words), "{words} is not in {detail}");
            }
            assert_eq!(job.notifications.len(), 5);
            let expected = "Attempt 2 begins: attempt 1 ended and no agent took the job: container agent ended with exit code 1 (Error)";
            assert_eq!(job.notifications[0].1, expected);
        }
        assert_eq!(scene.sweep_after(60).await, NONE);
        assert!(scene.has_job(1), "left to its TTL");
        let (_, metrics) = scene.stop().await;
        let counts = ["JobsReplaced", "JobsFinished", "SweepsFailed"].map(|name| sum(&metrics, name));
        assert_eq!(counts, [5, 1, 0]);
    }

    #[tokio::test]
    async fn is_replaced_if_its_reservation_is_ours_and_left_if_it_is_anothers() {
        let scene = Scene::new().await;
        for number in [1, 2] {
            scene.create(number).await;
            scene.end(number, 1);
        }
        scene.sweep_after(0).await;
        {
            let mut buildkite = scene.lab.buildkite.lock();
            let until = buildkite.now() + Duration::from_hours(1);
            let ours = buildkite.stack_keys()[0].clone();
            for (number, key) in [(1, ours), (2, "another".to_owned())] {
                buildkite.reserve(event(number).job_uuid(), &key, until);
            }
        }
        scene.sweep_after(60).await;
        assert_eq!((scene.attempt(1), scene.attempt(2)), (json!("2"), Value::Null));
        scene.stop().await;
    }

    #[tokio::test]
    async fn is_replaced_if_the_answer_to_its_delete_is_lost() {
        let scene = Scene::new().await;
        scene.create(1).await;
        scene.end(1, 1);
        scene.lab.kubernetes.inject(When::request("DELETE", "/jobs"), Fault::CutAfter, 1);
        scene.sweep_after(60).await;
        assert_eq!(scene.attempt(1), "2");
        scene.stop().await;
    }

    #[tokio::test]
    async fn and_has_a_finalizer_hands_over_its_attempt_when_its_name_is_free() {
        let scene = Scene::new().await;
        scene.create(1).await;
        scene.end(1, 1);
        scene.lab.kubernetes.change_job(&name(1), |job| job["metadata"]["finalizers"] = json!(["example.com/theirs"]));
        assert_eq!(scene.sweep_after(60).await, ["DELETE ".to_owned() + &name(1), "POST jobs".to_owned()]);
        assert_eq!(scene.sweep_after(60).await, ["POST jobs"], "its name is not free");
        scene.lab.kubernetes.inject(When::request("POST", "/jobs"), Fault::Delay(Duration::from_secs(1)), 1);
        let free = async {
            sleep(Duration::from_millis(500)).await;
            scene.lab.kubernetes.remove_job(&name(1));
        };
        join!(scene.sweep_after(60), free);
        assert_eq!(scene.attempt(1), "2");
        let (log, _) = scene.stop().await;
        assert_eq!(of_level(&log, "ERROR").len(), 0, "{log:#?}");
    }

    #[tokio::test]
    async fn on_a_dead_node_counts_as_failed_and_its_pod_is_not_that_of_the_next_attempt() {
        let scene = Scene::new().await;
        scene.create(1).await;
        let pod = scene.lab.kubernetes.pods()[0].clone();
        let die = |agent: Value| {
            let mut pod = pod.clone();
            pod["metadata"]["deletionTimestamp"] =
                scene.lab.kubernetes.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
            pod["status"]["containerStatuses"][0]["state"] = agent;
            scene.lab.kubernetes.put_pod(pod);
            scene.lab.kubernetes.change_job(&name(1), |job| job["status"]["active"] = 0.into());
        };
        die(json!({"waiting": {}}));
        assert_eq!(scene.sweep_after(55).await, NONE);
        scene.sweep_after(10).await;
        assert_eq!(scene.attempt(1), "2");
        // Its kubelet says nothing more, so that its last word stays.
        die(json!({"running": {}}));
        scene.lab.kubernetes.change_job(&name(1), |job| job["status"]["active"] = 1.into());
        scene.start_pod(1);
        assert_eq!(scene.lab.kubernetes.pods().len(), 2, "the old one and the new one");
        assert_eq!(scene.sweep_after(600).await, NONE, "the second attempt is well");
        scene.set_state(1, "canceled");
        scene.sweep_after(60).await;
        assert!(!scene.has_job(1), "no agent of the second attempt has started");
        scene.stop().await;
    }
}

mod a_job_that_completed {
    use super::*;

    #[tokio::test]
    async fn in_vain_is_replaced_after_longer_pauses_and_its_job_is_finished_at_the_deadline() {
        let scene = Scene::with(|function| function.env("JOB_ACTIVE_DEADLINE_SECONDS", "1200")).await;
        scene.create(1).await;
        for (attempt, pause) in [(2, 60), (3, 120), (4, 240), (5, 240)] {
            scene.lab.skip(Duration::from_mins(1));
            scene.end(1, 0);
            assert_eq!(scene.sweep_after(pause - 5).await, NONE, "attempt {attempt} begins later");
            scene.sweep_after(6).await;
            assert_eq!(scene.attempt(1), attempt.to_string());
            scene.start_pod(1);
        }
        scene.lab.skip(Duration::from_mins(5));
        scene.end(1, 0);
        assert_eq!(scene.sweep_after(0).await, ["PUT batch-reserve", "POST finish"]);
        let job = scene.lab.buildkite.lock().jobs[event(1).job_uuid()].clone();
        assert!(job.detail.as_ref().unwrap().contains("concurrency group"), "{:?}", job.detail);
        assert_eq!(job.notifications.len(), 4);
        scene.stop().await;
    }

    #[tokio::test]
    async fn with_its_job_is_left_to_its_ttl() {
        let scene = Scene::new().await;
        for (number, state) in [(1, "finished"), (2, "running"), (3, "canceled")] {
            scene.create(number).await;
            scene.set_state(number, state);
            scene.end(number, 0);
        }
        assert_eq!(scene.sweep_after(3_600).await, NONE);
        scene.stop().await;
    }
}

mod a_job_that_is_over {
    use super::*;

    #[tokio::test]
    async fn loses_its_job_unless_an_agent_started() {
        let scene = Scene::new().await;
        for number in 1..=4 {
            scene.create(number).await;
            scene.set_state(number, "canceled");
        }
        for (number, agent) in
            [(2, json!({"running": {}})), (3, json!({"terminated": {"startedAt": "2026-01-15T10:00:00Z"}}))]
        {
            scene.lab.kubernetes.start_pod(&name(number), &agent);
        }
        scene.set_state(4, "canceling");
        assert_eq!(scene.sweep_after(0).await, NONE, "they are too young");
        assert_eq!(scene.sweep_after(60).await, ["DELETE ".to_owned() + &name(1)]);
        assert_eq!(
            scene
                .lab
                .kubernetes
                .pods()
                .iter()
                .filter(|pod| pod["metadata"]["name"].as_str().unwrap().starts_with(&name(1)))
                .count(),
            0
        );
        let delete = scene.lab.kubernetes.requests().into_iter().find(|request| request.method == "DELETE").unwrap();
        let options: Value = serde_json::from_str(&delete.body).unwrap();
        assert_eq!(options["propagationPolicy"], "Background");
        assert!(options["preconditions"]["uid"].is_string());
        let (log, metrics) = scene.stop().await;
        assert_eq!(sum(&metrics, "JobsCancelled"), 1);
        let [warning] = &of_level(&log, "WARN")[..] else { panic!("{log:#?}") };
        assert!(warning["message"].as_str().unwrap().contains(&name(2)), "{warning}");
    }
}

mod what_is_not_ours {
    use super::*;

    /// Two stacks, each with its Secret, its token and its Buildkite cluster.
    #[tokio::test]
    async fn is_not_touched_in_a_shared_namespace() {
        const OTHER_CLUSTER: &str = "22222222-2222-4333-8444-555555555505";
        let scene = Scene::new().await;
        scene.lab.aws.put_parameter("/buildkite/other", Parameter::secure_string("bkct_other"));
        {
            let mut buildkite = scene.lab.buildkite.lock();
            buildkite.tokens.insert("bkct_other".to_owned(), (OTHER_CLUSTER.to_owned(), Token::Cluster));
            buildkite.schedule(&event(2), OTHER_CLUSTER);
        }
        let other = builder(&scene.lab)
            .env("STACK", "111122223333:us-east-1:other")
            .env("BUILDKITE_AGENT_TOKEN_PARAMETER_PATH", "/buildkite/other")
            .env("AGENT_TOKEN_SECRET_NAME", "other");
        let other = other.start();
        scene.create(1).await;
        other.succeed(event(2)).await;
        scene.start_pod(2);
        for number in [1, 2] {
            scene.set_state(number, "canceled");
        }
        assert_eq!(scene.sweep_after(60).await, ["DELETE ".to_owned() + &name(1)]);
        assert!(scene.has_job(2));
        other.succeed(Event::sweep()).await;
        assert!(!scene.has_job(2));
        other.stop().await;
        scene.stop().await;
    }

    #[tokio::test]
    async fn is_not_touched_after_the_token_of_another_buildkite_cluster() {
        const OTHER_CLUSTER: &str = "22222222-2222-4333-8444-555555555505";
        let mut scene = Scene::new().await;
        scene.create(1).await;
        scene.create(2).await;
        scene.end(2, 1);
        scene.set_state(1, "canceled");
        {
            let mut buildkite = scene.lab.buildkite.lock();
            buildkite.tokens.insert("bkct_other".to_owned(), (OTHER_CLUSTER.to_owned(), Token::Cluster));
            buildkite.queue(OTHER_CLUSTER, "kubernetes");
        }
        scene.lab.aws.put_parameter(AGENT_TOKEN_PARAMETER, Parameter::secure_string("bkct_other"));
        scene.function = builder(&scene.lab).start();
        assert_eq!(scene.sweep_after(60).await, NONE);
        let (log, _) = scene.stop().await;
        let [warning] = &of_level(&log, "WARN")[..] else { panic!("{log:#?}") };
        let text = warning["message"].as_str().unwrap();
        assert!(text.starts_with("Buildkite does not know the jobs of 1 Jobs") && text.ends_with(&name(1)), "{text}");
    }
}

mod a_permission_that_is_missing {
    use super::*;

    /// A lost event, a Job that failed, and one whose job is over; what a sweep does without that permission.
    async fn without(verb: &str, resource: &str) -> Vec<String> {
        let scene = Scene::new().await;
        scene.create(1).await;
        scene.create(2).await;
        scene.end(1, 1);
        scene.set_state(2, "canceled");
        scene.wait(3);
        scene.lab.kubernetes.forbid(verb, resource);
        let changes = scene.sweep_after(60).await;
        let (log, metrics) = scene.stop().await;
        let [warning] = &of_level(&log, "WARN")[..] else { panic!("{log:#?}") };
        let text = warning["error"].as_str().unwrap();
        for words in
            [format!("cannot {verb} resource \"{resource}\""), "`kubectl apply -f buildkite-role.yaml".to_owned()]
        {
            assert!(text.contains(&words), "{words} is not in {text}");
        }
        assert_eq!((sum(&metrics, "Sweeps"), sum(&metrics, "SweepsFailed")), (0, 1));
        changes
    }

    #[tokio::test]
    async fn keeps_what_needs_it_from_being_done() {
        assert_eq!(without("list", "jobs").await, NONE);
        assert_eq!(without("list", "pods").await, ["POST jobs", "POST notifications"]);
        let (first, second) = (format!("DELETE {}", name(1)), format!("DELETE {}", name(2)));
        assert_eq!(without("delete", "jobs").await, ["POST jobs", &first, &second, "POST notifications"]);
    }
}

mod a_redriven_event {
    use super::*;

    #[tokio::test]
    async fn that_is_older_than_a_finished_job_stays_asks_whether_its_job_waits() {
        let scene = Scene::new().await;
        let jobs = [(1, "scheduled"), (2, "reserved"), (3, "finished"), (4, "running")];
        for (number, state) in jobs {
            scene.wait(number);
            scene.set_state(number, state);
            let until = scene.lab.buildkite.lock().now() + Duration::from_hours(1);
            scene.lab.buildkite.lock().jobs.get_mut(event(number).job_uuid()).unwrap().reservation =
                Some(("other".to_owned(), until));
        }
        let old = |number| event(number).sent(Duration::from_secs(605)).failure_record();
        let messages = batch((1..=5).map(|number| (number, old(number))));
        assert_eq!(scene.function.succeed(messages).await, json!({"batchItemFailures": []}));
        let made: Vec<_> = (1..=5).filter(|number| scene.has_job(*number)).collect();
        assert_eq!(made, [1, 2], "the fifth is unknown");
        let (log, metrics) = scene.stop().await;
        assert_eq!((sum(&metrics, "JobsCreated"), sum(&metrics, "JobsIgnored")), (2, 3));
        let reasons: Vec<_> = log.iter().filter_map(|line| line["reason"].as_str()).collect();
        assert!(reasons.contains(&"no agent has to come any more: Buildkite says running"), "{reasons:?}");
    }

    #[tokio::test]
    async fn that_cannot_be_asked_about_stays_in_the_queue_and_a_young_one_is_not_asked_about() {
        let scene = Scene::with(|function| function.timeout(Duration::from_secs(4))).await;
        scene.wait(1);
        scene.lab.buildkite.inject(When::path("get-states"), Fault::status(500), usize::MAX);
        let young = event(1).sent(Duration::from_secs(590)).failure_record();
        let old = event(2).sent(Duration::from_secs(605)).failure_record();
        let answer = scene.function.succeed(batch([("1", young), ("2", old)])).await;
        assert_eq!(answer, json!({"batchItemFailures": [{"itemIdentifier": "2"}]}));
        assert!(scene.has_job(1) && !scene.has_job(2));
        scene.stop().await;
    }
}

#[tokio::test]
async fn the_secret_is_applied_by_each_sweep() {
    let scene = Scene::new().await;
    scene.sweep_after(0).await;
    scene.lab.kubernetes.remove_secret("buildkite", "buildkite-agent-token");
    scene.sweep_after(60).await;
    assert!(scene.lab.kubernetes.secret("buildkite", "buildkite-agent-token").is_some());
    scene.stop().await;
}

#[tokio::test]
async fn what_there_is_no_time_for_is_left_to_the_next_sweep() {
    let scene = Scene::with(|function| function.timeout(Duration::from_secs(13))).await;
    for number in 1..=50 {
        scene.create(number).await;
        scene.set_state(number, "canceled");
    }
    // Ten at once, and none begins with less than five of the eleven seconds.
    scene.lab.kubernetes.inject(
        When::request("DELETE", "/jobs"),
        Fault::DelayAfter(Duration::from_secs(3)),
        usize::MAX,
    );
    let first = scene.sweep_after(60).await.len();
    assert!((10..50).contains(&first), "{first}");
    scene.lab.kubernetes.clear_faults();
    assert_eq!(scene.sweep_after(60).await.len(), 50 - first);
    let (log, metrics) = scene.stop().await;
    let left: Vec<_> = log.iter().filter_map(|line| line["left"].as_u64()).collect();
    assert_eq!(left, [50 - first as u64, 0]);
    assert_eq!(["JobsCancelled", "Sweeps", "SweepsFailed"].map(|name| sum(&metrics, name)), [50, 2, 0]);
}

#[tokio::test]
async fn a_list_that_cannot_go_on_is_unknown_and_not_empty() {
    let scene = Scene::new().await;
    scene.create(1).await;
    let job = scene.lab.kubernetes.job(&name(1)).unwrap();
    for number in 2..=501 {
        let mut job = job.clone();
        job["metadata"]["name"] = format!("another-{number:03}").into();
        job["metadata"]["uid"] = number.to_string().into();
        scene.lab.kubernetes.put_job(job);
    }
    scene.wait(2);
    scene.set_state(1, "canceled");
    scene.lab.kubernetes.lose_continues();
    assert_eq!(scene.sweep_after(60).await, NONE);
    let (log, metrics) = scene.stop().await;
    assert_eq!(sum(&metrics, "SweepsFailed"), 1);
    let [error] = &of_level(&log, "ERROR")[..] else { panic!("{log:#?}") };
    assert!(error["error"].as_str().unwrap().contains("410"), "{error}");
}
