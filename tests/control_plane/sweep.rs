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
        assert_eq!((count(&lines, "SweepsFailed"), namespace.count("jobs").await), (1, 1));
        namespace.apply_role_file().await;
        namespace.until_permitted(resource, verb, true).await;
    }
    assert_eq!(count(&sweep(&function).await, "JobsCancelled"), 1);
    namespace.pods_once(0).await;
}
