//! What an agent token looks like: letters, digits, `_`, `-` and `.`, as in `bkct_…`, and what people store in its place.
//!
//! No text of this room quotes the value.

use std::{borrow::Cow, time::Duration};

use serde_json::{Map, Value};

/// How long a job acquisition token lives, and the reservation that it needs: the longest that Buildkite allows.
pub const JOB_TOKEN_LIFETIME: Duration = Duration::from_hours(1);

/// Why a value cannot be an agent token: what it looks like, and how to store the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it looks like {looks}; {fix}")]
pub struct NotAToken {
    looks: Cow<'static, str>,
    fix: &'static str,
}

type Test = fn(&str) -> bool;

/// What people store that is not JSON; the first that fits.
const LOOKS: [(Test, &str); 8] = [
    (|value| value.contains(['\n', '\r']), "several lines"),
    (|value| value.starts_with("arn:"), "an ARN"),
    (|value| value.contains("://") || value.starts_with('/'), "a URL or a path"),
    (|value| value.split_once('=').is_some_and(|(name, _)| is_plain(name)), "NAME=value"),
    (|value| value.starts_with(['"', '\'', '`']), "a value in quotes"),
    (|value| value.starts_with(['<', '[', '{', '$', '(']), "a placeholder"),
    (|value| value.contains(char::is_whitespace), "several words"),
    (|_| true, "something else: a token has letters, digits, `_`, `-` and `.` only"),
];

/// Checks a value without white space around it.
pub fn check(value: &str) -> Result<(), NotAToken> {
    if is_plain(value) {
        return Ok(());
    }
    let looks = match serde_json::from_str(value) {
        Ok(Value::Object(fields)) => match key(&fields) {
            Some(key) => {
                let console = "as the console of Secrets Manager stores key/value pairs";
                let looks = format!("a JSON object with the key \"{key}\", {console}").into();
                let fix = "store the value of that key as plain text (in the console: Plaintext)";
                return Err(NotAToken { looks, fix });
            }
            None => "a JSON object",
        },
        Ok(Value::String(_)) => "a token in quotes",
        Ok(_) => "JSON",
        Err(_) => LOOKS.iter().find(|(is, _)| is(value)).map_or("", |(_, looks)| looks),
    };
    Err(NotAToken { looks: looks.into(), fix: "store the token alone, without quotes, name or line breaks" })
}

fn is_plain(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

/// The key of the only string that is named a token.
fn key(fields: &Map<String, Value>) -> Option<String> {
    let mut keys = fields.iter().filter(|(key, value)| value.is_string() && key.to_ascii_lowercase().contains("token"));
    let (Some((key, _)), None) = (keys.next(), keys.next()) else { return None };
    Some(key.chars().filter(|c| c.is_ascii_alphanumeric() || "_-. ".contains(*c)).take(40).collect())
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
