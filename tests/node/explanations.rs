//! What keeps a pod from starting is on the build page, and then in the reason of its job's end; what may pass is left.

use futures_util::future::join_all;
use lab::Event;
use serde_json::{Value, json};

use super::{
    UNTIL_SIGTERM,
    namespace::name,
    scene::{Run, Scene, define, helper, slow_helper},
};

/// A definition and what is wrong with it, how the line on the build page begins, and what the reason of the finish has.
type Row = (&'static str, fn(&mut Value), &'static str, &'static str);

const WAITS: &str = "the pod cannot start: container helper: waits, ";
const NOT_STARTED: &str = "the pod has a node, and its agent has not started";

const ROWS: [Row; 16] = [
    (
        "missing",
        |spec| spec["initContainers"] = helper("registry.example/404:1"),
        WAITS,
        "registry.example/404:1: not found",
    ),
    ("denied", |spec| spec["initContainers"] = helper("registry.example/denied:1"), WAITS, "pull access denied"),
    ("throttled", |spec| spec["initContainers"] = helper("registry.example/429:1"), WAITS, "429 Too Many Requests"),
    ("broken", |spec| spec["initContainers"] = helper("registry.example/500:1"), WAITS, "500 Internal Server Error"),
    (
        "silent",
        |spec| spec["initContainers"] = helper("registry.example/silent:1"),
        NOT_STARTED,
        "its pod had a node, and its agent did not start",
    ),
    ("away", |spec| spec["initContainers"] = helper("127.0.0.1:1/missing:1"), WAITS, "connection refused"),
    (
        "never",
        |spec| {
            spec["initContainers"] = helper("lab/missing:1");
            spec["initContainers"][0]["imagePullPolicy"] = "Never".into();
        },
        WAITS,
        "ErrImageNeverPull",
    ),
    (
        "no-command",
        |spec| spec["initContainers"] = helper("registry.example/0-seconds:1"),
        WAITS,
        "CreateContainerError: failed to generate container",
    ),
    (
        "no-secret",
        |spec| {
            let reference = json!({"secretKeyRef": {"name": "npm", "key": "token"}});
            spec["initContainers"] = helper("lab/busybox:1");
            spec["initContainers"][0]["env"] = json!([{"name": "NPM_TOKEN", "valueFrom": reference}]);
        },
        "the pod cannot start: container helper: waits, CreateContainerConfigError: secret \"npm\" not found",
        "secret \"npm\" not found",
    ),
    (
        "no-program",
        |spec| {
            spec["initContainers"] = helper("lab/busybox:1");
            spec["initContainers"][0]["command"] = json!(["/missing"]);
            spec["initContainers"][0]["restartPolicy"] = "Always".into();
        },
        "the pod ",
        "\"/missing\": stat /missing: no such file or directory",
    ),
    (
        "restarts",
        |spec| {
            spec["initContainers"] = helper("lab/busybox:1");
            spec["initContainers"][0]["command"] = json!(["sh", "-c", "exit 3"]);
            spec["initContainers"][0]["restartPolicy"] = "Always".into();
            spec["initContainers"][0]["startupProbe"] =
                json!({"exec": {"command": ["true"]}, "initialDelaySeconds": 5});
        },
        NOT_STARTED,
        "container helper: exit code 3, Error",
    ),
    (
        "no-volume",
        |spec| {
            spec["volumes"] = json!([{"name": "tls", "secret": {"secretName": "tls"}}]);
            spec["containers"][0]["volumeMounts"] = json!([{"name": "tls", "mountPath": "/tls"}]);
        },
        NOT_STARTED,
        "FailedMount: MountVolume.SetUp failed for volume \"tls\" : secret \"tls\" not found",
    ),
    (
        "no-sandbox",
        |spec| {
            spec["securityContext"]["sysctls"] = json!([{"name": "net.ipv4.ping_group_range", "value": "none"}]);
        },
        NOT_STARTED,
        "FailedCreatePodSandBox",
    ),
    (
        "no-node",
        |spec| spec["nodeSelector"] = json!({"example.com/gpu": "yes"}),
        "the pod waits for a node: 0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector",
        "its pod had no node",
    ),
    (
        "no-account",
        |spec| spec["serviceAccountName"] = "missing".into(),
        "the Kubernetes Job has no pod: FailedCreate: ",
        "serviceaccount \"missing\" not found",
    ),
    (
        "no-way-out",
        |spec| {
            let env = spec["containers"][0]["env"].as_array_mut().unwrap();
            let endpoint = env.iter_mut().find(|variable| variable["name"] == "BUILDKITE_AGENT_ENDPOINT").unwrap();
            endpoint["value"] = "https://buildkite.example/v3".into();
        },
        "the agent runs, and has not taken the job",
        "its agent ran for 1 minutes and did not take it",
    ),
];

/// Each ends its job, and only that: not one that runs, nor one that another controller holds back.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_cannot_start_says_why_on_the_build_page() {
    let mut scene = Scene::new().await;
    for (name, change, ..) in ROWS {
        define(&mut scene.namespace, name, change).await;
    }
    let closed = json!([{"name": "example.com/later"}]);
    define(&mut scene.namespace, "gated", |spec| spec["schedulingGates"] = closed).await;
    define(&mut scene.namespace, "later", |spec| {
        spec["containers"][0]["resources"]["limits"]["example.com/later"] = json!(1);
    })
    .await;
    scene.restart("POD_PENDING_SECONDS", "90");
    let untouched = scene.send(UNTIL_SIGTERM, &[]).await;
    untouched.until_started().await;
    let gated = scene.send("true", &["pod-definition=gated"]).await;
    let suspended = scene.send("true", &["pod-definition=later"]).await;
    let suspended_job = format!("jobs/{}", suspended.event.job_name());
    scene.namespace.patch(&suspended_job, &json!({"spec": {"suspend": true}})).await;

    // Definitions and steps are checked; an admission webhook may still write such an image.
    let misnamed = scene.send("true", &["pod-definition=gated"]).await;
    let mut pod = scene.namespace.pod(&misnamed.event.job_name()).await;
    pod["spec"]["containers"][0]["image"] = "Agent:4".into();
    let change = json!({"spec": {"containers": pod["spec"]["containers"], "schedulingGates": null}});
    scene.namespace.patch(&format!("pods/{}", name(&pod)), &change).await;

    let runs = join_all(
        ROWS.iter().map(async |(definition, ..)| scene.send("true", &[&format!("pod-definition={definition}")]).await),
    )
    .await;
    let runs: Vec<_> = runs.into_iter().chain([misnamed]).collect();
    scene.sweep_until(|| runs.iter().all(|run| run.job().finished_at.is_some())).await;
    let misnamed = ("misnamed", "the pod cannot start: container agent: waits, InvalidImageName: ", "InvalidImageName");
    let rows = ROWS.iter().map(|(definition, _, line, reason)| (*definition, *line, *reason)).chain([misnamed]);
    let mut wrong = Vec::new();
    for (run, (definition, line, reason)) in runs.iter().zip(rows) {
        let job = run.job();
        let detail = job.detail.as_deref().unwrap_or_default();
        println!("{definition}\n{:#?}\n{detail}\n", job.notifications.first());
        let is_right = run.says(line) && detail.contains(reason) && job.signal_reason.as_deref() == Some("stack_error");
        wrong.extend((!is_right).then_some(definition));
        run.until("deleted").await;
    }
    assert_eq!(wrong, [""; 0]);

    assert_eq!(
        [untouched.job().state, gated.job().state, suspended.job().state],
        ["running", "scheduled", "scheduled"]
    );
    assert!(gated.says("the pod has a scheduling gate"), "{:?}", gated.job().notifications);
    assert!(suspended.says("the Kubernetes Job is suspended"), "{:?}", suspended.job().notifications);
    let pod = scene.namespace.pod(&gated.event.job_name()).await;
    scene.namespace.patch(&format!("pods/{}", name(&pod)), &json!({"spec": {"schedulingGates": null}})).await;
    scene.node.offer("example.com/later", 1).await;
    scene.namespace.patch(&suspended_job, &json!({"spec": {"suspend": false}})).await;
    join_all([&gated, &suspended].map(Run::until_passed)).await;
}

