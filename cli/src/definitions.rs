//! Pod definitions in files: read, and checked as far as this can be done without a cluster.

use std::{
    collections::BTreeMap,
    error::Error,
    fs, io,
    path::{Path, PathBuf},
};

use agent_scheduler_core::pod::definition::PodDefinition;
use serde_json::Value;

use crate::schema::{self, Found};

/// What the files say.
#[derive(Debug, Default)]
pub struct Definitions {
    /// Those that a job can run in.
    pub valid: Vec<Definition>,
    /// All that is wrong, a line each: file, field, what it must be.
    pub problems: Vec<String>,
    /// What only a newer Kubernetes takes than the one whose schema is known here, and what jobs risk, a line each.
    pub warnings: Vec<String>,
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
        let line = |problem: &dyn ToString| format!("{file}: {}", problem.to_string());
        let manifest: Value = match parse(path) {
            Ok(manifest) => manifest,
            Err(problem) => return self.problems.push(line(&problem)),
        };
        let (problems, definition) = match PodDefinition::parse(&file, &manifest) {
            Ok(definition) => (Vec::new(), Some(definition)),
            Err(invalid) => (invalid.problems, None),
        };
        let mut found = Found::default();
        if problems.iter().all(|problem| problem.field != "kind") {
            found = schema::check(&manifest);
        }
        // First a field at the wrong level, then what is absent without it.
        found.problems.retain(|found| problems.iter().all(|known| known.field != found.field));
        found.problems.extend(problems);
        self.warnings.extend(found.warnings.iter().map(|warning| line(warning)));
        self.problems.extend(found.problems.iter().map(|problem| line(problem)));
        if let Some(definition) = definition.filter(|_| found.problems.is_empty()) {
            self.warnings.extend(definition.warning().iter().map(|warning| line(warning)));
            self.valid.push(Definition { file, manifest, definition });
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

fn parse(path: &Path) -> Result<Value, Box<dyn Error>> {
    Ok(serde_saphyr::from_str(&fs::read_to_string(path)?)?)
}
