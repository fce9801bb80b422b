//! What a sweep asks of both sides.

use std::collections::HashSet;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;

use super::{
    Sweep, Unavailable, finding,
    seen::{Known, Queue, QueueList, Seen, Waiting},
};
use crate::{
    buildkite::{
        job::ScheduledJob,
        stacks::{MAX_UUIDS, Stacks, WaitingJob},
    },
    deadline::Deadline,
    kubernetes::{self, Listed, events::Events, jobs},
    report::{self, QueueReport},
    scheduler::Scheduler,
    stacks_api::{self, StacksApi},
};

/// How many pages of a queue are read: a list may change while it is read, and what is left out waits longest.
const MAX_PAGES: usize = 3;

/// What waits in the stack's queues.
pub(super) async fn queues(
    scheduler: &Scheduler,
    stacks_api: &StacksApi,
    token: &SecretString,
    report: &mut report::Sweep,
    deadline: Deadline,
) -> Result<Vec<Queue>, Unavailable> {
    let stack = &scheduler.config.stack;
    let (mut queues, mut long) = (Vec::new(), Vec::new());
    for key in &stack.queues {
        let list = report.of_buildkite(queue(stacks_api, key, token, deadline).await)?;
        let list = match list {
            Known::Known((Some(list), has_more)) => {
                let oldest = list.ours(key, stack).filter_map(|(_, waiting)| waiting.since()).min();
                let oldest = oldest.filter(|_| !list.paused).map(|since| list.now.duration_since(since).as_secs());
                let oldest = oldest.map(|seconds| seconds.max(0).unsigned_abs());
                let waiting = list.ours(key, stack).count();
                report.queues.push(QueueReport { queue: key.clone(), waiting, oldest });
                if has_more {
                    long.push(key.as_str());
                }
                Known::Known(list)
            }
            Known::Known((None, _)) => {
                report.failures.push(format!("the list of queue {key} has no Date"));
                Known::Unknown
            }
            Known::Unknown => Known::Unknown,
        };
        queues.push(Queue { key: key.clone(), list });
    }
    if !long.is_empty() {
        let most = MAX_PAGES * MAX_UUIDS;
        tracing::warn!("more than {most} jobs wait in {}: the sweep looks after the oldest", long.join(", "));
    }
    Ok(queues)
}

/// The first pages of a queue, and whether it has more. Without a `Date` there is no list.
async fn queue(
    stacks_api: &StacksApi,
    key: &str,
    token: &SecretString,
    deadline: Deadline,
) -> Result<(Option<QueueList>, bool), stacks_api::Error> {
    let mut list: Option<QueueList> = None;
    let mut after = None;
    for _ in 0..MAX_PAGES {
        let page = async |stacks: &Stacks| stacks.scheduled_jobs(key, after.as_deref(), token, deadline).await;
        let page = stacks_api.call(token, deadline, page).await?;
        let Some(now) = page.now else { return Ok((None, false)) };
        let list = list.get_or_insert_with(|| QueueList { now, ..QueueList::default() });
        list.paused |= page.cluster_queue.dispatch_paused;
        list.jobs.extend(page.jobs.into_iter().map(waiting));
        after = page.page_info.end_cursor.filter(|_| page.page_info.has_next_page);
        if after.is_none() {
            break;
        }
    }
    Ok((list, after.is_some()))
}

fn waiting(job: WaitingJob) -> Waiting {
    let scheduled_at = job.scheduled_at.as_deref().and_then(time);
    // A job whose time cannot be read does not start too early.
    let runnable_at = job.runnable_at.as_deref().map(|text| time(text).unwrap_or(Timestamp::MAX));
    Waiting {
        priority: job.priority,
        scheduled_at,
        runnable_at,
        job: ScheduledJob {
            time: runnable_at.or(scheduled_at).map(Into::into),
            agent_query_rules: job.agent_query_rules,
            step_key: job.step.key,
            build_number: job.build.number,
            branch: job.build.branch,
            pipeline: job.pipeline.slug,
            ..ScheduledJob::script(job.id)
        },
    }
}

/// RFC 3339, or as events have it: `2019-08-11 06:01:14 UTC`.
fn time(text: &str) -> Option<Timestamp> {
    text.replace(" UTC", "Z").parse().ok()
}

impl Sweep<'_> {
    /// The rest of the cluster's side, and the states of its jobs. The sweep was due at `due`.
    pub(super) async fn look(
        &self,
        due: Option<Timestamp>,
        queues: Vec<Queue>,
        jobs: Known<Listed<jobs::Job>>,
        report: &mut report::Sweep,
        deadline: Deadline,
    ) -> Result<Seen<'_>, Unavailable> {
        let config = &self.scheduler.config;
        let (jobs, now) = match jobs {
            Known::Known(listed) => (Known::Known(listed.items), listed.now.map_or(Known::Unknown, Known::Known)),
            Known::Unknown => (Known::Unknown, Known::Unknown),
        };
        let pods = match report.of_cluster(self.cluster.pods(deadline).await) {
            Known::Known(listed) => Known::Known(listed.items),
            Known::Unknown => Known::Unknown,
        };
        let states = match (jobs.get(), pods.get()) {
            (Some(jobs), Some(_)) => {
                report.jobs = jobs.len();
                let ours = jobs.iter().filter_map(|job| finding::Identity::of(job, &config.stack.id));
                let uuids: Vec<_> = ours.map(|job| job.uuid).collect();
                report.of_buildkite(self.stacks_api.states(&uuids, &self.token, deadline).await)?
            }
            _ => Known::Unknown,
        };
        let events = match (jobs.get(), pods.get(), states.get()) {
            (Some(jobs), Some(pods), Some(states)) => {
                let uids = finding::uids_to_explain(jobs, pods, states, &config.stack.id);
                report.of_cluster(self.events(&uids, deadline).await)
            }
            _ => Known::Unknown,
        };
        Ok(Seen {
            stack: &config.stack,
            pod_pending: SignedDuration::from_secs(config.pod_pending_seconds.into()),
            finishes: config.sweep_finishes,
            due,
            queues,
            now,
            jobs,
            pods,
            events,
            states,
        })
    }

    /// What went wrong with these objects, and when their containers started: of all Events, few are needed.
    async fn events(&self, objects: &HashSet<String>, deadline: Deadline) -> Result<Events, kubernetes::Error> {
        if objects.is_empty() {
            return Ok(Events::default());
        }
        let mut events = self.cluster.events(objects, "type=Warning", deadline).await?;
        events.extend(self.cluster.events(objects, "reason=Started", deadline).await?);
        Ok(events.into_iter().collect())
    }
}
