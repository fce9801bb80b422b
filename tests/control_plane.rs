//! The function and its role file on a real Kubernetes API server, with the real Job controller and the real verifier of EKS tokens.
//!
//! All tests share one control plane, and each has its own namespace. `make test` runs them.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod common;
#[path = "control_plane/headroom.rs"]
mod headroom;
#[path = "control_plane/job_tokens.rs"]
mod job_tokens;
#[path = "common/namespace.rs"]
mod namespace;
#[path = "control_plane/pod_security.rs"]
mod pod_security;
#[path = "control_plane/doctor.rs"]
mod the_doctor;
#[path = "control_plane/sweep.rs"]
mod the_sweep;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use agent_scheduler::aws::eks_token;
use aws_credential_types::Credentials;
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use futures_util::future::join_all;
use http::Request;
use lab::{
    AGENT_TOKEN_PARAMETER, Actor, CLUSTER, Entry, Event, Function, Kind, Lab, Parameter, control_plane::eventually,
    function::Builder, kubeconfig::Cluster,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use common::{Clock, FUNCTION, leaks};
use namespace::{
    Namespace, PERMISSIONS, REGION, SUBJECT, SWEEP_PERMISSIONS, compiled, create, event, event_with, name, ok,
};

const OTHER_PARAMETER: &str = "/buildkite/other-token";
const OWN_IMAGE: &str = "111122223333.dkr.ecr.us-east-1.amazonaws.com/elastic-ci-stack:1";

impl Namespace {
    /// Removes a verb from a role, and waits until that has its effect.
    async fn remove_verb(&mut self, role: &str, resource: &str, verb: &str) {
        // That of the Secret is a role of its own.
        let role = if resource == "secrets" { "buildkite-on-demand-agent-scheduler-agent-token" } else { role };
        let path = self.path(&format!("roles/{role}"));
        let mut role = ok(self.admin.get(&path).await);
        let rules = role["rules"].as_array_mut().unwrap();
        let of_resource = rules.iter_mut().find(|rule| rule["resources"][0] == resource).unwrap();
        of_resource["verbs"].as_array_mut().unwrap().retain(|own| own != verb);
        // Kubernetes refuses a rule without a verb.
        rules.retain(|rule| rule["verbs"] != json!([]));
        ok(self.admin.put(&path, &role).await);
        self.until_permitted(resource, verb, false).await;
    }

    /// Returns when it has its effect.
    async fn forbid_jobs_by_quota(&mut self) {
        let quota = json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "no-jobs"},
            "spec": {"hard": {"count/jobs.batch": "0"}},
        });
        ok(self.admin.post(&self.path("resourcequotas"), &quota).await);
        eventually("the quota has no effect", async || {
            (self.get("resourcequotas/no-jobs").await["status"]["hard"]["count/jobs.batch"] == "0").then_some(())
        })
        .await;
    }

    /// Its refusals are errors: there is no build page for them.
    fn without_stacks_api(&self) -> Builder {
        self.builder().env("STACKS_API", "false")
    }

    /// The definition `elastic-ci-stack` with an image of the user's own: no job gets its placeholder.
    async fn put_own_image(&mut self) {
        let mut manifest = compiled().into_iter().find(|manifest| name(manifest) == "elastic-ci-stack").unwrap();
        manifest["template"]["spec"]["containers"][0]["image"] = json!(OWN_IMAGE);
        self.apply(&manifest).await;
    }

    /// Writes the status that a kubelet writes when the agent has ended.
    async fn end_pod(&mut self, pod: &Value, phase: &str, exit_code: i32, conditions: &Value) {
        let status = json!({"status": {
            "phase": phase,
            "conditions": conditions,
            "containerStatuses": [status("agent", &json!({"terminated": {"exitCode": exit_code}}))],
        }});
        self.patch(&format!("pods/{}/status", name(pod)), &status).await;
    }

    /// A new job of the published event, and its Pod.
    async fn job_and_pod(&mut self) -> (String, Value) {
        let job = self.create(&event()).await;
        let pod = self.pod(&job).await;
        (job, pod)
    }

    /// The agent token that the pods get.
    async fn secret_token(&mut self) -> String {
        let secret = self.get("secrets/buildkite-agent-token").await;
        String::from_utf8(BASE64_STANDARD.decode(secret["data"]["token"].as_str().unwrap()).unwrap()).unwrap()
    }

    async fn until_active(&mut self, job: &str) {
        eventually("the Job is not active", async || {
            (self.get(&format!("jobs/{job}")).await["status"]["active"] == 1).then_some(())
        })
        .await;
    }

    /// The audited requests of the function, in the order of their arrival.
    fn requests(&self) -> Vec<Value> {
        let mut audit = self.control_plane.audit(&self.name);
        audit.retain(|entry| entry["user"]["username"] == SUBJECT);
        audit.sort_by_key(|entry| entry["requestReceivedTimestamp"].to_string());
        audit
    }

    /// Replaces the agent token of a parameter in SSM.
    fn put_token(&self, parameter: &str, token: &str) {
        self.lab.aws.put_parameter(parameter, Parameter::secure_string(token));
    }

    async fn count(&mut self, resource: &str) -> usize {
        self.list(resource).await.len()
    }

    /// A Pod other than these.
    async fn next_pod(&mut self, others: &[&Value]) -> Value {
        eventually("there is no other Pod", async || {
            let pods = self.list("pods").await.into_iter();
            pods.into_iter().find(|pod| others.iter().all(|other| other["metadata"]["uid"] != pod["metadata"]["uid"]))
        })
        .await
    }
}

