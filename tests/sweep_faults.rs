//! Every failure mode at every call of a sweep, once and for ever: a lab and a process for each cell.
//!
//! The sweep has one of each to do: a lost event, a Job that failed, a job that is over, and one that is to be finished. Each cell
//! checks the same. The sweep succeeds, or says that it has failed, in time. Healthy Jobs stay. No secret is in what was printed. And
//! without the fault the next sweeps bring everything to its end, with one finish.

mod common;
#[path = "sweep/scene.rs"]
mod scene;

use std::{mem, time::Duration};

use lab::{Answer, Event, Fault, Lab, When, buildkite::CLUSTER, fault::ErrorAnswer};
use serde_json::json;
use tokio::task::JoinSet;

use common::leaks;
use scene::{Scene, builder, event, name, sum};

/// Most cells wait most of the time.
const CELLS_AT_ONCE: usize = 16;

/// Of which two seconds are reserved, and half of the rest is for the look.
const TIMEOUT: Duration = Duration::from_secs(16);

const FOR_EVER: usize = usize::MAX;

/// The calls of a sweep, in their order, but for the EKS token's and the SSM parameter's, which are of the start.
const CALLS: [(&str, &str, &str); 12] = [
    ("register", "POST", "/register"),
    ("queue", "GET", "/scheduled-jobs"),
    ("Secret", "PATCH", "/secrets"),
    ("Jobs", "GET", "/jobs"),
    ("pods", "GET", "/pods"),
    ("states", "POST", "/get-states"),
    ("Job", "GET", "/jobs/buildkite-"),
    ("delete", "DELETE", "/jobs"),
    ("create", "POST", "/jobs"),
    ("notify", "POST", "/notifications"),
    ("reserve", "PUT", "/batch-reserve"),
    ("finish", "POST", "/finish"),
];

fn modes() -> Vec<(&'static str, Fault)> {
    let retry_after =
        |seconds| ErrorAnswer { code: 429, retry_after: Some(Duration::from_secs(seconds)), ..ErrorAnswer::default() };
    let mut modes = vec![
        ("reset before", Fault::ResetBefore),
        ("reset after", Fault::ResetAfter),
        ("cut within", Fault::CutWithin),
        ("hang", Fault::Delay(Duration::from_mins(1))),
        ("late", Fault::DelayAfter(Duration::from_mins(1))),
        ("garbage", Fault::Garbage),
        ("empty", Fault::Empty),
        ("429 after 1 s", Fault::Status(retry_after(1))),
        ("429 after 1 min", Fault::Status(retry_after(60))),
    ];
    let codes = [
        ("401", 401),
        ("403", 403),
        ("404", 404),
        ("409", 409),
        ("422", 422),
        ("429", 429),
        ("500", 500),
        ("503", 503),
    ];
    modes.extend(codes.map(|(name, code)| (name, Fault::status(code))));
    modes
}

