//! Where the token of a Job's agent is: of all containers only this is kept.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer};

use crate::pod::{definition::AGENT, job::TOKEN_VARIABLE};

/// The Secret of the containers' agent.
pub(super) fn token_secret<'de, D: Deserializer<'de>>(containers: D) -> Result<Option<String>, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Container<'a> {
        #[serde(borrow)]
        name: Cow<'a, str>,
        #[serde(borrow)]
        env: Vec<Variable<'a>>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Variable<'a> {
        #[serde(borrow)]
        name: Cow<'a, str>,
        value_from: Source,
    }
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Source {
        secret_key_ref: Option<Reference>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Reference {
        name: String,
    }
    let agent = Vec::<Container>::deserialize(containers)?.into_iter().find(|container| container.name == AGENT);
    let token = agent.and_then(|agent| agent.env.into_iter().find(|variable| variable.name == TOKEN_VARIABLE));
    Ok(token.and_then(|token| token.value_from.secret_key_ref).map(|secret| secret.name))
}
