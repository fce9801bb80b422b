//! The plan: a row for each rule and each of its boundaries.

mod obstacles;
mod properties;
mod tokens;
mod world;

use world::*;

use crate::{
    pod::metadata::{JOB_UUID_LABEL, STACK_LABEL},
    stack::fixtures::tags,
    sweep::{
        plan::{MAX_FINISHES, Step},
        seen::Waiting,
    },
};

/// What was seen, and the steps in words.
fn check<const N: usize>(rows: [(&str, World, &str); N]) {
    for (name, world, expected) in rows {
        assert_eq!(words(&world.plan()).join(", "), expected, "{name}");
    }
}

fn lost(change: impl FnOnce(&mut Waiting)) -> World {
    let mut lost = waiting(1, 30);
    change(&mut lost);
    World::default().waits("kubernetes", lost)
}

fn rules(waiting: &mut Waiting, rules: &[&str]) {
    waiting.job.agent_query_rules = rules.iter().map(ToString::to_string).collect();
}

#[test]
fn a_job_that_waits_without_a_job_gets_one() {
    let job = |number| kubernetes_job(number, 5);
    check([
        ("30 s", lost(|_| {}), "create 1"),
        ("its event may be on its way", lost(|lost| lost.scheduled_at = Some(buildkite_ago(29))), ""),
        ("since when is not known", lost(|lost| lost.scheduled_at = None), ""),
        ("runnable now", lost(|lost| lost.runnable_at = Some(buildkite_ago(0))), "create 1"),
        ("not runnable yet", lost(|lost| lost.runnable_at = Some(buildkite_ago(-1))), ""),
        ("it has a Job", lost(|_| {}).job(job(1), "scheduled"), ""),
        ("its Job is being deleted", lost(|_| {}).job(job(1).deleted(), "scheduled"), ""),
        ("another has a Job", lost(|_| {}).job(job(2), "scheduled"), "create 1"),
        ("its queue is paused", lost(|_| {}).paused("kubernetes"), ""),
        ("another queue is paused", lost(|_| {}).paused("gpu"), "create 1"),
        ("another queue is unknown", lost(|_| {}).unknown_queue("gpu"), "create 1"),
        (
            "a tag of ours",
            lost(|lost| rules(lost, &["queue=kubernetes", "os=linux"]))
                .stack(|stack| stack.agent_tags = tags(&[("os", "linux")])),
            "create 1",
        ),
        ("a tag that no agent has", lost(|lost| rules(lost, &["queue=kubernetes", "os=plan9"])), ""),
        ("another queue's", lost(|lost| rules(lost, &["queue=other"])), ""),
        ("no queue", lost(|lost| rules(lost, &[])), ""),
        (
            "no queue, and we serve such jobs",
            lost(|lost| rules(lost, &[])).stack(|stack| stack.serve_jobs_without_queue = true),
            "create 1",
        ),
        ("in two lists", lost(|_| {}).waits("gpu", waiting(1, 30)), "create 1"),
    ]);
}

#[test]
fn a_job_without_a_queue_is_of_the_queue_that_it_waits_in() {
    let world = World::default().stack(|stack| stack.serve_jobs_without_queue = true);
    let mut without = waiting(1, 30);
    rules(&mut without, &["os=*"]);
    let world = world.stack(|stack| stack.agent_tags = tags(&[("os", "linux")])).waits("gpu", without);
    let [Step::Create(job)] = &*world.plan() else { panic!("{:?}", world.plan()) };
    assert_eq!(job.agent_query_rules, ["os=*", "queue=gpu"]);
    check([("paused", world.paused("gpu"), "")]);
}

#[test]
fn the_highest_priority_comes_first_and_then_the_oldest() {
    let of = |number, priority, scheduled, runnable: Option<i64>| {
        let runnable_at = runnable.map(buildkite_ago);
        Waiting { priority, runnable_at, ..waiting(number, scheduled) }
    };
    let world = World::default()
        .waits("kubernetes", of(1, 0, 300, None))
        .waits("kubernetes", of(2, -1, 900, None))
        .waits("kubernetes", of(3, 0, 900, Some(200)))
        .waits("gpu", of(4, 5, 31, None))
        .waits("gpu", of(5, 0, 299, None));
    check([("", world, "create 4, create 1, create 5, create 3, create 2")]);
}

