//! Text for errors and logs: what others wrote, where we quote it, and an error with its causes.

use std::{borrow::Cow, error::Error};

/// Characters of a name or a value.
const MAX_VALUE: usize = 200;

/// Characters of a server's message: a refusal first quotes what it refuses, and then says why.
const MAX_MESSAGE: usize = 2_000;

/// The beginning of a name or a value, in one line: control characters and invisible ones are escaped.
pub fn excerpt(text: &str) -> Cow<'_, str> {
    beginning(text, MAX_VALUE)
}

/// The same of an error message.
pub fn message(text: &str) -> Cow<'_, str> {
    beginning(text, MAX_MESSAGE)
}

/// An error and its causes, the outermost first, as one text.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

fn beginning(text: &str, max: usize) -> Cow<'_, str> {
    // Nearly all texts need no change; each event's log line has two.
    if text.len() <= max && text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return text.into();
    }
    let (mut chars, mut excerpt) = (text.chars(), String::new());
    for c in chars.by_ref().take(max) {
        match c {
            // These do no harm, and most of what is quoted is JSON.
            '"' | '\'' | '\\' => excerpt.push(c),
            _ => excerpt.extend(c.escape_debug()),
        }
    }
    if chars.next().is_some() {
        excerpt.push('…');
    }
    excerpt.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_text_is_quoted_as_it_is() {
        for text in ["", "default", "größer als 🚀", "it's", r#"{"a":"\n"}"#] {
            assert_eq!(excerpt(text), text);
        }
    }

    #[test]
    fn characters_that_change_the_line_are_escaped() {
        assert_eq!(excerpt("a\r\nb\0\u{1b}[2J\u{202e}\u{2028}"), r"a\r\nb\0\u{1b}[2J\u{202e}\u{2028}");
    }

    #[test]
    fn a_long_text_is_cut_between_two_characters() {
        assert_eq!(excerpt(&"é".repeat(MAX_VALUE)), "é".repeat(MAX_VALUE));
        assert_eq!(excerpt(&"é".repeat(MAX_VALUE + 1)), "é".repeat(MAX_VALUE) + "…");
    }
}
