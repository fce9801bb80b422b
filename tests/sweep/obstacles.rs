//! What is in the way of a Job: the build page says it, and then the job is finished and its Job deleted.

use super::*;

const FINISHED: [&str; 2] = ["PUT batch-reserve", "POST finish"];
const NOT_FOUND: &str = "docker.io/library/missing:1: not found";

/// What the sweep changes where it finishes a job.
fn finished(number: u64) -> Vec<String> {
    [format!("DELETE {}", name(number))].into_iter().chain(FINISHED.map(str::to_owned)).collect()
}

/// A job whose agent waits in vain, for this reason.
async fn waits(scene: &Scene, number: u64, message: &str) {
    scene.create(number).await;
    scene.agent_waits(number, "ErrImagePull", message);
}

#[tokio::test]
async fn an_image_that_does_not_exist_is_reported_and_the_job_finished_and_then_deleted() {
    let scene = Scene::new().await;
    waits(&scene, 1, NOT_FOUND).await;
    assert_eq!(scene.sweep_after(30).await, ["POST notifications"]);
    assert_eq!(scene.sweep_after(55).await, NONE, "once");
    assert_eq!(scene.sweep_after(20).await, finished(1));
    assert_eq!((scene.state(1), scene.has_job(1)), ("finished", false));
    let [line] = &scene.notifications(1)[..] else { panic!() };
    assert!(line.starts_with("the pod cannot start: container agent: waits, ErrImagePull: docker.io"), "{line}");
    assert!(line.contains(" More: kubectl describe pod ") && line.chars().count() <= 255, "{line}");
    let detail = scene.detail(1);
    for words in ["its pod cannot start", NOT_FOUND, "Pod definition: PodTemplate default in", "stack_error"] {
        assert!(detail.contains(words), "{words} is not in {detail}");
    }
    let (log, metrics) = scene.stop().await;
    assert_eq!((sum(&metrics, "JobsFinished"), of_level(&log, "ERROR").len()), (1, 0));
}

#[tokio::test]
async fn a_job_that_cannot_be_finished_keeps_its_job() {
    let scene = Scene::new().await;
    waits(&scene, 1, NOT_FOUND).await;
    scene.lab.buildkite.inject(When::path("/finish"), Fault::status(422), 1);
    assert_eq!(scene.sweep_after(100).await, FINISHED);
    assert!(scene.has_job(1));
    scene.lab.kubernetes.inject(When::request("DELETE", "/jobs"), Fault::status(403), 1);
    assert_eq!(scene.sweep_after(1).await, finished(1), "its Job is deleted by the next sweep");
    assert_eq!((scene.state(1), scene.has_job(1)), ("finished", true));
    assert_eq!(scene.sweep_after(60).await, [format!("DELETE {}", name(1))]);
    scene.stop().await;
}

#[tokio::test]
async fn a_container_that_starts_before_the_second_look_keeps_its_job() {
    let scene = Scene::new().await;
    waits(&scene, 1, NOT_FOUND).await;
    scene.lab.kubernetes.inject(
        When::request("GET", format!("/jobs/{}", name(1))),
        Fault::Delay(Duration::from_secs(1)),
        1,
    );
    let start = async {
        sleep(Duration::from_millis(600)).await;
        scene.change_pod(1, |pod| pod["status"]["containerStatuses"][0]["state"] = json!({"running": {}}));
    };
    assert_eq!(join!(scene.sweep_after(100), start).0, NONE);
    assert_eq!(scene.state(1), "scheduled");
    scene.stop().await;
}

#[tokio::test]
async fn a_pull_that_takes_long_and_a_job_that_runs_are_left() {
    let scene = Scene::new().await;
    scene.create(1).await;
    scene.create(2).await;
    scene.set_state(2, "running");
    scene.change_pod(2, |pod| pod["status"]["containerStatuses"][0]["state"] = json!({"running": {}}));
    let mut lines = 0;
    scene.sweep_after(30).await;
    for _ in 0..12 {
        let changes = scene.sweep_after(60).await;
        lines += changes.len();
        assert!(changes.iter().all(|change| change == "POST notifications"), "{changes:?}");
    }
    assert_eq!((lines, scene.notifications(1).len(), scene.notifications(2).len()), (1, 1, 0));
    assert_eq!(scene.sweep_after(160).await, finished(1), "PodPendingSeconds");
    assert_eq!((scene.state(2), scene.has_job(2)), ("running", true));
    scene.stop().await;
}

#[tokio::test]
async fn a_registry_that_is_away_finishes_nothing() {
    let scene = Scene::new().await;
    for number in 1..=3 {
        waits(&scene, number, "503 Service Unavailable").await;
    }
    assert_eq!(scene.sweep_after(30).await, ["POST notifications"]);
    for _ in 0..20 {
        let changes = scene.sweep_after(60).await;
        assert!(changes.iter().all(|change| change == "POST notifications"), "{changes:?}");
    }
    assert_eq!([1, 2, 3].map(|number| scene.state(number)), ["scheduled"; 3]);
    let lines = scene.notifications(1);
    let [first, second] = &lines[..] else { panic!("{lines:#?}") };
    assert!(first.contains("503") && second.starts_with("Jobs of 3 builds cannot start"), "{lines:#?}");
    let (log, metrics) = scene.stop().await;
    assert_eq!(sum(&metrics, "JobsFinished"), 0);
    let errors = of_level(&log, "ERROR");
    assert!(!errors.is_empty() && errors[0]["message"].as_str().unwrap().contains("503"), "{errors:#?}");
}

