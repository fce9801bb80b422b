//! The Stacks API: <https://buildkite.com/docs/apis/agent-api/stacks>, and its client buildkite/stacksapi.
#![expect(clippy::unnecessary_wraps, reason = "all calls have one type")]

use std::{collections::BTreeMap, time::Duration};

use axum::{
    extract::Query,
    http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{
    agents,
    api::{Answer, Refusal, Request, Usage, refusal, require, violation},
    job::Job,
    organization::{Organization, SLUG, Token, UUID},
};
use crate::credentials::random_hex;

/// How long after a list a stack is connected, and how long after its end a job takes notifications.
const FIVE_MINUTES: Duration = Duration::from_mins(5);
/// Jobs of a page where the request has no limit; the real figure is not documented.
const DEFAULT_LIMIT: usize = 100;

/// Who sent a request, and all its parameters.
struct Params<'a> {
    now: Timestamp,
    token: &'a str,
    cluster: &'a str,
    stack: &'a str,
    /// The job in the path.
    job: &'a str,
    /// The JSON body, or the query.
    fields: &'a Value,
}

type Call = fn(&mut Organization, &Params) -> Answer;

pub(super) fn answer(
    organization: &mut Organization,
    request: &Request,
    path: &[&str],
    usage: &mut Option<Usage>,
) -> Answer {
    let (method, headers) = (request.parts.method.as_str(), &request.parts.headers);
    let is_json = |name| headers.get(name).is_some_and(|value| value == "application/json");
    require(headers.get(USER_AGENT).is_some_and(|agent| !agent.is_empty()), 400, "the header User-Agent is required")?;
    require(is_json(ACCEPT), 400, "the header Accept is not application/json")?;
    require(is_json(CONTENT_TYPE) || request.body.is_empty(), 400, "the header Content-Type is not application/json")?;
    let token = request.token().ok_or_else(|| violation(401, "the header Authorization is not `Token ...`"))?;
    let (cluster, kind) = &organization.tokens.get(token).cloned().ok_or_else(|| refusal(401, "Invalid token"))?;

    // Rate limit scope, requests per second (10 where no figure is published), fields (`?` is optional), and what it does.
    let (scope, limit, schema, call): (_, _, _, Call) = match (method, &path[1..]) {
        ("GET", []) if path[0] == "token" => return Ok((200, identity(cluster, kind))),
        ("POST", ["register"]) => ("default", 10, "key:key type:custom queue_key:string metadata:metadata", register),
        ("POST", [_, "deregister"]) => ("default", 10, "", deregister),
        ("GET", [_, "scheduled-jobs"]) => {
            ("list-scheduled-jobs", 10, "queue_key:string limit?:limit after?:cursor", list)
        }
        ("PUT", [_, "scheduled-jobs", "batch-reserve"]) => {
            ("batch-reserve", 10, "job_uuids:uuids reservation_expiry_seconds?:seconds", reserve)
        }
        ("POST", [_, "job-acquisition-tokens"]) => {
            ("default", 10, "job_uuids:uuids token_lifetime_seconds?:seconds", issue_tokens)
        }
        ("POST", [_, "jobs", "get-states"]) => ("batch-load-job-states", 20, "job_uuids:uuids", get_states),
        ("GET", [_, "jobs", _]) => ("show-job", 1000, "", show),
        ("POST", [_, "jobs", _, "finish"]) => ("finish-job", 100, "detail:detail exit_status?:integer", finish),
        ("POST", [_, "notifications"]) => ("stack-notification", 200, "notifications:notifications", notify),
        _ => return Err(violation(404, "the Stacks API has no such call")),
    };
    // Whether the token of a queue may use this API is not documented.
    if *kind != Token::Cluster {
        return Err(refusal(401, "Invalid token"));
    }
    let fields = &fields(request, method == "GET", schema.is_empty())?;
    let registers = path[1] == "register";
    let stack = if registers { fields["key"].as_str().unwrap_or_default() } else { path[1] };
    let current = organization.count(stack, scope, limit);
    *usage = Some((scope, limit, current));
    if current > limit {
        return Err(refusal(429, "You have exceeded your API rate limit."));
    }
    check(fields, schema)?;
    if !registers && organization.stacks.get(stack).is_none_or(|(known, _)| known != cluster) {
        return Err(refusal(404, "Stack not found with the provided key"));
    }
    let job = path.get(3).copied().unwrap_or_default();
    call(organization, &Params { now: request.now, token, cluster, stack, job, fields })
}

