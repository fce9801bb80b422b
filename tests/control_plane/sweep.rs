//! The sweep on the real API server, with the real Job controller and garbage collector.

use lab::buildkite::CLUSTER as BUILDKITE_CLUSTER;

use super::*;

/// The sweep touches no younger Job; this server's clock is that of this machine.
const MIN_AGE: Duration = Duration::from_secs(62);

const ROLE: &str = "buildkite-on-demand-agent-scheduler-sweep";

impl Namespace {
    /// A job that waits at Buildkite, with its Job and pod.
    async fn create_waiting(&mut self, function: &Function) -> (Event, String, Value) {
        let event = event();
        self.lab.buildkite.lock().schedule(&event, BUILDKITE_CLUSTER);
        let job = create(function, &event).await;
        let pod = self.pod(&job).await;
        (event, job, pod)
    }

    async fn uid(&mut self, job: &str) -> Value {
        self.get(&format!("jobs/{job}")).await["metadata"]["uid"].clone()
    }

    /// The names of the pods, once there are so many.
    async fn pods_once(&mut self, count: usize) -> Vec<String> {
        eventually("the pods are not as many", async || (self.count("pods").await == count).then_some(())).await;
        self.list("pods").await.iter().map(|pod| name(pod).to_owned()).collect()
    }
}

async fn sweep(function: &Function) -> Vec<Value> {
    function.take_lines();
    assert_eq!(function.succeed(Event::sweep()).await, json!({"outcome": "swept"}));
    function.take_lines()
}

fn count(lines: &[Value], metric: &str) -> u64 {
    lines.iter().filter_map(|line| line[metric].as_u64()).sum()
}

#[tokio::test]
async fn replaces_a_job_that_failed_and_deletes_that_of_a_cancelled_job_with_their_pods() {
    let mut namespace = Namespace::new().await;
    let function = namespace.function();
    let (_, failed, pod) = namespace.create_waiting(&function).await;
    let (cancelled, ..) = namespace.create_waiting(&function).await;
    let first = namespace.uid(&failed).await;
    namespace.end_pod(&pod, "Failed", 1, &json!([])).await;
    assert_eq!(namespace.finished(&failed).await["type"], "Failed");
    namespace.lab.buildkite.lock().cancel(cancelled.job_uuid());
    assert_eq!(count(&sweep(&function).await, "JobsReplaced"), 0, "they are too young");
    tokio::time::sleep(MIN_AGE).await;
    let lines = sweep(&function).await;
    assert_eq!(
        ["JobsReplaced", "JobsCancelled", "Sweeps"].map(|metric| count(&lines, metric)),
        [1, 1, 1],
        "{lines:#?}"
    );
    let [job] = &namespace.list("jobs").await[..] else { panic!("not one Job") };
    let metadata = &job["metadata"];
    assert_eq!((name(job), &metadata["labels"]["agent-scheduler.buildkite.com/attempt"]), (&*failed, &json!("2")));
    assert_ne!(metadata["uid"], first);
    let [only] = &namespace.pods_once(1).await[..] else { panic!() };
    assert_ne!(only, name(&pod), "that of the second attempt");

    // An attempt that is gone after its TTL is forgotten.
    let pod = namespace.pod(&failed).await;
    namespace.end_pod(&pod, "Failed", 1, &json!([])).await;
    namespace.finished(&failed).await;
    namespace.patch(&format!("jobs/{failed}"), &json!({"spec": {"ttlSecondsAfterFinished": 1}})).await;
    eventually("the Job is still there", async || (namespace.count("jobs").await == 0).then_some(())).await;
    assert_eq!(count(&sweep(&function).await, "JobsRepaired"), 1);
    let metadata = namespace.get(&format!("jobs/{failed}")).await["metadata"].clone();
    assert_eq!(metadata["labels"]["agent-scheduler.buildkite.com/attempt"], Value::Null);
}

#[tokio::test]
async fn deletes_a_job_of_its_uid_only() {
    let mut namespace = Namespace::new().await;
    let job = namespace.create(&event()).await;
    let options = json!({"preconditions": {"uid": "another"}, "propagationPolicy": "Background"});
    let path = namespace.path(&format!("jobs/{job}"));
    let (status, answer) = namespace.as_function().await.delete_with(&path, &options).await;
    assert_eq!((status, &answer["reason"]), (409, &json!("Conflict")), "{answer}");
    // By this the function knows that another Job has the name.
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("the UID in the precondition (another) does not match the UID in record"), "{message}");
    assert_eq!(namespace.count("jobs").await, 1);
}

