//! A proxy to a cluster that does not know the function's role: it authenticates the EKS token as EKS does, and forwards the request
//! with the rights of a kubeconfig.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{
        HeaderMap, HeaderName, StatusCode,
        header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER},
        request::Parts,
    },
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
};

use super::api::{API_SERVER, authenticate};
use crate::{Lab, certificates::Certificate, kubeconfig::Cluster, server::Server, timeline::Actor};

impl Lab {
    /// Makes all functions from here on use a cluster of the user's own, through a proxy that verifies their EKS tokens.
    ///
    /// Faults of [`Self::kubernetes`] apply to the requests of this proxy, and it records them.
    pub async fn forward_to(&mut self, cluster: Cluster) {
        let kubernetes = &self.kubernetes;
        let authenticate = from_fn_with_state(Arc::clone(&kubernetes.api), authenticate);
        let routes = Router::new().fallback(forward).layer(authenticate).with_state(cluster);
        let service = kubernetes.stand_in.service(Actor::Kubernetes, routes, API_SERVER);
        let tls = self.certificates.server(Certificate::Good);
        let server = Server::listen([127, 0, 0, 1].into(), Some(tls), service).await;
        self.set_endpoint(server.url(), self.certificates.ca_data());
        self.forwarder = Some(server);
    }
}

/// The function's token is not forwarded; the answer is, without the headers of the connection.
async fn forward(State(cluster): State<Cluster>, mut parts: Parts, body: Bytes) -> Response {
    parts.headers = only(&parts.headers, &[ACCEPT, CONTENT_TYPE]);
    match cluster.send(parts, body).await {
        Ok((parts, body)) => {
            let headers = only(&parts.headers, &[CONTENT_TYPE, RETRY_AFTER]);
            (parts.status, headers, body).into_response()
        }
        Err(problem) => (StatusCode::BAD_GATEWAY, format!("the cluster cannot be reached: {problem}")).into_response(),
    }
}

fn only(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    names.iter().filter_map(|name| Some((name.clone(), headers.get(name)?.clone()))).collect()
}
