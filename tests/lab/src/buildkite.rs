//! The stand-in for Buildkite: the Stacks API, and what an agent that acquires one job uses of the agent API.
//!
//! A request that the documentation does not allow is a violation: it gets its 4xx, and the test panics when the [`Lab`](crate::Lab), or
//! the last [`Buildkite`], is dropped. What is not documented does not happen: a lost agent stays lost, and only a retry sends an event.

mod agents;
mod api;
mod job;
mod organization;
mod stacks;

use std::{io, net::IpAddr, ops::Deref, sync::Arc};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{Request, header::DATE, request::Parts},
    middleware::map_response_with_state,
    response::Response,
};
use jiff::fmt::rfc2822::DateTimePrinter;
use parking_lot::{Mutex, MutexGuard};
use serde_json::json;

pub use self::{
    job::Job,
    organization::{CLUSTER, Organization, Queue, Token},
};
use crate::{
    certificates::Certificates,
    exchange::{Role, StandIn},
    server::{Server, Service},
    timeline::{Actor, Call, Timeline},
};

/// In process.
pub(crate) const HOST: &str = "buildkite.lab";

/// The stand-in for Buildkite. Clones are the same one.
#[derive(Clone)]
pub struct Buildkite {
    organization: Shared,
    stand_in: StandIn,
    service: Service,
    /// Without and with TLS; none in process.
    servers: Option<Arc<[Server; 2]>>,
}

type Shared = Arc<Mutex<Organization>>;

impl Buildkite {
    /// Without a socket, for [`Self::call`]. Its time is that of tokio, which a test may pause.
    pub fn in_process() -> Self {
        Self::new(&Timeline::start(), &Arc::new(Certificates::new([127, 0, 0, 1].into())))
    }

    pub(crate) async fn start(ip: IpAddr, timeline: &Timeline, certificates: &Arc<Certificates>) -> Self {
        let buildkite = Self::new(timeline, certificates);
        let http = Server::listen(ip, None, buildkite.service.clone()).await;
        let tls = certificates.public_server();
        let https = Server::listen(ip, Some(tls), buildkite.service.clone()).await;
        Self { servers: Some(Arc::new([http, https])), ..buildkite }
    }

    pub(crate) fn new(timeline: &Timeline, certificates: &Arc<Certificates>) -> Self {
        let organization = Shared::default();
        "kubernetes".clone_into(&mut organization.lock().default_queue);
        organization.lock().queue(CLUSTER, "kubernetes");
        let stand_in = StandIn::new(timeline, certificates);
        let routes = Router::new().fallback(serve).with_state(Arc::clone(&organization));
        let mut service = stand_in.service(Actor::Buildkite, routes, ROLE);
        service.router = service.router.layer(map_response_with_state(Arc::clone(&organization), date));
        Self { organization, stand_in, service, servers: None }
    }

    /// The endpoint of both APIs, without TLS.
    pub fn url(&self) -> String {
        self.endpoint(0)
    }

    /// The endpoint of both APIs, with a certificate of the lab's authority.
    pub fn https_url(&self) -> String {
        self.endpoint(1)
    }

    fn endpoint(&self, server: usize) -> String {
        let servers = self.servers.as_ref();
        servers.map_or_else(|| format!("https://{HOST}/v3"), |servers| format!("{}/v3", servers[server].url()))
    }

    /// Answers a request without a socket, with faults and records.
    pub async fn call(&self, request: Request<Body>) -> io::Result<Response> {
        self.service.call(request).await
    }

    /// What Buildkite keeps, for a test to read and to change. No request is answered before the guard is dropped.
    pub fn lock(&self) -> MutexGuard<'_, Organization> {
        lock(&self.organization)
    }

    pub(crate) fn service(&self) -> &Service {
        &self.service
    }

    pub(crate) fn check(&self) {
        self.lock().check();
    }

    pub(crate) fn forget(&self) {
        self.stand_in.forget();
        self.lock().jobs.clear();
    }
}

impl Deref for Buildkite {
    type Target = StandIn;

    fn deref(&self) -> &StandIn {
        &self.stand_in
    }
}

fn lock(organization: &Shared) -> MutexGuard<'_, Organization> {
    let mut organization = organization.lock();
    organization.expire();
    organization
}

async fn serve(State(organization): State<Shared>, parts: Parts, body: Bytes) -> Response {
    api::serve(&mut lock(&organization), &parts, &body)
}

/// Each answer has the date of Buildkite, and not that of this machine.
async fn date(State(organization): State<Shared>, mut response: Response) -> Response {
    let now = DateTimePrinter::new().timestamp_to_rfc9110_string(&lock(&organization).now());
    response.headers_mut().insert(DATE, now.expect("a date of this era").try_into().expect("a date is ASCII"));
    response
}

const ROLE: Role = Role {
    call: |parts, _| (Actor::Buildkite, Call::new(parts.method.as_str(), parts.uri.path())),
    error: |_, _, error| api::response(error.code, json!({"message": error.message.as_deref().unwrap_or("injected")})),
};

#[cfg(test)]
mod tests;
