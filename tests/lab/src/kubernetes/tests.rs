use std::{error::Error, io};

use axum::body::Bytes;
use axum::http::{
    StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER},
};
use hyper::{Request as HttpRequest, Response, http::request::Builder};
use jiff::Timestamp;

use super::*;
use crate::{
    CLUSTER, Fault, Lab, When,
    client::Client,
    eks_token::signer::{Signer, token},
};

const JOBS: &str = "/apis/batch/v1/namespaces/buildkite/jobs";
const SECRET: &str = "/api/v1/namespaces/buildkite/secrets/s";

struct Scene {
    lab: Lab,
    client: Client,
    token: String,
}

impl Scene {
    async fn new() -> Self {
        let lab = Lab::start().await;
        let client = connect(&lab).await;
        let token = sign(&lab, CLUSTER);
        Self { lab, client, token }
    }

    fn signed(&self, request: Builder) -> Builder {
        request.header(AUTHORIZATION, format!("Bearer {}", self.token))
    }

    async fn ask(&mut self, request: Builder, body: &str) -> (u16, Value) {
        self.client.ask(self.signed(request), body.to_owned()).await
    }

    /// Sends a Job, and returns the raw answer.
    async fn post(&mut self, name: &str) -> Result<Response<Bytes>, Box<dyn Error + Send + Sync>> {
        let request = self.signed(HttpRequest::post(JOBS));
        self.client.try_send(request, job(name)).await
    }

    fn inject(&self, fault: Fault) {
        self.lab.kubernetes.inject(When::request("POST", "/jobs"), fault, 1);
    }

    fn has_job(&self, name: &str) -> bool {
        self.lab.kubernetes.job(name).is_some()
    }

    /// The message of an error.
    async fn refused(&mut self, request: Builder, body: &str, code: u16, reason: &str) -> String {
        let (status, answer) = self.ask(request, body).await;
        assert_eq!((status, &answer["code"], &answer["reason"]), (code, &json!(code), &json!(reason)), "{answer}");
        assert_eq!((&answer["kind"], &answer["status"]), (&json!("Status"), &json!("Failure")));
        answer["message"].as_str().unwrap().to_owned()
    }
}

async fn connect(lab: &Lab) -> Client {
    Client::connect(&lab.kubernetes.url(), &lab.certificates.ca_pem()).await.unwrap()
}

fn sign(lab: &Lab, cluster: &str) -> String {
    let signer = Signer {
        host: "sts.us-east-1.amazonaws.com",
        region: "us-east-1",
        date: &Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string(),
        signed_headers: "host;x-k8s-aws-id",
    };
    let keys = Verifier { cluster: cluster.to_owned(), ..lab.kubernetes.api.verifier.clone() };
    token(&signer.url(&keys))
}

fn job(name: &str) -> String {
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "agent"}]}}},
    })
    .to_string()
}

fn secret(token: &str) -> String {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"token": token}}).to_string()
}

fn apply(manager: &str) -> Builder {
    HttpRequest::patch(format!("{SECRET}?fieldManager={manager}")).header(CONTENT_TYPE, "application/apply-patch+yaml")
}

#[tokio::test]
async fn a_job_is_made_once_read_and_deleted() {
    let mut scene = Scene::new().await;
    let one = || format!("{JOBS}/one");
    let (status, made) = scene.ask(HttpRequest::post(format!("{JOBS}?fieldValidation=Strict")), &job("one")).await;
    assert_eq!(status, 201);
    assert_eq!(made["metadata"]["namespace"], "buildkite");
    for field in ["uid", "creationTimestamp", "resourceVersion"] {
        assert!(made["metadata"][field].is_string(), "{field}");
    }
    assert_eq!(scene.ask(HttpRequest::get(one()), "").await, (200, made.clone()));
    assert_eq!(scene.lab.kubernetes.job("one"), Some(made));

    let message = scene.refused(HttpRequest::post(JOBS), &job("one"), 409, "AlreadyExists").await;
    assert_eq!(message, "jobs.batch \"one\" already exists");

    let (status, answer) = scene.ask(HttpRequest::delete(one()), "").await;
    assert_eq!((status, &answer["status"]), (200, &json!("Success")));
    assert_eq!(scene.refused(HttpRequest::get(one()), "", 404, "NotFound").await, "jobs.batch \"one\" not found");

    let requests = scene.lab.kubernetes.requests();
    assert_eq!((requests[0].query.as_str(), requests[0].status), ("fieldValidation=Strict", Some(201)));
    assert_eq!(requests[0].user.as_deref(), Some(USER));
}

