use std::{io::Write, time::Duration};

use axum::{
    body::to_bytes,
    http::{
        HeaderMap,
        header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE, USER_AGENT},
    },
};
use flate2::{Compression, write::GzEncoder};
use jiff::Timestamp;
use serde_json::Value;

use super::*;
use crate::{Client, Event, Fault, Lab, When};

/// `$1` and `$2` of a transcript.
const JOBS: [&str; 2] = ["11111111-2222-4333-8444-555555555501", "11111111-2222-4333-8444-555555555509"];
const REGISTER: &str =
    r#"POST stacks/register {"key": "s", "type": "custom", "queue_key": "kubernetes", "metadata": {}}"#;
const LIST: &str = "GET stacks/s/scheduled-jobs?queue_key=kubernetes";
const RESERVE: &str =
    r#"PUT stacks/s/scheduled-jobs/batch-reserve {"job_uuids": ["$1"], "reservation_expiry_seconds": 60}"#;
const FINISH: &str = r#"POST stacks/s/jobs/$1/finish {"detail": "no such definition"}"#;

/// One caller of a Buildkite where stack `s` is registered and job `$1` waits.
struct Scene {
    buildkite: Buildkite,
    token: String,
}

impl Scene {
    async fn new() -> Self {
        let unknown = Self { buildkite: Buildkite::in_process(), token: String::new() };
        let scene = unknown.with("bkct_one", CLUSTER, Token::Cluster);
        scene.schedule(0);
        scene.talk(&format!("{REGISTER} -> 201")).await;
        scene
    }

    /// The same with another token.
    fn with(&self, token: &str, cluster: &str, kind: Token) -> Self {
        self.buildkite.lock().tokens.insert(token.to_owned(), (cluster.to_owned(), kind));
        Self { buildkite: self.buildkite.clone(), token: token.to_owned() }
    }

    fn schedule(&self, job: usize) {
        self.buildkite.lock().schedule(&Event::scheduled().uuid(JOBS[job]), CLUSTER);
    }

    fn edit(&self, change: impl FnOnce(&mut Job)) {
        change(self.buildkite.lock().jobs.get_mut(JOBS[0]).unwrap());
    }

    fn job(&self) -> Job {
        self.buildkite.lock().jobs[JOBS[0]].clone()
    }

    fn skip(&self, seconds: f64) {
        self.buildkite.lock().skipped += Duration::from_secs_f64(seconds);
    }

    fn request(&self, call: &str) -> Request<Body> {
        let mut call = call.replace("$1", JOBS[0]).replace("$2", JOBS[1]);
        while let Some((start, end)) = call.find('<').zip(call.find('>')) {
            let (text, times) = call[start + 1..end].split_once('*').unwrap();
            let (text, times) = (text.to_owned(), times.parse().unwrap());
            call.replace_range(start..=end, text.repeat(times).trim_end_matches(','));
        }
        let call: Vec<_> = call.splitn(3, ' ').collect();
        let path = if call[1].starts_with('/') { call[1].to_owned() } else { format!("/v3/{}", call[1]) };
        let request = Request::builder().method(call[0]).uri(path);
        let request = request.header(AUTHORIZATION, format!("Token {}", self.token)).header(USER_AGENT, "lab");
        let request = request.header(ACCEPT, "application/json").header(CONTENT_TYPE, "application/json");
        request.body(call.get(2).copied().unwrap_or_default().to_owned().into()).unwrap()
    }

    async fn send(&self, request: Request<Body>) -> (u16, HeaderMap, Value) {
        let (parts, body) = self.buildkite.call(request).await.unwrap().into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        (parts.status.as_u16(), parts.headers, serde_json::from_slice(&body).unwrap_or_default())
    }

    async fn ask(&self, call: &str) -> (u16, Value) {
        let (status, _, answer) = self.send(self.request(call)).await;
        (status, answer)
    }

