//! Lists with a label selector, page by page, and the delete of a Job with its pods.

use std::ops::Bound::{Excluded, Unbounded};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    status::{JOBS, Resource, Status},
    store::{Object, Store},
};

/// The parameters of a list.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Listing {
    #[serde(default)]
    label_selector: String,
    /// A field of the object itself, such as `type=Warning`.
    #[serde(default)]
    field_selector: String,
    limit: Option<usize>,
    /// The name after which it goes on, in base64.
    #[serde(rename = "continue", default)]
    after: String,
}

/// One page of objects, which may be many.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct List<'a> {
    kind: String,
    api_version: String,
    metadata: Value,
    items: Vec<&'a Object>,
}

/// What is sent with a delete.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct DeleteOptions {
    preconditions: Preconditions,
    propagation_policy: String,
}

#[derive(Default, Deserialize)]
struct Preconditions {
    uid: Option<String>,
}

impl Store {
    /// One page of a namespace's objects.
    pub(super) fn list(&self, resource: Resource, namespace: &str, listing: &Listing) -> Result<List<'_>, Status> {
        let after = BASE64_STANDARD.decode(&listing.after).ok().and_then(|after| String::from_utf8(after).ok());
        let after = after.ok_or_else(|| Status::bad_request("continue key is not valid"))?;
        if self.continues_are_lost && !after.is_empty() {
            return Err(Status::expired());
        }
        let selector: Vec<_> = listing.label_selector.split(',').filter(|term| !term.is_empty()).collect();
        if selector.iter().any(|term| !term.contains('=') || term.contains(['(', ' '])) {
            return Err(Status::bad_request(format!("the lab has no selector such as {}", listing.label_selector)));
        }
        let is_selected = |object: &Value| {
            let mut terms = selector.iter().filter_map(|term| term.split_once('='));
            let is_labelled = terms.all(|(key, value)| {
                let (label, value) = (key.trim_end_matches('!'), value.trim_start_matches('='));
                (object["metadata"]["labels"][label] == value) != key.ends_with('!')
            });
            let of_field = listing.field_selector.split_once('=');
            is_labelled && of_field.is_none_or(|(field, value)| object[field] == value)
        };
        let objects = self.objects(resource).range((Excluded((namespace.to_owned(), after.clone())), Unbounded));
        let ours = objects.take_while(|((home, _), _)| *home == namespace).filter(|(_, object)| is_selected(object));
        let limit = listing.limit.unwrap_or(usize::MAX);
        let page: Vec<_> = ours.take(limit.saturating_add(1)).collect();
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if page.len() > limit {
            metadata["continue"] = BASE64_STANDARD.encode(&page[limit - 1].0.1).into();
        }
        let items = page.into_iter().take(limit).map(|(_, object)| object).collect();
        let api_version = if resource.group.is_empty() { "v1".to_owned() } else { format!("{}/v1", resource.group) };
        Ok(List { kind: format!("{}List", resource.kind), api_version, metadata, items })
    }

    /// Deletes a Job with its Secrets, and in the background its pods, but for those whose node is dead. A finalizer keeps the Job for a while.
    pub(super) fn delete_job(&mut self, namespace: &str, name: &str, options: &DeleteOptions) -> Result<Value, Status> {
        let key = (namespace.to_owned(), name.to_owned());
        let (now, job) = (self.timestamp(), self.jobs.get_mut(&key).ok_or_else(|| Status::not_found(JOBS, name))?);
        let uid = job["metadata"]["uid"].clone();
        if let Some(wanted) = options.preconditions.uid.as_ref().filter(|wanted| **wanted != uid) {
            return Err(Status::other_uid(JOBS, name, wanted, uid.as_str().unwrap_or_default()));
        }
        if options.propagation_policy == "Background" {
            self.pods.retain(|_, pod| {
                let is_owned = pod["metadata"]["ownerReferences"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|owner| owner["uid"] == uid);
                !is_owned || pod["metadata"]["deletionTimestamp"].is_string()
            });
        }
        if job["metadata"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty()) {
            job["metadata"]["deletionTimestamp"] = now.into();
            return Ok(job.clone());
        }
        self.jobs.remove(&key);
        self.secrets.retain(|_, secret| secret.object["metadata"]["ownerReferences"][0]["uid"] != uid);
        let details = json!({"name": name, "group": JOBS.group, "kind": JOBS.plural, "uid": uid});
        Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}))
    }
}