#[test]
fn a_job_whose_job_failed_is_replaced_after_a_pause_and_finished_after_three() {
    let failed = |number, failed, first, end: i64| {
        let job = kubernetes_job(1, end.max(60)).attempt(number, failed, first).failed(end);
        World::default().job(job, "scheduled")
    };
    let first = |created, end| World::default().job(kubernetes_job(1, created).failed(end), "scheduled");
    check([
        ("no pause after the first", first(60, 0), "replace 1 by 2"),
        ("too young", first(59, 0), ""),
        ("the second, in its pause", failed(2, 1, 800, 59), ""),
        ("the second", failed(2, 1, 800, 60), "replace 1 by 3"),
        ("the second, after a long time", failed(2, 1, POD_PENDING, 60), "replace 1 by 3"),
        ("the third, soon, in its pause", failed(3, 2, POD_PENDING - 1, 119), ""),
        ("the third, soon", failed(3, 2, POD_PENDING - 1, 120), "replace 1 by 4"),
        ("the third", failed(3, 2, POD_PENDING, 0), "finish 1"),
        ("the third that failed, of five", failed(5, 2, POD_PENDING, 0), "finish 1"),
        ("the second that failed, of five", failed(5, 1, POD_PENDING, 60), "replace 1 by 6"),
        ("the ninth", failed(9, 8, POD_PENDING - 1, 120), "replace 1 by 10"),
        ("when is not known", first(300, 200).change(|job| job.status.conditions[0].last_transition_time = None), ""),
        ("reserved", first(300, 200).state(1, "reserved"), "replace 1 by 2"),
    ]);
}

#[test]
fn a_job_whose_job_completed_is_replaced_after_longer_pauses_and_finished_at_its_deadline() {
    let complete = |number, failed, first, end: i64| {
        let job = kubernetes_job(1, end.max(60)).attempt(number, failed, first).complete(end);
        World::default().job(job, "scheduled")
    };
    check([
        ("the first, in its pause", complete(1, 0, 59, 59), ""),
        ("the first", complete(1, 0, 60, 60), "replace 1 by 2"),
        ("the second, in its pause", complete(2, 0, 800, 119), ""),
        ("the second", complete(2, 0, 800, 120), "replace 1 by 3"),
        ("the third, in its pause", complete(3, 0, 800, 239), ""),
        ("the third", complete(3, 0, 800, 240), "replace 1 by 4"),
        ("the fortieth, in its pause", complete(40, 0, 8_000, 239), ""),
        ("the fortieth", complete(40, 0, 8_000, 240), "replace 1 by 41"),
        ("the first, after two that failed", complete(3, 2, 2_000, 60), "replace 1 by 4"),
        ("before the deadline", complete(90, 0, DEADLINE - 1, 240), "replace 1 by 91"),
        ("at the deadline", complete(90, 0, DEADLINE, 0), "finish 1"),
        ("reserved", complete(1, 0, 60, 60).state(1, "reserved"), "replace 1 by 2"),
        (
            "the condition's time, if there is no other",
            complete(1, 0, 60, 60).change(|job| {
                job.status.completion_time = None;
                job.status.conditions[0].last_transition_time = Some(ago(59));
            }),
            "",
        ),
    ]);
}

