//! A token for each agent: the real binary against the lab's Buildkite, which issues one only as documented.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod common;
#[path = "sweep/scene.rs"]
mod scene;

use std::{process::Command, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use lab::{Actor, Answer, Fault, Lab, When, buildkite::Token, function::Builder};
use serde_json::{Value, json};
use tokio::{join, time::sleep};

use scene::{Scene, builder, event, name, of_level, sum};

const FOR_EVER: usize = usize::MAX;

fn with_tokens(function: Builder) -> Builder {
    function.env("JOB_TOKENS", "true")
}

async fn scene() -> Scene {
    let scene = Scene::with(with_tokens).await;
    scene.function.initialised().await.unwrap();
    scene
}

/// The calls to Buildkite and to the cluster from the start of `from` requests on, by method and last part of the path.
fn calls(lab: &Lab, from: usize) -> Vec<String> {
    let entries = lab.timeline.entries().into_iter();
    let entries = entries.filter(|entry| matches!(entry.actor, Actor::Buildkite | Actor::Kubernetes));
    let calls = entries.filter_map(|entry| {
        let call = entry.call()?;
        let target = call.target.split('?').next().unwrap();
        Some(format!("{} {}", call.verb, target.rsplit('/').next().unwrap()))
    });
    calls.skip(from).collect()
}

/// The Secrets of tokens, each with its token.
fn secrets(lab: &Lab) -> Vec<(Value, String)> {
    let secrets = lab.kubernetes.secrets().into_iter().map(|secret| {
        let token = BASE64_STANDARD.decode(secret["data"]["token"].as_str().unwrap()).unwrap();
        (secret, String::from_utf8(token).unwrap())
    });
    secrets.collect()
}

/// For how many agents Buildkite has made tokens.
fn issued(lab: &Lab) -> usize {
    let buildkite = lab.buildkite.lock();
    buildkite.tokens.values().filter(|(_, token)| matches!(token, Token::Job { .. })).count()
}

/// The Secret that the Job's agent reads.
fn reference(lab: &Lab, job: &str) -> Value {
    let job = lab.kubernetes.job(job).unwrap();
    let env = job.pointer("/spec/template/spec/containers/0/env").unwrap().as_array().unwrap();
    let token = env.iter().find(|variable| variable["name"] == "BUILDKITE_AGENT_TOKEN").unwrap();
    token["valueFrom"]["secretKeyRef"].clone()
}

/// The job has one Job and one Secret, with the only token that Buildkite made for it.
fn has_one_of_each(scene: &Scene, number: u64) {
    let (lab, name) = (&scene.lab, name(number));
    let uid = &lab.kubernetes.job(&name).unwrap()["metadata"]["uid"];
    let secrets =
        secrets(lab).into_iter().filter(|(secret, _)| secret["metadata"]["ownerReferences"][0]["uid"] == *uid);
    let [(secret, token)] = &*secrets.collect::<Vec<_>>() else { panic!("{:#?}", lab.kubernetes.secrets()) };
    assert_eq!(reference(lab, &name), json!({"name": secret["metadata"]["name"], "key": "token"}));
    let buildkite = lab.buildkite.lock();
    assert!(matches!(&buildkite.tokens[token].1, Token::Job { uuid, .. } if uuid == event(number).job_uuid()));
    drop(buildkite);
    assert_eq!(issued(lab), 1);
}

#[tokio::test]
async fn an_agent_gets_a_token_of_its_own_by_four_requests() {
    let scene = scene().await;
    scene.wait(1);
    let before = calls(&scene.lab, 0).len();
    assert_eq!(scene.function.succeed(event(1)).await["outcome"], "created");
    let made = ["PUT batch-reserve", "POST jobs", "POST job-acquisition-tokens", "POST secrets"];
    assert_eq!(calls(&scene.lab, before), made);
    has_one_of_each(&scene, 1);
    let (secret, token) = secrets(&scene.lab).remove(0);
    let metadata = &secret["metadata"];
    assert!(metadata["name"].as_str().unwrap().starts_with(&format!("{}-", name(1))), "{metadata}");
    let job = scene.lab.kubernetes.job(&name(1)).unwrap();
    let owner = json!({
        "apiVersion": "batch/v1", "kind": "Job", "name": name(1), "uid": job["metadata"]["uid"], "controller": true,
    });
    assert_eq!(metadata["ownerReferences"], json!([owner]));
    for label in ["app.kubernetes.io/managed-by", "agent-scheduler.buildkite.com/stack", "buildkite.com/job-uuid"] {
        assert_eq!(metadata["labels"][label], job["metadata"]["labels"][label]);
    }
    assert_eq!((&secret["immutable"], token.starts_with("bkjat_")), (&json!(true), true));
    let (log, metrics) = scene.stop().await;
    assert_eq!((sum(&metrics, "JobsCreated"), of_level(&log, "WARN").len()), (1, 0));
}

#[tokio::test]
async fn a_token_lives_an_hour_like_its_reservation() {
    let scene = scene().await;
    scene.wait(1);
    scene.function.succeed(event(1)).await;
    let buildkite = scene.lab.buildkite.lock();
    let now = buildkite.now();
    let (_, until) = buildkite.jobs[event(1).job_uuid()].reservation.clone().unwrap();
    let mut tokens = buildkite.tokens.values();
    let Some(Token::Job { expires_at, .. }) =
        tokens.find_map(|(_, token)| matches!(token, Token::Job { .. }).then_some(token))
    else {
        panic!("no token")
    };
    for time in [until, *expires_at] {
        let minutes = time.duration_since(now).as_mins();
        assert!((55..=60).contains(&minutes), "{minutes}");
    }
}

#[tokio::test]
async fn an_event_that_comes_again_makes_no_second_token() {
    let scene = scene().await;
    scene.wait(1);
    let (one, other) = join!(scene.function.succeed(event(1)), async {
        scene.lab.skip(Duration::ZERO);
    });
    assert_eq!((one["outcome"].as_str(), other), (Some("created"), ()));
    for skip in [0, 120] {
        scene.lab.skip(Duration::from_secs(skip));
        assert_eq!(scene.function.succeed(event(1)).await["outcome"], "already-exists");
        has_one_of_each(&scene, 1);
    }
    scene.set_state(1, "running");
    let answer = scene.function.succeed(event(1)).await;
    assert_eq!(answer["outcome"], "ignored");
    assert!(answer["reason"].as_str().unwrap().contains("it is running"), "{answer}");
    has_one_of_each(&scene, 1);
    scene.stop().await;
}

#[tokio::test]
async fn a_definition_that_brings_a_token_needs_no_reservation() {
    let scene = Scene::with(with_tokens).await;
    let env = json!([{"name": "BUILDKITE_AGENT_TOKEN", "value": "file:///var/run/token"}]);
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "agent", "image": "i", "env": env}]});
    scene.lab.kubernetes.put_pod_template(json!({"metadata": {"name": "own"}, "template": {"spec": spec}}));
    let event = event(1).rules(["queue=kubernetes", "pod-definition=own"]);
    assert_eq!(scene.function.succeed(&event).await["outcome"], "created");
    let calls = calls(&scene.lab, 0);
    assert!(!calls.iter().any(|call| call.contains("reserve") || call.contains("tokens")), "{calls:?}");
    scene.stop().await;
}