/// What a kubelet says of a container.
fn status(name: &str, state: &Value) -> Value {
    json!({"name": name, "image": name, "imageID": "", "ready": false, "restartCount": 0, "state": state})
}

/// A new event fails with this type, and a text that has all these words.
async fn fails(function: Function, error_type: &str, words: &[&str]) {
    fails_with(&function, &event(), error_type, words).await;
}

async fn fails_with(function: &Function, event: &Event, error_type: &str, words: &[&str]) {
    let (actual, text) = function.fail(event).await;
    assert_eq!(actual, error_type, "{text}");
    for words in words {
        assert!(text.contains(words), "{words:?} is not in: {text}");
    }
}

fn template(name: &str, image: &str) -> Value {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "agent", "image": image, "args": ["start"]}]});
    json!({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": {"spec": spec}})
}

/// The container of that name, of either kind.
fn container<'a>(pod: &'a Value, kind: &str, name: &str) -> &'a Value {
    pod["spec"][kind].as_array().unwrap().iter().find(|container| container["name"] == name).unwrap()
}

/// A variable of the agent, if it has that.
fn variable<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    let env = container(pod, "containers", "agent")["env"].as_array().unwrap();
    env.iter().find(|variable| variable["name"] == name)
}

/// Its value. The API server leaves an empty one out.
fn value<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    variable(pod, name).map(|variable| variable["value"].as_str().unwrap_or_default())
}

mod with_the_role_file {
    use super::*;

    #[tokio::test]
    async fn the_whole_event_succeeds() {
        let mut namespace = Namespace::new().await;
        let event = event();
        let created = json!({"outcome": "created", "job": event.job_name(), "namespace": namespace.name});
        assert_eq!(namespace.function().succeed(&event).await, created);
        assert_eq!(namespace.count("jobs").await, 1);
        assert_eq!(namespace.secret_token().await, namespace.lab.agent_token());
        assert_eq!(leaks(&namespace.lab), [""; 0]);
    }

    #[tokio::test]
    async fn the_eks_token_is_verified_once_before_the_first_event() {
        let namespace = Namespace::new().await;
        // With keys that this namespace has not used.
        let lab = namespace.control_plane.lab().await;
        let function = lab.function(FUNCTION).env("KUBERNETES_NAMESPACE", &namespace.name).start();
        function.initialised().await.unwrap();
        let verified = || lab.timeline.entries().iter().filter(|entry| entry.actor == Actor::Sts).count();
        assert_eq!(verified(), 1);
        function.succeed(event()).await;
        assert_eq!(verified(), 1);
    }

    #[tokio::test]
    async fn the_function_may_do_nothing_else() {
        let namespace = Namespace::new().await;
        let other = Namespace::without_permissions().await;
        let job = namespace.create(&event()).await;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        });
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "another"}});
        let path = |resource: &str| namespace.path(resource);
        let mut function = namespace.as_function().await;
        let answers = [
            (function.get(&path("secrets/buildkite-agent-token")).await, "cannot get resource \"secrets\""),
            (function.get(&path("secrets")).await, "cannot list resource \"secrets\""),
            (
                function.apply(&path("secrets/another?fieldManager=lab"), &secret).await,
                "cannot patch resource \"secrets\"",
            ),
            (function.post(&path("secrets"), &secret).await, "cannot create resource \"secrets\""),
            (function.post(&path("pods"), &pod).await, "cannot create resource \"pods\""),
            (function.get(&path("pods/none")).await, "cannot get resource \"pods\""),
            (function.delete(&path("pods/none")).await, "cannot delete resource \"pods\""),
            (
                function.apply(&path(&format!("jobs/{job}?fieldManager=lab")), &pod).await,
                "cannot patch resource \"jobs\"",
            ),
            (function.get(&other.path("jobs/none")).await, "cannot get resource \"jobs\""),
            (function.get(&other.path("pods")).await, "cannot list resource \"pods\""),
        ];
        for ((status, answer), words) in answers {
            assert_eq!((status, &answer["reason"]), (403, &json!("Forbidden")), "{answer}");
            let message = answer["message"].as_str().unwrap();
            assert!(message.contains(SUBJECT) && message.contains(words), "{message}");
        }
    }

    #[tokio::test]
    async fn another_namespace_or_secret_is_forbidden() {
        let namespace = Namespace::new().await;
        let other = Namespace::without_permissions().await;
        for (variable, value, words) in [
            ("KUBERNETES_NAMESPACE", &*other.name, format!("--namespace {}", other.name)),
            // RBAC knows no namespace that does not exist.
            ("KUBERNETES_NAMESPACE", "not-there", "kubectl create namespace not-there".to_owned()),
            ("AGENT_TOKEN_SECRET_NAME", "another", "secrets \"another\" is forbidden".to_owned()),
        ] {
            fails(namespace.builder().env(variable, value).start(), "Forbidden", &[&words]).await;
        }
    }

    #[tokio::test]
    async fn each_permission_is_needed_and_the_error_names_it() {
        for (resource, verb) in PERMISSIONS {
            without(resource, verb).await;
        }
    }

    /// Removes one verb from the role, and delivers one event without and with it.
    async fn without(resource: &str, verb: &str) {
        let mut namespace = Namespace::new().await;
        let event = event();
        // Creates Job and Secret for the verbs that are needed only if they exist.
        if matches!((resource, verb), ("jobs", "get") | ("secrets", "patch")) {
            namespace.create(&event).await;
        }
        namespace.remove_verb(SUBJECT, resource, verb).await;

        let permission = format!("User \"{SUBJECT}\" cannot {verb} resource \"{resource}\"");
        let fix = format!("kubectl apply -f buildkite-role.yaml --namespace {}", namespace.name);
        fails_with(&namespace.function(), &event, "Forbidden", &[&permission, &fix]).await;

        namespace.apply_role_file().await;
        namespace.until_permitted(resource, verb, true).await;
        namespace.function().succeed(&event).await;
    }
}

