//! What keeps the agent of a Job that has not ended from taking its job: no pod, no node, an image that cannot be pulled.
//!
//! Each obstacle has a time at which the build page gets a line, and most have one at which the job is finished. Both follow from
//! times that the control plane wrote. What needs Events finishes nothing where they are unknown.

use std::collections::HashSet;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::{finding::Found, seen::Seen};
use crate::{
    kubernetes::{
        events::Event,
        jobs::Job,
        pods::{ContainerStatus, Pod},
    },
    pod::{definition::AGENT, metadata::DEFINITION_ANNOTATION},
};

/// How long the Job controller has for a pod, and the scheduler for its node.
const MAX_UNSCHEDULED: SignedDuration = SignedDuration::from_secs(30);

/// How long the node has to start the agent, and the agent to take its job.
const MAX_STARTING: SignedDuration = SignedDuration::from_secs(60);

/// How long a container may wait with a reason that does not pass.
const MAX_CONTAINER_WAITING: SignedDuration = SignedDuration::from_secs(90);

/// Reasons of a container that waits only for others, or for its next start.
const USUAL_REASONS: [&str; 3] = ["ContainerCreating", "PodInitializing", "CrashLoopBackOff"];

/// The reason of a container whose Secret or `ConfigMap` is missing.
pub(super) const CONFIG_ERROR: &str = "CreateContainerConfigError";

/// Reasons of a container whose image is pulled again and again.
const PULL_REASONS: [&str; 2] = ["ErrImagePull", "ImagePullBackOff"];

/// What is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The Job has no pod.
    NoPod,
    /// Another controller holds it back, by a suspended Job or a gate of its pod.
    Held,
    /// Its pod has no node.
    NoNode,
    /// A container of its pod waits with a reason.
    ContainerWaits,
    /// Its pod has a node, and its agent has not started.
    NotStarted,
    /// Its agent runs, and has not taken the job.
    AgentWaits,
}

/// What is in the way of a Job, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Obstacle<'a> {
    /// What it is.
    pub kind: Kind,
    /// The pod, if there is one.
    pub pod: Option<&'a Pod>,
    /// When the build page gets a line.
    pub notify_at: Timestamp,
    /// When the job is finished. `None` if it is left, however long.
    pub finish_at: Option<Timestamp>,
    /// The image does not exist, so that neither cluster nor network is at fault.
    pub is_of_the_job: bool,
    /// Pods of its size run, or got a node a short time ago.
    pub waits_for_room: bool,
}

