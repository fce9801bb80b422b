//! The file that holds the event to send.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// A file that holds no event.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("cannot read the event {}: {source}\nGive --event a file such as events/job-scheduled.json.", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error(
        "the event {} is no JSON: {source}\nGive --event one whole document, as events/job-scheduled.json is.",
        path.display()
    )]
    Garbled { path: PathBuf, source: serde_json::Error },
}

/// The event as it stands in the file, and as the document that it is.
pub fn read(path: &Path) -> Result<(String, Value), Problem> {
    let text = fs::read_to_string(path).map_err(|source| Problem::Unreadable { path: path.to_owned(), source })?;
    match serde_json::from_str(&text) {
        Ok(event) => Ok((text, event)),
        Err(source) => Err(Problem::Garbled { path: path.to_owned(), source }),
    }
}

/// The same event for another job.
pub fn of_job(event: &Value, uuid: &str) -> String {
    let mut event = event.clone();
    event["detail"]["job"]["uuid"] = uuid.into();
    event.to_string()
}