mod a_pod_definition {
    use super::*;

    /// The complete `PodTemplates` in the documentation.
    fn of_the_docs() -> Vec<Value> {
        let pages = [include_str!("../docs/pod-definitions.md"), include_str!("../docs/fargate-and-ec2.md")];
        let blocks = pages.iter().flat_map(|page| page.split("```yaml\n").skip(1));
        let blocks = blocks.filter_map(|rest| rest.split_once("\n```"));
        let whole = blocks.filter(|(yaml, _)| yaml.contains("kind: PodTemplate") && yaml.contains("\ntemplate:"));
        let manifests: Vec<_> = whole.map(|(yaml, _)| serde_saphyr::from_str(yaml).unwrap()).collect();
        assert!(!manifests.is_empty());
        manifests
    }

    impl Namespace {
        async fn apply_folder(&self, folder: &str) {
            self.control_plane.apply_folder(&path(folder), &self.name).await.unwrap();
        }

        /// No pod of `elastic-ci-stack` is made without its service account.
        async fn make_service_account(&self) {
            let file = path("elastic-ci-stack/service-account.yaml");
            self.control_plane.apply(&file, &self.name).await.unwrap();
        }

        /// The image that the step of a new event gets.
        async fn image(&mut self, function: &Function, rules: &[&str]) -> String {
            let job = create(function, &event_with(rules)).await;
            let job = self.get(&format!("jobs/{job}")).await;
            job["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap().to_owned()
        }

        /// Posts an object strictly: it is valid, and Kubernetes warns of nothing.
        async fn post_strictly(&mut self, resource: &str, object: &Value) {
            let request = Request::post(self.path(resource)).header("content-type", "application/json");
            let response = self.admin.send(request, object.to_string()).await;
            assert_eq!(response.status(), 201, "{response:?}");
            assert_eq!(response.headers().get("warning"), None, "{response:?}");
        }
    }

    /// A file or folder of `pod-definitions`.
    fn path(name: &str) -> String {
        format!("{}/pod-definitions/{name}", env!("CARGO_MANIFEST_DIR"))
    }

    /// Base and overlays, built by kubectl's own kustomize: a new name stands wherever the old one stood.
    #[tokio::test]
    async fn of_an_overlay_is_a_copy_with_its_own_service_account_image_and_buckets() {
        const BASE: &str = "elastic-ci-stack";
        let mut namespace = Namespace::new().await;
        // The base has no region, not even an empty one, so that EKS sets it.
        let cases = [
            (BASE, BASE, "", "none", None),
            (
                "overlays/elastic-ci-stack-deploy",
                "elastic-ci-stack-deploy",
                "example-deploy-secrets",
                "poweruser",
                Some("us-east-1"),
            ),
            (
                "overlays/elastic-ci-stack-release",
                "elastic-ci-stack-release",
                "example-release-secrets",
                "readonly",
                Some("eu-central-1"),
            ),
        ];
        for (folder, ..) in cases {
            namespace.apply_folder(folder).await;
        }
        let names = |items: &[Value]| -> Vec<_> { items.iter().map(|item| name(item).to_owned()).collect() };
        let copies = cases.map(|(_, name, ..)| name);
        assert_eq!(names(&namespace.list("podtemplates").await), copies);
        let accounts = namespace.list("serviceaccounts").await;
        assert_eq!(names(&accounts), [&["default"], &copies[..]].concat());
        let roles = accounts.iter().map(|account| &account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]);
        let roles: Vec<_> = roles.filter_map(Value::as_str).collect();
        assert_eq!(roles, ["arn:aws:iam::111122223333:role/elastic-ci-stack-release"]);

        let of_the_base = event_with(&[&format!("pod-definition={BASE}")]);
        let words = &["the placeholder build-your-own.invalid/elastic-ci-stack", "build the image"];
        fails_with(&namespace.without_stacks_api().start(), &of_the_base, "InvalidPodDefinition", words).await;
        namespace.put_own_image().await;
        for (_, copy, bucket, ecr, region) in cases {
            let job = namespace.create(&event_with(&[&format!("pod-definition={copy}")])).await;
            let pod = namespace.pod(&job).await;
            assert_eq!(pod["spec"]["serviceAccountName"], copy);
            assert_eq!(container(&pod, "containers", "agent")["image"], OWN_IMAGE);
            assert_eq!(container(&pod, "initContainers", "dockerd")["image"], "docker:29-dind");
            assert_eq!(value(&pod, "BUILDKITE_SECRETS_BUCKET"), Some(bucket));
            assert_eq!(value(&pod, "BUILDKITE_ECR_POLICY"), Some(ecr));
            // A patch adds to the base, and removes nothing.
            assert_eq!(value(&pod, "DOCKER_HOST"), Some("unix:///docker/docker.sock"));
            // The source of BUILDKITE_STACK_NAME.
            assert_eq!(pod["metadata"]["annotations"]["buildkite.com/pod-definition"], copy);
            assert_eq!((value(&pod, "AWS_REGION"), value(&pod, "AWS_DEFAULT_REGION")), (region, region));
        }
    }

