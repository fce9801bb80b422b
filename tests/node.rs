//! The function's Jobs in real pods, with the real agent, on a real node. `make test-node` runs them.
//!
//! All tests share one node, and each has its own namespace, its own function, and its own stand-in for Buildkite.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod common;
#[path = "common/namespace.rs"]
mod namespace;

use std::{
    fs,
    path::{Path, PathBuf},
    thread::panicking,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use lab::{
    Buildkite, Call, Entry, Event, Fault, Function, Kind, Lab, Node, Timeline, When, buildkite,
    control_plane::eventually, function::Builder,
};
use serde_json::{Value, json};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::sleep,
};

use namespace::{Namespace, compiled, event_with, name};

/// The state of a Job whose agent ended with 0.
const COMPLETE: &str = "Complete CompletionsReached";
/// The state of a Job that the pod failure policy ended.
const FAILED: &str = "Failed PodFailurePolicy";

/// Ends at SIGTERM, and prints that. The log has the command, too, so what it prints is computed.
const UNTIL_SIGTERM: &str =
    "trap 'echo signal $((14 + 1)); exit 9' TERM; echo started $((1)); for i in $(seq 3000); do sleep 0.1; done";

/// Prints what begins like an agent token, without that beginning: from the environment of all processes, and from files.
const READ_TOKEN: &str = r"for file in /proc/[0-9]*/environ; do tr '\0' '\n' <$file | sed -n 's/.*bkct_/found /p'; done 2>&1
grep -rhs bkct_ /buildkite /tmp /run /root | sed -n 's/.*bkct_/found /p'; true";

/// A namespace on the node with the definitions that we ship, and a warm function.
struct Scene {
    node: &'static Node,
    namespace: Namespace,
    /// The authority of the stand-in for Buildkite.
    roots: PathBuf,
    function: Function,
    _watch: JoinSet<()>,
}

/// A job of Buildkite, and what became of it.
struct Run {
    event: Event,
    buildkite: Buildkite,
    timeline: Timeline,
}

/// A function that reaches Buildkite by TLS: without it the address must be a loopback one, which pods cannot reach.
fn function(namespace: &Namespace, roots: &Path) -> Builder {
    let function = namespace.builder().env("AWS_CA_BUNDLE", roots.display().to_string());
    function.env("BUILDKITE_STACKS_ENDPOINT", namespace.lab.buildkite.https_url())
}

/// Applies our definition `default` under this name, with a change to its spec, the stand-in as the agent's endpoint, and version
/// 3's names of the settings that version 4 renamed.
async fn define(namespace: &mut Namespace, name: &str, change: impl FnOnce(&mut Value)) {
    let mut manifest = compiled().into_iter().find(|manifest| self::name(manifest) == "default").unwrap();
    manifest["metadata"]["name"] = name.into();
    let spec = &mut manifest["template"]["spec"];
    let env = spec["containers"][0]["env"].as_array_mut().unwrap();
    let endpoint = namespace.lab.buildkite.url();
    let variables = [
        ("BUILDKITE_AGENT_ENDPOINT", &*endpoint),
        ("BUILDKITE_SIGNAL_GRACE_PERIOD_SECONDS", "30"),
        ("BUILDKITE_CANCEL_GRACE_PERIOD", "45"),
    ];
    env.extend(variables.map(|(name, value)| json!({"name": name, "value": value})));
    change(spec);
    namespace.apply(&manifest).await;
}

impl Scene {
    async fn new() -> Self {
        let node = Node::shared().await;
        let mut namespace = Namespace::on(node).await;
        // Before the function lists the definitions: it has the list for a minute.
        define(&mut namespace, "default", |_| {}).await;
        let roots = node.folder().join(format!("{}.pem", namespace.name));
        fs::write(&roots, namespace.lab.certificates.ca_pem()).unwrap();
        let function = function(&namespace, &roots).start();
        let watch = node.watch(&namespace.name, &namespace.lab.timeline).await;
        Self { node, namespace, roots, function, _watch: watch }
    }

