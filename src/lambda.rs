//! What invokes the function, and what it answers: the payload becomes a [`Trigger`] by what it is, and the trigger an answer.
//!
//! Buildkite's events come from EventBridge. Those that failed come back from the failure queue, in batches of SQS messages. Two
//! senders write to that queue. Lambda sends the record of an asynchronous invocation that it gave up, with the event in
//! `requestPayload`: <https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html>. EventBridge sends an
//! event that it could not deliver, as it is: <https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-rule-dlq.html>.

mod kind;

use std::time::SystemTime;

use aws_lambda_events::{
    eventbridge::EventBridgeEvent,
    sqs::{BatchItemFailure, SqsBatchResponse, SqsEvent, SqsMessage},
};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use self::kind::Kind;
use crate::{
    buildkite::{
        event::{JOB_SCHEDULED, JobScheduled, StrictJobScheduled},
        job::ScheduledJob,
    },
    deadline::Deadline,
    doctor,
    json::{self, Malformed},
    log,
    report::{self, Failure, Occasion},
    scheduler::{self, Scheduler},
    sweep,
    text::{chain, excerpt},
};

/// Why the function was invoked.
#[derive(Clone, Debug, PartialEq)]
pub enum Trigger {
    /// EventBridge delivers an event.
    Event(Event),
    /// SQS hands over messages of the failure queue.
    Redrive(Vec<SqsMessage>),
}

/// An event of the bus.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A job waits for an agent.
    JobScheduled(Box<ScheduledJob>),
    /// The stack's schedule: compare what waits at Buildkite with the cluster.
    Sweep {
        /// When it was due.
        time: Option<SystemTime>,
    },
    /// An operator asks for an examination of the set-up.
    Doctor,
    /// Anything else that Buildkite announces; the bus carries all of it.
    Other {
        /// The envelope's `detail-type`.
        detail_type: String,
    },
}

/// Why a payload is not a trigger.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text shows what the fields are")]
pub enum InvalidEvent {
    /// Not JSON, or JSON of something else.
    #[error(
        "not an event of EventBridge (with detail-type and detail), and not a batch of SQS messages (with Records){}",
        .0.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default()
    )]
    Unknown(Option<Malformed>),
    /// An event of EventBridge without what each must have.
    #[error("cannot read the event of EventBridge: {0}")]
    Envelope(Malformed),
    /// A `Job Scheduled` event without what it must have.
    #[error("cannot read the Job Scheduled event: {0}")]
    JobScheduled(Malformed),
    /// Records that are not of SQS.
    #[error("records of {}, expected messages of the failure queue (aws:sqs)", excerpt(.event_source))]
    OtherRecords { event_source: String },
    /// Messages without what each must have.
    #[error("cannot read the batch of SQS messages: {0}")]
    Batch(Malformed),
    /// A message without its id, which the answer to SQS needs.
    #[error("cannot read the batch of SQS messages: Records[{0}] has no messageId")]
    NoMessageId(usize),
    /// A message that is not an event. Its text may hold secrets, so it is not quoted.
    #[error(
        "the message holds no event; expected the record of a failed invocation (with requestPayload), or an event that \
         EventBridge could not deliver (with detail-type and detail)"
    )]
    Message,
}

/// Why an invocation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The payload is not a trigger.
    #[error(transparent)]
    InvalidEvent(#[from] InvalidEvent),
    /// The job has no Kubernetes Job.
    #[error(transparent)]
    Schedule(#[from] scheduler::Error),
}

/// What the function answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To an event.
    Event(report::Answer),
    /// To a batch: the messages that SQS keeps.
    Batch(SqsBatchResponse),
    /// To an operator.
    Doctor(doctor::Answer),
}