/// The body as JSON, or the query as an object of strings.
fn fields(request: &Request, is_get: bool, is_empty: bool) -> Result<Value, Refusal> {
    let query: Query<Map<String, Value>> =
        Query::try_from_uri(&request.parts.uri).map_err(|problem| violation(400, problem.to_string()))?;
    require(query.is_empty() || is_get, 400, "this call has no query")?;
    require(request.body.is_empty() || !is_get && !is_empty, 400, "this call has no body")?;
    if is_get || is_empty { Ok(query.0.into()) } else { request.json() }
}

/// Names and kinds of the fields; a name that ends with `?` is optional.
fn check(fields: &Value, schema: &str) -> Result<(), Refusal> {
    let fields = fields.as_object().ok_or_else(|| violation(400, "the body is no JSON object"))?;
    let mut unknown = fields.clone();
    for (name, kind) in schema.split_whitespace().filter_map(|field| field.split_once(':')) {
        let required = name.trim_end_matches('?');
        match unknown.remove(required) {
            Some(value) => require(is_valid(&value, kind), 400, &format!("{required} is invalid"))?,
            None => require(required != name, 422, &format!("{required} is required"))?,
        }
    }
    unknown.keys().try_for_each(|name| require(false, 400, &format!("{name} is unknown")))
}

fn is_valid(value: &Value, kind: &str) -> bool {
    let text = value.as_str();
    let has = |value: Option<&str>, chars: usize| value.is_some_and(|value| value.chars().count() <= chars);
    let is_batch = |is_valid: fn(&Value) -> bool| {
        value.as_array().is_some_and(|all| all.len() <= 1000 && all.iter().all(is_valid))
    };
    match kind {
        "custom" => value == "custom",
        "cursor" => text.is_some_and(|text| read_cursor(text).is_some()),
        "detail" => text.is_some_and(|text| (1..=4096).contains(&text.len())),
        "integer" => value.is_i64(),
        "key" => text.is_some_and(|key| {
            (1..=80).contains(&key.len())
                && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        }),
        "limit" => text.and_then(|text| text.parse().ok()).is_some_and(|limit| (1..=1000).contains(&limit)),
        "metadata" => value.as_object().is_some_and(|pairs| {
            pairs.len() <= 100 && pairs.iter().all(|(key, value)| has(Some(key), 64) && has(value.as_str(), 256))
        }),
        "notifications" => is_batch(|one| check(one, "job_uuid:string detail:string timestamp?:string").is_ok()),
        "seconds" => value.as_u64().is_some_and(|seconds| (1..=3600).contains(&seconds)),
        "uuids" => is_batch(|uuid| uuid.as_str().is_some_and(|uuid| uuid.len() == 36 && Uuid::try_parse(uuid).is_ok())),
        _ => value.is_string(),
    }
}

impl Params<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        self.fields[name].as_str()
    }

    fn uuids(&self) -> impl Iterator<Item = &str> {
        self.fields["job_uuids"].as_array().into_iter().flatten().filter_map(Value::as_str)
    }

    fn expiry(&self, name: &str) -> Timestamp {
        self.now + Duration::from_secs(self.fields[name].as_u64().unwrap_or(900))
    }
}

/// A token outside of any cluster has an empty one.
fn identity(cluster: &str, token: &Token) -> Value {
    let (kind, queue) = match token {
        Token::Cluster => ("cluster", None),
        Token::Queue(queue) => ("cluster_queue", Some(queue)),
        Token::Unclustered => ("unclustered", None),
        Token::Job { .. } => ("job", None),
    };
    json!({
        "uuid": UUID, "description": "lab", "token_type": kind, "organization_slug": SLUG, "organization_uuid": UUID,
        "cluster_uuid": cluster, "cluster_name": cluster, "organization_queue_uuid": queue, "organization_queue_key": queue,
    })
}

