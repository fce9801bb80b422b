//! Pod definitions in files: read, and checked as far as this can be done without a cluster.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use agent_scheduler_core::pod::definition::PodDefinition;
use serde_json::Value;

/// What the files say.
#[derive(Debug, Default)]
pub struct Definitions {
    /// Those that a job can run in.
    pub valid: Vec<Definition>,
    /// All that is wrong, a line each: file, field, what it must be.
    pub problems: Vec<String>,
}

/// A definition and where it comes from.
#[derive(Debug)]
pub struct Definition {
    /// Its file.
    pub file: String,
    /// As its author wrote it.
    pub manifest: Value,
    /// As the function reads it.
    pub definition: PodDefinition,
}

impl Definitions {
    /// Reads files, and the definitions of folders. All problems of all of them are found.
    pub fn read(paths: &[PathBuf]) -> Self {
        let mut read = Self::default();
        for path in paths {
            match files(path) {
                Ok(files) if files.is_empty() => {
                    let expected = "expected NAME.yaml, or NAME/pod-template.yaml";
                    read.problems.push(format!("{}: no pod definition in this folder; {expected}", path.display()));
                }
                Ok(files) => files.iter().for_each(|file| read.add(file)),
                Err(error) => read.problems.push(format!("{}: {error}", path.display())),
            }
        }
        read.problems.extend(read.repeated_names());
        read
    }

    fn add(&mut self, path: &Path) {
        let file = path.display().to_string();
        match parse(path, &file) {
            Ok((manifest, definition)) => self.valid.push(Definition { file, manifest, definition }),
            Err(problems) => {
                self.problems.extend(problems.into_iter().map(|problem| format!("{file}: {problem}")));
            }
        }
    }

    fn repeated_names(&self) -> Vec<String> {
        let (mut names, mut problems) = (BTreeMap::new(), Vec::new());
        for Definition { file, definition, .. } in &self.valid {
            if let Some(other) = names.insert(definition.name(), file) {
                let name = definition.name();
                problems.push(format!("{file}: metadata.name is {name}, as in {other}; rename one of them"));
            }
        }
        problems
    }
}

/// A file itself. Of a folder `NAME.yaml`, or `NAME/pod-template.yaml` for a definition that has an image, IAM or overlays of its
/// own beside it.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(Some(path.join("pod-template.yaml")).filter(|path| path.is_file()));
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn parse(path: &Path, file: &str) -> Result<(Value, PodDefinition), Vec<String>> {
    let text = fs::read_to_string(path).map_err(|error| vec![error.to_string()])?;
    let manifest = serde_saphyr::from_str(&text).map_err(|error| vec![error.to_string()])?;
    match PodDefinition::parse(file, &manifest) {
        Ok(definition) => Ok((manifest, definition)),
        Err(invalid) => Err(invalid.problems.iter().map(ToString::to_string).collect()),
    }
}
