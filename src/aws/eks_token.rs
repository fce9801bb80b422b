//! The bearer token that an EKS cluster accepts: a presigned `GetCallerIdentity`, which the cluster sends to STS.
//!
//! Built as aws-iam-authenticator builds and verifies it: <https://github.com/kubernetes-sigs/aws-iam-authenticator>, `pkg/token`.
//! It needs no request, and names no cluster: the cluster's name is in the signature only.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use aws_credential_types::Credentials;
use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac::{self, HMAC_SHA256, Key},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::HeaderValue;
use k8s_openapi::jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use tower::BoxError;

/// How long a token is used. The cluster accepts it for 15 minutes, and asks STS about it only when it first sees it.
pub const MAX_AGE: Duration = Duration::from_mins(10);

/// In seconds, as the reference client sets it; the cluster checks the date alone.
const EXPIRES: u32 = 60;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// What is encoded in a query: all but RFC 3986's unreserved characters.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The token for a cluster, signed at `now`; it proves the signer to the region's STS.
///
/// The names of the steps are AWS': <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>.
pub fn token(credentials: &Credentials, region: &str, cluster: &str, now: SystemTime) -> Result<String, BoxError> {
    let time = Timestamp::try_from(now)?.strftime("%Y%m%dT%H%M%SZ").to_string();
    let date = &time[..8];
    let scope = format!("{date}/{region}/sts/aws4_request");
    let host = format!("sts.{region}.{}", dns_suffix(region));
    let credential = format!("{}/{scope}", credentials.access_key_id());
    let session_token = credentials.session_token().map(|token| format!("&X-Amz-Security-Token={}", encoded(token)));

    // In the order of the names, so that it is canonical as it is.
    let query = format!(
        "Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Algorithm={ALGORITHM}&X-Amz-Credential={}&X-Amz-Date={time}\
        &X-Amz-Expires={EXPIRES}{}&X-Amz-SignedHeaders=host%3Bx-k8s-aws-id",
        encoded(&credential),
        session_token.unwrap_or_default(),
    );
    let headers = format!("host:{host}\nx-k8s-aws-id:{cluster}\n\nhost;x-k8s-aws-id");
    let canonical_request = format!("GET\n/\n{query}\n{headers}\n{}", hash(""));
    let string_to_sign = format!("{ALGORITHM}\n{time}\n{scope}\n{}", hash(&canonical_request));

    let secret = Key::new(HMAC_SHA256, format!("AWS4{}", credentials.secret_access_key()).as_bytes());
    let signing_key = [date, region, "sts", "aws4_request"]
        .into_iter()
        .fold(secret, |key, part| Key::new(HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref()));
    let signature = hex::encode(hmac::sign(&signing_key, string_to_sign.as_bytes()));
    let url = format!("https://{host}/?{query}&X-Amz-Signature={signature}");
    Ok(format!("k8s-aws-v1.{}", BASE64_URL_SAFE_NO_PAD.encode(url)))
}

fn encoded(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, RESERVED)
}

fn hash(text: &str) -> String {
    hex::encode(digest(&SHA256, text.as_bytes()))
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
    last: Mutex<Option<(HeaderValue, SystemTime)>>,
}

impl Signer {
    /// `credentials` are those of the function's role, good for as long as this environment lives.
    pub fn new(credentials: Credentials, region: &str, cluster: &str) -> Self {
        Self { credentials, region: region.to_owned(), cluster: cluster.to_owned(), last: Mutex::default() }
    }

