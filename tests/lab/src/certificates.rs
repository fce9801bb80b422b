//! A certificate authority for one run, and the good and bad certificates that it signs.

use std::{
    io::Write,
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use tempfile::NamedTempFile;
use tokio_rustls::rustls::{CipherSuite, ServerConfig, crypto::aws_lc_rs, pki_types::PrivatePkcs8KeyDer};

/// The lab's own certificate authority, which no program trusts by default.
pub struct Certificates {
    authority: CertifiedIssuer<'static, KeyPair>,
    other: CertifiedIssuer<'static, KeyPair>,
    names: Vec<String>,
    ca_file: OnceLock<NamedTempFile>,
}

/// The certificate that a server shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// Names the lab's hosts and is valid now.
    Good,
    /// Names the lab's hosts, and has expired.
    Expired,
    /// Valid now, for another host.
    OtherHost,
}

impl Certificates {
    pub(crate) fn new(ip: IpAddr) -> Self {
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "host.docker.internal".to_owned()];
        if !names.contains(&ip.to_string()) {
            names.push(ip.to_string());
        }
        Self { authority: authority("lab"), other: authority("other"), names, ca_file: OnceLock::new() }
    }

    /// The authority's certificate in a file, for `AWS_CA_BUNDLE`. The file goes with the authority.
    pub fn ca_file(&self) -> String {
        let file = self.ca_file.get_or_init(|| {
            let mut file = NamedTempFile::with_suffix(".pem").expect("a temporary file can be made");
            file.write_all(self.ca_pem().as_bytes()).expect("a temporary file can be written");
            file
        });
        file.path().display().to_string()
    }

    /// The authority's certificate as PEM.
    pub fn ca_pem(&self) -> String {
        self.authority.pem()
    }

    /// The authority's certificate as EKS shows it: base64 of the PEM.
    pub fn ca_data(&self) -> String {
        BASE64_STANDARD.encode(self.authority.pem())
    }

    /// Like [`Self::ca_data`], of an authority that signed none of the lab's servers.
    pub fn other_ca_data(&self) -> String {
        BASE64_STANDARD.encode(self.other.pem())
    }

    /// TLS for a server that shows this kind of certificate.
    pub(crate) fn server(&self, kind: Certificate) -> Arc<ServerConfig> {
        let mut params = match kind {
            Certificate::Good | Certificate::Expired => params(self.names.clone()),
            Certificate::OtherHost => params(vec!["another.example".to_owned()]),
        };
        if kind == Certificate::Expired {
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        self.tls(&params)
    }

    /// TLS for a server of another name.
    pub(crate) fn server_of(&self, host: &str) -> Arc<ServerConfig> {
        self.tls(&params(vec![host.to_owned()]))
    }

    /// A good certificate and its key as PEM, for a program that reads them from files.
    pub(crate) fn server_pem(&self) -> (String, String) {
        let (certificate, key) = self.issue(&params(self.names.clone()));
        (certificate.pem(), key.serialize_pem())
    }

    fn tls(&self, params: &CertificateParams) -> Arc<ServerConfig> {
        let (certificate, key) = self.issue(params);
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .expect("the provider knows the default versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .expect("the key belongs to the certificate");
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // As Go chooses, in which the API server is written, and s2n, which AWS has: AES-128 first, whatever the client prefers.
        config.ignore_client_order = true;
        Arc::new(config)
    }

    fn issue(&self, params: &CertificateParams) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.authority).expect("the authority can sign");
        (certificate, key)
    }
}

fn params(names: Vec<String>) -> CertificateParams {
    let mut params = CertificateParams::new(names).expect("the names are valid");
    params.distinguished_name.push(DnType::CommonName, "lab");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("{name} authority"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().expect("a key can be made");
    CertifiedIssuer::self_signed(params, key).expect("an authority can sign itself")
}
