//! The process of the function under conditions that no event causes: an output that cannot be written, and a panic.
//!
//! `make faketime` installs what the panic needs.

mod common;

use lab::Event;

use common::{Clock, Fixture};

#[tokio::test]
async fn an_output_that_cannot_be_written_fails_no_event() {
    for (output, redirection) in
        [("full disk", "> /dev/full 2>&1"), ("broken pipe", "> >(exec 0<&-) 2>&1"), ("closed", ">&- 2>&-")]
    {
        let script = format!("exec \"$0\" {redirection}");
        let fixture =
            Fixture::with(|_, function| function.under(["bash", "-c", &script]).env("AWS_LAMBDA_LOG_LEVEL", "TRACE"))
                .await;
        let Fixture { lab, function } = &fixture;
        assert_eq!(function.succeed(Event::scheduled()).await["outcome"], "created", "{output}");
        assert_eq!(function.fail("{}").await.0, "InvalidEvent", "{output}");
        assert_eq!(function.succeed(Event::scheduled()).await["outcome"], "already-exists", "{output}");
        assert_eq!(lab.kubernetes.jobs().len(), 1, "{output}");
        assert_eq!(fixture.end().await.text, "", "{output}");
    }
}

/// No event causes a panic, but a clock does: rustls panics if the time is before 1970.
#[tokio::test]
async fn a_panic_fails_one_event_and_the_next_one_succeeds() {
    let clock = Clock::new("panic");
    let fixture = Fixture::with(|_, function| clock.give(function).env("FAKETIME_DONT_FAKE_MONOTONIC", "1")).await;
    let Fixture { lab, function } = &fixture;
    let event = |number: u128| Event::scheduled().uuid(uuid::Uuid::from_u128(number));
    assert_eq!(function.succeed(event(1)).await["outcome"], "created");

    clock.set("@1960-01-01 00:00:00");
    lab.kubernetes.close_connections();
    let (_, error_message) = function.fail(event(2)).await;
    assert!(error_message.starts_with("Lambda panicked: "), "{error_message}");
    assert!(function.output().contains("panicked at"), "{}", function.output());

    clock.set("+0s");
    for number in [2, 3] {
        assert_eq!(function.succeed(event(number)).await["outcome"], "created");
    }
    assert_eq!(lab.kubernetes.jobs().len(), 3);
    fixture.end().await;
}