impl Trigger {
    /// Reads a payload.
    pub fn parse(payload: &str) -> Result<Self, InvalidEvent> {
        // Nearly every payload is a job's event with nothing wrong in it, which is read in one pass.
        if let Ok(event) = serde_json::from_str::<EventBridgeEvent<StrictJobScheduled>>(payload)
            && event.detail_type == JOB_SCHEDULED
        {
            return Ok(Self::Event(Event::of_job(event.detail.0, event.time)));
        }
        match Kind::of(payload)? {
            Kind::Event(detail_type) => Event::parse(payload, detail_type.as_deref()).map(Self::Event),
            Kind::Batch => messages(payload).map(Self::Redrive),
        }
    }
}

impl Event {
    fn parse(payload: &str, detail_type: Option<&str>) -> Result<Self, InvalidEvent> {
        if detail_type == Some(JOB_SCHEDULED) {
            return Self::job_scheduled(payload);
        }
        let event = json::parse::<EventBridgeEvent<Box<RawValue>>>(payload, "").map_err(InvalidEvent::Envelope)?;
        match (&*event.detail_type, &*event.source) {
            ("Scheduled Event", "aws.events") => Ok(Self::Sweep { time: event.time.map(Into::into) }),
            (doctor::DETAIL_TYPE, doctor::SOURCE) => Ok(Self::Doctor),
            _ => Ok(Self::Other { detail_type: event.detail_type }),
        }
    }

    fn of_job(job: ScheduledJob, time: Option<impl Into<SystemTime>>) -> Self {
        Self::JobScheduled(Box::new(ScheduledJob { time: time.map(Into::into), ..job }))
    }

    /// One with a field that cannot be read.
    fn job_scheduled(payload: &str) -> Result<Self, InvalidEvent> {
        let event =
            json::parse::<EventBridgeEvent<JobScheduled>>(payload, "").map_err(|malformed| {
                match json::parse::<EventBridgeEvent<Box<RawValue>>>(payload, "") {
                    Ok(_) => InvalidEvent::JobScheduled(malformed),
                    Err(malformed) => InvalidEvent::Envelope(malformed),
                }
            })?;
        let JobScheduled { job, left_out } = event.detail;
        tracing::debug!(job = %job.uuid, fields = left_out.join(", "), "fields that cannot be read are left out");
        Ok(Self::of_job(job, event.time))
    }

    /// Reads a message of the failure queue.
    pub fn of_message(message: &SqsMessage) -> Result<Self, InvalidEvent> {
        #[derive(Deserialize)]
        struct FailedInvocation<'a> {
            #[serde(rename = "requestPayload", borrow)]
            request_payload: Option<&'a RawValue>,
        }
        let body = message.body.as_deref().unwrap_or_default();
        let failed: FailedInvocation = serde_json::from_str(body).map_err(|_| InvalidEvent::Message)?;
        match Trigger::parse(failed.request_payload.map_or(body, RawValue::get)) {
            Ok(Trigger::Event(event)) => Ok(event),
            Err(error @ InvalidEvent::JobScheduled(_)) => Err(error),
            _ => Err(InvalidEvent::Message),
        }
    }
}

fn messages(payload: &str) -> Result<Vec<SqsMessage>, InvalidEvent> {
    let SqsEvent { records, .. } = json::parse(payload, "").map_err(InvalidEvent::Batch)?;
    let other = records.iter().find(|record| record.event_source.as_deref() != Some("aws:sqs"));
    if let Some(SqsMessage { event_source, .. }) = other {
        let event_source = event_source.clone().unwrap_or_else(|| "an unknown eventSource".to_owned());
        return Err(InvalidEvent::OtherRecords { event_source });
    }
    match records.iter().position(|record| record.message_id.is_none()) {
        Some(record) => Err(InvalidEvent::NoMessageId(record)),
        None => Ok(records),
    }
}

impl Error {
    /// For alarms; it never changes its spelling.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::InvalidEvent(_) => "InvalidEvent",
            Self::Schedule(error) => error.kind(),
        }
    }
}

