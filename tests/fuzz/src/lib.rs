//! What must hold for any input: from Buildkite, from the authors of steps and pod definitions, from whatever answers as the API
//! server.
//!
//! Each module is a target: [`Target::run`] takes any bytes and panics where something does not hold. `make fuzz` searches for such
//! bytes with libFuzzer. `cargo test` runs the targets on their seeds and on earlier findings (`findings/`).

pub mod api_server;
pub mod certificate_authority;
pub mod event;
mod manifest;
pub mod pod_definition;
pub mod query_rules;

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use agent_scheduler::{
    config::{Config, ConfigError},
    pod::definition::PodDefinition,
    stack::Stack,
};
use serde_json::Value;

/// One kind of input.
pub struct Target {
    /// The name of its module.
    pub name: &'static str,
    /// Panics where something does not hold.
    pub run: fn(&[u8]),
    /// The inputs that a run starts with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: [Target; 5] = [
    Target { name: "event", run: event::run, seeds: event::seeds },
    Target { name: "query_rules", run: query_rules::run, seeds: query_rules::seeds },
    Target { name: "pod_definition", run: pod_definition::run, seeds: pod_definition::seeds },
    Target { name: "certificate_authority", run: certificate_authority::run, seeds: certificate_authority::seeds },
    Target { name: "api_server", run: api_server::run, seeds: api_server::seeds },
];

/// The limit for the text of an error, whatever it quotes: 2,000 characters of a message, each of which takes up to ten bytes
/// when it is escaped, and the text around it.
const MAX_TEXT_BYTES: usize = 24 * 1024;

/// A text for the log is one line of limited length.
fn check_text(text: &str) {
    assert!(text.len() <= MAX_TEXT_BYTES, "{} bytes: {}…", text.len(), text.chars().take(400).collect::<String>());
    assert!(!text.contains(char::is_control), "not one line: {text:?}");
}

/// A stack with the required settings alone, and one with tags and several queues.
static STACKS: LazyLock<[Stack; 2]> = LazyLock::new(|| {
    let more = [
        ("BUILDKITE_QUEUE", "kubernetes,gpu,q-"),
        ("BUILDKITE_AGENT_TAGS", "os=linux,os=ubuntu,flags=a=b"),
        ("SERVE_JOBS_WITHOUT_QUEUE", "true"),
        ("KUBERNETES_NAMESPACE", "builds"),
        ("AGENT_TOKEN_SECRET_NAME", "token-of-this-stack"),
    ];
    [&[][..], &more].map(|variables| config(variables).expect("these variables are valid").stack)
});

/// The required settings, overridden by `variables`.
fn config(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    const REQUIRED: [(&str, &str); 16] = [
        ("STACK", "111122223333:us-east-1:buildkite-agent-scheduler"),
        ("STACKS_API", "true"),
        ("BUILDKITE_QUEUE", "kubernetes"),
        ("BUILDKITE_AGENT_TOKEN_PARAMETER_PATH", "/buildkite/agent-token"),
        ("SERVE_JOBS_WITHOUT_QUEUE", "false"),
        ("KUBERNETES_CLUSTER_IDENTIFIER", "example-cluster"),
        ("KUBERNETES_NAMESPACE", "buildkite"),
        ("AGENT_TOKEN_SECRET_NAME", "buildkite-agent-token"),
        ("JOB_TTL_SECONDS", "600"),
        ("JOB_ACTIVE_DEADLINE_SECONDS", "21600"),
        ("SWEEP_ENABLED", "true"),
        ("SWEEP_FINISHES", "true"),
        ("JOB_TOKENS", "false"),
        ("POD_PENDING_SECONDS", "900"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_LAMBDA_FUNCTION_NAME", "agent-scheduler"),
    ];
    Config::read(|name| {
        let mut found = variables.iter().chain(&REQUIRED).filter(|(key, _)| *key == name);
        found.next().map(|(_, value)| (*value).to_owned())
    })
}

/// `pod-definitions/`, as `PodTemplates`.
static MANIFESTS: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let folder = root().join("pod-definitions");
    let mut files = files(&folder);
    files.push(folder.join("elastic-ci-stack/pod-template.yaml"));
    let manifest =
        |file| serde_saphyr::from_str(&fs::read_to_string(file).expect("it can be read")).expect("it is YAML");
    files.iter().map(manifest).collect()
});

/// The same, checked.
static DEFINITIONS: LazyLock<Vec<PodDefinition>> = LazyLock::new(|| {
    let parsed = MANIFESTS.iter().map(|manifest| PodDefinition::parse("a file", manifest));
    parsed.collect::<Result<_, _>>().expect("the build has checked them")
});

/// The root of the repository.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The files of a folder, in the order of their names; empty if there is no such folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("it can be read").path());
    let mut files: Vec<_> = entries.filter(|path| path.is_file()).collect();
    files.sort();
    files
}

/// Writes the seeds into the folder that the variable `SEEDS` names, before libFuzzer reads it.
pub fn write_seeds(target: &Target) {
    let Some(folder) = env::var_os("SEEDS") else { return };
    for (number, seed) in (target.seeds)().iter().enumerate() {
        fs::write(Path::new(&folder).join(number.to_string()), seed).expect("it can be written");
    }
}
