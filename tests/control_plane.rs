//! The function and its role file on a real Kubernetes API server, with the real Job controller and the real judge of EKS tokens.
//!
//! All tests share one control plane, and each has a namespace of its own in it. `make test` runs them.

#![expect(clippy::unwrap_used, reason = "a test says so by ending")]

use std::{
    env, fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use agent_scheduler::eks;
use aws_credential_types::Credentials;
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use http::Request;
use lab::{
    AGENT_TOKEN_PARAMETER, Actor, Answer, CLUSTER, Client, ControlPlane, Entry, Function, Kind, Lab, Parameter,
    control_plane::eventually, function::Builder, kubeconfig::Cluster,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

const FUNCTION: &str = env!("CARGO_BIN_EXE_agent-scheduler");
const ROLE_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/buildkite-role.yaml");
const SUBJECT: &str = "buildkite-on-demand-agent-scheduler";
const REGION: &str = "us-east-1";

/// What the function needs, as resource and verb.
const PERMISSIONS: [(&str, &str); 5] =
    [("jobs", "create"), ("jobs", "get"), ("secrets", "create"), ("secrets", "patch"), ("podtemplates", "list")];

/// A namespace with the permissions that we tell users to give, and a lab whose functions are led there.
struct Scene {
    control_plane: &'static ControlPlane,
    lab: Lab,
    namespace: String,
    admin: Client,
}

impl Scene {
    async fn new() -> Self {
        let scene = Self::without_permissions().await;
        scene.apply_role_file().await;
        for (resource, verb) in PERMISSIONS {
            scene.until_permitted(resource, verb, true).await;
        }
        scene
    }

    async fn without_permissions() -> Self {
        let control_plane = ControlPlane::shared().await;
        let namespace = format!("test-{}", Uuid::new_v4().simple());
        control_plane.make_namespace(&namespace).await;
        Self { lab: control_plane.lab().await, admin: control_plane.admin().await, control_plane, namespace }
    }

    /// As README says it.
    async fn apply_role_file(&self) {
        self.control_plane.apply(ROLE_FILE, &self.namespace).await.unwrap();
    }

    /// The authoriser learns of a role a little after it was written.
    async fn until_permitted(&self, resource: &str, verb: &str, permitted: bool) {
        let group = if resource == "jobs" { "batch" } else { "" };
        let name = if resource == "secrets" { "buildkite-agent-token" } else { "" };
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {
                "namespace": self.namespace, "group": group, "resource": resource, "verb": verb, "name": name,
            }},
        });
        let mut function = self.as_function().await;
        eventually("the role has no effect", async || {
            let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
            let (_, answer) = function.post(path, &review).await;
            (answer["status"]["allowed"] == permitted).then_some(())
        })
        .await;
    }

    fn function(&self) -> Function {
        self.builder().start()
    }

    fn builder(&self) -> Builder {
        self.lab.function(FUNCTION).env("KUBERNETES_NAMESPACE", &self.namespace)
    }

    /// The path of a namespaced resource, such as `jobs` or `secrets/name`.
    fn path(&self, resource: &str) -> String {
        path(&self.namespace, resource)
    }

    async fn get(&mut self, resource: &str) -> Value {
        let (status, object) = self.admin.get(&path(&self.namespace, resource)).await;
        assert_eq!(status, 200, "{object}");
        object
    }

    async fn list(&mut self, resource: &str) -> Vec<Value> {
        self.get(resource).await["items"].as_array().unwrap().clone()
    }

    fn credentials(&self) -> Credentials {
        let keys = self.lab.credentials();
        Credentials::new(&keys.access_key_id, &keys.secret_access_key, Some(keys.session_token.clone()), None, "lab")
    }

    /// A token as the function signs it.
    fn token(&self) -> String {
        eks::token(&self.credentials(), REGION, CLUSTER, SystemTime::now()).unwrap()
    }

    /// The API server as the function sees it.
    async fn as_function(&self) -> Client {
        self.control_plane.client(&self.token()).await
    }

    /// The agent token that the pods get.
    async fn secret_token(&mut self) -> String {
        let secret = self.get("secrets/buildkite-agent-token").await;
        String::from_utf8(BASE64_STANDARD.decode(secret["data"]["token"].as_str().unwrap()).unwrap()).unwrap()
    }

    /// The Pod that the Job controller makes for a Job.
    async fn pod(&mut self, job: &str) -> Value {
        eventually("there is no Pod", async || {
            self.list("pods").await.into_iter().find(|pod| pod["metadata"]["labels"]["job-name"] == job)
        })
        .await
    }

    /// Says what a kubelet would say when the agent has ended.
    async fn end_pod(&mut self, pod: &Value, phase: &str, exit_code: i32, conditions: &Value) {
        let status = json!({"status": {
            "phase": phase,
            "conditions": conditions,
            "containerStatuses": [{
                "name": "agent", "image": "agent", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": exit_code}},
            }],
        }});
        let pod = pod["metadata"]["name"].as_str().unwrap();
        let (code, answer) = self.admin.patch(&path(&self.namespace, &format!("pods/{pod}/status")), &status).await;
        assert_eq!(code, 200, "{answer}");
    }

    /// The condition that says how a Job ended.
    async fn finished(&mut self, job: &str) -> Value {
        eventually("the Job has not ended", async || {
            let job = self.get(&format!("jobs/{job}")).await;
            let conditions = job["status"]["conditions"].as_array()?;
            let ended = |condition: &&Value| condition["type"] == "Complete" || condition["type"] == "Failed";
            conditions.iter().find(ended).cloned()
        })
        .await
    }
}

fn path(namespace: &str, resource: &str) -> String {
    let kind = resource.split(['/', '?']).next().unwrap();
    let group = match kind {
        "jobs" => "/apis/batch/v1",
        "roles" | "rolebindings" => "/apis/rbac.authorization.k8s.io/v1",
        _ => "/api/v1",
    };
    format!("{group}/namespaces/{namespace}/{resource}")
}

/// An event for a new job, and the name of its Job.
fn event() -> (String, String) {
    changed_event(|_| {})
}

/// The same with `change` made to its `detail`.
fn changed_event(change: impl FnOnce(&mut Value)) -> (String, String) {
    let uuid = Uuid::new_v4();
    let mut event: Value = serde_json::from_str(include_str!("../events/job-scheduled.json")).unwrap();
    event["detail"]["job"]["uuid"] = json!(uuid);
    change(&mut event["detail"]);
    (event.to_string(), format!("buildkite-{uuid}"))
}

async fn succeed(function: &Function, event: &str) -> Value {
    match function.invoke(event).await {
        Answer::Success(answer) => answer,
        other => panic!("{other:?}\n{}", function.output()),
    }
}

/// The error's type and text.
async fn fail(function: &Function, event: &str) -> (String, String) {
    match function.invoke(event).await {
        Answer::Error { error_type, error_message } => (error_type, error_message),
        other => panic!("{other:?}\n{}", function.output()),
    }
}

