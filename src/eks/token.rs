//! The bearer token that an EKS cluster accepts: a presigned `GetCallerIdentity`, which the cluster sends to STS.
//!
//! Made as aws-iam-authenticator makes and judges it: <https://github.com/kubernetes-sigs/aws-iam-authenticator>, `pkg/token`.
//! It needs no request, and names no cluster: the cluster's name is in the signature only.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign},
    sign::v4::SigningParams,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::{HeaderValue, Request};
use tower::BoxError;

/// How long a token is used. The cluster takes it for 15 minutes, and asks STS about one only when it first sees it.
const AGE: Duration = Duration::from_mins(10);

/// What the reference client asks for; the cluster goes by the date alone.
const EXPIRES: Duration = Duration::from_mins(1);

/// The token for a cluster, signed at `now`; it tells the region's STS who signed it.
pub fn token(credentials: &Credentials, region: &str, cluster: &str, now: SystemTime) -> Result<String, BoxError> {
    let url = format!("https://sts.{region}.{}/?Action=GetCallerIdentity&Version=2011-06-15", dns_suffix(region));
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(EXPIRES);
    let identity = credentials.clone().into();
    let params = SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("sts")
        .time(now)
        .settings(settings)
        .build()?
        .into();
    let headers = [("x-k8s-aws-id", cluster)];
    let signable = SignableRequest::new("GET", &url, headers.into_iter(), SignableBody::Bytes(&[]))?;
    let (instructions, _) = sign(signable, &params)?.into_parts();
    let mut request = Request::get(&url).body(())?;
    instructions.apply_to_request_http1x(&mut request);
    Ok(format!("k8s-aws-v1.{}", BASE64_URL_SAFE_NO_PAD.encode(request.uri().to_string())))
}

/// The domain of a region's partition: <https://github.com/kubernetes-sigs/aws-iam-authenticator>, `pkg/endpoints`.
fn dns_suffix(region: &str) -> &'static str {
    const PARTITIONS: [(&str, &str); 6] = [
        ("cn-", "amazonaws.com.cn"),
        ("eusc-", "amazonaws.eu"),
        ("us-iso-", "c2s.ic.gov"),
        ("us-isob-", "sc2s.sgov.gov"),
        ("eu-isoe-", "cloud.adc-e.uk"),
        ("us-isof-", "csp.hci.ic.gov"),
    ];
    let partition = PARTITIONS.iter().find(|(prefix, _)| region.starts_with(prefix));
    partition.map_or("amazonaws.com", |(_, suffix)| suffix)
}

/// Signs tokens for one cluster and keeps the last one.
pub struct Signer {
    credentials: Credentials,
    region: String,
    cluster: String,
    held: Mutex<Option<(HeaderValue, Instant)>>,
}

impl Signer {
    /// `credentials` are those of the function's role, good for as long as this environment lives.
    pub fn new(credentials: Credentials, region: &str, cluster: &str) -> Self {
        Self { credentials, region: region.to_owned(), cluster: cluster.to_owned(), held: Mutex::default() }
    }

    /// The `Authorization` header, with the token held or, when that is too old, a new one.
    pub fn authorization(&self) -> Result<HeaderValue, BoxError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((header, _)) = held.as_ref().filter(|(_, signed)| signed.elapsed() < AGE) {
            return Ok(header.clone());
        }
        let token = token(&self.credentials, &self.region, &self.cluster, SystemTime::now())?;
        let mut header = HeaderValue::try_from(format!("Bearer {token}"))?;
        header.set_sensitive(true);
        *held = Some((header.clone(), Instant::now()));
        tracing::debug!(cluster = self.cluster, "EKS token signed");
        Ok(header)
    }

    /// Forgets the token, which the API server refused.
    pub fn expire(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
