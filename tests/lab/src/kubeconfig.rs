//! A cluster of the user's own, with the rights of their kubeconfig.

mod problem;

use std::{path::Path, sync::Arc, time::Duration};

use axum::body::Bytes;
use hyper::{
    Request, Response, StatusCode,
    header::{ACCEPT, CONTENT_TYPE, HeaderValue},
    http::{request, response},
};
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_rustls::rustls::crypto::aws_lc_rs;

pub use self::problem::Problem;

/// The format of `kubectl get`: the API server makes the table.
const TABLE: HeaderValue = HeaderValue::from_static("application/json;as=Table;g=meta.k8s.io;v=v1");

/// How long a cluster may take to show that it can be used.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// What the function does in the namespace: verb, API group, resource.
const PERMISSIONS: [[&str; 3]; 3] =
    [["list", "", "podtemplates"], ["patch", "", "secrets"], ["create", "batch", "jobs"]];

/// One context of a kubeconfig. Clones are the same one.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    context: Arc<str>,
    url: Arc<str>,
}

impl Cluster {
    /// Reads a context from `$KUBECONFIG` or `~/.kube/config`, or from a file.
    pub async fn of_context(context: &str, file: Option<&Path>) -> Result<Self, Problem> {
        let kubeconfig = match file {
            Some(file) => Kubeconfig::read_from(file),
            None => Kubeconfig::read(),
        };
        let kubeconfig = kubeconfig.map_err(Problem::of_file)?;
        let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
        let config = Config::from_custom_kubeconfig(kubeconfig.clone(), &options).await;
        let mut config = config.map_err(|error| Problem::of_context(error, &kubeconfig))?;
        // The function under test must see every failure.
        config.default_retry = false;
        let url = config.cluster_url.to_string().trim_end_matches('/').into();
        let plugin = config.auth_info.exec.as_ref().and_then(|plugin| plugin.command.clone());
        // kube requires a default of the process, which may be set already.
        let _ = aws_lc_rs::default_provider().install_default();
        let client = Client::try_from(config).map_err(|error| Problem::of_client(error, plugin))?;
        Ok(Self { client, context: context.into(), url })
    }

    /// Whether the cluster answers, and lets the user of the kubeconfig do in the namespace what the function does.
    pub async fn check(&self, namespace: &str) -> Result<(), Problem> {
        let overdue = |_| Problem::Timeout { url: self.url.to_string(), seconds: CHECK_TIMEOUT.as_secs() };
        timeout(CHECK_TIMEOUT, self.check_namespace(namespace)).await.map_err(overdue)?
    }

    async fn check_namespace(&self, namespace: &str) -> Result<(), Problem> {
        let url = self.url.to_string();
        for [verb, group, resource] in PERMISSIONS {
            let review = json!({
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": {"namespace": namespace, "verb": verb, "group": group, "resource": resource}},
            });
            let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
            let (status, answer) = self.ask(Request::post(reviews), review.to_string()).await?;
            let review: Value = serde_json::from_str(&answer).unwrap_or_default();
            match review["status"]["allowed"].as_bool() {
                Some(true) => {}
                Some(false) => {
                    let reason = format!("it may not {verb} {resource} in namespace {namespace}");
                    return Err(Problem::Forbidden { url, reason });
                }
                None => return Err(Problem::of_answer(url, status, review["message"].as_str().unwrap_or(&answer))),
            }
        }
        // A user of one namespace may not read it: 403.
        match self.ask(Request::get(format!("/api/v1/namespaces/{namespace}")), String::new()).await? {
            (StatusCode::NOT_FOUND, _) => {
                let (context, namespace) = (self.context.to_string(), namespace.to_owned());
                Err(Problem::NoNamespace { url, context, namespace })
            }
            _ => Ok(()),
        }
    }

