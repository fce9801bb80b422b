//! What the operator set: the function's variables, read once at cold start.
//!
//! `template.yml` sets each from the parameter beside it; README has the table. An empty value counts as absent, since a
//! SAM parameter that was left blank arrives as an empty string. Every problem is reported, not only the first one.

use std::str::FromStr;

use base64::{Engine, prelude::BASE64_STANDARD};
use http::Uri;
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, TrustAnchor, pem::PemObject};
use tower::BoxError;

use crate::excerpt::excerpt;

/// The settings of one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `BUILDKITE_QUEUE`: the queues whose jobs are ours, comma separated, at least one.
    pub queues: Vec<String>,
    /// `BUILDKITE_AGENT_TOKEN_PARAMETER_PATH`: the SSM parameter that holds the agent token; `/buildkite/agent-token`.
    pub agent_token_parameter: String,
    /// `BUILDKITE_AGENT_TAGS`: what a job may ask for beside its queue, `key=value`, comma separated; none.
    pub agent_tags: Vec<Tag>,
    /// `SERVE_JOBS_WITHOUT_QUEUE`: also take jobs that name no queue; `false`.
    pub serve_jobs_without_queue: bool,
    /// `KUBERNETES_CLUSTER_IDENTIFIER`: the EKS cluster's name.
    pub cluster: String,
    /// `KUBERNETES_NAMESPACE`: where the Jobs and the Secret live; `buildkite`.
    pub namespace: String,
    /// `KUBERNETES_API_SERVER_ENDPOINT`: `https://…`; asked of EKS when absent.
    pub api_server_endpoint: Option<Uri>,
    /// `KUBERNETES_CERTIFICATE_AUTHORITY_DATA`: base64 of PEM, as EKS shows it; asked of EKS when absent.
    pub certificate_authority: Option<CertificateAuthority>,
    /// `AGENT_TOKEN_SECRET_NAME`: the Kubernetes Secret that carries the agent token; `buildkite-agent-token`.
    pub agent_token_secret: String,
    /// `JOB_TTL_SECONDS`: how long a finished Job stays; 600. A delivery that comes later than that is not recognised as a
    /// repetition; the agent that it starts is refused by Buildkite.
    pub job_ttl_seconds: u32,
    /// `JOB_ACTIVE_DEADLINE_SECONDS`: how long a Job may take, waiting for a node included; 21600.
    pub job_active_deadline_seconds: u32,
    /// `AWS_REGION`, which Lambda sets: where the parameter is read and whose STS judges the EKS token.
    pub region: String,
    /// `AWS_LAMBDA_FUNCTION_NAME`, which Lambda sets: whose metrics they are.
    pub function_name: String,
}

impl Config {
    /// Reads every variable through `var`, which answers `None` for one that is not set.
    pub fn read(var: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut reader = Reader { var, problems: Vec::new() };
        let queues = reader.required("BUILDKITE_QUEUE", queues);
        let agent_token_parameter = reader.optional("BUILDKITE_AGENT_TOKEN_PARAMETER_PATH", parameter_name);
        let agent_tags = reader.optional("BUILDKITE_AGENT_TAGS", tags);
        let serve_jobs_without_queue = reader.optional("SERVE_JOBS_WITHOUT_QUEUE", boolean);
        let cluster = reader.required("KUBERNETES_CLUSTER_IDENTIFIER", cluster_name);
        let namespace = reader.optional("KUBERNETES_NAMESPACE", namespace);
        let api_server_endpoint = reader.optional("KUBERNETES_API_SERVER_ENDPOINT", endpoint);
        let certificate_authority = reader.optional("KUBERNETES_CERTIFICATE_AUTHORITY_DATA", str::parse);
        let agent_token_secret = reader.optional("AGENT_TOKEN_SECRET_NAME", secret_name);
        let job_ttl_seconds = reader.optional("JOB_TTL_SECONDS", |value| seconds(value, 0));
        let job_active_deadline_seconds = reader.optional("JOB_ACTIVE_DEADLINE_SECONDS", |value| seconds(value, 1));
        let region = reader.required("AWS_REGION", region);
        let function_name = reader.required("AWS_LAMBDA_FUNCTION_NAME", function_name);

        // A required value is absent only together with a problem.
        let (Some(queues), Some(cluster), Some(region), Some(function_name), []) =
            (queues, cluster, region, function_name, &*reader.problems)
        else {
            return Err(ConfigError { problems: reader.problems });
        };
        Ok(Self {
            queues,
            agent_token_parameter: agent_token_parameter.unwrap_or_else(|| "/buildkite/agent-token".to_owned()),
            agent_tags: agent_tags.unwrap_or_default(),
            serve_jobs_without_queue: serve_jobs_without_queue.unwrap_or(false),
            cluster,
            namespace: namespace.unwrap_or_else(|| "buildkite".to_owned()),
            api_server_endpoint,
            certificate_authority,
            agent_token_secret: agent_token_secret.unwrap_or_else(|| "buildkite-agent-token".to_owned()),
            job_ttl_seconds: job_ttl_seconds.unwrap_or(600),
            job_active_deadline_seconds: job_active_deadline_seconds.unwrap_or(21_600),
            region,
            function_name,
        })
    }
}

