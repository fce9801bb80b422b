//! What holds whatever was seen.

use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{Index, select},
};
use serde_json::{Value, from_value, json};

use super::world::*;
use crate::{
    kubernetes::{jobs::Job, pods::Pod},
    pod::metadata::STACK_LABEL,
    sweep::{
        finding::Finding,
        obstacle::Kind,
        plan::{Step, Target},
    },
};

/// Jobs 1 to 6, with a seventh that only waits.
const JOBS: u128 = 6;

const STATES: [&str; 15] = [
    "scheduled",
    "scheduled",
    "scheduled",
    "reserved",
    "assigned",
    "accepted",
    "running",
    "canceling",
    "timing_out",
    "finished",
    "canceled",
    "expired",
    "limited",
    "new",
    "",
];

/// Around the limits of the rules.
fn age() -> impl Strategy<Value = i64> {
    select(vec![
        -5, 0, 29, 30, 59, 60, 61, 89, 90, 119, 120, 121, 239, 240, 300, 700, 899, 900, 1_000, 21_599, 21_600, 22_000,
    ])
}

fn agent() -> impl Strategy<Value = Value> {
    let waits = |reason: &str| json!({"waiting": {"reason": reason}});
    let waiting = ["ErrImagePull", "InvalidImageName", "CreateContainerError", "ContainerCreating"].map(waits);
    let others = [Value::Null, never_started(), running(), running(), exited(0), exited(1), exited(137)];
    select(waiting.into_iter().chain(others).collect::<Vec<_>>())
}

prop_compose! {
    fn any_job(number: u128)(
        created in age(),
        end in option::of((any::<bool>(), age())),
        attempt in option::of((1..6_u32, 0..5_u32, age())),
        build in 1..4_u64,
        (active, start, suspend) in (0..2_u32, option::of(age()), prop::bool::weighted(0.1)),
        (deleted, foreign) in (prop::bool::weighted(0.1), prop::bool::weighted(0.1)),
        queue in select(vec!["queue=kubernetes", "queue=gpu", "queue=other"]),
    ) -> KubernetesJob {
        let mut scheduled = scheduled_job(number);
        scheduled.agent_query_rules = vec![queue.to_owned()];
        let mut job = kubernetes_job(number, created).of(&scheduled).build(build).with(|job| {
            job.status.active = active;
            job.status.start_time = start.map(ago);
            job.spec.suspend = suspend;
        });
        if let Some((number, failed, first)) = attempt {
            job = job.attempt(number, failed, first);
        }
        job = match end {
            Some((true, time)) => job.failed(time),
            Some((false, time)) => job.complete(time),
            None => job,
        };
        if deleted {
            job = job.deleted();
        }
        job.with(|job| if foreign { job.metadata.labels.insert(STACK_LABEL.to_owned(), "other".to_owned()); })
    }
}

fn any_pods(number: u128) -> impl Strategy<Value = Vec<Pod>> {
    let phase = select(vec!["", "", "Pending", "Running", "Failed"]);
    let place = (age(), option::weighted(0.7, age()), 0..4_usize, phase);
    let one = (agent(), prop::bool::weighted(0.2), option::weighted(0.1, age()), place).prop_map(
        move |(agent, old, deleted, (created, node, gates, phase))| {
            let mut pod = pod_of(&if old { "uid-0".to_owned() } else { format!("uid-{number}") }, number, &agent);
            pod.metadata.creation_timestamp = Some(ago(created));
            pod.spec.node_name = node.map(|_| "node-1".to_owned());
            pod.spec.scheduling_gates = gates / 3;
            pod.status.phase = phase.to_owned();
            let time = node.map(ago);
            let scheduled = json!({"type": "PodScheduled", "status": if time.is_some() { "True" } else { "False" }, "lastTransitionTime": time});
            pod.status.conditions = vec![from_value(scheduled).unwrap()];
            deleted.map_or(pod.clone(), |due| terminating(pod, due))
        },
    );
    vec(one, 0..3)
}

fn any_event() -> impl Strategy<Value = Value> {
    let reason = select(vec!["Failed", "Started", "FailedScheduling", "FailedCreate"]);
    let message = select(vec!["503", "x: not found", "denied"]);
    (1..=JOBS, any::<bool>(), reason, message, age()).prop_map(|(number, of_pod, reason, message, created)| {
        let uid = if of_pod { format!("pod-of-uid-{number}") } else { format!("uid-{number}") };
        json!({
            "metadata": {"creationTimestamp": ago(created)}, "type": if reason == "Started" { "Normal" } else { "Warning" },
            "involvedObject": {"uid": uid, "fieldPath": "spec.containers{agent}"}, "reason": reason, "message": message,
        })
    })
}

