//! What must hold whatever others send: Buildkite, the authors of steps and of pod definitions, whoever answers as API server.
//!
//! Each module is a target: [`Target::run`] takes any bytes and panics where something does not hold. `make fuzz` has libFuzzer
//! look for such bytes, and `cargo test` runs the targets on their seeds and on what was found once (`findings/`).

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

use agent_scheduler::{config::Config, pod_definition::PodDefinition};
use serde_json::Value;

/// Something that takes what others send.
pub struct Target {
    /// Its module, and its program of `fuzz_targets/`.
    pub name: &'static str,
    /// Panics where something does not hold.
    pub run: fn(&[u8]),
    /// What a run begins with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 5] = [
    Target { name: "event", run: event::run, seeds: event::seeds },
    Target { name: "query_rules", run: query_rules::run, seeds: query_rules::seeds },
    Target { name: "pod_definition", run: pod_definition::run, seeds: pod_definition::seeds },
    Target { name: "certificate_authority", run: certificate_authority::run, seeds: certificate_authority::seeds },
    Target { name: "api_server", run: api_server::run, seeds: api_server::seeds },
];

/// The longest text that an error may have, whatever it quotes.
const LONGEST: usize = 4_096;

/// Whether a text may stand in a log: it is one line, and no flood.
fn told(text: &str) {
    assert!(text.len() <= LONGEST, "{} bytes: {}…", text.len(), text.chars().take(400).collect::<String>());
    assert!(!text.contains(char::is_control), "not one line: {text:?}");
}

/// Two functions: one with nothing but what it needs, and one with tags and queues.
static CONFIGS: LazyLock<[Config; 2]> = LazyLock::new(|| {
    let own = [
        ("BUILDKITE_QUEUE", "default,gpu,q-"),
        ("BUILDKITE_AGENT_TAGS", "os=linux,os=ubuntu,flags=a=b"),
        ("SERVE_JOBS_WITHOUT_QUEUE", "true"),
        ("KUBERNETES_NAMESPACE", "builds"),
        ("AGENT_TOKEN_SECRET_NAME", "token-of-this-stack"),
    ];
    [config(&[]), config(&own)]
});

/// What is required, with `variables` first.
fn config(variables: &[(&str, &str)]) -> Config {
    const REQUIRED: [(&str, &str); 4] = [
        ("BUILDKITE_QUEUE", "default"),
        ("KUBERNETES_CLUSTER_IDENTIFIER", "example-cluster"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_LAMBDA_FUNCTION_NAME", "agent-scheduler"),
    ];
    let read = Config::read(|name| {
        let mut found = variables.iter().chain(&REQUIRED).filter(|(key, _)| *key == name);
        found.next().map(|(_, value)| (*value).to_owned())
    });
    read.expect("these variables are good")
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

/// The files of a folder, in the order of their names; none if there is no such folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("it can be read").path());
    let mut files: Vec<_> = entries.filter(|path| path.is_file()).collect();
    files.sort();
    files
}

/// Puts seeds into the folder that the variable `SEEDS` names, before libFuzzer reads that.
pub fn write_seeds(seeds: fn() -> Vec<Vec<u8>>) {
    let Some(folder) = env::var_os("SEEDS") else { return };
    for (number, seed) in seeds().iter().enumerate() {
        fs::write(Path::new(&folder).join(number.to_string()), seed).expect("it can be written");
    }
}
