//! The objects of the API server.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::{Deref, DerefMut},
    sync::OnceLock,
    time::Duration,
};

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};

use super::{
    NAMESPACE, USER,
    apply::{Applied, Conflict},
    status::{EVENTS, JOBS, POD_TEMPLATES, PODS, Resource},
};
use crate::{clock, credentials::random_uuid};

/// Namespace and name.
type Key = (String, String);

/// An object, with its JSON since its last change: a list of ten thousand is asked for again and again.
pub(super) struct Object {
    object: Value,
    json: OnceLock<Box<RawValue>>,
}

impl From<Value> for Object {
    fn from(object: Value) -> Self {
        Self { object, json: OnceLock::new() }
    }
}

impl Deref for Object {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.object
    }
}

impl DerefMut for Object {
    fn deref_mut(&mut self) -> &mut Value {
        self.json.take();
        &mut self.object
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json.get_or_init(|| to_raw_value(&self.object).expect("a value is JSON")).serialize(serializer)
    }
}

/// All that a request may read or change.
pub(super) struct Store {
    pub(super) namespaces: BTreeSet<String>,
    pub(super) jobs: BTreeMap<Key, Object>,
    /// Name and uid of those since the last question.
    pub(super) new_jobs: Vec<(String, String)>,
    pub(super) secrets: BTreeMap<Key, Applied>,
    pub(super) pod_templates: BTreeMap<Key, Object>,
    pub(super) pods: BTreeMap<Key, Object>,
    pub(super) events: BTreeMap<Key, Object>,
    /// Verb and resource that the user lacks.
    pub(super) forbidden: HashSet<(String, String)>,
    /// As whom the function's role is known.
    pub(super) user: String,
    pub(super) minor_version: u32,
    /// The names of what is there beside Jobs, if the user may look.
    pub(super) readable: Option<BTreeSet<String>>,
    /// Of each Job.
    pub(super) warning: Option<String>,
    /// A list cannot go on after its first page.
    pub(super) continues_are_lost: bool,
    /// Time to add to the clock.
    pub(super) skipped: Duration,
    pub(super) revision: u64,
}

impl Store {
    pub(super) fn new() -> Self {
        Self {
            namespaces: BTreeSet::from([NAMESPACE.to_owned()]),
            jobs: BTreeMap::new(),
            new_jobs: Vec::new(),
            secrets: BTreeMap::new(),
            pod_templates: BTreeMap::new(),
            pods: BTreeMap::new(),
            events: BTreeMap::new(),
            forbidden: HashSet::new(),
            user: USER.to_owned(),
            minor_version: 33,
            readable: None,
            warning: None,
            continues_are_lost: false,
            skipped: Duration::ZERO,
            revision: 1000,
        }
    }

    /// Stores a Job, and returns it as it is stored.
    pub(super) fn put_job(&mut self, mut job: Value) -> Value {
        self.stamp(&mut job);
        let text = |field: &str| job["metadata"][field].as_str().unwrap_or_default().to_owned();
        self.new_jobs.push((text("name"), text("uid")));
        self.jobs.insert(key(&job), job.clone().into());
        job
    }

    /// Like [`Self::put_job`], for a pod.
    pub(super) fn put_pod(&mut self, mut pod: Value) {
        self.stamp(&mut pod);
        self.pods.insert(key(&pod), pod.into());
    }

    /// Like [`Self::put_job`], for an Event.
    pub(super) fn put_event(&mut self, mut event: Value) {
        self.stamp(&mut event);
        self.events.insert(key(&event), event.into());
    }

    /// Like [`Self::put_job`], for a `PodTemplate`.
    pub(super) fn put_pod_template(&mut self, mut template: Value) {
        self.stamp(&mut template);
        self.pod_templates.insert(key(&template), template.into());
    }

    /// Server-side apply of a Secret; returns it, and whether it is new.
    pub(super) fn apply_secret(
        &mut self,
        manager: &str,
        wanted: &Value,
        force: bool,
        is_dry_run: bool,
    ) -> Result<(Value, bool), Vec<Conflict>> {
        let key = key(wanted);
        let new = !self.secrets.contains_key(&key);
        let mut secret = self.secrets.get(&key).cloned().unwrap_or_default();
        if secret.apply(manager, wanted, force)? {
            let (namespace, name) = &key;
            let object = &mut secret.object;
            object["apiVersion"] = "v1".into();
            object["kind"] = "Secret".into();
            object["metadata"]["namespace"] = namespace.as_str().into();
            object["metadata"]["name"] = name.as_str().into();
            if object["type"].is_null() {
                object["type"] = "Opaque".into();
            }
            self.stamp(object);
        }
        let object = secret.object.clone();
        if !is_dry_run {
            self.secrets.insert(key, secret);
        }
        Ok((object, new))
    }

    /// Creates a Secret, unless its name is taken, and returns it.
    pub(super) fn create_secret(&mut self, mut secret: Value, is_dry_run: bool) -> Option<Value> {
        let key = key(&secret);
        if self.secrets.contains_key(&key) {
            return None;
        }
        self.stamp(&mut secret);
        if !is_dry_run {
            self.secrets.insert(key, Applied::created(secret.clone()));
        }
        Some(secret)
    }

    /// Adds what the server adds: identity and time of a new object, and the revision.
    fn stamp(&mut self, object: &mut Value) {
        self.revision += 1;
        let now = self.timestamp();
        let metadata = &mut object["metadata"];
        if metadata["uid"].is_null() {
            metadata["uid"] = random_uuid().into();
            metadata["creationTimestamp"] = now.into();
        }
        if metadata["namespace"].is_null() {
            metadata["namespace"] = NAMESPACE.into();
        }
        metadata["resourceVersion"] = self.revision.to_string().into();
    }

    /// What a list lists.
    pub(super) fn objects(&self, resource: Resource) -> &BTreeMap<Key, Object> {
        match resource {
            JOBS => &self.jobs,
            PODS => &self.pods,
            EVENTS => &self.events,
            POD_TEMPLATES => &self.pod_templates,
            other => unreachable!("{} are not listed", other.plural),
        }
    }

    /// The API server's clock.
    pub(super) fn now(&self) -> Timestamp {
        clock::now() + self.skipped
    }

    /// The same as it stands in an object.
    pub(super) fn timestamp(&self) -> String {
        self.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }
}

/// The key of an object.
fn key(object: &Value) -> Key {
    let metadata = &object["metadata"];
    let namespace = metadata["namespace"].as_str().unwrap_or(NAMESPACE);
    let name = metadata["name"].as_str().unwrap_or_default();
    (namespace.to_owned(), name.to_owned())
}
