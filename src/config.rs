//! The settings of the function: its variables, read once at cold start.
//!
//! `template.yml` sets each from the parameter of the same name and alone has the defaults: here a setting is required or
//! optional. An empty value counts as absent, since a blank SAM parameter arrives as an empty string. Every problem is
//! reported, not only the first one.

mod value;

use aws_lc_rs::digest::{SHA256, digest};
use http::Uri;

use crate::{https::CertificateAuthority, stack::Stack, text::excerpt};

/// The Stacks API, where `BUILDKITE_STACKS_ENDPOINT` names no other one.
const STACKS_ENDPOINT: &str = "https://agent.buildkite.com/v3";

/// The settings of one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What decides about jobs.
    pub stack: Stack,
    /// `STACK`: which stack of which account and region this is, `ACCOUNT:REGION:STACKNAME`.
    pub stack_name: String,
    /// `BUILDKITE_STACKS_ENDPOINT`: the Stacks API; `None` where `STACKS_API` is false.
    pub stacks_endpoint: Option<String>,
    /// `SWEEP_ENABLED`: once a minute compare what waits at Buildkite with the cluster.
    pub sweep_enabled: bool,
    /// `SWEEP_FINISHES`: the sweep finishes jobs that cannot start; else it only puts lines on their build pages.
    pub sweep_finishes: bool,
    /// `JOB_TOKENS`: each agent gets a token of its own, and the agent token stays out of the cluster.
    pub job_tokens: bool,
    /// `POD_PENDING_SECONDS`: how long the Jobs for a Buildkite job may fail before the sweep finishes it.
    pub pod_pending_seconds: u32,
    /// `BUILDKITE_AGENT_TOKEN_PARAMETER_PATH`: the SSM parameter that holds the agent token.
    pub agent_token_parameter: String,
    /// `KUBERNETES_CLUSTER_IDENTIFIER`: the EKS cluster's name.
    pub cluster: String,
    /// `KUBERNETES_API_SERVER_ENDPOINT`: `https://…`; read from EKS when absent.
    pub api_server_endpoint: Option<Uri>,
    /// `KUBERNETES_CERTIFICATE_AUTHORITY_DATA`: base64 of PEM, as EKS shows it; read from EKS when absent.
    pub certificate_authority: Option<CertificateAuthority>,
    /// `AWS_REGION`, which Lambda sets: where the parameter is read and whose STS verifies the EKS token.
    pub region: String,
    /// `AWS_LAMBDA_FUNCTION_NAME`, which Lambda sets: a dimension of the metrics.
    pub function_name: String,
}

impl Config {
    /// Reads every variable through `var`, which answers `None` for one that is not set.
    pub fn read(var: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut reader = Reader { var, problems: Vec::new() };
        let stack_name = reader.required("STACK", value::stack_name);
        let queues = reader.required("BUILDKITE_QUEUE", value::queues);
        let agent_token_parameter = reader.required("BUILDKITE_AGENT_TOKEN_PARAMETER_PATH", value::parameter_name);
        let agent_tags = reader.optional("BUILDKITE_AGENT_TAGS", value::tags);
        let serve_jobs_without_queue = reader.required("SERVE_JOBS_WITHOUT_QUEUE", value::boolean);
        let stacks_api = reader.required("STACKS_API", value::boolean);
        let stacks_endpoint = reader.optional("BUILDKITE_STACKS_ENDPOINT", value::stacks_endpoint);
        let cluster = reader.required("KUBERNETES_CLUSTER_IDENTIFIER", value::cluster_name);
        let namespace = reader.required("KUBERNETES_NAMESPACE", value::namespace);
        let api_server_endpoint = reader.optional("KUBERNETES_API_SERVER_ENDPOINT", value::endpoint);
        let certificate_authority = reader.optional("KUBERNETES_CERTIFICATE_AUTHORITY_DATA", str::parse);
        let agent_token_secret = reader.required("AGENT_TOKEN_SECRET_NAME", value::secret_name);
        let job_ttl_seconds = reader.required("JOB_TTL_SECONDS", value::ttl_seconds);
        let job_active_deadline_seconds = reader.required("JOB_ACTIVE_DEADLINE_SECONDS", value::seconds);
        let sweep_enabled = reader.required("SWEEP_ENABLED", value::boolean);
        let sweep_finishes = reader.required("SWEEP_FINISHES", value::boolean);
        let job_tokens = reader.required("JOB_TOKENS", value::boolean);
        let pod_pending_seconds = reader.required("POD_PENDING_SECONDS", value::seconds);
        let region = reader.required("AWS_REGION", value::region);
        let function_name = reader.required("AWS_LAMBDA_FUNCTION_NAME", value::function_name);

        if job_tokens == Some(true) && stacks_api == Some(false) {
            let problem = "JobTokens (JOB_TOKENS) is true, and StacksApi (STACKS_API) is false: only the Stacks API makes these tokens";
            reader.problems.push(problem.to_owned());
        }

        // A required value is absent only together with a problem.
        let read = || {
            let (stack_name, cluster, namespace) = (stack_name?, cluster?, namespace?);
            let stacks_endpoint = stacks_endpoint.unwrap_or_else(|| STACKS_ENDPOINT.to_owned());
            Some(Self {
                stack: Stack {
                    id: stack_id(&stack_name, &cluster, &namespace),
                    queues: queues?,
                    agent_tags: agent_tags.unwrap_or_default(),
                    serve_jobs_without_queue: serve_jobs_without_queue?,
                    namespace,
                    agent_token_secret: agent_token_secret?,
                    job_ttl_seconds: job_ttl_seconds?,
                    job_active_deadline_seconds: job_active_deadline_seconds?,
                },
                sweep_enabled: sweep_enabled?,
                sweep_finishes: sweep_finishes?,
                job_tokens: job_tokens?,
                pod_pending_seconds: pod_pending_seconds?,
                stack_name,
                stacks_endpoint: stacks_api?.then_some(stacks_endpoint),
                agent_token_parameter: agent_token_parameter?,
                cluster,
                api_server_endpoint,
                certificate_authority,
                region: region?,
                function_name: function_name?,
            })
        };
        let config = if reader.problems.is_empty() { read() } else { None };
        config.ok_or(ConfigError { problems: reader.problems })
    }
}

