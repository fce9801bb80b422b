//! A function whose output nobody takes: an event is not lost for its log line.

use lab::{Answer, Lab};

const FUNCTION: &str = env!("CARGO_BIN_EXE_agent-scheduler");
const SCHEDULED: &str = include_str!("../events/job-scheduled.json");

/// What a shell does with both outputs.
async fn an_event_has_its_job(redirection: &str) {
    let lab = Lab::start().await;
    let script = format!("exec \"$0\" {redirection}");
    let function = lab.function(FUNCTION).under(["bash", "-c", &script]).env("AWS_LAMBDA_LOG_LEVEL", "TRACE").start();
    for (event, outcome) in [(SCHEDULED, "created"), ("{}", "InvalidEvent"), (SCHEDULED, "already-exists")] {
        match function.invoke(event).await {
            Answer::Success(answer) => assert_eq!(answer["outcome"], outcome),
            Answer::Error { error_type, error_message } => assert_eq!(error_type, outcome, "{error_message}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(lab.kubernetes.jobs().len(), 1);
    assert_eq!(function.stop().await.text, "", "the output went elsewhere");
}

#[tokio::test]
async fn a_full_disk_costs_no_event() {
    an_event_has_its_job("> /dev/full 2>&1").await;
}

#[tokio::test]
async fn a_broken_pipe_costs_no_event() {
    an_event_has_its_job("> >(exec 0<&-) 2>&1").await;
}

#[tokio::test]
async fn a_closed_output_costs_no_event() {
    an_event_has_its_job(">&- 2>&-").await;
}