/// One of the agent's tags, `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Left of the first `=`.
    pub key: String,
    /// All that is right of it, other `=` included.
    pub value: String,
}

/// The certificates that may vouch for a server, and nobody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateAuthority(pub Vec<TrustAnchor<'static>>);

impl CertificateAuthority {
    /// Reads one certificate or several, and fails where there is none.
    pub fn from_pem(pem: &[u8]) -> Result<Self, BoxError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate?)?;
        }
        if roots.is_empty() { Err("it holds none".into()) } else { Ok(Self(roots.roots)) }
    }
}

impl FromStr for CertificateAuthority {
    type Err = &'static str;

    /// Reads base64 of PEM, which is how EKS, kubeconfig and CloudFormation write it.
    fn from_str(value: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "base64 of a PEM certificate, as `aws eks describe-cluster` shows it";
        let pem = BASE64_STANDARD.decode(value).map_err(|_| EXPECTED)?;
        Self::from_pem(&pem).map_err(|_| EXPECTED)
    }
}

/// Everything that is wrong with the variables, one line each.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.join("; "))]
pub struct ConfigError {
    /// `NAME must be …, got …`
    pub problems: Vec<String>,
}

struct Reader<V> {
    var: V,
    problems: Vec<String>,
}

impl<V: Fn(&str) -> Option<String>> Reader<V> {
    fn optional<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, &'static str>) -> Option<T> {
        let value = (self.var)(name).filter(|value| !value.is_empty())?;
        match parse(&value) {
            Ok(parsed) => Some(parsed),
            Err(expected) => {
                self.problems.push(format!("{name} must be {expected}, got \"{}\"", excerpt(&value)));
                None
            }
        }
    }

    fn required<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, &'static str> + Clone) -> Option<T> {
        if (self.var)(name).is_none_or(|value| value.is_empty()) {
            // The empty string tells what is expected; nothing required may be empty.
            let expected = parse("").err().unwrap_or("set");
            self.problems.push(format!("{name} must be {expected}, but is not set"));
            return None;
        }
        self.optional(name, parse)
    }
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim)
}

fn queues(value: &str) -> Result<Vec<String>, &'static str> {
    list(value)
        .map(|queue| is_word(queue, 100, b"-_").then(|| queue.to_owned()))
        .collect::<Option<_>>()
        .ok_or("one queue key or several, comma separated, each of 1 to 100 letters, digits, - and _")
}

fn tags(value: &str) -> Result<Vec<Tag>, &'static str> {
    list(value)
        .map(|tag| match tag.split_once('=') {
            Some(("queue", _)) => Err("tags without a queue, which BUILDKITE_QUEUE names"),
            Some((key, value)) if !key.is_empty() && !value.is_empty() => {
                Ok(Tag { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err("key=value, several separated by commas"),
        })
        .collect()
}

fn boolean(value: &str) -> Result<bool, &'static str> {
    value.parse().map_err(|_| "true or false")
}

/// A name, a path from the root, or the ARN of a parameter that another account shares.
fn parameter_name(value: &str) -> Result<String, &'static str> {
    let ok = value.bytes().all(|byte| byte.is_ascii_graphic())
        && (!value.contains('/') || value.starts_with('/') || value.starts_with("arn:"));
    ok.then(|| value.to_owned())
        .ok_or("the name of an SSM parameter, with a leading / if it is a path, such as /buildkite/agent-token")
}

