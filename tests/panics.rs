//! A panic is the end of one event, and not of the function.
//!
//! `make faketime` installs what it needs. No test can ask the function for a panic, but a clock can: rustls panics where the time is before 1970.

#![expect(clippy::unwrap_used, reason = "a test says so by ending")]

use std::{env, fs, path::PathBuf, process};

use base64::{Engine, prelude::BASE64_STANDARD};
use lab::{Answer, Function, Lab};
use serde_json::{Value, json};

const FUNCTION: &str = env!("CARGO_BIN_EXE_agent-scheduler");
const SCHEDULED: &str = include_str!("../events/job-scheduled.json");

/// The clock of the function, by libfaketime; only its own, so that all others stay right.
struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    fn new() -> Self {
        let libraries = fs::read_dir("/usr/lib").unwrap().flatten();
        let mut libraries = libraries.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
        let library = libraries.find(|library| library.is_file()).expect("libfaketime: apt-get install faketime");
        let clock =
            Self { library, file: env::temp_dir().join(format!("agent-scheduler-panics-{}.clock", process::id())) };
        clock.says("+0s");
        clock
    }

    fn says(&self, time: &str) {
        fs::write(&self.file, time).unwrap();
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        fs::remove_file(&self.file).unwrap();
    }
}

async fn deliver(function: &Function, uuid: u128) -> Answer {
    let mut event: Value = serde_json::from_str(SCHEDULED).unwrap();
    event["detail"]["job"]["uuid"] = json!(uuid::Uuid::from_u128(uuid));
    function.invoke(event.to_string()).await
}

#[tokio::test]
async fn a_panic_fails_its_event_and_the_next_one_is_served() {
    let (lab, clock) = (Lab::start().await, Clock::new());
    let function = lab
        .function(FUNCTION)
        .env("LD_PRELOAD", clock.library.display().to_string())
        .env("FAKETIME_TIMESTAMP_FILE", clock.file.display().to_string())
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .start();
    let created = |answer: Answer| match answer {
        Answer::Success(answer) => assert_eq!(answer["outcome"], "created"),
        other => panic!("{other:?}\n{}", function.output()),
    };
    created(deliver(&function, 1).await);

    clock.says("@1960-01-01 00:00:00");
    lab.kubernetes.close_connections();
    let told = match deliver(&function, 2).await {
        Answer::Error { error_message, .. } => error_message,
        other => panic!("{other:?}\n{}", function.output()),
    };
    assert!(told.starts_with("Lambda panicked: "), "{told}");

    clock.says("+0s");
    for uuid in [2, 3] {
        created(deliver(&function, uuid).await);
    }
    assert_eq!(lab.kubernetes.jobs().len(), 3);
    let printed = function.stop().await.text;
    assert!(printed.contains("panicked at"), "{printed}");
    for secret in [lab.agent_token(), &BASE64_STANDARD.encode(lab.agent_token()), "k8s-aws-v1."] {
        assert!(!told.contains(secret) && !printed.contains(secret), "{secret} is in: {told}\n{printed}");
    }
}
