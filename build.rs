//! Compiles `pod-definitions/` into the function, as JSON, so that a cold start parses no YAML.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=pod-definitions");
    let entries = fs::read_dir("pod-definitions")?.map(|entry| Ok(entry?.path()));
    let mut paths = entries.collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml"));
    paths.sort();

    let mut files: Vec<(String, String)> = Vec::new();
    let mut names = BTreeMap::new();
    for path in paths {
        let (file, manifest) = read(&path)?;
        let name = manifest["metadata"]["name"].as_str().ok_or(format!("{file}: metadata.name must be a name"))?;
        if let Some(other) = names.insert(name.to_owned(), file.clone()) {
            return Err(format!("{file}: metadata.name is {name}, and so is that of {other}").into());
        }
        files.push((file, manifest.to_string()));
    }
    let out = PathBuf::from(env::var("OUT_DIR")?).join("pod_definitions.rs");
    fs::write(out, format!("&{files:?}"))?;
    Ok(())
}

/// The file's path and what it says; whether that is a usable definition is for `pod_definition` to judge.
fn read(path: &Path) -> Result<(String, Value), Box<dyn Error>> {
    let file = path.display().to_string();
    let manifest = serde_saphyr::from_str(&fs::read_to_string(path)?).map_err(|error| format!("{file}: {error}"))?;
    Ok((file, manifest))
}
