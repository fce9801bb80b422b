//! The payload of an invocation, as far as the Job that comes of it.

use std::{fs, str};

use agent_scheduler::{
    chain,
    event::{Event, InvalidEvent, ScheduledJob},
    failure_queue,
    overrides::Overrides,
    query_rules::AgentQueryRules,
    scheduler::Reason,
};

use crate::{CONFIGS, DEFINITIONS, files, manifest, root, told};

/// `data` is the payload.
pub fn run(data: &[u8]) {
    let Ok(payload) = str::from_utf8(data) else { return };
    match Event::parse(payload) {
        Err(InvalidEvent::Envelope(error)) => {
            told(&chain(&InvalidEvent::Envelope(error)));
            match failure_queue::parse(payload) {
                Some(Ok(messages)) => messages.iter().for_each(|message| serve(message.event())),
                Some(Err(error)) => told(&chain(&error)),
                None => {}
            }
        }
        event => serve(event),
    }
}

fn serve(event: Result<Event, InvalidEvent>) {
    match event {
        Ok(Event::JobScheduled(job)) => schedule(&job),
        Ok(Event::Other { detail_type }) => told(&Reason::OtherEvent { detail_type }.to_string()),
        Err(error) => told(&chain(&error)),
    }
}

fn schedule(job: &ScheduledJob) {
    told(&Reason::NoScript(job.kind.clone()).to_string());
    let rules = AgentQueryRules::parse(&job.agent_query_rules);
    for config in &*CONFIGS {
        let queue = match rules.matched(config) {
            Ok(queue) => queue,
            Err(mismatch) => {
                told(&Reason::from(mismatch).to_string());
                continue;
            }
        };
        for definition in &*DEFINITIONS {
            manifest::check(job, queue, definition, config);
            match Overrides::of(&rules).and_then(|overrides| overrides.apply(definition)) {
                Ok(changed) => manifest::check(job, queue, &changed, config),
                Err(unmet) => told(&unmet.to_string()),
            }
        }
    }
}

/// The whole events of `events/`.
pub fn seeds() -> Vec<Vec<u8>> {
    files(&root().join("events")).iter().map(|file| fs::read(file).expect("it can be read")).collect()
}