/// All that is wrong with the settings, one line each.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.join("; "))]
pub struct ConfigError {
    /// `Parameter (VARIABLE) must be …, got …`
    pub problems: Vec<String>,
}

struct Reader<V> {
    var: V,
    problems: Vec<String>,
}

impl<V: Fn(&str) -> Option<String>> Reader<V> {
    fn optional<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, &'static str>) -> Option<T> {
        let value = (self.var)(name).filter(|value| !value.is_empty())?;
        let expected = match parse(&value) {
            Ok(parsed) => return Some(parsed),
            Err(expected) => expected,
        };
        let found = if value::looks_like_a_token(&value) {
            "a value that looks like a Buildkite token, which is not shown here".to_owned()
        } else {
            format!("\"{}\"", excerpt(&value))
        };
        self.problems.push(format!("{} must be {expected}, got {found}", setting(name)));
        None
    }

    fn required<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, &'static str> + Clone) -> Option<T> {
        if (self.var)(name).is_none_or(|value| value.is_empty()) {
            // No required value may be empty, so that the empty text is answered with what is expected.
            let expected = parse("").err().unwrap_or("set");
            self.problems.push(format!("{} must be {expected}, but is not set", setting(name)));
            return None;
        }
        self.optional(name, parse)
    }
}

/// How an operator knows the setting: `JobTtlSeconds (JOB_TTL_SECONDS)`. What Lambda and the template set has no parameter.
fn setting(variable: &str) -> String {
    if variable.starts_with("AWS_") || matches!(variable, "STACK" | "BUILDKITE_STACKS_ENDPOINT") {
        return variable.to_owned();
    }
    let words = variable.split('_').map(|word| format!("{}{}", &word[..1], word[1..].to_ascii_lowercase()));
    format!("{} ({variable})", words.collect::<String>())
}

/// Unique in all of AWS, and so in a Buildkite organization; the same after an update of the stack.
fn stack_id(stack_name: &str, cluster: &str, namespace: &str) -> String {
    let digest = digest(&SHA256, format!("{stack_name}\n{cluster}\n{namespace}").as_bytes());
    hex::encode(&digest.as_ref()[..16])
}

/// Settings for the tests of other rooms.
#[cfg(test)]
pub(crate) mod fixtures {
    use serde_json::Value;

    use super::*;

