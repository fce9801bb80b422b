//! The floor under the bench: what a function costs that takes an event and does nothing but POST a fixed body, over the same
//! TLS stack, without any SDK.

use std::env;

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{Request, header};
use http_body_util::BodyExt;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use lambda_runtime::{LambdaEvent, service_fn};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::de::IgnoredAny;
use tower::BoxError;

const JOB: &str = include_str!("job.json");

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let pem = BASE64_STANDARD.decode(env::var("KUBERNETES_CERTIFICATE_AUTHORITY_DATA")?)?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem)?)?;
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
    let client = Client::builder(TokioExecutor::new()).build(https);
    let jobs = format!("{}/apis/batch/v1/namespaces/buildkite/jobs", env::var("KUBERNETES_API_SERVER_ENDPOINT")?);
    let authorization = format!("Bearer {}", env::var("FLOOR_TOKEN")?);

    let (client, jobs, authorization) = (&client, &jobs, &authorization);
    lambda_runtime::run(service_fn(|_: LambdaEvent<IgnoredAny>| async move {
        let request = Request::post(jobs)
            .header(header::AUTHORIZATION, authorization)
            .header(header::CONTENT_TYPE, "application/json")
            .body(JOB.to_owned())?;
        let response = client.request(request).await?;
        let status = response.status();
        // To the end, or the connection could not be used again.
        response.into_body().collect().await?;
        if status.is_success() { Ok(status.as_u16()) } else { Err(BoxError::from(status.to_string())) }
    }))
    .await
}
