//! Agents that do not get their job, and pods that are lost before: the job runs all the same, and once.

use futures_util::future::join_all;
use lab::{Fault, Kind, Node, When, control_plane::eventually};
use serde_json::json;

use super::scene::{COMPLETE, FAILED, Run, Scene, define, slow_helper};

/// How a pod of a job that waits is lost.
async fn lose(scene: &Scene, [evicted, deleted]: [&Run; 2]) {
    scene.evict(evicted).await;
    scene.delete_pod(deleted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_lost_while_its_image_is_pulled_is_replaced() {
    let mut scene = Scene::new().await;
    for name in ["slow", "slow-too"] {
        define(&mut scene.namespace, name, |spec| slow_helper(spec, 15)).await;
    }
    let [one, other] = ["pod-definition=slow", "pod-definition=slow-too"];
    let runs = [scene.send("true", &[one]).await, scene.send("true", &[other]).await];
    join_all(runs.iter().map(|run| run.until("helper waiting PodInitializing"))).await;
    join_all(runs.iter().map(|run| scene.until_event(run, "Pulling"))).await;
    lose(&scene, runs.each_ref()).await;
    join_all(runs.iter().map(Run::until_passed)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_lost_while_its_agent_registers_is_replaced() {
    let scene = Scene::new().await;
    let register = When::path("/v3/register");
    scene.namespace.lab.buildkite.inject(register, Fault::Delay(std::time::Duration::from_mins(5)), 2);
    let runs = [scene.send("true", &[]).await, scene.send("true", &[]).await];
    eventually("the agents do not register", async || {
        let entries = scene.namespace.lab.timeline.entries().into_iter();
        let waiting =
            entries.filter(|entry| matches!(&entry.kind, Kind::Delayed(call) if call.target == "/v3/register"));
        (waiting.count() == 2).then_some(())
    })
    .await;
    lose(&scene, runs.each_ref()).await;
    join_all(runs.iter().map(|run| scene.sweep_until_passed(run))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_lost_while_it_waits_for_its_job_is_followed_by_another() {
    let scene = Scene::new().await;
    scene.namespace.lab.buildkite.inject(When::request("PUT", "/acquire"), Fault::status(423), 1000);
    let runs = [scene.send("true", &[]).await, scene.send("true", &[]).await];
    eventually("there is no acquire call", async || {
        runs.iter().all(|run| !run.answers("acquire").is_empty()).then_some(())
    })
    .await;
    lose(&scene, runs.each_ref()).await;
    join_all(runs.iter().map(|run| run.until(COMPLETE))).await;
    assert_eq!(runs.each_ref().map(|run| run.job().state), ["scheduled"; 2]);
    scene.namespace.lab.buildkite.clear_faults();
    join_all(runs.iter().map(|run| scene.sweep_until_passed(run))).await;
}

/// The kubelet has the last word about a pod that a scheduler gave it.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_the_kubelet_refuses_is_replaced() {
    let mut scene = Scene::new().await;
    let open = scene.namespace.name.clone();
    define(&mut scene.namespace, "closed", |spec| {
        spec["nodeName"] = "node".into();
        spec["nodeSelector"] = json!({"example.com/open": open});
    })
    .await;
    let run = scene.send("true", &["pod-definition=closed"]).await;
    run.until("Failed NodeAffinity").await;
    scene.node.label("example.com/open", &scene.namespace.name).await;
    run.until_passed().await;
}

/// The resource is one that no other test asks for. Four pods later the next attempt has the definition as it is then.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_pods_are_too_large_for_their_node_runs_when_its_definition_is_corrected() {
    let mut scene = Scene::new().await;
    define(&mut scene.namespace, "large", |spec| {
        spec["nodeName"] = "node".into();
        spec["initContainers"] = super::scene::helper("lab/busybox:1");
        spec["initContainers"][0]["command"] = json!(["true"]);
        spec["initContainers"][0]["resources"] = json!({"requests": {"ephemeral-storage": "1Ei"}});
    })
    .await;
    let run = scene.send("true", &["pod-definition=large"]).await;
    run.until("Failed OutOfephemeral-storage").await;
    define(&mut scene.namespace, "large", |_| {}).await;
    scene.sweep_until_passed(&run).await;
    println!("{:#?}", run.job().notifications);
    assert!(run.says("Attempt 2 begins: attempt 1 ended and no agent took the job: "), "{:?}", run.job().notifications);
}

/// An agent tries for one to two minutes, and then ends with 0.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make test-node-all"]
async fn an_agent_that_gives_up_is_followed_by_another() {
    join_all([423, 429, 500].map(async |status| {
        let scene = Scene::new().await;
        scene.namespace.lab.buildkite.inject(When::request("PUT", "/acquire"), Fault::status(status), 1000);
        let run = scene.send("true", &[]).await;
        let ended = run.until(COMPLETE).await;
        println!("{status}: the agent has given up after {} s", ended.as_secs());
        assert_eq!(run.job().state, "scheduled");
        scene.namespace.lab.buildkite.clear_faults();
        scene.sweep_until_passed(&run).await;
    }))
    .await;
}

/// An agent that cannot register tries 30 times, for five minutes, and then ends with 1.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make test-node-all"]
async fn an_agent_that_does_not_reach_buildkite_is_followed_by_another() {
    let scene = Scene::new().await;
    let register = "/v3/register";
    scene.namespace.lab.buildkite.inject(When::request("POST", register), Fault::status(503), 1000);
    let run = scene.send("true", &[]).await;
    let entries = || scene.namespace.lab.timeline.entries().into_iter();
    let tries = || entries().filter(|entry| entry.call().is_some_and(|call| call.target == register)).count();
    for expected in [10, 20, 30] {
        eventually("the agent does not try again", async || (tries() >= expected).then_some(())).await;
    }
    run.until(FAILED).await;
    assert!(run.has_been("agent terminated 1"), "{:?}", run.states());
    scene.namespace.lab.buildkite.clear_faults();
    scene.sweep_until_passed(&run).await;
}

/// One that pulls its image, and one whose agent waits for its job. On a node of their own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make test-node-all"]
async fn pods_on_a_node_that_is_removed_are_replaced() {
    const NODE: &str = "/api/v1/nodes/node";
    let node: &'static Node = Box::leak(Box::new(Node::start().await.unwrap()));
    let mut scene = Scene::on(node).await;
    define(&mut scene.namespace, "slow", |spec| slow_helper(spec, 30)).await;
    scene.namespace.lab.buildkite.inject(When::request("PUT", "/acquire"), Fault::status(423), 1000);
    let runs = [scene.send("true", &["pod-definition=slow"]).await, scene.send("true", &[]).await];
    scene.until_event(&runs[0], "Pulling").await;
    eventually("there is no acquire call", async || (!runs[1].answers("acquire").is_empty()).then_some(())).await;
    let mut admin = node.admin().await;
    let (_, mut object) = admin.get(NODE).await;
    assert_eq!(admin.delete(NODE).await.0, 200);
    join_all(runs.iter().map(|run| run.until("terminating"))).await;
    scene.namespace.lab.buildkite.clear_faults();
    object["metadata"] = json!({"name": "node", "labels": object["metadata"]["labels"]});
    let (status, answer) = admin.post("/api/v1/nodes", &object).await;
    assert_eq!(status, 201, "{answer}");
    join_all(runs.iter().map(|run| scene.sweep_until_passed(run))).await;
}
