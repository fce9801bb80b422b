//! A namespace on the node, and the jobs that run in it.

use std::{thread::panicking, time::Duration};

use lab::{
    Buildkite, Call, Entry, Event, Function, Kind, Lab, Node, Timeline, buildkite, control_plane::eventually,
    function::Builder,
};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};
use uuid::Uuid;

use crate::namespace::{Namespace, compiled, event_with, name};

/// The state of a Job whose agent ended with 0.
pub const COMPLETE: &str = "Complete CompletionsReached";
/// The state of a Job that the pod failure policy ended.
pub const FAILED: &str = "Failed PodFailurePolicy";

/// A namespace on the node with the definitions that we ship, and a warm function.
pub struct Scene {
    pub node: &'static Node,
    pub namespace: Namespace,
    pub function: Function,
    _watch: JoinSet<()>,
}

/// A job of Buildkite, and what became of it.
pub struct Run {
    pub event: Event,
    buildkite: Buildkite,
    timeline: Timeline,
}

/// A function that reaches Buildkite by TLS: without it the address must be a loopback one, which pods cannot reach.
fn function(namespace: &Namespace) -> Builder {
    let function = namespace.builder().env("AWS_CA_BUNDLE", namespace.lab.certificates.ca_file());
    function.env("BUILDKITE_STACKS_ENDPOINT", namespace.lab.buildkite.https_url())
}

/// Applies our definition `default` under this name, with a change to its spec.
pub async fn define(namespace: &mut Namespace, name: &str, change: impl FnOnce(&mut Value)) {
    let mut manifest = compiled().into_iter().find(|manifest| self::name(manifest) == "default").unwrap();
    manifest["metadata"]["name"] = name.into();
    let spec = &mut manifest["template"]["spec"];
    for_the_lab(namespace, spec);
    change(spec);
    namespace.apply(&manifest).await;
}

/// The stand-in as the agent's endpoint, and version 3's names of the settings that version 4 renamed.
pub fn for_the_lab(namespace: &Namespace, spec: &mut Value) {
    let env = spec["containers"][0]["env"].as_array_mut().unwrap();
    let endpoint = namespace.lab.buildkite.url();
    let variables = [
        ("BUILDKITE_AGENT_ENDPOINT", &*endpoint),
        ("BUILDKITE_SIGNAL_GRACE_PERIOD_SECONDS", "30"),
        ("BUILDKITE_CANCEL_GRACE_PERIOD", "45"),
    ];
    env.extend(variables.map(|(name, value)| json!({"name": name, "value": value})));
}

/// An init container of this image, which need not run.
pub fn helper(image: &str) -> Value {
    json!([{"name": "helper", "image": image}])
}

/// An init container with a file system of its own, of an image whose pull takes these seconds. No other has it.
pub fn slow_helper(spec: &mut Value, seconds: u32) {
    let image = format!("registry.example/{seconds}-seconds:{}", Uuid::new_v4());
    let mounts = json!([{"name": "tools", "mountPath": "/tools"}]);
    spec["volumes"] = json!([{"name": "tools", "emptyDir": {}}]);
    spec["initContainers"] = json!([
        {"name": "tools", "image": "lab/busybox:1", "command": ["cp", "/bin/busybox", "/tools"], "volumeMounts": mounts},
        {"name": "helper", "image": image, "command": ["/tools/busybox", "true"],
         "volumeMounts": mounts},
    ]);
}

impl Scene {
    pub async fn new() -> Self {
        Self::on(Node::shared().await).await
    }

    pub async fn on(node: &'static Node) -> Self {
        let mut namespace = Namespace::on(node).await;
        // Before the function lists the definitions: it has the list for a minute.
        define(&mut namespace, "default", |_| {}).await;
        let function = function(&namespace).start();
        let watch = node.watch(&namespace.name, &namespace.lab.timeline).await;
        Self { node, namespace, function, _watch: watch }
    }

    /// A new function, with this variable changed.
    pub fn restart(&mut self, variable: &str, value: &str) {
        self.function = function(&self.namespace).env(variable, value).start();
    }

    /// Schedules a job without a checkout, and hands its event to the function, which must create its Job. The job asks for little, so
    /// that many have room.
    pub async fn send(&self, command: &str, rules: &[&str]) -> Run {
        self.send_with(command, rules, |event| event, &[]).await
    }