#[test]
fn the_queue_of_an_ended_job_must_be_open() {
    let ended = |change: fn(&mut Vec<String>)| {
        let mut scheduled = scheduled_job(1);
        change(&mut scheduled.agent_query_rules);
        World::default().job(kubernetes_job(1, 300).of(&scheduled).failed(200), "scheduled")
    };
    let finishable = World::default().job(kubernetes_job(1, 60).attempt(3, 2, POD_PENDING).failed(0), "scheduled");
    let without = || ended(Vec::clear).stack(|stack| stack.serve_jobs_without_queue = true);
    check([
        ("paused: no replacement", ended(|_| {}).paused("kubernetes"), ""),
        ("unknown: no replacement", ended(|_| {}).unknown_queue("kubernetes"), ""),
        ("paused: no finish", finishable.clone().paused("kubernetes"), ""),
        ("unknown: no finish", finishable.unknown_queue("kubernetes"), ""),
        ("another is paused", ended(|_| {}).paused("gpu"), "replace 1 by 2"),
        ("no queue", without(), "replace 1 by 2"),
        ("no queue, and one is paused", without().paused("gpu"), ""),
        ("no queue, and one is unknown", without().unknown_queue("gpu"), ""),
        ("a queue that we do not serve any more", ended(|rules| rules[0] = "queue=old".to_owned()), ""),
        ("what its job asks for is not known", ended(|_| {}).change(|job| job.metadata.annotations.clear()), ""),
    ]);
}

#[test]
fn a_job_that_is_over_loses_its_job_if_no_agent_ever_started() {
    let of = |state| World::default().job(kubernetes_job(1, 60), state);
    for state in ["canceled", "finished", "expired", "skipped", "broken", "timed_out"] {
        check([
            ("no pod", of(state), "cancel 1"),
            ("a pod that pulls", of(state).pod(pod(1, &never_started())), "cancel 1"),
            ("a pod without a status", of(state).pod(pod(1, &serde_json::Value::Null)), "cancel 1"),
            ("its agent ran", of(state).pod(evicted(1)), ""),
            (
                "its agent ran, and the pod in its place waits",
                of(state).pod(evicted(1)).pod(pod(1, &never_started())),
                "cancel 1",
            ),
            ("its agent ran and its pod is there", of(state).pod(pod(1, &exited(0))).pod(pod(1, &never_started())), ""),
            (
                "its agent runs, and did not only just finish",
                of(state).pod(pod(1, &running())),
                if state == "finished" { "" } else { "warn" },
            ),
            ("the agent of an earlier Job runs", of(state).pod(pod_of("uid-0", 1, &running())), "cancel 1"),
            ("paused", of(state).paused("kubernetes"), "cancel 1"),
            ("being deleted", of(state).change(|job| job.metadata.deletion_timestamp = Some(ago(9))), ""),
            ("too young", of(state).change(|job| job.metadata.creation_timestamp = Some(ago(59))), ""),
        ]);
        let ended = |job| World::default().job(job, state);
        check([
            ("failed: left to its TTL", ended(kubernetes_job(1, 600).failed(300)), ""),
            ("complete: left to its TTL", ended(kubernetes_job(1, 600).complete(300)), ""),
            (
                "failed, when is not known",
                ended(kubernetes_job(1, 600).failed(300))
                    .change(|job| job.status.conditions[0].last_transition_time = None),
                "",
            ),
        ]);
    }
    for state in
        ["assigned", "accepted", "running", "canceling", "timing_out", "limited", "scheduled", "reserved", "new"]
    {
        check([(state, of(state), "")]);
    }
}

#[test]
fn a_pod_on_a_dead_node_counts_as_failed() {
    let of = |due, agent| {
        let world = World::default().job(kubernetes_job(1, 600), "scheduled").change(|job| job.status.active = 0);
        world.pod(terminating(pod(1, &agent), due))
    };
    let finishable = of(60, never_started()).change(|job| {
        *job = kubernetes_job(1, 600).attempt(3, 2, POD_PENDING).0;
        job.status.active = 0;
    });
    check([
        ("60 s after its grace", of(60, never_started()), "replace 1 by 2"),
        ("less", of(59, never_started()), ""),
        ("its agent runs, as far as known", of(60, running()), ""),
        ("the Job has another pod", of(60, never_started()).change(|job| job.status.active = 1), ""),
        ("reserved", of(60, never_started()).state(1, "reserved"), "replace 1 by 2"),
        ("taken", of(60, never_started()).state(1, "running"), ""),
        (
            "of an earlier Job",
            World::default()
                .job(kubernetes_job(1, 600), "scheduled")
                .change(|job| job.status.active = 0)
                .pod(terminating(pod_of("uid-0", 1, &never_started()), 60)),
            "",
        ),
        ("the third", finishable, "finish 1"),
    ]);
}

