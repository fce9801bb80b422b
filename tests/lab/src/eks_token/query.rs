//! The query of the pre-signed URL, parsed as strictly as Go's `url.ParseQuery` does.

use std::collections::{BTreeMap, BTreeSet};

use percent_encoding::percent_decode_str;

use super::Refusal;

/// The parameters of a pre-signed `GetCallerIdentity`, in lower case.
const ALLOWED: [&str; 9] = [
    "action",
    "version",
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-security-token",
    "x-amz-signature",
    "x-amz-signedheaders",
];

/// Parameters that passed rules 8 to 11: each allowed, and each there once.
pub(super) struct Query {
    /// Decoded, in their spelling.
    pairs: Vec<(String, String)>,
}

impl Query {
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(pair).collect::<Result<Vec<_>, _>>()?;

        let mut counts = BTreeMap::new();
        for (name, _) in &pairs {
            *counts.entry(name.as_str()).or_insert(0) += 1;
        }
        let mut seen = BTreeSet::new();
        if let Some(name) = counts.keys().find(|name| !seen.insert(name.to_ascii_lowercase())) {
            return Err(Refusal::DuplicateParameter((*name).to_owned()));
        }
        if let Some(name) = counts.keys().find(|name| !ALLOWED.contains(&name.to_ascii_lowercase().as_str())) {
            return Err(Refusal::ForeignParameter((*name).to_owned()));
        }
        if let Some((name, _)) = counts.iter().find(|(_, count)| **count > 1) {
            return Err(Refusal::MultipleValues((*name).to_owned()));
        }
        Ok(Self { pairs })
    }

    /// The value of a parameter, by its name in lower case; empty if it is absent.
    pub(super) fn get(&self, name: &str) -> &str {
        let pair = self.pairs.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
        pair.map_or("", |(_, value)| value)
    }

    pub(super) fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }
}

fn pair(text: &str) -> Result<(String, String), Refusal> {
    if text.contains(';') {
        return Err(Refusal::MalformedQuery);
    }
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    Ok((decode(name)?, decode(value)?))
}

fn decode(text: &str) -> Result<String, Refusal> {
    let digits = |escape: &str| escape.len() >= 2 && escape.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    if !text.split('%').skip(1).all(digits) {
        return Err(Refusal::MalformedQuery);
    }
    let text = text.replace('+', " ");
    let decoded = percent_decode_str(&text).decode_utf8().map_err(|_| Refusal::MalformedQuery)?;
    Ok(decoded.into_owned())
}
