//! The bare client beside which the function's events per second stand: it posts the same bodies, and nothing else.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{
    Request, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use lab::{Answer, Event, Lab, control_plane::Caller};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{bench::Problem, run::NAMESPACE};

/// What the function posts.
pub struct Body {
    text: String,
    uuid: String,
}

impl Body {
    /// As the lab's stand-in sees it.
    pub async fn of(function: &Path, event: &Event) -> Result<Self, Problem> {
        let lab = Lab::start().await;
        let started = lab.function(function).try_start();
        let process = started.map_err(|source| Problem::Unusable { path: function.to_owned(), source })?;
        let uuid = Uuid::new_v4().to_string();
        match process.invoke(event.clone().uuid(&uuid)).await {
            Answer::Success(_) => {}
            answer => return Err(Problem::Failed { path: function.to_owned(), answer }),
        }
        process.stop().await;
        let posted = lab.kubernetes.requests().into_iter().find(|request| request.method == "POST");
        Ok(Self { text: posted.map(|request| request.body).unwrap_or_default(), uuid })
    }

    /// Posts it for a new job.
    pub async fn post(&self, bare: &mut Caller) -> Result<(), Problem> {
        let body = self.text.replace(&self.uuid, &Uuid::new_v4().to_string());
        let request = Request::post(format!("/apis/batch/v1/namespaces/{NAMESPACE}/jobs?fieldValidation=Strict"));
        // As the function does, asks for no more of the answer than the metadata.
        let request = request.header(ACCEPT, "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
        let response = bare.send(request.header(CONTENT_TYPE, "application/json"), body).await;
        match response.status() {
            StatusCode::CREATED => Ok(()),
            status => Err(Problem::Refused { status, said: String::from_utf8_lossy(response.body()).into_owned() }),
        }
    }

    /// Posts it so often over all of these connections at once, and tells how long that took.
    pub async fn post_all(self: &Arc<Self>, times: usize, callers: Vec<Caller>) -> Result<Duration, Problem> {
        let started = Instant::now();
        let mut posting = JoinSet::new();
        let connections = callers.len();
        for (index, mut caller) in callers.into_iter().enumerate() {
            let body = Arc::clone(self);
            posting.spawn(async move {
                for _ in (index..times).step_by(connections) {
                    body.post(&mut caller).await?;
                }
                Ok(())
            });
        }
        posting.join_all().await.into_iter().collect::<Result<(), Problem>>()?;
        Ok(started.elapsed())
    }
}
