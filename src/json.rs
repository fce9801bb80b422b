//! JSON that others wrote: where it is not what it should be, the error names the field.

use serde::Deserialize;

use crate::text::excerpt;

/// A document that is not what it should be: which field, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{}{}", .field.as_ref().map(|field| format!("{}: ", excerpt(field))).unwrap_or_default(), excerpt(&.problem.to_string()))]
pub struct Malformed {
    field: Option<String>,
    problem: serde_json::Error,
}

/// Parses a document that stands at `root` of a larger one; `""` for a whole document.
///
/// A document with an error is parsed again with a record of the path: the record costs time, and good documents need none.
pub fn parse<'a, T: Deserialize<'a>>(json: &'a str, root: &str) -> Result<T, Malformed> {
    serde_json::from_str(json).map_err(|problem| {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let path = serde_path_to_error::deserialize::<_, T>(&mut deserializer).err();
        let path = path.map(|error| error.path().to_string()).unwrap_or_default();
        let parts = [root, &path].into_iter().filter(|part| !matches!(*part, "" | "."));
        let field = parts.collect::<Vec<_>>().join(".");
        Malformed { field: Some(field).filter(|field| !field.is_empty()), problem }
    })
}
