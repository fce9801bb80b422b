//! The payload of an invocation, up to the Job that it becomes.

use std::{fs, str};

use agent_scheduler::{
    chain,
    event::{Event, InvalidEvent, ScheduledJob},
    failure_queue,
    query_rules::AgentQueryRules,
    scheduler::Reason,
};

use crate::{CONFIGS, DEFINITIONS, check_text, files, manifest, root};

/// `data` is the payload.
pub fn run(data: &[u8]) {
    let Ok(payload) = str::from_utf8(data) else { return };
    match Event::parse(payload) {
        Err(error @ InvalidEvent::Envelope(_)) => {
            check_text(&chain(&error));
            match failure_queue::parse(payload) {
                Some(Ok(messages)) => messages.iter().for_each(|message| handle(message.event())),
                Some(Err(error)) => check_text(&chain(&error)),
                None => {}
            }
        }
        event => handle(event),
    }
}

fn handle(event: Result<Event, InvalidEvent>) {
    match event {
        Ok(Event::JobScheduled(job)) => schedule(&job),
        Ok(Event::Other { detail_type }) => check_text(&Reason::OtherEvent { detail_type }.to_string()),
        Err(error) => check_text(&chain(&error)),
    }
}

fn schedule(job: &ScheduledJob) {
    check_text(&Reason::NoScript(job.kind.clone()).to_string());
    let rules = AgentQueryRules::parse(&job.agent_query_rules);
    for config in &*CONFIGS {
        match rules.matched(config) {
            Ok(queue) => {
                for definition in &*DEFINITIONS {
                    manifest::check(job, queue, definition, config);
                    manifest::check_overridden(job, queue, definition, &rules, config);
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
