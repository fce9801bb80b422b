//! `KUBERNETES_CERTIFICATE_AUTHORITY_DATA`, or what EKS answers in its place.

use std::{fs, str};

use agent_scheduler::{
    config::{CertificateAuthority, Config},
    https::{self, Plain},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use kube::client::Body;

use crate::{config, files, told};

const VARIABLE: &str = "KUBERNETES_CERTIFICATE_AUTHORITY_DATA";

/// `data` is the value; or, without the base64 that no mutation would survive, the PEM; or, without that, the certificate.
pub fn run(data: &[u8]) {
    if let Ok(value) = str::from_utf8(data) {
        read(value);
    }
    read(&BASE64_STANDARD.encode(data));
    let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", BASE64_STANDARD.encode(data));
    read(&BASE64_STANDARD.encode(pem));
}

fn read(value: &str) {
    match value.parse::<CertificateAuthority>() {
        Ok(authority) => {
            assert!(!authority.0.is_empty());
            assert_eq!(config(&[(VARIABLE, value)]).certificate_authority.as_ref(), Some(&authority));
            https::client::<Body>(authority, Plain::Refused).expect("a client can be made of any authority");
        }
        Err(expected) => {
            told(expected);
            let error = Config::read(|name| (name == VARIABLE).then(|| value.to_owned())).expect_err("it is refused");
            error.problems.iter().for_each(|problem| told(problem));
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