/// <https://docs.aws.amazon.com/eks/latest/APIReference/API_CreateCluster.html#AmazonEKS-CreateCluster-request-name>
fn cluster_name(value: &str) -> Result<String, &'static str> {
    (is_word(value, 100, b"-_") && value.as_bytes()[0].is_ascii_alphanumeric())
        .then(|| value.to_owned())
        .ok_or("the name of an EKS cluster: 1 to 100 letters, digits, - and _, not its ARN")
}

fn namespace(value: &str) -> Result<String, &'static str> {
    is_dns_label(value)
        .then(|| value.to_owned())
        .ok_or("a Kubernetes namespace: at most 63 lower-case letters, digits and -")
}

fn secret_name(value: &str) -> Result<String, &'static str> {
    (value.len() <= 253 && value.split('.').all(is_dns_label))
        .then(|| value.to_owned())
        .ok_or("the name of a Kubernetes Secret: at most 253 lower-case letters, digits, - and .")
}

fn endpoint(value: &str) -> Result<Uri, &'static str> {
    const EXPECTED: &str = "the https:// address of the API server, as `aws eks describe-cluster` shows it";
    let uri: Uri = value.parse().map_err(|_| EXPECTED)?;
    let ok = uri.scheme_str() == Some("https")
        && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        && uri.path() == "/"
        && uri.query().is_none();
    ok.then_some(uri).ok_or(EXPECTED)
}

/// Kubernetes keeps both numbers in an int32.
fn seconds(value: &str, least: u32) -> Result<u32, &'static str> {
    match value.parse() {
        Ok(seconds) if (least..=i32::MAX.cast_unsigned()).contains(&seconds) => Ok(seconds),
        _ if least == 0 => Err("a whole number of seconds"),
        _ => Err("a whole number of seconds, at least 1"),
    }
}

fn region(value: &str) -> Result<String, &'static str> {
    is_word(value, 63, b"-").then(|| value.to_owned()).ok_or("an AWS region, such as us-east-1")
}

fn function_name(value: &str) -> Result<String, &'static str> {
    is_word(value, 140, b"-_").then(|| value.to_owned()).ok_or("the name of the Lambda function")
}

fn is_word(value: &str, longest: usize, also: &[u8]) -> bool {
    (1..=longest).contains(&value.len())
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || also.contains(&byte))
}

fn is_dns_label(value: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=63).contains(&value.len())
        && value.bytes().all(|byte| inner(byte) || byte == b'-')
        && !value.starts_with('-')
        && !value.ends_with('-')
}

/// Settings for the tests of other rooms.
#[cfg(test)]
pub(crate) mod fixtures {
    use super::*;

