//! Events to send: the published one of `events/job-scheduled.json`, or one of another file, changed as a test needs it.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use crate::clock;

/// The published `Job Scheduled` event.
pub const SCHEDULED: &str = include_str!("../../../events/job-scheduled.json");

/// The event of the stack's schedule.
const SWEEP: &str = include_str!("../../../events/sweep.json");

/// An event as EventBridge delivers it; `Display` is its JSON.
#[derive(Clone, Debug, Default)]
pub struct Event(pub(crate) Value);

/// A file that holds no event.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// No such file, or one that cannot be read.
    #[error("cannot read the event {path}: {1}\nGive --event a file such as events/job-scheduled.json.", path = .0.display())]
    Unreadable(PathBuf, io::Error),
    /// Not one JSON document.
    #[error(
        "the event {path} is not JSON: {1}\nGive --event one whole document, as events/job-scheduled.json is.",
        path = .0.display()
    )]
    InvalidJson(PathBuf, serde_json::Error),
}

impl Event {
    /// The published event.
    pub fn scheduled() -> Self {
        Self(serde_json::from_str(SCHEDULED).expect("the published event is JSON"))
    }

    /// The event of the stack's schedule, due now.
    pub fn sweep() -> Self {
        Self(serde_json::from_str(SWEEP).expect("the event is JSON")).now()
    }

    /// The event of a file, as it stands there and parsed.
    pub fn read(path: &Path) -> Result<(String, Self), Problem> {
        let text = fs::read_to_string(path).map_err(|source| Problem::Unreadable(path.to_owned(), source))?;
        match serde_json::from_str(&text) {
            Ok(event) => Ok((text, Self(event))),
            Err(source) => Err(Problem::InvalidJson(path.to_owned(), source)),
        }
    }

    /// The same event for another job.
    #[must_use]
    pub fn uuid(self, uuid: impl fmt::Display) -> Self {
        self.detail(|detail| detail["job"]["uuid"] = uuid.to_string().into())
    }

    /// The same event with these agent query rules, such as `queue=kubernetes`.
    #[must_use]
    pub fn rules<Rule: AsRef<str>>(self, rules: impl IntoIterator<Item = Rule>) -> Self {
        let rules: Vec<_> = rules.into_iter().map(|rule| rule.as_ref().to_owned()).collect();
        self.detail(|detail| detail["job"]["agent_query_rules"] = rules.into())
    }

    /// The same event with a change to its `detail`.
    #[must_use]
    pub fn detail(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.0["detail"]);
        self
    }

    /// The same event, sent now.
    #[must_use]
    pub fn now(self) -> Self {
        self.sent(Duration::ZERO)
    }

    /// The same event, sent this long ago.
    #[must_use]
    pub fn sent(self, ago: Duration) -> Self {
        self.at(clock::now() - ago)
    }

    /// The same event, sent then.
    #[must_use]
    pub fn at(mut self, time: jiff::Timestamp) -> Self {
        self.0["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        self
    }

    /// Whether it is the event of a schedule.
    pub fn is_sweep(&self) -> bool {
        self.0["detail-type"] == "Scheduled Event"
    }

    /// The uuid of its job.
    pub fn job_uuid(&self) -> &str {
        self.0["detail"]["job"]["uuid"].as_str().unwrap_or_default()
    }

    /// The `Job Scheduled` events in it: itself, or those in the messages of a batch.
    pub fn jobs_scheduled(&self) -> Vec<Self> {
        let messages = self.0["Records"].as_array().into_iter().flatten();
        let bodies = messages.filter_map(|message| serde_json::from_str::<Value>(message["body"].as_str()?).ok());
        let events = bodies.map(|body| match &body["requestPayload"] {
            Value::Null => body,
            event => event.clone(),
        });
        let events = events.chain([self.0.clone()]).map(Self);
        events.filter(|event| event.0["detail-type"] == "Job Scheduled" && !event.job_uuid().is_empty()).collect()
    }

    /// The name of the Kubernetes Job that it becomes.
    pub fn job_name(&self) -> String {
        format!("buildkite-{}", self.job_uuid())
    }

    /// What Lambda puts into the failure queue when its retries did not help.
    pub fn failure_record(&self) -> String {
        json!({
            "version": "1.0",
            "requestContext": {"condition": "RetriesExhausted", "approximateInvokeCount": 3},
            "requestPayload": self.0,
        })
        .to_string()
    }
}

/// Messages as SQS hands them to a function, each with its id and its body.
pub fn batch<Id: fmt::Display, Body: fmt::Display>(messages: impl IntoIterator<Item = (Id, Body)>) -> String {
    let record = |(id, body): (Id, Body)| json!({"messageId": id.to_string(), "body": body.to_string(), "eventSource": "aws:sqs"});
    json!({"Records": messages.into_iter().map(record).collect::<Vec<_>>()}).to_string()
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Event> for String {
    fn from(event: Event) -> Self {
        event.to_string()
    }
}

impl From<&Event> for String {
    fn from(event: &Event) -> Self {
        event.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_changed_in_one_place_at_a_time() {
        let event = Event::scheduled().uuid("u").rules(["queue=other"]).detail(|detail| detail["build"] = Value::Null);
        let expected = |mut published: Value| {
            published["detail"]["job"]["uuid"] = "u".into();
            published["detail"]["job"]["agent_query_rules"] = json!(["queue=other"]);
            published["detail"]["build"] = Value::Null;
            published
        };
        assert_eq!(event.0, expected(serde_json::from_str(SCHEDULED).unwrap()));
        assert_eq!(event.job_name(), "buildkite-u");
    }
}