    /// Kubernetes takes the Job, and makes no pod. README quotes its event.
    #[tokio::test]
    async fn without_its_service_account_has_a_job_and_no_pod() {
        let mut namespace = Namespace::new().await;
        namespace.put_own_image().await;
        let job = namespace.create(&event_with(&["pod-definition=elastic-ci-stack"])).await;
        eventually("no event names the service account", async || {
            let events = namespace.list("events").await;
            let of_job = events.iter().filter(|event| event["involvedObject"]["name"] == *job);
            let mut texts = of_job.filter_map(|event| event["message"].as_str());
            texts.any(|text| text.contains("serviceaccount \"elastic-ci-stack\" not found")).then_some(())
        })
        .await;
        assert_eq!(namespace.count("pods").await, 0);
        // It is made once the account exists.
        namespace.apply_folder("elastic-ci-stack").await;
        namespace.pod(&job).await;
    }

    /// Posted by the function and as its own user, with and without overrides by the step; each gets its Pod.
    #[tokio::test]
    async fn of_every_file_is_admitted_strictly() {
        let mut namespace = Namespace::new().await;
        namespace.make_service_account().await;
        namespace.put_own_image().await;
        let function = namespace.function();
        let mut created = 0;
        for manifest in compiled() {
            let definition = format!("pod-definition={}", name(&manifest));
            let allow_image = &manifest["metadata"]["annotations"]["agent-scheduler.buildkite.com/allow-image"];
            let mut overrides: Vec<&[&str]> = vec![&[], &["cpu=250m", "memory=256Mi"]];
            if allow_image != "false" {
                overrides.push(&["image=node:24", "cpu=250m", "memory=256Mi"]);
            }
            for rules in overrides {
                let job = create(&function, &event_with(&[rules, &[&definition]].concat())).await;
                created += 1;
                let pod = namespace.pod(&job).await;
                if rules.contains(&"image=node:24") {
                    assert_eq!(container(&pod, "containers", "agent")["image"], "node:24");
                    assert_eq!(pod["spec"]["initContainers"][0]["name"], "agent-scheduler-copy-agent");
                }
            }
        }
        let mut posts = namespace.requests();
        posts.retain(|entry| entry["verb"] == "create" && entry["objectRef"]["resource"] == "jobs");
        assert_eq!(posts.len(), created);
        for post in posts {
            assert!(post["requestURI"].as_str().unwrap().contains("fieldValidation=Strict"), "{post}");
            // A second time under another name, as the function does not read warnings.
            let mut job = post["requestObject"].clone();
            job["metadata"]["name"] = json!("again");
            namespace.post_strictly("jobs?fieldValidation=Strict&dryRun=All", &job).await;
        }
    }

    /// The files of the build and those of README can be applied to the namespace.
    #[tokio::test]
    async fn of_every_file_is_a_pod_template() {
        let mut namespace = Namespace::new().await;
        namespace.make_service_account().await;
        for mut manifest in compiled().into_iter().chain(of_the_docs()) {
            if name(&manifest) == "elastic-ci-stack" {
                manifest["template"]["spec"]["containers"][0]["image"] = json!(OWN_IMAGE);
            }
            namespace.post_strictly("podtemplates?fieldValidation=Strict", &manifest).await;
            // With the defaults of Kubernetes filled in, it is still valid.
            let event = event_with(&[&format!("pod-definition={}", name(&manifest))]);
            namespace.function().succeed(&event).await;
            namespace.pod(&event.job_name()).await;
        }
    }

    #[tokio::test]
    async fn of_the_cluster_is_used_changed_found_broken_and_removed() {
        let mut namespace = Namespace::new().await;
        let clock = Clock::new(&namespace.name);
        let function = clock.give(namespace.without_stacks_api()).start();
        let minute = Duration::from_secs(61);
        let compiled_image = namespace.image(&function, &[]).await;

        // An unknown name is listed at once, a changed definition after a minute.
        namespace.apply(&template("node", "node:24")).await;
        assert_eq!(namespace.image(&function, &["pod-definition=node"]).await, "node:24");
        namespace.apply(&template("default", "theirs:1")).await;
        clock.put_forward(minute);
        assert_eq!(namespace.image(&function, &[]).await, "theirs:1");

        namespace.apply(&template("default", "theirs:2")).await;
        assert_eq!(namespace.image(&function, &[]).await, "theirs:1", "the copy is kept for a minute");
        clock.put_forward(2 * minute);
        assert_eq!(namespace.image(&function, &[]).await, "theirs:2");

        // Kubernetes fills in `Always`.
        let mut broken = template("default", "theirs:3");
        broken["template"]["spec"].as_object_mut().unwrap().remove("restartPolicy");
        namespace.delete("podtemplates/default").await;
        namespace.apply(&broken).await;
        clock.put_forward(3 * minute);
        let origin = format!("PodTemplate default in namespace {}: template.spec.restartPolicy", namespace.name);
        fails_with(&function, &event(), "InvalidPodDefinition", &[&origin, "\"Always\""]).await;
        assert_eq!(namespace.image(&function, &["pod-definition=node"]).await, "node:24");

        namespace.delete("podtemplates/default").await;
        clock.put_forward(4 * minute);
        assert_eq!(namespace.image(&function, &[]).await, compiled_image);
        let unknown = event_with(&["pod-definition=nodejs"]);
        fails_with(&function, &unknown, "UnknownPodDefinition", &["default", "node, "]).await;
    }

