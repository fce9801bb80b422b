//! What happened, in order: each stand-in records its requests here, and each function its life and its output.

use std::{
    fmt,
    process::ExitStatus,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    fault::Fault,
    function::{self, Answer},
    log_line,
};

/// Who did what, and when. Clones share one record.
///
/// No secret is recorded: of a request there is its method and path, never its body.
#[derive(Clone, Debug)]
pub struct Timeline {
    start: Instant,
    /// `None` from when nothing is recorded any more.
    entries: Arc<Mutex<Option<Vec<Entry>>>>,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Time since the lab started; for a request, that of its answer.
    pub at: Duration,
    /// Who saw or did it.
    pub actor: Actor,
    /// What it was.
    pub kind: Kind,
    /// The injected fault that it met.
    pub fault: Option<Fault>,
    /// HTTP status of the answer to a request; none if the answer did not arrive.
    pub status: Option<u16>,
    /// Time from a request to its answer.
    pub took: Duration,
}

/// The parties of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The test, or another program that drives the lab.
    Test,
    /// The Runtime API of one function.
    Lambda,
    /// The binary under test, by what it prints.
    Function,
    /// The parameter store.
    Ssm,
    /// The cluster directory.
    Eks,
    /// The service that verifies a signature when the real authenticator asks.
    Sts,
    /// The API server.
    Kubernetes,
    /// Stacks API and agent API.
    Buildkite,
}

/// What an entry is about.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A note of the test.
    Note(String),
    /// The process of a function started.
    Started,
    /// The function is initialised and asks for its first event.
    Ready,
    /// The function took an event.
    Invoked {
        /// Size of the event.
        bytes: usize,
    },
    /// What came of an event, or of the start.
    Answered(Answer),
    /// The process of a function ended.
    Ended(ExitStatus),
    /// A line that the function printed.
    Printed(String),
    /// A request and its answer.
    Called(Call),
    /// A request that waits for an injected delay; the entry of its answer follows.
    Delayed(Call),
    /// A new connection that met a fault.
    Connected,
    /// A TLS handshake that failed, and why.
    HandshakeFailed(String),
    /// A Job or a Pod of a watched namespace got a state, such as `agent terminated 27`.
    Became {
        /// Its name.
        name: String,
        /// The state.
        state: String,
    },
    /// An EKS token was accepted; the API server says so once per token.
    TokenAccepted {
        /// The cluster that it was signed for.
        cluster: String,
        /// How long ago it was signed.
        age: Duration,
    },
    /// An EKS token was refused, and why.
    TokenRefused(String),
}

impl Kind {
    pub(crate) fn accepted(cluster: &str, signed_at: SystemTime, now: SystemTime) -> Self {
        // A token has its time in whole seconds, so count these.
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let age = Duration::from_secs(seconds(now).saturating_sub(seconds(signed_at)));
        Self::TokenAccepted { cluster: cluster.to_owned(), age }
    }
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// HTTP method, or the action of an AWS API such as `GetParameter`.
    pub verb: String,
    /// Path without query, or the name of the parameter or cluster.
    pub target: String,
}

impl Call {
    /// From its two parts.
    pub fn new(verb: impl Into<String>, target: impl Into<String>) -> Self {
        Self { verb: verb.into(), target: target.into() }
    }
}

impl Entry {
    pub(crate) fn new(actor: Actor, kind: Kind) -> Self {
        Self { at: Duration::ZERO, actor, kind, fault: None, status: None, took: Duration::ZERO }
    }

    /// The request that it is about, if it is about one.
    pub fn call(&self) -> Option<&Call> {
        match &self.kind {
            Kind::Called(call) | Kind::Delayed(call) => Some(call),
            _ => None,
        }
    }
}

