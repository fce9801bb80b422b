//! The pod definitions that a step can choose from: the compiled ones, and the `PodTemplates` of the namespace.
//!
//! A `PodTemplate` wins over the compiled definition of its name, so that a team can add or change one with `kubectl apply`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::time::Instant;

use crate::{
    clock,
    deadline::Deadline,
    kept::Kept,
    kubernetes::{self, Cluster},
    pod::definition::{Invalid, PodDefinition},
    text::excerpt,
};

/// How old the list of the cluster may be. For this long a job may still run in a definition that was replaced.
pub const MAX_AGE: Duration = Duration::from_mins(1);

/// The definitions of `pod-definitions/`, each with its path, as JSON.
const COMPILED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/pod_definitions.rs"));

/// By name. A broken one fails only the jobs that ask for it.
type ByName = BTreeMap<String, Result<Arc<PodDefinition>, Invalid>>;

/// All definitions.
pub struct Definitions {
    compiled: ByName,
    listed: Kept<Arc<ByName>, kubernetes::Error>,
}

/// Why a step has no pod definition to run in.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none of that name.
    #[error(
        "there is no pod definition \"{name}\"; a step may ask for {compiled}{cluster}; add \"{name}\" to pod-definitions/, or \
         `kubectl apply` a PodTemplate of that name to namespace {namespace}",
        name = excerpt(.name),
        compiled = .compiled.join(", "),
        cluster = if .cluster.is_empty() { String::new() } else {
            format!(", or for {}, the PodTemplates of namespace {namespace}", first_of(.cluster))
        }
    )]
    Unknown {
        /// What the step asks for.
        name: String,
        /// The names of the compiled ones.
        compiled: Vec<String>,
        /// The names of those in the cluster.
        cluster: Vec<String>,
        /// As configured.
        namespace: String,
    },
    /// It is there, and no job can run in it.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// It is not known which the cluster has.
    #[error("cannot list the pod definitions of namespace {namespace}")]
    List {
        /// As configured.
        namespace: String,
        /// What the API server said.
        source: Arc<kubernetes::Error>,
    },
}

impl Error {
    /// The type of the failure: [`crate::scheduler::Error::kind`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "UnknownPodDefinition",
            Self::Invalid(_) => "InvalidPodDefinition",
            Self::List { source, .. } => source.kind(),
        }
    }
}

impl Definitions {
    /// The compiled ones, and no list yet of those in the cluster.
    pub fn compiled() -> Self {
        let compiled = COMPILED.iter().map(|(origin, json)| {
            // The build has checked each, and that no two have one name.
            let manifest: Value = serde_json::from_str(json).unwrap_or_default();
            (name(&manifest), PodDefinition::parse(origin, &manifest).map(Arc::new))
        });
        Self { compiled: compiled.collect(), listed: Kept::new("the pod definitions of the cluster", MAX_AGE) }
    }

    /// Lists those of the cluster, if the last list is too old.
    pub async fn refresh(&self, cluster: &Cluster, deadline: Deadline) -> Result<(), Error> {
        self.list(cluster, deadline).await.map(drop)
    }

    /// The definition of that name.
    pub async fn get(&self, name: &str, cluster: &Cluster, deadline: Deadline) -> Result<Arc<PodDefinition>, Error> {
        let asked = clock::monotonic();
        let mut listed = self.list(cluster, deadline).await?;
        if !listed.contains_key(name) && !self.compiled.contains_key(name) {
            listed = self.list_since(asked, cluster, deadline).await?;
        }
        match listed.get(name).or_else(|| self.compiled.get(name)) {
            Some(definition) => Ok(Arc::clone(definition.as_ref().map_err(Clone::clone)?)),
            None => Err(Error::Unknown {
                name: name.to_owned(),
                compiled: self.compiled.keys().cloned().collect(),
                cluster: listed.keys().cloned().collect(),
                namespace: cluster.namespace().to_owned(),
            }),
        }
    }

    async fn list(&self, cluster: &Cluster, deadline: Deadline) -> Result<Arc<ByName>, Error> {
        let listed = self.listed.get(deadline, async |deadline| list(cluster, deadline).await).await;
        listed.map_err(|source| Error::List { namespace: cluster.namespace().to_owned(), source })
    }

    /// An unknown name may be younger than the list. Those who ask for a known one do not wait meanwhile.
    async fn list_since(&self, time: Instant, cluster: &Cluster, deadline: Deadline) -> Result<Arc<ByName>, Error> {
        let max_age = time.elapsed();
        let listed = self.listed.fresh(max_age, deadline, async |deadline| list(cluster, deadline).await).await;
        listed.map_err(|source| Error::List { namespace: cluster.namespace().to_owned(), source })
    }
}

/// The first names of many.
fn first_of(names: &[String]) -> String {
    const MAX: usize = 10;
    let shown: Vec<_> = names.iter().take(MAX).map(|name| excerpt(name)).collect();
    let more = names.len().checked_sub(MAX).filter(|more| *more > 0);
    shown.join(", ") + &more.map(|more| format!(" and {more} more")).unwrap_or_default()
}

async fn list(cluster: &Cluster, deadline: Deadline) -> Result<Arc<ByName>, kubernetes::Error> {
    // On the heap, since it is rare: every event's future would have room for it.
    let templates = Box::pin(cluster.pod_templates(deadline)).await?;
    let definitions = templates.iter().map(|template| {
        let name = name(template);
        let origin = format!("PodTemplate {} in namespace {}", excerpt(&name), cluster.namespace());
        let definition = PodDefinition::of_object(&origin, template);
        (name, definition.map(Arc::new))
    });
    Ok(Arc::new(definitions.collect()))
}

fn name(manifest: &Value) -> String {
    manifest["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}