/// What is wrong in a cell.
async fn cell(call: (&'static str, &'static str, &'static str), fault: Fault, times: usize) -> Vec<String> {
    let mut problems = Vec::new();
    let mut check = |holds: bool, problem: String| {
        if !holds {
            problems.push(problem);
        }
    };
    let lab = Lab::start().await;
    // All of one build, so that there is no brake.
    let function = builder(&lab).env("POD_PENDING_SECONDS", "60").timeout(TIMEOUT).start();
    let mut scene = Scene { lab, function };
    for number in 1..=5 {
        let of_one_build = event(number).detail(|detail| detail["build"]["number"] = 1.into());
        scene.lab.buildkite.lock().schedule(&of_one_build, CLUSTER);
        assert_eq!(scene.function.succeed(&of_one_build).await["outcome"], "created");
        scene.start_pod(number);
    }
    scene.end(1, 1);
    scene.set_state(2, "canceled");
    scene.end(3, 1);
    scene.make_third_attempt(3);
    scene.set_state(4, "running");
    // The agent of job 5 is about to take it.
    for number in [4, 5] {
        scene.lab.kubernetes.start_pod(&name(number), &json!({"running": {}}));
    }
    scene.wait(6);
    let uid = |scene: &Scene, number| scene.lab.kubernetes.job(&name(number)).map(|job| job["metadata"]["uid"].clone());
    let healthy = [4, 5].map(|number| uid(&scene, number));
    scene.lab.skip(Duration::from_mins(2));
    scene.function.take_lines();

    let (_, method, path) = call;
    let server = if path.contains("jobs") && path != "/scheduled-jobs" || path == "/pods" || path == "/secrets" {
        &*scene.lab.kubernetes
    } else {
        &*scene.lab.buildkite
    };
    server.inject(When::request(method, path), fault, times);
    let answer = scene.function.invoke(Event::sweep()).await;
    check(matches!(answer, Answer::Success(_)), format!("the answer is {answer:?}"));
    check(
        scene.lab.kubernetes.faults_met() + scene.lab.buildkite.faults_met() > 0,
        "no request met the fault".to_owned(),
    );
    let lines = scene.function.take_lines();
    let counts = ["Sweeps", "SweepsFailed"].map(|name| sum(&lines, name));
    let refused = matches!(&answer, Answer::Success(answer) if answer["outcome"] == "ignored");
    check(
        counts.iter().sum::<u64>() == u64::from(!refused),
        format!("Sweeps and SweepsFailed are {counts:?}: {answer:?}"),
    );
    check(
        [1, 5, 6].iter().all(|number| scene.state(*number) == "scheduled"),
        "a job is not scheduled any more".to_owned(),
    );

    for server in [&*scene.lab.kubernetes, &*scene.lab.buildkite] {
        server.clear_faults();
    }
    // A refused registration is kept for ten minutes.
    let printed = mem::replace(&mut scene.function, builder(&scene.lab).env("POD_PENDING_SECONDS", "60").start());
    let printed = printed.stop().await;
    for _ in 0..3 {
        scene.sweep_after(65).await;
    }
    check([4, 5].map(|number| uid(&scene, number)) == healthy, "a healthy Job was touched".to_owned());
    check(!scene.has_job(2), "the Job of a job that is over is still there".to_owned());
    check(scene.has_job(6), "the lost event has no Job".to_owned());
    let status = scene.lab.kubernetes.job(&name(1)).map(|job| job["status"].clone());
    check(status.is_some_and(|status| status["conditions"].is_null()), "the failed Job is not replaced".to_owned());
    check(scene.state(3) == "finished", format!("the job to be finished is {}", scene.state(3)));
    check(
        leaks(&scene.lab).is_empty() && !printed.text.contains(scene.lab.agent_token()),
        "a secret is printed".to_owned(),
    );
    problems
}

#[tokio::test]
async fn no_fault_of_any_call_does_harm_and_without_it_all_comes_to_its_end() {
    let mut cells = Vec::new();
    for call in CALLS {
        for (mode, fault) in modes() {
            cells.extend([1, FOR_EVER].map(|times| (call, mode, fault.clone(), times)));
        }
    }
    let (mut running, mut problems, all) = (JoinSet::new(), Vec::new(), cells.len());
    let mut cells = cells.into_iter();
    loop {
        while running.len() < CELLS_AT_ONCE
            && let Some((call, mode, fault, times)) = cells.next()
        {
            running.spawn(async move {
                let times_in_words = if times == 1 { "once" } else { "for ever" };
                (format!("{}, {mode}, {times_in_words}", call.0), cell(call, fault, times).await)
            });
        }
        let Some(done) = running.join_next().await else { break };
        let (cell, found) = done.unwrap();
        problems.extend(found.into_iter().map(|problem| format!("{cell}: {problem}")));
    }
    problems.sort();
    assert!(problems.is_empty(), "{} problems in {all} cells:\n{}", problems.len(), problems.join("\n"));
}