#[tokio::test]
async fn what_buildkite_does_not_reserve_is_deferred_or_ignored() {
    let scene = scene().await;
    // Reserved by another stack, held, over, and of another Buildkite cluster.
    let cases = [("reserved", "it is reserved"), ("accepted", "it is accepted"), ("canceled", "it is canceled")];
    for (number, (state, words)) in (1..).zip(cases) {
        scene.wait(number);
        {
            let mut buildkite = scene.lab.buildkite.lock();
            let until = buildkite.now() + Duration::from_hours(1);
            let job = buildkite.jobs.get_mut(event(number).job_uuid()).unwrap();
            (job.state, job.reservation) = (state, Some(("other".to_owned(), until)));
        }
        let answer = scene.function.succeed(event(number)).await;
        assert_eq!(answer["outcome"], "ignored", "{answer}");
        assert!(answer["reason"].as_str().unwrap().contains(words), "{answer}");
    }
    let answer = scene.function.succeed(event(9)).await;
    assert!(answer["reason"].as_str().unwrap().contains("it is unknown there"), "{answer}");
    assert_eq!(scene.lab.kubernetes.jobs().len(), 0);
    scene.stop().await;
}

#[tokio::test]
async fn a_rate_limit_defers_the_job_to_the_sweep_after_one_more_attempt() {
    let scene = scene().await;
    scene.wait(1);
    scene.lab.buildkite.inject(When::path("batch-reserve"), Fault::status(429), FOR_EVER);
    let answer = scene.function.succeed(event(1)).await;
    assert_eq!(answer, json!({"outcome": "deferred", "reason": "Buildkite's rate limit for reservations is reached"}));
    assert_eq!(scene.lab.buildkite.faults_met(), 2);
    assert!(!scene.has_job(1));
    scene.lab.buildkite.clear_faults();
    scene.sweep_after(60).await;
    has_one_of_each(&scene, 1);
    let (log, metrics) = scene.stop().await;
    assert_eq!((sum(&metrics, "JobsDeferred"), sum(&metrics, "JobsRepaired"), sum(&metrics, "JobsFailed")), (1, 1, 0));
    assert_eq!(of_level(&log, "ERROR").len(), 0, "{log:#?}");
}