#[tokio::test]
async fn a_job_that_cannot_be_made_is_refused_as_the_real_server_does() {
    let mut scene = Scene::new().await;
    let elsewhere = || HttpRequest::post("/apis/batch/v1/namespaces/builds/jobs");
    assert_eq!(scene.refused(elsewhere(), &job("one"), 404, "NotFound").await, "namespaces \"builds\" not found");
    scene.lab.kubernetes.add_namespace("builds");
    assert_eq!(scene.ask(elsewhere(), &job("one")).await.0, 201);

    scene.refused(HttpRequest::post(JOBS), "{", 400, "BadRequest").await;
    let always = job("one").replace("Never", "Always");
    assert_eq!(
        scene.refused(HttpRequest::post(JOBS), &always, 422, "Invalid").await,
        "Job.batch \"one\" is invalid: spec.template.spec.restartPolicy: Required value: valid values: \
         \"OnFailure\", \"Never\""
    );

    scene.lab.kubernetes.forbid("create", "jobs");
    assert_eq!(
        scene.refused(HttpRequest::post(JOBS), &job("one"), 403, "Forbidden").await,
        "jobs.batch is forbidden: User \"buildkite-on-demand-agent-scheduler\" cannot create resource \"jobs\" in API \
         group \"batch\" in the namespace \"buildkite\""
    );
    let message = scene.refused(HttpRequest::get("/apis/apps/v1"), "", 404, "NotFound").await;
    assert_eq!(message, "the server could not find the requested resource");
}

#[tokio::test]
async fn a_secret_belongs_to_the_managers_that_applied_it() {
    let mut scene = Scene::new().await;
    assert_eq!(scene.ask(apply("one"), &secret("eA==")).await.0, 201);
    assert_eq!(scene.ask(apply("one"), &secret("eQ==")).await.0, 200);
    assert_eq!(
        scene.refused(apply("two"), &secret("eg=="), 409, "Conflict").await,
        "Apply failed with 1 conflict: conflict with \"one\": .data.token"
    );
    assert_eq!(scene.ask(apply("two&force=true"), &secret("eg==")).await.0, 200);
    assert_eq!(scene.lab.kubernetes.secret("buildkite", "s").unwrap()["data"]["token"], "eg==");
    assert_eq!(scene.lab.kubernetes.secret("buildkite", "s").unwrap()["type"], "Opaque");

    scene.lab.kubernetes.put_secret_as("three", "buildkite", "s", "token", "w");
    let (_, conflict) = scene.ask(apply("one"), &secret("eA==")).await;
    let cause = json!({"reason": "FieldManagerConflict", "message": "conflict with \"three\"", "field": ".data.token"});
    assert_eq!(conflict["details"]["causes"], json!([cause]));

    scene.lab.kubernetes.put_secret_as("four", "buildkite", "s", "token", "w");
    assert_eq!(
        scene.refused(apply("one"), &secret("eA=="), 409, "Conflict").await,
        "Apply failed with 2 conflicts: conflicts with \"four\":\n- .data.token\nconflicts with \"three\":\n- .data.token"
    );
}

#[tokio::test]
async fn an_apply_must_say_what_it_is() {
    let mut scene = Scene::new().await;
    let no_manager = HttpRequest::patch(SECRET).header(CONTENT_TYPE, "application/apply-patch+yaml");
    let message = scene.refused(no_manager, &secret("eA=="), 422, "Invalid").await;
    assert!(message.contains("fieldManager: Required value: is required for apply patch"), "{message}");
    let merge = HttpRequest::patch(SECRET).header(CONTENT_TYPE, "application/merge-patch+json");
    scene.refused(merge, &secret("eA=="), 415, "UnsupportedMediaType").await;

    scene.lab.kubernetes.forbid("create", "secrets");
    let message = scene.refused(apply("one"), &secret("eA=="), 403, "Forbidden").await;
    assert!(message.starts_with("secrets \"s\" is forbidden"), "{message}");
    scene.lab.kubernetes.put_secret_as("one", "buildkite", "s", "token", "x");
    assert_eq!(scene.ask(apply("one"), &secret("eQ==")).await.0, 200, "patch alone suffices for one that is there");
}

