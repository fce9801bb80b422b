//! Compiles `pod-definitions/` into the function, as JSON, so that a cold start parses no YAML.
//!
//! Each is checked here as the function checks it: a definition that no job can run in fails the build. All problems of all
//! files are printed.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use agent_scheduler_core::pod::definition::PodDefinition;

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=pod-definitions");
    match compile() {
        Ok(problems) if problems.is_empty() => ExitCode::SUCCESS,
        Ok(problems) => {
            eprintln!("{}", problems.join("\n"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the definitions, or returns what is wrong with them.
fn compile() -> Result<Vec<String>, Box<dyn Error>> {
    let (mut definitions, mut names, mut problems) = (Vec::new(), BTreeMap::new(), Vec::new());
    for path in paths()? {
        let file = path.display().to_string();
        match read(&path, &file) {
            Ok((name, json)) => {
                definitions.push(format!("({name:?}, LazyLock::new(|| checked({json:?})))"));
                if let Some(other) = names.insert(name.clone(), file.clone()) {
                    problems.push(format!("{file}: metadata.name is {name}, as in {other}; rename one of them"));
                }
            }
            Err(found) => problems.extend(found.into_iter().map(|problem| format!("{file}: {problem}"))),
        }
    }
    let out = PathBuf::from(env::var("OUT_DIR")?).join("pod_definitions.rs");
    fs::write(out, format!("vec![{}]", definitions.join(", ")))?;
    Ok(problems)
}

/// `NAME.yaml`, or `NAME/pod-template.yaml` for a definition that has an image, IAM or overlays of its own beside it.
fn paths() -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir("pod-definitions")? {
        let path = entry?.path();
        if path.is_dir() {
            paths.extend(Some(path.join("pod-template.yaml")).filter(|path| path.is_file()));
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The name of a file's definition, and what the file says; or what is wrong with it.
fn read(path: &Path, file: &str) -> Result<(String, String), Vec<String>> {
    let text = fs::read_to_string(path).map_err(|error| vec![error.to_string()])?;
    let manifest = serde_saphyr::from_str(&text).map_err(|error| vec![error.to_string()])?;
    match PodDefinition::parse(file, &manifest) {
        Ok(definition) => Ok((definition.name().to_owned(), manifest.to_string())),
        Err(invalid) => Err(invalid.problems.iter().map(ToString::to_string).collect()),
    }
}