/// Serves one invocation.
pub async fn handle(scheduler: &Scheduler, payload: &str, deadline: Deadline) -> Result<Answer, Error> {
    match Trigger::parse(payload) {
        Ok(Trigger::Redrive(messages)) => Ok(Answer::Batch(redrive(scheduler, messages, deadline).await)),
        Ok(Trigger::Event(Event::Sweep { time })) => {
            Ok(Answer::Event(Box::pin(sweep::run(scheduler, time, deadline)).await))
        }
        Ok(Trigger::Event(Event::Doctor)) => Ok(Answer::Doctor(Box::pin(doctor::run(scheduler, deadline)).await)),
        Ok(Trigger::Event(event)) => serve(scheduler, Ok(event), Occasion::Event, deadline).await.map(Answer::Event),
        Err(error) => serve(scheduler, Err(error), Occasion::Event, deadline).await.map(Answer::Event),
    }
}

async fn serve(
    scheduler: &Scheduler,
    event: Result<Event, InvalidEvent>,
    occasion: Occasion,
    deadline: Deadline,
) -> Result<report::Answer, Error> {
    let ignored = |reason: &str| {
        report::event_ignored(reason);
        report::Answer::ignored(&reason)
    };
    match event {
        Ok(Event::JobScheduled(job)) => {
            let outcome = scheduler.schedule(&job, occasion, deadline).await?;
            Ok(report::Answer::of(&outcome, &job, &scheduler.config.stack.namespace))
        }
        Ok(Event::Sweep { .. }) => Ok(ignored("a sweep that failed is not repeated: the next one comes")),
        Ok(Event::Doctor) => Ok(ignored("an examination of the set-up is not repeated")),
        Ok(Event::Other { detail_type }) => {
            Ok(ignored(&format!("\"{}\" is not \"{JOB_SCHEDULED}\"", excerpt(&detail_type))))
        }
        Err(error) => {
            let error = Error::from(error);
            let failure = Failure { error_type: error.kind(), text: chain(&error) };
            report::event_failed(&failure, &scheduler.config.function_name);
            Err(error)
        }
    }
}