#[tokio::test]
async fn pod_templates_are_listed_by_namespace() {
    let mut scene = Scene::new().await;
    scene.lab.kubernetes.put_pod_template(json!({"metadata": {"name": "here"}, "template": {}}));
    scene.lab.kubernetes.put_pod_template(json!({"metadata": {"name": "there", "namespace": "default"}}));
    let (_, list) = scene.ask(HttpRequest::get("/api/v1/namespaces/buildkite/podtemplates"), "").await;
    assert_eq!(list["kind"], "PodTemplateList");
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["items"][0]["metadata"]["name"], "here");
}

#[tokio::test]
async fn only_a_good_token_is_accepted_and_the_answer_does_not_say_why() {
    let mut scene = Scene::new().await;
    assert_eq!(scene.client.ask(HttpRequest::get("/version"), "").await.0, 200, "needs no token");
    assert_eq!(scene.client.ask(HttpRequest::get(JOBS), "").await.0, 401);

    scene.token = sign(&scene.lab, "other-cluster");
    assert_eq!(scene.refused(HttpRequest::post(JOBS), &job("one"), 401, "Unauthorized").await, "Unauthorized");
    let refusals: Vec<_> = scene.lab.kubernetes.requests().into_iter().map(|request| request.refusal).collect();
    assert_eq!(refusals[1].as_deref(), Some("no Authorization header"));
    assert!(refusals[2].as_ref().unwrap().contains("SignatureDoesNotMatch"), "{refusals:?}");
    assert!(scene.lab.kubernetes.jobs().is_empty());
}

#[tokio::test]
async fn tokens_expire_on_demand() {
    let mut scene = Scene::new().await;
    assert_eq!(scene.ask(HttpRequest::post(JOBS), &job("one")).await.0, 201);
    scene.lab.kubernetes.expire_tokens().await;
    assert_eq!(scene.ask(HttpRequest::post(JOBS), &job("two")).await.0, 401);
    scene.token = sign(&scene.lab, CLUSTER);
    assert_eq!(scene.ask(HttpRequest::post(JOBS), &job("two")).await.0, 201);
}

/// Whether a reset is among the causes.
fn is_reset(failure: &(dyn Error + 'static)) -> bool {
    let mut next = Some(failure);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionReset) {
            return true;
        }
        next = error.source();
    }
    false
}

#[tokio::test]
async fn a_connection_ends_by_a_reset_or_in_the_middle_of_the_answer() {
    let mut scene = Scene::new().await;
    for (fault, name, reset, made) in [
        (Fault::ResetBefore, "one", true, false),
        (Fault::ResetAfter, "two", true, true),
        (Fault::CutBefore, "three", false, false),
        (Fault::CutAfter, "four", false, true),
        (Fault::CutWithin, "five", false, true),
    ] {
        scene.inject(fault.clone());
        let failure = scene.post(name).await.unwrap_err();
        assert_eq!((is_reset(&*failure), scene.has_job(name)), (reset, made), "{fault:?}: {failure:?}");
        scene.client = connect(&scene.lab).await;
    }
    let requests = scene.lab.kubernetes.requests();
    assert!(requests.iter().all(|request| request.status.is_none()), "{requests:?}");
    assert!(requests.is_sorted_by_key(|request| request.at) && requests[0].at > Duration::ZERO);
    assert_eq!(scene.lab.kubernetes.faults_met(), 5);
    assert_eq!(scene.ask(HttpRequest::post(JOBS), &job("four")).await.0, 409, "the faults are over");
}

#[tokio::test]
async fn an_answer_is_empty_or_late_on_demand_and_its_job_is_made() {
    let mut scene = Scene::new().await;
    scene.inject(Fault::Empty);
    let answer = scene.post("one").await.unwrap();
    assert_eq!((answer.status(), answer.body().len()), (StatusCode::CREATED, 0));
    assert!(scene.has_job("one"));

    scene.inject(Fault::DelayAfter(Duration::from_mins(1)));
    let kubernetes = scene.lab.kubernetes.clone();
    tokio::select! {
        answer = scene.post("two") => panic!("{answer:?}"),
        () = async { while kubernetes.job("two").is_none() { sleep(Duration::from_millis(1)).await } } => {}
    }
}