/// The clock of a process, by libfaketime; only its own, so that all others stay right.
struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    fn new(name: &str) -> Self {
        let libraries = fs::read_dir("/usr/lib").unwrap().flatten();
        let mut libraries = libraries.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
        let library = libraries.find(|library| library.is_file()).expect("libfaketime: apt-get install faketime");
        let clock = Self { library, file: env::temp_dir().join(format!("{name}.clock")) };
        clock.put_forward(Duration::ZERO);
        clock
    }

    fn of(&self, function: Builder) -> Builder {
        let function = function.env("LD_PRELOAD", self.library.display().to_string());
        function.env("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()).env("FAKETIME_NO_CACHE", "1")
    }

    fn put_forward(&self, time: Duration) {
        fs::write(&self.file, format!("+{}s", time.as_secs())).unwrap();
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        fs::remove_file(&self.file).unwrap();
    }
}

/// The answers to many events that are under way at once.
async fn at_once(deliveries: impl Iterator<Item = (Arc<Function>, String)>) -> Vec<String> {
    let deliveries: JoinSet<_> =
        deliveries.map(|(function, event)| async move { succeed(&function, &event).await }).collect();
    let outcome = |answer: Value| answer["outcome"].as_str().unwrap().to_owned();
    deliveries.join_all().await.into_iter().map(outcome).collect()
}

mod with_the_role_file {
    use super::*;

    #[tokio::test]
    async fn the_whole_event_succeeds() {
        let mut scene = Scene::new().await;
        let function = scene.function();
        let (event, name) = event();
        let created = json!({"outcome": "created", "job": name, "namespace": scene.namespace});
        assert_eq!(succeed(&function, &event).await, created);
        assert_eq!(scene.list("jobs").await.len(), 1);
        assert_eq!(scene.secret_token().await, scene.lab.agent_token());
        assert!(!function.output().contains(scene.lab.agent_token()));
    }

    #[tokio::test]
    async fn the_token_is_judged_before_the_first_event() {
        let scene = Scene::new().await;
        // With keys that the scene has not used.
        let lab = scene.control_plane.lab().await;
        let function = lab.function(FUNCTION).env("KUBERNETES_NAMESPACE", &scene.namespace).start();
        function.initialised().await.unwrap();
        let judgements = || lab.timeline.entries().iter().filter(|entry| entry.actor == Actor::Sts).count();
        assert_eq!(judgements(), 1);
        succeed(&function, &event().0).await;
        assert_eq!(judgements(), 1, "the API server asks about a token once");
    }

    /// 403 for what the function does not need.
    async fn refused(scene: &Scene, answer: (u16, Value), words: &str) {
        let (status, answer) = answer;
        assert_eq!((status, &answer["reason"]), (403, &json!("Forbidden")), "{answer}");
        let message = answer["message"].as_str().unwrap();
        assert!(message.contains(SUBJECT) && message.contains(words), "{message}");
        // The same caller is known, and may do what it needs.
        let jobs = scene.path("jobs/none");
        assert_eq!(scene.as_function().await.get(&jobs).await.0, 404);
    }

    #[tokio::test]
    async fn the_secret_cannot_be_read() {
        let scene = Scene::new().await;
        succeed(&scene.function(), &event().0).await;
        let mut function = scene.as_function().await;
        refused(&scene, function.get(&scene.path("secrets/buildkite-agent-token")).await, "cannot get").await;
        refused(&scene, function.get(&scene.path("secrets")).await, "cannot list").await;
    }

    #[tokio::test]
    async fn no_pod_can_be_created() {
        let scene = Scene::new().await;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        });
        let answer = scene.as_function().await.post(&scene.path("pods"), &pod).await;
        refused(&scene, answer, "cannot create resource \"pods\"").await;
    }

    #[tokio::test]
    async fn the_job_cannot_be_deleted() {
        let scene = Scene::new().await;
        let (event, name) = event();
        succeed(&scene.function(), &event).await;
        let answer = scene.as_function().await.delete(&scene.path(&format!("jobs/{name}"))).await;
        refused(&scene, answer, "cannot delete resource \"jobs\"").await;
    }

    #[tokio::test]
    async fn another_namespace_is_closed() {
        let scene = Scene::new().await;
        let other = Scene::without_permissions().await;
        let function = scene.builder().env("KUBERNETES_NAMESPACE", &other.namespace).start();
        let (error_type, text) = fail(&function, &event().0).await;
        assert_eq!(error_type, "Forbidden", "{text}");
        assert!(text.contains(&format!("--namespace {}", other.namespace)), "{text}");
        let answer = scene.as_function().await.get(&other.path("jobs/none")).await;
        refused(&scene, answer, "cannot get resource \"jobs\"").await;
    }

    #[tokio::test]
    async fn a_namespace_that_is_not_there_looks_the_same_and_is_told_too() {
        let scene = Scene::new().await;
        let function = scene.builder().env("KUBERNETES_NAMESPACE", "not-there").start();
        let (error_type, text) = fail(&function, &event().0).await;
        assert_eq!(error_type, "Forbidden", "{text}");
        assert!(text.contains("`kubectl create namespace not-there` if that is not there"), "{text}");
    }

    #[tokio::test]
    async fn another_secret_cannot_be_written() {
        let scene = Scene::new().await;
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "another"}});
        let mut function = scene.as_function().await;
        let path = scene.path("secrets/another?fieldManager=lab");
        refused(&scene, function.apply(&path, &secret).await, "cannot patch resource \"secrets\"").await;
        refused(&scene, function.post(&scene.path("secrets"), &secret).await, "cannot create resource \"secrets\"")
            .await;
        let (error_type, text) =
            fail(&scene.builder().env("AGENT_TOKEN_SECRET_NAME", "another").start(), &event().0).await;
        assert_eq!(error_type, "Forbidden", "{text}");
        assert!(text.contains("secrets \"another\" is forbidden"), "{text}");
    }

    /// Leaves one verb out of the role, and delivers one event twice.
    async fn without(resource: &str, verb: &str) {
        let mut scene = Scene::new().await;
        let (event, _) = event();
        // Makes Job and Secret for those verbs that are needed only when they are there.
        let prepared = matches!((resource, verb), ("jobs", "get") | ("secrets", "patch"));
        if prepared {
            succeed(&scene.function(), &event).await;
        }
        scene.take_away(resource, verb).await;
        let (error_type, text) = fail(&scene.function(), &event).await;
        assert_eq!(error_type, "Forbidden", "{text}");
        let words = format!("User \"{SUBJECT}\" cannot {verb} resource \"{resource}\"");
        assert!(text.contains(&words), "{text}");
        let mend = format!("kubectl apply -f buildkite-role.yaml --namespace {}", scene.namespace);
        assert!(text.contains(&mend), "{text}");

        scene.apply_role_file().await;
        scene.until_permitted(resource, verb, true).await;
        succeed(&scene.function(), &event).await;
    }

    #[tokio::test]
    async fn without_create_jobs_the_error_names_it() {
        without("jobs", "create").await;
    }

    #[tokio::test]
    async fn without_get_jobs_the_error_names_it() {
        without("jobs", "get").await;
    }

    #[tokio::test]
    async fn without_create_secrets_the_error_names_it() {
        without("secrets", "create").await;
    }

    #[tokio::test]
    async fn without_patch_secrets_the_error_names_it() {
        without("secrets", "patch").await;
    }

    #[tokio::test]
    async fn without_list_podtemplates_the_error_names_it() {
        without("podtemplates", "list").await;
    }

    impl Scene {
        async fn take_away(&mut self, resource: &str, verb: &str) {
            let mut role = self.get(&format!("roles/{SUBJECT}")).await;
            let rules = role["rules"].as_array_mut().unwrap();
            let of_resource = rules.iter_mut().find(|rule| rule["resources"][0] == resource).unwrap();
            of_resource["verbs"].as_array_mut().unwrap().retain(|own| own != verb);
            // Kubernetes takes no rule without a verb.
            rules.retain(|rule| rule["verbs"] != json!([]));
            let (status, answer) = self.admin.put(&self.path(&format!("roles/{SUBJECT}")), &role).await;
            assert_eq!(status, 200, "{answer}");
            self.until_permitted(resource, verb, false).await;
        }
    }
}

