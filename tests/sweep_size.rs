//! A sweep of ten thousand Jobs, in a process of its own: it needs the machine for some seconds.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod common;
#[path = "sweep/scene.rs"]
mod scene;

use std::{
    fs,
    time::{Duration, Instant},
};

use lab::Function;
use serde_json::json;

use scene::{Scene, event, name, of_level, sum};

const JOBS: u64 = 10_000;

/// Of a list.
const PAGE: u64 = 500;

/// The most memory that the process ever had, in kilobytes.
fn peak(function: &Function) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", function.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn ten_thousand_jobs_fit_in_memory_and_in_time() {
    let scene = Scene::with(|function| function.timeout(Duration::from_mins(1))).await;
    scene.create(1).await;
    let (job, pod) = (scene.lab.kubernetes.job(&name(1)).unwrap(), scene.lab.kubernetes.pods()[0].clone());
    for number in 2..=JOBS {
        scene.wait(number);
        let uuid = event(number).job_uuid().to_owned();
        let of_api_server = format!("00000000-0000-4000-8000-{number:012}");
        let (mut job, mut pod) = (job.clone(), pod.clone());
        for labels in [&mut job["metadata"], &mut pod["metadata"]] {
            labels["labels"]["buildkite.com/job-uuid"] = uuid.as_str().into();
            labels["uid"] = of_api_server.as_str().into();
        }
        job["metadata"]["name"] = name(number).into();
        // The memory has its peak at the last page; the others are quicker without what is not read.
        if number <= JOBS - PAGE {
            job["spec"] = json!({});
        }
        pod["metadata"]["name"] = format!("{}-abcde", name(number)).into();
        pod["metadata"]["ownerReferences"][0]["uid"] = of_api_server.into();
        scene.lab.kubernetes.put_job(job);
        scene.lab.kubernetes.put_pod(pod);
    }
    // One of them at the end of all lists.
    scene.set_state(JOBS, "canceled");
    scene.wait(JOBS + 1);
    let before = peak(&scene.function);
    let began = Instant::now();
    let changes = scene.sweep_after(90).await;
    let took = began.elapsed();
    let memory = peak(&scene.function) - before;
    // Each pod that is not started yet gets a line on its build page, a thousand in a call.
    let lines = changes.iter().filter(|change| *change == "POST notifications").count();
    assert_eq!((&changes[0], lines), (&format!("DELETE {}", name(JOBS)), changes.len() - 1));
    println!("{} MB and {took:?} for {JOBS} Jobs and as many pods", memory / 1024);
    assert!(memory < 64 * 1024, "{memory} kB");
    let asked = scene.lab.buildkite.requests().iter().filter(|request| request.path.ends_with("get-states")).count();
    assert_eq!(asked, 11);
    let (log, metrics) = scene.stop().await;
    assert_eq!(sum(&metrics, "JobsWaiting"), 3_000);
    let [warning] = &of_level(&log, "WARN")[..] else { panic!("{log:#?}") };
    assert!(warning["message"].as_str().unwrap().starts_with("more than 3000 jobs wait in kubernetes"), "{warning}");
}
