//! Buildkite's Stacks API, one function per call: <https://buildkite.com/docs/apis/agent-api/stacks>.
//!
//! Strict in what is sent, lenient in what is read: unknown fields are accepted, and optional ones may be absent.

mod job_tokens;

use std::{collections::BTreeMap, time::Duration};

use http::Method;
use k8s_openapi::jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::client::{self, Call, Client};
use crate::{
    deadline::Deadline,
    https::{self, CertificateAuthority},
};

pub use super::client::{Error, Quiets, RateLimit};

/// The limit of a `detail`, in bytes.
pub const MAX_DETAIL_BYTES: usize = 4_096;

/// The limit of a notification, in characters.
pub const MAX_NOTIFICATION_CHARS: usize = 255;

/// The most uuids of one call, and jobs of one page.
pub const MAX_UUIDS: usize = 1_000;

/// The client of one stack.
pub struct Stacks {
    client: Client,
    key: String,
}

/// How a stack registers.
#[derive(Serialize)]
struct Registration<'a> {
    key: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    queue_key: &'a str,
    metadata: &'a BTreeMap<&'static str, String>,
}

/// One page of the jobs that wait in a queue.
#[derive(Clone, Debug, Deserialize)]
pub struct ScheduledJobs {
    /// The oldest first; reserved ones are left out.
    pub jobs: Vec<WaitingJob>,
    /// Whether there are more.
    #[serde(default)]
    pub page_info: PageInfo,
    /// The queue itself.
    #[serde(default)]
    pub cluster_queue: ClusterQueue,
    /// Buildkite's clock, by the `Date` of the answer.
    #[serde(skip)]
    pub now: Option<Timestamp>,
}

/// A job that waits for an agent.
#[derive(Clone, Debug, Deserialize)]
pub struct WaitingJob {
    /// Its uuid.
    pub id: Uuid,
    /// The higher the earlier.
    #[serde(default)]
    pub priority: i64,
    /// The step's `agents:`, each as `key=value`.
    #[serde(default)]
    pub agent_query_rules: Vec<String>,
    /// RFC 3339; may be the time at which the build was made.
    pub scheduled_at: Option<String>,
    /// RFC 3339; not documented.
    pub runnable_at: Option<String>,
    /// Its pipeline.
    #[serde(default)]
    pub pipeline: Pipeline,
    /// Its build.
    #[serde(default)]
    pub build: Build,
    /// Its step.
    #[serde(default)]
    pub step: Step,
}

/// The pipeline of a job.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Pipeline {
    /// Its name in its URL.
    pub slug: Option<String>,
}

/// The build of a job.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Build {
    /// Counts per pipeline.
    pub number: Option<u64>,
    /// Where it is built from.
    pub branch: Option<String>,
}

/// The step of a job.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Step {
    /// Its `key:`.
    pub key: Option<String>,
}

/// Where a list goes on.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PageInfo {
    /// There is another page.
    #[serde(default)]
    pub has_next_page: bool,
    /// For `after`.
    pub end_cursor: Option<String>,
}

/// What a list says of its queue.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ClusterQueue {
    /// No job of a paused queue may start.
    #[serde(default)]
    pub dispatch_paused: bool,
}

/// What came of a reservation.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Reserved {
    /// Ours until the reservation expires.
    #[serde(default)]
    pub reserved: Vec<Uuid>,
    /// Another stack's, or no longer scheduled.
    #[serde(default)]
    pub not_reserved: Vec<Uuid>,
}

/// A line for the build page.
#[derive(Clone, Debug, Serialize)]
pub struct Notification {
    /// The job.
    pub job_uuid: Uuid,
    /// At most [`MAX_NOTIFICATION_CHARS`].
    pub detail: String,
}

/// What Buildkite knows of a token.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct TokenInfo {
    /// Empty for a token that is not of a cluster.
    #[serde(default)]
    pub cluster_uuid: Option<String>,
    /// The cluster's name.
    #[serde(default)]
    pub cluster_name: Option<String>,
    /// The organization's name in its URL.
    #[serde(default)]
    pub organization_slug: Option<String>,
    /// The kind of token.
    #[serde(default)]
    pub token_type: Option<String>,
}

impl Stacks {
    /// No request yet.
    pub fn new(endpoint: &str, key: String, roots: CertificateAuthority, quiets: Quiets) -> Result<Self, Error> {
        let client = Client::new(endpoint.to_owned(), roots, quiets);
        Ok(Self { client: client.map_err(|source| Error::Unreachable { call: "register", source })?, key })
    }

