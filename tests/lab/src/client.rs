//! A bare HTTP client, for tests and benchmarks: one connection, one request after the other, and one bearer token.

use std::{error::Error, sync::Arc};

use axum::body::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    http::{
        Uri,
        header::{AUTHORIZATION, CONTENT_TYPE, HOST},
        request::Builder,
        uri::Authority,
    },
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

type Failure = Box<dyn Error + Send + Sync>;

/// Sends requests one after the other, on one connection.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    url: Uri,
    ca_pem: String,
    connects_again: bool,
    authorization: Option<String>,
}

impl Client {
    /// Connects to a URL of the lab; trusts only this authority.
    pub async fn connect(url: &str, ca_pem: &str) -> Result<Self, Failure> {
        let url: Uri = url.parse()?;
        let sender = connect(&url, ca_pem).await?;
        Ok(Self { sender, url, ca_pem: ca_pem.to_owned(), connects_again: false, authorization: None })
    }

    /// Opens another connection when the server has closed the first one, which was idle.
    #[must_use]
    pub fn connecting_again(self) -> Self {
        Self { connects_again: true, ..self }
    }

    /// Sends this bearer token with each request.
    #[must_use]
    pub fn with_token(self, token: &str) -> Self {
        Self { authorization: Some(format!("Bearer {token}")), ..self }
    }

    /// Sends a request for a path, and waits for the whole answer.
    pub async fn try_send(&mut self, request: Builder, body: impl Into<Bytes>) -> Result<Response<Bytes>, Failure> {
        let (parts, body) = self.request(request, body).await?.into_parts();
        Ok(Response::from_parts(parts, body.collect().await?.to_bytes()))
    }

    async fn request(&mut self, request: Builder, body: impl Into<Bytes>) -> Result<Response<Incoming>, Failure> {
        let request = match &self.authorization {
            Some(authorization) => request.header(AUTHORIZATION, authorization),
            None => request,
        };
        let host = self.url.authority().map_or("", Authority::as_str);
        let request: Request<_> = request.header(HOST, host).body(Full::from(body.into()))?;
        match self.sender.ready().await {
            Err(_) if self.connects_again => self.sender = connect(&self.url, &self.ca_pem).await?,
            ready => ready?,
        }
        Ok(self.sender.send_request(request).await?)
    }

    /// Hands each line of an answer that does not end, such as that of a watch, to `each`; returns when the connection ends.
    pub(crate) async fn follow(&mut self, path: &str, mut each: impl FnMut(Value)) -> Result<(), Failure> {
        let mut body = self.request(Request::get(path), "").await?.into_body();
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            text.extend_from_slice(frame?.data_ref().map_or(&[], |data| data));
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                each(serde_json::from_slice(&text.drain(..=end).collect::<Vec<_>>())?);
            }
        }
        Ok(())
    }

    /// The same; panics if there is no answer, as all methods below.
    pub async fn send(&mut self, request: Builder, body: impl Into<Bytes>) -> Response<Bytes> {
        self.try_send(request, body).await.expect("the server answers")
    }

    /// Status and body of the answer, as JSON or else as text.
    pub async fn ask(&mut self, request: Builder, body: impl Into<Bytes>) -> (u16, Value) {
        let response = self.send(request, body).await;
        let text = || String::from_utf8_lossy(response.body()).into_owned();
        let body = serde_json::from_slice(response.body()).unwrap_or_else(|_| Value::String(text()));
        (response.status().as_u16(), body)
    }

    /// Reads.
    pub async fn get(&mut self, path: &str) -> (u16, Value) {
        self.ask(Request::get(path), "").await
    }

    /// Creates.
    pub async fn post(&mut self, path: &str, object: &Value) -> (u16, Value) {
        self.ask(Request::post(path).header(CONTENT_TYPE, "application/json"), object.to_string()).await
    }

    /// Replaces.
    pub async fn put(&mut self, path: &str, object: &Value) -> (u16, Value) {
        self.ask(Request::put(path).header(CONTENT_TYPE, "application/json"), object.to_string()).await
    }

    /// Changes by a merge patch.
    pub async fn patch(&mut self, path: &str, changes: &Value) -> (u16, Value) {
        self.ask(Request::patch(path).header(CONTENT_TYPE, "application/merge-patch+json"), changes.to_string()).await
    }

    /// Applies server-side; the path names the field manager.
    pub async fn apply(&mut self, path: &str, object: &Value) -> (u16, Value) {
        self.ask(Request::patch(path).header(CONTENT_TYPE, "application/apply-patch+yaml"), object.to_string()).await
    }

    /// Deletes.
    pub async fn delete(&mut self, path: &str) -> (u16, Value) {
        self.ask(Request::delete(path), "").await
    }

    /// Deletes with `DeleteOptions`.
    pub async fn delete_with(&mut self, path: &str, options: &Value) -> (u16, Value) {
        self.ask(Request::delete(path).header(CONTENT_TYPE, "application/json"), options.to_string()).await
    }
}

async fn connect(url: &Uri, ca_pem: &str) -> Result<SendRequest<Full<Bytes>>, Failure> {
    let authority = url.authority().ok_or("no authority")?;
    let stream = TcpStream::connect(authority.as_str()).await?;
    if url.scheme_str() == Some("https") {
        let name = ServerName::try_from(authority.host().to_owned())?;
        open(tls(ca_pem)?.connect(name, stream).await?).await
    } else {
        open(stream).await
    }
}

async fn open(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Full<Bytes>>, Failure> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

fn tls(ca_pem: &str) -> Result<TlsConnector, Failure> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes())?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