/// Serves the events of a batch side by side. What all of them need is read once: who waits for a read gets its answer.
async fn redrive(scheduler: &Scheduler, messages: Vec<SqsMessage>, deadline: Deadline) -> SqsBatchResponse {
    let served = messages.into_iter().map(|message| async move {
        let event = Event::of_message(&message);
        let span = log::Span::Message { message_id: message.message_id.as_deref() };
        let served = span.of(serve(scheduler, event, Occasion::Redrive, deadline)).await;
        let mut failed = BatchItemFailure::default();
        failed.item_identifier = message.message_id.unwrap_or_default();
        served.is_err().then_some(failed)
    });
    let mut response = SqsBatchResponse::default();
    response.batch_item_failures = join_all(served).await.into_iter().flatten().collect();
    response
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const REDRIVE: &str = include_str!("../events/redrive.json");
    const SCHEDULED: &str = include_str!("../events/job-scheduled.json");

    fn job(event: &Result<Event, InvalidEvent>) -> &ScheduledJob {
        match event {
            Ok(Event::JobScheduled(job)) => job,
            other => panic!("no job in {other:?}"),
        }
    }

    fn parsed(payload: &str) -> Result<Trigger, String> {
        Trigger::parse(payload).map_err(|error| chain(&error))
    }

    fn message(body: &str) -> SqsMessage {
        let record = json!({"messageId": "1", "body": body, "eventSource": "aws:sqs"});
        serde_json::from_value(record).unwrap()
    }

    fn batch(records: &[Value]) -> String {
        json!({ "Records": records }).to_string()
    }

    #[test]
    fn an_event_becomes_its_job_with_the_time_of_the_envelope() {
        let Ok(Trigger::Event(event)) = Trigger::parse(SCHEDULED) else { panic!() };
        let event = Ok(event);
        let time = job(&event).time.unwrap();
        assert_eq!(time.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(), 1_768_471_205);
    }

    #[test]
    fn another_detail_type_is_not_an_error_whatever_its_detail() {
        let event = r#"{"detail-type":"Agent Connected","source":"aws.partner/buildkite.com","detail":[{"job":7}]}"#;
        let other = Event::Other { detail_type: "Agent Connected".to_owned() };
        assert_eq!(parsed(event), Ok(Trigger::Event(other)));
    }

    #[test]
    fn a_payload_that_is_no_trigger_names_what_is_wrong() {
        let unknown = "not an event of EventBridge (with detail-type and detail), and not a batch of SQS messages";
        let no_body = json!({"messageId": "1", "eventSource": "aws:sqs"});
        let cases = [
            ("{}".to_owned(), unknown),
            ("[]".to_owned(), unknown),
            ("null".to_owned(), unknown),
            (r#"{"job":{}}"#.to_owned(), unknown),
            (r#"{"detail":{}}"#.to_owned(), unknown),
            (r#"{"detail-type":null,"detail":{}}"#.to_owned(), "cannot read the event of EventBridge: detail-type: "),
            (r#"{"Records":null}"#.to_owned(), "cannot read the batch of SQS messages: Records: "),
            (r#"{"detail-type":7}"#.to_owned(), "cannot read the event of EventBridge: detail-type: invalid type"),
            (r#"{"detail-type":"Job Scheduled"}"#.to_owned(), "cannot read the event of EventBridge: missing field"),
            (
                r#"{"detail-type":"Job Scheduled","source":"a","time":"now","detail":{}}"#.to_owned(),
                "cannot read the event of EventBridge: time: ",
            ),
            (
                r#"{"detail-type":"Job Scheduled","source":"a","detail":{"job":{}}}"#.to_owned(),
                "cannot read the Job Scheduled event: detail.job: missing field `uuid`",
            ),
            (r#"{"Records":[7]}"#.to_owned(), "cannot read the batch of SQS messages: Records[0]: "),
            (batch(&[json!({"eventSource": "aws:s3", "s3": {}})]), "records of aws:s3, "),
            (batch(&[json!({"EventSource": "aws:sns", "Sns": {}})]), "records of an unknown eventSource, "),
            (batch(&[no_body, json!({"eventSource": "aws:kinesis"})]), "records of aws:kinesis, "),
            (
                batch(&[json!({"eventSource": "aws:sqs", "body": "{}"})]),
                "cannot read the batch of SQS messages: Records[0] has no messageId",
            ),
        ];
        for (payload, expected) in cases {
            let error = parsed(&payload).unwrap_err();
            assert!(error.starts_with(expected), "{payload}: {error}");
        }
        let long = format!(r#"{{"{}": tru"#, "a".repeat(100_000));
        let error = parsed(&long).unwrap_err();
        assert!(error.len() < 1_000 && !error.contains(char::is_control), "{error}");
    }

    #[test]
    fn both_forms_of_a_message_are_read() {
        let Ok(Trigger::Redrive(messages)) = Trigger::parse(REDRIVE) else { panic!() };
        let uuids: Vec<_> = messages.iter().map(|message| job(&Event::of_message(message)).uuid.to_string()).collect();
        assert_eq!(uuids, ["11111111-2222-4333-8444-555555555601", "11111111-2222-4333-8444-555555555602"]);
        assert_eq!(parsed(r#"{"Records":[]}"#), Ok(Trigger::Redrive(Vec::new())));

        let payload: Value = serde_json::from_str(SCHEDULED).unwrap();
        let record = json!({ "requestPayload": payload }).to_string();
        assert_eq!(job(&Event::of_message(&message(&record))), job(&Event::of_message(&message(SCHEDULED))));
    }

    #[test]
    fn a_message_without_an_event_says_what_was_expected_and_never_quotes_it() {
        let bodies = [
            "",
            "hush",
            "\"hush\"",
            "null",
            r#"{"hush":1}"#,
            r#"{"requestPayload":"hush"}"#,
            r#"{"requestPayload":null}"#,
            r#"{"requestPayload":{"detail":"hush"}}"#,
            r#"{"detail-type":{"hush":1},"detail":{}}"#,
        ];
        for body in bodies {
            let error = chain(&Event::of_message(&message(body)).unwrap_err());
            assert!(error.contains("requestPayload") && error.contains("detail-type"), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
