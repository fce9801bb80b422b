//! The pod definitions that a step can choose from: the compiled ones, and the `PodTemplates` of the namespace.
//!
//! A `PodTemplate` wins over the compiled definition of its name, so that a team can add or change one with `kubectl apply`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    buildkite::rules::DEFAULT_DEFINITION,
    clock,
    deadline::Deadline,
    kept::Kept,
    kubernetes::{self, Cluster},
    pod::definition::{Invalid, PodDefinition},
    text::excerpt,
};

/// How old the list of the cluster may be. For this long a job may still run in a definition that was replaced.
pub const MAX_AGE: Duration = Duration::from_mins(1);

/// The definitions of `pod-definitions/`.
static COMPILED: LazyLock<Vec<Compiled>> = LazyLock::new(|| include!(concat!(env!("OUT_DIR"), "/pod_definitions.rs")));

/// With its name; read when the first job asks for it.
type Compiled = (&'static str, LazyLock<Arc<PodDefinition>>);

/// Those of the cluster, each with its name. A broken one fails only the jobs that ask for it.
type Listed = BTreeMap<String, Result<Arc<PodDefinition>, Invalid>>;

/// All definitions.
pub struct Definitions {
    listed: Kept<Arc<Listed>, kubernetes::Error>,
    /// The names of all that the cluster ever had.
    seen: Mutex<BTreeSet<String>>,
}

/// Why a step has no pod definition to run in.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text shows what the fields are")]
pub enum Error {
    /// There is no definition of that name.
    #[error(
        "there is no pod definition \"{name}\"; a step may ask for {compiled}{cluster}; add \"{name}\" to pod-definitions/, or \
         `kubectl apply` a PodTemplate of that name to namespace {namespace}",
        name = excerpt(.name),
        compiled = .compiled.join(", "),
        cluster = if .cluster.is_empty() { String::new() } else {
            format!(", or for {}, the PodTemplates of namespace {namespace}", first_of(.cluster))
        }
    )]
    Unknown { name: String, compiled: Vec<String>, cluster: Vec<String>, namespace: String },
    /// The cluster had it.
    #[error(
        "PodTemplate \"{name}\" is gone from namespace {namespace}; `kubectl apply` it again, or have the step choose another pod \
         definition", name = excerpt(.name)
    )]
    Gone { name: String, namespace: String },
    /// It is there, and no job can run in it.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// It is there, and its image is a placeholder.
    #[error(
        "pod definition \"{name}\" has the placeholder {image} as its image; build the image, and set it in the definition's \
         pod-template.yaml, or in a PodTemplate of that name"
    )]
    Placeholder { name: String, image: String },
    /// It is not known which the cluster has.
    #[error("cannot list the pod definitions of namespace {namespace}")]
    List { namespace: String, source: Arc<kubernetes::Error> },
}

impl Error {
    /// The type of the failure: [`crate::scheduler::Error::kind`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unknown { .. } | Self::Gone { .. } => "UnknownPodDefinition",
            Self::Invalid(_) | Self::Placeholder { .. } => "InvalidPodDefinition",
            Self::List { source, .. } => source.kind(),
        }
    }
}

impl Definitions {
    /// The compiled ones, and no list yet of those in the cluster.
    pub fn compiled() -> Self {
        Self { listed: Kept::new("the pod definitions of the cluster", MAX_AGE), seen: Mutex::default() }
    }

    /// Lists those of the cluster, if the last list is too old.
    pub async fn refresh(&self, cluster: &Cluster, deadline: Deadline) -> Result<(), Error> {
        self.list(None, cluster, deadline).await.map(drop)
    }

    /// Lists those of the cluster, however old the last list is.
    pub async fn list_again(&self, cluster: &Cluster, deadline: Deadline) -> Result<(), Error> {
        self.list(Some(clock::monotonic()), cluster, deadline).await.map(drop)
    }

