//! The binary, a lab with one function in it, a function's clock, and the search for secrets.

#![allow(dead_code, clippy::unwrap_used, reason = "no test uses all of it, and a test fails by a panic")]

use std::{env, fs, path::PathBuf, process, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use lab::{Function, Kind, Lab, function::Builder};
use serde_json::Value;

pub const FUNCTION: &str = env!("CARGO_BIN_EXE_agent-scheduler");

/// One lab and one function in it.
pub struct Fixture {
    pub lab: Lab,
    pub function: Function,
}

/// What a function printed: all of it, and the lines of each kind.
pub struct Output {
    pub text: String,
    pub log: Vec<Value>,
    pub metrics: Vec<Value>,
}

impl Fixture {
    pub async fn new() -> Self {
        Self::with(|_, function| function).await
    }

    /// `change` prepares the lab and the function before the start.
    ///
    /// An event has 5 s, less the reserve of 2 s, so that retries until the deadline end soon.
    pub async fn with(change: impl FnOnce(&Lab, Builder) -> Builder) -> Self {
        let lab = Lab::start().await;
        let function = change(&lab, lab.function(FUNCTION).timeout(Duration::from_secs(5))).start();
        Self { lab, function }
    }

    /// Stops the function and searches for secrets.
    pub async fn end(self) -> Output {
        let printed = self.function.stop().await;
        assert_eq!(leaks(&self.lab), [""; 0]);
        let (mut log, metrics): (Vec<_>, _) = printed.lines().into_iter().partition(|line| line["_aws"].is_null());
        // Each process has this line first.
        log.retain(|line| line["message"] != "agent-scheduler starts");
        Output { text: printed.text, log, metrics }
    }
}

/// The texts with a secret in them: answers, output of functions, Jobs, and requests other than that of the Secret.
pub fn leaks(lab: &Lab) -> Vec<String> {
    let entries = lab.timeline.entries().into_iter().map(|entry| entry.kind);
    let mut texts: Vec<_> = entries
        .filter(|kind| matches!(kind, Kind::Answered(_) | Kind::Printed(_)))
        .map(|kind| format!("{kind:?}"))
        .collect();
    texts.extend(lab.kubernetes.jobs().iter().map(ToString::to_string));
    let requests = lab.kubernetes.requests().into_iter().chain(lab.aws.requests()).chain(lab.buildkite.requests());
    let requests = requests.filter(|request| request.method != "PATCH");
    texts.extend(requests.map(|request| format!("{} {} {}", request.path, request.query, request.body)));

    let keys = lab.credentials();
    // A job acquisition token is in its Secret alone, and there in base64.
    let mut secrets = vec!["k8s-aws-v1.".to_owned(), "bkjat_".to_owned()];
    for secret in [lab.agent_token(), &keys.secret_access_key, &keys.session_token] {
        secrets.extend([secret.to_owned(), BASE64_STANDARD.encode(secret)]);
    }
    texts.retain(|text| secrets.iter().any(|secret| text.contains(secret)));
    texts
}

/// The clock of one function, by libfaketime, which `make faketime` installs.
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// The right time at first. `name` is the clock's own among those of the test.
    pub fn new(name: &str) -> Self {
        let libraries = fs::read_dir("/usr/lib").unwrap().flatten();
        let mut libraries = libraries.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
        let library = libraries.find(|library| library.is_file()).expect("libfaketime: apt-get install faketime");
        let file = env::temp_dir().join(format!("agent-scheduler-{name}-{}.clock", process::id()));
        let clock = Self { library, file };
        clock.put_forward(Duration::ZERO);
        clock
    }

    /// Makes it the function's clock.
    pub fn give(&self, function: Builder) -> Builder {
        let function = function.env("LD_PRELOAD", self.library.display().to_string());
        function.env("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()).env("FAKETIME_NO_CACHE", "1")
    }

    pub fn put_forward(&self, time: Duration) {
        self.set(&format!("+{}s", time.as_secs()));
    }

    /// To a time as libfaketime reads it.
    pub fn set(&self, time: &str) {
        fs::write(&self.file, time).unwrap();
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        fs::remove_file(&self.file).unwrap();
    }
}
