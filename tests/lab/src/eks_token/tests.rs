//! One valid token, and each rule broken once.

use std::time::UNIX_EPOCH;

use super::{
    signer::{Signer, token},
    *,
};

/// 2026-01-15T10:00:00Z, the `X-Amz-Date` of the good token.
const SIGNED_AT: u64 = 1_768_471_200;

/// The signature of the good token as another program computed it: Python's hashlib and hmac, from the text of AWS's description.
const KNOWN_SIGNATURE: &str = "093845dec7a6506817b0e9edeab4a8ff3e22201dd873e55c9075f006f1dbc2b3";

fn verifier(region: &str) -> Verifier {
    Verifier {
        cluster: "example-cluster".to_owned(),
        region: region.to_owned(),
        access_key_id: "ASIAEXAMPLEKEY".to_owned(),
        secret_access_key: "secret+example/key".to_owned(),
        session_token: "session/token+with=signs".to_owned(),
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn verify(url: &str) -> Result<Identity, Refusal> {
    verifier("us-east-1").verify(&token(url), at(SIGNED_AT))
}

fn presigned(host: &str, region: &str, cluster: &str, signed_headers: &str) -> String {
    let keys = Verifier { cluster: cluster.to_owned(), ..verifier(region) };
    Signer { host, region, date: "20260115T100000Z", signed_headers }.url(&keys)
}

fn good() -> String {
    presigned("sts.us-east-1.amazonaws.com", "us-east-1", "example-cluster", "host;x-k8s-aws-id")
}

#[test]
fn a_good_token_is_accepted() {
    assert!(good().ends_with(KNOWN_SIGNATURE), "{}", good());
    let identity = Identity {
        access_key_id: "ASIAEXAMPLEKEY".to_owned(),
        cluster: "example-cluster".to_owned(),
        region: "us-east-1".to_owned(),
        signed_at: at(SIGNED_AT),
    };
    assert_eq!(verify(&good()), Ok(identity));
}

#[test]
fn the_encoding_is_base64url_without_padding() {
    let verify = |token: &str| verifier("us-east-1").verify(token, at(SIGNED_AT));
    let token = token(&good());
    assert_eq!(verify(&format!("{PREFIX}{}", "A".repeat(4086))), Err(Refusal::TooLarge), "rule 1: 4097 bytes");
    assert_ne!(verify(&format!("{PREFIX}{}", "A".repeat(4085))), Err(Refusal::TooLarge), "rule 1: 4096 bytes");
    assert_eq!(verify(&token.replace("v1", "v2")), Err(Refusal::Prefix), "rule 2");
    assert!(matches!(verify(&format!("{token}=")), Err(Refusal::Base64(_))), "rule 3: padded");
    assert!(matches!(verify(&format!("{PREFIX}ab+/")), Err(Refusal::Base64(_))), "rule 3: standard alphabet");
    assert!(verify(&format!("{}\r\n{}", &token[..40], &token[40..])).is_ok(), "rule 3: line breaks are skipped");
}

/// Each case changes the good URL in one place.
#[test]
fn every_rule_is_held() {
    let text = str::to_owned;
    let cases = [
        ("4: no URL", "/?Action", "/ ?Action", Refusal::Url(text("invalid uri character"))),
        ("5: scheme", "https://", "http://", Refusal::Scheme(text("http"))),
        ("6: port", ".com/", ".com:443/", Refusal::Host(text("sts.us-east-1.amazonaws.com:443"))),
        ("6: other service", "//sts.", "//sns.", Refusal::Host(text("sns.us-east-1.amazonaws.com"))),
        ("6: too short", "us-east-1.amazonaws.com/", "com/", Refusal::Host(text("sts.com"))),
        ("6: no region", "sts.us-east-1.", "sts.-.", Refusal::Host(text("sts.-.amazonaws.com"))),
        ("6: other domain", "amazonaws.com/", "example.com/", Refusal::Host(text("sts.us-east-1.example.com"))),
        ("6: other partition", ".amazonaws.com/", ".c2s.ic.gov/", Refusal::Host(text("sts.us-east-1.c2s.ic.gov"))),
        ("6: other domain of AWS", ".com/", ".com.cn/", Refusal::Host(text("sts.us-east-1.amazonaws.com.cn"))),
        ("7: empty path", ".com/?", ".com?", Refusal::Path),
        ("7: two slashes", ".com/?", ".com//?", Refusal::Path),
        ("8: semicolon in a value", "host%3Bx", "host;x", Refusal::MalformedQuery),
        ("8: semicolon for &", "&Version", ";Version", Refusal::MalformedQuery),
        ("8: broken escape", "Expires=60", "Expires=%6", Refusal::MalformedQuery),
        ("9: duplicate", "&Version", "&action=x&Version", Refusal::DuplicateParameter(text("action"))),
        ("10: foreign", "&Version", "&x-k8s-aws-id=x&Version", Refusal::ForeignParameter(text("x-k8s-aws-id"))),
        ("11: two values", "&Version", "&Action=x&Version", Refusal::MultipleValues(text("Action"))),
        ("12: action", "=GetCallerIdentity", "=getcalleridentity", Refusal::Action),
        ("13: cluster", "%3Bx-k8s-aws-id", "", Refusal::ClusterNotSigned),
        ("14: too long", "Expires=60", "Expires=901", Refusal::Expires),
        ("14: negative", "Expires=60", "Expires=-1", Refusal::Expires),
        ("14: absent", "&X-Amz-Expires=60", "", Refusal::Expires),
        ("15: empty", "X-Amz-Date=20260115T100000Z", "X-Amz-Date=", Refusal::NoDate),
        ("15: absent", "&X-Amz-Date=20260115T100000Z", "", Refusal::NoDate),
        ("16: form", "=20260115T100000Z", "=2026-01-15T10:00:00Z", Refusal::Date(text("2026-01-15T10:00:00Z"))),
        ("16: no date", "=20260115T100000Z", "=20261315T100000Z", Refusal::Date(text("20261315T100000Z"))),
        ("STS: version", "2011-06-15", "2011-06-16", Refusal::StsParameter("Version")),
        ("STS: algorithm", "SHA256", "SHA1", Refusal::StsParameter("X-Amz-Algorithm")),
        (
            "STS: credential",
            "%2F20260115%2Fus-east-1%2Fsts%2Faws4_request",
            "",
            Refusal::StsParameter("X-Amz-Credential"),
        ),
        ("STS: key", "ASIAEXAMPLEKEY", "ASIAEXAMPLEKEX", Refusal::AccessKey),
        ("STS: session", "session%2F", "session%2B", Refusal::SessionToken),
        ("STS: service", "%2Fsts%2F", "%2Feks%2F", scope("20260115/us-east-1/sts/aws4_request")),
        ("STS: region", "//sts.us-east-1", "//sts.us-west-2", scope("20260115/us-west-2/sts/aws4_request")),
        ("STS: date", "20260115%2F", "20260114%2F", scope("20260115/us-east-1/sts/aws4_request")),
        ("STS: header", "host%3B", "accept%3Bhost%3B", Refusal::ForeignHeader(text("accept"))),
        ("STS: signature", "2b3", "2b4", Refusal::Signature),
        ("STS: text", "Expires=60", "Expires=61", Refusal::Signature),
    ];
    for (name, part, change, refusal) in cases {
        let url = good();
        assert!(url.contains(part), "{name}: nothing to change");
        assert_eq!(verify(&url.replacen(part, change, 1)), Err(refusal), "{name}");
    }
}

fn scope(expected: &str) -> Refusal {
    Refusal::Scope(expected.to_owned())
}

#[test]
fn a_token_is_good_from_five_minutes_before_to_fifteen_after_its_date() {
    let verify = |now| verifier("us-east-1").verify(&token(&good()), at(now));
    assert_eq!(verify(SIGNED_AT - 301), Err(Refusal::NotYetCurrent));
    assert!(verify(SIGNED_AT - 300).is_ok());
    assert!(verify(SIGNED_AT + 900).is_ok(), "X-Amz-Expires does not count");
    assert_eq!(verify(SIGNED_AT + 901), Err(Refusal::Expired), "rule 17");
}

#[test]
fn the_signature_covers_cluster_and_host() {
    let signed = |cluster, headers| presigned("sts.us-east-1.amazonaws.com", "us-east-1", cluster, headers);
    assert_eq!(verify(&signed("other-cluster", "host;x-k8s-aws-id")), Err(Refusal::Signature));
    assert_eq!(verify(&signed("example-cluster", "x-k8s-aws-id")), Err(Refusal::HostNotSigned));
}

#[test]
fn each_partition_has_its_own_hosts() {
    let verify = |own_region, host, region| {
        let url = presigned(host, region, "example-cluster", "host;x-k8s-aws-id");
        verifier(own_region).verify(&token(&url), at(SIGNED_AT)).map(|identity| identity.region)
    };
    let accepted = [
        ("eu-west-1", "sts.us-east-1.amazonaws.com", "us-east-1"),
        ("us-east-1", "sts-fips.us-east-1.amazonaws.com", "us-east-1"),
        ("us-east-1", "sts.us-east-1.api.aws", "us-east-1"),
        ("us-east-1", "sts.xx-new-1.amazonaws.com", "xx-new-1"),
        ("us-east-1", "sts.amazonaws.com", "us-east-1"),
        ("cn-north-1", "sts.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("us-gov-west-1", "sts.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("eusc-de-east-1", "sts.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1"),
        ("us-iso-east-1", "sts.us-iso-east-1.c2s.ic.gov", "us-iso-east-1"),
        ("us-isob-east-1", "sts.us-isob-east-1.sc2s.sgov.gov", "us-isob-east-1"),
        ("eu-isoe-west-1", "sts.eu-isoe-west-1.cloud.adc-e.uk", "eu-isoe-west-1"),
        ("us-isof-south-1", "sts.us-isof-south-1.csp.hci.ic.gov", "us-isof-south-1"),
    ];
    for (own_region, host, region) in accepted {
        assert_eq!(verify(own_region, host, region).as_deref(), Ok(region), "{host} for {own_region}");
    }
    let refused = [
        ("cn-north-1", "sts.cn-north-1.amazonaws.com", "cn-north-1"),
        ("us-east-1", "sts.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("us-iso-east-1", "sts.us-iso-east-1.api.aws", "us-iso-east-1"),
    ];
    for (own_region, host, region) in refused {
        let refusal = Refusal::Host(host.to_owned());
        assert_eq!(verify(own_region, host, region), Err(refusal), "{host} for {own_region}");
    }
    assert_eq!(verify("cn-north-1", "sts.amazonaws.com", "us-east-1"), Err(Refusal::GlobalHost));
}