#[test]
fn an_agent_that_runs_keeps_its_job() {
    let ended =
        |job: KubernetesJob, agent| World::default().job(job, "scheduled").pod(terminating(pod(1, &agent), -60));
    let job = || kubernetes_job(1, 600);
    check([
        ("failed", ended(job().failed(300), running()), ""),
        ("complete", ended(job().complete(300), running()), ""),
        ("failed, and the agent ended", ended(job().failed(300), exited(1)), "replace 1 by 2"),
        ("to be finished", ended(job().attempt(3, 2, POD_PENDING).failed(300), running()), ""),
    ]);
}

#[test]
fn a_job_that_is_being_deleted_only_hands_over_its_attempt() {
    let of = |job: KubernetesJob| World::default().job(job.deleted(), "scheduled");
    check([
        ("active", of(kubernetes_job(1, 600)), ""),
        ("failed", of(kubernetes_job(1, 600).failed(300)), "replace 1 by 2 once deleted"),
        ("failed, in its pause", of(kubernetes_job(1, 600).attempt(2, 1, 600).failed(59)), ""),
        ("to be finished", of(kubernetes_job(1, 600).attempt(3, 2, POD_PENDING).failed(300)), ""),
    ]);
}

#[test]
fn jobs_of_others_are_not_touched() {
    let of = |change: fn(&mut crate::kubernetes::jobs::Job)| {
        World::default().job(kubernetes_job(1, 600), "canceled").change(change)
    };
    check([
        ("ours", of(|_| {}), "cancel 1"),
        ("another stack's", of(|job| drop(job.metadata.labels.insert(STACK_LABEL.to_owned(), "other".to_owned()))), ""),
        ("no stack's", of(|job| drop(job.metadata.labels.remove(STACK_LABEL))), ""),
        ("a copy under another name", of(|job| job.metadata.name.push('2')), ""),
        ("for no Buildkite job", of(|job| drop(job.metadata.labels.remove(JOB_UUID_LABEL))), ""),
    ]);
}

#[test]
fn a_job_that_buildkite_does_not_know_is_left_and_reported() {
    let of = |job| World::default().job(job, "");
    check([
        ("active", of(kubernetes_job(1, 600)), "warn"),
        ("several", of(kubernetes_job(1, 600)).job(kubernetes_job(2, 600), ""), "warn"),
        ("its agent runs, so that it was not asked for", of(kubernetes_job(1, 600)).pod(pod(1, &running())), ""),
        ("failed", of(kubernetes_job(1, 600).failed(300)), ""),
    ]);
    let many = (1..=7).fold(World::default(), |world, number| world.job(kubernetes_job(number, 600), ""));
    let [Step::Warn(text)] = &*many.plan() else { panic!("{:?}", many.plan()) };
    assert!(text.contains("7 Jobs") && text.matches("buildkite-").count() == 5 && text.ends_with(", …"), "{text}");
}

#[test]
fn one_sweep_finishes_fifty_jobs() {
    let of_one_build = |count| {
        (1..=count).fold(World::default(), |world, number| {
            world.job(kubernetes_job(number, 60).attempt(3, 2, POD_PENDING).failed(0).build(7), "scheduled")
        })
    };
    let max = u128::try_from(MAX_FINISHES).unwrap();
    let finishes = |world: &World| words(&world.plan()).iter().filter(|word| word.starts_with("finish")).count();
    assert_eq!(finishes(&of_one_build(max)), MAX_FINISHES);
    assert!(!words(&of_one_build(max).plan()).contains(&"error".to_owned()));
    assert_eq!(finishes(&of_one_build(max + 1)), MAX_FINISHES);
    assert_eq!(words(&of_one_build(max + 1).plan()).last().unwrap(), "error");
}

