//! Both sides as the tests of the plan have them. Times are seconds ago, jobs and builds are small numbers.

use std::collections::BTreeMap;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, from_value, json};
use uuid::Uuid;

use crate::{
    buildkite::job::ScheduledJob,
    kubernetes::{events::Event, jobs::Job, pods::Pod},
    pod::{
        attempt::{ATTEMPT_LABEL, Attempt, FAILED_ATTEMPTS_ANNOTATION, FIRST_CREATED_ANNOTATION, JOB_ANNOTATION},
        job,
        metadata::{JOB_UUID_LABEL, STACK_LABEL},
    },
    stack::{Stack, fixtures},
    sweep::{
        plan::{Step, plan},
        seen::{Known, Queue, QueueList, Seen, Waiting},
    },
};

pub(super) const STACK: &str = "0123456789abcdef0123456789abcdef";

/// The clocks differ: an age is only right by the clock of its own side.
const CLUSTER_NOW: i64 = 1_768_471_205;
const BUILDKITE_NOW: i64 = CLUSTER_NOW + 7_000;

/// `PodPendingSeconds` and `JobActiveDeadlineSeconds`.
pub(super) const POD_PENDING: i64 = 900;
pub(super) const DEADLINE: i64 = 21_600;

pub(super) fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_second(CLUSTER_NOW - seconds).unwrap()
}

pub(super) fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

pub(super) fn number(uuid: Uuid) -> u128 {
    uuid.as_u128()
}

/// A job of the build of its number.
pub(super) fn scheduled_job(number: u128) -> ScheduledJob {
    ScheduledJob {
        agent_query_rules: vec!["queue=kubernetes".to_owned()],
        build_number: Some(u64::try_from(number).unwrap()),
        branch: Some("main".to_owned()),
        pipeline: Some("example-pipeline".to_owned()),
        ..ScheduledJob::script(uuid(number))
    }
}

/// A Job, and how the rows of the tables change it.
#[derive(Clone, Debug)]
pub(super) struct KubernetesJob(pub(super) Job);

pub(super) fn kubernetes_job(number: u128, created: i64) -> KubernetesJob {
    KubernetesJob(Job::default()).of(&scheduled_job(number)).with(|job| {
        job.metadata.name = job::name(uuid(number));
        job.metadata.uid = Some(format!("uid-{number}"));
        let labels = [(JOB_UUID_LABEL, uuid(number).to_string()), (STACK_LABEL, STACK.to_owned())];
        job.metadata.labels = labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        job.metadata.creation_timestamp = Some(ago(created));
        job.status.active = 1;
    })
}

impl KubernetesJob {
    pub(super) fn with(mut self, change: impl FnOnce(&mut Job)) -> Self {
        change(&mut self.0);
        self
    }

    pub(super) fn of(self, scheduled: &ScheduledJob) -> Self {
        let text = serde_json::to_string(scheduled).unwrap();
        self.with(|job| drop(job.metadata.annotations.insert(JOB_ANNOTATION.to_owned(), text)))
    }

    pub(super) fn build(self, number: u64) -> Self {
        let mut scheduled: ScheduledJob = serde_json::from_str(&self.0.metadata.annotations[JOB_ANNOTATION]).unwrap();
        scheduled.build_number = Some(number);
        self.of(&scheduled)
    }

    /// The attempt of that number, with so many of the earlier ones failed.
    pub(super) fn attempt(self, number: u32, failed: u32, first_created: i64) -> Self {
        self.attempt_of(Attempt { number, failed, first_created: ago(first_created) })
    }

    pub(super) fn attempt_of(self, Attempt { number, failed, first_created }: Attempt) -> Self {
        self.with(|job| {
            job.metadata.labels.insert(ATTEMPT_LABEL.to_owned(), number.to_string());
            let annotations = &mut job.metadata.annotations;
            annotations.insert(FAILED_ATTEMPTS_ANNOTATION.to_owned(), failed.to_string());
            annotations.insert(FIRST_CREATED_ANNOTATION.to_owned(), first_created.to_string());
        })
    }

