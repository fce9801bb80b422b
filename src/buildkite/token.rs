//! What an agent token looks like: letters, digits, `_`, `-` and `.`, as in `bkct_…`, and what people store in its place.
//!
//! No text of this room quotes the value.

use serde_json::Value;

/// Why a value cannot be an agent token: what it looks like, and how to store the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it looks like {looks}; {fix}")]
pub struct NotAToken {
    looks: String,
    fix: String,
}

/// Checks a value without white space around it.
pub fn check(value: &str) -> Result<(), NotAToken> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if !value.is_empty() && value.bytes().all(plain) {
        return Ok(());
    }
    let fix = "store the token alone, without quotes, name or line breaks".to_owned();
    let is = |looks: &str| Err(NotAToken { looks: looks.to_owned(), fix: fix.clone() });
    match serde_json::from_str(value) {
        Ok(Value::Object(fields)) => {
            let strings = fields.iter().filter(|(_, value)| value.is_string());
            let tokens: Vec<_> = strings.filter(|(key, _)| key.to_ascii_lowercase().contains("token")).collect();
            let [(key, _)] = tokens[..] else { return is("a JSON object") };
            let key: String =
                key.chars().filter(|c| c.is_ascii_alphanumeric() || "_-. ".contains(*c)).take(40).collect();
            return Err(NotAToken {
                looks: format!(
                    "a JSON object with the key \"{key}\", as the console of Secrets Manager stores key/value pairs"
                ),
                fix: "store the value of that key as plain text (in the console: Plaintext)".to_owned(),
            });
        }
        Ok(Value::String(_)) => return is("a token in quotes"),
        Ok(_) => return is("JSON"),
        Err(_) => {}
    }
    if value.contains(['\n', '\r']) {
        return is("several lines");
    }
    if value.starts_with("arn:") {
        return is("an ARN");
    }
    if value.contains("://") || value.starts_with('/') {
        return is("a URL or a path");
    }
    if value.split_once('=').is_some_and(|(name, _)| !name.is_empty() && name.bytes().all(plain)) {
        return is("NAME=value");
    }
    if value.starts_with(['"', '\'', '`']) {
        return is("a value in quotes");
    }
    if value.starts_with(['<', '[', '{', '$', '(']) {
        return is("a placeholder");
    }
    if value.contains(char::is_whitespace) {
        return is("several words");
    }
    is("something else: a token has letters, digits, `_`, `-` and `.` only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_every_kind_are_accepted() {
        for token in ["bkct_0123456789abcdefABCDEF", "bkcqt_x", "0123456789abcdef0123456789abcdef01234567", "a-b.c_d"] {
            assert_eq!(check(token), Ok(()), "{token}");
        }
    }

    #[test]
    fn what_is_stored_in_place_of_a_token_is_named_and_never_quoted() {
        let cases = [
            (r#"{"token":"hush"}"#, "a JSON object with the key \"token\", "),
            (r#"{"BUILDKITE_AGENT_TOKEN":"hush","user":"hush"}"#, "with the key \"BUILDKITE_AGENT_TOKEN\""),
            (r#"{"user":"hush"}"#, "a JSON object; store"),
            (r#"{"token":"hush","agent-token":"hush"}"#, "a JSON object; store"),
            (r#"{"token":["hush"]}"#, "a JSON object; store"),
            ("\"hush\"", "a token in quotes"),
            ("'hush'", "a value in quotes"),
            ("[\"hush\"]", "JSON"),
            ("hush\nhush", "several lines"),
            ("BUILDKITE_AGENT_TOKEN=hush", "NAME=value"),
            ("Token hush", "several words"),
            ("<hush>", "a placeholder"),
            ("${hush}", "a placeholder"),
            ("arn:aws:secretsmanager:us-east-1:111122223333:secret:hush", "an ARN"),
            ("https://hush", "a URL or a path"),
            ("hush!", "something else"),
            ("hüsh", "something else"),
            ("", "something else"),
        ];
        for (value, expected) in cases {
            let error = check(value).unwrap_err().to_string();
            assert!(error.contains(expected), "{value}: {error}");
            assert!(!error.contains("hush") && !error.contains("hüsh"), "{error}");
        }
    }
}
