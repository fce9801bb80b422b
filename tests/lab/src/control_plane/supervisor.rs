//! Programs that end with this process, also when it is killed.
//!
//! A test that is killed, or a `static` that is never dropped, cannot clean up. So each program has a shell beside it that reads
//! from a pipe: the system closes the pipe when this process ends, and then the shell ends the program.

use std::{
    env,
    fs::{DirBuilder, File},
    io,
    os::unix::{fs::DirBuilderExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Runs a program until it ends or the pipe does.
const PROGRAM: &str = r#"
exec 3<&0
"$@" 3<&- </dev/null & program=$!
{ read -r _ <&3; kill -KILL $program; } 2>/dev/null & reader=$!
wait $program
status=$?
kill $reader 2>/dev/null
exit $status
"#;

/// Removes a folder when the pipe ends; programs that are ending may still write into it.
const FOLDER: &str = r#"
read -r _
until rm -rf "$1" 2>/dev/null; do sleep 0.1; done
"#;

/// Removes the cgroups below one of this name, in each hierarchy; a process that is ending may still be in one.
const CGROUPS: &str = r#"
read -r _
cgroups() { find /sys/fs/cgroup -depth -type d -path "*/$1*" 2>/dev/null; }
while [ -n "$(cgroups "$1")" ]; do cgroups "$1" | xargs rmdir; sleep 0.1; done
"#;

/// The shell beside a program or a folder, which is gone when this is dropped.
pub(crate) struct Supervisor {
    shell: Child,
}

impl Supervisor {
    /// Starts a program in the folder of its log.
    pub(crate) fn run(program: &Command, log: &Path) -> io::Result<Self> {
        let mut shell = shell(PROGRAM);
        shell.arg(program.get_program()).args(program.get_args()).current_dir(log.parent().unwrap_or(log));
        shell.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let log = File::create(log)?;
        let shell = shell.stdout(log.try_clone()?).stderr(log).spawn()?;
        Ok(Self { shell })
    }

    /// Removes a folder at the end.
    pub(crate) fn remove(folder: &Path) -> io::Result<Self> {
        Self::at_end(FOLDER, folder)
    }

    /// Removes the cgroups below this one at the end.
    pub(crate) fn remove_cgroup(name: &str) -> io::Result<Self> {
        Self::at_end(CGROUPS, Path::new(name))
    }

    fn at_end(script: &str, argument: &Path) -> io::Result<Self> {
        let shell = shell(script).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Self { shell })
    }

    /// How the program ended, if it has.
    pub(crate) fn ended(&mut self) -> io::Result<Option<String>> {
        Ok(self.shell.try_wait()?.map(|status| status.to_string()))
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // This fails only if another thread has waited for it.
        let _ = self.shell.wait();
    }
}

/// In a process group of its own: an interrupt from the keyboard must not end the shell before its program.
fn shell(script: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "supervisor"]).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
    shell.stdin(Stdio::piped()).process_group(0);
    shell
}

/// A new folder that other users cannot read.
pub(crate) fn folder(name: &str) -> io::Result<PathBuf> {
    let folder = env::temp_dir().join(name);
    DirBuilder::new().mode(0o700).create(&folder)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::{fs, thread::sleep, time::Duration};

    use super::*;
    use crate::credentials::random_hex;

    fn said(log: &Path) -> String {
        loop {
            match fs::read_to_string(log) {
                Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
                _ => sleep(Duration::from_millis(5)),
            }
        }
    }

    #[test]
    fn a_program_and_its_folder_end_with_their_supervisors() {
        let folder = folder(&format!("supervisor-{}", random_hex::<6>())).unwrap();
        let folder_supervisor = Supervisor::remove(&folder).unwrap();
        let log = folder.join("log");
        let mut program = Command::new("sh");
        program.args(["-c", "echo $$; exec sleep 1000"]);
        let supervisor = Supervisor::run(&program, &log).unwrap();
        let process = Path::new("/proc").join(said(&log));
        assert!(process.exists());
        drop(supervisor);
        assert!(!process.exists());
        drop(folder_supervisor);
        assert!(!folder.exists());
    }

    #[test]
    fn how_a_program_ended_is_known() {
        let folder = folder(&format!("supervisor-{}", random_hex::<6>())).unwrap();
        let _folder = Supervisor::remove(&folder).unwrap();
        let mut program = Command::new("sh");
        program.args(["-c", "exit 7"]);
        let mut supervisor = Supervisor::run(&program, &folder.join("log")).unwrap();
        let status = loop {
            match supervisor.ended().unwrap() {
                Some(status) => break status,
                None => sleep(Duration::from_millis(5)),
            }
        };
        assert!(status.contains('7'), "{status}");
    }
}