    /// As a kubelet reports a pod whose sidecar has a start-up probe, from its start to its end.
    #[tokio::test]
    async fn with_a_native_sidecar_ends_the_job_when_the_agent_ends() {
        let mut namespace = Namespace::new().await;
        namespace.make_service_account().await;
        namespace.put_own_image().await;
        let job = namespace.create(&event_with(&["pod-definition=elastic-ci-stack"])).await;
        let pod = namespace.pod(&job).await;
        let sidecar = container(&pod, "initContainers", "dockerd");
        assert_eq!(sidecar["restartPolicy"], "Always");
        assert_eq!(sidecar["startupProbe"]["failureThreshold"], 180);
        // The pod stops the sidecar's containers first, and then the sidecar.
        assert!(sidecar["args"].as_array().unwrap().contains(&json!("--shutdown-timeout=15")), "{sidecar}");
        assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 110);

        let at = "2026-01-15T12:00:00Z";
        let waiting = json!({"waiting": {"reason": "PodInitializing"}});
        let running = json!({"running": {"startedAt": at}});
        let ended = |code: i32| json!({"terminated": {"exitCode": code, "startedAt": at, "finishedAt": at}});
        let status = |phase: &str, dockerd: (bool, &Value), agent: &Value| {
            let container = |name: &str, started: bool, state: &Value| {
                json!([{
                    "name": name, "image": name, "imageID": "", "restartCount": 0, "ready": started, "started": started,
                    "state": state,
                }])
            };
            json!({"status": {
                "phase": phase,
                "initContainerStatuses": container("dockerd", dockerd.0, dockerd.1),
                "containerStatuses": container("agent", agent["running"].is_object(), agent),
            }})
        };
        let path = format!("pods/{}/status", name(&pod));
        for (phase, dockerd, agent) in [
            ("Pending", (false, &running), &waiting),
            ("Running", (true, &running), &running),
            // The agent has ended, and the sidecar is being stopped.
            ("Running", (true, &running), &ended(0)),
        ] {
            namespace.patch(&path, &status(phase, dockerd, agent)).await;
        }
        namespace.until_active(&job).await;
        // Stopped by the signal, which is not a failure of the pod.
        namespace.patch(&path, &status("Succeeded", (false, &ended(143)), &ended(0))).await;
        assert_eq!(namespace.finished(&job).await["type"], "Complete");
        assert_eq!(namespace.count("pods").await, 1);
    }

    #[tokio::test]
    async fn with_a_field_that_kubernetes_does_not_know_is_refused() {
        let namespace = Namespace::new().await;
        let container = json!({"name": "agent", "image": "i", "imagePulPolicy": "Never"});
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
        });
        let path = namespace.path("jobs?fieldValidation=Strict");
        let (status, answer) = namespace.as_function().await.post(&path, &job).await;
        assert_eq!((status, &answer["reason"]), (400, &json!("BadRequest")), "{answer}");
        let words = "unknown field \"spec.template.spec.containers[0].imagePulPolicy\"";
        assert!(answer["message"].as_str().unwrap().contains(words), "{answer}");
    }
}

mod an_eks_token {
    use super::*;

    const PREFIX: &str = "k8s-aws-v1.";

    /// The same token with another URL in it.
    fn changed(token: &str, change: impl FnOnce(String) -> String) -> String {
        let url = BASE64_URL_SAFE_NO_PAD.decode(token.strip_prefix(PREFIX).unwrap()).unwrap();
        let url = change(String::from_utf8(url).unwrap());
        format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(url))
    }

    #[tokio::test]
    async fn of_the_function_is_accepted_as_user_and_group() {
        let namespace = Namespace::new().await;
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        let answer = ok(namespace.as_function().await.post(path, &review).await);
        let user = &answer["status"]["userInfo"];
        assert_eq!((&user["username"], &user["groups"]), (&json!(SUBJECT), &json!([SUBJECT, "system:authenticated"])));
    }

    /// With 401, for a reason of the real authenticator or of STS.
    #[tokio::test]
    async fn with_one_thing_wrong_is_refused() {
        let namespace = Namespace::new().await;
        let (keys, credentials, now) = (namespace.lab.credentials(), namespace.credentials(), SystemTime::now());
        let other_key = Credentials::new(&keys.access_key_id, "another", Some(keys.session_token.clone()), None, "lab");
        let signed = |credentials, cluster, at| eks_token::token(credentials, REGION, cluster, at).unwrap();
        let good = namespace.eks_token();
        let signature = "the signature is not that of this request for this cluster";
        let cases = [
            (signed(&credentials, "another-cluster", now), signature),
            (signed(&other_key, CLUSTER, now), signature),
            (changed(&good, |url| url + "&x-k8s-aws-id=example-cluster"), "non-whitelisted query parameter"),
            (format!("{good}="), "illegal base64 data"),
            (signed(&credentials, CLUSTER, now - Duration::from_mins(16)), "X-Amz-Date parameter is expired"),
            (signed(&credentials, CLUSTER, now + Duration::from_mins(6)), "Signature not yet current"),
        ];
        let status =
            async |token: &str| namespace.control_plane.client(token).await.get(&namespace.path("jobs/none")).await.0;
        assert_eq!(status(&good).await, 404, "a good token is accepted");
        for (token, reason) in cases {
            let before = namespace.lab.timeline.entries().len();
            assert_eq!(status(&token).await, 401, "{reason}");
            let sts = namespace.lab.timeline.entries().split_off(before);
            let refused = |entry: &Entry| matches!(&entry.kind, Kind::TokenRefused(text) if text.contains(reason));
            let authenticator = namespace.control_plane.log("aws-iam-authenticator");
            assert!(
                sts.iter().any(refused) || authenticator.contains(reason),
                "{reason:?} is neither in {sts:?} nor in\n{authenticator}"
            );
        }
    }
}

mod the_job_controller {
    use super::*;

