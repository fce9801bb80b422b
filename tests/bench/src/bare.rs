//! A bare client, to compare events per second with: it posts the bodies that the function posts, and nothing else.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{
    Request, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use lab::{Answer, Client, Lab, kubernetes::NAMESPACE};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::subject::{Failure, Subject};

/// What the function posts.
pub struct Body {
    text: String,
    uuid: String,
}

impl Body {
    /// As the lab's stand-in for the API server got it.
    pub async fn of(subject: &Subject) -> Result<Self, Failure> {
        let lab = Lab::start().await;
        let function = subject.start(&lab)?;
        let uuid = Uuid::new_v4().to_string();
        match function.invoke(subject.event.clone().uuid(&uuid)).await {
            Answer::Success(_) => {}
            answer => return Err(subject.failed(&answer)),
        }
        function.stop().await;
        let posted = lab.kubernetes.requests().into_iter().find(|request| request.method == "POST");
        Ok(Self { text: posted.map(|request| request.body).unwrap_or_default(), uuid })
    }

    /// Posts it for a new job.
    pub async fn post(&self, bare: &mut Client) -> Result<(), Failure> {
        let body = self.text.replace(&self.uuid, &Uuid::new_v4().to_string());
        let request = Request::post(format!("/apis/batch/v1/namespaces/{NAMESPACE}/jobs?fieldValidation=Strict"));
        // As the function does, ask for the metadata only.
        let request = request.header(ACCEPT, "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
        let response = bare.send(request.header(CONTENT_TYPE, "application/json"), body).await;
        if response.status() == StatusCode::CREATED {
            return Ok(());
        }
        let said = String::from_utf8_lossy(response.body());
        Err(format!("the API server refuses a body of the bare client: {} {said}", response.status()).into())
    }

    /// Posts it this often over all of these connections at once, and returns how long that took.
    pub async fn post_all(self: &Arc<Self>, times: usize, clients: Vec<Client>) -> Result<Duration, Failure> {
        let started = Instant::now();
        let mut posting = JoinSet::new();
        let connections = clients.len();
        for (index, mut client) in clients.into_iter().enumerate() {
            let body = Arc::clone(self);
            posting.spawn(async move {
                for _ in (index..times).step_by(connections) {
                    body.post(&mut client).await?;
                }
                Ok(())
            });
        }
        posting.join_all().await.into_iter().collect::<Result<(), Failure>>()?;
        Ok(started.elapsed())
    }
}
