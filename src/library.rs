//! The pod definitions that a step can choose from: those that were compiled in, and the `PodTemplates` of the namespace.
//!
//! A `PodTemplate` wins over the compiled definition of its name, so that a team can add or change one with `kubectl apply`.
//! Of the `PodTemplates` there is a copy, which serves for a minute.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::{sync::Mutex, time::Instant};

use crate::{
    chain,
    deadline::Deadline,
    eks::{self, Cluster},
    excerpt::excerpt,
    pod_definition::{Invalid, PodDefinition},
    refresh,
};

/// The definition of a step that asks for none.
pub const DEFAULT: &str = "default";

/// How old the copy may be; so long may a job still run in a definition that was replaced.
const AGE: Duration = Duration::from_mins(1);

/// The definitions of `pod-definitions/`, each with its path, as JSON.
const COMPILED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/pod_definitions.rs"));

/// By name. A broken one fails only the jobs that ask for it.
type Definitions = BTreeMap<String, Result<Arc<PodDefinition>, Invalid>>;

/// The definitions, each under its name.
pub struct Library {
    compiled: Definitions,
    cluster: Mutex<Copy>,
    /// The last look before it was due, if it failed, and until when that answers for another one. Locked while somebody looks.
    looked: Mutex<Option<(Arc<eks::Error>, Instant)>>,
}

/// What the namespace held.
#[derive(Default)]
struct Copy {
    definitions: Definitions,
    /// When to look anew; `None` before the first look.
    due: Option<Instant>,
}

/// Why a step has no pod definition to run in.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody wrote one of that name.
    #[error(
        "there is no pod definition \"{name}\"; a step may ask for {compiled}{cluster}; add \"{name}\" to pod-definitions/, or \
         `kubectl apply` a PodTemplate of that name to namespace {namespace}",
        name = excerpt(.name),
        compiled = .compiled.join(", "),
        cluster = if .cluster.is_empty() { String::new() } else {
            format!(", or for {}, the PodTemplates of namespace {namespace}", some(.cluster))
        }
    )]
    Unknown {
        /// What the step asks for.
        name: String,
        /// What it could have asked for.
        compiled: Vec<String>,
        /// What it could have asked for in the cluster.
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
        source: Arc<eks::Error>,
    },
}

impl Library {
    /// The definitions that were compiled in, and no copy yet of those of the cluster.
    pub fn compiled() -> Self {
        let definitions = COMPILED.iter().map(|(origin, json)| {
            // The build has checked each, and seen to it that its name is its own.
            let manifest: Value = serde_json::from_str(json).unwrap_or_default();
            (name(&manifest), PodDefinition::parse(origin, &manifest).map(Arc::new))
        });
        Self { compiled: definitions.collect(), cluster: Mutex::default(), looked: Mutex::default() }
    }

    /// Sees to it that there is a copy, and that it is not too old. One that cannot be refreshed serves on, and the log warns.
    pub async fn refresh(&self, cluster: &Cluster, deadline: Deadline) -> Result<(), Error> {
        self.cluster.lock().await.refresh(cluster, deadline).await.map(drop)
    }

    /// The definition of that name.
    pub async fn get(&self, name: &str, cluster: &Cluster, deadline: Deadline) -> Result<Arc<PodDefinition>, Error> {
        let mut copy = self.cluster.lock().await;
        let new = copy.refresh(cluster, deadline).await?;
        if !new && !copy.definitions.contains_key(name) && !self.compiled.contains_key(name) {
            // Somebody may have added it since. Those who ask for others do not wait meanwhile.
            drop(copy);
            let listed = self.look_again(cluster, deadline).await?;
            copy = self.cluster.lock().await;
            *copy = listed;
        }
        match copy.definitions.get(name).or_else(|| self.compiled.get(name)) {
            Some(definition) => Ok(Arc::clone(definition.as_ref().map_err(Clone::clone)?)),
            None => Err(Error::Unknown {
                name: name.to_owned(),
                compiled: self.compiled.keys().cloned().collect(),
                cluster: copy.definitions.keys().cloned().collect(),
                namespace: cluster.namespace().to_owned(),
            }),
        }
    }