/// Jobs 1 and 2 are to be finished; the last attempts of both began 200 s ago, and ended 130 s ago.
fn two_builds() -> World {
    let due = |number| kubernetes_job(number, 200).attempt(3, 2, POD_PENDING).failed(130);
    World::default().job(due(1), "scheduled").job(due(2), "scheduled")
}

#[test]
fn the_brake_keeps_jobs_of_several_builds_from_being_finished() {
    let one_build = two_builds().change(|job| *job = KubernetesJob(job.clone()).build(1).0);
    let other = |job: KubernetesJob, state| {
        let due = kubernetes_job(1, 200).attempt(3, 2, POD_PENDING).failed(130);
        World::default().job(due, "scheduled").job(job, state)
    };
    let job = || kubernetes_job(2, 200);
    let on_brake = "replace 1 by 4, error";
    check([
        ("two builds", two_builds(), "replace 1 by 4, replace 2 by 4, error"),
        ("one build", one_build, "finish 1, finish 2"),
        ("the other is not due, but in its pause", other(job().attempt(2, 1, 300).failed(30), "scheduled"), on_brake),
        ("the other is too young", other(kubernetes_job(2, 30).failed(20), "scheduled"), on_brake),
        ("the other completed", other(job().complete(30), "scheduled"), on_brake),
        ("the other is reserved", other(job().attempt(2, 1, 300).failed(30), "reserved"), on_brake),
        ("the other waits in its second attempt", other(job().attempt(2, 1, 300), "scheduled"), on_brake),
        ("the other waits in its first attempt", other(job(), "scheduled"), "finish 1"),
        ("the second attempt of the other is taken", other(job().attempt(2, 1, 300), "running"), "finish 1"),
        ("the other is over", other(job().failed(30), "canceled"), "finish 1"),
        (
            "the other's build is not known",
            other(job().failed(30).with(|job| job.metadata.annotations.clear()), "scheduled"),
            on_brake,
        ),
    ]);
}

#[test]
fn an_agent_that_took_a_job_meanwhile_releases_the_brake() {
    let and = |job: KubernetesJob, state| two_builds().job(job, state);
    let released = "finish 1, finish 2";
    let on_brake = "replace 1 by 4, replace 2 by 4, error";
    for state in ["assigned", "accepted", "running", "canceling", "timing_out"] {
        check([(state, and(kubernetes_job(3, 150), state), released)]);
    }
    check([
        ("created with the first", and(kubernetes_job(3, 200), "running"), released),
        ("created before it", and(kubernetes_job(3, 201), "running"), on_brake),
        ("created as the last ended", and(kubernetes_job(3, 130), "running"), released),
        ("created later: perhaps it works again", and(kubernetes_job(3, 129), "running"), on_brake),
        ("its agent started later", and(kubernetes_job(3, 150), "running").pod(pod(3, &running())), on_brake),
        ("it ran to its end", and(kubernetes_job(3, 150).complete(140), "finished"), released),
        ("finished, perhaps by us", and(kubernetes_job(3, 150).failed(140), "finished"), on_brake),
        (
            "completed in vain and finished by us",
            and(kubernetes_job(3, 150).attempt(9, 0, 300).complete(140), "finished"),
            on_brake,
        ),
        ("not taken", and(kubernetes_job(3, 150), "scheduled"), on_brake),
    ]);
}

#[test]
fn a_job_that_is_left_when_others_run_again_has_another_attempt() {
    let and = |created| {
        let due = kubernetes_job(1, 200).attempt(3, 2, POD_PENDING).failed(130);
        World::default().job(due, "scheduled").job(kubernetes_job(2, created), "running")
    };
    check([
        ("they ran meanwhile", and(130), "finish 1"),
        ("they run since", and(129), "replace 1 by 4"),
        ("they ran before, too", and(129).job(kubernetes_job(3, 200), "running"), "finish 1"),
        ("and only before", and(201), "finish 1"),
    ]);
}

