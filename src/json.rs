//! JSON that others wrote: where it is not what it should be, the error names the field. And JSON that we write from parts.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

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

/// The fields of an object, but for some, without its braces.
pub fn without(object: &Value, is_left_out: impl Fn(&str) -> bool) -> String {
    let fields = object.as_object().into_iter().flatten().filter(|(name, _)| !is_left_out(name));
    fields.map(|(name, value)| format!("{}:{value}", json!(name))).collect::<Vec<_>>().join(",")
}

/// JSON that is being written, part after part, so that what never changes is written as it is.
#[derive(Debug)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// With room for so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// A part that is JSON already, behind a comma where one is needed. It may be empty.
    pub fn part(&mut self, part: impl AsRef<[u8]>) {
        if !part.as_ref().is_empty() {
            self.separate();
            self.0.extend_from_slice(part.as_ref());
        }
    }

    /// A field of an object. Its name needs no escape.
    pub fn field(&mut self, name: &str, value: &(impl Serialize + ?Sized)) {
        self.begin(name, "");
        serde_json::to_writer(&mut self.0, value).expect("texts, numbers and structures of them are JSON");
    }

    /// A field whose value is text. Most texts need no escape, which is cheaper to find out for all of a text than byte by byte.
    pub fn text(&mut self, name: &str, text: &str) {
        let is_escaped = |byte| byte < b' ' || byte == b'"' || byte == b'\\';
        if text.bytes().fold(false, |any, byte| any | is_escaped(byte)) {
            self.field(name, text);
        } else {
            self.begin(name, "\"");
            self.end(text);
            self.0.push(b'"');
        }
    }

    /// A field whose value follows: an object or a list, which `start` begins.
    pub fn begin(&mut self, name: &str, start: &str) {
        self.separate();
        self.0.push(b'"');
        self.end(name);
        self.0.extend(*b"\":");
        self.end(start);
    }

    /// The end of objects and lists.
    pub fn end(&mut self, end: &str) {
        self.0.extend_from_slice(end.as_bytes());
    }

    /// What is written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn separate(&mut self) {
        if !matches!(self.0.last(), None | Some(b'{' | b'[')) {
            self.0.push(b',');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_written_as_serde_writes_it() {
        for text in ["", "main", "größer 🚀", "it's \u{7f}", "a\"b", "a\\b", "a\nb", "\u{1}"] {
            let mut json = Writer::with_capacity(64);
            json.part("{");
            json.text("before", "x");
            json.text("text", text);
            json.end("}");
            assert_eq!(String::from_utf8(json.into_bytes()).unwrap(), json!({"before": "x", "text": text}).to_string());
        }
    }
}
