//! Compiles `pod-definitions/` into the function, as JSON, so that a cold start parses no YAML.
//!
//! Each is checked here: a definition that no job can run in fails the build. All problems of all files are printed.

use std::{env, error::Error, fs, path::PathBuf};

use agent_scheduler_cli::definitions::Definitions;

const FOLDER: &str = "pod-definitions";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={FOLDER}");
    let read = Definitions::read(&[PathBuf::from(FOLDER)]);
    // Cargo prints these first, without its frame around a script that failed, and fails the build.
    for (kind, lines) in [("error", read.problems), ("warning", read.warnings)] {
        for line in lines {
            println!("cargo::{kind}={}", line.replace('\n', " "));
        }
    }
    let definitions = read.valid.iter().map(|found| {
        let (name, json) = (found.definition.name(), found.manifest.to_string());
        format!("({name:?}, LazyLock::new(|| checked({json:?})))")
    });
    let list = definitions.collect::<Vec<_>>().join(", ");
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("pod_definitions.rs"), format!("vec![{list}]"))?;
    Ok(())
}
