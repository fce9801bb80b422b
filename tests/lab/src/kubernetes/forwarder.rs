//! A forwarder to a cluster that has never heard of the function's role: judges the EKS token as EKS does, and then lets the request
//! through with the rights of somebody else.

use std::{collections::HashSet, sync::Arc, time::SystemTime};

use axum::{
    Router,
    body::Bytes,
    extract::{Request as HttpRequest, State},
    http::{
        HeaderMap, HeaderName, StatusCode,
        header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER},
        request::Parts,
    },
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use parking_lot::Mutex;

use super::{
    USER,
    api::{ApiServer, bearer_token},
    status::Status,
};
use crate::{
    Lab,
    certificates::Certificate,
    eks_token::Verifier,
    exchange::Caller,
    kubeconfig::Cluster,
    server::{Server, Service},
    timeline::{Actor, Kind, Timeline},
};

struct Forwarder {
    verifier: Verifier,
    cluster: Cluster,
    timeline: Timeline,
    /// Each is spoken of only once.
    accepted: Mutex<HashSet<String>>,
}

impl Forwarder {
    fn judge(&self, headers: &HeaderMap) -> Result<(), String> {
        let token = bearer_token(headers)?;
        let now = SystemTime::now();
        let identity = self.verifier.verify(token, now).map_err(|refusal| refusal.to_string())?;
        if self.accepted.lock().insert(token.to_owned()) {
            self.timeline.record(Actor::Kubernetes, Kind::accepted(&identity.cluster, identity.signed_at, now));
        }
        Ok(())
    }
}

impl Lab {
    /// Leads all functions from here on to a cluster of the user's own, through a forwarder that judges their EKS tokens.
    ///
    /// What [`Self::kubernetes`] is told to do wrong befalls what comes to the forwarder, and it has seen the forwarder's requests.
    pub async fn forward_to(&mut self, cluster: Cluster) {
        let log = self.kubernetes.log.clone();
        let timeline = self.timeline.clone();
        let forwarder =
            Arc::new(Forwarder { verifier: self.verifier(), cluster, timeline, accepted: Mutex::default() });
        let routes = Router::new()
            .fallback(forward)
            .layer(from_fn_with_state(Arc::clone(&forwarder), authenticate))
            .with_state(forwarder);
        let service = Service {
            actor: Actor::Kubernetes,
            router: log.around(routes, ApiServer),
            faults: log.faults,
            timeline: log.timeline,
            certificates: None,
        };
        let tls = self.certificates.server(Certificate::Good);
        let server = Server::listen([127, 0, 0, 1].into(), Some(tls), service).await;
        self.set_endpoint(format!("https://{}", server.authority()), self.certificates.ca_data());
        self.forwarder = Some(server);
    }
}

async fn authenticate(State(forwarder): State<Arc<Forwarder>>, request: HttpRequest, next: Next) -> Response {
    let (caller, mut response) = match forwarder.judge(request.headers()) {
        Ok(()) => (Caller::User(USER.to_owned()), next.run(request).await),
        Err(reason) => (Caller::Refused(reason), Status::unauthorized().into_response()),
    };
    response.extensions_mut().insert(caller);
    response
}

/// The function's token stays here, and all that makes an answer goes back.
async fn forward(State(forwarder): State<Arc<Forwarder>>, mut parts: Parts, body: Bytes) -> Response {
    parts.headers = only(&parts.headers, &[ACCEPT, CONTENT_TYPE]);
    match forwarder.cluster.send(parts, body).await {
        Ok((parts, body)) => {
            let headers = only(&parts.headers, &[CONTENT_TYPE, RETRY_AFTER]);
            (parts.status, headers, body).into_response()
        }
        Err(problem) => (StatusCode::BAD_GATEWAY, format!("the cluster cannot be asked: {problem}")).into_response(),
    }
}

fn only(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    names.iter().filter_map(|name| Some((name.clone(), headers.get(name)?.clone()))).collect()
}