/// Room for four, and each job takes longer than `PodPendingSeconds`.
#[tokio::test]
async fn forty_jobs_wait_for_the_room_of_four_however_long() {
    let scene = Scene::new().await;
    for number in 1..=44 {
        scene.create(number).await;
        scene.change_pod(number, |pod| {
            if number <= 4 {
                pod["status"]["phase"] = "Running".into();
                pod["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
            } else {
                let condition = json!({"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 Too many pods."});
                pod["spec"] = json!({});
                pod["status"] = json!({"phase": "Pending", "conditions": [condition]});
            }
        });
        scene.set_state(number, if number <= 4 { "running" } else { "scheduled" });
    }
    for _ in 0..20 {
        let changes = scene.sweep_after(60).await;
        assert!(changes.iter().all(|change| change == "POST notifications"), "{changes:?}");
    }
    let [line] = &scene.notifications(44)[..] else { panic!("{:?}", scene.notifications(44)) };
    assert!(line.starts_with("the pod waits for a node: 0/1 nodes are available"), "{line}");
    assert!((5..=44).all(|number| scene.state(number) == "scheduled" && scene.has_job(number)));
    scene.stop().await;
}

#[tokio::test]
async fn a_suspended_job_is_left_and_counts_from_its_start() {
    let scene = Scene::new().await;
    scene.wait(1);
    scene.function.succeed(event(1)).await;
    let now = || scene.lab.kubernetes.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let suspended = now();
    scene.lab.kubernetes.change_job(&name(1), |job| {
        job["spec"]["suspend"] = true.into();
        job["status"]["conditions"] = json!([{"type": "Suspended", "status": "True", "lastTransitionTime": suspended}]);
    });
    assert_eq!(scene.sweep_after(45).await, ["POST notifications"]);
    for _ in 0..3 {
        assert_eq!(scene.sweep_after(900).await, NONE);
    }
    let resumed = now();
    scene.lab.kubernetes.change_job(&name(1), |job| {
        job["spec"]["suspend"] = false.into();
        job["status"] = json!({"startTime": resumed, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {}});
    });
    assert_eq!(scene.sweep_after(25).await, NONE);
    let uid = scene.lab.kubernetes.job(&name(1)).unwrap()["metadata"]["uid"].clone();
    scene.report(&uid, "", "FailedCreate", "exceeded quota: small");
    assert_eq!(scene.sweep_after(30).await, ["POST notifications"]);
    assert_eq!(scene.sweep_after(830).await, NONE);
    assert_eq!(scene.sweep_after(30).await, finished(1));
    assert!(scene.detail(1).contains("FailedCreate: exceeded quota: small"), "{}", scene.detail(1));
    scene.stop().await;
}

#[tokio::test]
async fn an_agent_that_takes_no_job_is_finished_and_then_deleted_unless_it_takes_it_at_last() {
    let scene = Scene::new().await;
    for number in [1, 2] {
        scene.create(number).await;
        scene.change_pod(number, |pod| {
            pod["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
            scene.report(&pod["metadata"]["uid"], "spec.containers{agent}", "Started", "Started container agent");
        });
    }
    // The brake is for several builds.
    scene.set_state(2, "running");
    assert_eq!(scene.sweep_after(70).await, ["POST notifications"]);
    assert_eq!(scene.sweep_after(800).await, NONE);
    scene.lab.buildkite.inject(When::path("/finish"), Fault::Delay(Duration::from_secs(1)), 1);
    let take = async {
        sleep(Duration::from_millis(700)).await;
        scene.set_state(1, "running");
    };
    assert_eq!(join!(scene.sweep_after(60), take).0, FINISHED);
    assert!(scene.has_job(1));
    scene.set_state(1, "scheduled");
    assert_eq!(scene.sweep_after(60).await, finished(1));
    assert_eq!((scene.state(1), scene.has_job(1), scene.has_job(2)), ("finished", false, true));
    scene.stop().await;
}

#[tokio::test]
async fn without_finishes_the_build_page_only_has_lines() {
    let scene = Scene::with(|function| function.env("SWEEP_FINISHES", "false")).await;
    waits(&scene, 1, NOT_FOUND).await;
    assert_eq!(scene.sweep_after(30).await, ["POST notifications"]);
    assert_eq!(scene.sweep_after(80).await, ["POST notifications"]);
    assert_eq!(scene.sweep_after(900).await, NONE);
    let lines = scene.notifications(1);
    assert!(lines[1].starts_with("Not finished, since SweepFinishes is false: the pod cannot start"), "{lines:#?}");
    assert_eq!((scene.state(1), scene.has_job(1)), ("scheduled", true));
    scene.stop().await;
}

#[tokio::test]
async fn without_events_a_job_is_reported_and_not_finished() {
    let scene = Scene::new().await;
    waits(&scene, 1, NOT_FOUND).await;
    scene.lab.kubernetes.forbid("list", "events");
    assert_eq!(scene.sweep_after(70).await, ["POST notifications"]);
    assert_eq!(scene.sweep_after(2_000).await, NONE);
    let (log, metrics) = scene.stop().await;
    assert_eq!((sum(&metrics, "SweepsFailed"), sum(&metrics, "JobsFinished")), (2, 0));
    let [warning, _] = &of_level(&log, "WARN")[..] else { panic!("{log:#?}") };
    assert!(warning["error"].as_str().unwrap().contains("cannot list resource \"events\""), "{warning}");
}