    /// The function's variables as `template.yml` sets them where every parameter has its default, with these on top.
    pub(crate) fn read(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let template: Value = serde_saphyr::from_str(include_str!("../template.yml")).unwrap();
        let properties = &template["Resources"]["AgentScheduler"]["Properties"];
        let without_default = [("BuildkiteQueue", "kubernetes"), ("KubernetesClusterIdentifier", "example-cluster")];
        let by_lambda = [
            ("AWS_REGION", "us-east-1"),
            ("AWS_LAMBDA_FUNCTION_NAME", "agent-scheduler"),
            // The template's is a `!Sub`.
            ("STACK", "111122223333:us-east-1:buildkite-agent-scheduler"),
        ];
        Config::read(|name| {
            let given = |values: &[(&str, &str)], name| {
                values.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            };
            let default = || {
                // `!Ref Parameter`, of which the parser keeps the name.
                let parameter = properties["Environment"]["Variables"][name].as_str()?;
                given(&without_default, parameter).or_else(|| match &template["Parameters"][parameter]["Default"] {
                    Value::String(text) => Some(text.clone()),
                    number => Some(number.to_string()),
                })
            };
            given(variables, name).or_else(|| given(&by_lambda, name)).or_else(default)
        })
    }

    pub(crate) fn config(variables: &[(&str, &str)]) -> Config {
        read(variables).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD};

    use super::{fixtures::read, *};
    use crate::stack::Tag;

    #[test]
    fn the_template_sets_all_that_is_required() {
        let Config { stack, agent_token_parameter, api_server_endpoint, certificate_authority, .. } =
            read(&[]).unwrap();
        assert_eq!(stack.namespace, "buildkite");
        assert_eq!(agent_token_parameter, "/buildkite/agent-token");
        assert_eq!((api_server_endpoint, certificate_authority), (None, None));
        assert!(!stack.serve_jobs_without_queue && stack.agent_tags.is_empty());
    }

    #[test]
    fn lists_are_read_with_spaces_around_their_commas() {
        let config = read(&[
            ("BUILDKITE_QUEUE", "linux, gpu"),
            ("BUILDKITE_AGENT_TAGS", "os=linux, flags=a=b"),
            ("SERVE_JOBS_WITHOUT_QUEUE", "true"),
        ])
        .unwrap();
        assert_eq!(config.stack.queues, ["linux", "gpu"]);
        assert_eq!(config.stack.agent_tags[1], Tag { key: "flags".to_owned(), value: "a=b".to_owned() });
        assert!(config.stack.serve_jobs_without_queue);
    }

    #[test]
    fn the_stacks_api_is_buildkites_own_unless_another_is_named_or_it_is_off() {
        let endpoint = |variables: &[(&str, &str)]| read(variables).unwrap().stacks_endpoint;
        assert_eq!(endpoint(&[]).unwrap(), "https://agent.buildkite.com/v3");
        assert_eq!(endpoint(&[("STACKS_API", "false")]), None);
        for own in ["http://127.0.0.1:8080/v3", "http://[::1]:8080/v3", "http://localhost/v3", "https://example.com/v3"]
        {
            assert_eq!(endpoint(&[("BUILDKITE_STACKS_ENDPOINT", &format!("{own}/"))]).unwrap(), own);
        }
    }

    #[test]
    fn the_id_of_the_stack_is_that_of_its_account_region_and_name_with_cluster_and_namespace() {
        let id = |variables: &[(&str, &str)]| read(variables).unwrap().stack.id;
        // printf '111122223333:us-east-1:buildkite-agent-scheduler\nexample-cluster\nbuildkite' | sha256sum
        assert_eq!(id(&[]), "97c9b09ee71719d0b37152c5f59ea8dc");
        let others =
            [("STACK", "1:us-east-1:other"), ("KUBERNETES_NAMESPACE", "ci"), ("KUBERNETES_CLUSTER_IDENTIFIER", "b")];
        assert!(others.into_iter().all(|other| id(&[other]) != id(&[])));
    }