prop_compose! {
    fn any_waiting()(
        number in 1..=JOBS + 1,
        scheduled in age(),
        runnable in option::of(age()),
        priority in -1..2_i64,
    ) -> crate::sweep::seen::Waiting {
        let runnable_at = runnable.map(buildkite_ago);
        crate::sweep::seen::Waiting { priority, runnable_at, ..waiting(number, scheduled) }
    }
}

fn any_world() -> impl Strategy<Value = World> {
    let one = |number: u128| option::weighted(0.8, (any_job(number), any_pods(number), select(STATES.to_vec())));
    let jobs: Vec<_> = (1..=JOBS).map(one).collect();
    let lists = vec((vec(any_waiting(), 0..4), prop::bool::weighted(0.2)), 2);
    (jobs, lists, vec(any_event(), 0..12), prop::bool::weighted(0.9)).prop_map(|(jobs, lists, events, finishes)| {
        let mut world = World { finishes, ..World::default() };
        world = events.iter().fold(world, World::event);
        for (job, pods, state) in jobs.into_iter().flatten() {
            world = world.job(job, state);
            for (place, mut pod) in pods.into_iter().enumerate() {
                // No two pods ever have one uid.
                pod.metadata.uid.push_str(&"'".repeat(place));
                world = world.pod(pod);
            }
        }
        for (queue, (waiting, paused)) in ["kubernetes", "gpu"].into_iter().zip(lists) {
            world = waiting.into_iter().fold(world, |world, waiting| world.waits(queue, waiting));
            if paused {
                world = world.paused(queue);
            }
        }
        world
    })
}

/// The Job that a step deletes, or whose job it finishes.
fn target(step: &Step) -> Option<&Target> {
    match step {
        Step::Replace { ended: target, .. } | Step::Cancel(target) | Step::Finish { target, .. } => Some(target),
        _ => None,
    }
}

fn effects(world: &World) -> Vec<Step> {
    let changes = |step: &Step| !matches!(step, Step::Notify { .. } | Step::Warn(_) | Step::Error(_));
    world.plan().into_iter().filter(changes).collect()
}

fn job<'a>(world: &'a World, target: &Target) -> &'a Job {
    world.jobs.iter().find(|job| job.metadata.uid.as_deref() == Some(&*target.uid)).unwrap()
}

fn agent_runs(world: &World, target: &Target) -> bool {
    let pods = world.pods.iter().filter(|pod| pod.metadata.owner_references[0].uid == target.uid);
    pods.flat_map(|pod| &pod.status.container_statuses).any(|agent| agent.state.running.is_some())
}

/// What the steps do to both sides. The next list of a queue is without the jobs that are over.
fn done(mut world: World, steps: &[Step]) -> World {
    for step in steps {
        if let Some(target) = target(step)
            && !matches!(step, Step::Finish { target, .. } if !matches!(target.finding, Finding::Stuck | Finding::Blocked(_)))
        {
            world.jobs.retain(|job| job.metadata.uid.as_deref() != Some(&*target.uid));
        }
        match step {
            Step::Create(job) => world = world.job(kubernetes_job(number(job.uuid), 0), "scheduled"),
            Step::Replace { job, next, .. } => {
                let again = kubernetes_job(number(job.uuid), 0).of(job).attempt_of(*next);
                let again = again.with(|job| job.metadata.uid.as_mut().unwrap().push_str("-again"));
                world = world.job(again, "scheduled");
            }
            Step::Finish { target, .. } => drop(world.states.insert(target.uuid, "finished".to_owned())),
            _ => {}
        }
    }
    for list in world.queues.values_mut().flatten() {
        list.jobs.retain(|waiting| world.states.get(&waiting.job.uuid).is_none_or(|state| state == "scheduled"));
    }
    world
}

