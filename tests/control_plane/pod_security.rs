//! The Pod Security Standard that each definition passes: <https://kubernetes.io/docs/concepts/security/pod-security-standards/>.

use super::*;

/// The strictest first.
const STANDARDS: [&str; 3] = ["restricted", "baseline", "privileged"];

/// As docs/security.md has them.
const DEFINITIONS: [(&str, &str); 4] = [
    ("default", "baseline"),
    ("elastic-ci-stack", "privileged"),
    ("fargate", "baseline"),
    ("restricted", "restricted"),
];

const SERVICE_ACCOUNT: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/pod-definitions/elastic-ci-stack/service-account.yaml");

impl Namespace {
    pub(super) async fn enforcing(standard: &str) -> Self {
        let mut namespace = Self::new().await;
        namespace.control_plane.apply(SERVICE_ACCOUNT, &namespace.name).await.unwrap();
        namespace.put_own_image().await;
        let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": standard}}});
        ok(namespace.admin.patch(&format!("/api/v1/namespaces/{}", namespace.name), &labels).await);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i"}]},
        });
        eventually("the label has no effect", async || {
            let (status, _) = namespace.admin.post(&namespace.path("pods?dryRun=All"), &pod).await;
            (status == 403).then_some(())
        })
        .await;
        namespace
    }

    /// Posts an event and waits for the Job's pod, or for the Event that says why it has no pod.
    async fn pod_or_refusal(&mut self, function: &Function, rules: &[&str]) -> Result<(), String> {
        let job = create(function, &event_with(rules)).await;
        eventually("there is no pod and no reason", async || {
            if self.list("pods").await.iter().any(|pod| pod["metadata"]["labels"]["job-name"] == *job) {
                return Some(Ok(()));
            }
            let mut events = self.list("events").await.into_iter();
            let refusal =
                events.find(|event| event["involvedObject"]["name"] == *job && event["reason"] == "FailedCreate")?;
            Some(Err(refusal["message"].as_str().unwrap().to_owned()))
        })
        .await
    }
}

async fn each_definition_is_judged_by(standard: &str) {
    let mut namespace = Namespace::enforcing(standard).await;
    let function = namespace.function();
    let rank = |standard| STANDARDS.iter().position(|known| *known == standard).unwrap();
    for (definition, passes) in DEFINITIONS {
        let asks = format!("pod-definition={definition}");
        for rules in [&[&*asks][..], &[&asks, "cpu=1", "memory=1Gi"], &[&asks, "image=node:24"]] {
            // Its annotation refuses another image.
            if definition == "elastic-ci-stack" && rules.contains(&"image=node:24") {
                continue;
            }
            let result = namespace.pod_or_refusal(&function, rules).await;
            match result {
                Ok(()) => assert!(rank(passes) <= rank(standard), "{rules:?}"),
                Err(text) => {
                    assert!(rank(passes) > rank(standard), "{rules:?}: {text}");
                    assert!(text.contains(&format!("violates PodSecurity \"{standard}:")), "{text}");
                }
            }
        }
    }
}

#[test]
fn every_definition_has_a_standard() {
    let mut names: Vec<_> = compiled().iter().map(|manifest| name(manifest).to_owned()).collect();
    names.sort();
    assert_eq!(names, DEFINITIONS.map(|(name, _)| name));
}

#[tokio::test]
async fn restricted_admits_one_definition_whatever_its_step_asks_for() {
    each_definition_is_judged_by("restricted").await;
}

#[tokio::test]
async fn baseline_admits_all_but_the_definition_with_docker() {
    each_definition_is_judged_by("baseline").await;
}

/// In such a namespace, that is the only sign of a Job that will have no pod.
#[tokio::test]
async fn the_warning_of_the_api_server_is_logged_once_for_a_definition() {
    let namespace = Namespace::enforcing("restricted").await;
    let function = namespace.function();
    let jobs = [create(&function, &event()).await, create(&function, &event()).await];
    let mut log = function.stop().await.lines();
    log.retain(|line| line["message"] == "the API server warns about the Job");
    let [line] = &log[..] else { panic!("not one line of two Jobs: {log:#?}") };
    assert_eq!((&line["level"], &line["definition"]), (&json!("WARN"), &json!("default")));
    assert!(jobs[0].ends_with(line["job"].as_str().unwrap()), "{line}");
    assert!(line["warning"].as_str().unwrap().contains("would violate PodSecurity \"restricted:"), "{line}");
}
