//! A token for each agent, on the real API server: what the function's role allows, what becomes of a Secret, and what is in etcd.

use std::{fs, path::Path};

use lab::buildkite::CLUSTER as BUILDKITE_CLUSTER;

use super::*;

/// A Job whose Secret is missing is repaired from this age on; this server's clock is that of this machine.
const MIN_AGE: Duration = Duration::from_secs(62);

impl Namespace {
    async fn with_job_tokens() -> (Self, Function) {
        let namespace = Self::without_permissions().await;
        namespace.control_plane.apply_role_file(true, &namespace.name).await.unwrap();
        for (resource, verb) in [("jobs", "create"), ("jobs", "get"), ("secrets", "create"), ("podtemplates", "list")] {
            namespace.until_permitted(resource, verb, true).await;
        }
        let function = namespace.builder().env("JOB_TOKENS", "true").start();
        (namespace, function)
    }

    /// The event of a job that waits at Buildkite.
    fn schedule(&self) -> Event {
        let event = event();
        self.lab.buildkite.lock().schedule(&event, BUILDKITE_CLUSTER);
        event
    }

    /// The Secrets of the namespace.
    async fn secrets(&mut self) -> Vec<Value> {
        self.list("secrets").await
    }
}

fn contains(file: &Path, text: &str) -> bool {
    if file.is_dir() {
        return fs::read_dir(file).unwrap().any(|entry| contains(&entry.unwrap().path(), text));
    }
    // A file of etcd may be renamed meanwhile.
    fs::read(file).is_ok_and(|bytes| bytes.windows(text.len()).any(|window| window == text.as_bytes()))
}

#[tokio::test]
async fn the_agent_token_is_in_no_object_and_the_secret_of_a_job_goes_with_it() {
    let (mut namespace, function) = Namespace::with_job_tokens().await;
    let event = namespace.schedule();
    let job = create(&function, &event).await;
    let [secret] = &*namespace.secrets().await else { panic!("there is one Secret") };
    let uid = namespace.get(&format!("jobs/{job}")).await["metadata"]["uid"].clone();
    assert_eq!(secret["metadata"]["ownerReferences"][0]["uid"], uid);
    let token = BASE64_STANDARD.decode(secret["data"]["token"].as_str().unwrap()).unwrap();
    let token = String::from_utf8(token).unwrap();

    // etcd has what it is asked to keep, and not the agent token.
    let etcd = namespace.control_plane.file("etcd");
    assert!(token.starts_with("bkjat_") && contains(&etcd, &token));
    assert!(!contains(&etcd, namespace.lab.agent_token()));

    let mut as_function = namespace.as_function().await;
    let path = namespace.path("secrets");
    let one = namespace.path(&format!("secrets/{}", name(secret)));
    let mut changed = secret.clone();
    changed["data"]["token"] = "eA==".into();
    let refused = [
        as_function.get(&one).await.0,
        as_function.get(&path).await.0,
        as_function.put(&one, &changed).await.0,
        as_function.patch(&one, &json!({"data": {"token": "eA=="}})).await.0,
        as_function.apply(&format!("{one}?fieldManager=agent-scheduler&force=true"), &json!({"data": {}})).await.0,
        as_function.delete(&one).await.0,
    ];
    assert_eq!(refused, [403; 6]);
    changed["metadata"] = json!({"name": name(secret)});
    assert_eq!(as_function.post(&path, &changed).await.0, 409);

    namespace.delete(&format!("jobs/{job}?propagationPolicy=Background")).await;
    eventually("the Secret stays", async || namespace.secrets().await.is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_secret_that_is_missing_is_made_by_an_event_that_comes_again() {
    let (mut namespace, function) = Namespace::with_job_tokens().await;
    let event = namespace.schedule();
    create(&function, &event).await;
    assert_eq!(function.succeed(&event).await["outcome"], "already-exists");
    let secret = namespace.secrets().await.remove(0);
    namespace.delete(&format!("secrets/{}", name(&secret))).await;
    assert_eq!(function.succeed(&event).await["outcome"], "deferred");
    tokio::time::sleep(MIN_AGE).await;
    assert_eq!(function.succeed(&event).await["outcome"], "already-exists");
    let again = namespace.secrets().await.remove(0);
    assert_eq!(name(&again), name(&secret));
    assert_ne!(again["data"], secret["data"]);
}

#[tokio::test]
async fn a_job_whose_pod_has_a_gate_gets_no_token_yet() {
    let (mut namespace, function) = Namespace::with_job_tokens().await;
    let mut manifest = compiled().into_iter().find(|manifest| name(manifest) == "default").unwrap();
    manifest["metadata"]["name"] = "gated".into();
    manifest["template"]["spec"]["schedulingGates"] = json!([{"name": "example.com/later"}]);
    namespace.apply(&manifest).await;
    let event = event_with(&["pod-definition=gated"]);
    namespace.lab.buildkite.lock().schedule(&event, BUILDKITE_CLUSTER);
    create(&function, &event).await;
    assert_eq!(namespace.secrets().await.len(), 0);
}