fn register(organization: &mut Organization, params: &Params) -> Answer {
    let queue = match params.text("queue_key").unwrap_or_default() {
        // The documentation has the first name, and the official controller sends the second.
        "__default__" | "_default" => organization.default_queue.clone(),
        key => key.to_owned(),
    };
    organization.find_queue(params.cluster, &queue)?;
    let known = organization.stacks.get(params.stack);
    let (status, listed) = known.map_or((201, None), |(_, listed)| (200, *listed));
    organization.stacks.insert(params.stack.to_owned(), (params.cluster.to_owned(), listed));
    let is_connected = listed.is_some_and(|listed| listed + FIVE_MINUTES > params.now);
    let mut answer = params.fields.clone();
    answer["id"] = UUID.into();
    answer["organization_uuid"] = UUID.into();
    answer["cluster_queue_key"] = queue.into();
    answer["last_connected_on"] = listed.map(timestamp).into();
    answer["state"] = if is_connected { "connected" } else { "disconnected" }.into();
    Ok((status, answer))
}

fn deregister(organization: &mut Organization, params: &Params) -> Answer {
    organization.stacks.remove(params.stack);
    Ok((204, Value::Null))
}

fn list(organization: &mut Organization, params: &Params) -> Answer {
    let key = params.text("queue_key").unwrap_or_default();
    let limit = params.text("limit").and_then(|limit| limit.parse().ok()).unwrap_or(DEFAULT_LIMIT);
    let after = params.text("after").and_then(read_cursor);
    let queue = organization.find_queue(params.cluster, key)?;
    queue.listed_at = Some(params.now);
    let cluster_queue = json!({"id": key, "dispatch_paused": queue.is_paused});
    organization.stacks.insert(params.stack.to_owned(), (params.cluster.to_owned(), Some(params.now)));

    let waits = |job: &&Job| job.state == "scheduled" && job.cluster == params.cluster && job.queue == key;
    let jobs = organization.jobs.iter().filter(|(_, job)| waits(job));
    let mut jobs: Vec<_> = jobs.map(|(uuid, job)| ((job.scheduled_at, uuid.clone()), job)).collect();
    jobs.retain(|(place, _)| after.as_ref().is_none_or(|after| place > after));
    jobs.sort_by(|(one, _), (other, _)| one.cmp(other));
    let has_next_page = jobs.len() > limit;
    jobs.truncate(limit);
    let end_cursor = jobs.last().map(|((time, uuid), _)| BASE64_STANDARD.encode(format!("{time} {uuid}")));
    let listed = jobs.into_iter().map(|((_, uuid), job)| {
        let field = |pointer| job.field(pointer);
        let mut listed = json!({
            "id": uuid, "priority": job.priority, "agent_query_rules": field("/job/agent_query_rules"),
            "scheduled_at": timestamp(job.scheduled_at), "step": {"key": field("/job/step_key")},
            "pipeline": {"slug": field("/pipeline/slug"), "uuid": field("/pipeline/uuid")},
            "build": {"uuid": field("/build/uuid"), "number": field("/build/number"), "branch": field("/build/branch")},
        });
        // Not documented, and seen in one client.
        if let Some(time) = job.runnable_at {
            listed["runnable_at"] = timestamp(time).into();
        }
        listed
    });
    let (jobs, page_info) = (listed.collect(), json!({"has_next_page": has_next_page, "end_cursor": end_cursor}));
    Ok((200, json!({"jobs": Value::Array(jobs), "page_info": page_info, "cluster_queue": cluster_queue})))
}

fn read_cursor(cursor: &str) -> Option<(Timestamp, String)> {
    let text = String::from_utf8(BASE64_STANDARD.decode(cursor).ok()?).ok()?;
    let (time, uuid) = text.split_once(' ')?;
    Some((time.parse().ok()?, uuid.to_owned()))
}

fn reserve(organization: &mut Organization, params: &Params) -> Answer {
    let until = params.expiry("reservation_expiry_seconds");
    let (reserved, not_reserved): (Vec<_>, Vec<_>) = params.uuids().partition(|uuid| {
        organization.find_job(uuid, params.cluster).is_ok() && organization.reserve(uuid, params.stack, until)
    });
    Ok((200, json!({"reserved": reserved, "not_reserved": not_reserved})))
}