    /// Lines `METHOD PATH [BODY] -> STATUS [FIELDS OF THE ANSWER] [! VIOLATION]`; `<x*9>` is nine times x, and `+ 5` lets five
    /// seconds pass.
    async fn talk(&self, transcript: &str) {
        for line in transcript.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if let Some(seconds) = line.strip_prefix("+ ") {
                self.skip(seconds.parse().unwrap());
                continue;
            }
            let (call, expected) = line.split_once(" -> ").unwrap();
            let (expected, why) = expected.split_once(" ! ").unwrap_or((expected, ""));
            let (status, fields) = expected.split_once(' ').unwrap_or((expected, "null"));
            let fields = fields.replace("$1", JOBS[0]).replace("$2", JOBS[1]);
            let (found, answer) = self.ask(call).await;
            let violations = std::mem::take(&mut self.buildkite.lock().violations);
            assert_eq!(found.to_string(), status, "{line}: {answer}");
            assert!(has(&answer, &serde_json::from_str(&fields).unwrap()), "{line}: {answer}");
            assert_eq!(violations.len(), usize::from(!why.is_empty()), "{line}: {violations:?}");
            assert!(violations.iter().all(|violation| violation.contains(why)), "{line}: {violations:?}");
        }
    }

    /// A new agent of a queue, or the status of the refusal.
    async fn agent(&self, queue: &str) -> Result<Self, u16> {
        let body = json!({"name": "%hostname-1", "hostname": "h", "meta_data": [format!("queue={queue}"), "a-b=c"]});
        let (status, answer) = self.ask(&format!("POST register {body}")).await;
        let token = answer["access_token"].as_str().ok_or(status)?.to_owned();
        Ok(Self { buildkite: self.buildkite.clone(), token })
    }
}

fn has(found: &Value, expected: &Value) -> bool {
    match expected {
        Value::Null => true,
        Value::Object(fields) => fields.iter().all(|(name, value)| has(&found[name], value)),
        Value::Array(items) => found
            .as_array()
            .is_some_and(|found| found.len() == items.len() && found.iter().zip(items).all(|(a, b)| has(a, b))),
        value => found == value,
    }
}

