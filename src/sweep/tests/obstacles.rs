//! What is in the way of a Job: a row for each rule and each of its boundaries.

use serde_json::{Value, from_value, json};

use super::*;
use crate::kubernetes::pods::Pod;

/// Job 1, created so many seconds ago, with the pod of `pod`.
fn with_pod(created: i64, pod: Pod) -> World {
    World::default().job(kubernetes_job(1, created), "scheduled").pod(pod)
}

/// A pod that was created and got its node at these times, and its containers' statuses.
fn on_node(number: u128, node: i64, statuses: &Value) -> Pod {
    let mut pod = pod(number, &Value::Null);
    pod.metadata.creation_timestamp = Some(ago(node));
    pod.spec.node_name = Some("node-1".to_owned());
    pod.status.conditions = from_value(json!([
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(node)},
        {"type": "Ready", "status": "False", "lastTransitionTime": ago(0)},
    ]))
    .unwrap();
    pod.status.container_statuses = from_value(statuses.clone()).unwrap();
    pod
}

fn waiting_for(reason: &str) -> Value {
    json!([{"name": "agent", "state": {"waiting": {"reason": reason, "message": format!("{reason} says why")}}}])
}

fn without_node(number: u128, created: i64) -> Pod {
    let mut pod = pod(number, &Value::Null);
    pod.metadata.creation_timestamp = Some(ago(created));
    pod.status.conditions = from_value(json!([
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available", "lastTransitionTime": ago(0)},
    ]))
    .unwrap();
    pod
}

/// An Event of the pod of Job 1.
fn of_pod(path: &str, reason: &str, message: &str, created: i64) -> Value {
    let kind = if reason == "Started" { "Normal" } else { "Warning" };
    json!({
        "metadata": {"creationTimestamp": ago(created)}, "involvedObject": {"uid": "pod-of-uid-1", "fieldPath": path},
        "type": kind, "reason": reason, "message": message,
    })
}

fn of_agent(reason: &str, message: &str, created: i64) -> Value {
    of_pod("spec.containers{agent}", reason, message, created)
}

/// The agent waits with this reason, and its first Warning Event has this message and this age.
fn waits(reason: &str, message: &str, since: i64) -> World {
    with_pod(since.max(60), on_node(1, since + 5, &waiting_for(reason))).event(&of_agent("Failed", message, since))
}

#[test]
fn a_container_that_waits_in_vain_is_reported_at_once_and_finished_after_90_seconds() {
    let denied = |since| waits("ErrImagePull", "pull access denied, repository does not exist", since);
    check([
        ("at first sight", denied(0), "notify 1"),
        ("the minute's last", denied(59), "notify 1"),
        ("reported by the sweep before", denied(60), ""),
        ("before it is due", denied(89), ""),
        ("due", denied(90), "finish 1"),
        ("reserved", denied(90).state(1, "reserved"), "finish 1"),
        ("taken", denied(90).state(1, "running"), ""),
        ("ended", denied(90).change(|job| *job = kubernetes_job(1, 100).failed(0).0), "replace 1 by 2"),
        ("paused", denied(90).paused("kubernetes"), ""),
        ("paused, not reported", denied(0).paused("kubernetes"), ""),
        ("unknown queue", denied(90).unknown_queue("kubernetes"), ""),
        ("too young", denied(90).change(|job| job.metadata.creation_timestamp = Some(ago(59))), ""),
        ("what its job asks for is not known", denied(90).change(|job| job.metadata.annotations.clear()), ""),
        ("being deleted", denied(90).change(|job| job.metadata.deletion_timestamp = Some(ago(1))), ""),
    ]);
    for reason in ["ErrImageNeverPull", "ImageInspectError", "CreateContainerError", "RunContainerError", "Unheard"] {
        let of = |since| waits(reason, "what it says", since);
        check([(reason, of(89), ""), (reason, of(90), "finish 1")]);
    }
    check([
        ("an invalid name", waits("InvalidImageName", "it is invalid", 60), "finish 1"),
        (
            "an invalid name of a young Job",
            waits("InvalidImageName", "it is invalid", 60)
                .change(|job| job.metadata.creation_timestamp = Some(ago(59))),
            "",
        ),
    ]);
}