    /// The same with a change to the event, and with variables.
    pub async fn send_with(
        &self,
        command: &str,
        rules: &[&str],
        change: impl FnOnce(Event) -> Event,
        env: &[(&str, &str)],
    ) -> Run {
        let rules: Vec<_> = ["cpu=10m", "memory=128Mi"].iter().chain(rules).copied().collect();
        let event = event_with(&rules).now().detail(|detail| detail["job"]["command"] = command.into());
        let event = change(event);
        {
            let mut organization = self.namespace.lab.buildkite.lock();
            let job = organization.schedule(&event, buildkite::CLUSTER);
            let env = [("BUILDKITE_SKIP_CHECKOUT", "true")].iter().chain(env);
            job.env.extend(env.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        }
        assert_eq!(self.function.succeed(&event).await["outcome"], "created");
        let Lab { buildkite, timeline, .. } = &self.namespace.lab;
        Run { event, buildkite: buildkite.clone(), timeline: timeline.clone() }
    }

    /// The agent token without its beginning: a log in which an agent found a whole one would not show it.
    pub fn token(&self) -> &str {
        self.namespace.lab.agent_token().trim_start_matches("bkct_")
    }

    /// Sweeps until it is so; the sweep touches no Job of the last minute.
    pub async fn sweep_until(&self, is_so: impl Fn() -> bool) {
        eventually("no sweep helps", async || {
            assert_eq!(self.function.succeed(Event::sweep()).await["outcome"], "swept");
            sleep(Duration::from_secs(2)).await;
            is_so().then_some(())
        })
        .await;
    }

    /// Sweeps until the job ends, which must be as `assert_passed` says.
    pub async fn sweep_until_passed(&self, run: &Run) {
        self.sweep_until(|| run.job().finished_at.is_some()).await;
        run.assert_passed();
    }

    /// The pod of a run.
    async fn pod(&self, run: &Run) -> String {
        let path = self.namespace.path(&format!("pods?labelSelector=job-name%3D{}", run.event.job_name()));
        let (_, pods) = self.namespace.control_plane.admin().await.get(&path).await;
        name(&pods["items"][0]).to_owned()
    }

    /// Evicts the pod of a run through the Eviction API, as a drain does.
    pub async fn evict(&self, run: &Run) {
        let pod = self.pod(run).await;
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}});
        let mut admin = self.namespace.control_plane.admin().await;
        let (status, answer) = admin.post(&self.namespace.path(&format!("pods/{pod}/eviction")), &eviction).await;
        assert_eq!(status, 201, "{answer}");
    }

    /// Deletes the pod of a run.
    pub async fn delete_pod(&self, run: &Run) {
        let path = self.namespace.path(&format!("pods/{}", self.pod(run).await));
        let (status, answer) = self.namespace.control_plane.admin().await.delete(&path).await;
        assert_eq!(status, 200, "{answer}");
    }

    /// Waits until a component reports this of the Job's pod.
    pub async fn until_event(&self, run: &Run, reason: &str) {
        let path = self.namespace.path(&format!("events?fieldSelector=reason%3D{reason}"));
        let mut admin = self.namespace.control_plane.admin().await;
        eventually(reason, async || {
            let (_, events) = admin.get(&path).await;
            let mut objects = events["items"].as_array()?.iter().map(|event| &event["involvedObject"]["name"]);
            objects.any(|name| name.as_str().is_some_and(|name| name.starts_with(&run.event.job_name()))).then_some(())
        })
        .await;
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
    pub fn job(&self) -> buildkite::Job {
        self.buildkite.lock().jobs[self.event.job_uuid()].clone()
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.job().log).into_owned()
    }

    /// Whether a line of its build page begins so.
    pub fn says(&self, beginning: &str) -> bool {
        self.job().notifications.iter().any(|(_, line)| line.starts_with(beginning))
    }

    /// Waits until the Job, or one of its Pods, gets a state.
    pub async fn until(&self, state: &str) -> Duration {
        eventually(state, async || self.states().into_iter().find(|(_, seen)| seen == state)).await.0
    }

    /// Waits until Buildkite knows how the job ended.
    pub async fn until_ended(&self) {
        eventually("the job does not end", async || self.job().finished_at).await;
    }

    /// Waits until its command runs.
    pub async fn until_started(&self) {
        eventually("the command does not run", async || self.log().contains("started 1").then_some(())).await;
    }

    /// Waits for the end of a Job whose command must have ended with 0, in one run.
    pub async fn until_passed(&self) {
        self.until(COMPLETE).await;
        self.assert_passed();
        assert_eq!(self.answers("acquire"), [200]);
    }

    /// Buildkite knows that the command ended with 0, after one agent has got the job.
    pub fn assert_passed(&self) {
        let (job, answers) = (self.job(), self.answers("acquire"));
        assert_eq!((job.state, job.exit_status), ("finished", Some(0)), "{:?} {}", job.detail, self.log());
        assert_eq!(answers.iter().filter(|status| **status == 200).count(), 1, "{answers:?}");
    }

    /// The states of the Job and its Pods so far.
    pub fn states(&self) -> Vec<(Duration, String)> {
        let entries = self.timeline.entries().into_iter();
        let states = entries.filter_map(|entry| match entry.kind {
            Kind::Became { name, state } if name.starts_with(&self.event.job_name()) => Some((entry.at, state)),
            _ => None,
        });
        states.collect()
    }

    pub fn has_been(&self, state: &str) -> bool {
        self.states().iter().any(|(_, seen)| seen == state)
    }

    /// The entries of this call of an agent.
    pub fn calls(&self, call: &str) -> impl Iterator<Item = Entry> {
        let path = format!("/v3/jobs/{}/{call}", self.event.job_uuid());
        let entries = self.timeline.entries().into_iter();
        entries.filter(move |entry| entry.call().is_some_and(|Call { target, .. }| *target == path))
    }

    /// The statuses of the answers to this call of an agent.
    pub fn answers(&self, call: &str) -> Vec<u16> {
        self.calls(call).filter_map(|entry| entry.status).collect()
    }

    /// When this call came.
    pub fn called(&self, call: &str) -> Duration {
        let entry = self.calls(call).next().unwrap();
        entry.at.saturating_sub(entry.took)
    }
}
