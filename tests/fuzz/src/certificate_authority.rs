//! `KUBERNETES_CERTIFICATE_AUTHORITY_DATA`, or the same value from EKS.

use std::{fs, str};

use agent_scheduler::https::{self, CertificateAuthority, Plain};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http_body_util::Full;

use crate::{check_text, config, files};

const VARIABLE: &str = "KUBERNETES_CERTIFICATE_AUTHORITY_DATA";

/// `data` is the value, the PEM or the certificate: a mutation of the PEM in base64 would rarely be base64.
pub fn run(data: &[u8]) {
    if let Ok(value) = str::from_utf8(data) {
        read(value);
    }
    read(&BASE64_STANDARD.encode(data));
    let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", BASE64_STANDARD.encode(data));
    read(&BASE64_STANDARD.encode(pem));
}

fn read(value: &str) {
    let configured = config(&[(VARIABLE, value)]);
    match value.parse::<CertificateAuthority>() {
        Ok(authority) => {
            assert!(!authority.0.is_empty());
            assert_eq!(configured.expect("it is valid").certificate_authority.as_ref(), Some(&authority));
            https::client::<Full<Bytes>>(authority, Plain::Refused).expect("any authority gives a client");
        }
        // The same as no value.
        Err(_) if value.is_empty() => assert_eq!(configured.expect("it is valid").certificate_authority, None),
        Err(expected) => {
            check_text(expected);
            let error = configured.expect_err("an invalid value is an error");
            assert_eq!(error.problems.len(), 1);
            check_text(&error.problems[0]);
        }
    }
}

/// One certificate in the three forms, and two in one PEM.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for file in files(concat!(env!("CARGO_MANIFEST_DIR"), "/seeds/certificate_authority").as_ref()) {
        let pem = fs::read_to_string(file).expect("it can be read");
        let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        seeds.push(BASE64_STANDARD.decode(base64).expect("a PEM holds base64"));
        seeds.push(BASE64_STANDARD.encode(&pem).into_bytes());
        seeds.push(format!("{pem}{pem}").into_bytes());
        seeds.push(pem.into_bytes());
    }
    seeds
}