impl Timeline {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now(), entries: Arc::new(Mutex::new(Some(Vec::new()))) }
    }

    /// Adds a note of the test.
    pub fn note(&self, text: impl Into<String>) {
        self.record(Actor::Test, Kind::Note(text.into()));
    }

    /// Adds a line that a function in this process printed.
    pub fn print(&self, line: impl Into<String>) {
        self.record(Actor::Function, Kind::Printed(line.into()));
    }

    pub(crate) fn record(&self, actor: Actor, kind: Kind) {
        self.push(Entry::new(actor, kind));
    }

    /// Adds an entry, with the time of now.
    pub(crate) fn push(&self, entry: Entry) {
        if let Some(entries) = &mut *self.entries.lock() {
            entries.push(Entry { at: self.now(), ..entry });
        }
    }

    /// Time since the lab started.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn forget(&self) {
        self.entries.lock().as_mut().map(Vec::clear);
    }

    /// From here on nothing is recorded, and no stand-in keeps its requests: those of a day would fill the memory.
    pub fn close(&self) {
        *self.entries.lock() = None;
    }

    pub(crate) fn is_open(&self) -> bool {
        self.entries.lock().is_some()
    }

    /// All that happened so far.
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.lock().clone().unwrap_or_default()
    }
}

/// One line per entry.
impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.entries().iter().try_for_each(|entry| writeln!(f, "{entry}"))
    }
}

/// One line with the milliseconds aligned: `    12.3 ms  kubernetes  POST … -> 201`.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.1} ms  {:<10}  {}", self.at.as_secs_f64() * 1000.0, self.actor, self.kind)?;
        if matches!(self.kind, Kind::Called(_)) {
            match self.status {
                Some(status) => write!(f, " -> {status}")?,
                None => f.write_str(" -> no answer")?,
            }
        }
        match &self.fault {
            Some(fault) => write!(f, " (injected: {fault:?})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Test => "test",
            Self::Lambda => "lambda",
            Self::Function => "function",
            Self::Ssm => "ssm",
            Self::Eks => "eks",
            Self::Sts => "sts",
            Self::Kubernetes => "kubernetes",
            Self::Buildkite => "buildkite",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Note(text) => f.write_str(text),
            Self::Started => f.write_str("process started"),
            Self::Ready => f.write_str("the function is ready and asks for its first event"),
            Self::Invoked { bytes } => write!(f, "event handed to the function ({bytes} bytes)"),
            Self::Answered(Answer::Success(Value::Object(fields))) => {
                write!(f, "answer {}", log_line::values(fields).collect::<Vec<_>>().join(" "))
            }
            Self::Answered(Answer::Success(answer)) => write!(f, "answer {answer}"),
            Self::Answered(Answer::Error { error_type, .. }) => write!(f, "error answer: {error_type}"),
            Self::Answered(Answer::InitError { error_type, .. }) => {
                write!(f, "the function cannot start: {error_type}")
            }
            Self::Answered(other) => other.fmt(f),
            Self::Ended(status) => f.write_str(&function::ending(*status)),
            Self::Printed(line) => f.write_str(&log_line::text(line)),
            Self::Called(call) => call.fmt(f),
            Self::Delayed(call) => write!(f, "{call} waits"),
            Self::Connected => f.write_str("connection"),
            Self::HandshakeFailed(reason) => write!(f, "TLS handshake failed: {reason}"),
            Self::Became { name, state } => write!(f, "{name} {state}"),
            Self::TokenAccepted { cluster, age } => {
                write!(f, "EKS token accepted (cluster {cluster}, signed {} s ago)", age.as_secs())
            }
            Self::TokenRefused(reason) => write!(f, "EKS token refused: {reason}"),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_line() {
        let at = Duration::from_micros(12_345);
        let call = Kind::Called(Call::new("POST", "/jobs"));
        let answered = Entry { at, status: Some(201), ..Entry::new(Actor::Kubernetes, call.clone()) };
        assert_eq!(answered.to_string(), "     12.3 ms  kubernetes  POST /jobs -> 201");
        let garbage = Entry { fault: Some(Fault::Garbage), ..answered };
        assert_eq!(garbage.to_string(), "     12.3 ms  kubernetes  POST /jobs -> 201 (injected: Garbage)");
        let cut = Entry { at, fault: Some(Fault::CutAfter), ..Entry::new(Actor::Ssm, call) };
        assert_eq!(cut.to_string(), "     12.3 ms  ssm         POST /jobs -> no answer (injected: CutAfter)");
        let answer = Kind::Answered(Answer::Success(serde_json::json!({"outcome": "created", "job": "j"})));
        let answer = Entry { at, ..Entry::new(Actor::Lambda, answer) };
        assert_eq!(answer.to_string(), "     12.3 ms  lambda      answer job=j outcome=created");
    }
}
