//! The start-up of the Lambda function: logs, settings, clients, and then one invocation after the other.

use std::{cell::Cell, env, error::Error, mem, process::ExitCode};

use agent_scheduler::{
    aws,
    config::Config,
    deadline::{Deadline, START_TIMEOUT},
    https, lambda, log,
    scheduler::Scheduler,
    text::chain,
};
use bytes::Bytes;
use http::Request;
use lambda_runtime::{Diagnostic, LambdaEvent, LambdaInvocation, Runtime, service_fn};
use lambda_runtime_api_client::{PooledClient, body::Body};
use serde::de::IgnoredAny;
use tower::{BoxError, util::MapRequestLayer};

// One event at a time, so one thread: tasks that run side by side wait for the network.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    log::init(|name| env::var(name).ok());
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
    // Take the payload before the runtime reads it: an event is read once, and input that is not one fails with our error.
    let payload = Cell::new(Bytes::new());
    let take_payload = |mut invocation: LambdaInvocation| {
        payload.set(mem::replace(&mut invocation.body, Bytes::from_static(b"null")));
        invocation
    };
    let handler = service_fn(async |LambdaEvent { context, .. }: LambdaEvent<IgnoredAny>| {
        let payload = payload.take();
        // Lambda takes JSON alone, which is UTF-8.
        let payload = str::from_utf8(&payload).unwrap_or_default();
        let (request_id, xray_trace_id) = (&*context.request_id, context.xray_trace_id.as_deref());
        log::Span::Invocation { request_id, xray_trace_id }
            .of(lambda::handle(scheduler, payload, Deadline::of_invocation(context.deadline())))
            .await
            .map_err(|error| Diagnostic { error_type: error.kind().to_owned(), error_message: chain(&error) })
    });
    Runtime::new(handler).layer(MapRequestLayer::new(take_payload)).run().await
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