#[tokio::test]
async fn without_a_sweep_a_rate_limit_is_an_error() {
    let scene = Scene::with(|function| with_tokens(function).env("SWEEP_ENABLED", "false")).await;
    scene.wait(1);
    scene.lab.buildkite.inject(When::path("batch-reserve"), Fault::status(429), FOR_EVER);
    let (kind, text) = scene.function.fail(event(1)).await;
    assert_eq!(kind, "BuildkiteUnavailable");
    assert!(text.contains("rate limit") && text.contains("set SweepEnabled to true"), "{text}");
    scene.stop().await;
}

/// The agent token is no substitute: the Job goes, and the next delivery makes it again.
#[tokio::test]
async fn a_job_whose_agent_gets_no_token_is_deleted_by_its_maker() {
    let (tokens, secrets) = ("/job-acquisition-tokens", "/secrets");
    let cases = [
        (tokens, Some(Fault::status(422)), "BuildkiteUnavailable", "makes no token"),
        (secrets, Some(Fault::status(403)), "RejectedByApiServer", "cannot create Secret"),
        (secrets, Some(Fault::invalid("no")), "RejectedByApiServer", "cannot create Secret"),
        (tokens, None, "BuildkiteUnavailable", "its reservation is over"),
    ];
    for (path, fault, kind, words) in cases {
        let case = format!("{path} {fault:?}");
        let scene = scene().await;
        scene.wait(1);
        let lab = &scene.lab;
        let is_answered = fault.is_some();
        let fault = fault.unwrap_or(Fault::Delay(Duration::from_secs(1)));
        lab.kubernetes.inject(When::request("POST", path), fault.clone(), FOR_EVER);
        lab.buildkite.inject(When::request("POST", path), fault, FOR_EVER);
        let expire = async {
            while !is_answered && lab.buildkite.faults_met() == 0 {
                sleep(Duration::from_millis(10)).await;
            }
            if !is_answered {
                scene.set_state(1, "scheduled");
            }
        };
        let ((failed, text), ()) = join!(scene.function.fail(event(1)), expire);
        assert_eq!(failed, kind, "{case}: {text}");
        assert!(text.contains(words), "{case}: {text}");
        assert!(!scene.has_job(1) && lab.kubernetes.secrets().is_empty(), "{case}");
        lab.kubernetes.clear_faults();
        lab.buildkite.clear_faults();
        assert_eq!(scene.function.succeed(event(1)).await["outcome"], "created", "{case}");
        assert!(scene.notifications(1)[0].contains("tries again"), "{case}: {:?}", scene.notifications(1));
        scene.stop().await;
    }
}

