//! The texts about what is in the way of a Job: for its job's build page, and the reason of the brake.
//!
//! They quote Events, the conditions of the pod, and the states of its containers: no manifest, no command.

use std::iter;

use super::{
    detail::{MAX_QUOTED_LINES, container_line, quoted, reason_and_message},
    finding::Found,
    obstacle::{Kind, Obstacle, events, waits_in_vain},
    seen::Seen,
};
use crate::{
    kubernetes::{
        events::Event,
        pods::{ContainerStatus, Pod},
    },
    pod::{job, metadata::DEFINITION_ANNOTATION},
    text::excerpt,
};

/// What is in the way, in one line.
pub(super) fn cause(found: &Found, obstacle: &Obstacle, seen: &Seen) -> String {
    let why = quotes(found, obstacle, seen).next();
    let why = why.map(|why| format!(": {}", why.trim_start())).unwrap_or_default();
    match obstacle.kind {
        Kind::NoPod => format!("the Kubernetes Job has no pod{why}"),
        Kind::Held if obstacle.pod.is_none() => {
            "the Kubernetes Job is suspended: a controller such as Kueue starts it".to_owned()
        }
        Kind::Held => "the pod has a scheduling gate: the controller that set it opens it".to_owned(),
        Kind::NoNode => format!("the pod waits for a node{why}"),
        Kind::ContainerWaits => format!("the pod cannot start{why}"),
        Kind::NotStarted => format!("the pod has a node, and its agent has not started{why}"),
        Kind::AgentWaits => "the agent runs, and has not taken the job".to_owned(),
    }
}

/// How to see more.
pub(super) fn command(found: &Found, obstacle: &Obstacle, seen: &Seen) -> String {
    let namespace = &seen.stack.namespace;
    match (obstacle.kind, obstacle.pod) {
        (Kind::AgentWaits, Some(pod)) => {
            format!("kubectl logs {} --container agent --namespace {namespace}", excerpt(&pod.metadata.name))
        }
        (_, Some(pod)) => format!("kubectl describe pod {} --namespace {namespace}", excerpt(&pod.metadata.name)),
        (_, None) => format!("kubectl describe job {} --namespace {namespace}", job::name(found.uuid)),
    }
}

/// For the build page of a job that is finished.
pub(super) fn finish(found: &Found, obstacle: &Obstacle, seen: &Seen) -> String {
    let minutes = seen.pod_pending.as_mins();
    let (what, fix) = match obstacle.kind {
        Kind::NoPod | Kind::Held => (
            format!("its Kubernetes Job had no pod for {minutes} minutes"),
            "Correct what keeps the pod from being created: a quota, a service account that does not exist, an admission webhook, or \
             the Pod Security Standard of the namespace.",
        ),
        Kind::NoNode => (
            format!("its pod had no node for {minutes} minutes"),
            "Ask for less cpu or memory, correct the node selector or the tolerations of the pod definition, or add nodes.",
        ),
        Kind::ContainerWaits => (
            "its pod cannot start".to_owned(),
            "Correct the image of the step or of the pod definition, or what else the container needs, such as its Secrets and ConfigMaps.",
        ),
        Kind::NotStarted => (
            format!("its pod had a node, and its agent did not start for {minutes} minutes"),
            "Look at the volumes, the images and the sidecars of the pod definition, and at the network of the node.",
        ),
        Kind::AgentWaits => (
            format!("its agent ran for {minutes} minutes and did not take it"),
            "An agent does so if it is paused, if it has too little memory, or if its pod has no way to Buildkite.",
        ),
    };
    let definition = found.job.metadata.annotations.get(DEFINITION_ANNOTATION).map(|name| {
        let (name, namespace) = (excerpt(name), &seen.stack.namespace);
        format!("Pod definition: PodTemplate {name} in namespace {namespace}, or else {name} in pod-definitions/ of agent-scheduler")
    });
    let lines = [format!("No agent took this job: {what}."), fix.to_owned()];
    let lines = lines.into_iter().chain(quotes(found, obstacle, seen).take(MAX_QUOTED_LINES)).chain(definition);
    let more = format!("More: {}", command(found, obstacle, seen));
    lines.chain([more]).collect::<Vec<_>>().join("\n")
}

/// What the cluster says of it, the most important line first.
fn quotes<'a>(found: &'a Found, obstacle: &Obstacle<'a>, seen: &'a Seen) -> Box<dyn Iterator<Item = String> + 'a> {
    let last = |uid, reason| last_warning(events(seen, uid), reason);
    match (obstacle.kind, obstacle.pod) {
        (Kind::NoPod, _) => {
            // The API server first quotes the pod that it refuses.
            let why = |event: &Event| {
                let message = event.message.split_once(" is forbidden: ").map_or(&*event.message, |(_, why)| why);
                reason_and_message(Some(&event.reason), Some(message))
            };
            let event = last(found.uid, |_| true).map(why);
            let conditions =
                || found.job.status.conditions.iter().filter(|condition| condition.message.is_some()).map(quoted);
            Box::new(event.into_iter().chain(conditions()))
        }
        (Kind::NoNode, Some(pod)) => {
            let condition = pod.status.conditions.iter().find(|condition| condition.type_ == "PodScheduled");
            let condition = condition.and_then(|condition| condition.message.as_deref());
            let event = || last(&pod.metadata.uid, |reason| reason == "FailedScheduling").map(|event| &*event.message);
            Box::new(condition.or_else(event).map(|text| reason_and_message(None, Some(text))).into_iter())
        }
        (Kind::ContainerWaits, Some(pod)) => {
            Box::new(pod.containers().filter(|container| waits_in_vain(container).is_some()).filter_map(container_line))
        }
        (Kind::NotStarted, Some(pod)) => {
            let event = last(&pod.metadata.uid, |reason| reason != "FailedScheduling").map(said);
            Box::new(restarting(pod).filter_map(container_line).chain(event))
        }
        _ => Box::new(iter::empty()),
    }
}

/// The sidecars that do not stay.
fn restarting(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.containers().filter(|container| container.last_state.terminated.is_some())
}

fn last_warning(events: &[Event], is_meant: fn(&str) -> bool) -> Option<&Event> {
    let warnings = events.iter().filter(|event| event.is_warning() && is_meant(&event.reason));
    warnings.max_by_key(|event| event.last_timestamp.or(event.metadata.creation_timestamp))
}

fn said(event: &Event) -> String {
    reason_and_message(Some(&event.reason), Some(&event.message))
}
