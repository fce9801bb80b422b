//! The definitions that we ship beside `default`.

use futures_util::future::join_all;
use serde_json::json;

use super::{
    READ_TOKEN,
    namespace::{compiled, name},
    scene::{COMPLETE, Scene, for_the_lab},
};

const OVERLAY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pod-definitions/overlays/elastic-ci-stack-deploy");

/// As they are, each in a namespace with its Pod Security Standard, in the agent's image and in those of steps.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_in_fargate_and_in_restricted_and_cannot_read_the_agent_token() {
    join_all([("fargate", "baseline"), ("restricted", "restricted")].map(async |(definition, standard)| {
        let mut scene = Scene::new().await;
        let mut manifest = compiled().into_iter().find(|manifest| name(manifest) == definition).unwrap();
        for_the_lab(&scene.namespace, &mut manifest["template"]["spec"]);
        scene.namespace.apply(&manifest).await;
        scene.restart("POD_PENDING_SECONDS", "900");
        let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": standard}}});
        let (status, answer) =
            scene.namespace.admin.patch(&format!("/api/v1/namespaces/{}", scene.namespace.name), &labels).await;
        assert_eq!(status, 200, "{answer}");

        let command = format!("{READ_TOKEN}\necho user $(id -u) may $(touch here && echo write)");
        join_all([&[][..], &["image=lab/bash-git:1"], &["image=lab/busybox:1"]].map(async |image| {
            let definition_rule = format!("pod-definition={definition}");
            let rules = [&[&*definition_rule], image].concat();
            let run = scene.send(&command, &rules).await;
            run.until_passed().await;
            let user = if definition == "restricted" { 1000 } else { 0 };
            assert!(run.log().contains(&format!("user {user} may write")), "{rules:?}: {}", run.log());
            assert!(!run.log().contains(scene.token()), "{rules:?}: {}", run.log());
        }))
        .await;
    }))
    .await;
}

/// By its overlay, with the scripts and hooks of its image, and stand-ins for docker, aws and s3secrets-helper.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_in_elastic_ci_stack() {
    let mut scene = Scene::new().await;
    scene.node.label("platform", "ec2").await;
    scene.namespace.control_plane.apply_folder(OVERLAY, &scene.namespace.name).await.unwrap();
    let path = "podtemplates/elastic-ci-stack-deploy";
    let mut template = scene.namespace.get(path).await["template"].clone();
    for_the_lab(&scene.namespace, &mut template["spec"]);
    scene.namespace.patch(path, &json!({"template": template})).await;

    let command = "echo bucket $OF_THE_BUCKET; cat $DOCKER_CONFIG/config.json; \
                   echo tags $BUILDKITE_AGENT_META_DATA_STACK $BUILDKITE_AGENT_META_DATA_DOCKER; \
                   touch /builds/here && echo docker $(docker version)";
    let login = [("DOCKER_LOGIN_USER", "me"), ("DOCKER_LOGIN_PASSWORD", "made-up")];
    let run = scene.send_with(command, &["pod-definition=elastic-ci-stack-deploy"], |event| event, &login).await;
    run.until_passed().await;
    let log = run.log();
    let lines = [
        "bucket example-deploy-secrets",
        "login me",
        "login AWS",
        "tags elastic-ci-stack-deploy 29.8.2",
        "docker unix:///docker/docker.sock",
    ];
    for line in lines {
        assert!(log.contains(line), "{line} is not in {log}");
    }
    run.until(COMPLETE).await;
    assert!(run.has_been("dockerd terminated 0"), "it gets SIGTERM: {:?}", run.states());
}