    /// The answer as it is, since kube forgets the status of one that is not the API server's.
    async fn ask(&self, request: request::Builder, body: String) -> Result<(StatusCode, String), Problem> {
        let asked = async {
            let request = request.header(CONTENT_TYPE, "application/json").body(()).map_err(kube::Error::HttpError)?;
            self.send(request.into_parts().0, body.into()).await
        };
        let (parts, body) = asked.await.map_err(|error| Problem::of_request(&error, &self.url))?;
        Ok((parts.status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Where its API server is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Forwards a request; of its URL only the path counts.
    pub(crate) async fn send(&self, parts: request::Parts, body: Bytes) -> kube::Result<(response::Parts, Bytes)> {
        let request = Request::from_parts(parts, Body::from(body.to_vec()));
        let (parts, body) = self.client.send(request).await?.into_parts();
        let body = Response::new(body).into_body().collect_bytes().await?;
        Ok((parts, body))
    }

    /// Reads an object or a list.
    pub async fn get(&self, path: &str) -> kube::Result<Value> {
        let request = Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }

    /// Lists objects as `kubectl get` does, a line each and one above them.
    pub async fn table(&self, path: &str) -> kube::Result<String> {
        let request = Request::get(path).header(ACCEPT, TABLE).body(Vec::new()).map_err(kube::Error::HttpError)?;
        Ok(print(&self.client.request(request).await?))
    }
}

/// The columns that kubectl shows without `-o wide`, each as wide as its widest cell.
fn print(table: &Value) -> String {
    let rows = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |cell: &Value| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned);
    let mut columns: Vec<Vec<String>> = Vec::new();
    for (index, column) in rows(&table["columnDefinitions"]).iter().enumerate() {
        if column["priority"] != 0 {
            continue;
        }
        let head = text(&column["name"]).to_uppercase();
        let cells = rows(&table["rows"]).into_iter().map(|row| text(&row["cells"][index]));
        columns.push([head].into_iter().chain(cells).collect());
    }
    let width = |column: &Vec<String>| column.iter().map(String::len).max().unwrap_or_default();
    let height = columns.first().map_or(0, Vec::len);
    let line = |row: usize| {
        let cells = columns.iter().map(|column| format!("{:<1$}", column[row], width(column) + 3));
        cells.collect::<String>().trim_end().to_owned() + "\n"
    };
    (0..height).map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::{env, fs, net::TcpListener, path::PathBuf};

    use axum::{
        Router,
        http::{StatusCode, Uri},
    };
    use serde_json::json;
    use uuid::Uuid;

    use super::{Cluster, Problem, print};
    use crate::{
        certificates::{Certificate, Certificates},
        server::{Server, Service},
        timeline::{Actor, Timeline},
    };

    /// A kubeconfig that lasts until it is dropped, with the one context `staging`.
    struct File(PathBuf);

    impl File {
        fn new(text: &str) -> Self {
            let path = env::temp_dir().join(format!("kubeconfig-{}", Uuid::new_v4()));
            fs::write(&path, text).unwrap();
            Self(path)
        }

        fn of(url: &str, ca_data: &str, user: &str) -> Self {
            Self::new(&format!(
                "{{clusters: [{{name: c, cluster: {{server: \"{url}\", certificate-authority-data: \"{ca_data}\"}}}}], \
                 users: [{{name: u, user: {{{user}}}}}], contexts: [{{name: staging, context: {{cluster: c, user: u}}}}]}}"
            ))
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    async fn problem_of(context: &str, path: &std::path::Path) -> Problem {
        match Cluster::of_context(context, Some(path)).await {
            Ok(cluster) => cluster.check("buildkite").await.unwrap_err(),
            Err(problem) => problem,
        }
    }

    #[tokio::test]
    async fn a_kubeconfig_that_cannot_be_used_is_named_with_its_fault() {
        let plugin = |command: &str| {
            let plugin =
                format!("exec: {{apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never, {command}}}");
            File::of("https://localhost", &Certificates::new([127, 0, 0, 1].into()).ca_data(), &plugin)
        };
        let good = File::of("https://localhost", "", "");
        for (context, path, words) in [
            ("staging", &"/absent/config".into(), &["/absent/config: No such file", "KUBECONFIG"][..]),
            ("staging", &env::temp_dir(), &["directory"]),
            ("staging", &File::new("{").0, &["not valid"]),
            ("production", &good.0, &["no such context", r#"["staging"]"#]),
            ("staging", &plugin("command: /absent/aws").0, &["/absent/aws ", "No such file", "sign in"]),
            (
                "staging",
                &plugin(r#"command: sh, args: [-c, "echo expired >&2; echo secret; exit 3"]"#).0,
                &["plugin sh ", "exit status: 3 expired; "],
            ),
        ] {
            let text = problem_of(context, path).await.to_string();
            assert!(words.iter().all(|word| text.contains(word)) && !text.contains("secret"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_cluster_that_cannot_be_used_is_named_with_the_cause() {
        let certificates = Certificates::new([127, 0, 0, 1].into());
        let serve = async |certificate, review: (u16, &'static str), namespace: (u16, &'static str)| {
            let router = Router::new().fallback(move |uri: Uri| async move {
                let (status, body) = if uri.path().ends_with("reviews") { review } else { namespace };
                (StatusCode::from_u16(status).unwrap(), body)
            });
            let service = Service::new(Actor::Kubernetes, router, &Timeline::start());
            Server::listen([127, 0, 0, 1].into(), Some(certificates.server(certificate)), service).await
        };
        let allowed = (201, r#"{"status": {"allowed": true}}"#);
        let refused = (201, r#"{"status": {"allowed": false}}"#);
        let forbidden =
            (403, r#"{"kind": "Status", "status": "Failure", "code": 403, "message": "User \"u\" cannot"}"#);
        let page = (404, "<html>\nnot here</html>");
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = |address: std::net::SocketAddr| format!("https://{address}");

        let servers = [
            (serve(Certificate::OtherHost, allowed, allowed).await, &["certificate that is not trusted"][..]),
            (
                serve(Certificate::Expired, allowed, allowed).await,
                &["not trusted", "expired", "certificate-authority-data"],
            ),
            (serve(Certificate::Good, (401, "{}"), allowed).await, &["(401)", "sign in again"]),
            (serve(Certificate::Good, forbidden, allowed).await, &[r#"User "u" cannot"#, "NAMESPACE"]),
            (serve(Certificate::Good, refused, allowed).await, &["may not list podtemplates in namespace buildkite"]),
            (serve(Certificate::Good, page, page).await, &["as an API server: 404 <html> not here</html>;"]),
            (serve(Certificate::Good, (200, "{}"), page).await, &["as an API server: 200 {};"]),
            (
                serve(Certificate::Good, allowed, page).await,
                &["`kubectl --context staging create namespace buildkite`"],
            ),
        ];
        let answering = servers.iter().map(|(server, words)| (server.url(), *words));
        let others = [
            (url(closed), &["cannot connect to", "Connection refused"][..]),
            ("https://cluster.invalid".to_owned(), &["cannot connect to", "lookup"]),
            (url(silent.local_addr().unwrap()), &["did not answer within 5 s"]),
        ];
        for (url, words) in answering.chain(others) {
            if words[0].starts_with("did not answer") {
                tokio::time::pause();
            }
            let text = problem_of("staging", &File::of(&url, &certificates.ca_data(), "token: t").0).await.to_string();
            assert!(text.contains(&url) && words.iter().all(|word| text.contains(word)), "{text}");
        }
        // A user of one namespace may not read the namespace itself.
        let server = serve(Certificate::Good, allowed, forbidden).await;
        let file = File::of(&server.url(), &certificates.ca_data(), "token: t");
        tokio::time::resume();
        Cluster::of_context("staging", Some(&file.0)).await.unwrap().check("buildkite").await.unwrap();
    }

    #[test]
    fn a_table_shows_what_kubectl_shows() {
        let table = json!({
            "columnDefinitions": [
                {"name": "Name", "priority": 0}, {"name": "Data", "priority": 0}, {"name": "Images", "priority": 1},
            ],
            "rows": [{"cells": ["buildkite-agent-token", 1, "x"]}, {"cells": ["a", 22, "y"]}],
        });
        let expected = "NAME                    DATA\nbuildkite-agent-token   1\na                       22\n";
        assert_eq!(print(&table), expected);
    }
}