    pub(super) fn failed(self, time: i64) -> Self {
        let condition = json!({
            "type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "it failed", "lastTransitionTime": ago(time),
        });
        self.ended(condition, None)
    }

    pub(super) fn complete(self, time: i64) -> Self {
        self.ended(json!({"type": "Complete", "status": "True"}), Some(ago(time)))
    }

    fn ended(self, condition: Value, completion_time: Option<Timestamp>) -> Self {
        self.with(|job| {
            job.status.active = 0;
            job.status.conditions.push(from_value(condition).unwrap());
            job.status.completion_time = completion_time;
        })
    }

    /// Its agent's token is in a Secret of its own.
    pub(super) fn with_token(self) -> Self {
        self.with(|job| {
            let uuid = job.metadata.labels[JOB_UUID_LABEL].parse().unwrap();
            job.spec.template.spec.token_secret = Some(job::token_secret(uuid, "x2f7q"));
        })
    }

    pub(super) fn deleted(self) -> Self {
        self.with(|job| job.metadata.deletion_timestamp = Some(ago(30)))
    }
}

/// A pod of the Job of that number, with the status of its agent.
pub(super) fn pod(number: u128, agent: &Value) -> Pod {
    pod_of(&format!("uid-{number}"), number, agent)
}

pub(super) fn pod_of(uid: &str, number: u128, agent: &Value) -> Pod {
    let agent: Vec<_> = agent.as_object().map(|agent| json!({"name": "agent", "state": agent})).into_iter().collect();
    let owner = json!({"kind": "Job", "name": job::name(uuid(number)), "uid": uid, "controller": true});
    from_value(json!({
        "metadata": {"name": format!("buildkite-{number}-abcde"), "uid": format!("pod-of-{uid}"), "ownerReferences": [owner]},
        "status": {"containerStatuses": agent},
    }))
    .unwrap()
}

/// One that has ended, though its agent ran well.
pub(super) fn evicted(number: u128) -> Pod {
    let mut pod = pod(number, &exited(0));
    "Failed".clone_into(&mut pod.status.phase);
    pod
}

pub(super) fn terminating(mut pod: Pod, due: i64) -> Pod {
    pod.metadata.deletion_timestamp = Some(ago(due));
    pod
}

pub(super) fn running() -> Value {
    json!({"running": {"startedAt": ago(30)}})
}

pub(super) fn exited(exit_code: i32) -> Value {
    json!({"terminated": {"exitCode": exit_code, "reason": "Error", "startedAt": ago(30)}})
}

pub(super) fn never_started() -> Value {
    json!({"waiting": {"reason": "ImagePullBackOff"}})
}

/// A job that waits, and how the rows of the tables change it.
pub(super) fn waiting(number: u128, scheduled: i64) -> Waiting {
    let scheduled_at = Some(buildkite_ago(scheduled));
    Waiting { job: scheduled_job(number), priority: 0, scheduled_at, runnable_at: None }
}

pub(super) fn buildkite_ago(seconds: i64) -> Timestamp {
    Timestamp::from_second(BUILDKITE_NOW - seconds).unwrap()
}

/// Everything, and nothing of it unknown at first.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) stack: Stack,
    pub(super) queues: BTreeMap<String, Option<QueueList>>,
    pub(super) jobs: Vec<Job>,
    pub(super) pods: Vec<Pod>,
    pub(super) events: Vec<Event>,
    pub(super) states: BTreeMap<Uuid, String>,
    pub(super) finishes: bool,
    /// How many seconds ago the sweep was due.
    pub(super) due: i64,
    /// Of the clock, the Jobs, the pods, the states and the Events.
    pub(super) known: [bool; 5],
}