mod a_pod_definition {
    use super::*;

    const COMPILED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/pod_definitions.rs"));

    fn name(manifest: &Value) -> &str {
        manifest["metadata"]["name"].as_str().unwrap()
    }

    fn compiled() -> Vec<Value> {
        let manifests: Vec<_> = COMPILED.iter().map(|(_, json)| serde_json::from_str(json).unwrap()).collect();
        assert!(!manifests.is_empty());
        manifests
    }

    /// Those that README writes out.
    fn of_readme() -> Vec<Value> {
        let readme = include_str!("../README.md");
        let blocks = readme.split("```yaml\n").skip(1).filter_map(|rest| rest.split_once("\n```"));
        let whole = blocks.filter(|(yaml, _)| yaml.contains("kind: PodTemplate") && yaml.contains("\ntemplate:"));
        let manifests: Vec<_> = whole.map(|(yaml, _)| serde_saphyr::from_str(yaml).unwrap()).collect();
        assert!(!manifests.is_empty());
        manifests
    }

    /// An event whose step asks for these beside the queue, and the name of its Job.
    fn event_with(rules: &[&str]) -> (String, String) {
        let rules: Vec<_> = ["queue=default"].iter().chain(rules).collect();
        changed_event(|detail| detail["job"]["agent_query_rules"] = json!(rules))
    }

    impl Scene {
        /// Puts a definition there, or changes the one that is.
        async fn apply(&mut self, manifest: &Value) {
            let path = path(&self.namespace, &format!("podtemplates/{}?fieldManager=lab&force=true", name(manifest)));
            let (status, answer) = self.admin.apply(&path, manifest).await;
            assert!(matches!(status, 200 | 201), "{answer}");
        }

        /// Without its service account, no pod is made.
        async fn make_service_accounts(&self) {
            let file = folder("elastic-ci-stack/service-account.yaml");
            self.control_plane.apply(&file, &self.namespace).await.unwrap();
        }

        /// The image that the agent's container of a Job has.
        async fn image(&mut self, job: &str) -> String {
            let job = self.get(&format!("jobs/{job}")).await;
            job["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap().to_owned()
        }

        /// The image that an event gets, by the function.
        async fn image_for(&mut self, function: &Function, rules: &[&str]) -> String {
            let (event, job) = event_with(rules);
            assert_eq!(succeed(function, &event).await["outcome"], "created");
            self.image(&job).await
        }
    }

    /// The folder of a kustomization in `pod-definitions`.
    fn folder(name: &str) -> String {
        format!("{}/pod-definitions/{name}", env!("CARGO_MANIFEST_DIR"))
    }

