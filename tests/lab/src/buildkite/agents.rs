//! The agent API, as an agent uses it that acquires one job. Undocumented: read in the client of buildkite/agent.

use std::{collections::BTreeMap, io::Read};

use flate2::read::MultiGzDecoder;
use serde_json::{Value, json};

use super::{
    api::{Answer, Request, refusal},
    job::Job,
    organization::{Agent, Organization, SLUG, Token},
};
use crate::credentials::{random_hex, random_uuid};

/// Variables of a job, after `BUILDKITE_`, and the fields of its event.
const VARIABLES: &str = "COMMAND=/job/command LABEL=/job/label STEP_KEY=/job/step_key BUILD_ID=/build/uuid \
                         BUILD_NUMBER=/build/number BRANCH=/build/branch COMMIT=/build/commit MESSAGE=/build/message \
                         SOURCE=/build/source PIPELINE_ID=/pipeline/uuid PIPELINE_SLUG=/pipeline/slug \
                         REPO=/pipeline/repo ORGANIZATION_SLUG=/organization/slug";

pub(super) fn answer(organization: &mut Organization, request: &Request, path: &[&str]) -> Answer {
    let (method, token) = (request.parts.method.as_str(), request.token().unwrap_or_default());
    if (method, path) == ("POST", &["register"]) {
        return register(organization, request, token);
    }
    let agent = organization.agents.get(token).cloned().ok_or_else(|| refusal(401, "Invalid access token"))?;
    match (method, path) {
        ("POST", ["connect" | "disconnect"]) | ("GET", ["ping"]) => Ok((200, json!({}))),
        ("POST", ["heartbeat"]) => {
            Ok((200, json!({"sent_at": request.json()?["sent_at"], "received_at": request.now.to_string()})))
        }
        (_, ["jobs", uuid, call @ ..]) => job_call(organization, request, &agent, uuid, (method, call)),
        _ => Err(refusal(404, "Not Found")),
    }
}