/// A container that runs already, such as a native sidecar.
#[tokio::test]
async fn a_job_of_which_a_container_has_started_is_not_deleted() {
    let scene = scene().await;
    scene.wait(1);
    scene.lab.buildkite.inject(When::path("/job-acquisition-tokens"), Fault::Delay(Duration::from_secs(1)), 1);
    scene.lab.kubernetes.inject(When::request("POST", "/secrets"), Fault::status(403), 1);
    let start = async {
        while scene.lab.buildkite.faults_met() == 0 {
            sleep(Duration::from_millis(10)).await;
        }
        scene.lab.kubernetes.start_pod(&name(1), &json!({"running": {}}));
    };
    let (failure, ()) = join!(scene.function.fail(event(1)), start);
    assert_eq!(failure.0, "RejectedByApiServer");
    assert!(scene.has_job(1));
    scene.lab.skip(Duration::from_mins(1));
    assert_eq!(scene.function.succeed(event(1)).await["outcome"], "already-exists");
    assert_eq!(secrets(&scene.lab).len(), 1);
    scene.stop().await;
}

/// The function is killed while a request is under way, or after it was carried out. Then the event comes again, a minute later once more,
/// or only sweeps look.
#[tokio::test]
async fn a_function_that_is_killed_at_any_request_leaves_one_job_with_one_secret() {
    for path in ["/batch-reserve", "/jobs", "/job-acquisition-tokens", "/secrets"] {
        for is_carried_out in [false, true] {
            join!(kill_at(path, is_carried_out, true), kill_at(path, is_carried_out, false));
        }
    }
}

async fn kill_at(path: &str, is_carried_out: bool, is_redelivered: bool) {
    let case = format!("{path}, carried out: {is_carried_out}, redelivered: {is_redelivered}");
    let mut scene = scene().await;
    scene.wait(1);
    let lab = &scene.lab;
    let fault = if is_carried_out { Fault::DelayAfter } else { Fault::Delay }(Duration::from_mins(1));
    lab.kubernetes.inject(When::path(path), fault.clone(), 1);
    lab.buildkite.inject(When::path(path), fault, 1);
    let kill = async {
        while lab.kubernetes.faults_met() + lab.buildkite.faults_met() == 0 {
            sleep(Duration::from_millis(5)).await;
        }
        // What is carried out is carried out by then.
        sleep(Duration::from_millis(200)).await;
        let pid = scene.function.pid().to_string();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    };
    let (answer, ()) = join!(scene.function.invoke(event(1)), kill);
    assert!(matches!(answer, Answer::Exited(_)), "{case}: {answer:?}");
    lab.kubernetes.clear_faults();
    lab.buildkite.clear_faults();
    scene.function = with_tokens(builder(&scene.lab)).start();

    let has_job = scene.has_job(1);
    let has_secret = !scene.lab.kubernetes.secrets().is_empty();
    assert_eq!(has_job, path != "/batch-reserve" && (path != "/jobs" || is_carried_out), "{case}");
    assert_eq!(has_secret, path == "/secrets" && is_carried_out, "{case}");
    if is_redelivered {
        let expected = if has_secret {
            "already-exists"
        } else if has_job {
            "deferred"
        } else {
            "created"
        };
        assert_eq!(scene.function.succeed(event(1)).await["outcome"], expected, "{case}");
        scene.lab.skip(Duration::from_mins(1));
        assert_eq!(scene.function.succeed(event(1)).await["outcome"], "already-exists", "{case}");
    } else if has_job {
        if !has_secret {
            scene.lacks_secret(1);
        }
        scene.sweep_after(60).await;
    } else {
        scene.sweep_after(60).await;
        assert_eq!(
            scene.has_job(1),
            path == "/batch-reserve" && !is_carried_out,
            "{case}: no list shows what is reserved"
        );
        scene.sweep_after(3_600).await;
    }
    let made = secrets(&scene.lab);
    assert_eq!((made.len(), scene.lab.kubernetes.jobs().len()), (1, 1), "{case}");
    assert_eq!(made[0].0["metadata"]["name"], reference(&scene.lab, &name(1))["name"], "{case}");
    // Buildkite made one that got lost with the function.
    let is_lost = path == "/secrets" && !is_carried_out || path == "/job-acquisition-tokens" && is_carried_out;
    assert_eq!(issued(&scene.lab), 1 + usize::from(is_lost), "{case}");
    scene.sweep_after(60).await;
    assert_eq!(secrets(&scene.lab).len(), 1, "{case}");
    scene.stop().await;
}

