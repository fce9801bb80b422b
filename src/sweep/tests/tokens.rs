//! Jobs whose agent gets a token of its own.

use serde_json::{Value, json};

use super::{check, world::*};
use crate::pod::job::token_secret;

/// What the kubelet says of an agent whose Secret is not there.
fn without(secret: &str) -> Value {
    json!({"waiting": {"reason": "CreateContainerConfigError", "message": format!("secret \"{secret}\" not found")}})
}

#[test]
fn an_agent_that_waits_for_its_token_gets_it() {
    let world =
        |state, agent: &Value| World::default().job(kubernetes_job(1, 60).with_token(), state).pod(pod(1, agent));
    let missing = without(&token_secret(uuid(1), "x2f7q"));
    let shared = without("buildkite-agent-token");
    check([
        ("reserved", world("reserved", &missing), "token 1"),
        ("the reservation has ended", world("scheduled", &missing), "token 1"),
        ("taken", world("accepted", &missing), ""),
        ("of a state that is not known", world("", &missing), "warn"),
        ("an agent that runs", world("reserved", &running()), ""),
        ("another Secret", world("reserved", &without("of-the-author")), ""),
        (
            "the maker of its Job is at work",
            World::default().job(kubernetes_job(1, 59).with_token(), "reserved").pod(pod(1, &missing)),
            "",
        ),
        (
            "it failed",
            World::default().job(kubernetes_job(1, 60).with_token().failed(0), "reserved").pod(pod(1, &missing)),
            "replace 1 by 2",
        ),
        (
            "it is being deleted",
            World::default().job(kubernetes_job(1, 60).with_token().deleted(), "reserved").pod(pod(1, &missing)),
            "",
        ),
        (
            "all agents share a Secret",
            World::default().job(kubernetes_job(1, 60), "scheduled").pod(pod(1, &shared)),
            "",
        ),
    ]);
}

#[test]
fn a_token_that_ended_before_its_agent_started_is_no_failed_attempt() {
    let exited = |exit_code: i32, started: i64| json!({"terminated": {"exitCode": exit_code, "reason": "Error", "startedAt": ago(started)}});
    let world = |created, agent: &Value| {
        let job = kubernetes_job(1, created).with_token().attempt(3, 2, created).failed(0);
        World::default().job(job, "scheduled").pod(pod(1, agent))
    };
    check([
        ("an hour after its Job", world(3_610, &exited(1, 10)), "replace 1 by 3"),
        ("in time", world(3_610, &exited(1, 11)), "finish 1"),
        ("another end", world(3_610, &exited(2, 10)), "finish 1"),
    ]);
}