#[test]
fn only_the_registry_can_say_that_a_pull_is_in_vain() {
    let of = |message| ["ErrImagePull", "ImagePullBackOff"].map(|reason| waits(reason, message, 90));
    for message in [
        "docker.io/library/x:1: not found",
        "manifest unknown: manifest unknown",
        "requested access to the resource is denied",
        "failed to authorize: 401 Unauthorized",
        "unauthorized: authentication required",
    ] {
        check(of(message).map(|world| (message, world, "finish 1")));
    }
    for message in [
        "429 Too Many Requests",
        "503 Service Unavailable",
        "dial tcp: lookup registry.example.com: no such host",
        "i/o timeout",
        "pull QPS exceeded",
        "Failed to pull image \"example.com/denied/unauthorized:denied\": 500",
        "Failed to pull image \"denied\": 500",
        "",
    ] {
        check(of(message).map(|world| (message, world, "")));
        let since = |since| waits("ImagePullBackOff", message, since);
        check([("before it is due", since(POD_PENDING - 1), ""), ("due", since(POD_PENDING), "finish 1")]);
    }
}

#[test]
fn a_container_waits_since_the_first_warning_about_it() {
    let of = |event: &Value| with_pod(2_000, on_node(1, 1_000, &waiting_for("RunContainerError"))).event(event);
    let mut normal = of_agent("Failed", "", 90);
    normal["type"] = "Normal".into();
    let mut other_pod = of_agent("Failed", "", 90);
    other_pod["involvedObject"]["uid"] = "pod-of-uid-0".into();
    check([
        ("its own", of(&of_agent("Failed", "", 90)), "finish 1"),
        ("an older one counts", of(&of_agent("Failed", "", 80)).event(&of_agent("Failed", "", 95)), "finish 1"),
        ("of another container", of(&of_pod("spec.initContainers{copy}", "Failed", "", 90)), ""),
        ("of no container", of(&of_pod("", "Failed", "", 90)), ""),
        ("normal", of(&normal), ""),
        ("of another pod", of(&other_pod), ""),
        (
            "without a time",
            of(
                &json!({"involvedObject": {"uid": "pod-of-uid-1", "fieldPath": "spec.containers{agent}"}, "type": "Warning"}),
            ),
            "",
        ),
    ]);
    let none = |node| with_pod(2_000, on_node(1, node, &waiting_for("RunContainerError")));
    check([
        ("no Event: reported once", none(60), "notify 1"),
        ("no Event: left", none(9_000), ""),
        ("unknown Events: reported once", none(60).without_events(), "notify 1"),
        ("unknown Events: left", none(9_000).without_events(), ""),
    ]);
}

#[test]
fn of_several_containers_the_one_that_is_due_first_counts() {
    let statuses = json!([
        {"name": "agent", "state": {"waiting": {"reason": "PodInitializing"}}},
        {"name": "web", "state": {"waiting": {"reason": "ErrImagePull"}}},
        {"name": "db", "state": {"waiting": {"reason": "CreateContainerError"}}},
    ]);
    let world = with_pod(600, on_node(1, 500, &statuses))
        .event(&of_pod("spec.initContainers{web}", "Failed", "503", 400))
        .event(&of_pod("spec.initContainers{db}", "Failed", "", 90));
    check([("", world, "finish 1")]);
}