    /// The one container of a name, of either kind.
    fn container<'a>(spec: &'a Value, kind: &str, name: &str) -> &'a Value {
        spec[kind].as_array().unwrap().iter().find(|container| container["name"] == name).unwrap()
    }

    /// The value of a variable of the agent's, if it has that variable.
    fn variable<'a>(spec: &'a Value, name: &str) -> Option<&'a str> {
        let env = container(spec, "containers", "agent")["env"].as_array().unwrap();
        let variable = env.iter().find(|variable| variable["name"] == name)?;
        // The API server leaves an empty value out.
        Some(variable["value"].as_str().unwrap_or_default())
    }

    fn template(name: &str, image: &str) -> Value {
        let spec =
            json!({"restartPolicy": "Never", "containers": [{"name": "agent", "image": image, "args": ["start"]}]});
        json!({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": {"spec": spec}})
    }

    /// Base and overlays, by kubectl's own kustomize: what is renamed, is renamed wherever it is named.
    #[tokio::test]
    async fn of_an_overlay_is_a_copy_with_a_service_account_an_image_and_buckets_of_its_own() {
        const BASE: &str = "elastic-ci-stack";
        let mut scene = Scene::new().await;
        let ours = "111122223333.dkr.ecr.us-east-1.amazonaws.com/elastic-ci-stack:1";
        let cases = [
            (BASE, BASE, "build-your-own.invalid/elastic-ci-stack", "", "none"),
            (
                "overlays/elastic-ci-stack-deploy",
                "elastic-ci-stack-deploy",
                ours,
                "example-deploy-secrets",
                "poweruser",
            ),
            (
                "overlays/elastic-ci-stack-release",
                "elastic-ci-stack-release",
                ours,
                "example-release-secrets",
                "readonly",
            ),
        ];
        for (path, ..) in cases {
            scene.control_plane.apply_folder(&folder(path), &scene.namespace).await.unwrap();
        }
        let made = |items: &[Value]| -> Vec<_> { items.iter().map(|item| name(item).to_owned()).collect() };
        let copies = cases.map(|(_, name, ..)| name);
        assert_eq!(made(&scene.list("podtemplates").await), copies);
        assert_eq!(made(&scene.list("serviceaccounts").await), [&["default"], &copies[..]].concat());
        let function = scene.function();
        for (_, copy, image, bucket, ecr) in cases {
            let (event, job) = event_with(&[&*format!("pod-definition={copy}")]);
            assert_eq!(succeed(&function, &event).await["outcome"], "created");
            let pod = scene.pod(&job).await;
            let spec = &pod["spec"];
            assert_eq!(spec["serviceAccountName"], copy);
            assert_eq!(container(spec, "containers", "agent")["image"], image);
            assert_eq!(container(spec, "initContainers", "dockerd")["image"], "docker:29-dind");
            assert_eq!(variable(spec, "BUILDKITE_SECRETS_BUCKET"), Some(bucket));
            assert_eq!(variable(spec, "BUILDKITE_ECR_POLICY"), Some(ecr));
            // A patch adds to the base, and takes nothing away.
            assert_eq!(variable(spec, "DOCKER_HOST"), Some("unix:///docker/docker.sock"));
            // What BUILDKITE_STACK_NAME is read from.
            assert_eq!(pod["metadata"]["annotations"]["buildkite.com/pod-definition"], copy);
            // Not even empty in the base, so that EKS fills it in.
            let region = match copy {
                "elastic-ci-stack-deploy" => Some("us-east-1"),
                "elastic-ci-stack-release" => Some("eu-central-1"),
                _ => None,
            };
            assert_eq!(variable(spec, "AWS_REGION"), region);
            assert_eq!(variable(spec, "AWS_DEFAULT_REGION"), region);
        }
        let accounts = scene.list("serviceaccounts").await;
        let roles: Vec<_> = accounts
            .iter()
            .filter_map(|account| account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].as_str())
            .collect();
        assert_eq!(roles, ["arn:aws:iam::111122223333:role/elastic-ci-stack-release"]);
    }

    /// Kubernetes takes the Job, and makes no pod of it: README tells what its event says.
    #[tokio::test]
    async fn without_its_service_account_has_a_job_and_no_pod() {
        let mut scene = Scene::new().await;
        let (event, job) = event_with(&["pod-definition=elastic-ci-stack"]);
        assert_eq!(succeed(&scene.function(), &event).await["outcome"], "created");
        let words = "serviceaccount \"elastic-ci-stack\" not found";
        eventually("nothing tells what is missing", async || {
            let events = scene.list("events").await;
            let of_job = events.iter().filter(|event| event["involvedObject"]["name"] == *job);
            let mut texts = of_job.filter_map(|event| event["message"].as_str());
            texts.any(|text| text.contains(words)).then_some(())
        })
        .await;
        assert_eq!(scene.list("pods").await.len(), 0);
        // It is made when the account is there.
        scene.control_plane.apply_folder(&folder("elastic-ci-stack"), &scene.namespace).await.unwrap();
        scene.pod(&job).await;
    }

    /// By the function and as its own user, with and without what a step may ask for beside; each gets its Pod.
    #[tokio::test]
    async fn of_every_file_is_admitted_strictly() {
        let mut scene = Scene::new().await;
        scene.make_service_accounts().await;
        let function = scene.function();
        let mut created = 0;
        for manifest in compiled() {
            let definition = format!("pod-definition={}", name(&manifest));
            for rules in [&[][..], &["cpu=250m", "memory=256Mi"], &["image=node:24", "cpu=250m", "memory=256Mi"]] {
                // What a definition does not allow, no step can ask for.
                if manifest["metadata"]["annotations"]["agent-scheduler.buildkite.com/allow-image"] == "false"
                    && rules.contains(&"image=node:24")
                {
                    continue;
                }
                let rules: Vec<_> = rules.iter().copied().chain([&*definition]).collect();
                let (event, job) = event_with(&rules);
                assert_eq!(succeed(&function, &event).await["outcome"], "created", "{rules:?}");
                created += 1;
                let pod = scene.pod(&job).await;
                if rules.contains(&"image=node:24") {
                    assert_eq!(pod["spec"]["containers"][0]["image"], "node:24");
                    assert_eq!(pod["spec"]["initContainers"][0]["name"], "agent-scheduler-copy-agent");
                }
            }
        }
        let audit = scene.control_plane.audit(&scene.namespace);
        let is_post = |entry: &&Value| entry["verb"] == "create" && entry["objectRef"]["resource"] == "jobs";
        let posts: Vec<_> = audit.iter().filter(is_post).collect();
        assert_eq!(posts.len(), created);
        for post in posts {
            assert_eq!(post["user"]["username"], SUBJECT);
            assert!(post["requestURI"].as_str().unwrap().contains("fieldValidation=Strict"), "{post}");
            // Once more under another name, since the function does not look at warnings.
            let mut job = post["requestObject"].clone();
            job["metadata"]["name"] = json!("again");
            let request = Request::post(scene.path("jobs?fieldValidation=Strict&dryRun=All"));
            let request = request.header("content-type", "application/json");
            let response = scene.admin.send(request, job.to_string()).await;
            assert_eq!(response.status(), 201, "{response:?}");
            assert_eq!(response.headers().get("warning"), None, "{response:?}");
        }
    }

    /// The same file can be put into the namespace, as those of README, and Kubernetes warns of nothing in it.
    #[tokio::test]
    async fn of_every_file_is_a_pod_template() {
        let mut scene = Scene::new().await;
        scene.make_service_accounts().await;
        for manifest in compiled().into_iter().chain(of_readme()) {
            let request = Request::post(scene.path("podtemplates?fieldValidation=Strict"));
            let request = request.header("content-type", "application/json");
            let response = scene.admin.send(request, manifest.to_string()).await;
            assert_eq!(response.status(), 201, "{response:?}");
            assert_eq!(response.headers().get("warning"), None, "{response:?}");
            // As Kubernetes keeps it, its defaults filled in, it is as good as the file.
            let function = scene.function();
            let (event, job) = event_with(&[&*format!("pod-definition={}", name(&manifest))]);
            succeed(&function, &event).await;
            scene.pod(&job).await;
        }
    }

    #[tokio::test]
    async fn of_the_cluster_is_used_changed_found_broken_and_taken_away() {
        let mut scene = Scene::new().await;
        let clock = Clock::new(&scene.namespace);
        let function = clock.of(scene.builder()).start();
        let minute = Duration::from_secs(61);
        let compiled_image = scene.image_for(&function, &[]).await;

        // One that nobody knew is used at once, another one at the next look.
        scene.apply(&template("node", "node:24")).await;
        assert_eq!(scene.image_for(&function, &["pod-definition=node"]).await, "node:24");
        scene.apply(&template("default", "theirs:1")).await;
        clock.put_forward(minute);
        assert_eq!(scene.image_for(&function, &[]).await, "theirs:1");

        scene.apply(&template("default", "theirs:2")).await;
        assert_eq!(scene.image_for(&function, &[]).await, "theirs:1", "nobody is asked within a minute");
        clock.put_forward(2 * minute);
        assert_eq!(scene.image_for(&function, &[]).await, "theirs:2");

        let mut broken = template("default", "theirs:3");
        broken["template"]["spec"]["containers"][0]["name"] = json!("main");
        let path = scene.path("podtemplates/default");
        assert_eq!(scene.admin.delete(&path).await.0, 200);
        scene.apply(&broken).await;
        clock.put_forward(3 * minute);
        let (error_type, text) = fail(&function, &event_with(&[]).0).await;
        assert_eq!(error_type, "InvalidPodDefinition", "{text}");
        let origin =
            format!("PodTemplate default in namespace {}: template.spec.containers must have one", scene.namespace);
        assert!(text.starts_with(&origin), "{text}");
        assert_eq!(scene.image_for(&function, &["pod-definition=node"]).await, "node:24", "the others serve on");

        assert_eq!(scene.admin.delete(&path).await.0, 200);
        clock.put_forward(4 * minute);
        assert_eq!(scene.image_for(&function, &[]).await, compiled_image);
        let (error_type, text) = fail(&function, &event_with(&["pod-definition=nodejs"]).0).await;
        assert_eq!(error_type, "UnknownPodDefinition", "{text}");
        assert!(text.contains("or for node, the PodTemplates of namespace"), "{text}");
    }

    /// Whatever restart policy its author leaves out, Kubernetes fills in `Always`.
    #[tokio::test]
    async fn of_the_cluster_without_a_restart_policy_is_refused_with_the_mend() {
        let mut scene = Scene::new().await;
        let mut manifest = template("node", "node:24");
        manifest["template"]["spec"].as_object_mut().unwrap().remove("restartPolicy");
        scene.apply(&manifest).await;
        let (error_type, text) = fail(&scene.function(), &event_with(&["pod-definition=node"]).0).await;
        assert_eq!(error_type, "InvalidPodDefinition", "{text}");
        assert!(text.contains("template.spec.restartPolicy must be Never, is \"Always\""), "{text}");
    }

    /// Frozen for long, the function finds copy and token too old, and looks at both before it posts.
    #[tokio::test]
    async fn of_the_cluster_is_looked_at_after_a_freeze_before_the_job() {
        let mut scene = Scene::new().await;
        scene.apply(&template("default", "theirs:1")).await;
        let clock = Clock::new(&scene.namespace);
        let function = clock.of(scene.builder()).start();
        assert_eq!(scene.image_for(&function, &[]).await, "theirs:1");
        scene.apply(&template("default", "theirs:2")).await;
        // No longer: the real judge of EKS tokens refuses those of the far future.
        clock.put_forward(Duration::from_secs(301));
        assert_eq!(scene.image_for(&function, &[]).await, "theirs:2");
        let audit = scene.control_plane.audit(&scene.namespace);
        let by_function = audit.iter().filter(|entry| entry["user"]["username"] == SUBJECT);
        let mut asked: Vec<_> = by_function
            .map(|entry| (entry["requestReceivedTimestamp"].as_str().unwrap(), &entry["objectRef"]["resource"]))
            .collect();
        asked.sort_by_key(|(time, _)| *time);
        assert_eq!(asked.last().unwrap().1, "jobs", "{asked:?}");
    }

    /// What a kubelet says of a pod whose sidecar has a start-up probe, from its start to its end.
    #[tokio::test]
    async fn with_a_native_sidecar_ends_the_job_when_the_agent_ends() {
        let mut scene = Scene::new().await;
        scene.make_service_accounts().await;
        let (event, name) = event_with(&["pod-definition=elastic-ci-stack"]);
        succeed(&scene.function(), &event).await;
        let pod = scene.pod(&name).await;
        let sidecar = container(&pod["spec"], "initContainers", "dockerd");
        assert_eq!(sidecar["restartPolicy"], "Always");
        assert_eq!(sidecar["startupProbe"]["failureThreshold"], 180);
        // The pod has what a stop takes: its containers, and dockerd after them.
        assert!(sidecar["args"].as_array().unwrap().contains(&json!("--shutdown-timeout=15")), "{sidecar}");
        assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 60);

        let pod = path(&scene.namespace, &format!("pods/{}/status", pod["metadata"]["name"].as_str().unwrap()));
        let at = "2026-01-15T12:00:00Z";
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
        let waiting = json!({"waiting": {"reason": "PodInitializing"}});
        let while_it_lives = [
            ("Pending", (false, &running), &waiting),
            ("Running", (true, &running), &running),
            // The agent has ended, and the sidecar is being stopped.
            ("Running", (true, &running), &ended(0)),
        ];
        for (phase, dockerd, agent) in while_it_lives {
            let (code, answer) = scene.admin.patch(&pod, &status(phase, dockerd, agent)).await;
            assert_eq!(code, 200, "{answer}");
        }
        eventually("the Job does not run", async || {
            (scene.get(&format!("jobs/{name}")).await["status"]["active"] == 1).then_some(())
        })
        .await;
        // Stopped by the signal, which is no failure of the pod.
        let last = status("Succeeded", (false, &ended(143)), &ended(0));
        let (code, answer) = scene.admin.patch(&pod, &last).await;
        assert_eq!(code, 200, "{answer}");
        assert_eq!(scene.finished(&name).await["type"], "Complete");
        assert_eq!(scene.list("pods").await.len(), 1);
    }

    #[tokio::test]
    async fn with_a_field_that_kubernetes_does_not_know_is_refused() {
        let scene = Scene::new().await;
        let mut job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}});
        job["spec"]["template"]["spec"] = json!({"restartPolicy": "Never", "containers": [{"name": "agent", "image": "i", "imagePulPolicy": "Never"}]});
        let (status, answer) = scene.as_function().await.post(&scene.path("jobs?fieldValidation=Strict"), &job).await;
        assert_eq!((status, &answer["reason"]), (400, &json!("BadRequest")), "{answer}");
        let words = "unknown field \"spec.template.spec.containers[0].imagePulPolicy\"";
        assert!(answer["message"].as_str().unwrap().contains(words), "{answer}");
    }
}

