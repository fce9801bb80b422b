//! The payload of an invocation, up to the Job that it becomes.

use std::{fs, str};

use agent_scheduler::{
    buildkite::{job::ScheduledJob, rules::AgentQueryRules},
    lambda::{Event, InvalidEvent, Trigger},
    report::Reason,
    text::{chain, excerpt},
};

use crate::{DEFINITIONS, STACKS, check_text, files, manifest, root};

/// `data` is the payload.
pub fn run(data: &[u8]) {
    let Ok(payload) = str::from_utf8(data) else { return };
    match Trigger::parse(payload) {
        Ok(Trigger::Event(event)) => handle(Ok(event)),
        Ok(Trigger::Redrive(messages)) => messages.iter().for_each(|message| handle(Event::of_message(message))),
        Err(error) => handle(Err(error)),
    }
}

fn handle(event: Result<Event, InvalidEvent>) {
    match event {
        Ok(Event::JobScheduled(job)) => schedule(&job),
        Ok(Event::Sweep { .. } | Event::Doctor) => {}
        Ok(Event::Other { detail_type }) => check_text(&excerpt(&detail_type)),
        Err(error) => check_text(&chain(&error)),
    }
}

fn schedule(job: &ScheduledJob) {
    check_text(&Reason::NoScript(job.kind.clone()).to_string());
    let rules = AgentQueryRules::parse(&job.agent_query_rules);
    for stack in &*STACKS {
        match rules.matched(stack) {
            Ok(queue) => {
                for definition in &*DEFINITIONS {
                    manifest::check(job, queue, definition, stack);
                    manifest::check_for_step(job, queue, definition, &rules, stack);
                }
            }
            Err(mismatch) => check_text(&Reason::from(mismatch).to_string()),
        }
    }
}

/// The files of `events/`.
pub fn seeds() -> Vec<Vec<u8>> {
    files(&root().join("events")).iter().map(|file| fs::read(file).expect("it can be read")).collect()
}
