//! A gate to a cluster that has never heard of the function's role: judges the EKS token as EKS does, and then lets the request
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
    api::{ApiServer, accepted, bearer_token},
    status::Status,
};
use crate::{
    Lab,
    certificates::Certificate,
    eks_token::Verifier,
    exchange::Caller,
    kubeconfig::Cluster,
    server::{Server, Site},
    timeline::{Actor, Timeline},
};

struct Gate {
    verifier: Verifier,
    cluster: Cluster,
    timeline: Timeline,
    /// Each is spoken of only once.
    accepted: Mutex<HashSet<String>>,
}

impl Gate {
    fn judge(&self, headers: &HeaderMap) -> Result<(), String> {
        let token = bearer_token(headers)?;
        let now = SystemTime::now();
        let identity = self.verifier.verify(token, now).map_err(|refusal| refusal.to_string())?;
        if self.accepted.lock().insert(token.to_owned()) {
            self.timeline.record(Actor::Kubernetes, accepted(&identity, now));
        }
        Ok(())
    }
}

impl Lab {
    /// Leads all functions from here on to a cluster of the user's own, through a gate that judges their EKS tokens.
    ///
    /// What [`Self::kubernetes`] is told to do wrong befalls what comes to the gate, and it has seen the gate's requests.
    pub async fn forward_to(&mut self, cluster: Cluster) {
        let desk = self.kubernetes.desk.clone();
        let timeline = self.timeline.clone();
        let gate = Arc::new(Gate { verifier: self.verifier(), cluster, timeline, accepted: Mutex::default() });
        let routes =
            Router::new().fallback(forward).layer(from_fn_with_state(Arc::clone(&gate), authenticate)).with_state(gate);
        let site = Site {
            actor: Actor::Kubernetes,
            router: desk.around(routes, ApiServer),
            faults: desk.faults,
            timeline: desk.timeline,
            certificates: None,
        };
        let tls = self.certificates.server(Certificate::Good);
        let server = Server::listen([127, 0, 0, 1].into(), Some(tls), site).await;
        self.lead_to(format!("https://{}", server.authority()), self.certificates.ca_data());
        self.gate = Some(server);
    }
}

async fn authenticate(State(gate): State<Arc<Gate>>, request: HttpRequest, next: Next) -> Response {
    let (caller, mut response) = match gate.judge(request.headers()) {
        Ok(()) => (Caller::User(USER.to_owned()), next.run(request).await),
        Err(reason) => (Caller::Refused(reason), Status::unauthorized().into_response()),
    };
    response.extensions_mut().insert(caller);
    response
}

/// The function's token stays here, and all that makes an answer goes back.
async fn forward(State(gate): State<Arc<Gate>>, mut parts: Parts, body: Bytes) -> Response {
    parts.headers = only(&parts.headers, &[ACCEPT, CONTENT_TYPE]);
    match gate.cluster.send(parts, body).await {
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
