//! The function's Jobs in real pods, with the real agent, on a real node. `make test-node` runs them.
//!
//! All tests share one node, and each has its own namespace, its own function, and its own stand-in for Buildkite.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

#[path = "node/checkouts.rs"]
mod checkouts;
mod common;
#[path = "node/definitions.rs"]
mod definitions;
#[path = "node/explanations.rs"]
mod explanations;
#[path = "node/job_tokens.rs"]
mod job_tokens;
#[path = "node/losses.rs"]
mod losses;
#[path = "common/namespace.rs"]
mod namespace;
#[path = "node/scene.rs"]
mod scene;

use std::{
    fs,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use lab::{Fault, Node, When, control_plane::eventually};
use serde_json::json;
use tokio::task::spawn_blocking;

use namespace::name;
use scene::{COMPLETE, FAILED, Run, Scene, define};

/// Ends at SIGTERM, and prints that. The log has the command, too, so what it prints is computed.
const UNTIL_SIGTERM: &str =
    "trap 'echo signal $((14 + 1)); exit 9' TERM; echo started $((1)); for i in $(seq 3000); do sleep 0.1; done";

/// Prints what begins like an agent token, without that beginning: from the environment of all processes, and from files.
const READ_TOKEN: &str = r"for file in /proc/[0-9]*/environ; do tr '\0' '\n' <$file | sed -n 's/.*bkct_/found /p'; done 2>&1
grep -rhs bkct_ /buildkite /tmp /run /root | sed -n 's/.*bkct_/found /p'; true";

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_in_its_pod() {
    let scene = Scene::new().await;
    let run = scene.send("echo in queue $BUILDKITE_AGENT_META_DATA_QUEUE", &[]).await;
    run.until_passed().await;
    assert!(run.log().contains("in queue kubernetes"), "{}", run.log());
}

/// How the Job ends when Buildkite answers the first acquire call with this status; only 422 has an exit code of its own. The sweep
/// then gives the job another agent.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_get_its_job_is_followed_by_one_that_does() {
    let cases = [
        (422, "agent terminated 27", FAILED),
        (404, "agent terminated 0", COMPLETE),
        (403, "agent terminated 0", COMPLETE),
        (401, "agent terminated 0", COMPLETE),
    ];
    join_all(cases.map(async |(status, exit, end)| {
        let scene = Scene::new().await;
        scene.namespace.lab.buildkite.inject(When::request("PUT", "/acquire"), Fault::status(status), 1);
        let run = scene.send("true", &[]).await;
        run.until(end).await;
        assert!(run.has_been(exit), "{status}: {:?}", run.states());
        assert_eq!(run.job().state, "scheduled");
        scene.sweep_until_passed(&run).await;
        assert_eq!(run.answers("acquire"), [status, 200]);
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_wrong_token_is_followed_by_one_with_the_right_one() {
    let scene = Scene::new().await;
    let right = std::mem::take(&mut scene.namespace.lab.buildkite.lock().tokens);
    let run = scene.send("true", &[]).await;
    run.until(FAILED).await;
    assert!(run.has_been("agent terminated 1"), "{:?}", run.states());
    assert_eq!(run.job().state, "scheduled");
    scene.namespace.lab.buildkite.lock().tokens = right;
    scene.sweep_until_passed(&run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cancelled_gets_sigterm() {
    let scene = Scene::new().await;
    let run = scene.send(UNTIL_SIGTERM, &[]).await;
    run.until_started().await;
    scene.namespace.lab.buildkite.lock().cancel(run.event.job_uuid());
    run.until(COMPLETE).await;
    assert_eq!(run.job().state, "canceled");
    assert!(run.log().contains("signal 15"), "{}", run.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_deleted_before_it_has_a_node_is_replaced() {
    let mut scene = Scene::new().await;
    define(&mut scene.namespace, "gated", |spec| spec["schedulingGates"] = json!([{"name": "example.com/later"}]))
        .await;
    let run = scene.send("true", &["pod-definition=gated"]).await;
    let first = scene.namespace.pod(&run.event.job_name()).await;
    scene.namespace.delete(&format!("pods/{}", name(&first))).await;
    let second = eventually("there is no second pod", async || {
        scene.namespace.list("pods").await.into_iter().find(|pod| name(pod) != name(&first))
    })
    .await;
    let open = json!({"spec": {"schedulingGates": null}});
    scene.namespace.patch(&format!("pods/{}", name(&second)), &open).await;
    run.until_passed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_its_secret() {
    let mut scene = Scene::new().await;
    scene.send("true", &[]).await;
    scene.namespace.delete("secrets/buildkite-agent-token").await;
    let run = scene.send("true", &[]).await;
    run.until("agent waiting CreateContainerConfigError").await;
    // Another function than the one that has applied it a moment ago.
    scene.restart("POD_PENDING_SECONDS", "65");
    scene.sweep_until_passed(&run).await;
    let line = "the pod cannot start: container agent: waits, CreateContainerConfigError: secret \"buildkite-agent-token\" not found";
    assert!(run.says(line), "{:?}", run.job().notifications);
}

/// Images of steps as they are: with and without bash, with and without git, and with a user who has no home. The agent image's tini
/// reaps what a step leaves, if it runs there.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_a_step_gets_the_agent() {
    let scene = Scene::new().await;
    let command = "command -v bash || true; command -v git || true; id -u; for i in 1 2 3; do sh -c 'sleep 0.1 & exit'; done; sleep 1; \
                   echo zombies: $(grep -l '^State:.Z' /proc/[0-9]*/status | wc -l)";
    join_all(["bash-git", "bash", "git", "busybox", "user"].map(async |image| {
        let run = scene.send(command, &[&format!("image=lab/{image}:1")]).await;
        run.until_passed().await;
        let has = |line: &str| run.log().lines().any(|found| found.trim_end().ends_with(line));
        assert_eq!(has("/usr/bin/bash"), image.contains("bash") || image == "user", "{image}: {}", run.log());
        assert_eq!(has("/usr/bin/git"), image.contains("git") || image == "user", "{image}: {}", run.log());
        assert_eq!(has("1000"), image == "user", "{image}: {}", run.log());
        assert_eq!(has("zombies: 0"), image != "busybox", "{image}: {}", run.log());
    }))
    .await;
}

/// Each job runs once, though most wait for room, and for longer than a pod that has no reason to.
#[tokio::test(flavor = "multi_thread")]
async fn forty_jobs_share_the_room_of_four() {
    let mut scene = Scene::new().await;
    scene.node.offer("example.com/rooms", 4).await;
    define(&mut scene.namespace, "room", |spec| {
        spec["containers"][0]["resources"]["limits"]["example.com/rooms"] = json!(1);
    })
    .await;
    // A pod that has its room starts well within this time, however busy the machine is.
    scene.restart("POD_PENDING_SECONDS", "120");
    let runs = join_all((0..40).map(|_| scene.send("sleep 12", &["pod-definition=room"]))).await;
    scene.sweep_until(|| runs.iter().all(|run| run.job().finished_at.is_some())).await;
    // A sweep may have deleted a Job whose job was over before the kubelet reported that its agent ran.
    runs.iter().for_each(Run::assert_passed);
    let waited =
        |run: &&Run| run.says("the pod waits for a node: 0/1 nodes are available: 1 Insufficient example.com/rooms");
    println!("{} of 40 jobs have waited for room until their pages say so", runs.iter().filter(waited).count());
    assert!(runs.iter().any(|run| waited(&run)));
}

/// A job that ends within the minute of the definition's hook finishes; a longer one is cancelled. With and without an image of the step.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_pod_is_evicted_ends_or_is_cancelled_within_two_minutes() {
    let scene = Scene::new().await;
    let image = ["image=lab/bash-git:1"];
    // While the hook runs.
    let short = format!("echo started $((1)); sleep 10\n{READ_TOKEN}");
    let cases = [(&*short, &[][..], 0), (&short, &image, 0), (UNTIL_SIGTERM, &[], -1), (UNTIL_SIGTERM, &image, -1)];
    join_all(cases.map(async |(command, rules, exit_status)| {
        let run = scene.send(command, rules).await;
        run.until_started().await;
        let evicted = Instant::now();
        scene.evict(&run).await;
        run.until_ended().await;
        let took = evicted.elapsed();
        let job = run.job();
        assert_eq!((job.state, job.exit_status), ("finished", Some(exit_status)), "{}", run.log());
        if exit_status != 0 {
            assert_eq!(job.signal_reason.as_deref(), Some("agent_stop"), "{}", run.log());
            assert!(run.log().contains("signal 15"), "{}", run.log());
        }
        assert!(took < Duration::from_mins(2), "{took:?}");
        assert!(!run.log().contains(scene.token()), "{rules:?}: {}", run.log());
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_cannot_read_the_agent_token() {
    let scene = Scene::new().await;
    let rules = [&[][..], &["image=lab/bash-git:1"], &["image=lab/busybox:1"], &["image=lab/user:1"]];
    join_all(rules.map(async |rules| {
        let run = scene.send(READ_TOKEN, rules).await;
        run.until_passed().await;
        assert!(!run.log().contains(scene.token()), "{rules:?}: {}", run.log());
    }))
    .await;
}

/// The other ways in which Kubernetes stops the pod of a job that runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_deleted_or_too_old_is_cancelled() {
    let mut scene = Scene::new().await;
    let runs = [scene.send(UNTIL_SIGTERM, &[]).await, scene.send(UNTIL_SIGTERM, &[]).await];
    let [deleted, old] = runs.each_ref().map(|run| format!("jobs/{}", run.event.job_name()));
    join_all(runs.iter().map(Run::until_started)).await;
    scene.namespace.delete(&format!("{deleted}?propagationPolicy=Background")).await;
    scene.namespace.patch(&old, &json!({"spec": {"activeDeadlineSeconds": 1}})).await;
    for run in runs {
        run.until_ended().await;
        let job = run.job();
        assert_eq!((job.exit_status, job.signal_reason.as_deref()), (Some(-1), Some("agent_stop")), "{}", run.log());
        assert!(run.log().contains("signal 15"), "{}", run.log());
    }
}

/// With what the checks of definitions require, in the agent's image and in that of a step.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_with_a_root_that_is_read_only() {
    let mut scene = Scene::new().await;
    define(&mut scene.namespace, "read-only", |spec| {
        let folders = ["/buildkite/builds", "/buildkite/plugins", "/root/.buildkite-agent", "/tmp"];
        let volumes = folders.iter().enumerate();
        let agent = &mut spec["containers"][0];
        agent["securityContext"]["readOnlyRootFilesystem"] = true.into();
        agent["volumeMounts"] =
            volumes.clone().map(|(index, path)| json!({"name": format!("v{index}"), "mountPath": path})).collect();
        spec["volumes"] = volumes.map(|(index, _)| json!({"name": format!("v{index}"), "emptyDir": {}})).collect();
    })
    .await;
    join_all([&[][..], &["image=lab/bash-git:1"]].map(async |image| {
        let rules = [&["pod-definition=read-only"], image].concat();
        let run = scene.send("touch here; touch /there || echo cannot $((1)) write", &rules).await;
        run.until_passed().await;
        assert!(run.log().contains("cannot 1 write"), "{}", run.log());
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_leaves_the_machine_as_it_was() {
    let settings = kernel_settings();
    let node = Node::start().await.unwrap();
    let name = node.folder().file_name().unwrap().to_str().unwrap();
    let id = name.rsplit('-').next().unwrap().to_owned();
    assert!(traces(&id).len() >= 3, "a folder, an interface and a cgroup: {:?}", traces(&id));
    spawn_blocking(move || drop(node)).await.unwrap();
    assert_eq!((traces(&id), kernel_settings()), (Vec::new(), settings));
}

/// The folders, interfaces, cgroups and mounts of a node.
fn traces(id: &str) -> Vec<String> {
    let files = |folder: &str| {
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path().display().to_string())
    };
    let mut traces: Vec<_> = ["/tmp", "/sys/class/net", "/sys/fs/cgroup"].into_iter().flat_map(files).collect();
    traces.extend(files("/sys/fs/cgroup").collect::<Vec<_>>().iter().flat_map(|hierarchy| files(hierarchy)));
    traces.extend(fs::read_to_string("/proc/mounts").unwrap().lines().map(str::to_owned));
    traces.retain(|trace| trace.contains(id));
    traces
}

/// Those that a kubelet changes.
fn kernel_settings() -> Vec<String> {
    let settings =
        ["kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "vm/overcommit_memory", "vm/panic_on_oom"];
    settings.map(|setting| fs::read_to_string(format!("/proc/sys/{setting}")).unwrap()).to_vec()
}

/// Where the time of ten warm jobs goes, from the event to the agent's acquire call. The function has little of it.
#[tokio::test(flavor = "multi_thread")]
async fn the_function_has_a_twentieth_of_the_time_to_the_acquire_call() {
    let scene = Scene::new().await;
    let mut runs = Vec::new();
    for _ in 0..10 {
        let begin = scene.namespace.lab.timeline.now();
        let run = scene.send("true", &[]).await;
        let answered = scene.namespace.lab.timeline.now();
        run.until_ended().await;
        runs.push((begin, answered, run));
    }
    let jobs = join_all(runs.iter().map(async |(begin, answered, run)| {
        run.until_passed().await;
        let states = run.states();
        // On a busy machine a kubelet may skip a state.
        let state = |state: &str| states.iter().find(|(_, seen)| seen == state).map(|(at, _)| *at);
        let ends = [
            Some(*answered),
            state("scheduled"),
            state("PodReadyToStartContainers"),
            state("agent running"),
            Some(run.called("acquire")),
            Some(run.called("finish")),
            state(COMPLETE),
        ];
        ends.map(|end| Some(end?.saturating_sub(*begin)))
    }))
    .await;
    let median = |step: usize| {
        let mut times: Vec<_> = jobs.iter().filter_map(|job| job[step]).collect();
        times.sort();
        times[times.len() / 2]
    };
    let steps = ["answered", "scheduled", "network ready", "agent running", "acquire", "finish", "Job complete"];
    for (step, name) in steps.iter().enumerate() {
        eprintln!("{name:>14} {:>6} ms", median(step).as_millis());
    }
    // Each is a share of one job, so that other work on the machine lengthens both.
    let shares = jobs.iter().filter_map(|job| Some(job[0]?.as_secs_f64() / job[4]?.as_secs_f64()));
    let least = shares.min_by(f64::total_cmp);
    assert!(least.is_some_and(|share| share <= 0.05), "{least:?}");
}