mod an_eks_token {
    use super::*;

    const PREFIX: &str = "k8s-aws-v1.";

    /// The status that a caller with this token gets for what the function may do.
    async fn judged(scene: &Scene, token: &str) -> u16 {
        scene.control_plane.client(token).await.get(&scene.path("jobs/none")).await.0
    }

    /// 401, and the real authenticator or STS said why.
    async fn refused(scene: &Scene, token: &str, words: &str) {
        assert_eq!(judged(scene, &scene.token()).await, 404, "a good token is accepted");
        assert_eq!(judged(scene, token).await, 401);
        let authenticator = scene.control_plane.log("aws-iam-authenticator");
        let sts = scene.lab.timeline.entries();
        let refusal = |entry: &Entry| matches!(&entry.kind, Kind::TokenRefused(reason) if reason.contains(words));
        let said = authenticator.contains(words) || sts.iter().any(refusal);
        assert!(said, "{words:?} is neither in {sts:?} nor in\n{authenticator}");
    }

    fn signed(scene: &Scene, cluster: &str, at: SystemTime) -> String {
        eks::token(&scene.credentials(), REGION, cluster, at).unwrap()
    }

    /// The same token with another URL in it.
    fn changed(token: &str, change: impl FnOnce(String) -> String) -> String {
        let url = BASE64_URL_SAFE_NO_PAD.decode(token.strip_prefix(PREFIX).unwrap()).unwrap();
        let url = change(String::from_utf8(url).unwrap());
        format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(url))
    }

    #[tokio::test]
    async fn of_the_function_is_accepted_as_user_and_group() {
        let scene = Scene::new().await;
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        let (status, answer) = scene.as_function().await.post(path, &review).await;
        assert_eq!(status, 201, "{answer}");
        let user = &answer["status"]["userInfo"];
        assert_eq!(user["username"], SUBJECT);
        assert_eq!(user["groups"], json!([SUBJECT, "system:authenticated"]));
    }

    #[tokio::test]
    async fn for_another_cluster_is_refused() {
        let scene = Scene::new().await;
        let token = signed(&scene, "another-cluster", SystemTime::now());
        refused(&scene, &token, "the signature is not that of this request for this cluster").await;
    }

    #[tokio::test]
    async fn for_another_cluster_is_the_functions_error() {
        let scene = Scene::new().await;
        let function = scene.builder().env("KUBERNETES_CLUSTER_IDENTIFIER", "another-cluster").start();
        let (error_type, text) = fail(&function, &event().0).await;
        assert_eq!(error_type, "Unauthorized", "{text}");
        for words in ["\"another-cluster\"", SUBJECT, "KUBERNETES_CLUSTER_IDENTIFIER"] {
            assert!(text.contains(words), "{text}");
        }
    }

    #[tokio::test]
    async fn of_another_secret_key_is_refused() {
        let scene = Scene::new().await;
        let keys = scene.lab.credentials();
        let other = Credentials::new(&keys.access_key_id, "another", Some(keys.session_token.clone()), None, "lab");
        let token = eks::token(&other, REGION, CLUSTER, SystemTime::now()).unwrap();
        refused(&scene, &token, "the signature is not that of this request for this cluster").await;
    }

    #[tokio::test]
    async fn with_an_extra_query_parameter_is_refused() {
        let scene = Scene::new().await;
        let token = changed(&scene.token(), |url| url + "&x-k8s-aws-id=example-cluster");
        refused(&scene, &token, "non-whitelisted query parameter").await;
    }

    #[tokio::test]
    async fn with_padding_is_refused() {
        let scene = Scene::new().await;
        refused(&scene, &(scene.token() + "="), "illegal base64 data").await;
    }

    #[tokio::test]
    async fn of_an_old_date_is_refused() {
        let scene = Scene::new().await;
        let token = signed(&scene, CLUSTER, SystemTime::now() - Duration::from_mins(16));
        refused(&scene, &token, "X-Amz-Date parameter is expired").await;
    }

    #[tokio::test]
    async fn of_the_far_future_is_refused() {
        let scene = Scene::new().await;
        let token = signed(&scene, CLUSTER, SystemTime::now() + Duration::from_mins(6));
        refused(&scene, &token, "Signature not yet current").await;
    }
}

