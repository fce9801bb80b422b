//! The texts of the sweep: for a job's build page, and for the log.
//!
//! They quote the Job's condition, and of its pods the conditions and the ends of their containers: no manifest, no command.

use k8s_openapi::jiff::Timestamp;
use uuid::Uuid;

use super::{
    brake::Brake,
    explanation,
    finding::{Finding, Found},
    plan::{Ended, MAX_FINISHES},
    seen::Seen,
};
use crate::{
    kubernetes::{
        jobs::Condition,
        pods::{ContainerStatus, Pod},
    },
    pod::{attempt::Attempt, job},
    text::{excerpt, message},
};

/// How many lines of a finish quote the cluster: it has ten at most.
pub(super) const MAX_QUOTED_LINES: usize = 6;

/// How many jobs a line of the log names.
const MAX_NAMED: usize = 5;

/// What a Job at fault reports, in one line: the same for Jobs with the same fault.
pub(super) fn cause(found: &Found, seen: &Seen) -> String {
    if let Some(obstacle) = &found.obstacle {
        return explanation::cause(found, obstacle, seen);
    }
    let containers = || found.pods.iter().flat_map(|pod| pod.containers());
    let ended = containers().find_map(|container| {
        let ended = container.state.terminated.as_ref().filter(|ended| ended.exit_code != 0)?;
        let reason = ended.reason.as_deref().map(|reason| format!(" ({})", excerpt(reason)));
        let (name, code) = (excerpt(&container.name), ended.exit_code);
        Some(format!("container {name} ended with exit code {code}{}", reason.unwrap_or_default()))
    });
    let waits = || {
        containers().find_map(|container| {
            let reason = container.state.waiting.as_ref()?.reason.as_deref()?;
            Some(format!("container {} waits: {}", excerpt(&container.name), excerpt(reason)))
        })
    };
    match found.ended_in_vain() {
        Some((Finding::Complete, _)) => "the agent ended with exit code 0 and without a job".to_owned(),
        Some((Finding::Stuck, _)) => "a pod is on a node that does not answer".to_owned(),
        _ => ended.or_else(waits).unwrap_or_else(|| {
            let condition = found.job.condition("Failed").map(quoted);
            condition.unwrap_or_else(|| "the Job says nothing more".to_owned())
        }),
    }
}

/// For the build page of a job that is finished.
pub(super) fn finish(ended: &Ended, now: Timestamp, namespace: &str) -> String {
    let Ended { found, finding, .. } = ended;
    let Attempt { number, first_created, .. } = found.attempt;
    let (name, minutes) = (job::name(found.uuid), now.duration_since(first_created).as_mins());
    let jobs = if number == 1 { "Job" } else { "Jobs" };
    let why = match finding {
        Finding::Complete => {
            "The last agent ended with exit code 0 and without the job. An agent does so if a concurrency group locks the job, if its \
             token has no access to the job's queue (404, 403), if Buildkite does not answer (5xx), or if its pod is evicted while it \
             waits. Compare the agent token with the cluster of the queue, and look at the job's concurrency group."
        }
        Finding::Stuck => {
            "The last pod is on a node that does not answer any more. Look at the nodes of the Kubernetes cluster: kubectl get nodes"
        }
        _ => {
            "The last one failed before its agent took the job. Correct what its pods report below, and retry the job."
        }
    };
    let mut lines = vec![
        format!(
            "No agent took this job: {number} Kubernetes {jobs} for it ended within {minutes} minutes, and no further one is created."
        ),
        why.to_owned(),
    ];
    lines.extend(found.job.condition("Failed").map(|failed| format!("Job {name}: {}", quoted(failed))));
    lines.extend(found.pods.iter().flat_map(|pod| report(pod)).take(MAX_QUOTED_LINES));
    lines.push(format!("More: kubectl describe job {name} --namespace {namespace}"));
    lines.join("\n")
}

