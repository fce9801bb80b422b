//! Job acquisition tokens: <https://buildkite.com/docs/agent/self-hosted/job-acquisition-tokens>.

use std::{collections::BTreeMap, time::Duration};

use http::Method;
use secrecy::SecretString;
use serde::{Deserialize, Serialize, de};
use uuid::Uuid;

use super::{Call, Error, Stacks};
use crate::deadline::Deadline;

const ISSUE: &str = "job-acquisition-tokens";

impl Stacks {
    /// Makes a token for each job that this stack has reserved. A job that gets none is left out.
    pub async fn job_acquisition_tokens(
        &self,
        job_uuids: &[Uuid],
        lifetime: Duration,
        token: &SecretString,
        deadline: Deadline,
    ) -> Result<BTreeMap<Uuid, SecretString>, Error> {
        #[derive(Serialize)]
        struct Issue<'a> {
            job_uuids: &'a [Uuid],
            token_lifetime_seconds: u64,
        }
        #[derive(Deserialize)]
        struct Issued {
            #[serde(default)]
            job_acquisition_tokens: Vec<JobToken>,
        }
        #[derive(Deserialize)]
        struct JobToken {
            job_uuid: Uuid,
            job_acquisition_token: String,
        }
        let body = Issue { job_uuids, token_lifetime_seconds: lifetime.as_secs() };
        let path = format!("{}/job-acquisition-tokens", self.stack());
        let call = Call { name: ISSUE, method: Method::POST, path };
        let answer = self.client.send(call, Some(&body), token, deadline).await?;
        // An error of the parser quotes what it cannot read.
        let unreadable = |_| Error::Garbage { call: ISSUE, source: de::Error::custom("not in the documented form") };
        let Issued { job_acquisition_tokens: tokens } = serde_json::from_slice(answer.body()).map_err(unreadable)?;
        Ok(tokens.into_iter().map(|token| (token.job_uuid, token.job_acquisition_token.into())).collect())
    }
}