mod the_job_controller {
    use super::*;

    #[tokio::test]
    async fn makes_exactly_one_pod_as_we_promise_it() {
        let mut scene = Scene::new().await;
        let function = scene.builder().env("BUILDKITE_AGENT_TAGS", "os=linux").start();
        let (event, name) = event();
        succeed(&function, &event).await;
        let pod = scene.pod(&name).await;
        let uuid = name.strip_prefix("buildkite-").unwrap();

        let labels = &pod["metadata"]["labels"];
        let expected = [
            ("app.kubernetes.io/managed-by", "agent-scheduler"),
            ("buildkite.com/job-uuid", uuid),
            ("buildkite.com/queue", "default"),
            ("batch.kubernetes.io/job-name", &name),
        ];
        for (label, value) in expected {
            assert_eq!(labels[label], value, "{labels}");
        }
        let build = "https://buildkite.com/example-org/example-pipeline/builds/1234";
        let annotations = &pod["metadata"]["annotations"];
        let expected = [
            ("buildkite.com/build-url", build),
            ("buildkite.com/job-url", &format!("{build}#{uuid}")),
            ("buildkite.com/pipeline", "example-pipeline"),
            ("buildkite.com/branch", "main"),
            ("buildkite.com/commit", "0123456789abcdef0123456789abcdef01234567"),
            ("buildkite.com/step-key", "unit_tests"),
            ("buildkite.com/pod-definition", "default"),
            ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"),
            ("karpenter.sh/do-not-disrupt", "true"),
        ];
        for (annotation, value) in expected {
            assert_eq!(annotations[annotation], value, "{annotations}");
        }
        let agent = &pod["spec"]["containers"][0];
        let env = |name| agent["env"].as_array().unwrap().iter().find(|variable| variable["name"] == name).unwrap();
        assert_eq!(env("BUILDKITE_AGENT_ACQUIRE_JOB")["value"], uuid);
        assert_eq!(env("BUILDKITE_AGENT_TAGS")["value"], "os=linux,queue=default,pod-definition=default");
        assert_eq!(pod["spec"]["restartPolicy"], "Never");

        let job = scene.get(&format!("jobs/{name}")).await;
        let spec = &job["spec"];
        let expected = json!({"activeDeadlineSeconds": 21600, "ttlSecondsAfterFinished": 600, "backoffLimit": 0});
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(spec[field], *value, "{field}");
        }
        assert_eq!((&spec["parallelism"], &spec["completions"]), (&json!(1), &json!(1)));
        assert_eq!(scene.list("pods").await.len(), 1);
    }

    #[tokio::test]
    async fn gives_the_token_to_the_agent_and_to_nothing_else() {
        let mut scene = Scene::new().await;
        let function = scene.function();
        let (event, name) = event();
        succeed(&function, &event).await;
        let pod = scene.pod(&name).await;
        let env = pod["spec"]["containers"][0]["env"].as_array().unwrap();
        let token = env.iter().find(|variable| variable["name"] == "BUILDKITE_AGENT_TOKEN").unwrap();
        let reference = &token["valueFrom"]["secretKeyRef"];
        assert_eq!(*reference, json!({"name": "buildkite-agent-token", "key": "token"}));
        assert_eq!(scene.secret_token().await, scene.lab.agent_token());

        let audit = scene.control_plane.audit(&scene.namespace);
        let created = audit.iter().find(|entry| entry["verb"] == "create" && entry["objectRef"]["resource"] == "jobs");
        assert!(created.unwrap()["requestObject"].is_object(), "the audit log has the bodies");
        let told = [
            scene.get(&format!("jobs/{name}")).await.to_string(),
            pod.to_string(),
            json!(audit).to_string(),
            function.output(),
        ];
        let token = scene.lab.agent_token();
        for text in told {
            assert!(!text.contains(token) && !text.contains(&BASE64_STANDARD.encode(token)), "{text}");
        }
    }

    #[tokio::test]
    async fn ends_the_job_well_when_the_agent_does() {
        let mut scene = Scene::new().await;
        let (event, name) = event();
        succeed(&scene.function(), &event).await;
        let pod = scene.pod(&name).await;
        scene.end_pod(&pod, "Succeeded", 0, &json!([])).await;
        let condition = scene.finished(&name).await;
        assert_eq!(condition["type"], "Complete", "{condition}");
        assert_eq!(scene.list("pods").await.len(), 1);
    }

    #[tokio::test]
    async fn fails_the_job_after_one_pod_when_buildkite_refuses_it() {
        let mut scene = Scene::new().await;
        let (event, name) = event();
        succeed(&scene.function(), &event).await;
        let pod = scene.pod(&name).await;
        scene.end_pod(&pod, "Failed", 27, &json!([])).await;
        let condition = scene.finished(&name).await;
        assert_eq!((&condition["type"], &condition["reason"]), (&json!("Failed"), &json!("PodFailurePolicy")));
        assert!(condition["message"].as_str().unwrap().contains("exit code 27"), "{condition}");
        assert_eq!(scene.list("pods").await.len(), 1);
    }

    #[tokio::test]
    async fn fails_the_job_after_one_pod_when_the_step_fails() {
        let mut scene = Scene::new().await;
        let (event, name) = event();
        succeed(&scene.function(), &event).await;
        let pod = scene.pod(&name).await;
        scene.end_pod(&pod, "Failed", 1, &json!([])).await;
        let condition = scene.finished(&name).await;
        assert_eq!((&condition["type"], &condition["reason"]), (&json!("Failed"), &json!("BackoffLimitExceeded")));
        assert_eq!(scene.list("pods").await.len(), 1);
    }

    #[tokio::test]
    async fn replaces_a_pod_that_was_disrupted() {
        let mut scene = Scene::new().await;
        let (event, name) = event();
        succeed(&scene.function(), &event).await;
        let first = scene.pod(&name).await;
        let disruption = json!([{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}]);
        scene.end_pod(&first, "Failed", 143, &disruption).await;
        let second = eventually("there is no other Pod", async || {
            let mut pods = scene.list("pods").await;
            pods.retain(|pod| pod["metadata"]["uid"] != first["metadata"]["uid"]);
            pods.pop()
        })
        .await;
        assert_eq!(second["spec"]["containers"], first["spec"]["containers"]);
        // The Job's status follows its Pods.
        eventually("the Job does not live on", async || {
            let job = scene.get(&format!("jobs/{name}")).await;
            (job["status"]["active"] == 1).then_some(())
        })
        .await;

        scene.end_pod(&second, "Succeeded", 0, &json!([])).await;
        assert_eq!(scene.finished(&name).await["type"], "Complete");
    }

    #[tokio::test]
    async fn removes_job_and_pod_after_their_time_and_leaves_the_secret() {
        let mut scene = Scene::new().await;
        let (event, name) = event();
        succeed(&scene.builder().env("JOB_TTL_SECONDS", "1").start(), &event).await;
        let pod = scene.pod(&name).await;
        scene.end_pod(&pod, "Succeeded", 0, &json!([])).await;
        eventually("Job and Pod are still there", async || {
            (scene.list("jobs").await.is_empty() && scene.list("pods").await.is_empty()).then_some(())
        })
        .await;
        assert_eq!(scene.secret_token().await, scene.lab.agent_token());
    }
}