    #[tokio::test]
    async fn makes_one_pod_with_our_metadata() {
        let mut namespace = Namespace::new().await;
        let event = event();
        let job = create(&namespace.builder().env("BUILDKITE_AGENT_TAGS", "os=linux").start(), &event).await;
        let pod = namespace.pod(&job).await;
        let uuid = job.strip_prefix("buildkite-").unwrap();

        let labels = json!({
            "app.kubernetes.io/managed-by": "agent-scheduler",
            "buildkite.com/job-uuid": uuid,
            "buildkite.com/queue": "kubernetes",
            "batch.kubernetes.io/job-name": job,
        });
        for (label, value) in labels.as_object().unwrap() {
            assert_eq!(pod["metadata"]["labels"][label], *value, "{label}");
        }
        let url = format!("https://buildkite.com/example-org/example-pipeline/builds/1234#{uuid}");
        assert_eq!(pod["metadata"]["annotations"]["buildkite.com/job-url"], url);
        assert_eq!(value(&pod, "BUILDKITE_AGENT_ACQUIRE_JOB"), Some(uuid));
        assert_eq!(value(&pod, "BUILDKITE_AGENT_TAGS"), Some("os=linux,queue=kubernetes,pod-definition=default"));
        assert_eq!(pod["spec"]["restartPolicy"], "Never");

        let job = namespace.get(&format!("jobs/{job}")).await;
        let expected = json!({
            "activeDeadlineSeconds": 21600, "ttlSecondsAfterFinished": 600, "backoffLimit": 3, "parallelism": 1,
            "completions": 1,
        });
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(job["spec"][field], *value, "{field}");
        }
        assert_eq!(namespace.count("pods").await, 1);
    }

    #[tokio::test]
    async fn gives_the_agent_token_to_the_agent_alone() {
        let mut namespace = Namespace::new().await;
        let (job, pod) = namespace.job_and_pod().await;
        let reference = &variable(&pod, "BUILDKITE_AGENT_TOKEN").unwrap()["valueFrom"]["secretKeyRef"];
        assert_eq!(*reference, json!({"name": "buildkite-agent-token", "key": "token"}));
        assert_eq!(namespace.secret_token().await, namespace.lab.agent_token());

        let audit = namespace.control_plane.audit(&namespace.name);
        let posted = |entry: &Value| entry["requestObject"]["metadata"]["name"] == *job;
        assert!(audit.iter().any(posted), "the audit log has no bodies");
        let token = namespace.lab.agent_token().to_owned();
        for text in [namespace.get(&format!("jobs/{job}")).await, pod, json!(audit)].map(|value| value.to_string()) {
            assert!(!text.contains(&token) && !text.contains(&BASE64_STANDARD.encode(&token)), "{text}");
        }
        assert_eq!(leaks(&namespace.lab), [""; 0]);
    }

    /// What a kubelet writes of a pod, and whether its Job makes another one or ends with this reason.
    #[tokio::test]
    async fn replaces_a_pod_that_never_ran_its_agent_or_was_disrupted_and_no_other() {
        let agent = |code: i32| json!({"phase": "Failed", "containerStatuses": [status("agent", &json!({"terminated": {"exitCode": code}}))]});
        let disrupted = |code: i32| {
            let mut status = agent(code);
            status["conditions"] =
                json!([{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}]);
            status
        };
        let refused =
            |reason: &str| json!({"phase": "Failed", "reason": reason, "message": "the kubelet refuses the pod"});
        let init = json!({
            "phase": "Failed",
            "initContainerStatuses": [status("init", &json!({"terminated": {"exitCode": 1}}))],
            "containerStatuses": [status("agent", &json!({"waiting": {"reason": "PodInitializing"}}))],
        });
        let cases = [
            ("OutOfcpu", refused("OutOfcpu"), None),
            ("OutOfpods", refused("OutOfpods"), None),
            ("NodeShutdown", refused("NodeShutdown"), None),
            ("init container 1", init, None),
            ("143, disrupted", disrupted(143), None),
            ("137, disrupted", disrupted(137), None),
            ("2, disrupted", disrupted(2), None),
            ("27, disrupted", disrupted(27), Some("PodFailurePolicy")),
            ("143", agent(143), Some("PodFailurePolicy")),
            ("137", agent(137), Some("PodFailurePolicy")),
            ("2", agent(2), Some("PodFailurePolicy")),
            ("1", agent(1), Some("PodFailurePolicy")),
            ("27", agent(27), Some("PodFailurePolicy")),
        ];
        let rows = cases.map(async |(case, status, ends)| {
            let mut namespace = Namespace::new().await;
            let (job, first) = namespace.job_and_pod().await;
            namespace.patch(&format!("pods/{}/status", name(&first)), &json!({ "status": status })).await;
            if let Some(reason) = ends {
                let finished = namespace.finished(&job).await;
                assert_eq!((&finished["type"], &finished["reason"]), (&json!("Failed"), &json!(reason)), "{case}");
                assert_eq!(namespace.count("pods").await, 1, "{case}");
            } else {
                let second = namespace.next_pod(&[&first]).await;
                assert_eq!(second["spec"]["containers"], first["spec"]["containers"], "{case}");
                namespace.until_active(&job).await;
                namespace.end_pod(&second, "Succeeded", 0, &json!([])).await;
                assert_eq!(namespace.finished(&job).await["type"], "Complete", "{case}");
            }
        });
        join_all(rows).await;
    }

    #[tokio::test]
    async fn ends_the_job_after_three_replacements() {
        let mut namespace = Namespace::new().await;
        let (job, first) = namespace.job_and_pod().await;
        let mut pods = vec![first];
        let refused = json!({"status": {"phase": "Failed", "reason": "OutOfcpu"}});
        for _ in 0..3 {
            namespace.patch(&format!("pods/{}/status", name(pods.last().unwrap())), &refused).await;
            pods.push(namespace.next_pod(&pods.iter().collect::<Vec<_>>()).await);
        }
        namespace.patch(&format!("pods/{}/status", name(pods.last().unwrap())), &refused).await;
        assert_eq!(namespace.finished(&job).await["reason"], "BackoffLimitExceeded");
        assert_eq!(namespace.count("pods").await, 4);
    }

    #[tokio::test]
    async fn has_failed_the_job_of_an_earlier_delivery_and_the_log_says_so() {
        let mut namespace = Namespace::new().await;
        let (function, event) = (namespace.function(), event());
        let job = create(&function, &event).await;
        let pod = namespace.pod(&job).await;
        namespace.end_pod(&pod, "Failed", 1, &json!([])).await;
        namespace.finished(&job).await;
        assert_eq!(function.succeed(&event).await["outcome"], "already-exists");
        let log = function.stop().await.lines();
        let text = format!("Job {job} has failed: the sweep makes the next one if the job still waits");
        let warned = |line: &Value| {
            line["level"] == "WARN" && line["message"].as_str().is_some_and(|message| message.starts_with(&text))
        };
        assert!(log.iter().any(warned), "{log:#?}");
    }

    #[tokio::test]
    async fn deletes_the_job_of_an_earlier_delivery_and_the_event_comes_again() {
        let mut namespace = Namespace::new().await;
        let event = event();
        let job = namespace.create(&event).await;
        let path = format!("jobs/{job}");
        namespace.patch(&path, &json!({"metadata": {"finalizers": ["example.com/audit"]}})).await;
        namespace.delete(&path).await;
        fails_with(&namespace.function(), &event, "JobIsDeleted", &[&job, "is being deleted"]).await;
        namespace.patch(&path, &json!({"metadata": {"finalizers": null}})).await;
        eventually("the Job is still there", async || (namespace.count("jobs").await == 0).then_some(())).await;
        namespace.create(&event).await;
    }

    #[tokio::test]
    async fn removes_job_and_pod_after_their_time_and_leaves_the_secret() {
        let mut namespace = Namespace::new().await;
        let (job, pod) = namespace.job_and_pod().await;
        assert_eq!(namespace.get(&format!("jobs/{job}")).await["spec"]["ttlSecondsAfterFinished"], 600);
        namespace.patch(&format!("jobs/{job}"), &json!({"spec": {"ttlSecondsAfterFinished": 1}})).await;
        namespace.end_pod(&pod, "Succeeded", 0, &json!([])).await;
        eventually("Job and Pod are still there", async || {
            (namespace.count("jobs").await == 0 && namespace.count("pods").await == 0).then_some(())
        })
        .await;
        assert_eq!(namespace.secret_token().await, namespace.lab.agent_token());
    }
}

