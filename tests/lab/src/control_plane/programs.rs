//! The programs of a control plane: where they are, and built first if they are not there.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::Problem;

/// Prints the folders, and builds what is missing; what it has to say to a person goes to standard error.
const BUILD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../control-plane/build");

/// The folders with the programs.
pub(super) struct Programs(Vec<PathBuf>);

impl Programs {
    /// Takes minutes if they must be built, and a moment otherwise.
    pub(super) fn find() -> Result<Self, Problem> {
        let built = Command::new(BUILD).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        if !built.status.success() {
            return Err(Problem::NoPrograms(built.status));
        }
        Ok(Self(String::from_utf8_lossy(&built.stdout).lines().map(PathBuf::from).collect()))
    }

    /// The path of one; if it is in no folder, starting it will say so.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        let found = self.0.iter().map(|folder| folder.join(name)).find(|path: &PathBuf| path.is_file());
        found.unwrap_or_else(|| Path::new(name).to_owned())
    }
}
