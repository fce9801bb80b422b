//! Tokens for the tests, made by AWS's description, sharing only the hash function with the verifier.

use aws_lc_rs::{digest, hmac};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use super::Verifier;

/// What goes into a token, apart from the keys and the cluster.
pub(crate) struct Signer<'a> {
    pub(crate) host: &'a str,
    pub(crate) region: &'a str,
    /// `YYYYMMDDTHHMMSSZ`
    pub(crate) date: &'a str,
    pub(crate) signed_headers: &'a str,
}

impl Signer<'_> {
    /// The signed URL, with the keys and for the cluster that the verifier has.
    pub(crate) fn url(&self, keys: &Verifier) -> String {
        let Self { host, region, date, signed_headers } = self;
        let Verifier { cluster, access_key_id, secret_access_key, session_token, .. } = keys;
        let day = &date[..8];
        let query = format!(
            "Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Algorithm=AWS4-HMAC-SHA256\
             &X-Amz-Credential={access_key_id}%2F{day}%2F{region}%2Fsts%2Faws4_request&X-Amz-Date={date}\
             &X-Amz-Expires=60&X-Amz-Security-Token={}&X-Amz-SignedHeaders={}",
            session_token.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D"),
            signed_headers.replace(';', "%3B"),
        );
        let host_line = if signed_headers.starts_with("host") { format!("host:{host}\n") } else { String::new() };
        let request = format!(
            "GET\n/\n{query}\n{host_line}x-k8s-aws-id:{cluster}\n\n{signed_headers}\n\
             e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        let hash = hex::encode(digest::digest(&digest::SHA256, request.as_bytes()));
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{day}/{region}/sts/aws4_request\n{hash}");
        let key = hmac(format!("AWS4{secret_access_key}").as_bytes(), day);
        let key = hmac(&hmac(&hmac(&key, region), "sts"), "aws4_request");
        format!("https://{host}/?{query}&X-Amz-Signature={}", hex::encode(hmac(&key, &text)))
    }
}

/// A URL as a token.
pub(crate) fn token(url: &str) -> String {
    format!("k8s-aws-v1.{}", BASE64_URL_SAFE_NO_PAD.encode(url))
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}