#[tokio::test]
async fn fifty_deliveries_at_once_to_eight_processes_are_one_job_and_one_pod() {
    let mut namespace = Namespace::new().await;
    let functions: Vec<_> = (0..8).map(|_| Arc::new(namespace.function())).collect();
    let event = event();
    let deliveries: JoinSet<_> = (0..50)
        .map(|delivery| {
            let (function, event) = (Arc::clone(&functions[delivery % 8]), event.to_string());
            async move { function.succeed(event).await["outcome"].as_str().unwrap().to_owned() }
        })
        .collect();
    let mut outcomes = deliveries.join_all().await;
    outcomes.sort_unstable();
    assert_eq!(outcomes, [vec!["already-exists"; 49], vec!["created"]].concat());
    namespace.pod(&event.job_name()).await;
    assert_eq!((namespace.count("jobs").await, namespace.count("pods").await), (1, 1));
}

mod a_token_in_ssm {
    use super::*;

    impl Namespace {
        /// The function's last request is the Job, after the answers to all others.
        fn assert_job_last(&self) {
            let mut requests = self.requests();
            let job = requests.pop().unwrap();
            assert_eq!(job["objectRef"]["resource"], "jobs", "{job}");
            for request in requests {
                let (answered, posted) = (&request["stageTimestamp"], &job["requestReceivedTimestamp"]);
                assert!(answered.as_str().unwrap() < posted.as_str().unwrap(), "{request}");
            }
        }
    }

    #[tokio::test]
    async fn that_was_replaced_is_in_the_secret_before_the_next_job() {
        let mut namespace = Namespace::new().await;
        namespace.create(&event()).await;
        namespace.put_token(AGENT_TOKEN_PARAMETER, "bkct_rotated");
        namespace.create(&event()).await;
        assert_eq!(namespace.secret_token().await, "bkct_rotated");
        namespace.assert_job_last();
    }

    /// The function is warm, and its clock is put forward past the ages of the definitions and of the token.
    #[tokio::test]
    async fn that_was_replaced_is_applied_after_a_freeze_though_the_secret_is_gone() {
        let mut namespace = Namespace::new().await;
        let clock = Clock::new(&namespace.name);
        let function = clock.give(namespace.builder()).start();
        create(&function, &event()).await;

        namespace.put_token(AGENT_TOKEN_PARAMETER, "bkct_rotated");
        namespace.apply(&template("default", "theirs:1")).await;
        create(&function, &event()).await;
        assert_eq!(namespace.secret_token().await, namespace.lab.agent_token(), "a token is kept for five minutes");

        namespace.delete("secrets/buildkite-agent-token").await;
        // No further: the real authenticator refuses a token of the far future.
        clock.put_forward(Duration::from_secs(301));
        let job = create(&function, &event()).await;
        assert_eq!(namespace.secret_token().await, "bkct_rotated");
        let image = &namespace.pod(&job).await["spec"]["containers"][0]["image"];
        assert_eq!(image, "theirs:1");
        namespace.assert_job_last();
    }

