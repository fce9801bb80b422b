//! The verifier of EKS bearer tokens: the rules of aws-iam-authenticator, and then the checks of STS.
//!
//! The rules and their order are those of kubernetes-sigs/aws-iam-authenticator `pkg/token`. Where the real one asks STS, this one
//! computes the signature itself, from the keys that it has; it shares no code with the signers.

mod query;
mod signature;
mod sts_host;

use std::time::{Duration, SystemTime};

use base64::{
    DecodeError, Engine,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use jiff::{civil::DateTime, tz::TimeZone};

use self::query::Query;

const PREFIX: &str = "k8s-aws-v1.";
const MAX_TOKEN_BYTES: usize = 4096;
/// Names the cluster of a token; signed, and sent to STS by the cluster.
pub(crate) const CLUSTER_HEADER: &str = "x-k8s-aws-id";
/// How long a token is valid; `X-Amz-Expires` does not matter.
const LIFETIME: Duration = Duration::from_mins(15);
/// How far a signer's clock may be ahead of that of STS.
const SKEW: Duration = Duration::from_mins(5);

/// Decodes as Go's `base64.RawURLEncoding` does: no padding, and not strict about the last bits.
const RAW_URL_ENCODING: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// Verifies tokens for one cluster.
#[derive(Clone)]
pub struct Verifier {
    /// The cluster's name, which the signature must cover.
    pub cluster: String,
    /// The cluster's region, which decides the partition of STS.
    pub region: String,
    /// The only valid key.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: String,
    /// Its session token.
    pub session_token: String,
}

/// The identity of a valid token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The key that signed.
    pub access_key_id: String,
    /// The cluster that it was signed for.
    pub cluster: String,
    /// The region of the STS host.
    pub region: String,
    /// `X-Amz-Date`, in whole seconds.
    pub signed_at: SystemTime,
}

/// Why a token is refused. Up to [`Self::Expired`] in the words and the order of aws-iam-authenticator; the rest is STS.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Rule 1.
    #[error("token is too large")]
    TooLarge,
    /// Rule 2.
    #[error("token is missing expected \"k8s-aws-v1.\" prefix")]
    Prefix,
    /// Rule 3.
    #[error("illegal base64 data: {0}")]
    Base64(#[source] DecodeError),
    /// Rule 4.
    #[error("parse of the pre-signed URL failed: {0}")]
    Url(String),
    /// Rule 5.
    #[error("unexpected scheme \"{0}\" in pre-signed URL")]
    Scheme(String),
    /// Rule 6: no STS host of this partition.
    #[error("unexpected hostname \"{0}\" in pre-signed URL")]
    Host(String),
    /// Rule 6: `sts.amazonaws.com` outside of the commercial partition.
    #[error("global endpoint unsupported in partition")]
    GlobalHost,
    /// Rule 7.
    #[error("unexpected path in pre-signed URL")]
    Path,
    /// Rule 8.
    #[error("malformed query parameter")]
    MalformedQuery,
    /// Rule 9.
    #[error("duplicate query parameter found: \"{0}\"")]
    DuplicateParameter(String),
    /// Rule 10.
    #[error("non-whitelisted query parameter \"{0}\"")]
    ForeignParameter(String),
    /// Rule 11.
    #[error("query parameter with multiple values not supported: \"{0}\"")]
    MultipleValues(String),
    /// Rule 12.
    #[error("unexpected action parameter in pre-signed URL")]
    Action,
    /// Rule 13.
    #[error("client did not sign the x-k8s-aws-id header in the pre-signed URL")]
    ClusterNotSigned,
    /// Rule 14.
    #[error("invalid X-Amz-Expires parameter in pre-signed URL")]
    Expires,
    /// Rule 15.
    #[error("X-Amz-Date parameter must be present in pre-signed URL")]
    NoDate,
    /// Rule 16.
    #[error("error parsing X-Amz-Date parameter \"{0}\"")]
    Date(String),
    /// Rule 17.
    #[error("X-Amz-Date parameter is expired (15 minutes after it was signed)")]
    Expired,
    /// STS: a parameter that its API or the signature requires.
    #[error("STS MissingParameter or InvalidParameterValue: {0}")]
    StsParameter(&'static str),
    /// STS: not a valid key.
    #[error("STS InvalidClientTokenId: unknown access key id")]
    AccessKey,
    /// STS: not the session token of the key.
    #[error("STS InvalidClientTokenId: the session token is not that of the access key id")]
    SessionToken,
    /// STS: the credential's date, region or service.
    #[error("STS SignatureDoesNotMatch: the credential should be scoped to {0}")]
    Scope(String),
    /// STS: the date is too far in the future.
    #[error("STS SignatureDoesNotMatch: Signature not yet current")]
    NotYetCurrent,
    /// STS: `host` must be signed.
    #[error("STS SignatureDoesNotMatch: the host header must be signed")]
    HostNotSigned,
    /// STS: a signed header that the verifier does not send.
    #[error("STS SignatureDoesNotMatch: the signed header \"{0}\" is not sent")]
    ForeignHeader(String),
    /// STS: another key, another cluster, or another text was signed.
    #[error("STS SignatureDoesNotMatch: the signature is not that of this request for this cluster")]
    Signature,
}

impl Verifier {
    /// Verifies a token as an API server gets it, without the word `Bearer`.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Identity, Refusal> {
        let url = decode(token)?;
        let url = PresignedUrl::split(&url)?;
        if url.scheme != "https" {
            return Err(Refusal::Scheme(url.scheme.to_owned()));
        }
        sts_host::check(url.host, &self.region)?;
        if url.path != "/" {
            return Err(Refusal::Path);
        }
        let query = Query::parse(url.query)?;
        let signed_at = check_parameters(&query, now)?;
        self.ask_sts(url.host, &query, signed_at, now)?;
        Ok(Identity {
            access_key_id: self.access_key_id.clone(),
            cluster: self.cluster.clone(),
            region: sts_host::region(url.host).to_owned(),
            signed_at,
        })
    }

    /// Verifies as STS does a pre-signed URL that came to `host` with this verifier's cluster in the header.
    ///
    /// Returns when it was signed.
    pub(crate) fn verify_as_sts(&self, host: &str, query: &str, now: SystemTime) -> Result<SystemTime, Refusal> {
        let query = Query::parse(query)?;
        let signed_at = check_parameters(&query, now)?;
        self.ask_sts(host, &query, signed_at, now)?;
        Ok(signed_at)
    }

    /// The checks of STS, for a request with the header that names this cluster.
    fn ask_sts(&self, host: &str, query: &Query, signed_at: SystemTime, now: SystemTime) -> Result<(), Refusal> {
        let date = query.get("x-amz-date");
        if query.get("version") != "2011-06-15" {
            return Err(Refusal::StsParameter("Version"));
        }
        if query.get("x-amz-algorithm") != "AWS4-HMAC-SHA256" {
            return Err(Refusal::StsParameter("X-Amz-Algorithm"));
        }
        let credential = query.get("x-amz-credential");
        let (key, scope) = credential.split_once('/').ok_or(Refusal::StsParameter("X-Amz-Credential"))?;
        if key != self.access_key_id {
            return Err(Refusal::AccessKey);
        }
        if query.get("x-amz-security-token") != self.session_token {
            return Err(Refusal::SessionToken);
        }
        let expected = format!("{}/{}/sts/aws4_request", &date[..8], sts_host::region(host));
        if scope != expected {
            return Err(Refusal::Scope(expected));
        }
        if signed_at > now + SKEW {
            return Err(Refusal::NotYetCurrent);
        }
        let headers = self.sent_headers(host, query)?;
        if signature::of(query, &headers, scope, &self.secret_access_key) == query.get("x-amz-signature") {
            Ok(())
        } else {
            Err(Refusal::Signature)
        }
    }

    /// The signed headers, each with the value that the verifier sends.
    fn sent_headers<'a>(&'a self, host: &'a str, query: &'a Query) -> Result<Vec<(&'a str, &'a str)>, Refusal> {
        let headers = query.get("x-amz-signedheaders").split(';').map(|name| match name {
            "host" => Ok((name, host)),
            CLUSTER_HEADER => Ok((name, self.cluster.as_str())),
            other => Err(Refusal::ForeignHeader(other.to_owned())),
        });
        let headers = headers.collect::<Result<Vec<_>, _>>()?;
        if headers.iter().any(|(name, _)| *name == "host") { Ok(headers) } else { Err(Refusal::HostNotSigned) }
    }
}