    #[test]
    fn all_problems_are_reported_together() {
        let problems =
            Config::read(|name| (name == "JOB_TTL_SECONDS").then(|| "ten minutes".to_owned())).unwrap_err().problems;
        let expected = [
            "STACK must be ACCOUNT:REGION:STACKNAME, as template.yml sets it, but is not set",
            "BuildkiteQueue (BUILDKITE_QUEUE) must be one queue key or several, comma separated, each of 1 to 100 letters, \
             digits, - and _, but is not set",
            "BuildkiteAgentTokenParameterPath (BUILDKITE_AGENT_TOKEN_PARAMETER_PATH) must be the name of an SSM parameter, with \
             a leading / if it is a path, such as /buildkite/agent-token, but is not set",
            "ServeJobsWithoutQueue (SERVE_JOBS_WITHOUT_QUEUE) must be true or false, but is not set",
            "StacksApi (STACKS_API) must be true or false, but is not set",
            "KubernetesClusterIdentifier (KUBERNETES_CLUSTER_IDENTIFIER) must be the name of an EKS cluster: 1 to 100 letters, \
             digits, - and _, not its ARN, but is not set",
            "KubernetesNamespace (KUBERNETES_NAMESPACE) must be a Kubernetes namespace: at most 63 lower-case letters, digits \
             and -, but is not set",
            "AgentTokenSecretName (AGENT_TOKEN_SECRET_NAME) must be the name of a Kubernetes Secret: at most 253 lower-case \
             letters, digits, - and ., but is not set",
            "JobTtlSeconds (JOB_TTL_SECONDS) must be a whole number of seconds, at least 300, got \"ten minutes\"",
            "JobActiveDeadlineSeconds (JOB_ACTIVE_DEADLINE_SECONDS) must be a whole number of seconds, at least 1, but is not set",
            "SweepEnabled (SWEEP_ENABLED) must be true or false, but is not set",
            "SweepFinishes (SWEEP_FINISHES) must be true or false, but is not set",
            "JobTokens (JOB_TOKENS) must be true or false, but is not set",
            "PodPendingSeconds (POD_PENDING_SECONDS) must be a whole number of seconds, at least 1, but is not set",
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
            ("BUILDKITE_QUEUE", "queue=kubernetes"),
            ("BUILDKITE_AGENT_TOKEN_PARAMETER_PATH", "buildkite/agent-token"),
            ("BUILDKITE_AGENT_TOKEN_PARAMETER_PATH", "/buildkite/agent token"),
            ("BUILDKITE_AGENT_TAGS", "linux"),
            ("BUILDKITE_AGENT_TAGS", "=linux"),
            ("BUILDKITE_AGENT_TAGS", "queue=kubernetes"),
            ("BUILDKITE_AGENT_TAGS", "os=linux,pod-definition=node"),
            ("BUILDKITE_AGENT_TAGS", "pod-template=node"),
            ("BUILDKITE_AGENT_TAGS", "image=node"),
            ("BUILDKITE_AGENT_TAGS", "cpu=1"),
            ("BUILDKITE_AGENT_TAGS", "memory=1Gi"),
            ("BUILDKITE_AGENT_TAGS", "os =linux"),
            ("SERVE_JOBS_WITHOUT_QUEUE", "yes"),
            ("STACKS_API", "on"),
            ("STACK", "buildkite-agent-scheduler"),
            ("BUILDKITE_STACKS_ENDPOINT", "http://agent.buildkite.com/v3"),
            ("BUILDKITE_STACKS_ENDPOINT", "http://localhost.example.com/v3"),
            ("BUILDKITE_STACKS_ENDPOINT", "https://user@agent.buildkite.com/v3"),
            ("BUILDKITE_STACKS_ENDPOINT", "agent.buildkite.com/v3"),
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
            ("JOB_TTL_SECONDS", "299"),
            ("SWEEP_ENABLED", "on"),
            ("SWEEP_FINISHES", "on"),
            ("JOB_TOKENS", "on"),
            ("POD_PENDING_SECONDS", "0"),
            ("JOB_ACTIVE_DEADLINE_SECONDS", "0"),
            ("JOB_ACTIVE_DEADLINE_SECONDS", "2147483648"),
        ];
        for (name, value) in cases {
            let error = read(&[(name, value)]).expect_err(name);
            assert_eq!(error.problems.len(), 1, "{name}={value}");
            assert!(error.problems[0].contains(name) && error.problems[0].contains(" must be "), "{error}");
            assert!(error.problems[0].ends_with(&format!("got \"{}\"", excerpt(value))), "{error}");
        }
    }

    #[test]
    fn job_tokens_need_the_stacks_api() {
        let error = read(&[("JOB_TOKENS", "true"), ("STACKS_API", "false")]).unwrap_err();
        assert_eq!(error.problems.len(), 1);
        assert!(
            error.problems[0].starts_with("JobTokens (JOB_TOKENS) is true, and StacksApi (STACKS_API) is false"),
            "{error}"
        );
    }

    #[test]
    fn a_token_in_place_of_the_parameters_path_is_refused_and_not_shown() {
        let digits = "0123456789abcdef".repeat(4);
        for token in [&format!("bkct_{digits}"), &format!("/buildkite/bkcqt_{digits}"), &digits] {
            let error = read(&[("BUILDKITE_AGENT_TOKEN_PARAMETER_PATH", token)]).unwrap_err().to_string();
            assert!(error.contains("looks like a Buildkite token") && !error.contains("0123"), "{error}");
        }
    }

    #[test]
    fn a_long_value_is_cut_in_the_error() {
        let error = read(&[("KUBERNETES_NAMESPACE", &"é".repeat(300))]).unwrap_err();
        assert!(error.to_string().ends_with("é…\""), "{error}");
    }
}