#[test]
fn a_secret_of_ours_is_waited_for_and_one_of_the_author_for_a_time() {
    let of = |message: &str, since| {
        let statuses = json!([{"name": "agent", "state": {"waiting": {"reason": "CreateContainerConfigError", "message": message}}}]);
        with_pod(9_000, on_node(1, 8_000, &statuses)).event(&of_agent("Failed", &format!("Error: {message}"), since))
    };
    for message in [
        "secret \"buildkite-agent-token\" not found",
        "couldn't find key token in Secret buildkite/buildkite-agent-token",
    ] {
        check([(message, of(message, 30), "notify 1"), (message, of(message, 7_000), "")]);
    }
    for message in [
        "secret \"npm\" not found",
        "configmap \"buildkite-agent-token\" not found",
        "couldn't find key token in Secret other/buildkite-agent-token",
        "container has runAsNonRoot and image will run as root",
    ] {
        check([
            (message, of(message, 30), "notify 1"),
            (message, of(message, POD_PENDING - 1), ""),
            (message, of(message, POD_PENDING), "finish 1"),
        ]);
    }
}

#[test]
fn a_container_that_only_waits_for_others_has_a_minute() {
    let of = |reason| with_pod(100, on_node(1, 59, &waiting_for(reason)));
    for reason in ["ContainerCreating", "PodInitializing", "CrashLoopBackOff"] {
        check([(reason, of(reason), "")]);
    }
}