impl Scene {
    /// The kubelet does not find the Secret of a Job.
    fn lacks_secret(&self, number: u64) {
        let secret = reference(&self.lab, &name(number))["name"].as_str().unwrap().to_owned();
        self.start_pod(number);
        self.agent_waits(number, "CreateContainerConfigError", &format!("secret \"{secret}\" not found"));
    }
}

#[tokio::test]
async fn an_answer_that_is_lost_leaves_one_job_with_one_token() {
    for path in ["/jobs", "/secrets"] {
        for fault in [Fault::CutAfter, Fault::CutWithin, Fault::Garbage, Fault::Empty] {
            let scene = scene().await;
            scene.wait(1);
            scene.lab.kubernetes.inject(When::request("POST", path), fault.clone(), 1);
            assert_eq!(scene.function.succeed(event(1)).await["outcome"], "created", "{path} {fault:?}");
            has_one_of_each(&scene, 1);
            scene.stop().await;
        }
    }
}

#[tokio::test]
async fn the_sweep_reserves_fifty_jobs_and_gets_their_tokens_by_one_call_each() {
    let scene = scene().await;
    let jobs = 1..=60;
    jobs.clone().for_each(|number| scene.wait(number));
    let changes = scene.sweep_after(60).await;
    let count = |call: &str| changes.iter().filter(|change| *change == call).count();
    assert_eq!((count("PUT batch-reserve"), count("POST job-acquisition-tokens")), (2, 2), "{changes:?}");
    assert_eq!((count("POST jobs"), count("POST secrets")), (60, 60));
    for number in jobs {
        let secret = &reference(&scene.lab, &name(number))["name"];
        assert!(scene.lab.kubernetes.secret("buildkite", secret.as_str().unwrap()).is_some(), "{number}");
    }
    let (log, metrics) = scene.stop().await;
    assert_eq!((sum(&metrics, "JobsRepaired"), of_level(&log, "ERROR").len()), (60, 0));
}

#[tokio::test]
async fn a_job_that_the_sweep_reserves_and_cannot_make_is_an_error_with_its_uuid() {
    let scene = scene().await;
    scene.wait(1);
    scene.lab.kubernetes.inject(When::request("POST", "/jobs"), Fault::status(403), FOR_EVER);
    scene.sweep_after(60).await;
    let (log, _) = scene.stop().await;
    let errors = of_level(&log, "ERROR");
    let hidden = errors.iter().find(|line| line["message"].as_str().unwrap().starts_with("reserved at Buildkite"));
    assert_eq!(hidden.unwrap()["jobs"], event(1).job_uuid());
}

