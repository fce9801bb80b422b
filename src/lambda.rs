//! What SQS hands over when messages of the failure queue go back into the function: events that had failed.
//!
//! Two senders write to that queue. Lambda sends the record of an asynchronous invocation that it gave up, with the event in
//! `requestPayload`: <https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html>. EventBridge sends an
//! event that it could not deliver, as it is: <https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-rule-dlq.html>.
//! Shape of a batch: <https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html#example-standard-queue-message-event>.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::event::{self, Event, InvalidEvent};

/// The `eventSource` that is ours.
const SQS: &str = "aws:sqs";

/// One message of the failure queue.
#[derive(Debug, Deserialize)]
pub struct Message {
    /// What SQS knows it by.
    #[serde(rename = "messageId")]
    pub id: String,
    body: String,
}

#[derive(Deserialize)]
struct Batch<Record> {
    #[serde(rename = "Records")]
    records: Vec<Record>,
}

/// Every service that sends records says so in each; SNS with a capital letter.
#[derive(Deserialize)]
struct Source {
    #[serde(rename = "eventSource", alias = "EventSource")]
    event_source: String,
}

/// The record of a failed invocation.
#[derive(Deserialize)]
struct FailedInvocation<'a> {
    #[serde(rename = "requestPayload", borrow)]
    request_payload: &'a RawValue,
}

/// Reads a batch; `None` if the payload is no list of records at all.
pub fn parse(payload: &str) -> Option<Result<Vec<Message>, InvalidEvent>> {
    let sources: Batch<Source> = serde_json::from_str(payload).ok()?;
    if let Some(Source { event_source }) = sources.records.into_iter().find(|record| record.event_source != SQS) {
        return Some(Err(InvalidEvent::OtherRecords { event_source }));
    }
    let batch = event::parse(payload, "").map_err(InvalidEvent::Batch);
    Some(batch.map(|batch: Batch<Message>| batch.records))
}

impl Message {
    /// Reads the event that had failed.
    pub fn event(&self) -> Result<Event, InvalidEvent> {
        let event = match serde_json::from_str(&self.body) {
            Ok(FailedInvocation { request_payload }) => request_payload.get(),
            Err(_) => &self.body,
        };
        Event::parse(event).map_err(|error| match error {
            InvalidEvent::Envelope(_) => InvalidEvent::Message,
            error => error,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::chain;

    const REDRIVE: &str = include_str!("../events/redrive.json");
    const SCHEDULED: &str = include_str!("../events/job-scheduled.json");

    fn record(body: &str) -> Value {
        json!({"messageId": "11111111-2222-4333-8444-555555555599", "body": body, "eventSource": "aws:sqs"})
    }

    fn batch(records: &[Value]) -> String {
        json!({ "Records": records }).to_string()
    }

    /// What comes of a message with that body.
    fn event(body: &str) -> Result<Event, String> {
        let messages = parse(&batch(&[record(body)])).unwrap().unwrap();
        messages[0].event().map_err(|error| chain(&error))
    }

    #[test]
    fn both_forms_of_a_message_are_read() {
        let messages = parse(REDRIVE).unwrap().unwrap();
        let uuids: Vec<_> = messages
            .iter()
            .map(|message| match message.event() {
                Ok(Event::JobScheduled(job)) => job.uuid.to_string(),
                other => panic!("no job in {other:?}"),
            })
            .collect();
        assert_eq!(uuids, ["11111111-2222-4333-8444-555555555601", "11111111-2222-4333-8444-555555555602"]);
    }

    #[test]
    fn an_event_is_the_same_in_either_form() {
        let expected = Event::parse(SCHEDULED).unwrap();
        let payload: Value = serde_json::from_str(SCHEDULED).unwrap();
        assert_eq!(event(SCHEDULED), Ok(expected.clone()));
        assert_eq!(event(&json!({ "requestPayload": payload }).to_string()), Ok(expected));
    }

    #[test]
    fn an_empty_batch_has_no_messages() {
        assert!(parse(r#"{"Records":[]}"#).unwrap().unwrap().is_empty());
    }

    #[test]
    fn what_has_no_records_is_no_batch() {
        for payload in ["{}", "null", "[1, 2]", r#"{"Records":null}"#, r#"{"Records":[7]}"#, r#"{"Records":[{}]}"#] {
            assert!(parse(payload).is_none(), "{payload}");
        }
    }

    #[test]
    fn a_batch_that_cannot_be_read_says_why() {
        let no_body = json!({"messageId": "1", "eventSource": "aws:sqs"});
        let cases = [
            (batch(&[json!({"eventSource": "aws:s3", "s3": {}})]), "records of aws:s3, "),
            (batch(&[json!({"EventSource": "aws:sns", "Sns": {}})]), "records of aws:sns, "),
            (batch(&[record("{}"), json!({"eventSource": "aws:kinesis"})]), "records of aws:kinesis, "),
            (
                batch(&[record("{}"), no_body]),
                "cannot read the batch of SQS messages: Records[1]: missing field `body`",
            ),
        ];
        for (payload, problem) in cases {
            let told = chain(&parse(&payload).unwrap().unwrap_err());
            assert!(told.starts_with(problem), "{told}");
        }
    }

    #[test]
    fn a_message_without_an_event_says_what_was_expected_and_never_what_is_there() {
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
            let told = event(body).unwrap_err();
            assert!(told.contains("requestPayload") && told.contains("detail-type"), "{told}");
            assert!(!told.contains("hush"), "{told}");
        }
    }

    #[test]
    fn a_job_scheduled_event_that_cannot_be_read_names_the_field() {
        let body = r#"{"requestPayload":{"detail-type":"Job Scheduled","detail":{"job":{}}}}"#;
        let told = event(body).unwrap_err();
        assert!(told.starts_with("cannot read the Job Scheduled event: detail.job: missing field `uuid`"), "{told}");
    }
}
