//! What others wrote, where a text of ours quotes it: an event, a step, an answer of the API server.

use std::borrow::Cow;

/// The most characters of a name or a value.
const LONGEST: usize = 200;

/// The most characters of what a server says: a refusal quotes what it refuses, and says why after that.
const LONGEST_MESSAGE: usize = 2_000;

/// The beginning of a name or a value, in one line: control characters, and whatever else nobody would see, are escaped.
pub fn excerpt(text: &str) -> Cow<'_, str> {
    beginning(text, LONGEST)
}

/// The same of an error message.
pub fn message(text: &str) -> Cow<'_, str> {
    beginning(text, LONGEST_MESSAGE)
}

fn beginning(text: &str, longest: usize) -> Cow<'_, str> {
    // As nearly all are; each event's line in the log has two.
    if text.len() <= longest && text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return text.into();
    }
    let mut excerpt = String::new();
    for (place, c) in text.chars().enumerate() {
        match c {
            _ if place == longest => {
                excerpt.push('…');
                break;
            }
            // Of these nothing comes, and most of what is quoted is JSON.
            '"' | '\'' | '\\' => excerpt.push(c),
            _ => excerpt.extend(c.escape_debug()),
        }
    }
    excerpt.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usual_text_is_quoted_as_it_is() {
        for text in ["", "default", "größer als 🚀", "it's", r#"{"a":"\n"}"#] {
            assert_eq!(excerpt(text), text);
        }
    }

    #[test]
    fn what_would_change_the_line_is_escaped() {
        assert_eq!(excerpt("a\r\nb\0\u{1b}[2J\u{202e}\u{2028}"), r"a\r\nb\0\u{1b}[2J\u{202e}\u{2028}");
    }

    #[test]
    fn a_long_text_is_cut_between_two_characters() {
        assert_eq!(excerpt(&"é".repeat(LONGEST)), "é".repeat(LONGEST));
        assert_eq!(excerpt(&"é".repeat(LONGEST + 1)), "é".repeat(LONGEST) + "…");
    }
}