#[test]
fn an_agent_that_does_not_start_on_its_node_is_finished_after_a_time() {
    let of = |node, statuses: &Value| with_pod(node + 5, on_node(1, node, statuses));
    let creating = waiting_for("ContainerCreating");
    let ended = |mut pod: Pod, phase: &str| {
        pod.status.phase = phase.to_owned();
        pod
    };
    let started = json!([{"name": "agent", "state": exited(1)}]);
    check([
        ("too early", of(59, &creating), ""),
        ("60 s", of(60, &creating), "notify 1"),
        ("no status yet", of(60, &json!([])), "notify 1"),
        ("reported", of(120, &creating), ""),
        ("a pull that takes three minutes", of(180, &creating), ""),
        ("before it is due", of(POD_PENDING - 1, &creating), ""),
        ("due", of(POD_PENDING, &creating), "finish 1"),
        ("due, and the Events are not known", of(POD_PENDING, &creating).without_events(), ""),
        ("the agent ended", of(POD_PENDING, &started), ""),
        (
            "when it got its node is not known",
            {
                let mut pod = on_node(1, 2_000, &creating);
                pod.status.conditions.clear();
                with_pod(2_000, pod)
            },
            "",
        ),
        ("the pod failed, and is to be replaced", with_pod(2_000, ended(on_node(1, 2_000, &creating), "Failed")), ""),
        ("the pod is being deleted", with_pod(2_000, terminating(on_node(1, 2_000, &creating), -10)), ""),
        ("of an earlier Job", with_pod(2_000, pod_of("uid-0", 1, &never_started())), ""),
    ]);
    let mut sidecar = on_node(1, POD_PENDING, &waiting_for("PodInitializing"));
    sidecar.status.init_container_statuses = from_value(json!([
        {"name": "db", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": exited(2)},
    ]))
    .unwrap();
    check([("a sidecar that restarts", with_pod(POD_PENDING, sidecar), "finish 1")]);
}

#[test]
fn a_failed_init_container_is_left_to_kubernetes_while_the_job_is_active() {
    let statuses = json!([{"name": "copy-agent", "state": {"terminated": {"exitCode": 1, "startedAt": ago(20)}}}]);
    let mut pod = on_node(1, 1_000, &waiting_for("PodInitializing"));
    pod.status.init_container_statuses = from_value(statuses).unwrap();
    pod.status.phase = "Failed".to_owned();
    let active = with_pod(1_000, pod);
    let failed = active.clone().change(|job| *job = kubernetes_job(1, 1_000).attempt(3, 2, 1_000).failed(0).0);
    check([("active", active, ""), ("failed", failed, "finish 1")]);
}

#[test]
fn a_job_without_a_pod_is_reported_after_half_a_minute_and_finished_after_a_time() {
    let of = |start: i64| {
        let job = kubernetes_job(1, start + 5).with(|job| {
            job.status = from_value(
                json!({"ready": 0, "terminating": 0, "uncountedTerminatedPods": {}, "startTime": ago(start)}),
            )
            .unwrap();
        });
        World::default().job(job, "scheduled")
    };
    check([
        ("too early", of(29), ""),
        ("30 s", of(30), "notify 1"),
        ("before it is due", of(POD_PENDING - 1), ""),
        ("due", of(POD_PENDING), "finish 1"),
        ("due, and the Events are not known", of(POD_PENDING).without_events(), ""),
        ("30 s, and the Events are not known", of(30).without_events(), "notify 1"),
        ("active", of(POD_PENDING).change(|job| job.status.active = 1), ""),
        ("ready", of(POD_PENDING).change(|job| job.status.ready = 1), ""),
        ("terminating", of(POD_PENDING).change(|job| job.status.terminating = 1), ""),
        ("not counted yet", of(POD_PENDING).change(|job| job.status.uncounted_terminated_pods = 1), ""),
        ("the Job controller has not seen it", of(POD_PENDING).change(|job| job.status.start_time = None), ""),
        ("only a pod of an earlier Job", of(POD_PENDING).pod(pod_of("uid-0", 1, &never_started())), "finish 1"),
    ]);
}

#[test]
fn a_pod_without_a_node_is_finished_unless_it_waits_for_room() {
    let of = |created| with_pod(created, without_node(1, created));
    let due = || of(POD_PENDING);
    let other = |node, agent: &Value| {
        due().job(kubernetes_job(2, 9_000), "running").pod(on_node(
            2,
            node,
            &json!([{"name": "agent", "state": agent}]),
        ))
    };
    let asks = |rule: &str| {
        let mut scheduled = scheduled_job(2);
        scheduled.agent_query_rules.push(rule.to_owned());
        other(9_000, &running()).change(|job| *job = kubernetes_job(2, 9_000).of(&scheduled).0)
    };
    let of_definition = |name: &str| {
        other(9_000, &running()).change(|job| {
            drop(job.metadata.annotations.insert("buildkite.com/pod-definition".to_owned(), name.to_owned()));
        })
    };
    check([
        ("too early", of(29), ""),
        ("30 s", of(30), "notify 1"),
        ("before it is due", of(POD_PENDING - 1), ""),
        ("due", due(), "finish 1"),
        ("another runs", other(9_000, &running()), ""),
        ("another got a node a short time ago", other(POD_PENDING - 1, &exited(0)), ""),
        ("another got a node a long time ago", other(POD_PENDING, &exited(0)), "finish 1"),
        ("another runs, and has another cpu", asks("cpu=4"), "finish 1"),
        ("another runs, and has another memory", asks("memory=4Gi"), "finish 1"),
        ("another runs, and has other tags", asks("image=node:24"), ""),
        ("another runs in another definition", of_definition("gpu"), "finish 1"),
        ("the Events are not known", due().without_events(), ""),
    ]);
}

#[test]
fn what_another_controller_holds_back_is_reported_once_and_left() {
    let suspended = |since| {
        World::default().job(kubernetes_job(1, since), "scheduled").change(|job| {
            job.spec.suspend = true;
            job.status = from_value(
                json!({"conditions": [{"type": "Suspended", "status": "True", "lastTransitionTime": ago(since)}]}),
            )
            .unwrap();
        })
    };
    let gated = |since| {
        let mut pod = without_node(1, since);
        pod.spec.scheduling_gates = 1;
        with_pod(since, pod)
    };
    check([
        ("suspended, too early", suspended(29), ""),
        ("suspended", suspended(30), "notify 1"),
        ("suspended for hours", suspended(20_000), ""),
        ("gated, too early", gated(29), ""),
        ("gated", gated(30), "notify 1"),
        ("gated for hours", gated(20_000), ""),
    ]);
    let opened = || with_pod(9_000, without_node(1, 9_000)).change(|job| job.spec.template.spec.scheduling_gates = 1);
    let failed = |since| of_pod("", "FailedScheduling", "0/3 nodes are available", since);
    check([
        ("its gate opened, and the scheduler has not tried", opened(), ""),
        ("its gate opened", opened().event(&failed(POD_PENDING - 1)), ""),
        ("its gate opened a long time ago", opened().event(&failed(POD_PENDING)), "finish 1"),
    ]);
}

#[test]
fn an_agent_that_runs_without_its_job_is_finished_after_a_time() {
    let of =
        |state| with_pod(9_000, on_node(1, 9_000, &json!([{"name": "agent", "state": running()}]))).state(1, state);
    let started = |state, since| of(state).event(&of_agent("Started", "Started container agent", since));
    check([
        ("too early", started("scheduled", 59), ""),
        ("60 s", started("scheduled", 60), "notify 1"),
        ("before it is due", started("scheduled", POD_PENDING - 1), ""),
        ("due", started("scheduled", POD_PENDING), "finish 1"),
        ("due and reserved", started("reserved", POD_PENDING), "finish 1"),
        ("taken", started("running", POD_PENDING), ""),
        ("paused", started("scheduled", POD_PENDING).paused("kubernetes"), ""),
        ("since when is not known", of("scheduled"), ""),
        ("of a sidecar", of("scheduled").event(&of_pod("spec.initContainers{db}", "Started", "", POD_PENDING)), ""),
        ("the Events are not known", started("scheduled", POD_PENDING).without_events(), ""),
    ]);
}

/// The jobs 1 and 2 of two builds cannot start.
fn two_blocked(reason: &str, message: &str, since: i64) -> World {
    let event = |number| {
        let mut event = of_agent("Failed", message, since);
        event["involvedObject"]["uid"] = format!("pod-of-uid-{number}").into();
        event
    };
    (1..=2).fold(World::default(), |world, number| {
        let pod = on_node(number, since, &waiting_for(reason));
        world.job(kubernetes_job(number, since + 5), "scheduled").pod(pod).event(&event(number))
    })
}

#[test]
fn the_brake_keeps_jobs_that_cannot_start_from_being_finished() {
    let pull = || two_blocked("ErrImagePull", "503", POD_PENDING);
    let taken = |created| pull().job(kubernetes_job(3, created), "running");
    check([
        ("a registry that is away, as the job is due", pull(), "notify 1, notify 2, error"),
        ("later", two_blocked("ErrImagePull", "503", POD_PENDING + 60), "error"),
        ("one build", pull().change(|job| *job = KubernetesJob(job.clone()).build(1).0), "finish 1, finish 2"),
        ("an agent took a job of that time", taken(600), "finish 1, finish 2"),
        ("a job that began when the kubelet had no time to try again", taken(299), "notify 1, notify 2, error"),
        ("a job that began before", taken(POD_PENDING + 6), "notify 1, notify 2, error"),
        ("images that do not exist", two_blocked("ErrImagePull", "x:1: not found", 90), "finish 1, finish 2"),
        ("a repository that is not to be had", two_blocked("ErrImagePull", "denied", 90), "notify 1, notify 2, error"),
        ("invalid names", two_blocked("InvalidImageName", "invalid", 60), "finish 1, finish 2"),
    ]);
}

#[test]
fn pods_that_wait_for_room_do_not_brake() {
    let world = two_blocked("RunContainerError", "", 90).change(|job| *job = KubernetesJob(job.clone()).build(1).0);
    let large = |number, created| {
        let mut scheduled = scheduled_job(number);
        scheduled.agent_query_rules.push("cpu=8".to_owned());
        kubernetes_job(number, created).of(&scheduled)
    };
    let waits = world.clone().job(large(3, 60), "scheduled").pod(without_node(3, 60));
    let agent = json!([{"name": "agent", "state": running()}]);
    let with_room = waits.clone().job(large(4, 9_000), "running").pod(on_node(4, 9_000, &agent));
    check([
        ("", world, "finish 1, finish 2"),
        ("without a node", waits, "notify 1, notify 2, notify 3, error"),
        ("it waits for room", with_room, "finish 1, finish 2, notify 3"),
    ]);
}

#[test]
fn without_finishes_the_build_page_says_what_would_be_done() {
    let only_lines = |mut world: World| {
        world.finishes = false;
        world
    };
    let of = |since| only_lines(waits("RunContainerError", "", since));
    check([
        ("first", of(0), "notify 1"),
        ("in between", of(89), ""),
        ("due", of(90), "notify 1"),
        ("later", of(150), ""),
        ("after its third attempt", only_lines(two_builds()), ""),
    ]);
    let [Step::Notify { text, .. }] = &of(90).plan()[..] else { panic!() };
    assert!(text.starts_with("Not finished, since SweepFinishes is false: the pod cannot start: "), "{text}");
}

#[test]
fn a_line_is_of_one_sweep_by_its_time() {
    let of = |since, due| World { due, ..waits("RunContainerError", "", since) };
    check([
        ("it began with the sweep", of(20, 20), "notify 1"),
        ("it began after it", of(19, 20), ""),
        ("the first second of its minute", of(79, 20), "notify 1"),
        ("the sweep before reports it", of(80, 20), ""),
    ]);
}

#[test]
fn the_build_page_says_what_is_in_the_way() {
    let definition = |world: World| {
        world.change(|job| {
            drop(job.metadata.annotations.insert("buildkite.com/pod-definition".to_owned(), "gpu".to_owned()));
        })
    };
    let pod = "buildkite-1-abcde";
    let steps = definition(waits("RunContainerError", "", 90)).plan();
    let [Step::Finish { detail, .. }] = &steps[..] else { panic!("{steps:?}") };
    let expected = [
        "No agent took this job: its pod cannot start.",
        "Correct the image of the step or of the pod definition, or what else the container needs, such as its Secrets and ConfigMaps.",
        "  container agent: waits, RunContainerError: RunContainerError says why",
        "Pod definition: PodTemplate gpu in namespace buildkite, or else gpu in pod-definitions/ of agent-scheduler",
        &format!("More: kubectl describe pod {pod} --namespace buildkite"),
    ];
    assert_eq!(detail.lines().collect::<Vec<_>>(), expected);
    let job = format!("kubectl describe job buildkite-{} --namespace buildkite", uuid(1));
    let no_pod = World::default().job(kubernetes_job(1, 35), "scheduled").change(|job| {
        job.status.active = 0;
        job.status.start_time = Some(ago(30));
    });
    let quota = json!({
        "metadata": {"creationTimestamp": ago(30)}, "involvedObject": {"uid": "uid-1"},
        "type": "Warning", "reason": "FailedCreate", "message": "Error creating: pods \"buildkite-1\" is forbidden: exceeded quota: small",
    });
    let starting = on_node(1, 60, &waiting_for("ContainerCreating"));
    let mount = of_pod("", "FailedMount", "MountVolume.SetUp failed", 20);
    let agent = on_node(1, 900, &json!([{"name": "agent", "state": running()}]));
    let rows = [
        (no_pod.clone(), "the Kubernetes Job has no pod", &*job),
        (no_pod.event(&quota), "the Kubernetes Job has no pod: FailedCreate: exceeded quota: small", &job),
        (
            with_pod(30, without_node(1, 30)),
            "the pod waits for a node: 0/3 nodes are available",
            &format!("kubectl describe pod {pod} --namespace buildkite"),
        ),
        (
            waits("ErrImagePull", "503", 0),
            "the pod cannot start: container agent: waits, ErrImagePull: ErrImagePull says why",
            &format!("kubectl describe pod {pod} --namespace buildkite"),
        ),
        (
            with_pod(60, starting).event(&of_pod("", "FailedScheduling", "no node", 10)).event(&mount),
            "the pod has a node, and its agent has not started: FailedMount: MountVolume.SetUp failed",
            &format!("kubectl describe pod {pod} --namespace buildkite"),
        ),
        (
            with_pod(900, agent).event(&of_agent("Started", "", 60)),
            "the agent runs, and has not taken the job",
            &format!("kubectl logs {pod} --container agent --namespace buildkite"),
        ),
    ];
    for (world, expected, command) in rows {
        let steps = world.plan();
        let [Step::Notify { text, more, .. }] = &steps[..] else { panic!("{expected}: {steps:?}") };
        assert_eq!((&**text, &**more), (expected, command));
    }
}
