//! What stands in for the Kubernetes API server of an EKS cluster, as far as an agent scheduler asks it.

mod api;
mod apply;
mod forwarder;
mod status;
mod store;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::sleep;

use self::{
    api::{Api, ApiServer, routes},
    store::Store,
};
use crate::{
    certificates::{Certificate, Certificates},
    eks_token::Verifier,
    exchange::{ExchangeLog, Request},
    fault::{Fault, When},
    server::{Server, Service},
    timeline::{Actor, Timeline},
};

/// The user that the access entry of the function's role names.
pub const USER: &str = "buildkite-on-demand-agent-scheduler";

/// The stand-in for the API server. Clones are the same one.
#[derive(Clone)]
pub struct Kubernetes {
    api: Arc<Api>,
    log: ExchangeLog,
    service: Service,
    server: Arc<Server>,
    bad_servers: Arc<Mutex<Vec<Server>>>,
    ip: IpAddr,
    certificates: Arc<Certificates>,
}

impl Kubernetes {
    pub(crate) async fn start(
        ip: IpAddr,
        timeline: &Timeline,
        verifier: Verifier,
        certificates: &Arc<Certificates>,
    ) -> Self {
        let log = ExchangeLog::new(timeline);
        let api = Arc::new(Api {
            store: Mutex::new(Store::new()),
            tokens: Mutex::default(),
            verifier,
            timeline: timeline.clone(),
        });
        let service = Service {
            actor: Actor::Kubernetes,
            router: log.around(routes(&api), ApiServer),
            faults: log.faults.clone(),
            timeline: timeline.clone(),
            certificates: Some(Arc::clone(certificates)),
        };
        let server = Server::listen(ip, Some(certificates.server(Certificate::Good)), service.clone()).await;
        let certificates = Arc::clone(certificates);
        Self { api, log, service, server: Arc::new(server), bad_servers: Arc::default(), ip, certificates }
    }

    /// The endpoint, as EKS shows it.
    pub fn url(&self) -> String {
        format!("https://{}", self.server.authority())
    }

    /// What its certificate is signed with, as EKS shows it: base64 of a PEM.
    pub fn ca_data(&self) -> String {
        self.certificates.ca_data()
    }

    /// Opens one more endpoint to the same objects, with another certificate of the same authority, and returns its URL.
    pub async fn serve_with(&self, certificate: Certificate) -> String {
        let server = Server::listen(self.ip, Some(self.certificates.server(certificate)), self.service.clone()).await;
        let url = format!("https://{}", server.authority());
        self.bad_servers.lock().push(server);
        url
    }

    /// Takes a bearer token as it is, without judging it, as a token file of the API server does.
    pub fn accept(&self, token: impl Into<String>) {
        self.api.tokens.lock().known.insert(token.into());
    }

    /// All Jobs, of all namespaces.
    pub fn jobs(&self) -> Vec<Value> {
        self.api.store.lock().jobs.values().cloned().collect()
    }

    /// The Job of this name, in whatever namespace.
    pub fn job(&self, name: &str) -> Option<Value> {
        self.jobs().into_iter().find(|job| job["metadata"]["name"] == name)
    }

    /// Puts a Job there without judging it; without a namespace it goes to `buildkite`.
    pub fn put_job(&self, job: Value) {
        self.api.store.lock().put_job(job);
    }

    /// Takes a Job away, as its TTL does.
    pub fn remove_job(&self, name: &str) {
        self.api.store.lock().jobs.retain(|(_, own), _| own != name);
    }

    /// A Secret as it is now, with its `data` in base64.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<Value> {
        let key = (namespace.to_owned(), name.to_owned());
        self.api.store.lock().secrets.get(&key).map(|secret| secret.object.clone())
    }

    /// Applies a Secret with one key as another field manager would, by force; the value in the clear.
    pub fn put_secret_as(&self, manager: &str, namespace: &str, name: &str, key: &str, value: &str) {
        let secret = json!({
            "metadata": {"namespace": namespace, "name": name},
            "data": {key: BASE64_STANDARD.encode(value)},
        });
        let applied = self.api.store.lock().apply_secret(manager, &secret, true);
        assert!(applied.is_ok(), "force knows no conflict");
    }

    /// Takes a Secret away.
    pub fn remove_secret(&self, namespace: &str, name: &str) {
        self.api.store.lock().secrets.remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Makes one more namespace; `buildkite` is there from the start.
    pub fn add_namespace(&self, name: impl Into<String>) {
        self.api.store.lock().namespaces.insert(name.into());
    }

    /// Puts a `PodTemplate` there; without a namespace it goes to `buildkite`.
    pub fn put_pod_template(&self, template: Value) {
        self.api.store.lock().put_pod_template(template);
    }

    /// Takes a `PodTemplate` away.
    pub fn remove_pod_template(&self, namespace: &str, name: &str) {
        self.api.store.lock().pod_templates.remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Takes a permission away, such as `("create", "jobs")`.
    pub fn forbid(&self, verb: impl Into<String>, resource: impl Into<String>) {
        self.api.store.lock().forbidden.insert((verb.into(), resource.into()));
    }

    /// Gives a permission back.
    pub fn permit(&self, verb: impl Into<String>, resource: impl Into<String>) {
        self.api.store.lock().forbidden.remove(&(verb.into(), resource.into()));
    }

    /// Refuses from here on every token that was signed up to now.
    ///
    /// A token tells its time in whole seconds, so this returns in the next one: whatever is signed then is accepted.
    pub async fn expire_tokens(&self) {
        let now = SystemTime::now();
        self.api.tokens.lock().expired_until = Some(now);
        let into_second = now.duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
        let next_second = now + Duration::from_nanos(1_000_000_000 - u64::from(into_second));
        while let Ok(left) = next_second.duration_since(SystemTime::now()) {
            sleep(left.max(Duration::from_millis(1))).await;
        }
    }

    /// Lets the next `times` requests that match, or connections, meet a fault.
    pub fn inject(&self, when: When, fault: Fault, times: usize) {
        self.log.faults.plan(when, fault, times);
    }

    /// Lets each request that matches meet a fault with this probability; the same seed, the same requests.
    pub fn inject_share(&self, when: When, fault: Fault, share: f64, seed: u64) {
        self.log.faults.plan_share(when, fault, share, seed);
    }

    /// Forgets all faults that are still planned.
    pub fn clear_faults(&self) {
        self.log.faults.clear();
    }

    /// How many faults were committed so far.
    pub fn faults_met(&self) -> usize {
        self.log.faults.met()
    }

    /// Closes every connection that is idle now, and the others after their answer.
    pub fn hang_up(&self) {
        self.log.faults.hang_up();
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.log.requests()
    }

    pub(crate) fn forget(&self) {
        self.log.forget();
        self.api.store.lock().jobs.clear();
    }
}

#[cfg(test)]
mod tests;