    /// One that is compiled in, to see whether the cluster takes any Job at all.
    pub fn any_compiled(&self) -> Option<&'static PodDefinition> {
        let is_default = |(name, _): &&(&str, _)| *name == DEFAULT_DEFINITION;
        COMPILED.iter().find(is_default).or(COMPILED.first()).map(|(_, definition)| &***definition)
    }

    /// The definition of that name.
    pub async fn get(&self, name: &str, cluster: &Cluster, deadline: Deadline) -> Result<Arc<PodDefinition>, Error> {
        let asked = clock::monotonic();
        let mut listed = self.list(None, cluster, deadline).await?;
        let compiled = compiled(name);
        if !listed.contains_key(name) && compiled.is_none() {
            listed = self.list(Some(asked), cluster, deadline).await?;
        }
        let definition = match (listed.get(name), compiled) {
            (Some(listed), _) => listed.clone()?,
            (None, Some(compiled)) => Arc::clone(compiled),
            (None, None) if self.seen().contains(name) => {
                return Err(Error::Gone { name: name.to_owned(), namespace: cluster.namespace().to_owned() });
            }
            (None, None) => {
                return Err(Error::Unknown {
                    name: name.to_owned(),
                    compiled: usable(),
                    cluster: listed.keys().cloned().collect(),
                    namespace: cluster.namespace().to_owned(),
                });
            }
        };
        match definition.placeholder_image() {
            Some(image) => Err(Error::Placeholder { name: name.to_owned(), image: image.to_owned() }),
            None => Ok(definition),
        }
    }

    /// The same by the last list, however old that is.
    pub fn last(&self, name: &str) -> Option<Arc<PodDefinition>> {
        let listed = self.listed.last()?.get(name).cloned();
        listed.map_or_else(|| compiled(name).map(|definition| Arc::clone(definition)), Result::ok)
    }

    /// Those of the cluster. An unknown name may be younger than the last list: `since` asks for a list from then on, and those
    /// who ask for a known name do not wait meanwhile.
    async fn list(&self, since: Option<Instant>, cluster: &Cluster, deadline: Deadline) -> Result<Arc<Listed>, Error> {
        let list = async |deadline| {
            let listed = list(cluster, deadline).await?;
            self.see(&listed);
            Ok(listed)
        };
        let listed = match since {
            None => self.listed.get(deadline, list).await,
            Some(since) => self.listed.fresh(|_, time| time >= since, deadline, list).await,
        };
        listed.map_err(|source| Error::List { namespace: cluster.namespace().to_owned(), source })
    }

    /// Keeps the names. The log has a warning once for each of them.
    fn see(&self, listed: &Listed) {
        let mut seen = self.seen();
        let new = listed.iter().filter(|(name, _)| seen.insert((*name).clone()));
        let warned = new.filter_map(|(name, definition)| {
            let warning = definition.as_ref().ok()?.warning()?;
            Some((name.clone(), warning.to_string()))
        });
        let (names, warnings): (Vec<_>, Vec<_>) = warned.unzip();
        if let Some(warning) = warnings.first() {
            tracing::warn!(definitions = first_of(&names), warning, "jobs of these pod definitions are at risk");
        }
    }

    fn seen(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The compiled one of that name; it is read when it is used.
fn compiled(name: &str) -> Option<&'static LazyLock<Arc<PodDefinition>>> {
    COMPILED.iter().find(|(compiled, _)| *compiled == name).map(|(_, definition)| definition)
}

/// The names of the compiled ones that a step may ask for.
fn usable() -> Vec<String> {
    let usable = COMPILED.iter().filter(|(_, definition)| definition.placeholder_image().is_none());
    usable.map(|(name, _)| (*name).to_owned()).collect()
}

/// The first names of many.
fn first_of(names: &[String]) -> String {
    const MAX: usize = 10;
    let shown: Vec<_> = names.iter().take(MAX).map(|name| excerpt(name)).collect();
    let more = names.len().checked_sub(MAX).filter(|more| *more > 0);
    shown.join(", ") + &more.map(|more| format!(" and {more} more")).unwrap_or_default()
}

/// All definitions, each with where it comes from; and why those of the cluster are not known.
pub type All = (Vec<(String, Result<Arc<PodDefinition>, Invalid>)>, Option<kubernetes::Error>);