#[tokio::test(start_paused = true)]
async fn each_call_answers_as_documented() {
    let scene = Scene::new().await;
    scene.edit(|job| job.env.extend([("A".to_owned(), "b".to_owned())]));
    "small".clone_into(&mut scene.buildkite.lock().default_queue);
    scene.buildkite.lock().queue(CLUSTER, "small").is_paused = true;
    let transcript = r#"
        GET token -> 200 {"cluster_uuid": "11111111-2222-4333-8444-555555555505", "organization_slug": "example-org"}
        GET stacks/s/scheduled-jobs?queue_key=kubernetes -> 200 {"cluster_queue": {"dispatch_paused": false}, "page_info": {"has_next_page": false}, "jobs": [{"id": "$1", "priority": 0, "agent_query_rules": ["queue=kubernetes"], "pipeline": {"slug": "example-pipeline", "uuid": "11111111-2222-4333-8444-555555555503"}, "build": {"number": 1234, "branch": "main", "uuid": "11111111-2222-4333-8444-555555555502"}, "step": {"key": "unit_tests"}}]}
        GET stacks/s/scheduled-jobs?queue_key=small&limit=1000 -> 200 {"jobs": [], "cluster_queue": {"dispatch_paused": true}}
        GET stacks/s/scheduled-jobs?queue_key=none -> 404 {"message": "Queue not found"}
        GET stacks/s/jobs/$1 -> 200 {"id": "$1", "env": {"A": "b", "BUILDKITE_BUILD_NUMBER": "1234"}, "command": "make test"}
        POST stacks/register {"key": "s", "type": "custom", "queue_key": "kubernetes", "metadata": {"a": "b"}} -> 200 {"state": "connected", "metadata": {"a": "b"}}
        POST stacks/register {"key": "t", "type": "custom", "queue_key": "__default__", "metadata": {}} -> 201 {"state": "disconnected", "cluster_queue_key": "small"}
        POST stacks/s/jobs/get-states {"job_uuids": ["$1", "$2"]} -> 200 {"states": {"$1": "scheduled"}}
        POST stacks/s/job-acquisition-tokens {"job_uuids": ["$1"]} -> 201 {"job_acquisition_tokens": [], "not_issued": ["$1"]}
        PUT stacks/s/scheduled-jobs/batch-reserve {"job_uuids": ["$1", "$2"]} -> 200 {"reserved": ["$1"], "not_reserved": ["$2"]}
        POST stacks/s/job-acquisition-tokens {"job_uuids": ["$1", "$2"]} -> 201 {"not_issued": ["$2"]}
        POST stacks/s/jobs/$1/finish {"detail": "d", "exit_status": 1} -> 200
        POST stacks/s/jobs/$2/finish {"detail": "d"} -> 404 {"message": "Job not found"}
        POST stacks/s/deregister -> 204
        POST stacks/s/deregister -> 404 {"message": "Stack not found with the provided key"}
    "#;
    scene.talk(transcript).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_documented_is_refused_and_a_violation() {
    let scene = Scene::new().await;
    let transcript = r#"
        POST stacks/register {"key": "a.b", "type": "custom", "queue_key": "kubernetes", "metadata": {}} -> 400 ! key is invalid
        POST stacks/register {"key": "<k*80>", "type": "custom", "queue_key": "kubernetes", "metadata": {}} -> 201
        POST stacks/register {"key": "<k*81>", "type": "custom", "queue_key": "kubernetes", "metadata": {}} -> 400 ! key is invalid
        POST stacks/register {"key": "s", "type": "kubernetes", "queue_key": "kubernetes", "metadata": {}} -> 400 ! type is invalid
        POST stacks/register {"key": "s", "type": "custom", "queue_key": "kubernetes", "metadata": {"k": 1}} -> 400 ! metadata is invalid
        POST stacks/register {"key": "s", "type": "custom", "queue_key": "kubernetes", "metadata": {"<ä*64>": "<ä*256>"}} -> 200
        POST stacks/register {"key": "s", "type": "custom", "queue_key": "kubernetes", "metadata": {"<ä*65>": "v"}} -> 400 ! metadata is invalid
        POST stacks/register {"key": "s", "type": "custom", "queue_key": "kubernetes", "metadata": {"k": "<ä*257>"}} -> 400 ! metadata is invalid
        POST stacks/register {"key": "s", "type": "custom", "metadata": {}} -> 422 ! queue_key is required
        POST stacks/register {"key": "s", "type": "custom", "queue_key": "kubernetes", "metadata": {}, "other": 1} -> 400 ! other is unknown
        POST stacks/register [] -> 400 ! no JSON object
        POST stacks/register -> 400 ! EOF
        POST stacks/s/deregister {} -> 400 ! no body
        GET stacks/s/scheduled-jobs -> 422 ! queue_key is required
        GET stacks/s/scheduled-jobs?queue_key=kubernetes&limit=1001 -> 400 ! limit is invalid
        GET stacks/s/scheduled-jobs?queue_key=kubernetes&after=1 -> 400 ! after is invalid
        GET stacks/s/scheduled-jobs?queue_key=kubernetes&page=1 -> 400 ! page is unknown
        GET stacks/s/scheduled-jobs?queue_key=kubernetes {} -> 400 ! no body
        PUT stacks/s/scheduled-jobs/batch-reserve {"job_uuids": "$2"} -> 400 ! job_uuids is invalid
        PUT stacks/s/scheduled-jobs/batch-reserve {"job_uuids": ["u"]} -> 400 ! job_uuids is invalid
        PUT stacks/s/scheduled-jobs/batch-reserve {"job_uuids": [<"$2",*1000>], "reservation_expiry_seconds": 3600} -> 200
        PUT stacks/s/scheduled-jobs/batch-reserve {"job_uuids": [<"$2",*1001>]} -> 400 ! job_uuids is invalid
        PUT stacks/s/scheduled-jobs/batch-reserve {"job_uuids": [], "reservation_expiry_seconds": 3601} -> 400 ! reservation_expiry_seconds is invalid
        PUT stacks/s/scheduled-jobs/batch-reserve {"job_uuids": [], "token_lifetime_seconds": 1} -> 400 ! token_lifetime_seconds is unknown
        POST stacks/s/scheduled-jobs/batch-reserve {"job_uuids": []} -> 404 ! no such call
        POST stacks/s/job-acquisition-tokens {"job_uuids": [], "token_lifetime_seconds": 0} -> 400 ! token_lifetime_seconds is invalid
        POST stacks/s/jobs/get-states?a=b {"job_uuids": []} -> 400 ! no query
        POST stacks/s/jobs/$1/finish {"exit_status": -1} -> 422 ! detail is required
        POST stacks/s/jobs/$1/finish {"detail": ""} -> 400 ! detail is invalid
        POST stacks/s/jobs/$2/finish {"detail": "<ä*2048>"} -> 404
        POST stacks/s/jobs/$2/finish {"detail": "<ä*2048>d"} -> 400 ! detail is invalid
        POST stacks/s/jobs/$1/finish {"detail": "d", "exit_status": "1"} -> 400 ! exit_status is invalid
        POST stacks/s/jobs/$1/finish {"detail": "d", "exit_status": 1} -> 422 ! finishes only what it has reserved
        POST stacks/s/notifications {"notifications": [{"detail": "d"}]} -> 400 ! notifications is invalid
        POST stacks/s/notifications {"notifications": [<{"job_uuid": "$2", "detail": "d"},*1000>]} -> 200
        POST stacks/s/notifications {"notifications": [<{"job_uuid": "$2", "detail": "d"},*1001>]} -> 400 ! notifications is invalid
        GET /stacks/s/jobs/$1 -> 404 ! begins with /v3/
        GET stacks/s/jobs/1.2 -> 404 ! not percent-encoded
        GET stacks/s%2Es/jobs/$1 -> 404
    "#;
    for line in transcript.lines() {
        scene.talk(&format!("+ 1\n{line}")).await;
    }
    for (header, value, status) in [
        (AUTHORIZATION, "Bearer bkct_one", 401),
        (AUTHORIZATION, "", 401),
        (ACCEPT, "*/*", 400),
        (CONTENT_TYPE, "", 400),
        (USER_AGENT, "", 400),
    ] {
        let mut request = scene.request(REGISTER);
        request.headers_mut().insert(&header, value.parse().unwrap());
        let found = scene.send(request).await.0;
        assert_eq!((found, scene.buildkite.lock().violations.drain(..).count()), (status, 1), "{header} {value}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_has_pages_of_what_waits_in_the_queue() {
    let scene = Scene::new().await;
    scene.skip(1.0);
    let (now, ids) =
        (scene.buildkite.lock().now(), [0, 1, 2, 3, 4].map(|id| format!("11111111-2222-4333-8444-00000000000{id}")));
    for id in &ids {
        scene.buildkite.lock().schedule(&Event::scheduled().uuid(id), CLUSTER);
    }
    scene.buildkite.lock().schedule(&Event::scheduled().uuid(JOBS[1]).rules(["queue=gpu"]), CLUSTER);
    let edit = |id: usize, change: fn(&mut Job)| change(scene.buildkite.lock().jobs.get_mut(&ids[id]).unwrap());
    edit(0, |job| job.scheduled_at = Timestamp::UNIX_EPOCH);
    edit(1, |job| (job.priority, job.runnable_at) = (7, Some(Timestamp::UNIX_EPOCH)));
    edit(2, |job| job.state = "limited");
    let (mut found, mut after) = (Vec::new(), String::new());
    for (size, has_next_page) in [(2, true), (2, true), (1, false)] {
        let (_, page) = scene.ask(&format!("{LIST}&limit=2{after}")).await;
        assert_eq!(page["page_info"]["has_next_page"], has_next_page);
        let jobs = page["jobs"].as_array().unwrap();
        assert_eq!(jobs.len(), size);
        found.extend(jobs.iter().map(|job| [&job["id"], &job["priority"], &job["runnable_at"]].map(Value::clone)));
        after = format!("&after={}", page["page_info"]["end_cursor"].as_str().unwrap().replace('=', "%3D"));
    }
    let plain = |id: &str| [json!(id), json!(0), Value::Null];
    let runnable = [json!(ids[1]), json!(7), json!("1970-01-01T00:00:00.000Z")];
    assert_eq!(found, [plain(&ids[0]), plain(JOBS[0]), runnable, plain(&ids[3]), plain(&ids[4])]);
    let listed_at = |queue| scene.buildkite.lock().queue(CLUSTER, queue).listed_at;
    assert_eq!((listed_at("kubernetes"), listed_at("gpu")), (Some(now), None));
}

#[tokio::test(start_paused = true)]
async fn a_reservation_belongs_to_one_stack_until_it_expires() {
    let scene = Scene::new().await;
    let [register, theirs] = [REGISTER.replace("\"s\"", "\"t\""), RESERVE.replace("/s/", "/t/")];
    let states = r#"POST stacks/s/jobs/get-states {"job_uuids": ["$1"]} -> 200 {"states": {"$1": "#;
    let transcript = format!(
        r#"
        {register} -> 201
        {RESERVE} -> 200 {{"reserved": ["$1"]}}
        {theirs} -> 200 {{"not_reserved": ["$1"]}}
        {LIST} -> 200 {{"jobs": []}}
        + 59
        {RESERVE} -> 200 {{"reserved": ["$1"]}}
        + 59
        {theirs} -> 200 {{"not_reserved": ["$1"]}}
        {states}"reserved"}}}}
        + 1
        {states}"scheduled"}}}}
        {FINISH} -> 422 {{"message": "The job is scheduled"}}
        {theirs} -> 200 {{"reserved": ["$1"]}}
        {FINISH} -> 422 ! finishes only what it has reserved
        "#
    );
    scene.talk(&transcript).await;
}

