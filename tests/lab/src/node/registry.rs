//! The registry of the node, which its pods' images name as `registry.example`. The name of a repository says how it answers:
//!
//! | repository | answer |
//! | --- | --- |
//! | `100-seconds` | an image without a file and without a command; its manifest takes as many seconds |
//! | `404`, `429`, … | this status |
//! | `denied` | a token, and with that 401, as Docker Hub answers for what is private or does not exist |
//! | `silent` | none |

use std::{convert::Infallible, future::pending, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::Path,
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use http_body_util::Channel;
use serde_json::{Value, json};
use tokio::time::sleep;

/// Its name in the reference of an image.
pub(super) const NAME: &str = "registry.example";

/// The end of a tar archive, and so an empty one.
const LAYER: &[u8] = &[0; 1024];

pub(super) fn routes() -> Router {
    Router::new()
        .route("/token", get(async || Json(json!({"token": "of-the-lab"}))))
        .route("/v2/{repository}/manifests/{reference}", get(manifest))
        .route("/v2/{repository}/blobs/{digest}", get(blob))
}

async fn manifest(Path((repository, _)): Path<(String, String)>, method: Method, headers: HeaderMap) -> Response {
    if let Some(seconds) = repository.strip_suffix("-seconds").and_then(|seconds| seconds.parse().ok()) {
        return slowly(image(seconds), &method);
    }
    match &*repository {
        "silent" => pending().await,
        "denied" => {
            let host = headers[header::HOST].to_str().unwrap_or_default();
            let error = headers.get(header::AUTHORIZATION).map_or("", |_| ",error=\"insufficient_scope\"");
            let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"{NAME}\"{error}");
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response()
        }
        status => {
            status.parse().ok().and_then(|code| StatusCode::from_u16(code).ok()).expect("a status").into_response()
        }
    }
}

async fn blob(Path((_, wanted)): Path<(String, String)>) -> Response {
    if wanted == sha256(LAYER) { LAYER.into_response() } else { config().into_response() }
}

/// The manifest, and a space for each second.
fn image(seconds: usize) -> String {
    let blob =
        |kind: &str, content: &[u8]| json!({"mediaType": kind, "digest": sha256(content), "size": content.len()});
    let manifest: Value = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": blob("application/vnd.docker.container.image.v1+json", config().as_bytes()),
        "layers": [blob("application/vnd.docker.image.rootfs.diff.tar", LAYER)],
    });
    format!("{manifest}{}", " ".repeat(seconds))
}

fn config() -> String {
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let root = json!({"type": "layers", "diff_ids": [sha256(LAYER)]});
    json!({"architecture": architecture, "os": "linux", "config": {}, "rootfs": root}).to_string()
}

/// A byte of its end a second: a pull of which no byte comes for a minute is given up.
fn slowly(manifest: String, method: &Method) -> Response {
    let headers = [
        ("content-type", "application/vnd.docker.distribution.manifest.v2+json".to_owned()),
        ("content-length", manifest.len().to_string()),
        ("docker-content-digest", sha256(manifest.as_bytes())),
    ];
    if *method == Method::HEAD {
        return headers.into_response();
    }
    let (mut sender, body) = Channel::<_, Infallible>::new(1);
    tokio::spawn(async move {
        let (now, later) = manifest.split_at(manifest.trim_end().len());
        let mut sent = sender.send_data(Bytes::copy_from_slice(now.as_bytes())).await;
        for _ in later.bytes() {
            sleep(Duration::from_secs(1)).await;
            sent = sent.and(sender.send_data(Bytes::from_static(b" ")).await);
        }
        // The client may have left.
        drop(sent);
    });
    (headers, Body::new(body)).into_response()
}

fn sha256(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(digest(&SHA256, content)))
}
