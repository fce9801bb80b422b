//! Signature Version 4 of a pre-signed GET, computed from what was received.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>

use aws_lc_rs::{
    digest,
    hmac::{self, HMAC_SHA256, Tag},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::query::Query;

/// All but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The signature that the URL must have; `headers` in the order of their names, as they are sent.
pub(super) fn of(query: &Query, headers: &[(&str, &str)], scope: &str, secret_access_key: &str) -> String {
    let request = canonical_request(query, headers);
    let text = ["AWS4-HMAC-SHA256", query.get("x-amz-date"), scope, &sha256(request.as_bytes())].join("\n");
    let first_key = format!("AWS4{secret_access_key}").into_bytes();
    let key = scope.split('/').fold(first_key, |key, part| hmac_sha256(&key, part).as_ref().to_vec());
    hex::encode(hmac_sha256(&key, &text))
}

fn canonical_request(query: &Query, headers: &[(&str, &str)]) -> String {
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let lines: Vec<String> = headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    ["GET", "/", &canonical_query(query), &lines.concat(), &names.join(";"), &sha256(b"")].join("\n")
}

/// Everything but the signature itself, in the order of the encoded names.
fn canonical_query(query: &Query) -> String {
    let encode = |text| utf8_percent_encode(text, RESERVED).to_string();
    let pairs = query.pairs().iter().filter(|(name, _)| !name.eq_ignore_ascii_case("x-amz-signature"));
    let mut pairs: Vec<_> = pairs.map(|(name, value)| (encode(name), encode(value))).collect();
    pairs.sort_unstable();
    let pairs: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

fn hmac_sha256(key: &[u8], text: &str) -> Tag {
    hmac::sign(&hmac::Key::new(HMAC_SHA256, key), text.as_bytes())
}