#[tokio::test(start_paused = true)]
async fn a_finish_is_shown_once_and_the_step_is_retried() {
    let scene = Scene::new().await;
    scene.edit(|job| (job.retries, job.priority) = (1, 3));
    scene.talk(&format!("{RESERVE} -> 200\n{FINISH} -> 200\n{FINISH} -> 422")).await;
    let (job, event) = (scene.job(), scene.buildkite.lock().events.remove(0));
    assert_eq!((job.state, job.exit_status, job.signal_reason.as_deref()), ("finished", Some(-1), Some("stack_error")));
    assert_eq!(job.detail.as_deref(), Some("no such definition"));
    assert_eq!(job.retried_in_job_id.as_deref(), Some(event.job_uuid()));
    assert_ne!(event.0["id"], job.event.0["id"]);
    let retry = scene.buildkite.lock().jobs[event.job_uuid()].clone();
    assert_eq!((retry.state, retry.retries, retry.priority), ("scheduled", 0, 3));

    for (exit_status, is_cancelled, status, state) in [(0, false, 200, "finished"), (-1, true, 422, "canceled")] {
        scene.schedule(0);
        scene.edit(|job| job.retries = 1);
        scene.talk(&format!("{RESERVE} -> 200")).await;
        if is_cancelled {
            scene.buildkite.lock().cancel(JOBS[0]);
        }
        let body = json!({"detail": "d", "exit_status": exit_status});
        scene.talk(&format!("POST stacks/s/jobs/$1/finish {body} -> {status}")).await;
        assert_eq!((scene.job().state, scene.job().signal_reason), (state, None));
    }
    assert!(scene.buildkite.lock().events.is_empty());
}