impl Default for World {
    fn default() -> Self {
        let queues = ["kubernetes", "gpu"].map(str::to_owned);
        let list = QueueList { now: buildkite_ago(0), ..QueueList::default() };
        Self {
            stack: Stack { id: STACK.to_owned(), queues: queues.to_vec(), ..fixtures::stack() },
            queues: queues.map(|queue| (queue, Some(list.clone()))).into(),
            jobs: Vec::new(),
            pods: Vec::new(),
            events: Vec::new(),
            states: BTreeMap::new(),
            finishes: true,
            due: 0,
            known: [true; 5],
        }
    }
}

impl World {
    /// A Job whose job has this state.
    pub(super) fn job(mut self, job: KubernetesJob, state: &str) -> Self {
        let uuid = job.0.metadata.labels[JOB_UUID_LABEL].parse().unwrap();
        self.jobs.push(job.0);
        if !state.is_empty() {
            self.states.insert(uuid, state.to_owned());
        }
        self
    }

    pub(super) fn state(mut self, number: u128, state: &str) -> Self {
        self.states.insert(uuid(number), state.to_owned());
        self
    }

    /// Changes the last Job.
    pub(super) fn change(mut self, change: impl FnOnce(&mut Job)) -> Self {
        change(self.jobs.last_mut().unwrap());
        self
    }

    pub(super) fn pod(mut self, pod: Pod) -> Self {
        self.pods.push(pod);
        self
    }

    pub(super) fn event(mut self, event: &Value) -> Self {
        self.events.push(from_value(event.clone()).unwrap());
        self
    }

    pub(super) fn without_events(mut self) -> Self {
        self.known[4] = false;
        self
    }

    pub(super) fn waits(mut self, queue: &str, waiting: Waiting) -> Self {
        self.list(queue).jobs.push(waiting);
        self
    }

    pub(super) fn paused(mut self, queue: &str) -> Self {
        self.list(queue).paused = true;
        self
    }

    pub(super) fn unknown_queue(mut self, queue: &str) -> Self {
        self.queues.insert(queue.to_owned(), None);
        self
    }

    pub(super) fn stack(mut self, change: impl FnOnce(&mut Stack)) -> Self {
        change(&mut self.stack);
        self
    }

    fn list(&mut self, queue: &str) -> &mut QueueList {
        self.queues.get_mut(queue).unwrap().as_mut().unwrap()
    }

    pub(super) fn plan(&self) -> Vec<Step> {
        fn known<T>(known: bool, value: T) -> Known<T> {
            if known { Known::Known(value) } else { Known::Unknown }
        }
        let queues = self
            .queues
            .iter()
            .map(|(key, list)| Queue { key: key.clone(), list: list.clone().map_or(Known::Unknown, Known::Known) });
        plan(&Seen {
            stack: &self.stack,
            pod_pending: SignedDuration::from_secs(POD_PENDING),
            finishes: self.finishes,
            due: Some(ago(self.due)),
            queues: queues.collect(),
            now: known(self.known[0], ago(0)),
            jobs: known(self.known[1], self.jobs.clone()),
            pods: known(self.known[2], self.pods.clone()),
            events: known(self.known[4], self.events.iter().cloned().collect()),
            states: known(
                self.known[3],
                self.states.iter().map(|(uuid, state)| (*uuid, state.as_str().into())).collect(),
            ),
        })
    }
}

/// Steps in short words: `replace 7 by 2` is the second attempt of job 7.
pub(super) fn words(steps: &[Step]) -> Vec<String> {
    let word = |step: &Step| match step {
        Step::Create(job) => format!("create {}", number(job.uuid)),
        Step::Replace { ended, is_deleted, next, .. } => {
            let gone = if *is_deleted { " once deleted" } else { "" };
            format!("replace {} by {}{gone}", number(ended.uuid), next.number)
        }
        Step::GiveToken { target, .. } => format!("token {}", number(target.uuid)),
        Step::Cancel(target) => format!("cancel {}", number(target.uuid)),
        Step::Finish { target, .. } => format!("finish {}", number(target.uuid)),
        Step::Notify { uuid, .. } => format!("notify {}", number(*uuid)),
        Step::Warn(_) => "warn".to_owned(),
        Step::Error(_) => "error".to_owned(),
    };
    steps.iter().map(word).collect()
}
