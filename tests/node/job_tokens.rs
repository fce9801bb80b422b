//! A token for each agent, with the real agent.

use lab::{Event, buildkite};

use super::{
    READ_TOKEN,
    namespace::event_with,
    scene::{Scene, define},
};

/// In this definition the step finds the token, in the environment of the first process.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_registers_with_a_token_of_its_own_and_its_step_gets_no_other_job_with_it() {
    let mut scene = Scene::new().await;
    let namespace = scene.namespace.name.clone();
    scene.namespace.control_plane.apply_role_file(true, &namespace).await.unwrap();
    define(&mut scene.namespace, "leaky", |spec| {
        let agent = spec["containers"][0].as_object_mut().unwrap();
        agent.retain(|field, _| !["command", "lifecycle"].contains(&&**field));
    })
    .await;
    scene.namespace.delete("secrets/buildkite-agent-token").await;
    scene.restart("JOB_TOKENS", "true");

    let other = event_with(&[]).now();
    scene.namespace.lab.buildkite.lock().schedule(&other, buildkite::CLUSTER);
    let command = format!(
        "token=$(tr '\\0' '\\n' </proc/1/environ | sed -n 's/^BUILDKITE_AGENT_TOKEN=//p'); echo kind ${{token%%_*}}; \
         BUILDKITE_AGENT_TOKEN=$token BUILDKITE_AGENT_ACQUIRE_JOB={} buildkite-agent start --build-path /tmp/other; echo left $((1))",
        other.job_uuid()
    );
    let run = scene.send(&command, &["pod-definition=leaky"]).await;
    run.until_passed().await;
    assert!(run.log().contains("kind bkjat") && run.log().contains("left 1"), "{}", run.log());
    assert_eq!(state(&scene, &other), "scheduled", "{}", run.log());
    // In a definition that we ship it finds none.
    let run = scene.send(&READ_TOKEN.replace("bkct_", "bkjat_"), &[]).await;
    run.until_passed().await;
    let tokens: Vec<_> = scene.namespace.lab.buildkite.lock().tokens.keys().cloned().collect();
    let mut tokens = tokens.iter().filter_map(|token| token.strip_prefix("bkjat_")).peekable();
    assert!(tokens.peek().is_some() && tokens.all(|token| !run.log().contains(token)), "{}", run.log());
}

fn state(scene: &Scene, event: &Event) -> &'static str {
    scene.namespace.lab.buildkite.lock().jobs[event.job_uuid()].state
}