#[tokio::test]
async fn names_each_permission_that_is_missing() {
    let mut namespace = Namespace::new().await;
    let function = namespace.function();
    let (event, ..) = namespace.create_waiting(&function).await;
    namespace.lab.buildkite.lock().cancel(event.job_uuid());
    // Its pod waits for a node, so that Events are needed.
    namespace.create_waiting(&function).await;
    tokio::time::sleep(MIN_AGE).await;
    for (resource, verb) in SWEEP_PERMISSIONS {
        namespace.remove_verb(ROLE, resource, verb).await;
        let lines = sweep(&function).await;
        let warnings: Vec<_> = lines.iter().filter(|line| line["level"] == "WARN").collect();
        let [warning] = &warnings[..] else { panic!("{lines:#?}") };
        let text = warning["error"].as_str().unwrap();
        let permission = format!("User \"{SUBJECT}\" cannot {verb} resource \"{resource}\"");
        let fix = format!("kubectl apply -f buildkite-role.yaml --namespace {}", namespace.name);
        assert!(text.contains(&permission) && text.contains(&fix), "{text}");
        let jobs = if resource == "events" { 1 } else { 2 };
        assert_eq!((count(&lines, "SweepsFailed"), namespace.count("jobs").await), (1, jobs));
        namespace.apply_role_file().await;
        namespace.until_permitted(resource, verb, true).await;
    }
    namespace.pods_once(1).await;
}

/// The line that the build page has once the obstacle has lasted.
async fn line(namespace: &mut Namespace, function: &Function, event: &Event) -> String {
    eventually("the build page has no line", async || {
        sweep(function).await;
        let buildkite = namespace.lab.buildkite.lock();
        buildkite.jobs[event.job_uuid()].notifications.first().map(|(_, text)| text.clone())
    })
    .await
}

/// Makes something be in the way of the Job of an event. Returns the line, and the reason of the finish.
async fn obstacle(prepare: impl AsyncFnOnce(&mut Namespace), change: impl FnOnce(&mut Value)) -> (String, String) {
    let mut namespace = Namespace::new().await;
    prepare(&mut namespace).await;
    let mut manifest = compiled().into_iter().find(|manifest| name(manifest) == "default").unwrap();
    manifest["metadata"]["name"] = "blocked".into();
    change(&mut manifest["template"]["spec"]);
    namespace.apply(&manifest).await;
    let function = namespace.builder().env("POD_PENDING_SECONDS", "65").start();
    let event = event_with(&["pod-definition=blocked"]);
    namespace.lab.buildkite.lock().schedule(&event, BUILDKITE_CLUSTER);
    let job = create(&function, &event).await;
    tokio::time::sleep(Duration::from_secs(32)).await;
    let line = line(&mut namespace, &function, &event).await;
    tokio::time::sleep(Duration::from_secs(36)).await;
    assert_eq!(count(&sweep(&function).await, "JobsFinished"), 1);
    eventually("the Job is still there", async || (namespace.count("jobs").await == 0).then_some(())).await;
    let detail = namespace.lab.buildkite.lock().jobs[event.job_uuid()].detail.clone().unwrap();
    for words in ["PodTemplate blocked in namespace", "kubectl describe"] {
        assert!(detail.contains(words), "{job}: {detail}");
    }
    println!("{line}\n{detail}\n");
    (line, detail)
}

#[tokio::test]
async fn explains_a_job_without_a_pod_and_a_pod_without_a_node() {
    let quota = async |namespace: &mut Namespace| {
        let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}, "spec": {"hard": {"pods": "0"}}});
        ok(namespace.admin.post(&namespace.path("resourcequotas"), &quota).await);
        eventually("the quota has no effect", async || {
            (namespace.get("resourcequotas/small").await["status"]["hard"]["pods"] == "0").then_some(())
        })
        .await;
    };
    let restricted = async |namespace: &mut Namespace| {
        let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
        ok(namespace.admin.patch(&format!("/api/v1/namespaces/{}", namespace.name), &labels).await);
    };
    // Nothing listens there, and such a webhook denies.
    let webhook = async |namespace: &mut Namespace| {
        let webhook = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": namespace.name},
            "webhooks": [{
                "name": "pods.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": "Fail",
                "timeoutSeconds": 1, "clientConfig": {"url": "https://127.0.0.1:1/"},
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
            }],
        });
        let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
        ok(namespace.admin.post(path, &webhook).await);
    };
    let no_account = |spec: &mut Value| spec["serviceAccountName"] = "missing".into();
    let rows = tokio::join!(
        obstacle(quota, |_| ()),
        obstacle(async |_| (), no_account),
        obstacle(restricted, |_| ()),
        obstacle(webhook, |_| ()),
    );
    let (quota, account, security, webhook) = rows;
    for ((line, detail), words) in [
        (quota, "exceeded quota: small"),
        (account, "serviceaccount \"missing\" not found"),
        (security, "violates PodSecurity \"restricted"),
        (webhook, "failed calling webhook \"pods.example.com\""),
    ] {
        assert!(line.starts_with("the Kubernetes Job has no pod: FailedCreate: "), "{line}");
        assert!(line.contains(words) && detail.contains(words), "{line}\n{detail}");
    }
    // This control plane has no scheduler.
    let (line, detail) = obstacle(async |_| (), |_| ()).await;
    assert!(line.starts_with("the pod waits for a node") && detail.contains("its pod had no node"), "{line}\n{detail}");
}
