use super::*;
use crate::Lab;

#[tokio::test]
async fn a_process_that_ends_answers_with_its_end() {
    let lab = Lab::start().await;
    let function = lab.function("/bin/false").start();
    let Answer::Exited(output) = function.invoke("{}").await else { panic!("it answered") };
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(function.initialised().await, Err(Answer::Exited(output.clone())));
    assert_eq!(function.stop().await, output);
}

#[tokio::test]
async fn a_process_gets_what_lambda_gives_and_nothing_else() {
    let lab = Lab::start().await;
    let function = lab.function("/usr/bin/env").env("JOB_TTL_SECONDS", "60").env_remove("BUILDKITE_QUEUE").start();
    let text = function.exit().await.text;
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    assert_eq!(value("AWS_LAMBDA_FUNCTION_NAME"), Some("agent-scheduler"));
    assert_eq!(value("AWS_ENDPOINT_URL"), Some(lab.aws.url().as_str()));
    assert_eq!(value("AWS_SESSION_TOKEN").map(str::len), Some(1000));
    assert_eq!(value("JOB_TTL_SECONDS"), Some("60"));
    assert_eq!(value("BUILDKITE_QUEUE"), None);
    assert_eq!(value("HOME"), None, "variables of the test do not reach it");
    assert!(value("AWS_LAMBDA_RUNTIME_API").is_some());
}

#[tokio::test]
async fn a_missing_binary_is_an_error() {
    let lab = Lab::start().await;
    assert!(lab.function("/no/such/binary").try_start().is_err());
}