    #[tokio::test]
    async fn is_shared_by_two_functions_through_two_rotations() {
        let mut namespace = Namespace::new().await;
        for token in ["bkct_first", "bkct_second", "bkct_third"] {
            namespace.put_token(AGENT_TOKEN_PARAMETER, token);
            for _ in 0..2 {
                namespace.create(&event()).await;
                assert_eq!(namespace.secret_token().await, token);
            }
        }
        let secret = namespace.get("secrets/buildkite-agent-token").await;
        let [entry] = &secret["metadata"]["managedFields"].as_array().unwrap()[..] else { panic!("{secret}") };
        assert!(entry["manager"].as_str().unwrap().starts_with("agent-scheduler:"), "{entry}");
    }

    /// Two stacks may use one Secret only if they read the same value.
    #[tokio::test]
    async fn of_another_parameter_is_a_conflict_once_it_differs() {
        let mut namespace = Namespace::new().await;
        namespace.create(&event()).await;
        let other = || namespace.builder().env("BUILDKITE_AGENT_TOKEN_PARAMETER_PATH", OTHER_PARAMETER).start();
        namespace.put_token(OTHER_PARAMETER, namespace.lab.agent_token());
        create(&other(), &event()).await;
        namespace.put_token(OTHER_PARAMETER, "bkct_other");
        let words = [
            "Secret buildkite-agent-token",
            "AgentTokenSecretName",
            "`kubectl delete secret buildkite-agent-token ",
            "Apply failed with 1 conflict: conflict with \"agent-scheduler:",
            ": .data.token",
        ];
        fails(other(), "RejectedByApiServer", &words).await;
        assert_eq!(namespace.secret_token().await, namespace.lab.agent_token());
        assert_eq!(namespace.count("jobs").await, 2);
    }
}

mod a_namespace {
    use super::*;

    /// With 403, as for a missing permission, and with its own message, as policies and webhooks do.
    #[tokio::test]
    async fn with_a_quota_of_jobs_gives_the_error_of_the_api_server() {
        let mut namespace = Namespace::new().await;
        namespace.forbid_jobs_by_quota().await;
        let words = ["Job buildkite-", "exceeded quota: no-jobs", "limited: count/jobs.batch=0"];
        fails(namespace.function(), "RejectedByApiServer", &words).await;
    }

    #[tokio::test]
    async fn that_is_being_terminated_gives_the_error_of_the_api_server() {
        let mut namespace = Namespace::new().await;
        // Finalizers keep the permissions, and so the namespace.
        for resource in [format!("roles/{SUBJECT}"), format!("rolebindings/{SUBJECT}")] {
            namespace.patch(&resource, &json!({"metadata": {"finalizers": ["lab.example/stay"]}})).await;
        }
        ok(namespace.admin.delete(&format!("/api/v1/namespaces/{}", namespace.name)).await);
        let words = format!("namespace {} because it is being terminated", namespace.name);
        fails(namespace.function(), "RejectedByApiServer", &[&words]).await;
    }
}

/// A cluster without the function's role, behind the lab's forwarder: `make run CONTEXT=…`.
mod a_cluster_of_a_kubeconfig {
    use super::*;

    async fn cluster(namespace: &Namespace) -> Cluster {
        Cluster::of_context(CLUSTER, Some(&namespace.control_plane.kubeconfig())).await.unwrap()
    }

    async fn lab(namespace: &Namespace) -> Lab {
        let mut lab = Lab::start().await;
        lab.forward_to(cluster(namespace).await).await;
        lab
    }

    #[tokio::test]
    async fn gets_the_job_with_the_permissions_of_the_kubeconfig() {
        let mut namespace = Namespace::without_permissions().await;
        let lab = lab(&namespace).await;
        let function = lab.function(FUNCTION).env("KUBERNETES_NAMESPACE", &namespace.name).start();
        let event = event();
        let job = create(&function, &event).await;
        assert_eq!(function.succeed(&event).await["outcome"], "already-exists");
        namespace.pod(&job).await;
        assert_eq!(namespace.secret_token().await, lab.agent_token());
        let audit = namespace.control_plane.audit(&namespace.name);
        let posted = audit.iter().find(|entry| entry["requestObject"]["metadata"]["name"] == *job).unwrap();
        assert_eq!(posted["user"]["username"], "admin", "{posted}");
        let jobs = cluster(&namespace).await.table(&namespace.path("jobs")).await.unwrap();
        assert!(jobs.starts_with("NAME ") && jobs.contains(&job), "{jobs}");
    }

    #[tokio::test]
    async fn gives_its_errors_and_those_of_the_lab() {
        let namespace = Namespace::without_permissions().await;
        let cluster = cluster(&namespace).await;
        cluster.check(&namespace.name).await.unwrap();
        let absent = cluster.check("absent").await.unwrap_err().to_string();
        assert!(absent.contains(&format!("`kubectl --context {CLUSTER} create namespace absent`")), "{absent}");
        let lab = lab(&namespace).await;
        let absent = lab.function(FUNCTION).env("KUBERNETES_NAMESPACE", "absent").start();
        fails(absent, "RejectedByApiServer", &["\"absent\""]).await;
        let other = lab.function(FUNCTION).env("KUBERNETES_CLUSTER_IDENTIFIER", "another-cluster").start();
        fails(other, "Unauthorized", &["\"another-cluster\""]).await;
    }
}
