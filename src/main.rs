//! The start-up of the Lambda function: logs, settings, clients, and then one invocation after the other.

use std::{env, error::Error, process::ExitCode};

use agent_scheduler::{
    aws,
    config::Config,
    deadline::{Deadline, START_TIMEOUT},
    https, lambda,
    scheduler::Scheduler,
    text::chain,
};
use http::Request;
use lambda_runtime::{
    Diagnostic, LambdaEvent, service_fn,
    tracing::subscriber::{
        filter::{LevelFilter, Targets},
        fmt,
        prelude::*,
        registry,
    },
};
use lambda_runtime_api_client::{PooledClient, body::Body};
use serde_json::value::RawValue;
use tower::BoxError;

// One event at a time, so one thread: tasks that run side by side wait for the network.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    logs();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "agent-scheduler starts");
    let proxies = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    if let Some(proxy) = proxies.into_iter().find(|name| env::var_os(name).is_some_and(|value| !value.is_empty())) {
        tracing::warn!("{proxy} is not used: the function connects to AWS and to the API server directly");
    }
    let scheduler = match scheduler().await {
        Ok(scheduler) => scheduler,
        Err(error) => {
            if let Err(unreported) = report_init_error(&*error).await {
                tracing::error!(error = chain(&*unreported), "cannot report the error to Lambda");
            }
            tracing::error!(error = chain(&*error), "the function cannot start");
            return ExitCode::FAILURE;
        }
    };
    match serve(&scheduler).await {
        Ok(()) => ExitCode::SUCCESS,
        // As after a local invocation. Lambda itself freezes the process, or kills it.
        Err(error) => {
            tracing::info!(reason = chain(&*error), "Lambda's Runtime API is gone, and the function ends");
            ExitCode::FAILURE
        }
    }
}

/// What must be right before the first event: the settings. All else may pass, and the first event tries it again.
async fn scheduler() -> Result<Scheduler, BoxError> {
    let config = Config::read(|name| env::var(name).ok())?;
    let credentials = aws::credentials().await?;
    let var = |name: &str| env::var(name).ok();
    let roots = https::roots(var)?;
    let sdk = aws::sdk_config(&config.region, credentials.clone(), roots.clone(), var)?;
    Ok(Scheduler::new(config, credentials, &sdk, roots))
}

async fn serve(scheduler: &Scheduler) -> Result<(), BoxError> {
    if let Err(error) = scheduler.start(Deadline::after(START_TIMEOUT)).await {
        // The first event tries again, and reports the error if that fails too.
        tracing::warn!(error_type = error.kind(), error = chain(&error), "start-up is not complete");
    }
    // Take the payload raw, so that input that is not an event fails with our error, not the runtime's.
    lambda_runtime::run(service_fn(async move |event: LambdaEvent<Box<RawValue>>| {
        lambda::handle(scheduler, event.payload.get(), Deadline::of_invocation(event.context.deadline()))
            .await
            .map_err(|error| Diagnostic { error_type: error.kind().to_owned(), error_message: chain(&error) })
    }))
    .await
}

/// Reports to Lambda why the function cannot start: an operator finds the text with the function's other errors.
async fn report_init_error(error: &(dyn Error + Send + Sync)) -> Result<(), BoxError> {
    let diagnostic = Diagnostic { error_type: "InvalidConfig".to_owned(), error_message: chain(error) };
    let request = Request::post("/2018-06-01/runtime/init/error")
        .header("lambda-runtime-function-error-type", "Runtime.InvalidConfig")
        .body(Body::from(serde_json::to_vec(&diagnostic)?))?;
    PooledClient::builder().build().call(request).await?;
    Ok(())
}

/// Lines on standard output, in the format and from the level that the function's logging settings ask for.
///
/// Libraries log warnings and errors only: at a finer level they print whole events and the answer of SSM.
fn logs() {
    let level = match env::var("AWS_LAMBDA_LOG_LEVEL").as_deref() {
        // A level of Lambda's own.
        Ok("FATAL") => LevelFilter::ERROR,
        Ok(level) => level.parse().unwrap_or(LevelFilter::INFO),
        Err(_) => LevelFilter::INFO,
    };
    let filter = Targets::new()
        .with_target("agent_scheduler", level)
        // Its span gives every line the request's id.
        .with_target("lambda_runtime", level.min(LevelFilter::INFO))
        // It repeats every error that is reported already; Rust itself reports a panic.
        .with_target("lambda_runtime::layers::panic", LevelFilter::OFF)
        .with_default(level.min(LevelFilter::WARN));
    let lines = fmt::layer().with_target(false);
    if env::var("AWS_LAMBDA_LOG_FORMAT").is_ok_and(|format| format.eq_ignore_ascii_case("json")) {
        // With its time: Lambda takes a line without one for INFO, whatever its level.
        registry().with(filter).with(lines.json().flatten_event(true).with_span_list(false)).init();
    } else {
        registry().with(filter).with(lines.without_time()).init();
    }
}
