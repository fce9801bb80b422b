//! Why a cluster cannot be used, in words about its context in the kubeconfig.

use std::{error::Error, io, path::PathBuf};

use hyper::StatusCode;
use kube::{
    client::AuthError,
    config::{Kubeconfig, KubeconfigError},
};
use tokio_rustls::rustls;

/// Characters of an answer that is not the API server's: the beginning of a page.
const MAX_ANSWER: usize = 200;

/// Why a cluster cannot be used, and what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text shows what the fields are")]
pub enum Problem {
    /// No kubeconfig, or not for this user.
    #[error("cannot read the kubeconfig {}: {source}; set KUBECONFIG to the path of yours", path.display())]
    File { path: PathBuf, source: io::Error },
    /// A misspelt context.
    #[error("the kubeconfig has no such context; it has {known:?}")]
    NoContext { known: Vec<String> },
    /// The context has no cluster, a certificate that is not PEM, and the like.
    #[error("the kubeconfig is not valid: {0}")]
    Kubeconfig(KubeconfigError),
    /// What makes the credentials, such as `aws eks get-token`, is missing or fails.
    #[error("the credentials plugin {plugin} of the kubeconfig failed: {reason}; install it, or sign in again")]
    Plugin { plugin: String, reason: String },
    /// Other settings that cannot be used, such as a proxy.
    #[error("no client can be made of the kubeconfig: {0}")]
    Client(kube::Error),
    /// The host is unknown, or nothing listens there.
    #[error("cannot connect to {url}: {reason}; start the cluster, or correct its `server` in the kubeconfig")]
    Unreachable { url: String, reason: String },
    /// No connection, or no answer.
    #[error(
        "{url} did not answer within {seconds} s; check the network that leads there, such as a VPN, and the cluster's \
         `server` in the kubeconfig"
    )]
    Timeout { url: String, seconds: u64 },
    /// The certificate has expired, or is not for this host, or is signed by another authority.
    #[error(
        "{url} shows a certificate that is not trusted: {source}; get a new kubeconfig, or correct the cluster's `server` and \
         `certificate-authority-data` in it"
    )]
    Certificate { url: String, source: rustls::Error },
    /// 401.
    #[error(
        "{url} does not accept the credentials of the kubeconfig (401); they have expired, or are those of another cluster: \
         sign in again, or get a new kubeconfig"
    )]
    Unauthorized { url: String },
    /// 403, or an access review that says no.
    #[error(
        "the kubeconfig's user lacks a permission in {url}: {reason}; grant it, or set NAMESPACE=… to a namespace where the \
         user has it"
    )]
    Forbidden { url: String, reason: String },
    /// 404 for the namespace.
    #[error(
        "{url} has no namespace {namespace}; create it with `kubectl --context {context} create namespace {namespace}`, or set \
         NAMESPACE=…"
    )]
    NoNamespace { url: String, context: String, namespace: String },
    /// A proxy, a web server, an API server in distress.
    #[error("{url} does not answer as an API server: {answer}; correct the cluster's `server` in the kubeconfig")]
    OtherAnswer { url: String, answer: String },
}

impl Problem {
    /// The kubeconfig cannot be read.
    pub(super) fn of_file(error: KubeconfigError) -> Self {
        match error {
            KubeconfigError::ReadConfig(source, path) => Self::File { path, source },
            error => Self::Kubeconfig(error),
        }
    }

    /// The context cannot be loaded from this kubeconfig.
    pub(super) fn of_context(error: KubeconfigError, kubeconfig: &Kubeconfig) -> Self {
        match error {
            KubeconfigError::LoadContext(_) => {
                Self::NoContext { known: kubeconfig.contexts.iter().map(|context| context.name.clone()).collect() }
            }
            error => Self::Kubeconfig(error),
        }
    }

    /// No client can be made with this plugin for credentials.
    pub(super) fn of_client(error: kube::Error, plugin: Option<String>) -> Self {
        let reason = match &error {
            // Its standard output may have a credential. Of its standard error, kube leaves most to the terminal.
            kube::Error::Auth(AuthError::AuthExecRun { out, .. }) => {
                format!("{} {}", out.status, String::from_utf8_lossy(&out.stderr).trim()).trim_end().to_owned()
            }
            kube::Error::Auth(error) => root(error).to_string(),
            _ => return Self::Client(error),
        };
        match plugin {
            Some(plugin) => Self::Plugin { plugin, reason },
            None => Self::Client(error),
        }
    }

    /// A request to the API server at this URL has no answer.
    pub(super) fn of_request(error: &kube::Error, url: &str) -> Self {
        let (root, url) = (root(error), url.to_owned());
        match root.downcast_ref::<rustls::Error>() {
            Some(source @ rustls::Error::InvalidCertificate(_)) => Self::Certificate { url, source: source.clone() },
            _ => Self::Unreachable { url, reason: root.to_string() },
        }
    }

    /// An answer of another kind than expected.
    pub(super) fn of_answer(url: String, status: StatusCode, text: &str) -> Self {
        // On one line.
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_ANSWER).collect::<String>();
        match status {
            StatusCode::UNAUTHORIZED => Self::Unauthorized { url },
            StatusCode::FORBIDDEN => Self::Forbidden { url, reason: text },
            _ => Self::OtherAnswer { url, answer: format!("{} {text}", status.as_u16()) },
        }
    }
}

/// The innermost cause. An `io::Error` does not give what it wraps as its source, so it is asked for that.
fn root<'a>(mut error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    loop {
        error = match (error.downcast_ref::<io::Error>().and_then(io::Error::get_ref), error.source()) {
            (Some(wrapped), _) => wrapped,
            (None, Some(source)) => source,
            (None, None) => return error,
        };
    }
}