    /// Makes the stack known, or finds it known already.
    pub async fn register(
        &self,
        queue_key: &str,
        metadata: &BTreeMap<&'static str, String>,
        token: &SecretString,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let registration = Registration { key: &self.key, kind: "custom", queue_key, metadata };
        let call = Call { name: "register", method: Method::POST, path: "stacks/register".to_owned() };
        self.client.send(call, Some(&registration), token, deadline).await.map(drop)
    }

    /// One page of the jobs that wait in a queue, from the beginning or after a cursor.
    pub async fn scheduled_jobs(
        &self,
        queue_key: &str,
        after: Option<&str>,
        token: &SecretString,
        deadline: Deadline,
    ) -> Result<ScheduledJobs, Error> {
        let after = after.map(|cursor| format!("&after={}", encoded(cursor))).unwrap_or_default();
        let query = format!("queue_key={}&limit={MAX_UUIDS}{after}", encoded(queue_key));
        let call = Call {
            name: "scheduled-jobs",
            method: Method::GET,
            path: format!("{}/scheduled-jobs?{query}", self.stack()),
        };
        let answer = self.client.send(call, NOTHING, token, deadline).await?;
        Ok(ScheduledJobs { now: https::date(answer.headers()), ..client::parse("scheduled-jobs", &answer)? })
    }

    /// Reserves jobs for this stack. One that it has already is reserved for longer.
    pub async fn reserve(
        &self,
        job_uuids: &[Uuid],
        expiry: Duration,
        rate_limit: RateLimit,
        token: &SecretString,
        deadline: Deadline,
    ) -> Result<Reserved, Error> {
        #[derive(Serialize)]
        struct Reserve<'a> {
            job_uuids: &'a [Uuid],
            reservation_expiry_seconds: u64,
        }
        let body = Reserve { job_uuids, reservation_expiry_seconds: expiry.as_secs() };
        let path = format!("{}/scheduled-jobs/batch-reserve", self.stack());
        let call = Call { name: RESERVE, method: Method::PUT, path };
        let answer = self.client.send_within(rate_limit, call, Some(&body), token, deadline).await?;
        client::parse(RESERVE, &answer)
    }

    /// The states of jobs, such as `scheduled`; one that Buildkite does not know is left out.
    pub async fn states(
        &self,
        job_uuids: &[Uuid],
        token: &SecretString,
        deadline: Deadline,
    ) -> Result<BTreeMap<Uuid, String>, Error> {
        #[derive(Serialize)]
        struct GetStates<'a> {
            job_uuids: &'a [Uuid],
        }
        #[derive(Deserialize)]
        struct States {
            states: BTreeMap<Uuid, String>,
        }
        let path = format!("{}/jobs/get-states", self.stack());
        let call = Call { name: "get-states", method: Method::POST, path };
        self.client.read(call, Some(&GetStates { job_uuids }), token, deadline).await.map(|States { states }| states)
    }

    /// Ends a reserved job that no agent has taken, with exit status -1 and a text for the build page.
    pub async fn finish(&self, job: Uuid, detail: &str, token: &SecretString, deadline: Deadline) -> Result<(), Error> {
        #[derive(Serialize)]
        struct Finish<'a> {
            detail: &'a str,
            exit_status: i32,
        }
        let detail = &detail[..detail.floor_char_boundary(MAX_DETAIL_BYTES)];
        let path = format!("{}/jobs/{job}/finish", self.stack());
        let call = Call { name: "finish", method: Method::POST, path };
        self.client.send(call, Some(&Finish { detail, exit_status: -1 }), token, deadline).await.map(drop)
    }

    /// Puts lines on the build pages of jobs.
    pub async fn notify(
        &self,
        notifications: &[Notification],
        token: &SecretString,
        deadline: Deadline,
    ) -> Result<(), Error> {
        #[derive(Serialize)]
        struct Notifications<'a> {
            notifications: &'a [Notification],
        }
        let path = format!("{}/notifications", self.stack());
        let call = Call { name: "notifications", method: Method::POST, path };
        self.client.send(call, Some(&Notifications { notifications }), token, deadline).await.map(drop)
    }

    /// What Buildkite knows of the token.
    pub async fn token(&self, token: &SecretString, deadline: Deadline) -> Result<TokenInfo, Error> {
        let call = Call { name: "token", method: Method::GET, path: "token".to_owned() };
        self.client.read(call, NOTHING, token, deadline).await
    }

    fn stack(&self) -> String {
        format!("stacks/{}", encoded(&self.key))
    }
}