    /// Schedules a job without a checkout, and hands its event to the function, which must create its Job. The job asks for little, so
    /// that many have room.
    async fn send(&self, command: &str, rules: &[&str]) -> Run {
        let rules: Vec<_> = ["cpu=10m", "memory=128Mi"].iter().chain(rules).copied().collect();
        let event = event_with(&rules).now().detail(|detail| detail["job"]["command"] = command.into());
        {
            let mut organization = self.namespace.lab.buildkite.lock();
            let job = organization.schedule(&event, buildkite::CLUSTER);
            job.env.insert("BUILDKITE_SKIP_CHECKOUT".to_owned(), "true".to_owned());
        }
        assert_eq!(self.function.succeed(&event).await["outcome"], "created");
        let Lab { buildkite, timeline, .. } = &self.namespace.lab;
        Run { event, buildkite: buildkite.clone(), timeline: timeline.clone() }
    }

    /// The agent token without its beginning: a log in which an agent found a whole one would not show it.
    fn token(&self) -> &str {
        self.namespace.lab.agent_token().trim_start_matches("bkct_")
    }

    /// Sweeps until Buildkite knows how the job ended; the sweep touches no Job of the last minute.
    async fn sweep_until_ended(&self, run: &Run) {
        eventually("no sweep helps", async || {
            assert_eq!(self.function.succeed(Event::sweep()).await["outcome"], "swept");
            sleep(Duration::from_secs(2)).await;
            run.job().finished_at
        })
        .await;
    }

    /// Evicts the pod of a run through the Eviction API, as a drain does.
    async fn evict(&self, run: &Run) {
        let mut admin = self.namespace.control_plane.admin().await;
        let (_, pods) =
            admin.get(&self.namespace.path(&format!("pods?labelSelector=job-name%3D{}", run.event.job_name()))).await;
        let pod = name(&pods["items"][0]);
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}});
        let (status, answer) = admin.post(&self.namespace.path(&format!("pods/{pod}/eviction")), &eviction).await;
        assert_eq!(status, 201, "{answer}");
    }
}

/// What happened, for a person who reads why a test failed.
impl Drop for Scene {
    fn drop(&mut self) {
        if panicking() {
            eprintln!("{}", self.namespace.lab.timeline);
            for (uuid, job) in &self.namespace.lab.buildkite.lock().jobs {
                eprintln!("{uuid} {}\n{}", job.state, String::from_utf8_lossy(&job.log));
            }
            eprintln!("{}", self.node.logs(&self.namespace.name));
        }
    }
}

