//! Lists of the API server, which come in pages.

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ListMeta, jiff::Timestamp};
use kube::{
    Resource,
    core::{Request, params::ListParams},
};
use serde::{Deserialize, de::DeserializeOwned};

use super::{cluster::Cluster, error::Error};
use crate::{deadline::Deadline, https::date};

/// A list, all that is needed of it.
#[derive(Debug)]
pub struct Listed<T> {
    /// What is in it.
    pub items: Vec<T>,
    /// When the API server began to answer, by its own clock.
    pub now: Option<Timestamp>,
}

/// One page.
#[derive(Deserialize)]
struct Page<T> {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

impl Cluster {
    pub(super) async fn list<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>, T: DeserializeOwned>(
        &self,
        page: ListParams,
        deadline: Deadline,
    ) -> Result<Listed<T>, Error> {
        self.list_some::<K, T>(page, |_| true, deadline).await
    }

    pub(super) async fn list_some<
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        T: DeserializeOwned,
    >(
        &self,
        mut page: ListParams,
        is_needed: impl Fn(&T) -> bool,
        deadline: Deadline,
    ) -> Result<Listed<T>, Error> {
        let requests = Request::new(K::url_path(&(), Some(&self.namespace)));
        let mut listed = Listed { items: Vec::new(), now: None };
        loop {
            let response = self.send(requests.list(&page), deadline).await?;
            let Page { metadata, items } = self.parse(&response)?;
            listed.items.extend(items.into_iter().filter(&is_needed));
            listed.now = listed.now.or_else(|| date(response.headers()));
            match metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(listed),
            }
        }
    }
}