/// Kueue suspends it, or its pod has a gate: a token would end before its agent starts.
#[tokio::test]
async fn a_job_that_is_held_back_gets_its_token_once_its_pod_asks_for_it() {
    let scene = Scene::with(|function| with_tokens(function).timeout(Duration::from_secs(30))).await;
    let container = json!({"name": "agent", "image": "i"});
    let spec = json!({"schedulingGates": [{"name": "g"}], "restartPolicy": "Never", "containers": [container]});
    scene.lab.kubernetes.put_pod_template(json!({"metadata": {"name": "gated"}, "template": {"spec": spec}}));
    let event = event(1).rules(["queue=kubernetes", "pod-definition=gated"]);
    scene.lab.buildkite.lock().schedule(&event, lab::buildkite::CLUSTER);
    assert_eq!(scene.function.succeed(&event).await["outcome"], "created");
    scene.sweep_after(60).await;
    assert_eq!((issued(&scene.lab), scene.lab.kubernetes.secrets().len()), (0, 0));
    scene.lab.kubernetes.change_job(&name(1), |job| job["spec"]["template"]["spec"]["schedulingGates"] = json!([]));
    scene.lacks_secret(1);
    let changes = scene.sweep_after(60).await;
    assert_eq!(changes, ["POST secrets", "POST secrets", "PUT batch-reserve", "POST job-acquisition-tokens"]);
    has_one_of_each(&scene, 1);
    scene.stop().await;
}

/// The Secret of the first Job goes with it.
#[tokio::test]
async fn each_attempt_has_a_token_of_its_own() {
    let scene = scene().await;
    scene.wait(1);
    scene.function.succeed(event(1)).await;
    scene.start_pod(1);
    let first = secrets(&scene.lab).remove(0).1;
    scene.end(1, 1);
    scene.sweep_after(60).await;
    let second = secrets(&scene.lab);
    assert_eq!((second.len(), scene.attempt(1)), (1, json!("2")));
    assert_ne!(second[0].1, first);
    let (_, metrics) = scene.stop().await;
    assert_eq!(sum(&metrics, "JobsReplaced"), 1);
}

#[tokio::test]
async fn the_shared_secret_is_not_applied_and_one_of_before_is_reported_once() {
    let lab = Lab::start().await;
    lab.kubernetes.put_secret_as("agent-scheduler:x", "buildkite", "buildkite-agent-token", "token", "bkct_old");
    let scene = Scene { function: with_tokens(builder(&lab)).start(), lab };
    scene.wait(1);
    scene.function.succeed(event(1)).await;
    scene.sweep_after(60).await;
    let requests = scene.lab.kubernetes.requests();
    assert!(requests.iter().all(|request| request.method != "PATCH"), "{requests:?}");
    let (log, _) = scene.stop().await;
    let [warning] = &*of_level(&log, "WARN") else { panic!("{log:#?}") };
    let text = warning["message"].as_str().unwrap();
    assert!(text.contains("kubectl delete secret buildkite-agent-token --namespace buildkite"), "{text}");
}

/// A Job of before the switch keeps the agent token, and gets no other.
#[tokio::test]
async fn jobs_of_both_kinds_are_in_the_cluster_at_the_same_time() {
    let scene = Scene::new().await;
    scene.create(1).await;
    let scene = Scene { function: with_tokens(builder(&scene.lab)).start(), ..scene };
    assert_eq!(scene.function.succeed(event(1)).await["outcome"], "already-exists");
    scene.wait(2);
    assert_eq!(scene.function.succeed(event(2)).await["outcome"], "created");
    assert_eq!(issued(&scene.lab), 1);
    let scene = Scene { function: builder(&scene.lab).start(), ..scene };
    scene.wait(3);
    scene.function.succeed(event(3)).await;
    for (number, is_shared) in [(1, true), (2, false), (3, true)] {
        assert_eq!(reference(&scene.lab, &name(number))["name"] == "buildkite-agent-token", is_shared, "{number}");
    }
    scene.stop().await;
}