#[tokio::test]
async fn tls_breaks_off_in_the_handshake_and_a_certificate_is_shown_on_demand() {
    let lab = Lab::start().await;
    let (url, ca) = (lab.kubernetes.url(), lab.certificates.ca_pem());
    let connect = async || Client::connect(&url, &ca).await.map(drop).map_err(|error| error.to_string());
    lab.kubernetes.inject(When::any(), Fault::CutHandshake, 2);
    lab.kubernetes.inject(When::any(), Fault::Show(Certificate::Expired), 1);
    for problem in ["tls handshake eof", "tls handshake eof", "expired"] {
        let error = connect().await.unwrap_err();
        assert!(error.contains(problem), "{error}");
    }
    assert_eq!(connect().await, Ok(()));
}

#[tokio::test]
async fn a_fault_of_connections_may_wait_for_the_request_before() {
    let mut scene = Scene::new().await;
    scene.lab.kubernetes.inject(When::request("PATCH", "/secrets"), Fault::Refuse, 1);
    assert_eq!(scene.ask(HttpRequest::post(JOBS), &job("one")).await.0, 201);
    assert_eq!(scene.ask(apply("one"), &secret("eA==")).await.0, 201);
    assert!(scene.post("two").await.is_err());
    assert!(Client::connect(&scene.lab.kubernetes.url(), &scene.lab.certificates.ca_pem()).await.is_err());
    scene.client = connect(&scene.lab).await;
    assert_eq!(scene.ask(HttpRequest::post(JOBS), &job("two")).await.0, 201);
}

#[tokio::test]
async fn errors_and_garbage_come_on_demand() {
    let mut scene = Scene::new().await;
    let invalid = "Job.batch \"one\" is invalid: injected";
    for fault in [Fault::throttled(Duration::from_secs(7)), Fault::invalid(invalid), Fault::status(503), Fault::Garbage]
    {
        scene.inject(fault);
    }
    let throttled = scene.post("one").await.unwrap();
    assert_eq!((throttled.status().as_u16(), &throttled.headers()[RETRY_AFTER]), (429, &"7".parse().unwrap()));
    let message = scene.refused(HttpRequest::post(JOBS), &job("one"), 422, "Invalid").await;
    assert_eq!(message, invalid);
    scene.refused(HttpRequest::post(JOBS), &job("one"), 503, "ServiceUnavailable").await;
    let garbage = scene.post("one").await.unwrap();
    assert_eq!(garbage.status(), StatusCode::CREATED);
    assert!(serde_json::from_slice::<Value>(garbage.body()).is_err());
    assert!(scene.has_job("one"));
}

#[tokio::test]
async fn a_refusing_server_drops_its_connections_and_resets_new_ones() {
    let mut scene = Scene::new().await;
    assert_eq!(scene.ask(HttpRequest::post(JOBS), &job("one")).await.0, 201);
    scene.lab.kubernetes.inject(When::any(), Fault::Refuse, 1);
    assert!(Client::connect(&scene.lab.kubernetes.url(), &scene.lab.certificates.ca_pem()).await.is_err());
    assert!(scene.client.try_send(HttpRequest::get("/version"), "").await.is_err(), "the idle connection is gone");
    scene.client = connect(&scene.lab).await;
    assert_eq!(scene.ask(HttpRequest::post(JOBS), &job("two")).await.0, 201);
}

