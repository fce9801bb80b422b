//! The requests for Secrets. The function writes them, and reads none.

use bytes::Bytes;
use http::Response;
use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::{
    Resource, ResourceExt,
    core::{
        Request as Requests,
        params::{Patch, PatchParams, PostParams},
    },
};

use super::{
    cluster::{Cluster, metadata_only},
    error::Error,
};
use crate::{deadline::Deadline, https::date, pod::metadata::MANAGER};

impl Cluster {
    /// Creates or changes a Secret by server-side apply. Its values do not come back.
    pub async fn apply_secret(&self, secret: &Secret, how: &PatchParams, deadline: Deadline) -> Result<(), Error> {
        let secrets = Requests::new(Secret::url_path(&(), Some(&self.namespace)));
        let request = secrets.patch(&secret.name_any(), how, &Patch::Apply(secret));
        self.send(metadata_only(request), deadline).await.map(drop)
    }

    /// Creates a Secret. `false` if there is one of its name. Its values do not come back.
    pub async fn create_secret(&self, secret: &Secret, deadline: Deadline) -> Result<bool, Error> {
        Ok(self.post_secret(secret, false, deadline).await?.is_some())
    }

    /// The API server's time, if there is no Secret of that name and it would take this one. `None` if there is one.
    pub async fn try_secret(&self, secret: &Secret, deadline: Deadline) -> Result<Option<Timestamp>, Error> {
        let response = self.post_secret(secret, true, deadline).await?;
        Ok(response.map(|response| date(response.headers()).unwrap_or_default()))
    }

    async fn post_secret(
        &self,
        secret: &Secret,
        dry_run: bool,
        deadline: Deadline,
    ) -> Result<Option<Response<Bytes>>, Error> {
        let secrets = Requests::new(Secret::url_path(&(), Some(&self.namespace)));
        let how = PostParams { dry_run, field_manager: Some(MANAGER.to_owned()) };
        let body = serde_json::to_vec(secret).map_err(|error| Error::Client(error.into()))?;
        match self.send(metadata_only(secrets.create(&how, body)), deadline).await {
            Ok(response) => Ok(Some(response)),
            Err(error) if error.is_already_exists() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