/// What is in the way of a Job that has not ended. `pods` are those that it controls.
pub fn find<'a>(job: &'a Job, pods: &[&'a Pod], seen: &Seen) -> Option<Obstacle<'a>> {
    let live: Vec<_> = pods.iter().copied().filter(|pod| !pod.has_ended()).collect();
    if live.iter().any(|pod| pod.metadata.deletion_timestamp.is_some()) {
        return None;
    }
    let pod_pending = seen.pod_pending;
    let agent = |pod: &'a Pod| pod.container(AGENT);
    let running = pods.iter().copied().filter(|pod| agent(pod).is_some_and(ContainerStatus::runs)).collect();
    let obstacle = if let Some(pod) = newest(running) {
        let started = |event: &&Event| event.reason == "Started" && event.is_of_container(AGENT);
        let since = first(events(seen, &pod.metadata.uid).iter().filter(started))?;
        Obstacle::of(Kind::AgentWaits, Some(pod), since, MAX_STARTING, pod_pending)
    } else if job.spec.suspend {
        let suspended = job.condition("Suspended").and_then(|suspended| suspended.last_transition_time);
        Obstacle::held(None, suspended.or(job.metadata.creation_timestamp)?)
    } else if let Some(pod) = newest(live) {
        if agent(pod).is_some_and(ContainerStatus::started) {
            return None;
        }
        let created = pod.metadata.creation_timestamp?;
        if pod.spec.scheduling_gates > 0 {
            Obstacle::held(Some(pod), created)
        } else if pod.spec.node_name.is_none() {
            let was_gated = job.spec.template.spec.scheduling_gates > 0;
            let failed = events(seen, &pod.metadata.uid).iter().filter(|event| event.reason == "FailedScheduling");
            let since = if was_gated { first(failed)? } else { created };
            Obstacle::of(Kind::NoNode, Some(pod), since, MAX_UNSCHEDULED, pod_pending)
        } else {
            on_node(job, pod, seen)?
        }
    } else if pods.is_empty() && job.has_no_pod() {
        Obstacle::of(Kind::NoPod, None, job.status.start_time?, MAX_UNSCHEDULED, pod_pending)
    } else {
        return None;
    };
    let finish_at = obstacle.finish_at.filter(|_| seen.events.get().is_some());
    Some(Obstacle { finish_at, ..obstacle })
}

fn newest(pods: Vec<&Pod>) -> Option<&Pod> {
    pods.into_iter().max_by_key(|pod| (pod.metadata.creation_timestamp, &pod.metadata.uid))
}

/// Whether the reason of a container that waits does not pass by itself.
pub(super) fn waits_in_vain(container: &ContainerStatus) -> Option<&str> {
    let reason = container.state.waiting.as_ref()?.reason.as_deref()?;
    (!USUAL_REASONS.contains(&reason)).then_some(reason)
}

/// The pod has a node: of its containers that wait in vain, the one that is due first.
fn on_node<'a>(job: &Job, pod: &'a Pod, seen: &Seen) -> Option<Obstacle<'a>> {
    let since = pod.condition("PodScheduled").and_then(|scheduled| scheduled.last_transition_time);
    let waiting: Vec<_> = pod.containers().filter(|container| waits_in_vain(container).is_some()).collect();
    if waiting.is_empty() {
        return Some(Obstacle::of(Kind::NotStarted, Some(pod), since?, MAX_STARTING, seen.pod_pending));
    }
    let obstacles = waiting.iter().filter_map(|container| of_container(job, pod, container, seen));
    let due_first = obstacles.min_by_key(|obstacle| (obstacle.finish_at.is_none(), obstacle.finish_at));
    due_first.or_else(|| {
        // Since when is not known without an Event.
        let unknown = Obstacle::of(Kind::ContainerWaits, Some(pod), since?, MAX_STARTING, seen.pod_pending);
        Some(Obstacle { finish_at: None, ..unknown })
    })
}

fn of_container<'a>(job: &Job, pod: &'a Pod, container: &ContainerStatus, seen: &Seen) -> Option<Obstacle<'a>> {
    let warnings = || {
        let events = events(seen, &pod.metadata.uid).iter();
        events.filter(|event| event.is_warning() && event.is_of_container(&container.name))
    };
    let since = first(warnings())?;
    let reason = waits_in_vain(container)?;
    let is_pull = PULL_REASONS.contains(&reason);
    let is_invalid = reason == "InvalidImageName";
    let is_missing = is_pull && warnings().any(|event| says_not_there(&event.message));
    let is_refused = is_pull && warnings().any(|event| says_refused(&event.message));
    let message = container.state.waiting.as_ref().and_then(|waiting| waiting.message.as_deref()).unwrap_or_default();
    let max = match reason {
        "InvalidImageName" => Some(SignedDuration::ZERO),
        // The sweep creates that Secret itself.
        CONFIG_ERROR if is_about_our_secret(message, job, seen) => None,
        CONFIG_ERROR => Some(seen.pod_pending),
        _ if is_pull && !is_missing && !is_refused => Some(seen.pod_pending),
        _ => Some(MAX_CONTAINER_WAITING),
    };
    let obstacle = Obstacle::of(Kind::ContainerWaits, Some(pod), since, SignedDuration::ZERO, SignedDuration::ZERO);
    Some(Obstacle { finish_at: max.map(|max| since + max), is_of_the_job: is_invalid || is_missing, ..obstacle })
}

/// The registry says that it does not have the image. The words cannot be part of an image's name.
fn says_not_there(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("not found") || message.contains("manifest unknown")
}