#[tokio::test(start_paused = true)]
async fn notifications_fail_one_by_one() {
    let scene = Scene::new().await;
    let transcript = r#"
        POST stacks/s/notifications {"notifications": [{"job_uuid": "$1", "detail": "made"}, {"job_uuid": "$1", "detail": "<ä*256>"}]} -> 200 {"errors": []}
        POST stacks/s/notifications {"notifications": [{"job_uuid": "$1", "detail": "d"}, {"job_uuid": "$1", "detail": ""}]} -> 200 {"errors": [{"error": "detail is required", "indexes": [1]}]} ! notification 1
        POST stacks/s/notifications {"notifications": [{"job_uuid": "$1", "detail": "<ä*257>"}]} -> 200 {"errors": [{"error": "detail exceeds its length limit of 256"}]} ! notification 0
        POST stacks/s/notifications {"notifications": [{"job_uuid": "$1", "detail": "d", "timestamp": "2020-01-01T00:00:00Z"}]} -> 200 {"errors": [{"error": "timestamp is invalid"}]} ! notification 0
        POST stacks/s/notifications {"notifications": [{"job_uuid": "$1", "detail": "d", "timestamp": "2999-01-01T00:00:00Z"}]} -> 200 {"errors": [{"error": "timestamp is invalid"}]} ! notification 0
        POST stacks/s/notifications {"notifications": [{"job_uuid": "$2", "detail": "d"}]} -> 200 {"errors": [{"indexes": [0]}]}
        POST stacks/s/notifications {"notifications": [<{"job_uuid": "$1", "detail": "d"},*98>]} -> 200 {"errors": [{"error": "job stack notification count exceeded", "indexes": [97]}]} ! notification 97
    "#;
    scene.talk(transcript).await;
    let notifications = scene.job().notifications;
    assert_eq!((notifications.len(), &*notifications[0].1), (100, "made"));
    scene.buildkite.lock().cancel(JOBS[0]);
    scene.edit(|job| job.notifications.clear());
    let transcript = r#"
        + 299
        POST stacks/s/notifications {"notifications": [{"job_uuid": "$1", "detail": "d"}]} -> 200 {"errors": []}
        + 2
        POST stacks/s/notifications {"notifications": [{"job_uuid": "$1", "detail": "d"}]} -> 200 {"errors": [{"indexes": [0]}]}
    "#;
    scene.talk(transcript).await;
}