/// Rules 1 to 4, as far as they are about text.
fn decode(token: &str) -> Result<String, Refusal> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Refusal::TooLarge);
    }
    let encoded = token.strip_prefix(PREFIX).ok_or(Refusal::Prefix)?;
    let encoded = encoded.replace(['\r', '\n'], "");
    let url = RAW_URL_ENCODING.decode(encoded).map_err(Refusal::Base64)?;
    String::from_utf8(url).map_err(|error| Refusal::Url(error.to_string()))
}

/// The parts of a URL as they are written: a parser that normalises would hide a port or an empty path.
struct PresignedUrl<'a> {
    scheme: &'a str,
    host: &'a str,
    path: &'a str,
    query: &'a str,
}

impl<'a> PresignedUrl<'a> {
    fn split(url: &'a str) -> Result<Self, Refusal> {
        url.parse::<hyper::Uri>().map_err(|error| Refusal::Url(error.to_string()))?;
        let url = url.split('#').next().unwrap_or_default();
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, path) = address.split_at(address.find('/').unwrap_or(address.len()));
        Ok(Self { scheme, host, path, query })
    }
}

/// Rules 12 to 17; returns when the token was signed.
fn check_parameters(query: &Query, now: SystemTime) -> Result<SystemTime, Refusal> {
    if query.get("action") != "GetCallerIdentity" {
        return Err(Refusal::Action);
    }
    if !query.get("x-amz-signedheaders").split(';').any(|name| name.eq_ignore_ascii_case(CLUSTER_HEADER)) {
        return Err(Refusal::ClusterNotSigned);
    }
    if !query.get("x-amz-expires").parse::<i64>().is_ok_and(|seconds| (0..=900).contains(&seconds)) {
        return Err(Refusal::Expires);
    }
    let date = query.get("x-amz-date");
    if date.is_empty() {
        return Err(Refusal::NoDate);
    }
    let signed_at = parse_date(date).ok_or_else(|| Refusal::Date(date.to_owned()))?;
    if now > signed_at + LIFETIME {
        return Err(Refusal::Expired);
    }
    Ok(signed_at)
}

/// `YYYYMMDDTHHMMSSZ`, exactly.
fn parse_date(date: &str) -> Option<SystemTime> {
    const FORMAT: &str = "%Y%m%dT%H%M%SZ";
    let parsed = DateTime::strptime(FORMAT, date).ok()?;
    let exact = parsed.strftime(FORMAT).to_string() == date;
    let time = parsed.to_zoned(TimeZone::UTC).ok()?.timestamp();
    exact.then(|| time.into())
}

#[cfg(test)]
pub(crate) mod signer;
#[cfg(test)]
mod tests;