impl Run {
    fn job(&self) -> buildkite::Job {
        self.buildkite.lock().jobs[self.event.job_uuid()].clone()
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&self.job().log).into_owned()
    }

    /// Waits until the Job, or one of its Pods, gets a state.
    async fn until(&self, state: &str) -> Duration {
        eventually(state, async || self.states().into_iter().find(|(_, seen)| seen == state)).await.0
    }

    /// Waits until Buildkite knows how the job ended.
    async fn until_ended(&self) {
        eventually("the job does not end", async || self.job().finished_at).await;
    }

    /// Waits until its command runs.
    async fn until_started(&self) {
        eventually("the command does not run", async || self.log().contains("started 1").then_some(())).await;
    }

    /// Waits for the end of a Job whose command must have ended with 0, in one run.
    async fn until_passed(&self) {
        self.until(COMPLETE).await;
        let job = self.job();
        assert_eq!((job.state, job.exit_status), ("finished", Some(0)), "{}", self.log());
        assert_eq!(self.answers("acquire"), [200]);
    }

    /// The states of the Job and its Pods so far.
    fn states(&self) -> Vec<(Duration, String)> {
        let entries = self.timeline.entries().into_iter();
        let states = entries.filter_map(|entry| match entry.kind {
            Kind::Became { name, state } if name.starts_with(&self.event.job_name()) => Some((entry.at, state)),
            _ => None,
        });
        states.collect()
    }

    fn has_been(&self, state: &str) -> bool {
        self.states().iter().any(|(_, seen)| seen == state)
    }

    /// The entries of this call of an agent.
    fn calls(&self, call: &str) -> impl Iterator<Item = Entry> {
        let path = format!("/v3/jobs/{}/{call}", self.event.job_uuid());
        let entries = self.timeline.entries().into_iter();
        entries.filter(move |entry| entry.call().is_some_and(|Call { target, .. }| *target == path))
    }

    /// The statuses of the answers to this call of an agent.
    fn answers(&self, call: &str) -> Vec<u16> {
        self.calls(call).filter_map(|entry| entry.status).collect()
    }

    /// When this call came.
    fn called(&self, call: &str) -> Duration {
        let entry = self.calls(call).next().unwrap();
        entry.at.saturating_sub(entry.took)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_in_its_pod() {
    let scene = Scene::new().await;
    let run = scene.send("echo in queue $BUILDKITE_AGENT_META_DATA_QUEUE", &[]).await;
    run.until_passed().await;
    assert!(run.log().contains("in queue kubernetes"), "{}", run.log());
}

/// How the Job ends when Buildkite answers the first acquire call with this status; only 422 has an exit code of its own. The sweep
/// then gives the job another agent.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_get_its_job_is_followed_by_one_that_does() {
    let cases = [
        (422, "agent terminated 27", FAILED),
        (404, "agent terminated 0", COMPLETE),
        (403, "agent terminated 0", COMPLETE),
        (401, "agent terminated 0", COMPLETE),
    ];
    join_all(cases.map(async |(status, exit, end)| {
        let scene = Scene::new().await;
        scene.namespace.lab.buildkite.inject(When::request("PUT", "/acquire"), Fault::status(status), 1);
        let run = scene.send("true", &[]).await;
        run.until(end).await;
        assert!(run.has_been(exit), "{status}: {:?}", run.states());
        assert_eq!(run.job().state, "scheduled");
        scene.sweep_until_ended(&run).await;
        assert_eq!((run.job().exit_status, run.answers("acquire")), (Some(0), vec![status, 200]));
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_wrong_token_is_followed_by_one_with_the_right_one() {
    let scene = Scene::new().await;
    let right = std::mem::take(&mut scene.namespace.lab.buildkite.lock().tokens);
    let run = scene.send("true", &[]).await;
    run.until(FAILED).await;
    assert!(run.has_been("agent terminated 1"), "{:?}", run.states());
    assert_eq!(run.job().state, "scheduled");
    scene.namespace.lab.buildkite.lock().tokens = right;
    scene.sweep_until_ended(&run).await;
    assert_eq!((run.job().exit_status, run.answers("acquire")), (Some(0), vec![200]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_evicted_while_it_waits_for_its_job_is_followed_by_another() {
    let scene = Scene::new().await;
    scene.namespace.lab.buildkite.inject(When::request("PUT", "/acquire"), Fault::status(423), 100);
    let run = scene.send("true", &[]).await;
    eventually("there is no acquire call", async || (!run.answers("acquire").is_empty()).then_some(())).await;
    scene.evict(&run).await;
    run.until(COMPLETE).await;
    assert_eq!(run.job().state, "scheduled");
    scene.namespace.lab.buildkite.clear_faults();
    scene.sweep_until_ended(&run).await;
    assert_eq!((run.job().exit_status, run.answers("acquire").last()), (Some(0), Some(&200)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cancelled_gets_sigterm() {
    let scene = Scene::new().await;
    let run = scene.send(UNTIL_SIGTERM, &[]).await;
    run.until_started().await;
    scene.namespace.lab.buildkite.lock().cancel(run.event.job_uuid());
    run.until(COMPLETE).await;
    assert_eq!(run.job().state, "canceled");
    assert!(run.log().contains("signal 15"), "{}", run.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_deleted_before_it_has_a_node_is_replaced() {
    let mut scene = Scene::new().await;
    define(&mut scene.namespace, "gated", |spec| spec["schedulingGates"] = json!([{"name": "example.com/later"}]))
        .await;
    let run = scene.send("true", &["pod-definition=gated"]).await;
    let first = scene.namespace.pod(&run.event.job_name()).await;
    scene.namespace.delete(&format!("pods/{}", name(&first))).await;
    let second = eventually("there is no second pod", async || {
        scene.namespace.list("pods").await.into_iter().find(|pod| name(pod) != name(&first))
    })
    .await;
    let open = json!({"spec": {"schedulingGates": null}});
    scene.namespace.patch(&format!("pods/{}", name(&second)), &open).await;
    run.until_passed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_its_secret() {
    let mut scene = Scene::new().await;
    scene.send("true", &[]).await;
    scene.namespace.delete("secrets/buildkite-agent-token").await;
    let run = scene.send("true", &[]).await;
    run.until("agent waiting CreateContainerConfigError").await;
    // A new function applies the Secret before its first Job.
    scene.function = function(&scene.namespace, &scene.roots).start();
    scene.send("true", &[]).await;
    run.until_passed().await;
}

/// Images of steps as they are: with and without bash, with and without git, and with a user who has no home. The agent image's tini
/// reaps what a step leaves, if it runs there.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_a_step_gets_the_agent() {
    let scene = Scene::new().await;
    let command = "command -v bash || true; command -v git || true; id -u; for i in 1 2 3; do sh -c 'sleep 0.1 & exit'; done; sleep 1; \
                   echo zombies: $(grep -l '^State:.Z' /proc/[0-9]*/status | wc -l)";
    join_all(["bash-git", "bash", "git", "busybox", "user"].map(async |image| {
        let run = scene.send(command, &[&format!("image=lab/{image}:1")]).await;
        run.until_passed().await;
        let has = |line: &str| run.log().lines().any(|found| found.trim_end().ends_with(line));
        assert_eq!(has("/usr/bin/bash"), image.contains("bash") || image == "user", "{image}: {}", run.log());
        assert_eq!(has("/usr/bin/git"), image.contains("git") || image == "user", "{image}: {}", run.log());
        assert_eq!(has("1000"), image == "user", "{image}: {}", run.log());
        assert_eq!(has("zombies: 0"), image != "busybox", "{image}: {}", run.log());
    }))
    .await;
}

/// Each job runs once, though most wait for room.
#[tokio::test(flavor = "multi_thread")]
async fn forty_jobs_share_the_room_of_four() {
    let mut scene = Scene::new().await;
    scene.node.offer("example.com/rooms", 4).await;
    define(&mut scene.namespace, "room", |spec| {
        spec["containers"][0]["resources"]["limits"]["example.com/rooms"] = json!(1);
    })
    .await;
    let runs = join_all((0..40).map(|_| scene.send("true", &["pod-definition=room"]))).await;
    join_all(runs.iter().map(Run::until_passed)).await;
}

/// A job that ends within the minute of the definition's hook finishes; a longer one is cancelled. With and without an image of the step.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_pod_is_evicted_ends_or_is_cancelled_within_two_minutes() {
    let scene = Scene::new().await;
    let image = ["image=lab/bash-git:1"];
    // While the hook runs.
    let short = format!("echo started $((1)); sleep 10\n{READ_TOKEN}");
    let cases = [(&*short, &[][..], 0), (&short, &image, 0), (UNTIL_SIGTERM, &[], -1), (UNTIL_SIGTERM, &image, -1)];
    join_all(cases.map(async |(command, rules, exit_status)| {
        let run = scene.send(command, rules).await;
        run.until_started().await;
        let evicted = Instant::now();
        scene.evict(&run).await;
        run.until_ended().await;
        let took = evicted.elapsed();
        let job = run.job();
        assert_eq!((job.state, job.exit_status), ("finished", Some(exit_status)), "{}", run.log());
        if exit_status != 0 {
            assert_eq!(job.signal_reason.as_deref(), Some("agent_stop"), "{}", run.log());
            assert!(run.log().contains("signal 15"), "{}", run.log());
        }
        assert!(took < Duration::from_mins(2), "{took:?}");
        assert!(!run.log().contains(scene.token()), "{rules:?}: {}", run.log());
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_cannot_read_the_agent_token() {
    let scene = Scene::new().await;
    let rules = [&[][..], &["image=lab/bash-git:1"], &["image=lab/busybox:1"], &["image=lab/user:1"]];
    join_all(rules.map(async |rules| {
        let run = scene.send(READ_TOKEN, rules).await;
        run.until_passed().await;
        assert!(!run.log().contains(scene.token()), "{rules:?}: {}", run.log());
    }))
    .await;
}

/// The other ways in which Kubernetes stops the pod of a job that runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_deleted_or_too_old_is_cancelled() {
    let mut scene = Scene::new().await;
    let runs = [scene.send(UNTIL_SIGTERM, &[]).await, scene.send(UNTIL_SIGTERM, &[]).await];
    let [deleted, old] = runs.each_ref().map(|run| format!("jobs/{}", run.event.job_name()));
    join_all(runs.iter().map(Run::until_started)).await;
    scene.namespace.delete(&format!("{deleted}?propagationPolicy=Background")).await;
    scene.namespace.patch(&old, &json!({"spec": {"activeDeadlineSeconds": 1}})).await;
    for run in runs {
        run.until_ended().await;
        let job = run.job();
        assert_eq!((job.exit_status, job.signal_reason.as_deref()), (Some(-1), Some("agent_stop")), "{}", run.log());
        assert!(run.log().contains("signal 15"), "{}", run.log());
    }
}

/// With what the checks of definitions require, in the agent's image and in that of a step.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_with_a_root_that_is_read_only() {
    let mut scene = Scene::new().await;
    define(&mut scene.namespace, "read-only", |spec| {
        let folders = ["/buildkite/builds", "/buildkite/plugins", "/root/.buildkite-agent", "/tmp"];
        let volumes = folders.iter().enumerate();
        let agent = &mut spec["containers"][0];
        agent["securityContext"]["readOnlyRootFilesystem"] = true.into();
        agent["volumeMounts"] =
            volumes.clone().map(|(index, path)| json!({"name": format!("v{index}"), "mountPath": path})).collect();
        spec["volumes"] = volumes.map(|(index, _)| json!({"name": format!("v{index}"), "emptyDir": {}})).collect();
    })
    .await;
    join_all([&[][..], &["image=lab/bash-git:1"]].map(async |image| {
        let rules = [&["pod-definition=read-only"], image].concat();
        let run = scene.send("touch here; touch /there || echo cannot $((1)) write", &rules).await;
        run.until_passed().await;
        assert!(run.log().contains("cannot 1 write"), "{}", run.log());
    }))
    .await;
}

/// What the kubelet says of a pod that cannot start is on the build page, and in the reason of the finish.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_cannot_start_says_why_on_the_build_page() {
    type Change<'a> = &'a (dyn Fn(&mut Value) + Sync);
    let missing_secret = json!({"name": "NPM_TOKEN", "valueFrom": {"secretKeyRef": {"name": "npm", "key": "token"}}});
    let helper = |image: &str| json!([{"name": "helper", "image": image, "imagePullPolicy": "IfNotPresent"}]);
    let cases: [(&str, &str, Change); 3] = [
        ("CreateContainerConfigError", "secret \"npm\" not found", &|spec: &mut Value| {
            spec["containers"][0]["env"].as_array_mut().unwrap().push(missing_secret.clone());
        }),
        ("ErrImageNeverPull", "is not present with pull policy of Never", &|spec: &mut Value| {
            let mut never = helper("lab/missing:1");
            never[0]["imagePullPolicy"] = "Never".into();
            spec["initContainers"] = never;
        }),
        ("ImagePullBackOff", "connection refused", &|spec: &mut Value| {
            spec["initContainers"] = helper("127.0.0.1:1/missing:1");
        }),
    ];
    join_all(cases.iter().map(async |(reason, message, change)| {
        let mut scene = Scene::new().await;
        define(&mut scene.namespace, "blocked", change).await;
        scene.function = function(&scene.namespace, &scene.roots).env("POD_PENDING_SECONDS", "65").start();
        let run = scene.send("true", &["pod-definition=blocked"]).await;
        scene.sweep_until_ended(&run).await;
        let job = run.job();
        let detail = job.detail.unwrap_or_default();
        println!("{:#?}\n{detail}\n", job.notifications);
        assert!(detail.contains(reason) && detail.contains(message), "{detail}");
        assert!(
            job.notifications.iter().any(|(_, line)| line.starts_with("the pod cannot start: ")),
            "{:?}",
            job.notifications
        );
        assert_eq!(job.signal_reason.as_deref(), Some("stack_error"));
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_leaves_the_machine_as_it_was() {
    let settings = kernel_settings();
    let node = Node::start().await.unwrap();
    let name = node.folder().file_name().unwrap().to_str().unwrap();
    let id = name.rsplit('-').next().unwrap().to_owned();
    assert!(traces(&id).len() >= 3, "a folder, an interface and a cgroup: {:?}", traces(&id));
    spawn_blocking(move || drop(node)).await.unwrap();
    assert_eq!((traces(&id), kernel_settings()), (Vec::new(), settings));
}

/// The folders, interfaces, cgroups and mounts of a node.
fn traces(id: &str) -> Vec<String> {
    let files = |folder: &str| {
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path().display().to_string())
    };
    let mut traces: Vec<_> = ["/tmp", "/sys/class/net", "/sys/fs/cgroup"].into_iter().flat_map(files).collect();
    traces.extend(files("/sys/fs/cgroup").collect::<Vec<_>>().iter().flat_map(|hierarchy| files(hierarchy)));
    traces.extend(fs::read_to_string("/proc/mounts").unwrap().lines().map(str::to_owned));
    traces.retain(|trace| trace.contains(id));
    traces
}

/// Those that a kubelet changes.
fn kernel_settings() -> Vec<String> {
    let settings =
        ["kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "vm/overcommit_memory", "vm/panic_on_oom"];
    settings.map(|setting| fs::read_to_string(format!("/proc/sys/{setting}")).unwrap()).to_vec()
}

/// Where the time of ten warm jobs goes, from the event to the agent's acquire call. The function has little of it.
#[tokio::test(flavor = "multi_thread")]
async fn the_function_has_a_twentieth_of_the_time_to_the_acquire_call() {
    let scene = Scene::new().await;
    let mut runs = Vec::new();
    for _ in 0..10 {
        let begin = scene.namespace.lab.timeline.now();
        let run = scene.send("true", &[]).await;
        let answered = scene.namespace.lab.timeline.now();
        run.until_ended().await;
        runs.push((begin, answered, run));
    }
    let jobs = join_all(runs.iter().map(async |(begin, answered, run)| {
        run.until_passed().await;
        let states = run.states();
        // On a busy machine a kubelet may skip a state.
        let state = |state: &str| states.iter().find(|(_, seen)| seen == state).map(|(at, _)| *at);
        let ends = [
            Some(*answered),
            state("scheduled"),
            state("PodReadyToStartContainers"),
            state("agent running"),
            Some(run.called("acquire")),
            Some(run.called("finish")),
            state(COMPLETE),
        ];
        ends.map(|end| Some(end?.saturating_sub(*begin)))
    }))
    .await;
    let median = |step: usize| {
        let mut times: Vec<_> = jobs.iter().filter_map(|job| job[step]).collect();
        times.sort();
        times[times.len() / 2]
    };
    let steps = ["answered", "scheduled", "network ready", "agent running", "acquire", "finish", "Job complete"];
    for (step, name) in steps.iter().enumerate() {
        eprintln!("{name:>14} {:>6} ms", median(step).as_millis());
    }
    assert!(median(0) * 20 <= median(4), "{:?} of {:?}", median(0), median(4));
}
