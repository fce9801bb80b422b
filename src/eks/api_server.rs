//! The client of the API server: TLS by the cluster's own CA alone, our token on every request, and a time limit.

use std::{sync::Arc, time::Duration};

use http::{
    HeaderValue, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, USER_AGENT},
};
use kube::client::{Body, middleware::BaseUriLayer};
use rustls::RootCertStore;
use tower::{BoxError, ServiceBuilder, retry::Policy};

use super::token::Signer;
use crate::{
    config::CertificateAuthority,
    https::{self, Plain},
};

/// A whole request, from the look at the pool to the answer's head.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Who asks, for the cluster's audit log.
const AGENT: &str = concat!("agent-scheduler/", env!("CARGO_PKG_VERSION"));

/// A client for one API server. Fails if the CA holds something that is no certificate.
pub fn connect(endpoint: &Uri, authority: CertificateAuthority, signer: Signer) -> Result<kube::Client, BoxError> {
    let mut roots = RootCertStore::empty();
    for certificate in authority.0 {
        roots.add(certificate)?;
    }
    let signer = Arc::new(signer);
    let service = ServiceBuilder::new()
        .layer(BaseUriLayer::new(endpoint.clone()))
        .timeout(TIMEOUT)
        .retry(SignAnew { signer: Arc::clone(&signer), refused: false })
        .filter(move |request| authorize(&signer, request))
        .service(https::client(roots, Plain::Refused)?);
    // Every request says its namespace itself.
    Ok(kube::Client::new(service, ""))
}

fn authorize(signer: &Signer, mut request: Request<Body>) -> Result<Request<Body>, BoxError> {
    request.headers_mut().insert(AUTHORIZATION, signer.authorization()?);
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
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
