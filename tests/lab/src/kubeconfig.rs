//! A cluster of the user's own, with the rights of their kubeconfig.

use std::{path::Path, sync::Arc};

use axum::body::Bytes;
use hyper::{
    Request, Response,
    header::{ACCEPT, HeaderValue},
    http::{request, response},
};
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use serde_json::Value;
use tokio_rustls::rustls::crypto::aws_lc_rs;

/// The format of `kubectl get`: the API server makes the table.
const TABLE: HeaderValue = HeaderValue::from_static("application/json;as=Table;g=meta.k8s.io;v=v1");

/// One context of a kubeconfig. Clones are the same one.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    url: Arc<str>,
}

/// Why a cluster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// No kubeconfig, no such context, or an incomplete one.
    #[error("{0}")]
    Kubeconfig(#[from] KubeconfigError),
    /// The cluster cannot be reached, or its answer is not a table.
    #[error("{0}")]
    Cluster(#[from] kube::Error),
}

impl Cluster {
    /// Reads a context from `$KUBECONFIG` or `~/.kube/config`, or from a file.
    pub async fn of_context(context: &str, file: Option<&Path>) -> Result<Self, Problem> {
        let kubeconfig = match file {
            Some(file) => Kubeconfig::read_from(file)?,
            None => Kubeconfig::read()?,
        };
        let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        // The function under test must see every failure.
        config.default_retry = false;
        let url = config.cluster_url.to_string().into();
        // kube requires a default of the process, which may be set already.
        let _ = aws_lc_rs::default_provider().install_default();
        Ok(Self { client: Client::try_from(config)?, url })
    }

    /// Where its API server is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Forwards a request; of its URL only the path counts.
    pub(crate) async fn send(&self, parts: request::Parts, body: Bytes) -> kube::Result<(response::Parts, Bytes)> {
        let request = Request::from_parts(parts, Body::from(body.to_vec()));
        let (parts, body) = self.client.send(request).await?.into_parts();
        let body = Response::new(body).into_body().collect_bytes().await?;
        Ok((parts, body))
    }

    /// Reads an object or a list.
    pub async fn get(&self, path: &str) -> Result<Value, Problem> {
        let request = Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        Ok(self.client.request(request).await?)
    }

    /// Lists objects as `kubectl get` does, a line each and one above them.
    pub async fn table(&self, path: &str) -> Result<String, Problem> {
        let request = Request::get(path).header(ACCEPT, TABLE).body(Vec::new()).map_err(kube::Error::HttpError)?;
        Ok(print(&self.client.request(request).await?))
    }
}

/// The columns that kubectl shows without `-o wide`, each as wide as its widest cell.
fn print(table: &Value) -> String {
    let rows = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |cell: &Value| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned);
    let mut columns: Vec<Vec<String>> = Vec::new();
    for (index, column) in rows(&table["columnDefinitions"]).iter().enumerate() {
        if column["priority"] != 0 {
            continue;
        }
        let head = text(&column["name"]).to_uppercase();
        let cells = rows(&table["rows"]).into_iter().map(|row| text(&row["cells"][index]));
        columns.push([head].into_iter().chain(cells).collect());
    }
    let width = |column: &Vec<String>| column.iter().map(String::len).max().unwrap_or_default();
    let height = columns.first().map_or(0, Vec::len);
    let line = |row: usize| {
        let cells = columns.iter().map(|column| format!("{:<1$}", column[row], width(column) + 3));
        cells.collect::<String>().trim_end().to_owned() + "\n"
    };
    (0..height).map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::print;

    #[test]
    fn a_table_shows_what_kubectl_shows() {
        let table = json!({
            "columnDefinitions": [
                {"name": "Name", "priority": 0}, {"name": "Data", "priority": 0}, {"name": "Images", "priority": 1},
            ],
            "rows": [{"cells": ["buildkite-agent-token", 1, "x"]}, {"cells": ["a", 22, "y"]}],
        });
        let expected = "NAME                    DATA\nbuildkite-agent-token   1\na                       22\n";
        assert_eq!(print(&table), expected);
    }
}
