//! The stand-in for STS, which the real aws-iam-authenticator asks who signed a token.
//!
//! It is the HTTPS proxy of the authenticator: it answers for the STS host itself, and refuses all other hosts.

use std::{io, sync::Arc, time::SystemTime};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header::HOST},
    response::{IntoResponse, Response},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    aws::{ACCOUNT, REGION, ROLE, SESSION},
    certificates::Certificates,
    eks_token::{CLUSTER_HEADER, Refusal, Verifier},
    server::{Service, serve_http},
    timeline::{Actor, Kind, Timeline},
    wire::Ending,
};

/// More than any `CONNECT` request takes.
const MAX_HEAD_BYTES: usize = 8 * 1024;

/// The stand-in for the region's STS. Dropping it ends it.
pub(crate) struct Sts {
    url: String,
    keys: Keys,
    _loop: JoinSet<()>,
}

/// The valid keys, each with the timeline that records their use.
type Keys = Arc<Mutex<Vec<(Verifier, Timeline)>>>;

impl Sts {
    pub(crate) async fn start(certificates: &Certificates) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let keys = Keys::default();
        let host = format!("sts.{REGION}.amazonaws.com");
        let tls = TlsAcceptor::from(certificates.server_of(&host));
        let router = Router::new().fallback(get_caller_identity).with_state(Arc::clone(&keys));
        let service = Service::new(Actor::Sts, router, &Timeline::start());
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, format!("CONNECT {host}:443 "), tls, service));
        Ok(Self { url, keys, _loop: accepting })
    }

    /// The `HTTPS_PROXY` of the authenticator.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Adds keys of the role.
    pub(crate) fn know(&self, verifier: Verifier, timeline: Timeline) {
        self.keys.lock().push((verifier, timeline));
    }
}

async fn accept(listener: TcpListener, wanted: String, tls: TlsAcceptor, service: Service) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        let (wanted, tls, service) = (wanted.clone(), tls.clone(), service.clone());
        connections.spawn(async move {
            // A client may close a connection early.
            let _ = tunnel(stream, &wanted, tls, service).await;
        });
    }
}

/// Serves the one host that is allowed.
async fn tunnel(mut stream: TcpStream, wanted: &str, tls: TlsAcceptor, service: Service) -> io::Result<()> {
    let mut head = Vec::new();
    // The client sends no more until it is answered.
    while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD_BYTES {
        head.push(stream.read_u8().await?);
    }
    if !head.starts_with(wanted.as_bytes()) {
        return stream.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").await;
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    serve_http(tls.accept(stream).await?, Ending::default(), service).await;
    Ok(())
}

async fn get_caller_identity(State(keys): State<Keys>, request: Request) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let (host, cluster) = (header(request.headers(), HOST.as_str()), header(request.headers(), CLUSTER_HEADER));
    let known = keys.lock().iter().find(|(verifier, _)| query.contains(&verifier.access_key_id)).cloned();
    let Some((verifier, timeline)) = known else { return refused(&Refusal::AccessKey) };
    let verifier = Verifier { cluster: cluster.to_owned(), ..verifier };
    let now = SystemTime::now();
    match verifier.verify_as_sts(host, query, now) {
        Ok(signed_at) => {
            timeline.record(Actor::Sts, Kind::accepted(cluster, signed_at, now));
            Json(identity()).into_response()
        }
        Err(refusal) => {
            timeline.record(Actor::Sts, Kind::TokenRefused(refusal.to_string()));
            refused(&refusal)
        }
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn identity() -> Value {
    json!({"GetCallerIdentityResponse": {
        "GetCallerIdentityResult": {
            "Account": ACCOUNT,
            "Arn": format!("arn:aws:sts::{ACCOUNT}:assumed-role/{ROLE}/{SESSION}"),
            "UserId": format!("AROAEXAMPLEROLEID:{SESSION}"),
        },
        "ResponseMetadata": {"RequestId": "11111111-2222-4333-8444-555555555599"},
    }})
}

fn refused(refusal: &Refusal) -> Response {
    let code = if *refusal == Refusal::AccessKey || *refusal == Refusal::SessionToken {
        "InvalidClientTokenId"
    } else {
        "SignatureDoesNotMatch"
    };
    let error = json!({"Error": {"Code": code, "Message": refusal.to_string(), "Type": "Sender"}});
    (StatusCode::FORBIDDEN, Json(error)).into_response()
}