fn issue_tokens(organization: &mut Organization, params: &Params) -> Answer {
    let end = params.expiry("token_lifetime_seconds");
    let (mut issued, mut not_issued) = (Vec::new(), Vec::new());
    for uuid in params.uuids() {
        let job = organization.find_job(uuid, params.cluster).ok().filter(|job| job.is_reserved_by(params.stack));
        let Some((_, until)) = job.and_then(|job| job.reservation.clone()) else {
            not_issued.push(uuid);
            continue;
        };
        // Whether a longer reservation prolongs a token is not documented.
        let (token, expires_at) = (format!("bkjat_{}", random_hex::<20>()), end.min(until));
        issued.push(json!({"job_uuid": uuid, "job_acquisition_token": token, "expires_at": timestamp(expires_at)}));
        let record = Token::Job { uuid: uuid.to_owned(), issued_by: params.token.to_owned(), expires_at };
        organization.tokens.insert(token, (params.cluster.to_owned(), record));
    }
    Ok((201, json!({"job_acquisition_tokens": issued, "not_issued": not_issued})))
}

fn get_states(organization: &mut Organization, params: &Params) -> Answer {
    let state = |uuid| Some((uuid, organization.find_job(uuid, params.cluster).ok()?.state));
    let states: BTreeMap<_, _> = params.uuids().filter_map(state).collect();
    Ok((200, json!({"states": states})))
}

fn show(organization: &mut Organization, params: &Params) -> Answer {
    let job = organization.find_job(params.job, params.cluster)?;
    let (env, command) = (agents::environment(params.job, job), job.field("/job/command"));
    Ok((200, json!({"id": params.job, "env": env, "command": command})))
}

fn finish(organization: &mut Organization, params: &Params) -> Answer {
    let job = organization.find_job(params.job, params.cluster)?;
    let was_reserved = job.reservation.as_ref().is_some_and(|(stack, _)| stack == params.stack);
    require(was_reserved, 422, "a stack finishes only what it has reserved")?;
    let exit_status = params.fields["exit_status"].as_i64().unwrap_or(-1);
    let reason = (exit_status != 0).then_some("stack_error");
    if !job.is_reserved_by(params.stack) || !job.finish(exit_status, reason, params.now) {
        return Err(refusal(422, format!("The job is {}", job.state)));
    }
    job.detail = params.text("detail").map(str::to_owned);
    organization.ended(params.job);
    // No body, so that no client depends on one.
    Ok((200, Value::Null))
}

fn notify(organization: &mut Organization, params: &Params) -> Answer {
    let mut errors = BTreeMap::<_, Vec<_>>::new();
    for (index, notification) in params.fields["notifications"].as_array().into_iter().flatten().enumerate() {
        let [uuid, detail, time] = ["job_uuid", "detail", "timestamp"].map(|name| notification[name].as_str());
        let (detail, now) = (detail.unwrap_or_default(), params.now);
        let job = organization.find_job(uuid.unwrap_or_default(), params.cluster).ok();
        // A stack cannot know that a job is gone.
        let Some(job) = job.filter(|job| job.finished_at.is_none_or(|end| end + FIVE_MINUTES >= now)) else {
            errors.entry("job not found, or finished more than 300 seconds ago").or_default().push(index);
            continue;
        };
        let time = time.map_or(Some(now), |time| time.parse().ok());
        let error = match (detail.chars().count(), time.filter(|time| (job.scheduled_at..=now).contains(time))) {
            (0, _) => "detail is required",
            (257.., _) => "detail exceeds its length limit of 256",
            (_, None) => "timestamp is invalid",
            _ if job.notifications.len() == 100 => "job stack notification count exceeded",
            (_, Some(time)) => {
                job.notifications.push((time, detail.to_owned()));
                continue;
            }
        };
        organization.violations.push(format!("notification {index}: {error}"));
        errors.entry(error).or_default().push(index);
    }
    let errors: Vec<_> = errors.iter().map(|(error, indexes)| json!({"error": error, "indexes": indexes})).collect();
    Ok((200, json!({"errors": errors})))
}

fn timestamp(time: Timestamp) -> String {
    format!("{time:.3}")
}