#[test]
fn on_the_brake_the_pauses_stay() {
    let world = two_builds().change(|job| job.status.conditions[0].last_transition_time = Some(ago(119)));
    check([("", world, "replace 1 by 4, error")]);
}

#[test]
fn the_order_lets_jobs_run_first() {
    let world = two_builds()
        .change(|job| *job = kubernetes_job(2, 200).build(1).attempt(1, 0, 200).failed(130).0)
        .job(kubernetes_job(3, 600), "canceled")
        .job(kubernetes_job(4, 600), "")
        .job(kubernetes_job(5, 600), "canceled")
        .pod(pod(5, &running()))
        .waits("kubernetes", waiting(6, 40));
    check([("", world, "create 6, replace 2 by 2, cancel 3, finish 1, warn, warn")]);
}

#[test]
fn the_build_page_shows_what_ended_and_what_to_do() {
    let world = World::default()
        .job(kubernetes_job(1, 200).attempt(3, 2, 1_000).failed(130), "scheduled")
        .pod(serde_json::from_value(serde_json::json!({
            "metadata": {"name": "buildkite-1-abcde", "ownerReferences": [{"uid": "uid-1", "controller": true}]},
            "status": {
                "conditions": [
                    {"type": "Ready", "status": "False"},
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes\nare available"},
                ],
                "initContainerStatuses": [{"name": "copy-agent", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}],
                "containerStatuses": [
                    {"name": "agent", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": "no memory"}}},
                    {"name": "web", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no image"}}},
                ],
            },
        })).unwrap());
    let [Step::Finish { detail, .. }] = &*world.plan() else { panic!("{:?}", world.plan()) };
    let name = format!("buildkite-{}", uuid(1));
    let expected = [
        "No agent took this job: 3 Kubernetes Jobs for it ended within 16 minutes, and no further one is created.",
        "The last one failed before its agent took the job. Correct what its pods report below, and retry the job.",
        &format!("Job {name}: BackoffLimitExceeded: it failed"),
        "Pod buildkite-1-abcde",
        "  container copy-agent: exit code 0, Completed",
        "  container agent: exit code 137, OOMKilled: no memory",
        "  container web: waits, ImagePullBackOff: no image",
        "  PodScheduled is False: Unschedulable: 0/3 nodes\\nare available",
        &format!("More: kubectl describe job {name} --namespace buildkite"),
    ];
    assert_eq!(detail.lines().collect::<Vec<_>>(), expected);
    let pods = world.pods.clone();
    let many = pods.iter().cycle().take(4).fold(world, |world, pod| world.pod(pod.clone()));
    let [Step::Finish { detail, .. }] = &*many.plan() else { panic!("{:?}", many.plan()) };
    assert_eq!(detail.lines().count(), 10, "{detail}");
}

#[test]
fn a_notification_and_the_error_of_the_brake_name_the_cause() {
    let world = two_builds().pod(pod(1, &exited(137))).pod(pod(2, &exited(137)));
    let steps = world.plan();
    let [Step::Replace { notification, .. }, _, Step::Error(error)] = &*steps else { panic!("{steps:?}") };
    let cause = "container agent ended with exit code 137 (Error)";
    assert!(
        notification.starts_with(
            "Jobs of 2 builds cannot start, so the Kubernetes cluster or its network is at fault. Attempt 4 begins: "
        ),
        "{notification}"
    );
    assert!(notification.ends_with(cause) && notification.chars().count() <= 255, "{notification}");
    assert!(
        error.starts_with("2 jobs are not finished: jobs of 2 builds cannot start") && error.contains(cause),
        "{error}"
    );
    let complete = World::default().job(kubernetes_job(1, 300).complete(200), "scheduled").plan();
    let [Step::Replace { notification, .. }] = &*complete else { panic!("{complete:?}") };
    let expected = "Attempt 2 begins: attempt 1 ended and no agent took the job: the agent ended with exit code 0 and without a job";
    assert_eq!(notification, expected);
}