/// All that a step may ask for, as they are now.
pub async fn all(cluster: &Cluster, deadline: Deadline) -> All {
    let (listed, error) = match list(cluster, deadline).await {
        Ok(listed) => (listed, None),
        Err(error) => (Arc::default(), Some(error)),
    };
    let compiled = COMPILED.iter().filter(|(name, _)| !listed.contains_key(*name));
    let compiled =
        compiled.map(|(name, definition)| (format!("compiled definition {name}"), Ok(Arc::clone(definition))));
    let listed = listed.iter().map(|(name, definition)| (format!("PodTemplate {}", excerpt(name)), definition.clone()));
    (compiled.chain(listed).collect(), error)
}

async fn list(cluster: &Cluster, deadline: Deadline) -> Result<Arc<Listed>, kubernetes::Error> {
    // On the heap, since it is rare: every event's future would have room for it.
    let templates = Box::pin(cluster.pod_templates(deadline)).await?;
    let definitions = templates.iter().map(|template| {
        let name = template["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let origin = format!("PodTemplate {} in namespace {}", excerpt(&name), cluster.namespace());
        let definition = PodDefinition::of_object(&origin, template);
        (name, definition.map(Arc::new))
    });
    Ok(Arc::new(definitions.collect()))
}

fn checked(json: &str) -> Arc<PodDefinition> {
    let manifest = serde_json::from_str(json).expect("the build wrote it");
    Arc::new(PodDefinition::checked(manifest))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use tokio::time::advance;

    use super::*;
    use crate::{kubernetes::fake::ApiServer, text::chain};

    /// An item of a list; the image is the difference.
    fn template(name: &str, image: &str) -> Value {
        json!({
            "metadata": {"name": name},
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "agent", "image": image}]}},
        })
    }

    fn deadline() -> Deadline {
        Deadline::after(Duration::from_secs(10))
    }

    async fn get(definitions: &Definitions, name: &str, api_server: &ApiServer) -> Result<Arc<PodDefinition>, Error> {
        definitions.get(name, &api_server.cluster(), deadline()).await
    }

    async fn image(definitions: &Definitions, name: &str, api_server: &ApiServer) -> String {
        get(definitions, name, api_server).await.unwrap().agent()["image"].as_str().unwrap().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn the_definitions_of_the_folder_are_compiled_and_usable() {
        let (definitions, api_server) = (Definitions::compiled(), ApiServer::holding(&[]));
        for (name, definition) in &*COMPILED {
            assert_eq!(definition.name(), *name);
        }
        for name in [DEFAULT_DEFINITION, "fargate"] {
            assert_eq!(get(&definitions, name, &api_server).await.unwrap().name(), name);
        }
        let error = get(&definitions, "elastic-ci-stack", &api_server).await.unwrap_err();
        assert_eq!(error.kind(), "InvalidPodDefinition");
        assert!(error.to_string().contains("build the image"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_definition_of_the_cluster_wins_over_the_compiled_one_of_its_name() {
        let api_server = ApiServer::holding(&[template("default", "theirs:1")]);
        let definitions = Definitions::compiled();
        assert_eq!(image(&definitions, "default", &api_server).await, "theirs:1");
        assert_eq!(get(&definitions, "fargate", &api_server).await.unwrap().name(), "fargate");
    }

    #[tokio::test(start_paused = true)]
    async fn a_definition_that_was_replaced_is_used_for_a_minute() {
        let api_server = ApiServer::holding(&[template("node", "node:1")]);
        let definitions = Definitions::compiled();
        assert_eq!(image(&definitions, "node", &api_server).await, "node:1");
        api_server.hold(&[template("node", "node:2")]);
        advance(MAX_AGE.saturating_sub(Duration::from_secs(1))).await;
        assert_eq!(image(&definitions, "node", &api_server).await, "node:1");
        advance(Duration::from_secs(1)).await;
        assert_eq!(image(&definitions, "node", &api_server).await, "node:2");
        assert_eq!(api_server.requests().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_name_is_listed_again_unless_the_list_is_younger_than_the_question() {
        let (definitions, api_server) = (Definitions::compiled(), ApiServer::holding(&[]));
        definitions.refresh(&api_server.cluster(), deadline()).await.unwrap();
        api_server.hold(&[template("node", "node:1")]);
        advance(Duration::from_millis(1)).await;
        for _ in 0..2 {
            assert_eq!(image(&definitions, "node", &api_server).await, "node:1");
            assert_eq!(api_server.requests().len(), 2);
        }
        advance(MAX_AGE).await;
        assert!(get(&definitions, "go", &api_server).await.is_err());
        assert_eq!(api_server.requests().len(), 3, "the first list of this question is young enough");
    }

    #[tokio::test(start_paused = true)]
    async fn a_definition_that_the_cluster_had_is_gone_and_not_unknown() {
        let api_server = ApiServer::holding(&[template("node", "node:1")]);
        let definitions = Definitions::compiled();
        definitions.refresh(&api_server.cluster(), deadline()).await.unwrap();
        api_server.hold(&[]);
        advance(MAX_AGE).await;
        let gone = get(&definitions, "node", &api_server).await.unwrap_err();
        assert!(matches!(&gone, Error::Gone { name, .. } if name == "node"), "{gone}");
        assert!(matches!(get(&definitions, "go", &api_server).await, Err(Error::Unknown { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn the_error_of_an_unknown_name_lists_the_known_ones() {
        let (definitions, api_server) = (Definitions::compiled(), ApiServer::holding(&[]));
        let error = get(&definitions, "nodejs", &api_server).await.unwrap_err().to_string();
        assert_eq!(
            error,
            "there is no pod definition \"nodejs\"; a step may ask for default, fargate, restricted; add \"nodejs\" to \
             pod-definitions/, or `kubectl apply` a PodTemplate of that name to namespace buildkite"
        );
        api_server.hold(&[template("go", "go:1"), template("node", "node:1")]);
        advance(Duration::from_millis(1)).await;
        let error = get(&definitions, "nodejs", &api_server).await.unwrap_err().to_string();
        assert!(error.contains("restricted, or for go, node, the PodTemplates of namespace buildkite;"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_definition_fails_only_its_own_jobs_and_hides_the_compiled_one() {
        let mut broken = template("default", "theirs:1");
        broken["template"]["spec"]["restartPolicy"] = json!("Always");
        let api_server = ApiServer::holding(&[broken, template("node", "node:1")]);
        let definitions = Definitions::compiled();
        assert_eq!(image(&definitions, "node", &api_server).await, "node:1");
        let error = get(&definitions, "default", &api_server).await.unwrap_err().to_string();
        let expected =
            "PodTemplate default in namespace buildkite: template.spec.restartPolicy must be Never, is \"Always\"";
        assert!(error.starts_with(expected), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_names_wait_once_for_an_api_server_that_hangs_and_known_ones_use_the_old_list() {
        let (definitions, api_server) = (Definitions::compiled(), ApiServer::holding(&[template("node", "node:1")]));
        definitions.refresh(&api_server.cluster(), deadline()).await.unwrap();
        api_server.hang();
        advance(Duration::from_millis(1)).await;
        let began = Instant::now();
        let mut seen = Vec::new();
        for name in ["a", "b", "c"] {
            assert_eq!(get(&definitions, name, &api_server).await.unwrap_err().kind(), "ClusterUnavailable");
            seen.push((began.elapsed(), api_server.requests().len()));
        }
        let waited = seen[0].0;
        assert!(!waited.is_zero() && waited <= Duration::from_secs(10), "{waited:?}");
        assert_eq!(seen, [seen[0]; 3], "the others wait no more, and ask nothing");
        assert_eq!(image(&definitions, "node", &api_server).await, "node:1");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_list_a_failure_is_an_error_even_for_a_compiled_definition() {
        let (definitions, api_server) = (Definitions::compiled(), ApiServer::default());
        api_server.refuse(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "not now");
        let error = get(&definitions, "default", &api_server).await.unwrap_err();
        assert_eq!(error.kind(), "ClusterUnavailable");
        let text = "cannot list the pod definitions of namespace buildkite: the API server cannot serve";
        assert!(chain(&error).starts_with(text), "{}", chain(&error));
        api_server.hold(&[]);
        assert_eq!(get(&definitions, "default", &api_server).await.unwrap().name(), "default");
    }
}
