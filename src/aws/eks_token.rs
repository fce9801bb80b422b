//! The bearer token that an EKS cluster accepts: a presigned `GetCallerIdentity`, which the cluster sends to STS.
//!
//! Made as aws-iam-authenticator makes and judges it: <https://github.com/kubernetes-sigs/aws-iam-authenticator>, `pkg/token`.
//! It needs no request, and names no cluster: the cluster's name is in the signature only.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
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
    held: Mutex<Option<(HeaderValue, SystemTime)>>,
}

impl Signer {
    /// `credentials` are those of the function's role, good for as long as this environment lives.
    pub fn new(credentials: Credentials, region: &str, cluster: &str) -> Self {
        Self { credentials, region: region.to_owned(), cluster: cluster.to_owned(), held: Mutex::default() }
    }

    /// The `Authorization` header, with the token held or, when that is too old, a new one.
    pub fn authorization(&self, now: SystemTime) -> Result<HeaderValue, BoxError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was put back says nothing about the token's age.
        let fresh = |signed: &SystemTime| now.duration_since(*signed).is_ok_and(|age| age < AGE);
        if let Some((header, _)) = held.as_ref().filter(|(_, signed)| fresh(signed)) {
            return Ok(header.clone());
        }
        let token = token(&self.credentials, &self.region, &self.cluster, now)?;
        let mut header = HeaderValue::try_from(format!("Bearer {token}"))?;
        header.set_sensitive(true);
        *held = Some((header.clone(), now));
        tracing::debug!(cluster = self.cluster, "EKS token signed");
        Ok(header)
    }

    /// Forgets the token, which the API server refused.
    pub fn expire(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use lab::eks_token::{Refusal, Verifier};

    use super::*;

    const REGION: &str = "eu-west-1";
    const CLUSTER: &str = "example-cluster";
    const SESSION_TOKEN: &str = "example/session+token==";

    /// 2026-01-15T10:00:05Z
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_768_471_205)
    }

    fn credentials(session_token: &str) -> Credentials {
        Credentials::new(
            "AKIDEXAMPLE",
            "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            Some(session_token.to_owned()),
            None,
            "test",
        )
    }

    fn verifier(region: &str, session_token: &str) -> Verifier {
        Verifier {
            cluster: CLUSTER.to_owned(),
            region: region.to_owned(),
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret_access_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned(),
            session_token: session_token.to_owned(),
        }
    }

    fn good() -> String {
        token(&credentials(SESSION_TOKEN), REGION, CLUSTER, now()).unwrap()
    }

    fn url(token: &str) -> String {
        String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(token.strip_prefix("k8s-aws-v1.").unwrap()).unwrap()).unwrap()
    }

    fn judged(token: &str) -> Result<(), Refusal> {
        verifier(REGION, SESSION_TOKEN).verify(token, now()).map(drop)
    }

    /// Our token keeps the rule: it is accepted, and refused in the rule's words as soon as the rule alone is broken.
    fn holds(words: &str, broken: impl FnOnce(&str) -> String) {
        assert_eq!(judged(&good()), Ok(()));
        let refusal = judged(&broken(&good())).unwrap_err().to_string();
        assert!(refusal.contains(words), "{refusal}");
    }

    /// The same, with a change of the URL within the token.
    fn url_holds(words: &str, from: &str, to: &str) {
        holds(words, |token| {
            let (url, broken) = (url(token), url(token).replacen(from, to, 1));
            assert_ne!(url, broken, "{from} is not in the URL");
            format!("k8s-aws-v1.{}", BASE64_URL_SAFE_NO_PAD.encode(broken))
        });
    }

    #[test]
    fn rule_1_it_is_not_too_large() {
        holds("token is too large", |token| token.to_owned() + &"A".repeat(4096));
        let long = "a".repeat(1_034);
        let token = token(&credentials(&long), REGION, CLUSTER, now()).unwrap();
        assert!(token.len() <= 4096, "{}", token.len());
        assert!(verifier(REGION, &long).verify(&token, now()).is_ok());
    }

    #[test]
    fn rule_2_it_has_the_prefix() {
        holds("token is missing expected", |token| token.replacen("k8s-aws-v1.", "k8s-aws-v2.", 1));
    }

    #[test]
    fn rule_3_it_is_base64url_without_padding() {
        holds("base64", |token| token.to_owned() + "=");
        holds("base64", |token| token.to_owned() + "+/");
    }

    #[test]
    fn rule_4_it_holds_a_url() {
        holds("parse", |_| format!("k8s-aws-v1.{}", BASE64_URL_SAFE_NO_PAD.encode("https://[sts/ ?")));
    }

    #[test]
    fn rule_5_its_scheme_is_https() {
        url_holds("unexpected scheme", "https://", "http://");
    }

    #[test]
    fn rule_6_its_host_is_the_sts_of_the_regions_partition() {
        url_holds("unexpected hostname", "sts.eu-west-1.amazonaws.com", "sts.eu-west-1.amazonaws.com:443");
        url_holds("unexpected hostname", "sts.eu-west-1.amazonaws.com", "sts.eu-west-1.amazonaws.com.cn");
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
            let judged = verifier(region, SESSION_TOKEN).verify(&token, now());
            assert!(judged.is_ok(), "{region}: {judged:?}");
        }
    }

    #[test]
    fn rule_7_its_path_is_one_slash() {
        url_holds("unexpected path in pre-signed URL", "amazonaws.com/?", "amazonaws.com?");
    }

    #[test]
    fn rule_8_its_query_has_no_semicolon() {
        url_holds("malformed query parameter", "&Version", ";Version");
    }

    #[test]
    fn rule_9_no_two_names_differ_in_case_only() {
        url_holds("duplicate query parameter found", "&Version", "&action=GetCallerIdentity&Version");
    }

    #[test]
    fn rule_10_it_has_no_parameter_but_the_nine() {
        url_holds("non-whitelisted query parameter", "&Version", "&x-k8s-aws-id=example-cluster&Version");
    }

    #[test]
    fn rule_11_each_parameter_has_one_value() {
        url_holds(
            "query parameter with multiple values not supported",
            "&Version",
            "&Action=GetCallerIdentity&Version",
        );
    }

    #[test]
    fn rule_12_it_asks_who_is_calling() {
        url_holds("unexpected action parameter", "GetCallerIdentity", "getCallerIdentity");
    }

    #[test]
    fn rule_13_it_signs_the_clusters_header() {
        assert!(url(&good()).contains("X-Amz-SignedHeaders=host%3Bx-k8s-aws-id&"), "{}", url(&good()));
        url_holds("client did not sign the x-k8s-aws-id header", "host%3Bx-k8s-aws-id", "host");
    }

    #[test]
    fn rule_14_it_expires_within_fifteen_minutes() {
        url_holds("invalid X-Amz-Expires parameter", "X-Amz-Expires=60", "X-Amz-Expires=901");
    }

    #[test]
    fn rule_15_it_has_a_date() {
        url_holds("X-Amz-Date parameter must be present", "X-Amz-Date=20260115T100005Z", "X-Amz-Date=");
    }

    #[test]
    fn rule_16_its_date_has_the_short_form() {
        url_holds("error parsing X-Amz-Date parameter", "20260115T100005Z", "2026-01-15T10:00:05Z");
    }

    #[test]
    fn rule_17_it_is_good_for_fifteen_minutes() {
        let verifier = verifier(REGION, SESSION_TOKEN);
        let age = |seconds| verifier.verify(&good(), now() + Duration::from_secs(seconds)).map(drop);
        assert_eq!(age(0), Ok(()));
        assert_eq!(age(AGE.as_secs() + 60), Ok(()), "a token in use is not near its end");
        assert_eq!(age(901), Err(Refusal::Expired));
    }

    #[test]
    fn what_sts_checks_is_signed() {
        url_holds("SignatureDoesNotMatch", "X-Amz-Expires=60", "X-Amz-Expires=61");
        let mut other = verifier(REGION, SESSION_TOKEN);
        other.cluster = "another-cluster".to_owned();
        assert_eq!(other.verify(&good(), now()).map(drop), Err(Refusal::Signature));
    }

    /// The signature is botocore's, for the same credentials, time and request.
    #[test]
    fn the_known_answer() {
        let expected = "https://sts.eu-west-1.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15\
            &X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20260115%2Feu-west-1%2Fsts%2Faws4_request\
            &X-Amz-Date=20260115T100005Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host%3Bx-k8s-aws-id\
            &X-Amz-Signature=11207f3a76fd6dc7f8a6e07db764b281f11503cdf60544c49c670810989db47b\
            &X-Amz-Security-Token=example%2Fsession%2Btoken%3D%3D";
        assert_eq!(url(&good()), expected);
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
        assert_ne!(after(0), third, "a clock that was put back");
        let token = third.to_str().unwrap().strip_prefix("Bearer ").unwrap();
        assert!(verifier(REGION, SESSION_TOKEN).verify(token, now() + Duration::from_secs(1_199)).is_ok());
    }
}
