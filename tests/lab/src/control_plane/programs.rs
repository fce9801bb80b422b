//! The programs of a control plane, which are built if they are missing.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::Problem;

/// Builds what is missing, and prints the folders; messages for a person go to standard error.
const BUILD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../control-plane/build");

/// The folders with the programs.
pub(super) struct Programs(Vec<PathBuf>);

impl Programs {
    /// Takes minutes if they have to be built.
    pub(super) fn find() -> Result<Self, Problem> {
        let built = Command::new(BUILD).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        if !built.status.success() {
            return Err(Problem::NoPrograms(built.status));
        }
        Ok(Self(String::from_utf8_lossy(&built.stdout).lines().map(PathBuf::from).collect()))
    }

    /// The path of one; its start fails if it is in no folder.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        let found = self.0.iter().map(|folder| folder.join(name)).find(|path: &PathBuf| path.is_file());
        found.unwrap_or_else(|| Path::new(name).to_owned())
    }
}
