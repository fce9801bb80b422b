//! The function prints its metrics on standard output, which is for the simulation's own results.

use std::{
    fs::File,
    io::{Write, stdout},
};

/// Until it is dropped, standard output has only what is printed by it.
pub struct Quiet(File);

impl Quiet {
    /// From here on.
    #[expect(clippy::new_without_default, reason = "it changes the process")]
    pub fn new() -> Self {
        let kept = nix::unistd::dup(stdout()).expect("standard output is open");
        let nowhere = File::create("/dev/null").expect("there is /dev/null");
        nix::unistd::dup2_stdout(nowhere).expect("standard output can be moved");
        Self(kept.into())
    }

    /// Prints a text.
    pub fn print(&mut self, text: &str) {
        // Who listens has left.
        let _ = self.0.write_all(text.as_bytes());
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = nix::unistd::dup2_stdout(&self.0);
    }
}