    /// The `Authorization` header, with the last token or, if that is too old, a new one.
    pub fn authorization(&self, now: SystemTime) -> Result<HeaderValue, BoxError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back says nothing about the token's age.
        let fresh = |signed: &SystemTime| now.duration_since(*signed).is_ok_and(|age| age < MAX_AGE);
        if let Some((header, _)) = last.as_ref().filter(|(_, signed)| fresh(signed)) {
            return Ok(header.clone());
        }
        let token = token(&self.credentials, &self.region, &self.cluster, now)?;
        let mut header = HeaderValue::try_from(format!("Bearer {token}"))?;
        header.set_sensitive(true);
        *last = Some((header.clone(), now));
        tracing::debug!(cluster = self.cluster, "EKS token signed");
        Ok(header)
    }

    /// Forgets the token, which the API server refused.
    pub fn expire(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use lab::eks_token::{Refusal, Verifier};

    use super::*;

    const REGION: &str = "eu-west-1";
    const CLUSTER: &str = "example-cluster";
    const SECRET_ACCESS_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    const SESSION_TOKEN: &str = "example/session+token==";

    /// 2026-01-15T10:00:05Z
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_768_471_205)
    }

    fn credentials(session_token: &str) -> Credentials {
        Credentials::new("AKIDEXAMPLE", SECRET_ACCESS_KEY, Some(session_token.to_owned()), None, "test")
    }

    /// The lab's copy of the authenticator's rules, each of which is proved there.
    fn verifier(region: &str, session_token: &str) -> Verifier {
        Verifier {
            cluster: CLUSTER.to_owned(),
            region: region.to_owned(),
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret_access_key: SECRET_ACCESS_KEY.to_owned(),
            session_token: session_token.to_owned(),
        }
    }

    fn url(token: &str) -> String {
        String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(token.strip_prefix("k8s-aws-v1.").unwrap()).unwrap()).unwrap()
    }

    /// The signature is botocore's, for the same credentials, time and request.
    #[test]
    fn the_known_answer() {
        let expected = "https://sts.eu-west-1.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15\
            &X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20260115%2Feu-west-1%2Fsts%2Faws4_request\
            &X-Amz-Date=20260115T100005Z&X-Amz-Expires=60&X-Amz-Security-Token=example%2Fsession%2Btoken%3D%3D\
            &X-Amz-SignedHeaders=host%3Bx-k8s-aws-id\
            &X-Amz-Signature=11207f3a76fd6dc7f8a6e07db764b281f11503cdf60544c49c670810989db47b";
        let token = token(&credentials(SESSION_TOKEN), REGION, CLUSTER, now()).unwrap();
        assert_eq!(url(&token), expected);
    }

    #[test]
    fn each_partition_has_its_own_sts() {
        let regions = [
            ("us-east-1", "sts.us-east-1.amazonaws.com"),
            ("ap-southeast-2", "sts.ap-southeast-2.amazonaws.com"),
            ("us-gov-west-1", "sts.us-gov-west-1.amazonaws.com"),
            ("cn-north-1", "sts.cn-north-1.amazonaws.com.cn"),
            ("eusc-de-east-1", "sts.eusc-de-east-1.amazonaws.eu"),
            ("us-iso-east-1", "sts.us-iso-east-1.c2s.ic.gov"),
            ("us-isob-east-1", "sts.us-isob-east-1.sc2s.sgov.gov"),
            ("eu-isoe-west-1", "sts.eu-isoe-west-1.cloud.adc-e.uk"),
            ("us-isof-south-1", "sts.us-isof-south-1.csp.hci.ic.gov"),
        ];
        for (region, host) in regions {
            let token = token(&credentials(SESSION_TOKEN), region, CLUSTER, now()).unwrap();
            assert!(url(&token).starts_with(&format!("https://{host}/?")), "{}", url(&token));
            let verified = verifier(region, SESSION_TOKEN).verify(&token, now());
            assert!(verified.is_ok(), "{region}: {verified:?}");
        }
    }

    #[test]
    fn a_long_session_token_fits() {
        let long = "a".repeat(1_034);
        let token = token(&credentials(&long), REGION, CLUSTER, now()).unwrap();
        assert!(verifier(REGION, &long).verify(&token, now()).is_ok(), "{} bytes", token.len());
    }

    #[test]
    fn a_token_in_use_is_not_near_its_end() {
        let token = token(&credentials(SESSION_TOKEN), REGION, CLUSTER, now()).unwrap();
        let after = |age| verifier(REGION, SESSION_TOKEN).verify(&token, now() + age).map(drop);
        assert_eq!(after(MAX_AGE + Duration::from_mins(1)), Ok(()));
        assert_eq!(after(Duration::from_secs(901)), Err(Refusal::Expired));
    }

    #[test]
    fn a_signer_keeps_its_token_for_ten_minutes_unless_it_is_refused() {
        let signer = Signer::new(credentials(SESSION_TOKEN), REGION, CLUSTER);
        let after = |seconds| signer.authorization(now() + Duration::from_secs(seconds)).unwrap();
        let first = after(0);
        assert!(first.is_sensitive());
        assert_eq!(after(599), first);
        let second = after(600);
        assert_ne!(second, first);
        assert_eq!(after(1_199), second);
        signer.expire();
        let third = after(1_199);
        assert_ne!(third, second);
        assert_ne!(after(0), third, "a clock that was set back");
    }
}
