//! References of images, by the grammar of the kubelet: `ParseNormalizedNamed` of distribution/reference 0.6,
//! <https://github.com/distribution/reference/blob/v0.6.0/regexp.go>.
//!
//! A pod whose reference breaks it waits with `InvalidImageName` until the Job's deadline.

/// The longest path of a repository, without its registry.
const MAX_PATH_BYTES: usize = 255;

/// Checks a reference. An error continues a sentence that has named it.
pub(super) fn check(reference: &str) -> Result<(), &'static str> {
    if reference.contains("://") {
        return Err("which is a URL; write it without the scheme, as in registry.example/image:1");
    }
    if is_hex(reference, 64) {
        return Err("which is the ID of an image; write its repository");
    }
    let (tagged, digest) = split(reference, '@');
    if !digest.is_none_or(is_digest) {
        return Err("whose digest must be sha256: and 64 digits of 0-9 and a-f");
    }
    let (registry, repository) = match tagged.split_once('/') {
        Some((first, rest)) if is_registry(first) => (Some(first), rest),
        _ => (None, tagged),
    };
    let (repository, tag) = split(repository, ':');
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("whose repository must be lowercase");
    }
    if !tag.is_none_or(is_tag) {
        return Err("whose tag must be up to 128 letters, digits, `_`, `.` and `-`, and not start with `.` or `-`");
    }
    if is_path(registry, repository) { Ok(()) } else { Err("which is not the reference of an image") }
}

fn split(text: &str, separator: char) -> (&str, Option<&str>) {
    text.split_once(separator).map_or((text, None), |(before, after)| (before, Some(after)))
}

/// Whether the first part of a name is taken for a registry, and not for a part of the path.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(|c: char| matches!(c, '.' | ':') || c.is_ascii_uppercase())
}

fn is_path(registry: Option<&str>, path: &str) -> bool {
    let of_hub = matches!(registry, None | Some("docker.io" | "index.docker.io")) && !path.contains('/');
    let prefix = if of_hub { "library/".len() } else { 0 };
    match registry {
        // What no host can be named is a part of the path after all.
        Some(host) if !is_host(host) => is_path(None, &format!("{host}/{path}")),
        _ => prefix + path.len() <= MAX_PATH_BYTES && path.split('/').all(is_component),
    }
}

/// Small letters and digits, between which there may be `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let is_alphanumeric = |c: char| matches!(c, 'a'..='z' | '0'..='9');
    let is_separator = |text: &str| matches!(text, "" | "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    text.starts_with(is_alphanumeric)
        && text.ends_with(is_alphanumeric)
        && text.split(is_alphanumeric).all(is_separator)
}

/// The name of a host, or an IPv6 address in brackets, and a port if there is one.
fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        label.starts_with(|c: char| c.is_ascii_alphanumeric())
            && label.ends_with(|c: char| c.is_ascii_alphanumeric())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let is_address = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':');
    let address = text.strip_prefix('[').and_then(|text| text.split_once(']'));
    let (is_host, port) = address.map_or_else(
        || {
            let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (name.split('.').all(is_label), port)
        },
        |(address, port)| (is_address(address), port),
    );
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_host && (port.is_empty() || port.strip_prefix(':').is_some_and(is_number))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= 128 && tag.starts_with(is_word) && tag.chars().all(|c| is_word(c) || matches!(c, '.' | '-'))
}

/// Of an algorithm that the kubelet knows.
fn is_digest(digest: &str) -> bool {
    let lengths = [("sha256", 64), ("sha384", 96), ("sha512", 128)];
    let is = |(algorithm, length)| {
        digest.split_once(':').is_some_and(|(name, hex)| name == algorithm && is_hex(hex, length))
    };
    lengths.into_iter().any(is)
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_vectors_are_judged_as_the_kubelet_judges_them() {
        let vectors = include_str!("../../tests/fixtures/image-references.txt").lines();
        let vectors: Vec<_> = vectors.filter(|line| !line.starts_with('#')).map(|line| line.split_at(2)).collect();
        assert_eq!(vectors.len(), 99);
        for (verdict, reference) in vectors {
            assert_eq!(check(reference).is_ok(), verdict == "+ ", "{reference}");
        }
    }

    #[test]
    fn each_part_of_a_reference_has_its_limits() {
        let (hex, a) = (|length: usize| "0".repeat(length), |length: usize| "a".repeat(length));
        let cases = [
            (format!("node@sha256:{}", hex(64)), true),
            (format!("node:24@sha256:{}", hex(64)), true),
            (format!("node@sha384:{}", hex(96)), true),
            (format!("node@sha512:{}", hex(128)), true),
            (format!("node@sha256:{}", hex(63)), false),
            (format!("node@sha512:{}", hex(64)), false),
            (format!("node@sha256:{}A", hex(63)), false),
            (format!("node@md5:{}", hex(32)), false),
            (format!("node@SHA256:{}", hex(64)), false),
            (format!("a@sha256:{0}@sha256:{0}", hex(64)), false),
            (hex(64), false),
            (format!("{}:1", hex(64)), true),
            (format!("node:{}", a(128)), true),
            (format!("node:{}", a(129)), false),
            // Hub's names get `library/` in front.
            (a(247), true),
            (a(248), false),
            (format!("docker.io/{}", a(248)), false),
            (format!("index.docker.io/{}", a(248)), false),
            (format!("registry.example/{}", a(255)), true),
            (format!("registry.example/{}", a(256)), false),
            (format!("{}a", "a/".repeat(127)), true),
            (format!("{}a", "a/".repeat(128)), false),
            // No host has a `_`: all is the path.
            (format!("r_x.example/{}", a(243)), true),
            (format!("r_x.example/{}", a(244)), false),
        ];
        for (reference, expected) in cases {
            assert_eq!(check(&reference).is_ok(), expected, "{reference}");
        }
        for reference in [
            "",
            " ",
            "node ",
            " node",
            "node\n",
            "node:",
            "node@",
            "node:-a",
            "node:.a",
            "a___b",
            "a--_b",
            "/a",
            "a/",
            "registry:/a",
            "registry:x/a",
            "r..example/a",
            "[]/a",
            "R_x/a",
            "node:日",
            "é",
            "node:24 ",
            "$(IMAGE)",
            "a:b/c",
            "docker://a",
        ] {
            assert!(check(reference).is_err(), "{reference:?}");
        }
        for reference in
            ["node:_a", "a__b", "a---b", "localhost:5000", "localhost:5000/a", "LOCALHOST/a", "ghcr.io/org/app:V1"]
        {
            assert_eq!(check(reference), Ok(()));
        }
    }

    #[test]
    fn common_mistakes_are_named() {
        let cases = [
            ("https://ghcr.io/org/app:1", "which is a URL"),
            ("docker://node:24", "which is a URL"),
            ("Node:24", "whose repository must be lowercase"),
            ("org/App", "whose repository must be lowercase"),
            ("ghcr.io/Org/app:1", "whose repository must be lowercase"),
            ("node:24:1", "whose tag must be"),
            ("ghcr.io/org/app@sha256:abc", "whose digest must be"),
            ("node 24", "which is not the reference of an image"),
        ];
        for (reference, expected) in cases {
            let text = check(reference).unwrap_err();
            assert!(text.starts_with(expected), "{reference}: {text}");
        }
    }
}