#[tokio::test(start_paused = true)]
async fn each_endpoint_has_a_rate_limit_for_each_stack() {
    let scene = Scene::new().await;
    scene.talk(&format!("{} -> 201", REGISTER.replace("\"s\"", "\"t\""))).await;
    for left in (0..10).rev() {
        let (status, headers, _) = scene.send(scene.request(LIST)).await;
        let header = |name: &str| headers[&format!("ratelimit-{name}")].to_str().unwrap().to_owned();
        let expected = ["list-scheduled-jobs", "10", &left.to_string(), "1"].map(str::to_owned);
        assert_eq!((status, ["scope", "limit", "remaining", "reset"].map(header)), (200, expected));
        scene.skip(0.05);
    }
    let over = r#"429 {"scope": "list-scheduled-jobs", "limit": 10, "current": 11, "reset": 1}"#;
    let theirs = LIST.replace("/s/", "/t/");
    scene.talk(&format!("{LIST} -> {over}\n{theirs} -> 200\n{RESERVE} -> 200\n+ 0.5\n{LIST} -> 200")).await;
    scene.talk(&format!("{LIST} -> {over}")).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_good_for_its_kind_and_its_cluster() {
    let ours = Scene::new().await;
    let other = ours.with("bkct_other", "other", Token::Cluster);
    ours.buildkite.lock().queue("other", "kubernetes");
    let unknown = Scene { buildkite: ours.buildkite.clone(), token: "bkct_no".to_owned() };
    // GET token, register a stack, list with another, register an agent, acquire.
    for (scene, expected) in [
        (&unknown, [401, 401, 401, 401, 401]),
        (&ours.with("bkcqt_one", CLUSTER, Token::Queue("kubernetes".to_owned())), [200, 401, 401, 200, 200]),
        (&ours.with("bkar_one", "", Token::Unclustered), [200, 401, 401, 200, 404]),
        (&other, [200, 201, 404, 200, 404]),
        (&ours, [200, 200, 200, 200, 422]),
    ] {
        let mut found = Vec::new();
        for call in ["GET token", &REGISTER.replace("\"s\"", "\"new\""), LIST] {
            found.push(scene.ask(call).await.0);
        }
        let agent = scene.agent("kubernetes").await;
        found.push(*agent.as_ref().err().unwrap_or(&200));
        found.push(agent.as_ref().unwrap_or(scene).ask("PUT jobs/$1/acquire").await.0);
        assert_eq!(found, expected, "{}", scene.token);
    }
    other.talk(&format!("{REGISTER} -> 200\n{LIST} -> 200")).await;
    ours.talk(&format!("{LIST} -> 404\n{REGISTER} -> 200\n{LIST} -> 200")).await;
    ours.buildkite.lock().tokens.clear();
    ours.talk(&format!("{LIST} -> 401")).await;
}

#[tokio::test(start_paused = true)]
async fn a_job_acquisition_token_registers_for_one_reserved_job() {
    let scene = Scene::new().await;
    scene.schedule(1);
    // Seconds of the reservation, of the token, and from then to the registration.
    for (reservation, lifetime, wait, refused) in [
        (60, 900, 59.0, None),
        (60, 900, 60.0, Some(401)),
        (900, 60, 59.0, None),
        (900, 60, 60.0, Some(401)),
        (60, 60, 0.0, Some(401)),
    ] {
        scene.schedule(0);
        scene.talk(&format!("{} -> 200", RESERVE.replace("60", &reservation.to_string()))).await;
        let body = json!({"job_uuids": [JOBS[0]], "token_lifetime_seconds": lifetime});
        let (_, issued) = scene.ask(&format!("POST stacks/s/job-acquisition-tokens {body}")).await;
        let token = issued["job_acquisition_tokens"][0]["job_acquisition_token"].as_str().unwrap().to_owned();
        scene.skip(wait);
        if wait == 0.0 {
            scene.buildkite.lock().tokens.remove("bkct_one");
        }
        let agent = Scene { buildkite: scene.buildkite.clone(), token }.agent("kubernetes").await;
        assert_eq!(agent.as_ref().err(), refused.as_ref(), "{reservation} {lifetime} {wait}");
        if let Ok(agent) = agent {
            agent.talk("PUT jobs/$2/acquire -> 404\nPUT jobs/$1/acquire -> 200").await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_takes_a_job_from_acquire_to_finish() {
    let scene = Scene::new().await;
    let agent = async |queue| scene.agent(queue).await.ok().unwrap();
    let (agent, second, elsewhere) = (agent("kubernetes").await, agent("kubernetes").await, agent("gpu").await);
    elsewhere.talk("PUT jobs/$1/acquire -> 404").await;
    scene.edit(|job| (job.is_locked, job.retries) = (true, 1));
    agent.talk("POST connect -> 200\nGET ping -> 200\nPUT jobs/$1/acquire -> 423").await;
    agent.talk(r#"POST heartbeat {"sent_at": "t"} -> 200 {"sent_at": "t"}"#).await;
    scene.edit(|job| job.is_locked = false);
    scene.talk(&format!("{RESERVE} -> 200")).await;
    let (_, job) = agent.ask("PUT jobs/$1/acquire").await;
    let env = json!({"BUILDKITE_AGENT_META_DATA_A_B": "c", "BUILDKITE_JOB_ID": JOBS[0], "BUILDKITE_AGENT_NAME": "h-1"});
    assert!(has(&job, &json!({"state": "accepted", "env": env})), "{job}");
    scene.talk(&format!("{FINISH} -> 422\n{RESERVE} -> 200 {{\"reserved\": []}}")).await;
    second.talk("PUT jobs/$1/acquire -> 422\nPUT jobs/$1/start {} -> 422").await;

    let agent = Scene { token: job["token"].as_str().unwrap().to_owned(), ..agent };
    agent.talk(r#"PUT jobs/$1/start {"started_at": "t"} -> 200"#).await;
    assert_eq!(scene.job().state, "running");
    for text in ["one\n", "two\n"] {
        let mut chunk = GzEncoder::new(Vec::new(), Compression::default());
        chunk.write_all(text.as_bytes()).unwrap();
        let mut request = agent.request("POST jobs/$1/chunks?sequence=1&offset=0&size=4");
        *request.body_mut() = chunk.finish().unwrap().into();
        assert_eq!(agent.send(request).await.0, 201);
    }
    let transcript = r#"
        POST jobs/$1/data/exists {"key": "buildkite:git:commit"} -> 200
        PUT jobs/$1/finish {"exit_status": "3", "signal": "", "signal_reason": "", "chunks_failed_count": 0} -> 200
        PUT jobs/$1/finish {"exit_status": "3", "signal": "", "signal_reason": "", "chunks_failed_count": 0} -> 422
        POST /agentedge.v1.AgentEdgeService/StreamPings -> 404
        POST disconnect -> 200
    "#;
    agent.talk(transcript).await;
    let (job, events) = (scene.job(), scene.buildkite.lock().events.len());
    assert_eq!((job.state, job.exit_status, job.signal_reason), ("finished", Some(3), None));
    assert_eq!((&*job.log, events), ("one\ntwo\n".as_bytes(), 1));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_job_ends_at_once_or_with_its_agent() {
    let scene = Scene::new().await;
    for (acquire, state, ended) in [("", "canceled", 422), ("PUT jobs/$1/acquire -> 200", "canceling", 200)] {
        scene.schedule(0);
        let agent = scene.agent("kubernetes").await.ok().unwrap();
        agent.talk(acquire).await;
        scene.buildkite.lock().cancel(JOBS[0]);
        scene.talk(&format!("{RESERVE} -> 200 {{\"reserved\": []}}")).await;
        let finish = r#"PUT jobs/$1/finish {"exit_status": "-1", "signal_reason": "cancel"}"#;
        agent.talk(&format!("GET jobs/$1 -> 200 {{\"state\": \"{state}\"}}\n{finish} -> {ended}")).await;
        assert_eq!(scene.job().state, "canceled");
    }
    assert_eq!(scene.job().signal_reason.as_deref(), Some("cancel"));
}

#[tokio::test(start_paused = true)]
async fn time_is_that_of_tokio_and_what_was_skipped() {
    let scene = Scene::new().await;
    let start = scene.buildkite.lock().now();
    scene.talk(&format!("{RESERVE} -> 200\n+ 29")).await;
    for (wait, state) in [(30, "reserved"), (1, "scheduled")] {
        tokio::time::sleep(Duration::from_secs(wait)).await;
        assert_eq!(scene.buildkite.lock().jobs[JOBS[0]].state, state);
    }
    let (_, headers, _) = scene.send(scene.request("GET token")).await;
    let date = jiff::fmt::rfc2822::parse(headers[DATE].to_str().unwrap()).unwrap();
    assert_eq!(date.timestamp().as_second(), (start + Duration::from_mins(1)).as_second());
}

#[tokio::test(start_paused = true)]
async fn a_call_meets_a_fault() {
    let scene = Scene::new().await;
    scene.buildkite.inject(When::request("POST", "/finish"), Fault::throttled(Duration::from_secs(7)), 1);
    scene.buildkite.inject(When::request("POST", "/finish"), Fault::CutAfter, 1);
    scene.talk(&format!("{RESERVE} -> 200")).await;
    let (status, headers, _) = scene.send(scene.request(FINISH)).await;
    assert_eq!((status, &headers["retry-after"], scene.job().state), (429, &7.into(), "reserved"));
    assert!(scene.buildkite.call(scene.request(FINISH)).await.is_err());
    assert_eq!(scene.job().state, "finished");
}

#[tokio::test]
#[should_panic(expected = "POST /v3/stacks/register: queue_key is required")]
async fn a_violation_fails_the_test_of_a_lab() {
    let lab = Lab::start().await;
    for url in [lab.buildkite.https_url(), lab.variables()["BUILDKITE_STACKS_ENDPOINT"].clone()] {
        let mut client = Client::connect(&url, &lab.certificates.ca_pem()).await.unwrap();
        let request =
            Request::post("/v3/stacks/register").header(AUTHORIZATION, format!("Token {}", lab.agent_token()));
        let request = request.header(ACCEPT, "application/json").header(CONTENT_TYPE, "application/json");
        client.ask(request.header(USER_AGENT, "lab"), r#"{"key": "s", "type": "custom"}"#).await;
    }
    let found: Vec<_> = lab.timeline.entries().iter().map(|entry| (entry.actor, entry.status)).collect();
    assert_eq!(found, [(Actor::Buildkite, Some(422)); 2]);
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "GET /v3/stacks/s/none: the Stacks API has no such call")]
async fn a_violation_fails_a_test_in_process() {
    assert_eq!(Scene::new().await.ask("GET stacks/s/none").await.0, 404);
}
