//! A certificate authority for one run, and the good and bad certificates that it signs.
//!
//! All keys are RSA, whose signatures take half of ECDSA's time to verify. AWS' regional endpoints have RSA keys of 2048 bits, whose
//! issuer is an intermediate authority: <https://github.com/mozilla/ssl-config-generator/issues/157>. An EKS cluster has an RSA authority
//! of its own, which signs its server's certificate: <https://nicks-playground.net/posts/2018-08-16-verifying-digital-certificates/>.

use std::{
    io::Write,
    net::IpAddr,
    sync::{Arc, LazyLock, OnceLock},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize, date_time_ymd,
};
use tempfile::NamedTempFile;
use tokio_rustls::rustls::{
    CipherSuite, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
};
use uuid::Uuid;

/// Keys of RSA take long to make, so all authorities of a process share one, and have names of their own.
static AUTHORITY_KEY: LazyLock<KeyPair> = LazyLock::new(key);
static SERVER_KEY: LazyLock<KeyPair> = LazyLock::new(key);

type Authority = CertifiedIssuer<'static, &'static KeyPair>;

/// The lab's own certificate authority, which no program trusts by default.
pub struct Certificates {
    authority: Authority,
    /// Signed by `authority`.
    intermediate: Authority,
    other: Authority,
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
        let root = |name| {
            Authority::self_signed(authority_params(name), &AUTHORITY_KEY).expect("an authority can sign itself")
        };
        let authority = root("lab");
        let intermediate = Authority::signed_by(authority_params("intermediate"), &AUTHORITY_KEY, &authority)
            .expect("an authority can sign another");
        Self { other: root("other"), authority, intermediate, names, ca_file: OnceLock::new() }
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
        Self::tls(&params, &self.authority, &[])
    }

    /// TLS for a server of another name.
    pub(crate) fn server_of(&self, host: &str) -> Arc<ServerConfig> {
        Self::tls(&params(vec![host.to_owned()]), &self.authority, &[])
    }

    /// TLS for a server that the authority vouches for through another one.
    pub(crate) fn public_server(&self) -> Arc<ServerConfig> {
        Self::tls(&params(self.names.clone()), &self.intermediate, &[self.intermediate.der().clone()])
    }

    /// A good certificate and its key as PEM, for a program that reads them from files.
    pub(crate) fn server_pem(&self) -> (String, String) {
        (issue(&params(self.names.clone()), &self.authority).pem(), SERVER_KEY.serialize_pem())
    }

    fn tls(params: &CertificateParams, issuer: &Authority, chain: &[CertificateDer<'static>]) -> Arc<ServerConfig> {
        let chain = [&[issue(params, issuer).der().clone()], chain].concat();
        let key = PrivatePkcs8KeyDer::from(SERVER_KEY.serialize_der());
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .expect("the provider knows the default versions")
            .with_no_client_auth()
            .with_single_cert(chain, key.into())
            .expect("the key belongs to the certificate");
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // As Go chooses, in which the API server is written, and s2n, which AWS has: AES-128 first, whatever the client prefers.
        config.ignore_client_order = true;
        Arc::new(config)
    }
}

fn key() -> KeyPair {
    KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key can be made")
}

fn issue(params: &CertificateParams, issuer: &Authority) -> rcgen::Certificate {
    params.signed_by(&*SERVER_KEY, issuer).expect("the authority can sign")
}

fn params(names: Vec<String>) -> CertificateParams {
    let mut params = CertificateParams::new(names).expect("the names are valid");
    params.distinguished_name.push(DnType::CommonName, "lab");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("{name} authority {}", Uuid::new_v4()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
