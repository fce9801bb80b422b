//! Pods without a way to Buildkite for half an hour: no job is finished, and each runs in the end.

use k8s_openapi::jiff::Timestamp;

use super::*;

/// What an agent needs until it gives up its registration.
const REGISTRATION: i64 = 350;

#[tokio::test]
async fn no_job_is_finished_and_each_runs_in_the_end() {
    let scene = Scene::new().await;
    // Taken just before.
    scene.create(9).await;
    take(&scene, 9);
    for minute in 0..50_u64 {
        // Three jobs, and later one more.
        match minute {
            0 => {
                for number in 1..=3 {
                    scene.create(number).await;
                }
            }
            8 => scene.create(4).await,
            _ => {}
        }
        let is_away = minute < 30;
        for number in (1..=4).filter(|number| scene.has_job(*number)) {
            step(&scene, number, is_away);
        }
        scene.sweep_after(60).await;
        for number in (1..=4).filter(|number| scene.has_job(*number)) {
            assert_ne!(scene.state(number), "finished", "job {number} in minute {minute}");
        }
    }
    assert_eq!([1, 2, 3, 4, 9].map(|number| scene.state(number)), ["running"; 5]);
    let (log, metrics) = scene.stop().await;
    assert_eq!(sum(&metrics, "JobsFinished"), 0);
    let brake = of_level(&log, "ERROR").into_iter().filter_map(|line| line["message"].as_str());
    let brake: Vec<_> = brake.filter(|text| text.contains("jobs are not finished")).collect();
    assert!(!brake.is_empty() && brake[0].contains("exit code 1"), "{log:#?}");
}

fn take(scene: &Scene, number: u64) {
    scene.set_state(number, "running");
    scene.lab.kubernetes.start_pod(&name(number), &json!({"running": {}}));
}

/// What a minute makes of a Job.
fn step(scene: &Scene, number: u64, is_away: bool) {
    let job = scene.lab.kubernetes.job(&name(number)).unwrap();
    let ended = job["status"]["conditions"].is_array();
    if ended || scene.state(number) == "running" {
        return;
    }
    let created: Timestamp = job["metadata"]["creationTimestamp"].as_str().unwrap().parse().unwrap();
    let age = scene.lab.kubernetes.now().duration_since(created).as_secs();
    if !is_away {
        take(scene, number);
    } else if age >= REGISTRATION {
        scene.end(number, 1);
    } else if age < 60 {
        scene.lab.kubernetes.start_pod(&name(number), &json!({"running": {}}));
    }
}