/// Longer than it takes to fail a job whose image does not exist.
#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_takes_long_is_reported_and_left() {
    let mut scene = Scene::new().await;
    define(&mut scene.namespace, "slow", |spec| slow_helper(spec, 100)).await;
    let run = scene.send("true", &["pod-definition=slow"]).await;
    scene.sweep_until_passed(&run).await;
    assert!(run.says(NOT_STARTED), "{:?}", run.job().notifications);
    run.until_passed().await;
}

/// Jobs of two builds fail for the registry: neither is finished. A third fails for its image, which does not exist.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_ends_no_job() {
    let mut scene = Scene::new().await;
    for status in ["500", "404"] {
        let image = format!("registry.example/{status}:1");
        define(&mut scene.namespace, status, |spec| spec["initContainers"] = helper(&image)).await;
    }
    scene.restart("POD_PENDING_SECONDS", "65");
    let of_build = |number: u64| move |event: Event| event.detail(|detail| detail["build"]["number"] = number.into());
    let one = scene.send_with("true", &["pod-definition=500"], of_build(1), &[]).await;
    let other = scene.send_with("true", &["pod-definition=500"], of_build(2), &[]).await;
    let missing = scene.send_with("true", &["pod-definition=404"], of_build(3), &[]).await;
    scene.sweep_until(|| missing.job().finished_at.is_some()).await;
    for run in [one, other] {
        assert_eq!(run.job().state, "scheduled");
        assert!(run.says("Jobs of 2 builds cannot start, so "), "{:?}", run.job().notifications);
    }
}

/// Of a pod that has failed, too: its Job has made three more.
#[tokio::test(flavor = "multi_thread")]
async fn an_init_container_that_fails_is_in_the_line_of_the_next_attempt() {
    let mut scene = Scene::new().await;
    let cases = [
        ("fails", "exit 3", "container helper ended with exit code 3 (Error)"),
        ("absent", "/missing", "container helper ended with exit code 128 (StartError)"),
    ];
    for (definition, command, _) in cases {
        define(&mut scene.namespace, definition, |spec| {
            let shell = if command.starts_with('/') { vec![command] } else { vec!["sh", "-c", command] };
            spec["initContainers"] = helper("lab/busybox:1");
            spec["initContainers"][0]["command"] = shell.into();
        })
        .await;
    }
    join_all(cases.map(async |(definition, _, cause)| {
        let run = scene.send("true", &[&format!("pod-definition={definition}")]).await;
        let line = format!("Attempt 2 begins: attempt 1 ended and no agent took the job: {cause}");
        scene.sweep_until(|| run.says("Attempt 2 begins")).await;
        assert!(run.says(&line), "{:?}", run.job().notifications);
    }))
    .await;
}
