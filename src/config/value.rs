//! What each setting may be. An error is what was expected.

use std::net::IpAddr;

use http::Uri;

use crate::stack::Tag;

pub(super) fn stack_name(value: &str) -> Result<String, &'static str> {
    let ok = is_word(value, 250, b"-_:") && value.split(':').count() == 3;
    ok.then(|| value.to_owned()).ok_or("ACCOUNT:REGION:STACKNAME, as template.yml sets it")
}

/// Without TLS only on this machine: the agent token goes there.
pub(super) fn stacks_endpoint(value: &str) -> Result<String, &'static str> {
    const EXPECTED: &str =
        "an https:// address such as https://agent.buildkite.com/v3 (http:// for a loopback address only)";
    let uri: Uri = value.parse().map_err(|_| EXPECTED)?;
    let host = uri.host().map(|host| host.trim_matches(['[', ']'])).unwrap_or_default();
    let is_loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let ok = uri.query().is_none()
        && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        && (uri.scheme_str() == Some("https") || uri.scheme_str() == Some("http") && is_loopback);
    ok.then(|| value.trim_end_matches('/').to_owned()).ok_or(EXPECTED)
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim)
}

pub(super) fn queues(value: &str) -> Result<Vec<String>, &'static str> {
    list(value)
        .map(|queue| is_word(queue, 100, b"-_").then(|| queue.to_owned()))
        .collect::<Option<_>>()
        .ok_or("one queue key or several, comma separated, each of 1 to 100 letters, digits, - and _")
}

pub(super) fn tags(value: &str) -> Result<Vec<Tag>, &'static str> {
    list(value)
        .map(|tag| match tag.split_once('=') {
            Some(("queue", _)) => Err("tags without queue=, which BuildkiteQueue sets"),
            // The agent has these by its pod, and a step's rules of these names never ask for a tag.
            Some(("pod-definition" | "pod-template" | "image" | "cpu" | "memory", _)) => {
                Err("tags other than pod-definition, pod-template, image, cpu and memory, which a step asks of its pod")
            }
            Some((key, value)) if !key.is_empty() && !value.is_empty() && key.trim() == key => {
                Ok(Tag { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err("key=value, several separated by commas"),
        })
        .collect()
}

pub(super) fn boolean(value: &str) -> Result<bool, &'static str> {
    value.parse().map_err(|_| "true or false")
}

/// A name, a path from the root, or the ARN of a parameter that another account shares.
pub(super) fn parameter_name(value: &str) -> Result<String, &'static str> {
    let ok = value.bytes().all(|byte| byte.is_ascii_graphic())
        && !value.is_empty()
        && !looks_like_a_token(value)
        && (!value.contains('/') || value.starts_with('/') || value.starts_with("arn:"));
    ok.then(|| value.to_owned())
        .ok_or("the name of an SSM parameter, with a leading / if it is a path, such as /buildkite/agent-token")
}

/// <https://docs.aws.amazon.com/eks/latest/APIReference/API_CreateCluster.html#AmazonEKS-CreateCluster-request-name>
pub(super) fn cluster_name(value: &str) -> Result<String, &'static str> {
    (is_word(value, 100, b"-_") && value.as_bytes()[0].is_ascii_alphanumeric())
        .then(|| value.to_owned())
        .ok_or("the name of an EKS cluster: 1 to 100 letters, digits, - and _, not its ARN")
}

pub(super) fn namespace(value: &str) -> Result<String, &'static str> {
    is_dns_label(value)
        .then(|| value.to_owned())
        .ok_or("a Kubernetes namespace: at most 63 lower-case letters, digits and -")
}

pub(super) fn secret_name(value: &str) -> Result<String, &'static str> {
    (value.len() <= 253 && value.split('.').all(is_dns_label))
        .then(|| value.to_owned())
        .ok_or("the name of a Kubernetes Secret: at most 253 lower-case letters, digits, - and .")
}

pub(super) fn endpoint(value: &str) -> Result<Uri, &'static str> {
    const EXPECTED: &str = "the https:// address of the API server, as `aws eks describe-cluster` shows it";
    let uri: Uri = value.parse().map_err(|_| EXPECTED)?;
    let ok = uri.scheme_str() == Some("https")
        && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        && uri.path() == "/"
        && uri.query().is_none();
    ok.then_some(uri).ok_or(EXPECTED)
}

/// Kubernetes stores both numbers as int32.
pub(super) fn seconds(value: &str) -> Result<u32, &'static str> {
    const MAX: u32 = i32::MAX.cast_unsigned();
    let seconds = value.parse().ok().filter(|seconds| (1..=MAX).contains(seconds));
    seconds.ok_or("a whole number of seconds, at least 1")
}

/// The sweep counts the attempts of a job on its ended Jobs.
pub(super) fn ttl_seconds(value: &str) -> Result<u32, &'static str> {
    seconds(value).ok().filter(|seconds| *seconds >= 300).ok_or("a whole number of seconds, at least 300")
}

pub(super) fn region(value: &str) -> Result<String, &'static str> {
    is_word(value, 63, b"-").then(|| value.to_owned()).ok_or("an AWS region, such as us-east-1")
}

pub(super) fn function_name(value: &str) -> Result<String, &'static str> {
    is_word(value, 140, b"-_").then(|| value.to_owned()).ok_or("the name of the Lambda function")
}

fn is_word(value: &str, max: usize, also: &[u8]) -> bool {
    (1..=max).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || also.contains(&byte))
}

fn is_dns_label(value: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=63).contains(&value.len())
        && value.bytes().all(|byte| inner(byte) || byte == b'-')
        && !value.starts_with('-')
        && !value.ends_with('-')
}

/// A word such as `bkct_…`, or the hexadecimal digits of an old agent token.
pub(super) fn looks_like_a_token(value: &str) -> bool {
    const KINDS: [&str; 9] = ["bkaa", "bkaj", "bkar", "bkat", "bkcqt", "bkct", "bkjat", "bkpt", "bkua"];
    let mut words = value.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.any(|word| match word.split_once('_') {
        Some((kind, rest)) => KINDS.contains(&kind) && !rest.is_empty(),
        None => word.len() >= 40 && word.bytes().all(|byte| byte.is_ascii_hexdigit()),
    })
}