mod the_same_event {
    use super::*;

    #[tokio::test]
    async fn twice_is_one_job_and_one_pod() {
        let mut scene = Scene::new().await;
        let function = scene.function();
        let (event, name) = event();
        assert_eq!(succeed(&function, &event).await["outcome"], "created");
        assert_eq!(succeed(&function, &event).await["outcome"], "already-exists");
        scene.pod(&name).await;
        assert_eq!((scene.list("jobs").await.len(), scene.list("pods").await.len()), (1, 1));
    }

    #[tokio::test]
    async fn fifty_times_at_once_from_eight_processes_is_one_job_and_one_pod() {
        let mut scene = Scene::new().await;
        let functions: Vec<_> = (0..8).map(|_| Arc::new(scene.function())).collect();
        let (event, name) = event();
        let functions = functions.iter().cycle().take(50).map(Arc::clone);
        let outcomes = at_once(functions.map(|function| (function, event.clone()))).await;
        assert_eq!(outcomes.iter().filter(|outcome| *outcome == "created").count(), 1, "{outcomes:?}");
        assert_eq!(outcomes.iter().filter(|outcome| *outcome == "already-exists").count(), 49, "{outcomes:?}");
        scene.pod(&name).await;
        assert_eq!((scene.list("jobs").await.len(), scene.list("pods").await.len()), (1, 1));
    }

    #[tokio::test]
    async fn two_hundred_different_ones_from_one_warm_process_are_two_hundred_jobs() {
        let mut scene = Scene::new().await;
        let function = scene.function();
        let mut names = Vec::new();
        for _ in 0..200 {
            let (event, name) = event();
            assert_eq!(succeed(&function, &event).await["outcome"], "created");
            names.push(name);
        }
        let jobs = scene.list("jobs").await;
        let mut found: Vec<_> = jobs.iter().map(|job| job["metadata"]["name"].as_str().unwrap()).collect();
        found.sort_unstable();
        names.sort_unstable();
        assert_eq!(found, names);
    }
}

mod a_token_in_ssm {
    use super::*;

    const OTHER_PARAMETER: &str = "/buildkite/other-token";

    impl Scene {
        /// The function wrote the Secret, and only then posted the Job.
        fn was_applied_before(&self, job: &str) {
            let audit = self.control_plane.audit(&self.namespace);
            let by_function = |entry: &&Value| entry["user"]["username"] == SUBJECT;
            let applied = audit.iter().filter(by_function).filter(|entry| entry["objectRef"]["resource"] == "secrets");
            let applied = applied.max_by_key(|entry| entry["stageTimestamp"].as_str()).unwrap();
            let posted =
                audit.iter().filter(by_function).find(|entry| entry["requestObject"]["metadata"]["name"] == job);
            let (applied, posted) = (&applied["stageTimestamp"], &posted.unwrap()["requestReceivedTimestamp"]);
            assert!(applied.as_str().unwrap() < posted.as_str().unwrap(), "applied {applied}, posted {posted}");
        }
    }

    #[tokio::test]
    async fn that_was_replaced_is_in_the_secret_before_the_next_job() {
        let mut scene = Scene::new().await;
        succeed(&scene.function(), &event().0).await;
        scene.lab.aws.put_parameter(AGENT_TOKEN_PARAMETER, Parameter::secure_string("bkct_rotated"));
        let (event, name) = event();
        succeed(&scene.function(), &event).await;
        assert_eq!(scene.secret_token().await, "bkct_rotated");

        scene.was_applied_before(&name);
    }

    /// The function is warm, and its clock is put forward by the five minutes that it relies on what it knows.
    #[tokio::test]
    async fn that_was_replaced_is_noticed_by_a_warm_function() {
        let mut scene = Scene::new().await;
        let clock = Clock::new(&scene.namespace);
        let function = clock.of(scene.builder()).start();
        succeed(&function, &event().0).await;

        scene.lab.aws.put_parameter(AGENT_TOKEN_PARAMETER, Parameter::secure_string("bkct_rotated"));
        succeed(&function, &event().0).await;
        assert_eq!(scene.secret_token().await, scene.lab.agent_token(), "nobody is asked within five minutes");

        clock.put_forward(Duration::from_secs(301));
        let (event, name) = event();
        succeed(&function, &event).await;
        assert_eq!(scene.secret_token().await, "bkct_rotated");
        scene.was_applied_before(&name);
    }

    #[tokio::test]
    async fn whose_secret_was_deleted_is_brought_again_by_a_warm_function() {
        let mut scene = Scene::new().await;
        let clock = Clock::new(&scene.namespace);
        let function = clock.of(scene.builder()).start();
        succeed(&function, &event().0).await;
        let secret = path(&scene.namespace, "secrets/buildkite-agent-token");
        assert_eq!(scene.admin.delete(&secret).await.0, 200);

        clock.put_forward(Duration::from_secs(301));
        succeed(&function, &event().0).await;
        assert_eq!(scene.secret_token().await, scene.lab.agent_token());
    }

    #[tokio::test]
    async fn of_a_renamed_parameter_is_a_conflict_once_it_changes_and_the_error_tells_the_mend() {
        let scene = Scene::new().await;
        succeed(&scene.function(), &event().0).await;
        let renamed = || scene.builder().env("BUILDKITE_AGENT_TOKEN_PARAMETER_PATH", OTHER_PARAMETER).start();
        scene.lab.aws.put_parameter(OTHER_PARAMETER, Parameter::secure_string(scene.lab.agent_token()));
        succeed(&renamed(), &event().0).await;
        scene.lab.aws.put_parameter(OTHER_PARAMETER, Parameter::secure_string("bkct_rotated"));
        let (error_type, text) = fail(&renamed(), &event().0).await;
        assert_eq!(error_type, "RejectedByApiServer", "{text}");
        assert!(text.contains("`kubectl delete secret buildkite-agent-token "), "{text}");
    }

