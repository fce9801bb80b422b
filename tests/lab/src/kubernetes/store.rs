//! The objects of the API server.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    NAMESPACE,
    apply::{Applied, Conflict},
};

/// Namespace and name.
type Key = (String, String);

/// All that a request may read or change.
pub(super) struct Store {
    pub(super) namespaces: BTreeSet<String>,
    pub(super) jobs: BTreeMap<Key, Value>,
    pub(super) secrets: BTreeMap<Key, Applied>,
    pub(super) pod_templates: BTreeMap<Key, Value>,
    /// Verb and resource that the user lacks.
    pub(super) forbidden: HashSet<(String, String)>,
    revision: u64,
}

impl Store {
    pub(super) fn new() -> Self {
        Self {
            namespaces: BTreeSet::from([NAMESPACE.to_owned()]),
            jobs: BTreeMap::new(),
            secrets: BTreeMap::new(),
            pod_templates: BTreeMap::new(),
            forbidden: HashSet::new(),
            revision: 1000,
        }
    }

    /// Stores a Job, and returns it as it is stored.
    pub(super) fn put_job(&mut self, mut job: Value) -> Value {
        self.stamp(&mut job);
        self.jobs.insert(key(&job), job.clone());
        job
    }

    /// Like [`Self::put_job`], for a `PodTemplate`.
    pub(super) fn put_pod_template(&mut self, mut template: Value) {
        self.stamp(&mut template);
        self.pod_templates.insert(key(&template), template);
    }

    /// Server-side apply of a Secret; returns it, and whether it is new.
    pub(super) fn apply_secret(
        &mut self,
        manager: &str,
        wanted: &Value,
        force: bool,
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
        self.secrets.insert(key, secret);
        Ok((object, new))
    }

    /// Adds what the server adds: identity and time of a new object, and the revision.
    fn stamp(&mut self, object: &mut Value) {
        self.revision += 1;
        let metadata = &mut object["metadata"];
        if metadata["uid"].is_null() {
            metadata["uid"] = Uuid::new_v4().to_string().into();
            metadata["creationTimestamp"] = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        }
        if metadata["namespace"].is_null() {
            metadata["namespace"] = NAMESPACE.into();
        }
        metadata["resourceVersion"] = self.revision.to_string().into();
    }

    /// The list of all templates of a namespace.
    pub(super) fn pod_template_list(&self, namespace: &str) -> Value {
        let items: Vec<&Value> = self
            .pod_templates
            .iter()
            .filter(|((home, _), _)| home == namespace)
            .map(|(_, template)| template)
            .collect();
        json!({
            "kind": "PodTemplateList",
            "apiVersion": "v1",
            "metadata": {"resourceVersion": self.revision.to_string()},
            "items": items,
        })
    }
}

/// The key of an object.
fn key(object: &Value) -> Key {
    let metadata = &object["metadata"];
    let namespace = metadata["namespace"].as_str().unwrap_or(NAMESPACE);
    let name = metadata["name"].as_str().unwrap_or_default();
    (namespace.to_owned(), name.to_owned())
}
