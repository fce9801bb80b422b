//! The client of the API server: TLS by the cluster's own CA alone, our token on every request, and a second try where that can help.

use std::{sync::Arc, time::SystemTime};

use http::{
    HeaderValue, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, USER_AGENT},
};
use kube::client::{Body, middleware::BaseUriLayer};
use tower::{BoxError, ServiceBuilder, retry::Policy};

use super::{cause, token::Signer};
use crate::{
    config::CertificateAuthority,
    https::{self, Plain},
};

/// Who asks, for the cluster's audit log.
const AGENT: &str = concat!("agent-scheduler/", env!("CARGO_PKG_VERSION"));

/// A client for one API server.
pub fn connect(endpoint: &Uri, authority: CertificateAuthority, signer: Signer) -> Result<kube::Client, BoxError> {
    let signer = Arc::new(signer);
    let service = ServiceBuilder::new()
        .layer(BaseUriLayer::new(endpoint.clone()))
        .retry(OnceMore { signer: Arc::clone(&signer), refused: false, broken: false })
        .filter(move |request| authorize(&signer, request))
        .service(https::client(authority, Plain::Refused)?);
    // Every request says its namespace itself.
    Ok(kube::Client::new(service, ""))
}

fn authorize(signer: &Signer, mut request: Request<Body>) -> Result<Request<Body>, BoxError> {
    request.headers_mut().insert(AUTHORIZATION, signer.authorization(SystemTime::now())?);
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
    Ok(request)
}

/// What is worth a second try at once. To repeat is safe: a Job has its name, and a Secret is applied.
///
/// - 401: the API server may have forgotten our token, or its clock be ahead of ours. Once, with a new token.
/// - No answer: a connection that was kept may be dead, which shows only in its use. Once, on another one.
#[derive(Clone)]
struct OnceMore {
    signer: Arc<Signer>,
    refused: bool,
    broken: bool,
}

impl<B> Policy<Request<Body>, Response<B>, BoxError> for OnceMore {
    type Future = std::future::Ready<()>;

    fn retry(&mut self, _: &mut Request<Body>, result: &mut Result<Response<B>, BoxError>) -> Option<Self::Future> {
        let used = match result {
            Ok(response) if response.status() == StatusCode::UNAUTHORIZED => {
                self.signer.expire();
                &mut self.refused
            }
            Err(error) if !matches!(cause(&**error), Some(rustls::Error::InvalidCertificate(_))) => &mut self.broken,
            _ => return None,
        };
        (!std::mem::replace(used, true)).then(|| std::future::ready(()))
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        let mut copy = Request::new(request.body().try_clone()?);
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        Some(copy)
    }
}