const NOTHING: Option<&()> = None;

const RESERVE: &str = "batch-reserve";

/// A path segment or a query value, with `.` encoded, too.
fn encoded(text: &str) -> PercentEncode<'_> {
    const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~');
    utf8_percent_encode(text, ENCODED)
}

#[cfg(test)]
mod tests {
    use lab::{Event, Fault, Lab, When, buildkite::CLUSTER};

    use super::*;
    use crate::text::chain;

    /// A stack at the lab's Buildkite, which refuses what the documentation does not allow.
    fn stacks(lab: &Lab, key: &str) -> Stacks {
        Stacks::new(&lab.buildkite.url(), key.to_owned(), CertificateAuthority(Vec::new()), Quiets::default()).unwrap()
    }

    fn token(lab: &Lab) -> SecretString {
        lab.agent_token().into()
    }

    fn deadline() -> Deadline {
        Deadline::after(Duration::from_secs(10))
    }

    fn metadata() -> BTreeMap<&'static str, String> {
        BTreeMap::from([("version", "0.1.0".to_owned())])
    }

    #[tokio::test]
    async fn a_job_that_cannot_start_is_listed_reserved_and_finished_with_a_reason() {
        let lab = Lab::start().await;
        let (stacks, token) = (stacks(&lab, "agent-scheduler-0123"), token(&lab));
        let event = Event::scheduled();
        let uuid: Uuid = event.job_uuid().parse().unwrap();
        lab.buildkite.lock().schedule(&event, CLUSTER);

        stacks.register("kubernetes", &metadata(), &token, deadline()).await.unwrap();
        let listed = stacks.scheduled_jobs("kubernetes", None, &token, deadline()).await.unwrap();
        assert_eq!((listed.jobs[0].id, &*listed.jobs[0].agent_query_rules[0]), (uuid, "queue=kubernetes"));
        assert!(!listed.cluster_queue.dispatch_paused && !listed.page_info.has_next_page);
        let states = stacks.states(&[uuid], &token, deadline()).await.unwrap();
        assert_eq!(states, BTreeMap::from([(uuid, "scheduled".to_owned())]));

        let minute = Duration::from_mins(1);
        let reserved = stacks.reserve(&[uuid], minute, RateLimit::Wait, &token, deadline()).await.unwrap();
        assert_eq!((reserved.reserved, reserved.not_reserved), (vec![uuid], vec![]));
        let notification = Notification { job_uuid: uuid, detail: "no such pod definition".to_owned() };
        stacks.notify(&[notification], &token, deadline()).await.unwrap();
        // Cut between two characters, at its limit in bytes.
        stacks.finish(uuid, &"é".repeat(3_000), &token, deadline()).await.unwrap();

        let buildkite = lab.buildkite.lock();
        let job = &buildkite.jobs[&uuid.to_string()];
        assert_eq!((job.state, job.exit_status), ("finished", Some(-1)));
        assert_eq!(job.detail.as_deref().map(str::len), Some(MAX_DETAIL_BYTES));
        assert_eq!(job.notifications.len(), 1);
    }

    #[tokio::test]
    async fn the_token_is_known_to_buildkite() {
        let lab = Lab::start().await;
        let info = stacks(&lab, "a").token(&token(&lab), deadline()).await.unwrap();
        assert!(info.cluster_uuid.is_some_and(|uuid| !uuid.is_empty()), "it is of a cluster");
    }

    #[tokio::test]
    async fn a_refusal_has_buildkites_words_and_an_answer_that_may_pass_is_retried() {
        let lab = Lab::start().await;
        let (known, token) = (stacks(&lab, "agent-scheduler-0123"), token(&lab));
        for fault in [Fault::status(429), Fault::status(500), Fault::status(503), Fault::CutBefore] {
            lab.buildkite.inject(When::request("POST", "/register"), fault.clone(), 1);
            known.register("kubernetes", &metadata(), &token, deadline()).await.unwrap();
        }
        lab.buildkite.lock().tokens.clear();
        let error = known.register("kubernetes", &metadata(), &token, deadline()).await.unwrap_err();
        assert_eq!(error.status(), Some(401));
        assert!(chain(&error).starts_with("Buildkite answers register with 401 Unauthorized: "), "{error}");
        assert!(!format!("{error:?}").contains(lab.agent_token()), "{error:?}");
    }
}