    /// Looks before it is due. After a failure not at once: every event of a burst that asks for an unknown name would wait.
    async fn look_again(&self, cluster: &Cluster, deadline: Deadline) -> Result<Copy, Error> {
        let mut looked = self.looked.lock().await;
        if let Some((failure, until)) = &*looked
            && *until > Instant::now()
        {
            return Err(unlisted(cluster, Arc::clone(failure)));
        }
        let listed = list(cluster, deadline).await.map_err(Arc::new);
        *looked = listed.as_ref().err().map(|failure| (Arc::clone(failure), Instant::now() + refresh::AGAIN));
        listed.map_err(|failure| unlisted(cluster, failure))
    }
}

impl Copy {
    /// Tells whether it was listed just now.
    async fn refresh(&mut self, cluster: &Cluster, deadline: Deadline) -> Result<bool, Error> {
        match self.due {
            Some(due) if due > Instant::now() => return Ok(false),
            Some(_) => match list(cluster, deadline.within(refresh::TIMEOUT)).await {
                Ok(listed) => *self = listed,
                Err(error) => {
                    tracing::warn!(
                        error = chain(&error),
                        "the cluster's pod definitions could not be refreshed; those of before serve on"
                    );
                    self.due = Some(Instant::now() + refresh::AGAIN);
                    return Ok(false);
                }
            },
            None => *self = list(cluster, deadline).await.map_err(|error| unlisted(cluster, error.into()))?,
        }
        Ok(true)
    }
}

/// The first names of many.
fn some(names: &[String]) -> String {
    const MOST: usize = 10;
    let shown: Vec<_> = names.iter().take(MOST).map(|name| excerpt(name)).collect();
    let more = names.len().checked_sub(MOST).filter(|more| *more > 0);
    shown.join(", ") + &more.map(|more| format!(" and {more} more")).unwrap_or_default()
}

fn unlisted(cluster: &Cluster, source: Arc<eks::Error>) -> Error {
    Error::List { namespace: cluster.namespace().to_owned(), source }
}

async fn list(cluster: &Cluster, deadline: Deadline) -> Result<Copy, eks::Error> {
    let namespace = cluster.namespace();
    let path = format!("/api/v1/namespaces/{namespace}/podtemplates");
    // On the heap, since it is rare: every event's future would have room for it.
    let listed = Box::pin(cluster.get(&path, deadline)).await?;
    let items = listed["items"].as_array().into_iter().flatten();
    let definitions = items.map(|item| {
        let name = name(item);
        let origin = format!("PodTemplate {} in namespace {namespace}", excerpt(&name));
        let definition = PodDefinition::of_object(&origin, item);
        (name, definition.map(Arc::new))
    });
    Ok(Copy { definitions: definitions.collect(), due: Some(Instant::now() + AGE) })
}

