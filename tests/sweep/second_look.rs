//! What changes between the plan and a step: nothing is done on what was true.

use super::*;

/// A second look at a Job takes a second, in which this happens.
async fn meanwhile(scene: &Scene, change: impl FnOnce()) -> Vec<String> {
    scene.lab.skip(Duration::from_mins(1));
    let look = When::request("GET", format!("/jobs/{}", name(1)));
    scene.lab.kubernetes.inject(look, Fault::Delay(Duration::from_secs(1)), 1);
    let change = async {
        sleep(Duration::from_millis(500)).await;
        assert_eq!(scene.lab.kubernetes.faults_met(), 1, "the second look has begun");
        change();
    };
    join!(scene.sweep_after(0), change).0
}

async fn due(exit_code: i32) -> Scene {
    let scene = Scene::with(|function| function.env("POD_PENDING_SECONDS", "60")).await;
    scene.create(1).await;
    scene.end(1, exit_code);
    scene
}

/// To be finished by the next sweep.
async fn third_attempt() -> Scene {
    let scene = due(1).await;
    scene.make_third_attempt(1);
    scene
}

#[tokio::test]
async fn an_agent_that_takes_the_job_keeps_it_from_being_finished() {
    let scene = third_attempt().await;
    assert_eq!(meanwhile(&scene, || scene.set_state(1, "running")).await, ["PUT batch-reserve"]);
    assert_eq!(scene.state(1), "running");
    let scene = third_attempt().await;
    assert_eq!(meanwhile(&scene, || ()).await, ["PUT batch-reserve", "POST finish"]);
}

#[tokio::test]
async fn an_agent_that_takes_the_job_before_its_finish_keeps_it() {
    let scene = third_attempt().await;
    let finish = Fault::Delay(Duration::from_secs(1));
    scene.lab.buildkite.inject(When::path("/finish"), finish, 1);
    let take = async {
        sleep(Duration::from_millis(700)).await;
        scene.set_state(1, "running");
    };
    let (changes, ()) = join!(scene.sweep_after(60), take);
    assert_eq!((changes, scene.state(1)), (vec!["PUT batch-reserve".to_owned(), "POST finish".to_owned()], "running"));
    let (_, metrics) = scene.stop().await;
    assert_eq!((sum(&metrics, "JobsFinished"), sum(&metrics, "Sweeps")), (0, 1));
}

#[tokio::test]
async fn an_agent_that_starts_keeps_the_job_of_a_job_that_is_over() {
    let scene = Scene::new().await;
    scene.create(1).await;
    scene.set_state(1, "canceled");
    let start = || scene.lab.kubernetes.start_pod(&name(1), &json!({"running": {}}));
    assert_eq!(meanwhile(&scene, start).await, NONE);
    assert!(scene.has_job(1));
}

#[tokio::test]
async fn a_job_that_was_replaced_is_another_one() {
    for end in [true, false] {
        let scene = due(1).await;
        let replace = || {
            let mut job = scene.lab.kubernetes.job(&name(1)).unwrap();
            job["metadata"]["uid"] = "another".into();
            if !end {
                job["status"] = json!({});
            }
            scene.lab.kubernetes.put_job(job);
        };
        assert_eq!(meanwhile(&scene, replace).await, NONE);
    }
}

#[tokio::test]
async fn a_job_that_is_replaced_at_the_last_moment_is_not_deleted() {
    let scene = due(1).await;
    scene.lab.kubernetes.inject(When::request("DELETE", "/jobs"), Fault::Delay(Duration::from_secs(1)), 1);
    let replace = async {
        sleep(Duration::from_millis(700)).await;
        scene.lab.kubernetes.change_job(&name(1), |job| job["metadata"]["uid"] = "another".into());
    };
    let (changes, ()) = join!(scene.sweep_after(60), replace);
    assert_eq!(changes, [format!("DELETE {}", name(1))], "once, and nothing is created");
    assert_eq!(scene.lab.kubernetes.job(&name(1)).unwrap()["metadata"]["uid"], "another");
    let (_, metrics) = scene.stop().await;
    assert_eq!((sum(&metrics, "JobsReplaced"), sum(&metrics, "Sweeps")), (0, 1));
}

#[tokio::test]
async fn a_job_that_goes_is_left() {
    let scene = due(1).await;
    assert_eq!(meanwhile(&scene, || scene.lab.kubernetes.remove_job(&name(1))).await, NONE);
    let scene = due(1).await;
    let delete = || {
        scene
            .lab
            .kubernetes
            .change_job(&name(1), |job| job["metadata"]["deletionTimestamp"] = "2026-01-15T10:00:00Z".into());
    };
    assert_eq!(meanwhile(&scene, delete).await, NONE);
}
