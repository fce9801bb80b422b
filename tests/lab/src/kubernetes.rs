//! The stand-in for the API server of an EKS cluster, with the requests that an agent scheduler sends.

mod api;
mod apply;
mod controllers;
mod forwarder;
mod list;
mod reviews;
mod status;
mod store;

use std::{
    mem,
    net::{IpAddr, Ipv4Addr},
    ops::Deref,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use axum::middleware::map_response_with_state;
use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::sleep;

use self::{
    api::{API_SERVER, Api, date, routes},
    store::Store,
};
use crate::{
    certificates::{Certificate, Certificates},
    clock,
    eks_token::Verifier,
    exchange::StandIn,
    server::{Server, Service},
    timeline::{Actor, Timeline},
};

/// The namespace of every lab, and of an object that names none.
pub const NAMESPACE: &str = "buildkite";

/// In process.
pub(crate) const HOST: &str = "kubernetes.lab";

/// The user that the access entry of the function's role names.
pub const USER: &str = "buildkite-on-demand-agent-scheduler";

/// The stand-in for the API server. Clones are the same one.
#[derive(Clone)]
pub struct Kubernetes {
    api: Arc<Api>,
    stand_in: StandIn,
    service: Service,
    /// None in process.
    server: Option<Arc<Server>>,
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
        let kubernetes = Self { ip, ..Self::new(timeline, verifier, certificates) };
        let tls = certificates.server(Certificate::Good);
        let server = Server::listen(ip, Some(tls), kubernetes.service.clone()).await;
        Self { server: Some(Arc::new(server)), ..kubernetes }
    }

    pub(crate) fn new(timeline: &Timeline, verifier: Verifier, certificates: &Arc<Certificates>) -> Self {
        let stand_in = StandIn::new(timeline, certificates);
        let api = Arc::new(Api {
            store: Mutex::new(Store::new()),
            tokens: Mutex::default(),
            verifier,
            timeline: timeline.clone(),
        });
        let mut service = stand_in.service(Actor::Kubernetes, routes(&api), API_SERVER);
        service.router = service.router.layer(map_response_with_state(Arc::clone(&api), date));
        let (ip, certificates) = (Ipv4Addr::LOCALHOST.into(), Arc::clone(certificates));
        Self { api, stand_in, service, server: None, bad_servers: Arc::default(), ip, certificates }
    }

    /// The endpoint, as EKS shows it.
    pub fn url(&self) -> String {
        self.server.as_ref().map_or_else(|| format!("https://{HOST}"), |server| server.url())
    }

    pub(crate) fn service(&self) -> &Service {
        &self.service
    }

    /// The certificate authority, as EKS shows it: base64 of a PEM.
    pub fn ca_data(&self) -> String {
        self.certificates.ca_data()
    }

    /// Opens one more endpoint with another certificate of the same authority, and returns its URL.
    pub async fn serve_with(&self, certificate: Certificate) -> String {
        let server = Server::listen(self.ip, Some(self.certificates.server(certificate)), self.service.clone()).await;
        let url = server.url();
        self.bad_servers.lock().push(server);
        url
    }

    /// Accepts a bearer token without verification, as a token file of the API server does.
    pub fn accept(&self, token: impl Into<String>) {
        self.api.tokens.lock().known.insert(token.into());
    }

    /// All Jobs, of all namespaces.
    pub fn jobs(&self) -> Vec<Value> {
        self.api.store.lock().jobs.values().map(|job| (**job).clone()).collect()
    }

    /// The Job of this name, in any namespace.
    pub fn job(&self, name: &str) -> Option<Value> {
        self.api.store.lock().jobs.iter().find(|((_, own), _)| own == name).map(|(_, job)| (**job).clone())
    }

    /// Adds a Job without validation; the default namespace is `buildkite`.
    pub fn put_job(&self, job: Value) {
        self.api.store.lock().put_job(job);
    }

    /// Changes a Job, as the Job controller does.
    pub fn change_job(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut store = self.api.store.lock();
        let job = store.jobs.iter_mut().find(|((_, own), _)| own == name);
        change(job.unwrap_or_else(|| panic!("there is no Job {name}")).1);
    }

    /// Name and uid of each Job.
    pub fn job_uids(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let store = self.api.store.lock();
        store.jobs.values().map(|job| (text(&job["metadata"]["name"]), text(&job["metadata"]["uid"]))).collect()
    }

    /// Name and uid of each Job that was made since the last call.
    pub fn new_jobs(&self) -> Vec<(String, String)> {
        mem::take(&mut self.api.store.lock().new_jobs)
    }

    /// Changes the Job with this name and uid. `None` if it is not there.
    pub fn with_job<T>(&self, name: &str, uid: &str, change: impl FnOnce(&mut Value) -> T) -> Option<T> {
        let mut store = self.api.store.lock();
        let job = store.jobs.get_mut(&(NAMESPACE.to_owned(), name.to_owned()));
        job.filter(|job| job["metadata"]["uid"] == uid).map(|job| change(job))
    }

    /// Changes a pod, as the scheduler and the kubelet do. `None` if it is not there.
    pub fn with_pod<T>(&self, name: &str, change: impl FnOnce(&mut Value) -> T) -> Option<T> {
        let mut store = self.api.store.lock();
        store.pods.get_mut(&(NAMESPACE.to_owned(), name.to_owned())).map(|pod| change(pod))
    }

    /// Whether there is a pod of this name.
    pub fn has_pod(&self, name: &str) -> bool {
        self.api.store.lock().pods.contains_key(&(NAMESPACE.to_owned(), name.to_owned()))
    }

    /// Removes a pod.
    pub fn remove_pod(&self, name: &str) {
        self.api.store.lock().pods.remove(&(NAMESPACE.to_owned(), name.to_owned()));
    }

    /// Removes a Job with its pods and Secrets, as the TTL controller and the garbage collector do.
    pub fn collect_job(&self, name: &str, uid: &str) {
        if self.with_job(name, uid, |_| ()).is_some() {
            let mut store = self.api.store.lock();
            store.jobs.remove(&(NAMESPACE.to_owned(), name.to_owned()));
            // Their names begin with that of their Job.
            let from = (NAMESPACE.to_owned(), format!("{name}-"));
            let is_owned = |object: &Value| object["metadata"]["ownerReferences"][0]["uid"] == uid;
            let pods = store.pods.range(from.clone()..).take_while(|((_, pod), _)| pod.starts_with(&from.1));
            let pods: Vec<_> = pods.filter(|(_, pod)| is_owned(pod)).map(|(key, _)| key.clone()).collect();
            let secrets =
                store.secrets.range(from.clone()..).take_while(|((_, secret), _)| secret.starts_with(&from.1));
            let secrets = secrets.filter(|(_, secret)| is_owned(&secret.object)).map(|(key, _)| key.clone());
            for secret in secrets.collect::<Vec<_>>() {
                store.secrets.remove(&secret);
            }
            for pod in pods {
                store.pods.remove(&pod);
            }
        }
    }

    /// All pods, of all namespaces.
    pub fn pods(&self) -> Vec<Value> {
        self.api.store.lock().pods.values().map(|pod| (**pod).clone()).collect()
    }

    /// Adds or replaces a pod without validation; the default namespace is `buildkite`.
    pub fn put_pod(&self, pod: Value) {
        self.api.store.lock().put_pod(pod);
    }

    /// Adds an Event without validation; the default namespace is `buildkite`.
    pub fn put_event(&self, event: Value) {
        self.api.store.lock().put_event(event);
    }

    /// Removes an Event, as the API server does after an hour.
    pub fn remove_event(&self, name: &str) {
        self.api.store.lock().events.remove(&(NAMESPACE.to_owned(), name.to_owned()));
    }

    /// The time at the API server, which the `Date` of each answer shows.
    pub fn now(&self) -> Timestamp {
        self.api.store.lock().now()
    }

    /// Puts the API server's clock forward. The EKS tokens stay as old as they are.
    pub fn skip(&self, time: Duration) {
        self.api.store.lock().skipped += time;
    }

    /// Answers 410 to a list that asks for its second page.
    pub fn lose_continues(&self) {
        self.api.store.lock().continues_are_lost = true;
    }

    /// Removes a Job, as its TTL does.
    pub fn remove_job(&self, name: &str) {
        self.api.store.lock().jobs.retain(|(_, own), _| own != name);
    }

    /// A Secret as it is now, with its `data` in base64.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<Value> {
        let key = (namespace.to_owned(), name.to_owned());
        self.api.store.lock().secrets.get(&key).map(|secret| secret.object.clone())
    }

    /// All Secrets as they are now.
    pub fn secrets(&self) -> Vec<Value> {
        self.api.store.lock().secrets.values().map(|secret| secret.object.clone()).collect()
    }

    /// Applies a Secret with one key as another field manager, with force; `value` is not base64.
    pub fn put_secret_as(&self, manager: &str, namespace: &str, name: &str, key: &str, value: &str) {
        let secret = json!({
            "metadata": {"namespace": namespace, "name": name},
            "data": {key: BASE64_STANDARD.encode(value)},
        });
        let applied = self.api.store.lock().apply_secret(manager, &secret, true, false);
        assert!(applied.is_ok(), "force has no conflict");
    }

    /// Removes all objects, as if the cluster were made again.
    pub fn empty(&self) {
        let mut store = self.api.store.lock();
        store.jobs.clear();
        store.pods.clear();
        store.events.clear();
        store.secrets.clear();
        store.pod_templates.clear();
    }

    /// Removes a Secret.
    pub fn remove_secret(&self, namespace: &str, name: &str) {
        self.api.store.lock().secrets.remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Adds a namespace beside `buildkite`.
    pub fn add_namespace(&self, name: impl Into<String>) {
        self.api.store.lock().namespaces.insert(name.into());
    }

    /// Adds or replaces a `PodTemplate`; the default namespace is `buildkite`.
    pub fn put_pod_template(&self, template: Value) {
        self.api.store.lock().put_pod_template(template);
    }

    /// Removes a `PodTemplate`.
    pub fn remove_pod_template(&self, namespace: &str, name: &str) {
        self.api.store.lock().pod_templates.remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Removes a permission, such as `("create", "jobs")`.
    pub fn forbid(&self, verb: impl Into<String>, resource: impl Into<String>) {
        self.api.store.lock().forbidden.insert((verb.into(), resource.into()));
    }

    /// Takes back [`Self::forbid`].
    pub fn allow(&self, verb: impl Into<String>, resource: impl Into<String>) {
        self.api.store.lock().forbidden.remove(&(verb.into(), resource.into()));
    }

    /// Maps the function's role to another user.
    pub fn map_to(&self, user: &str) {
        user.clone_into(&mut self.api.store.lock().user);
    }

    /// Becomes this minor version.
    pub fn become_version(&self, minor: u32) {
        self.api.store.lock().minor_version = minor;
    }

    /// Lets the user read service accounts, Secrets and priority classes, of which only these are there.
    pub fn let_read(&self, names: &[&str]) {
        self.api.store.lock().readable = Some(names.iter().map(ToString::to_string).collect());
    }

    /// Answers the creation of a Job with a warning.
    pub fn warn(&self, warning: &str) {
        self.api.store.lock().warning = Some(warning.to_owned());
    }

    /// Refuses from here on every token that was signed until now.
    ///
    /// A token has its time in whole seconds, so this returns in the next second: a token signed then is accepted.
    pub async fn expire_tokens(&self) {
        let now = clock::wall();
        self.api.tokens.lock().expired_until = Some(now);
        let into_second = now.duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
        let next_second = now + Duration::from_nanos(1_000_000_000 - u64::from(into_second));
        while let Ok(left) = next_second.duration_since(clock::wall()) {
            sleep(left.max(Duration::from_millis(1))).await;
        }
    }

    pub(crate) fn forget(&self) {
        self.stand_in.forget();
        let mut store = self.api.store.lock();
        store.jobs.clear();
        store.new_jobs.clear();
        store.pods.clear();
        store.events.clear();
    }
}

impl Deref for Kubernetes {
    type Target = StandIn;

    fn deref(&self) -> &StandIn {
        &self.stand_in
    }
}

#[cfg(test)]
mod tests;
