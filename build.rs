//! Compiles `pod-definitions/` into the function, as JSON, so that a cold start parses no YAML.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=pod-definitions");
    let mut paths =
        fs::read_dir("pod-definitions")?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();

    let files = paths.iter().map(|path| json(path)).collect::<Result<Vec<_>, _>>()?;
    let out = PathBuf::from(env::var("OUT_DIR")?).join("pod_definitions.rs");
    fs::write(out, format!("&{files:?}"))?;
    Ok(())
}

/// The file's path and its content as JSON; what it must hold is checked by `pod_definition`.
fn json(path: &Path) -> Result<(String, String), Box<dyn Error>> {
    let name = path.display().to_string();
    let value: Value =
        serde_saphyr::from_str(&fs::read_to_string(path)?).map_err(|error| format!("{name}: {error}"))?;
    Ok((name, value.to_string()))
}
