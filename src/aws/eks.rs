//! EKS: where the API server of a cluster is, and which certificate authority signs for it.

use aws_config::SdkConfig;
use aws_sdk_eks::Client;
use http::Uri;
use tower::BoxError;

use super::attempts::{Attempts, unlimited_retries};
use crate::{deadline::Deadline, https::CertificateAuthority};

/// What a client is made of. It is made for each request: they are rare, and none is needed where the settings have the endpoint.
#[derive(Clone, Debug)]
pub struct Eks(SdkConfig);

/// Why endpoint and certificate authority are not known.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text shows what the fields are")]
pub enum Error {
    /// EKS refuses, or cannot be reached.
    #[error("cannot read the endpoint of cluster {cluster:?} from EKS{hint}")]
    Describe { cluster: String, hint: &'static str, source: BoxError },
    /// EKS knows the cluster, but it has no usable endpoint or CA, as while it is being created.
    #[error(
        "EKS shows no usable endpoint and certificate authority for cluster {cluster:?} (status {status}); try again when it is ACTIVE"
    )]
    NotReady { cluster: String, status: String },
}

impl Eks {
    /// No request yet.
    pub fn new(config: &SdkConfig) -> Self {
        Self(config.clone())
    }

    /// Endpoint and certificate authority of a cluster.
    pub async fn describe_cluster(
        &self,
        cluster: &str,
        deadline: Deadline,
    ) -> Result<(Uri, CertificateAuthority), Error> {
        let attempts = Attempts::until(deadline, "EKS DescribeCluster");
        let config = aws_sdk_eks::config::Builder::from(&self.0).retry_partition(unlimited_retries());
        let config = config.timeout_config(attempts.timeouts()).interceptor(attempts.clone());
        let request = Client::from_conf(config.build()).describe_cluster().name(cluster);
        let described = attempts.answer(Box::pin(request.send())).await.map_err(|failure| Error::Describe {
            cluster: cluster.to_owned(),
            hint: match failure.code.as_deref() {
                Some("ResourceNotFoundException") => {
                    "; KubernetesClusterIdentifier must be the name of a cluster in the function's region"
                }
                Some("AccessDeniedException") => {
                    "; allow the function's role eks:DescribeCluster, or set KubernetesApiServerEndpoint and \
                     KubernetesCertificateAuthorityData"
                }
                _ => "",
            },
            source: failure.source,
        })?;
        let found = described.cluster();
        let endpoint = found.and_then(|cluster| cluster.endpoint()?.parse().ok());
        let certificate_authority = found.and_then(|cluster| cluster.certificate_authority()?.data()?.parse().ok());
        endpoint.zip(certificate_authority).ok_or_else(|| Error::NotReady {
            cluster: cluster.to_owned(),
            status: found
                .and_then(|cluster| Some(cluster.status()?.to_string()))
                .unwrap_or_else(|| "unknown".to_owned()),
        })
    }
}
