//! What happened, in order: every stand-in notes each request here, and a function each line that it prints.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Who did what, and when. Clones share one record.
///
/// Nothing secret is ever noted: requests appear by their line, never by their body.
#[derive(Clone, Debug)]
pub struct Timeline {
    start: Instant,
    entries: Arc<Mutex<Vec<Entry>>>,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Time since the lab started.
    pub at: Duration,
    /// Who saw or did it.
    pub actor: Actor,
    /// One line for a person.
    pub what: String,
}

/// The parties that a timeline tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// Whoever drives the lab.
    Test,
    /// The Runtime API of one function.
    Lambda,
    /// The binary under test, by what it prints.
    Function,
    /// The parameter store.
    Ssm,
    /// The cluster directory.
    Eks,
    /// The service that knows whose signature it is, as the real authenticator asks it.
    Sts,
    /// The API server.
    Kubernetes,
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
        })
    }
}

impl Timeline {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now(), entries: Arc::default() }
    }

    /// Adds a line of the test's own.
    pub fn note(&self, what: impl Into<String>) {
        self.record(Actor::Test, what);
    }

    pub(crate) fn record(&self, actor: Actor, what: impl Into<String>) {
        let mut entries = self.entries.lock();
        entries.push(Entry { at: self.now(), actor, what: what.into() });
    }

    /// Time since the lab started.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn forget(&self) {
        self.entries.lock().clear();
    }

    /// All that happened so far.
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.lock().clone()
    }

    /// All that happened so far, each as `actor: what`.
    pub fn lines(&self) -> Vec<(Duration, String)> {
        self.entries().into_iter().map(|entry| (entry.at, format!("{}: {}", entry.actor, entry.what))).collect()
    }
}