/// The registry does not give the image to this cluster. An image of such a name is quoted, or has a path or a tag.
fn says_refused(message: &str) -> bool {
    let mut words = message.split_whitespace().map(|word| word.trim_end_matches([':', ',', '.', ';']));
    words.any(|word| ["denied", "unauthorized"].iter().any(|refused| word.eq_ignore_ascii_case(refused)))
}

/// Words of the kubelet: `secret "…" not found`, `couldn't find key token in Secret …/…`.
fn is_about_our_secret(message: &str, job: &Job, seen: &Seen) -> bool {
    let (namespace, shared) = (&seen.stack.namespace, &*seen.stack.agent_token_secret);
    let is_about = |name| {
        message.contains(&format!("secret \"{name}\"")) || message.ends_with(&format!(" in Secret {namespace}/{name}"))
    };
    is_about(shared) || job.own_token_secret().is_some_and(is_about)
}

pub(super) fn events<'a>(seen: &'a Seen, uid: &str) -> &'a [Event] {
    seen.events.get().map_or(&[], |events| events.of(uid))
}

fn first<'a>(events: impl Iterator<Item = &'a Event>) -> Option<Timestamp> {
    events.filter_map(|event| event.metadata.creation_timestamp).min()
}

impl<'a> Obstacle<'a> {
    fn of(
        kind: Kind,
        pod: Option<&'a Pod>,
        since: Timestamp,
        notify_after: SignedDuration,
        finish_after: SignedDuration,
    ) -> Self {
        let (notify_at, finish_at) = (since + notify_after, Some(since + finish_after));
        Self { kind, pod, notify_at, finish_at, is_of_the_job: false, waits_for_room: false }
    }

    fn held(pod: Option<&'a Pod>, since: Timestamp) -> Self {
        Self { finish_at: None, ..Self::of(Kind::Held, pod, since, MAX_UNSCHEDULED, SignedDuration::ZERO) }
    }

    /// It is time to finish the job.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.finish_at.is_some_and(|time| time <= now)
    }

    /// It has lasted, and cluster, registry or network may be its cause.
    pub fn is_fault(&self, now: Timestamp) -> bool {
        let is_usual = self.kind == Kind::Held || self.waits_for_room;
        !is_usual && !self.is_of_the_job && self.notify_at <= now
    }
}

/// What decides which nodes can have a pod: its definition, its cpu and its memory.
type Size = (Option<String>, Vec<String>);

/// A pod waits for room, however long, while others of its size get some.
pub(super) fn wait_for_room(jobs: &mut [Found], now: Timestamp, pod_pending: SignedDuration) {
    let has_no_node = |found: &Found| found.obstacle.is_some_and(|obstacle| obstacle.kind == Kind::NoNode);
    if !jobs.iter().any(has_no_node) {
        return;
    }
    let has_room = |found: &&Found| found.pods.iter().any(|pod| got_a_node(pod, now, pod_pending));
    let sizes: HashSet<_> = jobs.iter().filter(has_room).filter_map(size).collect();
    for found in jobs.iter_mut().filter(|found| has_no_node(found)) {
        if size(found).is_some_and(|size| sizes.contains(&size)) {
            found.obstacle = found.obstacle.map(|it| Obstacle { finish_at: None, waits_for_room: true, ..it });
        }
    }
}

fn size(found: &Found) -> Option<Size> {
    let rules = found.scheduled_job()?.agent_query_rules.into_iter();
    let mut rules: Vec<_> = rules.filter(|rule| rule.starts_with("cpu=") || rule.starts_with("memory=")).collect();
    rules.sort();
    Some((found.job.metadata.annotations.get(DEFINITION_ANNOTATION).cloned(), rules))
}

/// It runs, or got its node a short time ago.
fn got_a_node(pod: &Pod, now: Timestamp, short: SignedDuration) -> bool {
    let runs = pod.status.phase == "Running" || pod.container(AGENT).is_some_and(ContainerStatus::runs);
    let scheduled = pod.condition("PodScheduled").and_then(|scheduled| scheduled.last_transition_time);
    runs || scheduled.is_some_and(|time| now.duration_since(time) < short)
}