fn name(manifest: &Value) -> String {
    manifest["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::PoisonError;

    use http::{Request, Response, StatusCode, Uri};
    use kube::client::Body;
    use serde_json::json;

    use super::*;
    use crate::config::fixtures::config;

    /// The API server as this module sees it.
    #[derive(Clone)]
    struct World(Arc<std::sync::Mutex<Answers>>);

    struct Answers {
        /// What it holds; `None` is no answer at all.
        templates: Option<Vec<Value>>,
        /// In place of an answer.
        status: StatusCode,
        lists: usize,
    }

    impl World {
        fn holding(templates: &[Value]) -> Self {
            let answers = Answers { templates: Some(templates.to_vec()), status: StatusCode::OK, lists: 0 };
            Self(Arc::new(std::sync::Mutex::new(answers)))
        }

        fn with<T>(&self, change: impl FnOnce(&mut Answers) -> T) -> T {
            change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
        }

        fn now_holds(&self, templates: &[Value]) {
            self.with(|answers| answers.templates = Some(templates.to_vec()));
        }

        fn lists(&self) -> usize {
            self.with(|answers| answers.lists)
        }

        fn cluster(&self) -> Cluster {
            let world = self.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                assert_eq!(
                    (request.method().as_str(), request.uri().path()),
                    ("GET", "/api/v1/namespaces/buildkite/podtemplates")
                );
                let (status, templates) = world.with(|answers| {
                    answers.lists += 1;
                    (answers.status, answers.templates.clone())
                });
                async move {
                    let Some(items) = templates else { return std::future::pending().await };
                    let body = if status.is_success() {
                        json!({"kind": "PodTemplateList", "apiVersion": "v1", "items": items})
                    } else {
                        json!({"kind": "Status", "status": "Failure", "code": status.as_u16(), "message": "not now"})
                    };
                    let body = Body::from(body.to_string().into_bytes());
                    Ok::<_, std::io::Error>(Response::builder().status(status).body(body).unwrap())
                }
            });
            Cluster::new(kube::Client::new(service, "default"), Uri::from_static("https://example"), &config(&[]))
        }
    }

    /// An item of a list, whose image tells which one it is.
    fn template(name: &str, image: &str) -> Value {
        json!({
            "metadata": {"name": name},
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "agent", "image": image}]}},
        })
    }

    fn deadline() -> Deadline {
        Deadline::after(Duration::from_secs(10))
    }

    async fn image(library: &Library, name: &str, cluster: &Cluster) -> String {
        library.get(name, cluster, deadline()).await.unwrap().agent()["image"].as_str().unwrap().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn the_definitions_of_the_folder_are_compiled_in_and_usable() {
        let (library, cluster) = (Library::compiled(), World::holding(&[]).cluster());
        for (origin, definition) in &library.compiled {
            assert!(definition.is_ok(), "{origin}: {definition:?}");
        }
        for name in [DEFAULT, "fargate"] {
            assert_eq!(library.get(name, &cluster, deadline()).await.unwrap().name(), name);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_definition_of_the_cluster_wins_over_the_compiled_one_of_its_name() {
        let (library, world) = (Library::compiled(), World::holding(&[template("default", "theirs:1")]));
        assert_eq!(image(&library, "default", &world.cluster()).await, "theirs:1");
        assert_eq!(library.get("fargate", &world.cluster(), deadline()).await.unwrap().name(), "fargate");
    }

    #[tokio::test(start_paused = true)]
    async fn within_the_minute_nobody_is_asked_and_after_it_the_copy_is_not_used() {
        let (library, world) = (Library::compiled(), World::holding(&[template("node", "node:1")]));
        let cluster = world.cluster();
        assert_eq!(image(&library, "node", &cluster).await, "node:1");
        world.now_holds(&[template("node", "node:2")]);

        tokio::time::advance(AGE.saturating_sub(Duration::from_secs(1))).await;
        assert_eq!(image(&library, "node", &cluster).await, "node:1");
        assert_eq!(world.lists(), 1);

        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(image(&library, "node", &cluster).await, "node:2");
        assert_eq!(world.lists(), 2);
    }

    /// As after a freeze, which Lambda keeps a function in between two events.
    #[tokio::test(start_paused = true)]
    async fn after_an_hour_the_copy_is_not_used() {
        let (library, world) = (Library::compiled(), World::holding(&[template("default", "theirs:1")]));
        let cluster = world.cluster();
        assert_eq!(image(&library, "default", &cluster).await, "theirs:1");
        world.now_holds(&[]);
        tokio::time::advance(Duration::from_hours(1)).await;
        assert_ne!(image(&library, "default", &cluster).await, "theirs:1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_in_neither_is_asked_for_once_more() {
        let (library, world) = (Library::compiled(), World::holding(&[]));
        let cluster = world.cluster();
        library.refresh(&cluster, deadline()).await.unwrap();
        world.now_holds(&[template("node", "node:1")]);
        assert_eq!(image(&library, "node", &cluster).await, "node:1");
        assert_eq!(world.lists(), 2);
        // The second look counts as a look.
        assert_eq!(image(&library, "node", &cluster).await, "node:1");
        assert_eq!(world.lists(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_name_is_told_the_known_ones() {
        let (library, world) = (Library::compiled(), World::holding(&[]));
        let error = library.get("nodejs", &world.cluster(), deadline()).await.unwrap_err().to_string();
        assert_eq!(
            error,
            "there is no pod definition \"nodejs\"; a step may ask for default, elastic-ci-stack, fargate, restricted; add \"nodejs\" to \
             pod-definitions/, or `kubectl apply` a PodTemplate of that name to namespace buildkite"
        );
        assert_eq!(world.lists(), 1, "it was asked for just now");

        world.now_holds(&[template("go", "go:1"), template("node", "node:1")]);
        let error = library.get("nodejs", &world.cluster(), deadline()).await.unwrap_err().to_string();
        assert!(
            error.contains("may ask for default, elastic-ci-stack, fargate, restricted, or for go, node, the PodTemplates of namespace buildkite;"),
            "{error}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_definition_fails_only_those_that_ask_for_it_and_hides_the_compiled_one() {
        let mut broken = template("default", "theirs:1");
        broken["template"]["spec"]["restartPolicy"] = json!("Always");
        let (library, world) = (Library::compiled(), World::holding(&[broken, template("node", "node:1")]));
        let cluster = world.cluster();
        assert_eq!(image(&library, "node", &cluster).await, "node:1");
        let error = library.get("default", &cluster, deadline()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "PodTemplate default in namespace buildkite: template.spec.restartPolicy must be Never, is \"Always\": a Buildkite \
             job runs once"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_that_cannot_be_refreshed_serves_on_and_is_looked_at_again_soon() {
        let (library, world) = (Library::compiled(), World::holding(&[template("node", "node:1")]));
        let cluster = world.cluster();
        library.refresh(&cluster, deadline()).await.unwrap();
        for status in [StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE] {
            // No answer, and then a bad one.
            world.with(|answers| answers.status = status);
            let templates = (status == StatusCode::SERVICE_UNAVAILABLE).then(Vec::new);
            world.with(|answers| answers.templates = templates);
            tokio::time::advance(AGE).await;
            let asked = Instant::now();
            assert_eq!(image(&library, "node", &cluster).await, "node:1");
            assert!(asked.elapsed() <= refresh::TIMEOUT + Duration::from_millis(1), "{:?}", asked.elapsed());
        }
        let lists = world.lists();
        assert_eq!(image(&library, "node", &cluster).await, "node:1");
        assert_eq!(world.lists(), lists, "not every event of a burst waits");

        world.with(|answers| answers.status = StatusCode::OK);
        world.now_holds(&[template("node", "node:2")]);
        tokio::time::advance(refresh::AGAIN).await;
        assert_eq!(image(&library, "node", &cluster).await, "node:2");
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_names_wait_once_for_an_api_server_that_hangs() {
        let (library, world) = (Library::compiled(), World::holding(&[]));
        let cluster = world.cluster();
        library.refresh(&cluster, deadline()).await.unwrap();
        // With a copy that is too old, and with one that is not due yet.
        for (age, looks) in [(AGE, 2), (refresh::AGAIN, 1)] {
            world.with(|answers| answers.templates = None);
            tokio::time::advance(age).await;
            let (asked, lists) = (Instant::now(), world.lists());
            for name in ["a", "b", "c"] {
                let error = library.get(name, &cluster, deadline()).await.unwrap_err();
                let Error::List { source, .. } = &error else { panic!("{error}") };
                assert_eq!(source.kind(), "Timeout");
            }
            assert!(asked.elapsed() <= Duration::from_secs(13), "{:?}", asked.elapsed());
            assert_eq!(world.lists() - lists, looks, "the short look, and one that has all the time");

            tokio::time::advance(refresh::AGAIN).await;
            world.now_holds(&[template("a", "a:1")]);
            assert_eq!(image(&library, "a", &cluster).await, "a:1");
            world.now_holds(&[]);
            tokio::time::advance(AGE).await;
            library.refresh(&cluster, deadline()).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn known_names_do_not_wait_for_those_who_ask_for_an_unknown_one() {
        let (library, world) = (Library::compiled(), World::holding(&[template("node", "node:1")]));
        let cluster = world.cluster();
        library.refresh(&cluster, deadline()).await.unwrap();
        world.with(|answers| answers.templates = None);
        let asked = Instant::now();
        let unknown = async { library.get("nodejs", &cluster, deadline()).await.unwrap_err() };
        let known = async {
            tokio::task::yield_now().await;
            assert_eq!(image(&library, "node", &cluster).await, "node:1");
            asked.elapsed()
        };
        let (_, waited) = tokio::join!(unknown, known);
        assert_eq!(waited, Duration::ZERO);
        assert!(asked.elapsed() > refresh::TIMEOUT, "the other has waited for the API server");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_copy_a_failure_is_an_error_even_of_a_compiled_definition() {
        let (library, world) = (Library::compiled(), World::holding(&[]));
        world.with(|answers| answers.status = StatusCode::SERVICE_UNAVAILABLE);
        let error = library.get("default", &world.cluster(), deadline()).await.unwrap_err();
        let Error::List { source, .. } = &error else { panic!("{error}") };
        assert_eq!(source.kind(), "ClusterUnavailable");
        assert!(
            chain(&error)
                .starts_with("cannot list the pod definitions of namespace buildkite: the API server cannot serve")
        );

        world.with(|answers| answers.status = StatusCode::OK);
        assert_eq!(library.get("default", &world.cluster(), deadline()).await.unwrap().name(), "default");
    }
}