/// For the build page of a job whose next attempt begins.
pub(super) fn notification(found: &Found, next: Attempt, brake: Option<&Brake>, seen: &Seen) -> String {
    let (number, cause) = (found.attempt.number, cause(found, seen));
    let brake = brake.map_or_else(String::new, on_brake);
    format!("{brake}Attempt {} begins: attempt {number} ended and no agent took the job: {cause}", next.number)
}

/// The beginning of a line for the build page, if the brake keeps a job from being finished.
pub(super) fn on_brake(brake: &Brake) -> String {
    format!("Jobs of {} builds cannot start, so the Kubernetes cluster or its network is at fault. ", brake.builds)
}

/// For the log, if the brake keeps jobs from being finished.
pub(super) fn brake(brake: &Brake, due: usize, namespace: &str) -> String {
    let Brake { builds, since, reason } = brake;
    format!(
        "{due} jobs are not finished: jobs of {builds} builds cannot start, and no agent has taken a job since {since}, so the \
         cluster, the registry or the network is at fault; most of their Jobs report: {reason}; look at \
         `kubectl get events --namespace {namespace} --sort-by .lastTimestamp`"
    )
}

/// For the log, if more jobs are to be finished than one sweep finishes.
pub(super) fn too_many(due: usize) -> String {
    format!(
        "{due} jobs cannot start and are to be finished; this sweep finishes {MAX_FINISHES} of them, and the next one goes on"
    )
}

/// For the log, if Buildkite does not know some jobs.
pub(super) fn without_state(jobs: &[Uuid]) -> Option<String> {
    let names = named(jobs)?;
    Some(format!(
        "Buildkite does not know the jobs of {} Jobs, which are left until their deadline; was the agent token replaced by one of another \
         Buildkite cluster? {names}",
        jobs.len()
    ))
}

/// For the log, if agents run for jobs that are over.
pub(super) fn runs_though_over(jobs: &[Uuid]) -> Option<String> {
    let names = named(jobs)?;
    Some(format!(
        "{} jobs are over at Buildkite and their agents run: they end themselves, or the deadline of their Jobs ends them: {names}",
        jobs.len()
    ))
}

fn named(jobs: &[Uuid]) -> Option<String> {
    let names: Vec<_> = jobs.iter().take(MAX_NAMED).map(|uuid| job::name(*uuid)).collect();
    let more = if jobs.len() > MAX_NAMED { ", …" } else { "" };
    (!names.is_empty()).then(|| names.join(", ") + more)
}

/// A pod, and its conditions and containers that have something to say.
fn report(pod: &Pod) -> Vec<String> {
    let mut lines = vec![format!("Pod {}", excerpt(&pod.metadata.name))];
    let conditions = pod.status.conditions.iter().filter(|condition| condition.message.is_some());
    lines.extend(pod.containers().filter_map(container_line));
    lines.extend(conditions.map(|condition| {
        format!("  {} is {}: {}", excerpt(&condition.type_), excerpt(&condition.status), quoted(condition))
    }));
    lines
}

/// A container that ended or waits.
pub(super) fn container_line(ContainerStatus { name, state, last_state }: &ContainerStatus) -> Option<String> {
    let (what, why) = match (state.terminated.as_ref().or(last_state.terminated.as_ref()), &state.waiting) {
        (Some(ended), _) => (
            format!("exit code {}", ended.exit_code),
            reason_and_message(ended.reason.as_deref(), ended.message.as_deref()),
        ),
        (None, Some(waiting)) => {
            ("waits".to_owned(), reason_and_message(waiting.reason.as_deref(), waiting.message.as_deref()))
        }
        (None, None) => return None,
    };
    let comma = if why.is_empty() { "" } else { ", " };
    Some(format!("  container {}: {what}{comma}{why}", excerpt(name)))
}

pub(super) fn quoted(condition: &Condition) -> String {
    reason_and_message(condition.reason.as_deref(), condition.message.as_deref())
}

/// `Reason: message`, with what there is of them.
pub(super) fn reason_and_message(reason: Option<&str>, text: Option<&str>) -> String {
    let parts = [reason.map(excerpt), text.map(message)];
    parts.into_iter().flatten().collect::<Vec<_>>().join(": ")
}