fn shuffled<T: Clone>(all: &[T], by: &[Index]) -> Vec<T> {
    let mut all = all.to_vec();
    for place in 1..all.len() {
        all.swap(place, by[place % by.len()].index(place + 1));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_000) })]

    #[test]
    fn no_job_that_an_agent_has_is_finished_and_no_agent_that_runs_is_deleted(world in any_world()) {
        for step in effects(&world) {
            let Some(target) = target(&step) else { continue };
            let state = world.states[&target.uuid].as_str();
            prop_assert!(!["assigned", "accepted", "running", "canceling", "timing_out"].contains(&state), "{step:?}");
            let has_no_job = target.finding == Finding::Blocked(Kind::AgentWaits);
            prop_assert!(has_no_job || !agent_runs(&world, target), "{step:?}");
            if !matches!(step, Step::Cancel(_)) {
                prop_assert!(["scheduled", "reserved"].contains(&state), "{step:?}: {state}");
            }
        }
    }

    #[test]
    fn only_jobs_of_the_stack_that_are_old_enough_are_touched(world in any_world()) {
        for step in effects(&world) {
            let Some(target) = target(&step) else { continue };
            let metadata = &job(&world, target).metadata;
            prop_assert_eq!(&metadata.labels[STACK_LABEL], STACK);
            prop_assert!(metadata.creation_timestamp.unwrap() <= ago(60));
            let only_replaced = matches!(step, Step::Replace { is_deleted: true, .. });
            prop_assert!(metadata.deletion_timestamp.is_none() || only_replaced);
        }
    }

    #[test]
    fn nothing_is_created_or_finished_in_a_paused_queue(world in any_world()) {
        let world = ["kubernetes", "gpu"].into_iter().fold(world, World::paused);
        for step in effects(&world) {
            prop_assert!(matches!(step, Step::Cancel(_)), "{step:?}");
        }
    }

    #[test]
    fn nothing_is_done_on_what_is_unknown(world in any_world()) {
        let creates = |world: &World| effects(world).iter().filter(|step| matches!(step, Step::Create(_))).count();
        let without = |list: usize| {
            let mut world = world.clone();
            world.known[list] = false;
            world
        };
        prop_assert_eq!(without(1).plan(), vec![], "Jobs");
        for list in [0, 2, 3] {
            prop_assert_eq!(without(list).plan().len(), creates(&world), "clock, pods or states");
        }
        for step in effects(&world.clone().without_events()) {
            let Some(target) = target(&step) else { continue };
            prop_assert!(!matches!(target.finding, Finding::Blocked(_)), "{step:?}");
        }
        let no_queue = ["kubernetes", "gpu"].into_iter().fold(world, World::unknown_queue);
        prop_assert!(effects(&no_queue).iter().all(|step| matches!(step, Step::Cancel(_))));
    }

    #[test]
    fn after_its_effect_nothing_is_left_to_do(world in any_world()) {
        let steps = effects(&world);
        let then = effects(&done(world, &steps));
        prop_assert_eq!(then, vec![]);
    }

    #[test]
    fn a_job_has_one_line_in_a_sweep_and_none_if_it_is_finished_or_paused(world in any_world()) {
        let steps = world.plan();
        let notified: Vec<_> = steps.iter().filter_map(|step| if let Step::Notify { uuid, .. } = step { Some(*uuid) } else { None }).collect();
        prop_assert_eq!(notified.iter().collect::<std::collections::BTreeSet<_>>().len(), notified.len());
        let touched: Vec<_> = steps.iter().filter_map(target).map(|target| target.uuid).collect();
        prop_assert!(notified.iter().all(|uuid| !touched.contains(uuid)));
        let paused = ["kubernetes", "gpu"].into_iter().fold(world, World::paused);
        let notified = paused.plan().iter().any(|step| matches!(step, Step::Notify { .. }));
        prop_assert!(!notified);
    }

    #[test]
    fn nothing_is_finished_unless_the_settings_say_so(world in any_world()) {
        let steps = World { finishes: false, ..world }.plan();
        let finished = steps.iter().any(|step| matches!(step, Step::Finish { .. }));
        prop_assert!(!finished);
    }

    #[test]
    fn the_order_of_what_was_seen_does_not_matter(world in any_world(), by in vec(any::<Index>(), 8)) {
        let mut other = world.clone();
        (other.jobs, other.pods) = (shuffled(&world.jobs, &by), shuffled(&world.pods, &by));
        other.events = shuffled(&world.events, &by);
        for list in other.queues.values_mut().flatten() {
            list.jobs = shuffled(&list.jobs, &by);
        }
        prop_assert_eq!(words(&other.plan()), words(&world.plan()));
    }
}
