//! A client of the API server, with a connection of its own.

use axum::body::Bytes;
use hyper::{
    Method, Request, Response,
    header::{AUTHORIZATION, CONTENT_TYPE},
    http::request::Builder,
};
use serde_json::Value;

use crate::client::Client;

/// Sends one bearer token. Its methods panic if the server does not answer.
pub struct Caller {
    client: Client,
    token: String,
}

impl Caller {
    /// Over this connection, with this bearer token.
    pub fn new(client: Client, token: &str) -> Self {
        Self { client, token: format!("Bearer {token}") }
    }

    /// Sends a request for a path, and waits for the whole answer.
    pub async fn send(&mut self, request: Builder, body: impl Into<Bytes>) -> Response<Bytes> {
        let request = request.header(AUTHORIZATION, &self.token);
        self.client.send(request, body).await.expect("the API server answers")
    }

    /// Reads.
    pub async fn get(&mut self, path: &str) -> (u16, Value) {
        self.ask(Method::GET, path, "application/json", String::new()).await
    }

    /// Creates.
    pub async fn post(&mut self, path: &str, object: &Value) -> (u16, Value) {
        self.ask(Method::POST, path, "application/json", object.to_string()).await
    }

    /// Replaces.
    pub async fn put(&mut self, path: &str, object: &Value) -> (u16, Value) {
        self.ask(Method::PUT, path, "application/json", object.to_string()).await
    }

    /// Changes by a merge patch.
    pub async fn patch(&mut self, path: &str, changes: &Value) -> (u16, Value) {
        self.ask(Method::PATCH, path, "application/merge-patch+json", changes.to_string()).await
    }

    /// Applies server-side; the path names the field manager.
    pub async fn apply(&mut self, path: &str, object: &Value) -> (u16, Value) {
        self.ask(Method::PATCH, path, "application/apply-patch+yaml", object.to_string()).await
    }

    /// Deletes.
    pub async fn delete(&mut self, path: &str) -> (u16, Value) {
        self.ask(Method::DELETE, path, "application/json", String::new()).await
    }

    async fn ask(&mut self, method: Method, path: &str, content: &str, body: String) -> (u16, Value) {
        let response = self.send(Request::builder().method(method).uri(path).header(CONTENT_TYPE, content), body).await;
        let text = || String::from_utf8_lossy(response.body()).into_owned();
        let body = serde_json::from_slice(response.body()).unwrap_or_else(|_| Value::String(text()));
        (response.status().as_u16(), body)
    }
}