    const REQUIRED: [(&str, &str); 4] = [
        ("BUILDKITE_QUEUE", "default"),
        ("KUBERNETES_CLUSTER_IDENTIFIER", "example-cluster"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_LAMBDA_FUNCTION_NAME", "agent-scheduler"),
    ];

    pub(crate) fn read(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::read(|name| {
            let mut found = variables.iter().chain(&REQUIRED).filter(|(key, _)| *key == name);
            found.next().map(|(_, value)| (*value).to_owned())
        })
    }

    /// What is required, and `variables` on top.
    pub(crate) fn config(variables: &[(&str, &str)]) -> Config {
        read(variables).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::{fixtures::read, *};

    #[test]
    fn only_the_queue_and_the_cluster_are_required() {
        let config = read(&[]).unwrap();
        assert_eq!(config.queues, ["default"]);
        assert_eq!(config.agent_token_parameter, "/buildkite/agent-token");
        assert_eq!(config.namespace, "buildkite");
        assert_eq!(config.agent_token_secret, "buildkite-agent-token");
        assert_eq!((config.job_ttl_seconds, config.job_active_deadline_seconds), (600, 21_600));
        assert_eq!((config.api_server_endpoint, config.certificate_authority), (None, None));
        assert!(!config.serve_jobs_without_queue);
        assert!(config.agent_tags.is_empty());
    }

    #[test]
    fn an_empty_value_counts_as_absent() {
        let blank =
            ["KUBERNETES_NAMESPACE", "JOB_TTL_SECONDS", "KUBERNETES_API_SERVER_ENDPOINT"].map(|name| (name, ""));
        assert_eq!(read(&blank), read(&[]));
    }

    #[test]
    fn lists_are_read_with_spaces_around_their_commas() {
        let config = read(&[
            ("BUILDKITE_QUEUE", "linux, gpu"),
            ("BUILDKITE_AGENT_TAGS", "os=linux, flags=a=b"),
            ("SERVE_JOBS_WITHOUT_QUEUE", "true"),
        ])
        .unwrap();
        assert_eq!(config.queues, ["linux", "gpu"]);
        assert_eq!(config.agent_tags[1], Tag { key: "flags".to_owned(), value: "a=b".to_owned() });
        assert!(config.serve_jobs_without_queue);
    }

    #[test]
    fn all_problems_are_reported_together() {
        let problems =
            Config::read(|name| (name == "JOB_TTL_SECONDS").then(|| "ten minutes".to_owned())).unwrap_err().problems;
        let expected = [
            "BUILDKITE_QUEUE must be one queue key or several, comma separated, each of 1 to 100 letters, digits, - and _, but is not set",
            "KUBERNETES_CLUSTER_IDENTIFIER must be the name of an EKS cluster: 1 to 100 letters, digits, - and _, not its ARN, but is not set",
            "JOB_TTL_SECONDS must be a whole number of seconds, got \"ten minutes\"",
            "AWS_REGION must be an AWS region, such as us-east-1, but is not set",
            "AWS_LAMBDA_FUNCTION_NAME must be the name of the Lambda function, but is not set",
        ];
        assert_eq!(problems, expected);
    }

    #[test]
    fn a_value_that_does_not_parse_is_named_with_its_variable() {
        let nonsense = BASE64_STANDARD.encode("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----");
        let cases = [
            ("BUILDKITE_QUEUE", "a,,b"),
            ("BUILDKITE_QUEUE", "queue=default"),
            ("BUILDKITE_AGENT_TOKEN_PARAMETER_PATH", "buildkite/agent-token"),
            ("BUILDKITE_AGENT_TOKEN_PARAMETER_PATH", "/buildkite/agent token"),
            ("BUILDKITE_AGENT_TAGS", "linux"),
            ("BUILDKITE_AGENT_TAGS", "=linux"),
            ("BUILDKITE_AGENT_TAGS", "queue=default"),
            ("SERVE_JOBS_WITHOUT_QUEUE", "yes"),
            ("KUBERNETES_CLUSTER_IDENTIFIER", "arn:aws:eks:us-east-1:111122223333:cluster/example"),
            ("KUBERNETES_NAMESPACE", "Buildkite"),
            ("KUBERNETES_API_SERVER_ENDPOINT", "http://127.0.0.1:6443"),
            ("KUBERNETES_API_SERVER_ENDPOINT", "127.0.0.1:6443"),
            ("KUBERNETES_API_SERVER_ENDPOINT", "https://user@127.0.0.1/"),
            ("KUBERNETES_CERTIFICATE_AUTHORITY_DATA", "-----BEGIN CERTIFICATE-----"),
            ("KUBERNETES_CERTIFICATE_AUTHORITY_DATA", "aGVsbG8="),
            ("KUBERNETES_CERTIFICATE_AUTHORITY_DATA", &nonsense),
            ("AGENT_TOKEN_SECRET_NAME", "token_1"),
            ("JOB_TTL_SECONDS", "-1"),
            ("JOB_ACTIVE_DEADLINE_SECONDS", "0"),
            ("JOB_ACTIVE_DEADLINE_SECONDS", "2147483648"),
        ];
        for (name, value) in cases {
            let error = read(&[(name, value)]).expect_err(name);
            assert_eq!(error.problems.len(), 1, "{name}={value}");
            assert!(error.problems[0].starts_with(&format!("{name} must be ")), "{error}");
            assert!(error.problems[0].ends_with(&format!("got \"{}\"", excerpt(value))), "{error}");
        }
    }

    #[test]
    fn a_long_value_is_cut_in_the_error() {
        let error = read(&[("KUBERNETES_NAMESPACE", &"é".repeat(300))]).unwrap_err();
        assert!(error.to_string().ends_with("é…\""), "{error}");
    }
}