fn register(organization: &mut Organization, request: &Request, token: &str) -> Answer {
    let refused = || refusal(401, "Invalid registration token");
    let body = request.json()?;
    let tags: Vec<_> = body["meta_data"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let (cluster, mut kind) = organization.tokens.get(token).cloned().ok_or_else(refused)?;
    let mut job = None;
    if let Token::Job { uuid, issued_by, expires_at } = kind {
        let issuer = organization.tokens.get(&issued_by).filter(|_| expires_at > request.now);
        (kind, job) = (issuer.ok_or_else(refused)?.1.clone(), Some(uuid));
    }
    let queue = match (kind, tags.iter().find_map(|tag| tag.strip_prefix("queue="))) {
        (Token::Queue(queue), _) => queue,
        (Token::Unclustered, _) => String::new(),
        (_, Some(queue)) => queue.to_owned(),
        (_, None) => organization.default_queue.clone(),
    };
    let (id, session) = (random_uuid(), format!("bkaa_{}", random_hex::<20>()));
    let [name, hostname] = ["name", "hostname"].map(|field| body[field].as_str().unwrap_or_default());
    let name = if name.is_empty() { hostname.to_owned() } else { name.replace("%hostname", hostname) };
    let answer = json!({
        "id": id, "name": name, "access_token": session, "meta_data": tags, "request_headers": {},
        "ping_interval": 2, "job_status_interval": 1, "heartbeat_interval": 10,
    });
    let tags = tags.into_iter().map(str::to_owned).collect();
    organization.agents.insert(session, Agent { id, name, tags, cluster, queue, job });
    Ok((200, answer))
}

fn job_call(
    organization: &mut Organization,
    request: &Request,
    agent: &Agent,
    uuid: &str,
    call: (&str, &[&str]),
) -> Answer {
    let is_visible = agent.job.as_ref().is_none_or(|only| only == uuid);
    let job = organization.find_job(uuid, &agent.cluster)?;
    if !is_visible || job.queue != agent.queue {
        return Err(refusal(404, "Job not found"));
    }
    let state = json!({"id": uuid, "state": job.state});
    match call {
        ("PUT", ["acquire"]) => match job.acquire(&agent.id) {
            200 => {
                let token = format!("bkaj_{}", random_hex::<20>());
                let answer = acquired(job, agent, uuid, &token);
                organization.agents.insert(token, agent.clone());
                Ok((200, answer))
            }
            status => Err(refusal(status, format!("The job cannot be acquired: {}", job.state))),
        },
        ("GET", []) => Ok((200, state)),
        _ if job.agent.as_ref() != Some(&agent.id) => Err(refusal(422, "Another agent has the job")),
        ("PUT", ["start"]) if job.start() => Ok((200, state)),
        ("POST", ["chunks"]) => {
            let read = MultiGzDecoder::new(request.body).read_to_end(&mut job.log);
            read.map(|_| (201, json!({}))).map_err(|problem| refusal(400, problem.to_string()))
        }
        ("PUT", ["finish"]) => {
            let body = request.json()?;
            let text = |field: &str| body[field].as_str().filter(|text| !text.is_empty());
            let exit_status = text("exit_status").and_then(|status| status.parse().ok());
            let exit_status = exit_status.ok_or_else(|| refusal(422, "exit_status is required"))?;
            if !job.finish(exit_status, text("signal_reason"), request.now) {
                return Err(refusal(422, "The job has ended"));
            }
            organization.ended(uuid);
            Ok((200, json!({})))
        }
        // As if all meta-data existed: the agent asks for that of the commit.
        ("POST", ["data", ..]) => Ok((200, json!({"exists": true, "value": ""}))),
        _ => Err(refusal(422, format!("The job is {}", job.state))),
    }
}

fn acquired(job: &Job, agent: &Agent, uuid: &str, token: &str) -> Value {
    let mut env = environment(uuid, job);
    env.insert("BUILDKITE_AGENT_ID".to_owned(), agent.id.clone());
    env.insert("BUILDKITE_AGENT_NAME".to_owned(), agent.name.clone());
    for (key, value) in agent.tags.iter().filter_map(|tag| tag.split_once('=')) {
        env.insert(format!("BUILDKITE_AGENT_META_DATA_{}", key.to_uppercase().replace('-', "_")), value.to_owned());
    }
    json!({
        "id": uuid, "state": job.state, "env": env, "step": {"command": job.field("/job/command")}, "token": token,
        "chunks_max_size_bytes": 100_000, "chunks_interval_seconds": 1, "log_max_size_bytes": 1 << 30,
        "exit_status": "", "priority": job.priority,
    })
}

/// The variables of a job, without those that its agent adds.
pub(super) fn environment(uuid: &str, job: &Job) -> BTreeMap<String, String> {
    let text = |pointer: &str| match job.field(pointer) {
        Value::Null => String::new(),
        Value::String(text) => text,
        other => other.to_string(),
    };
    let url = format!("https://buildkite.com/{SLUG}/{}/builds/{}", text("/pipeline/slug"), text("/build/number"));
    let fixed = [
        ("BUILDKITE", "true"),
        ("CI", "true"),
        ("BUILDKITE_JOB_ID", uuid),
        ("BUILDKITE_BUILD_URL", &url),
        ("BUILDKITE_PIPELINE_PROVIDER", "git"),
        ("BUILDKITE_PULL_REQUEST", "false"),
    ];
    let fields = VARIABLES.split(' ').filter_map(|variable| variable.split_once('='));
    let mut env: BTreeMap<_, _> = fields.map(|(name, field)| (format!("BUILDKITE_{name}"), text(field))).collect();
    env.extend(fixed.map(|(name, value)| (name.to_owned(), value.to_owned())));
    env.extend(job.env.clone());
    env
}
