//! The client of the API server: TLS by the cluster's own CA alone, our token on every request, and a time limit.

use std::{sync::Arc, time::Duration};

use http::{Request, Response, StatusCode, Uri, header::AUTHORIZATION};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioExecutor};
use kube::client::{Body, ConfigExt};
use tower::{BoxError, ServiceBuilder, retry::Policy};

use super::token::Signer;
use crate::config::CertificateAuthority;

/// A whole request, from the look at the pool to the answer's head.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Of which this much may pass until there is a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A client for one API server. kube's own stack is not used: it repeats requests for minutes and logs every failure.
pub fn connect(endpoint: &Uri, authority: CertificateAuthority, signer: Signer) -> Result<kube::Client, kube::Error> {
    let mut config = kube::Config::new(endpoint.clone());
    config.root_cert = Some(authority.0.into_iter().map(|certificate| certificate.to_vec()).collect());

    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let tls = config.rustls_https_connector_with_connector(tcp)?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(tls);

    let signer = Arc::new(signer);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .timeout(TIMEOUT)
        .retry(SignAnew { signer: Arc::clone(&signer), refused: false })
        .filter(move |request| authorize(&signer, request))
        .service(http);
    Ok(kube::Client::new(service, config.default_namespace))
}

fn authorize(signer: &Signer, mut request: Request<Body>) -> Result<Request<Body>, BoxError> {
    request.headers_mut().insert(AUTHORIZATION, signer.authorization()?);
    Ok(request)
}

/// After a 401, once more with a new token: the API server may have forgotten the old one, or its clock be ahead of ours.
#[derive(Clone)]
struct SignAnew {
    signer: Arc<Signer>,
    refused: bool,
}

impl<B> Policy<Request<Body>, Response<B>, BoxError> for SignAnew {
    type Future = std::future::Ready<()>;

    fn retry(&mut self, _: &mut Request<Body>, result: &mut Result<Response<B>, BoxError>) -> Option<Self::Future> {
        let unauthorized = result.as_ref().is_ok_and(|response| response.status() == StatusCode::UNAUTHORIZED);
        if !unauthorized || self.refused {
            return None;
        }
        self.refused = true;
        self.signer.expire();
        Some(std::future::ready(()))
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        let mut copy = Request::new(request.body().try_clone()?);
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        Some(copy)
    }
}
