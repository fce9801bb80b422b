//! Compiles `pod-definitions/` into the function, as JSON, so that a cold start parses no YAML.
//!
//! Each is checked here as the function checks it: a definition that no job can run in fails the build.

#[expect(dead_code, reason = "the function uses more of it")]
#[path = "src/excerpt.rs"]
mod excerpt;
#[expect(dead_code, reason = "the function uses more of it")]
#[path = "src/pod_definition.rs"]
mod pod_definition;
#[expect(dead_code, reason = "the function uses more of it")]
#[path = "src/quantity.rs"]
mod quantity;

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use self::pod_definition::PodDefinition;

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=pod-definitions");
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<(), Box<dyn Error>> {
    let mut files: Vec<(String, String)> = Vec::new();
    let mut names = BTreeMap::new();
    for path in paths()? {
        let (file, name, json) = read(&path)?;
        if let Some(other) = names.insert(name.clone(), file.clone()) {
            return Err(format!(
                "{file}: metadata.name is {name}, and so is that of {other}; give one of them another"
            )
            .into());
        }
        files.push((file, json));
    }
    let out = PathBuf::from(env::var("OUT_DIR")?).join("pod_definitions.rs");
    fs::write(out, format!("&{files:?}"))?;
    Ok(())
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

/// The file's path, its definition's name, and what it says.
fn read(path: &Path) -> Result<(String, String, String), Box<dyn Error>> {
    let file = path.display().to_string();
    let manifest = serde_saphyr::from_str(&fs::read_to_string(path)?).map_err(|error| format!("{file}: {error}"))?;
    let definition = PodDefinition::parse(&file, &manifest)?;
    Ok((file, definition.name().to_owned(), manifest.to_string()))
}