#[tokio::test]
async fn a_client_refuses_a_bad_certificate() {
    let lab = Lab::start().await;
    let ca = lab.certificates.ca_pem();
    assert!(Client::connect(&lab.kubernetes.url(), &ca).await.is_ok());
    let localhost = lab.kubernetes.url().replace("127.0.0.1", "localhost");
    assert!(Client::connect(&localhost, &ca).await.is_ok());

    let other_ca = BASE64_STANDARD.decode(lab.certificates.other_ca_data()).unwrap();
    let other_ca = String::from_utf8(other_ca).unwrap();
    for (url, ca, problem) in [
        (lab.kubernetes.serve_with(Certificate::Expired).await, &ca, "expired"),
        (lab.kubernetes.serve_with(Certificate::OtherHost).await, &ca, "not valid for name"),
        (lab.kubernetes.url(), &other_ca, "UnknownIssuer"),
    ] {
        let error = Client::connect(&url, ca).await.err().unwrap().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[tokio::test]
async fn no_secret_is_recorded() {
    let mut scene = Scene::new().await;
    scene.ask(apply("one"), &secret("dG9rZW4=")).await;
    assert!(!format!("{:?}", scene.lab.timeline).contains("dG9rZW4="));
    let request = &scene.lab.kubernetes.requests()[0];
    assert!(request.body.contains("dG9rZW4=") && !format!("{request:?}").contains("dG9rZW4="));
}

#[tokio::test]
async fn a_list_has_what_its_selector_selects_page_by_page() {
    let mut scene = Scene::new().await;
    for (name, stack) in [("a", "one"), ("b", "two"), ("c", "one"), ("d", "one")] {
        scene.lab.kubernetes.put_job(json!({"metadata": {"name": name, "labels": {"stack": stack}}}));
        scene.lab.kubernetes.put_pod(json!({"metadata": {"name": name, "labels": {"stack": stack}}}));
    }
    for path in [JOBS, "/api/v1/namespaces/buildkite/pods"] {
        let mut names = Vec::new();
        let mut next = String::new();
        loop {
            let page = HttpRequest::get(format!("{path}?labelSelector=stack%3Done&limit=2&continue={next}"));
            let (status, list) = scene.ask(page, "").await;
            assert_eq!(status, 200, "{list}");
            let page: Vec<_> =
                list["items"].as_array().unwrap().iter().map(|job| job["metadata"]["name"].clone()).collect();
            names.push(page);
            match list["metadata"]["continue"].as_str() {
                Some(token) => next = token.replace('=', "%3D"),
                None => break,
            }
        }
        assert_eq!(names, [vec![json!("a"), json!("c")], vec![json!("d")]]);
    }
    scene.lab.kubernetes.lose_continues();
    let second = HttpRequest::get(format!("{JOBS}?limit=2&continue=YQ%3D%3D"));
    scene.refused(second, "", 410, "Expired").await;
}

#[tokio::test]
async fn a_delete_meets_the_job_of_its_uid_and_the_pods_of_that() {
    let mut scene = Scene::new().await;
    let kubernetes = scene.lab.kubernetes.clone();
    kubernetes.put_job(json!({"metadata": {"name": "a", "uid": "u1"}}));
    for (name, uid, deleted) in
        [("a-1", "u1", json!(null)), ("a-2", "u1", json!("2026-01-15T10:00:00Z")), ("a-0", "u0", json!(null))]
    {
        let metadata = json!({"name": name, "ownerReferences": [{"uid": uid}], "deletionTimestamp": deleted});
        kubernetes.put_pod(json!({"metadata": metadata}));
    }
    let options = |uid: &str| json!({"preconditions": {"uid": uid}, "propagationPolicy": "Background"}).to_string();
    let delete = || HttpRequest::delete(format!("{JOBS}/a"));
    let message = scene.refused(delete(), &options("u2"), 409, "Conflict").await;
    assert!(message.contains("the UID in the precondition (u2) does not match the UID in record (u1)"), "{message}");
    kubernetes.change_job("a", |job| job["metadata"]["finalizers"] = json!(["example.com/theirs"]));
    let (status, job) = scene.ask(delete(), &options("u1")).await;
    assert!(status == 200 && job["metadata"]["deletionTimestamp"].is_string(), "{job}");
    let left: Vec<_> = kubernetes.pods().iter().map(|pod| pod["metadata"]["name"].clone()).collect();
    assert_eq!(left, ["a-0", "a-2"], "the node of a-2 is dead");
    kubernetes.change_job("a", |job| job["metadata"]["finalizers"] = json!(null));
    assert_eq!(scene.ask(delete(), &options("u1")).await.0, 200);
    assert!(!scene.has_job("a"));
}

#[tokio::test]
async fn the_clock_of_the_lab_is_the_date_of_its_answers_and_of_its_objects() {
    let mut scene = Scene::new().await;
    scene.lab.skip(Duration::from_hours(1));
    let response = scene.post("late").await.unwrap();
    let date = response.headers()["date"].to_str().unwrap();
    let date: Timestamp = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).unwrap();
    let created = scene.lab.kubernetes.job("late").unwrap()["metadata"]["creationTimestamp"].as_str().unwrap().parse();
    for time in [date, created.unwrap(), scene.lab.buildkite.lock().now()] {
        let ahead = time.duration_since(Timestamp::now()).as_secs();
        assert!((3_595..=3_600).contains(&ahead), "{ahead}");
    }
}