    #[tokio::test]
    async fn is_shared_by_two_functions_through_two_rotations() {
        let mut scene = Scene::new().await;
        for token in ["bkct_first", "bkct_second", "bkct_third"] {
            scene.lab.aws.put_parameter(AGENT_TOKEN_PARAMETER, Parameter::secure_string(token));
            for function in [scene.function(), scene.function()] {
                assert_eq!(succeed(&function, &event().0).await["outcome"], "created");
                assert_eq!(scene.secret_token().await, token);
            }
        }
        let managers: Vec<_> = scene.get("secrets/buildkite-agent-token").await["metadata"]["managedFields"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["manager"].as_str().unwrap().to_owned())
            .collect();
        assert!(managers.len() == 1 && managers[0].starts_with("agent-scheduler:"), "{managers:?}");
    }

    #[tokio::test]
    async fn of_another_parameter_is_a_conflict_and_the_first_one_stands() {
        let mut scene = Scene::new().await;
        succeed(&scene.function(), &event().0).await;
        scene.lab.aws.put_parameter(OTHER_PARAMETER, Parameter::secure_string("bkct_other"));
        let other = scene.builder().env("BUILDKITE_AGENT_TOKEN_PARAMETER_PATH", OTHER_PARAMETER).start();
        let (error_type, text) = fail(&other, &event().0).await;
        assert_eq!(error_type, "RejectedByApiServer", "{text}");
        for words in [
            "Secret buildkite-agent-token",
            "set AgentTokenSecretName",
            "Apply failed with 1 conflict: conflict with \"agent-scheduler:",
            ": .data.token",
        ] {
            assert!(text.contains(words), "{text}");
        }
        assert_eq!(scene.secret_token().await, scene.lab.agent_token());
        assert_eq!(scene.list("jobs").await.len(), 1);
    }
}

mod a_namespace {
    use super::*;

    #[tokio::test]
    async fn with_a_quota_of_jobs_passes_the_servers_words_on() {
        let mut scene = Scene::new().await;
        let quota = json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "no-jobs"},
            "spec": {"hard": {"count/jobs.batch": "0"}},
        });
        let (status, answer) = scene.admin.post(&path(&scene.namespace, "resourcequotas"), &quota).await;
        assert_eq!(status, 201, "{answer}");
        eventually("the quota has no effect", async || {
            (scene.get("resourcequotas/no-jobs").await["status"]["hard"]["count/jobs.batch"] == "0").then_some(())
        })
        .await;
        let (error_type, text) = fail(&scene.function(), &event().0).await;
        assert_eq!(error_type, "RejectedByApiServer", "{text}");
        for words in ["cannot create Job buildkite-", "exceeded quota: no-jobs", "limited: count/jobs.batch=0"] {
            assert!(text.contains(words), "{text}");
        }
    }

    /// Policies and webhooks refuse with 403, too, and in words of their own.
    #[tokio::test]
    async fn with_an_admission_policy_passes_its_words_on() {
        let mut scene = Scene::new().await;
        let name = &scene.namespace.clone();
        let policy = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "matchConstraints": {
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}},
                    "resourceRules": [
                        {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]},
                    ],
                },
                "validations": [{"expression": "false", "message": "a Job cannot be made today", "reason": "Forbidden"}],
            },
        });
        let binding = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        });
        let group = "/apis/admissionregistration.k8s.io/v1";
        for (resource, object) in
            [("validatingadmissionpolicies", policy), ("validatingadmissionpolicybindings", binding)]
        {
            let (status, answer) = scene.admin.post(&format!("{group}/{resource}"), &object).await;
            assert_eq!(status, 201, "{answer}");
        }
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "trial"},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}},
        });
        eventually("the policy has no effect", async || {
            (scene.admin.post(&path(name, "jobs?dryRun=All"), &job).await.0 == 403).then_some(())
        })
        .await;
        let (error_type, text) = fail(&scene.function(), &event().0).await;
        assert_eq!(error_type, "RejectedByApiServer", "{text}");
        assert!(text.contains("denied request: a Job cannot be made today"), "{text}");
    }

    #[tokio::test]
    async fn that_is_being_terminated_is_told() {
        let mut scene = Scene::new().await;
        // What has a finalizer stays, and so do the namespace and the permissions in it.
        for resource in [format!("roles/{SUBJECT}"), format!("rolebindings/{SUBJECT}")] {
            let stay = json!({"metadata": {"finalizers": ["lab.example/stay"]}});
            let (status, answer) = scene.admin.patch(&path(&scene.namespace, &resource), &stay).await;
            assert_eq!(status, 200, "{answer}");
        }
        let (status, answer) = scene.admin.delete(&format!("/api/v1/namespaces/{}", scene.namespace)).await;
        assert_eq!(status, 200, "{answer}");
        let (error_type, text) = fail(&scene.function(), &event().0).await;
        assert_eq!(error_type, "RejectedByApiServer", "{text}");
        assert!(text.contains(&format!("namespace {} because it is being terminated", scene.namespace)), "{text}");
    }
}

/// A cluster that has never heard of the function's role, behind the lab's gate: `make run CONTEXT=…`.
mod a_cluster_of_a_kubeconfig {
    use super::*;

    async fn lab(scene: &Scene) -> Lab {
        let mut lab = Lab::start().await;
        let kubeconfig = scene.control_plane.kubeconfig();
        lab.forward_to(Cluster::of_context(CLUSTER, Some(&kubeconfig)).await.unwrap()).await;
        lab
    }

    #[tokio::test]
    async fn gets_the_job_with_the_rights_of_the_kubeconfig() {
        let mut scene = Scene::without_permissions().await;
        let lab = lab(&scene).await;
        let function = lab.function(FUNCTION).env("KUBERNETES_NAMESPACE", &scene.namespace).start();
        let (event, name) = event();
        assert_eq!(succeed(&function, &event).await["outcome"], "created");
        assert_eq!(succeed(&function, &event).await["outcome"], "already-exists");
        scene.pod(&name).await;
        assert_eq!(scene.secret_token().await, lab.agent_token());
        let audit = scene.control_plane.audit(&scene.namespace);
        let posted = audit.iter().find(|entry| entry["requestObject"]["metadata"]["name"] == *name).unwrap();
        assert_eq!(posted["user"]["username"], "admin", "{posted}");
        let cluster = Cluster::of_context(CLUSTER, Some(&scene.control_plane.kubeconfig())).await.unwrap();
        let jobs = cluster.table(&scene.path("jobs")).await.unwrap();
        assert!(jobs.starts_with("NAME ") && jobs.contains(&name), "{jobs}");
    }

    #[tokio::test]
    async fn passes_its_errors_on() {
        let scene = Scene::without_permissions().await;
        let lab = lab(&scene).await;
        let function = lab.function(FUNCTION).env("KUBERNETES_NAMESPACE", "absent").start();
        let (error_type, text) = fail(&function, &event().0).await;
        assert_eq!(error_type, "RejectedByApiServer", "{text}");
        assert!(text.contains("the cluster has no namespace \"absent\""), "{text}");
    }

    #[tokio::test]
    async fn is_closed_to_a_token_for_another_cluster() {
        let scene = Scene::without_permissions().await;
        let lab = lab(&scene).await;
        let function = lab.function(FUNCTION).env("KUBERNETES_CLUSTER_IDENTIFIER", "another-cluster").start();
        let (error_type, text) = fail(&function, &event().0).await;
        assert_eq!(error_type, "Unauthorized", "{text}");
    }
}
